"""Heat maps: against their definitions, and the sanity check of arXiv 1810.03292; what would change an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import resnetkit.explaining
from pointing_samples import Placed, edges, hit, placed
from prediction_samples import CLASSES, COLOUR, GREY, make_model, picture
from resnetkit import explain_page
from resnetkit.counterfactual import GRID, change, covered, masks, table
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import BadPicture, UserError
from resnetkit.explaining import (
    METHODS,
    Method,
    answers,
    attributions,
    heat_map,
    in_words,
    network_input,
    overlay,
    view,
)
from resnetkit.model import ResNet, architecture
from resnetkit.weights import ModelFile, save_model

pytest.importorskip("captum", reason="needs captum, the extra 'explain'")
pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 48
SEEN = np.random.default_rng(3).integers(0, 256, (14, 17, 3)).astype(np.uint8)


def one_of_two(label: int, dice: np.random.Generator) -> Placed:
    """A ring or a cross, somewhere on a texture."""
    y, x = np.mgrid[:8, :8] - 3.5
    ring = (np.abs(np.hypot(x, y) - 2.8) < 0.8).astype(float)
    cross = ((np.abs(x) < 1) | (np.abs(y) < 1)).astype(float)
    return placed((ring, cross)[label], label, dice, SIDE)


@pytest.fixture(scope="module")
def learnt() -> tuple[ModelFile, list[Placed]]:
    """A network that has learnt to tell rings from crosses, and pictures that it gets right."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dice = np.random.default_rng(0)
    preprocess = Preprocess(SIDE, "shorter", SIDE, "bilinear", 3, "RGB", (0.45,) * 3, (0.2,) * 3, True)
    network = ResNet(architecture("resnet8-cifar", classes=2, width=8, stem_stride=2))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    made = [one_of_two(i % 2, dice) for i in range(360)]
    x = preprocess.normalise(torch.from_numpy(np.stack([each.picture for each in made])))
    y = torch.tensor([each.label for each in made])
    for step in range(120):
        rows = torch.randint(0, len(y), (16,))
        loss = F.cross_entropy(network(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 120)
    model = ModelFile(network.eval(), ("ring", "cross"), preprocess)
    held = [one_of_two(i % 2, dice) for i in range(60)]
    with torch.inference_mode():
        given = network(preprocess.normalise(torch.from_numpy(np.stack([each.picture for each in held])))).argmax(1)
    torch.set_num_threads(threads)
    right = [each for each, answer in zip(held, given.tolist(), strict=True) if answer == each.label]
    assert len(right) >= 48, "it has learnt it"
    return model, right[:24]


Mapped = Callable[[ModelFile, Placed], np.ndarray]
BOUND = 0.5  # on the mean rank correlation of maps with those of random weights


def ranks(heat: np.ndarray) -> np.ndarray:
    """Places in order; equal ones share the mean of theirs, or the many zeros of two maps would look alike."""
    _, inverse, counts = np.unique(heat, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where a map is the same everywhere."""
    first, other = ranks(a), ranks(b)
    return float(np.corrcoef(first, other)[0, 1]) if first.std() and other.std() else 0.0


def randomised(model: ModelFile, pictures: list[Placed], mapped: Mapped) -> float:
    """The sanity check of arXiv 1810.03292: how alike maps are to those of random weights, on average."""
    given, found = [mapped(model, one) for one in pictures], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random = replace(model, network=ResNet(model.network.arch).eval())
        found += [alike(own, mapped(random, one)) for own, one in zip(given, pictures, strict=True)]
    return float(np.mean(found))


@pytest.mark.parametrize("method", METHODS)
def test_maps_change_when_the_weights_are_randomised(learnt: tuple[ModelFile, list[Placed]], method: Method) -> None:
    """A map that stays the same with random weights shows the picture's edges, not what the network has learnt."""
    model, pictures = learnt

    def mapped(of: ModelFile, one: Placed) -> np.ndarray:
        return heat_map(of, one.picture, of=model.classes[one.label], method=method)

    assert np.array_equal(mapped(model, pictures[0]), mapped(model, pictures[0])), "the same weights, the same map"
    assert randomised(model, pictures[:4], mapped) < BOUND


def test_an_edge_detector_does_not_pass_for_a_map(learnt: tuple[ModelFile, list[Placed]]) -> None:
    """It looks like an explanation, also when the network says how strong it is; the check above finds it."""
    model, pictures = learnt

    def weighed(of: ModelFile, one: Placed) -> np.ndarray:
        sure = answers(of, network_input(of, view(of, one.picture)))[one.label]
        return sure * edges(one.picture)

    assert randomised(model, pictures[:4], weighed) > 0.99 > BOUND


@pytest.mark.parametrize("method", METHODS)
def test_maps_point_at_the_object(learnt: tuple[ModelFile, list[Placed]], method: Method) -> None:
    """The strongest place lies in the object's box, a ninth of the picture, far more often than a random one would."""
    model, pictures = learnt
    pictures = pictures[:14]
    hits = sum(hit(heat_map(model, one.picture, method=method), one.box) for one in pictures)
    assert hits >= 7, f"{hits} of {len(pictures)}; a random place: {len(pictures) / 9:.1f}"


def test_grad_cam_is_its_definition() -> None:
    """The last maps, weighted by the mean gradient of the logit, what is above 0, enlarged; preactivation too."""
    for name in ("resnet8-cifar", "resnetv2_50"):
        torch.manual_seed(0)
        network = ResNet(architecture(name, classes=len(CLASSES), width=16)).eval()
        model = ModelFile(network, CLASSES, replace(COLOUR, size=40, resize_to=40))
        x = network_input(model, view(model, SEEN))
        maps = network.features(x)[-1].detach().requires_grad_(True)
        cams = []
        for logit in network.fc(maps.mean((2, 3)))[0]:
            (slope,) = torch.autograd.grad(logit, maps, retain_graph=True)
            cams.append((slope.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu().detach())
        best = max(range(len(cams)), key=lambda i: float(cams[i].max()))
        wanted = F.interpolate(cams[best], (40, 40), mode="bilinear")[0, 0]
        got = heat_map(model, SEEN, of=CLASSES[best])
        np.testing.assert_allclose(got, (wanted / wanted.max()).numpy(), atol=1e-4)


def test_integrated_gradients_add_up() -> None:
    """Completeness: they are the logit less that of the mean colour."""
    model = make_model()
    x = network_input(model, view(model, SEEN))
    with torch.no_grad():
        wanted = float(model.network(x)[0, 4] - model.network(torch.zeros_like(x))[0, 4])
    assert float(attributions(model.network, x, 4).sum()) == pytest.approx(wanted, rel=0.05)


def test_occlusion_is_what_covering_costs() -> None:
    """A picture that is grey but for one square: covering that is all that costs anything."""
    model = make_model(replace(COLOUR, size=48, resize_to=48, mean=(127 / 255,) * 3))
    pixels = np.full((48, 48, 3), 127, np.uint8)
    pixels[8:16, 32:40] = (255, 0, 0)
    x = network_input(model, pixels)
    gains = np.log(table(model, x)[0]) - np.log(table(model, torch.zeros_like(x))[0])
    heat = heat_map(model, pixels, of=CLASSES[gains.argmax()], method="occlusion")
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 4 <= row < 20
    assert 28 <= column < 44
    assert heat[30:, :20].max() < 0.1


def test_maps_have_the_size_of_the_crop_and_any_kind_of_picture(tmp_path: Path) -> None:
    for preprocess in (COLOUR, GREY):
        model = make_model(preprocess)
        save_model(model, tmp_path / f"{preprocess.channels}.safetensors")
        content = picture(tmp_path / "a.png").read_bytes()
        for method in METHODS:
            heat = heat_map(tmp_path / f"{preprocess.channels}.safetensors", content, method=method)
            assert heat.shape == (10, 10)
            assert heat.dtype == np.float32
            assert heat.min() >= 0
            assert heat.max() in (0, 1)
        assert overlay(view(model, content), heat).size == (10, 10)


def test_an_overlay_leaves_what_says_nothing_grey() -> None:
    heat = np.zeros((10, 10), np.float32)
    heat[2, 3] = 1
    made = np.asarray(overlay(SEEN[:10, :10], heat)).astype(int)
    coloured = np.ptp(made, axis=2) > 0
    assert coloured[2, 3]
    assert coloured.sum() == 1


def test_words_say_where() -> None:
    heat = np.zeros((9, 9), np.float32)
    assert in_words(heat) == "nothing in the picture speaks for it"
    heat[0, 0], heat[4, 4] = 3, 1
    assert in_words(heat) == "75 % of it in the upper left, 25 % in the middle"


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    with pytest.raises(UserError, match=r"class 'dgo': the model does not know it \(did you mean 'dog'|dog"):
        heat_map(model, SEEN, of="dgo")
    with pytest.raises(UserError, match="method 'gradcam': choose from grad-cam"):
        heat_map(model, SEEN, method="gradcam")  # type: ignore[arg-type]
    with pytest.raises(BadPicture):
        heat_map(model, b"no picture")
    monkeypatch.setattr(resnetkit.explaining, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'resnetkit\[explain\]'"):
        heat_map(model, SEEN)


def missing(name: str) -> None:
    raise ImportError(name)


def test_what_is_covered_changes_the_answer(learnt: tuple[ModelFile, list[Placed]]) -> None:
    """The cells that are named do change it, one fewer of them do not, and they lie where the object is."""
    model, pictures = learnt
    near, some = 0, 0
    for one in pictures:
        x = network_input(model, view(model, one.picture))
        found = change(model, x)
        assert found.answer == model.classes[one.label]
        assert found.runner_up != found.answer
        assert found.probability + found.runner_up_probability == pytest.approx(1)
        if not found.cells:
            continue
        some += 1
        numbers = [row * GRID + column for row, column in found.cells]
        cells = masks(SIDE)
        after = table(model, covered(x, cells[numbers].any(0)[None]))[0]
        assert model.classes[after.argmax()] == found.becomes != found.answer
        assert after.max() == pytest.approx(found.becomes_probability)
        if len(numbers) > 1:
            fewer = table(model, covered(x, cells[numbers[:-1]].any(0)[None]))[0]
            assert model.classes[fewer.argmax()] == found.answer
        row, column = found.cells[0]
        inside = cells[row * GRID + column][one.box[1] : one.box[3], one.box[0] : one.box[2]]
        near += bool(inside.any())
    assert some >= 6
    assert near > some / 2


def test_the_grid_covers_every_pixel_once() -> None:
    for side in (5, 10, 48, 225):
        assert (masks(side).sum(0) == 1).all()


def test_the_command_writes_a_page(tmp_path: Path, resnet: Callable[..., tuple[int, str, str]]) -> None:
    save_model(make_model(), tmp_path / "m.safetensors")
    for name in ("a.png", "<b>.png"):
        picture(tmp_path / name, seed=len(name))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    out = tmp_path / "why.html"
    names = [str(tmp_path / name) for name in ("a.png", "<b>.png", "broken.jpg")]
    code, printed, complaint = resnet("explain", str(tmp_path / "m.safetensors"), *names, "--out", str(out), "--json")
    found = json.loads(printed)
    assert code == 1
    assert "broken.jpg: left out" in complaint
    assert [Path(each["path"]).name for each in found["pictures"]] == ["a.png", "<b>.png"]
    page = out.read_text()
    assert "<b>.png" not in page
    assert "&lt;b&gt;.png" in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<img") == page.count('alt="')
    for each in found["pictures"]:
        assert set(each["maps"]) == set(METHODS)
        assert each["of"] == each["top"][0]["class"] == each["change"]["answer"]


def test_a_class_is_chosen_and_what_cannot_be_is_refused_before_any_work(
    tmp_path: Path, resnet: Callable[..., tuple[int, str, str]]
) -> None:
    save_model(make_model(), tmp_path / "m.safetensors")
    photo, model, out = str(picture(tmp_path / "a.png")), str(tmp_path / "m.safetensors"), str(tmp_path / "w.html")
    assert resnet("explain", model, photo, "--class", "gnu", "--out", out)[0] == 0
    assert "What speaks for <bdi>gnu</bdi>" in Path(out).read_text()
    for arguments, message in (
        ((photo, "--out", out), "exists already"),
        ((photo, "--out", str(tmp_path / "w.png")), "ending .html"),
        ((photo, "--out", str(tmp_path / "no" / "w.html")), "there is no folder"),
        ((photo, "--class", "dgo", "--out", str(tmp_path / "v.html")), "does not know it"),
        ((str(tmp_path / "none.jpg"), "--out", str(tmp_path / "v.html")), "no such file"),
    ):
        code, _, complaint = resnet("explain", model, *arguments)
        assert code == 2
        assert message in complaint
    assert not (tmp_path / "v.html").exists()


def test_a_page_stays_small_and_refuses_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3)).astype(np.uint8)).save(photo)
    monkeypatch.setattr(explain_page, "MOST", 2)
    with pytest.raises(UserError, match="3 pictures: a page holds 2"):
        explain_page.explain(make_model(), [photo] * 3)
    found = explain_page.explain(make_model(replace(COLOUR, size=64, resize_to=64)), [photo])
    assert len(explain_page.page(found)) < 5_000_000 / 50

"""A backbone that does not learn: vectors that are kept, a dense layer that is the best there is, a run like others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import resnetkit
from resnetkit import vectors
from resnetkit.data.loader import Reader
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.events import Embedding
from resnetkit.head import DECAYS, fit_head, stratified
from resnetkit.model import ResNet, architecture
from resnetkit.protocol import outputs
from resnetkit.recipe import Optim
from resnetkit.recipe_file import with_settings
from resnetkit.shipped import shipped
from resnetkit.training import resuming, training
from resnetkit.weights import ModelFile, open_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

LBFGS = Optim(optimizer="lbfgs", freeze="backbone", weight_decay=0.01)
SPEC = Preprocess(12, "shorter", 12, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)


def blobs(n: int, classes: int, width: int = 6) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Clouds that overlap, in numbers of unlike scale."""
    dice = np.random.default_rng(0)
    labels = np.arange(n) % classes
    points = dice.normal(size=(classes, width))[labels] + dice.normal(size=(n, width))
    return (points * np.logspace(-2, 1, width) + 5).astype(np.float32), labels


def test_the_dense_layer_is_that_of_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn: pip install 'resnetkit[demo]'")
    x, y = blobs(300, 3)
    head = fit_head(x, y, 3, LBFGS, steps=500, seed=0)
    scaled = (x - x.mean(0)) / x.std(0)
    theirs = linear.LogisticRegression(C=1 / (300 * 0.01), tol=1e-9, max_iter=2000).fit(scaled, y)
    own = (torch.from_numpy(x) @ head.weight.T + head.bias).softmax(1)
    np.testing.assert_allclose(own, theirs.predict_proba(scaled), atol=2e-4)
    assert head.correct == int((own.argmax(1).numpy() == y).sum())
    assert (head.weight_decay, head.tried) == (0.01, {})


def test_a_number_that_never_changes_is_no_trouble() -> None:
    x, y = blobs(60, 2)
    x[:, 0] = 3.0
    head = fit_head(x, y, 2, LBFGS, steps=100, seed=0)
    assert torch.equal(head.weight[:, 0], torch.zeros(2))
    assert head.bias.isfinite().all()


def test_the_weight_decay_is_the_best_on_pictures_left_out() -> None:
    """Vectors that say nothing of the label want the strongest; vectors that say all, a weak one."""
    dice = np.random.default_rng(0)
    y = np.arange(120) % 3
    noise = dice.normal(size=(120, 60)).astype(np.float32)
    free = Optim(optimizer="lbfgs", freeze="backbone", weight_decay=0.0)
    assert fit_head(noise, y, 3, free, steps=50, seed=0).weight_decay == max(DECAYS)
    told = noise + 20 * np.eye(60, dtype=np.float32)[y]
    head = fit_head(told, y, 3, free, steps=50, seed=0)
    assert head.weight_decay < 0.1
    assert head.tried[head.weight_decay] == min(head.tried.values())


def test_fifths_are_even_in_each_class() -> None:
    labels = np.repeat([0, 1, 2], [40, 11, 3])
    fold = stratified(labels, seed=3)
    for label, n in enumerate((40, 11, 3)):
        counts = np.bincount(fold[labels == label], minlength=5)
        assert counts.sum() == n
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(fold, stratified(labels, seed=4))


def some_pictures(n: int) -> tuple[Reader, NDArray[np.uint8]]:
    dice = np.random.default_rng(1)
    pixels = dice.integers(0, 255, (n, 12, 12, 3), dtype=np.uint8)
    data = Data("photos", Arrays(pixels, (("x", n),)), np.arange(n) % 2, ("a", "b"), {"train": np.arange(n)})
    digests = np.zeros((n, 32), np.uint8)
    digests[:, 0] = np.arange(n) + 1
    return Reader(data, SPEC, threads=1), digests


def test_vectors_are_kept_by_picture_and_backbone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reader, digests = some_pictures(6)
    network = ResNet(architecture("resnet8-cifar", classes=2)).eval()
    asked: list[int] = []
    real = outputs

    def counting(*arguments: object) -> object:
        asked.extend(arguments[2].tolist())  # type: ignore[attr-defined]
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(vectors, "outputs", counting)

    def embed(indices: list[int], of: ResNet = network) -> NDArray[np.float32]:
        asked.clear()
        out = np.full((len(indices), 64), np.nan, np.float32)
        list(vectors.embedded(of, reader, np.array(indices), digests, out))
        return out

    first = embed([0, 1, 2])
    pixels = np.stack([reader(index) for index in range(3)])
    with torch.inference_mode():
        wanted = network.embed(SPEC.normalise(torch.from_numpy(pixels))).numpy()
    np.testing.assert_allclose(first, wanted, atol=1e-5)
    again = embed([3, 2, 0])
    assert asked == [3], "only the new picture"
    np.testing.assert_array_equal(again[1:], first[[2, 0]])
    with torch.no_grad():
        network.fc.weight.add_(1)
    embed([0, 1])
    assert asked == [], "the dense layer has no part in it"
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    embed([0, 1])
    assert asked == [0, 1], "another backbone"
    (kept,) = {path for path in tmp_path.rglob("vectors.safetensors") if path.stat().st_size} - {
        vectors.Kept(network, SPEC).path
    }
    assert kept.is_file()
    with torch.no_grad():
        next(network.parameters()).sub_(0.1)


def test_a_damaged_file_of_vectors_costs_time_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reader, digests = some_pictures(3)
    digests[2] = 0  # a picture whose bytes nobody read
    network = ResNet(architecture("resnet8-cifar", classes=2)).eval()
    out, again = np.zeros((3, 64), np.float32), np.zeros((3, 64), np.float32)
    list(vectors.embedded(network, reader, np.arange(3), digests, out))
    kept = vectors.Kept(network, SPEC)
    assert set(kept.rows) == {digests[0].tobytes(), digests[1].tobytes()}
    content = bytearray(kept.path.read_bytes())
    content[-1] ^= 1
    kept.path.write_bytes(content)
    assert vectors.Kept(network, SPEC).rows == {}
    list(vectors.embedded(network, reader, np.arange(3), digests, again))
    np.testing.assert_allclose(again, out, atol=1e-6)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around three colours, which any backbone tells apart."""
    folder = tmp_path_factory.mktemp("data") / "colours"
    dice = np.random.default_rng(0)
    for name, colour in {"blue": (30, 40, 200), "green": (20, 180, 40), "red": (200, 30, 20)}.items():
        (folder / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.clip(np.array(colour) + dice.normal(0, 40, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learnt nothing, of other classes."""
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResNet(architecture("resnet8-cifar", classes=2)).eval()
    save_model(ModelFile(network, ("cat", "dog"), SPEC), path)
    return path


def test_a_frozen_run_is_a_run_like_others(
    resnet: Callable[..., tuple[int, str, str]], colours: Path, start: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, out, err = resnet("train", str(colours), "--from", str(start), "--freeze", "backbone", "--out", str(run))
    assert (code, err) == (0, "")
    assert "recipe frozen: the dense layer alone, fitted to vectors of the pictures, fp32" in out
    assert {path.name for path in run.iterdir()} >= {
        *("model.safetensors", "result.json", "report.html", "recipe.json", "environment.json"),
        *("log.jsonl", "head.json", "split.csv"),
    }
    before, after = open_model(start).network.state_dict(), open_model(run).network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("fc."))
    result = resnetkit.evaluate(run)
    assert json.loads((run / "result.json").read_text())["result"] == json.loads(json.dumps(result.to_dict()))
    assert (result.correct, result.n) == (6, 6)
    about = json.loads((run / "head.json").read_text())
    assert about["correct"] == about["n"] == 24


def test_a_run_killed_while_it_embeds_goes_on(
    colours: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for name in ("left alone", "killed"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache" / name))
        run = tmp_path / name
        events = training(colours, recipe=shipped("frozen"), weights=start, out=run)
        for event in events:
            if name == "killed" and isinstance(event, Embedding):
                events.close()  # type: ignore[attr-defined]
        if name == "killed":
            assert not (run / "model.safetensors").exists()
            assert not any(isinstance(event, Embedding) for event in resuming(run)), "the vectors were kept"
        ends.append((run / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]
    list(resuming(run))
    assert (run / "model.safetensors").read_bytes() == ends[1], "a finished run stays as it is"


def test_what_a_frozen_backbone_cannot_do_is_said(
    resnet: Callable[..., tuple[int, str, str]], colours: Path, start: Path, tmp_path: Path
) -> None:
    code, _, err = resnet("train", str(colours), "--freeze", "backbone", "--out", str(tmp_path / "a"))
    assert (code, err) == (
        2,
        "resnet: --freeze backbone: layers that do not learn must have learnt before; give --from WEIGHTS\n",
    )
    code, _, err = resnet("train", str(colours), "--from", str(start), "--freeze", "layer9")
    assert code == 2
    assert 'optim.freeze = "layer9" in --freeze: must be' in err
    for settings, said in (
        (["optim.freeze=layer1"], "fits the dense layer alone"),
        (["augment.flip=true"], "sees every picture once, unchanged; set augment.flip = false"),
        (["augment.mixup=0.2"], "set augment.mixup = 0"),
        (["optim.ema=0.9"], "has no use for optim.ema"),
    ):
        with pytest.raises(UserError, match=said):
            with_settings(shipped("frozen"), settings)
    with pytest.raises(UserError, match="must have learnt before; give --from"):
        resnetkit.train(colours, recipe=shipped("frozen"), out=tmp_path / "b")
    recipe = with_settings(shipped("frozen"), ["optim.batch=8"])
    with pytest.raises(UserError, match="takes all 24 training pictures at once"):
        resnetkit.train(colours, recipe=recipe, weights=start, out=tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_freeze_of_a_stage_is_the_recipe_key() -> None:
    from resnetkit.cli_recipe import asked

    assert asked(None, None, None, [], "w", "backbone") == shipped("frozen")
    staged = asked(None, None, None, [], "w", "layer2")
    assert (staged.name, staged.optim.freeze) == ("finetune", "layer2")
    own = asked("small", None, None, [], "w", "backbone")
    assert (own.optim.optimizer, own.optim.freeze) == ("sgd", "backbone"), "a recipe that is named trains as it says"

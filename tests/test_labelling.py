"""Pictures to label next: unsure and far apart, with a reason for each, and a table that training takes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.kcentre import choose, unsureness
from resnetkit.model import ResNet, architecture
from resnetkit.shipped import shipped
from resnetkit.weights import ModelFile, save_model

pytestmark = pytest.mark.usefixtures("one_thread")


def around(degrees: list[float]) -> np.ndarray:
    """Vectors of unlike length in these directions of a plane."""
    angle = np.deg2rad(degrees)
    return (np.stack([np.cos(angle), np.sin(angle)], 1) * np.linspace(1, 3, len(degrees))[:, None]).astype(np.float32)


def test_unsure_is_a_small_margin() -> None:
    table = np.array([[0.98, 0.01, 0.01], [0.5, 0.4, 0.1], [0.34, 0.33, 0.33], [0.5, 0.5, 0.0]])
    np.testing.assert_allclose(unsureness(table), [0.03, 0.9, 0.99, 1.0])


def test_distance_alone_is_k_center_greedy() -> None:
    """Against the definition: each time the row whose nearest centre is farthest."""
    dice = np.random.default_rng(0)
    x, known = dice.normal(size=(60, 5)).astype(np.float32), dice.normal(size=(7, 5)).astype(np.float32)
    chosen = choose(x, np.ones(60), known, 12)
    centres = [row / np.linalg.norm(row) for row in known]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for choice in chosen:
        nearest = np.array([min(float(np.linalg.norm(row - centre)) for centre in centres) for row in unit])
        assert choice.row == nearest.argmax()
        assert choice.distance == pytest.approx(nearest.max(), abs=1e-5)
        at = known[choice.nearest] if choice.nearest >= 0 else x[-1 - choice.nearest]  # type: ignore[operator]
        assert np.linalg.norm(unit[choice.row] - at / np.linalg.norm(at)) == pytest.approx(choice.distance, abs=1e-5)
        centres.append(unit[choice.row])


def test_unsure_twins_are_not_both_chosen() -> None:
    x = around([0, 0.1, 0.2, 90, 180])
    unsure = np.array([1.0, 1.0, 1.0, 0.5, 0.01])
    assert {choice.row for choice in choose(x, unsure, around([180]), 2)} == {2, 3} or [
        choice.row for choice in choose(x, unsure, around([180]), 2)
    ] == [0, 3]


def test_the_sure_wait_even_when_they_are_far() -> None:
    x = around([10, 90, 170])
    assert [c.row for c in choose(x, np.array([0.6, 0.0, 0.6]), around([0]), 3)][-1] == 1


def test_without_labelled_pictures_the_most_unsure_is_first() -> None:
    first, second, *_ = choose(around([0, 1, 120]), np.array([0.5, 0.9, 0.4]), around([]).reshape(0, 2), 3)
    assert (first.row, first.nearest) == (1, None)
    assert (second.row, second.nearest) == (2, -2), "nearest to the first, row 1"
    assert len(choose(around([0, 1]), np.ones(2), around([5]), 10)) == 2, "no more than there are, none twice"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on red and blue pictures, and pictures without labels beside it: more of them, and green ones."""
    folder = tmp_path_factory.mktemp("label")
    dice = np.random.default_rng(0)
    colours = {"blue": (30, 40, 200), "red": (200, 30, 20), "green": (20, 200, 40)}
    for name, colour in colours.items():
        places = {"unlabelled": 5} if name == "green" else {f"photos/{name}": 8, "unlabelled": 5}
        for place, n in places.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            for number in range(n):
                pixels = np.clip(np.array(colour) + dice.normal(0, 12, (12, 12, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / place / f"{name}-{number}.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResNet(architecture("resnet8-cifar", classes=2)).eval()
    spec = Preprocess(12, "shorter", 12, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
    save_model(ModelFile(network, ("cat", "dog"), spec), folder / "start.safetensors")
    resnetkit.train(
        folder / "photos", recipe=shipped("frozen"), weights=folder / "start.safetensors", out=folder / "run"
    )
    return folder / "run"


def test_what_is_unlike_all_labelled_pictures_comes_first(run: Path) -> None:
    found = resnetkit.label_next(run, run.parent / "unlabelled", n=4)
    assert (found.n, found.labelled, found.bad, found.notes) == (15, 12, {}, ())
    first = found.picks[0]
    assert "green" in first.path
    assert first.nearest is not None
    assert f"{first.answer} " in first.why
    assert "from the nearest labelled picture" in first.why
    assert len({one.path for one in found.picks}) == 4
    assert found == resnetkit.label_next(run, run.parent / "unlabelled", n=4)


def test_the_list_becomes_a_training_set(
    resnet: Callable[..., tuple[int, str, str]], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    (tmp_path / "lists").mkdir()
    out = tmp_path / "lists" / "next.csv"
    code, said, err = resnet("label-next", "run", "unlabelled", "--n", "12", "--out", str(out))
    assert (code, err) == (0, "")
    assert "12 of 15 pictures, beside 12 labelled ones" in said
    page = out.with_suffix(".html").read_text()
    assert page.count("<img") == 12
    assert "http" not in page.replace("http://www.w3.org", "")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["label"] == "" and row["why"] for row in rows)
    with pytest.raises(UserError, match="label is empty"):
        resnetkit.open_data(out)
    for row in rows:
        row["label"] = Path(row["path"]).name.partition("-")[0]
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert len(resnetkit.open_data(out)) == 12


def test_a_model_outside_a_run_knows_no_labelled_pictures(
    resnet: Callable[..., tuple[int, str, str]], run: Path, tmp_path: Path
) -> None:
    alone, pictures = tmp_path / "model.safetensors", tmp_path / "new"
    alone.write_bytes((run / "model.safetensors").read_bytes())
    pictures.mkdir()
    (pictures / "a.png").write_bytes((run.parent / "unlabelled" / "red-0.png").read_bytes())
    (pictures / "b.png").write_bytes(b"no picture")
    code, out, err = resnet("label-next", str(alone), str(pictures), "--out", str(tmp_path / "x.csv"), "--json")
    assert code == 1
    assert "b.png: left out" in err
    value = json.loads(out)
    assert [Path(one["path"]).name for one in value["picks"]] == ["a.png"]
    assert value["picks"][0]["nearest"] is None
    assert "the model lies in no run folder" in value["notes"][0]
    assert "1 picture only" in value["notes"][1]


def test_wrong_input_is_said_before_any_work(
    resnet: Callable[..., tuple[int, str, str]], run: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there.html"
    there.write_text("")
    for out, said in (
        (tmp_path / "list.txt", "the list is a .csv file"),
        (tmp_path / "there.csv", f"{there}: exists already"),
        (tmp_path / "no" / "list.csv", "there is no folder"),
    ):
        code, _, err = resnet("label-next", str(run), "nowhere", "--out", str(out))
        assert (code, said in err) == (2, True), err
    code, _, err = resnet("label-next", str(run), "nowhere", "--out", str(tmp_path / "a.csv"))
    assert code == 2
    assert "nowhere" in err

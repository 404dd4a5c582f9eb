"""examples/nearest.py and examples/segment.py: they run, and what they say is what can be counted otherwise."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit
from resnetkit.data.transforms import Preprocess
from resnetkit.model import ResNet, architecture
from resnetkit.weights import ModelFile, save_model

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = Preprocess(8, "stretch", 8, "bilinear", 3, "RGB", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), True)


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=one)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# nearest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An untrained network, which tells dark from bright all the same."""
    torch.manual_seed(0)
    network = ResNet(architecture("resnet8-cifar", classes=2)).eval()
    save_model(ModelFile(network, ("a", "b"), TINY), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def noise(path: Path, low: int, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(low, low + 100, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.slow
def test_nearest_neighbours(model: Path, tmp_path: Path) -> None:
    """In the order of cosines counted one pair at a time; the query is no neighbour of itself."""
    folder = tmp_path / "pictures"
    files = [
        noise(folder / name / f"{i}.png", low, 10 * low + i)
        for name, low in (("dark", 0), ("bright", 150))
        for i in range(4)
    ]
    (folder / "dark" / "broken.png").write_text("no picture")
    done = run("nearest", model, folder, files[1], "--top", "3")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "broken.png: left out: " in done.stderr
    vectors = dict(zip(map(str, files), resnetkit.embed(model, files).vectors.astype(np.float64), strict=True))

    def cosine(one: str, other: str) -> float:
        a, b = vectors[one], vectors[other]
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    def others(query: str) -> list[str]:
        return sorted((path for path in vectors if path != query), key=lambda path: -cosine(query, path))

    *lines, last = done.stdout.splitlines()
    expected = others(str(files[1]))[:3]
    assert [line.split("  ")[1] for line in lines] == expected
    assert [float(line.split("  ")[0]) for line in lines] == [
        pytest.approx(cosine(str(files[1]), path), abs=1e-4) for path in expected
    ]
    share = np.mean([Path(others(path)[0]).parent == Path(path).parent for path in vectors])
    assert last == (
        f"of 8 pictures in 2 classes, {100 * share:.1f} % have a nearest neighbour of their class; by lot 42.9 %"
    )
    assert share > 3 / 7, "dark and bright are told apart"


@pytest.mark.slow
def test_nearest_without_classes(model: Path, tmp_path: Path) -> None:
    for i in range(3):
        noise(tmp_path / "loose" / f"{i}.png", 50 * i, i)
    done = run("nearest", model, tmp_path / "loose", tmp_path / "loose" / "0.png")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    done = run("nearest", model, tmp_path / "nowhere", tmp_path / "loose" / "0.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{tmp_path}/nowhere: no such file or folder\n"


def test_the_share_of_neighbours_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, on the circle, in blocks of two: 0 and 5 degrees are each other's, and 85's nearest is 100."""
    nearest = example("nearest")
    monkeypatch.setattr(nearest, "BLOCK", 2)
    angles = np.deg2rad([0, 5, 85, 100, 125])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    share, chance = nearest.same_class(vectors, ["a", "a", "a", "b", "b"])
    # 0 -> 5 right, 5 -> 0 right, 85 -> 100 wrong, 100 -> 85 wrong, 125 -> 100 right
    assert share == 3 / 5
    assert chance == (3 * 2 + 2 * 1) / (5 * 4)
    assert np.isfinite(nearest.unit(np.zeros((1, 2), np.float32))).all()


# segment


@pytest.mark.slow
def test_segment_runs(tmp_path: Path) -> None:
    pytest.importorskip("sklearn.datasets", reason="needs scikit-learn, the extra 'demo'")
    sheet, out = tmp_path / "s.png", tmp_path / "s.json"
    done = run("segment", "--steps", "2", "--test", "13", "--sheet", sheet, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(out.read_text())
    assert (value["steps"], value["held_out"]) == (2, 13)
    assert list(value["scores"]) == ["all maps", "last map alone", "always background"]
    for name, score in value["scores"].items():
        assert len(score["digits"]) == 10
        assert score["mean_iou"] == pytest.approx(np.mean(score["digits"]))
        assert re.search(rf"^{name}: mean IoU of the ten digits {score['mean_iou']:.3f} ", done.stdout, re.MULTILINE)
    assert value["scores"]["always background"]["mean_iou"] == 0
    with Image.open(sheet) as image:
        assert image.size == (2 * 12 * 66, 2 * 4 * 66)


def test_scenes_and_their_score() -> None:
    """Held-out digits are none of the training ones; pixels marked as a digit are lighter or darker than without it."""
    pytest.importorskip("sklearn.datasets", reason="needs scikit-learn, the extra 'demo'")
    segment = example("segment")
    parts = {part: segment.Scenes(part, seed=0) for part in ("train", "test")}
    shapes = {part: {shape.tobytes() for shape in scenes.shapes} for part, scenes in parts.items()}
    assert (len(shapes["train"]), len(shapes["test"])) == (1437, 360)
    assert not shapes["train"] & shapes["test"]
    assert [image.shape for part in parts.values() for image in part.photographs] == [(427, 320, 3)] * 4
    pictures, truth = parts["test"].batch(60)
    assert (pictures.shape, truth.shape) == ((60, 64, 64, 3), (60, 64, 64))
    assert set(truth.unique().tolist()) == set(range(11))
    assert ((truth > 0).flatten(1).sum(1) > 20).all(), "a digit in every picture"
    again = segment.Scenes("test", seed=0).batch(60)
    assert torch.equal(pictures, again[0])
    assert torch.equal(truth, again[1])
    assert segment.overlap(truth, truth) == [1.0] * 10
    answer = torch.randint(0, 11, truth.shape, generator=torch.Generator().manual_seed(0))
    for digit, score in enumerate(segment.overlap(answer, truth), start=1):
        said, meant = answer == digit, truth == digit
        assert score == pytest.approx(((said & meant).sum() / (said | meant).sum()).item())


def test_a_head_trains_every_map_it_is_given() -> None:
    pytest.importorskip("sklearn.datasets", reason="needs scikit-learn, the extra 'demo'")
    segment = example("segment")
    for levels in ((0, 1, 2, 3), (3,)):
        torch.manual_seed(0)
        head = segment.Segmenter(ResNet(architecture("resnet18", stem_stride=2, classes=10)), levels).train()
        pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
        out = head(pictures)
        assert out.shape == (2, 11, 64, 64)
        out.square().mean().backward()
        unreached = {key for key, weights in head.named_parameters() if weights.grad is None or not weights.grad.any()}
        assert unreached == {"backbone.fc.weight", "backbone.fc.bias"}

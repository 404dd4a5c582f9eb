"""`resnet calibrate`: what it prints, its JSON, and what `evaluate` and `model` say after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit import calibration, weights
from resnetkit.data.transforms import Preprocess
from resnetkit.model import ResNet, architecture
from resnetkit.weights import ModelFile, open_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., tuple[int, str, str]]

PREPROCESS = Preprocess(8, "shorter", 8, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with m.safetensors, and with photos/: sixty pictures in two classes, some on the wrong side."""
    dice = np.random.default_rng(0)
    torch.manual_seed(0)
    network = ResNet(architecture("resnet8-cifar", classes=2)).eval()
    pixels = np.clip(dice.integers(0, 256, (60, 1, 1, 3)) + dice.normal(0, 40, (60, 8, 8, 3)), 0, 255).astype(np.uint8)
    with torch.no_grad():
        logits = network(PREPROCESS.normalise(torch.from_numpy(pixels)))
        network.fc.weight *= 6 / logits.std()
        network.fc.bias -= 6 * logits.mean(0) / logits.std()
        answers = network(PREPROCESS.normalise(torch.from_numpy(pixels))).argmax(1).numpy()
    labels = np.where(dice.random(60) < 0.25, 1 - answers, answers)
    for i in range(60):
        folder = tmp_path / "photos" / ("cat", "dog")[labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(folder / f"{i:02}.png")
    save_model(ModelFile(network, ("cat", "dog"), PREPROCESS), tmp_path / "m.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.mark.usefixtures("place")
def test_what_is_printed(resnet: Run) -> None:
    code, out, err = resnet("calibrate", "m.safetensors", "photos")
    assert (code, err) == (0, "")
    temperature = open_model("m.safetensors").about.temperature
    assert temperature > 1, "a quarter of the labels was turned"
    found = calibration.calibrate(open_model("m.safetensors"), "photos")
    lines = [line.rstrip() for line in out.splitlines()]
    folds = f"{min(found.folds):.4g} to {max(found.folds):.4g} without a fifth of the pictures"
    assert lines[:3] == [
        f"temperature {temperature:.4g}; {folds}",
        "fitted on 60 pictures, written into m.safetensors",
        f"protocol: photos, all, single centre crop; {PREPROCESS}; fp32",
    ]
    assert lines[3].startswith("note: the score on all is no longer untouched: ")
    costs = next(line for line in lines if line.startswith("negative log-likelihood, nats"))
    assert costs.split()[-2:] == [f"{found.before.nll:.4f}", f"{found.after.nll:.4f}"]
    errors = next(line for line in lines if line.startswith("expected calibration error"))
    assert errors.split()[-4:] == [f"{100 * found.before.ece:.2f}", "%", f"{100 * found.after.ece:.2f}", "%"]
    drawn = [line for line in lines if " to " in line and line.split()[0][0].isdigit()]
    pairs = zip(found.before.bins, found.after.bins, strict=True)
    assert len(drawn) == sum(bool(one.n or other.n) for one, other in pairs)
    one, other = (side.bins[-1] for side in (found.before, found.after))
    assert min(one.n, other.n) > 0
    figures = [
        [f"{of.n}", f"{100 * (of.confidence or 0):.1f}", f"{100 * (of.accuracy or 0):.1f}"] for of in (one, other)
    ]
    assert [word for word in drawn[-1].split() if word != "%"] == ["93.3", "to", "100.0", *figures[0], *figures[1]]
    assert max(map(len, lines[4:])) <= 80


@pytest.mark.usefixtures("place")
def test_json(resnet: Run) -> None:
    model = open_model("m.safetensors")
    code, out, err = resnet("calibrate", "m.safetensors", "photos", "--split", "all", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found.pop("model") == "m.safetensors"
    expected = replace(calibration.calibrate(model, "photos"), notes=tuple(found["notes"]))
    assert found == json.loads(json.dumps(expected.to_dict()))
    assert len(found["notes"]) == 2
    assert open_model("m.safetensors").calibration["temperature"] == found["temperature"]


@pytest.mark.usefixtures("place")
def test_evaluate_before_and_after(resnet: Run) -> None:
    evaluate = ("evaluate", "m.safetensors", "photos", "--json")
    before = json.loads(resnet(*evaluate)[1])
    stated = json.loads(resnet("calibrate", "m.safetensors", "photos", "--json")[1])
    after = json.loads(resnet(*evaluate)[1])
    assert (stated["before"]["nll"], stated["before"]["ece"]) == (before["nll"], before["ece"])
    same = ("n", "correct", "top1", "confusion", "per_class", "balanced_accuracy")
    assert [after[name] for name in same] == [before[name] for name in same]
    assert after["nll"] < before["nll"]
    assert after["ece"] < before["ece"]
    assert after["protocol"].endswith(f"EXIF on, temperature {stated['temperature']:.4g}; fp32")


@pytest.mark.usefixtures("place")
def test_model_shows_it(resnet: Run) -> None:
    assert "temperature" not in resnet("model", "m.safetensors")[1]
    stated = json.loads(resnet("calibrate", "m.safetensors", "photos", "--json")[1])
    before, after = stated["before"], stated["after"]
    assert (
        f"\ntemperature {stated['temperature']:.4g}, fitted on 60 pictures (photos, all); negative log-likelihood "
        f"{before['nll']:.4f}, then {after['nll']:.4f} nats; calibration error {100 * before['ece']:.2f} %, then "
        f"{100 * after['ece']:.2f} %\n"
    ) in resnet("model", "m.safetensors")[1]
    save_model(replace(open_model("m.safetensors"), calibration={"temperature": 2}), Path("m.safetensors"))
    assert "\ntemperature 2\n" in resnet("model", "m.safetensors")[1], "of another program's file, what it says"


def test_pictures_that_cannot_be_read(place: Path, resnet: Run) -> None:
    broken = sorted((place / "photos").rglob("*.png"))[0]
    broken.write_bytes(b"no picture")
    name = broken.relative_to(place / "photos").as_posix()
    before = (place / "m.safetensors").read_bytes()
    code, out, err = resnet("calibrate", "m.safetensors", "photos")
    assert (code, out) == (2, "")
    assert err.startswith(f"resnet: photos: 1 picture cannot be read: {name} (")
    assert (place / "m.safetensors").read_bytes() == before
    code, out, err = resnet("calibrate", "m.safetensors", "photos", "--bad", "skip")
    assert (code, err) == (0, "")
    assert "fitted on 59 pictures" in out
    assert f"left out, because unreadable: 1 picture\n  {name}: " in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("m.safetensors", "this model does not lie in a run folder: say which pictures to evaluate it on"),
        ("m.safetensors photos --split train", "photos: no split 'train'; it has all"),
        ("m.safetensors divided --split train", "divided: train: a model is surer of pictures that it was trained on"),
        ("m.safetensors divided", "divided: val has 2 pictures to fit a temperature on; it takes 20 at least"),
        ("m.onnx photos", "m.onnx: an exported file; calibrate the model it was exported from, then export again"),
        ("nowhere photos", "nowhere: no such model file or run folder"),
    ],
)
def test_wrong_input_gets_one_sentence(line: str, message: str, place: Path, resnet: Run) -> None:
    (place / "m.onnx").write_bytes(b"theirs")
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (place / "divided" / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(place / "divided" / part / name / "0.png")
    before = (place / "m.safetensors").read_bytes()
    code, out, err = resnet("calibrate", *line.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"resnet: {message}")
    assert err.count("\n") == 1
    assert (place / "m.safetensors").read_bytes() == before


def test_ctrl_c_leaves_the_old_file(place: Path, resnet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (place / "m.safetensors").read_bytes()

    def interrupted(_path: Path, _data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "write_bytes", interrupted)
    code, out, _ = resnet("calibrate", "m.safetensors", "photos")
    assert (code, out) == (130, "")
    assert (place / "m.safetensors").read_bytes() == before

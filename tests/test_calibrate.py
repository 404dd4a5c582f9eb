"""`calibrate`: what it writes, which pictures it takes, what it refuses; and the temperature in every score."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import resnetkit
from resnetkit import calibration as module
from resnetkit import tensorfile
from resnetkit.calibration import LOWEST, calibrate, cross_fitted, fit, raw_answers
from resnetkit.comparison import compare
from resnetkit.data.folder import load_folder
from resnetkit.data.loader import Reader
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.split import save_split
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import Diverged, UserError
from resnetkit.evaluation import evaluate
from resnetkit.model import ResNet, architecture
from resnetkit.protocol import Member, Protocol, Scoring, probabilities
from resnetkit.reliability import reliability
from resnetkit.weights import ModelFile, open_model, save_model
from test_calibration import Logits, drawn, plain_nll

pytestmark = pytest.mark.usefixtures("one_thread")

PREPROCESS = Preprocess(8, "shorter", 9, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
PROTOCOLS = [Protocol(), Protocol("10-crop"), Protocol("dense", (8, 13))]


def pictures(n: int) -> Data:
    dice = np.random.default_rng(3)
    pixels = dice.integers(0, 256, (n, 1, 1, 3)) + dice.normal(0, 40, (n, 9, 12, 3))
    pool = Arrays(np.clip(pixels, 0, 255).astype(np.uint8), (("x", n),))
    return Data("x:", pool, np.zeros(n, np.int64), CLASSES, {"val": np.arange(n)})


def make_model(seed: int = 0) -> ModelFile:
    """An untrained network whose answers differ from picture to picture."""
    torch.manual_seed(seed)
    network = ResNet(architecture("resnet8-cifar", classes=len(CLASSES))).eval()
    data = pictures(80)
    x = PREPROCESS.normalise(torch.from_numpy(np.stack([PREPROCESS.fit(data.pictures.read(i)) for i in range(80)])))
    with torch.no_grad():
        logits = network(x)
        network.fc.weight *= 2 / logits.std()
        network.fc.bias -= 2 * logits.mean(0) / logits.std()
    return ModelFile(network, CLASSES, PREPROCESS, metrics={"top1": 0.5}, provenance={"device": "cpu"})


def logits_of(model: ModelFile, data: Data) -> Logits:
    return raw_answers(model, Reader(data, PREPROCESS, threads=1), np.arange(len(data)), "cpu", None)[1]


def labelled(model: ModelFile, n: int = 300, temperature: float = 2.0) -> Data:
    """Pictures whose labels were drawn with a temperature, so that this one is the model's right one."""
    data = pictures(n)
    return replace(data, labels=drawn(logits_of(model, data) / temperature, 7))


def rescaled(model: ModelFile, factor: float) -> ModelFile:
    """The model with its dense layer multiplied: exact in binary for powers of two."""
    network = ResNet(model.network.arch).eval()
    network.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        network.fc.weight *= factor
        network.fc.bias *= factor
    return replace(model, network=network)


def with_temperature(model: ModelFile, temperature: float) -> ModelFile:
    return replace(model, calibration={"temperature": temperature})


def folder_of(root: Path, data: Data) -> Path:
    """The pictures as PNGs in class folders."""
    for i in range(len(data)):
        place = root / data.classes[data.labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.pictures.read(i)).save(place / f"{i:03}.png")
    return root


# The temperature in every score


def table_of(model: ModelFile, data: Data, protocol: Protocol, temperature: float = 1.0) -> NDArray[np.float64]:
    member = Member(model.network, Reader(data, protocol.preprocess(PREPROCESS), threads=1), temperature=temperature)
    parts = probabilities(member.network, member.reader, np.arange(len(data)), protocol, shares=member.shares)
    return np.concatenate([part.rows for part in parts])


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.kind)
def test_logits_are_divided_before_every_softmax(protocol: Protocol) -> None:
    """A dense layer multiplied by a power of two gives logits multiplied by it, to the bit."""
    model, data = make_model(), pictures(30)
    plain = table_of(model, data, protocol)
    assert (table_of(model, data, protocol, temperature=1.0) == plain).all()
    for temperature in (0.5, 4.0):
        divided = table_of(model, data, protocol, temperature=temperature)
        assert (divided == table_of(rescaled(model, 1 / temperature), data, protocol)).all()
        assert np.abs(divided - plain).max() > 0.1


def test_a_temperature_of_one_changes_no_bit() -> None:
    model, data = make_model(), pictures(30)
    with torch.inference_mode():
        pixels = np.stack([PREPROCESS.fit(data.pictures.read(i)) for i in range(30)])
        logits = model.network(PREPROCESS.normalise(torch.from_numpy(pixels)))
    assert (table_of(model, data, Protocol()) == logits.double().softmax(1).numpy()).all()
    assert evaluate(with_temperature(model, 1.0), data) == evaluate(model, data)
    assert evaluate(with_temperature(model, 1), data).protocol == f"x:, val, single centre crop; {PREPROCESS}; fp32"


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.kind)
def test_each_model_of_an_ensemble_has_its_own(protocol: Protocol) -> None:
    models = [make_model(), make_model(1), make_model(2)]
    data = labelled(models[0], 60)
    given = [with_temperature(models[0], 2.0), with_temperature(models[1], 0.25), models[2]]
    expected = [rescaled(models[0], 0.5), rescaled(models[1], 4.0), models[2]]
    found = evaluate(given[0], data, protocol=protocol, ensemble=given[1:])
    plain = evaluate(expected[0], data, protocol=protocol, ensemble=expected[1:])
    assert replace(found, protocol="") == replace(plain, protocol="")
    assert found.protocol.replace(", temperature 2", "").replace(", temperature 0.25", "") == plain.protocol
    parts = found.protocol.split("resnet8-cifar: ")[1:]
    assert ["temperature" in part for part in parts] == [True, True, False]


def test_a_comparison_is_of_what_the_models_answer() -> None:
    first, second = make_model(), make_model(1)
    data = labelled(first, 60)
    plain = compare(first, second, data)
    found = compare(with_temperature(first, 8.0), second, data)
    assert found.top1 == plain.top1
    assert found.differing != plain.differing, "which are ordered by how sure the wrong answer is"
    assert found.protocol == (
        f"x:, val, A: single centre crop; {PREPROCESS}, temperature 8; B: single centre crop; {PREPROCESS}; fp32"
    )


def test_the_words() -> None:
    for protocol in PROTOCOLS:
        assert protocol.describe(PREPROCESS, 1.2345678) == f"{protocol.describe(PREPROCESS)}, temperature 1.235"
        assert protocol.describe(PREPROCESS, 1.0) == protocol.describe(PREPROCESS)


# calibrate


def test_a_model_gets_the_temperature_that_its_labels_were_drawn_with() -> None:
    model = make_model()
    data = labelled(model, 900, 3.0)
    seen: list[Scoring] = []
    found = calibrate(model, data, progress=seen.append)
    logits = logits_of(model, data)
    assert found.temperature == fit(logits, data.labels) == pytest.approx(3.0, rel=0.25)
    assert (found.n, found.data, found.split, found.bad) == (900, "x:", "val", {})
    assert model.calibration == {}, "a ModelFile stays as it is"
    assert (seen[-1].done, seen[-1].total) == (900, 900)
    plain = evaluate(model, data)
    assert (found.before.nll, found.before.ece) == (plain.nll, plain.ece)
    table, folds, _ = cross_fitted(logits, data.labels)
    assert found.folds == folds
    assert found.after == reliability(table, data.labels)
    assert found.after.nll < found.before.nll
    assert found.after.ece < found.before.ece / 2
    made = evaluate(replace(model, calibration=found.to_meta()), data)
    assert (made.correct, made.top5, made.confusion) == (plain.correct, plain.top5, plain.confusion)
    assert made.nll == pytest.approx(plain_nll(logits, data.labels, found.temperature), rel=1e-9)
    assert made.nll <= found.after.nll, "the pictures that it was fitted on flatter it"
    assert made.protocol == plain.protocol.replace("; fp32", f", temperature {found.temperature:.4g}; fp32")
    assert found.protocol == plain.protocol
    assert json.loads(json.dumps(found.to_dict()))["after"]["ece"] == found.after.ece
    assert str(found).startswith(f"temperature {found.temperature:.4g}: negative log-likelihood {plain.nll:.4f}, then")


def test_only_the_calibration_of_a_file_changes_and_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    model = make_model()
    path, data = tmp_path / "m.safetensors", labelled(model)
    save_model(model, path)
    tensors, meta = tensorfile.read(path)
    found = resnetkit.calibrate(path, data)
    first = path.read_bytes()
    after, made = tensorfile.read(path)
    assert meta is not None
    assert made == meta | {"calibration": found.to_meta()}
    assert {name: tensor.tolist() for name, tensor in after.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
    assert open_model(path).about.temperature == found.temperature
    assert found.to_meta() == {
        "temperature": found.temperature,
        "n": 300,
        "data": "x:",
        "split": "val",
        "before": {"nll": found.before.nll, "ece": found.before.ece},
        "after": {"nll": found.after.nll, "ece": found.after.ece},
    }
    again = calibrate(path, data)
    assert path.read_bytes() == first, "raw logits are what it begins from, whatever stood in the file"
    assert again.before == found.before
    assert f"temperature {found.temperature:.4g}, which the model had, is replaced" in again.notes
    save_model(with_temperature(model, 7.0), path)
    calibrate(path, data)
    assert path.read_bytes() == first


def test_all_right(tmp_path: Path) -> None:
    model = make_model()
    data = replace(pictures(30), labels=logits_of(model, pictures(30)).argmax(1))
    save_model(model, tmp_path / "m.safetensors")
    found = calibrate(tmp_path / "m.safetensors", data)
    assert (found.temperature, found.folds) == (1.0, (1.0,) * 5)
    assert found.before == found.after
    assert any("all answers are right, so the temperature would fall to 0" in note for note in found.notes)
    assert evaluate(tmp_path / "m.safetensors", data) == evaluate(model, data)


def test_notes_say_where_the_temperature_is_not_simply_the_best() -> None:
    model = make_model()
    wrong = replace(pictures(60), labels=logits_of(model, pictures(60)).argmin(1))
    assert any("worth less than even odds: temperature 20" in note for note in calibrate(model, wrong).notes)
    right = labelled(model, 900, 1.0)
    assert "on pictures that it was not fitted on" not in " ".join(calibrate(model, labelled(model)).notes)
    bare = calibrate(model, right)
    assert (bare.after.nll >= bare.before.nll) == any("no better than 1" in note for note in bare.notes)
    barely = replace(bare, after=bare.before)
    assert module.notes_on_fit(barely, False) == [
        "on pictures that it was not fitted on, this temperature is no better than 1"
    ]
    lowest = replace(bare, temperature=LOWEST)
    assert module.notes_on_fit(lowest, False) == ["the likelihood still grows at temperature 0.05, the lowest there is"]


# Which pictures


@pytest.mark.parametrize(
    ("splits", "wanted", "chosen", "note"),
    [
        ({"train": 30, "val": 40, "test": 50}, None, "val", ""),
        ({"train": 30, "val": 40}, None, "val", "the score on val is no longer untouched: "),
        ({"train": 30, "test": 50}, None, "test", "there is no val: the score on test is no longer untouched: "),
        ({"train": 30, "val": 40, "test": 50}, "test", "test", "the score on test is no longer untouched: "),
        ({"all": 60}, None, "all", "the score on all is no longer untouched: "),
    ],
    ids=str,
)
def test_pictures_that_were_held_back(splits: dict[str, int], wanted: str | None, chosen: str, note: str) -> None:
    model = make_model()
    edges = np.cumsum([0, *splits.values()])
    parts = {name: np.arange(edges[i], edges[i + 1]) for i, name in enumerate(splits)}
    found = calibrate(model, replace(labelled(model, int(edges[-1])), splits=parts), split=wanted)
    assert (found.split, found.n) == (chosen, splits[chosen])
    of_split = [text for text in found.notes if "untouched" in text]
    assert [text.startswith(note) for text in of_split] == ([True] if note else [])


def test_a_run_is_calibrated_on_what_it_kept_back(tmp_path: Path) -> None:
    model, run = make_model(), tmp_path / "run"
    folder = folder_of(tmp_path / "photos", labelled(model, 90))
    run.mkdir()
    save_model(model, run / "model.safetensors")
    (run / "environment.json").write_text(json.dumps({"data": str(folder)}))
    data = load_folder(folder)
    save_split(replace(data, splits={"train": np.arange(0, 90, 2), "val": np.arange(1, 90, 2)}), run / "split.csv")
    found = [calibrate(run, where) for where in (None, folder, str(folder))]
    assert {(each.n, each.split, each.data, each.temperature) for each in found} == {
        (45, "val", str(folder), found[0].temperature)
    }
    assert open_model(run).about.temperature == found[0].temperature
    with pytest.raises(UserError, match="train: a model is surer of pictures that it was trained on"):
        calibrate(run, split="train")


def refusals() -> list[tuple[Callable[[Data], Data], str | None, str]]:
    only_train = replace(pictures(30), splits={"train": np.arange(30)}).splits
    return [
        (lambda data: data, "train", "no split 'train'; it has val"),
        (lambda data: replace(data, splits=only_train), None, "x:: train: a model is surer of pictures that it was tr"),
        (lambda data: replace(data, splits=only_train), "train", "take pictures that were held back"),
        (lambda data: replace(data, splits=only_train), "val", "no split 'val'; it has train"),
        (lambda data: replace(data, unlabelled={"test": np.arange(30)}), "test", "test has no labels; take another"),
        (
            lambda data: replace(data, splits={"val": np.arange(19)}),
            None,
            "val has 19 pictures to fit a temperature on; it takes 20 at least",
        ),
        (lambda data: replace(data, classes=(*CLASSES[:-1], "yak")), None, "the model does not know 1 class: yak"),
    ]


@pytest.mark.parametrize("number", range(len(refusals())))
def test_pictures_that_are_refused(number: int, tmp_path: Path) -> None:
    change, split, message = refusals()[number]
    save_model(make_model(), tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    with pytest.raises(UserError, match=message):
        calibrate(tmp_path / "m.safetensors", change(pictures(30)), split=split)
    assert (tmp_path / "m.safetensors").read_bytes() == before


def test_twenty_pictures_are_enough() -> None:
    model = make_model()
    assert calibrate(model, labelled(model, 20)).n == 20


def test_models_that_are_refused(tmp_path: Path) -> None:
    for suffix in (".onnx", ".xml", ".mnn", ".pt2"):
        (tmp_path / f"m{suffix}").write_bytes(b"theirs")
        with pytest.raises(UserError, match=r"an exported file; calibrate the model it was exported from, then export"):
            calibrate(tmp_path / f"m{suffix}", pictures(30))
        assert (tmp_path / f"m{suffix}").read_bytes() == b"theirs"
    with pytest.raises(UserError, match="no such model file or run folder"):
        calibrate(tmp_path / "nowhere", pictures(30))
    with pytest.raises(UserError, match="say which pictures"):
        calibrate(make_model())
    save_model(make_model(), tmp_path / "m.safetensors")
    damaged = bytearray((tmp_path / "m.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "m.safetensors").write_bytes(damaged)
    with pytest.raises(UserError, match="damaged: its SHA-256"):
        calibrate(tmp_path / "m.safetensors", pictures(30))
    broken = make_model()
    torch.nn.init.constant_(broken.network.fc.bias, torch.nan)
    with pytest.raises(Diverged, match="the network answers with what is no number"):
        calibrate(broken, pictures(30))


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    model = make_model()
    folder = folder_of(tmp_path / "photos", labelled(model, 25))
    files = sorted(folder.rglob("*.png"))
    for path in files[:5]:
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"5 pictures cannot be read: .*or leave out what cannot be read \(--bad skip"):
        calibrate(model, folder)
    found = calibrate(model, folder, bad="skip")
    assert (found.n, list(found.bad)) == (20, [path.relative_to(folder).as_posix() for path in files[:5]])
    files[5].write_bytes(b"no picture")
    with pytest.raises(UserError, match="all has 19 pictures to fit a temperature on"):
        calibrate(model, folder, bad="skip")
    for path in files:
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="all has 0 pictures to fit a temperature on"):
        calibrate(model, folder, bad="skip")


# The file on the way


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_the_old_file_stays_where_the_new_one_cannot_be_written(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    path, data = tmp_path / "m.safetensors", labelled(model, 60)
    save_model(model, path)
    before = path.read_bytes()

    def fail(_descriptor: int) -> None:
        raise failure

    monkeypatch.setattr("resnetkit.atomic.os.fsync", fail)
    expected = UserError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match=r"cannot be written \(No space left" if expected is UserError else None):
        calibrate(path, data)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]

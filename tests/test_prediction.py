"""Answers for pictures: those of a plain forward pass, in the order asked for, and a reason where there is none."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit
from prediction_samples import CLASSES, COLOUR, GREY, make_model, opened, picture
from resnetkit import prediction
from resnetkit.data.transforms import Preprocess
from resnetkit.engines import opening
from resnetkit.engines.opening import Opened
from resnetkit.errors import Diverged, UserError
from resnetkit.prediction import Classifier, Prediction, load, predict
from resnetkit.weights import save_model

NOT_UTF8 = os.fsdecode(b"a\xff.png")


@pytest.fixture(autouse=True)
def _no_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are answered by torch: which engine is fastest here is not what is tested."""

    def start(model: Path, engine: str, **named: Any) -> Opened:
        return opening.open_engine(model, "torch" if engine == "auto" else engine, threads=1, **named)

    monkeypatch.setattr(prediction, "open_engine", start)
    monkeypatch.setattr(prediction, "default_threads", lambda: 1)  # on networks this small others wait for the first


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(make_model(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def paths_of(answers: list[Prediction]) -> list[str]:
    return [answer.path for answer in answers]


# Answers


@pytest.mark.parametrize("preprocess", [COLOUR, GREY], ids=["colour", "grey"])
def test_answers_are_those_of_a_plain_forward_pass(preprocess: Preprocess, tmp_path: Path) -> None:
    """One picture at a time, decoded by Pillow; 150 of many sizes, so that they fill more than a batch."""
    opened = make_model(preprocess)
    files = [picture(tmp_path / f"{i:03}.png", i, (10 + i % 7, 11 + i % 5)) for i in range(150)]
    answers = list(predict(opened, files, top=3))
    assert paths_of(answers) == [str(path) for path in files]
    for path, answer in zip(files, answers, strict=True):
        image = Image.open(path).convert("L" if preprocess.channels == 1 else "RGB")
        pixels = preprocess.fit(np.array(image).reshape(image.height, image.width, -1))
        with torch.no_grad():
            logits = opened.network(preprocess.normalise(torch.from_numpy(pixels.copy())[None]))
        shares = torch.softmax(logits[0], 0).numpy()
        best = np.argsort(shares)[::-1][:3]
        assert [name for name, _ in answer.top] == [CLASSES[i] for i in best]
        np.testing.assert_allclose([share for _, share in answer.top], shares[best], rtol=0, atol=1e-6)
        assert (answer.answer, answer.probability) == answer.top[0]
        assert answer.error is None
    assert len({answer.answer for answer in answers}) > 1, "or any answer would do"


@pytest.mark.parametrize(("top", "there"), [(1, 1), (5, 5), (7, 7), (8, 7), (1000, 7)])
def test_as_many_classes_as_there_are(top: int, there: int, model: Path, tmp_path: Path) -> None:
    (answer,) = predict(model, [picture(tmp_path / "a.png")], top=top)
    shares = [share for _, share in answer.top]
    assert len({name for name, _ in answer.top}) == len(shares) == there
    assert shares == sorted(shares, reverse=True)
    assert (sum(shares) == pytest.approx(1)) == (there == 7)


@pytest.mark.parametrize("top", [0, -1])
def test_no_class_is_too_few(top: int, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"top={top}: must be at least 1"):
        list(predict(model, [picture(tmp_path / "a.png")], top=top))


# Which pictures, in which order


def test_files_as_given_and_folders_sorted(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("z.png", "many/b.png", "many/B.PNG", "many/10.png", "many/deep/er/a.png", "many/9.png"):
        picture(Path(name))
    Path("many/notes.txt").write_text("no picture, and none by its name")
    picture(Path("many/.hidden.png"))
    answers = list(predict(model, ["z.png", Path("many"), "many/9.png", "z.png"]))
    assert paths_of(answers) == [
        *("z.png", "many/10.png", "many/9.png", "many/B.PNG", "many/b.png", "many/deep/er/a.png"),
        *("many/9.png", "z.png"),
    ]
    assert all(answer.error is None for answer in answers)


def test_a_file_may_have_any_name(model: Path, tmp_path: Path) -> None:
    """What is asked for by name is tried, whatever the suffix; what is in a folder goes by its suffix."""
    picture(tmp_path / "a.png").rename(tmp_path / "a")
    (answer,) = predict(model, [tmp_path / "a"])
    assert answer.error is None


def test_nothing_asked_gives_nothing(model: Path) -> None:
    assert list(predict(model, [])) == []


@pytest.mark.parametrize("given", ["missing.png", "missing/", "link.png"])
def test_a_path_that_does_not_exist(given: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=f"{given}: no such file or folder"):
        list(predict(model, [picture(tmp_path / "a.png"), f"{tmp_path}/{given}"]))


@pytest.mark.parametrize("others", [[], ["notes.txt", ".hidden.png"]], ids=["empty", "no pictures"])
def test_a_folder_without_pictures(others: list[str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in others:
        (tmp_path / "folder" / name).write_text("x")
    with pytest.raises(UserError, match="folder: holds no pictures"):
        list(predict(model, [tmp_path / "folder"]))


def test_names_that_are_not_utf8(model: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "folder" / NOT_UTF8)
    by_name, by_folder = predict(model, [path, path.parent])
    assert by_name == by_folder
    assert by_name.error is None
    assert os.fsencode(by_name.path) == os.fsencode(tmp_path) + b"/folder/a\xff.png"
    assert json.loads(json.dumps(by_name.to_dict()))["path"] == by_name.path
    with pytest.raises(UserError, match=r"a\\xff\.png/x: no such file") as failure:
        list(predict(model, [f"{path}/x"]))
    str(failure.value).encode("utf-8")


def test_what_is_wrong_is_said_at_once(model: Path, tmp_path: Path) -> None:
    """Before the first answer is asked for, and before an engine is started."""
    for paths, named, message in (
        ([tmp_path / "nowhere"], {}, "no such file or folder"),
        ([], {"top": 0}, "top=0: must be at least 1"),
        ([], {"min_probability": 1.5}, r"min_probability=1\.5: must be from 0 to 1"),
        ([], {"min_probability": math.nan}, "min_probability=nan: must be from 0 to 1"),
        ([], {"engine": "tarch"}, "engine 'tarch': choose from auto, onnx, .*did you mean 'torch'"),
    ):
        with pytest.raises(UserError, match=message):
            predict(model, paths, **named)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="engine onnx: runs files, and this model is in memory; save it first"):
        predict(make_model(), [], engine="onnx")


# Probabilities


@pytest.mark.parametrize("temperature", [0.25, 1, 3])
def test_probabilities_have_the_temperature_of_the_model(temperature: float, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    known = replace(make_model(), calibration={"temperature": temperature})
    pixels = COLOUR.fit(COLOUR.load(path.read_bytes()))
    with torch.no_grad():
        row = known.network(COLOUR.normalise(torch.from_numpy(pixels.copy())[None]))[0].double()
    expected = torch.softmax(row / temperature, 0).sort(descending=True).values
    (answer,) = predict(known, [path], top=7)
    np.testing.assert_allclose([share for _, share in answer.top], expected, rtol=1e-4)


def test_a_sure_answer_leaves_the_others_more_than_nothing() -> None:
    found = prediction.probabilities(np.array([[0, 80, -600]], np.float32), make_model().about)
    assert found[0, 1] == 1
    np.testing.assert_allclose(found[0, [0, 2]], [math.exp(-80), math.exp(-680)], rtol=1e-12)


def test_below_the_wanted_probability_there_is_no_answer(model: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    (usual,) = predict(model, [path], top=2)
    assert usual.probability is not None
    assert list(predict(model, [path], top=2, min_probability=usual.probability)) == [usual]
    (unsure,) = predict(model, [path], top=2, min_probability=math.nextafter(usual.probability, 1))
    assert unsure == replace(usual, answer=None)
    row = unsure.to_dict()
    assert list(row) == ["path", "class", "probability", "top", "error"]
    assert (row["class"], row["probability"], row["error"]) == (None, usual.probability, None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answers_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    broken = make_model()
    with torch.no_grad():
        broken.network.fc.bias[3] = value
    with pytest.raises(Diverged, match="the model: the network answers with what is no number"):
        next(predict(broken, [picture(tmp_path / "a.png")]))


def test_another_number_of_classes_than_the_metadata_name(tmp_path: Path) -> None:
    known = replace(make_model(), classes=CLASSES[:5])
    with pytest.raises(UserError, match="the model: answers 7 classes, and its metadata name 5; export it again"):
        next(predict(known, [picture(tmp_path / "a.png")]))


# Pictures that cannot be read


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("no picture")


def cut(path: Path) -> None:
    path.write_bytes(picture(path).read_bytes()[:-50])


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere.png")


@pytest.mark.parametrize("spoil", [empty, text, cut, dangling])
def test_an_unreadable_picture_gives_its_reason_and_the_others_still_come(
    spoil: Callable[[Path], None], model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    good = [picture(folder / "a.png", 1), picture(folder / "c.png", 3)]
    spoil(folder / "b.png")
    first, bad, last = predict(model, [folder])
    assert bad.path == str(folder / "b.png")
    assert (bad.answer, bad.probability, bad.top) == (None, None, ())
    assert bad.error
    assert "b.png" not in bad.error, "the reason alone; the path stands beside it"
    assert [first, last] == list(predict(model, good))


def test_unreadable_pictures_alone(model: Path, tmp_path: Path) -> None:
    for name in "ab":
        text(tmp_path / f"{name}.png")
    answers = list(predict(model, [tmp_path / "a.png", tmp_path / "b.png"]))
    assert [(Path(answer.path).name, answer.top) for answer in answers] == [("a.png", ()), ("b.png", ())]
    assert all(answer.error for answer in answers)


# What an answer and a classifier are


@pytest.mark.parametrize("good", [True, False])
def test_an_answer_is_plain_json(good: bool, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    (picture if good else text)(path)
    (answer,) = predict(model, [path], top=2)
    row = json.loads(json.dumps(answer.to_dict()))
    assert row == answer.to_dict()
    assert list(row) == ["path", "class", "probability", "top", "error"]
    if good:
        assert row["top"][0] == {"class": row["class"], "probability": row["probability"]}
        assert [share["class"] for share in row["top"]] == [name for name, _ in answer.top]
    else:
        assert row == {"path": str(path), "class": None, "probability": None, "top": [], "error": answer.error}


ODD = "<b>&'\""


@pytest.mark.parametrize(
    ("answer", "path", "shown"),
    [
        (Prediction(ODD, ODD, 0.875, ((ODD, 0.875), ("cat", 0.125)), None), ODD, f"{ODD} 87.5 %, cat 12.5 %"),
        (Prediction(ODD, None, None, (), f"no {ODD}"), ODD, f"no {ODD}"),
        (Prediction("a", None, 0.5, ((ODD, 0.5), ("cat", 0.25)), None), "a", f"not sure ({ODD} 50.0 %, cat 25.0 %)"),
        (Prediction(NOT_UTF8, NOT_UTF8, 1.0, ((NOT_UTF8, 1.0),), None), r"a\xff.png", r"a\xff.png 100.0 %"),
    ],
    ids=["answer", "error", "not sure", "not UTF-8"],
)
def test_html_shows_names_as_text(answer: Prediction, path: str, shown: str) -> None:
    page = answer._repr_html_()
    page.encode("utf-8")  # or no browser will get it
    tree = ElementTree.fromstring(page)
    assert {element.tag for element in tree.iter()} == {"p", "code"}
    assert "".join(tree.itertext()) == f"{path}: {shown}"


@pytest.mark.parametrize("where", ["model.safetensors", ""], ids=["file", "run folder"])
def test_load_gives_a_classifier(where: str, model: Path, tmp_path: Path) -> None:
    before = make_model()
    classifier = load(model.parent / where)
    assert isinstance(classifier, Classifier)
    assert not any(module.training for module in classifier.network.modules())
    assert classifier.network.arch == before.network.arch
    for name, tensor in before.network.state_dict().items():
        torch.testing.assert_close(classifier.network.state_dict()[name], tensor, rtol=0, atol=0)
    assert replace(before, network=classifier.network) == classifier.model
    assert (classifier.classes, classifier.preprocess) == (CLASSES, COLOUR)
    path = picture(tmp_path / "a.png")
    assert classifier.predict([path], top=2) == list(predict(model, [str(path)], top=2))
    assert len(classifier.predict([path])[0].top) == 5
    assert classifier.predict(str(path)) == classifier.predict(path) == classifier.predict([path])
    assert [vars(classifier)["_engines"].keys()] == [{"auto"}], "started once"
    assert resnetkit.embed(classifier, path).vectors.shape == (1, 64), "it stands for its path"


def test_a_network_in_training_mode_answers_as_in_evaluation(model: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    classifier = load(model)
    expected = classifier.predict([path])
    classifier.network.train()
    assert classifier.predict([path]) == expected
    assert classifier.predict([path]) == expected, "and no statistics were moved"


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model file or run folder"):
        load(tmp_path / "nowhere")


def test_an_exported_file_has_no_network(tmp_path: Path) -> None:
    classifier = Classifier(tmp_path / "m.onnx", opened().about)
    assert (classifier.classes, classifier.preprocess) == (CLASSES, COLOUR)
    with pytest.raises(UserError, match=r"m\.onnx: an exported file has no network; load the model that it came from$"):
        _ = classifier.network


def test_in_words() -> None:
    assert prediction.in_words(opened(temperature=1.234567)) == (
        "single centre crop; shorter side 12 bilinear, centre 10, RGB, mean 0.4 0.5 0.6, std 0.2 0.25 0.3, EXIF on; "
        "engine stub (fp32): there is no other; temperature 1.235"
    )
    assert prediction.in_words(opened()).endswith("(fp32): there is no other")

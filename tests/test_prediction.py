"""Answers for pictures: those of a plain forward pass, in the order asked for, and a reason where there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import ResNet, architecture
from resnetkit.prediction import Classifier, Prediction, load, predict
from resnetkit.weights import ModelFile, save_model

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
COLOUR = Preprocess(10, "shorter", 12, "bilinear", 3, "RGB", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), True)
GREY = Preprocess(10, "stretch", 10, "lanczos", 1, "RGB", (0.4,), (0.2,), True)
NOT_UTF8 = os.fsdecode(b"a\xff.png")


def make_model(preprocess: Preprocess = COLOUR) -> ModelFile:
    """A small network as it is before any training, which answers at random."""
    torch.manual_seed(0)
    network = ResNet(architecture("resnet8-cifar", classes=len(CLASSES), channels=preprocess.channels))
    return ModelFile(network.eval(), CLASSES, preprocess, {"top1": 0.5}, {"seed": 1})


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (14, 17)) -> Path:
    """A PNG of one colour with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(seed)
    pixels = dice.integers(0, 256, 3) + dice.normal(0, 40, (*size, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


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
        (Prediction(NOT_UTF8, NOT_UTF8, 1.0, ((NOT_UTF8, 1.0),), None), r"a\xff.png", r"a\xff.png 100.0 %"),
    ],
    ids=["answer", "error", "not UTF-8"],
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
    assert replace(before, network=classifier.network) == ModelFile(**vars(classifier))
    path = picture(tmp_path / "a.png")
    assert classifier.predict([path], top=2) == list(predict(model, [str(path)], top=2))
    assert len(classifier.predict([path])[0].top) == 5
    assert classifier.predict(str(path)) == classifier.predict(path) == classifier.predict([path])


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

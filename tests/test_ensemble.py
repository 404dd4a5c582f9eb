"""`evaluate` under a protocol, with several models, with other labels, and `submit`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from imagenet_samples import LEAVES, picture, write_devkit, write_flat
from resnetkit.data.labels import Labels
from resnetkit.data.loader import Reader
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.source import open_data
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import Diverged, UserError
from resnetkit.evaluation import evaluate, judge, score
from resnetkit.model import ResNet, architecture
from resnetkit.protocol import Answers, Protocol, Scoring, probabilities
from resnetkit.submitting import submit
from resnetkit.weights import ModelFile

pytestmark = pytest.mark.usefixtures("one_thread")

PREPROCESS = Preprocess(8, "shorter", 9, "bicubic", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
OTHER = Preprocess(12, "stretch", 12, "bilinear", 3, "BGR", (0.4,) * 3, (0.3,) * 3, True)
CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
PROTOCOLS = [Protocol(), Protocol("10-crop"), Protocol("dense", (12, 17))]


def make_model(classes: tuple[str, ...], preprocess: Preprocess = PREPROCESS, seed: int = 0) -> ModelFile:
    """An untrained network whose answers differ from picture to picture."""
    torch.manual_seed(seed)
    network = ResNet(architecture("resnet8-cifar", classes=len(classes))).eval()
    pixels = torch.from_numpy(noise(99, preprocess.size, preprocess.size, 1))
    with torch.inference_mode():
        logits = network(preprocess.normalise(pixels))
    with torch.no_grad():
        network.fc.weight *= 2 / logits.std()
        network.fc.bias -= 2 * logits.mean(0) / logits.std()
    return ModelFile(network, classes, preprocess)


def noise(n: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    dice = np.random.default_rng(seed)
    pixels = dice.integers(0, 256, (n, 1, 1, 3)) + dice.normal(0, 60, (n, height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def data_of(n: int, classes: tuple[str, ...] = CLASSES) -> Data:
    labels = np.random.default_rng(4).integers(0, len(classes), n)
    return Data("x:", Arrays(noise(n, 14, 11), (("x", n),)), labels, classes, {"val": np.arange(n)})


def table_of(model: ModelFile, data: Data, protocol: Protocol) -> NDArray[np.float64]:
    reader = Reader(data, protocol.preprocess(model.preprocess), threads=1)
    parts = probabilities(model.network, reader, np.arange(len(data)), protocol)
    return np.concatenate([part.rows for part in parts])


# Ensembles


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.kind)
def test_an_ensemble_is_the_mean_of_probabilities_matched_by_name(protocol: Protocol) -> None:
    """The second model has the classes in another order, another input size, colour order and resizing."""
    data = data_of(90)
    turned = tuple(CLASSES[i] for i in (3, 0, 6, 1, 5, 2, 4))
    models = [make_model(CLASSES), make_model(turned, OTHER, 1), make_model(CLASSES, seed=2)]
    tables = [table_of(model, data, protocol) for model in models]
    by_name = [[dict(zip(model.classes, row, strict=True)) for row in table.tolist()]
               for model, table in zip(models, tables, strict=True)]  # fmt: skip
    correct, nll = 0, 0.0
    for i, label in enumerate(data.labels.tolist()):
        mean = {name: sum(table[i][name] for table in by_name) / 3 for name in CLASSES}
        correct += max(mean, key=mean.__getitem__) == CLASSES[label]
        nll -= np.log(mean[CLASSES[label]]) / 90
    result = evaluate(models[0], data, protocol=protocol, ensemble=models[1:])
    alone = [evaluate(model, data, protocol=protocol).nll for model in models]
    assert (result.n, result.correct) == (90, correct)
    assert result.nll == pytest.approx(nll, rel=1e-9)
    assert nll < min(alone), "averaging helps, or this shows little"
    assert result.protocol.startswith("x:, val, ensemble of 3, probabilities averaged; resnet8-cifar: ")
    assert all(protocol.describe(protocol.preprocess(own)) in result.protocol for own in (PREPROCESS, OTHER))


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.kind)
def test_an_ensemble_of_one_is_the_model_and_twice_the_same_too(protocol: Protocol) -> None:
    data, model = data_of(60), make_model(CLASSES)
    alone = evaluate(model, data, protocol=protocol)
    assert evaluate(model, data, protocol=protocol, ensemble=()) == alone
    twice = evaluate(model, data, protocol=protocol, ensemble=[model])
    assert replace(twice, protocol=alone.protocol) == alone


def test_the_score_in_training_is_that_of_one_crop() -> None:
    data, model = data_of(150), make_model(CLASSES)
    found = evaluate(model, data)
    assert score(model.network, Reader(data, PREPROCESS, threads=2), np.arange(150), protocol=found.protocol) == found
    assert evaluate(model, data, protocol=Protocol("10-crop")).nll != found.nll


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (CLASSES[:-1], "resnet8-cifar has other classes: it lacks 'gnu', which the first model has"),
        ((*CLASSES, "hen"), "the first model lacks 'hen', which it has"),
        ((*CLASSES[:-1], "GNU"), "the first model lacks 'GNU', which it has"),
    ],
)
def test_models_of_other_classes(others: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=f"ensemble: .*{message}"):
        evaluate(make_model(CLASSES), data_of(5), ensemble=[make_model(CLASSES), make_model(others)])


def test_a_name_for_two_classes_needs_one_order() -> None:
    """As "crane" in ImageNet, a bird and a machine."""
    names = ("crane", "bee", "crane", "dog", "eel", "fox", "gnu")
    model, data = make_model(names), data_of(40)
    alone = evaluate(make_model(CLASSES), data)
    pictures = replace(data, classes=names, labels=np.full(40, 1))
    twice = evaluate(model, pictures, ensemble=[model])
    assert twice.confusion[1] == tuple(map(sum, zip(*alone.confusion, strict=True))), "each output is its own class"
    turned = make_model(("bee", "crane", "crane", *names[3:]))
    with pytest.raises(UserError, match="has its classes in another order, and two are called 'crane'"):
        evaluate(model, pictures, ensemble=[turned])


def test_a_member_that_answers_with_no_number_is_refused() -> None:
    broken = make_model(CLASSES)
    torch.nn.init.constant_(broken.network.fc.bias, torch.nan)
    with pytest.raises(Diverged, match="the network answers with what is no number"):
        evaluate(make_model(CLASSES), data_of(5), ensemble=[broken])


def test_a_size_that_one_member_cannot_follow_is_refused_before_any_work() -> None:
    mean = tuple(np.full(3 * 64, 0.5).tolist())
    seen: list[Scoring] = []
    models = [make_model(CLASSES), make_model(CLASSES, replace(PREPROCESS, mean=mean))]
    with pytest.raises(UserError, match="size 16: the model subtracts a mean picture of 8 pixels"):
        evaluate(models[0], data_of(5), ensemble=models[1:], protocol=Protocol(size=16), progress=seen.append)
    assert seen == []


def test_progress_counts_the_pictures_of_each_model() -> None:
    seen: list[Scoring] = []
    models = [make_model(CLASSES), make_model(CLASSES, seed=1)]
    evaluate(models[0], data_of(300), ensemble=models[1:], progress=seen.append)
    assert seen == [Scoring(done, 300, member, 2) for member in (1, 2) for done in (128, 256, 300)]


# Several labels


def test_an_answer_counts_when_it_is_among_the_labels() -> None:
    """Against a loop: top-1 by membership, top-5 by intersection; a right answer is counted under its own class."""
    dice = np.random.default_rng(3)
    table = dice.dirichlet(np.ones(9), 200)
    accepted = {i: tuple(dice.choice(9, dice.integers(1, 4), replace=False).tolist()) for i in range(200)}
    classes = tuple("abcdefghi")
    data = Data("x:", Arrays(noise(200, 2, 2), (("x", 200),)), np.full(200, -1), classes, {"val": np.arange(200)})
    result = judge(data, Answers(np.arange(200), table, {}), "x", Labels(accepted, "labels"))
    best = [sorted(range(9), key=lambda c: -row[c]) for row in table.tolist()]
    right = [answers[0] in accepted[i] for i, answers in enumerate(best)]
    assert (result.n, result.correct) == (200, sum(right))
    assert result.top5 == sum(bool(set(answers[:5]) & set(accepted[i])) for i, answers in enumerate(best)) / 200
    for c in range(9):
        assert result.confusion[c][c] == sum(ok and answers[0] == c for ok, answers in zip(right, best, strict=True))
    assert sum(map(sum, result.confusion)) == 200


def test_other_labels_go_before_the_folders_and_their_names(tmp_path: Path) -> None:
    """Folders of wnids that the model does not know: with ReaL's numbers it does not have to."""
    for i in range(1, 7):
        picture(tmp_path / "val" / f"n0000000{i % 2}" / f"ILSVRC2012_val_{i:08}.JPEG", i)
    model = make_model(CLASSES)
    data = open_data(f"imagenet:{tmp_path}")
    answers = table_of(model, data, Protocol()).argmax(1)
    entries: list[list[int]] = [[] for _ in range(6)]
    for index, answer in enumerate(answers.tolist()):
        number = int(data.pictures.name(index)[-13:-5])
        entries[number - 1] = [[int(answer)], [(int(answer) + 1) % 7, int(answer)], [(int(answer) + 1) % 7], []][
            index % 4
        ]
    file = tmp_path / "real.json"
    file.write_text(json.dumps(entries))
    result = evaluate(model, data, labels=file)
    assert (result.n, result.correct) == (5, 4)
    assert result.protocol.startswith(
        f"imagenet:{tmp_path}, val, labels {file}; left out 1 picture without one, single"
    )
    with pytest.raises(UserError, match="the model does not know 2 classes: n00000000, n00000001"):
        evaluate(model, data)


def test_folders_by_number(tmp_path: Path) -> None:
    classes = tuple(f"class {i:02}" for i in range(12))
    model = make_model(classes)
    for i in range(12):
        picture(tmp_path / str(i) / "a.png", i)
    result = evaluate(model, tmp_path, labels="numbers")
    assert [(row.name, row.n) for row in result.per_class] == [(name, 1) for name in classes]
    data = open_data(tmp_path)
    found = table_of(model, replace(data, classes=classes), Protocol()).argmax(1).tolist()
    expected = sum(int(data.pictures.name(i).split("/")[0]) == answer for i, answer in enumerate(found))
    assert result.correct == expected


# Submissions


@pytest.fixture
def ilsvrc(tmp_path: Path) -> Path:
    for split, n in (("val", 4), ("test", 6)):
        write_flat(tmp_path / split, split, n)
    write_devkit(tmp_path, [2, 1, 4, 7])
    return tmp_path


NAMED = tuple(LEAVES[i] for i in (4, 1, 6, 0, 2, 5, 3))  # in no order


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.kind)
def test_a_submission_has_the_best_five_as_ids_in_the_order_of_numbers(protocol: Protocol, ilsvrc: Path) -> None:
    models = [make_model(NAMED), make_model(tuple(sorted(NAMED)), OTHER, 1)]
    out = ilsvrc / "out.txt"
    written = submit(models[0], f"imagenet:{ilsvrc}", out, split="test", protocol=protocol, ensemble=models[1:])
    assert (written.path, written.lines, written.result) == (os.fspath(out), 6, None)
    lines = []
    for i in range(1, 7):
        single = open_data(f"imagenet:{ilsvrc}")
        index = [single.pictures.name(j) for j in range(len(single))].index(f"test/ILSVRC2012_test_{i:08}.JPEG")
        mean = dict.fromkeys(NAMED, 0.0)
        for model in models:
            reader = Reader(single, protocol.preprocess(model.preprocess), threads=1)
            (part,) = probabilities(model.network, reader, np.array([index]), protocol)
            for name, share in zip(model.classes, part.rows[0].tolist(), strict=True):
                mean[name] += share
        best = sorted(NAMED, key=mean.__getitem__, reverse=True)[:5]
        lines.append(" ".join(str(1 + LEAVES.index(name)) for name in best))
    assert out.read_text() == "\n".join(lines) + "\n"
    assert len(set(lines)) > 1, "or the order would not show"


def test_a_submission_of_pictures_with_labels_is_scored_as_well(ilsvrc: Path) -> None:
    model, data = make_model(NAMED), f"imagenet:{ilsvrc}"
    written = submit(model, data, ilsvrc / "out.txt")
    assert written.result == evaluate(model, data), "without a split it is val, which has labels"
    first = [int(line.split()[0]) for line in (ilsvrc / "out.txt").read_text().splitlines()]
    assert written.result.correct == sum(a == b for a, b in zip(first, [2, 1, 4, 7], strict=True))


def test_pictures_without_labels_are_not_scored(ilsvrc: Path) -> None:
    with pytest.raises(UserError, match=r"test has no labels; write the answers down with --submission FILE"):
        evaluate(make_model(NAMED), f"imagenet:{ilsvrc}", split="test")
    table = ilsvrc / "t.csv"
    table.write_text("path,label\n" + "".join(f"test/ILSVRC2012_test_{i:08}.JPEG,{NAMED[i]}\n" for i in range(1, 5)))
    result = evaluate(make_model(NAMED), f"imagenet:{ilsvrc}", split="test", labels=table)
    assert [row.n for row in result.per_class] == [1] * 4, "but labels may be given"
    with pytest.raises(UserError, match="no split 'tset'; it has val, test"):
        evaluate(make_model(NAMED), f"imagenet:{ilsvrc}", split="tset")


def test_what_keeps_a_submission_from_being_written(ilsvrc: Path) -> None:
    model, spec = make_model(NAMED), f"imagenet:{ilsvrc}"
    there = ilsvrc / "there.txt"
    there.write_text("mine")
    with pytest.raises(UserError, match=r"there\.txt: exists already; choose another name"):
        submit(model, spec, there, split="test")
    assert there.read_text() == "mine"
    with pytest.raises(UserError, match=r"there is no folder .*gone"):
        submit(model, spec, ilsvrc / "gone" / "out.txt", split="test")
    with pytest.raises(UserError, match="'ant', a class of the model, is no wnid of"):
        submit(make_model(("ant", *NAMED)), spec, ilsvrc / "out.txt", split="test")
    (ilsvrc / "test" / "ILSVRC2012_test_00000002.JPEG").write_text("no picture")
    with pytest.raises(UserError, match=r"1 picture cannot be read: test/ILSVRC2012_test_00000002\.JPEG"):
        submit(model, spec, ilsvrc / "out.txt", split="test")
    (ilsvrc / "meta.mat").unlink()
    for wnid in NAMED:
        picture(ilsvrc / "others" / wnid / "1.png")
    with pytest.raises(UserError, match=r"numbers, and there is no meta\.mat; put ILSVRC2012_devkit_t12"):
        submit(model, ilsvrc / "others", ilsvrc / "out.txt")
    assert not (ilsvrc / "out.txt").exists()

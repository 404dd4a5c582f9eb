"""Scores against scikit-learn, scipy and plain loops; `evaluate` on model files and folders made for it."""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.folder import load_folder
from resnetkit.data.loader import Reader
from resnetkit.data.pictures import Arrays, Data, Files
from resnetkit.data.split import save_split
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import Diverged, UserError
from resnetkit.evaluation import ClassScore, Mistake, Result, evaluate, measure, score, wilson
from resnetkit.model import ResNet, architecture
from resnetkit.weights import ModelFile, save_model
from samples import RESULT

Table = NDArray[np.float64]
Labels = NDArray[np.int64]

PREPROCESS = Preprocess(8, "shorter", 8, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
SCIKIT = "needs scikit-learn, the extra 'demo'"
BARE = replace(RESULT, mistakes=(Mistake("a.jpg", "cat", "dog", 0.9),))


def random_case(n: int, classes: int, seed: int, *, lacking: int = 0) -> tuple[Table, Labels]:
    """Probabilities that know something of the labels; `lacking` classes at the end have no picture."""
    dice = np.random.default_rng(seed)
    labels = dice.integers(0, classes - lacking, n)
    labels[: classes - lacking] = np.arange(classes - lacking)
    logits = dice.normal(0, 1.5, (n, classes))
    logits[np.arange(n), labels] += dice.normal(1, 1, n)
    table = np.exp(logits)
    return table / table.sum(1, keepdims=True), labels


def measured(table: Table, labels: Labels) -> dict[str, Any]:
    classes = tuple(f"class {i}" for i in range(table.shape[1]))
    return measure(table, labels, classes, [f"{i:05}.png" for i in range(len(labels))])


def make_model(classes: tuple[str, ...], seed: int = 0) -> ModelFile:
    """A small untrained network, its dense layer moved so that no class is the answer to everything."""
    torch.manual_seed(seed)
    network = ResNet(architecture("resnet8-cifar", classes=len(classes))).eval()
    with torch.no_grad():
        network.fc.bias -= network(PREPROCESS.normalise(torch.from_numpy(noise(99, 8, 8)))).mean(0)
    return ModelFile(network, classes, PREPROCESS)


def noise(n: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Pictures of one colour each with noise, so that a network gives them different answers."""
    dice = np.random.default_rng(seed)
    pixels = dice.integers(0, 256, (n, 1, 1, 3)) + dice.normal(0, 40, (n, height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_pictures(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """PNGs under root/<name>/, a number for each name."""
    for name, number in counts.items():
        (root / name).mkdir(parents=True)
        for i, pixels in enumerate(noise(number, 9, 10, seed)):
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    return root


def arrays(n: int, classes: int) -> Data:
    labels, named = np.random.default_rng(4).integers(0, classes, n), tuple(f"class {i}" for i in range(classes))
    return Data("x:", Arrays(noise(n, 8, 8), (("x", n),)), labels, named, {"all": np.arange(n)})


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """A model file of three classes, `cat`, `cow` and `dog`."""
    save_model(make_model(("cat", "cow", "dog")), tmp_path / "animals.safetensors")
    return tmp_path / "animals.safetensors"


# The figures


@pytest.mark.parametrize(("n", "classes", "seed"), [(400, 6, 0), (997, 10, 1), (60, 2, 2), (2000, 40, 3), (5, 5, 4)])
def test_the_figures_are_those_of_scikit_learn(n: int, classes: int, seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason=SCIKIT)
    table, labels = random_case(n, classes, seed)
    found, every, answers = measured(table, labels), range(classes), table.argmax(1)
    assert found["n"] == n
    assert found["correct"] == metrics.accuracy_score(labels, answers, normalize=False)
    assert found["top1"] == pytest.approx(metrics.accuracy_score(labels, answers), abs=1e-12)
    assert found["confusion"] == tuple(map(tuple, metrics.confusion_matrix(labels, answers, labels=every).tolist()))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, answers), abs=1e-12)
    assert found["nll"] == pytest.approx(metrics.log_loss(labels, table, labels=every), abs=1e-12)
    if classes > 5:
        five = metrics.top_k_accuracy_score(labels, table, k=5, labels=every)
        assert found["top5"] == pytest.approx(five, abs=1e-12)
        assert found["top5_interval"] == wilson(round(five * n), n)
    recalls = metrics.recall_score(labels, answers, average=None, labels=every)
    assert [row.top1 for row in found["per_class"]] == pytest.approx(recalls.tolist(), abs=1e-12)
    assert [row.n for row in found["per_class"]] == np.bincount(labels).tolist()


def test_classes_without_pictures_count_nowhere() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason=SCIKIT)
    table, labels = random_case(300, 8, 5, lacking=3)
    found, answers = measured(table, labels), table.argmax(1)
    assert (answers >= 5).any(), "or the case would show nothing"
    mean = metrics.recall_score(labels, answers, average="macro", labels=range(5))
    assert found["balanced_accuracy"] == pytest.approx(mean, abs=1e-12)
    assert [row.name for row in found["per_class"]] == [f"class {i}" for i in range(5)]
    assert found["confusion"] == tuple(map(tuple, metrics.confusion_matrix(labels, answers, labels=range(8)).tolist()))


def test_wilson_is_that_of_scipy() -> None:
    assert wilson(0, 0) == (0, 1)
    stats = pytest.importorskip("scipy.stats", reason="comes with scikit-learn, the extra 'demo'")
    for n in (1, 2, 3, 7, 10, 50, 333, 10_000):
        for correct in sorted({0, 1, n // 3, n // 2, n - 1, n}):
            expected = stats.binomtest(correct, n).proportion_ci(method="wilson")
            assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_holds_the_proportion_itself() -> None:
    """0 of 7 once had a lower end of 2.8e-17."""
    for n in range(1, 200):
        for correct in range(n + 1):
            low, high = wilson(correct, n)
            assert 0 <= low <= correct / n <= high <= 1


@pytest.mark.parametrize(("n", "classes", "seed"), [(3, 3, 0), (500, 3, 1), (800, 10, 2), (40, 2, 3)])
def test_calibration_error_is_that_of_a_plain_loop(n: int, classes: int, seed: int) -> None:
    """Fifteen bins of equal width; in each, |accuracy - mean confidence|, weighted by its share of the pictures."""
    table, labels = random_case(n, classes, seed)
    total = 0.0
    for k in range(15):
        inside = [i for i in range(n) if k / 15 <= max(table[i]) < (k + 1) / 15]
        if inside:
            accuracy = sum(int(table[i].argmax() == labels[i]) for i in inside) / len(inside)
            confidence = sum(max(table[i]) for i in inside) / len(inside)
            total += len(inside) / n * abs(accuracy - confidence)
    assert measured(table, labels)["ece"] == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(("right", "expected"), [(True, 0.0), (False, 1.0)])
def test_calibration_error_of_the_certain(right: bool, expected: float) -> None:
    labels = np.arange(10) % 3
    assert measured(np.eye(3)[labels if right else (labels + 1) % 3], labels)["ece"] == expected


@pytest.mark.parametrize(("equal", "in_five"), [(1, True), (5, True), (6, False), (8, False)])
def test_a_tie_counts_against_the_answer(equal: int, in_five: bool) -> None:
    """Six classes as likely as the label are six ranks in which five are not enough, wherever the label stands."""
    row = np.array([1.0] * equal + [0.1] * (8 - equal))
    for label in range(equal):
        assert measured((row / row.sum())[None], np.array([label]))["top5"] == float(in_five)


@pytest.mark.parametrize(("classes", "says"), [(2, False), (5, False), (6, True)])
def test_top5_needs_more_than_five_classes(classes: int, says: bool) -> None:
    found = measured(*random_case(30, classes, 6))
    assert (found["top5"] is not None, found["top5_interval"] is not None) == (says, says)


def test_mistakes_are_the_most_confident_ones() -> None:
    table, labels = random_case(300, 4, 7)
    found = measured(table, labels)["mistakes"]
    wrong = [i for i in range(300) if table[i].argmax() != labels[i]]
    worst = sorted(wrong, key=lambda i: table[i].max(), reverse=True)[:24]
    assert len(wrong) > 24
    assert found == tuple(
        Mistake(f"{i:05}.png", f"class {labels[i]}", f"class {table[i].argmax()}", table[i].max()) for i in worst
    )


def test_equally_confident_mistakes_stand_by_name() -> None:
    found = measured(np.tile([0.9, 0.1], (40, 1)), np.ones(40, np.int64))["mistakes"]
    assert [mistake.path for mistake in found] == [f"{i:05}.png" for i in range(24)]


# The Result as a value


@pytest.mark.parametrize("classes", [4, 7])
def test_a_result_goes_through_json_and_back(classes: int) -> None:
    result = Result(**measured(*random_case(90, classes, 8)), bad={"b\udcff.png": "empty file"}, protocol="photos")
    assert result.mistakes
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert Result.from_dict(result.to_dict()) == result


def test_text_for_people() -> None:
    assert str(replace(BARE, n=12000, correct=9000, top1=0.75, top1_interval=(0.742, 0.7577))) == (
        "75.00 % (9,000 of 12,000; 95 % interval 74.20 to 75.77)"
    )


NAMES = ("<script>alert('x')</script>", 'a & "b"', "crème brûlée 猫", os.fsdecode(b"\xff"))


def test_html_shows_names_as_text() -> None:
    rows = tuple(ClassScore(name, 2, 1, 0.5, (0.1, 0.9)) for name in NAMES)
    page = replace(BARE, per_class=rows, protocol=f"{NAMES[0]}, val")._repr_html_()
    page.encode("utf-8")  # or no browser will get it
    tree = ElementTree.fromstring(f"<div>{page.replace('<br>', '<br/>')}</div>")
    assert {element.tag for element in tree.iter()} == {"div", "p", "b", "br", "table", "tr", "th", "td"}
    cells = [[cell.text for cell in row] for row in tree.iter("tr")][1:]
    assert cells == [[name, "1 of 2", "50.0 %"] for name in (*NAMES[:3], "\\xff")]
    assert NAMES[0] in "".join(tree.itertext()).split("correct")[0], "the protocol too"


# A network on pictures


def test_257_pictures_score_as_in_one_pass() -> None:
    data, model = arrays(257, 7), make_model(tuple(f"class {i}" for i in range(7)))
    result = score(model.network, Reader(data, PREPROCESS, threads=2), np.arange(257), protocol="x")
    with torch.inference_mode():
        pixels = torch.from_numpy(data.pictures.pixels)  # type: ignore[attr-defined]
        table = model.network(PREPROCESS.normalise(pixels)).double().softmax(1).numpy()
    answers, labels = table.argmax(1), data.labels
    assert len(set(answers.tolist())) > 3, "or the case would show little"
    assert result.n == sum(map(sum, result.confusion)) == 257
    assert result.correct == (answers == labels).sum()
    assert result.top1 == result.correct / 257
    assert result.top5 == (np.argsort(-table, 1)[:, :5] == labels[:, None]).any(1).sum() / 257
    assert result.nll == pytest.approx(-np.log(table[np.arange(257), labels]).mean(), rel=1e-5)
    assert [[sum((labels == i) & (answers == j)) for j in range(7)] for i in range(7)] == list(
        map(list, result.confusion)
    )


@pytest.mark.parametrize(("gap", "cost"), [(0.0, np.log(3)), (200.0, 200.0), (5000.0, 300 * np.log(10))])
def test_a_sure_and_wrong_answer_costs_its_logit_up_to_a_bound(gap: float, cost: float) -> None:
    """A probability of e^-200 is zero in single precision; one of e^-5000 in double, and is taken for 1e-300."""
    data, model = replace(arrays(20, 3), labels=np.zeros(20, np.int64)), make_model(("a", "b", "c"))
    torch.nn.init.zeros_(model.network.fc.weight)
    model.network.fc.bias.data = torch.tensor([0, gap, 0])
    result = score(model.network, Reader(data, PREPROCESS, threads=1), np.arange(20), protocol="x")
    assert result.nll == pytest.approx(cost, rel=1e-6)


def test_company_does_not_move_a_score() -> None:
    data, model = arrays(200, 4), make_model(tuple(f"class {i}" for i in range(4)))
    read, some = Reader(data, PREPROCESS, threads=2), np.arange(170)
    forwards, backwards = (score(model.network, read, part, protocol="x") for part in (some, some[::-1].copy()))
    assert forwards.confusion == backwards.confusion
    assert [mistake.path for mistake in forwards.mistakes] == [mistake.path for mistake in backwards.mistakes]
    assert 0 < forwards.correct < 170
    halves = [score(model.network, read, part, protocol="x") for part in (some[:31], some[31:])]
    assert forwards.correct == sum(half.correct for half in halves)


def test_labels_are_matched_by_name(tmp_path: Path, animals: Path) -> None:
    """A folder that lacks the class in the middle has other label numbers than the model."""
    folder = write_pictures(tmp_path / "photos", {"cat": 7, "dog": 9})
    result = evaluate(animals, folder)
    model = make_model(("cat", "cow", "dog"))
    expected = np.zeros((3, 3), int)
    for path in folder.rglob("*.png"):
        pixels = PREPROCESS.fit(np.asarray(Image.open(path)))
        with torch.inference_mode():
            answer = int(model.network(PREPROCESS.normalise(torch.from_numpy(pixels.copy())[None])).argmax())
        expected[("cat", "cow", "dog").index(path.parent.name), answer] += 1
    assert result.confusion == tuple(map(tuple, expected.tolist()))
    assert [(row.name, row.n) for row in result.per_class] == [("cat", 7), ("dog", 9)]


def test_a_class_that_the_model_does_not_know(tmp_path: Path, animals: Path) -> None:
    folder = write_pictures(tmp_path / "photos", {"cat": 1, "doge": 1})
    with pytest.raises(UserError, match=r"the model does not know 1 class: doge; did you mean 'dog'\?"):
        evaluate(animals, folder)


def test_class_names_may_be_odd(tmp_path: Path) -> None:
    names = ("a<b>&'c'", "crème", "猫 \U0001f408", os.fsdecode(b"\xff"))
    save_model(make_model(names), tmp_path / "m.safetensors")
    decomposed = [unicodedata.normalize("NFD", name) for name in names]  # as macOS writes them
    result = evaluate(tmp_path / "m.safetensors", write_pictures(tmp_path / "photos", dict.fromkeys(decomposed, 2)))
    assert [(row.name, row.n) for row in result.per_class] == [(name, 2) for name in names]
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result


# Pictures that cannot be read


def break_some(folder: Path, number: int) -> list[str]:
    """Damage the first pictures of a folder; their names."""
    broken = sorted(folder.rglob("*.png"))[:number]
    for path in broken:
        path.write_text("no picture")
    return [path.relative_to(folder).as_posix() for path in broken]


@pytest.mark.parametrize(("number", "named", "more"), [(1, 1, ""), (10, 10, ""), (12, 10, " and 2 more")])
def test_unreadable_pictures_stop_the_evaluation_by_name(
    number: int, named: int, more: str, tmp_path: Path, animals: Path
) -> None:
    folder = write_pictures(tmp_path / "photos", {"cat": 13, "dog": 2})
    names = break_some(folder, number)
    with pytest.raises(UserError, match=f"{number} pictures? cannot be read") as failure:
        evaluate(animals, folder)
    message = str(failure.value)
    assert [name in message for name in names] == [True] * named + [False] * (number - named)
    assert f"){more}; mend or remove" in message


def test_unreadable_pictures_are_left_out_on_demand(tmp_path: Path, animals: Path) -> None:
    folder = write_pictures(tmp_path / "photos", {"cat": 6, "dog": 4})
    names = break_some(folder, 3)
    result = evaluate(animals, folder, bad="skip")
    assert list(result.bad) == names
    assert all(result.bad.values())
    assert (result.n, [row.n for row in result.per_class]) == (7, [3, 4])
    for name in names:
        (folder / name).unlink()
    assert result == replace(evaluate(animals, folder), bad=result.bad)


def test_nothing_is_left_to_evaluate(tmp_path: Path, animals: Path) -> None:
    folder = write_pictures(tmp_path / "photos", {"cat": 1, "dog": 1})
    names = break_some(folder, 2)
    with pytest.raises(UserError, match=f"no picture to evaluate; .*{names[0]}.*{names[1]}"):
        evaluate(animals, folder, bad="skip")


# Which pictures


@pytest.mark.parametrize(
    ("splits", "wanted", "chosen"),
    [
        ({"train": 5, "val": 4, "test": 3}, None, "test"),
        ({"train": 5, "val": 4}, None, "val"),
        ({"all": 6}, None, "all"),
        ({"train": 5}, None, "train"),
        ({"train": 5, "val": 4, "test": 3}, "train", "train"),
        ({"train": 5, "val": 4, "test": 3}, "val", "val"),
    ],
    ids=str,
)
def test_the_split_held_back_furthest_is_scored(
    splits: dict[str, int], wanted: str | None, chosen: str, animals: Path
) -> None:
    total = sum(splits.values())
    edges = np.cumsum([0, *splits.values()])
    parts = {name: np.arange(edges[i], edges[i + 1]) for i, name in enumerate(splits)}
    data = replace(arrays(total, 3), splits=parts, classes=("cat", "cow", "dog"), spec="photos")
    result = evaluate(animals, data, split=wanted)
    assert result.n == splits[chosen]
    assert result.protocol == f"photos, {chosen}, single centre crop; {PREPROCESS}; fp32"


def test_a_split_that_is_not_there(tmp_path: Path, animals: Path) -> None:
    folder = write_pictures(tmp_path / "photos", {"train/cat": 2, "val/cat": 1, "test/cat": 1})
    with pytest.raises(UserError, match="no split 'tset'; it has train, val, test"):
        evaluate(animals, folder, split="tset")


def test_a_run_is_scored_on_what_it_kept_back(tmp_path: Path, animals: Path) -> None:
    folder = write_pictures(tmp_path / "photos", {"cat": 6, "dog": 6})
    write_pictures(tmp_path / "others", {"cat": 2, "dog": 2}, seed=1)
    run = tmp_path / "run"
    run.mkdir()
    animals.rename(run / "model.safetensors")
    (run / "environment.json").write_text(json.dumps({"data": str(folder)}))
    data = load_folder(folder)
    assert isinstance(data.pictures, Files)
    save_split(replace(data, splits={"train": np.arange(9), "val": np.arange(9, 12)}), run / "split.csv")
    (tmp_path / "link").symlink_to(folder)
    assert [evaluate(run, where).n for where in (None, folder, tmp_path / "link")] == [3, 3, 3]
    assert evaluate(run, split="train").n == 9
    assert evaluate(run, tmp_path / "others").n == 4
    (run / "environment.json").write_text('{"data": ')
    with pytest.raises(UserError, match=r"environment\.json: cannot be read"):
        evaluate(run)


def test_a_model_file_alone_does_not_know_its_pictures(animals: Path) -> None:
    with pytest.raises(UserError, match="say which pictures to evaluate it on"):
        evaluate(animals)


def test_a_network_that_answers_with_no_number_is_refused() -> None:
    data = arrays(5, 3)
    model = make_model(data.classes)
    torch.nn.init.constant_(model.network.fc.bias, torch.nan)
    with pytest.raises(Diverged, match=r"the network answers with what is no number; train it anew"):
        evaluate(model, data)

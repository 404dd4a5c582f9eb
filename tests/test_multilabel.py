"""Several labels a picture: the score beside scikit-learn's, tables, division, training, answers, refusals."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnetkit.about import About
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.source import open_data
from resnetkit.data.split import load_split, save_split, split_training
from resnetkit.data.table import load_table
from resnetkit.engines.files import TO
from resnetkit.errors import UserError
from resnetkit.evaluation import evaluate, score_from
from resnetkit.events import Progress
from resnetkit.exporting import export
from resnetkit.losses import objective_of
from resnetkit.multilabel import MultiLabelResult, measure
from resnetkit.prediction import predict
from resnetkit.protocol import Protocol
from resnetkit.recipe import Optim
from resnetkit.recipe_file import with_settings
from resnetkit.runs import read_json
from resnetkit.shipped import shipped
from resnetkit.training import resume, train, training
from resnetkit.weights import open_model

Run = Callable[..., tuple[int, str, str]]
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
SETTINGS = (
    "model.arch=resnet8-cifar",
    "data.size=8",
    "schedule.epochs=20",
    "optim.batch=16",
    "optim.lr=0.1",
    "augment.crop=none",
    "run.precision=fp32",
)


def random_case(seed: int, n: int, classes: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties, and labels, of which the last one is nobody's."""
    dice = np.random.default_rng(seed)
    table = dice.integers(levels, size=(n, classes)) / levels
    truth = dice.random((n, classes)) < 0.4
    truth[0], truth[:, -1] = True, False
    return table, truth


# The score


@pytest.mark.parametrize(("seed", "n", "levels"), [(0, 1, 3), (1, 7, 2), (2, 50, 5), (3, 400, 1000)])
def test_figures_are_those_of_scikit_learn(seed: int, n: int, levels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn, the extra 'demo'")
    table, truth = random_case(seed, n, 5, levels)
    found = measure(table, truth, tuple("abcde"), [str(i) for i in range(n)])
    said = table >= 0.5
    assert [row.name for row in found["per_label"]] == list("abcd"), "nobody has e"
    for c, row in enumerate(found["per_label"]):
        assert row.ap == pytest.approx(metrics.average_precision_score(truth[:, c], table[:, c]), abs=1e-12)
        three = metrics.precision_recall_fscore_support(truth[:, c], said[:, c], average="binary", zero_division=0)
        assert (row.precision, row.recall, row.f1) == pytest.approx(three[:3], abs=1e-12)
        assert (row.positives, row.prevalence) == (truth[:, c].sum(), pytest.approx(truth[:, c].mean()))
    few = metrics.average_precision_score(truth[:, :4], table[:, :4], average="macro")
    assert found["mean_average_precision"] == pytest.approx(few, abs=1e-12)
    assert found["micro_f1"] == pytest.approx(
        metrics.f1_score(truth, said, average="micro", zero_division=0), abs=1e-12
    )
    assert found["exact"] == pytest.approx(metrics.accuracy_score(truth, said), abs=1e-12)
    low, high = found["mean_average_precision_interval"]
    assert low <= high


def test_the_likelihood_is_of_all_labels_of_a_picture() -> None:
    table, truth = np.array([[0.5, 0.25], [1.0, 0.125]]), np.array([[True, False], [True, True]])
    found = measure(table, truth, ("a", "b"), ["x", "y"])
    assert found["nll"] == pytest.approx(-(math.log(0.5) + math.log(0.75) + math.log(1) + math.log(0.125)) / 2)


def test_the_interval_is_that_of_resampled_pictures() -> None:
    """As by hand, with scikit-learn's average precision of every resample."""
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn, the extra 'demo'")
    table, truth = random_case(4, 60, 3, 20)
    found = measure(table, truth, tuple("abc"), [str(i) for i in range(60)])
    dice, means = np.random.default_rng(0), []
    for _ in range(1000):
        rows = np.repeat(np.arange(60), np.bincount(dice.integers(60, size=60), minlength=60))
        means.append(metrics.average_precision_score(truth[rows][:, :2], table[rows][:, :2], average="macro"))
    expected = np.quantile(means, (0.025, 0.975))
    assert found["mean_average_precision_interval"] == pytest.approx(tuple(expected), abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 6))
def test_a_score_comes_back_from_its_file(seed: int, n: int, levels: int) -> None:
    table, truth = random_case(seed, n, 3, levels)
    found = MultiLabelResult(**measure(table, truth, tuple("abc"), [str(i) for i in range(n)]), bad={}, protocol="x")
    assert score_from(json.loads(json.dumps(found.to_dict()))) == found
    wrong = [(row.path, row.label, row.said) for row in found.mistakes]
    assert all((table[int(p), "abc".index(c)] >= 0.5) == said != truth[int(p), "abc".index(c)] for p, c, said in wrong)


def test_the_loss_is_torchs_over_all_labels() -> None:
    torch.manual_seed(0)
    sets = np.array([[False, False, False], [True, False, True], [False, True, False]])
    logits, labels = torch.randn(5, 3), torch.tensor([1, 0, 2, 1, 1])
    objective = objective_of([1, 1, 1], sets, Optim(), torch.device("cpu"))
    targets = torch.from_numpy(sets[labels.numpy()]).float()
    theirs = torch.nn.MultiLabelSoftMarginLoss()  # the mean over labels, of three
    for share, wanted in ((1.0, targets), (0.7, 0.7 * targets + 0.3 * targets.flip(0))):
        torch.testing.assert_close(objective.loss(logits, labels, share), 3 * theirs(logits, wanted))
    smooth = replace(objective, recipe=Optim(label_smoothing=0.2)).loss(logits, labels, 1.0)
    torch.testing.assert_close(smooth, 3 * theirs(logits, 0.8 * targets + 0.1))
    assert objective.right(20 * targets - 10, labels).all()
    assert not objective.right(10 - 20 * targets, labels).any()


# Tables


def written(folder: Path, lines: list[list[str]], name: str = "pictures.csv") -> Path:
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return folder / name


def test_a_cell_holds_a_set(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.png").touch()
    cells = {"a": "sofa | cat", "b": "", "c": "cat|sofa|cat", "d": " cat"}
    lines = [["path", "labels"], *([f"{name}.png", cell] for name, cell in cells.items())]
    data = load_table(written(tmp_path, lines))
    assert data.classes == ("cat", "sofa")
    assert [data.label_name(label) for label in data.labels.tolist()] == ["cat|sofa", "", "cat|sofa", "cat"]
    known = data.relabelled(("apple", "sofa", "cat"))
    assert [known.label_name(label) for label in known.labels.tolist()] == ["sofa|cat", "", "sofa|cat", "cat"]
    with pytest.raises(UserError, match="the model does not know 1 class: sofa"):
        data.relabelled(("cat", "dog"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([["path", "label", "labels"], ["a.png", "cat", "cat|sofa"]], "has the columns 'label' and 'labels'; keep"),
        (
            [["path", "labels"], ["a.png", "cat"], ["a.png", "cat|sofa"]],
            "a.png has two labels, 'cat' on line 2",
        ),
        ([["path", "labels"], ["", "cat"]], "line 2: path is empty"),
        ([["path", "labels"], ["a.png", " | "]], "the column 'labels' is empty in every row"),
    ],
)
def test_tables_that_mean_nothing(tmp_path: Path, lines: list[list[str]], said: str) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError) as caught:
        load_table(written(tmp_path, lines))
    assert said in str(caught.value)


# Division


def many(seed: int, n: int, classes: int = 4) -> Data:
    dice = np.random.default_rng(seed)
    rows = dice.random((n, classes)) < dice.uniform(0.02, 0.6, classes)
    rows[:2] = True  # every label is there, twice
    sets, labels = np.unique(rows, axis=0, return_inverse=True)
    pixels = dice.integers(256, size=(n, 2, 2, 3), dtype=np.uint8)
    names = tuple(f"c{c}" for c in range(classes))
    return Data("x", Arrays(pixels, (("p", n),)), labels, names, {"all": np.arange(n)}, sets=sets)


@given(st.integers(0, 2**32 - 1), st.integers(10, 120))
def test_every_label_stays_in_training(seed: int, n: int) -> None:
    data = many(seed, n)
    assert data.sets is not None
    digests = np.random.default_rng(seed).integers(256, size=(n, 32), dtype=np.uint8)
    divided = split_training(data, 0.2, 0, digests)
    train, val = (divided.splits[name] for name in ("train", "val"))
    assert sorted([*train, *val]) == list(range(n))
    assert data.sets[data.labels[train]].any(0).all()
    assert len(val) <= 0.2 * n + len(data.sets)


def test_about_a_fifth_of_every_label_is_kept_back(tmp_path: Path) -> None:
    data = many(5, 2000)
    assert data.sets is not None
    digests = np.random.default_rng(0).integers(256, size=(2000, 32), dtype=np.uint8)
    divided = split_training(data, 0.2, 0, digests)
    shares = data.sets[data.labels[divided.splits["val"]]].sum(0) / data.sets[data.labels].sum(0)
    assert np.abs(shares - 0.2).max() < 0.05
    save_split(divided, tmp_path / "split.csv")
    assert (tmp_path / "split.csv").read_text().startswith('"path","labels","split"\n')
    again = load_split(data, tmp_path / "split.csv")
    assert all((again.splits[name] == divided.splits[name]).all() for name in ("train", "val"))


# From a table to answers


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of 8 x 8 whose quarters are black or of a colour; the labels are the colours that are there."""
    folder, dice = tmp_path_factory.mktemp("several"), np.random.default_rng(0)
    lines = [["path", "labels", "split"]]
    for number in range(160):
        pixels = dice.integers(40, size=(8, 8, 3), dtype=np.uint8)
        there = [name for name in COLOURS if dice.random() < 0.45]
        for place, name in zip(dice.permutation(4), there, strict=False):
            top, left = 4 * (place // 2), 4 * (place % 2)
            pixels[top : top + 4, left : left + 4] = COLOURS[name]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append([f"{number}.png", "|".join(there), "train" if number < 112 else "val"])
    return written(folder, lines)


@pytest.fixture(scope="module")
def run(pictures: Path) -> Path:
    return train(pictures, recipe=with_settings(shipped("small"), SETTINGS), out=pictures.parent / "run").run


def test_it_learns_and_says_so(run: Path, pictures: Path, resnet: Run) -> None:
    result = evaluate(run)
    assert isinstance(result, MultiLabelResult)
    assert result == score_from(read_json(run / "result.json")["result"]) == evaluate(run, pictures)
    assert (result.n, result.at_random) == (48, pytest.approx(0.45, abs=0.15))
    assert result.mean_average_precision > 0.95
    code, out, _ = resnet("evaluate", str(run))
    assert (code, out.splitlines()[0]) == (0, f"mAP {result}")
    page = (run / "report.html").read_text()
    assert "Label by label, worst first" in page
    assert "confusion" not in page.lower()


def shares_of(run: Path, files: list[Path], *, mirrored: bool = False) -> np.ndarray:
    """Each label's probability, without the house's loops."""
    network = open_model(run, several=True)
    spec = network.preprocess
    pixels = np.stack([spec.fit(spec.load(file.read_bytes())) for file in files])
    batch = spec.normalise(torch.from_numpy(pixels))
    with torch.inference_mode():
        found: np.ndarray = network.network(batch.flip(-1) if mirrored else batch).double().sigmoid().numpy()
    return found


def test_crops_and_ensembles_average_the_labels_probabilities(run: Path, pictures: Path, tmp_path: Path) -> None:
    """Pictures as small as the crop, so that ten crops are five times the picture and five times its mirror image."""
    files = [pictures.parent / f"{i}.png" for i in range(112, 160)]
    brief = with_settings(shipped("small"), [*SETTINGS, "schedule.epochs=1"])
    other = train(pictures, recipe=brief, out=tmp_path / "run").run
    wanted = np.mean([shares_of(model, files, mirrored=side) for model in (run, other) for side in (False, True)], 0)
    data = open_data(pictures, several=True)
    assert data.sets is not None
    truth = data.sets[data.labels[data.splits["val"]]]
    found = evaluate(run, pictures, protocol=Protocol("10-crop"), ensemble=[other])
    assert isinstance(found, MultiLabelResult)
    assert found.nll == pytest.approx(measure(wanted, truth, data.classes, [str(f) for f in files])["nll"], abs=1e-5)
    assert found.nll != pytest.approx(evaluate(run, pictures).nll, abs=1e-2)


def test_answers_are_the_labels_that_are_said(run: Path, pictures: Path, resnet: Run) -> None:
    files = [pictures.parent / f"{i}.png" for i in range(112, 160)]
    answers = list(predict(run, files, engine="torch"))
    for answer, row in zip(answers, shares_of(run, files), strict=True):
        assert dict(answer.top) == pytest.approx(dict(zip(COLOURS, row, strict=True)), abs=1e-5)
        said = [name for name, share in answer.top if share >= 0.5]
        assert (answer.labels, answer.answer) == (tuple(said), "|".join(said) or None)
    (sure,) = predict(run, files[:1], engine="torch", min_probability=1.0)
    assert (sure.labels, sure.answer, sure.error) == ((), None, None)
    lines = resnet("predict", str(run), *map(str, files), "--engine", "torch")[1].splitlines()
    for line, answer in zip(lines, answers, strict=True):
        assert line.count("%") == 3
        first = line.split(": ", 1)[1].split("  (")[0].split(", ")
        names = first if first == ["no label"] else [part.rsplit(" ", 2)[0] for part in first]
        assert names == (list(answer.labels) or ["no label"])
    assert {bool(answer.labels) for answer in answers} == {True, False}


@pytest.mark.parametrize(
    ("suffix", "package"), [(".onnx", "onnxruntime"), (".xml", "openvino"), (".mnn", "MNN"), (".pt2", "torch")]
)
def test_an_exported_file_answers_the_same(
    suffix: str, package: str, run: Path, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip(package, reason=f"needs {package}, an extra")
    file = tmp_path / f"m{suffix}"
    export(run, to=TO[suffix], out=file)
    files = [pictures.parent / f"{i}.png" for i in range(120, 130)]
    for ours, theirs in zip(predict(run, files, engine="torch"), predict(file, files), strict=True):
        assert ours.labels == theirs.labels
        assert dict(ours.top) == pytest.approx(dict(theirs.top), abs=1e-4)


@pytest.mark.usefixtures("one_thread")
def test_a_run_goes_on_to_the_same_bytes(pictures: Path, tmp_path: Path) -> None:
    recipe = with_settings(shipped("small"), [*SETTINGS, "schedule.epochs=4"])
    whole = train(pictures, recipe=recipe, out=tmp_path / "whole")
    events = training(pictures, recipe=recipe, out=tmp_path / "part")
    assert any(isinstance(event, Progress) and event.step == 17 for event in events)
    events.close()  # type: ignore[attr-defined]
    assert resume(tmp_path / "part").result == whole.result
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "part"))
    assert first.read_bytes() == second.read_bytes()


# What does not know it says so


def test_usual_models_say_nothing_of_it(run: Path) -> None:
    several = open_model(run, several=True).about
    assert several.to_meta()["multi_label"] is True
    assert several.threshold == 0.5
    usual = replace(several, multi_label=False)
    assert "multi_label" not in usual.to_meta()
    assert usual.threshold == 0
    with pytest.raises(UserError, match="no usable 'multi_label'"):
        About.from_meta({**usual.to_meta(), "multi_label": "yes"}, "m")


@pytest.mark.parametrize(
    "words",
    [
        ("calibrate", "RUN"),
        ("report", "RUN"),
        ("compare", "RUN", "RUN", "DATA"),
        ("label-next", "RUN", "FOLDER"),
        ("check", "DATA"),
        ("check", "FOLDER", "--model", "RUN"),
        ("train", "DATA", "--folds", "2"),
        ("export", "RUN", "--to", "timm", "--out", "OUT"),
        ("export", "RUN", "--to", "onnx", "--out", "OUT.onnx", "--int8", "--calibrate", "DATA"),
        ("shard", "DATA", "OUT"),
    ],
)
def test_other_verbs_refuse_in_a_sentence(
    words: tuple[str, ...], run: Path, pictures: Path, resnet: Run, tmp_path: Path
) -> None:
    place = {
        "RUN": run,
        "DATA": pictures,
        "FOLDER": pictures.parent,
        "OUT": tmp_path / "o",
        "OUT.onnx": tmp_path / "o.onnx",
    }
    code, out, error = resnet(*(str(place.get(word, word)) for word in words))
    assert (code, out) == (2, "")
    assert "several labels" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("calibrate", "RUN", "DATA"),
        ("compare", "RUN", "RUN", "DATA"),
        ("export", "RUN", "--to", "onnx", "--out", "OUT.onnx", "--int8", "--calibrate", "DATA"),
    ],
)
def test_a_usual_model_takes_no_such_table(words: tuple[str, ...], pictures: Path, resnet: Run, tmp_path: Path) -> None:
    """Or combinations of labels would pass for classes."""
    lines = [["path", "label", "split"]]
    lines += [[f"{i}.png", "blue" if i % 2 else "red", "train" if i < 16 else "val"] for i in range(20)]
    one = written(pictures.parent, lines, "usual.csv")
    quick = with_settings(shipped("small"), [*SETTINGS, "schedule.epochs=1", "optim.batch=8"])
    usual, out = train(one, recipe=quick, out=tmp_path / "run").run, tmp_path / "o.onnx"
    place = {"RUN": usual, "DATA": pictures, "OUT.onnx": out}
    code, said, error = resnet(*(str(place.get(word, word)) for word in words))
    assert (code, said) == (2, "")
    assert "several labels, with which one can train and evaluate" in error
    assert not out.exists()


@pytest.mark.parametrize("setting", ["optim.class_weights=1", "optim.logit_adjustment=1", "data.sampling=balanced"])
def test_recipes_for_one_label_are_refused(setting: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="where a picture has one label; leave it out"):
        train(pictures, recipe=with_settings(shipped("small"), [*SETTINGS, setting]), out=tmp_path / "run")


def test_pictures_and_models_must_be_of_a_kind(run: Path, pictures: Path) -> None:
    one = written(pictures.parent, [["path", "label"], ["0.png", "red"], ["1.png", "blue"]], "one.csv")
    with pytest.raises(UserError, match="have one label each, and a model gives several"):
        evaluate(run, one)
    assert open_data(pictures, several=True).sets is not None
    with pytest.raises(UserError, match="several labels, with which one can train and evaluate"):
        open_data(pictures)

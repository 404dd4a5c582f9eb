"""Folds: who is in which, that no model is scored on what it saw, going on after a kill, and what is refused."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import resnetkit
from resnetkit.crossvalidation import PLAN, POOLED, TABLE, CrossValidated, FoldBegun, cross_resuming, cross_validating
from resnetkit.data.pictures import Data, Files
from resnetkit.data.source import open_data
from resnetkit.data.split import load_split, split_folds
from resnetkit.errors import UserError
from resnetkit.evaluation import Result, wilson
from resnetkit.events import Finished, Progress, Stopped
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import with_settings
from resnetkit.shipped import shipped

pytestmark = pytest.mark.usefixtures("one_thread")

Resnet = Callable[..., tuple[int, str, str]]
COLOURS = {"blue": (60, 70, 160), "green": (60, 140, 70)}
TINY = [
    *("model.arch=resnet8-cifar", "data.size=12", "optim.batch=4", "schedule.epochs=2", "run.checkpoint_steps=1"),
    *("run.precision=fp32", "run.threads=1"),
]
COUNT = 8  # of each class, all different, and one copy


def tiny() -> Recipe:
    return with_settings(shipped("small"), TINY)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around two colours; of one picture there is a copy."""
    folder = tmp_path_factory.mktemp("data") / "colours"
    dice = np.random.Generator(np.random.Philox(0))
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(COUNT):
            noise = dice.normal(0, 60, (12, 12, 3))
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(
                folder / name / f"{number}.png"
            )
    (folder / "blue" / "copy.png").write_bytes((folder / "blue" / "3.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def done(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidated:
    torch.set_num_threads(1)  # as `one_thread`, which comes later; no other test of this file wants more
    return resnetkit.cross_validate(pictures, 3, recipe=tiny(), out=tmp_path_factory.mktemp("runs") / "all")


# Who is in which fold


def pool(labels: list[int], contents: list[int]) -> tuple[Data, np.ndarray]:
    digests = np.zeros((len(labels), 32), np.uint8)
    digests[:, 0] = np.array(contents) + 1
    files = Files(Path("photos"), [f"{i:03}.jpg" for i in range(len(labels))])
    classes = tuple("abc"[: max(labels) + 1])
    return Data("photos", files, np.array(labels), classes, {"all": np.arange(len(labels))}), digests


@given(st.lists(st.integers(4, 11), min_size=2, max_size=3), st.integers(2, 4), st.integers(0, 2**31))
@settings(max_examples=40)
def test_folds_are_even_in_each_class_and_in_all(sizes: list[int], folds: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist()
    data, digests = pool(labels, list(range(len(labels))))
    parts = split_folds(data, folds, seed, digests)
    assert sorted(i for part in parts for i in part.splits["val"].tolist()) == list(range(len(labels)))
    for label in range(len(sizes)):
        counts = [int((data.labels[part.splits["val"]] == label).sum()) for part in parts]
        assert max(counts) - min(counts) <= 1
    whole = [len(part.splits["val"]) for part in parts]
    assert max(whole) - min(whole) <= 1
    for part in parts:
        assert sorted([*part.splits["train"], *part.splits["val"]]) == list(range(len(labels)))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 25)), min_size=12, max_size=60), st.integers(0, 99))
@settings(max_examples=60)
def test_copies_are_in_one_fold_also_under_two_labels(rows: list[tuple[int, int]], seed: int) -> None:
    data, digests = pool([label for label, _ in rows], [content for _, content in rows])
    try:
        parts = split_folds(data, 3, seed, digests)
    except UserError:
        few = [len({content for own, content in rows if own == label}) < 3 for label in range(len(data.classes))]
        assert any(few)
        return
    where = {i: number for number, part in enumerate(parts) for i in part.splits["val"].tolist()}
    assert sorted(where) == list(range(len(rows)))
    for content in {content for _, content in rows}:
        assert len({where[i] for i, (_, own) in enumerate(rows) if own == content}) == 1


def test_the_seed_and_the_bytes_decide_not_the_names() -> None:
    labels, contents = [0, 1] * 12, list(range(24))
    data, digests = pool(labels, contents)
    mirrored, turned = pool(labels[::-1], contents[::-1])

    def folds(data: Data, digests: np.ndarray, seed: int) -> list[set[int]]:
        return [{int(digests[i, 0]) for i in part.splits["val"]} for part in split_folds(data, 4, seed, digests)]

    assert folds(data, digests, 1) == folds(data, digests, 1) == folds(mirrored, turned, 1)
    assert folds(data, digests, 1) != folds(data, digests, 2)


# The score


def test_every_picture_is_scored_once_by_the_model_that_did_not_see_it(pictures: Path, done: CrossValidated) -> None:
    with (done.run / TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    whole = open_data(pictures)
    names = [whole.pictures.name(i) for i in range(len(whole))]
    assert [row["path"] for row in rows] == names
    assert {row["path"]: row["label"] for row in rows} == {name: name.partition("/")[0] for name in names}
    by_name = {row["path"]: row for row in rows}
    assert by_name["blue/copy.png"]["fold"] == by_name["blue/3.png"]["fold"]
    for number in (1, 2, 3):
        run = done.run / f"fold-{number}"
        val = load_split(whole, run / "split.csv").splits["val"].tolist()
        assert [names[i] for i in val] == [row["path"] for row in rows if row["fold"] == str(number)]
        answers = {str(each.path): each for each in resnetkit.predict(run, [pictures / names[i] for i in val])}
        for i in val:
            row, answer = by_name[names[i]], answers[str(pictures / names[i])]
            assert row["answer"] == answer.top[0][0]
            assert float(row["confidence"]) == pytest.approx(answer.top[0][1], abs=1e-4)


def test_the_pooled_score_is_the_sum_of_the_folds(done: CrossValidated) -> None:
    own = [json.loads((done.run / fold.run / "result.json").read_text())["result"] for fold in done.folds]
    assert [(fold.correct, fold.n) for fold in done.folds] == [(each["correct"], each["n"]) for each in own]
    correct, n = sum(each["correct"] for each in own), 2 * COUNT + 1
    assert (done.result.correct, done.result.n) == (correct, n)
    assert done.result.top1_interval == wilson(correct, n)
    rates = [each["correct"] / each["n"] for each in own]
    assert done.spread["lowest"] == min(rates)
    assert done.spread["standard_deviation"] == pytest.approx(np.std(rates, ddof=1))
    written = json.loads((done.run / POOLED).read_text())
    assert Result.from_dict(written["result"]) == done.result
    assert written["spread"] == done.spread
    assert "3 folds, each scored by the model of the others" in done.result.protocol


def test_a_fold_is_a_run_like_others(resnet: Resnet, done: CrossValidated) -> None:
    code, out, _ = resnet("evaluate", str(done.run / "fold-2"), "--json")
    assert (code, json.loads(out)["correct"]) == (0, done.folds[1].correct)


# Going on


def test_stopped_in_a_fold_it_ends_with_the_same_bytes(
    resnet: Resnet, pictures: Path, done: CrossValidated, tmp_path: Path
) -> None:
    run, begun = tmp_path / "all", []

    def interrupted() -> None:
        for event in cross_validating(pictures, 3, recipe=tiny(), out=run):
            if isinstance(event, FoldBegun):
                begun.append(event.number)
            elif begun == [1, 2] and isinstance(event, Progress) and event.step == 2:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped) as stopped:
        interrupted()
    assert stopped.value.run == run, "what goes on is the whole"
    assert not (run / "fold-2" / "report.html").exists()
    code, out, err = resnet("resume", str(run), "--json")
    assert code == 0, err
    assert "fold 1 of 3: finished before" in err
    assert json.loads(out)["result"]["correct"] == done.result.correct
    for name in ("fold-1", "fold-2", "fold-3"):
        same = [(place / name / "model.safetensors").read_bytes() for place in (run, done.run)]
        assert same[0] == same[1]
    assert (run / TABLE).read_bytes() == (done.run / TABLE).read_bytes()
    again = list(cross_resuming(run))
    assert not any(isinstance(event, Finished) for event in again), "a finished fold stays as it is"


def test_other_pictures_are_refused_when_it_goes_on(pictures: Path, done: CrossValidated) -> None:
    late = pictures / "blue" / "late.png"
    late.write_bytes((pictures / "blue" / "1.png").read_bytes())
    try:
        with pytest.raises(UserError, match=r"the pictures are not those that .* was begun with"):
            list(cross_resuming(done.run))
    finally:
        late.unlink()


# What a person sees, and what is refused


def test_the_terminal_says_what_there_is_and_what_not(resnet: Resnet, done: CrossValidated) -> None:
    code, out, err = resnet("resume", str(done.run))
    assert (code, err) == (0, "")
    assert f"out of fold: top-1 {done.result}" in out
    assert "fold-3" in out
    assert "standard deviation" in out
    assert "none has learnt from all pictures" in out
    assert "--set data.val=0" in out


def test_wrong_use_gets_one_sentence(
    resnet: Resnet, pictures: Path, done: CrossValidated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = tmp_path / "run", [word for setting in TINY for word in ("--set", setting)]

    def refused(*arguments: str, data: Path = pictures) -> str:
        code, _, err = resnet("train", str(data), *settings, "--out", str(out), *arguments)
        assert code == 2
        assert err.count("\n") == 1
        assert not out.exists(), "nothing stays behind"
        return err

    assert "fewer different pictures than the 9 folds: blue (8), green (8)" in refused("--folds", "9")
    assert "with --folds each part" in refused("--folds", "3", "--val", str(pictures))
    assert "with --folds 3 a part is one in 3" in refused("--folds", "3", "--set", "data.val=0.5")
    late = refused("--folds", "3", "--set", "optim.ghost_batch=3")  # noticed when the first fold is begun
    assert "ghost_batch=3: does not divide" in late
    same = refused("--folds", "3", "--from", str(done.run / "fold-1"), "--recipe", "finetune")
    assert "was trained on these very pictures" in same
    divided = tmp_path / "divided"
    for split in ("train", "val"):
        (divided / split).mkdir(parents=True)
        for name in COLOURS:
            (divided / split / name).symlink_to(pictures / name)
    assert "is divided already, into train, val" in refused("--folds", "3", data=divided)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UserError, match="start it without torchrun"):
        resnetkit.cross_validate(pictures, 3, recipe=tiny(), out=out)
    assert (done.run / PLAN).exists()

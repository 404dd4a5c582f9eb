"""steps.csv, which split is watched on the way, and a loss that stops being a number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import resnetkit
from resnetkit import runs
from resnetkit.errors import Diverged, UserError
from resnetkit.events import Event, Found, Progress
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import with_settings
from resnetkit.shipped import shipped
from resnetkit.training import resuming, training
from resnetkit.weights import open_model

BATCH, PER_EPOCH, STEPS = 8, 4, 12
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two classes 20 pictures each to train with, without any other split."""
    folder = tmp_path_factory.mktemp("data") / "noise"
    draw(folder, number=20, seed=0)
    return folder


@pytest.fixture(scope="module")
def divided(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures to train with, and 7 of each class as a test split."""
    folder = tmp_path_factory.mktemp("data") / "divided"
    folder.mkdir()
    (folder / "train").symlink_to(noise)
    draw(folder / "test", number=7, seed=1)
    return folder


def draw(folder: Path, number: int, seed: int) -> None:
    dice = np.random.Generator(np.random.Philox(seed))
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = dice.integers(256, size=(12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def tiny(*more: str) -> Recipe:
    """4 steps an epoch, as a fifth of the 40 pictures is kept back, and 12 in all; checkpoints after step 5 and 10."""
    settings = ["model.arch=resnet8-cifar", "data.size=12", f"optim.batch={BATCH}", "optim.lr=0.05"]
    settings += ["schedule.epochs=3", "run.checkpoint_steps=5", "run.precision=fp32"]
    return with_settings(shipped("small"), [*settings, *more])


def run_until(events: Iterator[Event], step: int) -> None:
    """Follow a training until after a step, then let it die without a word, as a power cut would."""
    for event in events:
        if isinstance(event, Progress) and event.step >= step:
            break
    events.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "more",
    [[], ["optim.accumulate=2", "augment.mixup=0.5", "augment.cutmix=1"], ["schedule.steps=10"]],
    ids=["whole epochs", "blended, in two parts", "half an epoch at the end"],
)
def test_the_steps_of_an_epoch_add_up_to_its_line_in_the_log(more: list[str], noise: Path, tmp_path: Path) -> None:
    resnetkit.train(noise, recipe=tiny(*more), out=tmp_path / "run")
    rows, log = runs.read_steps(tmp_path / "run"), runs.read_log(tmp_path / "run")
    assert [step for step, _, _ in rows] == list(range(1, log[-1]["step"] + 1))
    assert len({loss for _, loss, _ in rows}) == len(rows)
    for line in log:
        steps = [row for row in rows if (line["epoch"] - 1) * PER_EPOCH < row[0] <= line["step"]]
        assert line["train_loss"] == pytest.approx(sum(loss for _, loss, _ in steps) / len(steps), rel=1e-12)
        shown = len(steps) * BATCH
        assert sum(correct for _, _, correct in steps) == pytest.approx(line["train_top1"] * shown, abs=1e-9)
        assert all(0 <= correct <= BATCH for _, _, correct in steps)


def test_each_step_is_what_its_event_said(noise: Path, tmp_path: Path) -> None:
    events = list(training(noise, recipe=tiny(), out=tmp_path / "run"))
    said = [(event.step, event.loss) for event in events if isinstance(event, Progress)]
    assert [row[:2] for row in runs.read_steps(tmp_path / "run")] == said
    assert len(said) == STEPS


@pytest.fixture(scope="module")
def undisturbed(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = tmp_path_factory.mktemp("runs") / "run"
    resnetkit.train(noise, recipe=tiny(), out=run)
    return (run / "steps.csv").read_bytes()


@pytest.mark.parametrize(
    ("stop", "kept", "torn"),
    [
        (3, 0, b""),
        (5, 0, b"6"),  # the checkpoint of step 5 was due, but not yet written
        (7, 5, b"8,0.69"),
        (7, 5, b"8,0.6931,3"),
        (11, 10, b"12,0.6931,"),
    ],
)
def test_a_resumed_run_writes_the_same_file(
    stop: int, kept: int, torn: bytes, noise: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    """What was written after the checkpoint is cut off, and so is a line that a power cut left unfinished."""
    run = tmp_path / "run"
    run_until(training(noise, recipe=tiny(), out=run), stop)
    lines = undisturbed.splitlines(keepends=True)
    assert (run / "steps.csv").read_bytes() == b"".join(lines[:stop])
    with (run / "steps.csv").open("ab") as file:
        file.write(torn)
    for event in (events := resuming(run)):
        if isinstance(event, Found):
            assert (run / "steps.csv").read_bytes() == b"".join(lines[:kept])
            break
    events.close()  # type: ignore[attr-defined]
    resnetkit.resume(run)
    assert (run / "steps.csv").read_bytes() == undisturbed


def test_a_run_from_before_there_was_such_a_file_goes_on(noise: Path, undisturbed: bytes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_until(training(noise, recipe=tiny(), out=run), 7)
    (run / "steps.csv").unlink()
    assert runs.read_steps(run) == []
    resnetkit.resume(run)
    assert (run / "steps.csv").read_bytes() == b"".join(undisturbed.splitlines(keepends=True)[5:])


def test_a_file_cut_anywhere_gives_its_whole_lines(tmp_path: Path) -> None:
    rows = [(9, 0.1, 0), (10, 1e-30, 128), (11, 123456.75, 3)]
    for row in rows:
        runs.append_step(tmp_path, *row)
    whole = (tmp_path / "steps.csv").read_bytes()
    for length in range(len(whole) + 1):
        (tmp_path / "steps.csv").write_bytes(whole[:length])
        assert runs.read_steps(tmp_path) == rows[: whole[:length].count(b"\n")]


@given(rows=st.lists(st.tuples(st.integers(1, 10**9), FINITE, st.integers(0, 999)), max_size=5))
def test_every_number_comes_back_as_it_was(rows: list[tuple[int, float, int]]) -> None:
    with TemporaryDirectory() as folder:
        for row in rows:
            runs.append_step(Path(folder), *row)
        assert runs.read_steps(Path(folder)) == rows


@pytest.mark.parametrize(("watch", "n"), [("val", 8), ("test", 14)])
def test_the_watched_split_is_scored_on_the_way(watch: str, n: int, divided: Path, tmp_path: Path) -> None:
    """And decides which weights are kept as the best; the final score is that of the test split either way."""
    recipe = tiny() if watch == "val" else tiny("run.watch=test")
    assert recipe.run.watch == watch
    run = tmp_path / "run"
    finished = resnetkit.train(divided, recipe=recipe, out=run)
    scores = [line["score"] for line in runs.read_log(run)]
    assert [(score["split"], score["n"]) for score in scores] == [(watch, n)] * 3
    best = open_model(run / "checkpoints" / "best.safetensors").metrics
    assert (best["split"], best["top1"]) == (watch, max(score["top1"] for score in scores))
    assert finished.result.n == 14
    if watch == "test":
        assert (scores[-1]["correct"], scores[-1]["nll"]) == (finished.result.correct, finished.result.nll)


def test_a_test_split_that_is_not_there_cannot_be_watched(noise: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as failure:
        resnetkit.train(noise, recipe=tiny("run.watch=test"), out=tmp_path / "run")
    assert str(failure.value) == f'run.watch="test": {noise} has no such split, only train, val'
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [[], ["model.norm=none", "model.zero_gamma=false"]], ids=["batch norm", "none"])
def test_the_step_at_which_the_loss_stops_being_a_number_is_told(more: list[str], noise: Path, tmp_path: Path) -> None:
    """steps.csv ends with the step before."""
    run = tmp_path / "run"
    with pytest.raises(Diverged) as failure:
        resnetkit.train(noise, recipe=tiny("optim.lr=1e30", "schedule.warmup_steps=0", *more), out=run)
    assert isinstance(failure.value, UserError)
    rows = runs.read_steps(run)
    assert [step for step, _, _ in rows] == list(range(1, failure.value.step))
    assert rows
    assert all(math.isfinite(loss) for _, loss, _ in rows)
    assert str(failure.value).startswith(f"step {failure.value.step}: the loss is ")

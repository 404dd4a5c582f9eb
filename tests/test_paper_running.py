"""Running a study: the same records wherever it was stopped, nothing run twice, and what it refuses to begin with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from paper_samples import STEPS, STUDY, comparable, draw_pictures, run_tiny, tiny
from resnetkit.data.loader import Reader
from resnetkit.data.source import open_data
from resnetkit.data.split import load_split
from resnetkit.errors import UserError
from resnetkit.evaluation import score
from resnetkit.events import Finished, Progress
from resnetkit.paper import measuring
from resnetkit.paper.records import load
from resnetkit.paper.running import Begun, Done
from resnetkit.paper.studies import STUDIES
from resnetkit.weights import open_model

INITS = ("he", "xavier", "small")
RUNS = ("resnet8-seed0", "plain8-seed0")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("data") / "ten")


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was left alone; not to be changed."""
    where = tmp_path_factory.mktemp("undisturbed")
    assert [type(event) for event in run_tiny(pictures, where)].count(Done) == 2
    return where


def steps_of(events: Iterator[Any], most: int | None = None) -> int:
    """Follow a study, or let it die without a word after so many steps of training; how many it took."""
    taken = 0
    for event in events:
        taken += isinstance(event, Progress)
        if taken == most:
            break
    events.close()  # type: ignore[attr-defined]
    return taken


def test_a_record_holds_what_its_run_wrote(undisturbed: Path) -> None:
    for title in RUNS:
        record, run = (
            load(undisturbed / "results" / "laptop" / f"{title}.json"),
            undisturbed / "runs" / "laptop" / title,
        )
        rows = [line.split(",") for line in (run / "steps.csv").read_text().splitlines()]
        errors = [100 * (1 - int(correct) / 8) for _, _, correct in rows]
        assert [int(step) for step, _, _ in rows] == list(range(1, STEPS + 1))
        assert record.train_curve == [[step, error] for step, error in enumerate(errors, start=1)]
        assert record.train_error == pytest.approx(sum(errors) / STEPS)
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert record.test_curve == [[line["step"], 100 - 5 * line["score"]["correct"]] for line in log]
        assert [step for step, _ in record.test_curve] == [3, 6, 8]
        result = json.loads((run / "result.json").read_text())
        assert (result["split"], record.held, record.result["n"]) == ("test", "test", 20)  # type: ignore[index]
        assert record.test_error == pytest.approx(100 - 5 * result["result"]["correct"])
        assert record.recipe == json.loads((run / "recipe.json").read_text())
        assert (record.name, record.seed, record.budget) == (title[:-6], 0, "laptop")
        assert [len(record.measured["end"]["variance"]), len(record.measured["end"]["gradient"])] == [7, 7]


@pytest.mark.parametrize("stops", [[1, 2, 3], pytest.param([5, 4, 3], marks=pytest.mark.slow)], ids=str)
def test_a_study_ends_with_the_same_records_wherever_it_was_stopped(
    stops: list[int], pictures: Path, undisturbed: Path, tmp_path: Path
) -> None:
    for stop in stops:
        assert steps_of(run_tiny(pictures, tmp_path), stop) == stop
    steps_of(run_tiny(pictures, tmp_path))
    assert comparable(tmp_path / "results") == comparable(undisturbed / "results")


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on(pictures: Path, undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of the second run."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + (
        "from pathlib import Path\nfrom paper_samples import run_tiny\n"
        "for event in run_tiny(Path(sys.argv[1]), Path(sys.argv[2])): print(type(event).__name__, flush=True)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code, str(pictures), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        taken = 0
        for line in process.stdout:
            taken += line == "Progress\n"
            if taken == STEPS + 5:
                process.kill()
                break
    assert sorted(comparable(tmp_path / "results")) == ["resnet8-seed0.json"]
    assert 0 < steps_of(run_tiny(pictures, tmp_path)) <= STEPS
    assert comparable(tmp_path / "results") == comparable(undisturbed / "results")
    assert list(tmp_path.rglob("*.part")) == []


def test_what_is_there_is_not_run_again(pictures: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The records are enough: run folders may be thrown away."""
    shutil.copytree(undisturbed / "results", tmp_path / "results")
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")}
    events = list(run_tiny(pictures, tmp_path))
    begun, done = ([e for e in events if isinstance(e, kind)] for kind in (Begun, Done))
    assert [(b.number, b.of, b.run.title) for b in begun] == [(1, 2, RUNS[0]), (2, 2, RUNS[1])]
    assert [(d.run.title, d.fresh) for d in done] == [(title, False) for title in RUNS]
    assert not any(isinstance(event, Progress) for event in events)
    assert {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")} == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("lost", ["", "result.json", "model.safetensors"])
def test_a_run_that_ended_without_its_record(lost: str, pictures: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Killed after the last step: what is missing is made again, without the steps that were taken."""
    shutil.copytree(undisturbed / "runs", tmp_path / "runs")
    if lost:
        (tmp_path / "runs" / "laptop" / RUNS[0] / lost).unlink()
    events = list(run_tiny(pictures, tmp_path))
    assert not any(isinstance(event, Progress) for event in events)
    assert sum(isinstance(event, Finished) for event in events) == bool(lost)
    assert [event.fresh for event in events if isinstance(event, Done)] == [True, True]
    assert comparable(tmp_path / "results") == comparable(undisturbed / "results")


def test_a_run_that_diverges_is_recorded_and_not_tried_again(pictures: Path, tmp_path: Path) -> None:
    broken = {
        name: replace(recipe, optim=replace(recipe.optim, lr=1e30)) if name == "resnet8" else recipe
        for name, recipe in tiny("laptop", norm="none").items()
    }
    study = replace(STUDY, recipes=lambda _: broken)
    taken = steps_of(run_tiny(pictures, tmp_path, study))
    path = tmp_path / "results" / "laptop" / "resnet8-seed0.json"
    record = load(path)
    assert record.diverged is not None
    assert taken == record.diverged - 1 + STEPS, "the other run went on"
    assert len(record.train_curve) == record.diverged - 1
    assert (record.train_error, record.result) == (None, None)
    assert (record.final_train_error, record.test_error) == (90.0, 90.0), "as wrong as a guess among ten"
    assert load(path.with_name("plain8-seed0.json")).diverged is None
    before = path.read_bytes()
    path.unlink()
    again = list(run_tiny(pictures, tmp_path, study))
    assert not any(isinstance(event, Progress) for event in again)
    assert path.read_bytes() == before


def test_what_is_measured_on_the_network_of_a_run(
    pictures: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "DEEPER", {8: 14})
    for title in RUNS:
        run = undisturbed / "runs" / "laptop" / title
        data = load_split(open_data(f"cifar10:{pictures}"), run / "split.csv")
        model = open_model(run)
        expected = score(model.network, Reader(data, model.preprocess, threads=1), data.splits["train"], protocol="")
        measured = measuring.measure(run, data, 0, "cpu")
        assert measured["train"] == {"n": 30, "correct": expected.correct}
        deepened = {"layers": 14, "correct": expected.correct, "largest_difference": 0.0}
        assert measured.get("deepened") == (deepened if title.startswith("plain") else None)


@pytest.mark.slow
def test_starts_are_looked_at_before_anything_is_trained(pictures: Path, tmp_path: Path) -> None:
    """Without normalisation, weights of 0.01 let the signal die within 55 layers: 9 x 64 x 0.01^2 / 2 = 0.03 a layer.

    Of He's weights each layer keeps the signal, but where the width doubles (1/2) and at the borders.
    """
    study = replace(STUDIES["initialisation"], recipes=tiny)
    for event in run_tiny(pictures, tmp_path, study):
        if isinstance(event, Begun):
            break
    found = json.loads((tmp_path / "results" / "laptop" / "starts.json").read_text())
    assert len({(start["arch"], start["norm"], start["init"]) for start in found}) == len(found) == 12
    assert {len(start[what]) for start in found for what in ("variance", "gradient")} == {55}
    last = {(s["arch"], s["norm"], s["init"]): (s["variance"][0], s["variance"][-1]) for s in found}
    shares = {init: last["plain56-cifar", "none", init][1] / last["plain56-cifar", "none", init][0] for init in INITS}
    assert shares["small"] < 0.03**18, "of the 18 layers with 64 channels alone"
    assert shares["small"] < shares["xavier"] < 1e-4 * shares["he"]
    assert shares["he"] > 1e-8
    for arch in ("plain56-cifar", "resnet56-cifar"):
        for init in INITS:
            assert last[arch, "batch", init][1] == pytest.approx(1, rel=0.1), "normalisation mends any start"


# What is refused, before anything is trained


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"classes": 9}, "has 9 classes and pictures of 32x32; "),
        ({"classes": 11}, "has 11 classes and pictures of 32x32; "),
        ({"side": 40}, "has 10 classes and pictures of 40x40; "),
        ({"side": 16}, "has 10 classes and pictures of 16x16; "),
        ({"test": False}, "ten classes of pictures of 32x32, in train and test"),
    ],
    ids=str,
)
def test_pictures_that_do_not_fit(wrong: dict[str, Any], reason: str, tmp_path: Path) -> None:
    data = draw_pictures(tmp_path / "data", **{"each": 2} | wrong)
    spec = f"cifar10:{data}" if wrong.get("test", True) else str(data)  # without test/ it is no cifar10:DIR
    refused(run_tiny(spec, tmp_path), tmp_path, reason, "the study degradation is of ten classes")


def refused(events: Iterator[Any], where: Path, *reasons: str) -> None:
    """The study ends with one sentence before its first step, and leaves no run behind."""
    before = sorted((where / "runs").rglob("*"))
    with pytest.raises(UserError) as caught:
        assert steps_of(events, 1) == 0, "nothing is trained"
    message = str(caught.value)
    assert "\n" not in message
    for reason in reasons:
        assert reason in message
    assert sorted((where / "runs").rglob("*")) == before


def test_pictures_of_28_pixels_are_for_the_short_budgets(tmp_path: Path) -> None:
    data = draw_pictures(tmp_path / "data", side=28, each=2)
    refused(run_tiny(data, tmp_path, budget="full"), tmp_path, "pictures of 28x28")
    events = run_tiny(data, tmp_path)
    assert any(isinstance(event, Begun) for event in events)
    events.close()  # type: ignore[attr-defined]


def test_pictures_of_two_sizes_are_told(tmp_path: Path) -> None:
    data = draw_pictures(tmp_path / "data", each=2)
    odd = draw_pictures(tmp_path / "odd", each=1, side=50, classes=1)
    shutil.copy(odd / "train" / "kind-0" / "0.png", data / "test" / "kind-3" / "odd.png")
    refused(run_tiny(data, tmp_path), tmp_path, "pictures of 32x32 to 50x50")


def test_imagenet_wants_validation_pictures_that_are_large_enough(pictures: Path, tmp_path: Path) -> None:
    refused(run_tiny(pictures, tmp_path, STUDIES["imagenet"]), tmp_path, "at least 48 pixels a side", "train/ and val/")


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def other_rate(recipe: dict[str, Any]) -> None:
    recipe["optim"]["lr"] = 0.5


RECORD = Path("results/laptop/plain8-seed0.json")
RUN = Path("runs/laptop/plain8-seed0")


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        (RECORD, lambda value: other_rate(value["recipe"]), "another recipe (optim.lr is 0.5, this study has 0.1)"),
        (RECORD, lambda value: value["environment"].update(fingerprint="0" * 64), "was made from other pictures"),
        (RECORD, lambda value: value.pop("result"), "is no result of resnet paper run"),
        (RECORD, lambda value: value.update(format=99), "of another version of resnetkit (format 99, not 1)"),
        (RUN / "recipe.json", other_rate, "another recipe (optim.lr is 0.5, this study has 0.1)"),
        (RUN / "environment.json", lambda value: value.update(fingerprint="0" * 64), "was made from other pictures"),
    ],
)
def test_what_is_there_from_something_else(
    file: Path, change: Callable[[Any], None], reason: str, pictures: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Also in the last run of a study: it is noticed before the first is trained."""
    target = tmp_path / file
    target.parent.mkdir(parents=True)
    if file == RECORD:
        shutil.copy(undisturbed / file, target)
    else:
        shutil.copytree(undisturbed / RUN, tmp_path / RUN, dirs_exist_ok=True)
    rewrite(target, change)
    refused(run_tiny(pictures, tmp_path), tmp_path, f"{tmp_path / (RECORD if file == RECORD else RUN)}: ", reason)


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "na', b"[]", b"7", b"\xff\xfe", b'{"format": 1}'])
def test_a_damaged_record_is_named(content: bytes, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / RECORD).parent.mkdir(parents=True)
    (tmp_path / RECORD).write_bytes(content)
    refused(run_tiny(pictures, tmp_path), tmp_path, f"{tmp_path / RECORD}: ")


def test_a_folder_that_is_no_run_is_named(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / RUN).mkdir(parents=True)
    refused(run_tiny(pictures, tmp_path), tmp_path, f"{tmp_path / RUN}: not a run folder")


@pytest.mark.parametrize("study", ["degradation", "initialisation"])
@pytest.mark.parametrize("there", ["results", "results/laptop", "runs"])
def test_a_place_that_cannot_be_written_is_noticed_first(
    there: str, study: str, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("a file where a folder should be")
    events = run_tiny(pictures, tmp_path, replace(STUDIES[study], recipes=tiny))
    refused(events, tmp_path, str(tmp_path / there))

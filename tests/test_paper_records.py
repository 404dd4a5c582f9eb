"""What is kept of a run, and the numbers that are made of several seeds."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from paper_samples import put, written
from resnetkit.errors import UserError
from resnetkit.paper import records
from resnetkit.paper.records import Spread, by_name, check_same, finite, load, load_all, save, spec_name, spread
from resnetkit.paper.sections import mean_curve
from resnetkit.paper.studies import STUDIES, Run, study_runs
from resnetkit.paper.trainings import crossing
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import to_dict


@pytest.mark.parametrize("n", range(2, 11))
def test_the_interval_is_students(n: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="comes with scikit-learn, the extra 'demo'")
    values = [10 + 7 * math.sin(3 * i) for i in range(n)]
    found = spread(values)
    error = statistics.stdev(values) / math.sqrt(n)
    low, high = stats.t.interval(0.95, n - 1, loc=statistics.fmean(values), scale=error)
    assert (found.mean, found.n) == (pytest.approx(statistics.fmean(values)), n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-3 * error), pytest.approx(high, abs=1e-3 * error))


def test_intervals_by_hand() -> None:
    """8 and 12: mean 10, standard deviation sqrt(8), of the mean 2; 12.706 of those (t, one degree of freedom)."""
    assert spread([8.0, 12.0]) == Spread(10.0, pytest.approx(10 - 25.412), pytest.approx(10 + 25.412), 2)
    assert spread([7.0, 7.0, 7.0]) == Spread(7.0, 7.0, 7.0, 3)
    assert spread([6.25]) == Spread(6.25, 6.25, 6.25, 1)
    assert str(spread([6.25])) == "6.2\u00a0% (one seed)"
    assert str(spread([9.0, 10.0, 11.0])) == "10.0\u00a0% (7.5 to 12.5)", "4.303 / sqrt(3) = 2.48 to each side"


def test_a_record_survives_the_round_trip(tmp_path: Path) -> None:
    record = written("plain20", 3, environment={"data": "cifar10:chat 猫", "notes": ["\udce9"]})
    path = tmp_path / "deep" / "er" / "x-seed3.json"
    save(record, path)
    assert load(path) == record
    assert path.read_bytes().isascii()
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no litter"


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/laptop/x\.json: cannot be written"):
        save(written("plain20"), tmp_path / "file" / "laptop" / "x.json")


def test_what_is_not_finite_is_null() -> None:
    value = {"a": [1.0, math.nan, {"b": -math.inf}], "c": math.inf, "d": "nan", "e": 3, "f": None, "g": [[]]}
    expected = {"a": [1.0, None, {"b": None}], "c": None, "d": "nan", "e": 3, "f": None, "g": [[]]}
    assert finite(value) == expected
    assert json.loads(json.dumps(finite(value), allow_nan=False)) == expected


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("cifar10:/home/me/data/cifar10-q75", "cifar10:cifar10-q75"),
        ("cifar10:/home/me/data/cifar10-q75/", "cifar10:cifar10-q75"),
        ("/home/me/tiny-imagenet", "tiny-imagenet"),
        ("digits:", "digits:"),
        ("cifar10:/home/me/a:b/ten", "cifar10:ten"),
        ("cifar10:/home/me/ten:two", "cifar10:ten:two"),
        ("/home/me/a:b/photos", "photos"),
        ("/home/me/2024:photos", "2024:photos"),
    ],
)
def test_a_record_does_not_say_where_the_pictures_lay(spec: str, name: str) -> None:
    assert spec_name(spec) == name


def test_a_record_holds_no_path_of_the_machine(tmp_path: Path) -> None:
    """Made from a run folder written by hand, with paths wherever a run folder has them."""
    run = runs_of("plain20")[0]
    folder = write_run(tmp_path / "run", run.recipe)
    record = records.make_record(run, folder, {"classes": 10, "variance": [math.nan, 1.0]}, None)
    assert str(tmp_path) not in json.dumps(asdict(record))
    assert not re.search(r'"(cifar10:)?/', json.dumps(asdict(record)))
    assert record.environment["data"] == "cifar10:data"
    assert record.measured["variance"] == [None, 1.0]
    assert record.seconds == 12.5


def runs_of(name: str) -> list[Run]:
    return [run for run in study_runs(STUDIES["degradation"], "laptop") if run.name == name]


def write_run(folder: Path, recipe: Recipe, right: Callable[[int], int] = lambda step: step // 10) -> Path:
    """The run folder of 1,200 steps, at each of which `right` of 128 answers were right."""
    folder.mkdir()
    environment = {"command": f"resnet train {folder}", "data": f"cifar10:{folder / 'data'}", "weights": str(folder)}
    environment |= {"device": "cpu (x)", "torch_threads": 2, "machine": "Linux", "versions": {"torch": "2.13.0"}}
    environment |= {"fingerprint": "ab" * 32, "derived": [], "notes": []}
    score = {"split": "test", "n": 100, "correct": 40, "top1": 0.4, "nll": 1.0}
    log = [{"step": 400, "seconds": 4.25, "score": None}, {"step": 800, "seconds": 4.25, "score": score}]
    log += [{"step": 1200, "seconds": 4.0, "score": score | {"correct": 60, "top1": 0.6}}]
    result = {"n": 100, "correct": 60, "top1": 0.6, "top1_interval": [0.5, 0.7], "nll": 0.9}
    (folder / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (folder / "steps.csv").write_text("".join(f"{step},1.0,{right(step)}\n" for step in range(1, 1201)))
    (folder / "result.json").write_text(json.dumps({"result": result | {"mistakes": [str(folder)]}, "split": "test"}))
    return folder


def test_a_curve_is_the_mean_of_the_iterations_since_its_last_point(tmp_path: Path) -> None:
    """All wrong up to step 600, then all right: 150 points of 8 iterations, 75 of them at 100 %."""
    run = runs_of("plain20")[1]
    folder = write_run(tmp_path / "run", run.recipe, lambda step: 128 * (step > 604))
    record = records.make_record(run, folder, {"classes": 10}, None)
    assert [x for x, _ in record.train_curve] == list(range(8, 1201, 8))
    assert [y for _, y in record.train_curve] == [100.0] * 75 + [50.0] + [0.0] * 74
    assert record.test_curve == [[800, 60.0], [1200, 40.0]]
    assert (record.train_error, record.test_error, record.held) == (0.0, pytest.approx(40.0), "test")
    assert (record.name, record.seed, record.budget) == ("plain20", 1, "laptop")


def test_the_final_training_error_is_that_of_the_last_hundred_iterations(tmp_path: Path) -> None:
    run = runs_of("plain20")[0]
    folder = write_run(tmp_path / "run", run.recipe, lambda step: 96 if step > 1100 else 0)
    assert records.make_record(run, folder, {"classes": 10}, None).train_error == pytest.approx(25.0)


def test_a_budget_s_records_in_order(tmp_path: Path) -> None:
    names = [("resnet20", 1), ("plain56", 0), ("resnet20", 0), ("plain20", 2)]
    put(tmp_path, *(written(name, seed) for name, seed in names), written("plain20", budget="workstation"))
    (tmp_path / "laptop" / "starts.json").write_text("[]")
    found = load_all(tmp_path, "laptop")
    assert [(record.name, record.seed) for record in found] == sorted(names)
    assert load_all(tmp_path, "full") == load_all(tmp_path / "nowhere", "laptop") == []
    groups = by_name(found)
    assert {name: [record.seed for record in group] for name, group in groups.items()} == {
        "plain20": [2],
        "plain56": [0],
        "resnet20": [0, 1],
    }


def test_a_recipe_with_its_open_values_filled_in_is_the_same() -> None:
    asked = STUDIES["degradation"].recipes("laptop")["plain20"]
    resolved = written("plain20").recipe
    resolved["model"] |= {"shortcut": "none", "stem_stride": 1}
    resolved["run"] |= {"device": "cpu", "threads": 2}
    resolved["schedule"]["epochs"] = 3.4
    check_same(asked, resolved, Path("there"))
    del resolved["optim"]["stochastic_depth"]  # a file from before there was such a key
    check_same(asked, resolved, Path("there"))
    for table, key, value in (("schedule", "steps", 900), ("model", "arch", "plain56-cifar"), ("data", "size", 32)):
        other = json.loads(json.dumps(resolved))
        other[table][key] = value
        with pytest.raises(UserError, match=rf"there: was made with another recipe \({table}\.{key} is {value}, "):
            check_same(asked, other, Path("there"))


# Where depth begins to pay: mean curves are smoothed over five points


def curve(*values: float) -> list[list[float]]:
    return [[10 * (i + 1), value] for i, value in enumerate(values)]


FLAT = [50.0] * 15
AWAY, BELOW = [60.0] * 5, [40.0] * 5


@pytest.mark.parametrize(
    ("deep", "at"),
    [
        # 60, 60, 60, 60, 60, then 56, 52, 48
        ([*AWAY, *BELOW, *BELOW], 80),
        # below from 80 on, above again: 44, 48, 52 at 130; no fourth stretch brings it back
        ([*AWAY, *BELOW, *AWAY], None),
        # 40, 44, 48, 52 …, back below at 130
        ([*BELOW, *AWAY, *BELOW], 130),
        ([*BELOW, *BELOW, *BELOW], 10),
        (FLAT, 10),
        ([*AWAY, *AWAY, *AWAY], None),
        ([*AWAY, *AWAY, 60, 60, 60, 60, 59.9], None),
    ],
)
def test_the_crossing_is_where_the_deep_network_gets_ahead_for_good(deep: list[float], at: float | None) -> None:
    groups = {
        "resnet20": [written("resnet20", train_curve=curve(*FLAT))],
        "resnet56": [written("resnet56", train_curve=curve(*deep))],
        "resnet32": [written("resnet32", study="table6", train_curve=curve(*[99.0] * 15))],
    }
    assert crossing(groups, [20, 32, 56]) == at


def test_the_crossing_is_of_the_mean_over_seeds() -> None:
    """One seed at 70, one at 20: 45 on average, which is below 50 from the first point."""
    seeds = [written("resnet56", seed, train_curve=curve(*[70.0 - 50 * seed] * 15)) for seed in range(2)]
    groups = {"resnet20": [written("resnet20", train_curve=curve(*FLAT))], "resnet56": seeds}
    assert crossing(groups, [20, 56]) == 10


def test_a_mean_curve_by_hand() -> None:
    seeds = [
        written("plain20", 0, train_curve=curve(10, 20, 30, 40, 50, 60), test_curve=[[3, 8.0], [6, 4.0]]),
        written("plain20", 1, train_curve=curve(30, 40, 50, 60, 70, 80), test_curve=[[3, 2.0], [6, 5.0]]),
    ]
    x, mean, low, high = mean_curve(seeds)
    assert x == [10, 20, 30, 40, 50, 60]
    assert low == [10, 15, 20, 25, 30, 40], "each the mean of itself and up to four before it"
    assert high == [value + 20 for value in low]
    assert mean == [value + 10 for value in low]
    assert mean_curve(seeds, test=True) == ([3, 6], [5.0, 4.5], [2.0, 4.0], [8.0, 5.0])


def test_seeds_that_diverged_at_once_have_no_curve() -> None:
    gone = written("plain20", 0, train_curve=[], test_curve=[], train_error=None, result=None, diverged=1)
    whole = written("plain20", 1, train_curve=curve(10, 20))
    assert mean_curve([gone, whole]) == mean_curve([whole])
    assert (gone.final_train_error, gone.test_error) == (90.0, 90.0)
    assert replace(gone, measured={"classes": 4}).test_error == 75.0

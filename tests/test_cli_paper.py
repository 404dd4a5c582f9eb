"""`resnet paper`: what it lists, shows, runs and refuses."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from paper_samples import STUDY, draw_pictures, put, written
from resnetkit.complexity import count
from resnetkit.events import Stopped
from resnetkit.paper import cost, running, tables
from resnetkit.paper.claims import ITEMS
from resnetkit.paper.studies import SCALES, STUDIES, Budget, study_runs

Resnet = Callable[..., tuple[int, str, str]]
COUNT = cache(count)
DEGRADATION = ("resnet20", "resnet56", "plain20", "plain56")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, on a screen of 80 columns, with each network counted once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(tables, "count", COUNT)


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


# list


@pytest.fixture
def known_costs(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """An hour, 2 h … in place of measured times."""
    hours = {name: 3600.0 * (index + 1) for index, name in enumerate(STUDIES)}
    found = {name: {"laptop": time, "workstation": 2 * time, "full": 100 * time} for name, time in hours.items()}
    monkeypatch.setattr(cost, "costs", lambda: found)
    return found


def test_everything_in_the_paper_is_listed(resnet: Resnet, known_costs: dict[str, dict[str, float]]) -> None:
    code, out, err = resnet("paper", "list", "--json")
    assert (code, err, out.isascii()) == (0, "", True)
    value = json.loads(out)
    assert value.keys() == {"items", "studies"}
    numbered = [f"figure{n}" for n in range(1, 8)] + [f"table{n}" for n in range(1, 15)]
    assert [item["key"] for item in value["items"]] == numbered
    for item in value["items"]:
        assert item.keys() == {"key", "title", "study", "computed", "why"}
        assert item["study"] in STUDIES or item["computed"] or item["why"], "what cannot be seen here says why"
    assert {study["name"]: study["seconds"] for study in value["studies"]} == known_costs


@pytest.mark.usefixtures("known_costs")
def test_the_list_fits_the_screen(resnet: Resnet) -> None:
    code, out, err = resnet("paper", "list")
    assert (code, err) == (0, "")
    items, studies, *_ = out.split("\n\n")
    assert max(widest(items), widest(studies)) <= 80
    lines = {line.split()[0]: line for line in studies.splitlines() if line.split()[0] in STUDIES}
    assert set(lines) == set(STUDIES)
    assert [cell.strip() for cell in lines["degradation"].split("about ")[1:]] == ["60 min", "2 h 0 min", "4 d 4 h"]
    assert all(item.key in items for item in ITEMS)


def test_the_cost_of_a_study_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A millisecond a picture for the smallest network; training pictures whole, scored ones a third."""
    asked: list[tuple[str, int, int]] = []

    def picture_seconds(arch: Any, size: int, batch: int) -> float:
        asked.append((arch.name, size, batch))
        return 1e-3

    monkeypatch.setattr(cost, "picture_seconds", picture_seconds)
    runs = [run for run in study_runs(STUDIES["degradation"], "laptop", 1) if run.name in ("resnet20", "resnet56")]
    trained = 1200 * 128
    shown = trained + (45_000 + 10_000 * (2 + trained / 45_000)) / 3
    assert cost.seconds(runs[:1]) == pytest.approx(1e-3 * shown)
    small, large = (count(cost.network_of(run.recipe), 16).multiply_adds for run in runs)
    assert cost.seconds(runs) == pytest.approx(1e-3 * shown * (1 + large / small))
    assert set(asked) == {("resnet20-cifar", 16, 128)}, "the smallest alone is timed"


@pytest.mark.parametrize("study", STUDIES)
def test_the_network_that_is_timed_is_the_one_that_is_trained(study: str) -> None:
    for run in study_runs(STUDIES[study], "laptop", 1):
        arch, model = cost.network_of(run.recipe), run.recipe.model
        assert arch.shortcut == (model.shortcut if model.shortcut != "auto" else arch.shortcut)
        assert (arch.name, arch.norm, arch.preactivation) == (model.arch, model.norm, model.preactivation)
        assert arch.stem_stride == (1 if arch.name.endswith("-cifar") else 4)


# show


@pytest.mark.parametrize("item", [item.key for item in ITEMS])
def test_every_item_can_be_shown(item: str, resnet: Resnet) -> None:
    code, out, err = resnet("paper", "show", item)
    assert (code, err) == (0, "")
    about = next(one for one in ITEMS if one.key == item)
    assert out.startswith(f"{about.name}: ")
    rows = [line for line in out.splitlines() if "  " in line]
    assert all(len(line) <= 80 for line in rows)
    value = json.loads(resnet("paper", "show", item, "--json")[1])
    assert value.keys() == {"title", "head", "rows", "notes"}
    assert all(len(row) == len(value["head"]) for row in value["rows"])
    assert value["rows"] or value["notes"]


# As printed in arXiv 1512.03385; top-1, then top-5 where there are both.
PRINTED = {
    "table2": {"plain18": "27.94", "resnet18-A": "27.88", "plain34": "28.54", "resnet34-A": "25.03"},
    "table3": {
        "VGG-16": "28.07 / 9.33",
        "plain34": "28.54 / 10.02",
        "resnet34-A": "25.03 / 7.76",
        "resnet34-B": "24.52 / 7.46",
        "resnet34-C": "24.19 / 7.40",
        "resnet50": "22.85 / 6.71",
        "resnet101": "21.75 / 6.05",
        "resnet152": "21.43 / 5.71",
    },
    "table4": {
        "resnet34-B": "21.84 / 5.71",
        "resnet34-C": "21.53 / 5.60",
        "resnet50": "20.74 / 5.25",
        "resnet101": "19.87 / 4.60",
        "resnet152": "19.38 / 4.49",
    },
    "table5": {"ensemble of six, test set, top-5": "3.57"},
    "table6": {"20": "8.75", "32": "7.51", "44": "7.17", "56": "6.97", "110": "6.43", "1202": "7.93"},
    "table7": {
        "VGG-16, VOC 07+12": "73.20",
        "ResNet-101, VOC 07+12": "76.40",
        "VGG-16, 07++12": "70.40",
        "ResNet-101, 07++12": "73.80",
    },
    "table8": {"VGG-16, mAP@[.5, .95]": "21.20", "ResNet-101, mAP@[.5, .95]": "27.20"},
}


@pytest.mark.parametrize("item", PRINTED)
def test_the_papers_numbers(item: str, resnet: Resnet) -> None:
    value = json.loads(resnet("paper", "show", item, "--json")[1])
    column = 3 if item == "table6" else 1
    assert value["head"][column].startswith("paper")
    if item == "table6":
        assert [row[1] for row in value["rows"]] == ["0.27M", "0.46M", "0.66M", "0.85M", "1.7M", "19.4M"]
    assert {row[0]: row[column] for row in value["rows"]} == PRINTED[item]


@pytest.mark.parametrize("budgets", [["laptop"], ["laptop", "workstation"], ["laptop", "workstation", "full"]])
def test_ours_stand_beside_the_papers(budgets: list[Budget], resnet: Resnet) -> None:
    for budget in budgets:
        put(Path("mine"), *(written("resnet20", seed, budget=budget) for seed in range(3)))
        put(Path("mine"), written("resnet56", budget=budget, result=None, diverged=9))
        put(Path("mine"), written("imagenet-plain34", budget=budget, study="imagenet"))
    value = json.loads(resnet("paper", "show", "table6", "--results", "mine", "--json")[1])
    assert value["head"][4:] == [f"ours, {budget}" for budget in budgets]
    rows = {row[0]: row[4:] for row in value["rows"]}
    assert rows["20"] == ["45.0\u00a0% (45.0 to 45.0)"] * len(budgets)
    assert rows["56"] == ["90.0\u00a0% (one seed)"] * len(budgets), "as wrong as a guess"
    assert rows["32"] == ["not run"] * len(budgets)
    value = json.loads(resnet("paper", "show", "table2", "--results", "mine", "--json")[1])
    assert {row[0]: row[2] for row in value["rows"]}["plain34"] == "45.0\u00a0% (one seed)"
    for item in ("table2", "table3", "table6"):
        out = resnet("paper", "show", item, "--results", "mine")[1]
        table = out.split("\n\n")[1]
        assert widest(table) <= 80
        assert "…" not in table, "no number is cut"
        assert table.count("45.0\u00a0%") == len(budgets)


# run, report


@pytest.mark.slow
def test_a_study_from_the_command_line(resnet: Resnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = draw_pictures(tmp_path / "ten")
    monkeypatch.setitem(STUDIES, "degradation", STUDY)
    words = ("paper", "run", "degradation", "--data", f"cifar10:{data}", "--seeds", "1")
    code, out, err = resnet(*words, "--json")
    assert (code, out.isascii()) == (0, True)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["run"], row["seed"], row["budget"]) for row in rows] == [
        ("resnet8", 0, "laptop"),
        ("plain8", 0, "laptop"),
    ]
    for row in rows:
        record = json.loads((tmp_path / "results" / "paper" / "laptop" / f"{row['run']}-seed0.json").read_text())
        assert row["train_error"] == record["train_error"]
        assert row["test_error"] == pytest.approx(100 * (1 - record["result"]["top1"]))
    assert err.startswith("1 of 2: resnet8, seed 0   training error ")
    assert {path.name for path in (tmp_path / "runs" / "paper" / "laptop").iterdir()} == {
        "resnet8-seed0",
        "plain8-seed0",
    }
    code, out, err = resnet(*words)
    assert (code, err) == (0, "")
    assert out.count("(was there)") == 2
    assert out.endswith("next: resnet paper report\n")
    assert widest(out) <= 80
    code, out, err = resnet("paper", "report")
    assert (code, out, err) == (0, "results/paper/report.html: 2 runs\n", "")
    page = (tmp_path / "results" / "paper" / "report.html").read_text()
    assert "degradation, laptop: 4 of 6 runs are missing" in page
    assert "resnet paper run degradation --budget laptop" in page


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_study_says_how_to_go_on(
    signum: int, code: int, resnet: Resnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Iterator[Any]:
        raise Stopped(signum, Path("runs/paper/laptop/plain20-seed0"), 1234)
        yield

    monkeypatch.setattr(running, "run_study", stopped)
    got, out, err = resnet("paper", "run", "degradation", "--data", "cifar10:my data", "--seeds", "2")
    assert (got, out) == (code, "")
    assert err.startswith(
        "resnet: stopped in plain20-seed0 after step 1,234; go on with: resnet paper run degradation "
    )
    assert "--data 'cifar10:my data' --budget laptop --seeds 2" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("paper rnu degradation", "no such command 'rnu'; did you mean 'run'? (see: resnet paper --help)"),
        ("paper show tabel1", "did you mean 'table1'?"),
        ("paper show figure77", "did you mean 'figure7'?"),
        ("paper show xyzzy", "xyzzy: no table or figure of the paper"),
        ("paper show table1 --results", "option '--results' requires an argument"),
        ("paper run degredation --data x", "did you mean 'degradation'?"),
        ("paper run degradation", "missing option '--data' (see: resnet paper run --help)"),
        ("paper run degradation --data nowhere", "nowhere: no such folder or table"),
        ("paper run degradation --data cifar10:nowhere", "cifar10:nowhere: no such folder"),
        ("paper run degradation --data x --budget huge", "'huge' is not one of 'laptop', 'workstation', 'full'"),
        ("paper run degradation --data x --seeds 0", "0 is not in the range x>=1"),
        ("paper run degradation --data x --seeds many", "'many' is not a valid integer"),
        ("paper report", "nothing was run yet; begin with: resnet paper run degradation --data cifar10:DIR"),
        ("paper report --results nowhere", "nowhere: nothing was run yet"),
        ("paper report --out page.txt", "--out page.txt: a page ends in .html"),
    ],
)
def test_wrong_input_gets_one_sentence(line: str, message: str, resnet: Resnet, tmp_path: Path) -> None:
    code, out, err = resnet(*line.split())
    assert (code, out) == (2, "")
    assert err.startswith("resnet: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


@pytest.mark.parametrize("command", [("show", "table6"), ("report",)], ids=str)
def test_a_damaged_record_is_named(command: tuple[str, ...], resnet: Resnet) -> None:
    put(Path("mine"), *(written(name) for name in DEGRADATION))
    Path("mine/laptop/plain20-seed0.json").write_text('{"format": 1')
    code, out, err = resnet("paper", *command, "--results", "mine")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("resnet: mine/laptop/plain20-seed0.json: cannot be read")


def test_the_budgets_of_the_command_line_are_those_of_the_studies(resnet: Resnet) -> None:
    _, _, err = resnet("paper", "run", "degradation", "--data", "x", "--budget", "none")
    assert [word.strip("',") for word in err.split("one of")[1].split("(")[0].split()] == list(SCALES)

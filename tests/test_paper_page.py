"""The page of the studies: it shows the records, whatever they hold, and nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import pytest

from paper_samples import layer_numbers, put, written
from resnetkit.complexity import count
from resnetkit.errors import UserError
from resnetkit.paper import drawings, tables
from resnetkit.paper import page as page_module
from resnetkit.paper.claims import ITEMS
from resnetkit.paper.page import state_of, write_page
from resnetkit.paper.records import Record
from resnetkit.paper.studies import STUDIES, Budget, study_runs
from test_report import NASTY, SHOWN, Page, assert_alone

COUNT = cache(count)
DEGRADATION = ("resnet20", "resnet56", "plain20", "plain56")


def degradation(budget: Budget = "laptop", seeds: int = 2) -> list[Record]:
    return [written(name, seed, budget=budget) for seed in range(seeds) for name in DEGRADATION]


def starts() -> list[dict[str, Any]]:
    return [
        {"arch": arch, "norm": norm, "init": init, "size": 16, "seed": 0, **layer_numbers(55)}
        for arch in ("plain56-cifar", "resnet56-cifar")
        for norm in ("batch", "none")
        for init in ("he", "xavier", "small")
    ]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of every study at the laptop's budget; of the starts without normalisation one has diverged."""
    results = tmp_path_factory.mktemp("everything")
    for study in ("initialisation", "preactivation", "imagenet"):
        names = [name for name in STUDIES[study].recipes("laptop") if name not in DEGRADATION]
        put(results, *(written(name, study=study) for name in names))
    gone = {"diverged": 1, "train_curve": [], "test_curve": [], "train_error": None, "result": None}
    put(results, *degradation(), written("plain20-nobn-small", study="initialisation", **gone))
    (results / "laptop" / "starts.json").write_text(json.dumps(starts()))
    return results


@pytest.fixture(scope="module")
def page(everything: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    assert write_page(everything, path) == 8 + 8 + 2 + len(STUDIES["imagenet"].recipes("laptop"))
    return Page(path.read_bytes().decode("utf-8"))


@pytest.fixture(autouse=True)
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of the tables are the same on every page, and take longer to count than all the rest."""
    monkeypatch.setattr(page_module, "TABLES", ("table6",))
    monkeypatch.setattr(tables, "count", COUNT)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at no figure: what stands in their place says the same."""

    def empty(_figure: object, name: str, message: str, **_: bool) -> str:
        return f'<svg class="{name}" role="img" aria-label="{escape(message)}" viewBox="0 0 100 100"></svg>'

    monkeypatch.setattr(drawings, "svg", empty)


def page_of(results: Path) -> Page:
    write_page(results, results / "report.html")
    return Page((results / "report.html").read_bytes().decode("utf-8"))


def articles(page: Page) -> set[str]:
    """The experiments shown, as `curves-laptop`."""
    return {a["aria-labelledby"] for tag, a in page.starts if tag == "article"}


def states(page: Page) -> dict[str, str]:
    return {name: state for name, _, state in page.rows("Everything in the paper")}


def test_the_page_stands_alone(page: Page) -> None:
    assert_alone(page)
    for tag, attributes in page.starts:
        linked = {name: value for name, value in attributes.items() if "http" in value or value.startswith("//")}
        assert not linked, f"{tag}: an address is only ever text"
    assert not any("/home/" in text or "/tmp/" in text for text in page.texts("main"))


def test_every_experiment_is_shown(page: Page) -> None:
    kinds = {key.removesuffix("-laptop") for key in articles(page)}
    assert {"curves", "existence", "responses", "gradients", "starts", "initialisation"} <= kinds
    assert {"preactivation", "imagenet"} <= kinds
    assert len(page.texts("dt")) >= 2 * len(kinds), "each with its settings and where it leaves the paper"


def test_every_figure_says_what_it_shows(page: Page) -> None:
    figures = [attributes for tag, attributes in page.starts if tag == "svg"]
    assert len(figures) >= len(articles(page))
    for attributes in figures:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"].split()) > 5
        _, _, width, height = map(float, attributes["viewbox"].split())
        assert min(width, height) > 50
    assert len(page.texts("figcaption")) == len(figures)
    assert "#00000" not in page.source, "every stand-in colour was replaced"
    assert "nan" not in page.source.casefold().replace("finance", "")


def test_identifiers_and_places_in_the_page(page: Page) -> None:
    named = [attributes["id"] for _, attributes in page.starts if "id" in attributes]
    assert len(named) == len(set(named))
    wanted = {a["href"][1:] for _, a in page.starts if a.get("href", "").startswith("#")}
    wanted |= {a["aria-labelledby"] for _, a in page.starts if "aria-labelledby" in a}
    wanted |= {place for _, a in page.starts for value in a.values() for place in re.findall(r"url\(#([^)]+)\)", value)}
    assert wanted <= set(named)


def test_the_numbers_are_those_of_the_records(page: Page) -> None:
    """41.25 and 42.25: mean 41.75, standard deviation of it 0.5, and 12.706 of those to each side."""
    labels = {a["class"]: a["aria-label"] for tag, a in page.starts if tag == "svg"}
    assert "41.8\u00a0% (35.4 to 48.1)" in labels["curves-laptop"]
    assert "1 diverged" in page.source
    cells = {row[0]: row for row in page.rows("Table 6: test error on CIFAR-10")}
    assert cells["20"][1:5] == ["0.27M", "269,722", "8.75", "45.0 % (45.0 to 45.0)"]
    assert cells["110"][4] == "not run"


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    put(tmp_path / "a", *degradation(seeds=1)[:2])
    put(tmp_path / "b", *reversed(degradation(seeds=1)[:2]))
    pages = [tmp_path / f"{name}.html" for name in "ab"]
    for path in pages:
        write_page(path.with_suffix(""), path)
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.html", "b", "b.html"], "no litter"


@pytest.mark.usefixtures("undrawn")
def test_any_name_is_shown_and_none_is_obeyed(tmp_path: Path) -> None:
    records = [
        replace(record, environment=record.environment | {"data": f"cifar10:{NASTY}", "device": NASTY})
        for record in degradation(seeds=1)
    ]
    page = page_of(put(tmp_path, *records))
    assert_alone(page)
    assert not [tag for tag, _ in page.starts if tag == "script"]
    settings = [text for text in page.texts("dd") if SHOWN.strip() in text]
    assert settings, "the data and the device as they are called"
    assert '<b>"cat"' not in page.source


# What is there, what is missing


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("count", "shown"),
    [(1, set()), (2, {"curves"}), (3, {"curves", "responses"}), (4, {"curves", "responses", "existence"})],
)
def test_a_half_finished_study_shows_what_is_there(count: int, shown: set[str], tmp_path: Path) -> None:
    page = page_of(put(tmp_path, *degradation(seeds=1)[:count]))
    assert_alone(page)
    assert {f"{kind}-laptop" for kind in shown} <= articles(page)
    finished = {name for name, state in states(page).items() if state.startswith("reproduced at reduced scale")}
    assert finished == ({"Figure 1", "Figure 6", "Figure 7"} if count == 4 else set())
    cells = {row[0]: row for row in page.rows("Table 6: test error on CIFAR-10")}
    assert (cells["20"][4], cells["32"][4]) == ("45.0 % (one seed)", "not run")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("there", [1, 2, 4, 11])
def test_a_half_finished_study_names_what_is_missing(there: int, tmp_path: Path) -> None:
    whole = degradation(seeds=3)
    page = page_of(put(tmp_path, *whole[:there]))
    (line,) = (text for text in page.texts("li") if text.startswith("degradation, laptop: "))
    assert f"{12 - there} of 12 runs" in line
    assert "resnet paper run degradation --budget laptop" in line


@pytest.mark.usefixtures("undrawn")
def test_a_finished_study_is_not_named(tmp_path: Path) -> None:
    whole = degradation(seeds=3)
    names = {run.title for run in study_runs(STUDIES["degradation"], "laptop")}
    assert {f"{record.name}-seed{record.seed}" for record in whole} == names
    page = page_of(put(tmp_path, *whole))
    assert not any(text.startswith("degradation") for text in page.texts("li")), "nothing is missing any more"


@pytest.mark.usefixtures("undrawn")
def test_what_was_run_at_which_budget(tmp_path: Path) -> None:
    names = [run.name for run in study_runs(STUDIES["degradation"], "full", 1)]
    put(tmp_path, *degradation(seeds=1), *(written(name, budget="full") for name in names))
    page = page_of(tmp_path)
    found = states(page)
    assert {found[name] for name in ("Figure 1", "Figure 6", "Figure 7")} == {"reproduced"}
    assert found["Table 6"] == "recipe ready: resnet paper run table6", "1202 layers are missing"
    assert found["Table 2"] == "recipe ready: resnet paper run imagenet"
    assert found["Table 1"].startswith("reproduced: ")
    assert found["Table 5"].startswith("not possible here: ")
    assert {f"curves-{budget}" for budget in ("laptop", "full")} <= articles(page)
    assert len(found) == 7 + 14, "every figure and table of the paper"


def without(*names: str) -> Callable[[Record], Record]:
    """Runs that diverged at their first step."""
    gone = {"diverged": 1, "train_curve": [], "test_curve": [], "train_error": None, "result": None}

    def change(record: Record) -> Record:
        measured = {"classes": 10, "jpeg": False}
        return replace(record, **gone, measured=measured) if record.name in names else record

    return change


def early(record: Record) -> Record:
    """The first seed diverged before anything was scored."""
    if record.seed:
        return record
    curve, measured = record.train_curve[:2], {"classes": 10, "jpeg": False}
    return replace(
        record, train_curve=curve, test_curve=[], train_error=None, result=None, diverged=21, measured=measured
    )


@pytest.mark.parametrize(
    "change", [without("plain56"), without("resnet20", "resnet56"), without(*DEGRADATION), early],
    ids=["a plain one", "the residual ones", "all", "one seed, later"],
)  # fmt: skip
def test_there_is_a_page_whatever_diverged(change: Callable[[Record], Record], tmp_path: Path) -> None:
    budget: Budget = "workstation"  # where the crossing is looked for
    page = page_of(put(tmp_path, *map(change, degradation(budget))))
    assert_alone(page)
    assert len(states(page)) == 21


def test_nothing_was_run_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing was run yet; begin with: resnet paper run degradation "):
        write_page(tmp_path / "nowhere", tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    put(tmp_path, *degradation(seeds=1))
    (tmp_path / "laptop" / "plain20-seed7.json").write_text("{")
    with pytest.raises(UserError, match=r"plain20-seed7\.json: cannot be read"):
        write_page(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    put(tmp_path / "results", *degradation(seeds=1))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/report\.html: cannot be written .*; choose another --out"):
        write_page(tmp_path / "results", tmp_path / "file" / "report.html")


@pytest.mark.parametrize(("deep", "state"), [(0.3, "reproduced at reduced scale"), (0.1, "not reproduced")])
def test_a_study_that_shows_the_contrary_is_not_called_reproduced(deep: float, state: str) -> None:
    networks = ("plain18", "resnet18-A", "plain34", "resnet34-A", "resnet34-B", "resnet34-C")
    shares = dict.fromkeys(networks, 0.2) | {"resnet34-A": deep}
    found = [written(f"imagenet-{name}", study="imagenet", result={"top1": share}) for name, share in shares.items()]
    table2 = next(item for item in ITEMS if item.key == "table2")
    assert state in state_of(table2, {"laptop": found, "workstation": [], "full": []})

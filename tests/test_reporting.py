"""`resnet report`: abstention, kinds of pictures and typical ones against their definitions, and the page of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import resnetkit
from resnetkit.abstaining import abstaining, at_shares
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import with_settings
from resnetkit.reliability import reliability
from resnetkit.report_charts import coverage_curve, reliability_diagram
from resnetkit.reporting import report
from resnetkit.slices import fisher, holm, slices, sources
from resnetkit.typical import of_classes, typicality

pytestmark = pytest.mark.usefixtures("one_thread")


@given(st.lists(st.tuples(st.sampled_from((0.2, 0.5, 0.5001, 0.9)), st.booleans()), min_size=1, max_size=40))
def test_abstaining_counts_the_pictures_at_or_above_each_threshold(answers: list[tuple[float, bool]]) -> None:
    sure, right = np.array([a for a, _ in answers]), np.array([b for _, b in answers])
    rows = abstaining(sure, right)
    assert [row.threshold for row in rows] == sorted(set(sure.tolist()), reverse=True)
    for row in rows:
        inside = sure >= row.threshold
        assert (row.n, row.correct) == (inside.sum(), right[inside].sum())
        assert row.coverage == pytest.approx(inside.mean())
        assert row.interval[0] <= row.accuracy <= row.interval[1]
    assert rows[-1].coverage == 1
    assert rows[-1] in at_shares(rows)


def test_fisher_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs scipy, the extra 'imagenet'")
    for correct, n, right, total in ((3, 10, 90, 100), (10, 10, 30, 40), (0, 12, 50, 80), (700, 1000, 8000, 10000)):
        table = [[correct, n - correct], [right - correct, total - n - right + correct]]
        assert fisher(correct, n, right, total) == pytest.approx(stats.fisher_exact(table).pvalue, rel=1e-6)


def test_holm_is_the_papers_procedure() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def values(n: int, dice: np.random.Generator) -> dict[str, np.ndarray]:
    side = dice.integers(40, 400, n).astype(float)
    return {"width": side, "height": side, "aspect": np.ones(n), "brightness": dice.uniform(0, 255, n)}


def test_a_planted_weakness_stands_out_and_nothing_else_does() -> None:
    dice = np.random.default_rng(0)
    labels, measured = dice.integers(0, 5, 2000), values(2000, dice)
    right = dice.random(2000) < np.where(measured["brightness"] < 64, 0.6, 0.9)
    found = slices(right, labels, [f"{label}/x.png" for label in labels], measured)
    assert (found[0].kind, found[0].name) == ("brightness", "darkest quarter")
    assert {each.kind for each in found if each.stands_out} == {"brightness"}
    assert found[0].expected > found[0].interval[1], "its classes do not explain it"


def test_false_alarms_are_few_where_nothing_is_planted() -> None:
    """Holm holds the chance of one false alarm among all kinds below 5 %."""
    dice = np.random.default_rng(1)
    alarms = 0
    for _ in range(60):
        labels = dice.integers(0, 4, 400)
        names = [f"camera{dice.integers(0, 8)}/{i}.png" for i in range(400)]
        alarms += any(each.stands_out for each in slices(dice.random(400) < 0.85, labels, names, values(400, dice)))
    assert alarms <= 8


def test_folders_that_are_the_classes_are_no_slices() -> None:
    labels = np.array([0, 0, 1, 1])
    assert sources(["a/1.png", "a/2.png", "b/1.png", "b/2.png"], labels) == []
    found = sources(["a/x/1.png", "a/y/2.png", "b/1.png", "b/2.png"], labels)
    assert {name for _, name, _ in found} == {"a/x", "a/y", "b"}


def test_the_odd_one_out_is_the_least_typical() -> None:
    dice = np.random.default_rng(0)
    means = np.eye(3)[[0] * 10 + [1] * 10]
    vectors = (means + dice.normal(0, 0.05, (20, 3))).astype(np.float32)
    vectors[4] = (0, 0, 1)
    labels = np.repeat((0, 1), 10)
    table = np.tile((0.7, 0.3), (20, 1))
    table[15] = (0.99, 0.01)
    table[10] = (0.1, 0.9)
    first, second = of_classes(vectors, table, labels, 3)
    assert first.least[0] == 4
    assert typicality(vectors, labels)[4] < 0.3
    assert first.wrong == ()
    assert second.wrong[0] == 15, "the surest mistake first"
    assert 10 not in second.wrong
    assert not set(first.most) & set(first.least)


def test_charts_say_what_they_show() -> None:
    dice = np.random.default_rng(0)
    sure = dice.uniform(0.5, 1, 500)
    labels = (dice.random(500) > sure - 0.2).astype(np.int64)
    chart = reliability_diagram(reliability(np.stack([sure, 1 - sure], 1), labels))
    assert "surer than it is right" in chart.message
    gap = float(re.search(r"by ([\d.]+) points", chart.message)[1])  # type: ignore[index]
    assert gap == pytest.approx(100 * (sure.mean() - (labels == 0).mean()), abs=0.01)
    curve = coverage_curve(abstaining(sure, labels == 0))
    assert f"{100 * (labels == 0).mean():.2f} %" in curve.message
    assert 'role="img"' in curve.svg


def settings(*more: str) -> Recipe:
    given = ("model.arch=resnet8-cifar", "optim.batch=16", "schedule.epochs=2", "run.threads=1", "run.device=cpu")
    return with_settings(Recipe(), [*given, *more])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds of pictures, divided, in folders with two cameras each."""
    folder, dice = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, many in (("train", 24), ("val", 20)):
        for label, name in enumerate(("ant", "<b>ee", "cat")):
            for i in range(many):
                pixels = dice.normal(90, 40, (20, 20 + 4 * (i % 3), 3))
                pixels[:, :, label] += 70 * dice.random()
                path = folder / split / name / f"camera{i % 2}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        resnetkit.train(photos, recipe=settings(f"run.seed={seed}"), out=folder / f"run{seed}").run for seed in (0, 1)
    ]


def test_the_page_of_a_run(runs: list[Path], tmp_path: Path, resnet: Callable[..., tuple[int, str, str]]) -> None:
    card = tmp_path / "card.md"
    code, printed, complaint = resnet("report", str(runs[0]), "--against", str(runs[1]), "--card", str(card), "--json")
    assert (code, complaint) == (0, "")
    found, page = json.loads(printed), (runs[0] / "report.html").read_text()
    recorded = json.loads((runs[0] / "result.json").read_text())["result"]
    assert found["result"]["confusion"] == recorded["confusion"]
    assert found["result"]["nll"] == pytest.approx(recorded["nll"], rel=1e-5)
    assert found["notes"] == []
    assert sum(each["n"] for each in found["slices"] if each["kind"] == "folder") == 60
    assert found["answered"][0]["n"] == found["answered"][0]["coverage"] * 60 == 60
    top1 = found["against"]["top1"]
    assert top1["both"] + top1["only_b"] == recorded["correct"], "B is the run of the page"
    for heading in ("When to rely on it", "Kinds of pictures", "Typical and not", "Against another model"):
        assert f">{heading}</h2>" in page
    assert "<b>ee" not in page
    assert page.count("<img") == len(re.findall(r'<img[^>]* alt="[^"]+"', page))
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert len(page) < 5_000_000
    assert "model-index" in card.read_text()


def test_the_same_run_gives_the_same_page(runs: list[Path], tmp_path: Path) -> None:
    pages = [report(runs[1], out=tmp_path / f"{i}.html").page.read_bytes() for i in range(2)]
    assert pages[0] == pages[1]


def test_what_cannot_be_is_said_before_any_work(
    runs: list[Path], tmp_path: Path, resnet: Callable[..., tuple[int, str, str]]
) -> None:
    taken = tmp_path / "taken.html"
    taken.write_text("mine")
    for arguments, message in (
        ((str(tmp_path),), "not a run folder"),
        ((str(runs[0]), "--out", str(taken)), "exists already"),
        ((str(runs[0]), "--card", str(tmp_path / "no" / "card.md")), "there is no folder"),
        ((str(runs[0]), "--against", str(tmp_path / "none")), "none"),
    ):
        code, _, complaint = resnet("report", *arguments)
        assert code == 2
        assert message in complaint
    assert taken.read_text() == "mine"


def test_a_run_with_pictures_to_check_with_elsewhere(photos: Path, tmp_path: Path) -> None:
    """What is asked again is what was held back, never what was trained on."""
    finished = resnetkit.train(
        photos / "train", val=photos / "val", recipe=settings("schedule.epochs=1"), out=tmp_path / "run"
    )
    found = report(finished.run, out=tmp_path / "page.html")
    assert found.deeper.result.n == finished.result.n == 60
    assert found.deeper.result.confusion == finished.result.confusion

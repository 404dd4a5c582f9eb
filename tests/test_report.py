"""The page of a run: it holds the run's numbers and nothing from elsewhere, whatever names and pictures it meets."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import resnetkit.report
from resnetkit.data.pictures import Arrays, Data, Files
from resnetkit.errors import UserError
from resnetkit.evaluation import Result, measure
from resnetkit.recipe import Model, Recipe
from resnetkit.recipe_file import dumps, to_dict
from resnetkit.report import class_names, plain, short_name, spread, write_report

VOID = {"meta", "link", "img", "br"}
NASTY = "<b>\"cat\" & 'dog'</b> $x^2$ \udce9\x07"  # markup, quotes, mathematics, a byte that is not UTF-8, a bell
SHOWN = "<b>\"cat\" & 'dog'</b> $x^2$ \ufffd\ufffd"


@dataclass
class Page(HTMLParser):
    """A page taken apart: elements as (tag, attributes, text inside), in the order of their ends."""

    source: str
    found: list[tuple[str, dict[str, str], str]] = field(default_factory=list)
    starts: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(self.source)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.starts.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes, []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)

    def handle_endtag(self, tag: str) -> None:
        name, attributes, text = self.open.pop()
        assert name == tag, f"</{tag}> closes <{name}>"
        self.found.append((tag, attributes, re.sub(r"[\s\u00a0]+", " ", "".join(text)).strip()))

    def texts(self, tag: str, **wanted: str) -> list[str]:
        """The texts of all elements of that tag whose attributes have these values (`class_` for class)."""
        pairs = {name.rstrip("_"): value for name, value in wanted.items()}
        return [t for name, a, t in self.found if name == tag and pairs.items() <= a.items()]

    def rows(self, under: str) -> list[list[str]]:
        """The cells of the body rows of the table in the region of that label."""
        part = self.source.split(f'aria-label="{under}"')[1].split("</table>")[0]
        body = part.split("<tbody>")[1].split("</tbody>")[0]
        cells = (Page(row).found for row in re.findall(r"<tr>.*?</tr>", body, flags=re.DOTALL))
        return [[text for tag, _, text in row if tag in ("td", "th")] for row in cells]


def answers(data: Data, right: float = 0.8, seed: int = 0) -> Result:
    """The Result of made-up probabilities on all pictures of the data."""
    rng = np.random.default_rng(seed)
    n, k = len(data), len(data.classes)
    table = rng.dirichlet(np.ones(k), n)
    taken = np.where(rng.random(n) < right, data.labels, rng.integers(0, k, n))
    table[np.arange(n), taken] += 2
    values = measure(table / 3, data.labels, data.classes, [data.pictures.name(i) for i in range(n)])
    return Result(**values, bad={}, protocol="photos, val, single centre crop; fp32")


def make_data(k: int, n: int = 240, side: int = 8, classes: tuple[str, ...] | None = None, part: str = "x") -> Data:
    rng = np.random.default_rng(k)
    pixels = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    classes = classes or tuple(f"kind-{i:02}" for i in range(k))
    return Data("photos", Arrays(pixels, ((part, n),)), np.arange(n) % k, classes, {"val": np.arange(n)})


def make_log(epochs: int, every: int = 1) -> list[dict[str, Any]]:
    lines = []
    for epoch in range(1, epochs + 1):
        score = {"split": "val", "n": 400, "correct": 4 * epoch, "top1": epoch / 100, "nll": 1.5}
        values = {"epoch": epoch, "step": epoch * 10, "train_loss": 2.0 / epoch, "train_top1": 0.5}
        lines.append({**values, "score": score if epoch % every == 0 else None})
    return lines


def make_run(folder: Path, result: Result, log: Any = None, notes: Sequence[str] = (), **rest: Any) -> Path:
    """A run folder as training leaves it, written by hand."""
    folder.mkdir(parents=True)
    environment = {"device": "cpu (Some Processor)", "torch_threads": 2, "machine": "Linux, 2 cores"}
    environment |= {"command": "resnet train photos", "data": "/home/me/photos/", "weights": None}
    environment |= {"versions": {"resnetkit": "0.1.0", "torch": "2.13.0"}, "fingerprint": "ab" * 32, "notes": notes}
    environment |= {"derived": ["batch 64: 1,000 training pictures"]}
    held = {"result": result.to_dict(), "split": "val", "problems": []} | rest
    (folder / "recipe.json").write_text(json.dumps(to_dict(Recipe(model=Model(arch="resnet34")))))
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = make_log(6) if log is None else log
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps(held))
    return folder


def page_of(run: Path, data: Data | None) -> Page:
    path = write_report(run, data)
    assert path == run / "report.html"
    assert path.stat().st_size <= 5_000_000
    return Page(path.read_bytes().decode("utf-8"))


def assert_alone(page: Page) -> None:
    """Nothing is fetched: every address is a place in the page or carries its content."""
    for tag, attributes in page.starts:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "poster", "action"):
                assert value.startswith(("#", "data:")), value
            assert "url(" not in value or re.fullmatch(r"url\(#[\w-]+\)", value), value
    (style,) = page.texts("style")
    assert "@import" not in style
    assert "url(" not in style
    assert "http" not in page.source


@pytest.mark.parametrize("k", [2, 10, 20, 45])
def test_the_page_is_whole_and_alone(tmp_path: Path, k: int) -> None:
    data = make_data(k)
    page = page_of(make_run(tmp_path / "run", answers(data)), data)
    assert_alone(page)
    assert page.starts[0] == ("html", {"lang": "en"})
    levels = [int(tag[1]) for tag, _ in page.starts if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels)), "headings skip no level"
    ids = [attributes["id"] for _, attributes in page.starts if "id" in attributes]
    assert len(ids) == len(set(ids)), "charts share the page's name space"
    used = re.findall(r'(?:url\(#|href="#|labelledby=")([\w-]+)', page.source)
    assert set(used) <= set(ids)
    assert all(a["alt"] for tag, a in page.starts if tag == "img")
    assert all(a["role"] == "img" and a["aria-label"].endswith(".") for tag, a in page.starts if tag == "svg")
    assert all(a["scope"] in ("row", "col") for tag, a in page.starts if tag == "th")
    assert ("Confusion matrix" in page.texts("h3")) == (k <= 30)
    assert ('aria-label="Largest confusions"' in page.source) == (k > 15)


def test_numbers_are_those_of_the_result(tmp_path: Path) -> None:
    data = make_data(10)
    result = answers(data)
    page = page_of(make_run(tmp_path / "run", result), data)
    low, high = result.top1_interval
    assert page.texts("h1") == ["resnet34 on photos"]
    assert page.texts("p", class_="big") == [f"{100 * result.top1:.2f} %"]
    sentence = f"{result.correct} of 240 right; 95 % interval {100 * low:.2f} to {100 * high:.2f} %"
    assert sentence in page.texts("p")
    assert result.top5 is not None
    measures = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    assert [name for name in measures if name[-1] in "%s"] == [
        f"Top-5 {100 * result.top5:.2f} %",
        f"Balanced accuracy {100 * result.balanced_accuracy:.2f} %",
        f"Negative log-likelihood {result.nll:.4f} nats",
        f"Expected calibration error {100 * result.ece:.2f} %",
    ]
    assert "10.00 %" in next(text for text in page.texts("p") if "commonest" in text)
    assert f"How it was measured: {result.protocol}. Every picture counts once." in page.texts("p")
    counts = page.source.split('<svg class="confusion"')[1].split("</svg>")[0]
    cells = [int(text) for text in re.findall(r">([\d,]+)</text>", counts)]
    assert cells == [count for row in result.confusion for count in row if count]
    rows = page.rows("Class by class")
    expected = [
        [row.name, f"{row.correct} of {row.n}", f"{100 * row.top1:.1f} %", f"{100 * low:.1f} to {100 * high:.1f} %"]
        for row in sorted(result.per_class, key=lambda row: row.top1)
        for low, high in [row.top1_interval]
    ]
    assert [row[:4] for row in rows] == expected, "the worst class first"
    for name, *_, taken in rows:
        others = [(c, data.classes[j]) for j, c in enumerate(result.confusion[data.classes.index(name)])]
        most = max(count for count, other in others if other != name)
        assert taken in {f"{other} ({count})" for count, other in others if count == most and other != name}
    assert [text for text in page.texts("li") if "→" in text] == [
        f"{m.label} → {m.answer} ({100 * m.probability:.1f} %) {m.path}" for m in result.mistakes
    ]


def test_many_classes_are_told_by_their_largest_confusions(tmp_path: Path) -> None:
    data = make_data(40, n=2000)
    result = answers(data)
    page = page_of(make_run(tmp_path / "run", result), data)
    rows = page.rows("Largest confusions")
    pairs = [(c, i, j) for i, row in enumerate(result.confusion) for j, c in enumerate(row) if c and i != j]
    assert len(rows) == 20
    assert [int(row[2]) for row in rows] == sorted((count for count, _, _ in pairs), reverse=True)[:20]
    named = {(data.classes[i], data.classes[j], str(c), f"{100 * c / 50:.1f} %") for c, i, j in pairs}
    assert {tuple(row) for row in rows} <= named


def test_curves_say_what_they_show(tmp_path: Path) -> None:
    data = make_data(3)
    log = make_log(7, every=3)
    log[4]["train_top1"] = None  # a measure that was not taken
    page = page_of(make_run(tmp_path / "run", answers(data), log), data)
    labels = {a["class"]: a["aria-label"] for tag, a in page.starts if tag == "svg"}
    assert labels["error"] == "Train error went from 50.00 % to 50.00 %. Val error went from 97.00 % to 94.00 %."
    assert labels["loss"] == "Train loss went from 2.00 to 0.29. Val loss went from 1.50 to 1.50."
    drawing = page.source.split('<svg class="error"')[1].split("</svg>")[0]
    assert "stroke-dasharray" in drawing, "the two lines differ without colour"
    assert {"train 50.00 %", "val 94.00 %"} <= set(page.texts("text")), "each line has its label at its end"
    assert "#00000" not in page.source, "every stand-in colour was replaced"
    worse = [{**line, "score": {**line["score"], "nll": 1 + line["epoch"]}} for line in make_log(4)]
    page = page_of(make_run(tmp_path / "worse", answers(data), worse), data)
    assert any("Val loss went from 2.00 to 5.00, lowest 2.00 after epoch 1." in t for t in page.texts("figcaption"))


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_short_log(tmp_path: Path, epochs: int) -> None:
    data = make_data(3)
    page = page_of(make_run(tmp_path / "run", answers(data), make_log(epochs)), data)
    assert_alone(page)
    assert ("The run has no log of its epochs." in page.texts("p")) == (epochs == 0)
    assert any("Val error was 99.00 % after epoch 1." in t for t in page.texts("figcaption")) == (epochs == 1)


def test_any_name_is_shown_and_none_is_obeyed(tmp_path: Path) -> None:
    data = make_data(3, classes=(NASTY, '猫 "#000001"', '</style><script>alert("1")</script>'), part=f"x/{NASTY}")
    result = replace(answers(data), bad={f"y/{NASTY}": f"reason {NASTY}"}, protocol=NASTY)
    problem = {"kind": "alpha", "count": 7, "examples": [NASTY], "advice": f"laid over {NASTY}"}
    run = make_run(tmp_path / f"run {NASTY[:3]} \udce9", result, problems=[problem], notes=[f"note {NASTY}"])
    page = page_of(run, data)
    assert_alone(page)
    rows = page.rows("Class by class")
    assert {row[0] for row in rows} == {SHOWN, '猫 "#000001"', '</style><script>alert("1")</script>'}
    assert '猫 "#000001"' in page.texts("text"), "names in a chart are not mistaken for its colours"
    assert f"note {SHOWN}" in page.texts("li")
    assert [f"y/{SHOWN}", f"reason {SHOWN}"] in page.rows("Unreadable pictures")
    assert f"Alpha: 7Laid over {SHOWN}. {SHOWN}…" in page.texts("li")
    (matrix,) = (a["aria-label"] for tag, a in page.starts if a.get("class") == "confusion")
    assert re.search(r"; most often .*\".* was taken for .*\".*, \d+ times\.$", matrix)
    alts = {attributes["alt"] for tag, attributes in page.starts if tag == "img"}
    assert f'Labelled {SHOWN}, answered 猫 "#000001"' in alts
    commands = page.texts("code")
    assert any(text.startswith("resnet predict '") and text.endswith("' a.jpg") for text in commands)


def test_thumbnails_are_the_pictures(tmp_path: Path) -> None:
    tiny, large = make_data(2, side=8), make_data(2, side=300, n=12)
    for name, data in (("tiny", tiny), ("large", large)):
        result = answers(data, right=0.3)
        page = page_of(make_run(tmp_path / name, result), data)
        images = [attributes for tag, attributes in page.starts if tag == "img"]
        assert len(images) == len(result.mistakes) > 0
        for attributes, mistake in zip(images, result.mistakes, strict=True):
            kind, _, code = attributes["src"].partition(";base64,")
            shown = Image.open(io.BytesIO(base64.b64decode(code)))
            pixels = np.asarray(data.pictures.read(int(mistake.path.partition("/")[2])))
            if name == "tiny":
                assert (kind, attributes.get("class")) == ("data:image/png", "tiny")
                np.testing.assert_array_equal(np.asarray(shown), pixels)
            else:
                assert (kind, attributes.get("class")) == ("data:image/jpeg", None)
                assert shown.size == (160, 160)
                near = Image.fromarray(pixels).resize((160, 160), Image.Resampling.BICUBIC)
                grey = [np.asarray(picture.convert("L")).ravel() for picture in (shown, near)]
                assert np.corrcoef(grey)[0, 1] > 0.95, "another picture of noise has 0"


def test_pictures_that_have_gone(tmp_path: Path) -> None:
    names = [f"{kind}/{i}.png" for kind in "ab" for i in range(6)]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (40, 20), i * 20).save(tmp_path / name)
    data = Data("p", Files(tmp_path, names), np.repeat([0, 1], 6), ("a", "b"), {"val": np.arange(12)})
    result = answers(data, right=0.0)
    first, second, *others = result.mistakes
    (tmp_path / first.path).unlink()
    (tmp_path / second.path).write_bytes(b"no picture any more")
    run = make_run(tmp_path / "run", result)
    page = page_of(run, data)
    assert page.texts("span").count("picture not found") == 2
    assert sum(tag == "img" for tag, _ in page.starts) == len(others)
    page = page_of(run, None)
    assert page.texts("span").count("picture not found") == len(result.mistakes)


def test_findings_in_the_pictures(tmp_path: Path) -> None:
    data = make_data(2)
    clean = page_of(make_run(tmp_path / "clean", answers(data)), data)
    assert any("Nothing to mend" in text for text in clean.texts("p"))
    bad = {f"a/{i:03}.jpg": "truncated" for i in range(120)}
    page = page_of(make_run(tmp_path / "bad", replace(answers(data), bad=bad)), data)
    assert page.rows("Unreadable pictures") == [[path, "truncated"] for path in list(bad)[:50]]
    assert any("and 70 more" in text for text in page.texts("p"))
    assert any(text.startswith("120 pictures left out of the score") for text in page.texts("summary"))
    one = page_of(make_run(tmp_path / "one", replace(answers(data), bad={"a.jpg": "0 bytes"})), data)
    assert "1 picture left out of the score, because it cannot be read" in one.texts("summary")


def test_recipe_and_environment_are_in_full(tmp_path: Path) -> None:
    data = make_data(2)
    page = page_of(make_run(tmp_path / "run", answers(data)), data)
    (recipe,) = (t for t in page.texts("pre") if "[optim]" in t)
    assert recipe == " ".join(dumps(Recipe(model=Model(arch="resnet34"))).split())
    facts = dict(page.rows("Environment"))
    assert facts["data fingerprint"] == "ab" * 32
    assert facts["versions"] == "resnetkit 0.1.0, torch 2.13.0"
    assert facts["data"] == "/home/me/photos/"
    assert "batch 64: 1,000 training pictures" in page.texts("li")
    assert f"resnet predict {tmp_path / 'run'} a.jpg" in page.texts("code")


def test_a_perfect_score(tmp_path: Path) -> None:
    data = make_data(2)
    page = page_of(make_run(tmp_path / "run", answers(data, right=1.0)), data)
    assert {"100.00 %", "No answer was wrong."} <= set(page.texts("p"))
    assert "most often" not in page.texts("figcaption")[-1]


@pytest.mark.slow
def test_the_largest_page_keeps_its_bound(tmp_path: Path) -> None:
    """Long names, and noise for pictures, which compresses worst."""
    classes = tuple(f"{i:04}-" + "long name " * 8 for i in range(1500))
    data = make_data(1500, n=3000, side=60, classes=classes)
    page = page_of(make_run(tmp_path / "run", answers(data, right=0.2), make_log(100)), data)
    assert len(page.rows("Class by class")) == 1000
    assert any("The 1,000 worst of 1,500 classes" in text for text in page.texts("p"))


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    data = make_data(5)
    run = make_run(tmp_path / "run", answers(data))
    first = write_report(run, data).read_bytes()
    assert write_report(run, data).read_bytes() == first
    assert len(list(run.iterdir())) == 5, "no litter"


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run folder \(no result\.json\)"):
        write_report(tmp_path, None)
    data = make_data(2)
    run = make_run(tmp_path / "run", answers(data))
    shutil.copy(run / "log.jsonl", run / "recipe.json")
    with pytest.raises(UserError, match=r"recipe\.json"):
        write_report(run, data)


def test_class_names_without_the_pictures() -> None:
    result = answers(make_data(4, n=40))
    confusion = (result.confusion[0], (0, 0, 0, 0), *result.confusion[2:])
    lacking = replace(result, confusion=confusion, per_class=result.per_class[:1] + result.per_class[2:])
    assert class_names(lacking, None) == ["kind-00", "class 1", "kind-02", "kind-03"]


def test_small_parts() -> None:
    specs = {"cifar10:/a/b": "cifar10", "digits:": "digits", "/a/b/": "b", "x:/y": "y", "mnist": "mnist"}
    assert {spec: short_name(spec) for spec in specs} == specs
    assert plain("a\udcffb\x00c\nd") == "a\ufffdb\ufffdc\nd"
    assert spread([1.0, 5.0], 2.0) == [1.0, 5.0]
    assert spread([4.0, 4.5], 2.0) == [3.25, 5.25]
    assert spread([0.1, 0.0], 2.0) == [2.0, 0.0], "no label below the axis"


def contrast(*colours: str) -> float:
    """Contrast ratio of two colours "#rrggbb" (WCAG 2.2)."""
    parts = [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours]
    linear = [[p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in rgb] for rgb in parts]
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_in_light_dark_and_print() -> None:
    css = (Path(resnetkit.report.__file__).parent / "templates" / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.S)
    themes = [dict(re.findall(r"--([\w]+): (#[0-9a-f]{6});", block)) for block in blocks]
    assert len(themes) == 3
    for theme in themes:
        for text in ("ink", "soft", "accent", "train", "held"):
            for ground in ("page", "raised"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        for shade in ("right", "wrong"):  # a cell of the matrix at its strongest
            pairs = [(int(theme[shade][i : i + 2], 16), int(theme["page"][i : i + 2], 16)) for i in (1, 3, 5)]
            cell = "#" + "".join(f"{round(0.75 * a + 0.25 * b):02x}" for a, b in pairs)
            assert contrast(theme["ink"], cell) >= 4.5, shade

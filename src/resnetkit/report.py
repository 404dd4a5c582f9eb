"""The page of a run, report.html: one file that needs neither network nor scripts.

What a chart shows is told without colour too: line styles, marks and labels in the curves, place and counts in the
confusion matrix.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from resnetkit.abstaining import Answered
from resnetkit.atomic import write_text
from resnetkit.comparison import Comparison
from resnetkit.data.audit import pixels
from resnetkit.data.pictures import Data
from resnetkit.data.small import SETS
from resnetkit.drawing import FAINT, HELD, RC, RIGHT, TRAIN, WRONG, Chart, plain, render, svg
from resnetkit.errors import BadPicture
from resnetkit.evaluation import ClassScore, Mistake, Result, score_from
from resnetkit.multilabel import MultiLabelResult, WrongLabel
from resnetkit.recipe_file import dumps
from resnetkit.runs import read_environment, read_json, read_log, read_recipe
from resnetkit.slices import Slice

THUMBNAIL = 160  # longest side of a thumbnail, pixels
TINY = 64  # up to this side a thumbnail is stored without loss and shown with its pixels visible
HEATMAP, COUNTED = 30, 15  # most classes in the matrix; most with a count in every cell
LARGEST = 20  # confusions in the table
CLASSES, BAD = 1000, 50  # rows before the rest is a count


@dataclass(frozen=True)
class Line:
    """One curve: what it is, (epoch, value) points, how it looks."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    style: str
    marker: str


@dataclass(frozen=True)
class Shown:
    """A picture on the page: its name, what is to be said of it, and itself as a data URI, empty where it is gone."""

    name: str
    words: str
    uri: str


@dataclass(frozen=True)
class Confusion:
    """How often pictures of one class were taken for another; `share` of the label's pictures."""

    label: str
    answer: str
    count: int
    share: float


@dataclass(frozen=True, eq=False)
class Deeper:
    """What only asking the model again can tell: `resnet report`.

    result    as it is now, with the model's temperature
    charts    reliability, and coverage against accuracy; answered: the same as rows
    strips    pictures of the largest confusions
    typical   class name, its most and least typical pictures and its most confident mistakes; others: classes left out
    against   another model on the same pictures, and pictures on which they differ
    """

    result: Result
    charts: Sequence[Chart]
    answered: Sequence[Answered]
    slices: Sequence[Slice]
    strips: Sequence[tuple[Confusion, Sequence[Shown]]]
    typical: Sequence[tuple[str, Sequence[Shown], Sequence[Shown], Sequence[Shown]]]
    others: int
    against: tuple[Comparison, Sequence[Shown]] | None
    notes: Sequence[str]


def write_report(run: Path, data: Data | None, deeper: Deeper | None = None, out: Path | None = None) -> Path:
    """Write report.html into a run folder from the files there; `data` gives the pictures of the wrong answers.

    deeper   what was found by asking the model again
    out      another place for the page
    The same run gives the same bytes. Returns the file's path. Raises UserError for a missing or damaged file of the
    run, OSError when the page cannot be written.
    """
    found = read_json(run / "result.json")
    result = deeper.result if deeper is not None else score_from(found["result"])
    recipe, environment, log = read_recipe(run), read_environment(run), read_log(run)
    rows = class_by_class(result, data) if isinstance(result, Result) else label_by_label(result, data)
    page = render(
        "report.html",
        run=run.absolute().name,
        title=f"{recipe.model.arch} on {short_name(environment.data)}",
        result=result,
        split=found["split"],
        **rows,
        charts=curves(log),
        thumbnails=thumbnails(result.mistakes, data, exif=recipe.data.exif),
        problems=found["problems"],
        notes=environment.notes,
        bad=sorted(result.bad.items()),
        shown_bad=BAD,
        recipe=recipe,
        recipe_text=dumps(recipe),
        environment=environment,
        place=shlex.quote(str(run)),
        deeper=deeper,
    )
    path = out or run / "report.html"
    write_text(path, plain(page))
    return path


def class_by_class(result: Result, data: Data | None) -> dict[str, Any]:
    """What the page says of classes, and of the score among them."""
    names = class_names(result, data)
    confusions = largest_confusions(names, result.confusion)
    return {
        "rows_of": "classes",
        "rows": class_rows(result, confusions),
        "commonest": max(row.n for row in result.per_class) / result.n,
        "guessing": math.log(len(names)),
        "matrix": heatmap(names, result, confusions) if len(names) <= HEATMAP else None,
        "in_words": len(names) > COUNTED,
        "confusions": confusions[:LARGEST],
        "every": len(confusions) <= LARGEST,
        "classes": len(names),
    }


def label_by_label(result: MultiLabelResult, data: Data | None) -> dict[str, Any]:
    """The same where a picture may have several labels."""
    classes = len(result.per_label if data is None else data.classes)
    worst = sorted(result.per_label, key=lambda row: (row.ap, row.name))[:CLASSES]
    return {"rows_of": "labels", "rows": worst, "guessing": classes * math.log(2)}


def short_name(spec: str) -> str:
    """The data as a title calls them: `photos` for /home/me/photos/, `cifar10` for cifar10:DIR."""
    kind = spec.partition(":")[0]
    return kind if kind in (*SETS, "digits") and kind != spec else Path(spec).name or spec


def class_names(result: Result, data: Data | None) -> list[str]:
    """The name of each row of the confusion matrix; without `data`, a class with no pictures has only its number."""
    if data is not None and len(data.classes) == len(result.confusion):
        return list(data.classes)
    occurring = iter(result.per_class)
    return [next(occurring).name if sum(row) else f"class {i}" for i, row in enumerate(result.confusion)]


def largest_confusions(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[Confusion]:
    """Every pair of label and wrong answer that occurs, the most frequent first."""
    found = [
        Confusion(names[i], names[j], count, count / sum(row))
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(found, key=lambda pair: -pair.count)


def class_rows(result: Result, confusions: Sequence[Confusion]) -> list[tuple[ClassScore, Confusion | None]]:
    """The classes with the worst recall, worst first, each with what it is most often taken for."""
    mistaken: dict[str, Confusion] = {}
    for pair in confusions:
        mistaken.setdefault(pair.label, pair)
    worst = sorted(result.per_class, key=lambda row: (row.top1, -row.n, row.name))[:CLASSES]
    return [(row, mistaken.get(row.name)) for row in worst]


def thumbnails(
    mistakes: Sequence[Mistake] | Sequence[WrongLabel], data: Data | None, *, exif: bool
) -> list[tuple[Mistake | WrongLabel, str]]:
    """The wrong answers, each with its picture as a data URI, empty when it cannot be read any more."""
    place: dict[str, int] = {}
    wanted = {mistake.path for mistake in mistakes}
    for index in range(len(data) if data is not None and wanted else 0):
        assert data is not None
        if (name := data.pictures.name(index)) in wanted:
            place[name] = index
            if len(place) == len(wanted):
                break
    shown = {}
    for name, index in place.items():
        assert data is not None
        with contextlib.suppress(BadPicture):  # it was there when it was scored; the page says that it has gone
            shown[name] = Image.fromarray(pixels(data, index, channels=3, exif=exif))
            shown[name].thumbnail((THUMBNAIL, THUMBNAIL))
    return [(mistake, data_uri(shown[mistake.path]) if mistake.path in shown else "") for mistake in mistakes]


def data_uri(picture: Image.Image) -> str:
    """A picture as PNG where it is tiny, else as JPEG."""
    kind = "png" if max(picture.size) <= TINY else "jpeg"
    file = io.BytesIO()
    picture.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def curves(log: Sequence[dict[str, Any]]) -> list[Chart]:
    """Error and loss against the epoch, for the training pictures and those held back. Empty without a log."""
    scored = [(line["epoch"], line["score"]) for line in log if line["score"]]
    split = scored[-1][1]["split"] if scored else ""
    trained = [(line["epoch"], line["train_top1"]) for line in log if is_number(line["train_top1"])]
    losses = [(line["epoch"], line["train_loss"]) for line in log if is_number(line["train_loss"])]
    errors = [(epoch, 100 * (1 - share)) for epoch, share in trained]
    held_errors = [(epoch, 100 * (1 - score.get("top1", score.get("exact")))) for epoch, score in scored]
    held_losses = [(epoch, score["nll"]) for epoch, score in scored]
    charts = []
    for what, unit, own, held in (("error", " %", errors, held_errors), ("loss", "", losses, held_losses)):
        both = Line("train", own, TRAIN, "-", ""), Line(split, held, HELD, "--", "o")
        lines = [line for line in both if line.points]
        if lines:
            message = " ".join(described(line, what, unit) for line in lines)
            charts.append(Chart(f"{what.capitalize()} after each epoch", message, draw_curves(what, lines, message)))
    return charts


def is_number(value: object) -> bool:
    """Whether a value of the log can be drawn; a measure that a run does not take is null there."""
    return isinstance(value, int | float) and math.isfinite(value)


def described(line: Line, what: str, unit: str) -> str:
    """`"Val error went from 40.00 % to 12.00 %, lowest 11.00 % after epoch 9."`"""
    (first, begin), (last, end) = line.points[0], line.points[-1]
    name = f"{line.label.capitalize()} {what}"
    if first == last:
        return f"{name} was {end:.2f}{unit} after epoch {last}."
    at, low = min(line.points, key=lambda point: point[1])
    lowest = f", lowest {low:.2f}{unit} after epoch {at}" if low < end else ""
    return f"{name} went from {begin:.2f}{unit} to {end:.2f}{unit}{lowest}."


def draw_curves(what: str, lines: Sequence[Line], message: str) -> str:
    """The lines in one frame, each labelled at its right end with its last value."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, MaxNLocator

    unit = " %" if what == "error" else ""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.3, 2.9))  # inches of 72 units; about as many pixels on a telephone
        axes = figure.add_axes((0.13, 0.15, 0.61, 0.81))
        last = max(line.points[-1][0] for line in lines)
        top = 1.05 * max(value for line in lines for _, value in line.points) or 1.0
        ends = spread([line.points[-1][1] for line in lines], gap=0.075 * top)
        for line, end in zip(lines, ends, strict=True):
            x, y = zip(*line.points, strict=True)
            marker = line.marker or ("o" if len(x) == 1 else "")
            every = max(1, len(x) // 15)
            axes.plot(x, y, line.style, color=line.colour, marker=marker, markevery=every, ms=4, lw=1.8, clip_on=False)
            axes.annotate(
                f"{line.label} {y[-1]:.2f}{unit}",
                (last, end),
                (7, 0),
                textcoords="offset points",
                color=line.colour,
                va="center_baseline",
                annotation_clip=False,
            )
        first = min(line.points[0][0] for line in lines)
        axes.set_xlim((first, last) if first < last else (first - 0.5, last + 0.5))
        axes.set_ylim(0, top)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{what}, %" if unit else f"{what}, nats")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True) if first < last else FixedLocator([first]))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.grid(True, axis="y", color=FAINT, linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        return svg(figure, what, message)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Two values moved apart around their middle to at least `gap`; a single one as it is."""
    if len(values) < 2 or abs(values[0] - values[1]) >= gap:
        return list(values)
    middle = max(sum(values) / 2, gap / 2)  # stay above the axis
    sign = 1 if values[0] > values[1] else -1
    return [middle + sign * gap / 2, middle - sign * gap / 2]


def heatmap(names: Sequence[str], result: Result, confusions: Sequence[Confusion]) -> Chart:
    """The confusion matrix: a row for each label, a column for each answer, shade by share of the row."""
    message = f"{result.correct:,} of {result.n:,} pictures are on the diagonal, where answer and label agree"
    for pair in confusions[:1]:
        times = "once" if pair.count == 1 else f"{pair.count:,} times"
        message += f"; most often {pair.label} was taken for {pair.answer}, {times}"
    message += "."
    return Chart("Confusion matrix", message, draw_heatmap([cut(name) for name in names], result.confusion, message))


def cut(name: str, length: int = 18) -> str:
    """A name short enough to stand beside a row."""
    return plain(name if len(name) <= length else name[: length - 1] + "…").replace("\n", " ")


def draw_heatmap(names: Sequence[str], confusion: Sequence[Sequence[int]], message: str) -> str:
    """Cells shaded by their share of the row: right answers up to 1, mistakes up to the largest of them."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    n = len(names)
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    most = max((share for i, row in enumerate(shares) for j, share in enumerate(row) if i != j), default=0.0)
    side = n * (max(0.44, 1.7 / n) if n <= COUNTED else 0.25)
    with mpl.rc_context(RC | {"font.size": 10.5 if n <= COUNTED else 9.5}):
        figure = Figure(figsize=(side, side))
        axes = figure.add_axes((0, 0, 1, 1))
        for i, row in enumerate(confusion):
            for j, count in enumerate(row):
                if count:
                    colour, whole = (RIGHT, 1.0) if i == j else (WRONG, most)
                    shade = 0.1 + 0.65 * shares[i][j] / whole  # never so dark that ink is hard to read on it
                    axes.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, alpha=shade, linewidth=0))
                    if n <= COUNTED:
                        axes.text(j + 0.5, i + 0.5, f"{count:,}", ha="center", va="center_baseline")
        axes.set_xlim(0, n)
        axes.set_ylim(n, 0)
        upright = {"rotation": 0} if max(map(len, names)) <= 3 else {"rotation": 90, "ha": "left", "va": "center"}
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xticks([i + 0.5 for i in range(n)], names, rotation_mode="anchor", **upright)
        axes.set_yticks([i + 0.5 for i in range(n)], names)
        axes.set_xticks(range(n + 1), minor=True)
        axes.set_yticks(range(n + 1), minor=True)
        axes.grid(True, which="minor", color=FAINT, linewidth=0.6)
        axes.tick_params(which="both", length=0)
        axes.set_xlabel("answer", labelpad=8, fontweight="bold")
        axes.set_ylabel("label", labelpad=8, fontweight="bold")
        return svg(figure, "confusion", message, crop=True)

"""The figures: panels of curves and rows of intervals, with the paper's axes, readable in black and white.

As in the paper, thin lines are training errors and bold ones test errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resnetkit.drawing import FAINT, HELD, INK, RC, TRAIN, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THIN, BOLD = 0.9, 2.3  # line widths, points
STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.6)), (0, (6, 2, 1, 2)), (0, (9, 3)))  # by depth, shallow first
COLOURS = (HELD, TRAIN, INK)
FLOOR = 1e-12  # of logarithmic axes: what is below has died


@dataclass(frozen=True)
class Curve:
    """A line; `label` stands at its end, and a curve without one is told by its style. `band` is lowest and highest."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = INK
    style: Any = "-"
    width: float = 1.6
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Panel:
    """Curves in one frame."""

    title: str
    curves: Sequence[Curve]
    x: str
    y: str
    log: bool = False
    limits: tuple[float, float] | None = None  # of y
    mark: tuple[float, str] | None = None  # a place on x, and what is there


@dataclass(frozen=True)
class Row:
    """A value with its interval and the values of the seeds."""

    label: str
    mean: float
    low: float
    high: float
    values: Sequence[float]
    colour: str = INK


def draw_panels(panels: Sequence[Panel], name: str, message: str, *, columns: int = 2) -> str:
    """Panels in rows of `columns`, as an SVG element."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = [panel for panel in panels if panel.curves]
    rows = max(1, -(-len(panels) // columns))
    with mpl.rc_context(RC | {"font.size": 10}):
        figure = Figure(figsize=(4.6 * columns, 3.3 * rows), layout="constrained")
        for index, panel in enumerate(panels):
            draw_panel(figure.add_subplot(rows, columns, index + 1), panel)
        return svg(figure, name, message)


def draw_panel(axes: Axes, panel: Panel) -> None:
    """One frame with its curves."""
    from matplotlib.ticker import LogLocator, NullLocator

    for curve in panel.curves:
        y = [max(value, FLOOR) for value in curve.y] if panel.log else curve.y
        axes.plot(curve.x, y, linestyle=curve.style, color=curve.colour, lw=curve.width, solid_capstyle="butt")
        if curve.band:
            axes.fill_between(curve.x, *curve.band, color=curve.colour, alpha=0.18, lw=0)
    if panel.log:
        values = [max(value, FLOOR) for curve in panel.curves for value in curve.y]
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 3, max(values) * 3)  # at least a decade, or small differences would look large
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}" if value < 1e-3 or value > 1e4 else f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    if panel.limits:
        axes.set_ylim(*panel.limits)
    last = max(curve.x[-1] for curve in panel.curves)
    axes.set_xlim(min(curve.x[0] for curve in panel.curves), last)
    label_ends(axes, [curve for curve in panel.curves if curve.label], panel.log)
    if panel.mark:
        axes.axvline(panel.mark[0], color=INK, lw=0.8, ls=(0, (2, 2)))
        axes.annotate(panel.mark[1], (panel.mark[0], 0.97), (4, 0), xycoords=("data", "axes fraction"),
                      textcoords="offset points", va="top", fontsize=9)  # fmt: skip
    axes.set_title(panel.title, fontsize=10.5, loc="left")
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.grid(True, axis="y", color=FAINT, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(which="both", length=0)


def label_ends(axes: Axes, curves: Sequence[Curve], log: bool) -> None:
    """Each label at the right end of its line, moved apart where they would cover each other."""
    axes.figure.canvas.draw_idle()
    low, high = axes.get_ylim()
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = []
    for curve in curves:
        y = max(curve.y[-1], FLOOR) if log else curve.y[-1]
        ends.append((float(to_axes.transform((curve.x[-1], min(max(y, low), high)))[1]), curve))
    ends.sort(key=lambda end: end[0])
    gap, at = 0.075, -1.0
    places = []
    for place, _ in ends:
        at = max(place, at + gap)
        places.append(at)
    over = max(0.0, places[-1] - 1.0) if places else 0.0
    for place, (_, curve) in zip(places, ends, strict=True):
        axes.annotate(curve.label, (1, place - over), (5, 0), xycoords="axes fraction", textcoords="offset points",
                      va="center", color=curve.colour, annotation_clip=False)  # fmt: skip


def draw_rows(rows: Sequence[Row], x: str, name: str, message: str) -> str:
    """A line of the page for each row: its interval, its mean as a bar, its seeds as rings."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC | {"font.size": 10}):
        figure = Figure(figsize=(7.4, 0.5 + 0.36 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for index, row in enumerate(rows):
            y = len(rows) - index
            axes.plot([row.low, row.high], [y, y], color=row.colour, lw=5, alpha=0.3, solid_capstyle="butt")
            axes.plot([row.mean], [y], marker="|", ms=13, mew=2.2, color=row.colour)
            axes.plot(row.values, [y] * len(row.values), "o", ms=4, mfc="none", color=row.colour, mew=1)
            axes.annotate(f"{row.mean:.1f}", (1, y), (5, 0), xycoords=("axes fraction", "data"),
                          textcoords="offset points", va="center")  # fmt: skip
        axes.set_yticks(range(len(rows), 0, -1), [row.label for row in rows])
        axes.set_ylim(0.4, len(rows) + 0.6)
        spread = [value for row in rows for value in (row.low, row.high, *row.values)]
        room = 0.05 * (max(spread) - min(spread)) or 1.0
        axes.set_xlim(max(0.0, min(spread) - room), min(100.0, max(spread) + room))
        axes.set_xlabel(x)
        axes.grid(True, axis="x", color=FAINT, linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(which="both", length=0)
        return svg(figure, name, message)

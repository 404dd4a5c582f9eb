"""Charts of how far answers can be believed: the reliability diagram, and accuracy against coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnetkit.abstaining import Answered
from resnetkit.drawing import FAINT, HELD, INK, RC, RIGHT, Chart, svg
from resnetkit.evaluation import wilson
from resnetkit.reliability import Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 200  # of a curve


def frame(x: str, y: str) -> tuple[Figure, Axes]:
    """A square-ish frame with shares on both axes; within `mpl.rc_context(RC)`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(4.3, 3.4))
    axes = figure.add_axes((0.16, 0.14, 0.8, 0.82))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure, axes


def reliability_diagram(found: Reliability) -> Chart:
    """Share right against mean probability, a mark for each bin with its 95 % interval; the diagonal is perfect."""
    import matplotlib as mpl

    filled = [(bin.confidence, bin.accuracy, bin.n) for bin in found.bins if bin.n]
    points = [(sure, right, n) for sure, right, n in filled if sure is not None and right is not None]
    gap = sum(n * (sure - right) for sure, right, n in points) / sum(n for *_, n in points)
    word = "surer than it is right" if gap > 0 else "less sure than it is right"
    message = f"On average it is {word}, by {100 * abs(gap):.2f} points; calibration error {100 * found.ece:.2f} %."
    with mpl.rc_context(RC):
        figure, axes = frame("probability of the answer", "answers that are right")
        axes.plot((0, 1), (0, 1), ":", color=INK, lw=1.2)
        axes.annotate("perfect", (0.08, 0.08), (6, -4), textcoords="offset points", va="top")
        for sure, right, n in points:
            low, high = wilson(round(right * n), n)
            axes.plot((sure, sure), (low, high), "-", color=RIGHT, lw=3)
        axes.plot([p[0] for p in points], [p[1] for p in points], "-o", color=HELD, ms=4, lw=1.5, clip_on=False)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        return Chart("Reliability", message, svg(figure, "reliability", message))


def coverage_curve(rows: Sequence[Answered]) -> Chart:
    """Accuracy of what is answered against the share that is answered, with its 95 % interval as a band."""
    import matplotlib as mpl

    step = max(1, len(rows) // POINTS)
    shown = list(dict.fromkeys([*rows[::step], rows[-1]]))
    half = next(row for row in rows if row.coverage >= 0.5 - 1e-12)
    message = (
        f"Answering every picture it is right on {100 * rows[-1].accuracy:.2f} %; answering only the surest "
        f"{100 * half.coverage:.0f} % of them, on {100 * half.accuracy:.2f} %."
    )
    with mpl.rc_context(RC):
        figure, axes = frame("pictures that are answered", "of those, right")
        x = [row.coverage for row in shown]
        lowest, highest = ([row.interval[end] for row in shown] for end in (0, 1))
        axes.fill_between(x, lowest, highest, color=RIGHT, alpha=0.3, linewidth=0)
        axes.plot(x, [row.accuracy for row in shown], "-", color=HELD, lw=1.8, clip_on=False)
        floor = min(row.interval[0] for row in shown if row.coverage >= 0.2)
        axes.set_xlim(0, 1)
        axes.set_ylim(max(0.0, floor - 0.02), 1)
        return Chart("Coverage against accuracy", message, svg(figure, "coverage", message))

"""The sections on what goes through the layers: responses, gradients, and starts at which signals die."""

from __future__ import annotations

import math
import statistics
from typing import Any

from resnetkit.drawing import HELD, INK, TRAIN, Chart
from resnetkit.paper.drawings import STYLES, Curve, Panel, draw_panels
from resnetkit.paper.records import Record
from resnetkit.paper.sections import SAME, Groups, Section, depths

EXPLODED = 1e30  # stands for what was no longer a number


def four(groups: Groups) -> list[tuple[str, list[Record], str, object]]:
    """The plain and residual networks with their looks: colour tells the kind, the style the depth."""
    found = []
    for kind, name, colour in (("plain", "plain", TRAIN), ("resnet", "residual", HELD)):
        every = depths(groups, kind)
        for depth in every:
            label = f"{name}-{depth}"
            style = STYLES[every.index(depth) % len(STYLES)]
            group = [r for r in groups[f"{kind}{depth}"] if r.measured.get("end")]
            if group:
                found.append((label, group, colour, style))
    return found


def mean_layers(found: list[Record], *path: str) -> list[float]:
    """The mean over seeds of a list of numbers, one per layer; what is not a number counts as huge."""
    lists = []
    for record in found:
        value = record.measured
        for key in path:
            value = value[key]
        lists.append([EXPLODED if number is None else float(number) for number in value])
    return [statistics.fmean(column) for column in zip(*lists, strict=True)]


def responses(budget: str, groups: Groups) -> Section | None:
    """Figure 7."""
    shown = four(groups)
    if not shown:
        return None
    ordered, ranked, means = [], [], {}
    for label, found, colour, style in shown:
        values = [math.sqrt(value) for value in mean_layers(found, "end", "variance")]
        means[label] = statistics.fmean(values)
        x = list(range(1, len(values) + 1))
        ordered.append(Curve(label, x, values, colour, style))
        ranked.append(Curve(label, x, sorted(values, reverse=True), colour, style))
    panels = [
        Panel("in the order of the layers", ordered, "layer", "standard deviation"),
        Panel("the largest first", ranked, "layer, sorted by magnitude", "standard deviation"),
    ]
    listed = ", ".join(f"{label} {value:.2f}" for label, value in means.items())
    seen = (f"Averaged over the layers: {listed}.", *compared(means))
    caption = "Standard deviation of each layer's response."
    message = f"{caption} {' '.join(seen)}"
    chart = Chart("Standard deviation of layer responses", caption, draw_panels(panels, f"responses-{budget}", message))
    return Section(
        key=f"responses-{budget}",
        title="How strongly the layers respond (figure 7)",
        paper="Residual functions are nearer to zero than other functions: layers of residual networks respond less "
        "than those of plain ones, and less the deeper the network, each layer changing the signal less.",
        seen=seen,
        charts=(chart,),
        settings=SAME,
        deviations=("taken on 256 training pictures and normalised by them; the paper does not say on which",),
    )


def compared(means: dict[str, float]) -> list[str]:
    """Whether the paper's two statements on responses hold for ours, in words."""
    said = []
    twins = [name.removeprefix("plain-") for name in means if name.startswith("plain-")]
    for depth in (depth for depth in twins if f"residual-{depth}" in means):
        less = means[f"residual-{depth}"] < means[f"plain-{depth}"]
        said.append(f"with {depth} layers residual ones respond {'less' if less else 'more'} than plain ones")
    deep = [value for name, value in means.items() if name.startswith("residual-")]
    if len(deep) > 1:
        seen = deep[-1] < deep[0]
        said.append(f"that deeper residual networks respond less is {'' if seen else 'not '}seen at this budget")
    return [f"{'; '.join(said)[:1].upper()}{'; '.join(said)[1:]}."] if said else []


def gradients(budget: str, groups: Groups) -> Section | None:
    """Section 4.1: it is not vanishing gradients."""
    shown = four(groups)
    if not shown:
        return None
    panels, signal = [], {}
    for when, title in (("start", "before training"), ("end", "after training")):
        for what, unit in (("variance", "variance of the response"), ("gradient", "norm of the gradient")):
            lines = []
            for label, found, colour, style in shown:
                values = mean_layers(found, when, what)
                lines.append(Curve(label, list(range(1, len(values) + 1)), values, colour, style))
                signal[label, when, what] = values
            panels.append(Panel(f"{title}: {unit}", lines, "layer", unit, log=True))
    deepest = [label for label, *_ in shown if label.startswith("plain")][-1:]
    seen = tuple(
        f"In {label}, no layer's variance is below {min(signal[label, 'start', 'variance']):.2g} before training and "
        f"{min(signal[label, 'end', 'variance']):.2g} after it. {gradient_words(signal[label, 'start', 'gradient'])} "
        f"After training the smallest is {min(signal[label, 'end', 'gradient']):.2g}."
        for label in deepest
    )
    caption = "Forward and backward signals, layer by layer."
    message = f"{caption} {' '.join(seen)}"
    chart = Chart("Signals forward and backward", caption, draw_panels(panels, f"gradients-{budget}", message))
    return Section(
        key=f"gradients-{budget}",
        title="It is not vanishing gradients (section 4.1)",
        paper="Plain networks are trained with batch normalisation, so forward signals have non-zero variance, and the "
        "authors verify that backward gradients have healthy norms. So neither signal vanishes.",
        seen=seen,
        charts=(chart,),
        settings=SAME,
        deviations=("the paper reports this check in words only",),
    )


def number(value: float) -> str:
    """A positive number as a person reads it: two figures, or a count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value >= 1e-30 else "0"


def gradient_words(values: list[float]) -> str:
    """Which way the gradient goes on its way back, in words."""
    ratio = values[0] / values[-1] if values[-1] else 0.0
    way = f"shrinks {number(1 / ratio)} times" if ratio else "shrinks to nothing"
    way = f"grows {number(ratio)} times" if ratio > 1 else way
    return (
        f"Its gradient {way} from the last convolution back to the first before training, "
        f"and is nowhere below {min(values):.2g}."
    )


def starts(budget: str, found: list[dict[str, Any]]) -> Section | None:
    """Section 1: with normalisation signals live whatever the start; without it they hang on the start."""
    if not found:
        return None
    colours = {"he": HELD, "xavier": INK, "small": TRAIN}
    names = {"he": "He", "xavier": "Xavier", "small": "std 0.01"}
    panels, last = [], {}
    for norm, title in (("batch", "with normalisation"), ("none", "without")):
        for what, unit in (("variance", "variance of the response"), ("gradient", "norm of the gradient")):
            lines = []
            for one in (one for one in found if one["norm"] == norm):
                plain = one["arch"].startswith("plain")
                values = [EXPLODED if value is None else value for value in one[what]]
                last[norm, one["init"], plain, what] = values[-1] if what == "variance" else values[0]
                label = f"{names[one['init']]}, {'plain' if plain else 'residual'}"
                style = STYLES[0] if plain else STYLES[1]
                lines.append(Curve(label, list(range(1, len(values) + 1)), values, colours[one["init"]], style))
            panels.append(Panel(f"{title}: {unit}", lines, "layer", unit, log=True))
    small, he = (number(last["none", init, True, "variance"]) for init in ("small", "he"))
    grown = number(last["none", "he", False, "variance"])
    seen = (
        f"Without normalisation, the variance that leaves a plain network of 56 layers is {small} when it starts at "
        f"std 0.01 (nothing is left) and {he} with He's; shortcuts keep the signal alive at any start, and let it grow "
        f"with He's, to {grown}.",
        "With normalisation every layer has a response and a gradient, whatever the start.",
    )
    caption = "Before the first step, layer by layer; below 1e-12 there is nothing."
    message = f"{caption} {' '.join(seen)}"
    return Section(
        key=f"starts-{budget}",
        title="Where signals do die: without normalisation (section 1)",
        paper="Vanishing and exploding gradients hamper convergence from the beginning; normalised initialisation and "
        "intermediate normalisation layers have largely met that.",
        seen=seen,
        charts=(Chart("Signals before the first step", caption, draw_panels(panels, f"starts-{budget}", message)),),
        settings=f"56 layers, input {found[0]['size']}x{found[0]['size']}, one batch of training pictures, one seed",
        deviations=("the paper has no such figure",),
    )

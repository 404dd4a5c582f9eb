"""What the sections of the page have in common: curves over seeds, settings, deviations."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from resnetkit.drawing import Chart
from resnetkit.paper.drawings import BOLD, THIN, Curve
from resnetkit.paper.records import Record, Spread, spread

SMOOTH = 5  # points of a training curve that are averaged in a figure

Groups = dict[str, list[Record]]


@dataclass(frozen=True)
class Section:
    """One experiment at one budget: what the paper says, what was seen here, figures."""

    key: str
    title: str
    paper: str  # what the paper shows or says
    seen: tuple[str, ...]  # what our runs show, a sentence or two each
    charts: tuple[Chart, ...]
    settings: str
    deviations: tuple[str, ...]


def depths(groups: Groups, kind: str) -> list[int]:
    """The depths of `plain20`, `plain56` … that were run, shallow first."""
    found = [name.removeprefix(kind) for name in groups]
    return sorted(int(depth) for depth, name in zip(found, groups, strict=True) if depth.isdigit() and name != depth)


def train_errors(found: list[Record]) -> Spread:
    return spread([record.final_train_error for record in found])


def mean_curve(found: list[Record], *, test: bool = False) -> tuple[list[float], list[float], list[float], list[float]]:
    """(x, mean, lowest, highest) over the seeds that have a curve; training curves smoothed. Empty where none has."""
    whole = [record for record in found if record.diverged is None] or found
    tables = [table for record in whole if (table := record.test_curve if test else record.train_curve)]
    if not tables:  # all diverged before there was anything to draw
        return [], [], [], []
    length = min(len(table) for table in tables)
    x = [row[0] for row in tables[0][:length]]
    lines = [[row[1] for row in table[:length]] for table in tables]
    if not test:
        lines = [smoothed(line) for line in lines]
    columns = list(zip(*lines, strict=True))
    return x, [statistics.fmean(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns]


def smoothed(values: list[float]) -> list[float]:
    """The mean of each value and those just before it."""
    return [statistics.fmean(values[max(0, i + 1 - SMOOTH) : i + 1]) for i in range(len(values))]


def error_curves(found: list[Record], label: str, colour: str, style: object) -> list[Curve]:
    """Training error thin and test error bold, as the paper draws them, with the range of the seeds."""
    x, mean, low, high = mean_curve(found)
    lines = [Curve("", x, mean, colour, style, THIN, (low, high))]
    x, mean, _, _ = mean_curve(found, test=True)
    lines.append(Curve(label, x, mean, colour, style, BOLD))
    return [line for line in lines if line.x]


def settings_of(found: list[Record], groups: Groups) -> str:
    """What the runs were made on, in one line."""
    first = found[0]
    recipe = first.recipe
    optim, schedule = recipe["optim"], recipe["schedule"]
    cuts = " and ".join(f"{round(share * schedule['steps']):,}" for share in schedule["milestones"])
    minutes = sum(record.seconds for group in groups.values() for record in group) / 60
    return (
        f"{first.environment['data']}; input {recipe['data']['size']}x{recipe['data']['size']}; {schedule['steps']:,} "
        f"iterations of {optim['batch']}, learning rate {optim['lr']:g} cut at {cuts}; {recipe['run']['precision']}; "
        f"{seeds(found)}; {first.environment['device']}, {first.environment['torch_threads']} threads; "
        f"{minutes:.0f} min of training in all"
    )


def seeds(found: list[Record]) -> str:
    return f"{len(found)} seeds" if len(found) > 1 else "one seed"


SAME = "The networks are those of the first figure at this budget"


def deviations_of(found: list[Record]) -> tuple[str, ...]:
    """Where the runs leave Sec. 4.2."""
    recipe, wrong = found[0].recipe, []
    size, steps, warm = recipe["data"]["size"], recipe["schedule"]["steps"], recipe["schedule"]["warmup_steps"]
    if size != 32:
        wrong.append(f"pictures shrunk from 32x32 to {size}x{size}, padding from 4 to {recipe['augment']['pad']}")
    if steps != 64000:
        wrong.append(f"{steps:,} iterations instead of 64,000, the learning rate cut at the same shares of the way")
    if recipe["schedule"]["warmup"] == "linear" and warm:
        wrong.append(f"a linear warm-up of {warm} iterations; the paper warms up its 110 layers only")
    if recipe["optim"]["lr"] != 0.1:
        wrong.append(f"learning rate {recipe['optim']['lr']:g} instead of 0.1")
    if found[0].measured.get("jpeg"):
        wrong.append("CIFAR-10 recompressed as JPEG, so errors are higher than on the original pixels")
    wrong.append(
        "the mean picture is subtracted after the crop, and padding is in the mean colour; one device, not two"
    )
    return tuple(wrong)


def test_errors(found: list[Record]) -> Spread:
    return spread([record.test_error for record in found])

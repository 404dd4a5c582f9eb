"""`resnet calibrate`: probabilities that mean what they say. Starts without torch and numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from resnetkit.shell import bad_option, device, emit, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from resnetkit.calibration import Calibration
    from resnetkit.reliability import Bin, Reliability


@click.command(
    short_help="Make probabilities mean what they say.",
    epilog="""\b
Examples:
  resnet calibrate runs/flowers               on the pictures its training kept back
  resnet calibrate m.safetensors photos/val
  resnet calibrate m.safetensors imagenet:DIR --split val --json""",
)
@click.argument("model")
@click.argument("data", required=False)
@click.option("--split", metavar="NAME", help="Which part of DATA; by default val, else test, else all of it.")
@click.option(
    "--accuracy",
    type=click.FloatRange(0, 1),
    metavar="P",
    default=0.95,
    show_default=True,
    help="Be not sure below the lowest probability at which this share of the answers is right; 0: always answer.",
)
@bad_option
@json_option
def calibrate(model: str, data: str | None, split: str | None, accuracy: float, bad: str, as_json: bool) -> None:
    """Fit the temperature of MODEL, a number that its logits are divided by (arXiv 1706.04599), on pictures that were
    held back, and write it into the model file. The first class stays what it is; only how sure it is changes.
    Below a threshold that is written with it, `resnet predict` and `resnet serve` name no class.

    DATA is what train takes; without it, the pictures that the model's run kept back. What it gains is measured on
    each fifth of the pictures with a temperature fitted on the others.
    """
    from resnetkit import calibration
    from resnetkit.terminal import scoring, screen

    with scoring() as progress:
        found = calibration.calibrate(
            model, data, split=split, accuracy=accuracy, bad=bad, device=device(), progress=progress
        )
    if as_json:
        emit({"model": model, **found.to_dict()})
    else:
        show_calibration(screen(), model, found)


def show_calibration(console: Console, model: str, found: Calibration) -> None:
    """The temperature, what it gains, how sure and how right the answers are, and what to know of it."""
    from resnetkit.terminal import counted, new_table, percent, say, show_bad

    low, high = min(found.folds), max(found.folds)
    spread = f"; {low:.4g} to {high:.4g} without a fifth of the pictures"
    say(console, (f"temperature {found.temperature:.4g}", "bold"), spread)
    say(console, f"fitted on {counted(found.n, 'picture')}, written into {model}")
    say(console, f"protocol: {found.protocol}")
    for note in found.notes:
        say(console, ("note: ", "yellow"), note)
    show_bad(console, found.bad)
    console.print()
    sides = (found.before, found.after)
    table = new_table(what=("", "left"), before=("before", "right"), after=("after", "right"))
    table.add_row("negative log-likelihood, nats", *(f"{side.nll:.4f}" for side in sides))
    table.add_row("expected calibration error", *(percent(side.ece) for side in sides))
    console.print(table)
    console.print()
    say(console, abstained(found))
    console.print()
    show_bins(console, *sides)


def abstained(found: Calibration) -> str:
    """What becomes of answers that are not sure, in a sentence."""
    from resnetkit.terminal import percent

    of = found.abstention
    if not of.threshold:
        right = "" if of.accuracy is None else f"; {percent(of.accuracy, 1)} of the answers are right"
        return f"every picture is answered{right}"
    right = "none" if of.accuracy is None else percent(of.accuracy, 1)
    return (
        f"not sure below {percent(of.threshold, 1)}, so that {percent(of.wanted, 1)} of the answers are right: "
        f"{percent(of.coverage, 1)} of the pictures are answered, {right} of them rightly"
    )


def show_bins(console: Console, before: Reliability, after: Reliability) -> None:
    """A reliability diagram as a table: answers by their probability; bins without any are left out."""
    from resnetkit.terminal import new_table, percent

    def cells(of: Bin) -> list[str]:
        shares = [percent(share, 1) if share is not None else "" for share in (of.confidence, of.accuracy)]
        return [f"{of.n:,}", *shares]

    columns = {f"{when} {what}": (f"{when},\n{what}", "right") for when in ("before", "after") for what in SHOWN}
    table = new_table(bin=("probability\nof the answer", "left"), **columns)
    for one, other in zip(before.bins, after.bins, strict=True):
        if one.n or other.n:
            table.add_row(f"{100 * one.low:.1f} to {percent(one.high, 1)}", *cells(one), *cells(other))
    console.print(table)


SHOWN = ("pictures", "mean", "right")

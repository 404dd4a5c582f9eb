"""`resnet report`: a run's page, richer. Starts without torch and numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from resnetkit.shell import device, emit, json_option, told

if TYPE_CHECKING:
    from rich.console import Console

    from resnetkit.reporting import Report


@click.command(
    short_help="Write a run's page with when and where to rely on it.",
    epilog="""\b
Examples:
  resnet report runs/flowers
  resnet report runs/flowers --against runs/old
  resnet report runs/flowers --out flowers.html --card README.md""",
)
@click.argument("run")
@click.option("--against", metavar="RUN", help="Another run or model, asked on the same pictures.")
@click.option("--out", metavar="PAGE.html", help="Where the page goes; by default report.html in the run, anew.")
@click.option("--card", metavar="FILE", help="Write a model card, Markdown, to this file too.")
@json_option
def report(run: str, against: str | None, out: str | None, card: str | None, as_json: bool) -> None:
    """Ask the model of RUN again on the pictures that were kept back, and write the run's page with what that tells:
    reliability, accuracy when the least sure pictures get no answer, kinds of pictures that are hard, the largest
    confusions in pictures, what is typical of each class; with --against, a paired comparison.
    """
    from resnetkit import reporting
    from resnetkit.terminal import screen, status

    with status() as tell:
        found = reporting.report(run, against=against, out=out, card=card, device=device(), progress=told(tell))
    if as_json:
        emit(as_values(found))
    else:
        show_report(screen(), found)


def as_values(found: Report) -> dict[str, Any]:
    """Plain JSON values."""
    deeper = found.deeper
    return {
        "report": str(found.page),
        "card": str(found.card) if found.card else None,
        "result": deeper.result.to_dict(),
        "answered": [vars(row) for row in deeper.answered],
        "slices": [vars(each) for each in deeper.slices],
        "against": deeper.against[0].to_dict() if deeper.against else None,
        "notes": list(deeper.notes),
    }


def show_report(console: Console, found: Report) -> None:
    """The score, the kinds that stand out, the comparison, and where the files are."""
    from resnetkit.terminal import percent, say

    deeper = found.deeper
    say(console, f"accuracy {deeper.result}")
    for note in deeper.notes:
        say(console, ("note: ", "yellow"), note)
    out = [each for each in deeper.slices if each.stands_out]
    for each in out:
        shares = f"{percent(each.accuracy, 1)} of {each.n:,}, expected from its classes {percent(each.expected, 1)}"
        say(console, f"{each.kind}: {each.name}: ", (shares, "bold"), f"; p = {each.holm:.2g}, corrected")
    if deeper.slices and not out:
        say(console, f"no kind of pictures stands out among {len(deeper.slices)} (Holm)")
    if deeper.against:
        comparison = deeper.against[0]
        say(console, f"A {comparison.a}, B {comparison.b}: ", (str(comparison.top1), "bold"))
    say(console, f"page: {found.page}")
    if found.card:
        say(console, f"card: {found.card}")

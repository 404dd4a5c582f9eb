"""`resnet compare`: two models on the same pictures. `resnet bn`: batch statistics. Starts without torch and numpy."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from resnetkit.shell import Commands, bad_option, device, emit, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from resnetkit.comparison import Comparison
    from resnetkit.paired import Paired


@click.command(
    short_help="Say which of two models is better, or that it cannot be told.",
    epilog="""\b
Examples:
  resnet compare runs/old runs/new photos/test
  resnet compare a.safetensors b.safetensors cifar10:DIR --split test --json""",
)
@click.argument("a")
@click.argument("b")
@click.argument("data")
@click.option("--split", metavar="NAME", help="Which part of DATA; by default test, else val, else all of it.")
@bad_option
@json_option
def compare(a: str, b: str, data: str, split: str | None, bad: str, as_json: bool) -> None:
    """Score the models A and B on the same pictures, DATA, and say whether they differ: McNemar's exact test, and the
    difference with a 95 % interval (Newcombe 1998).

    Pictures that both get right or both get wrong tell nothing; what counts are those that only one of them gets right.
    Two scores with an interval each would need far more pictures to show the same difference.
    """
    from resnetkit import comparison
    from resnetkit.terminal import scoring, screen

    with scoring() as progress:
        found = comparison.compare(a, b, data, split=split, bad=bad, device=device(), progress=progress)
    if as_json:
        emit(found.to_dict())
    else:
        show_comparison(screen(), found)


def show_comparison(console: Console, found: Comparison) -> None:
    """Which model is which, the counts, what they say, and how it was measured."""
    from resnetkit.terminal import new_table, percent, say, show_bad

    def right(of: Paired, model: str) -> str:
        return percent((of.both + (of.only_a if model == "A" else of.only_b)) / of.n)

    say(console, "A  ", (found.a, "bold"))
    say(console, "B  ", (found.b, "bold"))
    console.print()
    measures = {"top-1": found.top1} | ({"top-5": found.top5} if found.top5 else {})
    table = new_table(what=("right", "left"), **{name: (name, "right") for name in measures})
    for name, key in (("both", "both"), ("only A", "only_a"), ("only B", "only_b"), ("neither", "neither")):
        table.add_row(name, *(f"{getattr(measure, key):,}" for measure in measures.values()))
    for model in "AB":
        table.add_row(f"{model}, in all", *(right(measure, model) for measure in measures.values()))
    console.print(table)
    console.print()
    for name, measure in measures.items():
        say(console, f"{name}: ", (str(measure), "bold" if measure is found.top1 else ""))
    say(console, f"protocol: {found.protocol}")
    show_bad(console, found.bad)


@click.group(
    cls=Commands,
    short_help="Batch normalisation: exact statistics.",
    epilog="""\b
Example:
  resnet bn recompute runs/flowers --out exact.safetensors""",
)
def bn() -> None:
    """Batch normalisation: what its layers hold after the training."""


@bn.command(
    short_help="Put exact statistics over the training pictures in place of the moving averages.",
    epilog="""\b
Examples:
  resnet bn recompute runs/flowers --out exact.safetensors
  resnet bn recompute m.safetensors imagenet:DIR --out exact.safetensors
  resnet bn recompute m.safetensors photos/ --split all --out exact.safetensors""",
)
@click.argument("model")
@click.argument("data", required=False)
@click.option("--out", metavar="FILE", required=True, help="The model file to write, a .safetensors file.")
@click.option("--split", metavar="NAME", default="train", show_default=True, help="Which part of DATA.")
@json_option
def recompute(model: str, data: str | None, out: str, split: str, as_json: bool) -> None:
    """Write MODEL anew with the mean and variance of every batch normalisation taken over all training pictures, as in
    the networks that the paper's authors released. Training leaves moving averages there.

    DATA is what train takes; without it, the pictures that the model's run was trained on. Its scores are left out of
    the new file, as they may change.
    """
    from resnetkit.recompute import recompute_statistics
    from resnetkit.terminal import Watcher, counted, live_area, say, screen

    console = screen(stderr=True)
    with live_area(console) as area:
        watcher = Watcher(console, area)
        made = recompute_statistics(
            model,
            data,
            out=out,
            split=split,
            device=device(),
            progress=lambda now: watcher.live(f"{now.done:,} of {counted(now.total, 'picture')}"),
        )
    about = made.provenance["batch_statistics"]
    if as_json:
        emit({"model": out, "batch_statistics": about})
    else:
        where = f"{about['data']}, {about['split']}"
        say(screen(), f"{out}: batch statistics over {counted(about['pictures'], 'picture')} ({where})")
        say(screen(), f"next: resnet evaluate {shlex.quote(out)} DATA")

"""`resnet bench`: every engine at hand, side by side. Starts without torch and numpy."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import click

from resnetkit.shell import emit, json_option, whole_numbers

if TYPE_CHECKING:
    from rich.console import Console

    from resnetkit.bench import Bench, Timed


@click.command(
    short_help="Time every engine at hand on a model.",
    epilog="""\b
Examples:
  resnet bench
  resnet bench resnet18 --batch 1,16 --threads 1,2
  resnet bench runs/flowers --json""",
)
@click.argument("model", default="resnet50")
@click.option("--batch", metavar="N,N,…", default="1,8,32", show_default=True, help="Pictures at a time.")
@click.option("--threads", metavar="N,N,…", help="Of each engine; by default one for each core.")
@json_option
def bench(model: str, batch: str, threads: str | None, as_json: bool) -> None:
    """Time every engine that is installed on MODEL, in turns: pictures per second, latency, memory, time to load, and
    the share of what this machine can do. And say which one "auto" takes.

    MODEL is a run folder, a model file, an exported file, or the name of an architecture, resnet50 by default, which
    gets random weights. An engine whose answers differ from the others' is named and left out.
    """
    batches = whole_numbers("--batch", batch, "1,8,32", least=1)
    numbers = () if threads is None else whole_numbers("--threads", threads, "1,8,32", least=1)
    from resnetkit import bench as benching
    from resnetkit.terminal import Watcher, live_area, screen

    console = screen(stderr=True)
    with ended_cleanly(), live_area(console) as area:
        watcher = Watcher(console, area)
        found = benching.bench(model, batches=batches, threads=numbers, say=watcher.live)
    if as_json:
        emit(found.to_dict())
    else:
        show(screen(), found)


@contextlib.contextmanager
def ended_cleanly() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP raise SystemExit, so that temporary files and processes go away."""

    def leave(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = {signum: signal.signal(signum, leave) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def show(console: Console, found: Bench) -> None:
    """The model, a table for each number of threads, what could not be timed, and what the columns are."""
    from resnetkit.bench import machine
    from resnetkit.terminal import amount, counted, say

    size, about = found.complexity.input[1], machine()
    arch = found.complexity.architecture.name
    name = found.model if found.model == arch else f"{found.model} ({arch})"
    weights = f"{amount(found.weights)}B of weights"
    counts = f"{amount(found.complexity.multiply_adds)} multiply-adds a picture, {weights}"
    say(console, (name, "bold"), f" at {size}x{size}, {found.precision}: {counts}")
    engines = ", ".join(f"{lane.engine} {lane.version}" for lane in found.timed[0].lanes)
    say(console, f"{about['cpu']}, {counted(about['cores'], 'core')}; {engines}")
    for timed in found.timed:
        show_timed(console, found, timed)
    console.print()
    if found.preparing:
        told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.preparing.items())
        say(console, f"preparing, once on a machine: {told}")
    for name, reason in found.unable.items():
        say(console, (f"{name}: ", "red"), reason)
    for reason in found.missing.values():
        say(console, (reason, "yellow"))
    say(
        console,
        "limit: share of the matrix product; above 100 % by Winograd's method, which multiplies less, or by noise",
    )
    say(console, "p99: of fewer than 100 runs the slowest; peak: memory on top of a process without the engine")
    say(console, "load: importing the library and loading the file, which lies in memory already")


def show_timed(console: Console, found: Bench, timed: Timed) -> None:
    """The engines with one number of threads: first the limits, last what "auto" takes."""
    from resnetkit.terminal import counted, new_table, say

    console.print()
    limits = timed.limits
    say(
        console,
        (counted(timed.threads, "thread"), "bold"),
        f": matrix product {limits.sgemm:.1f} GFLOP/s, copying {limits.copy:.1f} GB/s (read and written)",
    )
    say(console, f"batch 1 reads the weights once: {1e3 * found.streaming(timed):.1f} ms at that speed")
    console.print()
    names = ("batch", "images/s", "p50 ms", "p99 ms", "runs", "limit", "peak MB", "load s")
    table = new_table(engine=("engine", "left"), **{name: (name, "right") for name in names})
    for lane in timed.lanes:
        first = lane.engine
        for batch, figures in found.figures(timed, lane).items():
            fast = timed.chosen.get(batch, ("",))[0] == lane.engine
            table.add_row(
                first,
                f"{batch}",
                f"{figures['rate']:.1f}",
                f"{1e3 * (figures['p50'] or 0):.1f}",
                f"{1e3 * (figures['p99'] or 0):.1f}",
                f"{figures['runs']}",
                f"{100 * (figures['share'] or 0):.0f} %",
                "?" if figures["peak"] is None else f"{figures['peak'] / 1e6:.0f}",
                f"{lane.load:.2f}" if first else "",
                style="bold" if fast else "",
            )
            first = ""
    console.print(table)
    console.print()
    for lane in timed.lanes:
        if lane.error is not None:
            say(console, (f"{lane.engine}: ", "red"), lane.error)
    for name, why in timed.chosen.values():
        say(console, f"auto takes {name}: {why}")

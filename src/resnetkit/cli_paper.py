"""`resnet paper …`: the paper's experiments. Starts without torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from resnetkit.errors import UserError
from resnetkit.shell import Commands, complain, emit, json_option
from resnetkit.terminal import Watcher, counted, duration, live_area, new_table, say, screen, shown

if TYPE_CHECKING:
    from rich.console import Console

    from resnetkit.paper.running import Begun, Done

BUDGETS = ["laptop", "workstation", "full"]
RUNS, RESULTS = Path("runs/paper"), "results/paper"
results_option = click.option(
    "--results", metavar="DIR", default=RESULTS, show_default=True, help="Where what was measured is kept."
)


@click.group(
    cls=Commands,
    epilog="""\b
Example:
  resnet paper run degradation --data cifar10:DIR
  resnet paper report""",
)
def paper() -> None:
    """See why depth needs shortcuts: the experiments of "Deep Residual Learning".

    He, Zhang, Ren, Sun 2015, arXiv 1512.03385.
    """


@paper.command(
    "list",
    short_help="Name the paper's tables and figures, and what each costs here.",
    epilog="""\b
Example:
  resnet paper list""",
)
@json_option
def list_items(as_json: bool) -> None:
    """Name every table and figure of the paper: what it shows, the study that runs it, and what that costs here.

    The costs are estimates from a few steps of training that are timed now.
    """
    from dataclasses import asdict

    from resnetkit.paper.claims import ITEMS
    from resnetkit.paper.cost import costs
    from resnetkit.paper.studies import SCALES, STUDIES

    took = costs()
    if as_json:
        items = [asdict(item) for item in ITEMS]
        studies = [{"name": s.name, "about": s.about, "seconds": took[s.name]} for s in STUDIES.values()]
        emit({"items": items, "studies": studies})
        return
    console = screen()
    table = new_table(key=("", "left"))
    table.add_column("shows", overflow="fold")
    table.add_column("see it with", overflow="fold")
    for item in ITEMS:
        how = f"paper run {item.study}" if item.study else f"paper show {item.key}" if item.computed else "not here"
        table.add_row(item.key, item.title, how)
    console.print(table)
    console.print()
    table = new_table(study=("paper run …", "left"))
    for budget in SCALES:
        table.add_column(budget, justify="right", no_wrap=True)
    for study in STUDIES.values():
        table.add_row(study.name, *(f"about {duration(took[study.name][budget])}" for budget in SCALES))
    console.print(table)
    console.print()
    for budget, scale in SCALES.items():
        say(console, f"{budget}: {scale.about}")


@paper.command(
    "show",
    short_help="Print a table beside the paper's numbers.",
    epilog="""\b
Examples:
  resnet paper show table1          from the networks themselves
  resnet paper show table6          beside what was run""",
)
@click.argument("item")
@results_option
@json_option
def show_item(item: str, results: str, as_json: bool) -> None:
    """Print ITEM, a table of the paper, with our numbers beside the printed ones."""
    from resnetkit.paper.tables import table_of

    found = table_of(item, Path(results))
    if as_json:
        emit(found.to_dict())
        return
    console = screen()
    say(console, (found.title, "bold"))
    if found.rows:
        show_rows(console, found.head, found.rows)
    for note in found.notes:
        console.print()
        say(console, note)


def show_rows(console: Console, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table: text to the left, numbers to the right."""
    table = new_table(first=(head[0], "left"))
    for name in head[1:]:
        justify: Literal["left", "right"] = "left" if name in ("output", "block") else "right"
        own = name.startswith("ours")  # as many as there are budgets: broken where they do not fit, never cut
        table.add_column(name.replace(", ", ",\n"), justify=justify, no_wrap=not own, overflow="fold")
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(shown, row))
    console.print()
    console.print(table)


@paper.command(
    "run",
    short_help="Run an experiment; killed, it goes on where it was.",
    epilog="""\b
Examples:
  resnet paper run degradation --data cifar10:DIR
  resnet paper run table6 --data cifar10:DIR --budget full
  resnet paper run imagenet --data tiny-imagenet-50/""",
)
@click.argument("study")
@click.option("--data", metavar="DATA", required=True, help="The pictures, as for train: cifar10:DIR, or a folder.")
@click.option(
    "--budget", type=click.Choice(BUDGETS), default="laptop", show_default=True, help="See: resnet paper list"
)
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="So many of each run; by default the budget's.")
@results_option
@json_option
def run_study(study: str, data: str, budget: Any, seeds: int | None, results: str, as_json: bool) -> int:
    """Run STUDY, one training after the other. What is already there is not run again, what was stopped is resumed.

    The run folders go to runs/paper, what is kept of them to --results; resnet paper report makes the page.
    """
    from resnetkit.events import Stopped
    from resnetkit.paper.running import run_study
    from resnetkit.paper.studies import find_study

    chosen = find_study(study)
    steps = run_study(chosen, data, budget=budget, seeds=seeds, results=Path(results), folder=RUNS)
    try:
        follow(steps, screen(stderr=as_json), as_json)
    except Stopped as stopped:
        given = ["--data", data, "--budget", budget, *(["--seeds", str(seeds)] if seeds else [])]
        again = shlex.join(["resnet", "paper", "run", study, *given, *place_of(results)])
        complain(f"stopped in {stopped.run.name} after step {stopped.step:,}; go on with: {again}")
        return 128 + stopped.signum
    if not as_json:
        say(screen(), f"next: {shlex.join(['resnet', 'paper', 'report', *place_of(results)])}")
    return 0


def place_of(results: str) -> list[str]:
    """The option that says where results are, where it has to be said."""
    return [] if results == RESULTS else ["--results", results]


def follow(steps: Iterable[Any], console: Console, as_json: bool) -> None:
    """Show a study as it goes: a line before and after each run, a live line within."""
    from resnetkit.events import Progress, Reading
    from resnetkit.paper.running import Begun, Done

    head = ""
    with live_area(console) as area:
        watcher = Watcher(console, area)
        for step in steps:
            if isinstance(step, Begun):
                head = heading(step)
                watcher.live(head)
            elif isinstance(step, Done):
                watcher.live("")
                tell(console, step, head)
                if as_json:
                    emit(outcome(step))
            elif isinstance(step, Progress):
                left = f", {duration(step.seconds_left)} left" if step.step > 1 else ""
                watcher.live(f"{head}   step {step.step:,} of {step.steps:,}   loss {step.loss:.3f}{left}")
            elif isinstance(step, Reading):
                watcher.show(step)


def heading(step: Begun) -> str:
    return f"{step.number} of {step.of}: {step.run.name}, seed {step.run.seed}"


def tell(console: Console, step: Done, head: str) -> None:
    """One line for a run that has ended."""
    record = step.record
    if record.diverged is not None:
        what = f"diverged at step {record.diverged:,}"
    else:
        what = f"training error {record.final_train_error:.1f} %, test error {record.test_error:.1f} %"
    say(console, f"{head}   {what}   {duration(record.seconds) if step.fresh else '(was there)'}")


def outcome(step: Done) -> dict[str, Any]:
    """A finished run as JSON."""
    record = step.record
    errors = {"train_error": record.train_error, "test_error": record.test_error if record.result else None}
    return {"run": record.name, "seed": record.seed, "budget": record.budget, **errors, "diverged": record.diverged}


@paper.command(
    "report",
    short_help="One page with every figure and table that was run.",
    epilog="""\b
Example:
  resnet paper report""",
)
@results_option
@click.option("--out", metavar="FILE", help="The page; by default report.html among the results.")
def report(results: str, out: str | None) -> None:
    """Make one page of all that was run: ours beside the paper's, with intervals, settings and deviations."""
    from resnetkit.paper.page import write_page

    path = Path(out) if out else Path(results) / "report.html"
    if path.suffix != ".html":
        raise UserError(f"--out {out}: a page ends in .html")
    runs = write_page(Path(results), path)
    say(screen(), f"{path}: {counted(runs, 'run')}")

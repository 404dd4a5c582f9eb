"""`resnet predict`: answers for pictures as a stream. Starts without torch and numpy, and answers without rich."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Any, NoReturn

import click

from resnetkit.errors import UserError
from resnetkit.shell import complain, emit, is_terminal, json_option, line, note
from resnetkit.terminal import MEASURED_SECONDS, REDRAW_SECONDS, counted, duration, percent, shown

if TYPE_CHECKING:
    from resnetkit.answers import CsvTable, ParquetTable
    from resnetkit.prediction import Prediction

LIST = "-"  # the path that stands for a list on standard input
STDIN = 0
WAIT = 0.05  # seconds that a batch of listed paths waits for another one

Parts = list[str | tuple[str, str]]


@click.command(
    short_help="Say what is in a picture.",
    epilog="""\b
Examples:
  resnet predict runs/flowers a.jpg
  resnet predict runs/flowers a.jpg holiday/ --top 3 --json
  resnet predict m.onnx photos/ --out predictions.csv
  find photos -name '*.jpg' | resnet predict runs/flowers -
  resnet predict m.onnx photos/ --ray --out predictions/""",
)
@click.argument("model")
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "--engine",
    type=click.Choice(["auto", "torch", "onnx", "openvino", "mnn"]),
    default="auto",
    show_default=True,
    help="What computes the answers; auto: what is fastest on this machine.",
)
@click.option("--top", type=click.IntRange(min=1), metavar="N", default=5, show_default=True, help="So many classes.")
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Name no class that is less probable, and say that the model is not sure; by default the model's threshold.",
)
@click.option("--out", metavar="FILE", help="A .csv or .parquet file to write, a row per picture; with --ray a folder.")
@click.option("--append", is_flag=True, help="Go on with the file of --out; pictures that have a row are left out.")
@click.option(
    "--ray", is_flag=True, help="Share the work over the Ray cluster of RAY_ADDRESS, or use this machine alone."
)
@json_option
def predict(
    model: str,
    paths: tuple[str, ...],
    engine: str,
    top: int,
    min_probability: float | None,
    out: str | None,
    append: bool,
    ray: bool,
    as_json: bool,
) -> int:
    """Say what MODEL sees in the pictures PATHS. Folders are walked; - means a list of paths on standard input, one
    a line, answered as they come. MODEL may also be an exported file: .onnx, .xml, .mnn, .pt2.

    One line per picture: path, class, probability, then the next classes. A picture that cannot be read gets a line
    that says why, the rest goes on, and the exit code is 1.

    With --ray the folder of --out gets .parquet parts, in order by name; the same command goes on with what is left.
    """
    from resnetkit import prediction

    if ray:
        return on_cluster(model, paths, out, append, as_json, engine=engine, top=top, min_probability=min_probability)

    if append and out is None:
        raise UserError("--append: goes on with a file; name it with --out")
    where = prediction.place_of(model)
    with ending_in_order(), table_of(model, out, top, append) as table:
        wanted = Wanted(table)
        sources = [None if names is None else wanted(names) for names in planned(paths)]
        total = None if None in sources else wanted.asked
        opened = prediction.start(model, engine, note if is_terminal(stderr=True) or not as_json else None, total)
        looked = prediction.in_words(opened, min_probability)
        if not as_json:
            note(looked)
        if table is not None:
            table.note = looked
        found = prediction.answers(opened, batches(sources, wanted), top, min_probability, where)
        failed = shown_all(found, table, as_json, total)
    if out is not None and not as_json:
        rows = counted(wanted.asked, "row") + (" more" if append else "")
        line(shown(f"{out}: {rows}" + (f", {wanted.skipped:,} were there" if wanted.skipped else "")))
    return ending(failed)


def on_cluster(model: str, paths: Sequence[str], out: str | None, append: bool, as_json: bool, **how: Any) -> int:
    """`predict --ray`: a line, or an object, for the parts that were made."""
    from resnetkit import cluster

    if out is None:
        raise UserError("--ray: writes into a folder; name it with --out")
    if append:
        raise UserError("--append: goes on with a file, and a job with --ray goes on by itself; leave one of them out")
    names = [name for source in planned(paths) for name in (source if source is not None else whole_list())]
    say = note if is_terminal(stderr=True) or not as_json else None
    with ending_in_order():
        plan = cluster.plan(model, iter(names), out, say=say, **how)
        if not as_json:
            note(plan.job.note)
        failed = 0
        with progress(plan.pictures, hidden=False) as done:
            for part in cluster.score(plan):
                failed += part.failed
                done(part.pictures)
                if as_json:
                    emit(vars(part))
    if not as_json:
        there = plan.parts - len(plan.left)
        parts_made = counted(len(plan.left), "part") + (f", {there:,} were there" if there else "")
        line(shown(f"{out}: {counted(plan.pictures, 'row')} in {parts_made}"))
    return ending(failed)


def whole_list() -> list[str]:
    """The pictures of a list on standard input, once it has ended."""
    from resnetkit.prediction import found_below

    return [name for paths in listed(STDIN) for path in paths for name in found_below(path)]


def ending(failed: int) -> int:
    """Say how many pictures could not be read; the exit code."""
    if failed:
        complain(f"{counted(failed, 'picture')} could not be read; the reason stands in place of the class")
    return 1 if failed else 0


@contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that a file is finished."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def table_of(
    model: str, out: str | None, top: int, append: bool
) -> AbstractContextManager[CsvTable | ParquetTable | None]:
    """The file to write into, if there shall be one. Raises UserError."""
    if out is None:
        return nullcontext()
    from resnetkit import answers
    from resnetkit.about import model_path
    from resnetkit.engines import files

    path = answers.check_target(out, append)
    digest = files.read(model_path(model)).digest if path.suffix == ".parquet" else ""
    return answers.open_table(out, top, append=append, model=digest)


# Which pictures


class Wanted:
    """Leaves out the pictures that a file has rows of, and counts."""

    def __init__(self, table: CsvTable | ParquetTable | None) -> None:
        self.table, self.asked, self.skipped = table, 0, 0

    def __call__(self, names: list[str]) -> list[str]:
        kept = names if self.table is None else [name for name in names if name not in self.table]
        self.asked += len(kept)
        self.skipped += len(names) - len(kept)
        return kept


def planned(paths: Sequence[str]) -> Iterator[list[str] | None]:
    """The pictures of the paths between two lists together, and None for a list. Raises UserError."""
    from resnetkit.prediction import picture_files

    for is_list, group in groupby(paths, lambda path: path == LIST):
        yield None if is_list else [name for path in group for name in picture_files(path)]


def batches(sources: Sequence[list[str] | None], wanted: Wanted) -> Iterator[list[str]]:
    """What the engine gets, batch by batch."""
    from resnetkit.prediction import found_below, in_batches

    for source in sources:
        if source is not None:
            yield from in_batches(source)
            continue
        for paths in listed(STDIN):
            names = wanted([name for path in paths for name in found_below(path)])
            yield from in_batches(names) if names else [[]]


def listed(descriptor: int) -> Iterator[list[str]]:
    """The paths of a list as they come: a batch of those that are there, and an empty one while there are none.

    So whoever writes a path gets its answer, and does not wait for others to fill a batch.
    """
    from resnetkit.prediction import BATCH

    paths: list[str] = []
    begun, open_ = b"", True
    while open_ or paths:
        if open_ and len(paths) < BATCH and select.select([descriptor], [], [], WAIT)[0]:
            block = os.read(descriptor, 1 << 16)
            open_ = bool(block)
            *lines, begun = (begun + (block or b"\n")).split(b"\n")
            paths += [os.fsdecode(name) for name in lines if name]
            if len(paths) < BATCH and open_:
                continue
        yield paths[:BATCH]
        del paths[:BATCH]


# What is shown


def shown_all(
    found: Iterator[list[Prediction]], table: CsvTable | ParquetTable | None, as_json: bool, total: int | None
) -> int:
    """Show the answers, and write them; how many are errors."""
    failed = 0
    show = show_nothing if table is not None and not as_json else shower(as_json)
    with progress(total, hidden=show is not show_nothing and is_terminal()) as done:
        for batch in found:
            if table is not None:
                table.write(batch)
            for answer in batch:
                show(answer)
                failed += answer.error is not None
            done(len(batch))
    return failed


def show_nothing(_: Prediction) -> None:
    """The file has it."""


def shower(as_json: bool) -> Callable[[Prediction], None]:
    """What prints an answer on standard output, with rich where that is a terminal."""
    if as_json:
        return lambda answer: emit(answer.to_dict())
    if not is_terminal():
        return lambda answer: line(shown("".join(part if isinstance(part, str) else part[0] for part in parts(answer))))
    from resnetkit.terminal import say, screen

    console = screen()
    return lambda answer: say(console, *parts(answer))


def parts(prediction: Prediction) -> Parts:
    """One line: path, class and probability, then the other likely classes; or why there is no answer."""
    start = f"{prediction.path}: "
    if prediction.error is not None:
        return [start, ("error", "red"), f": {prediction.error}"]
    classes = [f"{name} {percent(share, 1)}" for name, share in prediction.top]
    said = int(prediction.answer is not None) if prediction.labels is None else len(prediction.labels)
    first, others = ", ".join(classes[:said]) or prediction.nothing, classes[said:]
    return [start, (first, "bold"), f"  ({', '.join(others)})" if others else ""]


@contextmanager
def progress(total: int | None, *, hidden: bool) -> Iterator[Callable[[int], None]]:
    """A live line on standard error that is told how many more are done; nothing where it is no terminal, or hidden."""
    if hidden or not is_terminal(stderr=True):
        yield lambda _: None
        return
    from resnetkit.terminal import Watcher, live_area, screen

    console = screen(stderr=True)
    with live_area(console) as area:
        watcher, began, done = Watcher(console, area), time.monotonic(), 0

        def more(number: int) -> None:
            nonlocal done
            done += number
            now = time.monotonic()
            if now >= watcher.drawn + REDRAW_SECONDS:
                watcher.drawn = now
                watcher.live(progress_line(done, total, now - began))

        yield more


def progress_line(done: int, total: int | None, seconds: float) -> str:
    """`1,024 pictures   312 images/s   12 min left`, when this took so many seconds."""
    text = counted(done, "picture")
    if not done or seconds <= 0:
        return text
    rate = done / seconds
    left = f"   {duration((total - done) / rate)} left" if total is not None and seconds >= MEASURED_SECONDS else ""
    return f"{text}   {rate:,.{1 if rate < 10 else 0}f} images/s{left}"

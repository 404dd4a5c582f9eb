"""What a person sees: training as it goes, and networks, scores and predictions as text that fits 80 columns.

On a terminal there is one live line for the current epoch; elsewhere nothing but whole lines. rich does the drawing and
is imported when something is drawn; it honours NO_COLOR.
"""

from __future__ import annotations

import math
import shlex
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from resnetkit.errors import shown_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    from resnetkit.complexity import Complexity
    from resnetkit.evaluation import Result
    from resnetkit.events import EpochDone, Event, Finished, Found, Progress
    from resnetkit.model import Architecture
    from resnetkit.protocol import Scoring
    from resnetkit.sharding import Sharding
    from resnetkit.weights import ModelFile

CLASSES_SHOWN = 20  # rows of the per-class table, the worst ones
BAD_SHOWN = 10  # pictures left out that are named
MEASURED_STEPS, MEASURED_SECONDS = 5, 2.0  # before the time left is worth saying: the first steps pay for warming up
REDRAW_SECONDS = 0.1


def screen(*, stderr: bool = False) -> Console:
    """Standard output, or standard error where output is data, as rich draws on it."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def shown(text: str) -> str:
    """`text` as it may be printed: controls, which would move the cursor, and bytes that are not UTF-8 as escapes."""
    if text.isprintable():
        return text
    escaped = ("Cc", "Zl", "Zp")
    text = "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in escaped else c for c in text)
    return shown_name(text)


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """One line, which the terminal breaks and not we; a part may be (text, style)."""
    from rich.text import Text

    clean = [shown(part) if isinstance(part, str) else (shown(part[0]), part[1]) for part in parts]
    console.print(Text.assemble(*clean), soft_wrap=True)


def percent(share: float, places: int = 2) -> str:
    return f"{100 * share:.{places}f} %"


def duration(seconds: float) -> str:
    """As a person would say it: `40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def amount(number: int) -> str:
    """With three figures: `11.5 G`, `556 M`, `64.0 k`."""
    for unit, size in (("E", 10**18), ("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:
            value = number / size
            places = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{places}f} {unit}"
    return str(number)


# Training


def follow(events: Iterable[Event], console: Console) -> Finished:
    """Show the events of a training as they come, and return the last one. What the training raises passes through."""
    from resnetkit.events import Finished

    finished: Finished | None = None
    with live_area(console) as area:
        watcher = Watcher(console, area)
        for event in events:
            watcher.show(event)
            if isinstance(event, Finished):
                finished = event
    assert finished is not None, "a training ends with Finished or raises"
    show_end(console, finished, watcher.split)
    return finished


def live_area(console: Console) -> AbstractContextManager[Live | None]:
    """The place of a line that is overwritten; None where there is no terminal."""
    from rich.live import Live

    # Not console.is_terminal: FORCE_COLOR makes that true in a log file, where a live line is litter.
    live = console.file.isatty() and not console.is_dumb_terminal
    return Live(console=console, auto_refresh=False, transient=True) if live else nullcontext()


class Watcher:
    """Shows one event after the other; `area` is the live line of a terminal, None elsewhere."""

    def __init__(self, console: Console, area: Live | None) -> None:
        self.console, self.area = console, area
        self.split = "val"  # of the final score
        self.began: tuple[int, float] | None = None  # step and time of the first Progress
        self.drawn = -math.inf
        self.told = False

    def show(self, event: Event) -> None:
        from resnetkit.events import Embedding, EpochDone, Evaluating, Found, Progress, Reading

        if isinstance(event, Reading):
            self.live(f"reading pictures: {event.done:,} of {event.total:,}")
        elif isinstance(event, Embedding):
            self.live(f"embedding pictures: {event.done:,} of {event.total:,}")
        elif isinstance(event, Found):
            self.found(event)
        elif isinstance(event, Progress):
            now = time.monotonic()
            self.tell_time(event, now)
            if now >= self.drawn + REDRAW_SECONDS:  # steps may be short
                self.drawn = now
                self.live(progress_line(event))
        elif isinstance(event, EpochDone):
            self.live("")
            say(self.console, *epoch_line(event))
        elif isinstance(event, Evaluating):
            self.split = event.split
            self.live(f"scoring {event.n:,} pictures ({event.split})")

    def live(self, text: str) -> None:
        """The line that is overwritten."""
        if self.area is not None:
            from rich.text import Text

            self.area.update(Text(shown(text), no_wrap=True, overflow="ellipsis"), refresh=True)

    def found(self, event: Found) -> None:
        self.live("")
        for line in event.lines:
            say(self.console, line)

    def tell_time(self, event: Progress, now: float) -> None:
        """Once, when enough is measured: how long the whole will take."""
        step, moment = self.began = self.began or (event.step, now)
        measured = event.step >= step + MEASURED_STEPS and now >= moment + MEASURED_SECONDS
        if measured and math.isfinite(event.seconds_left) and not self.told:
            self.told = True
            say(self.console, f"about {duration(event.seconds_left)}, measured on the first steps")


def progress_line(event: Progress) -> str:
    left = f"   {duration(event.seconds_left)} left" if math.isfinite(event.seconds_left) else ""
    return (
        f"{place(event.epoch, event.epochs)}   {100 * event.step // max(1, event.steps)} %   loss {event.loss:.4f}   "
        f"lr {event.lr:.3g}   {event.images_per_second:,.0f} images/s{left}"
    )


def place(epoch: int, epochs: int) -> str:
    """`epoch  3/20`, as wide for every epoch."""
    return f"epoch {epoch:>{len(str(epochs))}}/{epochs}"


def epoch_line(event: EpochDone) -> list[str | tuple[str, str]]:
    """`epoch  3/20   loss 0.5123   train 84.12 %   val 91.20 %   1,234 images/s   12 s`; below 80 columns."""
    about = f"{place(event.epoch, event.epochs)}   loss {event.train_loss:.4f}   train {percent(event.train_top1)}"
    parts: list[str | tuple[str, str]] = [about]
    if event.score is not None:
        parts += [f"   {event.score['split']} ", (headline(event.score), "bold")]
    parts.append(f"   {event.images_per_second:,.0f} images/s   {duration(event.seconds)}")
    return parts


def headline(score: dict[str, Any]) -> str:
    """What the log keeps of a score, in a word."""
    return percent(score["top1"]) if "top1" in score else f"mAP {percent(score['mean_average_precision'])}"


def show_end(console: Console, finished: Finished, split: str) -> None:
    """The last lines: the score with its interval, where the report is, what to type next."""
    say(console, f"{split}: {finished.result.title} ", (str(finished.result), "bold"))
    show_bad(console, finished.result.bad)
    say(console, f"report: {finished.report}")
    say(console, f"next: resnet predict {shlex.quote(str(finished.run))} a.jpg")


# Scores


@contextmanager
def scoring() -> Iterator[Callable[[Scoring], None]]:
    """A live line on standard error for `evaluate`, which may take hours; nothing where that is no terminal."""
    console = screen(stderr=True)
    with live_area(console) as area:
        watcher, began = Watcher(console, area), time.monotonic()

        def show(event: Scoring) -> None:
            now = time.monotonic()
            if now >= watcher.drawn + REDRAW_SECONDS:
                watcher.drawn = now
                watcher.live(scoring_line(event, now - began))

        yield show


def scoring_line(event: Scoring, seconds: float) -> str:
    """`scoring 1,024 of 50,000 pictures, model 1 of 2   12 min left`, when this took so many seconds."""
    done = ((event.member - 1) * event.total + event.done) / (event.members * event.total)
    which = f", model {event.member} of {event.members}" if event.members > 1 else ""
    left = f"   {duration(seconds * (1 - done) / done)} left" if done and seconds >= MEASURED_SECONDS else ""
    return f"scoring {event.done:,} of {counted(event.total, 'picture')}{which}{left}"


def show_result(console: Console, result: Result) -> None:
    """A score: the line, the protocol, the further figures, the classes with the lowest recall."""
    say(console, "top-1 ", (str(result), "bold"))
    if result.top5 is not None and result.top5_interval is not None:
        low, high = result.top5_interval
        say(console, f"top-5 {percent(result.top5)} (95 % interval {100 * low:.2f} to {100 * high:.2f})")
    say(console, f"balanced accuracy {percent(result.balanced_accuracy)}")
    say(console, f"negative log-likelihood {result.nll:.4f} nats")
    say(console, f"expected calibration error {percent(result.ece)}")
    say(console, f"protocol: {result.protocol}")
    show_bad(console, result.bad)
    console.print()
    table = new_table(class_=("class", "left"), correct=("correct", "right"), recall=("recall", "right"))
    table.add_column("95 % interval", justify="right", no_wrap=True)
    worst = sorted(result.per_class, key=lambda row: (row.top1, row.name))
    for row in worst[:CLASSES_SHOWN]:
        low, high = row.top1_interval
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        table.add_row(shown(row.name), f"{row.correct:,} of {row.n:,}", percent(row.top1, 1), interval)
    console.print(table)
    if len(worst) > CLASSES_SHOWN:
        say(console, f"… {len(worst) - CLASSES_SHOWN} more; --json has all")


def show_bad(console: Console, bad: dict[str, str]) -> None:
    """Pictures that were left out, by name."""
    if not bad:
        return
    say(console, (f"left out, because unreadable: {counted(len(bad), 'picture')}", "yellow"))
    for path, reason in list(bad.items())[:BAD_SHOWN]:
        say(console, f"  {path}: {reason}")
    if len(bad) > BAD_SHOWN:
        say(console, f"  … {len(bad) - BAD_SHOWN} more; --json has all")


# Shards


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """A live line on standard error for work that may take hours; nothing where that is no terminal."""
    console = screen(stderr=True)
    with live_area(console) as area:
        yield Watcher(console, area).live


def sharding_line(event: Sharding) -> str:
    return f"{'verified' if event.verifying else 'written'}: {event.done:,} of {counted(event.total, 'picture')}"


# Networks


def show_model(console: Console, complexity: Complexity, file: ModelFile | None = None) -> None:
    """A network as the paper's Table 1 has it, with totals; of a model file also what it was made for and scored."""
    arch = complexity.architecture
    channels, height, width = complexity.input
    say(console, (arch.name, "bold"), f": input {height}x{width}, {counted(channels, 'channel')}; {choices(arch)}")
    console.print()
    table = new_table(stage=("stage", "left"), output=("output", "right"))
    table.add_column("blocks", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("multiply-\nadds", justify="right", no_wrap=True)
    for index, stage in enumerate(complexity.stages):
        output = f"{stage.output[1]}x{stage.output[2]}"
        table.add_row(stage.name, output, blocks(arch, index), f"{stage.parameters:,}", amount(stage.multiply_adds))
    console.print(table)
    console.print()
    say(
        console,
        f"{complexity.layers} weighted layers, {complexity.parameters:,} parameters, "
        f"{amount(complexity.multiply_adds)} multiply-adds (1 multiply-add = 2 FLOPs)",
    )
    if file is not None:
        show_file(console, file)


def blocks(arch: Architecture, index: int) -> str:
    """Row `index` of Table 1: `[1x1, 64 | 3x3, 64 | 1x1, 256] x 3`; the stem is 0, the dense layer the last."""
    from resnetkit.model import inner_width

    if index == 0:
        kernel = "7x7" if arch.stem_stride == 4 else "3x3"
        half = f"3x3, {arch.width // 2}"
        layers = f"{kernel}, {arch.width}" if arch.stem == "single" else f"{half} | {half} | 3x3, {arch.width}"
        return layers + ("" if arch.stem_stride == 1 else ", stride 2")
    if index > len(arch.blocks):
        return f"average pool, {arch.classes}-d fc"
    width = arch.width << (index - 1)
    inside = f"3x3, {width} | 3x3, {width}"
    if arch.block == "bottleneck":
        inner = inner_width(arch, width)
        grouped = f" in {arch.groups} groups" if arch.groups > 1 else ""
        inside = f"1x1, {inner} | 3x3, {inner}{grouped} | 1x1, {4 * width}"
    pool = "3x3 max pool, stride 2\n" if index == 1 and arch.stem_stride == 4 else ""
    return f"{pool}[{inside}] x {arch.blocks[index - 1]}"


def choices(arch: Architecture) -> str:
    """Where implementations differ, and what this network has."""
    from resnetkit.complexity import traits

    words = ["no shortcuts" if arch.shortcut == "none" else f"shortcut {arch.shortcut}"]
    if arch.block == "bottleneck":
        words.append(f"stride in the {arch.stride}")
    own = traits(arch)
    in_table = ("stem_stride", "width", "channels", "shortcut", "stride", "groups", "base_width")
    return ", ".join([*words, *(text for key, text in own.items() if key not in in_table)])


def show_file(console: Console, file: ModelFile) -> None:
    """What stands in a model file beside the weights."""
    names = ", ".join(file.classes[:10]) + (", …" if len(file.classes) > 10 else "")
    console.print()
    say(console, f"{counted(len(file.classes), 'class', 'classes')}: {names}")
    say(console, f"preprocess: {file.preprocess}")
    scored = file.metrics
    if {"top1", "top1_interval", "correct", "n"} <= scored.keys():
        low, high = scored["top1_interval"]
        interval = f"95 % interval {100 * low:.2f} to {100 * high:.2f}"
        say(console, f"top-1 {percent(scored['top1'])} ({scored['correct']:,} of {scored['n']:,}; {interval})")
        say(console, f"protocol: {scored.get('protocol', 'not told')}")
    if "mean_average_precision" in scored:
        say(console, f"mAP {percent(scored['mean_average_precision'])} ({counted(scored['n'], 'picture')})")
        say(console, f"protocol: {scored.get('protocol', 'not told')}")
    if file.calibration:
        say(console, calibration_line(file.about.temperature, file.calibration))
    for key, value in file.provenance.items():
        if value is not None:
            say(console, f"{key}: {plain(value)}")


def calibration_line(temperature: float, about: dict[str, Any]) -> str:
    """A temperature and where it is from, as far as the file says."""
    line = f"temperature {temperature:.4g}"
    if {"n", "data", "split"} <= about.keys():
        line += f", fitted on {counted(about['n'], 'picture')} ({about['data']}, {about['split']})"
    if {"before", "after"} <= about.keys():
        before, after = about["before"], about["after"]
        line += f"; negative log-likelihood {before['nll']:.4f}, then {after['nll']:.4f} nats"
        line += f"; calibration error {percent(before['ece'])}, then {percent(after['ece'])}"
    return line


def plain(value: Any) -> str:
    """A value of the provenance on a line: of a table its plain values, so of a recipe its name."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if isinstance(item, str | int | float))
    return str(value)


def counted(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def new_table(**columns: tuple[str, Any]) -> Table:
    """A table without frame, two columns apart. The first column is broken where it is too long, the others are not."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index, (name, justify) in enumerate(columns.values()):
        table.add_column(name, justify=justify, no_wrap=index > 0, overflow="fold")
    return table

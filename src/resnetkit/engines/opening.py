"""A model, whatever its file, as a function from pictures to logits, in the engine that is fastest here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetkit.about import About, model_path
from resnetkit.data.loader import default_threads
from resnetkit.engines import cache, files
from resnetkit.engines.engine import ENGINES, Engine, installation, need
from resnetkit.engines.files import Source
from resnetkit.engines.preparing import forget, is_intact, place_of, prepared
from resnetkit.engines.starting import engines_for, module_of, start
from resnetkit.errors import UserError

if TYPE_CHECKING:  # what times engines is needed once for a model
    from resnetkit.engines.race import Entry, Lane

# Loaded only after the file was found whole: MNN ends the process at many a damaged one.
CAREFUL = ("torch", "mnn")
SECONDS = 12.0  # that the engines are timed for, once they are loaded
Say = Callable[[str], None] | None


@dataclass(frozen=True)
class Opened:
    """A model that answers.

    run        uint8 (N, size, size, C), as `Preprocess.fit` gives them, to logits float32 (N, classes)
    engine     the name of the engine, `why` it is that one in words
    precision  "fp32" or "int8"
    """

    about: About
    run: Engine
    engine: str
    why: str
    precision: str


def open_engine(
    model: str | Path,
    engine: str = "auto",
    *,
    batch: int = 16,
    once: bool = False,
    threads: int | None = None,
    say: Say = None,
) -> Opened:
    """Load a model file, run folder or exported file into an engine. Raises UserError.

    engine   "auto", the fastest here for `batch` pictures at a time, or one by name
    once     there is one batch only, so auto counts the time to load too
    say      is told in a sentence what takes time
    """
    source = files.peek(model_path(model))
    threads = threads or default_threads()
    if engine != "auto":
        check(source, engine)
    # Whether the files are whole is looked at while the engine loads them.
    with place_of(source) as (place, lasting), ThreadPoolExecutor(2, thread_name_prefix="verify") as pool:
        whole = pool.submit(files.verify, source)
        name, why = (
            (engine, "asked for") if engine != "auto" else choose(source, batch, threads, place, lasting, say, once)
        )
        if name in CAREFUL:
            whole.result()
        if name == "torch":
            run = start(name, source, threads, device=device())
        else:
            run = loaded(source, name, threads, place, pool, say)
            whole.result()
    return Opened(source.about, run, name, why, source.precision)


def loaded(source: Source, name: str, threads: int, place: Path, pool: Executor, say: Say) -> Engine:
    """The engine with what was prepared for it, or with that made anew where it is damaged. Raises UserError."""
    ready = prepared(source, name, place, say)
    if ready is None:
        return start(name, source, threads)
    intact = pool.submit(is_intact, name, place)
    if name not in CAREFUL or intact.result():
        try:
            run = start(name, source, threads, ready)
        except UserError:
            if intact.result():
                raise
        if intact.result():
            return run
    forget(name, place)
    return start(name, source, threads, prepared(source, name, place, say))


def check(source: Source, engine: str) -> None:
    """Raise UserError for an engine that is none, is not installed, or cannot run this file."""
    if engine not in ENGINES:
        module_of(engine)
    if engine not in engines_for(source):
        raise UserError(
            f"engine {engine}: cannot run {source.path} ({source.precision}); "
            f"choose from {', '.join(engines_for(source))}"
        )
    need(engine)


def device() -> str:
    """Where torch runs."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def has_gpu() -> bool:
    """Whether there may be a GPU for torch, without asking torch, which takes seconds."""
    return Path("/proc/driver/nvidia/version").exists()


def choose(
    source: Source, batch: int, threads: int, place: Path, lasting: bool, say: Say, once: bool = False
) -> tuple[str, str]:
    """The name of the fastest engine, and why it is that one: remembered, or found out in a race."""
    names = [name for name in engines_for(source) if installation(name) is not None]
    if not names:
        need(engines_for(source)[0])
    if "torch" in names and has_gpu() and device() == "cuda":
        return "torch", "there is a GPU"
    if len(names) == 1:
        others = len(engines_for(source)) - 1
        return names[0], "no other is installed" if others else f"the engine of {source.path.suffix} files"
    conditions = {"engines": {name: installation(name) for name in names}, "processor": cache.processor()}
    key = f"choice-{'once' if once else batch}-{threads}"
    known = cache.recall(place, key)
    if known is not None and known.items() >= conditions.items() and known.get("engine") in names:
        cache.touch(place)
        return known["engine"], str(known.get("why"))
    if not lasting:
        first = next(name for name in ENGINES if name in names)
        return first, "the cache cannot be written, so nothing was timed"
    if say is not None:
        say(f"{source.path}: looking for the fastest engine, once on this machine ({', '.join(names)})")
    from resnetkit.engines.race import fastest, race

    lanes = race(entries(source, names, place), [batch], threads=threads, seconds=SECONDS)
    best = fastest(lanes, batch, once=once)
    why = reason(lanes, batch, once)
    cache.remember(place, key, {**conditions, "engine": best, "why": why})
    cache.prune(place)
    return best, why


def entries(source: Source, names: list[str], place: Path) -> list[Entry]:
    """What races: the engines that can have this network, the file's own first."""
    from resnetkit.engines.race import Entry

    found = []
    for name in names:
        try:
            found.append(Entry(name, source.path, prepared(source, name, place)))
        except UserError:
            if name == engines_for(source)[0]:
                raise
    return found


def reason(lanes: list[Lane], batch: int, once: bool = False) -> str:
    """In words, with the rates that decided, or the seconds."""
    if once:
        soon = sorted((lane.once(batch), lane.engine) for lane in lanes if lane.error is None)
        return f"soonest here: {', '.join(f'{name} {seconds:.2g}' for seconds, name in soon)} s to load and answer"
    rates: list[Any] = [(lane.engine, lane.best(batch)) for lane in lanes if lane.error is None]
    told = ", ".join(f"{name} {rate:.3g}" for name, rate in sorted(rates, key=lambda each: -each[1]))
    lost = [f"{lane.engine} failed" for lane in lanes if lane.error is not None]
    return f"fastest here: {', '.join([told, *lost])} images/s in batches of {batch}"

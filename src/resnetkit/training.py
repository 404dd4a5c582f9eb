"""The verbs `train` and `resume`, and the same as streams of events (`training`, `resuming`).

The final weights are the last ones (or their average, with EMA), never the ones with the best score, so the final
score is that of pictures which decided nothing.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from resnetkit import checkpoint, runs
from resnetkit.about import MODEL_FILE
from resnetkit.atomic import write_json
from resnetkit.data.audit import Audit, fingerprint
from resnetkit.data.excluded import names_of_run, read_names, without_names
from resnetkit.data.loader import Reader
from resnetkit.data.pictures import Data, check_trainable, count
from resnetkit.data.problems import problems
from resnetkit.data.source import absolute
from resnetkit.data.split import load_split, split_training
from resnetkit.data.transforms import Preprocess
from resnetkit.distributed import ALONE, Ranks, joined
from resnetkit.errors import UserError
from resnetkit.evaluation import Score, choose_split, describe_protocol, score
from resnetkit.events import Evaluating, Event, Finished, Found, Stopped
from resnetkit.frozen import FrozenLoop
from resnetkit.looking import look_at, open_both
from resnetkit.loop import Loop, State, determinism
from resnetkit.recipe import Optim, Recipe
from resnetkit.recipe_file import from_dict, to_dict
from resnetkit.report import write_report
from resnetkit.resolve import Resolved, resolve
from resnetkit.shipped import shipped
from resnetkit.starting import assumed_line, fill, opening_lines, starting_weights
from resnetkit.trackers import check_trackers
from resnetkit.tracking import keep, tracked
from resnetkit.weights import ModelFile, read_architecture, save_model


@dataclass(frozen=True)
class Wish:
    """What `train` was asked for."""

    data: str | Path
    val: str | Path | None
    recipe: Recipe
    weights: str | None
    track: tuple[str, ...]
    exclude: tuple[str, ...] = ()  # names of pictures

    @property
    def places(self) -> tuple[str, str | None]:
        """Where the pictures are, and those to check with, from wherever one asks."""
        return absolute(self.data), absolute(self.val) if self.val is not None else None


def train(
    data: str | Path,
    *,
    val: str | Path | None = None,
    recipe: Recipe | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    track: Sequence[str] = (),
    exclude: Sequence[str | Path] = (),
) -> Finished:
    """Train a classifier on labelled pictures and measure it.

    data     a folder, a table, or `fashion-mnist:DIR` and the like; see `open_data`
    val      pictures to check with, of the same classes, where `data` has none; as `data`
    recipe   None: "small", or "finetune" with weights
    weights  a model file, a run folder, or a state dict of torchvision's names to begin from
    out      the run folder, which must not exist; None: the next free runs/NAME-N
    track    who is told while it runs: "tensorboard", "mlflow", "wandb"; see `tracking`
    exclude  files with names of pictures to leave out; see `data.excluded`
    Raises UserError for wrong input, Stopped after SIGINT or SIGTERM.
    """
    return last(training(data, val=val, recipe=recipe, weights=weights, out=out, track=track, exclude=exclude))


def resume(run: str | Path) -> Finished:
    """Go on with a run that was stopped or killed, to the same bits as if it had not been."""
    return last(resuming(run))


def last(events: Iterator[Event]) -> Finished:
    """Run to the end, dropping the events on the way."""
    (end,) = deque(events, maxlen=1)
    assert isinstance(end, Finished)
    return end


def training(
    data: str | Path,
    *,
    val: str | Path | None = None,
    recipe: Recipe | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    track: Sequence[str] = (),
    exclude: Sequence[str | Path] = (),
) -> Iterator[Event]:
    """`train` as a stream of events.

    Under torchrun, which starts the same command again after a failure, a run that lies in `out` and is not finished is
    gone on with, if it was begun with the same recipe and pictures.
    """
    recipe = recipe or shipped("finetune" if weights else "small")
    recipe = from_dict(to_dict(recipe), where="the recipe")
    check_trackers(track)
    with joined() as ranks:
        wish = Wish(data, val, recipe, str(weights) if weights else None, tuple(track), read_names(exclude))
        folder, there = ranks.agreed(lambda: find_folder(ranks, out, wish))
        yield from going_on(folder, ranks) if there else beginning(folder, wish, ranks)


def resuming(run: str | Path) -> Iterator[Event]:
    """`resume` as a stream of events."""
    with joined() as ranks:
        yield from going_on(Path(run), ranks)


def find_folder(ranks: Ranks, out: str | Path | None, wish: Wish) -> tuple[Path, bool]:
    """The run folder, and whether there is a run in it to go on with. Raises UserError."""
    if ranks is ALONE:
        return runs.new_folder(out, str(wish.data)), False
    if out is None:
        raise UserError("--out: say where the run goes; torchrun may start this command again, which must then find it")
    folder = Path(out)
    if not (folder / "recipe.json").exists() or (runs.is_finished(folder) and not ranks.restarted):
        return runs.new_folder(out, str(wish.data)), False
    runs.check_begun(folder, *wish.places, wish.weights, wish.recipe, wish.exclude)
    return folder, True


def beginning(folder: Path, wish: Wish, ranks: Ranks) -> Generator[Event, None, None]:
    """A new run, from the pictures to its end."""
    recipe = wish.recipe
    given = starting_weights(wish.weights, recipe) if wish.weights else None
    found = without_names(open_both(wish.data, wish.val, several=True), wish.exclude)
    check_trainable(found)
    whole, audit = yield from look_at(found, recipe, ranks)
    check_trainable(whole)
    split = split_training(whole, recipe.data.val, recipe.run.seed, audit.digest)
    yield from begun(folder, wish, given, split, audit, ranks, divided=set(split.splits) != set(found.splits))


def begun(
    folder: Path, wish: Wish, given: ModelFile | None, split: Data, audit: Audit, ranks: Ranks, *, divided: bool
) -> Generator[Event, None, None]:
    """A new run on pictures that were looked at and divided, `divided` by us, to its end."""
    resolved = ranks.agreed(lambda: resolve(wish.recipe, split, audit, given))
    data, val = wish.places
    environment = runs.this_environment(
        data,
        fingerprint(split, audit),
        wish.weights,
        torch.device(str(resolved.recipe.run.device)),
        derived=(*resolved.rules, *assumed_line(given)),
        notes=split.notes,
        val=val,
        asked=wish.recipe,
        excluded=len(wish.exclude),
        spec=split.spec,
        ranks=ranks,
    )
    with determinism(resolved.recipe):
        loop = make_loop(folder, resolved, split, audit, ranks)
        if given is not None:
            fill(loop.state, given, same_head=given.classes == split.classes)
        if ranks.first:
            with runs.creating(folder) as part:
                runs.write_beginning(part, resolved.recipe, environment, split, divided=divided, exclude=wish.exclude)
                keep(part, wish.track)
                loop.begin(part)
        yield Found(tuple(opening_lines(split, audit, resolved, environment, loop.state.network)))
        with runs.locked(folder) if ranks.first else nullcontext():
            yield from told(loop, audit)


def going_on(folder: Path, ranks: Ranks) -> Generator[Event, None, None]:
    """A run from its last checkpoint to its end."""
    recipe, environment = runs.read_recipe(folder), runs.read_environment(folder)
    with runs.locked(folder) if ranks.first else nullcontext():
        if ranks.first:
            runs.sweep(folder)
        found = open_both(environment.data, environment.val, several=True)
        opened = without_names(found, names_of_run(folder, environment.excluded))
        whole, audit = yield from look_at(opened, recipe, ranks)
        if fingerprint(whole, audit) != environment.fingerprint:
            raise UserError(
                f"{environment.data}: the pictures are not those that {folder} was begun with; bring those back, "
                "or begin a new run with resnet train"
            )
        table = folder / "split.csv"
        split = load_split(whole, table) if table.exists() else whole
        split = replace(split, notes=environment.notes, spec=environment.spec or split.spec)
        tensors, meta, notes = ranks.agreed(lambda: checkpoint.load_latest(folder))
        torch.set_num_threads(environment.torch_threads)  # another number would sum floats in another order
        preprocess = Preprocess.from_dict(meta["preprocess"])
        resolved = Resolved(recipe, read_architecture(meta["architecture"]), preprocess, environment.derived)
        with determinism(recipe):
            loop = make_loop(folder, resolved, split, audit, ranks)
            loop.restore(tensors, meta)
            changed = runs.decoder_changed(environment)
            yield Found((*notes, *changed, f"resuming {folder} at step {loop.state.step:,} of {loop.steps:,}"))
            yield from told(loop, audit)


def make_loop(folder: Path, resolved: Resolved, data: Data, audit: Audit, ranks: Ranks = ALONE) -> Loop:
    """The loop at its first step, with the decoded pictures kept in memory when all of them fit.

    The ranks of one machine share its threads and its memory. Raises UserError where they cannot share the batch.
    """
    if resolved.recipe.optim.optimizer == "lbfgs" and ranks is not ALONE:
        raise UserError('optim.optimizer="lbfgs": one process fits the dense layer; start it without torchrun')
    check_shares(resolved.recipe.optim, ranks.world)
    run, preprocess = resolved.recipe.run, resolved.preprocess
    if run.device == "cuda" and ranks.local >= torch.cuda.device_count():
        has = count(torch.cuda.device_count(), "GPU", "GPUs")
        raise UserError(f"rank {ranks.rank}: there is no GPU for it, as this machine has {has}; give each rank its own")
    used = data.used() if audit.whole else audit.indices
    seen = int((audit.width[used].astype("int64") * audit.height[used]).sum())
    pixels = seen * len(data.used()) // max(1, len(used))
    keep = pixels * preprocess.channels * ranks.here <= run.cache_mb * 2**20
    threads = max(1, int(run.threads) // ranks.here)
    reader = Reader(data, preprocess, threads=threads, keep=keep, here=ranks.here)
    if resolved.recipe.optim.optimizer == "lbfgs":
        return FrozenLoop(folder, resolved, data, reader, State(resolved), audit)
    return Loop(folder, resolved, data, reader, State(resolved), ranks)


def check_shares(optim: Optim, world: int) -> None:
    """Raise UserError where a batch cannot be divided among so many ranks, or a rank's part into ghost batches."""
    batch = int(optim.batch)
    if batch % world:
        fits = [size for size in (batch // world * world, (batch // world + 1) * world) if size]
        raise UserError(
            f"optim.batch={batch}: {world} processes cannot share it evenly; take {' or '.join(map(str, fits))}, or "
            "another number of processes"
        )
    if optim.ghost_batch and batch % (world * optim.accumulate * optim.ghost_batch):
        raise UserError(
            f"optim.ghost_batch={optim.ghost_batch}: does not divide what is seen at a time, optim.batch={batch} over "
            f"{world} processes and optim.accumulate={optim.accumulate}; take one that does"
        )


def told(loop: Loop, audit: Audit) -> Iterator[Event]:
    """`run_to_end`, which rank 0 alone tells to the trackers."""
    events = run_to_end(loop, audit)
    return tracked(events, loop.folder, loop.recipe, loop.state.step) if loop.ranks.first else events


def run_to_end(loop: Loop, audit: Audit) -> Iterator[Event]:
    """Train what is left, take the final score, and write model, result and report."""
    yield from loop.run()
    if loop.saved_step < loop.steps:
        loop.save()
    loop.writer.wait()
    loop.writer.check()
    data, state, preprocess = loop.data, loop.state, loop.resolved.preprocess
    split = choose_split(data, None)
    yield Evaluating(split, len(data.splits[split]))
    protocol = describe_protocol(data, split, preprocess)
    try:
        result = score(state.evaluated, loop.reader, data.splits[split], protocol=protocol, ranks=loop.ranks)
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, loop.folder, state.step) from None
    report = loop.ranks.agreed(lambda: write_end(loop, audit, split, result))
    yield Finished(loop.folder, result, report)


def write_end(loop: Loop, audit: Audit, split: str, result: Score) -> Path:
    """Write model, result and report; returns the report's path."""
    data, environment = loop.data, runs.read_environment(loop.folder)
    metrics = {name: value for name, value in result.to_dict().items() if name not in ("mistakes", "confusion")}
    provenance = {
        "recipe": to_dict(loop.recipe),
        "data": {"spec": data.spec, "fingerprint": environment.fingerprint, "split": split},
        "versions": environment.versions,
        "device": environment.device,
        "weights": environment.weights,
    }
    network, preprocess, many = loop.state.evaluated, loop.resolved.preprocess, data.sets is not None
    model = ModelFile(network, data.classes, preprocess, metrics, provenance, multi_label=many)
    with runs.resumable(loop.folder):
        save_model(model, loop.folder / MODEL_FILE)
        return finish(loop.folder, data, audit, split, result)


def finish(folder: Path, data: Data, audit: Audit, split: str, result: Score) -> Path:
    """Write result.json and the report; returns the report's path."""
    found = [vars(problem) for problem in problems(data, audit)]
    about = {"result": result.to_dict(), "split": split, "problems": found}
    write_json(folder / "result.json", about)
    return write_report(folder, data)

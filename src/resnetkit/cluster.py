"""Answers for pictures over a Ray cluster (extra `ray`): .parquet parts in one place, read in the order of their names.

The list of pictures is cut into blocks of whole batches, so every batch is the one that a single machine would make of
the list, and a part has the rows that the same rows of `resnet predict --out x.parquet` have. A part's name says its
place and, in a digest, all that decides its rows; a part is written beside and put in its place at once. So what is
there is whole, a job that was ended goes on where it was, and one of other pictures is refused.

Pictures and parts may lie in an object store; what has a path is seen under it by all workers, as on shared storage.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import platform
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetkit import prediction
from resnetkit.about import model_path
from resnetkit.answers import ParquetTable, columns
from resnetkit.engines import files
from resnetkit.errors import UserError
from resnetkit.parquet import pyarrow
from resnetkit.parts import Bucket, Folder, place
from resnetkit.stores import is_url

if TYPE_CHECKING:
    from resnetkit.engines.opening import Opened

PART_BATCHES = 64  # of a part, 1,024 pictures; more where that would make too many parts
MOST_PARTS = 10_000
MOST_CPUS = 16  # of a worker, as `default_threads`


@dataclass(frozen=True)
class Job:
    """What a worker has to know. `digest` is the model's; names of pictures may be relative to `folder`."""

    model: str
    digest: str
    engine: str
    few: bool
    top: int
    min_probability: float | None
    folder: str
    out: str
    note: str


@dataclass(frozen=True)
class Block:
    """A part of the answers: the name of its file and of its pictures."""

    part: str
    names: list[str]


@dataclass(frozen=True)
class Scored:
    """A part is there: so many pictures, of which so many could not be read."""

    part: str
    pictures: int
    failed: int


@dataclass(frozen=True)
class Plan:
    """A job, so many parts in all, and the blocks of those that are not there yet."""

    job: Job
    parts: int
    left: list[Block]

    @property
    def pictures(self) -> int:
        """That are left."""
        return sum(len(block.names) for block in self.left)


def plan(
    model: str | Path,
    paths: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    engine: str = "auto",
    top: int = 5,
    min_probability: float | None = None,
    say: prediction.Say | None = None,
) -> Plan:
    """Look at everything that may be wrong, before there is a cluster; arguments as those of `predict`.

    out   a folder, made where there is none, or a URL; parts of the same job in it are kept, others refused
    Raises UserError.
    """
    prediction.check(top, min_probability)
    ray_package()
    pyarrow(instead=".csv")
    path = model_path(Path(model)).absolute()
    names = list(prediction.names_of(paths))
    digest = files.read(path).digest
    where = str(out) if is_url(str(out)) else str(Path(out).absolute())
    blocks = in_blocks(names, [digest, top, min_probability])
    left = missing(place(where), where, blocks, columns(top))
    # Chosen here, so that all workers answer with the same engine.
    opened = prediction.start(path, engine, say, len(names))
    looked, few = prediction.in_words(opened, min_probability), len(names) < prediction.FEW
    job = Job(str(path), digest, opened.engine, few, top, min_probability, str(Path.cwd()), where, looked)
    return Plan(job, len(blocks), left)


def score(planned: Plan) -> Iterator[Scored]:
    """Answer what is left, part by part, as workers are done with them. Raises UserError."""
    if not planned.left:
        return
    with cluster() as ray:
        try:
            yield from answered(ray, planned.job, planned.left)
        except ray.exceptions.RayError as error:
            raise UserError(
                f"{planned.job.out}: the cluster could not go on ({first_line(error)}); type the command again to go on"
            ) from error
        finally:
            place(planned.job.out).sweep()


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# Which parts, and which of them are there


def in_blocks(names: list[str], about: list[Any]) -> list[Block]:
    """Blocks of whole batches, and their names by the whole list and by what else decides the rows."""
    size = prediction.BATCH * max(PART_BATCHES, -(-len(names) // (MOST_PARTS * prediction.BATCH)))
    starts = range(0, len(names), size)
    listed = "\0".join([json.dumps(about), *names]).encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(listed).hexdigest()[:12]
    return [
        Block(f"part-{number:05}-of-{len(starts):05}-{digest}.parquet", names[start : start + size])
        for number, start in enumerate(starts)
    ]


def missing(out: Folder | Bucket, where: str, blocks: list[Block], wanted: list[str]) -> list[Block]:
    """The blocks without a whole part. Raises UserError where there is what is none of this job."""
    there = out.there()
    others = sorted(there - {block.part for block in blocks})
    if others:
        raise UserError(
            f"{where}: holds {others[0]}, which is no answer of this model to these pictures; choose another --out"
        )
    with ThreadPoolExecutor(MOST_CPUS) as pool:
        whole = pool.map(partial(is_whole, out, wanted), [block for block in blocks if block.part in there])
        done = {part for part in whole if part}
    return [block for block in blocks if block.part not in done]


def is_whole(out: Folder | Bucket, wanted: list[str], block: Block) -> str | None:
    """The part's name, when it can be read and has the rows of its block."""
    try:
        with out.open(block.part) as file:
            found = pyarrow("pyarrow.parquet").ParquetFile(file)
            ok = found.schema_arrow.names == wanted and found.metadata.num_rows == len(block.names)
    except (pyarrow().ArrowInvalid, OSError):
        return None
    return block.part if ok else None


# The cluster


def ray_package(part: str = "ray") -> Any:
    """A module of Ray. Raises UserError."""
    # Nothing is sent to its makers; and what it says of itself is not what is asked for.
    for setting, value in (("USAGE_STATS_ENABLED", "0"), ("BACKEND_LOG_LEVEL", "fatal")):
        os.environ.setdefault(f"RAY_{setting}", value)
    try:
        return importlib.import_module(part)
    except ImportError:
        raise UserError("--ray: needs Ray, which is not installed: pip install 'resnetkit[ray]'") from None


@contextmanager
def cluster() -> Iterator[Any]:
    """Ray with a cluster: the one that this process has, that of RAY_ADDRESS, or this machine by itself."""
    ray = ray_package()
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {"include_dashboard": False}
    ending = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"RAY_ADDRESS={address}" if address else "Ray"
        raise UserError(f"{where}: there is no cluster to be had ({first_line(error)})") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ending)  # Ray puts its own in the place of ours
    try:
        yield ray
    finally:
        ray.shutdown()


def crew(nodes: list[dict[str, Any]]) -> tuple[int, int, int]:
    """How many workers the machines of a cluster have room for, and the CPUs and GPUs of each.

    Where there are GPUs, each has a worker. Raises UserError where nothing is free to work.
    """
    rooms = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = [(int(room.get("GPU", 0)), int(room.get("CPU", 0))) for room in rooms if room.get("GPU", 0) >= 1]
    if gpus:
        each = min(cpus // number for number, cpus in gpus)
        return sum(number for number, _ in gpus), max(1, min(MOST_CPUS, each)), 1
    cpus = [int(room.get("CPU", 0)) for room in rooms if room.get("CPU", 0) >= 1]
    if not cpus:
        raise UserError("the Ray cluster has no machine with a CPU to work with")
    each = min(MOST_CPUS, *cpus)
    return sum(number // each for number in cpus), each, 0


def answered(ray: Any, job: Job, blocks: list[Block]) -> Iterator[Scored]:
    """The blocks as workers are done with them; a worker that is lost is replaced, and its block begun anew, by Ray."""
    data = ray_package("ray.data")
    workers, cpus, gpus = crew(ray.nodes())
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False
    rows = [{"part": block.part, "names": os.fsencode("\0".join(block.names))} for block in blocks]
    asked = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=(job,),
        batch_size=1,
        num_cpus=cpus,
        num_gpus=gpus,
        compute=data.ActorPoolStrategy(size=min(workers, len(rows))),
    )
    for row in asked.iter_batches(batch_size=1, prefetch_batches=0):  # `iter_rows` holds each back until the next
        (error,) = row["error"]
        if error:
            raise UserError(str(error))
        yield Scored(str(row["part"][0]), int(row["pictures"][0]), int(row["failed"][0]))


class Worker:
    """Answers block by block in a process of its own; the engine is opened once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.opened: Opened | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (part,), (names,) = batch["part"], batch["names"]
        block = Block(str(part), os.fsdecode(bytes(names)).split("\0"))
        failed, error = 0, ""
        try:
            failed = self.answer(block)
        except UserError as said:  # as it is, not as Ray tells of errors
            error = str(said)
        return {"part": [block.part], "pictures": [len(block.names)], "failed": [failed], "error": [error]}

    def answer(self, block: Block) -> int:
        """Write the part, and count the pictures that could not be read. Raises UserError."""
        job = self.job
        if self.opened is None:
            go_to(job.folder, block.names)
            self.opened = prediction.start(job.model, job.engine, None, 1 if job.few else None)
        failed = 0
        # There may be a damaged one, or that of a worker that was lost before it could tell.
        with place(job.out).room(block.part) as path, ParquetTable(path, job.top, job.digest) as table:
            table.note = job.note
            batches = prediction.in_batches(block.names)
            for answers in prediction.answers(self.opened, batches, job.top, job.min_probability, job.model):
                table.write(answers)
                failed += sum(answer.error is not None for answer in answers)
        return failed


def go_to(folder: str, names: list[str]) -> None:
    """Stand where the list of names was made, unless it holds for every place. Raises UserError."""
    if not all(is_url(name) or os.path.isabs(name) for name in names):  # noqa: PTH117 - a Path costs several times this
        try:
            os.chdir(folder)
        except OSError as error:
            raise UserError(
                f"{folder}: no folder on {platform.node()} ({error.strerror}); give paths that every worker sees"
            ) from None

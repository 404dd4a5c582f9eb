"""The run folder: the unit of provenance, and the only place where a run writes.

recipe.json (fully resolved), environment.json, split.csv (when the data came unsplit),
excluded.csv (pictures left out by name), log.jsonl (a line for each
epoch), steps.csv (a line for each step), checkpoints/, model.safetensors, result.json, report.html.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnetkit import checkpoint
from resnetkit.atomic import sync_folder, write_json, write_text
from resnetkit.data.decode import native_version
from resnetkit.data.excluded import EXCLUDED, as_csv, names_of_run
from resnetkit.data.pictures import Data
from resnetkit.data.split import save_split
from resnetkit.distributed import ALONE, Ranks
from resnetkit.errors import UserError
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import from_dict, to_dict
from resnetkit.version import __version__

LOG, STEPS = "log.jsonl", "steps.csv"
NATIVE = "resnetkit-native"  # among the versions where it is installed: its crops are up to a level from the others


@dataclass(frozen=True)
class Environment:
    """Where and on what a run was made; all that is needed to say whether a resumed run can reach the same bits."""

    command: str
    data: str
    val: str | None  # the pictures to check with, where they come from another place
    fingerprint: str  # SHA-256 over names, labels and contents of the pictures
    weights: str | None  # the file that training began from
    device: str
    torch_threads: int  # another number sums floats in another order
    versions: dict[str, str]
    machine: str
    derived: tuple[str, ...]  # the rules behind the values that the recipe left open
    notes: tuple[str, ...]  # what was met among the pictures, and how they were divided
    asked: dict[str, Any] = field(default_factory=dict)  # the recipe before what it left open was decided
    excluded: int = 0  # pictures left out by name; excluded.csv has them
    spec: str = ""  # `data` as it was typed, which scores and the model file repeat
    world_size: int = 1
    ranks: tuple[str, ...] = ()  # of several, the machine of each


def this_environment(
    data: str,
    fingerprint: str,
    weights: str | None,
    device: torch.device,
    *,
    derived: tuple[str, ...],
    notes: tuple[str, ...],
    val: str | None = None,
    asked: Recipe | None = None,
    excluded: int = 0,
    spec: str = "",
    ranks: Ranks = ALONE,
) -> Environment:
    """The environment of the process that runs now."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({processor()})"
    native = native_version()
    return Environment(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        data=data,
        val=val,
        fingerprint=fingerprint,
        weights=weights,
        device=name,
        torch_threads=torch.get_num_threads(),
        versions={
            "resnetkit": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            **({NATIVE: native} if native else {}),
        },
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        derived=derived,
        notes=notes,
        asked=to_dict(asked) if asked else {},
        excluded=excluded,
        spec=spec,
        world_size=ranks.world,
        ranks=ranks.names,
    )


def decoder_changed(environment: Environment) -> tuple[str, ...]:
    """A sentence when a run was begun with another resnetkit-native than is installed now, or with one of the two."""
    then, now = environment.versions.get(NATIVE), native_version()
    if then == now:
        return ()
    begun, here = f"begun with {NATIVE} {then}" if then else f"begun without {NATIVE}", now or "none"
    return (f"{begun}, and here is {here}: crops of JPEGs may differ by a level from those of an undisturbed run",)


def processor() -> str:
    """The processor's own name where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def new_folder(out: str | Path | None, data: str) -> Path:
    """The folder for a new run. Raises UserError when `out` exists, or its place cannot be written."""
    if out is None:
        stem = (
            "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(data.rstrip("/:")).stem).strip("-.") or "run"
        )
        folder = next(p for n in itertools.count(1) if not (p := Path("runs") / f"{stem}-{n}").exists())
    else:
        folder = Path(out)
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another --out, or go on with: resnet resume {folder}")
    above = next(place for place in folder.absolute().parents if place.exists())
    if not above.is_dir():
        raise UserError(f"{above}: is no folder; choose another --out")
    if not os.access(above, os.W_OK):
        raise UserError(f"{above}: cannot be written; choose another --out")
    return folder


def is_finished(folder: Path) -> bool:
    """Whether a run's last file is there."""
    return (folder / "report.html").exists()


def check_begun(
    folder: Path, data: str, val: str | None, weights: str | None, recipe: Recipe, exclude: tuple[str, ...] = ()
) -> None:
    """Raise UserError unless the run in `folder` was begun with these pictures, weights and recipe."""
    there, new = read_environment(folder), "choose another --out, or go on with it as it is: resnet resume"
    for what, has, wish in (
        ("data", there.data, data),
        ("--val", there.val, val),
        ("--from", there.weights, weights),
    ):
        if has != wish:
            raise UserError(f"{folder}: was begun with {what} {has}, not {wish}; {new} {folder}")
    if set(names_of_run(folder, there.excluded)) != set(exclude):
        raise UserError(f"{folder}: was begun with other pictures left out (--exclude); {new} {folder}")
    for table, values in to_dict(recipe).items():
        had = there.asked.get(table, {})
        for key, wish in values.items() if isinstance(values, dict) else ():
            if key in had and had[key] != wish:
                raise UserError(f"{folder}: was begun with {table}.{key}={had[key]}, not {wish}; {new} {folder}")


@contextlib.contextmanager
def creating(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, renamed to it when the block ends well and removed when it does not."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        (part / checkpoint.FOLDER).mkdir(parents=True)
        yield part
        part.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out or make room") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_beginning(
    folder: Path, recipe: Recipe, environment: Environment, data: Data, *, divided: bool, exclude: tuple[str, ...] = ()
) -> None:
    """All that is known before the first step."""
    write_json(folder / "recipe.json", to_dict(recipe))
    write_json(folder / "environment.json", vars(environment))
    if exclude:
        write_text(folder / EXCLUDED, as_csv((name, "") for name in exclude))
    if divided:  # by us, so it must be written down
        save_split(data, folder / "split.csv")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run for this process; the system lets go of it however the process ends."""
    with resumable(folder):
        file = (folder / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is working on this run; wait for it or stop it") from None
        yield


def sweep(folder: Path) -> None:
    """Remove what a killed process had half written; the run must be locked."""
    for part in folder.rglob(".*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """What the system refuses to write, as a UserError that says how to go on from the last checkpoint."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); make room or permit writing, then: resnet resume {folder}"
        ) from None


def read_json(path: Path) -> Any:
    """A JSON file of a run. Raises UserError naming it when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent}: not a run folder (no {path.name})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def read_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run."""
    return from_dict(read_json(folder / "recipe.json"), where=str(folder / "recipe.json"))


def read_environment(folder: Path) -> Environment:
    """The environment in which a run was begun."""
    values = read_json(folder / "environment.json")
    try:
        lists = ("derived", "notes", *(["ranks"] if "ranks" in values else []))  # a run folder may be older
        return Environment(**{"val": None, **values, **{name: tuple(values[name]) for name in lists}})
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'environment.json'}: of another version of resnetkit, or damaged ({error})"
        ) from None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the log; a last line cut off by a power cut is left out."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / LOG).read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return lines


def cut_log(folder: Path, step: int) -> None:
    """Take back what was logged after the checkpoint at `step`: the resumed run will write it again."""
    kept = [line for line in read_log(folder) if line["step"] <= step]
    write_text(folder / LOG, "".join(json.dumps(line) + "\n" for line in kept))
    if (folder / STEPS).exists():
        write_text(folder / STEPS, "".join(step_line(*row) for row in read_steps(folder) if row[0] <= step))


def append_log(folder: Path, line: dict[str, Any]) -> None:
    """Add one line to the log."""
    with (folder / LOG).open("a") as file:
        file.write(json.dumps(line) + "\n")


def append_step(folder: Path, step: int, loss: float, correct: int) -> None:
    """Add a step's mean loss and its number of correct answers to steps.csv."""
    with (folder / STEPS).open("a") as file:
        file.write(step_line(step, loss, correct))


def step_line(step: int, loss: float, correct: int) -> str:
    return f"{step},{loss!r},{correct}\n"


def read_steps(folder: Path) -> list[tuple[int, float, int]]:
    """(step, loss, correct) of every step in whole lines; of a line cut off by a power cut, nothing."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / STEPS).read_text().splitlines(keepends=True):
            with contextlib.suppress(ValueError):
                step, loss, correct = line.split(",")
                if line.endswith("\n"):
                    rows.append((int(step), float(loss), int(correct)))
    return rows

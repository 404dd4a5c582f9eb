"""Checkpoints: what a stopped run needs to go on to the same bits. The last two are kept.

Written atomically, with a SHA-256 inside (`tensorfile`). A damaged one is noticed, named, and the one before is used.
Training waits for a copy of the tensors only: a thread writes them (`Writer`).
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnetkit import tensorfile
from resnetkit.atomic import write_bytes
from resnetkit.errors import UserError

FOLDER = "checkpoints"
KEPT = 2

Tensors = dict[str, Tensor]


def write(run: Path, step: int, tensors: Tensors, meta: dict[str, Any]) -> None:
    """Write the checkpoint of `step`. Raises OSError."""
    write_bytes(path_of(run, step), tensorfile.dump(tensors, {"kind": "checkpoint", "step": step, **meta}))


def path_of(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` is; nine digits, so that names sort as steps do."""
    return run / FOLDER / f"step-{step:09d}.safetensors"


def save(run: Path, step: int, tensors: Tensors, meta: dict[str, Any]) -> None:
    """Write the checkpoint of `step` and remove all but the last two.

    Raises UserError when it cannot be written (disk full, read-only): the ones before it stay.
    """
    try:
        write(run, step, tensors, meta)
    except OSError as error:
        last = saved(run)
        stays = f"{last[-1]} is the last good one" if last else "there is none before it"
        raise UserError(
            f"{path_of(run, step)}: checkpoint cannot be written ({error.strerror}); {stays}; "
            f"make room or permit writing, then: resnet resume {run}"
        ) from None
    for old in saved(run)[:-KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()


class Writer:
    """Saves checkpoints in a thread, one after the other."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def save(self, run: Path, step: int, tensors: Tensors, meta: dict[str, Any]) -> None:
        """`save` of the tensors as they are now; waits for the one before. Raises what `check` raises."""
        self.wait()
        self.check()
        # Contiguous, as a file has them.
        copies = {name: torch.empty(t.shape, dtype=t.dtype).copy_(t) for name, t in tensors.items()}

        def work() -> None:
            try:
                save(run, step, copies, meta)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=work, name="checkpoint")
        self.thread.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self.thread is not None:
            self.thread.join()

    def check(self) -> None:
        """Raise the UserError of a checkpoint that could not be written."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def saved(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run / FOLDER).glob("step-*.safetensors"))


def load_latest(run: Path) -> tuple[Tensors, dict[str, Any], list[str]]:
    """The newest undamaged checkpoint: tensors, metadata, and a sentence for each damaged one passed over.

    Raises UserError when none is left.
    """
    notes = []
    for path in reversed(saved(run)):
        try:
            tensors, meta = tensorfile.read(path)
        except UserError as error:
            notes.append(f"{error}; using the one before it")
            continue
        if meta is not None and meta.get("kind") == "checkpoint":
            return tensors, meta, notes
        notes.append(f"{path}: not a checkpoint; using the one before it")
    damage = f" ({'; '.join(notes)})" if notes else ""
    raise UserError(f"{run}: no usable checkpoint{damage}; start again with resnet train")

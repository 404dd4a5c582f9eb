"""The verb `check`: what is wrong with these pictures. It reads them and writes nothing among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resnetkit.data.confounds import confounds
from resnetkit.data.duplicates import compared_exactly, duplicates
from resnetkit.data.findings import Finding
from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.pictures import Data, name_bad
from resnetkit.data.stored import stored
from resnetkit.data.traits import Traits, scan
from resnetkit.errors import UserError
from resnetkit.looking import open_both
from resnetkit.protocol import outputs
from resnetkit.suspects import suspects
from resnetkit.weights import ModelFile, open_model, place

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Check:
    """What was found in `data`, the gravest first; `notes` say what was not looked at, and why."""

    data: Data
    traits: Traits
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    seconds: float
    val: str | None = None
    model: str | None = None

    @property
    def leaks(self) -> bool:
        """Whether a split knows pictures of another."""
        return any(finding.leak for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        splits = {name: len(indices) for name, indices in self.data.splits.items()}
        return {
            "data": self.data.spec,
            "val": self.val,
            "pictures": len(self.data.used()),
            "classes": len(self.data.classes),
            "splits": splits,
            "leaks": self.leaks,
            "model": self.model,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "findings": [finding.to_dict(self.data) for finding in self.findings],
        }


def check(
    data: str | Path | Data,
    *,
    val: str | Path | None = None,
    model: str | Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Check:
    """Look at every picture of labelled data and say what is wrong with them.

    data      anything `open_data` takes
    val       pictures to check with, where `data` has none; as for `train`
    model     a model file or run folder, whose vectors judge labels and find look-alikes; None: pixels judge labels
    progress  is called with what is being done, how much is done, and how much there is
    Raises UserError for data that cannot be opened; a picture that cannot be read is a finding.
    """
    began = time.perf_counter()
    opened = open_model(model) if model is not None else None
    found = data if isinstance(data, Data) else open_both(data, val)
    reading = partial(progress, "reading") if progress is not None else None
    traits = scan(found, threads=default_threads(), progress=reading)
    vectors, notes = None, (*found.notes, *compared_exactly(traits))
    if opened is not None and len(traits.indices):
        seeing = partial(progress, "asking the model") if progress is not None else None
        vectors = embedded(opened, found, traits, device, seeing)
        if opened.provenance.get("data", {}).get("fingerprint"):
            notes = (*notes, "the model may know wrong labels by heart, if it was trained on these very pictures")
    judging, what = vectors, "the model"
    if judging is None:
        judging, what = coarse(traits.small), "a linear classifier of pixels"
    wrong, told = suspects(found, traits, judging, what)
    findings = in_order(
        [*duplicates(found, traits, vectors), *stored(found, traits), *confounds(found, traits), *wrong]
    )
    places = (str(each) if each is not None else None for each in (val, model))
    return Check(found, traits, findings, (*notes, *told), time.perf_counter() - began, *places)


def coarse(small: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Small pictures (n, s, s, 3) at half their side, a row each."""
    n, side = small.shape[:2]
    halves = small.reshape(n, side // 2, 2, side // 2, 2, 3).mean((2, 4), dtype=np.float32)
    rows: NDArray[np.float32] = halves.reshape(n, -1)
    return rows


def embedded(
    model: ModelFile, data: Data, traits: Traits, device: str, progress: Callable[[int, int], None] | None
) -> NDArray[np.float32]:
    """What the last layer of the model sees of each picture of `traits`, float32 (n, d)."""
    network = place(model.network, torch.device(device))
    rows, done = [], 0
    for part in outputs(
        network, Reader(data, model.preprocess, threads=default_threads()), traits.indices, network.embed
    ):
        if part.bad:
            raise UserError(name_bad(data, part.bad, "check again; they could be read a moment ago"))
        rows.append(part.rows)
        done += len(part.indices)
        if progress is not None:
            progress(done, len(traits.indices))
    return np.concatenate(rows)


ORDER = ("leak", "leak-near", "unreadable", "truncated", "labels", "labels-near", "suspects", "look-alikes")


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The gravest first; the others as they come."""
    place = {kind: number for number, kind in enumerate(ORDER)}
    return tuple(sorted(findings, key=lambda finding: place.get(finding.kind, len(ORDER))))

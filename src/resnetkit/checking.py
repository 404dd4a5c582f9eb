"""The verb `check`: what is wrong with these pictures. It reads them and writes nothing among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from resnetkit.data.duplicates import duplicates
from resnetkit.data.findings import Finding
from resnetkit.data.loader import default_threads
from resnetkit.data.pictures import Data
from resnetkit.data.stored import stored
from resnetkit.data.traits import Traits, scan
from resnetkit.looking import open_both

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
    progress: Progress | None = None,
) -> Check:
    """Look at every picture of labelled data and say what is wrong with them.

    data      anything `open_data` takes
    val       pictures to check with, where `data` has none; as for `train`
    progress  is called with what is being done, how much is done, and how much there is
    Raises UserError for data that cannot be opened; a picture that cannot be read is a finding.
    """
    began = time.perf_counter()
    found = data if isinstance(data, Data) else open_both(data, val)
    reading = partial(progress, "reading") if progress is not None else None
    traits = scan(found, threads=default_threads(), progress=reading)
    findings = in_order([*duplicates(found, traits), *stored(found, traits)])
    return Check(
        found, traits, findings, found.notes, time.perf_counter() - began, str(val) if val is not None else None
    )


ORDER = ("leak", "leak-near", "unreadable", "truncated", "labels", "labels-near")


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The gravest first; the others as they come."""
    place = {kind: number for number, kind in enumerate(ORDER)}
    return tuple(sorted(findings, key=lambda finding: place.get(finding.kind, len(ORDER))))

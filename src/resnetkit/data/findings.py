"""What a check finds: kinds of fault, with the pictures they concern, what to do, and which pictures to leave out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnetkit.data.pictures import Data


@dataclass(frozen=True)
class Group:
    """Pictures, by index, that show the fault together, and what to know of them."""

    pictures: tuple[int, ...]
    note: str


@dataclass(frozen=True)
class Finding:
    """One kind of fault.

    kind       its name in files, such as "leak-near"
    title      its name for people
    count      of `unit`, which is pictures or classes
    groups     the pictures concerned, the gravest first; empty where it concerns classes, which `lines` name
    leave_out  index and reason of each picture that training would rather be without
    leak       a split knows pictures of another
    """

    kind: str
    title: str
    count: int
    advice: str
    groups: tuple[Group, ...] = ()
    lines: tuple[str, ...] = ()
    leave_out: tuple[tuple[int, str], ...] = ()
    unit: str = "picture"
    leak: bool = False

    def to_dict(self, data: Data) -> dict[str, Any]:
        """Plain JSON values, with pictures by name."""
        name = data.pictures.name
        return {
            "kind": self.kind,
            "title": self.title,
            "count": self.count,
            "unit": self.unit,
            "leak": self.leak,
            "advice": self.advice,
            "groups": [{"pictures": [name(i) for i in g.pictures], "note": g.note} for g in self.groups],
            "lines": list(self.lines),
            "leave_out": [{"path": name(i), "reason": reason} for i, reason in self.leave_out],
        }


def split_names(data: Data) -> list[str]:
    """The split of every picture by index; "" of those in none."""
    names = [""] * len(data)
    for split, indices in data.splits.items():
        for index in indices.tolist():
            names[index] = split
    return names


def singles(pairs: Sequence[tuple[int, str]]) -> tuple[Group, ...]:
    """A group for each picture alone."""
    return tuple(Group((index,), note) for index, note in pairs)

"""Pictures that are there more than once: across splits, under two labels, or merely twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.findings import Finding, Group, split_names
from resnetkit.data.pictures import Data, count
from resnetkit.data.similar import SURE, Copy, Groups, alike, near, same
from resnetkit.data.traits import Traits

HELD = ("test", "val", "train", "all")  # of copies in several splits, that of the first is kept
SMALLEST = 32  # shorter side, pixels: with fewer, different pictures have the same hash
COSINE = 0.95  # of a model's vectors, from which two pictures are looked at

TITLES = {
    "leak": "the same picture in two splits",
    "leak-near": "nearly the same picture in two splits",
    "labels": "the same picture under two labels",
    "labels-near": "nearly the same picture under two labels",
    "copies": "the same picture twice in a split",
    "copies-near": "nearly the same picture twice in a split",
}
ADVICE = {
    "leak": "the score counts as new what was learnt by heart; the CSV leaves out the copies to learn from",
    "labels": "one of the labels is wrong; mend it, or leave out all copies as the CSV does",
    "copies": "they count twice; the CSV keeps one of each",
}
ALIKE_ADVICE = (
    "the model takes them for the same and their hashes are close, as those of copies in another crop are, and of two "
    "pictures of one thing; look at them, and take lines out of the CSV where they may stay"
)


def compared_exactly(traits: Traits) -> tuple[str, ...]:
    """A note on pictures that are too small for near copies."""
    few = int((np.minimum(traits.values["width"], traits.values["height"]) < SMALLEST).sum())
    if not few:
        return ()
    number = count(few, "picture has", "pictures have")
    return (f"{number} a side below {SMALLEST} pixels: looked for among exact copies alone, not among near ones",)


def duplicates(data: Data, traits: Traits, vectors: NDArray[np.float32] | None = None) -> list[Finding]:
    """Findings on exact copies, near copies, and, with a model's `vectors` (a row each as in `traits`), look-alikes."""
    exact = Groups(len(traits.indices))
    for rows in same(traits.pixel_digest):
        for row in rows[1:].tolist():
            exact.join(Copy(int(rows[0]), row, 1.0))
    found = copies_found(data, traits, exact.members(), exact.copies, nearly=False)
    groups = joined(exact)
    large = np.minimum(traits.values["width"], traits.values["height"]) >= SMALLEST
    rows = np.flatnonzero(large)
    near_among = Groups(len(rows))
    near(traits.hashes[rows], traits.small[rows], near_among)
    add(groups, near_among.copies, rows)
    found += copies_found(data, traits, *only_new(groups, exact), nearly=True)
    if vectors is not None:
        before = joined(groups)
        seen = Groups(len(traits.indices))
        alike(vectors, traits.hashes, traits.small, COSINE, seen)
        add(before, seen.copies, np.arange(len(traits.indices)))
        found += look_alikes(data, traits, *only_new(before, groups))
    return found


def joined(groups: Groups) -> Groups:
    """The same groups, to which more may be added."""
    made = Groups(len(groups.parent))
    made.parent = groups.parent.copy()
    return made


def add(groups: Groups, copies: Iterable[Copy], rows: NDArray[np.int64]) -> None:
    for copy in copies:
        groups.join(Copy(int(rows[copy.a]), int(rows[copy.b]), copy.likeness, copy.mirrored))


def only_new(groups: Groups, known: Groups) -> tuple[list[NDArray[np.int64]], list[Copy]]:
    """The groups that the copies of `groups` have made, of one row for each group that was known before."""
    first = known.roots()
    members = [np.unique(first[part]) for part in groups.members()]
    return [part for part in members if len(part) > 1], groups.copies


def copies_found(
    data: Data, traits: Traits, groups: Sequence[NDArray[np.int64]], copies: Sequence[Copy], *, nearly: bool
) -> list[Finding]:
    """Up to three findings: each group counts once, as a leak, else under two labels, else as copies."""
    split = split_names(data)
    notes = described(groups, copies, traits)
    kinds: dict[str, list[tuple[list[int], str, float]]] = {"leak": [], "labels": [], "copies": []}
    for rows, (note, likeness) in zip(groups, notes, strict=True):
        members = traits.indices[rows].tolist()
        several = len({split[i] for i in members}) > 1, len(set(data.labels[members].tolist())) > 1
        kind = "leak" if several[0] else "labels" if several[1] else "copies"
        kinds[kind].append((members, note + ("; their labels differ" if all(several) else ""), likeness))
    made = []
    for kind, found in kinds.items():
        if not found:
            continue
        found.sort(key=lambda each: -each[2])
        leave = [pair for members, note, _ in found for pair in left_out(data, members, split, kind, note)]
        name = f"{kind}-near" if nearly else kind
        advice = ADVICE[kind] + ("; look at them first" if nearly else "")
        count = sum(len(members) for members, _, _ in found)
        pictures = tuple(Group(tuple(members), note) for members, note, _ in found)
        leak = kind == "leak" and max(likeness for _, _, likeness in found) >= SURE
        made.append(Finding(name, TITLES[name], count, advice, pictures, leave_out=tuple(leave), leak=leak))
    return made


def described(groups: Sequence[NDArray[np.int64]], copies: Sequence[Copy], traits: Traits) -> list[tuple[str, float]]:
    """For each group, in words how alike its pictures are, and the least likeness that joined them."""
    place = {int(row): number for number, rows in enumerate(groups) for row in rows}
    likeness, mirrored = [1.0] * len(groups), [False] * len(groups)
    for copy in copies:
        number = place.get(copy.a, place.get(copy.b, -1))
        if number >= 0:
            likeness[number] = min(likeness[number], copy.likeness)
            mirrored[number] = mirrored[number] or copy.mirrored
    notes = []
    for rows, least, turned in zip(groups, likeness, mirrored, strict=True):
        whole = len(set(traits.bytes_digest[rows].tolist())) == 1
        exact = "the same bytes" if whole else "the same pixels, stored differently"
        note = exact if len(set(traits.pixel_digest[rows].tolist())) == 1 else f"likeness {least:.3f}"
        notes.append((f"{note}, mirrored" if turned else note, least))
    return notes


def left_out(data: Data, members: list[int], split: list[str], kind: str, note: str) -> list[tuple[int, str]]:
    """Which of a group go: under two labels all, in two splits those to learn from, else all but the first."""
    if kind == "labels":
        return [(i, f"{note}; as another label has {other(data, i, members)}") for i in members]
    best = min((split[i] for i in members), key=HELD.index)
    kept = next(i for i in members if split[i] == best)
    gone = [i for i in members if i != kept and (kind == "copies" or split[i] != best)]
    return [(i, f"{note}: {data.pictures.name(kept)} ({split[kept]})") for i in gone]


def other(data: Data, index: int, members: list[int]) -> str:
    """Another of the group, one with another label."""
    return data.pictures.name(next(i for i in members if data.labels[i] != data.labels[index]))


def look_alikes(data: Data, traits: Traits, groups: list[NDArray[np.int64]], copies: list[Copy]) -> list[Finding]:
    """One finding: pictures of two splits or two classes that a model takes for the same."""
    split = split_names(data)
    shown, leave = [], []
    for rows, (_, likeness) in zip(groups, described(groups, copies, traits), strict=True):
        members = traits.indices[rows].tolist()
        places = {(split[i], int(data.labels[i])) for i in members}
        if len(places) > 1:
            note = f"cosine {likeness:.3f}"
            shown.append((likeness, Group(tuple(members), note)))
            leave += left_out(data, members, split, "leak", note)
    if not shown:
        return []
    shown.sort(key=lambda pair: -pair[0])
    count = sum(len(group.pictures) for _, group in shown)
    pictures = tuple(group for _, group in shown)
    title = "look-alikes in two splits or classes"
    return [Finding("look-alikes", title, count, ALIKE_ADVICE, pictures, leave_out=tuple(leave))]

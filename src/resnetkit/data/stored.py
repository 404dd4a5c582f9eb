"""How pictures are stored and how many there are: unreadable files, odd kinds and sizes, small classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from resnetkit.data.findings import Finding, singles
from resnetkit.data.pictures import Data, class_counts, count
from resnetkit.data.problems import ADVICE, IMBALANCE
from resnetkit.data.traits import Traits

FEW = 10  # pictures to learn from, below which a class is tiny
TIMES = 4  # how many times smaller or larger a side than the median's is extreme
NARROW = 4.0  # how many times longer than wide
MINORITY = 0.5  # share up to which grey pictures are odd ones out
MIRRORED = "mirrored and turned upright as their orientation says, unless data.exif = false; other programs may not"


def stored(data: Data, traits: Traits) -> list[Finding]:
    """Findings on files: those that cannot be read first."""
    return [*unreadable(traits), *odd_kinds(traits), *sizes(traits), *classes(data)]


def unreadable(traits: Traits) -> list[Finding]:
    """Files that are cut off, and those that cannot be read for another reason."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index, reason in sorted(traits.error.items()):
        found["truncated" if reason.startswith("cut off") else "unreadable"].append((index, reason))
    titles = {"truncated": "cut off", "unreadable": "unreadable"}
    advice = "training stops at them; bring them anew, or leave them out"
    return [
        Finding(kind, titles[kind], len(pairs), advice, singles(pairs), leave_out=tuple(pairs))
        for kind, pairs in sorted(found.items(), reverse=True)
    ]


def odd_kinds(traits: Traits) -> list[Finding]:
    """One for each kind of unusual file, the most frequent first. They train well, so no CSV leaves them out."""
    kinds: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index, odd in sorted(traits.odd.items()):
        for what in odd:
            kind, _, detail = what.partition(": ")
            kinds[kind].append((index, detail))
    if len(kinds.get("grey", ())) > MINORITY * len(traits.indices):
        del kinds["grey"]
    advice = {
        **ADVICE,
        "EXIF-mirrored": MIRRORED,
        "grey": "read as three equal channels; most of the others have colour",
    }
    return [
        Finding(kind.replace(" ", "-").lower(), kind, len(pairs), advice[kind], singles(pairs))
        for kind, pairs in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def sizes(traits: Traits) -> list[Finding]:
    """Pictures far smaller or larger than the others, or far longer than wide."""
    if not len(traits.indices):
        return []
    width, height = traits.values["width"], traits.values["height"]
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    usual = float(np.median(shorter))
    usual_long = float(np.median(longer))
    cases: Sequence[tuple[str, str, np.ndarray[tuple[int], np.dtype[np.bool_]]]] = (
        ("tiny", f"half of all have a shorter side of {usual:g} or more; replace them", shorter * TIMES < usual),
        (
            "huge",
            f"half of all have a longer side of {usual_long:g} or less; shrink them, they read slowly",
            longer > TIMES * usual_long,
        ),
        ("narrow", "a square crop shows little of them; crop them by hand", longer > NARROW * shorter),
    )
    made = []
    for kind, advice, which in cases:
        rows = np.flatnonzero(which)
        pairs = [(int(traits.indices[r]), f"{width[r]:.0f}x{height[r]:.0f}") for r in rows.tolist()]
        if pairs and len(pairs) * 2 < len(width):
            made.append(Finding(kind, kind, len(pairs), advice, singles(pairs), leave_out=tuple(pairs)))
    return made


def classes(data: Data) -> list[Finding]:
    """Classes that are tiny, or much smaller than the largest, among the pictures to learn from."""
    indices = next((data.splits[name] for name in ("train", "all") if name in data.splits), data.used())
    counts = list(zip(data.classes, class_counts(data, indices), strict=True))
    largest = max((n for _, n in counts), default=0)
    tiny = sorted(((n, name) for name, n in counts if n < FEW))
    small = sorted(((n, name) for name, n in counts if n >= FEW and n * IMBALANCE < largest))
    made = []
    for kind, title, found, advice in (
        ("tiny-classes", "tiny classes", tiny, f"fewer than {FEW} pictures teach little, and score by luck; add some"),
        (
            "small-classes",
            "small classes",
            small,
            f"the largest class has {largest:,}; look at balanced accuracy, and collect more of these",
        ),
    ):
        lines = tuple(f"{name}: {count(n, 'picture', 'pictures')}" for n, name in found)
        if lines:
            made.append(Finding(kind, title, len(lines), advice, lines=lines, unit="class"))
    return made

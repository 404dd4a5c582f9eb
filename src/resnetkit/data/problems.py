"""What in the pictures a person should know of or mend, from the audit: for the report."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from resnetkit.data.audit import Audit, found_bad
from resnetkit.data.pictures import Data, Indices, class_counts, count

EXAMPLES = 5  # names in a problem
TINY = 4  # a picture is tiny when its shorter side is this many times smaller than the median's
IMBALANCE = 10  # largest class over smallest, from which it is worth a word
ADVICE = {
    "CMYK": "converted to RGB without their colour profile",
    "16-bit": "read by the high byte of each value",
    "one-bit": "read as black and white",
    "alpha": "laid over white",
    "palette": "read in their palette's colours",
    "EXIF-rotated": "turned upright as their orientation says, unless data.exif = false",
    "animated": "read by their first frame; save other frames as pictures of their own",
    "wrong extension": "read by their content; rename them, so that other programs can too",
}


@dataclass(frozen=True)
class Problem:
    """One kind of thing: how many pictures (or classes), some of them by name, and what to do or what was done."""

    kind: str
    count: int
    examples: tuple[str, ...]
    advice: str


def problems(data: Data, audit: Audit) -> list[Problem]:
    """Everything found among the pictures that the audit looked at, the gravest first. Empty when all is well."""
    across, contradictory = across_splits(data, audit), under_two_labels(data, audit)
    found = [
        unreadable(data, audit),
        doubled_problem(data, across, "same picture in two splits", "the score counts them as new; keep one copy"),
        doubled_problem(
            data, contradictory, "same picture under two labels", "one of the labels is wrong; keep one copy"
        ),
        imbalance(data),
        *odd_kinds(data, audit),
        tiny(data, audit),
        *([] if audit.decoded and audit.whole else [headers_only(audit)]),
    ]
    return [problem for problem in found if problem.count]


def across_splits(data: Data, audit: Audit) -> list[Indices]:
    """Groups of byte-identical pictures that are in more than one split."""
    key = np.full(len(data), -1)
    for number, indices in enumerate(data.splits.values()):
        key[indices] = number
    return doubled(data, audit, key)


def under_two_labels(data: Data, audit: Audit) -> list[Indices]:
    """Groups of byte-identical pictures that have more than one label."""
    return doubled(data, audit, data.labels)


def doubled(data: Data, audit: Audit, key: Indices) -> list[Indices]:
    """Groups of identical pictures, of those that can be read, whose keys differ; by their first index."""
    good = readable(data, audit)
    if not len(good):
        return []
    digests = np.ascontiguousarray(audit.digest[good]).view("S32")[:, 0]
    _, group, size = np.unique(digests, return_inverse=True, return_counts=True)
    repeated = size[group] > 1
    good, group = good[repeated], group[repeated]
    order = np.argsort(group, kind="stable")
    groups = np.split(good[order], np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((g for g in groups if len(set(key[g].tolist())) > 1), key=lambda g: int(g[0]))


def readable(data: Data, audit: Audit) -> Indices:
    """The pictures of a split that the audit looked at and found good, ascending."""
    looked_at = np.intersect1d(data.used(), audit.indices)
    return np.setdiff1d(looked_at, np.array(list(audit.error), dtype=np.int64))


def unreadable(data: Data, audit: Audit) -> Problem:
    """All that were met, also those that `without_bad` has left out."""
    bad = audit.error
    advice = "mend or remove them" if found_bad(data, audit) else "left out; mend or remove them"
    named = tuple(f"{data.pictures.name(index)}: {bad[index]}" for index in sorted(bad)[:EXAMPLES])
    return Problem("unreadable", len(bad), named, advice)


def doubled_problem(data: Data, groups: list[Indices], kind: str, advice: str) -> Problem:
    examples = (" = ".join(described(data, index) for index in group[:3].tolist()) for group in groups[:EXAMPLES])
    return Problem(kind, sum(map(len, groups)), tuple(examples), advice)


def described(data: Data, index: int) -> str:
    """A picture with its class, for where the name alone does not tell."""
    return f"{data.pictures.name(index)} ({data.label_name(data.labels[index])})"


def imbalance(data: Data) -> Problem:
    """Counts the classes that are more than `IMBALANCE` times smaller than the largest, in what is trained on."""
    indices = next((data.splits[name] for name in ("train", "all") if name in data.splits), data.used())
    sizes = class_counts(data, indices)
    largest = max(sizes, default=0)
    small = sorted((n, name) for name, n in zip(data.classes, sizes, strict=True) if n * IMBALANCE < largest)
    examples = tuple(f"{name}: {count(n, 'picture', 'pictures')}" for n, name in small[:EXAMPLES])
    advice = f"the largest class has {largest:,}; look at balanced accuracy, and collect more of these"
    return Problem("small classes", len(small), examples, advice)


def odd_kinds(data: Data, audit: Audit) -> list[Problem]:
    """One problem for each kind of unusual picture, the most frequent first."""
    kinds: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index in readable(data, audit).tolist() if audit.odd else ():
        for what in audit.odd.get(index, ()):
            kind, _, detail = what.partition(": ")
            kinds[kind].append((index, f" ({detail})" if detail else ""))
    return [
        Problem(kind, len(found), tuple(data.pictures.name(i) + detail for i, detail in found[:EXAMPLES]), ADVICE[kind])
        for kind, found in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def tiny(data: Data, audit: Audit) -> Problem:
    """Pictures far smaller than the others, such as thumbnails and placeholders."""
    good = readable(data, audit)
    shorter = np.minimum(audit.width[good], audit.height[good])
    usual = float(np.median(shorter)) if len(good) else 0.0
    small = good[shorter * TINY < usual].tolist()
    examples = tuple(f"{data.pictures.name(i)} ({audit.width[i]}x{audit.height[i]})" for i in small[:EXAMPLES])
    return Problem("tiny", len(small), examples, f"half of all have a shorter side of {usual:g} or more; replace them")


def headers_only(audit: Audit) -> Problem:
    if not audit.whole:
        advice = "a sample, because there are so many pictures; damage in others shows when it is met"
        return Problem("looked at beforehand", len(audit.indices) - len(audit.error), (), advice)
    advice = "there are too many bytes to decode all beforehand; damage behind a header shows when it is met"
    return Problem("checked by header only", len(audit.indices) - len(audit.error), (), advice)

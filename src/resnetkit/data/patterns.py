"""Many names in one, as shells and WebDataset write them: "train-{00000..01023}.tar", "s3://b/{train,val}-*.tar"."""

from __future__ import annotations

import glob
import itertools
import os
import re

from resnetkit.errors import UserError
from resnetkit.stores import Patience, Store, is_url

MOST = 1_000_000  # names of one pattern; more is a slip of the keyboard
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


def expand(pattern: str, patience: Patience | None = None) -> list[str]:
    """The names that a pattern stands for, in its order, the last braces turning fastest.

    {000..123} counts, with as many digits as are written; {a,b} lists; * stands for any part of a name of a file or
    object that is there, sorted. A name without any of them, or that a file has to the letter, stands for itself,
    whether it is there or not. Raises UserError that quotes what is wrong: braces that do not close or stand in one
    another, that count downwards or with different numbers of digits, more than a million names, none, one twice.
    """
    if not is_url(pattern) and os.path.lexists(pattern):
        return [pattern]
    spelt = braced(pattern)
    if "*" not in pattern:
        found = spelt
    elif "**" in pattern:
        raise UserError(f"{pattern}: ** is not understood; write * for each folder on the way")
    else:
        store = Store(pattern, patience) if is_url(pattern) else None
        found = [name for one in spelt for name in present(one, store)]
    if len(set(found)) < len(found):
        twice = next(name for name, after in itertools.pairwise(sorted(found)) if name == after)
        raise UserError(f"{pattern}: stands for {twice} more than once; each may be there once")
    return found


def present(pattern: str, store: Store | None) -> list[str]:
    """The files, or objects of the store, that a pattern with * fits."""
    if store is not None:
        found = store.glob(pattern)
    else:
        literal = pattern.replace("[", "[[]").replace("?", "[?]")
        found = sorted(name for name in glob.glob(literal) if os.path.isfile(name))  # noqa: PTH113, PTH207
    if not found:
        raise UserError(f"{pattern}: fits no {'file' if store is None else 'object'}; check the name, or its folder")
    if len(found) > MOST:
        raise UserError(f"{pattern}: fits more than {MOST:,} names; write a narrower one")
    return found


def braced(pattern: str) -> list[str]:
    """What the braces of a pattern stand for."""
    texts = BRACES.split(pattern)  # text, inside of braces, text …
    if any(mark in text for text in texts[::2] for mark in "{}"):
        raise UserError(f"{pattern}: braces that do not close, or stand in one another; write name-{{000..123}}.tar")
    choices = [alternatives(text, pattern) if at % 2 else [text] for at, text in enumerate(texts)]
    total = 1
    for some in choices:
        total *= len(some)
        if total > MOST:
            raise UserError(too_many(pattern))
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def alternatives(inside: str, pattern: str) -> list[str]:
    """What one pair of braces stands for."""
    counted = RANGE.fullmatch(inside)
    if counted is None:
        listed = inside.split(",")
        if len(listed) < 2 or ".." in inside:
            raise UserError(f"{pattern}: {{{inside}}} is neither a range as {{000..123}} nor a list as {{train,val}}")
        return listed
    first, last = counted.groups()
    if len(first) != len(last) and (padded(first) or padded(last)):
        digits = max(len(first), len(last))
        raise UserError(
            f"{pattern}: {{{inside}}} has {len(first)} digits on one side and {len(last)} on the other; write "
            f"{{{first:0>{digits}}..{last:0>{digits}}}} for names of {digits} digits, or no leading zeros"
        )
    if max(len(first), len(last)) > 18:
        raise UserError(too_many(pattern))
    begin, end = int(first), int(last)
    if begin > end:
        raise UserError(f"{pattern}: {{{inside}}} counts downwards; write {{{last}..{first}}}")
    if end - begin >= MOST:
        raise UserError(too_many(pattern))
    digits = len(first) if padded(first) or padded(last) else 0
    return [f"{number:0{digits}}" for number in range(begin, end + 1)]


def padded(number: str) -> bool:
    return len(number) > 1 and number.startswith("0")


def too_many(pattern: str) -> str:
    return f"{pattern}: stands for more than {MOST:,} names; check the numbers in its braces"

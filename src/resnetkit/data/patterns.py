"""Many names in one, as shells and WebDataset write them: "train-{00000..01023}.tar", "{train,val}-{0..9}.tar"."""

from __future__ import annotations

import itertools
import re

from resnetkit.errors import UserError

MOST = 1_000_000  # names of one pattern; more is a slip of the keyboard
RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for, the last braces turning fastest; a name without braces stands for itself.

    {a..b} counts from a to b; leading zeros of either say how many digits there are. {x,y} lists. Braces do not nest.
    Raises UserError that quotes what is wrong.
    """
    parts: list[list[str]] = []
    total = 1
    for text, inside in pieces(pattern):
        choices = [text] if inside is None else alternatives(inside, pattern)
        total *= len(choices)
        if total > MOST:
            raise UserError(f"{pattern}: stands for more than {MOST:,} names; check the numbers in its braces")
        parts.append(choices)
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def pieces(pattern: str) -> list[tuple[str, str | None]]:
    """The pattern in its order: (text, None), and ("", what stands in braces)."""
    found: list[tuple[str, str | None]] = []
    at = 0
    for match in re.finditer(r"\{([^{}]*)\}", pattern):
        found += [(pattern[at : match.start()], None), ("", match[1])]
        at = match.end()
    found.append((pattern[at:], None))
    if any(mark in text for text, _ in found for mark in "{}"):
        raise UserError(f"{pattern}: braces that do not close, or stand in one another; write name-{{000..123}}.tar")
    return found


def alternatives(inside: str, pattern: str) -> list[str]:
    """What one pair of braces stands for."""
    counted = RANGE.fullmatch(inside)
    if counted is None:
        listed = inside.split(",")
        if len(listed) < 2 or ".." in inside:
            raise UserError(
                f"{pattern}: {{{inside}}} is neither a range such as {{000..123}} nor a list such as {{train,val}}"
            )
        return listed
    first, last = counted.groups()
    if int(first) > int(last):
        raise UserError(f"{pattern}: {{{inside}}} ends before it begins; write {{{last}..{first}}}")
    if int(last) - int(first) >= MOST:
        raise UserError(f"{pattern}: stands for more than {MOST:,} names; check the numbers in its braces")
    padded = any(len(text) > 1 and text.startswith("0") for text in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]

"""What the source of somebody's weights says of them, and what a peer cannot be told of ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from resnetkit.complexity import traits
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import Architecture


@dataclass(frozen=True)
class Stated:
    """None where the source says nothing. `notes` are sentences for the person who imports."""

    arch: Architecture | None = None
    classes: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None
    notes: tuple[str, ...] = ()


def distinct(labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labels with each name once, and a note on what was changed: ImageNet has two classes called "crane"."""
    twice = [label for label, count in Counter(labels).items() if count > 1]
    classes = tuple(f"{label} #{i}" if label in twice else label for i, label in enumerate(labels))
    if not twice:
        return classes, ()
    example = ", ".join(name for name in classes if name.startswith(f"{twice[0]} #"))
    return classes, (f"some outputs share a name; it now has the output's number too: {example}",)


def shape(arch: Architecture) -> Architecture:
    """The architecture without its name and what only training sees, so that equal networks compare equal."""
    stride = "3x3" if arch.block == "basic" else arch.stride  # a basic block has no 1x1
    return replace(arch, name="", zero_gamma=False, init="he", stride=stride)


def unlike(arch: Architecture) -> str:
    """Why a peer cannot build a network, in words."""
    return ", ".join(traits(arch).values()) or f"{arch.block} blocks {'-'.join(map(str, arch.blocks))}"


def untold(preprocess: Preprocess, peer: str, *, centre: str) -> tuple[str, ...]:
    """Sentences on what the peer's own preprocessing does another way than ours; small things that a person may mend.

    centre   how the peer halves an odd border
    Raises UserError where the peer would answer for another input altogether.
    """
    if len(preprocess.mean) > preprocess.channels:
        raise UserError(
            f"the model subtracts a mean picture (a number per pixel), which {peer}'s preprocessing cannot; "
            'train with data.normalise = "measured" to export'
        )
    notes = []
    if preprocess.exif:
        notes.append(f"{peer} does not turn pictures as their EXIF orientation says, this model's preprocessing does")
    if preprocess.centre != centre and preprocess.resize == "shorter":
        notes.append(f"{peer} halves an odd border the other way: its crop of some pictures begins a pixel beside ours")
    if preprocess.channels == 1:
        notes.append(f'{peer} wants its pictures grey: convert them first, image.convert("L")')
    return tuple(notes)

"""Tensors and what is known about them in one `.safetensors` file that notices when a bit has changed.

safetensors itself loads most damaged files without a word, so the metadata carry a SHA-256 of the whole file
(`sealing`). All metadata stand in one JSON string under the key "resnetkit", because safetensors writes several keys in
random order, and equal contents shall give equal bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetkit.errors import UserError
from resnetkit.sealing import PLACE, is_whole, seal

if TYPE_CHECKING:  # what a file says of itself is read without torch
    from torch import Tensor

KEY = "resnetkit"


def dump(tensors: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    """The file's bytes; the same for the same tensors and metadata (plain JSON values)."""
    import safetensors.torch

    assert "sha256" not in meta
    text = json.dumps({"sha256": PLACE, **meta}, sort_keys=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return seal(safetensors.torch.save(plain, metadata={KEY: text}))


def parse(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors and metadata; metadata are None for a safetensors file of someone else. Raises UserError when damaged."""
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(data)
    except (ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise damaged(where, error) from None
    return tensors, parse_meta(data, where)


def parse_meta(data: bytes, where: str) -> dict[str, Any] | None:
    """The metadata alone, of a file that is whole; None for one of someone else. Raises UserError when damaged.

    `sha256` is taken out: two files with equal digests are equal.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        text = (header.get("__metadata__") or {}).get(KEY)
        meta = None if text is None else dict(json.loads(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(where, error) from None
    if meta is not None and not is_whole(data, str(meta.pop("sha256", ""))):
        raise UserError(f"{where}: damaged: its SHA-256 is not the one it was written with; restore it from a copy")
    return meta


def damaged(where: str, error: Exception) -> UserError:
    return UserError(f"{where}: not a safetensors file, or damaged ({error}); restore it from a copy")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """`parse` of a file. Raises UserError when it is missing, unreadable or damaged."""
    return parse(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """Raises UserError when the file is missing or unreadable."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None

"""Tensors and what is known about them in one `.safetensors` file that notices when a bit has changed.

safetensors itself loads most damaged files without a word, so the metadata carry a SHA-256 of the whole file, taken
with the digest's own 64 characters as zeros. All metadata stand in one JSON string under the key "resnetkit", because
safetensors writes several keys in random order, and equal contents shall give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from resnetkit.errors import UserError

KEY = "resnetkit"
NO_DIGEST = "0" * 64


def dump(tensors: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    """The file's bytes; the same for the same tensors and metadata (plain JSON values)."""
    assert "sha256" not in meta
    text = json.dumps({"sha256": NO_DIGEST, **meta}, sort_keys=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(plain, metadata={KEY: text})
    return data.replace(entry(NO_DIGEST), entry(hashlib.sha256(data).hexdigest()), 1)


def entry(digest: str) -> bytes:
    """The digest with its key, as they stand in the file: JSON in a string of JSON. A class may be called 000…"""
    return rf"\"sha256\": \"{digest}\"".encode("utf-8", "surrogatepass")


def parse(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors and metadata; metadata are None for a safetensors file of someone else. Raises UserError when damaged."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        tensors = safetensors.torch.load(data)
        text = (header.get("__metadata__") or {}).get(KEY)
        meta = None if text is None else dict(json.loads(text))
    except (ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{where}: not a safetensors file, or damaged ({error}); restore it from a copy") from None
    if meta is None:
        return tensors, None
    digest = str(meta.pop("sha256", ""))
    if hashlib.sha256(data.replace(entry(digest), entry(NO_DIGEST), 1)).hexdigest() != digest:
        raise UserError(f"{where}: damaged: its SHA-256 is not the one it was written with; restore it from a copy")
    return tensors, meta


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """`parse` of a file. Raises UserError when it is missing, unreadable or damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return parse(data, str(path))

"""Tensor files: equal contents are equal bytes, and no damage goes unnoticed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from resnetkit import tensorfile
from resnetkit.errors import UserError

TENSORS = {"b": torch.arange(6, dtype=torch.float32).reshape(2, 3), "a": torch.tensor([7], dtype=torch.int64)}
META = {"kind": "model", "classes": ["chat 猫", "dog"], "nested": {"y": 1.5, "x": None}}
FILE = tensorfile.dump(TENSORS, META)


def test_tensors_and_metadata_come_back() -> None:
    tensors, meta = tensorfile.parse(FILE, "m.safetensors")
    assert meta == META
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)


def test_equal_contents_are_equal_bytes_in_any_process() -> None:
    """safetensors itself writes several metadata keys in an order that changes from process to process."""
    program = (
        "import sys, torch; from resnetkit import tensorfile\n"
        "tensors = {'a': torch.tensor([7]), 'b': torch.arange(6.0).reshape(2, 3)}\n"
        "meta = {'nested': {'x': None, 'y': 1.5}, 'classes': ['chat 猫', 'dog'], 'kind': 'model'}\n"
        "sys.stdout.buffer.write(tensorfile.dump(tensors, meta))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONUTF8": "1"}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        assert done.stdout == FILE


def test_memory_layout_does_not_change_the_bytes() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    last = weight.to(memory_format=torch.channels_last)
    assert tensorfile.dump({"w": last}, {}) == tensorfile.dump({"w": weight}, {})


def test_every_changed_bit_is_noticed() -> None:
    """But for those in the name of our key: without it, it is a file of someone else, which is no model."""
    key = FILE.index(b'"resnetkit"') + 1
    for position in range(len(FILE)):
        for bit in range(8):
            damaged = bytearray(FILE)
            damaged[position] ^= 1 << bit
            meta = parsed(bytes(damaged))
            assert meta is DAMAGED or (meta is None and key <= position < key + len("resnetkit"))


DAMAGED = object()


def parsed(data: bytes) -> object:
    """The metadata, or DAMAGED when the file is refused by a sentence that names it."""
    try:
        return tensorfile.parse(data, "m.safetensors")[1]
    except UserError as error:
        return DAMAGED if str(error).startswith("m.safetensors: ") else error


@given(st.integers(0, len(FILE) - 1))
def test_a_file_cut_short_is_noticed(length: int) -> None:
    with pytest.raises(UserError, match=r"^m\.safetensors: .*damaged"):
        tensorfile.parse(FILE[:length], "m.safetensors")


def test_the_digest_is_that_of_the_documentation() -> None:
    """SHA-256 of the whole file with the digest's own 64 characters as zeros."""
    header = json.loads(FILE[8 : 8 + int.from_bytes(FILE[:8], "little")])
    digest = json.loads(header["__metadata__"]["resnetkit"])["sha256"]
    assert hashlib.sha256(FILE.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


@pytest.mark.parametrize("name", ["0" * 64, "0" * 200, '"sha256": "' + "0" * 64 + '"'])
def test_a_class_may_be_called_as_the_place_of_the_digest(name: str) -> None:
    meta = {"classes": [name], name: 1}
    assert tensorfile.parse(tensorfile.dump(TENSORS, meta), "m.safetensors")[1] == meta


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_files_of_others_have_no_metadata_of_ours(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "other.safetensors", metadata=metadata)
    tensors, meta = tensorfile.read(tmp_path / "other.safetensors")
    assert meta is None
    assert isinstance(tensors["b"], Tensor)


@pytest.mark.parametrize(
    ("metadata", "damaged"),
    [
        (None, False),  # safetensors reads it as none at all
        ({"resnetkit": "[]"}, True),
        ({"resnetkit": '{"sha256": "\\ud800"}'}, True),
    ],
)
def test_metadata_that_we_would_not_write(metadata: object, damaged: bool) -> None:
    header = json.dumps({"__metadata__": metadata, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    assert parsed(len(header).to_bytes(8, "little") + header + b"\7") is (DAMAGED if damaged else None)


@pytest.mark.parametrize(("name", "message"), [("nowhere", "no such file"), ("folder", "cannot be read")])
def test_what_is_no_file_is_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"{name}: {message}"):
        tensorfile.read(tmp_path / name)


def test_metadata_are_read_without_torch() -> None:
    """In a process of its own, and with the same answer; what is damaged is noticed too."""
    program = (
        "import sys; from resnetkit import tensorfile\n"
        "data = sys.stdin.buffer.read(); print(tensorfile.parse_meta(data, 'm')['kind'])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], input=FILE, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "model"
    with pytest.raises(UserError, match="damaged"):
        tensorfile.parse_meta(FILE[:-1] + bytes([FILE[-1] ^ 1]), "m")

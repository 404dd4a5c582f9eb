"""Vectors of pictures under a backbone that does not learn, kept from one training to the next.

They lie beside what is prepared for engines (`engines.cache`), a folder for each backbone and preprocessing, and are
known by the SHA-256 of each picture's bytes: pictures that are added, moved or labelled anew cost no more than
themselves. What is missing, damaged or not writable costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Generator
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from resnetkit import tensorfile
from resnetkit.atomic import write_bytes
from resnetkit.data.loader import Reader
from resnetkit.data.pictures import name_bad
from resnetkit.data.transforms import Preprocess
from resnetkit.engines import cache
from resnetkit.errors import UserError
from resnetkit.model import ResNet
from resnetkit.protocol import outputs

Vectors = NDArray[np.float32]
LIMIT = 1 << 30  # bytes of the vectors of one backbone that are kept
SAVE_SECONDS = 60.0  # between writings while pictures are embedded


class Kept:
    """Vectors float32 (d,) by digest, from and to a file of this backbone."""

    def __init__(self, network: ResNet, preprocess: Preprocess) -> None:
        self.width = network.fc.in_features
        self.path = cache.folder(backbone_digest(network, preprocess)) / "vectors.safetensors"
        self.rows: dict[bytes, Vectors] = {}
        self.changed, self.saved_at = False, time.monotonic()
        with contextlib.suppress(UserError, KeyError):
            tensors, _ = tensorfile.read(self.path)
            vectors = tensors["vectors"].numpy()
            if vectors.shape[1:] == (self.width,):
                digests = (row.tobytes() for row in tensors["digests"].numpy())
                self.rows = dict(zip(digests, vectors, strict=True))

    def add(self, digest: bytes, vector: Vectors) -> None:
        """Keep a vector; that of a picture whose bytes are not known is not kept."""
        if any(digest):
            self.rows[digest] = vector
            self.changed = True

    def save(self, *, now: bool) -> None:
        """Write what is new, the newest that fit; at most every `SAVE_SECONDS` unless it must be now."""
        if not self.changed or (not now and time.monotonic() < self.saved_at + SAVE_SECONDS):
            return
        most = LIMIT // (4 * self.width + 32)
        newest = list(self.rows.items())[-most:]
        digests = np.frombuffer(b"".join(digest for digest, _ in newest), np.uint8).reshape(-1, 32)
        tensors = {
            "digests": torch.from_numpy(digests.copy()),
            "vectors": torch.from_numpy(np.stack([vector for _, vector in newest])),
        }
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.path, tensorfile.dump(tensors, {"kind": "vectors"}))
            cache.prune(self.path.parent)
        self.changed, self.saved_at = False, time.monotonic()


def embedded(
    network: ResNet, reader: Reader, indices: NDArray[np.int64], digests: NDArray[np.uint8], out: Vectors
) -> Generator[int, None, None]:
    """Fill `out` (n, d) with the vectors of the pictures `indices`, in fp32; yields how many are there on the way.

    digests  uint8 (all pictures, 32): SHA-256 of each picture's bytes, zeros where it is not known
    Closed before its end it keeps what there is. Raises UserError naming pictures that cannot be read.
    """
    kept = Kept(network, reader.preprocess)
    place = {index: row for row, index in enumerate(indices.tolist())}
    missing = []
    for index, row in place.items():
        vector = kept.rows.get(digests[index].tobytes())
        if vector is None:
            missing.append(index)
        else:
            out[row] = vector
    done = len(indices) - len(missing)
    try:
        for part in outputs(network, reader, np.array(missing, np.int64), network.embed):
            if part.bad:
                raise UserError(name_bad(reader.data, part.bad))
            for index, vector in zip(part.indices.tolist(), part.rows, strict=True):
                out[place[index]] = vector
                kept.add(digests[index].tobytes(), vector)
            done += len(part.indices)
            kept.save(now=False)
            yield done
    finally:
        kept.save(now=True)
    cache.touch(kept.path.parent)


def backbone_digest(network: ResNet, preprocess: Preprocess) -> str:
    """SHA-256, as hex, of all that decides a picture's vector: weights but for the dense layer, layers, input."""
    layers = {name: value for name, value in asdict(network.arch).items() if name != "classes"}
    digest = hashlib.sha256(json.dumps([layers, preprocess.to_dict()], sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        if not name.startswith("fc."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

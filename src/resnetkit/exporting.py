"""A model as a file for an engine, with the proof that it is the same network; or for another library.

A file for an engine is made apart, loaded in the real engine and asked about pictures; only when it answers as the
model does is it moved to its place. It says of itself what the model file says (docs/model-file.md).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnetkit.atomic import sync_folder
from resnetkit.data.folder import find_pictures
from resnetkit.data.loader import default_threads
from resnetkit.data.pictures import Data
from resnetkit.engines import files
from resnetkit.engines.engine import Engine, Logits, Pixels, need
from resnetkit.engines.files import Input, Source
from resnetkit.engines.preparing import apart
from resnetkit.engines.samples import agree, sample_pictures
from resnetkit.engines.starting import RUNS, start
from resnetkit.engines.writing import write
from resnetkit.errors import UserError, nearest
from resnetkit.evaluation import as_trained
from resnetkit.peers import exports as peers
from resnetkit.peers.exports import Exported
from resnetkit.prediction import fill
from resnetkit.quantising import Gate, check_int8, quantised
from resnetkit.weights import ModelFile, open_model

SUFFIXES = {name: suffix for suffix, name in files.TO.items()}
PEERS = (*peers.WRITERS, "hub-card")
BATCHES = (1, 2, 5)  # in which a file is proved
MOST = 64  # pictures of the user's that it is proved on


@dataclass(frozen=True)
class Proof:
    """How near a file's answers are to the model's.

    difference  the largest of any two logits; `largest` is the largest logit of the model
    pictures    how many, and whose: "built in" or the user's; `same` of them get the same first class
    """

    engine: str
    difference: float
    largest: float
    pictures: int
    same: int
    whose: str

    def __str__(self) -> str:
        return (
            f"{self.engine} answers as the model does: on {self.pictures} pictures ({self.whose}), in batches of "
            f"{', '.join(map(str, BATCHES))}, logits are at most {self.difference:.1e} apart (the largest is "
            f"{self.largest:.3g}), and the first class is the same on {self.same}"
        )


@dataclass(frozen=True)
class EngineFile:
    """What was written, and the proof."""

    files: tuple[str, ...]
    proof: Proof | Gate

    @property
    def notes(self) -> tuple[str, ...]:
        """In words."""
        return (str(self.proof),)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        proof = self.proof.to_dict() if isinstance(self.proof, Gate) else asdict(self.proof)
        return {"files": self.files, "notes": self.notes, "proof": proof}


def export(model: str | Path | ModelFile, to: str, out: str | Path, **options: Any) -> EngineFile | Exported:
    """Write a model for an engine (onnx, openvino, mnn, torch-export: see `export_for_engine`, with its options) or for
    another library (timm, transformers, torchvision, hub-card: see `peers.exports.export`). Raises UserError.
    """
    if to in SUFFIXES:
        return export_for_engine(model, to, out, **options)
    if to in PEERS and (given := [name for name in ("input", "pictures", "int8") if options.get(name)]):
        raise UserError(f"{given[0]}: is for engines ({', '.join(SUFFIXES)}), and to is {to!r}; leave it out")
    if to not in PEERS:
        raise UserError(f"to={to!r}: choose from {', '.join([*SUFFIXES, *PEERS])}{nearest(to, [*SUFFIXES, *PEERS])}")
    return peers.export(model, to, out)


def export_for_engine(
    model: str | Path | ModelFile,
    to: str,
    out: str | Path,
    *,
    input: Input = "uint8",
    pictures: str | Path | Iterable[str | Path] = (),
    int8: str | Path | Data | None = None,
    max_drop: float = 0.3,
    say: Callable[[str], None] | None = None,
) -> EngineFile:
    """Write a model for an engine: `to` is onnx, openvino, mnn or torch-export.

    input     "uint8": the file takes pictures (N, size, size, C) and normalises them itself; "float": what
              `Preprocess.normalise` gives (N, C, size, size)
    pictures  files that it is proved on; without them a small built-in set
    int8      quantise, on these pictures: anything `open_data` takes that has a training and a validation side. The
              proof is then that on the validation side top-1 drops by `max_drop` points at most (`quantising`)
    say       is told what is being done
    Raises UserError, and leaves nothing behind, also when the file does not answer as the model does.
    """
    if int8 is not None:
        check_int8(to, max_drop)
    target = free_target(out, to)
    opened = model if isinstance(model, ModelFile) else open_model(model, several=int8 is None)
    shown, whose = proof_pictures(opened, pictures)
    try:
        with apart(target.parent) as working:
            made = working / target.name
            proof: Proof | Gate
            if int8 is None:
                written = write(opened, to, made, input)
                proof = prove(opened, files.read(made), shown, whose)
            else:
                data = int8 if isinstance(int8, Data) else as_trained(model, int8)
                written, proof = quantised(opened, data, to=to, made=made, input=input, max_drop=max_drop, say=say)
                check_batches(opened, files.read(made), shown)
            place_all(written, target)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place or make room") from None
    return EngineFile(tuple(str(target.with_suffix(file.suffix)) for file in reversed(written)), proof)


def free_target(out: str | Path, to: str) -> Path:
    """The file to make. Raises UserError before any work is done."""
    if to not in SUFFIXES:
        raise UserError(f"to={to!r}: choose from {', '.join(SUFFIXES)}")
    target = Path(out)
    if target.suffix != SUFFIXES[to]:
        raise UserError(f"{out}: a file of {to} ends in {SUFFIXES[to]}")
    for path in (target, target.with_suffix(".bin")) if to == "openvino" else (target,):
        if os.path.lexists(path):
            raise UserError(f"{path}: exists already; choose another --out, or take it away")
    if not target.parent.is_dir():
        raise UserError(f"{out}: there is no folder {target.parent}; make it first, or choose another place")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"{target.parent}: cannot be written; choose another place, or ask for the permission")
    need(RUNS[SUFFIXES[to]][0])
    return target


def place_all(written: list[Path], target: Path) -> None:
    """Move finished files to where they belong; the one with the metadata is the last of them."""
    for file in written:
        file.replace(target.with_suffix(file.suffix))
    sync_folder(target.parent)


def proof_pictures(model: ModelFile, paths: str | Path | Iterable[str | Path]) -> tuple[Pixels, str]:
    """What a file is proved on: the user's pictures as the network sees them, or the built-in ones."""
    preprocess = model.preprocess
    found: list[str] = []
    given = [os.fspath(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    for path in given:
        found += find_pictures(Path(path)) if os.path.isdir(path) else [path]  # noqa: PTH112 - names of any bytes
    if given and not found:
        raise UserError(f"{', '.join(given)}: holds no pictures; take another folder, or leave it out")
    if not found:
        return sample_pictures(2 * max(BATCHES), preprocess.size, preprocess.channels), "built in"
    pictures = np.empty((len(found[:MOST]), preprocess.size, preprocess.size, preprocess.channels), dtype=np.uint8)
    for path, picture in zip(found, pictures, strict=False):
        reason = fill(picture, path, preprocess)
        if reason is not None:
            raise UserError(f"{path}: {reason}; take another picture")
    return pictures, "yours"


def prove(model: ModelFile, source: Source, pictures: Pixels, whose: str) -> Proof:
    """Load a file in its engine and compare. Raises UserError that says where they part."""
    name = RUNS[source.path.suffix][0]
    engine = start(name, source, default_threads())
    reference = torch_logits(model, pictures)
    check_about(model, source)
    worst, same = 0.0, len(pictures)
    for batch in BATCHES:
        answers = in_batches(engine, pictures, batch)
        wrong = agree(reference, answers)
        if wrong is not None:
            place = where_apart(reference, answers, model.classes)
            raise UserError(f"{source.path.name}: not written: in batches of {batch}, {wrong}; {place}")
        worst = max(worst, float(np.abs(answers - reference).max()))
        same = min(same, int((answers.argmax(1) == reference.argmax(1)).sum()))
    return Proof(name, worst, float(np.abs(reference).max()), len(pictures), same, whose)


def check_about(model: ModelFile, source: Source) -> None:
    """Raise UserError where a file says something else of itself than its model."""
    if source.about.to_meta() != json.loads(json.dumps(model.about.to_meta())):
        raise UserError(f"{source.path.name}: its metadata are not the model's; nothing was written")


def check_batches(model: ModelFile, source: Source, pictures: Pixels) -> None:
    """Raise UserError where a file in int8 does not load, or answers differently in other batches."""
    check_about(model, source)
    engine = start(RUNS[source.path.suffix][0], source, default_threads())
    alone = in_batches(engine, pictures, 1)
    for batch in BATCHES[1:]:
        wrong = agree(alone, in_batches(engine, pictures, batch), "int8")
        if wrong is not None:
            raise UserError(f"{source.path.name}: not written: in batches of {batch}, against single pictures, {wrong}")


def where_apart(reference: Logits, answers: Logits, classes: tuple[str, ...]) -> str:
    """The picture and the class on which two engines are furthest apart."""
    if reference.shape != answers.shape:
        return f"{answers.shape[1:]} answers a picture, not {reference.shape[1:]}"
    picture, answer = np.unravel_index(
        int(np.nan_to_num(np.abs(reference - answers), nan=np.inf).argmax()), answers.shape
    )
    values = f"{answers[picture, answer]:.5g}, not {reference[picture, answer]:.5g}"
    return f"furthest on picture {picture + 1}, class {classes[answer]!r}: {values}"


def in_batches(engine: Engine, pictures: Pixels, batch: int) -> Logits:
    return np.concatenate([engine(pictures[at : at + batch]) for at in range(0, len(pictures), batch)])


def torch_logits(model: ModelFile, pictures: Pixels) -> Logits:
    """What the model itself answers, as it is evaluated: nothing folded, in fp32."""
    parts = []
    with torch.inference_mode():
        for at in range(0, len(pictures), 16):
            x = model.preprocess.normalise(torch.from_numpy(pictures[at : at + 16]))
            parts.append(model.network.eval()(x).numpy())
    return np.concatenate(parts)

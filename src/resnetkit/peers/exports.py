"""A model in the format of timm, Transformers or torchvision: the same network, labels and preprocessing."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from resnetkit.atomic import write_bytes
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.peers import names, timm, torchvision, transformers
from resnetkit.peers.card import CARD, model_card
from resnetkit.weights import ModelFile, open_model


@dataclass(frozen=True)
class Exported:
    """The files that were written, and what the peer does another way."""

    files: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"files": self.files, "notes": self.notes}


Files = dict[str, bytes]


def export(model: str | Path | ModelFile, to: str, out: str | Path) -> Exported:
    """Write a model into the folder `out` in the format `to`: timm, transformers, torchvision or hub-card.

    Files that stand there already are refused, so that a card goes beside an export and nothing is written over.
    Raises UserError where the peer has no such network or preprocessing.
    """
    opened = model if isinstance(model, ModelFile) else open_model(model)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{out}: a file; --out is a folder")
    files: Files
    notes: tuple[str, ...] = ()
    if to == "hub-card":
        beside = [path.name for path in folder.iterdir()] if folder.exists() else []
        files = {CARD: model_card(opened, beside).encode()}
    elif to in WRITERS:
        files, notes = WRITERS[to](opened)
    else:
        raise UserError(f"to={to!r}: choose from {', '.join([*WRITERS, 'hub-card'])}")
    there = [name for name in files if (folder / name).exists()]
    if there:
        raise UserError(f"{folder / there[0]}: exists already; choose another --out, or take it away")
    write_all(folder, files)
    return Exported(tuple(str(folder / name) for name in files), notes)


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """All of the files, or none of them. Raises UserError."""
    made = not folder.exists()
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_bytes(folder / name, data)
            written.append(folder / name)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            if made:
                folder.rmdir()
        if isinstance(error, OSError):
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); choose another place or make room"
            ) from None
        raise


def tensors_of(model: ModelFile, naming: names.Naming) -> dict[str, Tensor]:
    """The state dict by the peer's names, for RGB: a network for BGR gets its first filters turned around."""
    arch = model.network.arch
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    if model.preprocess.order == "BGR":
        first = "conv1.weight" if arch.stem == "single" else "conv1.0.weight"
        tensors[first] = tensors[first].flip(1).contiguous()
    return {naming(name, arch): tensor for name, tensor in tensors.items()}


def as_rgb(preprocess: Preprocess) -> Preprocess:
    """The preprocessing of the turned network: the same numbers per colour."""
    if preprocess.order == "RGB" or len(preprocess.mean) > preprocess.channels:
        return preprocess
    return replace(preprocess, order="RGB", mean=preprocess.mean[::-1], std=preprocess.std[::-1])


def write_timm(model: ModelFile) -> tuple[Files, tuple[str, ...]]:
    """config.json and model.safetensors, as timm.create_model("local-dir:DIR") and "hf-hub:" read them."""
    arch = model.network.arch
    config, notes = timm.config(arch, model.classes, as_rgb(model.preprocess))
    tensors = tensors_of(model, names.timm)
    if arch.preactivation:
        tensors["head.fc.weight"] = tensors["head.fc.weight"][:, :, None, None].contiguous()
    return {"config.json": text(config), "model.safetensors": safetensors.torch.save(tensors)}, notes


def write_transformers(model: ModelFile) -> tuple[Files, tuple[str, ...]]:
    """What `from_pretrained` reads: config.json, preprocessor_config.json, model.safetensors."""
    preprocess = as_rgb(model.preprocess)
    config, notes = transformers.config(model.network.arch, model.classes, preprocess)
    weights = safetensors.torch.save(tensors_of(model, names.transformers), metadata={"format": "pt"})
    steps = text(transformers.processor(preprocess))
    return {"config.json": text(config), "preprocessor_config.json": steps, "model.safetensors": weights}, notes


def write_torchvision(model: ModelFile) -> tuple[Files, tuple[str, ...]]:
    """A state dict for `load_state_dict(strict=True)`, and beside it what torchvision keeps in its code."""
    preprocess = as_rgb(model.preprocess)
    name = torchvision.builder(model.network.arch)
    steps, notes = torchvision.transform(preprocess)
    file = io.BytesIO()
    torch.save(tensors_of(model, names.ours), file)
    files = {f"{name}.pth": file.getvalue(), "transform.json": text(steps), "classes.json": text(list(model.classes))}
    return files, notes


WRITERS: dict[str, Callable[[ModelFile], tuple[Files, tuple[str, ...]]]] = {
    "timm": write_timm,
    "transformers": write_transformers,
    "torchvision": write_torchvision,
}


def text(value: Any) -> bytes:
    """JSON that a person can read."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")

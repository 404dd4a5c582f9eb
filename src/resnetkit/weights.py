"""Model files: one `.safetensors` with architecture, class names, `Preprocess`, metrics and provenance inside.

Nothing in a model file is executed when it is opened. Files of others come in through `peers.sources`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnetkit import tensorfile
from resnetkit.about import About, about_of, model_path
from resnetkit.atomic import write_bytes
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import Architecture, ResNet, architecture
from resnetkit.recipe import Model


@dataclass(frozen=True)
class ModelFile:
    """A network with everything needed to use it."""

    network: ResNet
    classes: tuple[str, ...]
    preprocess: Preprocess
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    multi_label: bool = False  # see `About`

    @property
    def about(self) -> About:
        """Everything but the weights."""
        own = {name: getattr(self, name) for name in ABOUT}
        return About(architecture=asdict(self.network.arch), **own)


ABOUT = ("classes", "preprocess", "metrics", "provenance", "calibration", "multi_label")


def named_architecture(name: str, **choices: Any) -> Architecture:
    """`model.architecture`, with its ValueError as the user's error that it is."""
    try:
        return architecture(name, **choices)
    except ValueError as error:
        raise UserError(str(error)) from None


def asked_architecture(model: Model, **counts: int) -> Architecture:
    """The network that a recipe's [model] asks for; what it leaves as it is by default is the name's own.

    counts   classes and channels, where they are known
    """
    usual = Model()
    choices = {key: value for key, value in vars(model).items() if value != getattr(usual, key)}
    return named_architecture(choices.pop("arch", "resnet18"), **choices, **counts)


def dump_model(model: ModelFile) -> bytes:
    """The bytes of a model file; equal models give equal bytes."""
    return tensorfile.dump(dict(model.network.state_dict()), model.about.to_meta())


def save_model(model: ModelFile, path: Path) -> None:
    """Write a model file. Raises OSError when the place cannot be written; an older file there then stays."""
    write_bytes(path, dump_model(model))


def open_model(model: str | Path, *, several: bool = False) -> ModelFile:
    """The model of a RUN folder or model file, in evaluation mode. Raises UserError when missing or damaged.

    several   whether whoever asks can do with a model that gives a picture several labels
    """
    path = model_path(model)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: not a model file; if it holds weights, bring them in with: resnet import {path}")
    tensors, meta = tensorfile.read(path)
    about = about_of(meta, str(path))
    if about.multi_label and not several:
        raise UserError(
            f"{path}: gives a picture several labels; such models can be trained, evaluated, asked (predict, serve), "
            "exported to an engine in fp32 and embedded with, and nothing else"
        )
    network = filled_network(read_architecture(about.architecture), tensors)
    return ModelFile(network, **{name: getattr(about, name) for name in ABOUT})


def read_architecture(fields: dict[str, Any]) -> Architecture:
    """The inverse of `dataclasses.asdict` after a trip through JSON."""
    return Architecture(**{**fields, "blocks": tuple(fields["blocks"])})


def filled_network(arch: Architecture, tensors: dict[str, Tensor]) -> ResNet:
    """The network that has these tensors, in evaluation mode; no random weights are drawn for them to replace."""
    with torch.device("meta"):
        network = ResNet(arch)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()


def place(network: ResNet, device: torch.device, channels_last: bool = True) -> ResNet:
    """Move the network to where it runs, in the memory layout that convolutions are fastest in.

    On a GPU fp32 is fp32 from then on, in the whole process: torch would let convolutions drop 13 of 24 bits (TF32).
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(device).to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def check_fit(network: ResNet, tensors: dict[str, Tensor], where: str) -> None:
    """Raise UserError with the list of differences when the tensors are not exactly the network's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    # Files from before torch 0.4.1 lack the counters, which evaluation does not use.
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    wrong = [
        *(f"missing {name} {wanted[name]}" for name in missing),
        *(f"unexpected {name} {given[name]}" for name in sorted(given) if name not in wanted),
        *(f"{name} is {given[name]}, not {shape}" for name, shape in wanted.items() if given.get(name, shape) != shape),
    ]
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise UserError(f"{where}: does not fit {network.arch.name}: {'; '.join(wrong[:10])}{more}")

"""Somebody's weights, wherever they lie, as a model file: what the source states is read, the rest is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import Architecture, ResNet
from resnetkit.peers import hub, timm, torchvision, transformers
from resnetkit.peers.names import naming_of
from resnetkit.peers.pickles import SUFFIXES, read_state_dict
from resnetkit.peers.stated import Stated
from resnetkit.weights import ModelFile, check_fit, filled_network, save_model


@dataclass(frozen=True)
class Source:
    """Tensors by the names they have there, what is said of them, and where they are from."""

    where: str
    tensors: dict[str, Tensor]
    stated: Stated
    provenance: dict[str, Any]


def is_on_hub(source: str | Path) -> bool:
    """Whether `source` can only mean a repository: `timm/resnet50.a1_in1k`, with nothing of that name here."""
    text = str(source)
    return bool(hub.NAME.fullmatch(text)) and not Path(text).exists() and not text.endswith(SUFFIXES)


def open_source(source: str | Path, *, revision: str | None = None, offline: bool = False) -> Source:
    """What stands in a file, a folder of timm or Transformers, or a repository of the hub.

    Raises UserError: missing, damaged, of another family, or a pickle that would run code.
    """
    if is_on_hub(source):
        folder = hub.fetch(str(source), revision=revision, offline=offline)
        return open_folder(folder, str(source), {"imported_from": str(source), "commit": folder.name})
    if revision is not None:
        raise UserError(f"{source}: a revision is for repositories of the hub; leave --revision out")
    path = Path(source)
    if path.is_dir():
        return open_folder(path, str(path), {"imported_from": path.resolve().name})
    tensors = read_state_dict(path)
    return Source(str(path), tensors, torchvision.published(path), {"imported_from": path.name})


def open_folder(folder: Path, where: str, provenance: dict[str, Any]) -> Source:
    """A folder as timm and Transformers save one."""
    config = read_config(folder / hub.CONFIG, where)
    weights = next((folder / name for name in hub.WEIGHTS if (folder / name).exists()), None)
    if weights is None:
        raise UserError(f"{where}: holds neither {' nor '.join(hub.WEIGHTS)}")
    if "architecture" in config:
        stated = timm.stated(config, where)
    else:
        steps = folder / hub.OPTIONAL[0]
        stated = transformers.stated(config, read_config(steps, where) if steps.exists() else None, where)
    return Source(where, read_state_dict(weights), stated, provenance)


def read_config(path: Path, where: str) -> Mapping[str, Any]:
    """A JSON object from a file. Raises UserError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{where}: a folder without {path.name}; give the file with the weights") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {path.name} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: {path.name} holds no JSON object")
    return found


def import_weights(
    source: str | Path,
    *,
    out: str | Path,
    arch: Architecture | None = None,
    classes: tuple[str, ...] | None = None,
    preprocess: Preprocess | None = None,
    exif: bool = False,
    revision: str | None = None,
    offline: bool = False,
) -> ModelFile:
    """Make a model file of somebody's weights.

    source     a .safetensors or torch.save file, a folder of timm or Transformers, or a repository of the hub
    arch, classes, preprocess   what the source does not state; what it states must be left out
    exif       turn pictures as their EXIF orientation says, though the peers and published scores do not
    revision, offline   of the hub: a branch, tag or commit; the cache and nothing else
    What a person should know of the source stands in the provenance, under "notes".
    Raises UserError, also with the mismatches when the weights do not fit.
    """
    opened = open_source(source, revision=revision, offline=offline)
    model = filled(opened, Stated(arch, classes, preprocess))
    if exif:
        model = replace(model, preprocess=replace(model.preprocess, exif=True))
    try:
        save_model(model, Path(out))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place or make room") from None
    return model


def filled(source: Source, given: Stated) -> ModelFile:
    """The model of a source with what was given beside. Raises UserError for what is lacking or said twice."""
    asked = (
        ("arch", "architecture", "--arch"),
        ("classes", "class names", "--classes"),
        ("preprocess", "preprocessing", "--size, --crop, --filter, --mean and --std"),
    )
    own = source.stated
    twice = [(what, flag) for key, what, flag in asked if getattr(own, key) and getattr(given, key)]
    if twice:
        raise UserError(f"{source.where}: states its own {twice[0][0]}; leave out {twice[0][1]}")
    lacking = [(what, flag) for key, what, flag in asked if not getattr(own, key) and not getattr(given, key)]
    if lacking:
        raise UserError(
            f"{source.where}: states no {', no '.join(what for what, _ in lacking)}; "
            f"say it with {', '.join(flag for _, flag in lacking)}"
        )
    arch, classes, preprocess = own.arch or given.arch, own.classes or given.classes, own.preprocess or given.preprocess
    assert arch is not None
    assert classes is not None
    assert preprocess is not None
    network = load(replace(arch, classes=len(classes), channels=preprocess.channels), source)
    notes = {"notes": list(own.notes)} if own.notes else {}
    return ModelFile(network, classes, preprocess, provenance={**source.provenance, **notes})


def load(arch: Architecture, source: Source) -> ResNet:
    """The network with the source's tensors. Raises UserError with the mismatches when they do not fit."""
    with torch.device("meta"):
        network = ResNet(arch)
    tensors = by_our_names(arch, network, source.tensors)
    outputs = len(tensors["fc.bias"]) if "fc.bias" in tensors else arch.classes
    if outputs != arch.classes:
        raise UserError(f"{source.where}: has {outputs:,} outputs, but {arch.classes:,} classes are named")
    check_fit(network, tensors, source.where)
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    return filled_network(arch, counters | tensors)


def by_our_names(arch: Architecture, network: ResNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of `network`; those that have none of ours keep their own."""
    naming = naming_of(tensors)
    ours = {naming(name, arch): name for name in network.state_dict()}
    named = {ours.get(name, name): tensor for name, tensor in tensors.items()}
    head = named.get("fc.weight")
    if head is not None and head.ndim == 4:  # timm's ResNetV2 ends in a 1x1 convolution
        named["fc.weight"] = head.flatten(1)
    return named

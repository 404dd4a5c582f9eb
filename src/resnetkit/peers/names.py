"""What a parameter is called elsewhere. Ours are torchvision's names, which timm shares but for its ResNetV2.

Each function takes one of our names and gives the peer's, so that a way back is the same table read the other way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from resnetkit.model import Architecture

Naming = Callable[[str, Architecture], str]

STEM_OF_TIMM_V2 = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2", "6": "conv3"}  # of the deep stem


def ours(name: str, arch: Architecture) -> str:
    """torchvision's names."""
    del arch
    return name


def timm(name: str, arch: Architecture) -> str:
    """timm's: torchvision's, but for pre-activation, which timm builds with a class of its own (ResNetV2)."""
    if not arch.preactivation:
        return name
    name = re.sub(r"^conv1\.(\d)\.", lambda found: f"stem.{STEM_OF_TIMM_V2[found[1]]}.", name)
    name = re.sub(r"^conv1\.", "stem.conv.", name)
    name = re.sub(r"^layer(\d)\.", lambda found: f"stages.{int(found[1]) - 1}.blocks.", name)
    name = re.sub(r"\.bn(\d)\.", r".norm\1.", name)
    name = re.sub(r"\.downsample\.(?:1\.)?", ".downsample.conv.", name)
    return re.sub(r"^fc\.", "head.fc.", re.sub(r"^norm\.0\.", "norm.", name))


def transformers(name: str, arch: Architecture) -> str:
    """Those of Transformers' ResNetForImageClassification."""
    del arch
    name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
    name = re.sub(r"^layer(\d)\.(\d+)\.", lambda at: f"resnet.encoder.stages.{int(at[1]) - 1}.layers.{at[2]}.", name)
    name = re.sub(r"\.conv(\d)\.", lambda at: f".layer.{int(at[1]) - 1}.convolution.", name)
    name = re.sub(r"\.bn(\d)\.", lambda at: f".layer.{int(at[1]) - 1}.normalization.", name)
    name = name.replace(".downsample.0.", ".shortcut.convolution.").replace(
        ".downsample.1.", ".shortcut.normalization."
    )
    return re.sub(r"^fc\.", "classifier.1.", name)


def naming_of(names: Iterable[str]) -> Naming:
    """Whose names these are."""
    first = {name.partition(".")[0] for name in names}
    if "resnet" in first:
        return transformers
    return timm if "stages" in first else ours


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Each name to the same without what a wrapper has put before all of them (`module.`, `_orig_mod.`, `model.`)."""
    names = list(names)
    stem = re.compile(r"(|.*?\.)(?:conv1\.|resnet\.embedder\.|stem\.conv)")
    prefix = min((found[1] for name in names if (found := stem.match(name))), key=len, default="")
    inside = all(name.startswith(prefix) for name in names)
    return {name: name.removeprefix(prefix) if inside else name for name in names}

"""torchvision: a state dict alone, whose preprocessing stands in torchvision's code and not in the file.

Its published files are known by their content, the first eight digits of their SHA-256, which their names carry too.
The table is that of torchvision 0.28's `models/resnet.py`, and of the first files, from before 0.11.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import Architecture, architecture
from resnetkit.peers.stated import Stated, shape, unlike, untold

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# SHA-256 prefix: (architecture, shorter side before the crop of 224).
PUBLISHED = {
    "f37072fd": ("resnet18", 256),
    "b627a593": ("resnet34", 256),
    "0676ba61": ("resnet50", 256),
    "11ad3fa6": ("resnet50", 232),
    "63fe2227": ("resnet101", 256),
    "cd907fc2": ("resnet101", 232),
    "394f9c45": ("resnet152", 256),
    "f82ba261": ("resnet152", 232),
    "7cdf4587": ("resnext50_32x4d", 256),
    "1a0047aa": ("resnext50_32x4d", 232),
    "8ba56ff5": ("resnext101_32x8d", 256),
    "110c445d": ("resnext101_32x8d", 232),
    "173b62eb": ("resnext101_64x4d", 232),
    "95faca4d": ("wide_resnet50_2", 256),
    "9ba9bcbe": ("wide_resnet50_2", 232),
    "32ee1156": ("wide_resnet101_2", 256),
    "d733dc28": ("wide_resnet101_2", 232),
    "5c106cde": ("resnet18", 256),
    "333f7ec4": ("resnet34", 256),
    "19c8e357": ("resnet50", 256),
    "5d3b4d8f": ("resnet101", 256),
    "b121ed2d": ("resnet152", 256),
}


def published(path: Path) -> Stated:
    """What torchvision says of one of its files; nothing of any other file.

    Raises UserError for a file that has the name of one of them and another content.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    named = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if named and named[1] in PUBLISHED and not digest.startswith(named[1]):
        raise UserError(
            f"{path}: its name says that its SHA-256 begins with {named[1]}, but it begins with {digest[:8]}: damaged "
            "or another file; download it anew, or rename it and say what it is"
        )
    if digest[:8] not in PUBLISHED:
        return Stated()
    name, side = PUBLISHED[digest[:8]]
    preprocess = Preprocess(224, "shorter", side, "bilinear", 3, "RGB", MEAN, STD, exif=False)
    return Stated(architecture(name), None, preprocess, (f"torchvision's {name}, by its SHA-256 {digest[:8]}…",))


def builder(arch: Architecture) -> str:
    """The function of torchvision.models that builds the network. Raises UserError when there is none."""
    for name in dict.fromkeys(name for name, _ in PUBLISHED.values()):
        if shape(architecture(name, classes=arch.classes)) == shape(arch):
            return name
    raise UserError(f"{arch.name}: torchvision has no such network ({unlike(arch)}); choose another --to")


def transform(preprocess: Preprocess) -> tuple[dict[str, object], tuple[str, ...]]:
    """The arguments of torchvision's `transforms._presets.ImageClassification`, interpolation by its name; notes."""
    notes = untold(preprocess, "torchvision", centre="even")
    if preprocess.resize == "stretch":
        raise UserError("the model's pictures are stretched, which torchvision's ImageClassification cannot; use timm")
    steps: dict[str, object] = {"crop_size": preprocess.size, "resize_size": preprocess.resize_to}
    steps |= {"interpolation": preprocess.filter, "mean": list(preprocess.mean), "std": list(preprocess.std)}
    return steps, notes

"""timm: a folder with config.json and model.safetensors, as its hub repositories are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import Architecture, architecture
from resnetkit.peers.stated import Stated, distinct, shape, unlike, untold

# timm's names of networks of this family; others of its own are written as arguments to the first of their kind.
NAMES = (
    *("resnet18", "resnet18d", "resnet34", "resnet34d", "resnet26", "resnet26d", "resnet50", "resnet50c", "resnet50d"),
    *("resnet101", "resnet101c", "resnet101d", "resnet152", "resnet152c", "resnet152d", "resnet200", "resnet200d"),
    *("resnext50_32x4d", "resnext50d_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2", "seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152"),
    *("seresnet152d", "seresnet200d", "seresnet269d", "seresnext26d_32x4d", "seresnext50_32x4d", "seresnext101_32x4d"),
    *("seresnext101_32x8d", "seresnext101d_32x8d", "seresnext101_64x4d"),
    *("resnetv2_18", "resnetv2_18d", "resnetv2_34", "resnetv2_34d", "resnetv2_50", "resnetv2_50d", "resnetv2_101"),
    *("resnetv2_101d", "resnetv2_152", "resnetv2_152d"),
)
FILTERS = ("bilinear", "bicubic", "box", "lanczos")
MEANINGLESS = {"num_classes", "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last"}  # once it is trained
SAID = ("input_size", "interpolation", "crop_pct", "mean", "std")  # together they are a Preprocess


def stated(config: Mapping[str, Any], where: str) -> Stated:
    """What a config.json says. Raises UserError for what is none of this family, or cannot be."""
    about = config.get("pretrained_cfg", config)
    size = about.get("input_size") or [3, 0, 0]
    channels = (config.get("model_args") or {}).get("in_chans") or size[0]
    number = config.get("num_classes", about.get("num_classes"))
    if not isinstance(number, int):
        raise UserError(f"{where}: says nothing of num_classes; is it a config.json of timm?")
    if config.get("global_pool", "avg") != "avg":
        raise UserError(f"{where}: global_pool {config['global_pool']!r}: a ResNet averages")
    name = str(config["architecture"]).partition(".")[0]
    args = arguments(config.get("model_args") or {}, where)
    if name not in NAMES:
        raise UserError(f"{where}: timm's {name} is no ResNet that resnetkit builds; it builds {', '.join(NAMES)}")
    try:
        arch = architecture(name, **{**args, "classes": number, "channels": channels})
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    labels = config.get("label_names", about.get("label_names"))
    if isinstance(labels, Mapping):
        labels = [labels[key] for key in sorted(labels, key=int)] if all(map(str.isdigit, labels)) else None
    classes, notes = (None, ()) if not labels else distinct([str(label) for label in labels])
    return Stated(arch, classes, preprocess_of(about, channels, where), (*notes, *test_size(about)))


def arguments(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """timm's model_args as fields of Architecture. Raises UserError for those that have none."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        match key, value:
            case "layers", list():
                found["blocks"] = tuple(value)
            case "cardinality", int():
                found["groups"] = value
            case "base_width", int():
                found["base_width"] = value
            case "in_chans", int():
                found["channels"] = value
            case "stem_type", "" | "deep":
                found["stem"] = "deep" if value else "single"
            case "stem_width", 32 | 64:
                pass  # 64 channels leave the stem; see the check of the tensors' shapes
            case "avg_down", bool():
                found["downsample"] = "pool" if value else "conv"
            case "block_args", {"attn_layer": "se", **rest} if not rest:
                found["se"] = True
            case ("act_layer", "relu") | ("norm_layer", "batchnorm2d") | ("global_pool", "avg"):
                pass
            case "act_layer", _:
                raise UserError(f"{where}: activation {value!r}: a ResNet here has ReLU, so this cannot be imported")
            case _ if key not in MEANINGLESS:
                raise UserError(f"{where}: model_args {key}={value!r} is not of this family, so it cannot be imported")
    return found


def preprocess_of(about: Mapping[str, Any], channels: int, where: str) -> Preprocess | None:
    """timm's evaluation transform as a Preprocess; None where the file leaves it open."""
    if any(about.get(key) is None for key in SAID):
        return None
    size, share, mode = about["input_size"], about["crop_pct"], about.get("crop_mode") or "center"
    if size[1] != size[2]:
        raise UserError(f"{where}: input_size {size}: only square inputs can be imported")
    if mode not in ("center", "squash"):
        raise UserError(f"{where}: crop_mode {mode!r}: only 'center' and 'squash' can be imported")
    if about["interpolation"] not in FILTERS:
        raise UserError(f"{where}: interpolation {about['interpolation']!r}: only {', '.join(FILTERS)} can be imported")
    if not 0 < share <= 1:
        raise UserError(f"{where}: crop_pct {share}: must be in (0, 1]")
    try:
        return Preprocess(
            size=size[1],
            resize="stretch" if mode == "squash" else "shorter",
            resize_to=math.floor(size[1] / share),
            filter=about["interpolation"],
            channels=channels,
            order="RGB",
            mean=tuple(map(float, about["mean"])),
            std=tuple(map(float, about["std"])),
            exif=False,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def test_size(about: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where the authors test at another size than they trained at, as timm's own validation does."""
    size, share = about.get("test_input_size"), about.get("test_crop_pct", about.get("crop_pct"))
    if not size or (size, share) == (about.get("input_size"), about.get("crop_pct")):
        return ()
    return (f"its authors test it at {size[1]} pixels: resnet evaluate … --size {size[1]} --crop {share:g}",)


def config(
    arch: Architecture, classes: tuple[str, ...], preprocess: Preprocess
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config.json of a model, and notes. Raises UserError where timm has no such network or preprocessing."""
    notes = untold(preprocess, "timm", centre="even")
    name, args = builder(arch)
    size = [preprocess.channels, preprocess.size, preprocess.size]
    v2, deep = arch.preactivation, arch.stem == "deep"
    first = {(False, False): "conv1", (False, True): "conv1.0", (True, False): "stem.conv", (True, True): "stem.conv1"}
    about = {
        "custom_load": False,
        "input_size": size,
        "fixed_input_size": False,
        "interpolation": preprocess.filter,
        "crop_pct": crop_share(preprocess.size, preprocess.resize_to),
        "crop_mode": "squash" if preprocess.resize == "stretch" else "center",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "num_classes": arch.classes,
        "pool_size": [-(-preprocess.size // 32)] * 2,
        "first_conv": first[v2, deep],
        "classifier": "head.fc" if v2 else "fc",
    }
    written = {
        "architecture": name,
        "num_classes": arch.classes,
        "num_features": (arch.width << (len(arch.blocks) - 1)) * (4 if arch.block == "bottleneck" else 1),
        "global_pool": "avg",
        "label_names": list(classes),
        "pretrained_cfg": about,
    }
    return (written | {"model_args": args} if args else written), notes


def builder(arch: Architecture) -> tuple[str, dict[str, Any]]:
    """The name that timm builds the network by, and further arguments. Raises UserError where it cannot."""
    wanted, same = shape(arch), {"classes": arch.classes, "channels": arch.channels}
    channels = {"in_chans": arch.channels} if arch.channels != 3 else {}
    for name in NAMES:
        if shape(architecture(name, **same)) == wanted:
            return name, channels
    base = ("resnetv2_" if arch.preactivation else "resnet") + ("18" if arch.block == "basic" else "50")
    args: dict[str, Any] = {"layers": list(arch.blocks)}
    mixed: dict[str, Any] = {"blocks": arch.blocks, "stem": arch.stem, "downsample": arch.downsample}
    if arch.stem == "deep":
        args |= {"stem_type": "deep"} | ({} if arch.preactivation else {"stem_width": 32})
    if arch.downsample == "pool":
        args["avg_down"] = True
    if not arch.preactivation:
        mixed |= {"groups": arch.groups, "base_width": arch.base_width, "se": arch.se}
        args |= {"cardinality": arch.groups, "base_width": arch.base_width} if arch.block == "bottleneck" else {}
        args |= {"block_args": {"attn_layer": "se"}} if arch.se else {}
    if shape(architecture(base, **same, **mixed)) != wanted:
        raise UserError(f"{arch.name}: timm has no such network ({unlike(arch)}); choose another --to")
    return base, args | channels


def crop_share(size: int, side: int) -> float:
    """timm's crop_pct, for which floor(size / crop_pct) is `side` in spite of rounding."""
    share = size / side
    while math.floor(size / share) < side:
        share = math.nextafter(share, 0)
    return share

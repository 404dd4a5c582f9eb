"""Transformers' ResNetForImageClassification: config.json, preprocessor_config.json and model.safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from resnetkit.data.resizing import Filter
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import IMAGENET_DEPTHS, Architecture
from resnetkit.peers.stated import Stated, distinct, shape, unlike, untold

RESAMPLE: dict[int, Filter] = {1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}  # Pillow's numbers
WARPED_FROM = 384  # from this size on ConvNextImageProcessor stretches instead of cropping
RESIZING = {"ConvNext", "Bit", "CLIP", "ViT"}  # image processors whose steps are known here


def stated(config: Mapping[str, Any], processor: Mapping[str, Any] | None, where: str) -> Stated:
    """What config.json and preprocessor_config.json say. Raises UserError for what is no ResNet, or cannot be."""
    if config.get("model_type") != "resnet":
        raise UserError(
            f"{where}: model_type {config.get('model_type')!r}: only Transformers' 'resnet' can be imported"
        )
    if config.get("hidden_act", "relu") != "relu":
        raise UserError(
            f"{where}: activation {config['hidden_act']!r}: a ResNet here has ReLU, so this cannot be imported"
        )
    if config.get("downsample_in_first_stage"):
        raise UserError(f"{where}: downsample_in_first_stage: no ResNet here strides in its first stage")
    labels = config.get("id2label") or {}
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    placeholders = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    classes, notes = (None, ()) if placeholders else distinct(names)
    arch = read_architecture(config, len(names) or int(config.get("num_labels", 2)), where)
    return Stated(arch, classes, None if processor is None else preprocess_of(processor, where), notes)


def read_architecture(config: Mapping[str, Any], classes: int, where: str) -> Architecture:
    """The architecture; keys that are left out have ResNetConfig's defaults."""
    width, kind = int(config.get("embedding_size", 64)), config.get("layer_type", "bottleneck")
    blocks = tuple(config.get("depths", (3, 4, 6, 3)))
    if kind not in ("basic", "bottleneck"):
        raise UserError(f"{where}: layer_type {kind!r}: choose from basic, bottleneck")
    sizes = [(width << stage) * (4 if kind == "bottleneck" else 1) for stage in range(len(blocks))]
    if list(config.get("hidden_sizes", (256, 512, 1024, 2048))) != sizes:
        raise UserError(
            f"{where}: hidden_sizes {config.get('hidden_sizes')}: a ResNet of this width ({width}) has {sizes}"
        )
    depth = 2 + sum(blocks) * (3 if kind == "bottleneck" else 2)
    known = IMAGENET_DEPTHS.get(depth) == (kind, blocks) and width == 64
    return Architecture(
        name=f"resnet{depth}" if known else f"resnet{depth}-{'-'.join(map(str, blocks))}",
        block=kind,
        blocks=blocks,
        width=width,
        stride="1x1" if config.get("downsample_in_bottleneck") else "3x3",
        classes=classes,
        channels=int(config.get("num_channels", 3)),
    )


def preprocess_of(processor: Mapping[str, Any], where: str) -> Preprocess:
    """An image processor's steps as a Preprocess. Raises UserError for steps that it cannot be told."""
    kind = str(processor.get("image_processor_type", processor.get("feature_extractor_type", "")))
    kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", kind)
    where = f"{where}, preprocessor_config.json"
    if kind not in RESIZING:
        raise UserError(f"{where}: {kind}ImageProcessor: only those of {', '.join(sorted(RESIZING))} can be imported")
    scale = processor.get("rescale_factor", 1 / 255)
    if not processor.get("do_resize", True) or not processor.get("do_rescale", True) or abs(scale * 255 - 1) > 1e-6:
        raise UserError(f"{where}: it does not resize to one size and rescale by 1/255, so it cannot be imported")
    if processor.get("resample", 3) not in RESAMPLE:
        raise UserError(f"{where}: resample {processor['resample']}: only {RESAMPLE} can be imported")
    resize, side, size = (convnext if kind == "ConvNext" else resized_and_cropped)(processor, where)
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    if mean is None or std is None:
        raise UserError(f"{where}: says nothing of image_mean and image_std")
    try:
        return Preprocess(
            size=size,
            resize="stretch" if resize == "stretch" else "shorter",
            resize_to=side,
            filter=RESAMPLE[processor.get("resample", 3)],
            channels=len(mean),
            order="RGB",
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
            exif=False,
            centre="down",
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def convnext(processor: Mapping[str, Any], where: str) -> tuple[str, int, int]:
    """(resize, side, crop) of ConvNextImageProcessor: below 384 a crop, from there on the whole picture, stretched."""
    size = processor.get("size")
    edge = size if isinstance(size, int) else (size or {}).get("shortest_edge")
    if not isinstance(edge, int):
        raise UserError(f"{where}: size {size}: must have a shortest_edge")
    if edge >= WARPED_FROM:
        return "stretch", edge, edge
    return "shorter", int(edge / processor.get("crop_pct", 224 / 256)), edge


def resized_and_cropped(processor: Mapping[str, Any], where: str) -> tuple[str, int, int]:
    """(resize, side, crop) of the processors that resize, then crop if they are told to."""
    size, crop = processor.get("size"), processor.get("crop_size")
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop or {}
    square = isinstance(size, Mapping) and size.get("height") == size.get("width") and size.get("height")
    shorter = size if isinstance(size, int) else (size or {}).get("shortest_edge")
    side = square or shorter
    cropped = crop.get("height") if processor.get("do_center_crop", bool(crop)) else square
    if not isinstance(side, int) or not isinstance(cropped, int) or crop.get("height") != crop.get("width"):
        raise UserError(f"{where}: size {size}, crop_size {crop or None}: they do not give one square input")
    return ("stretch" if square else "shorter"), side, cropped


def config(
    arch: Architecture, classes: tuple[str, ...], preprocess: Preprocess
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config.json of a model, and notes. Raises UserError where Transformers has no such network."""
    notes = untold(preprocess, "Transformers", centre="down")
    written = {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "num_channels": arch.channels,
        "embedding_size": arch.width,
        "hidden_sizes": [
            (arch.width << stage) * (4 if arch.block == "bottleneck" else 1) for stage in range(len(arch.blocks))
        ],
        "depths": list(arch.blocks),
        "layer_type": arch.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": arch.block == "bottleneck" and arch.stride == "1x1",
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "label2id": {name: index for index, name in enumerate(classes)},
        "dtype": "float32",
    }
    if shape(read_architecture(written, arch.classes, arch.name)) != shape(arch):
        raise UserError(f"{arch.name}: Transformers has no such network ({unlike(arch)}); choose another --to")
    return written, notes


def processor(preprocess: Preprocess) -> dict[str, Any]:
    """The preprocessor_config.json: BitImageProcessor can be told any resize and any crop."""
    side, size = preprocess.resize_to, preprocess.size
    stretched = preprocess.resize == "stretch"
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": preprocess.channels == 3,
        "do_resize": True,
        "size": {"height": side, "width": side} if stretched else {"shortest_edge": side},
        "resample": next(number for number, name in RESAMPLE.items() if name == preprocess.filter),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }

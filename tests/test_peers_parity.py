"""The same network, labels and preprocessing here and at timm, Transformers and torchvision: out, and back in.

A model of ours with random weights is exported, opened by the real peer, and asked for ten real pictures through the
peer's own preprocessing; then the peer saves it in its own way, and what we read of that must be the model, every
tensor of it. A proof is a row of results/parity.json, of which docs/weights.md is made; `make parity` writes it anew.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import resnetkit.data.resizing
from resnetkit.data.transforms import Preprocess
from resnetkit.model import Architecture, ResNet, architecture
from resnetkit.peers.exports import export
from resnetkit.peers.names import ours, timm, transformers
from resnetkit.peers.sources import filled, open_source
from resnetkit.peers.stated import Stated
from resnetkit.peers.timm import NAMES
from resnetkit.weights import ModelFile
from torchvision_shim import peer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = Preprocess(64, "shorter", 73, "bicubic", 3, "RGB", MEAN, STD, exif=False)
WHOLE = Preprocess(224, "shorter", 235, "bicubic", 3, "RGB", MEAN, STD, exif=False)
CLASSES = ("tench", "goldfish", "crane #134", "crane #517", "Straße", "日本", "a b", "x/y", "cat", "dog")
CLOSE = 1e-4  # largest difference of two logits, as a share of the largest logit

PAPER = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
TORCHVISION = (*PAPER, "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2")
TIMM = (*TORCHVISION, "resnet26", "resnet26d", "resnet50c", "resnet50d", "resnet101d", "resnet152d", "resnet200d")
TIMM += ("seresnet50", "seresnext101d_32x8d", "resnetv2_18", "resnetv2_50", "resnetv2_50d")
TRANSFORMERS = (*PAPER, "resnet26", "resnet200")
# Of more than 80 million parameters; what is special about them, smaller ones have too. Proved by `make parity` only.
LARGE = ("resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2", "seresnext101d_32x8d")
# Networks that no peer has a name for: built from arguments.
MIXED = {
    "deep stem, SE, 4 groups": Architecture(
        "mine", "bottleneck", (1, 2, 1, 1), stem="deep", groups=4, base_width=32, se=True
    ),
    "basic, grey, average pooling": Architecture("mine", "basic", (1, 1, 2, 1), channels=1, downsample="pool"),
    "pre-activation, other depth": Architecture("mine", "bottleneck", (1, 1, 2, 1), preactivation=True),
}


def random_model(arch: Architecture, preprocess: Preprocess = SMALL, seed: int = 0) -> ModelFile:
    """Random weights and statistics: every tensor differs from what a fresh network has, and no response explodes."""
    dice = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        network = ResNet(replace(arch, classes=len(CLASSES), channels=preprocess.channels))
    network = network.to_empty(device="cpu")
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=dice)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=dice)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        else:
            tensor.normal_(0, 0.1, generator=dice)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6, generator=dice)
    return ModelFile(network.eval(), CLASSES, preprocess, metrics={}, provenance={})


@pytest.fixture(scope="module")
def pictures(shared_data: Path) -> list[bytes]:
    """Ten real JPEGs of several shapes."""
    with tarfile.open(shared_data / "imagenet-sample-250.tar.gz") as archive:
        members = sorted((m for m in archive.getmembers() if m.isfile()), key=lambda member: member.name)[::25]
        return [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]


@torch.inference_mode()
def answers(model: ModelFile, pictures: list[bytes]) -> Tensor:
    """Our logits (n, classes)."""
    batch = np.stack([model.preprocess.fit(model.preprocess.load(data)) for data in pictures])
    return model.network(model.preprocess.normalise(torch.from_numpy(batch)))  # type: ignore[no-any-return]


def opened(data: bytes, channels: int = 3) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L")


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def tensors(model: ModelFile) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in model.network.state_dict().items()}


def assert_same_model(back: ModelFile, model: ModelFile) -> None:
    """Every tensor, every label, every step of the preprocessing."""
    one, two = tensors(back), tensors(model)
    assert one.keys() == two.keys()
    assert [name for name in one if not np.array_equal(one[name], two[name])] == []
    assert (back.classes, back.preprocess) == (model.classes, model.preprocess)
    assert replace(back.network.arch, name="") == replace(model.network.arch, name="")


Record = Callable[..., None]


@torch.inference_mode()
def prove_timm(model: ModelFile, pictures: list[bytes], folder: Path) -> float:
    timm, data = peer("timm"), peer("timm.data")
    export(model, "timm", folder / "out")
    network = timm.create_model(f"local-dir:{folder / 'out'}", pretrained=True).eval()
    transform = data.create_transform(**data.resolve_data_config({}, model=network), is_training=False)
    channels = model.preprocess.channels
    theirs = network(torch.stack([transform(opened(picture, channels)) for picture in pictures]))
    gap = difference(answers(model, pictures), theirs)
    assert tuple(network.pretrained_cfg["label_names"]) == CLASSES
    peer("timm.models").save_for_hf(network, folder / "theirs")
    assert_same_model(filled(open_source(folder / "theirs"), Stated()), model)
    return gap


@torch.inference_mode()
def prove_transformers(model: ModelFile, pictures: list[bytes], folder: Path) -> float:
    library = peer("transformers")
    export(model, "transformers", folder / "out")
    network = library.AutoModelForImageClassification.from_pretrained(folder / "out").eval()
    processor = library.AutoImageProcessor.from_pretrained(folder / "out", backend="pil")
    inputs = processor([opened(picture, model.preprocess.channels) for picture in pictures], return_tensors="pt")
    theirs = network(**inputs).logits
    gap = difference(answers(model, pictures), theirs)
    assert tuple(network.config.id2label[i] for i in range(len(CLASSES))) == CLASSES
    network.save_pretrained(folder / "theirs")
    processor.save_pretrained(folder / "theirs")
    assert_same_model(filled(open_source(folder / "theirs"), Stated()), model)
    return gap


@torch.inference_mode()
def prove_torchvision(model: ModelFile, pictures: list[bytes], folder: Path) -> float:
    models, presets = peer("torchvision.models"), peer("torchvision.transforms._presets")
    modes = peer("torchvision.transforms").InterpolationMode
    export(model, "torchvision", folder / "out")
    (weights,) = (folder / "out").glob("*.pth")
    network = getattr(models, weights.stem)(num_classes=len(CLASSES)).eval()
    network.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    steps = json.loads((folder / "out" / "transform.json").read_text())
    transform = presets.ImageClassification(**{**steps, "interpolation": modes(steps["interpolation"])})
    theirs = network(torch.stack([transform(opened(picture)) for picture in pictures]))
    gap = difference(answers(model, pictures), theirs)
    assert tuple(json.loads((folder / "out" / "classes.json").read_text())) == CLASSES
    torch.save(network.state_dict(), folder / "theirs.pth")
    said = Stated(architecture(weights.stem), CLASSES, model.preprocess)
    assert_same_model(filled(open_source(folder / "theirs.pth"), said), model)
    return gap


PROOFS = {"timm": prove_timm, "transformers": prove_transformers, "torchvision": prove_torchvision}


def suited(preprocess: Preprocess, library: str) -> Preprocess:
    """Transformers halves an odd border downwards."""
    return replace(preprocess, centre="down") if library == "transformers" else preprocess


@pytest.mark.parametrize(
    ("library", "name"),
    [
        *(("torchvision", name) for name in TORCHVISION),
        *(("timm", name) for name in TIMM),
        *(("transformers", name) for name in TRANSFORMERS),
    ],
)
def test_out_and_in_again(
    library: str, name: str, pictures: list[bytes], tmp_path: Path, parity: Record, request: pytest.FixtureRequest
) -> None:
    if name in LARGE and not request.config.getoption("--record-parity"):
        pytest.skip("too large for every day; run: make parity")
    model = random_model(architecture(name), suited(SMALL, library))
    gap = PROOFS[library](model, pictures, tmp_path)
    assert gap < CLOSE
    parity(library=library, architecture=name, size=64, pictures=len(pictures), difference=gap)


@pytest.mark.parametrize("library", PROOFS)
@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_at_full_size(
    library: str, filter: Any, pictures: list[bytes], tmp_path: Path, parity: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Pillow's resizing throughout; the fast bilinear one is within 2 levels of it, see test_preprocess_peers."""
    monkeypatch.setattr(resnetkit.data.resizing, "cykooz_resizer", None)
    model = random_model(architecture("resnet50"), replace(suited(WHOLE, library), filter=filter), seed=1)
    gap = PROOFS[library](model, pictures, tmp_path)
    assert gap < CLOSE
    parity(library=library, architecture=f"resnet50, {filter}", size=224, pictures=len(pictures), difference=gap)


@pytest.mark.parametrize("kind", MIXED)
def test_networks_without_a_name_go_to_timm(kind: str, pictures: list[bytes], tmp_path: Path, parity: Record) -> None:
    arch = MIXED[kind]
    mean, std = (MEAN, STD) if arch.channels == 3 else ((0.45,), (0.22,))
    model = random_model(arch, replace(SMALL, channels=arch.channels, mean=mean, std=std, filter="lanczos"))
    gap = prove_timm(model, pictures, tmp_path)
    assert gap < CLOSE
    parity(library="timm", architecture=kind, size=64, pictures=len(pictures), difference=gap)


def test_the_first_version_goes_to_transformers(pictures: list[bytes], tmp_path: Path, parity: Record) -> None:
    """Stride in the first 1x1, another width, stretched pictures."""
    arch = Architecture("mine", "bottleneck", (1, 1, 2, 1), width=32, stride="1x1")
    model = random_model(arch, Preprocess(64, "stretch", 70, "box", 3, "RGB", MEAN, STD, exif=False, centre="down"))
    gap = prove_transformers(model, pictures, tmp_path)
    assert gap < CLOSE
    parity(library="transformers", architecture="stride in the 1x1", size=64, pictures=len(pictures), difference=gap)


@pytest.mark.parametrize("library", PROOFS)
def test_a_network_for_bgr_is_turned_around(
    library: str, pictures: list[bytes], tmp_path: Path, parity: Record
) -> None:
    """Levels of 0 to 255 minus a mean, blue first, as the authors' Caffe models have them."""
    caffe = replace(suited(SMALL, library), order="BGR", mean=(0.4076, 0.4579, 0.485), std=(1 / 255,) * 3)
    model = random_model(architecture("resnet18"), caffe)
    turned = random_model(architecture("resnet18"), caffe)
    turned.network.conv1.weight.data = turned.network.conv1.weight.data.flip(1)  # type: ignore[operator, union-attr]
    as_rgb = replace(turned, preprocess=replace(caffe, order="RGB", mean=caffe.mean[::-1]))
    assert difference(answers(as_rgb, pictures), answers(model, pictures)) < 1e-5
    export(model, library, tmp_path / "bgr")
    export(as_rgb, library, tmp_path / "rgb")
    for path in (tmp_path / "bgr").iterdir():
        assert path.read_bytes() == (tmp_path / "rgb" / path.name).read_bytes()
    gap = PROOFS[library](as_rgb, pictures, tmp_path)
    assert gap < CLOSE
    parity(library=library, architecture="resnet18, BGR", size=64, pictures=len(pictures), difference=gap)


@pytest.mark.parametrize("name", NAMES)
def test_timms_parameters_are_ours_by_name_and_shape(name: str) -> None:
    with torch.device("meta"):
        mine, theirs = ResNet(architecture(name)), peer("timm").create_model(name)
    arch = mine.arch
    named = {timm(key, arch): tuple(tensor.shape) for key, tensor in mine.state_dict().items()}
    if arch.preactivation:
        named["head.fc.weight"] = (*named["head.fc.weight"], 1, 1)
    assert named == {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    assert peer("timm").is_model(name)


def test_names_are_one_to_one() -> None:
    """Or two tensors would go into one place."""
    for naming, name in ((timm, "resnetv2_50d"), (timm, "resnetv2_18"), (transformers, "resnet50"), (ours, "resnet50")):
        with torch.device("meta"):
            mine = ResNet(architecture(name))
        assert len({naming(key, mine.arch) for key in mine.state_dict()}) == len(mine.state_dict())

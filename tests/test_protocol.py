"""Ten crops and dense scoring against loops over pictures and windows, with Pillow and one view at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from resnetkit import protocol as module
from resnetkit.data.loader import Reader
from resnetkit.data.pictures import Data, Pixels
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import ResNet, architecture
from resnetkit.protocol import (
    Protocol,
    dense_logits,
    dense_probabilities,
    five_crops,
    map_shape,
    probabilities,
    whole,
)

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGENET = Preprocess(64, "shorter", 73, "bicubic", 3, "RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), True)
CIFAR = Preprocess(32, "shorter", 37, "bicubic", 3, "BGR", (0.5, 0.4, 0.3), (0.25, 0.3, 0.35), True, "down")
PIXEL_MEAN = replace(CIFAR, mean=tuple(np.random.default_rng(5).random(3 * 32 * 32).tolist()))
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SHAPES = [(90, 120), (120, 90), (64, 64), (90, 120), (31, 47)]


@dataclass(frozen=True)
class Listed:
    """Pictures of several shapes in memory; None is one that cannot be read."""

    pixels: list[Pixels | None]

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, i: int) -> str:
        return f"{i:03}.png"

    def size(self, i: int) -> int:
        return 1 + i

    def read(self, i: int) -> bytes | Pixels:
        found = self.pixels[i]
        return b"no picture" if found is None else found


def coarse(height: int, width: int, seed: int) -> Pixels:
    """Large spots of colour, so that each crop shows something else."""
    spots = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC))


def pool(shapes: list[tuple[int, int]]) -> Data:
    pictures = Listed([coarse(height, width, seed) for seed, (height, width) in enumerate(shapes)])
    n = len(shapes)
    return Data("x:", pictures, np.arange(n) % 10, tuple("abcdefghij"), {"all": np.arange(n)})


def make_network(name: str, preprocess: Preprocess) -> ResNet:
    """Untrained, with batch statistics of pictures and moderate logits, so that no answer is certain."""
    torch.manual_seed(1)
    network = ResNet(architecture(name, classes=10)).train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the plain average
    crops = np.stack([preprocess.fit(coarse(90, 120, seed)) for seed in range(100, 116)])
    with torch.inference_mode():
        logits = network(preprocess.normalise(torch.from_numpy(crops)))
    with torch.no_grad():
        network.fc.weight *= 1.5 / logits.std()
    return network.eval()


NETWORKS = {IMAGENET: "resnet18", CIFAR: "resnet8-cifar"}


# The references


def resized(picture: Pixels, preprocess: Preprocess, side: int) -> Pixels:
    height, width = picture.shape[:2]
    to = (side * width // min(width, height), side * height // min(width, height))
    to = (side, side) if preprocess.resize == "stretch" else to
    return np.asarray(Image.fromarray(picture).resize(to, FILTERS[preprocess.filter]))


def normalised(view: Pixels, preprocess: Preprocess) -> torch.Tensor:
    planes = view.transpose(2, 0, 1) / 255.0
    planes = planes[::-1] if preprocess.order == "BGR" else planes
    mean = np.array(preprocess.mean).reshape((3, 1, 1) if len(preprocess.mean) == 3 else planes.shape)
    return torch.from_numpy(((planes - mean) / np.array(preprocess.std).reshape(3, 1, 1)).astype(np.float32))[None]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max())
    result: NDArray[np.float64] = powers / powers.sum()
    return result


def answer(network: ResNet, view: Pixels, preprocess: Preprocess) -> NDArray[np.float64]:
    with torch.inference_mode():
        return softmax(network(normalised(view, preprocess))[0].double().numpy())


def slow_ten_crops(network: ResNet, picture: Pixels, preprocess: Preprocess) -> NDArray[np.float64]:
    large = resized(picture, preprocess, preprocess.resize_to)
    height, width, size = *large.shape[:2], preprocess.size
    down, right = height - size, width - size
    halved: Callable[[float], int] = round if preprocess.centre == "even" else int
    centre = (halved(down / 2), halved(right / 2))
    found = []
    for top, left in [(0, 0), (0, right), (down, 0), (down, right), centre]:
        crop = large[top : top + size, left : left + size]
        found += [answer(network, crop, preprocess), answer(network, crop[:, ::-1], preprocess)]
    mean: NDArray[np.float64] = np.mean(found, axis=0)
    assert len(found) == 10
    return mean


def slow_dense(
    network: ResNet, picture: Pixels, preprocess: Preprocess, sides: tuple[int, ...], window: int
) -> NDArray[np.float64]:
    weight, bias = (part.detach().double().numpy() for part in (network.fc.weight, network.fc.bias))
    found = []
    for side in sides:
        large = resized(picture, preprocess, side)
        for view in (large, large[:, ::-1]):
            with torch.inference_mode():
                maps = network.features(normalised(view, preprocess))[-1][0].double().numpy()
            logits = []
            for top in range(maps.shape[1] - window + 1):
                for left in range(maps.shape[2] - window + 1):
                    logits.append(weight @ maps[:, top : top + window, left : left + window].mean((1, 2)) + bias)
            found.append(softmax(np.mean(logits, axis=0)))
    mean: NDArray[np.float64] = np.mean(found, axis=0)
    return mean


def table(
    network: ResNet, data: Data, preprocess: Preprocess, protocol: Protocol, *, threads: int = 2
) -> NDArray[np.float64]:
    """The probabilities of all pictures; the test fails unless each comes once and in order."""
    own = protocol.preprocess(preprocess)
    parts = list(probabilities(network, Reader(data, own, threads=threads), np.arange(len(data)), protocol))
    assert [i for part in parts for i in part.indices.tolist()] == list(range(len(data)))
    return np.concatenate([part.rows for part in parts])


def pixels_of(data: Data) -> list[Pixels]:
    return [data.pictures.read(i) for i in range(len(data))]  # type: ignore[misc]


# Ten crops


@pytest.mark.parametrize(
    ("preprocess", "atol"),
    [
        (IMAGENET, 1e-5),
        (replace(IMAGENET, filter="bilinear"), 2e-2),  # the faster resizer is within 2 levels of Pillow's
        (replace(IMAGENET, resize="stretch"), 1e-5),
        (CIFAR, 1e-5),
        (PIXEL_MEAN, 1e-5),
    ],
    ids=["imagenet", "bilinear", "stretched", "cifar", "pixel-mean"],
)
def test_ten_crops_are_those_of_a_plain_loop(preprocess: Preprocess, atol: float) -> None:
    data = pool(SHAPES)
    network = make_network("resnet18" if preprocess.size == 64 else "resnet8-cifar", preprocess)
    found = table(network, data, preprocess, Protocol("10-crop"))
    expected = np.array([slow_ten_crops(network, picture, preprocess) for picture in pixels_of(data)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    single = table(network, data, preprocess, Protocol())
    assert np.abs(found - single).max() > 10 * atol, "or one crop would have done"
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)


def test_ten_crops_of_a_square_picture_without_a_border_are_two() -> None:
    preprocess = replace(CIFAR, resize_to=32)
    data, network = pool([(32, 32), (60, 60)]), make_network("resnet8-cifar", CIFAR)
    crops = [preprocess.fit(picture) for picture in pixels_of(data)]
    expected = [(answer(network, x, preprocess) + answer(network, x[:, ::-1], preprocess)) / 2 for x in crops]
    np.testing.assert_allclose(table(network, data, preprocess, Protocol("10-crop")), expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(2, 400), (400, 2)])
def test_a_thread_of_a_picture_does_not_fill_the_memory(height: int, width: int) -> None:
    """Its shorter side at 73 would make it 14,600 pixels long; the crops are those of the whole all the same."""
    preprocess = replace(IMAGENET, filter="bilinear")
    picture = coarse(height, width, 3)
    crops = five_crops(picture, preprocess)
    large = resized(picture, preprocess, 73)
    np.testing.assert_allclose(crops[0].astype(int), large[:64, :64], atol=2)
    np.testing.assert_allclose(crops[3].astype(int), large[-64:, -64:], atol=2)
    middle = whole(picture, preprocess, 73)
    assert sorted(middle.shape[:2]) == [73, 16 * 73]
    part = picture[:, 184:216] if width == 400 else picture[184:216]
    np.testing.assert_allclose(middle.astype(int), resized(part, preprocess, 73), atol=2)


# Dense


@pytest.mark.parametrize(
    ("preprocess", "scales", "window"),
    [
        (IMAGENET, (), 2),
        (IMAGENET, (64, 101, 130), 2),
        (replace(IMAGENET, resize="stretch"), (64, 100), 2),
        (CIFAR, (), 8),
        (CIFAR, (32, 45), 8),
    ],
    ids=["imagenet", "scales", "stretched", "cifar", "cifar-scales"],
)
def test_dense_is_a_plain_loop_over_windows(preprocess: Preprocess, scales: tuple[int, ...], window: int) -> None:
    data = pool(SHAPES)
    network = make_network("resnet18" if preprocess.size == 64 else "resnet8-cifar", preprocess)
    found = table(network, data, preprocess, Protocol("dense", scales))
    sides = scales or (preprocess.resize_to,)
    expected = np.array([slow_dense(network, picture, preprocess, sides, window) for picture in pixels_of(data)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(found - table(network, data, preprocess, Protocol())).max() > 1e-3, "or one crop would have done"


@pytest.mark.parametrize("preprocess", NETWORKS, ids=NETWORKS.values())
def test_dense_on_a_square_of_the_input_size_is_the_single_crop(preprocess: Preprocess) -> None:
    network, size = make_network(NETWORKS[preprocess], preprocess), preprocess.size
    view = coarse(size, size, 7)
    x = normalised(view, preprocess)
    with torch.inference_mode():
        dense = dense_logits(network, x, map_shape(network, preprocess))
        np.testing.assert_allclose(dense, network(x), rtol=1e-4, atol=1e-5)
    data = Data("x:", Listed([view]), np.zeros(1, np.int64), tuple("abcdefghij"), {"all": np.arange(1)})
    found = table(network, data, preprocess, Protocol("dense", (size,)))[0]
    mirrored = answer(network, view[:, ::-1], preprocess)
    np.testing.assert_allclose(found, (answer(network, view, preprocess) + mirrored) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [
        ("resnet18", 224, 7),
        ("resnet50-caffe", 224, 7),
        ("resnet18", 288, 9),
        ("resnet18", 100, 4),
        ("resnet8-cifar", 32, 8),
    ],
)
def test_windows_are_as_large_as_the_map_of_the_input(name: str, size: int, side: int) -> None:
    network = ResNet(architecture(name, classes=10))
    assert map_shape(network, replace(IMAGENET, size=size, resize_to=size)) == (side, side)


# Batches and threads


@pytest.mark.parametrize("protocol", [Protocol("10-crop"), Protocol("dense", (32, 50))], ids=lambda value: value.kind)
def test_batches_and_threads_do_not_matter(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    data, network = pool(SHAPES * 3), make_network("resnet8-cifar", CIFAR)
    expected = table(network, data, CIFAR, protocol, threads=1)
    for batch, threads in ((1, 4), (3, 1), (40, 3)):
        monkeypatch.setattr(module, "BATCH", batch)
        monkeypatch.setattr(module, "READ", 4 * batch)
        np.testing.assert_allclose(table(network, data, CIFAR, protocol, threads=threads), expected, atol=1e-5)


def test_the_network_sees_no_more_pixels_at_a_time_than_in_a_batch_of_crops() -> None:
    data, network = pool([(100, 200)] * 40 + [(200, 200)] * 20), make_network("resnet8-cifar", CIFAR)
    seen: list[torch.Size] = []
    network.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    table(network, data, CIFAR, Protocol("dense", (32, 96)))
    pixels = [shape[0] * shape[2] * shape[3] for shape in seen]
    assert max(pixels) <= module.BATCH * 32**2
    assert max(shape[0] for shape in seen) > 10, "equal shapes go together"


@pytest.mark.parametrize("kind", ["10-crop", "dense"])
def test_unreadable_pictures_are_left_out_by_name(kind: Any) -> None:
    data = pool(SHAPES)
    assert isinstance(data.pictures, Listed)
    data.pictures.pixels[4] = None
    network = make_network("resnet8-cifar", CIFAR)
    reader, protocol = Reader(data, CIFAR, threads=2), Protocol(kind)
    parts = list(probabilities(network, reader, np.array([3, 4, 1]), protocol))
    assert [part.indices.tolist() for part in parts] == [[3, 1]]
    assert [list(part.bad) for part in parts] == [[4]]
    (nothing,) = probabilities(network, reader, np.array([4]), protocol)
    assert (len(nothing.indices), list(nothing.bad)) == (0, [4])
    assert list(probabilities(network, reader, np.array([], np.int64), protocol)) == []


def test_no_thread_is_left_when_the_caller_stops_early() -> None:
    data, network = pool([(40, 40)] * 300), make_network("resnet8-cifar", CIFAR)
    parts: Any = dense_probabilities(network, Reader(data, CIFAR, threads=3), np.arange(300), (32,))
    next(parts)
    parts.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")] == []


# The Protocol as a value


@pytest.mark.parametrize(
    ("protocol", "size", "resize_to"),
    [
        (Protocol(), 224, 256),
        (Protocol(size=288), 288, 329),  # 288 * 256 / 224 = 329.1
        (Protocol(size=288, crop=1.0), 288, 288),
        (Protocol(crop=0.95), 224, 235),  # as timm: 224 / 0.95 = 235.8
        (Protocol("10-crop", size=112), 112, 128),
        (Protocol("dense", (224, 640)), 224, 256),
    ],
    ids=str,
)
def test_another_input_size(protocol: Protocol, size: int, resize_to: int) -> None:
    own = replace(IMAGENET, size=224, resize_to=256)
    assert protocol.preprocess(own) == replace(own, size=size, resize_to=resize_to)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "10crop"}, r"protocol '10crop': choose from 1-crop, 10-crop, dense; did you mean '10-crop'\?"),
        ({"kind": "10-crop", "scales": (224,)}, "scales: 10-crop has none; leave them out"),
        ({"scales": (224,)}, "scales: 1-crop has none"),
        ({"kind": "dense", "scales": (224.5,)}, "scales: 224.5 must be a whole number of pixels, 1 or more"),
        ({"kind": "dense", "scales": (0,)}, "scales: 0 must be a whole number"),
        ({"kind": "dense", "scales": (256, 256)}, "scales: 256 stands there twice"),
        ({"kind": "dense", "scales": (256,), "crop": 0.9}, "crop: the scales say how large pictures become"),
        ({"size": 0}, "size: 0 must be a whole number"),
        ({"size": True}, "size: True must be a whole number"),
        ({"crop": 1.5}, r"crop 1.5: must be in \(0, 1\]"),
        ({"crop": float("nan")}, "crop nan: must be in"),
    ],
)
def test_values_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Protocol(**values)


@pytest.mark.parametrize(
    ("protocol", "own", "message"),
    [
        (Protocol("dense", (63, 96)), IMAGENET, "scales: 63 is below the input size of the model, 64"),
        (Protocol("dense", (96,), size=100), IMAGENET, "scales: 96 is below the input size of the model, 100"),
        (Protocol(size=48), PIXEL_MEAN, "size 48: the model subtracts a mean picture of 32 pixels; leave size out"),
        (Protocol("dense"), PIXEL_MEAN, "protocol dense: the model subtracts a mean picture"),
    ],
    ids=["small", "small for another size", "mean picture", "mean picture dense"],
)
def test_what_a_model_cannot_follow(protocol: Protocol, own: Preprocess, message: str) -> None:
    with pytest.raises(UserError, match=message):
        protocol.preprocess(own)


def test_a_mean_picture_of_the_size_asked_for_is_no_hindrance() -> None:
    assert Protocol("10-crop", size=32).preprocess(PIXEL_MEAN) == PIXEL_MEAN


def test_the_words() -> None:
    values = "RGB, mean 0.485 0.456 0.406, std 0.229 0.224 0.225, EXIF on"
    assert Protocol().describe(IMAGENET) == f"single centre crop; {IMAGENET}"
    assert Protocol("10-crop").describe(IMAGENET) == (
        "10 crops (four corners, centre, mirror images; softmax averaged); shorter side 73 bicubic, crops of 64, "
        + values
    )
    assert Protocol("dense", (64, 96)).describe(IMAGENET) == (
        "dense (logits averaged over windows, softmax over mirror images and scales); shorter side 64, 96 bicubic, "
        f"windows of 64, {values}"
    )
    stretched = replace(IMAGENET, resize="stretch")
    assert "; stretched to 73 bicubic, windows of 64" in Protocol("dense").describe(stretched)

"""RandAugment and TrivialAugment: each operation against timm's and torchvision's, and the choice of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data import policies
from resnetkit.data.loader import draws
from resnetkit.data.policies import RANDAUGMENT, SLOTS, STRENGTHS, TRIVIALAUGMENT, transformed
from resnetkit.data.transforms import POLICY, Preprocess, augmented
from resnetkit.recipe import Augment
from torchvision_shim import peer

Pixels = NDArray[np.uint8]
MEAN = np.array([124, 116, 104], np.uint8)
RAND, TRIVIAL = Augment(policy="randaugment"), Augment(policy="trivialaugment")
OF_TIMM = dict(
    zip(
        RANDAUGMENT,
        [
            "AutoContrast",
            "Equalize",
            "Invert",
            "Rotate",
            "PosterizeIncreasing",
            "SolarizeIncreasing",
            "SolarizeAdd",
            "ColorIncreasing",
            "ContrastIncreasing",
            "BrightnessIncreasing",
            "SharpnessIncreasing",
            "ShearX",
            "ShearY",
            "TranslateXRel",
            "TranslateYRel",
        ],
        strict=True,
    )
)
OF_TORCHVISION = dict(
    zip(
        TRIVIALAUGMENT,
        [
            "Identity",
            "ShearX",
            "ShearY",
            "TranslateX",
            "TranslateY",
            "Rotate",
            "Brightness",
            "Color",
            "Contrast",
            "Sharpness",
            "Posterize",
            "Solarize",
            "AutoContrast",
            "Equalize",
        ],
        strict=True,
    )
)


def photo(height: int = 48, width: int = 64, channels: int = 3) -> Pixels:
    """Smooth, of all levels: something to shear and to equalise."""
    down, across = np.mgrid[0:height, 0:width]
    waves = [np.sin(across / (3 + c) + c) + np.cos(down / (5 - c)) for c in range(channels)]
    return np.rint(127.5 + 60 * np.stack(waves, axis=2)).astype(np.uint8)


def numbers(name: str, names: tuple[str, ...], strength: float = 0.5, sign: float = 0.0) -> list[float]:
    """The numbers of a first operation that is `name`, done; the others are not done."""
    return [(names.index(name) + 0.5) / len(names), 0.0, strength, sign, *[0.9] * (SLOTS - 4)]


def ours(name: str, augment: Augment, picture: Pixels, strength: float, sign: float, filter: str) -> Pixels:
    names = TRIVIALAUGMENT if augment.policy == "trivialaugment" else RANDAUGMENT
    return transformed(picture, augment, MEAN[: picture.shape[2]], filter, numbers(name, names, strength, sign))


def same(a: Pixels, b: Pixels, levels: int = 0) -> bool:
    return int(np.abs(a.astype(int) - b.astype(int)).max()) <= levels


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", RANDAUGMENT)
def test_an_operation_of_randaugment_is_timms(name: str, filter: str) -> None:
    """Equal pixels, at every magnitude, the sign either way."""
    timm = peer("timm.data.auto_augment")
    picture = photo()
    about = {"img_mean": tuple(MEAN.tolist()), "interpolation": Image.Resampling[filter.upper()]}
    for magnitude in (0.0, 3.3, 6.0, 7.0, 9.99, 10.0):
        if (name, magnitude) == ("posterize", 10.0):  # of no bits: Pillow 13 refuses that, and timm with it
            assert ours(name, replace(RAND, magnitude=10.0, magnitude_std=0.0), picture, 0.5, 0.0, filter).max() == 0
            continue
        operation = timm.AugmentOp(OF_TIMM[name], prob=1.0, magnitude=magnitude, hparams=about)
        augment = replace(RAND, magnitude=magnitude, magnitude_std=0.0)
        mine = [ours(name, augment, picture, 0.5, sign, filter) for sign in (0.2, 0.7)]
        theirs = [np.asarray(operation(Image.fromarray(picture))) for _ in range(30)]  # both signs, nearly always
        for their in theirs:
            assert any(same(their, own) for own in mine), magnitude
        for own in mine:
            assert any(same(their, own) for their in theirs), magnitude


@pytest.mark.parametrize("name", TRIVIALAUGMENT)
def test_an_operation_of_trivialaugment_is_torchvisions(name: str) -> None:
    """At every strength, the sign either way; a level apart where theirs is rounded in single precision."""
    torchvision = peer("torchvision.transforms.v2.functional")
    autoaugment = peer("torchvision.transforms.autoaugment")
    space = autoaugment.TrivialAugmentWide()._augmentation_space(STRENGTHS)
    magnitudes, signed = space[OF_TORCHVISION[name]]
    picture, mode = photo(), torchvision.InterpolationMode.BILINEAR
    for strength in range(STRENGTHS):
        for sign in (1, -1) if signed else (1,):
            amount = sign * round(float(magnitudes[strength] if magnitudes.ndim else 0.0), 4)  # 15.999999 is 16
            image = autoaugment._apply_op(Image.fromarray(picture), OF_TORCHVISION[name], amount, mode, None)
            turned = -sign if name.startswith("translate") else sign  # theirs says where pixels go, ours where from
            mine = ours(name, TRIVIAL, picture, (strength + 0.5) / STRENGTHS, 0.2 if turned > 0 else 0.7, "bilinear")
            assert same(mine, np.asarray(image), 1), (strength, sign)


def test_the_names_are_those_of_the_peers() -> None:
    timm, torchvision = peer("timm.data.auto_augment"), peer("torchvision.transforms.autoaugment")
    assert list(OF_TIMM.values()) == timm._RAND_INCREASING_TRANSFORMS
    assert list(torchvision.TrivialAugmentWide()._augmentation_space(31)) == list(OF_TORCHVISION.values())


@pytest.mark.parametrize(
    ("augment", "names"), [(RAND, RANDAUGMENT), (TRIVIAL, TRIVIALAUGMENT)], ids=["rand", "trivial"]
)
def test_operations_are_chosen_as_often_each_way(
    augment: Augment, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RandAugment does half of what it chooses, magnitudes are normal and cut; all against their own counts."""
    done: list[tuple[str, float]] = []
    monkeypatch.setattr(policies, "applied", lambda image, name, amount, *_: done.append((name, amount)) or image)
    n = 6000
    for row in draws(0, 0, 0, n):
        transformed(photo(8, 8), augment, MEAN, "bilinear", row[POLICY:].tolist())
    expected = n * augment.ops / 2 if augment is RAND else n
    assert abs(len(done) - expected) < 5 * (expected / 2) ** 0.5
    counts = Counter(name for name, _ in done)
    each = len(done) / len(names)
    assert float(sum((counts[name] - each) ** 2 / each for name in names)) < 40  # chi-squared, 14 degrees: 1 in 4,000
    turned = [amount for name, amount in done if name == "rotate"]
    assert abs(np.mean(np.sign(turned))) < 5 / len(turned) ** 0.5
    if augment is RAND:
        assert np.mean(np.abs(turned)) == pytest.approx(21, abs=0.4)  # 30 degrees x 7 / 10
        assert np.std(np.abs(turned)) == pytest.approx(1.5, abs=0.3)
    else:
        assert np.mean(np.abs(turned)) == pytest.approx(67.5, abs=8)


def test_magnitudes_are_cut() -> None:
    assert policies.drawn_magnitude(7, 0.5, 0.5) == 7
    assert policies.drawn_magnitude(9, 5, 1 - 2**-53) == 10
    assert policies.drawn_magnitude(1, 5, 0.0) == 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [replace(RAND, ops=4, magnitude=10.0), TRIVIAL], ids=["rand", "trivial"])
def test_pictures_keep_their_shape_and_the_input_is_left_alone(augment: Augment, channels: int) -> None:
    picture = photo(channels=channels)
    picture.setflags(write=False)
    for row in draws(5, 0, 0, 100):
        result = transformed(picture, augment, MEAN[:channels], "bilinear", row[POLICY:].tolist())
        assert (result.shape, result.dtype) == (picture.shape, np.uint8)


# In `augmented`

SMALL = Preprocess(32, "shorter", 32, "bilinear", 3, "RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), True)


def test_the_policy_comes_after_the_mirror_and_before_the_colours() -> None:
    picture = photo(32, 32)
    whole = Augment(crop="pad", colour=0.1, erase=1.0, policy="randaugment", ops=3)
    for row in draws(2, 0, 0, 20):
        step = augmented(picture, SMALL, Augment(crop="pad"), row)
        step = augmented(step, SMALL, replace(RAND, ops=3, crop="none", flip=False), row)
        step = augmented(step, SMALL, Augment(crop="none", flip=False, colour=0.1, erase=1.0), row)
        np.testing.assert_array_equal(augmented(picture, SMALL, whole, row), step)


def test_what_comes_in_is_the_mean_colour_or_black() -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    mean = transformed(white, RAND, MEAN, "bilinear", numbers("translate-x", RANDAUGMENT))
    black = transformed(white, TRIVIAL, MEAN, "bilinear", numbers("translate-x", TRIVIALAUGMENT, strength=0.999))
    assert {tuple(pixel) for pixel in mean.reshape(-1, 3).tolist()} == {(255, 255, 255), tuple(MEAN.tolist())}
    assert {tuple(pixel) for pixel in black.reshape(-1, 3).tolist()} == {(0, 0, 0)}  # moved by all of its 32 pixels


def test_recipes_without_a_policy_show_the_pictures_that_they_showed() -> None:
    """Golden: digests taken before there were policies; none of these resizes, so every library gives these pixels."""
    table = np.ascontiguousarray(draws(7, 3, 5, 1000)[:, :POLICY], "<f8")
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    assert digest == "8af9ccb3ffcbab0e2107c7c9fedee0e8b693a0d2aac4cf401602b24fe29848df"
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    shown = hashlib.sha256()
    for row in draws(1, 2, 0, 64):
        shown.update(np.ascontiguousarray(augmented(picture, SMALL, Augment(crop="pad", erase=0.5), row)).tobytes())
    assert shown.hexdigest() == "4d461789e296e54e18464c7f10b04af69cd1694dbd286a7297b1c71e27c84149"

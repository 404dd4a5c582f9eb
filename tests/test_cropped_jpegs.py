"""Training and scoring with crops decoded by resnetkit-native: the same boxes, the same pixels within two levels.

Each test runs with the real one, and is skipped where it is not installed, and with a stand-in made of Pillow, so that
who is asked for what is tested everywhere.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import resnetkit.data.decode as module
from resnetkit.data.decode import MAX_PIXELS, Jpeg, croppable, native_version
from resnetkit.data.folder import load_folder
from resnetkit.data.loader import Reader, evaluation_batches, training_batches
from resnetkit.data.pictures import Data
from resnetkit.data.transforms import DRAWS, FLIP, Preprocess, augmented
from resnetkit.errors import BadPicture, UserError
from resnetkit.prediction import fill
from resnetkit.recipe import Augment
from resnetkit.runs import Environment, decoder_changed

SAMPLE = Path(__file__).parents[1] / "../shared/data/imagenet-sample-250.tar.gz"
LEVELS, MEAN = 2, 0.4  # between a crop decoded alone and one of the whole picture: at most, and on average
PREPROCESS = Preprocess(48, "shorter", 56, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
AUGMENTS = [
    Augment(crop="resized"),
    Augment(crop="resized", jitter=0.3, erase=1.0, colour=0.1),
    Augment(crop="scale", sides=(50, 70)),
    Augment(crop="pad", pad=3),
    Augment(crop="none", flip=False),
]


class Standin:
    """What resnetkit_native does, by Pillow, and how often it was asked."""

    __version__ = "0.0.standin"

    def __init__(self) -> None:
        self.crops = 0

    def size(self, data: bytes) -> tuple[int, int]:
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.mode not in ("L", "RGB"):
                    raise ValueError(image.mode)
                return image.size
        except OSError as error:
            raise ValueError(str(error)) from None

    def decode_crop(
        self, data: bytes, box: Any, size: int, flip: bool, channels: int, *, out: Any, around: bool
    ) -> None:
        self.crops += 1
        left, top, width, height = box
        corners = left, top, left + width, top + height
        try:
            with Image.open(io.BytesIO(data)) as image:
                plain = image.convert("RGB").convert("RGB" if channels == 3 else "L")
        except OSError as error:
            raise ValueError(str(error)) from None
        small = plain.resize((size, size), 2, corners) if around else plain.crop(corners).resize((size, size), 2)
        out[:] = np.asarray(small).reshape(out.shape)[:, :: -1 if flip else 1]


@pytest.fixture(params=["resnetkit-native", "stand-in"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Counts the crops it was asked for in `crops`."""
    if request.param == "stand-in":
        made: Any = Standin()
    else:
        real = pytest.importorskip("resnetkit_native")
        made = SimpleNamespace(crops=0, size=real.size, __version__=real.__version__)

        def decode_crop(*given: object, **named: object) -> None:
            made.crops += 1
            real.decode_crop(*given, **named)

        made.decode_crop = decode_crop
    monkeypatch.setattr(module, "resnetkit_native", made)
    return made


def jpeg(width: int = 130, height: int = 90, mode: str = "RGB", seed: int = 0, **options: object) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((width, height), 3).convert(mode).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif)


def same(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    off = np.abs(a.astype(int) - b.astype(int))
    return a.shape == b.shape and off.max() <= LEVELS and off.mean() <= MEAN


ORDINARY = {
    "4:4:4": jpeg(subsampling=0),
    "4:2:2": jpeg(subsampling=1),
    "4:2:0": jpeg(subsampling=2),
    "progressive": jpeg(progressive=True),
    "grey": jpeg(mode="L"),
    "1x1": jpeg(1, 1),
    "tiny": jpeg(7, 3),
    "EXIF, upright": rotated(1),
}


@pytest.mark.parametrize("augment", AUGMENTS, ids=repr)
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("kind", ORDINARY)
def test_crops_are_those_of_the_whole_picture(native: Any, kind: str, channels: int, augment: Augment) -> None:
    preprocess = replace(PREPROCESS, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    if augment.jitter:  # stretches a difference of a level: only the order of things is looked at
        augment = replace(augment, jitter=0.0)
    table = np.random.Generator(np.random.Philox(3)).random((12, DRAWS))
    for draws in table:
        opened = preprocess.open(ORDINARY[kind])
        assert isinstance(opened, Jpeg)
        expected = augmented(preprocess.load(ORDINARY[kind]), preprocess, augment, draws)
        assert same(augmented(opened, preprocess, augment, draws), expected)
    assert native.crops == len(table)
    assert {draws[FLIP] < 0.5 for draws in table} == {True, False}


@pytest.mark.parametrize("preprocess", [PREPROCESS, replace(PREPROCESS, resize="stretch"),
                                        replace(PREPROCESS, centre="down", size=47)], ids=str)  # fmt: skip
@pytest.mark.parametrize("size", [(130, 90), (57, 300), (48, 48), (20, 25), (1, 400)])
def test_the_centre_crop_is_that_of_the_whole_picture(
    native: Any, preprocess: Preprocess, size: tuple[int, int]
) -> None:
    data = jpeg(*size)
    assert same(preprocess.fit(preprocess.open(data)), preprocess.fit(preprocess.load(data)))
    assert native.crops == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_are_decoded_whole(native: Any, orientation: int) -> None:
    data, draws = rotated(orientation), np.full(DRAWS, 0.4)
    for exif in (True, False):
        preprocess = replace(PREPROCESS, exif=exif)
        opened = preprocess.open(data)
        assert isinstance(opened, Jpeg) == (orientation == 1 or not exif)
        expected = augmented(preprocess.load(data), preprocess, AUGMENTS[0], draws)
        assert same(augmented(opened, preprocess, AUGMENTS[0], draws), expected)
    assert native.crops == 1 + (orientation == 1)


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (60, 60)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(("data", "filter"), [(jpeg(mode="CMYK"), "bilinear"), (png(), "bilinear"),
                                              (jpeg(), "bicubic"), (jpeg(), "lanczos")])  # fmt: skip
def test_others_are_decoded_whole(native: Any, data: bytes, filter: Any) -> None:
    preprocess = replace(PREPROCESS, filter=filter)
    np.testing.assert_array_equal(preprocess.open(data), preprocess.load(data))
    assert native.crops == 0


def test_arrays_stay_arrays(native: Any) -> None:
    picture = np.zeros((5, 6, 3), np.uint8)
    assert PREPROCESS.open(picture) is picture
    assert native.crops == 0


def test_a_size_that_decode_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    monkeypatch.setattr(module, "resnetkit_native", SimpleNamespace(size=lambda _: (side, side)))
    with pytest.raises(BadPicture, match="decompression bomb"):
        PREPROCESS.open(jpeg())


@pytest.mark.parametrize("augment", AUGMENTS, ids=repr)
def test_what_native_refuses_goes_to_the_other_decoders(monkeypatch: pytest.MonkeyPatch, augment: Augment) -> None:
    def refusing(*_: object, **named: Any) -> None:
        named["out"][:20] = 99  # half filled
        raise ValueError

    standin = SimpleNamespace(size=Standin().size, decode_crop=refusing)
    monkeypatch.setattr(module, "resnetkit_native", standin)
    draws = np.full(DRAWS, 0.4)
    made = augmented(PREPROCESS.open(jpeg()), PREPROCESS, augment, draws)
    np.testing.assert_array_equal(made, augmented(PREPROCESS.load(jpeg()), PREPROCESS, augment, draws))


def test_without_it_pictures_are_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resnetkit_native", None)
    assert native_version() is None
    assert croppable(jpeg(), channels=3, exif=False) is None
    np.testing.assert_array_equal(PREPROCESS.open(jpeg()), PREPROCESS.load(jpeg()))


# --- the loader, prediction, the run folder


@pytest.fixture
def folder(tmp_path: Path) -> Data:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(8):
            (tmp_path / name / f"{number}.jpg").write_bytes(jpeg(100 + number, 80, seed=number))
    return load_folder(tmp_path, "photos")


def test_batches_are_the_same_with_and_without(native: Any, folder: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    indices, some = np.arange(16), {"seed": 3, "epoch": 1, "batch": 4}
    fast = list(training_batches(Reader(folder, PREPROCESS, threads=2), indices, AUGMENTS[0], **some))
    scored = list(evaluation_batches(Reader(folder, PREPROCESS, threads=2), indices, batch=5))
    assert native.crops == 32
    kept = list(training_batches(Reader(folder, PREPROCESS, threads=2, keep=True), indices, AUGMENTS[0], **some))
    assert native.crops == 32  # pictures that are kept are kept whole
    monkeypatch.setattr(module, "resnetkit_native", None)
    plain = list(training_batches(Reader(folder, PREPROCESS, threads=2), indices, AUGMENTS[0], **some))
    for a, b, c in zip(fast, plain, kept, strict=True):
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_array_equal(b.pictures, c.pictures)
        assert same(a.pictures, b.pictures)
    for a, b in zip(scored, evaluation_batches(Reader(folder, PREPROCESS, threads=2), indices, batch=5), strict=True):
        assert same(a.pictures, b.pictures)


def test_scores_and_answers_see_the_same_pixels(native: Any, folder: Data) -> None:
    (batch,) = evaluation_batches(Reader(folder, PREPROCESS, threads=1), np.arange(16), batch=16)
    out = np.zeros((48, 48, 3), np.uint8)
    for index in range(16):
        assert fill(out, str(folder.pictures.root / folder.pictures.name(index)), PREPROCESS) is None  # type: ignore[attr-defined]
        np.testing.assert_array_equal(out, batch.pictures[index])
    assert native.crops == 32


def test_a_cut_off_file_is_named(native: Any, folder: Data) -> None:
    path = folder.pictures.root / folder.pictures.name(5)  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"5\.jpg \(cut off"):
        list(
            training_batches(
                Reader(folder, PREPROCESS, threads=1), np.arange(16), AUGMENTS[0], seed=0, epoch=0, batch=16
            )
        )
    found = list(evaluation_batches(Reader(folder, PREPROCESS, threads=1), np.arange(16), batch=16))
    assert list(found[0].bad) == [5]
    assert native.crops > 0


def test_a_run_says_which_decoded_it(native: Any) -> None:
    def begun(**versions: str) -> Environment:
        return Environment("", "", None, "", None, "", 1, {"torch": "2", **versions}, "", (), ())

    assert decoder_changed(begun(**{"resnetkit-native": native.__version__})) == ()
    (sentence,) = decoder_changed(begun())
    assert sentence.startswith(f"begun without resnetkit-native, and here is {native.__version__}: crops")
    (sentence,) = decoder_changed(begun(**{"resnetkit-native": "9.9"}))
    assert sentence.startswith(f"begun with resnetkit-native 9.9, and here is {native.__version__}: crops")


# --- real pictures


def test_sample_pictures(tmp_path: Path) -> None:
    pytest.importorskip("resnetkit_native")
    if not SAMPLE.exists():
        pytest.skip("imagenet-sample-250.tar.gz is not in ../shared/data")
    with tarfile.open(SAMPLE) as archive:
        archive.extractall(tmp_path, filter="data")
    paths = sorted(tmp_path.rglob("*.JPEG"))
    assert len(paths) == 250
    preprocess, means = replace(PREPROCESS, size=224, resize_to=256, exif=False), []
    table = np.random.Generator(np.random.Philox(4)).random((250, DRAWS))
    for path, draws in zip(paths, table, strict=True):
        data = path.read_bytes()
        opened = preprocess.open(data)
        assert isinstance(opened, Jpeg), path.name
        made = augmented(opened, preprocess, AUGMENTS[0], draws)
        expected = augmented(preprocess.load(data), preprocess, AUGMENTS[0], draws)
        assert same(made, expected), path.name
        means.append(np.abs(made.astype(int) - expected).mean())
    assert np.mean(means) < 0.3

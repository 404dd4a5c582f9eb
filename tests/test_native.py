"""resnetkit-native: against Pillow's pixels, between its two kinds of code, and with what it has to refuse.

Skipped where it is not installed; `make native` builds and installs it.
"""

from __future__ import annotations

import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

native = pytest.importorskip("resnetkit_native")

Pixels = NDArray[np.uint8]
BILINEAR = Image.Resampling.BILINEAR
KINDS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive 4:2:0": {"subsampling": 2, "progressive": True},
    "progressive 4:4:4": {"subsampling": 0, "progressive": True},
    "restart markers": {"subsampling": 2, "restart_marker_blocks": 3},
    "RGB": {"keep_rgb": True},
    "grey": {},
    "grey progressive": {"progressive": True},
}


def jpeg(width: int, height: int, kind: str = "4:2:0", seed: int = 0, mode: str = "RGB") -> bytes:
    """A picture of noise laid over colour, so that chroma changes from pixel to pixel."""
    dice = np.random.default_rng(seed)
    small = Image.fromarray(dice.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(small).astype(int) + dice.integers(-40, 40, (height, width, 3))
    out = io.BytesIO()
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("L" if kind.startswith("grey") else mode)
    image.save(out, "JPEG", quality=92, **KINDS.get(kind, {}))
    return out.getvalue()


def pillows(data: bytes, mode: str = "RGB") -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert(mode))


def crop(data: bytes, box: tuple[float, ...], size: int, *rest: object, **named: object) -> Pixels:
    """The crop as an array; by AVX2 and by portable code, which must not differ in a bit."""
    made = native.decode_crop(data, box, size, *rest, **named)
    assert made == native.decode_crop(data, box, size, *rest, portable=True, **named)
    return np.frombuffer(made, np.uint8).reshape(size, size, -1)


def by_pillow(whole: Pixels, box: tuple[int, int, int, int], size: int) -> Pixels:
    left, top, width, height = box
    cut = Image.fromarray(whole[top : top + height, left : left + width])
    return np.asarray(cut.resize((size, size), BILINEAR))


def distance(a: Pixels, b: Pixels) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# --- the same pixels


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_that_is_not_resized_is_that_of_the_whole_picture(kind: str) -> None:
    """Bit for bit: neither skipped rows nor cropped columns change what smooth upsampling sees."""
    dice = np.random.default_rng(1)
    for width, height in ((97, 61), (64, 64), (33, 130), (160, 17)):
        data = jpeg(width, height, kind)
        whole = pillows(data)
        for _ in range(40):
            side = int(dice.integers(1, min(width, height) + 1))
            left, top = int(dice.integers(0, width - side + 1)), int(dice.integers(0, height - side + 1))
            made = crop(data, (left, top, side, side), side)
            np.testing.assert_array_equal(made, whole[top : top + side, left : left + side])


@given(st.data(), st.sampled_from(sorted(KINDS)), st.integers(1, 90), st.booleans())
@settings(max_examples=150, deadline=None)
def test_crops_are_pillows_within_a_level(data: st.DataObject, kind: str, size: int, flip: bool) -> None:
    width, height = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 120))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (left, top, data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top)))
    coded = jpeg(width, height, kind)
    expected = by_pillow(pillows(coded), box, size)
    assert distance(crop(coded, box, size, flip), expected[:, :: -1 if flip else 1]) <= 1


@given(st.data(), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_around_a_box_pixels_count_as_in_pillow(data: st.DataObject, size: int) -> None:
    width, height = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    left = data.draw(st.floats(0, width - 0.5))
    top = data.draw(st.floats(0, height - 0.5))
    right = data.draw(st.floats(left + 0.4, width))
    bottom = data.draw(st.floats(top + 0.4, height))
    coded = jpeg(width, height)
    expected = Image.fromarray(pillows(coded)).resize((size, size), BILINEAR, (left, top, right, bottom))
    made = crop(coded, (left, top, right - left, bottom - top), size, around=True)
    assert distance(made, np.asarray(expected)) <= 1


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 90), (90, 1), (2, 2), (17, 9), (2000, 3), (1500, 1100)])
def test_small_long_and_large_pictures(width: int, height: int) -> None:
    data = jpeg(width, height)
    whole, box = pillows(data), (0, 0, width, height)
    for size in (1, 3, 224):
        made = crop(data, box, size)
        assert distance(made, by_pillow(whole, box, size)) <= 1
        assert np.abs(made.astype(int) - by_pillow(whole, box, size)).mean() < 0.5


def test_flat_pictures_stay_flat() -> None:
    for level in (0, 1, 127, 254, 255):
        out = io.BytesIO()
        Image.new("RGB", (301, 207), (level,) * 3).save(out, "JPEG", quality=100)
        for size in (1, 7, 224, 640):
            assert set(crop(out.getvalue(), (3, 5, 291, 200), size).ravel().tolist()) == {level}


@pytest.mark.parametrize("kind", ["4:4:4", "4:2:0", "grey"])
def test_one_channel_is_luma(kind: str) -> None:
    data = jpeg(80, 70, kind)
    made = crop(data, (5, 6, 60, 50), 40, channels=1)
    assert distance(made[:, :, 0], by_pillow(pillows(data, "L"), (5, 6, 60, 50), 40)) <= 1


def test_into_a_row_of_a_batch() -> None:
    data = jpeg(80, 70)
    batch = np.full((3, 32, 32, 3), 7, np.uint8)
    assert native.decode_crop(data, (5, 6, 60, 50), 32, out=batch[1]) is not None
    np.testing.assert_array_equal(batch[1], crop(data, (5, 6, 60, 50), 32))
    assert (batch[[0, 2]] == 7).all()


# --- what is refused


def with_marker(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def refused() -> dict[str, bytes]:
    plain = jpeg(40, 30)
    frame = plain.index(b"\xff\xc0")
    return {
        "empty": b"",
        "one byte": b"\xff",
        "no JPEG": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "a header alone": plain[:60],
        "CMYK": jpeg(40, 30, mode="CMYK"),
        "arithmetic": with_marker(plain, b"\xff\xc0", b"\xff\xc9"),
        "lossless": with_marker(plain, b"\xff\xc0", b"\xff\xc3"),
        "12 bits": plain[: frame + 4] + b"\x0c" + plain[frame + 5 :],
        "no end": plain[:-2],
        "cut in half": plain[: len(plain) // 2],
        "an end too early": plain[: len(plain) // 2] + b"\xff\xd9",
        "no height": plain[: frame + 5] + b"\0\0" + plain[frame + 7 :],
    }


@pytest.mark.parametrize("what", refused())
def test_what_others_must_decode_is_refused(what: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        native.decode_crop(refused()[what], (0, 0, 40, 30), 8)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["4:2:0", "progressive 4:2:0", "grey"])
def test_a_file_cut_off_anywhere_is_refused(kind: str) -> None:
    """Even where the crop lies above the cut."""
    data = jpeg(60, 60, kind)
    for length in range(0, len(data) - 1, 7):
        with pytest.raises(ValueError, match=r"\w"):
            native.decode_crop(data[:length], (0, 0, 10, 10), 8)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    "box",
    [(-1, 0, 5, 5), (0, 0, 41, 30), (0, 0, 40, 31), (0, 0, 0, 5), (0, 0, 5, -1), (36, 0, 5, 5), (0.5, 0, 5, 5),
     (0, 0, 5.5, 5), (NAN, 0, 5, 5), (0, 0, NAN, 5), (0, 0, INFINITE, 5), (1e300, 0, 1, 1), (-INFINITE, 0, 5, 5)],
)  # fmt: skip
def test_a_box_must_lie_in_the_picture(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="box"):
        native.decode_crop(jpeg(40, 30), box, 8)


def test_wrong_arguments() -> None:
    data = jpeg(40, 30)
    for size, channels in ((0, 3), (-1, 3), (10**9, 3), (8, 2), (8, 4)):
        with pytest.raises(ValueError, match="size must be"):
            native.decode_crop(data, (0, 0, 5, 5), size, False, channels)
    with pytest.raises(ValueError, match="out has 191 bytes, the crop 192"):
        native.decode_crop(data, (0, 0, 5, 5), 8, out=bytearray(191))
    for out in (bytes(192), np.zeros((8, 8, 6), np.uint8)[:, :, ::2]):  # not writable, not in one piece
        with pytest.raises((BufferError, ValueError)):
            native.decode_crop(data, (0, 0, 5, 5), 8, out=out)
    with pytest.raises(TypeError):
        native.decode_crop("text", (0, 0, 5, 5), 8)
    with pytest.raises(TypeError):
        native.size(None)


def test_sizes() -> None:
    for width, height in ((1, 1), (40, 30), (1500, 1100)):
        assert native.size(jpeg(width, height)) == (width, height)
    with pytest.raises(ValueError, match=r"\w"):
        native.size(b"")


def test_flipped_bits_do_no_harm() -> None:
    """Either pixels or ValueError; under the sanitisers of native/README.md, nothing they object to."""
    dice = np.random.default_rng(int(os.environ.get("FUZZ_SEED", "0")))
    outcomes = {"made": 0, "refused": 0}
    sources = [jpeg(70, 50, kind) for kind in KINDS]
    for round in range(int(os.environ.get("FUZZ_ROUNDS", "600"))):
        coded = bytearray(sources[round % len(sources)])
        for at in dice.integers(2, len(coded) if round % 2 else 700, dice.integers(1, 5)).tolist():
            coded[at] ^= 1 << int(dice.integers(8))
        try:
            width, height = native.size(coded)
            if width * height < 1e6:  # a flipped size may be large, which is no fault, but slow
                left, top = int(dice.integers(width)), int(dice.integers(height))
                box = (left, top, int(dice.integers(1, width - left + 1)), int(dice.integers(1, height - top + 1)))
                crop(
                    bytes(coded), box, int(dice.integers(1, 50)), bool(dice.integers(2)), around=bool(dice.integers(2))
                )
                outcomes["made"] += 1
        except ValueError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


def resident() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_nothing_is_left_behind() -> None:
    good, cut = jpeg(300, 200, "progressive 4:2:0"), jpeg(300, 200, "progressive 4:2:0")[:-300] + b"\xff\xd9"

    def many() -> None:
        for _ in range(150):
            native.decode_crop(good, (0, 0, 300, 200), 32)
            with pytest.raises(ValueError, match=r"\w"):
                native.decode_crop(cut, (0, 0, 300, 200), 32)

    many()
    before = resident()
    many()
    assert resident() - before < 10e6  # the coefficients of one picture alone are 0.36 MB


# --- threads


def test_threads_agree() -> None:
    data = [jpeg(200, 150, kind, seed) for seed in range(3) for kind in KINDS]
    alone = [native.decode_crop(coded, (10, 5, 150, 140), 64) for coded in data]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(lambda coded: native.decode_crop(coded, (10, 5, 150, 140), 64), data)) == alone


def test_the_interpreter_is_let_go() -> None:
    """Another thread gets to run within a call: it would wait for the call's end otherwise."""
    data = jpeg(1500, 1100)
    turns: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            turns.append(time.monotonic())
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    within = 0
    for _ in range(50):  # a busy machine may give the other thread no processor for one call, hardly for fifty
        begin = time.monotonic()
        native.decode_crop(data, (0, 0, 1500, 1100), 224)
        finish = time.monotonic()
        within = max(within, sum(begin < moment < finish for moment in list(turns)))
        if within >= 4:
            break
    done.set()
    thread.join()
    assert within >= 4

"""The audit: what it says of pictures made for it, statistics against numpy, and how it treats memory and threads."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.audit import (
    CHUNK,
    audit,
    audit_pictures,
    channel_statistics,
    fingerprint,
    require_good,
    without_bad,
)
from resnetkit.data.folder import load_folder
from resnetkit.data.pictures import Arrays, Data, Pictures
from resnetkit.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = Image.fromarray(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


GOOD = {
    "rgb.png": (encoded(COLOUR, "PNG"), ()),
    "rgb.jpg": (encoded(COLOUR, "JPEG"), ()),
    "cmyk.jpg": (encoded(COLOUR.convert("CMYK"), "JPEG"), ("CMYK",)),
    "deep.png": (encoded(Image.fromarray(np.full((12, 16), 999, np.uint16)), "PNG"), ("16-bit",)),
    "bit.png": (encoded(COLOUR.convert("1"), "PNG"), ("one-bit",)),
    "alpha.webp": (encoded(COLOUR.convert("RGBA"), "WEBP", lossless=True), ()),  # all opaque: stored without alpha
    "alpha.png": (encoded(COLOUR.convert("RGBA"), "PNG"), ("alpha",)),
    "palette.png": (encoded(COLOUR.convert("P"), "PNG"), ("palette",)),
    "turned.jpg": (encoded(COLOUR, "JPEG", exif=turned()), ("EXIF-rotated",)),
    "moving.webp": (
        encoded(COLOUR, "WEBP", save_all=True, append_images=[COLOUR.rotate(180)], lossless=True),
        ("animated",),
    ),
    "really.JPG": (encoded(COLOUR, "PNG"), ("wrong extension: PNG named .jpg",)),
    "bare.tiff": (encoded(COLOUR, "TIFF"), ()),
}
BAD = {
    "empty.jpg": b"",
    "text.jpg": b"Dear diary, this is no picture.",
    "cut.png": encoded(COLOUR, "PNG")[:-60],
    "cut.jpg": encoded(COLOUR, "JPEG")[:-100],
}


def folder(root: Path, files: dict[str, bytes]) -> Data:
    (root / "a").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / "a" / name).write_bytes(data)
    return load_folder(root, "photos")


def by_name(data: Data, found: dict[int, Any]) -> dict[str, Any]:
    return {data.pictures.name(index).removeprefix("a/"): value for index, value in found.items()}


@dataclass
class Counting:
    """Pictures that say how many threads read them at once."""

    inner: Pictures
    reads: int = 0
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.inner)

    def name(self, i: int) -> str:
        return self.inner.name(i)

    def size(self, i: int) -> int:
        return self.inner.size(i)

    def read(self, i: int) -> bytes | NDArray[np.uint8]:
        with self.lock:
            self.reads += 1
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.0002)
        with self.lock:
            self.now -= 1
        return self.inner.read(i)


def arrays(pixels: NDArray[np.uint8]) -> Data:
    n = len(pixels)
    return Data("x:", Arrays(pixels, (("x", n),)), np.arange(n) % 2, ("p", "q"), {"all": np.arange(n)})


@pytest.mark.parametrize("threads", [1, 3])
def test_every_kind_is_called_by_its_name(tmp_path: Path, threads: int) -> None:
    data = folder(tmp_path, {name: content for name, (content, _) in GOOD.items()})
    found = audit(data, threads=threads)
    assert found.error == {}
    assert by_name(data, found.odd) == {name: odd for name, (_, odd) in GOOD.items() if odd}
    assert found.decoded
    assert not found.all_grey
    for index, name in enumerate(sorted(GOOD)):
        assert found.digest[index].tobytes() == hashlib.sha256(GOOD[name][0]).digest()
        size = (12, 16) if name == "turned.jpg" else (16, 12)
        assert (found.width[index], found.height[index]) == size


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    data = folder(tmp_path, BAD | {"good.png": GOOD["rgb.png"][0]})
    (tmp_path / "a" / "link.png").symlink_to("gone.png")
    data = load_folder(tmp_path, "photos")
    reasons = by_name(data, audit(data, threads=2).error)
    assert sorted(reasons) == sorted([*BAD, "link.png"])
    assert reasons["empty.jpg"] == "empty file"
    assert reasons["link.png"] == "cannot be opened: No such file or directory"
    assert all(reasons.values())


def test_above_the_limit_headers_alone_are_read(tmp_path: Path) -> None:
    data = folder(tmp_path, BAD | {"good.png": GOOD["rgb.png"][0]})
    total = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert audit(data, threads=2, limit_bytes=total).decoded
    found = audit(data, threads=2, limit_bytes=total - 1)
    assert not found.decoded
    assert {"empty.jpg", "text.jpg"} <= set(by_name(data, found.error)) < set(BAD)
    assert found.digest.any(axis=1).all()


def test_grey_pictures_are_known_by_their_headers(tmp_path: Path) -> None:
    grey = COLOUR.convert("L")
    data = folder(tmp_path, {"1.png": encoded(grey, "PNG"), "2.jpg": encoded(grey, "JPEG"), "3.png": b""})
    assert audit(data, threads=1).all_grey
    assert not audit(data, indices=np.array([2]), threads=1).all_grey  # nothing readable: nothing known
    assert audit(arrays(np.zeros((3, 2, 2, 1), np.uint8)), threads=1).all_grey
    assert not audit(arrays(np.zeros((3, 2, 2, 3), np.uint8)), threads=1).all_grey


def test_records_come_in_order_while_few_pictures_are_held() -> None:
    data = arrays(RNG.integers(0, 256, (900, 4, 5, 3), dtype=np.uint8))
    counting = Counting(data.pictures)
    data = Data("x:", counting, data.labels, data.classes, data.splits)
    records = audit_pictures(data, threads=3)
    assert next(records).index == 0
    assert counting.reads <= 4 * 3 * CHUNK
    assert [record.index for record in records] == list(range(1, 900))
    assert counting.reads == 900
    assert counting.most <= 3


def test_whoever_stops_early_stops_the_reading() -> None:
    data = arrays(np.zeros((5000, 1, 1, 1), np.uint8))
    counting = Counting(data.pictures)
    records = audit_pictures(Data("x:", counting, data.labels, data.classes, data.splits), threads=2)
    next(records)
    records.close()  # type: ignore[attr-defined]
    reads = counting.reads
    time.sleep(0.02)
    assert counting.reads == reads < 1000


def test_only_the_pictures_asked_for_are_looked_at() -> None:
    data = arrays(RNG.integers(0, 256, (50, 2, 3, 3), dtype=np.uint8))
    found = audit(data, indices=np.array([4, 40]), threads=2)
    assert found.indices.tolist() == [4, 40]
    assert np.flatnonzero(found.digest.any(axis=1)).tolist() == [4, 40]
    assert (found.width[4], found.height[4], found.width[5]) == (3, 2, 0)


def test_statistics_of_equal_sizes_are_those_of_all_pixels() -> None:
    pixels = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8) // np.array([1, 2, 3], np.uint8)
    data = arrays(pixels)
    found = channel_statistics(data, audit(data, threads=2), data.splits["all"], threads=2)
    assert found.pictures == 40
    np.testing.assert_allclose(found.mean, (pixels / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, (pixels / 255).std((0, 1, 2)), rtol=1e-12)


def test_statistics_weigh_pictures_not_pixels(tmp_path: Path) -> None:
    small, large = (Image.new("L", (side, side), level) for side, level in ((2, 0), (200, 255)))
    data = folder(tmp_path, {"s.png": encoded(small, "PNG"), "l.png": encoded(large, "PNG"), "bad.png": b""})
    found = channel_statistics(data, audit(data, threads=1), data.splits["all"], channels=1, threads=1)
    assert (found.mean, found.std, found.pictures) == ((0.5,), (0.5,), 2)


def test_statistics_of_a_sample_do_not_depend_on_order_or_threads() -> None:
    pixels = RNG.integers(0, 256, (2300, 1, 2, 1), dtype=np.uint8)
    digests = [hashlib.sha256(picture.tobytes()).digest() for picture in pixels]
    sample = pixels[sorted(range(2300), key=digests.__getitem__)[:2000]]
    results = set()
    for threads, way in ((1, 1), (4, -1)):
        data = arrays(np.ascontiguousarray(pixels[::way]))
        results.add(channel_statistics(data, audit(data, threads=1), data.splits["all"], channels=1, threads=threads))
    (found,) = results
    assert found.pictures == 2000
    np.testing.assert_allclose(found.mean, [sample.mean() / 255], rtol=1e-12)


def test_statistics_of_nothing_readable(tmp_path: Path) -> None:
    data = folder(tmp_path, BAD)
    with pytest.raises(UserError, match="no picture to measure"):
        channel_statistics(data, audit(data, threads=1), data.splits["all"], threads=1)
    headers = audit(data, threads=1, limit_bytes=0)
    with pytest.raises(UserError, match="cannot be read: a/cut"):
        channel_statistics(data, headers, data.splits["all"], threads=1)


def test_bad_pictures_stop_or_are_left_out(tmp_path: Path) -> None:
    data = folder(tmp_path, BAD | {"good.png": GOOD["rgb.png"][0]})
    found = audit(data, threads=2)
    with pytest.raises(UserError, match=r"photos: 4 pictures cannot be read: .*a/empty.jpg \(empty file\); a/text.jpg"):
        require_good(data, found)
    rest = without_bad(data, found)
    assert by_name(data, dict.fromkeys(rest.used().tolist())) == {"good.png": None}
    assert len(rest) == len(data)
    assert rest.notes[-1].startswith("left out 4 pictures that cannot be read: a/cut.jpg (")
    require_good(rest, found)
    assert without_bad(rest, found) is rest


def test_the_fingerprint_is_of_names_labels_and_contents(tmp_path: Path) -> None:
    files = {name: content for name, (content, _) in GOOD.items()}

    def of(data: Data) -> str:
        return fingerprint(data, audit(data, threads=2))

    first, elsewhere = folder(tmp_path / "one", files), folder(tmp_path / "two", files)
    assert of(first) == of(elsewhere)
    other_label = Data("photos", first.pictures, first.labels, ("b",), first.splits)
    other_content = folder(tmp_path / "three", files | {"rgb.png": files["rgb.jpg"]})
    other_name = folder(
        tmp_path / "four", {("x" + name if name == "rgb.png" else name): c for name, c in files.items()}
    )
    assert len({of(data) for data in (first, other_label, other_content, other_name)}) == 4


def test_the_fingerprint_does_not_depend_on_order_or_split() -> None:
    data = arrays(RNG.integers(0, 256, (6, 2, 2, 1), dtype=np.uint8))
    divided = Data("x:", data.pictures, data.labels, data.classes, {"val": np.array([5]), "train": np.arange(5)})
    found = audit(data, threads=1)
    assert fingerprint(data, found) == fingerprint(divided, found)
    assert fingerprint(divided, audit(divided, threads=1)) == fingerprint(divided, found)

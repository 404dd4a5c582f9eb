"""The small benchmark data sets in their own formats, decoded in memory: (Fashion-)MNIST, CIFAR-10/100, digits.

IDX and CIFAR records: http://yann.lecun.com/exdb/mnist and https://www.cs.toronto.edu/~kriz/cifar.html. CIFAR's Python
batches are pickles; they are read without running anything that is in them (`BatchUnpickler`).
"""

from __future__ import annotations

import gzip
import io
import math
import os
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.data.pictures import Arrays, Data, Indices, Pixels
from resnetkit.errors import UserError

FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
CIFAR10 = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
CIFAR100 = (
    "apple,aquarium_fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,butterfly,camel,can,castle,"
    "caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,crab,crocodile,cup,dinosaur,dolphin,elephant,"
    "flatfish,forest,fox,girl,hamster,house,kangaroo,keyboard,lamp,lawn_mower,leopard,lion,lizard,lobster,man,maple_tree,"
    "motorcycle,mountain,mouse,mushroom,oak_tree,orange,orchid,otter,palm_tree,pear,pickup_truck,pine_tree,plain,plate,"
    "poppy,porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,seal,shark,shrew,skunk,skyscraper,snail,snake,spider,"
    "squirrel,streetcar,sunflower,sweet_pepper,table,tank,telephone,television,tiger,tractor,train,trout,tulip,turtle,"
    "wardrobe,whale,willow_tree,wolf,woman,worm"
)
SIDE, PLANES = 32, 3 * 32 * 32  # of a CIFAR picture: pixels, bytes


@dataclass(frozen=True)
class Cifar:
    """Where one of the two CIFAR sets keeps what."""

    train: tuple[str, ...]  # files, without suffix
    test: str
    meta: str  # pickle with the class names
    names: str  # text file with the class names, beside the binary records
    folders: tuple[str, str]  # what its archives unpack to
    label_bytes: int  # before the pixels of a binary record; the last one is the label (CIFAR-100: coarse, fine)
    labels_key: str
    names_key: str


CIFARS = {
    "cifar10": Cifar(
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        names="batches.meta.txt",
        folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
        label_bytes=1,
        labels_key="labels",
        names_key="label_names",
    ),
    "cifar100": Cifar(
        train=("train",),
        test="test",
        meta="meta",
        names="fine_label_names.txt",
        folders=("cifar-100-python", "cifar-100-binary"),
        label_bytes=2,
        labels_key="fine_labels",
        names_key="fine_label_names",
    ),
}
SETS = {"fashion-mnist": FASHION, "mnist": "0,1,2,3,4,5,6,7,8,9", "cifar10": CIFAR10, "cifar100": CIFAR100}


def load_small(name: str, folder: Path, spec: str) -> Data:
    """One of `SETS` from its files in `folder`: splits "train" and "test", pictures in the files' order.

    Raises UserError: files missing, wrong magic number or size, truncated, a pickle with code in it.
    """
    classes = tuple(SETS[name].split(","))
    if name in CIFARS:
        train, test, classes = read_cifar(CIFARS[name], folder, classes, spec)
    else:
        train, test = (read_idx_pair(folder, part, spec) for part in ("train", "t10k"))
    parts = {"train": train, "test": test}
    for split, (pixels, labels) in parts.items():
        if len(labels) and int(labels.max()) >= len(classes):
            raise UserError(
                f"{spec}: {split} has label {labels.max()}, but there are {len(classes)} classes; is it {name}?"
            )
        if len(labels) != len(pixels):
            raise UserError(
                f"{spec}: {split} has {len(pixels)} pictures and {len(labels)} labels; fetch the files anew"
            )
    numbers = np.arange(len(train[1]) + len(test[1]))
    pictures = Arrays(
        frozen(np.concatenate([train[0], test[0]])),
        tuple((f"{name}/{split}", len(labels)) for split, (_, labels) in parts.items()),
    )
    splits = {"train": numbers[: len(train[1])], "test": numbers[len(train[1]) :]}
    return Data(spec, pictures, np.concatenate([train[1], test[1]]), classes, splits)


def load_digits(spec: str = "digits:") -> Data:
    """scikit-learn's 1,797 digits of 8x8 pixels, levels 0 … 16 spread over 0 … 255; not divided."""
    if spec != "digits:":
        raise UserError(f"{spec}: digits come with scikit-learn and have no folder; write digits:")
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise UserError("digits: needs scikit-learn; pip install 'resnetkit[demo]'") from error
    found = load()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
    labels = found.target.astype(np.int64)
    pictures = Arrays(frozen(pixels), (("digits", len(pixels)),))
    return Data(spec, pictures, labels, tuple("0123456789"), {"all": np.arange(len(labels))})


def frozen(pixels: Pixels) -> Pixels:
    """Read-only, because every reader gets a view of the same memory."""
    pixels.flags.writeable = False
    return pixels


def read_idx_pair(folder: Path, part: str, spec: str) -> tuple[Pixels, Indices]:
    """Pictures (n, H, W, 1) and labels (n,) of "train" or "t10k"."""
    pixels = read_idx(folder, f"{part}-images-idx3-ubyte", 3, spec)
    return pixels[..., None], read_idx(folder, f"{part}-labels-idx1-ubyte", 1, spec).astype(np.int64)


def read_idx(folder: Path, name: str, axes: int, spec: str) -> Pixels:
    """An IDX file of bytes: magic 0, 0, 8 (uint8), number of axes; their lengths, big endian; the values."""
    dotted = name.replace("-idx", ".idx")  # as the files are called in older archives
    choices = [folder / f"{stem}{suffix}" for stem in (name, dotted) for suffix in ("", ".gz")]
    path = next((choice for choice in choices if choice.is_file()), None)
    if path is None:
        raise UserError(f"{spec}: no {name} or {name}.gz in the folder; fetch the data set's four files")
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: damaged gzip file ({error}); fetch it anew") from error
    start = 4 + 4 * axes
    if len(data) < start or data[:4] != bytes([0, 0, 8, axes]):
        raise UserError(f"{path}: not an IDX file of bytes with {axes} axes (its first bytes are {data[:4].hex()})")
    shape = tuple(np.frombuffer(data, ">u4", axes, offset=4).tolist())
    if len(data) - start != math.prod(shape):
        said = " x ".join(map(str, shape))
        raise UserError(f"{path}: {len(data) - start} bytes where its header says {said}; fetch it anew")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


Part = tuple[Pixels, Indices]


def read_cifar(layout: Cifar, folder: Path, classes: tuple[str, ...], spec: str) -> tuple[Part, Part, tuple[str, ...]]:
    """Training part, test part and class names, from Python batches or else from binary records."""
    for place in (folder, *(folder / name for name in layout.folders)):
        for suffix, read in (("", read_batch), (".bin", read_records)):
            if not (place / f"{layout.test}{suffix}").is_file():
                continue
            paths = [place / f"{name}{suffix}" for name in (*layout.train, layout.test)]
            missing = [path.name for path in paths if not path.is_file()]
            if missing:
                raise UserError(f"{spec}: {', '.join(missing)} missing in {place}; unpack the archive anew")
            *batches, test = (read(path, layout) for path in paths)
            train = np.concatenate([pixels for pixels, _ in batches]), np.concatenate([labels for _, labels in batches])
            return train, test, read_names(place, layout, suffix) or classes
    raise UserError(
        f"{spec}: no {layout.test} or {layout.test}.bin in the folder, nor train/<class>/ and test/<class>/; "
        f"give the folder that the archive unpacks to ({layout.folders[0]})"
    )


def read_names(place: Path, layout: Cifar, suffix: str) -> tuple[str, ...]:
    """The class names that come with the batches, or nothing."""
    path = place / (layout.names if suffix else layout.meta)
    if not path.is_file():
        return ()
    if suffix:
        return tuple(path.read_text(encoding="utf-8", errors="surrogateescape").split())
    names = unpickle(path).get(layout.names_key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise UserError(f"{path}: no list {layout.names_key!r} in it; fetch it anew")
    return tuple(os.fsdecode(name) for name in names)


def read_records(path: Path, layout: Cifar) -> Part:
    """Binary records: label bytes, then the red, green and blue planes of 32x32."""
    data = np.fromfile(path, np.uint8)
    record = layout.label_bytes + PLANES
    if not len(data) or len(data) % record:
        raise UserError(f"{path}: {len(data)} bytes, not a multiple of {record}; it is truncated or no CIFAR file")
    rows = data.reshape(-1, record)
    return upright(rows[:, layout.label_bytes :]), rows[:, layout.label_bytes - 1].astype(np.int64)


def read_batch(path: Path, layout: Cifar) -> Part:
    """A Python batch: a dict with `data` uint8 (n, 3072) and a list of labels."""
    found = unpickle(path)
    data, labels = found.get("data"), found.get(layout.labels_key)
    pixels = data.value if isinstance(data, PickledArray) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != PLANES:
        raise UserError(f"{path}: no uint8 array 'data' of n x {PLANES} in it; is it a CIFAR batch?")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise UserError(f"{path}: no list {layout.labels_key!r} of class numbers in it; is it a CIFAR batch?")
    if len(labels) != len(pixels):
        raise UserError(f"{path}: {len(pixels)} pictures and {len(labels)} labels; fetch it anew")
    return upright(pixels), np.array(labels, dtype=np.int64)


def upright(planes: Pixels) -> Pixels:
    """(n, 3072) as planes to contiguous (n, 32, 32, 3)."""
    return np.ascontiguousarray(planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))


class PickledType:
    """Stands for `numpy.dtype` in a pickle: it keeps the name and ignores the rest."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = os.fsdecode(name) if isinstance(name, str | bytes) else ""

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which bytes do not have."""


class PickledArray:
    """Stands for a numpy array in a pickle: `value` is the array once its state came, and then surely of bytes."""

    def __init__(self, *_: Any) -> None:
        self.value: Pixels | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_column, data = state
        if isinstance(data, str):
            data = data.encode("latin1")
        self.fill(data, kind, shape, "F" if by_column else "C")

    def fill(self, data: Any, kind: Any, shape: Any, order: Any) -> None:
        if not isinstance(kind, PickledType) or kind.name not in ("u1", "|u1", "uint8"):
            raise pickle.UnpicklingError("an array that is not of bytes")
        flat = np.frombuffer(data, np.uint8)
        self.value = flat.reshape(shape, order="F" if order == "F" else "C")


def pickled_buffer(data: Any, kind: Any, shape: Any, order: Any) -> PickledArray:
    """Stands for numpy's `_frombuffer`, which newer pickles call."""
    array = PickledArray()
    array.fill(data, kind, shape, order)
    return array


def pickled_bytes(text: Any, encoding: Any) -> bytes:
    """Stands for `_codecs.encode`, with which Python 3 writes bytes for Python 2."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"text in encoding {encoding!r}")
    return text.encode("latin1")


STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledType,
    ("_codecs", "encode"): pickled_bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): PickledArray for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): pickled_buffer for core in ("core", "_core")},
}


class BatchUnpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, text and arrays of bytes. Nothing but the stand-ins above can be called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise UserError(f"it would run {module}.{name}")
        return STAND_INS[module, name]


def unpickle(path: Path) -> dict[str, Any]:
    """The dict in a pickle, with text for keys. Raises UserError: damaged, or it names code to run."""
    try:
        found = BatchUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{path}: refused, {error}; no CIFAR batch does, so do not trust this file") from None
    except Exception as error:  # a damaged pickle raises whatever its instructions run into
        raise UserError(f"{path}: damaged, or no pickle ({error}); fetch it anew") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: no dict in it; is it a CIFAR batch?")
    return {os.fsdecode(key): value for key, value in found.items() if isinstance(key, str | bytes)}

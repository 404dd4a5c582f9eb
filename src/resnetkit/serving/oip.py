"""The Open Inference Protocol, version 2, and its binary extension: bytes to values and back. Knows nothing of HTTP.

https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md and
extension_classification.md. A model takes one of

  image   BYTES (N) or (N, 1): picture files as they are; in JSON their base64
  pixels  UINT8 (N, size, size, C): what `Preprocess.fit` gives

and gives, as asked for, all by default

  class          BYTES (N): the first class, or nothing where it is less probable than the model's threshold
  probabilities  FP64 (N, classes), calibrated
  logits         FP32 (N, classes)
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.about import About
from resnetkit.serving.limits import Limits, Refused

OUTPUTS = ("class", "probabilities", "logits")
BINARY = {"logits": "<f4", "probabilities": "<f8"}
TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32", "FP64": "TYPE_FP64"}  # Triton's
DATATYPES = {"class": "BYTES", "probabilities": "FP64", "logits": "FP32"}


@dataclass(frozen=True)
class Wanted:
    """One output as it was asked for; `first` classes instead of numbers where it is not 0."""

    name: str
    binary: bool
    first: int


@dataclass(frozen=True)
class Request:
    """One of `images` and `pixels` is there.

    seconds  within which the answer is of use, if that was said (Triton's `timeout`, in microseconds)
    """

    id: str
    images: tuple[bytes, ...] | None
    pixels: NDArray[np.uint8] | None
    outputs: tuple[Wanted, ...]
    seconds: float | None = None

    @property
    def n(self) -> int:
        return len(self.images if self.images is not None else self.pixels)  # type: ignore[arg-type]


def wrong(sentence: str) -> Refused:
    return Refused(400, sentence, reason="protocol")


def parse(body: bytes, header: int | None, about: About, limits: Limits) -> Request:
    """A request from its body; `header`: bytes of JSON before binary data, None where all is JSON. Raises Refused."""
    length = len(body) if header is None else header
    if not 0 <= length <= len(body):
        raise wrong(f"the header is said to have {length:,} bytes, and the body has {len(body):,}")
    if length > limits.json:
        raise Refused(413, f"{length:,} bytes of JSON, and {limits.json:,} may be: send binary data", reason="body")
    try:
        top = json.loads(body[:length])
    except (ValueError, RecursionError):
        raise wrong("the request is no JSON") from None
    top = checked(top, dict, "the request")
    known(top, ("id", "parameters", "inputs", "outputs"), "the request")
    settings = parameters(top, ("binary_data_output", "timeout"), "the request")
    inputs = checked(top.get("inputs"), list, "inputs")
    if len(inputs) != 1:
        raise wrong(f"there are {len(inputs)} inputs: give one, 'image' or 'pixels'")
    rest = Rest(memoryview(body)[length:])
    images, pixels = tensor(checked(inputs[0], dict, "inputs[0]"), rest, about, limits)
    if rest.data:
        raise wrong(f"{len(rest.data):,} bytes of binary data belong to no input")
    binary = checked(settings.get("binary_data_output", False), bool, "parameters.binary_data_output")
    outputs = [wanted(each, binary, len(about.classes)) for each in checked(top.get("outputs") or [], list, "outputs")]
    if len({each.name for each in outputs}) < len(outputs):
        raise wrong("an output is asked for twice")
    identity = checked(top.get("id", ""), str, "id")
    chosen = tuple(outputs) or tuple(Wanted(name, binary, 0) for name in OUTPUTS)
    return Request(identity, images, pixels, chosen, seconds_of(settings))


def seconds_of(settings: dict[str, Any]) -> float | None:
    if "timeout" not in settings:
        return None
    microseconds = checked(settings["timeout"], int, "timeout")
    if not 0 < microseconds < 1 << 53:
        raise wrong("timeout: microseconds, above 0")
    return float(microseconds) / 1e6


def checked(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}
        raise wrong(f"{what} must be {names[kind]}")
    return value


def known(table: dict[str, Any], keys: tuple[str, ...], what: str) -> None:
    for key in table:
        if key not in keys:
            raise wrong(f"{what} has {key[:64]!r}, which means nothing here; it may have: {', '.join(keys)}")


def parameters(table: dict[str, Any], keys: tuple[str, ...], what: str) -> dict[str, Any]:
    found: dict[str, Any] = checked(table.get("parameters", {}), dict, f"parameters of {what}")
    known(found, keys, f"parameters of {what}")
    return found


class Rest:
    """Binary data, of which each input takes its own."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def take(self, size: int) -> memoryview:
        if not 0 <= size <= len(self.data):
            raise wrong(f"an input has {size:,} bytes of binary data, and {len(self.data):,} are there")
        taken, self.data = self.data[:size], self.data[size:]
        return taken


def tensor(
    table: dict[str, Any], rest: Rest, about: About, limits: Limits
) -> tuple[tuple[bytes, ...] | None, NDArray[np.uint8] | None]:
    """The images or the pixels of an input."""
    known(table, ("name", "shape", "datatype", "parameters", "data"), "the input")
    name = table.get("name")
    settings = parameters(table, ("binary_data_size", "content_type"), "the input")
    datatypes = {"image": "BYTES", "pixels": "UINT8"}
    if not isinstance(name, str) or name not in datatypes:
        raise wrong("the input must be 'image' or 'pixels'")
    if table.get("datatype") != datatypes[name]:
        raise wrong(f"{name}: its datatype must be {datatypes[name]}")
    side, channels = about.preprocess.size, about.preprocess.channels
    shape = checked(table.get("shape"), list, f"{name}: its shape")
    each = [] if name == "image" else [side, side, channels]
    fits = shape[1:] == each or (name == "image" and shape[1:] == [1])
    if any(type(size) is not int or not 0 < size < 1 << 31 for size in shape) or not fits or not shape:
        raise wrong(f"{name}: its shape must be {['N', *each]}".replace("'", ""))
    if shape[0] > limits.batch:
        raise Refused(413, f"{shape[0]:,} pictures in one request, and {limits.batch:,} may be", reason="batch")
    if ("data" in table) == ("binary_data_size" in settings):
        raise wrong(f"{name}: needs either data or binary_data_size")
    binary = None
    if "data" not in table:
        binary = rest.take(checked(settings["binary_data_size"], int, f"{name}: binary_data_size"))
    if name == "image":
        found = from_json(table["data"]) if binary is None else tuple(strings(binary))
        if len(found) != shape[0]:
            raise wrong(f"image: its shape says {shape[0]:,}, and it has {len(found):,}")
        return found, None
    return None, numbers(table, shape) if binary is None else raw(binary, shape)


def from_json(data: Any) -> tuple[bytes, ...]:
    texts = checked(data, list, "image: its data")
    try:
        return tuple(base64.b64decode(checked(text, str, "image: each of its data"), validate=True) for text in texts)
    except (binascii.Error, ValueError):
        raise wrong("image: in JSON, pictures are base64") from None


def strings(data: memoryview) -> list[bytes]:
    """Triton's BYTES: each with its length, four bytes, the lowest first."""
    found, at = [], 0
    while at < len(data):
        if at + 4 > len(data):
            raise wrong("image: its binary data end within a length")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if size > len(data) - at:
            raise wrong("image: its binary data end within a picture")
        found.append(bytes(data[at : at + size]))
        at += size
    return found


def raw(data: memoryview, shape: list[int]) -> NDArray[np.uint8]:
    size = int(np.prod(shape, dtype=object))
    if len(data) != size:
        raise wrong(f"pixels: its shape says {size:,} bytes, and it has {len(data):,}")
    return np.frombuffer(data, np.uint8).reshape(shape).copy()  # torch warns of what it must not write


def numbers(table: dict[str, Any], shape: list[int]) -> NDArray[np.uint8]:
    """From JSON, flat or nested."""
    try:
        values = np.asarray(checked(table["data"], list, "pixels: its data"))
    except (ValueError, OverflowError):
        values = np.empty(0)
    if values.dtype.kind not in "iu" or values.shape not in ((int(np.prod(shape, dtype=object)),), tuple(shape)):
        raise wrong("pixels: its data must be as many whole numbers as its shape says")
    if values.min() < 0 or values.max() > 255:
        raise wrong("pixels: its data must be from 0 to 255")
    return values.astype(np.uint8).reshape(shape)


def wanted(table: Any, binary: bool, classes: int) -> Wanted:
    known(checked(table, dict, "an output"), ("name", "parameters"), "an output")
    name = table.get("name")
    if not isinstance(name, str) or name not in OUTPUTS:
        raise wrong(f"an output must be one of: {', '.join(OUTPUTS)}")
    settings = parameters(table, ("binary_data", "classification"), f"output {name}")
    first = checked(settings.get("classification", 0), int, "classification")
    if first < 0 or (first and name == "class"):
        raise wrong("classification: a number of classes, of probabilities or logits")
    chosen = checked(settings.get("binary_data", binary), bool, "binary_data")
    return Wanted(name, chosen, min(first, classes))


# Answers


@dataclass(frozen=True)
class Answer:
    """A body, and how many bytes of it are JSON where binary data follow."""

    body: bytes
    header: int | None


def answer(
    request: Request,
    about: About,
    who: dict[str, str],
    labels: list[str],
    table: Callable[[str], NDArray[np.floating[Any]]],
) -> Answer:
    """The answer to a request. `labels`: the first class of each picture or ""; `table`: probabilities or logits."""
    described, blobs = [], []
    for each in request.outputs:
        values = None if each.name == "class" else table(each.name)
        texts = labels if values is None else ranks(values, each.first, about.classes) if each.first else None
        shape = [request.n, *([each.first] if each.first else [] if values is None else [len(about.classes)])]
        output: dict[str, Any] = {"name": each.name, "shape": shape}
        output["datatype"] = DATATYPES[each.name] if texts is None else "BYTES"
        if not each.binary:
            output["data"] = values.ravel().tolist() if texts is None and values is not None else texts
        else:
            if texts is not None:
                encoded = [text.encode() for text in texts]
                blob = b"".join(struct.pack("<I", len(text)) + text for text in encoded)
            else:
                assert values is not None
                blob = values.astype(BINARY[each.name]).tobytes()
            output["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        described.append(output)
    top = {"model_name": who["name"], "model_version": who["version"]}
    text = json.dumps(({"id": request.id} if request.id else {}) | top | {"outputs": described}).encode()
    return Answer(text + b"".join(blobs), len(text) if blobs else None)


def ranks(values: NDArray[np.floating[Any]], first: int, classes: tuple[str, ...]) -> list[str]:
    """Triton's classification: value, index and label of the first classes."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :first]
    return [f"{row[i]:f}:{i}:{classes[i]}" for row, best in zip(values, order.tolist(), strict=True) for i in best]


def metadata(about: About, name: str, versions: list[str]) -> dict[str, Any]:
    """What the protocol says of a model."""
    side, channels, classes = about.preprocess.size, about.preprocess.channels, len(about.classes)
    return {
        "name": name,
        "versions": versions,
        "platform": "resnetkit",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, side, side, channels]},
        ],
        "outputs": [
            {"name": "class", "datatype": "BYTES", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP64", "shape": [-1, classes]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, classes]},
        ],
    }


def config(about: About, name: str, limits: Limits) -> dict[str, Any]:
    """The same as Triton's model configuration, in which the batch has no dimension."""
    meta = metadata(about, name, [])
    sides = {
        side: [
            {"name": each["name"], "data_type": TYPES[each["datatype"]], "dims": each["shape"][1:] or [1]}
            for each in meta[f"{side}s"]
        ]
        for side in ("input", "output")
    }
    return {"name": name, "platform": "resnetkit", "max_batch_size": limits.batch, **sides}

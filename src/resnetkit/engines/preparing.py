"""The same network as an engine loads it fastest on this machine, kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from resnetkit.engines import cache
from resnetkit.engines.engine import installation, last_line
from resnetkit.engines.files import Input, Source
from resnetkit.engines.starting import module_of
from resnetkit.errors import UserError
from resnetkit.version import __version__

if TYPE_CHECKING:
    from resnetkit.weights import ModelFile

Say = Callable[[str], None] | None


def prepared(source: Source, name: str, place: Path, say: Say = None) -> Path | None:
    """The file that an engine loads in place of `source`, made where it is missing; None where it loads that itself.

    One that is there is taken as whole; `is_intact` tells. `place` is a folder of this source, which exists.
    Raises UserError when the engine cannot have this network.
    """
    if name == "torch" or source.path.suffix == module_of(name).SUFFIX != ".onnx":
        return None
    files = files_of(name, place)
    about = {"engine": installation(name), "processor": cache.processor(), "resnetkit": __version__}
    known = cache.recall(place, name)
    if known is not None and known.items() >= about.items() and all(file.exists() for file in files):
        cache.touch(place)
        return files[0]
    if say is not None:
        say(f"{source.path}: preparing it for {name}, once on this machine")
    with apart(place) as working:
        try:
            module_of(name).prepare(graph_of(source, place), working / files[0].name)
        except (UserError, OSError):
            raise
        except Exception as error:  # engines have classes of their own, or RuntimeError
            line = last_line(error)
            raise UserError(f"{source.path}: {name} cannot load it ({line}); take another engine") from None
        for file in reversed(files):  # the weights before what names them
            (working / file.name).replace(file)
    cache.remember(place, name, about | {"sha256": digest_of(files)})
    if place == cache.folder(source.digest):
        cache.prune(place)
    return files[0]


def files_of(name: str, place: Path) -> list[Path]:
    """What an engine prepares: the file that it is given, and what lies beside that."""
    suffixes = [suffix for suffix in (module_of(name).SUFFIX, module_of(name).BESIDE) if suffix]
    return [place / f"{name}{suffix}" for suffix in suffixes]


def is_intact(name: str, place: Path) -> bool:
    """Whether what was prepared is as it was written. Lets go of the interpreter lock."""
    known = cache.recall(place, name)
    return known is not None and known.get("sha256") == digest_of(files_of(name, place))


def forget(name: str, place: Path) -> None:
    """Take away what was prepared."""
    for file in [place / f"{name}.json", *files_of(name, place)]:
        file.unlink(missing_ok=True)


def graph_in(place: Path) -> Path:
    """The ONNX file of a model file, on its way into the engines: this thread's own, as others may take theirs away."""
    return place / f"graph-{threading.get_native_id()}.onnx"


def graph_of(source: Source, place: Path) -> Source:
    """The source as an ONNX file: itself, or made of a model file, in `place`."""
    if source.path.suffix == ".onnx":
        return source
    graph = graph_in(place)
    if not graph.exists():
        from resnetkit.weights import open_model

        with apart(place) as working:
            made = working / graph.name
            made.write_bytes(onnx_bytes(open_model(source.path, several=True)))
            made.replace(graph)
    return Source(graph, source.about, "uint8", "fp32", source.digest)


def onnx_bytes(model: ModelFile, input: Input = "uint8") -> bytes:
    """A model's network as an ONNX file that says nothing of classes and the like. Raises UserError."""
    try:
        from resnetkit.engines.graph import onnx_graph
    except ModuleNotFoundError:
        hint = "pip install 'resnetkit[onnx]'"
        raise UserError(f"onnx is not installed, and networks go to engines through it; run: {hint}") from None
    data: bytes = onnx_graph(model.network, model.preprocess, input).SerializeToString(deterministic=True)
    return data


def digest_of(files: list[Path]) -> str:
    """Of files that belong together; of none where one is missing."""
    try:
        return hashlib.sha256("".join(map(cache.digest_of, files)).encode()).hexdigest()
    except OSError:
        return ""


@contextlib.contextmanager
def apart(place: Path) -> Iterator[Path]:
    """A folder inside `place`, so on its disk, for files that are not whole yet. Two processes have two of them."""
    import shutil
    import tempfile

    working = Path(tempfile.mkdtemp(prefix=".", dir=place))
    try:
        yield working
    finally:
        shutil.rmtree(working, ignore_errors=True)


@contextlib.contextmanager
def place_of(source: Source) -> Iterator[tuple[Path, bool]]:
    """The source's folder in the cache, and True; where that cannot be written, one that goes away, and False."""
    place = cache.folder(source.digest)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lasting = os.access(place, os.W_OK)
    except OSError:
        lasting = False
    if lasting:
        graph_in(place).unlink(missing_ok=True)  # of one that was killed, and had the same number
        try:
            yield place, True
        finally:
            graph_in(place).unlink(missing_ok=True)
        return
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        yield Path(folder), False

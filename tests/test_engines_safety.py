"""What a file may not do, whoever made it: nothing of it is believed, written or loaded before it was looked at."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetkit.engines import cache, files, opening, preparing
from resnetkit.engines.engine import version
from resnetkit.engines.opening import open_engine
from resnetkit.engines.starting import module_of
from resnetkit.engines.writing import write
from resnetkit.errors import UserError
from resnetkit.exporting import SUFFIXES
from resnetkit.sealing import PLACE, seal
from resnetkit.weights import save_model
from test_engines_parity import COLOUR, engine_of, expected, make_model, pictures

onnx = pytest.importorskip("onnx")
SMALL = replace(COLOUR, size=16)
MODEL = make_model("resnet8-cifar", SMALL)
NAMES = ["onnx", "openvino", "mnn"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small file of each kind that can be made here, by suffix."""
    folder = tmp_path_factory.mktemp("safety")
    found = {".safetensors": folder / "m.safetensors"}
    save_model(MODEL, found[".safetensors"])
    for kind, suffix in SUFFIXES.items():
        if kind == "torch-export" or version(kind) is not None:
            found[suffix] = folder / f"m{suffix}"
            write(MODEL, kind, found[suffix], "uint8")
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which nothing is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def forged(path: Path, target: Path, sealed: bool = True, **changes: Any) -> Path:
    """An ONNX file that says something else of itself."""
    model = onnx.load(path)
    meta = json.loads(model.metadata_props[0].value) | ({"sha256": PLACE} if sealed else {}) | changes
    model.metadata_props[0].value = json.dumps(meta)
    data = model.SerializeToString()
    target.write_bytes(seal(data) if sealed else data)
    return target


def needs(name: str) -> None:
    if version(name) is None:
        pytest.skip(f"{name} is not installed")


# Metadata


@pytest.mark.parametrize("digest", ["", "../../../escape", "{folder}/escape", "0" * 63, "G" * 64, 5, None, ["0" * 64]])
def test_a_digest_that_is_none_names_no_folder(digest: Any, made: dict[str, Path], tmp_path: Path, place: Path) -> None:
    """The cache has a folder of that name before the file was found whole."""
    needs("onnx")
    digest = digest.format(folder=tmp_path) if isinstance(digest, str) else digest
    path = forged(made[".onnx"], tmp_path / "m.onnx", sealed=False, sha256=digest)
    with pytest.raises(UserError, match=r"m\.onnx: damaged: its SHA-256 is not the one"):
        open_engine(path, "onnx", threads=1)
    assert [other.name for other in tmp_path.rglob("*")] == ["m.onnx"]
    assert not place.exists()


HUGE = 10**400


@pytest.mark.parametrize(
    "changes",
    [
        {"calibration": {"temperature": HUGE}},
        {"preprocess": MODEL.preprocess.to_dict() | {"mean": [HUGE, 0, 0]}},
        {"preprocess": MODEL.preprocess.to_dict() | {"std": [1, 1, HUGE]}},
    ],
)
def test_numbers_that_no_float_holds(changes: dict[str, Any], made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"m\.onnx: its metadata cannot be used: "):
        files.read(forged(made[".onnx"], tmp_path / "m.onnx", **changes))


@pytest.mark.parametrize("text", ["[1]", "5", "null", '"x"', "[" * 100_000, "1" * 5000])
@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".xml", ".pt2"])
def test_json_that_is_no_table(suffix: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"m{suffix}").write_bytes(b"x")
    monkeypatch.setitem(files.READERS, suffix, lambda *_: text)
    with pytest.raises(UserError, match=rf"m{suffix}: "):
        files.read(tmp_path / f"m{suffix}")


@pytest.mark.parametrize("text", ["<a>" * 50_000, "<a>" * 50_000 + "</a>" * 50_000])
def test_xml_of_any_depth(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text(text)
    with pytest.raises(UserError, match=r"m\.xml: "):
        files.read(tmp_path / "m.xml")


def test_xml_that_grows_while_it_is_read(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
    (tmp_path / "m.xml").write_text(f'<!DOCTYPE a [<!ENTITY e0 "{"x" * 1000}">{entities}]><a>&e9;</a>')
    with pytest.raises(UserError, match=r"m\.xml: a model of OpenVINO is expected"):
        files.read(tmp_path / "m.xml")


@given(suffix=st.sampled_from([".safetensors", ".onnx", ".xml", ".mnn", ".pt2"]), data=st.data())
@settings(max_examples=150)
def test_nothing_but_a_sentence_comes_of_a_changed_file(
    suffix: str, data: st.DataObject, made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A few bytes of a real one, mostly near its beginning and end where the structure is; some are cut off."""
    if suffix not in made:
        return
    whole = bytearray(made[suffix].read_bytes())
    ends = st.one_of(st.integers(0, 3000), st.integers(len(whole) - 3000, len(whole) - 1), st.integers(0, len(whole)))
    for at, value in data.draw(st.lists(st.tuples(ends, st.integers(0, 255)), min_size=1, max_size=6)):
        if at < len(whole):
            whole[at] = value
    if data.draw(st.booleans()):
        del whole[data.draw(ends) :]
    path = tmp_path_factory.mktemp("changed") / f"m{suffix}"
    path.write_bytes(whole)
    if suffix == ".xml":
        path.with_suffix(".bin").write_bytes(made[".xml"].with_suffix(".bin").read_bytes())
    if whole == made[suffix].read_bytes():
        files.read(path)
        return
    if suffix == ".pt2":  # its digest is of names and bytes of members, not of what else zip writes of them
        with contextlib.suppress(UserError):
            files.read(path)
        return
    with pytest.raises(UserError) as failure:
        files.read(path)
    assert str(failure.value).startswith(str(path.with_suffix("")))


# What engines do with it


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "changes",
    [
        {"preprocess": MODEL.preprocess.to_dict() | {"size": 8}},
        {"preprocess": MODEL.preprocess.to_dict() | {"size": 10**6, "resize_to": 10**6}},
        {"preprocess": MODEL.preprocess.to_dict() | {"channels": 1, "mean": [0.5], "std": [0.5]}},
        {"export": {"input": "float", "precision": "fp32"}},
    ],
    ids=["smaller", "gigantic", "grey", "float"],
)
def test_a_network_that_takes_something_else_than_is_said(
    changes: dict[str, Any], name: str, made: dict[str, Path], tmp_path: Path
) -> None:
    """MNN would answer, from what lies in memory beside the pictures."""
    needs(name)
    path = forged(made[".onnx"], tmp_path / "m.onnx", **changes)
    with pytest.raises(UserError, match=r"m\.onnx: its network takes pictures of \(16, 16, 3\), and its metadata say"):
        open_engine(path, name, threads=1)


@pytest.mark.parametrize("what", ["file", "prepared"])
def test_mnn_sees_no_damaged_file(what: str, made: dict[str, Path], tmp_path: Path, place: Path) -> None:
    """It ends the whole process at about one in twenty-five of those with a few changed bytes."""
    needs("mnn")
    assert str(place).startswith(str(tmp_path))
    path = tmp_path / "m.mnn"
    path.write_bytes(made[".mnn" if what == "file" else ".onnx"].read_bytes())
    if what == "prepared":
        path = path.rename(tmp_path / "m.onnx")
        open_engine(path, "mnn", threads=1)
    spoilt = path if what == "file" else cache.folder(files.read(path).digest) / "mnn.mnn"
    data = spoilt.read_bytes()
    seen: list[bytes] = []
    load = module_of("mnn").load

    def watched(file: Any, threads: int, ready: Path | None = None) -> Any:
        seen.append((ready or file.path).read_bytes())
        return load(file, threads, ready)

    spoilt.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_of("mnn"), "load", watched)
        if what == "file":
            with pytest.raises(UserError, match=r"m\.mnn: damaged"):
                open_engine(path, "mnn", threads=1)
            assert seen == []
        else:
            open_engine(path, "mnn", threads=1)
            assert [content == spoilt.read_bytes() for content in seen] == [True], "the one that was made anew"


def test_onnx_runtime_says_nothing_of_its_own(
    made: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standard output may be JSON."""
    needs("onnx")
    source = files.read(made[".onnx"])
    data = made[".onnx"].read_bytes().replace(b"layer1.0.conv1", b"layer\x8b.0.conv1", 1)
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(UserError, match="cannot load it"):
        module_of("onnx").load(replace(source, path=tmp_path / "m.onnx"), 1)
    assert capfd.readouterr().out == ""


def test_modules_where_the_command_is_typed_are_not_run(
    made: dict[str, Path], tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mnn")
    assert not place.exists()
    for name in ("_tools", "MNN", "json", "flatbuffers"):
        (tmp_path / f"{name}.py").write_text(f"open('{name} was run', 'w')")
    monkeypatch.chdir(tmp_path)
    open_engine(made[".onnx"], "mnn", threads=1)
    assert not list(tmp_path.glob("* was run"))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_may_lie_in_memory_in_any_way(name: str, tmp_path: Path) -> None:
    engine, ours = engine_of(MODEL, name, tmp_path), pictures(6, SMALL)
    fixed = ours.copy()
    fixed.flags.writeable = False
    for shown in (ours, ours[::2], ours[::-1], ours[1:5], np.asfortranarray(ours), ours[:, ::-1], fixed):
        np.testing.assert_allclose(engine(shown), expected(MODEL, shown.copy()), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_no_pictures_give_no_answers_and_change_none(name: str, tmp_path: Path) -> None:
    """OpenVINO gave the last answers once more, for no pictures and for the next ones."""
    engine, ours = engine_of(MODEL, name, tmp_path), pictures(6, SMALL)
    engine(ours)
    answers = engine(ours[:0])
    assert (answers.shape, answers.dtype) == ((0, 7), np.float32)
    np.testing.assert_allclose(engine(ours[::-1]), expected(MODEL, ours[::-1].copy()), atol=1e-4)


# The cache


def test_a_graph_on_its_way_is_nobody_elses(made: dict[str, Path], place: Path) -> None:
    """Another thread or process that is done takes away its own, also after an error."""
    source = files.read(made[".safetensors"])
    with preparing.place_of(source) as (folder, lasting):
        assert lasting
        graph = preparing.graph_of(source, folder).path
        code = f"""
from pathlib import Path
from resnetkit.engines import files, preparing
with preparing.place_of(files.read(Path({str(made[".safetensors"])!r}))):
    pass
"""
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"XDG_CACHE_HOME": str(place)})
        assert graph.exists()
    assert list(folder.iterdir()) == []

    def fail() -> None:
        with preparing.place_of(source) as (folder, _):
            preparing.graph_of(source, folder)
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        fail()
    assert list(folder.iterdir()) == []


def counted(monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> list[Any]:
    calls: list[Any] = []
    call: Callable[..., Any] = getattr(target, name)
    monkeypatch.setattr(target, name, lambda *given: (calls.append(given), call(*given))[1])
    return calls


def test_what_another_version_of_ours_prepared_is_made_anew(
    made: dict[str, Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("onnx")
    assert not place.exists()
    calls = counted(monkeypatch, module_of("onnx"), "prepare")
    for turn, ours in enumerate(("1", "1", "2", "2")):
        monkeypatch.setattr(preparing, "__version__", ours)
        open_engine(made[".onnx"], "onnx", threads=1)
        assert len(calls) == 1 + turn // 2


def test_engines_asked_for_by_name_keep_the_cache_small_and_say_what_is_used(
    made: dict[str, Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("onnx")
    old = place / "resnetkit" / "old"
    old.mkdir(parents=True)
    (old / "file").write_bytes(bytes(1000))
    os.utime(old, (0, 0))
    limit = cache.prune
    monkeypatch.setattr(cache, "prune", lambda keep: limit(keep, limit=100))
    open_engine(made[".onnx"], "onnx", threads=1)
    (used,) = (place / "resnetkit").iterdir()
    os.utime(used, (0, 0))
    open_engine(made[".onnx"], "onnx", threads=1)
    assert used.stat().st_mtime > 0


def test_a_place_for_once_is_pruned_by_nobody(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside it lie files of others: it is in the folder for temporary ones."""
    needs("onnx")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    calls = counted(monkeypatch, cache, "prune")
    assert open_engine(made[".onnx"], "onnx", threads=1).engine == "onnx"
    assert calls == []
    assert opening.cache is cache


GIVEN_UP = """
import signal, sys, threading
from pathlib import Path
from resnetkit.engines import files
from resnetkit.engines.starting import module_of
from resnetkit.engines.samples import sample_pictures

path, name = Path(sys.argv[1]), sys.argv[2]
source = files.read(path)
engines = [module_of(name).load(source, 1)]
engines[0](sample_pictures(1, source.about.preprocess.size, source.about.preprocess.channels))
thread = threading.Thread(target=engines.clear)
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.parametrize("name", NAMES)
def test_signals_arrive_after_an_engine_was_given_up_in_another_thread(made: dict[str, Path], name: str) -> None:
    """As a server does whose models were loaded anew. OpenVINO's plugin takes the stack for signals away with it."""
    needs(name)
    command = [sys.executable, "-c", GIVEN_UP, made[SUFFIXES[name]], name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["handled"]), done.stderr

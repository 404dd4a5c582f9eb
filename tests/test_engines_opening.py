"""A model in an engine: what is prepared is used again, and checked; auto asks once; what is missing is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnetkit.engines import cache, files, opening, preparing, race
from resnetkit.engines.engine import version
from resnetkit.engines.opening import open_engine
from resnetkit.engines.race import Entry, Lane
from resnetkit.engines.starting import module_of
from resnetkit.engines.writing import write
from resnetkit.errors import UserError
from resnetkit.weights import save_model
from test_engines_parity import COLOUR, make_model, pictures

pytestmark = pytest.mark.skipif(
    any(version(name) is None for name in ("onnx", "openvino", "mnn")), reason="needs all engines"
)
SMALL = replace(COLOUR, size=16)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file, and a cache in which nothing is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_model(make_model("resnet8-cifar", SMALL), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture
def exported(model: Path) -> Path:
    write(make_model("resnet8-cifar", SMALL), "onnx", model.with_name("m.onnx"), "uint8")
    return model.with_name("m.onnx")


def place_of(path: Path) -> Path:
    return cache.folder(files.read(path).digest)


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Notes each time an engine prepares something."""
    done: list[str] = []
    prepare = module_of(name).prepare
    monkeypatch.setattr(module_of(name), "prepare", lambda *given: (done.append(name), prepare(*given))[1])
    return done


def answers(path: Path, engine: str, **options: Any) -> Any:
    return open_engine(path, engine, threads=1, **options).run(pictures(3, SMALL))


@pytest.mark.parametrize("name", ["onnx", "openvino", "mnn"])
@pytest.mark.parametrize("kind", ["model", "exported"])
def test_what_is_prepared_is_used_again(
    kind: str, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path: Path = request.getfixturevalue(kind)
    done, told = counted(monkeypatch, name), []
    first = answers(path, name, say=told.append)
    assert told == [f"{path}: preparing it for {name}, once on this machine"]
    np.testing.assert_array_equal(answers(path, name, say=told.append), first)
    assert (len(done), len(told)) == (1, 1)
    left = sorted(other.name for other in place_of(path).iterdir())
    assert not any(other.startswith((".", "graph")) for other in left), left


@pytest.mark.parametrize("name", ["onnx", "openvino", "mnn"])
def test_what_is_damaged_or_of_another_machine_is_made_anew(
    name: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, first = counted(monkeypatch, name), answers(model, name)
    for file in preparing.files_of(name, place_of(model)):
        data = file.read_bytes()
        for spoilt in (data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], data[:100], b""):
            before = len(done)
            file.write_bytes(spoilt)
            np.testing.assert_array_equal(answers(model, name), first)
            assert len(done) == before + 1
        file.unlink()
        np.testing.assert_array_equal(answers(model, name), first)
    before = len(done)
    monkeypatch.setattr(cache, "processor", lambda: "another one")
    np.testing.assert_array_equal(answers(model, name), first)
    assert len(done) == before + 1


@pytest.mark.parametrize("name", ["onnx", "openvino", "mnn", "auto"])
@pytest.mark.race
def test_a_cache_that_cannot_be_written(name: str, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered, nothing is timed, and the answers are there."""
    first = answers(exported, "onnx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(exported))  # a file
    monkeypatch.setattr(race, "race", None)
    found = open_engine(exported, name, threads=1)
    np.testing.assert_allclose(found.run(pictures(3, SMALL)), first, atol=1e-3)
    if name == "auto":
        assert found.why == "the cache cannot be written, so nothing was timed"


def test_a_damaged_model_is_noticed_though_its_prepared_form_is_whole(exported: Path) -> None:
    answers(exported, "onnx")
    data = exported.read_bytes()
    at = len(data) // 3
    exported.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(UserError, match=r"m\.onnx: damaged: its SHA-256"):
        answers(exported, "onnx")


def test_nothing_is_left_of_a_preparation_that_was_stopped(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Any, target: Path) -> None:
        target.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module_of("onnx"), "prepare", stop)
    with pytest.raises(KeyboardInterrupt):
        answers(model, "onnx")
    assert [path.name for path in place_of(model).iterdir()] == []


# Auto


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """Races in which the one with the longest name wins, and what took part in each."""
    run: list[tuple[list[str], int]] = []

    def timed(entries: list[Entry], batches: list[int], **_: Any) -> list[Lane]:
        run.append(([entry.engine for entry in entries], batches[0]))
        return [Lane(entry.engine, "1", seconds={batches[0]: [1 / len(entry.engine)]}) for entry in entries]

    monkeypatch.setattr(race, "race", timed)
    return run


@pytest.mark.race
def test_auto_is_asked_once_for_a_batch_and_threads(
    model: Path, races: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    found = open_engine(model, batch=16, threads=1, say=told.append)
    assert found.engine == "openvino"
    assert found.why == "fastest here: openvino 128, torch 80, onnx 64, mnn 48 images/s in batches of 16"
    assert told[0] == f"{model}: looking for the fastest engine, once on this machine (torch, onnx, openvino, mnn)"
    assert open_engine(model, batch=16, threads=1).why == found.why
    assert [batch for _, batch in races] == [16]
    open_engine(model, batch=1, threads=1)
    open_engine(model, batch=16, threads=2)
    assert [batch for _, batch in races] == [16, 1, 16]
    monkeypatch.setattr(cache, "processor", lambda: "another one")
    open_engine(model, batch=16, threads=1)
    assert len(races) == 4
    monkeypatch.setattr(opening, "installation", lambda name: f"another {name}")
    open_engine(model, batch=16, threads=1)
    assert len(races) == 5


@pytest.mark.race
def test_for_one_answer_the_soonest_engine_is_asked_for_apart(model: Path, races: list[Any]) -> None:
    assert open_engine(model, batch=1, once=True, threads=1).why == (
        "soonest here: openvino 0.12, torch 0.2, onnx 0.25, mnn 0.33 s to load and answer"
    )
    open_engine(model, batch=1, once=True, threads=1)
    assert open_engine(model, batch=1, threads=1).why.startswith("fastest here: ")
    assert [batch for _, batch in races] == [1, 1]


@pytest.mark.race
def test_an_exported_file_races_without_torch(exported: Path, races: list[Any]) -> None:
    assert open_engine(exported, threads=1).engine == "openvino"
    assert races == [(["onnx", "openvino", "mnn"], 16)]


@pytest.mark.race
def test_an_engine_that_cannot_have_the_network_does_not_race(
    model: Path, races: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("cannot")

    monkeypatch.setattr(module_of("openvino"), "prepare", refuse)
    assert open_engine(model, threads=1).engine == "torch"
    assert races == [(["torch", "onnx", "mnn"], 16)]


@pytest.mark.race
def test_with_one_engine_nothing_is_timed(exported: Path, races: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "installation", lambda name: "1" if name == "onnx" else None)
    assert open_engine(exported, threads=1).why == "no other is installed"
    assert races == []


@pytest.mark.race
def test_a_real_race(exported: Path) -> None:
    """Small as it is, each engine answers as ONNX Runtime does, and one of them wins."""
    found = open_engine(exported, threads=1)
    assert found.why.startswith("fastest here: ")
    assert "failed" not in found.why
    assert sorted(found.why.removeprefix("fastest here: ").split()[0:6:2]) == ["mnn", "onnx", "openvino"]


# What cannot be


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("onxx", "engine 'onxx': choose from auto, onnx, openvino, mnn, torch; did you mean 'onnx'?"),
        ("torch", "engine torch: cannot run {path} (fp32); choose from onnx, openvino, mnn"),
    ],
)
def test_an_engine_that_is_none_or_not_for_this_file(engine: str, message: str, exported: Path) -> None:
    with pytest.raises(UserError) as failure:
        open_engine(exported, engine)
    assert str(failure.value) == message.format(path=exported)


def test_an_engine_that_is_not_installed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnetkit.engines.engine.installation", lambda _: None)
    with pytest.raises(UserError, match=r"engine mnn: MNN is not installed; run: pip install 'resnetkit\[mnn\]'"):
        open_engine(exported, "mnn")


def test_a_graph_that_the_engine_refuses(exported: Path) -> None:
    """Sealed as ours are, but with a node that nobody knows."""
    onnx = pytest.importorskip("onnx")
    from resnetkit.sealing import PLACE, seal

    network = onnx.load(exported)
    network.graph.node[5].op_type = "Nonsense"
    meta = json.loads(network.metadata_props[0].value)
    network.metadata_props[0].value = json.dumps(meta | {"sha256": PLACE})
    exported.write_bytes(seal(network.SerializeToString()))
    for engine in ("onnx", "openvino", "mnn"):
        with pytest.raises(UserError, match=r"m\.onnx: .*(cannot load|cannot convert)"):
            open_engine(exported, engine)


# The cache


def test_models_not_used_for_long_make_room(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old", "kept", "older")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(1000))
        os.utime(tmp_path / name, (0, 10_000 - 1000 * age))
    cache.prune(tmp_path / "kept", limit=2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "new"]
    cache.prune(tmp_path / "kept", limit=10)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_values_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    cache.remember(tmp_path / "a", "key", {"x": 1})
    assert cache.recall(tmp_path / "a", "key") == {"x": 1}
    for text in ("", "[1]", '{"x": ', "\0"):
        (tmp_path / "a" / "key.json").write_text(text)
        assert cache.recall(tmp_path / "a", "key") is None
    assert cache.recall(tmp_path / "b", "key") is None


# In processes of their own

OPEN = "import sys; from resnetkit.engines.opening import open_engine; open_engine(*sys.argv[1:]); print(*sys.modules)"


def in_a_process(*arguments: str, **environment: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *arguments],
        capture_output=True,
        env=os.environ | environment,
        check=True,
        text=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ["onnx", "openvino", "mnn"])
def test_an_exported_file_needs_neither_torch_nor_onnx_and_nobody_reports_home(
    name: str, exported: Path, tmp_path: Path
) -> None:
    """Of ours there is the cache; engines would keep a name for this machine and a record of what was done."""
    home = tmp_path / "home"
    home.mkdir()
    loaded = in_a_process(str(exported), name, HOME=str(home), XDG_CACHE_HOME=str(home / ".cache"))
    assert loaded & {"torch", "onnx", "rich", "matplotlib", "resnetkit.weights", "resnetkit.model"} == set()
    assert [path.name for path in home.iterdir()] == [".cache"]
    assert [path.name for path in (home / ".cache").iterdir()] == ["resnetkit"]


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(model: Path) -> None:
    command = [sys.executable, "-c", OPEN, str(model), "onnx"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == [b"", b""]
    assert [process.returncode for process in both] == [0, 0]
    assert preparing.is_intact("onnx", place_of(model))


def test_a_run_folder_is_a_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    model.rename(tmp_path / "run" / "model.safetensors")
    assert answers(tmp_path / "run", "onnx").shape == (3, 7)


def test_mnn_leaves_nothing_where_the_command_is_typed(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its converter writes a hidden file into the folder in which it runs."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    answers(Path("..") / exported.name, "mnn")
    assert list(Path().iterdir()) == []

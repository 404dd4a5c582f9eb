"""What TensorBoard, MLflow and Weights & Biases have of a training, read back with their own readers."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resnetkit
from resnetkit import runs, trackers, tracking
from resnetkit.errors import UserError
from resnetkit.events import Event, Finished, Found, Progress
from resnetkit.trackers import BLOCK, PACKAGES, TRACKERS, Row, Story, log_records, wandb_mode
from resnetkit.training import resuming, training
from test_training import make_pictures, run_until, tiny

HERE = [name for name, packages in PACKAGES.items() if all(find_spec(package) for package in packages)]
STOPPED_AT = 7  # of 12 steps, and the last checkpoint is that of step 4, so steps 5 to 7 are trained twice

History = dict[str, list[tuple[int, float]]]  # by name: step and value


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module", autouse=True)
def nothing_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No keys, servers or caches of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("WANDB_", "MLFLOW_")):
                patch.delenv(name)
        for what in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{what}_DIR", str(tmp_path_factory.mktemp("wandb")))
        patch.setenv("NETRC", str(tmp_path_factory.mktemp("home") / "netrc"))
        yield


@pytest.fixture(scope="module")
def resumed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """A run that every tracker was told of, stopped between checkpoints and resumed; and the events of both parts."""
    run = tmp_path_factory.mktemp("runs") / "run"
    seen = run_until(training(pictures, recipe=tiny(), out=run, track=HERE), STOPPED_AT)
    return run, [*seen, *resuming(run)]


# What each of them has


def in_tensorboard(run: Path) -> tuple[History, dict[str, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    start = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    params = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in parse_session_start_info_plugin_data(start).hparams.items()
    }
    for what in ("model", "report"):
        (text,) = found.Tensors(f"{what}/text_summary")
        assert Path(text.tensor_proto.string_val[0].decode()).is_file()
    tags = found.Tags()["scalars"]
    return {name: [(each.step, each.value) for each in found.Scalars(name)] for name in tags}, params


def in_mlflow(run: Path) -> tuple[History, dict[str, Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("resnetkit")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", run.name)
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"model.safetensors", "report.html"}
    kept = next((run / "mlartifacts").rglob("model.safetensors"))
    assert kept.read_bytes() == (run / "model.safetensors").read_bytes()
    histories = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    return {
        name: [(each.step, each.value) for each in each_of] for name, each_of in histories.items()
    }, found.data.params


def in_wandb(run: Path) -> tuple[History, dict[str, Any]]:
    from wandb.proto.wandb_internal_pb2 import Record

    name = json.loads((run / "tracking.json").read_text())["name"]
    history: History = {}
    params: dict[str, Any] = {}
    kinds = []
    paths = sorted((run / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(paths) == 2
    for path in paths:
        for record in map(Record.FromString, log_records(path.read_bytes())):
            kinds.append(record.WhichOneof("record_type"))
            for item in record.run.config.update:
                params[item.key or item.nested_key[0]] = json.loads(item.value_json)
            for item in record.history.item:
                if (key := item.key or item.nested_key[0]) not in ("_step", "_timestamp", "_runtime"):
                    history.setdefault(key, []).append((record.history.step.num, json.loads(item.value_json)))
    assert "artifact" in kinds
    return history, params


READERS = {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}


@pytest.mark.parametrize("tracker", list(READERS))
def test_a_resumed_run_is_told_once_step_by_step(tracker: str, resumed: tuple[Path, list[Event]]) -> None:
    if tracker not in HERE:
        pytest.skip(f"needs {tracker}: pip install 'resnetkit[track]'")
    run, events = resumed
    history, params = READERS[tracker](run)
    stored = (lambda value: float(np.float32(value))) if tracker == "tensorboard" else float
    steps = [(step, stored(loss)) for step, loss, _ in runs.read_steps(run)]
    assert [step for step, _ in steps] == list(range(1, 13))
    assert history["loss"] == steps
    rates = {event.step: stored(event.lr) for event in events if isinstance(event, Progress)}
    assert history["lr"] == sorted(rates.items())
    assert [step for step, speed in history["images_per_second"] if speed > 0] == list(range(1, 13))
    log = runs.read_log(run)
    assert history["val/top1"] == [(line["step"], stored(line["score"]["top1"])) for line in log]
    assert history["train/loss"] == [(line["step"], stored(line["train_loss"])) for line in log]
    assert history["epoch"] == [(4, 1), (8, 2), (12, 3)]
    result = json.loads((run / "result.json").read_text())["result"]
    assert history["final/top1"] == [(12, stored(result["top1"]))]
    assert history["final/nll"] == [(12, stored(result["nll"]))]
    recipe = json.loads((run / "recipe.json").read_text())
    assert {"name", "model.arch", "run.seed"} < params.keys()
    assert str(params["model.arch"]) == recipe["model"]["arch"]
    assert float(params["optim.lr"]) == recipe["optim"]["lr"] == 0.05


@pytest.mark.skipif(not HERE, reason="needs a tracker: pip install 'resnetkit[track]'")
def test_trackers_change_nothing_of_a_run(resumed: tuple[Path, list[Event]], pictures: Path, tmp_path: Path) -> None:
    run, _ = resumed
    resnetkit.train(pictures, recipe=tiny(), out=tmp_path / "run")
    for name in ("model.safetensors", "result.json"):
        assert (run / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert not (tmp_path / "run" / "tracking.json").exists()


@pytest.mark.skipif(not HERE, reason="needs a tracker: pip install 'resnetkit[track]'")
def test_a_run_that_is_done_is_not_told_again(resumed: tuple[Path, list[Event]]) -> None:
    run, events = resumed
    assert sorted(json.loads((run / "tracking.json").read_text())["done"]) == sorted(HERE)
    said = [line for event in events if isinstance(event, Found) for line in event.lines if line.startswith("tracker ")]
    assert [line.partition(": ")[0] for line in said] == 2 * [f"tracker {name}" for name in HERE]
    again = [event for event in resuming(run) if isinstance(event, Found)]
    assert not [line for event in again for line in event.lines if line.startswith("tracker ")]


# What goes wrong


def stub(told: list[Row], fail_at: int = 0, wait: Flag | None = None) -> Callable[[Story, Iterable[list[Row]]], None]:
    def tracker(_: Story, rows: Iterable[list[Row]]) -> None:
        if wait is not None:
            wait.wait()
        for batch in rows:
            told.extend(batch)
            if fail_at and any(step >= fail_at for step, _ in batch):
                raise OSError(28, "No space left on device")

    return tracker


def lines_of(events: Iterable[Event]) -> list[str]:
    return [line for event in events if isinstance(event, Found) for line in event.lines if line.startswith("tracker ")]


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Row]]]:
    """Puts a function in the place of TensorBoard; gives what it is told."""
    monkeypatch.setattr(trackers, "PACKAGES", {**PACKAGES, "tensorboard": ()})

    def put(**how: Any) -> list[Row]:
        told: list[Row] = []
        monkeypatch.setitem(TRACKERS, "tensorboard", stub(told, **how))
        return told

    return put


def test_a_tracker_that_fails_stops_nothing(stubbed: Callable[..., list[Row]], pictures: Path, tmp_path: Path) -> None:
    told = stubbed(fail_at=3)
    events = list(training(pictures, recipe=tiny(), out=tmp_path / "run", track=["tensorboard"]))
    assert isinstance(events[-1], Finished)
    assert lines_of(events)[1:] == [
        "tracker tensorboard: [Errno 28] No space left on device; the training goes on without it"
    ]
    assert len(runs.read_steps(tmp_path / "run")) == 12
    assert told[0][0] == 1
    # Who resumes gives it another chance.
    told = stubbed()
    assert lines_of(resuming(tmp_path / "run")) == [
        f"tracker tensorboard: {tmp_path}/run/tensorboard (tensorboard --logdir {tmp_path}/run)"
    ]
    assert [step for step, numbers in told if "final/top1" in numbers] == [12]


def test_no_step_waits_for_a_slow_tracker(stubbed: Callable[..., list[Row]], pictures: Path, tmp_path: Path) -> None:
    go = Flag()
    told = stubbed(wait=go)
    seen = []
    for event in training(pictures, recipe=tiny(), out=tmp_path / "run", track=["tensorboard"]):
        seen.append(event)
        if isinstance(event, Progress) and event.step == 12:
            assert told == []
            go.set()
    assert [step for step, numbers in told if "loss" in numbers] == list(range(1, 13))
    assert lines_of(seen)[1:] == []


def test_a_tracker_that_hangs_is_left_behind(
    stubbed: Callable[..., list[Row]], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = Flag()
    stubbed(wait=go)
    monkeypatch.setattr(tracking, "END_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "STOP_SECONDS", 0.01)
    events = list(training(pictures, recipe=tiny(), out=tmp_path / "run", track=["tensorboard"]))
    go.set()
    assert isinstance(events[-1], Finished)
    assert "was not done" in lines_of(events)[1]


@pytest.mark.skipif("mlflow" not in HERE, reason="needs mlflow: pip install 'resnetkit[track]'")
def test_a_server_that_is_not_there(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    events = list(training(pictures, recipe=tiny(), out=tmp_path / "run", track=["mlflow"]))
    assert isinstance(events[-1], Finished)
    where, failed = lines_of(events)
    assert where == "tracker mlflow: http://127.0.0.1:9"
    assert failed.startswith("tracker mlflow: ")
    assert failed.endswith("; the training goes on without it")
    assert "\n" not in failed


def test_a_missing_package_is_named_before_any_work(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    wanted = r"^tracker wandb: needs wandb, which is not installed: pip install 'resnetkit\[track\]'$"
    with pytest.raises(UserError, match=wanted):
        next(training(pictures, recipe=tiny(), out=tmp_path / "run", track=["wandb"]))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"^tracker tensorbord: not known; did you mean 'tensorboard'\?; choose from"):
        next(training(pictures, recipe=tiny(), out=tmp_path / "run", track=["tensorbord"]))


def test_a_package_that_went_stops_no_resumed_run(
    stubbed: Callable[..., list[Row]], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubbed()
    run_until(training(pictures, recipe=tiny(), out=tmp_path / "run", track=["tensorboard"]), 5)
    monkeypatch.setattr(trackers, "PACKAGES", {**PACKAGES, "tensorboard": ("nowhere_at_all",)})
    events = list(resuming(tmp_path / "run"))
    assert isinstance(events[-1], Finished)
    assert lines_of(events)[1:] == [
        "tracker tensorboard: needs nowhere_at_all, which is not installed: pip install 'resnetkit[track]'; "
        "the training goes on without it"
    ]


@pytest.mark.parametrize("text", ["", "[]", '{"trackers": 1}', '{"name": "x", "trackers": ["gone"], "done": []}'])
def test_what_a_run_keeps_may_be_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / "tracking.json").write_text(text)
    assert list(tracking.tracked(iter(()), tmp_path, tiny(), 0)) == []


# Weights & Biases


def test_wandb_is_online_where_there_is_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode() == "offline"


def leveldb_log(records: list[bytes]) -> tuple[bytes, list[int]]:
    """Records in the log format, and where each of them ends, as its description says."""
    data, ends = bytearray(b":W&B\xe1\xbe\x00"), []
    for record in records:
        kind, rest = 1, record
        while True:
            room = BLOCK - len(data) % BLOCK
            if room < 7:
                data += bytes(room)
                continue
            part, rest = rest[: room - 7], rest[room - 7 :]
            last = not rest
            number = (1 if last else 2) if kind == 1 else (4 if last else 3)
            data += struct.pack("<IHB", 0, len(part), number) + part
            kind = 0
            if last:
                break
        ends.append(len(data))
    return bytes(data), ends


@given(
    sizes=st.lists(st.sampled_from([0, 1, 100, BLOCK - 14, BLOCK - 8, BLOCK, 3 * BLOCK]), max_size=6),
    cut=st.floats(0, 1),
)
def test_whole_records_are_read_of_a_file_cut_off(sizes: list[int], cut: float) -> None:
    records = [bytes([number]) * size for number, size in enumerate(sizes)]
    data, ends = leveldb_log(records)
    at = round(cut * len(data))
    assert list(log_records(data[:at])) == [record for record, end in zip(records, ends, strict=True) if end <= at]

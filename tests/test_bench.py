"""`resnet bench`: what it measures, in JSON and on paper, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resnetkit import bench as benching
from resnetkit.bench import Bench, bench, chosen, random_model
from resnetkit.complexity import count
from resnetkit.engines.engine import ENGINES, version
from resnetkit.engines.race import Entry, Lane
from resnetkit.errors import UserError
from resnetkit.weights import save_model

Resnet = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def found() -> Bench:
    return bench("resnet8-cifar", batches=[2, 1], threads=[1], seconds=0)


def test_all_engines_at_hand_are_timed(found: Bench) -> None:
    (timed,) = found.timed
    installed = {name for name in ENGINES if version(name) is not None}
    assert {lane.engine for lane in timed.lanes} == installed
    assert found.missing.keys() == ENGINES.keys() - installed
    assert found.unable == {}
    assert found.preparing.keys() == installed - {"torch"}
    assert found.batches == (1, 2)
    assert timed.chosen.keys() == {1, 2}
    assert all(name in installed and name in why for name, why in timed.chosen.values())
    assert timed.limits.sgemm > 0
    assert timed.limits.copy > 0


def test_shares_are_of_the_limits(found: Bench) -> None:
    (timed,) = found.timed
    multiply_adds = count(random_model("resnet8-cifar").network.arch, 32).multiply_adds
    rate = 1e9 * timed.limits.sgemm / (2 * multiply_adds)
    assert found.share(timed, rate) == pytest.approx(1)
    assert found.streaming(timed) * timed.limits.copy * 1e9 == pytest.approx(4 * found.complexity.parameters)


def test_json_has_everything(found: Bench, resnet: Resnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "bench", lambda *_, **__: found)
    code, out, err = resnet("bench", "resnet8-cifar", "--json")
    assert (code, err) == (0, "")
    value = json.loads(out)
    assert value.keys() >= {"model", "architecture", "machine", "versions", "multiply_adds", "missing", "unable"}
    assert value["machine"].keys() == {"cpu", "cores", "system"}
    (timed,) = value["timed"]
    assert timed.keys() == {"threads", "limits", "streaming", "lanes", "chosen"}
    for lane in timed["lanes"]:
        assert lane["error"] is None
        assert lane["version"] == version(lane["engine"])
        for batch in ("1", "2"):
            figures = lane["figures"][batch]
            assert figures["rate"] * figures["p50"] == pytest.approx(int(batch))
            assert figures["p99"] >= figures["p50"]
            assert figures["runs"] == len(lane["seconds"][batch])
            assert figures["share"] > 0
    assert {row["engine"] for row in timed["chosen"].values()} <= {lane["engine"] for lane in timed["lanes"]}


def test_the_tables_fit_eighty_columns(found: Bench, resnet: Resnet, monkeypatch: pytest.MonkeyPatch) -> None:
    (timed,) = found.timed
    out_of_it = replace(timed.lanes[0], error="its process was ended by SIGSEGV", seconds={})
    sick = replace(found, timed=(replace(timed, lanes=(*timed.lanes[1:], out_of_it)),))
    sick = replace(sick, missing={"mnn": "engine mnn: MNN is not installed; run: …"}, unable={"onnx": "cannot"})
    monkeypatch.setattr(benching, "bench", lambda *_, **__: sick)
    code, out, _ = resnet("bench", "resnet8-cifar")
    assert code == 0
    tables = [line for line in out.splitlines() if line.startswith(tuple(ENGINES)) and "auto" not in line]
    assert max(map(len, tables)) <= 80
    assert f"{timed.lanes[0].engine}: its process was ended by SIGSEGV" in out
    assert "engine mnn: MNN is not installed; run: …" in out
    assert f"auto takes {timed.chosen[1][0]}: " in out


def test_a_batch_that_nobody_masters_takes_no_others_along() -> None:
    lanes = [Lane("onnx", "1", seconds={1: [0.1]}), Lane("mnn", "1", seconds={1: [0.2], 9: []})]
    assert chosen(lanes, (1, 9))[1][0] == "onnx"
    assert chosen(lanes, (1, 9)).keys() == {1}
    with pytest.raises(UserError, match="no engine runs this model here"):
        chosen(lanes, (9,))


def test_random_weights_are_the_same_and_give_numbers(one_thread: None) -> None:
    assert one_thread is None
    a, b = random_model("resnet20-cifar"), random_model("resnet20-cifar")
    for key, value in a.network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), b.network.state_dict()[key].numpy())
    variances = [value for key, value in a.network.state_dict().items() if key.endswith("running_var")]
    assert all(float(value.std()) > 0 for value in variances)
    assert len(a.classes) == 10


def test_a_model_file_is_timed_where_it_lies(tmp_path: Path, found: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save_model(random_model("resnet8-cifar"), path)
    raced: list[Entry] = []

    def race(entries: list[Entry], *_: object, **__: object) -> list[Lane]:
        raced.extend(entries)
        return list(found.timed[0].lanes)

    monkeypatch.setattr(benching, "race", race)
    monkeypatch.setattr(benching, "limits", lambda *_: found.timed[0].limits)
    value = bench(path, batches=[1], threads=[1]).to_dict()
    assert {entry.path for entry in raced} == {path}
    assert (value["model"], value["architecture"]) == (str(path), "resnet8-cifar")
    assert [each.name for each in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bench --batch 0", "--batch 0: must be whole numbers from 1 on between commas, such as 1,8,32"),
        ("bench --batch 1,,8", "--batch 1,,8: must be whole numbers"),
        ("bench --threads x", "--threads x: must be whole numbers"),
        ("bench --threads -1", "--threads -1: must be whole numbers"),
        ("bench ./nowhere", "nowhere: no such model file or run folder"),
        ("bench nowhere.onnx", "nowhere.onnx: no such model file or run folder"),
        ("bench resnet19", "architecture 'resnet19': choose from"),
        ("bench a b", "unexpected extra argument"),
    ],
)
def test_wrong_input_gets_one_sentence(line: str, message: str, resnet: Resnet) -> None:
    code, out, err = resnet(*line.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_leaves_nothing_behind(signum: int, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "resnetkit", "bench", "resnet8-cifar"]
    process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("*/random.safetensors")):
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and children.exists() and not children.read_text().split():
        time.sleep(0.05)
    left = children.read_text().split() if children.exists() else []
    process.send_signal(signum)
    assert process.wait() == code
    # torch makes an empty folder of its own where it is imported in some orders; it is none of ours.
    assert [path for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")] == []
    end = time.monotonic() + 10
    while any(map(is_running, left)) and time.monotonic() < end:
        time.sleep(0.05)
    assert [child for child in left if is_running(child)] == []


def is_running(number: str) -> bool:
    """Whether a process does anything; one that has ended may wait for somebody to ask how."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False

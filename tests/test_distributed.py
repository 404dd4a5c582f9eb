"""Several processes that train and score as one: the same pictures, the same bits after a kill, one to speak.

benchmarks/ranks.py is the long form.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import resnetkit
from resnetkit import runs
from resnetkit.data.loader import Reader, training_batches
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.transforms import Preprocess
from resnetkit.distributed import Ranks, joined
from resnetkit.errors import UserError
from resnetkit.recipe import Augment, Optim
from resnetkit.recipe_file import with_settings
from resnetkit.rendezvous import patience, torchrun
from resnetkit.shipped import shipped
from resnetkit.training import Wish, check_shares, find_folder

SETTINGS = (  # not run.deterministic, which takes torch two seconds to switch on and changes nothing on a CPU
    *("model.arch=resnet8-cifar", "data.size=12", "optim.batch=8", "optim.lr=0.05", "run.precision=fp32"),
    *("schedule.epochs=8", "run.checkpoint_steps=4", "run.eval_epochs=3"),
    "run.deterministic=false",
)
EVERYTHING = (
    *("augment.jitter=0.3", "augment.mixup=0.4", "augment.cutmix=1", "optim.accumulate=2", "optim.clip=1"),
    *("optim.ema=0.9", "optim.stochastic_depth=0.3"),
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "RESNETKIT_TIMEOUT": "60"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around two colours: 40 pictures of 12x12 pixels."""
    folder = tmp_path_factory.mktemp("data") / "colours"
    dice = np.random.Generator(np.random.Philox(0))
    for name, colour in (("blue", (60, 70, 160)), ("red", (160, 70, 60))):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            noise = dice.normal(0, 60, (12, 12, 3)) + colour
            Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def options(*more: str) -> list[str]:
    return [word for setting in (*SETTINGS, *more) for word in ("--set", setting)]


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def start(world: int, *words: str | Path, absent: int = 0, **variables: str) -> list[subprocess.Popen[str]]:
    """Processes with the variables that torchrun would set; the last `absent` ones are not started."""
    told = ONE_THREAD | {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "resnetkit", *map(str, words)]
    return [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank), **variables},
        )
        for rank in range(world - absent)
    ]


def end(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str, str]:
    """Exit codes, and all that was written on standard output and standard error."""
    texts = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], *map("".join, zip(*texts, strict=True))


def elastic(*words: str | Path) -> subprocess.Popen[str]:
    """The command line of the manual."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    return subprocess.Popen(
        [*command, "-m", "resnetkit", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ONE_THREAD,
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    """The ranks that torchrun has started, in the order of their process ids."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return sorted(map(int, text.split()))


def wait_for(text: str, process: subprocess.Popen[str]) -> None:
    """Read standard output up to a line that begins so."""
    assert process.stdout is not None
    assert any(line.startswith(text) for line in process.stdout), process.communicate()[1]


def written(run: Path) -> dict[str, bytes | list[object]]:
    """All of a finished run that shall not depend on what happened on the way."""
    times = ("seconds", "images_per_second")
    log: list[object] = [{key: line[key] for key in line if key not in times} for line in runs.read_log(run)]
    names = ["model.safetensors", "result.json", "recipe.json", "steps.csv", "checkpoints/best.safetensors"]
    return {"log": log, **{name: (run / name).read_bytes() for name in names}}


def losses(run: Path) -> list[float]:
    return [loss for _, loss, _ in runs.read_steps(run)]


# What needs one process


@given(st.integers(0, 1000), st.integers(1, 20))
def test_shares_follow_each_other_and_are_even(n: int, world: int) -> None:
    shares = []
    for rank in range(world):
        ranks = Ranks()
        ranks.rank, ranks.world = rank, world
        shares.append(ranks.share(n))
    assert [place for begin, end in shares for place in range(begin, end)] == list(range(n))
    assert {end - begin for begin, end in shares} <= {n // world, n // world + 1}


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_the_pictures_of_every_step_are_the_same(world: int) -> None:
    """Pixels after augmentation, put together in the order of ranks, are those of one process."""
    pixels = np.random.Generator(np.random.Philox(1)).integers(256, size=(40, 8, 8, 3), dtype=np.uint8)
    data = Data("x", Arrays(pixels, (("x", 40),)), np.zeros(40, np.int64), ("a",), {"train": np.arange(40)})
    reader = Reader(data, Preprocess(8, "shorter", 8, "bilinear", 3, "RGB", (0.5,) * 3, (0.5,) * 3, True), threads=2)
    augment = Augment(crop="pad", jitter=0.3, erase=0.5)

    def epoch(share: tuple[int, int] | None) -> list[np.ndarray]:
        batches = training_batches(reader, np.arange(40), augment, seed=3, epoch=2, batch=16, share=share)
        return [np.concatenate([batch.pictures.reshape(-1), batch.indices]) for batch in batches]

    def part(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        return values[:-count], values[-count:]

    whole, size = epoch(None), 16 // world
    shared = [epoch((rank * size, (rank + 1) * size)) for rank in range(world)]
    assert len(whole) == 2
    for step, batch in enumerate(whole):
        pictures, indices = zip(*(part(own[step], size) for own in shared), strict=True)
        assert (np.concatenate([*pictures, *indices]) == batch).all()


@pytest.mark.parametrize(
    ("optim", "world", "advice"),
    [
        (Optim(batch=128), 3, r"optim.batch=128: 3 processes cannot share it evenly; take 126 or 129, or another"),
        (Optim(batch=2), 4, r"optim.batch=2: 4 processes cannot share it evenly; take 4, or another"),
        (Optim(batch=32, ghost_batch=12), 2, r"optim.ghost_batch=12: does not divide .*optim.batch=32 over 2"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(optim: Optim, world: int, advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        check_shares(optim, world)


def test_a_process_alone_makes_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined() as ranks:
        assert (type(ranks), ranks.rank, ranks.world) == (Ranks, 0, 1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "RANK is set, but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start with torchrun"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        (dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"), "1"), "must be below"),
        (
            dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"), "1") | {"MASTER_PORT": "http"},
            "MASTER_PORT=http: must be a whole number",
        ),
    ],
)
def test_variables_that_make_no_sense(variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        torchrun()


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_that_makes_no_sense(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNETKIT_TIMEOUT", text)
    with pytest.raises(UserError, match=f"RESNETKIT_TIMEOUT={text}: must be seconds"):
        patience()


# Training together


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "alone"
    codes, out, errors = end(start(2, "train", pictures, *options(*EVERYTHING), "--out", run))
    assert codes == [0, 0], errors
    assert out.count("next: resnet predict") == 1, "rank 0 alone prints"
    return run


def test_the_run_folder_is_that_of_one_process(undisturbed: Path, pictures: Path, tmp_path: Path) -> None:
    resnetkit.train(pictures, recipe=with_settings(shipped("small"), [*SETTINGS, *EVERYTHING]), out=tmp_path / "run")

    def files(run: Path) -> list[str]:
        return sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))

    assert files(undisturbed) == files(tmp_path / "run")
    environment = runs.read_environment(undisturbed)
    assert environment.world_size == 2
    assert environment.ranks == (socket.gethostname(),) * 2
    own = resnetkit.evaluate(undisturbed)
    assert json.loads((undisturbed / "result.json").read_text())["result"]["correct"] == own.correct


@pytest.mark.slow
def test_a_rank_killed_and_started_again_ends_with_the_same_bytes(
    undisturbed: Path, pictures: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = elastic("train", pictures, *options(*EVERYTHING), "--out", run)
    wait_for("epoch 5/8", process)
    os.kill(children(process)[1], signal.SIGKILL)
    wait_for("resuming", process)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert written(run) == written(undisturbed)
    assert list(tmp_path.rglob("*.part")) == []


def test_a_signal_to_one_rank_stops_all_and_one_process_goes_on(pictures: Path, tmp_path: Path) -> None:
    """At another world size it goes on at the same picture: every step is there once."""
    run = tmp_path / "run"
    processes = start(2, "train", pictures, *options("schedule.epochs=30"), "--out", run)
    wait_for("epoch  2/30", processes[0])
    processes[1].send_signal(signal.SIGTERM)
    codes, _, errors = end(processes)
    assert codes == [143, 143]
    assert errors.startswith("resnet: stopped after step ")
    assert errors.count("resnet:") == errors.count("\n") == 1
    finished = resnetkit.resume(run)
    assert finished.run == run
    assert [step for step, *_ in runs.read_steps(run)] == list(range(1, 4 * 30 + 1))


@pytest.mark.parametrize(
    "setting", ["optim.ghost_batch=4", pytest.param("optim.sync_norm=true", marks=pytest.mark.slow)]
)
def test_two_ranks_compute_what_one_process_does(setting: str, pictures: Path, tmp_path: Path) -> None:
    """Up to the order of sums: losses of all steps, and the running statistics in the score of the last epoch."""
    settings = ("schedule.epochs=2", "run.eval_epochs=1", setting)
    codes, _, errors = end(start(2, "train", pictures, *options(*settings), "--out", tmp_path / "two"))
    assert codes == [0, 0], errors
    resnetkit.train(pictures, recipe=with_settings(shipped("small"), [*SETTINGS, *settings]), out=tmp_path / "one")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 8
    np.testing.assert_allclose(one, two, rtol=1e-4)
    scores = [runs.read_log(tmp_path / name)[-1]["score"]["nll"] for name in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_scores_do_not_depend_on_the_number_of_ranks(undisturbed: Path, tmp_path: Path) -> None:
    """300 pictures are three batches, for two ranks one and two; the answers are the same to the bit."""
    dice = np.random.Generator(np.random.Philox(5))
    for number in range(300):
        path = tmp_path / "many" / ("blue", "red")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(256, size=(12, 12, 3), dtype=np.uint8)).save(path)
    (tmp_path / "many" / "red" / "1.png").write_bytes(b"no picture")
    words = ("evaluate", undisturbed, tmp_path / "many", "--json", "--bad", "skip")
    codes, out, errors = end(start(2, *words))
    assert (codes, errors) == ([0, 0], "")
    alone = resnetkit.evaluate(undisturbed, tmp_path / "many", bad="skip")
    assert json.loads(out) == json.loads(json.dumps(alone.to_dict()))
    assert (alone.n, len(alone.bad)) == (299, 1)


# What goes wrong


@pytest.mark.parametrize(
    ("world", "settings", "message"),
    [
        (2, ("optim.batch=9",), "resnet: optim.batch=9: 2 processes cannot share it evenly"),
        (2, ("optim.lr=1e30", "schedule.warmup_steps=0"), "resnet: step "),
        (2, ("optim.lr=none",), "resnet: optim.lr"),
    ],
)
def test_wrong_input_is_one_sentence_of_one_rank(
    world: int, settings: tuple[str, ...], message: str, pictures: Path, tmp_path: Path
) -> None:
    codes, _, errors = end(start(world, "train", pictures, *options(*settings), "--out", tmp_path / "run"))
    assert codes == [2] * world
    assert errors.startswith(message)
    assert errors.count("\n") == 1


def test_a_rank_that_cannot_go_on_says_why(pictures: Path, tmp_path: Path) -> None:
    """The other one, whose connection breaks, says nothing."""
    run = tmp_path / "run"
    processes = start(2, "train", pictures, *options("run.cache_mb=0", "schedule.epochs=500"), "--out", run)
    wait_for("epoch", processes[0])
    copies = sorted(pictures.rglob("*.png"))
    kept = {path: path.read_bytes() for path in copies}
    try:
        for path in copies:
            path.write_bytes(b"no picture any more")
        codes, _, errors = end(processes)
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
    assert codes == [2, 2]
    assert "cannot be read" in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_a_rank_that_is_gone_is_named(pictures: Path, tmp_path: Path) -> None:
    processes = start(2, "train", pictures, *options("schedule.epochs=500"), "--out", tmp_path / "run")
    wait_for("epoch", processes[0])
    processes[1].kill()
    codes, _, errors = end(processes)
    assert codes == [2, -signal.SIGKILL]
    assert errors == (
        f"resnet: rank 1 on {socket.gethostname()}: not there any more (killed, or cut off from this network); "
        "the same command goes on from the last checkpoint\n"
    )


@pytest.mark.parametrize(
    ("world", "absent", "variables", "message"),
    [
        (2, 1, {}, r"resnet: rank 1: did not come to 127.0.0.1:\d+ within 2 s"),
        (1, 0, {"RANK": "1", "WORLD_SIZE": "2"}, r"resnet: rank 1: 127.0.0.1:\d+: nobody answers there within 2 s"),
    ],
)
def test_ranks_that_do_not_meet(
    world: int, absent: int, variables: dict[str, str], message: str, undisturbed: Path
) -> None:
    began = time.monotonic()
    processes = start(world, "evaluate", undisturbed, absent=absent, RESNETKIT_TIMEOUT="2", **variables)
    codes, _, errors = end(processes)
    assert codes == [2]
    assert re.match(message, errors)
    assert errors.count("\n") == 1
    assert time.monotonic() - began < 60


def test_a_run_of_another_recipe_is_not_gone_on_with(undisturbed: Path, pictures: Path, tmp_path: Path) -> None:
    """What torchrun starts again goes on; a finished run, other pictures or another recipe are refused."""
    recipe, ranks = with_settings(shipped("small"), [*SETTINGS, *EVERYTHING]), Ranks()
    wish = Wish(pictures, None, recipe, None, ())
    for out, message in ((None, "--out: say where the run goes"), (undisturbed, "exists already")):
        with pytest.raises(UserError, match=message):
            find_folder(ranks, out, wish)
    ranks.restarted = True
    assert find_folder(ranks, undisturbed, wish) == (undisturbed, True)
    for other, message in (
        (replace(wish, recipe=with_settings(recipe, ["optim.lr=0.1"])), "was begun with optim.lr=0.05, not 0.1"),
        (replace(wish, data=tmp_path), "was begun with data "),
        (replace(wish, val=tmp_path), "was begun with --val None, not "),
    ):
        with pytest.raises(UserError, match=message):
            find_folder(ranks, undisturbed, other)

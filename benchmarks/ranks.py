"""Several processes that train and score as one: exactness, and what it costs.

    python benchmarks/ranks.py FOLDER PICTURES PHOTOGRAPHS [--kills 20] [--only kills,curves,scores,overhead,loader]
        [--out results/ranks.json]

FOLDER is that of examples/demo_pictures.py, PICTURES holds CIFAR-10 as train/ and test/ with a folder for each class,
PHOTOGRAPHS some hundred JPEGs of full size in class folders. A part that is not done again stays in the file as it is.

kills     one of two gloo ranks is killed with SIGKILL at random moments and torchrun starts both again, until the kills
          are used up: the run ends with the bytes of the one left alone.
curves    one process and two at the same global batch with ghost batches of half of it: the loss of every step.
scores    the same pictures scored by one, two and three processes.
overhead  a training alone, under torchrun with one process, and with two, in turns.
loader    of a batch of 256 pictures, the processor time that is spent on anything but reading, decoding and augmenting.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common import spread, write
from kill9 import losses, tensors
from resnetkit.data.loader import Indices, Reader, draws, order, training_batches
from resnetkit.data.pictures import Data
from resnetkit.data.source import open_data
from resnetkit.data.transforms import DRAWS, Preprocess, augmented
from resnetkit.recipe import Augment
from resnetkit.runs import read_steps

RESNET = ["-m", "resnetkit"]
RECIPE = ["--recipe", "digits", "--set", "run.checkpoint_steps=7", "--set", "run.eval_epochs=2"]
REPEATS = 5


def command(world: int, *words: str, restarts: int = 0) -> list[str]:
    """A `resnet` command line, under torchrun for a `world` of processes; 0 is one process without torchrun."""
    if not world:
        return [sys.executable, *RESNET, *words]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    return [*torchrun, f"--max-restarts={restarts}", *RESNET, *words]


def run(world: int, *words: str, threads: int = 1) -> str:
    """Do it, and give what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command(world, *words), capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def ranks_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The process ids of the ranks that torchrun has started."""
    try:
        return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def kills(folder: str, scratch: Path, wanted: int) -> dict[str, Any]:
    """The part `kills`."""
    begin = time.perf_counter()
    alone, other = scratch / "alone", scratch / "killed"
    run(2, "train", folder, *RECIPE, "--out", str(alone))
    seconds = time.perf_counter() - begin
    hits: list[dict[str, Any]] = []
    dice = random.Random(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = command(2, "train", folder, *RECIPE, "--out", str(other), restarts=wanted + 5)
    begin = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        while len(hits) < wanted and process.poll() is None:
            time.sleep(dice.uniform(0, 12 + seconds / 14))
            before = ranks_of(process)
            if len(before) != 2 or process.poll() is not None:
                continue
            victim = dice.randrange(2)
            os.kill(before[victim], signal.SIGKILL)
            killed = time.perf_counter()
            saved = sorted(path.name for path in (other / "checkpoints").glob("step-*"))
            while set(ranks_of(process)) & set(before) or len(ranks_of(process)) < 2:
                if process.poll() is not None:
                    break
                time.sleep(0.05)
            again = round(time.perf_counter() - killed, 2)
            hits.append({"last_checkpoint": saved[-1] if saved else None, "seconds_until_started_again": again})
        errors = process.communicate()[1].decode()
    if process.returncode:
        sys.exit(errors)
    files = ["model.safetensors", *(f"checkpoints/{path.name}" for path in (alone / "checkpoints").glob("step-*"))]
    same = {name: tensors(alone / name) == tensors(other / name) for name in sorted(files)}
    same["losses in log.jsonl"] = losses(alone) == losses(other)
    for name in ("result.json", "steps.csv", "model.safetensors"):
        same[f"bytes of {name}"] = (alone / name).read_bytes() == (other / name).read_bytes()
    return {
        "what": "one of two ranks killed with SIGKILL at random moments, started again by torchrun: same bytes",
        "command": " ".join(["torchrun --nproc-per-node 2 -m resnetkit train", *RECIPE]),
        "kills": len(hits),
        "same": same,
        "left_behind": sorted(path.name for path in other.rglob("*.part")),
        "undisturbed_seconds": round(seconds, 1),
        "killed_seconds": round(time.perf_counter() - begin, 1),
        "hits": hits,
    }


def curves(folder: str, scratch: Path) -> dict[str, Any]:
    """The part `curves`. `control` is one process that adds up in the order of two ranks, so what floats alone do."""
    words = ["train", folder, "--recipe", "digits", "--epochs", "10", "--set", "optim.ghost_batch=32"]
    cases = {"one": (0, []), "two": (2, []), "control": (0, ["--set", "optim.accumulate=2"])}
    for name, (world, more) in cases.items():
        run(world, *words, *more, "--out", str(scratch / name))
    losses = {name: np.array([row[1] for row in read_steps(scratch / name)]) for name in cases}
    scores = {name: json.loads((scratch / name / "result.json").read_text())["result"] for name in cases}
    about = {
        "what": "loss of every step, one process against two at the same global batch of 64 with ghost batches of 32",
        "steps": len(losses["one"]),
        "correct": {name: score["correct"] for name, score in scores.items()},
        "n": scores["one"]["n"],
    }
    return {
        **about,
        **apart(losses["one"], losses["two"]),
        "control": {"what": "one process, the batch in two parts", **apart(losses["one"], losses["control"])},
        "two_against_control": apart(losses["control"], losses["two"]),
    }


def apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, Any]:
    """How far two curves of a loss are from each other."""
    relative = np.abs(one - other) / one
    return {
        "largest_relative_difference": {str(n): float(relative[:n].max()) for n in (1, 3, 10, 50, len(one))},
        "mean_relative_difference": float(relative.mean()),
    }


def scores(pictures: str, scratch: Path) -> dict[str, Any]:
    """The part `scores`."""
    model = scratch / "model"
    settings = ["--model", "resnet20-cifar", "--set", "schedule.steps=60", "--set", "run.eval_epochs=1000"]
    run(0, "train", pictures, *settings, "--out", str(model))
    found, seconds = {}, {}
    for world in (0, 1, 2, 3):
        begin = time.perf_counter()
        found[world] = json.loads(run(world, "evaluate", str(model), pictures, "--split", "test", "--json"))
        seconds[world] = round(time.perf_counter() - begin, 1)
    return {
        "what": "the same pictures scored by one process alone and by 1, 2 and 3 under torchrun",
        "n": {world: result["n"] for world, result in found.items()},
        "correct": {world: result["correct"] for world, result in found.items()},
        "same_results_to_the_bit": all(result == found[0] for result in found.values()),
        "seconds_with_starting": seconds,
    }


def overhead(folder: str, scratch: Path) -> dict[str, Any]:
    """The part `overhead`: images/s of the epochs after the first, one thread for each process."""
    cases = {"alone": 0, "torchrun, 1 process": 1, "torchrun, 2 processes": 2}
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    words = ["train", folder, "--recipe", "digits", "--epochs", "4", "--set", "run.checkpoint_steps=10000"]
    for turn in range(REPEATS):
        for name in list(cases)[:: 1 if turn % 2 == 0 else -1]:
            out = scratch / f"{name.replace(' ', '')}-{turn}"
            run(cases[name], *words, "--out", str(out))
            lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
            speeds[name].append(float(np.median([line["images_per_second"] for line in lines[1:]])))
    ratios = {
        name: spread([a / b for a, b in zip(own, speeds["alone"], strict=True)])
        for name, own in speeds.items()
        if name != "alone"
    }
    return {
        "what": "ResNet-20 on 16x16 pictures, batch 64, one thread a process, in turns: global images/s",
        "images_per_second": {name: spread(own) for name, own in speeds.items()},
        "against_alone": ratios,
    }


def loader(pictures: str, photographs: str) -> dict[str, Any]:
    """The part `loader`: batches as training gets them, against the same work on pictures in a bare loop."""
    small, large = open_data(pictures), open_data(photographs)
    return {
        "what": "share of the loader's processor time that is not reading, decoding, augmenting; one thread, batch 256",
        "small": share(small, small.splits["test"][:1024], 32, Augment(crop="pad", pad=4), 200),
        "photographs": share(large, np.resize(np.arange(len(large.labels)), 512), 224, Augment(crop="resized"), 20),
    }


def share(data: Data, indices: Indices, size: int, augment: Augment, turns: int) -> dict[str, Any]:
    """Over short turns, because a machine that others use too is as fast in one as in the next, and many."""
    preprocess = Preprocess(size, "shorter", size, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
    reader = Reader(data, preprocess, threads=1)
    batches = len(indices) // 256

    def since(began: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds, and those that this process computed: a busy machine makes the former noise."""
        return np.array([time.perf_counter(), time.process_time()]) - began

    def ours(epoch: int) -> NDArray[np.float64]:
        begin = since(np.zeros(2))
        count = sum(1 for _ in training_batches(reader, indices, augment, seed=0, epoch=epoch, batch=256))
        assert count == batches
        return since(begin)

    def bare(epoch: int) -> NDArray[np.float64]:
        begin = since(np.zeros(2))
        permuted = indices[order(0, epoch, len(indices))]
        table = draws(0, epoch, 0, batches * 256)
        assert table.shape[1] == DRAWS
        for place, index in enumerate(permuted[: batches * 256].tolist()):
            augmented(reader.open(index), preprocess, augment, table[place])
        return since(begin)

    ours(0), bare(0)
    shares = []
    for turn in range(turns):
        pair = (ours(turn), bare(turn)) if turn % 2 else (bare(turn), ours(turn))[::-1]
        shares.append(1 - pair[1] / pair[0])
    return {
        "pictures": batches * 256,
        "size": size,
        "turns": turns,
        "share": quartiles([float(processor) for _, processor in shares]),
        "share_by_the_clock": quartiles([float(clock) for clock, _ in shares]),
    }


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("pictures")
    parser.add_argument("photographs")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", default="kills,curves,scores,overhead,loader")
    parser.add_argument("--out", type=Path, default=Path("results/ranks.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in args.only.split(","):
        with tempfile.TemporaryDirectory() as place:
            scratch = Path(place)
            if part == "kills":
                found[part] = kills(args.folder, scratch, args.kills)
            elif part == "curves":
                found[part] = curves(args.folder, scratch)
            elif part == "scores":
                found[part] = scores(args.pictures, scratch)
            elif part == "overhead":
                found[part] = overhead(args.folder, scratch)
            elif part == "loader":
                found[part] = loader(args.pictures, args.photographs)
            else:
                parser.error(f"--only {part}: no such part")
        write(args.out, found)


if __name__ == "__main__":
    main()

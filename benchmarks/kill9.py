"""Killed with SIGKILL at random moments and resumed each time, a run ends with the same bytes.

    python benchmarks/kill9.py FOLDER [--kills 20] [--out results/kill9.json]

FOLDER is that of examples/demo_pictures.py. One run is left alone; the other one is killed, process by process, until
the kills are used up: each after a random time of up to what a process needs to start and a fourteenth of what the
undisturbed run took. So starting, reading pictures, training, writing a checkpoint and evaluating can all be hit.
Compared are the weights of model.safetensors and of every checkpoint that is left, the log's losses, and result.json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors import safe_open

from common import write

RESNET = [sys.executable, "-m", "resnetkit"]
RECIPE = ["--recipe", "digits", "--set", "run.checkpoint_steps=7", "--set", "run.eval_epochs=2"]
STARTING = 2.5  # seconds, about, until a process trains


def start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*RESNET, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def killed(run: Path, data: str, kills: int, longest: float) -> list[dict[str, Any]]:
    """Train in `run` through that many kills; what each one hit."""
    hits: list[dict[str, Any]] = []
    dice = random.Random(0)
    while not (run / "report.html").exists():
        process = start("resume", str(run)) if run.exists() else start("train", data, *RECIPE, "--out", str(run))
        wait = dice.uniform(0, longest) if len(hits) < kills else None
        try:
            _, errors = process.communicate(timeout=wait)
            if process.returncode:
                sys.exit(f"a process ended by itself with {process.returncode}: {errors.decode()}")
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
            hits.append({"seconds": round(wait or 0, 2), "last_checkpoint": saved[-1] if saved else None})
    return hits


def tensors(path: Path) -> dict[str, bytes]:
    """Every tensor's bytes; the metadata name the run's own command line."""
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118 - not a mapping


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["train_loss"]) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results/kill9.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        alone, other = Path(scratch) / "alone", Path(scratch) / "killed"
        begin = time.perf_counter()
        _, errors = (process := start("train", args.folder, *RECIPE, "--out", str(alone))).communicate()
        if process.returncode:
            sys.exit(errors.decode())
        seconds = time.perf_counter() - begin
        hits = killed(other, args.folder, args.kills, seconds / 14 + STARTING)
        files = ["model.safetensors", *(f"checkpoints/{path.name}" for path in (alone / "checkpoints").glob("step-*"))]
        same = {name: tensors(alone / name) == tensors(other / name) for name in sorted(files)}
        same["losses in log.jsonl"] = losses(alone) == losses(other)
        same["result.json"] = (alone / "result.json").read_bytes() == (other / "result.json").read_bytes()
        left = sorted(path.name for path in other.rglob("*.part"))
    write(
        args.out,
        {
            "what": "a digits run killed with SIGKILL at random moments, against one left alone: same bytes",
            "command": " ".join(["resnet train", *RECIPE]),
            "kills": len(hits),
            "same": same,
            "left_behind": left,
            "undisturbed_seconds": round(seconds, 1),
            "hits": hits,
        },
    )
    if len(hits) < args.kills or not all(same.values()):
        sys.exit("not the same")


if __name__ == "__main__":
    main()

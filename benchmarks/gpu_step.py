"""Training steps and answers on a GPU, from pictures that lie in its memory, beside plain PyTorch.

    python benchmarks/gpu_step.py [--network resnet50] [--batch 256] [--out results/gpu/step-resnet50.json]
    python benchmarks/gpu_step.py --device cpu --network resnet20-cifar --size 32 --batch 8 --windows 2 --steps 2

Training: forward, backward and step of SGD with momentum in bf16, by

    plain             eager PyTorch as people write it: channels_last, autocast, torch.optim.SGD, cross-entropy
    plain, autotuned  the same network by torch.compile(mode="max-autotune"); a GPU alone
    resnetkit         `Loop.take_step`, as a recipe's training makes it, normalisation of uint8 pictures included
    … deterministic   the same with run.deterministic, trained twice: are the losses the same to the bit
    … compiled        with run.compile and run.cuda_graphs; a GPU alone
    … checkpointing   with run.activation_checkpointing

and answers of the same network, in bf16, eager and compiled. One side after the other, each alone in memory: a warm-up
of a window, then `--windows` windows of `--steps` steps, of which the median counts. Memory is the peak that torch's
allocator says. The share of the limit counts three passes of the network's multiply-adds in training, one for answers.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import write
from resnetkit import checkpoint
from resnetkit.complexity import count
from resnetkit.data.audit import audit
from resnetkit.data.loader import Batch
from resnetkit.data.pictures import Arrays, Data
from resnetkit.loop import Loop, determinism
from resnetkit.model import Architecture, ResNet
from resnetkit.passes import compiled
from resnetkit.recipe import Augment, Model, Optim, Recipe, Run, Schedule
from resnetkit.recipe import Data as DataChoices
from resnetkit.resolve import resolve
from resnetkit.training import make_loop
from resnetkit.weights import named_architecture

PEAK = {"H100": 989e12, "H200": 989e12}  # dense bf16, operations a second, by NVIDIA's data sheets
CLASSES = 1000
Step = Callable[[], Tensor]  # gives the loss, or logits, unread


@dataclass(frozen=True)
class OnDevice(Batch):
    """A batch that lies where it is wanted."""

    kept: tuple[Tensor, ...] = ()

    def to(self, device: torch.device | str) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        x, y = self.kept
        return x, y


def pictures(asked: argparse.Namespace) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    dice = np.random.default_rng(0)
    shape = (asked.batch, asked.size, asked.size, 3)
    return dice.integers(256, size=shape, dtype=np.uint8), dice.integers(CLASSES, size=asked.batch)


def plain(asked: argparse.Namespace, mode: str | None) -> Step:
    """Training as people write it; `mode` is torch.compile's, None: eager."""
    torch.manual_seed(0)
    network = ResNet(named_architecture(asked.network, classes=CLASSES)).to(asked.device).train()
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = network if mode is None else torch.compile(network, mode=mode, dynamic=False)
    sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images, labels = pictures(asked)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(asked.device).float().div(255).sub(0.45).div(0.225)
    x, y = x.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels).to(asked.device)

    def step() -> Tensor:
        sgd.zero_grad(set_to_none=True)
        with torch.autocast(asked.device, torch.bfloat16):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        sgd.step()
        return loss.detach()

    return step


def ours(asked: argparse.Namespace, folder: Path, **switches: bool) -> Step:
    """Steps of our own loop, with switches of the run."""
    images, labels = pictures(asked)
    everything = np.arange(asked.batch)
    names = tuple(f"class {index}" for index in range(CLASSES))
    data = Data("pictures", Arrays(images, (("train", asked.batch),)), labels, names, {"train": everything})
    recipe = Recipe(
        model=Model(arch=asked.network),
        data=DataChoices(size=asked.size, channels=3),
        augment=replace(Augment(), crop="none"),
        optim=Optim(lr=0.1, batch=asked.batch),
        schedule=Schedule(steps=1_000_000, warmup_steps=0),
        run=Run(device=asked.device, precision="bf16", **{"deterministic": False, **switches}),
    )
    seen = audit(data, threads=2)
    (folder / checkpoint.FOLDER).mkdir(parents=True)
    loop: Loop = make_loop(folder, resolve(recipe, data, seen, None), data, seen)
    if loop.recipe.run.compile:
        loop.forward = compiled(loop.module, graphs=loop.recipe.run.cuda_graphs)
    batch = OnDevice(images, labels, everything, kept=Batch(images, labels, everything).to(asked.device))
    loop.state.network.train()

    def step() -> Tensor:
        with determinism(loop.recipe):
            total = loop.take_step(batch, 0, 0.1)
        loop.state.step += 1
        return total[0] / asked.batch

    return step


def answers(asked: argparse.Namespace, mode: str | None) -> Step:
    """Logits of the network that is evaluated."""
    network = ResNet(named_architecture(asked.network, classes=CLASSES)).to(asked.device, torch.bfloat16).eval()
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = network if mode is None else torch.compile(network, mode=mode, dynamic=False)
    x = torch.randn(asked.batch, 3, asked.size, asked.size, dtype=torch.bfloat16, device=asked.device)
    x = x.contiguous(memory_format=torch.channels_last)

    def step() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = forward(x)
        return logits

    return step


def measured(asked: argparse.Namespace, make: Callable[[], Step], passes: int, arch: Architecture) -> dict[str, Any]:
    """Pictures a second, and the peak of memory, of one side alone."""
    gc.collect()
    on_gpu = asked.device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step, seconds = make(), []
    for _ in range(1 + asked.windows):
        wait(on_gpu)
        begin = time.perf_counter()
        for _ in range(asked.steps):
            step()
        wait(on_gpu)
        seconds.append(time.perf_counter() - begin)
    windows = [asked.steps * asked.batch / taken for taken in seconds[1:]]
    median = statistics.median(windows)
    found = {"images_per_second": median, "windows": [round(each, 1) for each in windows]}
    if on_gpu:
        name = torch.cuda.get_device_name()
        limit = next((rate for word, rate in PEAK.items() if word in name), None)
        work = 2 * passes * count(arch, asked.size).multiply_adds
        found |= {"share_of_limit": work * median / limit if limit else None, "clock_mhz": torch.cuda.clock_rate()}
        found["peak_memory_mib"] = torch.cuda.max_memory_allocated() >> 20
    return found


def wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def losses(make: Callable[[], Step], steps: int) -> list[float]:
    """Of the first steps."""
    step = make()
    return [float(step()) for _ in range(steps)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    arch = named_architecture(asked.network, classes=CLASSES)
    with tempfile.TemporaryDirectory() as scratch:

        def side(name: str, **switches: bool) -> Callable[[], Step]:
            return lambda: ours(asked, Path(tempfile.mkdtemp(prefix=name, dir=scratch)) / "run", **switches)

        training: dict[str, Callable[[], Step]] = {
            "plain": lambda: plain(asked, None),
            "resnetkit": side("eager"),
            "resnetkit, deterministic": side("same", deterministic=True),
            "resnetkit, checkpointing": side("again", activation_checkpointing=True),
        }
        answering: dict[str, Callable[[], Step]] = {"eager": lambda: answers(asked, None)}
        if asked.device == "cuda":
            training["plain, autotuned"] = lambda: plain(asked, "max-autotune")
            training["resnetkit, compiled"] = side("graphs", compile=True, cuda_graphs=True)
            answering["autotuned"] = lambda: answers(asked, "max-autotune")
        found = {name: measured(asked, make, 3, arch) for name, make in training.items()}
        told = {name: measured(asked, make, 1, arch) for name, make in answering.items()}
        first, second = (losses(training["resnetkit, deterministic"], asked.steps) for _ in range(2))
    rates = {name: row["images_per_second"] for name, row in found.items()}
    write(
        asked.out or Path(f"results/gpu/step-{asked.network}.json"),
        {
            "what": f"{asked.network} at {asked.size}x{asked.size}, batch {asked.batch}, bf16, pictures in memory",
            "device": torch.cuda.get_device_name() if asked.device == "cuda" else "cpu",
            "training": found,
            "against_plain": {name: rate / rates["plain"] for name, rate in rates.items()},
            "answers": told,
            "deterministic": {
                "losses_equal": first == second,
                "steps": asked.steps,
                "slower": rates["resnetkit"] / rates["resnetkit, deterministic"],
            },
            "cudnn": torch.backends.cudnn.version() if asked.device == "cuda" else None,
            "steps": asked.steps,
        },
    )


if __name__ == "__main__":
    main()

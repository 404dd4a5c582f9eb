"""What every benchmark writes beside its figures: the machine, the versions, the revision."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from resnetkit.paper.records import T95


def sgemm_gflops() -> float:
    """How fast the machine is just now."""
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    return 2 * 1024**3 / min(seconds) / 1e9


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, and the speed of a matrix product."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "cpu": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "sgemm_gflops": round(sgemm_gflops(), 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Of everything that decides a figure."""
    names = ("resnetkit", "torch", "numpy", "pillow", "simplejpeg", "cykooz-resizer")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def revision() -> str:
    """The commit that was measured."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()


def spread(found: list[float]) -> dict[str, float]:
    """The median of repeats, and between what they lie."""
    return {"median": statistics.median(found), "lowest": min(found), "highest": max(found)}


def student(values: list[float]) -> tuple[float, float, float]:
    """The mean of what seeds gave, and Student's 95 % interval of it."""
    mean, half = statistics.fmean(values), T95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the result with what it was measured on, and print it."""
    result = {**result, "revision": revision(), "machine": machine(), "versions": versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "recipe"}, indent=1))

"""Two nodes that are network namespaces, one of which is cut off from the network while they train together.

    sudo python benchmarks/cutoff.py FOLDER [--out results/cutoff.json]

FOLDER is that of examples/demo_pictures.py. Each node has one rank, torchrun's c10d rendezvous between them; a bridge
joins them, and a node is cut off by taking its port off the bridge: packets vanish and no one is told. Once both nodes
are needed (--nnodes 2): both must end within the stated time, and say which rank is missing. Once one is enough
(--nnodes 1:2): the node that is left must go on from the last checkpoint and finish. Needs root and iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import write

BRIDGE, NODES = "rkbridge", ("rk-a", "rk-b")
TIMEOUT = 20  # RESNETKIT_TIMEOUT, seconds
LONGEST = 240  # until the benchmark gives up
RECIPE = ["--recipe", "digits", "--epochs", "15", "--set", "run.checkpoint_steps=20", "--set", "run.eval_epochs=30"]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Two namespaces 10.77.0.1 and 10.77.0.2 on a bridge."""
    with contextlib.ExitStack() as undo:
        ip("link", "add", BRIDGE, "type", "bridge")
        undo.callback(ip, "link", "del", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, node in enumerate(NODES, start=1):
            ip("netns", "add", node)
            undo.callback(ip, "netns", "del", node)
            ip("link", "add", f"port-{node}", "type", "veth", "peer", "name", "eth0", "netns", node)
            undo.callback(ip, "link", "del", f"port-{node}")
            ip("link", "set", f"port-{node}", "master", BRIDGE, "up")
            ip("-n", node, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", node, "link", "set", device, "up")
        yield


def start(number: int, nodes: str, folder: str, run: Path) -> subprocess.Popen[str]:
    """torchrun on one of the nodes."""
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", f"--nnodes={nodes}"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29400", "--rdzv-id=cutoff", "--max-restarts=2"),
        *(
            f"--local-addr=10.77.0.{number}",
            f"--rdzv-conf=join_timeout=60,last_call_timeout=5,is_host={int(number == 1)}",
        ),
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "RESNETKIT_TIMEOUT": str(TIMEOUT),
        "GLOO_SOCKET_IFNAME": "eth0",
    }
    command = [*torchrun, "-m", "resnetkit", "train", folder, *RECIPE, "--out", str(run)]
    log = run.with_name(f"{run.name}-{NODES[number - 1]}.log").open("w")
    return subprocess.Popen(
        ["ip", "netns", "exec", NODES[number - 1], *command], stdout=log, stderr=log, text=True, env=environment
    )


def said(run: Path, node: str) -> list[str]:
    """What resnet said on a node beside its progress."""
    text = run.with_name(f"{run.name}-{node}.log").read_text()
    return [line for line in text.splitlines() if line.startswith(("resnet:", "resuming"))]


def trial(nodes: str, folder: str, run: Path) -> dict[str, Any]:
    """Train, cut node b off, and see when what ends."""
    with network():
        processes = [start(number, nodes, folder, run) for number in (1, 2)]
        try:
            steps = run / "steps.csv"
            begin = time.monotonic()
            while not steps.exists() or len(steps.read_text().splitlines()) < 60:
                if time.monotonic() > begin + LONGEST or processes[0].poll() is not None:
                    sys.exit(run.with_name(f"{run.name}-{NODES[0]}.log").read_text())
                time.sleep(0.2)
            ip("link", "set", f"port-{NODES[1]}", "nomaster")
            cut = time.monotonic()
            heard: dict[str, float] = {}
            ended: dict[str, float] = {}
            while len(ended) < 2 and time.monotonic() < cut + LONGEST:
                for node, process in zip(NODES, processes, strict=True):
                    now = round(time.monotonic() - cut, 1)
                    if said(run, node):
                        heard.setdefault(node, now)
                    if process.poll() is not None:
                        ended.setdefault(node, now)
                time.sleep(0.2)
        finally:
            for node in NODES:  # torchrun's own processes too, which hold the namespace
                found = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True, check=False)
                for pid in found.stdout.split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            for process in processes:
                process.wait()
    return {
        "nnodes": nodes,
        "steps_when_cut": len(steps.read_text().splitlines()),
        "seconds_until_said": heard,
        "seconds_until_torchrun_ended": ended,
        "exit_codes": {node: process.returncode for node, process in zip(NODES, processes, strict=True)},
        "said": {node: said(run, node) for node in NODES},
        "finished": (run / "report.html").exists(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--out", type=Path, default=Path("results/cutoff.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        trials = [trial(nodes, args.folder, Path(scratch) / f"run-{nodes[0]}") for nodes in ("2", "1:2")]
    both, one = trials
    write(
        args.out,
        {
            "what": "two nodes (network namespaces) train together, one is cut off: what is said and when it ends",
            "timeout_seconds": TIMEOUT,
            "command": " ".join(["resnet train", *RECIPE]),
            "both_needed": both,
            "one_is_enough": one,
        },
    )
    named = any("rank" in line and "not there any more" in line for line in both["said"][NODES[0]])
    if not (named and one["finished"]):
        sys.exit(json.dumps(trials, indent=1))


if __name__ == "__main__":
    main()

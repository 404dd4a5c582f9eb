"""A server on the loopback under load: throughput against the bare engine, latency, overload, memory.

    python benchmarks/serving.py PICTURE.jpg [--seconds 10] [--repeats 5] [--requests 50000] [--out FILE]

The load is made by hey (https://github.com/rakyll/hey), a process of its own on the same cores, so what it takes is
missing to the server. The server is `resnet serve` in a process of its own, with an untrained resnet18, in the engine
that --engine names.

throughput  pictures a second of 16 connections that ask without a pause, over those of the same engine called with its
            best batch of made-up pictures, in turns; and over what decoding with the engine leaves, in one process
            (`resnet predict` on copies of the picture)
latency     the 99th percentile at seven tenths of that throughput, and at twice it: there of the accepted ones, and of
            those that got 503
memory      resident, before and after so many requests
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common import spread, write
from resnetkit.engines.opening import open_engine
from resnetkit.engines.samples import sample_pictures
from resnetkit.prediction import predict
from resnetkit.serving.limits import Limits

SIZES = (1, 2, 4, 8, 16)
CONNECTIONS = 16  # that ask without a pause: a full batch; more than the latency allows would only be refused
LOADS = {0.7: 8, 2.0: 128}  # share of the throughput, and connections that ask at this rate together


def network(folder: Path, name: str) -> Path:
    """An untrained network as a model file."""
    import torch

    from resnetkit.data.transforms import Preprocess
    from resnetkit.model import ResNet
    from resnetkit.weights import ModelFile, named_architecture, save_model

    torch.manual_seed(0)
    classes = tuple(f"class-{number}" for number in range(1000))
    built = ResNet(named_architecture(name, classes=1000)).eval()
    side = 32 if name.endswith("-cifar") else 224
    resized = side * 8 // 7
    how = Preprocess(side, "shorter", resized, "bilinear", 3, "RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), True)
    path = folder / f"{name}.safetensors"
    save_model(ModelFile(built, classes, how), path)
    return path


@contextmanager
def served(model: Path, *more: str) -> Iterator[int]:
    """The port of a server of the model, which is ended in order."""
    command = [sys.executable, "-m", "resnetkit", "serve", str(model), "--port", "0", *more]
    with tempfile.NamedTemporaryFile("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            while process.poll() is None:
                said = Path(log.name).read_text()
                if found := re.search(r"^ready: .*:(\d+)$", said, re.MULTILINE):
                    break
                time.sleep(0.1)
            yield int(found[1])  # type: ignore[index]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, "the server did not end in order"


def figure(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return float(re.search(rf"^{name} (.+)$", text, re.MULTILINE)[1])  # type: ignore[index]


def memory(port: int) -> float:
    """Resident bytes of the server."""
    return figure(port, "process_resident_memory_bytes")


def hey(
    port: int, picture: Path, *, connections: int, seconds: float = 0, requests: int = 0, rate: float = 0
) -> dict[str, Any]:
    """One load: answers a second, their statuses, and seconds of the accepted ones."""
    how = ["-z", f"{seconds}s"] if seconds else ["-n", str(requests)]
    how += ["-c", str(connections), *(["-q", str(rate / connections)] if rate else [])]
    command = ["hey", *how, "-t", "60", "-o", "csv", "-m", "POST", "-D", str(picture)]
    begin = time.perf_counter()
    said = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/predict"], capture_output=True, text=True, check=True
    ).stdout
    took = time.perf_counter() - begin
    rows = [line.split(",") for line in said.splitlines()[1:]]
    statuses: dict[str, int] = {}
    for row in rows:
        statuses[row[6]] = statuses.get(row[6], 0) + 1
    good = sorted(float(row[0]) for row in rows if row[6] == "200")
    refused = sorted(float(row[0]) for row in rows if row[6] == "503")
    return {
        "answers_per_second": len(good) / took,
        "statuses": statuses,
        "p50": good[len(good) // 2] if good else None,
        "p99": good[int(0.99 * len(good))] if good else None,
        "refused_p99": refused[int(0.99 * len(refused))] if refused else None,
    }


def rate_of(run: Any, batch: np.ndarray, seconds: float) -> float:
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        run(batch)
        done += len(batch)
    return done / (time.perf_counter() - begin)


def throughput(port: int, model: Path, picture: Path, engine: str, seconds: float, repeats: int) -> dict[str, Any]:
    """The server and the bare engine in turns."""
    opened = open_engine(model, engine, batch=16)
    pixels = sample_pictures(16, 224, 3)
    batches = {size: np.ascontiguousarray(pixels[:size]) for size in SIZES}
    best = max(SIZES, key=lambda size: rate_of(opened.run, batches[size], 1.0))
    copies = [picture] * 64
    list(predict(model, copies[:16], engine=engine))
    bare, over_http, whole = [], [], []
    for _ in range(repeats):
        bare.append(rate_of(opened.run, batches[best], seconds / 2))
        over_http.append(hey(port, picture, connections=CONNECTIONS, seconds=seconds)["answers_per_second"])
        begin = time.perf_counter()
        list(predict(model, copies, engine=engine))
        whole.append(len(copies) / (time.perf_counter() - begin))
    return {
        "best_batch": best,
        "bare_engine": spread(bare),
        "server": spread(over_http),
        "predict": spread(whole),
        "server_over_bare": spread([one / other for one, other in zip(over_http, bare, strict=True)]),
        "server_over_predict": spread([one / other for one, other in zip(over_http, whole, strict=True)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--out", type=Path, default=Path("results/serving.json"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = network(Path(folder), "resnet18")
        with served(model, "--engine", asked.engine) as port:
            hey(port, asked.picture, connections=CONNECTIONS, seconds=2)
            speed = throughput(port, model, asked.picture, asked.engine, asked.seconds, asked.repeats)
            usual = speed["server"]["median"]
            loads = {
                f"{share:g}": hey(port, asked.picture, connections=n, seconds=asked.seconds, rate=share * usual)
                for share, n in LOADS.items()
            }
        # A network of a thousandth of the work: what is kept for a request would be kept all the same.
        small = network(Path(folder), "resnet20-cifar")
        with served(small, "--engine", asked.engine) as port:
            hey(port, asked.picture, connections=CONNECTIONS, requests=2000)
            kept = [memory(port)]
            statuses = Counter[str]()
            for _ in range(5):
                found = hey(port, asked.picture, connections=CONNECTIONS, requests=asked.requests // 5)
                statuses.update(found["statuses"])
                kept.append(memory(port))
    write(
        asked.out,
        {
            "network": "resnet18",
            "engine": asked.engine,
            "picture": {"bytes": asked.picture.stat().st_size},
            "generator": "hey",
            "connections": CONNECTIONS,
            "throughput": speed,
            "bound_seconds": Limits().latency,
            "load": loads,
            "memory": {"statuses": dict(statuses), "resident_mib": [round(each / 2**20, 1) for each in kept]},
        },
    )


if __name__ == "__main__":
    main()

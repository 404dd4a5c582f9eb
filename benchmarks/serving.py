"""A server on the loopback under load: throughput against the bare engine, latency, overload, memory.

    python benchmarks/serving.py PICTURE.jpg [--seconds 10] [--repeats 5] [--requests 50000] [--out FILE]

The load is made by hey (https://github.com/rakyll/hey), a process of its own on the same cores, so what it takes is
missing to the server. The server is `resnet serve` in a process of its own, with an untrained network, in the engine
that --engine names.

throughput  pictures a second of connections that ask without a pause, over those of the same engine called with its
            best batch of made-up pictures, in turns; and over what decoding with the engine leaves, in one process
            (`resnet predict` on copies of the picture)
load        the 99th percentile at seven tenths of that throughput, and at twice it: there of the accepted ones, and of
            those that got 503
memory      resident, before and after so many requests to a resnet20-cifar
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
CONNECTIONS = {"resnet18": 16, "resnet50": 8}  # that ask without a pause: as many as the latency allows here
SMALL = 16  # of them, for a network of a thousandth of the work
PROCESSES = 16  # of the load generator, where it asks at a rate
LOADS = {0.7: 16, 2.0: 128}  # share of the throughput, and connections that ask at this rate together


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


def hey(port: int, picture: Path, *settings: str) -> subprocess.Popen[str]:
    """A load that has begun; it prints a row for each answer."""
    command = ["hey", *settings, "-t", "60", "-o", "csv", "-m", "POST", "-D", str(picture)]
    return subprocess.Popen([*command, f"http://127.0.0.1:{port}/predict"], stdout=subprocess.PIPE, text=True)


def judged(loads: list[subprocess.Popen[str]], begin: float) -> dict[str, Any]:
    """What came of loads that began then: answers a second, their statuses, and seconds of the accepted ones."""
    printed = [load.communicate()[0] for load in loads]
    took = time.perf_counter() - begin
    assert not any(load.returncode for load in loads), "hey failed"
    rows = [line.split(",") for said in printed for line in said.splitlines()[1:]]
    good = sorted(float(row[0]) for row in rows if row[6] == "200")
    refused = sorted(float(row[0]) for row in rows if row[6] == "503")
    return {
        "answers_per_second": len(good) / took,
        "requests_per_second": len(rows) / took,
        "statuses": dict(Counter(row[6] for row in rows)),
        "p50": good[len(good) // 2] if good else None,
        "p99": good[int(0.99 * len(good))] if good else None,
        "refused_p99": refused[int(0.99 * len(refused))] if refused else None,
    }


def unpaused(port: int, picture: Path, connections: int, *settings: str) -> dict[str, Any]:
    """Connections that each ask again as soon as they have an answer."""
    begin = time.perf_counter()
    return judged([hey(port, picture, "-c", str(connections), *settings)], begin)


def at_rate(port: int, picture: Path, connections: int, seconds: float, rate: float) -> dict[str, Any]:
    """Connections that together ask so often, whatever the answers. The connections of one hey ask all at once, so
    there are several, which begin one after the other within the time from one question to the next."""
    each = connections // PROCESSES
    settings = ("-c", str(each), "-q", f"{rate / connections}", "-z", f"{seconds}s")
    begin, loads = time.perf_counter(), []
    for _ in range(PROCESSES):
        loads.append(hey(port, picture, *settings))
        time.sleep(connections / rate / PROCESSES)
    return judged(loads, begin)


def rate_of(run: Any, batch: np.ndarray, seconds: float) -> float:
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        run(batch)
        done += len(batch)
    return done / (time.perf_counter() - begin)


def throughput(
    port: int, model: Path, picture: Path, connections: int, engine: str, seconds: float, repeats: int
) -> dict[str, Any]:
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
        load = unpaused(port, picture, connections, "-z", f"{seconds}s")
        assert set(load["statuses"]) == {"200"}, load
        over_http.append(load["answers_per_second"])
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


def under_load(name: str, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """What a server of one network does."""
    model, connections = network(folder, name), CONNECTIONS[name]
    with served(model, "--engine", asked.engine) as port:
        unpaused(port, asked.picture, connections, "-z", "2s")
        speed = throughput(port, model, asked.picture, connections, asked.engine, asked.seconds, asked.repeats)
        usual = speed["server"]["median"]
        loads = {
            f"{share:g}": at_rate(port, asked.picture, n, asked.seconds, share * usual) for share, n in LOADS.items()
        }
    return {"connections": connections, "throughput": speed, "load": loads}


def memory_of_many(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """What is kept for a request would be kept of a small network's too."""
    with served(network(folder, "resnet20-cifar"), "--engine", asked.engine) as port:
        unpaused(port, asked.picture, SMALL, "-n", "2000")
        kept, statuses = [memory(port)], Counter[str]()
        for _ in range(5):
            found = unpaused(port, asked.picture, SMALL, "-n", str(asked.requests // 5))
            statuses.update(found["statuses"])
            kept.append(memory(port))
    return {"statuses": dict(statuses), "resident_mib": [round(each / 2**20, 1) for each in kept]}


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
        networks = {name: under_load(name, Path(folder), asked) for name in CONNECTIONS}
        kept = memory_of_many(Path(folder), asked)
    about = {"engine": asked.engine, "picture_bytes": asked.picture.stat().st_size, "generator": "hey"}
    write(asked.out, about | {"bound_seconds": Limits().latency, "networks": networks, "memory": kept})


if __name__ == "__main__":
    main()

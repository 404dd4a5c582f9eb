"""Broken pictures and broken requests against a running server: no crash, no 500, bounded memory, a good answer after.

    python benchmarks/hostile.py [--pictures 5000] [--bodies 500] [--out results/hostile.json]

They come from the seeded generators of tests/hostile_samples.py. The server is `resnet serve` in a process of its own,
with an untrained resnet18 and its usual limits; its memory is read from /metrics.
"""

from __future__ import annotations

import argparse
import http.client
import random
import re
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from common import write
from hostile_samples import broken_pictures, broken_requests, seeds
from serving import memory, network, served

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
PARTS = 10  # after each of which the memory is looked at
GOOD = 100  # pictures before, so that what a server keeps in any case is there


def ask(port: int, data: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", data)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def say(port: int, data: bytes) -> str:
    """The status of what is answered to bytes as they are; "closed" where nothing is."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as talk:
            talk.sendall(data)
            talk.shutdown(socket.SHUT_WR)
            said = b""
            while part := talk.recv(65536):
                said += part
    except ConnectionError:
        return "closed"
    found = STATUS.search(said)
    return found[1].decode() if found else "closed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--bodies", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/hostile.json"))
    asked = parser.parse_args()
    good = seeds(random.Random(1))[0]
    with tempfile.TemporaryDirectory() as folder:
        model = network(Path(folder), "resnet18")
        with served(model) as port:
            for _ in range(GOOD):
                assert ask(port, good) == 200
            kept, pictures = [memory(port)], Counter[str]()
            for number, data in enumerate(broken_pictures(asked.seed, asked.pictures), 1):
                pictures[str(ask(port, data))] += 1
                if number % (asked.pictures // PARTS) == 0:
                    kept.append(memory(port))
            requests = broken_requests(asked.seed, asked.bodies, f"/v2/models/{model.stem}/infer")
            bodies = Counter(say(port, data) for data in requests)
            after, last = memory(port), ask(port, good)
    mib = [round(value / 2**20, 1) for value in kept]
    result = {
        "pictures": {"n": asked.pictures, "answers": dict(sorted(pictures.items()))},
        "bodies": {"n": asked.bodies, "answers": dict(sorted(bodies.items()))},
        "resident_mib": {"while_pictures_come": mib, "after_bodies": round(after / 2**20, 1)},
        "next_good_request": last,
        "seed": asked.seed,
    }
    write(asked.out, result)


if __name__ == "__main__":
    main()

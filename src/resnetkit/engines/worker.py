"""An engine in a process of its own: `python -m resnetkit.engines.worker`, and `Worker`, the side that asks.

Two engines in one process spin against each other's threads, which halves their speed, and a crash of one would be
ours. A request is a line of JSON on standard input, its answer one on standard output:

  {"start": "onnx", "path": …, "ready": …, "threads": 2}   {"seconds": 0.3, "memory": 51200000, "precision": "fp32"}
  {"run": 8, "times": 10}                                  {"seconds": [0.21, …], "memory": …, "peak": …}
  {"answers": 4}                                           {"answers": [[…], …]}, logits of the sample pictures
  {"limits": 2}                                            {"sgemm": 97.1, "copy": 21.4}, see `limits`

seconds  of start: importing the engine's library and loading. Python, numpy and reading what the file says of itself
         come before that, as they do with every engine.
memory   bytes by which the process has grown since before the import; peak: at most while this batch size ran. None
         where the system does not tell.

What goes wrong is answered with {"error": a sentence}.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from resnetkit.engines.engine import Engine, Logits, Pixels
from resnetkit.engines.files import Source, peek
from resnetkit.engines.limits import measured
from resnetkit.engines.samples import sample_pictures
from resnetkit.engines.starting import start as engine_of
from resnetkit.errors import UserError

# -P: what lies in the folder where somebody types the command is no module of ours.
COMMAND = (sys.executable, "-P", "-m", "resnetkit.engines.worker")
ANSWER_SECONDS = 600.0  # for a request, by default
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK = "5"  # for CLEAR: forget the highest use of memory (proc(5))


class Worker:
    """A process that runs one engine. It is ended by `close`, and by itself when this process is gone.

    command   another program that answers in the same way
    """

    def __init__(self, threads: int, command: Sequence[str] | None = None) -> None:
        size = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        self.received = b""
        self.process = subprocess.Popen(
            command or COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | size,
            start_new_session=True,  # Ctrl-C is ours to answer
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it is doing. May be called twice."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def load(self, engine: str, path: Path, ready: Path | None, threads: int, timeout: float) -> dict[str, Any]:
        """The engine of a file. Raises UserError, as all that asks."""
        where = {"path": os.fspath(path), "ready": None if ready is None else os.fspath(ready)}
        return self.ask({"start": engine, **where, "threads": threads}, timeout)

    def answers(self, n: int) -> Logits:
        """Logits of the first n sample pictures."""
        return np.array(self.ask({"answers": n})["answers"], dtype=np.float32)

    def ask(self, request: dict[str, Any], timeout: float = ANSWER_SECONDS) -> dict[str, Any]:
        """The answer to one request. Raises UserError: an error over there, the process died, or `timeout` seconds
        went by; in the last two cases the worker is closed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            line = self.line(time.monotonic() + timeout)
        except (BrokenPipeError, EOFError):
            raise UserError(self.obituary()) from None
        except TimeoutError:
            self.close()
            raise UserError(f"its process gave no answer in {timeout:.0f} seconds") from None
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.close()
            raise UserError("its process answered with something else than JSON")
        if "error" in answer:
            raise UserError(str(answer["error"]))
        return answer

    def line(self, end: float) -> bytes:
        """The next line of the process. Raises EOFError when it has ended, TimeoutError at the time `end`."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.received:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError
                part = os.read(self.process.stdout.fileno(), 1 << 20)
                if not part:
                    raise EOFError
                self.received += part
        line, _, self.received = self.received.partition(b"\n")
        return line

    def obituary(self) -> str:
        """How the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)  # it has closed its output, so it is about to end
        self.close()
        code = self.process.returncode
        if code >= 0:
            return f"its process ended with code {code}"
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


class Serving:
    """The other side: what a worker's process knows."""

    source: Source
    engine: Engine
    before: dict[str, int]
    batch = 0
    pictures: Pixels

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises whatever goes wrong."""
        if "start" in request:
            return self.start(**request)
        if "run" in request:
            return self.run(request["run"], request["times"])
        if "answers" in request:
            return {"answers": self.engine(self.samples(request["answers"])).tolist()}
        return dict(measured(request["limits"]))

    def start(self, start: str, path: str, ready: str | None, threads: int) -> dict[str, Any]:
        self.source = peek(Path(path))  # whether it is whole is for who asks to say
        self.before = memory()
        begin = time.perf_counter()
        self.engine = engine_of(start, self.source, threads, Path(ready) if ready else None)
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "memory": self.growth("VmRSS"), "precision": self.source.precision}

    def run(self, batch: int, times: int) -> dict[str, Any]:
        if batch != self.batch:
            self.batch, self.pictures = batch, self.samples(min(batch, 8))
            self.pictures = np.resize(self.pictures, (batch, *self.pictures.shape[1:]))
            with contextlib.suppress(OSError):
                CLEAR.write_text(PEAK)
        seconds = []
        for _ in range(times):
            begin = time.perf_counter()
            self.engine(self.pictures)
            seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds, "memory": self.growth("VmRSS"), "peak": self.growth("VmHWM")}

    def samples(self, n: int) -> Pixels:
        preprocess = self.source.about.preprocess
        return sample_pictures(n, preprocess.size, preprocess.channels)

    def growth(self, what: str) -> int | None:
        """Since before the engine was there. Both figures of memory are compared with what was in use then."""
        now = memory()
        return now[what] - self.before["VmRSS"] if what in now and "VmRSS" in self.before else None


def memory() -> dict[str, int]:
    """Bytes of this process: VmRSS, in use, and VmHWM, the most that ever was; empty where the system is not Linux."""
    try:
        lines = [line.split() for line in STATUS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {}
    return {parts[0][:-1]: int(parts[1]) << 10 for parts in lines if parts[0] in ("VmRSS:", "VmHWM:")}


def serve(requests: Iterable[str], answers: IO[str]) -> None:
    """Answer until nobody asks any more."""
    serving = Serving()
    for line in requests:
        try:
            answer = serving.answer(json.loads(line))
        except UserError as error:
            answer = {"error": str(error)}
        except Exception as error:  # libraries of others have no end of classes; the sentence goes to who asked
            first = (str(error).splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first}" if first else type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # some engines print, also from C++; that is no answer
    with answers:
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()

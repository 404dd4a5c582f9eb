"""A server from start to end: a port, models, signals, and an end at which nothing is dropped."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvicorn

from resnetkit.data.loader import default_threads
from resnetkit.errors import UserError
from resnetkit.serving.answering import Answering
from resnetkit.serving.app import Heat, Service, application
from resnetkit.serving.doorkeeper import LOOPBACK, Doorkeeper
from resnetkit.serving.guard import protocol
from resnetkit.serving.hosting import Models, host, places
from resnetkit.serving.limits import Limits
from resnetkit.serving.metrics import Metrics

Say = Callable[[str], None]
TICK = 0.1  # seconds in which uvicorn notices that it shall end


@dataclass(frozen=True)
class Asked:
    """How to serve.

    token            what requests have to bear; None: nothing
    min_probability  instead of the threshold that each model states
    """

    models: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    engine: str = "auto"
    token: str | None = None
    min_probability: float | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK


class Uvicorn(uvicorn.Server):
    """Signals are ours, and somebody is told once it listens."""

    listening: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.listening is not None:
            self.listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Everything that serves, once `open` has made it."""

    def __init__(
        self,
        asked: Asked,
        listener: socket.socket,
        models: Models,
        metrics: Metrics,
        log: Say,
        heat: Heat | None = None,
    ) -> None:
        self.asked, self.listener, self.models = asked, listener, models
        limits = asked.limits
        self.answering = Answering(limits, default_threads())
        self.service = Service(
            models,
            limits,
            metrics,
            self.answering,
            log,
            min_probability=asked.min_probability,
            may_reload=asked.token is not None,
            heat=heat,
        )
        # Where a token is needed, a page elsewhere gets nothing by calling itself this machine.
        hosts = LOOPBACK if asked.local and asked.token is None else None
        self.door = Doorkeeper(application(self.service), limits, metrics, log, token=asked.token, hosts=hosts)
        config = uvicorn.Config(
            self.door,
            http=protocol(limits, lambda reason: metrics.refused.labels(reason).inc()),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # whoever says on whose behalf it asks is not believed
            h11_max_incomplete_event_size=limits.headers,
            timeout_keep_alive=limits.idle,  # type: ignore[arg-type]
            timeout_graceful_shutdown=limits.longest,  # type: ignore[arg-type]
            backlog=limits.connections,
        )
        self.uvicorn = Uvicorn(config)
        self.stopping: asyncio.Task[None] | None = None
        self.reloading: set[asyncio.Task[bool]] = set()

    @property
    def address(self) -> str:
        name, port = self.listener.getsockname()[:2]
        return f"http://{f'[{name}]' if ':' in name else name}:{port}"

    async def serve(self, *, signals: bool = True, listening: Callable[[], None] | None = None) -> None:
        """Answer until `stop`, or SIGTERM or SIGINT; SIGHUP looks at the models again. `listening` is called once."""
        loop = asyncio.get_running_loop()
        self.uvicorn.listening = listening
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
            loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            await self.uvicorn.serve(sockets=[self.listener])
        finally:
            await asyncio.gather(*self.reloading, return_exceptions=True)
            await asyncio.to_thread(self.close)

    def stop(self) -> None:
        """Not ready, but answering, for `drain` seconds; then no new connections; then, all being answered, the end.

        Asked twice, it ends at once.
        """
        if self.stopping is not None:
            self.uvicorn.force_exit = self.uvicorn.should_exit = True
            return
        self.service.ready = False
        self.door.leaving = True
        self.stopping = asyncio.get_running_loop().create_task(self.leave())

    async def leave(self) -> None:
        await asyncio.sleep(self.asked.limits.drain)
        self.uvicorn.should_exit = True

    def reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self.service.reload())
        self.reloading.add(task)
        task.add_done_callback(self.reloading.discard)

    def close(self) -> None:
        self.listener.close()
        self.answering.close()
        self.models.close()


def listen(host_name: str, port: int) -> socket.socket:
    """The port, taken and not yet listening, so that nobody is kept waiting while models load. Raises UserError."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host_name, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, number)
    except OSError as error:
        raise UserError(f"--host {host_name}: no address of this machine ({error.strerror})") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise UserError(
            f"{host_name}, port {port}: cannot be had ({error.strerror}); choose another with --port"
        ) from None
    return found


def token_of(path: str | Path) -> str:
    """The token in a file. Raises UserError where it is too short to be one, or cannot stand in a header."""
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--token-file {path}: cannot be read as ASCII text") from None
    if len(text) < 16 or not text.isprintable() or " " in text:
        raise UserError(
            f"--token-file {path}: a token has at least 16 letters and digits and no space; "
            "make one with: openssl rand -hex 32"
        )
    return text


def open_server(asked: Asked, say: Say, log: Say, heat: Heat | None = None) -> Server:
    """Take the port, open and warm up every model. Raises UserError.

    `say` is told what happens, `log` of every request; `heat` draws heat maps (`app.Service`).
    """
    wanted = places(asked.models)
    listener = listen(asked.host, asked.port)
    try:
        metrics = Metrics()
        load = partial(host, engine=asked.engine, limits=asked.limits, told=metrics.batched, say=say)
        models = Models(wanted, load)
    except BaseException:
        listener.close()
        raise
    return Server(asked, listener, models, metrics, log, heat)

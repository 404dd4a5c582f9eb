"""Connections: how many, and how long each may take. What uvicorn leaves open is closed here.

uvicorn's h11 protocol refuses what is no HTTP and bounds the size of headers. It never ends a connection on which a
request does not come to its end, nor one whose other side takes no answer, and has no bound on connections that ask
for nothing. So each connection has one clock here: it runs while the headers of a request are waited for, and anew
from there to the answer (`Limits.longest`). Bodies have a clock of their own (`bodies`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from resnetkit.serving.limits import Limits

Refusal = Callable[[str], None]  # is told the reason


class Guarded(H11Protocol):
    """One connection."""

    def __init__(
        self,
        limits: Limits,
        refused: Refusal,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits, self.refused = limits, refused
        self.clock: asyncio.TimerHandle | None = None
        self.asked = False  # whether a request is under way, as the clock has it
        self.leaving = False  # whether the server is being stopped

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = self.client[0] if self.client else None
        same = sum((getattr(each, "client", None) or (None,))[0] == address for each in self.connections)
        if len(self.connections) > self.limits.connections:
            self.turn_away(503, "the server has as many connections as it may have", "connections")
        elif same > self.limits.address_connections:
            self.turn_away(429, "this address has as many connections as it may have", "address_connections")
        else:
            self.clock = self.loop.call_later(self.limits.header_seconds, self.late)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_clock()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self.look()

    def on_response_complete(self) -> None:
        self.asked = False
        self.stop_clock()
        super().on_response_complete()
        self.look()

    def look(self) -> None:
        """Start the clock that belongs to what is waited for, unless it runs."""
        asked = self.cycle is not None and not self.cycle.response_complete
        if asked and self.leaving:
            self.cycle.keep_alive = False
        if self.clock is None or asked != self.asked:
            self.stop_clock()
            self.asked = asked
            seconds = self.limits.longest if asked else self.limits.header_seconds
            self.clock = self.loop.call_later(seconds, self.late)

    def stop_clock(self) -> None:
        if self.clock is not None:
            self.clock.cancel()
            self.clock = None

    def late(self) -> None:
        """Time is up: say so where there is something to answer, and end the connection in any case."""
        self.clock = None
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and not self.transport.is_closing() and self.conn.trailing_data[0]:
            self.turn_away(408, "the request took too long to come", "header_seconds")
            self.clock = self.loop.call_later(1.0, self.transport.abort)
            return
        self.transport.abort()

    def shutdown(self) -> None:
        """Stop, but let a request that has begun to come in come to its end."""
        self.leaving = True
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self.conn.trailing_data[0] and not self.transport.is_closing():
            return
        super().shutdown()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's sentence
        self.turn_away(400, "the request is no HTTP/1.1, or its headers are longer than they may be", "http")

    def turn_away(self, status: int, sentence: str, reason: str) -> None:
        """An answer without a question, after which the connection ends."""
        self.refused(reason)
        body = json.dumps({"error": sentence}).encode()
        phrases = {400: "Bad Request", 408: "Request Timeout", 429: "Too Many Requests", 503: "Service Unavailable"}
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        if status in (429, 503):
            headers.append(("retry-after", "1"))
        lines = [f"HTTP/1.1 {status} {phrases[status]}", *(f"{name}: {value}" for name, value in headers)]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else the middle of another answer
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
            self.conn.send_failed()
            self.transport.close()
        else:
            self.transport.abort()


def protocol(limits: Limits, refused: Refusal) -> Any:
    """What uvicorn takes for `http`: makes a connection."""
    return partial(Guarded, limits, refused)

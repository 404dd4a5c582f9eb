"""What every request passes: who asks, whether they may, what becomes of errors, and a line in the log.

A plain ASGI layer around the application. The log has no picture, no query and no header in it.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from resnetkit.serving.limits import Limits, Refused, Shares
from resnetkit.serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/", "/v2/health/live", "/v2/health/ready")  # without a token
OPEN_BELOW = "/static/"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Doorkeeper:
    """The layer.

    token  that requests have to bear (RFC 6750), if there is one
    hosts  names by which the server may be addressed; None: any. A page elsewhere whose name is made to mean this
           machine (DNS rebinding) comes with its own name
    say    takes a line of the log
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        metrics: Metrics,
        say: Callable[[str], None],
        *,
        token: str | None = None,
        hosts: tuple[str, ...] | None = None,
    ) -> None:
        self.app, self.limits, self.metrics, self.say = app, limits, metrics, say
        self.token, self.hosts = token, hosts
        self.requests = Shares(limits.address_requests)
        self.leaving = False  # answers then ask for the connection to end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "lifespan and websockets are switched off"
        visit = Visit(scope, self, send)
        client = scope.get("client")
        address = client[0] if client else "unknown"
        taken = False
        try:
            self.check(scope, visit.headers)
            taken = self.requests.take(address)
            if not taken:
                raise Refused(429, "too many requests of this address at a time", reason="address_requests", retry=1)
            await self.app(scope, receive, visit.send)
        except Refused as refused:
            self.metrics.refused.labels(refused.reason).inc()
            await visit.refuse(refused)
        except Exception:  # nobody outside learns more than that it happened
            self.say(f"{visit.identity} {traceback.format_exc()}".rstrip())
            await visit.refuse(Refused(500, "the server failed; its log says why", reason="error"))
        finally:
            if taken:
                self.requests.give_back(address)
            visit.log(address)

    def check(self, scope: Scope, headers: dict[str, str]) -> None:
        """Raise Refused for who may not ask, and for long headers: h11 bounds those that come in pieces."""
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > self.limits.headers:
            raise Refused(431, f"the headers are too long: {self.limits.headers:,} bytes may be", reason="headers")
        host = host_of(headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts:
            raise Refused(421, "the server does not answer to this name", reason="host")
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD"):
            with_port = urlsplit(origin).netloc if origin.startswith(("http://", "https://")) else ""
            if with_port != headers.get("host"):
                raise Refused(403, "pages of other servers may not ask", reason="origin")
        path = scope["path"]
        if self.token is None or path in OPEN or path.startswith(OPEN_BELOW):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if not (kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode())):
            raise Refused(401, "a bearer token is needed", reason="token")


def host_of(text: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{text}").hostname or "").lower()
    except ValueError:
        return ""


class Visit:
    """One request and what is told of it."""

    def __init__(self, scope: Scope, keeper: Doorkeeper, send: Send) -> None:
        self.scope, self.keeper, self.real = scope, keeper, send
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = self.headers.get("x-request-id", "")
        self.identity = given if ID.fullmatch(given) else secrets.token_hex(8)
        self.began = time.perf_counter()
        self.status = self.size = 0
        scope["state"]["id"] = self.identity

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            there = {name for name, _ in message["headers"]}
            more = {**HEADERS, "x-request-id": self.identity}
            if self.keeper.leaving:
                more["connection"] = "close"
            message["headers"] = [
                *message["headers"],
                *((name.encode(), value.encode()) for name, value in more.items() if name.encode() not in there),
            ]
        else:
            self.size += len(message.get("body", b""))
        await self.real(message)

    async def refuse(self, refused: Refused) -> None:
        """Send a refusal, unless an answer has begun: then the connection ends, which the other side notices."""
        if self.status:
            return
        body = json.dumps({"error": refused.sentence, "request_id": self.identity}).encode()
        about = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
        headers = [(name.encode(), value.encode()) for name, value in about.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def log(self, address: str) -> None:
        seconds = time.perf_counter() - self.began
        endpoint = getattr(self.scope.get("endpoint"), "__name__", "none")
        self.keeper.metrics.answered(endpoint, self.status, seconds)
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        path = self.scope["path"][:100].encode("unicode_escape").decode()
        about = self.scope["state"].get("about", "")
        self.keeper.say(
            f"{when} {self.identity} {address} {self.scope['method']} {path} {self.status} {self.size} B "
            f"{1000 * seconds:.1f} ms{about}"
        )

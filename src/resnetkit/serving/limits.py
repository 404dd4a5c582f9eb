"""What a server lets others take of it, and how it says no. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from resnetkit.errors import UserError, nearest

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Each has an answer of its own (docs/security.md); bytes, pictures, pixels or seconds."""

    body: int = 32 * MIB  # bytes of one request's body
    bodies: int = 256 * MIB  # bytes of all bodies that are in memory
    pixels: int = 50_000_000  # of one picture, before it is decoded
    json: int = 4 * MIB  # bytes of JSON: as Python values it takes many times that; large tensors come as they are
    batch: int = 64  # pictures in one request
    queue: int = 1024  # pictures of one model that are under way
    latency: float = 1.0  # seconds from a whole request to its answer that are aimed at; more are refused at once
    answer: float = 10.0  # seconds after which a request that has no answer is given up
    heat: float = 60.0  # seconds for a heat map; the first one loads what draws them
    connections: int = 512
    address_connections: int = 256  # of one address
    address_requests: int = 128  # of one address, at the same time
    headers: int = 16 << 10  # bytes of a request's line and headers
    header_seconds: float = 10.0  # for a request's line and headers, from its first byte or the answer before
    body_seconds: float = 10.0  # that a body may lag behind `body_rate`
    body_rate: int = 16 << 10  # bytes a second that a body comes with at least
    idle: float = 5.0  # seconds that a connection without a request stays open
    drain: float = 1.0  # seconds between "not ready" and no longer listening, when the server is stopped

    @property
    def longest(self) -> float:
        """Seconds after which a request has been answered, refused or cut off, whatever the other side does."""
        return self.body_seconds + self.body / self.body_rate + max(self.answer, self.heat) + self.header_seconds


def limits_of(settings: Iterable[str]) -> Limits:
    """Limits with some of them set, each as `NAME=VALUE`. Raises UserError."""
    kinds = {field.name: float if isinstance(field.default, float) else int for field in fields(Limits)}
    found: dict[str, int | float] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in kinds:
            hint = nearest(name, kinds) or f"; choose from {', '.join(kinds)}"
            raise UserError(f"--limit {setting}: no such limit, or no NAME=VALUE{hint}")
        try:
            value: float = kinds[name](text)
        except ValueError:
            value = -1
        if not math.isfinite(value) or value < 0 or (value == 0 and name != "drain"):
            what = "whole number" if kinds[name] is int else "number"
            raise UserError(f"--limit {setting}: must be a {what} above 0")
        found[name] = value
    return Limits(**found)  # type: ignore[arg-type]


class Refused(Exception):  # noqa: N818 - it names what happened
    """A request that gets no answer: an HTTP status, a sentence for whoever asked, seconds after which to ask again.

    The sentence names nothing of the server's: no path, no version, no code. `reason` is one word for counting.
    """

    def __init__(
        self, status: int, sentence: str, *, reason: str, retry: float | None = None, allow: str | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.reason, self.retry, self.allow = status, sentence, reason, retry, allow

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry is None else {"retry-after": str(max(1, math.ceil(self.retry)))}
        headers |= {} if self.allow is None else {"allow": self.allow}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


class Budget:
    """So much of something that many share."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    def take(self, amount: int) -> bool:
        """Whether there was so much left; then it is taken."""
        if self.taken + amount > self.most:
            return False
        self.taken += amount
        return True

    def give_back(self, amount: int) -> None:
        self.taken -= amount


class Shares:
    """So many at a time for each of many, such as addresses."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, dict[str, int]()

    def take(self, who: str) -> bool:
        taken = self.taken.get(who, 0)
        if taken >= self.most:
            return False
        self.taken[who] = taken + 1
        return True

    def give_back(self, who: str) -> None:
        self.taken[who] -= 1
        if not self.taken[who]:
            del self.taken[who]

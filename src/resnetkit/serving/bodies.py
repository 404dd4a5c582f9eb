"""Bodies, read against a clock and within a bound on all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from resnetkit.serving.limits import Budget, Limits, Refused


@asynccontextmanager
async def read_body(request: Request, limits: Limits, budget: Budget) -> AsyncIterator[bytes]:
    """The body, counted in the budget as long as the block runs.

    A body may lag behind `body_rate` by `body_seconds`, so that neither a slow one nor one that stops keeps its place.
    Raises Refused; at once where the headers say that it is too large.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Refused(415, "the body is compressed: send it as it is", reason="encoding")
    too_large = Refused(413, f"the body is too large: {limits.body:,} bytes may be", reason="body")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limits.body:
        raise too_large
    parts, size = [], 0
    clock = asyncio.get_running_loop().time
    begin = clock()
    chunks = request.stream()
    try:
        while True:
            try:
                async with asyncio.timeout_at(begin + limits.body_seconds + size / limits.body_rate):
                    part = await anext(chunks, None)
            except TimeoutError:
                raise Refused(408, "the body took too long to come", reason="body_seconds") from None
            except ClientDisconnect:
                raise Refused(400, "the body was cut off", reason="gone") from None
            if part is None:
                break
            if size + len(part) > limits.body:
                raise too_large
            if not budget.take(len(part)):
                raise Refused(503, "the server has no memory left for bodies", reason="bodies", retry=1)
            size += len(part)
            parts.append(part)
        yield b"".join(parts)
    finally:
        budget.give_back(size)

"""From the pictures of one request to logits: admitted, decoded in threads, answered in a batch, all within a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.transforms import Preprocess
from resnetkit.errors import BadPicture
from resnetkit.serving.hosting import Hosted
from resnetkit.serving.limits import Limits, Refused
from resnetkit.serving.pictures import prepared

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Answers:
    """Logits (n, classes) of the pictures that could be read, in order, and for each picture why it could not be."""

    logits: NDArray[np.float32]
    errors: tuple[str | None, ...]


class Answering:
    """Answers for requests of one event loop."""

    def __init__(self, limits: Limits, threads: int) -> None:
        self.limits = limits
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def images(self, hosted: Hosted, files: Sequence[bytes], seconds: float | None = None) -> Answers:
        """Of picture files. Raises Refused where there are too many pictures under way, or it took too long.

        seconds  in which the answer is wanted, where that is sooner than the limit
        """
        return await self.admitted(hosted, len(files), self.from_files(hosted, files), seconds)

    async def pixels(self, hosted: Hosted, pixels: Pixels, seconds: float | None = None) -> Answers:
        """Of pictures as the network takes them. Raises Refused as `images`."""
        return await self.admitted(hosted, len(pixels), self.from_pixels(hosted, pixels), seconds)

    async def admitted(
        self, hosted: Hosted, n: int, work: Coroutine[Any, Any, Answers], seconds: float | None
    ) -> Answers:
        again = hosted.admission.admit(n)
        if again is not None:
            work.close()
            raise Refused(503, "too many pictures are waiting", reason="queue", retry=again)
        ahead, clock = hosted.admission.under_way, asyncio.get_running_loop().time
        begin, took = clock(), None
        limit = self.limits.answer if seconds is None else min(seconds, self.limits.answer)
        try:
            async with asyncio.timeout(limit):
                answers = await work
            took = clock() - begin
        except TimeoutError:
            took = self.limits.answer if limit == self.limits.answer else None  # an impatient client teaches nothing
            raise Refused(503, "there was no answer in time", reason="answer", retry=1) from None
        finally:
            hosted.admission.done(n, ahead, took)
        return answers

    async def from_files(self, hosted: Hosted, files: Sequence[bytes]) -> Answers:
        loop, preprocess = asyncio.get_running_loop(), hosted.about.preprocess
        tasks = [loop.run_in_executor(self.pool, self.decoded, data, preprocess) for data in files]
        found = await asyncio.gather(*tasks)
        good = [each for each in found if not isinstance(each, str)]
        errors = tuple(each if isinstance(each, str) else None for each in found)
        if not good:
            return Answers(np.empty((0, len(hosted.about.classes)), np.float32), errors)
        pixels = good[0][None] if len(good) == 1 else np.stack(good)
        return Answers(await asyncio.wrap_future(hosted.batcher.submit(pixels)), errors)

    async def from_pixels(self, hosted: Hosted, pixels: Pixels) -> Answers:
        logits = await asyncio.wrap_future(hosted.batcher.submit(pixels))
        return Answers(logits, (None,) * len(pixels))

    def decoded(self, data: bytes, preprocess: Preprocess) -> Pixels | str:
        """The network's input, or why there is none."""
        try:
            return prepared(data, preprocess, self.limits.pixels)
        except BadPicture as error:
            return str(error)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

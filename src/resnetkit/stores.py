"""Object stores, asked with patience: S3 and what speaks like it, HTTP servers, and whatever else fsspec has.

fsspec, s3fs, botocore and gcsfs each try again in their own way; all of that is switched off, so that one number of
tries, one back-off and one sentence at the end hold for every store. Azure's client alone tries for itself inside of
each. fsspec's connections do not survive a fork: threads only.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from resnetkit.errors import UserError
from resnetkit.storefaults import WrongLength, fault

BLOCK = 4 << 20  # bytes that `Patience.whole` speaks of, and that are asked for at a time
CONNECTIONS = 64
PART, PARTS = 8 << 20, 10_000  # bytes of a part of an upload, and how many of them S3 takes
S3 = ("s3", "s3a")
GOOGLE = ("gs", "gcs")
HTTP = ("http", "https")
HUB = "hf"
ATOMIC = (*S3, *GOOGLE, "az", "abfs", "adl")  # an object appears there when its upload is complete, or not at all
STAMPS = ("ETag", "etag", "md5Hash", "generation", "blob_id", "Last-Modified", "LastModified", "mtime", "modified")

T = TypeVar("T")


class NotThere(UserError):  # noqa: N818 - it names what was found
    """The store answers, but has no such object."""


@dataclass(frozen=True)
class Patience:
    """How long a store may be slow, refuse or be gone before it is given up.

    tries   requests in all
    wait    seconds before the second try, twice as long before each further one; by chance up to half more or less
    stall   seconds without a byte before a try counts as failed; the same for a connection
    whole   seconds that `BLOCK` bytes may take, for stores that send a little all the time
    """

    tries: int = 7
    wait: float = 0.5
    stall: float = 20.0
    whole: float = 120.0


@dataclass(frozen=True)
class Facts:
    """size: bytes; stamp: what changes when the content does, empty where the store says nothing of the kind."""

    size: int
    stamp: str


def is_url(name: str) -> bool:
    """Whether a name is that of an object in a store, not of a file."""
    return "://" in name


def protocol_of(url: str) -> str:
    """`"s3"` for s3://bucket/key."""
    return url.partition("://")[0].lower()


class Store:
    """The store that a URL lies in, and others of its protocol. Safe from many threads at once.

    Raises UserError: fsspec or its driver is not installed, an unknown protocol.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.protocol = protocol_of(url)
        self.patience = patience or Patience()
        self._files = filesystem(self.protocol, self.patience, url)
        self._chance = random.Random()  # jobs that were refused together should not come back together

    def facts(self, url: str) -> Facts:
        """One request. Raises NotThere, and UserError as all others here do."""
        return self._patiently(url, lambda: self._facts(url))

    def exists(self, url: str) -> bool:
        """Raises UserError where the store does not say."""
        try:
            self.facts(url)
        except NotThere:
            return False
        return True

    def read(self, url: str, start: int, length: int, facts: Facts) -> bytes:
        """Exactly `length` bytes of the object that `facts` are of.

        S3 refuses by itself when the object is another one by now (If-Match); of other stores `facts` are asked anew.
        """
        if length == 0:
            return b""

        def ask() -> bytes:
            data = self._range(url, start, length, facts)
            if len(data) != length:
                raise WrongLength(len(data), length)
            return data

        data = self._patiently(url, ask)
        if self.protocol not in S3 and self.facts(url) != facts:
            raise UserError(changed(url))
        return data

    def put(self, url: str, path: Path) -> None:
        """Copy a file into the store. Readers see the old object, or none, until the new one is complete."""
        if self.protocol not in ATOMIC:
            raise UserError(f"{url}: {self.protocol} cannot be written without readers seeing halves; use s3 or gs")
        size = path.stat().st_size
        longest = self.patience.whole * math.ceil(size / BLOCK + 1)
        parts = {"chunksize": max(PART, -(-size // PARTS))} if self.protocol in S3 else {}
        self._patiently(url, lambda: self._ask("put_file", str(path), self._path(url), longest=longest, **parts))

    def glob(self, pattern: str) -> list[str]:
        """The URLs of objects that a pattern with `*` fits, sorted."""
        if self.protocol in HTTP:
            raise UserError(f"{pattern}: web servers do not list files; write braces, such as {{000..123}}, for *")
        literal = self._path(pattern).replace("[", "[[]").replace("?", "[?]")
        found = self._patiently(pattern, lambda: self._ask("glob", literal, detail=True))
        names = [name for name, about in found.items() if about.get("type") == "file"]
        return sorted(f"{self.protocol}://{self._files._strip_protocol(name)}" for name in names)

    def _path(self, url: str) -> str:
        path = str(self._files._strip_protocol(url))
        if not path.strip("/") or url.endswith("://"):
            raise UserError(f"{url}: names no object; write it as {self.protocol}://bucket/name")
        return path

    def _facts(self, url: str) -> Facts:
        about = self._ask("info", self._path(url))
        if about.get("type") == "directory":
            raise NotThere(f"{url}: a folder, not an object; write {url.rstrip('/')}/*")
        if about.get("size") is None:
            raise UserError(f"{url}: the server does not say how long it is, so no part of it can be asked for")
        stamps = [str(about[key]) for key in STAMPS if about.get(key)]
        return Facts(int(about["size"]), stamps[0] if stamps else "")

    def _range(self, url: str, start: int, length: int, facts: Facts) -> bytes:
        path = self._path(url)
        if self.protocol not in S3:
            exactly: dict[str, Any] = {"cache_type": "none"} if self.protocol == HUB else {}  # its files read ahead
            return bytes(self._ask("cat_file", path, start=start, end=start + length, **exactly))
        from fsspec.asyn import sync

        asked = s3_range, self._files, path, start, length, facts.stamp
        data, stamp = sync(self._files.loop, *asked, timeout=self.patience.whole)
        if stamp != facts.stamp:  # some stores that speak S3 take no notice of If-Match
            raise UserError(changed(url))
        return bytes(data)

    def _ask(self, method: str, *arguments: Any, longest: float | None = None, **options: Any) -> Any:
        """Call a method of the file system; one that waits for its answers, no longer than `longest` seconds."""
        if not self._files.async_impl:
            return getattr(self._files, method)(*arguments, **options)
        from fsspec.asyn import sync

        call = getattr(self._files, f"_{method}")
        return sync(self._files.loop, call, *arguments, timeout=longest or self.patience.whole, **options)

    def _patiently(self, url: str, ask: Callable[[], T]) -> T:
        """What `ask` gives at last, or one UserError."""
        begin = time.monotonic()
        for tried in range(1, self.patience.tries + 1):
            try:
                return ask()
            except UserError:
                raise
            except Exception as error:  # drivers raise what they like
                found, cause = fault(error), error
            if found.changed:
                raise UserError(changed(url)) from cause
            if not found.again:
                kind = NotThere if found.missing else UserError
                raise kind(f"{url}: {found.said}; {found.advice}") from cause
            if tried < self.patience.tries:
                time.sleep(self.patience.wait * 2 ** (tried - 1) * self._chance.uniform(0.5, 1.5))
        seconds = time.monotonic() - begin
        raise UserError(
            f"{url}: given up after {self.patience.tries} tries in {seconds:.0f} s: {found.said}; {found.advice}"
        ) from cause


def changed(url: str) -> str:
    return f"{url}: changed while it was being used; leave objects as they are, and start again"


async def s3_range(files: Any, path: str, start: int, length: int, etag: str) -> tuple[bytes, str]:
    """A part of the object that has this ETag, and the one that the answer states."""
    bucket, key, _ = files.split_path(path)
    where = f"bytes={start}-{start + length - 1}"
    answer = await files._call_s3("get_object", Bucket=bucket, Key=key, Range=where, IfMatch=etag)
    async with answer["Body"] as body:
        if answer["ContentLength"] != length:  # perhaps the whole object, which may be large
            raise WrongLength(answer["ContentLength"], length)
        return bytes(await body.read()), answer.get("ETag", etag)


def filesystem(protocol: str, patience: Patience, url: str) -> Any:
    """fsspec's file system for a protocol, without its own caches and tries."""
    try:
        import fsspec
        from fsspec.registry import known_implementations
    except ImportError:
        raise UserError(f"{url}: object stores need fsspec; run: pip install 'resnetkit[remote]'") from None
    if protocol not in known_implementations and protocol not in fsspec.available_protocols():
        raise UserError(f"{url}: no store is called {protocol!r}; write s3://, gs://, https:// or a path")
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError:
        ours = protocol in (*S3, *HTTP)
        package = known_implementations[protocol]["class"].partition(".")[0].replace("_", "-")
        wanted = "'resnetkit[remote]'" if ours else package
        raise UserError(f"{url}: the driver for {protocol} is not installed; run: pip install {wanted}") from None
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in S3:
        config = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        own = {"connect_timeout": patience.stall, "read_timeout": patience.stall, "max_pool_connections": CONNECTIONS}
        whole = {"response_checksum_validation": "when_required"}  # some stores state it for parts of an object too
        options["config_kwargs"] = {**whole, **config, **own, "retries": {"total_max_attempts": 1}}
    if protocol in HTTP:
        from aiohttp import ClientTimeout

        options["headers"] = {"Accept-Encoding": "identity"}  # or lengths would be those of something compressed
        limits = ClientTimeout(total=None, sock_connect=patience.stall, sock_read=patience.stall)
        options["client_kwargs"] = {"timeout": limits, "trust_env": True}  # ~/.netrc, HTTPS_PROXY
    files = kind(**options)
    if protocol in S3:
        files.retries = 1
    if protocol in GOOGLE:
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it has to say of refusals we say once
        # Its tries are a decorator.
        files._request = partial(getattr(type(files)._request, "__wrapped__", type(files)._request), files)
    return files

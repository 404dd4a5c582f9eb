"""Stores asked directly: what is worth another try, what is said of the rest, and that writing is all or nothing."""

from __future__ import annotations

import errno
import ssl
import sys
from pathlib import Path

import pytest

from resnetkit import stores
from resnetkit.errors import UserError
from resnetkit.storefaults import WrongLength, fault
from resnetkit.stores import Patience, Store
from store_server import Proxy

FAST = Patience(tries=3, wait=0.01)


# What errors mean


def client_error(status: int, code: str, message: str = "why") -> OSError:
    """As s3fs hands on what botocore raises."""
    exceptions = pytest.importorskip("botocore.exceptions")
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = OSError("translated")
    error.__cause__ = exceptions.ClientError(answer, "GetObject")
    return error


@pytest.mark.parametrize(
    ("status", "code", "again", "words"),
    [
        (503, "SlowDown", True, "fewer threads"),
        (500, "InternalError", True, "500 InternalError"),
        (400, "RequestTimeout", True, "RequestTimeout"),
        (429, "429", True, "429"),
        (404, "NoSuchUpload", True, "NoSuchUpload"),
        (403, "AccessDenied", False, "may read it"),
        (403, "InvalidAccessKeyId", False, "does not know these credentials"),
        (403, "SignatureDoesNotMatch", False, "AWS_SECRET_ACCESS_KEY"),
        (403, "RequestTimeTooSkewed", False, "this machine's clock"),
        (400, "ExpiredToken", False, "have expired"),
        (404, "NoSuchBucket", False, "the bucket's name"),
        (404, "NoSuchKey", False, "check its name"),
        (301, "PermanentRedirect", False, "AWS_DEFAULT_REGION"),
        (416, "InvalidRange", False, "416 InvalidRange"),
    ],
)
def test_what_s3_says(status: int, code: str, again: bool, words: str) -> None:
    found = fault(client_error(status, code))
    assert found.again is again
    assert words in f"{found.said}; {found.advice}"
    assert found.missing is (code == "NoSuchKey")


def test_what_has_no_status() -> None:
    aiohttp = pytest.importorskip("aiohttp")
    for error in (
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError(),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("half"),
        WrongLength(5, 10),
    ):
        assert fault(error).again, error
    for error in (
        WrongLength(10, 5),
        PermissionError("no"),
        FileNotFoundError("x"),
        ValueError("endpoint"),
        KeyError(),
    ):
        assert not fault(error).again, error
    wrapped = aiohttp.ClientConnectionError("Cannot connect to host certificates.example")
    assert fault(wrapped).again
    wrapped.__cause__ = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
    assert not fault(wrapped).again
    assert "AWS_CA_BUNDLE" in fault(wrapped).advice
    missing = FileNotFoundError("http://x")  # as fsspec does with everything that a web server does
    missing.__cause__ = TimeoutError()
    assert fault(missing).again


@pytest.mark.parametrize("name", ["ConnectError", "ReadError", "RemoteProtocolError", "ConnectTimeout", "ReadTimeout"])
def test_what_huggingfaces_client_meets_on_the_way_is_tried_again(name: str) -> None:
    httpx = pytest.importorskip("httpx", reason="comes with huggingface_hub, the extra 'hub'")
    assert fault(getattr(httpx, name)("[Errno -2] Name or service not known")).again


def test_waits_double_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/scale.md states them: 0.5 to 16 s, each by chance up to half more or less."""
    pytest.importorskip("aiohttp")
    waits: list[float] = []
    monkeypatch.setattr(stores.time, "sleep", waits.append)
    web = Store("http://host")
    monkeypatch.setattr(web, "_facts", lambda _: (_ for _ in ()).throw(TimeoutError))
    for _ in range(20):
        with pytest.raises(UserError, match="given up after 7 tries in 0 s: no answer in time"):
            web.facts("http://host/x")
    for at in range(0, len(waits), 6):
        assert all(0.5 <= wait / (0.5 * 2**k) <= 1.5 for k, wait in enumerate(waits[at : at + 6]))
    assert len(waits) == 20 * 6
    assert len(set(waits)) == len(waits), "all come back at the same moment"


# Addresses and drivers


@pytest.mark.parametrize(
    ("url", "missing", "sentence"),
    [
        ("nonsense://x/y", "", "no store is called 'nonsense'; write s3://"),
        ("s3://b/x", "s3fs", "the driver for s3 is not installed; run: pip install 'resnetkit.remote.'"),
        ("gs://b/x", "gcsfs", "the driver for gs is not installed; run: pip install gcsfs"),
        ("s3://b/x", "fsspec", "need fsspec; run: pip install 'resnetkit.remote.'"),
    ],
)
def test_what_cannot_be_asked(url: str, missing: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})  # drivers that were imported before
    monkeypatch.setattr(sys.modules["fsspec.registry"], "registry", {})
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"^{url}: .*{sentence}"):
        Store(url)


# Writing


def test_a_put_file_is_there_and_whole(store: Proxy, tmp_path: Path) -> None:
    """The first try fails; what is larger than two parts goes up in parts."""
    s3 = Store("s3://", FAST)
    url = f"s3://{store.bucket}/out/part-0.parquet"
    assert not s3.exists(url)
    (tmp_path / "file").write_bytes(bytes(range(256)) * 10)
    store.faults = {"PUT": ["503"]}
    s3.put(url, tmp_path / "file")
    assert s3.exists(url)
    assert s3.read(url, 0, 2560, s3.facts(url)) == bytes(range(256)) * 10
    store.asked.clear()
    (tmp_path / "file").write_bytes(bytes(2 * stores.PART + 1))
    s3.put(url, tmp_path / "file")
    assert s3.facts(url).size == 2 * stores.PART + 1
    assert store.count("PUT") == 3


def test_an_upload_whose_end_is_not_heard_is_made_again(store: Proxy, tmp_path: Path) -> None:
    """The store completed it, and its answer was lost; it then says that there is no such upload to abort."""
    url = f"s3://{store.bucket}/x"
    (tmp_path / "file").write_bytes(bytes(2 * stores.PART + 1))
    store.faults = {"POST": ["", "deaf"]}
    Store(url, FAST).put(url, tmp_path / "file")
    assert store.count("POST") == 4


def test_a_put_that_fails_leaves_what_was_there(store: Proxy, tmp_path: Path) -> None:
    """The parts go up, but the upload is never completed."""
    url = store.add("x", b"old")
    s3 = Store(url, FAST)
    (tmp_path / "file").write_bytes(bytes(2 * stores.PART + 1))
    store.faults = {"PUT": ["", "", "503"] * 3}
    with pytest.raises(UserError, match=rf"^{url}: given up after 3 tries in \d+ s: 503"):
        s3.put(url, tmp_path / "file")
    assert s3.read(url, 0, 3, s3.facts(url)) == b"old"
    assert store.count("DELETE") == 3, "the parts were left in the store"


def test_what_is_not_atomic_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written without readers seeing halves"):
        Store("https://host/x").put("https://host/x", tmp_path / "file")


def test_whether_it_exists_is_not_guessed(store: Proxy) -> None:
    url = store.add("x", b"1")
    s3 = Store(url, FAST)
    assert s3.exists(url)
    with pytest.raises(UserError, match="NoSuchBucket"):
        s3.exists("s3://no-such-bucket-here/x")
    with pytest.raises(UserError, match="names no object"):
        s3.exists("s3://")
    store.forever = "403"
    with pytest.raises(UserError, match="403"):
        s3.exists(url)

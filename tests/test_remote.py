"""Remote blobs against moto's S3 and a web server, through a proxy that counts requests and spoils answers."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resnetkit.data import remote
from resnetkit.data.remote import LEAST, RemoteBlobs
from resnetkit.errors import UserError
from resnetkit.stores import BLOCK, Patience
from store_server import Proxy

FAST = Patience(tries=3, wait=0.01)
SHORT = Patience(tries=3, wait=0.01, stall=0.4)  # where answers are meant not to come
SMALL = random.Random(0).randbytes(50_000)


def opened(*urls: str, cache: Path | None = None, patience: Patience = FAST) -> RemoteBlobs:
    return RemoteBlobs(urls, cache=cache, limit=LEAST, patience=patience)


# Bytes


def test_all_ranges_are_right_and_each_block_is_fetched_once(store: Proxy, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(2 * BLOCK + 12_345)
    blobs = opened(store.add("x.tar", data), store.add("y.tar", b""), cache=tmp_path)
    assert (len(blobs), blobs.name(0)) == (2, f"s3://{store.bucket}/x.tar")
    assert (blobs.size(0), blobs.size(1), blobs.read(1, 0, 0)) == (len(data), 0, b"")
    chance = random.Random(2)
    edges = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, len(data)]
    cuts = [sorted(chance.choices([*edges, chance.randrange(len(data))], k=2)) for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda cut: blobs.read(0, cut[0], cut[1] - cut[0]) == data[cut[0] : cut[1]], cuts))
    ranges = [f"{at}-{min(at + BLOCK, len(data)) - 1}" for at in (0, BLOCK, 2 * BLOCK)]
    assert sorted(line.split("bytes=")[1] for line in store.asked if "bytes=" in line) == sorted(ranges)
    for start, length in ((-1, 5), (0, len(data) + 1), (len(data), 1)):
        with pytest.raises(UserError, match=r"x\.tar: has 8,400,953 bytes"):
            blobs.read(0, start, length)


def test_what_is_in_the_cache_is_not_asked_for_again(store: Proxy, tmp_path: Path) -> None:
    """Neither by the same reader nor by the next one, which asks only whether the object is still the same."""
    url = store.add("x.tar", SMALL)
    first = opened(url, cache=tmp_path)
    assert first.read(0, 5, 10) == SMALL[5:15]
    store.asked.clear()
    assert first.read(0, 0, len(SMALL)) == SMALL
    assert store.asked == []
    assert opened(url, cache=tmp_path).read(0, 100, 100) == SMALL[100:200]
    assert (store.count("HEAD"), store.count("GET")) == (1, 0)
    store.add("x.tar", SMALL[::-1])
    assert opened(url, cache=tmp_path).read(0, 100, 100) == SMALL[::-1][100:200]


def test_without_a_cache_some_blocks_are_held(store: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "HELD", 2 * len(SMALL))
    for name in "abc":
        store.add(name, SMALL)
    blobs = opened(*map(store.web, "abc"))
    for i, requests in ((0, 1), (0, 0), (1, 1), (0, 0), (2, 1), (0, 0), (1, 1)):
        before = store.count("GET")
        assert blobs.read(i, 10, 10) == SMALL[10:20]
        assert store.count("GET") - before == requests


def test_a_damaged_block_is_fetched_again(store: Proxy, tmp_path: Path) -> None:
    store.add("x", SMALL)
    opened(store.web("x"), cache=tmp_path).read(0, 0, 1)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    spoilt = path.read_bytes()[:-100] + bytes(100)
    path.write_bytes(spoilt)
    assert opened(store.web("x"), cache=tmp_path).read(0, 0, len(SMALL)) == SMALL
    assert store.count("GET") == 2
    assert path.read_bytes() != spoilt


def test_bytes_that_the_reader_finds_wrong_can_be_forgotten(store: Proxy, tmp_path: Path) -> None:
    """What arrives with the right length and the wrong bytes is only seen by whoever knows their checksum."""
    store.add("x", SMALL)
    blobs = opened(store.web("x"), cache=tmp_path)
    store.faults = {"GET": ["wrong"]}
    assert blobs.read(0, 0, 10) != SMALL[:10]
    blobs.forget(0, 0, 10)
    assert blobs.read(0, 0, 10) == SMALL[:10]


def test_what_the_store_does_not_date_is_kept_for_one_run_only(store: Proxy, tmp_path: Path) -> None:
    store.add("x", SMALL)
    store.silent = ("etag", "last-modified")
    first, second = (opened(store.web("x"), cache=tmp_path) for _ in range(2))
    assert first.version(0) != second.version(0)
    for blobs in (first, first, second):
        assert blobs.read(0, 0, 9) == SMALL[:9]
    assert store.count("GET") == 2


def test_a_cache_that_cannot_be_written_is_said_once(store: Proxy, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store.add("x", SMALL)
    store.add("y", SMALL)
    blobs = opened(store.web("x"), store.web("y"), cache=tmp_path / "file")
    with pytest.warns(UserWarning, match="no more blocks of remote objects are kept") as said:
        assert blobs.read(0, 0, 10) + blobs.read(1, 0, 10) == 2 * SMALL[:10]
    assert len(said) == 1


def test_a_cache_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1,000 bytes is too small; give it 1,073,741,824 at least"):
        RemoteBlobs([], cache=tmp_path, limit=1000)


# Many threads


def test_sixteen_threads_ask_side_by_side(store: Proxy) -> None:
    """No answer comes before sixteen requests are there."""
    blobs = opened(*(store.add(f"{i}", SMALL[i:]) for i in range(16)))
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(blobs.size, range(16)))
        assert sizes == [len(SMALL) - i for i in range(16)]
        store.meeting = threading.Barrier(16)
        assert list(pool.map(lambda i: blobs.read(i, 0, 9), range(16))) == [SMALL[i : i + 9] for i in range(16)]
    assert store.count("GET") == 16


def test_a_block_that_many_want_is_asked_for_once(store: Proxy) -> None:
    store.add("x", SMALL)
    blobs = opened(store.web("x"))
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda i: blobs.read(0, i, 5), range(16))
        assert list(found) == [SMALL[i : i + 5] for i in range(16)]
    assert (store.count("HEAD"), store.count("GET")) == (2, 1)  # the second: is it still the same?


# Faults that pass


@pytest.mark.parametrize("fault", ["500", "502", "503", "504", "429", "half", "reset", "stall"])
def test_what_fails_twice_is_right_the_third_time(store: Proxy, fault: str) -> None:
    store.add("x", SMALL)
    blobs = opened(store.web("x"), patience=SHORT if fault == "stall" else FAST)
    store.faults = {"GET": [fault, fault]}
    assert blobs.read(0, 1, 40_000) == SMALL[1:40_001]
    assert store.faults["GET"] == []


def test_the_same_from_s3(store: Proxy) -> None:
    blobs = opened(store.add("x", SMALL))
    store.faults = {"HEAD": ["503", "500"], "GET": ["half", "503"]}
    assert blobs.read(0, 1, 40_000) == SMALL[1:40_001]
    assert (store.count("HEAD"), store.count("GET")) == (3, 3), "somebody else tries again too"


# Faults that stay


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("503", "503 .*; the store refuses more than it serves; try later, or with fewer threads"),
        ("half", "its answer was cut off; check the network"),
        ("stall", "no answer in time; check the network"),
    ],
)
@pytest.mark.parametrize("kind", ["s3", "web"])
def test_what_stays_is_given_up_in_one_sentence(store: Proxy, fault: str, sentence: str, kind: str) -> None:
    url = store.add("x", SMALL) if kind == "s3" else store.web("x")
    store.add("x", SMALL)
    blobs = opened(url, patience=SHORT if fault == "stall" else FAST)
    assert blobs.size(0) == len(SMALL)
    store.asked.clear()
    store.forever = fault
    with pytest.raises(UserError, match=rf"^{url}: given up after 3 tries in \d+ s: {sentence}"):
        blobs.read(0, 0, 10)
    assert store.count("GET") == 3
    store.forever = ""
    assert blobs.read(0, 0, 10) == SMALL[:10], "a fault was kept"


@pytest.mark.parametrize(("fault", "sentence"), [("403", "403 .*credentials may read it"), ("404", "check its name")])
def test_what_is_refused_is_not_tried_again(store: Proxy, fault: str, sentence: str) -> None:
    blobs = opened(store.add("x", SMALL), store.web("x"))
    sizes = blobs.size(0), blobs.size(1)
    assert sizes == (len(SMALL), len(SMALL))
    store.asked.clear()
    store.forever = fault
    for i in (0, 1):
        with pytest.raises(UserError, match=rf"^{blobs.name(i)}: .*{sentence}"):
            blobs.read(i, 0, 10)
    assert store.count("GET") == 2


def test_what_is_not_there_is_told_apart(store: Proxy) -> None:
    store.add("folder/x", SMALL)
    bucket = f"s3://{store.bucket}"
    blobs = opened(f"{bucket}/none", "s3://no-such-bucket-here/x", f"{bucket}/folder", store.web("none"))
    for i, sentence in enumerate(("not found", "404 NoSuchBucket .*check the bucket's name", "a folder", "40[34]")):
        with pytest.raises(UserError, match=rf"^{blobs.name(i)}: {sentence}"):
            blobs.size(i)


def test_a_server_without_ranges_is_said(store: Proxy) -> None:
    store.add("x", bytes(BLOCK + 1))
    blobs = opened(store.web("x"))
    store.forever = "long"
    with pytest.raises(UserError, match="answers 4,194,305 bytes where 4,194,304 were asked for; the server does not"):
        blobs.read(0, 0, 10)
    assert store.count("GET") == 1


@pytest.mark.parametrize("kind", ["s3", "s3 without If-Match", "http"])
def test_an_object_that_changes_is_said(store: Proxy, kind: str) -> None:
    """The new one has the same length; S3 refuses it, or states its ETag; a web server is asked after the answer."""
    data = bytes(2 * BLOCK)
    store.ignored = ("if-match",) if "without" in kind else ()
    url = store.add("x", data) if kind.startswith("s3") else store.web("x")
    store.add("x", data)
    blobs = opened(url)
    assert blobs.read(0, 0, 5) == data[:5]
    store.add("x", b"\1" * len(data))
    with pytest.raises(UserError, match=rf"^{url}: changed while it was being used; .* start again"):
        blobs.read(0, BLOCK, 5)


def test_a_store_that_is_not_there(store: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    blobs = opened(f"s3://{store.bucket}/x", "http://127.0.0.1:1/x")
    for i in (0, 1):
        with pytest.raises(UserError, match=rf"^{blobs.name(i)}: given up after 3 tries in \d+ s: .*connect"):
            blobs.size(i)


# Credentials


def test_without_credentials_it_says_where_they_come_from(
    store: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="no credentials; give credentials, as AWS_ACCESS_KEY_ID and"):
        opened(store.add("x", SMALL)).size(0)
    assert store.asked == []


def test_a_public_bucket_needs_none(store: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice of the sentence before; fsspec reads the environment when it is imported."""
    from fsspec.config import conf, set_conf_env

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setitem(conf, "s3", {})
    set_conf_env(conf, {"FSSPEC_S3": '{"anon": true}'})
    assert opened(store.add("x", SMALL)).read(0, 0, 9) == SMALL[:9]
    assert not any("authorization" in headers for headers in store.headers)


def test_passwords_of_web_servers_come_from_netrc(
    store: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.add("x", SMALL)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", os.fspath(tmp_path / "netrc"))
    store.forever = "401"
    with pytest.raises(UserError, match=r"401 .*put a name and a password into ~/\.netrc"):
        opened(store.web("x")).size(0)
    assert all(headers["authorization"].startswith("Basic ") for headers in store.headers)


# What will be read


def settled(blobs: RemoteBlobs) -> None:
    """Wait until nothing is fetched any more."""
    for _ in range(2000):
        if blobs._fetchers == 0:
            return
        time.sleep(0.005)
    raise AssertionError("still fetching")


def test_what_will_be_read_is_fetched_meanwhile(store: Proxy, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 * BLOCK + 5)
    blobs = opened(store.add("x", data), store.add("y", SMALL), cache=tmp_path)
    assert blobs.read(0, BLOCK, 1) == data[BLOCK : BLOCK + 1]
    store.faults = {"GET": ["503"]}
    blobs.soon([(0, BLOCK - 1, 2), (0, 3 * BLOCK, 5), (1, 10, 10), (1, 30, 10)])
    settled(blobs)
    assert store.count("GET") == 1 + 3 + 1, "two blocks and the other object; one was refused at first"
    store.forever = "404"
    blobs.soon([(0, 0, BLOCK), (1, 0, 10)])
    settled(blobs)
    assert (blobs.read(0, 0, 2 * BLOCK), blobs.read(0, 3 * BLOCK, 5)) == (data[: 2 * BLOCK], data[3 * BLOCK :])
    assert blobs.read(1, 0, len(SMALL)) == SMALL
    assert store.count("GET") == 5


def test_what_cannot_be_fetched_meanwhile_is_said_to_its_reader(store: Proxy, tmp_path: Path) -> None:
    blobs = opened(store.add("x", SMALL), f"s3://{store.bucket}/none", cache=tmp_path)
    blobs.size(0)
    store.forever = "403"
    blobs.soon([(0, 0, 5), (1, 0, 5)])
    settled(blobs)
    with pytest.raises(UserError, match="403"):
        blobs.read(0, 0, 5)
    store.forever = ""
    assert blobs.read(0, 0, 5) == SMALL[:5]


def test_what_is_no_longer_wanted_is_taken_back(store: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FETCHERS", 2)
    blobs = opened(*(store.add(f"{k}", SMALL) for k in range(9)), cache=tmp_path)
    assert {blobs.size(k) for k in range(9)} == {len(SMALL)}
    store.meeting = threading.Barrier(3)  # the two that are on their way, and this test
    blobs.soon([(k, 0, 5) for k in range(9)])
    while store.count("GET") < 2:
        time.sleep(0.005)
    blobs.soon([])
    store.meeting.wait(10)
    settled(blobs)
    assert store.count("GET") == 2


def test_without_a_cache_on_disk_nothing_is_fetched_beforehand(store: Proxy) -> None:
    blobs = opened(store.add("x", SMALL))
    blobs.soon([(0, 0, 5)])
    settled(blobs)
    assert store.count("GET") == 0

"""Google's and Azure's stores, and an S3 that is not moto's: the real drivers, asking servers on this machine."""

from __future__ import annotations

import importlib.util
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnetkit.data.source import open_data
from resnetkit.errors import UserError
from resnetkit.stores import NotThere, Patience, Store
from store_server import CREDENTIALS, Proxy, proxy, server
from tar_samples import jpeg, samples, tar_bytes

FAST = Patience(tries=2, wait=0.01)
ACCOUNT = "devstoreaccount1"  # and its key: those that Azurite's documentation prints
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
BUCKET = "pictures"


def google(port: str) -> list[str]:
    program = "import sys; from gcp_storage_emulator.__main__ import main; sys.exit(main(sys.argv[1:]))"
    return [
        *(sys.executable, "-c", program, "start", "--in-memory"),
        *("--host", "127.0.0.1", "--port", port, "--default-bucket", BUCKET),
    ]


def rclone(port: str) -> list[str]:
    keys = f"{CREDENTIALS['AWS_ACCESS_KEY_ID']},{CREDENTIALS['AWS_SECRET_ACCESS_KEY']}"
    return [program("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", keys, "."]


def program(name: str) -> str:
    """Where it is: beside this Python, or on the PATH; "" where it is not."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name) or ""


def azure(port: str) -> list[str]:
    return [program("azurite-blob"), "--inMemoryPersistence", "--skipApiVersionCheck", "--blobPort", port]


@pytest.fixture(scope="module", params=["gs", "az", "s3"])
def emulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A protocol, and the address of an emulator with one bucket, or container."""
    protocol = str(request.param)
    for package in {"gs": ("gcsfs", "gcp_storage_emulator"), "az": ("adlfs",), "s3": ("s3fs",)}[protocol]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, the extra 'elsewhere'")
    if protocol == "az" and not program("azurite-blob"):
        pytest.skip("needs azurite-blob on the PATH: npm install -g azurite")
    if protocol == "s3" and not program("rclone"):
        pytest.skip("needs rclone, the extra 'elsewhere'")
    folder = tmp_path_factory.mktemp("store")
    (folder / BUCKET).mkdir()  # rclone's buckets are folders
    with server({"gs": google, "az": azure, "s3": rclone}[protocol], folder) as address:
        if protocol == "az":
            from azure.storage.blob import BlobServiceClient

            with BlobServiceClient.from_connection_string(connection(address)) as client:
                client.create_container(BUCKET)
        yield protocol, address


def connection(address: str) -> str:
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={address}/{ACCOUNT};"


@pytest.fixture
def place(emulator: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Proxy]]:
    """Where objects go, and the proxy that their reader asks."""
    import fsspec

    protocol, address = emulator
    with proxy(address) as between:
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        monkeypatch.setitem(fsspec.config.conf, "abfs", {"connection_string": connection(between.address)})
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": between.address}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", between.address)
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which asks by gRPC; the emulator has none
        yield f"{protocol}://{BUCKET}", between


def test_what_is_put_can_be_read_and_listed(place: tuple[str, Proxy], tmp_path: Path) -> None:
    base, _ = place
    store, file, url = Store(base, FAST), tmp_path / "file", f"{base}/out/x-0.bin"
    file.write_bytes(random.Random(0).randbytes(900_000))
    assert not store.exists(url)
    store.put(url, file)
    facts = store.facts(url)
    assert facts.size == 900_000
    assert facts.stamp
    assert store.read(url, 5, 100, facts) == file.read_bytes()[5:105]
    assert store.read(url, 0, facts.size, facts) == file.read_bytes()
    assert store.glob(f"{base}/out/x-*.bin") == [url]
    file.write_bytes(b"abc")
    store.put(url, file)
    with pytest.raises(UserError, match=rf"^{url}: changed while it was being used"):
        store.read(url, 0, 3, facts)
    with pytest.raises(NotThere, match=rf"^{base}/no: not found"):
        store.facts(f"{base}/no")
    with pytest.raises(UserError, match=r"no-such-bucket/x: (not found|404 NoSuchBucket)"):
        store.facts(f"{base.rpartition('/')[0]}/no-such-bucket/x")


@pytest.mark.parametrize("emulator", ["gs"], indirect=True)
def test_googles_driver_leaves_trying_to_us(
    place: tuple[str, Proxy], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base, between = place
    store, url = Store(base, FAST), f"{base}/x"
    (tmp_path / "x").write_bytes(b"abc")
    store.put(url, tmp_path / "x")
    facts = store.facts(url)
    between.faults = {"GET": ["503"]}
    assert store.read(url, 1, 2, facts) == b"bc"
    between.asked.clear()
    between.forever = "503"
    with pytest.raises(UserError, match=rf"^{url}: given up after 2 tries in 0 s: .*503"):
        store.read(url, 1, 2, facts)
    # aiohttp asks once more where a connection that it kept turns out to be closed; gcsfs would ask six times.
    assert between.count("GET") in (2, 3)
    assert capfd.readouterr() == ("", "")


def test_pictures_come_from_tars_and_parquet(place: tuple[str, Proxy], tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    base, _ = place
    store = Store(base, FAST)
    for n in range(2):
        (tmp_path / "x").write_bytes(tar_bytes(samples(range(8 * n, 8 * n + 8))))
        store.put(f"{base}/train-{n}.tar", tmp_path / "x")
    images = [{"bytes": jpeg(k), "path": f"{k}.jpg"} for k in range(16)]
    parquet.write_table(arrow.table({"image": images, "label": [k % 2 for k in range(16)]}), tmp_path / "x")
    store.put(f"{base}/train.parquet", tmp_path / "x")
    for spec in (f"{base}/train-{{0..1}}.tar", f"{base}/train-*.tar", f"{base}/train.parquet"):
        data = open_data(spec)
        assert data.labels.tolist() == [k % 2 for k in range(16)]
        assert [data.pictures.read(i) for i in range(16)] == [jpeg(k) for k in range(16)]

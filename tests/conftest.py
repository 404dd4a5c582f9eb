"""What several test files share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from resnetkit import cli
from resnetkit.engines import opening
from resnetkit.engines.starting import engines_for
from store_server import CREDENTIALS, Proxy, moto, proxy, upload

settings.register_profile("resnetkit", deadline=None)  # no test measures time; machines are busy
settings.load_profile("resnetkit")


PARITY = Path(__file__).parents[1] / "results" / "parity.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-parity", action="store_true", help="write results/parity.json from what is proved")


@pytest.fixture(scope="session")
def parity(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Takes a proof, a row of results/parity.json: writes it there when asked to, else wants to find it there."""
    recording = request.config.getoption("--record-parity")
    known = {} if recording else {key(row): row for row in json.loads(PARITY.read_text())["rows"]}
    proved: dict[tuple[str, str], dict[str, Any]] = {}

    def note(**row: Any) -> None:
        proved[key(row)] = row | {"difference": float(f"{row['difference']:.1e}")}
        if not recording:
            assert key(row) in known, f"{key(row)} is proved but not in {PARITY.name}; run: make parity"

    yield note
    if recording:
        rows = [proved[name] for name in sorted(proved)]
        versions = {name: version(name) for name in ("torch", "torchvision", "timm", "transformers")}
        PARITY.write_text(json.dumps({"rows": rows, "versions": versions}, indent=1) + "\n")


def key(row: dict[str, Any]) -> tuple[str, str]:
    return row["library"], row["architecture"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures beside a checkout, which a clone does not have."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, real pictures that are not part of the repository")
    return folder


@pytest.fixture
def resnet(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ending:
            cli.main(arguments)
        out, err = capfd.readouterr()
        return int(ending.value.code or 0), out, err

    return run


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is prepared for engines goes away with the tests and comes from nowhere else, in processes of theirs too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_race(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's own engine answers, unless the test is marked `race`: timing all of them takes seconds each time."""
    if request.node.get_closest_marker("race") is None:
        monkeypatch.setattr(opening, "choose", lambda source, *_: (engines_for(source)[0], "as in all tests"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On networks this small a second thread mostly waits for the first, and on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def moto_address() -> Iterator[str]:
    """S3 on this machine, empty."""
    for module in ("moto", "flask_cors", "s3fs"):
        pytest.importorskip(module, reason="needs moto's server and s3fs: pip install 'resnetkit[dev]'")
    with moto() as address:
        yield address


@pytest.fixture
def store(moto_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to an S3 with a new bucket, `store.bucket`, for whoever reads AWS_ENDPOINT_URL."""
    with proxy(moto_address) as way:
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", way.address)
        upload(f"{moto_address}/{way.bucket}")
        yield way

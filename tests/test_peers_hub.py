"""The hub's own client against a hub on this machine: what is fetched, what is kept, and what a refusal says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch

from hub_server import COMMITS, hub
from resnetkit.errors import UserError
from resnetkit.model import ResNet, architecture
from resnetkit.peers.hub import fetch
from resnetkit.peers.sources import import_weights, is_on_hub
from resnetkit.weights import open_model

constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra hub")


def repository(labels: list[str]) -> dict[str, bytes]:
    """A ResNet-18 as a folder of timm."""
    about = {
        "input_size": [3, 64, 64],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
    }
    config = {"architecture": "resnet18", "num_classes": 2, "label_names": labels, "pretrained_cfg": about}
    network = ResNet(architecture("resnet18", classes=2))
    weights = safetensors.torch.save(network.state_dict())
    return {"config.json": json.dumps(config).encode(), "model.safetensors": weights}


class Hub(NamedTuple):
    address: str
    asked: list[str]
    cache: Path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    net = {"main": repository(["cat", "dog"]), "v1": repository(["cow", "hen"])}
    bare = {"main": {"config.json": b"{}"}}
    cache = tmp_path / "cache"
    with hub({"own/net": net, "own/bare": bare, "own/empty": {"main": {}}}, gated="own/gated") as (address, asked):
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield Hub(address, asked, cache)


def files(asked: list[str]) -> list[str]:
    """Questions about files; the client also asks once what its hub offers."""
    return [line for line in asked if "/resolve/" in line]


def downloads(asked: list[str]) -> list[str]:
    return [line.rpartition("/")[2] for line in files(asked) if line.startswith("GET")]


def test_a_repository_becomes_a_model_file(server: Hub, tmp_path: Path) -> None:
    model = import_weights("own/net", out=tmp_path / "m.safetensors")
    assert (model.classes, model.preprocess.resize_to) == (("cat", "dog"), 71)
    assert model.provenance == {"imported_from": "own/net", "commit": COMMITS["main"]}
    assert open_model(tmp_path / "m.safetensors").provenance == model.provenance
    assert downloads(server.asked) == ["config.json", "model.safetensors"]
    import_weights("own/net", out=tmp_path / "n.safetensors")
    assert downloads(server.asked) == ["config.json", "model.safetensors"], "what is in the cache is not fetched again"


def test_a_revision_is_pinned(server: Hub, tmp_path: Path) -> None:
    for revision in ("v1", COMMITS["v1"]):
        model = import_weights("own/net", revision=revision, out=tmp_path / f"{revision}.safetensors")
        assert (model.classes, model.provenance["commit"]) == (("cow", "hen"), COMMITS["v1"])
    assert server.asked


def test_offline_asks_the_cache_alone(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match="own/net: not in the hub's cache, and the hub cannot be reached or must not be"
    ):
        fetch("own/net", offline=True)
    assert files(server.asked) == []
    folder = fetch("own/net")
    server.asked.clear()
    assert fetch("own/net", offline=True) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("own/net") == folder
    import_weights("own/net", out=tmp_path / "m.safetensors")
    assert files(server.asked) == []


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("own/nothing", None, "own/nothing: no such file here and no such repository on the hub, or a private one"),
        ("own/net", "v9", "own/net: has no revision 'v9'; leave --revision out for main"),
        ("own/gated", None, "own/gated: asks for an agreement; accept it on its page"),
        ("own/bare", None, "own/bare: holds neither model.safetensors nor pytorch_model.bin"),
        ("own/empty", "main", "own/empty at main: holds no config.json; is it a model of timm or Transformers?"),
    ],
)
def test_a_refusal_is_one_sentence(server: Hub, name: str, revision: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as failure:
        import_weights(name, revision=revision, out=tmp_path / "m.safetensors")
    assert str(failure.value).startswith(message)
    assert "\n" not in str(failure.value)
    assert server.asked
    assert not (tmp_path / "m.safetensors").exists()


def test_without_its_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"install its client: pip install 'resnetkit\[hub\]'"):
        fetch("own/net")


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("timm/resnet50.a1_in1k", True),
        ("microsoft/resnet-50", True),
        ("weights/resnet50.pth", False),
        ("weights/m.safetensors", False),
        ("./net", False),
        ("net", False),
        ("a/b/c", False),
        ("here/net", False),
    ],
)
def test_only_a_name_that_can_be_nothing_else_goes_to_the_hub(
    source: str, meant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "net").mkdir(parents=True)
    assert is_on_hub(source) == meant


def test_the_command_says_that_it_asks(
    server: Hub, resnet: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = resnet("import", "own/net", "--out", "m.safetensors")
    assert code == 0
    assert err.startswith("resnet: own/net: no such file here; asking the Hugging Face hub (revision main)\n")
    assert "m.safetensors: resnet18, 2 classes; shorter side 71 bicubic, centre 64" in out
    code, _, err = resnet("import", "own/net", "--offline", "--out", "n.safetensors", "--json")
    assert (code, err) == (0, "resnet: own/net: no such file here; looking into the hub's cache (revision main)\n")
    assert server.asked


def test_nothing_else_asks_the_network() -> None:
    """A process that cannot open a connection imports everything, and the client is not loaded with it."""
    code = (
        "import socket, sys, pkgutil, importlib, resnetkit\n"
        "def refuse(*_): raise AssertionError('asked the network')\n"
        "socket.socket.connect = refuse\n"
        "names = [m.name for m in pkgutil.walk_packages(resnetkit.__path__, 'resnetkit.') if 'main' not in m.name]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print('huggingface_hub' in sys.modules, 'timm' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False False\n"

"""Exports: what a peer cannot be told is said, nothing is written over, nothing half-written stays; and the card."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resnetkit import atomic
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.evaluation import wilson
from resnetkit.model import Architecture, ResNet, architecture
from resnetkit.peers import exports
from resnetkit.peers.exports import export
from resnetkit.peers.timm import crop_share
from resnetkit.weights import ModelFile, save_model
from torchvision_shim import peer

STEPS = Preprocess(64, "shorter", 73, "bicubic", 3, "RGB", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), exif=False)
METRICS = {
    "n": 60,
    "correct": 45,
    "top1": 0.75,
    "top1_interval": wilson(45, 60),
    "top5": None,
    "ece": 0.05,
    "protocol": "photos, test, single centre crop",
    "per_class": [
        {"name": "cat", "n": 40, "correct": 35, "top1": 0.875},
        {"name": "dog", "n": 20, "correct": 10, "top1": 0.5},
    ],
}


def model(arch: Architecture | None = None, preprocess: Preprocess = STEPS, **about: Any) -> ModelFile:
    torch.manual_seed(0)
    arch = arch or architecture("resnet18", classes=2)
    return ModelFile(ResNet(replace(arch, classes=2)).eval(), ("cat", "dog"), preprocess, **about)


@pytest.mark.parametrize(
    ("arch", "peers", "why"),
    [
        (architecture("resnet18", shortcut="A"), ("timm", "transformers", "torchvision"), "shortcut A"),
        (architecture("resnet18", shortcut="C"), ("timm", "transformers", "torchvision"), "shortcut C"),
        (architecture("plain18"), ("timm", "transformers", "torchvision"), "no shortcuts"),
        (architecture("resnet18", stem_stride=2), ("timm", "transformers", "torchvision"), "stem stride 2"),
        (architecture("resnet18", norm="none"), ("timm", "transformers", "torchvision"), "no normalisation"),
        (architecture("resnet26", stride="1x1"), ("timm", "torchvision"), "stride in the 1x1"),
        (architecture("resnet18", pool="ceil"), ("timm", "transformers"), "max pool without padding"),
        (architecture("resnet18", stem_bias=True), ("timm", "transformers"), "bias in the stem"),
        (architecture("resnet26d"), ("transformers", "torchvision"), "deep stem, average pooling before projections"),
        (architecture("seresnet18"), ("transformers", "torchvision"), "squeeze and excitation"),
        (architecture("resnetv2_18"), ("transformers", "torchvision"), "pre-activation"),
        (architecture("resnet26"), ("torchvision",), "bottleneck blocks 2-2-2-2"),
        (replace(architecture("resnet18"), width=32), ("timm", "torchvision"), "32 channels in the stem"),
    ],
)
def test_a_network_that_a_peer_lacks_is_refused_with_the_reason(
    arch: Architecture, peers: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    for name in peers:
        with pytest.raises(UserError, match=f"has no such network \\({why}\\); choose another --to"):
            export(model(arch), name, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, {"timm": [], "torchvision": [], "transformers": ["halves an odd border the other way"]}),
        ({"centre": "down"}, {"timm": ["halves an odd"], "torchvision": ["halves an odd"], "transformers": []}),
        ({"exif": True}, {"timm": ["EXIF orientation"], "torchvision": ["EXIF orientation"]}),
        ({"resize": "stretch"}, {"timm": [], "transformers": []}),
    ],
)
def test_what_a_peer_does_another_way_is_said(
    changes: dict[str, Any], said: dict[str, list[str]], tmp_path: Path
) -> None:
    for name, words in said.items():
        notes = export(model(preprocess=replace(STEPS, **changes)), name, tmp_path / name).notes
        assert len(notes) == len(words)
        assert all(word in note for word, note in zip(words, notes, strict=True))


def test_what_would_change_the_answers_is_refused(tmp_path: Path) -> None:
    per_pixel = replace(STEPS, mean=(0.5,) * (3 * 64 * 64))
    for name in ("timm", "transformers", "torchvision"):
        with pytest.raises(UserError, match="the model subtracts a mean picture"):
            export(model(preprocess=per_pixel), name, tmp_path / name)
    with pytest.raises(UserError, match="stretched, which torchvision's ImageClassification cannot"):
        export(model(preprocess=replace(STEPS, resize="stretch")), "torchvision", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(UserError, match=r"config\.json: exists already; choose another --out"):
        export(model(), "timm", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "mine"
    with pytest.raises(UserError, match=r"config\.json: a file; --out is a folder"):
        export(model(), "timm", tmp_path / "config.json")
    with pytest.raises(UserError, match="to='keras': choose from timm, transformers, torchvision, hub-card"):
        export(model(), "keras", tmp_path / "out")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_stays(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name == "model.safetensors":
            raise error
        atomic.write_bytes(path, data)

    monkeypatch.setattr(exports, "write_bytes", full)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        export(model(), "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(st.integers(1, 1000), st.integers(0, 600))
def test_timms_share_gives_the_side_back(size: int, border: int) -> None:
    assert math.floor(size / crop_share(size, size + border)) == size + border


# The card


@pytest.mark.parametrize("library", ["timm", "transformers", "torchvision", "resnetkit"])
def test_the_card_lies_beside_an_export_and_says_how_to_open_it(library: str, tmp_path: Path) -> None:
    scored = model(metrics=METRICS, provenance={"data": {"spec": "photos", "fingerprint": "ab12"}})
    if library != "resnetkit":
        export(scored, library, tmp_path)
    (file,) = export(scored, "hub-card", tmp_path).files
    text = Path(file).read_text()
    imports = {"timm": "timm", "transformers": "transformers", "torchvision": "torchvision", "resnetkit": "resnetkit"}
    assert f"import {imports[library]}" in text or f"from {imports[library]} import" in text
    assert "| top-1 | 75.00 % | 62.77 to 84.22 |" in text
    assert "Weakest classes: dog 50 % of 20, cat 88 % of 40." in text
    assert "as few as 20 pictures" in text
    assert str(STEPS) in text
    with pytest.raises(UserError, match=r"README\.md: exists already"):
        export(scored, "hub-card", tmp_path)


@pytest.mark.parametrize("library", ["timm", "transformers", "torchvision"])
def test_the_program_on_the_card_runs(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer("timm")
    peer("transformers")
    image = peer("PIL.Image")
    monkeypatch.chdir(tmp_path)
    image.effect_noise((80, 90), 90).convert("RGB").save("a.jpg")
    export(model(), library, "out")
    export(model(), "hub-card", "out")
    program = Path("out/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert "FOLDER" in program
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        exec(compile(program.replace("FOLDER", str(tmp_path / "out")), "card", "exec"), names)
    if library == "torchvision":
        assert names["transform"](image.open("a.jpg")).shape == (3, 64, 64)
    else:
        assert names["logits"].shape == (1, 2)


def test_the_hubs_own_reader_understands_the_card(tmp_path: Path) -> None:
    hub = peer("huggingface_hub")
    scored = model(metrics=METRICS, provenance={"data": {"spec": "photos/ü: x", "fingerprint": "ab12"}})
    (file,) = export(scored, "hub-card", tmp_path).files
    data = hub.ModelCard.load(file).data
    assert (data.library_name, data.pipeline_tag) == ("resnetkit", "image-classification")
    (result,) = data.eval_results
    assert (result.metric_value, result.dataset_name) == (0.75, "photos/ü: x")


def test_a_model_without_scores_says_so(tmp_path: Path) -> None:
    (file,) = export(model(), "hub-card", tmp_path).files
    text = Path(file).read_text()
    assert "Not measured with this file" in text
    assert "model-index" not in text


# The command


def test_the_command_writes_and_says(resnet: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    save_model(model(preprocess=replace(STEPS, exif=True)), tmp_path / "m.safetensors")
    code, out, err = resnet("export", str(tmp_path / "m.safetensors"), "--to", "timm", "--out", str(tmp_path / "out"))
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == [str(tmp_path / "out" / name) for name in ("config.json", "model.safetensors")]
    assert out.splitlines()[2].startswith("note: timm does not turn pictures as their EXIF orientation says")
    code, out, _ = resnet(
        "export", str(tmp_path / "m.safetensors"), "--to", "hub-card", "--out", str(tmp_path / "out"), "--json"
    )
    assert json.loads(out) == {"files": [str(tmp_path / "out" / "README.md")], "notes": []}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architecture"], config["label_names"]) == ("resnet18", ["cat", "dog"])
    assert asdict(STEPS)["size"] == config["pretrained_cfg"]["input_size"][1]

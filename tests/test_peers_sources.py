"""What is read of other people's files, what is asked for, and what wrong ones say."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import ResNet, architecture
from resnetkit.peers import names, torchvision
from resnetkit.peers.sources import import_weights, open_source
from resnetkit.weights import ModelFile, save_model
from torchvision_shim import peer

ARCH = architecture("resnet18", classes=2)
STEPS = Preprocess(64, "shorter", 73, "bicubic", 3, "RGB", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), exif=False)
ABOUT = {"input_size": [3, 64, 64], "interpolation": "bicubic", "crop_pct": 0.875, "mean": [0.5, 0.4, 0.3]}
TIMM = {
    "architecture": "resnet18",
    "num_classes": 2,
    "label_names": ["cat", "dog"],
    "pretrained_cfg": {**ABOUT, "std": [0.2, 0.2, 0.2]},
}
HUGGING = {
    "model_type": "resnet",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "layer_type": "basic",
    "id2label": {"0": "cat", "1": "dog"},
}
PROCESSOR = {
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "size": 64,
    "crop_pct": 0.875,
    "resample": 3,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.2, 0.2],
}


def network() -> ResNet:
    torch.manual_seed(0)
    return ResNet(ARCH).eval()


def timm_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TIMM | changes))
    safetensors.torch.save_file(network().state_dict(), folder / "model.safetensors")
    return folder


def hugging_folder(folder: Path, processor: dict[str, Any] | None = PROCESSOR, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(HUGGING | changes))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    tensors = {names.transformers(name, ARCH): tensor for name, tensor in network().state_dict().items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


# What is read


def test_a_folder_of_timm_says_it_all(tmp_path: Path) -> None:
    model = import_weights(timm_folder(tmp_path / "net"), out=tmp_path / "m.safetensors")
    assert model.network.arch == ARCH
    assert model.classes == ("cat", "dog")
    assert model.preprocess == STEPS
    assert model.provenance == {"imported_from": "net"}


def test_a_folder_of_transformers_says_it_all(tmp_path: Path) -> None:
    model = import_weights(hugging_folder(tmp_path / "net"), out=tmp_path / "m.safetensors")
    assert model.network.arch == ARCH
    assert model.classes == ("cat", "dog")
    assert (model.preprocess.resize_to, model.preprocess.centre, model.preprocess.filter) == (73, "down", "bicubic")


@pytest.mark.parametrize(
    ("steps", "resize", "side", "size"),
    [
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.95}, "shorter", 235, 224),
        ({"size": {"shortest_edge": 384}}, "stretch", 384, 384),
        (
            {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": 224},
            "shorter",
            256,
            224,
        ),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}, "stretch", 224, 224),
    ],
)
def test_image_processors_are_understood(
    steps: dict[str, Any], resize: str, side: int, size: int, tmp_path: Path
) -> None:
    """The same steps as Transformers takes, seen on the size of what it makes of a picture."""
    found = open_source(hugging_folder(tmp_path / "net", PROCESSOR | steps)).stated.preprocess
    assert found is not None
    assert (found.resize, found.resize_to, found.size) == (resize, side, size)
    library, image = peer("transformers"), peer("PIL.Image")
    theirs = library.AutoImageProcessor.from_pretrained(tmp_path / "net", backend="pil")
    picture = image.effect_noise((301, 400), 90).convert("RGB")
    given = theirs(picture, return_tensors="np")["pixel_values"][0]
    path = tmp_path / "a.png"
    picture.save(path)
    mine = found.normalise(torch.from_numpy(found.fit(found.load(path.read_bytes()))[None]))[0].numpy()
    assert mine.shape == given.shape
    assert abs(mine - given).max() < 1.01 / 255 / 0.2  # a level


def test_two_outputs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folder = hugging_folder(tmp_path / "net", id2label={"0": "crane", "1": "crane"})
    model = import_weights(folder, out=tmp_path / "m.safetensors")
    assert model.classes == ("crane #0", "crane #1")
    assert model.provenance["notes"] == [
        "some outputs share a name; it now has the output's number too: crane #0, crane #1"
    ]


def test_labels_are_sorted_by_number(tmp_path: Path) -> None:
    """As strings, 10 comes before 2."""
    labels = {str(i): f"c{i}" for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    tensors = ResNet(architecture("resnet18", classes=11)).state_dict()
    folder = hugging_folder(tmp_path / "net", id2label=labels)
    torch.save(
        {names.transformers(name, ARCH): tensor for name, tensor in tensors.items()}, folder / "pytorch_model.bin"
    )
    assert import_weights(folder, out=tmp_path / "m.safetensors").classes == tuple(f"c{i}" for i in range(11))


def test_what_is_not_said_is_asked_for(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "net", label_names=None)
    with pytest.raises(UserError, match=r"net: states no class names; say it with --classes$"):
        import_weights(folder, out=tmp_path / "m.safetensors")
    assert import_weights(folder, classes=("a", "b"), out=tmp_path / "m.safetensors").classes == ("a", "b")
    placeholders = hugging_folder(tmp_path / "other", None, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    with pytest.raises(
        UserError, match=r"states no class names, no preprocessing; say it with --classes, --size, --crop"
    ):
        import_weights(placeholders, out=tmp_path / "n.safetensors")
    with pytest.raises(UserError, match=r"net: states its own preprocessing; leave out --size"):
        import_weights(folder, classes=("a", "b"), preprocess=STEPS, out=tmp_path / "n.safetensors")
    assert not (tmp_path / "n.safetensors").exists()


def test_timms_test_size_is_noted(tmp_path: Path) -> None:
    about = TIMM["pretrained_cfg"] | {"test_input_size": [3, 96, 96], "test_crop_pct": 1.0}  # type: ignore[operator]
    model = import_weights(timm_folder(tmp_path / "net", pretrained_cfg=about), out=tmp_path / "m.safetensors")
    assert model.preprocess == STEPS
    assert model.provenance["notes"] == ["its authors test it at 96 pixels: resnet evaluate … --size 96 --crop 1"]


def test_torchvisions_published_files_are_known_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "mine.pth"
    torch.save(ResNet(architecture("resnet18")).state_dict(), plain)
    assert open_source(plain).stated.preprocess is None
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    monkeypatch.setitem(torchvision.PUBLISHED, digest[:8], ("resnet18", 232))
    stated = open_source(plain).stated
    assert stated.arch == architecture("resnet18")
    assert stated.preprocess is not None
    assert (stated.preprocess.resize_to, stated.preprocess.filter, stated.classes) == (232, "bilinear", None)
    plain.rename(tmp_path / "resnet18-f37072fd.pth")
    with pytest.raises(UserError, match=rf"its SHA-256 begins with f37072fd, but it begins with {digest[:8]}: damaged"):
        open_source(tmp_path / "resnet18-f37072fd.pth")


def test_the_table_of_published_files_is_torchvisions() -> None:
    """Architecture, file and preprocessing of every set of ResNet weights that torchvision offers."""
    library = peer("torchvision.models")
    offered = {}
    for name in dict.fromkeys(name for name, _ in torchvision.PUBLISHED.values()):
        for weights in library.get_model_weights(name):
            if "SWAG" not in weights.name:
                offered[weights.url[-12:-4]] = (name, weights.transforms())
    assert offered.keys() <= torchvision.PUBLISHED.keys()
    first = {"5c106cde", "333f7ec4", "19c8e357", "5d3b4d8f", "b121ed2d"}  # from before torchvision's offer
    assert torchvision.PUBLISHED.keys() - offered.keys() == first
    for digest, (name, steps) in offered.items():
        assert torchvision.PUBLISHED[digest] == (name, steps.resize_size[0])
        assert (steps.crop_size, steps.interpolation.value) == ([224], "bilinear")
        assert (tuple(steps.mean), tuple(steps.std)) == (torchvision.MEAN, torchvision.STD)


@pytest.mark.parametrize("wrapper", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "net.backbone."])
def test_a_prefix_before_all_names_is_taken_off(wrapper: str, tmp_path: Path) -> None:
    torch.save({f"{wrapper}{name}": tensor for name, tensor in network().state_dict().items()}, tmp_path / "w.pth")
    model = import_weights(
        tmp_path / "w.pth", arch=ARCH, classes=("a", "b"), preprocess=STEPS, out=tmp_path / "m.safetensors"
    )
    assert torch.equal(model.network.fc.weight, network().fc.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "net")
    safetensors.torch.save_file(
        {name: t.to(dtype) if t.is_floating_point() else t for name, t in network().state_dict().items()},
        folder / "model.safetensors",
    )
    model = import_weights(folder, out=tmp_path / "m.safetensors")
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert torch.allclose(model.network.fc.weight, network().fc.weight, atol=1e-3)


def test_names_of_timm_and_transformers_are_known_without_a_folder(tmp_path: Path) -> None:
    v2 = architecture("resnetv2_50d", classes=2)
    for arch, naming in ((ARCH, names.transformers), (v2, names.timm)):
        tensors = ResNet(arch).state_dict()
        torch.save({naming(name, arch): tensor for name, tensor in tensors.items()}, tmp_path / "w.pth")
        model = import_weights(
            tmp_path / "w.pth",
            arch=arch,
            classes=("a", "b"),
            preprocess=STEPS,
            out=tmp_path / f"{arch.name}.safetensors",
        )
        assert torch.equal(model.network.fc.weight, tensors["fc.weight"])


# Wrong ones


class Trap:
    """Runs a function when it is unpickled without care."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize(
    ("trap", "wanted"),
    [
        (Trap(os.system, "true"), "posix.system"),
        (Trap(eval, "1"), "eval"),
        (Trap(__import__, "os"), "__import__"),
        (Trap(getattr, "torch", "upper"), "getattr"),
    ],
)
def test_a_pickle_that_would_run_code_is_refused_by_name(trap: Trap, wanted: str, tmp_path: Path) -> None:
    folder = hugging_folder(tmp_path / "net")
    torch.save({"state_dict": {"conv1.weight": trap}}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"refused: opening it would run code \({wanted}\)"):
        open_source(folder)


def without(name: str) -> dict[str, Any]:
    return {key: tensor for key, tensor in network().state_dict().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without("layer1.0.bn1.running_var"), r"missing layer1\.0\.bn1\.running_var \(64,\)"),
        (network().state_dict() | {"extra.weight": torch.zeros(3)}, r"unexpected extra\.weight \(3,\)"),
        (
            network().state_dict() | {"conv1.weight": torch.zeros(64, 3, 3, 3)},
            r"conv1\.weight is \(64, 3, 3, 3\), not \(",
        ),
        (network().state_dict() | {"fc.bias": torch.zeros(7)}, "has 7 outputs, but 2 classes are named"),
        ({f"a.{name}": tensor for name, tensor in without("conv1.weight").items()}, r"missing conv1\.weight"),
        ({}, r"missing conv1\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "net")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=message) as failure:
        import_weights(folder, out=tmp_path / "m.safetensors")
    assert str(failure.value).startswith(f"{folder}: ")
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "m.safetensors").exists()


def changed(**changes: Any) -> dict[str, Any]:
    about = copy.deepcopy(TIMM["pretrained_cfg"])
    return {"pretrained_cfg": about | changes}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "vit_base_patch16_224"}, "timm's vit_base_patch16_224 is no ResNet that resnetkit builds"),
        ({"architecture": "resnet50t"}, "timm's resnet50t is no ResNet that resnetkit builds"),
        ({"architecture": "plain18"}, "timm's plain18 is no ResNet that resnetkit builds"),
        ({"model_args": {"act_layer": "silu"}}, "activation 'silu': a ResNet here has ReLU"),
        ({"model_args": {"aa_layer": "blurpool"}}, "model_args aa_layer='blurpool' is not of this family"),
        ({"model_args": {"layers": [2, 2, 2, 1]}}, "does not fit resnet18: unexpected layer4.1.bn1"),
        ({"model_args": {"cardinality": 32}}, "groups and base_width are a bottleneck's"),
        ({"model_args": {"in_chans": 1}}, "preprocess mean: must be a list of 1 or 4096 numbers"),
        ({"num_classes": None}, "says nothing of num_classes"),
        ({"num_classes": 3, "label_names": ["a", "b", "c"]}, "has 2 outputs, but 3 classes are named"),
        ({"global_pool": "max"}, "global_pool 'max': a ResNet averages"),
        (changed(input_size=[3, 64, 96]), "input_size [3, 64, 96]: only square inputs"),
        (changed(crop_mode="border"), "crop_mode 'border': only 'center' and 'squash'"),
        (changed(interpolation="random"), "interpolation 'random': only bilinear, bicubic, box, lanczos"),
        (changed(crop_pct=1.2), "crop_pct 1.2: must be in (0, 1]"),
        (changed(std=[0, 0, 0]), "preprocess std=(0.0, 0.0, 0.0): must be above 0"),
    ],
)
def test_a_config_of_timm_that_cannot_be_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "net", **changes)
    with pytest.raises(UserError) as failure:
        import_weights(folder, out=tmp_path / "m.safetensors")
    assert message in str(failure.value)
    assert str(failure.value).startswith(f"{folder}: ")


@pytest.mark.parametrize(
    ("changes", "processor", "message"),
    [
        ({"model_type": "vit"}, PROCESSOR, "model_type 'vit': only Transformers' 'resnet' can be imported"),
        ({"hidden_act": "gelu"}, PROCESSOR, "activation 'gelu': a ResNet here has ReLU"),
        ({"downsample_in_first_stage": True}, PROCESSOR, "no ResNet here strides in its first stage"),
        ({"layer_type": "odd"}, PROCESSOR, "layer_type 'odd': choose from basic, bottleneck"),
        ({"hidden_sizes": [64, 96, 256, 512]}, PROCESSOR, "a ResNet of this width (64) has [64, 128, 256, 512]"),
        ({"depths": [2, 2, 2, 3]}, PROCESSOR, "missing layer4.2.conv1.weight"),
        (
            {},
            PROCESSOR | {"feature_extractor_type": "DetrFeatureExtractor"},
            "DetrImageProcessor: only those of Bit, CLIP",
        ),
        ({}, PROCESSOR | {"resample": 0}, "resample 0: only"),
        ({}, PROCESSOR | {"do_rescale": False}, "it does not resize to one size and rescale by 1/255"),
        ({}, PROCESSOR | {"rescale_factor": 1 / 128}, "it does not resize to one size and rescale by 1/255"),
        ({}, PROCESSOR | {"size": {"longest_edge": 3}}, "must have a shortest_edge"),
        ({}, PROCESSOR | {"image_mean": None}, "says nothing of image_mean and image_std"),
        (
            {},
            {**PROCESSOR, "image_processor_type": "BitImageProcessor", "crop_size": {"height": 8, "width": 9}},
            "square",
        ),
    ],
)
def test_a_config_of_transformers_that_cannot_be_is_named(
    changes: dict[str, Any], processor: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = hugging_folder(tmp_path / "net", processor, **changes)
    with pytest.raises(UserError) as failure:
        import_weights(folder, out=tmp_path / "m.safetensors")
    assert message in str(failure.value)
    assert str(failure.value).startswith(f"{folder}")


def test_folders_and_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = timm_folder(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    bare = timm_folder(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    cut = timm_folder(tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    save_model(ModelFile(network(), ("a", "b"), STEPS), tmp_path / "m.safetensors")
    for name, message in {
        "empty": "a folder without config.json; give the file with the weights",
        "broken": "config.json cannot be read as JSON",
        "bare": "holds neither model.safetensors nor pytorch_model.bin",
        "cut": "not a safetensors file, or damaged",
        "m.safetensors": "is a file of resnetkit already, nothing to import; use it as it is",
        "nowhere.pth": "no such file",
    }.items():
        with pytest.raises(UserError, match=message):
            open_source(tmp_path / name)


def test_training_begins_from_a_folder_of_a_peer(tmp_path: Path) -> None:
    from resnetkit.recipe import Recipe
    from resnetkit.starting import assumed_line, starting_weights

    given = starting_weights(hugging_folder(tmp_path / "net"), Recipe())
    assert (given.classes, given.preprocess.resize_to) == (("cat", "dog"), 73)
    assert given.network.arch == ARCH
    assert assumed_line(given) == ()

"""Exact batch statistics against torch's own over one batch, and against numpy over all pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.evaluation import evaluate
from resnetkit.model import ResNet, architecture
from resnetkit.recipe_file import with_settings
from resnetkit.recompute import even_batch, recompute_statistics
from resnetkit.shipped import shipped
from resnetkit.training import train
from resnetkit.weights import ModelFile, open_model, save_model

PREPROCESS = Preprocess(8, "shorter", 10, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
STEM = "resnet8-cifar"


def pictures(n: int) -> Data:
    """Sorted by class, as folders are; every class has a colour of its own."""
    dice = np.random.default_rng(0)
    labels = np.sort(np.arange(n) % 3)
    pixels = 40 + 80 * labels[:, None, None, None] + dice.normal(0, 30, (n, 9, 12, 3))
    pool = Arrays(np.clip(pixels, 0, 255).astype(np.uint8), (("x", n),))
    return Data("x:", pool, labels, ("ant", "bee", "cat"), {"train": np.arange(n), "val": np.arange(n)[::2]})


def model(arch: str = STEM, **choices: object) -> ModelFile:
    """Untrained, with statistics that fit nothing."""
    torch.manual_seed(0)
    network = ResNet(architecture(arch, classes=3, **choices)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    about = {"recipe": {"name": "small"}}
    return ModelFile(network, ("ant", "bee", "cat"), PREPROCESS, metrics={"top1": 0.5}, provenance=about)


def inputs(data: Data, split: str = "train") -> torch.Tensor:
    """What the network sees, all of it at once."""
    fitted = [PREPROCESS.fit(data.pictures.read(i)) for i in data.splits[split].tolist()]
    return PREPROCESS.normalise(torch.from_numpy(np.stack(fitted)))


def norms(network: ResNet) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


@pytest.mark.parametrize("arch", [STEM, "resnetv2_18", "resnet18d", "seresnet18"])
def test_one_batch_of_everything_gives_torchs_own_statistics(arch: str, tmp_path: Path) -> None:
    """With momentum 1 torch keeps the mean and the unbiased variance of the last batch."""
    data, file = pictures(24), model(arch)
    made = recompute_statistics(file, data, out=tmp_path / "m.safetensors")
    for module in norms(file.network).values():
        module.momentum = 1.0
    file.network.train()(inputs(data))
    for name, module in norms(file.network).items():
        layer = made.network.get_submodule(name)
        torch.testing.assert_close(layer.running_mean, module.running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var, module.running_var, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [2, 5, 7, 16, 31, 100])
def test_the_first_layer_has_the_statistics_of_all_responses(batch: int, tmp_path: Path) -> None:
    """Whatever the batch, and with a remainder: numpy over every position of every picture, each once."""
    data, file = pictures(31), model()
    made = recompute_statistics(file, data, out=tmp_path / "m.safetensors", batch=batch)
    with torch.no_grad():
        responses = file.network.conv1(inputs(data)).double().numpy()
    np.testing.assert_allclose(made.network.bn1.running_mean, responses.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.network.bn1.running_var, responses.var((0, 2, 3), ddof=1), rtol=1e-5)


def test_deeper_layers_see_what_training_shows_them(tmp_path: Path) -> None:
    """Batches are mixed: were they in the order of the folders, each would be of one class and the layers after the
    first would see every class at the same mean. Mixed, small batches come close to one batch of everything."""
    data, file = pictures(120), model()
    whole = recompute_statistics(file, data, out=tmp_path / "whole.safetensors", batch=120)
    parts = recompute_statistics(file, data, out=tmp_path / "parts.safetensors", batch=40)
    pairs = [(norms(whole.network)[name], layer) for name, layer in norms(parts.network).items()]
    for one, other in pairs:
        distance = (one.running_mean - other.running_mean).abs() / one.running_var.sqrt()
        assert distance.max() < 0.25
    assert not torch.equal(pairs[-1][0].running_mean, pairs[-1][1].running_mean), "batches do matter there"


@pytest.mark.parametrize("most", [2, 3, 4, 17, 128])
def test_no_small_batch_at_the_end(most: int) -> None:
    for n in [*range(2, 300), 51_073, 1_281_167]:
        size = even_batch(n, most)
        last = n % size or size
        assert last >= 2 or n == 1
        assert size == n or last >= min(size / 2, n)
        assert size <= most or size == n


def test_a_map_of_one_place(tmp_path: Path) -> None:
    """Batch normalisation refuses a single response; 33 pictures in batches of 32 would leave one."""
    small = replace(PREPROCESS, size=4, resize_to=4)
    file = replace(model(), preprocess=small)
    made = recompute_statistics(file, pictures(33), out=tmp_path / "m.safetensors", batch=32)
    assert all(tensor.isfinite().all() for tensor in made.network.state_dict().values())
    lone = replace(pictures(3), splits={"train": np.array([1])})
    with pytest.raises(UserError, match="train has 1 pictures; batch statistics need two at least"):
        recompute_statistics(file, lone, out=tmp_path / "n.safetensors")


def test_only_statistics_change_and_it_is_said(tmp_path: Path) -> None:
    data, file = pictures(40), model()
    before = {name: tensor.clone() for name, tensor in file.network.state_dict().items()}
    made = recompute_statistics(file, data, out=tmp_path / "m.safetensors")
    for name, tensor in file.network.state_dict().items():
        assert torch.equal(tensor, before[name]), "the network that was given is left alone"
    written = open_model(tmp_path / "m.safetensors")
    for name, tensor in written.network.state_dict().items():
        assert torch.equal(tensor, made.network.state_dict()[name])
        assert torch.equal(tensor, before[name]) != name.endswith(("running_mean", "running_var")), name
    assert written.metrics == {}
    assert written.provenance["recipe"] == {"name": "small"}
    about = written.provenance["batch_statistics"]
    assert (about["data"], about["split"], about["pictures"], about["batch"]) == ("x:", "train", 40, 80)
    assert (written.classes, written.preprocess) == (file.classes, file.preprocess)
    x = inputs(data)
    with torch.no_grad():
        assert not torch.allclose(written.network(x), file.network.eval()(x), atol=1e-2)
        again = open_model(tmp_path / "m.safetensors").network(x)
    assert torch.equal(again, written.network(x).detach())


def test_statistics_that_fit_make_a_network_right_again(tmp_path: Path) -> None:
    """A dense layer fitted to the exact network scores well with it, and at random with statistics that fit nothing."""
    data, file = pictures(60), model()
    made = recompute_statistics(file, data, out=tmp_path / "m.safetensors")
    with torch.no_grad():
        vectors = made.network.embed(inputs(data)).double()
    centres = torch.stack([vectors[torch.from_numpy(data.labels) == k].mean(0) for k in range(3)])
    for network in (made.network, file.network):
        with torch.no_grad():  # the nearest of the classes' means
            network.fc.weight.copy_(centres)
            network.fc.bias.copy_(-centres.square().sum(1) / 2)
    assert evaluate(made, data, split="train").top1 > 0.9
    assert evaluate(file, data, split="train").top1 < 0.7


def test_what_cannot_be_done(tmp_path: Path) -> None:
    data, out = pictures(10), tmp_path / "m.safetensors"
    bare = ModelFile(ResNet(architecture(STEM, classes=3, norm="none")), ("ant", "bee", "cat"), PREPROCESS)
    with pytest.raises(UserError, match="resnet8-cifar: this network has no batch normalisation"):
        recompute_statistics(bare, data, out=out)
    with pytest.raises(UserError, match=r"m\.pth: a model file ends in \.safetensors"):
        recompute_statistics(model(), data, out=tmp_path / "m.pth")
    with pytest.raises(UserError, match="no split 'test'; it has train, val"):
        recompute_statistics(model(), data, out=out, split="test")
    broken = model()
    with torch.no_grad():
        broken.network.conv1.weight[0] = torch.nan
    with pytest.raises(UserError, match="bn1: its responses are no numbers"):
        recompute_statistics(broken, data, out=out)
    with pytest.raises(UserError, match="say which pictures"):
        recompute_statistics(model(), out=out)
    assert not out.exists()
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"m\.safetensors: exists already"):
        recompute_statistics(model(), data, out=out)
    assert out.read_bytes() == b"mine"


def test_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (9, 9)).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "bee" / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 picture cannot be read: bee/1\.png"):
        recompute_statistics(model(), tmp_path / "photos", split="all", out=tmp_path / "m.safetensors")


def test_the_command_takes_the_runs_own_training_pictures(
    resnet: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    data = pictures(36)
    for i in range(36):
        place = tmp_path / "photos" / data.classes[data.labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.pictures.read(i)).save(place / f"{i:02}.png")
    tiny = [f"model.arch={STEM}", "data.size=8", "schedule.steps=2", "optim.batch=4", "run.precision=fp32"]
    train(tmp_path / "photos", recipe=with_settings(shipped("small"), tiny), out=tmp_path / "run")
    run, out = str(tmp_path / "run"), str(tmp_path / "exact.safetensors")
    code, said, err = resnet("bn", "recompute", run, "--out", out)
    assert (code, err) == (0, "")
    kept_back = evaluate(run).n
    assert said.splitlines() == [
        f"{out}: batch statistics over {36 - kept_back} pictures ({tmp_path / 'photos'}, train)",
        f"next: resnet evaluate {out} DATA",
    ]
    save_model(open_model(run), tmp_path / "m.safetensors")
    other = str(tmp_path / "other.safetensors")
    arguments = ["bn", "recompute", str(tmp_path / "m.safetensors"), str(tmp_path / "photos"), "--out", other]
    code, _, err = resnet(*arguments)
    assert code == 2
    assert "no split 'train'; it has all" in err
    code, said, err = resnet(*arguments, "--split", "all", "--json")
    assert (code, err) == (0, "")
    assert json.loads(said)["batch_statistics"]["pictures"] == 36

"""Classes of unlike size: what the loss and the order make up for, against torch's weights and the paper's formula."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import resnetkit
from resnetkit import runs
from resnetkit.data.loader import Reader, evenly, training_batches
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.head import fit_head
from resnetkit.losses import balance_of, classification_loss
from resnetkit.recipe import Augment, Optim
from resnetkit.recipe_file import with_settings
from resnetkit.shipped import shipped

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = [900, 90, 10]
LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 2, 0, 1, 0, 0, 2, 0, 1, 0])


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_class_weights_are_torchs_own(power: float) -> None:
    balance = balance_of(COUNTS, Optim(class_weights=power))
    assert balance.weights is not None
    ratio = (balance.weights[2] / balance.weights[0]).item()
    assert ratio == pytest.approx(90**power, rel=1e-5)
    assert (balance.weights * torch.tensor(COUNTS)).sum().item() == pytest.approx(1000, rel=1e-5), "mean of 1"
    theirs = F.cross_entropy(LOGITS, LABELS, weight=balance.weights, reduction="sum") / len(LABELS)
    torch.testing.assert_close(classification_loss(LOGITS, LABELS, 1.0, Optim(), balance), theirs)


def test_weighted_parts_add_up_to_the_batch() -> None:
    """So that a batch in parts, or on several ranks, has the same gradient."""
    balance = balance_of(COUNTS, Optim(class_weights=1.0))
    for recipe in (Optim(), Optim(label_smoothing=0.1), Optim(loss="bce")):
        whole = classification_loss(LOGITS, LABELS, 1.0, recipe, balance)
        halves = [classification_loss(LOGITS[part], LABELS[part], 1.0, recipe, balance) for part in HALVES]
        torch.testing.assert_close(whole, torch.stack(halves).mean())


HALVES = (slice(0, 6), slice(6, 12))


@pytest.mark.parametrize("loss", ["cross-entropy", "bce"])
def test_a_mixed_picture_weighs_as_its_parts(loss: str) -> None:
    balance = balance_of(COUNTS, Optim(class_weights=1.0))
    assert balance.weights is not None
    recipe = Optim(loss=loss)  # type: ignore[arg-type]
    pair, labels = LOGITS[:2], torch.tensor([0, 2])
    found = classification_loss(pair, labels, 1.0, recipe, balance)
    turned = classification_loss(pair, labels.flip(0), 1.0, recipe, balance)
    if loss == "cross-entropy":
        mixed = classification_loss(pair, labels, 0.7, recipe, balance)
        torch.testing.assert_close(mixed, 0.7 * found + 0.3 * turned)
    same = torch.tensor([2, 2])
    plain = classification_loss(pair, same, 0.7, recipe)
    torch.testing.assert_close(classification_loss(pair, same, 0.7, recipe, balance), plain * balance.weights[2])


def test_logit_adjustment_is_the_papers_equation_10() -> None:
    """-log( exp(f_y + tau log pi_y) / sum of exp(f_y' + tau log pi_y') ), arXiv 2007.07314."""
    tau = 1.5
    prior = np.array(COUNTS) / sum(COUNTS)
    logits = LOGITS.double().numpy()
    each = []
    for row, label in zip(logits, LABELS.tolist(), strict=True):
        powers = np.exp(row) * prior**tau
        each.append(-math.log(powers[label] / powers.sum()))
    found = classification_loss(LOGITS.double(), LABELS, 1.0, Optim(), balance_of(COUNTS, Optim(logit_adjustment=tau)))
    assert found.item() == pytest.approx(np.mean(each), rel=1e-6)


def test_who_knows_nothing_favours_no_class() -> None:
    """From vectors that tell nothing, the plain loss learns how common classes are; the adjusted one does not."""
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    nothing = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    for recipe, wanted in (
        (Optim(weight_decay=1e3), np.log([0.6, 0.3, 0.1])),
        (Optim(weight_decay=1e3, logit_adjustment=1.0), np.zeros(3)),
        (Optim(weight_decay=1e3, class_weights=1.0), np.zeros(3)),
    ):
        balance = balance_of([60, 30, 10], recipe)
        bias = fit_head(nothing, labels, 3, recipe, steps=200, seed=0, balance=balance).bias.numpy()
        np.testing.assert_allclose(bias - bias.mean(), wanted - wanted.mean(), atol=2e-3)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.integers(0, 2**63 - 1),
    st.integers(0, 50),
)
def test_every_class_is_shown_as_often(counts: list[int], seed: int, epoch: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)) * 2, counts))  # gaps in the labels
    places = evenly(labels, seed, epoch)
    assert len(places) == len(labels)
    shown = np.unique(labels[places], return_counts=True)[1] if len(counts) <= len(labels) else np.zeros(0)
    assert shown.max() - shown.min() <= 1
    for label in np.unique(labels):
        times = np.bincount(places[labels[places] == label], minlength=len(labels))[labels == label]
        assert times.max() - times.min() <= 1, "no picture of a class more often than another, but for one"
    np.testing.assert_array_equal(places, evenly(labels, seed, epoch))


def test_epochs_and_seeds_differ() -> None:
    labels = np.repeat([0, 1], [50, 5])
    one, other, seeded = evenly(labels, 0, 0), evenly(labels, 0, 1), evenly(labels, 1, 0)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, seeded)
    assert set(one[labels[one] == 0]) != set(other[labels[other] == 0]), "other pictures of the large class"


def test_batches_are_of_the_pictures_of_the_split() -> None:
    labels = np.array([0] * 40 + [1] * 8)
    pixels = np.repeat(np.arange(48, dtype=np.uint8), 4 * 4 * 3).reshape(48, 4, 4, 3)
    train = np.setdiff1d(np.arange(48), [0, 45])
    data = Data("x", Arrays(pixels, (("x", 48),)), labels, ("a", "b"), {"train": train})
    spec = Preprocess(4, "shorter", 4, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
    still = Augment(crop="none", flip=False)
    whole = list(
        training_batches(Reader(data, spec, threads=1), train, still, seed=0, epoch=0, batch=46, sampling="balanced")
    )
    batch = whole[0]
    assert np.bincount(batch.labels).tolist() == [23, 23]
    assert set(batch.indices.tolist()) <= set(train.tolist())
    np.testing.assert_array_equal(batch.pictures[:, 0, 0, 0], batch.indices)
    parts = training_batches(
        Reader(data, spec, threads=1), train, still, seed=0, epoch=0, batch=10, start=2, sampling="balanced"
    )
    np.testing.assert_array_equal(next(parts).indices, batch.indices[20:30])


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "uneven"
    dice = np.random.default_rng(0)
    for name, n in (("many", 20), ("few", 4)):
        for split in ("train", "val"):
            (folder / split / name).mkdir(parents=True)
            for number in range(n):
                picture = dice.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / split / name / f"{number}.png")
    return folder


def test_the_training_loop_follows_the_keys(uneven: Path, tmp_path: Path) -> None:
    settings = ["model.arch=resnet8-cifar", "data.size=8", "optim.batch=12", "schedule.steps=1", "run.precision=fp32"]
    losses = set()
    for key in ("", "data.sampling=balanced", "optim.class_weights=1", "optim.logit_adjustment=1"):
        recipe = with_settings(shipped("small"), [*settings, *([key] if key else [])])
        run = resnetkit.train(uneven, recipe=recipe, out=tmp_path / (key or "plain")).run
        losses.add(runs.read_steps(run)[0][1])
    assert len(losses) == 4


def test_what_does_not_go_together_is_said() -> None:
    for settings, said in (
        (["data.sampling=balanced", "optim.class_weights=1"], "data.sampling and optim.class_weights .* choose one"),
        (["optim.logit_adjustment=1", "optim.loss=bce"], "is of softmax"),
    ):
        with pytest.raises(UserError, match=said):
            with_settings(shipped("small"), settings)
    with pytest.raises(UserError, match=r"optim.class_weights = 1 in place of data.sampling"):
        with_settings(shipped("frozen"), ["data.sampling=balanced"])

"""Two models on the same pictures: McNemar against scipy, the interval against its definition and its coverage."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnetkit.comparison import Comparison, compare
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.evaluation import evaluate, wilson
from resnetkit.model import ResNet, architecture
from resnetkit.paired import mcnemar, newcombe, paired
from resnetkit.recipe_file import with_settings
from resnetkit.shipped import shipped
from resnetkit.training import train
from resnetkit.weights import ModelFile, save_model

PREPROCESS = Preprocess(8, "shorter", 8, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
COUNTS = st.tuples(*[st.integers(0, 60)] * 4).filter(any)


def pictures(n: int, classes: tuple[str, ...] = CLASSES) -> Data:
    """Noise around a colour each, so that a network without training gives many answers."""
    dice = np.random.default_rng(0)
    pixels = dice.integers(0, 256, (n, 1, 1, 3)) + dice.normal(0, 40, (n, 8, 8, 3))
    pool = Arrays(np.clip(pixels, 0, 255).astype(np.uint8), (("x", n),))
    return Data("x:", pool, dice.integers(0, len(classes), n), classes, {"test": np.arange(n)})


def model(seed: int, classes: tuple[str, ...] = CLASSES, **choices: object) -> ModelFile:
    """A small untrained network, its dense layer moved so that no class is the answer to everything."""
    torch.manual_seed(seed)
    network = ResNet(architecture("resnet8-cifar", classes=len(classes))).eval()
    x = PREPROCESS.normalise(torch.from_numpy(np.stack([pictures(50).pictures.read(i) for i in range(50)])))
    with torch.no_grad():
        network.fc.bias -= network(x).mean(0)
    return ModelFile(network, classes, replace(PREPROCESS, **choices))


# The figures


def test_mcnemar_is_scipys_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats", reason="comes with scikit-learn, the extra 'demo'")
    for a, b in [*itertools.product(range(12), repeat=2), (100, 130), (499, 501), (3000, 3200), (0, 1100)]:
        expected = stats.binomtest(a, a + b).pvalue if a + b else 1.0
        assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-300), (a, b)


def test_mcnemar_counts_every_toss() -> None:
    """Of all 2^m ways in which m fair coins fall, those that are at least as uneven."""
    for a, b in itertools.product(range(6), repeat=2):
        tosses = list(itertools.product((0, 1), repeat=a + b))
        uneven = [abs(2 * sum(toss) - a - b) >= abs(a - b) for toss in tosses]
        assert mcnemar(a, b) == float(Fraction(sum(uneven), len(tosses)))


def test_the_intervals_that_newcombe_printed() -> None:
    """Newcombe 1998, table II: 36, 12, 2, 0 of 50 gives 0.0569 to 0.3404 by method 10."""
    assert newcombe(36, 2, 12, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert newcombe(36, 12, 2, 0) == pytest.approx((-0.3404, -0.0569), abs=5e-5)


def slow_newcombe(e: int, f: int, g: int, h: int) -> tuple[float, float]:
    """The paper's own letters: e both, f first only, g second only, h neither; the difference is first minus second."""
    n = e + f + g + h
    (l2, u2), (l3, u3) = wilson(e + f, n), wilson(e + g, n)
    p2, p3 = (e + f) / n, (e + g) / n
    dl2, du2, dl3, du3 = p2 - l2, u2 - p2, p3 - l3, u3 - p3
    product = (e + f) * (g + h) * (e + g) * (f + h)
    if product == 0:
        phi = 0.0
    elif e * h > f * g:
        phi = max(e * h - f * g - n / 2, 0) / product**0.5
    else:
        phi = (e * h - f * g) / product**0.5
    delta = (dl2**2 - 2 * phi * dl2 * du3 + du3**2) ** 0.5
    epsilon = (du2**2 - 2 * phi * du2 * dl3 + dl3**2) ** 0.5
    return (f - g) / n - delta, (f - g) / n + epsilon


@given(COUNTS)
def test_the_interval_is_newcombes_method_10(counts: tuple[int, int, int, int]) -> None:
    both, only_a, only_b, neither = counts
    assert newcombe(*counts) == pytest.approx(slow_newcombe(both, only_b, only_a, neither), abs=1e-9)


def test_the_interval_covers_what_it_says() -> None:
    """Exact coverage, over all tables of n = 15: the chance that the interval holds the true difference."""
    n = 15
    tables = [(a, b, c, n - a - b - c) for a in range(n + 1) for b in range(n + 1 - a) for c in range(n + 1 - a - b)]
    counts, ends = np.array(tables), np.array([newcombe(*table) for table in tables])
    ways = np.array([math.factorial(n) / math.prod(map(math.factorial, table)) for table in tables])
    middle = ends.mean(1, keepdims=True)
    covered: dict[float, list[float]] = {1.0: [], 0.7: []}  # the intervals, and narrower ones
    for both, only_a, only_b in itertools.product((0.1, 0.3, 0.5, 0.6), (0.03, 0.1, 0.2), (0.03, 0.1, 0.15)):
        shares = np.array([both, only_a, only_b, 1 - both - only_a - only_b])
        chance = ways * (shares**counts).prod(1)
        assert chance.sum() == pytest.approx(1)
        for width, found in covered.items():
            low, high = (middle + width * (ends - middle)).T
            found.append(chance[(low <= only_b - only_a) & (only_b - only_a <= high)].sum())
    assert min(covered[1.0]) > 0.945
    assert np.mean(covered[1.0]) < 0.985
    assert min(covered[0.7]) < 0.93, "or the case would show nothing"


@given(COUNTS)
def test_exchanging_the_models_negates_the_difference(counts: tuple[int, int, int, int]) -> None:
    both, only_a, only_b, neither = counts
    right_a = np.array([True] * (both + only_a) + [False] * (only_b + neither))
    right_b = np.array([True] * both + [False] * only_a + [True] * only_b + [False] * neither)
    one, other = paired(right_a, right_b), paired(right_b, right_a)
    assert (one.both, one.only_a, one.only_b, one.neither) == counts
    assert (other.both, other.only_a, other.only_b, other.neither) == (both, only_b, only_a, neither)
    assert other.difference == -one.difference
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]), abs=1e-12)
    assert other.p == one.p
    assert one.interval[0] - 1e-12 <= one.difference <= one.interval[1] + 1e-12
    if one.difference:
        swapped = str(one).translate(str.maketrans("AB", "BA"))
        assert str(other) == swapped


@pytest.mark.parametrize("both", [0, 1, 40])
@pytest.mark.parametrize("neither", [0, 1, 40])
def test_models_that_never_differ(both: int, neither: int) -> None:
    if both + neither == 0:
        return
    right = np.array([True] * both + [False] * neither)
    found = paired(right, right)
    assert (found.only_a, found.only_b, found.difference, found.p) == (0, 0, 0.0, 1.0)
    assert found.interval[0] == pytest.approx(-found.interval[1])
    assert str(found).startswith("no difference can be told from these pictures: B minus A is 0.00 points (-")


@pytest.mark.parametrize(
    ("only_a", "only_b", "words"),
    [
        (20, 44, "B is right more often by 2.40 points (0.83 to 4.01), p = 0.0037"),
        (44, 20, "A is right more often by 2.40 points (0.83 to 4.01), p = 0.0037"),
        (10, 60, "B is right more often by 5.00 points (3.39 to 6.67), p < 0.001"),
        (24, 20, "no difference can be told from these pictures: A minus B is 0.40 points (-0.93 to 1.74), p = 0.65"),
    ],
)
def test_in_words(only_a: int, only_b: int, words: str) -> None:
    right_a = np.array([True] * (800 + only_a) + [False] * (200 - only_a))
    right_b = np.array([True] * 800 + [False] * only_a + [True] * only_b + [False] * (200 - only_a - only_b))
    assert str(paired(right_a, right_b)) == words


# Models


def test_it_counts_what_evaluate_counts() -> None:
    """Picture by picture, for models of other order, other classes beside, and other preprocessing."""
    data = pictures(120)
    first = model(1)
    shuffled = (*CLASSES[3:], "hen", *CLASSES[:3])
    second = model(2, shuffled, order="BGR", size=12, resize_to=14)
    found = compare(first, second, data)
    scores = [evaluate(each, data) for each in (first, second)]
    right = [top_ranks(each, data) for each in (first, second)]
    one, five = ([ranks <= most for ranks in right] for most in (1, 5))
    assert found.n == 120
    assert found.top1 == paired(*one)
    assert found.top5 == paired(*five)
    assert [found.top1.both + found.top1.only_a, found.top1.both + found.top1.only_b] == [s.correct for s in scores]
    assert found.top5.both + found.top5.only_b == round(scores[1].top5 * 120)
    assert found.top1.only_a > 0 < found.top1.only_b, "or the case would show nothing"
    assert "A: " in found.protocol
    assert "BGR" in found.protocol


def top_ranks(file: ModelFile, data: Data) -> np.ndarray:
    """The rank of the label among the answers, one picture at a time."""
    ranks = []
    for index in range(len(data)):
        x = torch.from_numpy(file.preprocess.fit(data.pictures.read(index)))[None]
        with torch.no_grad():
            logits = file.network(file.preprocess.normalise(x))[0]
        names = [file.classes[i] for i in logits.argsort(descending=True).tolist()]
        ranks.append(1 + names.index(data.classes[data.labels[index]]))
    return np.array(ranks)


def test_pictures_on_which_they_differ() -> None:
    data, first, second = pictures(200), model(1), model(2)
    found = compare(first, second, data)
    assert len(found.differing) == min(24, found.top1.only_a + found.top1.only_b)
    for each in found.differing:
        assert (each.a == each.label) != (each.b == each.label)
        assert data.classes[data.labels[int(each.path.removeprefix("x/"))]] == each.label
    back = json.loads(json.dumps(found.to_dict()))
    assert back["top1"]["only_a"] == found.top1.only_a
    assert back["sentence"] == str(found)
    assert back["differing"][0]["path"] == found.differing[0].path


def test_a_model_against_itself() -> None:
    found = compare(model(1), model(1), pictures(50))
    assert (found.top1.only_a, found.top1.only_b, found.differing) == (0, 0, ())
    assert "A: " not in found.protocol
    few = model(1, CLASSES[:5])
    assert compare(few, few, pictures(50, CLASSES[:5])).top5 is None


def test_a_class_that_one_model_does_not_know() -> None:
    with pytest.raises(UserError, match="the model does not know 1 class: gnu"):
        compare(model(1), model(1, CLASSES[:6]), pictures(50))


def folder(root: Path, counts: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        dice = np.random.default_rng(number)
        for i in range(count):
            pixels = np.clip(60 * number + dice.normal(0, 30, (9, 10, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    return root


def test_unreadable_pictures(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", {"ant": 4, "bee": 3})
    (photos / "ant" / "01.png").write_bytes(b"no picture")
    a, b = model(1, ("ant", "bee")), model(2, ("bee", "ant"))
    with pytest.raises(UserError, match=r"ant/01.png .*--bad skip"):
        compare(a, b, photos)
    found = compare(a, b, photos, bad="skip")
    assert (found.n, list(found.bad)) == (6, ["ant/01.png"])


def test_pictures_that_one_of_the_runs_was_trained_on(tmp_path: Path) -> None:
    """Two runs that divide a folder by another seed keep other pictures back."""
    photos = folder(tmp_path / "photos", {"ant": 12, "bee": 12})
    tiny = ["model.arch=resnet8-cifar", "data.size=8", "schedule.steps=1", "optim.batch=4", "run.precision=fp32"]
    for seed in (0, 1, 2):
        recipe = with_settings(shipped("small"), [*tiny, f"run.seed={seed % 2}"])
        train(photos, recipe=recipe, out=tmp_path / f"run{seed}")
    a, b, like_a = (tmp_path / f"run{seed}" for seed in (0, 1, 2))
    with pytest.raises(UserError, match=rf"{b} was trained on \d of the \d pictures \(val\); compare on pictures that"):
        compare(a, b, photos)
    kept_back = compare(a, like_a, photos)
    assert kept_back.n == evaluate(a).n < 24
    assert ", val, " in kept_back.protocol
    elsewhere = model(5, ("ant", "bee"))
    save_model(elsewhere, tmp_path / "m.safetensors")
    assert compare(tmp_path / "m.safetensors", a, photos).n == kept_back.n, "the run's division also where it is B"
    assert compare(a, b, folder(tmp_path / "new", {"ant": 2, "bee": 3})).n == 5


# The command


def test_the_command_shows_it(resnet: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", dict.fromkeys(CLASSES, 3))
    for seed in (1, 2):
        save_model(model(seed), tmp_path / f"{seed}.safetensors")
    a, b = (str(tmp_path / f"{seed}.safetensors") for seed in (1, 2))
    code, out, err = resnet("compare", a, b, str(photos))
    assert (code, err) == (0, "")
    found = compare(a, b, photos)
    assert isinstance(found, Comparison)
    assert f"A  {a}\nB  {b}\n" in out
    assert f"top-1: {found.top1}\ntop-5: {found.top5}\nprotocol: {found.protocol}\n" in out
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in out.splitlines() if len(line.split()) >= 3}
    assert rows["only A"] == [str(found.top1.only_a), str(found.top5.only_a)]
    code, out, err = resnet("compare", a, b, str(photos), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(found.to_dict()))

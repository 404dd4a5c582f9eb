"""The paper's studies: the recipes that they train, against Sec. 4.2 and 3.4 of arXiv 1512.03385."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resnetkit.complexity import count
from resnetkit.errors import UserError
from resnetkit.model import Architecture
from resnetkit.optim import learning_rate
from resnetkit.paper.cost import network_of
from resnetkit.paper.studies import SCALES, STUDIES, Budget, find_study, study_runs
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import from_dict, to_dict

BUDGETS: list[Budget] = ["laptop", "workstation", "full"]
# Table 6 prints 0.27M, 0.46M, 0.66M, 0.85M, 1.7M and 19.4M.
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}


def network(recipe: Recipe) -> Architecture:
    return replace(network_of(recipe), classes=10)


def parameters_of(depth: int) -> int:
    """Sec. 4.2 by hand: a 3x3 stem, 2n convolutions in each stage, batch normalisation after each, a dense layer."""
    n, total, entered = (depth - 2) // 6, 3 * 3 * 3 * 16 + 2 * 16, 16
    for width in (16, 32, 64):
        for _ in range(2 * n):
            total += 9 * entered * width + 2 * width
            entered = width
    return total + 64 * 10 + 10


@pytest.mark.parametrize("depth", PARAMETERS)
def test_the_paper_s_parameters_by_hand(depth: int) -> None:
    """The golden numbers of this file are Sec. 4.2's own arithmetic."""
    assert parameters_of(depth) == PARAMETERS[depth]


@pytest.mark.parametrize("budget", BUDGETS)
def test_plain_and_residual_networks_are_twins(budget: Budget) -> None:
    recipes = STUDIES["degradation"].recipes(budget)
    depths = {int(name.removeprefix("plain")) for name in recipes if name.startswith("plain")}
    assert {20, 56} <= depths
    assert set(recipes) == {f"{kind}{depth}" for kind in ("plain", "resnet") for depth in depths}
    for depth in depths:
        plain, residual = recipes[f"plain{depth}"], recipes[f"resnet{depth}"]
        renamed = replace(plain, model=replace(plain.model, arch=residual.model.arch))
        assert renamed == residual, "the recipes differ in nothing but the network"
        nets = network(plain), network(residual)
        assert [net.shortcut for net in nets] == ["none", "A"]
        assert replace(nets[0], name=nets[1].name, shortcut="A") == nets[1], "and those in the shortcut alone"
        size = int(plain.data.size)
        found = [count(net, size) for net in nets]
        assert [c.parameters for c in found] == [PARAMETERS[depth]] * 2
        assert found[0].multiply_adds == found[1].multiply_adds
        assert [c.layers for c in found] == [depth, depth]


def test_table_6_trains_the_papers_networks() -> None:
    recipes = STUDIES["table6"].recipes("full")
    found = {name: count(network(recipe), 32).parameters for name, recipe in recipes.items()}
    assert found == {f"resnet{depth}": parameters for depth, parameters in PARAMETERS.items()}
    assert {network(recipe).shortcut for recipe in recipes.values()} == {"A"}


@pytest.mark.parametrize("study", ["degradation", "table6"])
def test_the_full_budget_is_section_4_2(study: str) -> None:
    """45k/5k, batch 128, weight decay 0.0001, momentum 0.9, 64k iterations, pad 4, crop, flip, per-pixel mean."""
    for name, recipe in STUDIES[study].recipes("full").items():
        optim, schedule, augment, data = recipe.optim, recipe.schedule, recipe.augment, recipe.data
        assert (optim.batch, optim.lr, optim.momentum, optim.nesterov) == (128, 0.1, 0.9, False)
        assert (optim.weight_decay, optim.decay_all) == (1e-4, True)
        assert (optim.label_smoothing, optim.ema, optim.clip, optim.stochastic_depth) == (0, 0, 0, 0)
        assert (schedule.steps, schedule.decay, schedule.milestones, schedule.gamma) == (
            64000,
            "step",
            (0.5, 0.75),
            0.1,
        )
        assert round(50_000 * data.val) == 5_000
        assert (data.size, data.crop, data.normalise, data.channels) == (32, 1.0, "pixel-mean", 3)
        assert (augment.crop, augment.pad, augment.flip) == ("pad", 4, True)
        assert {augment.jitter, augment.erase, augment.mixup, augment.cutmix, augment.colour} == {0.0}
        assert (recipe.run.watch, recipe.run.precision) == ("test", "fp32")
        model = recipe.model
        assert (model.arch, model.zero_gamma, model.preactivation) == (f"{name}-cifar", False, False)
        assert (model.norm, model.init) == ("batch", "he")


RATES = {0: 0.1, 399: 0.1, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("plain20", RATES),
        ("resnet20", RATES),
        ("resnet56", RATES),
        ("plain110", RATES | {0: 0.01, 399: 0.01}),
        ("resnet110", RATES | {0: 0.01, 399: 0.01}),
    ],
)
def test_the_learning_rate_of_the_full_budget(name: str, rates: dict[int, float]) -> None:
    """Divided by 10 at 32k and 48k; 110 layers begin at 0.01 for 400 iterations."""
    recipe = STUDIES["degradation"].recipes("full")[name]
    schedule = recipe.schedule
    assert isinstance(recipe.optim.lr, float)
    assert isinstance(schedule.warmup_steps, int)
    found = {step: learning_rate(schedule, recipe.optim.lr, step, 64_000, schedule.warmup_steps) for step in rates}
    assert found == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize("budget", ["laptop", "workstation"])
@pytest.mark.parametrize("study", ["degradation", "table6"])
def test_short_budgets_cut_the_rate_at_the_same_shares(study: str, budget: Budget) -> None:
    """A half and three quarters of the way; every network of the study alike, whatever its depth."""
    for recipe in STUDIES[study].recipes(budget).values():
        steps, schedule = recipe.schedule.steps, recipe.schedule
        assert 0 < steps < 64_000
        assert isinstance(schedule.warmup_steps, int)
        rates = [learning_rate(schedule, 1.0, step, steps, schedule.warmup_steps) for step in range(steps)]
        cuts = [step for step in range(schedule.warmup_steps, steps - 1) if rates[step + 1] < 0.5 * rates[step]]
        assert [cut + 1 for cut in cuts] == [steps // 2, steps * 3 // 4]
        warm = rates[: schedule.warmup_steps]
        assert warm == sorted(warm), "the warm-up rises"
        assert warm[-1] == max(rates) == 1.0


def test_the_eight_starts_differ_only_in_what_is_studied() -> None:
    recipes = STUDIES["initialisation"].recipes("laptop")
    assert len(recipes) == 8
    seen = set()
    for recipe in recipes.values():
        model = recipe.model
        seen.add((model.arch, model.norm, model.init))
        neutral = replace(model, arch="", norm="batch", init="he")
        assert replace(recipe, model=neutral) == replace(
            recipes["plain20-bn-he"], model=replace(recipes["plain20-bn-he"].model, arch="")
        )
    assert seen == {
        (arch, norm, init)
        for arch in ("plain20-cifar", "resnet20-cifar")
        for norm in ("batch", "none")
        for init in ("he", "small")
    }


def test_the_networks_of_tables_2_and_3() -> None:
    recipes = STUDIES["imagenet"].recipes("full")
    found = {
        name.removeprefix("imagenet-"): (arch.name, arch.shortcut, count(arch, 224).layers)
        for name, recipe in recipes.items()
        for arch in [network_of(recipe)]
    }
    assert found == {
        "plain18": ("plain18", "none", 18),
        "resnet18-A": ("resnet18", "A", 18),
        "plain34": ("plain34", "none", 34),
        "resnet34-A": ("resnet34", "A", 34),
        "resnet34-B": ("resnet34", "B", 34),
        "resnet34-C": ("resnet34", "C", 34),
        "resnet50": ("resnet50", "B", 50),
        "resnet101": ("resnet101", "B", 101),
        "resnet152": ("resnet152", "B", 152),
    }
    for recipe in recipes.values():
        assert (recipe.data.size, recipe.augment.sides, recipe.optim.batch) == (224, (256, 480), 256)
        assert (recipe.schedule.steps, recipe.optim.lr, recipe.optim.weight_decay) == (600_000, 0.1, 1e-4)
        assert recipe.model.stride == "1x1"


@pytest.mark.parametrize(("budget", "depth"), [("laptop", 56), ("workstation", 56), ("full", 110)])
def test_pre_activation_and_stochastic_depth_change_one_thing_each(budget: Budget, depth: int) -> None:
    recipes = STUDIES["preactivation"].recipes(budget)
    plain, pre, thinned = recipes[f"resnet{depth}"], recipes[f"preresnet{depth}"], recipes[f"resnet{depth}-depth"]
    assert replace(pre, model=replace(pre.model, preactivation=False)) == plain
    assert replace(thinned, optim=replace(thinned.optim, stochastic_depth=0.0)) == plain
    assert pre.model.preactivation
    assert thinned.optim.stochastic_depth == 0.5


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("study", STUDIES)
def test_names_and_seeds_of_runs_are_unique(study: str, budget: Budget) -> None:
    chosen = STUDIES[study]
    runs = study_runs(chosen, budget)
    recipes = chosen.recipes(budget)
    assert len({run.title for run in runs}) == len({(run.name, run.seed) for run in runs}) == len(runs)
    assert {run.recipe.run.seed for run in runs} == {run.seed for run in runs} == set(range(len(runs) // len(recipes)))
    for run in runs:
        assert replace(run.recipe, run=replace(run.recipe.run, seed=0)) == recipes[run.name]
        assert from_dict(to_dict(run.recipe), where="it") == run.recipe, "as a recipe file could hold it"
    first = runs[: len(recipes)]
    assert {run.seed for run in first} == {0}, "a study that is stopped has whole comparisons"


def test_studies_share_runs_of_one_name_only_where_they_are_the_same() -> None:
    """The record of a run counts for every study that has a run of its name."""
    for budget in BUDGETS:
        found: dict[str, Recipe] = {}
        for study in STUDIES.values():
            for name, recipe in study.recipes(budget).items():
                assert found.setdefault(name, recipe) == recipe, name


def test_the_number_of_seeds() -> None:
    degradation, imagenet = STUDIES["degradation"], STUDIES["imagenet"]
    assert len(study_runs(degradation, "laptop")) == 4 * SCALES["laptop"].seeds
    assert len(study_runs(degradation, "full")) == 10 * 5, "best of five, as Table 6 says"
    assert len(study_runs(degradation, "full", 2)) == 10 * 2
    assert len(study_runs(imagenet, "laptop")) == len(imagenet.recipes("laptop")), "one seed unless more are asked for"
    assert len(study_runs(imagenet, "laptop", 3)) == 3 * len(imagenet.recipes("laptop"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("degredation", "did you mean 'degradation'?"),
        ("tabel6", "did you mean 'table6'?"),
        ("imagnet", "did you mean 'imagenet'?"),
        ("xyzzy", ", ".join(STUDIES)),
    ],
)
def test_an_unknown_study_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        find_study(name)
    assert repr(name) in str(caught.value)
    assert hint in str(caught.value)
    assert find_study("imagenet") is STUDIES["imagenet"]

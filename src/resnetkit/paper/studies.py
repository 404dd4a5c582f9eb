"""The studies: which recipes each trains, at which budget. A run is an ordinary recipe over the ordinary training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from resnetkit.errors import UserError, nearest
from resnetkit.paper.claims import ITEMS
from resnetkit.recipe import Recipe
from resnetkit.shipped import shipped

Budget = Literal["laptop", "workstation", "full"]
Recipes = dict[str, Recipe]  # a run's name to its recipe, the seed left open


@dataclass(frozen=True)
class Scale:
    """What a budget makes of Sec. 4.2. `full` is the paper's."""

    size: int  # side of the input, pixels
    steps: int
    seeds: int
    depths: tuple[int, ...]  # of the study of plain and residual networks
    about: str


SCALES: dict[Budget, Scale] = {
    "laptop": Scale(16, 1200, 3, (20, 56), "16x16 pixels, 1,200 iterations; under an hour on two CPU cores"),
    "workstation": Scale(16, 6000, 3, (20, 56), "16x16 pixels, 6,000 iterations; hours on a CPU, minutes on a GPU"),
    "full": Scale(32, 64000, 5, (20, 32, 44, 56, 110), "the paper's protocol: 32x32 pixels, 64,000 iterations; a GPU"),
}


def cifar(budget: Budget, arch: str, *, lr: float = 0.1, steps: int | None = None, **model: Any) -> Recipe:
    """Sec. 4.2 at a budget: the recipe cifar-paper, in fp32, with pictures, padding and length shrunk together.

    The learning rate is cut at 1/2 and 3/4 of the way, 32k and 48k of 64k. The paper warms up from 110 layers on; the
    short budgets always do, over 50 steps, because their networks have no time to recover from a bad start.
    """
    scale, paper = SCALES[budget], shipped("cifar-paper")
    deep = int("".join(filter(str.isdigit, arch))) >= 110
    schedule = replace(paper.schedule, steps=steps or scale.steps)
    if budget == "full":
        schedule = replace(schedule, warmup_steps=400 if deep else 0)
    else:
        schedule = replace(schedule, warmup="linear", warmup_start=0.0, warmup_steps=50)
    return replace(
        paper,
        name=f"paper-{budget}",
        model=replace(paper.model, arch=arch, **model),
        data=replace(paper.data, size=scale.size),
        augment=replace(paper.augment, pad=scale.size // 8),
        optim=replace(paper.optim, lr=lr),
        schedule=schedule,
        # Figures 1 and 6 draw the test error on the way; no choice is made by it.
        run=replace(paper.run, precision="fp32", watch="test"),
    )


def degradation(budget: Budget) -> Recipes:
    """Plain and residual networks of the same depth, width and number of parameters (option A)."""
    pairs = [(kind, depth) for kind in ("resnet", "plain") for depth in SCALES[budget].depths]
    return {f"{kind}{depth}": cifar(budget, f"{kind}{depth}-cifar") for kind, depth in pairs}


def table6(budget: Budget) -> Recipes:
    """Residual networks alone, deeper and deeper."""
    depths = (20, 32, 44, 56, 110, 1202) if budget == "full" else (20, 32, 44, 56)
    return {f"resnet{depth}": cifar(budget, f"resnet{depth}-cifar") for depth in depths}


def initialisation(budget: Budget) -> Recipes:
    """20 layers with and without batch normalisation, He's initialisation and shortcuts: 2 x 2 x 2.

    All eight at a learning rate of 0.01, because without normalisation 0.1 is too much for any of them, over half of
    the budget's iterations.
    """
    made = {}
    for kind in ("plain", "resnet"):
        for norm, norm_name in (("batch", "bn"), ("none", "nobn")):
            for init in ("he", "small"):
                recipe = cifar(
                    budget, f"{kind}20-cifar", lr=0.01, steps=SCALES[budget].steps // 2, norm=norm, init=init
                )
                made[f"{kind}20-{norm_name}-{init}"] = recipe
    return made


def preactivation(budget: Budget) -> Recipes:
    """The block of arXiv 1603.05027 beside the paper's, and beside it with stochastic depth (arXiv 1603.09382)."""
    depth = 110 if budget == "full" else 56
    plain = cifar(budget, f"resnet{depth}-cifar")
    return {
        f"resnet{depth}": plain,
        f"preresnet{depth}": cifar(budget, f"resnet{depth}-cifar", preactivation=True),
        f"resnet{depth}-depth": replace(plain, optim=replace(plain.optim, stochastic_depth=0.5)),
    }


def imagenet(budget: Budget) -> Recipes:
    """Tables 2 and 3: 18 and 34 layers plain and with shortcuts A; 34 with B and C; at full also 50, 101 and 152."""
    networks = {"plain18": ("plain18", "auto"), "resnet18-A": ("resnet18", "A"), "plain34": ("plain34", "auto")}
    networks |= {f"resnet34-{option}": ("resnet34", option) for option in "ABC"}
    if budget == "full":
        networks |= {f"resnet{depth}": (f"resnet{depth}", "B") for depth in (50, 101, 152)}
    paper = shipped("imagenet-paper")
    if budget != "full":
        paper = small_imagenet(paper, {"laptop": 400, "workstation": 4000}[budget])
    made = {}
    for name, (arch, shortcut) in networks.items():
        model: Any = replace(paper.model, arch=arch)
        made[f"imagenet-{name}"] = replace(
            paper, name=f"paper-{budget}", model=replace(model, shortcut=shortcut), run=replace(paper.run, watch="val")
        )
    return made


def small_imagenet(paper: Recipe, steps: int) -> Recipe:
    """Sec. 3.4 on pictures of 64x64: input 48, shorter side 55 to 103 (256 to 480 of 224), batch 128."""
    return replace(
        paper,
        model=replace(paper.model, stem_stride=4),
        data=replace(paper.data, size=48),
        augment=replace(paper.augment, sides=(55, 103)),
        optim=replace(paper.optim, batch=128),
        schedule=replace(paper.schedule, steps=steps, warmup_steps=50, warmup="linear", warmup_start=0.0),
    )


@dataclass(frozen=True)
class Study:
    """Runs that belong together, and what they show."""

    name: str
    about: str
    recipes: Callable[[Budget], Recipes]
    pictures: Literal["cifar", "imagenet"]


STUDIES = {
    study.name: study
    for study in (
        Study(
            "degradation", "figures 1, 6 and 7; gradients; the existence argument: plain against residual networks",
            degradation, "cifar",
        ),
        Study("table6", "table 6: residual networks, deeper and deeper", table6, "cifar"),
        Study(
            "initialisation", "what batch normalisation, He's initialisation and shortcuts each do: 2 x 2 x 2",
            initialisation, "cifar",
        ),
        Study("preactivation", "the later block of arXiv 1603.05027, and stochastic depth", preactivation, "cifar"),
        Study("imagenet", "figure 4, tables 2 and 3: 18 and 34 layers, shortcuts A, B, C", imagenet, "imagenet"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training of a study."""

    name: str
    seed: int
    budget: Budget
    recipe: Recipe

    @property
    def title(self) -> str:
        """As its files are called."""
        return f"{self.name}-seed{self.seed}"


def find_study(name: str) -> Study:
    """The study of that name, or the one that shows a table or figure, "figure7". Raises UserError."""
    shown = {item.key: item.study for item in ITEMS if item.study}
    name = name if name in STUDIES else shown.get(name, name)
    if name not in STUDIES:
        raise UserError(f"study {name!r}: choose from {', '.join(STUDIES)}{nearest(name, STUDIES)}")
    return STUDIES[name]


def study_runs(study: Study, budget: Budget, seeds: int | None = None) -> list[Run]:
    """Every training of a study, seed by seed, so that a study that is stopped has whole comparisons."""
    count = seeds or (1 if study.pictures == "imagenet" else SCALES[budget].seeds)
    named = study.recipes(budget)
    return [
        Run(name, seed, budget, replace(recipe, run=replace(recipe.run, seed=seed)))
        for seed in range(count)
        for name, recipe in named.items()
    ]

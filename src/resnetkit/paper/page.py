"""The page: every experiment that was run, ours beside the paper's, in one file without network or scripts."""

from __future__ import annotations

from pathlib import Path

from resnetkit.atomic import write_text
from resnetkit.drawing import plain, render
from resnetkit.errors import UserError
from resnetkit.paper import claims, layerwise, records, trainings
from resnetkit.paper.records import Record, by_name, spread
from resnetkit.paper.sections import Section
from resnetkit.paper.studies import SCALES, STUDIES, Budget, study_runs
from resnetkit.paper.tables import table_of
from resnetkit.runs import read_json

TABLES = ("table1", "table2", "table3", "table6")
SIMPLIFIED = (  # popular accounts and what is so
    ("3.57 % is ResNet-152's error.", "It is that of an ensemble of six networks on the test set; the best single "
     "ResNet-152 has 4.49 % on validation. Both are top-5."),
    ("The input is 256x256.", "It is a 224x224 crop of a picture whose shorter side is 256, in training 256 to 480."),
    ("Deeper plain networks fail because gradients vanish.", "The authors check that they do not: with batch "
     "normalisation forward and backward signals are healthy. The optimisation is what gets harder."),
    ("Deeper plain networks over-fit.", "Their training error rises too."),
    ("A residual block skips one layer.", "It has two or three convolutions; of one, y = Wx + x is much like a linear "
     "layer, and the authors saw no advantage."),
    ("He initialisation is for any network.", "It is for ReLU networks: std = sqrt(2 / fan)."),
)  # fmt: skip


def write_page(results: Path, path: Path) -> int:
    """Write the page of all records in a folder; returns how many runs it shows. The same records, the same bytes.

    Raises UserError where nothing was run, for a damaged record, and when the page cannot be written.
    """
    budgets = {budget: records.load_all(results, budget) for budget in SCALES}
    count = sum(map(len, budgets.values()))
    if not count:
        raise UserError(f"{results}: nothing was run yet; begin with: resnet paper run degradation --data cifar10:DIR")
    groups = [(budget, SCALES[budget].about, sections_of(results, budget, found)) for budget, found in budgets.items()]
    page = render(
        "paper.html",
        budgets=[group for group in groups if group[2]],
        tables=[(key, table_of(key, results)) for key in TABLES],
        simplified=SIMPLIFIED,
        missing=unfinished(budgets),
        items=[(item, state_of(item, budgets)) for item in claims.ITEMS],
        versions=sorted({f"{name} {version}" for found in budgets.values() for record in found
                         for name, version in record.environment["versions"].items()}),
    )  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, plain(page))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
    return count


def sections_of(results: Path, budget: Budget, found: list[Record]) -> list[Section]:
    """The sections for which this budget has runs, in the order in which the argument goes."""
    groups = by_name(found)
    begun = results / budget / records.STARTS
    made = (
        trainings.curves(budget, groups),
        trainings.existence(budget, groups),
        layerwise.gradients(budget, groups),
        layerwise.starts(budget, read_json(begun) if begun.exists() else []),
        trainings.initialisation(budget, groups),
        layerwise.responses(budget, groups),
        trainings.preactivation(budget, groups),
        trainings.imagenet(budget, groups),
    )
    return [section for section in made if section is not None]


def unfinished(budgets: dict[Budget, list[Record]]) -> list[str]:
    """Studies that were begun and lack runs, a sentence each."""
    wanting = []
    for study in STUDIES.values():
        for budget in SCALES:
            has = {(record.name, record.seed) for record in budgets[budget]}
            runs = study_runs(study, budget)
            lacking = [run.title for run in runs if (run.name, run.seed) not in has]
            if 0 < len(lacking) < len(runs):
                wanting.append(f"{study.name}, {budget}: {len(lacking)} of {len(runs)} runs are missing; go on with: "
                               f"resnet paper run {study.name} --budget {budget} --data …")  # fmt: skip
    return wanting


def state_of(item: claims.Item, budgets: dict[Budget, list[Record]]) -> str:
    """Reproduced, reproduced at reduced scale, recipe ready, or not possible here and why."""
    if item.study:
        wanted = STUDIES[item.study].recipes
        for budget in reversed(SCALES):
            if set(wanted(budget)) <= {record.name for record in budgets[budget]}:
                if item.study == "imagenet" and not deeper_is_better(by_name(budgets[budget])):
                    return f"run at reduced scale ({budget}), not reproduced: 34 residual layers still err more than 18"
                return "reproduced" if budget == "full" else f"reproduced at reduced scale ({budget})"
        return f"recipe ready: resnet paper run {item.study}"
    if item.computed:
        return f"reproduced: {item.why or f'resnet paper show {item.key}'}"
    return f"not possible here: {item.why}"


def deeper_is_better(groups: dict[str, list[Record]]) -> bool:
    """Whether ResNet-34 errs less than ResNet-18, which is what figure 4, tables 2 and 3 are there to show."""
    shallow, deep = (groups[f"imagenet-resnet{depth}-A"] for depth in (18, 34))
    return spread([r.test_error for r in deep]).mean < spread([r.test_error for r in shallow]).mean

"""Several labels a picture: mosaics of four pictures, and what asking for each label alone is worth.

    python benchmarks/several.py DATA [--out results/several.json]

DATA     a folder with train/<class> and test/<class>, such as CIFAR-10's pictures. A mosaic of 2 x 2 of them has the
         labels of the four; training mosaics are of training pictures, test mosaics of test pictures.

several  trained on all labels of each mosaic, one question for each label
one      the same recipe, trained with softmax on one label of each mosaic, drawn at random
Both are scored by the mean average precision of their answers, on the same test mosaics. Every seed draws other mosaics
and another start. Nothing is chosen on the pictures that are scored.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import resnetkit
from common import student, write
from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.source import open_data
from resnetkit.multilabel import measure
from resnetkit.protocol import Member, ask
from resnetkit.recipe_file import with_settings
from resnetkit.shipped import shipped
from resnetkit.weights import open_model

TRAINED, TESTED = 3000, 1000
SETTINGS = (
    "model.arch=resnet8-cifar",
    "data.size=32",
    "augment.crop=pad",
    "schedule.epochs=20",
    "optim.batch=64",
    "optim.lr=0.1",
    "run.precision=fp32",
    "run.eval_epochs=20",
)
SEEDS = (0, 1, 2)


def mosaics(data: Path, folder: Path, seed: int) -> None:
    """Pictures of 32 x 32, and the tables several.csv and one.csv."""
    dice = np.random.default_rng(seed)
    rows: dict[str, list[list[str]]] = {"several": [["path", "labels", "split"]], "one": [["path", "label", "split"]]}
    for split, many in (("train", TRAINED), ("test", TESTED)):
        files = sorted((data / split).glob("*/*"))
        for number in range(many):
            chosen = [files[i] for i in dice.choice(len(files), 4, replace=False)]
            canvas = Image.new("RGB", (32, 32))
            for place, file in enumerate(chosen):
                with Image.open(file) as picture:
                    canvas.paste(picture.convert("RGB").resize((16, 16)), (16 * (place % 2), 16 * (place // 2)))
            name = f"{split}-{number}.png"
            canvas.save(folder / name)
            labels = [file.parent.name for file in chosen]
            rows["several"].append([name, "|".join(sorted(set(labels))), split])
            rows["one"].append([name, labels[dice.integers(4)], split])
    for kind, lines in rows.items():
        with (folder / f"{kind}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)


def precision_of(run: Path, truth: Path) -> float:
    """The mean average precision of a run's answers, for the labels of a table."""
    model, data = open_model(run, several=True), open_data(truth, several=True)
    assert model.classes == data.classes
    reader = Reader(data, model.preprocess, threads=default_threads())
    member = Member(model.network, reader, multi_label=model.multi_label)
    answers = ask([member], data.splits["test"])
    assert data.sets is not None
    names = [data.pictures.name(i) for i in answers.indices.tolist()]
    found = measure(answers.table, data.sets[data.labels[answers.indices]], data.classes, names)
    return float(found["mean_average_precision"])


def one_seed(data: Path, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        folder, found = Path(place), {}
        mosaics(data, folder, seed)
        for kind in ("several", "one"):
            recipe = with_settings(shipped("small"), [*SETTINGS, f"run.seed={seed}"])
            end = resnetkit.train(folder / f"{kind}.csv", recipe=recipe, out=folder / kind)
            found[kind] = precision_of(end.run, folder / "several.csv")
            if kind == "several":
                assert isinstance(end.result, resnetkit.MultiLabelResult)
                assert end.result.mean_average_precision == found[kind]
                found |= {name: getattr(end.result, name) for name in ("at_random", "exact", "micro_f1", "macro_f1")}
    print(f"seed {seed}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/several.json"))
    asked = parser.parse_args()
    begin = time.perf_counter()
    seeds = [one_seed(asked.data, seed) for seed in SEEDS]
    gain, *interval = student([each["several"] - each["one"] for each in seeds])
    result: dict[str, Any] = {
        "what": "ResNet-8 on mosaics of four CIFAR-10 pictures (recompressed), 32x32: mean average precision",
        "command": "python benchmarks/several.py cifar10",
        "trained": TRAINED,
        "tested": TESTED,
        "mean": {name: statistics.fmean(each[name] for each in seeds) for name in seeds[0]},
        "gain": gain,
        "gain_interval": interval,
        "interval": "95 %, Student's t over the seeds' differences",
        "seeds": seeds,
        "seconds": round(time.perf_counter() - begin),
    }
    write(asked.out, result)


if __name__ == "__main__":
    main()

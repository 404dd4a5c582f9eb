"""The command `resnet`: parse, call one function, show what it gives.

What a command needs is imported when it runs, so that `resnet --help` and `resnet recipe list` are there at once.
Exit codes: 0 done, 1 some pictures could not be read (or an error of ours, with its traceback), 2 wrong input,
130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from resnetkit import shell
from resnetkit.errors import UserError
from resnetkit.rendezvous import rank
from resnetkit.shell import Commands, complain, device, emit, exclude_option, json_option
from resnetkit.version import __version__

if TYPE_CHECKING:
    from resnetkit.events import Event


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point; `arguments` are those of the process by default. Always ends in SystemExit."""
    shell.prepare()
    shell.end(root, arguments)


@click.group(
    cls=Commands,
    epilog="""\b
Examples:
  resnet train photos/                    photos/<class>/*.jpg
  resnet predict runs/photos-1 a.jpg
  resnet COMMAND --help                   more on each command""",
)
@click.version_option(__version__, message="resnet %(version)s")
def root() -> None:
    """From a folder of pictures to a measured, explained classifier, with the ResNet family.

    A MODEL is a run folder or its model.safetensors.
    """


@root.command(
    short_help="Train a classifier on your pictures.",
    epilog="""\b
Examples:
  resnet train photos/
  resnet train photos/ --model resnet50 --epochs 30 --out runs/flowers
  resnet train photos/ --from weights.safetensors
  resnet train photos/ --from weights.safetensors --freeze backbone
  resnet train photos/ --folds 5
  resnet train cifar10:DIR --recipe cifar-paper --set optim.lr=0.05""",
)
@click.argument("data")
@click.option("--val", metavar="DATA", help="Pictures to check with, where DATA has none of its own.")
@click.option("--model", metavar="NAME", help="The network, such as resnet50; short for --set model.arch=NAME.")
@click.option("--from", "weights", metavar="WEIGHTS", help="Begin from this model file or run instead of from scratch.")
@click.option(
    "--freeze",
    metavar="PART",
    help="With --from: what does not learn, up to and including this part: stem, layer1, … or backbone "
    "(the recipe 'frozen').",
)
@click.option("--recipe", metavar="NAME|FILE.toml", help="How to train: 'small' by default, 'finetune' with --from.")
@click.option("--epochs", metavar="N", help="How often every picture is seen; short for --set schedule.epochs=N.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change one key of the recipe; repeatable.")
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    metavar="K",
    help="For small data: train K times, each time without one of K parts, so that every picture is scored by a model "
    "that did not see it.",
)
@click.option("--out", metavar="RUN", help="The run folder to make; by default a new one under runs/.")
@click.option(
    "--track",
    type=click.Choice(["tensorboard", "mlflow", "wandb"]),
    multiple=True,
    help="Tell this tracker of every step and score while it runs; repeatable.",
)
@exclude_option
@json_option
def train(
    data: str,
    val: str | None,
    model: str | None,
    weights: str | None,
    freeze: str | None,
    recipe: str | None,
    epochs: str | None,
    settings: tuple[str, ...],
    folds: int | None,
    out: str | None,
    track: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
) -> int:
    """Train on DATA: a folder with one folder of pictures per class, or with train/ and val/ of such folders; a
    .csv or .tsv file with the columns path, label (or labels, "cat|sofa") and perhaps split; shards,
    "train-{000..123}.tar" or .parquet, here or in a store, "s3://bucket/train-*.tar"; or cifar10:DIR, cifar100:DIR,
    fashion-mnist:DIR, imagenet:DIR.

    Writes a run folder with the model, its score and a report. Ctrl-C stops it after the current step; resnet resume
    goes on from there.
    """
    from resnetkit.cli_recipe import asked

    chosen = asked(recipe, model, epochs, settings, weights, freeze)
    if folds is not None:
        from resnetkit.cli_folds import train_folds

        return train_folds(data, val, folds, chosen, settings, weights, out, track, exclude, as_json)
    from resnetkit.training import training

    return watch(
        training(data, val=val, recipe=chosen, weights=weights, out=out, track=track, exclude=exclude), as_json
    )


def watch(events: Iterator[Event], as_json: bool) -> int:
    """Show a training until it ends or is stopped; the exit code."""
    from resnetkit.events import Stopped
    from resnetkit.terminal import follow, screen

    try:
        if rank() != 0:  # rank 0 shows what there is to see
            deque(events, maxlen=0)
            return 0
        finished = follow(events, screen(stderr=as_json))
    except Stopped as stopped:
        if rank() == 0:
            again = f"resnet resume {shlex.quote(str(stopped.run))}"
            complain(f"stopped after step {stopped.step:,}; go on with: {again}")
        return 128 + stopped.signum
    if as_json:
        result = finished.result.to_dict()
        emit({"run": str(finished.run), "report": str(finished.report), "result": result})
    return 0


@root.command(
    short_help="Go on with a run that was stopped.",
    epilog="""\b
Example:
  resnet resume runs/flowers""",
)
@click.argument("run")
@json_option
def resume(run: str, as_json: bool) -> int:
    """Go on with RUN, a run folder or one of --folds, after Ctrl-C, a power cut or a kill.

    The weights become the very same, to the bit, as if it had never stopped.
    """
    from resnetkit.cli_folds import resume_folds
    from resnetkit.crossvalidation import is_folded
    from resnetkit.training import resuming

    if is_folded(run):
        return resume_folds(run, as_json)
    return watch(resuming(run), as_json)


root.promise("cli_check", "check")
root.promise("cli_evaluate", "evaluate")
root.promise("cli_compare", "compare")
root.promise("cli_report", "report")
root.promise("cli_calibrate", "calibrate")
root.promise("cli_predict", "predict")
root.promise("cli_explain", "explain")
root.promise("cli_label", "label_next")
root.promise("cli_serve", "serve")


@root.command(
    short_help="Turn pictures into vectors.",
    epilog="""\b
Examples:
  resnet embed runs/flowers photos/ --out vectors.npy
  resnet embed m.safetensors a.jpg b.jpg --out vectors.parquet""",
)
@click.argument("model")
@click.argument("paths", nargs=-1, required=True)
@click.option("--out", metavar="FILE", required=True, help="A .npy or .parquet file to write.")
@json_option
def embed(model: str, paths: tuple[str, ...], out: str, as_json: bool) -> int:
    """Write a vector for each of the pictures PATHS: what the last layer of MODEL sees; folders are walked.

    A .npy file holds an array (pictures, dimensions), and a .csv file of the same name beside it the paths in order; a
    .parquet file has the columns path and vector. A picture that cannot be read is named and left out, and the exit
    code is 1.
    """
    from resnetkit import embedding
    from resnetkit.terminal import counted, say, screen

    embedding.check_target(out)
    found = embedding.embed(model, paths, device=device())
    for path, reason in found.bad.items():
        complain(f"{path}: left out: {reason}")
    files = found.save(out)
    number, dimensions = found.vectors.shape
    if as_json:
        emit({"files": files, "pictures": number, "dimensions": dimensions, "bad": found.bad})
    else:
        say(screen(), f"{', '.join(files)}: {counted(number, 'vector')} of {dimensions:,} numbers")
    return 1 if found.bad else 0


@root.command(
    short_help="Show a network: stages, parameters, multiply-adds.",
    epilog="""\b
Examples:
  resnet model resnet152
  resnet model resnet50 --stride 1x1        as in the paper, "v1"
  resnet model resnet20-cifar --shortcut B
  resnet model runs/flowers""",
)
@click.argument("model")
@click.option("--classes", type=click.IntRange(min=1), metavar="N", help="By default 1000, CIFAR networks 10.")
@click.option("--channels", type=click.IntRange(min=1), metavar="N", help="Of the input; by default 3.")
@click.option(
    "--size", type=click.IntRange(min=1), metavar="N", help="Side of the input; by default 224, CIFAR networks 32."
)
@click.option("--shortcut", type=click.Choice(["A", "B", "C", "none"]), help="By default B, CIFAR networks A.")
@click.option("--stride", type=click.Choice(["1x1", "3x3"]), help="Where a bottleneck strides; by default in the 3x3.")
@click.option("--stem-stride", type=click.Choice([1, 2, 4]), help="By default 4, CIFAR networks 1.")
@json_option
def model(model: str, size: int | None, as_json: bool, **choices: Any) -> None:
    """Show a network as the paper's Table 1: stages, output sizes, parameters, multiply-adds.

    MODEL is the name of an architecture: resnet18, 26, 34, 50, 101, 152, 200 or 269, with the parts that torchvision
    and timm put into names (resnet50d, resnext50_32x4d, wide_resnet50_2, seresnet50, resnetv2_50, seresnext101d_32x8d);
    resnet50-caffe as its authors released it; plain18, plain34; resnet20-cifar and plain20-cifar, any 6n+2 layers up to
    1202. Or a model file or run folder, of which it also shows classes, preprocessing, score and provenance.
    """
    from resnetkit.complexity import count
    from resnetkit.model import NAME
    from resnetkit.weights import named_architecture, open_model

    choices = {name: value for name, value in choices.items() if value is not None}
    file = None
    if NAME.fullmatch(model) or not (Path(model).exists() or os.sep in model or "." in model):
        cifar = model.endswith("-cifar")
        arch = named_architecture(model, **{"classes": 10 if cifar else 1000, **choices})
        size = size or (32 if cifar else 224)
    else:
        file = open_model(model, several=True)
        arch = file.network.arch
        size = size or file.preprocess.size
        if choices:
            option = f"--{next(iter(choices)).replace('_', '-')}"
            raise UserError(f"{option}: {model} is a model with an architecture of its own; leave it out")
    counted = count(arch, size)
    if as_json:
        about = {name: getattr(file, name) for name in ("classes", "metrics", "provenance")} if file else {}
        emit(counted.to_dict() | about | ({"preprocess": file.preprocess.to_dict()} if file else {}))
    else:
        from resnetkit.terminal import screen, show_model

        show_model(screen(), counted, file)


root.promise("cli_shard", "shard")
root.promise("cli_recipe", "recipe")
root.promise("cli_paper", "paper")
root.promise("cli_weights", "import_")
root.promise("cli_export", "export")
root.promise("cli_bench", "bench")
root.promise("cli_compare", "bn")

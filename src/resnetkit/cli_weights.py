"""`resnet import`: models of others as ours. Starts without torch and numpy."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnetkit.errors import UserError
from resnetkit.shell import complain, emit, json_option

if TYPE_CHECKING:
    from resnetkit.data.transforms import Preprocess
    from resnetkit.model import Architecture

FILTERS = ["bilinear", "bicubic", "box", "lanczos"]  # as in data.transforms, which would bring numpy with it


@click.command(
    "import",
    short_help="Make a model file of somebody's weights.",
    epilog="""\b
Examples:
  resnet import timm/resnet50.a1_in1k --classes imagenet/val --out m.safetensors
  resnet import microsoft/resnet-50 --out m.safetensors
  resnet import resnet50-0676ba61.pth --classes wnids.txt --out m.safetensors
  resnet import cifar10-resnet20.th --arch resnet20-cifar --classes classes.txt \\
      --size 32 --crop 1 --filter bilinear \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --out m.safetensors""",
)
@click.argument("source")
@click.option("--out", metavar="FILE", required=True, help="The model file to write, a .safetensors file.")
@click.option("--arch", metavar="NAME", help="The architecture, as for: resnet model NAME.")
@click.option("--shortcut", type=click.Choice(["A", "B", "C", "none"]), help="By default the architecture's own.")
@click.option("--stride", type=click.Choice(["1x1", "3x3"]), help="By default the architecture's own.")
@click.option(
    "--classes",
    metavar="FILE|DIR|a,b,c",
    help="The names in the order of the outputs: a line each, folders sorted by name, or between commas.",
)
@click.option("--size", type=click.IntRange(min=1), metavar="N", help="Side of the input, pixels.")
@click.option("--crop", type=float, metavar="X", help="Share of the resized side: 0.875 is 224 of 256.")
@click.option("--filter", type=click.Choice(FILTERS), help="Of the resizing, antialiased as Pillow does it.")
@click.option("--mean", metavar="a,b,c", help="Per channel, as shares of white; one number for grey pictures.")
@click.option("--std", metavar="a,b,c", help="Per channel, as shares of white.")
@click.option("--order", type=click.Choice(["RGB", "BGR"]), default="RGB", show_default=True)
@click.option("--resize", type=click.Choice(["shorter", "stretch"]), default="shorter", show_default=True)
@click.option("--exif", is_flag=True, help="Turn pictures as their EXIF orientation says, which the peers do not.")
@click.option("--revision", metavar="REV", help="A branch, tag or commit of the hub; by default main.")
@click.option("--offline", is_flag=True, help="Look for a hub name in the hub's cache and nowhere else.")
@json_option
def import_(
    source: str,
    out: str,
    arch: str | None,
    shortcut: str | None,
    stride: str | None,
    classes: str | None,
    exif: bool,
    revision: str | None,
    offline: bool,
    as_json: bool,
    **steps: Any,
) -> None:
    """Make a model file of SOURCE: a state dict (.pth, .pt, .th or .safetensors) with torchvision's, timm's or
    Transformers' names, a folder of timm or Transformers, or a name of the Hugging Face hub such as
    timm/resnet50.a1_in1k.

    Architecture, classes and preprocessing are read from SOURCE where it states them and asked for where it does not;
    torchvision's published files are known by their SHA-256. No code in SOURCE is run.
    """
    from dataclasses import asdict

    from resnetkit.peers.sources import import_weights, is_on_hub

    if not out.endswith(".safetensors"):
        raise UserError(f"--out {out}: a model file ends in .safetensors")
    if os.path.lexists(out):
        raise UserError(f"{out}: exists already; choose another --out")
    named = None if classes is None else read_classes(classes)
    network = None if arch is None else read_arch(arch, shortcut, stride)
    preprocess = make_preprocess(**steps)
    if is_on_hub(source):
        where = "looking into the hub's cache" if offline else "asking the Hugging Face hub"
        complain(f"{source}: no such file here; {where} (revision {revision or 'main'})")
    file = import_weights(
        source,
        out=out,
        arch=network,
        classes=named,
        preprocess=preprocess,
        exif=exif,
        revision=revision,
        offline=offline,
    )
    for note in file.provenance.get("notes", ()):
        complain(f"{source}: {note}")
    if as_json:
        values = {"architecture": asdict(file.network.arch), "classes": file.classes}
        emit({"model": out, **values, "preprocess": file.preprocess.to_dict(), "provenance": file.provenance})
    else:
        from resnetkit.terminal import counted, say, screen

        about = f"{file.network.arch.name}, {counted(len(file.classes), 'class', 'classes')}"
        say(screen(), f"{out}: {about}; {file.preprocess}")
        say(screen(), f"next: resnet evaluate {shlex.quote(out)} DATA")


def read_arch(name: str, shortcut: str | None, stride: str | None) -> Architecture:
    """The architecture that the options tell. Raises UserError."""
    from resnetkit.weights import named_architecture

    return named_architecture(name, shortcut=shortcut, stride=stride)


def read_classes(given: str) -> tuple[str, ...]:
    """`a,b,c`, a file with a name on each line, or a folder whose folders are the classes. Raises UserError."""
    path = Path(given)
    if path.is_dir():
        lines = sorted((entry.name for entry in path.iterdir() if entry.is_dir()), key=os.fsencode)
        if not lines:
            raise UserError(f"--classes {given}: a folder without folders; each class has one of its own")
    elif path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--classes {given}: cannot be read as UTF-8 text ({error})") from None
    elif "," in given:
        lines = given.split(",")
    else:
        raise UserError(
            f"--classes {given}: no such file; give a file with a name on each line, a folder of folders, or a,b,c"
        )
    names = tuple(line.strip() for line in lines if line.strip())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--classes {given}: {twice[0]!r} stands there twice; every output needs a name of its own")
    return names


def make_preprocess(**steps: Any) -> Preprocess | None:
    """The preprocessing that the options of `import` tell; None where they tell nothing. Raises UserError."""
    needed = ("size", "crop", "filter", "mean", "std")
    lacking = [f"--{name}" for name in needed if steps[name] is None]
    if len(lacking) == len(needed):
        return None
    if lacking:
        raise UserError(f"{', '.join(lacking)}: needed too; preprocessing is said in whole or not at all")
    from resnetkit.data.transforms import Preprocess

    crop, mean = steps["crop"], numbers("--mean", steps["mean"])
    if not 0 < crop <= 1:
        raise UserError(f"--crop {crop:g}: must be in (0, 1], such as 0.875 for 224 of 256")
    return Preprocess(
        size=steps["size"],
        resize=steps["resize"],
        resize_to=round(steps["size"] / crop),
        filter=steps["filter"],
        channels=len(mean),
        order=steps["order"],
        mean=mean,
        std=numbers("--std", steps["std"]),
        exif=False,
    )


def numbers(option: str, text: str) -> tuple[float, ...]:
    """`0.485,0.456,0.406`. Raises UserError."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or max(values) > 1:
        raise UserError(
            f"{option} {text}: must be 3 numbers between commas, or 1, as shares of white (0.485, not 123.7)"
        )
    return values

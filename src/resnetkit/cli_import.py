"""`resnet import`: somebody's weights as a model file. Starts without torch and numpy."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnetkit.errors import UserError
from resnetkit.shell import emit, json_option

if TYPE_CHECKING:
    from resnetkit.data.transforms import Preprocess

FILTERS = ["bilinear", "bicubic", "box", "lanczos"]  # as in data.transforms, which would bring numpy with it


@click.command(
    "import",
    short_help="Make a model file of somebody's weights.",
    epilog="""\b
Example:
  resnet import cifar10-resnet20.th --arch resnet20-cifar --classes classes.txt \\
      --size 32 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --out m.safetensors""",
)
@click.argument("source")
@click.option("--arch", metavar="NAME", required=True, help="The architecture, as for: resnet model NAME.")
@click.option("--classes", metavar="FILE|a,b,c", required=True, help="The names, in the order of the outputs.")
@click.option("--size", type=click.IntRange(min=1), metavar="N", required=True, help="Side of the input, pixels.")
@click.option("--mean", metavar="a,b,c", required=True, help="Per channel, as shares of white.")
@click.option("--std", metavar="a,b,c", required=True, help="Per channel, as shares of white.")
@click.option("--out", metavar="FILE", required=True, help="The model file to write, a .safetensors file.")
@click.option("--shortcut", type=click.Choice(["A", "B", "C", "none"]), help="By default the architecture's own.")
@click.option("--stride", type=click.Choice(["1x1", "3x3"]), default="3x3", show_default=True)
@click.option("--resize", type=click.Choice(["shorter", "stretch"]), default="shorter", show_default=True)
@click.option(
    "--crop",
    type=float,
    metavar="X",
    default=1.0,
    show_default=True,
    help="Share of the resized side: 0.875 is 224 of 256.",
)
@click.option("--filter", type=click.Choice(FILTERS), default="bilinear", show_default=True)
@click.option("--channels", type=click.Choice([1, 3]), default=3, show_default=True)
@click.option("--no-exif", is_flag=True, help="Do not turn pictures as their EXIF orientation says.")
@json_option
def import_(
    source: str,
    arch: str,
    classes: str,
    out: str,
    shortcut: str | None,
    stride: str,
    as_json: bool,
    **choices: Any,
) -> None:
    """Make a model file of SOURCE, somebody's state dict (.pth, .th or .safetensors) with torchvision's names.

    No code in SOURCE is run. The pictures' preprocessing is part of a model, so it has to be told here.
    """
    from dataclasses import asdict

    from resnetkit.weights import import_weights, named_architecture

    names = read_classes(classes)
    preprocess = make_preprocess(**choices)
    if not out.endswith(".safetensors"):
        raise UserError(f"--out {out}: a model file ends in .safetensors")
    if os.path.lexists(out):
        raise UserError(f"{out}: exists already; choose another --out")
    own = {"channels": preprocess.channels, "stride": stride} | ({"shortcut": shortcut} if shortcut else {})
    network = named_architecture(arch, classes=len(names), **own)
    file = import_weights(source, arch=network, classes=names, preprocess=preprocess, out=out)
    if as_json:
        values = {"architecture": asdict(network), "classes": names, "preprocess": preprocess.to_dict()}
        emit({"model": out, **values, "provenance": file.provenance})
    else:
        from resnetkit.terminal import say, screen

        say(screen(), f"{out}: {arch}, {len(names)} classes; {preprocess}")
        say(screen(), f"next: resnet evaluate {shlex.quote(out)} DATA")


def read_classes(given: str) -> tuple[str, ...]:
    """`a,b,c`, or a file with a name on each line. Raises UserError."""
    if Path(given).is_file():
        try:
            lines = Path(given).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--classes {given}: cannot be read as UTF-8 text ({error})") from None
    elif "," in given:
        lines = given.split(",")
    else:
        raise UserError(f"--classes {given}: no such file; give a file with a name on each line, or a,b,c")
    names = tuple(line.strip() for line in lines if line.strip())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--classes {given}: {twice[0]!r} stands there twice; every output needs a name of its own")
    return names


def make_preprocess(
    *, size: int, mean: str, std: str, resize: Any, crop: float, filter: Any, channels: int, no_exif: bool
) -> Preprocess:
    """The preprocessing that the options of `import` tell. Raises UserError."""
    from resnetkit.data.transforms import Preprocess

    if not 0 < crop <= 1:
        raise UserError(f"--crop {crop:g}: must be in (0, 1], such as 0.875 for 224 of 256")
    return Preprocess(
        size=size,
        resize=resize,
        resize_to=round(size / crop),
        filter=filter,
        channels=channels,
        order="RGB",
        mean=numbers("--mean", mean, channels),
        std=numbers("--std", std, channels),
        exif=not no_exif,
    )


def numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    """`0.485,0.456,0.406`. Raises UserError."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    wanted = "3 numbers between commas" if count == 3 else "one number"
    if len(values) != count or max(values) > 1:
        raise UserError(f"{option} {text}: must be {wanted}, as shares of white (0.485, not 123.7)")
    return values

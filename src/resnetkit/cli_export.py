"""`resnet export`: a model for an engine, or for another library. Starts without torch and numpy."""

from __future__ import annotations

import click

from resnetkit.errors import UserError
from resnetkit.shell import complain, emit, json_option

PEERS = ["timm", "transformers", "torchvision", "hub-card"]
ENGINES = ["onnx", "openvino", "mnn", "torch-export"]


@click.command(
    short_help="Write a model for an engine, or for another library.",
    epilog="""\b
Examples:
  resnet export runs/flowers --to onnx --out flowers.onnx
  resnet export runs/flowers --to onnx --out small.onnx --int8 --calibrate photos/
  resnet export runs/flowers --to openvino --out flowers.xml --pictures photos/test
  resnet export runs/flowers --to timm --out flowers/""",
)
@click.argument("model")
@click.option("--to", type=click.Choice([*ENGINES, *PEERS]), required=True)
@click.option("--out", metavar="PATH", required=True, help="The file to write for an engine, the folder for a library.")
@click.option(
    "--input",
    type=click.Choice(["uint8", "float"]),
    help="What an engine gets: pictures (N, H, W, C), by default, or (N, C, H, W) that the caller normalises.",
)
@click.option(
    "--pictures", metavar="PATH", multiple=True, help="Prove the file on these, not on built-in ones; repeatable."
)
@click.option("--int8", is_flag=True, help="Quantise, if the score allows it; with --calibrate.")
@click.option(
    "--calibrate", metavar="DATA", help="Pictures for --int8: its training side sets ranges, the other is scored."
)
@click.option("--max-drop", type=click.FloatRange(min=0), metavar="P", help="Points of top-1 that int8 may cost; 0.3.")
@json_option
def export(
    model: str,
    to: str,
    out: str,
    input: str | None,
    pictures: tuple[str, ...],
    int8: bool,
    calibrate: str | None,
    max_drop: float | None,
    as_json: bool,
) -> None:
    """Write MODEL, a run folder or model file, for an engine or another library: the same network, classes and
    preprocessing.

    A file for an engine (.onnx, .xml with .bin, .mnn, .pt2) is loaded in that engine and asked about pictures before it
    is put in its place; one that does not answer as MODEL does is not written. It says itself what its classes and
    preprocessing are: resnet predict FILE needs nothing else.

    timm and Transformers get a folder as their hub repositories are, torchvision a state dict; hub-card writes a
    README.md for the hub beside them.
    """
    if int8 != (calibrate is not None) or (max_drop is not None and not int8):
        raise UserError("--int8 and --calibrate DATA go together, and --max-drop goes with both")
    options = {"--input": input, "--pictures": pictures, "--int8": int8}
    if to in PEERS and any(options.values()):
        given = next(name for name, value in options.items() if value)
        raise UserError(f"{given}: is for engines ({', '.join(ENGINES)}), and --to is {to}; leave it out")
    from resnetkit import exporting

    settings = {"input": input, "max_drop": max_drop}
    done = exporting.export(
        model,
        to,
        out,
        pictures=pictures,
        int8=calibrate,
        say=complain,
        **{key: value for key, value in settings.items() if value is not None},
    )
    if as_json:
        emit(done.to_dict())
        return
    from resnetkit.terminal import say, screen

    for file in done.files:
        say(screen(), file)
    for note in done.notes:
        say(screen(), f"note: {note}" if to in PEERS else note)

"""`resnet evaluate`: the score of a model or an ensemble under a protocol. Starts without torch and numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from resnetkit.errors import UserError
from resnetkit.shell import bad_option, device, emit, exclude_option, json_option, whole_numbers

if TYPE_CHECKING:
    from resnetkit.submitting import Submission


@click.command(
    short_help="Score a model on labelled pictures.",
    epilog="""\b
Examples:
  resnet evaluate runs/flowers                the pictures its training kept back
  resnet evaluate runs/flowers photos/val
  resnet evaluate m.safetensors cifar10:DIR --json
  resnet evaluate m.safetensors imagenet:DIR --split val --protocol 10-crop
  resnet evaluate a.safetensors imagenet:DIR --split test --ensemble b.safetensors \\
      --protocol dense --scales 224,256,384,480,640 --submission out.txt""",
)
@click.argument("model")
@click.argument("data", required=False)
@click.option("--split", metavar="NAME", help="Which part of DATA; by default test, else val, else all of it.")
@bad_option
@click.option(
    "--protocol",
    type=click.Choice(["1-crop", "10-crop", "dense"]),
    default="1-crop",
    show_default=True,
    help="The views of a picture that are averaged: the centre; corners, centre and mirror images; all windows.",
)
@click.option("--scales", metavar="N,N,…", help="Of dense: shorter sides, pixels; by default the model's own.")
@click.option("--size", type=click.IntRange(min=1), metavar="N", help="Another input size than the model's, pixels.")
@click.option("--crop", type=float, metavar="X", help="Share of the resized side, by default the model's own.")
@click.option("--ensemble", metavar="MODEL", multiple=True, help="A further model to average with; repeatable.")
@click.option("--labels", metavar="FILE|numbers", help="ReaL's .json, a table path,label, or folders called by number.")
@exclude_option
@click.option("--submission", metavar="FILE", help="Write the five best answers for each picture, for ILSVRC's server.")
@json_option
def evaluate(
    model: str,
    data: str | None,
    as_json: bool,
    scales: str | None,
    submission: str | None,
    labels: str | None,
    bad: str,
    exclude: tuple[str, ...],
    **choices: Any,
) -> None:
    """Score MODEL on labelled pictures: accuracy with a 95 % interval, top-5, calibration, every class.

    DATA is what train takes; without it, the pictures that the model's run kept back. What each protocol does is
    written down in docs/protocol.md.
    """
    from resnetkit import evaluation, submitting
    from resnetkit.protocol import Protocol
    from resnetkit.terminal import scoring, screen, show_result
    from resnetkit.terminal_labels import show_labels

    views = {name: choices.pop(name) for name in ("size", "crop")}
    protocol = Protocol(
        choices.pop("protocol"),
        () if scales is None else whole_numbers("--scales", scales, "224,256,384,480,640"),
        **views,
    )
    choices |= {"protocol": protocol, "device": device()}
    if submission is not None:
        if data is None or labels is not None or bad != "stop":
            raise UserError("--submission: needs DATA, and goes with neither --labels nor --bad skip")
        if exclude:
            raise UserError("--submission: goes without --exclude; the server wants an answer for every picture")
        with scoring() as progress:
            written = submitting.submit(model, data, submission, progress=progress, **choices)
        show_submission(written, as_json)
        return
    with scoring() as progress:
        result = evaluation.evaluate(model, data, bad=bad, labels=labels, exclude=exclude, progress=progress, **choices)
    if as_json:
        emit(result.to_dict())
    elif isinstance(result, evaluation.Result):
        show_result(screen(), result)
    else:
        show_labels(screen(), result)


def show_submission(written: Submission, as_json: bool) -> None:
    """Where the answers are, and their score where the pictures have labels."""
    from resnetkit.terminal import counted, say, screen, show_result

    if as_json:
        result = written.result.to_dict() if written.result else None
        emit({"submission": written.path, "lines": written.lines, "result": result})
        return
    say(screen(), f"{written.path}: answers for {counted(written.lines, 'picture')}")
    if written.result is not None:
        show_result(screen(), written.result)

"""`resnet explain`: where in a picture a model finds its answer. Starts without torch and numpy."""

from __future__ import annotations

from functools import partial

import click

from resnetkit.shell import complain, device, emit, json_option, told


@click.command(
    short_help="Show why a model answers as it does.",
    epilog="""\b
Examples:
  resnet explain runs/flowers a.jpg --out why.html
  resnet explain runs/flowers a.jpg b.jpg --class rose --out why.html""",
)
@click.argument("model")
@click.argument("paths", nargs=-1, required=True)
@click.option("--class", "of", metavar="NAME", help="What speaks for this class; by default for each picture's answer.")
@click.option("--out", metavar="PAGE.html", required=True, help="The page to write, one file that needs no network.")
@json_option
def explain(model: str, paths: tuple[str, ...], of: str | None, out: str, as_json: bool) -> int:
    """Write a page on why MODEL answers as it does on the pictures PATHS; folders are walked.

    For each picture: the first classes, heat maps of what speaks for the answer (Grad-CAM, integrated gradients,
    occlusion), and what would change its mind: which parts, covered, make it answer something else. A picture that
    cannot be read is named and left out, and the exit code is 1.
    """
    from resnetkit import explain_page
    from resnetkit.terminal import percent, say, screen, status

    target = explain_page.check_target(out)
    with status() as tell:
        found = explain_page.explain(
            model,
            paths,
            of=of,
            device=device(),
            progress=partial(told(tell), "explaining"),
        )
    for path, reason in found.bad.items():
        complain(f"{path}: left out: {reason}")
    if not found.pictures:
        return 1
    explain_page.write_page(found, target)
    if as_json:
        emit({"page": out, "pictures": [each.to_dict() for each in found.pictures], "bad": found.bad})
    else:
        for each in found.pictures:
            name, share = each.top[0]
            say(screen(), f"{each.path}: ", (name, "bold"), f" {percent(share, 1)}; {changed(each.change.becomes)}")
        say(screen(), f"page: {out}")
    return 1 if found.bad else 0


def changed(becomes: str | None) -> str:
    return "no covering changes it" if becomes is None else f"partly covered, {becomes}"

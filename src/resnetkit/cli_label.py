"""`resnet label-next`: which pictures are worth labelling. Starts without torch and numpy."""

from __future__ import annotations

import click

from resnetkit.shell import complain, device, emit, json_option, told

SHOWN = 10  # pictures that are named on the screen


@click.command(
    "label-next",
    short_help="Say which pictures are worth labelling next.",
    epilog="""\b
Examples:
  resnet label-next runs/flowers unlabelled/
  resnet label-next runs/flowers unlabelled/ --n 50 --out next.csv""",
)
@click.argument("model")
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "--n", type=click.IntRange(min=1), metavar="N", default=100, show_default=True, help="How many to choose."
)
@click.option(
    "--out", metavar="FILE.csv", default="label-next.csv", show_default=True, help="The list; a page lies beside it."
)
@json_option
def label_next(model: str, paths: tuple[str, ...], n: int, out: str, as_json: bool) -> int:
    """Choose pictures of PATHS, which have no labels, that are worth labelling: those that MODEL is unsure of, and that
    are unlike the pictures it was trained on and unlike one another.

    Writes a .csv file with a reason for each and an empty column for the label, which resnet train takes when it is
    filled in, and a page with the pictures. One that cannot be read is named and left out; the exit code is then 1.
    """
    from pathlib import Path

    from resnetkit import label_page, labelling
    from resnetkit.terminal import counted, say, screen, status

    files = label_page.target(out)
    with status() as tell:
        found = labelling.label_next(
            model,
            paths,
            n=n,
            device=device(),
            progress=told(tell),
        )
    label_page.write_labelling(found, files, ", ".join(Path(path).name or path for path in paths))
    for path, reason in found.bad.items():
        complain(f"{path}: left out: {reason}")
    if as_json:
        emit({**found.to_dict(), "files": [str(file) for file in files]})
        return 1 if found.bad else 0
    console = screen()
    for note in found.notes:
        say(console, ("note: ", "yellow"), note)
    for number, one in enumerate(found.picks[:SHOWN], start=1):
        say(console, f"{number:>3}  {one.path}: ", one.why)
    if len(found.picks) > SHOWN:
        say(console, f"  … {len(found.picks) - SHOWN} more")
    about = f"{len(found.picks):,} of {counted(found.n, 'picture')}"
    say(console, f"{about}, beside {counted(found.labelled, 'labelled one')}; fill in the column label of: {files[0]}")
    say(console, f"page: {files[1]}")
    return 1 if found.bad else 0

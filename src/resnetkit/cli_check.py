"""`resnet check`: what is wrong with these pictures. Starts without torch and numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from resnetkit.shell import device, emit, json_option, told

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from resnetkit.checking import Check


@click.command(
    short_help="Say what is wrong with your pictures.",
    epilog="""\b
Examples:
  resnet check photos/
  resnet check photos/ --model runs/photos-1
  resnet check photos/train --val photos/val --out check.html
  resnet train photos/ --exclude checks/photos-1/leak.csv""",
)
@click.argument("data")
@click.option("--val", metavar="DATA", help="Pictures to check with, where DATA has none of its own.")
@click.option("--model", metavar="MODEL", help="A model that judges labels and finds look-alikes; else pixels do.")
@click.option("--out", metavar="FOLDER|PAGE.html", help="Where the files go; by default a new folder under checks/.")
@json_option
def check(data: str, val: str | None, model: str | None, out: str | None, as_json: bool) -> int:
    """Decode every picture of DATA and say what is wrong with them: damaged files, copies within and across splits and
    classes, odd files and sizes, small classes, labels that look wrong, and
    properties of files that give a class away.

    Writes a page, the same as JSON, and for each finding a CSV of the pictures to leave out, which resnet train takes
    with --exclude. No file of DATA is changed. The exit code is 1 if a split leaks: if it has pictures of another.
    """
    from resnetkit import check_page, checking
    from resnetkit.terminal import screen, status

    place = check_page.target(out, data, val)
    with status() as tell:
        found = checking.check(data, val=val, model=model, device=device() if model else "cpu", progress=told(tell))
        files = check_page.write_check(found, place)
    if as_json:
        emit({**found.to_dict(), "files": [str(file) for file in files]})
    else:
        show_check(screen(), found, files[0])
    return 1 if found.leaks else 0


def show_check(console: Console, found: Check, page: Path) -> None:
    """A line for each finding, the verdict, and where the page is."""
    from resnetkit.terminal import counted, new_table, say

    for note in found.notes:
        say(console, ("note: ", "yellow"), note)
    if found.findings:
        table = new_table(what=("finding", "left"), count=("how many", "right"), out=("to leave out", "right"))
        for finding in found.findings:
            many = "classes" if finding.unit == "class" else f"{finding.unit}s"
            number = f"{finding.count:,} {finding.unit if finding.count == 1 else many}"
            table.add_row(finding.title, number, f"{len(finding.leave_out):,}" if finding.leave_out else "")
        console.print(table)
        console.print()
    looked = f"{counted(len(found.data.used()), 'picture')} in {found.seconds:.1f} s"
    if found.leaks:
        say(console, ("a split leaks: ", "bold red"), f"scores on it are too high ({looked})")
    else:
        say(console, f"no split leaks ({looked})")
    say(console, f"page: {page}")

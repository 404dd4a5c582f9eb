"""What a check found, in files: a page, the same as JSON, and for each finding a CSV that `--exclude` takes."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path

from PIL import Image

from resnetkit.atomic import write_json, write_text
from resnetkit.checking import Check
from resnetkit.data.audit import pixels
from resnetkit.data.excluded import as_csv
from resnetkit.data.findings import Finding, Group, split_names
from resnetkit.drawing import plain, render
from resnetkit.errors import BadPicture, UserError
from resnetkit.report import THUMBNAIL, data_uri, short_name
from resnetkit.version import __version__

SHOWN, TOGETHER = 8, 4  # groups of a finding, and pictures of a group, that are shown
LINES = 30  # of a finding without pictures
BYTES = 4_000_000  # of all thumbnails together, so that the page stays below 5 MB


@dataclass(frozen=True)
class Target:
    """Where the files go: a new folder, or beside a page."""

    page: Path
    prefix: str  # of the CSVs' names

    def csv(self, kind: str) -> Path:
        return self.page.with_name(f"{self.prefix}{kind}.csv")

    @property
    def json(self) -> Path:
        return self.page.with_suffix(".json")


@dataclass(frozen=True)
class Shown:
    """A picture on the page; `uri` is empty where it cannot be read."""

    name: str
    label: str
    split: str
    uri: str


@dataclass(frozen=True)
class Section:
    """A finding on the page: `groups` of pictures with their note, and the command that leaves its pictures out."""

    finding: Finding
    groups: list[tuple[list[Shown], str]]
    command: str
    csv: str


def target(out: str | Path | None, data: str | Path, val: str | Path | None = None) -> Target:
    """The files of `out`: a page where it ends in .html, else a new folder; None: the next free checks/NAME-N.

    Raises UserError, before any work, for what exists, and for a place among the pictures.
    """
    if out is None:
        stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in short_name(os.fspath(data))).strip("-.")
        folders = (Path("checks") / f"{stem or 'pictures'}-{n}" for n in count(1))
        folder = next(folder for folder in folders if not os.path.lexists(folder))
        made = Target(folder / "check.html", "")
    else:
        path = Path(out)
        made = Target(path, f"{path.stem}-") if path.suffix.lower() == ".html" else Target(path / "check.html", "")
        for taken in (path, made.json):
            if os.path.lexists(taken):
                raise UserError(f"{taken}: exists already; choose another --out")
    within(made.page, [data] if val is None else [data, val])
    return made


def within(page: Path, sources: list[str | Path]) -> None:
    """Raise UserError where the page would lie in a folder of the pictures, which are never changed."""
    place = Path(os.path.realpath(page))
    for source in sources:
        text = os.fspath(source)
        for folder in (text, text.partition(":")[2]):
            if folder and Path(folder).is_dir() and place.is_relative_to(os.path.realpath(folder)):
                raise UserError(f"{page}: lies among the pictures of {text}; choose an --out elsewhere")


def write_check(check: Check, made: Target) -> list[Path]:
    """Write CSVs, JSON and, last, the page; returns their paths, the page first. Raises UserError."""
    with_csv = [finding for finding in check.findings if finding.leave_out]
    files = [made.csv(finding.kind) for finding in with_csv]
    name = check.data.pictures.name
    done: list[Path] = []
    try:
        made.page.parent.mkdir(parents=True, exist_ok=True)
        for finding, file in zip(with_csv, files, strict=True):
            write_text(file, as_csv((name(index), reason) for index, reason in finding.leave_out))
            done.append(file)
        csvs = {finding.kind: file.name for finding, file in zip(with_csv, files, strict=True)}
        write_json(made.json, {**check.to_dict(), "csv": csvs})
        done.append(made.json)
        write_text(made.page, plain(page(check, made)))
    except OSError as error:
        for file in done:
            file.unlink(missing_ok=True)
        raise UserError(f"{made.page.parent}: cannot be written ({error.strerror}); choose another --out") from None
    return [made.page, made.json, *files]


def page(check: Check, made: Target) -> str:
    """The page as HTML."""
    data = check.data
    pictures = thumbnails(check)
    sections = []
    for finding, groups in zip(check.findings, pictures, strict=True):
        file = made.csv(finding.kind)
        val = f" --val {shlex.quote(check.val)}" if check.val else ""
        command = f"resnet train {shlex.quote(data.spec)}{val} --exclude {shlex.quote(str(file))}"
        sections.append(Section(finding, groups, command if finding.leave_out else "", file.name))
    return render(
        "check.html",
        title=short_name(data.spec),
        check=check,
        sections=sections,
        pictures=len(data.used()),
        splits=[(split, len(indices)) for split, indices in data.splits.items()],
        lines=LINES,
        version=__version__,
    )


def thumbnails(check: Check) -> list[list[tuple[list[Shown], str]]]:
    """For each finding its first groups. Where all together are too much for a page, each has as many as the others."""
    split, left = split_names(check.data), BYTES
    made: list[list[tuple[list[Shown], str]]] = [[] for _ in check.findings]
    for turn in zip_longest(*(finding.groups[:SHOWN] for finding in check.findings)):
        for groups, group in zip(made, turn, strict=True):
            if group is not None and left > 0:
                shown = [picture(check, index, split[index]) for index in group.pictures[:TOGETHER]]
                left -= sum(len(each.uri) for each in shown)
                groups.append((shown, noted(group)))
    return made


def noted(group: Group) -> str:
    more = len(group.pictures) - TOGETHER
    return group.note + (f"; and {more:,} more" if more > 0 else "")


def picture(check: Check, index: int, split: str) -> Shown:
    """One picture, small."""
    data, uri = check.data, ""
    if index not in check.traits.error:
        try:
            small = Image.fromarray(pixels(data, index, channels=3, exif=True))
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            uri = data_uri(small)
        except BadPicture:  # it was there when it was looked at; the page says that it has gone
            pass
    return Shown(data.pictures.name(index), data.classes[data.labels[index]], split, uri)

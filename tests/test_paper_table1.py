"""Table 1 of arXiv 1512.03385, typed in from the paper, against what is counted on the networks that are built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from resnetkit import model
from resnetkit.paper import claims, tables
from resnetkit.paper.tables import Printed, table1

DEPTHS = (18, 34, 50, 101, 152)
# Output side; (kernel, filters) of the convolutions in a block of 18 and 34 layers, and of the others.
STAGES: dict[str, tuple[int, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]] = {
    "conv2_x": (56, ((3, 64), (3, 64)), ((1, 64), (3, 64), (1, 256))),
    "conv3_x": (28, ((3, 128), (3, 128)), ((1, 128), (3, 128), (1, 512))),
    "conv4_x": (14, ((3, 256), (3, 256)), ((1, 256), (3, 256), (1, 1024))),
    "conv5_x": (7, ((3, 512), (3, 512)), ((1, 512), (3, 512), (1, 2048))),
}
REPEATS = {
    "conv2_x": (2, 3, 3, 3, 3),
    "conv3_x": (2, 4, 4, 4, 8),
    "conv4_x": (2, 6, 6, 23, 36),
    "conv5_x": (2, 3, 3, 3, 3),
}
BILLIONS = (1.8, 3.6, 3.8, 7.6, 11.3)
# Of torchvision's models, less the three projections of 18 and 34 layers, which have option A here.
PROJECTED = 64 * 128 + 128 * 256 + 256 * 512 + 2 * (128 + 256 + 512)
PARAMETERS = (11_689_512 - PROJECTED, 21_797_672 - PROJECTED, 25_557_032, 44_549_160, 60_192_808)


def in_block(stage: str, depth: int) -> tuple[tuple[int, int], ...]:
    return STAGES[stage][1 if depth < 50 else 2]


@pytest.fixture(scope="module")
def printed() -> Printed:
    return table1()


def cells(table: Printed, stage: str, depth: int) -> list[tuple[str, str, str]]:
    """(output, block, cell) of the rows of a layer in which a network has something."""
    column = table.head.index(str(depth))
    return [(row[1], row[2], row[column]) for row in table.rows if row[0] == stage and row[column]]


def number(table: Printed, label: str, depth: int) -> str:
    (row,) = (row for row in table.rows if row[2] == label)
    return row[table.head.index(str(depth))]


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_cell_is_the_papers(depth: int, printed: Printed) -> None:
    assert printed.head[3:] == tuple(map(str, DEPTHS))
    for stage, (side, _, _) in STAGES.items():
        inside = " | ".join(f"{kernel}x{kernel},{filters}" for kernel, filters in in_block(stage, depth))
        repeats = REPEATS[stage][DEPTHS.index(depth)]
        assert cells(printed, stage, depth) == [(f"{side}x{side}", f"[{inside}]", f"x{repeats}")]
    assert cells(printed, "conv1", depth) == [("112x112", "7x7, 64, stride 2", "x1")]
    assert cells(printed, "fc", depth) == [("1x1", "average pool, 1000-d fc", "x1")]
    assert number(printed, "weighted layers", depth) == str(depth)
    assert number(printed, "parameters, 1e6", depth) == f"{PARAMETERS[DEPTHS.index(depth)] / 1e6:.1f}"


def multiply_adds(depth: int) -> int:
    """Of one picture, from the table above alone: every convolution of a stage works at the stage's own output size."""
    total, channels = 112 * 112 * 7 * 7 * 3 * 64, 64
    for stage, (side, _, _) in STAGES.items():
        for _ in range(REPEATS[stage][DEPTHS.index(depth)]):
            entered = channels
            for kernel, filters in in_block(stage, depth):
                total += side * side * kernel * kernel * channels * filters
                channels = filters
            if depth >= 50 and entered != channels:  # option B; option A has no weights
                total += side * side * entered * channels
    return total + channels * 1000


@pytest.mark.parametrize(("depth", "billions"), [*zip(DEPTHS, BILLIONS, strict=True)])
def test_multiply_adds_are_the_papers(depth: int, billions: float, printed: Printed) -> None:
    ours = number(printed, "multiply-adds, 1e9", depth)
    assert ours == f"{multiply_adds(depth) / 1e9:.2f}"
    assert abs(float(ours) - billions) < 0.1
    assert float(number(printed, "the same, paper", depth)) == billions
    explained = any(note.startswith(f"{depth} layers: ") for note in printed.notes)
    assert explained == (f"{float(ours):.1f}" != str(billions)), "what is not the printed number has a note"
    assert not any("cannot explain" in note for note in printed.notes)


def test_nothing_differs(printed: Printed) -> None:
    assert not any("differs" in cell for row in printed.rows for cell in row)
    assert "30 of 30 " in printed.notes[0]


def fewer_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(model.IMAGENET_DEPTHS, 34, ("basic", (3, 4, 5, 3)))


def narrower(patch: pytest.MonkeyPatch) -> None:
    def half(name: str, **choices: Any) -> model.Architecture:
        return replace(model.architecture(name, **choices), width=32 if name == "resnet34" else 64)

    patch.setattr(tables, "architecture", half)


def other_stem(patch: pytest.MonkeyPatch) -> None:
    """A stem of stride 2 without pooling: 3x3, and maps twice as large up to the pooling at the end."""

    def without_pool(name: str, **choices: Any) -> model.Architecture:
        return model.architecture(name, **choices, stem_stride=2 if name == "resnet34" else 4)

    patch.setattr(tables, "architecture", without_pool)


def other_claim(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(claims, "TABLE1_BLOCKS", {34: (3, 4, 7, 3)})


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        (fewer_blocks, ["conv4_x"]),
        (other_claim, ["conv4_x"]),
        (narrower, ["conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x"]),
        (other_stem, ["conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x"]),
    ],
)
def test_a_network_that_is_not_the_papers_is_told(
    change: Callable[[pytest.MonkeyPatch], None], stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "TABLE1_BLOCKS", {34: claims.TABLE1_BLOCKS[34]})
    monkeypatch.setattr(claims, "TABLE1_BILLIONS", {34: "3.6"})
    change(monkeypatch)
    table = table1()
    differing = [
        (row[0], depth) for row in table.rows for depth, cell in zip(table.head, row, strict=True) if "differs" in cell
    ]
    assert differing == [(stage, "34") for stage in stages]
    assert f"{6 - len(stages)} of 6 " in table.notes[0]


def test_a_wrong_number_of_multiply_adds_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "TABLE1_BLOCKS", {18: claims.TABLE1_BLOCKS[18]})
    monkeypatch.setattr(claims, "TABLE1_BILLIONS", {18: "1.6"})
    assert any(note.startswith("18 layers: 1.79") and "cannot explain" in note for note in table1().notes)


def test_it_is_shown_in_80_columns(
    resnet: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = resnet("paper", "show", "table1")
    assert (code, err) == (0, "")
    title, table, *_notes = out.split("\n\n")
    lines = table.splitlines()
    assert max(map(len, [title, *lines])) <= 80
    assert len(lines) == len(printed.rows) + 2, "a heading, a rule, and no row that is broken"
    for row in printed.rows:
        words = " ".join(row).split()
        assert any(line.split() == words for line in lines), row

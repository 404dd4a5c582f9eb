"""The paper's tables with our numbers beside the printed ones. A cell that differs says why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnetkit.complexity import Complexity, count
from resnetkit.errors import UserError, nearest
from resnetkit.model import Block, ResNet, architecture
from resnetkit.paper import claims, records
from resnetkit.paper.studies import SCALES, Budget


@dataclass(frozen=True)
class Printed:
    """A table as text: `rows` under `head`, then `notes`."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def table_of(key: str, results: Path) -> Printed:
    """A table of the paper by its key, "table1". Raises UserError."""
    items = {item.key: item for item in claims.ITEMS}
    if key not in items:
        hint = nearest(key, items) or "; see: resnet paper list"
        raise UserError(f"{key}: no table or figure of the paper, such as table1 or figure7{hint}")
    if key == "table1":
        return table1()
    if key in ("table2", "table3"):
        return imagenet_table(key, results)
    if key == "table6":
        return table6(results)
    item = items[key]
    numbers: dict[str, Any] = getattr(claims, key.upper(), {})
    rows = tuple(
        (name, " / ".join(f"{x:.2f}" for x in (v if isinstance(v, tuple) else (v,)))) for name, v in numbers.items()
    )
    how = f"see it with: resnet paper run {item.study}" if item.study else item.why
    return Printed(f"{item.name}: {item.title}", ("", "paper"), rows, (how,))


def table1() -> Printed:
    """Table 1 counted on the networks that are built: outputs, blocks, filters, multiply-adds."""
    # Option A up to 34 layers, B beyond, and the stride in the first 1x1, as in the paper's experiments.
    networks = {
        depth: count(architecture(f"resnet{depth}", shortcut="A" if depth < 50 else "B", stride="1x1"), 224)
        for depth in claims.TABLE1_BLOCKS
    }
    rows: list[tuple[str, ...]] = []
    same = 0
    for index, (stage, side) in enumerate(claims.TABLE1_OUTPUTS.items()):
        for kind in dict.fromkeys(printed_layers(depth, index) for depth in networks):
            cells = []
            for depth, found in networks.items():
                if printed_layers(depth, index) != kind:
                    cells.append("")
                    continue
                ours = (*built_layers(found, index), found.stages[index].output[1])
                equal = ours == (kind, printed_count(depth, index), side)
                same += equal
                cells.append(f"x{ours[1]}" if equal else f"x{ours[1]}, {ours[0]}, {ours[2]}x{ours[2]}; differs")
            rows.append((stage, f"{side}x{side}", kind, *cells))
    notes = [f"{same} of {len(claims.TABLE1_OUTPUTS) * len(networks)} layers, outputs and filters are the paper's."]
    rounded = {depth: f"{found.multiply_adds / 1e9:.3f}" for depth, found in networks.items()}
    rows.append(("", "", "multiply-adds, 1e9", *(f"{found.multiply_adds / 1e9:.2f}" for found in networks.values())))
    rows.append(("", "", "the same, paper", *claims.TABLE1_BILLIONS.values()))
    rows.append(("", "", "weighted layers", *(str(found.layers) for found in networks.values())))
    rows.append(("", "", "parameters, 1e6", *(f"{found.parameters / 1e6:.1f}" for found in networks.values())))
    for depth, printed in claims.TABLE1_BILLIONS.items():
        if f"{networks[depth].multiply_adds / 1e9:.1f}" != printed:
            cut = rounded[depth].startswith(printed)
            why = "cut to one decimal, not rounded" if cut else "a difference that we cannot explain"
            notes.append(f"{depth} layers: {rounded[depth]}e9 counted, {printed}e9 printed: {why}.")
    notes.append(
        "Counted are convolutions, projections and the dense layer for one picture of 224x224; 1 multiply-add is 2 "
        "FLOPs, the paper calls it one. The paper prints no parameters here; they include batch normalisation."
    )
    head = ("layer", "output", "block", *map(str, networks))
    return Printed("Table 1: the networks for ImageNet", head, tuple(rows), tuple(notes))


def built_layers(found: Complexity, index: int) -> tuple[str, int]:
    """What stands in row `index` of Table 1, and how often, read off the network that is built."""
    with torch.device("meta"):
        network = ResNet(found.architecture)
    if index == 0:
        conv = network.conv1
        assert isinstance(conv, nn.Conv2d)
        return f"{conv.kernel_size[0]}x{conv.kernel_size[1]}, {conv.out_channels}, stride {conv.stride[0]}", 1
    if index > len(found.architecture.blocks):
        return f"average pool, {network.fc.out_features}-d fc", 1
    blocks = [block for block in network.stages[index - 1][1].children() if isinstance(block, Block)]
    inside = {in_brackets([(c.kernel_size[0], c.out_channels) for c in convolutions(block)]) for block in blocks}
    return " or ".join(sorted(inside)), len(blocks)


def convolutions(block: Block) -> list[nn.Conv2d]:
    return [convolution for convolution, _ in block.layers if isinstance(convolution, nn.Conv2d)]


def printed_layers(depth: int, index: int) -> str:
    """What the paper prints in row `index` of Table 1 for a network."""
    if index == 0:
        return "7x7, 64, stride 2"
    if index > 4:
        return "average pool, 1000-d fc"
    return in_brackets((claims.TABLE1_BASIC if depth < 50 else claims.TABLE1_BOTTLENECK)[index - 1])


def printed_count(depth: int, index: int) -> int:
    return claims.TABLE1_BLOCKS[depth][index - 1] if 0 < index < 5 else 1


def in_brackets(layers: Iterable[tuple[int, int]]) -> str:
    return "[" + " | ".join(f"{kernel}x{kernel},{filters}" for kernel, filters in layers) + "]"


def table6(results: Path) -> Printed:
    """Test errors of residual networks on CIFAR-10, at each budget that was run."""
    budgets = [budget for budget in SCALES if records.load_all(results, budget)]
    rows = []
    for depth, printed in claims.TABLE6.items():
        arch = architecture(f"resnet{depth}-cifar", classes=10)
        cells = [str(depth), f"{claims.TABLE6_MILLIONS[depth]}M", f"{count(arch, 32).parameters:,}", f"{printed:.2f}"]
        cells += [ours(results, budget, f"resnet{depth}") for budget in budgets]
        rows.append(tuple(cells))
    head = ("layers", "paper", "parameters", "paper, error %", *(f"ours, {budget}" for budget in budgets))
    notes = [f"{budget}: {setting(results, budget)}" for budget in budgets]
    notes.append("The paper's 110 layers: best of five, 6.61 with a standard deviation of 0.16.")
    return Printed("Table 6: test error on CIFAR-10", head, tuple(rows), tuple(notes))


def in_text(errors: float | tuple[float, ...]) -> str:
    """`21.43 / 5.71`, as the paper prints top-1 and top-5."""
    return " / ".join(f"{error:.2f}" for error in (errors if isinstance(errors, tuple) else (errors,)))


def imagenet_table(key: str, results: Path) -> Printed:
    """Top-1 errors of Table 2 or 3, at each budget that was run."""
    numbers: dict[str, Any] = claims.TABLE2 if key == "table2" else claims.TABLE3
    has = {budget: {r.name for r in records.load_all(results, budget)} for budget in SCALES}
    budgets = [budget for budget, names in has.items() if any(name.startswith("imagenet-") for name in names)]
    rows = []
    for name, printed in numbers.items():
        rows.append((name, in_text(printed), *(ours(results, budget, f"imagenet-{name}") for budget in budgets)))
    head = ("network", "paper, error %", *(f"ours, {budget}, top-1" for budget in budgets))
    notes = [f"{budget}: {setting(results, budget, 'imagenet-')}" for budget in budgets]
    notes.append("The paper's are for ImageNet's validation pictures, 10-crop.")
    title = next(item for item in claims.ITEMS if item.key == key)
    return Printed(f"{title.name}: {title.title}", head, tuple(rows), tuple(notes))


def ours(results: Path, budget: Budget, name: str) -> str:
    """The test error over the seeds that were run."""
    found = [record for record in records.load_all(results, budget) if record.name == name]
    return str(records.spread([record.test_error for record in found])) if found else "not run"


def setting(results: Path, budget: Budget, prefix: str = "") -> str:
    """What a budget's runs were made on, in words."""
    found = [record for record in records.load_all(results, budget) if record.name.startswith(prefix)]
    first = next((r for r in found if prefix or not r.name.startswith("imagenet-")), None)
    if first is None:
        return "nothing was run"
    schedule, size = first.recipe["schedule"], first.recipe["data"]["size"]
    return f"{first.environment['data']}, {size}x{size} pixels, {schedule['steps']:,} iterations, single view"

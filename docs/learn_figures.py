"""The figures of docs/learn.md, from results/labelling*.json and results/imbalance.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
POOLS = {"labelling": "even", "labelling-uneven": "long-tailed"}


def result(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def points(difference: float, low: float, high: float) -> str:
    """`+1.2 (0.3 to 2.1)`, in points of a percent."""
    return f"{100 * difference:+.1f} ({100 * low:.1f} to {100 * high:.1f})"


def labelling() -> str:
    """What each way to choose gains over chance, at a few numbers of labels."""
    lines = [
        "| pool | labels | random | uncertainty alone | k-center alone | `label-next` |",
        "|---|---|---|---|---|---|",
    ]
    for name, pool in POOLS.items():
        if not (RESULTS / f"{name}.json").exists():
            continue
        found = result(name)
        ways = found["ways"]
        places = [place for place, labels in enumerate(found["labels"]) if labels in (200, 400, 600, 1000)]
        for place in places:
            cells = [f"{100 * ways['random']['top1'][place]:.1f} %"]
            for way in ("uncertainty", "k-center", "label-next"):
                cells.append(points(**ways[way]["against_random"][place]))
            lines.append(f"| {pool}, {found['pool']:,} pictures | {found['labels'][place]:,} | {' | '.join(cells)} |")
    return "\n".join(lines)

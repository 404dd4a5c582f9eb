"""The figures of docs/explain.md, from results/pointing.json."""

from __future__ import annotations

from typing import Any

from speed_figures import result

NAMES = {"grad-cam": "Grad-CAM", "integrated-gradients": "Integrated gradients", "occlusion": "Occlusion"}


def hits(found: dict[str, Any]) -> str:
    """`81.2 % (75.8 to 85.7)`"""
    low, high = found["interval"]
    return f"{100 * found['share']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def pointing() -> str:
    """Table: how often the strongest place lies on the object, trained and with random weights."""
    found = result("pointing")
    rows = ["| points at | trained | random weights |", "|---|---|---|"]
    for method, name in NAMES.items():
        random = found["random_weights"]["methods"][method]
        rows.append(f"| strongest place, {name} | {hits(found['trained'][method])} | {hits(random)} |")
    for name, way in found["baselines"].items():
        rows.append(f"| {name}, no network | {hits(way)} | |")
    shown, network, right = found["pictures"], found["network"], found["accuracy"]
    side, box = shown["side"], shown["box"]
    chance = 100 * found["baselines"]["random place"]["expected"]
    return "\n".join(rows) + (
        f"\n\nHits with Wilson's 95 % interval on {shown['held_out']} held-out pictures of {side}x{side} pixels; "
        f"the digit's box, {box}x{box}, is {chance:.1f} % of the picture. The network, a {network['name']} "
        f"{network['width']} wide, answers {hits(right)} of them right; all are asked for the true digit "
        "([pointing.json](../results/pointing.json))."
    )


TABLES = {"pointing": pointing}

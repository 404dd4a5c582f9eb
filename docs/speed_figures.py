"""The tables of docs/speed.md, made of results/*.json; see figures.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def result(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def times(ratio: dict[str, float], places: int = 2) -> str:
    return f"{ratio['median']:.{places}f} ({ratio['lowest']:.{places}f} to {ratio['highest']:.{places}f})"


def where(measured: dict[str, Any]) -> str:
    """The machine and the versions, in a sentence."""
    about, versions = measured["machine"], measured["versions"] | measured.get("engines", {})
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "timm", "onnxruntime", "openvino", "MNN") if name in versions
    )
    return f"{about['cores']} cores of an {about['cpu']}, a matrix product of {about['sgemm_gflops']} GFLOP/s; {named}."


def engines_fp32() -> str:
    """Table: auto against every engine as people call it."""
    found = result("engines")
    peers = list(found["results"][0]["auto_to"])
    rows = [
        f"| network | batch | auto takes | images/s | {' | '.join(peers)} | the best of them, from uint8 |",
        f"|---|---|---|---|{'---|' * len(peers)}---|",
    ]
    for row in found["results"]:
        ratios = " | ".join(times(row["auto_to"][peer]) for peer in peers)
        best = f"{row['best_plain']} {times(row['auto_to_best_from_uint8'])}"
        speed = f"{row['images_per_second']['auto']:.3g}"
        rows.append(f"| {row['network']} | {row['batch']} | {row['auto']} | {speed} | {ratios} | {best} |")
    return "\n".join([*rows, "", where(found)])


def engines_int8() -> str:
    """Table: int8 against our fp32 and timm's eager, and the shares of the limit."""
    found = result("engines")
    rows = [
        "| network | batch | int8 takes | to auto in fp32 | to timm eager | of the matrix product: fp32 | int8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["results"]:
        ratios = " | ".join(times(row["int8_to"][peer]) for peer in ("auto", "timm eager"))
        shares = " | ".join(f"{100 * row['share_of_sgemm'][lane]:.0f} %" for lane in ("auto", "int8"))
        rows.append(f"| {row['network']} | {row['batch']} | {row['int8']} | {ratios} | {shares} |")
    return "\n".join(rows)


def int8_accuracy() -> str:
    """Table: what int8 costs on trained networks, by engine."""
    found = result("int8")["accuracy"]
    rows = [
        "| network, pictures | engine | n | right in fp32 | in int8 | lost, won | drop, points (95 % interval) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, sides in found.items():
        for engine, row in sides.items() if name not in ("revision", "machine", "versions") else ():
            low, high = row["drop_interval"]
            drop = f"{row['drop'] + 0:.2f} ({low:.2f} to {high:.2f})"
            counts = f"{row['n']:,} | {row['fp32_correct']:,} | {row['int8_correct']:,} | {row['lost']}, {row['won']}"
            rows.append(f"| {name} | {engine} | {counts} | {drop} |")
    return "\n".join(rows)


def coldstart() -> str:
    """Table: seconds until the first answer."""
    found = result("coldstart")
    rows = ["| one JPEG, ResNet-50 | seconds, median |", "|---|---|"]
    rows += [f"| {name} | {seconds:.2f} |" for name, seconds in found["seconds"].items()]
    told = (
        f"The script takes {times(found['ratio'], 1)} times as long. The very first use on a machine, which looks for "
        f"the fastest engine and prepares the file for it, took {found['first_use']:.1f} s."
    )
    return "\n".join([*rows, "", told])


def wholepath() -> str:
    """Table: from files to answers."""
    found = result("wholepath")
    head = "| network | engine | images/s: whole | engine | decoder | of the slower | of what shared cores allow |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for name, row in found["results"].items():
        rates = " | ".join(f"{row['images_per_second'][side]:.3g}" for side in ("whole", "engine", "decoder"))
        rows.append(
            f"| {name} | {row['engine']} | {rates} | {times(row['to_limit'])} | {times(row['to_shared_cores'])} |"
        )
    told = f"{found['pictures']} JPEGs of {found['mean_kilobytes']} kB on average, batches of {found['batch']}."
    return "\n".join([*rows, "", told])


def memory() -> str:
    """Table: memory against what cannot be avoided."""
    found = result("memory")
    sides = [key for key, value in found["results"][0].items() if isinstance(value, dict)]
    rows = [f"| network | weights + activations, MB | {' | '.join(sides)} |", f"|---|---|{'---|' * len(sides)}"]
    for row in found["results"]:
        cells = " | ".join(f"{row[side]['steady_ratio']:.2f} (peak {row[side]['peak_ratio']:.2f})" for side in sides)
        rows.append(f"| {row['network']} | {(row['weights'] + row['activations']) / 1e6:.0f} | {cells} |")
    return "\n".join(rows)


def speed_summary() -> str:
    """Table: what a newcomer wants to know."""
    engines, start, path = result("engines"), result("coldstart"), result("wholepath")
    rows = ["| on two cores, side by side | ratio (lowest to highest) |", "|---|---|"]
    for row in engines["results"]:
        if row["network"] in ("resnet18", "resnet50") and row["batch"] == 1:
            what = f"{row['network']}, one picture at a time, against timm's eager"
            rows.append(f"| {what}: fp32 | {times(row['auto_to']['timm eager'])} |")
            rows.append(f"| {what}: int8 | {times(row['int8_to']['timm eager'])} |")
    rows.append(f"| from nothing to the first answer, ResNet-50, against a timm script | {times(start['ratio'])} |")
    whole = times(path["results"]["resnet50"]["to_limit"])
    rows.append(f"| {path['pictures']} JPEGs through ResNet-50, against the bare engine | {whole} |")
    return "\n".join(rows)


TABLES = {
    "speed_summary": speed_summary,
    "engines_fp32": engines_fp32,
    "engines_int8": engines_int8,
    "int8_accuracy": int8_accuracy,
    "coldstart": coldstart,
    "wholepath": wholepath,
    "memory": memory,
}

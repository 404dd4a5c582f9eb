"""The figures of docs/serve.md and docs/security.md, from results/serving.json and results/hostile.json."""

from __future__ import annotations

from typing import Any

from speed_figures import result, times


def milliseconds(seconds: float | None) -> str:
    return "none" if seconds is None else f"{1000 * seconds:.0f} ms"


def load(found: dict[str, Any]) -> str:
    """What came of a load at a rate, in words."""
    answered, refused = (found["statuses"].get(status, 0) for status in ("200", "503"))
    text = f"{answered} answered, 99 % of them within {milliseconds(found['p99'])}"
    return f"{text}; {refused} refused, within {milliseconds(found['refused_p99'])}" if refused else text


def serving() -> str:
    """Table: throughput beside the bare engine, latency under load."""
    found = result("serving")
    networks = found["networks"]
    speeds = [each["throughput"] for each in networks.values()]
    rows = [
        ["", *networks],
        ["---"] * (1 + len(networks)),
        ["pictures a second, bare engine", *(times(each["bare_engine"], 1) for each in speeds)],
        ["pictures a second, server", *(times(each["server"], 1) for each in speeds)],
        ["server over bare engine", *(times(each["server_over_bare"]) for each in speeds)],
        ["server over `resnet predict`", *(times(each["server_over_predict"]) for each in speeds)],
        ["asked at 0.7 of its throughput", *(load(each["load"]["0.7"]) for each in networks.values())],
        ["asked at twice its throughput", *(load(each["load"]["2"]) for each in networks.values())],
    ]
    about, memory = found["machine"], found["memory"]
    kept, requests = memory["resident_mib"], sum(memory["statuses"].values())
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + (
        f"\n\nOn {about['cores']} cores of an {about['cpu']}, engine {found['engine']}, a JPEG of "
        f"{found['picture_bytes']:,} bytes over and over; median, lowest and highest of repeats in turns. The load "
        f"comes from {found['generator']} on the same cores; the latency that is aimed at is "
        f"{found['bound_seconds']:g} s. Over {requests:,} requests to a small network the server's memory went from "
        f"{kept[0]:.0f} to {kept[-1]:.0f} MiB ([serving.json](../results/serving.json))."
    )


def answers(found: dict[str, Any]) -> str:
    """`4,000 with 400, 1,000 with 200`"""
    return ", ".join(
        f"{n:,} {status}" if status == "closed" else f"{n:,} with {status}" for status, n in found["answers"].items()
    )


def hostile() -> str:
    """A sentence: what became of broken pictures and requests."""
    found = result("hostile")
    memory = found["resident_mib"]
    kept = memory["while_pictures_come"]
    return (
        f"{found['pictures']['n']:,} broken pictures: {answers(found['pictures'])}. "
        f"{found['bodies']['n']:,} broken requests: {answers(found['bodies'])}. The next good request: "
        f"{found['next_good_request']}. Memory: {kept[0]:.0f} MiB before, at most {max(kept):.0f} and at last "
        f"{memory['after_bodies']:.0f} MiB ([hostile.json](../results/hostile.json))."
    )


TABLES = {"serving": serving, "hostile": hostile}

"""The tables of docs/scale.md, made of results/*.json; see figures.py."""

from __future__ import annotations

from typing import Any

from speed_figures import result, times

from resnetkit.complexity import count
from resnetkit.model import architecture

GPU_RATE = 2000  # ResNet-50 at 224 pixels, images/s of one GPU: an assumption
NODE = 8  # GPUs of a machine, which share its network card
CARD = 12.5e9  # bytes/s, 100 Gbit/s
BACKWARD = 2 / 3  # of a step, during which gradients are sent
LARGEST_BATCH = 8192  # to which SGD keeps its accuracy (arXiv 1706.02677)


def scaling() -> str:
    """Table: what 8, 64 and 512 GPUs need, and what is left of their speed."""
    crops = result("crops")
    cores = GPU_RATE * crops["per_core"]["milliseconds"]["native"]["median"] / 1000
    kilobytes, gradient = crops["mean_kilobytes"], 4 * count(architecture("resnet50"), 224).parameters
    rows = [
        "| GPUs, pictures each | step | read, all GPUs | cores to decode, a GPU | sent by a card, a step | sending "
        "| of the speed is left | images/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for gpus, batch in ((8, LARGEST_BATCH // 8), (64, LARGEST_BATCH // 64), (512, LARGEST_BATCH // 512), (512, 64)):
        nodes, step = gpus // NODE, batch / GPU_RATE
        sent = 2 * (nodes - 1) / nodes * gradient
        left = step / (step + max(0.0, sent / CARD - BACKWARD * step))
        rows.append(
            f"| {gpus}, {batch} | {1000 * step:.0f} ms | {gpus * GPU_RATE * kilobytes / 1e6:.1f} GB/s | {cores:.1f} "
            f"| {sent / 1e6:.0f} MB | {1000 * sent / CARD:.0f} ms | {100 * left:.0f} % "
            f"| {gpus * GPU_RATE * left:,.0f} |"
        )
    return "\n".join(rows)


def ranks() -> str:
    """Table: what was measured of processes that train and score together."""
    found = result("ranks")
    kills, curves, scores, overhead = (found[name] for name in ("kills", "curves", "scores", "overhead"))
    rows = [
        "| what | found |",
        "|---|---|",
        f"| one of two ranks killed {kills['kills']} times, started again by torchrun | "
        f"{'the same bytes' if all(kills['same'].values()) else 'other bytes'} in {len(kills['same'])} comparisons |",
        loss("two ranks against one process", curves),
        loss("one process that takes each batch in two parts, against the same", curves["control"]),
        loss("two ranks against one process that takes each batch in two parts", curves["two_against_control"]),
        f"| right answers of {scores['n']['0']:,}: one process, and 1, 2 and 3 under torchrun | "
        f"{', '.join(f'{right:,}' for right in scores['correct'].values())} |",
    ]
    rows += [
        f"| images/s, {name}, against one process alone | {times(ratio)} |"
        for name, ratio in overhead["against_alone"].items()
    ]
    for words, kind in (("PNGs of 32x32", "small"), ("JPEGs of full size, cropped to 224x224", "photographs")):
        part = found["loader"][kind]
        share = part["share"]
        rows.append(
            f"| share of a loader's processor time that is not reading, decoding, augmenting, {words} | "
            f"{share['median']:.3f} (half of {part['turns']} turns: {share['lower_quartile']:.3f} to "
            f"{share['upper_quartile']:.3f}) |"
        )
    return "\n".join(rows)


def loss(what: str, apart: dict[str, Any]) -> str:
    """How far two curves are from each other, as a row."""
    first, ten, fifty = (f"{100 * apart['largest_relative_difference'][n]:.2g} %" for n in ("1", "10", "50"))
    return f"| loss, {what}: the largest difference in step 1, 10 steps, 50 steps | {first}, {ten}, {fifty} |"


def cutoff() -> str:
    """Table: what two nodes did of which one was cut off."""
    found = result("cutoff")
    rows = ["| | the node that is left | the one cut off |", "|---|---|---|"]
    for words, case in (("both are needed", found["both_needed"]), ("one is enough", found["one_is_enough"])):
        cells = []
        for node in ("rk-a", "rk-b"):
            said = case["seconds_until_said"].get(node)
            ended = case["seconds_until_torchrun_ended"].get(node)
            cells.append(
                f"{'said nothing' if said is None else f'said so after {said:.0f} s'}; "
                f"{'torchrun waits on' if ended is None else f'torchrun ended after {ended:.0f} s'}"
            )
        rows.append(f"| {words}{', trained to the end' if case['finished'] else ''} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def pieces() -> str:
    """Table: what was measured of shards and of scoring over a cluster."""
    shards, start, flat = (result(name) for name in ("sharding", "epochstart", "flat"))
    over, far = result("ray"), result("remote")["100 ms"]["mb_per_s"]
    cold = [f"{far[f'cold, {n} threads']['median']:.0f}" for n in (1, 4, 16)]
    fetched, told = result("fetched")["times"], result("ahead")["mb_per_s"]

    def several(order: str) -> str:
        return ", ".join(f"{fetched[order][machines]:.1f}" for machines in ("1", "8", "64"))

    rates = ", ".join(f"{shards['mb_per_second'][name]:.0f}" for name in ("shard", "disk", "checksum"))
    return "\n".join(
        [
            "| what | found |",
            "|---|---|",
            f"| `resnet shard` against the slower of disk and SHA-256 | {times(shards['ratio'])} |",
            f"| MB/s: of it, of the disk, of SHA-256 | {rates} |",
            f"| index of {start['pictures']:,} pictures in {start['shards']:,} shards | "
            f"{start['resident_mb']['median']:.0f} MB, opened in {start['open_seconds']['median']:.1f} s |",
            f"| order of an epoch of them | {start['order_near_seconds']['median']:.2f} s |",
            f"| memory of a loader, epoch {flat['epochs']} of {flat['pictures']:,} small pictures against epoch 2 | "
            f"{flat['ratio']:.2f}, {flat['resident_mb'][-1]:.0f} MB |",
            f"| MB/s from a store that answers after 100 ms, by 1, 4 and 16 threads; s3fs in order | "
            f"{', '.join(cold)}; "
            f"{far['plain']['median']:.0f} |",
            f"| MB/s of pictures from it in the order of training, by 2 threads, an epoch; those to come not told of | "
            f"{told['foretold']['median']:.0f}; {told['as they come']['median']:.0f} |",
            f"| bytes that 1, 8 and 64 machines fetch in an epoch, times the pictures' own | {several('gathered')} |",
            f"| the same, were the pictures of a batch in no order | {several('windows')} |",
            f"| `resnet predict --ray` against `resnet predict`, {over['network']}, one machine: once it goes | "
            f"{times(over['ray_to_plain']['steady'])} |",
            f"| the same, {over['pictures']:,} pictures and Ray's start and end included | "
            f"{times(over['ray_to_plain']['whole'])} |",
        ]
    )


TABLES = {"scaling": scaling, "ranks": ranks, "cutoff": cutoff, "pieces": pieces}

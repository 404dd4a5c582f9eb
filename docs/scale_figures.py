"""The tables of docs/scale.md, made of results/*.json; see figures.py."""

from __future__ import annotations

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
    kills, curves, overhead = found["kills"], found["curves"], found["overhead"]["against_alone"]
    rows = [
        "| what | found |",
        "|---|---|",
        f"| one of two ranks killed {kills['kills']} times, started again by torchrun | "
        f"{'the same bytes' if all(kills['same'].values()) else 'other bytes'} in {len(kills['same'])} comparisons |",
        f"| loss of the first 10 steps, two ranks against one process, largest relative difference | "
        f"{curves['largest_relative_difference']['10']:.1g} |",
    ]
    rows += [f"| images/s, {name}, against one process alone | {times(ratio)} |" for name, ratio in overhead.items()]
    rows.append(
        f"| share of a loader's time that is not reading, decoding, augmenting | {times(found['loader']['share'], 3)} |"
    )
    return "\n".join(rows)


def pieces() -> str:
    """Table: what was measured of shards and of scoring over a cluster."""
    shards, start = result("sharding"), result("epochstart")
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
        ]
    )


TABLES = {"scaling": scaling, "ranks": ranks, "pieces": pieces}

"""The figures of docs/learn.md, from results/labelling*.json and results/imbalance.json."""

from __future__ import annotations

from speed_figures import RESULTS, result

POOLS = {"labelling": "even", "labelling-uneven": "long-tailed"}


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


def imbalance() -> str:
    """Table: what each way to make up for small classes does to large and small ones."""
    found = result("imbalance")
    rows = [
        "| | key | balanced accuracy | gain over none | three largest classes | three smallest |",
        "|---|---|---|---|---|---|",
    ]
    for name, arm in found["arms"].items():
        key = f"`{arm['key']}`" if arm["key"] else ""
        gain = points(arm["gain"], *arm["gain_interval"]) if arm["gain_interval"] else ""
        recalls = " | ".join(f"{100 * arm[which]:.1f} %" for which in ("largest_three", "smallest_three"))
        rows.append(f"| {name} | {key} | {100 * arm['balanced_accuracy']:.1f} % | {gain} | {recalls} |")
    counts, seeds = found["counts"], len(found["arms"]["as they come"]["seeds"])
    return "\n".join(rows) + (
        f"\n\n{found['what']}; {sum(counts):,} training pictures, {counts[0]} of the largest class and {counts[-1]} of "
        f"the smallest, scored on {found['tested']:,}, as many of each class; means of {seeds} seeds, gains in points "
        "with 95 % intervals over the seeds ([imbalance.json](../results/imbalance.json))."
    )


def several() -> str:
    """Table: all labels of a mosaic, against one of them."""
    found = result("several")
    mean = {name: f"{100 * share:.1f} %" for name, share in found["mean"].items()}
    rows = [
        "| trained on | mean average precision | F1 over all answers | every label right |",
        "|---|---|---|---|",
        f"| all labels | {mean['several']} | {mean['micro_f1']} | {mean['exact']} |",
        f"| one label of each | {mean['one']} | | |",
        f"| chance | {mean['at_random']} | | |",
    ]
    return "\n".join(rows) + (
        f"\n\n{found['what']}; {found['trained']:,} mosaics to learn from, {found['tested']:,} to score; means of "
        f"{len(found['seeds'])} seeds, gain {points(found['gain'], *found['gain_interval'])} points with a "
        "95 % interval over the seeds ([several.json](../results/several.json))."
    )


TABLES = {"labelling": labelling, "imbalance": imbalance, "several": several}

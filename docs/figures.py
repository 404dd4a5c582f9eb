"""Put the figures of results/*.json into README.md and into the recipes' contracts, or check that they stand there.

    python docs/figures.py [--check]

Between `<!-- figures: NAME -->` and `<!-- end -->` in a Markdown file stands what the function NAME below makes of the
results; after `Result: results/NAME.json` in a recipe's docstring stands what `contract` makes of that file.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnetkit.recipe_file import dumps
from resnetkit.recipes import shipped

ROOT = Path(__file__).parents[1]
MARKDOWN = ("README.md", "docs/recipes.md")
RECIPES = "src/resnetkit/recipes.py"


def result(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8")))


def percent(share: float, places: int = 2) -> str:
    return f"{100 * share:.{places}f} %"


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def machine(measured: dict[str, Any]) -> str:
    about = measured["machine"]
    return f"{about['cores']} cores of an {about['cpu']}"


def score(measured: dict[str, Any]) -> str:
    """The mean and standard deviation of several seeds, or one run's score with its interval."""
    runs = measured["runs"]
    if len(runs) > 1:
        return f"{percent(measured['top1_mean'])} (mean of {len(runs)} seeds, sd {100 * measured['top1_sd']:.2f})"
    low, high = runs[0]["top1_interval"]
    counted = f"{runs[0]['correct']:,} of {runs[0]['n']:,}"
    return f"{percent(runs[0]['top1'])} ({counted}; 95 % interval {100 * low:.2f} to {100 * high:.2f})"


def accuracy() -> str:
    """Table: what is trained, how well, how long."""
    named = {
        "digits": "scikit-learn's digits, 8x8, `digits` (ResNet-20)",
        "fashion-mnist": "Fashion-MNIST, 28x28, `fashion-mnist` (ResNet-20)",
        "tiny-imagenet-10": "ten classes of Tiny ImageNet, 64x64, 500 pictures each, `small` (ResNet-18)",
        "finetune": "ten other classes of it, from that network, `finetune`",
    }
    rows = ["| pictures, recipe | top-1 on held-out pictures | time | file |", "|---|---|---|---|"]
    for name, what in named.items():
        found = result(name)
        rows.append(
            f"| {what} | {score(found)} | {minutes(found['seconds_longest'])} on {machine(found)} "
            f"| [{name}.json](results/{name}.json) |"
        )
    return "\n".join(rows)


def published() -> str:
    """Table: published weights."""
    found = result("published")
    rows = [
        "| published CIFAR-10 weights, imported | correct of the recompressed test pictures | file |",
        "|---|---|---|",
    ]
    for name in ("resnet20-cifar", "resnet56-cifar"):
        one = found[name]
        rows.append(f"| {name} | {one['correct']:,} of {one['n']:,} | [published.json](results/published.json) |")
    return "\n".join(rows)


def times(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"


def speed() -> str:
    """Table: ratios measured side by side."""
    named = {
        "throughput-resnet20-cifar": "training ResNet-20 at 32x32, batch 128, against a plain PyTorch loop",
        "throughput-resnet50": "training ResNet-50 at 224x224, batch 16, against a plain PyTorch loop",
        "loading": "reading JPEGs with random resized crops to 224, against DataLoader with Pillow",
    }
    rows = ["| what, side by side on two cores | ratio (lowest to highest of 7) | file |", "|---|---|---|"]
    for name, what in named.items():
        found = result(name)
        spread = times(found["ratio"]) + (f"; in fp32 {times(found['ratio_fp32'])}" if "ratio_fp32" in found else "")
        rows.append(f"| {what} | {spread} | [{name}.json](results/{name}.json) |")
    start = result("startup")["seconds"]
    rows.append(
        f"| `resnet --help`, until it is done | {start['resnet --help']:.2f} s; a Python that does nothing "
        f"{start['python -c pass']:.2f} s | [startup.json](results/startup.json) |"
    )
    killed = result("kill9")
    same = "the same bytes" if all(killed["same"].values()) else "NOT the same bytes"
    rows.append(
        f"| a run killed with SIGKILL {killed['kills']} times and resumed, against one left alone "
        f"| {same} | [kill9.json](results/kill9.json) |"
    )
    return "\n".join(rows)


def keys() -> str:
    """Every key of a recipe, with what it may be."""
    return "```toml\n" + dumps(shipped("small")).strip() + "\n```"


TABLES: dict[str, Callable[[], str]] = {"accuracy": accuracy, "published": published, "speed": speed, "keys": keys}


def contract(name: str) -> str:
    """The lines after `Result: results/NAME.json` in a docstring."""
    found = result(name)
    text = f"{score(found)}; {minutes(found['seconds_longest'])} a run on {machine(found)}."
    return textwrap.fill(text, 116, initial_indent="    ", subsequent_indent="    ") + "\n"


def filled(text: str) -> str:
    """A file's text with all its figures as the results have them."""
    text = re.sub(
        r"(<!-- figures: (\w+) -->\n).*?(?=<!-- end -->)",
        lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n",
        text,
        flags=re.DOTALL,
    )
    return re.sub(
        r'(    Result: results/([\w-]+)\.json\n).*?(?=    """\n)',
        lambda found: found[1] + contract(found[2]),
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    stale = []
    for name in (*MARKDOWN, RECIPES):
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if before != after:
            stale.append(name)
        if before != after and "--check" not in sys.argv:
            path.write_text(after, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"{', '.join(stale)}: figures are not those of results/; run: make docs")


if __name__ == "__main__":
    main()

"""Put the figures of results/*.json into README.md and into the recipes' contracts, or check that they stand there.

    python docs/figures.py [--check]

Without --check it also draws docs/images/degradation.svg and writes the page of the paper's experiments.

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

import explain_figures
import learn_figures
import scale_figures
import serve_figures
import speed_figures

from resnetkit.paper import records
from resnetkit.paper.claims import ITEMS
from resnetkit.paper.page import state_of, write_page
from resnetkit.paper.studies import SCALES
from resnetkit.paper.trainings import curves
from resnetkit.recipe_file import dumps
from resnetkit.shipped import shipped

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "results" / "paper"
PAGES = ("check", "explain", "learn", "paper", "recipes", "scale", "security", "serve", "speed", "weights")
MARKDOWN = ("README.md", *(f"docs/{page}.md" for page in PAGES))
RECIPES = "src/resnetkit/shipped.py"


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
    rows = ["| what, side by side on two cores | ratio (lowest to highest of 7 or 9 repeats) | file |", "|---|---|---|"]
    for name, what in named.items():
        found = result(name)
        spread = times(found["ratio"]) + (f"; in fp32 {times(found['ratio_fp32'])}" if "ratio_fp32" in found else "")
        rows.append(f"| {what} | {spread} | [{name}.json](results/{name}.json) |")
    crops = result("crops")
    core, loaders, file = crops["per_core"], crops["loaders"], "[crops.json](results/crops.json)"
    rows.append(
        f"| a random crop of a JPEG, resized to 224, on one core with `native/` "
        f"| {times(core['native_to_pillow'])} Pillow; "
        f"{times(core['native_to_opencv_area'])} simplejpeg and OpenCV; without `native/` "
        f"{times(core['wheels_to_pillow'])} Pillow | {file} |"
    )
    rows.append(
        f"| the same through the loader, against DataLoader with Pillow | {times(loaders['native_to_dataloader'])}; "
        f"against WebDataset with Pillow {times(loaders['native_to_webdataset'])} | {file} |"
    )
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


def paper() -> str:
    """Table: what each network of the paper's experiments came to, by budget."""
    rows = ["| budget | network | seeds | training error, % | test error, % |", "|---|---|---|---|---|"]
    for budget in SCALES:
        for name, found in records.by_name(records.load_all(PAPER, budget)).items():
            errors = [
                records.spread([getattr(record, kind) for record in found])
                for kind in ("final_train_error", "test_error")
            ]
            cells = " | ".join(interval(error) for error in errors)
            rows.append(f"| {budget} | {name} | {len(found)} | {cells} |")
    return "\n".join(rows)


def interval(found: records.Spread) -> str:
    return f"{found.mean:.1f}" + (f" ({found.low:.1f} to {found.high:.1f})" if found.n > 1 else "")


def states() -> str:
    """Table: every table and figure of the paper, and its state."""
    budgets = {budget: records.load_all(PAPER, budget) for budget in SCALES}
    rows = ["| in the paper | shows | state |", "|---|---|---|"]
    rows += [f"| {item.name} | {item.title} | {state_of(item, budgets)} |" for item in ITEMS]
    return "\n".join(rows)


def degradation() -> str:
    """Table: plain and residual networks, 20 and 56 layers, at the laptop budget."""
    found = records.by_name(records.load_all(PAPER, "laptop"))
    rows = ["| training error, % | 20 layers | 56 layers | difference |", "|---|---|---|---|"]
    for kind, name in (("plain", "plain"), ("resnet", "residual")):
        low, high = (records.spread([r.final_train_error for r in found[f"{kind}{depth}"]]) for depth in (20, 56))
        rows.append(f"| {name} | {interval(low)} | {interval(high)} | {high.mean - low.mean:+.1f} points |")
    runs = [record for name in ("plain20", "plain56", "resnet20", "resnet56") for record in found[name]]
    minutes = sum(record.seconds for record in runs) / 60
    where = runs[0].environment["device"]
    rows += ["", f"{len(runs) // 4} seeds, intervals of 95 %; {minutes:.0f} min of training in all, {where}."]
    return "\n".join(rows)


def draw_degradation() -> str:
    """The figure of the laptop budget as a file of its own, in light and dark."""
    section = curves("laptop", records.by_name(records.load_all(PAPER, "laptop")))
    assert section is not None
    element = section.charts[0].svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    light = "color: #1b1f24; --line: #d5d9df; --train: #b0530a; --held: #175cab;"
    dark = "color: #e8eaed; --line: #3a4049; --train: #f0a868; --held: #8dbdf5;"
    style = f"svg {{ {light} font-family: sans-serif; }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    head, sign, body = element.partition(">")
    return f"{head}{sign}<style>{style}</style>{body}\n"


def transfer() -> str:
    """Table: imported weights as a start, against none."""
    found = result("transfer")
    low, high = (100 * end for end in found["difference_interval"])
    n, gain = found["seeds"][0]["n"], f"{100 * found['difference']:.1f} points"
    rows = ["| start | top-1, mean of 3 seeds |", "|---|---|"]
    rows += [f"| {arm} | {percent(share)} |" for arm, share in found["top1_mean"].items()]
    told = (
        f"{gain} apart (95 % interval {low:.1f} to {high:.1f}); {n} pictures, [transfer.json](results/transfer.json)."
    )
    return "\n".join([*rows, "", told])


def parity() -> str:
    """Table: every network that went to a peer and came back, and how far the answers were apart."""
    found = result("parity")
    names = {"timm": "timm", "torchvision": "torchvision", "transformers": "Transformers"}
    versions = ", ".join(f"{name} {found['versions'][key]}" for key, name in names.items())
    rows = ["| source | architecture | pictures | input | largest difference of logits |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        what, size = f"| {names[row['library']]} | {row['architecture']}", f"{row['size']}x{row['size']}"
        rows.append(f"{what} | {row['pictures']} | {size} | {row['difference']:.1e} |")
    return "\n".join([*rows, "", f"With {versions}, torch {found['versions']['torch']}."])


def keys() -> str:
    """Every key of a recipe, with what it may be."""
    return "```toml\n" + dumps(shipped("small")).strip() + "\n```"


def checking() -> str:
    """What `resnet check` finds of planted faults."""
    found = result("checking")
    false = {row["kind"]: row["false_alarms"] for row in found["kinds"] if "false_alarms" in row}
    rows = [row for row in found["kinds"] if "planted" in row]
    lines = ["| planted in a copy | found | of | false alarms |", "|---|---:|---:|---:|"]
    for row in rows:
        copy = row["kind"] not in false
        alarms = f"{false['leak-near']} of all near copies" if copy else str(false[row["kind"]])
        name = f"near copy across splits: {row['kind']}" if copy else row["kind"]
        lines.append(f"| {name} | {row['found']} | {row['planted']} | {alarms} |")
    clean, wrong = (found["labels"][key] for key in ("as they are", "3 % wrong"))
    lines.append(
        f"| wrong labels, {found['labels']['data']} | {wrong['found']} | {wrong['planted']} | "
        f"{wrong['false_alarms']} of {wrong['pictures']:,} |"
    )
    lines.append(f"| the same, none planted | - | 0 | {clean['false_alarms']} of {clean['pictures']:,} |")
    speed = found["pictures_per_second"]
    return "\n".join(lines) + (
        f"\n\n{found['data']['pictures']:,} pictures of {found['data']['classes']} classes of Tiny ImageNet, "
        f"checked in {found['seconds']['as_it_is']:.0f} s on {machine(found)}; reading alone "
        f"{speed['median']:,.0f} pictures/s ({speed['lowest']:,.0f} to {speed['highest']:,.0f})."
    )


TABLES: dict[str, Callable[[], str]] = {"accuracy": accuracy, "published": published, "speed": speed, "keys": keys}
TABLES |= {"parity": parity, "transfer": transfer}
TABLES |= speed_figures.TABLES | scale_figures.TABLES | explain_figures.TABLES
TABLES |= serve_figures.TABLES | learn_figures.TABLES
TABLES |= {"paper": paper, "states": states, "degradation": degradation, "checking": checking}


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
    if "--check" not in sys.argv:
        (ROOT / "docs" / "images" / "degradation.svg").write_text(draw_degradation(), encoding="utf-8")
        write_page(PAPER, PAPER / "report.html")
    if stale and "--check" in sys.argv:
        sys.exit(f"{', '.join(stale)}: figures are not those of results/; run: make docs")


if __name__ == "__main__":
    main()

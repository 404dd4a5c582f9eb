"""A model card (README.md of a hub repository): what it is, how good, on what, and what it is not for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from resnetkit.complexity import count
from resnetkit.errors import shown_name
from resnetkit.version import __version__
from resnetkit.weights import ModelFile

CARD = "README.md"
WORST = 5  # classes that are named
SHOWN = 20  # classes that are listed

USE = {
    "timm": """import timm
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # "hf-hub:OWNER/NAME" once it is there
transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
logits = model(transform(Image.open("a.jpg").convert("RGB")).unsqueeze(0))""",
    "transformers": """from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("FOLDER")
processor = AutoImageProcessor.from_pretrained("FOLDER")
logits = model(**processor(Image.open("a.jpg").convert("RGB"), return_tensors="pt")).logits""",
    "torchvision": """import json
from pathlib import Path

import torch
import torchvision
from torchvision.transforms import InterpolationMode

model = torchvision.models.BUILDER(num_classes=CLASSES).eval()
model.load_state_dict(torch.load("FOLDER/BUILDER.pth", weights_only=True), strict=True)
steps = json.loads(Path("FOLDER/transform.json").read_text())
steps["interpolation"] = InterpolationMode(steps["interpolation"])
transform = torchvision.transforms._presets.ImageClassification(**steps)""",
    "resnetkit": """import resnetkit

classifier = resnetkit.load("model.safetensors")
print(classifier.predict(["a.jpg"]))""",
}


def model_card(model: ModelFile, beside: Sequence[str] = ()) -> str:
    """The card as Markdown with the hub's metadata before it. `beside` are the names of the files it will lie with."""
    library, builder = library_of(beside)
    head: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "resnet", model.network.arch.name],
    }
    if "top1" in model.metrics:
        head |= {"model-index": [index_entry(model)]}
    use = USE[library].replace("BUILDER", builder).replace("CLASSES", str(len(model.classes)))
    parts = [
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items()) + "---",
        f"# {model.network.arch.name}, {len(model.classes):,} classes",
        about(model),
        f"## Use\n\n```python\n{use}\n```",
        f"## Results\n\n{results(model)}",
        f"## Data\n\n{data(model)}",
        f"## Preprocessing\n\n{preprocessing(model)}",
        f"## Limits\n\n{limits(model)}",
        f"Written by resnetkit {__version__}.",
    ]
    return shown_name("\n\n".join(parts) + "\n")


def library_of(beside: Sequence[str]) -> tuple[str, str]:
    """Whose export lies there, and of torchvision the function that builds the network."""
    weights = [name.removesuffix(".pth") for name in beside if name.endswith(".pth")]
    if "preprocessor_config.json" in beside:
        return "transformers", ""
    if "config.json" in beside:
        return "timm", ""
    return ("torchvision", weights[0]) if "transform.json" in beside and weights else ("resnetkit", "")


def index_entry(model: ModelFile) -> dict[str, Any]:
    """The score as the hub's `model-index` has it."""
    spec = model.provenance.get("data", {}).get("spec", "unnamed")
    scores = [("accuracy", "top-1 accuracy", model.metrics["top1"])]
    if model.metrics.get("top5") is not None:
        scores.append(("accuracy", "top-5 accuracy", model.metrics["top5"]))
    return {
        "name": model.network.arch.name,
        "results": [
            {
                "task": {"type": "image-classification"},
                "dataset": {"name": spec, "type": spec},
                "metrics": [{"type": kind, "name": name, "value": value} for kind, name, value in scores],
            }
        ],
    }


def about(model: ModelFile) -> str:
    """What it is, in two sentences."""
    arch, size = model.network.arch, model.preprocess.size
    counted = count(arch, size)
    names = ", ".join(model.classes[:SHOWN])
    more = f" and {len(model.classes) - SHOWN:,} more" if len(model.classes) > SHOWN else ""
    return (
        f"A residual network (arXiv 1512.03385) for pictures of {size}x{size} pixels: {counted.parameters:,} "
        f"parameters, {counted.multiply_adds:,} multiply-adds. Classes: {names}{more}."
    )


def results(model: ModelFile) -> str:
    """Scores with intervals and protocol, and the weakest classes; or that there are none."""
    found = model.metrics
    if "top1_interval" not in found:
        return "Not measured with this file: `resnet evaluate` gives a score with its interval."
    rows = ["| measure | value | 95 % interval |", "|---|---|---|"]
    for key, name in (("top1", "top-1"), ("top5", "top-5")):
        if found.get(key) is not None:
            low, high = found[f"{key}_interval"]
            rows.append(f"| {name} | {100 * found[key]:.2f} % | {100 * low:.2f} to {100 * high:.2f} |")
    if "ece" in found:
        rows.append(f"| expected calibration error | {100 * found['ece']:.2f} % | |")
    lines = ["\n".join(rows), f"{found['correct']:,} of {found['n']:,} pictures are right. {found.get('protocol', '')}"]
    weakest = sorted(found.get("per_class", ()), key=lambda row: row["top1"])[:WORST]
    if weakest:
        told = [f"{row['name']} {100 * row['top1']:.0f} % of {row['n']}" for row in weakest]
        lines.append(f"Weakest classes: {', '.join(told)}.")
    return "\n\n".join(lines)


def data(model: ModelFile) -> str:
    """What the file knows of the pictures it was trained on."""
    known = model.provenance
    lines = []
    if isinstance(known.get("data"), dict):
        lines.append(f"Trained on `{known['data'].get('spec')}`, fingerprint `{known['data'].get('fingerprint')}`.")
    for key, words in (("imported_from", "Imported from"), ("commit", "at commit"), ("weights", "Training began from")):
        if known.get(key):
            lines.append(f"{words} `{known[key]}`.")
    return " ".join(lines) or "The file does not say."


def preprocessing(model: ModelFile) -> str:
    """The steps, and that they belong to the model."""
    return f"{model.preprocess}. Another resize or filter costs accuracy and nobody sees it."


def limits(model: ModelFile) -> str:
    """What follows from what is known."""
    classes, worst = len(model.classes), min((row["n"] for row in model.metrics.get("per_class", ())), default=None)
    lines = [
        f"- It answers with one of its {classes:,} classes, whatever the picture shows.",
        "- The scores hold for pictures like those they were measured on; other cameras and places need a new test.",
        "- Its probabilities are not corrected for other shares of the classes than those of its training.",
    ]
    if worst is not None and worst < 100:
        lines.append(f"- Some classes were tested with as few as {worst} pictures: their scores are rough.")
    lines.append("- The licence of the weights is that of whoever trained them; this file does not know it.")
    return "\n".join(lines)

"""What a model says of itself beside its weights: classes, preprocessing, scores. Read without torch.

Model files and what is exported from them carry the same values, so both answer in the same words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError

FORMAT = 1
SAID = 0.5  # probability from which one of several labels is said
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class About:
    """The metadata of a model. `architecture` holds the fields of `model.Architecture`.

    calibration  "temperature", which the logits are divided by before the softmax, and where it is from; empty: 1.
                 "threshold", below which the first class is no answer; without it every one is
    multi_label  a picture may have several of the classes or none: each has a probability of its own, the sigmoid of
                 its logit, and is said from the threshold on, by default a half
    """

    architecture: dict[str, Any]
    classes: tuple[str, ...]
    preprocess: Preprocess
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    multi_label: bool = False

    def to_meta(self) -> dict[str, Any]:
        """Plain JSON values, as they stand in a file."""
        return {
            "kind": "model",
            "format": FORMAT,
            "architecture": self.architecture,
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_dict(),
            "metrics": self.metrics,
            "provenance": self.provenance,
            **({"calibration": self.calibration} if self.calibration else {}),
            **({"multi_label": True} if self.multi_label else {}),
        }

    @classmethod
    def from_meta(cls, meta: dict[str, Any], where: str) -> About:
        """The opposite of `to_meta`. Raises UserError naming the file and what in its metadata cannot be."""
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{where}: model file format {meta.get('format')}; this version of resnetkit reads {FORMAT}"
            )
        tables = {
            key: meta.get(key, {}) for key in ("architecture", "preprocess", "metrics", "provenance", "calibration")
        }
        wrong = [key for key, value in tables.items() if not isinstance(value, dict)]
        classes = meta.get("classes")
        if wrong or not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise UserError(f"{where}: its metadata have no usable {(*wrong, 'classes')[0]!r}; restore it from a copy")
        try:
            preprocess = Preprocess.from_dict(tables.pop("preprocess"))
            temperature_of(tables["calibration"])
            threshold_of(tables["calibration"])
        except (UserError, OverflowError) as error:  # JSON has whole numbers that no float holds
            raise UserError(f"{where}: its metadata cannot be used: {error}") from None
        many = meta.get("multi_label", False)
        if not isinstance(many, bool):
            raise UserError(f"{where}: its metadata have no usable 'multi_label'; restore it from a copy")
        return cls(classes=tuple(classes), preprocess=preprocess, multi_label=many, **tables)

    @property
    def temperature(self) -> float:
        """What the logits are divided by before the softmax (arXiv 1706.04599)."""
        return temperature_of(self.calibration)

    @property
    def threshold(self) -> float:
        """A class that is less probable is no answer."""
        usual = {"threshold": SAID} if self.multi_label else {}
        return threshold_of(usual | self.calibration)


def threshold_of(calibration: dict[str, Any]) -> float:
    """0 where none is stated. Raises UserError for what is no probability."""
    value = calibration.get("threshold", 0.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(f"calibration threshold={value!r}: must be from 0 to 1")
    return float(value)


def temperature_of(calibration: dict[str, Any]) -> float:
    """1 where nothing is calibrated. Raises UserError for what is no temperature."""
    value = calibration.get("temperature", 1.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise UserError(f"calibration temperature={value!r}: must be a number above 0")
    return float(value)


def about_of(meta: dict[str, Any] | None, where: str) -> About:
    """What the metadata of a safetensors file say. Raises UserError where it is no model file."""
    if meta is None or meta.get("kind") != "model":
        what = "a checkpoint" if meta else "weights alone"
        raise UserError(f"{where}: holds {what}, no architecture and classes; see: resnet import --help")
    return About.from_meta(meta, where)


def model_path(model: str | Path) -> Path:
    """The model file that a RUN folder or a path means. Raises UserError when there is none."""
    path = Path(model)
    if path.is_dir():
        if not (path / MODEL_FILE).exists():
            hint = f"; finish it with: resnet resume {path}" if (path / "recipe.json").exists() else ""
            raise UserError(f"{path}: holds no {MODEL_FILE}{hint}")
        return path / MODEL_FILE
    if not path.exists():
        raise UserError(f"{path}: no such model file or run folder")
    return path

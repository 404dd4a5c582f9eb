"""resnetkit: the ResNet family done right. The names below are loaded when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from resnetkit.version import __version__

if TYPE_CHECKING:
    from resnetkit.calibration import Calibration, calibrate
    from resnetkit.comparison import Comparison, compare
    from resnetkit.complexity import Complexity, count
    from resnetkit.crossvalidation import CrossValidated, cross_validate
    from resnetkit.data.source import open_data
    from resnetkit.data.transforms import Preprocess
    from resnetkit.embedding import Embeddings, embed
    from resnetkit.errors import BadPicture, UserError
    from resnetkit.evaluation import Result, evaluate
    from resnetkit.events import Finished, Stopped
    from resnetkit.exporting import export
    from resnetkit.labelling import label_next
    from resnetkit.model import Architecture, ResNet, architecture
    from resnetkit.multilabel import MultiLabelResult
    from resnetkit.peers.sources import import_weights
    from resnetkit.prediction import Classifier, Prediction, load, predict
    from resnetkit.recipe import Recipe
    from resnetkit.recompute import recompute_statistics
    from resnetkit.shipped import recipes
    from resnetkit.training import resume, train

_HOME = {
    "Architecture": "model",
    "BadPicture": "errors",
    "Calibration": "calibration",
    "Classifier": "prediction",
    "Comparison": "comparison",
    "Complexity": "complexity",
    "CrossValidated": "crossvalidation",
    "Embeddings": "embedding",
    "Finished": "events",
    "Prediction": "prediction",
    "Preprocess": "data.transforms",
    "Recipe": "recipe",
    "ResNet": "model",
    "MultiLabelResult": "multilabel",
    "Result": "evaluation",
    "Stopped": "events",
    "UserError": "errors",
    "architecture": "model",
    "calibrate": "calibration",
    "compare": "comparison",
    "count": "complexity",
    "cross_validate": "crossvalidation",
    "embed": "embedding",
    "evaluate": "evaluation",
    "export": "exporting",
    "import_weights": "peers.sources",
    "label_next": "labelling",
    "load": "prediction",
    "open_data": "data.source",
    "predict": "prediction",
    "recipes": "shipped",
    "recompute_statistics": "recompute",
    "resume": "training",
    "train": "training",
}

__all__ = [
    "Architecture",
    "BadPicture",
    "Calibration",
    "Classifier",
    "Comparison",
    "Complexity",
    "CrossValidated",
    "Embeddings",
    "Finished",
    "MultiLabelResult",
    "Prediction",
    "Preprocess",
    "Recipe",
    "ResNet",
    "Result",
    "Stopped",
    "UserError",
    "__version__",
    "architecture",
    "calibrate",
    "compare",
    "count",
    "cross_validate",
    "embed",
    "evaluate",
    "export",
    "import_weights",
    "label_next",
    "load",
    "open_data",
    "predict",
    "recipes",
    "recompute_statistics",
    "resume",
    "train",
    # `resnetkit.training` is the module: its `training(...)` yields events, for those who show progress
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'resnetkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"resnetkit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

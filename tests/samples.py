"""Values that several test files start from."""

from __future__ import annotations

from resnetkit.evaluation import ClassScore, Result

RESULT = Result(
    n=3,
    correct=2,
    top1=2 / 3,
    top1_interval=(0.2, 0.9),
    top5=None,
    top5_interval=None,
    balanced_accuracy=0.75,
    nll=0.5,
    ece=0.1,
    per_class=(ClassScore("cat", 2, 1, 0.5, (0.1, 0.9)), ClassScore("dog", 1, 1, 1.0, (0.2, 1.0))),
    confusion=((1, 1), (0, 1)),
    mistakes=(),
    bad={"broken.jpg": "cut short"},
    protocol="photos, val",
)

"""The answers of a model as the server of ILSVRC takes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnetkit.atomic import write_text
from resnetkit.data.imagenet import submission, submission_lines
from resnetkit.data.pictures import Data, name_bad
from resnetkit.distributed import joined
from resnetkit.errors import UserError
from resnetkit.evaluation import Result, ask_for, free_file, judge
from resnetkit.protocol import ONE_CROP, Progress, Protocol, ask
from resnetkit.weights import ModelFile


@dataclass(frozen=True)
class Submission:
    """A file of answers, a line for each picture, and their score where the pictures have labels."""

    path: str
    lines: int
    result: Result | None


def submit(
    model: str | Path | ModelFile,
    data: str | Path | Data,
    out: str | Path,
    *,
    split: str | None = None,
    device: str = "cpu",
    protocol: Protocol = ONE_CROP,
    ensemble: Sequence[str | Path | ModelFile] = (),
    progress: Progress | None = None,
) -> Submission:
    """Write the ILSVRC submission of a model or an ensemble, and score it where that can be.

    A line for each picture in the order of its number: the ILSVRC2012_ID of the five most probable classes, best first.
    The arguments are those of `evaluate`. Raises UserError, also when `out` is there already or a picture unreadable.
    """
    target = free_file(out)
    with joined() as ranks:
        asked = ask_for(model, data, split=split, device=device, protocol=protocol, ensemble=ensemble)
        order, ids = submission(asked.data, asked.indices.tolist(), asked.data.classes)
        answers = ask(asked.members, asked.indices, protocol, progress, ranks)
        if answers.bad:
            raise UserError(name_bad(asked.data, answers.bad, "take the split from its archive anew"))

        def written() -> Submission:
            lines = submission_lines(answers.table[order], ids)
            try:
                write_text(target, "".join(f"{line}\n" for line in lines))
            except OSError as error:
                why = f"{out}: cannot be written ({error.strerror})"
                raise UserError(f"{why}; choose another place or make room") from None
            judged = asked.split not in asked.data.unlabelled
            result = judge(asked.data, answers, asked.protocol) if judged else None
            return Submission(os.fspath(out), len(order), result)

        return ranks.agreed(written)

"""The score of several labels a picture, as a person sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resnetkit.multilabel import MultiLabelResult
from resnetkit.terminal import CLASSES_SHOWN, new_table, percent, say, show_bad, shown

if TYPE_CHECKING:
    from rich.console import Console


def show_labels(console: Console, result: MultiLabelResult) -> None:
    """The line, the protocol, the further figures, the labels with the lowest average precision."""
    say(console, f"{result.title} ", (str(result), "bold"))
    say(console, f"every label right {percent(result.exact)} of the pictures")
    say(
        console,
        f"F1 {percent(result.micro_f1)} over all answers, {percent(result.macro_f1)} over labels, said from 50 %",
    )
    say(console, f"negative log-likelihood {result.nll:.4f} nats a picture")
    say(console, f"protocol: {result.protocol}")
    show_bad(console, result.bad)
    console.print()
    columns = ("pictures", "average precision", "chance", "precision", "recall")
    table = new_table(label=("label", "left"), **{name: (name, "right") for name in columns})
    worst = sorted(result.per_label, key=lambda row: (row.ap, row.name))
    for row in worst[:CLASSES_SHOWN]:
        shares = (row.ap, row.prevalence, row.precision, row.recall)
        table.add_row(shown(row.name), f"{row.positives:,}", *(percent(share, 1) for share in shares))
    console.print(table)
    if len(worst) > CLASSES_SHOWN:
        say(console, f"… {len(worst) - CLASSES_SHOWN} more; --json has all")

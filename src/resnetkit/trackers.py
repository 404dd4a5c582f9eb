"""TensorBoard, MLflow and Weights & Biases (extra `track`): a function for each, which `tracking` runs in a thread.

tensorboard  RUN/tensorboard
mlflow       MLFLOW_TRACKING_URI, or RUN/mlflow.db and RUN/mlartifacts; MLFLOW_EXPERIMENT_NAME, or "resnetkit"
wandb        the account of its key, or RUN/wandb where there is no key; WANDB_MODE, WANDB_PROJECT
"""

from __future__ import annotations

import importlib
import json
import netrc
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from resnetkit.about import MODEL_FILE
from resnetkit.errors import UserError, nearest
from resnetkit.events import Finished

PACKAGES = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
}
PROJECT = "resnetkit"  # where nothing else is said; and the tag by which a run is found again
LOCAL = "sqlite:///"
FULL, LAST, BLOCK = 1, 4, 1 << 15  # of a file in LevelDB's log format: kinds of records, bytes of a block
MANY = 100  # rows told at once, at most: MLflow takes 1,000 numbers
FINISH_SECONDS = 10.0  # that W&B has at the end for what is under way

Row = tuple[int, dict[str, float]]  # step, and numbers by name


@dataclass
class Story:
    """What is told beside the numbers.

    name      of the run, the same in every tracker and for ever
    begun     the step from which the training goes on
    finished  the end, once all rows are told; None where there is none yet
    """

    folder: Path
    name: str
    recipe: dict[str, Any]
    begun: int
    finished: Finished | None = None


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that is none, or whose packages are not installed."""
    for setting, value in (("DISABLE_TELEMETRY", "true"), ("LOGGING_LEVEL", "WARNING")):  # read when it is imported
        os.environ.setdefault(f"MLFLOW_{setting}", value)
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"tracker {name}: not known{nearest(name, PACKAGES)}; choose from {', '.join(PACKAGES)}")
        for package in PACKAGES[name]:
            try:
                importlib.import_module(package)
            except ImportError:
                raise UserError(
                    f"tracker {name}: needs {package}, which is not installed: pip install 'resnetkit[track]'"
                ) from None


def place_of(tracker: str, folder: Path) -> str:
    """Where a tracker puts what it is told, and what shows it."""
    if tracker == "tensorboard":
        return f"{folder / 'tensorboard'} (tensorboard --logdir {folder})"
    if tracker == "mlflow":
        place = mlflow_place(folder)
        return f"{folder / 'mlflow.db'} (mlflow ui --backend-store-uri {place})" if place.startswith(LOCAL) else place
    mode = wandb_mode()
    if mode == "offline":
        return f"{folder / 'wandb'}, offline (wandb sync {folder / 'wandb' / 'offline-run-*'})"
    return f"{mode}, project {wandb_project()}"


def to_tensorboard(story: Story, rows: Iterable[list[Row]]) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    folder = story.folder / "tensorboard"
    is_new = not folder.exists()
    # What a killed run told beyond its checkpoint is dropped by whoever reads the files; `purge_step` asks for that.
    with SummaryWriter(str(folder), purge_step=story.begun + 1) as writer:
        if is_new:
            columns, values, _ = hparams(written(story.recipe), {"final/top1": None})  # type: ignore[no-untyped-call]
            for summary in (columns, values):
                writer.file_writer.add_summary(summary)
            writer.flush()
        step = story.begun
        for batch in rows:
            for step, numbers in batch:
                for name, value in numbers.items():
                    writer.add_scalar(name, value, step)
            writer.flush()
        for what, path in artifacts(story).items():
            writer.add_text(what, str(path), step)


def to_mlflow(story: Story, rows: Iterable[list[Row]]) -> None:
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_place(story.folder))
    run = mlflow_run(client, story)
    number = run.info.run_id
    if not run.data.params:
        params = [Param(key, str(value)) for key, value in written(story.recipe).items()]
        for start in range(0, len(params), MANY):
            client.log_batch(number, params=params[start : start + MANY])
    known = dict.fromkeys(run.data.metrics, -1)
    for name in known:
        known[name] = max(metric.step for metric in client.get_metric_history(number, name))
    try:
        for batch in rows:
            now = round(1000 * time.time())
            told = [(name, value, step) for step, numbers in batch for name, value in numbers.items()]
            metrics = [Metric(name, value, now, step) for name, value, step in told if step > known.get(name, -1)]
            if metrics:
                client.log_batch(number, metrics=metrics)
        for path in artifacts(story).values():
            client.log_artifact(number, str(path))
    finally:
        client.set_terminated(number, "FINISHED" if story.finished else "KILLED")


def mlflow_run(client: Any, story: Story) -> Any:
    """The run of this name, made where there is none."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = mlflow_place(story.folder).startswith(LOCAL)
        artifacts_at = (story.folder / "mlartifacts").absolute().as_uri() if local else None
        experiment = client.get_experiment(client.create_experiment(name, artifact_location=artifacts_at))
    place = experiment.experiment_id
    found = client.search_runs([place], f"tags.`{PROJECT}` = '{story.name}'")
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0]
    return client.create_run(place, run_name=story.folder.name, tags={PROJECT: story.name})


def mlflow_place(folder: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{LOCAL}{folder.absolute() / 'mlflow.db'}"


def to_wandb(story: Story, rows: Iterable[list[Row]]) -> None:
    import wandb

    mode = wandb_mode()
    known = max(wandb_steps(story.folder / "wandb", story.name), default=-1) if mode == "offline" else None
    run = wandb.init(
        project=wandb_project(),
        id=story.name,
        name=story.folder.name,
        dir=str(story.folder),
        mode=mode,  # type: ignore[arg-type]  # it is the user's own word
        resume="allow",
        config=story.recipe,
        settings=wandb.Settings(silent=True, console="off", finish_timeout=FINISH_SECONDS, reinit="create_new"),
    )
    try:
        known = run.step - 1 if known is None else known
        for batch in rows:
            for step, numbers in batch:
                if step > known:
                    run.log(numbers, step=step)  # numbers of one step become one row
        if story.finished:
            made = wandb.Artifact(f"run-{story.name}", "model")
            for path in artifacts(story).values():
                made.add_file(str(path), policy="immutable", skip_cache=True)
            run.log_artifact(made)
    finally:
        run.finish(exit_code=0 if story.finished else 1)


def wandb_mode() -> str:
    """What WANDB_MODE says, or online where there is a key."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    has_key = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    with suppress(OSError, netrc.NetrcParseError):
        has_key = has_key or netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return os.environ.get("WANDB_MODE") or ("online" if has_key else "offline")


def wandb_project() -> str:
    return os.environ.get("WANDB_PROJECT") or PROJECT


def wandb_steps(folder: Path, name: str) -> Iterator[int]:
    """The steps in the files of a run that was never online, which nobody but the files can say."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for path in folder.glob(f"offline-run-*-{name}/run-{name}.wandb"):
        for data in log_records(path.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                yield record.history.step.num


def log_records(data: bytes) -> Iterator[bytes]:
    """The whole records of a file in LevelDB's log format (its doc/log_format.md), after W&B's 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data) or kind == 0:  # cut off, or a block's padding
            break
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
        if BLOCK - at % BLOCK < 7:  # no room for a header: the next block
            at += BLOCK - at % BLOCK


def artifacts(story: Story) -> dict[str, Path]:
    """What is worth keeping of a training that is done."""
    return {"model": story.folder / MODEL_FILE, "report": story.finished.report} if story.finished else {}


def written(recipe: dict[str, Any]) -> dict[str, str | float]:
    """Values as every tracker takes them: lists as text."""
    return {key: value if isinstance(value, str | int | float) else json.dumps(value) for key, value in recipe.items()}


TRACKERS: dict[str, Callable[[Story, Iterable[list[Row]]], None]] = {
    "tensorboard": to_tensorboard,
    "mlflow": to_mlflow,
    "wandb": to_wandb,
}

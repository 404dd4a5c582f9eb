"""From what a person types to pictures: a folder, a table, shards, or the name of a data set and its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from resnetkit.cachehome import BLOCKS, cache_home
from resnetkit.data.blobs import Blobs, LocalBlobs
from resnetkit.data.folder import entries, load_folder
from resnetkit.data.imagenet import TARS, load_imagenet
from resnetkit.data.patterns import expand
from resnetkit.data.pictures import Data, count, listing
from resnetkit.data.remote import RemoteBlobs
from resnetkit.data.rowgroups import load_parquet
from resnetkit.data.shards import load_shards
from resnetkit.data.small import SETS, load_digits, load_small
from resnetkit.data.table import load_table
from resnetkit.errors import UserError, nearest
from resnetkit.stores import is_url

TABLES = (".csv", ".tsv")
SHARDS = (".tar", ".parquet")
KEPT = 64 << 30  # bytes of far shards that are kept on this machine
NAMED = (*SETS, "imagenet")  # with a folder behind the colon


def open_data(spec: str | Path, *, several: bool = False) -> Data:
    """The pictures called `spec`, as names and labels; files are read later.

      photos/                 <class>/…, or train/<class>/…, val/<class>/… and test/<class>/…
      pictures.csv, .tsv      columns path, label (or labels, several for each picture) and, if wanted, split
      fashion-mnist:DIR       IDX files, plain or .gz; also mnist:DIR
      cifar10:DIR             binary or Python batches, or folders train/<class>/ and test/<class>/; also cifar100:DIR
      imagenet:DIR            ILSVRC-2012 as downloaded or unpacked, also Kaggle's; see `data.imagenet`
      "x-{000..123}.tar"      WebDataset tars, also one, or a folder of them; "x-*.tar" are those that are there
      "x-*.parquet"           Parquet files in Hugging Face's layout, also one, or a folder of them
      "s3://b/x-{00..49}.tar" the same, or .parquet, in a store that fsspec reaches; also https://, gs:// …
      digits:                 scikit-learn's 1,797 digits

    several   whether whoever asks can do with pictures that have several labels each

    Raises UserError when there is nothing there that can be used.
    """
    text = os.fspath(spec)
    name, colon, where = text.partition(":")
    try:
        if is_url(text):
            return load_far(text)
        if colon and name == "digits":
            return load_digits(text)
        if colon and name in NAMED:
            return load_set(name, where, text)
        path = Path(text)
        if is_shards(text) and not path.is_dir():
            return load_files(pattern_files(text), text)
        if path.suffix.lower() in TABLES and not path.is_dir():
            return one_label(load_table(path, text), several)
        if not path.exists():
            hint = nearest(f"{name}:", [f"{known}:" for known in (*NAMED, "digits")]) if colon else ""
            raise UserError(f"{text}: no such folder or table{hint or '; check the path'}")
        if path.is_file():
            raise UserError(f"{text}: a file that is no table; give a folder of pictures, or a .csv or .tsv file")
        files = shards_in(path)
        if any(Path(name).name in known for known in TARS.values() for name in files):
            return load_imagenet(path, text)
        return load_files(files, text) if files else load_folder(path, text)
    except OSError as error:
        raise UserError(f"{text}: cannot be read ({error.strerror}); check the path and its permissions") from error


def one_label(data: Data, several: bool) -> Data:
    """The data as they are. Raises UserError where pictures have several labels, and whoever asks takes one."""
    if data.sets is not None and not several:
        raise UserError(
            f"{data.spec}: its pictures may have several labels, with which one can train and evaluate and nothing "
            "else; give a table with a column 'label', one for each picture"
        )
    return data


def load_far(text: str) -> Data:
    """Shards by URL, read in blocks that are kept on this machine."""
    if not is_shards(text):
        raise UserError(
            f"{text}: from a store only tars and Parquet files are read, .../name-{{000..123}}.tar; write them with: "
            "resnet shard"
        )
    return load_files(expand(text), text, blobs=far_blobs, far=True)


def far_blobs(urls: Sequence[str]) -> RemoteBlobs:
    return RemoteBlobs(urls, cache=cache_home() / BLOCKS, limit=KEPT)


def is_shards(text: str) -> bool:
    """Whether a word means shards by its ending, be they there or not."""
    return text.lower().endswith(SHARDS)


def pattern_files(text: str) -> list[str]:
    """The shards that a pattern stands for. Raises UserError for what is not there."""
    found = expand(text)
    missing = [name for name in found if not os.path.isfile(name)]  # noqa: PTH113
    if missing:
        raise UserError(
            f"{text}: {count(len(missing), 'file is', 'files are')} not there: {listing(missing)}; check the path"
        )
    return found


def shards_in(folder: Path) -> list[str]:
    """The shards that lie in a folder of nothing else that could be pictures, sorted; none where there are folders."""
    found = entries(folder, "", os.fspath(folder))
    if any(entry.is_dir() for entry in found):
        return []
    return [os.path.join(folder, entry.name) for entry in found if is_shards(entry.name)]  # noqa: PTH118


def load_files(
    files: list[str], spec: str, *, blobs: Callable[[list[str]], Blobs] = LocalBlobs, far: bool = False
) -> Data:
    """The pictures of tars or of Parquet files."""
    kinds = {name.lower().endswith(".tar") for name in files}
    if len(kinds) > 1:
        raise UserError(f"{spec}: .tar and .parquet files side by side; name those of one kind, such as {spec}/*.tar")
    load = load_shards if kinds.pop() else load_parquet
    return load(files, spec, blobs=blobs, far=far)


def absolute(spec: str | Path) -> str:
    """What `open_data` takes for the same pictures in any working folder."""
    text = os.fspath(spec)
    name, colon, where = text.partition(":")
    if is_url(text) or (colon and name == "digits"):
        return text
    if colon and name in NAMED:
        return f"{name}:{os.path.abspath(os.path.expanduser(where))}"  # noqa: PTH100, PTH111 - keeps bytes of names
    return os.path.abspath(text)  # noqa: PTH100


def load_set(name: str, where: str, spec: str) -> Data:
    """A named data set, from its own files or from folders of pictures."""
    folder = Path(where).expanduser()
    if not where or not folder.is_dir():
        raise UserError(f"{spec}: no such folder; write {name}:DIR with the folder that holds the data")
    if name == "imagenet":
        return load_imagenet(folder, spec)
    if name.startswith("cifar") and (folder / "train").is_dir() and (folder / "test").is_dir():
        return load_folder(folder, spec)
    return load_small(name, folder, spec)

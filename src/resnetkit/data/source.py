"""From what a person types to pictures: a folder, a table, or the name of a data set and its folder."""

from __future__ import annotations

import os
from pathlib import Path

from resnetkit.data.folder import load_folder
from resnetkit.data.imagenet import load_imagenet
from resnetkit.data.pictures import Data
from resnetkit.data.small import SETS, load_digits, load_small
from resnetkit.data.table import load_table
from resnetkit.errors import UserError, nearest

TABLES = (".csv", ".tsv")
NAMED = (*SETS, "imagenet")  # with a folder behind the colon


def open_data(spec: str | Path) -> Data:
    """The pictures called `spec`, as names and labels; files are read later.

      photos/                 <class>/…, or train/<class>/…, val/<class>/… and test/<class>/…
      pictures.csv, .tsv      columns path, label and, if wanted, split
      fashion-mnist:DIR       IDX files, plain or .gz; also mnist:DIR
      cifar10:DIR             binary or Python batches, or folders train/<class>/ and test/<class>/; also cifar100:DIR
      imagenet:DIR            ILSVRC-2012 as it unpacks, from its own archives or Kaggle's; see `data.imagenet`
      digits:                 scikit-learn's 1,797 digits

    Raises UserError when there is nothing there that can be used.
    """
    text = os.fspath(spec)
    name, colon, where = text.partition(":")
    try:
        if colon and name == "digits":
            return load_digits(text)
        if colon and name in NAMED:
            return load_set(name, where, text)
        path = Path(text)
        if path.suffix.lower() in TABLES and not path.is_dir():
            return load_table(path, text)
        if not path.exists():
            hint = nearest(f"{name}:", [f"{known}:" for known in (*NAMED, "digits")]) if colon else ""
            raise UserError(f"{text}: no such folder or table{hint or '; check the path'}")
        if path.is_file():
            raise UserError(f"{text}: a file that is no table; give a folder of pictures, or a .csv or .tsv file")
        return load_folder(path, text)
    except OSError as error:
        raise UserError(f"{text}: cannot be read ({error.strerror}); check the path and its permissions") from error


def absolute(spec: str | Path) -> str:
    """What `open_data` takes for the same pictures in any working folder."""
    text = os.fspath(spec)
    name, colon, where = text.partition(":")
    if colon and name == "digits":
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

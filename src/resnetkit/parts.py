"""A place of many files that are each written whole: a folder, or what a URL of an object store begins."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resnetkit.errors import UserError
from resnetkit.stores import Store, is_url


class Folder:
    """Of files that are written under a name of their own and renamed: see `atomic`, and `answers.ParquetTable`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def there(self) -> set[str]:
        """The names of files that are there; the folder is made where there is none. Raises UserError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.sweep()
            return {path.name for path in self.path.iterdir() if not path.name.startswith(".")}
        except OSError as error:
            reason = f"cannot be used as a folder ({error.strerror})"
            raise UserError(f"{self.path}: {reason}; choose another --out") from None

    def open(self, name: str) -> io.BufferedIOBase:
        """A file to read. Raises OSError."""
        return (self.path / name).open("rb")

    @contextmanager
    def room(self, name: str) -> Iterator[Path]:
        """Where a file is to be written, by something that puts it there whole; an older one goes."""
        (self.path / name).unlink(missing_ok=True)
        yield self.path / name

    def sweep(self) -> None:
        """Remove what a process that was killed had half written."""
        for part in self.path.glob(".part-*.part"):
            with suppress(OSError):
                part.unlink()


class Bucket:
    """Of objects, which appear when their upload is complete."""

    def __init__(self, url: str) -> None:
        self.url, self.store = url.rstrip("/"), Store(url)

    def there(self) -> set[str]:
        """The names of objects that are there. Raises UserError."""
        return {url.rpartition("/")[2] for url in self.store.glob(f"{self.url}/*")}

    def open(self, name: str) -> io.BufferedIOBase:
        """An object, in memory. Raises UserError."""
        url = f"{self.url}/{name}"
        facts = self.store.facts(url)
        return io.BytesIO(self.store.read(url, 0, facts.size, facts))

    @contextmanager
    def room(self, name: str) -> Iterator[Path]:
        """Where a file is to be written, which is then put into the store. Raises UserError."""
        with tempfile.TemporaryDirectory(prefix="resnetkit-") as folder:
            path = Path(folder) / name
            yield path
            self.store.put(f"{self.url}/{name}", path)

    def sweep(self) -> None:
        """Nothing is half written in a store."""


def place(out: str) -> Folder | Bucket:
    """The place that a path or URL names. Raises UserError."""
    return Bucket(out) if is_url(out) else Folder(Path(out))

"""Files behind an address (`s3://…`, `hf://…`, `memory://…`: whatever fsspec has a driver for), as inputs and outputs.

Inputs: a unit of work copies its file to this machine, reads it, and deletes the copy. One file per worker is on the
local disk at a time, a connection that breaks costs a second try and not half of the documents, and every reader works
unchanged.

Outputs: a run writes into a local *scratch* folder as it always does. What a unit has finished is then sent to the
address, documents first and the unit's record last, and removed here. A store that cannot rename may show half a file
while it is being written, but the record that makes it count is not there yet. Records are all that a later run asks
for, so it goes on from any machine; only what lies between two barriers is on one machine and is done again elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomery.core.errors import BloomeryError, ConfigError, DataError, MissingExtraError, StorageError
from bloomery.core.hashing import digest

TEXT = (".txt", ".md")
HTML = (".html", ".htm", ".xhtml")
PAGES = TEXT + HTML  # files of one folder are one input
ATTEMPTS = 3  # at copying a file
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


@dataclass(frozen=True)
class Url:
    """A remote file; with a slash at the end, the folder whose text and HTML files are read together."""

    address: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.address.rstrip("/").rpartition("/")[2]

    @property
    def is_folder(self) -> bool:
        """Whether it stands for the files of a folder."""
        return self.address.endswith("/")

    def __str__(self) -> str:
        return self.address


Source = Path | Url


def source_of(item: str | Path | Url) -> Source:
    """A path, or a remote file where the string is an address; `file://` is a path."""
    text = str(item)
    if isinstance(item, (Path, Url)) or not _ADDRESS.match(text):
        return item if isinstance(item, Url) else Path(item)
    if "::" in text:
        raise ConfigError("chained addresses are not supported", where=text, fix="give the address of the files alone")
    return Path(text.removeprefix("file://")) if text.startswith("file://") else Url(text)


@contextmanager
def local_copy(source: Source) -> Iterator[Path]:
    """The file itself, or a copy of a remote one (of a folder: its text and HTML files) that is deleted afterwards."""
    if isinstance(source, Path):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="bloomery-") as folder:
        local = Path(folder) / source.name
        if source.is_folder:
            local.mkdir()
            for file in listing(source):
                if file.name.lower().endswith(PAGES):
                    _copy(file, local / file.name)
        else:
            _copy(source, local)
        yield local


def expand(url: Url, wanted: Sequence[str]) -> list[Url]:
    """The files that an address, a folder or a pattern stands for, in sorted order.

    In folders (which are searched to the bottom) those with a suffix in `wanted`, without what a run dropped there;
    text and HTML files of one folder come as that folder.
    """
    fs, root = filesystem(url)
    with explained(url):
        if any(mark in root for mark in "*?["):
            found = [Url(fs.unstrip_protocol(path)) for path in sorted(fs.glob(root)) if fs.isfile(path)]
            if not found:
                raise DataError("nothing matches this pattern", where=url)
            return found
        if fs.isfile(root):
            return [Url(fs.unstrip_protocol(root))]
        if not fs.isdir(root):
            raise DataError("no such file or folder", where=url)
        files, paths = [], sorted(fs.find(root))
        refused = tuple(
            path.removesuffix("report.json") + "dropped/" for path in paths if path.endswith("/report.json")
        )
        for path in paths:
            inside = path[len(root.rstrip("/")) :].strip("/").split("/")
            hidden = any(part.startswith((".", "_")) for part in inside) or path.startswith(refused)
            if path.lower().endswith(tuple(wanted)) and not hidden:
                full = fs.unstrip_protocol(path)
                files.append(Url(full.rpartition("/")[0] + "/" if path.lower().endswith(PAGES) else full))
    return list(dict.fromkeys(files))


def listing(folder: Url) -> list[Url]:
    """The files directly in a remote folder, sorted."""
    fs, root = filesystem(folder)
    with explained(folder):
        return [Url(fs.unstrip_protocol(path)) for path in sorted(fs.ls(root, detail=False)) if fs.isfile(path)]


def files_in(folder: Source, inside: str, suffix: str) -> Sequence[Source]:
    """The files in the folder `inside` of `folder` whose names end in `suffix`, sorted; none where it is missing."""
    if isinstance(folder, Path):
        return sorted((folder / inside).glob(f"*{suffix}"))
    below = Url(f"{folder.address.rstrip('/')}/{inside}".rstrip("/"))
    fs, root = filesystem(below)
    with explained(below):
        if not fs.isdir(root):
            return []
    return [file for file in listing(below) if file.name.endswith(suffix)]


def identity(url: Url) -> list[Any]:
    """What changes when the content does: size, date or checksum, whichever the store has."""
    files = [file for file in listing(url) if file.name.lower().endswith(PAGES)] if url.is_folder else [url]
    found = []
    for file in files:
        fs, path = filesystem(file)
        with explained(file):
            found.append([file.name, fs.ukey(path)])
    return found


def size_of(url: Url) -> int:
    """Bytes; of a folder, of its text and HTML files."""
    files = [file for file in listing(url) if file.name.lower().endswith(PAGES)] if url.is_folder else [url]
    total = 0
    for file in files:
        fs, path = filesystem(file)
        with explained(file):
            total += int(fs.size(path) or 0)
    return total


def read_bytes(url: Url) -> bytes:
    """The content of a small remote file."""
    fs, path = filesystem(url)
    with explained(url):
        content: bytes = fs.cat_file(path)
        return content


def filesystem(url: Url) -> tuple[Any, str]:
    """fsspec's file system for the address, and the path there."""
    import fsspec

    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url.address)
        return found
    except ImportError as error:
        raise MissingExtraError(f"no driver for such addresses: {error}", where=url) from error
    except ValueError as error:
        raise ConfigError(f"not an address that can be read: {error}", where=url) from error


@contextmanager
def explained(url: Url) -> Iterator[None]:
    """Turn what drivers raise (each its own) into one line that names the address."""
    try:
        yield
    except BloomeryError:
        raise
    except FileNotFoundError as error:
        raise DataError("no such file", where=url) from error
    except PermissionError as error:
        raise StorageError("permission denied", where=url, fix="check the credentials that the driver uses") from error
    except Exception as error:
        raise StorageError(f"cannot be reached: {type(error).__name__}: {error}", where=url) from error


def _copy(url: Url, path: Path) -> None:
    fs, root = filesystem(url)
    with explained(url):
        for attempt in range(ATTEMPTS):
            try:
                fs.get_file(root, str(path))
                return
            except (FileNotFoundError, PermissionError):
                raise
            except Exception:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(2**attempt)


# ------------------------------------------------------------------------------------------------------------ outputs


class Mirror:
    """The remote folder of a run and the local scratch folder in which it is worked on."""

    def __init__(self, url: Url, scratch: Path | None) -> None:
        self.url = Url(url.address.rstrip("/"))
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bloomery" / "runs"
        self.folder = (scratch or cache / digest(self.url.address)).resolve()
        self._fs, self._root = filesystem(self.url)
        with explained(self.url):
            self._fs.invalidate_cache()
            paths = self._fs.find(self._root) if self._fs.exists(self._root) else []
        self._names = {path[len(self._root.rstrip("/")) :].strip("/") for path in paths}

    def pull(self, state: str) -> None:
        """Bring the records (JSON files below `state`) here; without a run there, begin with an empty scratch folder.

        Raises:
            ConfigError: the remote folder holds files, but no curation run.
        """
        if f"{state}/run.json" not in self._names:
            if self._names:
                raise ConfigError(
                    "holds files, but no curation run", where=self.url, fix="choose a new or empty folder"
                )
            shutil.rmtree(self.folder, ignore_errors=True)
        for name in sorted(self._names):
            if name.startswith(f"{state}/") and name.endswith(".json"):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                _copy(Url(f"{self.url}/{name}"), self.folder / name)

    def has(self, path: Path) -> bool:
        """Whether a file of the scratch folder has been sent."""
        return path.relative_to(self.folder).as_posix() in self._names

    def push(self, path: Path, keep: bool = True) -> None:
        """Send a file of the scratch folder, and check its size there; unless `keep`, remove it here."""
        name = path.relative_to(self.folder).as_posix()
        target = f"{self._root.rstrip('/')}/{name}"
        with explained(Url(f"{self.url}/{name}")):
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(path), target)
            there, here = self._fs.size(target), path.stat().st_size
            if there != here:
                raise StorageError(f"{here:,} bytes were sent, {there or 0:,} arrived", where=f"{self.url}/{name}")
        self._names.add(name)
        if not keep:
            path.unlink()

    def forget(self, path: Path) -> None:
        """Remove a file at the address, if it is there."""
        if self.has(path):
            name = path.relative_to(self.folder).as_posix()
            with explained(Url(f"{self.url}/{name}")):
                self._fs.rm_file(f"{self._root.rstrip('/')}/{name}")
            self._names.remove(name)

    def delete_run(self, state: str, ours: re.Pattern[str]) -> None:
        """Remove an earlier run: its state and the files whose names match `ours`; the record of it first."""
        run = f"{state}/run.json"
        if run not in self._names:
            return
        mine = sorted(name for name in self._names if name.startswith(f"{state}/") or ours.fullmatch(name))
        with explained(self.url):
            for name in sorted(mine, key=lambda name: name == run):  # the mark of a run goes last
                self._fs.rm_file(f"{self._root.rstrip('/')}/{name}")
        self._names.difference_update(mine)
        shutil.rmtree(self.folder, ignore_errors=True)

"""Files in, document batches out: Parquet, Arrow, JSON lines and plain text, in bounded pieces.

A record that cannot be read (a broken line, invalid UTF-8, the rest of a damaged archive) becomes a row whose `_drop`
reason starts with "error:"; `id` and `meta` say where it was. Use `steps.kept(batch)` to see only the good ones.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloomery.core.errors import DataError
from bloomery.core.files import read_json
from bloomery.corpus.documents import SCHEMA, content_id, from_texts, text_parts, texts, with_column
from bloomery.corpus.remote import HTML, PAGES, TEXT, Source, Url, expand, local_copy, source_of
from bloomery.corpus.steps import DROP, drop_reasons

BATCH_DOCUMENTS = 1_000
BATCH_BYTES = 16 << 20

PARQUET = (".parquet",)
ARROW = (".arrow", ".ipc", ".feather")
JSONL = (".jsonl", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz", ".jsonl.zst")
SAMPLES = (".tar",)  # MINT-1T's archives
SUFFIXES = PARQUET + ARROW + JSONL + SAMPLES + TEXT
ARCHIVES = (".warc", ".warc.gz", ".warc.lz4", ".wet", ".wet.gz", ".arc", ".arc.gz")
PAPERS = (".pdf", ".tex", ".tar.gz", ".tgz")  # the last two: LaTeX sources as arXiv serves them
WEB_SUFFIXES = ARCHIVES + HTML + PAPERS  # found in folders too; read by bloomery.web.read_documents
RUN_STATE, DROPPED = ".bloomery", "dropped"  # folders in the output of corpus.run
RAW_LINE = 1_000  # characters of a broken line that are kept in its error row
MAX_LINE = 256 << 20  # bytes of one line of JSON, decompressed
MAX_TEXT = 256 << 20  # bytes of one text file


def find_inputs(inputs: str | Path | Url | Iterable[str | Path | Url]) -> list[Source]:
    """Expand files, folders, globs and remote addresses to the files of a run, in order, each once.

    A folder stands for the data files below it in sorted order; text and HTML files in one folder are read together,
    so such a folder counts as one input. Hidden files and files starting with "_" are left out, and of a folder that
    `corpus.run` wrote, the documents it dropped; a data set saved by Hugging Face's `save_to_disk` is its data files
    without its cache. Addresses (`s3://…`, `hf://…`) are for fsspec: files, folders or patterns.

    Raises:
        DataError: something does not exist, has an unknown suffix, or nothing is found.
    """
    given = [inputs] if isinstance(inputs, (str, Path, Url)) else list(inputs)
    found: dict[Source, None] = {}
    for item in map(source_of, given):
        if isinstance(item, Url):
            remote = expand(item, SUFFIXES + WEB_SUFFIXES)
            for file in remote:
                if not file.is_folder:
                    _check_suffix(file, SUFFIXES + WEB_SUFFIXES)
            found.update(dict.fromkeys(remote))
        elif item.is_dir():
            found.update(dict.fromkeys(_in_folder(item)))
        elif item.exists():
            _check_suffix(item, SUFFIXES + WEB_SUFFIXES)
            found[item] = None
        else:
            matches = sorted(Path(match) for match in glob.glob(str(item), recursive=True))
            if not matches:
                raise DataError("no such file or folder, and nothing matches it as a pattern", where=item)
            found.update(dict.fromkeys(find_inputs(matches)))
    if not found:
        raise DataError("no input files", where=", ".join(map(str, given)) or None, fix=_known(SUFFIXES + WEB_SUFFIXES))
    return list(found)


def read_documents(path: str | Path | Url) -> Iterator[pa.RecordBatch]:
    """Yield the documents of one file (or folder of text files) in batches of at most 1,000 documents or 16 MB.

    * Parquet and Arrow files: our own (`parts`), or any table with a `text` column; `id` and `url` are used where
      present and other columns are kept as they are.
    * JSON lines (`.gz`, `.zst` too): objects with `text`, optionally `id`, `url` and `meta` (an object); other keys
      go into `meta`.
    * Parquet files in OBELICS' layout and archives (`.tar`) in MINT-1T's: documents of text and images.
    * `.txt` and `.md`: one document a file.

    A remote file is copied here first.

    Raises:
        DataError: unknown suffix, no such file, or (while reading) a file that is damaged as a whole.
    """
    path = source_of(path)
    if isinstance(path, Url):
        return _read_remote(path)
    if not path.exists():
        raise DataError("no such file", where=path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _has(file, PAGES))
        if any(_has(file, HTML) for file in files):
            raise DataError("HTML files are not read here", where=path, fix="give read=bloomery.web.read_documents")
        return _read_texts(files, path)
    if _has(path, WEB_SUFFIXES):
        raise DataError("pages of the web are not read here", where=path, fix="give read=bloomery.web.read_documents")
    _check_suffix(path, SUFFIXES)
    if _has(path, JSONL):
        return _read_jsonl(path)
    if _has(path, TEXT):
        return _read_texts([path], path.parent)
    if _has(path, SAMPLES):
        from bloomery.corpus.interleaved.webdataset import read_webdataset

        return read_webdataset(path)
    if _has(path, PARQUET):
        from bloomery.corpus.interleaved.obelics_parquet import is_obelics, read_obelics

        if is_obelics(path):
            return read_obelics(path)
    return _read_table(path)


# ---------------------------------------------------------------------------------------------------------- finding


def _read_remote(url: Url) -> Iterator[pa.RecordBatch]:
    with local_copy(url) as path:
        yield from read_documents(path)


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
        and not (file.parent != folder and _is_dropped(file.parent))
    )
    sources = {file.parent for file in files if _has(file, (".tex",)) and b"\\documentclass" in file.read_bytes()}
    files = [file for file in files if not _is_piece(file, sources)]
    saved = {parent: _saved_dataset(parent) for parent in {file.parent for file in files}}
    found = [
        file.parent if _has(file, PAGES) else file
        for file in files
        if _has(file, SUFFIXES + WEB_SUFFIXES) and (not saved[file.parent] or file.name in saved[file.parent])
    ]
    if not found:
        raise DataError("no data file in this folder", where=folder, fix=_known(SUFFIXES + WEB_SUFFIXES))
    return found


def _is_piece(file: Path, sources: set[Path]) -> bool:
    """Whether a file belongs to a paper in one of the folders `sources`: a chapter, or a figure that is a PDF."""
    inside = any(parent in sources for parent in file.parents)
    return inside and (_has(file, (".pdf",)) or (_has(file, (".tex",)) and b"\\documentclass" not in file.read_bytes()))


def _saved_dataset(folder: Path) -> set[str]:
    """The data files of a folder by `datasets.save_to_disk`: what its cache left there besides is not data."""
    state = folder / "state.json"
    if not state.exists() or not (folder / "dataset_info.json").exists():
        return set()
    found = read_json(state)
    files = found.get("_data_files") if isinstance(found, dict) else None
    if not isinstance(files, list) or not all(
        isinstance(f, dict) and isinstance(f.get("filename"), str) for f in files
    ):
        raise DataError("names no data files", where=state, fix="save the data set again with save_to_disk")
    return {file["filename"] for file in files}


def _is_dropped(folder: Path) -> bool:
    """Whether this is the place where a run of `corpus.run` keeps what its steps refused."""
    run = folder.parent
    return folder.name == DROPPED and ((run / RUN_STATE).exists() or (run / "report.json").exists())


def _has(path: Source, suffixes: Sequence[str]) -> bool:
    return path.name.lower().endswith(tuple(suffixes))


def _check_suffix(path: Source, suffixes: Sequence[str]) -> None:
    if not _has(path, suffixes):
        raise DataError("unknown kind of file", where=path, fix=_known(suffixes))


def _known(suffixes: Sequence[str]) -> str:
    return "known: " + ", ".join(suffixes)


# ----------------------------------------------------------------------------------------------- Parquet and Arrow


def _read_table(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        row = 0
        for batch in _parquet_batches(path) if _has(path, PARQUET) else _arrow_batches(path):
            for piece in _bounded(batch):  # first of all: text beyond 2 GiB does not fit the `string` of our schema
                yield _with_valid_text(piece, path, row)
                row += piece.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot be read: {' '.join(str(error).split())}", where=path) from error


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        rows, groups = file.metadata.num_rows, range(file.metadata.num_row_groups)
        if not rows:  # its columns still count
            yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
        size = sum(file.metadata.row_group(index).total_byte_size for index in groups)
        fitting = BATCH_BYTES * rows // max(size, 1)
        yield from file.iter_batches(batch_size=min(max(fitting, 1), BATCH_DOCUMENTS))


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as source:
        is_file_format = source.read(6) == b"ARROW1"
        source.seek(0)
        if not is_file_format:
            yield from pa.ipc.open_stream(source)
            return
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def _as_documents(batch: pa.RecordBatch, path: Path) -> pa.RecordBatch:
    """Any table with a `parts` or `text` column, with the columns of SCHEMA first and other columns after them."""
    names = batch.schema.names
    if "parts" not in names and "text" not in names:
        raise DataError(f"no column 'text' or 'parts' among {', '.join(names)}", where=path)
    if "parts" in names:
        parts = batch.column("parts")
    else:
        parts = text_parts(pc.fill_null(batch.column("text").cast(pa.string()), ""))
    urls = batch.column("url").cast(pa.string()) if "url" in names else pa.nulls(batch.num_rows, pa.string())
    meta_type = SCHEMA.field("meta").type
    has_meta = "meta" in names and batch.schema.field("meta").type == meta_type
    core = {
        "id": batch.column("id").cast(pa.string()) if "id" in names else pa.nulls(batch.num_rows, pa.string()),
        "url": urls,
        "parts": parts.cast(SCHEMA.field("parts").type),
        "meta": batch.column("meta") if has_meta else pa.nulls(batch.num_rows, meta_type),
    }
    if core["id"].null_count:
        core["id"] = _fill_ids(core)
    extra = {name: batch.column(name) for name in names if name not in core and name != "text"}
    return pa.RecordBatch.from_arrays([*core.values(), *extra.values()], [*core, *extra])


def _with_valid_text(batch: pa.RecordBatch, path: Path, first_row: int) -> pa.RecordBatch:
    """`_as_documents`, where a row with invalid UTF-8 (Arrow does not look when it reads) becomes an error row."""
    try:
        documents = _as_documents(batch, path)
        documents.validate(full=True)
        return documents
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        if batch.num_rows != 1:
            rows = [_with_valid_text(batch.slice(row, 1), path, first_row + row) for row in range(batch.num_rows)]
            return pa.Table.from_batches(_same_columns(rows)).combine_chunks().to_batches()[0]
        empty = _as_documents(batch.slice(0, 0), path)
        values = {"id": f"{path.name}:{first_row + 1}", "parts": [], DROP: "error: invalid UTF-8"}
        detail = {"row": str(first_row + 1), "detail": str(error)}
        schema = empty.schema.append(pa.field(DROP, pa.string()))
        return pa.RecordBatch.from_pylist([{**values, "meta": list(detail.items())}], schema=schema)


def _same_columns(rows: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    return [row if DROP in row.schema.names else with_column(row, DROP, pa.nulls(1, pa.string())) for row in rows]


def _fill_ids(core: dict[str, pa.Array]) -> pa.Array:
    content = texts(pa.RecordBatch.from_arrays(list(core.values()), list(core)))
    rows = zip(core["id"].to_pylist(), core["url"].to_pylist(), content.to_pylist(), strict=True)
    return pa.array([given or content_id(url or "", text) for given, url, text in rows], pa.string())


def _bounded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch so that no piece has more than BATCH_DOCUMENTS documents or (above one document) BATCH_BYTES."""
    if batch.num_rows <= BATCH_DOCUMENTS and batch.get_total_buffer_size() <= BATCH_BYTES:
        yield batch
        return
    start = 0
    while start < batch.num_rows:
        length = min(BATCH_DOCUMENTS, batch.num_rows - start)
        while length > 1 and batch.slice(start, length).nbytes > BATCH_BYTES:
            length = (length + 1) // 2
        yield batch.slice(start, length)
        start += length


# ------------------------------------------------------------------------------------------------------- JSON lines


def _read_jsonl(path: Path) -> Iterator[pa.RecordBatch]:
    rows = _Rows()
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(_bounded_lines(file), start=1):
                if line.isspace():
                    continue
                try:
                    if len(line) > MAX_LINE:
                        raise _BadLineError("line too long", f"more than {MAX_LINE:,} bytes")
                    rows.add(*_parse(line))
                except _BadLineError as error:
                    rows.add_error(path, number, line, error.reason, error.detail)
                if rows.full:
                    yield rows.batch()
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException) as error:
        rows.add_error(path, number + 1, b"", "damaged archive", str(error))
    except OSError as error:
        if error.errno is not None:  # a real input/output error; pyarrow reports a damaged archive without a number
            raise
        rows.add_error(path, number + 1, b"", "damaged archive", str(error))
    if rows.texts:
        yield rows.batch()


def _open(path: Path) -> io.BufferedIOBase:
    if _has(path, (".gz",)):
        return gzip.open(path, "rb")
    if _has(path, (".zst",)):
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _bounded_lines(file: io.BufferedIOBase) -> Iterator[bytes]:
    """The lines; of one that is too long (a decompression bomb has no line breaks) its beginning, past the limit."""
    while line := file.readline(MAX_LINE + 1):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n"):  # skip the rest
            line = file.readline(MAX_LINE + 1)


class _BadLineError(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail


def _parse(line: bytes) -> tuple[str, str | None, str | None, dict[str, Any] | None]:
    """(text, id, url, meta) of one line."""
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _BadLineError("invalid UTF-8", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _BadLineError("not valid JSON", str(error)) from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        found = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise _BadLineError("no text", f"expected an object with a string 'text', found {found}"[:RAW_LINE])
    if b"\\ud" in line or b"\\uD" in line:  # an escaped half of a surrogate pair is valid JSON but not valid text
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _BadLineError("invalid Unicode", str(error)) from error
    text, name, url, meta = record.pop("text"), record.pop("id", None), record.pop("url", None), record.pop("meta", {})
    meta = dict(meta) if isinstance(meta, dict) else {"meta": meta}
    meta.update(record)
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in meta.items()}
    return text, None if name is None else str(name), None if url is None else str(url), values or None


class _Rows:
    """Documents on their way into a batch."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.texts: list[str] = []
        self.ids: list[str | None] = []
        self.urls: list[str | None] = []
        self.metas: list[dict[str, Any] | None] = []
        self.errors: dict[int, str] = {}
        self.characters = 0

    @property
    def full(self) -> bool:
        return len(self.texts) >= BATCH_DOCUMENTS or self.characters >= BATCH_BYTES

    def add(self, text: str, name: str | None, url: str | None, meta: dict[str, Any] | None) -> None:
        self.texts.append(text)
        self.ids.append(name)
        self.urls.append(url)
        self.metas.append(meta)
        self.characters += len(text)

    def add_error(self, path: Path, line: int, raw: bytes, reason: str, detail: str) -> None:
        self.errors[len(self.texts)] = f"error: {reason}"
        where = f"{path.name}:{line}" if line else path.name
        self.add(raw[:RAW_LINE].decode(errors="replace"), where, None, {"line": line, "detail": detail})

    def batch(self) -> pa.RecordBatch:
        batch = from_texts(self.texts, self.ids, self.urls, self.metas)
        if self.errors:
            batch = drop_reasons(batch, [self.errors.get(row) for row in range(len(self.texts))])
        self._clear()
        return batch


def error_batch(path: Path, reason: str, detail: str) -> pa.RecordBatch:
    """One error row that stands for a whole file."""
    rows = _Rows()
    rows.add_error(path, 0, b"", reason, detail)
    return rows.batch()


# ------------------------------------------------------------------------------------------------------------- text


def _read_texts(files: Sequence[Path], root: Path) -> Iterator[pa.RecordBatch]:
    rows = _Rows()
    for file in files:
        with file.open("rb") as opened:
            raw = opened.read(MAX_TEXT + 1)
        if len(raw) > MAX_TEXT:
            rows.add_error(file, 0, raw[:RAW_LINE], "text too long", f"more than {MAX_TEXT:,} bytes")
            continue
        try:
            name = file.relative_to(root).as_posix().encode("utf-8", "replace").decode()  # names may be any bytes
            rows.add(raw.decode(), name, None, None)
        except UnicodeDecodeError as error:
            rows.add_error(file, 0, raw, "invalid UTF-8", str(error))
        if rows.full:
            yield rows.batch()
    if rows.texts:
        yield rows.batch()

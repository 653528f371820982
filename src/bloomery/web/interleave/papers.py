"""PDF files and LaTeX sources as corpus documents of text and images, one document a file."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa

from bloomery.core.errors import DataError
from bloomery.corpus.interleaved import Part, from_parts
from bloomery.corpus.steps import DROP, drop_reasons
from bloomery.web.interleave.latex import read_latex
from bloomery.web.interleave.latex_source import MAX_TREE, open_archive, open_folder
from bloomery.web.interleave.pdf import Limits, PdfReader


def read_paper(path: Path, limits: Limits | None = None) -> pa.RecordBatch:
    """The document in a `.pdf`, a `.tex` with its folder, or an archive of sources; one row.

    A file that is refused (encrypted, too long, broken, includes in a circle …) is a row marked as an error.
    """
    url, name = path.resolve().as_uri(), path.name.lower()
    kind = "application/pdf" if name.endswith(".pdf") else "application/x-tex"
    try:
        parts = _pdf(path, limits or Limits()) if name.endswith(".pdf") else _latex(path, limits or Limits())
    except DataError as error:
        where = f" ({error.where})" if error.where else ""
        return drop_reasons(
            from_parts([[]], urls=[url], metas=[{"content_type": kind}]), [f"error: {error.what}{where}"]
        )
    batch = from_parts([parts], urls=[url], metas=[{"content_type": kind}])
    return batch.append_column(DROP, pa.nulls(1, pa.string()))


def _pdf(path: Path, limits: Limits) -> list[Part]:
    with PdfReader(limits) as reader:
        return reader.read(_bytes(path, limits.bytes))


def _latex(path: Path, limits: Limits) -> list[Part]:
    single = path.name.lower().endswith(".tex")
    tree = open_folder(path.parent) if single else open_archive(_bytes(path, MAX_TREE))
    has_pdf = any(name.lower().endswith(".pdf") for name in tree.names)
    with PdfReader(limits) if has_pdf else nullcontext() as reader:
        return read_latex(tree, reader, path.name if single else None)


def _bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from error
    if len(data) > limit:
        raise DataError(f"more than {limit >> 20} MB")
    return data

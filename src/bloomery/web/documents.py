"""WARC and ARC files as corpus documents, for `corpus.run(read=web.read_documents)`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow as pa

from bloomery.core.errors import BloomeryError, DataError
from bloomery.corpus.documents import from_texts, with_column
from bloomery.corpus.interleaved import Part, from_parts
from bloomery.corpus.readers import ARCHIVES, PAPERS
from bloomery.corpus.readers import read_documents as read_corpus
from bloomery.corpus.remote import HTML, PAGES, Url, local_copy, source_of
from bloomery.corpus.steps import DROP
from bloomery.web.archive import MAX_RECORD, ReadStats, iterate_pages
from bloomery.web.extract import Mode, extract
from bloomery.web.fetch import HTML_TYPES
from bloomery.web.interleave.html import html_parts
from bloomery.web.page import Page

TEXT_TYPES = (*HTML_TYPES, "text/plain", "")
BATCH_ROWS = 512
BATCH_BYTES = 32 << 20  # of text; a batch ends early at this size

Reading = Mode | Literal["interleaved", "obelics"]
INTERLEAVED = ("interleaved", "obelics")
Content = str | list[Part]
Row = tuple[Content, str, dict[str, str], str | None]  # content, url, meta, reason to drop


def read_documents(
    path: Path | str | Url, extract: Reading = "main", batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """The pages of a web archive, an HTML file or a folder of them as documents; others go to `corpus.read_documents`.

    A PDF file or the LaTeX source of a paper is one document of text and images in reading order.

    `extract` is `main` (the article), `full` (all that is visible) or `trafilatura`; or `interleaved` for texts and
    images in reading order, `obelics` for exactly those of the reference (`interleave.html`). `meta` holds status,
    content_type, date, and of texts title and language (as declared). What is not a readable page with status 200 comes
    as a row marked for dropping: bad records and pages that cannot be extracted as errors, others as "not a page".
    """
    source = source_of(path)
    if isinstance(source, Url):
        with local_copy(source) as copy:
            yield from read_documents(copy, extract, batch_rows)
        return
    path, name = source, source.name.lower()
    if path.is_dir():
        rows = _folder_rows(path, extract)
    elif name.endswith(HTML):
        rows = iter([_file_row(path, extract)])
    elif name.endswith(ARCHIVES):
        rows = _rows(path, extract)
    elif name.endswith(PAPERS):
        from bloomery.web.interleave.papers import read_paper

        yield read_paper(path)
        return
    else:
        yield from read_corpus(path)
        return
    while chunk := list(_up_to(rows, batch_rows)):
        contents, urls, metas, reasons = zip(*chunk, strict=True)
        if extract in INTERLEAVED:
            batch = from_parts([[Part(c)] * bool(c) if isinstance(c, str) else c for c in contents], None, urls, metas)
        else:
            batch = from_texts(contents, urls=urls, metas=metas)
        yield with_column(batch, DROP, pa.array(reasons, pa.string()))


def _rows(path: Path, mode: Reading) -> Iterator[Row]:
    stats = ReadStats()
    for page in iterate_pages(path, stats):
        yield _row(page, mode)
    for reason, count in sorted(stats.bad.items()):
        for number in range(count):
            yield "", f"{path.name}#{reason.replace(' ', '-')}-{number}", {}, f"error: {reason}"


def _folder_rows(folder: Path, mode: Reading) -> Iterator[Row]:
    """The HTML and text files of one folder, by name."""
    for path in sorted(file for file in folder.iterdir() if file.name.lower().endswith(PAGES)):
        yield _file_row(path, mode, "text/html" if path.name.lower().endswith(HTML) else "text/plain")


def _file_row(path: Path, mode: Reading, kind: str = "text/html") -> Row:
    url = path.resolve().as_uri()
    try:
        with path.open("rb") as file:
            body = file.read(MAX_RECORD + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from error
    if len(body) > MAX_RECORD:
        return "", url, {}, "error: page too large"
    return _row(Page(url, 200, kind, body), mode)


def _row(page: Page, mode: Reading) -> Row:
    meta = {"status": str(page.status), "content_type": page.content_type, "date": page.date}
    if page.status != 200:
        return "", page.url, meta, f"not a page: status {page.status}"
    if page.content_type not in TEXT_TYPES:
        return "", page.url, meta, f"not a page: {page.content_type}"
    if page.content_type == "text/plain":
        return page.html.strip(), page.url, meta, None
    try:
        if mode == "interleaved" or mode == "obelics":
            return html_parts(page.html, page.url, compat=mode == "obelics"), page.url, meta, None
        found = extract(page.html, mode)
    except BloomeryError as error:
        return "", page.url, meta, f"error: {error.what}"
    return found.text, page.url, {**meta, "title": found.title, "language": found.language}, None


def _up_to(rows: Iterator[Row], count: int) -> Iterator[Row]:
    """The next `count` rows, fewer when their text is large."""
    size = 0
    for row in islice(rows, count):
        yield row
        size += len(row[0]) if isinstance(row[0], str) else sum(len(part.text or "") for part in row[0])
        if size > BATCH_BYTES:
            return

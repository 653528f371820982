from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from bloomery import corpus
from bloomery.core.errors import DataError
from bloomery.corpus.documents import SCHEMA, texts
from bloomery.corpus.readers import ARCHIVES, PAPERS, WEB_SUFFIXES, find_inputs
from bloomery.web import WarcWriter, read_documents

DATA = Path(os.environ.get("BLOOMERY_DATA", Path(__file__).parents[3] / "shared" / "data"))
HTML = [("Content-Type", "text/html; charset=utf-8")]
BODY = b"<html lang=en><title>T</title><p>" + b"A sentence long enough to be content, with commas. " * 8


def archive(folder: Path, count: int = 3) -> Path:
    writer = WarcWriter(folder, "pages", "test")
    for n in range(count):
        writer.write_page(f"http://a.example/{n}", 200, "OK", HTML, BODY + b"%d" % n, {})
    writer.write_page("http://a.example/gone", 404, "Not Found", HTML, b"gone", {})
    writer.write_page("http://a.example/pic", 200, "OK", [("Content-Type", "image/png")], b"\x89PNG", {})
    hostile = b"<p " + b" ".join(b"a%d=1" % n for n in range(20_000)) + b">x"
    writer.write_page("http://a.example/hostile", 200, "OK", HTML, hostile, {})
    writer.write_page(
        "http://a.example/text", 200, "OK", [("Content-Type", "text/plain; charset=utf-8")], b"plain \xff", {}
    )
    writer.close()
    return writer.path


def rows(path: Path, **options: object) -> list[dict]:
    return pa.Table.from_batches(list(read_documents(path, **options))).to_pylist()  # type: ignore[arg-type]


def test_pages_become_documents_and_the_rest_is_marked(tmp_path: Path) -> None:
    path = archive(tmp_path)
    path.write_bytes(path.read_bytes()[:-400])  # tears the last page
    found = {row["url"]: row for row in rows(path)}
    first = found["http://a.example/0"]
    assert first["_drop"] is None
    meta = dict(first["meta"])
    assert (meta["status"], meta["content_type"], meta["title"], meta["language"]) == ("200", "text/html", "T", "en")
    assert first["parts"][0]["text"].startswith("A sentence long")
    reasons = {url.rpartition("/")[2]: row["_drop"] for url, row in found.items() if row["_drop"]}
    assert reasons["gone"] == "not a page: status 404"
    assert reasons["pic"] == "not a page: image/png"
    assert reasons["hostile"].startswith("error: a tag with")
    assert "error: truncated record" in reasons.values()


def test_batches_are_bounded_and_of_one_schema(tmp_path: Path) -> None:
    batches = list(read_documents(archive(tmp_path, 20), batch_rows=8))
    assert [batch.num_rows for batch in batches] == [8, 8, 8]
    assert {batch.schema for batch in batches} == {batches[0].schema}
    assert [field for field in batches[0].schema][: len(SCHEMA)] == list(SCHEMA)
    assert texts(batches[2])[-1].as_py() == "plain �"


def test_an_empty_archive_and_a_wrong_file(tmp_path: Path) -> None:
    (tmp_path / "x.warc").write_bytes(b"")
    assert rows_or_none(tmp_path / "x.warc") == []
    (tmp_path / "y.warc.gz").write_bytes(b"no archive at all")
    with pytest.raises(DataError, match="no WARC or ARC record"):
        list(read_documents(tmp_path / "y.warc.gz"))


def test_an_html_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "x.html").write_bytes(BODY)
    (row,) = rows(tmp_path / "x.html")
    assert row["url"] == (tmp_path / "x.html").resolve().as_uri()
    assert "A sentence long enough" in row["parts"][0]["text"]


def rows_or_none(path: Path) -> list[pa.RecordBatch]:
    return list(read_documents(path))


def test_other_files_go_to_the_corpus_reader(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "hello", "id": "7"}\n')
    (batch,) = read_documents(tmp_path / "x.jsonl")
    assert texts(batch).to_pylist() == ["hello"]


@pytest.mark.skipif(not (DATA / "web_pages").exists(), reason=f"no pages under {DATA}")
@pytest.mark.parametrize("mode", ["main", "full"])
def test_real_archives(mode: str) -> None:
    for path in sorted((DATA / "web_pages").glob("*.warc.gz")):
        found = rows(path, extract=mode)
        kept = [row for row in found if row.get("_drop") is None]
        assert len(kept) > 0.6 * len(found), path.name
        lengths = sorted(len(row["parts"][0]["text"]) for row in kept)
        assert lengths[len(lengths) // 2] > 500, path.name


def test_what_is_found_in_folders_is_what_is_read(tmp_path: Path) -> None:
    page = BODY.decode()
    for suffix in WEB_SUFFIXES:
        (tmp_path / f"page{suffix}").write_text(page if "htm" in suffix else "")
    (tmp_path / "note.txt").write_text("plain words")
    assert len(find_inputs(tmp_path)) == len(ARCHIVES) + len(PAPERS) + 1  # the pages are one input: their folder
    for path in find_inputs(tmp_path):
        assert len(list(read_documents(path))) == (path.is_dir() or path.name.endswith(PAPERS))
    found = rows(tmp_path)
    assert [row["url"].rpartition("/")[2] for row in found] == ["note.txt", "page.htm", "page.html", "page.xhtml"]
    assert found[0]["parts"][0]["text"] == "plain words"
    assert all("A sentence long enough" in row["parts"][0]["text"] for row in found[1:])
    with pytest.raises(DataError, match="HTML files are not read here"):
        corpus.read_documents(tmp_path)

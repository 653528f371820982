from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.web.archive import ReadStats, iterate_pages
from bloomery.web.warc import WarcWriter, complete_members, http_head

PAGE = ("http://a.example/x", 200, "OK", [("Content-Type", "text/html"), ("Content-Encoding", "gzip")], b"<p>hi")


def write(folder: Path, bodies: list[bytes], max_bytes: int = 1 << 30) -> list[Path]:
    writer = WarcWriter(folder, "pages", "test", max_bytes)
    for number, body in enumerate(bodies):
        writer.write_page(f"http://a.example/{number}", 200, "OK", [("Content-Type", "text/html")], body, {"via": "x"})
    writer.close()
    return sorted(folder.glob("*.warc.gz"))


def test_other_libraries_read_it_and_agree_on_the_digests(tmp_path: Path) -> None:
    warcio = pytest.importorskip("warcio.archiveiterator")
    fastwarc = pytest.importorskip("fastwarc.warc")
    bodies = [b"", b"<p>one", bytes(range(256)) * 500]
    (path,) = write(tmp_path, bodies)
    with path.open("rb") as file:
        found = []
        for record in warcio.ArchiveIterator(file, check_digests="raise"):
            content = record.content_stream().read()
            if record.rec_type == "response":
                assert record.http_headers.get_statuscode() == "200"
                found.append((record.rec_headers.get_header("WARC-Target-URI"), content))
    assert found == [(f"http://a.example/{n}", body) for n, body in enumerate(bodies)]
    with path.open("rb") as file:
        records = []
        for record in fastwarc.ArchiveIterator(file, parse_http=False):
            records.append(record.record_type)
            assert record.verify_block_digest()
    assert records == [fastwarc.warcinfo] + [fastwarc.response, fastwarc.metadata] * 3


def test_headers_that_no_longer_hold_are_renamed() -> None:
    head = http_head(200, "", [("Content-Encoding", "gzip"), ("Content-Length", "9"), ("X", "a\r\nInjected: b")], 5)
    assert head == (
        b"HTTP/1.1 200\r\nX-Crawl-Content-Encoding: gzip\r\nX-Crawl-Content-Length: 9\r\n"
        b"X: a Injected: b\r\nContent-Length: 5\r\n\r\n"
    )


def test_a_new_file_when_one_is_full(tmp_path: Path) -> None:
    paths = write(tmp_path, [random.Random(n).randbytes(5000) for n in range(5)], max_bytes=10_000)
    assert len(paths) > 1
    assert [page.url for path in paths for page in iterate_pages(path)] == [f"http://a.example/{n}" for n in range(5)]


def test_resume_cuts_what_is_behind(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [b"a", b"b"])
    ends = [end for end, _ in complete_members(path)]
    assert ends[-1] == path.stat().st_size
    writer = WarcWriter(tmp_path, "pages", "test")
    writer.resume(path, ends[2])  # warcinfo, response, metadata
    writer.write_page(*PAGE, {})
    writer.close()
    assert [page.body for page in iterate_pages(path)] == [b"a", b"<p>hi"]


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 1))
def test_a_file_cut_anywhere_gives_its_complete_records(tmp_path_factory: pytest.TempPathFactory, part: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (path,) = write(folder, [b"<p>one", b"<p>two" * 50])
    whole = path.read_bytes()
    ends = [end for end, _ in complete_members(path)]
    cut = round(part * len(whole))
    path.write_bytes(whole[:cut])
    assert [end for end, _ in complete_members(path)] == [end for end in ends if end <= cut]


_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20)


@settings(deadline=None, max_examples=25)
@given(
    st.binary(max_size=3000),
    st.integers(200, 599),
    st.lists(st.tuples(st.from_regex(r"X-[a-z]{1,8}", fullmatch=True), _text), max_size=4),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, status: int, headers: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("warc")
    writer = WarcWriter(folder, "pages", "test")
    given_headers = [("Content-Type", "Text/HTML; charset=utf-8"), ("Transfer-Encoding", "chunked"), *headers]
    writer.write_page("http://a.example/é", status, "Fine", given_headers, body, {"via": "b"}, seconds=0.0)
    writer.close()
    stats = ReadStats()
    (page,) = iterate_pages(writer.path, stats)
    assert (page.url, page.status, page.content_type, page.body) == ("http://a.example/é", status, "text/html", body)
    assert page.date == "1970-01-01T00:00:00Z"
    assert [(k, " ".join(v.split())) for k, v in headers] == [
        (k, " ".join(v.split())) for k, v in page.headers if k.lower().startswith("x-") and "Crawl" not in k
    ]
    assert (stats.pages, stats.other, stats.bad) == (1, 2, {})


def test_an_unwritable_place_is_a_storage_error(tmp_path: Path) -> None:
    class Full(io.RawIOBase):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    from bloomery.core.errors import StorageError

    (path,) = write(tmp_path, [b"a"])
    before = path.read_bytes()
    writer = WarcWriter(tmp_path, "pages", "test")
    writer.resume(path, len(before))
    file, writer._file = writer._file, Full()  # type: ignore[assignment]
    with pytest.raises(StorageError, match="disk is full"):
        writer.write_page(*PAGE, {})
    assert file is not None
    file.close()
    assert path.read_bytes() == before

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import DataError
from bloomery.web.archive import ReadStats, iterate_pages

DATA = Path(os.environ.get("BLOOMERY_DATA", Path(__file__).parents[3] / "shared" / "data"))
FILES = sorted(p for p in (DATA / "warc_files").glob("*") if p.suffix != ".md") if DATA.exists() else []


def record(number: int, http: bytes, kind: str = "response") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a.example/{number}\r\n"
        "WARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{number:012}>\r\n"
        f"Content-Type: application/http\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def answer(body: bytes, headers: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{headers}\r\n".encode() + body


GOOD = [record(n, answer(b"<p>page %d" % n + bytes(str(n), "ascii") * 200)) for n in range(4)]


def read(path: Path, content: bytes) -> tuple[list[str], ReadStats]:
    path.write_bytes(content)
    stats = ReadStats()
    return [page.url[-1] for page in iterate_pages(path, stats)], stats


@pytest.mark.skipif(not FILES, reason=f"no WARC files under {DATA}")
def test_every_archive_of_the_collection_is_read_with_counts() -> None:
    for path in FILES:
        stats = ReadStats()
        pages = list(iterate_pages(path, stats))
        assert stats.pages == len(pages), path.name
        assert stats.records > 0, path.name
        assert all(isinstance(page.body, bytes) and page.url for page in pages), path.name


@pytest.mark.skipif(not FILES, reason=f"no WARC files under {DATA}")
@pytest.mark.parametrize(
    ("name", "pages", "bad"),
    [
        ("example.warc.gz", 1, 0), ("example.arc", 1, 0), ("example.arc.gz", 1, 0), ("bad.arc", 0, 3),
        ("warcfile.warc.lz4", 16, 0), ("warcfile.warc.gz", 16, 0), ("transfer_compression_brotli.warc.gz", 1, 0),
        ("transfer_compression_gzip.warc", 1, 0), ("example-iana.org-chunked.warc", 1, 0),
        ("IAH-20080430204825-00000-blackbook-truncated.warc.gz", 7, 0),
    ],
)  # fmt: skip
def test_known_contents(name: str, pages: int, bad: int) -> None:
    if not (DATA / "warc_files" / name).exists():
        pytest.skip(f"{name} is not in this collection")
    stats = ReadStats()
    found = list(iterate_pages(DATA / "warc_files" / name, stats))
    assert (len(found), stats.bad.total()) == (pages, bad)
    if name.startswith("transfer_compression"):
        assert found[0].body.lstrip().startswith(b"<html>")  # the coding is undone


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("damage", ["flip body", "flip start", "garbage", "hole", "cut"])
def test_one_bad_record_is_counted_and_the_others_are_read(tmp_path: Path, packed: bool, damage: str) -> None:
    records = [gzip.compress(r) if packed else r for r in GOOD]
    victim = bytearray(records[2])
    expected = ["0", "1", "3"]
    if damage == "flip body":
        if not packed:
            pytest.skip("plain text has no checksum to see it by")
        victim[len(victim) // 2] ^= 0xFF
    elif damage == "flip start":
        victim[2] ^= 0xFF
    elif damage == "hole":
        victim = victim[: len(victim) // 2]
    elif damage == "garbage":
        victim, expected = bytearray(b"rubbish\n" * 20) + victim, ["0", "1", "2", "3"]
    else:
        records, victim, expected = records[:3], victim[: len(victim) // 2], ["0", "1"]
    records[2] = bytes(victim)
    urls, stats = read(tmp_path / "x", b"".join(records))
    if damage == "hole" and not packed:  # the damaged record swallows bytes of the next one, which is found inside it
        expected = ["0", "1", "2", "3"]
    assert urls == expected
    assert stats.bad.total() == 1


@settings(deadline=None, max_examples=25)
@given(st.integers(40, sum(len(zlib.compress(r)) for r in GOOD)), st.booleans())
def test_cut_anywhere_keeps_the_complete_records(
    tmp_path_factory: pytest.TempPathFactory, cut: int, packed: bool
) -> None:
    records = [gzip.compress(r) if packed else r for r in GOOD]
    ends = [sum(map(len, records[: n + 1])) for n in range(len(records))]
    urls, stats = read(tmp_path_factory.mktemp("cut") / "x", b"".join(records)[:cut])
    complete = [str(n) for n, end in enumerate(ends) if end <= cut]
    assert urls[: len(complete)] == complete
    assert len(urls) <= len(complete) + 1  # the last one may miss only the bytes behind its content
    assert stats.bad.total() + len(urls) == len(complete) + (cut not in ends)


@settings(deadline=None, max_examples=25)
@given(st.binary(max_size=400), st.sampled_from([b"", b"WARC/1.0\r\n", b"\x1f\x8b\x08", b"filedesc://x ", GOOD[0]]))
def test_any_bytes_are_read_or_named_no_archive(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, head: bytes
) -> None:
    with contextlib.suppress(DataError):  # any other exception fails
        read(tmp_path_factory.mktemp("any") / "x", head + tail)


def test_missing_file_and_wrong_file_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(iterate_pages(tmp_path / "none.warc"))
    (tmp_path / "x.warc.gz").write_bytes(gzip.compress(b'{"text": "a line of JSON"}\n' * 9))
    with pytest.raises(DataError, match="no WARC or ARC record"):
        list(iterate_pages(tmp_path / "x.warc.gz"))
    (tmp_path / "empty.warc.gz").write_bytes(b"")
    assert list(iterate_pages(tmp_path / "empty.warc.gz")) == []


@pytest.mark.parametrize(
    ("http", "body"),
    [
        (answer(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n"), b"abcde"),
        (answer(b"3\r\nabc\r\n9\r\nde", "Transfer-Encoding: chunked\r\n"), b"abcde"),  # cut
        (answer(b"<p>not chunked", "Transfer-Encoding: chunked\r\n"), b"<p>not chunked"),
        (answer(gzip.compress(b"abc", mtime=0), "Content-Encoding: gzip\r\n"), b"abc"),
        (answer(b"<p>not gzip", "Content-Encoding: gzip\r\n"), b"<p>not gzip"),
        (answer(zlib.compress(b"abc"), "Content-Encoding: deflate\r\n"), b"abc"),
        (b"HTTP/1.0 200\n\nabc", b"abc"),
    ],
)
def test_http_framing_is_undone(tmp_path: Path, http: bytes, body: bytes) -> None:
    (tmp_path / "x").write_bytes(record(0, http))
    (page,) = iterate_pages(tmp_path / "x")
    assert page.body == body


@pytest.mark.parametrize(
    ("http", "reason"),
    [
        (b"no status line\r\n\r\nabc", "no HTTP status line"),
        (b"", "no HTTP status line"),
        (answer(gzip.compress(b"abc" * 99, mtime=0)[:-9], "Content-Encoding: gzip\r\n"), "broken content coding"),
    ],
)
def test_bad_http_is_counted(tmp_path: Path, http: bytes, reason: str) -> None:
    urls, stats = read(tmp_path / "x", record(0, http) + GOOD[1])
    assert urls == ["1"]
    assert stats.bad == {reason: 1}

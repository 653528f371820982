"""Curation of hostile and broken inputs: counted and bounded, or one clear line; never a crash, never silence."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bloomery.core import files
from bloomery.core.errors import ConfigError, DataError, EmptyError, StorageError
from bloomery.corpus import ExactDedup, Length, NearDedup, Repetition, Report, Score, Select, Symbols, run
from bloomery.web import read_documents

DATA = Path(os.environ.get("BLOOMERY_DATA", Path(__file__).parents[3] / "shared" / "data")) / "warc_files"
PAGE = b"<title>T</title><p>" + b"A sentence long enough to be content, with commas. " * 8
WORDS = ("the", "quick", "brown", "fox", "and", "a", "lazy", "dog", "went", "to", "see", "what", "was", "there", "be")
ANY = [Length(min_words=1, max_words=10**9)]


def record(block: bytes, url: str = "http://a.example/x", packed: bool = True) -> bytes:
    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: %s\r\n" % url.encode()
    head += b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n" % len(block)
    whole = head + block + b"\r\n\r\n"
    return gzip.compress(whole, 1, mtime=0) if packed else whole


def answer(body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + more + b"\r\n" + body


def curate(path: Path, out: Path, steps=ANY) -> Report:
    return run(steps, path, out, read=read_documents, quiet=True)


def reasons(report: Report) -> dict[str, int]:
    return report.steps[0].errors


# ----------------------------------------------------------------------------------------------------------- archives


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no folder {DATA}: set BLOOMERY_DATA to run this test")
def test_every_archive_of_the_collection_whole_cut_and_with_a_hole(tmp_path):
    """As they are, without their last third, and with bytes overwritten in the middle: no record is unaccounted for."""
    source, rand = tmp_path / "in", random.Random(0)
    source.mkdir()
    for path in sorted(file for file in DATA.iterdir() if ".warc" in file.name or ".arc" in file.name):
        name, content = path.name.removesuffix(".bad"), path.read_bytes()
        hole = bytearray(content)
        start = len(content) // 2
        hole[start : start + 64] = rand.randbytes(len(hole[start : start + 64]))
        for kind, damaged in (("whole", content), ("cut", content[: 2 * len(content) // 3]), ("hole", bytes(hole))):
            (source / f"{kind}-{name}").write_bytes(damaged)
    report = curate(source, tmp_path / "out")
    assert report.files == 3 * len([f for f in DATA.iterdir() if f.name != "README.md"])
    read, length = report.steps
    assert read.documents_in == read.kept + sum(read.dropped.values()) + sum(read.errors.values())
    assert read.kept == length.documents_in
    assert report.documents_out > 100
    assert set(read.errors) >= {"error: truncated record", "error: corrupt record"}
    assert len(list((tmp_path / "out").glob("*.parquet"))) == report.files


def test_a_bomb_in_a_record_and_a_bomb_of_a_record(tmp_path):
    """400 MB of zeros behind 400 kB of gzip: as the coding of a page, and as a record that says its true length.

    Read in a process of its own, whose memory is looked at afterwards; the good page behind them is read.
    """
    zeros = zlib.compressobj(1, zlib.DEFLATED, 31)
    block = bytes(4 << 20)
    body = b"".join(zeros.compress(block) for _ in range(100)) + zeros.flush()
    bomb = record(answer(body, b"Content-Encoding: gzip\r\n"), "http://a.example/coded")
    member = zlib.compressobj(1, zlib.DEFLATED, 31)
    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example/long\r\n"
    head += b"Content-Type: application/http\r\nContent-Length: %d\r\n\r\n" % (100 * len(block))
    long = member.compress(head) + b"".join(member.compress(block) for _ in range(100)) + member.flush()
    (tmp_path / "a.warc.gz").write_bytes(bomb + long + record(answer(PAGE), "http://a.example/good"))
    assert (tmp_path / "a.warc.gz").stat().st_size < 8 << 20
    script = (
        "import sys\nfrom bloomery.corpus import Length, run\nfrom bloomery.web import read_documents\n"
        "memory = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) // 1024\n"
        "before = memory()\nrun([Length(min_words=1)], sys.argv[1], sys.argv[2], read=read_documents, quiet=True)\n"
        "print(memory() - before)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.warc.gz"), str(tmp_path / "out")]
    child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(child.stdout) < 350  # MiB; the bomb is 400 large, a record may be 64
    report = Report.load(tmp_path / "out" / "report.json")
    assert sum(reasons(report).values()) == 2
    assert reasons(report)["error: record too large"] == 1
    assert pq.read_table(tmp_path / "out" / "00000-a.parquet")["url"].to_pylist() == ["http://a.example/good"]


def test_a_page_of_200_mb_and_one_nested_100_000_deep(tmp_path):
    deep = b"<div>" * 100_000 + b"text" + b"</div>" * 100_000
    with (tmp_path / "a.warc.gz").open("wb") as file:
        file.write(record(answer(b"<p>" + b"word " * (40 << 20)), "http://a.example/huge"))
        file.write(record(answer(deep), "http://a.example/deep"))
        file.write(record(answer(PAGE), "http://a.example/good"))
    pages = tmp_path / "pages"
    pages.mkdir()
    with (pages / "huge.html").open("wb") as file:
        file.truncate(200 << 20)
    (pages / "deep.html").write_bytes(deep)
    (pages / "good.html").write_bytes(PAGE)
    start = time.perf_counter()
    report = curate(tmp_path, tmp_path / "out")
    assert time.perf_counter() - start < 10
    assert reasons(report) == {"error: record too large": 1, "error: page too large": 1}
    kept = [row for path in (tmp_path / "out").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    found = {row["url"].rpartition("/")[2]: row["parts"][0]["text"] for row in kept}
    assert found.keys() == {"deep", "deep.html", "good", "good.html"}
    assert found["deep"] == found["deep.html"] == "text"  # deep is no fault: what it says is read


# ---------------------------------------------------------------------------------------------------------- documents


def test_nuls_and_surrogates_go_through_every_step(tmp_path):
    long = " ".join(random.Random(i).choice(WORDS) for i in range(150))
    lines = [
        json.dumps({"text": long + " \0 \x01 \x7f \ufeff \ufffe"}),
        json.dumps({"text": "\0" * 5_000}),
        json.dumps({"text": long + " half \ud83d a pair"}),  # valid JSON, no valid text
        json.dumps({"text": "\udc00\ud800", "url": "http://\0.example/\0"}),
        json.dumps({"text": long.upper() + " \U0010ffff", "url": "http://h\u0000st/"}),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    steps = [Symbols(), Repetition(), ExactDedup(), NearDedup()]
    report = curate(tmp_path / "a.jsonl", tmp_path / "out", steps)
    assert reasons(report) == {"error: invalid Unicode": 2}
    assert report.documents_out >= 1
    kept = pq.read_table(tmp_path / "out" / "00000-a.parquet").to_pylist()
    assert kept[0]["parts"][0]["text"].startswith(long + " \0 \x01")  # nothing is cut at a NUL
    again = run([Length(min_words=1)], tmp_path / "out", tmp_path / "again", quiet=True)
    assert again.documents_out == report.documents_out


class Broken:
    """A scorer without a number for some texts."""

    name = "broken"

    def score(self, texts):
        return np.array([np.nan if "odd" in text else 1.0 for text in texts], np.float32)

    def fingerprint(self):
        return {"scorer": "broken"}


def test_a_scorer_that_gives_no_number_is_named_with_the_document(tmp_path):
    lines = [json.dumps({"text": text, "id": f"d{i}"}) for i, text in enumerate(["fine", "odd", "fine too"])]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"document d1: the scorer broken gave no number"):
        curate(tmp_path / "a.jsonl", tmp_path / "out", [Score(Broken()), Select("score_broken", fraction=0.5)])


def test_a_stage_that_drops_everything_fails_with_the_reasons(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(record(answer(PAGE)) + record(b"no status line\r\n\r\nx"))
    with pytest.raises(
        EmptyError, match=r"none of 2 documents was kept: .*Length: too few words \(1\).*no HTTP status"
    ):
        curate(tmp_path / "a.warc.gz", tmp_path / "out", [Length(min_words=10_000)])


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_of_another_version_and_a_damaged_one(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "some words"}\n')
    curate(tmp_path / "a.jsonl", tmp_path / "out")
    run_file = tmp_path / "out" / ".bloomery" / "run.json"
    there = json.loads(run_file.read_text())
    run_file.write_text(json.dumps({**there, "bloomery": "0.0.1"}))
    with pytest.raises(ConfigError, match=r"other versions of bloomery: there '0\.0\.1', now .*resume=False"):
        curate(tmp_path / "a.jsonl", tmp_path / "out")
    run_file.write_text('{"bloomery": ')
    with pytest.raises(DataError, match=r"run\.json: not valid JSON"):
        curate(tmp_path / "a.jsonl", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / ".bloomery")
    with pytest.raises(ConfigError, match="holds files, but no curation run"):
        curate(tmp_path / "a.jsonl", tmp_path / "out")


@pytest.mark.parametrize("survived", [5, 20, 32, 40])
def test_a_disk_that_fills_up_at_any_time_loses_nothing(tmp_path, monkeypatch, survived):
    """After so many files reached the disk every further one fails; with space again, the run ends as it should."""
    for part in range(3):
        lines = [json.dumps({"text": f"words of document {i % 7} in part {part} and more of them"}) for i in range(20)]
        (tmp_path / f"part{part}.jsonl").write_text("\n".join(lines))
    inputs, steps = sorted(tmp_path.glob("*.jsonl")), [ExactDedup(), NearDedup(), Length(min_words=2)]
    run(steps, inputs, tmp_path / "expected", quiet=True)
    flushed, fsync = [], os.fsync

    def full(handle):
        flushed.append(handle)
        if len(flushed) > survived:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match=r"the disk is full .*finished parts are kept"):
        run(steps, inputs, tmp_path / "out", quiet=True)
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob("*.tmp"))
    run(steps, inputs, tmp_path / "out", quiet=True)
    names = sorted(path.relative_to(tmp_path / "expected") for path in (tmp_path / "expected").rglob("*.parquet"))
    assert names == sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.parquet"))
    assert all((tmp_path / "out" / n).read_bytes() == (tmp_path / "expected" / n).read_bytes() for n in names)

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.core.errors import DataError
from bloomery.corpus import readers
from bloomery.corpus.documents import SCHEMA, content_id, from_texts, texts
from bloomery.corpus.readers import find_inputs, read_documents
from bloomery.corpus.steps import DROP, kept


def read(path: Path) -> tuple[list[str], list[str | None]]:
    """All texts and drop reasons of a file."""
    found: list[str] = []
    reasons: list[str | None] = []
    for batch in read_documents(path):
        found += texts(batch).to_pylist()
        reasons += batch.column(DROP).to_pylist() if DROP in batch.schema.names else [None] * batch.num_rows
    return found, reasons


def write_lines(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_jsonl_fields(tmp_path):
    record = {"text": "t", "id": 7, "url": "http://u", "meta": {"a": 1}, "lang": "en", "tags": ["x"]}
    path = write_lines(tmp_path / "a.jsonl", json.dumps(record).encode(), b"", b'{"text": "only"}')
    (batch,) = read_documents(path)
    assert batch.schema == SCHEMA
    assert batch.column("id").to_pylist() == ["7", content_id("", "only")]
    assert batch.column("url").to_pylist() == ["http://u", None]
    assert dict(batch.column("meta")[0].as_py()) == {"a": "1", "lang": "en", "tags": '["x"]'}


def test_broken_lines_are_counted_with_their_number(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        b'{"text": "good"}',
        b'{"text": "cut off',
        b'{"text": "\xff\xfe"}',
        b"[1, 2]",
        b'{"text": null}',
        b'{"text": "\\ud800"}',
        b'{"text": "fine \\ud83d\\ude00"}',
        b"[" * 100_000,
    )
    found, reasons = read(path)
    assert reasons == [
        None,
        "error: not valid JSON",
        "error: invalid UTF-8",
        "error: no text",
        "error: no text",
        "error: invalid Unicode",
        None,
        "error: not valid JSON",
    ]
    assert (found[0], found[6]) == ("good", "fine \U0001f600")
    (batch,) = read_documents(path)
    assert batch.column("id")[1].as_py() == "a.jsonl:2"
    assert dict(batch.column("meta")[1].as_py())["line"] == "2"
    assert texts(kept(batch)).to_pylist() == ["good", "fine \U0001f600"]


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst"])
def test_compressed_lines_and_a_truncated_archive(tmp_path, suffix):
    bits = random.Random(0)  # text that does not compress away: half of the file holds about half of the lines
    lines = [json.dumps({"text": f"{bits.getrandbits(128):032x}"}).encode() for _ in range(20_000)]
    path, body = tmp_path / f"a.{suffix}", b"\n".join(lines) + b"\n"
    if suffix.endswith("gz"):
        path.write_bytes(gzip.compress(body))
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(body)
    assert read(path)[0] == [json.loads(line)["text"] for line in lines]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, reasons = read(path)
    good = [text for text, reason in zip(found, reasons, strict=True) if reason is None]
    assert len(good) > 500
    assert good == [json.loads(line)["text"] for line in lines[: len(good)]]
    assert [reason for reason in reasons if reason][-1] in ("error: damaged archive", "error: not valid JSON")


def test_not_gzip_at_all(tmp_path):
    path = write_lines(tmp_path / "a.jsonl.gz", b'{"text": "plain"}')
    assert read(path)[1] == ["error: damaged archive"]


def test_parquet_of_our_own_and_of_others(tmp_path):
    own = from_texts(["a", "b"], urls=["u", None], metas=[{"k": "v"}, None])
    pq.write_table(pa.Table.from_batches([own]), tmp_path / "own.parquet")
    (batch,) = read_documents(tmp_path / "own.parquet")
    assert batch.to_pylist() == own.to_pylist()
    other = pa.table({"score": [0.5, 0.6], "text": ["x", None], "url": ["u", "v"]})
    pq.write_table(other, tmp_path / "other.parquet")
    (batch,) = read_documents(tmp_path / "other.parquet")
    assert texts(batch).to_pylist() == ["x", ""]
    assert batch.column("score").to_pylist() == [0.5, 0.6]
    assert batch.column("id")[0].as_py() == content_id("u", "x")


@pytest.mark.parametrize("format", ["file", "stream"])
def test_arrow_files(tmp_path, format):
    own = from_texts(["a", "b"])
    new = pa.ipc.new_file if format == "file" else pa.ipc.new_stream
    with new(tmp_path / "a.arrow", own.schema) as writer:
        writer.write_batch(own)
        writer.write_batch(own)
    assert read(tmp_path / "a.arrow")[0] == ["a", "b", "a", "b"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_damaged_tables(tmp_path, name):
    (tmp_path / name).write_bytes(b"not a table at all")
    with pytest.raises(DataError, match=name):
        list(read_documents(tmp_path / name))
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="no column 'text' or 'parts' among body"):
        list(read_documents(tmp_path / "b.parquet"))


def test_text_files_and_folders(tmp_path):
    (tmp_path / "one.txt").write_text("first")
    (tmp_path / "two.md").write_text("second")
    (tmp_path / "three.txt").write_bytes(b"\xff\xff")
    (batch,) = read_documents(tmp_path)
    assert batch.column("id").to_pylist() == ["one.txt", "three.txt", "two.md"]
    assert texts(kept(batch)).to_pylist() == ["first", "second"]
    assert batch.column(DROP)[1].as_py() == "error: invalid UTF-8"
    assert read(tmp_path / "one.txt") == (["first"], [None])


def test_batches_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BATCH_BYTES", 10_000)
    monkeypatch.setattr(readers, "BATCH_DOCUMENTS", 100)
    documents = ["x" * (3_000 if i % 50 == 0 else 10) for i in range(450)] + ["y" * 50_000]
    write_lines(tmp_path / "a.jsonl", *[json.dumps({"text": text}).encode() for text in documents])
    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.schema([("text", pa.string())])) as writer:
        writer.write_table(pa.table({"text": documents}))
    for name in ("a.jsonl", "a.parquet", "a.arrow"):
        batches = list(read_documents(tmp_path / name))
        assert [text for batch in batches for text in texts(batch).to_pylist()] == documents
        assert max(batch.num_rows for batch in batches) <= 100
        assert all(batch.nbytes < 60_000 for batch in batches)
        assert len(batches) > 4


def test_find_inputs(tmp_path):
    for name in ("b/2.jsonl", "b/1.parquet", "a/x.txt", "a/y.md", ".hidden/z.jsonl", "b/_SUCCESS.jsonl", "b/note.docx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    relative = [str(path.relative_to(tmp_path)) for path in find_inputs(tmp_path)]
    assert relative == ["a", "b/1.parquet", "b/2.jsonl"]
    assert find_inputs(str(tmp_path / "*" / "*.jsonl")) == [tmp_path / "b/2.jsonl", tmp_path / "b/_SUCCESS.jsonl"]
    twice = find_inputs([tmp_path / "b/2.jsonl", tmp_path / "b"])
    assert [path.name for path in twice] == ["2.jsonl", "1.parquet"]


def test_find_inputs_errors(tmp_path):
    (tmp_path / "a.docx").touch()
    with pytest.raises(DataError, match=r"unknown kind of file.*\.jsonl"):
        find_inputs(tmp_path / "a.docx")
    with pytest.raises(DataError, match=r"unknown kind of file.*\.parquet"):
        read_documents(tmp_path / "a.docx")
    with pytest.raises(DataError, match="no such file"):
        find_inputs(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="no such file"):
        read_documents(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="no data file"):
        find_inputs(tmp_path)
    with pytest.raises(DataError, match="no input files"):
        find_inputs([])


def test_a_row_with_invalid_utf8_costs_only_itself(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    text = pa.chunked_array([pa.array(["one"]), bad, pa.array(["three"])])
    pq.write_table(pa.table({"text": text, "score_x": [1.0, 2.0, 3.0]}), tmp_path / "a.parquet")
    (batch,) = read_documents(tmp_path / "a.parquet")
    assert texts(kept(batch)).to_pylist() == ["one", "three"]
    assert batch.column(DROP).to_pylist() == [None, "error: invalid UTF-8", None]
    assert batch.column("id")[1].as_py() == "a.parquet:2"
    assert batch.column("score_x").to_pylist() == [1.0, None, 3.0]


def test_large_strings_are_cut_into_batches_before_they_are_converted(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BATCH_BYTES", 4_000)
    table = pa.table({"text": pa.array(["x" * 1_500] * 20, pa.large_string())})
    pq.write_table(table, tmp_path / "a.parquet")
    batches = list(read_documents(tmp_path / "a.parquet"))
    assert sum(batch.num_rows for batch in batches) == 20
    assert max(batch.num_rows for batch in batches) <= 4


def test_an_empty_table_still_has_its_columns(tmp_path):
    pq.write_table(
        pa.table({"text": pa.array([], pa.string()), "score_x": pa.array([], pa.float32())}), tmp_path / "a.parquet"
    )
    (batch,) = read_documents(tmp_path / "a.parquet")
    assert batch.schema.names == [*SCHEMA.names, "score_x"]


def test_pages_of_the_web_name_their_reader(tmp_path):
    (tmp_path / "a.warc.gz").touch()
    with pytest.raises(DataError, match="read=bloomery"):
        read_documents(tmp_path / "a.warc.gz")


def test_text_files_may_have_any_name(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    assert read(tmp_path) == (["text"], [None])


def test_a_saved_dataset_is_its_data_files_without_its_cache(tmp_path):
    """The layout of Hugging Face's `DatasetDict.save_to_disk`: Arrow streams named by a `state.json`."""
    for split, rows in (("train", ["a", "b"]), ("test", ["c"])):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        table = pa.table({"text": rows, "label": list(range(len(rows)))})
        for name in ("data-00000-of-00001.arrow", "cache-1a2b.arrow"):
            with pa.ipc.new_stream(folder / name, table.schema) as out:
                out.write_table(table)
        (folder / "dataset_info.json").write_text("{}")
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    files = find_inputs(tmp_path / "saved")
    assert [file.parent.name for file in files] == ["test", "train"]
    assert [text for file in files for text in read(file)[0]] == ["c", "a", "b"]
    (tmp_path / "saved" / "train" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="names no data files"):
        find_inputs(tmp_path / "saved")


def test_a_bomb_of_one_line_costs_that_line(tmp_path, monkeypatch):
    """20 MB without a line break from 20 kB of gzip: read up to the limit, skipped behind it."""
    monkeypatch.setattr(readers, "MAX_LINE", 1 << 20)
    good = b'{"text": "good"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(good + b'{"text": "' + b"a" * (20 << 20) + b'"}\n' + good))
    assert read(tmp_path / "a.jsonl.gz")[1] == [None, "error: line too long", None]
    monkeypatch.setattr(readers, "MAX_TEXT", 100)
    (tmp_path / "long.txt").write_text("x" * 101)
    assert read(tmp_path / "long.txt") == (["x" * 101], ["error: text too long"])

"""JSON lines out and in again, in every packing; the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus import Length, read_documents, run
from bloomery.corpus.documents import PART, SCHEMA, from_texts, texts
from bloomery.corpus.writers import FORMATS, LAYOUTS, writer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def written(path: Path, batch: pa.RecordBatch) -> bytes:
    with path.open("wb") as file, writer(path, file, batch.schema) as out:
        out.write_batch(batch)
        out.write_batch(batch.slice(0, 1))
    return path.read_bytes()


@pytest.mark.parametrize("format", sorted(set(FORMATS) - set(LAYOUTS)))
@given(
    rows=st.lists(st.tuples(TEXT, st.none() | TEXT, st.dictionaries(TEXT, TEXT, max_size=2)), min_size=1, max_size=6)
)
def test_what_is_written_is_read_again(tmp_path_factory, format, rows):
    folder = tmp_path_factory.mktemp("out")
    batch = from_texts(
        [row[0] for row in rows], [f"d{i}" for i in range(len(rows))], [row[1] for row in rows],
        [{k: v for k, v in row[2].items() if k not in ("text", "id", "url", "meta")} for row in rows],
    )  # fmt: skip
    first = written(folder / f"a.{format}", batch)
    assert written(folder / f"b.{format}", batch) == first  # no time, no file name
    found = pa.Table.from_batches(list(read_documents(folder / f"a.{format}"))).to_pylist()
    expected = [*batch.to_pylist(), batch.to_pylist()[0]]
    if format != "parquet":
        expected = [{**row, "meta": row["meta"] or None} for row in expected]  # an empty object says nothing
    assert found == expected


def test_columns_of_steps_and_numbers_json_does_not_have(tmp_path):
    batch = from_texts(["a", "b", "c"], ["1", "2", "3"])
    batch = batch.append_column("score", pa.array([0.5, float("nan"), None], pa.float32()))
    lines = written(tmp_path / "a.jsonl", batch).decode().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines[:3]] == [
        {"id": "1", "text": "a", "score": 0.5}, {"id": "2", "text": "b"}, {"id": "3", "text": "c"},
    ]  # fmt: skip


def test_an_image_does_not_fit_a_line(tmp_path):
    part = {name: None for name in (field.name for field in PART)} | {"kind": "image"}
    row = {"id": "1", "url": None, "parts": [part], "meta": None}
    with pytest.raises(DataError, match="write Parquet instead"):
        written(tmp_path / "a.jsonl", pa.RecordBatch.from_pylist([row], schema=SCHEMA))


def test_a_run_in_every_format_holds_the_same_documents(tmp_path):
    lines = [json.dumps({"text": f"some words that are kept, number {i}"}) for i in range(40)]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, '{"text": "short"}']))
    kept = {}
    for format in FORMATS:
        run([Length(min_words=3)], tmp_path / "in.jsonl", tmp_path / format, format=format, quiet=True)
        (path,) = (tmp_path / format).glob(f"00000-in.{format}")
        kept[format] = [text for batch in read_documents(path) for text in texts(batch).to_pylist()]
        assert pq.read_table(tmp_path / format / "dropped" / "00000-in.parquet").num_rows == 1
    assert all(found == kept["parquet"] for found in kept.values())
    assert len(kept["parquet"]) == 40
    with pytest.raises(ConfigError, match="other format"):
        run([Length(min_words=3)], tmp_path / "in.jsonl", tmp_path / "jsonl", quiet=True)
    run([Length(min_words=3)], tmp_path / "in.jsonl", tmp_path / "jsonl", resume=False, quiet=True)
    assert sorted(path.name for path in (tmp_path / "jsonl").glob("0*")) == ["00000-in.parquet"]
    with pytest.raises(ConfigError, match="unknown format 'json'"):
        run([Length()], tmp_path / "in.jsonl", tmp_path / "x", format="json")

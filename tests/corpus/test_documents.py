from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import DataError
from bloomery.corpus.documents import SCHEMA, content_id, from_texts, texts, with_column, with_texts

part = st.one_of(
    st.builds(lambda t: {"kind": "text", "text": t, "image": None}, st.one_of(st.none(), st.text(max_size=8))),
    st.just({"kind": "image", "text": None, "image": b"png"}),
    st.just({"kind": None, "text": "lost", "image": None}),
)
rows = st.lists(st.one_of(st.none(), st.lists(part, max_size=4)), max_size=8)


@given(rows=rows, start=st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_texts_join_the_text_parts(rows, start):
    batch = from_texts([""] * len(rows))
    batch = with_column(batch, "parts", pa.array(rows, SCHEMA.field("parts").type)).slice(start)
    expected = [
        "\n\n".join(p["text"] for p in row or [] if p["kind"] == "text" and p["text"] is not None)
        for row in rows[start:]
    ]
    assert texts(batch).to_pylist() == expected


@given(st.lists(st.one_of(st.none(), st.text()), max_size=10))
@settings(deadline=None, max_examples=30)
def test_from_texts_round_trip(given_texts):
    batch = from_texts(given_texts)
    assert batch.schema == SCHEMA
    assert texts(batch).to_pylist() == [text or "" for text in given_texts]


def test_one_part_texts_are_not_copied():
    batch = from_texts(["abc", "de"])
    inner = batch.column("parts").values.field("text").buffers()[2].address
    assert texts(batch).buffers()[2].address == inner
    assert texts(batch.slice(1)).buffers()[2].address == inner


def test_ids_come_from_content():
    batch = from_texts(["a", "a", "a", "b"], ids=[None, None, "mine", None], urls=["u", "u", None, "u"])
    ids = batch.column("id").to_pylist()
    assert ids[0] == ids[1] == content_id("u", "a")
    assert ids[2] == "mine"
    assert len(set(ids)) == 3
    assert content_id("ab", "c") != content_id("a", "bc")


def test_meta_values_become_strings():
    batch = from_texts(["a", "b"], metas=[{"n": 1, "gone": None}, None])
    assert batch.column("meta").to_pylist() == [[("n", "1")], None]


def test_with_texts_and_images():
    batch = with_texts(from_texts(["a", "b"], urls=["u", "v"]), ["x", "y"])
    assert texts(batch).to_pylist() == ["x", "y"]
    assert batch.column("url").to_pylist() == ["u", "v"]
    picture = [[{"kind": "image", "text": None, "image": b"x"}]]
    with pytest.raises(DataError, match="images"):
        with_texts(with_column(from_texts(["a"]), "parts", pa.array(picture, SCHEMA.field("parts").type)), ["x"])


def test_with_column_appends_replaces_and_checks():
    batch = with_column(from_texts(["a", "b"]), "n", [1, 2])
    assert with_column(batch, "n", pa.array([3, 4])).column("n").to_pylist() == [3, 4]
    with pytest.raises(DataError, match="1 values for 2 documents"):
        with_column(batch, "n", [1])
    with pytest.raises(DataError, match="2 texts but 1 ids"):
        from_texts(["a", "b"], ids=["x"])

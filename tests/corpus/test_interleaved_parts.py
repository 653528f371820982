"""Parts of text and images: there and back, aligned lists, old files, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import DataError
from bloomery.corpus.documents import SCHEMA, texts
from bloomery.corpus.interleaved import Part, aligned, from_aligned, from_parts, parts_of, token_text
from bloomery.corpus.readers import read_documents

META = st.dictionaries(st.sampled_from(["alt", "width", "format"]), st.one_of(st.text(max_size=4), st.integers()))
PARTS = st.lists(
    st.one_of(
        st.builds(Part, text=st.text(max_size=8)),
        st.builds(Part, text=st.none(), image=st.one_of(st.none(), st.binary(max_size=4)),
                  ref=st.text(min_size=1, max_size=8), meta=META),
    ),
    max_size=6,
)  # fmt: skip


@given(st.lists(PARTS, max_size=4))
def test_parts_come_back(documents: list[list[Part]]) -> None:
    batch = from_parts(documents)
    assert list(parts_of(batch)) == documents
    assert batch.schema == SCHEMA
    assert len(texts(batch)) == len(documents)
    for parts in documents:
        lists = aligned(parts)
        assert [(a is None) != (b is None) for a, b in zip(*lists[:2], strict=True)] == [True] * len(parts)
        assert from_aligned(*lists) == [Part(p.text, None, p.ref, p.meta) for p in parts]  # lists hold no bytes


def test_ids_depend_on_images_too() -> None:
    one, other = ([Part("a"), Part(ref=name)] for name in ("x", "y"))
    ids = from_parts([one, other, one], [None, None, "given"]).column("id").to_pylist()
    assert ids[0] != ids[1]
    assert ids[2] == "given"


def test_text_for_training() -> None:
    assert token_text([Part("before"), Part(ref="x"), Part("after")]) == "before\n\n<image>\n\nafter"


def test_files_from_before_references_are_read(tmp_path) -> None:
    old = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string()), ("image", pa.binary())]))
    row = [{"kind": "image", "text": None, "image": b"x"}, {"kind": "text", "text": "caption", "image": None}]
    pq.write_table(pa.table({"id": ["1"], "parts": pa.array([row], old)}), tmp_path / "old.parquet")
    (batch,) = read_documents(tmp_path / "old.parquet")
    assert list(parts_of(batch)) == [[Part(image=b"x"), Part("caption")]]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ((["a"], [None, "x"]), "1 texts, 2 images"),
        ((["a"], ["x"]), "place 0 has both"),
        (([None], [None]), "place 0 has neither"),
    ],
)
def test_lists_that_do_not_match_are_refused(lists, message) -> None:
    with pytest.raises(DataError, match=message):
        from_aligned(*lists, where="row 7")


@pytest.mark.parametrize("meta", ["[1]", "{"])
def test_metadata_that_is_no_object_is_refused(meta) -> None:
    row = {"id": "doc", "parts": [{"kind": "image", "ref": "x", "meta": meta}]}
    with pytest.raises(DataError, match=r"doc: metadata of an image is not"):
        list(parts_of(pa.RecordBatch.from_pylist([row], schema=SCHEMA)))

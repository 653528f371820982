"""Bytes in memory: every byte is there once, documents keep apart, windows are those of a pack."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import EmptyError
from bloomery.corpus import ByteStream
from bloomery.corpus.bytes_stream import EDGE


@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=6).filter(any))
def test_documents_come_back(texts: list[str]) -> None:
    stream = ByteStream(texts)
    assert stream.n_documents == len(texts)
    assert stream.n_bytes == sum(len(text.encode("utf-8", "replace")) for text in texts)
    for number, text in enumerate(texts):
        document = stream.document(number)
        assert document[0] == document[-1] == EDGE
        assert bytes(document[1:-1].astype(np.uint8)).decode() == text.encode("utf-8", "replace").decode()


@given(length=st.integers(3, 60), seq_len=st.integers(1, 12))
def test_windows_cover_every_target_once(length: int, seq_len: int) -> None:
    stream = ByteStream([bytes(range(length))])
    targets = np.concatenate([window["tokens"][1:] for window in stream.windows(seq_len)])
    assert np.array_equal(targets, stream.tokens[1:])


def test_batches_depend_on_step_and_seed_only() -> None:
    stream = ByteStream([b"a" * 50, b"b" * 70])
    batch = stream.batch(3, 4, 8, seed=1)
    assert batch["tokens"].shape == (4, 9)
    assert np.array_equal(batch["tokens"], stream.rows(np.arange(12, 16), 8, 1)["tokens"])
    inside = (batch["tokens"] != EDGE) & (batch["documents"] == 0)
    assert (batch["tokens"][inside] == ord("a")).all()


def test_special_ids_are_not_text() -> None:
    stream = ByteStream([np.array([65, 300, 66])])
    assert stream.n_bytes == 2
    assert stream.document(0).tolist() == [EDGE, 65, 300, 66, EDGE]


def test_no_text_is_an_error() -> None:
    with pytest.raises(EmptyError, match="no text"):
        ByteStream(["", b""])

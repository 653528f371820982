"""Packs: what is written, what windows see, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from bloomery.core.errors import ConfigError, DataError, EmptyError
from bloomery.corpus import packing
from bloomery.corpus import tokenizer as tokenizers_
from bloomery.corpus.documents import from_texts, with_column
from bloomery.corpus.packing import PackedTokens, pack

TEXTS = [f"Document {i} says {'very ' * (i % 7)}little, <|eos|> but naïvely." for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizers_.train(TEXTS, 330)


@pytest.fixture(scope="module")
def packed(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> PackedTokens:
    return pack(TEXTS, tokenizer, tmp_path_factory.mktemp("packs") / "pack", quiet=True)


def stream(packed: PackedTokens) -> np.ndarray:
    return np.concatenate([packed.document(i) for i in range(packed.n_documents)])


def test_documents_survive(packed: PackedTokens, tokenizer: Tokenizer) -> None:
    assert packed.n_documents == len(TEXTS)
    assert packed.n_bytes == sum(len(text.encode()) for text in TEXTS)
    assert len(packed) == packed.n_tokens == len(stream(packed))
    for i, text in enumerate(TEXTS):
        begin, *ids, end = packed.document(i).tolist()
        assert (begin, end) == (tokenizer.token_to_id("<|bos|>"), tokenizer.token_to_id("<|eos|>"))
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert end not in ids  # a page that spells the end token does not end the document
    assert packed.bytes_per_token == packed.n_bytes / packed.n_tokens


@pytest.mark.parametrize("seq_len", [1, 7, 64])
def test_windows_predict_every_token_once_in_order(packed: PackedTokens, seq_len: int) -> None:
    windows = list(packed.windows(seq_len))
    targets = np.concatenate([window["tokens"][1:] for window in windows])
    assert np.array_equal(targets, stream(packed)[1:])
    for before, after in pairwise(windows):
        assert before["tokens"][-1] == after["tokens"][0]


@given(st.integers(2, 40), st.integers(0, 3), st.integers(0, 2))
def test_an_epoch_predicts_no_token_twice(packed: PackedTokens, seq_len: int, seed: int, epoch: int) -> None:
    count = packed.n_windows(seq_len)
    rows = packed.rows(np.arange(epoch * count, (epoch + 1) * count), seq_len, seed)
    text = stream(packed)
    assert count * seq_len <= len(text) - 1 < (count + 1) * seq_len
    where = Counter(tuple(text[i : i + seq_len + 1].tolist()) for i in range(len(text) - seq_len))
    seen = Counter(map(tuple, rows["tokens"].tolist()))
    assert all(times <= where[window] for window, times in seen.items())


def test_windows_of_an_epoch_tile_the_pack(packed: PackedTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "tokens", np.arange(packed.n_tokens))  # every token names its position
    seq_len, shifts = 16, set()
    for epoch in range(4):
        count = packed.n_windows(seq_len)
        rows = packed.rows(np.arange(count) + epoch * count, seq_len, seed=0)["tokens"]
        targets = np.sort(rows[:, 1:].ravel())
        assert (np.diff(targets) == 1).all()  # each once, without a gap
        shifts.add(int(targets[0]))
        assert not np.array_equal(rows[:, 0], np.sort(rows[:, 0]))
    assert len(shifts) > 1


@given(st.integers(0, 200), st.integers(1, 16), st.integers(1, 30), st.integers(0, 3))
def test_batches_are_pieces_of_one_sequence(
    packed: PackedTokens, step: int, size: int, seq_len: int, seed: int
) -> None:
    batch = packed.batch(step, size, seq_len, seed)
    assert batch["tokens"].shape == batch["documents"].shape == (size, seq_len + 1)
    assert batch["tokens"].dtype == batch["documents"].dtype == np.int64
    for i in range(size):
        single = packed.batch(step * size + i, 1, seq_len, seed)
        assert np.array_equal(single["tokens"][0], batch["tokens"][i])
        assert np.array_equal(single["documents"][0], batch["documents"][i])


def test_documents_change_after_the_end_token(packed: PackedTokens, tokenizer: Tokenizer) -> None:
    batch = packed.batch(0, 8, 64, seed=0)
    change = np.diff(batch["documents"], axis=1)
    ends = batch["tokens"][:, :-1] == tokenizer.token_to_id("<|eos|>")
    assert np.array_equal(change == 1, ends)
    assert np.array_equal(change == 0, ~ends)


def test_a_worker_opens_the_pack_again(packed: PackedTokens) -> None:
    frozen = pickle.dumps(packed)
    assert len(frozen) < 500
    assert np.array_equal(pickle.loads(frozen).batch(3, 4, 8, 0)["tokens"], packed.batch(3, 4, 8, 0)["tokens"])


def test_lone_surrogates_are_replaced(tokenizer: Tokenizer, tmp_path: Path) -> None:
    packed = pack(["half a \ud83d pair"], tokenizer, tmp_path / "pack", quiet=True)
    assert tokenizer.decode(packed.document(0).tolist()) == "half a ? pair"
    assert packed.n_bytes == len("half a ? pair")


def test_seeds_and_epochs_differ(packed: PackedTokens) -> None:
    count = packed.n_windows(8)
    first = packed.batch(0, count, 8, seed=0)["tokens"]
    assert not np.array_equal(first, packed.batch(0, count, 8, seed=1)["tokens"])
    assert not np.array_equal(first, packed.batch(1, count, 8, seed=0)["tokens"])


def test_packing_is_independent_of_the_batching(
    tokenizer: Tokenizer, tmp_path: Path, packed: PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "BATCH_CHARS", 100)
    again = pack(iter(["", *TEXTS, " \n"]), tokenizer, tmp_path / "pack", quiet=True)
    for name in ("tokens.bin", "boundaries.npy"):
        assert (again.folder / name).read_bytes() == (packed.folder / name).read_bytes()
    assert json.loads((again.folder / "pack.json").read_text())["n_blank"] == 2


def test_packs_corpus_files_by_split(tokenizer: Tokenizer, tmp_path: Path) -> None:
    sides = ["validation" if i % 3 == 0 else "train" for i in range(len(TEXTS))]
    batch = with_column(from_texts(TEXTS), "split", sides)
    pq.write_table(_table(batch.slice(0, 25)), tmp_path / "a.parquet")
    pq.write_table(_table(batch.slice(25)), tmp_path / "b.parquet")
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    train = pack(paths, tokenizer, tmp_path / "train", split="train", quiet=True)
    assert train.n_documents == 40
    assert pack(paths[0], tokenizer, tmp_path / "one", quiet=True).n_documents == 25
    for folder in (".bloomery", "dropped"):  # what a curation run leaves beside its output
        (tmp_path / folder).mkdir()
    pq.write_table(_table(from_texts(["refused"])), tmp_path / "dropped" / "a.parquet")
    assert pack(tmp_path, tokenizer, tmp_path / "both", quiet=True).n_documents == len(TEXTS)
    with pytest.raises(EmptyError, match="'test'"):
        pack(paths, tokenizer, tmp_path / "test", split="test", quiet=True)
    pq.write_table(_table(from_texts(TEXTS)), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="no column 'split'"):
        pack(tmp_path / "c.parquet", tokenizer, tmp_path / "no", split="train", quiet=True)


def test_broken_lines_are_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n{"text": \n{"text": "two"}\n')
    assert pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "pack", quiet=True).n_documents == 2


def _table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def test_a_failure_leaves_the_old_pack(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def broken() -> object:
        yield TEXTS[0]
        raise RuntimeError("the disk is gone")

    pack(TEXTS, tokenizer, tmp_path / "pack", quiet=True)
    with pytest.raises(RuntimeError, match="gone"):
        pack(broken(), tokenizer, tmp_path / "pack", quiet=True)
    assert PackedTokens(tmp_path / "pack").n_documents == len(TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    vocabulary = {"<|bos|>": 0, "<|eos|>": 1, "word": 70_000}
    large = Tokenizer(models.WordLevel(vocabulary, unk_token="word"))
    packed = pack(["word", "other"], large, tmp_path / "pack", quiet=True)
    assert packed.document(1).tolist() == [0, 70_000, 1]
    assert packed.vocab_size == 70_001
    assert (packed.folder / "tokens.bin").stat().st_size == 4 * 6


def test_refusals(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    with pytest.raises(EmptyError, match="no document with text"):
        pack([" "], tokenizer, folder, quiet=True)
    with pytest.raises(ConfigError, match="no token '</s>'"):
        pack(TEXTS, tokenizer, folder, eos_token="</s>", quiet=True)
    with pytest.raises(ConfigError, match="a single text"):
        pack(TEXTS[0], tokenizer, folder, quiet=True)
    with pytest.raises(DataError, match="no such file"):
        PackedTokens(folder)
    packed = pack(TEXTS[:2], tokenizer, folder, quiet=True)
    with pytest.raises(DataError, match=f"the pack has {len(packed)} tokens, a window needs 501"):
        packed.batch(0, 1, 500, seed=0)
    with pytest.raises(ConfigError, match="seq_len = 0"):
        packed.batch(0, 1, 0, seed=0)
    with pytest.raises(DataError, match="another tokenizer"):
        PackedTokens(folder, tokenizers_.train(TEXTS, 280))
    assert len(PackedTokens(folder, tokenizer)) == len(packed)


@pytest.mark.parametrize("damage", ["tokens.bin", "boundaries.npy", "pack.json"])
def test_damaged_files(tokenizer: Tokenizer, tmp_path: Path, damage: str) -> None:
    folder = pack(TEXTS, tokenizer, tmp_path / "pack", quiet=True).folder
    content = (folder / damage).read_bytes()
    (folder / damage).write_bytes(content[: len(content) - 8])
    with pytest.raises(DataError, match=damage.replace(".", r"\.")):
        PackedTokens(folder)
    (folder / damage).unlink()
    with pytest.raises(DataError, match=damage.replace(".", r"\.")):
        PackedTokens(folder)


def test_boundaries_of_another_pack(tokenizer: Tokenizer, tmp_path: Path) -> None:
    one = pack(TEXTS, tokenizer, tmp_path / "one", quiet=True).folder
    two = pack(TEXTS[::-1], tokenizer, tmp_path / "two", quiet=True).folder
    starts = np.load(two / "boundaries.npy")
    np.save(one / "boundaries.npy", starts + len(PackedTokens(two)))
    with pytest.raises(DataError, match="do not fit"):
        PackedTokens(one)

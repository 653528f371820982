"""The token shuffle: nothing lost, every order equally likely, resumed after a full disk, read by others."""

from __future__ import annotations

import errno
import gzip
import json
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError, DataError, EmptyError, StorageError
from bloomery.corpus import PackedTokens, pack, shuffle
from bloomery.corpus import tokenizer as words
from bloomery.corpus.shuffle import PAD_OFFSET, WORK, plan_shuffle, shuffle_tokens

TEXTS = [f"Document {i} says {'very ' * (i % 7)}little about {i * 37 % 101}, <|eos|> and no more." for i in range(90)]
SEQ_LEN = 9


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return words.train(TEXTS, 330)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for number, few in enumerate((TEXTS[:50], TEXTS[50:51], ["", *TEXTS[51:]])):
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in few))
    return folder


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "RUN_BYTES", 40 * 2 * (SEQ_LEN + 1))  # forty contexts: several runs a file


def run(inputs: Path, tokenizer: Tokenizer, folder: Path, **options: Any) -> Any:
    given_ = {"seq_len": SEQ_LEN, "cells": 5, "chunk": 8, "quiet": True, **options}
    return shuffle_tokens(inputs, tokenizer, folder, **given_)


def expected_contexts(inputs: Path, tokenizer: Tokenizer, folder: Path) -> list[tuple[int, ...]]:
    """Contexts file by file, without padding, from packs of the single files."""
    contexts = []
    for file in sorted(inputs.iterdir()):
        tokens = pack(file, tokenizer, folder / file.name, quiet=True).tokens
        starts = range(0, len(tokens), SEQ_LEN + 1)
        contexts += [tuple(tokens[start : start + SEQ_LEN + 1].tolist()) for start in starts]
    return contexts


def tar_contexts(folder: Path) -> list[list[tuple[int, ...]]]:
    """The contexts of every shard that the manifest names, as a reader of webdatasets finds them."""
    shards = []
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        entry = json.loads(line)
        with tarfile.open(folder / f"{entry['shard']}.tar") as tar:
            members = tar.getmembers()
            assert all(member.name.partition(".")[2] == "json.gz" for member in members)
            shards.append([tuple(json.loads(gzip.decompress(tar.extractfile(m).read()))) for m in members])  # type: ignore[union-attr]
        assert len(shards[-1]) == entry["num_sequences"]
    return shards


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_pack_holds_every_context_once(inputs: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    done = run(inputs, tokenizer, tmp_path / "out")
    expected = expected_contexts(inputs, tokenizer, tmp_path)
    packed = PackedTokens(tmp_path / "out", tokenizer)
    assert (done.documents, done.contexts, done.tokens) == (90, len(expected), packed.n_tokens)
    assert packed.n_bytes == sum(len(text.encode()) for text in TEXTS)
    assert Counter(packed.tokens.tolist()) == Counter(token for context in expected for token in context)
    # A document of the pack lies within one context, and is a document of the text or a part of one.
    end = tokenizer.token_to_id("<|eos|>")
    pieces = Counter()
    for context in expected:
        cuts = [0, *(i + 1 for i, token in enumerate(context) if token == end and i + 1 < len(context)), len(context)]
        pieces.update(context[a:b] for a, b in pairwise(cuts))
    assert Counter(tuple(packed.document(i).tolist()) for i in range(packed.n_documents)) == pieces
    assert packed.batch(0, 2, SEQ_LEN, 0)["tokens"].shape == (2, SEQ_LEN + 1)
    assert not (tmp_path / "out" / WORK).exists()


def test_tars_are_those_of_the_reference(inputs: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    done = run(inputs, tokenizer, tmp_path / "out", output="tar")
    shards = tar_contexts(tmp_path / "out")
    assert [len(shard) for shard in shards[:-1]] == [8] * (done.shards - 1)
    assert len(shards) == done.shards
    pad = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1 + PAD_OFFSET
    expected = [
        context + (pad,) * (SEQ_LEN + 1 - len(context)) for context in expected_contexts(inputs, tokenizer, tmp_path)
    ]
    found = [context for shard in shards for context in shard]
    assert Counter(found) == Counter(expected)
    assert found != expected
    assert done.contexts == len(expected) > 100


def test_the_result_is_a_function_of_the_seed(inputs: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for output in ("tar", "pack"):
        one, again, other = (tmp_path / f"{output}{name}" for name in "abc")
        run(inputs, tokenizer, one, output=output)
        run(inputs, tokenizer, again, output=output)
        run(inputs, tokenizer, other, output=output, seed=1)
        assert files(one) == files(again)
        assert files(one) != files(other)


def test_it_does_not_depend_on_the_size_of_runs(
    inputs: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells are drawn context by context, so memory is no part of the result."""
    run(inputs, tokenizer, tmp_path / "small")
    monkeypatch.setattr(shuffle, "RUN_BYTES", 1 << 30)
    run(inputs, tokenizer, tmp_path / "large")
    assert files(tmp_path / "small") == files(tmp_path / "large")


@pytest.mark.parametrize("output", ["tar", "pack"])
def test_a_full_disk_anywhere_loses_nothing(
    inputs: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """The disk takes a write more each time; the same call goes on, and the result is that of an undisturbed one."""
    run(inputs, tokenizer, tmp_path / "whole", output=output)
    out, left, failures = tmp_path / "out", [0], 0
    real, fsync = shuffle.atomic_file, shuffle.os.fsync

    def spend() -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1

    def atomic(path: Path, mode: str = "wb") -> Any:
        with shuffle.explain_os_errors(path):
            spend()
        return real(path, mode)

    def sync(handle: int) -> None:
        spend()
        fsync(handle)

    monkeypatch.setattr(shuffle, "atomic_file", atomic)
    monkeypatch.setattr(shuffle.os, "fsync", sync)  # after the bytes of a pack are written, and in every atomic file
    before: dict[str, bytes] = {}
    for attempt in range(2_000):
        left[0] = attempt  # writes until the disk is full again
        try:
            run(inputs, tokenizer, out, output=output)
            break
        except StorageError:
            failures += 1
            if output == "tar":
                now = files_of_shards(out)
                assert before.items() <= now.items()
                before = now
    monkeypatch.undo()
    assert failures > 10
    assert files(out) == files(tmp_path / "whole")


def files_of_shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard_*.tar"))}


def test_what_was_written_past_the_record_is_cut_off(inputs: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A process killed between the tokens of a cell and the record of them."""
    run(inputs, tokenizer, tmp_path / "whole")
    real = shuffle.write_json

    class Killed(BaseException):
        pass

    def kill(path: Path, value: Any) -> None:
        if path.name == "progress.json" and value["cell"] == 3:
            raise Killed
        real(path, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "write_json", kill)
        with pytest.raises(Killed):
            run(inputs, tokenizer, tmp_path / "out")
    run(inputs, tokenizer, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_finished_shuffle_is_left_alone_and_another_is_refused(
    inputs: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    done = run(inputs, tokenizer, tmp_path / "out")
    assert run(inputs, tokenizer, tmp_path / "out") == done
    with pytest.raises(ConfigError, match="another seed"):
        run(inputs, tokenizer, tmp_path / "out", seed=5)
    with pytest.raises(ConfigError, match="something else"):
        run(inputs, tokenizer, inputs)
    assert not (inputs / WORK).exists()


def test_a_damaged_run_is_refused(inputs: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "_second_stage", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(inputs, tokenizer, tmp_path / "out")
    some = next((tmp_path / "out" / WORK).glob("run-0-*"))
    some.write_bytes(some.read_bytes()[:-2])
    with pytest.raises(DataError, match="another size"):
        run(inputs, tokenizer, tmp_path / "out")


@settings(max_examples=10)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 7))
def test_levels_of_leftovers_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, contexts: int, cells: int, chunk: int
) -> None:
    found = mixed(tmp_path_factory.mktemp("spill"), contexts, cells, chunk, seed=0)
    assert sorted(found) == list(range(contexts))


def mixed(folder: Path, contexts: int, cells: int, chunk: int, seed: int) -> list[int]:
    """The order in which numbered contexts leave both stages."""
    (folder / WORK).mkdir(parents=True)
    spill = shuffle._Spill(folder / WORK, 1, 60_000, seed)
    found = spill.file(0, "numbers", [(np.arange(contexts), {})], cells)
    writer = shuffle._Tars(folder, chunk)
    order: list[int] = []

    def write(state: dict[str, int], some: np.ndarray) -> dict[str, int]:
        order.extend(some[:, 0].tolist())
        return state

    writer.write = write  # type: ignore[method-assign]
    runs = [spill.run(0, 0, part) for part in range(found["runs"])]
    assert shuffle._second_stage(spill, runs, cells, writer, quiet=True)[0] == contexts
    return order


def test_every_place_is_equally_likely(tmp_path: Path) -> None:
    """Where each of 12 contexts lands over 400 seeds, and which one follows another: chi-square of the tables."""
    size, seeds = 12, 400
    places, follows = np.zeros((size, size)), np.zeros((size, size))
    for seed in range(seeds):
        order = mixed(tmp_path / str(seed), size, cells=3, chunk=2, seed=seed)
        places[order, np.arange(size)] += 1
        follows[order[:-1], order[1:]] += 1
    chi = ((places - seeds / size) ** 2 / (seeds / size)).sum()
    freedom = (size - 1) ** 2
    assert abs(chi - freedom) < 4 * np.sqrt(2 * freedom)
    expected = seeds / size  # 11 pairs of neighbours among 132 ordered pairs
    pairs = follows[~np.eye(size, dtype=bool)]
    chi = ((pairs - expected) ** 2 / expected).sum()
    assert abs(chi - len(pairs)) < 4 * np.sqrt(2 * len(pairs))


def test_plans_and_bad_settings(
    inputs: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(path.stat().st_size for path in inputs.iterdir())
    need = plan_shuffle(inputs, cells=4)
    assert need.disk_bytes == pytest.approx(size, rel=0.01)  # two bytes a token, a token in four bytes, twice
    run(inputs, tokenizer, tmp_path / "out")
    for wrong in ({"output": "zip"}, {"seq_len": 0}, {"cells": 0}, {"chunk": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            run(inputs, tokenizer, tmp_path / "new", **wrong)
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(EmptyError, match="no document"):
        run(tmp_path / "blank.jsonl", tokenizer, tmp_path / "none")
    monkeypatch.setattr(shuffle, "free_memory", lambda: 100)
    with pytest.raises(ConfigError, match=r"more memory.*cells="):
        run(inputs, tokenizer, tmp_path / "tight")


def test_a_full_disk_is_seen_coming(
    inputs: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from shutil import disk_usage

    monkeypatch.setattr(shuffle.shutil, "disk_usage", lambda path: disk_usage(path)._replace(free=10))
    with caplog.at_level("WARNING"):
        run(inputs, tokenizer, tmp_path / "out")
    assert "of disk" in caplog.text

"""Packing onto a full disk: one line, the pack that was there before stays, the same call succeeds later."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from bloomery.core.errors import StorageError
from bloomery.corpus import PackedTokens, pack, packing
from bloomery.corpus import tokenizer as words

TEXTS = [f"The number {i} is followed by {i + 1}, as everybody knows." for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return words.train(TEXTS, 300)


@pytest.mark.parametrize("file", ["tokens", "boundaries", "description"])
def test_a_full_disk_keeps_the_pack_before(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    pack(TEXTS[:10], tokenizer, tmp_path / "pack", quiet=True)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if file == "tokens":
        real = Path.open

        def open_(path: Path, mode: str = "r", **options: Any) -> Any:
            return open("/dev/full", mode, buffering=0) if path.name == "tokens.bin" else real(path, mode, **options)

        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        monkeypatch.setattr(Path, "open", open_)
    elif file == "boundaries":
        monkeypatch.setattr(packing.np, "save", full)
    else:
        monkeypatch.setattr(packing, "write_json", full)
    with pytest.raises(StorageError, match=r"pack: the disk is full \(free some space") as caught:
        pack(TEXTS, tokenizer, tmp_path / "pack", quiet=True)
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]  # nothing half-written
    assert PackedTokens(tmp_path / "pack", tokenizer).n_documents == 10
    assert pack(TEXTS, tokenizer, tmp_path / "pack", quiet=True).n_documents == 60

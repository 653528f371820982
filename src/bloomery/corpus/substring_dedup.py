"""Exact duplicates of pieces of text, wherever they stand: Lee et al. 2022, "Deduplicating Training Data Makes Language
Models Better" (arXiv 2107.06499, §4.1), ExactSubstr. Also the second half of RefinedWeb's deduplication, after MinHash.

Every piece of at least `length` bytes (or tokens) that has stood before, in the same document or an earlier one of the
whole corpus, is cut out; its first copy stays. How the pieces are found is in `repeats`: what a suffix array over the
corpus would show, all of it, across files and workers too, compared unit by unit.

    steps = [..., *substring_dedup(), ...]        # the decision, and the step that cuts the pieces out

A cut never tears a character: where a piece begins or ends inside a grapheme cluster, that cluster stays whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.core.errors import ConfigError
from bloomery.corpus import graphemes
from bloomery.corpus.documents import texts, with_texts
from bloomery.corpus.repeats import GRAM, PART, Chunk, Keep, anchors, repeats
from bloomery.corpus.steps import Barrier, Plan, Step, decisions, drop

CUT = "substring_cut"  # column: begin and end of each piece to remove, in bytes
BYTES, TOKENS = 100, 50  # default lengths: those of the paper
TOKEN_BYTES = 4  # of text per token, for estimates
LONGEST = 10_000
ANCHOR_RAM, WINDOW_RAM = 40, 160  # bytes of memory for an anchor and for a window that is looked at


def substring_dedup(**fields: Any) -> list[Step | Barrier]:
    """`SubstringDedup` and the step that applies it."""
    return [SubstringDedup(**fields), CutSubstrings()]


@dataclass(frozen=True)
class SubstringDedup(Barrier):
    """Decide which pieces of text have stood before; `CutSubstrings` must follow.

    Args:
        length: units of the shortest piece that is removed; by default 100 bytes, or 50 tokens with a tokenizer.
        tokenizer: tokenizer file or folder; the units are then its tokens, not bytes. It must be lossless (byte-level
            BPE): equal tokens are taken for equal text.
        keep: "first" leaves the first copy (one whole copy also where a document repeats itself without a gap);
            "none" removes all copies.
    """

    length: int | None = None
    tokenizer: Path | None = None
    keep: Keep = "first"

    def __post_init__(self) -> None:
        if self.length is None:
            object.__setattr__(self, "length", TOKENS if self.tokenizer else BYTES)
        if not 2 <= self._length <= LONGEST:
            raise ConfigError(f"length={self.length}", where="SubstringDedup", fix=f"2 to {LONGEST:,}")
        if self.keep not in ("first", "none"):
            raise ConfigError(f"keep={self.keep!r}", where="SubstringDedup", fix="first or none")
        if self.tokenizer is not None:
            object.__setattr__(self, "tokenizer", Path(self.tokenizer))

    @property
    def _length(self) -> int:
        assert self.length is not None
        return self.length

    @property
    def writes(self) -> tuple[str, ...]:
        """The pieces to cut."""
        return (CUT,)

    def plan(self, documents: int, bytes: int) -> Plan:
        """The text and its anchors on disk; in memory the anchors and one part of the windows.

        Of ordinary text: a corpus that is one character or a short period throughout has an anchor at every unit.
        """
        units = bytes // TOKEN_BYTES if self.tokenizer else bytes
        found = 2 * units // (self._length - min(GRAM, self._length // 3) + 2)
        ram = ANCHOR_RAM * found + WINDOW_RAM * min(units, PART) + 64 * documents
        return Plan(ram_bytes=ram, disk_bytes=bytes + 12 * found + (12 * units if self.tokenizer else 0))

    def fingerprint(self) -> dict[str, Any]:
        """Also the tokenizer's content."""
        if self.tokenizer is None:
            return super().fingerprint()
        from bloomery.corpus.tokenizer import digest

        return {**super().fingerprint(), "tokenizer": digest(_tokenizer(self.tokenizer))}

    def sketch(self, batch: pa.RecordBatch) -> pa.Table:
        """`text`, `anchors`, `begins`; with a tokenizer also `ids`, and `starts` and `ends` of the tokens in bytes."""
        content = texts(batch).cast(pa.large_binary())
        columns: dict[str, pa.Array] = {"text": content}
        units, offsets = _values(content)
        if self.tokenizer is not None:
            units, offsets, starts, ends = _tokens(_tokenizer(self.tokenizer), texts(batch).to_pylist())
            for name, values in (("ids", units), ("starts", starts), ("ends", ends)):
                columns[name] = pa.LargeListArray.from_arrays(offsets, pa.array(values, pa.uint32()))
        hashes, begins, counts = anchors(units, offsets, self._length)
        places = np.concatenate([[0], np.cumsum(counts)])
        columns["anchors"] = pa.LargeListArray.from_arrays(places, pa.array(hashes, pa.uint64()))
        columns["begins"] = pa.LargeListArray.from_arrays(places, pa.array(begins, pa.uint32()))
        return pa.table(columns)

    def decide(self, sketches: pa.Table) -> pa.Table:
        """The pieces to cut from each document."""
        batches = sketches.to_batches()
        chunks = [_chunk(batch, "ids" if self.tokenizer else "text") for batch in batches]
        begins, ends = repeats(chunks, self._length, self.keep) if chunks else (np.zeros(0, np.int64),) * 2
        pieces: list[list[int]] = []
        notes = {"documents_cut": 0, "pieces": 0, "bytes_removed": 0, "bytes": 0}
        base = 0
        for batch, chunk in zip(batches, chunks, strict=True):
            mine = slice(*np.searchsorted(begins, [base, base + len(chunk.units)]))
            low, high = begins[mine] - base, ends[mine] - base
            owner = np.searchsorted(chunk.offsets, low, side="right") - 1
            if self.tokenizer:
                low, high = _values(batch.column("starts"))[0][low], _values(batch.column("ends"))[0][high - 1]
            else:
                low, high = low - chunk.offsets[owner], high - chunk.offsets[owner]
            found: dict[int, list[int]] = {}
            row, data = -1, b""
            for document, begin, end in zip(owner.tolist(), low.tolist(), high.tolist(), strict=True):
                if document != row:
                    row, data = document, batch.column("text")[document].as_py()
                begin, end = graphemes.inward(data, begin, end)
                if begin < end:
                    found.setdefault(row, []).extend((begin, end))
            pieces += [found.get(row, []) for row in range(batch.num_rows)]
            notes["documents_cut"] += len(found)
            notes["pieces"] += sum(map(len, found.values())) // 2
            notes["bytes_removed"] += sum(sum(piece[1::2]) - sum(piece[::2]) for piece in found.values())
            notes["bytes"] += len(_values(batch.column("text"))[0])
            base += len(chunk.units)
        return decisions(notes=notes, **{CUT: pa.array(pieces, pa.list_(pa.int32()))})


@dataclass(frozen=True)
class CutSubstrings(Step):
    """Remove the pieces that `SubstringDedup` decided about; a document of white space alone is dropped."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Text, and the pieces to remove."""
        return ("parts", CUT)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The documents without those pieces and without the column."""
        cuts = batch.column(CUT)
        if pc.any(pc.greater(pc.list_value_length(cuts), 0), min_count=0).as_py():
            after = [
                without(text, cut) if cut else text
                for text, cut in zip(texts(batch).to_pylist(), cuts.to_pylist(), strict=True)
            ]
            batch = with_texts(batch, after)
            emptied = [bool(cut) and not text.strip() for text, cut in zip(after, cuts.to_pylist(), strict=True)]
            batch = drop(batch, emptied, "duplicate text")
        return batch.drop_columns([CUT])


def without(text: str, edges: list[int]) -> str:
    """The text without the pieces between these places (begin, end, begin, …, rising) in its UTF-8 bytes."""
    data = text.encode()
    return b"".join(data[a:b] for a, b in zip([0, *edges[1::2]], [*edges[::2], len(data)], strict=True)).decode()


@lru_cache(maxsize=2)
def _tokenizer(path: Path) -> Any:
    from bloomery.corpus import tokenizer

    return tokenizer.load(path)


def _tokens(tokenizer: Any, content: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids of all tokens, where each text begins in them, and the bytes of its text that a token begins and ends at.

    Where tokens share a character, none of them has it: a cut between them goes around it.
    """
    from bloomery.corpus.tokenizer import plain

    encoded = plain(tokenizer).encode_batch(content, add_special_tokens=False)
    ids, starts, ends = ([np.zeros(0, np.uint32)] for _ in range(3))
    for text, encoding in zip(content, encoded, strict=True):
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        if not text.isascii():
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            sizes = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF).astype(np.int64)
            spans = np.concatenate([[0], np.cumsum(sizes)])[spans]
        start, end = spans.T
        ids.append(np.array(encoding.ids, np.uint32))
        starts.append(np.concatenate([start[:1] * 0, end[:-1]]).astype(np.uint32))
        ends.append(np.minimum(end, np.append(start[1:], end[-1:])).astype(np.uint32))
    offsets = np.cumsum([0, *map(len, ids[1:])])
    return np.concatenate(ids), offsets, np.concatenate(starts), np.concatenate(ends)


def _chunk(batch: pa.RecordBatch, name: str) -> Chunk:
    units, offsets = _values(batch.column(name))
    hashes, places = _values(batch.column("anchors"))
    return Chunk(units, offsets, hashes, _values(batch.column("begins"))[0], np.diff(places))


def _values(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The values of all rows, one after the other and without a copy, and where each row begins in them."""
    if pa.types.is_large_list(column.type):
        offsets = column.offsets.to_numpy()
        return column.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]
    if not len(column):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, places, data = column.buffers()
    offsets = np.frombuffer(places, np.int64)[column.offset : column.offset + len(column) + 1]
    content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return content[offsets[0] : offsets[-1]], offsets - offsets[0]

"""Duplicates across documents with images, as OBELICS finds them (arXiv 2306.16527): pages, images, lines of a site.

    [*image_address_dedup(), UrlDedup(), *line_dedup(), ImageSetDedup(), …, FinalProcessing()]      its order

Every barrier keeps 8 or 16 bytes for each image, document or paragraph on disk, and counts them by hash (64 bits for
what is repeated, 128 for documents) in parts of `BLOCK`, so that memory does not grow with the corpus but for the
decisions themselves. What the scripts of the reference do otherwise: their list of frequent image addresses holds every
address (the counter is saved before it is filtered), and of documents with one address they keep every copy in the
chosen archive, where here one stays.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import xxhash

from bloomery.core.errors import ConfigError
from bloomery.corpus.interleaved.flat_parts import FlatParts
from bloomery.corpus.interleaved.obelics_parquet import GENERAL
from bloomery.corpus.interleaved.paragraph_rules import BLANK_LINE
from bloomery.corpus.interleaved.parts import END_OF_DOCUMENT
from bloomery.corpus.interleaved.text_ratios import is_in
from bloomery.corpus.steps import Barrier, Plan, Step, decisions, drop, removed_parts

IMAGE_CUT, LINE_CUT = "image_address_cut", "line_cut"  # columns: numbers of a document's images, or paragraphs, to cut
BLOCK = 1 << 24  # hashes that are sorted together
NOTHING = 0  # in place of a hash: never a duplicate
PARAGRAPH_BYTES = 100  # of text per paragraph, for estimates


# -------------------------------------------------------------------------------------------- one of several documents


class _KeepLatest(Barrier):
    """Of documents with the same key the one in the latest archive stays; of several there, the first of the input.

    Latest is the last by name of the archive, or by date where there is none (`warc_filename` or `date` in a document's
    meta, also inside OBELICS' `general_metadata`).
    """

    reason: str

    @property
    def reads(self) -> tuple[str, ...]:
        """Address, parts and meta."""
        return ("url", "parts", "meta")

    @abstractmethod
    def keys(self, batch: pa.RecordBatch) -> list[str | None]:
        """What equal documents have in common; None = nothing."""

    def plan(self, documents: int, bytes: int) -> Plan:
        """16 bytes and a name per document on disk, about 80 in memory while deciding."""
        return Plan(ram_bytes=80 * documents, disk_bytes=80 * documents)

    def sketch(self, batch: pa.RecordBatch) -> pa.Table:
        """The hash of the key in two halves (`has` = there is a key), and the archive."""
        keys = self.keys(batch)
        digests = b"".join(xxhash.xxh3_128_digest((key or "").encode()) for key in keys)
        halves = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)
        archives = [_archive(dict(meta or ())) for meta in batch.column("meta").to_pylist()]
        return pa.table(
            {
                "high": halves[:, 0],
                "low": halves[:, 1],
                "has": pa.array([key is not None for key in keys], pa.bool_()),
                "archive": pa.array(archives, pa.string()),
            }
        )

    def decide(self, sketches: pa.Table) -> pa.Table:
        """Drop all others."""
        high, low = sketches["high"].to_numpy(), sketches["low"].to_numpy()
        rank = _ranks(sketches["archive"])
        order = np.lexsort((-rank, low, high))  # stable: in one archive documents stay in input order
        order = order[sketches["has"].to_numpy()[order]]
        copies = np.zeros(len(high), dtype=bool)
        again = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
        copies[order[1:][again]] = True
        reasons = pa.array(np.full(len(copies), self.reason), pa.string(), mask=~copies)
        return decisions(drop=reasons, notes={"copies": int(copies.sum())})


@dataclass(frozen=True)
class UrlDedup(_KeepLatest):
    """Of documents with the same address the one in the latest archive stays; without an address a document stays."""

    reason = "address seen in a later archive"

    def keys(self, batch: pa.RecordBatch) -> list[str | None]:
        """The addresses."""
        urls: list[str | None] = batch.column("url").to_pylist()
        return urls


@dataclass(frozen=True)
class ImageSetDedup(_KeepLatest):
    """Of documents with the same set of image addresses the one in the latest archive stays."""

    reason = "same images as another document"

    def keys(self, batch: pa.RecordBatch) -> list[str | None]:
        """The sets of addresses, None for a document without."""
        flat = FlatParts.of(batch)
        sets: list[set[str]] = [set() for _ in range(flat.documents)]
        refs = flat.refs
        for part in np.flatnonzero(flat.is_image).tolist():
            if (ref := refs[part]) is not None:
                sets[flat.owner[part]].add(ref)
        return ["\x1f".join(sorted(some)) if some else None for some in sets]


def _archive(meta: dict[str, str]) -> str:
    try:
        general = json.loads(meta.get(GENERAL) or "{}")
    except ValueError:
        general = {}
    known = {**meta, **general} if isinstance(general, dict) else meta
    return str(known.get("warc_filename") or known.get("date") or "")


def _ranks(names: pa.ChunkedArray) -> np.ndarray:
    """The place of each name among all different ones: int64 (documents,)."""
    encoded = names.dictionary_encode().unify_dictionaries().combine_chunks()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    ranks: np.ndarray = np.argsort(np.argsort(encoded.dictionary.to_pylist() or [""]))[encoded.indices.to_numpy()]
    return ranks


# ---------------------------------------------------------------------------------------------- what is seen too often


def image_address_dedup(max_count: int = 10) -> list[Step | Barrier]:
    """`ImageAddressDedup` and the step that applies it."""
    return [ImageAddressDedup(max_count), CutFrequentImages()]


def line_dedup(**fields: Any) -> list[Step | Barrier]:
    """`LineDedup` and the step that applies it."""
    return [LineDedup(**fields), CutFrequentLines()]


def phrase_dedup(**fields: Any) -> list[Step | Barrier]:
    """`PhraseDedup` and the step that applies it."""
    return [PhraseDedup(**fields), CutFrequentLines("frequent phrase")]


class _Frequent(Barrier):
    """Counts hashes over the corpus; those above the bound are cut wherever they are."""

    column: str

    @abstractmethod
    def hashes(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """What each document has, uint64 (H,), `NOTHING` for what is not counted; and how many of each document."""

    @property
    @abstractmethod
    def most(self) -> int:
        """How often something may occur."""

    @property
    def writes(self) -> tuple[str, ...]:
        """The numbers of what is to be cut."""
        return (self.column,)

    def plan(self, documents: int, bytes: int) -> Plan:
        """A block in memory, and the decisions; 8 bytes per paragraph on disk."""
        hashes = documents + bytes // PARAGRAPH_BYTES
        return Plan(ram_bytes=24 * min(BLOCK, hashes) + 32 * documents, disk_bytes=8 * hashes)

    def sketch(self, batch: pa.RecordBatch) -> pa.Table:
        """The hashes of each document."""
        values, lengths = self.hashes(batch)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return pa.table({"hashes": pa.LargeListArray.from_arrays(offsets, pa.array(values, pa.uint64()))})

    def decide(self, sketches: pa.Table) -> pa.Table:
        """The numbers, within its document, of everything that occurs too often."""
        often = frequent(sketches["hashes"], self.most)
        cuts = [_places(chunk, often) for chunk in sketches["hashes"].chunks]
        column = pa.concat_arrays([pa.array([], pa.list_(pa.int32())), *cuts])
        cut = len(column.flatten())
        return decisions(notes={"different": len(often), "places": cut}, **{self.column: column})


@dataclass(frozen=True)
class ImageAddressDedup(_Frequent):
    """Find image addresses that occur more than `max_count` times in the corpus; `CutFrequentImages` must follow."""

    max_count: int = 10
    column = IMAGE_CUT

    def __post_init__(self) -> None:
        _check_count(self.max_count, "ImageAddressDedup.max_count")

    @property
    def most(self) -> int:
        """How often an address may occur."""
        return self.max_count

    def hashes(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Of the addresses of images."""
        flat = FlatParts.of(batch)
        refs, at = flat.refs, np.flatnonzero(flat.is_image)
        values = [_hash(ref) if (ref := refs[part]) is not None else NOTHING for part in at.tolist()]
        return np.array(values, dtype=np.uint64), flat.count(flat.is_image)


@dataclass(frozen=True)
class LineDedup(_Frequent):
    """Find paragraphs that occur more than `max_count` times on a site (the host of the url, with its port).

    Repetitions inside one document count. A paragraph that holds the mark between articles stays, and so does every one
    of a document without url. `CutFrequentLines` must follow.

    Args:
        max_count: how often a paragraph may occur; 2 as in the published data set, 1 in the reference's library.
        spare_marks: False cuts the marks like any paragraph, as the reference's library does.
    """

    max_count: int = 2
    spare_marks: bool = True
    column = LINE_CUT

    def __post_init__(self) -> None:
        _check_count(self.max_count, "LineDedup.max_count")

    @property
    def reads(self) -> tuple[str, ...]:
        """Address and parts."""
        return ("url", "parts")

    @property
    def most(self) -> int:
        """How often a paragraph may occur."""
        return self.max_count

    def hashes(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Of site and paragraph."""
        sites = [None if url is None else _site(url) for url in batch.column("url").to_pylist()]

        def hashed(document: int, paragraph: str) -> int:
            if sites[document] is None or (self.spare_marks and END_OF_DOCUMENT in paragraph):
                return NOTHING
            return _hash(f"{sites[document]}\x1f{paragraph}")

        return _hashes_of_paragraphs(batch, hashed)


@dataclass(frozen=True)
class PhraseDedup(_Frequent):
    """Find short paragraphs that occur more than `max_count` times in the corpus, such as "Skip to content".

    Bloom-filter deduplication does not see what is shorter than its n-grams; MINT-1T (arXiv 2406.11271, §3) removes
    frequent phrases after it, without saying how: these bounds are ours. Compared in lower case and with all white
    space as single spaces; the mark between articles stays. `CutFrequentLines` must follow.

    Args:
        max_count: how often a phrase may occur.
        max_words: words, split at white space, of the longest paragraph that is looked at.
    """

    max_count: int = 10
    max_words: int = 12
    column = LINE_CUT

    def __post_init__(self) -> None:
        _check_count(self.max_count, "PhraseDedup.max_count")
        _check_count(self.max_words, "PhraseDedup.max_words")

    @property
    def most(self) -> int:
        """How often a phrase may occur."""
        return self.max_count

    def hashes(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Of short paragraphs."""

        def hashed(document: int, paragraph: str) -> int:
            words = paragraph.lower().split(None, self.max_words)
            too_long = len(words) > self.max_words
            return NOTHING if too_long or END_OF_DOCUMENT in paragraph else _hash(" ".join(words))

        return _hashes_of_paragraphs(batch, hashed)


@dataclass(frozen=True)
class CutFrequentImages(Step):
    """Take out the images that `ImageAddressDedup` found; a document without parts is dropped."""

    reads = ("parts", IMAGE_CUT)
    writes = ("parts",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The documents without those images and without the column."""
        flat, cuts = FlatParts.of(batch), batch.column(IMAGE_CUT)
        batch = batch.drop_columns([IMAGE_CUT])
        images = np.flatnonzero(flat.is_image)
        first = np.searchsorted(flat.owner[images], np.arange(flat.documents))
        keep = np.ones(len(flat.owner), dtype=bool)
        owners = np.repeat(np.arange(flat.documents), cuts.value_lengths().fill_null(0).to_numpy())
        gone = images[first[owners] + cuts.flatten().to_numpy()]
        keep[gone] = False
        reasons = flat.by_document([(part, "frequent image address") for part in gone.tolist()])
        batch = removed_parts(flat.replaced(batch, keep), reasons)
        return drop(batch, flat.count(keep) == 0, "nothing left")


@dataclass(frozen=True)
class CutFrequentLines(Step):
    """Take out the paragraphs that `LineDedup` or `PhraseDedup` found, and texts and documents without any left."""

    reason: str = "line repeated on the site"

    reads = ("parts", LINE_CUT)
    writes = ("parts",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The documents without those paragraphs and without the column."""
        flat = FlatParts.of(batch)
        cuts = [set(numbers or ()) for numbers in batch.column(LINE_CUT).to_pylist()]
        batch = batch.drop_columns([LINE_CUT])
        after: list[list[str]] = [[] for _ in flat.owner]
        reasons: list[tuple[int, str]] = []
        number = np.zeros(flat.documents, dtype=np.int64)
        for owner, part, paragraph in _paragraphs(flat):
            if int(number[owner]) in cuts[owner]:
                reasons.append((part, self.reason))
            else:
                after[part].append(paragraph)
            number[owner] += 1
        texts = [BLANK_LINE.join(some) if is_text else None for some, is_text in zip(after, flat.is_text, strict=True)]
        keep = flat.is_image | np.array([bool(text) for text in texts], dtype=bool)
        batch = removed_parts(flat.replaced(batch, keep, texts), flat.by_document(reasons))
        return drop(batch, flat.count(keep) == 0, "nothing left")


def frequent(hashes: pa.ChunkedArray, above: int, block: int = BLOCK) -> np.ndarray:
    """The hashes that occur more than `above` times in a column of lists: sorted uint64.

    They are counted in turns, those that are equal modulo the number of turns together, so that a turn has about
    `block` of them; the column, which may lie on disk, is read once for each.
    """
    turns = max(1, -(-sum(len(chunk.flatten()) for chunk in hashes.chunks) // block))
    found = [np.zeros(0, dtype=np.uint64)]
    for turn in range(turns):
        values = [chunk.flatten().to_numpy() for chunk in hashes.chunks]
        mine = [some[(some % np.uint64(turns) == turn) & (some != NOTHING)] for some in values]
        keys, counts = np.unique(np.concatenate([found[0][:0], *mine]), return_counts=True)
        found.append(keys[counts > above])
    return np.sort(np.concatenate(found))


def _places(lists: pa.LargeListArray, often: np.ndarray) -> pa.ListArray:
    """The places of the hashes in `often` in each list: int32."""
    values, lengths = lists.flatten().to_numpy(), lists.value_lengths().to_numpy()
    ends = np.cumsum(lengths)
    hit = is_in(values, often)
    place = np.arange(len(values)) - np.repeat(ends - lengths, lengths)
    offsets = np.concatenate([[0], np.cumsum(hit)])[np.concatenate([[0], ends])]
    return pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(place[hit].astype(np.int32)))


def _paragraphs(flat: FlatParts) -> Iterator[tuple[int, int, str]]:
    """(document, part, paragraph) of all texts, in order."""
    for part, (owner, text) in enumerate(zip(flat.owner.tolist(), flat.texts, strict=True)):
        if text is not None:
            for paragraph in text.split(BLANK_LINE):
                yield owner, part, paragraph


def _hashes_of_paragraphs(batch: pa.RecordBatch, hashed: Callable[[int, str], int]) -> tuple[np.ndarray, np.ndarray]:
    """`hashed` of the number of a document in the batch and of each of its paragraphs; how many each document has."""
    flat = FlatParts.of(batch)
    lengths = np.zeros(flat.documents, dtype=np.int64)
    values: list[int] = []
    for owner, _, paragraph in _paragraphs(flat):
        lengths[owner] += 1
        values.append(hashed(owner, paragraph))
    return np.array(values, dtype=np.uint64), lengths


def _site(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:  # such as "http://[oops"
        return ""


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _check_count(count: int, where: str) -> None:
    if count < 1:
        raise ConfigError(f"{count}", where=where, fix="1 or more")

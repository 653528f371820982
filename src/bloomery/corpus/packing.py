"""Tokenised documents end to end in one memory-mapped file, read as windows in a seeded random order.

A pack is a folder: `tokens.bin` (uint16 or uint32, as the vocabulary needs), `boundaries.npy` (int64, first token of
every document) and `pack.json`. A document is its begin token, its text and its end token, so that its first word has
something to be predicted from and its end is learned. A batch is a pure function of (step, batch size, window, seed):
nothing has to be saved to resume, and workers need no coordination.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError, DataError, EmptyError
from bloomery.core.files import atomic_folder, read_json, write_json
from bloomery.core.progress import Progress
from bloomery.core.seeds import rng
from bloomery.corpus.tokenizer import BOS, EOS, digest, encode_batch

if TYPE_CHECKING:
    from bloomery.corpus.remote import Source

VERSION = 1
BATCH_CHARS = 1 << 21  # text tokenised at a time


def pack(
    documents: Iterable[str] | Path | Sequence[Path],
    tokenizer: Tokenizer,
    folder: Path | str,
    *,
    split: str | None = None,
    bos_token: str | None = BOS,
    eos_token: str = EOS,
    encode: Callable[[Tokenizer, list[str]], list[np.ndarray]] = encode_batch,
    quiet: bool = False,
) -> PackedTokens:
    """Tokenise documents into the pack `folder`, which appears whole at the end (an older one is replaced).

    `documents` are texts, or paths of corpus files or folders (anything `corpus.read_documents` reads); with paths,
    `split` keeps only the documents whose `split` column says so. Memory is bounded by a batch of `BATCH_CHARS`
    characters or by the longest document. Blank documents are left out and counted. `encode` makes token ids of texts;
    `fim.encode_batch` is for documents that a step has rearranged.
    """
    begin = [] if bos_token is None else [token_id(tokenizer, bos_token)]
    end = [token_id(tokenizer, eos_token)]
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    counts = {"n_documents": 0, "n_tokens": 0, "n_bytes": 0, "n_blank": 0}
    starts: list[np.ndarray] = []

    with (
        atomic_folder(folder, ours=("tokens.bin", "boundaries.npy", "pack.json")) as temporary,
        (temporary / "tokens.bin").open("wb") as file,
        Progress("tokenize", unit="documents", quiet=quiet) as progress,
    ):
        for texts, blank in text_batches(_texts(documents, split)):
            encoded = [np.concatenate([begin, ids, end]) for ids in encode(tokenizer, texts)]
            lengths = np.array([len(ids) for ids in encoded], np.int64)
            starts.append(counts["n_tokens"] + np.cumsum(lengths) - lengths)
            for ids in encoded:
                file.write(ids.astype(dtype).tobytes())
            counts["n_documents"] += len(texts)
            counts["n_tokens"] += int(lengths.sum())
            counts["n_bytes"] += sum(len(text.encode("utf-8", "replace")) for text in texts)
            counts["n_blank"] += blank
            progress.advance(len(texts), tokens=counts["n_tokens"])
        if not counts["n_documents"]:
            raise EmptyError(
                "no document with text to pack" + (f" in split {split!r}" if split else ""),
                where=folder,
                fix="look at what the steps before it dropped",
            )
        np.save(temporary / "boundaries.npy", np.concatenate(starts))
        write_json(
            temporary / "pack.json",
            {
                "version": VERSION,
                "dtype": dtype.name,
                **counts,
                "vocab_size": vocab_size,
                "bos_token": bos_token,
                "eos_token": eos_token,
                "tokenizer": digest(tokenizer),
            },
        )
    return PackedTokens(folder)


class TokenWindows:
    """Documents end to end, read as windows: the memory-mapped pack and the in-memory stream of bytes are both this.

    `tokens` (n,) of any integer dtype, `boundaries` (documents,) int64 the first token of each; `name` for errors.
    """

    def __init__(self, tokens: np.ndarray, boundaries: np.ndarray, n_bytes: int, name: object) -> None:
        self.tokens, self.boundaries, self.n_bytes, self.name = tokens, boundaries, n_bytes, name
        self.n_tokens, self.n_documents = len(tokens), len(boundaries)

    def __len__(self) -> int:
        return self.n_tokens

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text a token stands for: nats per byte = nats per token / this."""
        return self.n_bytes / self.n_tokens

    def n_windows(self, seq_len: int) -> int:
        """Windows of seq_len + 1 tokens in an epoch: neighbours share one token, so no token is predicted twice."""
        if seq_len < 1:
            raise ConfigError(f"seq_len = {seq_len}", fix="use 1 or more")
        count = (self.n_tokens - 1) // seq_len
        if count < 1:
            raise DataError(
                f"the pack has {self.n_tokens} tokens, a window needs {seq_len + 1}",
                where=self.name,
                fix="use a shorter seq_len or more text",
            )
        return count

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> dict[str, np.ndarray]:
        """Rows `step * batch_size` and following of the endless shuffled sequence of windows: see `rows`."""
        return self.rows(np.arange(step * batch_size, (step + 1) * batch_size), seq_len, seed)

    def rows(self, numbers: np.ndarray, seq_len: int, seed: int) -> dict[str, np.ndarray]:
        """The given rows of the shuffled sequence: `tokens` and `documents`, both int64 (rows, seq_len + 1).

        An epoch is a permutation of all windows (and shifts them by a few tokens, so that the tokens left over at the
        end are not the same each time); `documents` numbers the document that each token belongs to.
        """
        count = self.n_windows(seq_len)
        epochs, index = np.divmod(np.asarray(numbers, np.int64), count)
        starts = np.empty(len(index), np.int64)
        for epoch in np.unique(epochs):
            order, shift = _epoch(count, self.n_tokens - 1 - count * seq_len, seed, int(epoch))
            mine = epochs == epoch
            starts[mine] = order[index[mine]] * seq_len + shift
        return self.at(starts[:, None] + np.arange(seq_len + 1))

    def windows(self, seq_len: int) -> Iterator[dict[str, np.ndarray]]:
        """All tokens in order, as windows of up to seq_len + 1 that begin with the last token of the one before.

        Every token but the very first is a target exactly once. Fields as in `rows`, without the row axis.
        """
        if self.n_tokens < 2:
            raise DataError("the pack has no token to predict", where=self.name)
        for start in range(0, self.n_tokens - 1, seq_len):
            yield self.at(np.arange(start, min(start + seq_len + 1, self.n_tokens)))

    def document(self, number: int) -> np.ndarray:
        """Tokens of one document, begin and end token included, int64."""
        stop = self.boundaries[number + 1] if number + 1 < self.n_documents else self.n_tokens
        return self.tokens[self.boundaries[number] : stop].astype(np.int64)

    def at(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Tokens and document numbers at these positions, both int64, of the positions' shape."""
        documents = np.searchsorted(self.boundaries, positions, side="right") - 1
        return {"tokens": self.tokens[positions].astype(np.int64), "documents": documents.astype(np.int64)}


class PackedTokens(TokenWindows):
    """A pack, opened for reading. With `tokenizer`, refuses a pack that was made with another one."""

    def __init__(self, folder: Path | str, tokenizer: Tokenizer | None = None) -> None:
        self.folder = Path(folder)
        about = _about(self.folder / "pack.json")
        self.vocab_size: int = about["vocab_size"]
        self.tokenizer_digest: str = about["tokenizer"]
        if tokenizer is not None and digest(tokenizer) != self.tokenizer_digest:
            raise DataError(
                "this pack was made with another tokenizer", where=self.folder, fix="pack the documents again"
            )
        boundaries = _boundaries(self.folder / "boundaries.npy", about["n_documents"], about["n_tokens"])
        tokens = _map_tokens(self.folder / "tokens.bin", np.dtype(about["dtype"]), about["n_tokens"])
        super().__init__(tokens, boundaries, about["n_bytes"], self.folder)

    def __reduce__(self) -> tuple[Any, ...]:  # a worker process maps the file again instead of receiving the tokens
        return (PackedTokens, (self.folder,))


@lru_cache(maxsize=8)
def _epoch(count: int, slack: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
    """Order of the windows in one epoch and the shift of all windows."""
    random = rng(seed, "windows", epoch)
    order = random.permutation(count)
    order.flags.writeable = False  # shared by the cache
    return order, int(random.integers(slack + 1))


def _texts(documents: Iterable[str] | Path | Sequence[Path], split: str | None) -> Iterator[str]:
    if isinstance(documents, str):
        raise ConfigError("a single text instead of documents", fix="give a list of texts, or a Path")
    for item in [documents] if isinstance(documents, Path) else documents:
        if isinstance(item, Path):
            yield from file_texts(item, split)
        else:
            yield item


def file_texts(path: Source, split: str | None) -> Iterator[str]:
    """The texts of a corpus file or of all in a folder; with `split`, of the documents whose column says so."""
    import pyarrow.compute as pc

    from bloomery.corpus.documents import texts
    from bloomery.corpus.readers import find_inputs, read_documents
    from bloomery.corpus.steps import kept

    for file in find_inputs(path):
        for batch in map(kept, read_documents(file)):  # without the broken lines of a JSON file
            if split is None:
                yield from texts(batch).to_pylist()
            elif "split" in batch.schema.names:
                chosen = pc.fill_null(pc.equal(batch.column("split"), split), False)
                yield from texts(batch.filter(chosen)).to_pylist()
            else:
                raise DataError("no column 'split'", where=file, fix="run the Split step first")


def text_batches(texts: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """Batches of about `BATCH_CHARS` characters, each with the number of blank texts left out."""
    batch: list[str] = []
    size = blank = 0
    for text in texts:
        if not text or text.isspace():
            blank += 1
            continue
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARS:
            yield batch, blank
            batch, size, blank = [], 0, 0
    if batch or blank:
        yield batch, blank


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the vocabulary must have."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ConfigError(f"the tokenizer has no token {token!r}", fix="name its own with bos_token and eos_token")
    return int(number)


def _about(path: Path) -> dict[str, Any]:
    about = read_json(path)
    fields = {"version", "dtype", "n_documents", "n_tokens", "n_bytes", "vocab_size", "tokenizer"}
    if not isinstance(about, dict) or not fields <= about.keys():
        raise DataError("not the description of a pack", where=path)
    if about["version"] != VERSION or about["dtype"] not in ("uint16", "uint32"):
        raise DataError(
            f"a pack of version {about['version']} with {about['dtype']} tokens", where=path, fix="pack again"
        )
    return about


def _boundaries(path: Path, n_documents: int, n_tokens: int) -> np.ndarray:
    try:
        starts: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the document boundaries: {error}", where=path, fix="pack again") from error
    ordered = starts.dtype == np.int64 and starts.shape == (n_documents,) and (np.diff(starts) > 0).all()
    if not ordered or not n_documents or starts[0] != 0 or starts[-1] >= n_tokens:
        raise DataError("the document boundaries do not fit the pack", where=path, fix="pack again")
    return starts


def _map_tokens(path: Path, dtype: np.dtype, n_tokens: int) -> np.ndarray:
    size = path.stat().st_size if path.is_file() else 0
    if size != n_tokens * dtype.itemsize:
        raise DataError(
            f"{size} bytes, but {n_tokens} tokens need {n_tokens * dtype.itemsize}", where=path, fix="pack again"
        )
    return np.memmap(path, dtype, "r")

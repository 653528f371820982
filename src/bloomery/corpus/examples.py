"""Examples with a loss mask (conversations, question and answer) laid into rows of one length.

Instruction tuning learns the answers only: an example is its token ids and a mask that is 1 where a token is to be
learned. Short examples share a row, none is cut in two, and `documents` keeps attention inside each. As with packed
text, a batch is a pure function of (step, batch size, row length, seed).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from bloomery.core.errors import DataError, EmptyError
from bloomery.core.seeds import rng

PAD_DOCUMENT = -1  # document number of unused room at the end of a row


class PackedExamples:
    """Examples, each `(ids, mask)` of equal length; `n_bytes` is the UTF-8 size of the text that the masks cover.

    An example longer than a row is cut at the row's end; one whose mask is then empty is left out and counted in
    `n_skipped`.
    """

    def __init__(self, examples: Sequence[tuple[Sequence[int], Sequence[int]]], n_bytes: int = 0) -> None:
        for i, (ids, mask) in enumerate(examples):
            if len(ids) != len(mask):
                raise DataError(f"{len(ids)} tokens but {len(mask)} mask values", where=f"example {i}")
        self.examples = [(np.asarray(ids, np.int64), np.asarray(mask, np.int64)) for ids, mask in examples]
        self.n_bytes = n_bytes
        self.n_skipped = 0
        self._rows = lru_cache(maxsize=2)(self._lay_out)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> dict[str, np.ndarray]:
        """Rows `step * batch_size` and following of the endless shuffled sequence of rows.

        `tokens`, `loss_mask` and `documents`, all int64 (batch_size, seq_len + 1).
        """
        rows = self._rows(seq_len)
        epochs, index = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), len(rows["tokens"]))
        chosen = np.empty(batch_size, np.int64)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            chosen[mine] = rng(seed, "examples", epoch).permutation(len(rows["tokens"]))[index[mine]]
        return {name: values[chosen] for name, values in rows.items()}

    def windows(self, seq_len: int) -> Iterator[dict[str, np.ndarray]]:
        """Every row once, in order; fields as in `batch`, without the row axis."""
        rows = self._rows(seq_len)
        for i in range(len(rows["tokens"])):
            yield {name: values[i] for name, values in rows.items()}

    def _lay_out(self, seq_len: int) -> dict[str, np.ndarray]:
        """Next-fit rows, in the order of the examples: three arrays (rows, seq_len + 1)."""
        width = seq_len + 1
        usable = [i for i, (_, mask) in enumerate(self.examples) if mask[1:width].any()]  # a first token has no context
        self.n_skipped = len(self.examples) - len(usable)
        if not usable:
            raise EmptyError(
                f"none of {len(self.examples)} examples has a token to learn within {width} tokens",
                fix="use a longer seq_len or other examples",
            )
        starts: list[tuple[int, int, int]] = []  # (example, row, column)
        row = column = 0
        for i in usable:
            length = min(len(self.examples[i][0]), width)
            if column + length > width:
                row, column = row + 1, 0
            starts.append((i, row, column))
            column += length
        tokens = np.zeros((row + 1, width), np.int64)
        loss_mask = np.zeros((row + 1, width), np.int64)
        documents = np.full((row + 1, width), PAD_DOCUMENT, np.int64)
        for i, row, column in starts:
            ids, mask = self.examples[i]
            place = np.s_[row, column : column + len(ids)]
            room = width - column
            tokens[place], loss_mask[place], documents[place] = ids[:room], mask[:room], i
        loss_mask[np.diff(documents, prepend=-2) != 0] = 0  # the first token of an example follows another example
        return {"tokens": tokens, "loss_mask": loss_mask, "documents": documents}

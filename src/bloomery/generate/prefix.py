"""Shared beginnings of prompts: what attention remembers of them is kept and copied instead of computed again.

A prompt is cut into blocks of `BLOCK` tokens. What a layer remembers of a block depends on the block and on all before
it, so a block is found by a digest of its tokens chained to the digest of the block before. The least recently used
blocks go first when the memory is full.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from bloomery.nn import KVCache

BLOCK = 32  # tokens; shorter beginnings are not worth a look-up

Contents = list[tuple[Tensor, ...]]  # per cache slot: tensors (heads, positions, width)


def block_keys(tokens: Sequence[int]) -> list[bytes]:
    """A digest for every whole block of `tokens`; equal ones mean equal tokens from the first to the block's last."""
    keys, key = [], b""
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        block = array("q", tokens[end - BLOCK : end]).tobytes()
        key = hashlib.blake2b(key + block, digest_size=16).digest()
        keys.append(key)
    return keys


class PrefixStore:
    """Blocks of cache contents, at most `max_bytes` of them.

    `prompts`, `hits` count the look-ups and those that found something; `tokens`, `reused` the prompt tokens looked up
    and those that did not have to be computed.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self.prompts = self.hits = self.tokens = self.reused = 0
        # key → per kind of tensor (slots, heads, BLOCK, width). Oldest first, and a block always after those that
        # continue it: what remains after dropping the oldest can still be reached.
        self._blocks: OrderedDict[bytes, tuple[Tensor, ...]] = OrderedDict()

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._blocks)

    def known(self, tokens: Sequence[int], keys: Sequence[bytes]) -> int:
        """How many of the prompt's leading positions are held, always fewer than it has tokens.

        At least the last token is left to compute: its output decides what comes next.
        """
        usable = keys[: (len(tokens) - 1) // BLOCK]
        return BLOCK * next((i for i, key in enumerate(usable) if key not in self._blocks), len(usable))

    def load(self, cache: KVCache, row: int, begin: int, keys: Sequence[bytes], length: int) -> None:
        """Copy the first `length` positions of the prompt with these keys into a row of a cache, from `begin` on."""
        if length == 0:
            return
        blocks = [self._blocks[key] for key in keys[: -(-length // BLOCK)]]
        for kind, parts in enumerate(zip(*blocks, strict=True)):
            joined = torch.cat(parts, dim=2)[:, :, :length]  # (slots, heads, length, width)
            for slot, contents in zip(cache.slots, joined, strict=True):
                slot.tensors[kind][row, :, begin : begin + length] = contents

    def count(self, tokens: int, reused: int) -> None:
        """Put one look-up into the statistics."""
        self.prompts, self.hits = self.prompts + 1, self.hits + (reused > 0)
        self.tokens, self.reused = self.tokens + tokens, self.reused + reused

    def save(self, contents: Contents, keys: Sequence[bytes]) -> None:
        """Keep the whole blocks of what a row holds; `keys` are those of its tokens, `contents` begins with them."""
        if not keys:
            return
        size = sum(tensor[:, :BLOCK].nbytes for tensors in contents for tensor in tensors)
        keys = keys[: self.max_bytes // size]
        for key in keys:
            if key in self._blocks:  # what is needed anyway must not make room for the rest
                self._blocks.move_to_end(key)
        missing = sum(key not in self._blocks for key in keys)
        while len(self._blocks) and (len(self._blocks) + missing) * size > self.max_bytes:
            self._blocks.popitem(last=False)
        for number, key in reversed(list(enumerate(keys))):
            if key in self._blocks:
                self._blocks.move_to_end(key)
            else:
                span = slice(number * BLOCK, (number + 1) * BLOCK)
                kinds = zip(*contents, strict=True)
                self._blocks[key] = tuple(torch.stack([tensor[:, span] for tensor in kind]) for kind in kinds)
        self.nbytes = len(self._blocks) * size

"""State that belongs to the run and not to a rank, so that another number of ranks can take it up.

ElasticSampler    which samples have been trained on: data-parallel degree n -> m, none lost, none repeated
Rng               generators: the same ranks get their states back, other ranks new ones from the seed
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bloomery.checkpoint.tree import PerRank
from bloomery.core.errors import CheckpointError
from bloomery.core.log import logger
from bloomery.core.seeds import derive, rng

log = logger("checkpoint")


class ElasticSampler:
    """Batches of sample numbers for one data-parallel rank, in an order that all ranks share.

    Every epoch is a permutation of `count` samples from (seed, epoch). A step takes the next `parts · batch_size` of
    it; rank `part` gets its `batch_size` of those. What is left at the end of an epoch is joined to the next one, so no
    sample is dropped. Iterating runs ahead of training as loaders with workers do: call `trained()` after each step;
    that count is what a checkpoint keeps. Usable as `batch_sampler` of a `DataLoader`, or by hand.
    """

    def __init__(self, count: int, batch_size: int, *, part: int = 0, parts: int = 1, seed: int = 0) -> None:
        if count < 1 or batch_size < 1 or not 0 <= part < parts:
            raise CheckpointError(f"no batches of {batch_size} from {count} samples for part {part} of {parts}")
        self.count, self.batch_size, self.part, self.parts, self.seed = count, batch_size, part, parts, seed
        self.consumed = 0  # samples that all ranks together have trained on

    def __iter__(self) -> Iterator[list[int]]:
        """Batches without end, from the first that has not been trained on."""
        at = self.consumed
        while True:
            begin = at + self.part * self.batch_size
            yield [self.sample(position) for position in range(begin, begin + self.batch_size)]
            at += self.parts * self.batch_size

    def sample(self, position: int) -> int:
        """The sample at a position of the endless sequence."""
        epoch, place = divmod(position, self.count)
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._order = epoch, rng(self.seed, "epoch", epoch).permutation(self.count)
        return int(self._order[place])

    def trained(self, steps: int = 1) -> None:
        """Count steps that all ranks have trained on."""
        self.consumed += steps * self.parts * self.batch_size

    def state_dict(self) -> dict[str, int]:
        """Equal on all ranks."""
        return {"consumed": self.consumed, "count": self.count, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after what has been trained on, whatever the number of ranks then was.

        Raises:
            CheckpointError: the samples or their order are not those of the checkpoint.
        """
        if (state["count"], state["seed"]) != (self.count, self.seed):
            then = f"{state['count']} samples with seed {state['seed']}"
            raise CheckpointError(f"the checkpoint counts {then}, this run {self.count} with seed {self.seed}")
        self.consumed = state["consumed"]


class Rng:
    """The global generators of PyTorch (CPU and CUDA), NumPy and Python, on this rank.

    Loaded by as many ranks as saved them, each continues exactly. The state of a generator cannot be divided, so other
    ranks are seeded anew from (seed, number of such changes, rank), and a note says so.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.changes = seed, 0

    def state_dict(self) -> dict[str, Any]:
        """The states of this rank, and what all ranks share."""
        python = random.getstate()
        states = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "numpy": _numpy_state(),
            "python": [python[0], np.array(python[1], np.int64), python[2]],
        }
        return {"seed": self.seed, "changes": self.changes, "states": PerRank(states, required=False)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, or begin anew where the ranks are others."""
        self.seed, self.changes = state["seed"], state["changes"]
        found: PerRank = state["states"]
        if found.value is None:
            self.changes += 1
            fresh = derive(self.seed, "ranks changed", self.changes, found.rank)
            torch.manual_seed(fresh)
            np.random.seed(fresh % 2**32)
            random.seed(fresh)
            log.info("other ranks than saved: generators are seeded anew from the seed %d", self.seed)
            return
        torch.set_rng_state(found.value["torch"])
        if found.value["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(found.value["cuda"])
        name, keys, position, has_gauss, cached = found.value["numpy"]
        np.random.set_state((name, keys, position, has_gauss, cached))
        version, words, gauss = found.value["python"]
        random.setstate((version, tuple(int(word) for word in words), gauss))


def _numpy_state() -> list[Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return [name, np.asarray(keys), *rest]

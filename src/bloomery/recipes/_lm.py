"""What the language-model recipes share: a byte-level corpus, one training run of one arm, and learning rates tuned.

An *arm* is one side of a comparison. `tune` gives every arm the same grid of learning rates on a seed of its own, and
`fit` trains an arm with what it found; so a baseline is tuned exactly as its rival is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bloomery.corpus.bytes_stream import ByteStream
from bloomery.worlds.stdlib_source import sources

if TYPE_CHECKING:
    from torch import nn

    from bloomery.lab.folder import Run
    from bloomery.train import TrainConfig


@dataclass(frozen=True)
class Corpus:
    """Training text and text of held-out modules, as bytes."""

    train: ByteStream
    held_out: HeldOutSample


class HeldOutSample:
    """Evenly spaced windows of a stream, about `n_bytes` of it: a fixed test of a second instead of a minute."""

    def __init__(self, stream: ByteStream, n_bytes: int) -> None:
        self.stream, self.wanted = stream, min(n_bytes, stream.n_bytes)

    @property
    def n_bytes(self) -> int:
        """Bytes of text in the windows (of 128 tokens; other lengths differ by a window)."""
        return sum(int((window["tokens"][1:] < 256).sum()) for window in self.windows(128))

    def windows(self, seq_len: int) -> Iterator[Mapping[str, Any]]:
        """Whole windows of seq_len + 1 tokens."""
        places = self.stream.n_windows(seq_len)
        for number in np.linspace(0, places - 1, max(1, min(places, self.wanted // seq_len))).astype(int):
            begin = int(number) * seq_len
            yield self.stream.at(np.arange(begin, begin + seq_len + 1))


def stdlib_corpus(seed: int, held_out_bytes: int = 100_000, train_bytes: int | None = None) -> Corpus:
    """The standard library's source, split by module; the split depends on `seed` alone."""
    split = sources(seed)
    texts = [file.text for file in split.train]
    if train_bytes is not None:
        total = np.cumsum([len(text) for text in texts])
        texts = texts[: int(np.searchsorted(total, train_bytes)) + 1]
    return Corpus(ByteStream(texts), HeldOutSample(ByteStream([f.text for f in split.held_out]), held_out_bytes))


@dataclass(frozen=True)
class Fit:
    """What one training run gave."""

    loss: float  # held-out, nats per token
    curve: list[tuple[int, float]]  # (tokens seen, held-out loss)
    train_curve: list[tuple[int, float]]  # (optimiser step, training loss)


def fit(
    run: Run,
    model: nn.Module,
    data: Any,
    held: Any,
    config: TrainConfig,
    *,
    log: Callable[..., None] | None = None,
    **options: Any,
) -> Fit:
    """Train `model` in place on `data` and measure it on `held`, `config.eval_every` tokens apart and at the end.

    `options` go to `train` (objective=, after_step=, …).
    """
    from bloomery.train import held_out, next_token, train

    objective = options.pop("objective", next_token)
    curve: list[tuple[int, float]] = []
    train_curve: list[tuple[int, float]] = []
    seen = 0

    def evaluate(model: Any, step: int) -> dict[str, float]:
        loss = held_out(model, held, seq_len=config.seq_len, batch_size=64).nats_per_token
        curve.append((seen, loss))
        return {"held_out": loss}

    def after(step: int, values: Mapping[str, float]) -> None:
        nonlocal seen
        seen = int(values["tokens"])
        train_curve.append((step + 1, values["loss"]))

    hooks = (after, *options.pop("after_step", ()))
    train(model, objective, data, config, evaluate=evaluate, after_step=hooks, log=log, quiet=run.quiet, **options)
    return Fit(curve[-1][1], curve, train_curve)


def tune(rates: Sequence[float], loss: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The rate with the lowest loss, and all losses; walks down or up from the middle while the loss falls.

    `rates` ascend; losses are assumed to have one valley, so most of a wide grid is never tried.
    """
    found: dict[float, float] = {}

    def at(i: int) -> float:
        if rates[i] not in found:
            found[rates[i]] = loss(rates[i])
        return found[rates[i]]

    best = len(rates) // 2
    for step in (-1, 1):
        while 0 <= best + step < len(rates) and at(best + step) < at(best):
            best += step
    at(best)
    return rates[best], dict(sorted(found.items()))

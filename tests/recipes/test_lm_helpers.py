"""What the language-model recipes share: samples of held-out text, and the search for a learning rate."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bloomery.corpus import ByteStream
from bloomery.recipes._lm import HeldOutSample, tune


@given(best=st.integers(0, 6), width=st.floats(0.1, 2.0))
def test_tuning_finds_the_bottom_of_a_valley(best: int, width: float) -> None:
    rates = [10.0**-k for k in range(7)][::-1]
    tried: list[float] = []

    def loss(rate: float) -> float:
        tried.append(rate)
        return width * (rates.index(rate) - best) ** 2

    found, losses = tune(rates, loss)
    assert found == rates[best]
    assert losses[found] == 0
    assert len(tried) == len(set(tried)) == len(losses)


def test_a_sample_is_spread_over_the_text_and_fixed() -> None:
    stream = ByteStream([np.arange(5000) % 256])
    sample = HeldOutSample(stream, 400)
    windows = [window["tokens"] for window in sample.windows(50)]
    assert len(windows) == 8
    assert all(len(window) == 51 for window in windows)
    assert np.array_equal(windows[0], stream.tokens[:51])
    assert len(windows) == len({window.tobytes() for window in windows})
    again = [window["tokens"] for window in HeldOutSample(stream, 400).windows(50)]
    assert all(np.array_equal(a, b) for a, b in zip(windows, again, strict=True))

"""The learning-rate curves: a rate as a pure function of how many tokens of a phase have been seen."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING

from bloomery.core.errors import ConfigError

if TYPE_CHECKING:
    from bloomery.train.config import Phase

FALLING = ("linear", "cosine", "wsd", "inverse_sqrt")  # schedules that arrive at `final_lr`
SCHEDULES = ("constant", *FALLING, "step")


def learning_rate(phase: Phase, tokens: float, start: float = 0.0) -> float:
    """The learning rate `tokens` tokens into `phase`, when warm-up climbs from `start`.

    linear, cosine and inverse_sqrt fall from the end of warm-up to the end of the phase; wsd (warm-up, stable, decay:
    arXiv:2404.06395) stays at the peak until the last `decay_tokens` and then falls linearly. inverse_sqrt is the law
    1 / sqrt(1 + c·progress) that arrives at `final_lr`: steep at first, then ever flatter. step stays constant and is
    multiplied by `step_factor` at every fraction of the phase's tokens in `step_at`.
    """
    if tokens < phase.warmup_tokens:
        return start + (phase.lr - start) * tokens / phase.warmup_tokens
    if phase.schedule == "constant":
        return phase.lr
    if phase.schedule == "step":
        return phase.lr * phase.step_factor ** sum(tokens >= at * phase.tokens for at in phase.step_at)
    falling = phase.decay_tokens if phase.schedule == "wsd" else phase.tokens - phase.warmup_tokens
    fallen = 1.0 if falling == 0 else min(max(1 - (phase.tokens - tokens) / falling, 0.0), 1.0)
    if phase.schedule == "inverse_sqrt":
        return phase.lr / math.sqrt(1 + ((phase.lr / phase.final_lr) ** 2 - 1) * fallen)
    kept = (1 + math.cos(math.pi * fallen)) / 2 if phase.schedule == "cosine" else 1 - fallen
    return phase.final_lr + (phase.lr - phase.final_lr) * kept


def tokens_until(phase: Phase, fraction: float) -> int:
    """Tokens of `phase` after which its rate has fallen to `fraction` of `lr`, warm-up included.

    A rate that never falls so far is a `ConfigError`.
    """
    wanted = phase.lr * fraction * (1 + 1e-9)  # a curve that ends exactly there may miss it by a rounding
    after = range(phase.warmup_tokens, phase.tokens + 1)  # the rate never rises here
    found = bisect_left(after, True, key=lambda tokens: learning_rate(phase, tokens) <= wanted)
    if found == len(after):
        least = learning_rate(phase, phase.tokens) / phase.lr
        raise ConfigError(
            f"at_lr is {fraction!r}, but the rate falls to {least:.3g} of lr only", fix="use a larger one"
        )
    return after[found]

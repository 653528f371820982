"""Skip a step whose gradient is off the scale: parameters, optimiser state and step count stay as if it never came.

One broken batch can undo hours of training: its gradient moves the weights little, since it is clipped, but it fills
the optimiser's running averages for hundreds of steps. So a step is admitted only below a limit on the gradient's
global norm (before clipping), which is a fixed number, a multiple of the running mean of the admitted norms, or both
(Apple's foundation models, arXiv:2407.21075; the running mean as in axlearn).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DECAY = 0.99  # of the running mean of norms


@dataclass
class Guard:
    """What is remembered of gradient norms: plain numbers, for a checkpoint to keep."""

    admitted: int = 0
    mean: float = 1.0  # running mean of admitted norms; 1 before the first, so that a multiple of it means something
    skipped: int = 0
    in_a_row: int = 0  # skipped since the last admitted step

    def admits(
        self, norm: float, *, limit: float | None = None, multiple: float | None = None, decay: float = DECAY
    ) -> bool:
        """Whether a step with this gradient norm may be taken: it is below `limit` and `multiple` times the mean.

        A norm that is not finite is never admitted. The running mean follows admitted norms only, with the decay of
        Adafactor's bias correction (arXiv:1804.04235, section 7.1): after the first norm it is that norm.
        """
        below = min(math.inf if limit is None else limit, math.inf if multiple is None else multiple * self.mean)
        if not norm < below:  # also when norm is NaN
            self.skipped += 1
            self.in_a_row += 1
            return False
        self.admitted += 1
        self.in_a_row = 0
        kept = decay * (1 - decay ** (self.admitted - 1)) / (1 - decay**self.admitted)
        self.mean = kept * self.mean + (1 - kept) * norm
        return True

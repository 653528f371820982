"""NormHead: an output matrix whose rows or columns have length one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

HeadNorm = Literal["none", "hidden", "vocab"]
EPS = 1e-7


def normalised_head(weight: Tensor, axis: HeadNorm) -> Tensor:
    """weight (vocab, dim) divided by its norms; the parameter itself is never changed.

    "hidden": every hidden column by its norm over the vocabulary, as the released code of Ling does
    (arXiv:2503.05139 §2.2); "vocab": every token's row by its norm over the features, as Baichuan 2 does
    (arXiv:2309.10305). No gradient flows through the norms, as in both. The released code of Ling overwrites the
    parameter at its first evaluation, so that evaluating in the middle of training changes what is trained; here
    training and evaluation compute the same function.
    """
    if axis == "none":
        return weight
    norms = weight.detach().norm(dim=0 if axis == "hidden" else 1, keepdim=True)
    return weight / (norms + EPS)

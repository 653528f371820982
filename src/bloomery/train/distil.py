"""A small transformer that learns the labels of a large one: a scorer for `corpus` made of a byte-level decoder.

The last position's hidden state goes through one linear layer; the loss is the cross-entropy with the soft label
(arXiv 2406.04638 distils into an encoder with such a head). Texts are cut to `seq_len` bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloomery.core.devices import pick_device
from bloomery.core.errors import DataError
from bloomery.core.hashing import hash64
from bloomery.core.seeds import generator, rng
from bloomery.models import Decoder, preset

EDGE, VOCAB = 256, 257  # the token before each text; bytes and that
BATCH = 32


class TransformerScorer:
    """P(good) of a text's first `seq_len` bytes under a fine-tuned decoder."""

    def __init__(self, trunk: Decoder, head: nn.Linear, seq_len: int, name: str) -> None:
        self.trunk, self.head, self.seq_len, self.name = trunk, head, seq_len, name

    @classmethod
    def train(
        cls,
        texts: Sequence[str],
        labels: np.ndarray,
        *,
        dim: int = 64,
        depth: int = 2,
        seq_len: int = 256,
        epochs: int = 2,
        rate: float = 2e-3,
        name: str = "llm",
        seed: int = 0,
    ) -> TransformerScorer:
        """Fit fresh weights to the labels (numbers from 0 to 1) by AdamW, linear decay, batches of 32."""
        if len(texts) != len(labels) or not len(texts):
            raise DataError(f"{len(labels)} labels for {len(texts)} texts")
        config = replace(
            preset("llama-tiny"), vocab_size=VOCAB, dim=dim, n_layers=depth, n_heads=dim // 32, n_kv_heads=dim // 32,
            ffn_dim=3 * dim, max_positions=seq_len + 1,
        )  # fmt: skip
        device = pick_device()
        trunk = Decoder(config, generator(seed, "distil")).to(device)
        head = nn.Linear(dim, 1).to(device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        scorer = cls(trunk, head, seq_len, name)
        parameters = [*trunk.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
        random, targets = rng(seed, "distil"), torch.as_tensor(np.asarray(labels), dtype=torch.float32)
        batches = [
            b for _ in range(epochs) for b in np.array_split(random.permutation(len(texts)), -(-len(texts) // BATCH))
        ]
        trunk.train()
        for step, rows in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / len(batches))
            logits = scorer._logits([texts[i] for i in rows])
            loss = F.binary_cross_entropy_with_logits(logits, targets[torch.from_numpy(rows)].to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        trunk.eval()
        return scorer

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Probability of a good label: float32 (texts,)."""
        with torch.inference_mode():
            parts = [torch.sigmoid(self._logits(texts[i : i + BATCH])).cpu() for i in range(0, len(texts), BATCH)]
        return torch.cat(parts).numpy() if parts else np.zeros(0, dtype=np.float32)

    def _logits(self, texts: Sequence[str]) -> Tensor:
        """(texts,) from the hidden state of each text's last byte."""
        rows = [[EDGE, *text.encode("utf-8", "replace")[: self.seq_len]] for text in texts]
        length = max(map(len, rows))
        device = self.head.weight.device
        tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)  # (texts, length)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        hidden = self.trunk(tokens).hidden[torch.arange(len(rows), device=device), last]  # (texts, dim)
        return self.head(hidden.float())[:, 0]

    def fingerprint(self) -> dict[str, Any]:
        """Name and weights."""
        weights = b"".join(
            p.detach().cpu().numpy().tobytes() for p in (*self.trunk.parameters(), *self.head.parameters())
        )
        return {"scorer": "transformer", "name": self.name, "seq_len": self.seq_len, "weights": hash64(weights)}

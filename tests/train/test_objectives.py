from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from bloomery.models import Decoder, DecoderConfig, MoEConfig
from bloomery.train import next_token

CONFIG = DecoderConfig(vocab_size=31, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, ffn_dim=24)


@pytest.fixture
def model() -> Decoder:
    model = Decoder(CONFIG).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def batch(rows: int = 3, length: int = 12) -> dict[str, torch.Tensor]:
    return {"tokens": torch.randint(31, (rows, length), generator=torch.Generator().manual_seed(2))}


def test_it_is_the_summed_cross_entropy_of_the_next_token(model: Decoder) -> None:
    data = batch()
    loss, metrics = next_token(model, data)
    logits = model(data["tokens"][:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), data["tokens"][:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert int(metrics["weight"]) == 3 * 11
    ours = torch.autograd.grad(loss, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_only_masked_in_tokens_are_targets(model: Decoder) -> None:
    data = batch()
    data["loss_mask"] = torch.zeros(3, 12, dtype=torch.int64)
    data["loss_mask"][0, 4:7] = 1
    data["loss_mask"][2, 0] = 1  # the first token is nobody's target
    loss, metrics = next_token(model, data)
    log_p = model(data["tokens"][:, :-1]).logits.log_softmax(-1)
    expected = -sum(log_p[0, i - 1, data["tokens"][0, i]] for i in range(4, 7))
    torch.testing.assert_close(loss, torch.as_tensor(expected))
    assert int(metrics["weight"]) == 3


def test_packed_documents_train_as_if_alone(model: Decoder) -> None:
    tokens = batch(1, 14)["tokens"]
    cuts = [0, 5, 6, 14]  # the middle document has one token and no target
    documents = torch.tensor([[7] * 5 + [8] + [9] * 8])
    loss, metrics = next_token(model, {"tokens": tokens, "documents": documents})
    alone = [next_token(model, {"tokens": tokens[:, a:b]}) for a, b in pairwise(cuts) if b - a > 1]
    torch.testing.assert_close(loss, sum(part for part, _ in alone))
    assert int(metrics["weight"]) == sum(int(m["weight"]) for _, m in alone) == 4 + 7
    changed = tokens.clone()
    changed[0, :5] = 0
    later = {"tokens": changed, "documents": documents, "loss_mask": (documents == 9).long()}
    before = {"tokens": tokens, "documents": documents, "loss_mask": (documents == 9).long()}
    torch.testing.assert_close(next_token(model, later)[0], next_token(model, before)[0])


def test_a_batch_without_targets_gives_zero_and_no_gradient(model: Decoder) -> None:
    data = batch() | {"loss_mask": torch.zeros(3, 12)}
    loss, metrics = next_token(model, data)
    loss.backward()
    assert (loss.item(), int(metrics["weight"])) == (0.0, 0)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_decoders_own_terms_are_added_in_training_only() -> None:
    moe = MoEConfig(n_experts=4, top_k=2, expert_dim=8, balance=0.5, z_loss=0.25)
    config = DecoderConfig(**CONFIG.to_dict() | {"moe": moe, "z_loss": 0.1})
    model, data = Decoder(config).double(), batch()
    loss, metrics = next_token(model.train(), data)
    output = model(data["tokens"][:, :-1])
    logits, targets = output.logits.flatten(0, 1), data["tokens"][:, 1:].flatten()
    plain = F.cross_entropy(logits, targets, reduction="sum")
    extra = 0.5 * output.aux["balance"] + 0.25 * output.aux["z"]
    torch.testing.assert_close(loss, plain + 0.1 * logits.logsumexp(-1).square().sum() + 33 * extra)
    torch.testing.assert_close(metrics["moe_balance"], 33 * output.aux["balance"].detach())
    assert 1 <= metrics["moe_load"] / 33 <= 2  # two of four experts each
    evaluated, metrics = next_token(model.eval(), data)
    torch.testing.assert_close(evaluated, plain)
    assert set(metrics) == {"weight"}

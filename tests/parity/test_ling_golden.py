"""Ling against vectors computed with the released code: whole models, gradients, router, NormHead, cached decoding.

Every case that the folder holds is run; sizes, seeds and tolerances come from the case's own file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bloomery.models import Decoder, load_pretrained
from bloomery.models import ling as family
from bloomery.nn import IGNORE, KVCache, Router, linear_cross_entropy, normalised_head

LOGITS, LOSS, GRADIENTS = 2e-5, 1e-5, 1e-4  # of the largest expected value; the loss relative


def cases(golden_root: Path, prefix: str) -> list[Path]:
    found = sorted((golden_root / "ling").glob(f"{prefix}*.json"))
    if not found:
        pytest.skip(f"no case {prefix}* in {golden_root / 'ling'}")
    return found


def load(path: Path, tmp_path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Decoder]:
    """The case, its tensors, and our decoder read from its weights as from a published folder."""
    case, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    folder = tmp_path / path.stem
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bailing_moe", **case["config"]}))
    save_file({name[2:]: t for name, t in tensors.items() if name.startswith("w.")}, folder / "model.safetensors")
    return case, tensors, load_pretrained(folder)


def assert_near(ours: Tensor, expected: Tensor, share: float, what: str) -> None:
    error, scale = (ours - expected).abs().max().item(), expected.abs().max().item()
    assert error <= share * scale, f"{what}: {error:.2e} of {scale:.2e}"


def test_whole_models(golden_root: Path, tmp_path: Path) -> None:
    for path in cases(golden_root, "model_"):
        _, tensors, model = load(path, tmp_path)
        ids, mask, labels = tensors["in.input_ids"], tensors["in.attention_mask"].bool(), tensors["in.labels"]
        assert mask[:, 0].all(), "padding stands at the right, where nothing real sees it"
        with torch.no_grad():
            assert_near(model.eval()(ids).logits[mask], tensors["out.logits"][mask], LOGITS, f"{path.stem} logits")
        output = model.train()(ids)
        assert_near(output.logits[mask], tensors["out.train_logits"][mask], LOGITS, f"{path.stem} training logits")
        targets = labels[:, 1:].masked_fill(labels[:, 1:] < 0, IGNORE)
        loss = linear_cross_entropy(output.hidden[:, :-1], model.head_weight, targets)
        assert abs(loss.item() / tensors["out.loss"].item() - 1) <= LOSS, path.stem
        loss.backward()
        shadow = Decoder(model.config)
        for place, parameter in zip(shadow.parameters(), model.parameters(), strict=True):
            assert parameter.grad is not None
            place.data = parameter.grad
        for name, gradient in family.KEYS.tensors(shadow).items():
            assert_near(gradient, tensors[f"out.grad.{name}"], GRADIENTS, f"{path.stem} gradient of {name}")


def test_evaluation_in_the_middle_of_training_changes_nothing(golden_root: Path, tmp_path: Path) -> None:
    for path in cases(golden_root, "model_normhead"):
        _, tensors, model = load(path, tmp_path)
        with torch.no_grad():
            first = model.train()(tensors["in.input_ids"]).logits
            model.eval()(tensors["in.input_ids"]).logits.sum()
            assert torch.equal(model.train()(tensors["in.input_ids"]).logits, first)
        assert model.head is not None
        assert torch.equal(model.head.weight, tensors["w.lm_head.weight"])
        assert_near(model.head_weight, tensors["out.head_weight_after_eval"], LOGITS, "normalised head")


@torch.no_grad()
def test_cached_decoding(golden_root: Path, tmp_path: Path) -> None:
    for path in cases(golden_root, "cached_decoding"):
        _, tensors, model = load(path, tmp_path)
        ids = tensors["in.input_ids"]
        steps = [6, *[1] * (ids.shape[1] - 6)]
        cache = KVCache(model.config, len(ids), ids.shape[1])
        logits = torch.cat([model(part, cache=cache).logits for part in ids.split(steps, dim=1)], dim=1)
        assert_near(logits, tensors["out.logits"], LOGITS, path.stem)
        held = {name: tensor for name, tensor in tensors.items() if name.startswith("out.") and "logits" not in name}
        assert held, "the case holds the final cache"
        for slot, number in zip(cache.slots, range(len(cache.slots)), strict=True):
            for kind, tensor in zip(("key", "value"), slot.tensors, strict=True):
                name = next(n for n in held if str(number) in n and kind in n)
                assert_near(tensor, held[name], LOGITS, name)


def test_router(golden_root: Path) -> None:
    for path in cases(golden_root, "gate_"):
        case, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
        config = case["config"]
        x = tensors["in.hidden_states"].flatten(0, 1).requires_grad_()
        n_experts, top_k = config["num_experts"], config["num_experts_per_tok"]
        router = Router(x.shape[1], n_experts, top_k, renormalise=config["norm_topk_prob"])
        with torch.no_grad():
            router.weight.copy_(tensors["w.weight"])
        routing = router(x)
        assert torch.equal(routing.experts, tensors["out.topk_index"])
        (routing.weights * tensors["in.grad_weights"]).sum().backward()
        assert x.grad is not None
        assert router.weight.grad is not None
        for ours, name in [
            (routing.weights, "topk_weight"),
            (routing.logits, "logits"),
            (x.grad.view_as(tensors["in.hidden_states"]), "grad.hidden_states"),
            (router.weight.grad, "grad.weight"),
        ]:
            expected = tensors[f"out.{name}"]
            assert (ours - expected).abs().max() <= 1e-5 * max(1, expected.abs().max()), f"{path.stem} {name}"


@pytest.mark.parametrize(("dtype", "kind", "share"), [(torch.float32, "out", 1e-5), (torch.float64, "out64", 1e-10)])
def test_norm_head(golden_root: Path, dtype: torch.dtype, kind: str, share: float) -> None:
    for path in cases(golden_root, "norm_head"):
        tensors = load_file(path.with_suffix(".safetensors"))
        weight = tensors["w.lm_head.weight"].to(dtype).requires_grad_()
        hidden = tensors["in.hidden_states"].to(dtype).requires_grad_()
        logits = hidden @ normalised_head(weight, "hidden").T
        (logits * tensors["in.grad_logits"].to(dtype)).sum().backward()
        for ours, name in [(logits, "logits"), (hidden.grad, "grad_hidden"), (weight.grad, "grad_weight")]:
            expected = tensors[f"{kind}.train.{name}"]
            assert ours is not None
            assert (ours - expected).abs().max() <= share * max(1, expected.abs().max()), name

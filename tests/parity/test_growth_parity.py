"""Grown folders against a passthrough merge and against `transformers`: same bytes, same numbers.

The merge is written out here from its definition; where `mergekit` is installed, it is asked as well.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bloomery.models import load_pretrained
from bloomery.models.growth import GrowthPlan, grow, layer_similarity
from bloomery.models.growth_folder import grow_pretrained

transformers = pytest.importorskip("transformers", reason="parity needs transformers")

LOGITS, COSINE = 1e-5, 1e-5
SIZES: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 90, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 32, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}, "tie_word_embeddings": False,
}  # fmt: skip
SLICES = [(0, 5), (2, 5), (5, 6)]
PLAN = GrowthPlan.block(6, 2, 5)
TOKENS = torch.randint(101, (3, 45), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded Llama folder that transformers has written, every weight drawn at random."""
    dtype = getattr(torch, request.param)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=1.2 / parameter.shape[1] ** 0.5, generator=generator)
            else:
                parameter.normal_(mean=1.0, std=0.3, generator=generator)
    folder = tmp_path_factory.mktemp("base") / request.param
    model.to(dtype).save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.fixture
def grown(base: Path, tmp_path: Path) -> Path:
    grow_pretrained(base, tmp_path / "grown", PLAN, shard_bytes=50_000, quiet=True)
    return tmp_path / "grown"


def stored(folder: Path) -> Iterator[tuple[str, tuple[str, tuple[int, ...], bytes]]]:
    """(name, (type, shape, bytes)) of every tensor of a folder, from the file format's definition alone."""
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                yield name, (entry["dtype"], tuple(entry["shape"]), data[begin:end])


def passthrough(folder: Path, slices: list[tuple[int, int]]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What stacking half-open ranges of layers in order makes of a folder's tensors."""
    tensors = dict(stored(folder))
    merged = {name: value for name, value in tensors.items() if not name.startswith("model.layers.")}
    new = 0
    for begin, end in slices:
        for old in range(begin, end):
            prefix = f"model.layers.{old}."
            for name in tensors:
                if name.startswith(prefix):
                    merged[f"model.layers.{new}.{name.removeprefix(prefix)}"] = tensors[name]
            new += 1
    return merged


def test_a_block_is_a_passthrough_merge_byte_for_byte(base: Path, grown: Path) -> None:
    ours, theirs = dict(stored(grown)), passthrough(base, SLICES)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 9 * 9 + 3
    assert all(ours[name] == theirs[name] for name in theirs)
    config = json.loads((base / "config.json").read_text())
    assert json.loads((grown / "config.json").read_text()) == config | {"num_hidden_layers": 9}


def test_mergekit_makes_the_same_bytes(base: Path, grown: Path, tmp_path: Path) -> None:
    merge = pytest.importorskip("mergekit.merge", reason="the peer is not installed")
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

    dtype = json.loads((base / "config.json").read_text())["dtype"]
    slices = [{"sources": [{"model": str(base), "layer_range": [a, b]}]} for a, b in SLICES]
    recipe = yaml.safe_dump({"merge_method": "passthrough", "slices": slices, "dtype": dtype})
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe))
    merge.run_merge(
        config, str(tmp_path / "theirs"), MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    )
    ours, theirs = dict(stored(grown)), dict(stored(tmp_path / "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in theirs)


@torch.no_grad()
def test_transformers_computes_the_same(base: Path, grown: Path, record_property: Any) -> None:
    theirs = transformers.LlamaForCausalLM.from_pretrained(grown, dtype=torch.float32).eval()
    logits = theirs(TOKENS).logits
    ours = load_pretrained(grown, dtype="float32")(TOKENS).logits
    assert theirs.config.num_hidden_layers == 9
    assert 0.5 < logits.std() < 10, "the comparison must be on a meaningful scale"
    error = (logits - ours).abs().max().item()
    record_property("logits", error)
    assert error <= LOGITS
    in_memory = grow(load_pretrained(base, dtype="float32"), PLAN)(TOKENS).logits
    assert torch.equal(in_memory, ours)


@pytest.mark.parametrize("plan", [PLAN, GrowthPlan.interleave(6, [0, 3, 5])])
@torch.no_grad()
def test_copies_without_effect_equal_the_base_in_transformers(base: Path, plan: GrowthPlan, tmp_path: Path) -> None:
    silent = GrowthPlan(6, plan.sources, 0.0, plan.layout)
    grow_pretrained(base, tmp_path / "silent", silent, quiet=True)
    before = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()(TOKENS).logits
    after = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "silent", dtype=torch.float32).eval()
    assert after.config.num_hidden_layers == 9
    assert (after(TOKENS).logits - before).abs().max() <= 1e-6


@torch.no_grad()
def test_the_layer_report_agrees_with_their_hidden_states(base: Path, record_property: Any) -> None:
    """Their last hidden state is after the final norm, so the last layer's output is caught by a hook."""
    theirs = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    last: list[torch.Tensor] = []
    theirs.model.norm.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    states = theirs(TOKENS, output_hidden_states=True).hidden_states
    stream = [*states[:-1], last[0]]
    assert len(stream) == 7
    expected = [torch.nn.functional.cosine_similarity(a, b, dim=-1) for a, b in pairwise(stream)]
    report = layer_similarity(load_pretrained(base, dtype="float32"), [{"tokens": TOKENS}])
    error = max(abs(c.mean().item() - ours) for c, ours in zip(expected, report.cosine, strict=True))
    first = max(abs(c[:, 1:].mean().item() - ours) for c, ours in zip(expected, report.without_first, strict=True))
    record_property("cosine", max(error, first))
    assert max(error, first) <= COSINE
    after_norm = torch.nn.functional.cosine_similarity(states[-2], states[-1], dim=-1).mean().item()
    assert abs(after_norm - report.cosine[-1]) > 100 * COSINE

"""The map between the names of a published checkpoint and places in a decoder: one table of spellings per family.

Every value of the map is a view. Copying into it imports a tensor, reading it exports one. Matrices that we keep fused
or packed (q, k, v; gate, up; the experts) appear as ranges of rows, so neither direction needs a conversion.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bloomery.models.decoder import Block, Decoder
from bloomery.nn import MLP, GatedMLP, GQAttention, MLAttention, MoE


@dataclass(frozen=True)
class Keys:
    """How a family spells its tensors; what a family does not have is never looked up. `{}` is a number."""

    embed: str = "model.embed_tokens"
    layer: str = "model.layers.{}."
    norm: str = "model.norm"
    head: str = "lm_head"
    # within a layer
    norm1: str = "input_layernorm"
    norm2: str = "post_attention_layernorm"  # the name says where it stands: before the feed-forward layer
    post1: str = "post_attn_norm"
    post2: str = "post_ffn_norm"
    attn: str = "self_attn."
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # or one name, when they are stored as one matrix
    out: str = "o_proj"
    mlp: str = "mlp."
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    # a mixture of experts
    moe: str = "mlp."
    router: str = "gate"
    expert: str = "experts.{}."
    expert_gate: str = "gate_proj"
    expert_up: str = "up_proj"
    expert_down: str = "down_proj"
    shared: str = "shared_experts."
    renamed: tuple[tuple[str, str], ...] = ()  # endings of older spellings and of the current one

    @property
    def embedding(self) -> str:
        """The name of the token embedding."""
        return f"{self.embed}.weight"

    @property
    def head_weight(self) -> str:
        """The name of the output matrix."""
        return f"{self.head}.weight"

    def current(self, name: str) -> str:
        """The current spelling of a stored name."""
        for old, new in self.renamed:
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name

    def tensors(self, model: Decoder) -> dict[str, Tensor]:
        """Published name → its place in the model's memory."""
        table = {self.embedding: model.embed.weight.detach()}
        for number, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            prefix = self.layer.format(number)
            table.update((prefix + name, view) for name, view in self._block(block).items())
        table |= _whole(self.norm, model.norm)
        if model.head is not None:
            table |= _whole(self.head, model.head)
        return table

    def _block(self, block: Block) -> dict[str, Tensor]:
        norms = {self.norm1: block.norm1, self.norm2: block.norm2, self.post1: block.post1, self.post2: block.post2}
        table: dict[str, Tensor] = {}
        for name, norm in norms.items():
            table |= _whole(name, norm)
        attn, ffn = block.attn, block.ffn
        table |= _prefixed(self.attn, self._attention(attn))
        return table | (self._experts(ffn) if isinstance(ffn, MoE) else _prefixed(self.mlp, self._mlp(ffn)))

    def _attention(self, attn: nn.Module) -> dict[str, Tensor]:
        if isinstance(attn, MLAttention):
            return _latent_attention(attn)
        assert isinstance(attn, GQAttention)
        q, kv = attn.n_heads * attn.head_dim, attn.n_kv_heads * attn.head_dim
        heights = [q, kv, kv] if len(self.qkv) == 3 else [q + 2 * kv]
        table = _rows(attn.qkv, dict(zip(self.qkv, heights, strict=True))) | _whole(self.out, attn.out)
        if attn.qk_norm != "none":
            table |= _whole("q_norm", attn.q_norm) | _whole("k_norm", attn.k_norm)
        return table

    def _mlp(self, mlp: nn.Module) -> dict[str, Tensor]:
        if isinstance(mlp, MLP):
            return _whole(self.up, mlp.up) | _whole(self.down, mlp.down)
        assert isinstance(mlp, GatedMLP)
        hidden = mlp.down.in_features
        return _rows(mlp.gate_up, {self.gate: hidden, self.up: hidden}) | _whole(self.down, mlp.down)

    def _experts(self, moe: MoE) -> dict[str, Tensor]:
        table = {f"{self.moe}{self.router}.weight": moe.router.weight.detach()}
        gate, up = moe.gate_up.detach().chunk(2, dim=1)
        named = {self.expert_gate: gate, self.expert_up: up, self.expert_down: moe.down.detach()}
        for number in range(moe.n_experts):
            prefix = self.moe + self.expert.format(number)
            table.update((f"{prefix}{name}.weight", packed[number]) for name, packed in named.items())
        return table if moe.shared is None else table | _prefixed(self.moe + self.shared, self._mlp(moe.shared))


def _latent_attention(attn: MLAttention) -> dict[str, Tensor]:
    """DeepSeek's spelling."""
    q = "q_proj" if attn.q_rank is None else "q_a_proj"
    table = _rows(attn.down, {q: attn.q_width, "kv_a_proj_with_mqa": attn.kv_rank + attn.rope_dim})
    if attn.q_rank is not None:
        table |= _whole("q_a_layernorm", attn.q_norm) | _whole("q_b_proj", attn.q_up)
    return table | _whole("kv_a_layernorm", attn.kv_norm) | _whole("kv_b_proj", attn.kv_up) | _whole("o_proj", attn.out)


def _whole(name: str, module: nn.Module) -> dict[str, Tensor]:
    """All parameters of a layer under its name; of a layer that is not there, none."""
    return {f"{name}.{kind}": parameter.detach() for kind, parameter in module.named_parameters()}


def _rows(linear: nn.Linear, heights: dict[str, int]) -> dict[str, Tensor]:
    """The weight (and bias, if there is one) of a linear layer as named row ranges of the given heights."""
    rows = {}
    for kind, fused in linear.named_parameters():
        for name, view in zip(heights, fused.detach().split(list(heights.values())), strict=True):
            rows[f"{name}.{kind}"] = view
    return rows


def _prefixed(prefix: str, table: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: view for name, view in table.items()}

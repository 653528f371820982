"""One mixture of experts for every family: Grok-1, Mixtral, DeepSeekMoE (arXiv:2401.06066), Ling (arXiv:2503.05139).

```text
x ─┬ router ─ scores ─ top k ─ weights ┐
   ├ k of n experts, each a gated MLP ─┴ weighted sum ─ + ─ out
   └ shared expert, always on ────────────────────────┘
```

Routing, its softmax and every statistic are float32 at least. Tokens are sorted by expert and go through one grouped
product per matrix. Nothing is dropped unless `capacity` asks for it. Capacity is per expert and over the whole
batch; DeepSeek-V2's is per device, with a tenth of the sequences exempt (arXiv:2405.04434 §2.2.4), which is left out.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloomery.nn.grouped import grouped_linear
from bloomery.nn.mlp import ACTIVATIONS, Activation, GatedMLP

ScoreKind = Literal["softmax", "sigmoid"]
GroupScore = Literal["max", "top2"]
BalanceScope = Literal["sequence", "batch"]
MOMENTUM = 0.99  # of the running mean and spread of router logits during the routing warm-up


class Routing(NamedTuple):
    """Where tokens go: experts and weights (tokens, k), and the router's clean logits (tokens, experts)."""

    experts: Tensor
    weights: Tensor
    logits: Tensor


class Router(nn.Module):
    """Scores of all experts, and the choice among them.

    Group-limited routing (arXiv:2405.04434 §2.2.2): the experts form `n_groups` runs of equal length, and only those
    in the `top_groups` best groups can be chosen; a group is as good as its best expert ("max") or the sum of its best
    two ("top2"). As in the released code, experts outside count as score 0. `renormalise` divides the chosen weights
    by their sum; `scale` multiplies them.

    Stochastic warm-up (arXiv:2503.05139 §2.1): during the first `warmup` forward passes in training, logits s become
    a · s + (1 - a) · (μ + σ · ε), a = passes / warmup, with running mean and spread μ, σ of s and normal noise ε:
    purely random, hence balanced, at first. That μ and σ are scalars of the layer, with momentum 0.99, is our choice.
    """

    passes: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        dim: int,
        n_experts: int,
        top_k: int,
        *,
        score: ScoreKind = "softmax",
        renormalise: bool = False,
        scale: float = 1.0,
        n_groups: int = 1,
        top_groups: int = 1,
        group_score: GroupScore = "max",
        warmup: int = 0,
    ) -> None:
        super().__init__()
        self.top_k, self.score, self.renormalise, self.scale = top_k, score, renormalise, scale
        self.n_groups, self.top_groups, self.group_score, self.warmup = n_groups, top_groups, group_score, warmup
        self.weight = nn.Parameter(torch.empty(n_experts, dim).normal_(std=dim**-0.5))
        if warmup:  # part of the state: a resumed run goes on with it
            self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
            self.register_buffer("mean", torch.zeros(()))
            self.register_buffer("spread", torch.ones(()))

    def forward(self, x: Tensor) -> Routing:
        """Route tokens x (tokens, dim)."""
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x)
        exact = torch.promote_types(x.dtype, torch.float32)
        logits = F.linear(x.to(exact), self.weight.to(exact))  # (tokens, experts)
        used = self._warm(logits) if self.warmup and self.training else logits
        scores = used.softmax(-1) if self.score == "softmax" else used.sigmoid()
        open_scores = self._limit_groups(scores) if self.top_groups < self.n_groups else scores
        weights, experts = open_scores.topk(self.top_k, dim=-1)
        if self.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return Routing(experts, weights if self.scale == 1.0 else weights * self.scale, logits)

    def _limit_groups(self, scores: Tensor) -> Tensor:
        groups = scores.view(len(scores), self.n_groups, -1)  # (tokens, groups, experts in a group)
        best = groups.amax(-1) if self.group_score == "max" else groups.topk(2, dim=-1).values.sum(-1)
        chosen = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(self.top_groups, dim=-1).indices, True)
        return groups.masked_fill(~chosen[:, :, None], 0.0).flatten(1)

    def _warm(self, logits: Tensor) -> Tensor:
        with torch.no_grad():
            share = (self.passes.double() / self.warmup).clamp(max=1.0).to(logits.dtype)
            kept = torch.where(self.passes == 0, 0.0, MOMENTUM)  # the first pass sets the statistics
            self.mean.copy_(kept * self.mean + (1 - kept) * logits.mean())
            self.spread.copy_(kept * self.spread + (1 - kept) * logits.std())
            noise = self.mean + self.spread * torch.randn_like(logits)
            self.passes += 1
        return share * logits + (1 - share) * noise


class MoE(nn.Module):
    """`n_experts` gated MLPs of width `expert_dim`, `top_k` of them per token, beside a shared one of `shared_dim`.

    The experts' matrices are packed: gate_up (experts, 2 · expert_dim, dim), gate's rows first, and down (experts,
    dim, expert_dim). With `capacity` c, an expert takes at most ceil(c · tokens · top_k / n_experts) tokens in
    training, those with the largest weights; the rest pass it by.
    """

    def __init__(
        self,
        dim: int,
        n_experts: int,
        top_k: int,
        expert_dim: int,
        *,
        shared_dim: int = 0,
        activation: Activation = "silu",
        capacity: float | None = None,
        router: Router | None = None,
    ) -> None:
        super().__init__()
        self.n_experts, self.top_k, self.expert_dim = n_experts, top_k, expert_dim
        self.activation, self.capacity = activation, capacity
        self.router = Router(dim, n_experts, top_k) if router is None else router
        self.gate_up = nn.Parameter(torch.empty(n_experts, 2 * expert_dim, dim).normal_(std=dim**-0.5))
        self.down = nn.Parameter(torch.empty(n_experts, dim, expert_dim).normal_(std=expert_dim**-0.5))
        self.shared = GatedMLP(dim, shared_dim, activation=activation) if shared_dim else None

    def forward(self, x: Tensor, routings: list[Routing] | None = None) -> Tensor:
        """x (batch, seq, dim) to the same shape; appends what was decided to `routings`, where one is given."""
        rows = x.flatten(0, -2)  # (tokens, dim)
        routing = self.router(rows)
        if routings is not None:
            routings.append(routing)
        single = len(rows) == 1 and x.device.type == "cpu" and not torch.is_grad_enabled()
        out = (self._visit if single else self._experts)(rows, routing).view_as(x)
        return out if self.shared is None else out + self.shared(x)

    def _experts(self, rows: Tensor, routing: Routing) -> Tensor:
        """The weighted sum of the chosen experts, (tokens, dim)."""
        experts, weights = routing.experts.flatten(), routing.weights.flatten().to(rows.dtype)  # (tokens · k,)
        order, counts = self._sorted_by_expert(experts, weights)
        source = order // self.top_k  # token of each assignment, in expert order
        gate, up = grouped_linear(rows[source], self.gate_up, counts).chunk(2, dim=-1)
        # weighted before the last product, where an assignment is narrowest
        hidden = ACTIVATIONS[self.activation](gate) * (up * weights[order, None])
        done = grouped_linear(hidden, self.down, counts)
        return torch.zeros_like(rows).index_add(0, source, done.to(rows.dtype))

    def _visit(self, rows: Tensor, routing: Routing) -> Tensor:
        """`_experts` for one token alone, as in decoding: its experts in turn, nothing sorted, gathered or copied."""
        x, chosen = rows[0], routing.experts[0].tolist()
        hidden = x.new_empty(self.top_k, 2 * self.expert_dim)
        for place, expert in zip(hidden, chosen, strict=True):
            torch.mv(self.gate_up[expert], x, out=place)
        gate, up = hidden.chunk(2, dim=-1)
        hidden = ACTIVATIONS[self.activation](gate) * (up * routing.weights.to(x.dtype).view(-1, 1))
        out = torch.zeros_like(x)
        for part, expert in zip(hidden, chosen, strict=True):
            torch.addmv(out, self.down[expert], part, out=out)
        return out[None]

    def _sorted_by_expert(self, experts: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Assignments in expert order, less those over capacity, and how many each expert has."""
        counts = torch.bincount(experts, minlength=self.n_experts)
        if self.capacity is None or not self.training:
            return experts.argsort(stable=True), counts
        room = math.ceil(self.capacity * len(experts) / self.n_experts)
        by_weight = weights.detach().argsort(descending=True, stable=True)
        order = by_weight[experts[by_weight].argsort(stable=True)]  # by expert, then by falling weight
        begins = counts.cumsum(0) - counts
        place = torch.arange(len(order), device=order.device) - begins[experts[order]]
        return order[place < room], counts.clamp(max=room)


def load(routing: Routing) -> Tensor:
    """Each expert's share of the assignments, (experts,); it sums to 1."""
    n_experts = routing.logits.shape[-1]
    return torch.bincount(routing.experts.flatten(), minlength=n_experts) / routing.experts.numel()


def balance_losses(
    routing: Routing,
    batch: int,
    *,
    score: ScoreKind = "softmax",
    n_groups: int = 1,
    top_groups: int = 1,
    scope: BalanceScope = "batch",
) -> dict[str, Tensor]:
    """The auxiliary losses of one layer, without their coefficients (arXiv:2405.04434 §2.2.3, arXiv:2503.05139 §2.1).

    `batch` is the number of sequences among the tokens. With f the experts' shares of assignments (1 = fair), constant
    in the gradient, and P their mean probabilities, on the clean router logits:

    - balance: Σ f P over experts, 1 when fair;
    - device_balance: the same over the `n_groups` groups, that is, devices: mean f times summed P;
    - communication_balance: as that, with f from how many tokens go to a group at all (1 = `top_groups` each);
    - z: mean of logsumexp(logits)², which keeps router logits small.

    `scope` says over what f and P are taken: each sequence, averaged (DeepSeek), or all tokens at hand (Ling). On
    several ranks this is each rank's own batch.
    """
    experts, logits = routing.experts, routing.logits
    n_experts, k = logits.shape[-1], experts.shape[-1]
    rows = batch if scope == "sequence" else 1
    clean = logits.softmax(-1) if score == "softmax" else F.normalize(logits.sigmoid(), p=1.0, dim=-1)
    probability = clean.view(rows, -1, n_experts).mean(1)  # (rows, experts)
    chosen = torch.zeros_like(logits).scatter_(1, experts, 1.0).view(rows, -1, n_experts)  # (rows, tokens, experts)
    fraction = chosen.mean(1) * (n_experts / k)  # (rows, experts)
    groups = (rows, n_groups, n_experts // n_groups)
    group_probability = probability.view(groups).sum(-1)  # (rows, groups)
    sent = chosen.view(rows, -1, *groups[1:]).amax(-1).mean(1) * (n_groups / top_groups)  # (rows, groups)
    return {
        "balance": (fraction * probability).sum(-1).mean(),
        "device_balance": (fraction.view(groups).mean(-1) * group_probability).sum(-1).mean(),
        "communication_balance": (sent * group_probability).sum(-1).mean(),
        "z": logits.logsumexp(-1).square().mean(),
    }

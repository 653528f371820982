"""DeepSeek-Coder-V2 in miniature: a small cache, balanced experts, and a model that writes into gaps.

Three statements of arXiv:2406.11931 and of the model it continues, arXiv:2405.04434, on the source code of the
running Python, byte by byte:

- latent attention caches (kv_rank + rope_dim) / (2 · heads · head_dim) of what ordinary attention does, and decoding
  over the latents gives what training computes;
- without a balance loss a few experts do the work; a small one spreads it and costs no loss;
- rearranging half of the documents teaches a model to use what follows a gap, and hardly costs it anything as a
  left-to-right model ("fill in the middle", documents of one training row each).

All trained models are one decoder with latent attention and a mixture of experts: three arms that differ in the
balance loss or in the order of their documents, with the same initial weights, documents, steps and learning rate.
Left out: the 338 languages, the mining of code from the web, instruction tuning and reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import generator, rng
from bloomery.corpus import fim
from bloomery.corpus.bytes_stream import EDGE
from bloomery.corpus.documents import from_texts, texts
from bloomery.corpus.examples import PackedExamples
from bloomery.corpus.fim import BYTE_MARKS, BYTE_VOCABULARY, FillInTheMiddle, Parts
from bloomery.lab import Claim, Recipe, Run, recipe
from bloomery.recipes import _lm
from bloomery.recipes._deepseek_coder_report import show
from bloomery.worlds.stdlib_source import SourceText, sources

if TYPE_CHECKING:
    from bloomery.models import Decoder, DecoderConfig
    from bloomery.train import TrainConfig

ARMS = {  # balance loss, share of rearranged documents
    "plain": (True, False),
    "unbalanced": (False, False),
    "fim": (True, True),
}
LATENT_RANK, HEAD = 32, 32  # widths of the cached latent and of a head, half of which turns with position
Example = tuple[Any, Any]  # token ids and loss mask, int64 arrays of one length
LOAD_POINTS, LOAD_ROWS = 20, 64  # how often the experts' loads are measured while training, and on how many rows
GAP_LINE = 6  # characters that a line must have, without its indentation, for a gap to lie in it


# --8<-- [start:fields]
@recipe(paper="arXiv:2406.11931", stage="pretrain")
@dataclass(kw_only=True)
class DeepSeekCoderV2(Recipe):
    """Latent attention, balanced experts and fill-in-the-middle, each beside the model without it."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"dim": 32, "experts": 4, "batch_size": 4, "steps": 6, "trials": 1, "gaps": 20, "tokens": 12},
        "cpu": {},
        "gpu": {"dim": 512, "layers": 8, "experts": 32, "seq_len": 1024, "batch_size": 64, "steps": 6000, "lr": 1e-3,
                "gaps": 4000, "tokens": 512},
    }  # fmt: skip

    dim: int = 64
    """Width of the decoder; it has dim / 32 heads."""
    layers: int = 2
    """Layers, of which the first is dense and the others have experts."""
    experts: int = 8
    """Routed experts in a layer, two of which see a token, beside a shared one."""
    seq_len: int = 64
    """Bytes predicted in a training row, which is one document."""
    batch_size: int = 8
    """Rows in an optimiser step."""
    steps: int = 300
    """Optimiser steps of every arm."""
    lr: float = 6e-3
    """Peak learning rate of every arm."""
    balance: float = 0.04
    """Coefficient of the balance loss, in the arms that have one."""
    rate: float = 0.5
    """Share of the documents that the arm `fim` rearranges."""
    gaps: int = 300
    """Held-out documents, each with one gap to fill."""
    tokens: int = 64
    """Tokens decoded one by one to compare decoding with training."""
    trials: int = 3
    """Seeds of every arm: initial weights and order of the documents."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        for name in ("layers", "batch_size", "steps", "gaps", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        if self.dim < HEAD or self.dim % HEAD:
            raise ConfigError(f"dim is {self.dim}", fix=f"a multiple of {HEAD}, the width of a head")
        if self.layers < 2 or self.experts < 2:
            raise ConfigError(f"layers={self.layers}, experts={self.experts}", fix="2 or more of each")
        if self.seq_len < 32 or self.tokens < 2:
            raise ConfigError(f"seq_len={self.seq_len}, tokens={self.tokens}", fix="at least 32 and 2")

    def run(self, run: Run) -> Iterator[Claim]:
        """The cache, then three arms on every seed, then what they show."""
        yield from self.cache_claims(run.stage("cache")(self.measure_cache))
        found: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
        for trial in range(self.trials):
            for arm in ARMS:
                found[arm][trial] = run.stage(f"{arm}-{trial}")(self.train_arm, run, arm, trial)
        show(run, found)
        budget = f"{self.steps * self.batch_size * self.seq_len:,} bytes of training each"

        def by_seed(arm: str, name: str) -> dict[int, float]:
            return {trial: result[name] for trial, result in found[arm].items()}

        yield Claim(
            statement="The balance loss spreads the work: the busiest expert's load over the mean load, held-out code",
            paper="arXiv:2405.04434 §2.2.3",
            ours=by_seed("plain", "load"), baseline=by_seed("unbalanced", "load"), better="lower", margin=0.7,
            names=("with balance loss", "without"),
            note=f"mean over the layers with experts, {self.experts} experts, 2 a token; {budget}; expected: at most "
            "1.3 with it and at least 2.0 without",
        )  # fmt: skip
        yield Claim(
            statement="and costs no loss on held-out code",
            paper="arXiv:2405.04434 §2.2.3",
            ours=by_seed("plain", "loss"), baseline=by_seed("unbalanced", "loss"), better="lower", margin=-0.02,
            unit="nats/byte", names=("with balance loss", "without"), note="not worse by more than 0.02",
        )  # fmt: skip
        yield Claim(
            statement="Trained to fill in the middle, a model expects what is in a gap better than one that reads the "
            "prefix alone",
            paper="arXiv:2406.11931 §3.1",
            ours=by_seed("fim", "gap"), baseline=by_seed("plain", "prefix_only"), better="lower", margin=0.1,
            unit="nats/byte of the gap", names=("fim, prefix and suffix", "left to right, prefix"),
            note=f"{self.gaps} spans inside a line of held-out files; half of the first model's documents were plain",
        )  # fmt: skip
        yield Claim(
            statement="and is hardly worse as a left-to-right model of held-out code",
            paper="arXiv:2406.11931 §3.1",
            ours=by_seed("fim", "loss"), baseline=by_seed("plain", "loss"), better="lower", margin=-0.03,
            unit="nats/byte", names=("fim", "left to right"), note="not worse by more than 0.03",
        )  # fmt: skip

    # --- the cache -------------------------------------------------------------------------------------------------

    def measure_cache(self) -> dict[str, Any]:
        """Bytes per token of both kinds of attention, and how far decoding over latents is from training, by seed."""
        import torch

        from bloomery.models import Decoder
        from bloomery.nn import KVCache

        latent = self.decoder_config(balanced=False)
        full = replace(latent, mla=None, rope_layout="half")
        bytes_of = {
            name: KVCache(config, 3, self.tokens).nbytes / (3 * self.tokens)
            for name, config in (("latent", latent), ("full", full))
        }
        apart: dict[int, float] = {}
        for trial in range(self.trials):
            drawn = generator(self.seed, "cache", trial)
            model = Decoder(latent, drawn).eval()
            tokens = torch.randint(BYTE_VOCABULARY, (2, self.tokens), generator=drawn)
            with torch.no_grad():
                at_once = model(tokens).logits
                cache = KVCache(latent, 2, self.tokens)
                one_by_one = [model(tokens[:, i : i + 1], cache=cache).logits for i in range(self.tokens)]
            apart[trial] = float((at_once - torch.cat(one_by_one, 1)).abs().max())
        return {"bytes": bytes_of, "apart": apart}

    def cache_claims(self, found: Mapping[str, Any]) -> Iterator[Claim]:
        """Exact, so one value stands for all seeds."""
        heads = self.dim // HEAD
        ratio = (LATENT_RANK + HEAD // 2) / (2 * heads * HEAD)
        latent, full = found["bytes"]["latent"], found["bytes"]["full"]
        yield Claim(
            statement="The latent cache has the size of the closed form, byte for byte",
            paper="arXiv:2405.04434 §2.1.4",
            ours={self.seed: abs(latent - ratio * full)}, baseline={self.seed: 0.0}, better="lower", margin=-1e-9,
            unit="bytes per token", names=("difference", "none"),
            note=f"{latent:.0f} bytes a token instead of {full:.0f}: (kv_rank + rope_dim) / (2 · heads · head_dim) is "
            f"{ratio:g}",
        )  # fmt: skip
        yield Claim(
            statement="Decoding over the latents gives the logits of training",
            paper="arXiv:2405.04434 §2.1.2",
            ours=found["apart"], baseline=dict.fromkeys(found["apart"], 0.0), better="lower", margin=-1e-5,
            unit="largest difference of a logit", names=("absorbed, token by token", "expanded, at once"),
            note=f"random weights in float32, {self.tokens} positions",
        )  # fmt: skip

    # --- the arms --------------------------------------------------------------------------------------------------

    def decoder_config(self, balanced: bool) -> DecoderConfig:
        """Latent attention, a dense layer, then experts: the shape of the Lite model."""
        from bloomery.models import DecoderConfig, MLAConfig, MoEConfig

        return DecoderConfig(
            vocab_size=BYTE_VOCABULARY, dim=self.dim, n_layers=self.layers, n_heads=self.dim // HEAD,
            n_kv_heads=self.dim // HEAD, head_dim=HEAD, ffn_dim=5 * self.dim // 2,
            max_positions=max(self.seq_len, self.tokens), norm_eps=1e-6, rope_layout="interleaved",
            init="fan_in",
            mla=MLAConfig(q_rank=None, kv_rank=LATENT_RANK, nope_dim=HEAD // 2, rope_dim=HEAD // 2, v_dim=HEAD),
            moe=MoEConfig(
                n_experts=self.experts, top_k=2, expert_dim=self.dim // 2, shared_dim=self.dim, first_dense=1,
                balance=self.balance if balanced else 0.0, balance_scope="sequence",
            ),
        )  # fmt: skip

    def train_config(self, trial: int) -> TrainConfig:
        """The same for every arm: a short warm-up, then a cosine to a tenth."""
        from bloomery.train import Phase, TrainConfig

        tokens = self.steps * self.batch_size * self.seq_len
        phase = Phase(tokens=tokens, lr=self.lr, final_lr=self.lr / 10, warmup_tokens=tokens // 20)
        return TrainConfig(
            phases=[phase], seq_len=self.seq_len, batch_size=self.batch_size, eval_every=max(1, tokens // 4),
            seed=self.seed + trial,
        )  # fmt: skip

    def train_arm(self, run: Run, arm: str, trial: int) -> dict[str, Any]:
        """Train one arm; its held-out losses, and what its experts did."""
        from bloomery.core.devices import pick_device
        from bloomery.models import Decoder

        balanced, rearranged = ARMS[arm]
        test = HeldOutCode(self)
        model = Decoder(self.decoder_config(balanced), generator(self.seed, "init", trial)).to(pick_device())
        loads: list[tuple[int, list[float]]] = []  # of the first layer with experts
        every = max(1, self.steps // LOAD_POINTS)

        def watch(step: int, values: Mapping[str, float]) -> None:
            if step % every == 0 or step == self.steps - 1:
                loads.append((step + 1, expert_loads(model, test.rows[:LOAD_ROWS])[0].tolist()))

        data = self.training_rows(self.rate if rearranged else 0.0, trial)
        fit = _lm.fit(
            run, model, data, test.plain, self.train_config(trial), log=run.log, after_step=[watch],
            before_batch=[full_rows],
        )  # fmt: skip
        final = expert_loads(model, test.rows)
        result: dict[str, Any] = {"loss": fit.loss, "curve": fit.curve, "loads": loads}
        result["load"] = float((final.max(-1) * final.shape[-1]).mean())
        if arm != "unbalanced":
            result |= test.measure(model, rearranged)
        return result

    def training_rows(self, rate: float, trial: int) -> PackedExamples:
        """Documents of one row each, the same ones in the same order for every rate."""
        pieces = [piece for file in source_code(self.seed).train for piece in cut_pieces(file.text, self.seq_len - 1)]
        order = rng(self.seed, "documents", trial).permutation(len(pieces))[: self.steps * self.batch_size]
        step = FillInTheMiddle(rate=rate, max_length=self.seq_len - 4, seed=self.seed + trial)
        told = step(from_texts([pieces[i] for i in order], ids=[str(i) for i in order]))
        return PackedExamples([row(fim.encode_bytes(text)) for text in texts(told).to_pylist()])


# ----------------------------------------------------------------------------------------------------------- documents


@lru_cache(maxsize=1)
def source_code(seed: int) -> SourceText:
    """The library, read once: all arms share it."""
    return sources(seed)


def cut_pieces(text: str, length: int) -> Iterator[str]:
    """Pieces of exactly `length` ASCII characters that begin where a line does."""
    begin = 0
    while begin + length <= len(text):
        piece = text[begin : begin + length]
        if piece.isascii():
            yield piece
        begin = text.find("\n", begin + length) + 1
        if not begin:
            return


def row(ids: np.ndarray) -> Example:
    """A document between two edges, every token of it to be learned."""
    edge = np.array([EDGE])
    return np.concatenate([edge, ids, edge]), np.ones(len(ids) + 2, np.int64)


def full_rows(step: int, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A row is one document, so attention needs no mask but the causal one."""
    return {"tokens": batch["tokens"], "loss_mask": batch["loss_mask"]}


def cut_gap(text: str, random: np.random.Generator) -> Parts[str] | None:
    """A span inside one line, neither the first nor the last, of a text; None where no line is long enough."""
    lines = text.split("\n")
    begins = np.cumsum([0, *(len(line) + 1 for line in lines)])
    inner = [i for i in range(1, len(lines) - 1) if len(lines[i].strip()) >= GAP_LINE]
    if not inner:
        return None
    line = int(random.choice(inner))
    indent = len(lines[line]) - len(lines[line].lstrip())
    places = np.arange(begins[line] + indent, begins[line] + len(lines[line].rstrip()) + 1)
    begin, end = np.sort(random.choice(places, 2, replace=False))
    return fim.cut(text, int(begin), int(end))


class HeldOutCode:
    """Documents of held-out modules: whole, and each with a gap."""

    def __init__(self, recipe: DeepSeekCoderV2) -> None:
        random = rng(recipe.seed, "gaps")
        files = source_code(recipe.seed).held_out
        pieces = [piece for file in files for piece in cut_pieces(file.text, recipe.seq_len - 1)]
        self.pieces: list[str] = []
        self.gaps: list[Parts[str]] = []
        for i in random.permutation(len(pieces)):
            gap = cut_gap(pieces[i][: recipe.seq_len - 4], random)  # room for the sentinels
            if gap is not None and len(self.gaps) < recipe.gaps:
                self.pieces.append(pieces[i])
                self.gaps.append(gap)
        self.plain = PackedExamples([row(fim.encode_bytes(piece)) for piece in self.pieces])
        self.rows = np.stack([row(fim.encode_bytes(piece))[0][:-1] for piece in self.pieces])  # (pieces, seq)
        self.seq_len = recipe.seq_len
        self.edges = [self.seq_len * quarter // 4 for quarter in range(5)]  # of bins of prefixes' lengths

    def measure(self, model: Decoder, fills: bool) -> dict[str, Any]:
        """Nats per byte of the gaps, given the prefix alone and (where the model `fills`) the suffix too."""
        sides = {"prefix_only": False} | ({"gap": True} if fills else {})
        found: dict[str, Any] = {"edges": self.edges}
        for name, with_suffix in sides.items():
            bins = [self._loss(model, low, high, with_suffix) for low, high in pairwise(self.edges)]
            nats, size = np.sum(bins, axis=0)
            found |= {name: nats / size, f"{name}_bins": [n / s if s else None for n, s in bins]}
        return found

    def _loss(self, model: Decoder, low: int, high: int, with_suffix: bool) -> tuple[float, int]:
        """(nats, bytes) of the gaps whose prefix has from `low` to below `high` characters."""
        from bloomery.train import held_out

        chosen = [asked(gap, with_suffix) for gap in self.gaps if low <= len(gap.prefix) < high]
        if not chosen:
            return 0.0, 0
        found = held_out(model, PackedExamples(chosen), seq_len=self.seq_len, batch_size=64)
        return found.nats, found.tokens


def asked(gap: Parts[str], with_suffix: bool) -> Example:
    """A gap as an example of which the middle counts: after the prefix, or after a prompt that asks for it."""
    parts = Parts(*map(fim.encode_bytes, gap))
    told = fim.arrange_ids(parts, BYTE_MARKS) if with_suffix else np.concatenate([parts.prefix, parts.middle])
    ids = np.concatenate([[EDGE], told])
    mask = np.zeros(len(ids), np.int64)
    mask[len(ids) - len(parts.middle) :] = 1
    return ids, mask


def expert_loads(model: Decoder, rows: np.ndarray) -> np.ndarray:
    """Share of the assignments that each expert gets on `rows` (rows, seq): (layers with experts, experts)."""
    import torch

    training = model.training
    model.train()  # loads are counted in training only
    with torch.no_grad():
        parts = [
            model(torch.as_tensor(part, device=model.head_weight.device)).loads
            for part in np.array_split(rows, -(-len(rows) // 64))
        ]
    model.train(training)
    loads: np.ndarray = torch.stack(parts).mean(0).cpu().numpy()
    return loads

"""Apple Foundation Models, the pretraining part: tune the learning rate on a narrow model, train a wide one with it.

Apple tunes on a small proxy and carries the learning rate to its 3B model by *simple muP*: matrices inside the blocks
of a model k times as wide take updates of 1/k; embeddings and norms move as before, and weight decay depends on neither
(arXiv:2407.21075, section 3). The optimiser is RMSProp with a clipped, smoothed update. Here models of several widths
are trained over one grid of learning rates, with and without the scaling: without it, the best rate falls as models
get wider; with it, the rate that was best for the narrowest model serves them all.

The models have Apple's shape in small: tied embeddings, three query heads to one key-value head, a norm on rotated
queries and keys, SwiGLU of 8/3 of the width, every weight drawn from N(0, 1/inputs). Left out: pruning, distillation,
alignment and compression, which are systems of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.lab import Claim, Recipe, Run, figures, recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bloomery.models import DecoderConfig
    from bloomery.recipes._lm import Corpus

HEAD_DIM = 16
WIDTH_STEP = 3 * HEAD_DIM  # three query heads share a key and value head
WARMUP = 0.1  # share of the training tokens
FLOOR = 0.005  # where the cosine ends, as a share of the peak
DROP = 100.0  # a step whose gradient norm reaches this is skipped

Losses = dict[str, float]  # learning rate (as JSON spells it) → held-out loss


# --8<-- [start:fields]
@recipe(paper="arXiv:2407.21075", stage="pretrain")
@dataclass(kw_only=True)
class AppleAFM(Recipe):
    """A learning rate tuned on a narrow model serves a wide one: simple muP with Apple's optimiser."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"widths": [48, 96], "rates": [0.01, 0.04, 0.16], "n_layers": 1, "tokens": 1_280, "trials": 1,
                  "held_out_bytes": 2_000},
        "cpu": {},
        "gpu": {"widths": [192, 384, 768], "rates": [0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08], "n_layers": 6,
                "tokens": 20_000_000, "seq_len": 512, "batch_size": 32, "held_out_bytes": 500_000},
    }  # fmt: skip

    widths: list[int] = field(default_factory=lambda: [48, 96, 192])
    """Widths of the models, in order; the learning rate is tuned on the first. Multiples of 48."""
    rates: list[float] = field(default_factory=lambda: [0.005, 0.01, 0.02, 0.04, 0.08])
    """Peak learning rates that every model is trained with, in order, each the same multiple of the one before."""
    n_layers: int = 2
    """Layers of every model."""
    tokens: int = 30_720
    """Training tokens (bytes) of each run."""
    trials: int = 3
    """Training seeds of every model and rate."""
    seq_len: int = 64
    """Tokens in a training sequence."""
    batch_size: int = 4
    """Sequences in an optimiser step."""
    held_out_bytes: int = 8_000
    """Text of held-out modules that every model is tested on."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or any(b <= a for a, b in pairwise(self.widths)):
            raise ConfigError(f"widths is {self.widths}", fix="two or more, rising")
        if bad := [width for width in self.widths if width < 1 or width % WIDTH_STEP]:
            raise ConfigError(f"widths holds {bad[0]}", fix=f"multiples of {WIDTH_STEP}: three heads of {HEAD_DIM}")
        steps = [b / a if a > 0 else math.nan for a, b in pairwise(self.rates)]
        if len(steps) < 2 or not all(s > 1 and math.isclose(s, steps[0], rel_tol=1e-6) for s in steps):
            raise ConfigError(f"rates is {self.rates}", fix="three or more, each the same multiple of the one before")
        for name in ("n_layers", "tokens", "trials", "seq_len", "batch_size", "held_out_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")

    # --8<-- [start:run]
    def run(self, run: Run) -> Iterator[Claim]:
        """One sweep over the learning rates for every width, trial and arm; then what the sweeps say."""
        from bloomery.recipes._lm import stdlib_corpus

        corpus = stdlib_corpus(self.seed, self.held_out_bytes)
        base, *between, widest = self.widths
        scaled: dict[int, dict[int, Losses]] = {}  # width → trial → losses
        plain: dict[int, dict[int, Losses]] = {}
        scaled[base] = plain[base] = self.sweeps(run, corpus, "base", base)  # 1/k is 1: both arms are the same model
        adamw = self.sweeps(run, corpus, "adamw", base, optimizer="independent_adamw")
        for width in (widest, *between):  # the claims need the widest, the figure all
            scaled[width] = self.sweeps(run, corpus, "mup", width, mup_width=base)
            plain[width] = self.sweeps(run, corpus, "plain", width)
        show(run, scaled, plain, adamw)

        budget = f"{self.tokens:,} training bytes and {len(self.rates)} rates for every model"
        yield Claim(
            statement=f"With simple muP the best learning rate moves less from width {base} to width {widest}",
            paper="arXiv:2407.21075",
            ours=moves(scaled),
            baseline=moves(plain),
            better="lower",
            margin=0.5,
            unit="octaves",
            names=("simple muP", "one rate for all weights"),
            note=f"{budget}; the best rate between grid points is that of a parabola through the best three",
        )
        yield Claim(
            statement=f"The rate tuned at width {base} makes a better model of width {widest} with simple muP",
            paper="arXiv:2407.21075",
            ours=transferred(scaled),
            baseline=transferred(plain),
            better="lower",
            margin=0.02,
            unit="nats/token",
            names=("simple muP", "one rate for all weights"),
            note=f"{budget}; held-out modules of the standard library",
        )

    # --8<-- [end:run]

    def sweeps(self, run: Run, corpus: Corpus, arm: str, width: int, **options: Any) -> dict[int, Losses]:
        """Held-out losses of one arm and width, by trial and rate."""
        found: dict[int, Losses] = {}
        shared = ("seed", "rates", "n_layers", "tokens", "seq_len", "batch_size", "held_out_bytes")
        inputs = {name: getattr(self, name) for name in shared}  # not widths and trials: more of them add sweeps
        for trial in range(self.trials):
            stage = run.stage(f"{arm}-{width}-{trial}", **inputs, **options)
            found[trial] = stage(
                lambda trial=trial: {str(lr): self.train(run, corpus, width, trial, lr, options) for lr in self.rates}
            )
        return found

    def train(self, run: Run, corpus: Corpus, width: int, trial: int, lr: float, options: Mapping[str, Any]) -> float:
        """Train one model and return its held-out loss; initial weights and batches depend on width and trial only."""
        from bloomery.core.devices import pick_device
        from bloomery.core.seeds import derive, generator
        from bloomery.models import Decoder
        from bloomery.recipes._lm import fit
        from bloomery.train import Phase, TrainConfig

        phase = Phase(tokens=self.tokens, lr=lr, warmup_tokens=int(WARMUP * self.tokens), final_lr=FLOOR * lr)
        config = TrainConfig(
            phases=[phase],
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            seed=derive(self.seed, "train", trial),
            skip_norm=DROP,
            **{"optimizer": "adastar", **options},
        )
        model = Decoder(self.model(width), generator(self.seed, "init", width, trial)).to(pick_device())
        return fit(run, model, corpus.train, corpus.held_out, config).loss

    def model(self, width: int) -> DecoderConfig:
        """Apple's shape at a width."""
        from bloomery.corpus.bytes_stream import VOCAB_SIZE
        from bloomery.models import DecoderConfig

        return DecoderConfig(
            vocab_size=VOCAB_SIZE,
            dim=width,
            n_layers=self.n_layers,
            n_heads=width // HEAD_DIM,
            n_kv_heads=width // WIDTH_STEP,
            head_dim=HEAD_DIM,
            ffn_dim=8 * width // 3,
            qk_norm="post_rope",
            rope_layout="interleaved",
            rope_theta=500_000.0,
            tie_embeddings=True,
            init="fan_in",
            z_loss=1e-6,
        )


def best_rate(losses: Losses) -> float:
    """log2 of the best learning rate: the lowest point of a parabola through the best grid point and its neighbours.

    At an end of the grid, that end.
    """
    rates, values = [math.log2(float(rate)) for rate in losses], list(losses.values())
    i = min(range(len(values)), key=values.__getitem__)
    if i in (0, len(values) - 1):
        return rates[i]
    left, low, right = values[i - 1 : i + 2]
    bend = left - 2 * low + right
    return rates[i] + (rates[i + 1] - rates[i]) * (0.5 * (left - right) / bend if bend > 0 else 0.0)


def moves(sweeps: Mapping[int, Mapping[int, Losses]]) -> dict[int, float]:
    """By trial, how many octaves the best rate of the widest model is away from that of the narrowest."""
    narrow, wide = sweeps[min(sweeps)], sweeps[max(sweeps)]
    return {trial: abs(best_rate(wide[trial]) - best_rate(narrow[trial])) for trial in narrow}


def transferred(sweeps: Mapping[int, Mapping[int, Losses]]) -> dict[int, float]:
    """By trial, the loss of the widest model at the grid's best rate for the narrowest (mean over trials)."""
    tuned = mean(sweeps[min(sweeps)])
    rate = min(tuned, key=tuned.__getitem__)
    return {trial: losses[rate] for trial, losses in sweeps[max(sweeps)].items()}


# --- what the report shows -------------------------------------------------------------------------------------------


def mean(sweep: Mapping[int, Losses]) -> Losses:
    """Losses by rate, averaged over trials."""
    return {rate: sum(losses[rate] for losses in sweep.values()) / len(sweep) for rate in sweep[0]}


def show(
    run: Run,
    scaled: Mapping[int, Mapping[int, Losses]],
    plain: Mapping[int, Mapping[int, Losses]],
    adamw: Mapping[int, Losses],
) -> None:
    """The paper's picture: loss over learning rate, a curve for each width, with and without the scaling."""
    arms = {"with simple muP": scaled, "one rate for all weights": plain}
    caption = "Held-out loss over the learning rate, by width; the ring is the best rate, the band spans the seeds."
    run.figure("learning_rates", valleys(arms), caption)
    rows = [
        [name, width, *(f"{loss:.3f}" for loss in mean(sweep).values()), f"{2 ** best_rate(mean(sweep)):.4f}"]
        for name, sweeps in arms.items()
        for width, sweep in sorted(sweeps.items())
    ]
    losses = mean(adamw)
    rows.append(["AdamW", min(scaled), *(f"{loss:.3f}" for loss in losses.values()), f"{2 ** best_rate(losses):.4f}"])
    columns = ["updates", "width", *losses, "best rate"]
    behind = min(mean(scaled[min(scaled)]).values()) - min(losses.values())
    caption = (
        f"Held-out nats per token (a byte) at each learning rate, mean over seeds. Apple's optimiser at its best is "
        f"{behind:+.3f} from AdamW at its best; after 3.1T tokens the paper finds the two about equal."
    )
    run.table("sweeps", columns, rows, caption)


def valleys(arms: Mapping[str, Mapping[int, Mapping[int, Losses]]]) -> Figure:
    """One panel for each arm, one curve for each width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    panels = figure.subplots(1, len(arms), sharey=True)
    for axes, (name, sweeps) in zip(panels, arms.items(), strict=True):
        for (width, sweep), colour in zip(sorted(sweeps.items()), figures.PALETTE, strict=False):
            curve = mean(sweep)
            rates = [float(rate) for rate in curve]
            lows = [min(losses[rate] for losses in sweep.values()) for rate in curve]
            highs = [max(losses[rate] for losses in sweep.values()) for rate in curve]
            axes.plot(rates, list(curve.values()), color=colour, label=f"width {width}", marker=".", markersize=4)
            axes.fill_between(rates, lows, highs, color=colour, alpha=0.18, linewidth=0)
            best = 2 ** best_rate(curve)
            axes.plot([best], [min(curve.values())], "o", markersize=9, markerfacecolor="none", color=colour)
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, axis="y", alpha=0.12)
        axes.set(title=name, xlabel="peak learning rate")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    panels[0].set_ylabel("held-out nats per token")
    panels[-1].legend(frameon=False, fontsize=9.5, labelcolor=figures.INK)
    return figure

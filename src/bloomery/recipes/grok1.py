"""Grok-1 in small: eight experts, two of which work, beside a dense layer of equal active size; and its sandwich norms.

The release (weights and inference code, no paper) gives no ablation, so the comparisons are ours. The decoder is
Grok-1's in everything but size: embeddings times sqrt(dim), a norm before and one after each sublayer, scores capped at
30, tanh-GELU gates, two of eight experts weighted with their bare probabilities, tied head divided by sqrt(3). Text is
the source of the running Python's standard library, byte by byte; whole modules are held out.

- *experts*: against one GeGLU layer of twice an expert's width, which has as many active parameters;
- *post-norms*: the same model without the norms after the sublayers, embedding multiplier kept, early in training;
- *gates* (reported, no claim): weights that sum to one, as some ports compute them, against bare probabilities, early
  in training; the norm behind takes a common scale out.

Every arm gets its own learning rate from the same grid. The release has no balance loss; training needs one, and it
has the weight 0.01.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import generator
from bloomery.lab import Claim, Recipe, Run, figures, recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bloomery.models import Decoder, DecoderConfig
    from bloomery.recipes._lm import Corpus

DENSE, EXPERTS, BARE, RENORMALISED = "dense", "8 experts", "no post-norms", "gates sum to 1"
ARMS = (EXPERTS, DENSE, BARE, RENORMALISED)
N_EXPERTS, TOP_K, BALANCE = 8, 2, 0.01
IDLE = 0.02  # of all assignments: an expert with a smaller share has died


@recipe(paper="github.com/xai-org/grok-1", stage="pretrain")
@dataclass(kw_only=True)
class Grok1(Recipe):
    """Two of eight experts against a dense layer of equal active size, and what the sandwich norms are for."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"dim": 32, "depth": 1, "expert_dim": 24, "steps": 12, "early": 8, "batch_size": 4, "seq_len": 64,
                  "trials": 1, "rates": [4e-3], "test_bytes": 4_000},
        "cpu": {},
        "gpu": {"dim": 512, "depth": 8, "expert_dim": 688, "steps": 3_000, "early": 400, "batch_size": 64,
                "seq_len": 512, "rates": [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3], "test_bytes": 500_000},
    }  # fmt: skip

    # --8<-- [start:fields]
    dim: int = 64
    """Width of the model, a multiple of 32."""
    depth: int = 4
    """Layers."""
    expert_dim: int = 88
    """Hidden width of an expert; the dense layer has twice as much."""
    steps: int = 300
    """Optimiser steps of a run."""
    early: int = 200
    """The step at which post-norms and gates are compared, whose variants stop there; tuning runs are half as long."""
    batch_size: int = 8
    """Sequences in an optimiser step."""
    seq_len: int = 128
    """Bytes in a training sequence."""
    rates: list[float] = field(default_factory=lambda: [1e-3, 2e-3, 4e-3, 8e-3, 16e-3])
    """Learning rates to try for each arm, ascending."""
    trials: int = 3
    """Training seeds of every compared run."""
    test_bytes: int = 20_000
    """Held-out source to measure on."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        for name in ("depth", "expert_dim", "early", "batch_size", "seq_len", "trials", "test_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        if self.dim < 32 or self.dim % 32:
            raise ConfigError(f"dim is {self.dim}", fix="a multiple of 32, the width of a head")
        if self.early > 3 * self.steps // 4:
            raise ConfigError(
                f"early is {self.early} of {self.steps} steps", fix="at most 3/4: the rate falls after that"
            )
        if not self.rates or self.rates != sorted(set(self.rates)) or self.rates[0] <= 0:
            raise ConfigError(f"rates are {self.rates}", fix="at least one positive rate, ascending")

    def run(self, run: Run) -> Iterator[Claim]:
        """Tune every arm, train it with every seed, compare seed by seed."""
        from bloomery.recipes._lm import stdlib_corpus

        corpus = stdlib_corpus(self.seed, self.test_bytes)
        tuned = {arm: run.stage(f"tune/{_file(arm)}")(self.tune, run, corpus, arm) for arm in (EXPERTS, DENSE, BARE)}
        tuned[RENORMALISED] = tuned[EXPERTS]
        runs: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
        for trial in range(self.trials):
            for arm in ARMS:
                stage = run.stage(f"train/{_file(arm)}-{trial}")
                runs[arm][trial] = stage(self.train, run, corpus, arm, trial, tuned[arm]["rate"])
        self.show(run, tuned, runs)
        yield from self.claims(runs)

    def config(self, arm: str) -> DecoderConfig:
        """Grok-1 in small. All arms have equal active parameters but for the router and the norms left out."""
        from dataclasses import replace

        from bloomery.corpus.bytes_stream import VOCAB_SIZE
        from bloomery.models import preset
        from bloomery.models.config import MoEConfig

        moe = MoEConfig(
            n_experts=N_EXPERTS, top_k=TOP_K, expert_dim=self.expert_dim, balance=BALANCE,
            renormalise=arm == RENORMALISED,
        )  # fmt: skip
        heads = self.dim // 32
        return replace(
            preset("grok-1"),
            vocab_size=VOCAB_SIZE,
            dim=self.dim,
            n_layers=self.depth,
            n_heads=heads,
            n_kv_heads=heads // 2 or 1,
            head_dim=32,
            ffn_dim=TOP_K * self.expert_dim,
            max_positions=self.seq_len,
            embed_scale=self.dim**0.5,
            post_norm=arm != BARE,
            moe=None if arm == DENSE else moe,
        )

    def model(self, arm: str, trial: int) -> Decoder:
        """Fresh weights on the device at hand."""
        from bloomery.core.devices import pick_device
        from bloomery.models import Decoder

        return Decoder(self.config(arm), generator(self.seed, "init", trial)).to(pick_device())

    def train(self, run: Run, corpus: Corpus, arm: str, trial: int, rate: float) -> dict[str, Any]:
        """One run: warm-up, a flat stretch, a linear decay in the last quarter; variants stop at step `early`.

        Returns the held-out loss along the way, its value at step `early`, and each expert's share of the work.
        """
        from bloomery.recipes._lm import fit
        from bloomery.train import Phase, TrainConfig

        size = self.batch_size * self.seq_len  # tokens of a step
        warmup = self.steps // 20 * size
        common: dict[str, Any] = {"lr": rate, "warmup_tokens": warmup}
        tuning = trial < 0
        if tuning or arm in (BARE, RENORMALISED):
            steps = self.early // 2 if tuning else self.early
            phase = Phase(tokens=steps * size, schedule="constant", **common)
        else:
            decay = (self.steps - 3 * self.steps // 4) * size
            phase = Phase(tokens=self.steps * size, schedule="wsd", decay_tokens=decay, final_lr=rate / 20, **common)
        config = TrainConfig(
            phases=[phase], seq_len=self.seq_len, batch_size=self.batch_size,
            eval_every=0 if tuning else max(1, self.early // 4) * size, seed=self.seed + trial,
        )  # fmt: skip
        model = self.model(arm, trial)
        log = None if tuning else run.log
        done = fit(run, model, corpus.train, corpus.held_out, config, log=log)
        curve = [(tokens // size, loss) for tokens, loss in done.curve]
        early = next((loss for step, loss in curve if step >= self.early), done.loss)
        return {"loss": done.loss, "early": early, "curve": curve, "loads": loads(model, corpus, self.seq_len)}

    def tune(self, run: Run, corpus: Corpus, arm: str) -> dict[str, Any]:
        """The rate with the least held-out loss half-way to step `early`, on a seed that no comparison uses."""
        from bloomery.recipes._lm import tune

        best, losses = tune(self.rates, lambda rate: float(self.train(run, corpus, arm, -1, rate)["loss"]))
        return {"rate": best, "losses": {f"{rate:g}": loss for rate, loss in losses.items()}}

    def claims(self, runs: Mapping[str, Mapping[int, Any]]) -> Iterator[Claim]:
        """Experts beat the dense layer, none of them dies, and without post-norms early training is worse."""
        loss, early = (
            {arm: {t: r[key] for t, r in by.items()} for arm, by in runs.items()} for key in ("loss", "early")
        )
        note = f"{self.steps * self.batch_size * self.seq_len:,} training bytes; every arm at its own learning rate"
        yield Claim(
            statement="Two of eight experts beat a dense layer of equal active parameters on held-out source",
            paper="our own: the release has no ablations",
            ours=loss[EXPERTS],
            baseline=loss[DENSE],
            better="lower",
            margin=0.03,
            unit="nats/byte",
            names=(EXPERTS, DENSE),
            note=note,
        )
        yield Claim(
            statement=f"No expert of any layer gets less than {IDLE:.0%} of the held-out text",
            paper="our own: dead experts would make the comparison one with a smaller model",
            ours={trial: min(map(min, r["loads"])) for trial, r in runs[EXPERTS].items()},
            baseline=dict.fromkeys(runs[EXPERTS], IDLE),
            better="higher",
            margin=0.0,
            unit="share of assignments",
            names=("smallest share", "limit"),
            note=f"balance loss {BALANCE}; a fair share is {1 / N_EXPERTS:.1%}",
        )
        yield Claim(
            statement=f"Without post-norms, embeddings still scaled, the loss at step {self.early} is higher",
            paper="our own: the release has no ablations",
            ours=early[EXPERTS],
            baseline=early[BARE],
            better="lower",
            margin=0.05,
            unit="nats/byte",
            names=("sandwich norms", BARE),
            note=note,
        )

    def show(self, run: Run, tuned: Mapping[str, Any], runs: Mapping[str, Mapping[int, Any]]) -> None:
        """Loss curves, the experts' shares, and the arms in numbers."""
        curves = {arm: [([s for s, _ in r["curve"]], [v for _, v in r["curve"]]) for r in by.values()]
                  for arm, by in runs.items() if arm != RENORMALISED}  # fmt: skip
        figure = figures.lines(curves, x="optimiser step", y="held-out nats per byte")
        caption = "Loss on held-out modules; the band spans the seeds. Without post-norms training stops early."
        run.figure("loss", figure, caption)
        caption = "Each expert's share of the assignments on held-out text, in the seed with the least used expert."
        uneven = min(runs[EXPERTS].values(), key=lambda r: min(map(min, r["loads"])))
        run.figure("experts", _heat_map(uneven["loads"]), caption)
        rows = []
        for arm, by in runs.items():
            model = self.model(arm, 0)
            rates = ", ".join(f"{rate}: {loss:.3f}" for rate, loss in tuned[arm]["losses"].items())
            losses = None if arm in (BARE, RENORMALISED) else ", ".join(f"{r['loss']:.3f}" for r in by.values())
            early = ", ".join(f"{r['early']:.3f}" for r in by.values())
            rows.append(
                [
                    arm,
                    model.num_parameters(),
                    model.active_parameters(),
                    f"{tuned[arm]['rate']:g}",
                    rates,
                    early,
                    losses,
                ]
            )
        columns = ["arm", "parameters", "active", "rate", "rates tried", f"loss at step {self.early}", "final loss"]
        run.table("arms", columns, rows, "Held-out nats per byte, by seed.")
        gaps = [runs[RENORMALISED][trial]["early"] - r["early"] for trial, r in runs[EXPERTS].items()]
        table = [[trial, f"{gap:+.4f}"] for trial, gap in enumerate(gaps)] + [["mean", f"{sum(gaps) / len(gaps):+.4f}"]]
        caption = f"Loss at step {self.early} with gates that sum to 1 less that with bare ones."
        run.table("gates", ["seed", "nats per byte"], table, caption)


def loads(model: Decoder, corpus: Corpus, seq_len: int) -> list[list[float]]:
    """Each expert's share of the held-out text, per layer; empty for a dense model."""
    import numpy as np
    import torch

    if model.config.moe is None:
        return []
    windows = np.stack([window["tokens"][:-1] for window in corpus.held_out.windows(seq_len)])
    device = next(model.parameters()).device
    shares = []
    model.train()  # routing is only remembered in training; nothing else differs
    with torch.no_grad():
        for rows in torch.from_numpy(windows.astype(np.int64)).split(64):
            shares.append(model(rows.to(device)).loads * (len(rows) / len(windows)))  # (layers, experts)
    model.eval()
    found: list[list[float]] = torch.stack(shares).sum(0).tolist()
    return found


def _heat_map(shares: Sequence[Sequence[float]]) -> Figure:
    """Layers down, experts across, the share in each field."""
    figure, axes = figures.new(5.4, 0.9 + 0.45 * len(shares))
    axes.grid(False)
    axes.imshow(shares, cmap="Oranges", vmin=0, vmax=2.5 / N_EXPERTS, aspect="auto")
    for layer, row in enumerate(shares):
        for expert, share in enumerate(row):
            axes.annotate(f"{share:.0%}", (expert, layer), ha="center", va="center", fontsize=9.5, color="#1f2226")
    axes.set(xlabel="expert", ylabel="layer", xticks=range(N_EXPERTS), yticks=range(len(shares)))
    return figure


def _file(arm: str) -> str:
    return arm.replace(" ", "-")

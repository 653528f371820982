"""Ling in small: experts beside a shared one against a dense layer, random routing at first, a normalised head.

Three statements of arXiv:2503.05139, on the source of the running Python's standard library, byte by byte, whole
modules held out:

- *experts* (§2.1): two of many narrow experts and a shared one against a dense layer of their joint width, with the
  same tokens;
- *routing warm-up* (§2.1): without it, the first steps send most tokens to a few experts;
- *NormHead* (§2.2): the head's learning rate 20 times as high. And that evaluating in the middle of training changes
  nothing, where the released code overwrites the head.

Routers are drawn as the released code draws them, uniform within 1 / sqrt(dim), so that their logits have a spread of
0.6 at every width. The scale does not matter for what is measured: the choice of experts, and the noise of the
warm-up, which has the spread of the logits, do not depend on it.

Other matrices are drawn wider for their size (0.8 / sqrt(dim)) than the published 0.006 is at the published widths: a
few hundred steps go further so.

Left out: skipping of loss spikes, the schedule of 9T tokens and everything after pre-training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import generator
from bloomery.lab import Claim, Recipe, Run, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from bloomery.models import Decoder, DecoderConfig
    from bloomery.recipes._lm import Corpus
    from bloomery.train import TrainConfig

Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]  # arm -> seed -> result
Hook = Callable[[int, Mapping[str, float]], None]

EXPERTS, DENSE, CLEAN = "experts", "dense", "no warm-up"
HOT_PLAIN, NORMALISED, HOT_NORMALISED = "plain head x20", "NormHead", "NormHead x20"
ARMS = (EXPERTS, DENSE, CLEAN, HOT_PLAIN, NORMALISED, HOT_NORMALISED)
LONG = (EXPERTS, DENSE)  # the other arms stop early
TOP_K, HEAT = 2, 20  # experts of a token; the head's learning rate in the arms named so
BALANCE, ROUTER_Z = 0.015, 1e-4  # the paper's coefficients
CHECKED, EVERY = 6, 2  # steps of the runs that are evaluated on the way, and how often


# --8<-- [start:fields]
@recipe(paper="arXiv:2503.05139", stage="pretrain")
@dataclass(kw_only=True)
class Ling(Recipe):
    """Narrow experts against a dense layer, random routing at first, a head of columns of length one."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"dim": 32, "depth": 1, "expert_dim": 16, "steps": 12, "early": 6, "warmup": 10, "batch_size": 4,
                  "seq_len": 64, "rates": [4e-3], "trials": 1, "test_bytes": 4_000},
        "cpu": {},
        "gpu": {"dim": 512, "depth": 8, "experts": 32, "expert_dim": 512, "steps": 6_000, "early": 600, "warmup": 600,
                "batch_size": 64, "seq_len": 512, "rates": [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3], "test_bytes": 500_000},
    }  # fmt: skip

    dim: int = 64
    """Width of the model, a multiple of 32."""
    depth: int = 2
    """Layers, all with experts."""
    experts: int = 16
    """Routed experts in a layer, two of which see a token, beside a shared one."""
    expert_dim: int = 64
    """Hidden width of an expert and of the shared one; the dense layer has three times as much."""
    steps: int = 360
    """Optimiser steps of a run."""
    early: int = 90
    """Where arms about routing and the head stop, tuning runs too; a multiple of 3."""
    warmup: int = 250
    """Steps of the routing warm-up; in the first fifth the learning rate climbs and loads are compared."""
    batch_size: int = 8
    """Sequences in an optimiser step."""
    seq_len: int = 128
    """Bytes in a training sequence."""
    rates: list[float] = field(default_factory=lambda: [2e-3, 4e-3, 8e-3, 16e-3, 32e-3])
    """Learning rates to try for the model with experts and for the dense one, ascending."""
    trials: int = 3
    """Seeds of every arm: initial weights, order of the text, noise."""
    test_bytes: int = 16_000
    """Held-out source to measure on."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        for name in ("depth", "expert_dim", "batch_size", "seq_len", "trials", "test_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        if self.dim < 32 or self.dim % 32:
            raise ConfigError(f"dim is {self.dim}", fix="a multiple of 32, the width of a head")
        if self.experts < TOP_K:
            raise ConfigError(f"experts is {self.experts}", fix=f"{TOP_K} or more: so many see a token")
        if self.early < 3 or self.early % 3 or self.early > 3 * self.steps // 4:
            fix = "a multiple of 3, at most 3/4 of the steps: the learning rate falls after that"
            raise ConfigError(f"early is {self.early} of {self.steps} steps", fix=fix)
        if not 5 <= self.warmup <= 5 * self.early:
            raise ConfigError(f"warmup is {self.warmup}", fix="between 5 and 5 times `early`: a fifth is compared")
        if not self.rates or self.rates != sorted(set(self.rates)) or self.rates[0] <= 0:
            raise ConfigError(f"rates are {self.rates}", fix="at least one positive rate, ascending")

    def run(self, run: Run) -> Iterator[Claim]:
        """Tune both kinds of model, train every arm with every seed, compare seed by seed."""
        from bloomery.recipes._ling_report import show
        from bloomery.recipes._lm import stdlib_corpus

        corpus = stdlib_corpus(self.seed, self.test_bytes)
        tuned = {arm: run.stage(f"tune/{arm}")(self.tune, run, corpus, arm) for arm in LONG}
        runs: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
        for trial in range(self.trials):
            for arm in ARMS:
                rate = tuned[DENSE if arm == DENSE else EXPERTS]["rate"]
                stage = run.stage(f"train/{arm.replace(' ', '-')}-{trial}")
                runs[arm][trial] = stage(self.train, run, corpus, arm, trial, rate)
        checks = run.stage("evaluation")(self.check_evaluation, run, corpus, tuned[EXPERTS]["rate"])
        models = {arm: self.model(arm, 0) for arm in ARMS}
        sizes = {arm: (model.num_parameters(), model.active_parameters()) for arm, model in models.items()}
        show(run, tuned, runs, checks, sizes, early=self.early, watched=self.climb)
        yield from self.claims(runs, checks)

    @property
    def climb(self) -> int:
        """Steps in which the learning rate climbs and loads are compared."""
        return self.warmup // 5

    # --- models and their training ---------------------------------------------------------------------------------

    def config(self, arm: str) -> DecoderConfig:
        """Ling-Lite in small, with the head of Ling-Plus where the arm says so; dense with equal active width."""
        from bloomery.corpus.bytes_stream import VOCAB_SIZE
        from bloomery.models import preset
        from bloomery.models.config import MoEConfig

        moe = MoEConfig(
            n_experts=self.experts, top_k=TOP_K, expert_dim=self.expert_dim, shared_dim=self.expert_dim,
            renormalise=True, balance=BALANCE, z_loss=ROUTER_Z, warmup=0 if arm == CLEAN else self.warmup,
        )  # fmt: skip
        heads = self.dim // 32
        return replace(
            preset("ling-lite"), vocab_size=VOCAB_SIZE, dim=self.dim, n_layers=self.depth, n_heads=heads,
            n_kv_heads=heads // 2 or 1, head_dim=32, ffn_dim=(TOP_K + 1) * self.expert_dim,
            max_positions=self.seq_len, rope_theta=10_000.0, init_std=0.8 * self.dim**-0.5,
            moe=None if arm == DENSE else moe, head_norm="hidden" if arm in (NORMALISED, HOT_NORMALISED) else "none",
        )  # fmt: skip

    def model(self, arm: str, trial: int) -> Decoder:
        """Fresh weights, the same for all arms with experts."""
        from torch import nn

        from bloomery.models import Decoder
        from bloomery.nn import Router

        drawn = generator(self.seed, "init", trial)
        model = Decoder(self.config(arm), drawn)
        for module in model.modules():
            if isinstance(module, Router):
                nn.init.uniform_(module.weight, -(self.dim**-0.5), self.dim**-0.5, generator=drawn)
        return model

    def train_config(self, steps: int, rate: float, trial: int, eval_steps: int) -> TrainConfig:
        """A climb, a flat stretch and, in runs of full length, a linear fall in the last quarter."""
        from bloomery.train import Phase, TrainConfig

        size = self.batch_size * self.seq_len  # tokens of a step
        common: dict[str, Any] = {"tokens": steps * size, "lr": rate, "warmup_tokens": min(self.climb, steps) * size}
        if steps < self.steps:
            phase = Phase(schedule="constant", **common)
        else:
            decay = (steps - 3 * steps // 4) * size
            phase = Phase(schedule="wsd", decay_tokens=decay, final_lr=rate / 20, **common)
        return TrainConfig(
            phases=[phase], seq_len=self.seq_len, batch_size=self.batch_size, eval_every=eval_steps * size,
            seed=self.seed + trial,
        )  # fmt: skip

    def train(self, run: Run, corpus: Corpus, arm: str, trial: int, rate: float) -> dict[str, Any]:
        """One run: held-out losses by step, at step `early` and at the end; loads at every step up to `early`.

        A load is the busiest expert's share over the mean share, averaged over layers (0 for the dense model).
        """
        from bloomery.core.devices import pick_device
        from bloomery.recipes._lm import fit

        tuning = trial < 0
        steps = self.steps if arm in LONG and not tuning else self.early
        model = self.model(arm, trial).to(pick_device())
        loads: list[float] = []
        hooks: list[Hook] = [lambda step, values: loads.append(values.get("moe_load", 0.0))]
        if arm in (HOT_PLAIN, HOT_NORMALISED):
            hooks.append(faster(head_of(model), HEAT))
        config = self.train_config(steps, rate, trial, 0 if tuning else self.early // 3)
        done = fit(
            run, model, corpus.train, corpus.held_out, config, log=None if tuning else run.log, after_step=hooks
        )  # fmt: skip
        size = self.batch_size * self.seq_len
        curve = [(tokens // size, loss) for tokens, loss in done.curve]
        return {"loss": done.loss, "early": dict(curve)[self.early], "curve": curve, "loads": loads[: self.early]}

    def tune(self, run: Run, corpus: Corpus, arm: str) -> dict[str, Any]:
        """The rate with the least held-out loss at step `early`, on a seed that no comparison uses."""
        from bloomery.recipes._lm import tune

        best, losses = tune(self.rates, lambda rate: float(self.train(run, corpus, arm, -1, rate)["early"]))
        return {"rate": best, "losses": {f"{rate:g}": loss for rate, loss in losses.items()}}

    def check_evaluation(self, run: Run, corpus: Corpus, rate: float) -> dict[str, Any]:
        """How far a few steps of NormHead end from where they would, had nobody evaluated on the way.

        By seed: the largest difference of a weight below the head, with our evaluation and with one that overwrites
        the head as the released code does. On the CPU, where a repeated run is the same to the bit.
        """
        found: dict[str, dict[int, float]] = {"ours": {}, "overwriting": {}}
        for trial in range(self.trials):
            undisturbed = self.short_run(run, corpus, rate, trial, evaluations=False, overwrite=False)
            for name, values in found.items():
                other = self.short_run(run, corpus, rate, trial, evaluations=True, overwrite=name == "overwriting")
                values[trial] = distance(undisturbed, other)
        return found

    def short_run(
        self, run: Run, corpus: Corpus, rate: float, trial: int, *, evaluations: bool, overwrite: bool
    ) -> Decoder:
        """A model after some steps on the CPU, evaluated on the way or only at the end."""
        from bloomery.recipes._lm import fit

        model = self.model(NORMALISED, trial)
        config = self.train_config(CHECKED, rate, trial, EVERY if evaluations else 0)
        hooks: list[Hook] = [fold_at(model, EVERY)] if overwrite else []
        fit(run, model, corpus.train, corpus.held_out, config, after_step=hooks)
        return model

    # --- what is claimed -------------------------------------------------------------------------------------------

    def claims(self, runs: Runs, checks: Mapping[str, Any]) -> Iterator[Claim]:
        """Experts, routing warm-up, NormHead, evaluation."""

        def by_seed(arm: str, name: str) -> dict[int, float]:
            return {trial: result[name] for trial, result in runs[arm].items()}

        yield Claim(
            statement=f"{TOP_K} of {self.experts} experts and a shared one beat a dense layer of their joint width",
            paper="arXiv:2503.05139 §2.1",
            ours=by_seed(EXPERTS, "loss"), baseline=by_seed(DENSE, "loss"), better="lower", margin=0.03,
            unit="nats/byte", names=(EXPERTS, DENSE),
            note=f"held-out source after {self.steps * self.batch_size * self.seq_len:,} training bytes, each at "
            "its own learning rate",
        )  # fmt: skip
        worst = {arm: {t: max(r["loads"][: self.climb]) for t, r in runs[arm].items()} for arm in (EXPERTS, CLEAN)}
        load = f"the busiest expert over the mean, in the first {self.climb} steps"
        note = "largest value of these steps, mean over layers; the balance loss is on in both"
        yield Claim(
            statement=f"With the warm-up no expert is overloaded: {load}",
            paper="arXiv:2503.05139 §2.1",
            ours=worst[EXPERTS], baseline=dict.fromkeys(worst[EXPERTS], 1.5), better="lower", margin=0.0,
            unit="fair shares", names=("with warm-up", "limit"), note=note,
        )  # fmt: skip
        yield Claim(
            statement=f"Without it one is: {load}",
            paper="arXiv:2503.05139 §2.1",
            ours=worst[CLEAN], baseline=dict.fromkeys(worst[CLEAN], 2.0), better="higher", margin=0.0,
            unit="fair shares", names=("without", "limit"), note=note,
        )  # fmt: skip
        yield Claim(
            statement=f"With the head's learning rate times {HEAT}, NormHead keeps the loss lower than a plain head",
            paper="arXiv:2503.05139 §2.2",
            ours=by_seed(HOT_NORMALISED, "loss"), baseline=by_seed(HOT_PLAIN, "loss"), better="lower", margin=0.02,
            unit="nats/byte", names=(HOT_NORMALISED, HOT_PLAIN),
            note=f"held-out source at step {self.early}; the rate of everything else is that of the arm `{EXPERTS}`",
        )  # fmt: skip
        yield Claim(
            statement="Evaluating in the middle of training with NormHead changes nothing",
            paper="our own: the released code overwrites the head at its first evaluation",
            ours=checks["ours"], baseline=dict.fromkeys(checks["ours"], 0.0), better="lower", margin=-1e-30,
            unit="largest difference of a weight", names=("evaluated on the way", "not"),
            note="with the released code's overwriting: "
            + ", ".join(f"{value:.2g}" for value in checks["overwriting"].values()),
        )  # fmt: skip


def head_of(model: Decoder) -> Tensor:
    """The parameter behind an untied head."""
    assert model.head is not None
    return model.head.weight


def faster(weight: Tensor, factor: float) -> Hook:
    """A hook after optimiser steps that makes `weight` move `factor` times as far as it did.

    The update of AdamW, decay included, is proportional to the learning rate, so this is a rate `factor` times as high.
    """
    import torch

    before = weight.detach().clone()

    @torch.no_grad()
    def hook(step: int, values: Mapping[str, float]) -> None:
        weight.copy_(before.add_(weight - before, alpha=factor))

    return hook


def fold_at(model: Decoder, steps: int) -> Hook:
    """A hook that does to the head, after so many steps, what the released code does at its first evaluation."""
    import torch

    @torch.no_grad()
    def hook(step: int, values: Mapping[str, float]) -> None:
        if step + 1 == steps:
            head_of(model).copy_(model.head_weight)
            model.config = replace(model.config, head_norm="none")

    return hook


def distance(a: Decoder, b: Decoder) -> float:
    """The largest difference of a weight below the head."""
    pairs = zip(a.named_parameters(), b.named_parameters(), strict=True)
    return max(float((x - y).detach().abs().max()) for (name, x), (_, y) in pairs if not name.startswith("head"))

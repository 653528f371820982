"""Recurrent depth: what a block applied again and again can do, and what it cannot, beside parameters and operations.

Three experiments, each with a baseline of equal parameters and one of equal operations:

- *text* (RingFormer, arXiv:2502.13181): a byte-level language model of six levels on the source of the running Python's
  standard library: untied, tied (Universal Transformer), tied with norms of their own, and the ring, which adds
  low-rank signals per level;
- *hops*: chains of pointers (`worlds.pointer_chase`): one block six times, one block once, six blocks once;
- *thinking* (Inner Thinking Transformer, arXiv:2502.13842): chains of two pointers among fillers; one block that takes
  a second step for some of the tokens, against the block alone and against two.

Left out: translation, images, and the papers' model sizes. ITT's routers do not choose from the start: see
`_looped_tasks.closing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.lab import Claim, Recipe, Run, recipe
from bloomery.recipes._looped_tasks import (
    answers,
    by_trial,
    choose,
    closing,
    cost,
    decoder,
    examined,
    listed,
    made,
    slug,
)

if TYPE_CHECKING:
    from bloomery.models import DecoderConfig, LoopedConfig
    from bloomery.recipes._lm import Corpus
    from bloomery.train import TrainConfig
    from bloomery.worlds.pointer_chase import PointerChase

TEXT_ARMS = ("untied", "tied", "tied + norms", "ring", "two blocks")
HOP_ARMS = ("one block, every level", "one block, once", "as many blocks")
THINKING_ARMS = ("thinking", "one block", "two blocks")
SHARE = 0.4  # of the gap between tied and untied that the ring is to close
THINKING, PLAIN, DEEP = THINKING_ARMS
ROW = 28  # places of a sequence of chains among fillers
THETA = 10.0  # rotary base of the pointer tasks: distances to tell apart are 1 to 8


@recipe(paper="arXiv:2502.13181", stage="pretrain")
@dataclass(kw_only=True)
class LoopedTransformers(Recipe):
    """Depth without parameters: rings with level signals, and thinking steps for the tokens that need them."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"dim": 32, "levels": 3, "text_tokens": 4_000, "seq_len": 64, "rates": [4e-3], "task_dim": 16,
                  "hops": 3, "hop_rows": 320, "thinking_rows": 320, "task_rates": [4e-3], "trials": 1,
                  "test_bytes": 4_000},
        "cpu": {},
        "gpu": {"dim": 512, "levels": 12, "text_tokens": 60_000_000, "seq_len": 512, "batch_size": 32,
                "rates": [2.5e-4, 5e-4, 1e-3, 2e-3], "task_dim": 128, "hops": 12, "hop_rows": 400_000,
                "thinking_rows": 400_000, "task_rates": [5e-4, 1e-3, 2e-3], "trials": 3, "test_bytes": 400_000},
    }  # fmt: skip

    dim: int = 64
    """Width of the language models, a multiple of 32."""
    levels: int = 6
    """Levels of the language models: distinct blocks, or executions of one."""
    text_tokens: int = 80_000
    """Training tokens (bytes) of each language model."""
    seq_len: int = 128
    """Bytes in a training sequence."""
    batch_size: int = 4
    """Sequences in an optimiser step of a language model."""
    rates: list[float] = field(default_factory=lambda: [4e-3, 8e-3])
    """Peak learning rates that every language model tries, ascending."""
    task_dim: int = 32
    """Width of the models of both pointer tasks, a multiple of 4."""
    hops: int = 6
    """Longest chain of pointers, and levels of the models that follow them."""
    hop_rows: int = 14_400
    """Training sequences of each model that follows chains."""
    thinking_rows: int = 14_400
    """Training sequences of each model of the thinking experiment."""
    fraction: float = 0.44
    """Share of the tokens that take a second thinking step."""
    alpha: float = 8.0
    """Weight of the second step before the router's, which is between 0 and 1."""
    task_rates: list[float] = field(default_factory=lambda: [6e-3, 12e-3])
    """Peak learning rates that every model of the pointer tasks tries, ascending."""
    tuning_share: float = 0.3
    """Length of a tuning run, as a share of the whole."""
    trials: int = 3
    """Training seeds of every compared run."""
    test_bytes: int = 24_000
    """Held-out source to measure on."""

    def __post_init__(self) -> None:
        for name in ("levels", "text_tokens", "seq_len", "batch_size", "hops", "hop_rows", "thinking_rows", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        for name, step in (("dim", 32), ("task_dim", 4)):
            if getattr(self, name) < step or getattr(self, name) % step:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix=f"a multiple of {step}")
        for name in ("fraction", "tuning_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="a share above 0 and up to 1")
        for name in ("rates", "task_rates"):
            given = getattr(self, name)
            if not given or given != sorted(set(given)) or given[0] <= 0:
                raise ConfigError(f"{name} are {given}", fix="at least one positive rate, ascending")

    def run(self, run: Run) -> Iterator[Claim]:
        """Every arm of every experiment is one stage: its rate tuned, then its seeds."""
        from bloomery.recipes import _looped_report as report
        from bloomery.recipes._lm import stdlib_corpus

        corpus = stdlib_corpus(self.seed, self.test_bytes)
        text = {arm: run.stage(f"text/{slug(arm)}")(self.text_arm, run, corpus, arm) for arm in TEXT_ARMS}
        report.show_text(run, text)
        yield from self.text_claims(text)
        hops = {arm: run.stage(f"hops/{slug(arm)}")(self.hop_arm, run, arm) for arm in HOP_ARMS}
        report.show_hops(run, hops, self.chase().labels)
        yield from self.hop_claims(hops)
        thinking = {arm: run.stage(f"thinking/{slug(arm)}")(self.thinking_arm, run, arm) for arm in THINKING_ARMS}
        report.show_thinking(run, thinking)
        yield from self.thinking_claims(thinking)

    # --- text ---------------------------------------------------------------------------------------------------------

    def text_config(self, arm: str) -> LoopedConfig:
        """The language model of an arm: the same block, with and without copies, norms and signals of its levels."""
        from bloomery.models import Loop, LoopedConfig, inner_thinking, ringformer

        def sizes(blocks: int) -> DecoderConfig:
            return decoder(257, self.dim, self.dim // 32, blocks, self.seq_len)

        if arm == "untied":
            return inner_thinking(sizes(self.levels), [1] * self.levels)
        if arm == "two blocks":  # as many parameters as the ring, or a few more
            return inner_thinking(sizes(2), [1, 1])
        if arm == "ring":
            return ringformer(sizes(1), self.levels, self.dim // 8, std=0.02, norm_place="pre")
        loop = Loop(times=self.levels, norms="shared" if arm == "tied" else "per_level")
        return LoopedConfig(decoder=sizes(1), loops=(loop,))

    def text_arm(self, run: Run, corpus: Corpus, arm: str) -> dict[str, Any]:
        """Held-out losses of an arm by seed, and what it costs."""
        from bloomery.recipes._lm import fit, tune

        config = self.text_config(arm)

        def loss(tokens: int, rate: float, trial: int) -> Any:
            model = made(config, self.seed, trial)
            settings = self.training(tokens, rate, trial, self.seq_len, self.batch_size, evaluations=3)
            return fit(run, model, corpus.train, corpus.held_out, settings, log=run.log)

        short = int(self.text_tokens * self.tuning_share)
        rate, tried = choose(self.rates, lambda rate: loss(short, rate, self.trials).loss, tune)
        fits = {trial: loss(self.text_tokens, rate, trial) for trial in range(self.trials)}
        return {
            "rate": rate,
            "tried": tried,
            "losses": {trial: one.loss for trial, one in fits.items()},
            "curves": [one.curve for one in fits.values()],
            **cost(config, self.seq_len),
        }

    def text_claims(self, arms: Mapping[str, Any]) -> Iterator[Claim]:
        """That copies of a block are worth their parameters, and how much of this the ring recovers."""
        loss = {arm: by_trial(arms[arm]["losses"]) for arm in TEXT_ARMS}
        line = {t: tied - SHARE * (tied - loss["untied"][t]) for t, tied in loss["tied"].items()}
        gap = sum(loss["tied"].values()) - sum(loss["untied"].values())
        closed = (sum(loss["tied"].values()) - sum(loss["ring"].values())) / gap if gap > 0 else float("nan")
        blocks = arms["ring"]["parameters"] / arms["untied"]["parameters"]
        unit = "nats/byte"
        yield Claim(
            statement=f"The ring closes at least {SHARE:.0%} of the gap between tied and untied levels",
            paper="arXiv:2502.13181",
            ours=loss["ring"],
            baseline=line,
            better="lower",
            margin=0.0,
            unit=unit,
            names=("ring", f"{SHARE:.0%} of the way"),
            note=f"{closed:.0%} of the gap closed, with {blocks:.0%} of the untied model's block parameters",
        )
        yield Claim(
            statement="Level signals and norms make tied levels better",
            paper="arXiv:2502.13181",
            ours=loss["ring"],
            baseline=loss["tied"],
            better="lower",
            margin=0.01,
            unit=unit,
            names=("ring", "tied"),
            note=f"{self.text_tokens:,} training tokens each; every arm at its own best learning rate",
        )
        yield Claim(
            statement="At equal parameters, six levels of a ring beat two distinct blocks",
            paper="our own: what looping is worth when parameters are the budget",
            ours=loss["ring"],
            baseline=loss["two blocks"],
            better="lower",
            margin=0.01,
            unit=unit,
            names=("ring", "two blocks"),
            note=f"the ring takes {arms['ring']['flops'] / arms['two blocks']['flops']:.1f} times the operations",
        )

    # --- hops ---------------------------------------------------------------------------------------------------------

    def chase(self) -> PointerChase:
        """The task of the second experiment: as many hops as levels."""
        from bloomery.worlds.pointer_chase import PointerChase

        return PointerChase(labels=6, depth=self.hops, reach=6)

    def hop_arm(self, run: Run, arm: str) -> dict[str, Any]:
        """Accuracy of an arm by depth of the chain and seed."""
        from bloomery.models import Loop, LoopedConfig

        world, blocks = self.chase(), self.hops if arm == HOP_ARMS[2] else 1
        sizes = decoder(world.vocab_size, self.task_dim, 2, blocks, 4 * self.hops, THETA)
        loop = Loop(blocks=blocks, times=self.hops if arm == HOP_ARMS[0] else 1)
        config = LoopedConfig(decoder=sizes, loops=(loop,))
        rate, tried, ends = self.chase_arm(run, config, world, 4 * self.hops, self.hop_rows)
        return {"rate": rate, "tried": tried, "ends": ends, **cost(config, 4 * self.hops)}

    def hop_claims(self, arms: Mapping[str, Any]) -> Iterator[Claim]:
        """That the loop is what follows the longest chains."""
        deep = {arm: {int(t): end["accuracy"][str(self.hops)] for t, end in arms[arm]["ends"].items()} for arm in arms}
        yield Claim(
            statement=f"One block follows {self.hops} pointers when it is applied {self.hops} times, not once",
            paper="arXiv:1807.03819",
            ours=deep[HOP_ARMS[0]],
            baseline=deep[HOP_ARMS[1]],
            better="higher",
            margin=0.7,
            unit=f"accuracy on chains of {self.hops}",
            names=(f"{self.hops} levels", "one level"),
            note=f"equal parameters; guessing among the labels gives {1 / self.chase().labels:.2f}",
        )
        yield Claim(
            statement=f"The looped block is right on at least 90 % of the chains of {self.hops}",
            paper="arXiv:1807.03819",
            ours=deep[HOP_ARMS[0]],
            baseline=dict.fromkeys(deep[HOP_ARMS[0]], 0.9),
            better="higher",
            margin=0.0,
            unit=f"accuracy on chains of {self.hops}",
            names=("looped", "nine in ten"),
            note=f"{self.hops} distinct blocks at equal operations: {listed(deep[HOP_ARMS[2]])}",
        )

    # --- thinking -----------------------------------------------------------------------------------------------------

    def thinking_arm(self, run: Run, arm: str) -> dict[str, Any]:
        """Losses, routes and effort of an arm on chains among fillers."""
        from bloomery.models import inner_thinking
        from bloomery.worlds.pointer_chase import PointerChase

        world = PointerChase(labels=4, depth=2, reach=8, fillers=0.5)
        times = {THINKING: [2], PLAIN: [1], DEEP: [1, 1]}[arm]
        sizes = decoder(world.vocab_size, self.task_dim, 2, len(times), ROW, THETA)
        config = inner_thinking(sizes, times, self.fraction, self.alpha)
        rate, tried, ends = self.chase_arm(run, config, world, ROW, self.thinking_rows)
        return {"rate": rate, "tried": tried, "ends": ends, **cost(config, ROW)}

    def thinking_claims(self, arms: Mapping[str, Any]) -> Iterator[Claim]:
        """That the router finds the hard tokens, that thinking helps them, and that it is cheap."""
        ends = {arm: by_trial(arms[arm]["ends"]) for arm in THINKING_ARMS}
        hard = {arm: {t: end["hard"] for t, end in ends[arm].items()} for arm in THINKING_ARMS}
        ratio = {t: end["flops"] / arms[PLAIN]["flops"] for t, end in ends[THINKING].items()}
        yield Claim(
            statement="Thinking steps lower the loss on hard tokens at equal parameters",
            paper="arXiv:2502.13842",
            ours=hard[THINKING],
            baseline=hard[PLAIN],
            better="lower",
            margin=0.1,
            unit="nats/hard token",
            names=("thinking", "one block"),
            note=f"two distinct blocks, with more parameters and operations: {listed(hard[DEEP])}",
        )
        yield Claim(
            statement="The router picks the hard tokens",
            paper="arXiv:2502.13842",
            ours={t: end["auc"] for t, end in ends[THINKING].items()},
            baseline=dict.fromkeys(ends[THINKING], 0.5),
            better="higher",
            margin=0.3,
            unit="area under the ROC curve",
            names=("router", "chance"),
            note="router weights of the pointers that one look-up does not answer, against those of fillers",
        )
        yield Claim(
            statement="Thinking takes less than one and a half times the operations of the plain model",
            paper="arXiv:2502.13842",
            ours=ratio,
            baseline=dict.fromkeys(ratio, 1.5),
            better="lower",
            margin=0.0,
            unit="operations of the plain model",
            names=("thinking", "limit"),
            note="counted at the share of tokens that the thresholds let pass on the test sequences",
        )

    # --- both pointer tasks -------------------------------------------------------------------------------------------

    def chase_arm(
        self, run: Run, config: LoopedConfig, world: PointerChase, seq_len: int, rows: int
    ) -> tuple[float, dict[str, float], dict[int, Any]]:
        """The best rate, the losses that decided it, and the examination of a model of every seed."""
        from bloomery.recipes._lm import tune
        from bloomery.train import train

        def end(rows: int, rate: float, trial: int) -> dict[str, Any]:
            model = made(config, self.seed, trial)
            settings = self.training(rows * seq_len, rate, trial, seq_len, 32)
            hooks = [closing(model, rows // 32)] if config.routed else []
            train(model, answers, world, settings, before_batch=hooks, log=run.log, quiet=run.quiet)
            return examined(model, world, seq_len, self.seed)

        short = int(rows * self.tuning_share)
        rate, tried = choose(self.task_rates, lambda rate: float(end(short, rate, self.trials)["loss"]), tune)
        return rate, tried, {trial: end(rows, rate, trial) for trial in range(self.trials)}

    def training(
        self, tokens: int, rate: float, trial: int, seq_len: int, batch_size: int, evaluations: int = 1
    ) -> TrainConfig:
        """The same for every arm of an experiment: a short warm-up, then a cosine to a tenth."""
        from bloomery.train import Phase, TrainConfig

        phase = Phase(tokens=tokens, lr=rate, final_lr=rate / 10, warmup_tokens=tokens // 10)
        every = max(1, tokens // evaluations)
        return TrainConfig(
            phases=[phase],
            seq_len=seq_len,
            batch_size=batch_size,
            weight_decay=0.01,
            eval_every=every,
            seed=self.seed + trial,
        )

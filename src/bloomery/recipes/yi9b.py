"""Yi-9B's growth in small: a trained decoder half as deep again, and training that goes on (arXiv:2403.04652 §7.3).

A base is trained on the source of the running Python's standard library and some arithmetic, byte by byte. Then each
arm makes 12 layers out of its 8 (Yi: 48 out of 32) and trains on: first on the same mixture, then on one with far more
arithmetic, at a small constant learning rate, with a batch that doubles whenever the loss levels off.

- *block*: the window of layers with the highest mean cosine runs twice as a whole;
- *interleave*: the layers with the highest cosines are each followed by their copy;
- *zero-init*: as block, but the copies add nothing at first (arXiv:2401.02415);
- *SOLAR* (arXiv:2312.15166): the window in the middle, whatever the cosines say;
- *lowest*: the contrast, the layers with the lowest cosines, interleaved;
- *random*: new layers drawn at random in the place of block's copies;
- *base*: not grown at all, trained on for as many operations as the others, that is, on more text.

The paper's premise is a base that 3.1T tokens have saturated. Ours is far from that, so *base* is a number to look at
and not a claim: more text still helps a small model more than depth does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import generator
from bloomery.lab import Claim, Recipe, Run, recipe
from bloomery.recipes._yi9b_report import Results, show

if TYPE_CHECKING:
    from bloomery.corpus.bytes_stream import ByteStream
    from bloomery.corpus.mixture import Mixture
    from bloomery.models import Decoder, DecoderConfig
    from bloomery.models.growth import GrowthPlan
    from bloomery.recipes._lm import HeldOutSample
    from bloomery.train import TrainConfig

GROWN = ("block", "interleave", "zero-init", "SOLAR", "lowest", "random")
GENERAL = {"source": 0.9, "problems": 0.1}  # the mixture of the base and of the first stage
EMPHASIS = {"source": 0.5, "problems": 0.5}  # of the second stage
FIRST_STAGE = 0.6  # its share of the continued training
PROBLEMS = 20_000  # arithmetic problems to train on


@dataclass(frozen=True)
class Texts:
    """What is trained on, what the layers are chosen by, and what decides."""

    source: ByteStream
    problems: ByteStream
    calibration: HeldOutSample  # of the training source
    held_out: HeldOutSample  # source of modules never trained on
    unseen: ByteStream  # problems never trained on


@recipe(paper="arXiv:2403.04652", stage="pretrain")
@dataclass(kw_only=True)
class Yi9B(Recipe):
    """Depth up-scaling: copy the layers that do least, then train on in two stages with a growing batch."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"dim": 32, "depth": 4, "grown": 6, "tokens": 6_000, "continued": 4_000, "seq_len": 32,
                  "batch_size": 4, "window": 4, "trials": 1, "test_bytes": 4_000},
        "cpu": {},
        "gpu": {"dim": 512, "depth": 12, "grown": 18, "tokens": 60_000_000, "continued": 20_000_000, "seq_len": 512,
                "batch_size": 32, "lr": 1e-3, "continued_lr": 2e-4, "window": 100, "test_bytes": 400_000},
    }  # fmt: skip

    dim: int = 64
    """Width of the model, a multiple of 32."""
    depth: int = 8
    """Layers of the base."""
    grown: int = 12
    """Layers after growth, an even number (SOLAR's two parts are equal)."""
    tokens: int = 540_000
    """Training tokens (bytes) of the base."""
    continued: int = 64_000
    """Training tokens of each grown model."""
    seq_len: int = 96
    """Bytes in a training sequence."""
    batch_size: int = 8
    """Sequences in an optimiser step; continued training may raise it to four times as many."""
    window: int = 20
    """Steps over which a loss that has not fallen makes the batch grow."""
    lr: float = 4e-3
    """Peak learning rate of the base, which falls to a tenth."""
    continued_lr: float = 1e-3
    """Constant learning rate of continued training, the same for all arms."""
    trials: int = 3
    """Training seeds of every compared run."""
    test_bytes: int = 12_000
    """Held-out source to measure on."""

    def __post_init__(self) -> None:
        for name in ("tokens", "continued", "seq_len", "batch_size", "window", "trials", "test_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        if self.dim < 32 or self.dim % 32:
            raise ConfigError(f"dim is {self.dim}", fix="a multiple of 32: heads are that wide")
        if self.depth < 2 or self.grown % 2 or not self.depth < self.grown < 2 * self.depth:
            raise ConfigError(
                f"grown is {self.grown} and depth {self.depth}", fix="grown even, above depth and below twice as much"
            )

    def run(self, run: Run) -> Iterator[Claim]:
        """For every seed: train a base, look at its layers, grow it in every way, train all of them on."""
        texts = self.texts()
        reports: dict[int, dict[str, Any]] = {}
        arms: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in (*GROWN, "base")}
        for trial in range(self.trials):
            base = run.stage(f"base/{trial}")
            base(self.pretrain, run, texts, trial, base.folder)
            report = run.stage(f"layers/{trial}")
            reports[trial] = report(self.look, texts, base.folder / "model")
            for arm in arms:
                stage = run.stage(f"continue/{arm}-{trial}")
                arms[arm][trial] = stage(
                    self.go_on, run, texts, arm, reports[trial]["cosine"], trial, base.folder / "model", stage.folder
                )
        show(run, reports, arms)
        yield from self.claims(arms)

    # --- data --------------------------------------------------------------------------------------------------------

    def texts(self) -> Texts:
        """Source split by module; arithmetic of which no question is on both sides."""
        from bloomery.corpus.bytes_stream import ByteStream
        from bloomery.recipes._lm import HeldOutSample, stdlib_corpus

        corpus = stdlib_corpus(self.seed, held_out_bytes=self.test_bytes)
        taught = problems(self.seed, PROBLEMS)
        unseen = [f"{q} {a}" for q, a in problems(self.seed + 1, 600).items() if q not in taught]
        return Texts(
            source=corpus.train,
            problems=ByteStream([f"{question} {answer}" for question, answer in taught.items()]),
            calibration=HeldOutSample(corpus.train, self.test_bytes // 2),
            held_out=corpus.held_out,
            unseen=ByteStream(unseen),
        )

    def blend(self, texts: Texts, weights: Mapping[str, float]) -> Mixture:
        """Source and problems in these shares."""
        from bloomery.corpus.mixture import Mixture

        return Mixture({"source": texts.source, "problems": texts.problems}, weights)

    # --- the base ----------------------------------------------------------------------------------------------------

    def decoder_config(self) -> DecoderConfig:
        """Yi in small: Llama's decoder with grouped keys."""
        from bloomery.corpus.bytes_stream import VOCAB_SIZE
        from bloomery.models import DecoderConfig

        heads = self.dim // 32
        return DecoderConfig(
            vocab_size=VOCAB_SIZE,
            dim=self.dim,
            n_layers=self.depth,
            n_heads=heads,
            n_kv_heads=max(1, heads // 2),
            head_dim=32,
            ffn_dim=self.dim * 5 // 2,
            max_positions=self.seq_len,
        )

    def pretrain(self, run: Run, texts: Texts, trial: int, folder: Path) -> None:
        """Train the base and leave it in `folder`/model."""
        from bloomery.core.devices import pick_device
        from bloomery.models import Decoder, save_pretrained
        from bloomery.train import Phase, TrainConfig, next_token, train

        model = Decoder(self.decoder_config(), generator(self.seed, "init", trial)).to(pick_device())
        phase = Phase(tokens=self.tokens, lr=self.lr, final_lr=self.lr / 10, warmup_tokens=self.tokens // 20)
        config = TrainConfig(phases=[phase], seq_len=self.seq_len, batch_size=self.batch_size, seed=self.seed + trial)
        train(model, next_token, self.blend(texts, GENERAL), config, log=run.log, quiet=run.quiet)
        save_pretrained(model, folder / "model")

    # --- growing -----------------------------------------------------------------------------------------------------

    def look(self, texts: Texts, base: Path) -> dict[str, Any]:
        """The layer report, and what every window of layers would cost before any training."""
        import torch

        from bloomery.core.devices import pick_device
        from bloomery.models import load_pretrained
        from bloomery.models.growth import layer_similarity, preview, window_losses

        model = load_pretrained(base, device=pick_device())
        sequences = [torch.as_tensor(w["tokens"])[None, :-1] for w in texts.calibration.windows(self.seq_len)]
        report = layer_similarity(model, ({"tokens": tokens} for tokens in sequences))

        def loss(grown: Decoder) -> float:
            return self.measure(grown, texts.calibration)

        losses = window_losses(model, self.grown - self.depth, loss)
        chosen = self.plan("block", report.without_first)
        return {
            "cosine": report.without_first,
            "cosine_with_first": report.cosine,
            "windows": {plan.sources[plan.copies[0]]: value for plan, value in losses.items()},  # by its first layer
            "problems": self.measure(model, texts.unseen),
            "alphas": {a: loss(preview(model, replace(chosen, alpha=a))) for a in (0.0, 0.25, 0.5, 1.0)},
            "plans": {arm: self.plan(arm, report.without_first).sources for arm in GROWN},
        }

    def plan(self, arm: str, cosine: Sequence[float]) -> GrowthPlan:
        """How an arm grows a base whose layers have these cosines."""
        from bloomery.models.growth import GrowthPlan, best_layers, best_window

        added = self.grown - self.depth
        if arm == "SOLAR":
            return GrowthPlan.solar(self.depth, self.grown)
        if arm == "interleave":
            return GrowthPlan.interleave(self.depth, best_layers(cosine, added))
        if arm == "lowest":
            return GrowthPlan.interleave(self.depth, best_layers([-c for c in cosine], added))
        start, stop = best_window(cosine, added)
        return GrowthPlan.block(self.depth, start, stop, alpha=0.0 if arm == "zero-init" else 1.0)

    def grow(self, arm: str, cosine: list[float], trial: int, base: Path, folder: Path) -> Decoder:
        """The model an arm starts from, grown as a folder on disk."""
        from bloomery.core.devices import pick_device
        from bloomery.models import Decoder, load_pretrained
        from bloomery.models.growth_folder import grow_pretrained

        if arm == "base":
            return load_pretrained(base, device=pick_device())
        plan = self.plan(arm, cosine)
        grow_pretrained(base, folder / "grown", plan, quiet=True)
        model = load_pretrained(folder / "grown")
        if arm == "random":
            drawn = Decoder(model.config, generator(self.seed, "new layers", trial))
            for layer in plan.copies:
                model.blocks[layer] = drawn.blocks[layer]
        return model.to(pick_device())

    # --- training on -------------------------------------------------------------------------------------------------

    def continuation(self, tokens: int, trial: int) -> TrainConfig:
        """Two stages at one small constant rate; the batch doubles on a plateau, up to four times."""
        from bloomery.train import BatchGrowth, Phase, TrainConfig

        first = int(FIRST_STAGE * tokens)
        warmup = 20 * self.batch_size * self.seq_len  # fresh moments and doubled layers make the first steps large
        shape: dict[str, Any] = {"lr": self.continued_lr, "schedule": "constant"}
        return TrainConfig(
            phases=[
                Phase(tokens=first, warmup_tokens=min(first, warmup), data="general", **shape),
                Phase(tokens=tokens - first, data="emphasis", **shape),
            ],
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            growth=BatchGrowth(window=self.window, max_batch_size=4 * self.batch_size),
            eval_every=first,
            seed=self.seed + 1000 + trial,  # other rows than the base has seen last
        )

    def go_on(
        self, run: Run, texts: Texts, arm: str, cosine: list[float], trial: int, base: Path, folder: Path
    ) -> dict[str, Any]:
        """Grow, measure, train on, measure; the base itself gets as many operations as a grown model."""
        from bloomery.models import save_pretrained
        from bloomery.train import next_token, train

        model = self.grow(arm, cosine, trial, base, folder)
        tokens = int(self.continued * (self.longer() if arm == "base" else 1))
        init = self.measure(model, texts.held_out)
        curve, batches, seen = [(0, init)], [(0, self.batch_size)], 0

        def note(step: int, values: Mapping[str, float]) -> None:
            nonlocal seen
            if int(values["batch_size"]) != batches[-1][1]:
                batches.append((seen, int(values["batch_size"])))
            seen = int(values["tokens"])

        def evaluate(model: Any, step: int) -> dict[str, float]:
            curve.append((seen, self.measure(model, texts.held_out)))
            return {"held_out": curve[-1][1]}

        data = {"general": self.blend(texts, GENERAL), "emphasis": self.blend(texts, EMPHASIS)}
        config = self.continuation(tokens, trial)
        train(model, next_token, data, config, evaluate=evaluate, after_step=[note], log=run.log, quiet=run.quiet)
        if arm == "block":
            save_pretrained(model, folder / "model")
        return {
            "init": init,
            "final": curve[-1][1],
            "problems": self.measure(model, texts.unseen),
            "curve": curve,
            "batches": batches,
            "tokens": seen,
            "parameters": model.num_parameters(),
        }

    def longer(self) -> float:
        """Operations per token of a grown model over those of the base."""
        import torch

        from bloomery.models import Decoder

        with torch.device("meta"):
            grown, base = (Decoder(replace(self.decoder_config(), n_layers=n)) for n in (self.grown, self.depth))
        return grown.flops_per_token(self.seq_len) / base.flops_per_token(self.seq_len)

    def measure(self, model: Decoder, text: Any) -> float:
        """Loss in nats per token; a token is a byte, or the edge of a document."""
        from bloomery.train import held_out

        return held_out(model, text, seq_len=self.seq_len, batch_size=64).nats_per_token

    # --- what it shows -----------------------------------------------------------------------------------------------

    def claims(self, arms: Results) -> Iterator[Claim]:
        """Exact where it must be, better than the contrast, no worse than SOLAR."""

        def values(arm: str, key: str) -> dict[int, float]:
            return {trial: result[key] for trial, result in arms[arm].items()}

        base, silent = values("base", "init"), values("zero-init", "init")
        block, interleave = values("block", "init"), values("interleave", "init")
        yield Claim(
            statement="Copies that add nothing leave the loss exactly as it was",
            paper="arXiv:2401.02415",
            ours={trial: abs(silent[trial] - base[trial]) for trial in base},
            baseline=dict.fromkeys(base, 0.0),
            better="lower",
            margin=-1e-6,
            unit="nats/byte",
            names=("change", "none"),
        )
        yield Claim(
            statement="Before any training, copying the layers with the highest cosines costs less than the lowest",
            paper=self.paper,
            ours={trial: max(block[trial], interleave[trial]) for trial in base},
            baseline=values("lowest", "init"),
            better="lower",
            margin=0.04,
            unit="nats/byte",
            names=("highest", "lowest"),
            note="ours is the worse of block and interleave",
        )
        for key, when, margin in (("init", "Before any training", 0.02), ("final", "After continued training", 0.01)):
            yield Claim(
                statement=f"{when}, the window chosen by cosine is no worse than SOLAR's, which lies in the middle",
                paper=self.paper,
                ours=values("block", key),
                baseline=values("SOLAR", key),
                better="lower",
                margin=-margin,
                unit="nats/byte",
                names=("chosen", "SOLAR"),
                note="both run a window twice as a block; where it lies is their only difference",
            )
        yield Claim(
            statement="After continued training, the chosen block is still ahead of the lowest cosines",
            paper=self.paper,
            ours=values("block", "final"),
            baseline=values("lowest", "final"),
            better="lower",
            margin=0.005,
            unit="nats/byte",
            names=("block", "lowest"),
            note=f"the base trained on for as many operations: {fmean(values('base', 'final').values()):.4f}",
        )


def problems(seed: int, count: int) -> dict[str, str]:
    """Arithmetic questions with their answers, each question once."""
    from bloomery.worlds.arithmetic import examples

    drawn = islice(examples(difficulty=(1, 2, 3), seed=seed), count)
    return {problem.prompt: problem.answer for problem in drawn}

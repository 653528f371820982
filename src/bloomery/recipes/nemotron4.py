"""Nemotron-4's training: squared ReLU, a batch ramp, and continued training that switches its data as the rate decays.

Three comparisons on the source of the running Python's standard library, byte by byte, with the same decoder in small
(LayerNorm1P, half-rotated heads, grouped keys, no gate, no biases, untied head):

- *activation* (arXiv:2402.16819): squared ReLU against GELU and against gated SwiGLU at equal parameters;
- *ramp* (arXiv:2402.16819): a batch that grows in three stages against the largest one throughout, at equal tokens;
- *continued training* (arXiv:2407.07263, arXiv:2406.11704): 15 % more tokens from the end of pretraining, on the old
  blend at a flat rate, on the old blend under a steep decay, and under the same decay with questions and answers
  weighted up once the rate has fallen to a fifth (the paper's choice), to a half, or at once.

Pretraining is shared: the squared-ReLU runs of the first comparison are the constant batch of the second and the base
of the third. Left out: the tokenizer, multilingual data, model parallelism, and benchmarks (we measure cross-entropy).
"""

from __future__ import annotations

import ast
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import generator, rng
from bloomery.lab import Claim, Recipe, Run, recipe
from bloomery.recipes._nemotron4_report import CONTINUED, Results, mean, show

if TYPE_CHECKING:
    from bloomery.corpus.bytes_stream import ByteStream
    from bloomery.corpus.examples import PackedExamples
    from bloomery.corpus.mixture import Mixture
    from bloomery.models import Decoder, DecoderConfig
    from bloomery.nn.mlp import Activation
    from bloomery.recipes._lm import HeldOutSample
    from bloomery.train import Phase, TrainConfig
    from bloomery.worlds.stdlib_source import SourceFile

ARMS: dict[str, tuple[Activation, bool]] = {  # activation, gated
    "relu2": ("relu2", False),
    "SwiGLU": ("silu", True),
    "GELU": ("gelu", False),
}
GENERAL = {"source": 0.9, "questions": 0.1}  # the blend of pretraining
PAPER = "switch at 0.2"


@dataclass(frozen=True)
class Texts:
    """What is trained on and what decides, split by module."""

    source: ByteStream
    questions: ByteStream
    held_out: HeldOutSample  # source of held-out modules
    probe: PackedExamples  # questions about held-out modules; the answers count


# --8<-- [start:fields]
@recipe(paper="arXiv:2402.16819", stage="pretrain")
@dataclass(kw_only=True)
class Nemotron4(Recipe):
    """Squared ReLU, a batch ramp, and continued training that switches its data as the rate decays."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"dim": 48, "depth": 1, "tokens": 6_000, "seq_len": 64, "trials": 1, "rates": [4e-3],
                  "test_bytes": 4_000, "test_questions": 16},
        "cpu": {},
        "gpu": {"dim": 384, "depth": 8, "tokens": 40_000_000, "seq_len": 512, "batch_size": 64,
                "rates": [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3], "test_bytes": 400_000, "test_questions": 1_000},
    }  # fmt: skip

    dim: int = 96
    """Width of the model, a multiple of 48."""
    depth: int = 2
    """Layers."""
    tokens: int = 150_000
    """Training tokens (bytes) of each pretraining run."""
    continued: float = 0.15
    """Tokens of continued training, as a share of `tokens`."""
    questions: float = 0.7
    """Share of questions and answers in the last blend."""
    seq_len: int = 128
    """Bytes in a training sequence."""
    batch_size: int = 4
    """Sequences in an optimiser step; the ramp begins with a quarter, then takes a half."""
    rates: list[float] = field(default_factory=lambda: [1e-3, 2e-3, 4e-3, 8e-3, 16e-3])
    """Peak learning rates to try for each activation, ascending, from the middle outwards."""
    trials: int = 3
    """Training seeds of every compared run."""
    test_bytes: int = 16_000
    """Held-out source to measure on."""
    test_questions: int = 120
    """Held-out questions to measure on."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        for name in ("depth", "tokens", "seq_len", "trials", "test_bytes", "test_questions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        if self.dim < 48 or self.dim % 48:
            raise ConfigError(f"dim is {self.dim}", fix="a multiple of 48: SwiGLU takes 8/3 of it, RoPE half a head")
        if self.batch_size < 4 or self.batch_size % 4:
            raise ConfigError(f"batch_size is {self.batch_size}", fix="a multiple of 4: the ramp begins with a quarter")
        if not 0 < self.continued <= 1 or not 0 < self.questions < 1:
            raise ConfigError(f"continued is {self.continued}, questions {self.questions}", fix="shares of one")
        if not self.rates or self.rates != sorted(set(self.rates)) or self.rates[0] <= 0:
            raise ConfigError(f"rates are {self.rates}", fix="at least one positive rate, ascending")

    def run(self, run: Run) -> Iterator[Claim]:
        """Tune every activation, pretrain, ramp, continue; each comparison seed by seed."""
        texts = self.texts()
        peaks = {arm: run.stage(f"tune/{arm}")(self.tune, run, texts, arm) for arm in ARMS}
        runs: dict[str, dict[int, Any]] = {name: {} for name in (*ARMS, "ramp", *CONTINUED)}
        for trial in range(self.trials):
            for arm in ARMS:
                stage = run.stage(f"pretrain/{arm}-{trial}")
                runs[arm][trial] = stage(self.pretrain, run, texts, arm, trial, peaks[arm]["rate"], stage.folder)
            ramp = run.stage(f"pretrain/ramp-{trial}")
            runs["ramp"][trial] = ramp(self.pretrain, run, texts, "ramp", trial, peaks["relu2"]["rate"], ramp.folder)
            base = run.folder / "pretrain" / f"relu2-{trial}"
            for arm in CONTINUED:
                stage = run.stage(f"continue/{arm.replace(' ', '-')}-{trial}")
                runs[arm][trial] = stage(self.go_on, run, texts, arm, trial, peaks["relu2"]["rate"], base)
        show(run, peaks, runs)
        yield from self.activation_claims(runs)
        yield from self.ramp_claims(runs)
        yield from self.continued_claims(runs)

    # --- data --------------------------------------------------------------------------------------------------------

    def texts(self) -> Texts:
        """The library's source and the questions made from its docstrings, without what both sides share."""
        from bloomery.corpus.bytes_stream import ByteStream
        from bloomery.corpus.examples import PackedExamples
        from bloomery.recipes._lm import HeldOutSample
        from bloomery.worlds.stdlib_source import sources

        split = sources(self.seed)
        taught, asked = ask(split.train), ask(split.held_out)
        known = {answer for _, answer in taught}
        fresh = [pair for pair in asked if pair[1] not in known]
        chosen = rng(self.seed, "questions").permutation(len(fresh))[: self.test_questions]
        examples = [example(*fresh[i]) for i in sorted(chosen)]
        return Texts(
            source=ByteStream([file.text for file in split.train]),
            questions=ByteStream([question + answer for question, answer in taught]),
            held_out=HeldOutSample(ByteStream([file.text for file in split.held_out]), self.test_bytes),
            probe=PackedExamples(examples),
        )

    # --- training ----------------------------------------------------------------------------------------------------

    def decoder_config(self, arm: str) -> DecoderConfig:
        """Nemotron-4 in small; every activation has 8 · dim² weights in each feed-forward layer."""
        from bloomery.corpus.bytes_stream import VOCAB_SIZE
        from bloomery.models import DecoderConfig

        activation, gated = ARMS[arm]
        n_heads = max(4, self.dim // 64)
        head_dim = self.dim // n_heads
        return DecoderConfig(
            vocab_size=VOCAB_SIZE,
            dim=self.dim,
            n_layers=self.depth,
            n_heads=n_heads,
            n_kv_heads=n_heads // 2,
            head_dim=head_dim,
            ffn_dim=8 * self.dim // 3 if gated else 4 * self.dim,
            max_positions=self.seq_len,
            norm="ln1p",
            activation=activation,
            gated=gated,
            rope_dim=head_dim // 2,
            tie_embeddings=False,
            init_std=self.dim**-0.5,  # the published 0.0134 at width 6144 is 1.05 of this; a gate needs it most
        )

    def model(self, arm: str, trial: int) -> Decoder:
        """Fresh weights; those of one trial agree between the arms wherever their shapes do."""
        from bloomery.core.devices import pick_device
        from bloomery.models import Decoder

        return Decoder(self.decoder_config(arm), generator(self.seed, "init", trial)).to(pick_device())

    def phase(self, tokens: int, rate: float, ramp: bool = False) -> Phase:
        """Warm-up and a cosine to a tenth; the ramp's two early stages take an eighth of the tokens each."""
        from bloomery.train import Change, Phase

        stages = [Change(at_tokens=tokens * i // 8, batch_size=self.batch_size * i // 2) for i in (1, 2)]
        return Phase(
            tokens=tokens,
            lr=rate,
            final_lr=rate / 10,
            warmup_tokens=tokens // 20,
            batch_size=self.batch_size // 4 if ramp else self.batch_size,
            changes=stages if ramp else [],
        )

    def settings(self, phase: Phase, trial: int, evaluations: int) -> TrainConfig:
        """One phase, measured so many times."""
        from bloomery.train import TrainConfig

        every = -(-phase.tokens // evaluations)
        return TrainConfig(phases=[phase], seq_len=self.seq_len, batch_size=self.batch_size, eval_every=every,
                           keep_last=1, seed=self.seed + trial)  # fmt: skip

    def tune(self, run: Run, texts: Texts, arm: str) -> dict[str, Any]:
        """The peak rate with the least held-out loss after half the tokens, on a seed that no claim uses."""
        from bloomery.recipes._lm import tune

        def loss(rate: float) -> float:
            model, config = self.model(arm, -1), self.settings(self.phase(self.tokens // 2, rate), -1, 1)
            return float(self.train(run, model, self.blend(texts), config, texts)["source"])

        rate, losses = tune(self.rates, loss)
        return {"rate": rate, "losses": {f"{r:g}": loss for r, loss in losses.items()}}

    def pretrain(self, run: Run, texts: Texts, arm: str, trial: int, rate: float, folder: Path) -> dict[str, Any]:
        """One run on the general blend; its last checkpoint stays in `folder`."""
        ramp = arm == "ramp"
        model = self.model("relu2" if ramp else arm, trial)
        config = self.settings(self.phase(self.tokens, rate, ramp), trial, 8 if ramp or arm == "relu2" else 1)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a curve is whole or measured again
        result = self.train(run, model, self.blend(texts), config, texts, out=folder)
        return result | {"zeros": zeros(model, texts.held_out, self.seq_len)}

    def go_on(self, run: Run, texts: Texts, arm: str, trial: int, rate: float, base: Path) -> dict[str, Any]:
        """Continue the run in `base`, optimiser state and all, from the rate it ended with and the rows it came to."""
        from bloomery.train import Change, Phase, Plan

        at = CONTINUED[arm]
        shape: dict[str, Any] = {"schedule": "constant"} if arm == "flat" else {"final_lr": rate / 10 / 100}
        switch = [Change(at_lr=at, data="emphasis")] if at and at < 1 else []
        first = "emphasis" if at == 1 else "general"
        tokens = int(self.continued * self.tokens)
        phase = Phase(tokens=tokens, lr=rate / 10, data=first, changes=switch, **shape)
        config = self.settings(phase, trial, 3)

        pretraining, plan = Plan(self.settings(self.phase(self.tokens, rate), trial, 1)), Plan(config)
        general = self.blend(texts, starts=self.blend(texts).given(pretraining.rows[None], config.seed))
        weights = {"source": 1 - self.questions, "questions": self.questions}
        emphasis = self.blend(texts, weights, general.given(plan.rows["general"], config.seed))
        data = {"general": general, "emphasis": emphasis}
        return self.train(run, self.model("relu2", trial), data, config, texts, init_from=base)

    def blend(
        self, texts: Texts, weights: Mapping[str, float] = GENERAL, starts: Mapping[str, int] | None = None
    ) -> Mixture:
        """Source and questions in these shares, each from row `starts` on."""
        from bloomery.corpus.mixture import Mixture

        return Mixture({"source": texts.source, "questions": texts.questions}, weights, starts)

    def train(
        self, run: Run, model: Decoder, data: Any, config: TrainConfig, texts: Texts, **where: Any
    ) -> dict[str, Any]:
        """Train in place; losses at the end and on the way, in nats per byte of source and of answers."""
        from bloomery.train import held_out, next_token, train

        curve: list[list[float]] = []  # tokens, source, questions
        rates: list[list[float]] = []  # tokens, learning rate, batch size

        def note(step: int, values: Mapping[str, float]) -> None:
            rates.append([values["tokens"], values["lr"], values["batch_size"]])

        def evaluate(model: Any, step: int) -> dict[str, float]:
            source, questions = (
                held_out(model, test, seq_len=config.seq_len, batch_size=64).nats_per_token
                for test in (texts.held_out, texts.probe)
            )
            curve.append([rates[-1][0], source, questions])
            return {"source": source, "questions": questions}

        result = train(model, next_token, data, config, evaluate=evaluate, after_step=[note], log=run.log,
                       quiet=run.quiet, **where)  # fmt: skip
        few = rates[:: max(1, len(rates) // 100)]
        return {**result.evaluation, "steps": result.steps, "tokens": result.tokens, "curve": curve, "rates": few}

    # --- claims ------------------------------------------------------------------------------------------------------

    def activation_claims(self, runs: Results) -> Iterator[Claim]:
        """Sparse for certain; and not paid for in loss?"""
        note = f"{self.tokens:,} training bytes each; every feed-forward layer has {8 * self.dim**2:,} weights"
        yield Claim(
            statement="After training, at least 60 % of the squared-ReLU activations are exactly zero",
            paper="arXiv:2402.16819",
            ours={t: mean(r["zeros"]) for t, r in runs["relu2"].items()},
            baseline={t: mean(r["zeros"]) for t, r in runs["GELU"].items()},
            better="higher",
            margin=0.6,
            unit="share of zeros",
            names=("relu2", "GELU"),
            note="mean over layers, on held-out source; about 50 % before training",
        )
        for rival, margin, says in (
            ("SwiGLU", -0.02, "Squared ReLU is at most 0.02 nats worse than gated SwiGLU at equal parameters"),
            ("GELU", 0.01, "Squared ReLU is at least 0.01 nats better than GELU at equal parameters"),
        ):
            yield compare(says, "arXiv:2402.16819", runs, ("relu2", rival), "source", margin, note)

    def ramp_claims(self, runs: Results) -> Iterator[Claim]:
        """Ahead early, level at the end."""
        steps = f"ramp {runs['ramp'][0]['steps']:,}, constant {runs['relu2'][0]['steps']:,}"
        note = f"optimiser steps over {self.tokens:,} bytes: {steps}; both at the rate tuned for the constant batch"
        paper = "arXiv:2402.16819"
        early = {arm: {t: r["curve"][1][1] for t, r in runs[arm].items()} for arm in ("ramp", "relu2")}
        yield Claim(
            statement="After the two small stages of the ramp, at equal tokens, the ramp is ahead",
            paper=paper, ours=early["ramp"], baseline=early["relu2"], better="lower", margin=0.0,
            unit="nats/byte", names=("ramp", "constant"), note=note,
        )  # fmt: skip
        says = "At the end the ramp is at most 0.02 nats worse than the largest batch throughout"
        yield compare(says, paper, runs, ("ramp", "relu2"), "source", -0.02, note, ("ramp", "constant"))

    def continued_claims(self, runs: Results) -> Iterator[Claim]:
        """The second blend pays on what it holds and costs nothing elsewhere."""
        paper = "arXiv:2407.07263"
        tokens = f"{int(self.continued * self.tokens):,} bytes after {self.tokens:,}, from a tenth of the peak rate"
        says = "Decay with a switch to questions beats the old blend at a flat rate on unseen answers"
        yield compare(says, paper, runs, (PAPER, "flat"), "questions", 0.15, tokens)
        says = "On general text it is at most 0.02 nats worse"
        yield compare(says, paper, runs, (PAPER, "flat"), "source", -0.02, tokens)
        note = f"{tokens}; both decay alike, so that only the data differs"
        says = "Switched at once, the second blend beats the old one on unseen answers"
        own = "our own: what the second blend is worth while the rate can still move the weights"
        yield compare(says, own, runs, ("switch at once", "decay"), "questions", 0.0, note)


def compare(
    statement: str,
    paper: str,
    runs: Results,
    arms: tuple[str, str],
    key: str,
    margin: float,
    note: str,
    names: tuple[str, str] | None = None,
) -> Claim:
    """A claim about the final loss `key` of two arms."""
    ours, baseline = ({t: r[key] for t, r in runs[arm].items()} for arm in arms)
    unit = "nats/byte" if key == "source" else "nats/byte of answer"
    return Claim(statement=statement, paper=paper, ours=ours, baseline=baseline, better="lower", margin=margin,
                 unit=unit, names=names or arms, note=note)  # fmt: skip


def ask(files: Iterable[SourceFile]) -> list[tuple[str, str]]:
    """A question about every documented function and the first line of its docstring as the answer, each pair once."""
    found: dict[tuple[str, str], None] = {}
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd escapes in strings
                tree = ast.parse(file.text)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (text := ast.get_docstring(node)):
                first = text.strip().partition("\n")[0].strip()
                if len(first.split()) > 2:
                    found[f"Q: what does {node.name} do? A: ", first] = None
    return list(found)


def example(question: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of a question and its answer between two edges, and a mask that is 1 on the answer and its end."""
    from bloomery.corpus.bytes_stream import EDGE

    asked, told = [EDGE, *question.encode("utf-8", "replace")], [*answer.encode("utf-8", "replace"), EDGE]
    return [*asked, *told], [0] * len(asked) + [1] * len(told)


def zeros(model: Any, held: Any, seq_len: int) -> list[float]:
    """Share of activations that are exactly 0 in each layer, on held-out text."""
    import torch

    from bloomery.train import held_out

    counts = torch.zeros(len(model.blocks), 2, dtype=torch.float64)

    def watch(layer: int) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            counts[layer] += torch.tensor([(inputs[0] == 0).sum().item(), inputs[0].numel()])

        return hook

    handles = [block.ffn.down.register_forward_pre_hook(watch(i)) for i, block in enumerate(model.blocks)]
    held_out(model, held, seq_len=seq_len, batch_size=64)
    for handle in handles:
        handle.remove()
    return [float(n / total) for n, total in counts]

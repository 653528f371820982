"""The main job: web pages → crawl → curate → tokenizer → pretrain → instruction tuning → evaluate → export.

The claim is DCLM's (arXiv:2406.11794) in miniature: at equal training tokens, a model trained on the curated corpus
predicts held-out good text better than the same model trained on the raw crawl. Without other input, the pages are the
documentation of the running Python, served over HTTP on this machine and crawled like any site: prose and signatures,
but also source listings, alphabetical indices and navigation on every page.

Left out of the method at this size: models are compared by their loss on held-out text, not on DCLM's 53 tasks, and
instruction tuning is supervised only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.core.files import read_json, write_json
from bloomery.core.seeds import generator
from bloomery.lab import Claim, Recipe, Run, recipe
from bloomery.recipes._end_to_end_report import show_ablation, show_corpora, show_crawl, show_model, show_training
from bloomery.recipes._inputs import Inputs, take, texts_of, usual_port, write_truth
from bloomery.recipes._quality_first import page_scorer
from bloomery.recipes._questions import CHOICES, answers, choice_accuracy, fitting, lessons

if TYPE_CHECKING:
    from bloomery.models import DecoderConfig
    from bloomery.train import TrainConfig

ARMS = ("curated", "raw")
BETWEEN = ("main_text", "filtered")  # corpora on the way from raw to curated: which part of curation helps?
SCORER_TEXTS = 2_000  # texts of either kind that the quality classifier learns from
TOKENIZER_CHARS = 3_000_000  # text of either corpus that the tokenizer learns from
HELD_OUT_CHARS = 200_000
SEGMENT_BYTES = 1 << 20  # small WARC files, so that curation has several to share among its processes
TEST_QUESTIONS = 400
PROMPTS = ("Return the", "Raised when", "This module provides", "The number of")


# --8<-- [start:fields]
@recipe(paper="arXiv:2406.11794", stage="end to end")
@dataclass(kw_only=True)
class EndToEnd(Recipe):
    """From web pages to a trained, tuned, evaluated and exported model."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"packages": ["stdlib"], "pages": 600, "vocab_size": 512, "depth": 1, "tokens": 8_000,
                  "tuning_tokens": 4_000, "trials": 1, "seq_len": 64},
        "cpu": {},
        "gpu": {"packages": [], "pages": 40_000, "vocab_size": 16_384, "depth": 10, "tokens": 200_000_000,
                "tuning_tokens": 5_000_000, "seq_len": 1024, "batch_size": 64, "lr": 1e-3},
    }  # fmt: skip

    packages: list[str] = field(default_factory=lambda: ["stdlib", "numpy", "torch"])
    """What the embedded web documents: `stdlib`, names of packages; empty means everything installed."""
    seeds: list[str] = field(default_factory=list)
    """Start URLs of a real site to crawl instead of the embedded web."""
    warc: list[Path] = field(default_factory=list)
    """WARC files to read instead of crawling."""
    jsonl: list[Path] = field(default_factory=list)
    """JSON-lines files (key `text`) to read instead of crawling."""
    parquet: list[Path] = field(default_factory=list)
    """Parquet files of documents to read instead of crawling."""
    pages: int = 10_000
    """Pages to crawl at most."""
    crawl_order: Literal["breadth", "quality"] = "breadth"
    """`quality` crawls in rounds by a classifier's score, as Craw4LLM (embedded web only); matters below all pages."""
    curation: Literal["usual", "dclm"] = "usual"
    """`dclm` takes DCLM-Baseline's page and line rules and Bloom-filter deduplication of paragraphs instead of ours."""
    keep: float = 0.8
    """Share of the documents left after filters and deduplication that the quality score keeps."""
    vocab_size: int = 2_048
    """Tokens in the vocabulary."""
    depth: int = 3
    """The one dial of the model: number of layers; the width is 64 times as much."""
    tokens: int = 500_000
    """Training tokens of each pretraining run."""
    tuning_tokens: int = 150_000
    """Training tokens of instruction tuning (embedded web only: other input has no questions)."""
    trials: int = 3
    """Training seeds of every compared run."""
    seq_len: int = 128
    """Tokens in a training sequence."""
    batch_size: int = 8
    """Sequences in an optimiser step."""
    lr: float = 4e-3
    """Peak learning rate, the same for both corpora."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        given = [name for name in ("seeds", "warc", "jsonl", "parquet") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other", fix="give one kind of input")
        if self.crawl_order == "quality" and given:
            raise ConfigError("a quality-first crawl learns from the embedded web", fix=f"leave out {given[0]}")
        if not 0 < self.keep <= 1:
            raise ConfigError(f"keep is {self.keep}", fix="a share above 0 and up to 1")
        for name in ("pages", "depth", "tokens", "tuning_tokens", "trials", "seq_len", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")

    # --8<-- [start:run]
    def run(self, run: Run) -> Iterator[Claim]:
        """Every stage by name; a stage that is done is skipped when the run is taken up again."""
        crawl = run.stage("crawl")
        inputs = self.gather(run, crawl)
        curated, raw = run.stage("curated"), run.stage("raw")
        survival = curated(self.curate, inputs, curated.folder, run.folder / "scorer", run.quiet)
        raw(self.keep_all, inputs, raw.folder, run.quiet)
        packs = run.stage("packs")
        sizes = packs(self.tokenize, inputs, curated.folder, raw.folder, packs.folder, run.quiet)
        show_corpora(run, survival, sizes)

        losses: dict[str, dict[int, float]] = {arm: {} for arm in ARMS}
        for trial in range(self.trials):
            for arm in ARMS:
                stage = run.stage(f"pretrain/{arm}-{trial}")
                losses[arm][trial] = stage(self.pretrain, run, packs.folder / arm, trial, packs.folder, stage.folder)
        show_training(run, losses)
        yield Claim(
            statement=f"At equal training tokens, curated text beats the raw crawl on held-out {inputs.held_out_name}",
            paper="arXiv:2406.11794",
            ours=losses["curated"],
            baseline=losses["raw"],
            better="lower",
            margin=0.03,
            unit="nats/byte",
            names=ARMS,
            note=f"{self.tokens:,} training tokens each; {inputs.note}",
        )
        between: dict[str, float] = {}
        for name in BETWEEN:
            stage = run.stage(f"ablation/{name}")
            between[name] = stage(self.ablate, run, inputs, name, packs.folder, stage.folder)
        show_ablation(run, {"raw": losses["raw"][0], **between, "curated": losses["curated"][0]})

        final = run.folder / "pretrain" / "curated-0" / "model"
        if inputs.embedded:
            before: dict[int, float] = {}
            after: dict[int, float] = {}
            for trial in range(self.trials):
                stage = run.stage(f"tune/{trial}")
                base = run.folder / "pretrain" / f"curated-{trial}" / "model"
                before[trial], after[trial] = stage(self.tune, run, inputs, trial, base, stage.folder)
            yield Claim(
                statement="Instruction tuning makes the answers to questions about unseen modules more predictable",
                paper="our own: the next stage of the chain must pay",
                ours=after,
                baseline=before,
                better="lower",
                margin=0.05,
                unit="nats/byte of answer",
                names=("tuned", "pretrained"),
                note=f"{TEST_QUESTIONS} questions; the pretrained model is asked in plain text, the tuned one in its "
                "chat format",
            )
            final = run.folder / "tune" / "0" / "model"
        model = run.stage("model")
        show_model(run, model(self.export, inputs, final, model.folder), model.folder)

    # --8<-- [end:run]

    # --- corpora -----------------------------------------------------------------------------------------------------

    def gather(self, run: Run, stage: Any) -> Inputs:
        """The pages: files that are given, a real site, or the embedded web, crawled."""
        if files := [*self.warc, *self.jsonl, *self.parquet]:
            stage(lambda: {"files": [str(file) for file in files]})
            return Inputs(stage.folder, files, embedded=False)
        pages = stage.folder / "pages"
        report = stage(self.crawl, stage.folder, pages, run.quiet)
        show_crawl(run, report)
        return Inputs(stage.folder, sorted(pages.glob("*.warc.gz")), embedded=not self.seeds)

    def crawl(self, folder: Path, pages: Path, quiet: bool) -> dict[str, Any]:
        """Fetch a real site politely, or serve the embedded web on this machine and fetch that."""
        from bloomery.web import CrawlConfig, crawl
        from bloomery.worlds.installed_docs import InstalledDocs, serve

        if self.seeds:
            return crawl(self.seeds, pages, CrawlConfig(max_pages=self.pages), quiet=quiet).to_dict()
        site = InstalledDocs(self.packages or None)
        write_truth(site, folder, self.seed)
        port = folder / "port.json"  # a crawl that is taken up again must find its pages under the same address
        with serve(site, port=read_json(port) if port.exists() else usual_port(self.seed)) as url:
            write_json(port, urlsplit(url).port)
            by_quality = self.crawl_order == "quality"
            scorer = page_scorer(site, Inputs(folder, [], embedded=True), self.seed) if by_quality else None
            settings: dict[str, Any] = {"allow_private": True, "per_host_delay": 0.0, "segment_bytes": SEGMENT_BYTES}
            config = CrawlConfig(max_pages=self.pages, reproducible=True, order="best" if by_quality else "breadth")
            return crawl([url], pages, config, scorer=scorer, quiet=quiet, **settings).to_dict()

    def curate(self, inputs: Inputs, folder: Path, scorer_folder: Path, quiet: bool) -> dict[str, Any]:
        """Main text only, then language, heuristics, duplicates, quality score: in the order of DCLM-Baseline."""
        from bloomery import corpus

        steps = [inputs.split(self.seed), *self.filters()]
        if positives := inputs.good_texts(SCORER_TEXTS):
            negatives = inputs.page_texts(SCORER_TEXTS, self.seed)
            scorer = corpus.LinearScorer.train(positives, negatives, seed=self.seed)
            scorer.save(scorer_folder)
            steps += [corpus.Score(scorer), corpus.Select(f"score_{scorer.name}", fraction=self.keep)]
        return survival(steps, inputs, "main", folder, quiet)

    def filters(self) -> list[Any]:
        """Curation without the quality score."""
        from bloomery import corpus

        if self.curation == "dclm":
            return corpus.preset("dclm")
        local = [corpus.Language(), corpus.Length(), corpus.Symbols(), corpus.Repetition()]
        return [*local, corpus.ExactDedup(), corpus.NearDedup()]

    def keep_all(self, inputs: Inputs, folder: Path, quiet: bool) -> dict[str, Any]:
        """The baseline: every page, all of its visible text, nothing dropped."""
        return survival([inputs.split(self.seed)], inputs, "full", folder, quiet)

    def tokenize(
        self, inputs: Inputs, curated: Path, raw: Path, folder: Path, quiet: bool
    ) -> dict[str, dict[str, int]]:
        """One tokenizer from equal parts of both corpora, then three packs: curated, raw, held out."""
        from bloomery.corpus import pack, tokenizer

        parts = [take(texts_of(corpus, "train"), TOKENIZER_CHARS) for corpus in (curated, raw)]
        size = min(sum(map(len, part)) for part in parts)
        trained = tokenizer.train([text for part in parts for text in take(part, size)], self.vocab_size)
        tokenizer.save(trained, folder / "tokenizer")
        held_out = inputs.held_out_texts(curated, folder / "held_out_documents")
        packs = {
            "curated": pack(texts_of(curated, "train"), trained, folder / "curated", quiet=quiet),
            "raw": pack(texts_of(raw, "train"), trained, folder / "raw", quiet=quiet),
            "held out": pack(take(held_out, HELD_OUT_CHARS), trained, folder / "held_out", quiet=quiet),
        }
        return {k: {"documents": p.n_documents, "bytes": p.n_bytes, "tokens": p.n_tokens} for k, p in packs.items()}

    # --- models ------------------------------------------------------------------------------------------------------

    def decoder_config(self, vocab_size: int) -> DecoderConfig:
        """A Llama-shaped decoder that one number decides: width 64 · depth, heads of 64."""
        from bloomery.models import DecoderConfig

        return DecoderConfig(
            vocab_size=vocab_size,
            dim=64 * self.depth,
            n_layers=self.depth,
            n_heads=self.depth,
            n_kv_heads=self.depth,
            head_dim=64,
            ffn_dim=160 * self.depth,
            max_positions=max(1024, self.seq_len),
            tie_embeddings=True,
        )

    def train_config(self, tokens: int, lr: float, trial: int) -> TrainConfig:
        """The same for every compared run: a short warm-up, then a cosine to a tenth."""
        from bloomery.train import Phase, TrainConfig

        phase = Phase(tokens=tokens, lr=lr, final_lr=lr / 10, warmup_tokens=tokens // 20)
        return TrainConfig(
            phases=[phase],
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            eval_every=max(1, tokens // 5),
            checkpoint_every=50,
            keep_last=1,
            seed=self.seed + trial,
        )

    def pretrain(self, run: Run, data: Path, trial: int, packs: Path, folder: Path) -> float:
        """Train on the pack `data`; all corpora get the same initial weights, schedule and number of tokens."""
        from bloomery.core.devices import pick_device
        from bloomery.corpus import PackedTokens, tokenizer
        from bloomery.models import Decoder, save_pretrained
        from bloomery.train import held_out, next_token, train

        trained = tokenizer.load(packs / "tokenizer")
        source, test = PackedTokens(data, trained), PackedTokens(packs / "held_out", trained)
        model = Decoder(self.decoder_config(trained.get_vocab_size()), generator(self.seed, "init", trial))
        model.to(pick_device())

        def evaluate(model: Any, step: int) -> Mapping[str, float]:
            seen = step * self.batch_size * self.seq_len
            return held_out(model, test, seq_len=self.seq_len).values() | {"tokens": seen}

        config = self.train_config(self.tokens, self.lr, trial)
        result = train(model, next_token, source, config, out=folder, evaluate=evaluate, log=run.log, quiet=run.quiet)
        save_pretrained(model, folder / "model", tokenizer=trained)
        return result.evaluation["nats_per_byte"]

    def ablate(self, run: Run, inputs: Inputs, name: str, packs: Path, folder: Path) -> float:
        """Loss of a model trained on main text alone, or filtered too but not scored."""
        from bloomery.corpus import pack, tokenizer

        steps = [inputs.split(self.seed), *(self.filters() if name == "filtered" else [])]
        survival(steps, inputs, "main", folder / "documents", run.quiet)
        texts = texts_of(folder / "documents", "train")
        pack(texts, tokenizer.load(packs / "tokenizer"), folder / "pack", quiet=run.quiet)
        return self.pretrain(run, folder / "pack", 0, packs, folder)

    def tune(self, run: Run, inputs: Inputs, trial: int, base: Path, folder: Path) -> tuple[float, float]:
        """Learn to answer questions about training modules; loss of answers about held-out ones, before and after."""
        from bloomery.core.devices import pick_device
        from bloomery.corpus import tokenizer
        from bloomery.models import load_pretrained, save_pretrained
        from bloomery.train import held_out, next_token, train

        trained, model = tokenizer.load(base), load_pretrained(base, device=pick_device())
        test = fitting(trained, inputs.questions("validation"), self.seq_len, TEST_QUESTIONS)
        before = held_out(model, answers(trained, test, chat=False), seq_len=self.seq_len).nats_per_byte
        data = lessons(trained, inputs.questions("train"))
        config = self.train_config(self.tuning_tokens, self.lr / 3, trial)
        train(model, next_token, data, config, out=folder, log=run.log, quiet=run.quiet)
        save_pretrained(model, folder / "model", tokenizer=trained)
        after = held_out(model, answers(trained, test, chat=True), seq_len=self.seq_len).nats_per_byte
        return before, after

    def export(self, inputs: Inputs, source: Path, folder: Path) -> dict[str, Any]:
        """The final model as a Hugging Face folder, read back and tried."""
        import torch

        from bloomery.corpus import chat, tokenizer
        from bloomery.generate import generate
        from bloomery.models import load_pretrained, save_pretrained

        trained, model = tokenizer.load(source), load_pretrained(source)
        save_pretrained(model, folder, tokenizer=trained)
        again, probe = load_pretrained(folder), torch.arange(32)[None]
        if not torch.equal(model(probe).logits, again(probe).logits):
            raise BloomeryError("the exported model differs from the trained one", where=folder)
        # a model this small falls into loops; the penalty shows what else it knows
        options: dict[str, Any] = {"max_new_tokens": 60, "repetition_penalty": 1.3, "seed": self.seed}
        done = generate(again, trained, PROMPTS, temperature=0.7, top_p=0.9, **options)
        result: dict[str, Any] = {"continuations": [(p, d.text) for p, d in zip(PROMPTS, done, strict=True)]}
        if inputs.embedded:
            test = inputs.questions("validation")
            asked = [q["question"] for q in test[: len(PROMPTS)]]
            ids = [chat.encode(trained, [{"role": "user", "content": q}], add_generation_prompt=True)[0] for q in asked]
            done = generate(again, trained, ids, **options)
            result["answers"] = [(q, d.text) for q, d in zip(asked, done, strict=True)]
            result["choice"] = choice_accuracy(again, trained, test[: TEST_QUESTIONS // 2], self.seed)
            result["choices"] = CHOICES
        return result


def survival(
    steps: Sequence[Any], inputs: Inputs, extract: Literal["main", "full"], folder: Path, quiet: bool
) -> dict[str, Any]:
    """Run curation steps over the pages on all processors; the survival report."""
    from bloomery.corpus.engine import run as curate

    return curate(steps, inputs.files, folder, read=inputs.reader(extract), engine="processes", quiet=quiet).to_dict()

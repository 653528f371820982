"""What the smoke preset of the main job leaves behind, from the crawl to the exported model."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
import yaml

from bloomery import lab
from bloomery.corpus import PackedTokens, chat, tokenizer

TRAINED = ["pretrain/curated-0", "pretrain/raw-0", "ablation/main_text", "ablation/filtered", "tune/0"]
STAGES = ["crawl", "curated", "raw", "packs", *TRAINED, "model"]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows(folder: Path) -> list[dict[str, Any]]:
    """Documents of a curated folder (without the dropped ones)."""
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def text(row: dict[str, Any]) -> str:
    return "\n\n".join(part["text"] for part in row["parts"])


def module_of(smoke: Path) -> Callable[[str], str]:
    """The module that the page of a URL (or path) documents; a page about all of them stands for itself."""
    table = read(smoke / "crawl" / "modules.json")

    def module(url: str) -> str:
        path = urlsplit(url).path
        return table.get(path) or path

    return module


# --- claims, metrics, configuration ----------------------------------------------------------------------------------


def test_both_claims_are_numbers_with_a_verdict(smoke: Path) -> None:
    summary = read(smoke / "claims.json")
    assert (summary["recipe"], summary["preset"]) == ("end_to_end", "smoke")
    pretraining, tuning = summary["claims"]
    assert (pretraining["names"], pretraining["margin"]) == (["curated", "raw"], 0.03)
    assert tuning["names"] == ["tuned", "pretrained"]
    for claim in summary["claims"]:
        assert claim["better"] == "lower"
        assert claim["unit"].startswith("nats/byte")
        gain = claim["baseline"]["0"] - claim["ours"]["0"]
        assert claim["gain"] == pytest.approx(gain)
        assert claim["passes"] == (gain >= claim["margin"])
        for side in (claim["ours"], claim["baseline"]):
            assert list(side) == ["0"]
            assert 0.5 < side["0"] < 5.5  # an untrained byte model would pay ln 256 = 5.5
    assert summary["passed"] == all(claim["passes"] for claim in summary["claims"])
    assert tuning["passes"]  # tuning helps even at this size


def test_the_claimed_losses_are_the_last_ones_measured(smoke: Path) -> None:
    metrics = lines(smoke / "metrics.jsonl")
    claim = read(smoke / "claims.json")["claims"][0]
    for arm, side in (("curated", claim["ours"]), ("raw", claim["baseline"])):
        curve = [m for m in metrics if m["stage"] == f"pretrain/{arm}-0" and "nats_per_byte" in m]
        assert len(curve) >= 5
        assert all(earlier["tokens"] < later["tokens"] for earlier, later in pairwise(curve))
        assert curve[-1]["nats_per_byte"] == side["0"]
        assert curve[-1]["nats_per_byte"] < curve[0]["nats_per_byte"]  # it learns
    assert {m["stage"] for m in metrics} == set(TRAINED)


def test_both_arms_train_on_equally_many_tokens(smoke: Path) -> None:
    metrics = lines(smoke / "metrics.jsonl")
    ends = [
        max(m["tokens"] for m in metrics if m["stage"] == f"pretrain/{arm}-0" and "loss" in m)
        for arm in ("curated", "raw")
    ]
    assert ends[0] == ends[1] == 8192  # 8,000 tokens in whole steps


def test_the_ablation_goes_from_raw_to_curated(smoke: Path) -> None:
    content, claim = read(smoke / "content.json"), read(smoke / "claims.json")["claims"][0]
    (table,) = [item for item in content if item["name"] == "which steps help"]
    values = [row[1] for row in table["rows"]]
    assert (values[0], values[-1]) == (f"{claim['baseline']['0']:.3f}", f"{claim['ours']['0']:.3f}")
    trained_on = {name: PackedTokens(smoke / "ablation" / name / "pack") for name in ("main_text", "filtered")}
    raw, curated = (PackedTokens(smoke / "packs" / arm) for arm in ("raw", "curated"))
    assert raw.n_bytes > trained_on["main_text"].n_bytes > trained_on["filtered"].n_bytes > curated.n_bytes


def test_the_configuration_starts_the_same_run(smoke: Path) -> None:
    values = yaml.safe_load((smoke / "config.yaml").read_text())
    assert (values.pop("recipe"), values.pop("preset")) == ("end_to_end", "smoke")
    system = lab.load("end_to_end")
    again = system.configure("smoke", values)
    assert again == system.configure("smoke", {"seed": values["seed"]})
    assert (again.pages, again.packages, again.trials) == (600, ["stdlib"], 1)


def test_every_stage_is_done_and_done_once(smoke: Path, alone: Callable[[], Any]) -> None:
    stages = read(smoke / "stages.json")
    assert [stage["name"] for stage in stages] == STAGES
    assert all((stage["state"], stage["attempts"]) == ("done", 1) for stage in stages)
    before = read(smoke / "claims.json")["claims"]
    with alone():
        again = lab.run("end_to_end", "smoke", out=smoke, quiet=True, seed=_seed(smoke))
    assert read(smoke / "stages.json") == stages
    assert read(smoke / "claims.json")["claims"] == before == [claim.to_dict() for claim in again.claims]


def _seed(smoke: Path) -> int:
    return int(yaml.safe_load((smoke / "config.yaml").read_text())["seed"])


# --- the report ------------------------------------------------------------------------------------------------------


class Resources(HTMLParser):
    """Collects what a browser would fetch to show a page, and the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "poster", "data", "xlink:href") or (name == "href" and tag != "a"):
                self.fetched.append(value or "")


def test_the_report_is_one_file_that_fetches_nothing(smoke: Path) -> None:
    html = (smoke / "report.html").read_text(encoding="utf-8")
    page = Resources()
    page.feed(html)
    assert [url for url in page.fetched if not url.startswith(("#", "data:"))] == []
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    assert "@import" not in html
    assert "url(http" not in html
    assert page.tags.count("svg") >= 3


def test_the_report_shows_every_part_of_the_chain(smoke: Path) -> None:
    html = (smoke / "report.html").read_text(encoding="utf-8")
    claims = read(smoke / "claims.json")["claims"]
    for claim in claims:
        assert claim["statement"] in html
    for word in ("pages stored", "NearDedup", "held out", "bytes per token", "Return the", "multiple choice"):
        assert word in html
    figures = sorted(path.name for path in (smoke / "figures").iterdir())
    assert figures == ["final_loss.svg", "held_out_loss.svg", "survival.svg"]
    kinds = {(item["kind"], item["name"]) for item in read(smoke / "content.json")}
    assert {("table", "crawl"), ("table", "curation"), ("table", "corpora")} <= kinds
    assert read(smoke / "env.json")


# --- the corpora -----------------------------------------------------------------------------------------------------


def test_the_survival_report_adds_up(smoke: Path) -> None:
    report = read(smoke / "curated" / "report.json")
    assert report["documents_in"] == read(smoke / "stages.json")[0]["result"]["pages"] == 600
    steps = report["steps"]
    assert [step["name"] for step in steps] == [
        "read", "Split", "Language", "Length", "Symbols", "Repetition", "ExactDedup", "NearDedup", "Score", "Select",
    ]  # fmt: skip
    for step in steps:
        lost = sum(step["dropped"].values()) + sum(step["errors"].values())
        assert step["documents_in"] - lost == step["kept"]
    assert all(after["documents_in"] == before["kept"] for before, after in pairwise(steps))
    assert steps[-1]["kept"] == report["documents_out"] == len(rows(smoke / "curated"))
    assert len(rows(smoke / "curated" / "dropped")) == 600 - report["documents_out"]
    assert 0 < report["documents_out"] < 600
    assert report["text_bytes_out"] == sum(len(text(row).encode()) for row in rows(smoke / "curated"))


def test_quality_keeps_the_best_share(smoke: Path) -> None:
    select = read(smoke / "curated" / "report.json")["steps"][-1]
    assert select["kept"] == pytest.approx(0.8 * select["documents_in"], abs=1)
    kept = [row["score_quality"] for row in rows(smoke / "curated")]
    dropped = [
        row["score_quality"]
        for row in rows(smoke / "curated" / "dropped")
        if row["step"] == "Select" and row["score_quality"] is not None
    ]
    assert len(dropped) == select["documents_in"] - select["kept"]
    assert min(kept) >= max(dropped)


def test_raw_keeps_every_page_and_more_of_its_text(smoke: Path) -> None:
    raw, curated = rows(smoke / "raw"), {row["url"]: row for row in rows(smoke / "curated")}
    assert len(raw) == len({row["url"] for row in raw}) == 600
    assert curated.keys() < {row["url"] for row in raw}
    pairs = [(len(text(row)), len(text(curated[row["url"]]))) for row in raw if row["url"] in curated]
    assert all(full > main for full, main in pairs)


def test_no_module_is_on_both_sides_of_the_split(smoke: Path) -> None:
    module = module_of(smoke)
    sides: dict[str, set[str]] = {}
    for folder in ("curated", "raw"):
        for row in rows(smoke / folder):
            sides.setdefault(module(row["url"]), set()).add(row["split"])
    assert len(sides) > 50
    assert set(map(frozenset, sides.values())) == {frozenset({"train"}), frozenset({"validation"})}


def test_held_out_text_is_of_no_training_page(smoke: Path) -> None:
    module = module_of(smoke)
    trained_on = [row for folder in ("curated", "raw") for row in rows(smoke / folder) if row["split"] == "train"]
    modules, texts = {module(row["url"]) for row in trained_on}, {text(row) for row in trained_on}
    held_out = lines(smoke / "packs" / "held_out_documents" / "1.jsonl")
    assert len(held_out) > 50
    for document in held_out:
        assert document["split"] == "validation"
        assert module(document["id"]) not in modules
        assert document["text"] not in texts


def test_the_packs_hold_what_the_corpora_hold(smoke: Path) -> None:
    words = tokenizer.load(smoke / "packs" / "tokenizer")
    assert words.get_vocab_size() == 512
    sizes = read(smoke / "stages.json")[STAGES.index("packs")]["result"]
    for name in ("curated", "raw"):
        pack = PackedTokens(smoke / "packs" / name, words)
        texts = [text(row) for row in rows(smoke / name) if row["split"] == "train" and text(row).strip()]
        assert pack.n_documents == len(texts) == sizes[name]["documents"]
        assert pack.n_bytes == sum(len(text.encode()) for text in texts)
        first = words.decode(pack.document(0).tolist(), skip_special_tokens=True)
        assert first == texts[0]
    held_out = PackedTokens(smoke / "packs" / "held_out", words)
    assert 100_000 < held_out.n_bytes < 300_000


# --- the model -------------------------------------------------------------------------------------------------------


def test_the_model_is_the_same_one_in_transformers(smoke: Path) -> None:
    import torch

    from bloomery.models import load_pretrained

    transformers = pytest.importorskip("transformers", reason="reads the exported folder")
    ours = load_pretrained(smoke / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smoke / "model").eval()
    words = tokenizer.load(smoke / "model")
    their_words = transformers.AutoTokenizer.from_pretrained(smoke / "model")
    sentence = "Return the number of items: os.path.join(a, *p) – naïve."
    ids = words.encode(sentence).ids
    assert their_words(sentence, add_special_tokens=False)["input_ids"] == ids
    assert their_words.decode(ids) == sentence
    with torch.no_grad():
        tokens = torch.tensor([ids])
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, atol=2e-5, rtol=0)


def test_the_chat_format_travels_with_the_model(smoke: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="reads the exported folder")
    their_words = transformers.AutoTokenizer.from_pretrained(smoke / "model")
    messages = [{"role": "user", "content": "What does `os.path.join` do?"}]
    theirs = their_words.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert theirs == chat.render(messages, add_generation_prompt=True)


def test_the_exported_model_is_the_tuned_one(smoke: Path) -> None:
    import torch

    from bloomery.models import load_pretrained

    exported, tuned, base = (
        load_pretrained(smoke / part).state_dict() for part in ("model", "tune/0/model", "pretrain/curated-0/model")
    )
    assert exported.keys() == tuned.keys() == base.keys()
    assert all(torch.equal(exported[name], tuned[name]) for name in exported)
    assert any(not torch.equal(exported[name], base[name]) for name in exported)

"""`bloomery grow` on a model of a few thousand weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

TEXTS = [f"The function join number {i} returns a path of {i * 7 % 13} parts. It raises nothing." for i in range(300)]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A model folder with a tokenizer, whose layers differ in how much they do, and a text."""
    from bloomery.corpus import tokenizer
    from bloomery.models import Decoder, DecoderConfig, save_pretrained

    folder = tmp_path_factory.mktemp("workshop")
    words = tokenizer.train(TEXTS, 300)
    config = DecoderConfig(
        vocab_size=300, dim=32, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_positions=64
    )
    model = Decoder(config)
    with torch.no_grad():
        for block, size in zip(model.blocks, (2.0, 0.3, 0.1, 1.0), strict=True):
            block.ffn.down.weight.normal_(std=size, generator=torch.Generator().manual_seed(0))
    ids = torch.from_numpy(tokenizer.encode_batch(words, ["\n".join(TEXTS)])[0][: 64 * 40]).view(-1, 40)
    optimizer = torch.optim.AdamW([model.embed.weight, model.head.weight], lr=0.02)
    for _ in range(15):  # so that there is a loss that can rise
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    save_pretrained(model, folder / "base", tokenizer=words)
    (folder / "text.txt").write_text("\n".join(TEXTS))
    return folder


@pytest.fixture
def base(workshop):
    return workshop / "base"


@pytest.fixture
def text(workshop):
    return workshop / "text.txt"


def test_a_window_that_is_given(base, ok):
    from bloomery.models import load_pretrained
    from bloomery.models.growth import GrowthPlan, grow

    written = ok("grow", base, "grown", "--window", 1, 3, "--quiet")
    assert (written["layers"], written["sources"], written["copies"]) == (6, [0, 1, 2, 1, 2, 3], [3, 4])
    grown, expected = load_pretrained("grown"), grow(load_pretrained(base), GrowthPlan.block(4, 1, 3))
    assert written["parameters"] == expected.num_parameters()
    assert all(torch.equal(a, b) for a, b in zip(grown.parameters(), expected.parameters(), strict=True))
    assert Path("grown/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert json.loads(Path("grown/growth.json").read_text())["sources"] == written["sources"]


def test_the_plan_is_shown_before_anything_is_written(base, text, bloomery):
    code, out, _ = bloomery("grow", base, "grown", "--report", text, "--dry-run")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["0-2", "0-2"] in rows
    assert ["3-4", "1-2", "copy"] in rows
    assert ["5", "3"] in rows
    assert [row[-1] for row in rows if row and row[0] in "0123" and len(row) == 4] == ["once", "twice", "twice", "once"]
    assert "nats per token: base" in out
    assert not Path("grown").exists()


def test_the_report_chooses_the_layers_that_do_least(base, text, ok):
    found = ok("grow", base, "grown", "--report", text, "--layers", 5, "--quiet")
    assert found["sources"] == [0, 1, 2, 2, 3]
    assert found["cosine"][2] == max(found["cosine"]) > 0.9 > min(found["cosine"])
    topk = ok("grow", base, "b", "--report", text, "--choose", "topk", "--layout", "interleave", "--dry-run")
    assert topk["sources"] == [0, 1, 1, 2, 2, 3]
    assert topk["target"] is None


def test_the_lowest_loss_is_chosen_by_measuring(base, text, ok):
    losses = {}
    for start in range(3):
        found = ok("grow", base, "x", "--report", text, "--window", start, start + 2, "--dry-run")
        losses[start] = found["loss_grown"]
    best = min(losses, key=lambda start: losses[start])
    found = ok("grow", base, "x", "--report", text, "--choose", "loss", "--dry-run")
    assert found["loss_grown"] == losses[best]
    assert found["copies"] == [best + 2, best + 3]


def test_the_loss_is_that_of_the_text(base, text, ok):
    from bloomery.corpus import tokenizer
    from bloomery.models import load_pretrained

    found = ok("grow", base, "x", "--report", text, "--window", 0, 1, "--tokens", 100, "--seq-len", 50, "--dry-run")
    ids = torch.from_numpy(tokenizer.encode_batch(tokenizer.load(base), [text.read_text()])[0][:100])
    with torch.no_grad():
        logits = load_pretrained(base)(ids.view(2, 50)).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.view(2, 50)[:, 1:].flatten())
    assert found["loss_base"] == pytest.approx(expected.item(), abs=1e-5)


def test_without_effect_the_loss_stays_and_nobody_is_warned(base, text, bloomery):
    options = ("--report", text, "--window", 0, 1, "--quiet", "--json")
    code, out, err = bloomery("grow", base, "plain", *options)
    assert code == 0
    assert "train the grown model before using it" in err
    code, out, err = bloomery("grow", base, "silent", *options, "--alpha", 0)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["loss_grown"] == found["loss_base"]
    assert json.loads(Path("silent/growth.json").read_text())["loss_base"] == found["loss_base"]


def test_solar(base, ok):
    written = ok("grow", base, "grown", "--layout", "solar", "--layers", 6, "--shard-gb", 1e-5, "--quiet")
    assert written["sources"] == [0, 1, 2, 1, 2, 3]
    assert len(list(Path("grown").glob("*.safetensors"))) > 1


def test_a_grown_folder_trains_on_in_two_stages(base, ok):
    """As the system's page says: a training file for each stage, and a batch that grows."""
    from bloomery.corpus import packing, tokenizer
    from bloomery.models import load_pretrained

    packing.pack(TEXTS[:200], tokenizer.load(base), "general", quiet=True)
    packing.pack(TEXTS[200:], tokenizer.load(base), "emphasis", quiet=True)
    ok("grow", base, "grown", "--window", 1, 3, "--quiet")
    job = {
        "model": "grown",
        "tokenizer": str(base),
        "data": {"general": "general", "emphasis": "emphasis"},
        "weights": {"general": 0.9, "emphasis": 0.1},
        "out": "first",
        "device": "cpu",
        "train": {
            "seq_len": 32,
            "batch_size": 2,
            "growth": {"window": 3, "epsilon": 1.0, "max_batch_size": 4},
            "phases": [{"tokens": 1024, "lr": 0.003, "schedule": "constant", "warmup_tokens": 256}],
        },
    }
    Path("first.yaml").write_text(yaml.safe_dump(job))
    second = job | {"model": "first/model", "weights": {"general": 0.5, "emphasis": 0.5}, "out": "second"}
    Path("second.yaml").write_text(yaml.safe_dump(second))
    one, two = ok("train", "first.yaml", "--quiet"), ok("train", "second.yaml", "--quiet")
    assert one["steps"] < 1024 // 64  # the batch has grown
    assert two["loss"] < one["loss"]
    assert load_pretrained("second/model").config.n_layers == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to choose the layers by (give --report TEXTFILE or --window START STOP)"),
        (("--window", 2, 9), "the window [2, 9) does not lie within the base"),
        (("--window", 3, 3), "the window [3, 3) is empty"),
        (("--window", 3, 1, "--layout", "interleave"), "the window [3, 1) is empty"),
        (("--window", 1, 3, "--layers", 5), "--window adds 2 layers to 4, --layers asks for 5"),
        (("--layers", 4), "layers is 4, the base has 4 already"),
        (("--layers", 9), "5 layers to run twice"),
        (("--layout", "solar", "--layers", 5), "two equal parts of 4 layers cannot make 5"),
        (("--layout", "solar", "--window", 1, 3), "solar leaves nothing to choose"),
        (("--choose", "topk"), "topk takes layers from anywhere, a block is a window (use --layout interleave)"),
        (("--window", 1, 3, "--alpha", 2), "alpha=2.0"),
        (("--window", 1, 3, "--shard-gb", 0), "shard_gb is 0.0"),
        (("--report", "nowhere.txt"), "nowhere.txt: no such text file"),
        (("--tokens", 1), "tokens is 1 (2 or more)"),
        (("--layoot", "solar"), "unknown option '--layoot'"),
    ],
)
def test_bad_input(base, text, options, message, refused):
    needs_text = message.startswith(("5 layers", "topk", "tokens"))
    assert message in refused("grow", base, "grown", *options, *(("--report", text) if needs_text else ()))
    assert not Path("grown").exists()


def test_bad_folders(base, text, refused, tmp_path):
    from bloomery.models import Decoder, MoEConfig, load_config, save_pretrained

    Path("there").mkdir()
    assert "there: exists already" in refused("grow", base, "there", "--window", 1, 3)
    assert "there is no config.json" in refused("grow", "nowhere", "grown", "--window", 1, 3)
    experts = MoEConfig(n_experts=2, top_k=1, expert_dim=8, first_dense=1)
    save_pretrained(Decoder(replace(load_config(base), moe=experts)), "mixed")
    assert "the first 1 layers are dense" in refused("grow", "mixed", "grown", "--window", 0, 2)
    assert "no such tokenizer file" in refused("grow", "mixed", "grown", "--report", text)
    Path("short.txt").write_text("a")
    assert "short.txt: holds 1 tokens" in refused("grow", base, "grown", "--report", "short.txt")

"""The commands that need a model: tokenizer, train, generate, chat, convert, on a model of a few thousand weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TEXTS = [f"The function join number {i} returns a path of {i * 7 % 13} parts. It raises nothing." for i in range(300)]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A tokenizer, packed documents and a model trained on them."""
    from bloomery.cli.main import main
    from bloomery.corpus import packing, tokenizer

    folder = tmp_path_factory.mktemp("workshop")
    words = tokenizer.train(TEXTS, 300)
    tokenizer.save(words, folder / "tokenizer")
    packing.pack(TEXTS[:250], words, folder / "train", quiet=True)
    packing.pack(TEXTS[250:], words, folder / "validation", quiet=True)
    job = {
        "model": {"preset": "llama-tiny", "n_layers": 1, "dim": 32, "ffn_dim": 64},
        "data": str(folder / "train"),
        "validation": str(folder / "validation"),
        "tokenizer": str(folder / "tokenizer"),
        "out": str(folder / "out"),
        "device": "cpu",
        "train": {"seq_len": 32, "batch_size": 4, "log_every": 4, "checkpoint_every": 8,
                  "phases": [{"tokens": 2048, "lr": 0.01}]},
    }  # fmt: skip
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    assert main(["train", str(folder / "job.yaml"), "--quiet"]) == 0
    return folder


@pytest.fixture
def job(workshop):
    """The training file, ready to be changed: writes ./job.yaml and returns its path."""

    def write(**changes):
        values = yaml.safe_load((workshop / "job.yaml").read_text()) | {"out": "out"} | changes
        Path("job.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
        return "job.yaml"

    return write


def metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def test_training_leaves_a_model_metrics_and_its_configuration(workshop):
    from bloomery.models import load_pretrained

    out = workshop / "out"
    model = load_pretrained(out / "model")
    assert model.config.vocab_size == 300
    steps = [line["step"] for line in metrics(out) if "loss" in line]
    assert steps == [4, 8, 12, 16]
    assert metrics(out)[-1]["nats_per_byte"] > 0
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["phases"][0]["tokens"] == 2048


def test_training_again_continues_and_repeats_no_metric(job, ok):
    first = ok("train", job(), "--quiet")
    assert first["steps"] == 16
    again = ok("train", job(), "--quiet")
    assert again == first
    steps = [line["step"] for line in metrics("out") if "loss" in line]
    shutil.rmtree("out/checkpoints/step-00000016")
    with Path("out/metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "st')  # killed while writing
    resumed = ok("train", job(), "--quiet")
    assert resumed["loss"] == first["loss"]
    assert [line["step"] for line in metrics("out") if "loss" in line] == steps


def test_options_change_the_file(job, ok):
    result = ok("train", job(), "--train.phases.0.tokens", 512, "--train.batch-size", 2, "--out", "other", "--quiet")
    assert (result["steps"], result["tokens"]) == (8, 512)
    assert yaml.safe_load(Path("other/config.yaml").read_text())["train"]["batch_size"] == 2


def test_a_run_started_differently_is_refused_and_keeps_its_record(job, ok, refused):
    ok("train", job(), "--quiet")
    before = Path("out/config.yaml").read_text()
    assert "started differently: seed was 0, now 1" in refused("train", job(), "--train.seed", 1, "--quiet")
    assert Path("out/config.yaml").read_text() == before


def test_several_sources_by_weight(workshop, job, ok):
    both = {"web": str(workshop / "train"), "more": str(workshop / "validation")}
    assert ok("train", job(data=both, weights={"web": 3, "more": 1}), "--quiet")["steps"] == 16


def test_continuing_from_a_model_folder(workshop, job, ok):
    result = ok("train", job(model=str(workshop / "out" / "model")), "--train.phases.0.tokens", 256, "--quiet")
    fresh = ok("train", job(out="fresh"), "--train.phases.0.tokens", 256, "--quiet")
    assert result["loss"] < fresh["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama-tny"}, "unknown model preset 'llama-tny' (did you mean 'llama-tiny'"),
        ({"model": {"preset": "llama-tiny", "depth": 2}}, "unknown field 'depth'"),
        ({"model": {"preset": "llama-tiny", "vocab_size": 100}}, "model.vocab_size: the model knows 100 tokens"),
        ({"data": "nowhere"}, "nowhere/pack.json: no such file"),
        ({"data": None}, "job.yaml: TrainJob needs data"),
        ({"data": {"a": "x"}}, "data and weights name different sources"),
        ({"weights": {"a": 1.0}}, "weights are given, but data is one folder"),
        ({"tokeniser": "x"}, "unknown field 'tokeniser' of TrainJob (did you mean 'tokenizer'?)"),
        ({"tokenizer": "nowhere"}, "no such tokenizer file"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"train": {"phases": []}}, "job.yaml.train: phases is []"),
        ({"train": {"phases": [{"tokens": 1, "lr": 1, "shape": "x"}]}}, "unknown field 'shape' of Phase"),
        ({"train": {"seq_len": 100000, "phases": [{"tokens": 1, "lr": 1}]}}, "a window needs 100001"),
    ],
)
def test_a_bad_training_file_gives_one_line(job, changes, message, refused):
    assert message in refused("train", job(**changes), "--quiet")


def test_train_needs_its_file_first(refused):
    assert "the training file comes first" in refused("train", "--quiet")
    assert "nowhere.yaml: no such file" in refused("train", "nowhere.yaml")


@pytest.mark.slow
def test_torchrun_trains_the_same_model(job, ok):
    alone = ok("train", job(out="alone"), "--quiet")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "bloomery"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["train", job(out="pair"), "--quiet", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    pair = json.loads(done.stdout)  # one rank prints
    assert pair["steps"] == alone["steps"]
    assert pair["nats_per_byte"] == pytest.approx(alone["nats_per_byte"], rel=1e-4)


def test_generate_prints_prompts_with_their_continuation(workshop, bloomery, ok, monkeypatch):
    import io

    model = workshop / "out" / "model"
    completions = ok("generate", model, "The function", "It", "--max-new-tokens", 5)
    assert [c["prompt"] for c in completions] == ["The function", "It"]
    assert all(len(c["tokens"]) == len(c["logprobs"]) <= 5 for c in completions)
    _, out, _ = bloomery("generate", model, "The function", "It", "--max-new-tokens", 5)
    assert out == "\n\n".join(c["prompt"] + c["text"] for c in completions) + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("The function\n"))
    assert ok("generate", model, "--max-new-tokens", 5)[0]["text"] == completions[0]["text"]


def test_a_draft_changes_the_speed_only(workshop, bloomery, ok, refused):
    from bloomery.corpus import tokenizer

    model = workshop / "out" / "model"
    plain, drafted = (ok("generate", model, "The function", "--max-new-tokens", 9, *draft)[0]
                      for draft in ((), ("--draft", model)))  # fmt: skip
    assert drafted == {**plain, "logprobs": pytest.approx(plain["logprobs"], abs=1e-5), "acceptance": 1.0}
    assert plain["acceptance"] is None
    assert "100%" in bloomery("generate", model, "The function", "--draft", model)[2]
    shutil.copytree(model, "other")
    tokenizer.save(tokenizer.train(TEXTS[::-1][:50] + ["other words"] * 50, 300), Path("words"))
    shutil.copy("words/tokenizer.json", "other/tokenizer.json")
    assert "another vocabulary" in refused("generate", model, "x", "--draft", "other")


def test_generate_is_repeatable_by_seed(workshop, ok):
    def text(seed):
        options = ("--temperature", 2, "--seed", seed, "--max-new-tokens", 12)
        return ok("generate", workshop / "out" / "model", "The", *options)[0]["text"]

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_chat_keeps_the_conversation(workshop, ok, bloomery, monkeypatch):
    import io

    model = workshop / "out" / "model"
    talk = ok("chat", model, "--message", "What?", "Why?", "--system", "Be brief.", "--max-new-tokens", 4)
    assert [m["role"] for m in talk] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in talk if m["role"] == "user"] == ["What?", "Why?"]

    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\n/new\nWhat?\n\nnot read"))
    code, out, _ = bloomery("chat", model, "--max-new-tokens", 4)
    first = ok("chat", model, "--message", "What?", "--max-new-tokens", 4)[-1]["content"]
    assert code == 0
    assert out == f"{first}\n{first}\n"  # /new forgets the first turn, the empty line ends it


def test_convert_changes_dtype_and_sharding_only(workshop, ok, refused):
    import torch

    from bloomery.models import load_pretrained

    source = workshop / "out" / "model"
    written = ok("convert", source, "half", "--dtype", "bfloat16", "--shard-gb", 1e-5)
    assert written["files"] > 1
    ours, theirs = load_pretrained(source), load_pretrained("half")
    assert theirs.head_weight.dtype == torch.bfloat16
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b), name
    before, after = (json.loads((Path(f) / "config.json").read_text()) for f in (source, "half"))
    assert {key for key in before if before[key] != after[key]} == {"torch_dtype"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (source / name).read_bytes() == (Path("half") / name).read_bytes()
    assert ok("generate", "half", "The", "--max-new-tokens", 2)
    assert "half: exists already" in refused("convert", source, "half")


def test_convert_leaves_nothing_behind_when_it_fails(workshop, refused):
    shutil.copytree(workshop / "out" / "model", "broken")
    weights = Path("broken/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "broken" in refused("convert", "broken", "target")
    assert [path.name for path in Path().iterdir()] == ["broken"]
    assert "shard_gb is 0" in refused("convert", workshop / "out" / "model", "target", "--shard-gb", 0)


@pytest.mark.parametrize(
    "command", [("generate", "nowhere", "x"), ("chat", "nowhere", "--message", "x"), ("convert", "nowhere", "target")]
)
def test_a_folder_without_a_model_gives_one_line(command, refused):
    assert "nowhere: not a Hugging Face model folder" in refused(*command)


def test_sampling_out_of_range_gives_one_line(workshop, refused):
    assert "temperature" in refused("generate", workshop / "out" / "model", "x", "--temperature", -1)
    assert "max_new_tokens" in refused("generate", workshop / "out" / "model", "x", "--max-new-tokens", 0)


def test_inspect_shows_how_a_text_is_cut(workshop, ok, bloomery, refused):
    facts = ok("tokenizer", "inspect", workshop / "tokenizer", "The function <|end|>")
    assert "".join(piece["text"] for piece in facts["text"]) == "The function <|end|>"
    assert facts["special"]["<|bos|>"] == 0
    _, out, _ = bloomery("tokenizer", "inspect", workshop / "tokenizer", "The function")
    assert "bytes per token" in out
    assert "no such tokenizer file" in refused("tokenizer", "inspect", "nowhere")


def test_from_documents_to_packed_tokens(ok, refused):
    Path("docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    trained = ok("tokenizer", "train", "docs.jsonl", "--out", "words", "--vocab-size", 300)
    assert trained["tokens"] == 300
    packed = ok("tokenizer", "pack", "docs.jsonl", "--tokenizer", "words", "--out", "packed")
    assert packed["documents"] == len(TEXTS)
    assert packed["bytes"] == sum(map(len, TEXTS))
    assert "vocab_size = 3 is too small" in refused("tokenizer", "train", "docs.jsonl", "--vocab-size", 3)
    assert "no column 'split'" in refused(
        "tokenizer", "pack", "docs.jsonl", "--tokenizer", "words", "--split", "train", "--quiet"
    )


def test_a_long_chat_forgets_instead_of_failing(workshop, ok):
    model = workshop / "out" / "model"
    said = [f"The function join number {i} returns a path of many parts. " * 6 for i in range(6)]
    talk = ok("chat", model, "--message", *said, "--max-new-tokens", 3)
    assert [m["content"] for m in talk if m["role"] == "user"] == said

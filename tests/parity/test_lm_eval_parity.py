"""Driven by EleutherAI's harness, our model scores what its Hugging Face backend makes of the same exported weights."""

from __future__ import annotations

import json
import os

import pytest
import torch
from tokenizers import processors

from bloomery.core.errors import ConfigError
from bloomery.corpus import tokenizer as words
from bloomery.models import DecoderConfig, load_pretrained, save_pretrained
from bloomery.models.decoder import Decoder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
lm_eval = pytest.importorskip("lm_eval", reason='needs pip install "bloomery[eval]"')
for needed in ("transformers", "accelerate", "peft"):
    pytest.importorskip(needed, reason="the harness's Hugging Face backend needs it")
from bloomery.generate.lm_eval_adapter import LmEvalModel  # noqa: E402

TEXTS = [f"The function join number {i} returns a path of {i * 7 % 13} parts. It raises nothing." for i in range(100)]
POSITIONS = 64
TASKS = {
    "choice": """
task: choice
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
num_fewshot: 2
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
task: rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
    "written": """
task: written
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["path", "."], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a random model and its tokenizer, and one whose tokenizer begins each text with <|bos|>."""
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = words.train(TEXTS, 300)
    config = DecoderConfig(
        vocab_size=300, dim=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=12, ffn_dim=64, max_positions=POSITIONS
    )
    model = Decoder(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    save_pretrained(model, folder / "plain", tokenizer)
    bos = tokenizer.token_to_id(words.BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{words.BOS} $A", special_tokens=[(words.BOS, bos)]
    )
    save_pretrained(model, folder / "bos", tokenizer)
    return folder


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    """The tasks as YAML beside their questions: some longer than the model's context, choices of several lengths."""
    folder = tmp_path_factory.mktemp("tasks")
    questions = [
        {
            "question": " ".join(TEXTS[i : i + 1 + 4 * (i % 5 == 4)]),
            "choices": [" a path", " nothing", f" the function {i} returns {i % 3} parts", "raises"][: 2 + i % 3],
            "answer": i % 2,
        }
        for i in range(20)
    ]
    (folder / "questions.json").write_text(json.dumps(questions))
    source = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.json}}}}
test_split: test
fewshot_split: test
"""
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text + source)
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def both(exported, manager, tmp_path_factory):
    """Results of (their backend, ours) for every task, without and with a begin token."""
    from lm_eval.models.huggingface import HFLM

    results = {}
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    for kind in ("plain", "bos"):
        theirs = HFLM(pretrained=str(exported / kind), device="cpu", dtype="float32", batch_size=4)
        assert theirs.max_length == POSITIONS
        ours = LmEvalModel(
            load_pretrained(exported / kind), words.load(exported / kind), add_bos=kind == "bos", batch_tokens=500
        )
        for task in TASKS:
            results[kind, task] = [
                lm_eval.simple_evaluate(
                    model=model, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0
                )
                for model in (theirs, ours)
            ]
    patch.undo()
    return results


def samples(result, task):
    return sorted(result["samples"][task], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize("kind", ["plain", "bos"])
def test_choices_have_the_same_likelihoods(both, kind):
    theirs, ours = both[kind, "choice"]
    compared = 0
    for a, b in zip(samples(theirs, "choice"), samples(ours, "choice"), strict=True):
        assert a["arguments"] == b["arguments"]
        for (logprob, greedy), (our_logprob, our_greedy) in zip(a["filtered_resps"], b["filtered_resps"], strict=True):
            assert float(our_logprob) == pytest.approx(float(logprob), abs=2e-5)
            assert our_greedy == greedy
            compared += 1
    assert compared > 50
    assert ours["results"]["choice"]["acc,none"] == theirs["results"]["choice"]["acc,none"]
    assert ours["results"]["choice"]["acc_norm,none"] == theirs["results"]["choice"]["acc_norm,none"]


@pytest.mark.parametrize("kind", ["plain", "bos"])
def test_whole_texts_have_the_same_likelihoods(both, kind):
    theirs, ours = both[kind, "rolling"]
    for a, b in zip(samples(theirs, "rolling"), samples(ours, "rolling"), strict=True):
        assert float(b["resps"][0][0]) == pytest.approx(float(a["resps"][0][0]), abs=1e-4)
    for metric in ("bits_per_byte,none", "word_perplexity,none"):
        assert ours["results"]["rolling"][metric] == pytest.approx(theirs["results"]["rolling"][metric], rel=1e-6)


@pytest.mark.parametrize("kind", ["plain", "bos"])
def test_written_answers_are_the_same(both, kind):
    theirs, ours = both[kind, "written"]
    written = [[sample["resps"] for sample in samples(result, "written")] for result in (theirs, ours)]
    assert written[0] == written[1]
    assert any(text[0][0] for text in written[0])


def test_a_begin_token_changes_the_scores(both):
    plain, bos = (both[kind, "rolling"][1]["results"]["rolling"]["bits_per_byte,none"] for kind in ("plain", "bos"))
    assert plain != bos


def test_what_it_cannot_do_it_refuses(exported):
    from lm_eval.api.instance import Instance

    model, tokenizer = load_pretrained(exported / "plain"), words.load(exported / "plain")
    with pytest.raises(ConfigError, match="max_length is 65"):
        LmEvalModel(model, tokenizer, max_length=POSITIONS + 1)
    ours = LmEvalModel(model, tokenizer)

    def asked(**options):
        return [Instance("generate_until", {}, ("The", options), 0)]

    with pytest.raises(ConfigError, match=r"generation with \['num_beams'\]"):
        ours.generate_until(asked(num_beams=4))
    with pytest.raises(ConfigError, match="leave no room"):
        ours.generate_until(asked(max_gen_toks=POSITIONS))
    with pytest.raises(ConfigError, match="exceeds the context"):
        ours.loglikelihood([Instance("loglikelihood", {}, ("The", " path" * 100), 0)])

"""Greedy tokens equal those of `transformers.generate` on random Llama and Qwen2 weights."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models

from bloomery.generate import generate
from bloomery.models import load_pretrained

transformers = pytest.importorskip("transformers")

VOCAB = 211
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 128,
}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))


def qwen2():
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE, tie_word_embeddings=True))


@pytest.fixture(scope="module", params=[llama, qwen2], ids=["llama", "qwen2"])
def pair(request, tmp_path_factory):
    """Theirs and ours with the same weights, all of them random, norms and biases included."""
    generator = torch.Generator().manual_seed(11)
    theirs = request.param().double().eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    return theirs, load_pretrained(folder, dtype=torch.float64)


@pytest.mark.parametrize("penalty", [1.0, 1.2, 0.8])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("new_tokens", [8, 40])
def test_greedy_tokens_equal(pair, penalty, batch, new_tokens):
    theirs, ours = pair
    prompts = torch.randint(3, VOCAB, (batch, 9), generator=torch.Generator().manual_seed(batch))
    expected = theirs.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=new_tokens,
        repetition_penalty=penalty,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    done = generate(
        ours, bare_tokenizer(), prompts.tolist(), max_new_tokens=new_tokens, repetition_penalty=penalty, eos=[]
    )
    assert [c.tokens for c in done] == expected.sequences[:, 9:].tolist()
    logits = torch.stack(expected.logits, 1).double()  # (batch, new, vocab), before the penalty
    tokens = expected.sequences[:, 9:, None]
    theirs_logprobs = logits.log_softmax(-1).gather(-1, tokens).squeeze(-1)
    assert torch.allclose(torch.tensor([c.logprobs for c in done], dtype=torch.float64), theirs_logprobs, atol=1e-5)
    assert len({tuple(c.tokens) for c in done}) == batch


def test_left_padded_batch_and_end_token_equal(pair):
    theirs, ours = pair
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in (3, 11, 7, 1)]
    free = generate(ours, bare_tokenizer(), prompts, max_new_tokens=20, eos=[])
    end = free[1].tokens[6]
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    expected = theirs.generate(
        padded, attention_mask=mask, do_sample=False, max_new_tokens=20, eos_token_id=end, pad_token_id=0
    )[:, longest:].tolist()
    done = generate(ours, bare_tokenizer(), prompts, max_new_tokens=20, eos=[end])
    assert done[1].reason == "eos"
    for completion, tokens in zip(done, expected, strict=True):
        assert completion.tokens == tokens[: len(completion.tokens)]
        assert not any(tokens[len(completion.tokens) :])  # only their padding is left


def bare_tokenizer() -> Tokenizer:
    return Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))  # prompts are token ids already

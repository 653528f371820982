"""Shared beginnings of prompts: nothing changes but the work; the store keeps to its size and to its order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.generate import Engine, SamplingParams, generate
from bloomery.generate.prefix import BLOCK, PrefixStore, block_keys
from bloomery.nn import KVCache

SYSTEM = [3 + (7 * i) % 300 for i in range(2 * BLOCK + 5)]  # two whole blocks and a bit


def run(engine, prompts, new=6, **options):
    handles = [engine.submit(p, SamplingParams(**options), max_new_tokens=new, eos=[]) for p in prompts]
    engine.drain()
    return handles


def prompt_positions(model, monkeypatch):
    """Lengths of the inputs with more than one position that the model is given from now on."""
    lengths, forward = [], type(model).forward

    def record(self, tokens, **rest):
        lengths.append(tokens.shape[1])
        return forward(self, tokens, **rest)

    monkeypatch.setattr(type(model), "forward", record)
    return lengths


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_shared_beginning_is_run_once_and_changes_nothing(any_model, tokenizer, monkeypatch, temperature):
    prompts = [[*SYSTEM, 10 + i, 20 + i] for i in range(3)] + [SYSTEM[: 2 * BLOCK], [*SYSTEM[:BLOCK], 5, 6, 7]]
    plain = run(Engine(any_model, tokenizer, prefix_bytes=0), prompts, temperature=temperature)
    lengths = prompt_positions(any_model, monkeypatch)
    engine = Engine(any_model, tokenizer)
    shared = run(engine, prompts, temperature=temperature)
    for with_sharing, without in zip(shared, plain, strict=True):
        assert with_sharing.tokens == without.tokens
        assert with_sharing.logprobs == pytest.approx(without.logprobs, abs=1e-9)
    assert lengths[0] == len(prompts[0])  # the first alone: the others wait for its blocks
    assert max(lengths[1:]) == BLOCK  # the fourth prompt is all blocks: its last one is run for what comes next
    store = engine.prefixes
    assert (store.prompts, store.hits) == (5, 4)
    assert store.reused == 2 * 2 * BLOCK + 2 * BLOCK
    assert store.tokens == sum(map(len, prompts))


@settings(deadline=None, max_examples=20)
@given(
    cuts=st.lists(st.tuples(st.integers(1, len(SYSTEM)), st.integers(3, 319)), min_size=2, max_size=6),
    pauses=st.lists(st.integers(0, 4), min_size=6, max_size=6),
    blocks=st.integers(0, 5),
)
def test_tokens_are_those_of_generate_whatever_is_shared(model, tokenizer, cuts, pauses, blocks):
    prompts = [[*SYSTEM[:cut], last] for cut, last in cuts]
    one_block = 2 * 2 * 2 * 8 * 8 * BLOCK  # layers · keys and values · heads · width · bytes · positions
    engine = Engine(model, tokenizer, max_batch=3, prefix_bytes=blocks * one_block)
    handles = []
    for prompt, pause in zip(prompts, pauses, strict=False):
        handles.append(engine.submit(prompt, max_new_tokens=4, eos=[]))
        for _ in range(pause):
            engine.step()
    engine.drain()
    expected = generate(model, tokenizer, prompts, max_new_tokens=4, eos=[])
    assert [h.tokens for h in handles] == [c.tokens for c in expected]
    assert len(engine.prefixes) <= blocks
    assert engine.prefixes.nbytes == len(engine.prefixes) * one_block


def test_single_precision_logits_agree_to_1e5(model, tokenizer):
    single = type(model)(model.config).float()
    single.load_state_dict(model.state_dict())
    prompts = [[*SYSTEM, 9], [*SYSTEM, 11]]
    plain = run(Engine(single, tokenizer, prefix_bytes=0), prompts)
    shared = run(Engine(single, tokenizer), prompts)
    for with_sharing, without in zip(shared, plain, strict=True):
        assert with_sharing.tokens == without.tokens
        assert with_sharing.logprobs == pytest.approx(without.logprobs, abs=1e-5)


def test_a_conversation_continues_from_what_was_said(model, tokenizer, monkeypatch):
    engine = Engine(model, tokenizer)
    (first,) = run(engine, [SYSTEM[: BLOCK - 5]], new=20)
    turn = [*first.prompt, *first.tokens, 50, 51]
    lengths = prompt_positions(model, monkeypatch)
    (second,) = run(engine, [turn], new=3)
    assert lengths[0] == len(turn) - BLOCK
    assert second.tokens == generate(model, tokenizer, [turn], max_new_tokens=3, eos=[])[0].tokens


def contents(blocks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.rand(2, blocks * BLOCK, 4, generator=generator) for _ in range(2)) for _ in range(3)]


class Shape:
    cache_slots, cache_widths = 3, ((2, 4), (2, 4))


def test_what_is_loaded_is_what_was_saved():
    store, tokens = PrefixStore(1 << 20), list(range(100, 100 + 2 * BLOCK + 9))
    saved = contents(3)
    store.save(saved, block_keys(tokens))
    assert store.known(tokens, block_keys(tokens)) == 2 * BLOCK
    assert store.known(tokens[: 2 * BLOCK], block_keys(tokens[: 2 * BLOCK])) == BLOCK  # one token stays to be run
    cache = KVCache(Shape(), batch=2, max_len=70)
    store.load(cache, row=1, begin=6, keys=block_keys(tokens), length=50)
    for slot, kinds in zip(cache.slots, saved, strict=True):
        for loaded, tensor in zip(slot.tensors, kinds, strict=True):
            assert torch.equal(loaded[1, :, 6:56], tensor[:, :50])
            assert not loaded[0].any()
            assert not loaded[1, :, 56:].any()


def test_equal_blocks_after_different_beginnings_are_different():
    a, b = [1] * BLOCK + [2] * BLOCK, [3] * BLOCK + [2] * BLOCK
    assert block_keys(a)[1] != block_keys(b)[1]
    assert block_keys([*a, 5])[:2] == block_keys(a)


def test_the_least_recently_used_go_first_and_ends_before_beginnings():
    size = 3 * 2 * 2 * 4 * 4 * BLOCK  # slots · kinds · heads · width · bytes · positions
    store = PrefixStore(4 * size)
    old, new, third = ([start] * (2 * BLOCK) for start in (5, 6, 7))
    for tokens in (old, new, old):  # old is used again
        store.save(contents(2), block_keys(tokens))
    store.save(contents(1), block_keys(third[:BLOCK]))
    held = [store.known([*tokens, 1], block_keys(tokens)) // BLOCK for tokens in (old, new, third)]
    assert held == [2, 1, 1]  # the end of `new` had to go
    store.save(contents(9), block_keys([8] * (9 * BLOCK)))  # more than fits: its beginning
    assert store.known([8] * (9 * BLOCK), block_keys([8] * (9 * BLOCK))) == 4 * BLOCK
    assert (len(store), store.nbytes) == (4, 4 * size)

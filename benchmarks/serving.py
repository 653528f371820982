"""Serving: continuous against static batching, shared beginnings of prompts, speculative decoding.

*Batching*: requests with prompts of 8 to 64 and answers of 8 to 512 tokens (log-uniform), all there at the start.
Static batching takes them 16 at a time and runs each batch until its longest answer ends: once with `transformers`,
once with our `generate`, and once as `generate` does it by itself, where rows leave the batch once half have ended.
The weights are the same everywhere. Only tokens that were asked for count.

*Prefixes*: requests that share their first 512 prompt tokens, with and without the engine's prefix store.

*Speculative*: one row, a draft made of the first of twelve layers. Weights are random, so the later layers are scaled
down until draft and model often agree; the share of kept tokens is in the table, and the speed-up hangs on it.

    python benchmarks/serving.py --rounds 3 --threads 1 --json serving.json
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models

from bloomery.core.files import write_json
from bloomery.core.seeds import rng
from bloomery.generate import Engine, generate
from bloomery.generate.decode import decode_rows
from bloomery.generate.rows import make_rows, pack
from bloomery.generate.sampling import SamplingParams
from bloomery.models import Decoder, DecoderConfig, load_pretrained

BATCH = 16
LENGTHS = (8, 512)  # new tokens
PROMPTS = (8, 64)
SHARED = 512  # prompt tokens in common
WORDS = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))  # all prompts are token ids already
Work = list[tuple[list[int], int]]  # prompts, and how many new tokens each asks for


def llama(dim: int, layers: int, heads: int, ffn: int, vocab: int = 8192) -> dict[str, int]:
    return {
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
    }


def build(shape: dict[str, int], device: str, dtype: torch.dtype) -> tuple[Decoder, Any]:
    """The same random Llama in both libraries."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=1024, tie_word_embeddings=False, initializer_range=0.1)
    peer = LlamaForCausalLM(config).to(device, dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return load_pretrained(folder, dtype=dtype, device=device), peer


def workload(requests: int, vocab: int) -> Work:
    """Prompts and how many tokens each asks for."""
    random = rng(0, "serving")

    def log_uniform(low: int, high: int) -> int:
        return round(float(low * (high / low) ** random.random()))

    return [(random.integers(3, vocab, log_uniform(*PROMPTS)).tolist(), log_uniform(*LENGTHS)) for _ in range(requests)]


def continuous(model: Decoder, work: Work) -> int:
    engine = Engine(model, WORDS, max_batch=BATCH, max_queue=len(work), prefix_bytes=0)
    requests = [engine.submit(prompt, max_new_tokens=new, eos=[]) for prompt, new in work]
    engine.drain()
    return sum(len(request.tokens) for request in requests)


def static(model: Decoder, work: Work) -> int:
    for begin in range(0, len(work), BATCH):
        prompts, lengths = zip(*work[begin : begin + BATCH], strict=True)
        generate(model, WORDS, prompts, max_new_tokens=max(lengths), eos=[], batch_size=BATCH)
    return sum(new for _, new in work)


def static_dropping(model: Decoder, work: Work) -> int:
    packed = pack(model)
    for begin in range(0, len(work), BATCH):
        rows = make_rows(model, WORDS, [prompt for prompt, _ in work[begin : begin + BATCH]], LENGTHS[1], (), ())
        for row, (_, new) in zip(rows, work[begin : begin + BATCH], strict=True):
            row.limit = new
        for _ in decode_rows(model, packed, rows, SamplingParams()):
            pass
    return sum(new for _, new in work)


def static_peer(peer: Any, work: Work) -> int:
    for begin in range(0, len(work), BATCH):
        prompts, lengths = zip(*work[begin : begin + BATCH], strict=True)
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=peer.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=peer.device)
        peer.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=max(lengths),
            min_new_tokens=max(lengths),
            eos_token_id=None,
            pad_token_id=0,
        )
    return sum(new for _, new in work)


def shared_prefixes(model: Decoder, prefix_bytes: int, requests: int = 32, new: int = 16) -> int:
    random = rng(1, "serving")
    vocab = model.config.vocab_size
    system = random.integers(3, vocab, SHARED).tolist()
    engine = Engine(model, WORDS, max_batch=BATCH, prefix_bytes=prefix_bytes)
    for _ in range(requests):
        engine.submit(system + random.integers(3, vocab, 16).tolist(), max_new_tokens=new, eos=[])
    engine.drain()
    return requests * new


def draft_pair(device: str, dtype: torch.dtype, agreeing: float) -> tuple[Decoder, Decoder]:
    """A decoder of twelve layers, of which all but the first count for `agreeing` less, and the first as draft."""
    shape: dict[str, Any] = {"vocab_size": 8192, "dim": 768, "n_heads": 12, "n_kv_heads": 12, "head_dim": 64}
    config = DecoderConfig(**shape, n_layers=12, ffn_dim=2048, max_positions=1024, init_std=0.1)
    model = Decoder(config, torch.Generator().manual_seed(0)).to(device, dtype)
    draft = Decoder(dataclasses.replace(config, n_layers=1)).to(device, dtype)
    with torch.no_grad():
        for block in model.blocks[1:]:
            block.attn.out.weight.mul_(agreeing)
            block.ffn.down.weight.mul_(agreeing)
    draft.load_state_dict({k: v for k, v in model.state_dict().items() if k in draft.state_dict()})
    return model, draft


def in_turns(runs: Mapping[str, Callable[[], int]], rounds: int, device: str) -> dict[str, list[float]]:
    """Tokens per second of each, round by round. One CPU thread is timed by its processor time, which others' work on
    the machine changes little; everything else by the clock on the wall.
    """
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            gc.collect()
            began = clock()
            tokens = run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            rates[name].append(tokens / (clock() - began))
    return rates


def compare(rates: dict[str, list[float]], ours: str, peer: str, note: str = "") -> dict[str, Any]:
    ratios = [a / b for a, b in zip(rates[ours], rates[peer], strict=True)]
    return {
        "ours": ours,
        "peer": peer,
        "ours_tokens_per_second": statistics.median(rates[ours]),
        "peer_tokens_per_second": statistics.median(rates[peer]),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "note": note,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64, help="of the comparison of batching")
    parser.add_argument("--only", choices=["batching", "prefixes", "speculative"], default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None, help="write the results here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device, dtype = options.device, getattr(torch, options.dtype)

    results: list[dict[str, Any]] = []
    if options.only in (None, "batching"):
        results += batching(options.requests, options.rounds, device, dtype)
    if options.only in (None, "prefixes"):
        results.append(prefixes(options.rounds, device, dtype))
    if options.only in (None, "speculative"):
        results += [speculative(options.rounds, device, dtype, agreeing) for agreeing in (0.01, 0.03)]
    content = report(results, options)
    show(content)
    if options.json:
        write_json(options.json, content)


def batching(requests: int, rounds: int, device: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    model, peer = build(llama(256, 6, 4, 688), device, dtype)
    work = workload(requests, model.config.vocab_size)
    ways: dict[str, tuple[Callable[[Any, Work], int], Any]] = {
        "continuous": (continuous, model),
        "static, transformers": (static_peer, peer),
        "static": (static, model),
        "static, rows leave by halves": (static_dropping, model),
    }
    for run, which in ways.values():
        run(which, [(prompt, 8) for prompt, _ in work[:BATCH]])  # warm up
    runs = {name: functools.partial(run, which, work) for name, (run, which) in ways.items()}
    rates = in_turns(runs, rounds, device)
    return [compare(rates, "continuous", name) for name in list(rates)[1:]]


def prefixes(rounds: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    model, _ = build(llama(256, 6, 4, 688), device, dtype)
    shared_prefixes(model, 0, requests=2)  # warm up
    sizes = {"shared prefix": 1 << 28, "no sharing": 0}
    runs = {name: functools.partial(shared_prefixes, model, size) for name, size in sizes.items()}
    return compare(in_turns(runs, rounds, device), "shared prefix", "no sharing")


def speculative(rounds: int, device: str, dtype: torch.dtype, agreeing: float, new: int = 192) -> dict[str, Any]:
    model, draft = draft_pair(device, dtype, agreeing)
    prompt = rng(2, "serving").integers(3, model.config.vocab_size, 16).tolist()
    kept: list[float] = []

    def run(drafter: Decoder | None) -> int:
        (done,) = generate(model, WORDS, [prompt], max_new_tokens=new, eos=[], draft=drafter)
        kept.extend([] if done.acceptance is None else [done.acceptance])
        return new

    run(draft)  # warm up
    runs = {"with a draft": functools.partial(run, draft), "no draft": functools.partial(run, None)}
    rates = in_turns(runs, rounds, device)
    return compare(rates, "with a draft", "no draft", f"{kept[-1]:.0%} of the drafted tokens kept")


def report(results: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The results as `run_all.py` wants them."""
    import transformers

    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    rows = []
    for r in results:
        low, high = r["ratio_range"]
        rows.append([
            r["ours"], r["peer"], f"{r['ours_tokens_per_second']:,.0f}", f"{r['peer_tokens_per_second']:,.0f}",
            f"{r['ratio']:.2f}x", f"{low:.2f}-{high:.2f}", r["note"],
        ])  # fmt: skip
    return {
        "title": "Serving",
        "setup": f"Tokens per second that were asked for. Batching: {options.requests} requests, prompts of "
        f"{PROMPTS[0]}-{PROMPTS[1]} and answers of {LENGTHS[0]}-{LENGTHS[1]} tokens, log-uniform, {BATCH} at a time; "
        f"prefixes: {SHARED} prompt tokens in common, 16 own, 16 new; both a random Llama 256 × 6, 8k vocabulary. "
        f"Speculative: one row, 768 × 12 with a draft of one layer. {options.rounds} rounds in turns; {device}, "
        f"{options.dtype}, torch {torch.__version__}, transformers {transformers.__version__}.",
        "columns": ["ours", "beside", "ours (tokens/s)", "beside (tokens/s)", "ratio", "range", ""],
        "rows": rows,
        "notes": [],
        "figures": results,
    }


def show(content: dict[str, Any]) -> None:
    table = Table(*content["columns"], title=content["title"], caption=content["setup"])
    for row in content["rows"]:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()

"""Tokens per second of cached decoding: `bloomery.generate` against `transformers.generate`, same weights.

Greedy, the same number of new tokens, the same prompts. The two take turns in one process; a round measures each once
and the table gives the medians over rounds. The speed counts new tokens over the whole call (prefill included; the
prompts are short).

    python benchmarks/generate.py --rounds 5 --threads 2 --json generate.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models

from bloomery.core.files import write_json
from bloomery.generate import generate
from bloomery.models import Decoder, load_pretrained

PROMPT_TOKENS = 16
KINDS = ["small", "large", "moe"]
MOE = "256 × 6, 64 experts, top 6, latent attention"
SIZES: dict[str, dict[str, Any]] = {
    "256 × 6, 8k vocabulary": {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 688,
        "vocab_size": 8192,
    },
    "768 × 12, 32k vocabulary": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "intermediate_size": 2048,
        "vocab_size": 32000,
    },
    MOE: {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 688,
        "vocab_size": 8192,
        "moe_intermediate_size": 128,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "topk_method": "greedy",
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": 64,
        "q_lora_rank": None,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--sizes", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None, help="write the results here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    results = []
    named = dict(zip(KINDS, SIZES.items(), strict=True))
    for size in options.sizes:
        name, shape = named[size]
        ours, peer = build(shape, options.device, getattr(torch, options.dtype))
        for batch in options.batch:
            results.append({"model": name, "batch": batch} | measure(ours, peer, batch, options))
    content = report(results, options)
    show(content)
    if options.json:
        write_json(options.json, content)


def build(shape: dict[str, Any], device: str, dtype: torch.dtype) -> tuple[Decoder, Any]:
    """The same random Llama, or DeepSeek-V2 where there are experts, in both libraries."""
    from transformers import AutoModelForCausalLM, DeepseekV2Config, LlamaConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    family = DeepseekV2Config if "n_routed_experts" in shape else LlamaConfig
    config = family(**shape, max_position_embeddings=1024, tie_word_embeddings=False, initializer_range=0.1)
    peer = AutoModelForCausalLM.from_config(config).to(device, dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        ours = load_pretrained(folder, dtype=dtype, device=device)
    return ours, peer


def measure(ours: Decoder, peer: Any, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Median tokens per second of both over the rounds, and how many rows gave the same tokens."""
    prompts = torch.randint(3, ours.config.vocab_size, (batch, PROMPT_TOKENS), generator=torch.manual_seed(1))
    on_device = prompts.to(options.device)
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))  # the prompts are token ids already

    def run_ours() -> list[list[int]]:
        done = generate(ours, tokenizer, prompts.tolist(), max_new_tokens=options.new_tokens, eos=[])
        return [completion.tokens for completion in done]

    def run_peer() -> list[list[int]]:
        done = peer.generate(
            on_device,
            attention_mask=torch.ones_like(on_device),
            do_sample=False,
            max_new_tokens=options.new_tokens,
            min_new_tokens=options.new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        return done[:, PROMPT_TOKENS:].tolist()

    times: dict[str, list[float]] = {"ours": [], "peer": []}
    same = sum(a == b for a, b in zip(run_ours(), run_peer(), strict=True))  # also warms both up
    for _ in range(options.rounds):
        times["ours"].append(seconds(run_ours, options.device))
        times["peer"].append(seconds(run_peer, options.device))
    rate = {who: batch * options.new_tokens / statistics.median(values) for who, values in times.items()}
    ratios = [b / a for a, b in zip(times["ours"], times["peer"], strict=True)]
    return {
        "ours_tokens_per_second": rate["ours"],
        "peer_tokens_per_second": rate["peer"],
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "rows_equal": same,
    }


def seconds(run: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def report(results: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The results as `run_all.py` wants them."""
    import transformers

    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    rows = []
    for r in results:
        low, high = r["ratio_range"]
        rows.append([
            r["model"], str(r["batch"]), f"{r['ours_tokens_per_second']:,.0f}", f"{r['peer_tokens_per_second']:,.0f}",
            f"{r['ratio']:.2f}x", f"{low:.2f}-{high:.2f}", f"{r['rows_equal']}/{r['batch']}",
        ])  # fmt: skip
    return {
        "title": "Greedy decoding",
        "setup": "New tokens per second with a key/value cache, the same random weights on both sides, "
        f"{PROMPT_TOKENS} prompt tokens and {options.new_tokens} new ones, {options.rounds} rounds in turns; "
        f"{device}, {options.dtype}, torch {torch.__version__}, transformers {transformers.__version__}.",
        "columns": ["width × depth", "batch", "ours", "transformers", "ratio", "range", "equal rows"],
        "rows": rows,
        "notes": [],
    }


def show(content: dict[str, Any]) -> None:
    table = Table(*content["columns"], title=content["title"])
    for row in content["rows"]:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()

"""Training tokens per second: our decoder in our step against `transformers.LlamaForCausalLM` in a plain PyTorch loop.

Same architecture, parameter count, optimiser (fused AdamW), precision, gradient clipping and batches; each library
computes the loss its own way (ours from hidden states in chunks, theirs from all logits). The two take turns in one
process; a round is a few optimiser steps of each, and the figures are medians over the rounds.

    python benchmarks/pretrain.py                        # CPU, two sizes
    python benchmarks/pretrain.py --threads 1 --rounds 9 --json pretrain.json
    python benchmarks/pretrain.py --device cuda          # bfloat16, both compiled, with utilisation of a 1B model
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bloomery.core.files import write_json
from bloomery.models.decoder import Decoder, DecoderConfig
from bloomery.train import Phase, TrainConfig, next_token
from bloomery.train.meter import peak_flops
from bloomery.train.optim import adamw
from bloomery.train.ranks import Ranks
from bloomery.train.step import accumulate, micro_batches, normalise_and_clip, prepare

Step = Callable[[torch.Tensor], float]  # tokens (batch, seq + 1) → loss, after one optimiser step


@dataclass(frozen=True)
class Case:
    """One model size and batch."""

    name: str
    model: DecoderConfig
    batch: int
    seq_len: int
    steps: int  # per round


def llama(dim: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, seq_len: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab,
        dim=dim,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=dim // heads,
        ffn_dim=ffn,
        max_positions=seq_len,
    )


CPU_CASES = [
    Case("256×6, vocab 8k, seq 256", llama(256, 6, 8, 4, 688, 8192, 256), batch=8, seq_len=256, steps=3),
    Case("512×8, vocab 32k, seq 512", llama(512, 8, 8, 4, 1376, 32000, 512), batch=2, seq_len=512, steps=1),
]
CUDA_CASES = [
    Case("768×12, vocab 32k, seq 1024", llama(768, 12, 12, 4, 2048, 32000, 1024), batch=32, seq_len=1024, steps=10),
    Case(
        "1B: 2048×20, vocab 32k, seq 2048", llama(2048, 20, 16, 8, 5632, 32000, 2048), batch=16, seq_len=2048, steps=5
    ),
]


def our_step(case: Case, device: torch.device, dtype: torch.dtype, compiled: bool) -> tuple[Step, int, float]:
    model = Decoder(case.model).to(device)
    config = TrainConfig(phases=[Phase(tokens=1, lr=1e-4)])
    optimizer, ranks, generator = adamw(model, config), Ranks(), torch.Generator(device)
    forward = prepare(model, next_token, compiled=compiled, ranks=ranks)

    def step(tokens: torch.Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        sums = accumulate(forward, micro_batches({"tokens": tokens}, None, ranks), generator, device, dtype)
        values = normalise_and_clip(model, sums, config.clip, 0, ranks)
        optimizer.step()
        return values["loss"]

    return step, model.num_parameters(), model.flops_per_token(case.seq_len)


def their_step(case: Case, device: torch.device, dtype: torch.dtype, compiled: bool) -> tuple[Step, int]:
    from transformers import LlamaConfig, LlamaForCausalLM

    c = case.model
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.dim,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            head_dim=c.head_dim,
            intermediate_size=c.ffn_dim,
            max_position_embeddings=c.max_positions,
            rms_norm_eps=c.norm_eps,
            tie_word_embeddings=c.tie_embeddings,
            use_cache=False,
            attn_implementation="sdpa",
        )
    ).to(device)
    model.train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(tokens: torch.Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        inputs = tokens[:, :-1].to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = forward(input_ids=inputs, labels=inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step, sum(p.numel() for p in model.parameters())


def tokens_per_second(step: Step, batches: list[torch.Tensor]) -> float:
    began = time.perf_counter()
    for tokens in batches:
        step(tokens)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return sum(b.shape[0] * (b.shape[1] - 1) for b in batches) / (time.perf_counter() - began)


def measure(case: Case, device: torch.device, dtype: torch.dtype, compiled: bool, rounds: int) -> dict[str, Any]:
    ours, parameters, flops = our_step(case, device, dtype, compiled)
    theirs, their_parameters = their_step(case, device, dtype, compiled)
    assert parameters == their_parameters, (parameters, their_parameters)
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.seq_len + 1)
    batches = [torch.randint(case.model.vocab_size, shape, generator=generator) for _ in range(case.steps)]
    for step in (ours, theirs):  # warm up: allocator, kernels, compilation
        for tokens in [*batches, batches[0]]:
            step(tokens)
    speeds: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:  # whoever comes second finds the machine warmer: take turns at that too
            their_speed, our_speed = tokens_per_second(theirs, batches), tokens_per_second(ours, batches)
        else:
            our_speed, their_speed = tokens_per_second(ours, batches), tokens_per_second(theirs, batches)
        speeds.append((our_speed, their_speed))
    result = {
        "case": case.name,
        "parameters": parameters,
        "ours": statistics.median(a for a, _ in speeds),
        "peer": statistics.median(b for _, b in speeds),
        "ratio": statistics.median(a / b for a, b in speeds),
    }
    if (peak := peak_flops(device)) is not None:
        result["mfu_ours"] = result["ours"] * flops / peak
        result["mfu_peer"] = result["peer"] * flops / peak
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", type=int, default=None, help="only the case of this number, from 0")
    parser.add_argument("--compile", action="store_true", help="compile both (always so on cuda)")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here as well")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    compiled = options.compile or on_gpu
    cases = CUDA_CASES if on_gpu else CPU_CASES

    import transformers

    transformers.logging.set_verbosity_error()
    hardware = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    mode = f"{str(dtype).removeprefix('torch.')}, {'compiled' if compiled else 'eager'}"
    setup = f"{hardware}, {mode}, torch {torch.__version__}, transformers {transformers.__version__}"
    columns = ["model", "parameters", "ours (tokens/s)", "transformers (tokens/s)", "ratio", "MFU ours", "MFU theirs"]
    columns = columns if peak_flops(device) else columns[:5]
    table = Table(*columns, title=setup)
    rows, figures = [], []
    for case in cases if options.case is None else [cases[options.case]]:
        figures.append(measure(case, device, dtype, compiled, options.rounds))
        rows.append(cells(figures[-1]))
        table.add_row(*rows[-1])
    Console().print(table)
    if options.json:
        title = "Training: our decoder and step against transformers' Llama in a plain loop"
        notes = [
            f"Fused AdamW, clipping, the same batches; medians of {options.rounds} rounds in turns in one process."
        ]
        result = {"title": title, "setup": setup, "columns": columns, "rows": rows, "notes": notes, "figures": figures}
        write_json(options.json, result)


def cells(figures: dict[str, Any]) -> list[str]:
    row = [figures["case"], f"{figures['parameters'] / 1e6:.1f}M", f"{figures['ours']:,.0f}", f"{figures['peer']:,.0f}"]
    row.append(f"{figures['ratio']:.2f}x")
    return row + [f"{figures[name]:.1%}" for name in ("mfu_ours", "mfu_peer") if name in figures]


if __name__ == "__main__":
    main()

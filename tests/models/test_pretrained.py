"""Folders in and out: spellings, shards, and every way a checkpoint can be wrong, each with one clear message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bloomery.core import weight_files
from bloomery.core.errors import CheckpointError, ConfigError, StorageError
from bloomery.models import (
    Decoder,
    convert_pretrained,
    load_config,
    load_pretrained,
    preset,
    presets,
    pretrained,
    save_pretrained,
)
from bloomery.models.hf_config import Fields
from bloomery.models.pretrained import TRAINING, _function, _published_form, _training_only, _with_training
from bloomery.nn import LinearScaling, Llama3Scaling

CONFIG = preset("llama-tiny", vocab_size=64, dim=16, n_layers=2, head_dim=4, ffn_dim=24, tie_embeddings=False)
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LATENT = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "kv_lora_rank": 4, "v_head_dim": 4,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "num_key_value_heads": 4,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(Decoder(CONFIG), tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: Any) -> None:
    """Change fields of config.json; `...` removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def same(a: Decoder, b: Decoder) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("shard_bytes", [10**9, 3000, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_is_bitwise(tmp_path: Path, shard_bytes: int, dtype: torch.dtype) -> None:
    model = Decoder(CONFIG).to(dtype)
    save_pretrained(model, tmp_path / "model", shard_bytes=shard_bytes)
    loaded = load_pretrained(tmp_path / "model")
    assert loaded.config == CONFIG
    assert loaded.embed.weight.dtype == dtype
    assert same(model, loaded)
    assert (tmp_path / "model" / "model.safetensors").exists() == (shard_bytes == 10**9)
    assert load_pretrained(tmp_path / "model", dtype="float32").embed.weight.dtype == torch.float32


def test_saving_again_replaces_the_folder_whole(folder: Path) -> None:
    save_pretrained(Decoder(CONFIG), folder, shard_bytes=3000)
    assert not (folder / "model.safetensors").exists()
    assert load_pretrained(folder).config == CONFIG


def test_a_loaded_model_generates_and_trains(folder: Path) -> None:
    """Nothing of the meta device or of inference mode is left in it."""
    model = load_pretrained(folder)
    tokens = torch.arange(6)[None]
    with torch.inference_mode():
        first = model(tokens).logits
    model(tokens).logits.sum().backward()
    assert torch.equal(model(tokens).logits, first)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("spelling", "theta", "scaling"),
    [
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": ..., "rope_scaling": ...}, 1e4, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 1e4, LinearScaling(factor=2.0)),
        ({"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, None),
        (
            {"rope_theta": ..., "rope_scaling": ..., "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
            5e5,
            Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192),
        ),
    ],
)
def test_rope_spellings_of_transformers_4_and_5(folder: Path, spelling: Any, theta: float, scaling: Any) -> None:
    edit_config(folder, **spelling)
    config = load_config(folder)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


def test_old_configurations_leave_fields_out(folder: Path) -> None:
    edit_config(folder, num_key_value_heads=..., head_dim=..., tie_word_embeddings=..., rms_norm_eps=...)
    config = load_config(folder)
    assert (config.n_kv_heads, config.head_dim, config.tie_embeddings) == (4, 4, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, r"unknown model_type 'lama'.*known: llama, qwen2, .*; did you mean 'llama'"),
        ({"model_type": "mamba2"}, "unknown model_type 'mamba2'"),
        ({"model_type": ...}, "'model_type' is missing"),
        ({"num_hidden_layers": ..., "num_hiden_layers": 2}, "'num_hidden_layers' is missing.*'num_hiden_layers'"),
        ({"rms_norm_eps": ..., "rms_norm_esp": 1e-5}, "unknown field 'rms_norm_esp'.*did you mean 'rms_norm_eps'"),
        ({"hidden_size": "16"}, "hidden_size='16' is not of type int"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1 is not of type bool"),
        ({"vocab_size": True}, "vocab_size=True"),
        ({"num_key_value_heads": 3}, "n_heads=4 is not a multiple of n_kv_heads=3"),
        ({"head_dim": ..., "hidden_size": 18}, "hidden_size=18 is not a multiple of num_attention_heads=4"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported"),
        ({"quantization_config": {"bits": 4}}, "load the unquantised checkpoint"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
            "'longrope'.*known: default, linear, ntk, llama3, yarn",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor' is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.1}}, "factor=0.1"),
        ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}}, "contradict each other"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_theta is 10000.0 here and 1000000.0"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding-window"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "sliding-window"),
        ({"model_type": "mixtral", "sliding_window": 64}, "sliding_window=64"),
        ({"model_type": "nemotron", "rope_percent": 0.25, "partial_rotary_factor": 0.5}, "contradict each other"),
        ({"model_type": "nemotron", "rope_percent": 0.01}, "turns 0 of 4 features"),
        ({"model_type": "nemotron", "norm_eps": 1e-5, "layer_norm_eps": 1e-6}, "norm_eps.*contradict each other"),
        ({"model_type": "bailing_moe", **EXPERTS, "n_routed_experts": 6}, "num_experts=8 and n_routed_experts=6"),
        ({"model_type": "bailing_moe", **EXPERTS, "num_experts_per_tok": 9}, "top_k=9, but a token can reach 8"),
        ({"model_type": "deepseek_v2", "kv_lora_rank": 4}, "'qk_nope_head_dim' is missing"),
        ({"model_type": "deepseek_v2", **LATENT, "topk_method": "noaux_tc"}, "topk_method='noaux_tc'"),
        ({"model_type": "deepseek_v2", **LATENT, "num_key_value_heads": 2}, "num_key_value_heads=2"),
        ({"model_type": "grok-1", "router_logit_softcapping": 30.0}, "a port's addition"),
        ({"model_type": "bloomery", "decoder": {"dimm": 3}}, "unknown field 'dimm'"),
        ({"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
    ],
)
def test_bad_configurations(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        load_pretrained(folder)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_key_errors_come_in_one_message(folder: Path) -> None:
    def edit(weights: dict[str, Tensor]) -> None:
        del weights["model.norm.weight"]
        del weights["model.layers.1.mlp.up_proj.weight"]
        weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(24, 16)
        weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(16)
        weights["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(4, 16)

    edit_weights(folder, edit)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder)
    for part in (
        "2 missing: model.layers.1.mlp.up_proj.weight, model.norm.weight",
        "2 unexpected: model.layers.0.self_attn.q_proj.bias, model.layers.2.mlp.up_proj.weight",
        "1 of the wrong shape: model.layers.0.self_attn.k_proj.weight is [4, 16] instead of [8, 16]",
    ):
        assert part in str(caught.value)


def test_a_long_list_of_keys_is_cut(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=9)
    with pytest.raises(CheckpointError, match=r"63 missing: .* and 58 more"):
        load_pretrained(folder)


def test_frequencies_stored_by_old_exporters_are_ignored(folder: Path) -> None:
    edit_weights(folder, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}))
    assert load_pretrained(folder).config == CONFIG


def test_tied_heads(folder: Path) -> None:
    """A copy of the embedding may be stored or not; another matrix under a tied configuration is an error."""
    edit_config(folder, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        load_pretrained(folder)
    edit_weights(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    with_copy = load_pretrained(folder)
    edit_weights(folder, lambda w: w.pop("lm_head.weight"))
    assert same(with_copy, load_pretrained(folder))
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head\.weight"):
        load_pretrained(folder)


def test_a_vocabulary_larger_than_the_embedding(folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(65)}, unk_token="w0"))
    with pytest.raises(CheckpointError, match="token ids up to 64, the embedding only 64 rows"):
        save_pretrained(Decoder(CONFIG), tmp_path / "out", tokenizer=words)
    assert not (tmp_path / "out").exists()
    words.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="token ids up to 64, the embedding only 64 rows"):
        load_pretrained(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        load_pretrained(folder)


def test_a_tokenizer_travels_with_the_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="reads the exported folder")
    from bloomery.corpus import tokenizer as text

    words = text.train(["the cat sat on the mat"] * 5, vocab_size=text.MIN_VOCABULARY + 4)
    model = Decoder(preset("llama-tiny", vocab_size=words.get_vocab_size()))
    save_pretrained(model, tmp_path / "model", tokenizer=words)
    eos, end = (words.token_to_id(token) for token in (text.EOS, text.END))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs.eos_token_id == eos
    assert theirs("the cat", add_special_tokens=False)["input_ids"] == words.encode("the cat").ids
    assert transformers.AutoConfig.from_pretrained(tmp_path / "model").eos_token_id == eos
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == [eos, end]
    assert same(load_pretrained(tmp_path / "model"), model)


def test_an_embedding_smaller_than_the_configuration_says(folder: Path) -> None:
    edit_config(folder, vocab_size=80)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is \[64, 16\] instead of \[80, 16\]"):
        load_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_pretrained(folder)


def test_what_is_not_a_model_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no config\.json"):
        load_pretrained(tmp_path / "nowhere")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="a pickle, which can run code"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{broken")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_pretrained(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../secret.safetensors"}}, r"outside its folder: \.\./secret"),
        ({"weight_map": {"a": "/etc/passwd"}}, "outside its folder: /etc/passwd"),
        ({"weight_map": {"a": ".."}}, "outside its folder"),
        ({"weight_map": {"a": "gone.safetensors"}}, "1 of 1 shards are missing: gone.safetensors"),
        ({"weight_map": ["a"]}, "not a weight index"),
        ({"weight_map": {"a": 3}}, "not a weight index"),
        ({}, "not a weight index"),
    ],
)
def test_bad_indexes(folder: Path, index: dict[str, Any], message: str) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(folder)


def test_a_missing_shard(tmp_path: Path) -> None:
    save_pretrained(Decoder(CONFIG), tmp_path / "model", shard_bytes=3000)
    gone = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=f"shards are missing: {gone.name}"):
        load_pretrained(tmp_path / "model")


ODD: dict[str, dict[str, Any]] = {
    "biases": {"mlp_bias": True, "qkv_bias": True},
    "sandwich": {"post_norm": True, "softcap": 5.0},
    "plain": {"gated": False, "activation": "gelu"},
    "post-rope": {"qk_norm": "post_rope", "rope_layout": "interleaved", "z_loss": 1e-4, "init": "fan_in"},
    "head": {"head_norm": "vocab", "tie_embeddings": False},
    "sigmoid": {"moe": {"n_experts": 4, "top_k": 2, "expert_dim": 8, "score": "sigmoid", "warmup": 5, "balance": 0.1}},
}


@pytest.mark.parametrize("name", ODD)
def test_a_decoder_no_published_format_can_hold_is_kept_in_ours(name: str, tmp_path: Path) -> None:
    model = Decoder(preset("llama-tiny", vocab_size=64, n_layers=2, **ODD[name]))
    save_pretrained(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "bloomery"
    loaded, tokens = load_pretrained(tmp_path / "model"), torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(tokens).logits, model.eval()(tokens).logits)
    assert loaded.config.z_loss == model.config.z_loss


@pytest.mark.parametrize("name", [name for name in presets() if not name.endswith("-tiny")])
def test_every_preset_survives_the_format_it_is_written_in(name: str) -> None:
    """What reading the written `config.json` gives computes and trains the same."""
    config = preset(name)
    family, written = _published_form(config)
    read = family.read(Fields(json.loads(json.dumps(written)), name))
    again = _with_training(read, written[TRAINING], name) if TRAINING in written else read
    assert _function(again) == _function(config)
    assert _training_only(again) == _training_only(config)
    expected = {"llama": "llama", "yi": "llama", "qwen2.5": "qwen2", "qwen3": "qwen3", "mixtral": "mixtral"}
    expected |= {"deepseek": "deepseek_v2", "nemotron": "nemotron", "minitron": "nemotron", "grok": "grok-1"}
    expected |= {"ling": "bailing_moe", "afm": "bloomery", "dclm": "bloomery"}
    assert expected[name.partition("-")[0]] == family.MODEL_TYPE


def test_what_only_training_uses_survives_in_a_published_format(tmp_path: Path) -> None:
    moe = {"n_experts": 4, "top_k": 2, "expert_dim": 8, "renormalise": True, "balance": 0.03, "z_loss": 1e-3}
    model = Decoder(preset("llama-tiny", vocab_size=64, n_layers=2, tie_embeddings=False, moe=moe))
    save_pretrained(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "mixtral"
    loaded = load_pretrained(tmp_path / "model").config
    assert loaded.moe is not None
    assert (loaded.moe.balance, loaded.moe.z_loss) == (0.03, 1e-3)


def test_older_ports_of_grok_call_a_norms_scale_scale(tmp_path: Path) -> None:
    model = Decoder(preset("grok-1-tiny", vocab_size=64, n_layers=2))
    save_pretrained(model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    old = {name.replace("norm.weight", "norm.scale"): tensor.clone() for name, tensor in weights.items()}
    assert old.keys() != weights.keys()
    save_file(old, tmp_path / "model" / "model.safetensors")
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(load_pretrained(tmp_path / "model")(tokens).logits, model.eval()(tokens).logits)
    save_file(old | weights, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match="is stored twice, once as"):
        load_pretrained(tmp_path / "model")


def test_an_absurd_number_of_experts_is_refused_at_once(tmp_path: Path) -> None:
    save_pretrained(Decoder(preset("mixtral-tiny", vocab_size=64, n_layers=2)), tmp_path / "model")
    edit_config(tmp_path / "model", num_local_experts=10**9)
    with pytest.raises(CheckpointError, match="2 layers of 1000000000 experts, the files hold"):
        load_pretrained(tmp_path / "model")


def test_loading_holds_the_model_and_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored tensors are read one by one, each dropped before the next."""
    import weakref

    from bloomery.models import pretrained

    save_pretrained(Decoder(CONFIG), tmp_path / "model", shard_bytes=3000)
    read, alive, most = pretrained._Stored.tensor, weakref.WeakSet[Tensor](), 0

    def counted(self: Any, name: str) -> Tensor:
        nonlocal most
        tensor = read(self, name)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(pretrained._Stored, "tensor", counted)
    load_pretrained(tmp_path / "model")
    assert most == 1


def test_converting_holds_one_file_at_a_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    read, write = pretrained._Stored.tensor, weight_files.save_file

    def spy_read(stored: Any, name: str) -> Tensor:
        events.append("read")
        return read(stored, name)

    def spy_write(*args: Any, **kwargs: Any) -> None:
        events.append("write")
        write(*args, **kwargs)

    monkeypatch.setattr(pretrained._Stored, "tensor", spy_read)
    monkeypatch.setattr(weight_files, "save_file", spy_write)
    edit_config(folder, torch_dtype=..., dtype="float32", future_field=[1, 2])
    parameters = convert_pretrained(folder, tmp_path / "half", "bfloat16", shard_bytes=1)
    assert events == ["read", "write"] * (len(events) // 2)
    monkeypatch.undo()

    assert parameters == Decoder(CONFIG).num_parameters()
    assert same(load_pretrained(tmp_path / "half"), load_pretrained(folder, dtype="bfloat16"))
    written = json.loads((tmp_path / "half" / "config.json").read_text())
    assert written == json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}


def test_converting_checks_what_it_reads(folder: Path, tmp_path: Path) -> None:
    edit_weights(folder, lambda w: w.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"1 missing: model\.norm\.weight"):
        convert_pretrained(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_that_are_no_floating_point_numbers_are_refused(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(folder, lambda w: w.update({name: w[name].to(torch.int8)}))
    with pytest.raises(CheckpointError, match=rf"1 of another type: {name} is I8"):
        load_pretrained(folder)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise pretrained.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weight_files, "save_file", full)
    with pytest.raises(StorageError, match="disk is full"):
        save_pretrained(Decoder(CONFIG), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_field_that_is_null_is_no_misspelling_of_its_other_name() -> None:
    fields = Fields({"num_shared_experts": None}, "config.json")
    assert fields.either(("num_shared_experts", "n_shared_experts"), 0, int) == 0
    fields.finish()


def test_an_absurd_depth_is_refused_at_once(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=10**9)
    with pytest.raises(CheckpointError, match="1000000000 layers, the files hold 21 tensors"):
        load_pretrained(folder)

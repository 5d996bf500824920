#!/usr/bin/env python3
"""make.py ORACLE WORK [NAME...]

Makes the family fixtures listed below, all or those named, in the folder WORK
and packs them beside this script: tiny random checkpoints in the form of the
released ones, with logits and hidden states of transformers' code (float32,
CPU, eager attention) and the GGUF file of llama.cpp's converter. ORACLE is a
script that runs that converter: ORACLE DIR OUT TYPE --pre NAME.

Vocabularies come from the packs of older fixtures; for a pre-tokenizer that
none of them has, that section is replaced and tokens.json computed again.
Weights depend only on the fixture's name and the tensor's. Needs torch 2.13,
transformers 5.23.0, tokenizers, tar and zstd.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
VOCABULARY = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "generation_config.json", "tokens.json")
BPE_IDS = {"bos_token_id": 496, "eos_token_id": 497, "pad_token_id": 498}
SPM_IDS = {"bos_token_id": 1, "eos_token_id": 2}


def common(cls, kind, ids=BPE_IDS, **more):
    """What most configurations say."""
    config = {
        "architectures": [cls], "model_type": kind, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
        "intermediate_size": 96, "max_position_embeddings": 4096, "num_attention_heads": 4, "num_hidden_layers": 3,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "vocab_size": 512,
        "attention_dropout": 0.0, **ids, **more}
    return {k: v for k, v in config.items() if v is not ...}  # ... removes


def granite(cls, kind, **more):
    return common(cls, kind, attention_bias=False, attention_multiplier=0.0625, embedding_multiplier=12.0,
                  residual_multiplier=0.22, logits_scaling=0.25, rope_scaling=None, tie_word_embeddings=True, **more)


def longrope(n, **more):
    return {"type": "longrope", "short_factor": [1.0 + 0.05 * i for i in range(n)],
            "long_factor": [1.5 + 0.75 * i for i in range(n)], **more}


# name: configuration, fixture that has the vocabulary, pre-tokenizer; and, where
# none has it, the tokenizer's section.
FIXTURES = {
    # Short factors, and a window in all blocks, which llama.cpp writes and does not heed.
    "phi3": (common("Phi3ForCausalLM", "phi3", SPM_IDS, attention_bias=False, embd_pdrop=0.0, resid_pdrop=0.0,
                    max_position_embeddings=131072, original_max_position_embeddings=4096, sliding_window=20,
                    rope_scaling=longrope(8), pad_token_id=2), "mistral", None),
    # 48 tokens are more than the original context: long factors.
    "phi3_long": (common("Phi3ForCausalLM", "phi3", SPM_IDS, attention_bias=False, embd_pdrop=0.0, resid_pdrop=0.0,
                         max_position_embeddings=512, original_max_position_embeddings=32, sliding_window=262144,
                         partial_rotary_factor=0.75, rope_scaling=longrope(6), pad_token_id=2), "mistral", None),
    "phimoe": (common("PhiMoEForCausalLM", "phimoe", SPM_IDS, attention_bias=True, hidden_dropout=0.0,
                      input_jitter_noise=0.01, router_jitter_noise=0.01, lm_head_bias=True, num_experts_per_tok=2,
                      num_local_experts=6, intermediate_size=32, max_position_embeddings=131072,
                      original_max_position_embeddings=4096, output_router_logits=False, router_aux_loss_coef=0.0,
                      sliding_window=131072, rope_scaling=longrope(
                          8, short_mscale=1.243163121016122, long_mscale=1.243163121016122,
                          original_max_position_embeddings=4096)), "mistral", None),
    "granite": (granite("GraniteForCausalLM", "granite", mlp_bias=False), "granitemoe", "refact"),
    "granitemoe_shared": (granite("GraniteMoeSharedForCausalLM", "granitemoeshared", intermediate_size=32,
                                  num_local_experts=6, num_experts_per_tok=2, shared_intermediate_size=48,
                                  output_router_logits=False, router_aux_loss_coef=0.0), "granitemoe", "refact"),
    "smollm3": (common("SmolLM3ForCausalLM", "smollm3", num_hidden_layers=4, attention_bias=False, mlp_bias=False,
                       layer_types=["full_attention"] * 4, max_window_layers=28, no_rope_layer_interval=4,
                       no_rope_layers=[1, 1, 1, 0], rope_scaling=None, rope_theta=5000000.0, sliding_window=None,
                       use_sliding_window=False, tie_word_embeddings=...), "llama", "smaug-bpe"),
    "glm4": (common("Glm4ForCausalLM", "glm4", bos_token_id=..., attention_bias=True, head_dim=24, partial_rotary_factor=0.5),
             "glm4_moe", "glm4"),
    "stablelm": (common("StableLmForCausalLM", "stablelm", hidden_dropout=0.0, layer_norm_eps=1e-5,
                        rms_norm_eps=..., partial_rotary_factor=0.25, qk_layernorm=False, use_parallel_residual=False,
                        use_qkv_bias=True, rope_theta=10000), "qwen2", "stablelm2"),
    "stablelm_parallel": (common("StableLmForCausalLM", "stablelm", hidden_dropout=0.0, layer_norm_eps=1e-5,
                                 rms_norm_eps=..., partial_rotary_factor=0.25, qk_layernorm=False,
                                 num_hidden_layers=2, use_parallel_residual=True, use_qkv_bias=False,
                                 rope_theta=10000), "qwen2", "stablelm2"),
    "cohere2": (common("Cohere2ForCausalLM", "cohere2", num_hidden_layers=4, attention_bias=False,
                       cache_implementation="hybrid", head_dim=16, layer_norm_eps=1e-5, rms_norm_eps=...,
                       layer_switch=4, logit_scale=0.25, order_of_interleaved_layers="local_attn_first",
                       position_embedding_type="rope_gptj", rope_scaling=None, rope_theta=50000, rotary_pct=1.0,
                       sliding_window=16, sliding_window_pattern=4, tie_word_embeddings=...,
                       use_embedding_sharing=True, use_gated_activation=True, use_parallel_block=True,
                       use_parallel_embedding=True), "starcoder2", "command-r"),
    "olmoe": (common("OlmoeForCausalLM", "olmoe", attention_bias=False, clip_qkv=None, intermediate_size=32,
                     norm_topk_prob=False, num_experts=5, num_experts_per_tok=3,
                     num_key_value_heads=4, output_router_logits=False,
                     rope_scaling=None, router_aux_loss_coef=0.01), "starcoder2", "olmo", BYTE_LEVEL),
    "ernie4_5_moe": (common("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", SPM_IDS, intermediate_size=128,
                            moe_capacity=[64, 64, 64], moe_gate="topk",
                            moe_intermediate_size=32, moe_k=3, moe_layer_end_index=2, moe_layer_interval=1,
                            moe_layer_start_index=1, moe_num_experts=6, moe_num_shared_experts=2,
                            moe_use_aux_free=True, num_nextn_predict_layers=1, pad_token_id=0, rope_theta=500000,
                            tie_word_embeddings=True, use_bias=False, use_rmsnorm=True), "mistral", None),
    "ernie4_5_moe_step": (common("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", SPM_IDS, num_hidden_layers=4,
                                 intermediate_size=64, moe_intermediate_size=32, moe_k=2, moe_layer_end_index=3,
                                 moe_layer_interval=2, moe_layer_start_index=1, moe_num_experts=6,
                                 moe_num_shared_experts=1, moe_use_aux_free=True, pad_token_id=0, rope_theta=500000,
                                 tie_word_embeddings=True, use_bias=False, use_rmsnorm=True), "mistral", None),
    "ernie4_5": (common("Ernie4_5ForCausalLM", "ernie4_5", SPM_IDS, head_dim=24, pad_token_id=0, rope_scaling=None,
                        rope_theta=500000.0, tie_word_embeddings=True, use_bias=False), "mistral", None),
    "dots1": (common("Dots1ForCausalLM", "dots1", attention_bias=False, first_k_dense_replace=1, head_dim=16,
                     max_window_layers=3, moe_intermediate_size=32, moe_layer_freq=1, n_group=1, topk_group=1,
                     n_routed_experts=5, num_key_value_heads=4, n_shared_experts=2, norm_topk_prob=True, num_experts_per_tok=3,
                     rope_scaling=None, rope_theta=10000000, routed_scaling_factor=2.5, scoring_func="sigmoid",
                     sliding_window=None, topk_method="noaux_tc", use_sliding_window=False), "qwen2", "qwen2"),
    "exaone4": (common("Exaone4ForCausalLM", "exaone4", num_hidden_layers=4, head_dim=16,
                       layer_types=["sliding_attention"] * 3 + ["full_attention"], rope_theta=1000000,
                       rope_scaling={"factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                                     "original_max_position_embeddings": 64, "rope_type": "llama3"},
                       sliding_window=16, sliding_window_pattern="LLLG"), "starcoder2", "exaone4", BYTE_LEVEL),
    # As Maverick: every second block dense, no norm of queries and keys, no rope scaling.
    "llama4_maverick": (common("Llama4ForCausalLM", "llama4_text", num_hidden_layers=4, attention_bias=False,
                               attention_chunk_size=8192, attn_scale=0.1, attn_temperature_tuning=True,
                               floor_scale=8192, for_llm_compressor=False, head_dim=16, interleave_moe_layer_step=2,
                               intermediate_size=32, intermediate_size_mlp=96, max_position_embeddings=1048576,
                               moe_layers=[1, 3], no_rope_layers=[1, 1, 1, 0], num_experts_per_tok=1,
                               num_local_experts=2, output_router_logits=False, rope_scaling=None,
                               rope_theta=500000.0, router_aux_loss_coef=0.001, router_jitter_noise=0.0,
                               use_qk_norm=False), "llama4_smallchunk", "llama4"),
}

# Tensors of released checkpoints that neither transformers nor the converter uses.
EXTRA = {"ernie4_5_moe": {"model.mtp_emb_norm.0.weight": (64,), "model.mtp_linear_proj.0.weight": (64, 128)}}


def unpack(name, to):
    subprocess.run("zstd -dc '%s/%s.tar.zst' | tar -x -C '%s'" % (HERE, name, to), shell=True, check=True)
    return os.path.join(to, name)


def vocabulary(source, path, section):
    """Copies a fixture's vocabulary; section, if any, replaces its pre-tokenizer."""
    with tempfile.TemporaryDirectory() as tmp:
        src = unpack(source, tmp)
        for f in VOCABULARY:
            if os.path.exists(os.path.join(src, f)):
                shutil.copyfile(os.path.join(src, f), os.path.join(path, f))
    if section is None:
        return
    file = os.path.join(path, "tokenizer.json")
    top = json.load(open(file, encoding="utf-8"))
    top["pre_tokenizer"] = section
    json.dump(top, open(file, "w", encoding="utf-8"), ensure_ascii=False, indent=1)
    tok = Tokenizer.from_file(file)
    file = os.path.join(path, "tokens.json")
    cases = json.load(open(file, encoding="utf-8"))
    for c in cases:
        c["ids"] = tok.encode(c["text"], add_special_tokens=False).ids
        del c["llama_cpp_equal"]
    json.dump(cases, open(file, "w", encoding="utf-8"), ensure_ascii=False, indent=1)


def standard(name, dims, config):
    """Mean and deviation of a parameter's elements: large enough that every mechanism shows in the logits."""
    if "norm" in name:
        return (0.0, 0.1) if name.endswith("bias") else (1.0, 0.25)
    if name.endswith("e_score_correction_bias"):
        return 0.0, 0.15 if config["model_type"] == "dots1" else 0.05
    if dims == 1:
        return 0.0, 0.1
    if "embed_tokens" in name:
        return 0.0, 0.3 if "embedding_multiplier" not in config else 0.04
    if name == "lm_head.weight":
        return 0.0, 0.375
    if "router" in name or name.endswith("gate.weight"):
        return 0.0, 0.25
    return 0.0, 0.12 if "down" in name else 0.15


@torch.no_grad()
def weights(model, fixture, config):
    """Random values that BF16 holds."""
    tensors = dict(model.named_parameters())
    tensors.update((n, b) for n, b in model.named_buffers() if n.endswith("e_score_correction_bias"))
    for name, p in tensors.items():
        g = torch.Generator().manual_seed(zlib.crc32(("%s/%s" % (fixture, name)).encode()))
        mean, std = standard(name, p.ndim, config)
        p.copy_((torch.randn(p.shape, generator=g) * std + mean).to(torch.bfloat16).float())


def float32(path):
    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", output_loading_info=True)
    for k in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[k], (k, info[k])
    assert all(p.dtype == torch.float32 for p in model.parameters())
    return model.eval()


def checkpoint(path, fixture, config):
    """Writes the weights in the layout of released checkpoints."""
    cfg = AutoConfig.from_pretrained(path)
    model = AutoModelForCausalLM.from_config(cfg, dtype=torch.float32)
    weights(model, fixture, config)
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp)
        stored = load_file(os.path.join(tmp, "model.safetensors"))
    for name, t in stored.items():
        if not name.endswith("e_score_correction_bias"):  # F32 in released files too
            stored[name] = t.to(torch.bfloat16)
    for name, shape in EXTRA.get(fixture, {}).items():
        stored[name] = torch.ones(shape, dtype=torch.bfloat16)
    save_file(stored, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})


@torch.no_grad()
def golden(path, config):
    ids = torch.randint(10, 490, (1, 48), generator=torch.Generator().manual_seed(7))
    ids[0, 0] = config.get("bos_token_id", BPE_IDS["bos_token_id"])
    out = float32(path)(input_ids=ids, use_cache=False, output_hidden_states=True)
    save_file({"input_ids": ids[0].contiguous(), "logits": out.logits[0].contiguous(),
               "hidden_states": torch.stack([h[0] for h in out.hidden_states]).contiguous()},
              os.path.join(path, "logits.safetensors"))
    return out.logits.std().item()


def pack(work, name):
    tar = ["tar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=2026-01-01",
           "--mode=u+rw,go+r", "-cf", "-", "-C", work, name]
    out = os.path.join(HERE, name + ".tar.zst")
    subprocess.run("%s | zstd -19 -q -f -o '%s'" % (" ".join("'%s'" % a for a in tar), out), shell=True, check=True)
    return os.path.getsize(out)


def make(oracle, work, name):
    config, source, pre, *section = FIXTURES[name]
    path = os.path.join(work, name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    json.dump(config, open(os.path.join(path, "config.json"), "w"), indent=2)
    vocabulary(source, path, section[0] if section else None)
    checkpoint(path, name, config)
    std = golden(path, config)
    subprocess.run([sys.executable, oracle, path, os.path.join(path, "ref-bf16.gguf"), "bf16"] +
                   (["--pre", pre] if pre else []), check=True, capture_output=True)
    print("%s: deviation of the logits %.2f, %d bytes" % (name, std, pack(work, name)), flush=True)


if __name__ == "__main__":
    for fixture in sys.argv[3:] or FIXTURES:
        make(sys.argv[1], sys.argv[2], fixture)

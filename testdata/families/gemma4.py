#!/usr/bin/env python3
"""gemma4.py CONVERT GEMMA4_MOE OUT - makes the fixtures gemma4_e and gemma4_dense in OUT (transformers 5.23.0, torch 2.13).

CONVERT     command of llama.cpp's converter: called with DIR OUT.gguf TYPE
GEMMA4_MOE  the unpacked fixture of that name, whose tokenizer files are taken over

gemma4_e     E2B's form: per-layer embeddings, the last four of eight blocks use keys and values of earlier ones and have a network of
             twice the width. As in released checkpoints these blocks have key and value projections nevertheless, which HF ignores.
             The small vision tower clips its linear layers.
gemma4_dense 31B's form: neither experts nor per-layer embeddings, values from the key projection; config.json as transformers 5.23
             saves it, with per_layer_config; texts only.

Prints how far the logits move when a mechanism is switched off.
"""
import json, shlex, shutil, subprocess, sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, Gemma4ForCausalLM, Gemma4ForConditionalGeneration, Gemma4TextConfig

ROPE = {
    "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
}
SLIDING, FULL = "sliding_attention", "full_attention"
TEXT = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "dtype": "bfloat16",
    "enable_moe_block": False, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 64, "initializer_range": 0.02,
    "intermediate_size": 96, "max_position_embeddings": 131072, "model_type": "gemma4_text", "moe_intermediate_size": None,
    "num_attention_heads": 4, "num_experts": None, "rms_norm_eps": 1e-06, "rope_parameters": ROPE, "sliding_window": 16,
    "tie_word_embeddings": True, "top_k_experts": None, "use_bidirectional_attention": None, "use_cache": True, "vocab_size": 512,
    "vocab_size_per_layer_input": 512,
}
E = {
    "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "audio_config": None, "audio_token_id": 511,
    "boa_token_id": 510, "boi_token_id": 509, "dtype": "bfloat16", "eoa_token_id": 508, "eoa_token_index": 508, "eoi_token_id": 507,
    "eos_token_id": [1, 5], "image_token_id": 506, "video_token_id": 505, "initializer_range": 0.02, "tie_word_embeddings": True,
    "transformers_version": "5.5.0.dev0", "vision_soft_tokens_per_image": 280,
    "text_config": TEXT | {
        "attention_k_eq_v": False, "final_logit_softcapping": 8.0, "global_head_dim": 32, "hidden_size_per_layer_input": 8, "intermediate_size": 48,
        "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING, FULL], "num_global_key_value_heads": None,
        "num_hidden_layers": 8, "num_key_value_heads": 2, "num_kv_shared_layers": 4, "use_double_wide_mlp": True,
    },
    "vision_config": {
        "model_type": "gemma4_vision", "attention_bias": False, "attention_dropout": 0.0, "dtype": "bfloat16", "default_output_length": 280,
        "global_head_dim": 16, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 32, "initializer_range": 0.02,
        "intermediate_size": 48, "max_position_embeddings": 131072, "num_attention_heads": 2, "num_hidden_layers": 1,
        "num_key_value_heads": 2, "patch_size": 4, "pooling_kernel_size": 3, "position_embedding_size": 16, "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "standardize": False, "use_clipped_linears": True,
    },
}
DENSE = TEXT | {
    "attention_k_eq_v": True, "final_logit_softcapping": 30.0, "global_head_dim": 32, "hidden_size_per_layer_input": 0,
    "layer_types": [SLIDING] * 5 + [FULL], "num_global_key_value_heads": 1, "num_hidden_layers": 6, "num_key_value_heads": 2,
    "num_kv_shared_layers": 0, "use_double_wide_mlp": False,
}


def randomize(tensors, gen):
    """Weights large enough that everything shows in the logits."""
    for name, t in tensors.items():
        r = torch.randn(t.shape, generator=gen)
        if name.endswith(("_min", "_max")):
            t.fill_(float(abs(r) + 2) * (-1 if name.endswith("_min") else 1))
        elif name.endswith("layer_scalar"):
            t.copy_(0.875 + 0.25 * r.clamp(-1, 1))
        elif t.ndim == 1:
            t.copy_(1 + 0.25 * r)
        elif "embed" in name or "position" in name:
            t.copy_(0.3 * r)
        else:
            t.copy_(r * 1.2 * t.shape[-1] ** -0.5)
        t.copy_(t.to(torch.bfloat16).float())


@torch.no_grad()
def logits(model, ids):
    out = model(input_ids=ids[None], use_cache=False, output_hidden_states=True)
    return out.logits[0].float().contiguous(), torch.stack([h[0].float() for h in out.hidden_states]).contiguous()


def make(name, model, config, off, root, source, convert, extra=lambda gen: {}):
    gen = torch.Generator().manual_seed(4)
    model.eval()
    own = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    with torch.no_grad():
        randomize(own, gen)
    model.tie_weights()
    path = root / name
    path.mkdir(parents=True)
    for f in ("tokenizer.json", "tokenizer_config.json", "tokens.json", "generation_config.json"):
        shutil.copy(source / f, path / f)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    more = extra(gen)
    randomize(more, gen)
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in (own | more).items()}, path / "model.safetensors", {"format": "pt"})

    # HF's logits are those of the folder as it reads it.
    loaded = type(model).from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(8, 500, (48,), generator=gen)
    ids[0] = 2
    base, hidden = logits(loaded, ids)
    save_file({"input_ids": ids, "logits": base, "hidden_states": hidden}, path / "logits.safetensors")
    print(name, "std of the logits %.2f" % base.std())
    for what, change in off.items():
        other = type(model).from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            change(other)
        print("  without %s: %.2f" % (what, (logits(other, ids)[0] - base).abs().max()))
    subprocess.run([*shlex.split(convert), path, path / "ref-bf16.gguf", "bf16"], check=True, capture_output=True)


def scalars(m):
    for layer in m.model.get_submodule("language_model" if hasattr(m.model, "language_model") else "").layers:
        layer.layer_scalar.fill_(1)


def share_first(m):
    """Blocks share with the first block of their kind that has keys, not the last."""
    layers = m.model.language_model.layers
    for l in layers:
        l.self_attn.store_full_length_kv = False
    layers[0].self_attn.store_full_length_kv = layers[2].self_attn.store_full_length_kv = True


def window(m):
    for layer in m.model.language_model.layers:
        layer.self_attn.sliding_window = None
    m.config.text_config.sliding_window = 4096


def shared_weights(gen):
    """What released checkpoints have in blocks that share keys and values."""
    out = {}
    for l in range(4, 8):
        d = 32 if E["text_config"]["layer_types"][l] == FULL else 16
        p = f"model.language_model.layers.{l}.self_attn."
        out |= {p + "k_proj.weight": torch.zeros(2 * d, 64), p + "v_proj.weight": torch.zeros(2 * d, 64), p + "k_norm.weight": torch.zeros(d)}
    return out


def main():
    convert, source, root = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    e = Gemma4ForConditionalGeneration(AutoConfig.for_model(**json.loads(json.dumps(E)))).float()
    text = lambda m: m.model.language_model
    make("gemma4_e", e, E, {
        "token rows of the per-layer embedding": lambda m: text(m).embed_tokens_per_layer.weight.zero_(),
        "its projection": lambda m: text(m).per_layer_model_projection.weight.zero_(),
        "its norm": lambda m: text(m).per_layer_projection_norm.weight.fill_(1),
        "the post norm": lambda m: [l.post_per_layer_input_norm.weight.fill_(1) for l in text(m).layers],
        "layer scalars": scalars, "the last block of a kind to share with": share_first, "window": window,
    }, root, source, convert, shared_weights)
    config = Gemma4TextConfig(**DENSE)
    dense = Gemma4ForCausalLM(config).float()
    saved = {"architectures": ["Gemma4ForCausalLM"], **json.loads(config.to_json_string()), "dtype": "bfloat16"}
    make("gemma4_dense", dense, saved, {"layer scalars": scalars}, root, source, convert)


main()

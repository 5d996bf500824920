#!/usr/bin/env python3
"""packed.py OUT TOKENIZERS [CONVERT] - writes small random checkpoints in every packed form to OUT, and packed.json beside this script.

TOKENIZERS  folder with the family fixtures llama and qwen3_moe, whose tokenizers are used
CONVERT     a program that runs llama.cpp's converter: CONVERT MODEL OUT.gguf bf16 --pre NAME

Codes and scales are drawn at random and packed here, by the formulas of the libraries named at each form; what the weights are
follows from them in float32. packed.json holds for each checkpoint the SHA-256 of every weight, row by row, as little-endian
float32 ("weights"), and that of the file that llama.cpp's converter makes of it ("bf16"), where it knows the form. Only numpy,
torch and safetensors are needed. The folders are packed into testdata/packs/packed.tar.zst.
"""
import hashlib, json, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

out, tokenizers = Path(sys.argv[1]), Path(sys.argv[2])
rng = np.random.default_rng(5)
E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6], np.float32)

LLAMA = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", hidden_size=64, intermediate_size=192,
             max_position_embeddings=256, num_attention_heads=4, num_hidden_layers=1, num_key_value_heads=2, rms_norm_eps=1e-5,
             rope_theta=10000.0, tie_word_embeddings=True, torch_dtype="bfloat16", vocab_size=512, head_dim=32,
             bos_token_id=496, eos_token_id=497, pad_token_id=498)
MOE = dict(LLAMA, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", num_experts=3, num_experts_per_tok=2,
           moe_intermediate_size=64, decoder_sparse_step=1, norm_topk_prob=True, mlp_only_layers=[], vocab_size=544)


def linears(cfg):
    """Names and [out, in] of the weights to pack."""
    e, q, kv = cfg["hidden_size"], cfg["num_attention_heads"] * cfg["head_dim"], cfg["num_key_value_heads"] * cfg["head_dim"]
    for l in range(cfg["num_hidden_layers"]):
        p = f"model.layers.{l}."
        yield from ((p + f"self_attn.{n}_proj", s) for n, s in dict(q=(q, e), k=(kv, e), v=(kv, e), o=(e, q)).items())
        mlps = [(p + f"mlp.experts.{i}.", cfg["moe_intermediate_size"]) for i in range(cfg["num_experts"])] if "num_experts" in cfg else \
            [(p + "mlp.", cfg["intermediate_size"])]
        for m, f in mlps:
            yield from ((m + f"{n}_proj", s) for n, s in dict(gate=(f, e), up=(f, e), down=(e, f)).items())


def others(cfg):
    """The tensors that stay BF16."""
    e = cfg["hidden_size"]
    fixed = np.random.default_rng(7)
    t = {"model.embed_tokens.weight": (cfg["vocab_size"], e), "model.norm.weight": (e,)}
    for l in range(cfg["num_hidden_layers"]):
        p = f"model.layers.{l}."
        t |= {p + "input_layernorm.weight": (e,), p + "post_attention_layernorm.weight": (e,)}
        if "num_experts" in cfg:
            t |= {p + "mlp.gate.weight": (cfg["num_experts"], e), p + "self_attn.q_norm.weight": (cfg["head_dim"],), p + "self_attn.k_norm.weight": (cfg["head_dim"],)}
    return {k: torch.from_numpy((fixed.standard_normal(s) * .3 + (len(s) == 1)).astype(np.float32)).bfloat16() for k, s in t.items()}


def f32(x):
    return torch.from_numpy(np.ascontiguousarray(x, np.float32))


def scales(*shape, dtype=torch.float32, size=.01):
    """Random positive scales that dtype holds exactly, and their float32 values."""
    t = f32(rng.uniform(.2, 2, shape) * size).to(dtype)
    return t, t.float().numpy()


def e4m3(*shape, positive=False):
    """Random codes of F8_E4M3 without NaN, as a tensor, and their values."""
    b = rng.integers(1 if positive else 0, 0x7f, shape, dtype=np.uint8)
    if not positive:
        b |= (rng.integers(0, 2, shape, dtype=np.uint8) << 7)
    t = torch.from_numpy(b).view(torch.float8_e4m3fn)
    return t, t.float().numpy()


def words(nibbles):
    """Packs the last axis, eight to an I32, the first in the lowest bits."""
    n = nibbles.astype(np.uint32).reshape(*nibbles.shape[:-1], -1, 8)
    return torch.from_numpy((n << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32).view(np.int32))


def pairs(nibbles):
    """Packs the last axis, two to a byte, the first in the low half."""
    return torch.from_numpy((nibbles[..., ::2] | nibbles[..., 1::2] << 4).astype(np.uint8))


def codes(*shape):
    return rng.integers(0, 16, shape, dtype=np.uint8)


# Every form returns the tensors of a weight and its values.

def fp8_tensor(n, o, i):  # quant_method fp8 without blocks; the scale of activations is dropped
    w, v = e4m3(o, i)
    s, f = scales(1, size=.0005)
    return {n + ".weight": w, n + ".weight_scale": s.reshape(()), n + ".input_scale": torch.ones(1)}, v * f


def fp8_channel(n, o, i):  # compressed-tensors float-quantized, strategy channel
    w, v = e4m3(o, i)
    s, f = scales(o, 1, dtype=torch.bfloat16, size=.0005)
    return {n + ".weight": w, n + ".weight_scale": s}, v * f


def fp8_fbgemm(n, o, i):  # transformers, quantizers fbgemm_fp8
    w, v = e4m3(o, i)
    s, f = scales(o, 1, size=.0005)
    return {n + ".weight": w, n + ".weight_scale": s[:, 0] if "down" in n else s, n + ".input_scale_ub": torch.ones(1)}, v * f


def fp8_block(n, o, i):  # compressed-tensors, strategy block, [48, 40]: partial at both edges
    w, v = e4m3(o, i)
    s, f = scales(-(-o // 48), -(-i // 40), dtype=torch.bfloat16, size=.0005)
    return {n + ".weight": w, n + ".weight_scale": s}, v * f.repeat(48, 0).repeat(40, 1)[:o, :i]


def int8(n, o, i):  # compressed-tensors int-quantized
    w = rng.integers(-128, 128, (o, i)).astype(np.int8)
    s, f = scales(o, 1, dtype=torch.bfloat16, size=.001)
    return {n + ".weight": torch.from_numpy(w), n + ".weight_scale": s}, w.astype(np.float32) * f


def int4(n, o, i):  # compressed-tensors pack-quantized, symmetric (compressors/quantized_compressors/pack_quantized.py)
    c = codes(o, i)
    s, f = scales(o, i // 32, dtype=torch.bfloat16)
    return {n + ".weight_packed": words(c), n + ".weight_scale": s, n + ".weight_shape": torch.tensor([o, i])}, (c.astype(np.float32) - 8) * f.repeat(32, 1)


def int4_zero(n, o, i):  # the same with zero points, packed along the rows
    c, z = codes(o, i), codes(o, i // 64)
    s, f = scales(o, i // 64, dtype=torch.bfloat16)
    return {n + ".weight_packed": words(c), n + ".weight_scale": s, n + ".weight_shape": torch.tensor([o, i]),
            n + ".weight_zero_point": words(z.T.copy()).T.contiguous()}, (c.astype(np.float32) - z.repeat(64, 1)) * f.repeat(64, 1)


def gptq(n, o, i, order=False, v2=False):  # AutoGPTQ nn_modules/qlinear/qlinear_cuda.py; GPTQModel for gptq_v2
    c, stored = codes(i, o), codes(i // 32, o)
    if not v2:
        stored[stored == 15] = 7  # zero points are 1 to 15
    s, f = scales(i // 32, o, dtype=torch.float16)
    g = np.arange(i, dtype=np.int32) // 32
    if order:
        g = rng.permutation(g)
    v = (c.astype(np.float32) - (stored.astype(np.float32) + (not v2))[g]) * f[g]
    return {n + ".qweight": words(c.T.copy()).T.contiguous(), n + ".qzeros": words(stored), n + ".scales": s, n + ".g_idx": torch.from_numpy(g)}, v.T


def gptq_order(n, o, i):
    return gptq(n, o, i, True)


def gptq_v2(n, o, i):
    return gptq(n, o, i, False, True)


def awq(n, o, i):  # AutoAWQ awq/utils/packing_utils.py
    c, z = codes(i, o), codes(i // 32, o)
    s, f = scales(i // 32, o, dtype=torch.float16)
    shuffle = lambda x: x.reshape(x.shape[0], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(x.shape)
    g = np.arange(i) // 32
    return {n + ".qweight": words(shuffle(c)), n + ".qzeros": words(shuffle(z)), n + ".scales": s}, ((c.astype(np.float32) - z[g]) * f[g]).T


def mxfp4(n, o, i):  # compressed-tensors mxfp4-pack-quantized
    c, e = codes(o, i), rng.integers(118, 125, (o, i // 32), dtype=np.uint8)
    v = E2M1[c] * np.exp2(e.astype(np.float32) - 127).repeat(32, 1)
    return {n + ".weight_packed": pairs(c), n + ".weight_scale": torch.from_numpy(e)}, v


def mxfp4_e8m0(n, o, i):  # DeepSeek V4
    t, v = mxfp4(n, o, i)
    return {n + ".weight": t[n + ".weight_packed"].view(torch.int8), n + ".scale": t[n + ".weight_scale"].view(torch.float8_e8m0fnu)}, v


def nvfp4(n, o, i):  # ModelOpt, qtensor/nvfp4_tensor.py
    c = codes(o, i)
    s, f = e4m3(o, i // 16, positive=True)
    g, h = scales(1, size=.0005)
    return {n + ".weight": pairs(c), n + ".weight_scale": s, n + ".weight_scale_2": g.reshape(())}, E2M1[c] * (f * h).repeat(16, 1)


def nvfp4_divided(n, o, i):  # compressed-tensors nvfp4-pack-quantized
    c = codes(o, i)
    s, f = e4m3(o, i // 16, positive=True)
    g, h = scales(1, size=1000)
    return {n + ".weight_packed": pairs(c), n + ".weight_scale": s, n + ".weight_global_scale": g}, E2M1[c] * (f * (np.float32(1) / h)).repeat(16, 1)


def compressed(form, **weights):
    return dict(quant_method="compressed-tensors", format=form, config_groups={"group_0": {"targets": ["Linear"], "weights": weights}})


FORMS = {
    "fp8_tensor": (LLAMA, fp8_tensor, dict(quant_method="fp8", activation_scheme="static"), False),
    "fp8_channel": (LLAMA, fp8_channel, compressed("float-quantized", num_bits=8, type="float", strategy="channel"), True),
    "fp8_fbgemm": (LLAMA, fp8_fbgemm, dict(quant_method="fbgemm_fp8"), False),
    "fp8_block": (LLAMA, fp8_block, compressed("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[48, 40]), True),
    "int8": (LLAMA, int8, compressed("int-quantized", num_bits=8, type="int", strategy="channel"), True),
    "int4": (LLAMA, int4, compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=True), True),
    "int4_zero": (LLAMA, int4_zero, compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=64, symmetric=False), True),
    "gptq": (LLAMA, gptq, dict(quant_method="gptq", bits=4, group_size=32, desc_act=False, sym=False), True),
    "gptq_order": (LLAMA, gptq_order, dict(quant_method="gptq", bits=4, group_size=32, desc_act=True, sym=False, checkpoint_format="gptq"), True),
    "gptq_v2": (LLAMA, gptq_v2, dict(quant_method="gptq", bits=4, group_size=32, desc_act=False, sym=False, checkpoint_format="gptq_v2"), True),
    "awq": (LLAMA, awq, dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm"), False),
    "mxfp4": (LLAMA, mxfp4, compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32), False),
    "mxfp4_e8m0": (LLAMA, mxfp4_e8m0, dict(quant_method="mxfp4"), False),
    "nvfp4": (LLAMA, nvfp4, dict(quant_method="modelopt", quant_algo="NVFP4"), True),
    "nvfp4_divided": (LLAMA, nvfp4_divided, compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16), True),
    "int4_experts": (MOE, int4, compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=True), True),
    "nvfp4_experts": (MOE, nvfp4, dict(quant_method="modelopt", quant_algo="NVFP4"), True),
}

golden = {}
for name, (cfg, form, config, known) in FORMS.items():
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors, weights = others(cfg), {}
    for n, (o, i) in linears(cfg):
        parts, v = form(n, o, i)
        assert v.shape == (o, i) and v.dtype == np.float32
        tensors |= parts
        weights[n + ".weight"] = hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(cfg, quantization_config=config), indent=1))
    family, pre = ("qwen3_moe", "qwen2") if cfg is MOE else ("llama", "llama-bpe")
    for f in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(tokenizers / family / f, folder / f)
    golden[name] = {"weights": weights}
    if known and len(sys.argv) > 3:
        gguf = out / (name + ".gguf")
        r = subprocess.run([sys.executable, sys.argv[3], folder, gguf, "bf16", "--pre", pre], capture_output=True, text=True)
        if r.returncode:
            sys.exit(name + ": " + r.stderr[-2000:])
        golden[name]["bf16"] = hashlib.sha256(gguf.read_bytes()).hexdigest()
(Path(__file__).parent / "packed.json").write_text(json.dumps(golden, indent=1) + "\n")

#!/usr/bin/env python3
"""calibration.py SHARED WINNOW LLAMA_IMATRIX OUT - collects what the pack calibration holds, in OUT/calibration.

imatrix/NAME.gguf     by llama-imatrix (llama.cpp 0c1e570) from NAME's F32 conversion and calib-code.txt, 16 windows of 64 tokens, with
                      float32 keys and values (-fa off -ctk f32 -ctv f32): by default it rounds them to half precision. ggml-cpu is
                      built without GGML_GELU_FP16 (ggml-cpu/vec.h), which makes GELU a table of half precision
saliency/NAME.json    of the domain code: the token ids and the sums of saliency_oracle.py, which observes HF's modules with hooks
                      (transformers 5.23.0, float32); norms of differences and statistics over all experts' outputs are left out
"""
import json, subprocess, sys, tempfile
from pathlib import Path

shared, winnow, imatrix, out = map(Path, sys.argv[1:5])
for folder in ("imatrix", "saliency"):
    (out / "calibration" / folder).mkdir(parents=True, exist_ok=True)
SOURCES = {n: shared / "fixtures" / n for n in ("tiny-r1", "tiny-llama4", "tiny-gemma4-moe")}
SOURCES["qwen3_moe"] = shared / "fixtures/families/qwen3_moe"
with tempfile.TemporaryDirectory() as tmp:
    for name, source in SOURCES.items():
        model = f"{tmp}/{name}.gguf"
        subprocess.run([winnow, "convert", "-q", source, model, "--type", "F32"], check=True)
        subprocess.run([imatrix, "-m", model, "-f", shared / "fixtures/corpus/calib-code.txt", "--no-escape", "-c", "64", "--chunks", "16", "-t", "2",
                        "-fa", "off", "-ctk", "f32", "-ctv", "f32", "-o", out / f"calibration/imatrix/{name}.gguf"], check=True)
KEEP = ["layer", "tokens", "count", "sum_gate", "sum_norm", "sum_norm2", "sum_gnorm", "sum_gnorm2", "easy_ep", "max_abs", "max_gnorm", "prob_mean",
        "router_logit_cos_sim", "coselection", "mean_out_norm", "rms_out", "mean_resid_norm"]
for name in ("tiny-r1-bf16", "tiny-llama4", "tiny-gemma4-moe"):
    golden = shared / "prune/golden"
    layers = json.loads((golden / f"{name}-code-saliency.json").read_text())["layers"]
    ids = json.loads((golden / f"{name}-calib-code-16x128.json").read_text())
    ids = [i for s in ids for i in s] if isinstance(ids[0], list) else ids
    doc = {"ids": [ids[i:i + 128] for i in range(0, len(ids), 128)], "layers": [{k: layer[k] for k in KEEP} for layer in layers]}
    (out / f"calibration/saliency/{name}.json").write_text(json.dumps(doc))

#!/usr/bin/env python3
"""trained.py LLAMA_CPP LLAMA_QUANTIZE CONVERTED - writes trained.json: the tensors that llama-quantize makes of the trained checkpoints
tiny-gemma4-moe and tiny-llama4 (testdata/packs).

LLAMA_CPP       source tree of llama.cpp (the vendor/llama.cpp folder of the PyPI source package llama-cpp-python 0.3.36)
LLAMA_QUANTIZE  its llama-quantize, built for baseline x86-64
CONVERTED       folder with tiny-gemma4-moe-F32.gguf and tiny-llama4-F32.gguf, made by convert_hf_to_gguf.py --outtype f32

Per checkpoint and type every tensor in order: name, type, SHA-256 of its bytes.
"""
import hashlib, json, subprocess, sys, tempfile
from pathlib import Path

source, quantize, converted = map(Path, sys.argv[1:4])
sys.path.insert(0, str(source / "gguf-py"))
import gguf


def tensors(path):
    return [[t.name, t.tensor_type.name, hashlib.sha256(t.data.tobytes()).hexdigest()] for t in gguf.GGUFReader(path).tensors]


docs = []
with tempfile.TemporaryDirectory() as tmp:
    for name in ("tiny-gemma4-moe", "tiny-llama4"):
        kinds = []
        for kind in ("Q8_0", "Q6_K", "Q4_K_M"):
            path = Path(tmp) / f"{name}-{kind}.gguf"
            subprocess.run([quantize, converted / f"{name}-F32.gguf", path, kind, "2"], check=True, capture_output=True)
            kinds.append(f'  "{kind}": [\n   ' + ",\n   ".join(json.dumps(t) for t in tensors(path)) + "]")
        docs.append(f' "{name}": {{\n' + ",\n".join(kinds) + "}")
Path(__file__).with_suffix(".json").write_text("{\n" + ",\n".join(docs) + "}\n")

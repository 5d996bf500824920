#!/usr/bin/env python3
"""tiny_r1.py LLAMA_CPP LLAMA_QUANTIZE CONVERTED - writes tiny_r1.json: what llama.cpp makes of the demonstration checkpoint tiny-r1.

LLAMA_CPP       source tree of llama.cpp (the vendor/llama.cpp folder of the PyPI source package llama-cpp-python 0.3.36)
LLAMA_QUANTIZE  its llama-quantize, built for baseline x86-64
CONVERTED       folder with tiny-r1-f32.gguf, tiny-r1-bf16.gguf and tiny-r1-q8_0.gguf, made by convert_hf_to_gguf.py --outtype f32 (bf16,
                q8_0). The converter knows pre-tokenizers by the hash of a vocabulary and not this one's, so
                TextModel.get_vocab_base_pre has to be replaced by a function that returns "deepseek-v3".

"converter" holds, per type, every key in order (arrays as the SHA-256 of their elements: numbers little-endian, strings with a 64-bit
length), every tensor in order with the SHA-256 of its bytes, and the SHA-256 of the file after add_bos_token is set to true, the one value in which
winnow differs on purpose. "quantize" holds the SHA-256 of the files that llama-quantize makes of these files: "F32-Q4_K_M" is Q4_K_M
made of the F32 file, "F32-Q4_K_M-Q8_0" that file quantized again.
"""
import hashlib, json, struct, subprocess, sys, tempfile
from pathlib import Path

source, quantize, converted = map(Path, sys.argv[1:4])
sys.path.insert(0, str(source / "gguf-py"))
import gguf

ADD_BOS = b"tokenizer.ggml.add_bos_token" + struct.pack("<I", gguf.GGUFValueType.BOOL)
RECIPES = "F16 BF16 COPY Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K".split()


def sha(data):
    return hashlib.sha256(data).hexdigest()


def value(field):
    if field.types[0] != gguf.GGUFValueType.ARRAY:
        return field.types[0].name, field.contents()
    kind = field.types[1]
    if kind == gguf.GGUFValueType.STRING:
        data = b"".join(struct.pack("<Q", len(field.parts[i])) + bytes(field.parts[i]) for i in field.data)
    else:
        data = b"".join(bytes(field.parts[i]) for i in field.data)
    return f"[{len(field.data)}]{kind.name}", sha(data)


def with_bos(path):
    data = bytearray(path.read_bytes())
    at = data.index(ADD_BOS) + len(ADD_BOS)
    assert data[at] == 0
    data[at] = 1
    return bytes(data)


def describe(path):
    r = gguf.GGUFReader(path)
    return {
        "file": sha(with_bos(path)),
        "keys": [[k, *value(f)] for k, f in r.fields.items() if not k.startswith("GGUF.")],
        "tensors": [[t.name, t.tensor_type.name, [int(n) for n in t.shape], sha(t.data.tobytes())] for t in r.tensors],
    }


def lines(doc, key):
    """One key or tensor a line."""
    return f' "{key}": [\n   ' + ",\n   ".join(json.dumps(x) for x in doc[key]) + "]"


def quantized():
    """The files that llama-quantize makes: of the F32 file, of the BF16 file, and of a file that is quantized already."""
    with tempfile.TemporaryDirectory() as tmp:
        path = lambda name: Path(tmp) / f"{name}.gguf"
        for kind in ("F32", "BF16"):
            path(kind).write_bytes(with_bos(converted / f"tiny-r1-{kind.lower()}.gguf"))
        files = {}
        for source, recipe, *options in [("F32", r) for r in RECIPES] + [("BF16", "Q4_K_M"), ("F32-Q4_K_M", "Q8_0", "--allow-requantize")]:
            name = f"{source}-{recipe}"
            subprocess.run([quantize, *options, path(source), path(name), recipe, "2"], check=True, capture_output=True)
            files[name] = sha(path(name).read_bytes())
        return files


docs = {t: describe(converted / f"tiny-r1-{t.lower()}.gguf") for t in ("F32", "BF16", "Q8_0")}
text = ",\n".join(f'  "{t}": {{"file": "{d["file"]}",\n  {lines(d, "keys")},\n  {lines(d, "tensors")}}}' for t, d in docs.items())
Path(__file__).with_suffix(".json").write_text('{"converter": {\n' + text + '},\n "quantize": ' + json.dumps(quantized(), indent=2) + "}\n")

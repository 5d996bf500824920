#!/usr/bin/env python3
"""mmproj.py LLAMA_CPP NAME=FOLDER... - writes mmproj.json: what llama.cpp's converter makes of vision towers with --mmproj.

LLAMA_CPP    source tree of llama.cpp (the vendor/llama.cpp folder of the PyPI source package llama-cpp-python 0.3.36)
NAME=FOLDER  the unpacked fixtures gemma4_moe, gemma4_e, llama4_scout, tiny-gemma4-moe and tiny-llama4

The fixtures lack what the converter reads about images; "files" are written into copies of the folders, in the form in which released
checkpoints have them. The converter's table of names is as long as the tower has blocks, too short for the adapter's fc1 and fc2 in towers
of one or two blocks; here it has three rows at least.

"files" holds, per type, the SHA-256 of the file; "keys" and "tensors" are those of the F32 file: every key in order with type and value,
every tensor in order with the SHA-256 of its bytes. "types" holds the tensors' types in the other files where they are not that type.
"""
import hashlib, json, shutil, sys, tempfile
from pathlib import Path

source = Path(sys.argv[1])
sys.path[:0] = [str(source), str(source / "gguf-py")]
import convert_hf_to_gguf as converter
import gguf

names = gguf.get_tensor_name_map
gguf.get_tensor_name_map = lambda arch, blocks: names(arch, max(3, blocks))
GEMMA = {"processor_config.json": {"image_processor": {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0], "patch_size": 16}}}
LLAMA = {"preprocessor_config.json": {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}}


def sha(data):
    return hashlib.sha256(data).hexdigest()


def describe(name, folder):
    extra = GEMMA if "gemma" in name else LLAMA
    doc = {"extra": extra, "files": {}}
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / name
        shutil.copytree(folder, path, copy_function=shutil.copyfile)
        for file, content in extra.items():
            (path / file).write_text(json.dumps(content))
        for kind in ("F32", "F16", "BF16", "Q8_0"):
            out = Path(tmp) / f"{kind}.gguf"
            sys.argv = ["convert", str(path), "--outfile", str(out), "--outtype", kind.lower(), "--mmproj"]
            converter.main()
            doc["files"][kind] = sha(out.read_bytes())
            r = gguf.GGUFReader(out)
            if kind == "F32":
                doc["keys"] = [[k, [t.name for t in f.types], f.contents()] for k, f in r.fields.items() if not k.startswith("GGUF.")]
                doc["tensors"] = [[t.name, [int(n) for n in t.shape], sha(t.data.tobytes())] for t in r.tensors]
            doc.setdefault("types", {})[kind] = {t.name: t.tensor_type.name for t in r.tensors if t.tensor_type.name != kind}
    return doc


docs = {n: describe(n, f) for n, f in (a.split("=") for a in sys.argv[2:])}
out = []
for name, d in docs.items():
    lists = [f'  "{k}": [\n   ' + ",\n   ".join(json.dumps(x) for x in d[k]) + "]" for k in ("keys", "tensors")]
    out.append(f' "{name}": {{"extra": {json.dumps(d["extra"])},\n  "files": {json.dumps(d["files"])},\n' + ",\n".join(lists) + "}")
Path(__file__).with_suffix(".json").write_text("{\n" + ",\n".join(out) + "}\n")
for name, d in docs.items():
    print(name, json.dumps(d["types"], indent=1))

#!/usr/bin/env python3
"""llama_imatrix.py LLAMA_IMATRIX PACK OUT - writes OUT: what llama-imatrix makes of importance matrices.

LLAMA_IMATRIX  the tool of llama.cpp (vendor/llama.cpp of the PyPI source package llama-cpp-python 0.3.36), built for baseline x86-64
PACK           the folder quant/e2e of testdata/packs/goldens-quant.tar.zst, unpacked

"merges": the SHA-256 of the file that "llama-imatrix -m x -c CHUNK --in-file A,B -o OUT --output-format FORMAT" writes for the inputs given.
"statistics": the table that --show-statistics prints for one file, per block and tensor.
"""
import hashlib, json, re, subprocess, sys, tempfile
from pathlib import Path

tool, pack, out = map(Path, sys.argv[1:4])
A, B, P, N = "imatrix.gguf", "imatrix.dat", "imatrix_partial.gguf", "imatrix_notrailer.dat"
INPUTS = [[A], [B], [P], [N], [A, A], [A, B], [A, P], [P, A], [B, B], [B, A], [B, N, A, P]]
CHUNKS = [512, 128, 100]


def run(*args):
    return subprocess.run([str(tool), "-m", "x", *map(str, args)], cwd=pack, check=True, capture_output=True, text=True)


merges = []
with tempfile.TemporaryDirectory() as tmp:
    for inputs in INPUTS:
        for chunk in CHUNKS:
            for form in ["gguf", "dat"]:
                file = Path(tmp) / "out"
                run("-c", chunk, "--in-file", ",".join(inputs), "-o", file, "--output-format", form)
                merges.append({"in": inputs, "chunk": chunk, "format": form, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()})
printed = run("--in-file", A, "--show-statistics")
statistics = []
for line in (printed.stdout + printed.stderr).splitlines():
    if m := re.search(r"\s(\d+|-)\t(\S+)\s*\t\s*([\d.]+)\t\s*([\d.]+)\t\s*([\d.]+)\t\s*[\d.]+\t\s*[\d.]+\t\s*[\d.]+%\t\s*(\d+)\t", line):
        statistics.append({"block": m[1], "tensor": m[2], "sum": float(m[3]), "min": float(m[4]), "max": float(m[5]), "n": int(m[6])})
rows = [",\n".join(json.dumps(r) for r in part) for part in (merges, statistics)]
out.write_text('{"merges": [\n%s\n], "statistics": [\n%s\n]}\n' % tuple(rows))

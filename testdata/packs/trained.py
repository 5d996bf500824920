#!/usr/bin/env python3
"""trained.py FIXTURES OUT - collects what the packs tiny-gemma4-moe and tiny-llama4 hold, in OUT/NAME and OUT/NAME-golden.

FIXTURES has the checkpoints NAME, their golden folders golden/NAME and the texts corpus/eval-*.txt. The goldens were computed by
transformers 5.23.0 (Gemma4ForConditionalGeneration and Llama4ForConditionalGeneration, float32, eager attention, plain expert loop).

NAME-golden/logits.safetensors  input_ids_N of two sequences (128 and 320 tokens, the second crosses windows and chunks of 64 and the
                                first temperature step at 128), rows_N: positions, logits_N: HF's logits there. Others are left out
                                for the size of the pack.
NAME-golden/ids.safetensors     token ids of the evaluation texts, BOS first, by the tokenizers library
NAME-golden/ppl.json            perplexities and losses of every window of the evaluation texts
NAME-golden/tokens.json         token ids of short texts, by the tokenizers library
"""
import shutil, sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

fixtures, out = map(Path, sys.argv[1:3])
BOS = {"tiny-gemma4-moe": 2, "tiny-llama4": 2027}
ROWS = [torch.arange(0, 128, 6), torch.cat([torch.arange(n, n + 9) for n in (0, 60, 124, 188, 252, 311)])]
for name, bos in BOS.items():
    shutil.copytree(fixtures / name, out / name, copy_function=shutil.copyfile)
    golden = out / f"{name}-golden"
    golden.mkdir()
    for f in ("ppl.json", "tokens.json"):
        shutil.copyfile(fixtures / "golden" / name / f, golden / f)
    whole, part = load_file(fixtures / "golden" / name / "logits.safetensors"), {}
    for i, rows in enumerate(ROWS):
        part |= {f"input_ids_{i}": whole[f"input_ids_{i}"], f"rows_{i}": rows, f"logits_{i}": whole[f"logits_{i}"][rows].contiguous()}
    save_file(part, golden / "logits.safetensors")
    tokenizer = Tokenizer.from_file(str(fixtures / name / "tokenizer.json"))
    ids = {d: [bos] + tokenizer.encode((fixtures / f"corpus/eval-{d}.txt").read_text(encoding="utf-8"), add_special_tokens=False).ids
           for d in ("english", "code", "docs")}
    save_file({d: torch.tensor(v, dtype=torch.int32) for d, v in ids.items()}, golden / "ids.safetensors")

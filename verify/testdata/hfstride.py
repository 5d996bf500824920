"""Writes hfstride.json: perplexities by the sliding windows of transformers' documentation.

usage: python hfstride.py CHECKPOINT TEXT > hfstride.json

CHECKPOINT is tiny-llama4, TEXT the text eval-docs.txt of the corpus. The loop is that of the page "Perplexity of
fixed-length models" (transformers 5.23.0, float32, eager attention): windows of ctx tokens begin every stride
tokens, and a window's targets before the end of the last one are masked by -100. ppl is exp of the mean over all
targets; ppl_docs weighs the windows as the page does, by the number of unmasked labels less one, although only in
the first window one of them has no prediction.
"""
import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager").eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
text = open(sys.argv[2], encoding="utf-8").read()
ids = [model.config.get_text_config().bos_token_id] + tokenizer(text, add_special_tokens=False).input_ids
ids = ids[:700]


def windows(ctx, stride):
    last = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + ctx, len(ids))
        inputs = torch.tensor([ids[begin:end]])
        labels = inputs.clone()
        labels[:, : -(end - last)] = -100
        with torch.no_grad():
            logits = model(inputs).logits.double()
        target = labels[0, 1:]
        nll = torch.nn.functional.cross_entropy(logits[0, :-1], target, ignore_index=-100, reduction="none")[target != -100]
        yield nll, (labels != -100).sum().item() - 1
        last = end
        if end == len(ids):
            break


cases = []
for ctx, stride in (256, 64), (256, 256), (128, 100), (700, 512):
    nll, docs = zip(*windows(ctx, stride))
    cases.append({
        "ctx": ctx, "stride": stride,
        "window_nll": [round(n.mean().item(), 7) for n in nll],
        "window_scored": [len(n) for n in nll],
        "ppl": torch.cat(nll).mean().exp().item(),
        "ppl_docs": (sum(n.mean() * d for n, d in zip(nll, docs)) / sum(docs)).exp().item(),
    })
json.dump({"transformers": transformers.__version__, "ids": ids, "cases": cases}, sys.stdout)
print()

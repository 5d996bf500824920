"""Writes compare.json: statistics of two sets of logits, by torch in float64.

usage: python compare.py FAMILIES > compare.json

FAMILIES holds the unpacked family fixtures. The base are the logits of
deepseek_v3, the model a mixture with those of deepseek_v2_lite (same ids).
"""
import json
import sys

import torch
from safetensors.torch import load_file

base = load_file(sys.argv[1] + "/deepseek_v3/logits.safetensors")
other = load_file(sys.argv[1] + "/deepseek_v2_lite/logits.safetensors")
ids = base["input_ids"]
assert torch.equal(ids, other["input_ids"])
n = len(ids)
scored, following = slice(n // 2, n - 1), ids[n // 2 + 1 :, None]


def log_probabilities(logits):
    return torch.nn.functional.log_softmax(logits.double()[scored], -1)


def estimate(x):
    return {"value": x.mean().item(), "error": (x.std() / len(x) ** 0.5).item()}


def distribution(x):
    q = {"max": 1, "p99_9": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.9, "p75": 0.75, "median": 0.5,
         "p25": 0.25, "p10": 0.1, "p5": 0.05, "p1": 0.01, "p0_1": 0.001, "min": 0}
    return {"mean": estimate(x)} | {k: x.quantile(v).item() for k, v in q.items()}


b = log_probabilities(base["logits"])
m = log_probabilities(0.75 * base["logits"] + 0.25 * other["logits"])
nll_b, nll_m = -b.gather(1, following)[:, 0], -m.gather(1, following)[:, 0]
delta = 100 * ((-nll_m).exp() - (-nll_b).exp())
square = estimate(delta.square())
rms = square["value"] ** 0.5
five_b, five_m = b.topk(5).indices, m.topk(5).indices
same5 = 20 * (five_b[:, :, None] == five_m[:, None, :]).sum((1, 2)).double()
same = 100 * (b.argmax(-1) == m.argmax(-1)).double()


def ppl(nll):
    e = estimate(nll)
    p = nll.mean().exp().item()
    return {"value": p, "error": p * e["error"]}


difference = torch.cov(torch.stack([ppl(nll_m)["value"] * nll_m, ppl(nll_b)["value"] * nll_b]))
json.dump({
    "ppl": ppl(nll_m),
    "ppl_base": ppl(nll_b),
    "correlation": torch.corrcoef(torch.stack([nll_m, nll_b]))[0, 1].item(),
    "ln_ppl_ratio": estimate(nll_m - nll_b),
    "ppl_ratio": ppl(nll_m - nll_b),
    "ppl_difference": {
        "value": ppl(nll_m)["value"] - ppl(nll_b)["value"],
        "error": ((difference[0, 0] + difference[1, 1] - 2 * difference[0, 1]) / len(nll_m)).sqrt().item(),
    },
    "kld": distribution(torch.nn.functional.kl_div(m, b, log_target=True, reduction="none").sum(-1)),
    "delta_p": distribution(delta),
    "delta_p_rms": {"value": rms, "error": 0.5 / rms * square["error"]},
    "same_top": estimate(same),
    "same_top5": estimate(same5),
    "scored": len(nll_m),
}, sys.stdout, indent=1)
print()

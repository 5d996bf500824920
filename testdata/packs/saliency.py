#!/usr/bin/env python3
"""saliency.py SHARED OUT - collects what the pack saliency holds, in OUT/saliency.

NAME-DOMAIN.json      the token ids of 16 windows of 128 and what saliency_oracle.py computed for them: it observes HF's modules with hooks
                      (transformers 5.23.0, float32). The scores of every expert, the experts that it calls super experts,
                      and of code how alike any two experts are
"""
import json, sys
from pathlib import Path

shared, out = map(Path, sys.argv[1:3])
(out / "saliency").mkdir(parents=True, exist_ok=True)
RULES = ["reap", "reap_sum", "reap_l2", "energy", "frequency", "seer", "gate_mean", "ean_sum", "ean_mean", "msan", "easy_ep"]
PAIRS = ["l2_dist_mean_all", "pair_cos_sim_tokens", "router_logit_cos_sim"]


def pairs(layer):
    """What is known of pairs of experts, row after row up to the diagonal."""
    return {r: [float(f"{v:.9g}") for i, row in enumerate(layer[r]) for v in row[:i + 1]] for r in PAIRS}


for name in ("tiny-r1-bf16", "tiny-llama4", "tiny-gemma4-moe"):
    for domain in ("code", "docs", "english"):
        golden = json.loads((shared / f"prune/golden/{name}-{domain}-saliency.json").read_text())
        ids = json.loads((shared / f"prune/golden/{name}-calib-{domain}-16x128.json").read_text())
        ids = [i for s in ids for i in s] if isinstance(ids[0], list) else ids
        doc = {"ids": [ids[i:i + 128] for i in range(0, len(ids), 128)], "super_experts": golden["super_experts"], "threshold": golden["super_expert_threshold"],
               "layers": [{"layer": l["layer"], **{r: [float(f"{v:.9g}") for v in l[r]] for r in RULES}, **(pairs(l) if domain == "code" else {})} for l in golden["layers"]]}
        (out / f"saliency/{name}-{domain}.json").write_text(json.dumps(doc))

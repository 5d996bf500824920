#!/usr/bin/env python3
"""merge.py SHARED OUT - writes what the tests of merging compare with, as SHARED/prune/prune_oracle.py groups and merges experts.

groups.json   blocks of the miniatures and made up ones: what is known of their experts (matrices without the lower half, row by row; rounded, which
              changes no group) and the groups of every method, [center, members], by the number that stays
merged.json   for every group of more than one expert of tiny-r1 (FP8, here decoded) and tiny-gemma4-moe merged as ream does, with the groups of
              groups.json: two sums u'Wv over each merged matrix W, u_i = cos(a i + 1) and v_j = cos(b j + 2) with (a, b) = (.7, 1.3) and (2.9, .11),
              and the root of the sum of the squares of what is summed; of the first group 16 elements of the first rows of gate and down
linear_sum_assignment's totals for matrices from a generator are printed; they are numbers in assign_test.go.
"""
import json, random, sys
from pathlib import Path
import numpy as np, torch
from scipy.optimize import linear_sum_assignment

shared, out = map(Path, sys.argv[1:3])
sys.path.insert(0, str(shared / "prune"))
import prune_oracle as po

METHODS = ("ream", "m-smoe", "hc-smoe")
VECTORS = dict(counts="count", reap="reap")
MATRICES = dict(distance="l2_dist_mean_all", cosine="pair_cos_sim_tokens", logits="router_logit_cos_sim")


def groups(r, keeps):
    return {m: {str(k): sorted([int(c), sorted(map(int, mem))] for c, mem in po.groups_for(r, m, k)[0]) for k in keeps} for m in METHODS}


def case(name, r, keeps, digits=4):
    E, doc = r["n_expert"], {"name": name}
    short = {"n_expert": E}
    for to, key in VECTORS.items():
        doc[to] = short[key] = [float(f"{v:.{digits}g}") for v in r[key]]
    for to, key in MATRICES.items():
        m = np.asarray(r[key])
        up = np.array([[float(f"{m[i, j]:.{digits}g}") if i < j else 0 for j in range(E)] for i in range(E)])
        doc[to] = [up[i, j] for i in range(E) for j in range(i + 1, E)]
        short[key] = up + up.T + (0 if to == "distance" else np.eye(E))
    doc["groups"] = groups(short, keeps)
    return doc


def made_up(E, seed, steps):
    """a block whose numbers are few, so that many are equal"""
    rng = random.Random(seed)
    def matrix(lo, hi, diagonal):
        up = np.array([[rng.randint(0, steps) / steps * (hi - lo) + lo if i < j else 0 for j in range(E)] for i in range(E)])
        return up + up.T + diagonal * np.eye(E)
    return {"n_expert": E, "count": [float(rng.randint(0, 3)) for _ in range(E)], "reap": [rng.randint(0, 3) / 2 for _ in range(E)],
            "l2_dist_mean_all": matrix(1, 5, 0), "pair_cos_sim_tokens": matrix(-1, 1, 1), "router_logit_cos_sim": matrix(-1, 1, 1)}


class Decoded(po.Experts):
    """experts in FP8 with a scale for every block of 128 x 128"""
    def get(self, l, e):
        one = []
        for x in self.names(self.pre[l]):
            n = f"{self.pre[l]}{e}.{x}.weight"
            w, s = self.t[n].float(), self.t.get(n + "_scale_inv")
            if s is not None:
                w = w * s.float().repeat_interleave(128, 0).repeat_interleave(128, 1)[:w.shape[0], :w.shape[1]]
            one.append(w)
        return tuple(one)


def sums(w):
    w, res = w.double().numpy(), []
    for a, b in ((.7, 1.3), (2.9, .11)):
        terms = np.cos(a * np.arange(w.shape[0]) + 1)[:, None] * w * np.cos(b * np.arange(w.shape[1]) + 2)
        res += [float(f"{terms.sum():.10g}"), float(f"{np.sqrt((terms ** 2).sum()):.6g}")]
    return res


def merged(name, experts, layers, keep):
    """as prune_oracle.merge, in float32"""
    X, doc = experts(str(shared / "fixtures" / name)), {"name": name, "groups": []}
    for r in layers:
        gs, w = po.groups_for(r, "ream", keep)
        for c, mem in sorted(gs, key=lambda g: g[0]):
            if len(mem) == 1:
                continue
            ref, W = X.get(r["layer"], c), sum(w[m] for m in mem)
            acc = [t * (w[c] / W) for t in ref]
            for m in mem:
                if m != c:
                    acc = [a + b * (w[m] / W) for a, b in zip(acc, po.align(ref, X.get(r["layer"], m)))]
            doc["groups"].append({"block": r["layer"], "center": int(c), "members": sorted(map(int, mem)),
                                  "weights": [float(f"{w[m] / W:.12g}") for m in sorted(mem)], **{n: sums(t) for n, t in zip(("gate", "up", "down"), acc)}})
            if len(doc["groups"]) == 1:
                doc["row"] = {"gate": [float(f"{v:.8g}") for v in acc[0][0, :16].tolist()], "down": [float(f"{v:.8g}") for v in acc[2][0, :16].tolist()]}
    return doc


def generated(n, seed, below):
    state, m = seed, np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            m[i, j] = (state >> 40) % below
    return m


cases, layers = [], {}
for name, domain, keeps in (("tiny-r1-bf16", "english", (12, 8)), ("tiny-gemma4-moe", "code", (12, 8)), ("tiny-llama4", "docs", (6, 4))):
    layers[name] = json.loads((shared / f"prune/golden/{name}-{domain}-saliency.json").read_text())["layers"]
    cases += [case(f"{name} block {r['layer']}", r, keeps) for r in layers[name]]
cases += [case(f"made up {s}", made_up(8, s, 4), (6, 3)) for s in range(5)] + [case("made up of 24", made_up(24, 24, 20), (3, 2, 1))]
(out / "groups.json").write_text("[" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "]\n")
(out / "merged.json").write_text(json.dumps([merged("tiny-r1", Decoded, layers["tiny-r1-bf16"], 8), merged("tiny-gemma4-moe", po.Experts, layers["tiny-gemma4-moe"], 8)],
                                            separators=(",", ":")) + "\n")
for n, seed, below in ((5, 1, 10), (16, 2, 10), (64, 3, 1000), (64, 4, 3), (200, 5, 1 << 24), (300, 6, 100)):
    m = generated(n, seed, below)
    i, j = linear_sum_assignment(m)
    print(n, seed, below, int(m[i, j].sum()), "and of the negative", int(m[linear_sum_assignment(-m)].sum()))

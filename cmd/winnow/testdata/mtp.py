#!/usr/bin/env python3
"""mtp.py ORACLE OUT CHECKPOINT... - what goes through the block of multi-token prediction (MTP) of checkpoints that have one.

The block runs as another layer of transformers' unmodified model (5.24.0, float32, eager), which knows no MTP, with its input made by
the formula of arXiv 2412.19437, section 2.2: h' = eh_proj [enorm(embedding of token i+1); hnorm(h of token i)], where h is what the
output weight is applied to. ORACLE is the folder of saliency_oracle.py, whose hooks observe the experts. OUT gets the
token ids and for each checkpoint the experts' sums, and of the families' small models the sums of squares of every fourth column of what
eh_proj and the block's output weight are applied to."""
import json, sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, sys.argv[1])
import saliency_oracle as oracle

KEEP = ["tokens", "count", "sum_gate", "sum_norm", "sum_norm2", "sum_gnorm", "sum_gnorm2", "easy_ep", "max_abs", "max_gnorm", "prob_mean",
        "mean_out_norm", "rms_out", "mean_resid_norm"]
torch.set_num_threads(1)
torch.set_grad_enabled(False)
ids = torch.randint(0, 500, (2, 48), generator=torch.Generator().manual_seed(5))


def tensors(folder):
    raw = {}
    for f in sorted(folder.glob("model*.safetensors")):
        raw.update(load_file(f))
    out = {}
    for k, v in raw.items():
        if k.endswith("_scale_inv"):
            continue
        if v.dtype == torch.float8_e4m3fn:
            s = raw[k + "_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            v = v.float() * s[:v.shape[0], :v.shape[1]]
        out[k.replace("language_model.", "")] = v.float()
    return out


def model(folder, n, t):
    """The model with the MTP block as layer n."""
    c = json.loads((folder / "config.json").read_text())
    c.pop("quantization_config", None)
    text = c.pop("text_config", None) or c
    text["num_hidden_layers"], text["num_nextn_predict_layers"] = n + 1, 0
    if "linear_num_key_heads" in text:
        every = text.get("full_attention_interval", 4)
        text["layer_types"] = [("linear" if (i + 1) % every else "full") + "_attention" for i in range(n)] + ["full_attention"]
    cfg = AutoConfig.for_model(text.pop("model_type"), **text)
    cfg._attn_implementation = "eager"
    cfg._experts_implementation = "eager"
    m = AutoModelForCausalLM.from_config(cfg).float().eval()
    want, sd = m.state_dict(), {}
    for k in want:
        if k in t:
            sd[k] = t[k]
        elif k.endswith("experts.gate_up_proj"):
            p = k[:-len("gate_up_proj")]
            all = lambda w: torch.stack([t[f"{p}{e}.{w}.weight"] for e in range(want[k].shape[0])])
            sd[k], sd[p + "down_proj"] = torch.cat([all("gate_proj"), all("up_proj")], 1), all("down_proj")
    m.load_state_dict(sd, strict=True)
    return m


def norm(x, w, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def measure(folder):
    t = tensors(folder)
    small = "families" in str(folder)
    n = 1 + max(int(k.split(".")[2]) for k in t if k.startswith("model.layers."))
    if any(k.startswith("mtp.") for k in t):  # Qwen: norms are stored as offsets from one
        names = dict(eh_proj="mtp.fc", enorm="mtp.pre_fc_norm_embedding", hnorm="mtp.pre_fc_norm_hidden", head="mtp.norm")
        t.update({k.replace("mtp.layers.0.", f"model.layers.{n}."): v for k, v in t.items() if k.startswith("mtp.layers.0.")})
        t["embed"], one = t["model.embed_tokens.weight"], 1
    else:
        n, one = n - 1, 0
        p = f"model.layers.{n}."
        names = dict(eh_proj=p + "eh_proj", enorm=p + "enorm", hnorm=p + "hnorm", head=p + "shared_head.norm")
        t["embed"] = t[p + "embed_tokens.weight"]
    m = model(folder, n, t)
    eps, w = m.config.rms_norm_eps, {k: t[v + ".weight"] + (0 if k == "eh_proj" else one) for k, v in names.items()}
    layers = m.model.layers
    m.model.layers, m.config.num_hidden_layers = layers[:n], n
    h = m.model(input_ids=ids, use_cache=False).last_hidden_state
    pair = torch.cat([norm(torch.nn.functional.embedding(ids[:, 1:], t["embed"]), w["enorm"], eps), norm(h[:, :-1], w["hnorm"], eps)], -1)
    m.model.layers, m.config.num_hidden_layers = torch.nn.ModuleList([layers[n]]), 1
    if getattr(m.config, "layer_types", None):
        m.config.layer_types = [m.config.layer_types[n]]
    last = []
    layers[n].register_forward_hook(lambda mod, args, out: last.append(out[0] if isinstance(out, tuple) else out))
    o = oracle.Oracle(m, all_tokens=False)
    o.model = lambda input_ids, use_cache: m.model(inputs_embeds=pair @ w["eh_proj"].T, use_cache=use_cache)
    o.run(ids.numpy())
    report, = o.report()
    assert report["selfcheck_max_abs"] < 1e-5
    report = {"layer": n} | {k: report[k] for k in KEEP}
    out = {"experts": report}
    if small:
        out["eh_proj"] = pair.double().pow(2).sum((0, 1)).tolist()[::4]
        out["head"] = norm(last[0], w["head"], eps).double().pow(2).sum((0, 1)).tolist()[::4]
    return out


def short(v):
    return [short(x) for x in v] if isinstance(v, list) else {k: short(x) for k, x in v.items()} if isinstance(v, dict) else \
        float(f"{v:.6g}") if isinstance(v, float) else v


Path(sys.argv[2]).write_text(json.dumps({"ids": ids.tolist(), "models": {Path(f).name: short(measure(Path(f))) for f in sys.argv[3:]}}, separators=(",", ":")) + "\n")

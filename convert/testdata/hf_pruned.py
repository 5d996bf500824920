#!/usr/bin/env python3
"""hf_pruned.py [--text FILE] WINNOW FOLDER... - what transformers makes of checkpoint folders that winnow pruned.

WINNOW      the program
FOLDER      checkpoints of mixtures of experts, small ones: each is loaded whole, in float64
--text FILE  also merge (REAM) and repair experts, measured on this text

Needs torch (CPU) and transformers (5.23 or later). Per folder a quarter of the experts, drawn at random, is taken out, where experts form groups also
with the groups given up. That proves:

- transformers loads the folder with no weight missing, left over that the whole folder does not have left over, or of another shape;
- it then predicts what it predicts of the whole folder when its routers' logits (and biases of the choice) of those experts are minus infinity;
- `winnow logits` of the folder are the same.

Folders with merged or repaired experts have no such counterpart in transformers: they load, predict something else than the masked whole, and predict
what `winnow logits` says.

A line per folder written; exit status 1 if any of them is off, or could not be made.
"""
import argparse, json, math, os, subprocess, sys, tempfile, warnings
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

warnings.simplefilter("ignore", FutureWarning)  # about settings of released models

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

# How far logits may be off: what transformers computes in two ways, and what winnow computes in float32. Some models of random weights amplify any
# rounding: there it is a quarter of what float32 moves transformers' own logits, and for winnow, which adds up in another order, four times that.
SAME, LIKE = 1e-5, 1e-4
SEQUENCES, TOKENS = 2, 48


def plain(folder, out):
    """Writes a checkpoint of FP8 weights with its values, in float32. transformers would decode them itself, but takes the blocks of scales for equally
    large ones, which those of 288 rows by 128 are not."""
    config = json.loads((folder / "config.json").read_text())
    high, wide = config.pop("quantization_config")["weight_block_size"]
    tensors = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        weight = name.removesuffix("_scale_inv")
        rows, columns = tensors[weight].shape
        scales = tensors.pop(name).float().repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
        tensors[weight] = tensors[weight].float() * scales
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))


def load(folder):
    """The model of a folder in float64, but for what it computes in float32 whatever its type, and the names of weights that did not fit."""
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as work:
        if json.loads((folder / "config.json").read_text()).get("quantization_config", {}).get("quant_method") == "fp8":
            plain(folder, Path(work))
            folder = work
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager", output_loading_info=True)
    return model.eval(), {key: sorted(map(str, names)) for key, names in info.items() if key.endswith("_keys")}


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.double()


def apart(a, b):
    return float((a - b).abs().max())


class Masked(TorchFunctionMode):
    """Routers whose logits of some experts are minus infinity. A router is known by the memory of its weight."""

    def __init__(self, drop):
        super().__init__()
        self.drop = drop

    def __torch_function__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and (ids := self.drop.get(args[1].data_ptr())) is not None:
            y = y.index_fill(-1, ids, -math.inf)
        return y


def masked_logits(model, keep, flatten, ids):
    """What a whole model predicts with the experts of every layer that keep (layer to ids) names, and with its groups given up if flatten says so.
    Biases of the choice change for good."""
    keep = {layer: ids for layer, ids in keep.items() if layer < model.config.get_text_config().num_hidden_layers}  # no MTP blocks
    drop = {}
    for name, block in model.named_modules():
        router = getattr(block, "gate", getattr(block, "router", None))
        if not isinstance(getattr(block, "experts", None), torch.nn.Module) or not isinstance(router, torch.nn.Module):
            continue
        weight = next(p for key, p in router.named_parameters() if key in ("weight", "proj.weight", "wg.weight"))
        kept = keep.pop([int(part) for part in name.split(".") if part.isdigit()][-1])
        gone = torch.tensor([e for e in range(weight.shape[0]) if e not in kept])
        drop[weight.data_ptr()] = gone
        for key, bias in [*block.named_parameters(), *block.named_buffers()]:
            if key.endswith("e_score_correction_bias"):
                bias.data.index_fill_(-1, gone, -math.inf)
        for part in (block, router) if flatten else ():
            for key in ("n_group", "num_group", "num_expert_group", "topk_group"):
                if hasattr(part, key):
                    setattr(part, key, 1)
    if keep:
        raise ValueError(f"no experts found in the layers {sorted(keep)}")
    with Masked(drop):
        return logits(model, ids)


class Checker:
    def __init__(self, winnow, folder, text, work):
        self.winnow, self.folder, self.text, self.work = winnow, folder, text, Path(work)
        self.name, self.failed = Path(folder).resolve().name, False

    def run(self, *args):
        done = subprocess.run([self.winnow, *map(str, args), "-q"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"winnow {args[0]}: status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def say(self, what, ok, *figures):
        self.failed |= not ok
        print(f"{self.name}, {what}: {'; '.join(figures)}{'' if ok else ': FAILED'}", flush=True)

    def check(self):
        model, self.whole_info = load(self.folder)
        # Tokens of pictures and the like stand for something else.
        special = {v for k, v in model.config.to_dict().items() if k.endswith(("token_id", "token_index")) and isinstance(v, int)}
        usual = torch.tensor([i for i in range(3, model.get_input_embeddings().weight.shape[0]) if i not in special])
        self.ids = usual[torch.randint(len(usual), (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(1))]
        self.whole = logits(model, self.ids)
        del model
        counts = json.loads(self.run("prune", self.folder, "--rule", "random", "--ratio", "25%", "--groups", "flatten", "--dry-run", "--json"))
        groups, experts = counts.get("groups", 1), counts["experts"]
        if groups < 2:
            self.pruned("pruned", "--ratio", "25%")
        else:
            # A group is scored by its two best experts, so it cannot keep fewer.
            if experts // groups > 2:
                self.pruned("pruned, groups equal", "--ratio", "25%")
            self.pruned("pruned, one group", "--ratio", "25%", "--groups", "flatten")
        # Weights in MXFP4 are not written anew: there is no telling what they would be rounded to.
        mxfp4 = "mxfp4" in (Path(self.folder) / "config.json").read_text()
        if self.text and not mxfp4:
            stats = self.work / "stats.gguf"
            self.run("calibrate", self.folder, "-f", self.text, "-c", 32, "--chunks", 16, "-o", stats)
            more = ("--stats", stats, "--rule", "reap", "--keep", counts["keep"], "--groups", "flatten", "-f", self.text, "-c", 32, "--chunks", 6)
            self.changed("merged", "--merge", "ream", *more)
            self.changed("repaired", "--repair", *more)
        return not self.failed

    def write(self, *args):
        """Writes a folder and loads it. -> its logits, what is to be said, whether all is well, how far other logits may be off, winnow's report"""
        out = Path(tempfile.mkdtemp(dir=self.work)) / self.name
        report = json.loads(self.run("prune", self.folder, "-o", out, "--save-plan", self.work / "plan.json", "--force", "--json", *args))
        model, info = load(out)
        got = logits(model, self.ids)
        rounding = apart(logits(model.float(), self.ids), got)
        del model
        # Blocks that transformers does not run are left over of the whole folder, too.
        misfits = [name for key, names in info.items() for name in names if name not in self.whole_info.get(key, [])]
        differ = 0.0
        for i, row in enumerate(self.ids.tolist()):
            self.run("logits", out, "--ids", ",".join(map(str, row)), "-o", self.work / "logits.safetensors", "--force")
            differ = max(differ, apart(load_file(self.work / "logits.safetensors")["logits"], got[i]))
        figures = [f"{report['keep']} of {report['experts']} experts", f"max |Δ logit| with float32 {rounding:.2g}, with winnow's {differ:.2g}"]
        if misfits:
            figures.append("weights that do not fit: " + ", ".join(misfits))
        return got, figures, not misfits and differ <= max(LIKE, 4 * rounding), max(SAME, rounding / 4), report

    def masked(self):
        """What the whole model predicts with the experts of the plan that was written last."""
        plan = json.loads((self.work / "plan.json").read_text())
        keep = {int(layer): ids for layer, ids in plan["blocks"].items()}
        return masked_logits(load(self.folder)[0], keep, plan.get("flatten", False), self.ids)

    def pruned(self, what, *args):
        got, figures, ok, same, _ = self.write("--rule", "random", *args)
        differ, moved = apart(got, self.masked()), apart(got, self.whole)
        figures.append(f"with the masked whole {differ:.2g}, unmasked {moved:.2g}")
        self.say(what, ok and differ <= same and moved > 100 * same, *figures)

    def changed(self, what, *args):
        got, figures, ok, same, report = self.write(*args)
        moved = apart(got, self.masked())
        figures.append(f"with the masked whole {moved:.2g}")
        if "repair" in report and not report["repair"]["kept"]:
            figures.append("repair not kept")
        elif moved < 100 * same:
            ok = False
        self.say(what, ok, *figures)


def main():
    parser = argparse.ArgumentParser(description="What transformers makes of checkpoint folders that winnow pruned.")
    parser.add_argument("--text")
    parser.add_argument("winnow")
    parser.add_argument("folders", nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)
    good = True
    for folder in args.folders:
        with tempfile.TemporaryDirectory() as work:
            checker = Checker(args.winnow, folder, args.text, work)
            try:
                good &= checker.check()
            except Exception as e:  # the other folders still count
                good = False
                checker.say("not done", False, f"{type(e).__name__}: {e}")
    sys.exit(not good)


main()

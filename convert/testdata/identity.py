#!/usr/bin/env python3
"""identity.py LLAMA_CPP - writes identity.json: the general.* keys and the file name that gguf-py gives models by their folder's name, the
_name_or_path of their config.json, and their model card.

LLAMA_CPP  source tree of llama.cpp (the vendor/llama.cpp folder of the PyPI source package llama-cpp-python 0.3.36)

Per case: "folder", "repository" (_name_or_path), "card" (README.md, "" for none), "params"; "keys" in writing order as [name, type, value];
"file", the output's name without encoding.
"""
import json, logging, sys, tempfile
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[1]) / "gguf-py"))
import gguf

logging.disable(logging.CRITICAL)

NAMES = [  # folder, weights
    ("Qwen2.5-7B-Instruct", 7_615_616_512), ("Meta-Llama-3.1-8B-Instruct-v0.2", 8_030_261_248), ("Mixtral-8x7B-Instruct-v0.1", 46_702_792_704),
    ("gemma-4-26B-A4B-it", 25_805_936_206), ("DeepSeek-R1", 671_026_419_200), ("DeepSeek-V3.1", 671_026_419_200), ("tiny-r1", 12_000_000),
    ("Kimi-K2-Instruct-0905", 1_026_408_232_448), ("Qwen3-235B-A22B-Instruct-2507", 235_093_634_560), ("gpt-oss-120b", 116_829_156_672),
    ("GLM-4.5-Air", 106_852_251_264), ("Llama-4-Scout-17B-16E-Instruct", 107_770_000_000), ("Phi-3-mini-128k-instruct", 3_821_079_552),
    ("Phi-3.5-MoE-instruct", 41_873_153_344), ("bloom-7b1-petals", 7_069_016_064), ("Yi-34B-200K", 34_388_917_248), ("Mistral-Nemo-Instruct-2407", 12_247_782_400),
    ("DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000), ("granite-3.1-3b-a800m-instruct", 3_299_000_000), ("Qwen3-Next-80B-A3B-Thinking", 81_324_862_720),
    ("OLMo-2-1124-7B-SFT", 7_298_617_344), ("starcoder2-15b", 15_957_889_024), ("ERNIE-4.5-21B-A3B-PT", 21_825_437_888), ("llama-2-7b-chat-hf", 6_738_415_616),
    ("Llama-2-7b-32K-Instruct", 6_738_415_616), ("TinyLlama_v1.1", 1_100_048_384), ("Mistral-7B-v0.1-q4_0", 7_241_732_096), ("model-BF16", 1_000_000),
    ("stablelm-zephyr-3b-v1-iter2", 2_795_443_200), ("vicuna-13b-v1.5-16k", 13_015_864_320), ("codegemma-1.1-7b-it", 8_537_680_896), ("foo", 1_000_000),
    ("7B", 7_000_000_000), ("7B-chat", 7_000_000_000), ("v2", 5), ("v1.0-small-large", 5_000_000), ("x-small", 5_000_000), ("big-xxl-11b", 11_000_000_000),
    ("a--b-", 7), ("---", 7), ("chat-instruct-lora", 7), ("Über-modell-7B", 7_000_000_000), ("my model-7B x", 7_000_000_000), ("0.5B-0.5B-0_5b", 500_000_000),
    ("name-8x22b-A4b-8x22B", 141_000_000_000), ("3b-stories", 3_000_000_000), ("x-1024", 9), ("FP16-model-f32", 9), ("model-1T", 1_026_408_232_448),
    ("q-7B-1M", 7_000_000_000), ("Instruct-7B", 7_000_000_000), ("a.b-c.d-7B", 7_000_000_000), ("pythia-160m-v0", 162_322_944), ("x-7B", 0),
]
REPOSITORIES = [  # folder, _name_or_path, weights
    ("checkpoint-500", "meta-llama/Llama-2-7b-hf", 6_738_415_616), ("out", "mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552), ("Qwen2-7B-tuned", "./output", 7_615_616_512),
    ("Qwen2-7B-tuned", "/home/user/models/x", 7_615_616_512), ("x-3B", "../base-7B", 3_000_000_000), ("snapshot", "gpt2", 124_439_808), ("y-2B-it", "a model of mine", 2_000_000_000),
]
CARDS = [  # folder, card
    ("Qwen2.5-7B-Instruct", """---
license: apache-2.0
license_link: https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/LICENSE
language:
- en
pipeline_tag: text-generation
base_model: Qwen/Qwen2.5-7B
tags:
- chat
library_name: transformers
---

# Qwen2.5-7B-Instruct
"""),
    ("Mistral-7B-Merge-14-v0.1", """---
license: cc-by-nc-4.0
tags: [merge, "7b"]
base_model:
  - EmbeddedLLM/Mistral-7B-Merge-14-v0
  - janai-hq/trinity-v1
  - https://huggingface.co/mistralai/Mistral-7B-v0.1
  - https://example.com/some/Model-7B
  - ssh://git@example.com/m
  - local-7B-v2
  - A model of no repository
---
"""),
    ("x-7B", """---
model_creator: Mistral AI_
model_name: Mistral 7B Instruct v0.2
model_type: mistral
quantized_by: somebody
license: [mit, apache-2.0]
datasets: HuggingFaceH4/ultrachat_200k
---
"""),
    ("x-7B", """---
name: Given Name
author: An Author
version: v9
organization: An Organization
description: >
  folded
  text
finetune: tuned
basename: base name
size_label: 9B
url: https://example.com/model
doi: 10.1000/1
uuid: 0b5a7e5c-0000-0000-0000-000000000000
repo_url: https://example.com/repo
license: other
license_name: some-license
license_link: LICENSE
tags: one
languages: [de, fr]
language: it
---
"""),
    ("x-7B", """---
model_author: A
model_version: "1"
model_organization: O
model_description: D
model_finetune: F
model_basename: B
model_size_label: 7B
model_url: U
model_doi: I
model_uuid: 1-2
model_repo_url: R
---
"""),
    ("y-7B", """---
base_model:
- name: One
  author: A
  version: v1
  organization: O
  description: D
  url: U
  doi: I
  uuid: X
  repo_url: R
  more: ignored
- {name: Two}
dataset_sources:
- {name: Data, url: "https://example.com"}
- org/data-set-v1.2
- https://huggingface.co/datasets/org/name
- https://huggingface.co/org/name-7B-v3
language:
- no
- en
---
"""),
    ("y-7B", "---\nbase_model:\ndatasets: []\ntags: []\nlanguage:\nlicense:\n---\n"), ("y-7B", "---\nbase_models: [a/b]\ndataset: c/d\n---\n"),
    ("y-7B", "no front matter\n---\nlicense: mit\n---\n"), ("y-7B", "---\nlicense: mit"), ("y-7B", "---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\ntext\r\n"), ("y-7B", ""),
    ("y-7B", "---\n---\n"), ("y-7B", "---\nlicense: mit\n# comment\nlicense_name: 'quoted'\n---\nlicense: gpl\n"),
    ("y-7B", "---\ntags:\n\t- a\n\t- b\n---\n"), ("y-7B", "---\nlicense: mit\nlicense: gpl\n---\n"), ("y-7B", "---\nbase: &b mit\nlicense: *b\ntags: [*b, x]\n---\n"),
    ("y-7B", "---\nname: a/b:c\nversion: v 1/x\n---\n"),
]


def keys(folder, repository, card, params):
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / folder
        path.mkdir()
        config = {} if repository is None else {"_name_or_path": repository}
        (path / "config.json").write_text(json.dumps(config))
        if card:
            (path / "README.md").write_bytes(card.encode())
        m = gguf.Metadata.load(None, path, None, params)
        if m.size_label is None and params > 0:
            m.size_label = gguf.size_label(params, params, 0, 0)
        w = gguf.GGUFWriter(None, "llama")
        w.kv_data[0].clear()
        m.set_gguf_meta_model(w)
        name = gguf.naming_convention(m.name, m.basename, m.finetune, m.version, m.size_label, None)
        return [[k, v.type.name, v.value] for k, v in w.kv_data[0].items()], name


cases = [(f, None, "", n) for f, n in NAMES] + [(f, r, "", n) for f, r, n in REPOSITORIES] + [(f, None, c, 7_000_000_000) for f, c in CARDS]
cases += [("Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B", CARDS[0][1], 7_615_616_512)]
docs = []
for folder, repository, card, params in cases:
    k, name = keys(folder, repository, card, params)
    docs.append({"folder": folder, "repository": repository or "", "card": card, "params": params, "keys": k, "file": name})
Path(__file__).with_suffix(".json").write_text("[\n" + ",\n".join(json.dumps(d, ensure_ascii=False) for d in docs) + "\n]\n")

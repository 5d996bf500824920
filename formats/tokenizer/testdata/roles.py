"""Writes roles.json: the special token ids, add flags and chat templates that
llama.cpp's converter takes from small made-up tokenizer files.

    PYTHONPATH=llama.cpp/gguf-py python roles.py > roles.json
"""
import json
import os
import tempfile
from gguf import SpecialVocab

ADDED = ["<unk>", "<s>", "</s>", "<pad>", "<sep>", "<cls>", "<mask>", "<eot>"]
tok = lambda i: {"SpecialToken": {"id": i, "type_id": 0}}
seq = lambda i: {"Sequence": {"id": i, "type_id": 0}}
template = lambda single, pair: {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}}
level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
bos = template([tok("<s>"), seq("A")], [tok("<s>"), seq("A"), tok("<s>"), seq("B")])
wrap = lambda s: {"__type": "AddedToken", "content": s, "lstrip": False}
names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

cases = [
    ("nothing", None, {}, {}),
    ("no config at all", level, None, {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 3}),
    ("no config, template", bos, None, {"bos_token_id": 1}),
    ("names only", None, names, {}),
    ("ids only", None, {}, {"bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0, "sep_token_id": 4, "cls_token_id": 5, "mask_token_id": 6}),
    ("names before ids", None, names, {"bos_token_id": 5, "sep_token_id": 4}),
    ("text_config", None, {}, {"text_config": {"bos_token_id": 1, "eos_token_id": 2}}),
    ("flags without post-processor", None, dict(names, add_bos_token=True, add_eos_token=False, add_sep_token=True, add_pad_token=True), {}),
    ("byte level and add_eos", level, dict(names, add_eos_token=True), {}),
    ("byte level then template", {"type": "Sequence", "processors": [level, bos]}, dict(names, add_bos_token=False, add_eos_token=True), {}),
    ("template", bos, names, {}),
    ("template, wrapped names", bos, {"bos_token": wrap("<s>"), "eos_token": wrap("</s>")}, {}),
    ("template, other bos", bos, dict(names, bos_token="<cls>"), {}),
    ("template, no names", bos, {"model_max_length": 5}, {}),
    ("template with eos", template([tok("<s>"), seq("A"), tok("</s>")], [tok("<s>"), seq("A"), tok("</s>"), seq("B"), tok("</s>")]), names, {}),
    ("template with another end", template([tok("<s>"), seq("A"), tok("<sep>")], []), names, {"eot_token_id": 7}),
    ("template, wrapped eos", template([seq("A"), tok("</s>")], [seq("A"), tok("</s>"), seq("B"), tok("</s>")]), dict(names, eos_token=wrap("</s>")), {}),
    ("cls and sep", template([tok("<cls>"), seq("A"), tok("<sep>")], [tok("<cls>"), seq("A"), tok("<sep>"), seq("B"), tok("<sep>")]), {"cls_token": "<cls>", "sep_token": "<sep>"}, {}),
    ("separator between", template([seq("A")], [seq("A"), tok("</s>"), seq("B")]), names, {}),
    ("two separators between", template([tok("<s>"), seq("A"), tok("</s>")], [tok("<s>"), seq("A"), tok("</s>"), tok("</s>"), seq("B"), tok("</s>")]), names, {}),
    ("wrong order", template([tok("<s>"), seq("A")], [tok("<s>"), seq("B"), seq("A")]), names, {}),
    ("roberta", {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}, names, {}),
    ("roberta, all names", {"type": "RobertaProcessing", "sep": ["<sep>", 4], "cls": ["<cls>", 5]}, dict(names, sep_token="</s>", cls_token="<s>"), {}),
    ("list of eos", None, {"eos_token": "</s>"}, {"eos_token_id": [7, 2]}),
    ("name that is no added token", None, {"bos_token": "hello"}, {"bos_token_id": 1}),
    ("chat template", None, {"chat_template": "{{ x }}"}, {}),
    ("null chat template", None, {"chat_template": None}, {}),
]

out = []
for name, post, config, model in cases:
    tokenizer = {"added_tokens": [{"id": i, "content": c, "special": True} for i, c in enumerate(ADDED)], "post_processor": post,
                 "pre_tokenizer": {"type": "ByteLevel", "use_regex": True},
                 "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(ADDED)}, "merges": []}}
    files = {"tokenizer.json": tokenizer, "config.json": dict(model, vocab_size=len(ADDED))}
    if config is not None:
        files["tokenizer_config.json"] = config
    with tempfile.TemporaryDirectory() as d:
        for f, content in files.items():
            json.dump(content, open(os.path.join(d, f), "w"))
        v = SpecialVocab(d, load_merges=True)
    flags = [[k, x] for k, x in v.add_special_token.items() if k in ("bos", "eos", "sep")]
    out.append(json.dumps({"name": name, "files": files, "special": list(v.special_token_ids.items()), "add": flags, "template": v.chat_template}))
print("[" + ",\n".join(out) + "]")

"""Writes pretok.json: how the Hugging Face tokenizers library (0.23.3) cuts
texts with the pre_tokenizer sections of released models.

    pip install tokenizers==0.23.3 && python pretok.py > new.json

The patterns are those of the models' tokenizer.json files (for Kimi K2: of its
tiktoken module). Pieces are given by their lengths in bytes.
"""
import json
import random
from tokenizers import Tokenizer, models

C = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
C2 = r"'(?i:[sdmt]|ll|ve|re)"
L, N1, N3 = r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}", r"\p{N}{1,3}"
P = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
W = r"\s*[\r\n]+|\s+(?!\S)|\s+"
U1 = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
U2 = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
O200K = "|".join([U1 + C + "?", U2 + C + "?", N3, r" ?[^\s\p{L}\p{N}]+[\r\n/]*", W])
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = "|".join([C, L, N1, P, W])
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
LATIN = json.load(open("pretok.json"))["latin"]  # DeepSeek LLM's list of letters
noHan = lambda u: u.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]")
split = lambda re, behavior="Isolated", invert=False: {"type": "Split", "pattern": {"Regex": re}, "behavior": behavior, "invert": invert}
level = lambda re=False: {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": re}
digits = lambda one: {"type": "Digits", "individual_digits": one}
bloom = " ?[^(\\s|.,!?…。，、।۔،)]+"
bloom2 = " ?[^(\\s|[.,!?…。，、।۔،])]+"
V3 = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"

rows = [
    ("llama-bpe", [split("|".join([C, L, N3, P, W])), level()]),
    ("llama-bpe", [split("|".join([C, L, N3, P, W]), "Removed", True), level()]),
    ("llama-bpe", [split("|".join([C2, r"[^\r\n\p{L}\p{N}]?+\p{L}+", N3, r" ?[^\s\p{L}\p{N}]++[\r\n]*", r"\s*[\r\n]|\s+(?!\S)|\s+"])), level()]),
    ("qwen2", [split(QWEN2), level()]),
    ("qwen35", [split("|".join([C, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", N1, r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", W])), level()]),
    ("deepseek-v3", [split(N3), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), split(V3), level()]),
    ("deepseek-llm", [split("[\r\n]"), split("\\s?[" + LATIN + "]+"), split("\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"), split("\\s+$"), split(CJK), digits(True), level()]),
    ("deepseek-coder", [split("[\r\n]"), split("\\s?\\p{L}+"), split("\\s?\\p{P}+"), split(CJK), digits(True), level()]),
    ("gpt-4o", [split(O200K), level()]),
    ("tekken", [split("|".join([U1, U2, N1, r" ?[^\s\p{L}\p{N}]+[\r\n/]*", W])), level()]),
    ("gpt-2", [level(True)]),
    ("gpt-2", [split(GPT2), level()]),
    ("starcoder", [digits(True), level(True)]),
    ("falcon", [{"type": "Punctuation", "behavior": "Contiguous"}, level(True), digits(False), split("[0-9][0-9][0-9]")]),
    ("bailingmoe", [split("|".join([C2, r"[^\r\n\p{L}\p{N}]?+\p{L}+", N1, r" ?[^\s\p{L}\p{N}]++[\r\n]*", r"\s*[\r\n]|\s+(?!\S)|\s+"])), level()]),
    ("kimi-k2", [split("|".join([r"[\p{Han}]+", noHan(U1) + C + "?", noHan(U2) + C + "?", N3, P, W])), level()]),
    ("bloom", [split(bloom), level()]),
    ("bloom", [split(bloom2), level()]),
    ("viking", [split(bloom), digits(True), level()]),
    ("seed-coder", [split("|".join([C, "[^\r\n\\p{L}\\p{N}]?\\p{L}+", r"\p{N}{1}", " ?[^\\s\\p{L}\\p{N}\r\n]+", W])), level()]),
    ("tiny_aya", [split(r"\d{1,3}(?=(?:\d{3})*\b)"), split(O200K), level()]),
    ("laguna", [split(r"[^\n]+|[\n]+"), split(QWEN2), level()]),
    ("exaone-moe", [split("|".join([C, r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+", N1, r" ?[^\s\p{L}\p{N}]+[\r\n/]?", r"\s*[\r\n]|\s+(?!\S)|\s+"])), level()]),
    ("minicpm5", [split(N3), split("|".join([C, L, r"\p{N}+", P, W])), level()]),
    ("jais-2", [split("|".join([C, L, N3, P, r"\s*[\r\n]+"] + [r"\s{%d}(?!\S)" % (1 << k) for k in range(9, 1, -1)] + [r"\s{1,2}(?!\S)", r"\s{1}"])), level()]),
    ("ufakzeka", [split("|".join([L, N1, P, W])), level()]),
]

texts = [
    "Hello world, it's 12345 o'clock; DON'T WE'LL we'Re I'M he'D you'vE a'ſ see?",
    "  leading spaces\tand\ttabs \n\n\n newlines\r\nCRLF   \n   \n x    ",
    "naïve café — “quotes” … 中文字符 日本語 ひらがな カタカナ 한국어 👩\u200d💻🦙 ẞ İ ǅ ʰ",
    "x=1.50e-3;for(int i=0;i<100;i++){a[i]+=b*c;}// comment!!!\n\tif (x) return;\r\n//\n/ /",
    "élève e\u0301 \u0301x 1234567 ١٢٣٤ Ⅷ ½ ²³ 3.14 /path/to/file.txt\n\n",
    "हिन्दी में लिखा, ไทยแลนด์ и по-русски 999 مرحبا بالعالم، שלום।",
    "camelCaseHTTPServer XMLHttpRequest iOS ABCdef AbCdEF's ÀÉîôÜ 'tis ''s '",
    "\u00a0nbsp\u00a0 \u3000wide\u3000 \u2028ls\u2029 \x85nel \x0bvt \x1cfs \u200bzw \ufeffbom \x00",
    "$100.00 <a href=\"x\">b</a> a_b-c.d@e.f #tag 1,000,000.5%^&*()~`|+=",
    "我在apple工作1314151天～〇々「はい」ーー。1a2b三c\n四",
]
rng = random.Random(7)
alphabet = [" ", " ", "  ", "\n", "\r\n", "\t", "'", "s", "LL", "re", "Ve", "a", "bc", "D", "Éa", "ǅ", "ʰ", "中", "文", "の", "ア", "한", "e\u0301", "\u0301", "ก", "ा",
            "1", "22", "333", "½", "٣", "Ⅷ", ".", ",", "!", "/", "(", "_", "$", "+", "😀", "\u200d", "\u3000", "\u00a0", "ſ", "-", "|", "。", "«", "\x01", "\u2028"]
for _ in range(24):
    texts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(5, 60))))

out = []
for name, steps in rows:
    section = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    tok = Tokenizer(models.BPE())
    doc = json.loads(tok.to_str())
    doc["pre_tokenizer"] = section
    tok = Tokenizer.from_str(json.dumps(doc))
    pieces = [[len(p) for p, _ in tok.pre_tokenizer.pre_tokenize_str(t)] for t in texts]
    for t, p in zip(texts, pieces):
        assert sum(p) == len(t.encode()), (name, t)
    out.append('{"pre":%s,"pre_tokenizer":%s,\n"pieces":%s}' % (json.dumps(name), json.dumps(section), json.dumps(pieces, separators=(",", ":"))))
print('{"latin":%s,\n"texts":%s,\n"rows":[\n%s\n]}' % (json.dumps(LATIN), json.dumps(texts), ",\n".join(out)))

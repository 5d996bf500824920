"""Makes the folders of packs/vocabularies.tar.zst but for tiny-gemma4-moe and tiny-llama4.

    pip install tokenizers==0.23.3 sentencepiece==0.2.3 protobuf
    python vocabularies.py CORPUS OUT

CORPUS is the folder of packs/corpus.tar.zst. unigram_nfkc/ref-vocab.gguf is
what llama.cpp's converter makes of that folder with --vocab-only. Every folder of OUT is a
checkpoint without weights; goldens.json holds texts and their ids:

  unigram       SentencePiece unigram with byte fallback, as Llama normalizes;
                ids of the sentencepiece library and of tokenizers
                metaspace.json: ids of tokenizers with other pre_tokenizers
  unigram_nfkc  SentencePiece unigram as T5 has it: character map, spaces
                collapsed, unk; ids of both libraries
  kimi, hy      byte strings by rank in tiktoken's form; ids by the rank rule,
                written here from its definition (take a word whole if it is a
                token, else merge the neighbours whose joint rank is lowest)
                and by tokenizers' BPE with the merges of training. merges.json
                is what QwenModel.bpe of llama.cpp's conversion/qwen.py makes
                of the ranks, where it leaves two parts
"""
import base64, json, os, sys
import sentencepiece as spm
from tokenizers import AddedToken, Regex, Tokenizer, models, trainers, pre_tokenizers, normalizers, decoders
import sentencepiece.sentencepiece_model_pb2 as pb

corpus, out = sys.argv[1:]
calib = [os.path.join(corpus, f"calib-{d}.txt") for d in ("english", "code", "docs")]
TEXTS = ["", " ", "   ", "Hello world, it's 12345 o'clock; don't WE'LL see?", "  leading spaces\tand\ttabs \n\n\n newlines\r\nCRLF   ",
    "naïve café — “quotes” … 中文字符 日本語 ひらがな 한국어 👩\u200d💻🦙 ẞ İ ǅ", "x=1.50e-3;for(int i=0;i<100;i++){a[i]+=b*c;}// comment!!!\n\tif (x) return;",
    "élève  1234567 ١٢٣ Ⅷ ½ ﬁne 3.14 /path/to/file.txt\n\n", "In the beginning God created the heaven and the earth.", "▁literal▁block", "我在apple工作", "A中文B漢字ab",
    "e\u0301 combining", "\ufeffBOM", "a\u00a0b\u3000c\u200bd", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "func main() {\n\tfmt.Println(\"hi\")\n}\n"]
TEXTS += [open(os.path.join(corpus, f"eval-{d}.txt")).read()[:3000] for d in ("english", "code", "docs")]

def write(folder, name, data):
    path = os.path.join(out, folder); os.makedirs(path, exist_ok=True)
    open(os.path.join(path, name), "wb").write(data if isinstance(data, bytes) else (json.dumps(data, ensure_ascii=False, indent=0) + "\n").encode())

def unigram(folder, t5):
    path = os.path.join(out, folder); os.makedirs(path, exist_ok=True)
    extra = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1) if t5 else dict(
        unk_id=0, bos_id=1, eos_id=2, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True)
    spm.SentencePieceTrainer.train(input=",".join(calib), model_prefix=os.path.join(path, "m"), model_type="unigram", vocab_size=1200 if not t5 else 900,
        character_coverage=0.999 if not t5 else 0.995, num_threads=1, input_sentence_size=4000, shuffle_input_sentence=False, minloglevel=2, user_defined_symbols=["<sep>"], **extra)
    os.rename(os.path.join(path, "m.model"), os.path.join(path, "tokenizer.model")); os.remove(os.path.join(path, "m.vocab"))
    raw = open(os.path.join(path, "tokenizer.model"), "rb").read()
    m = pb.ModelProto(); m.ParseFromString(raw)
    sp = spm.SentencePieceProcessor(model_proto=raw)
    t = Tokenizer(models.Unigram([(p.piece, p.score) for p in m.pieces], m.trainer_spec.unk_id, byte_fallback=m.trainer_spec.byte_fallback))
    if t5:
        t.normalizer = normalizers.Sequence([normalizers.Precompiled(m.normalizer_spec.precompiled_charsmap), normalizers.Strip(left=True, right=True), normalizers.Replace(Regex(" {2,}"), " ")])
        t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
        t.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
        special = ["<pad>", "</s>", "<unk>"]
        config = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": False, "add_eos_token": False, "tokenizer_class": "T5Tokenizer"}
        model = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
            "d_model": 16, "d_ff": 32, "d_kv": 4, "num_layers": 1, "num_heads": 4, "n_positions": 512, "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32}
    else:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        special = ["<unk>", "<s>", "</s>"]
        config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}
        model = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
    t.add_special_tokens(special); t.add_tokens([AddedToken("<sep>", normalized=False)])
    t.save(os.path.join(path, "tokenizer.json"), pretty=False)
    write(folder, "tokenizer_config.json", config)
    write(folder, "config.json", {**model, "vocab_size": len(m.pieces)})
    cases = [{"text": s, "hf": t.encode(s, add_special_tokens=False).ids, "sp": sp.encode(s)} for s in TEXTS + ["a<sep>b <sep> c"]]
    for c in cases:
        if c["hf"] != c["sp"]: print(folder, "libraries differ:", repr(c["text"][:60]))
    write(folder, "goldens.json", cases)

def metaspace(folder):
    """The same vocabulary with the space put and cut by Metaspace."""
    doc = json.load(open(os.path.join(out, folder, "tokenizer.json")))
    rows = []
    for scheme in ("first", "always", "never"):
        for cut in (True, False):
            doc["normalizer"] = None
            doc["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}
            t = Tokenizer.from_str(json.dumps(doc))
            rows.append({"pre_tokenizer": doc["pre_tokenizer"], "cases": [{"text": s, "ids": t.encode(s, add_special_tokens=False).ids} for s in TEXTS[:17] + ["a<sep>b <sep> c", "<s> x", "<s>y"]]})
    write(folder, "metaspace.json", rows)

def by_rank(ranks, word):
    if word in ranks: return [ranks[word]]
    parts = [bytes([b]) for b in word]
    while True:
        best = min(((ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks), default=None)
        if best is None: return [ranks[p] for p in parts]
        i = best[1]; parts[i:i + 2] = [parts[i] + parts[i + 1]]

C = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
W = r"\s*[\r\n]+|\s+(?!\S)|\s+"
noHan = lambda cls: "[" + cls + r"&&[^\p{Han}]]"
U, V = noHan(r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"), noHan(r"\p{Ll}\p{Lm}\p{Lo}\p{M}")
KIMI = "|".join([r"[\p{Han}]+", rf"[^\r\n\p{{L}}\p{{N}}]?{U}*{V}+{C}?", rf"[^\r\n\p{{L}}\p{{N}}]?{U}+{V}*{C}?", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", W])
HY = "|".join([C, r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", W])

def alphabet():
    bs = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256)); cs = bs[:]; n = 0
    for b in range(256):
        if b not in bs: bs.append(b); cs.append(256 + n); n += 1
    return dict(zip(bs, map(chr, cs)))
TO = alphabet(); FROM = {c: b for b, c in TO.items()}

def tiktoken(folder, file, pattern, size, vocab_size, decoder, config, model):
    cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t = Tokenizer(models.BPE()); t.pre_tokenizer = cut
    t.train(calib, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    merges = [tuple(m) for m in json.loads(t.to_str())["model"]["merges"]]
    order = [bytes([b]) for b in range(256)] + [bytes(FROM[c] for c in a + b) for a, b in merges]
    order = list(dict.fromkeys(order))
    order.append("applepie".encode()); order.append("我漢字我".encode())  # only ever whole words
    ranks = {tok: i for i, tok in enumerate(order)}
    write(folder, file, b"".join(base64.b64encode(tok) + b" %d\n" % i for tok, i in ranks.items()))
    write(folder, "tokenizer_config.json", {**config, "added_tokens_decoder": {str(len(order) + k): {"content": v, "special": True} for k, v in decoder.items()}})
    write(folder, "config.json", {**model, "vocab_size": vocab_size(len(order))})
    hf = Tokenizer(models.BPE(vocab={"".join(TO[b] for b in tok): i for tok, i in ranks.items()}, merges=merges, ignore_merges=True)); hf.pre_tokenizer = cut
    cases = []
    for s in TEXTS + ["applepie applepies 我漢字我们 我漢字我"]:
        ids = [i for w, _ in cut.pre_tokenize_str(s) for i in by_rank(ranks, bytes(FROM[c] for c in w))]
        assert ids == hf.encode(s).ids, (folder, s)
        cases.append({"text": s, "ids": ids})
    write(folder, "goldens.json", cases)

unigram("unigram", False)
unigram("unigram_nfkc", True)
metaspace("unigram")
tiktoken("kimi", "tiktoken.model", KIMI, 900, lambda n: n + 256, {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 4: "<|im_user|>"},
    {"bos_token": "[BOS]", "eos_token": "[EOS]"}, {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2"})
tiktoken("hy", "hy.tiktoken", HY, 800, lambda n: n + 210, {}, {}, {"architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "bos_token_id": 1})

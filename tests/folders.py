"""Generates model folders with transformers and tokenizers, reads them here, and prints how many are equal.

    python tests/folders.py               # all folders and texts: some minutes
    python tests/folders.py --only=7,8    # some of them
    python tests/folders.py --keep=DIR    # and keeps them

Every folder is a random model with a tokenizer that was trained on a few lines. Compared with the libraries are the ids
of 200 awkward texts (as text, with special tokens, as prompts) and what they decode to; greedy continuations up to an
id that ends them; and what AutoTokenizer and AutoModelForCausalLM make of the folder after export.py. A folder is
equal in all of this, refused in words, or different, which would be a defect.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers  # noqa: E402
from tokenizers import pre_tokenizers as splits  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

import export  # noqa: E402
import sample  # noqa: E402
from checkpoints.pretrained import load_pretrained  # noqa: E402
from data.tokenizer import tokenizer_from_json  # noqa: E402

CORPUS = [
    "The quick brown fox doesn't jump over the lazy dog, 1,234 times; it's fine.\n",
    "山水之间，春夏秋冬。黛玉见了宝玉便说：“今日来得不巧了。”\n",
    "def f(x):\n    return x ** 2  # squared\n\nfor i in range(10):\n\tprint(f(i))\r\n",
    "Größe, café, naïve, Ελληνικά, русский текст, हिन्दी, עברית, 한국어, 日本語です。\n",
    "Hello hello HELLO world World of words, wordless worlds and the other weather.\n",
] * 4
TOKENS = ("<|im_end|>", "[EOS]", "<s>", "</s>", "<|endoftext|>", "[UNK]", "<tool>")


def awkward_texts(n: int = 200) -> list[str]:
    """The same each time: written ones first, then mixtures of their parts."""
    texts = [
        "", " ", "  ", "\n", "\t", "\r\n", "a", " a", "a ", "  a  ", "\u3000", "山水", "山 水", "春夏秋冬 山水。",
        "the cat", "The cat sat.", "Hello world", "hello  world   again", "\n\n\n", " \n \n", "a\r\nb\rc\n",
        "👩‍👩‍👧‍👦", "👍🏽", "🇨🇳🇫🇷", "❤️", "e\u0301", "é", "\u212b \u00c5 A\u030a", "ﬁ ﬀ ½ ² ①", "\u0301", "ạ̈̇", "각 각",
        "\0", "\x01\x02\x7f", "\x85", "\u2028\u2029", "\u200b\u200d\ufeff", "\ufffd", "\x1b[31mred\x1b[0m",
        "<s>", "</s>", "<|endoftext|>", "x<|im_end|>y", "[UNK]", "[EOS] [BOS]", "<tool>x</tool>", " <tool> ",
        "<unk><pad>", "<0x0A><0xE5>", "▁", "▁a ▁▁b", "Ġa", "##a", "a" * 500, "字" * 300, " " * 100, "." * 70,
        "supercalifragilisticexpialidocious" * 8, "1234567890" * 5, "3.14159e-10", "x=1;y=2", "𠀀𪚥", "मनीष मिश्रा",
        "שלום עולם", "مرحبا", "한국어 조선말", "日本語、ですよ。", "don't can't it's I'M", "CamelCase_snake_case",
        "https://example.org/a?b=c&d=%20", "for (int i = 0; i < n; ++i) {\n\tx += y[i];\n}\n",
        "def f(x):\n    if x:\n        return None\n", "“quoted” ‘single’ — dash… ¿qué?", "ΑΒΓ ς Σ ß İ ı", "Ǆ ǅ ǆ",
        "naïve café Größe", "тест ТЕСТ", "a\u00a0b\u2003c", "\ta\t\tb", "word\n", "\nword", "end.\n\n",
    ]  # fmt: skip
    rng = random.Random(0)
    parts = [part for text in texts if len(text) < 60 for part in (text, text[: len(text) // 2])] + list(" \n\t 字a.")
    texts = dict.fromkeys(texts)
    while len(texts) < n:
        texts["".join(rng.choices(parts, k=rng.randint(2, 7)))] = None
    return list(texts)[:n]


# ---- tokenizers ---------------------------------------------------------------------------------------------


def trained(library: Tokenizer, trainer: type, **options) -> Tokenizer:
    size = {} if trainer is trainers.WordLevelTrainer else {"vocab_size": options.pop("size", 420)}
    library.train_from_iterator(CORPUS, trainer(show_progress=False, **size, **options))
    return library


def byte_level(first_space=False, normalizer=None, split=None, size=420) -> Tokenizer:
    library = Tokenizer(models.BPE())
    whole = splits.ByteLevel(add_prefix_space=first_space, use_regex=split is None)
    library.pre_tokenizer = whole if split is None else splits.Sequence([split, whole])
    library.normalizer, library.decoder = normalizer, decoders.ByteLevel()
    alphabet = sorted(splits.ByteLevel.alphabet())
    return trained(library, trainers.BpeTrainer, size=size, initial_alphabet=alphabet)


def llama_like(kind: str, fallback: bool = True) -> Tokenizer:
    """Metaspace BPE as converted from SentencePiece, with a first space by a normalizer, by Metaspace, or none."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = splits.Metaspace(prepend_scheme="always")
    trained(library, trainers.BpeTrainer, size=420)
    d = json.loads(library.to_str())
    pieces = sorted(d["model"]["vocab"], key=d["model"]["vocab"].get)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256) if fallback), *pieces]
    merges = [tuple(merge) for merge in d["model"]["merges"]]
    vocab = {name: id for id, name in enumerate(names)}
    library = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback))
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:3]])
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    replace = normalizers.Replace(" ", "▁")
    if kind == "prepend":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif kind == "metaspace":
        library.pre_tokenizer = splits.Metaspace(prepend_scheme="first", split=False)
    else:
        library.normalizer, library.pre_tokenizer = replace, splits.Split(" ", "merged_with_previous")
    library.decoder = decoders.Sequence(ends + [decoders.Strip(" ", 1, 0)] * (kind != "gemma"))
    return library


def unigram(kind: str) -> Tokenizer:
    library = Tokenizer(models.Unigram())
    library.pre_tokenizer = splits.Metaspace(prepend_scheme="always")
    library.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"]
    trained(library, trainers.UnigramTrainer, size=400, special_tokens=special, unk_token="<unk>")
    if kind == "fallback":
        d = json.loads(library.to_str())
        pieces = d["model"]["vocab"]
        spelled = [[f"<0x{b:02X}>", 0.0] for b in range(256)]
        d["model"] |= {"vocab": pieces[:3] + spelled + pieces[3:], "byte_fallback": True}
        library = Tokenizer.from_str(json.dumps(d))
        ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        library.decoder = decoders.Sequence(ends)
    else:
        cleans = {"t5": [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")], "albert": [
            normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]}  # fmt: skip
        library.normalizer = normalizers.Sequence(cleans[kind])
    return library


def wordpiece(lowercase: bool) -> Tokenizer:
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    library.pre_tokenizer, library.decoder = splits.BertPreTokenizer(), decoders.WordPiece()
    return trained(library, trainers.WordPieceTrainer, size=400, special_tokens=["[PAD]", "[UNK]"])


def wordlevel(kind: str) -> Tokenizer:
    if kind == "chars with unknown":  # 山水 is two of its seven tokens
        vocab = {name: id for id, name in enumerate(["[UNK]", *"春夏秋冬山水"])}
        library = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
        library.pre_tokenizer = splits.Split(Regex("."), "isolated")
    elif kind == "characters":
        vocab = {char: id for id, char in enumerate(sorted(set("".join([*CORPUS, *awkward_texts()]))))}
        library = Tokenizer(models.WordLevel(vocab))
        library.pre_tokenizer = splits.Split(Regex(r"[\s\S]"), "isolated")
        library.decoder = decoders.Fuse()
    else:
        library = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        library.pre_tokenizer = splits.Whitespace()
        trained(library, trainers.WordLevelTrainer, special_tokens=["[UNK]"])
    return library


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
QWEN = splits.Split(Regex(QWEN + r"|\s+(?!\S)|\s+"), "isolated")
MAKERS = {
    "byte-level BPE, GPT-2's": byte_level,
    "byte-level BPE, Llama-3's": lambda: byte_level(split=QWEN),
    "byte-level BPE, Qwen2's (NFC)": lambda: byte_level(split=QWEN, normalizer=normalizers.NFC()),
    "byte-level BPE, first space": lambda: byte_level(first_space=True),
    "byte-level BPE, no merges": lambda: byte_level(size=256),
    "Metaspace BPE, Llama-2's": lambda: llama_like("prepend"),
    "Metaspace BPE, Llama-2's newer": lambda: llama_like("metaspace"),
    "Metaspace BPE, Gemma's": lambda: llama_like("gemma"),
    "Metaspace BPE without bytes": lambda: llama_like("metaspace", fallback=False),
    "Unigram, byte fallback": lambda: unigram("fallback"),
    "Unigram, T5's": lambda: unigram("t5"),
    "Unigram, ALBERT's": lambda: unigram("albert"),
    "WordPiece, uncased": lambda: wordpiece(lowercase=True),
    "WordPiece, cased": lambda: wordpiece(lowercase=False),
    "WordLevel, words": lambda: wordlevel("words"),
    "WordLevel, characters and [UNK]": lambda: wordlevel("chars with unknown"),
    "WordLevel, characters": lambda: wordlevel("characters"),
}

# ---- folders ------------------------------------------------------------------------------------------------

SHAPES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
# what surrounds a text, where eos is said, and which tokens were added
SPECIALS = ("none", "eos", "bos and eos", "added tokens", "several eos", "tokenizer_config only")
STORAGE = ("one file", "shards", "bf16")


@dataclass
class Case:
    name: str
    shape: str
    specials: str
    tied: bool
    storage: str


def cases() -> list[Case]:
    """Every tokenizer with four or more of the shapes, and every value of each other choice in turn."""
    found, numbers = [], itertools.count()
    for i, name in enumerate(MAKERS):
        for j in range(4):
            n = next(numbers)
            shape = SHAPES[(i + j) % len(SHAPES)]
            specials = SPECIALS[(n + i) % len(SPECIALS)]
            found.append(Case(name, shape, specials, (n // 2 + i) % 2 == 0, STORAGE[(n + j) % len(STORAGE)]))
    return found


def special_tokens(library: Tokenizer, case: Case) -> dict:
    """Adds what the case says to the tokenizer; returns bos_token and eos_token for transformers."""
    known = library.get_vocab()
    bos, eos = ("<s>", "</s>") if "<s>" in known else ("<|startoftext|>", "<|im_end|>")
    if case.specials == "none":
        return {}
    library.add_special_tokens([AddedToken(eos, special=True, normalized=False)])
    named = {"eos_token": eos}
    if case.specials in ("bos and eos", "tokenizer_config only", "several eos"):
        library.add_special_tokens([AddedToken(bos, special=True, normalized=False)])
        named["bos_token"] = bos
    if case.specials in ("bos and eos", "several eos"):
        start = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, library.token_to_id(bos))]
        )
        before = library.post_processor
        library.post_processor = processors.Sequence([before, start]) if before else start
    if case.specials == "added tokens":
        library.add_tokens([
            AddedToken("<tool>", normalized=False), AddedToken("</tool>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("wordless", single_word=True), "    ",
        ])  # fmt: skip
    if case.specials == "several eos":
        library.add_special_tokens([AddedToken("[EOS]", special=True, normalized=False)])
    return named


def random_model(case: Case, vocab_size: int, seed: int):
    common = dict(vocab_size=vocab_size, bos_token_id=None, eos_token_id=None, tie_word_embeddings=case.tied)
    if case.shape == "gpt2":
        config = transformers.GPT2Config(**common, n_positions=640, n_embd=32, n_layer=2, n_head=4)
    else:
        name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[case.shape]
        options = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                       intermediate_size=48, max_position_embeddings=640, pad_token_id=None)  # fmt: skip
        options |= {"sliding_window": None} if case.shape == "mistral" else {}
        config = getattr(transformers, f"{name}Config")(**common, **options)
    model, generator = AutoModelForCausalLM.from_config(config).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (1.0 if p.dim() == 1 else 0.0))
    return model.bfloat16().float() if case.storage == "bf16" else model


@torch.no_grad()
def make_it_end(model, prompt: list[int], eos: int) -> None:
    """Exchanges the rows of eos and of an id that the model writes after the prompt, so that it writes eos there."""
    idx = torch.tensor([prompt])
    new = model.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=12, do_sample=False)
    fresh = [id for id in new[0, len(prompt) + 3 :].tolist() if id not in prompt and id != eos]
    if fresh:
        for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            weight[[eos, fresh[0]]] = weight[[fresh[0], eos]]


def make_folder(case: Case, folder: Path, seed: int) -> None:
    library = MAKERS[case.name]()
    named = special_tokens(library, case)
    model = random_model(case, max(library.get_vocab().values()) + 1, seed)
    PreTrainedTokenizerFast(tokenizer_object=library, **named).save_pretrained(folder)
    ends = [library.token_to_id(named["eos_token"])] if named else []
    if case.specials == "several eos":
        ends.append(library.token_to_id("[EOS]"))
    if ends:
        make_it_end(model, library.encode("山水").ids or [ends[0]], ends[-1])
    if case.specials != "tokenizer_config only":
        bos = library.token_to_id(named["bos_token"]) if "bos_token" in named else None
        model.generation_config.bos_token_id = bos
        model.generation_config.eos_token_id = (ends if len(ends) > 1 else ends[0]) if ends else None
    else:
        model.generation_config.bos_token_id = model.generation_config.eos_token_id = None
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config["eos_token"] = {"__type": "AddedToken", "content": config["eos_token"], "special": True}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    model.generation_config.pad_token_id = None
    model = model.bfloat16() if case.storage == "bf16" else model
    model.save_pretrained(folder, max_shard_size="20KB" if case.storage == "shards" else "1GB")


# ---- what is compared ----------------------------------------------------------------------------------------


class Different(Exception):
    pass


def expect(ours, theirs, what: str) -> None:
    if ours != theirs:
        raise Different(f"{what}: {str(ours)[:150]}, expected {str(theirs)[:150]}")


def ids_or_error(encode) -> list[int] | str:
    try:
        return list(map(int, encode()))
    except Exception:  # the libraries raise no narrower type
        return "an error"


def library_ids(backend: Tokenizer, text: str, special: bool, whole: bool) -> list[int] | str:
    backend.encode_special_tokens = not special
    return ids_or_error(lambda: backend.encode(text, add_special_tokens=whole).ids)


def compare_ids(ours, theirs, texts: list[str]) -> None:
    backend = theirs.backend_tokenizer
    for text in texts:
        plain = library_ids(backend, text, special=False, whole=False)
        expect(ids_or_error(lambda t=text: ours.encode(t)), plain, f"ids of {text!r}")
        special = library_ids(backend, text, special=True, whole=False)
        expect(
            ids_or_error(lambda t=text: ours.encode(t, special=True)), special, f"ids of {text!r} with special tokens"
        )
        prompt = library_ids(backend, text, special=False, whole=True)
        expect(ids_or_error(lambda t=text: ours.encode_document(t)), prompt, f"prompt {text!r}")
        if isinstance(plain, list):
            expect(ours.decode(plain), theirs.decode(plain, skip_special_tokens=True), f"decoded {text!r}")
    backend.encode_special_tokens = False


def compare_greedy(folder: Path, theirs, prompts: list[str]) -> Counter:
    """Texts by sample.py itself; returns how they finished."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    options = "--num_samples=1 --temperature=0 --max_new_tokens=24 --device=cpu --dtype=fp32".split()
    with contextlib.redirect_stdout(io.StringIO()):
        sample.main([f"--init_from={folder}", f"--prompts={folder / 'prompts.jsonl'}", *options,
                     f"--output={folder / 'texts.jsonl'}"])  # fmt: skip
    records = map(json.loads, (folder / "texts.jsonl").read_text(encoding="utf-8").split("\n")[:-1])
    finished = Counter()
    for prompt, record in zip(prompts, records, strict=True):
        ids = library_ids(theirs.backend_tokenizer, prompt, special=False, whole=True)
        idx = torch.tensor([ids])
        ends = model.generation_config.eos_token_id
        ends = theirs.eos_token_id if ends is None else ends
        with torch.no_grad():
            new = model.generate(
                idx, attention_mask=torch.ones_like(idx), max_new_tokens=24, do_sample=False, eos_token_id=ends,
                pad_token_id=0,
            )[0].tolist()  # fmt: skip
        while ids and theirs.convert_ids_to_tokens(ids[-1:])[0].startswith("<0x"):
            ids, new = ids[:-1], new[: len(ids) - 1] + new[len(ids) :]  # bytes after bytes change the prompt's text
        before, after = (theirs.decode(part, skip_special_tokens=True) for part in (ids, new))
        # an incomplete character at the end is left out here
        expected = after[len(before) :].rstrip("\ufffd")
        expect(record["text"].rstrip("\ufffd"), expected, f"text after {prompt!r}")
        expect(record["num_tokens"], len(new) - len(ids), f"number of tokens after {prompt!r}")
        is_end = new[-1] in (ends if isinstance(ends, list) else [ends])
        expect(record["finish"], "end" if is_end else "length", f"finish after {prompt!r}")
        finished[record["finish"]] += 1
    return finished


def compare_export(folder: Path, out: Path, theirs, texts: list[str]) -> None:
    before = {path.name: path.read_bytes() for path in folder.glob("*token*.json")}
    before["generation_config.json"] = (folder / "generation_config.json").read_bytes()
    with contextlib.redirect_stdout(io.StringIO()):
        export.main([f"--init_from={folder}", f"--hf_dir={out}"])
    for name, content in before.items():
        expect((out / name).read_bytes(), content, f"exported {name}")
    again = AutoTokenizer.from_pretrained(out)
    for text in texts:
        for whole in (False, True):
            expected = library_ids(theirs.backend_tokenizer, text, special=True, whole=whole)
            found = library_ids(again.backend_tokenizer, text, special=True, whole=whole)
            expect(found, expected, f"exported ids of {text!r}")
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (folder, out)]
    idx = torch.arange(12)[None] % models[0].config.vocab_size
    with torch.no_grad():
        a, b = (model(idx).logits for model in models)
    if not torch.allclose(a, b, atol=1e-4, rtol=1e-4):
        raise Different(f"exported logits differ by {(a - b).abs().max()}")


def compare(folder: Path, texts: list[str], out: Path) -> tuple[str, Counter]:
    """What the folder came to, and how its greedy texts finished."""
    notes = io.StringIO()
    with contextlib.redirect_stderr(notes):
        try:
            state = load_pretrained(str(folder))
        except ValueError as error:
            return f"refused: {error}", Counter()
    if "tokenizer" not in state:
        return f"refused: {notes.getvalue().strip()}", Counter()
    ours, theirs = tokenizer_from_json(state["tokenizer"]), PreTrainedTokenizerFast.from_pretrained(folder)
    with contextlib.redirect_stderr(notes):
        try:
            compare_ids(ours, theirs, texts)
            encodable = [t for t in texts if t and not t[-1].isspace()]
            prompts = [
                t for t in encodable if library_ids(theirs.backend_tokenizer, t, False, False) not in ([], "an error")
            ]
            prompts = ["山水", *[prompt for prompt in prompts if len(prompt) < 40][:: max(1, len(prompts) // 8)]]
            finished = compare_greedy(folder, theirs, prompts)
            compare_export(folder, out, theirs, texts)
        except Different as error:
            return f"DIFFERENT: {error}", Counter()
    return "equal" + replaced(folder, theirs, texts) + f", bytes refused: {ours.lossy}" * bool(ours.lossy), finished


def replaced(folder: Path, theirs, texts: list[str]) -> str:
    """AutoTokenizer of transformers 5 gives every model of Qwen2's type Qwen2's tokenizer, whatever tokenizer.json
    says."""
    auto = AutoTokenizer.from_pretrained(folder)
    ids = [[library_ids(t.backend_tokenizer, text, False, False) for text in texts] for t in (auto, theirs)]
    return "" if ids[0] == ids[1] else f", not to AutoTokenizer, which takes {type(auto).__name__} for it"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="numbers of folders, as 3,17 (default: all)")
    parser.add_argument("--keep", type=Path, help="where to leave the folders (default: nowhere)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    texts, results, finished = awkward_texts(), defaultdict(list), Counter()
    chosen = [int(n) for n in args.only.split(",")] if args.only else None
    with contextlib.ExitStack() as stack:
        base = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, case in enumerate(cases()):
            if chosen is None or number in chosen:
                folder = base / f"{number}"
                make_folder(case, folder, seed=number)
                found, ends = compare(folder, texts, base / f"{number}-exported")
                finished += ends
                results[case.name].append(found)
                options = f"{case.shape}, {case.specials}, {'tied' if case.tied else 'untied'}, {case.storage}"
                print(f"{number:3} {case.name} ({options}): {found}", flush=True)
        if chosen is None:
            results["refused folders"] += refusals(base)
    print()
    for name, found in results.items():
        print(f"{name:34}" + "; ".join(f"{n} {result}" for result, n in Counter(found).items()))
    every = [result.split(":")[0].split(",")[0] for found in results.values() for result in found]
    print(f"\n{len(every)} folders, {len(texts)} texts each: {dict(Counter(every))}; greedy texts: {dict(finished)}")
    return int("DIFFERENT" in every)


def refusals(base: Path) -> list[str]:
    """What folders come to that cannot be read whole."""

    def edit(**changes):
        def change(folder: Path) -> None:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")

        return change

    def only_sentencepiece(folder: Path) -> None:
        (folder / "tokenizer.json").rename(folder / "tokenizer.model")

    def too_many_ids(folder: Path) -> None:
        library = Tokenizer.from_file(str(folder / "tokenizer.json"))
        library.add_tokens(["one too many"])
        library.save(str(folder / "tokenizer.json"))

    def unknown_model(folder: Path) -> None:
        d = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        d["model"]["type"] = "Morphemes"
        (folder / "tokenizer.json").write_text(json.dumps(d), encoding="utf-8")

    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    changes = [
        only_sentencepiece, too_many_ids, unknown_model, edit(rope_parameters=rope), edit(sliding_window=128),
        edit(model_type="gemma2", architectures=["Gemma2ForCausalLM"]), edit(attn_logit_softcapping=50.0),
    ]  # fmt: skip
    found = []
    for number, change in enumerate(changes):
        folder = base / f"refused-{number}"
        make_folder(Case("Metaspace BPE, Llama-2's", "mistral", "eos", True, "one file"), folder, seed=0)
        change(folder)
        result, _ = compare(folder, [], base / "none")
        found.append(result.replace(f"{folder}{os.sep}", "").replace(str(folder), "the folder"))
        print(f"refused-{number}: {found[-1]}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Tokenizers as llama.cpp reads them from a GGUF: tokens, their types, merges, the name of a pre-tokenizer.

    vocabulary = gguf_vocabulary(tokenizer)      # ValueError, one line, where llama.cpp would give other ids
    vocabulary.tokens[id], vocabulary.types[id], vocabulary.merges, vocabulary.pre

Characters and bytes become a byte-level BPE: the merges of a character join its bytes, and none join two characters.
Of a text with characters that a char tokenizer lacks, which is refused here, llama.cpp leaves these out.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

from data.bpe import TRAIN_PATTERN
from data.plain import EOT, Tokenizer
from data.vocabulary import byte_spellings, list_parts, to_symbols

NO_MERGE = "<|no|> <|merge|>"  # llama.cpp needs a list of merges, and the gguf package writes no empty one
# the pattern of words -> llama.cpp's name for it; published files spell the contractions in another way
_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LLAMA3 = TRAIN_PATTERN.removeprefix(_CONTRACTIONS)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ANY_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PRE_TOKENIZERS = {
    TRAIN_PATTERN: "llama-bpe", _ANY_CASE + _LLAMA3: "llama-bpe",
    _CONTRACTIONS + _QWEN2: "qwen2", _ANY_CASE + _QWEN2: "qwen2", _GPT2: "gpt-2",
}  # fmt: skip
OPENAI = {"gpt2": "gpt-2", "r50k_base": "gpt-2", "p50k_base": "gpt-2"}
FIM = {"pre": "<|fim_prefix|>", "suf": "<|fim_suffix|>", "mid": "<|fim_middle|>", "sep": "<|file_sep|>"}


class TokenType(IntEnum):
    """llama.cpp's enum llama_token_type."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass
class Vocabulary:
    """model: 'gpt2' (byte-level BPE) or 'llama' (SentencePiece's BPE, with scores). ends: the ids that end a text;
    begin: the id that every text begins with. has_extra_end: the last token is not the tokenizer's, see with_end."""

    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] | None = None
    model: str = "gpt2"
    pre: str = "gpt-2"
    ends: list[int] = field(default_factory=list)
    begin: int | None = None
    first_space: bool = False
    has_extra_end: bool = False


def gguf_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """ValueError, with the reason, if llama.cpp has nothing with the same ids."""
    base = tokenizer.base if tokenizer.kind == "extended" else tokenizer
    made = MAKERS[base.kind](base)
    if tokenizer.kind == "extended":
        made.tokens += tokenizer.added
        made.types += [TokenType.CONTROL] * len(tokenizer.added)
        made.scores = made.scores and made.scores + [0.0] * len(tokenizer.added)
        if made.first_space and not tokenizer.space_after_special:
            raise refusal(base, "it puts a space before texts, but not behind special tokens")
    made.tokens = [token or f"[UNUSED_{id}]" for id, token in enumerate(made.tokens)]
    twice = len(made.tokens) - len(set(made.tokens))
    if twice:
        raise refusal(base, f"{twice} tokens are spelled as others, and llama.cpp tells them apart by their spelling")
    made.ends = list(tokenizer.ends) or made.ends
    begin = list(tokenizer.begin)
    if len(begin) > 1:
        raise refusal(base, f"{len(begin)} ids begin every text, and llama.cpp has one for that")
    made.begin = begin[0] if begin else None
    return made if made.ends else with_end(made)


def refusal(tokenizer: Tokenizer, reason: str, remedy: str = "") -> ValueError:
    remedy = remedy or "--hf_dir=FOLDER writes the model for transformers"
    return ValueError(f"llama.cpp cannot give the ids of this {tokenizer.kind} tokenizer: {reason}; {remedy}")


def with_end(made: Vocabulary) -> Vocabulary:
    """Adds an end of text, since without one llama.cpp takes token 11 for it. Its row in the model is the mean of all
    others, so that its logit is their mean and never the highest."""
    made.tokens.append(EOT)
    made.types.append(TokenType.CONTROL)
    made.ends, made.has_extra_end = [len(made.tokens) - 1], True
    return made


def bytes_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """0xFF is in no UTF-8 text: where it is not the end of text, it never occurs, and can be it as well."""
    tokens = [EOT if b == 255 else to_symbols(bytes([b])) for b in range(256)]
    return Vocabulary(tokens, [TokenType.NORMAL] * 255 + [TokenType.CONTROL], [NO_MERGE], ends=[255])


def chars_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    symbols = [to_symbols(char.encode()) for char in tokenizer.chars]
    merges = {f"{s[:i]} {s[i]}": None for s in symbols for i in range(1, len(s))}
    has_end = tokenizer.eot is not None
    types = [TokenType.NORMAL] * len(symbols) + [TokenType.CONTROL] * has_end
    return Vocabulary(symbols + [EOT] * has_end, types, list(merges) or [NO_MERGE])


def tiktoken_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    if tokenizer.name not in OPENAI:
        raise refusal(tokenizer, f"{tokenizer.name} splits texts into other words, as in white space at a text's end")
    tokens = [to_symbols(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)]
    merges = [" ".join(tokens[part] for part in tokenizer.unmerge(id)) for id, t in enumerate(tokens) if len(t) > 1]
    types = [TokenType.NORMAL if token else TokenType.UNUSED for token in tokens]
    for name, id in tokenizer.special_tokens.items():
        tokens[id], types[id] = name, TokenType.CONTROL
    return Vocabulary(tokens, types, merges, pre=OPENAI[tokenizer.name])


def trimmed_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    reason = "it splits removed tokens after merging, and llama.cpp drops their text"
    raise refusal(tokenizer, reason, "prepare the data without --trim, or with --tokenizer=bpe, and train on that")


def json_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Of the text of a tokenizer.json: kinds bpe and json."""
    d = json.loads(tokenizer.to_json()["tokenizer"])
    model, splits = d["model"], list_parts(d.get("pre_tokenizer"))
    if model.get("type", "BPE") != "BPE" or getattr(tokenizer, "lossy", None):
        raise refusal(tokenizer, getattr(tokenizer, "lossy", None) or f"its model is {model.get('type')}")
    changed = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if changed:
        raise refusal(tokenizer, f"it has a {changed[0]}")
    tokens, types = tokens_and_types(d, tokenizer.vocab_size)
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    if not any(split["type"] == "ByteLevel" for split in splits):
        if not model.get("byte_fallback"):
            raise refusal(tokenizer, "it is neither byte-level nor has it a fallback to bytes")
        return spm_vocabulary(tokenizer, splits, tokens, types, merges)
    normalizers = {part["type"] for part in list_parts(d.get("normalizer"))}
    if normalizers - {"NFC"}:
        raise refusal(tokenizer, f"it changes texts before it splits them ({', '.join(normalizers)})")
    if normalizers:
        note = "llama.cpp does not compose characters (NFC) as this tokenizer does: most texts are composed already"
        print(f"note: {note}", file=sys.stderr)
    pre = pre_tokenizer(tokenizer, splits)
    ignores = bool(model.get("ignore_merges"))
    if pre == "llama-bpe" and not ignores and not reaches_its_tokens(tokenizer, tokens, types):
        pre = "smaug-bpe"  # the same words, but merges decide also about those that are a token
    elif pre != "llama-bpe" and ignores:
        raise refusal(tokenizer, f"llama.cpp applies merges with the pre-tokenizer {pre}, but ignore_merges is set")
    return Vocabulary(tokens, types, merges or [NO_MERGE], pre=pre)


def tokens_and_types(d: dict, n_ids: int) -> tuple[list[str], list[int]]:
    tokens, types = [""] * n_ids, [TokenType.UNUSED] * n_ids
    bytes_ = set(byte_spellings(fallback=True)) if d["model"].get("byte_fallback") else set()
    for token, id in d["model"]["vocab"].items():
        tokens[id], types[id] = token, TokenType.BYTE if token in bytes_ else TokenType.NORMAL
        if token == d["model"].get("unk_token"):
            types[id] = TokenType.UNKNOWN
    for token in d.get("added_tokens") or []:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    return tokens, types


def pre_tokenizer(tokenizer: Tokenizer, splits: list[dict]) -> str:
    """llama.cpp's name for what separates the words of a byte-level BPE."""
    *others, level = splits
    if level["type"] == "ByteLevel" and not level.get("add_prefix_space"):
        if not others and level.get("use_regex", True):
            return "gpt-2"
        digits = {"type": "Digits", "individual_digits": True}
        if others == [digits] and level.get("use_regex", True):
            return "starcoder"
        if len(others) == 1 and others[0]["type"] == "Split" and not level.get("use_regex", True):
            split, pattern = others[0], others[0]["pattern"].get("Regex")
            is_plain = split["behavior"] == "Isolated" and not split.get("invert")
            if is_plain and pattern in PRE_TOKENIZERS:
                return PRE_TOKENIZERS[pattern]
    remedy = "prepare the data anew with --tokenizer=bpe, whose words llama.cpp knows"
    raise refusal(tokenizer, "it has no pre-tokenizer that ends words in the same places", remedy)


def reaches_its_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> bool:
    """Whether the merges make each token that is a word of its own, which llama-bpe takes without them."""
    library = tokenizer._tokenizer if tokenizer.kind == "bpe" else tokenizer._library(special=False, inside=True)
    for id, kind in enumerate(types):
        if kind != TokenType.NORMAL:
            continue
        try:
            text = tokenizer.token_bytes(id).decode()
        except UnicodeDecodeError:
            continue  # a part of a character, so no word
        if library.encode(text, add_special_tokens=False).ids != [id]:
            if len(library.pre_tokenizer.pre_tokenize_str(text)) == 1:
                return False
    return True


def spm_vocabulary(
    tokenizer: Tokenizer, splits: list[dict], tokens: list[str], types: list[int], merges: list[str]
) -> Vocabulary:
    """SentencePiece's BPE (Llama-2, Mistral): it joins any two tokens that make one, by the score of that one. The
    merges of a tokenizer.json say the same if they are all such pairs, ordered by what they make."""
    if any(split["type"] != "Metaspace" or split.get("split", False) for split in splits):
        raise refusal(tokenizer, "it splits texts into words before merging, and llama.cpp does not for this kind")
    known = {token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.NORMAL}
    made = ["".join(merge.split(" ")) for merge in merges]
    order = {token: -float(rank) for rank, token in enumerate(dict.fromkeys(made))}
    pairs = sum(token[:i] in known and token[i:] in known for token in known for i in range(1, len(token)))
    in_order = all(order[a] >= order[b] for a, b in pairwise(made))
    if pairs != len(merges) or not in_order:
        raise refusal(tokenizer, "its merges are not those of a SentencePiece model")
    scores = [order.get(token, -float(len(order))) for token in tokens]
    return Vocabulary(tokens, types, scores=scores, model="llama", pre="default", first_space=tokenizer.first_space)


MAKERS = {
    "byte": bytes_vocabulary, "char": chars_vocabulary, "tiktoken": tiktoken_vocabulary, "bpe": json_vocabulary,
    "json": json_vocabulary, "trimmed": trimmed_vocabulary,
}  # fmt: skip


def special_id_fields(made: Vocabulary, special_tokens: dict[str, int]) -> Iterable[tuple[str, int]]:
    """tokenizer.ggml's keys for single ids. llama.cpp ends texts at eos, eot and eom; what has no bos begins with
    nothing, but other programs expect the id."""
    yield from zip(("eos", "eot", "eom"), made.ends, strict=False)
    yield "bos", made.ends[0] if made.begin is None else made.begin
    yield from ((f"fim_{key}", special_tokens[name]) for key, name in FIM.items() if name in special_tokens)

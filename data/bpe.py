"""Byte-level BPE, trained here or published, whose texts survive byte for byte; and such a vocabulary, trimmed."""

import heapq
import itertools
import json
import math
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from data.plain import EOT, Tokenizer, checked_ids, code_points, dtype_of_ids, encode_around, utf8
from data.vocabulary import (
    bpe_token_bytes,
    byte_spellings,
    list_parts,
    parse_bpe,
    read_ranks,
    read_tokenizer_json,
    to_symbols,
)

# End of text as others spell it: Llama-3; Llama-2 and Mistral; Gemma; DeepSeek
EOTS = (EOT, "<|end_of_text|>", "</s>", "<eos>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
SPACE_SIGN = "\u2581"  # stands for a space in the tokens of Llama-2
PIECE_CHARS = 1 << 16  # longer texts go to the libraries in pieces of about this many characters, in parallel
GROUP = 16  # pieces held as Python objects at a time
TRAIN_BUDGET = 64_000_000  # of BPETokenizer.train, in _sample's units: 64 MB of English, 2.5 million Han characters

# Unicode White_Space, which is what \s means to the libraries (Python's \s has four more control characters).
SPACE = r" \t-\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
IS_SPACE = re.compile(f"[{SPACE}]").match
# Between a letter and one of these, the patterns of GPT-2, GPT-4 and WORDS always end a pre-token.
STOPS = " \t\n\r\u3000,.;:!?，。、；：！？"
CUT = re.compile(rf"[A-Za-z\u4e00-\u9fa5](?=[{STOPS}])")
PROBE = "".join(letter + stop for stop in STOPS for letter in "Az文é")
# OpenAI's patterns also end one before the last of several spaces, from GPT-4 on unless that is a newline.
# tiktoken needs that cut: its regex engine fails on several hundred thousand spaces followed by text.
CUT_GPT2 = re.compile(CUT.pattern + rf"|[{SPACE}](?=[{SPACE}][^{SPACE}])")
CUT_GPT4 = re.compile(CUT.pattern + rf"|[{SPACE}](?=(?![\r\n])[{SPACE}][^{SPACE}])")

# OpenAI's patterns with possessive quantifiers: the same matches, without backtracking where runs can be long
PATTERN_GPT2 = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
PATTERN_GPT4 = (
    r"'(?i:s|t|re|ve|m|ll|d)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
PATTERN_GPT4O = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"(?:[^\S\r\n]*+[\r\n]++)++",
        r"\s++$|\s+(?!\S)|\s",
    ]
)
_CL100K = (EOT, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_CL100K_SPECIAL = {**{name: 100257 + i for i, name in enumerate(_CL100K)}, "<|endofprompt|>": 100276}
# name: pattern, the cuts it allows, number of ids up to the last merge, special tokens
OPENAI_ENCODINGS = {
    "gpt2": (PATTERN_GPT2, CUT_GPT2, 50256, {EOT: 50256}),
    "r50k_base": (PATTERN_GPT2, CUT_GPT2, 50256, {EOT: 50256}),
    "p50k_base": (PATTERN_GPT2, CUT_GPT2, 50281, {EOT: 50256}),
    "cl100k_base": (PATTERN_GPT4, CUT_GPT4, 100256, _CL100K_SPECIAL),
    "o200k_base": (PATTERN_GPT4O, CUT_GPT4, 199998, {EOT: 199999, "<|endofprompt|>": 200018}),
}

# The words within which BPETokenizer.train merges: Llama-3's, spelled as llama.cpp does, which knows words by name only
# and so gives the same ids (export.py --gguf).
TRAIN_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# For code: a newline takes the following indentation along, and Han are apart from other letters. llama.cpp has no such
# words. Bytes per token on held-out text at 8,192 ids, with GPT-2's words, TRAIN_PATTERN and this one: Python's library
# 3.91, 3.94, 4.10; Hongloumeng 4.50, 4.90, 4.90; Shakespeare 3.19, 3.59, 3.60.
_MARK = r"[^\s\p{L}\p{M}\p{N}]"
_NEWLINE = r"[\r\n]{1,16}[ \t]{0,64}"
CODE_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{M}\p{N}]?(?:(?!\p{Han})[\p{L}\p{M}]){1,32}",
        rf"{_MARK}?\p{{Han}}{{1,16}}",
        r"\p{N}{1,3}",
        rf" ?{_MARK}{{1,32}}(?:{_NEWLINE})?",
        rf"\s{{0,64}}{_NEWLINE}",
        r"\s{1,64}(?!\S)",
        r"\s",
    ]
)
WORDS = {"bpe": TRAIN_PATTERN, "bpe_code": CODE_PATTERN}
# Merges are learned in pieces of words: time grows with the square of their length, and Chinese without punctuation is
# a single one. Of CODE_PATTERN's, only white space can be longer.
LEARNED_RUNS = r"[\s\S]{1,128}"


class BPETokenizer(Tokenizer):
    """BPE by the `tokenizers` library from the text of a tokenizer.json: byte-level (GPT-2, Qwen2, Llama-3), or of
    characters with a fallback to bytes (Llama-2, Mistral, Gemma).

    Texts survive unchanged: parse_bpe drops what such files do to them. Llama-2's puts a space before every text:
    encode(" " + text) gives its ids. Its sign for a space, when typed, becomes three byte tokens.
    """

    kind = "bpe"

    def __init__(self, tokenizer_json: str, source: str = "tokenizer.json"):
        """ValueError, naming `source`, if the file is no such BPE or changes the text."""
        from tokenizers import Tokenizer as LibraryTokenizer

        d = parse_bpe(tokenizer_json, source)
        self._json = json.dumps(d, ensure_ascii=False, separators=(",", ":"))
        try:
            self._tokenizer = LibraryTokenizer.from_str(self._json)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{source}: not a tokenizer.json that `tokenizers` can read: {error}") from None
        self._tokenizer.encode_special_tokens = True  # special tokens typed in a text are text
        self._fallback = bool(d["model"].get("byte_fallback"))
        self._ids = self._tokenizer.get_vocab()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_tokens = {token.content: id for id, token in added.items() if token.special}
        self._added = {id: token.content for id, token in added.items() if not token.special}
        self._bytes = bpe_token_bytes(self._ids, added, self._fallback, source)
        self.byte_ids = [self._ids[symbol] for symbol in byte_spellings(self._fallback)]
        self.vocab_size = len(self._bytes)
        self.eot = next((self.special_tokens[name] for name in EOTS if name in self.special_tokens), None)

        self._cut = self._pairs = None  # no cuts until they are known
        for text in f" {PROBE}", "  \0\ufeffe\u03018\U0001f642\u2581\r\n\t":
            echo = self.decode(self.encode(text))
            if echo != text:
                raise ValueError(f"{source}: {text!r} comes back as {echo!r}, expected the same text")
        self._learn_cuts(list_parts(d.get("pre_tokenizer")))

    def _learn_cuts(self, splits: list[dict]) -> None:
        """CUT, if words end there and no added token contains it. Without words, as in Llama-2, BPE itself allows a cut
        between any two characters that are adjacent in no token."""
        texts = list(self._added.values())
        wordless = all(s["type"] == "Metaspace" or "String" in s.get("pattern", ()) for s in splits)
        if self._fallback and wordless:
            texts += [token.replace(SPACE_SIGN, " ") for token in self._ids]
            self._pairs = {a + b for text in texts for a, b in itertools.pairwise(text)}
        elif not any(find_cut(text, 0) > 0 for text in texts):
            words = self._tokenizer.pre_tokenizer and self._tokenizer.pre_tokenizer.pre_tokenize_str(PROBE)
            if {m.end() for m in CUT.finditer(PROBE)} <= {end for _, (_, end) in words or ()}:
                self._cut = CUT

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (),
        budget: int = TRAIN_BUDGET,
        words: str = TRAIN_PATTERN,
    ) -> "BPETokenizer":
        """Learn merges from a stream of texts; the same texts give the same ids on any number of threads.

        The ids are 256 bytes, then merges, then end of text and the other special tokens. vocab_size counts all of
        these; a text with too few repeated pairs gives a smaller vocabulary. `words`: the pattern of the words within
        which it merges. Of a corpus beyond `budget`, a fixed random sample is used: see _sample.
        """
        special = list(dict.fromkeys([EOT, *special_tokens]))
        if vocab_size < 256 + len(special) or "" in special:
            raise ValueError(
                f"bpe tokenizer: vocab_size is {vocab_size}, expected at least {256 + len(special)}: 256 bytes and "
                f"{', '.join(special)}"
            )
        sample = _sample([texts] if isinstance(texts, str) else texts, budget)
        tokenizer = _learn(sample, vocab_size - len(special), words)
        learned = [token for token in special if tokenizer.token_to_id(token) is not None]
        if learned:
            raise ValueError(
                f"bpe tokenizer: special token {learned[0]!r} was also learned as an ordinary token; choose a rarer "
                "spelling, such as <|name|>"
            )
        tokenizer.add_special_tokens(special)
        return cls(tokenizer.to_str())

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "BPETokenizer":
        """From a tokenizer.json, possibly xz-compressed, or its folder. eot is the first of EOTS it has."""
        return cls(*read_tokenizer_json("", path))

    def _encode(self, text: str, num_threads: int | None) -> np.ndarray:
        if self._fallback and SPACE_SIGN in text:
            sign = [self.byte_ids[b] for b in SPACE_SIGN.encode()]
            return encode_around(text, {SPACE_SIGN: sign}, self, num_threads)

        def encode_batch(pieces: list[str]) -> Iterable[list[int]]:  # a batch uses RAYON_NUM_THREADS, one piece one
            return (e.ids for e in self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False))

        group = 1 if num_threads == 1 else GROUP
        return _encode_pieces(text, self.find_cut, encode_batch, dtype_of_ids(self.vocab_size), group)

    def find_cut(self, text: str, start: int) -> int:
        if self._pairs is None:
            return _search(self._cut, text, start) if self._cut else -1
        return next((i for i in range(max(start, 1), len(text)) if text[i - 1 : i + 1] not in self._pairs), -1)

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """The merged pairs of tokens, spelled as in the file, in order of priority."""
        merges = json.loads(self._json)["model"]["merges"]
        return [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}

    @cached_property
    def _spelling(self) -> dict[int, str]:
        return {id: token for token, id in self._ids.items()}

    def unmerge(self, id: int) -> list[int]:
        """The ids (mostly two) that the last merge joins into this one, or those of its bytes; [] for a byte."""
        if id in self.byte_ids or not self._bytes[id]:
            return []
        token, rank = self._spelling[id], self._ranks.get
        parts = _merge(list(token), lambda a, b: rank((a, b), math.inf) if a + b != token else math.inf)
        ids = [self._ids[part] for part in parts if part in self._ids]
        if len(ids) > 1 and b"".join(map(self._bytes.__getitem__, ids)) == self._bytes[id]:
            return ids
        return [self.byte_ids[b] for b in self._bytes[id]]  # a single character, or an added token

    def to_json(self) -> dict:
        """ "tokenizer" is the text of the tokenizer.json, without what parse_bpe drops."""
        return {"kind": "bpe", "tokenizer": self._json}


class TiktokenTokenizer(Tokenizer):
    """A vocabulary of OPENAI_ENCODINGS through tiktoken: byte strings by merge rank, and special tokens."""

    kind = "tiktoken"

    def __init__(self, name: str = "gpt2", file: str | os.PathLike | None = None, tokens: list[bytes] | None = None):
        """The vocabulary is `tokens`, in id order (b"" for none), or else what read_ranks finds."""
        import tiktoken

        if name not in OPENAI_ENCODINGS:
            raise ValueError(f"tiktoken tokenizer: unknown name {name!r}, expected {', '.join(OPENAI_ENCODINGS)}")
        pattern, self._cut, size, self.special_tokens = OPENAI_ENCODINGS[name]
        tokens = read_ranks(name, file) if tokens is None else tokens
        self.ranks = {token: id for id, token in enumerate(tokens) if token}
        expected = size - sum(id < size for id in self.special_tokens.values())
        if len(tokens) != size or len(self.ranks) != expected:
            raise ValueError(f"tiktoken tokenizer: {len(self.ranks)} distinct tokens, expected {name}'s {expected}")
        self.name, self.pattern = name, pattern
        self.eot = self.special_tokens[EOT]
        self.vocab_size = max(size, *(id + 1 for id in self.special_tokens.values()))
        self.byte_ids = [self.ranks[bytes([b])] for b in range(256)]
        self._bytes = [*tokens, *[b""] * (self.vocab_size - size)]
        self._encoding = tiktoken.Encoding(
            name, pat_str=pattern, special_tokens=self.special_tokens, mergeable_ranks=self.ranks
        )

    def _encode(self, text: str, num_threads: int | None) -> np.ndarray:
        threads = num_threads or os.cpu_count() or 1

        def encode_piece(piece: str) -> np.ndarray:
            return self._encoding.encode_to_numpy(piece, disallowed_special=())

        def encode_batch(pieces: list[str]) -> Iterable[np.ndarray]:
            if threads == 1 or len(pieces) == 1:
                return map(encode_piece, pieces)
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(encode_piece, pieces))

        return _encode_pieces(text, self.find_cut, encode_batch, dtype_of_ids(self.vocab_size), GROUP)

    def find_cut(self, text: str, start: int) -> int:
        i = _search(self._cut, text, start)
        while self.name == "cl100k_base" and not {"\r", "\n"}.isdisjoint(_spaces_before(text, i)):
            i = _search(self._cut, text, i + 1)  # its \s++$ would make one word of the newline and the spaces
        return i

    def unmerge(self, id: int) -> list[int]:
        """The ids (mostly two) that the last merge joins into this one; [] for a byte."""
        token, rank = self._bytes[id], self.ranks.get
        parts = [token[i : i + 1] for i in range(len(token))]
        parts = _merge(parts, lambda a, b: r if (r := rank(a + b, math.inf)) < id else math.inf)
        return [self.ranks[part] for part in parts] if len(parts) > 1 else []

    def to_json(self) -> dict:
        """ "tokens" is the vocabulary in id order, spelled as in encoder.json and separated by spaces."""
        size = OPENAI_ENCODINGS[self.name][2]
        return {"kind": "tiktoken", "name": self.name, "tokens": " ".join(map(to_symbols, self._bytes[:size]))}


class TrimmedTokenizer(Tokenizer):
    """The ids of a bpe or tiktoken tokenizer that a text uses, renumbered: most of a large vocabulary's embeddings
    would never be trained on a small corpus.

    All single bytes and special tokens are kept too, so any text has ids: a dropped token is split into the two that
    its last merge joined, and those in turn, until all parts are kept.
    """

    kind = "trimmed"

    def __init__(self, base: BPETokenizer | TiktokenTokenizer, ids: Sequence[int]):
        """New id i stands for ids[i] of `base`."""
        self.check(base)
        self.base, self.ids = base, checked_ids(ids, base.vocab_size)
        self._new = np.full(base.vocab_size, -1, np.int32)  # base's id -> ours, -1 = dropped
        self._new[self.ids] = np.arange(len(self.ids))
        if len(set(ids)) != len(ids) or (self._new[base.byte_ids] < 0).any():
            raise ValueError(f"trimmed tokenizer: {len(ids)} ids, expected distinct ones that include all 256 bytes")
        self.vocab_size = len(self.ids)
        kept = {name: int(self._new[id]) for name, id in base.special_tokens.items()}
        self.special_tokens = {name: id for name, id in kept.items() if id >= 0}
        self.eot = None if base.eot is None or self._new[base.eot] < 0 else int(self._new[base.eot])
        self._bytes = [base._bytes[id] for id in self.ids]
        self._parts: dict[int, list[int]] = {}  # base's dropped id -> our ids, filled as texts need them

    @staticmethod
    def check(base: Tokenizer) -> None:
        """ValueError for a kind that cannot be trimmed."""
        if base.kind not in ("bpe", "tiktoken"):
            raise ValueError(f"a {base.kind} tokenizer cannot be trimmed; expected bpe or tiktoken")

    @classmethod
    def train(cls, base: BPETokenizer | TiktokenTokenizer, texts: Iterable[str], min_count: int = 1):
        """Keep the ids that occur at least min_count times in the encoded `texts`."""
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}, expected at least 1")
        cls.check(base)
        counts = np.zeros(base.vocab_size, np.int64)
        for text in [texts] if isinstance(texts, str) else texts:
            np.add.at(counts, base.encode(text), 1)
        counts[[*base.byte_ids, *base.special_tokens.values()]] = min_count
        return cls(base, np.flatnonzero(counts >= min_count).tolist())

    def _encode(self, text: str, num_threads: int | None) -> np.ndarray:
        old = self.base.encode(text, num_threads=num_threads)
        new = self._new[old]
        dropped = new < 0
        if dropped.any():
            parts = [self._parts.get(id) or self._take_apart(id) for id in old[dropped].tolist()]
            lengths = np.ones(len(old), np.int64)
            lengths[dropped] = [len(part) for part in parts]
            new = np.repeat(new, lengths)
            new[np.repeat(dropped, lengths)] = list(itertools.chain.from_iterable(parts))
        return new.astype(dtype_of_ids(self.vocab_size))

    def _take_apart(self, id: int) -> list[int]:
        if self._new[id] >= 0:
            return [int(self._new[id])]
        if id not in self._parts:
            self._parts[id] = [new for part in self.base.unmerge(id) for new in self._take_apart(part)]
        return self._parts[id]

    def find_cut(self, text: str, start: int) -> int:
        return self.base.find_cut(text, start)

    def to_json(self) -> dict:
        return {"kind": "trimmed", "base": self.base.to_json(), "ids": self.ids.tolist()}


# ---- texts in pieces ---------------------------------------------------------------------------------------


def find_cut(text: str, start: int) -> int:
    """The first i >= start, 0 < i < len(text), at which CUT allows a text to be cut; -1 if there is none.

    There encode(text[:i]) followed by encode(text[i:]) is encode(text), however the text continues: for the byte, char
    and tiktoken kinds, for bpe trained here, and for all common files. tokenizer.find_cut guarantees the same for that
    tokenizer; it knows more places, or that an unusual file has none.
    """
    return _search(CUT, text, start)


def _search(cut: re.Pattern, text: str, start: int) -> int:
    match = cut.search(text, max(start - 1, 0))
    return match.end() if match else -1


def _spaces_before(text: str, end: int) -> str:
    start = end
    while start > 0 and IS_SPACE(text, start - 1):
        start -= 1
    return text[start:end]


def _pieces(text: str, find_cut: Callable[[str, int], int]) -> Iterator[str]:
    """`text` in pieces, each up to the first cut after PIECE_CHARS characters, or to the end if there is none."""
    utf8(text)  # for its error
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = find_cut(text, start + PIECE_CHARS)
        if end < 0:
            break
        yield text[start:end]
        start = end
    yield text[start:]


def _encode_pieces(text: str, find_cut: Callable, encode_batch: Callable, dtype: type, group: int) -> np.ndarray:
    """encode_batch takes a list of up to `group` pieces and returns an iterable of their ids."""
    pieces, ids = _pieces(text, find_cut), []
    while batch := list(itertools.islice(pieces, group)):
        ids += [np.asarray(piece, dtype) for piece in encode_batch(batch)]
    return np.concatenate(ids)


def _sample(texts: Iterable[str], budget: int) -> Iterator[str]:
    """The pieces of `texts`, or, if they cost more than `budget`, a random selection that fits it, the same each time.

    The cost is memory: training keeps every distinct word. A letter of a script with spaces costs little and counts 1;
    one from U+0800 on, where scripts without spaces are, counts 25 (some 250 bytes).
    """
    rng, cost, places = random.Random(0), 0, itertools.count()
    kept = []  # a heap of (-draw, place, price, piece): the highest draws leave first
    for text in texts:
        for long in _pieces(text, find_cut):
            for i in range(0, len(long), 4 * PIECE_CHARS):  # a text without cuts loses one word here
                piece = long[i : i + 4 * PIECE_CHARS]
                price = len(piece) + 24 * int((code_points(piece) >= 0x800).sum())
                heapq.heappush(kept, (-rng.random(), next(places), price, piece))
                cost += price
                while cost > budget and len(kept) > 1:
                    cost -= heapq.heappop(kept)[2]
    return (piece for *_, piece in sorted(kept, key=lambda entry: entry[1]))


def _learn(texts: Iterator[str], vocab_size: int, words: str):
    """The library's tokenizer with the bytes and the merges that it learns from the texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split, shorten = (pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (words, LEARNED_RUNS))
    to_byte_symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, shorten, to_byte_symbols])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_byte_symbols])
    return tokenizer


def _merge(parts: list, rank: Callable) -> list:
    """BPE of a few parts: repeatedly joins the first pair of lowest rank, until all ranks are infinite."""
    while len(parts) > 1:
        ranks = [rank(a, b) for a, b in itertools.pairwise(parts)]
        i = ranks.index(min(ranks))
        if ranks[i] == math.inf:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts

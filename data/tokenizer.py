"""Tokenizers: text to ids and back, as bytes, as characters, or as byte-level BPE, ours or anyone's.

    from data.tokenizer import make_tokenizer, tokenizer_from_json, BPETokenizer, TrimmedTokenizer, ...
    tokenizer = make_tokenizer("bpe", texts, vocab_size=8192)  # what --tokenizer=... names; see there
    tokenizer = CharTokenizer.train([text])                    # nanoGPT's character vocabulary
    tokenizer = BPETokenizer.train(texts, 4096)                # byte-level BPE, trained here
    tokenizer = BPETokenizer.from_file("tokenizer.json")       # Qwen2, Llama-2, Llama-3, GPT-2, ...
    tokenizer = TiktokenTokenizer("cl100k_base")               # or ("gpt2", "encoder.json" or its folder)
    tokenizer = TrimmedTokenizer.train(tokenizer, texts)       # the ids that the texts use, and all bytes
    ids = tokenizer.encode("To be")                            # 1-D uint16, uint32 above 65,536 ids
    same = tokenizer_from_json(tokenizer.to_json())            # needs no other file; goes into checkpoints

Every kind has .kind, .vocab_size, .eot (the end-of-text id or None), .special_tokens (spelling -> id), and
    encode(text, special=False, num_threads=None)   ids; their bytes, joined, are the text's UTF-8
    decode(ids), token_bytes(id)                    special tokens and unused ids stand for no text
    find_cut(text, start)                           where a text may be cut: see the function find_cut
    to_json()                                       a dict that rebuilds it
A special token that is typed in a text is plain text, unless encode is asked for special=True. num_threads=1
keeps to one core, for workers that share a machine. An id outside 0..vocab_size-1 is a ValueError.
"""

import codecs
import hashlib
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
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from data.vocabulary import (
    HUB,
    bpe_token_bytes,
    byte_spellings,
    from_symbols,
    list_parts,
    parse_bpe,
    read_ranks,
    read_tokenizer_json,
    to_symbols,
)

EOT = "<|endoftext|>"
# what vocabularies call it: GPT-2's, Qwen2's, ours; Llama-3's; Llama-2's and Mistral's; Gemma's; DeepSeek's
EOTS = (EOT, "<|end_of_text|>", "</s>", "<eos>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
SPACE_SIGN = "\u2581"  # in the tokens of Llama-2's kind
PIECE_CHARS = 1 << 16  # characters: longer texts go to the libraries in pieces of about this size, in parallel
GROUP = 16  # pieces held as Python objects at a time
CACHED_CHARS = 1 << 14  # characters that numpy works on at a time: what its steps leave stays in the processor's cache
TRAIN_BUDGET = 64_000_000  # of BPETokenizer.train, as _sample counts: 64 MB of English, 2.5 million Han

# Unicode White_Space, which is what \s means to the libraries (Python's \s has four control characters more).
SPACE = r" \t-\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
IS_SPACE = re.compile(f"[{SPACE}]").match
# Between a letter and one of these, GPT-2's pattern, GPT-4's and ours end a pre-token, whatever is around.
STOPS = " \t\n\r\u3000,.;:!?，。、；：！？"
CUT = re.compile(rf"[A-Za-z\u4e00-\u9fa5](?=[{STOPS}])")
PROBE = "".join(letter + stop for stop in STOPS for letter in "Az文é")
# OpenAI's patterns also end one before the last of several spaces, from GPT-4 on if that is no newline.
# tiktoken needs that cut: its regex engine gives up on some hundred thousand spaces followed by text.
CUT_GPT2 = re.compile(CUT.pattern + rf"|[{SPACE}](?=[{SPACE}][^{SPACE}])")
CUT_GPT4 = re.compile(CUT.pattern + rf"|[{SPACE}](?=(?![\r\n])[{SPACE}][^{SPACE}])")

# OpenAI's patterns with possessive quantifiers, the same matches without backtracking where runs can be long
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
_FIM = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
# name: pattern, cuts that it allows, ids up to the last merge's, special tokens
OPENAI_ENCODINGS = {
    "gpt2": (PATTERN_GPT2, CUT_GPT2, 50256, {EOT: 50256}),
    "r50k_base": (PATTERN_GPT2, CUT_GPT2, 50256, {EOT: 50256}),
    "p50k_base": (PATTERN_GPT2, CUT_GPT2, 50281, {EOT: 50256}),
    "cl100k_base": (
        PATTERN_GPT4,
        CUT_GPT4,
        100256,
        {EOT: 100257, **dict(zip(_FIM, range(100258, 100261), strict=True)), "<|endofprompt|>": 100276},
    ),
    "o200k_base": (PATTERN_GPT4O, CUT_GPT4, 199998, {EOT: 199999, "<|endofprompt|>": 200018}),
}

# How BPETokenizer.train cuts text into words before it merges. GPT-4's shape, except that a line's end takes
# the indentation after it along, and that every run has a longest length, Han apart from other letters (there
# are no spaces in Chinese: a "word" could be a page). Bytes per token on held-out text at 4,096 ids, GPT-2's
# pattern and this one: Python's library 3.41 and 3.60, Hongloumeng 4.06 and 4.31, Shakespeare 2.90 and 3.24.
_MARK = r"[^\s\p{L}\p{M}\p{N}]"
_NEWLINE = r"[\r\n]{1,16}[ \t]{0,64}"
TRAIN_PATTERN = "|".join(
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


class ByteTokenizer:
    """Ids are the bytes of UTF-8. eot=255 makes 0xFF, which is in no UTF-8 text, the end-of-text id."""

    kind = "byte"
    vocab_size = 256

    def __init__(self, eot: int | None = None):
        if eot not in (None, 255):
            raise ValueError(f"byte tokenizer: eot is {eot!r}, expected None or 255 (in no text)")
        self.eot = eot
        self.special_tokens = {} if eot is None else {EOT: eot}

    def encode(self, text: str, special: bool = False, num_threads: int | None = None) -> np.ndarray:
        if special:
            return _encode_special(self, text, num_threads)
        return np.frombuffer(_to_bytes(text), np.uint8).astype(np.uint16)

    def decode(self, ids) -> str:
        ids = _check_ids(ids, self.vocab_size)
        if self.eot is not None:
            ids = ids[ids != self.eot]
        return ids.astype(np.uint8).tobytes().decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        _check_ids([id], self.vocab_size)
        return b"" if id == self.eot else bytes([id])

    def find_cut(self, text: str, start: int) -> int:
        return max(start, 1) if start < len(text) > 1 else -1

    def to_json(self) -> dict:
        return {"kind": "byte", "eot": self.eot}


class CharTokenizer:
    """One id per character: its position in `chars`. eot=True adds one more id, the last, for end of text."""

    kind = "char"

    def __init__(self, chars: str, eot: bool = False):
        codes = _code_points(chars)
        if len(set(chars)) != len(chars) or not chars:
            raise ValueError(
                f"char tokenizer: {len(chars)} characters, {len(set(chars))} of them distinct; "
                "expected at least one, and none twice"
            )
        self.chars = chars
        self.eot = len(chars) if eot else None
        self.special_tokens = {EOT: self.eot} if eot else {}
        self.vocab_size = len(chars) + bool(eot)
        self._codes = codes
        self._ids = np.full(codes.max() + 2, -1, np.int32)  # -1: not in the vocabulary, as all above the last
        self._ids[codes] = np.arange(len(chars))

    @classmethod
    def train(cls, texts: Iterable[str], eot: bool = False) -> "CharTokenizer":
        """The distinct characters of `texts` in code point order, as nanoGPT numbers them."""
        seen = np.zeros(sys.maxunicode + 1, bool)
        for text in [texts] if isinstance(texts, str) else texts:
            for i in range(0, len(text), CACHED_CHARS):
                seen[_code_points(text[i : i + CACHED_CHARS], at=i)] = True
        return cls("".join(map(chr, np.flatnonzero(seen))), eot)

    def encode(self, text: str, special: bool = False, num_threads: int | None = None) -> np.ndarray:
        """Raises ValueError naming the characters (at most 8) that are not in the vocabulary."""
        if special:
            return _encode_special(self, text, num_threads)
        out = np.empty(len(text), _dtype(self.vocab_size))
        for i in range(0, len(text), CACHED_CHARS):
            ids = self._ids.take(_code_points(text[i : i + CACHED_CHARS], at=i), mode="clip")
            if ids.min() < 0:
                raise ValueError(self._missing(text))
            out[i : i + CACHED_CHARS] = ids
        return out

    def _missing(self, text: str) -> str:
        missing = sorted(set(text) - set(self.chars))
        named = ", ".join(f"{c!r} U+{ord(c):04X}" for c in missing[:8]) + ", ..." * (len(missing) > 8)
        return (
            f"{len(missing)} distinct character(s) of the text are not in the vocabulary of "
            f"{len(self.chars)}: {named}; leave them out, or make a vocabulary from a text that has them"
        )

    def decode(self, ids) -> str:
        ids = _check_ids(ids, self.vocab_size)
        if self.eot is not None:
            ids = ids[ids != self.eot]
        return self._codes[ids].tobytes().decode("utf-32-le")

    def token_bytes(self, id: int) -> bytes:
        _check_ids([id], self.vocab_size)
        return b"" if id == self.eot else self.chars[id].encode("utf-8")

    def find_cut(self, text: str, start: int) -> int:
        return max(start, 1) if start < len(text) > 1 else -1

    def to_json(self) -> dict:
        return {"kind": "char", "chars": self.chars, "eot": self.eot is not None}


class BPETokenizer:
    """BPE of the `tokenizers` library, given as the text of a tokenizer.json: byte-level (GPT-2, Qwen2,
    Llama-3), or of characters with a fallback to bytes (Llama-2, Mistral, Gemma).

    Texts come back as they were, for which parse_bpe drops some habits of such files. Llama-2's puts a space
    before every text: encode(" " + text) gives its ids. Its sign for a space, if typed, is three byte tokens.
    """

    kind = "bpe"

    def __init__(self, tokenizer_json: str, source: str = "tokenizer.json"):
        """Raises ValueError, naming `source`, for a file that is no such BPE or changes the text."""
        from tokenizers import Tokenizer

        d = parse_bpe(tokenizer_json, source)
        self._json = json.dumps(d, ensure_ascii=False, separators=(",", ":"))
        try:
            self._tokenizer = Tokenizer.from_str(self._json)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{source}: not a tokenizer.json that `tokenizers` can read: {error}") from None
        self._tokenizer.encode_special_tokens = True  # typed special tokens are text
        self._fallback = bool(d["model"].get("byte_fallback"))
        self._ids = self._tokenizer.get_vocab()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_tokens = {token.content: id for id, token in added.items() if token.special}
        self._added = {id: token.content for id, token in added.items() if not token.special}
        self._bytes = bpe_token_bytes(self._ids, added, self._fallback, source)
        self.byte_ids = [self._ids[symbol] for symbol in byte_spellings(self._fallback)]
        self.vocab_size = len(self._bytes)
        self.eot = next((self.special_tokens[name] for name in EOTS if name in self.special_tokens), None)

        self._cut = self._pairs = None  # where find_cut may cut; nowhere as yet
        for text in f" {PROBE}", "  \0\ufeffe\u03018\U0001f642\u2581\r\n\t":
            echo = self.decode(self.encode(text))
            if echo != text:
                raise ValueError(f"{source}: gives back {echo!r} for {text!r}, expected the same text")
        self._learn_cuts(list_parts(d.get("pre_tokenizer")))

    def _learn_cuts(self, splits: list[dict]) -> None:
        """CUT, if words end there and added tokens do not contain it. If there are no words, as with Llama-2,
        BPE itself allows a cut between two characters that no token has side by side."""
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
        cls, texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (), budget: int = TRAIN_BUDGET
    ) -> "BPETokenizer":
        """Merges learned from a stream of texts; the same texts give the same ids, on any number of threads.

        The ids are 256 bytes, then merges, then end of text and the other special tokens. vocab_size counts
        all of them; a text with too few pairs that occur twice gives a smaller vocabulary. Words are found by
        TRAIN_PATTERN. Of a corpus beyond `budget`, a fixed random sample counts: see _sample.
        """
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        special = list(dict.fromkeys([EOT, *special_tokens]))
        if vocab_size < 256 + len(special) or "" in special:
            raise ValueError(
                f"bpe tokenizer: vocab_size is {vocab_size}, expected at least "
                f"{256 + len(special)}: 256 bytes and {', '.join(special)}"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(TRAIN_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(special),
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=sys.stderr.isatty(),
        )
        sample = _sample([texts] if isinstance(texts, str) else texts, budget)
        tokenizer.train_from_iterator(sample, trainer)
        learned = [token for token in special if tokenizer.token_to_id(token) is not None]
        if learned:
            raise ValueError(
                f"bpe tokenizer: special token {learned[0]!r} is an ordinary one of this text, "
                "expected something like <|name|>"
            )
        tokenizer.add_special_tokens(special)
        return cls(tokenizer.to_str())

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "BPETokenizer":
        """A tokenizer.json, perhaps packed as .xz, or its folder. eot is the first of EOTS that it has."""
        return cls(*read_tokenizer_json("", path))

    def encode(self, text: str, special: bool = False, num_threads: int | None = None) -> np.ndarray:
        if special:
            return _encode_special(self, text, num_threads)
        if self._fallback and SPACE_SIGN in text:
            sign = [self.byte_ids[b] for b in SPACE_SIGN.encode("utf-8")]
            return _encode_around(text, {SPACE_SIGN: sign}, self, num_threads)

        def batch(pieces):  # by as many threads as RAYON_NUM_THREADS says, but one for one piece
            return (e.ids for e in self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False))

        group = 1 if num_threads == 1 else GROUP
        return _encode_pieces(text, self.find_cut, batch, _dtype(self.vocab_size), group)

    def decode(self, ids) -> str:
        return _join(self._bytes, ids)

    def token_bytes(self, id: int) -> bytes:
        _check_ids([id], self.vocab_size)
        return self._bytes[id]

    def find_cut(self, text: str, start: int) -> int:
        if self._pairs is None:
            return _search(self._cut, text, start) if self._cut else -1
        return next((i for i in range(max(start, 1), len(text)) if text[i - 1 : i + 1] not in self._pairs), -1)

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs of tokens, spelled as in the file, in the order of their priority."""
        merges = json.loads(self._json)["model"]["merges"]
        return [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}

    @cached_property
    def _spelling(self) -> dict[int, str]:
        return {id: token for token, id in self._ids.items()}

    def unmerge(self, id: int) -> list[int]:
        """The ids, mostly two, that the last merge joins to this one, or its bytes' ids; [] for a byte."""
        if id in self.byte_ids or not self._bytes[id]:
            return []
        token, rank = self._spelling[id], self._ranks.get
        parts = _merge(list(token), lambda a, b: rank((a, b), math.inf) if a + b != token else math.inf)
        ids = [self._ids[part] for part in parts if part in self._ids]
        if len(ids) > 1 and b"".join(map(self._bytes.__getitem__, ids)) == self._bytes[id]:
            return ids
        return [self.byte_ids[b] for b in self._bytes[id]]  # a character, or an added token

    def to_json(self) -> dict:
        """ "tokenizer" is the whole tokenizer.json, as text, less what parse_bpe drops."""
        return {"kind": "bpe", "tokenizer": self._json}


class TiktokenTokenizer:
    """One of OPENAI_ENCODINGS's vocabularies through tiktoken: byte strings by merge rank, and special tokens."""

    kind = "tiktoken"

    def __init__(self, name: str = "gpt2", file: str | os.PathLike | None = None, tokens: list[bytes] | None = None):
        """The vocabulary is `tokens`, in id order (b"" is none), or else what read_ranks finds."""
        import tiktoken

        if name not in OPENAI_ENCODINGS:
            raise ValueError(f"tiktoken tokenizer: {name!r} is not known, expected {', '.join(OPENAI_ENCODINGS)}")
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

    def encode(self, text: str, special: bool = False, num_threads: int | None = None) -> np.ndarray:
        if special:
            return _encode_special(self, text, num_threads)
        threads = num_threads or os.cpu_count() or 1

        def one(piece):
            return self._encoding.encode_to_numpy(piece, disallowed_special=())

        def batch(pieces):
            if threads == 1 or len(pieces) == 1:
                return map(one, pieces)
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(one, pieces))

        return _encode_pieces(text, self.find_cut, batch, _dtype(self.vocab_size), GROUP)

    def decode(self, ids) -> str:
        return _join(self._bytes, ids)

    def token_bytes(self, id: int) -> bytes:
        _check_ids([id], self.vocab_size)
        return self._bytes[id]

    def find_cut(self, text: str, start: int) -> int:
        i = _search(self._cut, text, start)
        while self.name == "cl100k_base" and not {"\r", "\n"}.isdisjoint(_spaces_before(text, i)):
            i = _search(self._cut, text, i + 1)  # its \s++$ would make one word of the newline and the spaces
        return i

    def unmerge(self, id: int) -> list[int]:
        """The ids, mostly two, that the last merge joins to this one; [] for a byte."""
        token, rank = self._bytes[id], self.ranks.get
        parts = [token[i : i + 1] for i in range(len(token))]
        parts = _merge(parts, lambda a, b: r if (r := rank(a + b, math.inf)) < id else math.inf)
        return [self.ranks[part] for part in parts] if len(parts) > 1 else []

    def to_json(self) -> dict:
        """ "tokens" is the vocabulary in id order, spelled as in encoder.json, with spaces between."""
        size = OPENAI_ENCODINGS[self.name][2]
        tokens = " ".join(map(to_symbols, self._bytes[:size]))
        return {"kind": "tiktoken", "name": self.name, "tokens": tokens}


class TrimmedTokenizer:
    """The ids of a bpe or tiktoken tokenizer that a text uses, renumbered: most of a large vocabulary's
    embeddings would never be trained on a small corpus.

    All single bytes and special tokens are kept too, so that any text has ids: a token that was dropped is
    taken apart into those that its last merge joined, they into theirs, until all parts are kept.
    """

    kind = "trimmed"

    def __init__(self, base: "BPETokenizer | TiktokenTokenizer", ids: Sequence[int]):
        """New id i stands for ids[i] of base, a bpe or tiktoken tokenizer."""
        if base.kind not in ("bpe", "tiktoken"):
            raise ValueError(f"a {base.kind} tokenizer cannot be trimmed, expected bpe or tiktoken")
        self.base, self.ids = base, _check_ids(ids, base.vocab_size)
        self._new = np.full(base.vocab_size, -1, np.int32)  # base's id -> ours, -1 = dropped
        self._new[self.ids] = np.arange(len(self.ids))
        if len(set(ids)) != len(ids) or (self._new[base.byte_ids] < 0).any():
            raise ValueError(f"trimmed tokenizer: {len(ids)} ids, expected distinct ones with all 256 bytes")
        self.vocab_size = len(self.ids)
        self.special_tokens = {
            name: int(self._new[id]) for name, id in base.special_tokens.items() if self._new[id] >= 0
        }
        self.eot = None if base.eot is None or self._new[base.eot] < 0 else int(self._new[base.eot])
        self._bytes = [base._bytes[id] for id in self.ids]
        self._parts: dict[int, list[int]] = {}  # base's dropped id -> our ids, as texts need them

    @classmethod
    def train(cls, base, texts: Iterable[str], min_count: int = 1) -> "TrimmedTokenizer":
        """Keeps the ids that encoding `texts` gives at least min_count times."""
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}, expected at least 1")
        counts = np.zeros(base.vocab_size, np.int64)
        for text in [texts] if isinstance(texts, str) else texts:
            np.add.at(counts, base.encode(text), 1)
        counts[[*base.byte_ids, *base.special_tokens.values()]] = min_count
        return cls(base, np.flatnonzero(counts >= min_count).tolist())

    def encode(self, text: str, special: bool = False, num_threads: int | None = None) -> np.ndarray:
        if special:
            return _encode_special(self, text, num_threads)
        old = self.base.encode(text, num_threads=num_threads)
        new = self._new[old]
        dropped = new < 0
        if dropped.any():
            parts = [self._parts.get(id) or self._take_apart(id) for id in old[dropped].tolist()]
            lengths = np.ones(len(old), np.int64)
            lengths[dropped] = [len(part) for part in parts]
            new = np.repeat(new, lengths)
            new[np.repeat(dropped, lengths)] = list(itertools.chain.from_iterable(parts))
        return new.astype(_dtype(self.vocab_size))

    def _take_apart(self, id: int) -> list[int]:
        if self._new[id] >= 0:
            return [int(self._new[id])]
        if id not in self._parts:
            self._parts[id] = [new for part in self.base.unmerge(id) for new in self._take_apart(part)]
        return self._parts[id]

    def decode(self, ids) -> str:
        return _join(self._bytes, ids)

    def token_bytes(self, id: int) -> bytes:
        _check_ids([id], self.vocab_size)
        return self._bytes[id]

    def find_cut(self, text: str, start: int) -> int:
        return self.base.find_cut(text, start)

    def to_json(self) -> dict:
        return {"kind": "trimmed", "base": self.base.to_json(), "ids": self.ids.tolist()}


AnyTokenizer = ByteTokenizer | CharTokenizer | BPETokenizer | TiktokenTokenizer | TrimmedTokenizer


def make_tokenizer(
    name: str,
    texts: Callable[[str | None], Iterable[str]] | None = None,
    *,
    file: str | os.PathLike | None = None,
    vocab_size: int | None = None,
    special_tokens: Sequence[str] = (),
    eot: bool = True,
    trim: bool = False,
    min_count: int = 1,
) -> AnyTokenizer:
    """What --tokenizer=name stands for:

    byte, char       with an end-of-text id if `eot`; char has the characters of all of texts(None)
    bpe              trained on texts("train"): vocab_size ids (8,192), special_tokens among them
    gpt2, ...        one of OPENAI_ENCODINGS, from `file` (or its folder), tiktoken's cache or the network
    qwen2, llama2    the tokenizer.json in `file` or data/<name>/, or of that repository of the hub
    owner/name       that of any repository of the hub
    a path           of a tokenizer.json; so is `file` with bpe

    texts(split) gives the texts of a split, None = all, afresh at each call. `trim` keeps the ids that
    texts("train") has min_count times (TrimmedTokenizer). ValueError, one line: what can't be found or used.
    """
    if trim and name in ("byte", "char"):
        raise ValueError(f"--tokenizer={name} cannot be trimmed, expected another, or no --trim")
    vocab_size = 8192 if vocab_size is None else vocab_size
    tokenizer = _make_untrimmed(name, texts, file, vocab_size, special_tokens, eot)
    return TrimmedTokenizer.train(tokenizer, texts("train"), min_count) if trim else tokenizer


def _make_untrimmed(name, texts, file, vocab_size, special_tokens, eot) -> AnyTokenizer:
    if name in ("byte", "char"):
        if file:
            raise ValueError(f"--tokenizer={name} needs no file, found --tokenizer_file={file}; leave it out")
        if name == "char":
            return CharTokenizer.train(texts(None), eot)
        return ByteTokenizer(255 if eot else None)
    if name == "bpe" and not file:
        return BPETokenizer.train(texts("train"), vocab_size, special_tokens)
    if name in OPENAI_ENCODINGS and not (file and Path(file).name.startswith("tokenizer.json")):
        return TiktokenTokenizer(name, file)
    if file or Path(name).exists() and name not in HUB or name.endswith((".json", ".xz")):
        return BPETokenizer.from_file(file or name)
    if name in HUB or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return BPETokenizer(*read_tokenizer_json(name))
    names = ", ".join(["byte", "char", "bpe", *OPENAI_ENCODINGS, *HUB])
    raise ValueError(
        f"--tokenizer={name} is no file; expected one of {names}, a repository of the hub "
        "(owner/name), or the path of a tokenizer.json"
    )


def tokenizer_from_json(d: dict) -> AnyTokenizer:
    """The tokenizer that to_json described. Raises ValueError for an unknown kind or missing parts."""
    kind = d.get("kind") if isinstance(d, dict) else None
    try:
        if kind == "byte":
            return ByteTokenizer(d["eot"])
        if kind == "char":
            return CharTokenizer(d["chars"], d["eot"])
        if kind == "bpe":
            return BPETokenizer(d["tokenizer"])
        if kind == "tiktoken":
            return TiktokenTokenizer(d["name"], tokens=[from_symbols(t) for t in d["tokens"].split(" ")])
        if kind == "trimmed":
            return TrimmedTokenizer(tokenizer_from_json(d["base"]), d["ids"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"tokenizer description of kind {kind!r} is damaged: {error!r}") from None
    raise ValueError(f"tokenizer description has kind {kind!r}, not byte, char, bpe, tiktoken or trimmed")


@cache
def token_table(tokenizer: AnyTokenizer) -> list[bytes]:
    """The bytes that each id stands for; b"" for special and unused ids. Where it is the same, ids are."""
    return [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]


def fingerprint(tokenizer: AnyTokenizer) -> str:
    """16 hex digits that tell tokenizers apart: the sha256 of to_json begins so."""
    return hashlib.sha256(json.dumps(tokenizer.to_json(), sort_keys=True).encode()).hexdigest()[:16]


class IncrementalDecoder:
    """Text from ids that arrive one by one: what decode gives for all of them, character by whole character.

    Bytes that can no longer become a character come out as U+FFFD. The state is at most three bytes.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters that this id completes, often one or more, sometimes none."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    @property
    def pending(self) -> bytes:
        """The bytes so far of a character that is not complete."""
        return self._decoder.getstate()[0]


# ---- texts in pieces ---------------------------------------------------------------------------------------


def find_cut(text: str, start: int) -> int:
    """The first place i >= start, 0 < i < len(text), where CUT lets a text be cut; -1 if there is none.

    There encode(text[:i]) followed by encode(text[i:]) is encode(text), however the text goes on: for the
    byte, char and tiktoken kinds, for bpe trained here, for all usual files. tokenizer.find_cut says the same
    of that tokenizer; it knows more places, or that a strange file has none.
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
    """`text` in pieces, each up to the first cut from PIECE_CHARS characters on, or to the end if there is none."""
    _to_bytes(text)  # for its error
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = find_cut(text, start + PIECE_CHARS)
        if end < 0:
            break
        yield text[start:end]
        start = end
    yield text[start:]


def _encode_pieces(text: str, find_cut: Callable[[str, int], int], batch, dtype: type, group: int) -> np.ndarray:
    """batch: list of pieces, up to `group` -> iterable of their ids."""
    pieces, ids = _pieces(text, find_cut), []
    while some := list(itertools.islice(pieces, group)):
        ids += [np.asarray(piece, dtype) for piece in batch(some)]
    return np.concatenate(ids)


def _encode_special(tokenizer, text: str, num_threads: int | None) -> np.ndarray:
    inserts = {name: [id] for name, id in tokenizer.special_tokens.items()}
    return _encode_around(text, inserts, tokenizer, num_threads) if inserts else tokenizer.encode(text)


def _encode_around(text: str, inserts: dict[str, list[int]], tokenizer, num_threads) -> np.ndarray:
    """The ids of a text in which the strings of `inserts` have theirs, the longest one at each place."""
    _to_bytes(text)  # for its error, which names the place
    names = sorted(inserts, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, names))})", text)  # every other one is a name
    ids = [inserts[part] if i % 2 else tokenizer.encode(part, num_threads=num_threads) for i, part in enumerate(parts)]
    return np.concatenate(ids, dtype=_dtype(tokenizer.vocab_size), casting="unsafe")


def _sample(texts: Iterable[str], budget: int) -> Iterator[str]:
    """The pieces of `texts`, or, if they cost more than `budget`, as many as fit it, drawn by lot, always the
    same ones.

    The cost is memory: training keeps every different word. A letter of a script with spaces costs little
    and counts 1; one from U+0800 on, where those without spaces are, counts 25 (some 250 bytes).
    """
    rng, cost, places = random.Random(0), 0, itertools.count()
    kept = []  # a heap of (-lot, place, price, piece): the highest lots leave first
    for text in texts:
        for long in _pieces(text, find_cut):
            for i in range(0, len(long), 4 * PIECE_CHARS):  # a text without cuts loses one word here
                piece = long[i : i + 4 * PIECE_CHARS]
                price = len(piece) + 24 * int((_code_points(piece) >= 0x800).sum())
                heapq.heappush(kept, (-rng.random(), next(places), price, piece))
                cost += price
                while cost > budget and len(kept) > 1:
                    cost -= heapq.heappop(kept)[2]
    return (piece for *_, piece in sorted(kept, key=lambda entry: entry[1]))


def _merge(parts: list, rank: Callable) -> list:
    """BPE of a few parts: joins the pair of lowest rank, the first of equals, until all are infinite."""
    while len(parts) > 1:
        ranks = [rank(a, b) for a, b in itertools.pairwise(parts)]
        i = ranks.index(min(ranks))
        if ranks[i] == math.inf:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


# ---- small things ------------------------------------------------------------------------------------------


def _dtype(vocab_size: int) -> type:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _to_bytes(text: str, codec: str = "utf-8", at: int = 0) -> bytes:
    """`at` is where `text` begins in the user's text, for the message."""
    try:
        return text.encode(codec)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character "
            f"{at + error.start}: it cannot be written as UTF-8; remove or replace it"
        ) from None


def _code_points(text: str, at: int = 0) -> np.ndarray:
    return np.frombuffer(_to_bytes(text, "utf-32-le", at), "<u4")


def _check_ids(ids, vocab_size: int) -> np.ndarray:
    """ids as a 1-D int64 array. Raises ValueError naming the first id that is not in 0..vocab_size-1."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"token ids have shape {ids.shape} and type {ids.dtype}, expected 1-D integers")
    bad = ids[(ids < 0) | (ids >= vocab_size)]
    if bad.size:
        raise ValueError(
            f"token id {bad[0]} is outside the tokenizer's vocabulary of {vocab_size}; a model "
            "with a padded vocabulary must not be sampled beyond it"
        )
    return ids.astype(np.int64)


def _join(token_bytes: list[bytes], ids) -> str:
    ids = _check_ids(ids, len(token_bytes)).tolist()
    return b"".join(map(token_bytes.__getitem__, ids)).decode("utf-8", "replace")

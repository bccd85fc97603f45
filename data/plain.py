"""What all tokenizers have in common, and the two that need no library: bytes and characters."""

import codecs
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

EOT = "<|endoftext|>"
CACHED_CHARS = 1 << 14  # characters per numpy step: the intermediate arrays fit the processor's cache


class Tokenizer:
    """What all kinds have in common.

    `lossy` says in words why a text's bytes cannot be told from its ids; None: joined, the tokens' bytes are the text.
    """

    kind: str
    vocab_size: int
    eot: int | None  # the end-of-text id
    special_tokens: dict[str, int]  # spelling -> id
    lossy: str | None = None
    begin: Sequence[int] = ()  # the ids that every text begins with, such as bos
    max_chars_per_token = 32  # on average; a long text is cut before it is encoded
    first_space = False  # whether a space is put before every text
    space_after_special = False  # whether one is put before the text behind a special token
    _bytes: list[bytes]  # by id

    @property
    def ends(self) -> Sequence[int]:
        """The ids at which a generated text is complete."""
        return () if self.eot is None else (self.eot,)

    def _encode(self, text: str, num_threads: int | None) -> np.ndarray:
        raise NotImplementedError

    def to_json(self) -> dict:
        """A dict from which tokenizer_from_json rebuilds it."""
        raise NotImplementedError

    def encode(
        self, text: str, special: bool = False, num_threads: int | None = None, inside: bool = False
    ) -> np.ndarray:
        """The ids, whose bytes joined are the text's UTF-8. Special tokens typed in the text are plain text unless
        `special`. num_threads=1 uses one core, for workers that share a machine. inside: the text continues another,
        so no space is put before it."""
        if special and self.special_tokens:
            names = {name: [id] for name, id in self.special_tokens.items()}
            return encode_around(text, names, self, num_threads, inside)
        return self._encode(text, num_threads)

    def encode_document(self, text: str, **options) -> np.ndarray:
        """The ids of a whole text, with those that every text begins with."""
        ids = self.encode(text, **options)
        return np.concatenate([np.array(self.begin, ids.dtype), ids]) if len(self.begin) else ids

    def decode(self, ids: Any) -> str:
        """Special tokens and unused ids stand for no text."""
        ids = checked_ids(ids, self.vocab_size).tolist()
        return b"".join(map(self._bytes.__getitem__, ids)).decode("utf-8", "replace")

    def decoder(self, before: Iterable[int] = ()) -> "IncrementalDecoder":
        """What turns ids that arrive one by one into text; `before`: the ids that came earlier."""
        return IncrementalDecoder(self)

    def token_bytes(self, id: int) -> bytes:
        """ValueError, with the reason, if the tokenizer is lossy."""
        checked_ids([id], self.vocab_size)
        if self.lossy:
            raise ValueError(f"the bytes of single tokens are needed here, but this tokenizer has none: {self.lossy}")
        return self._bytes[id]

    def find_cut(self, text: str, start: int) -> int:
        """Where a text may be cut: see the function find_cut."""
        return max(start, 1) if start < len(text) > 1 else -1


class ByteTokenizer(Tokenizer):
    """Ids are the bytes of UTF-8. eot=255 makes 0xFF, which occurs in no UTF-8 text, the end-of-text id."""

    kind = "byte"
    max_chars_per_token = 1
    vocab_size = 256

    def __init__(self, eot: int | None = None):
        if eot not in (None, 255):
            raise ValueError(f"byte tokenizer: eot is {eot!r}, expected None or 255, a byte that occurs in no text")
        self.eot = eot
        self.special_tokens = {} if eot is None else {EOT: eot}
        self._bytes = [b"" if id == eot else bytes([id]) for id in range(256)]

    def _encode(self, text: str, num_threads: int | None) -> np.ndarray:
        return np.frombuffer(utf8(text), np.uint8).astype(np.uint16)

    def decode(self, ids: Any) -> str:
        ids = checked_ids(ids, self.vocab_size)
        if self.eot is not None:
            ids = ids[ids != self.eot]
        return ids.astype(np.uint8).tobytes().decode("utf-8", "replace")

    def to_json(self) -> dict:
        return {"kind": "byte", "eot": self.eot}


class CharTokenizer(Tokenizer):
    """One id per character: its position in `chars`. eot=True adds one more id, the last, for end of text."""

    kind = "char"
    max_chars_per_token = 1

    def __init__(self, chars: str, eot: bool = False):
        codes = code_points(chars)
        if len(set(chars)) != len(chars) or not chars:
            raise ValueError(
                f"char tokenizer: {len(chars)} characters, {len(set(chars))} of them distinct; "
                "expected at least one, and none twice"
            )
        self.chars = chars
        self.eot = len(chars) if eot else None
        self.special_tokens = {EOT: self.eot} if eot else {}
        self.vocab_size = len(chars) + bool(eot)
        self._bytes = [char.encode() for char in chars] + [b""] * bool(eot)
        self._codes = codes
        self._ids = np.full(codes.max() + 2, -1, np.int32)  # -1: not in the vocabulary; the last for all above
        self._ids[codes] = np.arange(len(chars))

    @classmethod
    def train(cls, texts: Iterable[str], eot: bool = False) -> "CharTokenizer":
        """The distinct characters of `texts` in code point order, as nanoGPT numbers them."""
        seen = np.zeros(sys.maxunicode + 1, bool)
        for text in [texts] if isinstance(texts, str) else texts:
            for i in range(0, len(text), CACHED_CHARS):
                seen[code_points(text[i : i + CACHED_CHARS], at=i)] = True
        return cls("".join(map(chr, np.flatnonzero(seen))), eot)

    def _encode(self, text: str, num_threads: int | None) -> np.ndarray:
        """ValueError naming up to 8 of the characters that are not in the vocabulary."""
        out = np.empty(len(text), dtype_of_ids(self.vocab_size))
        for i in range(0, len(text), CACHED_CHARS):
            ids = self._ids.take(code_points(text[i : i + CACHED_CHARS], at=i), mode="clip")
            if ids.min() < 0:
                missing = sorted(set(text) - set(self.chars))
                named = ", ".join(f"{c!r} U+{ord(c):04X}" for c in missing[:8]) + ", ..." * (len(missing) > 8)
                raise ValueError(
                    f"{len(missing)} distinct character(s) of the text are not in the vocabulary of "
                    f"{len(self.chars)}: {named}; leave them out, or make a vocabulary from a text that has them"
                )
            out[i : i + CACHED_CHARS] = ids
        return out

    def decode(self, ids: Any) -> str:
        ids = checked_ids(ids, self.vocab_size)
        if self.eot is not None:
            ids = ids[ids != self.eot]
        return self._codes[ids].tobytes().decode("utf-32-le")

    def to_json(self) -> dict:
        return {"kind": "char", "chars": self.chars, "eot": self.eot is not None}


@cache
def token_table(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each id, b"" for special and unused ones. Tokenizers with equal tables have equal ids."""
    return [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]


def fingerprint(tokenizer: Tokenizer) -> str:
    """The first 16 hex digits of the sha256 of to_json, to tell tokenizers apart."""
    return hashlib.sha256(json.dumps(tokenizer.to_json(), sort_keys=True).encode()).hexdigest()[:16]


class IncrementalDecoder:
    """Text from ids that arrive one by one: the same as decoding all at once, in whole characters.

    Bytes that can no longer become a character come out as U+FFFD. The state is at most three bytes.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters this id completes, often one or more, sometimes none."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def finish(self) -> str:
        """What is left at the end. An incomplete character is dropped."""
        return ""

    @property
    def pending(self) -> bytes:
        """The first bytes of a character that is not complete yet."""
        return self._decoder.getstate()[0]


def encode_around(
    text: str, inserts: dict[str, list[int]], tokenizer: Tokenizer, num_threads: int | None, inside: bool = True
) -> np.ndarray:
    """The ids of a text in which each string of `inserts` has the ids given; the longest match wins. inside: as in
    Tokenizer.encode, of the text before the first."""
    utf8(text)  # for its error, which names the place
    names = sorted(inserts, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, names))})", text)  # every other one is a name
    after = not tokenizer.space_after_special
    ids = [
        inserts[part] if i % 2 else tokenizer.encode(part, num_threads=num_threads, inside=after if i else inside)
        for i, part in enumerate(parts)
    ]
    return np.concatenate(ids, dtype=dtype_of_ids(tokenizer.vocab_size), casting="unsafe")


def dtype_of_ids(vocab_size: int) -> type:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def utf8(text: str, codec: str = "utf-8", at: int = 0) -> bytes:
    """`at` is the offset of `text` in the user's text, for the message."""
    try:
        return text.encode(codec)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {at + error.start}: it "
            "cannot be written as UTF-8; remove or replace it"
        ) from None


def code_points(text: str, at: int = 0) -> np.ndarray:
    return np.frombuffer(utf8(text, "utf-32-le", at), "<u4")


def checked_ids(ids: Any, vocab_size: int) -> np.ndarray:
    """ids as a 1-D int64 array. ValueError naming the first id that is not in 0..vocab_size-1."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"token ids have shape {ids.shape} and type {ids.dtype}, expected 1-D integers")
    bad = ids[(ids < 0) | (ids >= vocab_size)]
    if bad.size:
        raise ValueError(
            f"token id {bad[0]} is outside the tokenizer's vocabulary of {vocab_size}; a model with a padded "
            "vocabulary must not be sampled beyond it"
        )
    return ids.astype(np.int64)

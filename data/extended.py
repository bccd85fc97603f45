"""A tokenizer with special tokens added behind its vocabulary: a model's own, plus the markers of a chat.

    tokenizer = ExtendedTokenizer(base, ["<|user|>", "<|end|>"], ends=["<|end|>"])   # any kind of base

The base's ids stay what they are, so that a checkpoint needs new rows in its embedding only (checkpoints/build.py).
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from data.json_tokenizer import JsonTokenizer, WindowDecoder, load_library
from data.plain import Tokenizer, checked_ids, dtype_of_ids


class ExtendedTokenizer(Tokenizer):
    """added: spellings of the new ids, which begin at base.vocab_size. ends: special tokens that, besides the base's
    own, end a generated text. ValueError: a spelling that the base has already."""

    kind = "extended"

    def __init__(self, base: Tokenizer, added: Sequence[str], ends: Sequence[str] = ()):
        known = set(base.special_tokens) | set(getattr(base, "tokens", ())) | set(getattr(base, "_ids", ()))
        twice = sorted(known & set(added)) or [name for name in added if added.count(name) > 1]
        if twice or not all(added):
            raise ValueError(f"special token {(twice or [''])[0]!r} cannot be added: the tokenizer has it already")
        self.base, self.added, self.vocab_size = base, list(added), base.vocab_size + len(added)
        self.special_tokens = base.special_tokens | {name: base.vocab_size + i for i, name in enumerate(added)}
        self.eot, self.begin, self.lossy, self.first_space = base.eot, base.begin, base.lossy, base.first_space
        self.max_chars_per_token = base.max_chars_per_token
        under = getattr(base, "_library_base", None)  # tokens may have been added before
        self._library_base = base if isinstance(base, JsonTokenizer) else under
        self._own_ends = list(ends)
        self._ends = [*base.ends, *(self.special_tokens[name] for name in ends)]
        if not self.lossy:
            self._bytes = [base.token_bytes(id) for id in range(base.vocab_size)] + [b""] * len(added)

    @property
    def ends(self) -> Sequence[int]:
        return self._ends

    @property
    def tokens(self) -> list[str]:
        """Spellings by id, of a JsonTokenizer's vocabulary."""
        return [*self.base.tokens, *self.added]

    def encode(
        self, text: str, special: bool = False, num_threads: int | None = None, inside: bool = False
    ) -> np.ndarray:
        if special:
            return super().encode(text, special, num_threads, inside)
        ids = self.base.encode(text, num_threads=num_threads, inside=inside)
        return ids.astype(dtype_of_ids(self.vocab_size))

    def decode(self, ids: Any) -> str:
        ids = checked_ids(ids, self.vocab_size)
        return self.base.decode(ids[ids < self.base.vocab_size])

    def decoder(self, before: Iterable[int] = ()):
        return WindowDecoder(self, before) if self._library_base else super().decoder(before)

    def is_open(self, id: int) -> bool:
        """As JsonTokenizer's."""
        return id >= self.base.vocab_size or self.base.is_open(id)

    def find_cut(self, text: str, start: int) -> int:
        return self.base.find_cut(text, start)

    @cached_property
    def space_after_special(self) -> bool:
        """Whether the library puts a space before a text that follows a special token, as it does before a whole text:
        of the tokenizers with a first space some do, others not."""
        if not (self._library_base and self.special_tokens):
            return False
        name, id = list(self.special_tokens.items())[-1]
        library = load_library(self._library_base.to_json()["tokenizer"], "tokenizer.json")
        library.add_special_tokens(
            [name for name, id in self.special_tokens.items() if id >= self._library_base.vocab_size]
        )
        for text in ("a", "0", "中"):
            with suppress(Exception):  # a vocabulary without unknown tokens has no ids for the text
                return library.encode(name + text, add_special_tokens=False).ids == [id, *self.base.encode(text)]
        return False

    def to_json(self) -> dict:
        return {"kind": "extended", "base": self.base.to_json(), "added": self.added, "ends": self._own_ends}

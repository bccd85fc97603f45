"""Any tokenizer.json, run by the `tokenizers` library as it is: WordPiece, Unigram, WordLevel and every BPE, with their
normalizers, first spaces and ids that begin a text.

    tokenizer = JsonTokenizer(text_of_the_file, bos=1, ends=[2])

Whether the bytes of a text can be told from its ids depends on the file (see exact_bytes): `lossy` says why not.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from data.bpe import EOTS, PROBE
from data.plain import Tokenizer, checked_ids, dtype_of_ids, utf8
from data.vocabulary import bpe_token_bytes, drop_first_space, list_parts

KEEPS_TEXT = ("ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "UnicodeScripts")  # of the pre-tokenizers
PROBES = (f" {PROBE}", "  \0\ufeffe\u1100\u0301\U0001f642\r\n\t  x")  # without pairs that NFC would compose
REPLACED = "\ufffd"


class JsonTokenizer(Tokenizer):
    """bos, ends: the ids before and after a text, as the folder of a model says; ends=None: the first of EOTS that it
    has. Typed special tokens are text, in the library's words split_special_tokens=True, unless encode(special=True).

    `tokens` are the spellings by id, "" for unused ids. An id of `ends` that the file does not have is left out.
    """

    kind = "json"

    def __init__(
        self,
        tokenizer_json: str,
        bos: int | None = None,
        ends: Sequence[int] | None = None,
        source: str = "tokenizer.json",
    ):
        """ValueError, naming `source`, if the library cannot run it."""
        self._json, self._source, self._libraries = tokenizer_json, source, {}
        library = self._library(special=False, inside=False)
        ids, added = library.get_vocab(), library.get_added_tokens_decoder()
        if not ids:
            raise ValueError(f"{source}: it has no tokens; download it again")
        self.vocab_size = max(ids.values()) + 1
        self.tokens = [""] * self.vocab_size
        for token, id in ids.items():
            self.tokens[id] = token
        self.special_tokens = {token.content: id for id, token in added.items() if token.special}
        known = [self.special_tokens[name] for name in EOTS if name in self.special_tokens]
        self._ends = known[:1] if ends is None else [id for id in ends if id < self.vocab_size]
        # a text's end is spelled as in training where a list also has the end of a message
        self.eot = next((id for id in known if id in self._ends), self._ends[0] if self._ends else None)
        self.bos, self.begin = bos, self._find_begin()
        d = json.loads(tokenizer_json)
        self._held = set(self.special_tokens.values())
        if any(part["type"] == "ByteFallback" for part in list_parts(d.get("decoder"))):
            self._held |= {ids.get(f"<0x{b:02X}>") for b in range(256)}
        try:
            self._bytes = exact_bytes(d, ids, added)
            self.first_space = self._check_bytes()
        except ValueError as error:
            self.lossy = str(error)

    def _library(self, special: bool, inside: bool):
        """The library's tokenizer: with typed special tokens as text or not, with a space before the text or not."""
        if (special, inside) not in self._libraries:
            self._libraries[special, inside] = load_library(self._json, self._source, special, inside)
        return self._libraries[special, inside]

    def _find_begin(self) -> list[int]:
        """What the library puts before the ids of a text: some text that the vocabulary can spell."""
        library = self._library(special=False, inside=False)
        for text in ("a", "0", "中", *self.tokens[-1:0:-1]):
            with suppress(Exception):  # a vocabulary without unknown tokens has no ids for the text
                ids, whole = (library.encode(text, add_special_tokens=add).ids for add in (False, True))
                starts = [i for i in range(len(whole)) if whole[i : i + len(ids)] == ids]
                if ids and starts:
                    return whole[: starts[0]]
        return []

    def _check_bytes(self) -> bool:
        """Whether the file puts a space before texts. ValueError if a text does not come back from its bytes."""
        for text in PROBES:
            for inside in (True, False):
                echo = b"".join(self._bytes[id] for id in self.encode(text, inside=inside)).decode("utf-8", "replace")
                expected = unicodedata.normalize("NFC", text)
                if echo != expected and (inside or echo != " " + expected):
                    raise ValueError(f"{text!r} comes back from it as {echo!r}")
        for name, id in self.special_tokens.items():
            if id in self.encode(name, inside=True):
                raise ValueError(f"{name!r} in a text is a special token to it")
        return self._bytes[self.encode("a")[0]].startswith(b" ")

    def encode(
        self, text: str, special: bool = False, num_threads: int | None = None, inside: bool = False
    ) -> np.ndarray:
        utf8(text)  # for its error, which names the place
        library = self._library(special, inside)
        try:
            (encoded,) = library.encode_batch_fast([text], add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"the tokenizer of {self._source} cannot encode the text: {error}") from None
        return np.array(encoded.ids, dtype_of_ids(self.vocab_size))

    @property
    def ends(self) -> Sequence[int]:
        return self._ends

    def decode(self, ids: Any) -> str:
        library = self._library(special=False, inside=False)
        return library.decode(checked_ids(ids, self.vocab_size).tolist(), skip_special_tokens=True)

    def decoder(self, before: Iterable[int] = ()) -> "WindowDecoder":
        return WindowDecoder(self, before)

    def is_open(self, id: int) -> bool:
        """Whether ids up to this one may be decoded differently once others follow. The library decodes bytes in a row
        together, and one that fits nowhere makes all of them U+FFFD; special tokens between them do not count."""
        return id in self._held

    def find_cut(self, text: str, start: int) -> int:
        return -1  # none that holds for every file

    def to_json(self) -> dict:
        return {"kind": "json", "tokenizer": self._json, "bos": self.bos, "ends": list(self._ends)}


class WindowDecoder:
    """Text from ids that arrive one by one: what each adds to the text of the last few, decoded by the library.

    Joined, it is the library's text of all ids less that of those `before`; what may still change, as an incomplete
    character, is held back.
    """

    def __init__(self, tokenizer: JsonTokenizer, before: Iterable[int]):
        self._tokenizer, self._ids = tokenizer, [int(id) for id in before]
        while self._ids and tokenizer.is_open(self._ids[-1]):  # what follows must not break a character of the past
            self._ids.pop()
        self._text, self._start, self._read = tokenizer.decode(self._ids), 0, len(self._ids)

    def push(self, id: int) -> str:
        self._ids.append(id)
        return "" if self._tokenizer.is_open(id) else self._take()

    def finish(self) -> str:
        """What is left at the end. An incomplete character is dropped."""
        return self._take(last=True)

    def _take(self, last: bool = False) -> str:
        text = self._tokenizer.decode(self._ids[self._start :])
        text = text.rstrip(REPLACED) if last else text
        if text.endswith(REPLACED) or not text.startswith(self._text) or len(text) == len(self._text):
            return ""
        new = text[len(self._text) :]
        # a window begins with an id that has text: decoders treat the first one with text in a way of their own
        self._start, self._read = self._read, len(self._ids)
        self._text = self._tokenizer.decode(self._ids[self._start :])
        return new


def load_library(tokenizer_json: str, source: str, special: bool = True, inside: bool = False):
    """The library's tokenizer without what would make ids random, cut texts off or fill them up. special: typed special
    tokens become their ids; inside: no space before a text. ValueError, naming `source`, if it cannot be run."""
    from tokenizers import Tokenizer as LibraryTokenizer

    try:
        if inside:
            d = json.loads(tokenizer_json)
            drop_first_space(d)
            tokenizer_json = json.dumps(d)
        library = LibraryTokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{source}: not a tokenizer.json that `tokenizers` can run: {error}") from None
    library.no_truncation()
    library.no_padding()
    if getattr(library.model, "dropout", None):
        library.model.dropout = None
    library.encode_special_tokens = not special
    return library


def exact_bytes(d: dict, ids: dict[str, int], added: dict) -> list[bytes]:
    """The bytes of every id of a tokenizer.json `d`, b"" for special tokens and unused ids. ids, added: its vocabulary
    and added tokens, from the library.

    ValueError with the reason if a text's bytes (but for a first space and NFC) are not those of its tokens: where
    characters may become an unknown token, or are changed before they are looked up.
    """
    model, splits = d["model"], list_parts(d.get("pre_tokenizer"))
    kind, fallback = model.get("type", "BPE"), bool(model.get("byte_fallback"))
    is_bytes = any(split["type"] == "ByteLevel" for split in splits)
    if kind not in ("BPE", "Unigram"):
        raise ValueError(f"its model is {kind}")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    changes = [
        n["type"] for n in list_parts(d.get("normalizer")) if n != spaces and n["type"] not in ("NFC", "Prepend")
    ]
    changes += [s["type"] for s in splits if s["type"] not in KEEPS_TEXT or s.get("behavior") == "Removed"]
    changes += [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if changes:
        raise ValueError(f"its {changes[0]} changes the text")
    if not is_bytes and not fallback:
        raise ValueError("characters that it does not know become an unknown token")
    return bpe_token_bytes(ids, added, not is_bytes, f"its {kind}")

"""Tokenizers: text to ids and back, as bytes, as characters, as byte-level BPE, or as GPT-2's BPE.

    from data.tokenizer import BPETokenizer, CharTokenizer, IncrementalDecoder, tokenizer_from_json
    tokenizer = CharTokenizer.train([text])              # nanoGPT's character vocabulary
    tokenizer = BPETokenizer.train(texts, 4096)          # byte-level BPE, trained here
    tokenizer = BPETokenizer.from_file("tokenizer.json")
    tokenizer = TiktokenTokenizer("gpt2")                # or ("gpt2", "folder/with/encoder.json/in/it")
    ids = tokenizer.encode("To be")                      # 1-D uint16, or uint32 for more than 65,536 ids
    same = tokenizer_from_json(tokenizer.to_json())      # needs no other file; goes into checkpoints

Every kind has .kind, .vocab_size, .eot (end-of-text id or None), .encode(text), .decode(ids),
.token_bytes(id) and .to_json(). A special token that is typed in a text is plain text: encode never returns
one. Special tokens and unused ids stand for no text: token_bytes gives b"", decode nothing. An id outside
0..vocab_size-1 is a ValueError.
"""

import codecs
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

EOT = "<|endoftext|>"
CHUNK = 1 << 14  # characters: longer texts go to the libraries in pieces of about this size, in parallel
GROUP = 64       # pieces held as Python objects at a time

# Unicode White_Space, which is what \s means to the libraries (Python's \s has four control characters more).
SPACE = r" \t-\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# Between a letter and one of these, GPT-2's pattern, GPT-4's and ours end a pre-token, whatever is around.
STOPS = " \t\n\r\u3000,.;:!?，。、；：！？"
CUT = re.compile(rf"[A-Za-z\u4e00-\u9fa5](?=[{STOPS}])")
# GPT-2's pattern also ends one before the last of several spaces. tiktoken needs that cut: its regex engine
# panics on some hundred thousand spaces followed by text.
CUT_GPT2 = re.compile(CUT.pattern + rf"|[{SPACE}](?=[{SPACE}][^{SPACE}])")

# OpenAI's gpt-2 encoder.py, with possessive quantifiers (same matches, no backtracking).
GPT2_PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s+"
# OpenAI's encoder.json and the Hub's vocab.json are the same bytes. Its ids are the merge ranks, so that
# vocab.bpe, tiktoken's other file, says nothing new.
GPT2_URLS = ("https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json",
             "{HF_ENDPOINT}/openai-community/gpt2/resolve/main/vocab.json")
GPT2_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"

# How BPETokenizer.train cuts text into words before it merges. GPT-4's shape, except that a line's end takes
# the indentation after it along, and that every run has a longest length, Han apart from other letters (there
# are no spaces in Chinese: a "word" could be a page). Bytes per token on held-out text at 4,096 ids, GPT-2's
# pattern and this one: Python's library 3.41 and 3.60, Hongloumeng 4.06 and 4.31, Shakespeare 2.90 and 3.24.
_MARK = r"[^\s\p{L}\p{M}\p{N}]"
_NEWLINE = r"[\r\n]{1,16}[ \t]{0,64}"
TRAIN_PATTERN = "|".join([
    r"[^\r\n\p{L}\p{M}\p{N}]?(?:(?!\p{Han})[\p{L}\p{M}]){1,32}",
    rf"{_MARK}?\p{{Han}}{{1,16}}",
    r"\p{N}{1,3}",
    rf" ?{_MARK}{{1,32}}(?:{_NEWLINE})?",
    rf"\s{{0,64}}{_NEWLINE}",
    r"\s{1,64}(?!\S)",
    r"\s",
])


class ByteTokenizer:
    """Ids are the bytes of UTF-8. eot=255 makes 0xFF, which is in no UTF-8 text, the end-of-text id."""

    kind = "byte"
    vocab_size = 256

    def __init__(self, eot: int | None = None):
        if eot not in (None, 255):
            raise ValueError(f"byte tokenizer: eot is {eot!r}, expected None or 255 (in no text)")
        self.eot = eot

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_to_bytes(text), np.uint8).astype(np.uint16)

    def decode(self, ids) -> str:
        ids = _check_ids(ids, self.vocab_size)
        if self.eot is not None:
            ids = ids[ids != self.eot]
        return ids.astype(np.uint8).tobytes().decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        _check_ids([id], self.vocab_size)
        return b"" if id == self.eot else bytes([id])

    def to_json(self) -> dict:
        return {"kind": "byte", "eot": self.eot}


class CharTokenizer:
    """One id per character: its position in `chars`. eot=True adds one more id, the last, for end of text."""

    kind = "char"

    def __init__(self, chars: str, eot: bool = False):
        codes = _code_points(chars)
        if len(set(chars)) != len(chars) or not chars:
            raise ValueError(f"char tokenizer: {len(chars)} characters, {len(set(chars))} of them distinct; "
                             "expected at least one, and none twice")
        self.chars = chars
        self.eot = len(chars) if eot else None
        self.vocab_size = len(chars) + bool(eot)
        self._codes = codes
        self._ids = np.full(codes.max() + 2, -1, np.int32)  # -1: not in the vocabulary, as all above the last
        self._ids[codes] = np.arange(len(chars))

    @classmethod
    def train(cls, texts: Iterable[str], eot: bool = False) -> "CharTokenizer":
        """The distinct characters of `texts` in code point order, as nanoGPT numbers them."""
        chars = set()
        for text in [texts] if isinstance(texts, str) else texts:
            _to_bytes(text)  # for its error
            chars.update(text)
        return cls("".join(sorted(chars)), eot)

    def encode(self, text: str) -> np.ndarray:
        """Raises ValueError naming the characters (at most 8) that are not in the vocabulary."""
        out = np.empty(len(text), _dtype(self.vocab_size))
        for i in range(0, len(text), CHUNK):
            ids = self._ids.take(_code_points(text[i:i + CHUNK], at=i), mode="clip")
            if ids.min() < 0:
                raise ValueError(self._missing(text))
            out[i:i + CHUNK] = ids
        return out

    def _missing(self, text: str) -> str:
        missing = sorted(set(text) - set(self.chars))
        named = ", ".join(f"{c!r} U+{ord(c):04X}" for c in missing[:8]) + ", ..." * (len(missing) > 8)
        return (f"{len(missing)} distinct character(s) of the text are not in the vocabulary of "
                f"{len(self.chars)}: {named}; leave them out, or make a vocabulary from a text that has them")

    def decode(self, ids) -> str:
        ids = _check_ids(ids, self.vocab_size)
        if self.eot is not None:
            ids = ids[ids != self.eot]
        return self._codes[ids].tobytes().decode("utf-32-le")

    def token_bytes(self, id: int) -> bytes:
        _check_ids([id], self.vocab_size)
        return b"" if id == self.eot else self.chars[id].encode("utf-8")

    def to_json(self) -> dict:
        return {"kind": "char", "chars": self.chars, "eot": self.eot is not None}


class BPETokenizer:
    """Byte-level BPE in the format of the `tokenizers` library, given as the text of a tokenizer.json."""

    kind = "bpe"

    def __init__(self, tokenizer_json: str, source: str = "tokenizer.json"):
        """Raises ValueError, naming `source`, for a file that is no byte-level BPE or changes the text."""
        from tokenizers import Tokenizer
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{source}: not a tokenizer.json that `tokenizers` can read: {error}") from None
        self._json = tokenizer_json
        self._tokenizer.encode_special_tokens = True  # typed special tokens are text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._bytes = _bpe_token_bytes(self._tokenizer, source)
        self.vocab_size = len(self._bytes)
        self.eot = self._tokenizer.token_to_id(EOT)

        self._cut = None
        probe = "".join(letter + stop for stop in STOPS for letter in "Az文é")
        echo = self.decode(self.encode(probe))
        if echo != probe:
            raise ValueError(f"{source}: gives back {echo!r} for {probe!r}; expected a byte-level BPE that "
                             "keeps the text (no prefix space, no stripping, no change of characters)")
        words = self._tokenizer.pre_tokenizer and self._tokenizer.pre_tokenizer.pre_tokenize_str(probe)
        if {m.end() for m in CUT.finditer(probe)} <= {end for _, (_, end) in words or ()}:
            self._cut = CUT  # else a long text is encoded whole: slower, and the same ids

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Merges learned from a stream of texts; the same texts give the same ids, on any number of threads.

        The ids are 256 bytes, then merges, then end of text. vocab_size counts all of them; a text with too
        few pairs that occur twice gives a smaller vocabulary. Words are found by TRAIN_PATTERN.
        """
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
        if vocab_size < 257:
            raise ValueError(f"bpe tokenizer: vocab_size is {vocab_size}, expected at least 257: "
                             f"256 bytes and {EOT}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(TRAIN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, min_frequency=2,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                      show_progress=sys.stderr.isatty())
        texts = [texts] if isinstance(texts, str) else texts
        tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text, CUT)), trainer)
        tokenizer.add_special_tokens([EOT])
        return cls(tokenizer.to_str())

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "BPETokenizer":
        """A tokenizer.json of `tokenizers` or of the Hub. Its <|endoftext|>, if it has one, is eot."""
        try:
            return cls(Path(path).read_bytes().decode("utf-8", "replace"), str(path))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}, expected a tokenizer.json") from None

    def encode(self, text: str) -> np.ndarray:
        def batch(pieces):
            return (e.ids for e in self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False))
        return _encode_pieces(text, self._cut, batch, _dtype(self.vocab_size))

    def decode(self, ids) -> str:
        return _join(self._bytes, ids)

    def token_bytes(self, id: int) -> bytes:
        _check_ids([id], self.vocab_size)
        return self._bytes[id]

    def to_json(self) -> dict:
        """"tokenizer" is the whole tokenizer.json, as text."""
        return {"kind": "bpe", "tokenizer": self._json}


class TiktokenTokenizer:
    """GPT-2's BPE through tiktoken: 50,256 byte strings, then end of text."""

    kind = "tiktoken"

    def __init__(self, name: str = "gpt2", folder: str | os.PathLike | None = None,
                 tokens: list[bytes] | None = None):
        """The vocabulary is `tokens`, in id order, or else that of encoder.json: see _gpt2_encoder_json."""
        import tiktoken
        if name != "gpt2":
            raise ValueError(f"tiktoken tokenizer: {name!r} is not known, expected 'gpt2'")
        if tokens is None:
            ids = json.loads(_gpt2_encoder_json(folder))
            tokens = [_from_symbols(token) for token in sorted(ids, key=ids.get) if token != EOT]
        if len(tokens) != 50256 or len(set(tokens)) != 50256:
            raise ValueError(f"tiktoken tokenizer: {len(set(tokens))} distinct tokens, expected gpt2's 50256")
        self.name = name
        self.eot = len(tokens)
        self.vocab_size = len(tokens) + 1
        self._bytes = [*tokens, b""]
        self._encoding = tiktoken.Encoding(name, pat_str=GPT2_PATTERN, special_tokens={EOT: self.eot},
                                           mergeable_ranks={token: i for i, token in enumerate(tokens)})

    def encode(self, text: str) -> np.ndarray:
        def batch(pieces):
            if len(pieces) == 1:
                return [self._encoding.encode_ordinary(pieces[0])]
            return self._encoding.encode_ordinary_batch(pieces, num_threads=os.cpu_count() or 1)
        return _encode_pieces(text, CUT_GPT2, batch, _dtype(self.vocab_size))

    def decode(self, ids) -> str:
        return _join(self._bytes, ids)

    def token_bytes(self, id: int) -> bytes:
        _check_ids([id], self.vocab_size)
        return self._bytes[id]

    def to_json(self) -> dict:
        """"tokens" is the vocabulary in id order, spelled as in encoder.json, with spaces between."""
        return {"kind": "tiktoken", "name": self.name, "tokens": " ".join(map(_to_symbols, self._bytes[:-1]))}


def tokenizer_from_json(d: dict) -> "ByteTokenizer | CharTokenizer | BPETokenizer | TiktokenTokenizer":
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
            return TiktokenTokenizer(d["name"], tokens=[_from_symbols(t) for t in d["tokens"].split(" ")])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"tokenizer description of kind {kind!r} is damaged: {error!r}") from None
    raise ValueError(f"tokenizer description has kind {kind!r}, expected 'byte', 'char', 'bpe' or 'tiktoken'")


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

    def flush(self) -> str:
        """Always "": push holds no complete character back, and half a character stays in `pending`."""
        return ""


def _dtype(vocab_size: int) -> type:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _to_bytes(text: str, codec: str = "utf-8", at: int = 0) -> bytes:
    """`at` is where `text` begins in the user's text, for the message."""
    try:
        return text.encode(codec)
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character "
                         f"{at + error.start}: it cannot be written as UTF-8; remove or replace it") from None


def _code_points(text: str, at: int = 0) -> np.ndarray:
    return np.frombuffer(_to_bytes(text, "utf-32-le", at), "<u4")


def _check_ids(ids, vocab_size: int) -> np.ndarray:
    """ids as a 1-D int64 array. Raises ValueError naming the first id that is not in 0..vocab_size-1."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"token ids have shape {ids.shape} and type {ids.dtype}, expected 1-D integers")
    bad = ids[(ids < 0) | (ids >= vocab_size)]
    if bad.size:
        raise ValueError(f"token id {bad[0]} is outside the tokenizer's vocabulary of {vocab_size}; a model "
                         "with a padded vocabulary must not be sampled beyond it")
    return ids.astype(np.int64)


def _join(token_bytes: list[bytes], ids) -> str:
    ids = _check_ids(ids, len(token_bytes)).tolist()
    return b"".join(map(token_bytes.__getitem__, ids)).decode("utf-8", "replace")


def _pieces(text: str, cut: re.Pattern | None) -> Iterator[str]:
    """`text` in pieces, each up to the first `cut` after CHUNK characters, or to the end if there is none."""
    _to_bytes(text)
    start = 0
    while cut and len(text) - start > CHUNK:
        match = cut.search(text, start + CHUNK)
        if not match:
            break
        yield text[start:match.end()]
        start = match.end()
    yield text[start:]


def _encode_pieces(text: str, cut: re.Pattern | None, batch, dtype: type) -> np.ndarray:
    """batch: list of pieces -> iterable of lists of ids."""
    pieces = list(_pieces(text, cut))
    ids = []
    for i in range(0, len(pieces), GROUP):
        ids += [np.array(piece, dtype) for piece in batch(pieces[i:i + GROUP])]
    return np.concatenate(ids)


def _byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where Latin-1 prints it, else U+0100 and on."""
    printable = {b for b in range(256) if chr(b).isprintable() and b != 0x20}
    others = iter(range(0x100, 0x200))
    return {b: chr(b if b in printable else next(others)) for b in range(256)}


_SYMBOL = _byte_symbols()
_BYTE = {symbol: b for b, symbol in _SYMBOL.items()}


def _to_symbols(token: bytes) -> str:
    return "".join(map(_SYMBOL.__getitem__, token))


def _from_symbols(token: str) -> bytes:
    return bytes(map(_BYTE.__getitem__, token))


def _bpe_token_bytes(tokenizer, source: str) -> list[bytes]:
    """The bytes of every id of a `tokenizers` Tokenizer; b"" for special tokens and unused ids."""
    added = tokenizer.get_added_tokens_decoder()
    vocab = tokenizer.get_vocab()
    missing = 256 - len(_BYTE.keys() & vocab.keys())
    if missing:
        raise ValueError(f"{source}: {missing} of the 256 bytes have no token, expected a byte-level BPE")
    table = [b""] * (max(vocab.values()) + 1)
    for token, id in vocab.items():
        if id in added:
            table[id] = b"" if added[id].special else token.encode("utf-8")
        elif _BYTE.keys() >= set(token):
            table[id] = _from_symbols(token)
        else:
            raise ValueError(f"{source}: token {token!r} is not spelled in bytes, expected a byte-level BPE")
    return table


def _gpt2_encoder_json(folder: str | os.PathLike | None) -> bytes:
    """GPT-2's encoder.json from `folder`. Without a folder: from tiktoken's cache ($TIKTOKEN_CACHE_DIR), from
    the folder gpt2 beside this file, or from the network, and then it stays in tiktoken's cache.
    """
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
                 or Path(tempfile.gettempdir(), "data-gym-cache"))
    key = hashlib.sha1(GPT2_URLS[0].encode()).hexdigest()  # the file's name in tiktoken's cache
    home = Path(__file__).resolve().parent / "gpt2"
    hub = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    urls = [url.format(HF_ENDPOINT=hub) for url in GPT2_URLS]
    for place in [Path(folder)] if folder else [cache, home]:
        for path in place / "encoder.json", place / "vocab.json", place / key:
            if path.is_file():
                data = path.read_bytes()
                if hashlib.sha256(data).hexdigest() == GPT2_SHA256:
                    return data
                raise ValueError(f"{path} ({len(data)} bytes) is not GPT-2's encoder.json, expected sha256 "
                                 f"{GPT2_SHA256}; remove it and get {urls[0]}")
    remedy = (f"get encoder.json (vocab.bpe is not needed) from {urls[0]}, or the same file from {urls[1]}, "
              "and put it")
    if folder:
        raise ValueError(f"{folder} has no encoder.json, GPT-2's vocabulary; {remedy} there")
    data, failures = _download(urls)
    if data is None:
        raise ValueError(f"cannot download GPT-2's vocabulary ({'; '.join(failures)}); {remedy} at "
                         f"{home / 'encoder.json'}, or into the folder that TIKTOKEN_CACHE_DIR names")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f"{key}.{os.getpid()}.part"
        part.write_bytes(data)
        part.replace(cache / key)
    except OSError:
        pass  # a cache that cannot be written only means another download next time
    return data


def _download(urls: list[str]) -> tuple[bytes | None, list[str]]:
    """The first answer with the right sha256, and what went wrong before it. 20 s of silence is a failure."""
    import requests
    failures = []
    for url in urls:
        try:
            answer = requests.get(url, timeout=20)
            answer.raise_for_status()
            if hashlib.sha256(answer.content).hexdigest() == GPT2_SHA256:
                return answer.content, failures
            problem = f"other content, {len(answer.content)} bytes"
        except requests.RequestException as error:
            problem = type(error).__name__
        failures.append(f"{url.split('/')[2]}: {problem}")
    return None, failures

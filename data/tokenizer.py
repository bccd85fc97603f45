"""Tokenizers: text to ids and back, as bytes, as characters, as byte-level BPE, or as any tokenizer.json says.

    tokenizer = make_tokenizer("bpe", texts, vocab_size=8192)  # what --tokenizer=... names
    tokenizer = CharTokenizer.train([text])                    # nanoGPT's character vocabulary
    tokenizer = BPETokenizer.train(texts, 4096)                # byte-level BPE, trained here
    tokenizer = BPETokenizer.from_file("tokenizer.json")       # Qwen2, Llama-2, Llama-3, GPT-2, ...
    tokenizer = TiktokenTokenizer("cl100k_base")               # or ("gpt2", "encoder.json" or its folder)
    tokenizer = TrimmedTokenizer.train(tokenizer, texts)       # only the ids the texts use, and all bytes
    tokenizer = read_model_tokenizer("folder")                 # as a model's folder says: WordPiece, Unigram, ...
    ids = tokenizer.encode("To be")                            # 1-D uint16, or uint32 above 65,536 ids
    same = tokenizer_from_json(tokenizer.to_json())            # self-contained; stored in checkpoints

All are Tokenizers; see there for what they have in common. An id outside 0..vocab_size-1 is a ValueError.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data.bpe import CUT, OPENAI_ENCODINGS, WORDS, BPETokenizer, TiktokenTokenizer, TrimmedTokenizer, find_cut
from data.extended import ExtendedTokenizer
from data.json_tokenizer import JsonTokenizer
from data.model_tokenizer import is_model_folder, read_model_tokenizer
from data.plain import EOT, ByteTokenizer, CharTokenizer, IncrementalDecoder, Tokenizer, fingerprint, token_table
from data.vocabulary import HUB, from_symbols, read_json, read_tokenizer_json

__all__ = [  # all that the rest of the project needs
    "CUT", "EOT", "OPENAI_ENCODINGS", "BPETokenizer", "ByteTokenizer", "CharTokenizer", "ExtendedTokenizer",
    "IncrementalDecoder", "JsonTokenizer", "TiktokenTokenizer", "Tokenizer", "TrimmedTokenizer", "find_cut",
    "fingerprint", "make_tokenizer", "read_model_tokenizer", "token_table", "tokenizer_from_json",
]  # fmt: skip

TOKENIZER_NAMES = ("byte", "char", *WORDS, *OPENAI_ENCODINGS, *HUB)


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
) -> Tokenizer:
    """The tokenizer that --tokenizer=name stands for:

    byte, char       with an end-of-text id if `eot`; char has the characters of all texts(None)
    bpe, bpe_code    trained on texts("train"): vocab_size ids (8,192) including special_tokens; see bpe.WORDS
    gpt2, ...        one of OPENAI_ENCODINGS, from `file` (or its folder), tiktoken's cache or the network
    qwen2, llama2    the tokenizer.json in `file` or data/<name>/, or that of its repository on the hub
    owner/name       that of any repository on the hub
    a path           of a tokenizer.json, as is `file` with bpe; or of a model's folder, or a dataset's: exactly its own

    texts(split) iterates over the texts of a split (None: all), from the start at each call. `trim` keeps the ids that
    occur at least min_count times in texts("train") (TrimmedTokenizer). ValueError: what cannot be found or used.
    """
    is_plain, own_file = name in ("byte", "char"), file and Path(file).name.startswith("tokenizer.json")
    if is_plain and (trim or file):
        option = "--trim" if trim else f"--tokenizer_file={file}"
        raise ValueError(f"--tokenizer={name} cannot be combined with {option}; leave out one of the two")
    if name == "char":
        tokenizer = CharTokenizer.train(texts(None), eot)
    elif name == "byte":
        tokenizer = ByteTokenizer(255 if eot else None)
    elif name in WORDS and not file:
        size = 8192 if vocab_size is None else vocab_size
        tokenizer = BPETokenizer.train(texts("train"), size, special_tokens, words=WORDS[name])
    elif name in OPENAI_ENCODINGS and not own_file:
        tokenizer = TiktokenTokenizer(name, file)
    elif file or Path(name).exists() and name not in HUB or name.endswith((".json", ".xz")):
        tokenizer = open_path(Path(file or name), trim)
    elif name in HUB or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        tokenizer = open_tokenizer_json(*read_tokenizer_json(name), trim)
    else:
        raise ValueError(
            f"--tokenizer={name}: no such file or name; expected one of {', '.join(TOKENIZER_NAMES)}, a repository on "
            "the hub (owner/name), or the path of a tokenizer.json"
        )
    return TrimmedTokenizer.train(tokenizer, texts("train"), min_count) if trim else tokenizer


def open_path(path: Path, trim: bool) -> Tokenizer:
    meta = path / "meta.json"
    if meta.is_file():
        try:
            return tokenizer_from_json(read_json(meta).get("tokenizer"))
        except ValueError as error:
            raise ValueError(f"{path} is not a dataset whose tokenizer can be read: {error}") from None
    if is_model_folder(path) and not trim:
        return read_model_tokenizer(path)
    return open_tokenizer_json(*read_tokenizer_json("", path), trim)


def open_tokenizer_json(text: str, source: str, trim: bool = False) -> Tokenizer:
    """A BPETokenizer, whose texts survive, for the file it can read; a JsonTokenizer for any other, unless `trim`."""
    try:
        return BPETokenizer(text, source)
    except ValueError:
        if trim:
            raise
        return JsonTokenizer(text, source=source)


def tokenizer_from_json(d: dict) -> Tokenizer:
    """The tokenizer described by to_json. ValueError for an unknown kind or missing parts."""
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
        if kind == "json":
            return JsonTokenizer(d["tokenizer"], d["bos"], d["ends"])
        if kind == "trimmed":
            return TrimmedTokenizer(tokenizer_from_json(d["base"]), d["ids"])
        if kind == "extended":
            return ExtendedTokenizer(tokenizer_from_json(d["base"]), d["added"], d["ends"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"tokenizer description of kind {kind!r} is damaged: {error!r}") from None
    kinds = "byte, char, bpe, tiktoken, json, trimmed or extended"
    raise ValueError(f"tokenizer description has kind {kind!r}; expected {kinds}")

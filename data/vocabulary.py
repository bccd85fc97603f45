"""Published tokenizer files: found on disk, in a cache, or downloaded; and parsed.

    tokens = read_ranks("cl100k_base")                   # an OpenAI vocabulary: a list of bytes, by id
    tokens = read_ranks("gpt2", "folder/or/encoder.json")
    text, path = read_tokenizer_json("qwen2")            # a tokenizer.json from the Hugging Face hub

Without a file, OpenAI vocabularies are looked for in $TIKTOKEN_CACHE_DIR (or tiktoken's default cache) and in
data/<name>/, a tokenizer.json in data/<name>/ and the hub library's cache; then the network is tried, through
HTTPS_PROXY and HF_ENDPOINT or MODELSCOPE_ENDPOINT (mirrors of the hub) if set. Files may be xz-compressed; OpenAI's are
checked by sha256.
"""

import base64
import hashlib
import itertools
import json
import lzma
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data.download import HUB_HOST, addresses_of, download_from_hub, fetch_first

FOLDERS = Path(__file__).resolve().parent  # data/<name>/ may hold the files of the tokenizer <name>
OPENAI_HOST = "https://openaipublic.blob.core.windows.net"
PUBLISHED = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "r50k_base.tiktoken": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "p50k_base.tiktoken": "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    "cl100k_base.tiktoken": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base.tiktoken": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
# Any one of these suffices; the first is downloaded. GPT-2's three are equivalent: its ids are the merge ranks.
NEEDED = {
    "gpt2": ("encoder.json", "vocab.bpe", "r50k_base.tiktoken"),
    "r50k_base": ("r50k_base.tiktoken", "encoder.json", "vocab.bpe"),
    "p50k_base": ("p50k_base.tiktoken",),
    "cl100k_base": ("cl100k_base.tiktoken",),
    "o200k_base": ("o200k_base.tiktoken",),
}
ALIASES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}  # the same files' names on the hub

HUB = {"qwen2": "Qwen/Qwen2-0.5B", "llama2": "KoboldAI/llama2-tokenizer"}  # repositories that need no login


def read_ranks(name: str, file: str | os.PathLike | None = None) -> list[bytes]:
    """The tokens of one of NEEDED in id order, b"" for ids without a merge. `file` may be a folder.

    ValueError if the file is missing or differs from the published one, or if none is on disk and the download fails.
    """
    needed, home = NEEDED[name], FOLDERS / name
    if file and not Path(file).is_dir():
        return _parse(*_known(Path(file), needed))
    for place in [Path(file)] if file else [_cache(), home]:
        for wanted in needed:
            names = [wanted, ALIASES.get(wanted, wanted)]
            names += [*(f"{name}.xz" for name in names), _cache_key(wanted)]
            found = next((place / name for name in names if (place / name).is_file()), None)
            if found:
                return _parse(*_known(found, [wanted]))
    urls = _addresses(needed[0])
    if file:
        remedy = f"get {needed[0]} from {' or '.join(urls)} by other means and put it there"
        raise ValueError(f"{file} has none of {', '.join(needed)}, the vocabulary of {name}; {remedy}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, needed[0])
        if failures := fetch_first(urls, PUBLISHED[needed[0]], path):
            raise ValueError(
                f"cannot download the vocabulary of {name}: {'; '.join(failures)}. Get {needed[0]} from one of these "
                f"addresses by other means and save it as {home / needed[0]}, or in the folder of TIKTOKEN_CACHE_DIR, "
                "or pass it with --tokenizer_file"
            )
        data = path.read_bytes()
    _keep(data, _cache() / _cache_key(needed[0]))
    return _parse(needed[0], data)


def _known(path: Path, needed: Sequence[str]) -> tuple[str, bytes]:
    """Which of the needed files this is, and its contents."""
    data = read_packed(path)
    digest = hashlib.sha256(data).hexdigest()
    for name in needed:
        if PUBLISHED[name] == digest:
            return name, data
    name = needed[0]
    raise ValueError(
        f"{path} ({len(data):,} bytes) is not the published {' or '.join(needed)}: sha256 "
        f"{digest[:16]}..., expected {PUBLISHED[name][:16]}..., from {_addresses(name)[0]}"
    )


def _parse(name: str, data: bytes) -> list[bytes]:
    if name == "encoder.json":
        ids = json.loads(data)
        return [from_symbols(token) for token in sorted(ids, key=ids.get) if token != "<|endoftext|>"]
    if name == "vocab.bpe":  # a comment line, then one merge a line; ids 0-255 are the byte symbols in sorted order
        merges = data.decode("utf-8").splitlines()[1:]
        return [bytes([BYTE[s]]) for s in sorted(BYTE)] + [from_symbols(m.replace(" ", "")) for m in merges]
    ranks = {int(id): base64.b64decode(token) for token, id in map(bytes.split, data.splitlines())}
    return [ranks.get(id, b"") for id in range(max(ranks) + 1)]


def _cache() -> Path:
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    return Path(folder or Path(tempfile.gettempdir(), "data-gym-cache"))


def _cache_key(file: str) -> str:
    """tiktoken's cache names a file after the sha1 of its first address."""
    return hashlib.sha1(_addresses(file)[0].encode()).hexdigest()


def _addresses(file: str) -> list[str]:
    """OpenAI's address of a file, and for GPT-2's two that of the hub or its mirror."""
    if file not in ALIASES:
        return [f"{OPENAI_HOST}/encodings/{file}"]
    hub = addresses_of(f"{HUB_HOST}/openai-community/gpt2/resolve/main/{ALIASES[file]}")
    return [f"{OPENAI_HOST}/gpt-2/encodings/main/{file}", *hub]


def _keep(data: bytes, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        pass  # without a writable cache the file is merely downloaded again


def read_tokenizer_json(name: str, file: str | os.PathLike | None = None) -> tuple[str, str]:
    """The text of a tokenizer.json and its path: `file` (or the one in that folder), else that of `name`, a key of HUB
    or any repository on the hub. ValueError as for read_ranks.
    """
    if file and not Path(file).is_dir():
        return _utf8(Path(file))
    folder = Path(file) if file else FOLDERS / name.split("/")[-1]
    for path in folder / "tokenizer.json", folder / "tokenizer.json.xz":
        if path.is_file():
            return _utf8(path)
    if file:
        raise ValueError(f"{folder} has no tokenizer.json")
    remedy = f"save it as {folder / 'tokenizer.json'}, or pass it with --tokenizer_file"
    return _utf8(download_from_hub(HUB.get(name, name), ["tokenizer.json"], remedy)[0])


def read_packed(path: Path) -> bytes:
    """The contents of a file, decompressed if its name ends in .xz. ValueError if it cannot be read."""
    try:
        data = path.read_bytes()
        return lzma.decompress(data) if path.suffix == ".xz" else data
    except (OSError, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read {path} ({reason}); expected a tokenizer file") from None


def read_json(path: Path) -> dict:
    """Raises ValueError if the file is not a JSON object."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not a readable JSON object: {error}") from error


def _utf8(path: Path) -> tuple[str, str]:
    data = read_packed(path)
    try:
        return data.decode("utf-8"), str(path)
    except UnicodeDecodeError as error:
        hint = " (a SentencePiece model? convert it, or get the tokenizer.json published with it)"
        raise ValueError(
            f"{path}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8"
            f"{hint * (path.suffix == '.model')}; expected a tokenizer.json"
        ) from None


def parse_bpe(text: str, source: str) -> dict:
    """A tokenizer.json as a dict, without what would change texts: a space before the first word, NFC normalization,
    whitespace stripped around added tokens, dropout, truncation and padding.

    ValueError, naming `source`, for any model but BPE, and for other settings that change texts.
    """
    try:
        d = json.loads(text)
        kind = d["model"].get("type", "BPE")
        normalizers = list_parts(d.get("normalizer"))
        splits, decoders = list_parts(d.get("pre_tokenizer")), list_parts(d.get("decoder"))
        added = d.get("added_tokens") or []
        d["added_tokens"] = [{**token, "lstrip": False, "rstrip": False} for token in added]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} is not a tokenizer.json: {error!r}") from None
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    changes = [n["type"] for n in normalizers if n != spaces and n["type"] not in ("NFC", "Prepend")]
    changes += [s["type"] for s in splits if s.get("behavior") == "Removed"]
    if kind != "BPE" or changes:
        found = f"its {changes[0]} changes the text" if kind == "BPE" else f"its model is {kind}"
        raise ValueError(f"{source}: {found}; expected a BPE that keeps the text as it is")
    drop_first_space(d)
    d["normalizer"] = spaces if spaces in normalizers else None
    if decoders:
        decoders = [part for part in decoders if part["type"] != "Strip"]  # the space before the first word
        d["decoder"] = {"type": "Sequence", "decoders": decoders}
    d["truncation"] = d["padding"] = d["model"]["dropout"] = None
    return d


def drop_first_space(d: dict) -> None:
    """Changes a tokenizer.json so that no space is put before a text."""
    normalizers = list_parts(d.get("normalizer"))
    if any(part["type"] == "Prepend" for part in normalizers):
        d["normalizer"] = {"type": "Sequence", "normalizers": [p for p in normalizers if p["type"] != "Prepend"]}
    for part in list_parts(d.get("pre_tokenizer")) + list_parts(d.get("decoder")):
        part.update({"add_prefix_space": False} if "add_prefix_space" in part else {})
        part.update({"prepend_scheme": "never"} if "prepend_scheme" in part else {})


def list_parts(part: dict | None) -> list[dict]:
    """The steps of a normalizer, pre-tokenizer or decoder, nested sequences flattened."""
    if part is None or part["type"] != "Sequence":
        return [] if part is None else [part]
    lists = [value for value in part.values() if isinstance(value, list)]
    return [p for inner in itertools.chain(*lists) for p in list_parts(inner)]


def bpe_token_bytes(vocab: dict[str, int], added: dict, fallback: bool, source: str) -> list[bytes]:
    """The bytes of every id in a tokenizer.json, b"" for special tokens and unused ids.

    `added` maps ids to the library's AddedToken; `fallback`: tokens are spelled as in Llama-2, not as in GPT-2.
    ValueError if a byte has no token.
    """
    spellings = {token: bytes([b]) for b, token in enumerate(byte_spellings(fallback))}
    missing = len(spellings.keys() - vocab.keys())
    if missing:
        raise ValueError(
            f"{source}: {missing} of the 256 bytes have no token; expected a byte-level BPE, or one with byte_fallback"
        )
    table = [b""] * (max(vocab.values()) + 1)
    for token, id in vocab.items():
        if id in added:
            table[id] = b"" if added[id].special else token.encode("utf-8")
        elif fallback:
            table[id] = spellings.get(token) or token.replace("\u2581", " ").encode("utf-8")
        else:
            try:
                table[id] = from_symbols(token)
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from None
    return table


def byte_spellings(fallback: bool) -> list[str]:
    """How a tokenizer.json spells the 256 bytes: as in Llama-2 (fallback) or as in GPT-2."""
    return [f"<0x{b:02X}>" if fallback else SYMBOL[b] for b in range(256)]


def _byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: the Latin-1 character if printable, else one from U+0100 on."""
    printable = {b for b in range(256) if chr(b).isprintable() and b != 0x20}
    others = iter(range(0x100, 0x200))
    return {b: chr(b if b in printable else next(others)) for b in range(256)}


SYMBOL = _byte_symbols()
BYTE = {symbol: b for b, symbol in SYMBOL.items()}
# Characters below U+0100 that stand for no byte must not be taken for one
_LATIN_1 = {**dict.fromkeys(range(256), 0xFFFD), **{ord(symbol): b for symbol, b in BYTE.items()}}


def to_symbols(token: bytes) -> str:
    return "".join(map(SYMBOL.__getitem__, token))


def from_symbols(token: str) -> bytes:
    """ValueError for a character that stands for no byte."""
    try:
        return token.translate(_LATIN_1).encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"token {token!r} is not spelled in bytes; expected a byte-level BPE") from None

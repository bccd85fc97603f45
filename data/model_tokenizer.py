"""The tokenizer of a model's folder in Hugging Face's format, with what the files beside tokenizer.json say of it.

    tokenizer = read_model_tokenizer(Path("Qwen2-0.5B"))

Its ids are those of transformers' AutoTokenizer: of whole texts, with bos and a first space where the folder has them.
Where a reader of ours gives the same, that one is taken: it knows every token's bytes and can be trimmed.
"""

import json
from pathlib import Path
from typing import Any

from data.bpe import BPETokenizer
from data.json_tokenizer import JsonTokenizer, load_library
from data.plain import EOT, ByteTokenizer, CharTokenizer, Tokenizer
from data.vocabulary import parse_bpe, read_json, read_tokenizer_json, to_symbols

# all that belongs to a tokenizer, in any of the formats in use
VOCABULARY_FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.json",
    "merges.txt", "vocab.txt",
)  # fmt: skip
TOKENIZER_FILES = (
    *VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "generation_config.json",
)  # fmt: skip
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
DEFAULT_IDS = {"gpt2": (50256, 50256), "llama": (1, 2), "mistral": (1, 2)}  # of bos and eos
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def is_model_folder(path: Path) -> bool:
    return any((path / file).is_file() for file in ("config.json", "tokenizer_config.json"))


def read_model_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`. ValueError if it has none that can be run."""
    text, source = find_tokenizer_json(folder)
    try:
        settings = read_settings(folder / "special_tokens_map.json") | read_settings(folder / "tokenizer_config.json")
        text = with_settings(text, settings, source)
        ids = special_ids(folder)
        ends, bos = ids["eos_token_id"], ids["bos_token_id"]
        spelled = load_library(text, source).token_to_id
        if bos is None and (name := spelling(settings.get("bos_token"))):
            bos = spelled(name)
        if ends is None and (name := spelling(settings.get("eos_token"))):
            ends = spelled(name)
        if isinstance(bos, list):
            bos = bos[0]
        if ends is None and is_model_folder(folder):
            ends = []  # it has had its say
        tokenizer = JsonTokenizer(text, bos, [ends] if isinstance(ends, int) else ends, source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} is not a tokenizer.json: {error!r}") from None
    return same_but_simpler(json.loads(text), tokenizer) or tokenizer


def find_tokenizer_json(folder: Path) -> tuple[str, str]:
    """The text and the path of tokenizer.json. ValueError says what to do with a folder that has another format."""
    if not any((folder / f"tokenizer.json{end}").is_file() for end in ("", ".xz")):
        others = [name for name in VOCABULARY_FILES if (folder / name).is_file()]
        found = f"{folder} has no tokenizer.json" + (f", only {', '.join(others)}" if others else "")
        make = f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        raise ValueError(
            f"{found}: save the one of a model with the same tokenizer there, or let transformers (with its package "
            f"sentencepiece) write it: {make}"
        )
    return read_tokenizer_json("", folder)


def read_settings(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def special_ids(folder: Path) -> dict[str, Any]:
    """SPECIAL_IDS -> an id, a list of them or None: generation_config.json's, else config.json's. Where there is only
    the latter and it does not mention one, transformers' default for that model_type."""
    generation, config = found = [read_settings(folder / f) for f in ("generation_config.json", "config.json")]
    if not generation:
        defaults = zip(SPECIAL_IDS, DEFAULT_IDS.get(config.get("model_type"), ()), strict=False)
        found.append({key: id for key, id in defaults if key not in config and id < config.get("vocab_size", 0)})
    ids = {}
    for key in SPECIAL_IDS:
        values = [value for config in found if is_ids(value := config.get(key))]
        ids[key] = values[0] if values else None
    return ids


def is_ids(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(id, int) and not isinstance(id, bool) and id >= 0 for id in items)


def spelling(token: Any) -> str | None:
    """A token in tokenizer_config.json: text, or the fields of an AddedToken."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def with_settings(text: str, settings: dict, source: str) -> str:
    """A tokenizer.json with what transformers takes from tokenizer_config.json: tokens that it lacks, and which are
    special. Unchanged, to the letter, if that is in it already."""
    from tokenizers import AddedToken

    library = load_library(text, source)
    before = library.to_str()
    added = {token.content: token.special for token in library.get_added_tokens_decoder().values()}
    for _, token in sorted((settings.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])):
        name, is_special = token["content"], bool(token.get("special"))
        if name not in added:
            flags = {key: token[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in token}
            add = library.add_special_tokens if is_special else library.add_tokens
            add([AddedToken(name, special=is_special, **flags)])
            added[name] = is_special
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    named = [*(settings.get(key) for key in NAMED), *(extra.values() if isinstance(extra, dict) else extra)]
    for name in filter(None, map(spelling, named)):
        if library.token_to_id(name) is not None and not added.get(name):
            library.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    return text if library.to_str() == before else library.to_str()


def same_but_simpler(d: dict, tokenizer: JsonTokenizer) -> Tokenizer | None:
    """The reader of ours that gives the ids and texts of the tokenizer.json `d` for every text, if there is one."""
    if tokenizer.begin or tokenizer.first_space or d.get("normalizer"):
        return None
    kind, found = d["model"].get("type", "BPE"), None
    if kind == "WordLevel":
        found = same_chars(d, tokenizer)
    elif kind == "BPE":
        found = same_bytes(d, tokenizer) or (None if tokenizer.lossy else same_bpe(d))
    return found if found and list(found.ends) == list(tokenizer.ends) else None


def same_chars(d: dict, tokenizer: JsonTokenizer) -> CharTokenizer | None:
    """A CharTokenizer, if `d` is what export.py writes for one: every token is a character, every character a word."""
    isolated = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    *chars, last = tokenizer.tokens
    chars += [last] * (last != EOT)
    if d.get("pre_tokenizer") != isolated or d.get("decoder") != {"type": "Fuse"} or not chars:
        return None
    if any(len(char) != 1 for char in chars) or d["model"].get("unk_token") in tokenizer.tokens:
        return None
    return CharTokenizer("".join(chars), eot=last == EOT) if added_tokens(d) <= {EOT} else None


def same_bytes(d: dict, tokenizer: JsonTokenizer) -> ByteTokenizer | None:
    """A ByteTokenizer, if `d` is what export.py writes for one: byte b is id b, but 255 may be the end of text."""
    eot = 255 if tokenizer.tokens[255:] == [EOT] else None
    split = {key: (d.get("pre_tokenizer") or {}).get(key) for key in ("type", "add_prefix_space", "use_regex")}
    whole = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    if split != whole or d["model"].get("merges") or not added_tokens(d) <= {EOT}:
        return None
    symbols = [EOT if b == eot else to_symbols(bytes([b])) for b in range(256)]
    return ByteTokenizer(eot) if tokenizer.tokens == symbols else None


def same_bpe(d: dict) -> BPETokenizer | None:
    """A BPETokenizer, if it reads all of `d` as it is, and `d` is byte-level: others take typed signs for spaces."""
    text = json.dumps(d)
    try:
        parsed = parse_bpe(text, "tokenizer.json")
    except ValueError:
        return None
    parsed["model"]["dropout"] = d["model"].get("dropout")
    same = all(parsed.get(key) == d.get(key) for key in ("model", "normalizer", "pre_tokenizer"))
    strips = any(token["lstrip"] or token["rstrip"] for token in d.get("added_tokens") or [] if not token["special"])
    if not same or strips or d["model"].get("byte_fallback"):
        return None
    return BPETokenizer(text)


def added_tokens(d: dict) -> set[str]:
    return {token["content"] for token in d.get("added_tokens") or []}

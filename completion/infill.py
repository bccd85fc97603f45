"""Prompts for the text between two texts, for models that learned to fill in the middle (data/fim.py).

    ids = infill_prompt(tokenizer, "def add(a, b):\n", "\n    return c\n", room=192)    # None without such tokens

The ids that follow, up to one of tokenizer.ends or any special token, are the middle.
"""

from data.fim import FILE_SEP, arrange, find_markers, name_ids
from data.tokenizer import Tokenizer

SUFFIX_SHARE = 4  # the suffix gets at most a quarter of the room that the prefix needs too


def has_learned(state: dict, tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether the model of a checkpoint has learned to fill in a middle, and whether it has seen names of files. For a
    model trained elsewhere, its tokenizer decides."""
    source, has_markers = state.get("meta", {}).get("source"), find_markers(tokenizer) is not None
    if source is None:
        return has_markers, has_markers and FILE_SEP in tokenizer.special_tokens
    return has_markers and bool(source.get("fim_rate")), bool(source.get("file_names"))


def infill_prompt(
    tokenizer: Tokenizer, prefix: str, suffix: str, room: int, name: str = "", spm: bool = False
) -> list[int] | None:
    """Ids after which the middle follows, at most `room` of them; None if the tokenizer has no tokens for that.

    They hold the end of the prefix and the beginning of the suffix, in whole lines where that wastes little. `name`:
    the file's, used where the model has seen names. spm: suffix before prefix. Otherwise the prefix may end inside a
    word: training cuts texts there too, and the middle starts with a token of its own. ValueError if `room` is too
    small, or for text that the tokenizer cannot encode.
    """
    markers = find_markers(tokenizer)
    if markers is None:
        return None
    front = [*tokenizer.begin, *short_name_ids(tokenizer, name, room)]
    left = room - len(front) - len(markers)
    if left < SUFFIX_SHARE:
        raise ValueError(f"room for {room} tokens is too little for a text with a gap: expected at least 8")
    after = first_ids(tokenizer, suffix, left)
    before = last_ids(tokenizer, prefix, left - min(len(after), left // SUFFIX_SHARE))
    if len(before) + len(after) > left:
        after = first_ids(tokenizer, suffix, left - len(before))
    return front + arrange(markers, before, after, spm)


def short_name_ids(tokenizer: Tokenizer, name: str, room: int) -> list[int]:
    """Ids that name a file; none if they would leave little of the room for its text."""
    ids = name_ids(tokenizer, name)
    return ids if len(ids) <= room // SUFFIX_SHARE else []


def last_ids(tokenizer: Tokenizer, text: str, room: int) -> list[int]:
    """Ids of the last lines of a text that fit, or the last `room` ids if whole lines waste half of them."""
    end = text[max(0, len(text) - tokenizer.max_chars_per_token * (room + 1)) :]
    ids = tokenizer.encode(end, inside=True).tolist()
    if len(ids) <= room:
        return ids
    begin = len(end) - len(tokenizer.decode(ids[len(ids) - room :]).lstrip("\ufffd"))
    for _ in range(2):  # a line alone may have an id more than with the newline before it
        line = end.find("\n", max(0, begin - 1)) + 1
        lines = tokenizer.encode(end[line:], inside=True).tolist()
        if line and room // 2 < len(lines) <= room:
            return lines
        begin = line + 1
    return ids[len(ids) - room :]


def first_ids(tokenizer: Tokenizer, text: str, room: int) -> list[int]:
    """Ids of the first lines of a text that fit, or the first `room` ids if whole lines waste half of them."""
    start = text[: tokenizer.max_chars_per_token * (room + 1)]
    ids = tokenizer.encode(start, inside=True).tolist()
    if len(ids) <= room:
        return ids
    end = len(tokenizer.decode(ids[:room]).rstrip("\ufffd"))
    for _ in range(2):
        line = start.rfind("\n", 0, end) + 1
        lines = tokenizer.encode(start[:line], inside=True).tolist()
        if room // 2 < len(lines) <= room:
            return lines
        end = max(0, line - 1)
    return ids[:room]

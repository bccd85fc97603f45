"""Conversations: read from rows of the usual shapes, checked, and encoded by the one template of this project.

    for place, messages in read_conversations(path, refuse):      # [{"role": "user", "content": "..."}, ...]
        for ids, mask in pieces_of_conversation(messages, tokenizer, longest=257):

The template: what begins every text, then for each turn its marker, its words and <|end|>. The markers are special
tokens (chat_tokenizer adds them), so a user who types them writes text. mask says what is learned: the assistant's
words and the <|end|> after them.
"""

import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.encodings import not_utf8
from data.extended import ExtendedTokenizer
from data.formats import cannot_read, import_pyarrow, kind_of, parquet_errors
from data.plain import Tokenizer
from data.rows import json_rows
from data.streams import decompressed

MARKERS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
TURN_END = "<|end|>"
ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip
LISTS = ("messages", "conversations", "conversation")
# fields of a row with one question and its answer; those in the middle are appended to the question
PAIRS = (("instruction", "input", "output"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"))
ROW_KINDS = (".jsonl", ".ndjson", ".json", ".parquet")

Messages = list[dict[str, str]]


# ---- reading -----------------------------------------------------------------------------------------------


def read_conversations(path: Path, refuse: Callable[[str, str], None]) -> Iterator[tuple[str, Messages]]:
    """(file:row, its messages) of a .jsonl, .json or .parquet file, which may be compressed. refuse(place, reason) is
    called for a row that is not a conversation. ValueError: a file that cannot be read."""
    for number, row in rows_of(path):
        place = f"{path}:{number}"
        try:
            if isinstance(row, ValueError):
                raise row
            messages = messages_in(row)
            check_messages(messages)
        except ValueError as error:
            refuse(place, str(error))
        else:
            yield place, messages


def rows_of(path: Path) -> Iterator[tuple[int, Any]]:
    """(line of a .jsonl, else number from 1; the row, or a ValueError for a line that is not JSON)."""
    kind, compression = kind_of(path.name)
    if kind not in ROW_KINDS:
        raise ValueError(f"{path} is not a file of conversations: expected {', '.join(ROW_KINDS)}")
    try:
        if kind == ".parquet":
            pyarrow = import_pyarrow()
            with parquet_errors(path), pyarrow.parquet.ParquetFile(path) as file:
                batches = file.iter_batches(batch_size=256)
                yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
            return
        with open(path, "rb") as file:
            lines = io.BufferedReader(decompressed(file, compression)) if compression else file
            if kind == ".json":
                texts = [lines.read().decode("utf-8-sig")]
                yield from json_rows(texts, (*LISTS, *(field for pair in PAIRS for field in pair)), str(path))
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, json_line(line)
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(str(path), error)) from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(cannot_read(path, error)) from error


def json_line(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return ValueError("not a line of JSON in UTF-8")


def messages_in(row: Any) -> Messages:
    """The messages of a row. ValueError, with the reason, if it has none of the usual shapes."""
    if not isinstance(row, dict):
        raise ValueError("not an object")
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for key in LISTS:
        if isinstance(turns := row.get(key), list):
            return [message_of(turn) for turn in [*system, *turns]]
    for question, *more, answer in PAIRS:
        if row.get(question) is not None and answer in row:
            asked = [row[key] for key in (question, *more) if row.get(key)]
            if not all(isinstance(text, str) for text in asked):
                raise ValueError("content is not text")
            exchanges = [*earlier_exchanges(row), ("\n".join(asked), row[answer])]
            roles = ("user", "assistant") * len(exchanges)
            texts = [text for said in exchanges for text in said]
            turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            return [message_of(turn) for turn in [*system, *turns]]
    raise ValueError("no field messages, conversations, instruction and output, or prompt and response")


def earlier_exchanges(row: dict) -> list:
    """The [question, answer] of a row's history, as LLaMA-Factory's alpaca format has it."""
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(said, list) and len(said) == 2 for said in history):
        raise ValueError("history is not a list of [question, answer]")
    return history


def message_of(turn: Any) -> dict[str, str]:
    """{"role", "content"} of a turn with these, or from and value. ValueError if it is none."""
    if not isinstance(turn, dict):
        raise ValueError("a turn is not an object")
    name, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(name, str) or name not in ROLES:
        raise ValueError(f"unknown role {str(name)[:20]!r}")
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)  # OpenAI's parts
    if not isinstance(content, str):
        raise ValueError("content is not text")
    return {"role": ROLES[name], "content": content}


def check_messages(messages: Messages) -> None:
    """ValueError unless these are a system turn or none, then user and assistant in turn, all with words. A system turn
    without words and a last turn of the user's, which nobody answers, are removed."""
    roles = [message["role"] for message in messages]
    if roles[:1] == ["system"] and not messages[0]["content"].strip():
        del messages[0], roles[0]
    if roles[-1:] == ["user"]:
        del messages[-1], roles[-1]
    if "assistant" not in roles:
        raise ValueError("no assistant turn")
    turns = roles[1:] if roles[0] == "system" else roles
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("wrong order of turns")
    if not all(message["content"].strip() for message in messages):
        raise ValueError("empty content")


# ---- the template ------------------------------------------------------------------------------------------


def chat_tokenizer(base: Tokenizer) -> ExtendedTokenizer:
    """`base` with the markers it lacks, or itself if it has them all already and ends texts with TURN_END."""
    markers = [*MARKERS.values(), TURN_END]
    if isinstance(base, ExtendedTokenizer) and set(markers) <= base.special_tokens.keys():
        return base
    return ExtendedTokenizer(base, [name for name in markers if name not in base.special_tokens], ends=[TURN_END])


def chat_template(tokenizer: Tokenizer) -> str:
    """The template in Jinja, as transformers renders it, with the assistant's words marked for its masks."""
    spelled = {id: name for name, id in tokenizer.special_tokens.items()}
    begin = "".join(spelled[id] for id in tokenizer.begin if id in spelled)
    return (
        ("{{ " + repr(begin) + " }}" if begin else "")
        + "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% if message['role'] == 'assistant' %}"
        + "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
        + "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
        + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )


def encode_turns(messages: Messages, tokenizer: ExtendedTokenizer) -> tuple[list[int], list[bool]]:
    """The ids of turns, without what begins a text, and whether each is learned. Ids of turns depend on no others."""
    ids, mask = [], []
    markers = {tokenizer.special_tokens[name] for name in (*MARKERS.values(), TURN_END)}
    for message in messages:
        words = tokenizer.encode(message["content"], inside=not tokenizer.space_after_special).tolist()
        if not markers.isdisjoint(words):
            raise ValueError("the tokenizer takes a marker typed in the text for the marker itself: remove it")
        ids += [tokenizer.special_tokens[MARKERS[message["role"]]], *words, tokenizer.special_tokens[TURN_END]]
        mask += [False] + [message["role"] == "assistant"] * (len(words) + 1)
    return ids, mask


def pieces_of_conversation(
    messages: Messages, tokenizer: ExtendedTokenizer, longest: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """((ids, mask) of at most `longest` ids each, the number of exchanges that are longer and left out).

    A conversation that is too long is cut before a user's turn; each piece begins with the system turn. So every
    answer is learned once, with the turns of its piece before it.
    """
    n_first = int(messages[0]["role"] == "system")
    head, head_mask = encode_turns(messages[:n_first], tokenizer)
    head, head_mask = [*tokenizer.begin, *head], [False] * len(tokenizer.begin) + head_mask
    pieces, too_long, ids, mask = [], 0, list(head), list(head_mask)

    def finish() -> None:
        nonlocal ids, mask
        if any(mask):
            pieces.append((np.array(ids, np.int64), np.array(mask)))
        ids, mask = list(head), list(head_mask)

    for i in range(n_first, len(messages), 2):
        more, more_mask = encode_turns(messages[i : i + 2], tokenizer)
        if len(ids) + len(more) > longest:
            finish()
        if len(ids) + len(more) > longest:
            too_long += 1
        else:
            ids, mask = ids + more, mask + more_mask
    finish()
    return pieces, too_long


def chat_prompt(messages: Messages, tokenizer: ExtendedTokenizer, room: int) -> list[int]:
    """The ids that the assistant's answer to the last turn follows, at most `room`: the system turn, as many of the
    last turns as fit, from a user's turn on, and the assistant's marker. ValueError if the last turn does not fit."""
    n_first = int(messages[0]["role"] == "system")
    head = [*tokenizer.begin, *encode_turns(messages[:n_first], tokenizer)[0]]
    tail = [tokenizer.special_tokens[MARKERS["assistant"]]]
    room -= len(head) + len(tail)
    kept: list[int] = []
    for first in range(len(messages) - 1, n_first - 1, -2):  # each turn is encoded once, those left out are not
        ids = encode_turns(messages[first : first + 2], tokenizer)[0]
        if len(ids) + len(kept) > room:
            break
        kept = ids + kept
    if not kept:
        beside = " beside the system turn" * n_first
        raise ValueError(
            f"the last turn has {len(ids):,} tokens, but the model's context has room for {max(0, room):,}{beside}"
        )
    return head + kept + tail

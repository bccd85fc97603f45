"""What all requests for text have in common: the model that answers them, and how the news of their rows is told."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from data.extended import ExtendedTokenizer
from data.fim import text_ids
from inference.continuation import Beginning
from inference.ngram import NGram
from serving.engine import Row
from serving.request import MAX_SEED, Fields, RequestError

MAX_ROWS = 128  # of one request


@dataclass
class Served:
    """A model as requests see it."""

    name: str
    tokenizer: object
    block_size: int
    special: str = "text"  # what special tokens typed in prompts are: text, or with "encode" their ids
    chat: ExtendedTokenizer | None = None  # the tokenizer, if it has the markers of conversations
    bos: int | None = None  # the id that began every training window, if any
    infill: Callable | None = None  # completion.infill.infill_prompt, if the model learned to fill in the middle
    ngram: NGram | None = None  # an n-gram model, to be mixed in
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def text_ids(self) -> int:
        """How many of the first ids a text is drawn from, unless it fills a gap."""
        return text_ids(self.tokenizer)

    @cached_property
    def ends_of_middle(self) -> set[int]:
        """The ids that end a text which fills a gap."""
        return {*self.tokenizer.ends, *self.tokenizer.special_tokens.values()}

    @cached_property
    def names(self) -> dict[int, str]:
        return {id: name for name, id in self.tokenizer.special_tokens.items()}

    def bytes_of(self, id: int) -> bytes:
        """The text that an id stands for, alone; for a special token, none."""
        return self.tokenizer.decode([id]).encode() if self.tokenizer.lossy else self.tokenizer.token_bytes(id)

    def piece(self, id: int) -> str:
        """An id to look at: its text, or a special token's name."""
        return self.names.get(id) or self.bytes_of(id).decode("utf-8", "replace")

    def ids(self, prompt: list) -> list[int]:
        """The ids themselves, if they are ids of the tokenizer."""
        size = self.tokenizer.vocab_size
        if not prompt or not all(type(id) is int and 0 <= id < size for id in prompt):
            raise RequestError(f"prompt: expected token ids from 0 to {size - 1}, at least one", param="prompt")
        return prompt

    def room(self, beginning: Beginning, most: int) -> int:
        """How many new tokens there are at most: `most`, or what the context has room for."""
        length = len(beginning.ids)
        if length > self.block_size - (most > 0):
            message = f"the prompt has {length:,} tokens, but the model's context is {self.block_size:,}, text included"
            raise RequestError(message, param="prompt", code="context_length_exceeded")
        return min(self.block_size - length, most)


class Reply:
    """The rows of a request, and what its client has been told of them. Made by one thread, told by another.

    Subclasses define whole(), the response when all rows are done, or, if it streams, the events: first(), grown(i) for
    each row with news, and last()."""

    prefix = "cmpl"

    def __init__(self, served: Served, fields: Fields, rows: list[Row]):
        self.served, self.fields, self.rows = served, fields, rows
        self.streams = fields.get("stream", bool, False)
        self.wants_usage = bool(fields.get("stream_options", dict, {}).get("include_usage"))
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self.wake = asyncio.Event()
        self.told = [(0, 0, 0, False)] * len(rows)  # characters, tokens, characters of these tokens, all
        for row in rows:
            row.job, row.streams = self, self.streams

    def last(self) -> Iterator[dict]:
        if self.wants_usage:
            yield self.body([], usage=self.usage())

    @property
    def done(self) -> bool:
        return all(row.done for row in self.rows)

    def check(self) -> None:
        """RequestError if a row failed."""
        for row in self.rows:
            if row.done and row.error:
                raise RequestError(f"the model failed: {row.error}", status=500)

    def news(self, i: int) -> tuple[str, list[tuple[int, dict]], str | None]:
        """What row i has since the last call: text, tokens with the place in the text where each begins, and why it
        ended, once. Tokens come when their characters are certain, without the one that ends the text and those
        that a stop string cut off."""
        row, (chars, n, offset, told_all) = self.rows[i], self.told[i]
        done, text = row.done, row.text.text  # in this order: done comes last
        finish = row.text.finish if done else None
        tokens = []
        for token in row.text.tokens[n:]:
            end = offset + len(token["text"])
            is_cut = finish == "stop" and offset >= len(text) or token["id"] in row.text.ends
            if not done and end > len(text):
                break
            if not is_cut:
                tokens.append((offset, token))
            n, offset = n + 1, end
        self.told[i] = len(text), n, offset, done
        return text[chars:], tokens, None if told_all else finish

    def usage(self) -> dict:
        """OpenAI's; a prompt that several rows share counts once."""
        prompts = {id(row.text.beginning): (len(row.prompt), row.reused) for row in reversed(self.rows)}
        asked, reused = (sum(column) for column in zip(*prompts.values(), strict=True))
        written = sum(len(row.text.tokens) for row in self.rows)
        return {
            "prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written,
            "prompt_tokens_details": {"cached_tokens": reused},
        }  # fmt: skip


def seeds(fields: Fields, n: int) -> list[int]:
    """seed, seed + 1, ... for n rows; a random one if there is none, or llama.cpp's -1."""
    seed = fields.integer("seed", None, -MAX_SEED, MAX_SEED)
    if seed in (None, -1):
        seed = secrets.randbits(31)  # JavaScript reads it exactly
    return [seed + i for i in range(n)]

"""Answers of a model that was trained on conversations: one as it grows, in a terminal, or of many in batches.

    chat = Chat(model, chat_tokenizer_of(state), Sampling(temperature=0.8), max_new_tokens=200)
    for text in chat.answer([{"role": "user", "content": "Who are you?"}]):
        print(text, end="")

What a user types is text, markers included. A conversation that outgrows the model's context loses its first turns,
whole ones.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from data.conversations import (
    MARKERS,
    TURN_END,
    Messages,
    chat_prompt,
    chat_tokenizer,
    check_messages,
    messages_in,
    rows_of,
)
from data.extended import ExtendedTokenizer
from inference.cache import KVCache
from inference.generate import stream
from inference.load import find_tokenizer
from inference.sampling import Sampling
from model import GPT

NO_REPEAT_NGRAM = 4  # for answers: more of them end, and the texts are as likely as without (RESULTS.md)
CHAT_HELP = """Type a message and press Enter; \\n is a new line. Ctrl-C ends the answer.
/reset starts over, /save FILE adds the conversation to a .jsonl, Ctrl-D (Windows: Ctrl-Z, Enter) leaves."""


def chat_tokenizer_of(state: dict) -> ExtendedTokenizer:
    """The checkpoint's tokenizer. ValueError if it has no markers, so that the model knows no turns."""
    tokenizer = find_tokenizer(state)
    if not {*MARKERS.values(), TURN_END} <= tokenizer.special_tokens.keys():
        how = "prepare some with data/chat/prepare.py, and train with config/chat_small.py (a large model: chat.py)"
        raise ValueError(f"the model was not trained on conversations, its tokenizer has no {TURN_END}: {how}")
    return chat_tokenizer(tokenizer)


def stops_of(tokenizer: ExtendedTokenizer) -> dict[int, str]:
    """Ids after which an answer is complete -> its finish: 'end' if the model ended it, 'marker' if it went on with
    another turn."""
    markers = (tokenizer.special_tokens[name] for name in MARKERS.values())
    return dict.fromkeys(markers, "marker") | dict.fromkeys(tokenizer.ends, "end")


def fit_sampling(sampling: Sampling, tokenizer: ExtendedTokenizer) -> None:
    """Penalties spare what ends an answer, and of sequences judge the answer alone."""
    sampling.vocab_size, sampling.unpenalized = tokenizer.vocab_size, tuple(stops_of(tokenizer))
    sampling.new_only = True


class Chat:
    """finish: why the last answer ended: 'end', 'marker', 'length' (no room is left), None if it was interrupted."""

    def __init__(self, model: GPT, tokenizer: ExtendedTokenizer, sampling: Sampling, max_new_tokens: int):
        self.model, self.tokenizer, self.sampling, self.max_new_tokens = model, tokenizer, sampling, max_new_tokens
        self.stops, self.finish = stops_of(tokenizer), None
        fit_sampling(sampling, tokenizer)
        weight = model.transformer.wte.weight
        self.device = weight.device
        self.cache, self.cached = KVCache(model.config, 1, weight.device, weight.dtype), []  # cached: its ids

    def answer(self, messages: Messages, generator: torch.Generator | None = None) -> Iterator[str]:
        """The answer to the last of `messages`, in pieces. Only the ids after those that it shares with the last
        conversation are encoded. ValueError if the last turn does not fit the context."""
        block_size, self.finish = self.model.config.block_size, None
        prompt = chat_prompt(messages, self.tokenizer, room_for_prompt(block_size, self.max_new_tokens))
        decoder, limit = self.tokenizer.decoder(prompt), min(self.max_new_tokens, block_size - len(prompt))
        self.prompts = torch.tensor([prompt], device=self.device)
        for ids, _ in stream(self.model, self.prompts, limit, self.sampling, generator, decoder=self):
            if (id := int(ids)) in self.stops:
                self.finish = self.stops[id]
                break
            yield decoder.push(id)
        else:
            self.finish = "length"
        yield decoder.finish()

    # ---- what stream() asks of a Decoder ----

    def start(self) -> torch.Tensor:
        prompt = self.prompts[0].tolist()
        keep = min(shared(self.cached, prompt), len(prompt) - 1)
        self.cache.length, self.cached = keep, self.cached[:keep]
        return self.advance(self.prompts[0, keep:])

    @torch.inference_mode()
    def advance(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model(ids[None], cache=self.cache)[0][:, -1]
        self.cached += ids.tolist()
        return logits


def room_for_prompt(block_size: int, most: int) -> int:
    """Ids of a prompt that leave room for an answer of `most`, but at most a quarter of the context."""
    return block_size - min(most, block_size // 4)


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of ids with which both begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def answer_all(
    model: GPT, tokenizer: ExtendedTokenizer, prompts: list[list[int]], sampling: Sampling, most: int, seeds: list[int]
) -> list[tuple[str, str, int]]:
    """(text, finish, number of tokens) of an answer to each of the prompts, from chat_prompt, drawn together: at most
    `most` tokens, and no more than the context has room for. A row does not depend on the others."""
    device, stops = model.transformer.wte.weight.device, stops_of(tokenizer)
    limits = [min(most, model.config.block_size - len(prompt)) for prompt in prompts]
    rows, finish = [[] for _ in prompts], ["" if limit > 0 else "length" for limit in limits]
    fit_sampling(sampling, tokenizer)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    idx = [torch.tensor(prompt, device=device) for prompt in prompts]
    for ids, _ in stream(model, idx, max(limits), sampling, generators):
        for i, id in enumerate(ids.tolist()):
            if not finish[i]:
                rows[i] += [id] * (id not in stops)
                finish[i] = stops.get(id, "length" if len(rows[i]) == limits[i] else "")
        if all(finish):
            break
    texts = []
    for prompt, row in zip(prompts, rows, strict=True):
        decoder = tokenizer.decoder(prompt)
        texts.append("".join(map(decoder.push, row)) + decoder.finish())
    return list(zip(texts, finish, map(len, rows), strict=True))


def read_questions(path: Path) -> dict[str, Messages]:
    """The conversations of a file by their place, each up to a user's turn: an answer to the last one is left out.
    ValueError for a row that is none, with its line."""
    questions = {}
    for number, row in rows_of(path):
        try:
            if isinstance(row, ValueError):
                raise row
            messages = messages_in(row)
            if messages[-1:] and messages[-1]["role"] == "assistant":
                del messages[-1]
            check_messages([*messages, {"role": "assistant", "content": "an answer"}])
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}; expected turns of which the last is the user's") from None
        questions[f"{path}:{number}"] = messages
    if not questions:
        raise ValueError(f"{path} has no conversations")
    return questions


# ---- the terminal ------------------------------------------------------------------------------------------


def talk(chat: Chat, system: str, seed: int) -> None:
    """The user and the model take turns, until the end of input."""
    print(CHAT_HELP, file=sys.stderr)
    start = [{"role": "system", "content": system}] if system else []
    messages, generator = list(start), torch.Generator().manual_seed(seed)
    for line in typed_lines():
        command, _, name = line.strip().partition(" ")
        if command == "/reset":
            messages = list(start)
        elif command == "/save":
            save_conversation(messages if messages != start else [], name.strip())
        elif line.strip():
            reply(chat, messages, line, generator)


def typed_lines() -> Iterator[str]:
    """What the user types, a line at a time, until the end of input; \\n in it is a new line. Ctrl-C drops a line."""
    with suppress(ImportError):
        import readline  # noqa: F401  history, and editing by characters rather than bytes; absent on Windows
    while True:
        try:
            line = input("> ")
        except EOFError:
            print(flush=True)
            return
        except KeyboardInterrupt:
            print(flush=True)
        else:
            yield line.replace("\\n", "\n")


def reply(chat: Chat, messages: Messages, line: str, generator: torch.Generator) -> None:
    """Prints the answer as it grows, and adds both turns to `messages`; neither, if it cannot be asked or the
    answer is empty."""
    asked, text = [*messages, {"role": "user", "content": line}], ""
    try:
        with suppress(KeyboardInterrupt):
            for piece in chat.answer(asked, generator):
                text += piece
                print(piece, end="", flush=True)
    except ValueError as error:  # too long, or a character the tokenizer lacks
        return print(f"error: {error}", file=sys.stderr)
    print(flush=True)
    if text.strip():  # an empty turn would teach the model to say nothing, and fits no file of conversations
        messages[:] = [*asked, {"role": "assistant", "content": text}]


def save_conversation(messages: Messages, name: str) -> None:
    if not name:
        return print("error: /save needs the name of a file", file=sys.stderr)
    if not messages:
        return print("error: nothing has been said yet", file=sys.stderr)
    try:
        with open(name, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    except OSError as error:
        print(f"error: {name} cannot be written: {error.strerror}", file=sys.stderr)

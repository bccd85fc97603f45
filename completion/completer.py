"""Greedy suggestions for a text that changes a little from one request to the next."""

import codecs
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import torch

from checkpoints import checkpoint
from inference.load import find_tokenizer, make_ready, open_trained
from model import GPT, KVCache, Step
from system.device import pick_device

MAX_BYTES = 32  # of a suggestion
CHUNK = 64  # tokens encoded between two looks at whether the request still matters
BACK = 4  # tokens before the cursor that may turn out to be the beginning of a longer one
LONGEST = 32  # characters of text that a token is taken to stand for at most, on average


class Cancelled(Exception):
    """The request is out of date."""


def never() -> bool:
    return False


@dataclass
class Suggestion:
    text: str = ""  # what follows the cursor, without a newline
    confidence: float = 0.0  # probability of all of it
    indent: str | None = None  # the model says that the line ends here, and the next one begins with this
    done: bool = False  # False: the beginning of a suggestion that may still grow


class Completer:
    """Greedy suggestions for a text that changes a little from one request to the next.

    The key/value cache stays: only the tokens that differ from the last request's, its suggestion included, are
    encoded again. Not for several threads at once. bos: an id that began every training window.
    """

    def __init__(self, model: GPT, tokenizer, bos: int | None = None):
        weight = model.transformer.wte.weight
        self.model, self.tokenizer, self.bos, self.device = model, tokenizer, bos, weight.device
        self.cache = KVCache(model.config, 1, device=weight.device, dtype=weight.dtype)
        self.step = Step(model, self.cache)
        self.ids: list[int] = []  # what the cache holds
        self.rows: dict[int, torch.Tensor] = {}  # n: probabilities (V,) of the id behind the first n of them
        self.path: list[int] = []  # the last continuation, context included: the next one is probably the same
        self.start, self.mark = 0, "\0"  # the character at which the context begins, and the text around it
        block_size = model.config.block_size
        self.room = block_size - min(MAX_BYTES, block_size // 4)  # tokens of context; the rest is for suggestions

        self.bytes = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        order = sorted((id for id, text in enumerate(self.bytes) if text), key=self.bytes.__getitem__)
        self.keys = [self.bytes[id] for id in order]
        self.order = torch.tensor(order, device=self.device)
        # BPE has a token for every newline with its indentation, maybe with a colon before it: those that end the
        # line at the same place share a number, so that they can be counted as the one event they are to a reader
        lines, numbers = {}, list(range(len(self.bytes)))
        for id, text in enumerate(self.bytes):
            if b"\n" in text:
                numbers[id] = lines.setdefault(text.partition(b"\n")[0], id)
        several = len(lines) < sum(b"\n" in text for text in self.bytes)
        self.line_ends = torch.tensor(numbers, device=self.device) if several else None

    def suggest(
        self,
        before: str,
        max_bytes: int = MAX_BYTES,
        min_confidence: float = 0.0,
        max_tokens: int | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Iterator[Suggestion]:
        """Yields the beginning of a suggestion for the text before the cursor as soon as it is sure to be part of
        the suggestion, and then (done=True) the whole, whose text is empty if nothing is sure enough.

        Of the greedy continuation up to a newline or max_bytes, the prefix with the largest product of length (in
        bytes) and probability, the expected gain, among those at least min_confidence probable. A longer prefix is
        never more probable, so the best so far begins the final one, and the search ends when even max_bytes at
        the present probability would not be better. Raises Cancelled once cancelled() is true, ValueError for a
        text that the tokenizer cannot encode.
        """
        best, best_score, text, probability = Suggestion(), 0.0, "", 1.0
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        pieces = islice(self.greedy(before, cancelled), max_tokens)
        for number, (piece, p) in enumerate(pieces):
            line, *rest = re.split(rb"[\r\n]", piece, maxsplit=1)
            if number == 0 and rest and not line:
                best.indent = indentation(rest[0], pieces)
                break
            probability *= p
            try:
                text += decoder.decode(line)
            except UnicodeDecodeError:
                break
            size = len(text.encode())
            if size > max_bytes:
                text = text.encode()[:max_bytes].decode("utf-8", "ignore")
                size = len(text.encode())
            if probability < min_confidence:
                break
            if size * probability > best_score:
                is_first, best_score = not best.text, size * probability
                best = Suggestion(text, probability)
                if is_first:
                    yield best
            if rest or size >= max_bytes or max_bytes * probability <= best_score:
                break
        yield replace(best, done=True)

    def greedy(self, before: str, cancelled: Callable[[], bool] = never) -> Iterator[tuple[bytes, float]]:
        """The likeliest continuation of a text, a token's bytes at a time, and the probability of each.

        It ends with the text (end-of-text id) or where the model's context does. Up to the first newline the
        tokens that end the line at the same place count as one. The first piece may be the rest of a token whose
        beginning is typed already.
        """
        ids = self.context(before)
        if not ids:
            return
        self.rows = {n: row for n, row in self.rows.items() if n > len(ids) - 2 * BACK}
        prefix, id, p, typed = self.first(ids, cancelled)
        line_ended = False
        while self.bytes[id]:
            piece = self.bytes[id][typed:]
            yield piece, p
            typed, prefix, line_ended = 0, [*prefix, id], line_ended or b"\n" in piece
            if len(prefix) >= self.model.config.block_size:
                return
            if self.path[: len(prefix)] != prefix:
                self.path = prefix
            row = self.after(prefix, cancelled, more=self.path[len(prefix) :])
            id, p, _ = self.likeliest(row, by_line=not line_ended)

    def first(self, ids: list[int], cancelled: Callable[[], bool]) -> tuple[list[int], int, float, int]:
        """The first token of the continuation -> (the ids before it, its id, its probability, how many of its
        bytes are typed already).

        The text may end inside of a token ("import num" of " numpy"), and then its own last tokens are ones that
        the model has never seen go on. So the last BACK boundaries between tokens are all tried: a longer token
        that spells what is typed behind the boundary is as probable as it and the tokens before the boundary, and
        the probabilities are relative to all that spells the text. (Known as token healing; here without the
        assumption that the last boundary is wrong.)
        """
        n, typed = len(ids), b""
        spelling = {n: (typed, None)}  # boundary: what is typed behind it, the ids that spell that and go on
        for boundary in range(n - 1, max(n - BACK, 1) - 1, -1):
            typed = self.bytes[ids[boundary]] + typed
            low, high = bisect_right(self.keys, typed), bisect_left(self.keys, typed + b"\xff" * 8)
            if low < high:
                spelling[boundary] = typed, self.order[low:high]
        path, total, best = 1.0, 0.0, (-1.0, n, 0, 0)
        for boundary in range(min(spelling), n + 1):
            row = self.after(ids[:boundary], cancelled, more=ids[boundary:])
            if boundary in spelling:
                typed, allowed = spelling[boundary]
                id, p, mass = self.likeliest(row, by_line=b"\n" not in typed, allowed=allowed)
                total += path * mass
                best = max(best, (path * p, boundary, id, len(typed)))
            if boundary < n:
                path *= float(row[ids[boundary]])
        p, boundary, id, length = best
        return ids[:boundary], id, p / total if total else 0.0, length

    def likeliest(self, row, by_line: bool, allowed: torch.Tensor | None = None) -> tuple[int, float, float]:
        """Of probabilities (V,) -> (the likeliest id, its probability, that of all `allowed` ids together).
        by_line: as one choice count those that end the line at the same place; the id is the likeliest of them."""
        by_line = by_line and self.line_ends is not None
        events = torch.zeros_like(row).index_add_(0, self.line_ends, row) if by_line else row
        choices = events if allowed is None else events[allowed]
        p, place = choices.max(dim=0)
        id = place if allowed is None else allowed[place]
        if by_line:
            id = torch.where(self.line_ends == id, row, -1.0).argmax()
        return int(id), float(p), float(choices.sum())

    def after(
        self, ids: list[int], cancelled: Callable[[], bool] = never, more: list[int] | None = None
    ) -> torch.Tensor:
        """Probabilities (V,) of the id that follows `ids`, of which only what the cache lacks is encoded.

        more: a few ids that the caller may append next; they are encoded in the same pass, which costs little more,
        so that the probabilities behind each of them are there already (as in speculative decoding).
        """
        n = len(ids)
        if n in self.rows and self.ids[:n] == ids:
            return self.rows[n]
        pairs = enumerate(zip(self.ids, ids, strict=False))
        same = next((i for i, (old, new) in pairs if old != new), min(n, len(self.ids)))
        same = min(same, n - 1)
        del self.ids[same:]
        self.cache.length = same
        self.rows = {length: row for length, row in self.rows.items() if length <= same}
        more = more or []
        while len(self.ids) < n:
            if cancelled():
                raise Cancelled
            at = len(self.ids)
            with_more = bool(more) and at == n - 1
            chunk = ids[at:] + more if with_more else ids[at : min(at + CHUNK, n - bool(more))]
            idx = torch.tensor([chunk], device=self.device)
            with torch.inference_mode():  # targets make the model return the logits of all positions
                if len(chunk) == 1:
                    logits = self.step(idx)
                else:
                    logits = self.model(idx, idx if with_more else None, cache=self.cache)[0]
                logits = logits[0, :, : len(self.bytes)]
            self.ids += chunk
        self.rows.update(enumerate(logits.float().softmax(dim=-1), start=n))
        return self.rows[n]

    def context(self, before: str) -> list[int]:
        """Ids of the last lines before the cursor, as many as there is room for, behind what begins a text.

        Where the context began it stays, while that fits (and is not short, after a jump upwards). When it has
        grown too long it is cut to half of the room, so that the cache is not lost again with every line.
        """
        low = max(0, self.start - 64)
        same = before.startswith(self.mark, low)  # probably the text of the last request, changed a little
        ids = self.encode(before, self.start) if same else None
        if ids is None or len(ids) > self.room or self.start and len(ids) < self.room // 8:
            grown = ids is not None and len(ids) > self.room
            self.start = self.line_start(before, self.room // 2 if grown else self.room)
            ids = self.encode(before, self.start)
        self.mark = before[max(0, self.start - 64) : self.start + 64]
        return ids if len(ids) <= self.room else ids[-self.room :]

    def encode(self, before: str, start: int) -> list[int]:
        """Ids of before[start:] (of a long text: of its end, and enough of it to be more than there is room for),
        behind the id that begins every window or, if it is all of the text, a document."""
        front = self.bos if self.bos is not None else self.tokenizer.eot if start == 0 else None
        text = before[max(start, len(before) - LONGEST * self.room) :]
        return ([] if front is None else [front]) + self.tokenizer.encode(text).tolist()

    def line_start(self, before: str, room: int) -> int:
        """Where the last lines begin that are at most `room` tokens; inside of a line if they are few for that."""
        ids = self.encode(before, 0)
        if len(ids) <= room:
            return 0
        begin = len(before) - len(self.tokenizer.decode(ids[1 - room :]).lstrip("\ufffd"))
        line = before.find("\n", begin - 1) + 1 if begin > 0 else 0
        return line if line and len(before) - line > (len(before) - begin) // 2 else begin


def indentation(white: bytes, pieces: Iterable[tuple[bytes, float]]) -> str:
    """The white space that begins the next line with text on it; `white` and `pieces` follow a newline."""
    for piece, _ in pieces:
        rest = piece.lstrip(b" \t\r\n")
        white += piece[: len(piece) - len(rest)]
        if rest or len(white) >= 2 * MAX_BYTES:
            break
    return white.replace(b"\r", b"\n").rpartition(b"\n")[2].decode()


def indentation_after(line: str) -> str:
    """That of the line, one step deeper behind an opening bracket, brace or colon."""
    indent = line[: len(line) - len(line.lstrip())]
    if line.rstrip().endswith((":", "{", "(", "[")):
        indent += "\t" if "\t" in indent else "    "
    return indent


def without_overlap(text: str, suffix: str) -> str:
    """`text` without the end that is there already, at the beginning of the suffix: print(|) -> x, not x)."""
    line = suffix.partition("\n")[0]
    return next((text[:-n] for n in range(min(len(text), len(line)), 0, -1) if text[-n:] == line[:n]), text)


def load_completer(config) -> tuple[Completer, str]:
    """(the completer of a checkpoint, the name of the dataset that it was trained on)."""
    device = pick_device(config.device)
    _, state = open_trained(config.init_from, config.out_dir)
    tokenizer, run = find_tokenizer(state), state.get("config") or {}
    model = checkpoint.build_model(state, dropout=0.0)
    make_ready(model, device, config.dtype, config.quantize)
    # windows that began with a line began with id 0 before it
    return Completer(model, tokenizer, bos=0 if run.get("sampling") == "line" else None), str(run.get("dataset", ""))


def apart(function: Callable, *args):
    """function(*args) in a thread that ends with it, and with it the threads that it computes with.

    OpenMP gives every thread that computes helpers of its own, and where all of them together are more than the cores
    they sleep between any two operations: if the main thread had loaded the model, suggestions would take twice the
    time in the editor's.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args).result()


def complete(completer: Completer, before: str, suffix: str = "", **options) -> Suggestion:
    """The whole suggestion; options as those of Completer.suggest."""
    *_, found = completer.suggest(before.replace("\r\n", "\n"), **options)
    return replace(found, text=without_overlap(found.text, suffix))

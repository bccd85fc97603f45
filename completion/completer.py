"""Suggestions from a model for a text that changes little from one request to the next."""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import torch

from checkpoints.build import build_model
from completion import MAX_BYTES
from completion.infill import SUFFIX_SHARE, first_ids, has_learned, short_name_ids
from data.fim import arrange, find_markers
from inference.cache import KVCache
from inference.healing import BACK, prefix_index
from inference.load import find_tokenizer, first_id_of, make_ready, open_ngram, open_trained
from inference.ngram import NGram
from model import GPT
from system.device import pick_device

ENCODE_STEP = 64  # tokens encoded between checks for cancellation
SHORT_LINE = 3  # characters of a line that may well come twice in a row, such as }


class Cancelled(Exception):
    """The request is no longer wanted."""


@dataclass
class Suggestion:
    text: str = ""  # to insert at the cursor, without a newline
    confidence: float = 0.0  # probability of the whole text
    indent: str | None = None  # the line should end here, and the next one begin with this indentation
    done: bool = False  # False: the suggestion begins with this text and may still grow


class Completer:
    """Greedy suggestions. The key/value cache is kept between requests, so only the tokens that differ from the last
    request and its suggestion are encoded. Not thread-safe. bos: the id that began every training window, if any.
    infill: whether the model learned to fill in the middle (data/fim.py): then the text after the cursor counts, and is
    put before the other, so that the cache outlasts a key. name: the file's, for models that have seen names. ngram:
    an n-gram model, to be mixed in."""

    def __init__(
        self,
        model: GPT,
        tokenizer,
        bos: int | None = None,
        infill: bool = False,
        name: str = "",
        ngram: NGram | None = None,
    ):
        weight = model.transformer.wte.weight
        self.model, self.tokenizer, self.bos, self.device = model, tokenizer, bos, weight.device
        self.infill, self.name, self.ngram = infill, name, ngram
        self.cache = KVCache(model.config, 1, device=weight.device, dtype=weight.dtype)
        self.ids: list[int] = []  # what the cache holds
        self.rows: dict[int, torch.Tensor] = {}  # n: probabilities (V,) of the id that follows ids[:n]
        self.expected: list[int] = []  # the last context and its continuation, probably how the next one begins
        self.start, self.mark = 0, "\0"  # where the context begins in the text, and the text around that place
        self.after_cursor, self.front = None, []  # the last text after the cursor, and the ids that precede the context
        block_size = model.config.block_size
        self.room = block_size - min(MAX_BYTES, block_size // 4)  # tokens of context, leaving some for a suggestion

        self.index = prefix_index(tokenizer, weight.device)
        self.bytes = self.index.bytes
        # BPE has a token for each newline with its indentation, perhaps after a colon. Those that end the line at the
        # same place are one event to a reader, so they share a number under which their probabilities are added up.
        lines, numbers = {}, list(range(len(self.bytes)))
        for id, text in enumerate(self.bytes):
            if b"\n" in text:
                numbers[id] = lines.setdefault(text.partition(b"\n")[0], id)
        self.line_ends = torch.tensor(numbers, device=self.device) if len(set(numbers)) < len(numbers) else None

    def suggest(
        self,
        before: str,
        max_bytes: int = MAX_BYTES,
        min_confidence: float = 0.0,
        max_tokens: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        after: str = "",
    ) -> Iterator[Suggestion]:
        """Yields the beginning of the suggestion for the text before the cursor as soon as it is certain, then all of
        it (done=True), empty if nothing is probable enough. `after`, the text after the cursor, counts with infill.

        It is the prefix of the greedy continuation, up to a newline, max_bytes or max_tokens, with the largest expected
        gain: bytes times probability, of those at least min_confidence probable. Longer prefixes are never more
        probable, so the best one so far begins the final one, and the search ends when even max_bytes at the current
        probability would not gain more. Raises Cancelled once cancelled() is true, and ValueError for text that the
        tokenizer cannot encode.
        """
        best, best_gain, text, probability = Suggestion(), 0.0, "", 1.0
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        pieces = islice(self.greedy(before, cancelled, after), max_tokens)
        for number, (piece, p) in enumerate(pieces):
            line, *rest = re.split(rb"[\r\n]", piece, maxsplit=1)
            if number == 0 and rest and not line:
                best.indent = next_indentation(rest[0], pieces)
                break
            probability *= p
            try:
                text += decoder.decode(line)
            except UnicodeDecodeError:
                break
            is_full = len(text.encode()) >= max_bytes
            text = text.encode()[:max_bytes].decode("utf-8", "ignore")
            gain = len(text.encode()) * probability
            if probability < min_confidence:
                break
            if gain > best_gain:
                is_first, best_gain = not best.text, gain
                best = Suggestion(text, probability)
                if is_first:
                    yield best
            if rest or is_full or max_bytes * probability <= best_gain:
                break
        yield replace(best, done=True)

    def greedy(self, before: str, cancelled=lambda: False, after: str = "") -> Iterator[tuple[bytes, float]]:
        """Yields the greedy continuation, up to the end-of-text id or the model's context, as (bytes of a token,
        probability). Up to the first newline, tokens that end the line at the same place count as one. The first piece
        may be the rest of a partly typed token."""
        ids = self.context(before, after)
        if not ids:
            return
        self.rows = {n: row for n, row in self.rows.items() if n > len(ids) - 2 * BACK}
        prefix, id, p, typed = self.first_token(ids, cancelled)
        line_ended = False
        while self.bytes[id]:
            piece = self.bytes[id][typed:]
            yield piece, p
            typed, prefix, line_ended = 0, [*prefix, id], line_ended or b"\n" in piece
            if len(prefix) >= self.model.config.block_size:
                return
            if self.expected[: len(prefix)] != prefix:
                self.expected = prefix
            row = self.after(prefix, cancelled, more=self.expected[len(prefix) :])
            id, p, _ = self.likeliest(row, by_line=not line_ended)

    def first_token(self, ids: list[int], cancelled: Callable[[], bool]) -> tuple[list[int], int, float, int]:
        """The first token of the continuation: (the ids before it, its id, its probability, how many of its bytes are
        already typed). A version of token healing (inference/healing.py) that does not assume the last boundaries are
        wrong: the candidates are any token after all ids, and a longer token after the ids up to a boundary. The
        likeliest is chosen, with its share of the sum as its probability."""
        n = len(ids)
        ways = {boundary: (typed, longer) for boundary, typed, longer in self.index.boundaries(ids)} | {n: (b"", None)}
        path, total, best = 1.0, 0.0, (-1.0, n, 0, 0)
        for boundary in range(min(ways), n + 1):
            row = self.after(ids[:boundary], cancelled, more=ids[boundary:])
            if boundary in ways:
                typed, allowed = ways[boundary]
                id, p, mass = self.likeliest(row, by_line=b"\n" not in typed, allowed=allowed)
                total += path * mass
                best = max(best, (path * p, boundary, id, len(typed)))
            if boundary < n:
                path *= float(row[ids[boundary]])
        p, boundary, id, length = best
        return ids[:boundary], id, p / total if total else 0.0, length

    def likeliest(self, row, by_line: bool, allowed: torch.Tensor | None = None) -> tuple[int, float, float]:
        """From probabilities (V,): (the likeliest allowed id, its probability, the sum over the allowed ids). by_line:
        tokens that end the line at the same place count as one, whose id is the likeliest of theirs."""
        by_line = by_line and self.line_ends is not None
        events = torch.zeros_like(row).index_add_(0, self.line_ends, row) if by_line else row
        choices = events if allowed is None else events[allowed]
        p, place = choices.max(dim=0)
        id = place if allowed is None else allowed[place]
        if by_line:
            id = torch.where(self.line_ends == id, row, -1.0).argmax()
        return int(id), float(p), float(choices.sum())

    def after(self, ids: list[int], cancelled=lambda: False, more: list[int] | None = None) -> torch.Tensor:
        """Probabilities (V,) of the id that follows `ids`. Encodes only what the cache lacks. more: ids likely to be
        appended next; encoding them in the same pass costs little and also gives the probabilities after each of them
        (as in speculative decoding)."""
        n, more = len(ids), more or []
        if n in self.rows and self.ids[:n] == ids:
            return self.rows[n]
        limit = min(n - 1, len(self.ids))
        same = next((i for i in range(limit) if self.ids[i] != ids[i]), limit)
        del self.ids[same:]
        self.cache.length = same
        self.rows = {length: row for length, row in self.rows.items() if length <= same}
        while len(self.ids) < n:
            if cancelled():
                raise Cancelled
            at = len(self.ids)
            with_more = bool(more) and at == n - 1
            chunk = ids[at:] + more if with_more else ids[at : min(at + ENCODE_STEP, n - bool(more))]
            idx = torch.tensor([chunk], device=self.device)
            with torch.inference_mode():  # targets make the model return the logits of all positions
                logits = self.model(idx, idx if with_more else None, cache=self.cache)[0][0]
            self.ids += chunk
        logits = logits.float()
        if self.ngram:
            logits = self.ngram.mix(logits, [self.ids[:end] for end in range(n, n + len(logits))])
        self.rows.update(enumerate(logits[:, : len(self.bytes)].softmax(dim=-1), start=n))
        return self.rows[n]

    def context(self, before: str, after: str = "") -> list[int]:
        """Ids of the last lines before the cursor that fit, after the ids that begin a text and, with infill, those of
        the first lines after the cursor. The context keeps its beginning while it fits (and is not short, after a jump
        upwards). Once too long it is cut to half the room, so that the cache is not lost with every new line."""
        if after != self.after_cursor:
            self.after_cursor, self.front = after, self.ids_before(after)
        low, room = max(0, self.start - 64), self.room - len(self.front)
        same = before.startswith(self.mark, low)  # probably the last request's text with a small change
        ids = self.encode(before, self.start) if same else []
        if not same or len(ids) > room or self.start and len(ids) < room // 8:
            self.start = self.line_start(before, room // 2 if len(ids) > room else room)
            ids = self.encode(before, self.start)
        self.mark = before[max(0, self.start - 64) : self.start + 64]
        return self.front + ids[-room:]

    def ids_before(self, after: str) -> list[int]:
        """The id that begins every window and, with infill, the text after the cursor, unless it is blank."""
        front = [] if self.bos is None else [self.bos]
        if not self.infill or not after.strip():
            return front
        front += [*self.tokenizer.begin, *short_name_ids(self.tokenizer, self.name, self.room)]
        suffix = first_ids(self.tokenizer, after, self.room // SUFFIX_SHARE)
        return front + arrange(find_markers(self.tokenizer), [], suffix, spm=True)

    def encode(self, before: str, start: int) -> list[int]:
        """Ids of before[start:], at the text's start after those that begin a document. Of a long text only
        the end is encoded, somewhat more than the room."""
        front, eot = [], self.tokenizer.eot
        if start == 0 and len(self.front) <= 1:  # no text after the cursor
            begin = list(self.tokenizer.begin) or ([] if eot is None else [eot])
            front = (begin if self.bos is None else []) + short_name_ids(self.tokenizer, self.name, self.room)
        begin = max(start, len(before) - self.tokenizer.max_chars_per_token * (self.room + 1))
        return front + self.tokenizer.encode(before[begin:], inside=begin > 0 or len(self.front) > 1).tolist()

    def line_start(self, before: str, room: int) -> int:
        """Where the last lines of at most `room` tokens begin, or inside a line if whole lines waste much of it."""
        ids = self.encode(before, 0)
        if len(ids) <= room:
            return 0
        begin = len(before) - len(self.tokenizer.decode(ids[1 - room :]).lstrip("\ufffd"))
        line = before.find("\n", begin - 1) + 1 if begin > 0 else 0
        return line if line and len(before) - line > (len(before) - begin) // 2 else begin


def next_indentation(white: bytes, pieces: Iterable[tuple[bytes, float]]) -> str:
    """The indentation of the next non-blank line; `white` and then `pieces` follow a newline."""
    for piece, _ in pieces:
        rest = piece.lstrip(b" \t\r\n")
        white += piece[: len(piece) - len(rest)]
        if rest or len(white) >= 2 * MAX_BYTES:
            break
    return white.replace(b"\r", b"\n").rpartition(b"\n")[2].decode()


def without_overlap(text: str, suffix: str) -> str:
    """`text` without an ending that the suffix repeats: in print(|) it is x, not x). Nothing if it is the next line."""
    line, _, below = suffix.partition("\n")
    following = "" if line.strip() else below.lstrip().partition("\n")[0].strip()
    if len(following) > SHORT_LINE and text.strip() == following:
        return ""
    return next((text[:-n] for n in range(min(len(text), len(line)), 0, -1) if text[-n:] == line[:n]), text)


def whole_suggestion(completer: Completer, before: str, suffix: str = "", **options) -> Suggestion:
    """The final suggestion between `before` and `suffix`; options as in Completer.suggest."""
    before, suffix = before.replace("\r\n", "\n"), suffix.replace("\r\n", "\n")
    *_, found = completer.suggest(before, after=suffix, **options)
    return replace(found, text=without_overlap(found.text, suffix))


def load_completer(
    init_from: str,
    out_dir: str,
    device="auto",
    dtype="auto",
    quantize="auto",
    block_size: int | None = None,
    name: str = "",
    ngram: float = 0.0,
    ngram_data: str | None = None,
) -> tuple[Completer, str]:
    """A completer for a trained model, and its dataset's name ("" if unknown). The arguments are those of open_trained,
    make_ready, Completer and open_ngram."""
    picked = pick_device(device)
    _, state = open_trained(init_from, out_dir)
    tokenizer, dataset = find_tokenizer(state), (state.get("config") or {}).get("dataset", "")
    counts = open_ngram(ngram, ngram_data, state)
    model = make_ready(build_model(state, dropout=0.0), picked, dtype, quantize, block_size)
    infill, names = has_learned(state, tokenizer)
    return Completer(model, tokenizer, first_id_of(state), infill, name if names else "", counts), str(dataset)


def apart(function: Callable, *args):
    """function(*args), run in a thread of its own so that its OpenMP threads end with it. OpenMP gives each computing
    thread its own helpers, which sleep between operations once they outnumber the cores: if the main thread loaded the
    model, the editor's suggestions would take twice as long."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args).result()

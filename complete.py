"""Code completion at the terminal: an editor in which the model's suggestion stands in grey after the cursor.

    python complete.py --out_dir=out-pycode --file=hello.py          Tab takes the suggestion, Esc saves and leaves
    python complete.py --out_dir=out-pycode --prompt "import numpy as"
    printf 'def main(' | python complete.py --out_dir=out-pycode --stdin
    python complete.py --out_dir=out-pycode --jsonl                  {"prompt": "..."} -> {"completion": "..."}

In the editor: Tab accepts the suggestion, Ctrl-Right or Alt-F one word of it, Backspace dismisses it, Enter begins a
line with the indentation that the model foresees (or else that of the line before), Ctrl-Z undoes, Esc or Ctrl-D
leaves and prints the text, or writes it to --file. Ctrl-C leaves the file alone: what was typed goes to FILE.unsaved
(or the next free name, FILE.unsaved.1), as it does if the terminal is closed or another program has changed the file;
without --file a closed terminal leaves it in text.unsaved.

A request of --jsonl may also have "suffix" (the text behind the cursor), "max_bytes", "max_tokens", "min_confidence"
and "id", which comes back; its answer has "completion" and "confidence", or else "error".
"""

import codecs
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Literal

import torch

from checkpoints.build import build_model
from configurator import configure, exit_on_error
from inference.load import find_tokenizer, make_ready, open_trained
from model import GPT, KVCache, Step
from system.device import DTypeName, pick_device

MAX_BYTES = 32  # of a suggestion
CHUNK = 64  # tokens encoded between two looks at whether the request still matters
BACK = 4  # tokens before the cursor that may turn out to be the beginning of a longer one
LEXED = 1000  # lines of a text that is highlighted as a whole
BLOCK = 200  # lines of a longer one that are highlighted together
LONGEST = 32  # characters of text that a token is taken to stand for at most, on average


@dataclass
class CompleteConfig:
    # Model
    init_from: str = "resume"  # 'resume' = from out_dir, or a checkpoint, a folder, 'gpt2', 'gpt2-xl'
    out_dir: str = "out"  # folder of the run
    # Instead of the editor
    prompt: str | None = None  # print the completion of this text
    stdin: bool = False  # print the completion of the text on standard input
    jsonl: bool = False  # answer requests: one JSON object a line, from standard input to standard output
    # Editor
    file: str | None = None  # edit this file, which need not exist; None = print the text at the end
    language: str = "auto"  # of the highlighting, by Pygments' name; auto = by the file's name, else the dataset's
    # Suggestions
    max_bytes: int = MAX_BYTES  # longest suggestion, bytes of UTF-8
    min_confidence: float = 0.2  # least probability that the whole suggestion is right
    # System
    device: str = "auto"  # 'cuda', 'cuda:1', 'mps', 'cpu'; auto = the best there is
    dtype: DTypeName = "auto"  # of the weights; auto = bfloat16 where the processor multiplies it, else float32
    quantize: Literal["auto", "none", "int8"] = "auto"  # int8 weights; auto = on AVX-512, unless a dtype is given
    threads: int | None = None  # of the CPU; None = as many as it has cores


# ---- the model's suggestions -----------------------------------------------------------------------------


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
    model = build_model(state, dropout=0.0)
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


# ---- for scripts and editors -----------------------------------------------------------------------------


def complete(completer: Completer, before: str, suffix: str = "", **options) -> Suggestion:
    """The whole suggestion; options as those of Completer.suggest."""
    *_, found = completer.suggest(before.replace("\r\n", "\n"), **options)
    return replace(found, text=without_overlap(found.text, suffix))


def serve(completer: Completer, config: CompleteConfig, lines: Iterable[bytes]) -> None:
    for line in lines:
        if line.strip():
            sys.stdout.write(json.dumps(answer(completer, config, line), ensure_ascii=False) + "\n")
            sys.stdout.flush()


def answer(completer: Completer, config: CompleteConfig, line: bytes) -> dict:
    """The answer to one line of --jsonl: completion and confidence, or error, and the request's id if it has one."""
    request = None
    try:
        request = parse(line)
        kinds = {"prompt": str, "suffix": str, "max_bytes": int, "max_tokens": int, "min_confidence": (int, float)}
        names = {str: "text", int: "a whole number", (int, float): "a number"}
        if not isinstance(request, dict) or "prompt" not in request:
            raise ValueError('a request is a JSON object with a "prompt"')
        options = {"max_bytes": config.max_bytes, "min_confidence": config.min_confidence}
        for key, value in request.items():
            if key not in kinds and key != "id":
                raise ValueError(f"unknown key {key!r}, known: {', '.join(kinds)}, id")
            if key in kinds and (not isinstance(value, kinds[key]) or isinstance(value, bool)):
                raise ValueError(f"{key} is {value!r}, expected {names[kinds[key]]}")
            if key.startswith("max_") and value < 1:
                raise ValueError(f"{key} is {value}, expected at least 1")
            if key == "min_confidence" and not 0 <= value <= 1:
                raise ValueError(f"{key} is {value}, expected a probability, from 0 to 1")
            if key not in ("prompt", "id"):
                options[key] = value
        found = complete(completer, request["prompt"], **options)
        reply = {"completion": found.text, "confidence": round(found.confidence, 4)}
    except Exception as error:  # whatever it is, the next request may be better
        reply = {"error": " ".join(str(error).split()) or type(error).__name__}
    return ({"id": request["id"]} if isinstance(request, dict) and "id" in request else {}) | reply


def parse(line: bytes):
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        begin = line.strip()[:40].decode("utf-8", "replace")
        raise ValueError(f'the line is not JSON ({error}), expected {{"prompt": "..."}}, found: {begin}') from error


# ---- the editor ------------------------------------------------------------------------------------------


class Worker(threading.Thread):
    """Asks the completer in a thread of its own, for the newest text only; typing never waits for it."""

    def __init__(self, completer: Completer, report: Callable[[str, Suggestion | Exception], None], **options):
        """report(before, suggestion or error) is called in this thread."""
        super().__init__(daemon=True)
        self.completer, self.report, self.options = completer, report, options
        self.changed, self.wanted, self.number, self.stopped = threading.Condition(), None, 0, False

    def ask(self, before: str | None) -> None:
        """Suggest for this text instead of any older one; None: for no text."""
        with self.changed:
            self.wanted = before
            self.number += 1
            self.changed.notify()

    def is_old(self, number: int) -> bool:
        return number != self.number

    def stop(self) -> None:
        self.stopped = True
        self.ask(None)
        self.join()

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.wanted is not None or self.stopped)
                if self.stopped:
                    return
                before, number, self.wanted = self.wanted, self.number, None
            try:
                for found in self.completer.suggest(before, cancelled=partial(self.is_old, number), **self.options):
                    self.report(before, found)
            except Cancelled:
                pass
            except Exception as error:  # such as a character that the tokenizer lacks; the editor goes on without
                self.report(before, error)


class Editor:
    """A pane of text with the suggestion as ghost text behind the cursor. run() -> exit status; then `text` has the
    text. Suggestions come after an insertion, not after a deletion or a movement. All methods run in the thread of the
    event loop, except for found."""

    HELP = "Tab accept  Ctrl-Right word  Backspace dismiss  Esc leave"

    def __init__(self, completer: Completer, text: str, lexer: type, input=None, output=None, **options):
        from prompt_toolkit.application import Application
        from prompt_toolkit.buffer import Buffer
        from prompt_toolkit.document import Document
        from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, NumberedMargin, Window
        from prompt_toolkit.layout.processors import TabsProcessor
        from prompt_toolkit.output import create_output
        from prompt_toolkit.styles import Style

        self.ghost, self.ghost_at = "", None  # the suggestion, and the text before the cursor that it is for
        self.indent, self.state = None, ""  # the model's indentation for the next line, and the status line's word
        self.status = 0  # 128 + the number of a signal that came
        self.worker = Worker(completer, self.found, **options)
        self.buffer = Buffer(document=Document(text), multiline=True)
        self.buffer.on_text_changed += lambda _: self.follow()
        self.buffer.on_cursor_position_changed += lambda _: self.follow()
        self.buffer.on_text_insert += lambda _: self.ask()
        pane = BufferControl(
            self.buffer,
            lexer=highlighter(lexer),
            input_processors=[ghost_processor(self), TabsProcessor(char1=" ", char2=" ")],
        )
        status = Window(FormattedTextControl(lambda: f" {self.state:16}{self.HELP}"), height=1, style="reverse")
        self.app = Application(
            layout=Layout(HSplit([Window(pane, left_margins=[NumberedMargin()], wrap_lines=True), status])),
            style=Style([("ghost", "#808080")]), key_bindings=key_bindings(self), full_screen=True,
            input=input, output=output or create_output(always_prefer_tty=True),
        )  # fmt: skip
        self.app.timeoutlen, self.app.ttimeoutlen = 0.3, 0.05  # seconds until Esc is a key and not the start of one

    @property
    def before(self) -> str:
        return self.buffer.document.text_before_cursor

    @property
    def text(self) -> str:
        return self.buffer.text

    def run(self) -> int:
        self.worker.start()
        try:
            return self.app.run(pre_run=self.begin, handle_sigint=False)
        except (EOFError, OSError):  # the terminal was closed: nothing can be read or shown any more
            return self.status or 128 + 1  # 1 = SIGHUP
        finally:
            self.worker.stop()

    def begin(self) -> None:
        if self.status:
            self.leave(self.status)
        self.ask()

    def interrupt(self, number: int, frame) -> None:
        """A signal's handler. One that comes when the editor was left is too late: the text is being saved."""
        self.status = 128 + number
        if self.app.loop is not None:
            self.app.loop.call_soon_threadsafe(self.leave, self.status)

    def leave(self, status: int) -> None:
        if not self.app.is_done:
            self.app.exit(result=status)

    def ask(self) -> None:
        self.ghost_at, self.indent, self.state = self.before, None, "..."
        self.worker.ask(self.before)

    def follow(self) -> None:
        """After any change: what was typed of the ghost is no ghost any more; if it was something else, none is."""
        before, at = self.before, self.ghost_at
        if at is None or before == at:
            return
        typed = before[len(at) :] if before.startswith(at) else None
        if typed and self.ghost.startswith(typed):
            self.ghost, self.ghost_at = self.ghost[len(typed) :], before
        else:
            self.dismiss()

    def dismiss(self) -> None:
        self.ghost, self.ghost_at, self.indent, self.state = "", None, None, ""
        self.worker.ask(None)

    def found(self, before: str, found: Suggestion | Exception) -> None:
        loop = self.app.loop
        if loop is not None:
            with suppress(RuntimeError):  # the editor was left meanwhile
                loop.call_soon_threadsafe(self.show, before, found)

    def show(self, before: str, found: Suggestion | Exception) -> None:
        if before != self.ghost_at:
            return
        if isinstance(found, Exception):
            self.ghost, self.state = "", "no suggestion: " + " ".join(str(found).split()) + "  "
        else:
            rest = self.buffer.document.current_line_after_cursor
            text = without_overlap(found.text, rest)
            if not text.strip() or not re.fullmatch(r"[\s)\]}'\",;:]*", rest):
                text = ""
            if found.done or not self.ghost.startswith(text):  # what is left of the last ghost needs no new start
                self.ghost = text
            self.indent = found.indent
            if found.done:
                end = None if found.indent is None else f"end, indent {len(found.indent)}"
                self.state = f"{found.confidence:.0%}" if text else end or "-"
        self.app.invalidate()

    def enter(self) -> None:
        line, indent = self.buffer.document.current_line_before_cursor, self.indent
        if indent is None:
            indent = indentation_after(line)
        if not line.strip():  # leave no trailing white space
            self.buffer.delete_before_cursor(len(line))
        self.buffer.insert_text("\n" + indent)

    def tab(self) -> None:
        line = self.buffer.document.current_line_before_cursor
        self.buffer.insert_text("\t" if line.startswith("\t") else " " * (4 - len(line) % 4))


def ghost_processor(editor: Editor):
    from prompt_toolkit.layout.processors import Processor, Transformation
    from prompt_toolkit.layout.utils import explode_text_fragments

    class Ghost(Processor):
        """Puts the ghost text behind the cursor."""

        def apply_transformation(self, line):
            ghost = editor.ghost
            if not ghost or line.lineno != line.document.cursor_position_row:
                return Transformation(line.fragments)
            column = line.document.cursor_position_col
            shown = explode_text_fragments(line.fragments)
            shown = shown[:column] + [("class:ghost", ghost)] + shown[column:]
            return Transformation(
                shown,
                source_to_display=lambda i: i if i <= column else i + len(ghost),
                display_to_source=lambda i: min(i, column) if i <= column + len(ghost) else i - len(ghost),
            )

    return Ghost()


def highlighter(lexer: type):
    """prompt_toolkit's lexer from Pygments', which reads 60,000 lines in 2 seconds: too long for every key. Of a long
    text only blocks that are in sight are read, each from the class or def before it on."""
    from prompt_toolkit.document import Document
    from prompt_toolkit.lexers import Lexer, PygmentsLexer, RegexSync

    plain, sync = PygmentsLexer(lexer), RegexSync.from_pygments_lexer_cls(lexer)

    class Highlighter(Lexer):
        def lex_document(self, document):
            if document.line_count <= LEXED:
                return plain.lex_document(document)
            blocks = {}

            def line(number: int):
                begin = number - number % BLOCK
                if begin not in blocks:
                    first, _ = sync.get_sync_start_position(document, begin)
                    part = Document("\n".join(document.lines[first : begin + BLOCK]))
                    blocks[begin] = first, plain.lex_document(part)
                first, line_of_part = blocks[begin]
                return line_of_part(number - first)

            return line

    return Highlighter()


def key_bindings(editor: Editor):
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    has_ghost = Condition(lambda: bool(editor.ghost))
    first_word = re.compile(r"\s*(?:\w+|[^\w\s]+)?")  # or the blanks that are left

    def bind(names: str, action: Callable[[], None], **options) -> None:
        keys.add(*names.split(), **options)(lambda event: action())

    bind("tab", lambda: editor.buffer.insert_text(editor.ghost), filter=has_ghost)
    for names in ("c-right", "escape f"):
        bind(names, lambda: editor.buffer.insert_text(first_word.match(editor.ghost)[0]), filter=has_ghost)
    bind("backspace", editor.dismiss, filter=has_ghost)
    bind("tab", editor.tab, filter=~has_ghost)
    bind("enter", editor.enter)
    bind("c-z", editor.buffer.undo, save_before=lambda event: False)
    for names in ("escape", "c-d"):
        bind(names, lambda: editor.leave(0))
    bind("c-c", lambda: editor.leave(130))
    return keys


def edit(completer: Completer, config: CompleteConfig, dataset: str, **terminal) -> int:
    """Opens the editor and, in the end, prints or writes its text -> exit status. terminal: prompt_toolkit's input
    and output, if not the usual."""
    path = Path(config.file).resolve() if config.file is not None else None
    found = read_source(path) if path else None
    source = (found or b"").decode("utf-8")
    old, (end, note) = source.replace("\r\n", "\n"), line_end(source)
    editor = Editor(
        completer,
        old,
        find_lexer(config, dataset),
        max_bytes=config.max_bytes,
        min_confidence=config.min_confidence,
        **terminal,
    )
    terminals = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]
    status = 1
    with handling(editor.interrupt):
        try:
            status = editor.run()
        finally:  # whatever went wrong, first the text
            gone = [stream for stream in terminals if not stream.isatty()]  # the window was closed
            for stream in gone:  # or what is written there fails, at exit if not before
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            content = editor.text.replace("\n", end).encode("utf-8", "surrogateescape")  # bytes as they were typed
            if path is None and sys.stdout in gone and content:
                rescue(Path.cwd() / "text", content)
            elif path is None:
                print_text(content)
            elif editor.text != old:
                save(path, found, content, status)
                if note and status == 0:
                    print(f"note: {path.name} had {note}", file=sys.stderr)
    return status


@contextmanager
def handling(handler: Callable) -> Iterator[None]:
    """Meanwhile the signals that end a program go to the handler."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)


def line_end(source: str) -> tuple[str, str]:
    """-> (the commoner line end, which becomes that of all lines; a note on the other if there is such)."""
    counts = {"LF": source.count("\n") - source.count("\r\n"), "CRLF": source.count("\r\n")}
    few, many = sorted(counts, key=counts.get) if counts["LF"] != counts["CRLF"] else ("CRLF", "LF")
    note = f"{counts[few]} {few} among {counts[many]} {many} line ends: all are {many} now" if counts[few] else ""
    return {"LF": "\n", "CRLF": "\r\n"}[many], note


def save(path: Path, found: bytes | None, content: bytes, status: int) -> None:
    """Writes the text into the file or, after an editor that was broken off or where another program has written the
    file meanwhile, into a new one beside it. found: what was in the file, None = there was none."""
    try:
        is_changed = (path.read_bytes() if path.exists() else None) != found
        if status or is_changed:
            target = rescue(path, content)
        else:
            write_source(path, content)
    except OSError as error:
        print_text(content)
        raise ValueError(f"cannot write {path}: {error}; the text is printed instead") from error
    if status:
        print(f"note: {path.name} is left as it is, the text is in {target}", file=sys.stderr)
    elif is_changed:
        raise ValueError(
            f"another program has changed {path} meanwhile: it is left alone, your text is in {target}; compare the two"
        )


def print_text(content: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(content + b"\n" * (not content.endswith(b"\n") and bool(content)))
    sys.stdout.buffer.flush()


def read_source(path: Path) -> bytes | None:
    """The file's bytes, which are UTF-8; None = there is no such file."""
    try:
        content = path.read_bytes()
        content.decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"--file={path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--file={path} is not UTF-8 text ({error}): convert it before, as by "
            f"`iconv -f GBK -t UTF-8 {path} > new.txt`, with the encoding that it has"
        ) from error
    return content


def write_source(path: Path, content: bytes) -> None:
    """Replaces the file in one step, so that a full disk leaves the old one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    file = open(temporary, "xb")  # a file of that name is someone else's
    try:
        with file:
            file.write(content)
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rescue(path: Path, content: bytes) -> Path:
    """As write_unsaved, where that can't be in the system's folder for temporary files."""
    try:
        return write_unsaved(path, content)
    except OSError:
        return write_unsaved(Path(tempfile.gettempdir()) / path.name, content)


def write_unsaved(path: Path, content: bytes) -> Path:
    """Writes PATH.unsaved, or the first of PATH.unsaved.1, .2, ... that there is not yet -> its path."""
    for number in count():
        target = path.with_name(f"{path.name}.unsaved" + f".{number}" * bool(number))
        try:
            open(target, "xb").close()  # now the name is taken
        except FileExistsError:
            continue
        try:
            if path.exists():
                shutil.copymode(path, target)
            write_source(target, content)
            return target
        except OSError:
            target.unlink()
            raise


def find_lexer(config: CompleteConfig, dataset: str) -> type:
    from pygments.lexers import find_lexer_class_by_name, find_lexer_class_for_filename
    from pygments.util import ClassNotFound

    if config.language == "auto":
        by_name = find_lexer_class_for_filename(config.file) if config.file else None
        return by_name or find_lexer_class_by_name("cpp" if "cpp" in dataset else "python")
    try:
        return find_lexer_class_by_name(config.language)
    except ClassNotFound:
        raise ValueError(f"language={config.language} is unknown to Pygments: use auto, python, cpp or text") from None


# ---- the command -----------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    config, _ = configure(CompleteConfig, joined(argv, "--prompt", "--file"))
    validate(config)
    is_editor = config.prompt is None and not config.stdin and not config.jsonl
    if is_editor:
        check_terminal(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    completer, dataset = apart(load_completer, config)
    if is_editor:
        return edit(completer, config, dataset)
    if config.jsonl:
        serve(completer, config, sys.stdin.buffer)
        return 0
    before = config.prompt
    if before is None:
        try:
            before = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is no UTF-8 text: {error}") from error
    print(complete(completer, before, max_bytes=config.max_bytes, min_confidence=config.min_confidence).text)
    return 0


def joined(argv: list[str], *keys: str) -> list[str]:
    """argv with `--key value` as one word for these keys."""
    words = list(argv)
    for i in range(len(words) - 2, -1, -1):
        if words[i] in keys:
            words[i : i + 2] = [f"{words[i]}={words[i + 1]}"]
    return words


def validate(config: CompleteConfig) -> None:
    ways = [key for key in ("prompt", "stdin", "jsonl", "file") if getattr(config, key) not in (None, False)]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(f'--{way}' for way in ways)} exclude each other, use one of them")
    if not 0 <= config.min_confidence <= 1:
        raise ValueError(f"min_confidence={config.min_confidence} is a probability, from 0 to 1")
    for key in ("max_bytes", "threads"):
        if (getattr(config, key) or 0) < 1 and getattr(config, key) is not None:
            raise ValueError(f"{key}={getattr(config, key)} must be at least 1")


def check_terminal(config: CompleteConfig) -> None:
    """What can be known to fail before the model is loaded."""
    try:
        import prompt_toolkit  # noqa: F401
        import pygments  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"the editor needs the package {error.name}: pip install prompt_toolkit Pygments; or use "
            "--prompt, --stdin or --jsonl"
        ) from None
    if not sys.stdin.isatty() or not (sys.stdout.isatty() or sys.stderr.isatty()):
        raise ValueError("standard input is no terminal: the editor needs one; use --prompt, --stdin or --jsonl")
    if config.file is not None:
        check_file(Path(config.file))


def check_file(path: Path) -> None:
    folder, is_there = path.resolve().parent, path.exists()
    if is_there and not path.is_file():
        what = "is a folder" if path.is_dir() else "is no plain file"
        raise ValueError(f"--file={path} {what}, expected a file's path")
    if not folder.is_dir():
        raise ValueError(f"--file={path} is in a folder that does not exist, expected a file's path")
    # root may write whatever the mode says: a file that nobody is to write is meant to stay as it is
    if is_there and not (os.access(path, os.W_OK) and path.stat().st_mode & 0o222):
        raise ValueError(f"--file={path} is read-only: make it writable (chmod u+w), or edit a copy")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--file={path} is in a folder that you may not write to: edit a copy elsewhere")
    read_source(path)


if __name__ == "__main__":
    exit_on_error(main)

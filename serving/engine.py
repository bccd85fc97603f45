"""One thread that owns the model, and the batch of texts it writes, which texts join and leave between two steps.

    engine = Engine(model, tokenizer, max_batch=16, max_queue=256, deliver=print)
    engine.submit([Row(Beginning(tokenizer, "ROMEO:"), tokenizer, Sampling(temperature=0.8), seed=1, limit=100)])

A step is one forward pass of one id in each row. Between steps, prompts are encoded a part at a time, so that a long
one delays the others' tokens little, and without the ids that a cached row begins with too: earlier turns of a
conversation, or the same prompt in another row. In float32 a row's ids are those of inference.generate.stream with
its seed, whatever shares the batch, unless rounding, which depends on shapes, tips a draw. A row whose context is full
ends with finish "length".
"""

import itertools
import re
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import astuple, replace

import torch

from inference.cache import KVCache
from inference.chat import shared
from inference.continuation import Beginning, Continuation
from inference.healing import prefix_index
from inference.ngram import NGram
from inference.repetition import Repetition
from inference.sampling import Sampling, sample_next, uniforms
from model import GPT
from system.device import make_current

PROMPT_STEP = 256  # tokens of prompts encoded between two steps


class Full(Exception):
    """Too many texts wait already."""


class Row:
    """A prompt and its growing text. The engine's thread alone writes it; others may read `text` at any time, and the
    rest once it is `done`; then `error` says what went wrong, if anything did.

    sampling: its penalties spare the ids that end a text. limit: most new tokens. job: what `deliver` is told when
    the row ends or, with `streams`, grows. scores: the tokens have "logprob", and "top", this many of the likeliest
    [(id, log-probability), ...]; None: neither. scores_prompt: prompt_scores has the same, as [(log-probability,
    top), ...], for all ids of the prompt but the first. presence and frequency: subtracted from the logits of ids
    drawn so far, once and for each time. bias: {id: added to its logit}. patience: seconds after the first token at
    which it ends, once it has a newline. cut: the text ends where this matches.
    """

    def __init__(
        self,
        beginning: Beginning,
        tokenizer,
        sampling: Sampling,
        seed: int,
        limit: int,
        *,
        stops: Sequence[str] = (),
        ends: Collection[int] = (),
        scores: int | None = None,
        scores_prompt: bool = False,
        presence: float = 0.0,
        frequency: float = 0.0,
        bias: dict[int, float] | None = None,
        patience: float | None = None,
        cut: re.Pattern | None = None,
        streams: bool = False,
    ):
        self.seed, self.limit, self.streams, self.job = seed, limit, streams, None
        self.text = Continuation(tokenizer, beginning, 0, list(stops), ends)
        self.sampling = replace(sampling, unpenalized=tuple(self.text.ends))
        self.settings = astuple(self.sampling)  # rows with the same are drawn together
        self.prompt, self.rest = beginning.ids.tolist(), beginning.healed.encode()  # rest: bytes yet to be redrawn
        self.scores, self.scores_prompt, self.prompt_scores = scores, scores_prompt, []
        self.presence, self.frequency, self.bias, self.patience, self.cut = presence, frequency, bias, patience, cut
        self.repetition = Repetition(self.sampling, [self.prompt]) if sampling.looks_back else None
        self.counts = self.seen = None  # (V,): how often each id was drawn; whether it is in the text
        self.last, self.reused, self.cancelled, self.done, self.error = -1, 0, False, False, None
        self.started = self.first = self.ended = 0.0  # seconds, of time.perf_counter()


class Engine:
    """deliver(jobs) is called by the engine's thread after each step that has news, with the jobs of these rows.
    No request can stop the thread: an exception becomes the `error` of the rows concerned. ngram: an n-gram model, to
    be mixed in."""

    def __init__(
        self,
        model: GPT,
        tokenizer,
        max_batch: int,
        max_queue: int,
        deliver: Callable[[Iterable], None],
        ngram: NGram | None = None,
    ):
        weight = model.transformer.wte.weight
        self.model, self.tokenizer, self.device, self.ngram = model, tokenizer, weight.device, ngram
        self.V, self.max_batch, self.max_queue, self.deliver = tokenizer.vocab_size, max_batch, max_queue, deliver
        self.cache = KVCache(model.config, max_batch, weight.device, weight.dtype, ragged=True)
        self.held: list[list[int]] = [[] for _ in range(max_batch)]  # the ids in each row of the cache, in use or not
        self.used, self.clock = [0] * max_batch, itertools.count(1)  # when each was last in use
        self.rows: list[Row] = []  # in this order in the first rows of the cache
        self.joining: Row | None = None  # its prompt is being encoded, in the row of the cache behind these
        self.part: KVCache | None = None  # the rows in use; None: to be made
        self.waiting, self.news, self.stopping = deque(), set(), False
        self.lock = threading.Condition()
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.thread.start()

    # ---- called by other threads ----

    def submit(self, rows: Sequence[Row]) -> None:
        """Raises Full, and ValueError for more rows than ever find a place together."""
        most = self.max_queue + self.max_batch
        if len(rows) > most:
            raise ValueError(f"{len(rows)} texts are too many, at most {most} fit (--max_queue, --max_batch)")
        with self.lock:
            inside = len(self.waiting) + bool(self.joining) + len(self.rows)
            if self.stopping or inside + len(rows) > most:
                raise Full
            self.waiting.extend(rows)
            self.lock.notify()

    def cancel(self, rows: Iterable[Row]) -> None:
        """They leave before the next step."""
        with self.lock:
            for row in rows:
                row.cancelled = True
            self.waiting = deque(row for row in self.waiting if not row.cancelled)

    def stop(self) -> None:
        """Ends the thread; unfinished rows end with an error."""
        with self.lock:
            self.stopping = True
            self.lock.notify()
        self.thread.join()

    # ---- the engine's thread ----

    def run(self) -> None:
        make_current(self.device)
        while self.wait():
            try:
                with torch.inference_mode():
                    for slot in reversed(range(len(self.rows))):
                        if self.rows[slot].cancelled:
                            self.leave(slot)
                    self.encode_prompts()
                    self.step()
            except Exception as error:  # none that is foreseen: begin again with an empty batch
                self.empty(error)
            self.report()
        self.empty("the server is shutting down")
        self.fail(list(self.waiting), "the server is shutting down")
        self.report()

    def empty(self, reason: Exception | str) -> None:
        self.fail([*self.rows, *([self.joining] if self.joining else [])], reason)
        self.rows, self.joining, self.part = [], None, None
        self.held = [[] for _ in range(self.max_batch)]

    def wait(self) -> bool:
        """Until there is something to do; False: stop."""
        with self.lock:
            self.lock.wait_for(lambda: self.stopping or self.waiting or self.rows or self.joining)
            return not self.stopping

    def end(self, row: Row) -> None:
        row.ended, row.done = time.perf_counter(), True
        self.news.add(row.job)

    def fail(self, rows: list[Row], error: Exception | str) -> None:
        """Ends the rows with an error. An exception is a defect, or memory is full: its traceback is printed."""
        if isinstance(error, Exception):
            traceback.print_exception(error)
            error = f"{type(error).__name__}: {error}".partition("\n")[0]
        for row in rows:
            if not row.done:
                row.error = error
                self.end(row)

    def report(self) -> None:
        if self.news:
            self.deliver(self.news)
            self.news = set()

    # ---- joining and leaving ----

    def encode_prompts(self) -> None:
        """Up to PROMPT_STEP tokens of the prompts that wait."""
        budget = PROMPT_STEP
        while budget > 0:
            if self.joining and self.joining.cancelled:
                self.joining = None
            if not self.joining and not self.take():
                return
            budget -= self.encode(self.joining, budget)

    def take(self) -> bool:
        """Makes the next one that waits the joining row, with what a cached row has of its prompt."""
        with self.lock:
            if not self.waiting or len(self.rows) == self.max_batch:
                return False
            self.joining = row = self.waiting.popleft()
        row.started = time.perf_counter()
        row.draws = uniforms([torch.Generator().manual_seed(row.seed)], 1, self.device)
        slot = len(self.rows)
        same = [shared(ids, row.prompt) for ids in self.held]
        best = max(range(self.max_batch), key=lambda i: (same[i], i == slot))
        keep = 0 if row.scores_prompt else min(same[best], len(row.prompt) - 1)
        if (keep if best == slot else 0) < len(self.held[slot]) // 2:  # another text, which may go on later
            self.keep(slot, [i for i in range(slot + 1, self.max_batch) if i != best])
        if best != slot:
            self.cache.copy_row(best, slot, keep)
        self.held[slot], self.used[slot], row.reused = self.held[best][:keep], next(self.clock), keep
        return True

    def encode(self, row: Row, most: int) -> int:
        """Encodes up to `most` tokens of the joining row; the number of them. After the last one, it joins."""
        slot = len(self.rows)
        at = len(self.held[slot])
        chunk = row.prompt[at : at + most]
        part, idx = self.cache.rows(slice(slot, slot + 1)), torch.tensor([chunk], device=self.device)
        part.length = at
        try:
            if row.scores_prompt:  # targets make the model return all logits
                logits = self.model(idx, idx, cache=part)[0][0]
                logits = self.finish(logits, [row.prompt[: at + n] for n in range(1, len(chunk) + 1)])
                following = row.prompt[at + 1 : at + len(chunk) + 1]
                row.prompt_scores += scored(logits[: len(following)], following, row.scores)
                logits = logits[-1:]
            else:
                logits = self.finish(self.model(idx, cache=part)[0][:, -1], [row.prompt[: at + len(chunk)]])
        except Exception as error:
            self.fail([row], error)
            self.joining, self.held[slot] = None, []
            return len(chunk)
        self.held[slot] += chunk
        if at + len(chunk) == len(row.prompt):
            self.joining, self.part, row.first = None, None, time.perf_counter()
            self.rows.append(row)
            if row.limit:
                self.draw([row], logits)
            else:
                row.text.complete("length")
                self.end(row)
            self.remove_finished()
        return len(chunk)

    def copy(self, source: int, target: int) -> None:
        self.cache.copy_row(source, target, len(self.held[source]))
        self.held[target], self.used[target] = list(self.held[source]), self.used[source]

    def keep(self, slot: int, free: Sequence[int]) -> None:
        """Before something else takes a place in the cache: copies it over the one of `free` that was not in use for
        the longest time, if that is longer."""
        oldest = min(free, key=self.used.__getitem__, default=slot)
        if self.held[slot] and self.used[oldest] < self.used[slot]:
            self.copy(slot, oldest)

    def leave(self, slot: int) -> None:
        """Removes a row, whose text may go on later, so it is kept unless the batch is full; the last one takes its
        place in the cache, and the joining one the last one's."""
        last = len(self.rows) - 1
        vacated = last + bool(self.joining)
        self.used[slot] = next(self.clock)
        if slot != vacated:
            self.keep(slot, range(vacated + 1, self.max_batch))
        if slot < last:
            self.copy(last, slot)
            self.rows[slot] = self.rows[last]
        self.rows.pop()
        if self.joining:
            self.copy(last + 1, last)
        if slot != vacated:
            self.used[vacated] = 0  # holds what has moved on
        self.part = None

    def remove_finished(self) -> None:
        for slot in reversed(range(len(self.rows))):
            if self.rows[slot].done:
                self.leave(slot)

    # ---- a step ----

    def step(self) -> None:
        """One more token in every row."""
        n = len(self.rows)
        if n == 0:
            return
        if self.part is None:
            self.part, lengths = self.cache.rows(slice(0, n)), [len(self.held[slot]) for slot in range(n)]
            is_ragged = len(set(lengths)) > 1
            self.part.length = torch.tensor(lengths, device=self.device) if is_ragged else lengths[0]
            self.longest = max(lengths)
        self.longest += 1
        self.part.reach = self.longest
        idx = torch.tensor([[row.last] for row in self.rows], device=self.device)
        try:
            logits = self.model(idx, cache=self.part)[0][:, -1]
            for slot, row in enumerate(self.rows):
                self.held[slot].append(row.last)
            self.draw(self.rows, self.finish(logits, self.held[:n]))
        except Exception as error:
            self.held[:n] = [[] for _ in range(n)]
            self.fail(self.rows, error)
        self.remove_finished()

    def finish(self, logits: torch.Tensor, texts: Sequence[list[int]]) -> torch.Tensor:
        """The model's logits after n texts -> logits (n, V) float32 of the tokenizer's ids, with the n-gram model's."""
        logits = logits.float()
        return (self.ngram.mix(logits, texts) if self.ngram else logits)[:, : self.V]

    def draw(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Appends an id to each of the rows, from logits (len(rows), V): together where they share their settings."""
        groups: dict[tuple, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row.settings, []).append(i)
        for places in groups.values():
            group = [rows[i] for i in places]
            part = (logits if len(places) == len(rows) else logits[places])[:, : group[0].sampling.vocab_size]
            try:
                ids = self.sample(group, part)
                scores = self.score(group, part, ids)
                for row, id, score in zip(group, ids, scores, strict=True):
                    self.push(row, id, score)
            except Exception as error:
                self.fail(group, error)

    def sample(self, rows: list[Row], logits: torch.Tensor) -> list[int]:
        """The ids drawn for rows with the same settings; counts them where a penalty needs it."""
        sampling, uniform, seen = rows[0].sampling, None, None
        changes = [self.change(row, logits[i]) for i, row in enumerate(rows)]
        if any(change is not None for change in changes):
            logits = torch.stack([logits[i] if change is None else change for i, change in enumerate(changes)])
        if sampling.temperature > 0:
            uniform = torch.cat([next(row.draws) for row in rows])
        if sampling.repetition_penalty != 1:
            seen = torch.stack([self.seen_by(row) for row in rows])
        ids = sample_next(logits, sampling, uniform, seen).tolist()
        for row, id in zip(rows, ids, strict=True):
            if row.counts is not None:
                row.counts[id] += 1
            if row.seen is not None:
                row.seen[id] = True
            if row.repetition:
                row.repetition.rows[0].add(id)
        return ids

    def change(self, row: Row, logits: torch.Tensor) -> torch.Tensor | None:
        """logits (V,) with the row's penalties and biases, without ids that contradict its healed prompt; None: as they
        are."""
        changed = logits
        if row.presence or row.frequency:
            if row.counts is None:
                row.counts = torch.zeros_like(logits)
            changed = changed - row.presence * (row.counts > 0) - row.frequency * row.counts
        if row.bias:
            ids = torch.tensor(list(row.bias), device=self.device)
            added = torch.tensor(list(row.bias.values()), device=self.device)
            changed = changed.index_add(0, ids, added)
        if row.rest:
            ids = prefix_index(self.tokenizer).compatible(row.rest).to(self.device)
            possible = torch.full_like(logits, -torch.inf)
            possible[ids] = changed[ids]
            changed = possible
        if row.repetition:
            changed = row.repetition.apply(changed[None])[0]
        return None if changed is logits else changed

    def seen_by(self, row: Row) -> torch.Tensor:
        if row.seen is None:
            row.seen = torch.zeros(self.V, dtype=torch.bool, device=self.device)
            row.seen[[id for id in row.prompt if id < self.V and id not in row.text.ends]] = True
        return row.seen[: row.sampling.vocab_size]

    def score(self, rows: list[Row], logits: torch.Tensor, ids: list[int]) -> list[tuple[float | None, list | None]]:
        """(log-probability, likeliest) of each id drawn, (None, None) for rows that do not ask."""
        found: list = [(None, None)] * len(rows)
        asking = [i for i, row in enumerate(rows) if row.scores is not None]
        if asking:
            most = max(rows[i].scores for i in asking)
            for i, score in zip(asking, scored(logits[asking], [ids[i] for i in asking], most), strict=True):
                found[i] = score
        return found

    def push(self, row: Row, id: int, score: tuple[float | None, list | None]) -> None:
        row.last, is_healed = id, bool(row.rest)
        if is_healed:
            row.rest = row.rest[len(prefix_index(self.tokenizer).bytes[id]) :]
        logprob, top = score
        row.text.push(id, logprob, **({} if top is None else {"top": top[: row.scores], "healed": is_healed}))
        is_late = row.patience is not None and "\n" in row.text.text
        if row.cut and (match := row.cut.search(row.text.text)):
            row.text.cut(match.start())
        if len(row.text.tokens) == row.limit or is_late and time.perf_counter() - row.first > row.patience:
            row.text.complete("length")  # no effect on one that has ended
        if row.text.finish:
            self.end(row)
        elif row.streams:
            self.news.add(row.job)


def scored(logits: torch.Tensor, ids: list[int], most: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """The log-probability of an id in each row of logits (n, V), and the `most` likeliest ids with theirs."""
    if not ids:
        return []
    scores = logits.log_softmax(-1)
    own = scores.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0].tolist()
    best = scores.topk(min(most, scores.size(1)), dim=-1)
    tops = [list(zip(*pair, strict=True)) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return list(zip(own, tops, strict=True))

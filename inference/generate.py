"""Generation with a cache: one forward pass per token, of one position in each row.

    ids = generate(model, idx, max_new_tokens=100, temperature=0.8, top_k=200)     # as model.generate, but faster
    for ids, _ in stream(model, prompts, 100, Sampling(top_p=0.9)):                # (B,), each as soon as drawn

prompts: (B, T), or B rows of any lengths. The model must be in eval mode, on a CPU preferably after make_ready.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn as nn

from inference.cache import KVCache
from inference.ensemble import Ensemble, mean_logits, members, ngram_of
from inference.repetition import Repetition
from inference.sampling import Generators, Sampling, sample_next, uniforms
from inference.static import CompiledStep, RecordedStep, reach_for
from model import GPT

Prompts = torch.Tensor | Sequence[torch.Tensor]

SHARING_ROWS = 4  # smallest CPU batch for which reading a shared prompt's keys once is faster


def generate(
    model: GPT,
    idx: torch.Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: Generators = None,
    **filters,
) -> torch.Tensor:
    """idx (B, T) with max_new_tokens ids appended, (B, T + max_new_tokens). filters: as in Sampling."""
    sampling, was_training = Sampling(temperature, top_k, **filters), model.training
    model.eval()
    try:
        new = [ids[:, None] for ids, _ in stream(model, idx, max_new_tokens, sampling, generator)]
    finally:
        model.train(was_training)
    return torch.cat((idx, *new), dim=1)


@torch.no_grad()
def stream(
    model: GPT | Ensemble,
    prompts: Prompts,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    generator: Generators = None,
    constrain: Callable[[torch.Tensor | None], torch.Tensor | None] | None = None,
    static: CompiledStep | RecordedStep | None = None,
    decoder: "Decoder | None" = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Continues the prompts; yields (ids (B,), their log-probabilities (B,)) for each new position as soon as drawn.

    Both stay on the device, and a caller that reads them rarely does not stall a GPU (an n-gram model does). With a
    list of B generators, a row's ids do not depend on the other rows; a single generator, or None for torch's global
    one, serves all rows. Log-probabilities are the model's own, before temperature and filters; None unless
    sampling.logprobs. `constrain` gets the ids just drawn (first None) and returns which ids may follow: (B, V or more)
    bool, None: any from now on.

    The model sees at most the last block_size ids: when a row's cache is full, its last half is encoded again, once
    every block_size / 2 tokens. `decoder` replaces a new Decoder. Raises ValueError if a row is empty.
    """
    assert not model.training, "call model.eval() first: dropout would change the text"
    (sampling := sampling or Sampling()).validate()
    if any(len(row) == 0 for row in prompts):
        raise ValueError("the prompt is empty: expected at least one token, e.g. the end-of-text id")
    decoders, new = [decoder] if decoder else [Decoder(one, prompts, static) for one in members(model)], None
    B, V, device = len(prompts), sampling.vocab_size or model.config.vocab_size, prompts[0].device
    draws = uniforms(generator, B, device) if sampling.temperature > 0 else None
    sample = static.sample if static else sample_next
    seen = seen_in(prompts, model.config.vocab_size, sampling) if sampling.repetition_penalty != 1 else None
    repetition = Repetition(sampling, prompts) if sampling.looks_back else None
    texts = [row.tolist() for row in prompts] if (ngram := ngram_of(model)) else []
    for _ in range(max_new_tokens):
        parts = [decoder.start() if new is None else decoder.advance(new) for decoder in decoders]
        logits = mean_logits([part[:, : None if ngram else V].float() for part in parts])
        logits = ngram.mix(logits, texts)[:, :V] if ngram else logits
        allowed = constrain(new) if constrain else None
        constrain = constrain if allowed is not None else None
        possible = logits if allowed is None else logits.masked_fill(~allowed[:, :V], -math.inf)
        possible = repetition.apply(possible) if repetition else possible
        new = sample(possible, sampling, next(draws) if draws else None, None if seen is None else seen[:, :V])  # (B,)
        if seen is not None:
            seen.scatter_(1, new[:, None], True)
            seen[:, list(sampling.unpenalized)] = False
        if repetition:
            repetition.add(new)
        for text, id in zip(texts, new.tolist() if ngram else (), strict=True):
            text.append(id)
        scores = logits.log_softmax(-1).gather(1, new[:, None])[:, 0] if sampling.logprobs else None
        yield new, scores


def seen_in(prompts: Prompts, vocab_size: int, sampling: Sampling) -> torch.Tensor:
    """Which ids each prompt has, but for sampling.unpenalized, (B, vocab_size) bool."""
    seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=prompts[0].device)
    for row, ids in zip(seen, prompts, strict=True):
        row[ids] = True
    seen[:, list(sampling.unpenalized)] = False
    return seen


class Decoder:
    """Logits of the next id of B rows, step by step: stream() without the drawing. Ragged prompts are padded on the
    right, where causal attention does not see it and new positions overwrite it, so rows do not affect each other."""

    def __init__(self, model: GPT, prompts: Prompts, static: CompiledStep | RecordedStep | None = None):
        B, weight = len(prompts), model.transformer.wte.weight
        self.model, self.prompts, self.block_size, self.static = model, prompts, model.config.block_size, static
        self.lengths = [0] * B  # of the rows in the cache: cache.length without reading from a GPU
        self.recent = deque(maxlen=max(1, self.block_size // 2))  # the last ids (B,) that followed the prompts
        if static:
            self.cache = static.cache
            assert len(self.cache.kv[0]) == B, f"made for {len(self.cache.kv[0])} rows, not {B}"
        else:
            ragged = len({min(len(row), self.block_size) for row in prompts}) > 1
            self.cache = KVCache(model.config, B, weight.device, weight.dtype, ragged=ragged)

    def start(self) -> torch.Tensor:
        """Encodes the prompts; returns the logits (B, V) after each."""
        return self.encode([row[-self.block_size :] for row in self.prompts], slice(None))

    def advance(self, ids: torch.Tensor) -> torch.Tensor:
        """Appends ids (B,) to the rows; returns the logits (B, V) after them, to be read only."""
        self.recent.append(ids)
        full = [row for row, length in enumerate(self.lengths) if length == self.block_size]
        if len(full) < len(self.lengths):
            for row in full:
                self.cache.length[row] = 0  # its result is discarded: it is encoded again below
            self.lengths = [length % self.block_size + 1 for length in self.lengths]
            longest = max(self.lengths)
            if self.static:
                self.cache.reach = reach_for(longest, self.block_size)
                logits = self.static(ids[:, None])[:, -1]
            else:
                self.cache.reach = longest
                with torch.inference_mode():  # 3 % faster than no_grad
                    logits = self.model(ids[:, None], cache=self.cache)[0][:, -1]
        if full:
            recent, half = torch.stack(tuple(self.recent), dim=1), self.recent.maxlen
            contexts = [torch.cat((self.prompts[row], recent[row]))[-half:] for row in full]
            if len(full) == len(self.lengths):
                return self.encode(contexts, slice(None))
            logits = logits.clone()
            for row, context in zip(full, contexts, strict=True):
                logits[row] = self.encode([context], slice(row, row + 1))[0]
        return logits

    def encode(self, contexts: list[torch.Tensor], rows: slice) -> torch.Tensor:
        """Fills `rows` of the cache from position 0; returns the logits (len(contexts), V) after each context."""
        counts, part = [len(context) for context in contexts], self.cache.rows(rows)
        is_ragged, device = len(set(counts)) > 1, self.cache.kv[0].device
        self.lengths[rows] = counts
        if isinstance(self.cache.length, torch.Tensor):
            self.cache.length[rows] = torch.tensor(counts, device=device)
        else:
            self.cache.length = torch.tensor(counts, device=device) if is_ragged else counts[0]
        self.cache.shared = 0
        if len(contexts) > 1 and all(torch.equal(context, contexts[0]) for context in contexts):
            return self.encode_once(contexts[0], part)
        idx = nn.utils.rnn.pad_sequence(contexts, batch_first=True)
        last = torch.tensor(counts, device=idx.device) - 1 if is_ragged else None
        return self.model(idx, cache=part, last=last)[0][:, -1]

    def encode_once(self, context: torch.Tensor, part: KVCache) -> torch.Tensor:
        """encode() for a context (T,) shared by all rows of `part`."""
        T, B = len(context), len(part.kv[0])
        logits = self.model(context[None], cache=part.rows(slice(1)))[0]
        if part.ids is not None:
            part.ids[1:] = part.ids[:1]
        if isinstance(self.cache.length, int) and logits.device.type == "cpu" and B >= SHARING_ROWS:
            self.cache.share(T)
        else:
            for cached in part.kv:
                cached[1:, :, :T] = cached[:1, :, :T]
        return logits[:, -1].expand(B, -1)

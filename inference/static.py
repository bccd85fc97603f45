"""A decode step whose shapes and addresses never change, which a GPU repeats without waiting for Python.

    step = RecordedStep(model, batch_size=2)      # as CUDA graphs, recorded in milliseconds
    step = CompiledStep(model, batch_size=2)      # by torch.compile: faster, after a minute
    for ids, _ in stream(model, prompts, 100, Sampling(top_p=0.9), static=step): ...

Such a step attends to a fixed number of slots, its cache's `reach`, with a mask over those that a row has not filled.
"""

import sys
from collections.abc import Callable, Sequence

import torch

from inference.cache import KVCache
from inference.sampling import Sampling, sample_next
from model import GPT

SHORTEST_REACH = 256  # slots: fewer save next to nothing


def reach_for(length: int, block_size: int) -> int:
    """Slots to attend to once a row has `length` positions: a power of two, so that few different steps are needed."""
    return min(block_size, max(SHORTEST_REACH, 2 ** (length - 1).bit_length()))


def static_cache(model: GPT, batch_size: int) -> KVCache:
    weight = model.transformer.wte.weight
    cache = KVCache(model.config, batch_size, weight.device, weight.dtype, ragged=True)
    cache.length = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
    return cache


class CompiledStep:
    """The forward pass of one id in each of `batch_size` rows, by torch.compile with static shapes; prompts, of any
    shape, are encoded without. Its only cache is allocated here, since CUDA graphs record addresses, so only one stream
    at a time can use it. Options go to torch.compile, e.g. mode="reduce-overhead" for CUDA graphs."""

    def __init__(self, model: GPT, batch_size: int, **options):
        self.cache = cache = static_cache(model, batch_size)
        for tensor in (*cache.kv, cache.length, *([] if cache.ids is None else [cache.ids])):
            torch._dynamo.mark_static_address(tensor)  # written to by the graph
        self.forward = torch.compile(lambda idx: model(idx, cache=cache)[0], fullgraph=True, dynamic=False, **options)
        self.sample = sample_next

    def __call__(self, idx: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return self.forward(idx)


class RecordedStep:
    """CompiledStep without a compiler, only for CUDA: the plain forward pass and the drawing, each recorded as a graph
    when first needed. To repeat it takes one launch instead of hundreds."""

    def __init__(self, model: GPT, batch_size: int):
        self.cache = cache = static_cache(model, batch_size)
        self.forward = lambda idx: model(idx, cache=cache)[0]
        self.steps: dict[int, Recorded] = {}  # by reach
        self.draws: dict[str, Recorded] = {}  # by sampling

    def __call__(self, idx: torch.Tensor) -> torch.Tensor:
        """idx (B, 1) -> logits (B, 1, V), overwritten by the next call."""
        reach = self.cache.reach
        if reach not in self.steps:
            self.steps[reach] = Recorded(self.forward, [idx], changed=[self.cache.length])
        return self.steps[reach](idx)

    def sample(self, logits: torch.Tensor, sampling: Sampling, *more: torch.Tensor | None) -> torch.Tensor:
        """As sample_next."""
        if repr(sampling) not in self.draws:
            self.draws[repr(sampling)] = Recorded(lambda x, *rest: sample_next(x, sampling, *rest), [logits, *more])
        return self.draws[repr(sampling)](logits, *more).clone()  # callers keep the ids


class Recorded:
    """function(*inputs), a tensor, recorded as a CUDA graph, which repeats the same kernels on the same memory: a call
    copies its inputs there, and overwrites the last result. Inputs keep their shapes, and None stays None.

    The function may not read from the GPU. `changed` is what it adds to, set back after trying it out. Where it cannot
    be recorded, it is called as it is, with a note.
    """

    def __init__(self, function: Callable, inputs: Sequence[torch.Tensor | None], changed: Sequence[torch.Tensor] = ()):
        self.function, self.graph = function, torch.cuda.CUDAGraph()
        self.inputs = [None if tensor is None else tensor.clone() for tensor in inputs]
        before = [tensor.clone() for tensor in changed]
        try:
            side = torch.cuda.Stream()  # tried out first, and not on the main stream: libraries set themselves up
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                function(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self.graph):
                self.output = function(*self.inputs)
        except RuntimeError as error:
            self.graph, problem = None, str(error).partition("\n")[0]
            print(f"note: no CUDA graph, so each token takes longer: {problem}", file=sys.stderr)
        finally:
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)

    def __call__(self, *inputs: torch.Tensor | None) -> torch.Tensor:
        if self.graph is None:
            return self.function(*inputs)
        for memory, tensor in zip(self.inputs, inputs, strict=True):
            if tensor is not None:
                memory.copy_(tensor)
        self.graph.replay()
        return self.output

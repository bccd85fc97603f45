"""Keys and values of the positions so far, so that each new token costs the attention of one position.

The model calls positions, reserve, previous and attend: cached attention is here, the layers are in model.py.
"""

from collections.abc import Sequence
from copy import copy

import torch
from torch.nn import functional as F

from model import GPTConfig


class KVCache:
    """Allocated for block_size positions (a CPU commits the memory only as they fill).

    kv: each layer's keys and then its values, (B, nkv, block_size, hs) each, with position p in slot p. length:
    positions filled, an int, or a (B,) int64 tensor where rows differ; lowering it forgets the last ones. With a
    tensor, shapes do not depend on the length, as CUDA graphs require: the first `reach` slots take part in attention,
    with a mask over those a row has not filled; such a cache needs ragged=True. The first `shared` positions are stored
    in row 0 only, for every row. ids (B, block_size + 1), only for config.smear: the id of position p in slot p + 1,
    and -1 in slot 0.
    """

    def __init__(self, config: GPTConfig, batch_size: int, device=None, dtype=None, ragged: bool = False):
        shape = (batch_size, config.kv_heads, config.block_size, config.head_size)
        if dtype == torch.bfloat16 and torch.device(device or "cpu").type == "cpu":
            dtype = torch.float32  # takes a fifth of the time for one query (2 cores, 450 positions)
        options = {"dtype": dtype, "device": device}
        if ragged:  # zeros, since a masked slot has weight 0, but 0 * nan is nan
            self.whole = None  # a compiled step writes in place only to tensors that it need not index by layer
            self.kv = [torch.zeros(shape, **options) for _ in range(2 * config.n_layer)]
        else:
            self.whole = torch.empty((2 * config.n_layer, *shape), **options)
            self.kv = self.whole.unbind()
        self.ids = torch.full((batch_size, config.block_size + 1), -1, device=device) if config.smear else None
        self.length: int | torch.Tensor = 0
        self.reach, self.shared = config.block_size, 0

    def rows(self, rows: slice) -> "KVCache":
        """An empty cache of these rows, sharing the memory."""
        part = copy(self)
        part.kv, part.whole, part.length, part.shared = [tensor[rows] for tensor in self.kv], None, 0, 0
        part.ids = None if self.ids is None else self.ids[rows]
        return part

    def copy_row(self, source: int, target: int, T: int) -> None:
        """Copies the first T positions of one row to another."""
        for tensor in self.kv:
            tensor[target, :, :T] = tensor[source, :, :T]
        if self.ids is not None:
            self.ids[target, : T + 1] = self.ids[source, : T + 1]

    def positions(self, T: int) -> slice | torch.Tensor:
        """Positions of the next T ids: a slice, or a (B, T) tensor where rows differ."""
        if isinstance(self.length, int):
            return slice(self.length, self.length + T)
        return self.length[:, None] + torch.arange(T, device=self.length.device)

    def reserve(self, positions: slice | torch.Tensor) -> None:
        """Prepares what attend() shares over the layers at these positions: new slots, visible slots, the mask."""
        self.mask = self.slots = None
        if isinstance(positions, slice):
            t, end, S = positions.start, positions.stop, self.shared
            self.slots = self.view(t, end)
            self.seen = self.view(S, end) if t > 0 else None
            if t > 0 and end - t > 1:
                self.mask = torch.ones(end - t, end, dtype=torch.bool, device=self.kv[0].device).tril(t)
        else:
            B, device = len(positions), positions.device
            self.new = torch.arange(B, device=device)[:, None], positions  # row (B, 1), slot (B, T)
            self.mask = (torch.arange(self.reach, device=device) <= positions[:, :, None])[:, None]  # (B, 1, T, reach)

    def view(self, start: int, stop: int) -> Sequence[torch.Tensor]:
        """kv at these positions only, (B, nkv, stop - start, hs) each."""
        if self.whole is None:
            return [tensor.narrow(2, start, stop - start) for tensor in self.kv]
        return self.whole.narrow(3, start, stop - start).unbind()  # the same, in half the time

    def advance(self, T: int) -> None:
        """Counts the reserved positions as filled; what reserve() prepared is of no use afterwards."""
        self.length += T
        self.mask = self.slots = self.seen = self.new = None

    def share(self, T: int) -> None:
        """Declares the first T positions, which row 0 has, those of every row."""
        self.shared, self.prefix = T, [tensor[0] for tensor in self.view(0, T)]

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores k, v (B, nkv, T, hs) at the reserved positions; returns the keys and values to attend to."""
        if torch.is_grad_enabled():  # a cache has no gradients
            k, v = k.detach(), v.detach()
        i, j = 2 * layer, 2 * layer + 1
        if self.slots is not None:
            self.slots[i].copy_(k)
            self.slots[j].copy_(v)
            return (k, v) if self.seen is None else (self.seen[i], self.seen[j])
        (row, slot), keys, values = self.new, self.kv[i], self.kv[j]
        keys[row, :, slot] = k.transpose(1, 2).to(keys.dtype)
        values[row, :, slot] = v.transpose(1, 2).to(values.dtype)
        return keys.narrow(2, 0, self.reach), values.narrow(2, 0, self.reach)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Stores k, v (B, nkv, T, hs) at the reserved positions; returns the attention of q (B, nh, T, hs) over them
        and all earlier ones, shaped like q."""
        B, nh, T, hs = q.shape
        nkv = k.size(1)
        k, v = self.append(layer, k, v)
        dtype = q.dtype
        if k.dtype != dtype:  # a CPU's cache is in float32
            q = q.to(k.dtype)
        if T > 1:
            is_causal, is_gqa = self.mask is None, nkv != nh
            y = F.scaled_dot_product_attention(q, k, v, self.mask, is_causal=is_causal, enable_gqa=is_gqa)
            return y.to(dtype)
        if nkv != nh:
            q = q.reshape(B, nkv, nh // nkv, hs)  # heads that share keys become queries of one head: no keys to repeat
        if self.shared:
            y = attend_with_prefix(q, k, v, *self.prefix[2 * layer : 2 * layer + 2])
        else:
            y = F.scaled_dot_product_attention(q, k, v, self.mask)
        if nkv != nh:
            y = y.view(B, nh, T, hs)
        return y if y.dtype == dtype else y.to(dtype)

    def previous(self, idx: torch.Tensor) -> torch.Tensor:
        """Stores idx (B, T) after `length`; returns the id before each of them, (B, T), -1 before the first."""
        if isinstance(self.length, int):
            self.ids.narrow(1, self.length + 1, idx.size(1)).copy_(idx)
            return self.ids.narrow(1, self.length, idx.size(1))
        row, slot = torch.arange(idx.size(0), device=idx.device)[:, None], self.positions(idx.size(1))
        self.ids[row, slot + 1] = idx
        return self.ids[row, slot]


def attend_with_prefix(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shared_k: torch.Tensor, shared_v: torch.Tensor
) -> torch.Tensor:
    """Attention of one position per row, q (B, nkv, nh / nkv, hs), over shared_k, shared_v (nkv, S, hs) and the row's
    own k, v (B, nkv, T, hs); shaped like q. A matrix product reads the shared part once for all rows."""
    B, nkv, n, hs = q.shape
    S, T = shared_k.size(1), k.size(2)
    q = q * hs**-0.5
    shared = q.transpose(0, 1).reshape(nkv, B * n, hs).bmm(shared_k.mT)  # (nkv, B n, S)
    own = k.flatten(0, 1).bmm(q.reshape(B * nkv, n, hs).mT)  # (B nkv, T, n): q k^T would take a third more time
    p = torch.cat((shared.view(nkv, B, n, S).transpose(0, 1), own.view(B, nkv, T, n).mT), dim=-1).softmax(-1)
    shared = p[..., :S].transpose(0, 1).reshape(nkv, B * n, S).bmm(shared_v)  # (nkv, B n, hs)
    own = p[..., S:].reshape(B * nkv, n, T).bmm(v.flatten(0, 1))  # (B nkv, n, hs)
    return own.view(q.shape) + shared.view(nkv, B, n, hs).transpose(0, 1)

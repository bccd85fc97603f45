"""Token healing (github.com/guidance-ai/guidance): continuing a prompt that may end inside a token.

A tokenizer splits a prompt without knowing what follows. The tokens of "import num" end in " num", but in training
" numpy" was a single token, so after " num" the model expects anything but "py". Healing looks back over the last few
token boundaries: where a longer token begins with all the bytes after a boundary, it may replace the tokens there.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch

from data.tokenizer import token_table

BACK = 4  # boundaries to look back over


@cache
def prefix_index(tokenizer, device: torch.device | str = "cpu") -> "PrefixIndex":
    return PrefixIndex(token_table(tokenizer), device)


class PrefixIndex:
    """A vocabulary (the bytes of each id, see token_table) searched by prefix. Ids are (n,) int64 on `device`."""

    def __init__(self, table: list[bytes], device: torch.device | str = "cpu"):
        order = sorted(range(len(table)), key=table.__getitem__)
        self.bytes, self.sorted = table, [table[id] for id in order]
        self.ids = torch.tensor(order, device=device)

    def end_of(self, prefix: bytes) -> int:
        """The end of the range in `sorted` of tokens that begin with `prefix`."""
        return bisect_right(self.sorted, prefix, key=lambda token: token[: len(prefix)])

    def longer(self, prefix: bytes) -> torch.Tensor:
        """Ids of the longer tokens that begin with `prefix`."""
        return self.ids[bisect_right(self.sorted, prefix) : self.end_of(prefix)]

    def compatible(self, text: bytes) -> torch.Tensor:
        """Ids of the tokens that begin with `text` or are a prefix of it; all ids if it is empty."""
        ranges = [(bisect_left(self.sorted, text), self.end_of(text))]
        for n in range(1, len(text)):
            ranges.append((bisect_left(self.sorted, text[:n]), bisect_right(self.sorted, text[:n])))
        return torch.cat([self.ids[low:high] for low, high in ranges])

    def boundaries(self, ids: Sequence[int]) -> Iterator[tuple[int, bytes, torch.Tensor]]:
        """Yields (boundary, the bytes of ids[boundary:], longer tokens that begin with them), from the last boundary
        back, for each of the last BACK ones that has such tokens. ids[0] and special tokens are never replaced."""
        typed = b""
        for boundary in range(len(ids) - 1, max(len(ids) - BACK, 1) - 1, -1):
            if not self.bytes[ids[boundary]]:
                return
            typed = self.bytes[ids[boundary]] + typed
            longer = self.longer(typed)
            if len(longer):
                yield boundary, typed, longer


def begin_with(index: PrefixIndex, texts: Sequence[bytes], device: torch.device | str) -> Callable:
    """The `constrain` of generate.stream() that makes the ids drawn begin with these texts, one for each row."""
    rest = list(texts)

    def constrain(drawn: torch.Tensor | None) -> torch.Tensor | None:
        for row, id in enumerate([] if drawn is None else drawn.tolist()):
            rest[row] = rest[row][len(index.bytes[id]) :]
        if not any(rest):
            return None
        allowed = torch.zeros(len(rest), len(index.bytes), dtype=torch.bool)
        for row, text in enumerate(rest):
            allowed[row, index.compatible(text)] = True
        return allowed.to(device)

    return constrain

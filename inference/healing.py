"""Token healing (github.com/guidance-ai/guidance): continuing a prompt that may end inside a token.

A tokenizer splits a prompt without knowing what follows. The tokens of "import num" end in " num", but in training
" numpy" was a single token, so after " num" the model expects anything but "py". Healing looks back over the last few
token boundaries: where a longer token begins with all the bytes after a boundary, it may replace the tokens there.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
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

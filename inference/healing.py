"""Token healing: continuing a prompt that may end inside a token.

A tokenizer splits a prompt without knowing what follows. The tokens of "import num" end in " num", but in training the
text went on as the single token " numpy", so after " num" the model expects anything except "py". Healing looks back
over the last boundaries between the prompt's tokens: wherever a longer token begins with the bytes after a boundary,
the text may continue from that boundary with that token. (The name is guidance's: github.com/guidance-ai/guidance.)
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
    """A vocabulary sorted by its tokens' bytes and searched by prefix. Ids are returned as (n,) int64 on `device`.

    bytes: what each id stands for, b"" for special and unused ids.
    """

    def __init__(self, table: list[bytes], device: torch.device | str = "cpu"):
        order = sorted(range(len(table)), key=table.__getitem__)
        self.bytes, self.sorted = table, [table[id] for id in order]
        self.ids = torch.tensor(order, device=device)

    def _end(self, prefix: bytes) -> int:
        return bisect_right(self.sorted, prefix, key=lambda token: token[: len(prefix)])

    def longer(self, prefix: bytes) -> torch.Tensor:
        """Ids of the tokens that begin with `prefix` and are longer."""
        return self.ids[bisect_right(self.sorted, prefix) : self._end(prefix)]

    def compatible(self, text: bytes) -> torch.Tensor:
        """Ids of the tokens that begin with `text`, or that `text` begins with. If it is empty, all ids."""
        ranges = [(bisect_left(self.sorted, text), self._end(text))]
        for n in range(1, len(text)):
            ranges.append((bisect_left(self.sorted, text[:n]), bisect_right(self.sorted, text[:n])))
        return torch.cat([self.ids[low:high] for low, high in ranges])

    def boundaries(self, ids: Sequence[int]) -> Iterator[tuple[int, bytes, torch.Tensor]]:
        """Yields (boundary, typed, longer) for those of the last BACK boundaries where healing is possible.

        typed: the bytes of ids[boundary:]. longer: ids of the tokens that begin with them and are longer; at least one.
        The last boundary comes first; the one before ids[0] is never tried, so some context always remains.
        """
        typed = b""
        for boundary in range(len(ids) - 1, max(len(ids) - BACK, 1) - 1, -1):
            typed = self.bytes[ids[boundary]] + typed
            longer = self.longer(typed)
            if len(longer):
                yield boundary, typed, longer

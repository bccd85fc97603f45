"""Fill-in-the-middle: training texts rearranged so that a model learns to write what is missing between two texts.

    prefix-suffix-middle:  <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle, and the end of text
    suffix-prefix-middle:  <|fim_prefix|><|fim_suffix|> suffix <|fim_middle|> prefix middle, and the end of text

After Bavarian et al. 2022 (arXiv:2207.14255), who cut texts at any character, rearrange half of them, half of these in
either order, and find that this costs the other half nothing. The first order is what other programs ask for. In the
second, prefix and middle are encoded as one text, so it is left-to-right text with a suffix before it: token healing
works, and what a program has computed stays valid while somebody types.
"""

import hashlib
import random
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from data.tokenizer import ExtendedTokenizer, Tokenizer

# Spelled as Qwen2.5-Coder spells them, which is how llama.cpp finds them
FIM_MARKERS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
FILE_SEP = "<|file_sep|>"  # precedes a file's name, whose line precedes the text
CHARS, SINGLE_CHARS = 1024, 384  # of a part: half a context of 512 tokens, or most of one of 512 characters


@dataclass(frozen=True)
class Fim:
    """How training texts are rearranged."""

    rate: float = 0.0  # share of the documents
    spm_rate: float = 0.5  # share of the rearranged parts whose suffix comes first
    chars: int = CHARS  # longest part
    names: bool = False  # whether a file's name precedes its text

    @property
    def markers(self) -> list[str]:
        """The special tokens that this needs."""
        return [*FIM_MARKERS] * bool(self.rate) + [FILE_SEP] * self.names

    def parts(self, text: str) -> Iterator[tuple[str, str, str, bool]] | None:
        """(prefix, middle, suffix, suffix first?) of every part of a text, cut at characters drawn by the text's hash;
        None if the text stays as it is. Parts are whole lines where possible. A window that cuts one makes little use
        of it, so none should be longer than about a model's context."""
        draw = random.Random(hashlib.sha256(text.encode()).digest()).random
        return self._parts(text, draw) if draw() < self.rate else None

    def _parts(self, text: str, draw: Callable[[], float]) -> Iterator[tuple[str, str, str, bool]]:
        """Middles begin at any character. The logarithm of their length is uniform, so that what an editor asks for,
        half a line or a few, is not rare, and half of them are prolonged to the end of a line."""
        start = 0
        while start < len(text):
            end = len(text)
            if end - start > self.chars:
                line = text.rfind("\n", start + self.chars // 2, start + self.chars) + 1
                end = line or start + self.chars
            part, start = text[start:end], end
            first = int(draw() * (len(part) + 1))
            last = first + int((len(part) + 1 - first) ** draw())
            if draw() < 0.5:
                line = part.find("\n", last)
                last = len(part) if line < 0 else line
            yield part[:first], part[first:last], part[last:], draw() < self.spm_rate


def fim_of(args: Namespace) -> Fim:
    """What the options say. ValueError if they cannot be combined."""
    rate, names = args.fim_rate, args.file_names
    if not rate and not names:
        return Fim()
    if args.special == "encode":
        raise ValueError(
            "--special=encode: --fim_rate and --file_names need markers that no text can contain; drop one or the other"
        )
    if rate and not args.eot:
        raise ValueError("--fim_rate needs documents that end, but this dataset is one running text without ends")
    if names and args.tokenizer == "char":
        raise ValueError("--file_names: a char tokenizer may lack the characters of a name; use byte, bpe or bpe_code")
    chars = args.fim_chars or (SINGLE_CHARS if args.tokenizer in ("char", "byte") else CHARS)
    return Fim(rate, args.spm_rate, chars, names)


def fim_settings(fim: Fim) -> dict:
    """For meta.json: nothing, if nothing is rearranged and no file named."""
    keys = {"fim_rate": fim.rate, "spm_rate": fim.spm_rate, "fim_chars": fim.chars} if fim.rate else {}
    return keys | ({"file_names": True} if fim.names else {})


def with_markers(tokenizer: Tokenizer, fim: Fim) -> Tokenizer:
    """The tokenizer with those of the markers that it lacks."""
    missing = [name for name in fim.markers if name not in tokenizer.special_tokens]
    if fim.rate and tokenizer.eot is None:
        raise ValueError("--fim_rate needs a tokenizer with an end-of-text id, to end the middle: choose another one")
    return ExtendedTokenizer(tokenizer, missing) if missing else tokenizer


def rearranged(tokenizer: Tokenizer, part: tuple[str, str, str, bool], front: list[int]) -> list[int]:
    """The ids of a part (see Fim.parts) after `front`, up to and with the end of text."""
    prefix, middle, suffix, spm = part
    if spm:
        prefix, middle = prefix + middle, ""
    before, then, after = (
        tokenizer.encode(text, num_threads=1, inside=True).tolist() for text in (prefix, middle, suffix)
    )
    return [*front, *arrange(find_markers(tokenizer), before, after, spm), *then, tokenizer.eot]


def find_markers(tokenizer: Tokenizer) -> tuple[int, ...] | None:
    """The ids of FIM_MARKERS; None if the tokenizer lacks one."""
    ids = tuple(tokenizer.special_tokens.get(name, -1) for name in FIM_MARKERS)
    return ids if min(ids) >= 0 else None


def text_ids(tokenizer: Tokenizer) -> int:
    """How many of the first ids left-to-right text is drawn from: all but the markers, where these are the last."""
    n = tokenizer.vocab_size
    added = sorted(tokenizer.special_tokens.get(name, n) for name in (*FIM_MARKERS, FILE_SEP))
    added = [id for id in added if id < n]
    return n - len(added) if added == [*range(n - len(added), n)] else n


def arrange(markers: Sequence[int], prefix: Sequence[int], suffix: Sequence[int], spm: bool) -> list[int]:
    """The ids that the middle follows: see above."""
    begin, between, middle = markers
    if spm:
        return [begin, between, *suffix, middle, *prefix]
    return [begin, *prefix, between, *suffix, middle]


def name_ids(tokenizer: Tokenizer, name: str) -> list[int]:
    """The ids of a file's name before its text; none if the tokenizer has no FILE_SEP, or there is no name."""
    if not name or FILE_SEP not in tokenizer.special_tokens:
        return []
    return [tokenizer.special_tokens[FILE_SEP], *tokenizer.encode(f"{name}\n", inside=True).tolist()]

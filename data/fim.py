"""Fill-in-the-middle: training texts rearranged so that a model learns to write what is missing between two texts.

    prefix-suffix-middle:  <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle, and the end of text
    suffix-prefix-middle:  <|fim_prefix|><|fim_suffix|> suffix <|fim_middle|> prefix middle, and the end of text

After Bavarian et al. 2022 (arXiv:2207.14255), who cut texts at any character, rearrange half of them, half of these in
either order, and find that this costs the other half nothing. The first order is what other programs ask for. In the
second, prefix and middle are encoded as one text, so it is left-to-right text with a suffix before it: token healing
works, and what a program has computed stays valid while somebody types.
"""

from collections.abc import Sequence

from data.tokenizer import Tokenizer

# Spelled as Qwen2.5-Coder spells them, which is how llama.cpp finds them
PREFIX, SUFFIX, MIDDLE = MARKERS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
FILE_SEP = "<|file_sep|>"  # precedes a file's name, whose line precedes the text


def find_markers(tokenizer: Tokenizer) -> tuple[int, ...] | None:
    """The ids of MARKERS; None if the tokenizer lacks one."""
    ids = tuple(tokenizer.special_tokens.get(name, -1) for name in MARKERS)
    return ids if min(ids) >= 0 else None


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

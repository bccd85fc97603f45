"""The vocabulary a model needs for a dataset, and whether a dataset's ids stand for the same text as a checkpoint's."""

import math
from dataclasses import replace

from data.dataset import GPT2_VOCAB_SIZE, Dataset
from data.tokenizer import ExtendedTokenizer, Tokenizer, token_table, tokenizer_from_json


def padded_vocab_size(n_ids: int) -> int:
    """n_ids rounded up to a multiple of 64, which multiplies faster."""
    return 64 * math.ceil(n_ids / 64)


def model_vocab_size(n_ids: int) -> int:
    """The vocabulary of a fresh model for a dataset of n_ids: padded where there are many."""
    return n_ids if n_ids <= 10_000 else padded_vocab_size(n_ids)


def has_size_of_gpt2(vocab_size: int) -> bool:
    """Whether it is GPT-2's number of ids, exact or padded as by nanoGPT."""
    return vocab_size in (GPT2_VOCAB_SIZE, padded_vocab_size(GPT2_VOCAB_SIZE))


def only_counts_ids(dataset: Dataset, state: dict) -> bool:
    """Whether has_ids_of can only count the ids, as the checkpoint has no tokenizer, nor the ids of GPT-2."""
    size, tokenizer = state["model_args"]["vocab_size"], dataset.tokenizer
    may_be_gpt2 = tokenizer is None or tokenizer.kind == "tiktoken" and tokenizer.vocab_size == GPT2_VOCAB_SIZE
    return not state.get("tokenizer") and not (has_size_of_gpt2(size) and may_be_gpt2)


def has_ids_of(dataset: Dataset, state: dict, vocab_size: int | None = None) -> bool:
    """Whether the dataset's ids stand for the same bytes as those of the checkpoint `state`, whatever the kind of
    their tokenizers. Where one has none, the number of ids has to do (or the `vocab_size` that was asked for)."""
    size = state["model_args"]["vocab_size"]
    if size < dataset.vocab_size:
        return False
    if dataset.meta and dataset.meta["tokenizer"] == state.get("tokenizer"):
        return True  # as in every resume, and at once: the tables of 150,000 ids take seconds
    if dataset.tokenizer and state.get("tokenizer"):
        return same_ids(dataset.tokenizer, tokenizer_from_json(state["tokenizer"]))
    return size in (vocab_size, dataset.vocab_size, padded_vocab_size(dataset.vocab_size))


def ids_before_added(dataset: Dataset, state: dict) -> int | None:
    """The number of ids that the dataset shares with the checkpoint `state`, if its tokenizer is the checkpoint's with
    special tokens added; else None."""
    tokenizer = dataset.tokenizer
    if not isinstance(tokenizer, ExtendedTokenizer) or (state.get("tokenizer") and has_ids_of(dataset, state)):
        return None
    plain = replace(dataset, tokenizer=tokenizer.base, vocab_size=tokenizer.base.vocab_size)
    return plain.vocab_size if has_ids_of(plain, state) else None


def same_ids(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether the ids of both stand for the same bytes, or, where bytes are not defined, for the same spellings."""
    if isinstance(a, ExtendedTokenizer) or isinstance(b, ExtendedTokenizer):  # added tokens have no bytes to compare
        if a.special_tokens != b.special_tokens:
            return False
    if a.lossy or b.lossy:
        spelled = getattr(a, "tokens", None)
        return spelled is not None and spelled == getattr(b, "tokens", None)
    return token_table(a) == token_table(b)

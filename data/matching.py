"""The vocabulary a model needs for a dataset, and whether a dataset's ids stand for the same text as a checkpoint's."""

import math

from data.dataset import GPT2_VOCAB_SIZE, Dataset
from data.tokenizer import JsonTokenizer, Tokenizer, token_table, tokenizer_from_json


def padded_vocab_size(n_ids: int) -> int:
    """n_ids rounded up to a multiple of 64, which multiplies faster."""
    return 64 * math.ceil(n_ids / 64)


def model_vocab_size(n_ids: int) -> int:
    """The vocabulary of a fresh model for a dataset of n_ids: padded where there are many."""
    return n_ids if n_ids <= 10_000 else padded_vocab_size(n_ids)


def only_counts_ids(dataset: Dataset, state: dict) -> bool:
    """Whether has_ids_of can only count the ids, as the checkpoint has no tokenizer, nor the ids of GPT-2."""
    size, tokenizer = state["model_args"]["vocab_size"], dataset.tokenizer
    has_size_of_gpt2 = size in (GPT2_VOCAB_SIZE, padded_vocab_size(GPT2_VOCAB_SIZE))
    may_be_gpt2 = tokenizer is None or tokenizer.kind == "tiktoken" and tokenizer.vocab_size == GPT2_VOCAB_SIZE
    return not state.get("tokenizer") and not (has_size_of_gpt2 and may_be_gpt2)


def has_ids_of(dataset: Dataset, state: dict, vocab_size: int | None = None) -> bool:
    """Whether the dataset's ids stand for the same bytes as those of the checkpoint `state`, whatever the kind of
    their tokenizers. Where one has none, the number of ids has to do (or the `vocab_size` that was asked for)."""
    size = state["model_args"]["vocab_size"]
    if size < dataset.vocab_size:
        return False
    if dataset.tokenizer and state.get("tokenizer"):
        return same_ids(dataset.tokenizer, tokenizer_from_json(state["tokenizer"]))
    return size in (vocab_size, dataset.vocab_size, padded_vocab_size(dataset.vocab_size))


def same_ids(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether the ids of both stand for the same bytes, or, where bytes are not defined, for the same spellings."""
    if a.lossy or b.lossy:
        return isinstance(a, JsonTokenizer) and isinstance(b, JsonTokenizer) and a.tokens == b.tokens
    return token_table(a) == token_table(b)

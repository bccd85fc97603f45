"""export.py: what transformers makes of an exported folder, and the way back; both against random models."""

import json
import random
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import checkpoint
import export
import train
from data.dataset import DatasetWriter
from data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, TiktokenTokenizer, tokenizer_from_json
from model import GPT, GPTConfig
from pretrained import load_pretrained

TEXT = "黛玉见了宝玉便说：“今日来得不巧了。”\n\tdef f(x):\n        return x ** 2  # 平方\r\n👩‍👩‍👧‍👦 ñ don't  123456 \u3000 end"


@lru_cache
def tokenizers(folder) -> dict:
    made = {
        "byte": ByteTokenizer(), "byte with eot": ByteTokenizer(eot=255), "char": CharTokenizer.train([TEXT]),
        "char with eot": CharTokenizer.train([TEXT], eot=True), "bpe": BPETokenizer.train([TEXT * 3], 300),
    }  # fmt: skip
    return made | ({"gpt2": TiktokenTokenizer("gpt2", folder)} if folder else {})


@torch.no_grad()
def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """Every parameter random, so that biases and gains matter."""
    model, generator = GPT(config).eval(), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (1.0 if p.dim() == 1 else 0.0))
    return model


def save_run(folder, model: GPT, tokenizer) -> str:
    folder.mkdir(exist_ok=True)
    state = {"model": model.state_dict(), "model_args": model.config.to_args(), "tokenizer": tokenizer.to_json(),
             "iter_num": 7, "best_val_loss": 1.5, "config": {"dataset": "novel"}}  # fmt: skip
    checkpoint.save(folder / "ckpt.pt", state)
    return f"--out_dir={folder}"


def random_config(rng: random.Random, vocab_size: int) -> GPTConfig:
    heads, kind = rng.choice([1, 2, 4, 6]), rng.choice(["gpt2", "llama", "qwen3"])
    size = rng.choice([4, 8, 12])
    common = GPTConfig(
        block_size=rng.choice([80, 96]), vocab_size=vocab_size + rng.choice([0, 0, 5]), n_layer=rng.choice([1, 2, 3]),
        n_head=heads, n_embd=heads * size, bias=rng.random() < 0.5, tie_weights=rng.random() < 0.5,
        norm_eps=rng.choice([1e-5, 1e-6, 1e-2]), mlp_hidden=rng.choice([None, 24]),
    )  # fmt: skip
    if kind == "gpt2":
        return replace(common, mlp=rng.choice(["gelu", "gelu_tanh", "relu2"]))
    return replace(
        common, pos="rope", norm="rmsnorm", mlp="swiglu", qk_norm=kind == "qwen3", bias=common.bias and kind == "llama",
        n_kv_head=rng.choice([n for n in range(1, heads + 1) if heads % n == 0]), head_dim=rng.choice([None, 2 * size]),
        rope_theta=rng.choice([1e4, 5e5]),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_a_random_model_survives_ours_to_hugging_face_to_ours(seed, tmp_path, request):
    rng = random.Random(seed)
    shared = None if seed % 8 else request.getfixturevalue("shared_data")("gpt2")
    choices = tokenizers(shared)
    tokenizer = choices["gpt2" if shared else rng.choice(sorted(choices))]
    model = random_model(random_config(rng, tokenizer.vocab_size), seed)
    export.main([save_run(tmp_path / "out", model, tokenizer), f"--hf_dir={tmp_path / 'hf'}"])

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    text = "".join(rng.sample(TEXT, len(TEXT)))
    ids = tokenizer.encode(text).astype(np.int64)
    idx = torch.from_numpy(ids[: model.config.block_size])[None]
    with torch.no_grad():
        torch.testing.assert_close(model(idx, idx)[0], theirs(idx).logits, atol=1e-4, rtol=1e-4)
        written = theirs.generate(idx[:, :8], max_new_tokens=64, do_sample=False)[0, 8:].tolist()
    stream = model.stream(idx[:, :8], 64, temperature=0, vocab_size=tokenizer.vocab_size)
    ours = [int(new) for new in stream]
    assert written == ours[: len(written)] and (len(written) == 64 or written[-1] == tokenizer.eot)

    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert their_tokenizer.encode(text) == ids.tolist()
    assert their_tokenizer.decode(ids) == text
    assert their_tokenizer.eos_token_id == tokenizer.eot

    back = load_pretrained(str(tmp_path / "hf"))
    weights = model.state_dict()
    assert back["model"].keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(back["model"][name], weight), name
    assert GPTConfig(**back["model_args"]) == GPTConfig(**model.config.to_args())
    again = tokenizer_from_json(back["tokenizer"])
    assert again.encode(text).tolist() == ids.tolist() and (again.vocab_size, again.eot) == (tokenizer.vocab_size, tokenizer.eot)

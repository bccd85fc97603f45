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
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import export
import train
from checkpoints.build import build_model, model_args_of
from checkpoints.file import save_checkpoint
from checkpoints.load import load_checkpoint
from checkpoints.pretrained import load_pretrained
from data.bpe import CODE_PATTERN
from data.dataset import DatasetWriter
from data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, TiktokenTokenizer, tokenizer_from_json
from inference.generate import stream
from inference.sampling import Sampling
from model import GPT, GPTConfig

TEXT = (
    "黛玉见了宝玉便说：“今日来得不巧了。”\n\tdef f(x):\n        return x ** 2  # 平方\r\n"
    "👩‍👩‍👧‍👦 ñ don't  123456 \u3000 end"
)


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
    state = {"model": model.state_dict(), "model_args": model_args_of(model.config), "tokenizer": tokenizer.to_json(),
             "iter_num": 7, "best_val_loss": 1.5, "config": {"dataset": "novel"}}  # fmt: skip
    save_checkpoint(folder / "ckpt.pt", state)
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


@pytest.mark.parametrize("seed, name", [*((seed, None) for seed in range(35)), *((seed, "gpt2") for seed in range(5))])
def test_a_random_model_survives_ours_to_hugging_face_to_ours(seed, name, tmp_path, request):
    rng = random.Random(seed)
    choices = tokenizers(request.getfixturevalue("shared_data")("gpt2") if name else None)
    tokenizer = choices[name or rng.choice(sorted(choices))]
    model = random_model(random_config(rng, tokenizer.vocab_size), seed)
    export.main([save_run(tmp_path / "out", model, tokenizer), f"--hf_dir={tmp_path / 'hf'}"])

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    text = "".join(rng.sample(TEXT, len(TEXT)))
    ids = tokenizer.encode(text).astype(np.int64)
    idx = torch.from_numpy(ids[: model.config.block_size])[None]
    with torch.no_grad():
        torch.testing.assert_close(model(idx, idx)[0], theirs(idx).logits, atol=1e-4, rtol=1e-4)
        written = theirs.generate(idx[:, :8], max_new_tokens=64, do_sample=False)[0, 8:].tolist()
    greedy = Sampling(temperature=0, vocab_size=tokenizer.vocab_size)
    ours = [int(new) for new, _ in stream(model, idx[:, :8], 64, greedy)]
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
    assert GPTConfig(**back["model_args"]) == GPTConfig(**model_args_of(model.config))
    again = tokenizer_from_json(back["tokenizer"])
    assert again.encode(text).tolist() == ids.tolist()
    assert (again.vocab_size, again.eot) == (tokenizer.vocab_size, tokenizer.eot)


@pytest.mark.parametrize("changes, message", [
    (dict(pos="rope"), "gpt2: pos='rope'; llama: norm='layernorm', mlp='gelu'; qwen3: "),
    (dict(qk_norm=True, n_kv_head=1), "gpt2: n_kv_head=1, qk_norm=True; llama: "),
    (dict(pos="rope", norm="rmsnorm", mlp="swiglu", softcap=15.0, smear=True),
     "llama: softcap=15.0, smear=True; qwen3: softcap=15.0, smear=True, qk_norm=False"),
    (dict(pos="rope", norm="rmsnorm", mlp="swiglu", qk_norm=True, bias=True), "qwen3: bias=True"),
])  # fmt: skip
def test_a_shape_without_counterpart_is_refused_with_what_stands_in_the_way(changes, message, tmp_path):
    config = replace(GPTConfig(block_size=8, vocab_size=256, n_layer=1, n_head=2, n_embd=8, bias=False), **changes)
    with pytest.raises(ValueError) as error:
        export.main([save_run(tmp_path / "out", GPT(config), ByteTokenizer()), f"--hf_dir={tmp_path / 'hf'}"])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "hf").exists()


def small_run(tmp_path) -> str:
    config = GPTConfig(block_size=8, vocab_size=256, n_layer=1, n_head=2, n_embd=8)
    return save_run(tmp_path / "out", random_model(config), ByteTokenizer())


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    run = small_run(tmp_path)
    monkeypatch.setattr(export, "save_file", fail)
    with pytest.raises(ValueError, match="No space left"):
        export.main([run, f"--hf_dir={tmp_path / 'hf'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("tokenizer, note", [
    (CharTokenizer("abc"), "write a GGUF with --gguf=FILE instead"),
    (BPETokenizer.train([TEXT * 3], 300), "write a GGUF with --gguf=FILE instead"),
    (BPETokenizer.train([TEXT * 3], 300, words=CODE_PATTERN), "train on data prepared with --tokenizer=bpe"),
])  # fmt: skip
def test_the_way_to_llama_cpp_is_named_for_tokenizers_made_here(tokenizer, note, tmp_path, capsys):
    model = random_model(GPTConfig(block_size=8, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=8))
    export.main([save_run(tmp_path / "run", model, tokenizer), f"--hf_dir={tmp_path / 'hf'}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: llama.cpp") and line.endswith(note)


def test_a_checkpoint_of_a_newer_version_is_refused_in_one_line(tmp_path):
    out_dir = save_run(tmp_path, random_model(GPTConfig(8, 256, 1, 1, 8)), ByteTokenizer())
    state = load_checkpoint(tmp_path / "ckpt.pt")
    save_checkpoint(tmp_path / "ckpt.pt", state | {"model_args": state["model_args"] | {"flash": True}})
    for option in (f"--hf_dir={tmp_path / 'hf'}", f"--gguf={tmp_path / 'm.gguf'}"):
        with pytest.raises(ValueError, match=r"model_args has \['flash'\], which this version does not support"):
            export.main([out_dir, option])


def test_what_is_there_already_is_not_overwritten(tmp_path):
    run = small_run(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="not an empty folder"):
        export.main([run, f"--hf_dir={tmp_path / 'hf'}"])
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["mine"]
    with pytest.raises(ValueError, match="hf_dir=FOLDER.*neither is given"):
        export.main([run])


@pytest.mark.parametrize("name, dtype", [("bfloat16", "bfloat16"), ("float16", "float16"), ("bf16", "bfloat16")])
def test_half_precision_is_the_rounded_weights(name, dtype, tmp_path):
    export.main([small_run(tmp_path), f"--hf_dir={tmp_path / 'hf'}", f"--dtype={name}"])
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    assert {str(w.dtype) for w in weights.values()} == {f"torch.{dtype}"}
    ours = load_checkpoint(tmp_path / "out" / "ckpt.pt")["model"]["transformer.wte.weight"]
    assert torch.equal(weights["transformer.wte.weight"], ours.to(getattr(torch, dtype)))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf").dtype == getattr(torch, dtype)


def test_the_card_says_what_is_known_and_leaves_the_licence_open(tmp_path):
    export.main([small_run(tmp_path), f"--hf_dir={tmp_path / 'hf'}"])
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "# license: choose one" in card
    assert "| steps | 7 |" in card and "| best validation loss | 1.5000 nats a token |" in card and "novel" in card


# ---- models made by transformers -------------------------------------------------------------------

SHAPE = dict(vocab_size=101, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=48, max_position_embeddings=64, bos_token_id=0, eos_token_id=0)  # fmt: skip


@pytest.mark.parametrize("config, model", [
    (GPT2Config(vocab_size=101, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
     GPT2LMHeadModel),
    (LlamaConfig(**SHAPE), LlamaForCausalLM),
    (LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True), LlamaForCausalLM),
    (LlamaConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 5e5}, head_dim=12), LlamaForCausalLM),
    (MistralConfig(**SHAPE, sliding_window=None), MistralForCausalLM),
    (Qwen2Config(**SHAPE), Qwen2ForCausalLM),
    (Qwen3Config(**SHAPE, head_dim=16), Qwen3ForCausalLM),
])  # fmt: skip
def test_a_model_of_transformers_gives_its_logits_here_fine_tunes_and_goes_back(config, model, tmp_path):
    theirs = model(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + (1.0 if p.dim() == 1 else 0.0))
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    idx = torch.randint(0, 101, (3, 24), generator=generator)
    ours = build_model(load_pretrained(str(tmp_path / "hf"))).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(idx, idx)[0], theirs(idx).logits, atol=1e-4, rtol=1e-4)

    data = np.tile(np.arange(40), 30)
    with DatasetWriter(tmp_path / "data", ByteTokenizer(), {"from": "test"}) as writer:
        for split in ("train", "val"):
            writer.write(split, data, n_bytes=len(data))
    meta = json.loads((tmp_path / "data" / "meta.json").read_text(encoding="utf-8"))
    del meta["tokenizer"], meta["vocab_size"]
    (tmp_path / "data" / "meta.json").unlink()  # bins alone: the model's 101 ids are nobody's
    out = tmp_path / "out"
    assert train.main([
        f"--init_from={tmp_path / 'hf'}", f"--dataset={tmp_path / 'data'}", f"--out_dir={out}", "--vocab_size=101",
        "--max_iters=10", "--eval_interval=10", "--eval_iters=2", "--batch_size=4", "--block_size=32", "--device=cpu",
        "--gradient_accumulation_steps=1", "--learning_rate=1e-2", "--warmup_iters=0", "--dtype=float32",
    ]) == 0  # fmt: skip
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [r["val_loss"] for r in records if r["kind"] == "eval"]
    assert losses[-1] < losses[0] - 0.5

    state = load_checkpoint(out / "ckpt.pt")
    state["tokenizer"] = CharTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + 101)))).to_json()
    save_checkpoint(out / "ckpt.pt", state)
    if model is Qwen2ForCausalLM:  # our biases are on every matrix: a Llama
        model = LlamaForCausalLM
    export.main([f"--out_dir={out}", f"--hf_dir={tmp_path / 'back'}"])
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert isinstance(back, model if model is not MistralForCausalLM else LlamaForCausalLM)
    tuned = build_model(state).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(idx).logits, tuned(idx, idx)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes, message", [
    (dict(model_type="gemma2", architectures=["Gemma2ForCausalLM"]), "model_type is 'gemma2' (Gemma2ForCausalLM)"),
    (dict(rope_parameters={"rope_type": "longrope", "factor": 8.0}), "rope_type is 'longrope', which"),
    (dict(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
     "its numbers above 0: {'linear': 'factor', 'llama3': 'factor original_max_position_embeddings low_freq_factor"),
    (dict(rope_scaling={"type": "linear", "factor": "2"}, rope_parameters=None), "'factor': '2'"),
    (dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "truncate": False}), "truncate"),
    (dict(hidden_act="gelu"), "hidden_act is 'gelu'"),
    (dict(num_key_value_heads=1), "self_attn.k_proj.weight: found (16, 32), config.json requires (8, 32)"),
    (dict(num_key_value_heads=3), "n_head=4 is not a multiple of n_kv_head=3"),
    (dict(num_hidden_layers=3), "layers.2.input_layernorm.weight: found nothing"),
    (dict(num_hidden_layers=1), "weights that do not belong to the model in config.json: model.layers.1."),
])  # fmt: skip
def test_a_llama_folder_that_cannot_be_read_is_refused_in_one_line(changes, message, tmp_path):
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_pretrained(str(tmp_path))
    assert message in str(error.value) and "\n" not in str(error.value)

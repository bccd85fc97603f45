"""export.py --gguf: llama.cpp's ids, probabilities and greedy text beside ours, from the files that it writes."""

import json
import sys
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_export import random_model, save_run
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as LibraryTokenizer

import bench
import export
from checkpoints.gguf import write_gguf
from checkpoints.gguf_tokenizer import gguf_vocabulary
from data.bpe import CODE_PATTERN, TRAIN_PATTERN, BPETokenizer
from data.conversations import chat_prompt, chat_template, chat_tokenizer
from data.plain import EOT, ByteTokenizer, CharTokenizer
from data.tokenizer import ExtendedTokenizer, JsonTokenizer, TiktokenTokenizer, TrimmedTokenizer
from inference.generate import stream
from inference.load import make_ready
from inference.sampling import Sampling
from model import GPT, GPTConfig

gguf = pytest.importorskip("gguf")

TEXT = (
    "\ufeff第一回\u3000甄士隐\r\n\u3000\u3000列位看官，你道𠀀𪚥 👩‍👩‍👧 ❤️ \x85\u2028 हिन्दी e\u0301ñ\rend\n\n"
    "def f(self, x):\n\tif x is None:\n        return x.y_z[100:2000]  # it's DON'T 'Tis 12345\n\n\n"
    "class A:\n    pass  \n"
    "Once upon a time, there was a dog.<tag> <|endoftext|> <|user|> “Hi,” it said.   \n  "
)
PUBLISHED_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TINY = GPTConfig(block_size=96, vocab_size=256, n_layer=2, n_head=4, n_embd=32, mlp="gelu_tanh")
LLAMA = dict(pos="rope", norm="rmsnorm", mlp="swiglu", bias=False)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0,
            attention_factor=1.3)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", factor=8.0, original_max_position_embeddings=32, low_freq_factor=1.0,
              high_freq_factor=4.0)  # fmt: skip


class LlamaCpp:
    """llama.cpp's server on a file, with float32 keys and values. Skips the test where it is not installed."""

    def __init__(self, path):
        llama = pytest.importorskip("xllamacpp")  # the server, compiled into a module
        params = llama.CommonParams()
        params.model.path, params.verbosity = str(path), -1
        params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 0
        params.warmup = params.fit_params = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = llama.Server(params)

    def ask(self, path: str, **body) -> dict:
        url = self.server.listening_address + path
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)

    def encode(self, text: str, special: bool = False) -> list[int]:
        return self.ask("/tokenize", content=text, add_special=True, parse_special=special)["tokens"]

    def greedy(self, prompt: list[int], n: int) -> list[int]:
        return self.ask("/completion", prompt=prompt, n_predict=n, temperature=0, return_tokens=True)["tokens"]

    def logprobs(self, prompt: list[int], n_ids: int) -> np.ndarray:
        """(n_ids,): of the token after the prompt. Its text must be a whole character: token 1 is forced."""
        body = dict(prompt=prompt, n_predict=1, n_probs=n_ids + 1, temperature=1.0, logit_bias=[[1, 1e4]])
        (shown,) = self.ask("/completion", **body)["completion_probabilities"]
        found = {token["id"]: token["logprob"] for token in shown["top_logprobs"]} | {shown["id"]: shown["logprob"]}
        return np.array([found[id] for id in range(n_ids)])


def written(path, tokenizer, config: GPTConfig = TINY, type: str = "f32", model: GPT | None = None) -> LlamaCpp:
    model = model or random_model(replace(config, vocab_size=tokenizer.vocab_size))
    write_gguf(path / "m.gguf", model, tokenizer, type)
    return LlamaCpp(path / "m.gguf")


# ---- tokenizers ------------------------------------------------------------------------------------


def sentencepiece_json(texts: list[str]) -> str:
    """What transformers makes of a SentencePiece BPE: all pairs of tokens that join to a token, in the order of ids."""
    trained = LibraryTokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, max_token_length=8, show_progress=False))
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<0x{b:02X}>" for b in range(256)), *sorted(trained.get_vocab(), key=trained.token_to_id)]
    vocab = {token: id for id, token in enumerate(tokens)}
    learned = [token for token in tokens[259:] if len(token) > 1]
    merges = [(t[:i], t[i:]) for t in learned for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
    made = LibraryTokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(special)
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return made.to_str()


def byte_level_json(ignore_merges: bool, split, unreached: str = "") -> str:
    """A published file's parts around merges of TEXT, and a word that merges do not reach."""
    d = json.loads(BPETokenizer.train([TEXT * 3], 340).to_json()["tokenizer"])
    d["model"]["ignore_merges"] = ignore_merges
    if unreached:
        d["model"]["vocab"][unreached] = len(d["model"]["vocab"])
        d["added_tokens"] = []
    d["added_tokens"].append(dict(id=341, content="<tag>", single_word=False, lstrip=False, rstrip=False,
                                  normalized=False, special=False))  # fmt: skip
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not isinstance(split, pre_tokenizers.Split))
    made = LibraryTokenizer.from_str(json.dumps(d))
    made.pre_tokenizer = pre_tokenizers.Sequence([split, level] if split else [level])
    return made.to_str()


LLAMA3_WORDS = pre_tokenizers.Split(Regex(PUBLISHED_CONTRACTIONS + TRAIN_PATTERN.partition("[dD])")[2]), "isolated")
PIECES = sentencepiece_json([TEXT.replace("\n", " "), "the cat sat on the mat that the dog had " * 3])
TOKENIZERS = {
    "byte": ByteTokenizer(),
    "byte with eot": ByteTokenizer(255),
    "char": CharTokenizer.train([TEXT]),
    "char with eot": CharTokenizer.train([TEXT], eot=True),
    "bpe": BPETokenizer.train([TEXT * 3], 340, ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]),
    "llama-3": BPETokenizer(byte_level_json(True, LLAMA3_WORDS, "Once")),
    "llama-3, merges count": BPETokenizer(byte_level_json(False, LLAMA3_WORDS, "Once")),
    "gpt-2's words": BPETokenizer(byte_level_json(False, None)),
    "single digits": BPETokenizer(byte_level_json(False, pre_tokenizers.Digits(individual_digits=True))),
    "sentencepiece": BPETokenizer(PIECES),
    "sentencepiece with bos and first space": JsonTokenizer(PIECES, bos=1, ends=[2]),
}


@pytest.mark.parametrize("name", [*TOKENIZERS, "gpt2", "qwen2"])
@pytest.mark.parametrize("is_chat", [False, True])
def test_llama_cpp_gives_the_same_ids(name, is_chat, tmp_path, shared_data):
    if name == "gpt2":
        tokenizer = TiktokenTokenizer("gpt2", shared_data("gpt2"))
    else:
        tokenizer = BPETokenizer.from_file(shared_data("qwen2")) if name == "qwen2" else TOKENIZERS[name]
    tokenizer = chat_tokenizer(tokenizer) if is_chat else tokenizer
    theirs = written(tmp_path, tokenizer, replace(TINY, n_layer=1))
    for text in (TEXT, TEXT[::-1], TEXT[7:60], " ", "\n\n  ", " x", ""):
        text = text.replace("\u2581", "")
        assert theirs.encode(text) == tokenizer.encode_document(text).tolist(), text  # a user's markers are text
        text = text if EOT in tokenizer.special_tokens else text.replace(EOT, "")  # llama.cpp has one in any case
        assert theirs.encode(text, special=True) == tokenizer.encode_document(text, special=True).tolist()


def test_a_conversation_has_the_same_ids_by_the_template_in_the_file(tmp_path):
    tokenizer = chat_tokenizer(TOKENIZERS["bpe"])
    messages = [{"role": "system", "content": "Be it.\n"}, {"role": "user", "content": "Who is <|end|> 甄士隐?"}]
    model = random_model(replace(TINY, vocab_size=tokenizer.vocab_size))
    write_gguf(tmp_path / "m.gguf", model, tokenizer, "f16", template=chat_template(tokenizer))
    theirs = LlamaCpp(tmp_path / "m.gguf")
    messages[1]["content"] = messages[1]["content"].replace("<|end|>", "")  # the template's text says nothing of ids
    prompt = theirs.ask("/apply-template", messages=messages)["prompt"]
    assert theirs.encode(prompt, special=True) == chat_prompt(messages, tokenizer, 90)


def fields_of(path) -> dict:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def test_the_file_says_what_ends_a_text_and_where_the_middle_goes(tmp_path):
    tokenizer = chat_tokenizer(TOKENIZERS["bpe"])
    write_gguf(tmp_path / "m.gguf", random_model(replace(TINY, vocab_size=400)), tokenizer, "q8_0")
    fields, special = fields_of(tmp_path / "m.gguf"), tokenizer.special_tokens
    ids = {key: fields[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "fim_pre", "fim_suf", "fim_mid")}
    names = (EOT, "<|end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    assert list(ids.values()) == [special[name] for name in names]
    assert not fields["tokenizer.ggml.add_bos_token"] and fields["gpt2.context_length"] == TINY.block_size
    assert len(fields["tokenizer.ggml.tokens"]) == tokenizer.vocab_size  # without the padding of the model's 400
    asked = dict(input_prefix="def f(", input_suffix="):\n", n_predict=1, prompt="")
    shown = LlamaCpp(tmp_path / "m.gguf").ask("/infill", **asked)["prompt"]
    assert shown == "<|fim_prefix|>def f(<|fim_suffix|>):\n<|fim_middle|>"


def test_a_text_without_end_gets_one_that_greedy_generation_never_writes(tmp_path):
    tokenizer = CharTokenizer("abcdefghijklmnop")
    model = random_model(replace(TINY, vocab_size=16))
    theirs = written(tmp_path, tokenizer, model=model)
    assert fields_of(tmp_path / "m.gguf")["tokenizer.ggml.eos_token_id"] == 16
    logprobs = theirs.logprobs([0, 1, 2], 17)
    assert logprobs[16] < logprobs[:16].max()
    np.testing.assert_allclose(logprobs[16], logprobs[:16].mean(), atol=1e-3)


CODE = BPETokenizer.train([TEXT * 3], 300, words=CODE_PATTERN)  # also the words of older versions


@pytest.mark.parametrize("tokenizer, message", [
    (CODE, "no pre-tokenizer that ends words in the same places; prepare the data anew with --tokenizer=bpe"),
    (TrimmedTokenizer(TOKENIZERS["bpe"], range(300)), "prepare the data without --trim"),
    (ExtendedTokenizer(TrimmedTokenizer(TOKENIZERS["bpe"], range(300)), ["<|x|>"]), "prepare the data without --trim"),
    (JsonTokenizer(LibraryTokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).to_str()), "WordLevel"),
])  # fmt: skip
def test_a_tokenizer_with_other_ids_there_is_refused_in_one_line(tokenizer, message):
    with pytest.raises(ValueError) as error:
        gguf_vocabulary(tokenizer)
    assert message in str(error.value) and "\n" not in str(error.value)


# ---- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [
    dict(), dict(bias=False, tie_weights=False), dict(norm_eps=1e-2, mlp_hidden=48), dict(mlp="gelu"),
    LLAMA, LLAMA | dict(n_kv_head=2, head_dim=12, bias=True), LLAMA | dict(n_kv_head=1, norm_eps=1e-2, rope_theta=5e5),
    LLAMA | dict(tie_weights=False, rope_scaling=YARN), LLAMA | dict(rope_scaling=LLAMA3),
    LLAMA | dict(rope_scaling=dict(rope_type="linear", factor=3.0), mlp_hidden=48),
    LLAMA | dict(qk_norm=True, n_kv_head=2, head_dim=16), LLAMA | dict(qk_norm=True, rope_scaling=YARN),
    LLAMA | dict(qk_norm=True, rope_scaling=dict(rope_type="linear", factor=3.0), tie_weights=False),
])  # fmt: skip
@torch.no_grad()
def test_a_random_model_has_the_same_probabilities_in_llama_cpp(changes, tmp_path):
    tokenizer = CharTokenizer("".join(map(chr, range(0x61, 0x61 + 20))), eot=True)
    model = random_model(replace(TINY, vocab_size=24, **changes))  # padded
    theirs = written(tmp_path, tokenizer, model=model)
    idx = torch.randint(21, (1, 90), generator=torch.Generator().manual_seed(1))
    ours = model(idx)[0][0, -1, :21].log_softmax(-1)
    is_gpt2 = model.config.pos == "learned"  # llama.cpp's GELU is a table of float16
    np.testing.assert_allclose(theirs.logprobs(idx[0].tolist(), 21), ours, atol=1e-2 if is_gpt2 else 1e-3)


@pytest.fixture(scope="module", params=[{}, LLAMA | {"n_kv_head": 2}, LLAMA | {"qk_norm": True, "n_kv_head": 1}],
                ids=["gpt2", "llama", "qwen3"])  # fmt: skip
def trained(request):
    """(model, tokenizer, text): a small model that has learned to count in words."""
    words = "zero one two three four five six seven eight nine ten eleven twelve".split()
    text = "".join(f"{a} and {b} are {c}.\n" for c, a in enumerate(words) for b in words if b != a)
    tokenizer = CharTokenizer.train([text], eot=True)
    ids = torch.from_numpy(tokenizer.encode(text).astype(np.int64))
    shape = dict(block_size=256, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=4, n_embd=64, mlp="gelu_tanh")
    model, generator = GPT(GPTConfig(**shape | request.param)), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(250):
        starts = torch.randint(len(ids) - 65, (8, 1), generator=generator)
        rows = ids[starts + torch.arange(65)]
        model(rows[:, :-1], rows[:, 1:])[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer, text


@pytest.mark.parametrize("type", ["f16", "f32"])
def test_200_greedy_tokens_of_a_trained_model_are_the_same_in_llama_cpp(trained, type, tmp_path):
    model, tokenizer, text = trained
    theirs = written(tmp_path, tokenizer, type=type, model=model)
    prompt = tokenizer.encode(text[:20]).astype(np.int64)
    greedy = Sampling(temperature=0, vocab_size=tokenizer.vocab_size)
    ours = [int(id) for id, _ in stream(model, torch.from_numpy(prompt)[None], 200, greedy)]
    assert len(set(ours)) > 10
    assert theirs.greedy(prompt.tolist(), 200) == ours


@torch.no_grad()
def test_rounded_weights_cost_in_llama_cpp_about_what_ours_cost(trained, tmp_path):
    model, tokenizer, text = trained
    ids = tokenizer.encode(text[-120:]).astype(np.int64)
    idx = torch.from_numpy(ids)[None]

    def our_loss(model) -> float:
        logits = model(idx, idx)[0][0, :-1]
        return torch.nn.functional.cross_entropy(logits.float(), idx[0, 1:]).item()

    def their_loss(type: str) -> float:
        theirs = written(tmp_path, tokenizer, type=type, model=model)
        found = [theirs.logprobs(ids[:n].tolist(), tokenizer.vocab_size)[ids[n]] for n in range(1, len(ids))]
        return -np.mean(found)

    exact = our_loss(model)
    losses = {type: their_loss(type) for type in ("f32", "q8_0", "q4_0")}
    assert losses["f32"] == pytest.approx(exact, abs=1e-3)
    assert losses["q8_0"] == pytest.approx(exact, abs=0.02)
    assert losses["q4_0"] == pytest.approx(exact, abs=0.4) and losses["q4_0"] != pytest.approx(losses["q8_0"], abs=1e-5)
    state = GPT(model.config)
    state.load_state_dict(model.state_dict())
    assert our_loss(make_ready(state, torch.device("cpu"), quantize="int8")) == pytest.approx(exact, abs=0.02)


# ---- the command -----------------------------------------------------------------------------------


def test_the_command_writes_a_file_over_an_old_one(tmp_path, capsys):
    run = save_run(tmp_path / "out", random_model(TINY), ByteTokenizer())
    (tmp_path / "m.gguf").write_text("old", encoding="utf-8")
    export.main([run, f"--gguf={tmp_path / 'm.gguf'}", "--gguf_type=q4_0"])
    assert "gpt2" in capsys.readouterr().out
    names = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert names["token_embd.weight"] == "Q8_0" and names["blk.1.ffn_up.weight"] == "Q4_0"
    assert names["position_embd.weight"] == names["blk.0.attn_norm.weight"] == "F32"
    assert len(LlamaCpp(tmp_path / "m.gguf").greedy([65, 66], 3)) == 3


@pytest.mark.parametrize("changes, message", [
    (dict(mlp="relu2"), "llama.cpp computes GPT-2 with GELU, but this model has mlp='relu2'"),
    (dict(softcap=15.0), "gpt2: softcap=15.0"),
    (dict(smear=True), "gpt2: smear=True"),
    (LLAMA | dict(qk_norm=True, rope_scaling=LLAMA3), "rope_type 'llama3' for Llama only"),
])  # fmt: skip
def test_a_model_that_llama_cpp_cannot_compute_is_refused_by_name(changes, message, tmp_path):
    run = save_run(tmp_path / "out", GPT(replace(TINY, **changes)), ByteTokenizer())
    with pytest.raises(ValueError) as error:
        export.main([run, f"--gguf={tmp_path / 'm.gguf'}"])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    def fail(self):
        raise OSError(28, "No space left on device")

    run = save_run(tmp_path / "out", random_model(TINY), ByteTokenizer())
    (tmp_path / "m.gguf").write_text("old", encoding="utf-8")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fail)
    with pytest.raises(ValueError, match="cannot write gguf=.*No space left"):
        export.main([run, f"--gguf={tmp_path / 'm.gguf'}"])
    assert (tmp_path / "m.gguf").read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "out"]


def test_without_the_package_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    run = save_run(tmp_path / "out", random_model(TINY), ByteTokenizer())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="pip install gguf"):
        export.main([run, f"--gguf={tmp_path / 'm.gguf'}"])


# ---- the benchmarks --------------------------------------------------------------------------------


def test_the_benchmarks_ask_for_llama_cpp_where_it_is_missing(tmp_path, monkeypatch):
    run = save_run(tmp_path / "out", random_model(TINY), ByteTokenizer())
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    for words in (["gguf", run, f"--texts={tmp_path / 'text'}"], ["generate", "--peer=llama.cpp", "--models", "6x384"]):
        with pytest.raises(ValueError, match="pip install llama-cpp-python"):
            bench.main(words)


def test_the_benchmark_says_that_llama_cpp_agrees_on_texts_and_models(tmp_path, capsys):
    pytest.importorskip("llama_cpp")  # compiled when installed, which takes minutes
    run = save_run(tmp_path / "out", random_model(TINY), ByteTokenizer())
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    bench.main(["gguf", run, f"--texts={tmp_path / 'text'}", "--scored=100", "--json"])
    printed = [json.loads(line)["rows"] for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    (ids,), (ours, _, theirs, *_) = printed
    assert ids["equal in llama.cpp"] is True
    assert ours["equal of 88 greedy tokens"] == 88 and ours["loss"] == pytest.approx(theirs["loss"], abs=0.01)

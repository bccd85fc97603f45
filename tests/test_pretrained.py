"""pretrained.py against transformers' GPT-2 with random weights, in one file and in shards; its refusals."""

import json
import re
import shutil
import socket
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from folders import Case, make_folder
from huggingface_hub.utils import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import export
import sample
import train
from checkpoints.build import build_model
from checkpoints.file import save_checkpoint
from checkpoints.load import load_checkpoint
from checkpoints.pretrained import NAMES, load_pretrained
from data.dataset import DatasetWriter, open_dataset
from data.model_tokenizer import TOKENIZER_FILES
from data.text import prepare
from data.tokenizer import BPETokenizer, CharTokenizer, TiktokenTokenizer, read_model_tokenizer
from inference.generate import stream
from inference.sampling import Sampling

TINY = dict(n_positions=16, n_embd=32, n_layer=2, n_head=4, vocab_size=101, bos_token_id=0, eos_token_id=0)


@torch.no_grad()
def hugging_face(**shape) -> GPT2LMHeadModel:
    """Every parameter random, so that biases and gains matter."""
    model = GPT2LMHeadModel(GPT2Config(**TINY | shape)).eval()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (1.0 if p.dim() == 1 else 0.0))
    return model


@pytest.fixture
def folder(tmp_path):
    hugging_face().save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    there = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(there | changes), encoding="utf-8")


def edit_weights(folder, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def assert_same_logits(theirs: GPT2LMHeadModel, folder) -> None:
    ours = build_model(load_pretrained(str(folder))).eval()
    idx = torch.randint(0, 101, (3, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(idx, idx)[0], theirs(idx).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [
    {}, {"activation_function": "gelu", "n_inner": 48, "layer_norm_epsilon": 0.1},
    {"tie_word_embeddings": False},
], ids=["gpt2", "other-activation-width-epsilon", "untied"])  # fmt: skip
@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
def test_logits_equal_those_of_transformers(tmp_path, shape, max_shard_size):
    theirs = hugging_face(**shape)
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")
    assert_same_logits(theirs, tmp_path)


def test_logits_are_the_same_from_names_without_prefix_and_with_mask_buffers_as_in_the_hubs_file(folder):
    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    weights = load_file(folder / "model.safetensors")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    for layer in range(2):
        weights[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, folder / "model.safetensors")
    assert_same_logits(theirs, folder)


def test_half_precision_weights_become_float32_exactly(folder):
    GPT2LMHeadModel.from_pretrained(folder).bfloat16().save_pretrained(folder)
    assert_same_logits(GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval(), folder)


def test_a_short_config_has_the_defaults_of_gpt2config(folder):
    short = {k: v for k, v in TINY.items() if k not in ("bos_token_id", "eos_token_id")}
    (folder / "config.json").write_text(json.dumps(short | {"model_type": "gpt2"}), encoding="utf-8")
    assert_same_logits(GPT2LMHeadModel.from_pretrained(folder).eval(), folder)


def test_a_folder_with_a_checkpoint_and_a_config_json_is_the_checkpoint(folder):
    torch.save({"model": {}, "model_args": {}, "iter_num": 5}, folder / "last.pt")
    assert load_pretrained(str(folder))["iter_num"] == 5


def test_either_name_of_tied_weights_serves_for_both_and_wrappers_of_blocks_are_left_out(folder):
    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights.pop(WTE)
    for wrapper in ("_orig_mod", "_fsdp_wrapped_module._checkpoint_wrapped_module", "module"):
        wrapped = {name.replace(".h.1.", f".h.1.{wrapper}."): tensor for name, tensor in weights.items()}
        save_file(wrapped, folder / "model.safetensors")
        assert_same_logits(theirs, folder)
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=f"{WTE}: found nothing"):
        load_pretrained(str(folder))


LLAMA = dict(vocab_size=101, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=48, bos_token_id=0, eos_token_id=0)  # fmt: skip
FROM_32 = {"original_max_position_embeddings": 32}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | FROM_32,
    "yarn": {"rope_type": "yarn", "factor": 4.0} | FROM_32,
    "yarn, as DeepSeek's": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "beta_slow": 2, "mscale": 0.7,
                            "mscale_all_dim": 1.0} | FROM_32,
    "yarn, its own factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.8, "rope_theta": 50.0} | FROM_32,
}  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
def test_scaled_rope_gives_the_logits_of_transformers_within_and_beyond_the_first_context(name, kind, tmp_path):
    rope = {"rope_theta": 1e4} | SCALINGS[name]
    config = getattr(transformers, f"{kind}Config")(**LLAMA, max_position_embeddings=128, rope_parameters=rope)
    theirs, generator = AutoModelForCausalLM.from_config(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (1.0 if p.dim() == 1 else 0.0))
    theirs.generation_config.eos_token_id = None
    theirs.save_pretrained(tmp_path / "hf")
    state = load_pretrained(str(tmp_path / "hf"))
    ours, plain = build_model(state).eval(), build_model(state, rope_scaling=None).eval()
    idx = torch.randint(0, 101, (2, 128), generator=generator)
    with torch.no_grad():
        expected = theirs(idx).logits
        torch.testing.assert_close(ours(idx, idx)[0], expected, atol=2e-4, rtol=2e-4)
        for places in (slice(32), slice(32, None)):
            assert (plain(idx, idx)[0] - expected)[:, places].abs().max() > 0.1
    greedy = [int(new) for new, _ in stream(ours, idx[:1, :20], 100, Sampling(temperature=0))]
    their_text = theirs.generate(idx[:1, :20], max_new_tokens=100, do_sample=False)[0, 20:]
    assert greedy == their_text.tolist()

    state["tokenizer"] = CharTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + 101)))).to_json()
    (tmp_path / "out").mkdir()
    save_checkpoint(tmp_path / "out" / "ckpt.pt", state)
    export.main([f"--out_dir={tmp_path / 'out'}", f"--hf_dir={tmp_path / 'back'}"])
    with torch.no_grad():
        back = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()(idx).logits
    torch.testing.assert_close(back, expected, atol=2e-4, rtol=2e-4)


LAYERS = ["full_attention", "sliding_attention"]


@pytest.mark.parametrize("kind, options, is_active", [
    ("Mistral", dict(sliding_window=127), True), ("Mistral", dict(sliding_window=128), False),
    ("Mistral", dict(sliding_window=None), False),
    ("Qwen2", dict(use_sliding_window=True, sliding_window=64, max_window_layers=1), True),
    ("Qwen2", dict(use_sliding_window=True, sliding_window=64, max_window_layers=2), False),
    ("Qwen3", dict(use_sliding_window=True, sliding_window=64, layer_types=LAYERS), True),
    ("Qwen3", dict(use_sliding_window=True, sliding_window=128, max_window_layers=0), False),
    ("Qwen2", dict(use_sliding_window=False, sliding_window=64, max_window_layers=0), False),
])  # fmt: skip
def test_sliding_windows_are_refused_exactly_where_they_change_the_logits(kind, options, is_active, tmp_path):
    config = getattr(transformers, f"{kind}Config")(**LLAMA, max_position_embeddings=128, **options)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(10.0 if p.dim() > 1 else 1.0)
    theirs.save_pretrained(tmp_path)
    if is_active:
        with pytest.raises(ValueError, match="sliding_window=.* is less than max_position_embeddings=128"):
            load_pretrained(str(tmp_path))
        edit_config(tmp_path, sliding_window=None, use_sliding_window=False, layer_types=None)
    ours, idx = build_model(load_pretrained(str(tmp_path))).eval(), torch.arange(100)[None] % 101
    idx = torch.cat((idx, idx[:, :28]), dim=1)
    with torch.no_grad():
        difference = (ours(idx, idx)[0] - theirs(idx).logits).abs().max()
    assert (difference > 1e-3) == is_active


def test_a_mistral_without_a_word_on_windows_has_transformers_default(tmp_path):
    config = transformers.MistralConfig(**LLAMA, max_position_embeddings=4097)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    there = json.loads(path.read_text(encoding="utf-8"))
    del there["sliding_window"]
    path.write_text(json.dumps(there), encoding="utf-8")
    with pytest.raises(ValueError, match="sliding_window=4096"):
        load_pretrained(str(tmp_path))


# ---- the tokenizer's files -----------------------------------------------------------------------------------


def test_files_pass_through_byte_for_byte_also_after_fine_tuning(tmp_path):
    """On a dataset made with the folder's tokenizer, one made with the same vocabulary, and one without tokenizer."""
    folder, text = tmp_path / "hf", tmp_path / "text.txt"
    make_folder(Case("Metaspace BPE, Llama-2's", "llama", "several eos", True, "one file"), folder, seed=0)
    (folder / "chat_template.jinja").write_bytes("{{ 'é' }}\r\n\xff".encode("latin-1"))
    (folder / "tokenizer.model").write_bytes(bytes(range(256)))
    before = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).exists()}
    assert len(before) >= 5
    text.write_text("\n\n\n".join(f"{i} times the cat sat " * 20 + "." for i in range(20)), encoding="utf-8")
    options = ["--input", str(text), "--separator", r"\n\n\n"]
    prepare.main([*options, "--tokenizer", str(folder), "--out_dir", str(tmp_path / "exact")])
    prepare.main([*options, "--tokenizer", str(folder / "tokenizer.json"), "--out_dir", str(tmp_path / "kept")])
    for name in ("", "exact", "kept", "bare"):
        source = [f"--init_from={folder}"]
        if name == "bare":
            shutil.copytree(tmp_path / "exact", tmp_path / "bare")
            (tmp_path / "bare" / "meta.json").unlink()
        if name:
            more = options_of_training(tmp_path, name)
            assert train.main([*source, *more, "--max_iters=1"]) == 0
            assert train.main([*more, "--init_from=resume", "--max_iters=2"]) == 0
            source = [f"--out_dir={tmp_path / f'out-{name}'}"]
        export.main([*source, f"--hf_dir={tmp_path / f'back-{name}'}"])
        for file, content in before.items():
            assert (tmp_path / f"back-{name}" / file).read_bytes() == content, (name, file)
        config = json.loads((tmp_path / f"back-{name}" / "config.json").read_text(encoding="utf-8"))
        assert (config["bos_token_id"], config["eos_token_id"]) == (1, [2, 608])
    ids, library = open_dataset(tmp_path / "exact").array("train"), read_model_tokenizer(folder)
    first = "0 times the cat sat " * 20 + "."
    documents = [list(map(int, part)) for part in np.split(ids, np.flatnonzero(ids == 2) + 1)]
    assert [*library.encode_document(first).tolist(), 2] in documents
    assert all(document[0] == 1 for document in documents if document)  # bos
    assert load_checkpoint(tmp_path / "out-exact" / "ckpt.pt")["tokenizer"] == library.to_json()
    assert load_checkpoint(tmp_path / "out-bare" / "ckpt.pt")["tokenizer"] == library.to_json()


def options_of_training(tmp_path, name: str) -> list[str]:
    return [
        f"--dataset={tmp_path / name}", f"--out_dir={tmp_path / f'out-{name}'}", "--vocab_size=609", "--device=cpu",
        "--dtype=float32", "--batch_size=2", "--gradient_accumulation_steps=1", "--block_size=16", "--eval_iters=1",
    ]  # fmt: skip


def test_a_tokenizer_that_cannot_be_run_is_passed_on_and_gpt2s_is_not_taken_for_it(tmp_path, capsys):
    folder = tmp_path / "hf"
    hugging_face(vocab_size=50257, n_embd=8, n_layer=1, n_head=1).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"\x0a\xff\x00")
    with pytest.raises(ValueError, match="the folder's tokenizer cannot be run"):
        sample.main([f"--init_from={folder}"])
    assert "note: the weights come without a tokenizer" in capsys.readouterr().err
    export.main([f"--init_from={folder}", f"--hf_dir={tmp_path / 'back'}"])
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == b"\x0a\xff\x00"
    assert not (tmp_path / "back" / "tokenizer.json").exists()


# ---- the scripts -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """GPT-2's vocabulary in a narrow model: (the model, its folder)."""
    model = hugging_face(vocab_size=50257, n_embd=16, n_layer=1, n_head=2)
    path = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(path)
    return model, path


@pytest.fixture(scope="module")
def bins(tmp_path_factory):
    """A dataset folder as nanoGPT writes it, without meta.json: GPT-2's ids, 4 windows of 16 to validate."""
    path, rng = tmp_path_factory.mktemp("bins"), np.random.default_rng(0)
    for split, n in (("train", 400), ("val", 65)):
        rng.integers(0, 50257, n).astype("<u2").tofile(path / f"{split}.bin")
    return path


def options(folder, bins, tmp_path, *more: str) -> list[str]:
    return [f"--init_from={folder}", f"--dataset={bins}", f"--out_dir={tmp_path / 'out'}", "--device=cpu",
            "--dtype=float32", "--batch_size=2", "--gradient_accumulation_steps=1", *more]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*taken as GPT-2's")
def test_eval_only_prints_the_loss_that_transformers_computes(gpt2, bins, tmp_path, capsys):
    theirs, folder = gpt2
    assert train.main(options(folder, bins, tmp_path, "--eval_only=True")) == 0
    printed = float(re.search(r"val loss ([\d.]+)", capsys.readouterr().out)[1])
    ids = torch.from_numpy(np.fromfile(bins / "val.bin", "<u2").astype(np.int64))
    with torch.no_grad():
        logits = theirs(ids[:-1].view(4, 16)).logits
    expected = torch.nn.functional.cross_entropy(logits.view(64, -1), ids[1:]).item()
    assert printed == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*taken as GPT-2's")
def test_fine_tuning_starts_from_the_weights_cropped_and_changes_them(gpt2, bins, tmp_path):
    more = ("--learning_rate=1e-3", "--decay_lr=False", "--block_size=8", "--dropout=0.1")
    for max_iters, is_same in ((0, True), (3, False)):
        assert train.main(options(gpt2[1], bins, tmp_path, f"--max_iters={max_iters}", *more)) == 0
        state = load_checkpoint(tmp_path / "out" / "ckpt.pt")
        assert state["iter_num"] == max_iters and state["model_args"]["block_size"] == 8
        started = load_pretrained(str(gpt2[1]))["model"]
        for name, tensor in state["model"].items():
            assert torch.equal(tensor, started[name][:8] if "wpe" in name else started[name]) == is_same, name
    assert build_model(state).config.dropout == 0.1


def test_greedy_sample_equals_generate_of_transformers(gpt2, shared_data, capsys, monkeypatch):
    tokenizer = TiktokenTokenizer("gpt2", shared_data("gpt2/encoder.json").parent)
    monkeypatch.setattr("inference.load.TiktokenTokenizer", partial(TiktokenTokenizer, tokens=tokenizer._bytes[:-1]))
    start = "What is the answer to life?"
    sample.main([f"--init_from={gpt2[1]}", f"--start={start}", "--num_samples=1", "--max_new_tokens=8",
                 "--temperature=0", "--device=cpu", "--dtype=float32"])  # fmt: skip
    ids = torch.from_numpy(tokenizer.encode(start).astype(np.int64))[None]
    settings = dict(do_sample=False, attention_mask=torch.ones_like(ids), pad_token_id=0, eos_token_id=50256)
    theirs = gpt2[0].generate(ids, max_new_tokens=8, **settings)
    assert capsys.readouterr().out == tokenizer.decode(theirs[0].numpy()) + "\n---------------\n"


# ---- refusals --------------------------------------------------------------------------------------------


def remove(*names):
    return lambda weights: [weights.pop(name) for name in names]


WTE, C_FC = "transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize("change, message", [
    (dict(model_type="gpt_neox"), "model_type is 'gpt_neox'"),
    (dict(model_type=None), "model_type is None"),
    (dict(activation_function="silu"), "activation_function is 'silu'"),
    (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
    (dict(n_embd="32"), "n_embd is '32'"),
    (dict(n_head=5), "n_embd=32 is not a multiple of n_head=5"),
    (dict(n_embd=64), rf"{WTE}: found \(101, 32\), config.json requires \(101, 64\)"),
    (dict(n_inner=100), r"c_fc.weight: found \(32, 128\), config.json requires \(32, 100\)"),
    (dict(n_positions=17), r"wpe.weight: found \(16, 32\), config.json requires \(17, 32\)"),
    (dict(n_layer=3), r"transformer.h.2.ln_1.weight: found nothing"),
    (dict(n_layer=1), "weights that do not belong to the model in config.json: transformer.h.1"),
    (dict(tie_word_embeddings=False), "lm_head.weight: found nothing"),
    (remove(C_FC), f"{C_FC}: found nothing"),
    (remove(WTE), f"{WTE}: found nothing"),
    (lambda w: w.update({C_FC: w[C_FC].t().contiguous()}), r"c_fc.weight: found \(128, 32\), .* \(32, 128\)"),
    (lambda w: w.update({"score.weight": torch.zeros(2, 32)}), "do not belong to .*: transformer.score.weight"),
])  # fmt: skip
def test_what_contradicts_config_json_or_is_another_model_is_refused_in_one_line(folder, change, message):
    edit_weights(folder, change) if callable(change) else edit_config(folder, **change)
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file, content, message", [
    ("model.safetensors", lambda old: old[:-1], r"model.safetensors \(\d+,\d+ bytes\) is truncated"),
    ("model.safetensors", lambda old: old[:100], "is truncated"),
    ("model.safetensors", lambda old: b"", "is truncated"),
    ("model.safetensors", lambda old: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ("model.safetensors", None, "model.safetensors is missing"),
    ("config.json", lambda old: old[:50], "config.json is not a readable JSON object"),
    ("config.json", lambda old: b"[1]", "config.json is not a readable JSON object"),
])  # fmt: skip
def test_damaged_files_are_refused_in_one_line(folder, file, content, message):
    path = folder / file
    old = path.read_bytes()
    path.unlink()
    if content:
        path.write_bytes(content(old))
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(str(folder))
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_named(tmp_path):
    hugging_face().save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        load_pretrained(str(tmp_path))


@pytest.mark.parametrize("has_tokenizer", [False, True])
def test_a_note_says_that_ids_of_weights_without_a_tokenizer_were_only_counted(tmp_path, capsys, has_tokenizer):
    tokenizer = BPETokenizer.train("the cat sat on the mat. " * 9, 270)
    with DatasetWriter(tmp_path / "data", tokenizer, {}) as writer:
        for split in ("train", "val"):
            writer.write(split, tokenizer.encode("the cat sat on the mat.\n" * 40), 960)
    hugging_face(vocab_size=tokenizer.vocab_size).save_pretrained(tmp_path / "folder")
    if has_tokenizer:
        (tmp_path / "folder" / "tokenizer.json").write_text(tokenizer.to_json()["tokenizer"], encoding="utf-8")
    train.main(options(tmp_path / "folder", tmp_path / "data", tmp_path, "--eval_only=True", "--block_size=8"))
    note = f"note: {tmp_path / 'folder'} has no tokenizer, so only the number of ids was compared with those of dataset"
    assert (note in capsys.readouterr().out) != has_tokenizer


def test_no_note_where_gpt2s_ids_are_meant(gpt2, bins, tmp_path, capsys):
    with pytest.warns(UserWarning, match="assuming GPT-2's"):
        train.main(options(gpt2[1], bins, tmp_path, "--eval_only=True"))
    assert "has no tokenizer" not in capsys.readouterr().out


def test_a_damaged_index_is_refused(tmp_path):
    hugging_face().save_pretrained(tmp_path, max_shard_size="20KB")
    for content in ("{", "[1]", '{"weight_map": 3}', "{}"):
        (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="model.safetensors.index.json"):
            load_pretrained(str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_without_network_the_message_names_the_files_and_the_way_round(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("offline means offline"))
    with pytest.raises(ValueError) as error:
        sample.main([f"--init_from={name}"])
    message = str(error.value)
    urls = [f"/openai-community/{name}/resolve/main/{file}" for file in ("config.json", "model.safetensors")]
    for part in (*urls, "HF_ENDPOINT", "--init_from=FOLDER"):
        assert part in message
    assert "\n" not in message


def fake_hub(monkeypatch, cached=None):
    """The hub's library with the folder `cached` as its cache and a network that times out -> tried URLs."""
    tries = []

    def hf_hub_download(repo, file, local_files_only=False):
        assert repo == "openai-community/gpt2"
        if not local_files_only:
            pytest.fail("this would try again and again")
        if cached is None:
            raise LocalEntryNotFoundError("not in the cache")
        return str(cached / file)

    def get_hf_file_metadata(url, timeout):
        tries.append(url)
        raise TimeoutError("timed out")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", get_hf_file_metadata)
    return tries


def test_what_the_cache_has_is_taken_without_the_network(folder, monkeypatch):
    tries = fake_hub(monkeypatch, cached=folder)
    assert load_pretrained("gpt2")["model_args"]["n_embd"] == 32
    assert not tries


def test_a_blocked_hub_is_tried_once(monkeypatch):
    tries = fake_hub(monkeypatch)
    with pytest.raises(
        ValueError, match=r"cannot get config.json and model.safetensors of openai-community/gpt2 \(timed out\)"
    ):
        load_pretrained("gpt2")
    assert len(tries) == 1


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="no model 'gpt2-small': neither a file, nor a folder, nor one of gpt2, "):
        load_pretrained("gpt2-small")
    with pytest.raises(ValueError, match="ckpt.pt or last.pt"):
        load_pretrained(str(tmp_path))

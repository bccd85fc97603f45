"""eval.py against naive float64 loops, transformers, compressors, and numbers worked out by hand."""

import bz2
import gzip
import importlib.util
import io
import json
import lzma
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import MAKERS
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

import eval as command
from checkpoints.build import model_args_of
from checkpoints.file import save_checkpoint
from data.dataset import DatasetWriter
from data.tokenizer import EOT, BPETokenizer, ByteTokenizer, CharTokenizer, JsonTokenizer, TiktokenTokenizer
from evaluation import tasks
from evaluation.scoring import losses
from evaluation.text import open_file
from evaluation.windows import cut, document_edges, plan_windows
from model import GPT, GPTConfig

ROOT = Path(__file__).resolve().parents[1]
GPT2 = dict(mlp="gelu_tanh")
LLAMA = dict(pos="rope", norm="rmsnorm", mlp="swiglu", n_kv_head=2, tie_weights=False, bias=False, softcap=5.0)
TEXT = "宝玉笑道：“来了。”\n黛玉说：“好，你来 well 😀。”\n"


@torch.no_grad()
def build(seed=0, **shape) -> GPT:
    """Weights of five times GPT-2's deviation, so that losses depend on the context."""
    config = GPTConfig(**dict(block_size=8, vocab_size=256, n_layer=2, n_head=4, n_embd=16) | shape)
    model = GPT(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + (1.0 if p.dim() == 1 else 0.0))
    return model


def save(folder: Path, model: GPT, tokenizer, **more) -> Path:
    folder.mkdir(exist_ok=True)
    state = {"model": model.state_dict(), "model_args": model_args_of(model.config), "tokenizer": tokenizer.to_json()}
    save_checkpoint(folder / "ckpt.pt", state | more)
    return folder


def write_dataset(folder: Path, tokenizer, documents: list[str]) -> Path:
    with DatasetWriter(folder, tokenizer, {"name": "test"}) as writer:
        for text in documents:
            for split in ("train", "val"):
                writer.write(split, tokenizer.encode(text), len(text.encode()))
                writer.write(split, [] if tokenizer.eot is None else [tokenizer.eot], 0)
    return folder


def run(capsys, *options) -> dict:
    """The JSON object on the last line of what eval.py prints."""
    command.main([*map(str, options), "--device=cpu"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def bytes_run(tmp_path_factory) -> tuple[Path, GPT, np.ndarray]:
    """A checkpoint, its model, and the ids of the val split: documents of 0 to 31 bytes."""
    folder, tokenizer = tmp_path_factory.mktemp("run"), ByteTokenizer(eot=255)
    documents = [TEXT[i : i + n] for i, n in enumerate((7, 0, 5, 1, 11, 2))]
    write_dataset(folder / "data", tokenizer, documents)
    model = build()
    save(folder, model, tokenizer, config={"dataset": str(folder / "data")}, iter_num=7)
    return folder, model, np.fromfile(folder / "data" / "val.bin", "<u2").astype(np.int64)


@torch.no_grad()
def reference(logits_of, ids, T: int, S: int, eot: int | None = None) -> list[float]:
    """Nats of every id but the first, one after the other, each with the context that eval.py's docstring says.

    logits_of: ids (1, n) -> logits (1, n, V) in float64.
    """
    nats, begin = [], 0
    for i in range(1, len(ids)):
        if eot is not None and ids[i - 1] == eot:
            begin = i - 1
        p = i - begin  # place in its document; window 0 predicts 1 to T, window k > 0 the S after (k-1)S + T
        k = 0 if p <= T else math.ceil((p - T) / S)
        context = ids[begin + k * S : i]
        assert min(p, T - S + 1) <= len(context) <= T
        logits = logits_of(torch.tensor(context.tolist())[None])[0, -1]
        nats.append((torch.logsumexp(logits, 0) - logits[ids[i]]).item())
    return nats


def linear(theirs) -> dict[str, torch.Tensor]:
    """Weights of a transformers GPT-2, whose Conv1D are our Linear transposed."""
    return {k: v.t() if "c_" in k and k.endswith("weight") else v for k, v in theirs.state_dict().items()}


def exact_logits(model: GPT):
    twin = GPT(model.config).eval()
    twin.load_state_dict(model.state_dict())
    twin.double()
    return lambda idx: twin(idx, idx)[0]


# ---- the loss of a text ----


def scored(model, ids, windows, batch=64) -> np.ndarray:
    """Nats of each id that windows score, in their order."""
    parts = []
    for i in range(0, len(windows), batch):
        x, y = cut(ids, windows[i : i + batch])
        with torch.inference_mode():
            parts.append(losses(model, torch.from_numpy(x), torch.from_numpy(y))[0])
    return np.concatenate(parts)


@pytest.mark.parametrize("shape", [GPT2, LLAMA], ids=["gpt2", "rope-gqa-swiglu-softcap"])
@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("eot", [None, 0])
def test_each_tokens_loss_equals_a_float64_loop_over_tokens(shape, stride, eot):
    model = build(**shape, vocab_size=9)
    ids = np.random.default_rng(1).integers(0, 9, 90)
    edges = np.array([0, 89]) if eot is None else document_edges(ids, eot)
    windows = plan_windows(edges, 8 + 1, stride)
    expected = reference(exact_logits(model), ids, 8, stride, eot)
    np.testing.assert_allclose(scored(model, ids, windows, batch=5), expected, rtol=0, atol=1e-6)
    assert np.std(expected) > 0.1


def test_each_tokens_loss_equals_transformers_gpt2_in_float64_at_the_real_vocabulary():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_positions=16, n_embd=32, n_layer=2, n_head=4)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ours = GPT(GPTConfig(block_size=16, vocab_size=50257, n_layer=2, n_head=4, n_embd=32, **GPT2)).eval()
    ours.load_state_dict(linear(theirs))
    theirs.double()
    ids = np.random.default_rng(2).integers(0, 50257, 40)
    windows = plan_windows(np.array([0, 39]), 16 + 1, 4)
    expected = reference(lambda idx: theirs(idx).logits, ids, 16, 4)
    np.testing.assert_allclose(scored(ours, ids, windows), expected, rtol=0, atol=1e-6)


@given(st.data())
def test_windows_score_every_id_of_a_document_but_its_first_once(data):
    width = data.draw(st.integers(2, 20))
    stride = data.draw(st.integers(1, width - 1))
    edges = np.unique(data.draw(st.lists(st.integers(0, 120), min_size=2)))
    windows = plan_windows(edges, width, stride)
    covered = [i for _, first, stop in windows for i in range(first, stop)]
    assert covered == list(range(edges[0] + 1, edges[-1] + 1))
    for start, first, stop in windows:
        document = edges[edges < first].max()  # the place that the document of `first` begins at
        assert document <= start < first < stop <= start + width
        assert start == document or first - start >= width - stride  # the context that --stride promises
        assert stop - 1 <= edges[edges >= first].min()


@pytest.mark.parametrize("options, T, S, eot", [
    ([], 8, 8, None), (["--stride=3"], 8, 3, None), (["--per_document", "--stride=2"], 8, 2, 255),
    (["--block_size=5"], 5, 5, None),
])  # fmt: skip
def test_loss_perplexity_and_bits_are_those_of_all_tokens_but_the_first(bytes_run, capsys, options, T, S, eot):
    folder, model, ids = bytes_run
    result = run(capsys, f"--out_dir={folder}", *options)
    nats = reference(exact_logits(model), ids, T, S, eot)
    text = bytes(ids[1:][ids[1:] != 255].tolist())
    characters = len(text.lstrip(bytes(range(0x80, 0xC0))).decode())  # the first one lost its first byte
    assert result["tokens"] == len(nats) == len(ids) - 1 and result["iter"] == 7
    assert result["loss"] == pytest.approx(np.mean(nats), abs=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / len(text), rel=1e-6)
    assert result["bits_per_character"] == pytest.approx(sum(nats) / math.log(2) / characters, rel=1e-6)
    assert (result["bytes"], result["characters"]) == (len(text), characters)


def test_the_test_split_has_its_own_loss_and_baselines(bytes_run, tmp_path, capsys):
    _, model, _ = bytes_run
    tokenizer, texts = ByteTokenizer(eot=255), {"train": TEXT, "val": TEXT[5:], "test": TEXT[::-1] * 2}
    with DatasetWriter(tmp_path / "data", tokenizer, {"name": "test"}, splits=tuple(texts)) as writer:
        for split, text in texts.items():
            writer.write(split, tokenizer.encode(text), len(text.encode()))
    save(tmp_path / "out", model, tokenizer, config={"dataset": str(tmp_path / "data")})
    found = run(capsys, f"--out_dir={tmp_path / 'out'}", "--split=test", "--baselines")
    ids = np.frombuffer(texts["test"].encode(), np.uint8).astype(np.int64)
    nats = reference(exact_logits(model), ids, 8, 8)
    assert found["loss"] == pytest.approx(np.mean(nats), abs=1e-5) and found["text"].endswith("data test")
    assert found["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / (len(ids) - 1), abs=1e-5)
    data = texts["test"].encode()[1:]
    assert found["baselines"]["gzip -9"] == pytest.approx(8 * len(gzip.compress(data, 9)) / len(data), abs=0.5)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_the_batch_size_does_not_change_the_loss(bytes_run, capsys, batch_size):
    options = [f"--out_dir={bytes_run[0]}", "--stride=3", "--per_document"]
    expected = run(capsys, *options)["loss"]
    assert run(capsys, *options, f"--batch_size={batch_size}")["loss"] == pytest.approx(expected, abs=1e-7)


def test_packed_weights_do_not_change_the_loss(bytes_run, capsys, monkeypatch, packed_layers):
    plain = run(capsys, f"--out_dir={bytes_run[0]}")
    monkeypatch.setattr("inference.pack.PACKED_SIZES", {torch.float32: 0, torch.bfloat16: 0})
    monkeypatch.setattr("inference.load.pack", packed_layers)
    for batch_size in (1, 7):
        packed = run(capsys, f"--out_dir={bytes_run[0]}", f"--batch_size={batch_size}")
        assert packed["loss"] == pytest.approx(plain["loss"], abs=1e-6)
        assert packed["parameters"] == plain["parameters"]
        assert packed_layers.count == 4 * bytes_run[1].config.n_layer + 1


def test_characters_are_counted_through_any_tokenizer(tmp_path, capsys):
    """Also where characters are split over tokens, as 4-byte ones are here."""
    (tmp_path / "text.txt").write_text(TEXT * 3, encoding="utf-8", newline="")
    for tokenizer in (CharTokenizer.train([TEXT]), BPETokenizer.train([TEXT * 9], 280), ByteTokenizer()):
        save(tmp_path, build(vocab_size=320), tokenizer)
        result = run(capsys, f"--out_dir={tmp_path}", f"--input={tmp_path / 'text.txt'}")
        first = tokenizer.token_bytes(int(tokenizer.encode(TEXT)[0]))
        assert result["bytes"] == len((TEXT * 3).encode()) - len(first)
        assert result["characters"] == len(TEXT * 3) - (first[:1] != b"")
        assert result["tokens"] == len(tokenizer.encode(TEXT * 3)) - 1


def test_spaces_that_a_tokenizer_puts_before_texts_are_not_counted_and_bos_begins_each(tmp_path, capsys):
    library = MAKERS["Metaspace BPE, Llama-2's"]()
    bos = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    library.post_processor = bos
    tokenizer = JsonTokenizer(library.to_str(), bos=1, ends=[2])
    save(tmp_path / "run", build(vocab_size=640), tokenizer)
    (tmp_path / "text.txt").write_text(f"{TEXT}{EOT}{TEXT}", encoding="utf-8", newline="")
    for options in [], ["--per_document"]:
        result = run(capsys, f"--out_dir={tmp_path / 'run'}", f"--input={tmp_path / 'text.txt'}", *options)
        text = TEXT * 2 if options else f"{TEXT}{EOT}{TEXT}"
        assert (result["bytes"], result["characters"]) == (len(text.encode()), len(text))
        expected = 2 * len(library.encode(TEXT).ids) + 1 if options else len(library.encode(text).ids)
        assert result["tokens"] == expected - 1


def test_bits_per_byte_are_left_out_with_the_reason_where_tokens_have_no_bytes(tmp_path, capsys):
    tokenizer = JsonTokenizer(MAKERS["WordPiece, uncased"]().to_str())
    save(tmp_path / "run", build(vocab_size=640), tokenizer)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    options = [f"--out_dir={tmp_path / 'run'}", f"--input={tmp_path / 'text.txt'}", "--device=cpu"]
    command.main(options)
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert result["loss"] > 0 and "bits_per_byte" not in result
    assert printed.err.strip() == "note: no bits per byte: its model is WordPiece"
    with pytest.raises(ValueError, match="--baselines needs the text's bytes, but its model is WordPiece"):
        command.main([*options, "--baselines"])


def test_bytes_that_are_not_utf8_are_evaluated_as_they_are_where_tokens_are_bytes(bytes_run, tmp_path, capsys):
    folder, model, _ = bytes_run
    content = TEXT.encode("gb18030", "replace") + b"\x80\xfe caf\xe9\r\n"
    (tmp_path / "old.txt").write_bytes(content)
    result = run(capsys, f"--out_dir={folder}", f"--input={tmp_path / 'old.txt'}")
    nats = reference(exact_logits(model), np.frombuffer(content, np.uint8).astype(int), 8, 8)
    assert result["tokens"] == result["bytes"] == len(content) - 1
    assert result["loss"] == pytest.approx(np.mean(nats), abs=1e-6)
    assert "old.txt (not UTF-8: read as bytes)" in result["text"]
    assert not {"characters", "bits_per_character"} & result.keys()  # nobody knows them
    save(tmp_path, build(), CharTokenizer("abc"))
    with pytest.raises(ValueError, match="old.txt is not UTF-8 text .byte .* at offset .*: convert it first.*iconv"):
        run(capsys, f"--out_dir={tmp_path}", f"--input={tmp_path / 'old.txt'}")


def test_a_text_with_markers_equals_the_dataset_of_its_documents(bytes_run, tmp_path, capsys):
    folder, _, ids = bytes_run
    pieces = "".join(EOT if i == 255 else chr(i) for i in ids).encode("latin-1").split(EOT.encode())
    (tmp_path / "text.txt").write_bytes(EOT.encode().join(pieces))
    options = [f"--out_dir={folder}", "--per_document", "--stride=4"]
    expected = run(capsys, *options)
    result = run(capsys, *options, f"--input={tmp_path / 'text.txt'}")
    for key in ("loss", "tokens", "windows", "documents", "bytes", "characters"):
        assert result[key] == expected[key], key
    contiguous = run(capsys, f"--out_dir={folder}", f"--input={tmp_path / 'text.txt'}")
    assert contiguous["tokens"] == len((tmp_path / "text.txt").read_bytes()) - 1  # there the marker is text


def test_baselines_are_what_the_compressors_make_of_the_predicted_bytes(bytes_run, capsys):
    zstandard = pytest.importorskip("zstandard")
    folder, _, ids = bytes_run
    text = bytes(ids[1:][ids[1:] != 255].tolist())
    sizes = {
        "gzip -9": gzip.compress(text, 9), "bzip2 -9": bz2.compress(text, 9), "xz -9": lzma.compress(text, preset=9),
        "zstd -19": zstandard.ZstdCompressor(level=19, write_content_size=False).compress(text),
    }  # fmt: skip
    found = run(capsys, f"--out_dir={folder}", "--baselines")["baselines"]
    assert found.keys() == sizes.keys()
    for name, compressed in sizes.items():
        assert found[name] == pytest.approx(8 * len(compressed) / len(text), abs=8 * 4 / len(text)), name


def test_without_zstandard_the_other_baselines_remain(bytes_run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    command.main([f"--out_dir={bytes_run[0]}", "--baselines", "--device=cpu"])
    out, errors = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["baselines"].keys() == {"gzip -9", "bzip2 -9", "xz -9"}
    assert "note: without zstd, which needs the package zstandard" in errors


def test_bfloat16_stays_near_float32(bytes_run, capsys):
    options = [f"--out_dir={bytes_run[0]}", "--stride=3"]
    exact, short = (run(capsys, *options, f"--dtype={dtype}")["loss"] for dtype in ("float32", "bfloat16"))
    assert exact != short == pytest.approx(exact, abs=0.1)


def test_a_nanogpt_dataset_without_meta_takes_the_models_vocabulary(tmp_path, capsys):
    ids = np.random.default_rng(0).integers(0, 256, 50)
    for split in ("train", "val"):
        ids.astype("<u2").tofile(tmp_path / f"{split}.bin")
    model = build()
    state = {"model": model.state_dict(), "model_args": model_args_of(model.config)}
    save_checkpoint(tmp_path / "ckpt.pt", state)
    result = run(capsys, f"--out_dir={tmp_path}", f"--dataset={tmp_path}")
    assert result["loss"] == pytest.approx(np.mean(reference(exact_logits(model), ids, 8, 8)), abs=1e-6)
    assert "bits_per_byte" not in result  # nobody knows what the ids stand for


# ---- Hugging Face's perplexity ----


@torch.no_grad()
def published_perplexity(model, ids: torch.Tensor, length: int, stride: int) -> tuple[float, float]:
    """The procedure of Hugging Face's page: labels of -100 for what an earlier window scored, the loss that the model
    itself reports for a window; then the mean of these losses, plain and by the page's count of tokens."""
    window_losses, counts, scored_up_to = [], [], 0
    for begin in range(0, ids.size(1), stride):
        end = min(begin + length, ids.size(1))
        window = ids[:, begin:end]
        labels = window.clone()
        labels[:, : window.size(1) - (end - scored_up_to)] = -100
        window_losses.append(model(window, labels=labels).loss.double())
        counts.append(int((labels != -100).sum()) - 1)
        scored_up_to = end
        if end == ids.size(1):
            break
    window_losses, counts = torch.stack(window_losses), torch.tensor(counts)
    return window_losses.mean().exp().item(), ((window_losses * counts).sum() / counts.sum()).exp().item()


@pytest.mark.parametrize("stride", [16, 8, 5])
@pytest.mark.parametrize("n", [100, 96, 12])
def test_huggingface_perplexity_equals_its_published_procedure_on_transformers(tmp_path, capsys, stride, n):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=256, n_positions=16, n_embd=32, n_layer=2, n_head=4,
                                     bos_token_id=0, eos_token_id=0)  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.3)
    ours = GPT(GPTConfig(block_size=16, vocab_size=256, n_layer=2, n_head=4, n_embd=32, **GPT2))
    ours.load_state_dict(linear(theirs))
    save(tmp_path, ours, ByteTokenizer())
    text = "The quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. " * 2
    (tmp_path / "text.txt").write_text(text[:n], encoding="utf-8")
    plain, weighted = published_perplexity(theirs, torch.tensor([list(text[:n].encode())]), 16, stride)
    result = run(capsys, f"--out_dir={tmp_path}", f"--input={tmp_path / 'text.txt'}", "--definition=huggingface",
                 f"--stride={stride}")  # fmt: skip
    assert result["perplexity"] == pytest.approx(plain, rel=1e-5)
    assert result["perplexity_weighted"] == pytest.approx(weighted, rel=1e-5)
    if n > 16 > stride:
        assert plain != pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_rows_are_joined_as_hugging_face_joins_wikitexts(tmp_path, capsys, newline):
    """Its rows keep their newline, blank lines become empty rows, and two newlines stand between rows."""
    rows = ["", " = Title = \n", "", " One line . \n"]
    lines = [" \n", " = Title = \n", " \n", " One line . \n"]
    (tmp_path / "raw.txt").write_bytes("".join(lines).replace("\n", newline).encode())
    (tmp_path / "joined.txt").write_bytes("\n\n".join(rows).encode())
    save(tmp_path, build(), ByteTokenizer())
    options = [f"--out_dir={tmp_path}", "--definition=huggingface"]
    joined = run(capsys, *options, f"--input={tmp_path / 'joined.txt'}")
    raw = run(capsys, *options, f"--input={tmp_path / 'raw.txt'}", "--join_rows")
    assert raw["perplexity"] == joined["perplexity"] and raw["tokens"] == joined["tokens"]


# ---- several processes ----


@pytest.fixture(scope="module")
def questions_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "lambada.jsonl"
    words = ["sea", "king", "owl"] * 3
    lines = [{"text": f"{'so ' * (i % 5)}he came to see the {word}"} for i, word in enumerate(words)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


DRIVER = """
import os
import torch.distributed as dist
import eval
from system.distributed import Ranks

start, stop = Ranks.start, Ranks.stop
Ranks.start = lambda ranks, *args: dist.is_initialized() or start(ranks, *args)  # one group for several runs
Ranks.stop = lambda ranks: None
for options in {runs!r}:
    eval.main(options)
stop(None)
rank = int(os.environ["RANK"])
if rank < 2:  # the third one leaves, the others are now two
    os.environ["WORLD_SIZE"] = "2"
    dist.init_process_group("gloo", init_method={store!r}, rank=rank, world_size=2)
    for options in {runs!r}:
        eval.main(options)
    stop(None)
"""


def test_one_two_and_three_processes_give_the_same_figures(bytes_run, questions_file, tmp_path, capsys):
    """One start of torchrun for all; a text of two bytes leaves ranks without work."""
    (tmp_path / "short.txt").write_text("ab", encoding="utf-8")
    base = [f"--out_dir={bytes_run[0]}", "--device=cpu"]
    runs = [
        [*base, "--stride=3"], [*base, "--per_document"], [*base, f"--input={tmp_path / 'short.txt'}"],
        [*base, "--definition=huggingface", "--stride=4"], [*base, "--task=lambada", f"--input={questions_file}"],
    ]  # fmt: skip
    script, store = tmp_path / "driver.py", (tmp_path / "store").as_uri()
    script.write_text(DRIVER.format(runs=runs, store=store), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", str(script)]
    process = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert process.returncode == 0, process.stderr
    found = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    assert [result["processes"] for result in found] == [3] * len(runs) + [2] * len(runs)
    for result, options in zip(found, runs * 2, strict=True):
        expected = run(capsys, *options)
        assert result["tokens"] == expected["tokens"]
        for key in ("loss", "perplexity", "perplexity_weighted", "bits_per_byte", "bits_per_character", "acc"):
            assert result.get(key) == (expected.get(key) and pytest.approx(expected[key], rel=1e-6)), key


# ---- tasks ----


def bigram(tokenizer: CharTokenizer, likely: dict[str, dict[str, float]]) -> GPT:
    """A GPT whose next character depends on the last alone: likely["a"]["b"] is P(b after a); what is left of 1 is
    shared by the other characters. RMSNorm makes sqrt(V) of a one-hot embedding; the blocks add nothing."""
    chars, V = tokenizer.chars, tokenizer.vocab_size
    config = GPTConfig(block_size=64, vocab_size=V, n_layer=1, n_head=1, n_embd=V, norm="rmsnorm", norm_eps=1e-12,
                       tie_weights=False, bias=False)  # fmt: skip
    model = GPT(config).eval()
    probabilities = torch.zeros(V, V)
    for i, c in enumerate(chars):
        given = likely.get(c, {})
        rest = (1 - sum(given.values())) / (V - len(given))
        probabilities[i] = torch.tensor([given.get(d, rest) for d in chars])
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.transformer.wte.weight.copy_(torch.eye(V))
        model.transformer.ln_f.weight.fill_(1)
        model.lm_head.weight.copy_(probabilities.log().t() / math.sqrt(V))
    return model


CHARS = CharTokenizer("abcdeé .:ABC")  # 12 characters: 1/12 each after those that the table leaves out


def write_jsonl(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def hellaswag_record(endings: list[str], label, **more) -> dict:
    record = dict(ind=1, activity_label="A", ctx_a="a [x] b", ctx_b="c", ctx="a b c", endings=endings, label=label)
    return record | dict(split="val", source_id="s") | more


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_hellaswag_miniature_worked_out_by_hand(tmp_path, capsys, batch_size):
    """P(' ' after C) and whatever else is not in the table is 1/12, so that the nats of an ending of n characters, with
    the space before it, are (n + 1) ln 12, less what the table says. Question by question, right by acc, acc_norm,
    acc_bytes:

    1. "a" (2 ln 12 = 4.97) beats "bbbbb" (ln 12 twice, then b after b: 4 ln 2 = 7.74): acc says 0; per character 4.97
       against 1.55: acc_norm and acc_bytes say 1. The label is 1.
    2. "ee" (3 ln 12 = 7.45, 3.73 per character and byte) and "éé" (é after é 0.1: 2 ln 12 + ln 10 = 7.27; 3.64 per
       character, 1.82 per byte) and "aaa" (4 ln 12 = 9.94; 3.31 per character and byte): acc says 1, acc_norm 2,
       acc_bytes 1. The label is 2.
    3. two equal ones: the first. The label is 0, as text.
    """
    save(tmp_path, bigram(CHARS, {"b": {"b": 0.5}, "é": {"é": 0.1}}), CHARS)
    path = write_jsonl(tmp_path / "val.jsonl", [
        hellaswag_record(["a", "bbbbb"], 1), hellaswag_record(["ee", "éé", "aaa"], 2),
        hellaswag_record(["d", "d"], "0"),
    ])  # fmt: skip
    options = [f"--batch_size={batch_size}"] if batch_size else []
    result = run(capsys, f"--out_dir={tmp_path}", "--task=hellaswag", f"--input={path}", *options)
    assert result["questions"] == 3 and result["windows"] == 7
    assert [round(result[key] * 3) for key in ("acc", "acc_norm", "acc_bytes")] == [1, 3, 2]
    assert result["acc_stderr"] == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 2))


def test_hellaswag_text_is_prepared_as_in_the_harness(tmp_path):
    record = hellaswag_record([" [step] go [title] On", "no  way [sub] ."], 0, activity_label="Roof",
                              ctx_a="[header] How [title] We", ctx_b="the MAN")  # fmt: skip
    path = write_jsonl(tmp_path / "val.jsonl", [record])
    (question,) = tasks.read_hellaswag(path)
    assert question["context"] == "Roof: How. We The man"
    assert question["choices"] == [" " + " go. On", " no way ."]


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_lambada_miniature_worked_out_by_hand(tmp_path, capsys, batch_size):
    """The model writes " ab" after c, as the second text has it; after d it would write e, and never a after a."""
    likely = {" ": {"a": 0.5}, "a": {"b": 0.6, " ": 0.1}, "c": {" ": 0.7}, "d": {"e": 0.5}}
    save(tmp_path, bigram(CHARS, likely), CHARS)
    path = write_jsonl(tmp_path / "test.jsonl", [{"text": "b d ad ab"}, {"text": "b bc ab"}, {"text": "e c aa"}])
    options = [f"--batch_size={batch_size}"] if batch_size else []
    result = run(capsys, f"--out_dir={tmp_path}", "--task=lambada", f"--input={path}", *options)
    other_after_a, other_after_d = (1 - 0.7) / 10, 0.5 / 11
    p = [other_after_d * 0.5 * 0.6, 0.7 * 0.5 * 0.6, 0.7 * 0.5 * other_after_a]
    assert result["acc"] == pytest.approx(1 / 3)
    assert result["perplexity"] == pytest.approx(math.prod(p) ** (-1 / 3), rel=1e-5)


def test_long_contexts_lose_their_beginning_and_empty_ones_become_end_of_text():
    tokenizer = ByteTokenizer(eot=255)
    asked = [("0123456789", " ab"), ("", "cd"), ("e ", "f")]
    questions = [{"line": i, "context": context, "choices": [choice]} for i, (context, choice) in enumerate(asked)]
    ids, windows = tasks.lay_out(questions, tokenizer, 6, Path("f"))
    taken = [(ids[a:c].tolist(), ids[b:c].tolist()) for a, b, c in windows]
    assert taken == [(list(b"6789 ab"), list(b" ab")), ([255, *b"cd"], list(b"cd")), (list(b"e f"), list(b" f"))]
    with pytest.raises(ValueError, match="f, line 9: .*has 3 tokens"):
        tasks.lay_out([{"line": 9, "context": "a", "choices": [" bc"]}], tokenizer, 2, Path("f"))


# ---- what is refused ----


@pytest.mark.parametrize("options, message", [
    (["--stride=9"], "stride=9 must be 1 to block_size=8"), (["--stride=0"], "stride=0"),
    (["--block_size=9"], "block_size=9 must be 1 to 8"),
    (["--split=test"], "this dataset has no test split; prepare it again with --test_fraction=0.05"),
    (["--split=dev"], "no dev.bin; this dataset has only train, val"),
    (["--split=test", "--memorised"], "no test split"), (["--split=test", "--task=fim"], "no test split"),
    (["--batch_size=0"], "batch_size=0"), (["--input=nowhere.txt"], "nowhere.txt cannot be read: No such"),
    (["--task=lambada"], "needs its questions"),
    (["--task=hellaswag", "--input={lambada}"], "line 1: 'activity_label'"),
    (["--task=lambada", "--input={lambada}", "--stride=2"], "--stride is for a text"), (["--frob"], "--frob"),
    (["--input={lambada}", "--split=val"], "leave --dataset and --split out"), (["--join_rows"], "--join_rows"),
    (["--definition=huggingface", "--per_document"], "--definition=huggingface"), (["--init_from=nothing"], "nothing"),
    (["--input={empty}"], "is empty"), (["--input={one}"], "1 tokens, a prediction needs 2"),
    (["--input={image}"], "not UTF-8 and has the byte 0xff, which is .*end-of-text id.*UTF-8 first"),
    (["--task=lambada", "--input={latin}"], "latin is not UTF-8 text .byte 0xe9 at offset 3.*iconv -f GBK"),
    (["--task=lambada", "--input={parquet}"], "parquet is an .*parquet, an archive .*not plain text: unpack it"),
    *[(["--task=lambada", f"--input={{{k}}}"], f"{k} is an .* not plain text") for k in ("gz", "xz", "bz2", "zst")],
    (["--input={tar}"], "tar is an .* not plain text"),
    (["--input={chars}"], "chars is a folder, expected a text file: name one, or prepare .*--dataset and --split"),
    (["--task=lambada", "--input={chars}"], "chars cannot be read: .*; expected a text file"),
    (["--task=lambada", "--input={broken}"], "broken, line 2: not JSON"), (["--dataset=nowhere"], "nowhere"),
    (["--dataset={chars}"], "does not match the checkpoint"), (["--task=lambada", "--input={word}"], "line 1: no word"),
    (["--task=hellaswag", "--input={unlabelled}"], "line 1: label ''"),
])  # fmt: skip
def test_bad_requests_are_refused_in_one_line(bytes_run, questions_file, tmp_path, options, message):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    files = {
        "empty": b" \n", "one": b"a", "latin": b"caf\xe9", "image": b"\xff\xd8\xff",
        "parquet": b"PAR1\x15\x84", "gz": gzip.compress(b"text" * 99), "xz": lzma.compress(b"text" * 99),
        "bz2": bz2.compress(b"text" * 99), "zst": b"(\xb5/\xfd\0", "tar": packed.getvalue(),
        "broken": b'{"text": "a b"}\n{"text": "a\n', "word": b'{"text": "word"}',
        "unlabelled": json.dumps(hellaswag_record(["a"], "")).encode(),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    write_dataset(tmp_path / "chars", CharTokenizer("abc"), ["abc" * 9])
    paths = {name: tmp_path / name for name in [*files, "chars"]} | {"lambada": questions_file}
    with pytest.raises(ValueError, match=message) as caught:
        command.main([f"--out_dir={bytes_run[0]}", "--device=cpu", *(o.format(**paths) for o in options)])
    assert "\n" not in str(caught.value)


def test_a_text_is_normalized_as_the_training_text_was(tmp_path, capsys):
    for name, text in (("lf", TEXT), ("crlf", "\ufeff" + TEXT.replace("\n", "\r\n"))):
        (tmp_path / name).write_bytes(text.encode())
    tokenizer, found = CharTokenizer.train([TEXT]), {}
    save(tmp_path, build(vocab_size=tokenizer.vocab_size), tokenizer, meta={"source": {"normalize": True}})
    for name in ("lf", "crlf"):
        found[name] = run(capsys, f"--out_dir={tmp_path}", f"--input={tmp_path / name}")["loss"]
    assert found["lf"] == found["crlf"]
    save(tmp_path, build(vocab_size=tokenizer.vocab_size), tokenizer, meta={"source": {"normalize": False}})
    with pytest.raises(ValueError, match="not in the vocabulary"):
        run(capsys, f"--out_dir={tmp_path}", f"--input={tmp_path / 'crlf'}")


def test_questions_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "test.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a b"}\n')
    assert [question["context"] for question in tasks.read_lambada(tmp_path / "test.jsonl")] == ["a"]


def test_the_last_line_is_json_also_where_a_figure_is_not_a_number():
    found = command.finite({"a": math.nan, "kinds": {"b": {"c": math.inf, "d": 1.5, "e": "nan"}}})
    assert found == {"a": None, "kinds": {"b": {"c": None, "d": 1.5, "e": "nan"}}}


def test_per_document_needs_an_end_of_text_id_and_a_dataset_its_own_vocabulary(tmp_path):
    save(tmp_path, build(), ByteTokenizer(), config={"dataset": str(tmp_path / "data")})
    write_dataset(tmp_path / "data", ByteTokenizer(), [TEXT])
    with pytest.raises(ValueError, match="no end-of-text id"):
        command.main([f"--out_dir={tmp_path}", "--device=cpu", "--per_document"])
    np.full(len(TEXT.encode()), 300, "<u2").tofile(tmp_path / "data" / "val.bin")
    with pytest.raises(ValueError, match="holds id 300, but the model's vocab_size is 256"):
        command.main([f"--out_dir={tmp_path}", "--device=cpu"])


def test_wikitext_joined_has_its_published_number_of_gpt2_tokens(shared_data):
    """287,644: the length that transformers reports for the raw test split, joined as Hugging Face's page does."""
    path, vocabulary = shared_data("wiki.test.raw"), shared_data("gpt2/encoder.json").parent
    args = command.arguments().parse_args([f"--input={path}", "--join_rows"])
    state = {"tokenizer": TiktokenTokenizer("gpt2", vocabulary).to_json()}
    _, get_ids, _, _ = open_file(args, state)
    assert len(get_ids()) == 287_644


@pytest.mark.gpu
def test_a_gpu_gives_the_loss_of_the_cpu(bytes_run, capsys):
    options = [f"--out_dir={bytes_run[0]}", "--stride=3"]
    command.main([*options, "--device=cuda"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["loss"] == pytest.approx(run(capsys, *options)["loss"], abs=1e-5)

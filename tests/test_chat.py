"""Conversations: read, packed, masked, trained on, rendered as transformers renders them, answered and evaluated."""

import gzip
import importlib.util
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from test_train import ROOT, assert_equal_states, timeless
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import AutoTokenizer

import eval as command
import export
import sample
import train
from checkpoints.build import add_rows, build_model, model_args_of
from checkpoints.file import save_checkpoint
from checkpoints.load import load_checkpoint
from data.conversations import chat_prompt, chat_tokenizer, encode_turns, pieces_of_conversation, read_conversations
from data.dataset import DatasetWriter, open_dataset
from data.fim import FIM_MARKERS
from data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    ExtendedTokenizer,
    JsonTokenizer,
    tokenizer_from_json,
)
from data.windows import batch, conversation_edges, eval_batch, eval_windows, windows_per_epoch
from inference.chat import Chat, answer_all, chat_tokenizer_of, reply
from inference.repetition import Repetition
from inference.sampling import Sampling
from model import GPT, GPTConfig
from training.batches import Batches, without_padding

TEXT = "宝玉笑道：“来了。” The cat sat on a mat, and <|user|> is text. what say you 0123456789\n"
SHAPE = dict(block_size=96, n_layer=2, n_head=2, n_embd=16)
TOKENIZERS = {
    "byte": ByteTokenizer(255),
    "char": CharTokenizer.train([TEXT], eot=True),
    "bpe": BPETokenizer.train([TEXT * 3], 300),
}
spec = importlib.util.spec_from_file_location("prepare_chat", ROOT / "data" / "chat" / "prepare.py")
prepare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare)


def turns(*texts, system=None):
    names = ["user", "assistant"] * len(texts)
    said = [{"role": name, "content": text} for name, text in zip(names, texts, strict=False)]
    return ([{"role": "system", "content": system}] if system else []) + said


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_base(path: Path, tokenizer=TOKENIZERS["char"], **shape) -> Path:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **{**SHAPE, **shape}))
    state = {"model": model.state_dict(), "model_args": model_args_of(model.config), "tokenizer": tokenizer.to_json()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint([path], state)
    return path


def some_rows(n=40):
    rng = np.random.default_rng(0)
    words = ["cat ", "mat ", "sat ", "what ", "you "]
    said = [[" ".join(rng.choice(words, rng.integers(1, 4))) for _ in range(rng.choice([2, 4]))] for _ in range(n)]
    return [{"messages": turns(*texts, system="say" if i % 3 else None)} for i, texts in enumerate(said)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "ckpt.pt")


@pytest.fixture(scope="module")
def dataset(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    rows = write_rows(folder / "rows.jsonl", some_rows())
    prepare.main(["--input", str(rows), f"--init_from={base}", f"--out_dir={folder}", "--val_fraction=0.2"])
    return folder


def test_a_test_split_takes_its_questions_from_training_alone(base, dataset, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", some_rows())
    options = ["--input", str(rows), f"--init_from={base}"]
    prepare.main([*options, f"--out_dir={tmp_path / 'out'}", "--val_fraction=0.2", "--test_fraction=0.3"])
    before, after = open_dataset(dataset), open_dataset(tmp_path / "out")
    out = capsys.readouterr().out
    assert "test: " in out and after.is_masked
    assert f"--init_from={base} --dataset=" in out

    def conversations(opened, split):
        edges = conversation_edges(opened, split, 96)
        ids, mask = opened.array(split), opened.mask(split)
        return [(ids[a:b].tolist(), mask[a:b].tolist()) for a, b in itertools.pairwise(edges.tolist())]

    assert conversations(after, "val") == conversations(before, "val")
    test, train = conversations(after, "test"), conversations(after, "train")
    assert test and train and sorted(test + train) == sorted(conversations(before, "train"))
    end = after.tokenizer.special_tokens["<|assistant|>"]
    questions = [{tuple(ids[: ids.index(end)]) for ids, _ in found} for found in (test, train)]
    assert not questions[0] & questions[1]
    val = write_rows(tmp_path / "val.jsonl", [{"messages": turns("you what you mat", "cat")}] * 40)
    prepare.main([*options, f"--out_dir={tmp_path / 'given'}", f"--val_input={val}", "--test_fraction=0.3"])
    given = open_dataset(tmp_path / "given")
    assert len(conversations(given, "val")) == 40 and 4 < len(conversations(given, "test")) < 20
    with pytest.raises(ValueError, match="their sum must be below 1"):
        prepare.main([*options, f"--out_dir={tmp_path / 'none'}", "--test_fraction=0.95"])


# ---- reading -----------------------------------------------------------------------------------------------


def read(path):
    refused = []
    return [messages for _, messages in read_conversations(path, lambda *why: refused.append(why))], refused


def test_all_usual_shapes_give_the_same_messages(tmp_path):
    want = turns("what\nyou", "cat", system="say")
    rows = [
        {"messages": want},
        {"conversations": [{"from": name, "value": turn["content"]}
                           for name, turn in zip(("system", "human", "gpt"), want, strict=True)]},
        {"conversations": turns("what\nyou", "cat"), "system": "say"},
        {"instruction": "what", "input": "you", "output": "cat", "system": "say"},
        {"prompt": "what\nyou", "response": "cat", "system": "say"},
        {"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in want]},
    ]  # fmt: skip
    lines = write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "d.json").write_text(json.dumps({"version": 1, "data": rows}), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:1] * 6), tmp_path / "e.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert read(path) == ([want] * 6, []), path


def test_the_history_of_a_row_is_its_earlier_turns(tmp_path):
    pairs = {"instruction": "and", "input": "you", "output": "mat"}, {"prompt": "and\nyou", "response": "mat"}
    history = [["what", "cat"], ["sat", "hat"]]
    rows = [{**pair, "history": history, "system": "say"} for pair in pairs]
    want = turns("what", "cat", "sat", "hat", "and\nyou", "mat", system="say")
    assert read(write_rows(tmp_path / "a.jsonl", rows)) == ([want] * 2, [])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:1]), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == ([want], [])
    assert (
        read(write_rows(tmp_path / "c.jsonl", [{**pairs[0], "history": none} for none in ([], "", None)]))[0]
        == [turns("and\nyou", "mat")] * 3
    )
    bad = ["what", [["what"]], ["what", "cat"], {"what": "cat"}, [[{"what": 1}, "cat"]], [[["what"], "cat"]]]
    found, refused = read(write_rows(tmp_path / "d.jsonl", [{**pairs[0], "history": history} for history in bad]))
    assert not found and [reason for _, reason in refused] == [
        *["history is not a list of [question, answer]"] * 4, *["content is not text"] * 2,
    ]  # fmt: skip


def test_a_system_turn_without_words_is_none(tmp_path):
    for system in ("", " \n"):
        messages = [{"role": "system", "content": system}, *turns("what", "cat")]
        assert read(write_rows(tmp_path / "a.jsonl", [{"messages": messages}])) == ([turns("what", "cat")], [])
    assert read(write_rows(tmp_path / "b.jsonl", [{"messages": messages[:1]}])) == (
        [], [(f"{tmp_path / 'b.jsonl'}:1", "no assistant turn")],
    )  # fmt: skip


@pytest.mark.parametrize("encoding, source", [("gbk", "GBK"), ("utf-16", "UTF-16")])
def test_conversations_in_another_encoding_are_to_be_converted(tmp_path, encoding, source):
    rows = json.dumps([{"instruction": "你好", "output": "好"}], ensure_ascii=False)
    (tmp_path / "a.json").write_bytes(rows.encode(encoding))
    with pytest.raises(ValueError, match=f"a.json is not UTF-8 text .* iconv -f {source} -t UTF-8"):
        read(tmp_path / "a.json")


def test_bad_rows_are_counted_by_reason_with_file_and_line(base, tmp_path, capsys):
    good = {"messages": turns("what", "cat")}
    bad = {
        "no assistant turn": turns("what"),
        "unknown role 'tool'": [*turns("what", "cat"), {"role": "tool", "content": "x"}],
        "empty content": turns("what", " \n"),
        "wrong order of turns": turns("what", "cat")[::-1],
        "content is not text": turns("what", 7),
        "unknown role \"['user']\"": [{"role": ["user"], "content": "x"}],
    }
    rows = [good] * 60 + [{"messages": messages} for messages in bad.values()] + [{"other": 1}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    path.write_text(path.read_text("utf-8") + "{\n", encoding="utf-8")
    options = ["--input", str(path), f"--init_from={base}", f"--out_dir={tmp_path / 'out'}"]
    options += [f"--val_input={write_rows(tmp_path / 'val.jsonl', [{'messages': turns('you', 'cat')}])}"]
    prepare.main(options)
    out = capsys.readouterr().out
    for line, reason in enumerate([*bad, "no field messages", "not a line of JSON"], 61):
        assert f"left out 1 row: {reason}" in out and f"(first: {path}:{line})" in out, out
    with pytest.raises(ValueError, match=r"a.jsonl:61: no assistant turn"):
        prepare.main([*options, "--bad_rows=stop"])
    only_bad = write_rows(tmp_path / "b.jsonl", [{"messages": turns("what")}])
    with pytest.raises(ValueError, match="no conversation that can be used"):
        prepare.main(["--input", str(only_bad), f"--init_from={base}", f"--out_dir={tmp_path / 'none'}"])
    assert not (tmp_path / "none" / "meta.json").exists()


def test_rows_that_cannot_be_encoded_have_one_reason_and_the_first_says_why(base, tmp_path, capsys):
    good = {"messages": turns("what", "cat")}
    lacking = [{"messages": turns("what", f"cat {chr(0x6000 + i)}")} for i in range(30)]
    path = write_rows(tmp_path / "a.jsonl", [good] * 60 + lacking)
    val = write_rows(tmp_path / "val.jsonl", [{"messages": turns("you", "cat")}])
    options = [f"--input={path}", f"--val_input={val}", f"--init_from={base}", f"--out_dir={tmp_path / 'out'}"]
    prepare.main(options)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert line.startswith(f"left out 30 rows: the tokenizer cannot encode the text (first: {path}:61: 1 distinct")
    assert "U+6000" in line
    with pytest.raises(ValueError, match=r"a.jsonl:61: 1 distinct character.*U\+6000"):
        prepare.main([*options, "--bad_rows=stop"])


def test_a_question_of_val_input_is_not_trained_on(base, tmp_path, capsys):
    asked = [{"messages": turns(text, "cat")} for text in ("what", "you", "sat")]
    rows = write_rows(tmp_path / "rows.jsonl", [*asked, {"messages": turns("what", "mat")}])
    val = write_rows(tmp_path / "val.jsonl", [{"messages": turns("what", "hat")}])
    out_dir = tmp_path / "out"
    prepare.main([f"--input={rows}", f"--val_input={val}", f"--init_from={base}", f"--out_dir={out_dir}"])
    assert f"left out 2 rows: the question is one of --val_input (first: {rows}:1)" in capsys.readouterr().out
    dataset = open_dataset(out_dir)
    texts = [dataset.tokenizer.decode(dataset.array(split)) for split in ("train", "val")]
    assert "what" not in texts[0] and "you" in texts[0] and "sat" in texts[0] and "what" in texts[1]


def test_options_without_effect_are_refused(base, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", some_rows())
    options = [f"--input={rows}", f"--init_from={base}", f"--out_dir={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match="--val_fraction=0.2 and --val_input both name the validation split"):
        prepare.main([*options, f"--val_input={rows}", "--val_fraction=0.2"])
    with pytest.raises(ValueError, match="--text_share=0.9 needs --text; pass both or neither"):
        prepare.main([*options, "--text_share=0.9"])


def test_a_full_disk_is_no_bad_row(base, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise ValueError("cannot write the dataset: No space left on device")

    monkeypatch.setattr(prepare.DatasetWriter, "write_conversation", refuse)
    rows = write_rows(tmp_path / "rows.jsonl", some_rows())
    with pytest.raises(ValueError, match="No space left"):
        prepare.main([f"--input={rows}", f"--init_from={base}", f"--out_dir={tmp_path / 'out'}"])
    assert "left out" not in capsys.readouterr().out


def test_a_last_question_without_an_answer_is_left_out(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"messages": turns("what", "cat", "and")}])
    assert read(path)[0] == [turns("what", "cat")]


# ---- windows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_markers_that_a_user_types_are_text(kind):
    tokenizer = chat_tokenizer(TOKENIZERS[kind])
    ids, mask = encode_turns(turns("a <|user|> cat", "sat"), tokenizer)
    special = [id for id in ids if id >= TOKENIZERS[kind].vocab_size]
    assert [tokenizer.special_tokens[name] for name in ("<|user|>", "<|end|>", "<|assistant|>", "<|end|>")] == special
    assert tokenizer.decode(ids) == "a <|user|> catsat"
    assert tokenizer.decode(np.array(ids)[mask]) == "sat"
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert (again.special_tokens, again.ends) == (tokenizer.special_tokens, tokenizer.ends)
    decoder = again.decoder()
    assert "".join(map(decoder.push, ids)) + decoder.finish() == "a <|user|> catsat"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_conversation_typed_with_its_markers_has_its_ids_where_special_tokens_are_encoded(kind):
    tokenizer = chat_tokenizer(TOKENIZERS[kind])
    typed = "<|user|>The cat<|end|><|assistant|>sat<|end|>"
    expected = [*tokenizer.begin, *encode_turns(turns("The cat", "sat"), tokenizer)[0]]
    assert tokenizer.encode_document(typed, special=True).tolist() == expected


def test_a_typed_marker_that_a_tokenizer_takes_for_the_marker_itself_is_refused():
    library = LibraryTokenizer(
        models.WordLevel({"[UNK]": 0, "cat": 1, "<|user|>": 2, "<|assistant|>": 3, "<|end|>": 4}, "[UNK]")
    )
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["<|user|>", "<|assistant|>", "<|end|>"])
    tokenizer = chat_tokenizer(JsonTokenizer(library.to_str(), None, None, "here"))
    assert encode_turns(turns("cat", "cat"), tokenizer)[0] == [2, 1, 4, 3, 1, 4]
    with pytest.raises(ValueError, match="takes a marker typed in the text for the marker itself"):
        encode_turns(turns("cat <|end|>", "cat"), tokenizer)


def test_a_long_conversation_is_cut_before_a_users_turn_and_every_answer_is_learned_once():
    tokenizer = chat_tokenizer(TOKENIZERS["char"])
    said = [f"{kind}{i}" for i in range(10) for kind in ("what ", "cat ")]
    said[5] = "mat" * 30
    pieces, too_long = pieces_of_conversation(turns(*said, system="say"), tokenizer, longest=50)
    assert too_long == 1 and len(pieces) > 2 and all(len(ids) <= 50 for ids, _ in pieces)
    learned = "".join(tokenizer.decode(ids[mask]) for ids, mask in pieces)
    assert learned == "".join(text for text in said[1::2] if text != said[5])
    marker = tokenizer.special_tokens
    for ids, _ in pieces:
        assert tokenizer.decode(ids[:5]) == "say" and ids[5] == marker["<|user|>"] and ids[-1] == marker["<|end|>"]


def test_an_epoch_has_every_conversation_once_and_windows_hold_one_each(dataset):
    opened = open_dataset(dataset)
    n = windows_per_epoch(opened, "train", 96)
    assert n == opened.meta["splits"]["train"]["documents"]
    whole = eval_batch(opened, "train", eval_windows(opened, "train", 96), 96)
    for epoch in range(2):
        x, y = batch(opened, "train", 7, np.arange(epoch * n, (epoch + 1) * n), 96)
        assert sorted(map(bytes, x)) == sorted(map(bytes, whole[0]))
        assert sorted(map(bytes, y)) == sorted(map(bytes, whole[1]))
    tokenizer, text = opened.tokenizer, set()
    rows = [row["messages"] for row in some_rows()]
    expected = {tuple(encode_turns(messages, tokenizer)[0]) for messages in rows}
    for split in ("train", "val"):
        x, _ = eval_batch(opened, split, eval_windows(opened, split, 96), 96)
        end = tokenizer.special_tokens["<|end|>"]
        text |= {tuple(row[: np.flatnonzero(row == end)[-1] + 1].tolist()) for row in x}
    assert text == expected


def test_the_loss_of_packed_windows_is_that_of_each_conversation_alone(dataset, base):
    opened = open_dataset(dataset)
    model = build_model(add_rows(load_checkpoint(base), TOKENIZERS["char"].vocab_size, opened.vocab_size)).eval()
    x, y = eval_batch(opened, "val", eval_windows(opened, "val", 96), 96)
    total, count = 0.0, 0
    messages = {tuple(encode_turns(row["messages"], opened.tokenizer)[0]): row["messages"] for row in some_rows()}
    for ids, said in messages.items():
        if not any(tuple(row[: len(ids)].tolist()) == ids for row in x):
            continue
        mask = torch.tensor(encode_turns(said, opened.tokenizer)[1])
        logits = model.logits(model.transformer.ln_f(model.hidden(torch.tensor([ids]))))[0].double()
        total += F.cross_entropy(logits[:-1][mask[1:]], torch.tensor(ids)[1:][mask[1:]], reduction="sum").item()
        count += int(mask.sum())
    assert count == (y >= 0).sum() == opened.meta["splits"]["val"]["targets"]
    loss = model(torch.from_numpy(x), torch.from_numpy(y))[1].item()
    assert loss == pytest.approx(total / count, abs=1e-5)


def test_gradients_of_masked_targets_are_exactly_zero(dataset, base):
    opened = open_dataset(dataset)
    model = build_model(add_rows(load_checkpoint(base), TOKENIZERS["char"].vocab_size, opened.vocab_size))
    x, y = map(torch.from_numpy, batch(opened, "train", 1, np.arange(4), 96))
    logits, loss = model(x, y)
    (grad,) = torch.autograd.grad(loss, logits)
    assert (grad[y < 0] == 0).all() and (grad[y >= 0] != 0).any(-1).all()


def test_a_window_too_short_for_a_conversation_is_refused(dataset, base, tmp_path):
    argv = [*SMALL, f"--dataset={dataset}", f"--init_from={base}", f"--out_dir={tmp_path}", "--max_iters=1"]
    with pytest.raises(ValueError, match="block_size=16 has room for 17; use --block_size="):
        train.main([*argv, "--block_size=16"])
    with pytest.raises(ValueError, match="sampling=line is for text"):
        train.main([*argv, "--sampling=line"])


# ---- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [0, 40])
def test_new_rows_are_the_mean_of_the_others(tmp_path, tied, padding):
    tokenizer = TOKENIZERS["bpe"]
    path = write_base(tmp_path / "base.pt", tokenizer, tie_weights=tied)
    old = load_checkpoint(path)
    n = tokenizer.vocab_size
    if padding:  # rows that no id of the tokenizer uses
        for name in ("transformer.wte.weight", "lm_head.weight"):
            old["model"][name] = torch.cat([old["model"][name], torch.full((padding, 16), 9.0)])
        old["model_args"]["vocab_size"] = n + padding
    model = build_model(add_rows(old, n, n + 4))
    assert model.config.vocab_size == n + max(4, padding)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        new, was = model.state_dict()[name], old["model"][name]
        assert torch.equal(new[:n], was[:n])
        torch.testing.assert_close(new[n : n + 4], was[:n].mean(0).expand(4, -1))
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied


SMALL = [
    "--batch_size=4", "--gradient_accumulation_steps=2", "--eval_interval=2", "--eval_iters=2", "--log_interval=1",
    "--device=cpu", "--dtype=float32", "--learning_rate=1e-2", "--lr_decay_iters=8", "--warmup_iters=2",
]  # fmt: skip


def run(dataset, out_dir, *options):
    assert train.main([*SMALL, f"--dataset={dataset}", f"--out_dir={out_dir}", *options]) == 0
    return torch.load(out_dir / "last.pt", weights_only=True)


def test_k_steps_and_a_resume_equal_n_steps_bitwise(dataset, base, tmp_path):
    whole = run(dataset, tmp_path / "whole", f"--init_from={base}", "--max_iters=8", "--dropout=0.2")
    run(dataset, tmp_path / "parts", f"--init_from={base}", "--max_iters=3", "--dropout=0.2")
    parts = run(dataset, tmp_path / "parts", "--init_from=resume", "--max_iters=8")
    assert_equal_states(whole, parts)
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "parts")
    assert whole["meta"]["chat"]["template"] and whole["tokenizer"]["kind"] == "extended"
    assert timeless(tmp_path / "whole")[-1]["val_loss"] < timeless(tmp_path / "whole")[0]["val_loss"]


def test_two_processes_give_the_losses_of_one(dataset, base, tmp_path):
    one = run(dataset, tmp_path / "one", f"--init_from={base}", "--max_iters=4")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train.py")]
    options = [*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path / 'two'}", f"--init_from={base}", "--max_iters=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launcher, *options], check=True, env=environment, capture_output=True)
    two = torch.load(tmp_path / "two" / "last.pt", weights_only=True)
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["chat", "chat_small"])
def test_the_configs_for_conversations_train(name, dataset, base, tmp_path):
    options = [f"--dataset={dataset}", f"--init_from={base}", f"--out_dir={tmp_path}", "--device=cpu", "--eval_iters=1"]
    assert train.main([str(ROOT / "config" / f"{name}.py"), *options, "--max_iters=2"]) == 0
    assert (tmp_path / "ckpt.pt").exists()


def test_an_epoch_limit_counts_conversations(dataset, base, tmp_path):
    state = run(dataset, tmp_path, f"--init_from={base}", "--max_epochs=2")
    n = open_dataset(dataset).meta["splits"]["train"]["documents"]
    assert state["iter_num"] == -(-2 * n // 8)


def test_a_dataset_with_another_models_tokenizer_is_refused(dataset, tmp_path):
    other = write_base(tmp_path / "other.pt", CharTokenizer.train(["ZQ!" + TEXT], eot=True))
    with pytest.raises(ValueError, match="does not match the checkpoint"):
        train.main([*SMALL, f"--dataset={dataset}", f"--out_dir={tmp_path}", f"--init_from={other}", "--max_iters=1"])


# ---- transformers ------------------------------------------------------------------------------------------


def export_of(tmp_path, tokenizer, messages) -> tuple[Path, dict]:
    """The folder exported from a model trained for a step on these conversations; its checkpoint."""
    base = write_base(tmp_path / "base.pt", tokenizer, block_size=200)
    rows = write_rows(tmp_path / "rows.jsonl", [{"messages": m} for m in messages])
    val = write_rows(tmp_path / "val.jsonl", [{"messages": turns("say", "cat")}])
    prepare.main(["--input", str(rows), f"--val_input={val}", f"--init_from={base}", f"--out_dir={tmp_path / 'data'}"])
    run(tmp_path / "data", tmp_path / "out", f"--init_from={base}", "--max_iters=1")
    export.main([f"--out_dir={tmp_path / 'out'}", f"--hf_dir={tmp_path / 'hf'}"])
    return tmp_path / "hf", load_checkpoint(tmp_path / "out" / "ckpt.pt")


def some_folders():
    """Tokenizers of whole folders: with bos, a first space, byte fallback, markers added before."""
    library = LibraryTokenizer(models.Unigram([("<unk>", 0.0), ("<s>", 0.0), *((c, -3.0) for c in "▁" + TEXT)], 0))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    library.decoder = decoders.Metaspace()
    library.add_special_tokens(["<s>"])
    always = library.to_str()
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    library.post_processor = processors.TemplateProcessing("<s> $0", special_tokens=[("<s>", 1)])
    found = {"always": JsonTokenizer(always, 1, []), "first, with bos": JsonTokenizer(library.to_str(), 1, [])}
    return found | {f"{name}, twice": ExtendedTokenizer(base, FIM_MARKERS) for name, base in found.items()}


@pytest.mark.parametrize("kind", [*TOKENIZERS, *some_folders()])
def test_ids_and_mask_are_those_of_transformers_with_the_exported_template(kind, tmp_path):
    tokenizer = (TOKENIZERS | some_folders())[kind]
    conversations = [
        turns("what say you", "The cat sat", "and 宝玉", " on a mat.\n"), turns("what", "cat", system="you say"),
    ]  # fmt: skip
    folder, state = export_of(tmp_path, tokenizer, conversations)
    theirs, ours = AutoTokenizer.from_pretrained(folder), tokenizer_from_json(state["tokenizer"])
    for messages in conversations:
        want = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ((ids, mask),), _ = pieces_of_conversation(messages, ours, 1000)
        assert ids.tolist() == want["input_ids"]
        decoder = ours.decoder()
        assert "".join(map(decoder.push, ids)) + decoder.finish() == ours.decode(ids)
        assert mask.astype(int).tolist() == want["assistant_masks"]
        prompt = theirs.apply_chat_template(messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=True)
        assert chat_prompt(messages[:-1], ours, 1000) == prompt["input_ids"]
    end = json.loads((folder / "generation_config.json").read_text("utf-8"))["eos_token_id"]
    assert ours.special_tokens["<|end|>"] in (end if isinstance(end, list) else [end])


# ---- answering ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(dataset, base, tmp_path_factory):
    """The out_dir of a model that has learned to end its answers."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--max_iters=60", "--lr_decay_iters=60", "--eval_interval=60", "--learning_rate=3e-2"]
    run(dataset, folder, f"--init_from={base}", *options)
    return folder


def naive_answer(model, tokenizer, prompt, most):
    """Greedy, one whole forward pass per token; (ids, whether it ended)."""
    ids, markers = list(prompt), {tokenizer.special_tokens[f"<|{name}|>"] for name in ("system", "user", "assistant")}
    for _ in range(min(most, model.config.block_size - len(prompt))):
        id = int(model(torch.tensor([ids]))[0][0, -1, : tokenizer.vocab_size].argmax())
        if id in tokenizer.ends or id in markers:
            return ids[len(prompt) :], id in tokenizer.ends
        ids.append(id)
    return ids[len(prompt) :], False


@torch.no_grad()
def test_turns_with_a_kept_cache_are_those_of_whole_forward_passes(trained):
    state = load_checkpoint(trained / "ckpt.pt")
    tokenizer, model = chat_tokenizer_of(state), build_model(state).eval()
    chat, messages, encoded = Chat(model, tokenizer, Sampling(temperature=0), 12), [], []
    forward = model.forward
    model.forward = lambda idx, **options: encoded.append(idx.numel()) or forward(idx, **options)
    for question in ("what cat", "you", "mat", "sat you", "cat", "mat mat", "what"):  # more than the context holds
        messages.append({"role": "user", "content": question})
        prompt = chat_prompt(messages, tokenizer, 96 - 12)
        encoded.clear()
        text = "".join(chat.answer(messages))
        if len(messages) == 3:
            assert encoded[0] < len(prompt) / 2  # only what is new
        ids, ended = naive_answer(model, tokenizer, prompt, 12)
        assert (text, chat.finish == "end") == (tokenizer.decode(ids), ended)
        messages.append({"role": "assistant", "content": text})
    assert len(prompt) < len(encode_turns(messages[:-1], tokenizer)[0])


@pytest.mark.parametrize("pieces, added", [([], 0), (["", "\n"], 0), (["So", " it"], 2)])
def test_an_answer_interrupted_before_its_first_word_leaves_no_empty_turn(capsys, pieces, added):
    def answer(asked, generator):
        yield from pieces
        raise KeyboardInterrupt

    messages = turns("How?", "So.")
    reply(SimpleNamespace(answer=answer), messages, "Why?", None)
    assert messages == turns("How?", "So.", "Why?", "So it")[: 2 + added]


def test_history_is_cut_at_whole_turns_and_the_system_turn_stays():
    tokenizer = chat_tokenizer(TOKENIZERS["char"])
    messages = turns("what", "cat", "you", "mat", "sat", system="say")
    whole = chat_prompt(messages, tokenizer, 1000)
    for room in range(12, len(whole) + 1):
        ids = chat_prompt(messages, tokenizer, room)
        assert len(ids) <= room and tokenizer.decode(ids) in ("saysat", "sayyoumatsat", "saywhatcatyoumatsat")
    assert ids == whole
    with pytest.raises(ValueError, match="the last turn has 5 tokens, but the model's context has room for 4"):
        chat_prompt(messages, tokenizer, 10)


def test_no_turn_of_a_long_history_is_encoded_twice_nor_many_that_are_left_out(monkeypatch):
    tokenizer, encoded = chat_tokenizer(TOKENIZERS["char"]), []
    plain = type(tokenizer).encode
    counted = lambda self, text, **more: (encoded.append(text), plain(self, text, **more))[1]  # noqa: E731
    monkeypatch.setattr(type(tokenizer), "encode", counted)
    chat_prompt(turns(*["cat"] * 999), tokenizer, 60)
    assert len(encoded) <= 60 // len("cat")


def test_answers_drawn_together_do_not_depend_on_each_other(trained):
    state = load_checkpoint(trained / "ckpt.pt")
    tokenizer, model = chat_tokenizer_of(state), build_model(state).eval()
    prompts = [chat_prompt(turns(*said), tokenizer, 90) for said in (["what"], ["cat mat", "sat", "you"], ["mat"])]
    together = answer_all(model, tokenizer, prompts, Sampling(), 20, [1, 2, 3])
    alone = [answer_all(model, tokenizer, [prompts[i]], Sampling(), 20, [i + 1])[0] for i in range(3)]
    assert together == alone and any(text for text, *_ in alone)


@torch.no_grad()
def test_penalties_for_repetition_mean_the_same_in_a_chat_and_in_a_batch_and_let_answers_end(trained):
    state = load_checkpoint(trained / "ckpt.pt")
    tokenizer, model = chat_tokenizer_of(state), build_model(state).eval()
    messages = turns("what you", "cat cat", "mat", "sat sat cat", "what")
    prompt = chat_prompt(messages, tokenizer, 90)
    plain, finish = None, set()
    for more in ({}, dict(no_repeat_ngram=2), dict(dry_multiplier=2.0), dict(repetition_penalty=1.3)):
        chat = Chat(model, tokenizer, Sampling(temperature=0, **more), 40)
        text = "".join(chat.answer(messages))
        assert (text, chat.finish) == answer_all(model, tokenizer, [prompt], chat.sampling, 40, [0])[0][:2]
        plain, finish = plain or text, finish | {chat.finish}
    assert text != plain and "end" in finish
    ended = tokenizer.special_tokens["<|end|>"]
    assert prompt.count(ended) > 2  # and yet it is drawn, though the text has it and its neighbours already
    assert not {ended, tokenizer.special_tokens["<|user|>"]} & chat_costs(prompt + prompt[-3:]).keys()


def chat_costs(ids):
    tokenizer = chat_tokenizer(TOKENIZERS["char"])
    sampling = Sampling(no_repeat_ngram=1, unpenalized=tuple(tokenizer.special_tokens.values()))
    repetition = Repetition(sampling, [ids])
    return repetition.costs(repetition.rows[0])


def test_a_tuned_model_is_evaluated_on_its_bases_dataset(trained, tmp_path, capsys):
    text = "the cat sat on a mat, what say you\n" * 20
    with DatasetWriter(tmp_path / "text", TOKENIZERS["char"], {}) as writer:
        for split in ("train", "val"):
            writer.write(split, TOKENIZERS["char"].encode(text), len(text))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    losses = []
    for options in (f"--dataset={tmp_path / 'text'}", f"--input={tmp_path / 'text.txt'}"):
        command.main([f"--out_dir={trained}", "--device=cpu", options])
        losses.append(json.loads(capsys.readouterr().out.splitlines()[-1])["loss"])
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="--no_repeat_ngram and --dry_multiplier are for the answers of --task=chat"):
        command.main([f"--out_dir={trained}", "--device=cpu", options, "--no_repeat_ngram=3"])


def test_the_terminal_answers_saves_and_resets(trained, tmp_path, monkeypatch, capsys):
    save = f"/save {tmp_path / 'a.jsonl'}\n"
    lines = f"{save}what <|end|> cat\n你\n{save}/reset\n{save}you\n{save}"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines.replace("<|end|>", "<|user|>")))
    sample.main([f"--out_dir={trained}", "--chat", "--system=say", "--max_new_tokens=9", "--device=cpu"])
    said = capsys.readouterr().err
    assert "not in the vocabulary" in said and said.count("nothing has been said yet") == 2
    saved = [json.loads(line)["messages"] for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    assert [[turn["content"] for turn in messages if turn["role"] != "assistant"] for messages in saved] == [
        ["say", "what <|user|> cat"], ["say", "you"],
    ]  # fmt: skip
    assert [turn["role"] for turn in saved[0]] == ["system", "user", "assistant"]


def test_a_file_of_questions_is_answered_and_bad_rows_are_named(trained, tmp_path):
    rows = [{"messages": turns("what")}, {"messages": turns("cat", "sat", "you")}, {"prompt": "mat", "response": "x"}]
    path = write_rows(tmp_path / "q.jsonl", rows)
    options = [f"--out_dir={trained}", "--temperature=0", "--max_new_tokens=9", "--device=cpu"]
    sample.main([*options, f"--messages={path}", f"--output={tmp_path / 'a.jsonl'}", "--batch_size=2"])
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    assert [[turn["content"] for turn in a["messages"][:-1]] for a in answers] == [
        ["what"],
        ["cat", "sat", "you"],
        ["mat"],
    ]
    assert all(a["finish"] in ("end", "length", "marker") for a in answers)
    bad = write_rows(tmp_path / "bad.jsonl", [rows[0], {"messages": [{"role": "tool", "content": "x"}]}])
    with pytest.raises(ValueError, match="bad.jsonl:2: unknown role 'tool'"):
        sample.main([*options, f"--messages={bad}"])
    before = (tmp_path / "a.jsonl").read_bytes()
    long = write_rows(tmp_path / "long.jsonl", [*rows, {"messages": turns("what " * 200)}])
    with pytest.raises(ValueError, match=r"long.jsonl:4: .* room for"):  # before anything is answered
        sample.main([*options, f"--messages={long}", f"--output={tmp_path / 'a.jsonl'}", "--batch_size=1"])
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_a_model_without_markers_is_refused(base, tmp_path):
    rows = write_rows(tmp_path / "q.jsonl", [{"messages": turns("what")}])
    for option in ("--chat", f"--messages={rows}"):
        with pytest.raises(ValueError, match="the model was not trained on conversations"):
            sample.main([f"--init_from={base}", option, "--device=cpu"])


@torch.no_grad()
def test_eval_counts_what_a_naive_loop_counts(trained, dataset, tmp_path, capsys):
    state = load_checkpoint(trained / "ckpt.pt")
    tokenizer, model = chat_tokenizer_of(state), build_model(state).eval()
    ids, mask = np.array(open_dataset(dataset).array("val")).tolist(), open_dataset(dataset).mask("val")
    nats, exact, ended, n, start = 0.0, [], [], 0, 0
    for i in range(len(ids)):
        start = i if mask[i] & 2 else start
        if mask[i] & 1 and not mask[i - 1] & 1:
            stop = next(j for j in range(i, len(ids) + 1) if j == len(ids) or not mask[j] & 1)
            logits = model.logits(model.transformer.ln_f(model.hidden(torch.tensor([ids[start : stop - 1]]))))[0]
            target = torch.tensor(ids[i:stop])
            nats += F.cross_entropy(logits[i - start - 1 :].double(), target, reduction="sum").item()
            n += stop - i
            answer, has_ended = naive_answer(model, tokenizer, ids[start:i], 512)
            exact.append(has_ended and answer == ids[i : stop - 1])
            ended.append(has_ended)
    rows = write_rows(tmp_path / "rows.jsonl", some_rows())
    for options in ([], [f"--input={rows}"]):
        command.main([f"--out_dir={trained}", "--task=chat", "--device=cpu", *options])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        if not options:
            assert (found["questions"], found["tokens"]) == (len(exact), n)
            assert found["loss"] == pytest.approx(nats / n, abs=1e-5)
            assert (found["exact_match"], found["ended"]) == (np.mean(exact), np.mean(ended))
            assert 0 < found["ended"]
    assert found["questions"] == sum(len(row["messages"]) // 2 for row in some_rows())


def test_a_step_sees_the_same_conversations_dealt_out_by_length_as_without(dataset):
    opened = open_dataset(dataset)
    config = SimpleNamespace(batch_size=2, block_size=96, seed=3, sampling="contiguous")
    common = dict(dataset=opened, config=config, device=torch.device("cpu"), shift=1, micro_steps=2, samples=8)
    widths = []
    for step in range(4):
        rows = []
        for micro in range(2):
            for rank in range(2):
                ranks = SimpleNamespace(world_size=2, rank=rank)
                batches = Batches(SimpleNamespace(**common, ranks=ranks, iter_num=step, trims=True))
                x, y, n = batches.load(step * 2 + micro)
                batches.close()
                assert n == (y >= 0).sum() and (y[:, -1] >= 0).any()
                widths.append(x.shape[1])
                rows += [F.pad(row, (0, 96 - len(row)), value=-1).numpy().tobytes() for row in y]
        assert widths[-4:] == sorted(widths[-4:])
        _, y = batch(opened, "train", 3, 1 + np.arange(step * 8, step * 8 + 8), 96)
        assert sorted(rows) == sorted(row.tobytes() for row in y)
    assert len(set(widths)) > 4


def test_text_among_conversations_is_the_base_datasets_and_is_learned_whole(base, tmp_path):
    tokenizer, rng = TOKENIZERS["char"], np.random.default_rng(0)
    texts = {split: rng.integers(0, 20, 5000) for split in ("train", "val")}
    with DatasetWriter(tmp_path / "text", tokenizer, {}) as writer:
        for split, ids in texts.items():
            writer.write(split, ids, 5000)
    rows = write_rows(tmp_path / "rows.jsonl", some_rows())
    options = ["--input", str(rows), f"--init_from={base}", f"--out_dir={tmp_path / 'chat'}"]
    prepare.main([*options, f"--text={tmp_path / 'text'}", "--text_share=0.5"])
    opened = open_dataset(tmp_path / "chat")
    x, y = eval_batch(opened, "train", eval_windows(opened, "train", 96), 96)
    plain = (y >= 0).all(1)
    assert (y[plain] >= 0).sum() / (y >= 0).sum() == pytest.approx(0.5, abs=0.05)
    whole = texts["train"].astype(np.uint8).tobytes()
    for row, targets in zip(x[plain], y[plain], strict=True):
        assert np.append(row, targets[-1]).astype(np.uint8).tobytes() in whole and (row[1:] == targets[:-1]).all()
    assert (opened.array("val") >= tokenizer.vocab_size).any()  # conversations alone
    other = write_base(tmp_path / "other.pt", CharTokenizer.train(["ZQ!" + TEXT], eot=True))
    with pytest.raises(ValueError, match="does not match the checkpoint"):
        prepare.main([*options, f"--init_from={other}", f"--text={tmp_path / 'text'}"])


@torch.no_grad()
def test_words_used_and_distinct_runs_are_those_of_plain_loops_also_by_kind(trained, tmp_path, capsys):
    state = load_checkpoint(trained / "ckpt.pt")
    tokenizer, model = chat_tokenizer_of(state), build_model(state).eval()
    asked = ["what", "you cat", "mat mat", "sat you what", "cat"]
    rows = [{"prompt": question, "response": "cat cat sat", "kind": "ab"[i % 2]} for i, question in enumerate(asked)]
    answers = [
        tokenizer.decode(naive_answer(model, tokenizer, chat_prompt(turns(question), tokenizer, 96), 512)[0])
        for question in asked
    ]
    wanted = [[answers[0].split()[0].upper(), "ca"], ["dog"], [], ["?"], answers[4].split()[:1]]
    for row, words in zip(rows, wanted, strict=True):
        row["words"] = words
    path = write_rows(tmp_path / "a.jsonl", rows)
    command.main([f"--out_dir={trained}", "--task=chat", "--device=cpu", f"--input={path}"])
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])

    def expected(numbers):
        used = [word.lower() in re.findall("[a-z]+", answers[i]) for i in numbers for word in wanted[i]]
        runs = [[answers[i][at : at + 4] for at in range(len(answers[i]) - 3)] for i in numbers]  # a token a letter
        return sum(used) / len(used), sum(len(set(run)) for run in runs) / sum(map(len, runs))

    assert (found["words_used"], found["distinct_4"]) == pytest.approx(expected(range(5)))
    assert found["distinct_4_expected"] == pytest.approx(7 / 8)  # "cat " is there twice
    for kind, numbers in (("a", (0, 2, 4)), ("b", (1, 3))):
        by_kind = found["kinds"][kind]
        assert (by_kind["words_used"], by_kind["distinct_4"]) == pytest.approx(expected(numbers))
        assert f"{kind:<20}{len(numbers)} questions: {by_kind['loss']:.3f} loss" in out
    assert 0 < found["words_used"] < 1 and found["distinct_4"] < 1


def test_answers_too_long_for_the_context_are_left_out_and_counted(trained, tmp_path, capsys):
    def figures(rows):
        path = write_rows(tmp_path / "a.jsonl", rows)
        command.main([f"--out_dir={trained}", "--task=chat", "--device=cpu", f"--input={path}"])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    fits = {"prompt": "what", "response": "cat sat", "kind": "a", "words": ["cat"]}
    partly = {"messages": turns("what", "cat " * 100, "you cat", "sat"), "kind": "b", "words": ["sat"]}
    without = figures([fits, {**partly, "messages": turns("you cat", "sat")}])
    found = figures([{**fits, "response": "mat " * 100, "kind": "b"}, fits, partly])
    assert (without["left_out"], found["left_out"]) == (0, 2)
    for key in ("questions", "loss", "exact_match", "words_used", "distinct_4", "kinds"):
        assert found[key] == without[key]
    path = write_rows(tmp_path / "long.jsonl", [{**fits, "response": "mat " * 100}])
    with pytest.raises(ValueError, match="has no answer that fits block_size=96 with its question"):
        command.main([f"--out_dir={trained}", "--task=chat", "--device=cpu", f"--input={path}"])


def test_windows_without_their_padding_have_the_same_loss_and_gradients(dataset, base):
    opened = open_dataset(dataset)
    model = build_model(add_rows(load_checkpoint(base), TOKENIZERS["char"].vocab_size, opened.vocab_size))
    x, y = batch(opened, "train", 1, np.arange(4), 96)
    grads = []
    for windows in ((x, y), without_padding(x, y)):
        loss = model(*map(torch.from_numpy, windows))[1]
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
    assert windows[0].shape[1] < 96 and (windows[1] >= 0).sum() == (y >= 0).sum()
    for whole, cut in zip(*grads, strict=True):
        torch.testing.assert_close(cut, whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "options, named",
    [
        (["--chat", "--start=x", "--output=a"], "--chat cannot be combined with --start, --output"),
        (["--messages=q.jsonl", "--system=say"], "--messages cannot be combined with --system"),
    ],
)
def test_options_that_a_chat_would_ignore_are_refused(options, named, trained):
    with pytest.raises(ValueError, match=named):
        sample.main([f"--out_dir={trained}", "--device=cpu", *options])


def test_damaged_files_are_refused_by_name(base, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and more")
    (tmp_path / "b.jsonl.gz").write_bytes(b"\x1f\x8b nothing")
    (tmp_path / "c.json").write_bytes(b'[{"prompt": ')
    (tmp_path / "d.csv").write_bytes(b"prompt,response\n")
    for path in [*sorted(tmp_path.iterdir()), tmp_path / "missing.jsonl"]:
        with pytest.raises(ValueError, match=re.escape(str(path))):
            prepare.main(["--input", str(path), f"--init_from={base}", f"--out_dir={tmp_path / 'out'}"])


def test_an_exported_folder_answers_as_its_checkpoint_and_can_be_trained_on(trained, tmp_path, capsys):
    folder, rows = tmp_path / "hf", write_rows(tmp_path / "q.jsonl", some_rows())
    export.main([f"--out_dir={trained}", f"--hf_dir={folder}"])
    answers = []
    for source in ([f"--out_dir={trained}"], [f"--init_from={folder}"]):
        capsys.readouterr()
        sample.main([*source, f"--messages={rows}", "--temperature=0", "--max_new_tokens=9", "--device=cpu"])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and answers[0].count("\n") == len(some_rows())
    prepare.main(["--input", str(rows), f"--init_from={folder}", f"--out_dir={tmp_path / 'data'}"])
    state = run(tmp_path / "data", tmp_path / "out", f"--init_from={folder}", "--max_iters=1")
    assert state["model_args"]["vocab_size"] == TOKENIZERS["char"].vocab_size + 4

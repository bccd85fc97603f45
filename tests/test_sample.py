"""sample.py: text from a checkpoint alone."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import MAKERS
from test_train import SMALL, write_dataset
from torch.nn import functional as F

import complete
import eval as evaluate
import sample
import train
from checkpoints.build import build_model, model_args_of
from checkpoints.file import save_checkpoint
from checkpoints.load import load_checkpoint
from data.bpe import CODE_PATTERN
from data.fim import FIM_MARKERS
from data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, ExtendedTokenizer, JsonTokenizer
from model import GPT, GPTConfig

ROOT = Path(__file__).resolve().parents[1]
LETTERS = "\n 便宝玉见说贾黛😀"
WORDS = BPETokenizer.train(["the cat sat on the mat. " * 9 + "def f(x):\n    return x\n" * 9], 300, words=CODE_PATTERN)


@pytest.fixture
def out_dir(tmp_path) -> Path:
    save(tmp_path, CharTokenizer(LETTERS), vocab_size=64)  # a padded vocabulary: most ids stand for nothing
    return tmp_path


def save(folder: Path, tokenizer, vocab_size: int, block_size: int = 16) -> None:
    config = GPTConfig(block_size=block_size, vocab_size=vocab_size, n_layer=1, n_head=2, n_embd=8)
    model = GPT(config, torch.Generator().manual_seed(1))
    state = {"model": model.state_dict(), "model_args": model_args_of(config), "tokenizer": tokenizer.to_json()}
    save_checkpoint(folder / "ckpt.pt", state)


def write(out_dir: Path, capsys, *options: str) -> list[str]:
    sample.main([f"--out_dir={out_dir}", "--device=cpu", "--dtype=fp32", "--max_new_tokens=40", *options])
    return capsys.readouterr().out.split("\n---------------\n")[:-1]


def records(out_dir: Path, capsys, *options: str) -> list[dict]:
    sample.main([f"--out_dir={out_dir}", "--device=cpu", "--dtype=fp32", "--max_new_tokens=40", *options])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def dictate(monkeypatch):
    """dictate(ids): from now on every model says that these ids follow the prompt, whatever it is."""

    def dictate(ids):
        class Dictated:
            def __init__(self, model, prompts, static=None):
                self.shape, self.ids = (len(prompts), model.config.vocab_size), iter(ids)

            def start(self, _=None):
                return torch.full(self.shape, -100.0).index_fill(1, torch.tensor([int(next(self.ids))]), 100.0)

            advance = start

        monkeypatch.setattr("inference.generate.Decoder", Dictated)

    return dictate


@pytest.fixture
def pieces(monkeypatch) -> list[str]:
    """What sample.py wrote, piece by piece."""
    found, plain = [], sample.write
    monkeypatch.setattr(sample, "write", lambda text: (found.append(text), plain(text)))
    return found


# ---- texts on a screen ----


def test_samples_are_separated_as_nanogpts_begin_with_the_prompt_and_use_known_ids_only(out_dir, capsys):
    texts = write(out_dir, capsys, "--start=黛玉见", "--num_samples=3", "--temperature=5")
    assert len(texts) == 3 and len(set(texts)) == 3
    for text in texts:
        assert text.startswith("黛玉见") and len(text) == 3 + 40 and set(text) <= set(LETTERS)


def test_packed_weights_write_the_same_texts(out_dir, capsys, monkeypatch, packed_layers):
    plain = write(out_dir, capsys, "--start=宝", "--num_samples=3")
    monkeypatch.setattr("inference.pack.PACKED_SIZES", {torch.float32: 0, torch.bfloat16: 0})
    monkeypatch.setattr("inference.load.pack", packed_layers)
    assert write(out_dir, capsys, "--start=宝", "--num_samples=3") == plain
    assert packed_layers.count == 5


def test_a_seed_repeats_the_text_and_sample_i_does_not_depend_on_their_number(out_dir, capsys):
    eight = write(out_dir, capsys, "--start=宝", "--num_samples=8", "--seed=5")
    assert len(set(eight)) == 8
    for options in (["--num_samples=3"], ["--num_samples=5", "--batch_size=2"], ["--num_samples=8", "--batch_size=1"]):
        texts = write(out_dir, capsys, "--start=宝", "--seed=5", *options)
        assert texts == eight[: len(texts)]
    assert write(out_dir, capsys, "--start=宝", "--num_samples=1", "--seed=6")[0] == eight[1]


def test_greedy_equals_the_argmax_loop(out_dir, capsys):
    text = write(out_dir, capsys, "--start=宝玉", "--num_samples=1", "--temperature=0", "--max_new_tokens=10")[0]
    tokenizer = CharTokenizer(LETTERS)
    model = build_model(load_checkpoint(out_dir / "ckpt.pt")).eval()
    ids = [int(i) for i in tokenizer.encode("宝玉")]
    for _ in range(10):
        ids.append(int(model(torch.tensor([ids]))[0][0, -1, : len(LETTERS)].argmax()))
    assert text == tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), WORDS], ids=["bytes", "bpe"])
@pytest.mark.parametrize("text", ["😀🎉👍😀", "黛玉见了宝玉便说", "é中😀a"])
def test_characters_are_written_when_they_are_whole(tmp_path, capsys, dictate, pieces, tokenizer, text):
    """Every piece is whole characters, each written with its last byte; what is cut off at the end is held back."""
    save(tmp_path, tokenizer, tokenizer.vocab_size, block_size=64)
    ids = tokenizer.encode(text)
    dictate([*ids, *ids])
    for n in (len(ids), len(ids) + 1, len(ids) - 1):
        pieces.clear()
        written = write(tmp_path, capsys, "--start=a", "--num_samples=2", f"--max_new_tokens={n}")
        whole = b"".join(map(tokenizer.token_bytes, [*ids, *ids][:n])).decode("utf-8", "ignore")
        assert written == ["a" + whole] * 2
        assert not any("\ufffd" in piece for piece in pieces)
        if n == len(ids):  # the first text grew with each token; the second was complete at its turn
            done = [b"".join(map(tokenizer.token_bytes, ids[:i])).decode("utf-8", "ignore") for i in range(n + 1)]
            grown = [after.removeprefix(before) for before, after in zip(done, done[1:], strict=False)]
            assert pieces[: n + 1] == ["a", *grown]


def test_a_sequence_that_is_no_utf8_does_not_stop_the_stream(tmp_path, capsys, dictate):
    save(tmp_path, ByteTokenizer(), 256)
    dictate(b"a\xf0\x9fb\xffc")
    assert write(tmp_path, capsys, "--start=x", "--num_samples=1", "--max_new_tokens=6") == ["xa\ufffdb\ufffdc"]


def test_samples_after_the_first_appear_in_their_order(out_dir, capsys, pieces):
    """Before the first separator comes the first text alone, in pieces; then each other text at once."""
    texts = write(out_dir, capsys, "--start=宝", "--num_samples=3")
    separators = [i for i, piece in enumerate(pieces) if "----" in piece]
    assert separators == [len(pieces) - 3, len(pieces) - 2, len(pieces) - 1] and separators[0] > 30
    assert [piece.split("\n---")[0] for piece in pieces[-2:]] == texts[1:]


# ---- ends ----


@pytest.mark.parametrize(
    "stop, written, finish",
    [
        ("", "one two three", "length"),
        ("two", "one ", "stop"),
        ("e two t", "on", "stop"),
        ('["three", "wo", "absent"]', "one t", "stop"),
        ("onx", "one two three", "length"),
        ("three!", "one two three", "length"),  # held back to the end, and then no stop string after all
        ("[", "one two three", "length"),
        ("one", "", "stop"),
    ],
)
def test_a_text_ends_before_a_stop_string_of_which_no_part_is_written(
    tmp_path, capsys, dictate, pieces, stop, written, finish
):
    save(tmp_path, ByteTokenizer(), 256, block_size=64)
    dictate(b"one two three, four")
    options = ("--start=:", "--num_samples=1", "--max_new_tokens=13", f"--stop={stop}")
    assert write(tmp_path, capsys, *options) == [":" + written]
    for i in range(len(pieces)):
        assert (":" + written).startswith("".join(pieces[: i + 1]).split("\n---")[0])  # nothing is taken back
    (record,) = records(tmp_path, capsys, "--output=-", *options)
    assert record["text"] == written and record["finish"] == finish


@pytest.mark.parametrize(
    "stop, is_noted",
    [('["a", "b"', True), ("[a]", True), (r"\n\n", True), (r'["\n\n"]', False), ("。", False), ("", False)],
)
def test_a_stop_string_that_may_have_been_meant_as_a_list_or_a_new_line_gets_a_note(capsys, stop, is_noted):
    sample.validate(sample.SampleConfig(stop=stop))
    assert (f"note: --stop={stop} is one string" in capsys.readouterr().err) == is_noted


def test_end_of_text_ends_a_text_and_is_not_written(tmp_path, capsys, dictate):
    save(tmp_path, WORDS, WORDS.vocab_size)
    dictate([*WORDS.encode("the cat"), WORDS.eot, *WORDS.encode("dog")])
    (record,) = records(tmp_path, capsys, "--output=-", "--start=x", "--num_samples=1")
    assert record["text"] == "the cat" and record["finish"] == "end"


def test_rows_that_end_early_do_not_disturb_the_others(out_dir, capsys):
    options = ("--start=宝", "--num_samples=6", "--temperature=3")
    texts = write(out_dir, capsys, *options)
    stopped = write(out_dir, capsys, *options, "--stop=玉")
    assert stopped == [text.split("玉")[0] for text in texts] != texts


# ---- JSON ----


def test_log_probabilities_are_those_of_the_uncached_model(out_dir, capsys):
    found = records(out_dir, capsys, "--logprobs", "--start=宝玉", "--num_samples=2", "--max_new_tokens=9", "--top_k=3")
    tokenizer = CharTokenizer(LETTERS)
    model = build_model(load_checkpoint(out_dir / "ckpt.pt")).eval()
    for number, record in enumerate(found):
        new = [token["id"] for token in record["tokens"]]
        assert (record["prompt"], record["sample"], record["num_tokens"]) == ("宝玉", number, 9)
        assert record["text"] == "".join(token["text"] for token in record["tokens"]) == tokenizer.decode(new)
        text = torch.tensor([[*map(int, tokenizer.encode("宝玉")), *new]])
        logits = model(text, text)[0].detach()[0, 1:-1, : len(LETTERS)]
        expected = logits.log_softmax(-1).gather(1, text[0, 2:, None])[:, 0]
        scores = torch.tensor([token["logprob"] for token in record["tokens"]])
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
        assert record["logprob"] == pytest.approx(float(expected.mean()), abs=1e-5)


def test_best_of_keeps_the_likeliest_of_its_texts(out_dir, capsys):
    six = records(out_dir, capsys, "--logprobs", "--start=宝", "--num_samples=6", "--temperature=2")
    best = records(out_dir, capsys, "--output=-", "--start=宝", "--num_samples=2", "--temperature=2", "--best_of=3")
    for number, three in enumerate((six[:3], six[3:])):
        likeliest = max(three, key=lambda record: record["logprob"])
        assert best[number]["text"] == likeliest["text"] and best[number]["sample"] == number
    texts = write(out_dir, capsys, "--start=宝", "--num_samples=2", "--temperature=2", "--best_of=3")
    assert texts == ["宝" + record["text"] for record in best]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_beginnings_of_a_file_are_continued_as_each_would_be_alone(out_dir, tmp_path, capsys, name):
    prompts = ["黛玉见", "宝", "说 便宝玉"]
    lines = [json.dumps({"prompt": prompt, "more": 1}) if name.endswith("l") else prompt for prompt in prompts]
    (tmp_path / name).write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    output = tmp_path / "texts.jsonl"
    settings = ("--num_samples=2", "--temperature=2", "--seed=3")
    assert write(out_dir, capsys, f"--prompts={tmp_path / name}", f"--output={output}", *settings) == []
    found = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    alone = [record for p in prompts for record in records(out_dir, capsys, f"--start={p}", "--output=-", *settings)]
    assert found == alone and len(alone) == 6


# ---- prompts ----


def test_a_prompt_from_a_file_keeps_its_newline(out_dir, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text("宝玉\n", encoding="utf-8", newline="")
    text = write(out_dir, capsys, f"--start=FILE:{tmp_path / 'prompt.txt'}", "--num_samples=1")[0]
    assert text.startswith("宝玉\n")


@pytest.mark.parametrize("name, text", [("p.txt", "宝玉"), ("p.jsonl", '{"prompt": "宝玉"}')])
def test_a_byte_order_mark_is_no_part_of_a_prompt(out_dir, tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    (found,) = records(out_dir, capsys, f"--prompts={tmp_path / name}", "--num_samples=1", "--output=-")
    assert found["prompt"] == "宝玉"


def test_a_prompt_from_standard_input_is_utf8(out_dir, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("宝玉".encode()), encoding="ascii"))
    assert write(out_dir, capsys, "--start=-", "--num_samples=1")[0].startswith("宝玉")


def test_a_prompt_in_another_encoding_is_refused_with_the_way_to_convert_it(tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_bytes("宝玉".encode("gbk"))
    expected = r"is not UTF-8 text \(byte 0xb1 at offset 0\): convert it first: in Notepad, .* iconv -f GBK -t UTF-8$"
    for option in (f"--start=FILE:{tmp_path / 'p.txt'}", f"--prompts={tmp_path / 'p.txt'}", "--start=-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("宝玉".encode("gbk")), encoding="ascii"))
        with pytest.raises(ValueError, match=expected):
            sample.main([option])
    with pytest.raises(ValueError, match="nowhere.txt cannot be read: No such file or directory"):
        sample.main(["--start=FILE:nowhere.txt"])


def test_a_model_of_lines_sees_the_id_first_that_began_its_windows(tmp_path, capsys):
    config = GPTConfig(block_size=64, vocab_size=257, n_layer=1, n_head=2, n_embd=8)
    model = GPT(config, torch.Generator().manual_seed(1)).eval()
    state = {"model": model.state_dict(), "model_args": model_args_of(config), "tokenizer": ByteTokenizer().to_json()}
    save_checkpoint(tmp_path / "ckpt.pt", state | {"config": {"sampling": "line"}})
    for prompt in ("ab", ""):
        (found,) = records(tmp_path, capsys, f"--start={prompt}", "--num_samples=1", "--temperature=0", "--logprobs")
        n = found["num_tokens"]
        expected = model.generate(torch.tensor([[0, *prompt.encode()]]), n, temperature=0)[0, -n:]
        assert [token["id"] for token in found["tokens"]] == expected.tolist()


@pytest.mark.parametrize("prompt, healed", [("on the ", " "), ("f(x):\n", "):\n"), ("the", ""), (" ", "")])
def test_white_space_at_a_prompts_end_may_become_part_of_the_next_token(tmp_path, capsys, prompt, healed):
    """The ids are those of the prompt without its end, then any that begin with this end: text goes on as typed."""
    save(tmp_path, WORDS, WORDS.vocab_size)
    beginning = sample.Beginning(WORDS, prompt)
    assert beginning.healed == healed and WORDS.decode(beginning.ids.numpy()) + healed == prompt
    for record in records(tmp_path, capsys, "--logprobs", f"--start={prompt}", "--num_samples=6", "--temperature=9"):
        whole = prompt.removesuffix(healed) + WORDS.decode([token["id"] for token in record["tokens"]])
        assert whole.startswith(prompt + record["text"])
    bytes_only = sample.Beginning(ByteTokenizer(), prompt)
    assert bytes_only.healed == "" and len(bytes_only.ids) == len(prompt)  # no token has more than one byte


def test_white_space_is_healed_where_the_last_ids_are_markers(tmp_path, capsys):
    """Text is drawn from the ids before them."""
    tokenizer = ExtendedTokenizer(WORDS, FIM_MARKERS)
    save(tmp_path, tokenizer, tokenizer.vocab_size)
    texts = write(tmp_path, capsys, "--start=on the ", "--num_samples=6", "--temperature=9")
    assert len(texts) == 6 and all(text.startswith("on the ") for text in texts)


CHAT = BPETokenizer.train(
    ["the cat\n  sat\n    on the\n\n mat\n" * 9], 300, ["<|user|>"], words=CODE_PATTERN
)  # tokens begin with a newline


@pytest.mark.parametrize("special", [None, "text", "encode"])
@pytest.mark.parametrize("made", [None, "text", "encode"])
def test_special_tokens_in_a_prompt_are_read_as_in_training_or_as_asked(tmp_path, monkeypatch, made, special):
    save(tmp_path, CHAT, CHAT.vocab_size)
    state = load_checkpoint(tmp_path / "ckpt.pt")
    save_checkpoint(tmp_path / "ckpt.pt", state | ({"meta": {"source": {"special": made}}} if made else {}))
    found = []
    monkeypatch.setattr(sample, "write_all", lambda _, beginnings: found.extend(beginnings))
    prompt = "the<|user|>\n\n"
    options = [f"--special={special}"] if special else []
    sample.main([f"--out_dir={tmp_path}", "--device=cpu", f"--start={prompt}", *options])
    is_encoded = (special or made) == "encode"
    ids, user = found[0].ids.tolist(), CHAT.special_tokens["<|user|>"]
    if is_encoded:
        assert ids == [*CHAT.encode("the").tolist(), user] and found[0].healed == "\n\n"  # only these are redrawn
    else:
        assert user not in ids


def test_a_conversation_keeps_what_was_typed_and_written(out_dir, capsys, monkeypatch):
    asked = []
    plain = sample.Beginning
    monkeypatch.setattr(
        sample, "Beginning", lambda tokenizer, text, special, bos: (asked.append(text), plain(tokenizer, text))[1]
    )
    typed = "宝玉\n\nQ\n说\\n\n/new\n黛\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    sample.main([f"--out_dir={out_dir}", "--device=cpu", "--interactive", "--max_new_tokens=5"])
    out, err = capsys.readouterr()
    first, second, _, third, _, fourth, _ = [part[:5] for part in out.split("> ")[1:]]
    assert asked[0] == "宝玉" and asked[1] == "宝玉" + first and asked[2] == asked[1] + second + "Q"
    assert "'Q'" in err and asked[3] == asked[1] + second + "说\n" and asked[4] == "黛" and len(asked) == 5
    assert len(first) == len(third) == len(fourth) == 5


def test_a_conversation_begins_with_the_text_of_a_file(out_dir, tmp_path, capsys, monkeypatch):
    (tmp_path / "start.txt").write_text("宝玉", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    start = f"--start=FILE:{tmp_path / 'start.txt'}"
    sample.main([f"--out_dir={out_dir}", "--device=cpu", "--interactive", "--max_new_tokens=5", start])
    assert capsys.readouterr().out.startswith("宝玉> ")


# ---- options and refusals ----


@pytest.mark.parametrize("options", [["--quantize=int8"], ["--dtype=bf16"], ["--dtype=bfloat16", "--quantize=int8"]])
def test_other_number_formats_write_text(out_dir, capsys, options):
    assert len(write(out_dir, capsys, "--start=宝", "--num_samples=2", *options)) == 2


def test_all_but_training_attend_without_cudnn(tmp_path, monkeypatch, capsys):
    """Which needs a new plan for each number of keys. The recorder asks at each attention whether it may be used."""
    attend, allowed = F.scaled_dot_product_attention, []

    def recording(*args, **kwargs):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recording)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(sample, "can_compile", lambda device: True)
    dataset, run, cpu = write_dataset(tmp_path / "data", "the cat sat. " * 200), f"--out_dir={tmp_path}", "--device=cpu"
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for main, options, expected in [
            (train.main, [*SMALL, f"--dataset={dataset}", "--max_iters=1"], True),
            (sample.main, [cpu, "--start=the c", "--max_new_tokens=3"], False),
            (sample.main, [cpu, "--start=the c", "--max_new_tokens=3", "--compile"], False),
            (complete.main, [cpu, "--prompt=the c"], False),
            (evaluate.main, [cpu], False),
        ]:
            torch.backends.cuda.enable_cudnn_sdp(True)
            allowed.clear()
            main([run, *options])
            assert allowed and set(allowed) == {expected}
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_compiled_texts_are_the_same(out_dir, capsys, monkeypatch):
    options = ("--start=宝", "--num_samples=3", "--batch_size=2", "--max_new_tokens=30")
    expected = write(out_dir, capsys, *options)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(1) or function)  # not its own test
    assert write(out_dir, capsys, *options, "--compile") == expected and not compiled  # slower on a CPU
    monkeypatch.setattr(sample, "can_compile", lambda device: True)
    assert write(out_dir, capsys, *options, "--compile") == expected and compiled


def test_a_gpu_records_its_step_unless_it_is_compiled_or_told_not_to(monkeypatch):
    monkeypatch.setattr(sample, "RecordedStep", lambda model, batch_size: ("recorded", batch_size))
    monkeypatch.setattr(sample, "CompiledStep", lambda model, batch_size, **options: ("compiled", options))
    writer, found = object.__new__(sample.Writer), {}
    writer.model = None
    for device in ("cuda", "cpu"):
        for compile in ("auto", True, False):
            writer.device, writer.config = torch.device(device), sample.SampleConfig(compile=compile)
            found[device, compile] = writer.static_step(3)
    assert found["cuda", "auto"] == ("recorded", 3) and found["cpu", "auto"] is None
    assert found["cuda", True] == ("compiled", {"mode": "reduce-overhead"}) and found["cpu", True] == ("compiled", {})
    assert found["cuda", False] is None and found["cpu", False] is None


@pytest.mark.parametrize(
    "options, message",
    [
        (["--start=黛玉Q与"], r"'Q' U\+0051"),
        (["--start="], "empty"),
        (["--start=FILE:nowhere.txt"], "nowhere.txt"),
        (["--prompts=nowhere.txt"], "nowhere.txt"),
        (["--temperature=-1"], "temperature=-1"),
        (["--temperature=nan"], "temperature=nan must be a finite number"),
        (["--temperature=inf"], "temperature=inf must be a finite number"),
        (["--num_samples=0"], "num_samples=0 must be at least 1"),
        (["--top_p=1.5"], "top_p=1.5"),
        (["--min_p=2"], "min_p=2"),
        (["--repetition_penalty=0"], "repetition_penalty=0"),
        (["--repetition_penalty=1e-40"], "repetition_penalty=1e-40"),
        (["--system=Be wise."], "--system .* use it with --chat"),
        (["--max_new_tokens=-3"], "max_new_tokens=-3"),
        (["--batch_size=0"], "batch_size=0"),
        (["--best_of=2", "--temperature=0"], "best_of=2"),
        (["--stop=[1]"], r"--stop=\[1\]"),
        (["--output=nowhere/x.jsonl"], "nowhere"),
        (["--interactive", "--logprobs"], "--interactive"),
        (["--interactive", "--start=-"], "--interactive reads what you type"),
        (["--temperature=1e-39"], "temperature=1e-39"),
        (["--seed=18446744073709551616"], "seed=18446744073709551616"),
        ([f"--prompts={os.devnull}"], "has no prompts"),
    ],
)
def test_bad_requests_are_refused_in_one_line(out_dir, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        sample.main([f"--out_dir={out_dir}", "--device=cpu", *options])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["folder", "nowhere/x.jsonl", "folder/sealed/x.jsonl"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, name):
    """There is no model."""
    sealed = tmp_path / "folder" / "sealed"
    sealed.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).is_dir() and Path(path) != sealed)  # also for root
    with pytest.raises(ValueError, match="--output=.* cannot be written"):
        sample.main(["--out_dir=none", f"--output={tmp_path / name}"])
    with pytest.raises(ValueError, match="no checkpoint"):
        sample.main(["--out_dir=none", f"--output={tmp_path / 'folder' / 'x.jsonl'}"])
    assert list((tmp_path / "folder").iterdir()) == [sealed]


def test_a_line_of_prompts_that_cannot_be_encoded_is_named(out_dir, tmp_path):
    (tmp_path / "p.txt").write_text("宝玉\n\nz\n", encoding="utf-8")
    with pytest.raises(ValueError, match="p.txt: line 3: .* not in the vocabulary"):
        sample.main([f"--out_dir={out_dir}", f"--prompts={tmp_path / 'p.txt'}"])


def test_a_line_of_prompts_that_is_no_prompt_is_named(out_dir, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "宝"}\n\n{"text": "玉"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 3"):
        sample.main([f"--out_dir={out_dir}", f"--prompts={tmp_path / 'p.jsonl'}"])


def test_the_script_writes_utf8_whatever_the_consoles_encoding(out_dir):
    command = [sys.executable, str(ROOT / "sample.py"), f"--out_dir={out_dir}", "--start=宝玉", "--num_samples=1"]
    process = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert process.returncode == 0, process.stderr
    assert process.stdout.decode("utf-8").startswith("宝玉")
    refused = subprocess.run([*command[:-2], "--start=Q"], capture_output=True, text=True, encoding="utf-8")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr


class Full(io.BytesIO):
    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("output", ["--output=/dev/full", "standard output"])
def test_a_full_disk_is_one_clear_error(out_dir, monkeypatch, output):
    options = [output] if output.startswith("--") else []
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(Full()))
    with pytest.raises(ValueError, match=f"{output} cannot be written: No space left"):
        sample.main([f"--out_dir={out_dir}", "--device=cpu", "--max_new_tokens=5", *options])


# ---- tokenizers of other people's folders ----


def test_a_text_ends_at_any_of_several_ids(tmp_path, capsys, dictate):
    tokenizer = JsonTokenizer(MAKERS["Metaspace BPE, Llama-2's"]().to_str(), ends=[2, 400])
    save(tmp_path, tokenizer, tokenizer.vocab_size)
    the = tokenizer.encode("the").tolist()
    for end in (2, 400):
        dictate([*the, end, *the * 50])
        (found,) = records(tmp_path, capsys, "--start=a", "--num_samples=1", "--output=-", "--temperature=0")
        assert (found["finish"], found["num_tokens"]) == ("end", len(the) + 1)
        assert found["text"] == " the" + ("" if end == 2 else tokenizer.token_bytes(400).decode())


def test_what_is_held_at_the_end_is_shown_and_searched_for_stop_strings(tmp_path, capsys, dictate):
    """Bytes in a row are decoded together, once the row is over."""
    tokenizer = JsonTokenizer(MAKERS["Metaspace BPE, Llama-2's"]().to_str(), ends=[2])
    save(tmp_path, tokenizer, tokenizer.vocab_size)
    ids = [3 + byte for byte in "€ 😀.".encode()]
    options = ["--start=a", "--num_samples=1", "--output=-", "--temperature=0", f"--max_new_tokens={len(ids)}"]
    for stop, expected, finish in (("", "€ 😀.", "length"), ("😀", "€ ", "stop"), ("x", "€ 😀.", "length")):
        dictate(ids)
        (found,) = records(tmp_path, capsys, *options, f"--stop={stop}")
        assert (found["text"], found["finish"]) == (expected, finish)


@pytest.mark.parametrize("name", ["Metaspace BPE, Llama-2's", "WordPiece, cased"])
def test_prompts_of_white_space_are_the_librarys(tmp_path, capsys, name):
    """Token healing takes no space away that the tokenizer put there, and leaves tokens without bytes alone."""
    library = MAKERS[name]()
    tokenizer = JsonTokenizer(library.to_str(), ends=[2])
    assert sample.Beginning(tokenizer, "  the  ").prompt == "  the  "
    for prompt in ("\n", " ", "the "):
        beginning = sample.Beginning(tokenizer, prompt) if library.encode(prompt).ids else None
        if beginning:
            assert prompt.endswith(beginning.healed)
            kept = tokenizer.decode(beginning.ids.tolist())
            assert beginning.healed or kept.strip() == prompt.strip()

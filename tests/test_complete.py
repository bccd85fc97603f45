"""complete.py: suggestions against a naive loop, the cache across edits, the editor on a screen."""

import io
import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import MAKERS
from tokenizers import processors

import complete
from benchmarks import suggestions as bench
from checkpoints.build import model_args_of
from checkpoints.file import save_checkpoint
from completion import MAX_BYTES, MIN_CONFIDENCE, textfile
from completion.completer import (
    Cancelled,
    Completer,
    Suggestion,
    apart,
    load_completer,
    without_overlap,
)
from completion.editor import Editor, Highlighter, Worker, edit, find_lexer
from completion.textfile import TextFile
from data.bpe import CODE_PATTERN
from data.dataset import DatasetWriter
from data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, JsonTokenizer
from inference.healing import BACK, PrefixIndex
from inference.pack import PackedLinear, can_pack
from inference.quantize import Int8Linear
from model import GPT, GPTConfig
from training.optim import make_optimizer

ROOT = Path(__file__).resolve().parents[1]
CODE = '''import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

def print_hello_world():
    """Print hello world."""
    print("hello world")
    return None

X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2)
'''


def learn(tokenizer, steps: int) -> GPT:
    """A small model that knows the blocks of CODE by heart, in any order."""
    generator = torch.Generator().manual_seed(0)
    config = GPTConfig(block_size=192, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=4, n_embd=64, pos="rope")
    model = GPT(config, generator)
    blocks, ids = np.array(CODE.rstrip().split("\n\n")), []
    rng = np.random.default_rng(0)
    for _ in range(100):
        ids += [tokenizer.eot, *tokenizer.encode("\n\n".join(rng.permutation(blocks)) + "\n").tolist()]
    return fit(model, torch.tensor(ids), steps, 65, generator)


def fit(model: GPT, ids: torch.Tensor, steps: int, width: int, generator: torch.Generator) -> GPT:
    """Trained on random windows of `width` ids."""
    optimizer = make_optimizer(model, 0.01, 0.0, (0.9, 0.95), muon_learning_rate=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["max_lr"] * min(1, step / 10) * (1 - step / steps)
        starts = torch.randint(len(ids) - width, (4, 1), generator=generator)
        window = ids[starts + torch.arange(width)]
        _, loss = model(window[:, :-1], window[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def learned() -> dict:
    tokenizers = {"byte": ByteTokenizer(eot=255), "bpe": BPETokenizer.train([CODE] * 20, 330, words=CODE_PATTERN)}
    return {kind: (learn(each, 150 if kind == "byte" else 80), each) for kind, each in tokenizers.items()}


@pytest.fixture(params=["byte", "bpe"])
def completer(learned, request) -> Completer:
    return Completer(*learned[request.param])


@pytest.fixture
def byte_completer(learned) -> Completer:
    return Completer(*learned["byte"])


@pytest.fixture(scope="module")
def out_dir(learned, tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("run"), *learned["bpe"])


def test_threads_are_as_many_as_asked_for_whatever_the_quota(out_dir, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("system.cpu.cpu_quota", lambda: 1.0)
    try:
        complete.main([f"--out_dir={out_dir}", "--device=cpu", "--prompt=import", "--threads=2"])
        assert apart(torch.get_num_threads) == 2  # a new thread's, as the editor's
    finally:
        torch.set_num_threads(before)


def save(folder: Path, model: GPT, tokenizer, **config) -> Path:
    state = {"model": model.state_dict(), "model_args": model_args_of(model.config), "tokenizer": tokenizer.to_json()}
    save_checkpoint(folder / "ckpt.pt", state | {"config": config})
    return folder


def random_model(vocab_size: int = 256, block_size: int = 64, scale: float = 30.0) -> GPT:
    """An untrained model, its predictions sharpened by `scale`."""
    config = GPTConfig(block_size=block_size, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=16, tie_weights=False)
    model = GPT(config, torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model


def last(completer: Completer, before: str, **options) -> Suggestion:
    *_, found = completer.suggest(before, **options)
    return found


def probabilities(completer: Completer, ids: list[int]) -> list[float]:
    with torch.no_grad():
        logits = completer.model(torch.tensor([ids]))[0][0, -1, : len(completer.bytes)]
    return logits.double().softmax(dim=0).tolist()


# ---- suggestions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before, expected",
    [
        ("import num", "py as np"),
        ("import numpy as", " np"),
        ("import pandas ", "as pd"),
        ("X_train, X_test, y_train, y_t", "est = train_test_split(X, y, tes"),
        ('def print_hello_world():\n    """Print hello world."""\n    p', 'rint("hello world")'),
        ("import numpy as np", ""),
    ],
)
def test_prompts_like_the_users(completer, before, expected):
    found = last(completer, before, min_confidence=0.5)
    assert found.text == expected and found.done
    assert found.confidence >= 0.5 or not expected


def naive_suggestion(completer: Completer, before: str, max_bytes: int, min_confidence: float) -> tuple[str, float]:
    """Every prefix of the greedy continuation, without cache or early stop; for a byte tokenizer."""
    ids, text, p, prefixes = completer.context(before), b"", 1.0, []
    while len(text) < max_bytes:
        row = probabilities(completer, ids)
        id = int(np.argmax(row))
        p *= row[id]
        if id in (10, 13, 255) or id > 127:  # end of line or text, or not ASCII
            break
        text, ids = text + bytes([id]), [*ids, id]
        prefixes.append((len(text) * p, text.decode(), p))
    _, text, p = max([prefix for prefix in prefixes if prefix[2] >= min_confidence], default=(0, "", 0.0))
    return text, p


@pytest.mark.parametrize("max_bytes, min_confidence", [(32, 0.0), (32, 0.6), (5, 0.2)])
def test_the_suggestion_has_the_largest_length_times_probability_of_all_greedy_prefixes(
    byte_completer, max_bytes, min_confidence
):
    untrained = Completer(random_model(block_size=128), ByteTokenizer())
    untrained.model.lm_head.weight.data[128:] = 0.0
    lengths = set()
    for completer in (byte_completer, untrained):
        for end in range(1, len(CODE), 37):
            found = last(completer, CODE[:end], max_bytes=max_bytes, min_confidence=min_confidence)
            text, p = naive_suggestion(completer, CODE[:end], max_bytes, min_confidence)
            assert (found.text, found.confidence) == (text, pytest.approx(p, rel=1e-3)), repr(CODE[:end])
            lengths.add(len(text))
    assert len(lengths) >= 3


def test_what_is_shown_first_begins_the_final_suggestion(completer):
    for end in range(1, len(CODE), 17):
        *early, final = completer.suggest(CODE[:end], min_confidence=0.1)
        assert final.done and not any(found.done for found in early)
        assert len(early) == bool(final.text)
        assert all(found.text and final.text.startswith(found.text) for found in early)


def test_typing_the_suggestion_never_changes_it(completer):
    """Not even inside a token, whose typed part the tokenizer then spells with other tokens."""
    tried = 0
    for before in ("import ", "import numpy a", "X_train,", "def print", "def print_hello_world():\n    "):
        text = last(completer, before).text
        for typed in range(1, len(text)):
            tried += 1
            assert last(completer, before + text[:typed]).text.startswith(text[typed:])
    assert tried > 50


def test_the_first_token_is_weighed_over_all_boundaries_between_tokens(learned):
    model, tokenizer = learned["bpe"]
    healed = 0
    for end in range(1, len(CODE), 7):
        completer = Completer(model, tokenizer)
        before = CODE[:end]
        ids, choices, total = completer.context(before), {}, 0.0
        for boundary in range(max(1, len(ids) - BACK), len(ids) + 1):
            spelled = b"".join(completer.bytes[id] for id in ids[boundary:])
            path = 1.0
            for k in range(max(1, len(ids) - BACK), boundary):
                path *= probabilities(completer, ids[:k])[ids[k]]
            for id, p in enumerate(probabilities(completer, ids[:boundary])):
                token = completer.bytes[id]
                if boundary == len(ids) or token.startswith(spelled) and token != spelled:
                    total += path * p
                    end_of_line = b"\n" in token and b"\n" not in spelled
                    key = boundary, token.partition(b"\n")[0] + b"\n" if end_of_line else id
                    choices[key] = choices.get(key, 0.0) + path * p
        boundary, key = max(choices, key=choices.get)
        piece, p = next(completer.greedy(before), (b"", None))
        if p is None:  # the text ends here
            assert key == completer.tokenizer.eot
            continue
        spelled = b"".join(completer.bytes[id] for id in ids[boundary:])
        expected = key if isinstance(key, bytes) else completer.bytes[key]
        assert (spelled + piece).startswith(expected) and len(piece) >= len(expected) - len(spelled)
        assert p == pytest.approx(choices[boundary, key] / total, rel=1e-3)
        healed += boundary < len(ids)
    assert healed > 10


def test_the_prefix_index_finds_what_a_pass_over_the_vocabulary_does():
    table = [b"", b"a", b"ab", b"b", b"abc", b"a", b"\xff", b"\xff" * 9, b"a\xff", b"", b"ab"]
    index = PrefixIndex(table)
    for text in (b"", b"a", b"ab", b"abcd", b"b", b"c", b"\xff", b"\xff" * 8, b"a\xff\xff"):
        begun = {id for id, token in enumerate(table) if token.startswith(text)}
        assert set(index.longer(text).tolist()) == {id for id in begun if table[id] != text}
        spelled = {id for id, token in enumerate(table) if token and text.startswith(token)}
        found = index.compatible(text).tolist()
        assert set(found) == begun | spelled and len(found) == len(set(found))
    boundaries = [(boundary, typed, set(ids.tolist())) for boundary, typed, ids in index.boundaries([3, 1, 3, 1, 2, 1])]
    assert boundaries == [(5, b"a", {2, 4, 8, 10})]
    assert [boundary for boundary, _, _ in index.boundaries([1, 1, 3])] == [1]
    repeated = PrefixIndex([b"a", b"a" * 9]).boundaries([0] * 7)
    assert [(boundary, typed) for boundary, typed, _ in repeated] == [(7 - n, b"a" * n) for n in (1, 2, 3, 4)]
    assert not [*index.boundaries([1])] and not [*index.boundaries([])]


def test_tokens_that_end_the_line_at_the_same_place_count_as_one():
    """Each of two newline tokens is less probable than 'x', but together they are more probable."""
    tokenizer = BPETokenizer.train(["a:\n  b\n a:\n    c" * 30], 270, words=CODE_PATTERN)
    completer = Completer(random_model(tokenizer.vocab_size), tokenizer)
    ends = [id for id, text in enumerate(completer.bytes) if text.startswith(b"\n")]
    assert len(ends) >= 2
    row = torch.full((tokenizer.vocab_size,), 0.0)
    row[ends[0]], row[ends[1]], row[ord("x")] = 0.25, 0.35, 0.4
    assert completer.likeliest(row, by_line=True)[:2] == (ends[1], pytest.approx(0.6))
    assert completer.likeliest(row, by_line=False)[:2] == (ord("x"), pytest.approx(0.4))


@pytest.mark.parametrize("text, max_bytes, expected", [("汉", 32, 10), ("😀", 32, 8), ("é", 5, 2), ("汉", 2, 0)])
def test_a_suggestion_has_whole_characters_only(monkeypatch, text, max_bytes, expected):
    cycle = text.encode()

    def forced(model, idx, targets=None, cache=None):
        logits = torch.full((1, 1, 256), -100.0)
        following = int(idx[0, -1]) == cycle[-1] or int(idx[0, -1]) not in cycle
        logits[0, 0, cycle[0] if following else cycle[cycle.index(int(idx[0, -1])) + 1]] = 100
        cache.length += idx.size(1)
        return logits, None

    monkeypatch.setattr(GPT, "forward", forced)
    pieces = list(Completer(random_model(), ByteTokenizer()).suggest("a", max_bytes=max_bytes))
    assert pieces[-1].text == text * expected
    assert all(set(piece.text) <= {text} for piece in pieces)


def test_nothing_follows_a_character_that_max_bytes_cut_off(monkeypatch):
    completer = Completer(random_model(), ByteTokenizer())
    monkeypatch.setattr(completer, "greedy", lambda *args: iter([("é".encode(), 1.0)] * 3 + [(b"a", 1.0)]))
    assert last(completer, "x", max_bytes=5).text == "éé"


def test_where_the_line_ends_the_model_gives_the_next_ones_indentation(completer):
    assert last(completer, "def print_hello_world():").indent == "    "
    assert last(completer, 'def print_hello_world():\n    """Print hello world."""').indent == "    "
    assert last(completer, '    print("hello world")\n    return None').indent == ""
    assert last(completer, "import num").indent is None


@pytest.mark.parametrize(
    "text, suffix, expected",
    [
        ("x)", ")", "x"),
        ("x)", "", "x)"),
        ("a, b)", ") + 1", "a, b"),
        ("ab", "abc", ""),
        ("x", "\nx", "x"),
        ("return", "\n  return\n", ""),
        ("return", ")\nreturn", "return"),
        ("return a", "\nreturn", "return a"),
    ],
)
def test_what_follows_the_cursor_already_is_not_suggested_again(text, suffix, expected):
    assert without_overlap(text, suffix) == expected


# ---- context and cache -----------------------------------------------------------------------------------


def count_tokens(completer: Completer, monkeypatch) -> list[int]:
    """A list to which every pass through the model appends its number of tokens."""
    passes, forward = [], completer.model.forward

    def counted(idx, *args, **kwargs):
        passes.append(idx.size(1))
        return forward(idx, *args, **kwargs)

    monkeypatch.setattr(completer.model, "forward", counted)
    return passes


def edits(rng: np.random.Generator, text: str, n: int):
    """Yields the text before the cursor while somebody types, deletes, jumps and pastes."""
    cursor = 10
    for _ in range(n):
        kind = rng.choice(["type", "delete", "jump", "paste"], p=[0.6, 0.2, 0.1, 0.1])
        if kind == "type":
            text, cursor = text[:cursor] + "abc \n(:"[rng.integers(7)] + text[cursor:], cursor + 1
        elif kind == "delete" and cursor:
            text, cursor = text[: cursor - 1] + text[cursor:], cursor - 1
        elif kind == "jump":
            cursor = int(rng.integers(len(text) + 1))
        elif kind == "paste":
            text, cursor = text[:cursor] + CODE[:150] + text[cursor:], cursor + 150
        yield text[:cursor]


def test_after_any_edit_the_probabilities_are_those_of_a_model_without_cache(completer):
    for before in edits(np.random.default_rng(5), CODE, 40):
        last(completer, before, min_confidence=0.3)
        ids = completer.context(before)
        assert len(ids) <= completer.room
        assert completer.after(ids).tolist() == pytest.approx(probabilities(completer, ids), abs=1e-4)


def test_counts_of_the_training_text_are_mixed_in(learned, tmp_path, capsys):
    model, tokenizer = learned["byte"]
    with DatasetWriter(tmp_path / "data", tokenizer, {"name": "test"}) as writer:
        for split in ("train", "val"):
            writer.write(split, tokenizer.encode("import numbers as nn\n" * 3), 63)
    out_dir = save(tmp_path, model, tokenizer, dataset=str(tmp_path / "data"))
    mixed, _ = load_completer("resume", str(out_dir), device="cpu", quantize="none", dtype="float32", ngram=0.6)
    for before in edits(np.random.default_rng(6), CODE, 20):
        last(mixed, before, min_confidence=0.3)
        ids = mixed.context(before)
        counts = mixed.ngram.probabilities([ids])[0]
        expected = 0.4 * np.array(probabilities(mixed, ids)) + 0.6 * counts[: len(mixed.bytes)]
        assert mixed.after(ids).tolist() == pytest.approx(expected, abs=1e-4)
    command = [f"--out_dir={out_dir}", "--device=cpu", "--prompt=import num"]
    for options in ([], ["--ngram=0.9"]):
        assert complete.main(command + options) == 0
    alone, together = capsys.readouterr().out.splitlines()
    assert alone == "py as np" and together.startswith("bers as ")


def test_only_what_changed_is_encoded_again(byte_completer, monkeypatch):
    passes = count_tokens(byte_completer, monkeypatch)
    before = CODE[: CODE.index("int_hello")]
    found = last(byte_completer, before)
    prompt, steps = sum(passes[:2]), passes[2:]
    assert prompt == len(byte_completer.context(before)) and set(steps) == {1}
    passes.clear()
    assert last(byte_completer, before) == found and passes == []  # asked again
    last(byte_completer, before + "i")  # the suggestion stays, and the cache holds it
    assert found.text.startswith("int_hello") and sum(passes) <= 1
    passes.clear()
    last(byte_completer, before + "q", min_confidence=0.99)  # another character: only it and what follows it
    assert set(passes) == {1}
    passes.clear()
    assert (
        last(byte_completer, before).text == found.text and len(passes) <= 2
    )  # back again: the old continuation in one pass


def test_the_context_is_whole_lines_and_loses_half_when_it_is_full(completer):
    text = "".join(f"value_{i} = {i}\n" for i in range(400))
    starts = []
    for end in range(1, len(text), 11):
        ids = completer.context(text[:end])
        assert completer.start == 0 or text[completer.start - 1] == "\n"
        expected = text[completer.start : end]
        front = [completer.tokenizer.eot] if completer.start == 0 else []
        assert ids == front + completer.tokenizer.encode(expected).tolist()
        assert len(ids) <= completer.room
        starts.append(completer.start)
    dropped = [completer.tokenizer.encode(text[a:b]) for a, b in pairwise(sorted(set(starts)))]
    assert len(dropped) > 5 and min(map(len, dropped)) > completer.room // 3


def test_a_line_longer_than_the_context_is_cut_and_still_completed(completer):
    text = "x = [" + "1234, " * 500
    ids = completer.context(text)
    assert completer.room // 2 < len(ids) <= completer.room
    assert text.endswith(completer.tokenizer.decode(ids))
    starts = {completer.context(text + "5" * n) and completer.start for n in range(completer.room // 4)}
    assert len(starts) <= 2


@pytest.mark.parametrize("options, capability, expected", [
    ({}, "AVX512", True), ({}, "AVX2", True), ({}, "DEFAULT", False), ({"quantize": "int8"}, "DEFAULT", True),
    ({"quantize": "none"}, "AVX512", False), ({"dtype": "float32"}, "AVX512", False),
])  # fmt: skip
def test_weights_are_rounded_where_that_is_fast_or_asked_for(out_dir, monkeypatch, options, capability, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("inference.pack.PACKED_SIZES", {torch.float32: 0, torch.bfloat16: 0})
    loaded, _ = load_completer("resume", str(out_dir), device="cpu", **options)
    kinds = {type(module) for module in loaded.model.modules()}
    assert (Int8Linear in kinds) == expected
    assert (PackedLinear in kinds) == (not expected and can_pack(loaded.model.transformer.wte.weight))


def test_at_a_terminal_a_note_explains_that_nothing_is_suggested(out_dir, capsys, monkeypatch):
    command = [f"--out_dir={out_dir}", "--device=cpu", "--prompt=import nu", "--min_confidence=1.0"]
    for is_terminal in (False, True):
        monkeypatch.setattr("sys.stdout.isatty", lambda is_terminal=is_terminal: is_terminal)
        assert complete.main(command) == 0
        out, err = capsys.readouterr()
        assert out == "\n" and ("--min_confidence" in err) == is_terminal


def test_a_shorter_context_suggests_the_same_of_a_short_text(out_dir, capsys):
    for options in ([], ["--block_size=32"]):
        assert complete.main([f"--out_dir={out_dir}", "--device=cpu", "--prompt=import num", *options]) == 0
    assert len(set(capsys.readouterr().out.split("\n")[:2])) == 1
    with pytest.raises(ValueError, match="block_size=100000 must be from 1 to the model's"):
        complete.main([f"--out_dir={out_dir}", "--device=cpu", "--prompt=import", "--block_size=100000"])


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_number_formats_have_short_names(out_dir, name, capsys):
    long = {"fp32": "float32", "bf16": "bfloat16"}[name]
    for dtype in (name, long):
        options = [f"--out_dir={out_dir}", "--device=cpu", f"--dtype={dtype}", "--prompt=import num"]
        assert complete.main(options) == 0
    assert len(set(capsys.readouterr().out.split("\n")[:2])) == 1


def test_the_first_id_is_what_began_the_training_windows(learned, tmp_path):
    model, tokenizer = learned["byte"]
    by_line, _ = load_completer("resume", str(save(tmp_path, model, tokenizer, sampling="line")), device="cpu")
    long = "a = 1\n" * 100
    assert by_line.context("ab") == [0, 97, 98] and by_line.context("") == [0]
    assert by_line.context(long)[:4] == [0, *b"a ="]
    plain = Completer(model, tokenizer)
    assert plain.context("ab") == [255, 97, 98] and plain.context("") == [255]
    assert plain.context(long)[:3] == [*b"a ="]
    assert Completer(model, ByteTokenizer()).context("") == []
    assert last(Completer(model, ByteTokenizer()), "") == Suggestion(done=True)


def test_a_cancelled_request_stops_between_passes_and_leaves_the_cache_right(byte_completer, monkeypatch):
    before = CODE[:150]
    expected = last(Completer(byte_completer.model, byte_completer.tokenizer), before)
    passes = count_tokens(byte_completer, monkeypatch)
    for limit in (0, 1, 2, 4):
        passes.clear()
        with pytest.raises(Cancelled):
            list(byte_completer.suggest(before, cancelled=lambda n=limit: len(passes) >= n))
        assert len(passes) == limit
    found = last(byte_completer, before)
    assert (found.text, found.confidence) == (expected.text, pytest.approx(expected.confidence))


def test_the_worker_answers_the_newest_request_and_abandons_the_one_in_progress():
    begun, released, answers = threading.Event(), threading.Event(), queue.Queue()

    class Slow:
        device = torch.device("cpu")

        def suggest(self, before, cancelled, after):
            yield Suggestion(before + "1")
            begun.set()
            assert released.wait(600)
            if cancelled():
                raise Cancelled
            if before == "bad":
                raise RuntimeError("out of memory")
            yield Suggestion(before + "2", done=True)

    threads = set(threading.enumerate())
    worker = Worker(Slow(), lambda before, found: answers.put((before, getattr(found, "text", str(found)))))
    worker.ask("a")
    assert begun.wait(600)
    worker.ask("b")
    worker.ask("c")
    released.set()
    assert [answers.get(timeout=600) for _ in range(3)] == [("a", "a1"), ("c", "c1"), ("c", "c2")]
    worker.ask("bad")
    assert [answers.get(timeout=600) for _ in range(2)] == [("bad", "bad1"), ("bad", "out of memory")]
    worker.ask("d")
    assert [answers.get(timeout=600) for _ in range(2)] == [("d", "d1"), ("d", "d2")]
    worker.stop()
    assert set(threading.enumerate()) <= threads and answers.empty()


# ---- commands --------------------------------------------------------------------------------------------


def request(completer: Completer, line: str | dict) -> dict:
    line = line if isinstance(line, str) else json.dumps(line)
    defaults = {"max_bytes": MAX_BYTES, "min_confidence": MIN_CONFIDENCE}
    return complete.answer_request(completer, line.encode("utf-8", "surrogateescape"), **defaults)


def test_a_request_of_an_editor_is_answered_by_its_rules(completer):
    reply = request(completer, {"prompt": "import numpy as", "id": [7]})
    assert reply == {"id": [7], "completion": " np", "confidence": pytest.approx(reply["confidence"])}
    assert 0.5 < reply["confidence"] <= 1
    assert request(completer, {"prompt": "import num", "max_bytes": 3})["completion"] == "py "
    assert request(completer, {"prompt": 'print("hello world', "suffix": '")'})["completion"] == ""
    assert request(completer, {"prompt": "import nu", "min_confidence": 1.0})["completion"] == ""
    assert request(completer, {"prompt": "import numpy as np\r\nimport pandas as"})["completion"] == " pd"
    one = request(completer, {"prompt": "import num", "max_tokens": 1})["completion"]
    assert one and "py as np".startswith(one)


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line is not JSON.*Expecting.*found: {$"),
        ("import numpy as", "line is not JSON.*found: import numpy as$"),
        ("[1]", "a JSON object"),
        ('{"text": "x"}', "prompt"),
        ('{"prompt": 5}', "prompt is 5"),
        ('{"prompt": "x", "max_bytes": 0}', "max_bytes is 0"),
        ('{"prompt": "x", "max_tokens": true}', "max_tokens is True"),
        ('{"prompt": "x", "max_bytes": 1.5}', "max_bytes is 1.5, expected a whole number"),
        ('{"prompt": "x", "min_confidence": "1"}', "min_confidence is '1', expected a number"),
        ('{"prompt": "x", "min_confidence": 7}', "min_confidence is 7, expected a probability"),
        ('{"prompt": "x", "min_confidence": -0.1}', "min_confidence is -0.1, expected a probability"),
        ('{"prompt": "x", "min_confidence": NaN}', "min_confidence is nan, expected a probability"),
        ('{"prompt": "x", "temperature": 1}', "'temperature'"),
        ('{"prompt": "\\ud800"}', r"U\+D800"),
        ('{"prompt": "\udcff"}', "line is not JSON.*can't decode"),
        ("[" * 100_000, r"line is not JSON.*(recursion|nested).*found: \[{40}$"),
    ],
)
def test_a_bad_request_is_answered_by_an_error_in_one_line(byte_completer, line, message):
    reply = request(byte_completer, line)
    assert list(reply) == ["error"] and re.search(message, reply["error"]) and "\n" not in reply["error"]
    assert request(byte_completer, {"prompt": "import numpy as"})["completion"] == " np"


def test_a_character_that_the_tokenizer_lacks_is_an_error_that_names_it():
    completer = Completer(random_model(vocab_size=3), CharTokenizer("ab\n"))
    assert "'Q'" in request(completer, {"prompt": "aQ", "id": 1})["error"]
    assert "completion" in request(completer, {"prompt": "ab"})


def test_a_character_that_the_tokenizer_lacks_does_no_harm_outside_the_context():
    completer = Completer(random_model(vocab_size=3), CharTokenizer("ab\n"))
    before = "Q" + "ab" * completer.room
    ids = completer.context(before)
    assert ids and ids == completer.tokenizer.encode(before[-len(ids) :]).tolist()
    assert "completion" in request(completer, {"prompt": before})
    assert "'Q'" in request(completer, {"prompt": "ab" * 99 + "Q"})["error"]


def test_jsonl_prompt_and_stdin_from_the_command_line(out_dir, capsys, monkeypatch):
    lines = b'{"prompt": "import numpy as", "id": "\xe6\xb1\x89"}\n\nnonsense\n{"prompt": "import pandas as", "id": 2}'
    command = [sys.executable, str(ROOT / "complete.py"), f"--out_dir={out_dir}", "--device=cpu"]
    process = subprocess.run([*command, "--jsonl"], input=lines, capture_output=True)
    assert process.returncode == 0 and process.stderr == b""
    replies = [json.loads(line) for line in process.stdout.decode("utf-8").splitlines()]
    assert [reply.get("completion") for reply in replies] == [" np", None, " pd"]
    assert [reply.get("id") for reply in replies] == ["汉", None, 2] and "error" in replies[1]

    options = [f"--out_dir={out_dir}", "--device=cpu"]
    assert complete.main([*options, "--prompt", "import numpy as"]) == 0
    assert complete.main([*options, "--prompt=import num"]) == 0
    assert capsys.readouterr().out == " np\npy as np\n"
    with open(os.devnull, "rb") as empty:
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": empty}))
        assert complete.main([*options, "--stdin", "--min_confidence=1"]) == 0
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--out_dir=nowhere", "--prompt=x"], "no checkpoint: nowhere"),
        ([], "needs a terminal.*--prompt"),
        (["--prompt=x", "--jsonl"], "--prompt and --jsonl cannot be combined"),
        (["--file=x.py", "--stdin"], "--stdin and --file"),
        (["--prompt=x", "--min_confidence=2"], "min_confidence=2"),
        (["--prompt=x", "--max_bytes=0"], "max_bytes=0"),
        (["--prompt=x", "--device=tpu"], "device=tpu"),
        (["--promt=x"], "nearest is 'prompt'"),
    ],
)
def test_wrong_usage_is_refused_in_one_line(options, message, monkeypatch):
    with open(os.devnull, encoding="utf-8") as empty:
        monkeypatch.setattr(sys, "stdin", empty)
        with pytest.raises(ValueError, match=message) as caught:
            complete.main(options)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    with pytest.raises(ValueError, match="prompt_toolkit: pip install prompt_toolkit"):
        complete.main([])


def complete_stdin(data: bytes, out_dir: Path, monkeypatch) -> list[str]:
    """The texts for which complete.py --stdin asks for a suggestion."""
    asked = []

    def suggestion(completer, before, suffix, **options):
        asked.append(before)
        return Suggestion()

    monkeypatch.setattr(complete, "whole_suggestion", suggestion)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
    assert complete.main([f"--out_dir={out_dir}", "--device=cpu", "--stdin"]) == 0
    return asked


def test_standard_input_is_utf8_of_which_a_byte_order_mark_is_no_part(out_dir, monkeypatch):
    assert complete_stdin("汉".encode("utf-8-sig"), out_dir, monkeypatch) == ["汉"]
    with pytest.raises(ValueError, match=r"standard input is not UTF-8 text \(byte 0xba at offset 0\).*iconv -f GBK"):
        complete_stdin("汉".encode("gbk"), out_dir, monkeypatch)


def test_an_unknown_language_is_refused_before_the_model_is_loaded(monkeypatch):
    for name in ("stdin", "stderr"):
        monkeypatch.setattr(sys, name, type("Terminal", (), {"isatty": lambda self: True})())
    with pytest.raises(ValueError, match="language=pyhton is unknown"):
        complete.main(["--out_dir=nowhere", "--language=pyhton"])


# ---- the editor ------------------------------------------------------------------------------------------


class Scripted:
    """A completer with given suggestions for some texts before the cursor, or pairs of those and the texts after."""

    device = torch.device("cpu")

    def __init__(self, suggestions: dict[str | tuple[str, str], Suggestion | Exception]):
        self.suggestions = suggestions
        self.infill = any(isinstance(key, tuple) for key in suggestions)

    def suggest(self, before, after, **options):
        found = self.suggestions.get((before, after) if self.infill else before, Suggestion(done=True))
        if isinstance(found, Exception):
            raise found
        yield found


def sure(text: str = "", **more) -> Suggestion:
    return Suggestion(text, 0.9, done=True, **more)


def use_editor(suggestions: dict, steps, text: str = "") -> tuple[str, int]:
    """Opens an editor with `text` and, for each step (keys, expected ghost or None = any), presses the keys and waits
    until the ghost is as expected and the worker has answered. Returns (final text, exit status)."""
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput
    from pygments.lexers import PythonLexer

    with create_pipe_input() as keyboard:
        editor = Editor(Scripted(suggestions), text, PythonLexer, input=keyboard, output=DummyOutput())
        drawn, failures = queue.Queue(), []
        editor.app.after_render += lambda _: drawn.put((editor.ghost, editor.state, editor.before))

        def press() -> None:
            for keys, expected in [("", None), *steps]:
                keyboard.send_text(keys)
                state, deadline = (None, "...", ""), time.monotonic() + 600
                while (
                    state[1] == "..."
                    or expected is not None
                    and state[0] != expected[0]
                    or (expected and not state[2].endswith(expected[1]))
                ):
                    try:
                        state = drawn.get(timeout=max(0, deadline - time.monotonic()))
                    except queue.Empty:
                        failures.append((keys, expected, state))
                        keyboard.send_text("\x04")
                        return
            keyboard.send_text("\x04")

        typist = threading.Thread(target=press)
        typist.start()
        status = editor.run()
        typist.join()
    assert not failures
    return editor.text, status


def test_keys_act_on_the_ghost():
    suggestions = {
        "im": sure("port numpy as np"),
        "import": sure(" numpy as np"),
        "import numpy": sure(" as np"),
        "import numpy as np": sure(indent=""),
        "import numpy as np\n": sure("x"),
    }
    text, status = use_editor(suggestions, [
        ("im", ("port numpy as np", "im")),
        ("\x1bf", (" numpy as np", "import")),  # Alt-F: a word
        ("\x1b[1;5C", (" as np", "import numpy")),  # Ctrl-Right
        ("\t", ("", "import numpy as np")),
        ("\r", ("x", "\n")),
        ("\x7f", ("", "\n")),  # dismissed; the newline stays
        ("\x7f", ("", "np")),  # now it goes
        ("!", ("", "np!")),
    ])  # fmt: skip
    assert (text, status) == ("import numpy as np!", 0)


def test_a_word_of_a_ghost_of_blanks_is_the_blanks():
    twice = "\x1b[1;5C" * 2  # read together, before the first is answered: blanks alone are not shown
    steps = [("im", ("port  ", "im")), (twice, ("", "import  "))]
    assert use_editor({"im": sure("port  ")}, steps) == ("import  ", 0)


def test_typing_what_the_ghost_says_leaves_the_rest_of_it_at_once():
    """Nothing is suggested for "de", so its ghost text is what remains of that for "d"."""
    suggestions = {"d": sure("ef main():"), "de": RuntimeError("no idea"), "dx": sure()}
    ghosts = []
    plain = Editor.follow

    def spy(editor):
        plain(editor)
        ghosts.append((editor.before, editor.ghost))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Editor, "follow", spy)
        use_editor(suggestions, [("d", ("ef main():", "d")), ("e", ("", "de")), ("\x7fx", ("", "dx"))])
    assert ("de", "f main():") in ghosts and ("dx", "") in ghosts


@pytest.mark.parametrize(
    "line, indent, expected",
    [
        ("    return x", None, "    "),
        ("    return x", "", ""),
        ("if x:", None, "    "),
        ("\tif x:", None, "\t\t"),
        ("f(", None, "    "),
        ("if x:", "  ", "  "),
    ],
)
def test_enter_indents_as_the_model_says_or_as_the_line_before(line, indent, expected):
    text, _ = use_editor({line: sure(indent=indent)}, [(line.replace("\t", "\x1b[200~\t\x1b[201~"), ("", line)),
                                                       ("\rX", ("", "X"))])  # fmt: skip
    assert text == f"{line}\n{expected}X"


def test_a_long_text_is_highlighted_in_parts_as_it_would_be_as_a_whole():
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.document import Document
    from prompt_toolkit.lexers import PygmentsLexer
    from pygments.lexers import PythonLexer

    sizes = []

    class Counted(PythonLexer):
        def get_tokens_unprocessed(self, text, *args):
            sizes.append(len(text))
            return super().get_tokens_unprocessed(text, *args)

    functions = [f'def f{i}(x):\n    """One\n    two\n    """\n    return "{i}" + x\n' for i in range(400)]
    for text in ("\n".join(functions), "\n".join(functions[:9])):
        document = Document(text)
        expected = PygmentsLexer(PythonLexer).lex_document(document)
        found = Highlighter(Counted).lex_document(document)
        for number in (0, 7, 40, *range(0, document.line_count, 61), document.line_count - 1):
            assert found(number) == expected(number)
    sizes.clear()
    Highlighter(Counted).lex_document(Document("x = 1  # comment\n" * 60_000))(59_999)
    assert 0 < sum(sizes) < 20_000  # not a million


def test_a_line_of_white_space_is_left_empty_and_tab_without_ghost_indents():
    text, _ = use_editor({}, [("if x:\r", ("", "    ")), ("\r", ("", "\n    ")), ("\tx", ("", "x"))])
    assert text == "if x:\n\n        x"


def test_no_ghost_before_other_text_and_none_that_repeats_a_bracket():
    pairs = {"f(": sure("x)"), "f(x": sure("y"), "f(x) ": sure("abc")}
    left = "\x1b[D"
    text, _ = use_editor(pairs, [("()" + left * 2 + "f", ("", "f")), ("\x1b[C\x7f(", ("x", "f(")), ("\t", None)])
    assert text == "f(x)"
    text, _ = use_editor(pairs, [("f(x) b" + left + "\x7f ", ("", "f(x) "))])
    assert text == "f(x) b"


def test_a_model_that_fills_in_is_asked_between_two_texts_and_shows_its_ghost_before_any_text():
    pairs = {
        ("f(", " + b)\ng()"): sure("a"),
        ("f(a!", " + b)\ng()"): sure(" + b"),
        ("f(a!?", " + b)\ng()"): sure("c + b"),
    }
    start = "\x1b[A" + "\x01"  # the cursor begins at the text's end
    steps = [(start + "f(", ("a", "f(")), ("\t!", ("", "f(a!")), ("?", ("c", "f(a!?")), ("\t", ("", "c"))]
    text, _ = use_editor(pairs, steps, " + b)\ng()")
    assert text == "f(a!?c + b)\ng()"


def test_an_error_of_the_model_is_shown_and_typing_goes_on():
    suggestions = {"a": ValueError("no Q\nhere"), "ab": sure("c")}
    text, status = use_editor(suggestions, [("a", ("", "a")), ("b", ("c", "ab")), ("\t", ("", "abc"))])
    assert (text, status) == ("abc", 0)


def edit_file(path: Path | None, keys: str | bytes, language: str = "auto") -> int:
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as keyboard:
        keyboard.send_bytes(keys if isinstance(keys, bytes) else keys.encode())
        lexer = find_lexer(language, path and str(path), "pycode")
        return edit(Scripted({}), path, lexer, input=keyboard, output=DummyOutput())


@pytest.mark.parametrize("keys", ["\x0f", "\x1b#", "\x1bx", "\x1b\r", "\x1b[1;3A"])
def test_a_key_without_meaning_changes_nothing_and_the_editor_stays(tmp_path, keys):
    """Ctrl-O, Alt-#, which would accept the text as a command line does; Alt-X, Alt-Enter, Alt-Up."""
    assert edit_file(tmp_path / "x.py", f"a\r{keys}b\x04") == 0
    assert (tmp_path / "x.py").read_bytes() == b"a\nb"


def test_esc_pressed_twice_leaves(tmp_path):
    assert edit_file(tmp_path / "x.py", "a\x1b\x1bb\x04") == 0
    assert (tmp_path / "x.py").read_bytes() == b"a"


@pytest.mark.parametrize(
    "keys, text",
    [
        ("\x1a", "one two，"),
        ("\x1a\x1a", "one "),
        ("\x1a\x1a\x1a", ""),
        ("\x1a\x19", "one two，三四"),
        ("\x1a\x1a\x1a\x19\x19", "one two，"),
        ("\x1a\x1a!\x19", "one !"),
    ],
)
def test_a_step_of_undo_is_a_word_and_ctrl_y_redoes_it(capsys, keys, text):
    assert edit_file(None, f"one two，三四{keys}\x04") == 0
    assert capsys.readouterr().out == text + "\n" * bool(text)


def test_undo_keeps_as_many_steps_as_fit_a_limit(capsys, monkeypatch):
    monkeypatch.setattr("completion.editor.MAX_UNDO", 40)
    edit_file(None, "a b c d e f g h " + "\x1a" * 20 + "\x04")
    assert capsys.readouterr().out == "a b c d e f \n"  # two steps, of at most 17 characters


def test_a_suggestion_is_shown_before_closing_punctuation():
    left = "\x1b[D"
    text, _ = use_editor({"“好": sure("吧”")}, [("“”。" + left * 2 + "好", ("吧", "好")), ("\t", ("", "吧"))])
    assert text == "“好吧”。"


def test_deleting_what_follows_the_cursor_dismisses_the_ghost():
    """It was made for that text, and cut where that text repeats it."""
    delete, left = "\x1b[3~", "\x1b[D"
    text, _ = use_editor({"f(": sure("x)")}, [("f)" + left + "(", ("x", "f(")), (delete + "\t", None)])
    assert text == "f(  "  # as Tab does without a ghost


def test_tab_counts_the_columns_of_wide_characters():
    text, _ = use_editor({}, [("汉\tx", ("", "x"))])
    assert text == "汉  x"


@pytest.mark.parametrize(
    "file, dataset, name",
    [
        (None, "hongloumeng", "Text only"),
        (None, "pycode", "Python"),
        (None, "quickstart", "Python"),
        (None, "cppcode", "C++"),
        ("x.cpp", "pycode", "C++"),
        ("x", "hongloumeng", "Text only"),
    ],
)
def test_a_text_is_highlighted_by_the_files_name_else_the_dataset(file, dataset, name):
    assert find_lexer("auto", file, dataset).name == name


def test_files_keep_their_line_ends_and_ctrl_c_leaves_them_alone(tmp_path, capsys):
    path = tmp_path / "x.cpp"
    assert edit_file(path, "int x;\rint 汉;\x04") == 0
    assert path.read_bytes() == "int x;\nint 汉;".encode()
    path.write_bytes(b"a\r\nb\r\n")
    path.chmod(0o600)
    assert edit_file(path, "c\r\x1b") == 0
    assert path.read_bytes() == b"a\r\nb\r\nc\r\n" and path.stat().st_mode & 0o777 == 0o600
    assert edit_file(path, "lost?\x03") == 130
    assert path.read_bytes() == b"a\r\nb\r\nc\r\n"
    assert (tmp_path / "x.cpp.unsaved").read_bytes() == b"a\r\nb\r\nc\r\nlost?"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.cpp", "x.cpp.unsaved"]
    assert capsys.readouterr().out == ""
    path.write_bytes(b"a\r\nb\n")  # mixed line ends: nothing is written unless something was typed
    (tmp_path / "x.cpp.tmp").write_text("mine")
    assert edit_file(path, "\x1b") == 0 and path.read_bytes() == b"a\r\nb\n"
    assert edit_file(path, "c\x1b") == 0 and path.read_bytes() == b"a\nb\nc"
    assert (tmp_path / "x.cpp.tmp").read_text() == "mine"
    path.write_bytes(b"a\r\nb\r\nc\n")
    assert edit_file(path, "d\x1b") == 0 and path.read_bytes() == b"a\r\nb\r\nc\r\nd"
    assert edit_file(None, "x = 1\x04") == 0
    assert capsys.readouterr().out == "x = 1\n"
    assert edit_file(tmp_path / "new.py", "\x04") == 0 and not (tmp_path / "new.py").exists()


def test_a_file_that_cannot_be_written_is_printed(tmp_path, capsys, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(textfile, "write_source", full)
    with pytest.raises(ValueError, match="cannot write .*No space left"):
        edit_file(tmp_path / "x.py", "x = 1\x04")
    assert capsys.readouterr().out == "x = 1\n"  # ends the line, so the error has one of its own
    monkeypatch.setattr(textfile, "write_unsaved", full)
    with pytest.raises(ValueError, match="cannot write .*No space left"):
        edit_file(tmp_path / "x.py", "x = 1\x03")
    assert capsys.readouterr().out == "x = 1\n"


@pytest.mark.parametrize(
    "source, text, note",
    [
        (b"a\r\nb\nc\r\n", b"a\r\nb\r\nc\r\n!", "1 LF among 2 CRLF line ends: all are CRLF now"),
        (b"a\r\nb\nc\n", b"a\nb\nc\n!", "1 CRLF among 2 LF line ends: all are LF now"),
        (b"a\r\nb\n", b"a\nb\n!", "1 CRLF among 1 LF line ends: all are LF now"),
        (b"a\r\n", b"a\r\n!", ""),
        (b"a\n", b"a\n!", ""),
    ],
)
def test_lines_that_end_in_another_way_than_most_are_changed_with_a_note(tmp_path, capsys, source, text, note):
    path = tmp_path / "x.txt"
    path.write_bytes(source)
    assert edit_file(path, "!\x04") == 0
    assert path.read_bytes() == text
    assert capsys.readouterr().err == (f"note: x.txt had {note}\n" if note else "")


def test_a_byte_that_is_not_utf8_is_saved_and_printed_as_it_was_typed(tmp_path, capfdbinary):
    path = tmp_path / "x.txt"
    assert edit_file(path, b"caf\xe9\x04") == 0 and path.read_bytes() == b"caf\xe9"
    path.write_bytes(b"a\n")
    assert edit_file(path, b"\xff\xed\xa0\x80\x03") == 130 and path.read_bytes() == b"a\n"
    assert (tmp_path / "x.txt.unsaved").read_bytes() == b"a\n\xff\xed\xa0\x80"
    capfdbinary.readouterr()
    assert edit_file(None, b"caf\xe9\x04") == 0
    assert capfdbinary.readouterr().out == b"caf\xe9\n"


def test_a_byte_order_mark_is_kept_in_the_file_and_out_of_the_text(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffa\r\nb".encode())
    assert TextFile(path).text == "a\nb"
    assert edit_file(path, "!\x04") == 0
    assert path.read_bytes() == "\ufeffa\r\nb!".encode()


def test_halves_of_characters_are_joined_or_replaced_and_never_lose_the_text(tmp_path):
    TextFile(tmp_path / "x.txt").save_text("a\ud83d\ude00b\ud83dc\udce9", 0)
    assert (tmp_path / "x.txt").read_bytes() == "a😀b\ufffdc".encode() + b"\xe9"


@pytest.mark.parametrize("mode", [0o600, 0o666, None])
def test_a_text_is_on_the_disk_before_it_gets_its_name_and_never_open_to_more_people(tmp_path, monkeypatch, mode):
    path, plain, synced = tmp_path / "x.txt", textfile.sync, []
    (tmp_path / "new").touch()
    path.write_bytes(b"old")
    path.unlink() if mode is None else path.chmod(mode)
    expected = (tmp_path / "new").stat().st_mode & 0o777 if mode is None else mode

    def spy(file) -> None:
        plain(file)
        written = Path(file.name)
        assert written.stat().st_mode & 0o777 & ~expected == 0
        synced.append(written.read_bytes())

    monkeypatch.setattr(textfile, "sync", spy)
    textfile.write_source(path, b"new")
    assert synced == [b"new"] and path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == expected


@pytest.mark.parametrize("before, after", [(b"old\n", b"other\n"), (b"old\n", None), (None, b"other\n"), (None, b"")])
def test_a_file_that_another_program_has_changed_is_not_overwritten(tmp_path, monkeypatch, before, after):
    path, plain = tmp_path / "x.txt", Editor.run

    def put(content: bytes | None) -> None:
        path.unlink(missing_ok=True) if content is None else path.write_bytes(content)

    monkeypatch.setattr(Editor, "run", lambda editor: (put(after), plain(editor))[1])
    put(before)
    with pytest.raises(ValueError, match=r"another program has changed .*x\.txt.*x\.txt\.unsaved") as caught:
        edit_file(path, "mine\x04")
    assert "\n" not in str(caught.value)
    assert (path.read_bytes() if path.exists() else None) == after
    assert (tmp_path / "x.txt.unsaved").read_bytes() == (before or b"") + b"mine"
    put(before)
    assert edit_file(path, "\x04") == 0  # nothing typed, nothing written
    assert (path.read_bytes() if path.exists() else None) == after


def test_an_unsaved_text_is_written_beside_earlier_ones_with_the_files_mode(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"")
    path.chmod(0o600)
    (tmp_path / "x.txt.unsaved").write_bytes(b"of yesterday")
    (tmp_path / "x.txt.unsaved.1").symlink_to("nowhere")
    assert [edit_file(path, f"{n}\x03") for n in range(2)] == [130, 130]
    assert (tmp_path / "x.txt.unsaved").read_bytes() == b"of yesterday"
    assert [(tmp_path / f"x.txt.unsaved.{n}").read_bytes() for n in (2, 3)] == [b"0", b"1"]
    assert (tmp_path / "x.txt.unsaved.2").stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 5 and not (tmp_path / "nowhere").exists()


def test_an_error_of_the_editor_leaves_the_text_in_a_file(tmp_path, monkeypatch, capsys):
    def broken(editor):
        editor.buffer.insert_text("mine")
        raise RuntimeError("no idea")

    monkeypatch.setattr(Editor, "run", broken)
    with pytest.raises(RuntimeError, match="no idea"):
        edit_file(tmp_path / "x.txt", "")
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt.unsaved"]
    assert (tmp_path / "x.txt.unsaved").read_bytes() == b"mine"
    with pytest.raises(RuntimeError, match="no idea"):
        edit_file(None, "")
    assert capsys.readouterr().out == "mine\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_obeyed_before_the_text_is_saved_and_not_meanwhile(tmp_path, monkeypatch, name):
    number, path, plain, run = getattr(signal, name), tmp_path / "x.txt", textfile.write_source, Editor.run
    handler = signal.getsignal(number)

    def interrupted(*args) -> None:
        signal.raise_signal(number)
        plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(textfile, "write_source", interrupted)
        assert edit_file(path, "a\x04") == 0 and path.read_bytes() == b"a"
    with monkeypatch.context() as patch:
        patch.setattr(Editor, "run", lambda editor: (signal.raise_signal(number), run(editor))[1])
        assert edit_file(path, "") == 128 + number and path.read_bytes() == b"a"
    assert signal.getsignal(number) == handler


@pytest.mark.parametrize("name, message", [
    ("folder", "is a folder"), ("no/x.py", "not exist"), ("latin", "UTF-8.*iconv"), ("sealed", "is read-only"),
    ("pipe", "not a regular file"),
])  # fmt: skip
def test_a_file_that_cannot_be_edited_is_refused(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes(b"\xe9")
    (tmp_path / "sealed").write_bytes(b"a")
    (tmp_path / "sealed").chmod(0o444)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=message) as caught:
        TextFile(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_is_refused_if_it_or_its_folder_may_not_be_written(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_bytes(b"a")
    TextFile(path)
    for sealed, message in ((path, "is read-only"), (tmp_path, "folder you may not write to")):
        monkeypatch.setattr(os, "access", lambda path, _, sealed=sealed: path != sealed)  # works for root too
        with pytest.raises(ValueError, match=message):
            TextFile(path)


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="language=klingon"):
        edit_file(None, "", language="klingon")


class Terminal:
    """A program in a pseudo-terminal, and its screen."""

    def __init__(self, command: list[str], rows: int = 12, columns: int = 80, cwd: Path = ROOT):
        pyte = pytest.importorskip("pyte")
        pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
        master, slave = pty.openpty()
        self.master = os.fdopen(master, "r+b", buffering=0)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, np.array([rows, columns, 0, 0], np.uint16).tobytes())
        environment = {**os.environ, "TERM": "xterm-256color", "TERMINFO": ""}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment,
                                        start_new_session=True, cwd=cwd)  # fmt: skip
        os.close(slave)
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)

    def press(self, keys: str | bytes) -> None:
        self.master.write(keys if isinstance(keys, bytes) else keys.encode())

    def wait_for(self, condition) -> None:
        deadline = time.monotonic() + 600
        while not condition():
            assert time.monotonic() < deadline, "\n".join(self.screen.display)
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.stream.feed(self.master.read(1 << 16))
                except OSError:  # the program has closed its terminal
                    break

    def line(self, number: int) -> tuple[str, str]:
        """(text of a line, its grey part), without the line number."""
        row = self.screen.buffer[number - 1]
        cells = [row[column] for column in range(3, self.screen.columns)]
        grey = "".join(cell.data for cell in cells if cell.fg == "808080")
        return "".join(cell.data for cell in cells).rstrip(), grey

    def wait_for_line(self, number: int, text: str, grey: str) -> None:
        self.wait_for(lambda: self.line(number) == (text, grey))


@pytest.fixture
def open_terminal():
    """open_terminal(command): a program in a Terminal; both end with the test."""
    opened = []

    def start(*args, **options) -> Terminal:
        opened.append(Terminal(*args, **options))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()
        terminal.master.close()


def test_the_editor_in_a_terminal(out_dir, tmp_path, open_terminal):
    path = tmp_path / "hello.py"
    command = [sys.executable, str(ROOT / "complete.py"), f"--out_dir={out_dir}", "--device=cpu", f"--file={path}"]
    terminal = open_terminal(command)
    terminal.wait_for(lambda: "Esc leave" in "\n".join(terminal.screen.display))
    terminal.press("import num")
    terminal.wait_for_line(1, "import numpy as np", grey="py as np")
    terminal.wait_for(lambda: (terminal.screen.cursor.y, terminal.screen.cursor.x) == (0, 3 + len("import num")))
    terminal.press("\t")
    terminal.wait_for_line(1, "import numpy as np", grey="")
    terminal.wait_for(lambda: "indent 0" in terminal.screen.display[-1])
    terminal.press("\r\rdef print_h")
    terminal.wait_for_line(3, "def print_hello_world():", grey="ello_world():")
    terminal.press("\x7f")  # Backspace: the ghost goes, the text stays
    terminal.wait_for_line(3, "def print_h", grey="")
    terminal.press("e")
    terminal.wait_for_line(3, "def print_hello_world():", grey="llo_world():")
    terminal.press("\x1b[1;5C")  # Ctrl-Right
    terminal.wait_for_line(3, "def print_hello_world():", grey="():")
    terminal.press("\t")
    terminal.wait_for(lambda: "indent 4" in terminal.screen.display[-1])
    terminal.press("\r")
    terminal.wait_for(lambda: (terminal.screen.cursor.y, terminal.screen.cursor.x) == (3, 3 + 4))
    terminal.wait_for_line(4, '    """Print hello world."""', grey='"""Print hello world."""')
    terminal.press("\x1b")  # Esc
    terminal.wait_for(lambda: terminal.process.poll() is not None)
    assert terminal.process.wait() == 0
    assert path.read_text(encoding="utf-8") == "import numpy as np\n\ndef print_hello_world():\n    "


def test_closing_the_terminal_leaves_the_text_in_a_file(out_dir, tmp_path, open_terminal):
    """Both with SIGHUP, as from a window, and without, as after a lost connection; also without --file."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"old\n")
    program = [sys.executable, str(ROOT / "complete.py"), f"--out_dir={out_dir}", "--device=cpu"]
    terminals = {name: open_terminal([*program, f"--file={tmp_path / name}"]) for name in ("a", "b")}
    terminals["text"] = open_terminal(program, cwd=tmp_path)
    for name, terminal in terminals.items():
        terminal.wait_for(lambda screen=terminal.screen: "Esc leave" in "\n".join(screen.display))
        terminal.press(b"caf\xe9!")
        number = 1 if name == "text" else 2
        terminal.wait_for(lambda terminal=terminal, number=number: "!" in terminal.line(number)[0])
    terminals["b"].process.send_signal(signal.SIGHUP)
    for name, terminal in terminals.items():
        terminal.master.close()
        assert terminal.process.wait(600) == 129
        assert (tmp_path / f"{name}.unsaved").read_bytes() == (b"" if name == "text" else b"old\n") + b"caf\xe9!"
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"old\n"
    assert len(list(tmp_path.iterdir())) == 5


# ---- bench.py's complete and lines -----------------------------------------------------------------------


def test_the_benchmarks_sure_model_suggests_32_printable_bytes_for_anything():
    completer = Completer(bench.sure_model(), ByteTokenizer())
    found = last(completer, "import numpy\n", min_confidence=0.9)
    assert len(found.text) == 32 and found.text.isprintable()


def test_the_benchmark_times_every_key(byte_completer):
    times = bench.type_into_editor(byte_completer, "import numpy as np\n", "import pa\nx")
    assert [len(seconds) for seconds in times.values()][::2] == [11, 11]
    assert 5 <= len(times["the first of the suggestion"]) <= 11


def test_the_share_of_right_lines_is_what_a_naive_loop_counts(byte_completer):
    tokenizer, model = byte_completer.tokenizer, byte_completer.model
    ids = np.array([*tokenizer.encode(CODE), 255, *tokenizer.encode("import numpy as nx\nq = 1\n"), 255])
    places = bench.choose_places(ids, tokenizer, 40, seed=3)
    assert places == bench.choose_places(ids, tokenizer, 40, seed=3) != bench.choose_places(ids, tokenizer, 40, seed=4)
    assert len(places) == 10  # the lines that are not blank
    right = []
    for before, rest in places:
        assert rest and "\n" not in rest and (before + rest + "\n") in CODE + "import numpy as nx\nq = 1\n"
        greedy, context = "", byte_completer.context(before)
        while len(greedy) <= len(rest) and not greedy.endswith("\n"):
            with torch.no_grad():
                context = [*context, int(model(torch.tensor([context]))[0].argmax())]
            greedy += chr(context[-1])
        expected = greedy[0] == rest[0], greedy == rest + "\n"
        assert bench.next_and_rest(byte_completer, before, rest.encode()) == expected
        right.append(expected)
    assert (False, False) in right and (True, True) in right


def test_a_text_that_its_folder_does_not_take_goes_to_the_one_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(textfile.tempfile, "gettempdir", lambda: str(tmp_path))
    assert textfile.rescue(tmp_path / "removed" / "x.py", b"abc") == tmp_path / "x.py.unsaved"
    assert (tmp_path / "x.py.unsaved").read_bytes() == b"abc"


def test_a_text_begins_as_the_tokenizer_says_and_is_continued_without_a_space():
    library = MAKERS["Metaspace BPE, Llama-2's"]()
    bos = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    library.post_processor = bos
    tokenizer = JsonTokenizer(library.to_str(), bos=1, ends=[2])
    completer = Completer(random_model(tokenizer.vocab_size), tokenizer)
    assert completer.context("the cat") == library.encode("the cat").ids
    begin = completer.encode("x" * 5000 + "\nthe cat", 5001)
    assert begin == tokenizer.encode("the cat", inside=True).tolist() != tokenizer.encode("the cat").tolist()


def test_a_tokenizer_without_bytes_is_refused_in_one_line(tmp_path):
    tokenizer = JsonTokenizer(MAKERS["WordPiece, cased"]().to_str())
    save(tmp_path, random_model(tokenizer.vocab_size), tokenizer)
    with pytest.raises(ValueError, match="bytes of single tokens are needed here.*: its model is WordPiece") as error:
        complete.main([f"--out_dir={tmp_path}", "--prompt=a", "--device=cpu"])
    assert "\n" not in str(error.value)

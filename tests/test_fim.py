"""data/fim.py, completion/infill.py and evaluation/fim.py: gaps in training texts, in prompts, and filled."""

import io
import json
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_build import digests, novel, run, units_of
from test_complete import count_tokens, fit, save
from test_complete import open_terminal as open_terminal  # a fixture
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers.processors import TemplateProcessing

import complete
import eval
import sample
from completion.completer import Completer, whole_suggestion
from completion.infill import first_ids, has_learned, infill_prompt, last_ids
from data.build import prepare_text
from data.dataset import open_dataset
from data.fim import FILE_SEP, FIM_MARKERS, Fim, find_markers, rearranged, text_ids, with_markers
from data.options import prepare_parser
from data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, ExtendedTokenizer, JsonTokenizer
from evaluation.fim import Gap, choose_gaps, edit_similarity, fill, fill_gaps, texts_of
from evaluation.text import Text
from inference.ensemble import Ensemble
from model import GPT, GPTConfig
from system.distributed import Ranks

CODE = "def f(a, b):\n    return a + b\n\n\nclass Number:\n    value = 1  # é 中\n" * 9
FILLING = {"fim_rate": 0.5, "spm_rate": 0.5, "fim_chars": 64, "file_names": False}
OPTIONS = FILLING | {"eot": True, "special": "text", "tokenizer": "byte"}
BYTES = with_markers(ByteTokenizer(255), Fim(0.5))


def files(n=40, seed=0):
    """Documents of lines, with markers typed in them."""
    draw = random.Random(seed)
    lines = ["x = 1", "", "    return 中文", "<|fim_middle|>", "<|file_sep|> a", "y" * 100, "def f():"]
    return {f"file{i}": "\n".join(draw.choices(lines, k=draw.randint(1, 60))) + f"\n{i}" for i in range(n)}


def restored(ids, tokenizer):
    """The texts of a split, by the definition of the two orders, and how many parts had each order."""
    prefix, suffix, middle = (tokenizer.special_tokens[name] for name in FIM_MARKERS)
    text, orders = [], [0, 0, 0]
    for part in np.split(ids, np.flatnonzero(ids == tokenizer.eot)):
        part = part[part != tokenizer.eot].tolist()
        if FILE_SEP in tokenizer.special_tokens and part:
            assert part[0] == tokenizer.special_tokens[FILE_SEP]
            part = part[part.index(10) + 1 :]
        if prefix in part:
            i, j = part.index(suffix), part.index(middle)
            assert part[0] == prefix and sum(id in (prefix, suffix, middle) for id in part) == 3
            orders[1 + (i == 1)] += 1
            part = part[1:i] + part[j + 1 :] + part[i + 1 : j]
        else:
            orders[0] += 1
        text.append(tokenizer.decode(part))
    return text, orders


# ---- preparation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [False, True])
def test_a_rearranged_dataset_has_every_text_and_counts_its_bytes(tmp_path, names):
    documents = files()
    plain = run(tmp_path / "plain", units_of(documents))
    found = run(tmp_path / "fim", units_of(documents), **OPTIONS | {"file_names": names})
    tokenizer = found.tokenizer
    assert tokenizer.vocab_size == 259 + names and found.dtype == np.uint16
    assert [*tokenizer.special_tokens] == ["<|endoftext|>", *FIM_MARKERS] + [FILE_SEP] * names
    for split in ("train", "val"):
        text, orders = restored(found.array(split), tokenizer)
        expected, _ = restored(plain.array(split), with_markers(ByteTokenizer(255), Fim(1)))
        assert "".join(text) == "".join(expected)
        sizes = [len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)]
        assert found.bytes(split) == np.take(sizes, found.array(split)).sum()
        assert (min(orders) > 8) if split == "train" else orders[1:] == [0, 0]
    if not names:
        assert np.array_equal(found.array("val"), plain.array("val"))
    assert found.meta["splits"]["val"]["documents"] == plain.meta["splits"]["val"]["documents"]


def test_the_result_does_not_depend_on_the_number_of_workers_or_on_units(tmp_path):
    units = units_of(novel(12), size=2**23)
    run(tmp_path / "one", units, **OPTIONS | {"workers": 1})
    run(tmp_path / "two", units, **OPTIONS | {"workers": 2})
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    run(tmp_path / "other", units, **OPTIONS | {"fim_chars": 65})
    assert digests(tmp_path / "other") != digests(tmp_path / "one")


def test_a_test_split_stays_left_to_right(tmp_path, capsys):
    units = units_of(files())
    plain = run(tmp_path / "plain", units, val_fraction=0.2, test_fraction=0.3)
    found = run(tmp_path / "fim", units, val_fraction=0.2, test_fraction=0.3, **OPTIONS | {"fim_rate": 1.0})
    assert "val and test are left to right" in capsys.readouterr().out
    markers = [found.tokenizer.special_tokens[name] for name in FIM_MARKERS]
    for split in ("val", "test"):
        assert np.array_equal(found.array(split), plain.array(split)) and found.tokens(split) > 100
    assert all((found.array("train") == marker).any() for marker in markers)


@given(st.text(max_size=300), st.integers(1, 80), st.floats(0, 1))
def test_parts_restore_the_text_and_are_no_longer_than_asked(text, chars, spm_rate):
    fim = Fim(1.0, spm_rate, chars)
    parts = list(fim.parts(text))
    assert "".join(prefix + middle + suffix for prefix, middle, suffix, _ in parts) == text
    assert all(0 < len(p + m + s) <= chars for p, m, s, _ in parts)
    assert parts == list(fim.parts(text)) and Fim(0.0).parts(text) is None


def test_the_rates_are_those_asked_for_and_gaps_are_short_and_long():
    texts = [CODE[i:] for i in range(300)]
    assert 110 < sum(Fim(0.5).parts(text) is not None for text in texts) < 190
    parts = [part for text in texts for part in Fim(1.0, 0.25, 400).parts(text)]
    assert 0.2 < np.mean([spm for *_, spm in parts]) < 0.3
    lengths = np.array([len(middle) for _, middle, _, _ in parts])
    assert (lengths < 16).mean() > 0.2 and (lengths > 60).mean() > 0.05
    ends = [suffix[:1] in ("\n", "") for _, _, suffix, _ in parts]
    assert 0.4 < np.mean(ends) < 0.8


@pytest.mark.parametrize(
    "options, message",
    [
        ({"special": "encode"}, "--special=encode: --fim_rate and --file_names need markers"),
        ({"eot": False}, "--fim_rate needs documents that end"),
        ({"tokenizer": "char", "file_names": True}, "--file_names: a char tokenizer may lack the characters of a name"),
    ],
)
def test_options_that_cannot_be_combined_are_refused_in_one_line(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path / "x", units_of(files()), **OPTIONS | options)
    assert "\n" not in str(error.value) and not (tmp_path / "x").exists()


@pytest.mark.parametrize("option", ["--spm_rate=0.4", "--fim_chars=99"])
def test_an_option_of_gaps_without_gaps_is_refused(option, tmp_path):
    with pytest.raises(ValueError, match=f"{option} needs --fim_rate; pass both or neither"):
        prepare_parser("", tmp_path).parse_args(["--input", "x", option])
    prepare_parser("", tmp_path).parse_args(["--input", "x", option, "--fim_rate=0.5"])


@pytest.mark.parametrize("name", ["bpe", "bpe_code"])
def test_a_tokenizer_trained_here_counts_the_markers_in_its_size(name, tmp_path, capsys):
    (tmp_path / "a.py").write_text(CODE * 20, encoding="utf-8")
    parser = prepare_parser("", tmp_path, tokenizer=name, eot=True)
    options = ["--input", str(tmp_path / "a.py"), "--vocab_size=290", "--fim_rate=0.5", "--workers=1"]
    prepare_text(parser.parse_args(options), [], "", "config/train_pycode.py")
    tokenizer = open_dataset(tmp_path).tokenizer
    assert tokenizer.kind == "bpe" and tokenizer.vocab_size == 290 and find_markers(tokenizer) == (287, 288, 289)


def test_a_tokenizer_that_has_the_markers_stays_as_it_is():
    own = BPETokenizer.train([CODE], 300, FIM_MARKERS)
    assert with_markers(own, Fim(0.5)) is own
    named = with_markers(own, Fim(0.5, names=True))
    assert named.vocab_size == own.vocab_size + 1 and find_markers(named) == find_markers(own)
    assert find_markers(ByteTokenizer(255)) is None


def test_left_to_right_text_is_drawn_without_markers(out_dir, capsys):
    own = BPETokenizer.train([CODE], 300, FIM_MARKERS)
    assert text_ids(BYTES) == 256 and text_ids(own) == own.vocab_size - 3 == own.eot + 1
    assert text_ids(with_markers(BYTES, Fim(0.5, names=True))) == 256 == text_ids(ByteTokenizer(255))
    assert text_ids(ExtendedTokenizer(BYTES, ["<|user|>"])) == 260
    options = ["--start=<|endoftext|>", "--special=encode", "--output=-", "--logprobs", "--max_new_tokens=9"]
    sample.main([f"--out_dir={out_dir}", "--device=cpu", "--num_samples=3", *options])
    tokens = [token for line in capsys.readouterr().out.splitlines() for token in json.loads(line)["tokens"]]
    assert tokens and max(token["id"] for token in tokens) < 256  # though what the model has seen begins with a marker


# ---- prompts ---------------------------------------------------------------------------------------------


def tokenizers():
    return [BYTES, ExtendedTokenizer(BPETokenizer.train([CODE], 300), [*FIM_MARKERS, FILE_SEP])]


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=["byte", "bpe"])
@pytest.mark.parametrize("spm", [False, True])
def test_a_prompt_is_how_a_training_text_begins(tokenizer, spm):
    for first in range(0, 200, 7):
        prefix, middle, suffix = CODE[:first], CODE[first : first + 30], CODE[first + 30 : 300]
        trained = rearranged(tokenizer, (prefix, "" if spm else middle, suffix, spm), [])
        prompt = infill_prompt(tokenizer, prefix, suffix, 4096, spm=spm)
        assert trained[: len(prompt)] == prompt
        assert trained[len(prompt) :] == ([] if spm else tokenizer.encode(middle).tolist()) + [tokenizer.eot]


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=["byte", "bpe"])
def test_a_prompt_has_whole_lines_around_the_gap_and_no_more_ids_than_there_is_room(tokenizer):
    prefix, suffix, (begin, between, last) = CODE[:-20], CODE[-20:] + CODE, find_markers(tokenizer)
    for room in range(8, 400, 3):
        ids = infill_prompt(tokenizer, prefix, suffix, room)
        assert room - 40 < len(ids) <= room and ids[0] == begin and ids[-1] == last
        before = tokenizer.decode(ids[1 : ids.index(between)])
        after = tokenizer.decode(ids[ids.index(between) + 1 : -1])
        assert prefix.endswith(before.lstrip("\ufffd")) and suffix.startswith(after.rstrip("\ufffd"))
        if room > 200 and len(before) < len(prefix):
            assert prefix[: -len(before)].endswith("\n") and after.endswith("\n") and len(before) > 2 * len(after)
    assert infill_prompt(ByteTokenizer(255), prefix, suffix, 99) is None
    with pytest.raises(ValueError, match="room for 5 tokens"):
        infill_prompt(tokenizer, prefix, suffix, 5)
    assert not last_ids(tokenizer, "x", 0) and not first_ids(tokenizer, "x", 0)
    assert len(last_ids(tokenizer, "x" * 999, 50)) == 50 == len(first_ids(tokenizer, "x" * 999, 50))


def test_a_character_that_the_tokenizer_lacks_does_no_harm_where_there_is_no_room_for_it():
    tokenizer, lines = CharTokenizer("ab\n"), "ab\n" * 50
    assert last_ids(tokenizer, "Q" + lines, 40) == first_ids(tokenizer, lines + "Q", 40) == [0, 1, 2] * 13


def test_a_short_side_leaves_its_room_to_the_other():
    for prefix, suffix in (("ab", "x\n" * 400), ("x\n" * 400, "ab"), ("", "x\n" * 400)):
        ids = infill_prompt(BYTES, prefix, suffix, 100)
        assert len(ids) in (99, 100) and "ab" in BYTES.decode(ids) + "ab" * (not prefix)


def test_a_name_is_used_where_the_model_has_seen_names():
    named = with_markers(BYTES, Fim(0.5, names=True))
    ids = infill_prompt(named, "a", "b", 100, name="lib/os.py")
    assert ids == [259, *b"lib/os.py\n", 256, *b"a", 257, *b"b", 258]
    assert infill_prompt(BYTES, "a", "b", 100, name="lib/os.py") == [256, *b"a", 257, *b"b", 258]
    assert infill_prompt(named, "a", "b", 20, name="lib/os.py") == [256, *b"a", 257, *b"b", 258]


def test_whether_a_model_fills_in_is_known_from_its_dataset_or_else_its_tokenizer():
    ours = {"meta": {"source": {"fim_rate": 0.5}}}
    assert has_learned(ours, BYTES) == (True, False)
    assert has_learned({"meta": {"source": {}}}, BYTES) == (False, False)
    assert has_learned({}, BYTES) == (True, False) and has_learned({}, ByteTokenizer(255)) == (False, False)
    assert has_learned({}, with_markers(BYTES, Fim(1.0, names=True))) == (True, True)


# ---- completion ------------------------------------------------------------------------------------------

COLORS = {"apple": "red", "grass": "green", "sky": "blue"}


def learn_colors() -> GPT:
    """A small model of lines whose end tells their middle: color = |red|  # apple."""
    config = GPTConfig(block_size=96, vocab_size=259, n_layer=2, n_head=4, n_embd=64, pos="rope")
    generator, draw = torch.Generator().manual_seed(0), random.Random(0)
    model, ids = GPT(config, generator), []
    for _ in range(600):
        thing = draw.choice([*COLORS])
        parts = f"x.color = {COLORS[thing]}  # {thing}\n", draw.randrange(9), draw.random() < 0.5
        text, first, spm = parts
        last = len("x.color = ") + len(COLORS[thing])
        ids += rearranged(BYTES, (text[:first], text[first:last], text[last:], spm), [])
    return fit(model, torch.tensor(ids), 150, 97, generator)


@pytest.fixture(scope="module")
def colors() -> GPT:
    return learn_colors()


@pytest.fixture(scope="module")
def out_dir(colors, tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"), colors, BYTES)


def test_the_text_after_the_cursor_decides_what_is_suggested_and_where_it_ends(colors):
    completer = Completer(colors, BYTES, infill=True)
    for thing, color in COLORS.items():
        for before in ("", "x.co", "x.color = ", f"x.color = {color[0]}"):
            whole = f"x.color = {color}"
            assert whole_suggestion(completer, before, f"  # {thing}\r\n").text == whole[len(before) :]
    deaf = Completer(colors, BYTES)
    assert deaf.context("x", " # sky\n") == [255, *b"x"] == completer.context("x", " \n")


def fill_bytes(model: GPT, ids: list[int], limit: int = 60) -> bytes:
    """The greedy continuation up to a special token, without a cache."""
    text = b""
    while len(text) < limit:
        id = int(model(torch.tensor([ids]))[0][0, -1, :259].argmax())
        if id > 254:
            break
        text, ids = text + bytes([id]), [*ids, id]
    return text


def test_with_text_after_the_cursor_a_key_costs_a_token_and_the_probabilities_stay_right(colors, monkeypatch):
    completer, after = Completer(colors, BYTES, infill=True), "  # apple\n" * 30
    before = "y = 1\n" * 3
    passes, forward = count_tokens(completer, monkeypatch), GPT.forward
    ids = completer.context(before, after)
    begin, between, middle = find_markers(BYTES)
    suffix = ids[2 : ids.index(middle)]
    assert ids[:2] == [begin, between] and after.encode().startswith(bytes(suffix)) and len(ids) <= completer.room
    assert len(suffix) > completer.room // 8
    [*completer.suggest(before, after=after)]
    for char in "x.color = ":
        before, passes[:] = before + char, []
        row = completer.after(completer.context(before, after))
        expected = forward(colors, torch.tensor([completer.context(before, after)]))[0][0, -1].softmax(0)
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-3)
        assert sum(passes) <= 2
    assert completer.context(before, "")[0] != begin


def test_a_model_with_names_reads_the_files_name_first(colors):
    named = with_markers(BYTES, Fim(0.5, names=True))
    model = GPT(GPTConfig(block_size=96, vocab_size=260, n_layer=1, n_head=1, n_embd=8)).eval()
    completer = Completer(model, named, infill=True, name="a.py")
    assert completer.context("x", "y\n") == [259, *b"a.py\n", 256, 257, *b"y\n", 258, *b"x"]
    assert completer.context("x") == [255, 259, *b"a.py\n", *b"x"]
    assert Completer(model, named, bos=0, infill=True).context("x", "y") == [0, 256, 257, *b"y", 258, *b"x"]


def test_the_commands_take_the_text_after_the_cursor(out_dir, capsys, monkeypatch):
    assert (
        complete.main([f"--out_dir={out_dir}", "--device=cpu", "--prompt", "x.color = ", "--suffix", "  # sky\n"]) == 0
    )
    assert capsys.readouterr().out == "blue\n"
    request = json.dumps({"prompt": "x.color = ", "suffix": "  # grass\n"}).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(request)))
    complete.main([f"--out_dir={out_dir}", "--device=cpu", "--jsonl"])
    assert json.loads(capsys.readouterr().out)["completion"] == "green"
    with pytest.raises(ValueError, match="--suffix is the text after the cursor: use it with --prompt or --stdin"):
        complete.main([f"--out_dir={out_dir}", "--file=x", "--suffix=y"])


def test_the_editor_in_a_terminal_suggests_what_fits_before_the_rest_of_the_line(out_dir, tmp_path, open_terminal):
    path = tmp_path / "colors.py"
    path.write_text("  # grass\n", encoding="utf-8")
    command = [sys.executable, "complete.py", f"--out_dir={out_dir}", "--device=cpu", f"--file={path}"]
    terminal = open_terminal(command)
    terminal.wait_for(lambda: "Esc leave" in "\n".join(terminal.screen.display))
    terminal.press("\x1b[A\x01x.color = ")  # to the first line's start
    terminal.wait_for_line(1, "x.color = green  # grass", grey="green")
    terminal.press("\t")
    terminal.wait_for_line(1, "x.color = green  # grass", grey="")
    terminal.press("\x1b")
    terminal.wait_for(lambda: terminal.process.poll() is not None)
    assert path.read_text(encoding="utf-8") == "x.color = green  # grass\n"


# ---- evaluation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begins", [False, True])
def test_files_and_their_names_are_found_in_a_split(begins, tmp_path):
    bpe = BPETokenizer.train([CODE], 300, ["<s>"])
    bos, library = [bpe.special_tokens["<s>"]] * begins, LibraryTokenizer.from_str(bpe.to_json()["tokenizer"])
    if begins:
        library.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", bos[0])])
    named = with_markers(JsonTokenizer(library.to_str(), *bos, ends=[bpe.eot]), Fim(names=True))
    assert [*named.begin] == bos
    ids = [
        [*bos, named.special_tokens[FILE_SEP], *named.encode(f"a/{i}.py\n"), *named.encode(f"x = {i}\n"), named.eot]
        for i in range(3)
    ]
    found = [file for file in texts_of(np.concatenate(ids), named) if any(file)]
    assert found == [(f"a/{i}.py", f"x = {i}\n") for i in range(3)]


def test_gaps_are_the_same_for_the_same_texts_and_lie_inside_lines():
    texts = [("a", CODE), ("b", CODE[7:] + "x = [1, 2]\n")]
    gaps = choose_gaps(texts)
    assert gaps == choose_gaps(texts) and len(gaps) > 200
    assert all((gap.name, gap.prefix + gap.middle + gap.suffix) in texts for gap in gaps)
    assert all(gap.middle and gap.middle.strip("\n") == gap.middle for gap in gaps if "\n" not in gap.middle)
    lines = [gap.middle.count("\n") for gap in gaps]
    assert max(lines) == 3 and lines.count(0) > 100
    assert any(gap.suffix[:1] not in ("\n", "") for gap in gaps)
    assert not choose_gaps([("", "\n  \n")])


@pytest.mark.parametrize("order", ["psm", "spm", "l2r"])
def test_gaps_are_filled_as_a_loop_without_cache_would(colors, order):
    gaps = [Gap("", "x.color = "[:n], "", f"  # {thing}\n") for n in (3, 7, 10) for thing in COLORS]
    gaps = [Gap("", gap.prefix, "x" * n, gap.suffix) for n, gap in enumerate(gaps, 8)]
    found = fill(colors, BYTES, gaps, order, 96)
    for gap, text in zip(gaps, found, strict=True):
        prompt = [255, *gap.prefix.encode()]
        if order != "l2r":
            prompt = infill_prompt(BYTES, gap.prefix, gap.suffix, 50, spm=order == "spm")
        assert text == fill_bytes(colors, prompt, limit=len(gap.middle) + 16).decode()


def test_several_models_fill_gaps_as_one(colors):
    gap = Gap("", "x.color = ", "red", "  # apple\n")
    for order in ("psm", "spm", "l2r"):
        alone = fill(colors, BYTES, [gap], order, 96)
        assert fill(Ensemble([colors, colors]), BYTES, [gap], order, 96) == alone


def test_two_ranks_count_what_one_does(colors):
    class Rank:
        def __init__(self, rank, world_size):
            self.rank, self.world_size, self.is_main, self.found = rank, world_size, False, None

        def sum(self, values):
            self.found = values
            return values

    texts = [("", "".join(f"x.color = {COLORS[thing]}  # {thing}\n" for thing in COLORS) * 9)]
    gaps = choose_gaps(texts)[::3]
    text = Text("", None, None, BYTES, questions=gaps, orders=["psm", "spm", "l2r"])
    ranks = [Rank(0, 1), Rank(0, 2), Rank(1, 2)]
    figures = [fill_gaps(colors, text, 96, rank) for rank in ranks][0]
    assert np.array_equal(ranks[0].found, np.add(ranks[1].found, ranks[2].found))
    exact = [fill(colors, BYTES, [gap], "psm", 96)[0] == gap.middle for gap in gaps]
    assert figures["exact_match"] == pytest.approx(np.mean(exact)) and "exact_match_cut_l2r" not in figures
    assert set(fill_gaps(colors, replace(text, orders=["l2r"]), 96, Rank(0, 1))) == {
        "exact_match_l2r", "exact_match_l2r_stderr", "edit_similarity_l2r", "edit_similarity_l2r_stderr",
    }  # fmt: skip


@given(st.text("abc", max_size=12), st.text("abcd", max_size=12))
def test_the_edit_similarity_is_that_of_the_textbooks_subsequence(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    assert edit_similarity(a, b) == (2 * table[-1, -1] / (len(a) + len(b)) if a or b else 1.0)


def test_the_task_from_the_command_line(colors, out_dir, tmp_path, capsys):
    path = tmp_path / "colors.py"
    path.write_text("".join(f"x.color = {COLORS[thing]}  # {thing}\n" for thing in COLORS) * 9, encoding="utf-8")
    eval.main([f"--out_dir={out_dir}", "--task=fim", f"--input={path}", "--device=cpu"])
    table, figures = capsys.readouterr().out.split("\n{")
    figures = json.loads("{" + figures)
    assert figures["task"] == "fim" and figures["questions"] > 50 and "exact match l2r" in table
    gaps = choose_gaps([("", path.read_text(encoding="utf-8"))])
    text = Text("", None, None, BYTES, questions=gaps, orders=["psm", "spm", "l2r"])
    expected = fill_gaps(colors, text, 96, Ranks())
    assert len(expected) == 16 and {key: figures[key] for key in expected} == pytest.approx(expected)
    path.write_text("\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is empty"):
        eval.main([f"--out_dir={out_dir}", "--task=fim", f"--input={path}", "--device=cpu"])


def test_a_gap_at_the_beginning_is_not_asked_for_where_nothing_precedes_a_text(tmp_path, capsys):
    model = GPT(GPTConfig(block_size=32, vocab_size=256, n_layer=1, n_head=1, n_embd=16)).eval()
    save(tmp_path, model, ByteTokenizer())
    (tmp_path / "a.txt").write_text("ab\n" * 3, encoding="utf-8")
    eval.main([f"--out_dir={tmp_path}", "--task=fim", f"--input={tmp_path / 'a.txt'}", "--device=cpu"])
    assert "exact match l2r" in capsys.readouterr().out

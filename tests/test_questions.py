"""Questions made from texts: they say what the text says, are the same for a seed, and held-out texts stay held out."""

import ast
import importlib.util
import json
import re
from random import Random

import pytest
from test_chat import prepare, write_base
from test_train import ROOT

from data.dataset import DatasetWriter
from data.fim import Fim, with_markers
from data.questions import MIN_TIMES, QUESTIONS, by_ending, common_words, count_words, exchange_words, row_of
from data.tokenizer import BPETokenizer, ByteTokenizer

spec = importlib.util.spec_from_file_location("make_chat", ROOT / "data" / "chat" / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)
spec = importlib.util.spec_from_file_location("prepare_pycode", ROOT / "data" / "pycode" / "prepare.py")
prepare_code = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare_code)


def rows(kind, text, common=frozenset(), seed=0):
    found = list(QUESTIONS[kind](text, Random(seed), common))
    return found, [tuple(message["content"] for message in row["messages"]) for row in found]


# ---- kinds -------------------------------------------------------------------------------------------------


def test_a_passage_and_its_question_are_the_text_one_after_the_other():
    story = "".join(f"The cat number {i} sat on a mat. It was warm there! Was it? It was.\n\n" for i in range(60))
    novel = "".join(f"那日第{i}回，宝玉来了。黛玉笑道：“今日来得不巧了。”众人都笑。\n" for i in range(60))
    code = "".join(f"def f{i}(x):\n    if x:\n        return {i}\n    return x\n\n\n" for i in range(60))
    for text, ask in ((story, "Continue:\n"), (novel, "续写："), (code, "Continue:\n")):
        _, found = rows("continue", text)
        assert len(found) > 5
        end = 0
        for question, answer in found:
            lead = question.removeprefix(ask)
            start = text.index(lead, end)
            assert not text[end:start].strip()  # nothing is left out
            gap = text[start + len(lead) :].index(answer)
            assert not text[start + len(lead) :][:gap].strip()
            end = start + len(lead) + gap + len(answer)
    assert any(answer.startswith("    ") for _, answer in rows("continue", code)[1])  # indentation is kept


def test_speakers_in_a_novel_are_found_whatever_they_do_while_they_speak():
    ways = ["黛玉道", "黛玉笑道", "黛玉便说道", "黛玉听了，忙笑道", "黛玉冷笑道", "黛玉因问道"]
    text = "。".join(f"{way}：“这是第{'一二三四五六'[i]}句话。”" for i, way in enumerate(ways))
    text += "\n只见宝玉道：“只有一句的人，不问。”"
    _, found = rows("who", text)
    assert [answer for _, answer in found] == ["黛玉"] * 6
    assert found[3][0].endswith("谁说的：这是第四句话。") and "黛玉便说道" in found[3][0] and "听了" not in found[3][0]


def test_speakers_in_a_play_are_found_if_they_speak_often():
    names = ["ROMEO", "First Citizen"] * MIN_TIMES + ["NURSE"]
    text = "\n\n".join(f"{name}:\nWhat light is that, number {i}?\nAnd where is it?" for i, name in enumerate(names))
    _, found = rows("who", text)
    assert [answer for _, answer in found] == names[:-1]
    assert found[2][0].endswith("Who says this?\nWhat light is that, number 2?\nAnd where is it?")


def test_couplets_are_lines_of_equal_length_or_with_a_rhyme():
    verse = "身后有余忘缩手，眼前无路想回头。\n假作真时真亦假，无为有处有还无。春梦随云散，飞花逐水流；\n"
    prose = "宝玉听了，便笑起来。那日天气晴和，众人出来闲步，走了半日方回来。\n"
    assert rows("couplet", prose + verse + prose)[1] == [
        ("对下句：身后有余忘缩手", "眼前无路想回头"), ("对下句：假作真时真亦假", "无为有处有还无"),
        ("对下句：春梦随云散", "飞花逐水流"),
    ]  # fmt: skip
    lines = "So long as men can breathe or eyes can light,\nSo long lives this, and this gives life a sight.\nAnd.\n"
    assert rows("couplet", lines)[1] == [
        ("Complete the couplet:\nSo long as men can breathe or eyes can light,",
         "So long lives this, and this gives life a sight.")
    ]  # fmt: skip


def test_a_story_has_the_words_asked_for_and_they_are_no_common_ones():
    pairs = zip(["big", "small", "happy", "brown"] * 9, ["red", "blue", "round", "shiny"] * 9, strict=True)
    text = "".join(f"The {a} dog saw a {b} ball in the park. It ran to {b} trees with Tom.\n" for a, b in pairs)
    common = {"the", "dog", "saw"}
    found, asked = rows("words", text, common)
    assert len(found) > 5
    for row, (question, story) in zip(found, asked, strict=True):
        assert len(row["words"]) == 3 and question.endswith(": " + ", ".join(row["words"]))
        assert all(re.search(rf"\b{word}\b", story) for word in row["words"])
        assert [*map(story.index, row["words"])] == sorted(map(story.index, row["words"]))
        assert not common & set(row["words"]) and "Tom" not in row["words"]


def test_exchanged_words_stand_in_the_question_and_the_story_with_their_endings():
    others = by_ending(["dogs", "cats", "jumping", "of", "moon", "sun"])
    row = row_of(
        "Write: tables, chair, running",
        "A chair and chairs. Two tables, running.",
        words=["tables", "chair", "running"],
    )
    found = exchange_words(row, Random(1), others)
    first, second, third = found["words"]
    assert first in ("dogs", "cats") and second in ("moon", "sun") and third == "jumping"
    question, story = (turn["content"] for turn in found["messages"])
    assert question == f"Write: {first}, {second}, {third}"
    assert story == f"A {second} and chairs. Two {first}, {third}."


def test_counts_are_of_words_in_lower_case():
    counts = count_words(["the the a", "The the b c"])
    assert counts == {"the": 3, "a": 1, "b": 1, "c": 1} and common_words(counts) == {"the"}


SOURCE = '''
class A:
    async def f(self, x):  # a comment
        """Adds one to a number,
        carefully.

        And more.
        """
        if x:
            text = """
not indented"""
        return x + 1

def g(a,
      b):
    "Joins two texts into one."
    return a + b

def no_docstring(a):
    return a

def only_docstring(a):
    """It has nothing else to do."""

def on_one_line(a): "A docstring on its line."; return a
'''


def test_a_function_its_docstring_and_its_body_are_the_source():
    tree = ast.parse(SOURCE)
    nodes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    body, explain = rows("body", SOURCE)[1], rows("explain", SOURCE)[1]
    assert [answer for _, answer in explain] == ["Joins two texts into one.", "Adds one to a number, carefully."]
    assert len(body) == 2
    for name, (question, answer), (asked, _) in zip("gf", body, explain, strict=True):
        whole = question.removeprefix("Write the body:\n") + "\n" + answer
        written = ast.parse(whole).body[0]
        assert ast.get_docstring(written) == ast.get_docstring(nodes[name])
        assert [*map(ast.dump, written.body[1:])] == [*map(ast.dump, nodes[name].body[1:])]
        assert ast.dump(written.args) == ast.dump(nodes[name].args)
        bare = ast.parse(asked.removeprefix("What does this function do?\n")).body[0]
        assert ast.get_docstring(bare) is None
        assert [ast.dump(part) for part in bare.body] == [ast.dump(part) for part in nodes[name].body[1:]]


@pytest.mark.parametrize("text", ["", "\n\n", "print 'old'\n", "\ufeff", "def f(:\n", "。", "\x00", "((((" * 999])
@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_text_without_anything_gives_nothing(kind, text):
    assert rows(kind, text)[0] == []


# ---- data/chat/make.py -------------------------------------------------------------------------------------

CORPUS = {
    "train": [f'def f{i}(x):\n    """Add the number {i} to it."""\n    y = x + {i}\n    return y\n' for i in range(40)]
    + ['def copied(x):\n    """A function in both of them."""\n    return [x, "and an answer that is long enough"]\n'],
    "val": [f'def g{i}(x):\n    """Take the number {i} off it."""\n    y = x - {i}\n    return y\n' for i in range(9)]
    + ['def copied(x):\n    """A function in both of them."""\n    return [x, "and an answer that is long enough"]\n'],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = BPETokenizer.train(CORPUS["train"], 300)
    with DatasetWriter(folder, tokenizer, {}) as writer:
        for split, texts in CORPUS.items():
            for text in texts:
                ids = [*tokenizer.encode_document(text).tolist(), tokenizer.eot]
                writer.write(split, make.np.array(ids), len(text.encode()))
    return folder, tokenizer


def made(corpus, out_dir, *options):
    make.main([f"--dataset={corpus[0]}", f"--out_dir={out_dir}", *options])
    return [[json.loads(line) for line in (out_dir / f"{split}.jsonl").read_text("utf-8").splitlines()]
            for split in ("train", "val")]  # fmt: skip


def test_rows_come_from_their_split_and_what_is_in_both_is_not_held_out(corpus, tmp_path, capsys):
    train, val = made(corpus, tmp_path, "--kinds", "body", "explain")
    assert "left out 2 rows of the validation split that the training split has too" in capsys.readouterr().out
    assert (len(train), len(val)) == (2 * 41, 2 * 9)
    for row in train + val:
        name = re.search(r"def (\w)", row["messages"][0]["content"])[1]
        assert name in ("fc" if row in train else "g") and row["kind"] in ("body", "explain")


def test_every_book_is_asked_about_even_if_one_has_enough(tmp_path, monkeypatch):
    tokenizer, signs = ByteTokenizer(255), "abcdefgh"
    books = ["".join(f"The {a * 3} was at number {i}. The {a * 3} sat there.\n\n" for i in range(400)) for a in signs]
    with DatasetWriter(tmp_path, tokenizer, {}) as writer:
        for split, texts in (("train", books), ("val", books[:1])):
            for text in texts:
                writer.write(split, make.np.array([*tokenizer.encode(text).tolist(), tokenizer.eot]), len(text))
    options = ("--kinds", "continue", "--max_rows=40", "--max_val_rows=1")
    train, _ = made((tmp_path, tokenizer), tmp_path, *options)

    def asked_about(found):
        return {re.search(r"The (\w)", row["messages"][0]["content"])[1] for row in found}

    assert len(train) == 40 and asked_about(train) == set(signs)
    assert len(rows("continue", books[0])[0]) > 40
    monkeypatch.setattr(make, "SPREAD", 3)  # of many more texts, no more are read than are needed
    few, _ = made((tmp_path, tokenizer), tmp_path, *options)
    assert len(few) == 40 and len(asked_about(few)) == 3


def test_the_name_of_a_file_is_no_part_of_its_text(tmp_path):
    """The folder's name is no Python."""
    for split, texts in CORPUS.items():
        (tmp_path / f"{split}.1").mkdir()
        for j, text in enumerate(texts):
            (tmp_path / f"{split}.1" / f"m{j}.py").write_text(text)
    found = []
    for names in ([], ["--file_names"]):
        folder = tmp_path / f"data{len(names)}"
        prepare_code.main([
            f"--input={tmp_path / 'train.1'}", f"--val_input={tmp_path / 'val.1'}", "--tokenizer=byte",
            f"--out_dir={folder}", *names,
        ])  # fmt: skip
        assert b"m7.py" in (folder / "train.bin").read_bytes()[::2] or not names
        found.append(made((folder, None), folder, "--kinds", "body", "explain", "continue"))
    assert found[0] == found[1] and {row["kind"] for row in found[0][0]} == {"body", "explain", "continue"}


def test_texts_that_were_rearranged_for_filling_in_are_asked_nothing(tmp_path):
    tokenizer = with_markers(BPETokenizer.train(CORPUS["train"], 300), Fim(rate=0.5))
    marker = tokenizer.special_tokens["<|fim_prefix|>"]
    with DatasetWriter(tmp_path, tokenizer, {}) as writer:
        for split, texts in CORPUS.items():
            for i, text in enumerate(texts):
                ids = [*[marker] * (i % 2), *tokenizer.encode_document(text).tolist(), tokenizer.eot]
                writer.write(split, make.np.array(ids), len(text.encode()))
    found = list(make.documents_of(make.open_dataset(tmp_path), "train"))
    assert found == CORPUS["train"][::2]


def test_a_test_split_is_in_no_question_and_in_no_text_among_them(corpus, tmp_path):
    """The rows are those of a dataset without it, and so are the windows of --text."""
    tokenizer, texts = corpus[1], {**CORPUS, "test": ['def t(x):\n    """Testing."""\n    return "unseen", x\n'] * 9}
    with DatasetWriter(tmp_path / "data", tokenizer, {}, splits=tuple(texts)) as writer:
        for split, own in texts.items():
            for text in own:
                writer.write(
                    split, make.np.array([*tokenizer.encode_document(text).tolist(), tokenizer.eot]), len(text)
                )
    plain = made(corpus, tmp_path / "plain", "--kinds", "body", "explain", "continue")
    assert made((tmp_path / "data", tokenizer), tmp_path / "out", "--kinds", "body", "explain", "continue") == plain
    assert not (tmp_path / "out" / "test.jsonl").exists()
    base = write_base(tmp_path / "base.pt", tokenizer, block_size=200)
    files = ["--input", str(tmp_path / "out" / "train.jsonl"), "--val_input", str(tmp_path / "out" / "val.jsonl")]
    prepare.main([*files, f"--init_from={base}", f"--text={tmp_path / 'data'}", f"--out_dir={tmp_path / 'chat'}"])
    chat = make.open_dataset(tmp_path / "chat")
    for split in ("train", "val"):
        said = "".join(chat.tokenizer.decode(chat.array(split)))
        assert "def f" in said or split == "val"
        assert "unseen" not in said and "Testing" not in said


def test_a_seed_decides_everything_and_kinds_do_not_depend_on_each_other(corpus, tmp_path):
    first, again = (made(corpus, tmp_path / name, "--seed=5") for name in "ab")
    assert first == again
    other = made(corpus, tmp_path / "c", "--seed=6")
    assert other != first
    alone, _ = made(corpus, tmp_path / "d", "--seed=5", "--kinds", "continue", "--passes=2")
    both, _ = made(corpus, tmp_path / "e", "--seed=5", "--kinds", "continue", "body", "--passes=2")
    key = json.dumps
    assert sorted(map(key, alone)) == sorted(key(row) for row in both if row["kind"] == "continue")


def test_limits_and_a_look_at_the_rows(corpus, tmp_path, capsys):
    train, val = made(corpus, tmp_path / "a", "--kinds", "body", "--max_rows=7", "--max_val_rows=3")
    assert (len(train), len(val)) == (7, 3)
    capsys.readouterr()
    make.main([f"--dataset={corpus[0]}", f"--out_dir={tmp_path / 'b'}", "--kinds", "explain", "--show=2"])
    assert capsys.readouterr().out.count("assistant: Add the number") == 2 and not (tmp_path / "b").exists()


def test_prepare_reads_both_files_and_they_cannot_be_made_from_its_dataset(corpus, tmp_path):
    made(corpus, tmp_path, "--kinds", "explain")
    base = write_base(tmp_path / "base.pt", corpus[1], block_size=200)
    files = ["--input", str(tmp_path / "train.jsonl"), "--val_input", str(tmp_path / "val.jsonl"), "--bad_rows=stop"]
    prepare.main([*files, f"--init_from={base}", f"--out_dir={tmp_path / 'chat'}"])
    with pytest.raises(ValueError, match="has conversations already"):
        make.main([f"--dataset={tmp_path / 'chat'}", f"--out_dir={tmp_path}"])


def test_a_dataset_without_such_texts_is_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match="the train split of .* gives no couplet"):
        make.main([f"--dataset={corpus[0]}", f"--out_dir={tmp_path / 'none'}", "--kinds", "couplet"])
    assert not (tmp_path / "none").exists()


def test_words_are_exchanged_and_more_than_three_asked_for_in_training_alone(tmp_path):
    nouns = ["dragon", "castle", "window", "garden", "planet", "basket", "pencil", "bridge"]
    told = [f"Once a {a} met a {b}. They went to the {c}. Then it was late, and all of them slept well in the {a}.\n\n"
            for a in nouns for b in nouns for c in nouns]  # fmt: skip
    tokenizer, texts = BPETokenizer.train(told, 300), {"train": "".join(told[:400]), "val": "".join(told[400:])}
    with DatasetWriter(tmp_path, tokenizer, {}) as writer:
        for split, text in texts.items():
            writer.write(split, tokenizer.encode(text), len(text))
    for share, low, high in (("0", 0, 0), ("1", 0.9, 1), ("0.5", 0.3, 0.7)):
        found = made((tmp_path, tokenizer), tmp_path / share, "--kinds", "words", f"--exchange={share}")
        changed = []
        for split, rows_of in zip(("train", "val"), found, strict=True):
            whole = " ".join(texts[split].split())
            changed.append([" ".join(row["messages"][1]["content"].split()) not in whole for row in rows_of])
            for row in rows_of:
                assert all(re.search(rf"\b{word}\b", row["messages"][1]["content"]) for word in row["words"])
                assert len(row["words"]) == 3 or split == "train"
        assert max(len(row["words"]) for row in found[0]) > 3
        assert low <= sum(changed[0]) / len(changed[0]) <= high and not any(changed[1])

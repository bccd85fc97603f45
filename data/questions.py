"""Questions with their answers, made from texts: what data/chat/make.py writes.

    for row in QUESTIONS["who"](text, random.Random(0), common): ...      # {"messages": [...], "words": [...]}

A maker reads a document and finds what it can; one that finds nothing yields nothing. `common` holds the words that
say nothing about a passage, from common_words. Passages are questions and answers in the document's own words, in
Chinese or in English.
"""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from random import Random

LEAD, FOLLOWING = (40, 80), (80, 320)  # characters of a passage's beginning, and of what follows, at least and at most
SCENE = (20, 60), (30, 90)  # the same of a story with required words, which are to be much of it
DENSE = 0.4  # of these for Chinese, which says as much in fewer characters
LONGEST_CODE = 700  # characters of a function
LONGEST_DOC = 200  # characters of the sentence that explains it
BEFORE = 60  # characters of the scene before a line
N_WORDS = 3  # that a story is asked for by, as for TinyStories (Eldan and Li 2023, arXiv:2305.07759)
MOST_WORDS = 8  # that one in training may be asked for by: the more, the sooner a model learns to read the question
MIN_TIMES = 5  # a speaker of fewer lines is not asked for
N_COMMON = 150  # words, or a quarter of all if that is less
ENDINGS = ("ing", "ed", "ly", "s", "er", "y", "")

HAN = "\u4e00-\u9fff"
SENTENCE = re.compile(r"\s*\S.*?(?:[。！？…]+[”’」』）]*|[.!?]+[\"'”’)]*(?=\s)|(?=\n)|\Z)")
WORD = re.compile(r"[^\W\d_]+(?:'[a-z]+)?")
ADVERB = "(?:听了|听说|见了|见说|又|便|忙|因|也|只得|方|才|乃|连|一面|，)*"
MANNER = "(?:冷笑|陪笑|含笑|笑|叹|哭|骂|喝|答|应|问|回|说|啐|嚷|劝|诧异|着)*"
SAID = re.compile(rf"(?:^|[。！？；”\n])\s*([{HAN}]{{2,4}}?){ADVERB}{MANNER}道：“([^“”]{{4,80}})”", re.MULTILINE)
SPOKEN = re.compile(r"(?:^|\n\n)([A-Z][A-Za-z '\-]{1,24}):\n(\S[^\n]*(?:\n\S[^\n]*){0,2})")
PAIR = re.compile(rf"(?:^|[。；！？\n])([{HAN}]{{5}}|[{HAN}]{{7}})，([{HAN}]{{5}}|[{HAN}]{{7}})(?=[。；！？])")
VERSE = re.compile(rf"[{HAN}，。；！？、\s]+")


def row_of(question: str, answer: str, **more) -> dict:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more
    }  # fmt: skip


def is_chinese(text: str) -> bool:
    return len(re.findall(f"[{HAN}]", text[:2000])) > len(text[:2000]) / 4


def passages(text: str, rng: Random, lead: tuple = LEAD, rest: tuple = FOLLOWING) -> Iterator[tuple[str, str]]:
    """(a beginning of a sentence or two, what follows it), one after the other through the text, of random lengths."""
    scale = DENSE if is_chinese(text) else 1.0
    sentences, i = [match.group() for match in SENTENCE.finditer(text)], 0
    while i < len(sentences):
        first, i = sentences_up_to(sentences, i, rng.randint(*lead) * scale)
        second, i = sentences_up_to(sentences, i, rng.randint(*rest) * scale)
        if second.strip() and len(first) <= 2 * lead[1] and len(second) <= 2 * rest[1]:
            yield first.strip("\n"), second.lstrip(" \u3000").strip("\n")  # code keeps its indentation


def sentences_up_to(sentences: list[str], i: int, length: float) -> tuple[str, int]:
    """Sentences from i on, at least one, up to `length` characters; the next i."""
    text = "".join(sentences[i : i + 1])
    for end in range(i + 1, len(sentences)):
        if len(text) + len(sentences[end]) > length:
            return text, end
        text += sentences[end]
    return text, len(sentences)


def continue_passage(text: str, rng: Random, common: set[str]) -> Iterator[dict]:
    """The passage after its beginning."""
    ask = "续写：" if is_chinese(text) else "Continue:\n"
    for lead, rest in passages(text, rng):
        yield row_of(ask + lead, rest.rstrip())


def who_says(text: str, rng: Random, common: set[str]) -> Iterator[dict]:
    """Who says a line, in a novel (X道：“…”) or a play (X:, and the line below); the end of what came before is given.
    Speakers of fewer than MIN_TIMES lines are left out."""
    chinese = is_chinese(text)
    found = list((SAID if chinese else SPOKEN).finditer(text))
    times = Counter(match[1] for match in found)
    for match in found:
        if times[match[1]] >= MIN_TIMES:
            scene = text[max(0, match.start(1) - BEFORE) : match.start(1)].strip()
            ask = "谁说的：" if chinese else "Who says this?\n"
            yield row_of(f"{scene}\n{ask}{match[2]}".strip(), match[1])


def complete_couplet(text: str, rng: Random, common: set[str]) -> Iterator[dict]:
    """The second line of a couplet: of five or seven characters as the first, or the next line that rhymes."""
    for paragraph in text.split("\n"):
        if VERSE.fullmatch(paragraph):
            for match in PAIR.finditer(paragraph):
                if len(match[1]) == len(match[2]):
                    yield row_of(f"对下句：{match[1]}", match[2])
    lines = text.split("\n")
    for first, second in zip(lines, lines[1:], strict=False):
        a, b = (WORD.findall(line) for line in (first, second))
        if min(len(a), len(b)) >= 4 and max(len(first), len(second)) <= 60 and rhymes(a[-1], b[-1]):
            yield row_of(f"Complete the couplet:\n{first.strip()}", second.strip())


def rhymes(a: str, b: str) -> bool:
    return a.isascii() and b.isascii() and min(len(a), len(b)) > 2 and a != b and a[-3:].lower() == b[-3:].lower()


def story_with_words(text: str, rng: Random, common: set[str], most: int = N_WORDS) -> Iterator[dict]:
    """A short passage, asked for by N_WORDS to `most` words in it, in their order; the row has them as "words"."""
    for lead, rest in [] if is_chinese(text) else passages(text, rng, *SCENE):
        story = " ".join([lead.strip(), rest])
        words = [word for word in WORD.findall(story) if len(word) > 2 and word.islower() and word not in common]
        words = list(dict.fromkeys(words))
        if len(words) >= N_WORDS:
            n = rng.randint(N_WORDS, min(most, len(words)))
            chosen = sorted(rng.sample(words, n), key=words.index)
            yield row_of(f"Write a story with these words: {', '.join(chosen)}", story, words=chosen)


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word is written, in lower case alone."""
    return Counter(word for text in texts for word in WORD.findall(text) if word.islower())


def common_words(counts: Counter[str]) -> set[str]:
    return {word for word, _ in counts.most_common(min(N_COMMON, len(counts) // 4))}


def by_ending(words: Iterable[str]) -> dict[str, list[str]]:
    """Words of three letters and more, by their ending: more often than not, one can stand where another does."""
    groups = {ending: [] for ending in ENDINGS}
    for word in sorted(words):
        if len(word) > 2:
            groups[ending_of(word)].append(word)
    return groups


def ending_of(word: str) -> str:
    return next(ending for ending in ENDINGS if word.endswith(ending))


def exchange_words(row: dict, rng: Random, others: dict[str, list[str]]) -> dict:
    """A row of story_with_words, the words asked for exchanged for others with the same endings. Nobody can know such a
    story by heart: what to write has to be read in the question, which is what a small corpus does not teach."""
    new = {word: rng.choice(others[ending_of(word)] or [word]) for word in row["words"]}
    pattern = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in new))
    question, story = (pattern.sub(lambda match: new[match[0]], turn["content"]) for turn in row["messages"])
    return row_of(question, story, words=list(new.values()))


def functions(text: str) -> Iterator[tuple[str, str, str, str]]:
    """(head, docstring, indented docstring as written, body) of every short function with a docstring, in Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = text.split("\n")  # as ast counts them, form feeds apart
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        doc, first, after = ast.get_docstring(node), node.body[0], node.body[1]
        if not doc or first.lineno == node.lineno or after.lineno <= first.end_lineno:
            continue
        cut = node.col_offset
        head, quoted, body = (
            "\n".join(line[cut:] if not line[:cut].strip() else line for line in lines[start:end]).rstrip()
            for start, end in (
                (node.lineno - 1, first.lineno - 1),
                (first.lineno - 1, first.end_lineno),
                (first.end_lineno, node.end_lineno),
            )  # fmt: skip
        )
        summary = " ".join(doc.partition("\n\n")[0].split())
        if len(head) + len(quoted) + len(body) <= LONGEST_CODE and 10 <= len(summary) <= LONGEST_DOC:
            yield head, summary, quoted, body.strip("\n")


def write_body(text: str, rng: Random, common: set[str]) -> Iterator[dict]:
    """The body of a function in Python, from its head and docstring."""
    for head, _, quoted, body in functions(text):
        yield row_of(f"Write the body:\n{head}\n{quoted}", body)


def explain_function(text: str, rng: Random, common: set[str]) -> Iterator[dict]:
    """What a function in Python does: the first sentences of its docstring."""
    for head, summary, _, body in functions(text):
        yield row_of(f"What does this function do?\n{head}\n{body}", summary)


QUESTIONS = {
    "continue": continue_passage, "who": who_says, "couplet": complete_couplet, "words": story_with_words,
    "body": write_body, "explain": explain_function,
}  # fmt: skip

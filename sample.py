"""Generates text with a trained model. Needs only its checkpoint, which includes the tokenizer.

    python sample.py --out_dir=out-shakespeare-char --start="ROMEO:" --num_samples=3
    python sample.py --out_dir=out-hongloumeng-char --start="黛玉见了宝玉便说" --temperature=0.8 --top_p=0.95
    python sample.py --start=FILE:prompt.txt --max_new_tokens=200 --seed=7
    python sample.py --prompts=prompts.txt --num_samples=1 --output=texts.jsonl --quantize=int8
    python sample.py --interactive
    python sample.py --out_dir=out-chat --chat                        # with a model trained by config/chat.py
    python sample.py --out_dir=out-chat --messages=questions.jsonl --output=answers.jsonl

Samples are computed in batches and shown in order, the first unfinished one as it grows. --help lists every key.

As JSON (--output, --logprobs) a sample is a line {"prompt", "sample", "text", "finish", "num_tokens"}, where finish is
'end' (an id that ends texts), 'stop' (a stop string) or 'length'. --best_of adds "logprob", the mean per token;
--logprobs also adds "tokens", a list of {"id", "text", "logprob"}, where text holds the characters that the token
completes.
"""

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from configurator import configure, exit_on_error, read_early
from system.dtypes import DTypeName

HELP = """Type a prompt and press Enter; then more text, or Enter alone to let the model write. \\n is a new line.
Ctrl-C ends the model's turn, /new starts over, Ctrl-D (Windows: Ctrl-Z, Enter) leaves."""


@dataclass
class SampleConfig:
    # Model
    init_from: str = "resume"  # 'resume' = from out_dir, or a checkpoint, a folder, 'gpt2', 'gpt2-xl'
    out_dir: str = "out"  # folder of the run; several, as out-1,out-2, write together
    # Text
    start: str = "\n"  # the prompt; FILE:path reads it from a file, - from standard input
    prompts: str | None = None  # a file of prompts instead, one per line; in a .jsonl file as {"prompt": "..."}
    num_samples: int = 10  # samples for each prompt
    max_new_tokens: int = 500  # maximum length of a sample, in tokens
    special: Literal["auto", "text", "encode"] = "auto"  # typed special tokens: text or ids; auto = as in training
    stop: str = ""  # end a sample before this string; for several, or a new line, a JSON list: '["\n\n", "def "]'
    ngram: float = 0.0  # mix in an n-gram model of the training text with this share, for a book 0.2; 0 = off
    ngram_data: str | None = None  # datasets whose training texts are counted: novels,hongloumeng; None = the run's own
    best_of: int = 1  # draw this many candidates for each sample; keep the one with the best mean log-probability
    interactive: bool = False  # take turns with the model
    chat: bool = False  # talk to a model that was trained on conversations
    system: str = ""  # with --chat, what the conversation is told first
    messages: str | None = None  # a file of conversations to answer, as data/chat/prepare.py reads them
    # Sampling
    temperature: float = 0.8  # 1 = the model's own probabilities, lower = safer, 0 = always the likeliest token
    top_k: int | None = 200  # keep only the k likeliest tokens; None or 0 = all
    top_p: float | None = None  # keep the fewest tokens whose probabilities sum to this; None = all
    min_p: float | None = None  # keep tokens at least this fraction as probable as the likeliest; None = all
    repetition_penalty: float = 1.0  # above 1: tokens already in the text become less likely
    no_repeat_ngram: int | None = None  # never the same n tokens twice in a text; 0 = off; None = 4 for answers, else 0
    dry_multiplier: float = 0.0  # DRY penalty: a token that repeats a sequence becomes less likely; 0 = off, or try 0.8
    dry_base: float = 1.75  # and the more so, the longer the sequence is
    dry_allowed_length: int = 2  # sequences of this many tokens may be repeated
    seed: int = 1337  # with --dtype=fp32, sample i of a seed is the same in any batch; lower precision may differ
    # Output
    output: str | None = None  # write the samples to this file as JSON lines; - = standard output
    logprobs: bool = False  # write JSON lines with the log-probability of every token
    # System
    device: str = "auto"  # 'cuda', 'cuda:1', 'mps', 'cpu'; auto = the best available
    dtype: DTypeName = "auto"  # of the weights; auto = bfloat16 where the processor supports it natively, else float32
    quantize: Literal["none", "int8"] = "none"  # int8 = 8-bit weights: 1.5-2.6 times as fast on a CPU; on a GPU slower
    batch_size: int = 16  # samples computed together; lower saves memory
    compile: bool | Literal["auto"] = "auto"  # torch.compile (takes a minute); auto = on a GPU, CUDA graphs (at once)


if __name__ == "__main__":
    read_early(SampleConfig, sys.argv[1:])  # --help and mistakes are answered before the slow imports

import torch
from tqdm import tqdm

from checkpoints.build import build_model
from data.encodings import not_utf8
from data.fim import text_ids
from inference.chat import (
    NO_REPEAT_NGRAM,
    Chat,
    answer_all,
    chat_prompt,
    chat_tokenizer_of,
    read_questions,
    room_for_prompt,
    talk,
    typed_lines,
)
from inference.continuation import Beginning, Continuation
from inference.ensemble import Ensemble, join_models, members
from inference.generate import stream
from inference.healing import begin_with, prefix_index
from inference.load import find_tokenizer, first_id_of, make_ready, open_models, open_ngram, open_trained, special_of
from inference.sampling import Sampling
from inference.static import CompiledStep, RecordedStep
from model import GPT
from system.device import pick_compile, pick_device


def main(argv: list[str]) -> None:
    config, explicit = configure(SampleConfig, argv)
    validate(config)
    device = pick_device(config.device)
    if config.chat or config.messages:
        refuse_options_of_texts(config, explicit)
        return converse_in_turns(config, device)
    prompts = read_prompts(config)
    _, states = open_models(config.init_from, config.out_dir)
    tokenizer = find_tokenizer(states[0])
    if config.special == "auto":
        config.special = special_of(states[0])
    begin = partial(Beginning, tokenizer, special=config.special, bos=first_id_of(states[0]))
    beginnings = [] if config.interactive else for_each(prompts, begin)
    if len(states) > 1 and config.compile is True:
        raise ValueError(f"--compile is for one model, not for the {len(states)} in {config.out_dir}: leave it out")
    ngram = open_ngram(config.ngram, config.ngram_data, states[0])
    models = [build_model(state, dropout=0.0) for state in states]
    del states
    if config.compile is True and not can_compile(device):
        config.compile = "auto"
    for model in models:
        make_ready(model, device, config.dtype, config.quantize, plain=config.compile is True)
    writer = Writer(config, join_models(models, ngram), tokenizer)
    if config.interactive:
        converse(writer, begin, *prompts.values() if config.start != SampleConfig.start else [""])
    else:
        write_all(writer, beginnings)


def refuse_options_of_texts(config: SampleConfig, explicit: set[str]) -> None:
    """ValueError for what --chat or --messages does not use."""
    unused = "start prompts num_samples special stop ngram ngram_data best_of interactive logprobs compile".split()
    unused += ["messages", "output", "batch_size"] if config.chat else ["system"]
    if found := [f"--{key}" for key in unused if key in explicit]:
        option = "--chat" if config.chat else "--messages"
        raise ValueError(f"{option} cannot be combined with {', '.join(found)}: leave one of them out")


def converse_in_turns(config: SampleConfig, device: torch.device) -> None:
    """--chat and --messages."""
    questions = read_questions(Path(config.messages)) if config.messages else {}
    _, state = open_trained(config.init_from, config.out_dir)
    tokenizer = chat_tokenizer_of(state)
    model = make_ready(build_model(state, dropout=0.0), device, config.dtype, config.quantize)
    del state
    sampling = sampling_of(config)
    if config.chat:
        return talk(Chat(model, tokenizer, sampling, config.max_new_tokens), config.system, config.seed)
    room = room_for_prompt(model.config.block_size, config.max_new_tokens)
    prompts = for_each(questions, lambda messages: chat_prompt(messages, tokenizer, room))
    asked, seeds = list(questions.values()), range(config.seed, config.seed + len(questions))
    to_file = config.output not in (None, "-")
    with open(config.output, "w", encoding="utf-8", newline="\n") if to_file else nullcontext(sys.stdout) as lines:
        for first in range(0, len(asked), config.batch_size):
            part = slice(first, first + config.batch_size)
            answers = answer_all(model, tokenizer, prompts[part], sampling, config.max_new_tokens, seeds[part])
            for messages, (text, finish, n) in zip(asked[part], answers, strict=True):
                record = {"messages": [*messages, {"role": "assistant", "content": text}], "finish": finish}
                lines.write(json.dumps(record | {"num_tokens": n}, ensure_ascii=False) + "\n")
            lines.flush()


def for_each(items: dict[str, Any], make: Callable) -> list:
    """make(item) for each item by its place, which stands in front of a ValueError's message."""
    made = []
    for place, item in items.items():
        try:
            made.append(make(item))
        except ValueError as error:
            raise ValueError(f"{place}: {error}" if place else str(error)) from error
    return made


def can_compile(device: torch.device) -> bool:
    if device.type == "cpu":  # static shapes read all block_size slots: 6 to 9 times slower at 250 of 1,024
        print("note: ignoring --compile, which is slower on a CPU", file=sys.stderr)
        return False
    return pick_compile(True, device)


class Writer:
    """A model, its tokenizer and its sampling settings."""

    def __init__(self, config: SampleConfig, model: GPT | Ensemble, tokenizer):
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.device = model.transformer.wte.weight.device
        self.steps: dict[int, CompiledStep | RecordedStep | None] = {}  # by batch size, of which one is kept
        self.stops = read_stops(config.stop)
        logprobs = config.logprobs or config.best_of > 1
        known = dict(vocab_size=text_ids(tokenizer), unpenalized=tuple(tokenizer.ends), logprobs=logprobs)
        self.sampling = replace(sampling_of(config), **known)

    def write(self, texts: list[Continuation]) -> Iterator[None]:
        """Generates the texts together, and yields whenever they have grown."""
        if len(texts) not in self.steps:
            self.steps.clear()  # before the next one's cache is allocated
            self.steps[len(texts)] = self.static_step(len(texts))
        prompts = [text.beginning.ids.to(self.device) for text in texts]
        generators = [torch.Generator().manual_seed(self.config.seed + text.number) for text in texts]
        every = 1 if self.device.type == "cpu" else 8  # reading results stalls a GPU
        pending, limit, static = [], self.config.max_new_tokens, self.steps[len(texts)]
        for pair in stream(self.model, prompts, limit, self.sampling, generators, self.heal(texts), static):
            pending.append(pair)
            limit -= 1
            if limit and len(pending) < every:
                continue
            ids = torch.stack([ids for ids, _ in pending]).tolist()
            scores = [[None] * len(texts)] * len(ids)
            if self.sampling.logprobs:
                scores = torch.stack([score for _, score in pending]).tolist()
            pending.clear()
            for step in zip(ids, scores, strict=True):
                for text, id, score in zip(texts, *step, strict=True):
                    text.push(id, score)
            yield
            if all(text.finish for text in texts):
                return
        for text in texts:
            text.complete("length")
        yield

    def static_step(self, batch_size: int) -> CompiledStep | RecordedStep | None:
        """What --compile asks for; None for the plain way."""
        first, *others = members(self.model)
        on_cuda = self.device.type == "cuda" and not others
        if self.config.compile is True:
            return CompiledStep(first, batch_size, **({"mode": "reduce-overhead"} if on_cuda else {}))
        return RecordedStep(first, batch_size) if self.config.compile == "auto" and on_cuda else None

    def heal(self, texts: list[Continuation]):
        """The `constrain` of stream() that makes the ids drawn begin with the healed texts; None if there are none."""
        healed = [text.beginning.healed.encode() for text in texts]
        return begin_with(prefix_index(self.tokenizer), healed, self.device) if any(healed) else None


class Page:
    """Shows samples in order: as text, the first unfinished one as it grows, or as JSON lines. A sample is a list of
    candidates, of which the likeliest is shown."""

    def __init__(self, samples: list[list[Continuation]], config: SampleConfig, lines):
        self.samples, self.config, self.lines, self.shown = deque(samples), config, lines, 0

    def update(self) -> None:
        while self.samples:
            sample = self.samples[0]
            is_finished = all(text.finish for text in sample)
            best = max(sample, key=lambda text: text.logprob) if len(sample) > 1 and is_finished else sample[0]
            if self.lines is None and (is_finished or len(sample) == 1):
                whole = best.beginning.prompt + best.text
                write(whole[self.shown :] + "\n---------------\n" * is_finished)
                self.shown = len(whole)
            if not is_finished:
                return
            if self.lines is not None:
                self.lines.write(json.dumps(self.record(best), ensure_ascii=False) + "\n")
                self.lines.flush()
            self.samples.popleft()
            self.shown = 0

    def record(self, text: Continuation) -> dict:
        config = self.config
        record = {"prompt": text.beginning.prompt, "sample": text.number // config.best_of, "text": text.text}
        record |= {"finish": text.finish, "num_tokens": len(text.tokens)}
        if config.logprobs or config.best_of > 1:
            record["logprob"] = text.logprob
        if config.logprobs:
            record["tokens"] = text.tokens
        return record


def write_all(writer: Writer, beginnings: list[Beginning]) -> None:
    config = writer.config
    numbers, n = range(config.num_samples * config.best_of), config.best_of
    texts = [Continuation(writer.tokenizer, start, i, writer.stops) for start in beginnings for i in numbers]
    samples = [texts[i : i + n] for i in range(0, len(texts), n)]
    try:
        with ExitStack() as stack:
            lines = sys.stdout if config.output or config.logprobs else None
            if config.output not in (None, "-"):
                lines = stack.enter_context(open(config.output, "w", encoding="utf-8", newline="\n"))
            is_quiet = lines in (None, sys.stdout) or not sys.stderr.isatty()
            bar = stack.enter_context(tqdm(total=len(texts), unit="text", disable=is_quiet))
            page = Page(samples, config, lines)
            for first in range(0, len(texts), config.batch_size):
                batch = texts[first : first + config.batch_size]
                page.update()  # shows the prompt before the model has read it
                for _ in writer.write(batch):
                    page.update()
                bar.update(len(batch))
    except BrokenPipeError:  # the reader of standard output is gone
        raise
    except OSError as error:
        where = "standard output" if config.output in (None, "-") else f"--output={config.output}"
        raise ValueError(f"{where} cannot be written: {error.strerror}") from error


def converse(writer: Writer, begin: Callable[[str], Beginning], text: str) -> None:
    """The user and the model write in turns, until the end of input."""
    print(HELP, file=sys.stderr)
    write(text)
    turn = 0
    for line in typed_lines():
        if line.strip() == "/new":
            text = ""
            continue
        try:
            beginning = begin(text + line)
        except ValueError as error:  # a character the tokenizer lacks
            print(f"error: {error}", file=sys.stderr)
            continue
        answer, shown, turn = Continuation(writer.tokenizer, beginning, turn, writer.stops), 0, turn + 1
        with suppress(KeyboardInterrupt):
            for _ in writer.write([answer]):
                write(answer.text[shown:])
                shown = len(answer.text)
        text += line + answer.text
        write("\n")


def write(text: str) -> None:
    print(text, end="", flush=True)


def sampling_of(config: SampleConfig) -> Sampling:
    """The settings of the same names."""
    keys = {field.name for field in fields(Sampling)} & vars(config).keys() - {"logprobs"}
    made = Sampling(**{key: getattr(config, key) for key in keys})
    if made.no_repeat_ngram is None:
        made.no_repeat_ngram = NO_REPEAT_NGRAM if config.chat or config.messages else 0
    return made


def validate(config: SampleConfig) -> None:
    sampling_of(config).validate()
    if read_stops(config.stop) == [config.stop] and (config.stop[0] == "[" or "\\n" in config.stop):
        how = """write several, or a new line, as '["\\n", "def "]'"""
        print(f"note: --stop={config.stop} is one string, as it is no JSON list: {how}", file=sys.stderr)
    for key, low in {"num_samples": 1, "max_new_tokens": 0, "best_of": 1, "batch_size": 1}.items():
        if getattr(config, key) < low:
            raise ValueError(f"{key}={getattr(config, key)} must be at least {low}")
    if config.best_of > 1 and config.temperature == 0:
        raise ValueError(f"best_of={config.best_of} with temperature=0 gives the same text every time: drop one")
    if config.interactive and (config.prompts or config.output or config.logprobs or config.best_of > 1):
        raise ValueError("--interactive cannot be combined with --prompts, --output, --logprobs or --best_of")
    if config.system and not (config.chat or config.messages):
        raise ValueError("--system is what a conversation is told first: use it with --chat")
    if config.interactive and config.start == "-":
        raise ValueError("--interactive reads what you type: give the prompt with --start=TEXT or --start=FILE:PATH")
    if config.output not in (None, "-"):
        path = Path(config.output)
        if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise ValueError(f"--output={path} cannot be written: choose a file in a writable folder")
    if not -(2**62) < config.seed < 2**62:  # sample i uses seed + i, which must fit a generator's 64 bits
        raise ValueError(f"seed={config.seed} must be within ±2^62")


def read_stops(stop: str) -> list[str]:
    """One string, or a JSON list of them; an empty one never stops."""
    stops = [stop]
    if stop.startswith("["):
        with suppress(json.JSONDecodeError):  # a stop string may well be "["
            stops = json.loads(stop)
    if not all(isinstance(item, str) for item in stops):
        raise ValueError(f"--stop={stop} must be one string, or a JSON list of strings")
    return [item for item in stops if item]


def read_prompts(config: SampleConfig) -> dict[str, str]:
    """The prompts in --prompts or --start, by their place; --start has none."""
    if config.prompts is None:
        return {"": read_start(config.start)}
    text, place = read_file("--prompts=", config.prompts), f"--prompts={config.prompts}: line "
    lines = {f"{place}{number}": line for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not lines:
        raise ValueError(f"--prompts={config.prompts} has no prompts: expected one per line")
    if Path(config.prompts).suffix != ".jsonl":
        return lines
    prompts = {}
    for place, line in lines.items():
        try:
            prompts[place] = json.loads(line)["prompt"]
        except (json.JSONDecodeError, KeyError, TypeError):
            prompts[place] = None
        if not isinstance(prompts[place], str):
            raise ValueError(f'{place} is {line[:80]}, not {{"prompt": "..."}}')
    return prompts


def read_start(start: str) -> str:
    """`start` itself, the text of a file for FILE:path, or that of standard input for -."""
    if start == "-":
        try:
            return sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n")  # as open() reads a file
        except UnicodeDecodeError as error:
            raise ValueError(not_utf8("--start=-: standard input", error)) from error
    return read_file("--start=FILE:", start.removeprefix("FILE:")) if start.startswith("FILE:") else start


def read_file(option: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # Windows puts a mark before the text
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(f"{option}{path}", error)) from error
    except OSError as error:
        raise ValueError(f"{option}{path} cannot be read: {error.strerror}; expected a text file") from error


if __name__ == "__main__":
    exit_on_error(main)

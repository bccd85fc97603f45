"""Code completion at the terminal: an editor that shows the model's suggestion in grey after the cursor.

    python complete.py --out_dir=out-pycode --file=hello.py          Tab accepts the suggestion, Esc saves and leaves
    python complete.py --out_dir=out-pycode --prompt "import numpy as"
    python complete.py --out_dir=out-pycode --prompt "for i in range(" --suffix "):"
    printf 'def main(' | python complete.py --out_dir=out-pycode --stdin
    python complete.py --out_dir=out-pycode --jsonl                  {"prompt": "..."} -> {"completion": "..."}

In the editor, Tab accepts the suggestion, Ctrl-Right or Alt-F one word of it, and Backspace dismisses it. Enter starts
a line with the indentation the model predicts, else that of the previous line. Ctrl-Z undoes, Ctrl-Y redoes. Esc or
Ctrl-D leaves, and the text is saved to --file or printed. Ctrl-C leaves without changing the file: the text is kept in
FILE.unsaved (or the next free name, FILE.unsaved.1). The same happens if the terminal is closed or another program has
changed the file. Without --file, a closed terminal leaves the text in text.unsaved.

A model trained on a dataset with --fim_rate also reads what follows the cursor.

A --jsonl request may also have "suffix" (the text after the cursor), "max_bytes", "max_tokens", "min_confidence" and
"id", which is returned. The answer has "completion" and "confidence", or "error".
"""

import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from completion import MAX_BYTES, MIN_CONFIDENCE
from configurator import configure, exit_on_error, read_early
from system.dtypes import DTypeName
from system.quota import check_threads

REQUEST_TYPES = {"prompt": str, "suffix": str, "max_bytes": int, "max_tokens": int, "min_confidence": (int, float)}
TYPE_NAMES = {str: "text", int: "a whole number", (int, float): "a number"}


@dataclass
class CompleteConfig:
    # Model
    init_from: str = "resume"  # 'resume' = from out_dir, or a checkpoint, a folder, 'gpt2', 'gpt2-xl'
    out_dir: str = "out"  # folder of the run
    block_size: int | None = None  # a shorter context than the model's, to save memory
    # Instead of the editor
    prompt: str | None = None  # print the completion of this text
    stdin: bool = False  # print the completion of the text on standard input
    jsonl: bool = False  # answer requests from standard input on standard output, one JSON object per line
    suffix: str = ""  # with prompt or stdin: the text after the cursor
    # Editor
    file: str | None = None  # file to edit, which need not exist yet; None = print the text at the end
    language: str = "auto"  # for highlighting, by Pygments' name; auto = by the file's name, else the dataset's
    # Suggestions
    max_bytes: int = MAX_BYTES  # longest suggestion, in bytes of UTF-8
    min_confidence: float = MIN_CONFIDENCE  # lowest probability that the whole suggestion is right
    ngram: float = 0.0  # mix in an n-gram model of the training text with this share, for a small model 0.3; 0 = off
    ngram_data: str | None = None  # datasets whose training texts are counted; None = the run's own
    # System
    device: str = "auto"  # 'cuda', 'cuda:1', 'mps', 'cpu'; auto = the best available
    dtype: DTypeName = "auto"  # of the weights; auto = bfloat16 where the processor supports it natively, else float32
    quantize: Literal["auto", "none", "int8"] = "auto"  # int8 weights; auto = from AVX2 on, unless a dtype is given
    threads: int | Literal["auto"] = "auto"  # of a CPU; auto = OMP_NUM_THREADS, or one per core


def joined(argv: list[str]) -> list[str]:
    """argv with `--prompt TEXT` and the like as single words, `--prompt=TEXT`."""
    words = list(argv)
    for i in range(len(words) - 2, -1, -1):
        if words[i] in ("--prompt", "--suffix", "--file"):
            words[i : i + 2] = [f"{words[i]}={words[i + 1]}"]
    return words


if __name__ == "__main__":
    read_early(CompleteConfig, joined(sys.argv[1:]))  # --help and mistakes are answered before the slow imports

import torch

from completion.completer import Completer, apart, load_completer, whole_suggestion
from completion.textfile import TextFile
from data.encodings import not_utf8


def main(argv: list[str]) -> int:
    config, _ = configure(CompleteConfig, joined(argv))
    validate(config)
    is_editor = config.prompt is None and not config.stdin and not config.jsonl
    if is_editor:
        check_terminal(config)
        from completion.editor import edit, find_lexer  # only here: the rest works without prompt_toolkit and Pygments

        find_lexer(config.language, config.file, "")  # a mistake is found before the model is loaded
    source = [config.init_from, config.out_dir, config.device, config.dtype, config.quantize, config.block_size]
    name = Path(config.file or "").as_posix()
    source += ["" if name == "." else name, config.ngram, config.ngram_data]
    completer, dataset = apart(load_completer, *source)
    if config.threads != "auto":  # now: a device is picked with what a container's quota allows
        torch.set_num_threads(config.threads)
    options = {"max_bytes": config.max_bytes, "min_confidence": config.min_confidence}
    if is_editor:
        path = Path(config.file) if config.file is not None else None
        return edit(completer, path, find_lexer(config.language, config.file, dataset), **options)
    if config.jsonl:
        for line in filter(bytes.strip, sys.stdin.buffer):
            print(json.dumps(answer_request(completer, line, **options), ensure_ascii=False), flush=True)
        return 0
    before = config.prompt
    if before is None:
        try:
            before = sys.stdin.buffer.read().decode("utf-8-sig")  # Windows puts a mark before a text
        except UnicodeDecodeError as error:
            raise ValueError(not_utf8("standard input", error)) from error
    found = whole_suggestion(completer, before, config.suffix, **options).text
    print(found)
    if not found and sys.stdout.isatty():
        least = f"is right with a probability of at least {config.min_confidence:g}"
        print(f"note: no suggestion {least}; a lower --min_confidence shows more", file=sys.stderr)
    return 0


def validate(config: CompleteConfig) -> None:
    modes = [f"--{key}" for key in ("prompt", "stdin", "jsonl", "file") if getattr(config, key) not in (None, False)]
    if len(modes) > 1:
        raise ValueError(f"{' and '.join(modes)} cannot be combined: use one of them")
    if config.suffix and config.prompt is None and not config.stdin:
        raise ValueError("--suffix is the text after the cursor: use it with --prompt or --stdin")
    if not 0 <= config.min_confidence <= 1:
        raise ValueError(f"min_confidence={config.min_confidence} must be a probability from 0 to 1")
    if config.max_bytes < 1:
        raise ValueError(f"max_bytes={config.max_bytes} must be at least 1")
    check_threads(config.threads)


def check_terminal(config: CompleteConfig) -> None:
    """Raises ValueError if the editor cannot run, before the model is loaded."""
    instead = "or use --prompt, --stdin or --jsonl"
    for package in ("prompt_toolkit", "pygments"):
        if find_spec(package) is None:
            raise ValueError(f"the editor needs {package}: pip install prompt_toolkit Pygments, {instead}")
    if not sys.stdin.isatty() or not (sys.stdout.isatty() or sys.stderr.isatty()):
        raise ValueError(f"the editor needs a terminal on standard input and output: run it in one, {instead}")
    if config.file is not None:
        TextFile(Path(config.file))


def answer_request(completer: Completer, line: bytes, **defaults) -> dict:
    """{"completion", "confidence"} or {"error"}, with the request's "id" if it has one. The request may override
    `defaults`, options of Completer.suggest."""
    request = None
    try:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            begin = line.strip()[:40].decode("utf-8", "replace")
            raise ValueError(f'the line is not JSON ({error}), expected {{"prompt": "..."}}, found: {begin}') from error
        check_request(request)
        options = defaults | {key: value for key, value in request.items() if key not in ("prompt", "id")}
        found = whole_suggestion(completer, request["prompt"], **options)
        answer = {"completion": found.text, "confidence": round(found.confidence, 4)}
    except Exception as error:  # the next request may still succeed
        answer = {"error": " ".join(str(error).split()) or type(error).__name__}
    return ({"id": request["id"]} if isinstance(request, dict) and "id" in request else {}) | answer


def check_request(request) -> None:
    if not isinstance(request, dict) or "prompt" not in request:
        raise ValueError('expected a JSON object with a "prompt"')
    for key, value in request.items():
        if key not in REQUEST_TYPES and key != "id":
            raise ValueError(f"unknown key {key!r}, known: {', '.join(REQUEST_TYPES)}, id")
        if key in REQUEST_TYPES and (not isinstance(value, REQUEST_TYPES[key]) or isinstance(value, bool)):
            raise ValueError(f"{key} is {value!r}, expected {TYPE_NAMES[REQUEST_TYPES[key]]}")
        if key.startswith("max_") and value < 1:
            raise ValueError(f"{key} is {value}, expected at least 1")
        if key == "min_confidence" and not 0 <= value <= 1:
            raise ValueError(f"{key} is {value}, expected a probability from 0 to 1")


if __name__ == "__main__":
    exit_on_error(main)

"""Code completion at the terminal: an editor in which the model's suggestion stands in grey after the cursor.

    python complete.py --out_dir=out-pycode --file=hello.py          Tab takes the suggestion, Esc saves and leaves
    python complete.py --out_dir=out-pycode --prompt "import numpy as"
    printf 'def main(' | python complete.py --out_dir=out-pycode --stdin
    python complete.py --out_dir=out-pycode --jsonl                  {"prompt": "..."} -> {"completion": "..."}

In the editor: Tab accepts the suggestion, Ctrl-Right or Alt-F one word of it, Backspace dismisses it, Enter begins a
line with the indentation that the model foresees (or else that of the line before), Ctrl-Z undoes, Esc or Ctrl-D
leaves and prints the text, or writes it to --file. Ctrl-C leaves the file alone: what was typed goes to FILE.unsaved
(or the next free name, FILE.unsaved.1), as it does if the terminal is closed or another program has changed the file;
without --file a closed terminal leaves it in text.unsaved.

A request of --jsonl may also have "suffix" (the text behind the cursor), "max_bytes", "max_tokens", "min_confidence"
and "id", which comes back; its answer has "completion" and "confidence", or else "error".
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from completion.completer import MAX_BYTES, apart, complete, load_completer
from completion.editor import edit
from completion.requests import serve
from completion.textfile import check_file
from configurator import configure, exit_on_error
from system.device import DTypeName


@dataclass
class CompleteConfig:
    # Model
    init_from: str = "resume"  # 'resume' = from out_dir, or a checkpoint, a folder, 'gpt2', 'gpt2-xl'
    out_dir: str = "out"  # folder of the run
    # Instead of the editor
    prompt: str | None = None  # print the completion of this text
    stdin: bool = False  # print the completion of the text on standard input
    jsonl: bool = False  # answer requests: one JSON object a line, from standard input to standard output
    # Editor
    file: str | None = None  # edit this file, which need not exist; None = print the text at the end
    language: str = "auto"  # of the highlighting, by Pygments' name; auto = by the file's name, else the dataset's
    # Suggestions
    max_bytes: int = MAX_BYTES  # longest suggestion, bytes of UTF-8
    min_confidence: float = 0.2  # least probability that the whole suggestion is right
    # System
    device: str = "auto"  # 'cuda', 'cuda:1', 'mps', 'cpu'; auto = the best there is
    dtype: DTypeName = "auto"  # of the weights; auto = bfloat16 where the processor multiplies it, else float32
    quantize: Literal["auto", "none", "int8"] = "auto"  # int8 weights; auto = on AVX-512, unless a dtype is given
    threads: int | None = None  # of the CPU; None = as many as it has cores


def main(argv: list[str]) -> int:
    config, _ = configure(CompleteConfig, joined(argv, "--prompt", "--file"))
    validate(config)
    is_editor = config.prompt is None and not config.stdin and not config.jsonl
    if is_editor:
        check_terminal(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    completer, dataset = apart(load_completer, config)
    if is_editor:
        return edit(completer, config, dataset)
    if config.jsonl:
        serve(completer, config, sys.stdin.buffer)
        return 0
    before = config.prompt
    if before is None:
        try:
            before = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is no UTF-8 text: {error}") from error
    print(complete(completer, before, max_bytes=config.max_bytes, min_confidence=config.min_confidence).text)
    return 0


def joined(argv: list[str], *keys: str) -> list[str]:
    """argv with `--key value` as one word for these keys."""
    words = list(argv)
    for i in range(len(words) - 2, -1, -1):
        if words[i] in keys:
            words[i : i + 2] = [f"{words[i]}={words[i + 1]}"]
    return words


def validate(config: CompleteConfig) -> None:
    ways = [key for key in ("prompt", "stdin", "jsonl", "file") if getattr(config, key) not in (None, False)]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(f'--{way}' for way in ways)} exclude each other, use one of them")
    if not 0 <= config.min_confidence <= 1:
        raise ValueError(f"min_confidence={config.min_confidence} is a probability, from 0 to 1")
    for key in ("max_bytes", "threads"):
        if (getattr(config, key) or 0) < 1 and getattr(config, key) is not None:
            raise ValueError(f"{key}={getattr(config, key)} must be at least 1")


def check_terminal(config: CompleteConfig) -> None:
    """What can be known to fail before the model is loaded."""
    try:
        import prompt_toolkit  # noqa: F401
        import pygments  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"the editor needs the package {error.name}: pip install prompt_toolkit Pygments; or use "
            "--prompt, --stdin or --jsonl"
        ) from None
    if not sys.stdin.isatty() or not (sys.stdout.isatty() or sys.stderr.isatty()):
        raise ValueError("standard input is no terminal: the editor needs one; use --prompt, --stdin or --jsonl")
    if config.file is not None:
        check_file(Path(config.file))


if __name__ == "__main__":
    exit_on_error(main)

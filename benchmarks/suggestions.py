"""Speed and accuracy of code completion."""

import inspect
import io
import math
import queue
import re
import threading
import time

import numpy as np
import torch

from benchmarks.report import parser, report
from data.dataset import open_dataset
from inference.load import make_ready
from model import GPT, GPTConfig


def complete(argv: list[str]) -> None:
    """From a key to what the screen shows, in the editor of complete.py with a pipe for a keyboard.

    Types a file's text after its first --context bytes, key by key, the next one when the suggestion stands. Without
    --out_dir by a 10M-parameter byte model that is sure of nonsense: every suggestion is 32 bytes long and the next
    key never agrees with it, which is the worst case (a trained model stops earlier, and is often right).
    """
    made = parser("complete", inspect.getdoc(complete))
    made.add_argument("--out_dir", help="a run's folder; default: the worst case described above")
    made.add_argument("--text", default=__file__, help="UTF-8 file to type (default: this one)")
    made.add_argument("--context", type=int, default=500, help="its bytes that are there already (default: 500)")
    made.add_argument("--keys", type=int, default=300, help="keys to press (default: 300)")
    made.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of the weights")
    made.add_argument("--quantize", default="auto", choices=["auto", "none", "int8"], help="as in complete.py")
    args = made.parse_args(argv)

    from complete import CompleteConfig, apart, load_completer
    from sample import read_file

    config = CompleteConfig(out_dir=args.out_dir or "", dtype=args.dtype, quantize=args.quantize)
    text = read_file("--text=", args.text)
    if args.out_dir:
        completer, _ = apart(load_completer, config)
    else:
        completer = apart(sure_completer, config)
    start = len(text.encode()[: args.context].decode("utf-8", "ignore"))
    times = type_into_editor(completer, text[:start], text[start : start + args.keys], config)
    rows = []
    for name, seconds in times.items():
        p50, p95, most = np.percentile(seconds or [math.nan], [50, 95, 100]) * 1000
        rows.append({"from the key to": name, "keys": len(seconds), "p50 ms": p50, "p95 ms": p95, "most ms": most})
    report("complete", rows, args.json)


def sure_completer(config):
    from complete import Completer
    from data.tokenizer import ByteTokenizer

    return Completer(make_ready(sure_model(), torch.device("cpu"), config.dtype, config.quantize), ByteTokenizer())


def sure_model() -> GPT:
    """6 layers, 384 wide, random but for its head: one printable ASCII character has all of the probability."""
    config = GPTConfig(block_size=1024, vocab_size=256, n_layer=6, n_head=6, n_embd=384, tie_weights=False)
    model = GPT(config, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
        model.transformer.ln_f.bias[0] = 100.0
        model.lm_head.weight[:, 0] = -1e4
        model.lm_head.weight[33:127, 0] = 1e4
    return model.eval()


def type_into_editor(completer, text: str, keys: str, config) -> dict[str, list[float]]:
    """Seconds from each key to the screen with its echo, the first of the ghost text (if there is any), all of it."""
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output.vt100 import Vt100_Output
    from pygments.lexers import PythonLexer

    from complete import Editor

    times = {"its echo": [], "the first of the suggestion": [], "the whole suggestion": []}
    output = Vt100_Output(io.StringIO(), lambda: Size(rows=40, columns=120), term="xterm-256color")
    with create_pipe_input() as keyboard:
        editor = Editor(
            completer,
            text,
            PythonLexer,
            input=keyboard,
            output=output,
            max_bytes=config.max_bytes,
            min_confidence=config.min_confidence,
        )
        drawn = queue.Queue()  # (time, text before the cursor, ghost text, whether the suggestion is whole)
        editor.app.after_render += lambda _: drawn.put(
            (time.perf_counter(), editor.before, editor.ghost, editor.state != "...")
        )

        def type_all() -> None:
            before = None
            for key in ["", *keys]:
                start, seen = time.perf_counter(), {}
                keyboard.send_text("\r" if key == "\n" else key)
                while "the whole suggestion" not in seen:
                    now, at, ghost, is_whole = drawn.get(timeout=60)
                    for name, is_there in zip(times, (True, bool(ghost), is_whole), strict=True):
                        if is_there and at != before:
                            seen.setdefault(name, now - start)
                before = at
                for name, seconds in seen.items() if key else ():
                    times[name].append(seconds)

        def type_and_leave() -> None:
            try:
                type_all()
            finally:
                keyboard.send_text("\x04")

        typist = threading.Thread(target=type_and_leave)
        typist.start()
        editor.run()
        typist.join()
    return times


def lines(argv: list[str]) -> None:
    """How often a model knows how a line goes on, at a random place in lines of the validation split.

    The places are characters chosen with --seed, the context is what the editor would give (whole lines), decoding is
    greedy. "the next token": the first token that the model writes there (the rest of it, where the place is inside
    of one) is what follows; "the rest of the line": all up to the newline is. The suggestion is the one that the
    editor would show.
    """
    made = parser("lines", inspect.getdoc(lines))
    made.add_argument("--out_dir", required=True, help="a run's folder")
    made.add_argument("--dataset", help="default: the one that it was trained on")
    made.add_argument("--lines", type=int, default=500, help="lines to try (default: 500)")
    made.add_argument("--seed", type=int, default=1, help="of the choice of lines and places (default: 1)")
    made.add_argument("--min_confidence", type=float, default=None, help="of a suggestion (default: the editor's)")
    made.add_argument("--device", default="auto", help="default: auto")
    args = made.parse_args(argv)

    if args.lines < 1:
        raise ValueError(f"--lines={args.lines} must be at least 1")
    from tqdm import tqdm

    from complete import CompleteConfig, load_completer

    config = CompleteConfig(out_dir=args.out_dir, device=args.device)
    floor = config.min_confidence if args.min_confidence is None else args.min_confidence
    completer, trained_on = load_completer(config)
    dataset = open_dataset(args.dataset or trained_on)
    found = []
    places = choose_places(dataset.array("val"), completer.tokenizer, args.lines, args.seed)
    for before, rest in tqdm(places, desc="lines", disable=None):
        *_, shown = completer.suggest(before, min_confidence=floor)
        found.append((*next_and_rest(completer, before, rest.encode()), shown.text, rest.startswith(shown.text)))
    next_right, rest_right, texts, are_right = zip(*found, strict=True)
    right = [text for text, is_right in zip(texts, are_right, strict=True) if text and is_right]
    shares = [
        ("the next token is right", sum(next_right), len(found)),
        ("the rest of the line is right", sum(rest_right), len(found)),
        (f"a suggestion is shown (confidence {floor:g})", sum(map(bool, texts)), len(found)),
        ("such a suggestion is right", len(right), sum(map(bool, texts))),
    ]
    rows = [{"of": n, "times": share, "%": 100 * k / max(1, n)} for share, k, n in shares]
    report(f"lines of {dataset.name}", rows, args.json)
    print(f"characters of a right suggestion: {sum(map(len, right)) / max(1, len(right)):.1f} on average")


def choose_places(ids: np.ndarray, tokenizer, n: int, seed: int) -> list[tuple[str, str]]:
    """n times (the text of a document up to a place inside of a line, the rest of the line, not empty)."""
    ends = np.flatnonzero(ids == tokenizer.eot) if tokenizer.eot is not None else []
    documents = [tokenizer.decode(part) for part in np.split(ids, ends)]
    spans = []  # of the lines' texts: document, start, end
    for number, text in enumerate(documents):
        spans += [(number, match.start(), match.end()) for match in re.finditer(r"[^\s].*", text)]
    if not spans:
        raise ValueError("the validation split has no line with text on it")
    rng = np.random.default_rng(seed)
    places = []
    for i in rng.permutation(len(spans))[:n]:
        number, start, end = spans[i]
        place = int(rng.integers(start, end))
        places.append((documents[number][:place], documents[number][place:end]))
    return places


def next_and_rest(completer, before: str, rest: bytes) -> tuple[bool, bool]:
    """Whether the first token that the model writes is right, and whether all up to the newline are."""
    written = b""
    for number, (piece, _) in enumerate(completer.greedy(before)):
        line, newline, _ = piece.partition(b"\n")
        written += line
        if newline or not rest.startswith(written):
            return number > 0 or written == rest, written == rest
    return bool(written), False  # the text or the context ends before the line

"""Code completion: how soon the editor shows a suggestion, and how often a suggestion is right."""

import io
import queue
import re
import threading
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import at_least, parser, print_table
from completion import MAX_BYTES, MIN_CONFIDENCE
from completion.completer import Completer, apart, load_completer
from data.tokenizer import ByteTokenizer
from evaluation.fim import texts_of
from inference.load import make_ready, open_matching_dataset, open_trained
from model import GPT, GPTConfig

CPU = torch.device("cpu")


def keystroke_latency(argv: list[str]) -> None:
    """Time from a key to what the screen shows, in the editor of complete.py, typing through a pipe.

    Types a file's text after its first --context bytes, each key as soon as the suggestion is complete. Without
    --out_dir the model is the worst case: 10M parameters, byte tokens, and sure of nonsense. Every suggestion is 32
    bytes long and the next key never matches it; a trained model's are shorter and often right.
    """
    made = parser("complete", keystroke_latency.__doc__)
    add = made.add_argument
    add("--out_dir", help="a run's folder (default: the worst case described above)")
    add("--text", default=__file__, help="UTF-8 file to type (default: this benchmark's source)")
    add("--context", type=int, default=500, help="bytes of it already in the editor (default: 500)")
    add("--keys", type=at_least(1), default=300, help="keys to press (default: 300)")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of the weights (default: auto)")
    add("--quantize", default="auto", choices=["auto", "none", "int8"], help="as in complete.py (default: auto)")
    args = made.parse_args(argv)
    try:
        text = Path(args.text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--text={args.text} cannot be read as UTF-8 text: {error}") from error
    start = len(text.encode()[: args.context].decode("utf-8", "ignore"))
    if start == len(text):
        raise ValueError(f"--text={args.text} has nothing to type behind --context={args.context}: use less of it")
    if args.out_dir:
        completer, _ = apart(load_completer, "resume", args.out_dir, "auto", args.dtype, args.quantize)
    else:
        completer = apart(lambda: Completer(make_ready(sure_model(), CPU, args.dtype, args.quantize), ByteTokenizer()))
    times = type_into_editor(completer, text[:start], text[start : start + args.keys])
    rows = []
    for name, seconds in times.items():
        p50, p95, most = np.percentile(seconds, [50, 95, 100]) * 1000 if seconds else [None] * 3
        rows.append({"from the key to": name, "keys": len(seconds), "p50 ms": p50, "p95 ms": p95, "most ms": most})
    print_table("complete", rows, args.json)


def sure_model() -> GPT:
    """6 layers of width 384, random except for the head: one printable ASCII character has all the probability."""
    config = GPTConfig(block_size=1024, vocab_size=256, n_layer=6, n_head=6, n_embd=384, tie_weights=False)
    model = GPT(config, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
        model.transformer.ln_f.bias[0] = 100.0
        model.lm_head.weight[:, 0] = -1e4
        model.lm_head.weight[33:127, 0] = 1e4
    return model.eval()


def type_into_editor(completer: Completer, text: str, keys: str) -> dict[str, list[float]]:
    """Seconds from each key to its echo on the screen, to the first text suggested (if any), and to all of it."""
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output.vt100 import Vt100_Output
    from pygments.lexers import PythonLexer

    from completion.editor import Editor

    times = {"its echo": [], "the first of the suggestion": [], "the whole suggestion": []}
    output = Vt100_Output(io.StringIO(), lambda: Size(rows=40, columns=120), term="xterm-256color")
    limits = {"max_bytes": MAX_BYTES, "min_confidence": MIN_CONFIDENCE}
    drawn = queue.Queue()  # time, text before the cursor, whether each of `times` is on the screen

    def after_render(_) -> None:
        drawn.put((time.perf_counter(), editor.before, (True, bool(editor.ghost), editor.state != "...")))

    def type_and_leave() -> None:
        before = None
        try:
            for number, key in enumerate(["", *keys]):  # first wait for the initial text's suggestion
                start, seen = time.perf_counter(), {}
                keyboard.send_text("\r" if key == "\n" else key)
                while "the whole suggestion" not in seen:
                    now, at, shown = drawn.get(timeout=60)
                    for name, is_shown in zip(times, shown, strict=True):
                        if is_shown and at != before:
                            seen.setdefault(name, now - start)
                before = at
                for name in seen if number else ():
                    times[name].append(seen[name])
        finally:
            keyboard.send_text("\x04")

    with create_pipe_input() as keyboard:
        editor = Editor(completer, text, PythonLexer, input=keyboard, output=output, **limits)
        editor.app.after_render += after_render
        typist = threading.Thread(target=type_and_leave)
        typist.start()
        editor.run()
        typist.join()
    return times


def line_accuracy(argv: list[str]) -> None:
    """How often a model knows how a line continues, at random places inside lines of the validation split.

    Context (whole lines), greedy decoding and suggestions are the editor's. "the next token is right": the first token
    (its rest, if the place is inside a token) is what follows. "the rest of the line is right": so is everything up to
    the newline.
    """
    made = parser("lines", line_accuracy.__doc__)
    add = made.add_argument
    add("--out_dir", required=True, help="a run's folder")
    add("--dataset", help="whose val split has the lines (default: the model's)")
    add("--lines", type=at_least(1), default=500, help="lines to try (default: 500)")
    add("--seed", type=int, default=1, help="of the choice of lines and places (default: 1)")
    add("--min_confidence", type=float, default=MIN_CONFIDENCE, help="of a suggestion (default: the editor's)")
    add("--device", default="auto", help="as in complete.py (default: auto)")
    add("--ngram", type=float, default=0.0, help="share of an n-gram model of the training text (default: 0)")
    add("--ngram_data", metavar="DATASETS", help="whose training texts are counted (default: those of --dataset)")
    args = made.parse_args(argv)

    from tqdm import tqdm

    _, state = open_trained("resume", args.out_dir)
    dataset = open_matching_dataset(args.dataset, state)
    counts = {"ngram": args.ngram, "ngram_data": args.ngram_data or (args.dataset if args.ngram else None)}
    completer, _ = load_completer("resume", args.out_dir, args.device, **counts)
    places = choose_places(dataset.array("val"), completer.tokenizer, args.lines, args.seed)
    found, n_characters = [], 0  # per place: next token right, rest right, suggestion shown, suggestion right
    for before, rest in tqdm(places, desc="lines", disable=None):
        *_, suggestion = completer.suggest(before, min_confidence=args.min_confidence)
        is_right = bool(suggestion.text) and rest.startswith(suggestion.text)
        found.append((*next_and_rest(completer, before, rest.encode()), bool(suggestion.text), is_right))
        n_characters += len(suggestion.text) * is_right
    next_right, rest_right, shown, right = map(sum, zip(*found, strict=True))
    shares = [
        ("the next token is right", next_right, len(found)),
        ("the rest of the line is right", rest_right, len(found)),
        (f"a suggestion is shown (confidence {args.min_confidence:g})", shown, len(found)),
        ("such a suggestion is right", right, shown),
    ]
    rows = [{"of": n, "times": share, "%": 100 * k / max(1, n)} for share, k, n in shares]
    print_table(f"lines of {dataset.name}", rows, args.json)
    print(f"characters of a right suggestion: {n_characters / max(1, right):.1f} on average")


def choose_places(ids: np.ndarray, tokenizer, n: int, seed: int) -> list[tuple[str, str]]:
    """At most n pairs: a document's text up to a random place inside a line, and the non-empty rest of the line."""
    texts = [text for _, text in texts_of(ids, tokenizer)]
    spans = [(text, match.span()) for text in texts for match in re.finditer(r"\S.*", text)]  # of the lines
    if not spans:
        raise ValueError("the validation split has no line with text on it")
    rng, places = np.random.default_rng(seed), []
    for i in rng.permutation(len(spans))[:n]:
        text, (start, end) = spans[i]
        place = int(rng.integers(start, end))
        places.append((text[:place], text[place:end]))
    return places


def next_and_rest(completer: Completer, before: str, rest: bytes) -> tuple[bool, bool]:
    """Whether the model's first token is right, and whether everything up to the newline is."""
    written = b""
    for number, (piece, _) in enumerate(completer.greedy(before)):
        line, newline, _ = piece.partition(b"\n")
        written += line
        if newline or not rest.startswith(written):
            return number > 0 or written == rest, written == rest
    return bool(written), False  # the text or the context ends before the line

"""llama.cpp, by its Python binding llama-cpp-python, beside this project: its speed, and whether it agrees."""

import ctypes
import statistics
import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.report import median_seconds, parser, print_table
from checkpoints.build import build_model
from checkpoints.gguf import write_gguf
from data.plain import CharTokenizer
from evaluation.scoring import score
from evaluation.windows import plan_windows
from inference.generate import stream
from inference.load import find_tokenizer, make_ready, open_trained
from inference.sampling import Sampling
from model import GPT, GPTConfig
from system.distributed import Ranks

WEIGHTS = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0"}  # ours: theirs


class LlamaCpp:
    """llama.cpp on a file, by its C functions. exact: keys and values in float32."""

    def __init__(self, path: Path, n_ctx: int, exact: bool = False):
        try:
            import llama_cpp
        except ImportError as error:
            raise ValueError("llama.cpp is missing: pip install llama-cpp-python compiles it here") from error
        self.c, self.quiet = llama_cpp, llama_cpp.llama_log_callback(lambda level, text, data: None)
        self.c.llama_log_set(self.quiet, ctypes.c_void_p())
        self.c.llama_backend_init()
        model_params, params = self.c.llama_model_default_params(), self.c.llama_context_default_params()
        model_params.n_gpu_layers = 0
        self.build = self.c.llama_print_system_info().decode().strip(" |")
        # AMX kernels, which crash in virtual machines that say they have AMX; elsewhere this is repacked weights
        model_params.use_extra_bufts = "AMX_INT8 = 1" not in self.build
        params.n_ctx = params.n_batch = n_ctx
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        if exact:
            params.type_k = params.type_v = 0
            params.flash_attn_type = 0
        self.model = self.c.llama_model_load_from_file(str(path).encode(), model_params)
        if not self.model:
            raise ValueError(f"llama.cpp {llama_cpp.__version__} cannot load the file that was written for it")
        self.context = self.c.llama_init_from_model(self.model, params)
        self.vocab = self.c.llama_model_get_vocab(self.model)
        self.n_ids = self.c.llama_vocab_n_tokens(self.vocab)

    def close(self) -> None:
        self.c.llama_free(self.context)
        self.c.llama_model_free(self.model)

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        ids = (self.c.llama_token * (len(data) + 2))()
        return ids[: self.c.llama_tokenize(self.vocab, data, len(data), ids, len(ids), True, False)]

    def step(self, ids: list[int]) -> np.ndarray:
        """The logits (V,) of the token after all ids so far and these."""
        tokens = (self.c.llama_token * len(ids))(*ids)  # the batch only points to them
        if failed := self.c.llama_decode(self.context, self.c.llama_batch_get_one(tokens, len(ids))):
            raise ValueError(f"llama.cpp cannot continue {len(ids)} ids: llama_decode returned {failed}")
        return np.ctypeslib.as_array(self.c.llama_get_logits_ith(self.context, -1), (self.n_ids,))

    def clear(self) -> None:
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        self.clear()
        ids = [int(self.step(prompt).argmax())]
        while len(ids) < tokens:
            ids.append(int(self.step(ids[-1:]).argmax()))
        return ids

    def loss(self, ids: np.ndarray, n_ctx: int) -> float:
        """Nats per token over windows of n_ctx inputs, each from an empty context."""
        nats, count = 0.0, 0
        for start in range(0, len(ids) - 1, n_ctx):
            window = ids[start : start + n_ctx + 1].tolist()
            self.clear()
            for id, following in zip(window, window[1:], strict=False):
                logits = torch.from_numpy(self.step([id]).copy())
                nats += F.cross_entropy(logits, torch.tensor(following)).item()
            count += len(window) - 1
        return nats / count


# ---- speed -----------------------------------------------------------------------------------------


def speed_beside_llama_cpp(args, shapes: dict[str, dict]) -> None:
    """bench.py generate --peer=llama.cpp: both write in turn on the same threads, one token at a time, greedily. The
    same weights in the formats of WEIGHTS; a ratio above 1 says that ours is faster."""
    if args.formats or args.batch or args.device not in ("auto", "cpu"):
        raise ValueError("--peer=llama.cpp is on the CPU, at batch 1: leave out --device, --batch and --formats")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            shape = {"mlp": "gelu_tanh"} | shapes[name]
            model = GPT(GPTConfig(1024, **shape), torch.Generator().manual_seed(0)).eval()
            V = model.config.vocab_size
            tokenizer = CharTokenizer("".join(map(chr, range(1, V))), eot=True)  # any with as many ids
            prompt = torch.randint(1, V - 1, (1, args.prompt), generator=torch.Generator().manual_seed(0))
            for ours, theirs in WEIGHTS.items():
                path = Path(folder, f"{name}-{theirs}.gguf")
                write_gguf(path, model, tokenizer, theirs)
                peer, writer = LlamaCpp(path, 1024), our_writer(model, ours)
                writers = {f"ours {ours}": writer, f"llama.cpp {theirs}": partial(peer.greedy, prompt[0].tolist())}
                rows += alternating_rows(name, writers, prompt, args)
                peer.close()
                path.unlink()
    print_table("generate --peer=llama.cpp", rows, args.json)
    print(f"\nllama.cpp {peer.build}" + ", AMX not used" * ("AMX" in peer.build))


def our_writer(model: GPT, kind: str) -> Callable:
    dtype, quantize = ("float32", "int8") if kind == "int8" else (kind, "none")
    ready = make_ready(deepcopy(model), torch.device("cpu"), dtype, quantize)

    def write(prompt: torch.Tensor, tokens: int) -> list[int]:
        return [int(ids) for ids, _ in stream(ready, prompt, tokens, Sampling(temperature=0))]

    return write


def alternating_rows(name: str, writers: dict[str, Callable], prompt: torch.Tensor, args) -> list[dict]:
    """One row for each writer, from `repeats` rounds in which each writes once."""
    times = {tool: [] for tool in writers}  # (seconds to the first token, seconds to the last)
    for _ in range(1 + args.repeats):
        for tool, write in writers.items():
            write = write if tool.startswith("llama.cpp") else partial(write, prompt)
            times[tool].append([median_seconds(partial(write, n), 1, warmup=0) for n in (1, args.tokens)])
    speeds = {t: [(args.tokens - 1) / (whole - first) for first, whole in found[1:]] for t, found in times.items()}
    base = next(tool for tool in writers if tool.startswith("llama.cpp"))
    ratios = {t: statistics.median(a / b for a, b in zip(s, speeds[base], strict=True)) for t, s in speeds.items()}
    return [
        {
            "model": name,
            "tool": tool,
            "tokens/s": statistics.median(speeds[tool]),
            "times llama.cpp": ratios[tool],
            "first token ms": 1000 * statistics.median(first for first, _ in found[1:]),
        }
        for tool, found in times.items()
    ]


# ---- agreement -------------------------------------------------------------------------------------


def agreement(argv: list[str]) -> None:
    """A trained model written as a GGUF, beside the original: whether the ids of texts are equal, how many of the first
    greedy tokens agree, and the perplexity on the first text in each format."""
    made = parser("gguf", agreement.__doc__)
    made.add_argument("--init_from", default="resume", help="as in export.py (default: resume)")
    made.add_argument("--out_dir", default="out", help="folder of the run (default: out)")
    made.add_argument("--texts", nargs="+", required=True, help="files in UTF-8, the first for perplexity")
    made.add_argument("--chars", type=int, default=1_000_000, help="of each text (default: 1000000)")
    made.add_argument("--tokens", type=int, default=200, help="greedy tokens to compare (default: 200)")
    made.add_argument("--scored", type=int, default=4096, help="tokens of the first text (default: 4096)")
    args = made.parse_args(argv)
    _, state = open_trained(args.init_from, args.out_dir)
    tokenizer, model = find_tokenizer(state), build_model(state, dropout=0.0).eval()
    texts = {path: Path(path).read_text(encoding="utf-8")[: args.chars] for path in args.texts}
    with tempfile.TemporaryDirectory() as folder:
        compare_ids(texts, tokenizer, model, Path(folder), args.json)
        ids = tokenizer.encode_document(texts[args.texts[0]]).astype(np.int64)[: args.scored + 1]
        compare_formats(ids, tokenizer, model, args, Path(folder))


def compare_ids(texts: dict[str, str], tokenizer, model: GPT, folder: Path, as_json: bool) -> None:
    write_gguf(folder / "m.gguf", model, tokenizer, "f16")
    peer, rows = LlamaCpp(folder / "m.gguf", 256), []
    for path, text in texts.items():
        row = {"text": Path(path).name, "MB": len(text.encode()) / 1e6}
        try:
            ours = tokenizer.encode_document(text).tolist()
            rows.append(row | {"ids": len(ours), "equal in llama.cpp": ours == peer.encode(text)})
        except ValueError as error:
            rows.append(row | {"ids": 0, "equal in llama.cpp": f"refused here: {str(error)[:60]}"})
    peer.close()
    print_table(f"gguf ({tokenizer.kind} tokenizer, {tokenizer.vocab_size:,} ids)", rows, as_json)


def compare_formats(ids: np.ndarray, tokenizer, model: GPT, args, folder: Path) -> None:
    block_size = model.config.block_size
    n = min(args.tokens, block_size - 8)
    prompt, rows = torch.from_numpy(ids[:8])[None], []
    greedy = Sampling(temperature=0, vocab_size=tokenizer.vocab_size)
    expected = [int(id) for id, _ in stream(model, prompt, n, greedy)]

    def add_row(tool: str, weights: str, n_bytes: int | None, loss: float, found: list[int]) -> None:
        size, name = n_bytes / 1e6 if n_bytes else "", f"equal of {n} greedy tokens"
        row = {"tool": tool, "weights": weights, "MB": size, "loss": loss, "perplexity": float(np.exp(loss))}
        rows.append(row | {name: equal_first(expected, found)})

    windows = plan_windows(np.array([0, len(ids) - 1]), block_size + 1, block_size)  # those of LlamaCpp.loss

    def our_loss(model: GPT) -> float:
        with torch.no_grad():
            return score(model, lambda: ids, windows, None, False, Ranks())[0].sum() / (len(ids) - 1)

    add_row("ours", "float32", None, our_loss(model), expected)
    rounded = make_ready(deepcopy(model), torch.device("cpu"), quantize="int8")
    found = [int(id) for id, _ in stream(rounded, prompt, n, greedy)]
    add_row("ours", "int8", None, our_loss(rounded), found)
    for type in ("f32", "f16", "q8_0", "q4_0"):
        _, n_bytes = write_gguf(folder / "m.gguf", model, tokenizer, type)
        peer = LlamaCpp(folder / "m.gguf", block_size, exact=type == "f32")
        add_row("llama.cpp", type, n_bytes, peer.loss(ids, block_size), peer.greedy(ids[:8].tolist(), n))
        peer.close()
    print_table("gguf", rows, args.json)


def equal_first(a: list[int], b: list[int]) -> int:
    """The number of first ids that are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))

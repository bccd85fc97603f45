"""Speed of inference: generation, and evaluation by eval.py."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch

from benchmarks.llama_cpp import speed_beside_llama_cpp
from benchmarks.report import at_least, median_seconds, parser, print_table
from benchmarks.runs import ROOT, random_dataset, run_python
from checkpoints.build import model_args_of
from checkpoints.file import save_checkpoint
from checkpoints.huggingface import hf_config, hf_tensors
from inference.generate import stream
from inference.load import make_ready
from inference.sampling import Sampling
from inference.static import CompiledStep
from model import GPT, GPTConfig
from system.device import pick_device, pick_dtype

TOOLS = ("ours", "uncached", "transformers")
SHAPES = {
    "6x384": {"vocab_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384},
    "12x768": {"vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768},
}
LLAMA = {"pos": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False}
LLAMA_SHAPES = {"6x384 llama": SHAPES["6x384"] | LLAMA, "12x768 llama": SHAPES["12x768"] | LLAMA}
EVAL_SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 256, "vocab_size": 32768}


def generation_speed(argv: list[str]) -> None:
    """Tokens per second, and milliseconds from a prompt to its first token, of GPT-2-shaped models with random weights.

    Greedy, on one device. "ours": cached generation in each number format; on a CPU with packed (pack.py) or int8
    (quantize.py) weights, on a GPU also compiled with CUDA graphs. "uncached": our model with plain weights on the
    whole context for every token (mean of the first and the last). "transformers": cached generate() of GPT2LMHeadModel
    on the same weights. "times ..." is relative to that tool's fastest format; "batch 8", whose rows share a prompt,
    relative to batch 1. * marks our fastest, the best of sample.py's --dtype, --quantize and --compile.
    --peer=llama.cpp compares with llama.cpp on a CPU instead, in turn, at batch 1, and has Llama's shape too.
    """
    made = parser("generate", generation_speed.__doc__)
    add = made.add_argument
    add("--peer", choices=("transformers", "llama.cpp"), default="transformers", help="(default: transformers)")
    add("--models", nargs="+", choices=[*SHAPES, *LLAMA_SHAPES], help="(default: all that --peer has)")
    add("--prompt", type=at_least(1), default=200, help="tokens of the prompt (default: 200)")
    add("--tokens", type=at_least(2), default=200, help="tokens to generate (default: 200)")
    add("--batch", type=at_least(1), help="rows of the second batch size (default: 8)")
    add("--repeats", type=at_least(1), default=3, help="runs, whose median counts (default: 3)")
    add("--device", default="auto", help="as in sample.py (default: auto)")
    text = "float32, bfloat16 (on older GPUs float16), on a CPU int8, on a GPU 'bfloat16 compiled' (default: all)"
    add("--formats", nargs="+", help=text)
    args = made.parse_args(argv)
    shapes = SHAPES if args.peer == "transformers" else SHAPES | LLAMA_SHAPES
    args.models = args.models or list(shapes)
    if not {*args.models} <= shapes.keys():
        raise ValueError(f"--peer=transformers has the models {', '.join(shapes)}; add --peer=llama.cpp for others")
    if args.peer == "llama.cpp":
        speed_beside_llama_cpp(args, shapes)
        return
    args.batch = args.batch or 8
    device = pick_device(args.device)
    formats = formats_on(device, args.formats)
    rows = []
    for shape in args.models:
        model = GPT(GPTConfig(1024, **SHAPES[shape], mlp="gelu_tanh"), torch.Generator().manual_seed(0)).eval()
        prompt = torch.randint(model.config.vocab_size, (1, args.prompt), generator=torch.Generator().manual_seed(0))
        model, prompt = model.to(device), prompt.to(device)
        speeds = {}  # (tool, format): tokens per second, the same for the second batch size, seconds to the first token
        for tool in TOOLS:
            for kind in formats:
                run = make_writer(tool, kind, model, [args.prompt, args.prompt + args.tokens - 1])
                if run and tool == "uncached":
                    speeds[tool, kind] = 2 / median_seconds(run, 5 * args.repeats), None, None  # two tokens
                elif run:
                    one, first = measure_writer(run, prompt, args.tokens, args.repeats)
                    many, _ = measure_writer(run, prompt.expand(args.batch, -1), args.tokens, args.repeats)
                    speeds[tool, kind] = one, many, first
        rows += table_rows(shape, speeds, args.batch)
    print_table("generate", rows, args.json)


def formats_on(device: torch.device, wanted: list[str] | None) -> list[str]:
    """The number formats to measure on a device: those wanted, else all it has."""
    half = str(pick_dtype("auto", device)).removeprefix("torch.") if device.type == "cuda" else "bfloat16"
    known = ["float32", half, "int8" if device.type == "cpu" else f"{half} compiled"]
    if wanted and not {*wanted} <= {*known}:
        raise ValueError(f"--formats {' '.join(wanted)}: expected some of {', '.join(known)} on this device")
    return wanted or known


def measure_writer(run: Callable, prompts: torch.Tensor, tokens: int, repeats: int) -> tuple[float, float]:
    """Tokens per second over all rows after the first token, and seconds to the first."""
    first, whole = (median_seconds(partial(run, prompts, n), repeats) for n in (1, tokens))
    return len(prompts) * (tokens - 1) / (whole - first), first


def table_rows(shape: str, speeds: dict[tuple[str, str], tuple], batch: int) -> list[dict]:
    best = {t: max((speed for (tool, _), (speed, *_) in speeds.items() if tool == t), default=None) for t in TOOLS}
    rows = []
    for (tool, kind), (one, many, first) in speeds.items():
        ours = tool == "ours"
        row = {"model": shape, "tool": tool, "weights": kind + " *" * (ours and one == best["ours"]), "tokens/s": one}
        row |= {f"times {t}": one / best[t] if ours and best[t] else "" for t in ("transformers", "uncached")}
        row |= {f"batch {batch} tokens/s": many or "", f"batch {batch}, times": many / one if many else ""}
        rows.append(row | {"first token ms": first * 1000 if first else ""})
    return rows


def make_writer(tool: str, kind: str, model: GPT, lengths: list[int]) -> Callable | None:
    """run(prompts (B, T), tokens) -> the ids of each step. For "uncached", run(): one forward pass of each length, the
    first token's and the last's, as the cost grows linearly in between. None if the tool lacks the format."""
    if tool != "ours" and kind not in ("float32", "bfloat16", "float16"):
        return None
    if tool == "transformers":
        return transformers_writer(model, getattr(torch, kind))
    device, (dtype, *compiled) = model.lm_head.weight.device, kind.split()
    quantize = "int8" if kind == "int8" else "none"
    plain = tool == "uncached" or bool(compiled)
    ready = make_ready(deepcopy(model), device, "float32" if kind == "int8" else dtype, quantize, plain=plain)

    steps_of = {}  # compiled steps, by batch size

    def write(prompts: torch.Tensor, tokens: int) -> list[list[int]]:
        if compiled and len(prompts) not in steps_of:
            steps_of[len(prompts)] = CompiledStep(ready, len(prompts), mode="reduce-overhead")
        pairs = stream(ready, prompts, tokens, Sampling(temperature=0), static=steps_of.get(len(prompts)))
        steps = (ids for ids, _ in pairs)
        # on a CPU read after every step, as if shown token by token; that would stall a GPU
        return [ids.tolist() for ids in steps] if device.type == "cpu" else torch.stack(list(steps)).tolist()

    @torch.no_grad()
    def recompute() -> None:
        for n in lengths:
            ready(torch.zeros(1, n, dtype=torch.int64, device=device))[0].argmax(-1).tolist()

    return write if tool == "ours" else recompute


def transformers_writer(model: GPT, dtype: torch.dtype) -> Callable | None:
    try:
        import transformers
    except ImportError:
        print("note: transformers is not installed, so its rows are missing", file=sys.stderr)
        return None
    config = transformers.GPT2Config(
        **hf_config(model.config, "gpt2", {"bos_token_id": None, "eos_token_id": None}, "float32")
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.load_state_dict(hf_tensors(model, "gpt2", torch.float32), strict=False)
    theirs.tie_weights()
    theirs.to(model.lm_head.weight.device, dtype)

    def run(prompts: torch.Tensor, tokens: int) -> list[list[int]]:
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        mask = torch.ones_like(prompts)
        text = theirs.generate(prompts, attention_mask=mask, do_sample=False, use_cache=True, pad_token_id=0, **length)
        return text[:, prompts.size(1) :].T.tolist()

    return run


def evaluation_speed(argv: list[str]) -> None:
    """eval.py on a model with random weights, by 1, 2, ... processes of one thread each. "seconds" is the scoring, once
    all processes have loaded the model; "whole command" includes the rest."""
    made = parser("eval", evaluation_speed.__doc__)
    made.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="counts to compare (default: 1 2)")
    made.add_argument("--tokens", type=at_least(2), default=65536, help="length of the text (default: 65536)")
    made.add_argument("--stride", type=int, help="as in eval.py")
    for key, value in EVAL_SHAPE.items():
        made.add_argument(f"--{key}", type=int, default=value, help=f"of the model (default: {value})")
    made.add_argument("--repeats", type=at_least(1), default=3, help="runs, of which the fastest counts (default: 3)")
    args = made.parse_args(argv)
    model = GPT(GPTConfig(**{key: getattr(args, key) for key in EVAL_SHAPE}), torch.Generator().manual_seed(0))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(
            Path(folder) / "ckpt.pt", {"model": model.state_dict(), "model_args": model_args_of(model.config)}
        )
        random_dataset(Path(folder), args.vocab_size, args.tokens)
        command = [str(ROOT / "eval.py"), f"--out_dir={folder}", f"--dataset={folder}", "--split=train", "--device=cpu"]
        command += [f"--stride={args.stride}"] * (args.stride is not None)
        for n in args.processes:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
            runs = []
            for _ in range(args.repeats):
                start = time.perf_counter()
                output = run_python("eval.py", [*torchrun, *command], OMP_NUM_THREADS="1")
                runs.append((json.loads(output.splitlines()[-1]), time.perf_counter() - start))
            result, whole = min(runs, key=lambda run: run[0]["seconds"])
            row = {"processes": n, "seconds": result["seconds"], "tokens/s": result["tokens_per_second"]}
            row["times as fast"] = rows[0]["seconds"] / row["seconds"] if rows else 1.0
            rows.append(row | {"whole command, s": whole, "loss": f"{result['loss']:.9f}"})
    print_table("eval", rows, args.json)

"""Speed of generation."""

import inspect
import itertools
import sys
from copy import deepcopy
from functools import partial

import torch

from benchmarks.report import median_seconds, parser, report
from inference.pack import pack
from inference.quantize import quantize
from model import GPT, GPTConfig, Sampling
from system.device import pick_device


def generate(argv: list[str]) -> None:
    """Tokens a second, and milliseconds from a prompt to its first token, of GPT-2-shaped models of random weights.

    Greedy, on one device. "ours": model.stream in each number format, on a CPU with weights as by pack.py or int8 as by
    quantize.py, on a GPU also compiled with CUDA graphs; "uncached": our model with plain weights on the whole context
    for every token (the mean of the first and the last);
    "transformers": generate() of GPT2LMHeadModel with its cache and the same weights. "times ..." divide by the fastest
    format of that tool; "batch 8", whose rows have one prompt, by the same row's batch 1. * marks our fastest, that is
    the best of sample.py's `--dtype`, `--quantize` and `--compile`.
    """
    made = parser("generate", inspect.getdoc(generate))
    add = made.add_argument
    add("--models", nargs="+", choices=SHAPES, default=list(SHAPES), help="(default: all)")
    add("--prompt", type=int, default=200, help="its tokens (default: 200)")
    add("--tokens", type=int, default=200, help="to write (default: 200)")
    add("--batch", type=int, default=8, help="rows of the second batch size (default: 8)")
    add("--repeats", type=int, default=3, help="medians of so many runs (default: 3)")
    add("--device", default="auto", help="(default: auto)")
    args = made.parse_args(argv)
    device = pick_device(args.device)
    formats = ("float32", "bfloat16", "int8" if device.type == "cpu" else "bfloat16 compiled")
    rows = []
    for shape in args.models:
        model = GPT(GPTConfig(1024, **SHAPES[shape], mlp="gelu_tanh"), torch.Generator().manual_seed(0)).eval()
        model.to(device)
        vocab_size = model.config.vocab_size
        prompt = torch.randint(vocab_size, (1, args.prompt), generator=torch.Generator().manual_seed(0)).to(device)
        found = []
        for tool, kind in itertools.product(("ours", "uncached", "transformers"), formats):
            run = make_writer(tool, kind, model, [args.prompt, args.prompt + args.tokens - 1])
            if run is None:
                continue
            rates, first = {}, None
            if tool == "uncached":
                rates[1] = 2 / median_seconds(run, 5 * args.repeats)  # two tokens
            else:
                for batch in (1, args.batch):
                    prompts = prompt.expand(batch, -1)
                    start = median_seconds(partial(run, prompts, 1), args.repeats)
                    whole = median_seconds(partial(run, prompts, args.tokens), args.repeats)
                    rates[batch] = batch * (args.tokens - 1) / (whole - start)  # without the prompt
                    first = first or start
            found.append((tool, kind, rates, first))
        best = {
            tool: max((rates[1] for t, _, rates, _ in found if t == tool), default=None)
            for tool in ("ours", "uncached", "transformers")
        }
        for tool, kind, rates, first in found:
            many, ours = rates.get(args.batch), tool == "ours"
            rows.append({
                "model": shape, "tool": tool, "weights": kind + " *" * (ours and rates[1] == best["ours"]),
                "tokens/s": rates[1], "times transformers": rates[1] / best["transformers"] if ours and
                best["transformers"] else "", "times uncached": rates[1] / best["uncached"] if ours else "",
                f"batch {args.batch} tokens/s": many or "",
                f"batch {args.batch}, times": many / rates[1] if many else "",
                "first token ms": first * 1000 if first else "",
            })  # fmt: skip
    report("generate", rows, args.json)


SHAPES = {
    "6x384": {"vocab_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384},
    "12x768": {"vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768},
}


def make_writer(tool: str, kind: str, model: GPT, lengths: list[int]):
    """run(prompts (B, T), tokens) -> the ids of each step, or for "uncached" run(): the forward pass of the first token
    and of the last, since the cost grows evenly between them. None: the tool lacks the number format."""
    if tool != "ours" and kind not in ("float32", "bfloat16"):
        return None
    if tool == "transformers":
        return transformers_writer(model, getattr(torch, kind))
    ours = deepcopy(model).to(torch.bfloat16 if kind.startswith("bfloat16") else torch.float32)
    device = ours.lm_head.weight.device
    if kind == "int8":
        quantize(ours)
    elif tool == "ours" and not kind.endswith("compiled"):
        pack(ours)

    def write(prompts, tokens):  # a list in every step: as one who reads along does; a GPU would have to wait for it
        if kind.endswith("compiled") and len(prompts) not in ours.compiled:
            ours.compile_decoding(len(prompts), mode="reduce-overhead")
        steps = (ids for ids, _ in ours.stream(prompts, tokens, Sampling(temperature=0)))
        return [ids.tolist() for ids in steps] if device.type == "cpu" else torch.stack(list(steps)).tolist()

    @torch.no_grad()
    def recompute():
        for n in lengths:
            ours(torch.zeros(1, n, dtype=torch.int64, device=device))[0].argmax(-1).tolist()

    return write if tool == "ours" else recompute


def transformers_writer(model: GPT, dtype: torch.dtype):
    try:
        import transformers
    except ImportError:
        print("note: the package transformers is not installed, so its rows are missing", file=sys.stderr)
        return None
    from export import hf_config, hf_tensors

    config = transformers.GPT2Config(**hf_config(model.config, "gpt2", None, "float32"))
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.load_state_dict(hf_tensors(model, "gpt2", torch.float32), strict=False)
    theirs.tie_weights()
    theirs.to(model.lm_head.weight.device, dtype)

    def run(prompts, tokens):
        text = theirs.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        return text[:, prompts.size(1) :].T.tolist()

    return run

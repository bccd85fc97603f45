"""Writes text with a trained model. Needs its checkpoint only: the tokenizer travels inside.

    python sample.py --out_dir=out-shakespeare-char --start="ROMEO:" --num_samples=3
    python sample.py --out_dir=out-hongloumeng-char --start="黛玉见了宝玉便说" --temperature=0.8 --top_p=0.95
    python sample.py --start=FILE:prompt.txt --max_new_tokens=200 --seed=7

The text appears as it is written. `python sample.py --help` lists every key.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import checkpoint
from configurator import configure, exit_on_error
from data.dataset import open_dataset
from data.tokenizer import EOT, IncrementalDecoder, TiktokenTokenizer, tokenizer_from_json
from device import pick_compile, pick_device
from pretrained import load_pretrained


@dataclass
class SampleConfig:
    # Model
    init_from: str = "resume"  # 'resume' = from out_dir, or a checkpoint, a folder, 'gpt2', 'gpt2-xl'
    out_dir: str = "out"  # folder of the run
    # Text
    start: str = "\n"  # the beginning to go on from, or FILE:path to read it from a file
    num_samples: int = 10  # texts to write
    max_new_tokens: int = 500  # tokens of each
    temperature: float = 0.8  # 1 = the model's own odds, lower = safer, 0 = always the likeliest token
    top_k: int | None = 200  # draw from the k likeliest tokens; None or 0 = all
    top_p: float | None = None  # draw from the fewest tokens that have this probability together; None = all
    seed: int = 1337  # sample number i of a seed is always the same text
    # System
    device: str = "auto"  # 'cuda', 'cuda:1', 'mps', 'cpu'; auto = the best there is
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the weights; auto = bfloat16 on CUDA
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto = off, as it rarely pays for a few samples


def main(argv: list[str]) -> None:
    config, _ = configure(SampleConfig, argv)
    validate(config)
    device = pick_device(config.device)
    if config.init_from == "resume":
        state = checkpoint.load(checkpoint.find(config.out_dir))
    else:
        state = load_pretrained(config.init_from)
    tokenizer = find_tokenizer(state)
    prompt = read_start(config.start)
    ids = encode_prompt(tokenizer, prompt)
    model = checkpoint.build_model(state, dropout=0.0).to(device, pick_weights_dtype(config.dtype, device)).eval()
    del state
    if config.compile is True and pick_compile(True, device):
        model.forward = torch.compile(model.forward, dynamic=True)

    idx = torch.tensor(np.asarray(ids, dtype=np.int64), device=device)[None]  # (1, T)
    for number in range(config.num_samples):
        generator = torch.Generator(device).manual_seed(config.seed + number)
        decoder = IncrementalDecoder(tokenizer)
        write(prompt)
        for new in model.stream(
            idx, config.max_new_tokens, config.temperature, config.top_k or None, config.top_p, generator,
            vocab_size=tokenizer.vocab_size,
        ):  # fmt: skip
            token = int(new)
            if token == tokenizer.eot:
                break
            write(decoder.push(token))
        write("\n---------------\n")


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def validate(config: SampleConfig) -> None:
    if config.temperature < 0:
        raise ValueError(f"temperature={config.temperature} must not be negative (0 = greedy)")
    if config.top_p is not None and not 0 < config.top_p <= 1:
        raise ValueError(f"top_p={config.top_p} must be above 0 and at most 1, or None")
    for key in ("num_samples", "max_new_tokens", "top_k"):
        if (getattr(config, key) or 0) < 0:
            raise ValueError(f"{key}={getattr(config, key)} must not be negative")


def read_start(start: str) -> str:
    """The prompt: `start` itself, or the text of the file that FILE:path names."""
    if not start.startswith("FILE:"):
        return start
    path = Path(start.removeprefix("FILE:"))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--start=FILE:{path} cannot be read as UTF-8 text: {error}") from error


def encode_prompt(tokenizer, prompt: str) -> np.ndarray:
    """Ids of the prompt. The end-of-text id, for a fresh document, begins it if the prompt is empty or, as in
    nanoGPT, starts with <|endoftext|>."""
    if prompt.startswith(EOT) and tokenizer.eot is not None:
        return np.append(tokenizer.eot, tokenizer.encode(prompt.removeprefix(EOT)))
    ids = tokenizer.encode(prompt)
    if len(ids):
        return ids
    if tokenizer.eot is None:
        raise ValueError("--start is empty, and this tokenizer has no end-of-text id to begin with: give some text")
    return np.array([tokenizer.eot])


def find_tokenizer(state: dict):
    """The checkpoint's own tokenizer; for one that nanoGPT wrote, that of its dataset's meta.pkl, else GPT-2's."""
    if state.get("tokenizer"):
        return tokenizer_from_json(state["tokenizer"])
    name, vocab_size = state.get("config", {}).get("dataset"), state["model_args"]["vocab_size"]
    if vocab_size in (50257, 50304):
        return TiktokenTokenizer("gpt2")
    tokenizer = open_dataset(name, vocab_size).tokenizer if name else None
    if tokenizer is None or tokenizer.vocab_size > vocab_size:
        raise ValueError(f"the checkpoint has no tokenizer, and dataset {name!r} has none for its {vocab_size} ids")
    return tokenizer


def pick_weights_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on a GPU that has it, else float32, which small matrices on a CPU multiply fastest."""
    if name != "auto":
        return getattr(torch, name)
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


if __name__ == "__main__":
    exit_on_error(main)

"""Throughput of serve.py, asked by many clients at once, beside the plain generator's."""

import http.client
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.inference import SHAPES
from benchmarks.report import median_seconds, parser, print_table
from benchmarks.runs import ROOT
from checkpoints.build import build_model, model_args_of
from checkpoints.file import save_checkpoint
from checkpoints.load import load_checkpoint
from data.tokenizer import ByteTokenizer
from inference.generate import stream
from inference.load import make_ready
from inference.sampling import Sampling
from model import GPT, GPTConfig
from system.device import pick_device


def serving_speed(argv: list[str]) -> None:
    """Tokens per second that serve.py writes for 1, 8 and 32 clients at once, and that inference.generate.stream writes
    for as many rows, of a GPT-2-shaped model with random weights.

    Each client asks for one text of its own prompt, over HTTP, and at once for the next, `--requests` times; times
    include prompts. "streaming": it takes every token as an event. "generator": the same prompts in one batch, which
    begins and ends together. "first token ms" is the median over the streaming clients' requests.
    """
    made = parser("serve", serving_speed.__doc__)
    add = made.add_argument
    add("--model", choices=SHAPES, default="6x384", help="layers x width (default: 6x384)")
    add("--clients", type=int, nargs="+", default=[1, 8, 32], help="how many at once (default: 1 8 32)")
    add("--prompt", type=int, default=50, help="tokens of a prompt (default: 50)")
    add("--tokens", type=int, default=200, help="tokens of a text (default: 200)")
    add("--requests", type=int, default=3, help="of each client (default: 3)")
    add("--dtype", default="fp32", help="as in serve.py (default: fp32)")
    add("--quantize", choices=("none", "int8"), default="none", help="as in serve.py (default: none)")
    add("--device", default="auto", help="as in serve.py (default: auto)")
    args = made.parse_args(argv)
    config = GPTConfig(1024, **SHAPES[args.model] | {"vocab_size": 256}, mlp="gelu_tanh")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = GPT(config, torch.Generator().manual_seed(0))
        state = {"model": model.state_dict(), "model_args": model_args_of(config)}
        save_checkpoint(Path(folder) / "ckpt.pt", state | {"tokenizer": ByteTokenizer().to_json()})
        alone = {n: generator_speed(folder, args, n) for n in args.clients}
        for n, plain in alone.items():
            whole, streaming, first = server_speed(folder, args, n)
            row = {"model": args.model, "clients": n, "generator tokens/s": plain, "server tokens/s": whole}
            row |= {"times generator": whole / plain, "streaming tokens/s": streaming, "first token ms": 1000 * first}
            rows.append(row)
    print_table("serve", rows, args.json)


def prompts(n: int, length: int) -> list[list[int]]:
    return torch.randint(256, (n, length), generator=torch.Generator().manual_seed(0)).tolist()


def generator_speed(folder: str, args, n: int) -> float:
    """Tokens per second of n rows in one batch."""
    device = pick_device(args.device)
    model = build_model(load_checkpoint(Path(folder) / "ckpt.pt"), dropout=0.0)
    model = make_ready(model, device, args.dtype, args.quantize)
    idx = torch.tensor(prompts(n, args.prompt), device=device)

    def write() -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
        for ids, _ in stream(model, idx, args.tokens, Sampling(), generators):
            ids.tolist()

    return n * args.tokens / median_seconds(write, args.requests)


def server_speed(folder: str, args, n: int) -> tuple[float, float, float]:
    """Tokens per second over all clients, the same streaming, and the median of the seconds to a first token, of a
    server that is started for this."""
    options = [f"--{key}={getattr(args, key)}" for key in ("dtype", "quantize", "device")]
    command = [sys.executable, str(ROOT / "serve.py"), f"--out_dir={folder}", "--port=0", f"--max_batch={n}", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8")
    try:
        started = process.stdout.readline()
        if not (found := re.search(r":(\d+) ", started)):
            raise ValueError(f"serve.py did not start: {started or 'see above'}")
        client(int(found[1]), prompts(1, args.prompt)[0], args, False)  # does not count
        whole, _ = ask_all(int(found[1]), args, n, streams=False)
        streaming, waited = ask_all(int(found[1]), args, n, streams=True)
        return whole, streaming, statistics.median(waited)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def ask_all(port: int, args, n: int, streams: bool) -> tuple[float, list[float]]:
    """Tokens per second of n clients at once, and the seconds to the first byte of each reply."""
    with ThreadPoolExecutor(n) as pool:
        start = time.perf_counter()
        waited = list(pool.map(lambda prompt: client(port, prompt, args, streams), prompts(n, args.prompt)))
        seconds = time.perf_counter() - start
    return n * args.requests * args.tokens / seconds, sum(waited, [])


def client(port: int, prompt: list[int], args, streams: bool) -> list[float]:
    """Seconds to the first byte of each reply, in one connection."""
    connection, waited = http.client.HTTPConnection("127.0.0.1", port), []
    for number in range(args.requests):
        body = {"prompt": prompt, "max_tokens": args.tokens, "seed": number, "stream": streams}
        body |= {"stream_options": {"include_usage": True}}
        start = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        first = response.read(1)
        waited.append(time.perf_counter() - start)
        text = (first + response.read()).decode()
        if response.status != 200 or f'"completion_tokens":{args.tokens},' not in text:
            raise ValueError(f"a reply of status {response.status} lacks tokens: {text[-200:]}")
    connection.close()
    return waited

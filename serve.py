"""Serves a trained model: OpenAI's API, llama.cpp's API for editors, and a page to write with.

    python serve.py --out_dir=out-shakespeare-char                          # http://127.0.0.1:8000
    python serve.py --out_dir=out-pycode --quantize=int8 --port=8012        # for llama.vscode
    python serve.py --out_dir=out-chat --host=0.0.0.0 --api_key=FILE:key.txt

    curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" -d '{"prompt": "ROMEO:", "seed": 1}'

Requests are written together, in one batch that they join and leave at any token. Addresses: /v1/completions,
/v1/chat/completions, /v1/models, /completion, /infill, /props, /run (the numbers of metrics.jsonl), /health, and / (the
page). It listens to this machine alone; for any other host a key is needed. Needs starlette and uvicorn.
"""

import errno
import os
import socket
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from configurator import configure, exit_on_error, read_early
from serving.hosts import is_loopback
from system.dtypes import DTypeName
from system.quota import check_threads


@dataclass
class ServeConfig:
    # Model
    init_from: str = "resume"  # 'resume' = from out_dir, or a checkpoint, a folder, 'gpt2', 'gpt2-xl'
    out_dir: str = "out"  # folder of the run
    name: str = ""  # of the model, as clients call it; default: the folder's name
    block_size: int | None = None  # a shorter context than the model's, to save memory
    ngram: float = 0.0  # mix in an n-gram model of the training text with this share, for a book 0.2; 0 = off
    ngram_data: str | None = None  # datasets whose training texts are counted: novels,hongloumeng; None = the run's own
    # Address
    host: str = "127.0.0.1"  # address to listen to; 0.0.0.0 = all of this machine's, which needs an api_key
    port: int = 8000  # 0 = any free one
    api_key: str | None = None  # what clients must send; FILE:path reads it; default: the environment's SERVE_API_KEY
    # Limits
    max_batch: int = 16  # texts written together
    max_queue: int = 256  # texts that may wait; more are refused (429)
    # System
    device: str = "auto"  # 'cuda', 'cuda:1', 'mps', 'cpu'; auto = the best available
    dtype: DTypeName = "auto"  # of the weights; auto = bfloat16 where the processor supports it natively, else float32
    quantize: Literal["none", "int8"] = "none"  # int8 = 8-bit weights: faster on a CPU, slower on a GPU
    threads: int | Literal["auto"] = "auto"  # of a CPU for the model; auto = OMP_NUM_THREADS, or one core is left free


def read_key(config: ServeConfig) -> str | None:
    """The key. ValueError if it cannot be read or sent."""
    key = config.api_key if config.api_key is not None else os.environ.get("SERVE_API_KEY") or None
    if key and key.startswith("FILE:"):
        try:
            key = Path(key.removeprefix("FILE:")).read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--api_key={key} cannot be read: {error}") from error
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key and len(key) >= 8):
        raise ValueError("the API key must have at least 8 characters, ASCII without spaces")
    return key


def validate(config: ServeConfig) -> None:
    if not 0 <= config.port <= 65535:
        raise ValueError(f"port={config.port} must be from 0 to 65535")
    for key, low in {"max_batch": 1, "max_queue": 0}.items():
        if getattr(config, key) < low:
            raise ValueError(f"{key}={getattr(config, key)} must be at least {low}")
    check_threads(config.threads)
    if read_key(config) is None and not is_loopback(config.host):
        how = "set --api_key=FILE:path, or leave --host out to serve this machine only"
        raise ValueError(f"--host={config.host} lets other machines in, which needs a key: {how}")
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise ValueError(f"serve.py needs {' and '.join(missing)}: pip install starlette uvicorn")


if __name__ == "__main__":
    read_early(ServeConfig, sys.argv[1:], validate)  # --help and mistakes are answered before the slow imports

import asyncio

import torch
import uvicorn

from checkpoints.build import build_model
from completion.completer import apart
from completion.infill import has_learned, infill_prompt
from inference.chat import chat_tokenizer_of
from inference.load import find_tokenizer, first_id_of, make_ready, open_ngram, open_trained, special_of
from model import GPT
from serving.app import make_app, wake
from serving.engine import Engine
from serving.guard import MAX_CONNECTIONS, DeadlineProtocol
from serving.reply import Served
from system.device import pick_device


def main(argv: list[str]) -> None:
    config, _ = configure(ServeConfig, argv)
    validate(config)
    with open_listener(config.host, config.port) as listener:  # early: a port may be in use
        served, model = apart(load, config)
        asyncio.run(serve(config, served, model, listener))


def open_listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        if os.name != "nt":  # there it would let two programs share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        return listener
    except OSError as error:
        listener.close()
        is_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        remedy = f"choose another --{'host' if is_host else 'port'}"
        raise ValueError(f"cannot listen on {host}, port {port}: {error.strerror}; {remedy}") from error


def load(config: ServeConfig) -> tuple[Served, GPT]:
    device = pick_device(config.device)
    set_threads(config.threads, device)
    source, state = open_trained(config.init_from, config.out_dir)
    tokenizer = find_tokenizer(state)
    try:
        chat = chat_tokenizer_of(state)
    except ValueError:  # not trained on conversations
        chat = None
    ngram = open_ngram(config.ngram, config.ngram_data, state)
    model = make_ready(build_model(state, dropout=0.0), device, config.dtype, config.quantize, config.block_size)
    name = config.name or Path(config.out_dir if config.init_from == "resume" else str(source)).resolve().name
    infill = infill_prompt if has_learned(state, tokenizer)[0] else None
    first = first_id_of(state)
    served = Served(name, tokenizer, model.config.block_size, special_of(state), chat, first, infill, ngram)
    return served, model


def set_threads(threads: int | str, device: torch.device) -> None:
    """For the engine's thread too. One core is left free for answering requests: where that holds up one of the model's
    threads, the others wait for it at every product, and 2 threads on 2 cores wrote half as much as one."""
    if threads == "auto" and device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, torch.get_num_threads() - 1)
    if threads != "auto":
        torch.set_num_threads(threads)


async def serve(config: ServeConfig, served: Served, model: GPT, listener: socket.socket) -> None:
    """Until Ctrl-C or SIGTERM; then texts in progress have a few seconds to end."""
    loop = asyncio.get_running_loop()
    engine = Engine(
        model, served.tokenizer, config.max_batch, config.max_queue,
        lambda replies: loop.call_soon_threadsafe(wake, replies), served.ngram,
    )  # fmt: skip
    listener.listen(1024)
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # of all addresses, one that a browser here can open
    print(f"{served.name} at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)", flush=True)
    try:
        await make_server(config, served, engine).serve(sockets=[listener])
    finally:
        engine.stop()


def make_server(config: ServeConfig, served: Served, engine: Engine) -> uvicorn.Server:
    out_dir = Path(config.out_dir) if config.init_from == "resume" else None
    app = make_app(served, engine, read_key(config), out_dir)
    options = {"http": DeadlineProtocol, "ws": "none", "lifespan": "off", "access_log": False, "log_level": "warning"}
    options |= {"limit_concurrency": MAX_CONNECTIONS, "timeout_graceful_shutdown": 3, "server_header": False}
    return uvicorn.Server(uvicorn.Config(app, **options))


if __name__ == "__main__":
    exit_on_error(main)

"""All that is measured on a GPU."""

import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.report import parser

GPU = {  # name: commands
    "profile of a step": ["bench.py profile config/train_gpt2.py --batch_size=32 --gradient_accumulation_steps=1"],
    "124M": ["bench.py train config/train_gpt2.py --batch_size=32 --gradient_accumulation_steps=1 --steps=40 "
             "--peer={peer}"],
    "124M with Muon": ["bench.py train config/speed_gpt2.py --gradient_accumulation_steps=1 --steps=40"],
    "350M": ["bench.py train config/train_gpt2.py --n_layer=24 --n_head=16 --n_embd=1024 --batch_size=16 "
             "--gradient_accumulation_steps=1 --steps=40"],
    "baby GPT": ["bench.py time_to_loss config/speed_shakespeare_char.py --target=1.47 --n_layer=6 --n_head=6 "
                 "--n_embd=384 --block_size=256 --batch_size=64 --dropout=0.2 --max_iters=800 --eval_interval=50 "
                 "--baseline --plain='--max_iters=5000 --eval_interval=250'"],
    "Python": ["bench.py time_to_loss config/speed_pycode.py --target=0 --max_minutes=8 --eval_interval=100 "
               "--baseline --plain=--max_minutes=8"],
    "generation": ["bench.py generate --models 12x768 --batch 64 --device=cuda"],
    "红楼梦, deep": [
        "train.py config/train_hongloumeng_deep.py --out_dir=out-gpu-hongloumeng",
        "eval.py --out_dir=out-gpu-hongloumeng --baselines",
        "sample.py --out_dir=out-gpu-hongloumeng --start=却说宝玉 --num_samples=2 --max_new_tokens=200"],
    "Python by BPE": [
        "train.py config/speed_pycode.py --max_minutes=10 --out_dir=out-gpu-pycode",
        "eval.py --out_dir=out-gpu-pycode --baselines", "bench.py lines --out_dir=out-gpu-pycode",
        "sample.py --out_dir=out-gpu-pycode '--start=import numpy as' --num_samples=3 --max_new_tokens=120"],
    "C++ by bytes": [
        "train.py config/train_cppcode_bytes.py --max_minutes=10 --out_dir=out-gpu-cppcode",
        "eval.py --out_dir=out-gpu-cppcode --baselines", "bench.py lines --out_dir=out-gpu-cppcode",
        "sample.py --out_dir=out-gpu-cppcode '--start=for (int i = ' --num_samples=3 --max_new_tokens=300"],
}  # fmt: skip


def gpu(argv: list[str]) -> None:
    """All that is to be known of a GPU, one table after another, each under its commands. Needs the datasets
    shakespeare_char, hongloumeng, cppcode and pycode (see the config files); takes more than an hour in all."""
    made = parser("gpu", gpu.__doc__)
    made.add_argument("--only", nargs="+", choices=list(GPU), default=list(GPU), help="some of: " + ", ".join(GPU))
    made.add_argument("--peer", type=Path, help="a checkout of nanoGPT to run beside")
    args = made.parse_args(argv)
    peer, failed = args.peer and args.peer.resolve(), []
    for name in args.only:
        print(f"\n## {name}", flush=True)
        for line in GPU[name]:
            words = [word.format(peer=peer) for word in shlex.split(line) if peer or "{peer}" not in word]
            print(f"\n$ python {shlex.join(words)}\n", flush=True)
            words += ["--json"] * (args.json and words[0] == "bench.py")
            # processes of their own, so that each finds all of the GPU's memory
            if subprocess.run([sys.executable, *words], cwd=Path(__file__).parents[1], check=False).returncode:
                failed.append(name)  # it has said why; the other tables are worth having all the same
                break
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}; the reasons are above")

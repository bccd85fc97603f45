"""Everything worth measuring on a GPU, in steps that are started one by one."""

import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from benchmarks.report import parser, print_table
from benchmarks.runs import ROOT

BATCH_124M = "--gradient_accumulation_steps=1 --vocab_size=50304"
TRAIN_124M = f"config/train_gpt2.py {BATCH_124M}"
# name: minutes on an H100, compilation included, and commands; {folder} holds data and runs
STEPS = {
    "tests": (8, ["-m pytest -q tests/test_gpu.py"]),
    "data: shakespeare_char": (
        1,
        ["data/shakespeare_char/prepare.py --out_dir={folder}/shakespeare_char {shakespeare}"],
    ),
    "data: hongloumeng": (1, ["data/hongloumeng/prepare.py --out_dir={folder}/hongloumeng {hongloumeng}"]),
    "data: pycode": (6, ["data/pycode/prepare.py --installed --vocab_size=50000 --out_dir={folder}/pycode"]),
    "data: cppcode": (1, ["data/cppcode/prepare.py --out_dir={folder}/cppcode"]),
    "profile of a step": (3, [f"bench.py profile {TRAIN_124M} --batch_size=32"]),
    "124M": (3, [f"bench.py train {TRAIN_124M} --batch_size=32 --steps=40 {{peer}}"]),
    "124M with Muon": (3, [f"bench.py train config/speed_gpt2.py {BATCH_124M} --steps=40"]),
    "350M": (4, [f"bench.py train {TRAIN_124M} --batch_size=16 --n_layer=24 --n_head=16 --n_embd=1024 --steps=40"]),
    "baby GPT": (
        7,
        ["bench.py time_to_loss config/speed_shakespeare_char.py --target=1.47 --dataset={folder}/shakespeare_char "
         "--n_layer=6 --n_head=6 --n_embd=384 --block_size=256 --batch_size=64 --dropout=0.2 --max_iters=800 "
         "--eval_interval=50 --baseline --plain='--max_iters=5000 --eval_interval=250'"],
    ),
    "Python": (
        9,
        ["bench.py time_to_loss config/speed_pycode.py --target=0 --dataset={folder}/pycode --max_minutes=3 "
         "--eval_interval=100 --baseline --plain=--max_minutes=3"],
    ),
    "generation": (5, ["bench.py generate --models 12x768 --batch=64"]),
    "红楼梦, deep": (
        4,
        ["train.py config/train_hongloumeng_deep.py --dataset={folder}/hongloumeng --out_dir={folder}/out-hongloumeng",
         "eval.py --out_dir={folder}/out-hongloumeng --baselines",
         "sample.py --out_dir={folder}/out-hongloumeng --start=却说宝玉 --num_samples=2 --max_new_tokens=200"],
    ),
    "Python by BPE": (
        9,
        ["train.py config/speed_pycode.py --max_minutes=6 --dataset={folder}/pycode --out_dir={folder}/out-pycode",
         "eval.py --out_dir={folder}/out-pycode --baselines",
         "bench.py lines --out_dir={folder}/out-pycode",
         "sample.py --out_dir={folder}/out-pycode '--start=import numpy as' --num_samples=3 --max_new_tokens=120"],
    ),
    "C++ by bytes": (
        9,
        ["train.py config/train_cppcode_bytes.py --max_minutes=6 --dataset={folder}/cppcode "
         "--out_dir={folder}/out-cppcode",
         "eval.py --out_dir={folder}/out-cppcode --baselines",
         "bench.py lines --out_dir={folder}/out-cppcode",
         "sample.py --out_dir={folder}/out-cppcode '--start=for (int i = ' --num_samples=3 --max_new_tokens=300"],
    ),
}  # fmt: skip
TEXTS = {"shakespeare": "tinyshakespeare.txt", "hongloumeng": "hongloumeng.txt"}
# what --dry_run adds to each kind of command
TINY_RUN = "--device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=32 --batch_size=64 "
TINY_RUN += "--gradient_accumulation_steps=1 --max_minutes=None"
TINY = {
    "train.py": f"{TINY_RUN} --max_iters=4 --eval_interval=2 --eval_iters=2",
    "eval.py": "--device=cpu",
    "sample.py": "--device=cpu --num_samples=1 --max_new_tokens=8",
    "profile": f"{TINY_RUN} --vocab_size=64 --steps=1 --rows=3",
    "train": f"{TINY_RUN} --vocab_size=64 --steps=6",
    "time_to_loss": f"{TINY_RUN} --max_iters=2 --eval_interval=2 --plain=--max_iters=1",
    "generate": "--device=cpu --models 6x384 --prompt=2 --tokens=2 --batch=2 --repeats=1",
    "lines": "--device=cpu --lines=2",
    "data/pycode/prepare.py": "--input benchmarks --vocab_size=300",
    "data/cppcode/prepare.py": "--input {folder}/cpp",
}


def gpu_tables(argv: list[str]) -> int:
    """Everything worth measuring on a GPU, one step after another: tests, data, tables, each below its commands.

    First it prints the plan. Each step can be started by itself with --only, and takes at most ten minutes on an H100.
    Data and runs go to --folder. The data is this machine's Python and C++, and two texts: those in --texts, or
    downloaded. A step that fails ends there, the others still run, and the exit status is 2.
    """
    made = parser("gpu", gpu_tables.__doc__)
    add = made.add_argument
    add("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help="some of: " + ", ".join(STEPS))
    add("--plan", action="store_true", help="print the plan and stop")
    add("--folder", type=Path, default=Path("out-gpu"), help="for data and runs (default: out-gpu)")
    add("--texts", type=Path, help=f"a folder with {' and '.join(TEXTS.values())} (default: downloads them)")
    add("--peer", type=Path, help="a checkout of nanoGPT to compare 124M with")
    add("--dry_run", action="store_true", help="all commands with tiny models and data on the CPU, to try them")
    args = made.parse_args(argv)
    steps = {name: STEPS[name] for name in args.only}
    rows = [{"step": name, "minutes": minutes} for name, (minutes, _) in steps.items()]
    print_table("plan", [*rows, {"step": "in all", "minutes": sum(row["minutes"] for row in rows)}], False)
    if args.plan:
        return 0
    failed = []
    with tempfile.TemporaryDirectory() if args.dry_run else nullcontext(args.folder.absolute()) as folder:
        if args.dry_run:
            args.texts = write_tiny_texts(Path(folder))
        texts = {key: args.texts and f"--input={args.texts.absolute() / name}" for key, name in TEXTS.items()}
        names = texts | {"folder": folder, "peer": args.peer and f"--peer={args.peer.absolute()}"}
        for name, (minutes, commands) in steps.items():
            print(f"\n## {name}", flush=True)
            if name.startswith("data: ") and Path(folder, name.removeprefix("data: "), "train.bin").exists():
                print("\nalready there")
                continue
            start = time.perf_counter()
            status = run_step([words_of(command, names, args.dry_run, args.json) for command in commands])
            print(f"\n{name}: {(time.perf_counter() - start) / 60:.1f} minutes, expected {minutes}")
            if status in (130, 143):
                return status
            failed += [name] * (status != 0)
    if failed:
        raise ValueError(f"failed: {'; '.join(failed)} (see the errors above)")
    return 0


def words_of(command: str, names: dict, tiny: bool, as_json: bool) -> list[str]:
    """A command of STEPS as the words behind `python`. names: what {folder} and the like are; None: nothing."""
    script, name, *_ = command.split()
    kind = name if script == "bench.py" else script
    command = f"{command} {TINY.get(kind, '')}" if tiny else command
    quoted = {key: shlex.quote(str(value)) if value else "" for key, value in names.items()}
    return shlex.split(command.format(**quoted)) + ["--json"] * (as_json and command.startswith("bench.py"))


def run_step(commands: list[list[str]]) -> int:
    """Prints and runs each command up to the first that fails; returns its exit status (as a shell says it), 130
    after Ctrl-C, or 0."""
    for words in commands:
        print(f"\n$ python {shlex.join(words)}\n", flush=True)
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT)
        status, interrupted = None, False
        while status is None:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                interrupted = True  # the command got the Ctrl-C too, and ends once it has saved
        if status or interrupted:
            return 130 if interrupted else status if status > 0 else 128 - status
    return 0


def write_tiny_texts(folder: Path) -> Path:
    """Writes a little English, Chinese and C++ to `folder` for --dry_run."""
    tiny = {
        "tinyshakespeare.txt": "To be, or not to be, that is the question.\n",
        "hongloumeng.txt": "却说宝玉听了，笑道：好妹妹。\n",
        "cpp/a.h": "for (int i = 0; i < n; ++i) sum += i;\n",
        "cpp/b.h": "for (int i = 0; i < m; ++i) product *= i;\n",
    }
    for name, line in tiny.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(line * 400, encoding="utf-8")
    return folder

"""Speed and memory of everything here, each comparison in one run on one machine.

    python bench.py NAME [options]        # python bench.py NAME --help: what it measures, and its options

Every benchmark prints a table, and with --json the same figures as one line of JSON. Run one only on a machine that
does nothing else.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import torch

from configurator import exit_on_error
from data.source import Parser
from data.tokenizer import BPETokenizer, make_tokenizer


def parser(name: str, description: str) -> argparse.ArgumentParser:
    made = Parser(prog=f"bench.py {name}", description=description, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="also print the figures as one line of JSON")
    return made


def report(name: str, rows: list[dict], as_json: bool) -> None:
    """Prints rows that share their keys as a Markdown table, under what machine made them."""
    print(f"{name} on {machine()}\n")
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(shown(value) for value in row.values()) + " |")
    if as_json:
        print(json.dumps({"benchmark": name, "machine": machine(), "rows": rows}, ensure_ascii=False))


def shown(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine() -> str:
    """The processor, its threads in use, the GPU if there is one, and PyTorch's version."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), cpu)
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def prepare(argv: list[str]) -> None:
    """Speed and peak memory of data/text/prepare.py, all of the command, on a folder of text files that repeat real
    text, each with a number of its own in its lines. "library": tiktoken's or tokenizers' own batch encoder on the same
    files, already in memory, on as many threads. Memory is the sum over the command's processes, as Linux counts it."""
    made = parser("prepare", prepare.__doc__)
    made.add_argument("--input", type=Path, nargs="+", help="text to repeat (default: Python's standard library)")
    made.add_argument("--mb", type=int, nargs="+", default=[200, 2000], help="sizes in 10^6 bytes (default: 200 2000)")
    made.add_argument("--tokenizers", nargs="+", default=["byte", "char", "gpt2", "bpe"],
                      choices=["byte", "char", "gpt2", "bpe"], help="(default: all; bpe: 8,192 ids learned from 10 MB)")
    made.add_argument("--tokenizer_file", type=Path, help="folder with GPT-2's encoder.json (default: as prepare.py)")
    made.add_argument("--cores", type=int, default=2, help="(default: 2)")
    args = made.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.cores])
    rows, text = [], real_text(args.input)
    with tempfile.TemporaryDirectory() as folder:
        learned = Path(folder, "tokenizer.json")
        for mb in args.mb:
            files = write_files(Path(folder, f"text{mb}"), text, mb * 10**6)
            size = sum(os.path.getsize(file) for file in files) / 1e6
            for name in args.tokenizers:
                if name == "bpe" and not learned.exists():
                    trained = BPETokenizer.train([text[:10**7]], 8192)
                    learned.write_text(trained.to_json()["tokenizer"], encoding="utf-8")
                file = {"bpe": learned, "gpt2": args.tokenizer_file}.get(name)
                command = [sys.executable, "data/text/prepare.py", f"--input={files[0].parent}", f"--tokenizer={name}",
                           f"--workers={args.cores}", f"--out_dir={Path(folder, 'out')}"]
                seconds, peak = run_and_watch(command + ([f"--tokenizer_file={file}"] if file else []))
                library = library_rate(name, file, files, args.cores) if name in LIBRARIES else None
                rows.append({"tokenizer": name, "MB": size, "seconds": seconds, "MB/s": size / seconds,
                             "library MB/s": library or "", "share": library and size / seconds / library or "",
                             "peak MB": peak})
                shutil.rmtree(Path(folder, "out"))
            shutil.rmtree(files[0].parent)
    report("prepare", rows, args.json)


LIBRARIES = {
    "gpt2": lambda tokenizer, texts, n: tokenizer._encoding.encode_ordinary_batch(texts, num_threads=n),
    "bpe": lambda tokenizer, texts, n: tokenizer._tokenizer.encode_batch_fast(texts, add_special_tokens=False),
}


def real_text(paths: list[Path] | None) -> str:
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = paths or sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    return "".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths)


def write_files(folder: Path, text: str, n_bytes: int) -> list[Path]:
    """About n_bytes of text in files of 250,000 characters, no two of which are the same."""
    folder.mkdir()
    files, step = [], 250_000
    text += text[:step]
    while n_bytes > 0:
        at = len(files) * step % (len(text) - step)
        files.append(folder / f"{len(files):05}.txt")
        n_bytes -= files[-1].write_bytes(f"{len(files)}\n{text[at:at + step]}".encode())
    return files


def run_and_watch(command: list[str]) -> tuple[float, float | None]:
    """Seconds that a command takes, and the peak, in 10^6 bytes, of the resident memory of it and its children."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise ValueError(f"{' '.join(command)} failed")
    return time.perf_counter() - start, peak / 1e6 or None


def resident(pid: int) -> int:
    """Bytes of a process and all below it; 0 where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
        children = [child for task in Path(f"/proc/{pid}/task").iterdir()
                    for child in (task / "children").read_text(encoding="utf-8").split()]
    except OSError:  # it ended, or this isn't Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(map(resident, map(int, children)))


def library_rate(name: str, file: Path | None, files: list[Path], n_threads: int) -> float:
    """10^6 bytes a second of the library's own batch encoder, on the first 200 MB of the files."""
    tokenizer, n_bytes, seconds = make_tokenizer(name, file=file), 0, 0.0
    for first in range(0, len(files), 32):
        raw = [file.read_bytes() for file in files[first:first + 32]]
        texts = [text.decode() for text in raw]
        start = time.perf_counter()
        LIBRARIES[name](tokenizer, texts, n_threads)
        seconds += time.perf_counter() - start
        n_bytes += sum(map(len, raw))
        if n_bytes > 2e8:
            break
    return n_bytes / 1e6 / seconds


BENCHMARKS = {"prepare": prepare}  # name: function of the arguments that follow it


def main(argv: list[str]) -> None:
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(f"{__doc__}\nNAME: {', '.join(sorted(BENCHMARKS))}")
    elif argv[0] not in BENCHMARKS:
        raise ValueError(f"no benchmark {argv[0]!r}: choose from {', '.join(sorted(BENCHMARKS))}")
    else:
        BENCHMARKS[argv[0]](argv[1:])


if __name__ == "__main__":
    exit_on_error(main)

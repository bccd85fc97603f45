"""Speed and memory of data/text/prepare.py."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.report import parser, report
from data.tokenizer import BPETokenizer, make_tokenizer


def prepare(argv: list[str]) -> None:
    """Speed and peak memory of data/text/prepare.py, all of the command, on a folder of text files that repeat real
    text, each with a number of its own in its lines. "library": tiktoken's or tokenizers' own batch encoder on the same
    files, already in memory, on as many threads. Memory is the sum over its processes, without file pages."""
    made = parser("prepare", prepare.__doc__)
    made.add_argument("--input", type=Path, nargs="+", help="text to repeat (default: Python's standard library)")
    made.add_argument("--mb", type=int, nargs="+", default=[200, 2000], help="sizes in 10^6 bytes (default: 200 2000)")
    made.add_argument(
        "--tokenizers",
        nargs="+",
        default=["byte", "char", "gpt2", "bpe"],
        choices=["byte", "char", "gpt2", "bpe"],
        help="(default: all; bpe: 8,192 ids learned from 10 MB)",
    )
    made.add_argument("--tokenizer_file", type=Path, help="folder with GPT-2's encoder.json (default: as prepare.py)")
    made.add_argument("--cores", type=int, default=2, help="(default: 2)")
    args = made.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    rows, text = [], real_text(args.input)
    with tempfile.TemporaryDirectory() as folder:
        learned = Path(folder, "tokenizer.json")
        for mb in args.mb:
            files = write_files(Path(folder, f"text{mb}"), text, mb * 10**6)
            size = sum(os.path.getsize(file) for file in files) / 1e6
            if hasattr(os, "sync"):
                os.sync()  # the disk would still be writing these while the first command writes
            for name in args.tokenizers:
                if name == "bpe" and not learned.exists():
                    trained = BPETokenizer.train([text[: 10**7]], 8192)
                    learned.write_text(trained.to_json()["tokenizer"], encoding="utf-8")
                file = {"bpe": learned, "gpt2": args.tokenizer_file}.get(name)
                command = [
                    sys.executable,
                    "data/text/prepare.py",
                    f"--input={files[0].parent}",
                    f"--tokenizer={name}",
                    f"--workers={args.cores}",
                    f"--out_dir={Path(folder, 'out')}",
                ]
                seconds, peak = run_and_watch(command + ([f"--tokenizer_file={file}"] if file else []))
                library = library_rate(name, file, files, args.cores) if name in LIBRARIES else None
                rows.append(
                    {
                        "tokenizer": name,
                        "MB": size,
                        "seconds": seconds,
                        "MB/s": size / seconds,
                        "library MB/s": library or "",
                        "share": library and size / seconds / library or "",
                        "peak MB": peak,
                    }
                )
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
        n_bytes -= files[-1].write_bytes(f"{len(files)}\n{text[at : at + step]}".encode())
    return files


def run_and_watch(command: list[str]) -> tuple[float, float | None]:
    """Seconds that a command takes, and the peak, in 10^6 bytes, of the resident memory of it and its children."""
    start, peak = time.perf_counter(), 0

    def watch() -> None:
        nonlocal peak
        while process.returncode is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.05)

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        raise ValueError(f"{' '.join(command)} failed")
    return seconds, peak / 1e6 or None


def resident(pid: int) -> int:
    """Bytes of memory of a process and all below it, without pages of files, which the system can drop at any time;
    0 where there is no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        children = [
            child
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text(encoding="utf-8").split()
        ]
    except OSError:  # it ended, or this isn't Linux
        return 0
    kilobytes = sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return 1024 * kilobytes + sum(map(resident, map(int, children)))


def library_rate(name: str, file: Path | None, files: list[Path], n_threads: int) -> float:
    """10^6 bytes a second of the library's own batch encoder, on the first 200 MB of the files."""
    tokenizer, n_bytes, seconds = make_tokenizer(name, file=file), 0, 0.0
    for first in range(0, len(files), 32):
        raw = [file.read_bytes() for file in files[first : first + 32]]
        texts = [text.decode() for text in raw]
        start = time.perf_counter()
        LIBRARIES[name](tokenizer, texts, n_threads)
        seconds += time.perf_counter() - start
        n_bytes += sum(map(len, raw))
        if n_bytes > 2e8:
            break
    return n_bytes / 1e6 / seconds

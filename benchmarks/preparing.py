"""Speed and peak memory of the whole command data/text/prepare.py on a folder of text files: real text repeated, with a
different first line in each file. "library": tiktoken's or tokenizers' own batch encoder on the same files in memory,
with as many threads. Memory is the sum over the command's processes, without file pages.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.report import parser, print_table
from benchmarks.runs import ROOT
from data.tokenizer import BPETokenizer, make_tokenizer

CHARACTERS = 250_000  # of a file
TOKENIZERS = ["byte", "char", "gpt2", "bpe"]
LIBRARIES = {
    "gpt2": lambda tokenizer, texts, n: tokenizer._encoding.encode_ordinary_batch(texts, num_threads=n),
    "bpe": lambda tokenizer, texts, n: tokenizer._tokenizer.encode_batch_fast(texts, add_special_tokens=False),
}


def preparation_speed(argv: list[str]) -> None:
    made = parser("prepare", __doc__)
    add = made.add_argument
    add("--input", type=Path, nargs="+", help="text to repeat (default: Python's standard library)")
    add("--mb", type=int, nargs="+", default=[200, 2000], help="sizes in 10^6 bytes (default: 200 2000)")
    text = "(default: all; bpe: 8,192 ids learned from 10 MB)"
    add("--tokenizers", nargs="+", default=TOKENIZERS, choices=TOKENIZERS, help=text)
    add("--tokenizer_file", type=Path, help="folder with GPT-2's encoder.json (default: as prepare.py)")
    add("--cores", type=int, default=2, help="for every command and library (default: 2)")
    args = made.parse_args(argv)
    rows, text = [], real_text(args.input)
    if len(text) < CHARACTERS:
        raise ValueError(f"--input has {len(text):,} characters, expected at least {CHARACTERS:,}: name more files")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    with tempfile.TemporaryDirectory() as folder:
        out, tokenizer_files = Path(folder, "out"), {"gpt2": args.tokenizer_file and args.tokenizer_file.resolve()}
        if "bpe" in args.tokenizers:
            tokenizer_files["bpe"] = Path(folder, "tokenizer.json")
            learned = BPETokenizer.train([text[: 10**7]], 8192).to_json()["tokenizer"]
            tokenizer_files["bpe"].write_text(learned, encoding="utf-8")
        for mb in args.mb:
            files = write_files(Path(folder, "text"), text, mb * 10**6)
            size = sum(os.path.getsize(file) for file in files) / 1e6
            if hasattr(os, "sync"):
                os.sync()  # else the disk would still be writing these files during the first command
            for name in args.tokenizers:
                file, words = tokenizer_files.get(name), [f"--tokenizer={name}", f"--workers={args.cores}"]
                words += [f"--input={files[0].parent}", f"--out_dir={out}", *[f"--tokenizer_file={file}"] * bool(file)]
                seconds, peak = run_and_watch([sys.executable, "data/text/prepare.py", *words])
                row = {"tokenizer": name, "MB": size, "seconds": seconds, "MB/s": size / seconds}
                library = library_rate(name, file, files, args.cores) if name in LIBRARIES else None
                row |= {"library MB/s": library or "", "share": size / seconds / library if library else ""}
                rows.append(row | {"peak MB": peak})
                shutil.rmtree(out)
            shutil.rmtree(files[0].parent)
    print_table("prepare", rows, args.json)


def real_text(paths: list[Path] | None) -> str:
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = paths or sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    return "".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths)


def write_files(folder: Path, text: str, n_bytes: int) -> list[Path]:
    """Writes about n_bytes of text in files of CHARACTERS, all different."""
    folder.mkdir()
    files, length = [], len(text)
    text += text[:CHARACTERS]
    while n_bytes > 0:
        at = len(files) * CHARACTERS % length
        files.append(folder / f"{len(files):05}.txt")
        n_bytes -= files[-1].write_bytes(f"{len(files)}\n{text[at : at + CHARACTERS]}".encode())
    return files


def run_and_watch(command: list[str]) -> tuple[float, float | None]:
    """Seconds a command takes, and peak resident memory with its children in MB (10^6 bytes), None if unknown."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    while process.returncode is None:
        peak = max(peak, resident_memory(process.pid))
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
    if process.returncode:
        raise ValueError(f"{' '.join(command)} failed")
    return time.perf_counter() - start, peak / 1e6 or None


def resident_memory(pid: int) -> int:
    """Bytes held by a process and its descendants, without file pages, which the system can drop at any time. 0 if the
    process has ended or there is no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        threads = Path(f"/proc/{pid}/task").iterdir()
        children = " ".join(Path(thread, "children").read_text(encoding="utf-8") for thread in threads).split()
    except OSError:
        return 0
    kilobytes = sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return 1024 * kilobytes + sum(resident_memory(int(child)) for child in children)


def library_rate(name: str, file: Path | None, files: list[Path], n_threads: int) -> float:
    """MB/s of the library's own batch encoder on the first 200 MB of the files."""
    tokenizer, n_bytes, seconds = make_tokenizer(name, file=file), 0, 0.0
    for first in range(0, len(files), 32):
        texts = [file.read_bytes().decode() for file in files[first : first + 32]]
        start = time.perf_counter()
        LIBRARIES[name](tokenizer, texts, n_threads)
        seconds += time.perf_counter() - start
        n_bytes += sum(file.stat().st_size for file in files[first : first + 32])
        if n_bytes > 2e8:
            break
    return n_bytes / 1e6 / seconds

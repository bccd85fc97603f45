"""Token files: written atomically, and opened whoever made them; data/windows.py cuts them into batches.

    with DatasetWriter(folder, tokenizer, source) as writer:      # data/build.py does this on all cores
        writer.write("train", tokenizer.encode(text), n_bytes=len(text.encode()))
        writer.write("val", ...)

    dataset = open_dataset("shakespeare_char")                    # data/shakespeare_char, or a path

A dataset is a folder with train.bin and val.bin (raw little-endian ids: uint16 for vocabularies up to 65,536, else
uint32) and meta.json, which says what the ids mean. nanoGPT's folders, with meta.pkl or just the .bin files, are read
too.

With --test_fraction there is a test.bin too. Training never reads it, nor needs it: only eval.py --split=test
opens it, and no choice should depend on the result.

Beside conversations (data/chat/prepare.py) there are train.mask and val.mask, a byte for each id: TARGET where it is to
be learned, plus FIRST_ID where a conversation begins. Their windows hold one conversation each.
"""

import hashlib
import json
import os
import pickle
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data.progress import byte_bar
from data.tokenizer import CharTokenizer, Tokenizer, tokenizer_from_json
from system.files import sync_file, sync_folder

DATA = Path(__file__).resolve().parent
SPLITS = ("train", "val")  # what every dataset has, and what training reads
TEST = "test"  # the split that some have besides
GPT2_VOCAB_SIZE = 50257
TARGET, FIRST_ID = 1, 2  # bits of a mask


def id_dtype(vocab_size: int) -> np.dtype:
    """The dtype of a .bin with ids below vocab_size; little-endian on every machine."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


# ---- writing ---------------------------------------------------------------------------------------------


class DatasetWriter:
    """Streams ids to disk; a .bin for each of `splits` and meta.json appear in folder when the `with` block succeeds.

    An exception or a kill leaves the old dataset or none, never a mixture. `source`, a JSON-able dict, says where the
    text came from. Until the end the files are in `temp`, a folder named .prepare-* in `folder`; one passed in survives
    a failure, and writing can resume there (`cut`). ValueError: an id outside the tokenizer's vocabulary, a split
    without tokens, or a folder that cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: Tokenizer,
        source: dict,
        temp: Path | None = None,
        splits: Sequence[str] = SPLITS,
    ):
        self.folder, self.tokenizer, self.source, self.temp = Path(folder), tokenizer, source, temp
        self.splits = splits
        self.keeps_temp = temp is not None
        self.dtype = id_dtype(tokenizer.vocab_size)
        self.counts = {split: {"tokens": 0, "bytes": 0, "documents": 0} for split in splits}
        self.extra: dict = {}  # more keys of meta.json
        self.masks = {split: [] for split in splits}  # of conversations, which are few enough to be held in memory

    def __enter__(self) -> "DatasetWriter":
        with os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".prepare-*"):  # left by a killed run
                if stale != self.temp:
                    shutil.rmtree(stale, ignore_errors=True)
            self.temp = self.temp or Path(tempfile.mkdtemp(prefix=".prepare-", dir=self.folder))
            self.bins = {split: open(self.temp / f"{split}.bin", "ab") for split in self.splits}
        self.hashes = {split: hashlib.sha256() for split in self.splits}
        self.thread = ThreadPoolExecutor(1)  # hashing is the slowest step here, and releases the GIL
        self.hashing = self.thread.submit(int)
        return self

    def cut(self, split: str, tokens: int) -> bool:
        """Keep the first `tokens` ids of the split's file, whoever wrote them. False if it has fewer."""
        self.hashing.result()
        self.hashes[split], self.counts[split]["tokens"] = hashlib.sha256(), tokens
        file, size = self.bins[split], tokens * self.dtype.itemsize
        with os_errors(self.folder):
            file.flush()
            if file.tell() < size:
                return False
            file.truncate(size)
            with (
                open(self.temp / f"{split}.bin", "rb") as kept,
                byte_bar(f"reading {split}.bin", size, disable=None if size > 2**30 else True, leave=False) as bar,
            ):
                while piece := kept.read(2**22):
                    self.hashes[split].update(piece)
                    bar.update(len(piece))
        return True

    def write(self, split: str, ids: np.ndarray, n_bytes: int, n_documents: int = 1) -> None:
        """Append ids (1-D integers) that encode n_bytes bytes of UTF-8 text in n_documents documents."""
        ids = np.asarray(ids)
        assert ids.ndim == 1 and (ids.dtype.kind in "iu" or not ids.size)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.tokenizer.vocab_size:
            raise ValueError(
                f"{self.folder}: {split} ids range from {ids.min()} to {ids.max()}, but vocab_size is "
                f"{self.tokenizer.vocab_size}"
            )
        ids = np.ascontiguousarray(ids, dtype=self.dtype)
        with os_errors(self.folder):
            self.bins[split].write(ids.data)
        self.hashing.result()
        if ids.nbytes > 2**16:
            self.hashing = self.thread.submit(self.hashes[split].update, ids.data)
        else:  # quicker than handing it over
            self.hashes[split].update(ids.data)
        for key, n in (("tokens", ids.size), ("bytes", n_bytes), ("documents", n_documents)):
            self.counts[split][key] += n

    def write_conversation(self, split: str, ids: np.ndarray, targets: np.ndarray, n_bytes: int) -> None:
        """Append a conversation, a window of its own. targets (bool): which of the ids are learned. All or none of a
        dataset's texts are conversations."""
        mask = np.where(targets, TARGET, 0).astype(np.uint8)
        mask[0] |= FIRST_ID
        self.write(split, ids, n_bytes)
        self.masks[split].append(mask)

    def __exit__(self, failure: type | None, *_: object) -> None:
        self.thread.shutdown()
        try:
            with os_errors(self.folder):
                for file in self.bins.values():
                    file.close()
                if failure is None:
                    self.write_meta()
                    move_in(self.temp, self.folder, self.splits)
        finally:
            if failure is None or not self.keeps_temp:
                shutil.rmtree(self.temp, ignore_errors=True)

    def write_meta(self) -> None:
        for split in self.splits:
            if not self.counts[split]["tokens"]:
                options = " and ".join(f"--{held_out}_fraction" for held_out in self.splits[1:])
                raise ValueError(f"{self.folder}: the {split} split would be empty; use more text or another {options}")
            if self.masks[split]:
                mask = np.concatenate(self.masks[split])
                mask.tofile(self.temp / f"{split}.mask")
                self.counts[split] |= {"targets": int((mask & TARGET).sum())}
                self.counts[split] |= {"mask_sha256": hashlib.sha256(mask).hexdigest()}
        meta = {
            "format": 1,
            "dtype": self.dtype.name,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": self.tokenizer.to_json(),
            "eot": self.tokenizer.eot,
            "splits": {s: self.counts[s] | {"sha256": self.hashes[s].hexdigest()} for s in self.splits},
            "source": self.source,
            **self.extra,
        }
        text = json.dumps(meta, ensure_ascii=False, indent=1)
        (self.temp / "meta.json").write_text(text + "\n", encoding="utf-8", newline="\n")


def move_in(temp: Path, folder: Path, splits: Sequence[str] = SPLITS) -> None:
    """Replace folder's dataset with the files in temp, which has these splits.

    No .bin tells by itself whose ids it holds, so old and new files must never be seen together. The old
    train.bin goes first and the new one comes last, and a folder without train.bin is no dataset to
    open_dataset: a kill before the first step leaves the old dataset, one between the steps leaves none. Masks and
    a test split that the old dataset has and the new one lacks go too.
    """
    masks = [f"{split}.mask" for split in splits if (temp / f"{split}.mask").exists()]
    names = ("val.bin", *(f"{split}.bin" for split in splits[2:]), *masks, "meta.json", "train.bin")
    stale = [folder / f"{split}.mask" for split in splits if f"{split}.mask" not in names]
    if lists_test(folder) and TEST not in splits:
        stale += [folder / f"{TEST}.{kind}" for kind in ("bin", "mask")]
    for name in names:
        sync_file(temp / name)
    had_old = (folder / "train.bin").exists()
    if had_old:
        os.replace(folder / "train.bin", temp / "old.bin")
    for name in names:
        sync_folder(folder)  # keeps the steps in this order when the power fails
        try:
            os.replace(temp / name, folder / name)
        except OSError:
            if had_old and name == names[0]:  # nothing lost yet; Windows can't replace a mapped file
                os.replace(temp / "old.bin", folder / "train.bin")
            raise
        while stale:  # once there is no going back, and while meta.json still lists it
            with suppress(OSError):  # Windows: a process has it open; no meta.json will list it
                stale.pop().unlink(missing_ok=True)
    sync_folder(folder)


def lists_test(folder: Path) -> bool:
    """Whether the dataset in this folder says that test.bin is its own."""
    try:
        return TEST in read_meta(folder / "meta.json")["splits"]
    except (OSError, ValueError):
        return False


@contextmanager
def os_errors(folder: Path) -> Iterator[None]:
    """ValueError for what the user can fix: disk full, no permission, file in use, two prepares in the folder."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"cannot write the dataset in {folder}: {why}; name another place with --out_dir") from error


# ---- opening ---------------------------------------------------------------------------------------------


@dataclass
class Dataset:
    """An open dataset folder; `tokenizer` and `meta` (meta.json as a dict) are None if it has none."""

    folder: Path
    vocab_size: int
    dtype: np.dtype
    tokenizer: Tokenizer | None = None
    meta: dict | None = None
    sizes: dict[str, int] = field(default_factory=dict)  # tokens per split when opened, test when first asked for
    line_ends: tuple | None = None  # cache of the function line_ends
    edges: dict[str, np.ndarray] = field(default_factory=dict)  # cache of the function conversation_edges

    @property
    def is_masked(self) -> bool:
        """Whether it holds conversations, with a mask of what is learned."""
        return bool(self.meta) and all("mask_sha256" in split for split in self.meta["splits"].values())

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def tokens(self, split: str) -> int:
        """ValueError if the dataset has no such split."""
        if split == TEST and split not in self.sizes:
            self.sizes[TEST] = count_test_tokens(self)
        if split not in self.sizes:
            raise ValueError(f"{self.folder}: no {split}.bin; this dataset has only {', '.join(self.sizes)}")
        return self.sizes[split]

    def bytes(self, split: str) -> int | None:
        """UTF-8 bytes of the split's text; None if unknown, or if the ids do not stand for all of them."""
        self.tokens(split)
        is_lossy = self.tokenizer is not None and self.tokenizer.lossy or self.is_masked
        return self.meta["splits"][split]["bytes"] if self.meta and not is_lossy else None

    def array(self, split: str) -> np.memmap:
        """All ids of a split, mapped anew each time so that pages read earlier do not accumulate in resident memory."""
        return self.mapped(split, "bin", self.dtype)

    def mask(self, split: str) -> np.memmap:
        """Of each id of a split, whether it is a TARGET and whether it is a conversation's FIRST_ID; as array()."""
        return self.mapped(split, "mask", np.dtype(np.uint8))

    def mapped(self, split: str, kind: str, dtype: np.dtype) -> np.memmap:
        path, expected = self.folder / f"{split}.{kind}", self.tokens(split)
        if not path.exists() or path.stat().st_size != expected * dtype.itemsize:
            raise ValueError(f"{path}: no longer the {expected:,} tokens it had when opened; start again")
        return np.memmap(path, dtype=dtype, mode="r")

    def fingerprint(self) -> str:
        """16 hex digits that depend on the ids of training and validation: by the hashes in meta.json, else by samples
        of each .bin."""
        parts = [self.dtype.name, self.vocab_size]
        for split, n in self.sizes.items():
            if split == TEST:
                continue
            if self.meta:
                hashes = self.meta["splits"][split]
                parts += [split, n, *(hashes[key] for key in ("sha256", "mask_sha256") if key in hashes)]
            else:
                ids, width = self.array(split), 2**15
                starts = range(0, n, max(width, -(-n // 16)))
                samples = [ids[start : start + width] for start in [*starts, max(0, n - width)]]
                parts += [split, n, hashlib.sha256(np.concatenate(samples)).hexdigest()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def open_dataset(name: str | Path, vocab_size: int | None = None, may_differ: bool = False) -> Dataset:
    """Open a folder by path, or data/<name>. `vocab_size` describes .bin files without a meta.json or meta.pkl.

    ValueError: not found, not prepared, damaged, an id out of range, or (unless may_differ) a vocab_size too small for
    the data.
    """
    folder = find_folder(name)
    meta, tokenizer = None, None
    if (folder / "meta.json").exists():
        meta = read_meta(folder / "meta.json")
        tokenizer = tokenizer_from_json(meta["tokenizer"])
        size, dtype = meta["vocab_size"], np.dtype(meta["dtype"]).newbyteorder("<")
    else:
        size = None
        if (folder / "meta.pkl").exists():
            size, tokenizer = read_meta_pkl(folder / "meta.pkl")
        elif vocab_size is None:
            warnings.warn(
                f"{folder}: neither meta.json nor --vocab_size says what the ids are; assuming GPT-2's "
                f"{GPT2_VOCAB_SIZE} tokens",
                stacklevel=2,
            )
        size = size or vocab_size or GPT2_VOCAB_SIZE
        dtype = id_dtype(size)
    if vocab_size is not None and vocab_size < size and not may_differ:
        raise ValueError(f"{folder}: vocab_size={vocab_size} is too small for this data, which needs {size}")
    dataset = Dataset(folder, size, dtype, tokenizer, meta)
    for split in SPLITS:
        if meta or split == "train" or (folder / f"{split}.bin").exists():
            dataset.sizes[split] = count_tokens(dataset, split)
    return dataset


def find_folder(name: str | Path) -> Path:
    """`name` as a path, or data/<name>: the first with a train.bin. ValueError says how to make one."""
    choices = [Path(name), DATA / name]
    for folder in choices:
        if (folder / "train.bin").exists():
            return folder
    for folder in choices:
        if (folder / "prepare.py").exists():
            raise ValueError(
                f"dataset {name} is not prepared (no train.bin in {folder}); run: "
                f"python {display_path(folder / 'prepare.py')}"
            )
    if Path(name).is_dir():
        raise ValueError(f"{name} has no train.bin: not a dataset, or its preparation was stopped; prepare it again")
    ready = sorted(path.parent.name for path in DATA.glob("*/train.bin"))
    known = sorted(path.parent.name for path in DATA.glob("*/prepare.py"))
    raise ValueError(
        f"no dataset {name}: neither a folder nor in {display_path(DATA)}; prepared there: "
        f"{', '.join(ready) or 'none'}; with a prepare.py: {', '.join(known) or 'none'}"
    )


def display_path(path: Path) -> Path:
    """The path as a user would type it: relative if it is below the working folder."""
    path, here = path.resolve(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def dataset_option(folder: Path) -> str:
    """--dataset=… for the shell: by name below data/, else by path."""
    folder = folder.resolve()
    name = folder.name if folder.parent == DATA else folder if folder == Path.cwd() else display_path(folder)
    quoted = subprocess.list2cmdline([str(name)]) if os.name == "nt" else shlex.quote(str(name))
    return f"--dataset={quoted}"


def read_meta(path: Path) -> dict:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        is_valid = (
            meta["format"] == 1
            and meta["dtype"] in ("uint16", "uint32")
            and meta["vocab_size"] > 0
            and all(split in meta["splits"] for split in SPLITS)
            and all({"tokens", "bytes", "sha256"} <= s.keys() for s in meta["splits"].values())
            and isinstance(meta["tokenizer"], dict)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a dataset's meta.json ({type(error).__name__}: {error})") from error
    if not is_valid:
        raise ValueError(f"{path}: not a meta.json of format 1; it is damaged or from a newer version")
    return meta


class PlainUnpickler(pickle.Unpickler):
    """Refuses anything that needs an import, so no code can run; dict, str and int need none."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return isinstance(value, str | int)


def read_meta_pkl(path: Path) -> tuple[int, CharTokenizer | None]:
    """nanoGPT's {'vocab_size', 'itos', 'stoi'} -> (vocab_size, CharTokenizer, or None if itos is not of characters)."""
    try:
        with open(path, "rb") as file:
            meta = PlainUnpickler(file).load()
        if not is_plain(meta):
            raise TypeError("it holds values other than dict, str and int")
        vocab_size = meta["vocab_size"]
        if not isinstance(vocab_size, int) or vocab_size < 1:
            raise TypeError(f"vocab_size is {vocab_size!r}")
    except Exception as error:  # a damaged pickle can raise almost anything
        raise ValueError(f"{path}: not nanoGPT's plain dict with a vocab_size ({error})") from error
    itos = meta.get("itos", {})
    chars = [itos.get(i) for i in range(vocab_size)] if isinstance(itos, dict) else []
    if not all(isinstance(c, str) and len(c) == 1 for c in chars) or not 0 < len(chars) == len(set(chars)):
        warnings.warn(f"{path}: itos does not map ids to characters; used without a tokenizer", stacklevel=3)
        return vocab_size, None
    return vocab_size, CharTokenizer("".join(chars))


def count_tokens(dataset: Dataset, split: str) -> int:
    """Tokens in a .bin, after checking its length and, without a meta.json, all its ids."""
    path = dataset.folder / f"{split}.bin"
    if not path.exists():
        raise ValueError(f"{path}: missing, though meta.json lists it; prepare the dataset again")
    stat, width = path.stat(), dataset.dtype.itemsize
    n, rest = divmod(stat.st_size, width)
    if rest or not n:
        raise ValueError(
            f"{path}: {stat.st_size:,} bytes, expected a positive multiple of {width} ({dataset.dtype.name} ids); "
            "the file is truncated or of another format"
        )
    expected = dataset.meta["splits"][split]["tokens"] if dataset.meta else n
    if n != expected:
        raise ValueError(
            f"{path}: {n:,} tokens, but meta.json says {expected:,}; it was modified or truncated, prepare the "
            "dataset again"
        )
    if not dataset.meta:
        scan_ids(path, dataset.dtype, dataset.vocab_size, stat.st_size, stat.st_mtime_ns)
    return n


def count_test_tokens(dataset: Dataset) -> int:
    """As count_tokens, of the test split. ValueError if there is none."""
    if dataset.meta and TEST not in dataset.meta["splits"] or not (dataset.folder / f"{TEST}.bin").exists():
        is_gone = dataset.meta and TEST in dataset.meta["splits"]
        found = f"no {TEST}.bin, though meta.json lists it" if is_gone else "this dataset has no test split"
        raise ValueError(f"{dataset.folder}: {found}; prepare it again with --test_fraction=0.05, for example")
    return count_tokens(dataset, TEST)


@lru_cache
def scan_ids(path: Path, dtype: np.dtype, vocab_size: int, size: int, mtime_ns: int) -> None:
    """ValueError at the first id not below vocab_size. Runs once per process while the file stays the same."""
    if vocab_size > np.iinfo(dtype).max:
        return
    position = 0
    with (
        open(path, "rb") as file,
        byte_bar(f"checking {path.name}", size, disable=None if size > 2**30 else True) as bar,
    ):
        while (ids := np.fromfile(file, dtype, 2**22)).size:
            if ids.max() >= vocab_size:
                at = int(np.argmax(ids >= vocab_size))
                raise ValueError(
                    f"{path}: token {position + at:,} is id {ids[at]}, but vocab_size is {vocab_size}; pass the "
                    "tokenizer's own size with --vocab_size"
                )
            position += ids.size
            bar.update(ids.nbytes)

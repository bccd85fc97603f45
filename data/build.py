"""Units of text -> a dataset folder, on all cores: the second half of every prepare.py.

    prepare_dataset(args, parts, make_units(args, parts, reading), "config/train_pycode.py")

Workers encode units into encoded parts (data/encode.py). The parent takes these in the order of the units, decides
where each document goes (data/splits.py), and appends it to train.bin, val.bin or test.bin. So the result does not
depend on the number of workers, memory does not grow with the text, and a killed run can resume: units with rows but no
ids are already in the .bin files, those with both are finished, and the others are encoded again.
"""

from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from data.dataset import SPLITS, DatasetWriter, dataset_option, display_path, open_dataset, os_errors
from data.encode import PARTS_FORMAT, Layout, encode_unit, is_finished, part_dtype, read_rows, worker_count, worker_pool
from data.fim import fim_of, with_markers
from data.formats import Part
from data.options import reading_of, tokenizer_of
from data.progress import byte_bar
from data.report import count_ids, fim_report, print_report, special_tokens_report
from data.scratch import folder_beside, work_folder
from data.source import download_inputs, find_parts, origin
from data.splits import DROPPED, NUMBERED, Ledger, Limits, find_limits, split_texts, total_bytes
from data.tokenizer import Tokenizer, find_cut, fingerprint
from data.units import Unit, by_position, make_units

SLICE = 2**18  # ids copied at a time


def prepare_dataset(args: Namespace, parts: list[Part], units: list[Unit], config: str, where: str = "") -> None:
    """Encode the units made of `parts` as the command line says; `where` describes them in place of their names."""
    build(args, units, tokenizer_of(args), origin(args, parts, where), config)


def prepare_documents(args: Namespace, config: str, where: str = "", **options) -> None:
    """Prepare --input, whose documents go whole to one split; `options`: fields of Reading."""
    reading = reading_of(args, **options)
    parts = find_parts(args, reading)
    prepare_dataset(args, parts, make_units(args, parts, reading), config, where)


def prepare_text(args: Namespace, urls: list[str], sha256: str, config: str) -> None:
    """Prepare --input, or the script's own text, with the end of the text as the validation split (or, with
    --test_fraction, as validation and then test)."""
    if download_inputs(args, {"input.txt": (urls, sha256)}):
        reading = reading_of(args)
        parts = find_parts(args, reading, sha256)
        prepare_dataset(args, parts, by_position(args, parts, reading), config)


def build(args: Namespace, units: Iterable[Unit], make_tokenizer: Callable, source: dict, config: str) -> None:
    """Encode `units` into the dataset args.out_dir, print a report for checking, and the next command to run.

    make_tokenizer(texts) returns a tokenizer; texts() iterates over the texts of the training split, texts(None) over
    all. args: of a prepare_parser, with eot (False: no end-of-text id after documents). `source` goes into meta.json.
    ValueError for everything the user can fix.
    """
    units = list(units)
    splits = NUMBERED if args.test_fraction else SPLITS
    limits = find_limits(units, args.val_fraction, args.test_fraction)
    tokenizer = make_tokenizer(partial(split_texts, units, limits))
    fim = fim_of(args)
    tokenizer = with_markers(tokenizer, fim)
    end = tokenizer.eot if args.eot else None
    layout = Layout(end, args.special == "encode", limits, fim)
    if layout.special:
        check_special(tokenizer)
    n = worker_count(args.workers, units)
    with folder_beside(args.out_dir) if args.dry_run else nullcontext(args.out_dir) as folder:
        folder = Path(folder)
        with (
            work_folder(folder, [PARTS_FORMAT, fingerprint(tokenizer), *layout.settings]) as work,
            worker_pool(n, tokenizer) as pool,
            DatasetWriter(folder, tokenizer, source, work, splits) as writer,
        ):
            start = partial(pool.submit, encode_unit, layout)
            ledger = assemble(units, start, 3 * n, writer, limits)
            used = {split: count_ids(pool, writer, split) for split in splits}
        print(f"source {source['from']}" + (f", {source['bytes']:,} bytes" if "bytes" in source else ""))
        special = special_tokens_report(args, tokenizer, ledger, used, end) + fim_report(fim, tokenizer, used)
        print_report(open_dataset(folder), ledger, used, special)
    if args.dry_run:
        print(f"dry run, nothing written to {args.out_dir}")
        return
    print(f"wrote  {', '.join(f'{split}.bin' for split in splits)} and meta.json in {display_path(args.out_dir)}")
    print(f"next   python train.py {config} {dataset_option(args.out_dir)}")


def check_special(tokenizer: Tokenizer) -> None:
    """ValueError if special tokens cannot be encoded: there are none, or texts may be cut within one."""
    if not tokenizer.special_tokens:
        raise ValueError("--special=encode: this tokenizer has no special tokens; leave it out, or choose another one")
    cut = next((name for name in tokenizer.special_tokens if find_cut(name, 0) > 0), None)
    if cut:
        raise ValueError(
            f"--special=encode: the special token {cut!r} has white space or punctuation after a letter, where texts "
            "are cut; choose another spelling, such as <|name|>"
        )


def config_for(args: Namespace, of_words: str, of_characters: str) -> str:
    """The config to recommend: small vocabularies are trained otherwise than large ones."""
    return of_characters if args.tokenizer in ("char", "byte") else of_words


def assemble(
    units: list[Unit], start: Callable[[Unit, Path], Future], n_ahead: int, writer: DatasetWriter, limits: Limits
) -> Ledger:
    """Append all units' ids to the writer's files, in order; `start` encodes one, n_ahead at a time."""
    paths = [writer.temp / f"{i:06}-{unit.key[:16]}" for i, unit in enumerate(units)]
    n_done, ledger = resume(paths, writer, limits)
    todo = zip(units[n_done:], paths[n_done:], strict=True)

    def start_one() -> None:
        for unit, path in islice(todo, 1):
            finished = is_finished(path, writer.tokenizer.vocab_size)
            started.append((unit, path, None if finished else start(unit, path)))

    started = deque()
    for _ in range(n_ahead):
        start_one()
    with byte_bar("encoding", total_bytes(units), initial=total_bytes(units[:n_done])) as bar:
        while started:
            unit, path, future = started.popleft()
            if future is not None:
                future.result()
            append_part(path, writer, ledger)
            bar.update(unit.size)
            start_one()
    assert ledger.open is None  # the last document has ended
    if not ledger.counts["train"]["tokens"] and ledger.copies:
        raise ValueError(
            f"{writer.folder}: all documents for training are copies of others in the validation split, such as "
            f"{next(iter(ledger.copies))}; name other files"
        )
    for split, counts in ledger.counts.items():
        assert writer.counts[split]["tokens"] == counts["tokens"]
        writer.counts[split] = {key: counts[key] for key in ("tokens", "bytes", "documents")}
    return ledger


def resume(paths: list[Path], writer: DatasetWriter, limits: Limits) -> tuple[int, Ledger]:
    """How many of the first units are in the writer's files from an earlier run, and the ledger after them.

    The files are cut there. Of the other leftovers, parts of `paths` are kept.
    """
    names = {path.name for path in paths}
    for file in writer.temp.iterdir():
        if file.suffix == ".tmp" or file.suffix in (".ids", ".rows") and file.stem not in names:
            with suppress(OSError):  # Windows: a worker may not have ended yet
                file.unlink()
    n, ledger = 0, Ledger(limits, writer.splits)
    with suppress(OSError, ValueError, EOFError):
        while n < len(paths) and not paths[n].with_suffix(".ids").exists():
            ledger.add(*read_rows(paths[n]))
            n += 1
    if n:
        print(f"resuming after {n:,} of {len(paths):,} parts, finished by an earlier run", flush=True)
    if not all([writer.cut(split, ledger.counts[split]["tokens"]) for split in writer.splits]):
        n, ledger = 0, Ledger(limits, writer.splits)  # killed while the files were moved into place
        for split in writer.splits:
            writer.cut(split, 0)
    for path in paths[n:]:
        if not path.with_suffix(".ids").exists():
            path.with_suffix(".rows").unlink(missing_ok=True)
    return n, ledger


def append_part(path: Path, writer: DatasetWriter, ledger: Ledger) -> None:
    """Move the ids of a part to where the ledger sends them."""
    rows, names, left_out = read_rows(path)
    unfinished = ledger.open
    where = ledger.add(rows, names, left_out)
    if unfinished is not None and where.size and where[0] == DROPPED:
        split = NUMBERED[unfinished[0]]
        writer.cut(split, writer.counts[split]["tokens"] - int(unfinished[1]["tokens"][0]))
    bounds = np.concatenate([[0], np.cumsum(rows["tokens"])])
    with os_errors(writer.folder):
        with open(path.with_suffix(".ids"), "rb") as file:
            for first in range(0, bounds[-1], SLICE):
                ids = np.fromfile(file, part_dtype(writer.tokenizer.vocab_size), SLICE)
                lengths = np.diff(np.clip(bounds, first, first + SLICE))
                targets = set(where[lengths > 0].tolist())
                target_of = np.repeat(where.astype(np.int8), lengths) if len(targets) > 1 else None
                for i in targets - {DROPPED}:
                    writer.write(NUMBERED[i], ids if target_of is None else ids[target_of == i], 0, 0)
        for file in writer.bins.values():
            file.flush()
        path.with_suffix(".ids").unlink()

"""Where text comes from: --input files, input.txt beside a prepare.py, or a download with a checksum.

    python data/<name>/prepare.py --input novel.txt other.txt --encoding=gb18030

Text is kept as it is: its newlines, byte-order mark and full-width spaces too, unless --normalize is given.
Downloads go through the proxy in HTTPS_PROXY and the like. HF_ENDPOINT (https://hf-mirror.com, say) takes the
place of https://huggingface.co, and GITHUB_RAW_ENDPOINT that of https://raw.githubusercontent.com.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

MIRRORS = {  # address: the environment variable that replaces it
    "https://huggingface.co": "HF_ENDPOINT",
    "https://raw.githubusercontent.com": "GITHUB_RAW_ENDPOINT",
}
NOT_SOURCE = {"site-packages", "dist-packages", "__pycache__", "node_modules"}  # other people's, or no source
TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of a download


# ---- the command line of every prepare.py ------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help shows the options")


def arguments(description: str, folder: Path) -> argparse.ArgumentParser:
    """The flags that all prepare scripts share; `folder` is the script's own."""
    parser = Parser(description=description, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", type=Path, default=[], metavar="FILE", help="local text; needs no network")
    add("--out_dir", type=Path, default=folder, help="where the dataset goes (default: beside the script)")
    add("--val_fraction", type=fraction, default=0.1, help="part of the text for validation (default: 0.1)")
    add("--encoding", default="utf-8", help="of the text; gb18030 for old Chinese files (default: utf-8)")
    add("--normalize", action="store_true", help="drop a byte-order mark, read CRLF as LF (default: keep)")
    add("--dry_run", action="store_true", help="do it all, print the numbers, but leave out_dir as it is")
    parser.set_defaults(folder=folder)
    return parser


def fraction(text: str) -> float:
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


# ---- text files --------------------------------------------------------------------------------------------


@dataclass
class Document:
    """One text file: `size` bytes with that sha256, decoded (and normalized, perhaps) to `text`."""

    name: str
    size: int
    sha256: str
    text: str
    normalized: bool


def read_document(path: Path, encoding: str = "utf-8", normalize: bool = False) -> Document:
    """Read a text file whole. ValueError: missing, empty, or not in that encoding (names the byte offset)."""
    try:
        raw = path.read_bytes()
        text = raw.decode(encoding)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; expected a text file") from error
    except LookupError as error:
        raise ValueError(f"unknown encoding {encoding!r}; try utf-8, gb18030, big5 or utf-16") from error
    except UnicodeDecodeError as error:
        guess = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "gb18030"
        hint = f"--encoding={guess}" if encoding.lower() in ("utf-8", "utf8") else "another --encoding"
        raise ValueError(f"{path} is not {encoding}: byte 0x{raw[error.start]:02x} at offset {error.start} "
                         f"({error.reason}); if it is in another encoding, pass {hint}") from error
    if normalize:
        text = without_crlf(text)
    if not text:
        raise ValueError(f"{path} is empty; expected text")
    return Document(path.name, len(raw), hashlib.sha256(raw).hexdigest(), text, normalize)


def without_crlf(text: str) -> str:
    """--normalize: no byte-order mark, and LF for CRLF."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def read_input(args: argparse.Namespace, urls: Sequence[str], sha256: str) -> list[Document]:
    """--input, else input.txt beside the script, downloaded if it isn't there (a dry run then finds nothing).

    The very file that the script would download is always normalized: the public copy of Hongloumeng has CRLF
    newlines by accident, and what is known of it (878,939 characters, 4,435 distinct) counts them as LF.
    """
    path = args.folder / "input.txt"
    if not args.input and not path.exists():
        if args.dry_run:
            print(f"dry run: would download {urls[0]} to {path}")
            return []
        download(urls, sha256, path)
    documents = [read_document(path, args.encoding, args.normalize) for path in args.input or [path]]
    for document in documents:
        if document.sha256 == sha256:
            document.name, document.normalized, document.text = urls[0], True, without_crlf(document.text)
    return documents


def read_python(args: argparse.Namespace, paths: Iterable[Path], skip: set[str]) -> Iterator[Document]:
    """The files among `paths`, and the .py files of the folders among them, without subfolders in `skip`.

    A file of a folder that can't be read as text is reported on stderr and left out.
    """
    for path in paths:
        if not path.is_dir():
            yield read_document(path, args.encoding, args.normalize)
            continue
        for file in python_files(path, skip | NOT_SOURCE):
            try:
                yield read_document(file, args.encoding, args.normalize)
            except ValueError as error:
                print(f"skipped: {error}", file=sys.stderr)


def python_files(folder: Path, skip: set[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in skip and not name.startswith(".")]
        for path in (Path(parent, name) for name in names if name.endswith(".py")):
            # _sysconfigdata: settings of the machine that built this Python
            if not path.name.startswith("_sysconfigdata") and path.is_file() and path.stat().st_size:
                yield path


def origin(args: argparse.Namespace, documents: Sequence[Document], where: str = "") -> dict:
    """The "source" of meta.json. The sha256 is the file's, or that of the files' hex digests in a row."""
    names = ", ".join(document.name for document in documents[:8]) + (", ..." if len(documents) > 8 else "")
    hashes = [document.sha256 for document in documents]
    return {
        "from": where or names,
        "files": len(documents),
        "bytes": sum(document.size for document in documents),
        "sha256": hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "encoding": args.encoding,
        "normalize": any(document.normalized for document in documents),
    }


def split_by_characters(texts: Sequence[str], val_fraction: float) -> Iterator[tuple[str, str]]:
    """Texts in a row, cut once: the first 1 - val_fraction of all characters are train, the rest is val."""
    left = int(sum(map(len, texts)) * (1 - val_fraction))
    for text in texts:
        for split, part in (("train", text[:left]), ("val", text[left:])):
            if part:
                yield split, part
        left = max(0, left - len(text))


# ---- downloads ---------------------------------------------------------------------------------------------


def download(urls: Sequence[str], sha256: str, dest: Path) -> None:
    """Fetch dest from the first address that delivers the file with this sha256, resuming an earlier attempt.

    What has arrived stays in dest + '.part' until it is complete. ValueError, one line, if no address works:
    what failed where, where to put the file, and how to pass it.
    """
    part, failures = dest.with_name(dest.name + ".part"), []
    for url in map(mirrored, urls):
        try:
            fetch(url, sha256, part)
            os.replace(part, dest)
            return
        except (OSError, ValueError) as error:  # requests raises OSErrors, ValueErrors for bad addresses
            failures.append(f"{url} ({reason(error)})")
    raise ValueError(f"could not download {dest.name}: {'; '.join(failures)}. Get the file from one of these "
                     f"addresses by other means and pass it with --input FILE, or save it as {dest}")


def reason(error: Exception) -> str:
    """A few words for what requests says in several lines."""
    from requests import exceptions

    for kind, text in ((exceptions.ProxyError, "the proxy failed"), (exceptions.SSLError, "TLS failed"),
                       (exceptions.Timeout, "timed out"), (exceptions.ConnectionError, "no connection"),
                       (exceptions.ChunkedEncodingError, "cut off")):
        if isinstance(error, kind):
            return text
    return str(error)


def github_urls(repository: str, commit: str, path: str) -> list[str]:
    """Two addresses of one file: GitHub's own, and a delivery network that is easier to reach from China."""
    return [f"https://raw.githubusercontent.com/{repository}/{commit}/{path}",
            f"https://cdn.jsdelivr.net/gh/{repository}@{commit}/{path}"]


def mirrored(url: str) -> str:
    for host, variable in MIRRORS.items():
        if url.startswith(host + "/") and os.environ.get(variable):
            return os.environ[variable].rstrip("/") + url.removeprefix(host)
    return url


def fetch(url: str, sha256: str, part: Path) -> None:
    """Complete `part` from url: again while that adds bytes, and afresh if what it adds to was wrong."""
    resumed = part.exists()
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            fetch_rest(url, part, before)
        except OSError:
            if not part.exists() or part.stat().st_size <= before:
                raise
            continue
        found = hash_file(part)
        if found == sha256:
            return
        part.unlink()
        if not resumed:
            raise ValueError(f"wrong contents: sha256 {found[:16]}..., expected {sha256[:16]}...")
        resumed = False


def fetch_rest(url: str, part: Path, offset: int) -> None:
    """Append to `part` what follows the `offset` bytes it has; from the start if the server can't do that."""
    import requests
    from tqdm import tqdm

    headers = {"Accept-Encoding": "identity"}  # offsets and sizes are those of the file, not of a gzip of it
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        if offset and reply.status_code == 416:  # nothing follows: the checksum will tell
            return
        if reply.status_code not in (200, 206):
            raise OSError(f"HTTP {reply.status_code}")
        if reply.status_code == 200:  # no ranges here, the whole file follows
            offset = 0
        total = offset + int(reply.headers.get("Content-Length", 0)) or None
        with (open(part, "ab" if offset else "wb") as file,
              tqdm(desc=part.name, total=total, initial=offset, unit="B", unit_scale=1, disable=None) as bar):
            for piece in reply.iter_content(2**14):
                file.write(piece)
                bar.update(len(piece))


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()

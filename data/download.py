"""Downloads with checksums, mirrors and resuming: what a prepare.py does when it is called without --input.

    download_file(github_urls(repository, commit, path), sha256, dest)

Downloads go through the proxy in HTTPS_PROXY and the like. HF_ENDPOINT (https://hf-mirror.com, say) takes the
place of https://huggingface.co, and GITHUB_RAW_ENDPOINT that of https://raw.githubusercontent.com.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

MIRRORS = {  # address: the environment variable that replaces it
    "https://huggingface.co": "HF_ENDPOINT",
    "https://raw.githubusercontent.com": "GITHUB_RAW_ENDPOINT",
}
TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of a download


def github_urls(repository: str, commit: str, path: str) -> list[str]:
    """Two addresses of one file: GitHub's own, and a delivery network that is easier to reach from China."""
    path = quote(path)
    return [
        f"https://raw.githubusercontent.com/{repository}/{commit}/{path}",
        f"https://cdn.jsdelivr.net/gh/{repository}@{commit}/{path}",
    ]


def hub_urls(dataset: str, path: str) -> list[str]:
    """Two addresses of a file of a dataset on the Hugging Face hub: its own, and a mirror in China."""
    return [
        f"{host}/datasets/{dataset}/resolve/main/{path}" for host in ("https://huggingface.co", "https://hf-mirror.com")
    ]


def download_file(urls: Sequence[str], sha256: str | None, dest: Path) -> None:
    """Fetch dest from the first address that delivers the file with this sha256, resuming an earlier attempt.

    Without a sha256, the one that the Hugging Face hub states for its large files is used; an address that
    states none is trusted, if the length is the one announced. What has arrived stays in dest + '.part' until
    it is complete. ValueError, one line, if no address works: what failed where, where to put the file, and
    how to pass it.
    """
    part, failures = dest.with_name(dest.name + ".part"), []
    for url in map(mirrored, urls):
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            fetch(url, sha256, part)
            os.replace(part, dest)
            return
        except (OSError, ValueError) as error:  # requests raises OSErrors, ValueErrors for bad addresses
            failures.append(f"{url} ({short_reason(error)})")
    raise ValueError(
        f"could not download {dest.name}: {'; '.join(failures)}. Get the file from one of these "
        f"addresses by other means and pass it with --input FILE, or save it as {dest}"
    )


def short_reason(error: Exception) -> str:
    """A few words for what requests says in several lines."""
    from requests import exceptions

    for kind, text in (
        (exceptions.ProxyError, "the proxy failed"),
        (exceptions.SSLError, "TLS failed"),
        (exceptions.Timeout, "timed out"),
        (exceptions.ConnectionError, "no connection"),
        (exceptions.ChunkedEncodingError, "cut off"),
    ):
        if isinstance(error, kind):
            return text
    return str(error)


def mirrored(url: str) -> str:
    for host, variable in MIRRORS.items():
        if url.startswith(host + "/") and os.environ.get(variable):
            return os.environ[variable].rstrip("/") + url.removeprefix(host)
    return url


def fetch(url: str, sha256: str | None, part: Path) -> None:
    """Complete `part` from url: again while that adds bytes, and afresh if what it adds to was wrong."""
    resumed = part.exists()
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            stated = fetch_rest(url, part, before)
        except OSError:
            if not part.exists() or part.stat().st_size <= before:
                raise
            continue
        expected = sha256 or stated
        found = hash_file(part) if expected else None
        if found == expected and (expected or not resumed):
            return
        part.unlink()
        if not resumed:
            raise ValueError(f"wrong contents: sha256 {found[:16]}..., expected {expected[:16]}...")
        resumed = False


def fetch_rest(url: str, part: Path, offset: int) -> str | None:
    """Append to `part` what follows the `offset` bytes it has; from the start if the server can't do that.

    Returns the sha256 of the whole file if the server states it, as the Hugging Face hub does.
    """
    import requests
    from tqdm import tqdm

    headers = {"Accept-Encoding": "identity"}  # offsets and sizes are those of the file, not of a gzip of it
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        tags = [answer.headers.get("X-Linked-Etag", "").strip('"') for answer in (*reply.history, reply)]
        stated = next((tag for tag in tags if len(tag) == 64), None)
        if offset and reply.status_code == 416:  # nothing follows: the checksum will tell
            return stated
        if reply.status_code not in (200, 206):
            raise OSError(f"HTTP {reply.status_code}")
        if reply.status_code == 200:  # no ranges here, the whole file follows
            offset = 0
        total = offset + int(reply.headers.get("Content-Length", 0)) or None
        with (
            open(part, "ab" if offset else "wb") as file,
            tqdm(desc=part.name, total=total, initial=offset, unit="B", unit_scale=1, disable=None) as bar,
        ):
            for piece in reply.iter_content(2**14):
                file.write(piece)
                bar.update(len(piece))
    return stated


def hash_file(path: str | Path, progress: Callable[[int], None] = int) -> str:
    """The sha256 of a file, as 64 hex digits; progress(n) is told of every n bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()

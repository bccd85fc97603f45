"""Downloads with checksums, mirrors and resuming.

    download_file(github_urls(repository, commit, path), sha256, dest)

HTTPS_PROXY and the like are respected. HF_ENDPOINT (for example https://hf-mirror.com) replaces https://huggingface.co,
and GITHUB_RAW_ENDPOINT replaces https://raw.githubusercontent.com.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from data.progress import byte_bar

HUB_HOST = "https://huggingface.co"
MIRRORS = {HUB_HOST: "HF_ENDPOINT", "https://raw.githubusercontent.com": "GITHUB_RAW_ENDPOINT"}  # host: its variable
TIMEOUT = (10, 30)  # seconds to connect, and to wait for more data


def github_urls(repository: str, commit: str, path: str) -> list[str]:
    """Two addresses of one file: GitHub's own, and a CDN that is easier to reach from China."""
    path = quote(path)
    return [
        f"https://raw.githubusercontent.com/{repository}/{commit}/{path}",
        f"https://cdn.jsdelivr.net/gh/{repository}@{commit}/{path}",
    ]


# texts that several datasets are made of: addresses, sha256
TINY_SHAKESPEARE = (
    github_urls("karpathy/char-rnn", "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e", "data/tinyshakespeare/input.txt"),
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
HONGLOUMENG = (
    github_urls(
        "ybdesire/baby_gpt_hongloumeng",
        "5e62a99d2639c366e0376731e9e2d4938f7adc24",
        "data/hongloumeng_char_local/input.txt",
    ),
    "a9b2f3096c4dc1b1c83bdf185dcf121a03b9b68e8c1979c6744dff856879d01d",
)


def hub_urls(dataset: str, path: str) -> list[str]:
    """Two addresses of a file in a Hugging Face dataset: the hub's own, and a mirror in China."""
    return [f"{host}/datasets/{dataset}/resolve/main/{path}" for host in (HUB_HOST, "https://hf-mirror.com")]


def mirrored(url: str) -> str:
    for host, variable in MIRRORS.items():
        if url.startswith(host + "/") and os.environ.get(variable):
            return os.environ[variable].rstrip("/") + url.removeprefix(host)
    return url


def download_file(urls: Sequence[str], sha256: str | None, dest: Path) -> None:
    """Fetch `dest` from the first address that delivers the file with this sha256, resuming an earlier attempt.

    Without a sha256, the one the Hugging Face hub states for large files is used; if none is stated either, a file of
    the announced length is trusted. Partial downloads stay in dest + '.part'. ValueError if every address fails: what
    failed where, where to put the file, and how to pass it.
    """
    part, failures = dest.with_name(dest.name + ".part"), []
    for url in map(mirrored, urls):
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            fetch(url, sha256, part)
            os.replace(part, dest)
            return
        except (OSError, ValueError) as error:  # requests raises OSErrors, and ValueErrors for malformed addresses
            failures.append(f"{url} ({short_reason(error)})")
    raise ValueError(
        f"could not download {dest.name}: {'; '.join(failures)}. Get the file from one of these addresses by other "
        f"means and pass it with --input FILE, or save it as {dest}"
    )


def short_reason(error: Exception) -> str:
    """A few words in place of requests' several lines."""
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


def fetch(url: str, sha256: str | None, part: Path) -> None:
    """Complete `part` from `url`: retry while that adds bytes, and start over if the resumed file is wrong."""
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
    """Append to `part` everything after its first `offset` bytes; the whole file if the server cannot resume.

    Returns the sha256 of the whole file if the server states it, as the Hugging Face hub does.
    """
    import requests

    headers = {"Accept-Encoding": "identity"}  # offsets and sizes must be the file's, not a gzip stream's
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        tags = [answer.headers.get("X-Linked-Etag", "").strip('"') for answer in (*reply.history, reply)]
        stated = next((tag for tag in tags if len(tag) == 64), None)
        if offset and reply.status_code == 416:  # nothing left to send; the checksum decides
            return stated
        if reply.status_code not in (200, 206):
            raise OSError(f"HTTP {reply.status_code}")
        if reply.status_code == 200:  # the server ignored the range
            offset = 0
        size = offset + int(reply.headers.get("Content-Length", 0)) or None
        with (
            open(part, "ab" if offset else "wb") as file,
            byte_bar(part.name, size, initial=offset) as bar,
        ):
            for piece in reply.iter_content(2**14):
                file.write(piece)
                bar.update(len(piece))
    return stated


def download_from_hub(repository: str, files: Sequence[str], remedy: str) -> list[Path]:
    """Paths of a repository's files in the cache of the Hugging Face library, downloaded if any is missing.

    ValueError if that fails: why, the addresses, and `remedy`, what to do with files obtained by other means.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import LocalEntryNotFoundError

    try:
        try:
            return [Path(hf_hub_download(repository, file, local_files_only=True)) for file in files]
        except LocalEntryNotFoundError:
            # One probe of 10 s: hf_hub_download itself retries for minutes where the hub is blocked
            get_hf_file_metadata(hf_hub_url(repository, files[0]), timeout=10)
            return [Path(hf_hub_download(repository, file)) for file in files]
    except Exception as error:  # from the library, requests, httpx or the disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        urls = " and ".join(mirrored(f"{HUB_HOST}/{repository}/resolve/main/{file}") for file in files)
        raise ValueError(
            f"cannot get {' and '.join(files)} of {repository} ({reason}): set HF_ENDPOINT to a mirror of the "
            f"Hugging Face hub, or download {urls} by other means and {remedy}"
        ) from None


def hash_file(path: str | Path, progress: Callable[[int], object] = int) -> str:
    """The sha256 of a file in hex; progress(n) is called after every n bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()

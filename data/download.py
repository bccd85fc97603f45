"""Downloads with checksums, mirrors and resuming.

    download_file(github_urls(repository, commit, path), sha256, dest)

HTTPS_PROXY and the like are respected. HF_ENDPOINT (for example https://hf-mirror.com) replaces https://huggingface.co,
and GITHUB_RAW_ENDPOINT replaces https://raw.githubusercontent.com. MODELSCOPE_ENDPOINT=https://modelscope.cn (or
HF_ENDPOINT=https://modelscope.cn) takes models and datasets of the hub from ModelScope, where they are found under the
same name, or among the copies that ModelScope keeps.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from data.progress import byte_bar

HUB_HOST = "https://huggingface.co"
MIRRORS = {HUB_HOST: "HF_ENDPOINT", "https://raw.githubusercontent.com": "GITHUB_RAW_ENDPOINT"}  # host: its variable
COPIES = "AI-ModelScope"  # the owner of ModelScope's copies of others' repositories
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


def addresses_of(url: str) -> list[str]:
    """Where to get the file at `url`: at the mirror of its host that the environment names, if any."""
    if url.startswith(HUB_HOST + "/") and modelscope():
        repository, _, file = url.removeprefix(HUB_HOST + "/").partition("/resolve/main/")
        kind = "datasets" if repository.startswith("datasets/") else "models"
        names = copies_of(repository.removeprefix("datasets/"))
        return [f"{modelscope()}/{kind}/{name}/resolve/master/{file}" for name in names]
    for host, variable in MIRRORS.items():
        if url.startswith(host + "/") and os.environ.get(variable):
            return [os.environ[variable].rstrip("/") + url.removeprefix(host)]
    return [url]


def modelscope() -> str:
    """The address of ModelScope if the environment names it, else ""."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    return (os.environ.get("MODELSCOPE_ENDPOINT") or endpoint * ("modelscope." in endpoint)).rstrip("/")


def copies_of(repository: str) -> list[str]:
    """What a repository of the hub may be called on ModelScope."""
    return list(dict.fromkeys([repository, f"{COPIES}/{repository.rpartition('/')[2]}"]))


def download_file(urls: Sequence[str], sha256: str | None, dest: Path) -> None:
    """Fetch `dest` from the first address that delivers the file with this sha256, resuming an earlier attempt.

    Without a sha256, the one the Hugging Face hub states for large files is used; if none is stated either, a file of
    the announced length is trusted, but no part of an earlier attempt. Partial downloads stay in dest + '.part'.
    ValueError if every address fails: what failed where, where to put the file, and how to pass it.
    """
    addresses = dict.fromkeys(address for url in urls for address in addresses_of(url))  # two may have one mirror
    failures = fetch_first([*addresses], sha256, dest)
    if failures:
        raise ValueError(
            f"could not download {dest.name}: {'; '.join(failures)}. Get the file from one of these addresses by other "
            f"means and pass it with --input FILE, or save it as {dest}"
        )


def fetch_first(urls: Sequence[str], sha256: str | None, dest: Path) -> list[str]:
    """Fetch `dest` from the first address that delivers it. Returns what failed where, or [] if one did."""
    part, failures = dest.with_name(dest.name + ".part"), []
    for url in urls:
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            fetch(url, sha256, part)
            os.replace(part, dest)
            return []
        except (OSError, ValueError) as error:  # requests raises OSErrors, and ValueErrors for malformed addresses
            failures.append(f"{url} ({short_reason(error)})")
    return failures


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
            stated = fetch_rest(url, part, before, is_trusted=bool(sha256) or not resumed)
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


def fetch_rest(url: str, part: Path, offset: int, is_trusted: bool) -> str | None:
    """Append to `part` everything after its first `offset` bytes; the whole file if the server cannot resume.

    Returns the sha256 of the whole file if the server states it, as the Hugging Face hub does. If it does not, a part
    that is not trusted stays as it is.
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
        if not is_trusted and not stated:  # no need to fetch the rest: the part will be thrown away
            return None
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
    if size and part.stat().st_size < size:  # urllib3 1 does not say so
        raise OSError("cut off")
    return stated


def download_from_hub(repository: str, files: Sequence[str], remedy: str) -> list[Path]:
    """Paths of a repository's files in the cache of the Hugging Face library, or in that of ModelScope's if the
    environment names it, downloaded if any is missing.

    ValueError if that fails: why, the addresses, and `remedy`, what to do with files obtained by other means.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import LocalEntryNotFoundError

    try:
        try:
            return [Path(hf_hub_download(repository, file, local_files_only=True)) for file in files]
        except LocalEntryNotFoundError:
            if modelscope():
                return download_from_modelscope(repository, files)
            # One probe of 10 s: hf_hub_download itself retries for minutes where the hub is blocked
            get_hf_file_metadata(hf_hub_url(repository, files[0]), timeout=10)
            return [Path(hf_hub_download(repository, file)) for file in files]
    except Exception as error:  # from the library, requests, httpx or the disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        urls = " and ".join(addresses_of(f"{HUB_HOST}/{repository}/resolve/main/{file}")[-1] for file in files)
        raise ValueError(
            f"cannot get {' and '.join(files)} of {repository} ({reason}): set HF_ENDPOINT to a mirror of the "
            f"Hugging Face hub, or MODELSCOPE_ENDPOINT to https://modelscope.cn, or download {urls} by other means and "
            f"{remedy}"
        ) from None


def download_from_modelscope(repository: str, files: Sequence[str]) -> list[Path]:
    """Paths of the files of a model in the cache of ModelScope's library, downloaded if any is missing, with the sha256
    that ModelScope states. OSError: what failed where."""
    from filelock import FileLock  # processes of one run start at once

    cache = os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope" / "hub"
    folders = {}
    for name in copies_of(repository):
        owner, _, model = name.rpartition("/")
        folders[name] = Path(cache, "models", owner, model.replace(".", "___"))  # as the library names it
        if all((folders[name] / file).is_file() for file in files):
            return [folders[name] / file for file in files]
    failures = []
    for name, folder in folders.items():
        try:
            stated = modelscope_checksums(name)
        except (OSError, ValueError) as error:
            failures.append(f"{name}: {short_reason(error)}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for file in files:
                if not (folder / file).is_file():
                    url = f"{modelscope()}/models/{name}/resolve/master/{file}"
                    failures += fetch_first([url], stated.get(file), folder / file)
        if all((folder / file).is_file() for file in files):
            return [folder / file for file in files]
    raise OSError("; ".join(failures))


def modelscope_checksums(name: str) -> dict[str, str | None]:
    """The sha256 that ModelScope states for each file of a model. OSError if it has none of that name."""
    import requests

    url = f"{modelscope()}/api/v1/models/{name}/repo/files?Revision=master&Recursive=true"
    answer = requests.get(url, timeout=TIMEOUT)
    if answer.status_code != 200:
        raise OSError(f"HTTP {answer.status_code}")
    found = (answer.json().get("Data") or {}).get("Files") or []
    return {file["Path"]: file.get("Sha256") or None for file in found}


def hash_file(path: str | Path, progress: Callable[[int], object] = int) -> str:
    """The sha256 of a file in hex; progress(n) is called after every n bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()

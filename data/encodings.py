"""Which encoding a text is in, and what to say where it is another."""

import codecs
import zipfile
from contextlib import suppress

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
# The most frequent characters, simplified and traditional; text in the right encoding is full of them
FREQUENT = frozenset(
    "的一是不了在人有我他這这個个們们中來来上大為为和國国地到以說说時时要就出會会可也"
    "你對对生能而子那得於于著着下自之年道"
)
# of .zip, .epub, .docx; .pdf; .doc; .rar; .7z; .parquet; .gz; .xz; .bz2; .zst
BINARY_MARKS = (b"PK\3\4", b"%PDF", b"\xd0\xcf\x11\xe0", b"Rar!", b"7z\xbc\xaf", b"PAR1")
BINARY_MARKS += (b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"(\xb5/\xfd")


def check_encoding(encoding: str) -> str:
    """The encoding itself. ValueError if it is unknown; 'auto' is allowed."""
    try:
        if encoding == "auto" or codecs.lookup(encoding)._is_text_encoding:
            return encoding
    except LookupError:
        pass
    raise ValueError(f"unknown encoding {encoding!r}; try auto, utf-8, gb18030, big5 or utf-16")


def wrong_encoding(name: str, encoding: str, asked_for: str, error: UnicodeDecodeError, offset: int) -> str:
    """The error message; `offset` is where error.object starts in the file or row. asked_for: perhaps 'auto'."""
    offset += error.start
    found = f"byte 0x{error.object[error.start]:02x} at offset {offset} ({error.reason})"
    if offset == error.start and error.object.startswith(BINARY_MARKS):
        return not_text(name)
    if asked_for == "auto":
        return (
            f"{name} looks like {encoding}, but has {found}; if that is damage, --errors=replace reads the rest, "
            "otherwise name the encoding with --encoding"
        )
    other = "--encoding=auto" if encoding.lower() in ("utf-8", "utf8") else "another --encoding"
    if offset == 0 and error.object[:2] in UTF16_MARKS:
        other = "--encoding=utf-16"
    return (
        f"{name} is not {encoding}: {found}; if it is in another encoding, pass {other}; if it is damaged, "
        "--errors=replace reads the rest"
    )


def detect_encoding(head: bytes, name: str, whole: bool = True) -> str:
    """The encoding of a file that starts with `head` (whole: that is all): UTF-8 if valid, UTF-16 by its byte-order
    mark, UTF-8 with some damage, else whichever of GB18030 and Big5 gives Chinese. ValueError if neither does."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, whole)
        return "utf-8"
    except UnicodeDecodeError as error:
        found = f"byte 0x{head[error.start]:02x} at offset {error.start}"
    if head.startswith(BINARY_MARKS):
        raise ValueError(not_text(name))
    if head[:4] in UTF32_MARKS:  # the first begins like UTF-16's
        return "utf-32"
    if head[:2] in UTF16_MARKS:
        return "utf-16"
    if beyond_ascii(head, "utf-8", whole):
        return "utf-8"
    shares = {}
    for encoding in ("gb18030", "big5hkscs"):  # Big5 with the characters Windows added
        text = beyond_ascii(head, encoding, whole)
        shares[encoding] = sum(map(FREQUENT.__contains__, text)) / max(1, len(text))
    best, other = sorted(shares, key=shares.get, reverse=True)
    if shares[best] < 0.05 or shares[best] < 3 * shares[other]:
        raise ValueError(
            f"{name} is neither UTF-8 ({found}) nor UTF-16, nor clearly Chinese in GB18030 or Big5; name its encoding "
            "with --encoding, or read damaged UTF-8 with --encoding=utf-8 --errors=replace"
        )
    return best


def not_utf8(name: str, error: UnicodeDecodeError) -> str:
    """What to say of a text that must be UTF-8."""
    if error.object.startswith(BINARY_MARKS):
        return not_text(name)
    found = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
    source = "UTF-16" if error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "GBK"
    how = f"in Notepad, Save as with Encoding UTF-8; elsewhere, iconv -f {source} -t UTF-8"
    return f"{name} is not UTF-8 text ({found}): convert it first: {how}"


def not_text(name: str) -> str:
    kinds = ".epub, .docx, .pdf, .parquet, an archive or another binary file"
    return f"{name} is an {kinds}, not plain text: unpack it, or save it as .txt first"


def zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name. Macs write UTF-8 and Chinese Windows GBK without saying so, which Python decodes as CP437."""
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    for encoding in ("utf-8", "gb18030"):
        with suppress(UnicodeError):
            return info.filename.encode("cp437").decode(encoding)
    return info.filename


def beyond_ascii(data: bytes, encoding: str, whole: bool) -> list[str]:
    """The non-ASCII characters; none if more than 1 in 20 of them fails to decode."""
    text = codecs.getincrementaldecoder(encoding)("replace").decode(data, whole)
    text = [character for character in text if character > "\x7f"]
    return text if 20 * text.count("\ufffd") <= len(text) else []

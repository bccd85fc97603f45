"""The text of .epub books (EPUB 2 and 3, www.w3.org/TR/epub-33): chapters in reading order, a paragraph per line.

    for text in chapters_of(file, "book.epub", report=print): ...

Many books come from careless converters, so names and encodings are taken for what they must mean, as reading programs
do. Not read: EPUB 3's table of contents, pictures, the pronunciation above characters (ruby), styles and scripts.
"""

import codecs
import html
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from posixpath import dirname, join, normpath
from typing import BinaryIO
from urllib.parse import unquote

from data.encodings import detect_encoding, zip_name

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
PAGE_SUFFIXES = (".xhtml", ".html", ".htm", ".xml")
LARGEST_PAGE = 1 << 26  # bytes; a whole book has a few million
PASSAGE = 1 << 14  # characters given on at a time
DECLARED = re.compile(rb"""(?:encoding|charset)\s*=\s*["']?([\w.-]+)""", re.IGNORECASE)
# what a page may contain beyond the encoding that it declares; as browsers read it
SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932", "euc_kr": "cp949"}
SUPERSETS |= {"iso8859-1": "cp1252", "ascii": "cp1252"}
CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
DECLARATIONS = re.compile(r"<!--.*?-->|<!DOCTYPE[^>\[]*(?:\[.*?\]\s*)?>|<!\[[^>]*>", re.DOTALL | re.IGNORECASE)
SPACES = re.compile(r"[ \t\r\n\f]+")  # HTML's white space, which Chinese indents (U+3000) are not
ASIAN = r"[\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60]"
ASIAN_BREAK = re.compile(rf"(?<={ASIAN})[ \t]*\r?\n[ \t\r\n]*(?={ASIAN})")  # of a source line: no space in Chinese
NOT_SHOWN = {"title", "script", "style", "template", "svg", "annotation", "rt", "rp"}
RUBY = {"rb", "rt", "rtc", "rp"}  # each ends the one before it
OWN_LINES = {  # elements that begin and end a line
    *"address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure".split(),
    *"footer form h1 h2 h3 h4 h5 h6 header hr legend li main nav ol option p pre section summary table".split(),
    *"tbody thead tr ul".split(),
}


class Elements(HTMLParser):
    """The elements of an XML file in `found`, (name without prefix, attributes) each, all names in lower case. Unlike
    an XML parser it takes a bare & and undeclared prefixes."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag.rpartition(":")[2], {name: value or "" for name, value in attrs}))

    def all(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.found if tag == name]


class PlainText(HTMLParser):
    """The text of a web page in `lines`: one for each paragraph, without empty ones."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self.line: list[str] = []  # its parts
        self.hidden: str | None = None  # the element that we are in and leave out
        self.preformatted = False
        self.feed(DECLARATIONS.sub("", CDATA.sub(lambda found: html.escape(found[1]), page)))
        self.close()
        self.end_line()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        tag = tag.rpartition(":")[2]
        if tag in RUBY and self.hidden in RUBY:
            self.hidden = None
        if self.hidden:
            return
        if tag in NOT_SHOWN:
            self.hidden = tag
        elif tag in OWN_LINES or tag == "br":
            self.end_line()
            self.preformatted = self.preformatted or tag == "pre"
        elif tag in ("td", "th"):
            self.line.append(" ")

    def handle_endtag(self, tag: str) -> None:
        tag = tag.rpartition(":")[2]
        if self.hidden:
            if tag == self.hidden or tag == "ruby":
                self.hidden = None
        elif tag in OWN_LINES:
            self.end_line()
            self.preformatted = self.preformatted and tag != "pre"

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.line.append(data)

    def end_line(self) -> None:
        text, self.line = "".join(self.line), []
        if self.preformatted:
            lines = [line.rstrip() for line in text.split("\n")]
        else:
            lines = [SPACES.sub(" ", ASIAN_BREAK.sub("", text)).strip(" ")]
        self.lines += [line for line in lines if line.strip()]


def chapters_of(
    file: BinaryIO, name: str, errors: str = "strict", report: Callable[[str], None] = print
) -> Iterator[str]:
    """The text of a book in parts that are not empty, with an empty line between chapters. file: seekable; errors: as
    for decode(); report is told of chapters that are missing. ValueError, naming the book: no .epub, without chapters,
    encrypted, damaged."""
    try:
        with zipfile.ZipFile(file) as book:
            gap = ""
            for path, info in reading_order(book, name, report):
                if info.file_size > LARGEST_PAGE:
                    raise ValueError(f"{name}/{path} has {info.file_size:,} bytes, expected at most {LARGEST_PAGE:,}")
                lines = PlainText(page_text(book.read(info), f"{name}/{path}", errors)).lines
                if lines:
                    text, gap = gap + "".join(f"{line}\n" for line in lines), "\n"
                    yield from (text[start : start + PASSAGE] for start in range(0, len(text), PASSAGE))
    except (
        AssertionError,
        RuntimeError,
    ) as error:  # html.parser's, of a declaration; zipfile's, packings and passwords
        raise ValueError(f"cannot read {name}: {error}; the book is damaged, get another copy") from error


def reading_order(book: zipfile.ZipFile, name: str, report: Callable) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """The pages, (path, member) each, as the book's package document lists them."""
    members = {key(zip_name(info)): info for info in book.infolist()}

    def elements(path: str) -> Elements:
        return Elements(page_text(book.read(members[key(path)]), f"{name}/{path}", "replace"))

    if key(CONTAINER) not in members:
        raise ValueError(f"{name} has no {CONTAINER}, so it is not an .epub; if it is a .zip, rename it")
    packages = [root.get("full-path", "") for root in elements(CONTAINER).all("rootfile")]
    package = next((path for path in packages if key(path) in members), None)
    if package is None:
        raise ValueError(f"{name} lacks its package document {packages}; the book is damaged, get another copy")
    parts, paths = elements(package), []
    items = {item.get("id"): item for item in parts.all("item")}
    for item in (items.get(reference.get("idref"), {}) for reference in parts.all("itemref")):
        href, kind = item.get("href", "").partition("#")[0].partition("?")[0], item.get("media-type", "").lower()
        is_page = "html" in kind or not kind.startswith("image/") and href.lower().endswith(PAGE_SUFFIXES)
        if is_page and "nav" not in item.get("properties", "").split():
            paths.append(join(dirname(package.replace("\\", "/")), href.replace("\\", "/")))
    if not paths:
        raise ValueError(f"{name} lists no chapters in {package}; the book is damaged, get another copy")
    encrypted = elements(ENCRYPTION).all("cipherreference") if key(ENCRYPTION) in members else []
    encrypted = {key(reference.get("uri", "")) for reference in encrypted}  # of fonts, mostly
    for path in dict.fromkeys(map(key, paths)):
        info = members.get(path)
        if info is None:
            report(f"{name}: it lists a chapter {path} that it does not have")
            continue
        if path in encrypted or info.flag_bits & 1:
            raise ValueError(
                f"{name} is encrypted ({zip_name(info)}), as shops do: only their reading programs open it"
            )
        yield zip_name(info), info


def key(path: str) -> str:
    """What all spellings of a member's path have in common."""
    path = normpath(unquote(path).replace("\\", "/")).lstrip("/")
    return unicodedata.normalize("NFC", path).lower()


def page_text(data: bytes, name: str, errors: str) -> str:
    encoding = page_encoding(data, name)
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason})"
        message = f"{name} is not {encoding.removesuffix('-sig')}: {found}; --errors=replace reads the rest of it"
        raise ValueError(message) from error


def page_encoding(data: bytes, name: str) -> str:
    """UTF-8 wherever it is valid, whatever the page declares; else what it declares, else what is detected."""
    found = DECLARED.search(data[:1024])
    try:
        data.decode("utf-8")
        return "utf-8-sig"  # the byte-order mark is no text
    except UnicodeDecodeError:
        try:
            declared = codecs.lookup(found[1].decode() if found else "utf-8")
        except LookupError:
            declared = codecs.lookup("utf-8")
    if not declared._is_text_encoding or declared.name.startswith("utf"):
        return detect_encoding(data, name)
    return SUPERSETS.get(declared.name, declared.name)

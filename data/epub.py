"""The text of .epub books (EPUB 2 and 3, www.w3.org/TR/epub-33): chapters in reading order, a paragraph per line.

    for text in chapters_of(file, "book.epub"): ...

What is not read: the table of contents, pictures, the pronunciation above characters (ruby), styles and scripts.
"""

import codecs
import re
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from posixpath import dirname, join, normpath
from typing import BinaryIO
from urllib.parse import unquote
from xml.etree import ElementTree

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
TEXT_TYPES = ("application/xhtml+xml", "text/html", "text/x-oeb1-document")
PAGE_BYTES = 1 << 16  # of a chapter at a time
DECLARED = re.compile(rb"""(?:encoding|charset)\s*=\s*["']?([\w.-]+)""")
SPACES = re.compile(r"[ \t\r\n\f]+")  # HTML's white space, which Chinese indents (U+3000) are not
NOT_SHOWN = {"head", "script", "style", "template", "svg", "rt", "rp"}
OWN_LINES = {  # elements that begin and end a line
    *"address article aside blockquote body center dd div dl dt figcaption figure footer form header hr".split(),
    *"h1 h2 h3 h4 h5 h6 li main nav ol p pre section table tbody thead tr ul".split(),
}


class PlainText(HTMLParser):
    """Collects the text of a web page in `lines`: one for each paragraph, without empty ones."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self.line = ""
        self.hidden: str | None = None  # the element that we are in and leave out
        self.preformatted = False

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "body":
            self.hidden = None  # a head may lack its end
        if self.hidden:
            return
        if tag in NOT_SHOWN:
            self.hidden = tag
        elif tag in OWN_LINES or tag == "br":
            self.end_line()
        elif tag in ("td", "th"):
            self.line += " "
        self.preformatted = self.preformatted or tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if self.hidden:
            if tag == self.hidden or tag == "ruby":  # an rt may lack its end
                self.hidden = None
            return
        if tag in OWN_LINES:
            self.end_line()
        self.preformatted = self.preformatted and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self.hidden:
            return
        if not self.preformatted:
            self.line += SPACES.sub(" ", data)
            return
        *whole, rest = data.replace("\r\n", "\n").split("\n")
        for part in whole:
            self.line += part
            self.end_line()
        self.line += rest

    def end_line(self) -> None:
        line = self.line.rstrip() if self.preformatted else re.sub(" {2,}", " ", self.line).strip(" ")
        self.line = ""
        if line.strip():
            self.lines.append(line)

    def take(self) -> str:
        """The complete lines so far."""
        text = "".join(f"{line}\n" for line in self.lines)
        self.lines = []
        return text


def chapters_of(file: BinaryIO, name: str, errors: str = "strict") -> Iterator[str]:
    """The text of a book, part by part, with an empty line between chapters. file: seekable; errors: as for decode().
    ValueError, naming the book: no .epub, without its chapters, encrypted, or not in the encoding that it declares."""
    try:
        with zipfile.ZipFile(file) as book:
            between = ""
            for path in reading_order(book, name):
                for text in page_text(book, path, f"{name}/{path}", errors):
                    yield between + text
                    between = ""
                between = "\n"
    except (ElementTree.ParseError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"cannot read {name}: {error}; the book is damaged, get another copy") from error


def reading_order(book: zipfile.ZipFile, name: str) -> list[str]:
    """The members with the chapters, as the book's package document lists them."""
    members = set(book.namelist())
    if CONTAINER not in members:
        raise ValueError(f"{name} has no {CONTAINER}, so it is not an .epub; if it is a .zip, rename it")
    rootfile = ElementTree.fromstring(book.read(CONTAINER)).find(".//{*}rootfile")
    if rootfile is None:
        raise ValueError(f"{name}: {CONTAINER} names no package document; the book is damaged, get another copy")
    package = rootfile.get("full-path", "")
    root = ElementTree.fromstring(book.read(package))
    items = {item.get("id"): item for item in root.iterfind(".//{*}manifest/{*}item")}
    paths = []
    for reference in root.iterfind(".//{*}spine/{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or item.get("media-type") not in TEXT_TYPES or "nav" in item.get("properties", "").split():
            continue
        path = normpath(join(dirname(package), unquote(item.get("href", "")).partition("#")[0]))
        if path not in members:
            raise ValueError(f"{name} lacks its chapter {path}; the book is damaged, get another copy")
        paths.append(path)
    refuse_encrypted(book, paths, name)
    return paths


def refuse_encrypted(book: zipfile.ZipFile, paths: list[str], name: str) -> None:
    """ValueError if chapters are encrypted. Fonts may be."""
    encrypted = {path for path in paths if book.getinfo(path).flag_bits & 1}
    if ENCRYPTION in book.namelist():
        found = ElementTree.fromstring(book.read(ENCRYPTION)).iterfind(".//{*}CipherReference")
        encrypted |= {unquote(reference.get("URI", "")) for reference in found} & {*paths}
    if encrypted:
        raise ValueError(f"{name} is encrypted ({min(encrypted)}), as shops do: only their reading programs open it")


def page_text(book: zipfile.ZipFile, path: str, name: str, errors: str) -> Iterator[str]:
    """A chapter's lines, in parts that are not empty."""
    parser, decoder, encoding = PlainText(), None, "utf-8"
    with book.open(path) as stream:
        while data := stream.read(PAGE_BYTES):
            if decoder is None:
                encoding = declared_encoding(data, name)
                decoder = codecs.getincrementaldecoder(encoding)(errors)
            parser.feed(decode(decoder, data, False, name, encoding))
            if text := parser.take():
                yield text
    if decoder:
        parser.feed(decode(decoder, b"", True, name, encoding))
    parser.close()
    parser.end_line()
    if text := parser.take():
        yield text


def declared_encoding(head: bytes, name: str) -> str:
    """As the page's first bytes say; else UTF-8."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    found = None if head.startswith(codecs.BOM_UTF8) else DECLARED.search(head[:1024])
    try:
        encoding = codecs.lookup(found[1].decode() if found else "utf-8").name
    except LookupError:
        raise ValueError(f"{name} says that it is in {found[1].decode()}, which is unknown here") from None
    # its superset, as browsers do; and the byte-order mark is no text
    return {"utf-8": "utf-8-sig", "gb2312": "gb18030", "gbk": "gb18030"}.get(encoding, encoding)


def decode(decoder: codecs.IncrementalDecoder, data: bytes, final: bool, name: str, encoding: str) -> str:
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as error:
        found = f"{error.reason}, byte 0x{error.object[error.start]:02x}"
        raise ValueError(
            f"{name} is not {encoding.removesuffix('-sig')}: {found}; --errors=replace reads the rest of it"
        ) from error

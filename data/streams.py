"""Streams of bytes: a part of another, one that starts with bytes read before, and decompressed ones."""

import bz2
import gzip
import io
import lzma
import math
from typing import Any, BinaryIO

BUFFERED = 1 << 20  # bytes
COMPRESSED_AT_ONCE = 1 << 14  # bytes of a .zst, which may be thousands of times as many of text


class Window(io.RawIOBase):
    """The next `left` bytes of a stream (inf: all), after the bytes `head` put back in front."""

    def __init__(self, stream: BinaryIO, head: bytes, left: float = math.inf):
        self.stream, self.head, self.left = stream, head, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.head[: len(buffer)]
        if data:
            self.head = self.head[len(buffer) :]
        else:
            data = self.stream.read(min(len(buffer), self.left))
            self.left -= len(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()


def peek(stream: BinaryIO, size: int) -> tuple[bytes, BinaryIO]:
    """(the first `size` bytes of a stream, or all it has; a stream that starts with them again)."""
    head = b""
    while len(head) < size and (data := stream.read(size - len(head))):
        head += data
    return head, io.BufferedReader(Window(stream, head), BUFFERED)


class Zstd(io.RawIOBase):
    """The content of a .zst. EOFError if its end is missing, which zstandard's own reader takes for the end; OSError if
    it is damaged."""

    def __init__(self, stream: BinaryIO, library: Any):
        self.stream, self.library, self.frame = stream, library, library.ZstdDecompressor().decompressobj()
        self.rest = self.text = b""  # of the file, still compressed; of the content, not yet read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.text and (data := self.rest or self.stream.read(COMPRESSED_AT_ONCE)):
            if self.frame.eof:
                self.frame = self.library.ZstdDecompressor().decompressobj()
            try:
                self.text, self.rest = self.frame.decompress(data), self.frame.unused_data
            except self.library.ZstdError as error:
                raise OSError(str(error)) from None
        if not self.text and not self.frame.eof:
            raise EOFError("its end is missing")
        n = min(len(buffer), len(self.text))
        buffer[:n], self.text = self.text[:n], self.text[n:]
        return n


def decompressed(stream: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise ValueError("reading .zst files needs zstandard: pip install zstandard") from None
        return io.BufferedReader(Zstd(stream, zstandard), BUFFERED)
    opener = gzip.open if suffix in (".gz", ".tgz") else bz2.open if suffix in (".bz2", ".tbz2") else lzma.open
    return opener(stream)

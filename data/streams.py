"""Streams of bytes: a part of another, one that starts with bytes read before, and decompressed ones."""

import bz2
import gzip
import io
import lzma
import math
from typing import Any, BinaryIO

BUFFERED = 1 << 20  # bytes


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


def decompressed(stream: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise ValueError("reading .zst files needs zstandard: pip install zstandard") from None
        return zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
    opener = gzip.open if suffix in (".gz", ".tgz") else bz2.open if suffix in (".bz2", ".tbz2") else lzma.open
    return opener(stream)

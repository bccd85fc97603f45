"""Makes the pictures of the README in docs/pictures/, from two trained models.

    python docs/pictures.py --run=out-hongloumeng-char --code=out-quickstart

loss.png is the loss of --run, as plot.py draws it. editor.svg is complete.py with the model of --code, in a terminal of
its own: TYPED is typed into it, and what it then shows is drawn, the suggestion in grey. Needs pyte, and POSIX.
"""

import argparse
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

import pyte

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configurator import exit_on_error

TYPED = ("import os", "\r", "\r", "def check(x):", "\r", '"""Refuses numbers."""', "\r", "if not isinstance(x, ")
COLUMNS, LINES = 80, 8
CELL = 8.4, 18  # pixels of a character
COLOURS = {  # those that a terminal names, and those of Pygments' style that are too dark for this picture
    "default": "#d4d4d4", "black": "#808080", "red": "#f48771", "green": "#89d185", "brown": "#dcdcaa",
    "blue": "#569cd6", "magenta": "#c586c0", "cyan": "#4ec9b0", "white": "#ffffff", "brightblack": "#7a7a7a",
    "0000ff": "#569cd6", "008700": "#89d185", "af00ff": "#c586c0", "af0000": "#ce9178",
}  # fmt: skip


def film(command: list[str], typed: tuple[str, ...]) -> pyte.Screen:
    """The screen of a program after keys, each sent when the screen has rested for a second."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.execv(command[0], command)
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        watch(terminal, stream, first=60)
        for keys in typed:
            os.write(terminal, keys.encode())
            watch(terminal, stream, first=5)
        return screen
    except OSError:  # the program has ended
        words = " ".join(line.strip() for line in screen.display)
        raise ValueError(f"{command[1]} ended early: {words.strip()}") from None
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def watch(terminal: int, stream: pyte.ByteStream, first: float) -> None:
    """Feeds what a terminal shows to `stream` until it rests for a second; waits at most `first` seconds for it to
    begin."""
    end = time.monotonic() + first
    while select.select([terminal], [], [], max(0, end - time.monotonic()))[0]:
        data = os.read(terminal, 65536)
        if b"\x1b[6n" in data:  # where is the cursor? the top left, as prompt_toolkit wants to hear
            os.write(terminal, b"\x1b[1;1R")
        stream.feed(data)
        end = time.monotonic() + 1


def as_svg(screen: pyte.Screen) -> str:
    """The screen as a picture: a <text> for each run of characters that look alike."""
    width, height = CELL
    parts = []
    for y in range(screen.lines):
        cells = [(x, screen.buffer[y][x]) for x in range(screen.columns)]
        for (fg, bg, bold, reverse), run in groupby(cells, key=lambda c: (c[1].fg, c[1].bg, c[1].bold, c[1].reverse)):
            run = list(run)
            text, left, length = "".join(cell.data for _, cell in run), run[0][0] * width, len(run) * width
            front, back = colour(fg, "#d4d4d4"), colour(bg, "")
            if reverse:
                front, back = back or "#1e1e1e", front
            if back:
                place = f'x="{left:.1f}" y="{y * height}" width="{length:.1f}" height="{height}"'
                parts.append(f'<rect {place} fill="{back}"/>')
            if word := text.strip():  # blanks at the ends are left to its place: not all renderers keep them
                left += (len(text) - len(text.lstrip())) * width
                weight = ' font-weight="bold"' if bold else ""
                place = f'x="{left:.1f}" y="{y * height + 13}" textLength="{len(word) * width:.1f}"'
                shown = escape(word).replace(" ", "&#160;")  # several blanks are several
                parts.append(f'<text {place} fill="{front}"{weight}>{shown}</text>')
    x, y = screen.cursor.x * width, screen.cursor.y * height
    parts.append(f'<rect x="{x:.1f}" y="{y}" width="1.5" height="{height}" fill="#ffffff"/>')
    w, h = screen.columns * width + 24, screen.lines * height + 24
    style = 'font-family="Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="14"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:.0f} {h}" width="{w:.0f}" height="{h}" {style}>'
    frame = f'<rect width="{w:.0f}" height="{h}" rx="8" fill="#1e1e1e"/>'
    return "\n".join([head, frame, '<g transform="translate(12 12)">', *parts, "</g>", "</svg>", ""])


def colour(name: str, default: str) -> str:
    if name == "default":
        return default
    return COLOURS.get(name) or (f"#{name}" if len(name) == 6 else COLOURS["default"])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="the out_dir of the loss curve")
    parser.add_argument("--code", required=True, help="the out_dir of a model of Python")
    args = parser.parse_args(argv)
    folder = ROOT / "docs/pictures"
    plot = [sys.executable, str(ROOT / "plot.py"), args.run, f"--output={folder / 'loss.png'}"]
    subprocess.run(plot, check=True)
    with tempfile.TemporaryDirectory() as made:
        options = [f"--out_dir={args.code}", f"--file={Path(made, 'example.py')}"]
        screen = film([sys.executable, str(ROOT / "complete.py"), *options], TYPED)
    print(*screen.display, sep="\n")
    (folder / "editor.svg").write_text(as_svg(screen), encoding="utf-8")


if __name__ == "__main__":
    exit_on_error(main)

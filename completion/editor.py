"""The editor: a pane of text, and the model's suggestion in grey after the cursor."""

import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from completion.completer import Cancelled, Completer, Suggestion, indentation_after, without_overlap
from completion.textfile import handling, line_end, print_text, read_source, rescue, save

LEXED = 1000  # lines of a text that is highlighted as a whole
BLOCK = 200  # lines of a longer one that are highlighted together


class Worker(threading.Thread):
    """Asks the completer in a thread of its own, for the newest text only; typing never waits for it."""

    def __init__(self, completer: Completer, report: Callable[[str, Suggestion | Exception], None], **options):
        """report(before, suggestion or error) is called in this thread."""
        super().__init__(daemon=True)
        self.completer, self.report, self.options = completer, report, options
        self.changed, self.wanted, self.number, self.stopped = threading.Condition(), None, 0, False

    def ask(self, before: str | None) -> None:
        """Suggest for this text instead of any older one; None: for no text."""
        with self.changed:
            self.wanted = before
            self.number += 1
            self.changed.notify()

    def is_old(self, number: int) -> bool:
        return number != self.number

    def stop(self) -> None:
        self.stopped = True
        self.ask(None)
        self.join()

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.wanted is not None or self.stopped)
                if self.stopped:
                    return
                before, number, self.wanted = self.wanted, self.number, None
            try:
                for found in self.completer.suggest(before, cancelled=partial(self.is_old, number), **self.options):
                    self.report(before, found)
            except Cancelled:
                pass
            except Exception as error:  # such as a character that the tokenizer lacks; the editor goes on without
                self.report(before, error)


class Editor:
    """A pane of text with the suggestion as ghost text behind the cursor. run() -> exit status; then `text` has the
    text. Suggestions come after an insertion, not after a deletion or a movement. All methods run in the thread of the
    event loop, except for found."""

    HELP = "Tab accept  Ctrl-Right word  Backspace dismiss  Esc leave"

    def __init__(self, completer: Completer, text: str, lexer: type, input=None, output=None, **options):
        from prompt_toolkit.application import Application
        from prompt_toolkit.buffer import Buffer
        from prompt_toolkit.document import Document
        from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, NumberedMargin, Window
        from prompt_toolkit.layout.processors import TabsProcessor
        from prompt_toolkit.output import create_output
        from prompt_toolkit.styles import Style

        self.ghost, self.ghost_at = "", None  # the suggestion, and the text before the cursor that it is for
        self.indent, self.state = None, ""  # the model's indentation for the next line, and the status line's word
        self.status = 0  # 128 + the number of a signal that came
        self.worker = Worker(completer, self.found, **options)
        self.buffer = Buffer(document=Document(text), multiline=True)
        self.buffer.on_text_changed += lambda _: self.follow()
        self.buffer.on_cursor_position_changed += lambda _: self.follow()
        self.buffer.on_text_insert += lambda _: self.ask()
        pane = BufferControl(
            self.buffer,
            lexer=highlighter(lexer),
            input_processors=[ghost_processor(self), TabsProcessor(char1=" ", char2=" ")],
        )
        status = Window(FormattedTextControl(lambda: f" {self.state:16}{self.HELP}"), height=1, style="reverse")
        self.app = Application(
            layout=Layout(HSplit([Window(pane, left_margins=[NumberedMargin()], wrap_lines=True), status])),
            style=Style([("ghost", "#808080")]), key_bindings=key_bindings(self), full_screen=True,
            input=input, output=output or create_output(always_prefer_tty=True),
        )  # fmt: skip
        self.app.timeoutlen, self.app.ttimeoutlen = 0.3, 0.05  # seconds until Esc is a key and not the start of one

    @property
    def before(self) -> str:
        return self.buffer.document.text_before_cursor

    @property
    def text(self) -> str:
        return self.buffer.text

    def run(self) -> int:
        self.worker.start()
        try:
            return self.app.run(pre_run=self.begin, handle_sigint=False)
        except (EOFError, OSError):  # the terminal was closed: nothing can be read or shown any more
            return self.status or 128 + 1  # 1 = SIGHUP
        finally:
            self.worker.stop()

    def begin(self) -> None:
        if self.status:
            self.leave(self.status)
        self.ask()

    def interrupt(self, number: int, frame) -> None:
        """A signal's handler. One that comes when the editor was left is too late: the text is being saved."""
        self.status = 128 + number
        if self.app.loop is not None:
            self.app.loop.call_soon_threadsafe(self.leave, self.status)

    def leave(self, status: int) -> None:
        if not self.app.is_done:
            self.app.exit(result=status)

    def ask(self) -> None:
        self.ghost_at, self.indent, self.state = self.before, None, "..."
        self.worker.ask(self.before)

    def follow(self) -> None:
        """After any change: what was typed of the ghost is no ghost any more; if it was something else, none is."""
        before, at = self.before, self.ghost_at
        if at is None or before == at:
            return
        typed = before[len(at) :] if before.startswith(at) else None
        if typed and self.ghost.startswith(typed):
            self.ghost, self.ghost_at = self.ghost[len(typed) :], before
        else:
            self.dismiss()

    def dismiss(self) -> None:
        self.ghost, self.ghost_at, self.indent, self.state = "", None, None, ""
        self.worker.ask(None)

    def found(self, before: str, found: Suggestion | Exception) -> None:
        loop = self.app.loop
        if loop is not None:
            with suppress(RuntimeError):  # the editor was left meanwhile
                loop.call_soon_threadsafe(self.show, before, found)

    def show(self, before: str, found: Suggestion | Exception) -> None:
        if before != self.ghost_at:
            return
        if isinstance(found, Exception):
            self.ghost, self.state = "", "no suggestion: " + " ".join(str(found).split()) + "  "
        else:
            rest = self.buffer.document.current_line_after_cursor
            text = without_overlap(found.text, rest)
            if not text.strip() or not re.fullmatch(r"[\s)\]}'\",;:]*", rest):
                text = ""
            if found.done or not self.ghost.startswith(text):  # what is left of the last ghost needs no new start
                self.ghost = text
            self.indent = found.indent
            if found.done:
                end = None if found.indent is None else f"end, indent {len(found.indent)}"
                self.state = f"{found.confidence:.0%}" if text else end or "-"
        self.app.invalidate()

    def enter(self) -> None:
        line, indent = self.buffer.document.current_line_before_cursor, self.indent
        if indent is None:
            indent = indentation_after(line)
        if not line.strip():  # leave no trailing white space
            self.buffer.delete_before_cursor(len(line))
        self.buffer.insert_text("\n" + indent)

    def tab(self) -> None:
        line = self.buffer.document.current_line_before_cursor
        self.buffer.insert_text("\t" if line.startswith("\t") else " " * (4 - len(line) % 4))


def ghost_processor(editor: Editor):
    from prompt_toolkit.layout.processors import Processor, Transformation
    from prompt_toolkit.layout.utils import explode_text_fragments

    class Ghost(Processor):
        """Puts the ghost text behind the cursor."""

        def apply_transformation(self, line):
            ghost = editor.ghost
            if not ghost or line.lineno != line.document.cursor_position_row:
                return Transformation(line.fragments)
            column = line.document.cursor_position_col
            shown = explode_text_fragments(line.fragments)
            shown = shown[:column] + [("class:ghost", ghost)] + shown[column:]
            return Transformation(
                shown,
                source_to_display=lambda i: i if i <= column else i + len(ghost),
                display_to_source=lambda i: min(i, column) if i <= column + len(ghost) else i - len(ghost),
            )

    return Ghost()


def highlighter(lexer: type):
    """prompt_toolkit's lexer from Pygments', which reads 60,000 lines in 2 seconds: too long for every key. Of a long
    text only blocks that are in sight are read, each from the class or def before it on."""
    from prompt_toolkit.document import Document
    from prompt_toolkit.lexers import Lexer, PygmentsLexer, RegexSync

    plain, sync = PygmentsLexer(lexer), RegexSync.from_pygments_lexer_cls(lexer)

    class Highlighter(Lexer):
        def lex_document(self, document):
            if document.line_count <= LEXED:
                return plain.lex_document(document)
            blocks = {}

            def line(number: int):
                begin = number - number % BLOCK
                if begin not in blocks:
                    first, _ = sync.get_sync_start_position(document, begin)
                    part = Document("\n".join(document.lines[first : begin + BLOCK]))
                    blocks[begin] = first, plain.lex_document(part)
                first, line_of_part = blocks[begin]
                return line_of_part(number - first)

            return line

    return Highlighter()


def key_bindings(editor: Editor):
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    has_ghost = Condition(lambda: bool(editor.ghost))
    first_word = re.compile(r"\s*(?:\w+|[^\w\s]+)?")  # or the blanks that are left

    def bind(names: str, action: Callable[[], None], **options) -> None:
        keys.add(*names.split(), **options)(lambda event: action())

    bind("tab", lambda: editor.buffer.insert_text(editor.ghost), filter=has_ghost)
    for names in ("c-right", "escape f"):
        bind(names, lambda: editor.buffer.insert_text(first_word.match(editor.ghost)[0]), filter=has_ghost)
    bind("backspace", editor.dismiss, filter=has_ghost)
    bind("tab", editor.tab, filter=~has_ghost)
    bind("enter", editor.enter)
    bind("c-z", editor.buffer.undo, save_before=lambda event: False)
    for names in ("escape", "c-d"):
        bind(names, lambda: editor.leave(0))
    bind("c-c", lambda: editor.leave(130))
    return keys


def edit(completer: Completer, config, dataset: str, **terminal) -> int:
    """Opens the editor and, in the end, prints or writes its text -> exit status. terminal: prompt_toolkit's input
    and output, if not the usual."""
    path = Path(config.file).resolve() if config.file is not None else None
    found = read_source(path) if path else None
    source = (found or b"").decode("utf-8")
    old, (end, note) = source.replace("\r\n", "\n"), line_end(source)
    editor = Editor(
        completer,
        old,
        find_lexer(config, dataset),
        max_bytes=config.max_bytes,
        min_confidence=config.min_confidence,
        **terminal,
    )
    terminals = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]
    status = 1
    with handling(editor.interrupt):
        try:
            status = editor.run()
        finally:  # whatever went wrong, first the text
            gone = [stream for stream in terminals if not stream.isatty()]  # the window was closed
            for stream in gone:  # or what is written there fails, at exit if not before
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            content = editor.text.replace("\n", end).encode("utf-8", "surrogateescape")  # bytes as they were typed
            if path is None and sys.stdout in gone and content:
                rescue(Path.cwd() / "text", content)
            elif path is None:
                print_text(content)
            elif editor.text != old:
                save(path, found, content, status)
                if note and status == 0:
                    print(f"note: {path.name} had {note}", file=sys.stderr)
    return status


def find_lexer(config, dataset: str) -> type:
    from pygments.lexers import find_lexer_class_by_name, find_lexer_class_for_filename
    from pygments.util import ClassNotFound

    if config.language == "auto":
        by_name = find_lexer_class_for_filename(config.file) if config.file else None
        return by_name or find_lexer_class_by_name("cpp" if "cpp" in dataset else "python")
    try:
        return find_lexer_class_by_name(config.language)
    except ClassNotFound:
        raise ValueError(f"language={config.language} is unknown to Pygments: use auto, python, cpp or text") from None

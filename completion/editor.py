"""The editor: a pane of text, with the model's suggestion in grey after the cursor."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, has_selection
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, NumberedMargin, Window
from prompt_toolkit.layout.processors import Processor, TabsProcessor, Transformation
from prompt_toolkit.layout.utils import explode_text_fragments
from prompt_toolkit.lexers import Lexer, PygmentsLexer, RegexSync
from prompt_toolkit.output import create_output
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth
from pygments.lexers import find_lexer_class_by_name, find_lexer_class_for_filename
from pygments.util import ClassNotFound

from completion.completer import Cancelled, Completer, Suggestion, without_overlap
from completion.textfile import TextFile, signals_to
from system.device import make_current

MAX_LEXED_WHOLE = 1000  # lines; a longer text is highlighted in blocks
LEXED_BLOCK = 200  # lines
STEP_ENDS = " ,.;:!?，。；：！？、"  # after one of these, typing begins a new step of undo
MAX_UNDO = 1 << 26  # characters of all texts that undo keeps
CLOSING = re.compile(r"[\s)\]}'\",;:.!?’”）】》」』，。；：！？、…]*")  # what a suggestion may be shown before


class Worker:
    """Runs the completer in its own thread, for the newest text only, so that typing never waits for it. Calls
    report(before, suggestion or exception) in that thread. Options as in Completer.suggest."""

    def __init__(self, completer: Completer, report: Callable[[str, Suggestion | Exception], None], **options):
        self.completer, self.report, self.options = completer, report, options
        self.thread = ThreadPoolExecutor(1, initializer=make_current, initargs=(completer.device,))
        self.newest = 0

    def ask(self, before: str | None, after: str = "") -> None:
        """Abandons any earlier request, and requests suggestions between these texts unless `before` is None."""
        self.newest += 1
        if before is not None:
            self.thread.submit(self.answer, before, after, self.newest)

    def answer(self, before: str, after: str, number: int) -> None:
        if number != self.newest:
            return
        options = self.options | {"after": after, "cancelled": lambda: number != self.newest}
        try:
            for found in self.completer.suggest(before, **options):
                self.report(before, found)
        except Cancelled:
            pass
        except Exception as error:  # e.g. a character the tokenizer lacks: the editor stays usable
            self.report(before, error)

    def stop(self) -> None:
        self.ask(None)
        self.thread.shutdown()


class Editor:
    """A pane of text with the suggestion as grey ghost text after the cursor. Insertions request new suggestions,
    deletions and movements do not. After run(), which returns the exit status, `text` is the edited text. lexer: a
    Pygments class. Options as in Completer.suggest. Other threads may only call `found`."""

    HELP = "Tab accept  Ctrl-Z undo  Esc leave, save  Ctrl-C leave unsaved"

    def __init__(self, completer: Completer, text: str, lexer: type, input=None, output=None, **options):
        self.ghost, self.ghost_at = "", None  # the suggestion, and the texts around the cursor it was made for
        self.indent, self.state = None, ""  # the model's indentation for the next line; the status line's first word
        self.status = 0  # 128 + the number of a signal received
        self.worker, self.infill = Worker(completer, self.found, **options), completer.infill
        self.buffer = Buffer(document=Document(text), multiline=True)
        self.buffer.on_text_changed += lambda _: self.follow()
        self.buffer.on_text_changed += lambda _: self.forget()
        self.buffer.on_cursor_position_changed += lambda _: self.follow()
        self.buffer.on_text_insert += lambda _: self.ask()
        processors = [Ghost(self), TabsProcessor(char1=" ", char2=" ")]
        pane = BufferControl(self.buffer, lexer=Highlighter(lexer), input_processors=processors)
        status = Window(FormattedTextControl(lambda: f" {self.state:16}{self.HELP}"), height=1, style="reverse")
        layout = Layout(HSplit([Window(pane, left_margins=[NumberedMargin()], wrap_lines=True), status]))
        keys, style = key_bindings(self), Style([("ghost", "#808080")])
        output = output or create_output(always_prefer_tty=True)
        self.app = Application(layout, style, key_bindings=keys, full_screen=True, input=input, output=output)
        self.app.timeoutlen, self.app.ttimeoutlen = 0.3, 0.1  # seconds until Esc counts as a key of its own

    @property
    def before(self) -> str:
        return self.buffer.document.text_before_cursor

    @property
    def around(self) -> tuple[str, str]:
        """The texts before and after the cursor."""
        return self.before, self.buffer.document.text_after_cursor

    @property
    def text(self) -> str:
        return self.buffer.text

    def run(self) -> int:
        try:
            return self.app.run(pre_run=self.begin, handle_sigint=False)
        except (EOFError, OSError):  # the terminal was closed
            return self.status or 128 + 1  # 1 = SIGHUP
        finally:
            self.worker.stop()

    def begin(self) -> None:
        if self.status:
            self.leave(self.status)
        self.ask()

    def interrupt(self, number: int, frame) -> None:
        """Handles a signal. Has no effect after leaving, while the text is being saved."""
        self.status = 128 + number
        if self.app.loop is not None:
            self.app.loop.call_soon_threadsafe(self.leave, self.status)

    def leave(self, status: int) -> None:
        if not self.app.is_done:
            self.app.exit(result=status)

    def forget(self) -> None:
        """Drops the oldest steps of undo: each is a whole text."""
        del self.buffer._undo_stack[: -max(1, MAX_UNDO // (1 + len(self.text)))]

    def ask(self) -> None:
        self.ghost_at, self.indent, self.state = self.around, None, "..."
        self.worker.ask(*self.around)

    def follow(self) -> None:
        """After a change: typing the ghost text shortens it, anything else removes it."""
        now, at = self.around, self.ghost_at
        if at in (None, now):
            return
        typed = now[0][len(at[0]) :] if now[0].startswith(at[0]) and now[1] == at[1] else ""
        if typed and self.ghost.startswith(typed):
            self.ghost, self.ghost_at = self.ghost[len(typed) :], now
        else:
            self.dismiss()

    def dismiss(self) -> None:
        self.ghost, self.ghost_at, self.indent, self.state = "", None, None, ""
        self.worker.ask(None)

    def found(self, before: str, found: Suggestion | Exception) -> None:
        loop = self.app.loop
        if loop is not None:
            with suppress(RuntimeError):  # the editor has closed meanwhile
                loop.call_soon_threadsafe(self.show, before, found)

    def show(self, before: str, found: Suggestion | Exception) -> None:
        if self.ghost_at is None or before != self.ghost_at[0]:
            return
        if isinstance(found, Exception):
            self.ghost, self.state = "", "no suggestion: " + " ".join(str(found).split()) + "  "
        else:
            document = self.buffer.document
            text = without_overlap(found.text, document.text_after_cursor)
            fits = self.infill or CLOSING.fullmatch(document.current_line_after_cursor)
            if not text.strip() or not fits:
                text = ""
            if found.done or not self.ghost.startswith(text):  # a partial suggestion never shortens the ghost
                self.ghost = text
            self.indent = found.indent
            if found.done:
                end = None if found.indent is None else f"end, indent {len(found.indent)}"
                self.state = f"{found.confidence:.0%}" if text else end or "-"
        self.app.invalidate()

    def enter(self) -> None:
        line, indent = self.buffer.document.current_line_before_cursor, self.indent
        if indent is None:  # the line's own, one level deeper after an opening bracket, a brace or a colon
            indent = line[: len(line) - len(line.lstrip())]
            if line.rstrip().endswith((":", "{", "(", "[")):
                indent += "\t" if "\t" in indent else "    "
        if not line.strip():  # no trailing white space
            self.buffer.delete_before_cursor(len(line))
        self.buffer.insert_text("\n" + indent)

    def tab(self) -> None:
        line = self.buffer.document.current_line_before_cursor
        self.buffer.insert_text("\t" if line.startswith("\t") else " " * (4 - get_cwidth(line) % 4))


class Ghost(Processor):
    """Shows the editor's ghost text after the cursor."""

    def __init__(self, editor: Editor):
        self.editor = editor

    def apply_transformation(self, line):
        ghost = self.editor.ghost
        if not ghost or line.lineno != line.document.cursor_position_row:
            return Transformation(line.fragments)
        column = line.document.cursor_position_col
        shown = explode_text_fragments(line.fragments)
        return Transformation(
            shown[:column] + [("class:ghost", ghost)] + shown[column:],
            source_to_display=lambda i: i if i <= column else i + len(ghost),
            display_to_source=lambda i: min(i, column) if i <= column + len(ghost) else i - len(ghost),
        )


class Highlighter(Lexer):
    """A Pygments lexer for prompt_toolkit. Pygments takes 2 seconds for 60,000 lines, too long for every key, so in a
    long text only visible blocks are lexed, each from the class or def before it."""

    def __init__(self, lexer: type):
        self.lexer, self.sync = PygmentsLexer(lexer), RegexSync.from_pygments_lexer_cls(lexer)

    def lex_document(self, document):
        if document.line_count <= MAX_LEXED_WHOLE:
            return self.lexer.lex_document(document)

        @cache
        def lex_block(begin: int):
            first, _ = self.sync.get_sync_start_position(document, begin)
            line = self.lexer.lex_document(Document("\n".join(document.lines[first : begin + LEXED_BLOCK])))
            return lambda number: line(number - first)

        return lambda number: lex_block(number - number % LEXED_BLOCK)(number)


def key_bindings(editor: Editor):
    keys = KeyBindings()
    has_ghost = Condition(lambda: bool(editor.ghost))
    first_word = re.compile(r"\s*(?:\w+|[^\w\s]+)?")  # or the remaining blanks

    def bind(names: str, action: Callable[[], None], **options) -> None:
        keys.add(*names.split(), **options)(lambda event: action())

    def begins_step(event) -> bool:
        return not event.is_repeat or editor.before[-1:] in STEP_ENDS

    @keys.add("<any>", filter=~has_selection, save_before=begins_step)  # the default has a step for each character
    def insert(event) -> None:
        editor.buffer.insert_text(event.data * event.arg)

    bind("tab", lambda: editor.buffer.insert_text(editor.ghost), filter=has_ghost)
    for names in ("c-right", "escape f"):
        bind(names, lambda: editor.buffer.insert_text(first_word.match(editor.ghost)[0]), filter=has_ghost)
    bind("backspace", editor.dismiss, filter=has_ghost)
    bind("tab", editor.tab, filter=~has_ghost)
    bind("enter", editor.enter)
    bind("c-z", editor.buffer.undo, save_before=lambda event: False)
    bind("c-y", editor.buffer.redo, save_before=lambda event: False)
    for names in ("c-o", "escape #", "escape <any>"):  # the first two would empty the text, as that of a command line
        bind(names, lambda: None)  # without the third, Alt with a key that has no meaning would leave
    for names in ("escape", "escape escape", "c-d"):
        bind(names, lambda: editor.leave(0))
    bind("c-c", lambda: editor.leave(130))
    return keys


def edit(completer: Completer, path: Path | None, lexer: type, **options) -> int:
    """Edits the file or, without a path, a new text that is printed at the end; returns the exit status. Options as in
    Editor. Raises ValueError as TextFile does."""
    source = TextFile(path)
    editor = Editor(completer, source.text, lexer, **options)
    status = 1
    with signals_to(editor.interrupt):
        try:
            status = editor.run()
        finally:  # whatever went wrong, the text is saved first
            source.save_text(editor.text, status)
    return status


def find_lexer(language: str, file: str | None, dataset: str) -> type:
    """The Pygments lexer of that name; 'auto': by the file's name, else the dataset's."""
    if language == "auto":
        by_name = find_lexer_class_for_filename(file) if file else None
        name = Path(dataset).name
        is_python = name.startswith(("py", "quickstart")) or "python" in name
        return by_name or find_lexer_class_by_name("cpp" if "cpp" in name else "python" if is_python else "text")
    try:
        return find_lexer_class_by_name(language)
    except ClassNotFound:
        raise ValueError(f"language={language} is unknown to Pygments: use auto, python, cpp or text") from None

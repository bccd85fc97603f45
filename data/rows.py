"""Rows of JSON, CSV and TSV from a text that arrives in pieces, holding one row at a time; and the text of a row.

for number, row in csv_rows(texts, fields, name, refuse):     # a dict, by the names in the header
for number, row in json_rows(texts, fields, name):            # the elements of an array, or one object after another
    text = text_of(row, fields, name)
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

FIELDS = ("text", "content", "story")  # the first of these that has text is read, unless --field names one
DELIMITERS = ",;\t|"  # of a .csv; the first that makes a field of the header
LONGEST_ROW = 1 << 28  # characters: what is longer has a quote or a bracket that is never closed
SHOWN_NAME = 40  # characters of a column's name in a message: without a header it may be a whole text
BLANKS = re.compile("[ \t\r\n\ufeff]*")
DECODER = json.JSONDecoder()


def text_of(row: Any, fields: Sequence[str], name: str) -> str | None:
    """The text in the first of these fields that has any; None if all are empty or null.

    ValueError: the row has none of the fields, or only values that are not text.
    """
    found = [key for key in fields if key in row] if isinstance(row, dict) else []
    if not found:
        names = ", ".join(str(key)[:SHOWN_NAME] for key in row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{name} has no field {' or '.join(fields)}, only: {names}; choose one with --field")
    text = first_text([row[key] for key in found])
    wrong = next((key for key in found if not isinstance(row[key], str | None)), None)
    if text is None and wrong is not None:
        raise ValueError(f"{name}: field {wrong} has type {type(row[wrong]).__name__}, expected text")
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} has half a surrogate pair, which is not a character") from None
    return text


def first_text(values: Iterable[Any]) -> str | None:
    """The first string with more than white space, or else the first that is not empty."""
    texts = [value for value in values if isinstance(value, str) and value]
    return next((text for text in texts if not text.isspace()), texts[0] if texts else None)


def lines_of(texts: Iterable[str]) -> Iterator[str]:
    """The lines of a text, each with its newline."""
    line = []
    for text in texts:
        *whole, rest = text.split("\n")
        for end in whole:
            yield "".join([*line, end, "\n"])
            line = []
        line.append(rest)
    if any(line):
        yield "".join(line)


# ---- CSV ---------------------------------------------------------------------------------------------------


def csv_rows(
    texts: Iterable[str], fields: Sequence[str], name: str, refuse: Callable[[str], None], tabs: bool = False
) -> Iterator[tuple[int, dict]]:
    """(the line a row starts in, its values by the names in the first row), quoted newlines included.

    tabs: they separate the columns, as in a .tsv; else whichever of DELIMITERS gives the header one of `fields`.
    refuse(message) is called for a row that cannot be read. ValueError: the header has none of the fields.
    """
    csv.field_size_limit(LONGEST_ROW)
    lines = lines_of(texts)
    first = next(lines, "").removeprefix("\ufeff")
    found = [mark for mark in DELIMITERS if not set(fields).isdisjoint(header_of(first, mark))]
    delimiter = "\t" if tabs else (found or DELIMITERS)[0]
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    header, line = None, 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            rule = "a field with quotes, newlines or separators in it must be quoted, and its own quotes doubled"
            refuse(f"{name}:{line} is not a readable row ({error}); {rule}")
            line = reader.line_num + 1
            continue
        if row is None:
            return
        if header is None:
            header = names_in(row)
            if not set(fields) & set(header):
                columns = ", ".join(column[:SHOWN_NAME] for column in header)
                raise ValueError(
                    f"{name} names no column {' or '.join(fields)} in its first row, only: {columns}; choose one with "
                    "--field, or add a row with the names of the columns"
                )
        elif len(row) == len(header):
            yield line, dict(zip(header, row, strict=True))
        elif row:
            refuse(
                f"{name}:{line} has {len(row)} fields, but the first row names {len(header)}: is a field not quoted?"
            )
        line = reader.line_num + 1


def header_of(line: str, delimiter: str) -> list[str]:
    """The names in a line; none if it cannot be read, which the reader of the rows will say."""
    try:
        return names_in(next(csv.reader([line], delimiter=delimiter), []))
    except csv.Error:
        return []


def names_in(row: list[str]) -> list[str]:
    return [name.strip() for name in row]


# ---- JSON --------------------------------------------------------------------------------------------------


def is_json_lines(head: str) -> bool:
    """Whether a text that starts with `head` has an object in its first line, and another after it."""
    first, _, rest = head.lstrip("\ufeff \t\r\n").partition("\n")
    if not (first.startswith("{") and rest.lstrip().startswith("{")):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def json_rows(texts: Iterable[str], fields: Sequence[str], name: str, nested: bool = True) -> Iterator[tuple[int, Any]]:
    """(number from 1, row): the elements of an array, or objects that follow each other.

    nested: of a single object with none of `fields`, the rows are the elements of the one list of objects in it; else
    it has none. ValueError: no JSON, or several such lists.
    """
    source = JsonText(texts, name)
    start = source.next_character()
    if start == "[":
        yield from enumerate(source.elements(), 1)
        return
    if start not in ("{", ""):
        raise ValueError(f"{name} begins with {source.text[source.at :][:20]!r}, expected the {{ or [ of JSON")
    for number in itertools.count(1):
        if not source.next_character():
            return
        row = source.value()
        if number == 1 and not set(fields) & set(row) and not source.next_character():
            yield from enumerate(list_in(row, name) if nested else (), 1)
        else:
            yield number, row


def list_in(whole: dict, name: str) -> list:
    """The one list of objects among an object's values; the object itself, as a row, without any."""
    lists = {
        key: value for key, value in whole.items() if isinstance(value, list) and isinstance((value or [0])[0], dict)
    }
    if len(lists) > 1:
        raise ValueError(f"{name} has several lists of rows: {', '.join(lists)}; put each in a file of its own")
    return next(iter(lists.values()), [whole])


class JsonText:
    """A JSON text that arrives in pieces; memory holds one value of it."""

    def __init__(self, texts: Iterable[str], name: str):
        self.texts, self.name = iter(texts), name
        self.text, self.at, self.before = "", 0, 0  # before: characters no longer held

    def read_on(self) -> bool:
        """Doubles what is held from `at` on, or more, so that a long value is parsed few times; False at the end."""
        rest = self.text[self.at :]
        held, size = [rest], len(rest)
        for text in self.texts:
            held.append(text)
            size += len(text)
            if size > 2 * len(rest):
                break
        self.text, self.at, self.before = "".join(held), 0, self.before + self.at
        return size > len(rest)

    def next_character(self) -> str:
        """The next one that is not white space; "" at the end."""
        while True:
            self.at = BLANKS.match(self.text, self.at).end()
            if self.at < len(self.text) or not self.read_on():
                return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        """The value that starts at the next character."""
        while True:
            try:
                value, self.at = DECODER.raw_decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                # a value that goes on in the next piece fails at the end of this one, or in an open string
                place = self.before + error.pos
                is_open = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - 16
                if is_open and len(self.text) - self.at < LONGEST_ROW and self.read_on():
                    continue
                raise self.error(error.msg, place) from None
            except (ValueError, RecursionError) as error:  # a number too long, or nested too deeply
                raise self.error(str(error), self.before + self.at) from None

    def elements(self) -> Iterator[Any]:
        """Those of the array that starts at the next character, after which the text must end."""
        self.at += 1
        is_first = True
        while (character := self.next_character()) != "]":
            if not is_first:
                if character != ",":
                    raise self.error("Expecting ',' or ']' after an element", self.before + self.at)
                self.at += 1
                self.next_character()
            yield self.value()
            is_first = False
        self.at += 1
        if self.next_character():
            raise self.error("Extra text after the array", self.before + self.at)

    def error(self, message: str, place: int) -> ValueError:
        return ValueError(f"{self.name} is not readable JSON ({message} at character {place})")

"""Removes what web books carry besides their text, rule by rule: --clean for all, --clean=bom,ads for some. In C
and C++, where --clean means other rules, it removes long runs of machine-written lines.

    cleaner = Cleaner(RULES)
    cleaned = cleaner.feed(first_part, ends=False) + cleaner.feed(last_part, ends=True)

Works line by line on one document at a time, in bounded memory. The rules prefer keeping an advertisement to losing a
sentence: a whole line is removed only if it reads like an advertisement from its beginning.
"""

import html
import re
from collections import Counter
from collections.abc import Callable, Sequence

NORMALIZE = ("bom", "newlines")  # --normalize is these two
RULES = {  # rule: what it does, in order of application
    "bom": "a byte-order mark at the start of the document",
    "newlines": "CRLF becomes LF",
    "control": "control characters, zero-width spaces, and byte-order marks at the start of other lines",
    "html": "tags and entities of web pages, and the text hidden in them; tags that end a line become its end",
    "ads": "lines and brackets that advertise a site",
    "urls": "addresses starting with http:// or www.",
    "spaces": "full-width spaces: removed as indents, one ordinary space elsewhere",
    "blank": "several blank lines become one",
}
CODE_RULES = {  # of data/cppcode/prepare.py, after those
    "defines": "in a run of #define lines, each a whole macro, all but the first 32",
    "tables": "in a run of lines of numbers, all but the first 32",
}
FLOOD = 32  # blank lines and comments neither count nor end a row, and go where the lines around them go
LINE_ENDS = "html (line ends)"  # as what tags that become line ends are reported
WHITE = ("bom", "newlines", LINE_ENDS, "spaces", "blank")  # these remove no text, so reports only count them
DEFINE = re.compile(r"#\s*define\s+\w.*(?<!\\)$", re.ASCII)
NOT_IN_TABLES = re.compile(r"[^\s\w{}()+\-.,;*/]|\b[A-Za-z_]")  # 0x1F begins with a digit
LONGEST_LINE = 1 << 20  # characters: a longer line is cleaned in pieces
LONGEST_AD = 300

BOM = re.compile("^\ufeff+")
# C0 and C1 without tab and newlines, zero-width space, word joiner, noncharacters; not the joiners of emoji
CONTROL_CHARS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufffe\uffff"
CONTROL = re.compile(f"[{CONTROL_CHARS}]+")
COMMENT = re.compile(r"<!--.{0,300}?-->")
BREAK = re.compile(r"</?br(?:\s[^<>]{0,300})?/?>|</(?:p|div|li|tr|h[1-6])\s*>", re.IGNORECASE)
TAG = re.compile(
    r"</?(?:a|abbr|article|aside|b|bdi|bdo|big|blockquote|body|br|center|cite|code|dd|del|details|"
    r"dfn|div|dl|dt|em|figure|font|footer|form|h[1-6]|head|header|hr|html|i|img|ins|kbd|label|li|link|main|mark|meta|"
    r"nav|ol|p|pre|q|s|samp|script|section|small|span|strike|strong|style|sub|summary|sup|table|tbody|td|th|title|tr|"
    r"tt|u|ul|var)(?:\s[^<>]{0,300})?/?>",
    re.IGNORECASE,
)
# Sown between the words by sites to deter copying: <bdi>.99lib.</bdi>, <tt></tt>, <u>?</u>
HIDDEN = re.compile(r"<((?!(?:b|i|em|p|div|span|td|font|strong)>)[a-z]{1,10})>([^<>]{0,12})</\1>", re.IGNORECASE)
HIDDEN_MARK = re.compile(r"[9九]{2}(?:lib|藏)|藏书网|^[\s.?!]*$", re.IGNORECASE)
ENTITY = re.compile(
    r"&(?:nbsp|ensp|emsp|amp|lt|gt|quot|apos|[lr][sd]quo|[mn]dash|hellip|middot|#\d{1,6}|"
    r"#x[\da-f]{1,5});",
    re.IGNORECASE,
)

# Matched on a copy of the line with full-width letters, digits and ./: folded to ASCII
FOLD = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F) if chr(wide - 0xFEE0).isalnum() or chr(wide) in "．／："}
_REST = r"[\w.~/?#=&%+:@-]*"
ADDRESS = re.compile(rf"(?:https?://|www\.){_REST}", re.ASCII | re.IGNORECASE)
SITE = re.compile(
    rf"(?:{ADDRESS.pattern}|(?<![\w.])[\w-]+(?:\.[\w-]+)*\.(?:com|net|org|cn|cc|info|xyz|top|la|me|tv)"
    rf"(?![\w.])(?:/{_REST})?)",
    re.ASCII | re.IGNORECASE,
)
OPEN, CLOSE = "（(【[《〈「『", "）)】]》〉」』"
BRACKET = re.compile(
    rf"[{re.escape(OPEN)}][^{re.escape(OPEN + CLOSE)}]{{0,40}}?{SITE.pattern}"
    rf"[^{re.escape(OPEN + CLOSE)}]{{0,40}}[{re.escape(CLOSE)}]",
    re.ASCII | re.IGNORECASE,
)
AD_WORDS = re.compile(
    "小说|电子书|txt|下载|在线阅读|免费|书友|网友|书屋|书城|书库|书网|文学网|中文网|读书网|"
    "论坛|网址|网站|本站|更多|最新|章节|更新|首发|上传|分享|整理|收藏|全本|访问|登[录陆]|尽在|"
    "[记記]住|地址|小說|電子書|下載|免費|書友|downloaded|ebook",
    re.IGNORECASE,
)
SIGNATURE = re.compile(r"[.>?]?99lib[.?]?|九九藏书网?", re.IGNORECASE)  # sown into the text by that site
# Advertisements without an address; matched at the start of a line
PHRASE = re.compile(
    r"天才一秒[记記]住|(?:一|1|１)秒钟?[记記]住[^。！？]{0,12}(?:本站|网址|地址|小说)|欢迎(?:广大|各位)?书友|"
    r"手机(?:用户|阅读|看书)?请(?:浏览|访问|登)|"
    r"(?:更多|最新|免费|全本)[^。！？，]{0,12}(?:小说|电子书|章节|TXT)[^。！？]{0,20}(?:下载|尽在|访问|请到|请上)|"
    r"[本此](?:书|文|电子书|作品)(?:由|来自|转载自|下载自)[^。！？]{0,24}(?:网|论坛|书屋|书城|小说|\.(?:com|net|org|cn|cc))[^。！？]{0,12}"
    r"(?:整理|制作|提供|首发|收集|上传|下载)|"
    r"(?:本?作品|本书|内容|声明[:：])[^。！？]{0,12}仅供[^。！？]{0,40}(?:删除|商业|版权)|"
    r"[-=－＝ ]{2,}章节内容(?:开始|结束)[-=－＝ ]{2,}$|"
    r"更新时间[:：]\s*\d{4}\D\d+\D\d+.*字数[:：]\s*\d+\s*$",
    re.IGNORECASE,
)
PUNCTUATION = re.compile(r"[\W_]+")

WIDE = "\u3000\xa0"
INDENT = re.compile(rf"^[ \t]*[{WIDE}][ \t{WIDE}]*|[ \t]*[{WIDE}][ \t{WIDE}]*$")
WIDE_RUN = re.compile(rf"[{WIDE}]+")
# A line with none of these is clean unless it is blank or matches PHRASE: every address has a dot
SUSPECT = re.compile(rf"[{WIDE}\ufeff<&.．9９九{CONTROL_CHARS}]")
WIDE_ASCII = re.compile("[Ａ-Ｚａ-ｚ０-９．／：]")


class Cleaner:
    """Cleans one document after another, calling report(line_number, rule, removed_text) for every removal.

    midway=True: the first document began in an earlier unit.
    """

    def __init__(
        self, rules: Sequence[str], report: Callable[[int, str, str], None] | None = None, midway: bool = False
    ):
        self.rules, self.is_watched, self.report = set(rules), bool(report), report or (lambda *_: None)
        self.by_line = bool(self.rules - set(NORMALIZE))
        self.rest, self.line, self.blank, self.midway, self.begun = "", 1, False, midway, midway
        self.row, self.length, self.held = "", 0, []  # the kind of a row of lines, and comments inside one too long

    def feed(self, text: str, ends: bool) -> str:
        """The next part of a document, cleaned; `ends` marks the last part."""
        text, held = self.rest + text, ""
        if text.endswith("\r") and not ends:  # perhaps half of a CRLF
            text, held = text[:-1], "\r"
        if "newlines" in self.rules and "\r\n" in text:
            lines = text.split("\n")[:-1] if self.is_watched else []  # counting takes time, so only when someone looks
            for number, line in enumerate(lines, self.line):
                if line.endswith("\r"):
                    self.report(number, "newlines", "\r")
            text = text.replace("\r\n", "\n")
        if "bom" in self.rules and text and not self.begun:
            text = self.cut("bom", BOM, text)
        self.begun = self.begun or bool(text)
        if self.by_line:
            text, self.rest = self.clean_lines(text, ends)
        else:
            self.line, self.rest = self.line + text.count("\n"), ""
        self.rest += held
        if ends:
            self.rest, self.line, self.blank, self.midway, self.begun = "", 1, False, False, False
        return text

    def clean_lines(self, text: str, ends: bool) -> tuple[str, str]:
        """-> (the cleaned lines, the start of a line whose end is yet to come)."""
        *lines, rest = text.split("\n")
        kept = []
        for line in lines:
            for cleaned in self.clean_line(line, not self.midway):
                kept += (f"{line}\n" for line in self.without_floods(cleaned))
            self.line, self.midway = self.line + 1, False
        if ends or len(rest) > LONGEST_LINE:
            last = [
                line
                for cleaned in self.clean_line(rest, not self.midway and bool(rest)) or [""]
                for line in self.without_floods(cleaned)
            ]
            kept.append("\n".join([*last, *self.held]))
            self.length, self.held = 0, []
            rest, self.midway = "", True
        return "".join(kept), rest

    def without_floods(self, line: str) -> list[str]:
        """What becomes of a line: the comments that waited for it and itself, or nothing if it is one too many of its
        kind, or has to wait."""
        if self.rules.isdisjoint(CODE_RULES):
            return [line]
        kind = kind_of_line(line)
        if kind is None:
            if self.length <= FLOOD:
                return [line]
            self.held.append(line)
            return []
        kind = kind if kind in self.rules else ""
        self.length = (self.length + 1 if kind == self.row else 1) if kind else 0
        lines, self.row, self.held = [*self.held, line], kind, []
        if self.length <= FLOOD:
            return lines
        for number, removed in enumerate(lines, self.line + 1 - len(lines)):
            self.report(number, kind, removed)
        return []

    def clean_line(self, line: str, is_whole: bool) -> list[str]:
        """The lines that one becomes, cleaned: several if tags end some, none if nothing is left of it."""
        had_text = bool(line) and not line.isspace()
        if is_whole and not had_text:
            if self.blank and "blank" in self.rules:
                self.report(self.line, "blank", line + "\n")
                return []
            self.blank = True
            return [self.cut("spaces", INDENT, line) if "spaces" in self.rules else line]
        lines = [line]
        if had_text and (SUSPECT.search(line) or PHRASE.match(line.lstrip())):
            lines = self.without_markup(line, is_whole).split("\n")
            lines = [self.clean_text(line, bool(i) or is_whole) for i, line in enumerate(lines)]
            # tags beside tags, and at either end of the line, end no line of their own
            lines = [line for i, line in enumerate(lines) if line.strip() or not (i or is_whole)]
        self.blank = self.blank and not lines
        return lines

    def without_markup(self, line: str, is_whole: bool) -> str:
        """The line with newlines in place of the tags that end lines."""
        if "control" in self.rules:
            line = self.cut("control", CONTROL, self.cut("control", BOM, line) if is_whole else line)
        if "html" in self.rules and ("<" in line or "&" in line):
            line = self.cut("html", HIDDEN, line, lambda match: "" if HIDDEN_MARK.search(fold(match[2])) else match[0])
            line = self.cut(LINE_ENDS, BREAK, self.cut("html", COMMENT, line), "\n")
            line = self.cut("html", TAG, line)
            line = self.cut("html", ENTITY, line, lambda match: html.unescape(match[0]))
        return line

    def clean_text(self, line: str, is_whole: bool) -> str:
        if "ads" in self.rules:
            if is_whole and is_advertisement(line):
                self.report(self.line, "ads", line)
                return ""
            if "." in fold(line):
                line = self.cut("ads", BRACKET, line, folded=True)
            line = self.cut("ads", SIGNATURE, line, folded=True)
        if "urls" in self.rules and "." in fold(line):
            line = self.cut("urls", ADDRESS, line, folded=True)
        if "spaces" in self.rules:
            line = self.cut("spaces", INDENT, line)
            line = self.cut("spaces", WIDE_RUN, line, " ")
        return line

    def cut(
        self, rule: str, pattern: re.Pattern, line: str, by: str | Callable[[re.Match], str] = "", folded: bool = False
    ) -> str:
        """`line` with every match replaced by `by` and reported. folded: the pattern is searched in the folded line."""
        kept, at = [], 0
        for match in pattern.finditer(fold(line) if folded else line):
            old = line[match.start() : match.end()]
            new = by(match) if callable(by) else by
            if new != old and old:
                self.report(self.line, rule, old)
            kept += (line[at : match.start()], new)
            at = match.end()
        return "".join(kept) + line[at:] if kept else line


def kind_of_line(line: str) -> str | None:
    """The rule of CODE_RULES for it, "" for other code, None for blank lines and comments."""
    text = line.strip()
    if not text or text.startswith(("//", "/*", "* ", "*/")) or text == "*":
        return None
    if DEFINE.match(text):
        return "defines"
    return "tables" if any(map(str.isdigit, text)) and not NOT_IN_TABLES.search(text) else ""


def fold(line: str) -> str:
    """The line with full-width letters, digits and ./: as ASCII; no character changes position."""
    return line.translate(FOLD) if WIDE_ASCII.search(line) else line


def is_advertisement(line: str) -> bool:
    """Whether the line both starts and continues like an advertisement, by the tables above."""
    line = fold(line.strip())
    if len(line) > LONGEST_AD:
        return False
    if PHRASE.match(line):
        return True
    site = SITE.search(line)
    if not site:
        return False
    if ADDRESS.search(line) and not PUNCTUATION.sub("", SITE.sub("", line)):
        return True  # only an address
    before = line[: site.start()].strip()
    begins = not before or len(before) <= 24 and AD_WORDS.search(before)
    return bool(begins) and len(set(AD_WORDS.findall(line.lower()))) >= 2


class Report:
    """Prints the text that cleaning removes, how often each file's white space was changed, and the totals."""

    def __init__(self):
        self.line = 0  # lines of the document before the current part
        self.counts, self.characters = Counter(), Counter()
        self.file, self.white = (), Counter()  # (path, name) of the current file; its counts
        self.removed, self.example = Counter(), {}  # characters, and the first text that went

    def begin(self, path: str, name: str) -> None:
        """Removals reported from now on belong to this file, which may be read in several parts."""
        if (path, name) != self.file:
            self.end()
            self.file = path, name

    def add(self, document: str, line: int, rule: str, removed: str) -> None:
        self.counts[rule] += 1
        self.characters[rule] += len(removed)
        if rule in WHITE or rule in CODE_RULES:
            self.white[rule] += 1
            self.removed[rule] += len(removed)
            self.example.setdefault(rule, removed[:LONGEST_AD])
        else:
            print(f"clean  {document}:{self.line + line}: {rule}: {removed[:LONGEST_AD]!r}")

    def end(self) -> None:
        for rule, n in self.white.items() if self.file else ():
            if rule in CODE_RULES:
                lines = f"{rule}: {n:,} lines, {self.removed[rule]:,} characters, the first {self.example[rule]!r}"
                print(f"clean  {self.file[1]}: {lines}")
        white = [f"{rule}: {n:,} times" for rule, n in self.white.items() if rule in WHITE]
        if white:
            print(f"clean  {self.file[1]}: {', '.join(white)}")
        for counts in (self.white, self.removed, self.example):
            counts.clear()

    def summary(self) -> None:
        self.end()
        totals = (f"{rule}: {n:,} times, {self.characters[rule]:,} characters" for rule, n in self.counts.items())
        print(f"clean  {', '.join(totals) or 'nothing to remove'}")


def parse_rules(text: str) -> tuple[str, ...]:
    """Text as "all" (of books), "code" or "bom,ads" -> rules in order of application. ValueError names unknown ones."""
    known = {**RULES, **CODE_RULES}
    groups = {"all": set(RULES), "code": set(CODE_RULES)}
    names = groups.get(text) or set(text.replace(" ", "").split(","))
    if names - set(known):
        raise ValueError(f"no cleaning rule {', '.join(sorted(names - set(known)))}; the rules are {', '.join(known)}")
    return tuple(rule for rule in known if rule in names)

"""data/epub.py: the text of books that another library made, in reading order; bad books are named in one line."""

import html
import io
import zipfile

import pytest
from ebooklib import epub
from hypothesis import given
from hypothesis import strategies as st
from lxml.html import document_fromstring
from test_formats import read, tar, write, zipped
from test_prepare import documents, prepare

from data.epub import chapters_of
from data.formats import report_skipped

CHAPTERS = {
    "第一回 甄士隐": ["列位看官：你道此书从何而来？", "原来女娲氏炼石补天之时，炼成三万六千五百零一块。"],
    "第二回 贾夫人": ["诗云：一局输赢料不真。", "却说封肃因听见公差传唤，忙出来陪笑启问。"],
    "第三回 林黛玉": ["却说雨村忙回头看时，不是别人。", "乃是当日同僚一案参革的号张如圭者。"],
}
TEXT = "\n".join("".join(f"{line}\n" for line in (title, *lines)) for title, lines in CHAPTERS.items())


def book_of(pages: dict[str, str], path):
    """The file that EbookLib makes of {file name: body}: with a table of contents, a style sheet and a picture."""
    book = epub.EpubBook()
    book.set_identifier("id1")
    book.set_title("红楼梦")
    book.set_language("zh")
    items = []
    for name, body in pages.items():
        item = epub.EpubHtml(title=f"目录里的{name}", file_name=name, lang="zh")
        item.content = f"<html><head><title>不是正文</title></head><body>{body}</body></html>"
        items.append(item)
    for item in reversed(items):  # in the manifest; the spine has the reading order
        book.add_item(item)
    book.add_item(epub.EpubItem("style", "style/a.css", "text/css", b"p { color: red }"))
    book.add_item(epub.EpubItem("cover", "cover.png", "image/png", b"\x89PNG"))
    book.toc = items
    book.add_item(epub.EpubNcx())
    book.add_item(epub.EpubNav())
    book.spine = ["nav", *items]
    epub.write_epub(str(path), book)
    return path


def novel(path):
    pages = {
        f"text/{i} 回.xhtml": f"<h2>{title}</h2>\n" + "\n".join(f"<p>\u3000\u3000{line}</p>" for line in lines)
        for i, (title, lines) in enumerate(CHAPTERS.items())
    }
    return book_of(pages, path)


def text_of_body(body: str, tmp_path) -> str:
    (text,) = read(book_of({"a.xhtml": body}, tmp_path / "a.epub")).values()
    return text


def changed(path, **members):
    """The book with members replaced, added, or (None) left out; a name's dots and slashes are underscores."""
    with zipfile.ZipFile(path) as book:
        content = {name: book.read(name) for name in book.namelist()}
    by_key = {name.replace("/", "_").replace(".", "_").replace("-", "_"): name for name in content}
    for key, value in members.items():
        name = by_key.get(key, key.replace("__", "/") + ".xml")
        content[name] = value
    return zipped(path, {name: value for name, value in content.items() if value is not None})


def test_a_book_is_its_chapters_in_reading_order_a_paragraph_a_line(tmp_path):
    path = novel(tmp_path / "红楼梦.epub")
    indented = read(path)
    assert {name: text.replace("\u3000", "") for name, text in indented.items()} == {"红楼梦.epub": TEXT}
    assert indented["红楼梦.epub"].count("\n\u3000\u3000") == 6  # indents are text, which --clean removes


def test_a_book_in_an_archive_reads_the_same(tmp_path):
    content = novel(tmp_path / "a.epub").read_bytes()
    (expected,) = read(tmp_path / "a.epub").values()
    assert read(zipped(tmp_path / "b.zip", {"x/a.epub": content, "x/c.txt": b"other\n"})) == {
        "b.zip/x/a.epub": expected,
        "b.zip/x/c.txt": "other\n",
    }
    assert read(write(tmp_path / "b.tar", tar({"a.epub": content}))) == {"b.tar/a.epub": expected}
    assert read(write(tmp_path / "b.tgz", tar({"a.epub": content}, "w:gz"))) == {"b.tgz/a.epub": expected}


PAGE = '<?xml version="1.0" encoding="{}"?><html><body><p>{}</p></body></html>'


@pytest.mark.parametrize(
    "declared, written, text",
    [
        ("gb2312", "gbk", "宝玉“来”见镕"),  # 镕 is in GBK only
        ("GBK", "gbk", "宝玉"),
        ("big5", "cp950", "寶玉碁"),
        ("utf-16", "utf-16", "宝玉"),
        ("utf-8", "utf-8-sig", "宝玉"),
        ("iso-8859-1", "cp1252", "“é”"),
        ("gb2312", "utf-8", "宝玉"),  # left by a converter
        ("utf-16", "utf-8", "宝玉"),
        ("klingon", "utf-8", "宝玉"),
        ("rot13", "gbk", "宝玉来了，说不是他的人" * 9),
        ("utf-8", "gbk", "宝玉来了，说不是他的人" * 9),
    ],
)
@pytest.mark.parametrize("encoding", ["auto", "gb18030"])
def test_a_page_says_its_encoding_itself_or_is_utf8(tmp_path, encoding, declared, written, text):
    content = PAGE.format(declared, text).encode(written)
    path = changed(book_of({"a.xhtml": "<p>x</p>"}, tmp_path / "a.epub"), EPUB_a_xhtml=content)
    assert read(path, encoding=encoding) == {"a.epub": text + "\n"}


def hand_made(path, package: str, pages: dict[str, str]):
    """A book as careless converters make them; the package document is beside the pages' folder."""
    rootfile = '<container><rootfiles><rootfile full-path="OEBPS/c.opf"/></rootfiles></container>'
    return zipped(path, {"META-INF/container.xml": rootfile, "OEBPS/c.opf": package, **pages})


def package_of(*items: str) -> str:
    listed = "".join(f'<item id="i{n}" {item}/>' for n, item in enumerate(items))
    spine = "".join(f'<itemref idref="i{n}"/>' for n in range(len(items)))
    title = "<metadata><dc:title>A & B&nbsp;</dc:title></metadata>"  # which no XML parser takes
    return f"<package>{title}<manifest>{listed}</manifest><spine>{spine}</spine></package>"


@pytest.mark.parametrize(
    "href, member",
    [
        ("a%20b.xhtml", "OEBPS/a b.xhtml"),
        ("a%20b.xhtml", "OEBPS/a%20b.xhtml"),
        ("A.xhtml#x", "OEBPS/a.XHTML"),
        ("a%23b.xhtml", "OEBPS/a#b.xhtml"),
        ("t\\a.xhtml", "OEBPS/t/a.xhtml"),
        ("../a.xhtml?x=1", "a.xhtml"),
        ("%E7%AC%AC.xhtml", "OEBPS/第.xhtml"),
        ("e\u0301.xhtml", "OEBPS/\u00e9.xhtml"),
    ],
)
def test_a_page_is_found_however_its_name_is_spelled(tmp_path, href, member):
    path = hand_made(
        tmp_path / "a.epub", package_of(f'href="{href}" media-type="Application/XHTML+XML"'), {member: "<p>x"}
    )
    assert read(path) == {"a.epub": "x\n"}


@pytest.mark.parametrize("encoding, name", [("utf-8", "第一"), ("gbk", "第一回")])
def test_names_that_a_zip_does_not_mark_as_utf8_are_found(tmp_path, encoding, name):
    package = package_of(f'href="{name}.xhtml" media-type="text/html"')
    path = hand_made(tmp_path / "a.epub", package, {"OEBPS/@@@@@@.xhtml": "<p>x"})
    path.write_bytes(path.read_bytes().replace(b"@@@@@@", name.encode(encoding)))
    assert read(path) == {"a.epub": "x\n"}


def test_pages_are_what_may_be_text_once_each(tmp_path, capsys):
    report_skipped.cache_clear()
    items = [
        'href="cover.xhtml" media-type="application/xhtml+xml"',  # a picture alone: no empty line for it
        'href="a.xhtml#x" media-type="application/xhtml+xml"',
        'href="a.xhtml#y" media-type="application/xhtml+xml"',
        'href="b.html"',
        'href="c.xml" media-type="application/x-dtbook+xml"',
        'href="no.xhtml" media-type="text/html"',
        'href="d.svg" media-type="image/svg+xml"',
        'href="toc.ncx" media-type="application/x-dtbncx+xml"',
    ]
    pages = {f"OEBPS/{name}": f"<p>{name}</p>" for name in ("a.xhtml", "b.html", "c.xml", "d.svg", "toc.ncx")}
    pages["OEBPS/cover.xhtml"] = "<head><title>x</title><img src='a.png'/>"
    path = hand_made(tmp_path / "a.epub", package_of(*items), pages)
    assert read(path) == {"a.epub": "a.xhtml\n\nb.html\n\nc.xml\n"}
    assert f"skipped: {path}: it lists a chapter oebps/no.xhtml that it does not have" in capsys.readouterr().err


def test_what_stands_around_a_page_is_no_text(tmp_path):
    page = """<?xml version="1.0"?>
<!DOCTYPE html [<!ENTITY nbsp "&#160;">]>
<h:html xmlns:h="http://www.w3.org/1999/xhtml"><h:head><h:title>no</h:title><script/></h:head>
<h:body><h:p>a</h:p><h:p><![CDATA[A < B & C]]></h:p><!--[if mso]>x<![endif]-->b<![endif]--><h:p>D[1]></h:p></h:body>
</h:html>"""
    package = package_of('href="a.xhtml" media-type="text/html"')
    assert read(hand_made(tmp_path / "a.epub", package, {"OEBPS/a.xhtml": page})) == {
        "a.epub": "a\nA < B & C\nb\nD[1]>\n"
    }


@pytest.mark.parametrize(
    "body, text",
    [
        ("<p>one\n  two\t three</p>", "one two three\n"),
        ("<p>a<br/>b<br></br>c</p>", "a\nb\nc\n"),
        ("<div><p>a</p>b<p>c</p></div>", "a\nb\nc\n"),
        ("<p>1 &lt; 2 &amp; &#x4E00;&nbsp;&hellip;</p>", "1 < 2 & 一\xa0…\n"),
        ("<p>宝<b>玉</b>来<i> 见</i></p>", "宝玉来 见\n"),
        ("<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp>字<rt>じ</rt></ruby>です", "漢字です\n"),
        ("<pre>def f():\n    return 1\n\nx</pre><p>a  b</p>", "def f():\n    return 1\nx\na b\n"),
        ("<ul><li>a</li><li>b</li></ul><hr/>c", "a\nb\nc\n"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc\n"),
        ("<script>if (a &lt; b) x</script><style>p {}</style><p>a</p>", "a\n"),
        ('<svg xmlns="http://www.w3.org/2000/svg"><text>x</text></svg><p>a<!-- no --></p>', "a\n"),
        ("<p> </p><p>&#12288;</p><p>a</p>", "a\n"),
        ("<p>宝玉\n  来见，\r\n说道 a\nb</p>", "宝玉来见，说道 a b\n"),
        ("<p>‹![一]> x <![一]> y</p>", "‹![一]> x y\n"),
        ("<ruby><rb>漢<rt>かん<rb>字<rt>じ</ruby>です", "漢字です\n"),
        ("<details><summary>S</summary>text</details>", "S\ntext\n"),
    ],
)
def test_elements_become_lines(tmp_path, body, text):
    assert text_of_body(body, tmp_path) == text


WORDS = st.text(st.sampled_from("宝玉 ab&<>\n\u3000一"), max_size=8)
TREES = st.recursive(
    WORDS.map(html.escape),
    lambda inner: st.tuples(
        st.sampled_from(["p", "div", "b", "span", "blockquote", "h2", "li", "td", "em"]), st.lists(inner, max_size=4)
    ).map(lambda pair: f"<{pair[0]}>{''.join(pair[1])}</{pair[0]}>"),
    max_leaves=12,
)


@given(TREES)
def test_no_character_of_the_text_is_lost(body):
    """Beside lxml, an independent parser."""
    page = f"<html><head><title>t</title></head><body><section>{body}</section></body></html>"
    expected = document_fromstring(page).find("body").text_content()
    container = '<container xmlns="urn:c"><rootfiles><rootfile full-path="c/o.opf"/></rootfiles></container>'
    package = (
        '<package><manifest><item id="a" href="a%20b.xhtml" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="a"/></spine></package>'  # without namespaces, as some old books
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as book:
        book.writestr("META-INF/container.xml", container)
        book.writestr("c/o.opf", package)
        book.writestr("c/a b.xhtml", page)
    found = "".join(chapters_of(file, "a.epub"))
    assert "".join(found.split()) == "".join(expected.split())


def test_a_long_chapter_comes_in_parts(tmp_path):
    body = "".join(f"<p>{'宝玉' * 500}{i}</p>" for i in range(300))
    with open(book_of({"a.xhtml": body}, tmp_path / "a.epub"), "rb") as file:
        parts = list(chapters_of(file, "a.epub"))
    assert len(parts) > 5
    assert "".join(parts) == "".join(f"{'宝玉' * 500}{i}\n" for i in range(300))


@pytest.mark.parametrize(
    "members, message",
    [
        ({"META_INF_container_xml": None}, "a.epub has no META-INF/container.xml, so it is not an .epub"),
        ({"META_INF_container_xml": b"<container"}, r"a.epub lacks its package document \[\]; the book is damaged"),
        ({"EPUB_content_opf": None}, r"a.epub lacks its package document \['EPUB/content.opf'\]"),
        ({"EPUB_content_opf": b"<package/>"}, "a.epub lists no chapters in EPUB/content.opf"),
        (
            {"EPUB_a_xhtml": b"<p>" + "宝玉".encode() * 50 + b"\xff</p>"},
            "a.epub/EPUB/a.xhtml is not utf-8: byte 0xff at",
        ),
        ({"EPUB_a_xhtml": PAGE.format("gbk", "宝").encode("gbk") + b"\xff"}, "a.xhtml is not gb18030: byte 0xff"),
        ({"EPUB_a_xhtml": b"<p>\xff\xfe\xfd</p>"}, "a.xhtml is neither UTF-8 .* nor clearly Chinese"),
        (
            {"META-INF__encryption": b'<e xmlns:c="urn:c"><c:CipherReference URI="/EPUB/a.xhtml"/></e>'},
            r"a.epub is encrypted \(EPUB/a.xhtml\)",
        ),
    ],
)
def test_a_bad_book_is_named_in_one_line(tmp_path, members, message):
    path = changed(book_of({"a.xhtml": "<p>宝玉</p>"}, tmp_path / "a.epub"), **members)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_page_larger_than_any_book_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data.epub.LARGEST_PAGE", 99)
    with pytest.raises(ValueError, match=r"a.epub/EPUB/a.xhtml has [\d,]+ bytes, expected at most 99"):
        read(book_of({"a.xhtml": "<p>宝玉</p>" * 99}, tmp_path / "a.epub"))


def test_a_packing_that_python_lacks_is_named(tmp_path):
    path = book_of({"a.xhtml": "<p>x"}, tmp_path / "a.epub")
    with zipfile.ZipFile(path) as book:
        headers = {info.header_offset + 8 for info in book.infolist()}
        start = book.start_dir + 10
    content = bytearray(path.read_bytes())
    for at in headers:
        content[at] = 97
    while content[start - 10 : start - 6] == b"PK\1\2":  # the same in the archive's directory
        content[start] = 97
        start += 36 + sum(int.from_bytes(content[start + i : start + i + 2], "little") for i in (18, 20, 22)) + 10
    with pytest.raises(ValueError, match="cannot read .*a.epub: .*compression.*; the book is damaged"):
        read(write(path, bytes(content)))


def test_no_zip_is_no_book(tmp_path):
    with pytest.raises(ValueError, match="cannot read .*a.epub: .*the file is damaged, get another copy"):
        read(write(tmp_path / "a.epub", b"no book" * 100))


def test_encrypted_fonts_and_bytes_to_replace_are_no_obstacle(tmp_path):
    path = book_of({"a.xhtml": "<p>宝玉</p>"}, tmp_path / "a.epub")
    fonts = b'<e xmlns:c="urn:c"><c:CipherReference URI="EPUB/font.otf"/></e>'
    assert read(changed(path, **{"META-INF__encryption": fonts})) == {"a.epub": "宝玉\n"}
    changed(path, EPUB_a_xhtml="<p>宝玉".encode() * 20 + b"\xff")
    assert read(path, errors="replace") == {"a.epub": "宝玉\n" * 19 + "宝玉\ufffd\n"}


def test_separators_divide_a_book_too(tmp_path):
    path = book_of({"a.xhtml": "<p>one</p><p>***</p><p>two</p>"}, tmp_path / "a.epub")
    assert read(path, separator="***") == {"a.epub:1": "one", "a.epub:2": "two"}


def test_a_folder_of_books_becomes_a_dataset(tmp_path, capsys):
    folder = tmp_path / "books"
    folder.mkdir()
    novel(folder / "a.epub")
    book_of({"a.xhtml": '<img src="cover.png"/>'}, folder / "b.epub")
    texts = {f"第{i}本书。\n" * 9 for i in range(9)}
    for i, text in enumerate(sorted(texts)):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    prepare("text", "--input", folder, "--clean", "--encoding=auto", "--tokenizer=byte", "--out_dir", tmp_path / "out")
    found = documents(tmp_path / "out")
    assert found["train"] | found["val"] == texts | {TEXT}
    assert "left out 1 as empty: books/b.epub\n" in capsys.readouterr().out

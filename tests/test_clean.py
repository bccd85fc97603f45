"""data/clean.py: advertisements go, stories stay, and the same goes in parts as in one piece."""

import re
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.clean import CODE_RULES, NORMALIZE, RULES, WHITE, Cleaner, Report, is_advertisement, parse_rules


def clean(text, rules=RULES):
    return Cleaner(rules).feed(text, ends=True)


def removed(text, rules=RULES):
    """[(line, rule, what)] of everything that was taken out."""
    found = []
    Cleaner(rules, lambda *removal: found.append(removal)).feed(text, ends=True)
    return found


# As found in books on the web
ADVERTISEMENTS = [
    "TXT小说天堂  https://www.xstt5.com，最有文艺气息的文学网站，我们提供给您的小说不求最多，但求最经典最完整",
    "喜书网（www.xitxt.net)免费电子书下载",
    "本电子书由喜书网（www.xitxt.net）网友上传分享，网址:http://www.xitxt.net",
    "    作品仅供读者预览,请在下载24小时内删除，不得用作商业用途；为了让作者能提供更多更好的作品，请您购买正版图书!",
    "    更新时间:2007-11-16 7:55:51 本章字数:4804",
    " ------章节内容开始-------",
    "ｗｗｗ．ｘｉａｂｏｏｋ．ｃｏｍ",
    "www．Ｌｚｕｏｗｅｎ．ｃｏｍ",
    "声明:本书由奇书网(www.xxqishu.com)自网络收集整理制作,仅供交流学习使用,版权归原作者和出版社所有.",
    "更多精彩，更多好书，尽在新奇书网—http://www.xxqishu.com",
    "天才一秒记住本站地址：www.example.com",
    "天才一秒記住，精彩小說無廣告閱讀",
    "手机用户请浏览阅读，更优质的体验。",
    "本书由某某书屋整理，更多小说请到论坛",
    "本书由www.example.com免费提供下载，更多精彩好书请访问 www.example.com",
    "欢迎广大书友光临阅读，最新、最快、最火的连载作品尽在这里！",
]
STORIES = [
    "他打开www.baidu.com，下载了一部免费小说，读了起来。",
    "他说：“本书由我来写。”",
    "　　那网站叫 example.com，他记得很清楚，当时谁也没有去过。",
    "他想更多地了解最新的小说，于是去了书城。",
    "声明：我没有拿过他的东西。",
    "更新时间到了，他还没有来。",
    "手机用户请客吃饭的那天，他没有去。",
    "一秒记住了她的脸。",
    "3 < 5 & 7 > 2",
    "《红楼梦》（又名《石头记》）",
    "I visited www.example.com and read about the free ebook.",
    "The time is 12:30. See you at the library.",
    "if (a < b && c > d) return x.info;",
]


@pytest.mark.parametrize("line", ADVERTISEMENTS)
def test_an_advertisement_goes_with_its_line(line):
    assert is_advertisement(line)
    assert clean(f"第一回\n{line}\n话说\n") == "第一回\n话说\n"
    assert removed(f"第一回\n{line}\n话说\n") == [(2, "ads", line)]


@pytest.mark.parametrize("line", STORIES)
def test_a_story_stays(line):
    assert not is_advertisement(line)
    assert clean(line, rules=["ads", "html", "control", "bom"]) == line


@pytest.mark.parametrize(
    "text, rule, result",
    [
        ("\ufeff第一回\n\ufeff第二回\n", "bom", "第一回\n\ufeff第二回\n"),
        ("\ufeff第一回\n\ufeff第二回\ufeff\n", "control", "第一回\n第二回\ufeff\n"),
        ("一\r\n二\r三\n", "newlines", "一\n二\r三\n"),
        ("a\x00b\x1b[1m\x7f\x85c\td\u200b e👩‍👩‍👧\r\n", "control", "ab[1mc\td e👩‍👩‍👧\r\n"),
        ("<p class='x'>&nbsp;&ldquo;好&rdquo;<br/>&amp;lt;</p>a<b", "html", "\xa0“好”\n&lt;\na<b"),
        (
            "<p>一</p><p>二</p>三<br/><BR>四</br>五<h1>六</h1>七<ul><li>八</li></ul>",
            "html",
            "一\n二\n三\n四\n五六\n七八",
        ),
        ("<div>\n<p>一</p>\n\n<p>二<br>\n</p><td>三</td>四</div>五<!-- <br>\n", "html", "一\n\n二\n三四\n五<!-- \n"),
        ("一<!-- </p> -->二</tr >三<br class='x' />四<p>五<brx>", "html", "一二\n三\n四五<brx>"),
        ("作品<bdi>?９９lｉb.</bdi>价<s></s>值<tt>藏书网</tt>的<u>不同</u>", "html", "作品价值的不同"),
        ("他<!--script>认识主<script-->走了", "html", "他走了"),
        ("“<b>。</b><i>?</i>”", "html", "“。?”"),
        ("#include <string>\nstd::vector<T> x; &y;", "html", "#include <string>\nstd::vector<T> x; &y;"),
        ("他走了。（www.a.com 最新章节）她来了。（笑）", "ads", "他走了。她来了。（笑）"),
        ("七月三日《www.tianyabook.com》", "ads", "七月三日"),
        ("标准件还没找．99ｌib.着，说", "ads", "标准件还没找着，说"),
        ("看 http://a.com/b?c=d#e 和www.b.cn，很好", "urls", "看  和，很好"),
        (
            "　　列位看官　　请坐　\n \u3000 第一回\u3000甄\n    诗曰\n",
            "spaces",
            "列位看官 请坐\n第一回 甄\n    诗曰\n",
        ),
        ("一\n\n\n\u3000\n \n二\n\n三\n", "blank", "一\n\n二\n\n三\n"),
    ],
)
def test_each_rule_by_itself(text, rule, result):
    assert clean(text, [rule]) == result
    assert {name.partition(" ")[0] for _, name, _ in removed(text, [rule])} <= {rule}


def test_a_line_of_which_nothing_is_left_goes_and_blank_lines_around_it_become_one():
    assert clean("一\n\n<hr />\n\n二\n") == "一\n\n二\n"
    assert clean("一\n\n\u200b\n二") == "一\n\n二"


def test_lines_that_tags_end_are_lines_to_the_other_rules():
    text = f"<p>　　第一段</p><p>&nbsp;</p><p>{ADVERTISEMENTS[1]}</p><p>　　第二段　。</p>\n\n<br>\n\n三<br><br>四"
    assert clean(text) == "第一段\n第二段 。\n\n三\n四"
    assert (1, "ads", ADVERTISEMENTS[1]) in removed(text)
    assert [line for line, rule, what in removed(text) if what == "<br>"] == [3, 5, 5]


def test_a_long_line_of_a_page_ends_where_its_tags_end_lines(monkeypatch):
    monkeypatch.setattr("data.clean.LONGEST_LINE", 100)
    cleaner = Cleaner(RULES)
    text = "".join(cleaner.feed("<p>" + "字" * 50 + "</p>" + "言" * 60, ends=False) for _ in range(9))
    assert text + cleaner.feed("<br>\n完<br>", ends=True) == ("字" * 50 + "\n" + "言" * 60) * 9 + "\n完"


def test_the_web_copy_of_xiyouji_loses_its_advertisements_and_no_story(shared_data):
    text = shared_data("xiyouji.txt").read_bytes().decode()
    found = removed(text)
    ads = [(line, what) for line, rule, what in found if rule == "ads"]
    assert [line for line, _ in ads] == [2, 6828]
    assert all(what.startswith("TXT小说天堂  https://www.xstt5.com") for _, what in ads)
    assert {rule for _, rule, _ in found} == {"bom", "ads", "spaces", "blank"}
    cleaned = clean(text)
    rest = text.removeprefix("\ufeff").replace(ads[0][1], "").replace(ads[1][1], "")
    assert "".join(cleaned.split()) == "".join(rest.split())  # nothing else but white space
    assert not set("\u3000\ufeff") & set(cleaned) and "\n\n\n" not in cleaned


def test_hongloumeng_loses_nothing_but_white_space(shared_data):
    text = shared_data("hongloumeng.txt").read_bytes().decode()
    assert "".join(clean(text).split()) == "".join(text.split())


def test_shakespeare_and_code_are_left_alone(shared_data):
    text = shared_data("tinyshakespeare.txt").read_text(encoding="utf-8")
    assert clean(text, set(RULES) - {"blank"}) == text


LINES = st.lists(
    st.text(max_size=5)
    | st.sampled_from([*ADVERTISEMENTS[:4], *STORIES[:3], "", "\u3000", "\r", "x<br>", "<p>x</p>y<br>", "\ufeff"])
)


@given(lines=LINES, cuts=st.lists(st.integers(0, 300)), rules=st.sets(st.sampled_from(list(RULES))))
def test_in_parts_it_is_the_same_as_in_one_piece(lines, cuts, rules):
    text = "\n".join(lines)
    cuts = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    cleaner, parts = Cleaner(rules), []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        parts.append(cleaner.feed(text[start:stop], ends=False))
    assert "".join(parts) + cleaner.feed("", ends=True) == clean(text, rules)


@given(lines=LINES)
def test_cleaning_twice_is_cleaning_once(lines):
    once = clean("\n".join(lines))
    assert clean(once, set(RULES) - {"html"}) == once  # &amp;lt; becomes &lt;


def test_normalize_drops_a_leading_bom_and_crlf_and_nothing_else():
    text = "\ufeff第一回\u3000\r\n\ufeff𠀀 👩‍👩‍👧 \x00\x85\u2028\rend\n"
    assert clean(text, NORMALIZE) == "第一回\u3000\n\ufeff𠀀 👩‍👩‍👧 \x00\x85\u2028\rend\n"


def test_a_very_long_line_is_cleaned_without_being_held(monkeypatch):
    monkeypatch.setattr("data.clean.LONGEST_LINE", 100)
    cleaner = Cleaner(RULES)
    parts = [cleaner.feed("字\u200b" * 60, ends=False) for _ in range(10)]
    assert all(parts)
    assert "".join(parts) + cleaner.feed("", ends=True) == "字" * 600


def test_rules_are_named_in_their_order_and_unknown_ones_refused():
    assert parse_rules("all") == tuple(RULES)
    assert parse_rules("urls, bom") == ("bom", "urls")
    with pytest.raises(ValueError, match="no cleaning rule adverts; the rules are bom, .*ads"):
        parse_rules("bom,adverts")


def test_the_report_shows_all_text_that_goes_and_counts_what_takes_none_out(capsys):
    report = Report()
    for name in ("a.txt", "b.txt"):
        report.begin(name, name)
        cleaner = Cleaner(RULES, lambda *removal, name=name: report.add(name, *removal))
        text = "\ufeff一\n" + ADVERTISEMENTS[1] + "\n" + "\u3000x\r\n" * 900 + "\n\n\x00y<br>z</p>"
        cleaner.feed(text, ends=True)
    report.summary()
    lines = capsys.readouterr().out.splitlines()
    for name, shown in (("a.txt", lines[:3]), ("b.txt", lines[3:6])):
        assert shown == [
            f"clean  {name}:2: ads: {ADVERTISEMENTS[1]!r}",
            rf"clean  {name}:905: control: '\x00'",
            f"clean  {name}: newlines: 900 times, bom: 1 times, spaces: 900 times, blank: 1 times, "
            "html (line ends): 2 times",
        ]
    assert lines[6:] == [
        "clean  newlines: 1,800 times, 1,800 characters, bom: 2 times, 2 characters, ads: 2 times, "
        f"{2 * len(ADVERTISEMENTS[1])} characters, spaces: 1,800 times, 1,800 characters, "
        "blank: 2 times, 2 characters, control: 2 times, 2 characters, html (line ends): 4 times, 16 characters"
    ]


def test_what_the_report_only_counts_takes_no_text_out(shared_data):
    for name in ("hongloumeng.txt", "xiyouji.txt"):
        text = shared_data(name).read_bytes().decode()
        kept = clean("\r\n".join(text.splitlines()), WHITE)
        assert kept.split() == text.removeprefix("\ufeff").split() and len(kept) < len(text)


@pytest.mark.parametrize("rules", [NORMALIZE, RULES])
def test_every_crlf_is_reported_with_its_line(rules):
    found, text = [], "一\r\n二\n三\r\n四\r五\r\n\r\n"
    cleaner = Cleaner(rules, lambda *removal: found.append(removal))
    cleaned = "".join(cleaner.feed(character, ends=False) for character in text) + cleaner.feed("", ends=True)
    assert cleaned == "一\n二\n三\n四\r五\n\n"
    assert found == [(line, "newlines", "\r") for line in (1, 3, 4, 5)]


# ---- floods of lines in C and C++ ----------------------------------------------------------------------------

LINES = {
    "d": ["#define A 1", "  #  define F(x) ((x) + 1)  // twice", "#define EMPTY"],
    "t": ["  0x1F, -2u, 3.5e-7f,", "{ {1, 2}, {3, 4} },", "12", "  (7, .5),"],
    "c": ["int x = 1;", "#define LONG(x) \\", "#undef A", "};", "a, b,", '"\\x01\\x02"', "x[0x1F] = 2;"],
    "n": ["", "   ", "// a comment", "/* another */", " * of several lines", " */"],
}


SOME_LINES = st.lists(st.tuples(st.sampled_from("ddddttttcn"), st.integers(0, 6)), min_size=1, max_size=60)


@mock.patch("data.clean.FLOOD", 3)
@given(SOME_LINES, st.lists(st.integers(0, 900)))
def test_of_a_flood_the_first_lines_stay_and_in_parts_as_in_one_piece(lines, cuts):
    """Beside an oracle that reads the kinds of lines as a string of letters."""
    kinds = "".join(kind for kind, _ in lines)
    texts = [LINES[kind][i % len(LINES[kind])] for kind, i in lines]
    kept = set(range(len(kinds)))
    for k in "dt":
        for match in re.finditer(f"{k}(?:n*{k}){{2}}n*({k}(?:n*{k})*)", kinds):
            kept -= set(range(*match.span(1)))
    text = "\n".join(texts)
    expected = "".join(f"{texts[i]}\n" for i in sorted(kept))
    assert clean(text + "\n", CODE_RULES) == expected
    assert clean(text, CODE_RULES) == (expected[:-1] if len(texts) - 1 in kept else expected)
    cleaner, edges = Cleaner(CODE_RULES), [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    fed = [cleaner.feed(part, ends=i == len(parts) - 1) for i, part in enumerate(parts)]
    assert "".join(fed) == clean(text, CODE_RULES)


def test_a_macro_of_several_lines_is_no_part_of_a_flood_whatever_ends_its_lines():
    for end in ("\n", "\r\n", " \n"):
        text = end.join(["#define A 1"] * 32 + ["#define LONG(x) \\", "  f(x)", ""])
        assert clean(text, CODE_RULES) == text


def test_a_flood_of_registers_is_counted_by_file_and_its_rows_end_with_code(capsys):
    defines = [f"#define REG_{i} 0x{i:02x}" for i in range(40)]
    text = "\n".join(["#ifndef H", *defines, "// of f", "void f();", *defines[:32], "#endif", ""])
    assert clean(text, CODE_RULES) == "\n".join(
        ["#ifndef H", *defines[:32], "// of f", "void f();", *defines[:32], "#endif", ""]
    )
    assert removed(text, CODE_RULES) == [(34 + i, "defines", line) for i, line in enumerate(defines[32:])]
    assert clean(text, ["tables"]) == text == clean(text, RULES)
    report = Report()
    report.begin("/a/reg.h", "a/reg.h")
    for removal in removed(text, CODE_RULES):
        report.add("a/reg.h", *removal)
    report.summary()
    assert "a/reg.h: defines: 8 lines, 152 characters, the first '#define REG_32 0x20'" in capsys.readouterr().out
    assert parse_rules("code") == ("defines", "tables") and not {*parse_rules("all")} & {*CODE_RULES}

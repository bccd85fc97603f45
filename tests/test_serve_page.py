"""The page of serve.py in headless Chromium: write, choose another token, undo, talk, the run, a key."""

import os
import re
import shutil

import pytest
import test_serve
from test_serve import alone, running

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
server, out_dir = test_serve.server, test_serve.out_dir  # fixtures
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser():
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """open_page(server, script, **options): the page, which must show no error in its console; script runs first."""
    opened, problems = [], []

    def open_page(server, script="", **options):
        context = browser.new_context(**{"locale": "en-US", **options})
        if script:
            context.add_init_script(script)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.port}/")
        return page

    yield open_page
    for context in opened:
        context.close()
    assert not [text for text in problems if "401" not in text]  # asking for a key is no error


def write(page, text: str = "") -> None:
    """Types at the end, lets the model continue, and waits until it has."""
    page.keyboard.type(text)
    page.keyboard.press("Control+Enter")
    page.locator("#write .state", has_text=re.compile("per second|每秒")).wait_for()


def test_the_model_continues_what_is_typed_and_another_token_changes_what_follows(server, open_page):
    page = open_page(server)
    page.fill("#seed", "5")
    page.locator("#n_predict").fill("30")
    page.locator("#top_p").fill("1")
    page.locator("#top_k").fill("0")
    page.locator("#temperature").fill("1")
    page.focus("#text")
    write(page, "the cat")
    text, tokens = page.locator("#text"), page.locator("#text .tok")
    assert text.inner_text().rstrip("\n") == ("the cat" + alone(server, "the cat", 5, 30)).rstrip("\n")
    written, n = text.inner_text(), tokens.count()
    tokens.nth(3).hover()
    page.locator("#choices").wait_for()
    other = page.locator("#choices button:not(.now):not([disabled])").first
    chosen = other.locator("b").inner_text()
    other.click()
    page.locator("#stop[disabled]").wait_for()
    kept = "the cat" + "".join(tokens.nth(i).inner_text() for i in range(3))
    assert text.inner_text().startswith(kept) and text.inner_text() != written
    shown = tokens.nth(3).inner_text().replace("\n", "⏎").replace(" ", "␣")
    assert shown == chosen or chosen.startswith("⟨")
    page.keyboard.press("Control+z")
    assert text.inner_text() == written and tokens.count() == n
    page.keyboard.press("Control+z")
    assert text.inner_text() == "the cat"


def test_tokens_are_reached_by_keys_and_edited_ones_become_text(server, open_page):
    page = open_page(server)
    page.locator("#n_predict").fill("8")
    page.focus("#text")
    write(page, "the\n\ncat")
    assert page.locator("#text").evaluate("node => node.textContent").startswith("the\n\ncat")
    n = page.locator("#text .tok").count()
    page.keyboard.press("Alt+ArrowLeft")
    assert page.locator("#text .tok.here").count() == 1 and page.locator("#choices button").count() == 8
    page.keyboard.press("Escape")
    assert page.locator("#choices").is_hidden()
    page.locator("#text .tok").first.evaluate("node => { node.textContent += 'x'; }")
    page.locator("#text").dispatch_event("input")
    assert page.locator("#text .tok").count() == n - 1
    write(page)
    assert page.locator("#text .tok").count() > n - 1


def test_keys_reach_tokens_out_of_sight_and_digits_stay_in_their_field(server, open_page):
    page = open_page(server, viewport={"width": 900, "height": 400})
    page.locator("#n_predict").fill("12")
    page.focus("#text")
    write(page, "the\n" * 40)
    page.locator("#text").evaluate("node => { node.scrollTop = 0; }")
    for back in range(1, 4):  # each scrolls, or not, before the list is shown
        page.keyboard.press("Alt+ArrowLeft")
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        marked = page.locator("#text .tok").evaluate_all("all => all.findIndex((node) => node.matches('.here'))")
        assert page.locator("#choices").is_visible() and marked == page.locator("#text .tok").count() - back
    written = page.locator("#text").inner_text()
    page.focus("#seed")
    page.keyboard.type("12")
    assert page.locator("#seed").input_value() == "12" and page.locator("#text").inner_text() == written


def test_a_digit_is_typed_while_the_mouse_rests_on_a_token(server, open_page):
    page = open_page(server)
    page.locator("#n_predict").fill("8")
    page.focus("#text")
    write(page, "the cat")
    written = page.locator("#text").evaluate("node => node.textContent")
    page.locator("#text .tok").nth(1).hover()
    page.locator("#choices").wait_for()
    page.locator("#text").evaluate("node => getSelection().collapse(node, node.childNodes.length)")
    page.keyboard.type("2")
    assert page.locator("#text").evaluate("node => node.textContent") == written + "2"
    page.keyboard.press("Alt+ArrowLeft")  # led by keys, a digit chooses
    # a special token, which the untrained model may well have ranked second, cannot be chosen
    page.keyboard.type(page.locator("#choices button:not(.now):not([disabled]) kbd").first.inner_text())
    page.locator("#stop[disabled]").wait_for()
    assert page.locator("#text").evaluate("node => node.textContent") != written + "2"


def test_a_browser_that_knows_no_plain_text_fields_edits_too(server, open_page):
    """As Firefox before 136. There the property throws for a value it does not know."""
    page = open_page(
        server,
        """const of = (node) => node.getAttribute("contenteditable");
        Object.defineProperties(HTMLElement.prototype, {
          isContentEditable: { get() { return of(this) === "true"; } },
          contentEditable: { get() { return of(this); }, set(value) {
            if (value !== "true") throw new DOMException("unknown", "SyntaxError");
            this.setAttribute("contenteditable", value); } } });""",
    )
    page.locator("#name", has_text="wise").wait_for()
    assert page.locator("#text").get_attribute("contenteditable") == "true"


def test_it_speaks_the_browsers_language_fits_a_phone_and_talks(server, open_page):
    page = open_page(
        server,
        locale="zh-CN",
        color_scheme="dark",
        viewport={"width": 390, "height": 780},
        has_touch=True,
        is_mobile=True,
    )
    assert page.locator("#go").inner_text() == "续写" and page.locator("aside").is_hidden()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    page.locator("#settings").tap()
    page.locator("#temperature").wait_for()
    page.locator("#settings").tap()  # not covered by what it opens
    assert page.locator("aside").is_hidden()
    page.locator("[data-tab=chat]").tap()
    page.fill("#say", "宝玉")
    page.locator("#send").tap()
    page.locator(".turn.assistant").wait_for()
    page.locator("[data-tab=run]").tap()
    page.locator("#run svg polyline").first.wait_for()
    assert page.locator("#run dd").first.inner_text() in ("8", "9")
    page.locator("#language").tap()
    assert page.locator("[data-tab=run]").inner_text() == "Run"


def test_it_asks_for_a_key(out_dir, open_page):
    with running(out_dir, api_key="a-key-of-tests") as server:
        page = open_page(server)
        page.locator("#key[open]").wait_for()
        page.keyboard.press("Escape")  # no key, no question again
        page.locator(".state", has_text="asks for a key").first.wait_for()
        assert not page.locator("#key[open]").count()
        page.clock.install()
        page.click("[data-tab=run]")  # asked again
        page.locator("#key[open]").wait_for()
        page.keyboard.press("Escape")
        page.locator("#key:not([open])").wait_for(state="attached")
        page.clock.run_for(20_000)  # but not every five seconds
        page.evaluate("fetch('/run')")
        assert not page.locator("#key[open]").count()
        page.click("[data-tab=write]")
        page.focus("#text")
        page.keyboard.type("the")
        page.keyboard.press("Control+Enter")  # asked again
        page.locator("#key input").fill("a-key-of-tests")
        page.keyboard.press("Enter")
        page.locator("#name", has_text="wise").wait_for()
        page.focus("#text")
        write(page, "the")
        assert page.locator("#text .tok").count()


def test_a_browser_that_forbids_storage_is_asked_for_the_key_once(out_dir, open_page):
    forbid = "Object.defineProperty(window, 'NAME', { get() { throw new DOMException('no', 'SecurityError'); } });"
    script = "".join(forbid.replace("NAME", name) for name in ("localStorage", "sessionStorage"))
    with running(out_dir, api_key="a-key-of-tests") as server:
        page = open_page(server, script)
        page.locator("#key input").fill("a-key-of-tests")
        page.keyboard.press("Enter")
        page.locator("#name", has_text="wise").wait_for()
        page.focus("#text")
        write(page, "the")
        assert page.locator("#text .tok").count() and not page.locator("#key[open]").count()

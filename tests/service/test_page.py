"""The page in a real browser: search, play, two models, a clip, the keyboard alone; both widths, both colours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import glscl
from tests.service.conftest import Served
from tests.service.library import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no Chromium at {CHROMIUM}"),
]
WIDTHS = {"wide": (1440, 900), "phone": (390, 844)}
PLAYS = "() => document.activeElement?.player?.video && !document.activeElement.player.video.paused"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator[Callable[..., Page]]:
    """Open the page; the test fails if its console has said anything, or if another host was asked."""
    said: list[str] = []
    contexts = []

    def begin(width: str = "wide", colours: str = "light", address: str = "", **more: object) -> Page:
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        context = browser.new_context(viewport=size, color_scheme=colours, has_touch=width == "phone", **more)  # type: ignore[arg-type]
        context.set_default_timeout(120_000)  # of a busy machine
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(served.url) or said.append(f"asked {request.url}"))
        page.goto(served.url + address)
        return page

    begin.said = said  # type: ignore[attr-defined]
    yield begin
    for context in contexts:
        context.close()
    assert said == []


def search(page: Page, words: str) -> None:
    page.fill("#query", words)
    page.keyboard.press("Enter")
    page.wait_for_selector("#results:not([aria-busy]) .card")


def ids(page: Page, column: int = 0) -> list[str]:
    found: list[str] = page.locator(".column").nth(column).locator(".id").all_inner_texts()
    return found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_search_and_play(open_page: Callable[..., Page], indexes: list[str], width: str, colours: str) -> None:
    page = open_page(width, colours)
    page.wait_for_selector("#intro:not([hidden])")
    assert page.inner_text("h1") == "Search 8 videos, down to the moment"
    search(page, "a red circle rises")
    found = glscl.open_index(indexes[0], device="cpu").search("a red circle rises", k=8)
    assert ids(page) == [one.id for one in found]
    strip = page.locator(".strip svg").first.get_attribute("aria-label") or ""
    best = max(found[0].weights)
    assert f"most at 0:{found[0].times[found[0].weights.index(best)]:04.1f} ({100 * best:.0f} %)" in strip
    page.locator(".screen").first.click()
    page.wait_for_function(
        "() => document.querySelector('video').currentTime > 0 && !document.querySelector('video').paused"
    )
    page.wait_for_function("() => Number(document.querySelector('rect.line').getAttribute('x')) >= -3")
    time = page.evaluate("document.querySelector('video').currentTime")
    player = page.evaluate("(({start, end}) => [start, end])(document.querySelector('.card').player)")
    assert player[0] - 0.1 <= time <= player[1] + 0.3
    assert player[0] <= found[0].start
    assert player[1] >= found[0].end - 1e-6
    page.locator(".screen").first.click()
    page.wait_for_function("() => document.querySelector('video').paused")
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[colours]


def test_the_moment_is_played_over_and_over(open_page: Callable[..., Page]) -> None:
    page = open_page(address="?q=red")
    page.locator(".screen").first.hover()
    page.wait_for_function("() => !document.querySelector('video').paused")
    assert page.evaluate("document.querySelector('video').muted")
    went_back = """() => new Promise((done) => {
        const { video } = document.querySelector('.card').player;
        let before = video.currentTime;
        setTimeout(() => done(false), 20000);  // far more than it takes: a test that hangs says nothing
        const look = () => {
            if (video.currentTime < before - 0.2) done(true);
            before = video.currentTime;
            setTimeout(look, 20);
        };
        look();
    })"""
    assert page.evaluate(went_back)
    page.mouse.move(0, 0)
    page.wait_for_function("() => document.querySelector('video').paused")


@pytest.mark.parametrize("width", WIDTHS)
def test_two_models_side_by_side_and_back(open_page: Callable[..., Page], indexes: list[str], width: str) -> None:
    words = "a red circle rises"
    first, second = ([one.id for one in glscl.open_index(f, device="cpu").search(words, k=12)] for f in indexes)
    assert first != second
    page = open_page(width)
    search(page, words)
    assert ids(page) == first
    page.get_by_text("cross-domain", exact=True).click()
    page.wait_for_selector("[aria-label='Results of cross-domain'] .card")
    assert ids(page) == second
    page.get_by_text("Side by side").click()
    page.wait_for_selector(".two .column:nth-child(2) .card")
    assert (ids(page, 0), ids(page, 1)) == (first, second)
    assert page.locator("h2").all_inner_texts() == [
        "in-domain\nglscl, trained on toy",
        "cross-domain\nglscl, trained on toy",
    ]
    assert page.locator(".elsewhere").first.inner_text() == f"{second.index(first[0]) + 1}. in cross-domain"
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
    assert page.url.endswith("?q=a+red+circle+rises&index=*")
    page.go_back()
    page.wait_for_selector("#results:not(.two) .card")
    assert ids(page) == second
    page.reload()
    page.wait_for_selector(".card")
    assert (ids(page), page.input_value("#query")) == (second, "a red circle rises")


def test_a_clip_by_choice_and_by_dropping(open_page: Callable[..., Page], indexes: list[str]) -> None:
    page = open_page()
    entry = next(glscl.open_index(indexes[0], device="cpu").videos())
    page.set_input_files("#clip", entry.source)
    page.wait_for_selector(".card")
    assert ids(page)[0] == entry.id
    assert "like your clip" in page.inner_text("#status")
    page.get_by_role("button", name="Take away: like your clip").click()
    page.wait_for_selector("#intro:not([hidden])")
    data = list(Path(entry.source).read_bytes())
    transfer = page.evaluate_handle(
        "(data) => { const files = new DataTransfer(); files.items.add(new File([new Uint8Array(data)], 'a.mp4',"
        " { type: 'video/mp4' })); return files; }",
        data,
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    assert page.is_visible("#drop")
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    page.wait_for_selector(".card")
    assert ids(page)[0] == entry.id
    assert not page.is_visible("#drop")


def test_what_goes_wrong_is_said_in_words(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    (tmp_path / "a.mp4").write_bytes(b"no video")
    page.set_input_files("#clip", str(tmp_path / "a.mp4"))
    page.wait_for_selector("#problem:not([hidden])")
    assert page.inner_text("#problem").startswith("The clip cannot be used: undecodable")
    page.fill("#condition", "number<x")
    search_was = page.url
    page.press("#condition", "Enter")
    page.wait_for_function("() => document.querySelector('#problem').innerText.includes('no number')")
    page.get_by_role("button", name="Take away: like your clip").click()
    page.wait_for_selector("#intro:not([hidden])")
    assert page.url != search_was
    page.fill("#query", "red")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#problem').innerText.includes('no number')")
    page.get_by_role("button", name="Take away: number<x").click()
    page.wait_for_selector(".card")
    assert not page.is_visible("#problem")
    page.fill("#condition", "number>99")
    page.press("#condition", "Enter")
    page.wait_for_selector("text=No video is left")
    said = open_page.said  # type: ignore[attr-defined]
    refused = [line for line in said if "Failed to load resource" in line]  # the browser's own words about a 422
    assert len(refused) == 3
    for line in refused:
        said.remove(line)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_keyboard_alone(open_page: Callable[..., Page], width: str) -> None:
    page = open_page(width)
    page.wait_for_selector("#intro:not([hidden])")
    press = page.keyboard.press
    press("/")
    page.keyboard.type("a red circle rises")
    press("Enter")
    page.wait_for_selector("#results:not([aria-busy]) .card")
    press("ArrowDown")
    page.wait_for_function(PLAYS)  # the keyboard is there, so the moment plays, without sound
    assert page.evaluate("document.activeElement.player.video.muted")
    press("Enter")
    page.wait_for_function("() => document.activeElement.player.chosen && !document.activeElement.player.video.muted")
    press("Escape")
    page.wait_for_function("() => document.activeElement.player.video.paused")
    numbers = lambda: page.evaluate("[...document.querySelectorAll('.card')].indexOf(document.activeElement)")  # noqa: E731
    press("ArrowRight" if width == "wide" else "ArrowDown")
    assert numbers() == 1
    press("ArrowLeft" if width == "wide" else "ArrowUp")
    assert numbers() == 0
    press("ArrowDown")
    below = numbers()
    assert below > 0
    like = page.locator(".id").nth(below).inner_text()
    press("l")
    page.wait_for_selector(".chip.set")
    assert page.locator(".chip.set").inner_text() == f"like {like}"
    page.wait_for_selector("#results:not([aria-busy]) .card")
    assert like not in ids(page)
    press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    reached = set()
    for _ in range(14):
        press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.name || document.activeElement.className"
            )
        )
    assert {"choose", "theme", "index", "condition", "like"} <= {word for name in reached for word in name.split()}
    assert any("card" in name.split() for name in reached)


def test_words_that_come_before_the_server_has_answered_are_kept(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.route("**/api/indexes", lambda route: (page.wait_for_timeout(300), route.continue_()))
    page.reload(wait_until="domcontentloaded")
    page.fill("#query", "a red circle rises")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    assert page.url.endswith("?q=a+red+circle+rises")


def test_colours_follow_the_button_and_stay(open_page: Callable[..., Page]) -> None:
    page = open_page(colours="light")
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    page.click("#theme")
    assert page.get_attribute("#theme", "aria-label") == "Colours: light"
    page.click("#theme")
    assert ground() == "rgb(20, 23, 26)"
    page.reload()
    page.wait_for_selector("#intro:not([hidden])")
    assert (ground(), page.get_attribute("#theme", "aria-label")) == ("rgb(20, 23, 26)", "Colours: dark")
    page.click("#theme")
    assert ground() == "rgb(255, 255, 255)"


def test_words_of_strangers_are_only_words(open_page: Callable[..., Page]) -> None:
    page = open_page(address="?q=img")
    page.wait_for_selector(".card")
    card = page.locator(".card", has_text="onerror")
    assert card.locator(".caption").inner_text() == HOSTILE
    assert "<svg onload=alert(1)> ..%2f" in card.locator(".id").inner_text()
    assert card.locator("img, script, svg[onload]").count() == 0
    card.get_by_role("button", name="More like this").click()
    page.wait_for_selector(".chip.set")
    assert "<svg onload" in page.locator(".chip.set").inner_text()
    page.wait_for_function("() => document.title.startsWith('like <svg')")
    page.goto(re.sub(r"\?.*", "", page.url) + "?q=%3Cscript%3Ealert(1)%3C/script%3E&where=%3Cimg%20src%3Dx%3E")
    page.wait_for_selector(".chip.set, .card")
    assert page.evaluate("document.querySelectorAll('main script, main img, header ul img').length") == 0
    assert "owned" not in page.title()
    broken = page.evaluate("fetch('https://evil.example/').then(() => 'let out', () => 'kept in')")
    assert broken == "kept in"
    said = open_page.said  # type: ignore[attr-defined]
    assert any("Content Security Policy" in line for line in said)
    said.clear()

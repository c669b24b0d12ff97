"""The built book opens from a folder, without a network, for whoever reads it: `make check-book`."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from cola_lib.errors import ColaError
from cola_lib.pages import READY, find_browser

ROOT = Path(__file__).parents[1]
HTML = Path(os.environ.get("COLA_BOOK_HTML") or ROOT / "_build" / "html")
SCREENSHOTS = HTML.parent / "screenshots"
START = "index.html"
PAGES = sorted(
    name
    for name in (str(path.relative_to(HTML)) for path in HTML.rglob("*.html"))
    if not name.startswith("_static") and name != START
)
CHAPTERS = [page for page in PAGES if "/executed/" in page]


def each(names: list[str]) -> pytest.MarkDecorator:
    """A test of each page; those of one page share one visit, and so one process."""
    return pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names])


DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = pytest.mark.browser


# ------------------------------------------------------------------------------------------ the browser


def no_browser(reason: str) -> None:
    """Skip where there is no browser, and fail where there has to be one."""
    if os.environ.get("COLA_BROWSER_REQUIRED") == "1":
        pytest.fail(f"{reason}; COLA_BROWSER_REQUIRED=1 asks for one")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of this machine, or the one that Playwright installed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        try:
            found = find_browser(playwright)
        except ColaError as error:
            no_browser(str(error))
        launched = playwright.chromium.launch(executable_path=found)
        yield launched
        launched.close()


@dataclass
class Opened:
    """A page, and what happened while it loaded."""

    page: Any
    requests: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.failed.append(f"{request.url}: {request.failure}"))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on(
            "console", lambda message: self.console.append(message.text) if message.type in ("error", "warning") else 0
        )


@pytest.fixture(scope="module")
def opener(browser) -> Iterator[Callable[..., Opened]]:
    """Open a page of the book in a context of its own."""
    contexts = []

    def open_page(name: str) -> Opened:
        context = browser.new_context(viewport=DESKTOP, reduced_motion="reduce", accept_downloads=True)
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.watch()
        opened.page.goto((HTML / name).as_uri(), wait_until="load")
        if name != START:  # which leads on at once
            opened.page.evaluate(READY)
        return opened

    yield open_page
    for context in contexts:
        context.close()


def screenshot(page: Any, name: str, how: str) -> None:
    path = SCREENSHOTS / f"{name.removesuffix('.html').replace('/', '-')}-{how}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, full_page=True, animations="disabled")


def violations(page: Any, **options: Any) -> list[str]:
    """What axe-core finds that keeps somebody from reading the page."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"], "preload": False, **options}).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {node['target']} {node['html'][:160]} {node['failureSummary'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@dataclass
class Visit:
    """Everything that is asked of one page, seen in one visit."""

    requests: list[str]
    failed: list[str]
    console: list[str]
    violations: list[str]
    dark_violations: list[str]
    too_wide: list[str]
    without_alt: list[str]
    markup: list[str]


TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  return [...document.querySelectorAll("main *")]
    .filter((e) => e.getBoundingClientRect().right > width + 1)
    .map((e) => `${e.tagName}.${e.className} ${Math.round(e.getBoundingClientRect().right)}`)
    .slice(0, 8).concat(`page is ${document.documentElement.scrollWidth} wide`);
}"""
THEME = """async (mode) => {
  for (const name of ["mode", "theme"]) document.documentElement.dataset[name] = mode;
  await new Promise((done) => setTimeout(done, 300));
}"""
WITHOUT_ALT = """() => [...document.querySelectorAll("main img")]
  .filter((img) => !(img.alt || "").trim() || /^(?:\\.\\.\\/|_images|data:|.*\\.(?:png|svg)$)/.test(img.alt))
  .map((img) => img.outerHTML.slice(0, 160))"""

MARKUP = r"""() => [...document.querySelectorAll("main p, main li, main dd, main td, main figcaption")]
  .map((block) => {
    const text = block.cloneNode(true);
    text.querySelectorAll("code, pre, script, .math, mjx-container").forEach((part) => part.remove());
    return text.textContent;
  })
  .filter((t) => /`[^`]+`|(^|\s)\*{1,2}[A-Za-z][^*\n]*[A-Za-z]\*{1,2}(?=[\s.,:;)]|$)|\{[a-z]+(:[a-z]+)?\}/.test(t))
  .map((text) => text.slice(0, 160))"""


@pytest.fixture(scope="module")
def visit(opener) -> Callable[[str], Visit]:
    """Visit a page once: on a desk, in the dark, and on a phone."""

    @cache
    def visited(name: str) -> Visit:
        opened = opener(name)
        page = opened.page
        screenshot(page, name, "light")
        # axe looks at style sheets by requests of its own
        seen = {"requests": [*opened.requests], "failed": [*opened.failed], "console": [*opened.console]}
        found = {"violations": violations(page), "without_alt": page.evaluate(WITHOUT_ALT)}
        found["markup"] = page.evaluate(MARKUP)
        page.evaluate(THEME, "dark")
        screenshot(page, name, "dark")
        found["dark_violations"] = violations(page, runOnly=["color-contrast"])
        page.evaluate(THEME, "light")
        page.set_viewport_size(PHONE)
        found["too_wide"] = page.evaluate(TOO_WIDE)
        screenshot(page, name, "phone")
        page.context.close()
        return Visit(**seen, **found)

    return visited


def test_the_book_is_built():
    assert len(PAGES) > 10, f"no book in {HTML}; run `make book` first, or name its folder in COLA_BOOK_HTML"


def test_the_folder_opens_at_the_first_page(opener):
    opened = opener(START)
    opened.page.wait_for_url("**/book/executed/00_choose.html")
    assert opened.page.locator("h1:visible").count() == 1


@each(PAGES)
def test_page_loads_from_its_folder_alone(visit, name):
    visited = visit(name)
    assert not [url for url in visited.requests if urlsplit(url).scheme not in ("file", "data", "blob")]
    assert not visited.failed
    assert not visited.console


@each(PAGES)
def test_nothing_bars_a_reader(visit, name):
    assert not visit(name).violations


@each(PAGES)
def test_text_can_be_read_in_the_dark(visit, name):
    assert not visit(name).dark_violations


@each(PAGES)
def test_page_fits_a_phone(visit, name):
    assert not visit(name).too_wide


@each(PAGES)
def test_pictures_say_in_words_what_they_show(visit, name):
    assert not visit(name).without_alt


@each(PAGES)
def test_nobody_reads_markup(visit, name):
    """A text that is glued in is shown as it is, backticks and all."""
    assert not visit(name).markup


# ---------------------------------------------------------------------------------------------- links


class Anchors(HTMLParser):
    """Targets and links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if name in given and tag != "base"]


@cache
def anchors(path: Path) -> Anchors:
    return Anchors(path)


@each(PAGES)
def test_links_lead_somewhere(name):
    here = HTML / name
    dead = []
    for link in anchors(here).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            assert parts.scheme in ("https", "http", "mailto", "data", "javascript"), link
            continue
        target = (here.parent / unquote(parts.path)).resolve() if parts.path else here.resolve()
        if not target.exists():
            dead.append(link)
        elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in anchors(target).ids:
            dead.append(link)
    assert not dead


# ---------------------------------------------------------------------------------------- what one does

EXPLORE = "book/executed/13_explore.html"
MAP = "book/executed/08_cola.html"
MARKS = ".cola-picture .scatterlayer .point"


def test_search_finds_a_term(opener):
    opened = opener("book/intro.html")
    page = opened.page
    page.keyboard.press("Control+k")
    page.keyboard.type("SparseGPT")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=SparseGPT")
    page.locator("#search-results li a").first.wait_for()
    page.get_by_text("Search finished").wait_for()
    first = page.locator("#search-results li a").first.get_attribute("href")
    page.goto(urljoin(page.url, first))
    assert "sparsegpt" in page.locator("main").inner_text().lower()
    assert not opened.console and not opened.failed


@each(CHAPTERS)
def test_hidden_solutions_open(opener, name):
    page = opener(name).page
    hidden = page.locator("details.hide")
    assert hidden.count() or page.locator(".toggle-hidden").count(), "a chapter has an exercise with a hidden solution"
    first = hidden.last
    assert not first.evaluate("one => one.open")
    first.locator("summary").press("Enter")
    assert first.evaluate("one => one.open") and first.locator("pre").first.is_visible()
    page.context.close()


@each(CHAPTERS)
def test_every_chapter_says_how_to_rerun_it_and_copies_that(opener, name):
    page = opener(name).page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = page.locator("#rerun-this-page .highlight-bash")
    assert block.count() == 1
    block.hover()
    block.locator("button.copybtn").click()
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied.strip() == block.locator("pre").inner_text().strip()
    assert copied.startswith(f"papermill notebooks/{Path(name).stem}.ipynb out.ipynb")
    said = page.locator("#rerun-this-page table").inner_text()
    assert "torch" in said and "CPU cores" in said and " s, on 20" in said
    page.context.close()


def test_interactive_figure_answers_choices_and_clicks(opener, tmp_path):
    page = opener(EXPLORE).page
    figure = page.locator("#results")
    before = figure.locator("tbody tr").count()
    assert before == page.locator(MARKS).count() > 3
    method = figure.get_by_label("Method", exact=True)
    chosen = method.locator("option").nth(1).inner_text()
    method.select_option(chosen)
    figure.get_by_text("The same as a table").click()
    rows = figure.locator(".cola-table tbody tr")
    assert 0 < rows.count() < before
    assert {row.locator("td").nth(4).inner_text() for row in rows.all()} == {chosen}
    assert page.locator(MARKS).count() == rows.count()

    page.locator(MARKS).first.click(force=True)
    behind = figure.locator(".cola-behind")
    assert behind.is_visible() and "95 % from" in behind.inner_text()
    assert behind.locator("td").nth(1).inner_text() in figure.locator(".cola-table").inner_text()
    with page.expect_download() as download:
        figure.get_by_role("button", name="Save the table as CSV").click()
    download.value.save_as(tmp_path / "saved.csv")
    with open(tmp_path / "saved.csv", newline="") as file:
        saved = list(csv.DictReader(file))
    assert len(saved) == rows.count() and {row["method"] for row in saved} == {chosen}
    assert all(float(row["95 % from"]) <= float(row["value"]) <= float(row["95 % to"]) for row in saved)


def test_interactive_figure_is_read_with_a_keyboard(opener):
    page = opener(EXPLORE).page
    page.locator("#results-capability").focus()
    chosen = page.locator("#results-capability").input_value()
    page.keyboard.press("ArrowDown")
    assert page.locator("#results-capability").input_value() != chosen
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.className").startswith("cola-picture"):
            break
    said = page.locator("#results .cola-said")
    page.keyboard.press("ArrowDown")
    first = said.inner_text()
    assert first.startswith("1 of ") and "95 % from" in first
    page.keyboard.press("ArrowDown")
    assert said.inner_text().startswith("2 of ") and page.locator(".hoverlayer .hovertext").count() == 1
    page.keyboard.press("Enter")
    assert page.locator("#results .cola-behind").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#results .cola-behind").is_visible()


def test_what_opens_in_the_figure_bars_nobody(opener):
    page = opener(EXPLORE).page
    page.get_by_text("The same as a table").click()
    page.locator(MARKS).first.click(force=True)
    assert not violations(page)


def test_map_tells_the_texts_of_its_marks(opener):
    page = opener(MAP).page
    figure = page.locator("#activation-map")
    figure.get_by_label("Picked", exact=True).select_option("yes")
    picked = figure.locator("tbody tr").count()
    assert 0 < picked == figure.locator(".scatterlayer .point").count()
    figure.locator(".cola-picture").press("Home")
    text = figure.locator(".cola-said").inner_text()
    assert "picked: yes" in text and len(text.partition("text: ")[2]) > 20


def test_one_plotly_for_all_pages():
    assert [path.relative_to(HTML) for path in HTML.rglob("plotly*.js")] == [Path("_static/plotly.min.js")]
    using = [name for name in PAGES if "plotly.min.js" in (HTML / name).read_text()]
    assert using == [MAP, EXPLORE]


def test_launch_buttons_open_notebooks_of_the_repository():
    """Where the book has a published repository; without one it has no such buttons."""
    for name in CHAPTERS:
        for link in anchors(HTML / name).links:
            if urlsplit(link).netloc in ("mybinder.org", "colab.research.google.com"):
                path = unquote(link).partition("/main")[2].rpartition("notebooks/")[2]
                assert (ROOT / "notebooks" / path).is_file(), link

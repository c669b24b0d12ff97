"""The built book opens from a folder, without a network, for whoever reads it: `make check-book`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
HTML = Path(os.environ.get("COLA_BOOK_HTML") or ROOT / "_build" / "html")
SCREENSHOTS = HTML.parent / "screenshots"
PAGES = sorted(
    str(path.relative_to(HTML)) for path in HTML.rglob("*.html") if path.relative_to(HTML).parts[0] != "_static"
)
CHAPTERS = [page for page in PAGES if "/executed/" in page]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SETTLED = "() => Promise.all([document.fonts.ready, window.MathJax?.startup?.promise, window.colaFigures])"
"""What a page does by itself when it is opened: text, formulas, figures."""

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
        found = next(filter(None, map(shutil.which, BROWSERS)), playwright.chromium.executable_path)
        if not Path(found).exists():
            no_browser(f"no {', '.join(BROWSERS)}, and `playwright install chromium` was not run")
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

    def open_page(name: str, *, viewport: dict[str, int] = DESKTOP, dark: bool = False) -> Opened:
        context = browser.new_context(viewport=viewport, reduced_motion="reduce", accept_downloads=True)
        contexts.append(context)
        mode = "dark" if dark else "light"
        context.add_init_script(f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}')")
        opened = Opened(context.new_page())
        opened.watch()
        opened.page.goto((HTML / name).as_uri(), wait_until="load")
        opened.page.evaluate(SETTLED)
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

    found = Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
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


TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  return [...document.querySelectorAll("main *")]
    .filter((e) => e.getBoundingClientRect().right > width + 1)
    .map((e) => `${e.tagName}.${e.className} ${Math.round(e.getBoundingClientRect().right)}`)
    .slice(0, 8).concat(`page is ${document.documentElement.scrollWidth} wide`);
}"""
WITHOUT_ALT = """() => [...document.querySelectorAll("main img")]
  .filter((img) => !(img.alt || "").trim() || /^(?:\\.\\.\\/|_images|data:|.*\\.(?:png|svg)$)/.test(img.alt))
  .map((img) => img.outerHTML.slice(0, 160))"""


@pytest.fixture(scope="module")
def visit(opener) -> Callable[[str], Visit]:
    """Visit a page once: on a desk, in the dark, and on a phone."""

    @cache
    def visited(name: str) -> Visit:
        light = opener(name)
        screenshot(light.page, name, "light")
        dark = opener(name, dark=True)
        screenshot(dark.page, name, "dark")
        phone = opener(name, viewport=PHONE)
        screenshot(phone.page, name, "phone")
        found = Visit(
            requests=light.requests,
            failed=light.failed,
            console=light.console,
            violations=violations(light.page),
            dark_violations=violations(dark.page, runOnly=["color-contrast"]),
            too_wide=phone.page.evaluate(TOO_WIDE),
            without_alt=light.page.evaluate(WITHOUT_ALT),
        )
        for opened in (light, dark, phone):
            opened.page.context.close()
        return found

    return visited


def test_the_book_is_built():
    assert len(PAGES) > 10, f"no book in {HTML}; run `make book` first, or name its folder in COLA_BOOK_HTML"


@pytest.mark.parametrize("name", PAGES)
def test_page_loads_from_its_folder_alone(visit, name):
    visited = visit(name)
    assert not [url for url in visited.requests if urlsplit(url).scheme not in ("file", "data", "blob")]
    assert not visited.failed
    assert not visited.console


@pytest.mark.parametrize("name", PAGES)
def test_nothing_bars_a_reader(visit, name):
    assert not visit(name).violations


@pytest.mark.parametrize("name", PAGES)
def test_text_can_be_read_in_the_dark(visit, name):
    assert not visit(name).dark_violations


@pytest.mark.parametrize("name", PAGES)
def test_page_fits_a_phone(visit, name):
    assert not visit(name).too_wide


@pytest.mark.parametrize("name", PAGES)
def test_pictures_say_in_words_what_they_show(visit, name):
    assert not visit(name).without_alt


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


@pytest.mark.parametrize("name", PAGES)
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

"""What the pages of the book need beyond executed notebooks: a Sphinx extension, named in ``_config.yml``, and print.

It puts the scripts of interactive figures beside the pages, once for all of them, loads them on pages that have such a
figure, and lets launch buttons open the source notebook, which is in the repository, and not the executed one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_lib.errors import ColaError
from cola_lib.figures.interactive import CLASS, SCRIPTS, STYLES, read_asset

if TYPE_CHECKING:
    from playwright.sync_api import Playwright
    from sphinx.application import Sphinx
    from sphinx.config import Config

EXECUTED, SOURCES = "book/executed/", "notebooks/"
"""Folders of the pages made of notebooks, and of the notebooks that they were made of."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Commands that may be a Chromium of this machine."""

READY = "() => Promise.all([document.fonts.ready, window.MathJax?.startup?.promise, window.colaFigures])"
"""What a page does by itself when it is opened, as JavaScript: text, formulas, figures."""

FOOT = """<div style="font-size:8px;width:100%;text-align:center"><span class="pageNumber"></span></div>"""


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("config-inited", find_repository, priority=100)
    app.connect("build-finished", write_assets)
    # after the theme has put its buttons there
    app.connect("html-page-context", complete_page, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def find_repository(_: Sphinx, config: Config) -> None:
    """Take launch buttons off a book that has no published repository."""
    options = config.html_theme_options
    if not options.get("repository_url"):
        server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
        options["repository_url"] = f"{server}/{name}" if server and name else ""
    if not options["repository_url"]:
        options["launch_buttons"] = {}


def write_assets(app: Sphinx, exception: Exception | None) -> None:
    """Write the scripts and styles of interactive figures into the built book."""
    if exception is None and app.builder.format == "html":
        for name in (*SCRIPTS, *STYLES):
            (Path(app.outdir) / "_static" / name).write_text(read_asset(name), encoding="utf-8")


def complete_page(app: Sphinx, page: str, _: str, context: dict[str, Any], __: Any) -> None:
    """Load scripts where there is a figure, point launch buttons at source notebooks, and mend roles."""
    body = context.get("body", "")
    # docutils puts bibliography entries into a list that, since ARIA 1.3, may hold list items only
    context["body"] = body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    if f'class="{CLASS}"' in body:
        for name in STYLES:
            app.add_css_file(name)
        for name in SCRIPTS:
            app.add_js_file(name, loading_method="defer")
    for group in context.get("header_buttons", ()):
        if group.get("label") == "launch-buttons":
            for button in group["buttons"]:
                button["url"] = button["url"].replace(EXECUTED, SOURCES)


def find_browser(playwright: Playwright) -> str:
    """Path of this machine's Chromium, or else of the one that Playwright installed."""
    found = next(filter(None, map(shutil.which, BROWSERS)), playwright.chromium.executable_path)
    if not Path(found).exists():
        raise ColaError(f"there is none of {', '.join(BROWSERS)}; playwright install chromium gets one")
    return found


def print_book(page: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Print the book that was built as a single page, with an outline, links and page numbers."""
    page = Path(page).resolve()
    if not page.is_file():
        raise ColaError(f"{page} is not there; make pdf builds it first")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise ColaError("printing needs Playwright: pip install playwright") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(playwright))
        opened = browser.new_page()
        opened.set_default_timeout(0)  # a whole book
        opened.goto(page.as_uri())
        opened.evaluate(READY)
        # what is hidden behind a click cannot be clicked on paper
        opened.evaluate(
            "() => document.querySelectorAll('main details:not(.cola-table)').forEach((one) => { one.open = true; })"
        )
        opened.pdf(
            path=Path(out),
            format="A4",
            margin={"top": "18mm", "bottom": "18mm", "left": "15mm", "right": "15mm"},
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOT,
            outline=True,
            tagged=True,
        )
        browser.close()

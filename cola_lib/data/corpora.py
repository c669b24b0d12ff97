"""The packaged calibration texts, cut into documents.

C4, Wikipedia and the stories come with marks between documents. The others do not. Code and technical
text are cut at blank lines, and neighbours share a split key, because two pieces of one article must
not end up on both sides of the split. The multilingual text mostly has one document a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cola_lib.data import packaged
from cola_lib.data.languages import main_script, script_language, stored_languages
from cola_lib.data.sample import Sample, content_hash

MIN_CHARS = 200
"""Documents below this are stubs (redirects, empty pages, lone headings) and are left out."""

STRETCH = 4
"""Consecutive documents of an unmarked text that share a split key."""

MULTILINGUAL_LANGUAGES = tuple("af ar da de el en es fr he it ja lt mk nl no pl pt ru sv tr zh".split())
"""Languages (ISO 639-1) of the multilingual text; half of them have a handful of documents or fewer."""

_ARTICLE = re.compile(r'<doc id="[^"]*" url="[^"]*" title="[^"]*">\n(.*?)</doc>', re.DOTALL)
_BLOCK = re.compile(r"(.+?)(\n(?:[ \t]*\n)+|\Z)", re.DOTALL)


def c4() -> list[Sample]:
    """Read web pages from C4, one a line."""
    return _samples(packaged.corpus("c4").split("\n"), source="c4", domain="web", language="en")


def wikipedia() -> list[Sample]:
    """Read English Wikipedia articles, title first; stubs are left out."""
    articles = (match[1] for match in _ARTICLE.finditer(packaged.corpus("wiki")))
    return _samples(articles, source="wikipedia", domain="encyclopedia", language="en")


def stories() -> list[Sample]:
    """Read short synthetic children's stories (TinyStories)."""
    texts = packaged.corpus("tiny").split("<|endoftext|>")
    return _samples(texts, source="stories", domain="fiction", language="en")


def technical() -> list[Sample]:
    """Read articles, manuals and licences, cut at blank lines."""
    pieces = cut(packaged.corpus("technical"), least=2000, most=4000)
    return _neighbours(_samples(pieces, source="technical", domain="technical", language="en"))


def code() -> list[Sample]:
    """Read source code and its documentation in many programming languages, cut at blank lines."""
    pieces = cut(packaged.corpus("code"), least=2000, most=4000)
    return _neighbours(_samples(pieces, source="code", domain="code"))


def multilingual() -> list[Sample]:
    """Read text in 21 natural languages, cut at line ends and where the script changes.

    Notes
    -----
    Much of it is one dozen of texts in several languages, and a long text is several documents. No 13
    words are on both sides of the split, but pieces of one article are, and translations of one text: what a
    language gains from calibration on itself is partly what a subject gains.
    """
    pieces = cut_by_script(packaged.corpus("multilingual"), least=600)
    stored = stored_languages()
    return [
        replace(sample, language=script_language(sample.text) or stored.get(sample.id))
        for sample in _samples(pieces, source="multilingual", domain="multilingual")
    ]


def _samples(texts: Iterable[str], *, source: str, domain: str, language: str | None = None) -> list[Sample]:
    found = []
    for text in texts:
        text = text.strip("\n").rstrip()
        if len(text) < MIN_CHARS:
            continue
        found.append(Sample(content_hash(text), text, source, domain=domain, language=language))
    return found


def _neighbours(samples: list[Sample]) -> list[Sample]:
    """Give each run of :data:`STRETCH` documents the split key of its first."""
    return [replace(sample, split_key=samples[i - i % STRETCH].id) for i, sample in enumerate(samples)]


def cut(text: str, *, least: int, most: int) -> list[str]:
    """Cut running text into documents at blank lines."""
    documents, current = [], ""
    for block, gap in _blocks(text, most):
        if current and len(current) + len(block) > most:
            documents.append(current)
            current = ""
        current += block + gap
        if len(current) >= least and gap.count("\n") > 2:
            documents.append(current)
            current = ""
    return [document.strip("\n") for document in [*documents, current] if document.strip()]


def _blocks(text: str, most: int) -> Iterator[tuple[str, str]]:
    """Yield paragraphs with the gap after each; one that is too long is cut at line ends."""
    for match in _BLOCK.finditer(text):
        block, gap = match.groups()
        while len(block) > most and 0 < (end := block.rfind("\n", 1, most) + 1):
            yield block[:end], ""
            block = block[end:]
        yield block, gap


def cut_by_script(text: str, *, least: int) -> list[str]:
    """Cut multilingual text into documents, at line ends."""
    documents: list[str] = []
    current, script = "", None
    for line in text.split("\n"):
        its = main_script(line)
        if current and (len(current) >= least or (its and script and its != script)):
            documents.append(current)
            current, script = "", None
        current += line + "\n"
        script = script or its
    return [document.strip("\n") for document in [*documents, current] if document.strip()]

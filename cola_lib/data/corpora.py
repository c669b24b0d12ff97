"""The packaged calibration texts, cut into documents.

C4, Wikipedia and the stories come with marks between documents. The others do not. Code and technical
text are cut at blank lines, and neighbours share a split key, because two pieces of one article must
not end up on both sides of the split. The multilingual text mostly has one document a line.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cola_lib.data import packaged
from cola_lib.data.sample import Sample, content_hash

MIN_CHARS = 200
"""Documents below this are stubs (redirects, empty pages, lone headings) and are left out."""

STRETCH = 4
"""Consecutive documents of an unmarked text that share a split key."""

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
    """Read text in some 25 natural languages, cut at line ends and where the script changes."""
    pieces = cut_by_script(packaged.corpus("multilingual"), least=600)
    return _samples(pieces, source="multilingual", domain="multilingual", detect_language=True)


def _samples(
    texts: Iterable[str],
    *,
    source: str,
    domain: str,
    language: str | None = None,
    detect_language: bool = False,
) -> list[Sample]:
    found = []
    for text in texts:
        text = text.strip("\n").rstrip()
        if len(text) < MIN_CHARS:
            continue
        known = script_language(text) if detect_language else language
        found.append(Sample(content_hash(text), text, source, domain=domain, language=known))
    return found


def _neighbours(samples: list[Sample]) -> list[Sample]:
    """Give each run of :data:`STRETCH` documents the split key of its first."""
    return [replace(sample, split_key=samples[i - i % STRETCH].id) for i, sample in enumerate(samples)]


def cut(text: str, *, least: int, most: int) -> list[str]:
    """Cut running text into documents at blank lines.

    Parameters
    ----------
    text : str
        Text without marks between documents.
    least : int
        Characters from which on a document ends at the next gap of two or more blank lines.
    most : int
        Characters that a document does not exceed, unless a single line does.

    Returns
    -------
    list of str
        Together they are ``text`` without the white space at the cuts.
    """
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
    """Cut multilingual text into documents, at line ends.

    Parameters
    ----------
    text : str
        Lines in many languages.
    least : int
        Characters from which on a document ends with its line. It ends earlier where the next line
        is in another script.

    Returns
    -------
    list of str
        Documents, each in one script as far as lines are.
    """
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


_SCRIPTS = {
    "CJK": "Han",
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "HANGUL": "Hangul",
    "ARABIC": "Arabic",
    "CYRILLIC": "Cyrillic",
    "GREEK": "Greek",
    "HEBREW": "Hebrew",
    "LATIN": "Latin",
    "THAI": "Thai",
    "DEVANAGARI": "Devanagari",
}

_LANGUAGE_OF_SCRIPT = {"Greek": "el", "Hangul": "ko", "Han": "zh", "Hebrew": "he", "Kana": "ja", "Thai": "th"}
"""Scripts that one language of the packaged text uses; Latin, Cyrillic and Arabic serve many."""


def _scripts(text: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for char in text:
        if char.isalpha():
            counts[_SCRIPTS.get(unicodedata.name(char, "?").split(" ")[0].split("-")[0], "other")] += 1
    return counts


def main_script(text: str) -> str | None:
    """Name the script of most letters, or None without a clear majority.

    Kana decide over Han characters: Japanese mixes both, Chinese does not.
    """
    counts = _scripts(text)
    total = counts.total()
    if total and counts["Kana"] * 20 >= total and counts["Kana"] + counts["Han"] > 0.6 * total:
        return "Kana"
    script, count = max(counts.items(), key=lambda pair: pair[1], default=("", 0))
    return script if count > 0.6 * total else None


def script_language(text: str) -> str | None:
    """Name the language (ISO 639-1) of a text whose script leaves no choice, otherwise None."""
    return _LANGUAGE_OF_SCRIPT.get(main_script(text) or "")

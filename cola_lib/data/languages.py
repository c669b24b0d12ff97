"""The language of a text: from its script where that leaves no choice, from a stored table elsewhere.

Greek letters mean Greek; Latin letters mean one of many languages. For documents of the packaged
multilingual text in such a script, a detector was run once and its findings were committed, sample id
and code, in ``multilingual_languages.txt``: who reads the text needs no detector, and its language does not
change with one. ``python -m cola_lib.data.languages`` writes the table anew, and a test compares the two.

The detector is py3langid (Lui & Baldwin, "langid.py: An Off-the-shelf Language Identification Tool", ACL
2012; fork by A. Barbaresi). It was chosen over lingua 2.1.1: both name the right language for all 26
documents whose script decides, and the same one for all others but eight, which are Chinese in
Latin letters and which neither knows. But py3langid 0.4.0 is the newer (2026), says when it is unsure, and is one
wheel of 4.6 MB for every machine, where lingua is one of 96 MB for each platform and Python.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable
from importlib import resources

from cola_lib.data.sample import Sample

PARTS = 3
"""Parts of a document that must be in one language, or the document is in none."""

MIN_CONFIDENCE = 0.5
"""Probability from which on a part's language is taken as known: more than all others together."""

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
    """Name the script of most letters, or None without a clear majority."""
    counts = _scripts(text)
    total = counts.total()
    if total and counts["Kana"] * 20 >= total and counts["Kana"] + counts["Han"] > 0.6 * total:
        return "Kana"
    script, count = max(counts.items(), key=lambda pair: pair[1], default=("", 0))
    return script if count > 0.6 * total else None


def script_language(text: str) -> str | None:
    """Name the language (ISO 639-1) of a text whose script leaves no choice, otherwise None."""
    return _LANGUAGE_OF_SCRIPT.get(main_script(text) or "")


@functools.cache
def stored_languages() -> dict[str, str]:
    """Read the languages that were detected in the packaged multilingual text."""
    text = resources.files("cola_lib.data").joinpath("multilingual_languages.txt").read_text(encoding="utf-8")
    return dict(line.split() for line in text.splitlines() if not line.startswith("#"))


def detect_languages(texts: Iterable[str]) -> list[str | None]:
    """Detect the one language that each text is in; needs py3langid, of the extra ``dev``."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=MIN_CONFIDENCE)
    found: list[str | None] = []
    for text in texts:
        length = max(1, -(-len(text) // PARTS))
        codes = {identifier.classify(text[i : i + length])[0] for i in range(0, len(text), length)}
        code = codes.pop() if len(codes) == 1 else "und"
        found.append(code if len(code) == 2 else None)
    return found


def language_report(samples: Iterable[Sample]) -> str:
    """Detect the languages of samples whose script leaves a choice."""
    samples = [sample for sample in samples if script_language(sample.text) is None]
    codes = detect_languages(sample.text for sample in samples)
    lines = sorted(f"{sample.id} {code}" for sample, code in zip(samples, codes, strict=True) if code)
    return "\n".join(["# sample id and detected language of the multilingual text", *lines]) + "\n"


if __name__ == "__main__":
    import sys

    from cola_lib.data.corpora import multilingual

    sys.stdout.write(language_report(multilingual()))

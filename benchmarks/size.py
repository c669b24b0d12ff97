"""Lines of the library and its tests by room, split into code, docstrings and comments: ``make size``."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = ("code", "docstring", "comment", "blank")


def kinds_of(source: str) -> Counter[str]:
    """Count the lines of a module; a line with code and a comment is code."""
    documented = set(docstring_lines(ast.parse(source)))
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    coded, commented = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            commented.add(token.start[0])
        elif token.type not in skipped:
            coded |= set(range(token.start[0], token.end[0] + 1))
    found = Counter()
    for number in range(1, len(source.splitlines()) + 1):
        if number in documented:
            found["docstring"] += 1
        elif number in coded:
            found["code"] += 1
        else:
            found["comment" if number in commented else "blank"] += 1
    return found


def docstring_lines(tree: ast.Module) -> Iterator[int]:
    """Numbers of the lines that strings without a name take: docstrings, and those below a constant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from range(node.lineno, node.end_lineno + 1)


def rooms(folder: str) -> dict[str, Counter[str]]:
    """Count by the first folder, or by module at the top."""
    found: dict[str, Counter[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        room = path.relative_to(ROOT / folder).parts[0]
        found.setdefault(room, Counter())
        found[room] += kinds_of(path.read_text(encoding="utf-8")) + Counter(files=1)
    return found


def main() -> None:
    head = ("", "files", "lines", *KINDS)
    for folder in ("cola_lib", "tests"):
        counted = rooms(folder)
        whole = sum(counted.values(), Counter())
        shown = counted if folder == "cola_lib" else {}
        for name, row in {**shown, f"{folder} in all": whole}.items():
            lines = sum(row[kind] for kind in KINDS)
            cells = [name, row["files"], lines, *(row[kind] for kind in KINDS)]
            if head:
                print(f"{head[0]:24}" + "".join(f"{cell:>11}" for cell in head[1:]))
                head = ()
            print(f"{cells[0]:24}" + "".join(f"{cell:>11,}" for cell in cells[1:]))


if __name__ == "__main__":
    sys.exit(main())

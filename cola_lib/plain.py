"""Plain values, as users write them: read from YAML, and of the kinds that a dataclass declares."""

from __future__ import annotations

import reprlib
import sys
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    import yaml


def read_yaml(text: str) -> Any:
    """Read YAML.

    Notes
    -----
    PyYAML's own error covers its grammar. A value that its tag does not fit (``!!int ''``, ``2001-99-99``) raises what
    Python raises on it, and brackets without end exhaust the stack.
    """
    import yaml

    try:
        return load_yaml(text, yaml.SafeLoader)
    except (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{reprlib.repr(text.strip())} is not YAML: {error}") from error


LARGEST_YAML = 100_000
"""Values that a document may have once its aliases are written out."""


def load_yaml(text: str, loader: type[yaml.SafeLoader]) -> Any:
    """Load YAML, refusing aliases of aliases that stand for more than memory holds."""
    one = loader(text)
    try:
        node = one.get_single_node()
        if node is None:
            return None
        sizes: dict[int, int] = {}

        def size(node: yaml.Node) -> int:
            if id(node) not in sizes:
                sizes[id(node)] = 1  # an alias of what it stands in is met again before its size is known
                parts = node.value if isinstance(node.value, list) else []
                each = (part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,)))
                sizes[id(node)] = 1 + sum(map(size, each))
            return sizes[id(node)]

        if size(node) > LARGEST_YAML:
            raise ValueError(f"its aliases stand for more than {LARGEST_YAML:,} values; write them out, or fewer")
        return one.construct_document(node)
    finally:
        one.dispose()


def misfit(cls: type, given: Mapping[str, Any]) -> str | None:
    """Name the first value that is not of its field's kind."""
    hints = get_type_hints(cls)
    for name, value in given.items():
        if not _fits(value, hints[name]):
            kind = getattr(hints[name], "__name__", None) if isinstance(hints[name], type) else None
            wanted = kind or str(hints[name]).replace("typing.", "")
            return f"{name} is {reprlib.repr(value)}, a {type(value).__name__}, and should be {wanted}"
    return None


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in args)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in args)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if hint is None:
        return value is None
    if isinstance(value, bool):  # which Python counts as a number
        return hint is bool
    if hint is float:
        # not infinite, not NaN, and no whole number that is larger than both
        return isinstance(value, int | float) and -sys.float_info.max <= value <= sys.float_info.max
    kind = origin or hint
    return isinstance(value, kind) if isinstance(kind, type) else True

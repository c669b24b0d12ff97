"""Named things and their revisions: sources, methods, strategies, claims, architectures, and plugins that add some."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from cola_lib.errors import ColaError, SpecError, UnknownNameError
from cola_lib.plain import misfit

T = TypeVar("T")
Entry = TypeVar("Entry")

REVISIONS: dict[str, int] = {
    # what a calibration set consists of
    "split": 1,
    "tokenize": 1,
    # what is read from it
    "walk": 1,
    "activations": 1,
    # how a set is chosen
    "curate": 1,
    # what is done with that, beside the methods, which carry their own
    "input_rounding": 1,
    "auto_damp": 1,
    "finetune": 2,
    # what is measured afterwards
    "suite": 1,
    "likelihood": 2,
    "harness": 1,
}
"""Revision of each algorithm whose numbers reach a result; methods are added when they are registered.

A stored result is found by the revisions of the algorithms that shaped it. Raise one when its numbers change, and only
then: every stored cell that used it is computed again. A refactoring or a new release leaves them alone.
"""


def revisions(*names: str) -> dict[str, int]:
    """Revisions of the named algorithms, for a fingerprint; one without a revision must not shape a stored number."""
    return {name: REVISIONS[name] for name in sorted(names)}


def outdated(facts: Mapping[str, Any]) -> list[str]:
    """Algorithms recorded, at any depth, with a lower revision than today's; unknown ones pass."""

    def recorded(part: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
        for name, value in part.items():
            if isinstance(value, Mapping):
                yield from recorded(value)
            elif isinstance(value, int) and name in REVISIONS:
                yield name, value

    return sorted({name for name, number in recorded(facts) if number < REVISIONS[name]})


class Registry(Mapping[str, T]):
    """Things of one kind by name.

    A mapping that explains a missing name by the nearest ones. A name that is not there makes it load installed
    plugins first: packages with an entry point in the group ``cola_lib``.

    Parameters
    ----------
    kind : str
        What it holds, in the singular, for messages.
    named : str
        Attribute of an entry that is its name.
    revised : bool
        Record each entry's ``revision`` in :data:`REVISIONS`, because stored results are found by it.
    hint : str
        A sentence on how to add or reach what is missing, for messages.
    check : callable, optional
        Called with each new entry; raises if it is not sound.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from cola_lib.registry import Registry
    >>> colours = Registry("colour")
    >>> @colours.register
    ... @dataclass(frozen=True)
    ... class Red:
    ...     name = "red"
    ...     shade: float = 0.5
    >>> list(colours), colours.make("red", shade=0.7)
    (['red'], Red(shade=0.7))
    >>> colours["rad"]
    Traceback (most recent call last):
        ...
    cola_lib.errors.UnknownNameError: unknown colour 'rad'; nearest: red
    """

    def __init__(
        self,
        kind: str,
        *,
        named: str = "name",
        revised: bool = False,
        hint: str = "",
        check: Callable[[T], None] | None = None,
    ) -> None:
        self.kind, self.named, self.revised, self.hint, self.check = kind, named, revised, hint, check
        self._entries: dict[str, T] = {}

    def register(self, entry: Entry) -> Entry:
        """Add an entry under its own name; also a class decorator.

        Parameters
        ----------
        entry : object
            With the attribute that names it.

        Returns
        -------
        object
            The entry, as it is.

        Raises
        ------
        SpecError
            If the name is taken, or the entry is not sound.
        """
        name = getattr(entry, self.named)
        if name in self._entries:
            raise SpecError(f"there is a {self.kind} named {name!r} already; take another name")
        if self.check is not None:
            self.check(entry)  # type: ignore[arg-type]  # what a subclass or instance of T decorates
        self._entries[name] = entry  # type: ignore[assignment]
        if self.revised:
            REVISIONS[name] = getattr(entry, "revision", 1)
        return entry

    def make(self, name: str, /, **options: Any) -> Any:
        """Make an instance of the dataclass with this name.

        Parameters
        ----------
        name : str
            Name of an entry.
        **options
            Its fields.

        Returns
        -------
        object
            The instance.

        Raises
        ------
        UnknownNameError
            If there is no such entry, or it has no such option.
        SpecError
            If an option is of the wrong type, or out of range.
        """
        cls: Any = self[name]
        known = [option.name for option in dataclasses.fields(cls) if option.init]
        for option in options:
            if option not in known:
                raise UnknownNameError(f"option of {name}", option, known)
        if wrong := misfit(cls, options):
            raise SpecError(f"{name}: {wrong}")
        return cls(**options)

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise UnknownNameError(self.kind, name, self._entries, self.hint)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_installed_plugins()
        return name in self._entries

    def get(self, name: str, default: Any = None) -> Any:
        """Look a name up without an error."""
        return self._entries[name] if name in self else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{len(self)} of kind {self.kind}: {', '.join(self)}>"


VARIABLE = "COLA_PLUGINS"
"""Environment variable that names plugins, with what the system puts between paths; child processes read it too."""

GROUP = "cola_lib"
"""Group of entry points whose modules register things when they are imported."""


class PluginError(ColaError):
    """A plugin cannot be found or run.

    Examples
    --------
    >>> from cola_lib.registry import PluginError, load_plugin
    >>> try:
    ...     load_plugin("no_such_module")
    ... except PluginError as error:
    ...     print(error)
    plugin no_such_module: ModuleNotFoundError: No module named 'no_such_module'
    """


@functools.cache
def load_installed_plugins() -> None:
    """Import the plugins of installed packages, once per process."""
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise PluginError(f"plugin {point.value}: {type(error).__name__}: {error}") from error


def load_plugin(name: str) -> ModuleType:
    r"""Import a module that registers things, once per process.

    Parameters
    ----------
    name : str
        Dotted name of a module that Python finds, or path of a ``.py`` file.

    Returns
    -------
    ModuleType
        The module.

    Raises
    ------
    PluginError
        If there is no such module or file, or it raises.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cola_lib.registry import load_plugin
    >>> lines = [
    ...     "from cola_lib.data import SOURCES, Sample, SourceInfo",
    ...     "read = lambda: [Sample('1', 'An old silent pond', 'haiku')]",
    ...     "SOURCES.register(SourceInfo('haiku', 'short poems', 'poetry', 'CC0-1.0', read=read))",
    ... ]
    >>> _ = Path("poems.py").write_text("\n".join(lines))
    >>> module = load_plugin("poems.py")
    >>> "haiku" in module.SOURCES
    True
    """
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except Exception as error:
            raise PluginError(f"plugin {name}: {type(error).__name__}: {error}") from error
    path = Path(name).expanduser().resolve()
    # two files of one name are two modules
    module_name = f"cola_plugin_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    if not path.is_file():
        raise PluginError(f"plugin {name}: there is no such file")
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin {name}: Python cannot import it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # as an import does: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise PluginError(f"plugin {name}: {type(error).__name__}: {error}") from error
    return module


def load_plugins(names: Sequence[str] = ()) -> list[ModuleType]:
    """Import plugins, and those that the environment variable ``COLA_PLUGINS`` names.

    Parameters
    ----------
    names : sequence of str
        As :func:`load_plugin` takes them. They are added to the variable, so that notebooks and other processes which
        are started from here load them too.

    Returns
    -------
    list of ModuleType
        All of them, those of the variable first.

    Raises
    ------
    PluginError
        If one cannot be imported.

    Examples
    --------
    >>> from cola_lib.registry import load_plugins
    >>> [module.__name__ for module in load_plugins(["json"])]
    ['json']
    """
    before = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    given = [str(Path(name).expanduser().resolve()) if name.endswith(".py") else name for name in names]
    wanted = list(dict.fromkeys([*before, *given]))
    modules = [load_plugin(name) for name in wanted]
    if given:
        os.environ[VARIABLE] = os.pathsep.join(wanted)
    return modules

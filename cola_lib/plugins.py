"""Modules of the user's own that register sources, methods, strategies and claims."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from cola_lib.errors import ColaError

VARIABLE = "COLA_PLUGINS"
"""Environment variable that names plugins, with what the system puts between paths; child processes read it too."""


class PluginError(ColaError):
    """A plugin cannot be found or run.

    Examples
    --------
    >>> from cola_lib.plugins import PluginError, load_plugin
    >>> try:
    ...     load_plugin("no_such_module")
    ... except PluginError as error:
    ...     print(error)
    plugin no_such_module: ModuleNotFoundError: No module named 'no_such_module'
    """


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
    >>> from cola_lib.data import source_names
    >>> from cola_lib.plugins import load_plugin
    >>> lines = [
    ...     "from cola_lib.data import Sample, SourceInfo, register_source",
    ...     "info = SourceInfo('haiku', 'short poems', 'poetry', 'CC0-1.0', evaluation_fraction=0.0)",
    ...     "register_source(info)(lambda: [Sample('1', 'An old silent pond', 'haiku')])",
    ... ]
    >>> _ = Path("poems.py").write_text("\n".join(lines))
    >>> module = load_plugin("poems.py")
    >>> "haiku" in source_names()
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
    >>> from cola_lib.plugins import load_plugins
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

"""Directives that write the reference from the code: ``public-api`` from docstrings, ``command-line`` from typer."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer
from docutils import nodes
from docutils.statemachine import StringList
from public_api import PAGES, public_names
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, NumpyDocstring
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

GROUPS = {
    "Functions": lambda each: inspect.isfunction(inspect.unwrap(each)) if callable(each) else False,
    "Classes": lambda each: inspect.isclass(each) and not issubclass(each, Exception),
    "Errors": lambda each: inspect.isclass(each) and issubclass(each, Exception),
}
"""In this order on a page; what is none of these comes last, as data."""


class _Sections(SphinxDirective):
    """A directive that writes sections of its own."""

    def section(self, title: str, lines: list[str], name: str) -> nodes.section:
        """Make a section from lines in the page's own markup."""
        section = nodes.section(ids=[nodes.make_id(name)], names=[nodes.fully_normalize_name(name)])
        section += nodes.title(title, title)
        self.state.nested_parse(StringList(lines, source=f"<{name}>"), 0, section)
        return section


class PublicApi(_Sections):
    """``.. public-api:: PAGE`` describes all that the modules of a page offer."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write a section for each module, with a table of its names and then their descriptions."""
        return [self.module(name) for name in PAGES[self.arguments[0]]]

    def module(self, name: str) -> nodes.section:
        """Describe one module."""
        module = importlib.import_module(name)
        offered = sorted(public_names(name), key=str.casefold)
        about = (inspect.getdoc(module) or "").split("\n")[0]
        section = self.section(name, [about, "", f".. py:module:: {name}", ""], name)
        for title, belongs in GROUPS.items():
            own = [each for each in offered if belongs(getattr(module, each))]
            offered = [each for each in offered if each not in own]
            if own:
                kind = "autofunction" if title == "Functions" else "autoclass"
                section += self.section(title, list(described(name, kind, own)), f"{name} {title}")
        if offered:
            section += self.section("Data", list(listed(module, offered)), f"{name} data")
        return section


def described(module: str, kind: str, names: list[str]) -> Iterator[str]:
    """Lines that describe functions or classes: a table of them, and each in full."""
    yield from (f".. currentmodule:: {module}", "", ".. autosummary::", "")
    yield from (f"   {name}" for name in names)
    for name in names:
        yield from ("", f".. {kind}:: {module}.{name}")
        if kind == "autoclass":
            yield "   :members:"
    yield ""


def listed(module: Any, names: list[str]) -> Iterator[str]:
    """Lines that name constants and types, with what stands under each in the source."""
    yield from (f".. currentmodule:: {module.__name__}", "")
    for name in names:
        yield from (f".. py:data:: {module.__name__}.{name}", "   :no-typesetting:", "")
    for name in names:
        value = " ".join(repr(getattr(module, name)).split())
        simple = isinstance(getattr(module, name), str | int | float | tuple) and len(value) <= 100
        yield f"- ``{name}``" + (f" = ``{value}``" if simple else "")


class CommandLine(_Sections):
    """``.. command-line::`` describes every command as ``cola COMMAND --help`` does."""

    def run(self) -> list[nodes.Node]:
        """Write a section for each command."""
        from cola_lib.cli import app

        group = typer.main.get_command(app)
        context = group.make_context("cola", [], resilient_parsing=True)
        sections = [self.section("cola", list(options(group, context)), "cola")]
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            within = command.make_context(name, [], parent=context, resilient_parsing=True)
            about = OPTION.sub(r"`\1`", inspect.cleandoc(command.help or ""))
            lines = [*usage(command, within), "", about, "", *options(command, within)]
            sections.append(self.section(f"cola {name}", "\n".join(lines).split("\n"), f"cola {name}"))
        return sections


OPTION = re.compile(r"(?<![\w`-])(--[a-z][a-z-]*)")
"""What a help text says of an option, whose dashes would become one."""


def usage(command: Any, context: Any) -> list[str]:
    """Lines of a command's usage, as a block of code."""
    return ["```", " ".join([context.command_path, *command.collect_usage_pieces(context)]), "```"]


def options(command: Any, context: Any) -> Iterator[str]:
    """Lines of a table of arguments and options, in the panels of the help."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        argument = parameter.param_type_name == "argument"
        names, text = record or (parameter.make_metavar(context), getattr(parameter, "help", "") or "")
        panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if argument else "Options")
        panels.setdefault(panel, []).append((names, text))
    for panel, rows in panels.items():
        yield from ("", f"**{panel}**", "", "| option | what it does |", "|---|---|")
        for names, text in rows:
            yield "| `{}` | {} |".format(names.replace("|", "\\|"), " ".join(text.split()).replace("|", "\\|"))


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element) -> nodes.Node | None:
    """Find what a docstring names by another path than its public one, or that is not public and stays plain text."""
    wanted = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    assert isinstance(domain, PythonDomain)
    for start in candidates(wanted, node.get("py:module"), node.get("py:class")):
        found = lookup(start)
        if found is None:
            continue
        public = PUBLIC.get(id(found[0]))
        full = ".".join([public, *found[1]]) if public else ""
        if full in domain.objects:
            entry = domain.objects[full]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode)
        return contnode  # it exists, so this is no mistake
    return None


def candidates(wanted: str, module: str | None, cls: str | None) -> Iterator[str]:
    """Full names that a reference may mean, from where it stands."""
    yield wanted
    if module and cls:
        yield f"{module}.{cls}.{wanted}"
    if module:
        yield f"{module}.{wanted}"


def lookup(name: str) -> tuple[Any, list[str]] | None:
    """Import what a dotted name of this library means: the module's own object, and the attributes behind it."""
    parts = name.split(".")
    if parts[0] != "cola_lib":
        return None
    for cut in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        found: Any = module
        rest = parts[cut:]
        for attribute in rest:
            fields = getattr(found, "__dataclass_fields__", {})
            if not hasattr(found, attribute) and attribute not in fields:
                return None
            found = getattr(found, attribute, None)
        return (getattr(module, rest[0]), rest[1:]) if rest else (module, [])
    return None


PUBLIC: dict[int, str] = {}
"""Public name of each object by its identity."""

NUMPYDOC = Config(
    napoleon_use_param=False,  # types are sentences, with shapes and units, and no names to be looked up
    napoleon_use_rtype=False,
    napoleon_custom_sections=[("Attributes", "params_style")],
)
ROLE = re.compile(r":(\w+):`(~?)([^`<>]+)`")
OUTSIDE_CODE = re.compile(r"(``.*?``|`[^`]*`)")


def read_docstring(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Turn a numpydoc docstring into reStructuredText, in place."""
    module = getattr(getattr(found, "fget", found), "__module__", None) or name
    prepared = [named_in_full(bars(line), module) for line in lines]
    # as napoleon reads a property, what stands before a colon in its first line is a type
    kind = "method" if what == "property" else what
    lines[:] = str(NumpyDocstring(prepared, NUMPYDOC, app, kind, name, found, options)).split("\n")


def bars(line: str) -> str:
    """Keep bars, which are magnitudes here, from meaning a substitution."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = OUTSIDE_CODE.split(line)
    return "".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(parts))


def named_in_full(line: str, module: str) -> str:
    """Give the full name of what a docstring names as its module does."""

    def full(match: re.Match[str]) -> str:
        role, short, name = match.groups()
        if name.startswith("cola_lib") or lookup(f"{module}.{name}") is None:
            return match.group()
        shown = name.rpartition(".")[2] if short else name
        return f":{role}:`{shown} <{module}.{name}>`"

    return ROLE.sub(full, line)


def setup(app: Sphinx) -> dict[str, Any]:
    """Enter the directives."""
    for modules in PAGES.values():
        for module in modules:
            for name in public_names(module):
                PUBLIC.setdefault(id(getattr(importlib.import_module(module), name)), f"{module}.{name}")
    app.add_directive("public-api", PublicApi)
    app.add_directive("command-line", CommandLine)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("missing-reference", resolve)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

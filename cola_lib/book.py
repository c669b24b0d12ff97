"""Execute the notebooks that the book renders.

A source notebook carries no outputs and one cell tagged ``parameters`` whose assignments are literals. A
profile gives some of them other values. What papermill executed is written whole or not at all: after a
time-out or a dead kernel papermill's own metadata still says that every cell was completed, so a file that
is there must mean that every cell ran.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import re
import reprlib
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_lib.errors import ColaError, OutputError, SpecError, UnknownNameError
from cola_lib.folders import owned_suffix, remove_leftovers
from cola_lib.plain import misfit, read_yaml

if TYPE_CHECKING:
    from nbformat import NotebookNode

logger = logging.getLogger(__name__)

PARAMETERS_TAG = "parameters"
INJECTED_TAG = "injected-parameters"
RERUN = "rerun"
"""Id of the cell that says how an executed notebook was made."""
PACKED = "packed"
"""Parameter of a notebook that names packed results to read."""
THREADS = "OMP_NUM_THREADS"
"""Environment variable that says how many threads a process computes with."""
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
ANSI_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
PROGRESS_BAR = re.compile(r"\d+%\|.*\||\d+(it|[A-Za-z]+) \[\d+:\d+, ")


class NotebookError(ColaError):
    """A notebook cannot be run as it is."""


class ExecutionError(NotebookError):
    """A notebook stopped before its end."""

    def __init__(self, message: str, traceback: str = "") -> None:
        self.traceback = traceback
        super().__init__(message)

    def __reduce__(self) -> tuple[type[ExecutionError], tuple[str, str]]:
        """Let it cross from one process to another with its traceback."""
        return type(self), (str(self), self.traceback)


class ParameterError(ColaError):
    """A notebook parameter has a value of the wrong kind, or cannot be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """Parameters for a set of notebooks, under one name."""

    name: str
    about: str
    takes: str
    notebooks: Mapping[str, Mapping[str, Any]]
    cell_timeout: int | None = None
    after: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class NotebookRun:
    """One notebook with the parameters it will run with, all of them checked."""

    source: Path
    out: Path
    parameters: Mapping[str, Any]
    cell_timeout: int | None = None
    after: Sequence[str] = ()
    variant: str = ""

    @property
    def name(self) -> str:
        """Of the notebook, behind that of its variant."""
        return _within(self.variant, self.source.stem)


def _within(variant: str, name: str) -> str:
    return f"{variant}/{name}" if variant else name


# ---------------------------------------------------------------------------------------- what to run


def read_profile(name: str, folder: Path) -> Profile:
    """Read a profile."""
    path = folder / f"{name}.yml"
    if not _is_file(path):
        known = [p.stem for p in folder.glob("*.yml")]
        if not known:
            raise ColaError(f"no profiles in {folder.resolve()}; run from the repository's root")
        raise UnknownNameError("profile", name, known, f"Profiles are the .yml files in {folder}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ColaError(f"{path} cannot be read: {error}") from error
    content = _mapping(_yaml(text, str(path)), str(path))
    fields = {f.name for f in dataclasses.fields(Profile)} - {"name"}
    for key in content:
        if key not in fields:
            raise UnknownNameError("profile key", str(key), fields, f"It stands in {path}")
    for key in ("about", "takes", "notebooks"):
        if key not in content:
            raise ColaError(f"{path}: the key {key!r} is missing")
    if wrong := misfit(Profile, {key: content[key] for key in ("about", "takes", "cell_timeout") if key in content}):
        raise ColaError(f"{path}: {wrong}")
    notebooks = {
        str(notebook): _mapping(values or {}, f"{path}: notebook {notebook}")
        for notebook, values in _mapping(content["notebooks"], f"{path}: notebooks").items()
    }
    after = {
        str(notebook): tuple(map(str, _list(earlier, f"{path}: after {notebook}")))
        for notebook, earlier in _mapping(content.get("after") or {}, f"{path}: after").items()
    }
    order = list(notebooks)
    for notebook, earlier in after.items():
        for each in (notebook, *earlier):
            if each not in notebooks:
                raise UnknownNameError("notebook", each, notebooks, f"It stands under after in {path}")
        # the order of the profile is one in which every notebook finds what it reads
        late = [each for each in earlier if order.index(each) >= order.index(notebook)]
        if late:
            raise ColaError(f"{path}: {notebook} waits for {', '.join(late)}, and so must stand below it")
    variants = {
        str(variant): _mapping(values or {}, f"{path}: variant {variant}")
        for variant, values in _mapping(content.get("variants") or {}, f"{path}: variants").items()
    }
    for variant in variants:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", variant):
            raise ColaError(f"{path}: variant {variant!r} names a folder; give it letters, digits, '.', '_' and '-'")
    return Profile(name, content["about"], content["takes"], notebooks, content.get("cell_timeout"), after, variants)


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs, with values as YAML."""
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise ParameterError(f"parameter {assignment!r} does not read name=value")
        if name in overrides:
            raise ParameterError(f"parameter {name} is given twice; give it once")
        # A lone = is a key of its own to YAML, and never a value.
        overrides[name] = value.strip() if value.strip() == "=" else _yaml(value, f"parameter {name}")
    return overrides


def declared_parameters(source: Path) -> dict[str, Any]:
    """Names and defaults in the cell of a notebook that is tagged ``parameters``."""
    cells = [c for c in _read_notebook(source).cells if PARAMETERS_TAG in c.metadata.get("tags", ())]
    if len(cells) > 1:
        raise NotebookError(f"{source}: {len(cells)} cells are tagged 'parameters'; one may be")
    try:
        statements = ast.parse(cells[0].source).body if cells else []
        return dict(_assignment(statement) for statement in statements)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:  # all that ast may raise
        raise NotebookError(
            f"{source}: the cell tagged 'parameters' may only hold lines of the form name = literal: {error}"
        ) from error


def plan(
    names: Sequence[str],
    *,
    folder: Path,
    out: Path,
    profile: Profile | None = None,
    overrides: Mapping[str, Any] | None = None,
    fresh: bool = False,
) -> list[NotebookRun]:
    """Resolve notebooks and check their parameters, before the first of them runs."""
    profile = profile or Profile("", "", "", {})
    runs = []
    for variant, differing in {"": {}, **profile.variants}.items():
        known: set[str] = set()
        for name in names or profile.notebooks:
            source = _find(name, folder)
            target = out / variant / source.name
            if target.resolve() == source.resolve():
                raise NotebookError(f"{source}: the output would replace the source; give another --out")
            declared = declared_parameters(source)
            known |= declared.keys()
            own = {key: value for key, value in differing.items() if key in declared}
            parameters = {**profile.notebooks.get(name, {}), **own, **(overrides or {})}
            if fresh and PACKED in declared:
                parameters[PACKED] = []
            parameters = {key: _number(value, declared.get(key)) for key, value in parameters.items()}
            _check_parameters(source, parameters)
            after = tuple(_within(variant, earlier) for earlier in profile.after.get(name, ()))
            runs.append(NotebookRun(source, target, parameters, profile.cell_timeout, after, variant))
        for key in differing:
            if not names and key not in known:
                raise UnknownNameError("parameter", key, known, f"No notebook of variant {variant} has it")
    if not runs:
        raise ColaError("nothing to run: name a notebook, or a profile that has some")
    return runs


# --------------------------------------------------------------------------------------------- running


def run_notebook(run: NotebookRun, *, progress: bool = False) -> float:
    """Execute a notebook and write it, whole or not at all.

    Notes
    -----
    Execution times and paths are dropped from the metadata, so that the same run gives the same file, but for its last
    cell (see :func:`rerun_cell`).
    Progress bars are dropped from the outputs: they are for whoever waits, not for whoever reads.
    """
    start = time.monotonic()
    run.out.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run.out.parent, f".{run.out.stem}.*.partial.ipynb")
    partial = run.out.with_name(f".{run.out.stem}.{owned_suffix()}.partial.ipynb")
    failed = run.out.with_suffix(".failed.ipynb")
    try:
        executed = _execute(run, partial, progress)
        _require_complete(executed, run.source)
        executed = _relinked(_cleaned(executed), run.source.parent, run.out.parent)
        executed.cells.append(rerun_cell(run, time.monotonic() - start))
        _write_notebook(executed, partial)
        os.replace(partial, run.out)
        failed.unlink(missing_ok=True)
    except ExecutionError as error:
        if not partial.exists():
            raise
        os.replace(partial, failed)
        raise ExecutionError(f"{error} What ran before that is in {failed}", error.traceback) from error
    except OSError as error:
        raise OutputError(f"{run.out}: could not be written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return time.monotonic() - start


def run_notebooks(
    runs: Sequence[NotebookRun], *, jobs: int = 1, progress: bool = False
) -> Iterator[tuple[NotebookRun, float | None]]:
    """Execute notebooks one after the other, or several at a time.

    Notes
    -----
    Small models gain little from threads: on two cores two notebooks with one thread each take less time than one
    after the other with two threads.
    """
    if jobs < 1:
        raise SpecError(f"jobs: at least 1, not {jobs}")
    if jobs > 1:
        yield from _side_by_side(runs, jobs)
        return
    for run in runs:
        yield run, None
        yield run, run_notebook(run, progress=progress)


def _side_by_side(runs: Sequence[NotebookRun], jobs: int) -> Iterator[tuple[NotebookRun, float | None]]:
    waiting = list(runs)
    left = {run.name for run in runs}
    running: dict[Future[float], NotebookRun] = {}
    # spawn: a fork of a process that has threads may hang
    with (
        _cores_shared(jobs),
        ProcessPoolExecutor(min(jobs, len(runs)), mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        try:
            while waiting or running:
                ready = [run for run in waiting if left.isdisjoint(run.after)]
                for run in ready[: jobs - len(running)]:
                    waiting.remove(run)
                    running[pool.submit(run_notebook, run)] = run
                    yield run, None
                if not running:
                    raise SpecError(f"{', '.join(run.name for run in waiting)}: each waits for another")
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    run = running.pop(future)
                    seconds = future.result()
                    left.remove(run.name)
                    yield run, seconds
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextlib.contextmanager
def _cores_shared(jobs: int) -> Iterator[None]:
    """Tell the processes started meanwhile how many threads each of them has."""
    if THREADS in os.environ:
        yield
        return
    os.environ[THREADS] = str(max(1, (os.cpu_count() or 1) // jobs))
    try:
        yield
    finally:
        del os.environ[THREADS]


def _execute(run: NotebookRun, partial: Path, progress: bool) -> NotebookNode:
    """Let papermill execute ``run``, keeping ``partial`` up to date; translate what it raises."""
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    notebook = _read_notebook(run.source)
    kernel = notebook.metadata.get("kernelspec", {}).get("name", "python3")
    try:
        with _own_kernel():
            return papermill.execute_notebook(
                notebook,
                # papermill formats its output path as a template
                str(partial).replace("{", "{{").replace("}", "}}"),
                parameters=dict(run.parameters),
                kernel_name=kernel,
                language="python",
                progress_bar=progress,
                execution_timeout=run.cell_timeout,
                # the kernel reports its own shutdown as an error; what cells raise comes as messages, not on its log
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                # "auto" encrypts where the kernel can and says nothing where it cannot
                config=Config({"AsyncKernelManager": {"transport_encryption": "auto"}}),
            )
    except PapermillExecutionError as error:
        where = f"{run.source}: cell {error.cell_index + 1} raised {error.ename}: {error.evalue}"
        raise ExecutionError(_sentence(where), _plain_text("\n".join(error.traceback))) from error
    except CellTimeoutError as error:
        where = _last_started(_read_notebook(partial))
        raise ExecutionError(f"{run.source}: {where} took longer than {run.cell_timeout} s.") from error
    except DeadKernelError as error:
        where = _last_started(_read_notebook(partial))
        raise ExecutionError(
            f"{run.source}: the kernel {kernel} ({sys.executable}) died in {where}; it may have run out of memory."
        ) from error
    except NoSuchKernel as error:
        partial.unlink()
        raise NotebookError(f"{run.source}: {error}; set its kernel to python3") from error


@contextlib.contextmanager
def _own_kernel() -> Iterator[None]:
    """Make python3 the interpreter that runs now, whatever kernel of that name is on Jupyter's path."""
    with tempfile.TemporaryDirectory(prefix="cola-kernel-") as folder:
        spec = Path(folder) / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (folder, before)))
        try:
            yield
        finally:
            os.environ.pop("JUPYTER_PATH")
            if before is not None:
                os.environ["JUPYTER_PATH"] = before


def _require_complete(notebook: NotebookNode, source: Path) -> None:
    """Refuse a notebook in which a cell did not run, whatever its metadata says."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            where = _cell_name(notebook, index)
            raise ExecutionError(f"{source}: {where} did not run, though nothing was raised.")


def _last_started(notebook: NotebookNode) -> str:
    """Say which cell was running last; papermill records when each of them started."""
    started = [n for n, cell in enumerate(notebook.cells) if cell.metadata.papermill["start_time"]]
    return _cell_name(notebook, started[-1])


def _cell_name(notebook: NotebookNode, index: int) -> str:
    first_line = notebook.cells[index].source.strip().splitlines()[0]
    return f"cell {index + 1} ({first_line})"


def _cleaned(notebook: NotebookNode) -> NotebookNode:
    """Take out what is not for the reader: times, paths, progress bars and the injected cell's source."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if INJECTED_TAG in cell.metadata.get("tags", ()):
            cell.metadata["tags"] = [INJECTED_TAG, "hide-input"]
            cell["id"] = INJECTED_TAG
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_without_progress, cell.outputs) if output is not None]
    return notebook


def _relinked(notebook: NotebookNode, source: Path, out: Path) -> NotebookNode:
    """Keep links to files right in another folder; those to notebooks beside this one go to the executed ones."""

    def moved(link: re.Match[str]) -> str:
        target, anchor = link["target"], link["anchor"] or ""
        if os.path.dirname(target) and (source / target).is_file():
            return f"]({os.path.relpath(source / target, out)}{anchor})"
        return link[0]

    link = re.compile(r"\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = link.sub(moved, cell.source)
        for data in (output["data"] for output in cell.get("outputs", []) if "data" in output):
            if "text/markdown" in data:
                data["text/markdown"] = link.sub(moved, "".join(data["text/markdown"]))
    return notebook


def rerun_command(source: Path, parameters: Mapping[str, Any]) -> str:
    """Write the papermill command that makes a notebook, for a shell in the repository's root."""
    # JSON is YAML, and its quotes are not the shell's
    given = [shlex.quote(f"{name}: {json.dumps(value, ensure_ascii=False)}") for name, value in parameters.items()]
    command = f"papermill {shlex.quote(f'{source.parent.name}/{source.name}')} out.ipynb"
    return " \\\n  ".join([command, *(f"-y {each}" for each in given)])


def rerun_cell(run: NotebookRun, seconds: float) -> NotebookNode:
    """Say how a notebook was made: the command, the machine, the versions, and the time."""
    import nbformat
    import torch

    from cola_lib.experiments import current_versions, device_name

    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    cores = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} of them for one notebook"
    versions = ", ".join(f"{name} {version}" for name, version in current_versions().items())
    number = run.source.stem.partition("_")[0]
    if len(list(run.source.parent.glob(f"{number}*.ipynb"))) > 1:
        number = run.source.stem
    text = f"""## Rerun this page

From the root of the repository, with the package installed (`make setup`, or `pip install --editable '.[book]'`):

```bash
{rerun_command(run.source, run.parameters)}
```

What the command does not name has the value that the cell of parameters gives it; `-y 'name: value'` changes one.
Results that the store already holds are read from it. `make notebook N={number}` opens the notebook in JupyterLab.

| | this page was made |
|---|---|
| on | {device}, {cores} |
| with | {versions} |
| in | {seconds:.0f} s, on {datetime.now(UTC):%Y-%m-%d} |
"""
    cell = nbformat.v4.new_markdown_cell(text)
    cell["id"] = RERUN
    return cell


def _without_progress(output: NotebookNode) -> NotebookNode | None:
    """Return an output without its progress bars, or None if nothing else was in it."""
    if WIDGET_MIME in output.get("data", {}):
        return None
    if output.output_type == "stream" and output.name == "stderr":
        lines = re.split(r"[\r\n]+", output.text)
        kept = [line for line in lines if line.strip() and not PROGRESS_BAR.search(line)]
        output.text = "\n".join(kept) + "\n" if kept else ""
        return output if kept else None
    return output


# --------------------------------------------------------------------------------------------- details


def _find(name: str, folder: Path) -> Path:
    """Path of a notebook by its name in ``folder``."""
    if Path(name).name != name:
        raise NotebookError(f"{name!r} is a path; give a notebook's name, and its folder with --notebooks")
    source = folder / f"{name}.ipynb"
    if not _is_file(source):
        known = [p.stem for p in folder.glob("*.ipynb")]
        if not known:
            raise NotebookError(f"no notebooks in {folder.resolve()}; run from the repository's root")
        raise UnknownNameError("notebook", name, known, f"Notebooks are the .ipynb files in {folder}")
    return source


def _check_parameters(source: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse names that the notebook does not declare, and values of another kind than its defaults."""
    declared = declared_parameters(source)
    for name, value in parameters.items():
        if name not in declared:
            raise UnknownNameError("notebook parameter", name, declared, f"The notebook is {source}")
        if not _same_kind(value, declared[name]):
            spelling = ""
            if isinstance(declared[name], str):
                spelling = f"; YAML reads it so, and as text if quoted: -p {name}='\"...\"'"
            raise ParameterError(
                f"{source}: parameter {name} is {value!r}, a {type(value).__name__}, where the notebook has "
                f"a {type(declared[name]).__name__} such as {declared[name]!r}{spelling}"
            )


def _number(value: Any, default: Any) -> Any:
    """Take 1e-3 for a number where one belongs: to YAML it is a text, since it has no point."""
    if isinstance(default, float) and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _same_kind(value: Any, default: Any) -> bool:
    """Whether ``value`` may stand where ``default`` stood; None may, and anything may for it."""
    if value is None or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, type(default))


def _assignment(statement: ast.stmt) -> tuple[str, Any]:
    """Name and value of ``name = literal`` or ``name: type = literal``."""
    match statement:
        case ast.Assign(targets=[ast.Name(name)], value=value):
            pass
        case ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value):
            pass
        case _:
            raise ValueError(f"{ast.unparse(statement)!r} is not an assignment to one name")
    try:
        return name, ast.literal_eval(value)
    except ValueError as error:
        raise ValueError(f"{ast.unparse(statement)!r} does not assign a literal") from error


def _read_notebook(path: Path) -> NotebookNode:
    """Read a notebook of format 4."""
    import nbformat

    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        asked = content if isinstance(content, dict) else {}
        if asked.get("nbformat") != 4 or not isinstance(asked.get("nbformat_minor"), int):
            raise NotebookError(f"{path} is not a Jupyter notebook of format 4; Jupyter saves an older one in it")
        nbformat.validate(content)  # reading alone only logs what is wrong
        return nbformat.reads(text, as_version=4)
    except OSError as error:
        raise NotebookError(f"{path} cannot be read: {error}") from error
    # besides its own error: nbformat puts a notebook in order before it checks it
    except (nbformat.ValidationError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise NotebookError(f"{path} is not a Jupyter notebook: {error}") from error


def _write_notebook(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook, checked against the format."""
    import nbformat

    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def _yaml(text: str, where: str) -> Any:
    """Parse YAML, saying where it stood if it is none."""
    try:
        return read_yaml(text)
    except ValueError as error:
        raise ParameterError(f"{where}: {error}") from error


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    """Return ``value`` if it is a mapping."""
    if not isinstance(value, dict):
        raise ColaError(f"{where}: expected a mapping, found {type(value).__name__}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    """Return ``value`` if it is a list."""
    if not isinstance(value, list):
        raise ColaError(f"{where}: expected a list, found {type(value).__name__}")
    return value


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError as error:
        raise ColaError(f"{reprlib.repr(str(path))} cannot be looked up: {error}") from error


def _plain_text(text: str) -> str:
    """Text without terminal colours."""
    return ANSI_ESCAPE.sub("", text)


def _sentence(text: str) -> str:
    """Text on one line that ends with a full stop."""
    line = " ".join(_plain_text(text).split())
    return line if line.endswith((".", "!", "?")) else f"{line}."

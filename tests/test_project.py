"""The project's own files agree with each other, and hold nothing that belongs to one machine."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cola_lib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {path.name: path.read_text() for path in sorted(ROOT.glob("requirements*.lock"))}

# What may be imported at the top of each package: the rest is for those who use it, and is imported there.
LIGHT = {
    "analysis": {"statsmodels"},
    "book": {"yaml"},
    "cli": {"typer"},
    "experiments": {"fsspec", "pydantic", "pydantic_core", "yaml"},
    "figures": {"matplotlib", "seaborn"},
    "verdicts": {"fsspec"},
}
CORE = {
    *("torch", "transformers", "numpy", "scipy", "sklearn", "pandas", "pyarrow", "safetensors", "tqdm"),
    *("filelock", "cola_lib", *sys.stdlib_module_names),
}


def declared() -> dict[str, Requirement]:
    """Every dependency of the project, extras included, by canonical name."""
    project = PROJECT["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def pinned(lock: str) -> list[Requirement]:
    """Requirements of a lock file; a package has several lines if its version depends on the platform."""
    return [Requirement(line.rstrip("\\ ")) for line in LOCKS[lock].splitlines() if re.match(r"[a-z0-9]", line)]


def tracked_text() -> dict[str, str]:
    """Text of every file of the repository that a person wrote."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git here, so what belongs to the repository is not known")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [
        ROOT / name for name in listing.stdout.decode().split("\0") if name and not name.startswith("book/vendor/")
    ]
    texts = {}
    for path in paths:
        try:
            texts[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture, or a file that was deleted and not yet committed
    return texts


# ------------------------------------------------------------------------------------------- dependencies


def test_lock_satisfies_pyproject():
    pins = pinned("requirements.lock")
    for name, requirement in declared().items():
        mine = [pin for pin in pins if canonicalize_name(pin.name) == name]
        assert mine, f"{name} is not locked; run `make lock`"
        for pin in mine:
            (version,) = [spec.version for spec in pin.specifier if spec.operator == "=="]
            assert requirement.specifier.contains(version), f"{pin} does not satisfy {requirement}; run `make lock`"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_line_is_pinned_and_hashed(lock):
    blocks = re.split(r"\n(?=[a-z0-9])", LOCKS[lock].strip())
    assert len(blocks) == len(pinned(lock)) > 2
    for block in blocks:
        assert re.match(r"[a-z0-9._-]+==[^\s;]+( ; [^\\]+)? \\\n", block), block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}$", block), block


def test_locks_agree_where_both_name_a_package():
    def versions(lock: str) -> dict[str, str]:
        return {pin.name: str(pin.specifier) for pin in pinned(lock)}

    first, second = versions("requirements-bootstrap.lock"), versions("requirements.lock")
    assert {"uv", "setuptools", "wheel"} <= first.keys()
    assert {name: first[name] for name in first.keys() & second.keys()} == {
        name: second[name] for name in first.keys() & second.keys()
    }


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_lock_names_one_version_of_each_package(version):
    environment = default_environment() | {
        "python_version": version,
        "python_full_version": f"{version}.9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    names = [pin.name for pin in pinned("requirements.lock") if not pin.marker or pin.marker.evaluate(environment)]
    assert len(names) == len(set(names))
    assert {"torch", "transformers", "jupyter-book", "papermill", "pytest"} <= set(names)


def test_conda_environment_has_the_same_dependencies():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [Requirement(line) for line in environment if isinstance(line, str)]
    (pip,) = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    assert pip[-1] == "--editable ."
    theirs = {canonicalize_name(r.name): r.specifier for r in [*conda, *map(Requirement, pip[:-1])]}
    assert str(theirs.pop("python")) == PROJECT["project"]["requires-python"]
    assert theirs == {name: requirement.specifier for name, requirement in declared().items()}


def test_every_import_is_declared():
    distributions = {
        "yaml": "pyyaml",
        "sklearn": "scikit-learn",
        "IPython": "ipykernel",
        "importlinter": "import-linter",
    }
    # what declared packages bring and stand for: their own types and configuration
    brought = {"jupyter_client", "pydantic_core", "sphinx", "tokenizers", "traitlets"}
    optional = {"sentence_transformers"}  # used where somebody has installed it, and only when asked for
    elsewhere = {"llmcompressor"}  # of outside_script.py, which runs in that tool's environment
    own = {"cola_lib", "tests", "benchmarks"}  # what runs in other tools' environments is in interop/
    found: set[str] = set()
    for folder in own:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    found.add(node.module.split(".")[0])
    own |= {path.stem for path in (ROOT / "book" / "_ext").glob("*.py")}
    outside = found - set(sys.stdlib_module_names) - own - brought - optional - elsewhere
    undeclared = {name for name in outside if canonicalize_name(distributions.get(name, name)) not in declared()}
    assert not undeclared, f"imported and not in pyproject.toml: {sorted(undeclared)}"


# ------------------------------------------------------------------------------------------------- modules


def test_imports_flow_one_way():
    # in a process of its own: the linter sets up logging, and turns off every logger there is
    command = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "cola_lib").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_top_level_imports_are_light(path):
    part = path.relative_to(ROOT / "cola_lib").parts[0].removesuffix(".py")
    allowed = CORE | LIGHT.get(part, set())
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            assert name.split(".")[0] in allowed, f"line {node.lineno} imports {name}; do so where it is used"


def test_data_files_are_packaged():
    package = ROOT / "cola_lib"
    globs = PROJECT["tool"]["setuptools"]["package-data"]["cola_lib"]
    packaged = {path for glob in globs for path in package.glob(glob)}
    data = {p for p in package.rglob("*") if p.is_file() and p.suffix not in {".py", ".pyc"}}
    assert data == packaged


# ------------------------------------------------------------------------------------------ the repository


def test_no_registry_host_and_no_path_of_a_machine():
    hosts = r"pypi[.]org|pythonhosted[.]org|npmjs[.](?:org|com)|anaconda[.](?:org|com)|unpkg[.]com|jsdelivr[.]net"
    paths = r"(?<![\w.~>-])/(?:root|work|tmp|opt|home/\w+|Users/\w+)/"
    for name, text in tracked_text().items():
        for number, line in enumerate(text.splitlines(), start=1):
            found = re.search(f"{hosts}|{paths}", line)
            assert found is None, f"{name}:{number} names {found.group()}"


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = PROJECT["project"]["version"]
    assert cola_lib.__version__ == version == citation["version"]
    assert PROJECT["project"]["license"] == citation["license"] == "Apache-2.0"
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_table_of_contents_is_the_quick_profile():
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    files = [contents["root"], *(chapter["file"] for part in contents["parts"] for chapter in part["chapters"])]
    executed = [Path(file).name for file in files if file.startswith("book/executed/")]
    written = [file for file in files if not file.startswith("book/executed/")]
    profile = yaml.safe_load((ROOT / "notebooks" / "profiles" / "quick.yml").read_text())
    assert sorted(executed) == list(profile["notebooks"])
    pages = {page for folder in (ROOT / "book", ROOT / "book" / "api") for page in folder.glob("*.md")}
    assert {ROOT / f"{file}.md" for file in written} == pages


def make(*arguments: str) -> subprocess.CompletedProcess:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_make_help_lists_the_targets():
    shown = make("help").stdout
    for target in ("book", "test", "setup", "clean", "lint", "lock", "bench", "interop", "help"):
        assert re.search(rf"^  {target} +\S", shown, re.M), target


def test_make_says_what_it_will_do():
    shown = make("plan", "PROFILE=quick")
    steps = re.findall(r"^  (\d)\. .*?\d+ (?:to \d+ )?minutes?\b", shown.stdout, re.M)
    assert shown.returncode == 0 and steps == ["1", "2", "3", "4"], shown.stdout
    unknown = make("plan", "PROFILE=quik")
    assert unknown.returncode == 2 and "no profile 'quik'; there are: " in unknown.stderr

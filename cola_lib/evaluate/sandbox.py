"""Run code that a model wrote, shut in: pass@1 needs it run, and nobody has read it.

A program runs only when the caller says so, and only where it can be contained. It gets a process of its own with

- no network: an empty network namespace, and no right to make a socket;
- no files but the interpreter and its libraries, read-only, in a root of its own; one empty folder in memory to write
  to;
- no other process in sight, and none left: it is the first of its process namespace, with which all others end;
- an unprivileged user without rights (of root's, an id that nobody has), who cannot gain any;
- an empty environment, and limits (:class:`Limits`) of processor time, wall time, memory, processes, files and output.

Where one of these cannot be had, nothing runs and :class:`~cola_lib.errors.SandboxError` says which: there is no weaker
mode. They need Linux 5.12 or newer on x86-64 or ARM64, and root's rights or user namespaces for ordinary users; most
containers have neither unless they are started with more rights (``--privileged``), and some distributions switch user
namespaces off.

What it does not do. The kernel is shared: a program that exploits a fault of it gets out, which takes a virtual
machine to prevent. The memory limit is per process, so the machine must have room for ``memory_bytes`` times
``processes``. The system's libraries can be read, and so can packages installed into the interpreter's own folder,
though they are not on the path. A program may find out that it is tested, and cheat: a pass is evidence against
accidents, not against intent.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

from cola_lib.errors import SandboxError

Outcome = Literal["passed", "failed", "timeout", "output"]
"""``failed``: an exception, an early exit, or a death by a limit that the program hit itself."""

FLAG = "--allow-code-execution"

_GRACE = 60.0
"""Seconds beyond the wall-time limit until the process that watches is taken for broken."""

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    Notes
    -----
    The metric ``code_eval`` gives a program 3 seconds of wall time and no other limit. Processor time does not fail a
    right program because the machine is busy.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 30.0
    memory_bytes: int = 2**30
    processes: int = 8
    file_bytes: int = 2**23
    disk_bytes: int = 2**25
    output_bytes: int = 2**20

    def __post_init__(self) -> None:
        wrong = [name for name, value in asdict(self).items() if not value > 0]
        if wrong:
            raise SandboxError(f"limit {wrong[0]} of the sandbox is {getattr(self, wrong[0])}; it must be above 0")


@dataclass(frozen=True, slots=True)
class CodeRun:
    """What became of a program."""

    outcome: Outcome
    output: str
    exit_code: int
    seconds: float
    cpu_seconds: float

    @property
    def passed(self) -> bool:
        """Whether the end of the program was reached within all limits."""
        return self.outcome == "passed"


def require_permission(allow_code_execution: bool, what: str) -> None:
    """Refuse to run generated code unless the caller has asked for it."""
    if not allow_code_execution:
        raise SandboxError(
            f"{what} runs code that the model writes. If that is what you want, add {FLAG} "
            "(allow_code_execution=True); it runs in a sandbox without network or files"
        )


def run_code(program: str, *, allow_code_execution: bool = False, limits: Limits | None = None) -> CodeRun:
    """Run a Python program in the sandbox."""
    require_permission(allow_code_execution, "this")
    if sys.platform != "linux":
        raise SandboxError(
            f"generated code cannot be contained on {sys.platform}: that takes Linux, for example in a virtual machine"
        )
    limits = limits or Limits()
    report, report_inside = os.pipe()
    token = secrets.token_hex(16)
    settings = {
        "program": program,
        "token": token,
        "limits": asdict(limits),
        "report": report_inside,
        "python": _interpreter(),
        "readable": _readable(),
        "work": _work(_readable()),
    }
    command = [_interpreter(), "-I", "-S", str(Path(__file__).with_name("jail.py"))]
    with open(report, "rb") as report_file:
        try:
            # In a session of its own: an interrupt from the keyboard comes here, and there as the end of its input.
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(report_inside,),
                start_new_session=True,
                env={},
                cwd="/",
            )
        except OSError as error:
            raise SandboxError(f"the sandbox cannot be started: {command[0]}: {error.strerror}") from error
        finally:
            os.close(report_inside)
        try:
            output, too_much = _converse(process, settings, limits)
        finally:
            _stop(process)
        report_text = report_file.read()
    text = output.decode("utf-8", "replace")
    if not report_text:
        raise SandboxError(f"the sandbox broke before it could say what the program did: {text[-500:] or 'no output'}")
    return _judge(json.loads(report_text), text, too_much)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Its input and output, which it was started with."""
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _converse(process: subprocess.Popen[bytes], settings: dict, limits: Limits) -> tuple[bytes, bool]:
    """Hand the program over, and read what it writes; more than it may write is its end."""
    given, written = _pipes(process)
    with contextlib.suppress(BrokenPipeError):  # it is dead already, and its last words are read below
        given.write(json.dumps(settings).encode() + b"\n")
        given.flush()
    readable = select.poll()
    readable.register(written, select.POLLIN)
    deadline = time.monotonic() + limits.wall_seconds + _GRACE
    kept: list[bytes] = []
    n_bytes = 0
    while True:
        if not readable.poll(1000 * max(0.0, deadline - time.monotonic())):
            raise SandboxError(f"the sandbox did not end {_GRACE:.0f} s after its time limit; it has been killed")
        part = os.read(written.fileno(), 2**16)
        if not part:
            return b"".join(kept)[: limits.output_bytes], n_bytes > limits.output_bytes
        if n_bytes <= limits.output_bytes:
            kept.append(part)
        n_bytes += len(part)
        if n_bytes > limits.output_bytes and not given.closed:
            given.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Make sure that it is gone. The end of its input makes it kill the program; its own death does the same."""
    given, written = _pipes(process)
    with contextlib.suppress(BrokenPipeError):
        given.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    written.close()


def _judge(found: dict, output: str, too_much: bool) -> CodeRun:
    if "refused" in found:
        raise SandboxError(
            f"generated code cannot be contained here, so it was not run: {found['refused']}. It takes Linux 5.12 or "
            "newer with root's rights, or with user namespaces for ordinary users (sysctl user.max_user_namespaces, "
            "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns); a container must be "
            "started with more rights, for example --privileged"
        )
    outcome: Outcome = "failed"
    if too_much:
        outcome = "output"
    elif found["timeout"]:
        outcome = "timeout"
    elif found["reached"]:
        outcome = "passed"
    return CodeRun(outcome, output, found["exit"], found["seconds"], found["cpu_seconds"])


def check_sandbox() -> None:
    """Run a program that does nothing, so that a machine that cannot contain one is found out early."""
    found = run_code("pass", allow_code_execution=True)
    if not found.passed:
        raise SandboxError(
            f"the Python interpreter {_interpreter()} does not start inside the sandbox ({found.outcome}): "
            f"{found.output[-500:] or f'exit code {found.exit_code}'}"
        )


@cache
def _interpreter() -> str:
    """Find the interpreter itself: a virtual environment's is a link to it, or a copy that needs a file outside."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def _work(readable: list[str]) -> str:
    """Name the folder to work in: the usual one for files that do not stay, unless the interpreter lies there."""
    return "/work" if any(Path(path).is_relative_to("/tmp") for path in readable) else "/tmp"


@cache
def _readable() -> list[str]:
    """List what the interpreter needs in order to start; shorter paths first, since one may hold another."""
    paths = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
    own = {_interpreter(), *(os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib"))}
    shared = sysconfig.get_config_var("LDLIBRARY") or ""
    if ".so" in shared:  # the interpreter is a shared library beside the standard one's folder
        own.add(os.path.realpath(os.path.join(sys.base_prefix, sys.platlibdir)))
        own.add(os.path.realpath(os.path.join(sys.base_prefix, "lib")))
    found = [path for path in {*own, *_LIBRARIES} if os.path.exists(path)]
    return sorted(found, key=lambda path: (path.count("/"), path))

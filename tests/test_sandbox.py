"""The sandbox: each thing that a program must not do is tried, once contained and once where it would succeed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cola_lib.errors import SandboxError
from cola_lib.evaluate import sandbox
from cola_lib.evaluate.sandbox import CodeRun, Limits, run_code

LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("sandbox", {sandbox.__file__!r})
sys.modules["sandbox"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from sandbox import Limits, SandboxError, run_code
"""
"""For scripts: the module by itself, since its package takes its time."""

TIGHT = Limits(cpu_seconds=5, wall_seconds=60, memory_bytes=2**28, processes=4, output_bytes=2**12)


def inside(program: str, limits: Limits = TIGHT) -> CodeRun:
    return run_code(textwrap.dedent(program), allow_code_execution=True, limits=limits)


def outside(program: str) -> str:
    """What the same program does to a machine without a sandbox."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def alive(marker: str) -> list[int]:
    """Processes whose command line holds a word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it ended while we looked
        if marker.encode() in words and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def eventually(check: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def marker() -> Iterator[str]:
    name = f"cola-test-{uuid.uuid4().hex}"
    yield name
    for pid in alive(name):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that every user of the machine may read and write."""
    folder = Path("/tmp") / f"cola-test-{uuid.uuid4().hex}"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


# ---------------------------------------------------------------------------------------------
# permission and refusal


def test_nothing_runs_unless_it_is_allowed(monkeypatch):
    monkeypatch.setattr(sandbox.subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    with pytest.raises(SandboxError, match="--allow-code-execution"):
        run_code("pass")


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="darwin.*virtual machine"):
        run_code("pass", allow_code_execution=True)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="takes root's rights, to give them up")
def test_without_the_right_to_isolate_nothing_runs(open_folder):
    trace = open_folder / "it-ran"
    script = f"""
        try:
            run_code("open({str(trace)!r}, 'w')", allow_code_execution=True)
        except SandboxError as error:
            print("refused:", error)
    """
    command = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", LOAD + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "refused: generated code cannot be contained here, so it was not run: unshare: Operation not" in done.stdout
    assert not trace.exists()


def test_a_sandbox_that_breaks_is_no_verdict(monkeypatch):
    monkeypatch.setattr(sandbox, "_readable", list)
    monkeypatch.setattr(sandbox, "_interpreter", lambda: shutil.which("false"))
    with pytest.raises(SandboxError, match="broke before it could say"):
        run_code("#" * 10**6, allow_code_execution=True)
    monkeypatch.setattr(sandbox, "_interpreter", lambda: "/nowhere/python")
    with pytest.raises(SandboxError, match="/nowhere/python: No such file"):
        run_code("pass", allow_code_execution=True)


def test_an_interpreter_among_temporary_files_is_no_obstacle(contained, monkeypatch, tmp_path):
    """Libraries below the folder in which programs work otherwise: another folder is taken."""
    library = tmp_path if tmp_path.is_relative_to("/tmp") else Path(tempfile.mkdtemp(dir="/tmp"))
    library.chmod(0o755)  # whoever the program runs as may read what an interpreter is made of
    (library / "kept").touch()
    readable = [*sandbox._readable(), str(library)]
    monkeypatch.setattr(sandbox, "_readable", lambda: readable)
    found = inside(f"""
        import os
        assert os.path.exists({str(library / "kept")!r})
        open("mine", "w").write("x")
        assert os.getcwd() == os.environ["TMPDIR"] and os.listdir() == ["mine"]
    """)
    assert found.passed, found.output


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(SandboxError, match="memory_bytes"):
        Limits(memory_bytes=0)


# ---------------------------------------------------------------------------------------------
# what counts as passed


def test_a_program_that_ends_has_passed(contained):
    found = inside("assert sorted([2, 1]) == [1, 2]\nprint('é')")
    assert found.passed and found.output == "é\n" and found.exit_code == 0
    assert 0 < found.cpu_seconds and 0 < found.seconds


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "def f(:",
        "a\0b",
        "\ud800",
    ],
)
def test_a_program_that_does_not_reach_its_end_has_not(contained, program):
    found = inside(program)
    assert found.outcome == "failed"


def test_only_the_token_says_that_the_end_was_reached(contained):
    assert inside("import os; os.write(3, b'passed'); os._exit(0)").outcome == "failed"


def test_the_last_words_of_an_error_are_kept(contained):
    assert "ZeroDivisionError" in inside("1 / 0").output


# ---------------------------------------------------------------------------------------------
# files


def test_the_users_files_cannot_be_read(contained, open_folder):
    secret = open_folder / "secret.txt"
    secret.write_text("the user's own")
    secret.chmod(0o666)
    program = f"print(open({str(secret)!r}).read())"
    assert "the user's own" in outside(program)
    found = inside(program)
    assert found.outcome == "failed" and "FileNotFoundError" in found.output and "own" not in found.output


def test_no_folder_of_the_machine_is_there(contained):
    found = inside(
        """
        import os
        print(sorted(os.listdir("/")))
        print([name for name in ("/home", "/etc/passwd", "/proc/1", "/sys", "/var", "/run") if os.path.exists(name)])
        """
    )
    assert found.passed, found.output
    top, private = found.output.splitlines()
    assert private == "[]" and "'proc'" not in top
    assert Path("/etc/passwd").exists() and Path("/proc/1").exists()


def test_nothing_outside_can_be_written(contained, open_folder):
    places = ["/x", "/dev/x", "/usr/lib/x", os.path.join(os.path.dirname(os.__file__), "x"), str(open_folder / "x")]
    program = f"""
        for place in {places}:
            try:
                open(place, "w").close()
                print("wrote", place)
            except OSError as error:
                print(type(error).__name__)
    """
    found = inside(program)
    assert found.passed and "wrote" not in found.output
    assert not any(os.path.exists(place) for place in places)
    assert f"wrote {places[-1]}" in outside(program.replace(repr(places), repr(places[-1:])))


def test_the_working_folder_is_empty_private_and_gone(contained):
    name = f"cola-test-{uuid.uuid4().hex}"
    program = f"import os; print(os.getcwd(), os.listdir('.')); open('{name}', 'w').write('x'); print(os.listdir('.'))"
    assert inside(program).output == inside(program).output == f"/tmp []\n['{name}']\n"
    assert not Path("/tmp", name).exists()


def test_files_have_a_size_and_all_of_them_together_too(contained):
    one = "open('f', 'wb').write(bytes(6 * 2**20))"
    small, large = (replace(TIGHT, file_bytes=mib * 2**20, disk_bytes=2**26) for mib in (4, 8))
    assert inside(one, small).outcome == "failed" and inside(one, large).passed
    many = "for i in range(6): open(f'f{i}', 'wb').write(bytes(2**20))"
    small, large = (replace(TIGHT, file_bytes=2**22, disk_bytes=mib * 2**20) for mib in (4, 16))
    found = inside(many, small)
    assert found.outcome == "failed" and "No space left" in found.output and inside(many, large).passed


def test_empty_files_end_too(contained):
    found = inside("for i in range(10**5): open(str(i), 'w').close()", replace(TIGHT, cpu_seconds=30, wall_seconds=60))
    assert found.outcome == "failed" and "No space left" in found.output


# ---------------------------------------------------------------------------------------------
# the network, and what else the kernel offers


def test_there_is_no_network(contained):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5); print('connected')"
        assert outside(program) == "connected\n"
        found = inside(program)
    assert found.outcome == "failed" and "PermissionError" in found.output and "connected" not in found.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look at the namespaces of another process")
def test_its_namespaces_are_its_own(contained, marker):
    program = f"""
        import os, sys, time
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(9)", "{marker}"])
        time.sleep(9)
    """
    thread = threading.Thread(target=inside, args=(program, replace(TIGHT, wall_seconds=8)))
    thread.start()
    try:
        assert eventually(lambda: bool(alive(marker)))
        (pid,) = alive(marker)
        for kind in ("net", "mnt", "pid", "ipc"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert set(status["Uid"].split()).isdisjoint({"0", str(os.getuid())}) and not status["Groups"].split()
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
        # An interpreter that starts opens the files of its modules for a moment; what stays was handed to it.
        assert eventually(lambda: os.listdir(f"/proc/{pid}/fd") == ["0", "1", "2"])
    finally:
        thread.join()


CALLS = {
    "unshare": "l.unshare(0x10000000)",
    "clone": "l.syscall({'x86_64': 56, 'aarch64': 220}[os.uname().machine], 0x10000000 | 17, 0, 0, 0, 0)",
    "clone3": "l.syscall(435, 0, 0)",
    "socket": "l.socket(40, 1, 0)",
    "memfd_create": "l.memfd_create(b'm', 0)",
    "shmget": "l.shmget(0, 4096, 0o1600)",
    "ptrace": "l.ptrace(0, 0, 0, 0)",
    "mount": "l.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
    "setuid": "l.setuid(0)",
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_that_would_widen_it_are_refused(contained, call):
    program = f"""
        import ctypes, os
        l = ctypes.CDLL(None, use_errno=True)
        assert {CALLS[call]} == -1, "it was let through"
        print(os.strerror(ctypes.get_errno()))
    """
    found = inside(program)
    assert found.passed, found.output
    # Of an ordinary user's single id the kernel says that there is no other.
    assert found.output.strip() in ("Operation not permitted", "Function not implemented", "Invalid argument")


def test_the_environment_is_clean(contained, monkeypatch):
    monkeypatch.setenv("COLA_SECRET", "a token")
    program = "import os; print(os.environ.get('COLA_SECRET'), len(os.environ))"
    assert outside(program).startswith("a token")
    assert inside(program).output == "None 4\n"


# ---------------------------------------------------------------------------------------------
# time, memory, output, processes


def test_endless_computing_ends(contained):
    began = time.monotonic()
    found = inside("while True: pass", replace(TIGHT, cpu_seconds=1, wall_seconds=60))
    assert found.outcome == "timeout" and time.monotonic() - began < 30
    assert inside("import time\nwhile time.process_time() < 1.3: pass", replace(TIGHT, wall_seconds=60)).passed


def test_endless_waiting_ends(contained):
    program = "import time; time.sleep(1)"
    assert inside(program, replace(TIGHT, wall_seconds=0.3)).outcome == "timeout"
    assert inside(program).passed


def test_a_signal_handler_does_not_help(contained):
    program = (
        "import signal\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass"
    )
    assert inside(program, replace(TIGHT, cpu_seconds=1, wall_seconds=60)).outcome == "timeout"


def test_memory_ends(contained):
    program = "block = bytearray(400 * 2**20)"
    found = inside(program)
    assert found.outcome == "failed" and "MemoryError" in found.output
    assert inside(program, replace(TIGHT, memory_bytes=2**30)).passed


def test_printing_without_end_ends(contained):
    found = inside("while True: print('again and again')", replace(TIGHT, cpu_seconds=60, wall_seconds=60))
    assert found.outcome == "output" and len(found.output) == TIGHT.output_bytes
    assert found.seconds < 30
    program = "import sys; sys.stderr.write('x' * 10_000)"
    assert inside(program).outcome == "output"
    assert inside(program, replace(TIGHT, output_bytes=10_000)).passed


COUNT = """
    import os, time
    n = 0
    try:
        while n < 40:
            if os.fork() == 0:
                time.sleep(60)
            n += 1
    except BlockingIOError:
        pass
    print(n)
"""


def test_processes_are_counted(contained):
    few, more = (inside(COUNT, replace(TIGHT, processes=n)) for n in (4, 12))
    assert few.passed and more.passed
    # The program is one itself; of an ordinary user's the process that watches is another.
    assert int(few.output) in (2, 3) and int(more.output) == int(few.output) + 8


def test_threads_count_as_processes(contained):
    program = """
        import threading, time
        for _ in range(40):
            threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
    """
    assert "can't start new thread" in inside(program).output
    assert inside(program, replace(TIGHT, processes=64, memory_bytes=2**34)).passed


def test_forking_without_end_ends_and_nothing_is_left(contained, marker):
    program = f"""
        import os, sys
        while True:
            try:
                os.fork()
            except OSError:
                os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "while True: pass", "{marker}"])
    """
    found = inside(program, replace(TIGHT, cpu_seconds=30, wall_seconds=2))
    assert found.outcome == "timeout"
    assert alive(marker) == []


DAEMON = """
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in range(3):
                os.close(fd)
            os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)", "{marker}"])
        os._exit(0)
    os.wait()
    time.sleep(0.5)
"""


def test_a_daemon_does_not_outlive_its_program(contained, marker):
    program = DAEMON.format(marker=marker)
    assert inside(program).passed
    assert alive(marker) == []
    outside(program)
    assert len(alive(marker)) == 1, "the same program leaves one behind where nothing contains it"


def test_it_dies_with_the_process_that_asked(contained, marker):
    program = DAEMON.format(marker=marker).replace("sleep(0.5)", "sleep(60)")
    script = f"run_code({textwrap.dedent(program)!r}, allow_code_execution=True, limits=Limits(wall_seconds=100))"
    # The word stands in the command line of the process that asks as well.
    asking = subprocess.Popen([sys.executable, "-c", LOAD + script])
    try:
        assert eventually(lambda: bool(set(alive(marker)) - {asking.pid}), 60)
    finally:
        asking.kill()
        asking.wait()
    assert eventually(lambda: not alive(marker))


def test_two_at_a_time_do_not_share_a_limit(contained):
    found: list[CodeRun] = []
    threads = [threading.Thread(target=lambda: found.append(inside(COUNT + "    time.sleep(1)\n"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run.output for run in found}) == 1 and all(run.passed for run in found)


# ---------------------------------------------------------------------------------------------
# an ordinary user

NOBODY = 65534
ISOLATED = ["unshare", "--user", "--mount", "--net", "--ipc", "--pid", "--fork", "true"]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root's rights, to become an ordinary user")

ASK = """
import socket, sys
secret, trace = sys.argv[1:]
attacks = {
    "trivial": "assert 1 + 1 == 2",
    "file": f"print(open({secret!r}).read())",
    "write": f"open({trace!r}, 'w')",
    "socket": "import socket; socket.socket()",
}
assert open(secret).read() == "the user's own" and socket.socket()  # where nothing contains it, it may
for name, program in attacks.items():
    try:
        found = run_code(program, allow_code_execution=True)
        print(name, found.outcome, (found.output.splitlines() or ["-"])[-1])
    except SandboxError as error:
        print(name, "refused:", error)
"""


@dataclass(frozen=True)
class OrdinaryUser:
    """A user without rights, with a home, and with an interpreter and a sandbox that it may read."""

    home: Path
    python: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        rights = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        return subprocess.run(
            [*map(str, command)], capture_output=True, text=True, timeout=120, cwd="/", env=self.environment, **rights
        )

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": os.defpath}

    @property
    def question(self) -> list[str]:
        """The command that runs the attacks; each line of its output says what came of one."""
        load = LOAD.replace(repr(sandbox.__file__), repr(str(self.home / "cola_lib" / "evaluate" / "sandbox.py")))
        load = f"import sys; sys.path.insert(0, {str(self.home)!r})" + load
        return [str(self.python), "-I", "-S", "-c", load + ASK, str(self.home / "secret"), str(self.home / "it-ran")]


@pytest.fixture(scope="module")
def ordinary_user() -> Iterator[OrdinaryUser]:
    """The interpreter and the source may lie where only root comes in, so that both are copied."""
    # Not in /tmp, where the program has its own folder: an interpreter there could not be shown to it.
    home = Path(tempfile.mkdtemp(prefix="cola-test-", dir="/var/tmp"))
    try:
        sources = Path(sandbox.__file__).parents[1]
        for name in ("__init__.py", "errors.py", "evaluate/__init__.py", "evaluate/sandbox.py", "evaluate/jail.py"):
            copy = home / "cola_lib" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            # The packages' own imports take long and need other libraries; these modules need none.
            copy.write_text("" if copy.name == "__init__.py" else (sources / name).read_text(encoding="utf-8"))
        (home / "secret").write_text("the user's own")
        user = OrdinaryUser(home, Path(sandbox._interpreter()))
        give_away(home)
        if cannot_start(user):
            user = replace(user, python=copied_interpreter(home / "python"))
            give_away(home)
            if problem := cannot_start(user):
                pytest.skip(f"an ordinary user cannot start this interpreter, nor a copy of it: {problem}")
        (home / "secret").chmod(0o600)
        yield user
    finally:
        shutil.rmtree(home)


def give_away(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def cannot_start(user: OrdinaryUser) -> str:
    """Why the user cannot run its interpreter; nothing if it can."""
    try:
        done = user.run(user.python, "-I", "-S", "-c", "import json, sysconfig")
    except OSError as error:
        return str(error)
    return done.stderr if done.returncode else ""


def copied_interpreter(folder: Path) -> Path:
    """An interpreter with its standard library, where everybody may read it."""
    stdlib = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    python = folder / "bin" / Path(sandbox._interpreter()).name
    python.parent.mkdir(parents=True)
    shutil.copy2(sandbox._interpreter(), python)
    for shared in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
        (folder / "lib").mkdir(exist_ok=True)
        shutil.copy2(shared, folder / "lib")
    unneeded = shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "ensurepip", "__pycache__")
    shutil.copytree(stdlib, folder / stdlib.relative_to(sys.base_prefix), ignore=unneeded)
    return python


def assert_refused(done: subprocess.CompletedProcess[str], user: OrdinaryUser) -> None:
    answers = done.stdout.splitlines()
    assert len(answers) == 4, done.stderr
    for answer in answers:
        assert "refused: generated code cannot be contained here, so it was not run: unshare with a user" in answer
        assert "kernel.unprivileged_userns_clone" in answer
    assert not (user.home / "it-ran").exists()


@as_root
def test_an_ordinary_user_is_shut_in_too_or_refused(ordinary_user):
    """Where the kernel gives an ordinary user namespaces the programs run and reach nothing; elsewhere none runs."""
    done = ordinary_user.run(*ordinary_user.question)
    if ordinary_user.run(*ISOLATED).returncode:
        assert_refused(done, ordinary_user)
        pytest.skip("here an ordinary user gets no namespaces: every program was refused, as it should be")
    trivial, file, write, connection = done.stdout.splitlines()
    assert trivial == "trivial passed -", done.stderr
    assert file.startswith("file failed FileNotFoundError")
    assert write.startswith("write failed") and not (ordinary_user.home / "it-ran").exists()
    assert connection.startswith("socket failed PermissionError")


@as_root
def test_an_ordinary_user_without_namespaces_is_refused(ordinary_user, open_folder):
    """In a root of its own that is no root of a mount namespace, the kernel gives nobody a user namespace."""
    for command in (["unshare", "--mount", "true"], ["setpriv", "--version"], ["chroot", "--version"]):
        if not shutil.which(command[0]) or subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"takes {' '.join(command)}, which does not work here")
    enter = 'mount --rbind / "$0" && exec chroot "$0" setpriv --reuid "$1" --regid "$1" --clear-groups "${@:2}"'
    command = ["unshare", "--mount", "bash", "-c", enter, str(open_folder), str(NOBODY), *ordinary_user.question]
    environment = ordinary_user.environment | {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert_refused(done, ordinary_user)

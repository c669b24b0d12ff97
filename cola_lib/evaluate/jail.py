"""The inside of the sandbox: a script that shuts itself in, then runs one program.

:mod:`cola_lib.evaluate.sandbox` starts it as a process of its own, with the standard library and nothing else, so
that it forks while it has one thread. It reads one line of JSON from its standard input, and takes the end of that
input for the order to stop: it dies with whoever started it. What it found out goes as JSON to the file descriptor
that it was given.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import time

DRIVER = """
def _run():
    import contextlib, json, os, sys
    with open(0, "rb", closefd=False) as file:
        task = json.loads(file.read())
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.set_inheritable(3, False)
    exec(compile(task["program"], "<program>", "exec"), {})
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(3, task["token"].encode())
    os._exit(0)
_run()
"""
"""Runs a program and says so if its end is reached: one that calls ``exit`` before its tests has not passed them.

The globals start empty, as in the metric ``code_eval``: what stands below ``if __name__ == "__main__":`` does not
run."""

ROOT = "/proc"
"""Mount point of the new root. Any folder that is always there will do: the mount is seen in this namespace only."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
INNER_ID = 1000

# linux/sched.h
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000,
    0x8000000,
    0x10000000,
    0x20000000,
    1 << 30,
)
CLONE_ANY_NAMESPACE = 0x7E020080
# linux/mount.h
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 8, 4096, 16384, 1 << 18, 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
# linux/prctl.h, linux/seccomp.h, linux/bpf_common.h
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2
BPF_LOAD, BPF_JEQ, BPF_JGE, BPF_JSET, BPF_RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
RET_KILL, RET_ERRNO, RET_ALLOW, EPERM, ENOSYS = 0x80000000, 0x50000, 0x7FFF0000, 1, 38
X32_CALLS = 0x40000000

ARCHITECTURES = {
    # AUDIT_ARCH, clone, clone3, then the calls that are refused
    "x86_64": (
        0xC000003E,
        56,
        435,
        {
            "socket": 41,
            "shmget": 29,
            "semget": 64,
            "msgget": 68,
            "ptrace": 101,
            "add_key": 248,
            "request_key": 249,
            "keyctl": 250,
            "unshare": 272,
            "perf_event_open": 298,
            "setns": 308,
            "memfd_create": 319,
            "bpf": 321,
            "userfaultfd": 323,
            "io_uring_setup": 425,
            "io_setup": 206,
        },
    ),
    "aarch64": (
        0xC00000B7,
        220,
        435,
        {
            "socket": 198,
            "shmget": 194,
            "semget": 190,
            "msgget": 186,
            "ptrace": 117,
            "add_key": 217,
            "request_key": 218,
            "keyctl": 219,
            "unshare": 97,
            "perf_event_open": 241,
            "setns": 268,
            "memfd_create": 279,
            "bpf": 280,
            "userfaultfd": 282,
            "io_uring_setup": 425,
            "io_setup": 0,
        },
    ),
}
"""Machines whose system calls are known here, with the calls that a program has no need of.

Sockets: what belongs to no network namespace (``AF_VSOCK`` reaches out of a virtual machine). Namespaces: inside one of
its own a program could mount memory that no limit counts. Shared memory, queues and keys: memory that outlives or
escapes the address space that is limited."""

libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    source_, target_, kind_, options_ = encoded
    what = f"mount {source} on {target}"
    _call(what, libc.mount(source_, target_, kind_, ctypes.c_ulong(flags), options_))


def _restrict_mount(target: str, attributes: int, *, recursive: bool) -> None:
    """Take rights away from a mount; Linux 5.12 or newer."""
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    result = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), flags, wanted, len(wanted))
    _call(f"mount_setattr {target}", result)


# ---------------------------------------------------------------------------------------------
# shutting in


def leave_namespaces(root: bool) -> None:
    """Go to new namespaces: mounts, network, shared memory, and process ids for what is forked."""
    flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWPID
    if root:
        _call("unshare", libc.unshare(flags))
        return
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare with a user namespace", libc.unshare(flags | CLONE_NEWUSER))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INNER_ID} {uid} 1"),
        ("gid_map", f"{INNER_ID} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def unused_id() -> int:
    """Choose an id at the end of those that there are here, another one for each process that runs now."""
    with open("/proc/self/uid_map") as file:
        first, _, length = map(int, file.read().split()[-3:])
    chosen = first + length - 1 - os.getpid() % min(length, 2**22)
    if chosen == 0:
        raise OSError(EPERM, "no user id but root's is there to run as")
    return chosen


def build_root(readable: list[str], work: str, owner: int, disk_bytes: int) -> None:
    """Mount a root that holds the interpreter, its libraries, four devices and an empty folder to work in, ``work``."""
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", ROOT, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=1m,mode=755")
    bound: list[str] = []
    for path in readable:
        if any(path == other or path.startswith(other + "/") for other in bound):
            continue
        inside = ROOT + path
        os.makedirs(os.path.dirname(inside), mode=0o755, exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
            continue
        _bind(path, inside)
        _restrict_mount(inside, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, recursive=True)
        bound.append(path)
    os.makedirs(ROOT + "/dev", mode=0o755)
    for path in DEVICES:
        _bind(path, ROOT + path)
        _restrict_mount(ROOT + path, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, recursive=False)
    os.mkdir(ROOT + work)
    # A file costs memory even if it is empty, hence a number of them as well.
    options = f"size={disk_bytes},nr_inodes=4096,mode=700,uid={owner},gid={owner}"
    _mount("tmpfs", ROOT + work, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    _restrict_mount(ROOT, MOUNT_ATTR_RDONLY, recursive=False)
    os.chdir(ROOT)
    _call("pivot_root", libc.pivot_root(b".", b"."))
    _call("umount of the old root", libc.umount2(b".", MNT_DETACH))
    os.chdir(work)


def _bind(path: str, inside: str) -> None:
    if os.path.isdir(path):
        os.makedirs(inside, mode=0o755, exist_ok=True)
    else:
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(path, inside, None, MS_BIND | MS_REC)


def limit(limits: dict[str, int]) -> None:
    """Set the limits of this process and of what it will start."""
    for name, value in (
        ("CPU", limits["cpu_seconds"]),
        ("AS", limits["memory_bytes"]),
        ("FSIZE", limits["file_bytes"]),
        ("NPROC", limits["processes"]),
        ("NOFILE", 64),
        ("CORE", 0),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def become(owner: int) -> None:
    """Turn from root into a user that owns nothing."""
    os.setgroups([])
    os.setresgid(owner, owner, owner)
    os.setresuid(owner, owner, owner)


def filter_calls() -> None:
    """Refuse some system calls, for good and for every child; no program started from here gains rights."""
    machine, clone, clone3, refused = ARCHITECTURES[platform.machine()]

    def returns(value: int) -> tuple[int, int, int, int]:
        return BPF_RETURN, 0, 0, value

    rules = [(BPF_LOAD, 0, 0, 4), (BPF_JEQ, 1, 0, machine), returns(RET_KILL), (BPF_LOAD, 0, 0, 0)]
    rules += [(BPF_JGE, 0, 1, X32_CALLS), returns(RET_ERRNO | EPERM)]
    for number in refused.values():
        rules += [(BPF_JEQ, 0, 1, number), returns(RET_ERRNO | EPERM)]
    # A filter cannot read what clone3 points to; the C library falls back to clone.
    rules += [(BPF_JEQ, 0, 1, clone3), returns(RET_ERRNO | ENOSYS)]
    rules += [(BPF_JEQ, 1, 0, clone), returns(RET_ALLOW), (BPF_LOAD, 0, 0, 16)]
    rules += [(BPF_JSET, 0, 1, CLONE_ANY_NAMESPACE), returns(RET_ERRNO | EPERM), returns(RET_ALLOW)]
    code = b"".join(struct.pack("HBBI", *rule) for rule in rules)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(rules), ctypes.addressof(buffer))
    _call("prctl no_new_privs", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _call("prctl seccomp", libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0))


def enter(settings: dict, owner: int, root: bool, program: int, done: int, trouble: int) -> None:
    """Shut this process in, and become the interpreter that runs the program. Returns only by an error."""
    build_root(settings["readable"], settings["work"], owner, settings["limits"]["disk_bytes"])
    os.dup2(program, 0)
    os.dup2(done, 3)
    limit(settings["limits"])
    if root:
        become(owner)
    # To die with the process that watches; not before, since a change of user forgets it.
    _call("prctl pdeathsig", libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    waiting = select.poll()
    waiting.register(trouble, 0)
    if waiting.poll(0):  # it is dead already
        os._exit(1)
    filter_calls()
    environment = {"HOME": settings["work"], "TMPDIR": settings["work"], "LANG": "C.UTF-8", "PATH": ""}
    command = [settings["python"], "-I", "-S", "-B", "-X", "utf8", "-c", DRIVER]
    os.execve(command[0], command, environment)


# ---------------------------------------------------------------------------------------------
# watching over it


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def start(settings: dict) -> tuple[int, int]:
    """Fork the program into its namespaces; returns its process id, and where it says that its end was reached."""
    root = os.geteuid() == 0
    if platform.machine() not in ARCHITECTURES:
        raise OSError(ENOSYS, f"the system calls of a {platform.machine()} are not known here")
    owner = unused_id() if root else INNER_ID
    leave_namespaces(root)
    program = os.memfd_create("program")
    os.write(program, json.dumps({name: settings[name] for name in ("program", "token")}).encode())
    os.lseek(program, 0, os.SEEK_SET)
    done, done_inside = os.pipe()
    trouble, trouble_inside = os.pipe()
    child = os.fork()
    if child == 0:
        # Moved out of the way of those that the program gets, 0 to 3; closed where it starts.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (program, done_inside, trouble_inside)]
        try:
            os.setsid()  # a signal to the program's own group must not reach the process that watches it
            enter(settings, owner, root, *ends)
        except Exception as error:  # of any kind: only the parent can tell
            os.write(ends[-1], _reason(error).encode())
        finally:
            os._exit(1)
    os.close(done_inside)
    os.close(trouble_inside)
    with open(trouble, "rb") as file:
        problem = file.read()  # ends when the program starts
    if problem:
        os.waitpid(child, 0)
        raise OSError(0, problem.decode())
    return child, done


def watch(child: int, done: int, settings: dict) -> dict:
    """Wait for the program's end, or make one; afterwards nothing that it started is alive."""
    began = time.monotonic()
    handle = os.pidfd_open(child)
    ready, _, _ = select.select([0, handle], [], [], settings["limits"]["wall_seconds"])
    seconds = time.monotonic() - began
    if handle not in ready:
        os.kill(child, signal.SIGKILL)
    # The first process of its process namespace: the kernel kills all others before this returns.
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    cpu = used.ru_utime + used.ru_stime
    out_of_time = not ready or (code == -signal.SIGKILL and cpu >= settings["limits"]["cpu_seconds"] * 0.9)
    with open(done, "rb") as file:
        reached = file.read(len(settings["token"]) + 1) == settings["token"].encode()
    return {"exit": code, "timeout": out_of_time, "reached": reached, "seconds": seconds, "cpu_seconds": cpu}


def main() -> None:
    """Read what to do, do it, report."""
    settings = json.loads(sys.stdin.buffer.readline())
    report = settings["report"]
    os.set_inheritable(report, False)
    try:
        found = watch(*start(settings), settings)
    except OSError as error:
        found = {"refused": _reason(error)}
    os.write(report, json.dumps(found).encode())


if __name__ == "__main__":
    main()

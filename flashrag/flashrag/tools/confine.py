"""The inside of the Python sandbox: a program of its own, which confines itself and then becomes the given interpreter.

Run as `python -I -S -c SOURCE SETTINGS` with the code on its standard input; it imports nothing but the standard
library. It needs only Linux, neither root nor another package: a user namespace of its own, and in it new namespaces of
mounts, processes, network and System V IPC. The root is an empty file system of bounded size, with the interpreter's
folders mounted into it read-only; there is no /proc, no /sys, no /home, no network device. Resource limits bound
memory, processes, files and processor time. A filter of system calls refuses ways round these limits: memory that
belongs to no process, nested namespaces, sockets outside the network namespace. The code runs as the first process of
its namespace: when it ends, every process that it started ends. It ends with this program, and this program ends with
the one that started it.

Exit codes: 0 and 1 are the code's success and failure, SETUP_FAILED says that the code was never run. Sources:
user_namespaces(7), mount_namespaces(7), mount_setattr(2), pivot_root(2), seccomp(2), and the kernel's tables of system
calls.
"""

import ctypes
import errno
import json
import os
import resource
import select
import signal
import struct
import sys
from pathlib import Path
from typing import Any, NoReturn

SETUP_FAILED = 125
INSIDE_ID = 1000  # the code's user in its own namespace: not root, so that switching to it drops every capability
NOBODY = 65534

CLONE_NEW = {"mounts": 0x20000, "names": 0x4000000, "ipc": 0x8000000, "users": 0x10000000, "pids": 0x20000000}
CLONE_NEW |= {"network": 0x40000000}
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SYS_MOUNT_SETATTR, SYS_PIVOT_ROOT = 442, {"x86_64": 155, "aarch64": 41}
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
# System calls by machine: x86-64's, then AArch64's.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
REFUSED = {
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "ptrace": (101, 117),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
}  # fmt: skip
CLONE, CLONE3, SOCKET = (56, 220), (435, 435), (41, 198)
FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink: those that have a network namespace
LOAD, IS, AT_LEAST, HAS_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000

libc = ctypes.CDLL(None, use_errno=True)


class SetupError(Exception):
    """This machine refuses a step of the confinement."""


def check(returned: int, step: str) -> None:
    if returned < 0:
        raise SetupError(f"{step}: {os.strerror(ctypes.get_errno())}")


def die_with_parent() -> None:
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:  # noqa: PTH123 (one write(2), as these files want it)
            file.write(text)
    except OSError as error:
        raise SetupError(f"writing {text!r} to {path}: {error.strerror}") from error


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind and kind.encode(), flags, options.encode())
    check(libc.mount(*arguments), f"mounting {source} at {target}")


def make_read_only(target: str) -> None:
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = AT_RECURSIVE if target != "/" else 0
    outcome = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), flags, attributes, ctypes.sizeof(attributes))
    check(outcome, f"mounting {target} read-only (Linux 5.12 or newer)")


def enter_namespaces() -> None:
    """Leave the host's namespaces. The new namespace of processes begins with this process's next child."""
    ready, done = os.pipe()
    writer = os.fork()
    if writer == 0:  # stays outside, because only there a process may map more than one id
        os.close(done)
        os._exit(0 if os.read(ready, 1) and write_id_maps(os.getppid()) else SETUP_FAILED)
    os.close(ready)
    check(libc.unshare(sum(CLONE_NEW.values())), "making namespaces of its own (unshare)")
    os.write(done, b"u")
    os.close(done)
    if wait_for(writer) != 0:
        raise SetupError("mapping user ids into the new user namespace")


def write_id_maps(pid: int) -> bool:
    """Map the ids of the new namespace, from outside it. If the host's user is root, the code runs as uid 65534."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        users = groups = f"0 0 1\n{INSIDE_ID} {NOBODY} 1\n"
    else:
        users, groups = f"{INSIDE_ID} {user} 1\n", f"{INSIDE_ID} {group} 1\n"
        write(f"/proc/{pid}/setgroups", "deny")
    write(f"/proc/{pid}/uid_map", users)
    write(f"/proc/{pid}/gid_map", groups)
    return True


def build_root(folders: list[str], files: list[str], disk_bytes: int) -> None:
    """An empty root that holds the host's paths that the interpreter needs, read-only."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    # Mounted over /tmp and made the root at once; the host's /tmp can then be seen again, below /host.
    mount("root", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.chdir("/tmp")
    Path("host").mkdir()
    check(libc.syscall(SYS_PIVOT_ROOT[os.uname().machine], b".", b"host"), "pivot_root")
    os.chdir("/")
    for path in [*folders, *files]:
        source = Path(f"/host{path}")
        if not source.exists():
            continue
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            Path(path).symlink_to(source.readlink())
            continue
        if source.is_dir():
            Path(path).mkdir(exist_ok=True)
        else:
            Path(path).touch()
        mount(str(source), path, None, MS_BIND | MS_REC)
        make_read_only(path)
    Path("/tmp").mkdir()
    mount("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_bytes},nr_inodes=1024,mode=1777")
    check(libc.umount2(b"/host", MNT_DETACH), "leaving the host's files")
    Path("/host").rmdir()
    make_read_only("/")
    os.chdir("/tmp")


def limit_resources(settings: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_AS: settings["memory_bytes"],
        resource.RLIMIT_NPROC: settings["max_processes"],
        resource.RLIMIT_CPU: settings["cpu_s"],
        resource.RLIMIT_FSIZE: settings["disk_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def filter_program(machine: str) -> bytes:
    """The filter as the kernel reads it: a comparison that does not hold skips the instructions after it."""
    architecture, column = MACHINES[machine]
    number, first_argument = 0, 16  # where a filter finds them; an argument's low half
    lines = [(LOAD, 0, 4), (IS, 1, architecture), (RETURN, 0, KILL), (LOAD, 0, number)]
    lines += [(AT_LEAST, -1, 1 << 30), (RETURN, 0, KILL)]  # x86-64's second table
    for calls in REFUSED.values():
        lines += [(IS, -1, calls[column]), (RETURN, 0, REFUSE | errno.EPERM)]
    # The C library falls back to clone, whose flags a filter can see.
    lines += [(IS, -1, CLONE3[column]), (RETURN, 0, REFUSE | errno.ENOSYS)]
    clone = [(LOAD, 0, first_argument), (HAS_BIT, -1, CLONE_NEW["users"]), (RETURN, 0, REFUSE | errno.EPERM)]
    clone += [(RETURN, 0, ALLOW)]
    socket = [(LOAD, 0, first_argument)]
    for family in FAMILIES:
        socket += [(IS, -1, family), (RETURN, 0, ALLOW)]
    socket += [(RETURN, 0, REFUSE | errno.EPERM)]
    lines += [(IS, -len(clone), CLONE[column]), *clone, (IS, -len(socket), SOCKET[column]), *socket]
    lines += [(RETURN, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", code, max(skip, 0), max(-skip, 0), value) for code, skip, value in lines)


def refuse_system_calls() -> None:
    program = filter_program(os.uname().machine)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header), "prctl(PR_SET_SECCOMP)")


def become_nobody() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
        os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
        die_with_parent()  # a change of user clears the setting
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def run_confined(settings: dict[str, Any], parent_alive: int) -> NoReturn:
    """The first process of the new namespaces: build the root, give everything up, become the interpreter."""
    die_with_parent()
    os.setsid()
    build_root(settings["folders"], settings["files"], settings["disk_bytes"])
    become_nobody()
    if select.select([parent_alive], [], [], 0)[0]:
        os._exit(SETUP_FAILED)  # the parent died before the kernel was asked to end this process with it
    limit_resources(settings)
    refuse_system_calls()
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
    os.execve(settings["python"], [settings["python"], "-I", "-S", "-B", "-u", "-"], environment)


def wait_for(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start(settings: dict[str, Any]) -> int:
    """The code's success (0) or failure (1); raises `SetupError` when it was not run."""
    if os.uname().machine not in MACHINES:
        raise SetupError(f"{os.uname().machine}: system calls are known only for {' and '.join(MACHINES)}")
    die_with_parent()
    if os.getppid() != settings["parent_pid"]:
        raise SetupError("the process that started the sandbox is gone")
    enter_namespaces()
    (alive, held), (fault, report) = os.pipe(), os.pipe()  # all are closed when the interpreter starts
    first = os.fork()
    if first == 0:
        os.close(held)
        try:
            run_confined(settings, alive)
        except Exception as error:  # the parent reports any failure
            os.write(report, f"{type(error).__name__}: {error}".encode()[:4000])
            os._exit(SETUP_FAILED)
    os.close(report)
    code = wait_for(first)
    if reason := os.read(fault, 4000):
        raise SetupError(reason.decode())
    return min(abs(code), 1)


if __name__ == "__main__":
    try:
        exit_code = start(json.loads(sys.argv[1]))
    except (OSError, SetupError) as error:
        print(error)
        exit_code = SETUP_FAILED
    sys.exit(exit_code)

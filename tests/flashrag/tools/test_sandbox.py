"""Hostile code in the real sandbox: what it tries fails, it ends in time, and nothing of it stays."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from textwrap import dedent

import pytest

from flashrag.errors import ToolError, UserError
from flashrag.tools import sandbox
from flashrag.tools.sandbox import MIB, Ended, PythonSandbox, Run, SandboxLimits

LIMITS = SandboxLimits(timeout_s=5.0, memory_bytes=128 * MIB, max_processes=8, disk_bytes=MIB, max_output_bytes=2000)
QUICK = SandboxLimits(timeout_s=1.0, memory_bytes=128 * MIB, max_processes=8, disk_bytes=MIB, max_output_bytes=2000)


def confines() -> bool:
    try:
        asyncio.run(PythonSandbox().check())
    except UserError:
        return False
    return True


needs_namespaces = pytest.mark.skipif(not confines(), reason="this machine offers no user namespaces")
pytestmark = pytest.mark.asyncio


async def run(code: str, limits: SandboxLimits = LIMITS) -> Run:
    return await PythonSandbox(limits).run(dedent(code))


def processes_with(marker: str) -> list[str]:
    """The host's processes that have the marker in their command line or environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in text and int(folder.name) != os.getpid():
            found.append(folder.name)
    return found


@needs_namespaces
async def test_code_runs_with_the_standard_library():
    assert await run("import math, json; print(json.dumps({'x': math.factorial(5)}))") == Run(
        '{"x": 120}\n', Ended.SUCCEEDED
    )
    outcome = await run("print('before')\nraise ValueError('wrong')")
    assert outcome.ended is Ended.FAILED
    assert outcome.output.startswith("before\nTraceback")
    assert outcome.output.endswith("ValueError: wrong\n")
    assert await run("print('é漢🤖')") == Run("é漢🤖\n", Ended.SUCCEEDED)
    assert (await run("import sys; sys.exit(125)")) == Run("", Ended.FAILED)  # no failure of the sandbox


@needs_namespaces
async def test_an_endless_loop_is_stopped_with_what_it_printed():
    started = time.monotonic()
    outcome = await run("print('on')\nwhile True: pass", QUICK)
    assert outcome == Run("on\n", Ended.TIMED_OUT)
    assert 1.0 <= time.monotonic() - started < 10


@needs_namespaces
async def test_code_that_ignores_every_signal_is_stopped():
    code = """
        import signal, time
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: time.sleep(1)
    """
    assert (await run(code, QUICK)).ended is Ended.TIMED_OUT


@needs_namespaces
async def test_a_fork_bomb_stays_small_and_leaves_nothing():
    marker = f"bomb{time.time_ns()}"
    code = f"""
        import os, sys, time
        if len(sys.argv) == 1:
            n = 0
            while True:
                try:
                    pid = os.fork()
                except OSError as error:
                    print(n, error.strerror, flush=True)
                    break
                if pid == 0:
                    os.environ['MARK'] = '{marker}'
                    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '{marker}'])
                n += 1
            time.sleep(0.2)
            while True:
                try: os.fork()
                except OSError: pass
    """
    task = asyncio.create_task(run(code, SandboxLimits(timeout_s=2.0, memory_bytes=128 * MIB, max_processes=8)))
    most = 0
    while not task.done():
        await asyncio.sleep(0.1)
        most = max(most, len(processes_with(marker)))
    outcome = await task
    assert outcome == Run("7 Resource temporarily unavailable\n", Ended.TIMED_OUT)
    assert most == 7  # the host sees them, and they are no more than allowed
    assert processes_with(marker) == []


@needs_namespaces
async def test_a_process_left_behind_ends_with_the_code():
    marker = f"daemon{time.time_ns()}"
    code = f"""
        import os, subprocess, sys
        subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '{marker}'], start_new_session=True)
        print('left')
    """
    assert await run(code) == Run("left\n", Ended.SUCCEEDED)
    assert processes_with(marker) == []


@needs_namespaces
@pytest.mark.parametrize(
    "code",
    [
        "bytearray(10 * 2**30)",
        "x = 'x'\nwhile True: x += x",
        "import mmap; m = mmap.mmap(-1, 10 * 2**30)",
        "import ctypes; ctypes.CDLL(None, use_errno=True); p = ctypes.create_string_buffer(10 * 2**30)",
    ],
)
async def test_memory_is_bounded(code: str):
    outcome = await run(code)
    assert outcome.ended is Ended.FAILED
    assert "MemoryError" in outcome.output or "Cannot allocate memory" in outcome.output


@needs_namespaces
async def test_memory_beside_that_of_a_process_is_bounded():
    """Shared memory, files in memory, and the file systems that a further namespace could mount."""
    code = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        print("shm", libc.shmget(0, 1 << 30, 0o1600), ctypes.get_errno())
        print("user namespace", libc.unshare(0x10000000), ctypes.get_errno())
        print("by clone", libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0), ctypes.get_errno())
        print("mount", libc.mount(b"x", b"/tmp", b"tmpfs", 0, b""), ctypes.get_errno())
        for path in ("/tmp/big", None):
            file = os.open(path, os.O_CREAT | os.O_WRONLY) if path else os.memfd_create("x")
            try:
                for _ in range(100): os.write(file, b"x" * 2**20)
                print("written")
            except OSError as error:
                print(error.errno)
    """
    outcome = await run(code)
    assert outcome.output.split("\n") == [
        "shm -1 1", "user namespace -1 1", "by clone -1 1", "mount -1 1", "27", "27", "",  # EPERM 1, EFBIG 27
    ]  # fmt: skip


@needs_namespaces
async def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"""
            import socket
            for host in ("127.0.0.1", "10.0.0.1", "1.1.1.1"):
                try:
                    socket.create_connection((host, {port}), timeout=1)
                    print("connected")
                except OSError as error:
                    print(type(error).__name__, error.errno)
            print(socket.if_nameindex())
            try: socket.socket(40, socket.SOCK_STREAM)  # to a virtual machine's host
            except OSError as error: print(error.errno)
        """
        outcome = await run(code)
    assert "connected" not in outcome.output
    assert outcome.output.count("OSError 101") == 3  # ENETUNREACH: even the own machine is out of reach
    assert outcome.output.endswith("[(1, 'lo')]\n1\n")


@needs_namespaces
async def test_the_hosts_files_are_out_of_sight_and_cannot_be_written(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    secret.chmod(0o666)
    tmp_path.chmod(0o777)
    code = f"""
        import os, sys
        for path in ({str(secret)!r}, "/etc/passwd", "/proc/self/environ", "/home", "/root/.ssh", "/sys", "/var"):
            print(os.path.exists(path))
        for path in ({str(secret)!r}, "/usr/x", "/x", "/etc/x", sys.base_prefix + "/x", os.__file__):
            try: open(path, "w"); print("written", path)
            except OSError as error: print(error.strerror)
        print(sorted(os.environ), os.getuid(), os.getpid())
        open("/tmp/own", "w").write("kept for this run"); print(os.listdir("/tmp"))
        print([bool(os.statvfs(path).f_flag & os.ST_RDONLY) for path in ("/", "/usr", sys.base_prefix, "/tmp")])
    """
    lines = (await run(code)).output.split("\n")
    assert lines[:7] == ["False"] * 7
    assert not any("written" in line for line in lines[7:13])
    assert (
        {"Read-only file system"}
        <= set(lines[7:13])
        <= {
            "Read-only file system",
            "No such file or directory",
            "Permission denied",
        }
    )
    assert lines[13] == "['HOME', 'LANG', 'PATH'] 1000 1"
    assert lines[14] == "['own']"
    assert lines[15] == "[True, True, True, False]"  # whoever the files belong to
    assert secret.read_text() == "s3cret"
    assert (await run("import os; print(os.listdir('/tmp'))")).output == "[]\n"  # the next run finds nothing of it


@needs_namespaces
async def test_nothing_outside_can_be_killed():
    code = """
        import os, signal
        for pid in (os.getppid(), 0, -1, *range(2, 3000)):
            try: os.kill(pid, signal.SIGKILL); print("sent", pid)
            except OSError: pass
        print("alive")
    """
    outcome = await run(code)
    assert outcome.ended is Ended.SUCCEEDED
    # Process 0 is its own group, and the first process of a namespace does not hear its own SIGKILL.
    assert [line for line in outcome.output.split() if line not in ("sent", "0")] == ["alive"]


@needs_namespaces
async def test_a_flood_of_output_is_cut():
    outcome = await run("while True: print('x' * 1000)")
    assert outcome.ended is Ended.FLOODED
    assert len(outcome.output) == LIMITS.max_output_bytes


@needs_namespaces
async def test_a_flood_from_children_that_outlive_their_parent_is_cut():
    code = """
        import os
        if os.fork() == 0:
            while True: os.write(1, b"y" * 1000)
        import time; time.sleep(60)
    """
    assert (await run(code)).ended is Ended.FLOODED


@needs_namespaces
async def test_cancelling_stops_the_code_at_once():
    marker = f"cancelled{time.time_ns()}"
    code = f"import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'while True: pass', '{marker}'])"
    task = asyncio.create_task(PythonSandbox(LIMITS).run(code))
    while not processes_with(f"pass\0{marker}"):
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes_with(marker) == []


@needs_namespaces
async def test_it_ends_with_the_process_that_started_it():
    marker = f"orphan{time.time_ns()}"
    code = f"import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'while True: pass', '{marker}'])"
    program = f"import asyncio; from flashrag.tools.sandbox import *; asyncio.run(PythonSandbox().run({code!r}))"
    with subprocess.Popen([sys.executable, "-c", program]) as starter:
        while not processes_with(f"pass\0{marker}"):
            await asyncio.sleep(0.05)
        starter.kill()
    for _ in range(100):
        if not processes_with(marker):
            return
        await asyncio.sleep(0.05)
    pytest.fail("the code outlived the process that started it")


@needs_namespaces
async def test_the_event_loop_goes_on_and_runs_take_turns():
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    box = PythonSandbox(LIMITS, max_concurrent=1)
    outcomes = await asyncio.gather(*(box.run(f"import time; time.sleep(0.3); print({n})") for n in range(3)))
    ticking.cancel()
    assert [outcome.output for outcome in outcomes] == ["0\n", "1\n", "2\n"]
    assert ticks > 30  # of at least 0.9 s


@needs_namespaces
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
async def test_it_runs_in_a_thread_on_either_event_loop(kind: str):
    """An agent-loop worker has its event loop in a thread, and it is uvloop's."""
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": pytest.importorskip("uvloop").new_event_loop}
    outcomes: list[Run] = []

    def work() -> None:
        with asyncio.Runner(loop_factory=loops[kind]) as runner:
            outcomes.append(runner.run(run("print('in a thread')")))
            outcomes.append(runner.run(run("while True: pass", QUICK)))

    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert outcomes == [Run("in a thread\n", Ended.SUCCEEDED), Run("", Ended.TIMED_OUT)]


async def test_without_namespaces_it_refuses(monkeypatch: pytest.MonkeyPatch):
    """A machine that offers none is played by a kernel interface that does not exist."""
    source = sandbox.CONFINE_SOURCE.replace("libc.unshare(", "libc.syscall(999, ")
    assert source != sandbox.CONFINE_SOURCE
    monkeypatch.setattr(sandbox, "CONFINE_SOURCE", source)
    with pytest.raises(ToolError, match=r"namespaces of its own \(unshare\): Function not implemented"):
        await run("print('never run')")
    with pytest.raises(UserError, match=r"cannot confine code on this machine: .*\. It needs Linux 5\.12"):
        await PythonSandbox().check()


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_a_user_who_is_not_root_can_confine_too():
    program = "print(6 * 7); import os; print(os.getuid(), os.path.exists('/etc/passwd'))"
    python = "/usr/bin/python3"
    settings = {"python": python, "folders": list(sandbox.FOLDERS), "files": list(sandbox.FILES)}
    settings |= {"memory_bytes": 128 * MIB, "max_processes": 8, "disk_bytes": MIB, "cpu_s": 5}
    start = subprocess.run(
        [python, "-I", "-S", "-c", sandbox.CONFINE_SOURCE, json.dumps({**settings, "parent_pid": os.getpid()})],
        input=program, capture_output=True, text=True, user=65534, group=65534, extra_groups=[], cwd="/", check=False,
    )  # fmt: skip
    assert (start.stdout, start.returncode) == ("42\n1000 False\n", 0), start

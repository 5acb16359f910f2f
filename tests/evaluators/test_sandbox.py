"""Real attempts on the sandbox. Each program tries one thing and prints what it got."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rlbridge.evaluators import sandbox
from rlbridge.evaluators.launcher import Limits
from rlbridge.evaluators.sandbox import End, Sandboxed

pytestmark = pytest.mark.usefixtures("sandbox")

PROGRAM = f"p{os.getpid()}.py"  # told from those of another session's tests
LIMITS = Limits(cpu_s=5, wall_s=60, memory_mb=256, disk_mb=8, output_kb=64)


def run(program: str, limits: Limits = LIMITS, data: bytes = b"") -> tuple[End | None, str]:
    with Sandboxed([PROGRAM], {PROGRAM: program}, limits) as running:
        output = running.run(data)
        return running.end, output.decode()


def alive() -> list[int]:
    """Processes that run a program of these tests."""
    return [pid for pid in psutil.pids() if PROGRAM in _command(pid)]


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def attempt(expression: str) -> str:
    """A program that says what came of it: the value, or the error's name."""
    return (
        "import os, sys, socket, ctypes, signal, subprocess\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"try: print('got', {expression})\n"
        "except BaseException as error: print('refused', type(error).__name__)\n"
    )


REFUSED = {
    "the network": "socket.create_connection(('1.1.1.1', 53), 2)",
    "names": "socket.getaddrinfo('example.org', 80)",
    "a port of the machine": "socket.create_connection(('127.0.0.1', PORT), 2)",
    "a raw socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "passwords": "open('/etc/shadow').read()",
    "our source": f"open({str(Path(sandbox.__file__))!r}).read()",
    "a home folder": f"os.listdir({str(Path.home())!r} + '/.ssh')",
    "the old root": "os.listdir('/.old')",
    "a file beside the root": "open('../../../../etc/hostname').read()",
    "processes of others": "os.listdir('/proc')",
    "the interpreter's files for writing": f"open({sys.base_prefix!r} + '/lib/x.py', 'w')",
    "libraries for writing": "open('/usr/lib/x', 'w')",
    "new devices": "os.mknod('/work/disk', 0o60600, os.makedev(8, 0))",
    "another root": "os.chroot('/')",
    "another user": "os.setuid(0)",
    "a signal to a process outside": "os.kill(OUTSIDE, 9)",
    "too much memory": "len(bytearray(1 << 30))",
    "too large a file": "open('big', 'wb').write(bytes(64 << 20))",
    "more open files than allowed": "[os.open('/dev/null', 0) for _ in range(100)]",
    "a setuid program": "subprocess.run(['/usr/bin/su'], check=True)",
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_gives_no(what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        expression = REFUSED[what].replace("PORT", str(listener.getsockname()[1]))
        end, output = run(attempt(expression.replace("OUTSIDE", str(os.getpid()))))
    assert (end, output.split()[0]) == (End.EXITED, "refused"), output


SYSTEM_CALLS = {
    "a new user namespace": "libc.unshare(0x10000000)",
    "a new mount namespace": "libc.unshare(0x00020000)",
    "a new network namespace": "libc.unshare(0x40000000)",
    "a mount": "libc.mount(b'none', b'/work', b'tmpfs', 0, None)",
    "a writable remount": "libc.mount(None, b'/usr/lib', None, 32 | 4096, None)",
    "to trace its supervisor": "libc.ptrace(16, 1, 0, 0)",
    "higher limits": "libc.prlimit(0, 6, (ctypes.c_ulong * 2)(10**6, 10**6), None)",
    "another host name": "libc.sethostname(b'x', 1)",
    "the loopback device": (
        "__import__('fcntl').ioctl(socket.socket(), 0x8914, b'lo' + bytes(14) + b'A' + bytes(23))"
    ),
}


@pytest.mark.parametrize("what", SYSTEM_CALLS)
def test_the_kernel_refuses(what: str) -> None:
    end, output = run(attempt(SYSTEM_CALLS[what]))
    assert end is End.EXITED
    assert output.split()[0] == "refused" or output.split()[1] == "-1", output


def test_it_sees_no_environment_and_no_processes_but_its_own() -> None:
    os.environ["RLBRIDGE_TEST_SECRET"] = "secret"
    try:
        _, output = run("import os; print(dict(os.environ), os.getppid(), os.listdir('/'))")
    finally:
        del os.environ["RLBRIDGE_TEST_SECRET"]
    assert "secret" not in output
    assert " 1 [" in output
    assert "home" not in output


def test_it_inherits_no_open_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with (tmp_path / "secret").open() as ours:
        os.set_inheritable(ours.fileno(), True)
        program = (
            "import os\n"
            "for number in range(3, 64):\n"
            "    try: print(number, os.read(number, 100))\n"
            "    except OSError: pass\n"
        )
        _, output = run(program)
    assert output == ""


def test_a_fork_bomb_ends_with_it_and_leaves_nothing() -> None:
    # No process ends by itself: one that did would make room for another, and the count would
    # be of all that ever were, not of those that lived at one time.
    bomb = (
        "import os, time\n"
        "while True:\n"
        "    try: os.fork()\n"
        "    except OSError: break\n"
        "print(1, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with Sandboxed([PROGRAM], {PROGRAM: bomb}, LIMITS) as running:
        assert running.ask(None) == b"1"  # one was refused: there are as many as there can be
        assert 1 < len(alive()) <= LIMITS.processes
    assert alive() == []


def test_what_it_leaves_running_dies_with_it() -> None:
    program = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0: time.sleep(1000)\n"
        "    os._exit(0)\n"
        "print('done', flush=True)\n"
    )
    end, output = run(program)
    assert (end, output) == (End.EXITED, "done\n")
    assert alive() == []


def test_a_killed_evaluator_leaves_no_program_and_no_worker_behind() -> None:
    script = (
        "import threading, asyncio\n"
        "from rlbridge.evaluators.launcher import Limits\n"
        "from rlbridge.evaluators.sandbox import Sandboxed\n"
        "from rlbridge.evaluators.workers import WorkerLimits, Workers\n"
        "limits = WorkerLimits(cpu_s=500, timeout_s=500)\n"
        "workers = Workers('multiprocessing.connection:wait', limits)\n"
        "asking = workers.call(object_list=[], timeout=1000)\n"
        "threading.Thread(target=lambda: asyncio.run(asking)).start()\n"
        "source = 'import time; print(1, flush=True); time.sleep(1000)'\n"
        "with Sandboxed(['orphan.py'], {'orphan.py': source}, Limits()) as running:\n"
        "    print(running.ask(None), flush=True)\n"
        "    running.ask(None)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"b'1'\n"
        deadline = time.monotonic() + 60
        wanted = {"orphan.py", "rlbridge.evaluators.worker"}
        while True:
            found = psutil.Process(process.pid).children(recursive=True)
            if wanted <= {part for child in found for part in _command(child.pid)}:
                break
            assert time.monotonic() < deadline, "program or worker never started"
            time.sleep(0.05)
        process.kill()
    _, left = psutil.wait_procs(found, timeout=60)
    assert left == []


def test_a_loop_uses_up_its_cpu_time_and_a_handler_does_not_save_it() -> None:
    limits = LIMITS.model_copy(update={"cpu_s": 1})
    program = "import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\nwhile True: pass\n"
    assert run(program, limits)[0] is End.CPU


def test_waiting_is_told_from_a_busy_machine() -> None:
    assert end_of_time("import time; time.sleep(1000)", End.STALLED) is End.STALLED
    assert end_of_time("while True: pass", End.OVERLOADED) is End.OVERLOADED


def end_of_time(program: str, wanted: End) -> End | None:
    """How it ends when its time is over; it gets more if it hadn't come to its point."""
    limits = LIMITS.model_copy(update={"cpu_s": 100})
    for wall_s in (2.0, 10.0, 50.0):
        end, _ = run(program, limits.model_copy(update={"wall_s": wall_s}))
        if end is wanted:
            break
    return end


def test_endless_output_is_cut_off() -> None:
    assert run("while True: print('x' * 1000)")[0] is End.OUTPUT


def test_input_that_is_not_read_does_no_harm() -> None:
    assert run("print('ok')", data=b"x" * (4 << 20)) == (End.EXITED, "ok\n")


def test_closing_its_output_does_not_end_its_time() -> None:
    program = "import os, time\nos.close(1)\ntime.sleep(1000)"
    assert end_of_time(program, End.STALLED) is End.STALLED


def test_an_error_is_told_from_success() -> None:
    assert run("1 / 0")[0] is End.CRASHED
    assert run("import os; os.kill(os.getpid(), 11)")[0] is End.CRASHED


def test_threads_and_deep_recursion_work_as_programs_expect() -> None:
    program = (
        "import sys, threading\n"
        "sys.setrecursionlimit(10000)\n"
        "def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\n"
        "thread = threading.Thread(target=lambda: print(depth(9000)))\n"
        "thread.start(); thread.join()\n"
    )
    assert run(program) == (End.EXITED, "9000\n")


def test_it_can_be_used_from_many_threads_at_once() -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(run(f"print({n})")[1])) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["0\n", "1\n", "2\n", "3\n"]


def test_packages_can_be_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "extra_package.py").write_text("value = 7")
    tmp_path.chmod(0o755)  # the program is nobody, and must be let in
    program = "import extra_package as e\nprint(e.value)\nopen(e.__file__, 'w')"
    with Sandboxed(["p.py"], {"p.py": program}, LIMITS, tmp_path) as running:
        output = running.run(b"")
    assert (running.end, output) == (End.CRASHED, b"7\n")
    assert (tmp_path / "extra_package.py").read_text() == "value = 7"


def test_without_namespaces_it_is_refused_with_what_to_do() -> None:
    # A kernel that grants no more user namespaces, in one of its own.
    program = "from rlbridge.plugins import Plugins; Plugins().evaluator('code')"
    command = f'echo 0 > /proc/sys/user/max_user_namespaces && exec {sys.executable} -c "$1"'
    result = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", command, "sh", program],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "ConfigError: no sandbox for strangers' code here (the sandbox failed" in result.stderr
    assert "code is never run without one" in result.stderr

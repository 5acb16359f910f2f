"""Runs one program of a stranger inside new namespaces; started by `rlbridge.evaluators.sandbox`.

A script for a bare interpreter (`python -I -S -B`): the standard library only, nothing of
rlbridge. It reads what to run as JSON from one pipe and tells how it went on another, which the
program never gets. Refuses to run anything where a namespace, a mount or a limit can't be had.

The order matters: sources are opened while we still are who we were, privileges are dropped
before the program's first instruction, and the chroot at the end forbids new user namespaces,
in which a program could give itself capabilities again.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
ID = 65534  # who the program is, inside, and outside if we are root

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x08000000, 0x10000000, 0x20000000
CLONE_NEWNET = 0x40000000
NAMESPACES = (
    CLONE_NEWUSER
    | CLONE_NEWNS
    | CLONE_NEWPID
    | CLONE_NEWNET
    | CLONE_NEWIPC
    | CLONE_NEWUTS
    | CLONE_NEWCGROUP
)
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 16384, 1 << 18, 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
# System calls that have one number on every architecture (Linux 5.12 has all three).
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = 1, 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
BASE, JAIL = "/tmp", "/jail"


def main() -> None:
    """Read the task, make the sandbox, run the program, tell how it ended."""
    task_fd, status_fd = int(sys.argv[1]), int(sys.argv[2])
    parent = os.getppid()
    with open(task_fd, encoding="utf-8") as source:
        task = json.load(source)
    os.set_inheritable(status_fd, False)
    try:
        trees = _isolate(task)
        _live_no_longer_than(parent)  # only now: a change of user forgets it
        first = os.fork()  # process 1 of the new namespace
        if first == 0:
            _live_no_longer_than(os.getppid())
            _build_root(task, trees)
            _drop_privileges()
            _supervise(task, status_fd)
        for tree in trees.values():
            os.close(tree)
        os.waitpid(first, 0)
    except OSError as error:
        _tell(status_fd, {"error": f"{error.filename or 'the kernel'}: {error.strerror}"})
        os._exit(1)


def _isolate(task: Any) -> dict[str, int]:
    """Enter new namespaces as `ID`; the trees to be mounted, opened before."""
    ready, go = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(go)
        os.read(ready, 1)
        _map_ids(os.getppid())
    _check(LIBC.unshare(NAMESPACES), "unshare")
    os.write(go, b"x")
    _, status = os.waitpid(mapper, 0)
    if status:
        raise OSError(status, "user IDs can't be mapped", "uid_map")
    os.close(ready)
    os.close(go)
    trees = {path: _open_tree(path) for path in (*task["readable"], *DEVICES)}
    os.setresgid(ID, ID, ID)
    os.setresuid(ID, ID, ID)
    return trees


def _map_ids(pid: int) -> NoReturn:
    """Map one user and one group of the namespace of `pid`; from outside, as root must."""
    try:
        root = os.geteuid() == 0
        for name, own in (
            ("setgroups", None),
            ("uid_map", os.geteuid()),
            ("gid_map", os.getegid()),
        ):
            line = "deny" if own is None else f"{ID} {ID if root else own} 1"
            with open(f"/proc/{pid}/{name}", "w") as target:
                target.write(line)
    except OSError:
        os._exit(1)
    os._exit(0)


def _live_no_longer_than(parent: int) -> None:
    _check(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os._exit(1)


def _open_tree(path: str) -> int:
    flags = OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC
    tree = LIBC.syscall(OPEN_TREE, AT_FDCWD, path.encode(), flags)
    _check(tree, path)
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
    if path not in DEVICES:
        attributes |= MOUNT_ATTR_NODEV
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    how = AT_EMPTY_PATH | AT_RECURSIVE
    _check(LIBC.syscall(MOUNT_SETATTR, tree, b"", how, ctypes.byref(wanted), size), path)
    return int(tree)


def _build_root(task: Any, trees: dict[str, int]) -> None:
    """A root that holds the interpreter, read-only, and a small folder in memory."""
    _check(LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "/")
    size_mb = task["disk_mb"]
    options = f"size={size_mb}m,nr_inodes=4096,mode=755,uid={ID},gid={ID}".encode()
    _check(LIBC.mount(b"tmpfs", BASE.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options), BASE)
    jail = BASE + JAIL
    for folder in ("/.old", JAIL, f"{JAIL}/work", f"{JAIL}/tmp", f"{JAIL}/dev"):
        os.mkdir(BASE + folder)
    for path, target in task["links"].items():
        os.symlink(target, jail + path)
    for path, tree in trees.items():
        place = jail + path
        if path in DEVICES:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
        else:
            os.makedirs(place, exist_ok=True)
        how = MOVE_MOUNT_F_EMPTY_PATH
        _check(LIBC.syscall(MOVE_MOUNT, tree, b"", AT_FDCWD, place.encode(), how), path)
        os.close(tree)
    for name, text in task["files"].items():
        with open(f"{jail}/work/{name}", "w", encoding="utf-8", errors="surrogatepass") as target:
            target.write(text)
    _check(LIBC.pivot_root(BASE.encode(), f"{BASE}/.old".encode()), "pivot_root")
    os.chdir("/")
    _check(LIBC.umount2(b"/.old", MNT_DETACH), "umount")
    os.chroot(JAIL)
    os.chdir("/work")


def _drop_privileges() -> None:
    for capability in range(64):
        if LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the kernel knows no more of them
    _check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _check(LIBC.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def _supervise(task: Any, status_fd: int) -> NoReturn:
    """Run the program; when it ends, so does this process, and with it all of the namespace."""
    program = os.fork()
    if program == 0:
        _become(task)
    _tell(status_fd, {"started": True})
    while True:
        pid, status, usage = os.wait4(-1, 0)
        if pid == program:
            break
    code = os.waitstatus_to_exitcode(status)
    _tell(status_fd, {"exit": code, "cpu_s": usage.ru_utime + usage.ru_stime})
    os._exit(0)


def _become(task: Any) -> NoReturn:
    limits = {
        resource.RLIMIT_AS: task["memory_mb"] << 20,
        resource.RLIMIT_CPU: task["cpu_s"],
        resource.RLIMIT_FSIZE: task["disk_mb"] << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NPROC: task["processes"] + 2,  # this one's two parents count, too
    }
    try:
        for kind, value in limits.items():
            # A second more before SIGKILL than before SIGXCPU.
            hard = value + 1 if kind == resource.RLIMIT_CPU else value
            resource.setrlimit(kind, (value, hard))
        os.setsid()
        os.execve(task["argv"][0], task["argv"], task["env"])  # noqa: S606
    finally:
        os._exit(127)


def _tell(status_fd: int, message: dict[str, Any]) -> None:
    os.write(status_fd, json.dumps(message).encode() + b"\n")


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


if __name__ == "__main__":
    main()

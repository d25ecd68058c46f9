"""Replaces itself with another program, which is ended when the parent process dies. Standard library only.

Run as `python -I -S launch.py '{"parent": …, "signal": …}' -- program argument …`. It is a program, not a `preexec_fn`,
because Python code between fork and exec can deadlock if the parent has threads. It imports nothing of this project,
because it may drop the permission to read it.

Options, as JSON:
- `parent`: its process id;
- `signal`: number of the signal that the program gets when the parent dies;
- `identity`: `"same"`, `"namespace"` (a user namespace in which the program runs as nobody) or `[uid, gid]`;
- `alive`: on systems without a parent-death signal, the read end of a pipe that the parent keeps open.
"""

import ctypes
import json
import os
import select
import sys
import time

NOBODY = 65534
REFUSED = 124  # exit status: the identity could not be changed, or the program not be run
CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1


def enter_namespace() -> None:
    """Enter a user namespace as nobody; files still belong to the user outside. OSError if a container forbids it."""
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123 pathlib costs its import
            file.write(text)


def drop_to(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def die_with_parent(parent: int, signal: int) -> None:
    """On Linux, set the parent-death signal. A later change of identity would reset it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it died before the call above
        sys.exit(REFUSED)


def watch_parent(alive: int, signal: int) -> None:
    """On other systems, start a watchdog that sends the signal once the parent's end of the pipe is closed."""
    program = os.getpid()
    if os.fork():
        os.wait()
        return
    if os.fork():  # a grandchild, so that the program has no child process that it does not know of
        os._exit(0)
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    while not select.select([alive], [], [], 1.0)[0]:
        try:
            os.kill(program, 0)
        except OSError:
            os._exit(0)
    os.kill(program, signal)
    time.sleep(0.1)
    os._exit(0)


def main() -> None:
    options = json.loads(sys.argv[1])
    program = sys.argv[3:]
    identity = options.get("identity", "same")
    try:
        if identity == "namespace":
            enter_namespace()
        elif identity != "same":
            drop_to(*identity)
        if sys.platform == "linux" and options.get("alive") is None:
            die_with_parent(options["parent"], options["signal"])
        else:
            watch_parent(options["alive"], options["signal"])
        os.execv(program[0], program)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error}\n")
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()

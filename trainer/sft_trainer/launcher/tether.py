"""Becomes a rank that dies with its launcher: `python -I -S tether.py LAUNCHER_PID COMMAND...`.

A launcher killed with SIGKILL cannot take its ranks along, and orphaned ranks go on writing to the volume.
So each rank asks the kernel for SIGKILL at its parent's death before it becomes what it is to run. A
program of its own and not Popen's preexec_fn, because that runs Python between fork and exec of a process
with threads. Only the standard library, and little of it: this is started once per rank, in about 20 ms.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Bind this process to the launcher and replace it by the command; exits 127 when that is not there."""
    launcher, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:  # it died before the request was made
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])

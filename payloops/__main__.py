"""The entry point of `payloops` and `python -m payloops`: runs a command, and ends it without a traceback."""

import errno
import os
import signal
import sys

NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of a disk that is full or broken."""


def main() -> None:
    """Run a command.

    It ends without a traceback on Ctrl-C, even during imports, and if its output cannot be written: to a closed pipe,
    or to a full disk.
    """
    try:
        # If they are closed (None), the next file opened would get their descriptor, and be written to.
        sys.stdout = sys.stdout or os.fdopen(_devnull(), "w")
        sys.stderr = sys.stderr or os.fdopen(_devnull(), "w")
        from payloops.cli.app import app  # noqa: PLC0415  # imports much, so it is imported where Ctrl-C is handled

        try:
            app()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno != errno.EPIPE and error.errno not in NOT_WRITTEN:
            raise
        os.dup2(_devnull(), sys.stdout.fileno())  # otherwise the interpreter tries to write again as it ends
        if error.errno != errno.EPIPE:
            print(f"payloops: cannot write the output: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def _devnull() -> int:
    return os.open(os.devnull, os.O_WRONLY)


if __name__ == "__main__":
    main()

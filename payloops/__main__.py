"""The command line, as `payloops` and as `python -m payloops`: how it ends, whatever ends it."""

import errno
import os
import signal
import sys

NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""What a disk says that takes no more."""


def main() -> None:
    """Run a command.

    Ctrl-C while it is still being imported, output that nobody reads, and output for which there is no room end it
    without a traceback. Whatever imports much is imported here, where that holds.
    """
    try:
        # Closed ones are None: what is opened next would take their place, and be written to.
        sys.stdout = sys.stdout or os.fdopen(_nowhere(), "w")
        sys.stderr = sys.stderr or os.fdopen(_nowhere(), "w")
        from payloops.cli import app  # noqa: PLC0415

        try:
            app()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno != errno.EPIPE and error.errno not in NOT_WRITTEN:
            raise
        os.dup2(_nowhere(), sys.stdout.fileno())  # or the interpreter tries again as it ends
        if error.errno != errno.EPIPE:
            print(f"payloops: cannot write the output: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def _nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY)


if __name__ == "__main__":
    main()

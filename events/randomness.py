"""Random bytes from the kernel, fetched for many uses at once.

Each call of the kernel takes longer than what the bytes are used for.
"""

import os
from collections import deque

LENGTH = 32
"""Bytes of each draw: those of a key."""
AHEAD = 64
"""Draws that are asked for at once."""

# Taken by an operation that no other thread comes between.
_ahead: deque[bytes] = deque()
os.register_at_fork(after_in_child=_ahead.clear)


def random_bytes() -> bytes:
    """32 bytes that nobody else gets: no other call, thread or process."""
    try:
        return _ahead.popleft()
    except IndexError:
        fresh = os.urandom(LENGTH * AHEAD)
        _ahead.extend([fresh[start : start + LENGTH] for start in range(LENGTH, len(fresh), LENGTH)])
        return fresh[:LENGTH]

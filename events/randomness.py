"""Random bytes from the kernel, fetched for many uses at once: a system call takes longer than using the bytes."""

import os
from collections import deque

LENGTH = 32
"""Bytes of each value: as many as a key has."""
BUFFERED = 64
"""Values fetched at once."""

# `popleft` is atomic, so threads never get the same value; nor do forked processes, which begin with an empty buffer.
_buffer: deque[bytes] = deque()
os.register_at_fork(after_in_child=_buffer.clear)


def random_bytes() -> bytes:
    """32 random bytes, each value returned only once."""
    try:
        return _buffer.popleft()
    except IndexError:
        fresh = os.urandom(LENGTH * BUFFERED)
        _buffer.extend([fresh[start : start + LENGTH] for start in range(LENGTH, len(fresh), LENGTH)])
        return fresh[:LENGTH]

"""A bounded memory of secrets that were verified, by digest under a random key of this process, never in the clear."""

import hashlib
import secrets
from typing import TypeVar

REMEMBERED = 10_000
"""Secrets in one memory; the oldest makes room."""

V = TypeVar("V")


class SecretDigest:
    """Digests that cannot be computed outside of this process."""

    def __init__(self) -> None:
        self._begun = hashlib.blake2b(key=secrets.token_bytes(32))

    def __call__(self, secret: str) -> bytes:
        digest = self._begun.copy()
        digest.update(secret.encode(errors="replace"))
        return digest.digest()


def remember(memory: dict[bytes, V], digest: bytes, value: V) -> None:
    """Keep the value as the newest."""
    memory.pop(digest, None)
    memory[digest] = value
    if len(memory) > REMEMBERED:
        del memory[next(iter(memory))]

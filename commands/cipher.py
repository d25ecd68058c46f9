"""Secrets at rest: AES-256-GCM, bound to the row they belong to.

A sealed value is `version (1 byte) · key id (4) · nonce (12) · ciphertext and tag`. The associated data is the
identity of the row, `table:key`, so that a value copied into another row cannot be opened there. The key id lets
a new ENCRYPTION_KEY be introduced while older values are still readable.
"""

import hashlib
import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION = b"\x01"
KEY_ID_BYTES = 4
NONCE_BYTES = 12
MARK_BYTES = len(VERSION) + KEY_ID_BYTES


REMEDY = "start with the ENCRYPTION_KEY that encrypted it, or with that key in ENCRYPTION_KEYS_OLDER"
"""For whoever runs the service, if a value cannot be opened."""


class SealBroken(Exception):
    """A sealed value cannot be opened: another ENCRYPTION_KEY, another row's value, or a damaged one."""

    def __init__(self, *, identity: str) -> None:
        super().__init__(f"what is sealed for {identity} cannot be decrypted")
        self.identity = identity


class Cipher:
    """Seals and opens secrets that are kept in tables."""

    def __init__(self, *, secret: str, older: Sequence[str] = ()) -> None:
        """
        Args:
            secret: ENCRYPTION_KEY, at least 32 characters; new values are sealed with it.
            older: former ones, with which existing values are still opened.
        """
        keys = [_derive(text) for text in (secret, *older)]
        self._ciphers = {_key_id(key): AESGCM(key) for key in reversed(keys)}
        self._current = _key_id(keys[0])

    @property
    def mark(self) -> bytes:
        """The first bytes of every value that is sealed with the present key, and of no other."""
        return VERSION + self._current

    @property
    def marks(self) -> list[bytes]:
        """The first bytes of every value that this can open."""
        return [VERSION + key_id for key_id in self._ciphers]

    def seal(self, plain: bytes, *, identity: str) -> bytes:
        """Encrypt a value for one row.

        Args:
            identity: names the row and nothing else: `webhook_secrets:<merchant id>`.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._ciphers[self._current].encrypt(nonce, plain, identity.encode())
        return VERSION + self._current + nonce + sealed

    def open(self, sealed: bytes, *, identity: str) -> bytes:
        """
        Raises:
            SealBroken: see there.
        """
        key_end = 1 + KEY_ID_BYTES
        nonce_end = key_end + NONCE_BYTES
        cipher = self._ciphers.get(sealed[1:key_end])
        if sealed[:1] != VERSION or cipher is None:
            raise SealBroken(identity=identity)
        try:
            return cipher.decrypt(sealed[key_end:nonce_end], sealed[nonce_end:], identity.encode())
        except (InvalidTag, ValueError):  # the latter: cut short
            raise SealBroken(identity=identity) from None


def _derive(secret: str) -> bytes:
    # The label is of the time when only credentials were sealed; another would make them unreadable.
    kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"payloops processor credentials")
    return kdf.derive(secret.encode())


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"payloops key id" + key).digest()[:KEY_ID_BYTES]

"""Processor credentials at rest: AES-256-GCM, bound to the row they belong to.

A sealed value is `version (1 byte) · key id (4) · nonce (12) · ciphertext and tag`. The associated data names
merchant and processor, so that a value copied into another merchant's row cannot be opened there. The key id
lets a new ENCRYPTION_KEY be introduced while older values are still readable.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

VERSION = b"\x01"
KEY_ID_BYTES = 4
NONCE_BYTES = 12


class CredentialsUnreadable(Exception):
    """Stored credentials cannot be opened: another ENCRYPTION_KEY, another row's value, or a damaged one."""

    def __init__(self, *, merchant_id: UUID, processor: str) -> None:
        super().__init__(f"the {processor} credentials of merchant {merchant_id} cannot be decrypted")
        self.merchant_id = merchant_id
        self.processor = processor


class CredentialCipher:
    """Seals and opens credentials."""

    def __init__(self, *, secret: str, older: Sequence[str] = ()) -> None:
        """
        Args:
            secret: ENCRYPTION_KEY, at least 32 characters; new values are sealed with it.
            older: former ones, with which existing values are still opened.
        """
        keys = [_derive(text) for text in (secret, *older)]
        self._ciphers = {_key_id(key): AESGCM(key) for key in reversed(keys)}
        self._current = _key_id(keys[0])

    def seal(self, credentials: dict[str, str], *, merchant_id: UUID, processor: str) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._ciphers[self._current].encrypt(
            nonce, orjson.dumps(credentials), _row_identity(merchant_id, processor)
        )
        return VERSION + self._current + nonce + sealed

    def open(self, sealed: bytes, *, merchant_id: UUID, processor: str) -> dict[str, str]:
        """
        Raises:
            CredentialsUnreadable: see there.
        """
        key_end = 1 + KEY_ID_BYTES
        nonce_end = key_end + NONCE_BYTES
        cipher = self._ciphers.get(sealed[1:key_end])
        if sealed[:1] != VERSION or cipher is None:
            raise CredentialsUnreadable(merchant_id=merchant_id, processor=processor)
        try:
            plain = cipher.decrypt(
                sealed[key_end:nonce_end], sealed[nonce_end:], _row_identity(merchant_id, processor)
            )
        except InvalidTag:
            raise CredentialsUnreadable(merchant_id=merchant_id, processor=processor) from None
        credentials: dict[str, str] = orjson.loads(plain)
        return credentials


def _derive(secret: str) -> bytes:
    kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"payloops processor credentials")
    return kdf.derive(secret.encode())


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"payloops key id" + key).digest()[:KEY_ID_BYTES]


def _row_identity(merchant_id: UUID, processor: str) -> bytes:
    return f"processor_configs:{merchant_id}:{processor}".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorCredentials:
    """What a processor's worker needs in order to speak for the merchant. Not for logs."""

    merchant_id: UUID
    processor: str
    test_mode: bool
    credentials: dict[str, str]

    def __repr__(self) -> str:
        return f"ProcessorCredentials(merchant_id={self.merchant_id}, processor={self.processor!r})"


@dataclass(frozen=True, slots=True)
class _Sealed:
    test_mode: bool
    credentials: bytes


async def get_processor_credentials(
    pool: AsyncConnectionPool, *, merchant_id: UUID, processor: str, cipher: CredentialCipher
) -> ProcessorCredentials | None:
    """The merchant's credentials at a processor, None where none are configured.

    Also where the processor is disabled: that keeps new payments away, but those under way have to end, and
    captured ones can still be refunded.

    Raises:
        CredentialsUnreadable: see there.
    """
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(_Sealed)) as cursor:
        await cursor.execute(
            "SELECT test_mode, credentials FROM processor_configs WHERE merchant_id = %s AND processor = %s",
            (merchant_id, processor),
        )
        row = await cursor.fetchone()
    if row is None:
        return None
    return ProcessorCredentials(
        merchant_id=merchant_id,
        processor=processor,
        test_mode=row.test_mode,
        credentials=cipher.open(bytes(row.credentials), merchant_id=merchant_id, processor=processor),
    )

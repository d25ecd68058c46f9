"""Encrypts Temporal payloads, so that what crosses Temporal is unreadable in workflow histories.

A payload becomes another one: `encoding: binary/encrypted`, the id of the key beside it, and as data a
random 96-bit nonce followed by the AES-256-GCM ciphertext of the whole original payload, its metadata
included. The key id is authenticated too. As nonces are random, one key is good for 2^32 payloads
(NIST SP 800-38D, 8.3).

Messages of failures stay readable, for whoever operates it: `worker.py` keeps what they could quote out of them.
"""

import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadCodec

ENCODING = b"binary/encrypted"
NONCE_BYTES = 12


class UndecryptablePayload(Exception):
    """An encrypted payload that this process's key does not open."""

    def __init__(self, *, key_id: str, own_key_id: str) -> None:
        super().__init__(
            f"A Temporal payload encrypted under key {key_id!r} cannot be read: "
            f"TEMPORAL_CODEC_KEY here is key {own_key_id!r}"
        )
        self.key_id = key_id
        self.own_key_id = own_key_id


class EncryptionCodec(PayloadCodec):
    """AES-256-GCM under one key. Payloads that are not encrypted are decoded as they are.

    That is how a running system gets its key: workers first, which read both, then who starts workflows.
    """

    def __init__(self, *, secret: str) -> None:
        """Derive the key, and the id that names it in every payload, from the text of the setting."""
        self._cipher = AESGCM(_derived(secret, purpose=b"key", length=32))
        self.key_id = _derived(secret, purpose=b"key id", length=8).hex()

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._encrypted(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Raise UndecryptablePayload for a payload of another key, or one that was changed."""
        return [
            self._decrypted(payload) if payload.metadata.get("encoding") == ENCODING else payload
            for payload in payloads
        ]

    def _encrypted(self, payload: Payload) -> Payload:
        nonce = os.urandom(NONCE_BYTES)
        key_id = self.key_id.encode()
        ciphertext = self._cipher.encrypt(nonce, payload.SerializeToString(), key_id)
        return Payload(
            metadata={"encoding": ENCODING, "encryption-key-id": key_id},
            data=nonce + ciphertext,
        )

    def _decrypted(self, payload: Payload) -> Payload:
        key_id = payload.metadata.get("encryption-key-id", b"")
        nonce, ciphertext = payload.data[:NONCE_BYTES], payload.data[NONCE_BYTES:]
        try:
            plain = self._cipher.decrypt(nonce, ciphertext, key_id)
        except (InvalidTag, ValueError) as error:
            raise UndecryptablePayload(
                key_id=key_id.decode(errors="replace"), own_key_id=self.key_id
            ) from error
        return Payload.FromString(plain)


def _derived(secret: str, *, purpose: bytes, length: int) -> bytes:
    """HKDF (RFC 5869): the setting is a long random text, not a password, so it needs no stretching."""
    info = b"payloops temporal payload codec v1 " + purpose
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(secret.encode())

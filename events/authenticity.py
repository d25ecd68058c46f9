"""Proof that this application wrote an event: its content hash, and a MAC over it that nobody else can compute.

Somebody with write access to the table could store any content with a matching hash. The MAC needs AUDIT_KEY, which is
not in the database.
"""

import hashlib
import hmac
from functools import lru_cache
from uuid import UUID

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from eventsourcing.persistence import StoredEvent


def derive_mac_key(audit_key: str) -> bytes:
    """The key for events' MACs.

    Args:
        audit_key: AUDIT_KEY, at least 32 characters.
    """
    kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"payloops event mac")
    return kdf.derive(audit_key.encode())


def content_hash(event: StoredEvent) -> bytes:
    """SHA-256 over what is stored: stream id, version (8 bytes, big endian), topic, a zero byte, state."""
    id = event.originator_id
    assert isinstance(id, UUID)
    version = event.originator_version.to_bytes(8, "big")
    parts = (id.int.to_bytes(16, "big"), version, event.topic.encode(), b"\0", event.state)
    return hashlib.sha256(b"".join(parts)).digest()


def event_mac(mac_key: bytes, *, content_hash: bytes, merchant_id: UUID) -> bytes:
    """HMAC-SHA256 over an event's content hash and the merchant it is stored for."""
    mac = _begun(mac_key).copy()
    mac.update(content_hash + merchant_id.bytes)
    return mac.finalize()


@lru_cache(maxsize=4)
def _begun(mac_key: bytes) -> HMAC:
    """The part of the computation that is the same for all MACs with a key: two thirds of it."""
    return HMAC(mac_key, SHA256())


def is_authentic(mac_key: bytes, *, content_hash: bytes, merchant_id: UUID, mac: bytes) -> bool:
    """Whether a stored MAC was made with this key."""
    return hmac.compare_digest(event_mac(mac_key, content_hash=content_hash, merchant_id=merchant_id), mac)

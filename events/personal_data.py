"""Personal data in the first event of a stream: encrypted with a key of that stream, erased by dropping the key.

In memory, an event has these fields in the clear. In storage, those with a value are in `sealed` instead, encrypted
with AES-256-GCM and bound to the event's stream and version. The stored event never changes, so its hashes still match
after the key is gone.
"""

import hashlib
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from payloops.events.randomness import random_bytes

ERASED = "[erased]"
"""Replaces an erased text."""
ERASED_OBJECT = {"erased": ERASED}
"""Replaces an erased object, because clients expect an object."""
DROPPED = b""
"""Replaces a dropped key in `personal_keys`."""
SEALED = "sealed"
"""The member of a stored state with the encrypted fields."""
NOTHING: tuple[Any, ...] = (None, "", {}, [])
NONCE_BYTES = 12
DIGEST_BYTES = 16


class PersonalDataUnreadable(Exception):
    """Personal data cannot be decrypted with the key of its stream: the event or the key was altered."""

    def __init__(self, *, stream_id: UUID, version: int) -> None:
        super().__init__(f"what is sealed in {stream_id}:{version} cannot be decrypted")
        self.stream_id = stream_id
        self.version = version


@dataclass(slots=True, kw_only=True)  # not frozen: creating one would take several times as long
class PersonalKey:
    """A stream's row of `personal_keys`, inserted by the append that begins the stream. Never log it.

    Attributes:
        key: 32 bytes.
        customer_digest, email_digest: to find all streams with data of a customer.
    """

    stream_id: UUID
    key: bytes
    customer_digest: bytes | None
    email_digest: bytes | None

    def __repr__(self) -> str:
        return f"PersonalKey(stream_id={self.stream_id})"


def new_key(*, stream_id: UUID, merchant_id: str, customer_id: str | None, email: str | None) -> PersonalKey:
    """Generate a key for a new stream.

    Args:
        customer_id: the merchant's own id of the customer.
    """
    return PersonalKey(
        stream_id=stream_id,
        key=random_bytes(),
        customer_digest=None if customer_id is None else customer_digest(merchant_id, customer_id),
        email_digest=None if email is None else email_digest(merchant_id, email),
    )


def customer_digest(merchant_id: str, customer_id: str) -> bytes:
    """To find a merchant's customer by the merchant's id of the customer.

    It is not keyed: whoever can read it can test a guessed id. The tables of orders contain the same id in the clear.
    """
    return _digest("customer", merchant_id, customer_id)


def email_digest(merchant_id: str, email: str) -> bytes:
    """To find a merchant's customer by email address, case-insensitively."""
    return _digest("email", merchant_id, email.lower())


def _digest(kind: str, merchant_id: str, text: str) -> bytes:
    return hashlib.sha256(f"{kind}\n{merchant_id}\n{text}".encode(errors="replace")).digest()[:DIGEST_BYTES]


def given_fields(values: Mapping[str, Any], personal: Mapping[str, Any]) -> dict[str, Any]:
    """The personal fields that have a value: null and empty values are stored as they are."""
    return {name: value for name in personal if (value := values[name]) or value not in NOTHING}


def seal(
    state: dict[str, Any], given: Mapping[str, Any], *, key: bytes, stream_id: UUID, version: int
) -> None:
    """Encrypt the given fields of a state: they are removed from it, and `sealed` is added."""
    for name in given:
        del state[name]
    nonce = random_bytes()[:NONCE_BYTES]
    box = nonce + AESGCM(key).encrypt(nonce, orjson.dumps(given), _associated_data(stream_id, version))
    state[SEALED] = {"fields": list(given), "box": b2a_base64(box, newline=False).decode()}


def unseal(
    state: dict[str, Any],
    *,
    personal: Mapping[str, Any],
    key: bytes | None,
    stream_id: UUID,
    version: int,
) -> None:
    """Replace `sealed` in a state by the personal fields: decrypted, or as erased if the key is gone.

    Args:
        personal: each personal field's value after erasure.
        key: of the stream, from `personal_keys`; None if it has no row there.

    Raises:
        PersonalDataUnreadable: see there.
    """
    sealed = state.pop(SEALED, None)
    if sealed is None:
        if key == DROPPED:  # erased, but an older version stored the fields in the clear
            state |= {name: personal[name] for name in given_fields(state, personal)}
        return
    if not key:
        state |= {name: personal.get(name, ERASED) for name in sealed["fields"]}
        return
    try:
        box = a2b_base64(sealed["box"])
        plain = AESGCM(key).decrypt(
            box[:NONCE_BYTES], box[NONCE_BYTES:], _associated_data(stream_id, version)
        )
    except (InvalidTag, ValueError):
        raise PersonalDataUnreadable(stream_id=stream_id, version=version) from None
    state |= orjson.loads(plain)


def _associated_data(stream_id: UUID, version: int) -> bytes:
    return stream_id.bytes + version.to_bytes(8, "big")

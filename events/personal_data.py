"""Personal data in the first event of a stream: encrypted with a key of that stream, erased by dropping the key.

In memory, an event has these fields in the clear. When stored, those with a value are in `sealed` instead, encrypted
by AES-256-GCM and bound to the event's stream and version. The stored event never changes, so its hashes still match
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
"""What a personal text reads once it is erased."""
ERASED_OBJECT = {"erased": ERASED}
"""What a personal object reads then: clients expect an object."""
DROPPED = b""
"""What stands in `personal_keys` in place of a key that was dropped."""
SEALED = "sealed"
"""The member of a stored state that holds what is sealed."""
NOTHING: tuple[Any, ...] = (None, "", {}, [])
NONCE_BYTES = 12
DIGEST_BYTES = 16


class PersonalDataUnreadable(Exception):
    """What is sealed in an event cannot be opened with the key of its stream: one of them was altered."""

    def __init__(self, *, stream_id: UUID, version: int) -> None:
        super().__init__(f"what is sealed in {stream_id}:{version} cannot be decrypted")
        self.stream_id = stream_id
        self.version = version


@dataclass(slots=True, kw_only=True)  # not frozen: making one would take several times as long
class PersonalKey:
    """A stream's row of `personal_keys`, inserted by the append that begins the stream. Not for logs.

    Attributes:
        key: 32 bytes.
        customer_digest, email_digest: by which all that is held of a customer is found.
    """

    stream_id: UUID
    key: bytes
    customer_digest: bytes | None
    email_digest: bytes | None

    def __repr__(self) -> str:
        return f"PersonalKey(stream_id={self.stream_id})"


def new_key(*, stream_id: UUID, merchant_id: str, customer_id: str | None, email: str | None) -> PersonalKey:
    """A key for a stream that begins.

    Args:
        customer_id: the merchant's own name of the customer.
    """
    return PersonalKey(
        stream_id=stream_id,
        key=random_bytes(),
        customer_digest=None if customer_id is None else customer_digest(merchant_id, customer_id),
        email_digest=None if email is None else email_digest(merchant_id, email),
    )


def customer_digest(merchant_id: str, customer_id: str) -> bytes:
    """By which a merchant's customer is found.

    Without a secret, so that whoever can guess a customer can tell that he is one: like the tables of orders,
    which hold the same in plain for as long.
    """
    return _digest("customer", merchant_id, customer_id)


def email_digest(merchant_id: str, email: str) -> bytes:
    """By which an address of a merchant's customer is found, in whatever case."""
    return _digest("email", merchant_id, email.lower())


def _digest(kind: str, merchant_id: str, text: str) -> bytes:
    return hashlib.sha256(f"{kind}\n{merchant_id}\n{text}".encode(errors="replace")).digest()[:DIGEST_BYTES]


def given_fields(values: Mapping[str, Any], personal: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the personal fields that hold something: null stays null, and {} stays {}."""
    return {name: value for name in personal if (value := values[name]) or value not in NOTHING}


def seal(
    state: dict[str, Any], given: Mapping[str, Any], *, key: bytes, stream_id: UUID, version: int
) -> None:
    """Move the given fields out of a state and into its `sealed`."""
    for name in given:
        del state[name]
    nonce = random_bytes()[:NONCE_BYTES]
    box = nonce + AESGCM(key).encrypt(nonce, orjson.dumps(given), _bound_to(stream_id, version))
    state[SEALED] = {"fields": list(given), "box": b2a_base64(box, newline=False).decode()}


def unseal(
    state: dict[str, Any],
    *,
    personal: Mapping[str, Any],
    key: bytes | None,
    stream_id: UUID,
    version: int,
) -> None:
    """Put the personal fields back into a state: as they were, or as they read once they are erased.

    Args:
        personal: what each field reads then.
        key: of the stream, as `personal_keys` has it; None where it has none.

    Raises:
        PersonalDataUnreadable: see there.
    """
    sealed = state.pop(SEALED, None)
    if sealed is None:
        if key == DROPPED:  # an older version stored them in plain
            state |= {name: personal[name] for name in given_fields(state, personal)}
        return
    if not key:
        state |= {name: personal.get(name, ERASED) for name in sealed["fields"]}
        return
    try:
        box = a2b_base64(sealed["box"])
        plain = AESGCM(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], _bound_to(stream_id, version))
    except (InvalidTag, ValueError):
        raise PersonalDataUnreadable(stream_id=stream_id, version=version) from None
    state |= orjson.loads(plain)


def _bound_to(stream_id: UUID, version: int) -> bytes:
    return stream_id.bytes + version.to_bytes(8, "big")

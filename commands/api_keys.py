"""API keys: their form, and the table `api_keys`.

A key is `sk_test_` or `sk_live_`, a lookup part and a secret part, both random, base 62:

    sk_test_ Zk3pQ9vT1xLr W0cB7…
    └─ public prefix ────┘└─ 32 characters, 190 bits ┘

The prefix is shown in lists and finds the row; of the whole key only a bcrypt hash is kept.
"""

import re
import secrets
import string
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

KeyMode = Literal["test", "live"]

ALPHABET = string.ascii_letters + string.digits
LOOKUP_LENGTH = 12
SECRET_LENGTH = 32
KEY_FORM = re.compile(
    rf"(?P<prefix>sk_(?P<mode>test|live)_[0-9A-Za-z]{{{LOOKUP_LENGTH}}})[0-9A-Za-z]{{{SECRET_LENGTH}}}"
)


class ApiKeyNotFound(Exception):
    """The merchant has no such key, or has revoked it."""

    def __init__(self, *, api_key_id: UUID) -> None:
        super().__init__(f"no API key {api_key_id}")
        self.api_key_id = api_key_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRow:
    """A key as the merchant sees it. `last_used_at` may be a minute behind."""

    id: UUID
    name: str
    prefix: str
    last_used_at: datetime | None
    expires_at: datetime | None
    created_at: datetime


def make_key(mode: KeyMode) -> tuple[str, str]:
    """A new key and its public prefix."""
    lookup, secret = (
        "".join(secrets.choice(ALPHABET) for _ in range(length)) for length in (LOOKUP_LENGTH, SECRET_LENGTH)
    )
    prefix = f"sk_{mode}_{lookup}"
    return prefix + secret, prefix


async def list_api_keys(pool: AsyncConnectionPool, *, merchant_id: UUID) -> list[ApiKeyRow]:
    """The merchant's keys that are not revoked, newest first."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(ApiKeyRow)) as cursor:
        await cursor.execute(
            "SELECT id, name, prefix, last_used_at, expires_at, created_at FROM api_keys"
            " WHERE merchant_id = %s AND revoked_at IS NULL ORDER BY created_at DESC, id DESC",
            (merchant_id,),
        )
        return await cursor.fetchall()

"""The table `webhook_secrets`: the secrets that sign a merchant's webhooks.

Their form is the Standard Webhooks specification's: `whsec_` and the base64 of 24 to 64 random bytes. They are needed
in the clear to sign, and so are encrypted, not hashed.
"""

import base64
import secrets
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import Cipher

PREFIX = "whsec_"
SECRET_BYTES = 32

FIND = "SELECT secret, previous_secret, previous_expires_at FROM webhook_secrets WHERE merchant_id = %s"
MAKE = """
    INSERT INTO webhook_secrets (merchant_id, secret, made_at) VALUES (%s, %s, %s)
    ON CONFLICT (merchant_id) DO NOTHING
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecret:
    """The secrets that sign a merchant's webhooks. Must not be logged.

    Attributes:
        previous_secret: signs, too, until `previous_expires_at`; both None where there is none.
    """

    secret: str
    previous_secret: str | None
    previous_expires_at: datetime | None

    def __repr__(self) -> str:
        return f"WebhookSecret(previous_expires_at={self.previous_expires_at})"


def make_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def webhook_secret_identity(*, merchant_id: UUID) -> str:
    """The row that a webhook secret is sealed for, be it the present or the former one."""
    return f"webhook_secrets:{merchant_id}"


async def get_webhook_secret(
    pool: AsyncConnectionPool, *, merchant_id: UUID, cipher: Cipher, now: datetime
) -> WebhookSecret:
    """The merchant's secrets as of now; the first is made when it is first asked for.

    Raises:
        SealBroken: see there.
    """
    async with pool.connection() as connection:
        found = await (await connection.execute(FIND, (merchant_id,))).fetchone()
        if found is None:
            identity = webhook_secret_identity(merchant_id=merchant_id)
            sealed = cipher.seal(make_secret().encode(), identity=identity)
            await connection.execute(MAKE, (merchant_id, sealed, now))
            # Of two who ask first at the same time, both answer what the first of them kept.
            found = await (await connection.execute(FIND, (merchant_id,))).fetchone()
    assert found is not None
    return open_webhook_secret(*found, merchant_id=merchant_id, cipher=cipher, now=now)


def open_webhook_secret(
    secret: bytes,
    previous: bytes | None,
    previous_expires_at: datetime | None,
    *,
    merchant_id: UUID,
    cipher: Cipher,
    now: datetime,
) -> WebhookSecret:
    """A row's secrets as of now.

    Raises:
        SealBroken: see there.
    """
    identity = webhook_secret_identity(merchant_id=merchant_id)
    current = cipher.open(bytes(secret), identity=identity).decode()
    if previous is None or previous_expires_at is None or now >= previous_expires_at:
        return WebhookSecret(secret=current, previous_secret=None, previous_expires_at=None)
    return WebhookSecret(
        secret=current,
        previous_secret=cipher.open(bytes(previous), identity=identity).decode(),
        previous_expires_at=previous_expires_at,
    )

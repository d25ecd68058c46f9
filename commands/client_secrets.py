"""The secret with which a customer's browser completes a payment: stored encrypted, outside the event log."""

from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import Cipher


def client_secret_identity(*, order_id: UUID, attempt: int) -> str:
    """The row that a client secret is sealed for."""
    return f"client_secrets:{order_id}:{attempt}"


class ClientSecrets:
    """The client secrets of orders, one for each attempt to pay that has one."""

    def __init__(self, pool: AsyncConnectionPool, cipher: Cipher) -> None:
        self._pool = pool
        self._cipher = cipher

    async def keep(self, *, order_id: UUID, attempt: int, secret: str) -> None:
        """Store an attempt's client secret, replacing an older one."""
        identity = client_secret_identity(order_id=order_id, attempt=attempt)
        sealed = self._cipher.seal(secret.encode(), identity=identity)
        async with self._pool.connection() as connection:
            await connection.execute(
                "INSERT INTO client_secrets (order_id, attempt, secret) VALUES (%s, %s, %s)"
                " ON CONFLICT (order_id, attempt) DO UPDATE SET secret = excluded.secret, kept_at = now()",
                (order_id, attempt, sealed),
            )

    async def find(self, *, order_id: UUID, attempt: int) -> str | None:
        """The attempt's client secret; None if it has none."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT secret FROM client_secrets WHERE order_id = %s AND attempt = %s", (order_id, attempt)
            )
            row = await cursor.fetchone()
        if row is None:
            return None
        identity = client_secret_identity(order_id=order_id, attempt=attempt)
        return self._cipher.open(bytes(row[0]), identity=identity).decode()

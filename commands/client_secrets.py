"""The secret with which a customer's browser finishes a payment: kept encrypted, beside the log and not in it."""

from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import Cipher


def client_secret_identity(*, order_id: UUID) -> str:
    """The row that a client secret is sealed for."""
    return f"client_secrets:{order_id}"


class ClientSecrets:
    """The client secret of each order's latest payment that has one."""

    def __init__(self, pool: AsyncConnectionPool, cipher: Cipher) -> None:
        self._pool = pool
        self._cipher = cipher

    async def keep(self, *, order_id: UUID, secret: str) -> None:
        """Keep an order's client secret in place of an older one."""
        sealed = self._cipher.seal(secret.encode(), identity=client_secret_identity(order_id=order_id))
        async with self._pool.connection() as connection:
            await connection.execute(
                "INSERT INTO client_secrets (order_id, secret) VALUES (%s, %s)"
                " ON CONFLICT (order_id) DO UPDATE SET secret = excluded.secret, kept_at = now()",
                (order_id, sealed),
            )

    async def find(self, *, order_id: UUID) -> str | None:
        """The order's client secret, None where it has none."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT secret FROM client_secrets WHERE order_id = %s", (order_id,)
            )
            row = await cursor.fetchone()
        if row is None:
            return None
        identity = client_secret_identity(order_id=order_id)
        return self._cipher.open(bytes(row[0]), identity=identity).decode()

"""Opening the processors of merchants, with their credentials, as they are needed."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import Cipher, SealBroken
from payloops.commands.credentials import get_processor_credentials
from payloops.processors.port import Processor, ProcessorUnreachable
from payloops.processors.razorpay import RazorpayProcessor
from payloops.processors.sandbox import SandboxProcessor
from payloops.processors.stripe import StripeProcessor

FindProcessor = Callable[[UUID, str], Awaitable[Processor]]
"""Finds a merchant's processor by its name, or raises ProcessorUnreachable."""


@asynccontextmanager
async def open_processors(
    pool: AsyncConnectionPool, *, cipher: Cipher, sandbox: bool
) -> AsyncIterator[FindProcessor]:
    """Gives a function that finds processors; those that it opened are closed at the end.

    Args:
        sandbox: finds the sandbox instead of Stripe and Razorpay.
    """
    opened: dict[tuple[UUID, str], Processor] = {}
    async with AsyncExitStack() as stack:

        async def find(merchant_id: UUID, name: str) -> Processor:
            if sandbox:
                return SandboxProcessor(pool)
            keys = await _credentials(pool, merchant_id=merchant_id, name=name, cipher=cipher)
            if (merchant_id, name) not in opened:
                if name == "stripe":
                    stripe = StripeProcessor(secret_key=keys["secretKey"])
                    stack.push_async_callback(stripe.close)
                    opened[merchant_id, name] = stripe
                else:
                    opened[merchant_id, name] = RazorpayProcessor(
                        key_id=keys["keyId"], key_secret=keys["keySecret"]
                    )
            return opened[merchant_id, name]

        yield find


async def _credentials(
    pool: AsyncConnectionPool, *, merchant_id: UUID, name: str, cipher: Cipher
) -> dict[str, str]:
    try:
        config = await get_processor_credentials(pool, merchant_id=merchant_id, processor=name, cipher=cipher)
    except SealBroken:
        raise ProcessorUnreachable(processor=name, reason="its credentials cannot be read") from None
    if config is None:
        raise ProcessorUnreachable(processor=name, reason="the merchant has removed it")
    return config.credentials

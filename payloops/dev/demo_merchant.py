"""The demo merchant that `payloops dev` creates through the HTTP API."""

import json
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from payloops.dev.client import Client, RequestRefused
from payloops.files import write_private

FILE_NAME = "demo-merchant.json"
PROCESSORS = (
    {
        "processor": "stripe",
        "credentials": {"secretKey": "sk_test_sandbox", "webhookSecret": "whsec_sandbox"},
        "priority": 1,
        "testMode": True,
    },
    {
        "processor": "razorpay",
        "credentials": {
            "keyId": "rzp_test_sandbox",
            "keySecret": "sandbox",
            "webhookSecret": "sandbox-webhooks",
        },
        "priority": 2,
        "testMode": True,
    },
)
UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoMerchant:
    """The merchant's credentials, and the service's URL when it was last started."""

    url: str
    email: str
    password: str
    api_key: str


def read_demo_merchant(*, data_dir: Path) -> DemoMerchant | None:
    """The merchant kept in a data directory; None if there is none, or we may not read it."""
    try:
        return DemoMerchant(**json.loads((data_dir / FILE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


async def ensure_demo_merchant(*, url: str, data_dir: Path) -> DemoMerchant:
    """The kept merchant if its API key still works, otherwise a new one with an API key and both processors.

    Raises:
        ServiceAbsent, RequestRefused.
    """
    kept = read_demo_merchant(data_dir=data_dir)
    if kept is not None and await _key_works(kept, url=url):
        merchant = replace(kept, url=url)
    else:
        merchant = await _create(url=url)
    write_private(data_dir / FILE_NAME, json.dumps(asdict(merchant), indent=2))
    return merchant


async def _key_works(merchant: DemoMerchant, *, url: str) -> bool:
    try:
        async with Client(url=url, headers={"X-API-Key": merchant.api_key}) as client:
            await client.get("/v1/orders?limit=1")
    except RequestRefused as error:
        if error.status == UNAUTHORIZED:  # it was created in another database
            return False
        raise
    return True


async def _create(*, url: str) -> DemoMerchant:
    email = f"demo-{secrets.token_hex(3)}@example.com"
    password = secrets.token_urlsafe(12)
    async with Client(url=url) as client:
        registered = await client.post(
            "/api/auth/register", body={"name": "Demo merchant", "email": email, "password": password}
        )
        signed_in = {"Authorization": f"Bearer {registered.body['token']}"}
        for processor in PROCESSORS:
            await client.post("/api/processors", body=processor, headers=signed_in)
        issued = await client.post("/api/api-keys", body={"name": "Demo key"}, headers=signed_in)
    return DemoMerchant(url=url, email=email, password=password, api_key=issued.body["secret"])

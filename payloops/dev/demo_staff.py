"""The support staff account that `payloops dev` adds, for the support console."""

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from payloops.commands.staff import list_staff
from payloops.events.pools import command_pool
from payloops.files import write_private
from payloops.operating.staff import add

FILE_NAME = "demo-staff.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoStaff:
    """Credentials for `/support`."""

    email: str
    password: str = field(repr=False)


async def ensure_demo_staff(*, database_url: str, data_dir: Path) -> DemoStaff:
    """The kept account if it is still on the staff, otherwise a new one."""
    path = data_dir / FILE_NAME
    kept = _kept(path)
    if kept is not None:
        async with command_pool(database_url, application_name="payloops dev") as pool:
            members = {row.email for row in await list_staff(pool) if row.removed_at is None}
        if kept.email in members:
            return kept
    made = DemoStaff(email=f"support-{secrets.token_hex(3)}@example.com", password=secrets.token_urlsafe(12))
    await add(database_url=database_url, email=made.email, name="Demo support", password=made.password)
    write_private(path, json.dumps(asdict(made), indent=2))
    return made


def _kept(path: Path) -> DemoStaff | None:
    try:
        return DemoStaff(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None

"""Writes docs/openapi.json, the contract as the API serves it. `make openapi`; compared in CI."""

import sys
from pathlib import Path

from payloops.http.app import ROUTES
from payloops.http.documentation import openapi_json

OPENAPI = Path(__file__).with_name("openapi.json")


def main() -> int:
    document = openapi_json(ROUTES)
    if "--check" in sys.argv:
        return 0 if OPENAPI.read_bytes() == document else 1
    OPENAPI.write_bytes(document)
    return 0


if __name__ == "__main__":
    sys.exit(main())

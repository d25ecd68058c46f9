"""Real PostgreSQL, Valkey and Temporal servers as child processes, for development and tests.

The packages of the `embedded` extra are only used for the binaries in them: starting, watching and stopping the servers
is done here.
"""

from payloops.embedded.errors import NotStarted
from payloops.embedded.servers import EmbeddedServers

__all__ = ["EmbeddedServers", "NotStarted"]

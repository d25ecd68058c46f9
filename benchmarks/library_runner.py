"""The same projections by `eventsourcing`'s own ProjectionRunner: what benchmarks/rebuild.py is compared with.

The library's application reads a copy of the log from its own PostgreSQL recorder's table; its projection writes the
same rows into the same tables, an event at a time, each in a transaction with its tracking record: that is how the
runner works.
"""

import time
from typing import Any
from uuid import UUID

import psycopg
from eventsourcing.application import Application
from eventsourcing.persistence import Mapper, StoredEvent, Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.conninfo import conninfo_to_dict

from payloops.events.encoding import decode
from payloops.events.stream import StreamEvent
from payloops.projections.patches import Patch, Table, merge, patches_of, patches_parameters
from payloops.projections.projection import all_projections
from payloops.projections.totals import write_statement


class Facts(Mapper[UUID]):
    """Reads events as they are stored here. Personal data stays sealed: reads as erased."""

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        return decode(stored_event, personal_key=None)


class Log(Application[UUID]):
    """The library's application over the copy."""

    def construct_mapper(self) -> Mapper[UUID]:
        super().construct_mapper()
        return Facts(transcoder=self.construct_transcoder())


class Tables(PostgresTrackingRecorder):
    """The tables that the projections write."""

    def write(self, fact: StreamEvent, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            for projection in all_projections():
                if fact.TOPIC.partition(".")[0] not in projection.families:
                    continue
                for table in projection.tables:
                    self._write(cursor, table, patches_of(table, fact), fact.originator_version)

    def _write(self, cursor: Any, table: Table, patches: list[Patch], version: int) -> None:
        rows = merge(table, ((version, patch) for patch in patches))
        totals = (each for projection in all_projections() for each in projection.totals if each.of is table)
        if rows:
            cursor.execute(write_statement(table, tuple(totals)), patches_parameters(rows))


class Projected(Projection[Tables]):
    """Hands each event to the tables."""

    name = "projected"

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.view.write(domain_event, tracking)


def run(database_url: str, *, events: int) -> float:
    """Project the first events of the log of a database whose tables are empty; how many seconds it took."""
    all_projections()  # imports the modules that declare the facts
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("TRUNCATE orders, order_counts, transactions, payments, daily_volume")
        connection.execute("DROP TABLE IF EXISTS log_events, projected_tracking")
    parameters = conninfo_to_dict(database_url)
    environment = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(parameters["dbname"]),
        "POSTGRES_HOST": str(parameters["host"]),
        "POSTGRES_PORT": str(parameters["port"]),
        "POSTGRES_USER": str(parameters["user"]),
        "POSTGRES_PASSWORD": str(parameters["password"]),
    }
    Log(environment).close()  # makes its table
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            """
            INSERT INTO log_events (originator_id, originator_version, topic, state, notification_id)
            SELECT originator_id, originator_version, topic, state, notification_id
            FROM stored_events WHERE notification_id <= %s ORDER BY notification_id
            """,
            (events,),
        )
    began = time.monotonic()
    with ProjectionRunner(
        application_class=Log, projection_class=Projected, view_class=Tables, env=environment
    ) as runner:
        runner.wait(events, timeout=3_600)
        return time.monotonic() - began

"""Prepared statements that are executed many times, on a connection of their own.

For each execution, a psycopg cursor inspects parameters and results again, and registers with the event loop again.
Here libpq gets the parameters in PostgreSQL's binary format, and the connection is registered with the loop once.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Self, cast

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

from payloops.events.connections import STATEMENT_TIMEOUT, connect

NAME = b"statement%d"
BACKEND = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
ANSWER_SECONDS = STATEMENT_TIMEOUT + 5.0
"""Without an answer for this long, the connection counts as lost: PostgreSQL would have cancelled a slow statement."""

Received = Callable[[list[TupleRow] | Exception], None]


class Statement:
    """One or a few prepared statements; created by `prepare`. One execution at a time.

    Attributes:
        backend: process id and start time of the server process behind the connection.
    """

    @classmethod
    async def prepare(cls, database_url: str, *texts: str, application_name: str) -> Self:
        """Prepare statements on a new connection.

        Args:
            texts: of the statements, with parameters as `$1`, `$2`, … and casts to their types.
        """
        connection = await connect(database_url, application_name=application_name)
        try:
            row = await (await connection.execute(BACKEND)).fetchone()
            for number, text in enumerate(texts):
                await connection.execute(b"PREPARE %s AS %s" % (NAME % number, text.encode()), prepare=False)
        except BaseException:
            await connection.close()
            raise
        return cls(connection, backend=cast("tuple[int, datetime]", row))

    def __init__(
        self, connection: psycopg.AsyncConnection[TupleRow], *, backend: tuple[int, datetime]
    ) -> None:
        self.backend = backend
        self._connection = connection
        self._libpq = connection.pgconn
        self._rows = Transformer(connection)
        self._executing = 0
        self._columns_known: int | None = None
        self._results: list[PGresult] = []
        self._received: Received | None = None
        self._due = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self._sending = False
        self._lost = False
        self._loop = asyncio.get_running_loop()
        self._socket = self._libpq.socket
        self._loop.add_reader(self._socket, self._receive)

    @property
    def closed(self) -> bool:
        """Whether the connection is gone, so that nothing can be executed any more."""
        return self._connection.closed

    async def execute(self, parameters: Sequence[bytes | None], *, number: int = 0) -> list[TupleRow]:
        """Execute a statement and commit it; returns its rows.

        If this raises anything but an error reported by PostgreSQL, or is cancelled, the statement may still be
        executed, and the connection is of no more use: `close` it.

        Args:
            parameters: in PostgreSQL's binary format.
            number: index of the statement among those that were prepared.
        """
        answer: asyncio.Future[list[TupleRow]] = self._loop.create_future()

        def received(rows: list[TupleRow] | Exception) -> None:
            if answer.done():
                return
            if isinstance(rows, Exception):
                answer.set_exception(rows)
            else:
                answer.set_result(rows)

        self.send(parameters, received, number=number)
        return await answer

    def send(self, parameters: Sequence[bytes | None], received: Received, *, number: int = 0) -> None:
        """As `execute`, with a callback instead of a coroutine.

        Args:
            received: called once with the rows or the error, from the event loop's reader.
        """
        try:
            self._libpq.send_query_prepared(
                NAME % number, parameters, [Format.BINARY] * len(parameters), Format.BINARY
            )
        except psycopg.Error as error:
            self._lose(error)
            raise
        self._executing = number
        self._received = received
        self._due = self._loop.time() + ANSWER_SECONDS
        if self._expiry is None:  # one timer serves many executions
            self._expiry = self._loop.call_at(self._due, self._expire)
        self._flush()

    async def close(self) -> None:
        self._lose(psycopg.OperationalError("the connection was closed"))
        await self._connection.close()

    def _flush(self) -> None:
        """Send as much as the socket accepts, and the rest when it accepts more."""
        try:
            if self._libpq.flush():
                self._sending = True
                self._loop.add_writer(self._socket, self._flush)
            elif self._sending:
                self._sending = False
                self._loop.remove_writer(self._socket)
        except psycopg.Error as error:
            self._lose(error)

    def _receive(self) -> None:
        try:
            self._libpq.consume_input()
            while not self._libpq.is_busy():
                result = self._libpq.get_result()
                if result is None:  # the statement is committed, or has failed, and the next may be sent
                    if self._results:
                        self._deliver()
                    return
                self._results.append(result)
        except psycopg.Error as error:
            self._lose(error)

    def _deliver(self) -> None:
        results, self._results = self._results, []
        received, self._received = self._received, None
        if received is None:
            return
        try:
            rows = self._rows_of(results)
        except Exception as error:  # noqa: BLE001  # handed to the caller
            received(error)
        else:
            received(rows)

    def _rows_of(self, results: Sequence[PGresult]) -> list[TupleRow]:
        for result in results:
            if result.status != ExecStatus.TUPLES_OK:
                raise error_from_result(result)
        [answer] = results
        # The columns of a prepared statement never change: PostgreSQL would refuse to execute it.
        self._rows.set_pgresult(answer, set_loaders=self._columns_known != self._executing)
        self._columns_known = self._executing
        return self._rows.load_rows(0, answer.ntuples, tuple)

    def _expire(self) -> None:
        self._expiry = None
        if self._received is None:
            return
        if self._loop.time() >= self._due:
            self._lose(psycopg.OperationalError("the database did not answer in time"))
        else:
            self._expiry = self._loop.call_at(self._due, self._expire)

    def _lose(self, error: psycopg.Error) -> None:
        """Close the connection. Only once: afterwards its file descriptor may belong to another socket."""
        if self._lost:
            return
        self._lost = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._libpq.finish()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        received, self._received = self._received, None
        if received is not None:
            received(error)

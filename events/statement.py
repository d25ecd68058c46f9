"""A statement that is sent over and over, on a connection of its own.

A cursor of psycopg finds out anew each time what it is given and what comes back, and asks the event loop anew to be
told of it. Here libpq has the parameters as PostgreSQL reads them, and the loop is asked once.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Self, cast

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

from payloops.events.connections import connect

NAME = "statement"
WHO_AM_I = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"


class Statement:
    """Made by `prepare`. Nothing else is asked over its connection, and one thing at a time.

    Attributes:
        backend: the server process that has the connection: its id, and when it began.
    """

    @classmethod
    async def prepare(cls, database_url: str, text: str, *, application_name: str) -> Self:
        """On a new connection.

        Args:
            text: with `$1`, `$2`, … for parameters, and their types.
        """
        connection = await connect(database_url, application_name=application_name)
        try:
            row = await (await connection.execute(WHO_AM_I)).fetchone()
            await connection.execute(f"PREPARE {NAME} AS {text}".encode(), prepare=False)
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
        self._results: list[PGresult] = []
        self._answer: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._socket = self._libpq.socket
        self._loop.add_reader(self._socket, self._receive)

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._connection.closed

    async def execute(self, parameters: Sequence[bytes]) -> list[TupleRow]:
        """What the statement returns, committed.

        Where this ends by an exception that is none of PostgreSQL's answers, or is cancelled, it may still be done,
        and nothing else can be asked: `close`.

        Args:
            parameters: in PostgreSQL's binary form.
        """
        self._results = []
        self._answer = self._loop.create_future()
        self._libpq.send_query_prepared(
            NAME.encode(), parameters, [Format.BINARY] * len(parameters), Format.BINARY
        )
        self._send()
        await self._answer
        for result in self._results:
            if result.status != ExecStatus.TUPLES_OK:
                raise error_from_result(result)
        [answer] = self._results
        self._rows.set_pgresult(answer)
        return self._rows.load_rows(0, answer.ntuples, tuple)

    async def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        await self._connection.close()

    def _send(self) -> None:
        """Send as much as the socket takes, and the rest when it takes more."""
        try:
            if self._libpq.flush():
                self._loop.add_writer(self._socket, self._send)
            else:
                self._loop.remove_writer(self._socket)
        except psycopg.Error as error:
            self._fail(error)

    def _receive(self) -> None:
        try:
            self._libpq.consume_input()
            while not self._libpq.is_busy():
                result = self._libpq.get_result()
                if result is None:  # it is ready for the next: what was asked is committed, or refused
                    if self._answer is not None and not self._answer.done():
                        self._answer.set_result(None)
                    return
                self._results.append(result)
        except psycopg.Error as error:
            self._fail(error)

    def _fail(self, error: psycopg.Error) -> None:
        """The connection is lost."""
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

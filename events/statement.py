"""Statements that are executed over and over, on a connection of their own: one, or a few.

A psycopg cursor inspects parameters and results anew each time, and registers with the event loop anew to wait. Here
libpq gets the parameters in PostgreSQL's own format, and the connection is registered with the loop once.
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
WHO_AM_I = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
ANSWER_SECONDS = STATEMENT_TIMEOUT + 5.0
"""After which the connection counts as lost: PostgreSQL itself ends what takes too long, and says so."""

Answered = Callable[[list[TupleRow] | Exception], None]


class Statement:
    """Made by `prepare`. Nothing else is asked over its connection, and one thing at a time.

    Attributes:
        backend: the server process that has the connection: its id, and when it began.
    """

    @classmethod
    async def prepare(cls, database_url: str, *texts: str, application_name: str) -> Self:
        """On a new connection.

        Args:
            texts: with `$1`, `$2`, … for parameters, and their types.
        """
        connection = await connect(database_url, application_name=application_name)
        try:
            row = await (await connection.execute(WHO_AM_I)).fetchone()
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
        self._asked = 0
        self._columns_known: int | None = None
        self._results: list[PGresult] = []
        self._answered: Answered | None = None
        self._due = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self._sending = False
        self._lost = False
        self._loop = asyncio.get_running_loop()
        self._socket = self._libpq.socket
        self._loop.add_reader(self._socket, self._receive)

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._connection.closed

    async def execute(self, parameters: Sequence[bytes | None], *, number: int = 0) -> list[TupleRow]:
        """What the statement returns, committed.

        Where this ends by an exception that is none of PostgreSQL's answers, or is cancelled, it may still be done,
        and nothing else can be asked: `close`.

        Args:
            parameters: in PostgreSQL's binary form.
            number: of the text among those that were prepared.
        """
        answer: asyncio.Future[list[TupleRow]] = self._loop.create_future()

        def answered(rows: list[TupleRow] | Exception) -> None:
            if answer.done():
                return
            if isinstance(rows, Exception):
                answer.set_exception(rows)
            else:
                answer.set_result(rows)

        self.ask(parameters, answered, number=number)
        return await answer

    def ask(self, parameters: Sequence[bytes | None], answered: Answered, *, number: int = 0) -> None:
        """As `execute`, for who has no need of a coroutine.

        Args:
            answered: called once with the rows or what went wrong, from the event loop's reader.
        """
        try:
            self._libpq.send_query_prepared(
                NAME % number, parameters, [Format.BINARY] * len(parameters), Format.BINARY
            )
        except psycopg.Error as error:
            self._lose(error)
            raise
        self._asked = number
        self._answered = answered
        self._due = self._loop.time() + ANSWER_SECONDS
        if self._expiry is None:  # one for many questions
            self._expiry = self._loop.call_at(self._due, self._expire)
        self._send()

    async def close(self) -> None:
        self._lose(psycopg.OperationalError("the connection was closed"))
        await self._connection.close()

    def _send(self) -> None:
        """Send as much as the socket takes, and the rest when it takes more."""
        try:
            if self._libpq.flush():
                self._sending = True
                self._loop.add_writer(self._socket, self._send)
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
                if result is None:  # it is ready for the next: what was asked is committed, or refused
                    if self._results:
                        self._tell()
                    return
                self._results.append(result)
        except psycopg.Error as error:
            self._lose(error)

    def _tell(self) -> None:
        results, self._results = self._results, []
        answered, self._answered = self._answered, None
        if answered is None:
            return
        try:
            rows = self._rows_of(results)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for who asked
            answered(error)
        else:
            answered(rows)

    def _rows_of(self, results: Sequence[PGresult]) -> list[TupleRow]:
        for result in results:
            if result.status != ExecStatus.TUPLES_OK:
                raise error_from_result(result)
        [answer] = results
        # What a statement returns does not change: PostgreSQL would refuse to go on with it.
        self._rows.set_pgresult(answer, set_loaders=self._columns_known != self._asked)
        self._columns_known = self._asked
        return self._rows.load_rows(0, answer.ntuples, tuple)

    def _expire(self) -> None:
        self._expiry = None
        if self._answered is None:
            return
        if self._loop.time() >= self._due:
            self._lose(psycopg.OperationalError("the database did not answer in time"))
        else:
            self._expiry = self._loop.call_at(self._due, self._expire)

    def _lose(self, error: psycopg.Error) -> None:
        """Let go of the connection: once, for its socket's number is another's then."""
        if self._lost:
            return
        self._lost = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._libpq.finish()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(error)

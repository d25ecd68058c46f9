"""Asking for confirmation on the command line."""

import signal

import typer


class NotConfirmed(Exception):
    """The user did not confirm it."""


def confirm(question: str) -> None:
    """Ask for confirmation. Signals end the command at once: asyncio's handlers would wait for the answer.

    Raises:
        NotConfirmed.
    """
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    }
    try:
        if not typer.confirm(question, err=True):
            raise NotConfirmed
    except typer.Abort:
        typer.echo(err=True)
        raise NotConfirmed from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

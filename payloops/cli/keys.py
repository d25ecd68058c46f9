"""The commands of `payloops keys`."""

import typer

from payloops.cli.execution import run_async, settings_of
from payloops.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

keys = typer.Typer(help="Rotate the key that encrypts secrets in the database.", no_args_is_help=True)


@keys.command("status")
def keys_status(*, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Count the secrets encrypted with ENCRYPTION_KEY, with older keys, and with none of them.

    Exits with status 1 if some are not encrypted with ENCRYPTION_KEY.
    """
    from payloops.operating.keys import show_status  # noqa: PLC0415
    from payloops.settings import KeySettings  # noqa: PLC0415

    if not run_async(show_status(settings_of(KeySettings, data_dir), as_json=as_json)):
        raise typer.Exit(1)


@keys.command("rotate")
def keys_rotate(*, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Re-encrypt with ENCRYPTION_KEY every secret that is encrypted with one of ENCRYPTION_KEYS_OLDER.

    Runs beside the service, and may be interrupted and run again. Exits with status 1 if some secrets are left.
    """
    from payloops.operating.keys import rotate  # noqa: PLC0415
    from payloops.settings import KeySettings  # noqa: PLC0415

    done = run_async(
        rotate(settings_of(KeySettings, data_dir), as_json=as_json),
        interrupted="some secrets are re-encrypted; run it again for the others",
    )
    if not done:
        raise typer.Exit(1)

"""What `payloops dev` prints on its terminal."""

import contextlib
import shlex
import sys
import sysconfig
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from payloops.dev.demo_merchant import DemoMerchant
from payloops.dev.demo_staff import DemoStaff
from payloops.embedded import EmbeddedServers


class Terminal:
    """The terminal. If it is closed, errors in writing to it are ignored, so that everything still stops in order."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._is_terminal = sys.stdout.isatty()

    def is_gone(self) -> bool:
        return self._is_terminal and not sys.stdout.isatty()

    def say(self, text: str) -> None:
        """Print text with rich's markup, never wrapped, so that it can be copied."""
        with contextlib.suppress(OSError, SystemExit):  # rich exits where the reader of a pipe has gone
            self._console.print(text, soft_wrap=True)

    def bare(self, text: str, *, style: str = "") -> None:
        """Print text as it is, without markup."""
        with contextlib.suppress(OSError, SystemExit):
            self._console.out(text, style=style or None, highlight=False)


def show_screen(
    terminal: Terminal,
    *,
    servers: EmbeddedServers,
    merchant: DemoMerchant,
    staff: DemoStaff | None,
    seconds: float,
) -> None:
    """Print how to use the service, on one screen. Commands are printed unstyled and unwrapped, to be pasted."""
    terminal.say(f"\n[bold green]PayLoops is ready[/] [dim]after {seconds:.1f} s[/]\n")
    rows = {
        "API": merchant.url,
        "Reference": f"{merchant.url}/docs" if _exists(f"{merchant.url}/docs") else None,
        "Temporal": servers.temporal_ui_url if "temporal" in servers.parts else None,
        "API key": merchant.api_key,
        "Sign-in": f"{merchant.email}  {merchant.password}  (POST /api/auth/login)",
        "Support": f"{merchant.url}/support  {staff.email}  {staff.password}" if staff else None,
        "Data, logs": str(servers.data_dir),
        "Demo": shlex.join([_command(), "demo", "--data-dir", str(servers.data_dir)]),
    }
    for name, value in rows.items():
        if value is not None:
            terminal.say(f"  [bold]{name:<11}[/]{escape(value)}")
    terminal.say("\nPaste this into another terminal, or run the demo there:\n")
    terminal.bare(curl_lines(url=merchant.url, api_key=merchant.api_key))
    terminal.say("\n[dim]Ctrl-C stops everything. Requests, and what goes wrong, appear below.[/]\n")


def curl_lines(*, url: str, api_key: str) -> str:
    """Shell commands for an order and a checkout session. `sed` takes the order's id, the response's only `id`."""
    return f"""\
API={url}
KEY="X-API-Key: {api_key}"
ORDER=$(curl -sS -H "$KEY" $API/v1/orders --json '{{"amount": 4999, "currency": "USD"}}' | sed 's/.*"id": *"\\([^"]*\\)".*/\\1/')
curl -sS -H "$KEY" -H "Prefer: wait=10" $API/v1/orders/$ORDER/pay --json '{{"paymentMethod": {{"type": "card", "token": "tok_visa"}}}}'; echo
curl -sS -H "$KEY" $API/v1/orders/$ORDER/refund --json '{{"amount": 1500, "reason": "One coffee was cold"}}'; echo
curl -sS -H "$KEY" $API/v1/orders/$ORDER; echo
curl -sS -H "$KEY" $API/v1/orders/$ORDER/events; echo
# A page to pay at: open its url in a browser.
curl -sS -H "$KEY" $API/v1/checkout/sessions --json "{{\\"amount\\": 4999, \\"successUrl\\": \\"$API/docs\\", \\"cancelUrl\\": \\"$API/docs\\"}}"; echo"""  # noqa: E501


def _command() -> str:
    """`payloops` as it is called from any directory."""
    return str(Path(sysconfig.get_path("scripts")) / "payloops")


def _exists(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 our own
            return True
    except OSError:
        return False

"""A real browser for tests: Chromium, driven by Playwright, with a look at what no page of ours may do.

Pages keep their pictures in build/screenshots, for whoever wants to see what they look like.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Route,
    ViewportSize,
    async_playwright,
)

SCREENSHOTS = Path(__file__).resolve().parent.parent / "build" / "screenshots"
NO_BROWSER = "there is no Chromium here: `make browser`, or apt-get install chromium"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE = 90_000
"""Milliseconds in which a page has to come to what is expected of it, on a busy machine, too."""
DESK, PHONE = ViewportSize(width=1100, height=800), ViewportSize(width=390, height=844)


def chromium() -> str | None:
    """The browser's path, None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@asynccontextmanager
async def running_browser(path: str) -> AsyncIterator[Browser]:
    """With a folder of its own for whatever it keeps."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=PATIENCE)
        try:
            yield browser
        finally:
            await browser.close()


class Visitor:
    """Somebody at a screen, with cookies of their own; may have several tabs."""

    def __init__(self, context: BrowserContext) -> None:
        self._context = context
        self._hosts = {"127.0.0.1"}
        self.faults: list[str] = []

    async def open(self, url: str) -> Page:
        """A page in a tab of its own."""
        page = await self.tab()
        await page.goto(url)
        return page

    async def tab(self) -> Page:
        page = await self._context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        page.on("console", self._heard)
        page.on("request", self._asked)
        return page

    async def forget(self) -> None:
        """All cookies, as when they have expired."""
        await self._context.clear_cookies()

    async def meets(self, host: str) -> asyncio.Event:
        """Another site, which answers anything with a page that says its name; while the event is clear, it waits.

        A page that leads there by itself after some seconds stays for as long as that.
        """
        self._hosts.add(host)
        answers = asyncio.Event()
        answers.set()

        async def answer(route: Route) -> None:
            await answers.wait()
            await route.fulfill(content_type="text/html", body=f"<!doctype html><title>{host}</title>{host}")

        await self._context.route(f"https://{host}/**", answer)
        return answers

    async def gathers(self, pattern: str, *, count: int) -> None:
        """Requests to such addresses go on when so many have been made: whoever makes them, does so at once."""
        made = 0
        enough = asyncio.Event()

        async def wait(route: Route) -> None:
            nonlocal made
            made += 1
            if made >= count:
                enough.set()
            await enough.wait()
            await route.continue_()

        await self._context.route(pattern, wait)

    def _heard(self, message: ConsoleMessage) -> None:
        # What is refused is said there, too, and is what some tests are about.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.faults.append(f"console: {message.text}")

    def _asked(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.hostname not in self._hosts:
            self.faults.append(f"another host: {request.url}")


@asynccontextmanager
async def visiting(
    browser: Browser, *, phone: bool = False, dark: bool = False, scripts: bool = True
) -> AsyncIterator[Visitor]:
    """A visitor, whose pages ask no other host, break no policy and have no script that fails."""
    context = await browser.new_context(
        viewport=PHONE if phone else DESK,
        is_mobile=phone,
        has_touch=phone,
        device_scale_factor=2 if phone else 1,
        color_scheme="dark" if dark else "light",
        java_script_enabled=scripts,
        locale="en-US",
    )
    visitor = Visitor(context)
    try:
        yield visitor
        assert visitor.faults == []
    finally:
        await context.close()


async def photograph(page: Page, name: str) -> None:
    """Keep what the page looks like; the same page's picture of an earlier run is replaced."""
    await page.evaluate("scrollTo(0, 0)")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


async def fits(page: Page) -> bool:
    """Whether nothing of the page is beside the screen. (A phone's window grows with what it has to hold.)"""
    return bool(
        await page.evaluate(
            "document.documentElement.scrollWidth <= Math.min(window.innerWidth, document.documentElement.clientWidth)"
        )
    )

"""The ui command: the page, served to this computer alone unless asked otherwise; it fetches nothing from elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio import routes
from jinja2 import BaseLoader, DictLoader
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import UserError
from ...storage import check_writable
from .jobs import Jobs
from .models import Models
from .page import build

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; connect-src 'self' ws://{host}; font-src 'self' data:; object-src 'none';"
    " base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""What browsers may load for the page, what it serves itself, and who may show it in a frame: nobody."""
_SHOWN = (".png", ".jpg", ".jpeg", ".webp", ".gif")
"""Files that are served as what they are; a browser saves all others and runs none."""
_COOKIE = "custom-diffusion-token-"  # and the port, which cookies do not know
_REMOTE = re.compile(r"<(?:link|script)\b[^>]*\"https://[^>]*>(?:\s*</script>)?")
_WAITING = 8  # handlers at once: jobs take turns by their lock, and those that wait must not hold up the rest
_SECONDS_TO_END = 3


def ui(options: argparse.Namespace) -> int:
    """Run the command until Ctrl-C; returns its exit status. Raises UserError if it cannot start."""
    address = options.listen or "127.0.0.1"
    if not _is_loopback(address):
        print(
            f"WARNING: whoever reaches {address} with the token below can train, draw, and read and write files here as"
            " you. What is sent is not encrypted: do this only in a network that you trust.",
            flush=True,
        )
    check_writable(options.deltas_dir)
    models = Models(options.model, options.models_dir, options.vae, options.prediction_type)
    models.get()  # a mistake in its name is told here, not on the page
    options.deltas_dir.mkdir(parents=True, exist_ok=True)
    with (
        _bound(address, options.port) as listener,
        tempfile.TemporaryDirectory(prefix="custom-diffusion-", ignore_cleanup_errors=True) as aside,
    ):
        os.environ["GRADIO_TEMP_DIR"] = aside  # gradio would have one for all users and programs of this computer
        token = "" if _is_loopback(address) else secrets.token_urlsafe(16)
        jobs = Jobs(models.lock)
        app = application(build(models, options.deltas_dir, jobs), jobs, address, token)
        listener.listen()  # from here on nobody who comes is refused
        visit = f"http://{_reachable(address)}:{listener.getsockname()[1]}{f'/?token={token}' if token else ''}"
        print(f"Custom Diffusion is at {visit} (Ctrl-C stops it)", flush=True)
        _end_as_by_ctrl_c()
        try:
            _server(app).run(sockets=[listener])
        finally:
            _end(jobs)
    return 0


def _end_as_by_ctrl_c() -> None:
    """Have a request to end, and a terminal that is closed, do what Ctrl-C does: the server ends, then this program."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn ends its server first
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))


def _server(app: ASGIApp) -> uvicorn.Server:
    """What serves it until it is ended; then it waits for no page, as gradio does for one closed while a job ran."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_SECONDS_TO_END)
    logging.getLogger("uvicorn.error").addFilter(_is_no_end)
    return uvicorn.Server(config)


def _is_no_end(record: logging.LogRecord) -> bool:
    """Whether a line of the server's log is of anything but a page that was still open when the program was ended."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not (cancelled or "timeout graceful shutdown exceeded" in record.getMessage())


def _end(jobs: Jobs) -> None:
    """Let what runs save, and wait for it; a second Ctrl-C ends that."""
    if jobs.running is not None:
        with suppress(OSError):  # of a terminal that is gone
            print("saving the training", flush=True)
    jobs.interrupt()
    with jobs.turn:
        pass


def application(page: gr.Blocks, jobs: Jobs, address: str, token: str = "") -> ASGIApp:
    """The page as a web application for an address, which answers its own page alone; with a token, whoever has it."""
    page.queue(concurrency_count=_WAITING, api_open=False)
    routes.templates.env.loader = _without_remote_parts(routes.templates.env.loader)
    own = socket.gethostname()
    hosts = frozenset(name.lower() for name in (address, own, f"{own}.local", socket.getfqdn()))
    # Neither gradio's application nor the one around it describes its routes.
    whole = FastAPI(openapi_url=None)
    whole.add_api_route("/jobs", lambda: {"busy": jobs.busy}, methods=["GET"])
    app = gr.mount_gradio_app(whole, page, path="/", app_kwargs={"openapi_url": None})
    return _OwnPageOnly(app, _is_loopback(address), hosts, token)


def _without_remote_parts(templates: BaseLoader | None) -> BaseLoader:
    """Gradio's page without the fonts and scripts that it would load from elsewhere."""
    assert templates is not None
    name = "frontend/index.html"
    source, _, _ = templates.get_source(routes.templates.env, name)
    return DictLoader({name: _REMOTE.sub("", source)})


class _OwnPageOnly:
    """Refuses what other pages in the browser ask for, and lets the page load nothing from elsewhere.

    Gradio 3 answers any page, and serves any file below the working directory as a page of its own. A page that is open
    in the same browser could otherwise train, draw, and read files here. So nothing but a visit to the page itself may
    come from another site (Fetch Metadata, https://www.w3.org/TR/fetch-metadata); names that are not this server's are
    refused (DNS rebinding); and of files only those are served that gradio has put aside for the page.

    hosts: names of this server, besides addresses. token: what the first visit must give, or "".
    """

    def __init__(self, app: ASGIApp, loopback: bool, hosts: frozenset[str], token: str) -> None:
        self.app, self.loopback, self.hosts, self.token = app, loopback, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal:
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await PlainTextResponse(refusal, 403)(scope, receive, send)
        added = [(b"content-security-policy", _POLICY.format(host=headers.get("host", "")).encode()),
                 (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
                 (b"cross-origin-opener-policy", b"same-origin"),
                 (b"cross-origin-resource-policy", b"same-origin")]  # fmt: skip
        if _file_of(scope["path"]) is not None and not scope["path"].lower().endswith(_SHOWN):
            added.append((b"content-disposition", b"attachment"))
        if self.token and not self._has_cookie(scope, headers):
            cookie = f"{_cookie(scope)}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            added.append((b"set-cookie", cookie.encode()))

        async def with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                replaced = {name for name, _ in added}
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in replaced]
                message["headers"] = [*kept, *added]
            await send(message)

        return await self.app(scope, receive, with_policy)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> str:
        """Why a request is refused; "" if it is not."""
        host = headers.get("host", "")
        named = _HOST.fullmatch(host)
        if not named or not self._is_ours(named[1].strip("[]").lower()):
            return "This page answers only to its own name."
        if "origin" in headers and headers["origin"].partition("://")[2] != host:
            return "This page answers only itself."
        visit = (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and scope["path"] == "/"
            and headers.get("sec-fetch-mode", "navigate") == "navigate"
            and headers.get("sec-fetch-dest", "document") == "document"
        )
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not visit:
            return "This page answers only itself."
        if self.token and not self._has_cookie(scope, headers) and not (visit and self._has_token(scope)):
            return "Open the address that the terminal shows, with its token."
        file = _file_of(scope["path"])
        if _PROXY.match(scope["path"]) or (file is not None and not _is_below(file, Path(_put_aside()))):
            return "This file is not served."
        return ""

    def _is_ours(self, name: str) -> bool:
        return _is_loopback(name) or (not self.loopback and (name in self.hosts or _is_address(name)))

    def _has_cookie(self, scope: Scope, headers: dict[str, str]) -> bool:
        given = (each.strip().partition("=") for each in headers.get("cookie", "").split(";"))
        return any(name == _cookie(scope) and self._is_token(value) for name, _, value in given)

    def _has_token(self, scope: Scope) -> bool:
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return self._is_token(asked)

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), self.token.encode())


_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")
_FILE = re.compile(r"/+file[=/](.*)", re.DOTALL)
_PROXY = re.compile(r"/+proxy=")  # gradio would fetch any address for whoever asks


def _file_of(path: str) -> str | None:
    """The file that a request for this path is served by gradio; None if it is none."""
    found = _FILE.match(path)
    return found[1] if found else None


def _is_below(file: str, folder: Path) -> bool:
    try:
        return Path(file).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):
        return False


def _put_aside() -> str:
    """Where gradio copies what it shows: pictures, files to download."""
    return os.environ.get("GRADIO_TEMP_DIR") or str(Path(tempfile.gettempdir()) / "gradio")


def _cookie(scope: Scope) -> str:
    """The name of the token's cookie: browsers send the cookies of one port to all ports of a computer."""
    return f"{_COOKIE}{scope['server'][1]}"


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _reachable(address: str) -> str:
    """How the address is written in a browser; for all addresses of this computer, the one that others reach it by."""
    if not _is_address(address) or not ipaddress.ip_address(address).is_unspecified:
        return f"[{address}]" if ":" in address else address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused, suppress(OSError):
        unused.connect(("192.0.2.1", 9))  # sends nothing: it only chooses the way to others
        return str(unused.getsockname()[0])
    return "127.0.0.1"


def _bound(address: str, port: int) -> socket.socket:
    """A socket at that address. Raises UserError if there is none to be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        if sys.platform != "win32":  # there it would let two programs have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"cannot serve at {address}:{port} ({error}); give another --port or --listen") from error
    return listener

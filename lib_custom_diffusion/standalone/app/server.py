"""The ui command: the page, served to this computer alone unless asked otherwise; it fetches nothing from elsewhere."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import socket
import sys
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio import routes
from jinja2 import BaseLoader, DictLoader
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import UserError
from .models import Models
from .page import build

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; connect-src 'self' ws: wss:; font-src 'self' data:"
)
"""What browsers may load for the page: what it serves itself."""
_REMOTE = re.compile(r"<(?:link|script)\b[^>]*\"https://[^>]*>(?:\s*</script>)?")
_WAITING = 8  # handlers at once: jobs take turns by their lock, and those that wait must not hold up the rest
_SECONDS_TO_END = 3


def ui(options: argparse.Namespace) -> int:
    """Run the command until Ctrl-C; returns its exit status. Raises UserError if it cannot start."""
    address = options.listen or "127.0.0.1"
    if not _is_loopback(address):
        print(
            f"WARNING: whoever can reach {address} can train, draw, and read and write files here as you: there is no"
            " password. Do this only in a network that you trust.",
            flush=True,
        )
    options.deltas_dir.mkdir(parents=True, exist_ok=True)
    models = Models()
    models.get(options.model)  # a mistake in its name is told here, not on the page
    with _bound(address, options.port) as listener:
        app = application(build(models, options.model, options.deltas_dir), address)
        listener.listen()  # from here on nobody who comes is refused
        named = f"[{address}]" if ":" in address else address
        print(f"Custom Diffusion is at http://{named}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        # Gradio keeps waiting for a page that was closed while a job ran.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_SECONDS_TO_END)
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def application(page: gr.Blocks, address: str) -> ASGIApp:
    """The page as a web application for an address, which answers its own page alone."""
    page.queue(concurrency_count=_WAITING, api_open=False)
    routes.templates.env.loader = _without_remote_parts(routes.templates.env.loader)
    return _OwnPageOnly(gr.mount_gradio_app(FastAPI(), page, path="/"), _is_loopback(address))


def _without_remote_parts(templates: BaseLoader | None) -> BaseLoader:
    """Gradio's page without the fonts and scripts that it would load from elsewhere."""
    assert templates is not None
    name = "frontend/index.html"
    source, _, _ = templates.get_source(routes.templates.env, name)
    return DictLoader({name: _REMOTE.sub("", source)})


class _OwnPageOnly:
    """Refuses what other pages in the browser ask for, and lets the page load nothing from elsewhere.

    Gradio 3 answers any page. One that is open in the same browser could otherwise train, draw and read files here; a
    server for this computer alone also refuses names that are not its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, loopback: bool) -> None:
        self.app, self.loopback = app, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        foreign = "origin" in headers and urlsplit(headers["origin"]).netloc != host
        if foreign or (self.loopback and not _is_loopback(urlsplit(f"//{host}").hostname or "")):
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await PlainTextResponse("This page answers only itself.", 403)(scope, receive, send)

        async def with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        return await self.app(scope, receive, with_policy)


def _is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


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

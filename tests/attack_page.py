"""Pages of other sites, open in the same browser, that try all ways by which a page can reach a server.

Each way is tried in a real browser; what counts is what the browser's log says the server answered, and what the page
could read of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import playwright.sync_api as playwright

STRANGER = "evil.example"
"""A name that the browser takes for this computer's, as after DNS rebinding."""
FLAGS = ["--host-resolver-rules=MAP *.example 127.0.0.1"]

_WAYS = """
async ({target, reads, posts, queue}) => {
    const through = [];
    const within = (promise) => Promise.race([promise, new Promise((over) => setTimeout(() => over('time'), 4000))]);
    const element = (kind, set) => within(new Promise((over) => {
        const made = Object.assign(document.createElement(kind), set);
        made.onload = () => over('load');
        made.onerror = () => over('error');
        document.body.append(made);
    }));
    for (const path of reads) {
        const url = target + path;
        await fetch(url, {credentials: 'include'}).then(
            async (got) => through.push(`fetch of ${path}: ${(await got.text()).slice(0, 80)}`), () => 0);
        await fetch(url, {mode: 'no-cors', credentials: 'include'}).catch(() => 0);
        if (await element('img', {src: url}) === 'load') through.push(`img of ${path}`);
        if (await element('script', {src: url}) === 'load') through.push(`script of ${path}`);
        if (await element('link', {rel: 'stylesheet', href: url}) === 'load') through.push(`stylesheet of ${path}`);
        if (await element('video', {src: url, preload: 'auto'}) === 'load') through.push(`video of ${path}`);
        await element('iframe', {src: url});
        await element('iframe', {src: url, sandbox: 'allow-scripts allow-forms'});
        await element('object', {data: url});
    }
    for (const [path, body] of posts) {
        const url = target + path;
        for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'application/json', '']) {
            const content = new Blob([body], {type});
            await fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include', body: content}).catch(() => 0);
            await fetch(url, {method: 'POST', credentials: 'include', body: content}).then(
                async (got) => through.push(`POST to ${path}: ${(await got.text()).slice(0, 80)}`), () => 0);
            try { navigator.sendBeacon(url, content); } catch (refused) { }
        }
        for (const enctype of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data']) {
            const name = 'frame' + document.forms.length;
            const frame = Object.assign(document.createElement('iframe'), {name});
            const form = Object.assign(document.createElement('form'), {
                action: url, method: 'post', enctype, target: name});
            form.append(Object.assign(document.createElement('input'), {name: body.slice(0, -1), value: '}'}));
            document.body.append(frame, form);
            const sent = within(new Promise((over) => { frame.onload = over; }));
            form.submit();
            await sent;
        }
    }
    for (const path of queue ? ['/queue/join', '/ws', '/'] : []) {
        const opened = await within(new Promise((over) => {
            const socket = new WebSocket(target.replace('http', 'ws') + path);
            socket.onopen = () => over('open');
            socket.onerror = () => over('error');
        }));
        if (opened === 'open') through.push(`WebSocket to ${path}`);
    }
    if (!queue) return through;
    const events = await within(new Promise((over) => {
        const source = new EventSource(target + '/queue/data');
        source.onopen = () => over('open');
        source.onerror = () => { source.close(); over('error'); };
    }));
    if (events === 'open') through.push('EventSource');
    return through;
}
"""


class _Empty(BaseHTTPRequestHandler):
    """An empty page at every path; below /sandboxed one of no origin ("null")."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        if self.path.startswith("/sandboxed"):
            self.send_header("Content-Security-Policy", "sandbox allow-scripts allow-forms allow-popups")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>another site</title><body></body>")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def another_site() -> Iterator[int]:
    """The port of a server of empty pages, under every name of this computer."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Empty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def answered(
    browser: Any, site: str, target: str, reads: Sequence[str], posts: Sequence[tuple[str, str]], queue: bool = True,
    before: str = "",
) -> list[str]:  # fmt: skip
    """What a page of the site got from the target: what it could read, and each request that was not refused.

    Not what the target's own pages ask of it. posts: paths, and JSON for each. queue: try gradio's, too.
    before: an address that the browser visits first.
    """
    context = browser.new_context()
    if before:
        context.new_page().goto(before)
    got = _Log(context, target)
    page = context.new_page()
    page.goto(site)
    through = page.evaluate(
        _WAYS, {"target": target, "reads": list(reads), "posts": [list(each) for each in posts], "queue": queue}
    )
    for path in reads:
        with context.expect_page() as opening:
            page.evaluate("url => { window.handle = window.open(url); }", target + path)
        opening.value.wait_for_load_state()
        opening.value.close()
    for path in reads:
        visitor = context.new_page()
        visitor.goto(site)
        with suppress(playwright.Error), visitor.expect_navigation():  # a file is saved, and leads nowhere
            visitor.evaluate("url => { location = url; }", target + path)
        visitor.close()
    context.close()
    return [*through, *got.served]


def handle_of_a_window(browser: Any, site: str, target: str) -> str:
    """What a page of the site can do with the window that it opens the target in: "closed" if nothing."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(site)
    with context.expect_page() as opening:
        page.evaluate("url => { window.handle = window.open(url); }", target)
    opening.value.wait_for_load_state()
    page.wait_for_timeout(500)
    found = page.evaluate("() => handle.closed ? 'closed' : `open, with ${handle.length} frames`")
    context.close()
    return found


class _Log:
    """What the browser got from the target for pages of other sites, save the visit of `/` itself."""

    def __init__(self, context: Any, target: str) -> None:
        self.served: list[str] = []
        self._own = urlsplit(target).netloc
        context.on("response", self._note)

    def _note(self, response: Any) -> None:
        asked, url = response.request, urlsplit(response.url)
        if url.netloc != self._own or response.status >= 400:
            return
        if asked.is_navigation_request():
            allowed = asked.method == "GET" and url.path == "/" and not _is_in_a_frame(asked)
        else:
            allowed = urlsplit(asked.frame.url).netloc == self._own
        if not allowed:
            self.served.append(f"{asked.method} {url.path} as {asked.resource_type}: {response.status}")


def _is_in_a_frame(visit: Any) -> bool:
    try:
        return visit.frame.parent_frame is not None
    except playwright.Error:  # so early in a window's life that it has no frame yet
        return False

"""What the app answers, and whom: requests as browsers send them for the page itself, and for others."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import gradio as gr
import httpx
import pytest
from starlette.types import Receive, Scope, Send
from websockets.sync.client import connect

from lib_custom_diffusion.standalone.app.jobs import Job, Jobs
from lib_custom_diffusion.standalone.app.server import _end, _end_as_by_ctrl_c, _reachable, _server, application

CROSS = {"Sec-Fetch-Site": "cross-site"}
VISIT = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
OWN = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}


class Client:
    """Asks the application as a browser would that keeps its cookies."""

    def __init__(self, address: str = "127.0.0.1", token: str = "", host: str = "127.0.0.1:7860") -> None:
        with gr.Blocks() as page:
            gr.Textbox()
        self.app, self.host, self.cookies = (
            application(page, Jobs(threading.Lock()), address, token),
            host,
            httpx.Cookies(),
        )

    def ask(self, method: str, path: str, headers: Mapping[str, str], content: str = "") -> httpx.Response:
        async def answered() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, cookies=self.cookies) as client:
                return await client.request(method, f"http://{self.host}{path}", headers=headers, content=content)

        answer = asyncio.run(answered())
        self.cookies.update(answer.cookies)
        return answer

    def get(self, path: str, headers: Mapping[str, str] = {}) -> httpx.Response:
        return self.ask("GET", path, headers)


@pytest.fixture(scope="module")
def app() -> Client:
    return Client()


def test_the_page_may_be_visited_from_anywhere_and_loads_what_it_needs(app: Client) -> None:
    assert app.get("/", headers={**CROSS, **VISIT}).status_code == 200
    assert app.get("/", headers={"Sec-Fetch-Site": "none", **VISIT}).status_code == 200
    assert app.get("/config", headers=OWN).status_code == 200
    assert app.get("/config").status_code == 200  # a browser that is too old to say where a request comes from


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/config", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}),
        ("/", {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}),
        ("/", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}),
        ("/config", VISIT),
        ("/file=README.md", VISIT),
        ("/info", VISIT),
    ],
)
def test_other_sites_get_nothing_else(app: Client, site: str, path: str, asked: dict[str, str]) -> None:
    assert app.get(path, headers={"Sec-Fetch-Site": site, **asked}).status_code == 403


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"])
def test_there_are_no_pages_about_its_routes(app: Client, path: str) -> None:
    assert app.get(path, headers=VISIT).status_code == 404


def test_forms_of_other_sites_are_refused(app: Client) -> None:
    assert app.ask("POST", "/run/predict", {**CROSS, **VISIT}, "{}").status_code == 403
    assert app.ask("POST", "/", {**CROSS, **VISIT}).status_code == 403


def test_no_page_shows_it_in_a_frame_and_it_loads_nothing_from_elsewhere(app: Client) -> None:
    answer = app.get("/", headers=VISIT)
    policy = answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy and "default-src 'self'" in policy
    assert "connect-src 'self' ws://127.0.0.1:7860;" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/file={}",
        "/file/{}",
        "//file={}",
        "/file=../../{}",
        "/file=/proc/self/environ",
        "/file%3D{}",
        "/%66ile={}",
        "/file=%2e%2f{}",
        "/file={}%00.png",
        "/file=%00{}",
        "/./file={}",
        "/x/../file={}",
        "/file=file:{}",
        "/FILE={}",
        "/static/..%2f..%2f{}",
        "/assets/..%2f{}",
        "/file=https://example.com/{}",
        "/file=\\{}",
        "/file;={}",
    ],
)
def test_files_are_not_served_from_the_working_directory(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # before the app is made, which serves what is below
    (tmp_path / "evil.html").write_text("<script>1</script>")
    answer = Client().get(path.format("evil.html"), headers=OWN)
    assert answer.status_code in (403, 404) and "script" not in answer.text


def test_what_gradio_put_aside_is_served_and_only_pictures_are_shown(
    app: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside, outside = tmp_path / "gradio", tmp_path / "outside.html"
    aside.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(aside))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("a.png", "a.html", "a.svg"):
        (aside / name).write_bytes(b"content")
    outside.write_text("secret")
    (aside / "link.html").symlink_to(outside)
    shown, saved, drawing = (app.get(f"/file={aside / name}", headers=OWN) for name in ("a.png", "a.html", "a.svg"))
    assert "content-disposition" not in shown.headers
    assert saved.headers["content-disposition"] == drawing.headers["content-disposition"] == "attachment"
    assert app.get(f"/file={aside / 'link.html'}", headers=OWN).status_code == 403
    assert app.get(f"/file={aside}/../outside.html", headers=OWN).status_code in (403, 404)


def test_nothing_is_fetched_from_elsewhere_for_whoever_asks(app: Client) -> None:
    assert app.get("/proxy=https://example.com/x", headers=OWN).status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "127.0.0.1.example.com",
        "example.com:7860",
        'a"b',
        "0.0.0.0:7860",
        "[::]:7860",
        "localhost.example.com",
        "localhost.",
        "127.0.0.1@example.com",
        "[::1",
        "[::1]x",
        "127.0.0.1:x",
        "",
    ],
)
def test_names_that_are_not_its_own_are_refused(app: Client, host: str) -> None:
    assert app.get("/", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["null", "http://[", "file://", "http://127.0.0.1:1", "http://127.0.0.1:7860.example.com", "http://"]
)
def test_origins_that_are_not_its_own_are_refused(app: Client, origin: str) -> None:
    for method in ("GET", "POST"):
        assert app.ask(method, "/config", {"Origin": origin}).status_code == 403
    assert app.get("/config", {"Origin": "http://127.0.0.1:7860"}).status_code == 200


def test_others_need_the_token_once() -> None:
    app = Client("0.0.0.0", "secret", host="192.168.1.5:7860")
    assert app.get("/", headers=VISIT).status_code == 403
    assert app.get("/?token=wrong", headers=VISIT).status_code == 403
    assert app.get("/config?token=secret", headers=OWN).status_code == 403  # a visit brings it, nothing else does
    first = app.get("/?token=secret", headers=VISIT)
    assert first.status_code == 200
    assert "HttpOnly" in first.headers["set-cookie"] and "SameSite=Strict" in first.headers["set-cookie"]
    assert app.get("/config", headers=OWN).status_code == 200  # by the cookie
    assert app.get("/config", headers={**OWN, "Cookie": "custom-diffusion-token-7860=wrong"}).status_code == 403


@pytest.mark.parametrize("others", ["a(b=1", "a=\xe9", "=; ;;", 'a="b', "custom-diffusion-token-7860=\xe9"])
def test_cookies_of_other_programs_on_the_same_computer_are_no_matter(others: str) -> None:
    app = Client("0.0.0.0", "secret", host="192.168.1.5:7860")
    for cookie, status in ((others, 403), (f"{others}; custom-diffusion-token-7860=secret", 200)):
        headers = {**OWN, "Cookie": cookie.encode("latin-1")}
        assert app.get("/config", headers=headers).status_code == status


def test_a_server_for_others_answers_to_addresses_and_to_the_name_that_it_was_given() -> None:
    app = Client("studio.local", "secret", host="studio.local:7860")
    assert app.get("/?token=secret", headers=VISIT).status_code == 200
    assert app.get("/", headers={"Host": "evil.test:7860"}).status_code == 403


def test_a_name_counts_in_whatever_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Den")
    for name in ("studio", "den", "den.local"):
        app = Client("Studio", "secret", host=f"{name}:7860")
        assert app.get("/?token=secret", headers=VISIT).status_code == 200


def test_two_servers_on_one_computer_do_not_take_each_others_token() -> None:
    """Cookies do not know ports."""
    one, other = (Client("0.0.0.0", token, host=f"192.168.1.5:{port}") for token, port in (("a", 7860), ("b", 7861)))
    other.cookies = one.cookies
    assert one.get("/?token=a", headers=VISIT).status_code == other.get("/?token=b", headers=VISIT).status_code == 200
    assert one.get("/config", headers=OWN).status_code == other.get("/config", headers=OWN).status_code == 200


def test_the_address_that_is_told_can_be_opened_from_another_computer() -> None:
    assert _reachable("studio.local") == "studio.local"
    assert _reachable("::1") == "[::1]"
    for every in ("0.0.0.0", "::"):
        assert not ipaddress.ip_address(_reachable(every)).is_unspecified


def test_at_its_end_what_runs_is_stopped_and_waited_for() -> None:
    jobs, saved = Jobs(threading.Lock()), []

    def work(job: Job[None]) -> None:
        job.interrupted.wait(60)
        time.sleep(0.05)
        saved.append("all")

    job = jobs.start("", work)
    while jobs.running is None:
        time.sleep(0.01)
    _end(jobs)
    assert saved == ["all"] and job.interrupted.is_set()


def test_a_page_that_is_open_at_the_end_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(60)

    server = _server(page)
    server.config.lifespan, server.config.timeout_graceful_shutdown = "off", 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        running.start()
        with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}"):
            server.should_exit = True
            running.join(30)
    assert not running.is_alive() and capsys.readouterr().err == ""


def test_a_request_to_end_is_as_ctrl_c() -> None:
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        _end_as_by_ctrl_c()
        for number in numbers:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
                time.sleep(1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

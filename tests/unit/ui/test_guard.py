"""The guard: hosts, passwords, addresses that do not exist, and headers that keep a browser at home."""

from __future__ import annotations

import base64

import pytest
from asgi import ask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from rmd.common.errors import RMDError
from rmd.ui.guard import ADDRESSES, FOLDERS, HEADERS, Guard, check_host, is_loopback


def home(_: Request) -> Response:
    return PlainTextResponse("home")


APP = Starlette(routes=[Route("/{path:path}", home, methods=["GET", "POST"])])


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("path", [*ADDRESSES, *(f"{folder}x" for folder in FOLDERS)])
def test_what_the_page_needs_is_passed_on_with_headers(path: str) -> None:
    answer = ask(Guard(APP), path)
    assert (answer.status, answer.content) == (200, b"home")
    assert all(answer.headers[name.lower()] == value for name, value in HEADERS.items())


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=https://x.hf.space/", "/docs",
        "/gradio_api/info", "/gradio_api/call/generate", "/gradio_api/vibe-code", "/gradio_api/component_server",
        "/monitoring", "/login", "//", "/configuration",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_everything_else_of_gradio_does_not_exist(path: str, method: str) -> None:
    assert ask(Guard(APP), path, method=method).status == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200), ("localhost", 200), ("[::1]:7860", 200), ("127.8.9.1", 200), ("evil.example", 403),
        ("localhost.evil.example:7860", 403), ("10.0.0.3:7860", 403), ("", 403), ("[::1", 200),
    ],
)  # fmt: skip
def test_a_local_page_answers_to_this_machine_only(host: str, status: int) -> None:
    assert ask(Guard(APP), "/", host=host).status == status


def test_a_public_page_answers_under_any_name_to_those_with_the_password() -> None:
    guard = Guard(APP, password="geheim", local=False)
    refused = ask(guard, "/", host="page.example")
    assert refused.status == 401 and refused.headers["www-authenticate"].startswith("Basic realm=")
    wrong = (basic("me", "wrong"), basic("geheim", ""), "Basic !", "Bearer geheim", "Basic", basic("me", "geheimx"))
    for given in wrong:
        assert ask(guard, "/shelf/x.png", host="page.example", authorization=given).status == 401
    assert ask(guard, "/", host="page.example", authorization=basic("me", "geheim")).status == 200
    umlauts = Guard(APP, password="größe", local=False)
    assert ask(umlauts, "/", authorization=basic("me", "größe")).status == 200


def test_a_public_address_needs_a_password() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        assert is_loopback(host)
        check_host(host, "")
    check_host("0.0.0.0", "geheim")
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        assert not is_loopback(host)
        with pytest.raises(RMDError, match=r"set a password in the environment variable RMD_UI_PASSWORD, or leave"):
            check_host(host, "")

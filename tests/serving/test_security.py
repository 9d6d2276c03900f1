"""Keys, hosts, origins, sizes, and what errors and pages may show."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import httpx2
import pytest

from tests.serving.conftest import running
from tunesmith.engines.echo import Echo
from tunesmith.serving import security
from tunesmith.serving.app import PAGES

KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def locked():
    with running(Echo().open("tiny"), key=KEY, body_bytes=5000, body_seconds=0.5) as server:
        yield server


def raw(server, request: bytes, *, more: bytes = b"") -> bytes:
    """The answer to bytes on a socket."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request + more)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
            if b"\r\n\r\n" in answer:
                break
    return answer


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def test_every_route_but_health_and_the_pages_needs_the_key(locked):
    schema = httpx2.get(
        f"{locked.address}/openapi.json", headers={"authorization": f"Bearer {KEY}"}, trust_env=False
    ).json()
    routes = [(method, path) for path, methods in schema["paths"].items() for method in methods] + [
        ("get", "/openapi.json")
    ]
    assert len(routes) == 7
    for method, path in routes:
        response = httpx2.request(
            method.upper(), locked.address + path.replace("{name}", "tiny"), json={}, trust_env=False
        )
        assert response.status_code == (200 if path.startswith("/health/") else 401), path
    for path in ("/", "/docs", "/pages/chat.js"):
        assert httpx2.get(locked.address + path, trust_env=False).status_code == 200


@pytest.mark.parametrize(
    "given", ["", "Bearer", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY, "Bearer ä"]
)
def test_a_wrong_key_is_refused_in_the_openai_way(locked, given):
    response = httpx2.get(f"{locked.address}/v1/models", headers={"authorization": given.encode()}, trust_env=False)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


def test_the_right_key_is_taken(locked):
    assert locked.client(KEY).models.list().data[0].id == "tiny"
    import hmac

    assert "hmac.compare_digest" in Path(security.__file__).read_text(encoding="utf-8")
    assert hmac.compare_digest(b"a", b"a")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "x/health?",
        "127.0.0.1@evil.example",
        "",
        "10.0.0.1",
        "[::2]",
        "a:b",
    ],
)
def test_a_name_that_was_made_to_point_here_gets_nothing(echo, host):
    answer = raw(echo, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert status(answer) in {400, 403}
    assert b"tiny" not in answer


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:9", "127.0.0.5"])
def test_names_of_this_machine_are_taken(echo, host):
    assert status(raw(echo, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())) == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://"]
)
def test_pages_of_other_sites_get_nothing(echo, origin):
    response = httpx2.get(f"{echo.address}/v1/models", headers={"origin": origin}, trust_env=False)
    assert response.status_code == 403
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_our_own_page_is_answered(echo):
    assert httpx2.get(f"{echo.address}/v1/models", headers={"origin": echo.address}, trust_env=False).status_code == 200


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read(locked):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 999999999\r\n\r\n"
    answer = raw(locked, head)
    assert status(answer) == 413
    assert b"5000 bytes" in answer or status(answer) == 413


def test_a_body_that_does_not_say_it_is_too_large_is_refused_on_the_way(locked):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status(raw(locked, head, more=(b"400\r\n" + b"x" * 1024 + b"\r\n") * 6)) == 413


def test_a_body_that_never_comes_is_not_waited_for(locked):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    assert status(raw(locked, head)) == 408


def test_a_bug_shows_no_trace_and_no_path(capfd):
    class Broken(type(Echo().open())):
        async def stream(self, request):
            raise ZeroDivisionError("/secret/path")
            yield

    with running(Broken(Echo(), "tiny")) as server:
        for stream in (False, True):
            response = httpx2.post(
                f"{server.address}/v1/chat/completions", trust_env=False,
                json={"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": stream},
            )  # fmt: skip
            assert response.status_code == 500
            assert "secret" not in response.text
            assert "Traceback" not in response.text
            assert response.headers["x-request-id"] in response.json()["error"]["message"]
        assert server.admission.running == 0


def test_the_pages_are_small_ours_and_harmless(echo):
    files = [path for path in PAGES.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100_000
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?:|//[a-z]|@import|url\(", text.replace("// ", "")), path.name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\bon\w+=\"|style=\"", text
        ), path.name
    for path in ("/", "/docs"):
        page = httpx2.get(echo.address + path, trust_env=False)
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for part in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
            assert httpx2.get(echo.address + part, trust_env=False).status_code == 200, part
    assert httpx2.get(f"{echo.address}/pages/..%2fapp.py", trust_env=False).status_code == 404


def test_every_word_of_the_pages_is_in_both_languages():
    words = (PAGES / "words.js").read_text(encoding="utf-8")
    english, chinese = (
        set(re.findall(r"(\w+):", block)) for block in re.findall(r"(?:en|zh): \{(.*?)\n  \}", words, re.DOTALL)
    )
    assert english == chinese
    used = {
        name
        for path in PAGES.iterdir()
        for name in re.findall(
            r'(?:data-word|data-placeholder)="(\w+)"|word\("(\w+)"\)', path.read_text(encoding="utf-8")
        )
        for name in name
        if name
    }
    assert used == english

"""The server of a study over real connections: twenty raters at once, a killed server, and requests that are wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from studies import served, small_study

from rmd.study.design import files_of, tasks_of
from rmd.study.folder import Study
from rmd.study.store import Store

CHOICES = ("left", "right", "tie")


def ask(url: str, path: str, body: object = None) -> tuple[int, dict[str, object], dict[str, str]]:
    """Return status, JSON and headers of an answer; a body makes the request a POST."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urlopen(Request(url + path, data=data), timeout=30) as reply:
            return reply.status, json.loads(reply.read()), dict(reply.headers)
    except HTTPError as error:
        answer = json.loads(error.read()) if "json" in error.headers.get("content-type", "") else {}
        return error.code, answer, dict(error.headers)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small_study(tmp_path_factory.mktemp("study"), "a", "b", prompts=6, tasks=4, checks=1)


@pytest.fixture(scope="module")
def url(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(study, tmp_path_factory.mktemp("server") / "log") as (address, _):
        yield address


def test_the_page_and_its_files(url: str) -> None:
    for path, kind in (("/", "text/html"), ("/page/study.js", "javascript"), ("/page/study.css", "text/css")):
        with urlopen(url + path, timeout=30) as reply:
            assert kind in reply.headers["content-type"] and len(reply.read()) > 500
            assert "default-src 'self'" in reply.headers["content-security-policy"]
    status, about, headers = ask(url, "/api/about")
    assert status == 200 and about["tasks"] == 12 and about["media"] == "pictures"
    assert headers["cache-control"] == "no-store" and "server" not in headers


@pytest.mark.parametrize("path", ["/media/study.json", "/media/..%2Fkey.json", "/page/..%2Fserver.py", "/key.json"])
def test_nothing_else_is_served(url: str, path: str) -> None:
    assert ask(url, path)[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/join", {}, 400),
        ("/api/join", {"agreed": "yes"}, 400),
        ("/api/next", {}, 400),
        ("/api/next", {"code": "nobody"}, 404),
        ("/api/next", b"no json", 400),
        ("/api/next", b"[1, 2]", 400),
        ("/api/next", b'{"code": "' + b"x" * 5000 + b'"}', 400),
        ("/api/vote", {"code": "nobody", "task": 0, "choice": "left"}, 404),
        ("/api/vote", {"code": "nobody", "task": True, "choice": "left"}, 400),
        ("/api/vote", {"code": "nobody", "task": 0, "choice": "up"}, 400),
    ],
)
def test_wrong_requests(url: str, path: str, body: object, status: int) -> None:
    answered, answer, _ = ask(url, path, body)
    assert answered == status and isinstance(answer["error"], str)


def test_a_rater_goes_through_all_tasks_and_sees_no_names(url: str, study: Study) -> None:
    code = ask(url, "/api/join", {"agreed": True})[1]["code"]
    rater = Store(study.folder / "votes.sqlite", study.hash).rater(str(code))
    assert rater is not None
    tasks = tasks_of(study.design, rater)
    _, shown, _ = ask(url, "/api/next", {"code": code})
    for number, task in enumerate(tasks):
        assert (shown["done"], shown["tasks"], shown["finished"]) == (number, len(tasks), False)
        assert shown.keys() == {"finished", "done", "tasks", "question", "prompt", "left", "right", "ahead"}
        assert [str(shown[side]).removeprefix("/media/") for side in ("left", "right")] == [
            *files_of(study.design, task)
        ]
        with urlopen(url + str(shown["left"]), timeout=30) as reply:
            assert reply.read()[:4] == b"\x89PNG"
        wrong = ask(url, "/api/vote", {"code": code, "task": number + 1, "choice": "tie"})
        assert wrong[0] == 409
        status, shown, _ = ask(url, "/api/vote", {"code": code, "task": number, "choice": CHOICES[number % 3]})
        assert status == 200
    assert shown == {"finished": True, "done": len(tasks), "tasks": len(tasks)}
    votes = [vote.choice for vote in Store(study.folder / "votes.sqlite", study.hash).votes() if vote.rater == rater]
    assert votes == [CHOICES[number % 3] for number in range(len(tasks))]


def test_a_pair_must_be_looked_at(tmp_path: Path, study: Study) -> None:
    slow = Study(tmp_path, study.design.model_copy(update={"min_seconds": 0.5}))
    (tmp_path / "study.json").write_text(slow.design.model_dump_json(), encoding="utf-8")
    (tmp_path / "media").symlink_to(study.media)
    with served(slow, tmp_path / "log") as (address, _):
        code = ask(address, "/api/join", {"agreed": True})[1]["code"]
        ask(address, "/api/next", {"code": code})
        vote = {"code": code, "task": 0, "choice": "left"}
        assert ask(address, "/api/vote", vote)[0] == 425
        time.sleep(0.6)
        assert ask(address, "/api/vote", vote)[0] == 200


def test_a_server_ends_in_order(tmp_path: Path, study: Study) -> None:
    with served(study, tmp_path / "log") as (address, process):
        assert ask(address, "/api/about")[0] == 200
        os.kill(process.pid or 0, signal.SIGINT)
        process.join(30)
        assert process.exitcode == 0
    out = (tmp_path / "log.out").read_text(encoding="utf-8").splitlines()
    assert out[-1] == f"stopped; see what it says with: rmd study analyse {study.folder}"
    assert "Traceback" not in (tmp_path / "log.err").read_text(encoding="utf-8")


def test_twenty_raters_at_once_and_a_killed_server_lose_no_vote(tmp_path: Path) -> None:
    study = small_study(tmp_path, "a", "b", prompts=8, tasks=8, checks=1)
    confirmed: dict[str, list[str]] = {}

    def rate(address: str, code: str, votes: int) -> None:
        _, shown, _ = ask(address, "/api/next", {"code": code})
        for _ in range(votes):
            choice = CHOICES[(int(str(shown["done"])) + len(code)) % 3]
            status, shown, _ = ask(address, "/api/vote", {"code": code, "task": shown["done"], "choice": choice})
            assert status == 200
            confirmed.setdefault(code, []).append(choice)

    with served(study, tmp_path / "first") as (address, process):
        codes = [str(ask(address, "/api/join", {"agreed": True})[1]["code"]) for _ in range(20)]
        with ThreadPoolExecutor(20) as threads:
            list(threads.map(lambda code: rate(address, code, 6), codes))
        process.kill()
        process.join()
    with served(study, tmp_path / "second") as (address, _):
        assert {ask(address, "/api/next", {"code": code})[1]["done"] for code in codes} == {6}
        with ThreadPoolExecutor(20) as threads:
            list(threads.map(lambda code: rate(address, code, 14), codes))
        assert all(ask(address, "/api/next", {"code": code})[1]["finished"] for code in codes)
    store = Store(study.folder / "votes.sqlite", study.hash)
    stored: dict[int, list[str]] = {}
    for vote in store.votes():
        stored.setdefault(vote.rater, []).append(vote.choice)
    assert {code: stored[store.rater(code) or 0] for code in codes} == confirmed
    assert sum(map(len, stored.values())) == 20 * 20

"""A running server, asked by OpenAI's own client and by requests that no client would send."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest
from families import make_student
from PIL import Image
from serving import PROMPTS, Served, packaged_student, served

from rmd.common.clips import clip_shape
from rmd.core.randomness import seeded
from rmd.sample.pipeline import RMDPipeline
from rmd.serve.files import encode
from rmd.serve.store import Store

KEY = "a-long-secret-key"
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API")  # said by OpenAI's client of its own service


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def server(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    out = tmp_path_factory.mktemp("server") / "log"
    options = ("--size", "64x48", "--fixed-batch", "--max-prompt", "500")
    with served(f"scenes={student}", *options, out=out, RMD_API_KEY=KEY) as running:
        yield running
    assert "Traceback" not in running.errors()


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("wan"), "wan", "lora")


def picture(image: openai.types.Image) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json or "")))


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within 30 s")


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_official_client_gets_the_pictures_of_the_pipeline(server: Served, student: Path) -> None:
    answer = server.client(KEY).images.generate(
        model="scenes", prompt=PROMPTS[0], n=2, size="64x64", response_format="b64_json", extra_body={"seed": 7}
    )
    assert answer.data is not None and [each.model_extra for each in answer.data] == [{"seed": 7}, {"seed": 8}]
    pipe = RMDPipeline.from_pretrained(student)
    pipe.set_progress_bar_config(disable=True)
    # All batches have four samples, so that the server's pictures have the bytes of such a batch.
    expected = pipe([PROMPTS[0]] * 4, generator=[seeded(seed) for seed in (7, 8, 8, 8)]).images[:2]
    assert [base64.b64decode(each.b64_json or "") for each in answer.data] == [encode(each, "png") for each in expected]


def test_pictures_are_the_same_alone_and_among_others(server: Served) -> None:
    def make(seed: int) -> str | None:
        answer = server.client(KEY).images.generate(prompt=PROMPTS[seed % 4], extra_body={"seed": seed})
        return (answer.data or [])[0].b64_json

    before = server.metric("rmd_batch_size_count")
    alone = [make(seed) for seed in range(4)]
    between = server.metric("rmd_batch_size_count")
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(make, range(4)))
    assert between - before == 4 and server.metric("rmd_batch_size_count") - between < 4
    assert together == alone and len(set(alone)) == 4


def test_sizes_and_formats(server: Served) -> None:
    images = server.client(KEY).images
    for kind in ("png", "jpeg", "webp"):
        answer = images.generate(prompt=PROMPTS[1], size="64x48", output_format=kind, quality="auto", user="me")
        assert (drawn := picture((answer.data or [])[0])).size == (64, 48) and drawn.format == kind.upper()
        assert answer.output_format == kind and answer.size == "64x48"
    small, large = (
        images.generate(prompt=PROMPTS[1], output_format="jpeg", output_compression=quality, extra_body={"seed": 1})
        for quality in (10, 95)
    )
    assert len((small.data or [])[0].b64_json or "") < len((large.data or [])[0].b64_json or "")


def test_a_picture_can_be_fetched_by_its_address(server: Served) -> None:
    images = server.client(KEY).images
    by_url, itself = (
        images.generate(prompt=PROMPTS[2], response_format=form, extra_body={"seed": 5}) for form in ("url", "b64_json")
    )
    url = (by_url.data or [])[0].url or ""
    with urlopen(url, timeout=30) as reply:  # without the key: its name is one
        assert reply.headers["content-type"] == "image/png"
        assert reply.read() == base64.b64decode((itself.data or [])[0].b64_json or "")
    assert server.ask("GET", "/files/..%2F..%2Fetc%2Fpasswd")[0] == server.ask("GET", "/files/x.png")[0] == 404


def test_without_a_seed_pictures_differ(server: Served) -> None:
    images = server.client(KEY).images
    first, second = (images.generate(prompt=PROMPTS[0]).data or [] for _ in range(2))
    assert first[0].b64_json != second[0].b64_json and first[0].model_extra != second[0].model_extra


def test_models(server: Served) -> None:
    models = server.client(KEY).models
    (model,) = models.list().data
    assert (model.id, model.owned_by) == ("scenes", "rmd") and model.model_extra is not None
    assert model.model_extra["sizes"] == ["64x64", "64x48"] and models.retrieve("scenes").id == "scenes"
    with pytest.raises(openai.NotFoundError, match=r"there is no model other"):
        models.retrieve("other")


# --- what is refused --------------------------------------------------------------------------------------------------

WRONG: list[tuple[object, int, str, str | None]] = [
    (b"", 400, "the request should be a JSON object", None),
    (b"{", 400, "the request is not valid JSON", None),
    (b"\xff", 400, "the request cannot be read", None),
    (b"[" * 20000, 400, "the request ", None),
    (b'{"prompt": NaN}', 400, "prompt should be text", "prompt"),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400, "the request ", None),
    ([], 400, "the request should be a JSON object", None),
    ({}, 400, "prompt is missing", "prompt"),
    ({"prompt": 5}, 400, "prompt should be text, but is 5", "prompt"),
    ({"prompt": " "}, 400, "the prompt is empty", "prompt"),
    ({"prompt": "x" * 501}, 400, "the prompt has 501 characters, but at most 500 are allowed", "prompt"),
    ({"prompt": "a\ud83d"}, 400, "the prompt 'a\\ud83d' cannot be used", "prompt"),
    ({"prompt": "a\0"}, 400, "the prompt 'a\\x00' cannot be used", "prompt"),
    ({"prompt": "a", "promt": "a"}, 400, "there is no parameter promt (did you mean 'prompt'?)", "promt"),
    ({"prompt": "a", "n": 0}, 400, "n should be at least 1, but is 0", "n"),
    ({"prompt": "a", "n": 11}, 400, "n is 11, but a request may ask for at most 10 pictures", "n"),
    ({"prompt": "a", "n": 10**30}, 400, "n is 10", "n"),
    ({"prompt": "a", "n": True}, 400, "n should be a whole number, but is true", "n"),
    ({"prompt": "a", "n": "2"}, 400, "n should be a whole number, but is '2'", "n"),
    ({"prompt": "a", "size": "1024x1024"}, 400, "unknown size '1024x1024': use one of 64x64, 64x48", "size"),
    ({"prompt": "a", "size": "9" * 200}, 400, "unknown size ", "size"),
    ({"prompt": "a", "seed": -1}, 400, "seed should be at least 0, but is -1", "seed"),
    ({"prompt": "a", "seed": 2**64}, 400, "seed should be at most 18446744073709551615", "seed"),
    ({"prompt": "a", "seed": 2**64 - 1, "n": 2}, 400, "seeds are numbers from 0 to", "seed"),
    ({"prompt": "a", "quality": "hd"}, 400, "quality should be 'auto' or 'standard', but is 'hd'", "quality"),
    ({"prompt": "a", "background": "transparent"}, 400, "background should be 'auto' or 'opaque'", "background"),
    (
        {"prompt": "a", "response_format": "gif"},
        400,
        "response_format should be 'b64_json' or 'url'",
        "response_format",
    ),
    ({"prompt": "a", "output_format": "gif"}, 400, "output_format should be 'png', 'jpeg' or 'webp'", "output_format"),
    ({"prompt": "a", "output_compression": 50}, 400, "output_compression is for jpeg and webp", "output_compression"),
    ({"prompt": "a", "stream": True}, 400, "stream should be", "stream"),
    ({"prompt": "a", "style": "vivid"}, 400, "there is no parameter style", "style"),
    ({"prompt": "a", "moderation": "low"}, 400, "there is no parameter moderation", "moderation"),
    ({"prompt": "a", "model": "dall-e-3"}, 404, "unknown model 'dall-e-3': use scenes", "model"),
    ({"prompt": "a", "user": "x" * 30000}, 413, "the request is too large: send at most 22384 bytes", None),
    (b"x" * 3 * 10**6, 413, "the request is too large: send at most 22384 bytes", None),
]

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(("body", "status", "sentence", "param"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_request(body: object, status: int, sentence: str, param: str | None, server: Served) -> None:
    client = server.client(KEY)
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/images/generations", cast_to=object, content=_raw(body), options={"headers": JSON})
    error: Any = caught.value.body
    assert caught.value.status_code == status
    assert error["message"].startswith(sentence) and error["param"] == param and error["code"]
    assert error["type"] == "invalid_request_error"


def _raw(body: object) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/v1/nothing", 404, "not_found"), ("GET", "/v1/images/generations", 405, "method_not_allowed"),
     ("GET", "/", 404, "not_found"), ("GET", "/docs", 404, "not_found"),
     ("POST", "/v1/images/edits", 404, "not_found")],
)  # fmt: skip
def test_there_is_nothing_else(method: str, path: str, status: int, code: str, server: Served) -> None:
    answered, headers, content = server.ask(method, path, headers={"Authorization": f"Bearer {KEY}"})
    assert answered == status and f'"code":"{code}"' in content.decode() and "server" not in headers
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "header",
    [None, "", KEY, f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \xe9"],
)
def test_the_key_is_needed(header: str | None, server: Served) -> None:
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/models", "/v1/images/generations", "/v1/videos", "/v1/anything"):
        status, answer, content = server.ask("POST", path, {"prompt": "a"}, headers)
        assert status == 401 and b"invalid_api_key" in content and answer["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        server.client("wrong").models.list()


def test_health_and_numbers_need_no_key(server: Served) -> None:
    assert server.ask("GET", "/health")[0] == 200
    status, _, content = server.ask("GET", "/ready")
    assert status == 200 and b'"models":["scenes"]' in content
    assert server.metric("rmd_queue_length") == 0 and server.metric("rmd_device_seconds_total") > 0
    assert KEY.encode() not in server.ask("GET", "/metrics")[2]
    assert b"/v1/images/generations" in server.ask("GET", "/openapi.json")[2]


# --- load and time ----------------------------------------------------------------------------------------------------


def test_a_full_queue_a_deadline_and_a_client_that_leaves(student: Path, tmp_path: Path) -> None:
    """A batch waits longer for others than a request may take, so that everything stays in the queue."""
    options = ("--max-batch", "9", "--max-wait", "60000", "--timeout", "3", "--max-queue", "4", "--max-n", "3")
    with served(student, *options, out=tmp_path / "log") as server, ThreadPoolExecutor(1) as threads:
        slow = threads.submit(server.ask, "POST", "/v1/images/generations", {"prompt": "a", "n": 2})
        wait_until(lambda: server.metric("rmd_queue_length") == 2)
        status, headers, content = server.ask("POST", "/v1/images/generations", {"prompt": "b", "n": 3})
        assert status == 429 and int(headers["retry-after"]) >= 1 and b'"rate_limit_error"' in content
        with pytest.raises(openai.RateLimitError, match=r"the queue is full: 2 pictures or videos are waiting"):
            server.client().images.generate(prompt="b", n=3)
        leaving = _send(server, b'{"prompt": "c"}')
        wait_until(lambda: server.metric("rmd_queue_length") == 3)
        leaving.close()
        wait_until(lambda: server.metric("rmd_queue_length") == 2)
        status, _, content = slow.result()
        assert status == 504 and b'"code":"timeout"' in content and b'"type":"server_error"' in content
        wait_until(lambda: server.metric("rmd_queue_length") == 0)
        assert server.metric("rmd_dropped_requests_total") == 2 and server.metric("rmd_batch_size_count") == 0
        assert server.errors() == ""


def _send(server: Served, body: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_the_end_refuses_new_requests_and_finishes_accepted_ones(student: Path, tmp_path: Path) -> None:
    options = ("--max-batch", "9", "--max-wait", "2000")
    with served(f"scenes={student}", *options, out=tmp_path / "log") as server, ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(server.client().images.generate, prompt=PROMPTS[0], n=2)
        wait_until(lambda: server.metric("rmd_queue_length") == 2)
        os.kill(server.process.pid or 0, signal.SIGTERM)
        wait_until(lambda: server.ask("GET", "/ready")[0] == 503)
        status, headers, content = server.ask("POST", "/v1/images/generations", {"prompt": "late"})
        assert status == 503 and "retry-after" in headers and b'"code":"shutting_down"' in content
        assert server.ask("GET", "/health")[0] == 200
        assert len(accepted.result().data or []) == 2
        server.process.join(30)
        assert server.process.exitcode == 0 and server.errors() == ""
        printed = server.out.with_suffix(".out").read_text(encoding="utf-8").splitlines()
        assert printed[-2:] == ["ending: finishing what was accepted", "stopped"]


def test_two_students_of_one_teacher_with_the_asynchronous_client(tmp_path: Path) -> None:
    first = make_student(tmp_path, "sdxl", "lora")
    with served(f"one={first}", f"two={first}", out=tmp_path / "log") as server:

        async def ask() -> list[Any]:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
                calls = (
                    client.images.generate(model=name, prompt=PROMPTS[0], extra_body={"seed": 1})
                    for name in ("one", "two", "one")
                )
                return [(answer.data or [])[0].b64_json for answer in await asyncio.gather(*calls)]

        one, two, again = asyncio.run(ask())
        assert one == two == again and [each.id for each in server.client().models.list().data] == ["one", "two"]


# --- videos -----------------------------------------------------------------------------------------------------------


def test_a_video_from_its_creation_to_its_end(wan: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with served(f"wan={wan}", "--store", tmp_path / "store", out=tmp_path / "log") as server:
        videos = server.client().videos
        made = videos.create(prompt="a red kite", model="wan", extra_body={"seed": 3})
        assert (made.status, made.size, made.model) == ("queued", "32x32", "wan")
        done = videos.poll(made.id, poll_interval_ms=50)
        assert done.status == "completed" and done.progress == 100 and done.completed_at and done.error is None
        content = videos.download_content(made.id).read()
        (tmp_path / "clip.mp4").write_bytes(content)
        shape = clip_shape(tmp_path / "clip.mp4")
        assert (shape.width, shape.height, shape.frames, shape.fps) == (32, 32, 5, 16)
        again = videos.create_and_poll(prompt="a red kite", extra_body={"seed": 3}, poll_interval_ms=50)
        assert videos.download_content(again.id).read() == content
        assert {video.id for video in videos.list()} == {made.id, again.id}
        assert videos.list(limit=1).has_more and len(list(videos.list(limit=1))) == 2
        assert videos.delete(made.id).deleted
        for gone in (videos.retrieve, videos.download_content, videos.delete):
            with pytest.raises(openai.NotFoundError, match=rf"there is no video {made.id}"):
                gone(made.id)
        assert sorted(path.suffix for path in (tmp_path / "store").glob("video_*")) == [".json", ".mp4"]
        for body, sentence in VIDEO_ERRORS:
            status, _, answer = server.ask("POST", "/v1/videos", body)
            assert status == 400 and sentence in answer.decode()
        with pytest.raises(openai.BadRequestError, match=r"videos are made from prompts only"):
            videos.create(prompt="a", input_reference=("a.png", b"x", "image/png"))


VIDEO_ERRORS = [
    ({"prompt": "a", "seconds": "60"}, "the model wan makes videos of 0.3125 seconds: leave seconds out"),
    ({"prompt": "a", "size": "720x1280"}, "unknown size '720x1280': use 32x32"),
    ({"prompt": "a", "fps": 1}, "there is no parameter fps"),
    ({"prompt": ""}, "the prompt is empty"),
    (b"{", "the request should be a JSON object"),
]


def test_a_video_survives_a_killed_server_and_the_end_of_another(wan: Path, tmp_path: Path) -> None:
    options = (f"wan={wan}", "--store", tmp_path / "store")
    with served(*options, "--max-batch", "9", "--max-wait", "60000", out=tmp_path / "first") as server:
        waiting = [server.client().videos.create(prompt=f"kite {number}").id for number in range(3)]
        given_up = server.client().videos.create(prompt="kite").id
        server.client().videos.delete(given_up)
        with pytest.raises(openai.ConflictError, match=r"this video is not finished: ask again later"):
            server.client().videos.download_content(waiting[0])
        server.process.kill()
        server.process.join()
    with served(*options, "--max-wait", "1000", out=tmp_path / "second") as server:
        videos = server.client().videos
        for identity in waiting:
            assert videos.poll(identity, poll_interval_ms=50).status == "completed"
            assert videos.download_content(identity).read()[4:8] == b"ftyp"
        with pytest.raises(openai.NotFoundError):
            videos.retrieve(given_up)
        last = videos.create(prompt="kite").id
        os.kill(server.process.pid or 0, signal.SIGTERM)
        server.process.join(60)
        assert server.process.exitcode == 0 and server.errors() == ""
    store = Store(tmp_path / "store", keep=1.0, most=1)
    record = store.read(last)
    assert record is not None and record.status == "completed" and store.file(f"{last}.mp4") is not None

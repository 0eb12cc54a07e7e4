"""Many clients at a server at once, of which some send nonsense and some leave, while the server is killed once.

Every request must be answered as it deserves. It may be refused because the queue is full; the client then waits as
long as it was told, and sends it again. A connection may break only because the server was killed under it; then, too,
the request is sent again. The same prompt, seed and size must always give the
same bytes: in any batch, and before and after the restart.
"""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from serving import PROMPTS, Served, served

ROUTE = "/v1/images/generations"
SEEDS = 6
"""So few seeds that most pictures are made several times."""
KINDS = {"picture": 60, "leaves": 14, "bad JSON": 9, "huge size": 9, "huge body": 8}
"""Kinds of requests and their weights."""
DESERVED = {"picture": {200, 429, 504}, "bad JSON": {400}, "huge size": {400}, "huge body": {413}}
"""The statuses that a request of each kind may get."""
OPTIONS = ("--fixed-batch", "--max-batch", "4", "--max-queue", "12", "--max-n", "4", "--size", "48x64")


@dataclass
class Figures:
    """The outcome of a storm.

    Attributes:
        answers: number of requests by kind and status; those of clients that left have the status 0.
        refused: number of times that a request was refused because the queue was full, and sent again.
        again: number of times that a request was sent again because the server was killed.
        lost: one sentence for each request that was not answered as it deserved.
        memory: resident memory in bytes of the second server, from time to time.
        pictures, distinct: number of pictures, and of different ones.
        seconds: how long it took.
        after: answers of the second server by status, as it and as its clients have counted them.
        status: exit status of the second server.
    """

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    refused: int = 0
    again: int = 0
    lost: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    pictures: int = 0
    distinct: int = 0
    seconds: float = 0.0
    after: dict[str, float] = field(default_factory=dict)
    status: int | None = None

    def __str__(self) -> str:
        kinds = "\n".join(
            f"  {kind}: " + ", ".join(f"{count} {'left' if status == 0 else status}" for (each, status), count in
            sorted(self.answers.items()) if each == kind) for kind in KINDS
        )  # fmt: skip
        memory = ", ".join(f"{value / 2**20:.0f}" for value in self.memory)
        return (
            f"{sum(self.answers.values())} requests in {self.seconds:.0f} s, {len(self.lost)} lost; "
            f"{self.refused} times the queue was full, {self.again} times a killed server broke a connection\n{kinds}\n"
            f"{self.pictures} pictures, {self.distinct} distinct, equal ones byte for byte\n"
            f"memory of the second server in MB: {memory}\nits answers: {self.after}; exit status {self.status}"
        )


class Storm:
    """Clients of a server that is killed and started again at the same port."""

    def __init__(self, requests: int) -> None:
        self.figures, self.left = Figures(), list(range(requests))
        self.port = self.life = 0
        self.seen: dict[tuple[str, int, str], str] = {}
        self.ours: Counter[str] = Counter()
        self.lock = threading.Lock()

    def client(self, number: int) -> None:
        """Send requests until none is left."""
        draw = random.Random(number)
        while True:
            with self.lock:
                if not self.left:
                    return
                self.left.pop()
            kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
            body = request(kind, draw)
            while not self.sent(kind, body, draw):
                time.sleep(0.05)

    def sent(self, kind: str, body: bytes, draw: random.Random) -> bool:
        """Send a request once; return whether it was answered or given up on purpose."""
        life, status, content = self.life, 0, b""
        try:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
            try:
                connection.request("POST", ROUTE, body, {"Content-Type": "application/json"})
                if kind == "leaves":
                    time.sleep(draw.random() / 5)
                else:
                    reply = connection.getresponse()
                    status, content = reply.status, reply.read()
            finally:
                connection.close()
        except (OSError, HTTPException) as error:
            return self.broken(life, f"{kind}: {type(error).__name__}: {error}")
        with self.lock:
            self.ours["left" if status == 0 else str(status)] += 1
            self.judge(kind, status, body, content)
            if status == 429:
                self.figures.refused += 1
            else:
                self.figures.answers[kind, status] += 1
        if status == 429:
            time.sleep(int(reply.headers["Retry-After"]))
        return status != 429

    def broken(self, life: int, what: str) -> bool:
        """Note a connection that broke; return whether the request is lost, and not only to be sent again."""
        with self.lock:
            if life != self.life or life % 2:  # the server was killed under it, or is down
                self.figures.again += 1
                return False
            self.figures.lost.append(what)
            return True

    def judge(self, kind: str, status: int, body: bytes, content: bytes) -> None:
        """Check an answer."""
        if status and status not in DESERVED[kind]:
            self.figures.lost.append(f"{kind}: {status} {content[:200]!r}")
        elif status == 200:
            self.check_pictures(json.loads(body), json.loads(content))
        elif status and not json.loads(content)["error"]["message"]:
            self.figures.lost.append(f"{kind}: {status} without a reason")

    def check_pictures(self, asked: dict[str, Any], answer: dict[str, Any]) -> None:
        """Check that an answer has all pictures, and the bytes that they had before."""
        if [each["seed"] for each in answer["data"]] != list(range(asked["seed"], asked["seed"] + asked["n"])):
            self.figures.lost.append(f"not the pictures of {asked}")
        for each in answer["data"]:
            key = (asked["prompt"], each["seed"], asked["size"])
            if self.seen.setdefault(key, each["b64_json"]) != each["b64_json"]:
                self.figures.lost.append(f"other bytes for {key}")
            assert base64.b64decode(each["b64_json"])[1:4] == b"PNG"
        self.figures.pictures += len(answer["data"])
        self.figures.distinct = len(self.seen)


def request(kind: str, draw: random.Random) -> bytes:
    """Return the body of a request of some kind."""
    body = {"prompt": draw.choice(PROMPTS), "seed": draw.randrange(SEEDS), "n": draw.randint(1, 2),
            "size": draw.choice(["64x64", "64x64", "48x64"])}  # fmt: skip
    wrong: list[dict[str, object]] = [{"size": "9999x9999"}, {"n": 10**6}, {"prompt": "x" * 4001}, {"seed": 2**64}]
    match kind:
        case "bad JSON":
            return draw.choice([b"", b"{", b"null", b"\xff\xfe", json.dumps(body).encode()[:-1]])
        case "huge size":
            return json.dumps(body | draw.choice(wrong)).encode()
        case "huge body":
            return json.dumps(body | {"user": "x" * draw.choice([70_000, 10**6])}).encode()
    return json.dumps(body).encode()


def storm(student: Path, folder: Path, *, clients: int, requests: int) -> Figures:
    """Send requests from several clients at once; kill the server after two fifths of them, and start it again."""
    waves, began = Storm(requests), time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        with running(waves, student, folder / "first") as server:
            sending = [threads.submit(waves.client, number) for number in range(clients)]
            wait_for(waves, requests * 3 // 5)
            waves.life += 1
            server.process.kill()
            server.process.join()
        with running(waves, student, folder / "second") as server:
            waves.ours.clear()
            waves.life += 1
            for left in range(requests // 2, -1, -max(1, requests // 10)):
                wait_for(waves, left)
                waves.figures.memory.append(server.metric("process_resident_memory_bytes"))
            for each in sending:
                each.result()
            finish(waves, server)
    waves.figures.seconds = time.perf_counter() - began
    return waves.figures


@contextmanager
def running(waves: Storm, student: Path, out: Path) -> Iterator[Served]:
    """Run a server at the storm's port during the block."""
    with served(f"scenes={student}", *OPTIONS, "--port", str(waves.port), out=out) as server:
        waves.port = server.port
        yield server


def wait_for(waves: Storm, left: int) -> None:
    """Return when at most so many requests are left."""
    while len(waves.left) > left:
        time.sleep(0.02)


def finish(waves: Storm, server: Served) -> None:
    """Compare what the second server has counted with what its clients have, and end it."""
    while server.metric("rmd_queue_length"):
        time.sleep(0.05)
    figures = waves.figures
    figures.memory.append(server.metric("process_resident_memory_bytes"))
    text = server.ask("GET", "/metrics")[2].decode().splitlines()
    lines = [line for line in text if line.startswith("rmd_requests_total") and "status" in line]
    counted: Counter[str] = Counter()
    for line in lines:
        if ROUTE in line or "other" in line:
            counted[line.split('status="')[1].split('"')[0]] += round(float(line.split()[-1]))
    figures.after = dict(sorted(counted.items()))
    for status in ("200", "400", "413", "429", "504"):
        more = counted[status] - waves.ours[status]
        if not 0 <= more <= (waves.ours["left"] if status in ("200", "429", "504") else 0):
            figures.lost.append(f"{counted[status]} answers {status}, of which clients got {waves.ours[status]}")
    server.process.terminate()  # SIGTERM
    server.process.join(60)
    figures.status = server.process.exitcode
    if server.errors():
        figures.lost.append(server.errors())

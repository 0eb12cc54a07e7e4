"""`rmd serve`: a server of pictures and videos with OpenAI's interface."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmd.cli.options import Teacher, Threads, Variant
from rmd.common.errors import RMDError, check_text

if TYPE_CHECKING:
    from socket import socket

    from rmd.serve.engine import Engine, Served
    from rmd.serve.limits import Limits
    from rmd.serve.store import Store

KEY = "RMD_API_KEY"
_GOOD_KEY = re.compile(r"[!-~]{8,500}")
PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
"""Packages of the extra."""
LOCAL = ("127.0.0.1", "::1", "localhost")

Students = Annotated[
    list[str],
    typer.Argument(
        metavar="STUDENT",
        help="The folder of a student or its repository on the Hub, or NAME=STUDENT to give it another name. Several "
        "must be LoRA students of one teacher, which they share.",
    ),
]
Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="The address to listen at; 0.0.0.0 is every one of this machine.")
]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0 is any free one.")]
Url = Annotated[
    str | None,
    typer.Option("--public-url", metavar="URL", help="Where clients reach the server, if that is another address."),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="WxH",
        help="A size, beside the student's own, that requests may ask for; can be given more than once.",
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, max=10_000, help="The number of frames of videos. By default, the student's own."),
]
Fps = Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Frames per second at which videos play.")]
MaxBatch = Annotated[int, typer.Option(metavar="N", min=1, max=4096, help="The largest number of samples in a batch.")]
MaxWait = Annotated[
    float, typer.Option(metavar="MS", min=0, max=60_000, help="Milliseconds that a sample waits for others.")
]
FixedBatch = Annotated[
    bool,
    typer.Option(
        "--fixed-batch",
        help="Fill every batch up to --max-batch, so that a picture has the same bytes in any company.",
    ),
]
MaxQueue = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, max=100_000, help="The number of samples that may wait before the server refuses more."
    ),
]
Timeout = Annotated[
    float, typer.Option(metavar="S", min=0.1, max=86_400, help="Seconds in which a request for pictures is answered.")
]
VideoTimeout = Annotated[
    float, typer.Option(metavar="S", min=0.1, max=604_800, help="Seconds in which a video is made.")
]
MaxN = Annotated[int, typer.Option("--max-n", metavar="N", min=1, max=1000, help="The most pictures of a request.")]
MaxPrompt = Annotated[int, typer.Option(metavar="N", min=1, max=100_000, help="The most characters of a prompt.")]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The folder for videos and for pictures that are fetched by address; servers may share it. By default, "
        "it is a temporary one that goes with the server.",
    ),
]
Keep = Annotated[
    float, typer.Option(metavar="S", min=1, max=10**9, help="Seconds for which files in the store are kept.")
]
StoreGB = Annotated[
    float,
    typer.Option("--store-gb", metavar="GB", min=0.001, max=10**6, help="The size beyond which the oldest files go."),
]
AnyDevice = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="The device to compute on: cpu, cuda, cuda:1 or mps. By default, the GPU if there is one.",
    ),
]
Half = Annotated[bool, typer.Option("--half", help="Compute in bfloat16 instead of float32.")]


def serve(
    student: Students,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    public_url: Url = None,
    size: Sizes = None,
    frames: Frames = None,
    fps: Fps = 16,
    max_batch: MaxBatch = 4,
    max_wait: MaxWait = 20.0,
    fixed_batch: FixedBatch = False,
    max_queue: MaxQueue = 64,
    timeout: Timeout = 120.0,
    video_timeout: VideoTimeout = 3600.0,
    max_n: MaxN = 10,
    max_prompt: MaxPrompt = 4000,
    store: StoreFolder = None,
    keep: Keep = 3600.0,
    store_gb: StoreGB = 10.0,
    teacher: Teacher = None,
    variant: Variant = None,
    device: AnyDevice = None,
    threads: Threads = None,
    half: Half = False,
) -> None:
    """Serve students over HTTP with OpenAI's interface for pictures and videos, until SIGTERM or Ctrl-C.

    If the environment variable RMD_API_KEY is set, requests need it as their API key.
    """
    _check_words(*student, teacher or "", str(store or ""))
    _check_packages()
    key = _key()
    from rmd.common.web import bind
    from rmd.serve.limits import Limits
    from rmd.serve.store import Store

    limits = Limits(
        max_batch=max_batch, max_wait=max_wait / 1000, max_queue=max_queue, timeout=timeout,
        video_timeout=video_timeout, max_n=max_n, max_prompt=max_prompt, keep=keep, fixed_batch=fixed_batch,
    )  # fmt: skip
    with bind(host, port) as listener, _folder(store) as folder:
        results = Store(folder, keep=keep, most=int(store_gb * 1e9))
        results.check()
        engine = _engine(
            student, device=device, threads=threads, half=half, teacher=teacher, variant=variant, sizes=size or (),
            frames=frames, fps=fps,
        )  # fmt: skip
        engine.warm_up(max_batch if fixed_batch else 1)
        _run(engine, results, limits, listener, host=host, key=key, url=public_url)
    typer.echo("stopped")


def _run(
    engine: Engine, store: Store, limits: Limits, listener: socket, *, host: str, key: str | None, url: str | None
) -> None:  # fmt: skip
    """Say where the server is, and serve until a signal ends it."""
    from rmd.common.web import address
    from rmd.serve.app import Service, make_app
    from rmd.serve.server import run

    service = Service(engine, store, limits, url=url)
    typer.echo(_greeting(address(host, listener), engine.students, key, local=host in LOCAL))
    run(make_app(service, key=key), service, listener, _say_draining)


def _check_words(*words: str) -> None:
    """Refuse texts that no file or message can hold."""
    for word in words:
        check_text("the command line", word)


def _key() -> str | None:
    """Return the API key of the environment, or None if there is none."""
    key = os.environ.get(KEY)
    if key is not None and not _GOOD_KEY.fullmatch(key):
        raise RMDError(f"{KEY} cannot be a key: use 8 to 500 ASCII characters without spaces, or unset it")
    return key


def _check_packages() -> None:
    """Raise RMDError if a package of the extra is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise RMDError(f"the server needs more packages ({', '.join(missing)}): pip install 'rmd[serve]'")


@contextmanager
def _folder(store: Path | None) -> Iterator[Path]:
    """Yield the folder of results: the given one, or a temporary one during the block."""
    if store is not None:
        yield store
        return
    with TemporaryDirectory(prefix="rmd-serve-") as name:
        yield Path(name)


def _engine(
    student: list[str], *, device: str | None, threads: int | None, half: bool, **options: Any
) -> Engine:  # fmt: skip
    """Load the students, and print what they make."""
    from rmd.cli.start import start
    from rmd.serve.engine import load_engine, named

    where = start(device, threads=threads, kinds=("cpu", "cuda", "mps"))
    import torch

    dtype = torch.bfloat16 if half else torch.float32
    engine = load_engine(named(student), device=where, dtype=dtype, **options)
    for each in engine.students.values():
        plan = each.config.plan
        split = "+".join(str(sum(step.stage == stage.index for step in plan.steps)) for stage in plan.stages)
        what = f"videos of {each.seconds:g} s" if each.moving else "pictures"
        typer.echo(f"{each.name}: {what}, {' or '.join(each.sizes)}, {split} steps, {where} in {str(dtype)[6:]}")
    return engine


def _greeting(url: str, students: Mapping[str, Served], key: str | None, *, local: bool) -> str:
    """Return what a server says when it is ready: its address, whether it needs a key, and a command to try it."""
    student = next(iter(students.values()))
    route = "videos" if student.moving else "images/generations"
    headers = ["-H", "Content-Type: application/json"]
    words = shlex.join(["curl", f"{url}/v1/{route}", *headers])
    if key is not None:
        words += f' -H "Authorization: Bearer ${KEY}"'
        lock = f"requests need the API key in {KEY}"
    else:
        lock = "no API key" if local else f"no API key: everyone who reaches this address can use it; set {KEY}"
    body = shlex.quote(json.dumps({"prompt": "a red ball on the beach", "seed": 1}))
    return f"serving at {url}/v1   ({lock}; Ctrl-C ends)\ntry: {words} -d {body}"


def _say_draining() -> None:
    typer.echo("ending: finishing what was accepted")

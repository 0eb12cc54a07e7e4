"""Replicas of a student on a Ray cluster, each with a GPU of its own: `serve run examples.serve.ray_serve:app`.

The environment names the student (RMD_STUDENT), a folder that all machines share (RMD_STORE), the number of replicas
(RMD_REPLICAS), their GPUs (RMD_GPUS: 1, or 0 for the CPU), and the API key, if there is to be one (RMD_API_KEY).
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI
from ray import serve

REPLICAS, GPUS = int(os.environ.get("RMD_REPLICAS", "1")), float(os.environ.get("RMD_GPUS", "1"))


def build() -> FastAPI:
    """Load the student where the replica runs, and return its application."""
    import torch

    from rmd.serve.app import Service, make_app
    from rmd.serve.engine import load_engine, named
    from rmd.serve.limits import Limits
    from rmd.serve.store import Store

    limits = Limits(max_batch=4, max_queue=64)
    device, dtype = ("cuda", torch.bfloat16) if GPUS else ("cpu", torch.float32)
    engine = load_engine(named([os.environ["RMD_STUDENT"]]), device=torch.device(device), dtype=dtype)
    engine.warm_up()
    store = Store(Path(os.environ["RMD_STORE"]), keep=limits.keep, most=10**10)
    return make_app(Service(engine, store, limits), key=os.environ.get("RMD_API_KEY"))


deployment = serve.deployment(
    serve.ingress(build)(),
    name="rmd",
    num_replicas=REPLICAS,
    ray_actor_options={"num_gpus": GPUS},
    max_ongoing_requests=128,  # more than the replica's own queue holds, so that it is the replica that refuses
    health_check_period_s=10,
    graceful_shutdown_timeout_s=150,  # longer than a request may take
)
app = deployment.bind()

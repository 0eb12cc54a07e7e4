"""The limits of a server: what a request may ask for, and how long anything may take."""

from __future__ import annotations

from dataclasses import dataclass

from rmd.common.errors import RMDError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    Attributes:
        max_batch: largest number of samples in a batch.
        max_wait: seconds that a sample waits for others of its shape.
        max_queue: largest number of samples that wait.
        timeout: seconds in which a request for pictures is answered.
        video_timeout: seconds in which a video is made.
        max_n: largest number of pictures in a request.
        max_prompt: largest number of characters in a prompt.
        body_timeout: seconds in which the body of a request must arrive.
        keep: seconds for which files of results are kept.
        fixed_batch: whether every batch is filled up to `max_batch`, so that all have the same shape.

    Raises:
        RMDError: the queue is smaller than a request may be.
    """

    max_batch: int = 4
    max_wait: float = 0.02
    max_queue: int = 64
    timeout: float = 120.0
    video_timeout: float = 3600.0
    max_n: int = 10
    max_prompt: int = 4000
    body_timeout: float = 30.0
    keep: float = 3600.0
    fixed_batch: bool = False

    @property
    def max_body(self) -> int:
        """Largest number of bytes in a request: a prompt in which JSON escapes every character, and the rest."""
        return 12 * self.max_prompt + 16 * 1024

    def __post_init__(self) -> None:
        if self.max_n > self.max_queue:
            raise RMDError(
                f"a request may ask for {self.max_n} pictures, but the queue has room for {self.max_queue}: raise "
                "--max-queue, or lower --max-n"
            )

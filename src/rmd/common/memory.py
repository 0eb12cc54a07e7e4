"""Recognises that memory ran out, whichever library says so."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of the machine or of a GPU was not enough.

    torch may not be loaded, so its class is compared by name.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and ("allocate memory" in message or "out of memory" in message)

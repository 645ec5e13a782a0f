"""The device that a person named, as torch has it here."""

from __future__ import annotations

import torch

from edge_sfda.errors import UsageError


def resolve(name: str) -> str:
    """Return a device that torch has; `auto` takes a GPU where there is one.

    Raises:
        UsageError: it is not one of torch's names, or not on this machine: nothing falls back in silence.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name} cannot be used here ({reason}); choose cpu or auto") from error
    return name

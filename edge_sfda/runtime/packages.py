"""Optional packages of the runtime: found, or named with what installs them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from edge_sfda.errors import ArtefactError

_EXPORT = ("onnx", "onnxscript", "onnxruntime")


def require_export_packages() -> None:
    """See that an ONNX model can be made, checked and run here.

    Raises:
        ArtefactError: a package is missing; the message has the command that installs it.
    """
    missing = [name for name in _EXPORT if find_spec(name) is None]
    if missing:
        raise ArtefactError(
            f"export needs {', '.join(missing)}, not installed here; run pip install 'edge-sfda[cpu]', "
            "or 'edge-sfda[gpu]' on a machine with a GPU (not both)"
        )


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Keep the exporter's and the quantiser's remarks to themselves in the body; errors pass."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

"""Source-free domain adaptation of semantic segmentation networks, for edge devices.

The public names below are loaded on first use (PEP 562): importing the package imports no torch, so that a command like
`edge-sfda --help` and the inference API stay quick and light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sfda.config import AdaptConfig as AdaptConfig
    from edge_sfda.errors import EdgeSfdaError as EdgeSfdaError
    from edge_sfda.manifest import Classes as Classes
    from edge_sfda.manifest import Manifest as Manifest

__version__ = "0.1.0"

_HOME = {
    "AdaptConfig": "edge_sfda.config",
    "Classes": "edge_sfda.manifest",
    "EdgeSfdaError": "edge_sfda.errors",
    "Manifest": "edge_sfda.manifest",
}

__all__ = ["AdaptConfig", "Classes", "EdgeSfdaError", "Manifest", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

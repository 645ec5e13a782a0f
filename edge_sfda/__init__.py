"""Source-free domain adaptation of semantic segmentation networks, for edge devices.

The public names below are loaded on first use (PEP 562): importing the package imports no torch, so that a command like
`edge-sfda --help` and the inference API stay quick and light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sfda.adapt.session import Session as Session
    from edge_sfda.config import AdaptConfig as AdaptConfig
    from edge_sfda.data.datasets import open_dataset as open_dataset
    from edge_sfda.data.frames import Frame as Frame
    from edge_sfda.data.sources import open_source as open_source
    from edge_sfda.errors import EdgeSfdaError as EdgeSfdaError
    from edge_sfda.manifest import Classes as Classes
    from edge_sfda.manifest import Manifest as Manifest
    from edge_sfda.nets import Predictor as Predictor
    from edge_sfda.nets import load as load
    from edge_sfda.runtime.predict import Segmenter as Segmenter

__version__ = "0.1.0"

_HOME = {
    "AdaptConfig": "edge_sfda.config",
    "Classes": "edge_sfda.manifest",
    "EdgeSfdaError": "edge_sfda.errors",
    "Frame": "edge_sfda.data.frames",
    "Manifest": "edge_sfda.manifest",
    "Predictor": "edge_sfda.nets",
    "Segmenter": "edge_sfda.runtime.predict",
    "Session": "edge_sfda.adapt.session",
    "load": "edge_sfda.nets",
    "open_dataset": "edge_sfda.data.datasets",
    "open_source": "edge_sfda.data.sources",
}

__all__ = [
    "AdaptConfig",
    "Classes",
    "EdgeSfdaError",
    "Frame",
    "Manifest",
    "Predictor",
    "Segmenter",
    "Session",
    "__version__",
    "load",
    "open_dataset",
    "open_source",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

"""The one exception tree.

    EdgeSfdaError                what a caller may catch                         exit 1
    ├── UsageError               the command line or an argument is wrong        exit 2
    │   └── ConfigError          a configuration value is unknown or out of range
    ├── DataError                what was read is not what was promised
    │   ├── FrameError           a frame is missing, unreadable, too small or of another size
    │   ├── LabelError           a label image or class map does not fit
    │   └── SourceError          a camera, video or folder does not open or ends at once
    ├── CheckpointError          truncated, tampered with, a pickle, of another network
    ├── ArtefactError            an exported model or engine is foreign, damaged, or not the checkpoint it says it is
    ├── EngineError              an engine cannot be built, refitted or run here
    ├── NetError                 a network does not offer what adaptation needs
    ├── DivergenceError          non-finite weights, logits or loss
    └── WriteError               a result cannot be written: no permission, full disk

Every message says what came, what was expected and what to do.
"""

from __future__ import annotations


class EdgeSfdaError(Exception):
    """Base of every error this package raises on purpose; `exit_code` is the command line's status."""

    exit_code = 1


class UsageError(EdgeSfdaError, ValueError):
    """The command line or an argument is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value is unknown or out of range."""


class DataError(EdgeSfdaError):
    """What was read is not what was promised."""


class FrameError(DataError):
    """A frame is missing, unreadable, too small or of another size."""


class LabelError(DataError):
    """A label image or class map does not fit."""


class SourceError(DataError):
    """A camera, video or folder does not open or ends at once."""


class CheckpointError(EdgeSfdaError):
    """A checkpoint is truncated, tampered with, a pickle, or of another network."""


class ArtefactError(EdgeSfdaError):
    """An exported model or engine is foreign, damaged, or does not agree with its checkpoint."""


class EngineError(EdgeSfdaError):
    """An engine cannot be built, refitted or run here: no package, no GPU, another version or device."""


class NetError(EdgeSfdaError):
    """A network does not offer what adaptation needs."""


class DivergenceError(EdgeSfdaError):
    """Weights, logits or loss are not finite."""


class KernelError(EdgeSfdaError):
    """A kernel does not compile, load or launch here."""


class WriteError(EdgeSfdaError):
    """A result cannot be written: no permission, full disk."""

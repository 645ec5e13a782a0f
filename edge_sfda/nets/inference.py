"""From a frame to a mask with a torch network, as adaptation and evaluation need it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda.data.frames import check_frame, to_input
from edge_sfda.errors import FrameError
from edge_sfda.manifest import Manifest, Preprocessing
from edge_sfda.nets.contract import SegmentationNet

Image = npt.NDArray[np.uint8]


class Normaliser:
    """Maps frames to a network's input; its constants are put on the device once."""

    def __init__(self, pre: Preprocessing, device: torch.device) -> None:
        self.mean = torch.tensor(pre.mean, dtype=torch.float32, device=device).mul_(255).view(1, 3, 1, 1)
        self.scale = torch.tensor(pre.std, dtype=torch.float32, device=device).mul_(255).reciprocal_().view(1, 3, 1, 1)

    def __call__(self, frames: Tensor) -> Tensor:
        """Map uint8 (or float 0..255) RGB [B, 3, H, W] to normalised float32, channels last in memory."""
        # one copy, to where and as what the network reads it; the rest in place
        x = frames.to(torch.float32, memory_format=torch.channels_last, copy=True)
        return x.sub_(self.mean).mul_(self.scale)


class Predictor:
    """Calls a network on frames as they come.

    Args:
        net: any network of the contract, on its device; it is run in eval mode.
        manifest: of that network.
    """

    def __init__(self, net: SegmentationNet, manifest: Manifest) -> None:
        self.net = net
        self.manifest = manifest
        self.device = next(net.parameters()).device
        self.normaliser = Normaliser(manifest.preprocessing, self.device)

    def __call__(self, image: Image) -> tuple[Image, npt.NDArray[np.float32]]:
        """Segment one frame.

        Args:
            image: HWC uint8, BGR, 0..255, any size of at least the network's `min_side`.

        Returns:
            mask HW uint8 of class ids and confidence HW float32 in 0..1, both at the frame's own size.

        Raises:
            FrameError: wrong type, shape or size.
        """
        check_frame(image, min_side=self.net.min_side)
        mask, confidence, _ = self.batch(image[None])
        return mask[0], confidence[0]

    def batch(self, images: Image) -> tuple[Image, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Segment frames of one size in one pass.

        Args:
            images: [B, H, W, 3] uint8, BGR, 0..255.

        Returns:
            mask uint8 [B, H, W], confidence float32 [B, H, W] and logits float32 [B, C, h, w] at logits size.

        Raises:
            FrameError: as for one frame.
        """
        check_frame(images[0], min_side=self.net.min_side)
        inputs = np.stack([to_input(image, self.manifest.preprocessing) for image in images])
        x = torch.from_numpy(inputs).to(self.device)
        training = [module for module in self.net.modules() if module.training]
        self.net.eval()
        with torch.inference_mode():
            logits = self.net(self.normaliser(x)).logits
            full = F.interpolate(logits, size=images.shape[1:3], mode="bilinear", align_corners=False)
            # softmax only for the winner: exp(max - logsumexp) writes C times less than softmax does
            best, mask = full.max(1)
            confidence = (best - torch.logsumexp(full, 1)).exp()
        for module in training:  # each its own mode: TENT trains with its BatchNorm layers alone in train mode
            module.training = True
        return mask.to(torch.uint8).cpu().numpy(), confidence.cpu().numpy(), logits.cpu().numpy()


def check_input(frames: Tensor, net: SegmentationNet) -> None:
    """Raise FrameError unless `frames` is uint8 [B, 3, H, W] with B >= 1 and sides of at least `net.min_side`."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or min(frames.shape[0], 1) < 1:
        raise FrameError(f"got {frames.dtype} {tuple(frames.shape)}, expected uint8 RGB [B, 3, H, W]")
    if min(frames.shape[-2:]) < net.min_side:
        raise FrameError(f"got frames of {tuple(frames.shape[-2:])}, smaller than the network's {net.min_side} pixels")

"""The whole way of a frame as one module, uint8 frame in, uint8 mask out: what is exported, and what it is held to."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda.manifest import Preprocessing
from edge_sfda.nets.contract import SegmentationNet

_AREA_FROM = 2.0  # shrinking by more than this, linear sampling skips pixels: as in `data.frames.to_input`


class FrameGraph(nn.Module):
    """Resize where sizes differ, normalise, network, upsampling, class and confidence of each pixel.

    Stock operators only, in the form that ONNX Runtime and TensorRT both take: uint8 is turned into float at once and
    back at the very end, from float, and channels are swapped by an index.

    Args:
        net: the network, on the CPU; not changed.
        pre: size that the network sees, mean and standard deviation.
        colour_order: `bgr` or `rgb`, of the frames.
        frame_size: H, W of the frames; None for any size.
        half: the network in float16; what comes before and after stays in float32.
    """

    # not `mean` and `std`: the exporter gives a buffer of the name `mean` to the operator of that name
    offset: Tensor  # [1, 3, 1, 1] float32, 0..255, RGB
    scale: Tensor  # [1, 3, 1, 1] float32, RGB
    order: Tensor  # [3] int64

    def __init__(
        self,
        net: SegmentationNet,
        pre: Preprocessing,
        *,
        colour_order: str = "bgr",
        frame_size: tuple[int, int] | None = None,
        half: bool = False,
    ) -> None:
        super().__init__()
        net = copy.deepcopy(net).eval().requires_grad_(False)
        self.net = net.half() if half else net
        self.half_net = half
        self.size = (pre.height, pre.width)
        self.frame_size = frame_size
        self.register_buffer("offset", torch.tensor(pre.mean).mul(255).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(pre.std).mul(255).reciprocal().view(1, 3, 1, 1))
        self.register_buffer("order", torch.tensor([2, 1, 0] if colour_order == "bgr" else [0, 1, 2]))

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment frames.

        Args:
            frame: uint8 [B, H, W, 3], 0..255, in the colour order given.

        Returns:
            mask uint8 [B, H, W]; confidence float32 [B, H, W] in 0..1; logits float32 [B, C, h, w].
        """
        x = frame.to(torch.float32).permute(0, 3, 1, 2)
        x = torch.index_select(x, 1, self.order)
        if self.frame_size != self.size:
            x = self._resize(x)
        x = (x - self.offset) * self.scale
        logits = self.net(x.half() if self.half_net else x).logits.to(torch.float32)
        full = logits
        if self.frame_size is None or tuple(logits.shape[-2:]) != self.frame_size:
            full = F.interpolate(logits, size=(frame.shape[1], frame.shape[2]), mode="bilinear", align_corners=False)
        best = full.amax(1, keepdim=True)
        confidence = (full - best).exp().sum(1).reciprocal()  # softmax of the winner alone
        return full.argmax(1).to(torch.float32).to(torch.uint8), confidence, logits

    def _resize(self, x: Tensor) -> Tensor:
        """Bring float [B, 3, H, W], 0..255, to the network's size and whole numbers, as OpenCV does on the host.

        Frames of any size are sampled linearly, whatever their size: averaging needs a window that is known in advance.
        """
        if self.frame_size is not None:
            x = _shrink(x, self.frame_size, self.size)
        x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        return (x + 0.5).floor()  # halves go up, as in OpenCV; `round` would take them to the even side


def _shrink(x: Tensor, frame: tuple[int, int], net: tuple[int, int]) -> Tensor:
    """Average whole windows of pixels where a frame is more than twice the network's size; what is left is linear.

    Equal to OpenCV's area averaging where the ratio is whole; else close to it. Rows and columns that fill no window
    are cut off on both sides alike, less than half a window each.
    """
    if max(f / n for f, n in zip(frame, net, strict=True)) <= _AREA_FROM:
        return x
    window = [max(1, f // n) for f, n in zip(frame, net, strict=True)]
    spare = [f % w for f, w in zip(frame, window, strict=True)]
    top, left = (s // 2 for s in spare)
    x = x[:, :, top : frame[0] - (spare[0] - top), left : frame[1] - (spare[1] - left)]
    return F.avg_pool2d(x, tuple(window))

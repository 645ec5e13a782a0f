"""DeepLabV2 on ResNet-101, the network of the papers on GTA5, SYNTHIA and NTHU, as a network of your own.

    PYTHONPATH=benchmarks edge-sfda adapt --net deeplabv2:deeplabv2 --model source.safetensors ...

Chen et al. 2017 (arXiv:1606.00915): ResNet-101 with the stride of its last two stages replaced by dilation (output
stride 8), and the sum of four dilated convolutions as classifier. Layers are named and shaped as in the weights that
the adaptation papers publish: `conv1`, `bn1`, `layer1` to `layer4`, then `layer6.conv2d_list.N` (`layer5` where it is
the only classifier). Plain torch; `import_deeplabv2.py` turns such weights into a checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESNET_101 = (3, 4, 23, 3)
DILATIONS = (6, 12, 18, 24)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; as in Caffe's ResNet the stride is the first layer's.

    Args:
        channels: that come in.
        width: of the 3x3 layer; four times as many go out.
        stride: of the first layer and the shortcut.
        dilation: of the 3x3 layer.
        project: whether the shortcut is a 1x1 layer.
    """

    def __init__(self, channels: int, width: int, *, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * width))
            if project
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, 4 * width, h, w] of `x` [B, channels, H, W]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class DilatedClassifier(nn.Module):
    """The sum of dilated 3x3 convolutions.

    Args:
        channels: that come in.
        classes: C.
        branches: how many of the four are summed. All four layers are held, so that published weights fit: some were
            trained by code that returned the sum of the first two.
    """

    def __init__(self, channels: int, classes: int, *, branches: int) -> None:
        super().__init__()
        self.branches = branches
        self.conv2d_list = nn.ModuleList(nn.Conv2d(channels, classes, 3, padding=d, dilation=d) for d in DILATIONS)
        for layer in self.conv2d_list:
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C, h, w] of features [B, channels, h, w]."""
        return torch.stack([layer(x) for layer in self.conv2d_list[: self.branches]]).sum(0)


class DeepLabV2(nn.Module):
    """See the head of this file; `layer4` is its encoder's last layer.

    Args:
        classes: C.
        width: of the first stage; 64 in ResNet-101.
        blocks: of the four stages.
        branches: of the classifier, 1 to 4; see `DilatedClassifier`.
    """

    def __init__(self, classes: int, *, width: int, blocks: tuple[int, ...], branches: int) -> None:
        super().__init__()
        if not 1 <= branches <= len(DILATIONS) or len(blocks) != 4 or min(classes, width, *blocks) < 1:
            raise ValueError(f"branches {branches} must lie in 1..4, and classes, width and four blocks be positive")
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        # rounds up, as Caffe does: an input of 512x1024 comes to a grid of 65x129, corner to corner
        self.pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        channels = width
        for stage, (count, stride, dilation) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            inner = width * 2**stage
            layers = [Bottleneck(channels, inner, stride=stride, dilation=dilation, project=True)]
            channels = 4 * inner
            layers += [
                Bottleneck(channels, inner, stride=1, dilation=dilation, project=False) for _ in range(count - 1)
            ]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.layer6 = DilatedClassifier(channels, classes, branches=branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C, h, w] of normalised RGB `x` [B, 3, H, W]; h, w an eighth of H, W, rounded up."""
        y = self.pool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            y = getattr(self, f"layer{stage}")(y)
        logits: Tensor = self.layer6(y)
        # a cell's middle lies on pixel 8i then; the mean of two neighbours' on 8i + 4, as the grid of an eighth has it
        over = [int(cells > -(-pixels // 8)) for cells, pixels in zip(logits.shape[-2:], x.shape[-2:], strict=True)]
        return F.avg_pool2d(logits, (1 + over[0], 1 + over[1]), stride=1)


def deeplabv2(classes: int = 19, width: int = 64, blocks: tuple[int, ...] = RESNET_101, branches: int = 4) -> DeepLabV2:
    """Return the network with fresh weights; the factory that checkpoints name."""
    return DeepLabV2(classes, width=width, blocks=tuple(blocks), branches=branches)


def deeplabv2_16() -> DeepLabV2:
    """Return the network for SYNTHIA's 16 classes: `train-source --arch` passes no arguments."""
    return deeplabv2(16)


def deeplabv2_13() -> DeepLabV2:
    """Return the network for the 13 classes of NTHU Cross-City."""
    return deeplabv2(13)

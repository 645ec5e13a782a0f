"""Networks: the two built-in ones, and what one of your own must offer.

encoder + fpn -> `lite0`, `nano`        bring_your_own -> any nn.Module        build -> from a checkpoint
"""

from edge_sfda.nets.build import build, load
from edge_sfda.nets.contract import Prediction, SegmentationNet
from edge_sfda.nets.inference import Predictor

__all__ = ["Prediction", "Predictor", "SegmentationNet", "build", "load"]

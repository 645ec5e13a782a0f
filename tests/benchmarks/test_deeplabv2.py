from __future__ import annotations

import pytest
import torch
from deeplabv2 import DILATIONS, DilatedClassifier, deeplabv2, deeplabv2_13, deeplabv2_16

TINY = {"width": 4, "blocks": (1, 1, 1, 1)}


def test_resnet_101_has_the_published_layers_and_size() -> None:
    with torch.device("meta"):
        net = deeplabv2()
    state = net.state_dict()
    convolutions = [name for name, value in state.items() if value.ndim == 4 and not name.startswith("layer6")]
    assert len(convolutions) == 1 + 3 * (3 + 4 + 23 + 3) + 4  # 100 layers and the four shortcuts
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer3.22.conv2.weight"].shape == (256, 256, 3, 3)
    assert state["layer4.0.downsample.0.weight"].shape == (2048, 1024, 1, 1)
    assert state["layer4.2.bn3.running_var"].shape == (2048,)
    assert [state[f"layer6.conv2d_list.{i}.weight"].shape for i in range(4)] == [(19, 2048, 3, 3)] * 4
    assert sum(p.numel() for n, p in net.named_parameters() if not n.startswith("layer6")) == 42_500_160


@pytest.mark.parametrize(("size", "logits"), [((64, 64), (8, 8)), ((65, 97), (9, 13)), ((127, 256), (16, 32))])
def test_logits_have_an_eighth_of_the_size_rounded_up(size: tuple[int, int], logits: tuple[int, int]) -> None:
    assert deeplabv2(5, **TINY)(torch.zeros(1, 3, *size)).shape == (1, 5, *logits)


def test_cell_of_the_logits_answers_to_the_middle_of_its_pixels() -> None:
    # the grid inside has its corners on the frame's: a ramp over it must come out as a ramp over eighths
    net = deeplabv2(1, **TINY)
    net.layer6.forward = lambda y: 8 * torch.arange(9.0).expand(1, 1, 9, 9)  # type: ignore[method-assign]
    assert net(torch.zeros(1, 3, 64, 64))[0, 0, 3].tolist() == [8 * i + 4 for i in range(8)]


def test_last_stages_see_further_by_dilation() -> None:
    net = deeplabv2(5, **TINY)
    assert [net.get_submodule(f"layer{s}.0.conv2").dilation for s in (1, 2, 3, 4)] == [(1, 1), (1, 1), (2, 2), (4, 4)]
    assert [net.get_submodule(f"layer{s}.0.conv1").stride for s in (1, 2, 3, 4)] == [(1, 1), (2, 2), (1, 1), (1, 1)]


def test_classifier_sums_the_branches_asked_for() -> None:
    torch.manual_seed(0)
    classifier = DilatedClassifier(3, 2, branches=2)
    x = torch.randn(1, 3, 9, 9)
    first = [torch.nn.functional.conv2d(x, m.weight, m.bias, padding=d, dilation=d)  # type: ignore[arg-type]
             for m, d in zip(classifier.conv2d_list, DILATIONS, strict=True)]  # fmt: skip
    torch.testing.assert_close(classifier(x), first[0] + first[1])
    classifier.branches = 4
    torch.testing.assert_close(classifier(x), sum(first[1:], first[0]))


def test_factories_without_arguments_serve_the_smaller_benchmarks() -> None:
    with torch.device("meta"):
        assert deeplabv2_16().layer6.conv2d_list[0].out_channels == 16
        assert deeplabv2_13().layer6.conv2d_list[0].out_channels == 13


@pytest.mark.parametrize("options", [{"branches": 5}, {"classes": 0}, {"blocks": (1, 1, 1)}])
def test_impossible_shapes_raise(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        deeplabv2(**({"classes": 2, **TINY} | options))

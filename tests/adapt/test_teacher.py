from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from edge_sfda.adapt.teacher import Teacher
from edge_sfda.config import TeacherConfig
from edge_sfda.nets import SegmentationNet
from edge_sfda.nets.normalisation import batch_norms, estimate

Make = Callable[..., SegmentationNet]


def _fill(net: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
        net.get_buffer("offset").fill_(value)


def _values(net: nn.Module) -> set[float]:
    tensors = [*net.parameters(), net.get_buffer("offset")]
    return {round(float(v), 6) for t in tensors for v in t.detach().unique()}


def test_teacher_starts_as_the_student(make_toy: Make) -> None:
    student = make_toy()
    teacher = Teacher(student, TeacherConfig())
    theirs = student.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in teacher.net.state_dict().items())


def test_first_update_copies_the_student_bit_for_bit(make_toy: Make) -> None:
    student = make_toy(0)
    teacher = Teacher(student, TeacherConfig())
    student.load_state_dict(make_toy(1).state_dict())
    teacher.update()
    assert all(torch.equal(a, b) for a, b in zip(teacher.net.parameters(), student.parameters(), strict=True))


def test_later_updates_are_the_running_mean_until_the_maximum(make_toy: Make) -> None:
    student = make_toy()
    teacher = Teacher(student, TeacherConfig(average_max=0.6))
    #            a = 0, 1/2, then 0.6 where 2/3 and 3/4 would be more
    expected = (1.0, 1.5, 0.6 * 1.5 + 0.4 * 3, 0.6 * 2.1 + 0.4 * 4)
    for value, mean in zip((1.0, 2.0, 3.0, 4.0), expected, strict=True):
        _fill(student, value)
        teacher.update()
        assert _values(teacher.net) == {round(mean, 6)}


def test_average_of_zero_follows_the_student(make_toy: Make) -> None:
    student = make_toy()
    teacher = Teacher(student, TeacherConfig(average_max=0.0))
    for value in (1.0, 5.0, -2.0):
        _fill(student, value)
        teacher.update()
        assert _values(teacher.net) == {value}


def test_normalisation_statistics_are_the_student_s_own(make_toy: Make) -> None:
    student = make_toy()
    teacher = Teacher(student, TeacherConfig())
    estimate(student, [torch.randn(4, 3, 64, 64) + 2], blend=1.0)
    (mine,), (theirs,) = batch_norms(teacher.net), batch_norms(student)
    assert mine.running_mean is theirs.running_mean
    assert mine.running_var is theirs.running_var
    assert mine.running_mean is not None
    assert bool((mine.running_mean != 0).any())


def test_update_leaves_the_statistics_alone(make_toy: Make) -> None:
    student = make_toy()
    teacher = Teacher(student, TeacherConfig())
    (layer,) = batch_norms(student)
    assert layer.running_mean is not None
    layer.running_mean.fill_(3.0)
    for _ in range(3):
        teacher.update()
    assert layer.running_mean.tolist() == [3.0] * 6


def test_teacher_needs_no_gradient_and_stays_in_eval_mode(make_toy: Make) -> None:
    student = make_toy().train()
    teacher = Teacher(student, TeacherConfig())
    assert not any(p.requires_grad for p in teacher.net.parameters())
    assert not any(m.training for m in teacher.net.modules())
    assert all(p.requires_grad for p in student.parameters())
    assert student.training


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_flip_teacher_is_the_mean_of_both_views(size: tuple[int, int], make_toy: Make) -> None:
    net = make_toy()
    x = torch.randn(2, 3, *size)
    view = Teacher(net, TeacherConfig(flip=True)).predict(x)
    with torch.no_grad():
        straight, mirrored = net(x), net(x.flip(-1))
        probs = (straight.logits.softmax(1) + mirrored.logits.softmax(1).flip(-1)) / 2
    assert not torch.allclose(straight.logits, mirrored.logits.flip(-1))
    torch.testing.assert_close(view.probs, probs)
    torch.testing.assert_close(view.features[0], straight.features[0])


def test_without_flip_the_view_is_the_network_s(make_toy: Make) -> None:
    net = make_toy()
    x = torch.randn(2, 3, 64, 64)
    view = Teacher(net, TeacherConfig(flip=False)).predict(x)
    with torch.no_grad():
        torch.testing.assert_close(view.probs, net(x).logits.softmax(1))


@pytest.mark.parametrize("flip", [False, True])
def test_label_and_confidence_are_place_and_value_of_the_maximum(flip: bool, make_toy: Make) -> None:
    view = Teacher(make_toy(), TeacherConfig(flip=flip)).predict(torch.randn(3, 3, 64, 64))
    assert view.label.dtype == torch.int64
    assert view.label.shape == view.confidence.shape == (3, 16, 16)
    assert [tuple(f.shape) for f in view.features] == [(3, 6, 16, 16)]
    assert torch.equal(view.label, view.probs.argmax(1))
    assert torch.equal(view.confidence, view.probs.amax(1))
    torch.testing.assert_close(view.probs.sum(1), torch.ones(3, 16, 16))
    assert not view.probs.requires_grad

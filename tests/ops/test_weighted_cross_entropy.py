"""The loss against a plain reference in float64, by rows of torch and by the kernels on the host emulation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from edge_sfda.errors import LabelError, UsageError
from edge_sfda.ops import weighted_cross_entropy_fused as fused
from edge_sfda.ops import weighted_cross_entropy_rows as rows
from edge_sfda.ops.launch import SCALARS
from edge_sfda.ops.launchers import HOST
from edge_sfda.ops.weighted_cross_entropy import weighted_cross_entropy
from edge_sfda.ops.weighted_cross_entropy_reference import weighted_cross_entropy_reference

needs_compiler = pytest.mark.skipif(HOST.missing() is not None, reason=f"the host emulation: {HOST.missing()}")
# "torch" is what a CPU user gets; "rows" is the same without the short cut for labels at the logits' size.
BACKENDS = ["torch", "rows", pytest.param("host", marks=needs_compiler)]
KERNELS = ["rows", pytest.param("host", marks=needs_compiler)]


@dataclass(frozen=True)
class Case:
    logits: Tensor
    label: Tensor
    weight: Tensor
    class_weight: Tensor | None = None


def make(
    logits: tuple[int, int, int, int],
    label: tuple[int, int],
    weight: tuple[int, int] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    label_dtype: torch.dtype = torch.int64,
    class_weight: bool = False,
    scale: float = 3.0,
    ignored: float = 0.1,
) -> Case:
    """Return a random case, the same every time, for logits [B, C, h, w] and sizes of label and weight."""
    rng = torch.Generator().manual_seed(sum(7**i * n for i, n in enumerate((*logits, *label))))
    frames, classes = logits[:2]
    ids = torch.randint(classes, (frames, *label), generator=rng)
    ids[torch.rand(ids.shape, generator=rng) < ignored] = 255
    return Case(
        (torch.randn(logits, generator=rng) * scale).to(dtype),
        ids.to(label_dtype),
        torch.rand((frames, *(weight or label)), generator=rng),
        torch.rand(classes, generator=rng) + 0.5 if class_weight else None,
    )


def loss_of(case: Case, logits: Tensor, backend: str) -> Tensor:
    if backend != "rows":
        return weighted_cross_entropy(logits, case.label, case.weight, class_weight=case.class_weight, backend=backend)
    op = torch.ops.edge_sfda.weighted_cross_entropy
    return op(logits, case.label, case.weight, case.class_weight, 255, logits.requires_grad, "torch")[0]


def run(case: Case, backend: str, *, upstream: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return loss, and the gradient of `upstream` times it."""
    logits = case.logits.detach().requires_grad_()
    loss = loss_of(case, logits, backend)
    (gradient,) = torch.autograd.grad(loss * upstream, logits)
    return loss.detach(), gradient


def reference(case: Case, dtype: torch.dtype, *, upstream: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of plain torch in another precision."""
    logits = case.logits.detach().to(dtype).requires_grad_()
    class_weight = None if case.class_weight is None else case.class_weight.to(dtype)
    loss = weighted_cross_entropy_reference(logits, case.label, case.weight.to(dtype), class_weight=class_weight)
    (gradient,) = torch.autograd.grad(loss * upstream, logits)
    return loss.detach(), gradient


def assert_as_good_as_torch(case: Case, backend: str) -> None:
    """Against float64, the error is at most twice that of plain torch in the logits' precision."""
    exact, plain, ours = reference(case, torch.float64), reference(case, case.logits.dtype), run(case, backend)
    epsilon = torch.finfo(torch.float32).eps
    for truth, theirs, mine in zip(exact, plain, ours, strict=True):
        size = truth.abs().max().item()
        allowed = 2 * (theirs.double() - truth).abs().max().item() + 4 * epsilon * size + 1e-12
        if mine.dtype != torch.float32:  # the gradient is stored in the logits' type, so correct rounding is allowed
            allowed += torch.finfo(mine.dtype).eps * size
        error = (mine.double() - truth).abs().max().item()
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g} at size {size:.3g}"
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == case.logits.dtype
    assert ours[1].stride() == case.logits.stride() or not case.logits.is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_of_hand_worked_pixels_is_literal(backend: str) -> None:
    # softmax of (0, ln 3) is (1/4, 3/4); the third pixel is ignored
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 3).clone()
    case = Case(logits, torch.tensor([[[0, 1, 255]]]), torch.tensor([[[0.5, 1.0, 9.0]]]), torch.tensor([2.0, 4.0]))
    loss, gradient = run(case, backend, upstream=1.0)
    # (0.5 * 2 * ln 4 + 1 * 4 * ln 4/3) / 2
    assert loss.item() == pytest.approx(1.268511, abs=1e-6)
    expected = torch.tensor([[-0.375, 0.5, 0.0], [0.375, -0.5, 0.0]])
    assert torch.allclose(gradient[0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_of_upsampled_hand_worked_pixels_is_literal(backend: str) -> None:
    # two nodes, four pixels: shares of the right node 0, 1/4, 3/4, 1
    logits = torch.tensor([[0.0, 0.0], [0.0, 4.0]]).view(1, 2, 1, 2)
    case = Case(logits, torch.zeros(1, 1, 4, dtype=torch.uint8), torch.ones(1, 1, 1))
    loss, gradient = run(case, backend, upstream=1.0)
    probs = [1 / (1 + math.exp(-x)) for x in (0.0, 1.0, 3.0, 4.0)]  # of class 1
    assert loss.item() == pytest.approx(sum(-math.log(1 - p) for p in probs) / 4, abs=1e-6)
    right = (probs[1] / 4 + probs[2] * 3 / 4 + probs[3]) / 4
    assert gradient[0, 1, 0, 1].item() == pytest.approx(right, abs=1e-6)
    assert gradient[0, 0, 0, 1].item() == pytest.approx(-right, abs=1e-6)


SIZES = {
    "one pixel": make((1, 2, 1, 1), (1, 1)),
    "one node": make((1, 2, 1, 1), (7, 5), (1, 1)),
    "same size": make((2, 5, 9, 13), (9, 13), class_weight=True),
    "same size, small weight": make((2, 5, 9, 13), (9, 13), (5, 3)),
    "stride 1.1": make((1, 3, 17, 40), (19, 41), (3, 3)),
    "columns only": make((1, 3, 17, 20), (17, 43)),
    "rows only": make((1, 3, 9, 33), (21, 33)),
    "stride 2": make((2, 4, 9, 18), (18, 36), (9, 18)),
    "stride 3": make((1, 7, 5, 6), (15, 18), class_weight=True),
    "stride 4": make((4, 5, 9, 13), (36, 52)),
    "stride 8": make((1, 19, 6, 9), (48, 72), (6, 9), class_weight=True),
    "stride 16": make((1, 3, 3, 4), (48, 64)),
    "stride over a run": make((1, 3, 1, 2), (100, 80), (3, 3)),
    "primes": make((1, 11, 7, 5), (53, 37), (13, 11), label_dtype=torch.uint8),
    "many classes": make((1, 256, 3, 4), (12, 16)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES.keys())
def test_loss_of_any_size_is_as_good_as_torch(case: Case, backend: str) -> None:
    assert_as_good_as_torch(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("size", [(9, 13), (36, 51)], ids=["same size", "upsampled"])
def test_loss_of_half_logits_is_as_good_as_torch(size: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    assert_as_good_as_torch(make((2, 5, 9, 13), size, dtype=dtype, label_dtype=torch.uint8), backend)


def layouts(case: Case) -> dict[str, Case]:
    """Return the same numbers in memory layouts that are not the default."""
    sparse = torch.empty(*case.logits.shape[:-1], 2 * case.logits.shape[-1])[..., ::2].copy_(case.logits)
    turned = case.logits.transpose(2, 3).contiguous().transpose(2, 3)
    label = case.label.transpose(1, 2).contiguous().transpose(1, 2)
    return {
        "channels last": Case(case.logits.contiguous(memory_format=torch.channels_last), case.label, case.weight),
        "every other column": Case(sparse, case.label, case.weight),
        "transposed": Case(turned, label, case.weight.flip(0).flip(0)),
        "one weight for all": Case(case.logits, case.label, case.weight[:, :1, :1].expand(*case.label.shape)),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(9, 13), (36, 51)], ids=["same size", "upsampled"])
@pytest.mark.parametrize("layout", ["channels last", "every other column", "transposed", "one weight for all"])
def test_loss_of_any_layout_is_as_good_as_torch(layout: str, size: tuple[int, int], backend: str) -> None:
    assert_as_good_as_torch(layouts(make((2, 5, 9, 13), size))[layout], backend)


@pytest.mark.parametrize("backend", KERNELS)
@hypothesis.settings(deadline=None, max_examples=15, derandomize=True)
@hypothesis.given(data=st.data())
def test_loss_of_drawn_sizes_is_as_good_as_torch(data: st.DataObject, backend: str) -> None:
    frames, classes = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([2, 3, 8, 9, 17]))
    h, w = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    size = data.draw(st.integers(h, min(16 * h, 60))), data.draw(st.integers(w, min(16 * w, 60)))
    weight = data.draw(st.integers(1, size[0])), data.draw(st.integers(1, size[1]))
    assert fused.partial_elements((frames, classes, h, w), (frames, *size)) >= frames * classes * h * w
    assert_as_good_as_torch(make((frames, classes, h, w), size, weight), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(6, 8), (24, 31)], ids=["same size", "upsampled"])
def test_loss_of_extreme_logits_is_as_good_as_torch(size: tuple[int, int], backend: str) -> None:
    case = make((1, 5, 6, 8), size)
    extreme = Case(case.logits.sign() * 1e4, case.label, case.weight)
    assert_as_good_as_torch(extreme, backend)
    assert run(extreme, backend)[0].isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(6, 8), (24, 31)], ids=["same size", "upsampled"])
def test_loss_of_ignored_pixels_is_zero(size: tuple[int, int], backend: str) -> None:
    loss, gradient = run(make((2, 3, 6, 8), size, ignored=1.0), backend)
    assert loss.item() == 0
    assert gradient.eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("logits", "size"), [((0, 3, 4, 4), (8, 8)), ((2, 3, 0, 4), (0, 8)), ((0, 3, 4, 4), (4, 4))])
def test_loss_of_nothing_is_zero(logits: tuple[int, int, int, int], size: tuple[int, int], backend: str) -> None:
    case = Case(torch.zeros(logits), torch.zeros(logits[0], *size, dtype=torch.int64), torch.zeros(logits[0], *size))
    loss, gradient = run(case, backend)
    assert loss.item() == 0
    assert gradient.shape == logits


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("size", [(6, 8), (24, 32)], ids=["same size", "upsampled"])
def test_loss_of_a_logit_that_is_no_number_is_nan(size: tuple[int, int], value: float, backend: str) -> None:
    case = make((2, 3, 6, 8), size, ignored=0.0)
    case.logits[1, 2, 3, 4] = value
    loss, gradient = run(case, backend)
    assert loss.isnan()
    assert gradient[1, :, 3, 4].isnan().all()
    assert gradient[0].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_of_ignored_nan_is_finite(backend: str) -> None:
    case = make((1, 3, 6, 8), (6, 8), ignored=0.0)
    case.logits[0, 1, 2, 3] = math.nan
    case.label[0, 2, 3] = 255
    assert loss_of(case, case.logits, backend).isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_of_a_ruled_out_class_is_as_good_as_torch(backend: str) -> None:
    case = make((1, 3, 6, 8), (6, 8))
    case.label[case.label == 2] = 0
    case.logits[:, 2] = -math.inf
    assert_as_good_as_torch(case, backend)


@pytest.mark.parametrize("backend", KERNELS)
def test_gradient_is_the_same_bits_each_time(backend: str) -> None:
    case = make((2, 9, 7, 11), (29, 50))
    first, second = run(case, backend), run(case, backend)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("backend", KERNELS)
def test_loss_without_gradient_keeps_nothing(backend: str) -> None:
    case = make((1, 3, 6, 8), (24, 32))
    native = "torch" if backend == "rows" else backend
    op = torch.ops.edge_sfda.weighted_cross_entropy
    loss, kept = op(case.logits, case.label, case.weight, None, 255, False, native)
    assert kept.numel() == 0
    assert loss.item() == pytest.approx(reference(case, torch.float64)[0].item(), rel=1e-6)


def test_differentiating_twice_raises() -> None:
    case = make((1, 3, 4, 4), (8, 8))
    logits = case.logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(case, logits, "torch").square(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


class Largest(TorchDispatchMode):
    """Notes the most elements that any operator's result has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_rows_never_hold_the_logits_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_BYTES", 64 * 1024)
    case = make((1, 19, 16, 32), (128, 256))
    inputs = rows.LossInputs(case.logits, case.label, case.weight, None, 255)
    kept = torch.empty(1 + fused.partial_elements(case.logits.shape, case.label.shape))
    with Largest() as largest:
        rows.forward(inputs, kept)
        rows.backward(inputs, kept, torch.ones(()), torch.empty_like(case.logits))
    full = 19 * 128 * 256
    assert 19 * 16 * 32 < largest.elements < full / 8


SAMPLES = {
    "upsampled": make((1, 3, 3, 4), (6, 7), (2, 2), class_weight=True),
    "same size": make((1, 3, 3, 4), (3, 4)),
}


@pytest.mark.parametrize("backend", ["torch", pytest.param("host", marks=needs_compiler)])
@pytest.mark.parametrize("case", SAMPLES.values(), ids=SAMPLES.keys())
def test_operator_passes_opcheck(case: Case, backend: str) -> None:
    op = torch.ops.edge_sfda.weighted_cross_entropy.default
    for logits in (case.logits, case.logits.clone().requires_grad_()):
        args = (logits, case.label, case.weight, case.class_weight, 255, logits.requires_grad, backend)
        torch.library.opcheck(op, args)
    kept = torch.ops.edge_sfda.weighted_cross_entropy(
        case.logits, case.label, case.weight, case.class_weight, 255, True, backend
    )[1]
    torch.library.opcheck(
        torch.ops.edge_sfda.weighted_cross_entropy_backward.default,
        (torch.ones(()), kept, case.logits, case.label, case.weight, case.class_weight, 255, backend),
    )


@pytest.mark.parametrize("backend", ["torch", "rows"])
@pytest.mark.parametrize("case", SAMPLES.values(), ids=SAMPLES.keys())
def test_operator_passes_gradcheck(case: Case, backend: str) -> None:
    logits = case.logits.double().requires_grad_()
    weights = case.weight.double(), None if case.class_weight is None else case.class_weight.double()
    double = Case(logits, case.label, *weights)
    assert torch.autograd.gradcheck(lambda x: loss_of(double, x, backend), logits)


@pytest.mark.parametrize("case", SAMPLES.values(), ids=SAMPLES.keys())
def test_operator_compiles_without_a_break(case: Case) -> None:
    compiled = torch.compile(weighted_cross_entropy, fullgraph=True, backend="aot_eager")
    logits = case.logits.clone().requires_grad_()
    loss = compiled(logits, case.label, case.weight, class_weight=case.class_weight, backend="torch")
    loss.backward()
    expected = run(case, "torch", upstream=1.0)
    assert torch.equal(loss.detach(), expected[0])
    assert torch.equal(logits.grad, expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SAMPLES.values(), ids=SAMPLES.keys())
def test_autocast_changes_nothing(case: Case, backend: str) -> None:
    expected = run(case, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = run(case, backend)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])


def test_variable_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make((1, 3, 3, 4), (6, 7))
    monkeypatch.setenv("EDGE_SFDA_OPS", "cuda")
    with pytest.raises(UsageError, match="backend 'cuda' is for tensors on cuda, these are on cpu"):
        weighted_cross_entropy(case.logits, case.label, case.weight)
    assert weighted_cross_entropy(case.logits, case.label, case.weight, backend="torch").isfinite()


def test_kernels_take_no_float64() -> None:
    case = make((1, 3, 3, 4), (6, 7), dtype=torch.float64)
    with pytest.raises(UsageError, match="takes no torch.float64 logits"):
        weighted_cross_entropy(case.logits, case.label, case.weight, backend="host")
    assert weighted_cross_entropy(case.logits, case.label, case.weight).dtype == torch.float64


X, Y, W = torch.zeros(2, 3, 4, 5), torch.zeros(2, 8, 10, dtype=torch.int64), torch.ones(2, 8, 10)
BAD = {
    "3-d logits": ((X[0], Y, W), {}, "expected logits \\[B, C, h, w\\]"),
    "frames": ((X, Y[:1], W), {}, "one number of frames"),
    "one class": ((X[:, :1], Y, W), {}, "at least 2 classes"),
    "small label": ((X, Y[:, :3], W), {}, "logits no larger than the label"),
    "large weight": ((X, Y, torch.ones(2, 9, 10)), {}, "weight no larger than the label"),
    "empty weight": ((X, Y, W[:, :0]), {}, "not empty"),
    "class weight": ((X, Y, W), {"class_weight": torch.ones(4)}, "expected class_weight \\[C\\]"),
    "integer logits": ((X.int(), Y, W), {}, "float32, float16, bfloat16 or float64 logits"),
    "int32 label": ((X, Y.int(), W), {}, "uint8 or int64 labels"),
    "integer weight": ((X, Y, W.long()), {}, "floating-point weights"),
    "other device": ((X, Y, W.to("meta")), {}, "one device"),
    "learning weight": ((X, Y, W.clone().requires_grad_()), {}, "detach them"),
    "unknown backend": ((X, Y, W), {"backend": "gpu"}, "expected one of auto, torch, cuda, host"),
}


@pytest.mark.parametrize(("args", "keywords", "message"), BAD.values(), ids=BAD.keys())
def test_arguments_that_do_not_fit_raise(args: tuple[Tensor, ...], keywords: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=message):
        weighted_cross_entropy(*args, **keywords)


def test_error_lists_all_shapes() -> None:
    with pytest.raises(UsageError) as caught:
        weighted_cross_entropy(X, Y[:, :3], W, class_weight=torch.ones(3))
    assert str(caught.value).endswith(
        "got logits float32 [2, 3, 4, 5] on cpu, label int64 [2, 3, 10] on cpu, weight float32 [2, 8, 10] on cpu, "
        "class_weight float32 [3] on cpu"
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(4, 5), (8, 10)], ids=["same size", "upsampled"])
@pytest.mark.parametrize(("bad", "message"), [(3, "from 0 to 3, expected 0..2"), (-1, "from -1 to 0, expected 0..2")])
def test_label_that_is_no_class_raises(bad: int, message: str, size: tuple[int, int], backend: str) -> None:
    label = torch.zeros(2, *size, dtype=torch.int64)
    label[1, 2, 3] = bad
    with pytest.raises(LabelError, match=message):
        loss_of(Case(X, label, W[:, : size[0], : size[1]]), X, backend)


@needs_compiler
@pytest.mark.parametrize("size", [(4, 5), (8, 10)], ids=["same size", "upsampled"])
@pytest.mark.parametrize("bad", [3, -1, 2**40], ids=str)
def test_kernel_makes_nan_of_a_label_that_is_no_class(bad: int, size: tuple[int, int]) -> None:
    # past the check that a GPU cannot make without waiting
    label = torch.zeros(2, *size, dtype=torch.int64)
    label[1, 2, 3] = bad
    class_weight = torch.ones(3)
    inputs = rows.LossInputs(X, label, torch.ones(label.shape), class_weight, 255)
    kept = torch.empty(1 + (2 * label.numel() if inputs.same_size else fused.partial_elements(X.shape, label.shape)))
    assert fused.forward(HOST, inputs, kept).isnan()
    assert fused.backward(HOST, inputs, kept, torch.ones(()), torch.empty_like(X)).isnan().all()


def test_kernels_exist_for_every_type() -> None:
    assert {d: fused.kernel("sweep", d).defines for d in SCALARS} == {
        torch.float32: (("SCALAR", "float"),),
        torch.float16: (("SCALAR", "Half"),),
        torch.bfloat16: (("SCALAR", "BFloat16"),),
    }


def test_tiling_at_stride_8_is_one_run_per_interval() -> None:
    tiling = fused.Tiling.of((1, 19, 64, 128), (1, 512, 1024))
    assert tiling == fused.Tiling(slots=4, run=8, runs=1, intervals=4, nodes=6, tiles_y=17, tiles_x=32)
    # the partial gradients: 4 bytes each, 1.3 MB
    assert fused.partial_elements((1, 19, 64, 128), (1, 512, 1024)) == 310080

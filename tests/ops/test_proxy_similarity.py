"""The operator against float64 and literals, its kernels on the host emulation, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from edge_sfda.errors import UsageError
from edge_sfda.ops import proxy_similarity_fused as fused
from edge_sfda.ops.launchers import HOST
from edge_sfda.ops.proxy_similarity import metric_loss, proxy_similarity, reliability

KAPPA, SCALE = 10.0, 18.0
IGNORE = -1

needs_compiler = pytest.mark.skipif(HOST.missing() is not None, reason=str(HOST.missing()))
HOST_PARAM = pytest.param("host", marks=needs_compiler)
BACKENDS = ["torch", HOST_PARAM]


@dataclass(frozen=True)
class Case:
    """Inputs of one call."""

    embedding: Tensor
    proxies: Tensor
    label: Tensor
    weight: Tensor | None


@dataclass(frozen=True)
class Outcome:
    """Everything one call gives, forward and backward."""

    loss: Tensor
    reliability: Tensor
    nearest: Tensor
    sums: Tensor
    counts: Tensor
    cosine: Tensor
    grad_embedding: Tensor
    grad_proxies: Tensor


FLOATS = ("loss", "reliability", "sums", "cosine", "grad_embedding", "grad_proxies")


def make_case(
    batch: int, classes: int, channels: int, h: int, w: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Case:
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (batch, h, w), generator=rng)
    label[torch.rand(label.shape, generator=rng) < 0.2] = IGNORE
    weight = torch.rand(label.shape, generator=rng)
    weight[torch.rand(label.shape, generator=rng) < 0.2] = 0
    proxies = torch.randn(classes, channels, generator=rng)
    embedding = 3 * torch.randn(batch, channels, h, w, generator=rng)
    embedding += torch.einsum("bhwd->bdhw", proxies[label.clamp(min=0)])  # labels mean something
    return Case(embedding.to(dtype), proxies, label, weight)


def run(case: Case, backend: str | None, *, upstream: float = 1.0) -> Outcome:
    embedding, proxies = case.embedding.detach().requires_grad_(), case.proxies.detach().requires_grad_()
    result = proxy_similarity(
        embedding,
        proxies,
        case.label,
        kappa=KAPPA,
        scale=SCALE,
        weight=case.weight,
        ignore_id=IGNORE,
        with_cosine=True,
        backend=backend,
    )
    assert result.loss is not None
    assert result.reliability is not None
    assert result.nearest is not None
    assert result.sums is not None
    assert result.counts is not None
    assert result.cosine is not None
    (upstream * result.loss).backward()  # type: ignore[no-untyped-call]
    assert embedding.grad is not None
    assert proxies.grad is not None
    return Outcome(
        result.loss.detach(),
        result.reliability,
        result.nearest,
        result.sums,
        result.counts,
        result.cosine,
        embedding.grad,
        proxies.grad,
    )


def plain(case: Case, dtype: torch.dtype) -> Outcome:
    """The formulas as one would write them in torch, with autograd, in a precision."""
    embedding = case.embedding.detach().to(dtype).requires_grad_()
    proxies = case.proxies.detach().to(dtype).requires_grad_()
    classes = len(proxies)
    cosine = torch.einsum("bdhw,cd->bchw", F.normalize(embedding, dim=1), F.normalize(proxies, dim=1))
    valid = case.label != IGNORE
    member = F.one_hot(case.label.clamp(min=0), classes) * valid[..., None]
    r = ((KAPPA * cosine).softmax(1) * member.movedim(-1, 1)).sum(1)
    weight = torch.ones_like(r) if case.weight is None else case.weight.to(dtype)
    mass = (member * weight[..., None]).sum((0, 1, 2))
    entropy = F.cross_entropy(SCALE * cosine, case.label, ignore_index=IGNORE, reduction="none")
    total = (member * (weight * entropy)[..., None]).sum((0, 1, 2))
    loss = (total / mass.clamp(min=1e-30)).sum() / (mass > 0).sum().clamp(min=1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert embedding.grad is not None
    assert proxies.grad is not None
    sums = (member * r[..., None]).sum((0, 1, 2))
    counts = member.sum((0, 1, 2))
    found = (loss, r, cosine.argmax(1), sums, counts, cosine, embedding.grad, proxies.grad)
    return Outcome(*(t.detach() for t in found))


def assert_as_good_as_plain(case: Case, got: Outcome, *, any_size: bool = False) -> None:
    """Error against float64 at most twice that of plain torch in float32, and one rounding of the largest value.

    At any size, on a few pixels, both errors are a matter of luck: there four times, and eight roundings of what
    gradients can be rather than of what they happen to be.
    """
    times, roundings = (4, 8) if any_size else (2, 1)
    exact, single = plain(case, torch.float64), plain(case, torch.float32)
    for name in FLOATS:
        value, want, usual = getattr(got, name), getattr(exact, name), getattr(single, name)
        assert value.shape == want.shape, name
        if want.numel() == 0:
            continue
        largest = want.abs().max()
        if not name.startswith("grad"):  # made of cosines of up to 1, the loss of logits of up to 18
            largest = largest.clamp(min=SCALE if name == "loss" else 1)
        elif any_size:
            vectors = case.proxies if name == "grad_proxies" else case.embedding.movedim(1, -1)
            largest = torch.maximum(largest, 1 / vectors.norm(dim=-1).min().double())
        if name == "grad_embedding":  # comes back in the embedding's precision, as with any operator
            usual = usual.to(value.dtype)
        error = (value.double() - want).abs().max()
        allowed = times * (usual.double() - want).abs().max() + roundings * torch.finfo(value.dtype).eps * largest
        assert error <= allowed, f"{name}: {error} > {allowed}"
    assert torch.equal(got.counts, exact.counts)
    picked = exact.cosine.gather(1, got.nearest[:, None])[:, 0]
    assert (exact.cosine.amax(1) - picked).max() < 1e-6 if picked.numel() else True


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_equal_literals(backend: str) -> None:
    # cosines: pixel 0 (1, 0), pixel 1 (0, 1), pixel 2 (0.6, 0.8), pixel 3 ignored
    embedding = torch.zeros(1, 8, 2, 2)
    embedding[0, 0] = torch.tensor([[5.0, 0.0], [3.0, 7.0]])
    embedding[0, 1] = torch.tensor([[0.0, 0.1], [4.0, 7.0]])
    proxies = torch.zeros(2, 8)
    proxies[0, 0], proxies[1, 1] = 2.0, 0.5
    label = torch.tensor([[[0, 0], [1, 255]]])
    log3 = math.log(3)
    got = proxy_similarity(embedding, proxies, label, kappa=log3, scale=log3, with_cosine=True, backend=backend)
    last = 3**0.8 / (3**0.6 + 3**0.8)
    expected = torch.tensor([[[0.75, 0.25], [last, 0.0]]])
    torch.testing.assert_close(got.reliability, expected)
    torch.testing.assert_close(got.sums, torch.tensor([1.0, last]))
    torch.testing.assert_close(got.loss, torch.tensor(((-math.log(0.75) - math.log(0.25)) / 2 - math.log(last)) / 2))
    assert got.counts is not None
    assert got.counts.tolist() == [2, 1]
    assert got.nearest is not None
    assert got.nearest.tolist() == [[[0, 1], [1, 0]]]
    assert got.cosine is not None
    torch.testing.assert_close(got.cosine[0, :, 1, 0], torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_weighs_classes_alike_whatever_their_pixels_weigh(backend: str) -> None:
    case = make_case(1, 3, 8, 5, 4)
    assert case.weight is not None
    heavy = torch.where(case.label == 1, 1000 * case.weight, case.weight)
    first, second = run(case, backend), run(Case(case.embedding, case.proxies, case.label, heavy), backend)
    torch.testing.assert_close(first.loss, second.loss)


SIZES = [  # B, C, D, h, w
    (1, 2, 8, 1, 1),
    (1, 19, 64, 7, 13),
    (4, 5, 11, 3, 5),
    (2, 3, 31, 1, 17),
    (1, 11, 67, 37, 1),
    (1, 37, 128, 5, 7),
    (2, 256, 8, 3, 7),
    (1, 61, 256, 3, 11),  # a tile of 16, proxies in chunks
    (1, 256, 256, 3, 7),  # a tile of 8, proxies in chunks
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_errors_are_at_most_twice_those_of_plain_torch(size: tuple[int, int, int, int, int], backend: str) -> None:
    case = make_case(*size)
    assert_as_good_as_plain(case, run(case, backend))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels_last"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_embeddings_are_accumulated_in_single(
    dtype: torch.dtype, layout: torch.memory_format, backend: str
) -> None:
    case = make_case(2, 11, 64, 5, 11, dtype=dtype)
    case = Case(case.embedding.contiguous(memory_format=layout), case.proxies, case.label, case.weight)
    got = run(case, backend)
    assert got.grad_embedding.dtype == dtype
    assert got.cosine.dtype == torch.float32
    assert_as_good_as_plain(case, got)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_proxies_get_half_gradients(backend: str) -> None:
    case = make_case(1, 5, 16, 3, 5)
    got = run(Case(case.embedding, case.proxies.bfloat16(), case.label, case.weight), backend)
    single = run(Case(case.embedding, case.proxies.bfloat16().float(), case.label, case.weight), backend)
    assert got.grad_proxies.dtype == torch.bfloat16
    torch.testing.assert_close(got.grad_proxies, single.grad_proxies.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(got.loss, single.loss, rtol=0, atol=0)


@given(st.integers(1, 3), st.integers(2, 40), st.integers(8, 80), st.integers(0, 9), st.integers(0, 9), st.booleans())
@settings(max_examples=30)
def test_plain_torch_is_right_at_any_size(batch: int, classes: int, channels: int, h: int, w: int, last: bool) -> None:
    case = make_case(batch, classes, channels, h, w)
    if last:
        case = Case(case.embedding.contiguous(memory_format=torch.channels_last), case.proxies, case.label, None)
    assert_as_good_as_plain(case, run(case, "torch"), any_size=True)


@needs_compiler
@given(st.integers(1, 4), st.integers(2, 256), st.integers(8, 256), st.integers(0, 7), st.integers(0, 7), st.booleans())
@example(1, 5, 9, 6, 7, True)
@settings(max_examples=10)
def test_kernels_are_right_at_any_size(batch: int, classes: int, channels: int, h: int, w: int, last: bool) -> None:
    case = make_case(batch, classes, channels, h, w)
    if last:
        case = Case(case.embedding.contiguous(memory_format=torch.channels_last), case.proxies, case.label, None)
    assert_as_good_as_plain(case, run(case, "host"), any_size=True)


@pytest.fixture
def two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_FORWARD_BLOCKS", 2)
    monkeypatch.setattr(fused, "_BACKWARD_BLOCKS", 2)


@needs_compiler
@pytest.mark.usefixtures("two_blocks")
@pytest.mark.parametrize("size", [(2, 19, 64, 13, 11), (1, 200, 199, 7, 9)], ids=str)
def test_a_block_takes_several_tiles(size: tuple[int, int, int, int, int]) -> None:
    case = make_case(*size)
    assert fused.plan(case.label.numel(), size[1], size[2]).forward_blocks == 2
    assert_as_good_as_plain(case, run(case, "host"))


@needs_compiler
def test_kernels_repeat_bit_for_bit() -> None:
    case = make_case(2, 11, 64, 9, 7)
    first, second = run(case, "host"), run(case, "host")
    for name in FLOATS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_upstream_gradient_scales_both_gradients(backend: str) -> None:
    case = make_case(1, 5, 16, 3, 7)
    once, thrice = run(case, backend), run(case, backend, upstream=-3.0)
    torch.testing.assert_close(thrice.grad_embedding, -3 * once.grad_embedding)
    torch.testing.assert_close(thrice.grad_proxies, -3 * once.grad_proxies)


# --- layouts ----------------------------------------------------------------------------------------------------------


def _sliced(t: Tensor) -> Tensor:
    return F.pad(t, (1, 2, 1, 1))[..., 1:-1, 1:-2]


def _every_second(t: Tensor) -> Tensor:
    return t.repeat_interleave(2, -1)[..., ::2]


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(2, 3).contiguous().transpose(2, 3)


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _channels_apart(t: Tensor) -> Tensor:
    return F.pad(t, (0, 0, 0, 0, 2, 1))[:, 2:-1]


@pytest.mark.parametrize("lay_out", [_sliced, _every_second, _transposed, _channels_last, _channels_apart])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_of_the_embedding_changes_nothing(lay_out, backend: str) -> None:  # type: ignore[no-untyped-def]
    case = make_case(2, 5, 16, 3, 7)
    odd = Case(lay_out(case.embedding), case.proxies, case.label, case.weight)
    assert torch.equal(odd.embedding, case.embedding)
    assert odd.embedding.stride() != case.embedding.stride()
    usual, got = run(case, backend), run(odd, backend)
    for name in FLOATS:
        torch.testing.assert_close(getattr(got, name), getattr(usual, name), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_embedding_is_read_as_what_it_shows(backend: str) -> None:
    case = make_case(3, 5, 16, 2, 3)
    one = case.embedding[:1].expand(3, -1, -1, -1)
    got = run(Case(one, case.proxies, case.label, case.weight), backend)
    want = run(Case(one.contiguous(), case.proxies, case.label, case.weight), backend)
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.grad_proxies, want.grad_proxies)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_lies_as_the_embedding_does(backend: str) -> None:
    case = make_case(2, 5, 16, 3, 7)
    last = Case(_channels_last(case.embedding), case.proxies, case.label, case.weight)
    assert run(last, backend).grad_embedding.is_contiguous(memory_format=torch.channels_last)
    assert run(case, backend).grad_embedding.is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_labels_weights_and_proxies_are_read_as_what_they_show(backend: str) -> None:
    case = make_case(2, 5, 16, 3, 8)
    assert case.weight is not None
    label = case.label.transpose(1, 2).contiguous().transpose(1, 2)
    weight = case.weight.transpose(1, 2).contiguous().transpose(1, 2)
    odd = Case(case.embedding, case.proxies.T.contiguous().T, label, weight)
    torch.testing.assert_close(run(odd, backend).loss, run(case, backend).loss)
    torch.testing.assert_close(run(odd, backend).grad_proxies, run(case, backend).grad_proxies)


@pytest.mark.parametrize("backend", BACKENDS)
def test_uint8_labels_and_boolean_weights_mean_the_same(backend: str) -> None:
    case = make_case(1, 5, 16, 3, 7)
    assert case.weight is not None
    mask = case.weight > 0.5
    small = torch.where(case.label < 0, 255, case.label).to(torch.uint8)
    kwargs = {"kappa": KAPPA, "scale": SCALE, "backend": backend}
    got = proxy_similarity(case.embedding, case.proxies, small, weight=mask, ignore_id=255, **kwargs)
    want = proxy_similarity(case.embedding, case.proxies, case.label, weight=mask.double(), ignore_id=IGNORE, **kwargs)
    assert got.loss is not None
    assert got.reliability is not None
    assert torch.equal(got.loss, want.loss)
    assert torch.equal(got.reliability, want.reliability)


# --- odd values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 8, 3, 5), (2, 8, 0, 5), (2, 8, 3, 0)], ids=str)
def test_no_pixels_give_a_loss_of_zero(shape: tuple[int, int, int, int], backend: str) -> None:
    batch, _, h, w = shape
    label = torch.zeros(batch, h, w, dtype=torch.int64)
    got = run(Case(torch.ones(shape), torch.ones(3, 8), label, None), backend)
    assert got.loss.item() == 0
    assert got.reliability.shape == (batch, h, w)
    assert got.sums.tolist() == [0, 0, 0]
    assert got.counts.tolist() == [0, 0, 0]
    assert got.grad_embedding.shape == shape
    assert got.grad_proxies.tolist() == [[0.0] * 8] * 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("why", ["ignored", "weightless"])
def test_nothing_is_learned_without_weight(why: str, backend: str) -> None:
    case = make_case(1, 5, 16, 3, 7)
    if why == "ignored":
        got = run(Case(case.embedding, case.proxies, torch.full_like(case.label, IGNORE), None), backend)
        assert not got.reliability.any()
        assert not got.counts.any()
    else:
        got = run(Case(case.embedding, case.proxies, case.label, torch.zeros(case.label.shape)), backend)
        assert got.reliability[case.label != IGNORE].min() > 0
    assert got.loss.item() == 0
    assert not got.grad_embedding.any()
    assert not got.grad_proxies.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_ignored_and_weightless_pixels_hold_does_not_matter(bad: float, backend: str) -> None:
    case = make_case(1, 5, 16, 5, 7)
    assert case.weight is not None
    weight = torch.where(case.label == IGNORE, math.nan, case.weight)
    case = Case(case.embedding, case.proxies, case.label, weight)
    silent = (case.label == IGNORE) | (case.weight == 0)
    assert silent.sum() == 12
    poisoned = torch.where(silent[:, None], bad, case.embedding)
    want, got = run(case, backend), run(Case(poisoned, case.proxies, case.label, weight), backend)
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.grad_embedding, want.grad_embedding)
    torch.testing.assert_close(got.grad_proxies, want.grad_proxies)
    assert not got.grad_embedding.movedim(1, -1)[silent].any()
    assert not got.reliability[case.label == IGNORE].any()
    assert got.reliability[(case.label != IGNORE) & (case.weight == 0)].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_embedding_shows_in_its_pixel_its_class_and_the_loss(bad: float, backend: str) -> None:
    case = make_case(1, 4, 8, 3, 5)
    label = (torch.arange(15) % 4).view(1, 3, 5)
    embedding = case.embedding.clone()
    embedding[0, 3, 1, 2] = bad  # pixel 7, class 3
    got = run(Case(embedding, case.proxies, label, None), backend)
    assert got.reliability.isnan().flatten().nonzero().tolist() == [[7]]
    assert got.sums.isnan().tolist() == [False, False, False, True]
    assert got.counts.tolist() == [4, 4, 4, 3]
    assert got.loss.isnan()
    assert got.nearest[0, 1, 2] == 0  # the first of NaN
    assert got.grad_embedding[0, :, 1, 2].isnan().all()
    assert got.grad_embedding.isfinite().sum() == 14 * 8
    assert got.grad_proxies.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_broken_proxy_shows_everywhere_but_in_the_counts(backend: str) -> None:
    case = make_case(1, 4, 8, 3, 5)
    proxies = case.proxies.clone()
    proxies[2, 5] = math.nan
    got = run(Case(case.embedding, proxies, (torch.arange(15) % 4).view(1, 3, 5), None), backend)
    assert got.reliability.isnan().all()
    assert got.loss.isnan()
    assert got.nearest.eq(2).all()  # NaN counts as the largest, as in torch.argmax
    assert got.counts.tolist() == [4, 4, 4, 3]
    assert got.cosine.isnan().sum((0, 2, 3)).tolist() == [0, 0, 15, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e25], ids=["zero", "tiny", "square_overflows"])
def test_vectors_without_direction_have_cosine_and_gradient_zero(factor: float, backend: str) -> None:
    case = make_case(1, 4, 8, 3, 5)
    embedding, proxies = case.embedding.clone(), case.proxies.clone()
    embedding[0, :, 1, 2] *= factor
    proxies[3] *= factor
    label = (torch.arange(15) % 4).view(1, 3, 5)
    got = run(Case(embedding, proxies, label, None), backend)
    assert got.cosine[0, :, 1, 2].tolist() == [0, 0, 0, 0]
    assert not got.cosine[:, 3].any()
    assert got.reliability[0, 1, 2].item() == pytest.approx(0.25)
    assert not got.grad_embedding[0, :, 1, 2].any()
    assert not got.grad_proxies[3].any()
    assert got.grad_embedding.isfinite().all()
    assert got.grad_proxies[:3].abs().amin() > 0
    assert got.loss.isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [1e-6, 1e4, 1e15])
def test_length_of_embeddings_changes_only_their_gradient(factor: float, backend: str) -> None:
    case = make_case(1, 4, 8, 3, 5)
    usual = run(case, backend)
    got = run(Case(factor * case.embedding, case.proxies / 1000, case.label, case.weight), backend)
    torch.testing.assert_close(got.cosine, usual.cosine, rtol=0, atol=5e-7)
    torch.testing.assert_close(got.loss, usual.loss)
    torch.testing.assert_close(got.grad_embedding * factor, usual.grad_embedding)
    torch.testing.assert_close(got.grad_proxies / 1000, usual.grad_proxies)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_embeddings_at_the_end_of_their_range_stay_finite(backend: str) -> None:
    case = make_case(1, 4, 256, 2, 3)
    largest = torch.where(case.embedding > 0, 65504.0, -65504.0).half()
    got = run(Case(largest, case.proxies, case.label, None), backend)
    assert_as_good_as_plain(Case(largest, case.proxies, case.label, None), got)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sharp_softmaxes_of_opposite_vectors_stay_finite(backend: str) -> None:
    proxies = torch.zeros(2, 8)
    proxies[0, 0], proxies[1, 0] = 1.0, -1.0
    embedding = torch.zeros(1, 8, 1, 2)
    embedding[0, 0] = torch.tensor([[1e4, -1e4]])
    embedding.requires_grad_()
    label = torch.zeros(1, 1, 2, dtype=torch.int64)
    got = proxy_similarity(embedding, proxies, label, kappa=1e4, scale=1e4, backend=backend)
    assert got.reliability is not None
    assert got.reliability.tolist() == [[[1.0, 0.0]]]
    assert got.loss is not None
    assert got.loss.item() == 1e4  # (0 + 2e4) / 2
    got.loss.backward()  # type: ignore[no-untyped-call]
    assert embedding.grad is not None
    assert embedding.grad.isfinite().all()


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_was_asked_for_is_given(backend: str) -> None:
    case = make_case(1, 5, 16, 3, 7)
    full = run(case, backend)
    inputs = (case.embedding, case.proxies, case.label)
    kwargs = {"weight": case.weight, "ignore_id": IGNORE, "backend": backend}
    scores = proxy_similarity(*inputs, kappa=KAPPA, scale=None, with_nearest=False, **kwargs)
    assert (scores.loss, scores.nearest, scores.cosine) == (None, None, None)
    assert scores.reliability is not None
    assert torch.equal(scores.reliability, full.reliability)
    trained = proxy_similarity(*inputs, kappa=None, scale=SCALE, **kwargs)
    assert (trained.reliability, trained.sums, trained.counts, trained.cosine) == (None, None, None, None)
    assert trained.loss is not None
    assert torch.equal(trained.loss, full.loss)
    assert trained.nearest is not None
    assert torch.equal(trained.nearest, full.nearest)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_flows_through_the_loss_only(backend: str) -> None:
    case = make_case(1, 5, 16, 3, 7)
    embedding = case.embedding.requires_grad_()
    got = proxy_similarity(embedding, case.proxies, case.label, ignore_id=IGNORE, with_cosine=True, backend=backend)
    flows = [t.requires_grad for t in (got.loss, got.reliability, got.sums, got.cosine) if t is not None]
    assert flows == [True, False, False, False]


def test_second_derivative_is_refused() -> None:
    case = make_case(1, 5, 16, 3, 7)
    embedding = case.embedding.requires_grad_()
    loss = proxy_similarity(embedding, case.proxies, case.label, ignore_id=IGNORE).loss
    assert loss is not None
    (grad,) = torch.autograd.grad(loss, embedding, create_graph=True)
    with pytest.raises(RuntimeError, match="proxy_similarity_backward"):
        grad.sum().backward()  # type: ignore[no-untyped-call]


def test_reliability_alone_equals_the_operator_without_gradient() -> None:
    case = make_case(2, 5, 16, 3, 7)
    label = case.label.clamp(min=0)
    got = reliability(case.embedding.requires_grad_(), case.proxies.requires_grad_(), label, kappa=KAPPA)
    assert not got.requires_grad
    whole = run(Case(case.embedding, case.proxies, label, None), "torch").reliability
    torch.testing.assert_close(got, whole, rtol=0, atol=0)


def test_metric_loss_equals_the_operator_on_the_samples() -> None:
    rng = torch.Generator().manual_seed(0)
    samples = torch.randn(5, 7, 16, generator=rng, requires_grad=True)  # [C, K, D]
    proxies = torch.randn(5, 16, generator=rng, requires_grad=True)
    label = torch.arange(5)[:, None].expand(5, 7)
    valid = torch.rand(5, 7, generator=rng) < 0.7
    valid[2] = False
    loss = metric_loss(samples, proxies, label, valid, scale=SCALE)
    grads = torch.autograd.grad(loss, (samples, proxies))
    picture = samples.permute(2, 0, 1)[None]
    other = proxy_similarity(picture, proxies, label[None], kappa=None, scale=SCALE, weight=valid[None]).loss
    assert other is not None
    torch.testing.assert_close(loss, other)
    for got, want in zip(torch.autograd.grad(other, (samples, proxies)), grads, strict=True):
        torch.testing.assert_close(got, want)


def test_off_the_cpu_both_parts_are_the_operator() -> None:
    label = torch.zeros(3, 4, dtype=torch.int64, device="meta")
    samples = torch.zeros(3, 4, 8, device="meta", requires_grad=True)
    loss = metric_loss(samples, torch.zeros(3, 8, device="meta"), label, label == 0, scale=SCALE)
    assert loss.shape == ()
    (grad,) = torch.autograd.grad(loss, samples)
    assert grad.shape == (3, 4, 8)
    picture = torch.zeros(2, 8, 3, 4, device="meta")
    r = reliability(picture, torch.zeros(3, 8, device="meta"), picture[:, 0].long(), kappa=KAPPA)
    assert (r.shape, r.dtype) == ((2, 3, 4), torch.float32)


# --- a torch operator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [(KAPPA, SCALE, True, True), (None, SCALE, False, False), (KAPPA, None, False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_passes_opcheck(asked: tuple[float | None, float | None, bool, bool], dtype: torch.dtype) -> None:
    case = make_case(2, 5, 16, 3, 4, dtype=dtype)
    kappa, scale, nearest, cosine = asked
    inputs = (case.embedding.requires_grad_(), case.proxies.requires_grad_(), case.label, case.weight)
    torch.library.opcheck(
        torch.ops.edge_sfda.proxy_similarity.default, (*inputs, kappa, scale, IGNORE, nearest, cosine, "torch")
    )


def test_backward_operator_passes_opcheck() -> None:
    case = make_case(2, 5, 16, 3, 4)
    inputs = (case.embedding, case.proxies, case.label, case.weight)
    outputs = torch.ops.edge_sfda.proxy_similarity(*inputs, None, SCALE, IGNORE, False, False, "torch")
    torch.library.opcheck(
        torch.ops.edge_sfda.proxy_similarity_backward.default,
        (torch.tensor(2.0), *inputs, *outputs[-2:], SCALE, "torch"),
    )


def test_operator_passes_gradcheck() -> None:
    case = make_case(1, 3, 4, 2, 5)
    embedding, proxies = case.embedding.double().requires_grad_(), case.proxies.double().requires_grad_()

    def loss(e: Tensor, p: Tensor) -> Tensor:
        found = proxy_similarity(e, p, case.label, scale=3.0, weight=case.weight, ignore_id=IGNORE).loss
        assert found is not None
        return found

    assert torch.autograd.gradcheck(loss, (embedding, proxies))


def test_operator_compiles_whole() -> None:
    case = make_case(2, 5, 16, 3, 7)

    def step(e: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        found = proxy_similarity(2 * e, p, case.label, weight=case.weight, ignore_id=IGNORE)
        assert found.loss is not None
        assert found.reliability is not None
        return found.loss * 3, found.reliability.mean()

    results = []
    for call in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        embedding, proxies = case.embedding.clone().requires_grad_(), case.proxies.clone().requires_grad_()
        loss, mean = call(embedding, proxies)
        loss.backward()  # type: ignore[no-untyped-call]
        results.append((loss.detach(), mean, embedding.grad, proxies.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_autocast_lowers_no_precision() -> None:
    case = make_case(1, 5, 16, 3, 7)
    want = run(case, "torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(case, "torch")
    for name in FLOATS:
        assert torch.equal(getattr(got, name), getattr(want, name)), name


# --- what it refuses --------------------------------------------------------------------------------------------------

_E, _P, _Y = torch.ones(2, 8, 3, 5), torch.ones(4, 8), torch.zeros(2, 3, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"embedding": _E[0]}, "expected embedding [B, D, h, w]"),
        ({"proxies": torch.ones(4, 9)}, "of the same D"),
        ({"proxies": torch.ones(0, 8)}, "C >= 1"),
        ({"label": _Y[:, :2]}, "label and weight [B, h, w] = (2, 3, 5)"),
        ({"weight": torch.ones(2, 3, 4)}, "label and weight [B, h, w] = (2, 3, 5)"),
        ({"embedding": _E.int()}, "floating embedding"),
        ({"proxies": _P.long()}, "floating proxies"),
        ({"label": _Y.int()}, "label of int64 or uint8"),
        ({"weight": _Y}, "floating or bool weight"),
        ({"proxies": _P.to("meta")}, "all tensors on one device"),
        ({"weight": torch.ones(2, 3, 5, requires_grad=True)}, "pass weight.detach()"),
        ({"kappa": 0.0}, "kappa is 0.0"),
        ({"scale": math.nan}, "scale nan"),
        ({"ignore_id": 3}, "ignore_id 3 is one of the classes 0..3"),
    ],
)
def test_bad_input_is_refused_with_all_shapes(change: dict[str, object], problem: str) -> None:
    inputs = {"embedding": _E, "proxies": _P, "label": _Y, "weight": torch.ones(2, 3, 5)} | change
    with pytest.raises(UsageError) as caught:
        proxy_similarity(**inputs)  # type: ignore[arg-type]
    assert problem in str(caught.value)
    for name in ("embedding", "proxies", "label", "weight"):
        tensor = inputs[name]
        assert isinstance(tensor, Tensor)
        assert f"{name} {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}" in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("odd", [4, 200, -1])
def test_label_that_is_no_class_is_refused(odd: int, backend: str) -> None:
    label = _Y.clone()
    label[1, 2, 3] = odd
    label[0, 0, 0] = 255
    with pytest.raises(UsageError, match=rf"label \(2, 3, 5\) holds {odd}, expected 0..3 for 4 proxies"):
        proxy_similarity(_E, _P, label, backend=backend)


@pytest.mark.parametrize(
    ("embedding", "classes", "problem"),
    [
        (torch.ones(1, 8, 2, 2, dtype=torch.float64), 4, "torch.float64"),
        (torch.ones(1, 4, 2, 2), 4, "C 4 and D 4"),
        (torch.ones(1, 257, 2, 2), 4, "C 4 and D 257"),
        (torch.ones(1, 8, 2, 2), 1, "C 1 and D 8"),
        (torch.ones(1, 8, 2, 2), 257, "C 257 and D 8"),
    ],
)
def test_sizes_beyond_the_kernels_go_to_torch_only_by_themselves(embedding: Tensor, classes: int, problem: str) -> None:
    proxies, label = torch.ones(classes, embedding.shape[1]), torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(UsageError, match=f"'host' cannot run this: .*{problem}"):
        proxy_similarity(embedding, proxies, label, ignore_id=-1, backend="host")
    got = proxy_similarity(embedding, proxies, label, ignore_id=-1, backend="auto")
    assert got.loss is not None
    assert got.loss.item() == pytest.approx(math.log(classes))


def test_backend_of_another_device_is_refused() -> None:
    with pytest.raises(UsageError, match="cuda"):
        proxy_similarity(_E, _P, _Y, backend="cuda")

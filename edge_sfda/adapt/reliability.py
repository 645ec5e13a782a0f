"""Reliability of the teacher's labels, from proxy-based metric learning (the paper's part 5; formulas ours).

A linear metric network embeds the teacher's encoder features; one proxy a class lives in the same space. How strongly a
pixel's embedding points to the proxy of its label is its reliability. Both are trained during adaptation on the
teacher's own labels, so reliability must always come from the network as it was before this frame trained it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda.adapt import state as states
from edge_sfda.adapt.state import State
from edge_sfda.adapt.teacher import TeacherView
from edge_sfda.config import ReliabilityConfig
from edge_sfda.ops.proxy_similarity import metric_loss, reliability

_DEAD = 1e-4  # spread of a channel up to which it says nothing
_PULL = 0.25  # share of reliability's log odds
_AROUND = 5  # pixels a side, of the logits


class MetricNetwork(nn.Module):
    """z = W g, g = the encoder's levels, each channel standardised, brought to one grid and stacked.

    A 1x1 projection a level and their sum, as one matrix: resampling and projection commute.
    """

    mean: Tensor
    scale: Tensor
    seen: Tensor

    def __init__(self, channels: tuple[int, ...], classes: int, config: ReliabilityConfig, seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        total = sum(channels)
        self.projection = nn.Parameter(torch.randn(config.embedding, total, generator=rng) / total**0.5)
        self.proxies = nn.Parameter(F.normalize(torch.randn(classes, config.embedding, generator=rng), dim=1))
        self.register_buffer("mean", torch.zeros(total))
        self.register_buffer("scale", torch.ones(total))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    def stack(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return g, float [B * h * w, F_total], standardised rows, and no gradient."""
        grid = _grid(features)
        levels = [
            f if f.shape[-2:] == grid else F.interpolate(f, size=grid, mode="bilinear", align_corners=False)
            for f in features
        ]
        rows = torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels], 1)
        return (rows - self.mean) * self.scale

    @torch.no_grad()
    def standardise(self, rows: Tensor) -> None:
        """Set the channels' mean and scale from raw rows [N, F_total], once, before training.

        A channel that is dead in them is left out: wherever it comes to life, its true scale is not known.
        """
        spread = rows.std(0)
        self.scale.copy_(torch.where(spread > _DEAD, spread.clamp(min=_DEAD).reciprocal(), 0.0))
        self.mean.copy_(rows.mean(0))

    def forward(self, rows: Tensor) -> Tensor:
        """Embed rows [..., F_total] as float [..., D], not normalised."""
        return rows @ self.projection.T

    @torch.no_grad()
    def start_proxies(self, rows: Tensor, label: Tensor) -> None:
        """Set the proxy of each class that is seen for the first time to the mean of its embeddings.

        Args:
            rows: [N, F_total].
            label: int64 [N].
        """
        z = F.normalize(self(rows), dim=1)
        sums = torch.zeros_like(self.proxies).index_add_(0, label, z)
        counts = torch.zeros_like(self.proxies[:, 0]).index_add_(0, label, torch.ones_like(z[:, 0]))
        new = (counts > 0) & ~self.seen
        self.proxies.copy_(torch.where(new[:, None], F.normalize(sums, dim=1), self.proxies))
        self.seen |= new


class Reliability:
    """Scores labels, then learns from them.

    Args:
        channels: of the encoder's levels.
        classes: C.
        config: see `ReliabilityConfig`.
        seed: of the initial projection and the pixel sampling.
        device: where all of it lives.
    """

    def __init__(
        self, channels: tuple[int, ...], classes: int, *, config: ReliabilityConfig, seed: int, device: torch.device
    ) -> None:
        self.config = config
        self.classes = classes
        self.net = MetricNetwork(channels, classes, config, seed).to(device)
        self.rng = torch.Generator(device).manual_seed(seed)
        self.optimizer = torch.optim.Adam(
            [
                {"params": [self.net.projection], "lr": config.rate},
                {"params": [self.net.proxies], "lr": config.proxy_rate},
            ]
        )
        self._class_ids = torch.arange(classes, device=device)
        self._standardised = False

    @torch.no_grad()
    def score(self, features: tuple[Tensor, ...], label: Tensor) -> Tensor:
        """Return reliability at the label's size.

        Args:
            features: of the teacher's encoder, fine to coarse.
            label: the teacher's, int64 [B, H, W], 0..C-1, at the logits' size.

        Returns:
            float32 [B, H, W], 0..1: computed on the features' grid, bilinearly brought to the label's.
        """
        return self._score(*self._gather(features, label), size=label.shape[-2:])

    def score_then_learn(self, features: tuple[Tensor, ...], label: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `score` and then `learn` would; the features are gathered once for both."""
        rows, coarse = self._gather(features, label)
        return self._score(rows, coarse, size=label.shape[-2:]), self._learn(rows, coarse)

    @torch.no_grad()
    def _gather(self, features: tuple[Tensor, ...], label: Tensor) -> tuple[Tensor, Tensor]:
        """Return standardised rows [B * h * w, F_total] and the label int64 [B, h, w] by the nearest pixel."""
        if not self._standardised:  # the first target features set the scale of every channel, for good
            self.net.standardise(self.net.stack(features))
            self._standardised = True
        coarse = F.interpolate(label[:, None].float(), size=_grid(features), mode="nearest")[:, 0].long()
        return self.net.stack(features), coarse

    @torch.no_grad()
    def _score(self, rows: Tensor, coarse: Tensor, *, size: torch.Size) -> Tensor:
        batch, h, w = coarse.shape
        self.net.start_proxies(rows, coarse.flatten())
        z = self.net(rows).view(batch, h, w, -1).permute(0, 3, 1, 2)
        r = reliability(z, self.net.proxies, coarse, kappa=self.config.kappa)
        return F.interpolate(r[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]

    @torch.no_grad()
    def look(self, features: tuple[Tensor, ...], label: Tensor) -> Tensor | None:
        """Return what `score` would, leaving everything as it was: for pictures and measures; None before any `score`.

        Arguments as in `score`.
        """
        if not self._standardised:
            return None
        proxies, seen = self.net.proxies.clone(), self.net.seen.clone()
        r = self.score(features, label)
        self.net.proxies.copy_(proxies)
        self.net.seen.copy_(seen)
        return r

    def learn(self, features: tuple[Tensor, ...], label: Tensor) -> Tensor:
        """Take one step of the metric loss on a class-balanced sample of pixels; returns the loss, detached."""
        return self._learn(*self._gather(features, label))

    def _learn(self, rows: Tensor, coarse: Tensor) -> Tensor:
        index, valid = self._sample(coarse.flatten())
        target = self._class_ids[:, None].expand_as(index)
        loss = metric_loss(self.net(rows[index]), self.net.proxies, target, valid, scale=self.config.scale)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            self.net.proxies.copy_(F.normalize(self.net.proxies, dim=1))
        return loss.detach()

    def state(self) -> State:
        """Return metric network, proxies, their optimizer's moments and the state of the draws."""
        own = State({"random": self.rng.get_state()}, {"standardised": self._standardised})
        return State.of(own=own, net=states.of_module(self.net), optimizer=states.of_optimizer(self.optimizer))

    def load_state(self, state: State) -> None:
        """Set all that `state` returns, or raise CheckpointError."""
        states.into_module(self.net, state.part("net"))
        states.into_optimizer(self.optimizer, state.part("optimizer"))
        self.rng.set_state(state.tensor("own.random").cpu())
        self._standardised = bool(state.fact("own.standardised"))

    def _sample(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Draw up to `per_class` pixels a class without a host sync: the largest of random keys.

        Args:
            label: int64 [N].

        Returns:
            index int64 [C, K] into N, and valid bool [C, K].
        """
        keys = torch.rand(label.shape, generator=self.rng, device=label.device)
        own = torch.where(label == self._class_ids[:, None], keys, keys.new_tensor(-1.0))
        top = own.topk(min(self.config.per_class, label.numel()), dim=1)
        return top.indices, top.values >= 0


def levels(view: TeacherView) -> tuple[Tensor, ...]:
    """Return what the metric network reads: the encoder's levels, then the teacher's log-probabilities (ours)."""
    return (*view.features, view.probs.clamp(min=1e-6).log())


def combined(view: TeacherView, r: Tensor) -> Tensor:
    """Return how far to trust each label: log odds of confidence, of the neighbours' support, a share of reliability's.

    Support is the label's mean probability in the 5x5 pixels around, which errors at borders and specks lack (ours).

    Args:
        view: of the teacher.
        r: float [B, h, w], 0..1.

    Returns:
        float [B, h, w], 0..1.
    """
    around = F.avg_pool2d(view.probs, _AROUND, stride=1, padding=_AROUND // 2, count_include_pad=False)
    support = around.gather(1, view.label[:, None])[:, 0]
    return torch.sigmoid(_log_odds(view.confidence) + _log_odds(support) + _PULL * _log_odds(r))


def _log_odds(probability: Tensor) -> Tensor:
    return torch.logit(probability, 1e-6)


def _grid(features: tuple[Tensor, ...]) -> torch.Size:
    """Return the grid of reliability: the second finest (stride 8 of the built-in networks), or the only one."""
    grids = sorted({f.shape[-2:] for f in features}, reverse=True)
    return grids[min(1, len(grids) - 1)]

"""Whether what was learnt replaces what is deployed: evidence, vetoes, then votes, or labels where there are (ours).

No method without labels can be certain that it improved, so the gate is made to refuse. A candidate must be surer and
more diverse than the deployed network by a margin in both such votes, no less consistent, and the ensemble of all
candidates must not contradict it; or the ensemble must side with it against the deployed network, as when a stream
comes home from where that one was fitted to.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda.adapt import vetoes, votes
from edge_sfda.adapt.probes import LabelledProbes
from edge_sfda.adapt.votes import Ballot, Predict
from edge_sfda.config import GateConfig
from edge_sfda.errors import UsageError
from edge_sfda.manifest import Manifest
from edge_sfda.metrics import ConfusionMatrix
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.inference import Normaliser

SOURCE = "source"
DEPLOYED = "deployed"

# A network; or a function from frames on the CPU, float 0..255 RGB [B, 3, H, W], to logits: an exported engine's.
Candidate = SegmentationNet | Predict
# Asked with a candidate's name; returns why it is ruled out, or None. For export parity, latency, power.
Veto = Callable[[str], str | None]

_LABELLED_BATCH = 4


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and all that it looked at.

    Args:
        accepted: the candidate to deploy; `deployed` when nothing changes.
        reason: in words.
        scores: mean over probes of each score of each candidate that was judged; `miou` where probes are labelled.
        votes: of each candidate, each vote against the deployed network: `for`, `against` or `abstains`.
        vetoes: of each candidate, why it is ruled out.
        evidence: what is wrong with the probes, so that nothing was voted on.
        probes: frames that were judged on.
        labelled: labelled ones.
    """

    accepted: str
    reason: str
    scores: Mapping[str, Mapping[str, float]]
    votes: Mapping[str, Mapping[str, str]]
    vetoes: Mapping[str, Sequence[str]]
    evidence: Sequence[str]
    probes: int
    labelled: int

    @property
    def changes(self) -> bool:
        """Whether another network than the deployed one is to be deployed."""
        return self.accepted != DEPLOYED

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as JSON values, as a generation's report takes it; a score that is not finite is None."""
        found = asdict(self)
        found["scores"] = {
            name: {key: round(value, 6) if math.isfinite(value) else None for key, value in row.items()}
            for name, row in self.scores.items()
        }
        return found

    def to_json(self) -> str:
        """Return the decision as one line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False, sort_keys=True)


class Gate:
    """Judges candidates; remembers when it last let one through.

    Args:
        config: see `GateConfig`.
        manifest: of the networks.
        clock: seconds that only grow; another one in tests.
    """

    def __init__(self, config: GateConfig, manifest: Manifest, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.manifest = manifest
        self._clock = clock
        self._changed_at = -math.inf

    def judge(
        self,
        candidates: Mapping[str, Candidate],
        probes: Tensor,
        *,
        labelled: LabelledProbes | None = None,
        more_vetoes: Sequence[Veto] = (),
    ) -> Decision:
        """Decide which candidate to deploy.

        Args:
            candidates: by name; `source` and `deployed` among them, and as a rule the burst's average and snapshots.
                Networks are run in eval mode and keep their own.
            probes: uint8 RGB [N, 3, H, W] of the stream, never learned from; N may be 0.
            labelled: outrank the votes, not the vetoes.
            more_vetoes: asked for each candidate but the source, which is what there is to fall back to.

        Raises:
            UsageError: `source` or `deployed` is missing.
            FrameError: the probes are no frames of the network's input.
        """
        missing = [name for name in (SOURCE, DEPLOYED) if name not in candidates]
        if missing:
            raise UsageError(f"gate got candidates {list(candidates)}; {' and '.join(missing)} must be among them")
        case = _Case(self.config, self.manifest, candidates, probes)
        case.collect(more_vetoes)
        if labelled is not None:
            case.measure(labelled)
        accepted, reason = self._decide(case, labelled is not None)
        if accepted != DEPLOYED:
            self._changed_at = self._clock()
        return Decision(
            accepted=accepted,
            reason=reason,
            scores=case.means(),
            votes=case.votes,
            vetoes={name: words for name, words in case.vetoes.items() if words},
            evidence=case.evidence,
            probes=len(probes),
            labelled=0 if labelled is None else len(labelled.frames),
        )

    def _decide(self, case: _Case, has_labels: bool) -> tuple[str, str]:
        ruled_out = case.vetoes[DEPLOYED]
        held = SOURCE if ruled_out else DEPLOYED
        fallback = (
            f"the deployed network is ruled out ({'; '.join(ruled_out)}); back to the source" if ruled_out else ""
        )
        if case.evidence and not has_labels:
            return held, fallback or f"kept: {'; '.join(case.evidence)}"
        since = self._clock() - self._changed_at
        if not ruled_out and since < self.config.cool_down_s:
            return held, f"kept: {since:.0f} s after the last swap, {self.config.cool_down_s:g} s are to pass"
        rivals = [name for name in case.standing if name != held]
        if has_labels:
            winner, reason = case.best_by_labels(rivals, held)
        else:
            winner, reason = case.best_by_votes(rivals, held)
        return (winner, reason) if winner != held else (held, fallback or f"kept: {reason}")


class _Case:
    """One judgement: what was collected about each candidate."""

    def __init__(
        self, config: GateConfig, manifest: Manifest, candidates: Mapping[str, Candidate], probes: Tensor
    ) -> None:
        self.config = config
        self.manifest = manifest
        self.candidates = candidates
        self.probes = probes
        self.ballots: dict[str, Ballot] = {}
        self.scores: dict[str, dict[str, Tensor]] = {}
        self.votes: dict[str, dict[str, str]] = {}
        self.vetoes: dict[str, list[str]] = {name: [] for name in candidates}
        self.miou: dict[str, float] = {}
        self.evidence: list[str] = []

    @property
    def standing(self) -> list[str]:
        """Candidates that no veto fell on."""
        return [name for name in self.candidates if not self.vetoes[name]]

    def collect(self, more_vetoes: Sequence[Veto]) -> None:
        """Apply vetoes and take the predictions of who is left."""
        source = self.candidates[SOURCE]
        self.evidence = vetoes.of_evidence(self.probes, None, self.config)
        for name, candidate in self.candidates.items():
            if isinstance(candidate, SegmentationNet) and isinstance(source, SegmentationNet):
                self.vetoes[name] += vetoes.of_weights(candidate, source, self.config)
            if name != SOURCE:
                self.vetoes[name] += [words for words in (veto(name) for veto in more_vetoes) if words is not None]
        if not self.evidence:
            self._collect_ballots()

    def _collect_ballots(self) -> None:
        taken: dict[int, Ballot] = {}  # before the first swap, the deployed network is the source
        for name in self.standing:
            candidate = self.candidates[name]
            if id(candidate) not in taken:
                predict, config = self._predict(candidate), self.config
                taken[id(candidate)] = votes.collect(predict, self.probes, pixels=config.pixels, seed=config.seed)
            self.ballots[name] = taken[id(candidate)]
        if SOURCE not in self.ballots:
            self.evidence.append("the source itself is ruled out, there is nothing to hold candidates against")
            return
        source = self.ballots[SOURCE]
        self.evidence += vetoes.of_evidence(self.probes, source, self.config)
        # a wall of one class says nothing about a histogram; a candidate that is not finite is out all the same
        for name, ballot in self.ballots.items():
            words = vetoes.of_predictions(ballot, source, self.config)
            self.vetoes[name] += [w for w in words if not self.evidence or "finite" in w]
        judged = {name: self.ballots[name] for name in self.standing if name in self.ballots}
        consensus = votes.ensemble(judged, held=(SOURCE, DEPLOYED))
        self.scores = {name: votes.scores(ballot, consensus) for name, ballot in judged.items()}

    def measure(self, labelled: LabelledProbes) -> None:
        """Take the mIoU of who is left on labelled probes."""
        for name in self.standing:
            counts = ConfusionMatrix(len(self.manifest.classes), self.manifest.classes.ignore_id)
            predict = self._predict(self.candidates[name])
            frames, labels = (torch.split(part, _LABELLED_BATCH) for part in (labelled.frames, labelled.labels))
            for x, label in zip(frames, labels, strict=True):
                with torch.no_grad():
                    logits = F.interpolate(predict(x.float()), size=label.shape[1:], mode="bilinear")
                counts.update(logits.argmax(1).cpu().numpy(), label.numpy())
            self.miou[name] = counts.miou()

    def best_by_labels(self, rivals: Sequence[str], held: str) -> tuple[str, str]:
        """Return the winner on labelled probes and why."""
        best = max(rivals, key=lambda name: self.miou[name], default=held)
        gain = self.miou[best] - self.miou[held]
        if gain > self.config.labelled:
            return best, f"{best} is better than {held} by {gain:.3f} mIoU on labelled probes"
        return held, f"no candidate is better than {held} by {self.config.labelled:g} mIoU on labelled probes"

    def best_by_votes(self, rivals: Sequence[str], held: str) -> tuple[str, str]:
        """Return the winner of the votes and why: of those that may win, who is first in the sum of its ranks."""
        if held not in self.scores:
            return held, f"{held} could not be judged"
        self.votes = {name: self._votes(name, held) for name in rivals}
        ways: tuple[tuple[Callable[[str], bool], str], ...] = (
            (self._surer, "{best} is surer and more diverse than {held}, and no vote is against it"),
            (
                lambda name: self._sided(name, held),
                "the candidates' ensemble sides with {best} against {held}, and it is steadier",
            ),
            (self._is_home, "most votes are for going back to the {best} from {held}, and none is against it"),
        )
        for may_win, why in ways:
            winners = [name for name in rivals if may_win(name)]
            if winners:
                best = min(winners, key=lambda name: self._rank_sum(name, winners))
                return best, why.format(best=best, held=held)
        if not rivals:
            return held, "no other candidate is left"
        words = (
            f"{name} lacks {', '.join(vote for vote, says in self.votes[name].items() if says != 'for')}"
            for name in rivals
        )
        return held, "; ".join(words)

    def _votes(self, name: str, held: str) -> dict[str, str]:
        mine, theirs, config = self.scores[name], self.scores[held], self.config
        floor = config.agreement * float(theirs["agreement"].mean())
        found = {"agreement": "for" if float(mine["agreement"].mean()) >= floor else "against"}
        for vote in ("consistency", "information", "nuclear"):
            gain = mine[vote] - theirs[vote]
            mean, error = float(gain.mean()), float(gain.std() / len(gain) ** 0.5)
            says = "for" if mean - error > getattr(config, vote) else "against" if mean + error < 0 else "abstains"
            found[vote] = says
        return found

    def _surer(self, name: str) -> bool:
        """Whether a candidate gains where a burst gains, and nothing speaks against it.

        A gain of consistency is not asked for: fog and swapped colours shake a good network no less than a bad one.
        """
        says = self.votes[name]
        return says["information"] == says["nuclear"] == "for" and "against" not in says.values()

    def _sided(self, name: str, held: str) -> bool:
        """Whether the ensemble is with a candidate against the deployed network, and nothing speaks against it."""
        mine, theirs = ({vote: float(value.mean()) for vote, value in self.scores[n].items()} for n in (name, held))
        return (
            "against" not in self.votes[name].values()
            and mine["agreement"] > self.config.sided * theirs["agreement"]
            and mine["consistency"] > theirs["consistency"] + self.config.steady
        )

    def _is_home(self, name: str) -> bool:
        """Whether to go back to the source: what there is to fall back to needs one vote less."""
        says = self.votes[name]
        found = [says[vote] for vote in ("consistency", "information", "nuclear")]
        return name == SOURCE and found.count("for") >= 2 and "against" not in says.values()

    def _rank_sum(self, name: str, among: Sequence[str]) -> int:
        means = self.means()
        return sum(sum(means[other][vote] > means[name][vote] for other in among) for vote in self.votes[name])

    def means(self) -> dict[str, dict[str, float]]:
        """Return the mean of every score of every judged candidate."""
        found = {name: {key: float(value.mean()) for key, value in row.items()} for name, row in self.scores.items()}
        for name, miou in self.miou.items():
            found.setdefault(name, {})["miou"] = miou
        return found

    def _predict(self, candidate: Candidate) -> Predict:
        if not isinstance(candidate, SegmentationNet):
            return candidate
        net, device = candidate, next(candidate.parameters()).device
        normaliser = Normaliser(self.manifest.preprocessing, device)

        def predict(frames: Tensor) -> Tensor:
            training = [module for module in net.modules() if module.training]
            net.eval()
            logits: Tensor = net(normaliser(frames.to(device))).logits
            for module in training:
                module.training = True
            return logits

        return predict

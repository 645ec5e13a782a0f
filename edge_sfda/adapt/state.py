"""Everything that adaptation needs to go on bit for bit, as tensors and JSON values, and their file.

Each part of the method gives and takes its own `State`; `State.of` puts parts together under names. The file is a
checkpoint like any other (atomic, hash-checked, no pickle), marked so that it cannot be mistaken for a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sfda import checkpoint
from edge_sfda.errors import CheckpointError
from edge_sfda.manifest import Manifest

_KIND = "resume"


@dataclass(frozen=True, eq=False)
class State:
    """Tensors and JSON values by dotted names; the tensors may be live, so save or copy them before the next step."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(**parts: State) -> State:
        """Return one state of several, each under its name."""
        return State(
            {f"{name}.{key}": value for name, part in parts.items() for key, value in part.tensors.items()},
            {f"{name}.{key}": value for name, part in parts.items() for key, value in part.facts.items()},
        )

    def joined(self, **parts: State) -> State:
        """Return this state with more parts."""
        more = State.of(**parts)
        return State({**self.tensors, **more.tensors}, {**self.facts, **more.facts})

    def part(self, name: str) -> State:
        """Return what `of` was given under `name`; empty where there is nothing."""
        start = f"{name}."
        return State(
            {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)},
            {key.removeprefix(start): value for key, value in self.facts.items() if key.startswith(start)},
        )

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, or raise CheckpointError naming the one that is missing."""
        if name not in self.tensors:
            raise CheckpointError(f"the saved state has no {name}; it is of another version or method, start anew")
        return self.tensors[name]

    def fact(self, name: str) -> Any:
        """Return a JSON value, or raise CheckpointError naming the one that is missing."""
        if name not in self.facts:
            raise CheckpointError(f"the saved state has no {name}; it is of another version or method, start anew")
        return self.facts[name]


def save(path: str | Path, state: State, manifest: Manifest) -> None:
    """Write a state; what was in the file is replaced at once and whole.

    Args:
        path: as a rule `*.safetensors`.
        state: of a method or session.
        manifest: of the network that the adaptation started from.

    Raises:
        DivergenceError: a tensor is not finite.
        CheckpointError: a value is none that JSON has.
        WriteError: the file cannot be written; an old one is untouched.
    """
    checkpoint.save(path, dict(state.tensors), manifest.derive(kind=_KIND, facts=dict(state.facts)))


def load(path: str | Path, manifest: Manifest) -> State:
    """Read what `save` wrote.

    Raises:
        CheckpointError: missing or damaged, no saved state, or one of an adaptation of another network.
    """
    saved = checkpoint.load(path)
    provenance = saved.manifest.provenance
    if provenance.get("kind") != _KIND or not isinstance(provenance.get("facts"), dict):
        raise CheckpointError(f"{path} is no saved state of an adaptation; give the state.safetensors of a run")
    if provenance.get("parent") != manifest.tensors_sha256:
        raise CheckpointError(f"{path} belongs to an adaptation of another network; give --model as it was given then")
    return State(saved.state, provenance["facts"])


def of_module(module: nn.Module) -> State:
    """Return parameters and buffers."""
    return State(module.state_dict())


def into_module(module: nn.Module, state: State) -> None:
    """Copy parameters and buffers into those of `module`, which stay the same tensors, shared ones too.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        module.load_state_dict(dict(state.tensors))
    except RuntimeError as error:
        words = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"the saved state does not fit {type(module).__name__}: {words}; start anew") from error


def of_optimizer(optimizer: torch.optim.Optimizer) -> State:
    """Return the moments of each parameter by its place; the rates belong to who sets them."""
    return State(
        {
            f"{index}.{key}": value
            for index, (parameter, _) in enumerate(_parameters(optimizer))
            for key, value in optimizer.state[parameter].items()
        }
    )


def into_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Set the moments. (`load_state_dict` would also replace a rate that is a tensor, and cut off whoever sets it.)

    Raises:
        CheckpointError: a moment's shape is not its parameter's.
    """
    optimizer.state.clear()
    for index, (parameter, counts_on_device) in enumerate(_parameters(optimizer)):
        saved = state.part(str(index)).tensors
        for key, value in saved.items():
            if key == "step":
                optimizer.state[parameter][key] = value.to(parameter.device if counts_on_device else "cpu", copy=True)
                continue
            if value.shape != parameter.shape:
                raise CheckpointError(
                    f"the saved state has a moment of shape {tuple(value.shape)} for a parameter of shape "
                    f"{tuple(parameter.shape)}; it is of another network or settings, start anew"
                )
            moment = torch.zeros_like(
                parameter, requires_grad=False
            )  # of the parameter's strides, which sums depend on
            optimizer.state[parameter][key] = moment.copy_(value)


def of_draws(rng: np.random.Generator) -> State:
    """Return the state of a generator's draws."""
    return State(facts={"random": rng.bit_generator.state})


def into_draws(rng: np.random.Generator, state: State, *, whose: str) -> None:
    """Set the state of a generator's draws.

    Args:
        rng: the generator.
        state: what `of_draws` returned.
        whose: draws they are, for the message.

    Raises:
        CheckpointError: it is of another kind of generator, or damaged.
    """
    try:
        rng.bit_generator.state = state.fact("random")
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the saved state of the {whose} draws cannot be read ({error}); start anew") from error


def _parameters(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, bool]]:
    """Return each parameter with whether its count of steps lies on its device."""
    return [
        (parameter, bool(group.get("fused") or group.get("capturable")))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]

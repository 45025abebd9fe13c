"""The decisions of a search as data: layer by layer what was tried, what came of it, what was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import CheckpointError
from secateur.files import write_json

VERSION = 1


@dataclass
class Try:
    """One ratio of a layer.

    Attributes:
        ratio: share of the layer's filters that goes.
        removed: how many of its units that is.
        losses: task -> the sum over the batches that were run.
        batches: how many these were; fewer than all where a sum was above its limit before the end.
        passed: no task's loss exceeds its limit.
    """

    ratio: float
    removed: int
    losses: dict[str, float]
    batches: int
    passed: bool


@dataclass
class LayerDecision:
    """One layer.

    Attributes:
        group: its name.
        units: how many it has at its turn.
        threshold: T, how much every loss may rise over its base.
        limits: task -> base * (1 + T), as a sum over all batches.
        tried: in the order of the ratios.
        ratio: the chosen one, 0 for none.
        losses: task -> the sum over all batches with what was chosen.
        chunks: the units that go, in their order; units of one chunk go together.
        macs_saved: by this cut, of the network as it stood.
        score: the losses' relative rise over the share of the MACs saved; the smaller, the better; None: none saved.
        kept: among the layers whose cut is kept in the end.
    """

    group: str
    units: int
    threshold: float
    limits: dict[str, float]
    tried: list[Try] = field(default_factory=list)
    ratio: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    chunks: list[list[int]] = field(default_factory=list)
    macs_saved: int = 0
    score: float | None = None
    kept: bool = False


@dataclass
class Round:
    """One walk through all layers.

    Attributes:
        base: task -> the sum of its losses over all batches, in front of the round.
        factor: lambda.
        order: the layers, as they are visited.
        layers: those that were decided.
        bound: task -> what the product of all (1 + T) allows.
        final: task -> the sum with the cuts that are kept; empty until then.
        removed: the units that are gone after the round.
    """

    base: dict[str, float]
    factor: float
    order: list[str]
    layers: list[LayerDecision] = field(default_factory=list)
    bound: dict[str, float] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    removed: list[int] | None = None


@dataclass
class Decisions:
    """All rounds, and what they were asked for.

    Attributes:
        asked: settings; with others these decisions can't be gone on with.
        batches: how many batches the losses are sums over.
        rounds: one after the other.
    """

    asked: dict[str, Any]
    batches: int = 0
    rounds: list[Round] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        write_json(path, {"version": VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Decisions:
        """What was saved.

        Raises:
            CheckpointError: the file is damaged or of another version.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("version") != VERSION:
                raise ValueError("another version")
            rounds = [
                Round(**{**each, "layers": [_layer(layer) for layer in each["layers"]]}) for each in values["rounds"]
            ]
            return cls(**{**values, "rounds": rounds})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} holds no decisions that can be gone on with ({error}); remove it to begin again"
            ) from error

    def __str__(self) -> str:
        """The table: a line for every ratio that was tried. Losses and limits are means over the batches."""
        tasks = sorted(self.rounds[0].base) if self.rounds else []
        head = ["layer", "ratio", "units", *(f"{task} (limit)" for task in tasks), "chosen"]
        rows = [head]
        for number, each in enumerate(self.rounds, start=1):
            rows.append([f"round {number}", "", "", *(f"{_mean(each.base, t, self.batches)}" for t in tasks), "base"])
            for layer in each.layers:
                for tried in layer.tried:
                    losses = [
                        f"{_mean(tried.losses, task, tried.batches)} ({_mean(layer.limits, task, self.batches)})"
                        for task in tasks
                    ]
                    chosen = tried.ratio == layer.ratio
                    verdict = ("yes" if layer.kept else "dropped") if chosen else ("" if tried.passed else "too much")
                    rows.append([layer.group, f"{tried.ratio:.2f}", str(tried.removed), *losses, verdict])
            if each.final:
                rows.append(["kept", "", "", *(_mean(each.final, task, self.batches) for task in tasks), ""])
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def _layer(values: Mapping[str, Any]) -> LayerDecision:
    return LayerDecision(**{**values, "tried": [Try(**each) for each in values["tried"]]})


def _mean(sums: Mapping[str, float], task: str, batches: int) -> str:
    return f"{sums[task] / max(1, batches):.4g}"

"""Everything that a recipe names, opened and checked: data, network, plan, method, budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.allocate import Guard
from secateur.costs import agreed, cost, table_of
from secateur.data import Augment, Loader, Normalise, SegmentationDataset, class_weights, make_loader, open_dataset
from secateur.errors import MethodError, ModelError, PlanError, RecipeError, SecateurError, nearest
from secateur.methods import get_method
from secateur.metrics import main_logits
from secateur.pipeline.from_recipe import fresh_network, inference_of
from secateur.pipeline.schedule import Asked, on_the_way
from secateur.pipeline.tasks import task_losses
from secateur.plan import Plan
from secateur.pruner import Pruner, Result
from secateur.recipe import Recipe
from secateur.surgery import apply
from secateur.training import Inference, seed_everything
from secateur.training.evaluate import device_of
from secateur.training.optimize import auxiliary_weights, segmentation_loss
from secateur.training.pretrained import load_pretrained
from secateur.training.weights import load_weights

__all__ = ["Inputs"]


class Inputs:
    """What a recipe names. Opening checks all of it and writes nothing.

    Attributes:
        data: the splits "train" and "val".
        method: the method's class; None for the unpruned control.
        method_options: all its options, defaults included; a seed that is not given is `run.seed`.
        start_plan: the plan that a fresh network is cut to first; None for none.
        example: one image (1, 3, H, W) of noise.

    Args:
        recipe: what to open.
        device: where latency is measured, if that is limited.

    Raises:
        DataError, ModelError, MethodError, RecipeError, PlanError, CheckpointError: something is wrong; says what.
        NothingPrunableError, BudgetError: this network and method can't reach the budget.
    """

    def __init__(self, recipe: Recipe, device: torch.device | None = None) -> None:
        self.recipe = recipe
        self.device = device or torch.device("cpu")
        # the quick checks first
        self.method = None if recipe.method.name == "none" else get_method(recipe.method.name)
        self.method_options = self._resolve_options()
        self._check_stages()
        self.start_plan = self._read_plan()
        splits = {"train": recipe.data.train_split, "val": recipe.data.val_split}
        self.data = {role: self._open_data(split, role) for role, split in splits.items()}
        height, width = recipe.data.input_size
        self.example = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        self._check_guard()
        self._check_network()
        self._check_cut()
        for data in self.data.values():
            data.check()

    def network(self, whole: bool = False) -> nn.Module:
        """The network before its training, the same every time; cut to `model.plan` unless it is wanted `whole`."""
        settings = self.recipe.model
        seed_everything(self.recipe.run.seed)
        model = fresh_network(settings, len(self.data["train"].classes))
        if settings.pretrained is not None:
            load_pretrained(model, settings.pretrained)
        return model if whole or self.start_plan is None else apply(model, self.start_plan, inplace=True)

    def pruner(self, model: nn.Module, data: Iterable[tuple[Tensor, Tensor]] | None = None) -> Pruner:
        """The recipe's method, attached to `model`, where that is; told the budget if it chooses while training.

        Args:
            model: the network.
            data: instead of the training images as they are, for methods that make passes over data.
        """
        assert self.method is not None
        material: dict[str, Any] = {}
        if self.method.needs_data or self.method.takes_data:
            weights = None if self.recipe.train.class_weights == "none" else self.class_weights.to(device_of(model))
            material = {
                "data": data or Passes(self.loader("train", self.recipe.train.batch_size, training=True)),
                "loss": partial(segmentation_loss, class_weights=weights, weights=auxiliary_weights(model)),
                "classes": self.data["train"].classes,
            }
            if self.method.by_task:
                material["loss"] = partial(task_losses, class_weights=weights)
        example = self.example.to(device_of(model))
        pruner = Pruner(model, example, method=self.recipe.method.name, **material, **self.method_options)
        budget = self.recipe.budget
        if self.method.decides and not budget.by_method:
            pruner.aim(
                budget.pruning_ratio,
                budget.limits,
                min_keep=budget.min_keep,
                round_to=budget.round_to,
                protect=budget.protect,
                ratios=budget.ratios,
            )
        return pruner

    def to_be_cut(self, model: nn.Module) -> nn.Module:
        """The network where and as its latency is measured, if the budget limits that."""
        if self.recipe.budget.latency is None:
            return model
        if self.recipe.run.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.to(self.device)

    def cut(self, pruner: Pruner, step: int | None = None, guard: Guard | None = None) -> Result:
        """The cut that the recipe's budget asks for, or the first, second ... of its schedule."""
        if pruner.method.decides:
            return pruner.finish(guard=guard)
        budget = self.recipe.budget
        asked = Asked(budget.pruning_ratio, budget.limits, budget.ratios)
        cut = pruner.finish
        if step is not None:
            asked, cut = on_the_way(asked, self.recipe.schedule, step, self._whole), pruner.step
        return cut(
            pruning_ratio=asked.pruning_ratio,
            budget=asked.budget,
            scope=budget.scope,
            min_keep=budget.min_keep,
            round_to=budget.round_to,
            protect=budget.protect,
            ratios=asked.ratios,
            guard=guard,
        )

    def _whole(self, resource: str) -> float:
        """What the unpruned network has of a resource; its latency is measured."""
        network = self.to_be_cut(self.network())
        if resource != "latency":
            return float(getattr(cost(network, self.example), resource))
        return agreed(lambda: table_of(None).stopwatch.network(network, self.example.to(device_of(network))))

    def loader(
        self,
        split: str,
        batch_size: int,
        training: bool = False,
        augment: bool = False,
        rank: int = 0,
        of: int = 1,
        device: torch.device | None = None,
    ) -> Loader:
        """Batches of a split, this process's part of them. In training all are cropped, if there is a crop; of images
        that keep their sizes, the others come one by one. Those that are augmented may be so on the `device`."""
        data, run = self.recipe.data, self.recipe.run
        change, there = None, None
        if augment:
            auto = data.transforms == "auto" and device is not None and device.type == "cuda" and data.size is not None
            there = device if auto or data.transforms == "device" else None
            change = Augment(
                data.scale, data.rotate, data.translate, data.flip, data.crop, data.blur, self.normalise.border
            )
        elif training and data.crop is not None:
            change = Augment.only_crop(data.crop, self.normalise.border)
        return make_loader(
            self.data[split],
            batch_size if training or not self._differ_in_size else 1,
            training=training,
            seed=run.seed,
            workers=data.workers,
            augment=change,
            channels_last=run.channels_last,
            rank=rank,
            world_size=of,
            normalise=self.normalise,
            device=there,
        )

    @property
    def normalise(self) -> Normalise:
        """What is done to colours."""
        return Normalise(self.recipe.data.mean, self.recipe.data.std)

    @property
    def inference(self) -> Inference:
        """How networks are asked about the images that they are evaluated on."""
        return inference_of(self.recipe)

    @cached_property
    def class_weights(self) -> Tensor:
        """Weights of the classes in the loss, (K,)."""
        return class_weights(self.data["train"], "inverse_log")

    def _resolve_options(self) -> dict[str, Any]:
        method = self.recipe.method
        if self.method is None:
            if method.options:
                raise MethodError(f"method.name=none has no options; {', '.join(method.options)} can't be given.")
            return {}
        options = {name: default for name, (default, _) in self.method.options_help().items()}
        if "seed" in options:
            options["seed"] = self.recipe.run.seed
        self.method.create(**method.options)  # refuses unknown names and wrong values
        return {**options, **method.options}

    @property
    def _differ_in_size(self) -> bool:
        """Evaluated images or labels may do, and do not fit into one batch then."""
        return self.recipe.data.size is None or self.recipe.evaluate.full_size

    def _open_data(self, split: str, role: str) -> SegmentationDataset:
        data, own_labels = self.recipe.data, role == "val" and self.recipe.evaluate.full_size
        options = {"length": data.length, **data.options} if data.name == "streets" else data.options
        unreadable = data.unreadable if role == "train" else "stop"
        return open_dataset(
            data.name,
            data.root,
            split,
            data.size,
            data.limit,
            own_labels=own_labels,
            unreadable=unreadable,
            **options,
        )

    def _read_plan(self) -> Plan | None:
        path = self.recipe.model.plan
        if path is None:
            return None
        if self.method is not None:
            raise RecipeError(
                "model.plan is for training the pruned widths from scratch, with method.name=none; "
                f"it can't be combined with method.name={self.recipe.method.name}."
            )
        if not path.is_file():
            raise PlanError(f"model.plan: there is no file {path}.")
        return Plan.from_json(path.read_text(encoding="utf-8", errors="replace"))

    def _check_network(self) -> None:
        """One forward pass, so that a wrong size or head is found now and not after loading all images."""
        model, classes = self.network(), len(self.data["train"].classes)
        if self.recipe.model.weights is not None:
            load_weights(model, self.recipe.model.weights)
        name = self.recipe.model.name
        try:
            with torch.no_grad():
                output = model.eval()(self.example)
        except SecateurError:
            raise
        except Exception as error:  # whatever a user's own network may raise
            raise ModelError(
                f"The network {name} fails on an image of shape {tuple(self.example.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        found = main_logits(output, self.recipe.data.input_size).shape[1]
        if found != classes:
            raise ModelError(
                f"The network {name} has {found} classes, the data set {self.recipe.data.name} has {classes}."
            )

    def _check_cut(self) -> None:
        """Cuts an untrained network to the budget, so that an hour of training isn't spent on what can't be had."""
        if self.method is None:
            return
        noise = [(self.example, torch.zeros(1, *self.recipe.data.input_size, dtype=torch.long))]
        pruner = self.pruner(self.to_be_cut(self.network()), data=noise)
        if self.method.prunes and not self.method.decides:
            if self.recipe.schedule.steps > 1:
                self.cut(pruner, step=1)
            self.cut(pruner)
        pruner.close()

    def _check_guard(self) -> None:
        """The guarded classes are those of the data."""
        classes = self.data["val"].classes
        for name in self.recipe.guard.classes:
            if name not in classes:
                raise RecipeError(f"guard.classes: {self.recipe.data.name} has no {name!r}; {nearest(name, classes)}.")

    def _check_stages(self) -> None:
        """Methods that choose while training, or gate, need that training, and one cut at most."""
        if self.method is None or (self.method.prunes and not self.method.decides):
            return
        name, does = self.method.name, "chooses channels" if self.method.prunes else "gates channels"
        if self.recipe.sparsify.epochs == 0 and (self.method.needs_training or not self.method.prunes):
            raise RecipeError(f"method.name={name} {does} while training: give sparsify.epochs.")
        if self.recipe.schedule.steps > 1:
            when = "once" if self.method.prunes else "and removes none"
            raise RecipeError(f"method.name={name} {does} {when}: expected schedule.steps=1.")
        if not self.method.prunes and self.recipe.run.precision == 16:
            raise RecipeError(
                f"method.name={name} adds to gradients in the backward pass, which float16's gradient scaling would "
                "shrink: expected run.precision=bf16 or 32."
            )


class Passes:
    """The images of a loader in the same order in every pass."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.loader.epoch(0))

"""The sections and keys of a recipe: types, bounds, defaults and one line on each.

Values are strict: `epochs: "20"` and `epochs: 20.0` are refused, so that a recipe says what it means. A YAML list
becomes a tuple, a text a path; nothing else is converted. All sections are immutable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

BUDGET_KEYS = ("params", "macs", "paper_flops", "latency", "pruning_ratio")
AMOUNTS = (*BUDGET_KEYS, "by_method")  # of which exactly one is given


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_path(value: Any) -> Any:
    return Path(value).expanduser() if isinstance(value, str) and value else value


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Size = Annotated[tuple[Positive, Positive], BeforeValidator(_as_tuple)]
PositiveFloat = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[PositiveFloat, PositiveFloat], BeforeValidator(_as_tuple)]
Colour = Annotated[tuple[float, float, float], BeforeValidator(_as_tuple)]
Deviation = Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], BeforeValidator(_as_tuple)]
Name = Annotated[str, Field(min_length=1)]
File = Annotated[Path, BeforeValidator(_as_path)]
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["cosine", "poly", "constant"]
ClassWeights = Literal["none", "inverse_log"]
Rate = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: immutable, strict, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    """The data set, and how training images are varied."""

    name: Literal["streets", "camvid", "camvid32", "cityscapes", "ade20k", "voc2012", "cifar10", "folder"] = Field(
        default="streets",
        description="streets (drawn on the fly), camvid, camvid32, cityscapes, ade20k, voc2012, cifar10 or folder",
    )
    root: File | None = Field(
        default=None, description="where the data set is on disk: a folder, or the YAML of a folder; null for streets"
    )
    options: dict[str, Any] = Field(default={}, description="further arguments of the data set, as in {sbd: data/sbd}")
    train_split: Name = Field(default="train", description="split that is trained on")
    val_split: Name = Field(default="val", description="split that is evaluated")
    size: Size | None = Field(
        default=(180, 240),
        description="[height, width] in pixels that images and labels are brought to; null: each its own",
    )
    limit: Positive | None = Field(
        default=None, description="only the first n samples of each split, for trying things"
    )
    mean: Colour = Field(default=(0.485, 0.456, 0.406), description="mean of red, green and blue in [0, 1]; ImageNet's")
    std: Deviation = Field(default=(0.229, 0.224, 0.225), description="their standard deviations, that they come to 1")
    workers: Count = Field(default=1, description="processes that load data; 0 loads in the main process")
    unreadable: Literal["stop", "skip"] = Field(
        default="stop", description="training image that can't be read: stop, or skip: another takes its place, counted"
    )
    scale: Range = Field(default=(0.75, 1.5), description="[smallest, largest] random zoom while training")
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(
        default=10.0, description="largest random rotation, in degrees"
    )
    translate: Share = Field(default=0.1, description="largest random shift, as a share of the side")
    flip: Share = Field(default=0.5, description="probability of a left-right flip")
    crop: Size | None = Field(
        default=None, description="[height, width] cut out of them while training, with void around; null: no crop"
    )
    blur: Share = Field(default=0.0, description="probability of a Gaussian blur over 5x5 pixels")
    transforms: Literal["auto", "cpu", "device"] = Field(
        default="auto", description="where these changes are made: cpu (workers), device (batches) or auto: on the GPU"
    )
    length: Positive = Field(default=200, description="number of training images to draw (streets)")

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Data:
        if self.scale[0] > self.scale[1]:
            raise PydanticCustomError("at_key", "expected [smallest, largest], got the larger first", {"key": "scale"})
        return self

    @model_validator(mode="after")
    def _training_images_have_one_size(self) -> Data:
        if self.size is None and self.crop is None:
            raise PydanticCustomError(
                "at_key", "with size: null images differ in size; expected the [height, width] to crop", {"key": "crop"}
            )
        return self

    @model_validator(mode="after")
    def _changed_batches_have_one_size(self) -> Data:
        if self.size is None and self.transforms == "device":
            raise PydanticCustomError(
                "at_key", "with size: null images differ in size; expected auto or cpu", {"key": "transforms"}
            )
        return self

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what the network is trained on, and of the image that its costs are counted for."""
        size = self.crop or self.size
        assert size is not None
        return size


class Model(Section):
    """The network, and what it starts from."""

    name: Annotated[str, Field(min_length=1)] = Field(
        default="unet",
        description="registered network (secateur models), package.module:factory or path/to/file.py:factory",
    )
    width: Positive | None = Field(default=None, description="channels of the first stage; null: the network's own")
    options: dict[str, Any] = Field(default={}, description="further arguments of the network's factory")
    pretrained: File | None = Field(
        default=None, description="a .safetensors of torchvision's resnet50 or resnet101, for the trunk"
    )
    weights: File | None = Field(default=None, description="a .safetensors to start from (a trained parent)")
    plan: File | None = Field(
        default=None, description="a plan.json: the fresh network is cut to these widths before training"
    )

    @model_validator(mode="after")
    def _one_start(self) -> Model:
        if self.pretrained is not None and self.weights is not None:
            raise PydanticCustomError(
                "at_key", "weights are those of the whole network; expected one of the two", {"key": "pretrained"}
            )
        return self


class Method(Section):
    """The pruning method."""

    name: Annotated[str, Field(min_length=1)] = Field(
        default="cap", description="pruning method (secateur methods), or none: the unpruned control"
    )
    options: dict[str, Any] = Field(default={}, description="options of the method (secateur methods lists them)")


class Budget(Section):
    """What may remain (fraction of the original, or absolute if above 1), or the share of the units that goes."""

    params: PositiveFloat | None = Field(
        default=None, description="parameters that remain: fraction, or absolute if above 1"
    )
    macs: PositiveFloat | None = Field(
        default=None, description="multiply-accumulates that remain: fraction, or absolute"
    )
    paper_flops: PositiveFloat | None = Field(
        default=None, description="FLOPs as the CAP paper counts: fraction, or absolute"
    )
    latency: PositiveFloat | None = Field(
        default=None, description="time of one image, measured here: fraction, or milliseconds if above 1"
    )
    pruning_ratio: Share | None = Field(default=None, description="share of the units that is removed, 0 to 1")
    by_method: bool = Field(
        default=False, description="the options of a method that chooses while training say how much goes, not these"
    )
    min_keep: Share = Field(default=0.1, description="share of every group's units that is kept whatever the budget")
    round_to: Positive = Field(default=1, description="kept channels are a multiple of this")
    scope: Literal["global", "group", "cost"] = Field(
        default="global",
        description="how units are ranked: global, in every group, or per cost saved; while training always group",
    )

    protect: list[str] = Field(
        default_factory=list, description="modules, or patterns such as decoder.*, whose channels all stay"
    )
    ratios: dict[str, Share] = Field(
        default_factory=dict, description="the same: share of its channels that goes, whatever the rest does"
    )

    @property
    def limits(self) -> dict[str, float] | None:
        """The resource that is limited and its limit, as `Pruner.finish(budget=...)` takes it; None for a ratio."""
        return {key: value for key in BUDGET_KEYS[:-1] if (value := getattr(self, key)) is not None} or None

    @model_validator(mode="after")
    def _at_most_one(self) -> Budget:
        given = [key for key in BUDGET_KEYS if getattr(self, key) is not None]
        given += ["by_method"] if self.by_method else []
        if len(given) > 1:
            raise PydanticCustomError(
                "budget", "{given} are given; expected exactly one of them", {"given": " and ".join(given)}
            )
        return self


class Train(Section):
    """Ordinary training of the unpruned network."""

    epochs: Count = Field(default=20, description="passes over the training images; 0 skips the stage")
    batch_size: Positive = Field(default=4, description="images in a batch, of each device")
    accumulate: Positive = Field(default=1, description="batches whose gradients make up one step")
    optimizer: Optimizer = Field(default="adamw", description="sgd, adam or adamw")
    lr: Rate = Field(default=3e-3, description="highest learning rate")
    momentum: Momentum = Field(default=0.9, description="momentum (sgd)")
    weight_decay: NotNegative = Field(default=1e-4, description="weight decay")
    schedule: Schedule = Field(default="cosine", description="learning rate over the stage: cosine, poly or constant")
    warmup_epochs: NotNegative = Field(default=1.0, description="epochs of linear warm-up")
    power: PositiveFloat = Field(default=0.9, description="exponent of the poly schedule")
    class_weights: ClassWeights = Field(
        default="inverse_log", description="weight of a class in the loss: none or inverse_log"
    )
    ema: Decay = Field(
        default=0.0, description="decay of a moving average of the weights, as 0.999, that replaces them; 0: none"
    )
    evaluate_every: Positive = Field(
        default=5, description="epochs between evaluations; the last epoch is always evaluated"
    )


class _Later(Section):
    """The keys of `Train`, where null means 'as in train'."""

    epochs: Count = Field(default=0, description="passes over the training images; 0 skips the stage")
    batch_size: Positive | None = Field(
        default=None, description="images in a batch, of each device; null: as in train, like all below"
    )
    accumulate: Positive | None = Field(default=None, description="batches whose gradients make up one step")
    optimizer: Optimizer | None = Field(default=None, description="sgd, adam or adamw")
    lr: Rate | None = Field(default=None, description="highest learning rate")
    momentum: Momentum | None = Field(default=None, description="momentum (sgd)")
    weight_decay: NotNegative | None = Field(default=None, description="weight decay")
    schedule: Schedule | None = Field(default=None, description="cosine, poly or constant")
    warmup_epochs: NotNegative | None = Field(default=None, description="epochs of linear warm-up")
    power: PositiveFloat | None = Field(default=None, description="exponent of the poly schedule")
    class_weights: ClassWeights | None = Field(default=None, description="none or inverse_log")
    ema: Decay | None = Field(default=None, description="decay of a moving average of the weights; 0: none")
    evaluate_every: Positive | None = Field(default=None, description="epochs between evaluations")


class Sparsify(_Later):
    """Training that makes the network sparse before the cut; ordinary training for methods that need none."""

    epochs: Count = Field(default=8, description="passes over the training images; 0 skips the stage")


class Finetune(_Later):
    """Training of the pruned network."""

    epochs: Count = Field(default=12, description="passes over the training images; 0 skips the stage")
    lr: Rate | None = Field(default=None, description="highest learning rate; null: a third of train.lr")
    schedule: Literal["cosine", "poly", "constant", "rewind"] | None = Field(  # type: ignore[assignment]
        default=None, description="cosine, poly, constant, or rewind: as in the last epochs of train, train.lr included"
    )
    distill: Share = Field(default=0.0, description="share of the loss that the unpruned network's predictions have")
    temperature: PositiveFloat = Field(default=1.0, description="temperature of the distillation")


class CutSchedule(Section):
    """Several cuts on the way to the budget, with training in front of each but the first."""

    steps: Positive = Field(default=1, description="number of cuts; 1 cuts to the budget at once")
    epochs: Count = Field(default=2, description="passes over the training images between two cuts, as in finetune")
    kind: Literal["linear", "geometric", "cubic"] = Field(
        default="linear", description="how what remains falls from cut to cut: linear, geometric or cubic"
    )


class GuardSection(Section):
    """What classes may lose right after the cut, at most; groups that hurt them give less, the others more."""

    classes: dict[str, NotNegative] = Field(
        default_factory=dict, description="class: points of IoU that it may lose, as in {Pedestrian: 1.0}"
    )
    miou: NotNegative | None = Field(default=None, description="points that the mIoU may lose; null: any number")
    images: Positive | None = Field(
        default=None, description="validation images that it is checked on, spread evenly; null: all"
    )
    recalibrate_batches: Count = Field(
        default=10, description="batches that re-estimate the BN statistics of every candidate before it is checked"
    )

    @property
    def limits(self) -> dict[str, float]:
        """Score -> how much it may lose, as a fraction; "mIoU" and classes."""
        whole = {} if self.miou is None else {"mIoU": self.miou}
        return {name: points / 100 for name, points in {**whole, **self.classes}.items()}


class Compensate(Section):
    """Right after every cut, what the removed channels did is carried over into the weights that stay."""

    mode: Literal["none", "mean", "least_squares"] = Field(
        default="none", description="none, mean (into biases) or least_squares (into kernels, too)"
    )
    batches: Positive = Field(default=50, description="training batches that it is measured on, not augmented")


class Evaluate(Section):
    """What is measured."""

    batch_size: Positive = Field(default=4, description="images per step")
    recalibrate_batches: Count = Field(
        default=50, description="batches that re-estimate the BN statistics; 0 turns it off"
    )
    latency_repeats: Count = Field(default=20, description="timed forward passes of one image; 0 measures no latency")
    pictures: Count = Field(default=4, description="validation images in the picture of predictions")
    mode: Literal["whole", "slide"] = Field(
        default="whole", description="images as a whole, or slide: in windows, whose class probabilities are averaged"
    )
    window: Size | None = Field(default=None, description="[height, width] of the windows; null: data.crop")
    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=1 / 3, description="share of a window that the next one covers as well"
    )
    scales: Annotated[list[PositiveFloat], Field(min_length=1)] = Field(
        default_factory=lambda: [1.0], description="factors that images are resized by, all averaged"
    )
    flip: bool = Field(default=False, description="average with what is predicted for the mirrored image")
    full_size: bool = Field(default=False, description="score at the labels' own size on disk, whatever data.size is")
    boundary: Annotated[float, Field(gt=0, le=0.5)] | None = Field(
        default=None, description="boundary IoU as well, in bands of this share of the diagonal, as 0.02; null: none"
    )


class Run(Section):
    """How it is computed."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(
        default=0, description="seed of weights, data order and method"
    )
    devices: Positive = Field(default=1, description="number of devices")
    accelerator: Literal["auto", "cpu", "gpu"] = Field(default="auto", description="auto, cpu or gpu")
    precision: Literal[32, "bf16", 16] = Field(
        default=32, description="32, bf16 or 16 (the last two are mixed precision)"
    )
    threads: Positive | None = Field(default=None, description="CPU threads; null: PyTorch's own choice")
    channels_last: bool = Field(default=True, description="memory layout of images and convolutions")
    checkpoint_minutes: NotNegative = Field(default=5.0, description="minutes between checkpoints within an epoch")
    sync_batchnorm: bool = Field(
        default=False, description="batch norms take the statistics of all devices' batches together"
    )
    tensorboard: bool = Field(default=True, description="write TensorBoard events beside metrics.jsonl")
    tensorboard_pictures: Count = Field(
        default=3, description="validation images whose predictions TensorBoard shows at every evaluation; 0: none"
    )
    tensorboard_gammas: bool = Field(
        default=True, description="histograms of the batch norms' scales in TensorBoard, while they are made sparse"
    )


class Recipe(Section):
    """The declared experiment. `Recipe()`: CAP on a U-Net and `streets`, half of the parameters remain."""

    data: Data = Field(default_factory=Data, description=Data.__doc__)
    model: Model = Field(default_factory=Model, description=Model.__doc__)
    method: Method = Field(default_factory=Method, description=Method.__doc__)
    budget: Budget = Field(default_factory=Budget, description=Budget.__doc__)
    train: Train = Field(default_factory=Train, description=Train.__doc__)
    sparsify: Sparsify = Field(default_factory=Sparsify, description=Sparsify.__doc__)
    schedule: CutSchedule = Field(default_factory=CutSchedule, description=CutSchedule.__doc__)
    guard: GuardSection = Field(default_factory=GuardSection, description=GuardSection.__doc__)
    compensate: Compensate = Field(default_factory=Compensate, description=Compensate.__doc__)
    finetune: Finetune = Field(default_factory=Finetune, description=Finetune.__doc__)
    evaluate: Evaluate = Field(default_factory=Evaluate, description=Evaluate.__doc__)
    run: Run = Field(default_factory=Run, description=Run.__doc__)

    @model_validator(mode="before")
    @classmethod
    def _default_budget(cls, values: Any) -> Any:
        """Half of the parameters remain if a method is to prune and nothing is said on how much."""
        if not isinstance(values, dict):
            return values
        method, budget = values.get("method"), values.get("budget")
        if isinstance(method, Method):
            unpruned = method.name == "none"
        else:
            unpruned = isinstance(method, dict) and method.get("name") == "none"
        if unpruned or isinstance(budget, Budget) or not isinstance(budget, dict | None):
            return values
        budget = budget or {}
        return values if set(budget) & set(AMOUNTS) else {**values, "budget": {**budget, "params": 0.5}}

    @model_validator(mode="after")
    def _one_budget(self) -> Recipe:
        unlimited = all(getattr(self.budget, key) is None for key in BUDGET_KEYS)
        if self.method.name != "none" and unlimited and not self.budget.by_method:
            raise PydanticCustomError(
                "at_key",
                "nothing is limited; expected exactly one of {keys}",
                {"key": "budget", "keys": ", ".join(BUDGET_KEYS)},
            )
        return self

    @model_validator(mode="after")
    def _windows_have_a_size(self) -> Recipe:
        if self.evaluate.mode == "slide" and self.evaluate.window is None and self.data.crop is None:
            raise PydanticCustomError(
                "at_key", "no size of the windows is given, nor data.crop; expected one of them", {"key": "evaluate"}
            )
        return self

    @model_validator(mode="after")
    def _nothing_around_no_cut(self) -> Recipe:
        idles = {
            "schedule": self.schedule.steps == 1,
            "guard": not self.guard.limits,
            "compensate": self.compensate.mode == "none",
        }
        ways_out = {"schedule": "steps: 1", "guard": "no limits", "compensate": "mode: none"}
        for key, idle in idles.items():
            if self.method.name == "none" and not idle:
                raise PydanticCustomError(
                    "at_key",
                    "method.name=none cuts nothing; expected {way_out}",
                    {"key": key, "way_out": ways_out[key]},
                )
        return self

    @model_validator(mode="after")
    def _rewinds_to_what_was(self) -> Recipe:
        """Learning rate rewinding repeats the end of a training that there is."""
        if self.finetune.schedule != "rewind":
            return self
        between = self.schedule.epochs if self.schedule.steps > 1 else 0
        for section, epochs in (("finetune", self.finetune.epochs), ("schedule", between)):
            if epochs > self.train.epochs:
                raise PydanticCustomError(
                    "at_key",
                    "finetune.schedule=rewind repeats the last of train's {there} epochs; expected no more than these",
                    {"key": f"{section}.epochs", "there": self.train.epochs},
                )
        for key in ("lr", "warmup_epochs", "power"):
            if getattr(self.finetune, key) is not None:
                raise PydanticCustomError(
                    "at_key",
                    "with finetune.schedule=rewind it is train's; expected null",
                    {"key": f"finetune.{key}"},
                )
        return self

    def rewinds(self, stage: Literal["train", "sparsify", "schedule", "finetune"]) -> bool:
        """The stage has the learning rates of the last epochs of `train`."""
        return stage in ("schedule", "finetune") and self.finetune.schedule == "rewind"

    def stage(self, name: Literal["train", "sparsify", "schedule", "finetune"]) -> Train:
        """The settings of one training stage with every null filled in from `train`."""
        if name == "train":
            return self.train
        if name == "schedule":
            return self.stage("finetune").model_copy(update={"epochs": self.schedule.epochs})
        own = {key: value for key, value in getattr(self, name) if value is not None and key in Train.model_fields}
        if name == "finetune" and self.finetune.schedule == "rewind":
            del own["schedule"]
        elif name == "finetune":
            own.setdefault("lr", self.train.lr / 3)
        return self.train.model_copy(update=own)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors and checks."""
    return Recipe.model_json_schema()

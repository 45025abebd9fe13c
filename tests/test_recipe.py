"""Recipes: what is read, what is refused, and how it is said."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from secateur.errors import RecipeError
from secateur.recipe import BUDGET_KEYS, Recipe, dump_recipe, load_comparison, load_recipe, recipe_schema

SHIPPED = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
COMPARISONS = [path for path in SHIPPED if "\nmethods:" in path.read_text(encoding="utf-8")]
RECIPES = [path for path in SHIPPED if path not in COMPARISONS]


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "r.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def complaints(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


def test_what_is_not_said_has_its_default(write):
    recipe = load_recipe(write("train:\n  epochs: 3\n"))
    assert recipe == Recipe.model_validate({"train": {"epochs": 3}})
    assert recipe.train.lr == 3e-3 and recipe.data.size == (180, 240) and recipe.method.name == "cap"
    assert recipe.budget.limits == {"params": 0.5}


def test_values_keep_their_types(write):
    sections = (
        "data: {root: data/camvid}",
        "train: {lr: 1e-3}",
        "run: {precision: bf16}",
        "method: {options: {pull: [0.1, 1]}}",
    )
    recipe = load_recipe(write("\n".join(sections)))
    assert recipe.data.root == Path("data/camvid")
    assert (recipe.train.lr, recipe.run.precision) == (0.001, "bf16")
    assert recipe.method.options == {"pull": [0.1, 1]}


def test_an_empty_section_is_all_defaults(write):
    assert load_recipe(write("data:\ntrain:\n")) == Recipe()


def test_a_recipe_can_not_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().train.epochs = 3


def test_null_in_a_later_stage_means_as_in_train():
    recipe = Recipe.model_validate({"train": {"lr": 0.3, "optimizer": "sgd"}, "sparsify": {"batch_size": 2}})
    sparsify, finetune = recipe.stage("sparsify"), recipe.stage("finetune")
    assert (sparsify.lr, sparsify.optimizer, sparsify.batch_size, sparsify.epochs) == (0.3, "sgd", 2, 8)
    assert finetune.lr == pytest.approx(0.1)
    assert recipe.stage("train") is recipe.train


def test_between_cuts_the_network_is_trained_as_in_finetune():
    recipe = Recipe.model_validate({"finetune": {"optimizer": "sgd", "epochs": 9}, "schedule": {"epochs": 4}})
    assert recipe.stage("schedule") == recipe.stage("finetune").model_copy(update={"epochs": 4})
    assert recipe.stage("schedule").optimizer == "sgd" and recipe.schedule.steps == 1


def test_overrides_replace_values_and_are_read_as_yaml(write):
    path = write("train: {epochs: 3}\nbudget: {params: 0.4, min_keep: 0.2}\n")
    overrides = [
        "train.epochs=7",
        "data.size=[64, 96]",
        "data.root=~/x",
        "method.options.pull=[0.1, 1.0]",
        "run.threads=",
    ]
    recipe = load_recipe(path, overrides)
    assert (recipe.train.epochs, recipe.data.size, recipe.run.threads) == (7, (64, 96), None)
    assert recipe.data.root == Path.home() / "x"
    assert recipe.method.options == {"pull": [0.1, 1.0]}


def test_an_overridden_budget_replaces_that_of_the_file(write):
    budget = load_recipe(write("budget: {params: 0.4, min_keep: 0.2}\n"), ["budget.macs=0.5"]).budget
    assert (budget.params, budget.macs, budget.min_keep) == (None, 0.5, 0.2)


def test_another_method_or_network_does_not_inherit_the_options_of_the_file(write):
    path = write("method: {name: cap, options: {pull: [0.1, 1]}}\nmodel: {name: unet, width: 8, options: {a: 1}}\n")
    recipe = load_recipe(path, ["method.name=l1", "model.name=segnet", "model.options.b=2"])
    assert (recipe.method.options, recipe.model.options, recipe.model.width) == ({}, {"b": 2}, 8)
    same = load_recipe(path, ["method.name=cap", "model.name=unet"])
    assert same == load_recipe(path) and same.method.options == {"pull": [0.1, 1]}
    unnamed = load_recipe(write("method: {options: {pull: [0.1, 1]}}\n"), ["method.name=cap"])
    assert unnamed.method.options == {"pull": [0.1, 1]}


def test_an_override_reaches_only_its_own_section_when_sections_share_an_alias(write):
    recipe = load_recipe(write("sparsify: &later {lr: 0.1}\nfinetune: *later\n"), ["finetune.lr=0.2"])
    assert (recipe.sparsify.lr, recipe.finetune.lr) == (0.1, 0.2)


def test_without_a_method_no_budget_is_needed(write):
    assert load_recipe(write("method: {name: none}\n")).budget.limits is None


WRONG = {
    "unknown key": ("train:\n  epoch: 3\n", "line 2: train.epoch: unknown key; known: accumulate,", "mean 'epochs'?"),
    "key of another section": (
        "data:\n  lr: 1\n",
        "line 2: data.lr: unknown key",
        "it is a key of train, sparsify, finetune",
    ),
    "unknown section": ("data:\n  limit: 1\ntrian:\n  lr: 1\n", "line 3: trian: unknown section", "mean 'train'?"),
    "key without a section": ("seed: 1\n", "line 1: seed: unknown section; did you mean run.seed?"),
    "text for a number": ("train: {epochs: '3'}\n", "line 1: train.epochs: expected a whole number, got '3'"),
    "fraction of an epoch": ("train: {epochs: 2.5}\n", "train.epochs: expected a whole number, got 2.5"),
    "true for a number": ("train: {epochs: true}\n", "train.epochs: expected a whole number, got true"),
    "null where none is allowed": ("train: {lr: null}\n", "train.lr: expected a number, got nothing (null)"),
    "negative epochs": ("train: {epochs: -1}\n", "train.epochs: expected a number >= 0, got -1"),
    "lr of zero": ("finetune: {lr: 0}\n", "finetune.lr: expected a number > 0, got 0"),
    "not a number": ("train: {lr: .nan}\n", "train.lr: expected a finite number, got nan"),
    "momentum of one": ("train: {momentum: 1}\n", "train.momentum: expected a number >= 0 and < 1, got 1"),
    "ratio above 1": (
        "budget: {pruning_ratio: 1.5}\n",
        "budget.pruning_ratio: expected a number >= 0 and <= 1, got 1.5",
    ),
    "ratio below 0": (
        "budget: {pruning_ratio: -0.1}\n",
        "budget.pruning_ratio: expected a number >= 0 and <= 1, got -0.1",
    ),
    "budget of zero": ("budget: {params: 0}\n", "budget.params: expected a number > 0, got 0"),
    "two budgets": (
        "data:\nbudget:\n  params: 0.4\n  macs: 0.4\n",
        "line 2: budget: params and macs are given; expected exactly one",
    ),
    "no budget": (
        "budget: {params: null}\n",
        "line 1: budget: nothing is limited; expected exactly one of params, macs,",
    ),
    "no steps": ("schedule: {steps: 0}\n", "schedule.steps: expected a number >= 1, got 0"),
    "half a step": ("schedule: {steps: 2.5}\n", "schedule.steps: expected a whole number, got 2.5"),
    "unknown kind of schedule": (
        "schedule:\n  kind: linaer\n",
        "line 2: schedule.kind: expected one of linear, geometric, cubic, got 'linaer'; did you mean 'linear'?",
    ),
    "steps to no cut": (
        "method: {name: none}\nschedule:\n  steps: 3\n",
        "line 2: schedule: method.name=none cuts nothing; expected steps: 1",
    ),
    "compensation of no cut": (
        "method: {name: none}\ncompensate: {mode: mean}\n",
        "line 2: compensate: method.name=none cuts nothing; expected mode: none",
    ),
    "unknown compensation": (
        "compensate: {mode: least-squares}\n",
        "compensate.mode: expected one of none, mean, least_squares, got 'least-squares'; "
        "did you mean 'least_squares'?",
    ),
    "no calibration batches": ("compensate: {batches: 0}\n", "compensate.batches: expected a number >= 1, got 0"),
    "wrong choice": (
        "train: {optimizer: adamW}\n",
        "expected one of sgd, adam, adamw, got 'adamW'; did you mean 'adamw'?",
    ),
    "wrong precision": ("run: {precision: 64}\n", "run.precision: expected one of 32, bf16, 16, got 64"),
    "wrong data set": (
        "data: {name: cityscape}\n",
        "data.name: expected one of streets, camvid, camvid32, cityscapes, ",
        "got 'cityscape'; did you mean 'cityscapes'?",
    ),
    "yes for true": ("run: {tensorboard: yes}\n", "run.tensorboard: expected true or false, got 'yes'"),
    "size of one side": (
        "data:\n  size: [180]\n",
        "line 2: data.size",
        "expected a list of two numbers, got the list [180]",
    ),
    "size of three": ("data: {size: [1, 2, 3]}\n", "data.size: expected a list of two numbers, got the list [1, 2, 3]"),
    "mean of two": ("data: {mean: [0.5, 0.4]}\n", "data.mean.2: expected a list of three numbers, got the list [0.5"),
    "std of zero": ("data: {std: [0.5, 0, 0.5]}\n", "data.std.1: expected a number > 0, got 0"),
    "sizes that differ and no crop": (
        "data:\n  name: voc2012\n  size: null\n",
        "line 1: data.crop: with size: null images differ in size; expected the [height, width] to crop",
    ),
    "size of zero": ("data: {size: [0, 2]}\n", "data.size.0: expected a number >= 1, got 0"),
    "range backwards": ("data:\n  limit: 3\n  scale: [2, 1]\n", "line 3: data.scale: expected [smallest, largest]"),
    "number for a path": ("data: {root: 3}\n", "data.root: expected a path, got 3"),
    "number for a section": ("data: 3\n", "line 1: data: expected a section with keys below it, got 3"),
    "list for options": ("model:\n  options: [1]\n", "line 2: model.options: expected keys with values below it"),
    "number for a key": ("1: 2\n", "line 1: 1: a key must be text"),
    "number for an option": ("model: {options: {1: 2}}\n", "line 1: model: a key must be text, got 1"),
    "unknown method": (
        "method:\n  name: cpa\n",
        "line 2: method.name: unknown method 'cpa'; known: ",
        "did you mean 'cap'?",
    ),
    "unknown option": (
        "method:\n  name: l1\n  options: {pul: 1}\n",
        "line 3: method.options.pul: unknown option of l1",
    ),
    "option of no method": (
        "method:\n  name: none\n  options: {pull: 1}\n",
        "line 3",
        "unknown option of none; it has none",
    ),
    "unknown network": (
        "model:\n  name: unett\n",
        "line 2: model.name: unknown network 'unett'",
        "did you mean 'unet'?",
    ),
    "duplicate key": ("train:\n  lr: 1\n  lr: 2\n", "line 3: not valid YAML: found duplicate key"),
    "tab": ("train:\n\tlr: 1\n", "line 2: not valid YAML", "indent with spaces, not tabs"),
    "unclosed bracket": ("data:\n  size: [1, 2\n", "line 3: not valid YAML"),
    "two documents": ("data:\n---\ntrain:\n", "line 2: not valid YAML"),
    "python object": (
        "data: !!python/object/apply:os.getcwd []\n",
        "line 1: not valid YAML: could not determine a constructor",
    ),
    "impossible date": ("data: {root: 2026-13-45}\n", "not valid YAML: month must be in 1..12"),
    "control character": ("data: \x00\n", "not valid YAML"),
    "endless nesting": ("data: " + "[" * 3000 + "]" * 3000 + "\n", "not valid YAML"),
    "empty file": ("", "the recipe is empty; `secateur recipe --defaults` prints a complete one"),
    "only a comment": ("# nothing\n", "the recipe is empty"),
    "list of sections": ("- data\n", "line 1: expected sections (data, model,", "got the list ['data']"),
    "plain text": ("hello\n", "line 1: expected sections", "got 'hello'"),
    "not UTF-8": (b"data:\n  root: \xff\n", "not UTF-8 text (byte 14)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_with_its_line_and_the_way_out(write, case):
    text, *fragments = WRONG[case]
    path = write(text)
    lines = complaints(path)
    assert len(lines) == 1
    assert lines[0].startswith(str(path))
    assert [part for part in fragments if part not in lines[0]] == []


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(write):
    lines = complaints(write("run:\n  seeds: 1\ntrain:\n  lr: -1\n  epochs: x\n"), "data.flip=2")
    assert [line.partition("r.yaml, ")[2].partition(":")[0] for line in lines[1:]] == ["line 2", "line 4", "line 5"]
    assert lines[0].startswith("override 'data.flip=2': data.flip: ")


WRONG_OVERRIDES = {
    "train.epoch=3": ("train.epoch: unknown key", "did you mean 'epochs'?"),
    "train.epochs=many": ("train.epochs: expected a whole number, got 'many'",),
    "train.epochs": ("expected section.key=value",),
    "=3": ("expected section.key=value",),
    "train.=3": ("expected section.key=value",),
    "epochs=3": ("did you mean train.epochs or sparsify.epochs or schedule.epochs or finetune.epochs?",),
    "nothing=3": ("expected section.key=value; known: budget,",),
    "trian.lr=3": ("trian: unknown section", "did you mean 'train'?"),
    "data.size=[": ("the value is not valid YAML",),
    "data.size.0=3": ("data.size: expected a list of two numbers",),
    "budget.pruning_ratio=1.5": ("budget.pruning_ratio: expected a number >= 0 and <= 1",),
    "method.name=cpa": ("unknown method 'cpa'",),
}


@pytest.mark.parametrize("override", WRONG_OVERRIDES)
def test_a_wrong_override_is_named(write, override):
    lines = complaints(write("train: {epochs: 3}\nbudget: {params: 0.5}\n"), override)
    assert len(lines) == 1
    assert lines[0].startswith(f"override {override!r}: ")
    assert [part for part in WRONG_OVERRIDES[override] if part not in lines[0]] == []


def test_two_overridden_budgets_are_the_overrides_fault(write):
    lines = complaints(write("budget: {params: 0.5}\n"), "budget.macs=0.5", "budget.params=0.5")
    assert lines == ["override 'budget.macs=0.5': budget: params and macs are given; expected exactly one of them"]


def test_an_override_does_not_hide_a_section_that_is_none(write):
    assert (
        "line 1: train: expected a section with keys below it, got 3"
        in complaints(write("train: 3\n"), "train.lr=1")[0]
    )


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_can_not_be_read_is_named(tmp_path, name):
    with pytest.raises(RecipeError, match=r"there is no such recipe|can't be read"):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_that_we_ship_load(path):
    recipe = load_recipe(path)
    assert load_recipe(path, [f"run.seed={recipe.run.seed + 1}"]).run.seed == recipe.run.seed + 1


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_comparisons_that_we_ship_load(path):
    rows = load_comparison(path)
    assert len({row.name for row in rows}) == len(rows) >= 4
    # what a row is alone is what its own recipe says, if there is one
    for row in rows:
        alone = path.with_name(f"camvid_mini_unet_{row.recipe.method.name}.yaml")
        if alone in RECIPES and row.budget == "params 0.4" and row.recipe.run.seed == 0:
            assert load_recipe(alone) == row.recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dumped_recipe_reads_back_the_same(write, path):
    recipe = load_recipe(path, ["model.options.a={b: [1, 2.5, null], c: 'true'}"])
    assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_a_dump_says_every_key_and_what_it_means():
    lines = dump_recipe(Recipe()).splitlines()
    for name, section in Recipe():
        begin = lines.index(f"{name}:")
        for offset, (key, field) in enumerate(type(section).model_fields.items(), 1):
            assert lines[begin + offset].startswith(f"  {key}: ")
            assert lines[begin + offset].endswith(f"# {field.description}")


def test_the_schema_knows_every_key():
    schema = recipe_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert set(BUDGET_KEYS) < set(schema["$defs"]["Budget"]["properties"])
    assert all(section["additionalProperties"] is False for section in schema["$defs"].values())

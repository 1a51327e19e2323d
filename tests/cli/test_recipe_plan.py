# SPDX-License-Identifier: Apache-2.0
"""Every recipe in configs/ loads and validates, and says what it is."""

import ast
import json
from pathlib import Path

import pytest

from albert_jax.cli.info import describe_path
from albert_jax.cli.recipe_plan import with_plan
from albert_jax.config.model import MODELS
from albert_jax.config.recipes import load_recipe, to_dict
from albert_jax.config.run import FinetuneConfig, PretrainConfig
from albert_jax.data.prepare.build import prepare
from albert_jax.data.vocabulary import train_tokenizer
from albert_jax.training import optimizer
from albert_jax.utils.errors import UserError
from tests.helpers.paths import REPOSITORY

CONFIGS = REPOSITORY / "configs"
RECIPES = sorted(CONFIGS.glob("*.py"))


def _docstring(recipe: Path) -> str:
    return ast.get_docstring(ast.parse(recipe.read_text(encoding="utf-8"))) or ""


def test_there_are_recipes() -> None:
    assert CONFIGS / "python_docs.py" in RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_loads_and_its_settings_are_json(recipe: Path) -> None:
    config = load_recipe(str(recipe))
    assert json.loads(json.dumps(to_dict(config))) == to_dict(config)
    described = describe_path(recipe)
    if isinstance(config, PretrainConfig):
        assert described["flops_per_step"] > 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipes_docstring_has_its_command(recipe: Path) -> None:
    command = "finetune" if isinstance(load_recipe(str(recipe)), FinetuneConfig) else "pretrain"
    assert f"albert-jax {command} configs/{recipe.name}" in _docstring(recipe)


def _takes_a_model(recipe: Path) -> bool:
    tree = ast.parse(recipe.read_text(encoding="utf-8"))
    functions = {n.name: n.args.args for n in tree.body if isinstance(n, ast.FunctionDef)}
    return "model" in [argument.arg for argument in functions["get_config"]]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if _takes_a_model(r)], ids=lambda path: path.name
)
def test_a_recipe_that_takes_a_model_takes_each(recipe: Path, model: str) -> None:
    config = load_recipe(f"{recipe}:model={model}")
    # A pretraining recipe makes a model of that name, one for fine-tuning starts from its folder.
    wanted = model if isinstance(config, FinetuneConfig) else MODELS[model]
    assert config.model == wanted


def test_fine_tuning_has_the_papers_settings() -> None:
    """Table 14 of the ALBERT paper; the exception for RACE is the original's README's."""

    def settings(spec: str) -> tuple[object, ...]:
        c = load_recipe(str(CONFIGS / spec))
        rate, warmup = c.optimizer.learning_rate, c.optimizer.warmup_steps
        return rate, c.train.batch_size, c.dropout, c.train.steps, warmup, c.max_seq_length

    assert settings("glue.py:task=cola") == (1e-5, 16, 0.0, 5336, 320, 512)
    assert settings("glue.py:task=STS-B") == (2e-5, 16, 0.0, 3598, 214, 512)
    assert settings("glue.py:task=qqp") == (5e-5, 128, 0.1, 14000, 1000, 512)
    assert settings("glue.py:task=mrpc,model=base-v2") == (2e-5, 32, 0.0, 800, 200, 512)
    assert settings("squad.py:task=squad1") == (5e-5, 48, 0.0, 3649, 365, 384)
    assert settings("squad.py:task=squad2") == (3e-5, 48, 0.0, 8144, 814, 512)
    assert settings("race.py:model=base-v1") == (2e-5, 32, 0.1, 12000, 1000, 512)
    assert settings("race.py:model=base-v2") == (1e-5, 32, 0.0, 12000, 1000, 512)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("single", "run albert-jax finetune --task single without it"),
        ("pair-regression", "run albert-jax finetune --task pair-regression without it"),
        ("ax", "a model fine-tuned on mnli answers it"),
        ("ssst2", "did you mean 'sst2'"),
    ],
)
def test_a_task_without_settings_in_the_recipe_is_refused_with_what_would_do(
    task: str, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        load_recipe(f"{CONFIGS / 'glue.py'}:task={task}")


def _pretraining(arguments: str) -> PretrainConfig:
    config = load_recipe(f"{CONFIGS / 'pretrain.py'}:{arguments}")
    assert isinstance(config, PretrainConfig)
    return config


def test_base_v1_is_the_papers_run() -> None:
    """Section 4.1 and appendix A.3 of the ALBERT paper; run_pretraining.py's flags."""
    config = _pretraining("model=base-v1")
    train = config.train
    assert (train.batch_size, config.examples.max_seq_length, train.steps) == (4096, 512, 125_000)
    assert config.optimizer.name == "lamb"
    assert optimizer.peak_learning_rate(config.optimizer, train.batch_size) == 0.00176
    assert optimizer.warmup_steps(config.optimizer, train.steps) == 3125
    assert config.model.hidden_dropout_prob == 0.1
    assert _pretraining("model=base-v2").model.hidden_dropout_prob == 0.0


# Sequences of which the compiler said that 16 GiB take them.
TAKEN = {"base": 16, "large": 16, "xlarge": 4, "xxlarge": 4}


@pytest.mark.parametrize("chips", [1, 4, 8, 64, 256, 512, 4096])
@pytest.mark.parametrize("model", MODELS)
def test_no_chip_gets_more_rows_at_a_time_than_were_said_to_fit(model: str, chips: int) -> None:
    for rows in (None, 3, 24):
        given = "" if rows is None else f",rows={rows}"
        train = _pretraining(f"model={model},chips={chips}{given}").train
        most = rows or TAKEN[model.partition("-")[0]]

        def fits(count: int) -> bool:
            return 4096 % (chips * count) == 0 and 4096 // (chips * count) <= most  # noqa: B023

        assert train.batch_size == 4096
        assert fits(train.accumulate)
        assert not any(fits(count) for count in range(1, train.accumulate))


def test_a_batch_that_does_not_divide_over_the_chips_is_refused() -> None:
    with pytest.raises(UserError, match="4096 does not divide over 48 chips"):
        _pretraining("model=base-v1,chips=48")


def test_the_plan_has_steps_rates_and_the_fewest_chip_hours() -> None:
    plan = with_plan(describe_path(f"{CONFIGS / 'pretrain.py'}:model=base-v1,chips=64"))["plan"]
    assert plan["sequences"] == 125_000 * 4096
    assert plan["tokens_with_padding"] == 125_000 * 4096 * 512
    assert (plan["peak_learning_rate"], plan["warmup_steps"]) == (0.00176, 3125)
    assert plan["micro_batches"] == 4
    # By hand: 12 layers of 512 x (8 H^2 + 16 H^2) and 4 x 512^2 x H, embeddings and heads; thrice.
    h, e, v, s = 768, 128, 30_000, 512
    layers = 12 * (s * 24 * h * h + 4 * s * s * h)
    forward = layers + 2 * s * e * h + 20 * 2 * (h * e + e * v) + 2 * h * (h + 2)
    hours = 3 * forward * 125_000 * 4096 / 197e12 / 3600
    assert plan["chip_hours_at_peak"]["TPU v5e"] == pytest.approx(hours)
    assert "passes" not in plan


def test_the_plan_counts_the_passes_over_a_store(tmp_path: Path) -> None:
    sentences = [
        f"the {a} of the {b} is {c}." for a in "abcdef" for b in "ghijkl" for c in "mnopqr"
    ]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{s}\n" if i % 9 == 8 else s for i, s in enumerate(sentences)))
    vocab = train_tokenizer([str(text)], output=tmp_path / "vocab", vocab_size=36)
    prepare([str(text)], vocab=vocab, output=tmp_path / "store", workers=1)
    recipe = f"{CONFIGS / 'language.py'}:vocab_size=36,batch_size=2,steps=50"
    store = str(tmp_path / "store")
    plan = with_plan(describe_path(recipe), store)["plan"]
    assert plan["sequences_a_pass"] > 1
    assert plan["passes"] * plan["sequences_a_pass"] == pytest.approx(100)
    for other in (store, CONFIGS / "glue.py"):
        with pytest.raises(UserError, match="is no recipe for pretraining"):
            with_plan(describe_path(other), store)


def test_another_languages_words_begin_at_the_marker_and_the_vocabulary_is_its_own() -> None:
    config = load_recipe(f"{CONFIGS / 'language.py'}:vocab_size=12345")
    assert isinstance(config, PretrainConfig)
    assert config.model.vocab_size == 12345
    assert config.examples.word_start == "marker"


def test_the_day_scales() -> None:
    day, half = (
        load_recipe(f"{CONFIGS / 'one_gpu_day.py'}{arguments}") for arguments in ("", ":days=0.5")
    )
    assert isinstance(day, PretrainConfig)
    assert isinstance(half, PretrainConfig)
    assert half.train.steps == day.train.steps // 2
    hours = with_plan(describe_path(CONFIGS / "one_gpu_day.py"))["plan"]["chip_hours_at_peak"][
        "A100"
    ]
    assert 2 < hours < 4  # a day at an eighth of the peak, as it says

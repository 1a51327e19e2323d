# SPDX-License-Identifier: Apache-2.0
"""What is checked and counted before a fine-tuning run: weights of classes."""

import dataclasses

import pytest

from albert_jax.config.run import FinetuneConfig
from albert_jax.tasks import RawExample, find_task
from albert_jax.training import finetune
from albert_jax.training.finetune_setup import set_up, weights_of_classes
from albert_jax.utils.errors import UserError
from tests.helpers.toy_task import toy_config


def examples(labels):
    return [RawExample(str(i), ("a",), label) for i, label in enumerate(labels)]


def test_balanced_weights_are_scikit_learns():
    """compute_class_weight("balanced", …) of scikit-learn 1.7, whose classes are sorted."""
    task = dataclasses.replace(find_task("single"), labels=("no", "yes", "maybe"))
    train = examples(["no"] * 7 + ["yes"] * 2 + ["maybe"] * 3)
    found = weights_of_classes(task, train, ("balanced",))
    assert found == pytest.approx((0.57142857, 2.0, 1.33333333))
    words = dataclasses.replace(find_task("token-classification"), labels=("O", "B-x"))
    train = examples([("O", "O", "B-x"), ("O",)])
    assert weights_of_classes(words, train, ("balanced",)) == (4 / 6, 2.0)


def test_given_weights_are_by_label_and_the_others_one():
    task = dataclasses.replace(find_task("single"), labels=("no", "a=b", "maybe"))
    assert weights_of_classes(task, [], ("a=b=4,maybe=0.5",)) == (1.0, 4.0, 0.5)
    assert weights_of_classes(task, [], ("a=b=4", "maybe=0.5")) == (1.0, 4.0, 0.5)
    assert weights_of_classes(task, [], ()) == ()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("yess=4",), "names 'yess'; single has 'no', 'yes'"),
        (("balanced",), "no training example of single has the label 'yes'"),
    ],
)
def test_weights_that_fit_no_label_are_refused(asked, told):
    task = dataclasses.replace(find_task("single"), labels=("no", "yes"))
    with pytest.raises(UserError, match=told):
        weights_of_classes(task, examples(["no"]), asked)


@pytest.mark.parametrize("weights", ["yes", "yes=0", "yes=-1", "yes=nan", "=2", "yes=2,balanced"])
def test_weights_that_are_none_are_refused_before_anything_is_read(weights):
    with pytest.raises(UserError, match="must be balanced, or LABEL=WEIGHT with a positive"):
        FinetuneConfig(class_weights=(weights,))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"class_weights": ("balanced",)}, "regression has no classes to be weighted"),
        ({"label_smoothing": 0.1}, "regression has no classes or choices"),
        ({"teacher": "there"}, "regression has no classes or choices, which a teacher"),
        ({"exits": True}, "exits is for classification, and not for regression"),
        ({"thresholds": "fit"}, "thresholds='fit' is for multi-label, and not for regression"),
    ],
)
def test_what_a_score_has_no_use_for_is_refused_before_anything_is_read(changes, told):
    with pytest.raises(UserError, match=told):
        set_up(FinetuneConfig(task="regression", model="nowhere", data="nowhere", **changes))


def test_vectors_alone_leave_nothing_to_train_beside_the_encoder():
    config = FinetuneConfig(task="similarity", model="nowhere", data="nowhere", freeze="encoder")
    with pytest.raises(UserError, match="similarity has nothing to train beside the encoder"):
        set_up(config)


@pytest.mark.parametrize("header", [None, "text,label", "sentence,label"])
def test_an_error_of_the_data_names_the_task_that_a_run_without_one_has(base, tmp_path, header):
    if header:  # or else there is no file
        (tmp_path / "train.csv").write_text(f"{header}\nfine,yes\n")
    told = r"; the task is sst2; choose another with task='NAME'$"
    with pytest.raises(UserError, match=told) as caught:
        set_up(FinetuneConfig(model=str(base), data=str(tmp_path)))
    assert str(caught.value).count("task is") == 1
    with pytest.raises(UserError) as of_named:  # which no words call a default
        set_up(FinetuneConfig(task="sst2", model=str(base), data=str(tmp_path)))
    assert str(of_named.value) == str(caught.value)
    with pytest.raises(UserError) as caught:
        set_up(FinetuneConfig(task="single", model=str(base), data=str(tmp_path / "nowhere")))
    assert "task is" not in str(caught.value)


def test_an_error_that_advises_has_no_other_advice(base, tmp_path):
    (tmp_path / "train.csv").write_text("sentence;label\nfine;yes\n")
    with pytest.raises(UserError, match=r"found 'sentence;label'; .*';'") as caught:
        set_up(FinetuneConfig(model=str(base), data=str(tmp_path)))
    assert "task is" not in str(caught.value)


def test_a_path_with_the_words_of_the_advice_is_advised_on(base, tmp_path):
    (data := tmp_path / "the task is hard").mkdir()
    with pytest.raises(UserError, match=r"; the task is sst2; choose another"):
        set_up(FinetuneConfig(model=str(base), data=str(data)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora": 4, "freeze": "encoder"}, "leave out freeze"),
        ({"lora": 4, "freeze": "embeddings"}, "leave out freeze"),
        ({"lora": 4, "layer_decay": 0.9}, "with lora 4 the encoder learns nothing"),
        ({"freeze": "encoder", "layer_decay": 0.9}, "with freeze='encoder' the encoder learns"),
        ({"distill_weight": 0.9}, "distill_weight 0.9 is of learning from a teacher"),
        ({"temperature": 1.0}, "temperature 1.0 is of learning from a teacher"),
    ],
)
def test_settings_that_contradict_each_other_or_do_nothing_are_refused(changes, told):
    with pytest.raises(UserError, match=told):
        FinetuneConfig(**changes)


def test_the_weights_are_said_and_recorded(base, data, tmp_path, capsys):
    config = toy_config(
        base, data, tmp_path / "run", steps=2, class_weights=("yes=3",), label_smoothing=0.1
    )
    results = finetune.finetune(config)
    assert results["class_weights"] == {"no": 1.0, "yes": 3.0}
    assert "weights    no 1, yes 3" in capsys.readouterr().err

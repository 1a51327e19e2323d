# SPDX-License-Identifier: Apache-2.0
"""What a run says of itself, by figures that are made up."""

import pytest

from albert_jax.training.standing import Standing


def standing(steps=1000, majority=0.57, examples=2000):
    return Standing(steps, 6.57, lambda: majority, examples)


def test_a_loss_at_the_unigram_entropy_is_said_once_when_a_fifth_is_made():
    run = standing()
    assert run.trained(100, {"masked_lm_loss": 6.9}) is None
    assert "6.60 is still that of knowing only" in run.trained(200, {"masked_lm_loss": 6.6})
    assert run.trained(300, {"masked_lm_loss": 6.6}) is None


@pytest.mark.parametrize("loss", [6.5, float("nan")])
def test_a_loss_that_has_left_it_is_not(loss):
    assert standing().trained(250, {"masked_lm_loss": loss}) is None


def test_a_run_resumed_later_says_it_no_more():
    run = standing()
    run.begin(200)
    assert run.trained(300, {"masked_lm_loss": 6.6}) is None
    run.begin(500)
    assert run.evaluated(600, {"sentence_order_accuracy": 0.5}) is None
    assert Standing(1000, None, lambda: None, 0).trained(300, {"masked_lm_loss": 9.0}) is None


@pytest.mark.parametrize(("accuracy", "is_said"), [(0.56, True), (0.60, True), (0.61, False)])
def test_sentence_order_at_the_majority_is_said_once_at_half_of_the_steps(accuracy, is_said):
    run = standing()  # a standard error is 1.1 %
    metrics = {"sentence_order_accuracy": accuracy}
    assert run.evaluated(400, metrics) is None
    said = run.evaluated(600, metrics)
    assert (said is not None) == is_said
    if is_said:
        assert "no more than the more frequent label's 57.0% within three standard errors" in said
    assert run.evaluated(800, {"sentence_order_accuracy": 0.1}) is None


def test_held_out_loss_that_parts_from_training_s_is_said_once():
    run = standing()
    for step, training, heldout in [(100, 5.0, 5.1), (200, 4.6, 4.8), (300, 4.2, 4.82)]:
        run.trained(step, {"masked_lm_loss": training})
        assert run.evaluated(step, {"masked_lm_loss": heldout}) is None  # not risen by 0.05
    run.trained(400, {"masked_lm_loss": 3.9})
    said = run.evaluated(400, {"masked_lm_loss": 4.9})
    assert "4.90 has risen from 4.80 at step 200 while training's is 3.90" in said
    assert run.evaluated(450, {"masked_lm_loss": 5.5}) is None


def test_a_loss_that_rises_with_training_s_is_no_learning_by_heart():
    run = standing()
    run.trained(100, {"masked_lm_loss": 5.0})
    run.evaluated(100, {"masked_lm_loss": 5.1})
    run.trained(200, {"masked_lm_loss": 5.4})
    assert run.evaluated(200, {"masked_lm_loss": 5.5}) is None


def test_a_run_of_few_steps_is_a_trial_of_which_nothing_is_said():
    for steps, is_said in ((199, False), (200, True)):
        run = standing(steps)
        assert (run.trained(steps, {"masked_lm_loss": 8.0}) is not None) == is_said
        assert (run.evaluated(steps, {"sentence_order_accuracy": 0.5}) is not None) == is_said

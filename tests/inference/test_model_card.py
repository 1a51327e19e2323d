# SPDX-License-Identifier: Apache-2.0
"""The model card's table: the published averages, and a row of models beside the published one."""

import json

import pytest

from albert_jax.checkpoint.model_dir import load_model
from albert_jax.inference.evaluate import Evaluation
from albert_jax.inference.model_card import CARD, PUBLISHED, average, card_table, evaluate_card
from albert_jax.tasks import find_task
from albert_jax.utils.errors import UserError
from tests.helpers.models import tiny_albert
from tests.helpers.pretraining_runs import random_model

HEAD = {"kind": "classification", "labels": ["no", "yes"], "task": "mnli"}


def test_the_published_rows_have_the_published_averages():
    """Two sources: the cells, and the README's own last column."""
    averages = {
        **{"base-v2": 82.3, "large-v2": 85.7, "xlarge-v2": 87.9, "xxlarge-v2": 90.9},
        **{"base-v1": 80.1, "large-v1": 82.4, "xlarge-v1": 85.5, "xxlarge-v1": 91.0},
    }
    for name, row in PUBLISHED.items():
        assert average(row) == pytest.approx(averages[name], abs=0.051), name


def test_the_card_holds_a_models_row_beside_the_published_one(monkeypatch, tmp_path):
    manifest = {"provenance": {"source": "albert_large_v1.tar.gz"}, "head": HEAD}
    model = load_model(random_model(tmp_path / "base", tiny_albert(vocab_size=8000)))._replace(
        manifest=manifest
    )
    model.params["head"] = {}
    monkeypatch.setattr("albert_jax.inference.model_card.load_model", lambda path: model)
    monkeypatch.setattr(
        "albert_jax.inference.model_card.evaluate",
        lambda *_, **__: Evaluation(
            task="mnli",
            split="dev_matched",
            metric="accuracy",
            metrics={"accuracy": 0.835},
            examples=1,
            truncated=0,
            predictions_file="MNLI-m.tsv",
        ),
    )
    card = evaluate_card(["m"], "data")
    assert (card["released"], card["average"]) == ("large-v1", None)
    assert card["results"]["mnli"]["metrics"] == {"accuracy": 0.835}
    assert json.loads(json.dumps(dict(card))) == card
    here, tuned, published = card_table(card).splitlines()[1:]
    assert here.split() == ["here", "-", "-", "-", "83.5", "-", "-"]
    assert tuned.endswith("83.5  -      -")
    assert published.split()[-5:] == ["90.6/83.9", "82.3/79.4", "83.5", "91.7", "68.5"]
    with pytest.raises(UserError, match="both of mnli"):
        evaluate_card(["m", "n"], "data")
    assert [cell.task for cell in CARD] == [cell.task for cell in CARD if find_task(cell.task)]

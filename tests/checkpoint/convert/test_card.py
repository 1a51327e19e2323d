# SPDX-License-Identifier: Apache-2.0
"""The model card of a transformers folder: the hub's fields and people's text."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from albert_jax.checkpoint.convert.card import CardSubject, check_license, model_card
from albert_jax.checkpoint.convert.convert import convert
from albert_jax.config.heads import HeadKind
from albert_jax.config.manifests import HeadManifest
from albert_jax.utils.errors import UserError
from tests.helpers.conversions import SMALL

SUBJECT = CardSubject(
    title="me/it", config=SMALL, head=None, parameters=1234, vocabulary=True, origin="folder"
)
FINE_TUNED = {
    "made_by": "albert-jax finetune",
    "dev": {"accuracy": 0.93, "loss": 0.2, "f1": None, "total": 872},
    "config": {
        "task": "sst2",
        "model": "base-v2",
        "data": "/home/somebody/secret/glue",
        "train": {"steps": 2100, "batch_size": 32, "seed": 1},
        "optimizer": {"learning_rate": 1e-5},
    },
    "started_from": {"source": "hub:albert/albert-base-v2@" + 40 * "a"},
}
SST2 = HeadManifest(kind="classification", labels=["negative", "positive"], task="sst2")


def fields(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_a_pretrained_model_has_the_hubs_fields() -> None:
    found = fields(model_card(SUBJECT))
    assert found == {
        "language": "en",
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["albert", "albert_jax"],
    }


def test_a_fine_tuned_model_has_its_metrics_recipe_data_and_base() -> None:
    subject = dataclasses.replace(SUBJECT, head=SST2, provenance=FINE_TUNED, license="mit")
    card = model_card(subject)
    found = fields(card)
    assert found["license"] == "mit"
    assert found["pipeline_tag"] == "text-classification"
    assert found["base_model"] == "albert/albert-base-v2"
    assert found["datasets"] == ["nyu-mll/glue"]
    assert found["metrics"] == ["accuracy"]
    [result] = found["model-index"][0]["results"]
    assert result["task"] == {"type": "text-classification"}
    assert (result["dataset"]["config"], result["dataset"]["split"]) == ("sst2", "validation")
    assert result["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.93}]
    for line in ("| updates | 2100 |", "| learning rate | 1e-05 |", "| data | glue |"):
        assert line in card
    assert "negative, positive" in card
    assert "somebody" not in card


def test_random_weights_have_no_base() -> None:
    config = FINE_TUNED["config"] | {"random_weights": True}
    subject = dataclasses.replace(SUBJECT, head=SST2, provenance=FINE_TUNED | {"config": config})
    card = model_card(subject)
    assert "base_model" not in fields(card)
    assert "weights from" not in card


def test_vectors_for_similarity_are_of_sentence_transformers() -> None:
    head = HeadManifest(kind="similarity", labels=None, task="similarity")
    found = fields(model_card(dataclasses.replace(SUBJECT, head=head)))
    assert found["library_name"] == "sentence-transformers"
    assert found["pipeline_tag"] == "sentence-similarity"
    assert found["tags"] == ["albert", "albert_jax", "sentence-transformers"]


def test_a_task_with_two_dev_sets_names_the_one_that_was_evaluated() -> None:
    head = HeadManifest(kind="classification", labels=["a", "b", "c"], task="mnli")
    subject = dataclasses.replace(SUBJECT, head=head, provenance=FINE_TUNED)
    [result] = fields(model_card(subject))["model-index"][0]["results"]
    assert result["dataset"]["split"] == "validation_matched"


def test_google_licenses_what_is_in_its_archives_and_not_what_others_made_of_it() -> None:
    official = "https://storage.googleapis.com/albert_models/albert_base_v2.tar.gz"
    for changes, license in (
        ({"origin": official}, "apache-2.0"),
        ({"origin": official, "head": SST2}, "unknown"),
        ({"origin": "/data/sst2_finetuned_albert_base_v2.tar.gz"}, "unknown"),
    ):
        found = fields(model_card(dataclasses.replace(SUBJECT, **changes)))
        assert found["license"] == license


@pytest.mark.parametrize("kind", get_args(HeadKind))
def test_every_head_has_a_pipeline(kind: Any) -> None:
    head = HeadManifest(kind=kind, labels=None)
    assert fields(model_card(dataclasses.replace(SUBJECT, head=head)))["pipeline_tag"]


@pytest.mark.parametrize(
    ("provenance", "origin", "license", "base"),
    [
        ({"source": "https://x/albert_large_v1.tar.gz"}, "d", "apache-2.0", "large-v1"),
        ({"source": "hub:albert/albert-base-v2@" + 40 * "b"}, "d", "apache-2.0", "base-v2"),
        ({}, "/site-packages/albert_jax/packaged/mini", "cc-by-sa-4.0", None),
        ({"made_by": "x", "config": {"model": "mini"}}, "d", "cc-by-sa-4.0", None),
        ({"made_by": "x", "config": {"model": "base-v2"}}, "d", "unknown", "base-v2"),
        ({"source": "runs/base"}, "runs/base", "unknown", None),
        ({"source": 7, "config": [], "dev": "x", "started_from": 1}, "d", "unknown", None),
    ],
)
def test_the_licence_and_the_base_are_those_that_are_known(
    provenance: dict[str, Any], origin: str, license: str, base: str | None
) -> None:
    found = fields(model_card(dataclasses.replace(SUBJECT, provenance=provenance, origin=origin)))
    assert found["license"] == license
    assert found.get("base_model") == (f"albert/albert-{base}" if base else None)


def test_a_folder_with_a_known_models_name_is_not_that_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mini", "base-v2"):
        Path(name).mkdir()
        trained = {"made_by": "x", "config": {"model": name}}
        for changes in ({"origin": name}, {"origin": "d", "provenance": trained}):
            card = model_card(dataclasses.replace(SUBJECT, **changes))
            assert fields(card)["license"] == "unknown"
            assert "base_model" not in fields(card)
            assert "weights from" not in card


def test_a_model_without_the_head_for_masks_is_for_features() -> None:
    card = model_card(dataclasses.replace(SUBJECT, masked_lm=False))
    assert fields(card)["pipeline_tag"] == "feature-extraction"


def test_what_a_manifest_says_cannot_leave_its_place_in_the_card() -> None:
    evil = 'x"\n---\n# y: <script> | [z](https://z)'
    head = HeadManifest(kind="classification", labels=[evil, "b"], task=evil)
    provenance = {"dev": {evil: 1.0, "accuracy": 0.5}, "config": {"task": evil, "data": [evil]}}
    card = model_card(
        dataclasses.replace(SUBJECT, title=evil, head=head, provenance=provenance, origin=evil)
    )
    assert fields(card)["pipeline_tag"] == "text-classification"
    assert card.count("\n---\n") == 1
    rows = [line for line in card.splitlines() if line.startswith("| ") and "---" not in line]
    assert {line.count("|") for line in rows} == {3}
    prose = card.split("\n---\n")[1].partition("## Use")[0]
    assert "<" not in prose
    assert "\\[z](" in prose
    assert "[z]" not in prose.replace("\\[z]", "")


@pytest.mark.parametrize("license", ["", "MIT License", "mit\nx: y", "a" * 99])
def test_a_licence_is_an_identifier(license: str) -> None:
    with pytest.raises(UserError, match="is no identifier of the hub's"):
        check_license(license)
    check_license("cc-by-sa-4.0")


def test_converting_for_transformers_writes_the_card(tmp_path: Path) -> None:
    convert("mini", tmp_path / "my-mini", to="hf")
    card = (tmp_path / "my-mini" / "README.md").read_text(encoding="utf-8")
    assert fields(card)["license"] == "cc-by-sa-4.0"
    assert "# my-mini\n" in card
    assert "| parameters | 3,071,042 |" in card
    assert "## Training (albert-jax pretrain)" in card
    assert "| updates | 10000 |" in card
    convert(tmp_path / "my-mini", tmp_path / "again", to="hf")
    convert("mini", tmp_path / "my-mini", to="hf")  # an export with its card is replaced
    assert "\n\n\n" not in card
    assert not any(a == b == "" for a, b in itertools.pairwise(card.splitlines()))

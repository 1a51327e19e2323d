# SPDX-License-Identifier: Apache-2.0
"""Write the model card, README.md, of a transformers folder.

It has the hub's fields in YAML, and says what the model is, what it was trained with and how to use
it. All of it comes from the model's manifest; no path of this machine is in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from albert_jax.config.manifests import HeadManifest
from albert_jax.config.model import MODELS, AlbertConfig
from albert_jax.config.model_names import ModelName, name_of, named_by, repository_of
from albert_jax.config.packaged import PACKAGED
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import is_number
from albert_jax.utils.wording import first_ten, shortened

_PIPELINES = {
    None: "fill-mask",
    "classification": "text-classification",
    "multi_label": "text-classification",
    "regression": "text-classification",
    "similarity": "sentence-similarity",
    "multiple_choice": "multiple-choice",
    "token_classification": "token-classification",
    "span_v1": "question-answering",
    "span_v2": "question-answering",
}
# Task -> the hub's name of its data set and of the part of it, and the one for people.
_GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax")
_DATASETS = {task: ("nyu-mll/glue", task, f"GLUE {task}") for task in _GLUE} | {
    "squad1": ("rajpurkar/squad", "plain_text", "SQuAD 1.1"),
    "squad2": ("rajpurkar/squad_v2", "squad_v2", "SQuAD 2.0"),
    "race": ("ehovy/race", "all", "RACE"),
    "race-middle": ("ehovy/race", "middle", "RACE-M"),
    "race-high": ("ehovy/race", "high", "RACE-H"),
}
_SPLITS = {"mnli": "validation_matched"}  # other tasks: validation
# Metric -> the hub's name of it.
_METRICS = {
    "accuracy": "accuracy",
    "f1": "f1",
    "exact": "exact_match",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mean_squared_error": "mse",
    "precision": "precision",
    "recall": "recall",
}
_RECIPE = (
    ("task", ("task",)),
    ("updates", ("train", "steps")),
    ("batch size", ("train", "batch_size")),
    ("learning rate", ("optimizer", "learning_rate")),
    ("optimizer", ("optimizer", "name")),
    ("tokens in a row", ("max_seq_length",)),
    ("tokens in a row", ("examples", "max_seq_length")),
    ("seed", ("train", "seed")),
)
_ARCHIVE = re.compile(r"albert_([a-z]+)_(v\d)\.tar\.gz")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
UNKNOWN = "unknown"  # the hub's word


@dataclass(frozen=True)
class CardSubject:
    """Describe the model of a card; `provenance` is a manifest's, and may come from anyone."""

    title: str
    config: AlbertConfig
    head: HeadManifest | None
    parameters: int
    vocabulary: bool
    origin: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    masked_lm: bool = True  # whether it has the head that fills in masks


def model_card(subject: CardSubject) -> str:
    """Return the text of README.md."""
    return "".join(line + "\n" for line in (*_front_matter(subject), "", *_body(subject)))


def check_license(license: str | None) -> None:
    """Raise UserError for text that cannot be a licence's identifier on the hub."""
    if license is not None and not _LICENSE.fullmatch(license):
        raise UserError(
            f"license {shortened(license)!r} is no identifier of the hub's; give one such as "
            "apache-2.0, mit, cc-by-sa-4.0 or other"
        )


# ----------------------------------------------------------------------------------- for the hub


def _front_matter(subject: CardSubject) -> Iterator[str]:
    base = _base_of(subject)
    dataset = _DATASETS.get(_task_of(subject) or "")
    metrics = list(_dev_metrics(subject))
    yield "---"
    yield "language: en"
    yield f"license: {_text(subject.license or _license_of(subject, base))}"
    is_of_sentences = subject.head is not None and subject.head.kind == "similarity"
    library = "sentence-transformers" if is_of_sentences else "transformers"
    yield f"library_name: {library}"
    yield f"pipeline_tag: {_pipeline_of(subject)}"
    yield "tags:"
    yield "- albert"
    yield "- albert_jax"
    if is_of_sentences:
        yield f"- {library}"
    if base and (name := _hub_name(base)):
        yield f"base_model: {_text(name)}"
    if dataset:
        yield "datasets:"
        yield f"- {_text(dataset[0])}"
    if metrics:
        yield "metrics:"
        yield from (f"- {_text(name)}" for name in dict.fromkeys(hub for _, hub, _ in metrics))
        yield from _results(subject, dataset, metrics)
    yield "---"


def _results(
    subject: CardSubject,
    dataset: tuple[str, str, str] | None,
    metrics: Sequence[tuple[str, str, float]],
) -> Iterator[str]:
    kind, part, name = dataset or ("other", "default", _task_of(subject) or "its own")
    yield "model-index:"
    yield f"- name: {_text(subject.title)}"
    yield "  results:"
    yield "  - task:"
    yield f"      type: {_pipeline_of(subject)}"
    yield "    dataset:"
    yield f"      name: {_text(name)}"
    yield f"      type: {_text(kind)}"
    yield f"      config: {_text(part)}"
    yield f"      split: {_SPLITS.get(part, 'validation')}"
    yield "    metrics:"
    for ours, hub, value in metrics:
        yield f"    - type: {_text(hub)}"
        yield f"      name: {_text(ours)}"
        yield f"      value: {json.dumps(value)}"


def _text(value: str) -> str:
    """Return a string of YAML, in quotes, with JSON's escapes."""
    return json.dumps(shortened(value), ensure_ascii=False)


def _pipeline_of(subject: CardSubject) -> str:
    if subject.head is None and not (subject.vocabulary and subject.masked_lm):
        return "feature-extraction"
    return _PIPELINES[subject.head.kind if subject.head else None]


def _license_of(subject: CardSubject, base: ModelName | None) -> str:
    """Return the licence of the weights.

    It is Google's for released weights that are unchanged. The packaged model's own, share-alike,
    also applies to what was trained from it. Everything else is unknown.
    """
    if base is None:
        return UNKNOWN
    if base.kind == "packaged":
        return "cc-by-sa-4.0"
    is_unchanged = subject.head is None and not subject.provenance.get("made_by")
    return "apache-2.0" if base.released and is_unchanged else UNKNOWN


def _base_of(subject: CardSubject) -> ModelName | None:
    """Return the model that the weights are or were trained from; None if its name is unknown."""
    config = _mapping(subject.provenance.get("config"))
    if config.get("random_weights") is True:
        return None  # it has that model's shape alone
    started = _mapping(subject.provenance.get("started_from"))
    said: list[Any] = [subject.provenance.get("source"), subject.origin]
    if subject.provenance.get("made_by"):
        given = [config.get("model"), config.get("init_from")]
        if "name" in started:  # what the run itself took it for
            given = [started["name"]]
        said = [started.get("source"), *given, subject.origin]
    names = (_name_in(text) for text in said if isinstance(text, str))
    return next(filter(None, names), None)


def _name_in(text: str) -> ModelName | None:
    """Return the model that a source certainly names; OWNER/NAME alone could be a path."""
    if found := _ARCHIVE.fullmatch(PurePath(text).name):
        name = f"{found[1]}-{found[2]}"
        return ModelName("released", name) if name in MODELS else None
    if PurePath(text).parts[-2:] in [("packaged", name) for name in PACKAGED]:
        return named_by(PurePath(text).name)
    if "/" in text and not text.startswith("hub:"):
        return None
    try:
        return name_of(text)  # a folder of that name is the user's own model
    except (OSError, UserError):  # no name at all, such as one of a thousand characters
        return None


def _hub_name(base: ModelName) -> str | None:
    if base.kind == "released":
        base = repository_of(base.name)
    return base.name if base.kind == "hub" else None


def _task_of(subject: CardSubject) -> str | None:
    return subject.head.task if subject.head else None


def _dev_metrics(subject: CardSubject) -> Iterator[tuple[str, str, float]]:
    """Yield each metric's name here, its name on the hub, and its official dev value."""
    for name, value in _mapping(subject.provenance.get("dev")).items():
        if name in _METRICS and is_number(value) and math.isfinite(value):
            yield name, _METRICS[name], value


# ------------------------------------------------------------------------------------ for people


def _body(subject: CardSubject) -> Iterator[str]:
    config, head = subject.config, subject.head
    yield f"# {_plain(subject.title)}"
    yield ""
    task = f" fine-tuned for {_plain(head.task)}" if head and head.task else ""
    yield (
        f"An [ALBERT](https://arxiv.org/abs/1909.11942){task or (' with a head' if head else '')}, "
        "in transformers' format, written by albert_jax."
    )
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    yield (
        f"| architecture | {config.num_hidden_layers} layers of {config.hidden_size}, "
        f"{config.num_attention_heads} heads, feed-forward {config.intermediate_size}, embeddings "
        f"of {config.embedding_size}, {config.max_position_embeddings} positions |"
    )
    yield f"| parameters | {subject.parameters:,} |"
    yield f"| vocabulary | {f'{config.vocab_size:,} rows' if subject.vocabulary else 'none'} |"
    if head:
        labels = f": {_plain(first_ten(head.labels))}" if head.labels else ""
        yield f"| head | {head.kind}{labels} |"
    if base := _base_of(subject):
        yield f"| weights from | {_plain(_hub_name(base) or base.name)} |"
    yield from _training(subject)
    yield from _held_out(subject)
    yield ""
    yield "## Use"
    yield ""
    yield "```python"
    yield "import albert_jax"
    yield ""
    yield f"albert = albert_jax.load({json.dumps(subject.title)})  # or its folder's path"
    yield "```"


def _training(subject: CardSubject) -> Iterator[str]:
    config = _mapping(subject.provenance.get("config"))
    if not config:
        return
    yield ""
    yield f"## Training ({_plain(str(subject.provenance.get('made_by', 'albert_jax')))})"
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    for name, keys in _RECIPE:
        value: Any = config
        for key in keys:
            value = _mapping(value).get(key)
        if isinstance(value, str) or is_number(value):
            yield f"| {name} | {_plain(str(value))} |"
    if data := _data_of(config):
        yield f"| data | {_plain(data)} |"


def _data_of(config: Mapping[str, Any]) -> str:
    """Return the name of a run's training data: the last part of its path."""
    found = config.get("data") or config.get("store") or config.get("text") or ()
    given = [found] if isinstance(found, str) else found
    names = [PurePath(str(each)).name for each in given] if isinstance(given, Sequence) else []
    return first_ten(names)


def _held_out(subject: CardSubject) -> Iterator[str]:
    found = _mapping(subject.provenance.get("dev")) or _mapping(subject.provenance.get("held_out"))
    rows = [(name, value) for name, value in found.items() if is_number(value) and name != "step"]
    if rows:
        yield ""
        yield f"## {'Dev set' if subject.provenance.get('dev') else 'Held-out text'}"
        yield ""
        yield "| metric | value |"
        yield "| --- | --- |"
        yield from (f"| {_plain(str(name))} | {value:.6g} |" for name, value in rows)


def _plain(text: str) -> str:
    """Return a text in one line, in which Markdown sees no column, HTML or link."""
    return shortened(text).replace("|", "/").replace("<", "&lt;").replace("[", "\\[")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

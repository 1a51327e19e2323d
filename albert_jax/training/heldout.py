# SPDX-License-Identifier: Apache-2.0
"""Evaluate a pretraining model on held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

import jax
import numpy as np

from albert_jax.checkpoint.model_dir import ModelDirectory, load_model
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.model import LARGEST, ComputeConfig
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import ExamplesConfig, TrainConfig
from albert_jax.data.loader import batch_at
from albert_jax.data.pretraining import PretrainingData, open_data, without_heldout
from albert_jax.distributed.placement import Placement
from albert_jax.training.first_values import params_of
from albert_jax.training.position import Position
from albert_jax.training.pretrain_report import baselines_at, figures
from albert_jax.training.programs import Programs
from albert_jax.training.run import Evaluate
from albert_jax.training.session import memory_check, open_placement
from albert_jax.training.step import ConfiguredStep, StagedSteps, make_eval_step
from albert_jax.utils.arguments import whole_number
from albert_jax.utils.errors import UserError
from albert_jax.utils.progress import Tick
from albert_jax.utils.results import ABSENT_IF_NONE, Result
from albert_jax.utils.wording import renamed, setting


def evaluator(
    config: PretrainConfig, data: PretrainingData, steps: StagedSteps, placement: Placement
) -> Evaluate | None:
    """Return a function that returns the means over the held-out examples; None if there are none.

    The shared layer is applied as often as in the step before.
    """
    if data.heldout is None or not len(data.heldout):
        return None
    heldout, unit = data.heldout, len(placement.devices)
    total = min(config.train.eval_examples, len(heldout))
    size = min(config.stages[-1].batch_size // config.train.accumulate, -(-total // unit) * unit)
    index, count = jax.process_index(), jax.process_count()
    check = memory_check(config)

    programs: dict[int, Programs] = {}  # by depth

    def program_of(made: ConfiguredStep) -> Programs:
        depth = made.model.config.num_hidden_layers
        if depth not in programs:
            pure = make_eval_step(made.objective)
            programs[depth] = Programs(placement.compile(pure, donate=False), check)
        return programs[depth]

    def evaluate(params: Any, position: Position, tick: Tick) -> dict[str, float]:
        made = steps.to_evaluate(position.batch)
        program, results = program_of(made), []
        for number in range(-(-total // size)):
            # Examples past the end are drawn and weigh nothing.
            batch = batch_at(heldout, number, size, process_index=index, process_count=count)
            first = number * size + index * (size // count)
            weights_B = (np.arange(first, first + size // count) < total).astype(np.float32)
            batch["masked_lm_weights"] = batch["masked_lm_weights"] * weights_B[:, None]
            batch["example_weights"] = weights_B
            results.append(placement.fetch(program(params, placement.put_batch(batch))))
            tick(min((number + 1) * size, total), total)
        sums, weights = (
            jax.tree.map(lambda *x: float(np.sum(x, dtype=np.float64)), *(r[key] for r in results))
            for key in ("sums", "weights")
        )
        normalizer_of = made.objective.normalizer_of
        means = {name: sums[name] / weights[of] for name, of in normalizer_of.items()}
        return {"loss": sum(v for n, v in means.items() if n.endswith("_loss")), **means}

    return evaluate


Masking = Literal["ngram", "word", "piece"]


class _MaskingSettings(TypedDict, total=False):
    ngram: int
    do_whole_word_mask: bool


# How users know the settings of the run whose evaluation this is.
_NAMES = {
    "examples.max_seq_length": "max_seq_length",
    "model.max_position_embeddings": "the model's max_position_embeddings",
}

_MASKING: dict[Masking, _MaskingSettings] = {
    "ngram": {},
    "word": {"ngram": 1},
    "piece": {"ngram": 1, "do_whole_word_mask": False},
}


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreEvaluation(Result):
    """Hold how well a model predicts a store's held-out documents, and the baselines.

    Attributes:
        model: the model directory.
        store: the token store.
        masking: what is masked: n-grams, words or pieces.
        max_seq_length: tokens in a row.
        examples: the number of rows.
        masked_lm_loss: nats for each masked token.
        masked_lm_accuracy: a fraction.
        sentence_order_loss: nats for each row; None if the model has no head that was trained on
            sentence order.
        sentence_order_accuracy: a fraction, or None.
        unigram_entropy_nats: the loss of a model that knows only the pieces' frequencies.
        most_frequent_token_rate: the accuracy of a model that always predicts the most frequent
            piece.
        label_majority: the accuracy of a model that always predicts the more frequent sentence
            order.
    """

    model: str
    store: str
    masking: Masking
    max_seq_length: int
    examples: int
    masked_lm_loss: float
    masked_lm_accuracy: float
    sentence_order_loss: float | None = field(default=None, metadata=ABSENT_IF_NONE)
    sentence_order_accuracy: float | None = field(default=None, metadata=ABSENT_IF_NONE)
    unigram_entropy_nats: float | None = None
    most_frequent_token_rate: float | None = None
    label_majority: float | None = None


def evaluate_on_store(
    model: str | Path,
    store: str,
    *,
    masking: Masking = "ngram",
    max_seq_length: int | None = None,
    examples: int = 6400,
    compute: ComputeConfig | None = None,
) -> StoreEvaluation:
    """Evaluate a model's pretraining heads on a store's held-out documents.

    15 % of the tokens of each row are masked. They are drawn as in pretraining and always with the
    same seed, so that all models of one vocabulary get the same rows.

    Args:
        model: a model directory.
        store: a token store with the model's vocabulary.
        masking: what is masked: n-grams, words or pieces.
        max_seq_length: tokens in a row; unset, 128, or fewer if the model has fewer positions or
            was pretrained on shorter rows, whose later positions are untrained.
        examples: the number of rows.
        compute: how this machine computes; unset, in float32.

    Returns:
        The losses and accuracies, and those of the baselines.

    Raises:
        UserError: if the model has no masked-LM head, or the store has another vocabulary or no
            held-out documents.
    """
    if masking not in _MASKING:
        raise UserError(
            f"{setting('masking')} {masking!r} is unknown; known: {', '.join(_MASKING)}"
        )
    source = load_model(require_model_directory(model), as_float32=True)
    if "predictions" not in source.params:
        raise UserError(f"{model} has no masked-LM head to be evaluated; give a pretrained model")
    trained = _trained_examples(source)
    length = _usual_length(source, trained) if max_seq_length is None else max_seq_length
    # A head that another objective, or none, has trained knows nothing of the order of sentences.
    is_ordered = "seq_relationship" in source.params and trained.get("objective", "sop") == "sop"
    examples = whole_number(examples, "examples", 1, LARGEST)
    with renamed(_NAMES):
        config = PretrainConfig(
            model=source.config,
            compute=compute or ComputeConfig(),
            examples=ExamplesConfig(
                objective="sop" if is_ordered else "none",
                max_seq_length=length,
                max_predictions_per_seq=max(1, round(0.15 * length)),
                **_MASKING[masking],
            ),
            train=TrainConfig(batch_size=64, eval_examples=examples, devices=1),
            store=store,
            init_from=str(model),
        )
    data = open_data(config, None)
    placement = open_placement(config)
    steps = StagedSteps(config, config.stages, placement.lowering)
    params = params_of(source, str(model), config, data)
    params = placement.put_state(_whole(params, steps.at(0)))
    evaluate = evaluator(config, data, steps, placement)
    if evaluate is None:
        raise without_heldout(store)
    with jax.default_matmul_precision("highest"):  # as everywhere in inference
        metrics = evaluate(params, Position(), lambda done, total: None)
    return StoreEvaluation(
        model=str(model),
        store=store,
        masking=masking,
        max_seq_length=length,
        examples=min(examples, len(data.heldout or ())),
        **{name: value for name, value in metrics.items() if name != "loss"},
        **baselines_at(config, data),
    )


def _trained_examples(source: ModelDirectory) -> Mapping[str, Any]:
    """Return the settings of the examples that a model was pretrained on; {} if unknown."""
    run = source.manifest["provenance"].get("config")  # provenance may be anything
    examples = run.get("examples") if isinstance(run, dict) else None
    return examples if isinstance(examples, dict) else {}


def _usual_length(source: ModelDirectory, trained: Mapping[str, Any]) -> int:
    """Return 128, or the length of the rows that the model was pretrained on if it is less."""
    length = min(128, source.config.max_position_embeddings)
    own = trained.get("max_seq_length")
    return min(length, own) if isinstance(own, int) and own >= 8 else length


def _whole(params: Any, made: ConfiguredStep) -> Any:
    """Return parameters with zeros for the parts that a model lacks.

    The metrics of these parts are then ignored.
    """
    shapes = jax.eval_shape(partial(made.random_state, 0)).params
    absent = {name: shapes[name] for name in shapes.keys() - params.keys()}
    return {**params, **jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), absent)}


def evaluation_lines(found: StoreEvaluation) -> str:
    """Return an evaluation as lines for people."""
    masked = {"ngram": "n-grams", "word": "single words", "piece": "single pieces"}[found.masking]
    rows = f"{found.examples:,} rows of {found.max_seq_length} tokens, {masked} masked"
    return "\n".join([f"{found.model} on {found.store}: {rows}", *figures(found, found)])

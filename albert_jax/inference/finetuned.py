# SPDX-License-Identifier: Apache-2.0
"""Run a model with a fine-tuned head: from a task's features to the head's outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack

import jax
import numpy as np
from jax import Array

from albert_jax.checkpoint.convert.parameters import HEAD_SHAPES, NAMED_LABELS
from albert_jax.checkpoint.integrity import ArrayTree
from albert_jax.checkpoint.model_dir import ModelDirectory, load_model
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.heads import SCORES, HeadKind, Long
from albert_jax.config.manifests import HeadManifest
from albert_jax.config.model import AlbertConfig, ComputeConfig, Engine
from albert_jax.config.task_names import label_pairs
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.batching import batch_tokens, most_padding, one_ahead
from albert_jax.inference.early_exit import ExitOutputs, check_exit
from albert_jax.inference.functions import lowering_here, placed
from albert_jax.inference.onnx_engine import OnnxHead, compute_of
from albert_jax.inference.onnx_graphs import Weights, require_head_graph
from albert_jax.models.heads import HEADS, PACKABLE, AlbertForTask
from albert_jax.models.lowering import Lowering
from albert_jax.tasks import Task, find_task
from albert_jax.tasks.batches import SHORTEST, evaluation_batches
from albert_jax.tasks.collate import FeatureRow
from albert_jax.tasks.labels import LabelReader
from albert_jax.tasks.long_texts import LongTexts
from albert_jax.utils.errors import UserError
from albert_jax.utils.progress import Tick
from albert_jax.utils.streams import say
from albert_jax.utils.wording import setting

# The names of a task's settings for users, where they differ from the task's own.
_NAMES = {"renamed": "labels"}
# Data of the first task may be answered by a model of the second, because the diagnostic set has no
# training data.
ANSWERED_BY = {"ax": "mnli"}

# Tokens that a row can be packed to: attention takes memory by the square of them.
_MOST_PACKED = 8192

# The flag to propose for a model without a task, such as a converted one, by its head.
_FITTING = {
    "classification": "{single} for a text, {pair} for two, or GLUE's name for it",
    "multi_label": "{multi-label}",
    "regression": "{regression} for a text, {pair-regression} for two, or {stsb}",
    "similarity": "{similarity}",
    "multiple_choice": "{multiple-choice}, or {race}",
    "token_classification": "{token-classification}",
    "span_v1": "{squad1}",
    "span_v2": "{squad2}",
}


class _Tasks(dict[str, str]):
    """Name a task as the caller gives it."""

    def __missing__(self, name: str) -> str:
        return setting("task", name)


def head_outputs(model: AlbertForTask, params: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Return the head's outputs by name, [B, …], as `tasks.base.Task.predictions` lists them.

    Outputs of packed rows are [B x P, …], slot by slot. Float32 matmuls have full precision, as
    everywhere in inference.
    """
    inputs: dict[str, Any] = {"p_mask_BS": batch["p_mask"]} if "p_mask" in batch else {}
    with jax.default_matmul_precision("highest"):
        output: Any = model.apply(
            {"params": params},
            batch["input_ids"],
            batch["input_mask"],
            batch["segment_ids"],
            batch.get("starts"),
            **(inputs if model.kind == "span_v2" else {}),
        )
    if model.kind == "span_v1":
        return {"start_logits": output.start_BS, "end_logits": output.end_BS}
    if model.kind == "span_v2":
        rows = output.start_index_BK.shape[0]
        return {
            "start_log_probs": output.start_log_probs_BK,
            "start_index": output.start_index_BK,
            "end_log_probs": output.end_log_probs_BKK.reshape(rows, -1),
            "end_index": output.end_index_BKK.reshape(rows, -1),
            "cls_logits": output.unanswerable_B,
        }
    if model.kind in SCORES:
        output = output[..., None]
    return {"logits": output.reshape(-1, output.shape[-1]) if "starts" in batch else output}


def head_network(
    config: AlbertConfig,
    compute: ComputeConfig,
    kind: HeadKind,
    params: Mapping[str, Any],
    lowering: Lowering = Lowering(),
) -> AlbertForTask:
    """Return the network for parameters with a head of that kind."""
    bias = params.get("head", {}).get("output_bias")
    labels = 2 if bias is None else len(bias)
    return AlbertForTask(config, compute, lowering, kind=kind, labels=labels)


class HeadOutputs:
    """Compute a head's outputs for rows of any lengths on one device, packed or one by one.

    With `onnx` they are computed by it, and not from the parameters that a call gives.
    """

    def __init__(
        self, model: AlbertForTask, *, pack: int = 0, onnx: OnnxHead | None = None
    ) -> None:
        self.model, self._pack = model, pack
        self._platform = None if onnx is None else "cpu"
        self._apply: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]
        if onnx is None:
            self._apply = jax.jit(lambda params, batch: head_outputs(model, params, batch))
        else:
            self._apply = lambda _, batch: onnx(batch)

    def placed(self, params: Mapping[str, Any]) -> Any:
        """Return the parameters on the device, to call with; None where they are not taken."""
        return placed(params, self.model) if self._platform is None else None

    def __call__(
        self, params: Any, rows: Sequence[FeatureRow], tick: Tick | None = None
    ) -> list[dict[str, np.ndarray]]:
        """Return the outputs of each row, cut to its own tokens, for `Task.predictions`.

        `tick` is called after each batch. If it raises an exception, the computation ends.
        """
        found: list[dict[str, np.ndarray]] = [{} for _ in rows]
        per_token = self.model.kind in ("token_classification", "span_v1")
        batches = evaluation_batches(
            rows,
            longest=self.model.config.max_position_embeddings,
            tokens=batch_tokens(self._platform),
            padding=most_padding(self._platform),
            pack=self._pack,
        )
        started = ((chosen, self._apply(params, batch)) for chosen, batch in batches)
        done = 0
        for chosen, outputs in one_ahead(started):
            for name, array in outputs.items():
                for at, index in enumerate(chosen):
                    if index < 0:  # an empty slot of packed rows
                        continue
                    value = array[at]
                    found[index][name] = value[: rows[index].length] if per_token else value
            done += sum(index >= 0 for index in chosen)
            if tick is not None:
                tick(done, len(rows))
        return found


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """Hold a fine-tuned model directory, ready to answer."""

    path: str
    directory: ModelDirectory
    task: Task
    tokenizer: Tokenizer
    max_seq_length: int
    outputs: HeadOutputs | ExitOutputs
    order: tuple[int, ...] | None  # of the model's outputs, if the task's labels differ in order
    long: LongTexts

    @property
    def longest(self) -> int:
        """The maximum of tokens in a row."""
        return self.directory.config.max_position_embeddings

    def broken(self, what: str) -> UserError:
        """Return the error for outputs that are not finite; `what` names the input."""
        dtype = self.outputs.model.dtype
        precision = "" if dtype == "float32" else f", or too large for {dtype}"
        return UserError(
            f"{what}: the model's outputs are not finite; the weights in {self.path} are damaged"
            f"{precision}: albert-jax verify {self.path} checks them"
        )

    @cached_property
    def params(self) -> Any:
        return self.outputs.placed(for_task(self.directory.params))

    def __call__(
        self, rows: Sequence[FeatureRow], tick: Tick | None = None
    ) -> list[dict[str, np.ndarray]]:
        """Return the `Outputs` of the rows, with labels in the task's order."""
        found = self.outputs(self.params, rows, tick)
        if self.order is not None:
            found = [x | {"logits": x["logits"][..., self.order]} for x in found]
        return found


def is_finite(output: Mapping[str, np.ndarray]) -> bool:
    """Return whether a row's outputs hold neither NaN nor infinity."""
    return all(bool(np.isfinite(array).all()) for array in output.values())


def for_task(params: Mapping[str, Any]) -> ArrayTree:
    """Return the parameters without the pretraining heads."""
    return {n: x for n, x in params.items() if n not in ("predictions", "seq_relationship")}


class AnswerSettings(TypedDict, total=False):
    """Set how a model answers, as in `predict` and `evaluate`.

    `max_seq_length`, `doc_stride`, `texts`, `label` and `long` are as in fine-tuning if they are
    None. `pack` is the number of tokens in a row that short examples share. `labels` are pairs of a
    data file's label and the task's, a=0,b=1. `long` is how texts longer than a row are handled,
    and `stride` belongs to its windows. `exit`, "patience=N" or "confidence=P", makes fewer passes
    for a text whose answer is settled. `engine` is what computes, "jax" or "onnx".
    """

    max_seq_length: int | None
    doc_stride: int | None
    compute: ComputeConfig | None
    pack: int
    labels: str | Sequence[str]
    long: Long | None
    stride: int | None
    exit: str | None
    engine: Engine
    texts: Sequence[str] | None
    label: str | None


def load_fine_tuned(
    directory: str | Path, task: str | None = None, **settings: Unpack[AnswerSettings]
) -> FineTuned:
    """Load a model directory with a head for `task`; unset, the task it was fine-tuned for.

    The head's labels are put into the task's order. Raises UserError if the model was not
    fine-tuned, or has another task or other labels.
    """
    model = load_model(require_model_directory(directory), as_float32=True)
    return fine_tuned_of(directory, model, task, **settings)


def _was_trained_to_exit(model: ModelDirectory) -> bool:
    config = model.manifest["provenance"].get("config")
    return isinstance(config, dict) and config.get("exits") is True


def fine_tuned_of(
    directory: str | Path,
    model: ModelDirectory,
    task: str | None,
    *,
    tokenizer: Tokenizer | None = None,
    **settings: Unpack[AnswerSettings],
) -> FineTuned:
    """Return what `load_fine_tuned` returns, for a loaded model.

    `directory` is its name in errors.
    """
    if unknown := settings.keys() - AnswerSettings.__annotations__.keys():
        raise TypeError(f"there is no setting {', '.join(sorted(unknown))}")
    head, pack = head_of(directory, model), settings.get("pack", 0)
    chosen = _configured(directory, head, task, settings)
    check_pack(chosen, pack)
    chosen = chosen.with_labels(head.labels or ())
    order = _label_order(directory, head, chosen)
    if renamed := label_pairs(settings.get("labels", ())):
        published = getattr(chosen, "published", ())
        LabelReader(chosen.labels, renamed=renamed, published=published).check_renamed()
    longest = model.config.max_position_embeddings
    length = min(head.max_seq_length or longest, longest)
    if (asked := settings.get("max_seq_length")) is not None:
        length = row_length(asked, longest)
    rule, engine = settings.get("exit"), settings.get("engine", "jax")
    compute = compute_of(engine, settings.get("compute"))
    for_head = head_network(model.config, compute, head.kind, model.params, lowering_here())
    outputs: HeadOutputs | ExitOutputs
    if engine == "onnx":
        outputs = HeadOutputs(for_head, onnx=_onnx_head(directory, model, head.kind, settings))
    elif rule is not None:
        outputs = ExitOutputs(for_head, check_exit(for_head, rule, pack))
        if not _was_trained_to_exit(model):
            say(
                f"note: {directory} does not say that it was trained with {setting('exits')}; "
                "without that, answers after fewer passes are often wrong: compare albert-jax "
                f"evaluate with and without {setting('exit')}"
            )
    else:
        outputs = HeadOutputs(for_head, pack=pack)
    long, stride = settings.get("long"), settings.get("stride")
    kept = None if long else head.stride
    texts = LongTexts(long or head.long or "cut", kept if stride is None else stride)
    return FineTuned(
        path=str(directory),
        directory=model,
        task=chosen,
        tokenizer=tokenizer or tokenizer_of(directory, model),
        max_seq_length=length,
        outputs=outputs,
        order=order,
        long=texts.check(chosen, length),
    )


def _onnx_head(
    directory: str | Path, model: ModelDirectory, kind: HeadKind, settings: AnswerSettings
) -> OnnxHead:
    """Return the head's graph; raises UserError for what has none."""
    for name in ("exit", "pack"):
        if settings.get(name):
            raise UserError(
                f"{setting('engine', 'onnx')} has no graph for {setting(name)}; "
                "leave out one of them"
            )
    require_head_graph(kind, directory, f"leave out {setting('engine', 'onnx')}")
    params = for_task(model.params)
    return OnnxHead(Weights(model.config, params, model.config.vocab_size), kind)


def _configured(
    directory: str | Path, head: HeadManifest, task: str | None, settings: AnswerSettings
) -> Task:
    """Return the task with the head's settings, unless other settings are given."""
    if (name := task or head.task) is None:
        raise UserError(
            f"{directory} does not say which task it is of; it has a {head.kind} head: give "
            f"{_FITTING[head.kind].format_map(_Tasks())}"
        )
    asked = {
        "doc_stride": settings.get("doc_stride"),
        "texts": settings.get("texts"),
        "label": settings.get("label"),
        "renamed": label_pairs(settings.get("labels", ())) or None,
    }
    own = head.settings if head.settings and head.task == find_task(name).name else {}
    given = {key: value for key, value in asked.items() if value is not None}
    return configured_task(name, **{**own, **given})


def row_length(max_seq_length: int, longest: int, *, more: str = "") -> int:
    """Return the tokens of a row, if a model of `longest` positions takes as many.

    Raises UserError if it does not; `more` is how the user can have more positions, after ", or".
    """
    if SHORTEST <= max_seq_length <= longest:
        return max_seq_length
    nearest = setting("max_seq_length", min(max(max_seq_length, SHORTEST), longest))
    raise UserError(
        f"{setting('max_seq_length')} {max_seq_length} must be {SHORTEST} to {longest}, the "
        f"model's positions; give {nearest}{more and f', or {more}'}"
    )


def configured_task(name: str, **settings: Any) -> Task:
    """Return the task with those settings that are not None.

    Raises UserError for a setting that the task does not have.
    """
    task = find_task(name)
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in settings.items()
        if value is not None
    }
    if isinstance(texts := given.get("texts"), str):
        given["texts"] = (texts,)  # not its letters
    usable = {field.name for field in dataclasses.fields(task)}
    if task.head in SCORES:
        usable.discard("renamed")
    if unknown := sorted(given.keys() - usable):
        names = ", ".join(setting(_NAMES.get(key, key)) for key in unknown)
        raise UserError(f"task {name} has no use for {names}; leave it out")
    return dataclasses.replace(task, **given)


def check_pack(task: Task, pack: int) -> None:
    """Raise UserError for a task whose examples cannot share rows, and for a useless length."""
    if not 0 <= pack <= _MOST_PACKED:
        raise UserError(
            f"{setting('pack')} {pack} must be a row's tokens, as 512 and at most {_MOST_PACKED}, "
            "or 0 for an example a row"
        )
    if pack and task.head not in PACKABLE:
        raise UserError(
            f"{task.name}'s examples cannot share rows, as its head is {task.head}; "
            f"leave out {setting('pack')}, which is for {' and '.join(PACKABLE)}"
        )


def head_of(directory: str | Path, model: ModelDirectory) -> HeadManifest:
    """Return the manifest's head; raises UserError if the model has none.

    Without names its labels are LABEL_0, LABEL_1 and so on, as transformers has them.
    """
    head = model.head
    if head is None or ("head" not in model.params and HEAD_SHAPES[head.kind]):
        raise UserError(
            f"{directory} is not fine-tuned (it has no head); "
            "fine-tune it first with albert-jax finetune"
        )
    if HEADS[head.kind].pooled and "pooler" not in model.params:
        raise UserError(
            f"{directory} has no pooler, which its head ({head.kind}) needs; give the whole model"
        )
    if head.labels or head.kind not in NAMED_LABELS:
        return head
    outputs = len(model.params["head"]["output_bias"])
    return dataclasses.replace(head, labels=[f"LABEL_{i}" for i in range(outputs)])


def tokenizer_of(directory: str | Path, model: ModelDirectory) -> Tokenizer:
    """Return the tokenizer of a model directory; raises UserError if it has no vocabulary."""
    if model.tokenizer["path"] is None:
        raise UserError(
            f"{directory} has no vocabulary; convert the model with "
            f"{setting('vocab', 'spiece.model')}"
        )
    return Tokenizer.load(model.tokenizer["path"], **model.text_settings)


def _label_order(directory: str | Path, head: HeadManifest, task: Task) -> tuple[int, ...] | None:
    name, labels = head.task, list(head.labels or [])
    if head.kind != task.head or name not in (None, task.name, ANSWERED_BY.get(task.name)):
        told = f"for {name} ({head.kind})" if name else f"for {head.kind}"
        raise UserError(
            f"{directory} was fine-tuned {told}, not for {task.name} ({task.head}); "
            "give a model that albert-jax finetune made for it"
        )
    wanted = list(task.labels)
    if task.head in (*SCORES, "multiple_choice") or not wanted or labels == wanted:
        return None
    published = list(getattr(task, "published", ()))
    reader = LabelReader(wanted, published=published)
    named = [reader.by_name(label) or "" for label in labels]
    if sorted(named) == sorted(wanted):
        return tuple(named.index(label) for label in wanted)
    if len(labels) == len(wanted) and all(x.startswith("LABEL_") for x in labels):
        other = ""
        if published != wanted and sorted(published) == sorted(wanted):
            other = (
                f", the original code's order; if it was trained in the published data set's, "
                f"{', '.join(published)}, name them so in its config.json's id2label"
            )
        say(f"{directory} names no labels; taken as {', '.join(wanted)}{other}")
        return None
    raise UserError(
        f"{directory} has the labels {', '.join(labels)}, and {task.name} has {', '.join(wanted)}; "
        "give a model that albert-jax finetune made for it"
    )

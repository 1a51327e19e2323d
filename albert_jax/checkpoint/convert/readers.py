# SPDX-License-Identifier: Apache-2.0
"""Read a source's tensors as parameters: each is used once, or one error lists all problems."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np

from albert_jax.checkpoint.convert import hf_names, tf_names
from albert_jax.checkpoint.convert.parameters import (
    HEAD_SHAPES,
    LABELS,
    MAPPING,
    NAMED_LABELS,
    check_sizes,
    parameter_shapes,
    part_of,
)
from albert_jax.checkpoint.convert.sources import WeightSource
from albert_jax.checkpoint.convert.tensors import Tensor, forget
from albert_jax.checkpoint.integrity import crc32c, not_finite
from albert_jax.config.manifests import ConvertedTensor, HeadManifest
from albert_jax.config.model import MODELS, AlbertConfig
from albert_jax.utils.arguments import shown
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_foreign_json
from albert_jax.utils.json_values import JsonObject, is_number
from albert_jax.utils.wording import first_ten, setting, shortened

CLASSIFIER_DROPOUT = 0.1  # the original's constant: classifier_utils.py:793, race_utils.py:317

# Parameters are float32; these widen to it exactly.
_WIDENED = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_OF_ARCHITECTURE = {
    "AlbertForPreTraining": "predictions",
    "AlbertForMaskedLM": "predictions",
    "AlbertForSequenceClassification": "head",
    "AlbertForMultipleChoice": "head",
    "AlbertForTokenClassification": "head",
    "AlbertForQuestionAnswering": "head",
}
# Kind of head -> the problem_type of transformers that it is; token_classification and
# multiple_choice know none.
PROBLEMS = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
# Key of a config.json that this package wrote: the head as its manifest has it, with its task.
OWN_HEAD = "albert_jax_head"
# Keys of a transformers config.json that we write ourselves.
_OWN_KEYS = {"architectures", "id2label", "label2id", "model_type", "num_labels", OWN_HEAD}
_OWN_KEYS |= {"transformers_version", "torch_dtype", "dtype", "_name_or_path"}


@dataclass(frozen=True)
class Weights:
    """Hold a model in memory, or mapped, between two formats."""

    params: dict[str, np.ndarray]  # by path
    config: AlbertConfig
    head: HeadManifest | None
    inventory: list[ConvertedTensor]
    transformers: JsonObject  # what only transformers' config.json says
    optimizer: dict[str, np.ndarray] | None = None  # by slot/path
    global_step: int | None = None
    dtype: str = "float32"  # of the source's tensors, if all have the same
    ignored: dict[str, int] = field(default_factory=dict)  # kind of thing -> how many
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> list[str]:
        """The parts of the parameters that exist, in their order."""
        return list(dict.fromkeys(map(part_of, self.params)))


# ------------------------------------------------------------------------------- the configuration


def read_config(source: WeightSource, path: Path | None) -> tuple[AlbertConfig, JsonObject, str]:
    """Return the architecture, the file's own values, and a sentence on how it was read.

    `path` is the user's choice. Without it, and without a file beside the weights, the shapes of
    the weights identify a released size. Raises UserError if they do not.
    """
    if path is None and len(source.configs) > 1:
        names = first_ten([file.name for file in source.configs])
        raise UserError(
            f"{source.file.parent} has several configurations ({names}); say which with "
            f"{setting('config')}"
        )
    path = path or next(iter(source.configs), None)
    if path is None:
        config, name = _of_released_size(source)
        return config, {}, f"no configuration; the shapes are those of {name}, taken for it"
    values = read_foreign_json(path)
    if source.kind == "hf" and path.name != "albert_config.json":
        values.setdefault("model_type", "albert")  # the first releases wrote no mark of their own
    config, kind = AlbertConfig.from_dict(values, path)
    check_sizes(config, path)
    if "transformers" in kind:
        _check_transformers(config, values, path)
    act = values.get("hidden_act", "gelu_new" if "transformers" in kind else "gelu")
    form = {"gelu": ", the tanh form", "gelu_erf": ", the erf form"}.get(config.hidden_act, "")
    dropout = values.get("classifier_dropout_prob", CLASSIFIER_DROPOUT)
    return (
        config,
        values if "transformers" in kind else {},
        f"{path.name}, read as a {kind}: activation {shown(act)}{form}; LayerNorm epsilon "
        f"{config.layer_norm_eps}; dropout {config.hidden_dropout_prob} hidden, "
        f"{config.attention_probs_dropout_prob} attention, {shown(dropout)} classifier",
    )


def _of_released_size(source: WeightSource) -> tuple[AlbertConfig, str]:
    names = _names_of(source.kind)
    shapes = {c: source.tensors[n].shape for n, c in names.canonical(source.tensors).items()}
    for name in ("base-v2", "large-v2", "xlarge-v2", "xxlarge-v2"):
        config, table = MODELS[name], names.table(MODELS[name])
        word = shapes.get(table["embeddings/word_embeddings"], ())
        if len(word) != 2:
            break
        config = dataclasses.replace(config, vocab_size=max(word[0], 1))
        expected = parameter_shapes(config)
        if all(
            shapes.get(table[path]) in (expected[path], expected[path][::-1])
            for path in table
            if part_of(path) in ("embeddings", "encoder")
        ):
            return config, name
    file = "albert_config.json" if source.kind == "tf" else "config.json"
    raise UserError(
        f"{source.file} has no {file} beside it and the shapes of no released model; "
        f"give one with {setting('config', 'FILE')}"
    )


def _check_transformers(config: AlbertConfig, values: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for what transformers can compute and this package cannot."""
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UserError(
            f"{path}: position_embedding_type {shown(positions)} is not supported; "
            "only 'absolute' is"
        )
    dropout = values.get("classifier_dropout_prob")
    if dropout is not None and not (is_number(dropout) and 0 <= dropout < 1):
        raise UserError(f"{path}: classifier_dropout_prob {shown(dropout)} must lie in [0, 1)")
    require_same_groups(config, str(path))


def require_same_groups(config: AlbertConfig, where: str) -> None:
    """Raise UserError if transformers assigns layers to other groups than the original does."""
    layers, groups = config.num_hidden_layers, config.num_hidden_groups
    for i in range(layers):
        if int(i / layers * groups) != int(i / (layers / groups)):
            raise UserError(
                f"{where}: of {layers} layers in {groups} groups transformers rounds layer {i} "
                "into another group than the original, so the model cannot be the same in both"
            )


# ----------------------------------------------------------------------------------------- the head


def _head(
    source: WeightSource,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, Any],
    kind: str | None,
) -> HeadManifest | None:
    """Return the fine-tuned head's kind and labels; `kind` is the user's choice."""
    found = _names_of(source.kind).head_kind(shapes)
    rows = next((shapes[n][0] for n in ("output_weights", "classifier.weight") if shapes.get(n)), 0)
    architecture = str((_list(values.get("architectures")) or [""])[0])
    own = _own_head(values)
    if found is None and (kind or (own and own.kind)) == "similarity":  # which has no tensors
        return _with_task(values, HeadManifest(kind="similarity", labels=None))
    if found is None and kind is None and _OF_ARCHITECTURE.get(architecture) != "head":
        return None
    if found is None:
        wanted = kind or architecture
        raise UserError(f"{source.file} has no tensors of a head, and {wanted} needs them")
    if found in ("span_v1", "span_v2"):
        if kind not in (None, found):
            raise UserError(
                f"{setting('head', kind)} does not fit; {source.file} has the head {found}"
            )
        return _with_task(values, HeadManifest.from_json({"kind": found, "labels": None}))
    kind = kind or _kind_of(architecture, values, rows, source)
    known = [k for k, shapes in HEAD_SHAPES.items() if shapes and not k.startswith("span")]
    if kind not in known:
        raise UserError(
            f"{setting('head', kind)} does not fit this head of {rows} outputs; try "
            f"{', '.join(known)}"
        )
    _check_problem(values, kind, source)
    labels = None if kind in LABELS else _labels(values)
    if labels is not None and len(labels) != rows:
        raise UserError(f"{source.file} has a head of {rows} outputs and {len(labels)} labels")
    return _with_task(values, HeadManifest.from_json({"kind": kind, "labels": labels}))


def _with_task(values: Mapping[str, Any], found: HeadManifest) -> HeadManifest:
    """Return the head with the task that this package kept in a config.json.

    transformers keeps the key when it saves a model again. If the head is another one since, the
    key is ignored, and so is one that this package did not write.
    """
    kept = _own_head(values)
    if kept is None:
        return found
    is_same = kept.kind == found.kind and (
        found.kind not in NAMED_LABELS or kept.labels == found.labels
    )
    return kept if is_same else found


def _own_head(values: Mapping[str, Any]) -> HeadManifest | None:
    """Return the head that this package kept in a config.json; None without a readable one."""
    try:
        return HeadManifest.from_json(values[OWN_HEAD])
    except (KeyError, msgspec.ValidationError):
        return None


def _kind_of(architecture: str, values: Mapping[str, Any], rows: int, source: WeightSource) -> str:
    if architecture == "AlbertForTokenClassification":
        return "token_classification"
    if architecture == "AlbertForMultipleChoice":
        return "multiple_choice"
    if values.get("problem_type") == PROBLEMS["multi_label"]:
        return "multi_label"
    if architecture == "AlbertForSequenceClassification" and rows == 1:
        return "regression"  # as transformers takes num_labels 1
    if values.get("problem_type") == "regression":
        raise UserError(f"{source.file} regresses onto {rows} values; only one is supported")
    if rows == 1:
        raise UserError(
            f"{source.file} has a head of one output, which is a regression's or a multiple "
            f"choice's; say which with {setting('head', 'regression')} or "
            f"{setting('head', 'multiple_choice')}"
        )
    return "classification"


def _check_problem(values: Mapping[str, Any], kind: str, source: WeightSource) -> None:
    """Raise UserError if the head's outputs mean something else to transformers."""
    problem = values.get("problem_type")
    if problem is None or kind not in PROBLEMS or problem == PROBLEMS[kind]:
        return
    raise UserError(
        f"{source.file} has the problem_type {shown(problem)}, which is not supported for its head "
        f"({kind}): a classification here chooses one label of several, with probabilities that "
        "sum to 1, multi_label any number of them, and a regression has one value"
    )


def _labels(values: Mapping[str, Any]) -> list[str] | None:
    """Return the labels in the order of the outputs, or None if the file names none."""
    labels = values.get("id2label")
    if labels is None:
        return None
    if not isinstance(labels, dict):
        raise UserError(f"id2label {shown(labels)} must be an object; correct config.json")
    if sorted(labels, key=lambda n: (len(n), n)) != [str(i) for i in range(len(labels))]:
        raise UserError(
            f"id2label {shown(labels)} must number the labels from 0; correct config.json"
        )
    named = [labels[str(i)] for i in range(len(labels))]
    if odd := [label for label in named if not (isinstance(label, str) or is_number(label))]:
        raise UserError(f"id2label has {shown(odd[0])} for a label; correct config.json")
    names = [str(label) for label in named]
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"id2label names labels more than once ({first_ten(doubled)}), so that an answer would "
            "not tell which output it is; correct config.json"
        )
    return names


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# -------------------------------------------------------------------------------------- the tensors


@dataclass(frozen=True)
class _Names:
    """Hold one format's names: rules and table."""

    canonical: Callable[[Iterable[str]], dict[str, str]]
    table: Callable[..., dict[str, str]]
    head_kind: Callable[[Iterable[str]], str | None]
    is_ignored: Callable[[str], bool]
    ignored_as: str
    transposed: bool


_NAMES = {
    "tf": _Names(
        tf_names.canonical_names,
        tf_names.tf_names,
        tf_names.head_kind,
        tf_names.is_training_state,
        "optimizer's tensors",
        False,
    ),
    "hf": _Names(
        hf_names.canonical_names,
        hf_names.hf_names,
        hf_names.head_kind,
        hf_names.is_buffer,
        "constants of transformers",
        True,
    ),
}


def _names_of(kind: str) -> _Names:
    return _NAMES[kind]


def read_weights(
    source: WeightSource, *, config: Path | None, head: str | None, with_optimizer: bool
) -> Weights:
    """Return all that a source has; raises one UserError for everything that does not fit."""
    names = _names_of(source.kind)
    albert, values, note = read_config(source, config)
    there: dict[str, tuple[str, Tensor]] = {}  # canonical name -> name in the file, tensor
    ignored: dict[str, tuple[str, Tensor]] = {}
    doubled = []
    for raw, name in names.canonical(source.tensors).items():
        kept = ignored if names.is_ignored(name) else there
        if name in kept:
            doubled.append(f"{raw} and {kept[name][0]} are both {name}")
        kept[name] = (raw, source.tensors[raw])
    if doubled:
        raise UserError(f"{source.file}: {first_ten(doubled, '; ')}; keep one of each")
    shapes = {name: tensor.shape for name, (_, tensor) in there.items()}
    chosen = _head(source, shapes, values, head)
    kind = chosen.kind if chosen else None
    table = _wanted(names.table(albert, kind), shapes, values)
    tied = _take_tied(there, table)
    expected = parameter_shapes(albert, kind, _outputs(kind, shapes))
    if names.transposed:
        expected = {p: s[::-1] if p.endswith("/kernel") else s for p, s in expected.items()}
    _check(source, there, table, expected)
    arrays = {path: there[name][1].read() for path, name in table.items()}
    inventory = [_row(*there[table[path]], path, array) for path, array in arrays.items()]
    dtypes = {str(array.dtype) for array in arrays.values()}
    for path, array in arrays.items():
        wide = array.astype(np.float32) if array.dtype in _WIDENED else array
        if names.transposed and path.endswith("/kernel"):
            wide = np.ascontiguousarray(wide.T)  # else each would be in memory twice when written
            forget(array)
        arrays[path] = wide
    _check_tied(source, tied, arrays, table)
    _check_finite(source, {there[name][0]: arrays[path] for path, name in table.items()})
    step = _global_step(source, ignored)
    slots = _slots(source, ignored, table, expected) if with_optimizer else None
    counts = Counter({names.ignored_as: len(ignored) - (step is not None) - len(slots or ())})
    counts["tied copies"] = len(tied)
    return Weights(
        params=_without_identity(arrays, albert),
        config=albert,
        head=chosen,
        inventory=inventory,
        transformers=leftovers(values),
        optimizer=slots,
        global_step=step,
        dtype=dtypes.pop() if len(dtypes) == 1 else "float32",
        ignored={name: count for name, count in counts.items() if count},
        notes=(note,),
    )


def _global_step(source: WeightSource, ignored: Mapping[str, tuple[str, Tensor]]) -> int | None:
    if tf_names.GLOBAL_STEP not in ignored:
        return None
    tensor = ignored[tf_names.GLOBAL_STEP][1]
    if tensor.shape != () or tensor.dtype.kind not in "iu":
        described = f"{tensor.dtype}{list(tensor.shape)}"
        raise UserError(f"{source.file} has a {tf_names.GLOBAL_STEP} {described}, not a number")
    return int(tensor.read())


def _check_finite(source: WeightSource, arrays: Mapping[str, np.ndarray]) -> None:
    if wrong := not_finite(arrays):
        raise UserError(
            f"{source.file} has NaN or infinities in {len(wrong)} of {len(arrays)} tensors "
            f"({first_ten(wrong)}), nothing was written; such a model gives no meaningful answer: "
            "take a checkpoint from before they appeared"
        )


def leftovers(values: Mapping[str, Any]) -> JsonObject:
    """Return the values of a config.json that neither the architecture nor the weights record."""
    own = {f.name for f in dataclasses.fields(AlbertConfig)} | _OWN_KEYS
    return {key: value for key, value in values.items() if key not in own}


def _outputs(kind: str | None, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of a head's outputs, from its kind or else from its weights."""
    if kind in LABELS:
        return LABELS[kind]
    for name in ("output_weights", "classifier.weight", "output_bias", "classifier.bias"):
        if shapes.get(name):
            return shapes[name][0]
    return 0


def _wanted(
    table: dict[str, str], shapes: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, str]:
    """Return the entries of the table that must be there.

    A part may be missing, but not half of it.
    """
    architecture = str((_list(values.get("architectures")) or [""])[0])
    parts = {"embeddings", "encoder", _OF_ARCHITECTURE.get(architecture, "encoder")}
    parts |= {part_of(path) for path, name in table.items() if name in shapes}
    return {path: name for path, name in table.items() if part_of(path) in parts}


def _check(
    source: WeightSource,
    there: Mapping[str, tuple[str, Tensor]],
    table: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise UserError with every tensor that is missing, unused, of another shape or no float."""
    missing = [
        f"{name} {list(expected[path])}" for path, name in table.items() if name not in there
    ]
    unused = [f"{there[n][0]} {list(there[n][1].shape)}" for n in set(there) - set(table.values())]
    shaped, typed = [], []
    for path, name in table.items():
        if name not in there:
            continue
        raw, tensor = there[name]
        if tensor.shape != expected[path]:
            shaped.append(f"{raw} is {list(tensor.shape)}, not {list(expected[path])}")
        if tensor.dtype not in (np.dtype(np.float32), *_WIDENED):
            typed.append(f"{raw} is {tensor.dtype}")
    phrases = [
        f"{len(found)} {what}: {first_ten(sorted(found))}"
        for what, found in (
            ("missing", missing),
            ("not known", unused),
            ("of another shape than the configuration says", shaped),
            ("neither float32, float16 nor bfloat16", typed),
        )
        if found
    ]
    if phrases:
        raise UserError(
            f"{source.file} does not fit its configuration, nothing was written: "
            f"{'; '.join(phrases)}"
        )


def _row(raw: str, tensor: Tensor, path: str, array: np.ndarray) -> ConvertedTensor:
    return ConvertedTensor(
        source=raw,
        path=path,
        shape=list(tensor.shape),
        dtype=str(tensor.dtype),
        crc32c=crc32c(array),
    )


def _take_tied(
    there: dict[str, tuple[str, Tensor]], table: Mapping[str, str]
) -> dict[str, tuple[str, Tensor]]:
    """Remove transformers' copies of the masked-LM head's tied tensors, and return them by path."""
    copies = {
        "embeddings/word_embeddings": hf_names.DECODER,
        "predictions/output_bias": "predictions.decoder.bias",
    }
    return {p: there.pop(n) for p, n in copies.items() if p in table and n in there}


def _check_tied(
    source: WeightSource,
    tied: Mapping[str, tuple[str, Tensor]],
    arrays: Mapping[str, np.ndarray],
    table: Mapping[str, str],
) -> None:
    for path, (raw, tensor) in tied.items():
        if not np.array_equal(tensor.read(), arrays[path]):
            raise UserError(
                f"{source.file}: {shortened(raw)} differs from {table[path]}, with which ALBERT "
                "ties it; a model with a decoder of its own is not supported"
            )


def _slots(
    source: WeightSource,
    ignored: Mapping[str, tuple[str, Tensor]],
    table: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """Return the optimizer's slots of the variables in `table`, by slot/path.

    Raises UserError if some are missing.
    """
    wanted = {
        f"{slot}/{path}": (f"{name}/{slot}", expected[path])
        for slot in tf_names.SLOTS
        for path, name in table.items()
    }
    wrong = [
        f"{name} {list(shape)}"
        for name, shape in wanted.values()
        if name not in ignored or ignored[name][1].shape != shape
    ]
    if len(wrong) == len(wanted):
        raise UserError(
            f"{source.file} has no {' or '.join(tf_names.SLOTS)}; go without "
            f"{setting('with_optimizer')}"
        )
    if wrong:
        told = first_ten(sorted(wrong))
        raise UserError(f"{source.file} lacks slots of the optimizer: {told}")
    slots = {path: ignored[name][1].read() for path, (name, _) in wanted.items()}
    typed = [
        f"{wanted[path][0]} is {array.dtype}"
        for path, array in slots.items()
        if array.dtype != np.float32
    ]
    if typed:
        raise UserError(f"{source.file} has slots that are not float32: {first_ten(typed)}")
    _check_finite(source, {wanted[path][0]: array for path, array in slots.items()})
    return slots


# --------------------------------------------------------------------------------------- E equals H


def _without_identity(params: dict[str, np.ndarray], config: AlbertConfig) -> dict[str, np.ndarray]:
    """Leave out a mapping from E to an equal H that changes nothing, which the original lacks."""
    if config.embedding_size != config.hidden_size or f"{MAPPING}/kernel" not in params:
        return params
    kept = {path: array for path, array in params.items() if not path.startswith(MAPPING)}
    return kept if is_identity(params) else params


def is_identity(params: Mapping[str, np.ndarray]) -> bool:
    """Return whether the embedding mapping is the one that `identity_mapping` makes."""
    made = identity_mapping(len(params[f"{MAPPING}/bias"]))
    return all(np.ascontiguousarray(params[p]).tobytes() == made[p].tobytes() for p in made)


def identity_mapping(size: int) -> dict[str, np.ndarray]:
    """Return a mapping that changes nothing, for transformers, which always has one."""
    return {
        f"{MAPPING}/kernel": np.eye(size, dtype=np.float32),
        f"{MAPPING}/bias": np.zeros(size, np.float32),
    }

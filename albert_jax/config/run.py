# SPDX-License-Identifier: Apache-2.0
"""Every setting there is, as frozen dataclasses, in three kinds that never mix.

`AlbertConfig` is what the weights mean and the only kind a checkpoint stores; `ComputeConfig` is
how this machine computes them; `PretrainConfig` and `FinetuneConfig` are how we
train. Standard library only, so that `--help` need not wait for JAX.
"""

from __future__ import annotations

import ast
import bisect
import contextlib
import dataclasses
import difflib
import inspect
import itertools
import json
import runpy
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from albert_jax.utils.arguments import checked, shown
from albert_jax.utils.errors import UserError
from albert_jax.utils.streams import say
from albert_jax.utils.wording import shortened

# -------------------------------------------------------------------------------- types of settings


def _check_types(config: Any, section: str) -> None:
    """Raises UserError for the first field whose value is not of its declared type: a recipe is not
    type-checked."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hint):
            raise UserError(
                f"{section}.{name} {shown(value)} must be {_in_words(hint)}".removeprefix(".")
            )


def _check_least(config: Any, section: str, least: int, *names: str) -> None:
    """Raises UserError for a field that is less than `least`, or not a number; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise UserError(
                f"{section}.{name} {shown(value)} must be at least {least}".removeprefix(".")
            )


def _check_most(config: Any, section: str, most: float, *names: str) -> None:
    """Raises UserError for a field that is more than `most`."""
    for name in names:
        value = getattr(config, name)
        if not value <= most:
            raise UserError(
                f"{section}.{name} {shown(value)} must be at most {most}".removeprefix(".")
            )


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (types.UnionType, Union):
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:  # tuple[str, ...] is the only kind there is
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool):  # which is an int to Python
        return hint is bool
    if hint is float:  # one that a calculation can go on with
        return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (types.UnionType, Union):
        return " or ".join(map(_in_words, get_args(hint)))
    words = {
        bool: "True or False",
        int: "a whole number",
        float: "a finite number",
        str: "a string",
        type(None): "None",
    }
    return words.get(hint) or (
        f"of type {hint.__name__}" if isinstance(hint, type) else "strings in a tuple"
    )


# ---------------------------------------------------------------------------------------- the tasks

# The names of `albert_jax.TASKS`, which settings are checked by: the tasks themselves need NumPy.
TASK_NAMES = (
    *("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"),
    *("squad1", "squad2", "race", "race-middle", "race-high"),
    *("single", "pair", "regression", "pair-regression"),
    *("multiple-choice", "token-classification"),
)


def task_name(name: str) -> str:
    """Return the one of TASK_NAMES that is meant, however it is capitalised and hyphenated (SST-2,
    sst2); UserError, with the nearest, for an unknown one."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    known = {plain(task): task for task in TASK_NAMES}
    if plain(name) not in known:
        near = difflib.get_close_matches(plain(name), list(known), n=1)
        meant = f" (did you mean {known[near[0]]!r}?)" if near else ""
        raise UserError(f"task {name!r} is unknown{meant}; known: {', '.join(TASK_NAMES)}")
    return known[plain(name)]


def label_pairs(labels: str | Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a file's label and the task's that `--labels a=0,b=1` names.

    The last = of a pair divides it. Raises UserError for what is no such pair, and for a label of
    the file that is given twice.
    """
    pairs: dict[str, str] = {}
    given = [labels] if isinstance(labels, str) else labels
    for part in ",".join(given).split(",") if given else ():
        theirs, separator, ours = (x.strip() for x in part.rpartition("="))
        if not (theirs and separator and ours):
            raise UserError(
                f"--labels {part!r} must be a label of the file, = and the task's label for it, as "
                "in negative=0,positive=1"
            )
        if pairs.setdefault(theirs, ours) != ours:
            raise UserError(
                f"--labels gives {theirs!r} two meanings, {pairs[theirs]!r} and {ours!r}; give one"
            )
    return tuple(pairs.items())


# ---------------------------------------------------------------------------------------- the model

LARGEST = (1 << 31) - 1  # of a size: what is indexed has int32 indices
MOST_GROUPS = 1000  # each is a part of the program of its own

HIDDEN_ACTS = ("gelu", "gelu_erf", "relu", "silu", "tanh", "linear")

# What transformers' config.json calls each activation -> our name. Its "gelu" is the erf form,
# Google's the tanh form. transformers' activations.py, ACT2FN.
_HF_ACTS = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu",
    "gelu_accurate": "gelu",
    "gelu_fast": "gelu",
    "gelu_python_tanh": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "linear": "linear",
}

_MOST_BYTES = 1 << 22  # of a configuration file


@dataclass(frozen=True)
class AlbertConfig:
    """An ALBERT architecture, by the field names of the released `albert_config.json`.

    The defaults are xxlarge's, as in the original (modeling.py:42-57). `hidden_act` has Google's
    meaning: "gelu" is the tanh approximation and "gelu_erf" the exact form that transformers calls
    "gelu".
    """

    vocab_size: int = 30000  # rows of the word embeddings: the vocabulary's pieces, or more
    embedding_size: int = 128  # E, the factorised embedding's width
    hidden_size: int = 4096  # H
    num_hidden_layers: int = 12  # how often the shared layer is applied
    num_hidden_groups: int = 1  # parameter sets that the layers are divided over
    num_attention_heads: int = 64  # N
    intermediate_size: int = 16384  # I, the feed-forward width
    inner_group_num: int = 1  # attention + feed-forward blocks in one layer
    hidden_act: str = "gelu"  # gelu (tanh form) | gelu_erf | relu | silu | tanh | linear
    hidden_dropout_prob: float = 0.0  # after embeddings, attention and feed-forward outputs
    attention_probs_dropout_prob: float = 0.0  # on the attention probabilities
    max_position_embeddings: int = 512  # the longest sequence
    type_vocab_size: int = 2  # segments
    initializer_range: float = 0.02  # stddev of the truncated normal
    layer_norm_eps: float = 1e-12  # tf.contrib.layers.layer_norm in float32

    def __post_init__(self) -> None:
        _check_types(self, "")
        sizes = [f.name for f in dataclasses.fields(self) if type(f.default) is int]
        _check_least(self, "", 1, *sizes)
        _check_most(self, "", LARGEST, *sizes)
        _check_most(self, "", MOST_GROUPS, "num_hidden_groups")
        _check_least(self, "", 0, "initializer_range", "layer_norm_eps")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}; choose a number of heads that divides it"
            )
        if self.num_hidden_groups > self.num_hidden_layers:
            raise UserError(
                f"num_hidden_groups {self.num_hidden_groups} exceeds num_hidden_layers "
                f"{self.num_hidden_layers}; every group needs a layer"
            )
        if self.hidden_act not in HIDDEN_ACTS:
            raise UserError(
                f"hidden_act {shown(self.hidden_act)} is unknown; "
                f"use one of {', '.join(HIDDEN_ACTS)}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} {shown(getattr(self, name))} must lie in [0, 1)")

    @property
    def head_size(self) -> int:
        """D, the width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def group_lengths(self) -> tuple[int, ...]:
        """Number of layers each group serves, in order; layer i uses group int(i / L * G) as the
        original has it."""
        layers, groups = self.num_hidden_layers, self.num_hidden_groups

        # In floating point, as modeling.py:1091: i * G // L differs at L=G=22 (layer 15) and L=G=23
        # (layer 13).
        def group_of(layer: int) -> int:
            return int(layer / layers * groups)

        # A group's layers follow each other, so each is found without a walk through all of them.
        ends = [bisect.bisect_right(range(layers), g, key=group_of) for g in range(groups)]
        return tuple(end - start for start, end in itertools.pairwise([0, *ends]))

    @classmethod
    def from_json(cls, path: str | Path) -> AlbertConfig:
        """Reads `albert_config.json` (Google's meaning of "gelu": tanh) or transformers'
        `config.json` (its own: erf).

        Which kind it is shows in the content (`model_type` or `architectures` mark transformers),
        and is printed to stderr with the activation chosen. Raises UserError for a file that is
        missing, not JSON or of another model.
        """
        path = Path(path)
        try:
            if (size := path.stat().st_size) > _MOST_BYTES:
                raise ValueError(f"{size:,} bytes, over {_MOST_BYTES:,}")
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{path} does not exist; give an albert_config.json or a transformers config.json"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is not readable JSON ({error}); give an albert_config.json"
            ) from None
        if not isinstance(values, dict):
            raise UserError(
                f"{path} holds a {type(values).__name__}, "
                "not a JSON object; give an albert_config.json"
            )
        config, kind = cls.from_dict(values, path)
        say(
            f"{path.name}: {kind}, hidden_act "
            f"{shown(values.get('hidden_act', 'gelu'))} read as {config.hidden_act!r}"
            f"{' (tanh approximation)' if config.hidden_act == 'gelu' else ''}"
        )
        return config

    @classmethod
    def from_dict(cls, values: dict[str, Any], path: Path) -> tuple[AlbertConfig, str]:
        """A file's values and which kind of file they are; `path` is for errors, as `from_json`."""
        is_transformers = (
            "model_type" in values or "architectures" in values or "transformers_version" in values
        )
        if values.get("model_type", "albert") != "albert":
            other = shortened(str(values["model_type"]))
            raise UserError(f"{path} describes a {other} model, not ALBERT")
        names = {f.name for f in dataclasses.fields(cls)}
        chosen = {name: value for name, value in values.items() if name in names}
        if "vocab_size" not in chosen:
            raise UserError(f"{path} has no vocab_size, so it is no ALBERT configuration")
        for name, value in chosen.items():
            is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
            if is_whole and type(getattr(cls, name)) is int:
                chosen[name] = int(value)  # JavaScript's JSON writers know no whole numbers
        kind = "Google albert_config.json"
        if is_transformers:
            kind = "transformers config.json"
            act = chosen.get("hidden_act", "gelu_new")
            if act not in list(_HF_ACTS):  # it may be unhashable
                raise UserError(
                    f"{path}: hidden_act {shown(act)} is unknown; known: {', '.join(_HF_ACTS)}"
                )
            chosen["hidden_act"] = _HF_ACTS[act]
        try:
            return cls(**chosen), kind
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def to_json(self, path: str | Path) -> None:
        """Writes `albert_config.json`, Google's field names and meanings."""
        Path(path).write_text(
            json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8"
        )


def _released(hidden: int, layers: int, heads: int, dropout: float) -> AlbertConfig:
    return AlbertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


# The eight released models: hidden size, layers, heads (xlarge's heads are 128 wide), dropout. v2
# dropped dropout; v1 xxlarge never had it. google-research/albert README and the albert_config.json
# files.
MODELS: dict[str, AlbertConfig] = {
    "base-v1": _released(768, 12, 12, 0.1),
    "large-v1": _released(1024, 24, 16, 0.1),
    "xlarge-v1": _released(2048, 24, 16, 0.1),
    "xxlarge-v1": _released(4096, 12, 64, 0.0),
    "base-v2": _released(768, 12, 12, 0.0),
    "large-v2": _released(1024, 24, 16, 0.0),
    "xlarge-v2": _released(2048, 24, 16, 0.0),
    "xxlarge-v2": _released(4096, 12, 64, 0.0),
}


def model_config(name: str) -> AlbertConfig:
    """The released model of that name; raises UserError that names the nearest."""
    if name not in MODELS:
        raise UserError(
            f"model {name!r} is unknown{_nearest(name, MODELS)}; known: {', '.join(MODELS)}"
        )
    return MODELS[name]


# -------------------------------------------------------------------------------------- the machine


@dataclass(frozen=True)
class ComputeConfig:
    """How this machine computes the model; never stored with the weights."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matmuls and activations; parameters, softmax, LayerNorm and losses are float32 always."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing; all but matmul outputs; each whole layer."""
    scan_unroll: int = 0
    """Layers unrolled in each turn of the scan; 0: all in training and evaluation (on a CPU with
    remat one, as unrolled its compiler saves no memory), else one."""
    attention: Literal["auto", "xla", "cudnn", "rows", "splash"] = "auto"
    """Attention kernel; auto: cudnn on GPU, rows or splash on TPU where they can, else xla."""
    fused: bool = True
    """Gradients written by hand, which take less time and memory; False: JAX's own, which have
    forward-mode derivatives too (jvp, Hessians)."""

    def __post_init__(self) -> None:
        _check_types(self, "compute")
        _check_least(self, "compute", 0, "scan_unroll")


# ------------------------------------------------------------------------------------- the training


@dataclass(frozen=True)
class ExamplesConfig:
    """How pretraining examples are drawn; every default is create_pretraining_data.py's."""

    objective: Literal["sop", "nsp", "none"] = "sop"
    """Second objective: sentence order, next sentence (the original's --random_next_sentence), or
    none (pairs in order, no second loss)."""
    max_seq_length: int = 512
    """Tokens in a row, [CLS] and two [SEP] included."""
    max_predictions_per_seq: int = 20
    """Most tokens predicted in a row: 20 as published (3.9 % of 512); 77 is 15 % of 512."""
    masked_lm_prob: float = 0.15
    """Share of a row's tokens to predict, before max_predictions_per_seq cuts it."""
    short_seq_prob: float = 0.1
    """Chance, per document and epoch, that its rows have a random shorter length."""
    short_seq_per: Literal["document", "row"] = "document"
    """What draws that length: a document, for all its rows of an epoch (the original), or each row
    by itself."""
    ngram: int = 3
    """Longest n-gram masked as one, in whole words; 1 masks single words."""
    favor_shorter_ngram: bool = True
    """n has probability proportional to 1/n; False reverses the list."""
    do_whole_word_mask: bool = True
    """Mask all pieces of a word together; False masks single pieces."""
    word_start: Literal["albert", "marker"] = "albert"
    """Pieces that begin a word: the original's rule, by which digits, accented letters and
    punctuation do too, or only those with SentencePiece's marker ▁."""
    count_special_tokens: bool = True
    """masked_lm_prob is a share of the whole row, [CLS] and both [SEP] included (the original), or
    of its text only."""
    single_segment: Literal["random_document", "split"] = "random_document"
    """A chunk of ONE sentence: B from a random document, labelled 1 (the original), or the sentence
    itself split in two at a random token."""
    ngram_across_segments: bool = True
    """An n-gram may span A and B, and a continuation piece after [SEP] joins A's last word (the
    original)."""
    replace_per: Literal["token", "ngram"] = "token"
    """What draws between [MASK], the token itself and a random one, 80/10/10: each token (the
    original), or an n-gram for all its tokens."""
    random_token_excludes_special: bool = False
    """The 10 % random replacements: any id, the original token and specials included (the
    original), or ordinary pieces that differ from the original token only."""
    truncate: Literal["both_ends", "end"] = "both_ends"
    """An overlong pair loses tokens from the front or the back of the longer segment at random (the
    original), or from the back only."""

    def __post_init__(self) -> None:
        _check_types(self, "examples")
        _check_least(self, "examples", 1, "max_predictions_per_seq", "ngram")
        if self.max_seq_length < 8:
            raise UserError(
                f"examples.max_seq_length {self.max_seq_length} is too short; use 8 or more"
            )
        if not 0 < self.masked_lm_prob < 1:
            raise UserError(f"examples.masked_lm_prob {self.masked_lm_prob} must lie in (0, 1)")
        if not 0 <= self.short_seq_prob <= 1:
            raise UserError(f"examples.short_seq_prob {self.short_seq_prob} must lie in [0, 1]")


@dataclass(frozen=True)
class OptimizerConfig:
    """What run_pretraining.py's flags set; defaults are its defaults."""

    name: Literal["lamb", "adamw", "optax_lamb"] = "lamb"
    """ALBERT's LAMB; ALBERT's AdamW; optax.lamb (bias-corrected, a trust ratio for every tensor).
    """
    learning_rate: float | None = None
    """Peak; unset: the preset for this optimizer and batch size (0.00176 for LAMB at 4096, by the
    square root)."""
    warmup_steps: int | None = None
    """Linear warm-up; unset: 2.5 % of the steps, the original's 3,125 of 125,000."""
    poly_power: float = 1.0
    """Power of the polynomial decay to zero at the last step."""
    weight_decay: float = 0.01
    """Not applied to LayerNorm and biases."""
    beta1: float = 0.9
    """Decay of the gradients' mean."""
    beta2: float = 0.999
    """Decay of the squared gradients' mean."""
    epsilon: float = 1e-6
    """Added outside the square root."""
    clip_norm: float = 1.0
    """Global gradient norm is clipped to this before the moments; 0 turns it off."""

    def __post_init__(self) -> None:
        _check_types(self, "optimizer")
        _check_least(
            self,
            "optimizer",
            0,
            "learning_rate",
            "warmup_steps",
            "poly_power",
            "weight_decay",
            "epsilon",
        )
        _check_least(self, "optimizer", 0, "clip_norm")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name} {getattr(self, name)} must lie in [0, 1)")


@dataclass(frozen=True)
class GuardConfig:
    """When a run is held to have gone wrong, and what is done then."""

    spike: float = 2.0
    """Nats above the median of the last `window` losses that make a spike; 0 turns spikes off."""
    patience: int = 3
    """Spiking steps in a row before rolling back; a loss that is not finite rolls back at once."""
    window: int = 100
    """Losses the median is taken over."""
    max_rollbacks: int = 3
    """Rollbacks without a new checkpoint in between before the run gives up."""
    step_timeout: float = 0.0
    """Seconds without a finished step before stacks are dumped and the run ends with status 75;
    0: max(300, 20 x the median step)."""

    def __post_init__(self) -> None:
        _check_types(self, "guard")
        _check_least(self, "guard", 1, "patience", "window")
        _check_least(self, "guard", 0, "spike", "max_rollbacks", "step_timeout")


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 125_000
    """Optimizer updates."""
    batch_size: int = 4096
    """Sequences an update, over all devices."""
    accumulate: int = 1
    """Micro-batches that make up one update."""
    seed: int = 12345
    """Of initial weights, dropout and examples; create_pretraining_data.py's --random_seed."""
    mode: Literal["jit", "pmap"] = "jit"
    """How the step is spread over the devices: jit over a mesh, or the same step under jax.pmap."""
    devices: int | None = None
    """Local devices to use; unset: all."""
    log_every: int = 100
    """Steps between log lines."""
    eval_every: int = 5000
    """Steps between held-out evaluations (one at the end always); 0: at the end only."""
    eval_examples: int = 6400
    """Held-out examples an evaluation takes at most: the original's 100 steps of 64."""
    save_every: int = 5000
    """Steps between checkpoints (one at the end and on SIGTERM always)."""
    save_minutes: float = 30.0
    """Minutes between checkpoints where steps are slow; 0: by steps only."""
    keep: int = 5
    """Checkpoints kept, at least 2."""
    data_threads: int = 2
    """Threads that draw examples ahead of the step."""
    data_workers: int = 0
    """Processes that draw examples instead; the batches are the same."""
    compilation_cache: str | None = None
    """Folder of compiled programs; unset: ~/.cache/albert_jax/xla; "" turns it off."""

    def __post_init__(self) -> None:
        _check_types(self, "train")
        _check_least(
            self,
            "train",
            1,
            "steps",
            "batch_size",
            "accumulate",
            "devices",
            "log_every",
            "eval_examples",
        )
        _check_least(
            self,
            "train",
            0,
            "seed",
            "eval_every",
            "save_every",
            "save_minutes",
            "data_threads",
            "data_workers",
        )
        if self.keep < 2:
            raise UserError(
                f"train.keep {self.keep} must be at least 2: a checkpoint may turn out damaged"
            )
        if self.batch_size % self.accumulate:
            raise UserError(
                f"train.batch_size {self.batch_size} does not divide into train.accumulate "
                f"{self.accumulate} micro-batches"
            )


@dataclass(frozen=True)
class PretrainConfig:
    """Everything `albert-jax pretrain` needs."""

    model: AlbertConfig = field(default_factory=lambda: MODELS["base-v2"])
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    store: str | None = None
    """Token store made by `albert-jax prepare`, a folder or gs://…, or several: A:0.7,B:0.3 with
    their shares of the examples, A,B by size; or a folder or glob of the original's TFRecord
    shards."""
    vocab: str | None = None
    """SentencePiece model, needed beside TFRecord shards only: a store carries its own."""
    heldout: str | None = None
    """TFRecord shards to evaluate on, beside TFRecord shards only: a store carries its own held-out
    split."""
    text: tuple[str, ...] = ()
    """Where no store is given: text files to train a vocabulary on (model.vocab_size pieces) and to
    prepare inside the work directory; `python-docs` is the English text that every Python carries.
    """
    workdir: str | None = None
    """Work directory: checkpoints, logs and, at the end, model/."""
    init_from: str | None = None
    """Model directory to start from, also one of another depth: the shared layer allows it."""

    def __post_init__(self) -> None:
        _check_types(self, "")
        if self.examples.max_seq_length > self.model.max_position_embeddings:
            raise UserError(
                f"examples.max_seq_length {self.examples.max_seq_length} exceeds "
                f"model.max_position_embeddings "
                f"{self.model.max_position_embeddings}"
            )


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything `albert-jax finetune` needs; configs/ has the paper's settings for each task."""

    task: str = "sst2"
    """A name of albert_jax.TASKS."""
    model: str | None = None
    """Model directory to start from: pretrained, or fine-tuned on another task (MNLI for RTE, STS-B
    and MRPC), whose head is then left behind."""
    random_weights: bool = False
    """Take only the architecture and the vocabulary from `model`, as a control."""
    data: str | None = None
    """Folder of the task's files as published, or tfds."""
    workdir: str | None = None
    """Work directory: checkpoints, logs, results.json, and the model directories last and best."""
    max_seq_length: int = 512
    """Tokens in a row, special ones included; what is longer is cut, or divided into windows."""
    texts: tuple[str, ...] = ()
    """Columns of a user's own task that hold its texts; unset: as the task has them."""
    label: str | None = None
    """Column of a user's own task that holds the label; unset: label."""
    labels: tuple[str, ...] = ()
    """What the files' labels are in the task, as negative=0,positive=1; those not named: as they
    are."""
    doc_stride: int | None = None
    """Tokens from one SQuAD window's start to the next's; unset: 128."""
    max_query_length: int | None = None
    """Tokens a SQuAD question is cut to; unset: 64."""
    dropout: float | None = None
    """Both dropouts of the encoder; unset: as the model directory has them."""
    classifier_dropout: float = 0.1
    """Before the head's last matrix, whatever the encoder's. classifier_utils.py:794."""
    length_window: int = 32
    """Batches that are sorted by length together, so that few tokens are padding; 1: none are, and
    a batch is as long as its longest row."""
    pack: int = 0
    """Tokens of rows that short examples share, each seeing itself only, to compute no padding in
    batches of one shape and any mixture of lengths (length_window is then 1); 0: an example a row.
    Of classification and regression."""
    seeds: int = 1
    """Runs, each with the next seed from train.seed on; their median and spread are told."""
    restarts: int = 0
    """Times that a degenerate run, one that answers all dev examples alike, may begin anew with
    another seed."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="adamw", learning_rate=1e-5)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=2000,
            batch_size=32,
            log_every=50,
            eval_every=100,
            eval_examples=1_000_000,
            save_every=500,
            keep=2,
        )
    )
    # A regression's loss may well jump by more than 2; a loss that is not finite rolls back anyway.
    guard: GuardConfig = field(default_factory=lambda: GuardConfig(spike=0.0))

    def __post_init__(self) -> None:
        _check_types(self, "")
        task_name(self.task)
        label_pairs(self.labels)
        _check_least(self, "", 1, "doc_stride", "max_query_length", "length_window", "seeds")
        _check_least(self, "", 0, "restarts", "pack")
        if self.max_seq_length < 8:
            raise UserError(f"max_seq_length {self.max_seq_length} is too short; use 8 or more")
        for name in ("dropout", "classifier_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name} {value} must lie in [0, 1)")

    @property
    def window(self) -> int:
        """Batches that are sorted by length together: packed, a batch does well to mix lengths."""
        return 1 if self.pack else self.length_window


# ---------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class BenchmarkConfig:
    """What `albert-jax benchmark` measures; what is unset is as the recipe has it."""

    model: str = "base-v2"
    """Released model, albert_config.json, model directory, or recipe with arguments after a
    colon."""
    phase: Literal["train", "forward", "finetune", "input"] = "train"
    """The step of pretrain; that of its evaluation; a classifier's step; drawing batches."""
    batch_size: int | None = None
    """Sequences a step, over all devices; without a recipe 32."""
    sequence: int | None = None
    """Tokens in a row; without a recipe 512, or as many as the model has positions for."""
    predictions: int | None = None
    """Masked tokens in a row; without a recipe 20, as published; 77 is 15 % of 512."""
    mode: str | None = None
    """How the step is spread over the devices: jit or pmap."""
    devices: int | None = None
    """Local devices to use; unset: all."""
    dtype: str | None = None
    """Of matmuls and activations: float32 or bfloat16."""
    remat: str | None = None
    """What the backward pass recomputes: none, dots or full."""
    attention: str | None = None
    """Attention kernel; auto: cudnn on GPU, rows or splash on TPU where they can, else xla."""
    unroll: int | None = None
    """Layers unrolled in each turn of the scan; 0: all."""
    accumulate: int | None = None
    """Micro-batches that make up one update."""
    store: str | None = None
    """Token store, or several, to draw batches from; unset: one made-up batch again and again, or
    with --phase input a made-up store."""
    steps: int = 20
    """Steps timed one by one, and again in a row."""
    seconds: float = 60.0
    """Either ends after so long, with three steps at least."""
    compilation_cache: str | None = None
    """Folder of compiled programs, to measure a second start; unset: compile anew."""

    def __post_init__(self) -> None:
        _check_types(self, "")
        _check_least(self, "", 1, "batch_size", "predictions", "devices", "accumulate")
        _check_least(self, "", 3, "steps")
        _check_least(self, "", 0, "seconds", "unroll")


@dataclass(frozen=True)
class EstimateConfig:
    """What `albert-jax estimate` compiles; what is unset is as the recipe has it."""

    model: str = "base-v2"
    """Released model, albert_config.json, model directory, or recipe with arguments after a
    colon."""
    topology: str = "v5e:2x2"
    """Slice: v4, v5e, v5p or v6e and its shape in chips, from v5e:1x1 to v5p:16x16x24."""
    phase: Literal["train", "forward", "finetune"] = "train"
    """The step of pretrain; that of its evaluation; a classifier's step."""
    batch_size: int | None = None
    """Sequences a step on each chip; without a recipe 32."""
    sequence: int | None = None
    """Tokens in a row; without a recipe 512, or as many as the model has positions for."""
    predictions: int | None = None
    """Masked tokens in a row; without a recipe 20, as published; 77 is 15 % of 512."""
    mode: str | None = None
    """How the step is spread over the chips: jit or pmap."""
    dtype: str | None = None
    """Of matmuls and activations: float32 or bfloat16; without a recipe bfloat16."""
    remat: str | None = None
    """What the backward pass recomputes: none, dots or full."""
    attention: str | None = None
    """Attention kernel: auto, xla, rows or splash."""
    unroll: int | None = None
    """Layers unrolled in each turn of the scan; 0: all."""
    accumulate: int | None = None
    """Micro-batches that make up one update."""
    steps: int | None = None
    """Steps of the run whose days are told; without a recipe 125,000."""

    def __post_init__(self) -> None:
        _check_types(self, "")
        _check_least(self, "", 1, "batch_size", "predictions", "accumulate", "steps")
        _check_least(self, "", 0, "unroll")


# ------------------------------------------------------------------------------------------ recipes


@checked
def load_recipe(spec: str) -> Any:
    """Returns `get_config(key=value, …)` of a recipe named as `file.py` or
    `file.py:key=value,key=value`.

    Values are Python literals (`1e-4`, `True`, `None`) or, failing that, strings. Raises UserError
    for a missing file, one without `get_config`, a key that get_config does not take (the nearest
    is named), and for whatever the recipe itself raises, with its line.
    """
    path, _, arguments = spec.partition(":")
    if not Path(path).is_file():
        raise UserError(
            f"recipe {path} does not exist; give a file such as configs/pretrain.py:model=base-v2"
        )
    with _recipe_errors(path):
        get_config = runpy.run_path(path).get("get_config")
    if not callable(get_config):
        raise UserError(f"recipe {path} defines no get_config(); see configs/ for examples")
    known = inspect.signature(get_config).parameters
    values: dict[str, Any] = {}
    for argument in filter(None, arguments.split(",")):
        key, separator, text = argument.partition("=")
        if not separator:
            raise UserError(
                f"recipe argument {argument!r} must be key=value, as in {path}:model=base-v2"
            )
        if key not in known:
            raise UserError(
                f"recipe {path} takes no {key!r}{_nearest(key, known)}; "
                f"it takes {', '.join(known) or 'nothing'}"
            )
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    with _recipe_errors(path):
        return get_config(**values)


@contextlib.contextmanager
def _recipe_errors(path: str) -> Iterator[None]:
    """Makes what a recipe raises the user's error: the recipe is the user's."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == path
        ]
        line = f" in line {lines[-1]}" if lines else ""
        raise UserError(f"recipe {path} fails{line}: {type(error).__name__}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values, nested as the dataclasses are."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""

# SPDX-License-Identifier: Apache-2.0
"""Define the settings of pretraining and fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from albert_jax.config.heads import Long
from albert_jax.config.model import MODELS, AlbertConfig, ComputeConfig
from albert_jax.config.sections import (
    SCHEDULES,
    ExamplesConfig,
    GuardConfig,
    OptimizerConfig,
    Positions,
    TrainConfig,
)
from albert_jax.config.stages import Stage, Stages, last_depth, stages_of
from albert_jax.config.task_names import class_weights, label_pairs, task_name
from albert_jax.config.validation import check_least, check_types
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

FIRST_VALUES = ("output_bias", "kernel_init", "attention_init")
"""Settings of random weights, without effect on those of init_from."""


@dataclass(frozen=True)
class PretrainConfig:
    """Set everything that `albert-jax pretrain` needs."""

    model: AlbertConfig = field(default_factory=lambda: MODELS["base-v2"])
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    store: str | None = None
    """Token store made by `albert-jax prepare`, a folder or gs://…. Several: A:0.7,B:0.3 with their
    shares of the examples, or A,B by size. Or a folder or glob of the original's TFRecord
    shards."""
    vocab: str | None = None
    """Vocabulary of TFRecord shards, which have none, or for `text` instead of a new one. A store
    has its own."""
    heldout: str | None = None
    """What to evaluate on: another store, whose held-out split replaces the store's own; with
    TFRecord shards, which have none, other TFRecord shards."""
    text: tuple[str, ...] = ()
    """Without a store: text files to train a vocabulary on (model.vocab_size pieces) and to prepare
    inside the work directory. `python-docs` and `package-docs` are the documentation inside every
    Python and the packages that are installed with this one. With vocab, or else init_from, that
    vocabulary is used."""
    workdir: str | None = None
    """Work directory: checkpoints, logs and, at the end, model/."""
    init_from: str | None = None
    """Model to start from, a folder or a name. Its depth may differ, as the layer is shared."""
    positions: Positions = "same"
    """If model.max_position_embeddings is larger than init_from's: an error (same), or its position
    embeddings are repeated from the first on (repeat), or stretched over the new ones
    (interpolate)."""
    output_bias: Literal["zero", "unigram"] = "zero"
    """Without init_from, the initial bias of the masked-LM head: zero (the original), or the
    logarithms of the pieces' frequencies in the store (unigram), which then need not be learnt."""
    kernel_init: Literal["fixed", "fan_in"] = "fixed"
    """Without init_from, the standard deviation of the kernels' initial values:
    model.initializer_range (fixed, the original), or 1 / sqrt(inputs), which suits any width
    (fan_in). Tables of embeddings always have the former."""
    attention_init: Literal["random", "local"] = "random"
    """Without init_from, the first values of position embeddings and keys: random (the original),
    or such that each head looks at a token's neighbourhood at first (local), which then need not be
    found. Use it with kernel_init fan_in."""

    def as_one_stage(self, stage: Stage) -> PretrainConfig:
        """Return the run as if all of it were one of its stages.

        Args:
            stage: the stage.

        Returns:
            The run without schedules, with the stage's rows, examples and largest depth.
        """
        unset: dict[str, Any] = dict.fromkeys(SCHEDULES, "")
        return replace(
            self,
            model=replace(self.model, num_hidden_layers=stage.depths[1]),
            examples=stage.examples,
            train=replace(self.train, batch_size=stage.batch_size, **unset),
        )

    @property
    def stages(self) -> Stages:
        """The stages of the run, from the schedules; raises UserError for a wrong one."""
        return stages_of(self.train, self.examples, self.model.num_hidden_layers)

    def __post_init__(self) -> None:
        check_types(self, "")
        _check_stages(self)
        if self.positions != "same" and self.init_from is None:
            raise UserError(
                f"{setting('positions')} {self.positions!r} is for the model of "
                f"{setting('init_from')}, and none is given"
            )
        if self.train.sop_weight and self.examples.objective == "none":
            raise UserError(
                f"{setting('train.sop_weight')} {self.train.sop_weight!r} weighs the second "
                f"objective, and {setting('examples.objective')} is 'none'; leave one of them out"
            )
        if self.examples.max_seq_length > self.model.max_position_embeddings:
            raise UserError(
                f"{setting('examples.max_seq_length')} {self.examples.max_seq_length} exceeds "
                f"{setting('model.max_position_embeddings')} {self.model.max_position_embeddings}; "
                "lower the first or raise the second"
            )


def _check_stages(config: PretrainConfig) -> None:
    stages = list(config.stages)
    most_depth = max(stage.depths[1] for stage in stages)
    if most_depth > config.model.num_hidden_layers:
        raise UserError(
            f"{setting('train.depth')} {config.train.depth!r} has {most_depth} passes, more than "
            f"{setting('model.num_hidden_layers')} {config.model.num_hidden_layers}, with which "
            "the model is evaluated and saved; raise that"
        )
    last = last_depth(config.train, config.model.num_hidden_layers)
    if last != config.model.num_hidden_layers:
        raise UserError(
            f"{setting('train.depth')} {config.train.depth!r} ends with {last} passes, but "
            f"{setting('model.num_hidden_layers')} is {config.model.num_hidden_layers}; make them "
            "the same"
        )
    if config.train.depth and config.model.num_hidden_groups > 1:
        raise UserError(
            f"{setting('train.depth')} {config.train.depth!r} needs a model with one shared layer; "
            f"{setting('model.num_hidden_groups')} is {config.model.num_hidden_groups}, give 1"
        )
    longest = max(stage.examples.max_seq_length for stage in stages)
    if longest > config.examples.max_seq_length:
        raise UserError(
            f"{setting('train.length')} {config.train.length!r} has rows of {longest} tokens, more "
            f"than {setting('examples.max_seq_length')} {config.examples.max_seq_length}; raise "
            "that"
        )
    for size in (stage.batch_size for stage in stages):
        if size % config.train.accumulate:
            raise UserError(
                f"{setting('train.batch_ramp')} {config.train.batch_ramp!r}: {size} sequences do "
                f"not divide into {setting('train.accumulate')} {config.train.accumulate} "
                "micro-batches"
            )


@dataclass(frozen=True)
class FinetuneConfig:
    """Set everything that `albert-jax finetune` needs.

    configs/ has the paper's settings for each task.
    """

    task: str = "sst2"
    """A name of albert_jax.TASKS."""
    model: str | None = None
    """Model to start from, a folder or a name: pretrained, or fine-tuned on another task (MNLI for
    RTE, STS-B and MRPC), whose head is then dropped."""
    random_weights: bool = False
    """Take only the architecture and the vocabulary from `model`, as a control."""
    data: str | None = None
    """Folder of the task's files as published, or a data set: hf:NAME[/CONFIG] of the hub, a folder
    of Parquet or Arrow files, or tfds."""
    dev_split: str = "dev"
    """Split that chooses the best step, if it is not called dev."""
    workdir: str | None = None
    """Work directory: checkpoints, logs, results.json, and the model directories last and best."""
    max_seq_length: int | None = None
    """Tokens in a row, special ones included; longer texts are cut, or divided into windows. Unset:
    512, or the model's number of positions if that is smaller."""
    positions: Positions = "same"
    """If max_seq_length exceeds the model's positions: an error (same), or more positions, with the
    position embeddings repeated from the first on (repeat) or stretched over the new ones
    (interpolate)."""
    texts: tuple[str, ...] = ()
    """Columns of a user's own task that hold its texts; unset: the task's own names."""
    label: str | None = None
    """Column of a user's own task that holds the label; unset: label, of similarity
    score. For multi-label (unset: labels) a cell has several, with ; between them; or name columns
    of 0 and 1, with , between them."""
    thresholds: Literal["half", "fit"] = "half"
    """Probability from which multi-label gives a text a label: 0.5 (half), or for each label the
    one with the best F1 on dev (fit); dev scores are then those of tuned answers."""
    labels: tuple[str, ...] = ()
    """The task's label for each label of the files, as negative=0,positive=1; labels that are not
    named keep their name."""
    doc_stride: int | None = None
    """Tokens from the start of one SQuAD window to the start of the next; unset: 128."""
    max_query_length: int | None = None
    """Tokens a SQuAD question is cut to; unset: 64."""
    long: Long = "cut"
    """How a text longer than a row is handled: cut leaves out its end, refuse is an error, windows
    makes a training row of each window and takes the mean of their logits on dev. For
    classification and regression."""
    stride: int | None = None
    """With long windows, tokens from the start of one window to the start of the next; unset: half
    a window."""
    dropout: float | None = None
    """Both dropouts of the encoder; unset: as in the model directory."""
    classifier_dropout: float = 0.1
    """Dropout before the head's last matrix, independent of the encoder's.
    classifier_utils.py:794."""
    length_window: int = 32
    """Number of batches that are sorted by length together, to reduce padding; 1: none, and a batch
    is as long as its longest row."""
    pack: int = 0
    """Tokens of a row that short examples share, each seeing itself only. Batches then have one
    shape and little padding, and lengths mix freely (length_window is 1). 0: each example has its
    own row. For classification and regression."""
    seeds: int = 1
    """Number of runs, each with the next seed from train.seed on; their median and range are
    reported."""
    restarts: int = 0
    """Number of times that a degenerate run, which gives all dev examples the same answer, may
    start again with another seed."""
    metric: str | None = None
    """Dev metric that chooses the best step, or loss, the mean dev loss; unset: the task's own. Of
    loss and mean_squared_error less is better, of all others more."""
    early_stopping: int = 0
    """Evaluations in a row without a better step after which a run ends; 0: it makes all steps."""
    class_weights: tuple[str, ...] = ()
    """Weights of the labels in the training loss, as positive=1,negative=4 (others: 1), or
    balanced: examples / (labels x examples of the label). For classification and words' classes."""
    label_smoothing: float = 0.0
    """Fraction of a label's target that is spread evenly over all labels, for tasks with classes or
    choices."""
    layer_decay: float = 1.0
    """Factor of the learning rate for each step down from the head and the pooler: the shared layer
    learns at learning_rate times this, the embeddings at learning_rate times its square."""
    lora: int = 0
    """Rank of an adapter (LoRA) of the shared layer's query and value, which is trained instead of
    the encoder and serves all its passes; 0: the encoder is trained."""
    ema: float = 0.0
    """Decay of a moving average of the weights after each step, as 0.999, which is evaluated and
    exported instead of the weights; early steps average over the steps so far. 0: no average."""
    teacher: str | None = None
    """Model fine-tuned on the same task, usually a larger one, whose probabilities are learnt in
    addition to the labels (distillation). For classification and multiple choice."""
    distill_weight: float = 0.5
    """Fraction of the distance from the teacher's probabilities in the loss."""
    temperature: float = 2.0
    """Divisor of the teacher's and the model's logits in that distance."""
    exits: bool = False
    """Train the pooler and the head after every pass, so that `predict --exit` may answer after
    fewer passes (PABEE). For classification."""
    freeze: Literal["none", "embeddings", "encoder"] = "none"
    """What keeps its values: the embeddings with their projection (embeddings), or the shared layer
    too, so that only the pooler and the head are trained (encoder)."""
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
    # A regression's loss may jump by more than 2 without harm; a loss that is not finite rolls back
    # in any case.
    guard: GuardConfig = field(default_factory=lambda: GuardConfig(spike=0.0))

    def __post_init__(self) -> None:
        check_types(self, "")
        task_name(self.task)
        label_pairs(self.labels)
        class_weights(self.class_weights)
        self._check_ranges()
        self._check_combinations()

    def _check_ranges(self) -> None:
        for name in SCHEDULES:
            if getattr(self.train, name):
                raise UserError(
                    f"{setting(f'train.{name}')} {getattr(self.train, name)!r} is of pretraining; "
                    "leave it out"
                )
        check_least(
            self, "", 1, "doc_stride", "max_query_length", "stride", "length_window", "seeds"
        )
        check_least(self, "", 0, "restarts", "pack", "early_stopping", "lora")
        if self.max_seq_length is not None and self.max_seq_length < 8:
            raise UserError(
                f"{setting('max_seq_length')} {self.max_seq_length} is too short; use 8 or more"
            )
        for name in ("dropout", "classifier_dropout", "label_smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{setting(name)} {value} must lie in [0, 1)")
        if not 0 <= self.ema < 1:
            raise UserError(f"{setting('ema')} {self.ema} must lie in [0, 1)")
        if not 0 <= self.distill_weight <= 1:
            raise UserError(f"{setting('distill_weight')} {self.distill_weight} must lie in [0, 1]")
        if not self.temperature > 0:
            raise UserError(f"{setting('temperature')} {self.temperature} must be more than 0")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"{setting('layer_decay')} {self.layer_decay} must lie in (0, 1]")

    def _check_combinations(self) -> None:
        """Raise UserError for settings that contradict each other or would have no effect."""
        if self.early_stopping and not self.train.eval_every:
            raise UserError(
                f"{setting('early_stopping')} {self.early_stopping} counts evaluations, and "
                f"{setting('train.eval_every')} 0 makes none before the end; give "
                f"{setting('train.eval_every')}"
            )
        if self.lora and self.freeze != "none":
            raise UserError(
                f"{setting('lora')} {self.lora} trains an adapter of the encoder, which keeps its "
                f"own values anyway, and {setting('freeze')} {self.freeze!r} is for runs without "
                f"one; leave out {setting('freeze')}"
            )
        if self.layer_decay != 1 and (self.lora or self.freeze == "encoder"):
            held = f"{setting('lora')} {self.lora}" if self.lora else setting("freeze", "encoder")
            raise UserError(
                f"{setting('layer_decay')} {self.layer_decay} is of the encoder's learning rates, "
                f"and with {held} the encoder learns nothing; leave out {setting('layer_decay')}"
            )
        for name, default in (("distill_weight", 0.5), ("temperature", 2.0)):
            if self.teacher is None and getattr(self, name) != default:
                raise UserError(
                    f"{setting(name)} {getattr(self, name)} is of learning from a teacher, and "
                    f"none is given; give {setting('teacher')}, or leave it out"
                )

    @property
    def window(self) -> int:
        """The number of batches that are sorted by length together; 1 with `pack`."""
        return 1 if self.pack else self.length_window

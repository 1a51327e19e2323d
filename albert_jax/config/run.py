# SPDX-License-Identifier: Apache-2.0
"""How a model is trained: pretraining and fine-tuning, section by section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from albert_jax.config.model import MODELS, AlbertConfig, ComputeConfig
from albert_jax.config.stages import stages_of
from albert_jax.config.task_names import label_pairs, task_name
from albert_jax.config.validation import check_least, check_types
from albert_jax.utils.errors import UserError


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
        check_types(self, "examples")
        check_least(self, "examples", 1, "max_predictions_per_seq", "ngram")
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

    name: Literal["lamb", "adamw", "optax_lamb", "optax_adamw", "muon"] = "lamb"
    """ALBERT's LAMB; ALBERT's AdamW; optax.lamb (bias-corrected, a trust ratio for every tensor);
    optax.adamw (bias-corrected); Muon for the kernels and optax.adamw for all else.
    """
    learning_rate: float | None = None
    """Peak; unset: the preset for this optimizer and batch size (0.00176 for LAMB at 4096, by the
    square root)."""
    warmup_steps: int | None = None
    """Linear warm-up; unset: 2.5 % of the steps, the original's 3,125 of 125,000."""
    schedule: Literal["polynomial", "cosine", "constant", "wsd"] = "polynomial"
    """From the warm-up on: polynomial decay to zero (the original); half a cosine to zero; none;
    none until the last decay_share of the steps, then linear to zero (warm-up, stable, decay)."""
    decay_share: float = 0.2
    """Of the steps, in which `wsd` decays."""
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
        check_types(self, "optimizer")
        check_least(
            self,
            "optimizer",
            0,
            "learning_rate",
            "warmup_steps",
            "poly_power",
            "weight_decay",
            "epsilon",
        )
        check_least(self, "optimizer", 0, "clip_norm")
        if not 0 < self.decay_share <= 1:
            raise UserError(f"optimizer.decay_share {self.decay_share} must lie in (0, 1]")
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
        check_types(self, "guard")
        check_least(self, "guard", 1, "patience", "window")
        check_least(self, "guard", 0, "spike", "max_rollbacks", "step_timeout")


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 125_000
    """Optimizer updates."""
    batch_size: int = 4096
    """Sequences an update, over all devices."""
    accumulate: int = 1
    """Micro-batches that make up one update."""
    depth: str = ""
    """Of pretraining: passes of the shared layer in the course of the run, as 2:0.3,4:0.3,6:0.4
    (passes and share of the steps); 2-6 draws a number for each step; unset:
    model.num_hidden_layers."""
    length: str = ""
    """Of pretraining: tokens in a row, as 64:0.8,128:0.2; unset: examples.max_seq_length, by which
    the held-out rows are made too."""
    batch_ramp: str = ""
    """Of pretraining: sequences an update, as 32:0.2,64:0.8; unset: batch_size."""
    masking: str = ""
    """Of pretraining: share of a row's tokens to predict, as 0.3:0.5,0.15:0.5; unset:
    examples.masked_lm_prob."""
    sop_weight: str = ""
    """Of pretraining: weight of the second objective's loss, as 0.5:0.5,1:0.5; unset: 1."""
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
        check_types(self, "train")
        check_least(
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
        check_least(
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
    """What to evaluate on: of another store the held-out split, in place of the store's own; beside
    TFRecord shards, which have none, TFRecord shards."""
    text: tuple[str, ...] = ()
    """Where no store is given: text files to train a vocabulary on (model.vocab_size pieces) and to
    prepare inside the work directory; `python-docs` is the English text that every Python carries.
    """
    workdir: str | None = None
    """Work directory: checkpoints, logs and, at the end, model/."""
    init_from: str | None = None
    """Model directory to start from, also one of another depth: the shared layer allows it."""
    output_bias: Literal["zero", "unigram"] = "zero"
    """First values of the masked-LM head's bias: zero (the original), or the logarithms of the
    pieces' frequencies in the store, so that they need not be learnt."""
    kernel_init: Literal["fixed", "fan_in"] = "fixed"
    """Standard deviation of the kernels' first values: model.initializer_range (the original), or
    1 / sqrt(inputs), which suits any width; tables of embeddings have the former either way."""

    def __post_init__(self) -> None:
        check_types(self, "")
        _check_stages(self)
        if self.examples.max_seq_length > self.model.max_position_embeddings:
            raise UserError(
                f"examples.max_seq_length {self.examples.max_seq_length} exceeds "
                f"model.max_position_embeddings "
                f"{self.model.max_position_embeddings}"
            )


# Fields of TrainConfig that hold a schedule over a pretraining run.
SCHEDULES = ("depth", "length", "batch_ramp", "masking", "sop_weight")


def _check_stages(config: PretrainConfig) -> None:
    stages = list(stages_of(config))
    most_depth = max(stage.depths[1] for stage in stages)
    if most_depth > config.model.num_hidden_layers:
        raise UserError(
            f"train.depth {config.train.depth!r} has {most_depth} passes, more than "
            f"model.num_hidden_layers {config.model.num_hidden_layers}, with which the model is "
            "evaluated and saved; raise that"
        )
    if stages[-1].depths[1] != config.model.num_hidden_layers:
        raise UserError(
            f"train.depth {config.train.depth!r} ends with {stages[-1].depths[1]} passes, but "
            f"model.num_hidden_layers is {config.model.num_hidden_layers}; make them the same"
        )
    if config.train.depth and config.model.num_hidden_groups > 1:
        raise UserError(
            f"train.depth {config.train.depth!r} needs a model whose layers are all one; "
            f"model.num_hidden_groups is {config.model.num_hidden_groups}, give 1"
        )
    longest = max(stage.examples.max_seq_length for stage in stages)
    if longest > config.examples.max_seq_length:
        raise UserError(
            f"train.length {config.train.length!r} has rows of {longest} tokens, more than "
            f"examples.max_seq_length {config.examples.max_seq_length}; raise that"
        )
    for size in (stage.batch_size for stage in stages):
        if size % config.train.accumulate:
            raise UserError(
                f"train.batch_ramp {config.train.batch_ramp!r}: {size} sequences do not divide "
                f"into train.accumulate {config.train.accumulate} micro-batches"
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
    max_seq_length: int | None = None
    """Tokens in a row, special ones included; what is longer is cut, or divided into windows.
    Unset: 512, or as many as the model has positions for."""
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
        check_types(self, "")
        task_name(self.task)
        label_pairs(self.labels)
        for name in SCHEDULES:
            if getattr(self.train, name):
                raise UserError(
                    f"train.{name} {getattr(self.train, name)!r} is of pretraining; leave it out"
                )
        check_least(self, "", 1, "doc_stride", "max_query_length", "length_window", "seeds")
        check_least(self, "", 0, "restarts", "pack")
        if self.max_seq_length is not None and self.max_seq_length < 8:
            raise UserError(f"max_seq_length {self.max_seq_length} is too short; use 8 or more")
        for name in ("dropout", "classifier_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name} {value} must lie in [0, 1)")

    @property
    def window(self) -> int:
        """Batches that are sorted by length together: packed, a batch does well to mix lengths."""
        return 1 if self.pack else self.length_window

# SPDX-License-Identifier: Apache-2.0
"""Define the sections of a run's settings: examples, optimizer, guard and loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from albert_jax.config.model import LARGEST
from albert_jax.config.validation import check_least, check_most, check_types
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

# Where a run's figures go, in addition to the console and metrics.jsonl.
Destination = Literal["tensorboard", "wandb", "mlflow"]

# How a model gets more position embeddings: never (an error), by repeating them from the first on,
# or by stretching them.
Positions = Literal["same", "repeat", "interpolate"]

LARGEST_SEED = (1 << 63) - 1 - (1 << 32)  # JAX's are int64, and several runs count on from it

# Fields of TrainConfig that hold a schedule over a pretraining run.
SCHEDULES = ("depth", "length", "batch_ramp", "masking", "sop_weight", "rate")


@dataclass(frozen=True)
class ExamplesConfig:
    """Set how pretraining examples are drawn; the defaults are create_pretraining_data.py's."""

    objective: Literal["sop", "nsp", "none"] = "sop"
    """Second objective: sentence order, next sentence (the original's --random_next_sentence), or
    none (pairs in order, no second loss)."""
    max_seq_length: int = 512
    """Tokens in a row, [CLS] and two [SEP] included."""
    max_predictions_per_seq: int = 20
    """Maximum of tokens predicted in a row: 20 as published (3.9 % of 512); 77 is 15 % of 512."""
    masked_lm_prob: float = 0.15
    """Fraction of a row's tokens to predict, limited by max_predictions_per_seq."""
    short_seq_prob: float = 0.1
    """Probability, for each document and epoch, that its rows have a random shorter length."""
    short_seq_per: Literal["document", "row"] = "document"
    """What draws that length: a document, for all its rows of an epoch (the original), or each
    row."""
    ngram: int = 3
    """Longest n-gram that is masked as one, in whole words; 1 masks single words."""
    favor_shorter_ngram: bool = True
    """n has probability proportional to 1/n; False reverses the list."""
    do_whole_word_mask: bool = True
    """Mask all pieces of a word together; False masks single pieces."""
    word_start: Literal["albert", "marker"] = "albert"
    """Pieces that begin a word: by the original's rule also digits, accented letters and
    punctuation (albert), or only those with SentencePiece's marker ▁ (marker)."""
    count_special_tokens: bool = True
    """masked_lm_prob is a fraction of the whole row, [CLS] and both [SEP] included (the original);
    False: of its text only."""
    single_segment: Literal["random_document", "split"] = "random_document"
    """Segment B of a chunk with ONE sentence: from a random document, labelled 1 (the original), or
    the second part of the sentence, split at a random token."""
    ngram_across_segments: bool = True
    """An n-gram may span A and B, and a continuation piece after [SEP] joins A's last word (the
    original)."""
    replace_per: Literal["token", "ngram"] = "token"
    """What draws between [MASK], the token itself and a random one, 80/10/10: each token (the
    original), or an n-gram for all its tokens."""
    random_token_excludes_special: bool = False
    """The 10 % random replacements are ordinary pieces other than the original token; False: any
    id, the original token and special ones included (the original)."""
    truncate: Literal["both_ends", "end"] = "both_ends"
    """A pair that is too long loses tokens from the front or the back of the longer segment at
    random (the original), or from the back only."""

    def __post_init__(self) -> None:
        check_types(self, "examples")
        check_least(self, "examples", 1, "max_predictions_per_seq", "ngram")
        if self.max_seq_length < 8:
            raise UserError(
                f"{setting('examples.max_seq_length')} {self.max_seq_length} is too short; use 8 "
                "or more"
            )
        if not 0 < self.masked_lm_prob < 1:
            raise UserError(
                f"{setting('examples.masked_lm_prob')} {self.masked_lm_prob} must lie in (0, 1)"
            )
        if not 0 <= self.short_seq_prob <= 1:
            raise UserError(
                f"{setting('examples.short_seq_prob')} {self.short_seq_prob} must lie in [0, 1]"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """Set what the flags of run_pretraining.py set; defaults are its defaults."""

    name: Literal["lamb", "adamw", "optax_lamb", "optax_adamw", "muon"] = "lamb"
    """ALBERT's LAMB; ALBERT's AdamW; optax.lamb (bias-corrected, a trust ratio for every tensor);
    optax.adamw (bias-corrected); Muon for the kernels and optax.adamw for all else.
    """
    learning_rate: float | None = None
    """Peak learning rate; unset: the preset for this optimizer and batch size (0.00176 for LAMB at
    4096, scaled by the square root)."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; unset: 2.5 % of the steps, the original's 3,125 of 125,000."""
    schedule: Literal["polynomial", "linear", "cosine", "constant", "wsd"] = "polynomial"
    """After warm-up: polynomial decay to zero, counted from step 0 (the original); linear decay to
    zero from the peak, as in transformers (linear); half a cosine to zero (cosine); constant; or
    constant until the last decay_share of the steps, then linear to zero (wsd: warm-up, stable,
    decay)."""
    decay_share: float = 0.2
    """Fraction of the steps in which `wsd` decays."""
    poly_power: float = 1.0
    """Power of the polynomial decay to zero at the last step."""
    weight_decay: float = 0.01
    """Weight decay; not applied to LayerNorm and biases."""
    beta1: float = 0.9
    """Decay of the gradients' moving average."""
    beta2: float = 0.999
    """Decay of the squared gradients' moving average."""
    epsilon: float = 1e-6
    """Added outside the square root."""
    clip_norm: float = 1.0
    """Maximum of the global gradient norm, before the moments; 0 does not clip."""

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
        if self.warmup_steps is not None:
            check_most(self, "optimizer", LARGEST, "warmup_steps")
        if not 0 < self.decay_share <= 1:
            raise UserError(
                f"{setting('optimizer.decay_share')} {self.decay_share} must lie in (0, 1]"
            )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                named = setting(f"optimizer.{name}")
                raise UserError(f"{named} {getattr(self, name)} must lie in [0, 1)")


@dataclass(frozen=True)
class GuardConfig:
    """Set when a run counts as diverged or stuck, and what happens then."""

    spike: float = 2.0
    """A loss this many nats above the median of the last `window` losses is a spike; 0 turns spikes
    off."""
    patience: int = 3
    """Spikes in a row before a rollback; a loss that is not finite rolls back at once."""
    window: int = 100
    """Number of losses for the median."""
    max_rollbacks: int = 3
    """Rollbacks without a new checkpoint in between before the run gives up."""
    step_timeout: float = 0.0
    """Seconds without a finished step before the process dumps its stacks and ends with status 75;
    0: max(300, 20 x the median step)."""

    def __post_init__(self) -> None:
        check_types(self, "guard")
        check_least(self, "guard", 1, "patience", "window")
        check_least(self, "guard", 0, "spike", "max_rollbacks", "step_timeout")


@dataclass(frozen=True)
class TrainConfig:
    """Set the length of a run, its batches, and when it logs, evaluates and saves."""

    steps: int = 125_000
    """Optimizer updates."""
    batch_size: int = 4096
    """Sequences an update, over all devices."""
    accumulate: int = 1
    """Micro-batches that make up one update."""
    depth: str = ""
    """For pretraining, passes of the shared layer over the run, as 2:0.3,4:0.3,all:0.4 (passes and
    fraction of the steps; all: model.num_hidden_layers); 2-6 draws a number for each step; unset:
    all."""
    length: str = ""
    """For pretraining, tokens in a row over the run, as 64:0.8,128:0.2; unset:
    examples.max_seq_length, which held-out rows always have."""
    batch_ramp: str = ""
    """For pretraining, sequences an update over the run, as 32:0.2,64:0.8; unset: batch_size."""
    masking: str = ""
    """For pretraining, fraction of a row's tokens to predict over the run, as 0.3:0.5,0.15:0.5;
    unset: examples.masked_lm_prob."""
    sop_weight: str = ""
    """For pretraining, weight of the second objective's loss over the run, as 0.5:0.5,1:0.5; unset:
    1."""
    rate: str = ""
    """For pretraining, factor of the learning rate over the run, as 1:0.5,0.3:0.5; unset: 1."""
    seed: int = 12345
    """Seed of initial weights, dropout and examples; create_pretraining_data.py's --random_seed."""
    mode: Literal["jit", "pmap"] = "jit"
    """How the step is spread over the devices: jit over a mesh, or the same step under jax.pmap."""
    devices: int | None = None
    """Local devices to use; unset: all."""
    log_every: int = 100
    """Steps between log lines."""
    eval_every: int = 5000
    """Steps between held-out evaluations; there is always one at the end; 0: only that."""
    eval_examples: int = 6400
    """Maximum of held-out examples in an evaluation: the original's 100 steps of 64."""
    save_every: int = 5000
    """Steps between checkpoints; there is always one at the end and on SIGTERM."""
    save_minutes: float = 30.0
    """Minutes between checkpoints if steps are slow; 0: by steps only."""
    keep: int = 5
    """Checkpoints kept, at least 2."""
    data_threads: int = 2
    """Threads that draw examples ahead of the step."""
    data_workers: int = 0
    """Processes that draw examples instead; the batches are the same."""
    compilation_cache: str | None = None
    """Folder of compiled programs; unset: JAX_COMPILATION_CACHE_DIR, or ~/.cache/albert_jax/xla; ""
    sets none, so that only JAX_COMPILATION_CACHE_DIR counts."""

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
        check_most(self, "train", LARGEST, "steps", "batch_size", "accumulate")
        if self.keep < 2:
            raise UserError(
                f"{setting('train.keep')} {self.keep} must be at least 2: a checkpoint may turn "
                "out damaged"
            )
        if self.batch_size % self.accumulate:
            raise UserError(
                f"{setting('train.batch_size')} {self.batch_size} does not divide into "
                f"{setting('train.accumulate')} {self.accumulate} micro-batches; make it a multiple"
            )
        check_most(self, "train", LARGEST_SEED, "seed")

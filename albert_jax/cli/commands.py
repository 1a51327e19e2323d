# SPDX-License-Identifier: Apache-2.0
"""Define the commands.

Each is a frozen dataclass whose fields are its flags, and whose `run` makes one call and prints the
result. tyro reads the fields, their types, defaults and docstrings, so that a flag is declared
once. A command imports what it calls when it runs, so that `--help` never waits for JAX.
"""

from __future__ import annotations

import dataclasses
import itertools
import json as json_module
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from albert_jax.config.heads import Long
from albert_jax.config.manifests import Mode
from albert_jax.config.model import ComputeConfig, Dtype, Engine
from albert_jax.config.perf import BenchmarkConfig, EstimateConfig
from albert_jax.config.run import FinetuneConfig, PretrainConfig
from albert_jax.config.sections import Destination
from albert_jax.utils.collector import staying
from albert_jax.utils.errors import UserError
from albert_jax.utils.streams import json_line, say

if TYPE_CHECKING:
    import numpy as np

    from albert_jax.inference.finetuned import AnswerSettings
    from albert_jax.utils.json_values import JsonObject

T = TypeVar("T")

Flags = Annotated[T, tyro.conf.arg(name="")]  # a configuration whose fields are flags themselves
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # a flag that has no --no-…
Text = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT…")]
Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Dest = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
Repository = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="hub:OWNER/NAME")]
Workdir = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")]
First = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")]
Second = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")]
Described = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL|STORE|RECIPE")]
Sweep = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]


class Command:
    """Hold a command line that has been parsed."""

    def run(self) -> None:
        """Do what the command is for, and print its results to stdout."""
        raise NotImplementedError


def _fields(flags: Any, *without: str) -> dict[str, Any]:
    """Return a dataclass's fields by name, as keyword arguments of the function to call."""
    names = [field.name for field in dataclasses.fields(flags)]
    return {name: getattr(flags, name) for name in names if name not in without}


def _gives_any(flags: Any, names: Sequence[str]) -> bool:
    """Return whether one of these fields has another value than its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(flags)}
    return any(getattr(flags, name) != defaults[name] for name in names)


def _require_model(given: str, name: str = "model", *, base: str | None = None) -> None:
    """Raise UserError unless a path is a model.

    A model that is given by its name is fetched, and an adapter is merged with its base.
    """
    from albert_jax.checkpoint.model_paths import require_model_directory  # reads vocabularies too

    require_model_directory(given, name, base=base)


def _keep_programs() -> None:
    """Keep the programs that are compiled from now on for the next call; this imports JAX."""
    from albert_jax.distributed.compilation_cache import set_compilation_cache

    set_compilation_cache(None)


# -------------------------------------------------------------------------------------- from text


@dataclass(frozen=True, kw_only=True)
class _Reading(Command):
    """Flags of the commands that read text."""

    text: Text
    """Files (plain or .gz), folders or patterns, also at gs://. With tfds: or hf:, names of splits.
    python-docs and package-docs are the documentation inside Python and installed packages."""
    output: str
    """Folder to write."""
    format: str = "text"
    """text (also Parquet, and JSONL by its name), wiki (WikiExtractor's output), tfds:NAME, or
    hf:NAME[/CONFIG], a data set of the hub."""
    field: str | None = None
    """Column, key or feature that holds the text of data sets, Parquet and JSONL; unset: text."""
    sentences: Literal["auto", "lines", "split", "wrapped"] = "auto"
    """How lines become sentences: each line is one (lines), lines are split (split), or wrapped
    lines are joined and split (wrapped); auto decides for each file."""
    language: str = "en"
    """Language whose rules split sentences."""
    strict: bool = False
    """Stop at the first damaged input, instead of counting and reporting damage."""
    data_dir: str | None = None
    """Folder in which TensorFlow Datasets keeps its data."""


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer(_Reading):
    """Trains a SentencePiece vocabulary with ALBERT's settings, on the text as prepare reads it.

    Example: albert-jax train-tokenizer corpus/*.txt --vocab-size 30000 --output vocab
    """

    output: str
    """Folder that gets spiece.model and spiece.vocab."""
    vocab_size: int = 30000
    """Pieces, the five special ones included."""
    do_lower_case: bool = True
    """Lower-case, as the released vocabularies do."""
    keep_accents: bool = False
    """Keep accents, as the letters of a language need; give it to prepare too."""
    character_coverage: float = 0.99995
    """Fraction of the text's characters that get a piece; the rest become <unk>."""

    def run(self) -> None:
        from albert_jax.data.vocabulary import train_tokenizer

        print(train_tokenizer(self.text, **_fields(self, "text")))


@dataclass(frozen=True, kw_only=True)
class Prepare(_Reading):
    """Turns text into a token store: documents, sentences and 2 bytes a token, memory-mapped.

    Example: albert-jax prepare corpus/*.txt --vocab vocab/spiece.model --output store
    """

    output: str
    """Folder of the store, or gs://…. If the store is unfinished, the command continues it."""
    vocab: str
    """spiece.model, tokenizer.json, vocab.txt, the folder that holds it, or a model's name."""
    workers: int | None = None
    """Processes; unset: all cores."""
    holdout: float = 0.01
    """Fraction of the documents that is kept from training, for evaluation."""
    mode: Mode | None = None
    """How a SentencePiece model divides text: as the original (google), or as transformers' slow
    (hf) or fast (hf-fast) tokenizer; unset: as the model or the store that it belongs to, else
    google. Other vocabularies define it themselves."""
    do_lower_case: bool = True
    """Lower-case text; must be as the vocabulary was trained. A model's or a store's own vocabulary
    says it itself."""
    keep_accents: bool = False
    """Keep accents; must be as the vocabulary was trained. A model's or a store's own says it
    itself."""
    beam: tuple[str, ...] | None = None
    """Run on Apache Beam with these pipeline options, as runner=FlinkRunner; without options, in
    this process."""
    json: bool = False
    """Print the store's manifest as JSON."""

    def run(self) -> None:
        from albert_jax.config.model_names import name_of
        from albert_jax.data.prepare.build import prepare

        if name_of(self.vocab):
            _require_model(self.vocab, "vocab")
        manifest = prepare(self.text, **_fields(self, "text", "json"))
        _print_json(manifest) if self.json else print(self.output)


# --------------------------------------------------------------------------------------- training


@dataclass(frozen=True, kw_only=True)
class Pretrain(Command):
    """Pretrains an ALBERT as the recipe says; every field of the recipe is a flag below.

    The recipe comes first: a Python file whose get_config(…) returns a PretrainConfig, with
    arguments for it after a colon. Run the same command again to resume. With --multihost the same
    command, started on every host, makes one run: docs/tpu.md.

    Example: albert-jax pretrain configs/pretrain.py:model=base-v2 --store store --workdir runs/base
    """

    config: Flags[PretrainConfig]
    dry_run: bool = False
    """Print the plan (sizes, memory, time) and stop."""
    continue_with: Switch = False
    """Continue the work directory's run, finished or not, with other --train.steps, batches or
    learning rates; its history.json records the change."""
    multihost: bool = False
    """This process is one of several, on hosts that share the work directory. On Cloud TPU, GKE and
    SLURM the processes find each other; elsewhere give the next three flags too."""
    coordinator: str | None = None
    """HOST:PORT of process 0, which listens there."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""
    start_timeout: int = 120
    """Seconds in which all processes must start."""
    peer_timeout: int = 30
    """Seconds without a sign of life after which a process counts as dead, and all stop."""
    log: tuple[Destination, ...] = ("tensorboard",)
    """Trackers that receive the figures, one or several; docs/python.md."""

    def run(self) -> None:
        from albert_jax.training.run_inputs import require_pretraining_inputs
        from albert_jax.training.trackers import require_trackers
        from albert_jax.utils.malloc import keep_freed_memory

        keep_freed_memory()  # before JAX is imported, which the first use of a model's name does
        if not self.multihost:  # else `pretrain` checks them where the others hear of it
            require_pretraining_inputs(self.config, workdir_too=not self.dry_run)
            require_trackers(self.log)
        if self.dry_run and self.multihost:
            raise UserError("--dry-run plans for the devices of one host; leave out --multihost")
        if self.dry_run and self.continue_with:
            raise UserError("--dry-run plans a run from its first step; leave out --continue-with")
        from albert_jax.distributed.multihost import Launch
        from albert_jax.training.pretrain import pretrain

        launch = Launch(
            self.coordinator,
            self.num_processes,
            self.process_id,
            self.start_timeout,
            self.peer_timeout,
        )
        if not self.multihost and launch != Launch():
            raise UserError("--coordinator, --process-id and the like need --multihost")
        if self.dry_run:
            from albert_jax.perf.dry_run import describe_plan

            print(describe_plan(self.config))
        else:
            pretrain(
                self.config,
                launch=launch if self.multihost else None,
                log=self.log,
                continue_with=self.continue_with,
            )


@dataclass(frozen=True, kw_only=True)
class Finetune(Command):
    """Fine-tunes a model on a task as the recipe says; every field of the recipe is a flag below.

    The recipe comes first, as for pretrain. Run the same command again to resume. The work
    directory's model/ answers evaluate and predict.

    Example: albert-jax finetune configs/glue.py:task=mrpc --model base-v2 --data glue --workdir w
    """

    config: Flags[FinetuneConfig]
    continue_with: Switch = False
    """Continue the work directory's runs, finished or not, though --train.steps or the learning
    rate's schedule are others than so far; each run's history.json keeps what changed."""
    json: bool = False
    """Print the contents of results.json."""
    log: tuple[Destination, ...] = ("tensorboard",)
    """Trackers that receive the figures, one or several; docs/python.md."""

    def run(self) -> None:
        from albert_jax.training.run_inputs import require_finetuning_inputs
        from albert_jax.training.trackers import require_trackers
        from albert_jax.utils.malloc import keep_freed_memory

        keep_freed_memory()  # before JAX is imported, as pretrain does
        require_finetuning_inputs(self.config)
        require_trackers(self.log)
        from albert_jax.training.finetune import finetune

        results = finetune(self.config, log=self.log, continue_with=self.continue_with)
        if self.json:
            _print_json(results)


# -------------------------------------------------------------------------- with a fine-tuned model


# Flags of `_Answering` that are for one model on one task's data.
_OF_TASKS = ("doc_stride", "long", "stride", "texts", "label", "labels", "pack", "exit", "engine")


@dataclass(frozen=True, kw_only=True)
class _Answering(Command):
    """Flags of the commands that answer with a fine-tuned model."""

    task: str | None = None
    """Name of a task; unset: the one that the model was fine-tuned for."""
    max_seq_length: int | None = None
    """Tokens in a row; unset: as in fine-tuning. With --store of evaluate, 128 if it is unset, or
    fewer if the model has fewer positions or was pretrained on shorter rows."""
    doc_stride: int | None = None
    """Tokens from the start of one SQuAD window to the start of the next."""
    long: Long | None = None
    """How a text longer than a row is handled: cut leaves out its end, refuse is an error, windows
    takes the mean of its windows' logits; unset: as in fine-tuning, else cut."""
    stride: int | None = None
    """With --long windows, tokens from the start of one window to the start of the next; unset: as
    in fine-tuning, or half a window if --long is given."""
    texts: tuple[str, ...] = ()
    """Columns that hold the texts; unset: as in fine-tuning."""
    label: str | None = None
    """Column that holds the label; unset: as in fine-tuning."""
    labels: tuple[str, ...] = ()
    """The task's label for each label of the data, as negative=0,positive=1; labels that are not
    named keep their name."""
    pack: int = 0
    """Tokens of a row that short examples share, as 512, for speed; for classification and
    regression. 0: each example has its own row."""
    exit: str | None = None
    """Answer one text at a time, after fewer passes: patience=N when N passes in a row do not
    change the answer, confidence=P when it has that probability; for models of finetune --exits."""
    base: str | None = None
    """For an adapter, the model that it was trained on; unset: at its former path."""
    dtype: Dtype = "float32"
    """Type of matmuls and activations."""
    engine: Engine = "jax"
    """What computes: jax, or onnx for ONNX Runtime on this machine's CPU in float32, sooner for one
    text at a time; pip install 'albert-jax[onnx]'."""

    def _settings(self) -> AnswerSettings:
        """Return how the model answers, without the task."""
        return {
            "max_seq_length": self.max_seq_length,
            "doc_stride": self.doc_stride,
            "compute": ComputeConfig(dtype=self.dtype),
            "pack": self.pack,
            "exit": self.exit,
            "engine": self.engine,
            "labels": self.labels,
            "long": self.long,
            "stride": self.stride,
            "texts": self.texts or None,
            "label": self.label,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluate(_Answering):
    """Scores a fine-tuned model by its task's official metrics; writes the official predictions.

    With --store it measures how well a pretrained model predicts masked pieces and the order of
    sentences in a token store's held-out documents.

    With --suite card it prints the row of the model card for several fine-tuned models, one for
    each task, and the published row.

    Example: albert-jax evaluate --task sst2 --model runs/sst2/model --data glue
    """

    model: tuple[str, ...]
    """Fine-tuned model, a folder or a name; with --suite one for each task, with --store a
    pretrained one."""
    data: str | None = None
    """Folder of the task's files as published, one such file, or a data set: hf:NAME[/CONFIG], a
    folder of Parquet or Arrow files, or tfds."""
    store: str | None = None
    """Token store with the model's vocabulary, instead of --data."""
    masking: Literal["ngram", "word", "piece"] = "ngram"
    """With --store, what is masked: n-grams of words (the original), single words, single pieces.
    """
    examples: int = 6400
    """With --store, the maximum number of rows."""
    split: str = "dev"
    """dev, or another split with labels (dev_mismatched of MNLI, test of RACE)."""
    suite: Literal["card"] | None = None
    """card is SQuAD 1.1 and 2.0, MNLI, SST-2 and RACE."""
    released: str | None = None
    """Released model whose published row is printed, as base-v2; unset: the one that the models
    come from."""
    output: str | None = None
    """Folder for the predictions file; unset: predictions/ beside the model, or for a model's name
    here."""
    json: bool = False
    """Print an Evaluation as JSON, with --store a StoreEvaluation, with --suite a ModelCard;
    metrics in the official scale."""

    def run(self) -> None:
        if self.base is not None and len(self.model) != 1:
            raise UserError(f"--base is of one adapter, and there are {len(self.model)} models")
        if (self.data is None) == (self.store is None):
            raise UserError("give --data DIR for a task, or --store STORE for a pretrained model")
        for each in self.model:  # a name may have to be fetched
            _require_model(each, base=self.base)
        if self.store is not None:
            self._evaluate_store(self.store)
            return
        if self.suite:
            self._evaluate_suite()
            return
        if len(self.model) != 1:
            raise UserError(f"{len(self.model)} models; give one, or --suite card")
        if _gives_any(self, ("masking", "examples", "released")):
            raise UserError(
                "--masking and --examples are for --store, and --released for --suite; leave them "
                "out"
            )
        with staying():
            from albert_jax.inference.evaluate import evaluate, evaluation_table

        assert self.data is not None
        _keep_programs()
        found = evaluate(
            self.task,
            self.model[0],
            self.data,
            split=self.split,
            output=self.output,
            **self._settings(),
        )
        _print_json(found) if self.json else print(evaluation_table(found))

    def _evaluate_store(self, store: str) -> None:
        own = ("task", "suite", "released", "output", "split", *_OF_TASKS)
        if len(self.model) != 1 or _gives_any(self, own):
            raise UserError(
                "--store takes one --model, --masking, --examples, --max-seq-length and --dtype; "
                "leave out the others"
            )
        from albert_jax.data.required import require_stores

        require_stores(store)
        from albert_jax.training.heldout import evaluate_on_store, evaluation_lines

        _keep_programs()
        found = evaluate_on_store(
            self.model[0],
            store,
            masking=self.masking,
            max_seq_length=self.max_seq_length,
            examples=self.examples,
            compute=ComputeConfig(dtype=self.dtype),
        )
        _print_json(found) if self.json else print(evaluation_lines(found))

    def _evaluate_suite(self) -> None:
        own = ("task", "output", "split", "max_seq_length", "masking", "examples", *_OF_TASKS)
        assert self.data is not None
        if _gives_any(self, own):
            raise UserError(
                "--suite takes each model's own task, dev split and settings; leave out --task, "
                "--output, --split, --max-seq-length, --masking, --examples, --doc-stride, --long, "
                "--stride, --texts, --label, --exit, --labels, --pack and --engine"
            )
        from albert_jax.inference.model_card import card_table, evaluate_card

        _keep_programs()
        compute = ComputeConfig(dtype=self.dtype)
        card = evaluate_card(self.model, self.data, released=self.released, compute=compute)
        _print_json(card) if self.json else print(card_table(card))


@dataclass(frozen=True, kw_only=True)
class Predict(_Answering):
    """Answers new inputs with a fine-tuned model: a line of JSON for each, as they come.

    An input line is a JSON object with the task's texts by name, as {"sentence": "…"} for SST-2,
    and an answer {"id", "prediction"} with the labels' "probabilities". An answer to a text that
    was cut has "truncated" and "tokens_left_out". With --data instead it writes a split's official
    predictions file, as for GLUE's server.

    Example: albert-jax predict --model runs/sst2/model --input texts.jsonl --output answers.jsonl
    """

    model: str
    """Fine-tuned model, a folder or a name."""
    input: str | None = None
    """JSONL, or by its name CSV or TSV, whose first row names the columns; .txt with one text in
    each line; or for token classification CoNLL (.conll, .txt). Plain or gz; - is standard input,
    JSONL."""
    input_format: Literal["jsonl", "csv", "tsv", "conll", "text"] | None = None
    """Format of the input, whatever its name; text has one text in each line."""
    output: str | None = None
    """JSONL file, which appears at the end; - or unset: standard output. With --data a folder;
    unset: predictions/ beside the model, or for a model's name here."""
    data: str | None = None
    """Folder of the task's files as published, one such file, or a data set: hf:NAME[/CONFIG], a
    folder of Parquet or Arrow files, or tfds."""
    split: str = "test"
    """Split of --data to answer."""
    skip_bad: Switch = False
    """Answer {"id", "error"} to an input that has no answer, and continue with the next."""

    def run(self) -> None:
        if (self.input is None) == (self.data is None):
            raise UserError("give --input FILE, or --data DIR for a split's official file")
        if self.data is not None and self.input_format is not None:
            raise UserError("--input-format is for --input; files of --data say it by their names")
        if self.data is not None and self.skip_bad:
            raise UserError(
                "--skip-bad is for --input; a split's official file has an answer for each"
            )
        if self.input is not None and self.split != "test":
            raise UserError(f"--split {self.split} is for --data; a file of --input has one split")
        _require_model(self.model, base=self.base)  # a name may have to be fetched
        with staying():
            from albert_jax.inference.predict import predict_file, predict_split

        _keep_programs()
        settings = self._settings()
        if self.input is not None:
            dest = self.output or "-"
            predict_file(
                self.model,
                self.input,
                dest,
                task=self.task,
                input_format=self.input_format,
                skip_bad=self.skip_bad,
                **settings,
            )
            return
        assert self.data is not None
        for file in predict_split(
            self.model,
            self.data,
            task=self.task,
            split=self.split,
            output=self.output,
            **settings,
        ):
            print(file)


# ------------------------------------------------------------------------ with a pretrained model


@dataclass(frozen=True, kw_only=True)
class _OnModel(Command):
    """Flags of the commands that take a model directory."""

    model: Model
    """Model directory, transformers folder, or a name: a released model such as base-v2, OWNER/NAME
    of the Hugging Face hub, or mini."""


@dataclass(frozen=True, kw_only=True)
class _OnTexts(_OnModel):
    """Flags of the commands that give a model texts."""

    text: Text = ()
    """Texts."""
    input: str | None = None
    """UTF-8 file with one text in each line, plain or .gz; an empty line is an empty text; - is
    standard input."""
    depth: int | None = None
    """Number of passes of the shared layer; unset: as in the configuration."""
    engine: Engine = "jax"
    """What computes: jax, or onnx for ONNX Runtime on this machine's CPU, sooner for one text at a
    time; pip install 'albert-jax[onnx]'."""
    truncate: bool = False
    """Cut a text that is too long for the model instead of refusing it."""


@dataclass(frozen=True, kw_only=True)
class FillMask(_OnTexts):
    """Fills in [MASK]: the likeliest pieces, with their probabilities.

    Example: albert-jax fill-mask runs/base/model "Hello I'm a [MASK] model."
    """

    text: Text = ()
    """Sentences with [MASK] in them."""
    input: str | None = None
    """UTF-8 file with one such sentence in each line, plain or .gz; - is standard input."""
    top_k: int = 5
    """Pieces to print."""
    json: bool = False
    """Print [{"score", "token", "token_str", "sequence"}] as JSON; with --input, and for several
    texts, a list of such lists."""

    def run(self) -> None:
        _require_model(self.model)  # and the texts, before JAX is imported
        texts = _texts(self.text, self.input)
        with staying():
            from albert_jax.inference.api import load

        _keep_programs()
        albert = load(self.model, depth=self.depth, engine=self.engine)
        answers = albert.fill_mask(texts, top_k=self.top_k, truncate=self.truncate)
        if self.json:
            _print_json(answers[0] if len(self.text) == 1 else answers)
            return
        for asked, found in zip(texts, answers, strict=True):
            if len(texts) > 1:
                print(asked)
            for gap in [found] if isinstance(found[0], dict) else found:
                for answer in gap:
                    print(f"{answer['score']:.4f}  {answer['token_str']:<16}  {answer['sequence']}")


@dataclass(frozen=True, kw_only=True)
class Encode(_OnTexts):
    """Turns texts into vectors, of any layer: a line of JSON for each, or an .npz file.

    The names are those of the Python call: sequence, a vector for each token, and pooled, the
    model's own pooler or what --pool asks for; in the file also mask.

    Example: albert-jax encode runs/base/model --input texts.txt --pool mean --output vectors.npz
    """

    output: str | None = None
    """.npz file to write."""
    layer: int = -1
    """0 is the input of the first layer, 1 its output, -1 the output of the last."""
    pool: Literal["cls", "mean", "none"] = "none"
    """One vector for each text: the layer's output at [CLS], or its mean over the tokens."""
    long: Long | None = None
    """How a text that is too long for the model is handled: refuse it (also unset), cut it, or with
    --pool take the mean of its windows' vectors."""
    stride: int | None = None
    """With --long windows, tokens from the start of one window to the start of the next; unset:
    half a window."""

    def run(self) -> None:
        from albert_jax.inference.arrays_file import check_arrays_file, write_arrays

        _require_model(self.model)
        if self.output is not None:
            check_arrays_file(self.output, [] if self.input in (None, "-") else [str(self.input)])
        texts = _texts(self.text, self.input)
        with staying():
            from albert_jax.inference.api import load

        _keep_programs()
        pool = None if self.pool == "none" else self.pool
        albert = load(self.model, depth=self.depth, engine=self.engine)
        encoded = albert.encode(
            texts,
            layer=self.layer,
            pool=pool,
            truncate=self.truncate,
            long=self.long,
            stride=self.stride,
        )
        arrays = {name: x for name, x in vars(encoded).items() if x is not None}
        if self.output is None:
            _print_vectors(texts, arrays)
        else:
            write_arrays(self.output, arrays)
            print(self.output)


def _print_vectors(texts: Sequence[str], arrays: dict[str, np.ndarray]) -> None:
    """Print a line of JSON for each text, without the vectors of its padding."""
    mask_BS = arrays.pop("mask")
    for row, text in enumerate(texts):
        found: JsonObject = {"text": text}
        for name, array in arrays.items():
            own = array[row, : mask_BS[row].sum()] if array.ndim == 3 else array[row]
            found[name] = own.tolist()
        sys.stdout.write(json_line(found, sys.stdout))


@dataclass(frozen=True, kw_only=True)
class ScoreOrder(_OnModel):
    """Prints the probability that two texts stand in this order and not the other way round.

    Example: albert-jax score-order runs/base/model "He opened the door." "Then he went in."
    """

    first: First
    """A text."""
    second: Second
    """A text."""
    truncate: bool = False
    """Cut texts that are too long for the model instead of refusing them."""
    engine: Engine = "jax"
    """What computes: jax, or onnx for ONNX Runtime on this machine's CPU; pip install
    'albert-jax[onnx]'."""

    def run(self) -> None:
        from albert_jax.utils.text_files import given_text

        _require_model(self.model)
        first, second = given_text(self.first), given_text(self.second)
        with staying():
            from albert_jax.inference.api import load

        _keep_programs()
        albert = load(self.model, engine=self.engine)
        print(f"{albert.score_order(first, second, truncate=self.truncate):.4f}")


# --------------------------------------------------------------------------- with model directories


@dataclass(frozen=True, kw_only=True)
class Info(Command):
    """Describes a model, a token store or a recipe: sizes, parameters, FLOPs, where it came from.

    For a model it prints the parameters and the head, for a recipe for pretraining the plan: steps,
    passes over a store, fewest chip-hours, and those by the TPU compiler's estimate.

    Example: albert-jax info configs/pretrain.py:model=base-v2 --store store
    """

    path: Described
    """Model directory or work directory, token store (also at gs://), or recipe file with arguments
    after a colon."""
    store: str | None = None
    """For a recipe, the token store whose passes are counted."""
    base: str | None = None
    """For an adapter, the model that it was trained on; unset: at its former path."""
    json: bool = False
    """Print the description as JSON."""

    def run(self) -> None:
        from albert_jax.cli.info import describe_path, description_table

        description = describe_path(self.path, base=self.base)
        if description.kind == "recipe" or self.store is not None:
            from albert_jax.cli.recipe_plan import with_plan  # which waits for JAX

            description = with_plan(description, self.store)
        _print_json(description) if self.json else print(description_table(description))


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Writes the newest good checkpoint of a pretraining run as a model directory.

    Example: albert-jax export runs/base base-model
    """

    workdir: Workdir
    """Work directory of `albert-jax pretrain`, also of a run that is not finished."""
    dest: Dest
    """Model directory to write: weights, albert_config.json, vocabulary, manifest. An older export
    of the same run is replaced, and nothing else."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in the directory; bfloat16 halves their size and keeps 2 to 3 significant
    digits."""

    def run(self) -> None:
        from albert_jax.training.pretrain import export

        print(export(self.workdir, self.dest, dtype=self.dtype))


@dataclass(frozen=True, kw_only=True)
class ExportServing(_OnModel):
    """Writes a model as programs that need nothing of this package: StableHLO for JAX, or ONNX.

    Example: albert-jax export-serving runs/base/model base-serving
    """

    dest: Dest
    """Folder to write: programs for CPU, GPU and TPU, of any batch and length, and weights."""
    to: Literal["stablehlo", "onnx"] = "stablehlo"
    """Programs for JAX, or ONNX graphs of the encoder, of fill-mask and of a fine-tuned head."""
    base: str | None = None
    """For an adapter, the model that it was trained on; unset: at its former path."""
    top_k: int = 5
    """Pieces that fill_mask returns for each [MASK]."""
    depth: int | None = None
    """Number of passes of the shared layer; unset: as in the configuration."""
    dtype: Dtype = "float32"
    """Type of matmuls and activations."""

    def run(self) -> None:
        _require_model(self.model, base=self.base)
        from albert_jax.inference.export import export_serving

        _keep_programs()
        print(
            export_serving(
                self.model,
                self.dest,
                to=self.to,
                top_k=self.top_k,
                depth=self.depth,
                compute=ComputeConfig(dtype=self.dtype),
            )
        )


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Converts weights between the original's format, transformers' and a model directory.

    Every tensor is used and listed, or nothing is written; docs/checkpoints.md has the formats.

    Example: albert-jax convert albert_base_v2.tar.gz base-v2
    """

    source: Source
    """tar.gz, folder, checkpoint prefix or .index, TF-Hub module, transformers folder,
    model directory; also at gs:// or https://; or a name: base-v2, hub:OWNER/NAME@REVISION."""
    dest: Dest
    """Folder to write; it appears when it is complete. An older conversion to the same format is
    replaced if nobody changed it since, and nothing else."""
    to: Literal["albert-jax", "hf", "tf"] = "albert-jax"
    """Format: a model directory, transformers' folder, or the original's checkpoint."""
    head: str | None = None
    """Kind of the fine-tuned head, if the source does not show it: a head with one output is
    regression or multiple_choice."""
    config: str | None = None
    """albert_config.json or config.json, if it is not beside the weights."""
    vocab: str | None = None
    """SentencePiece model, tokenizer.json or vocab.txt, if it is not beside the weights."""
    no_vocab: Switch = False
    """Convert without a vocabulary."""
    mode: Mode | None = None
    """How text is divided, docs/reference/tokenizers.md; unset: as in the source."""
    do_lower_case: bool | None = None
    """Whether the vocabulary is lower-cased; unset: as in the source, else True."""
    with_optimizer: Switch = False
    """Keep the optimizer's slots of a training checkpoint."""
    base: str | None = None
    """For an adapter, the model that it was trained on; unset: at its former path."""
    json: bool = False
    """Print the inventory as JSON."""

    def run(self) -> None:
        from albert_jax.checkpoint.convert.convert import convert

        inventory = convert(**_fields(self, "json"))
        _print_json(inventory) if self.json else print(self.dest)


@dataclass(frozen=True, kw_only=True)
class Push(_OnModel):
    """Uploads a model to the Hugging Face hub, in transformers' format with a model card.

    The token is huggingface_hub's: hf auth login, or HF_TOKEN. It is not kept. Weights and a
    vocabulary that an earlier model left in the repository are deleted in the same commit.

    Example: albert-jax push runs/sst2/model hub:me/albert-sst2 --private
    """

    repository: Repository
    """hub:OWNER/NAME; a missing repository is made."""
    private: Switch = False
    """Make a missing repository private; an error if it exists and is public."""
    revision: str | None = None
    """Branch to commit to; unset: main."""
    license: str | None = None
    """Identifier of the licence in the model card, as apache-2.0; unset: that of released weights
    and of the packaged model, else unknown."""
    json: bool = False
    """Print {"repository", "revision", "url", "files"} as JSON."""

    def run(self) -> None:
        from albert_jax.checkpoint.push import push

        pushed = push(**_fields(self, "json"))
        _print_json(pushed) if self.json else print(pushed.url)


@dataclass(frozen=True, kw_only=True)
class Verify(_OnModel):
    """Checks a model, a verdict a line; released weights also by their published answers.

    The exit status is 2 if a check fails. SKIP is no failure: there was nothing to compare with.

    Example: albert-jax verify base-model --expect base-v2
    """

    expect: str | None = None
    """Released model that it must be, as base-v2; unset: found by its source's name or its
    answers."""
    json: bool = False
    """Print {"model", "verdict", "released", "parameters", "checks"} as JSON."""

    def run(self) -> None:
        _require_model(self.model)
        from albert_jax.inference.verify import checks_table, failure, verify

        report = verify(self.model, expect=self.expect)
        _print_json(report) if self.json else print(checks_table(report))
        if found := failure(report):
            raise UserError(found)


# --------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, kw_only=True)
class Benchmark(Command):
    """Measures how long a step takes here: compilation, steps, rates, MFU, memory.

    Example: albert-jax benchmark --model base-v2 --batch-size 32 --sequence 512
    """

    config: Flags[BenchmarkConfig] = BenchmarkConfig()
    sweep: Sweep = ()
    """Settings to try in every combination, as batch_size=8,16,32 remat=none,full."""
    plot: str | None = None
    """Figure of the sweep to write, .png, .pdf or .svg."""
    profile: str | None = None
    """Folder for a trace of a few steps, for xprof or TensorBoard."""
    json: bool = False
    """Print the figures as JSON alone, and the lines to stderr; for a sweep the fastest, and all of
    them as "results"."""

    def run(self) -> None:
        from albert_jax.utils.malloc import keep_freed_memory
        from albert_jax.utils.plots import check_picture

        if self.plot and not self.sweep:
            raise UserError("--plot draws a sweep; give --sweep batch_size=8,16,32, say")
        if self.plot:
            check_picture(self.plot)  # before minutes are spent
        if self.profile and self.sweep:
            raise UserError("--profile is of one setting; leave out --sweep")
        keep_freed_memory()  # before JAX is imported, as pretrain does
        from albert_jax.perf.benchmark import benchmark
        from albert_jax.perf.benchmark_report import benchmark_lines

        if points := list(itertools.chain(*self.sweep)):
            self._run_sweep(points)
            return
        figures = benchmark(self.config, profile=self.profile)
        _print_figures(benchmark_lines(figures), figures if self.json else None)

    def _run_sweep(self, points: list[str]) -> None:
        from albert_jax.perf.benchmark import sweep
        from albert_jax.perf.benchmark_report import draw_sweep, sweep_table

        names = [point.partition("=")[0] for point in points]
        results = sweep(self.config, points)
        measured = [r for r in results if "error" not in r]
        fastest = min(measured, key=lambda r: r["ms_per_sequence"], default=None)
        figures = fastest | {"results": results} if fastest and self.json else None
        _print_figures(sweep_table(results, names), figures)
        if not measured:
            raise UserError(f"nothing of the sweep fits: {results[0]['error']}")
        if self.plot:  # last: a full disk then loses nothing that was measured
            draw_sweep(results, names, self.plot)


@dataclass(frozen=True, kw_only=True)
class Estimate(Command):
    """Asks the TPU's compiler how long a step takes on a slice and whether it fits; needs no TPU.

    The times are the compiler's own estimate, not measured; docs/explanation/estimates.md says what
    to trust.

    Example: albert-jax estimate --model base-v2 --topology v5e:2x2 --batch-size 32
    """

    config: Flags[EstimateConfig] = EstimateConfig()
    find_batch: Switch = False
    """Find the largest batch that a chip holds, with and without remat; each attempt is a
    compilation."""
    table: str | None = None
    """File to which the estimate is added, as a line of JSON that replaces one of the same
    setting."""
    plot: str | None = None
    """Figure to write, .png, .pdf or .svg: the table's estimates of this step for slices of every
    size."""
    json: bool = False
    """Print the figures as JSON alone; with --find-batch the fastest, and all of them as
    "results"."""

    def run(self) -> None:
        from albert_jax.utils.plots import check_picture

        if self.plot and not self.table:
            raise UserError("--plot draws a table's estimates; give --table FILE")
        if self.plot:
            check_picture(self.plot)  # before minutes are spent
        if self.table and self.find_batch:
            raise UserError(
                "--table takes one estimate, --find-batch makes several; give one of them"
            )
        os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported: no TPU or GPU here is touched
        from albert_jax.perf.tpu import estimate, estimate_report, estimate_table

        if self.table:
            estimate_table.read_table(self.table)  # before minutes are spent
        if self.find_batch:
            results = estimate.find_batch(self.config)
            lines = estimate_report.batches(results)
            fastest = min(results, key=lambda r: r.ms_per_sequence_per_chip or float("inf"))
            figures: JsonObject = fastest | {"results": results}
        else:
            estimated = estimate.estimate(self.config)
            lines = estimate_report.estimate_lines(estimated)
            figures = estimated
        print(json_module.dumps(figures) if self.json else lines)
        if self.table:
            row = estimate_table.row_of(figures)
            rows = estimate_table.record(self.table, row)
            if self.plot:
                estimate_table.draw_scaling(rows, row, self.plot)


COMMANDS: dict[str, type[Command]] = {
    "train-tokenizer": TrainTokenizer,
    "prepare": Prepare,
    "pretrain": Pretrain,
    "finetune": Finetune,
    "evaluate": Evaluate,
    "predict": Predict,
    "fill-mask": FillMask,
    "encode": Encode,
    "score-order": ScoreOrder,
    "info": Info,
    "export": Export,
    "export-serving": ExportServing,
    "convert": Convert,
    "push": Push,
    "verify": Verify,
    "benchmark": Benchmark,
    "estimate": Estimate,
}


# --------------------------------------------------------------------------------- what they share


def _texts(given: tuple[str, ...], file: str | None) -> list[str]:
    """Return the texts of the command line, or the lines of a file.

    Raises UserError unless exactly one of the two is given.
    """
    if bool(given) == (file is not None):
        wanted = "give texts, or a file of them with --input"
        raise UserError(f"{wanted}, not both" if given else wanted)
    from albert_jax.utils.text_files import given_text, read_texts

    return [given_text(text) for text in given] if file is None else read_texts(file)


def _print_figures(lines: str, figures: JsonObject | None) -> None:
    """Print lines for people; with --json, print one line of JSON, and the lines to stderr."""
    if figures is None:
        print(lines)
        return
    say(lines)
    print(json_module.dumps(figures))


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=2))

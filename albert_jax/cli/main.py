# SPDX-License-Identifier: Apache-2.0
"""The command line, `albert-jax <command> …`: flags in, one call, results out; no logic of its own.

Each command is a function whose signature is its flags (tyro reads it) and which imports what it
calls, so that `--help` never waits for JAX. Exit status: 0; 2 and one line on stderr for a user's
mistake; 75 for "run me again"; 1 with a traceback for a bug.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import io
import itertools
import json as json_module
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import tyro

from albert_jax import __version__
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.run import (
    BenchmarkConfig,
    ComputeConfig,
    EstimateConfig,
    FinetuneConfig,
    PretrainConfig,
    load_recipe,
)
from albert_jax.perf.tpu.libtpu import quiet_without_chips
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.streams import json_line, mended_standard_streams, say

PROGRAM = "albert-jax"
_BENCHMARK = BenchmarkConfig()
_ESTIMATE = EstimateConfig()

# ---------------------------------------------------------------------------------- the commands

Texts = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT…")]
ModelDirectory = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


def train_tokenizer(
    text: Texts,
    *,
    output: str,
    vocab_size: int = 30000,
    do_lower_case: bool = True,
    character_coverage: float = 0.99995,
    format: str = "text",
    sentences: Literal["auto", "lines", "split", "wrapped"] = "auto",
    language: str = "en",
    strict: bool = False,
    data_dir: str | None = None,
) -> None:
    """Trains a SentencePiece vocabulary with ALBERT's settings, on the text as prepare reads it.

    Example: albert-jax train-tokenizer corpus/*.txt --vocab-size 30000 --output vocab

    Args:
        text: files (plain or .gz), folders or patterns, also at gs://; with tfds: the names of
            splits; or python-docs, the English text that every Python carries.
        output: folder that gets spiece.model and spiece.vocab.
        vocab_size: pieces, the five special ones included.
        do_lower_case: lower-case and drop accents, as the released vocabularies do.
        character_coverage: share of the characters that get a piece; the rest become <unk>.
        format: text, wiki (WikiExtractor's output) or tfds:NAME.
        sentences: one a line, to be split out of lines, or out of lines wrapped at a width.
        language: whose rules split sentences.
        strict: end at the first damaged input instead of counting and reporting it.
        data_dir: where TensorFlow Datasets keeps its data.
    """
    from albert_jax.data.vocabulary import train_tokenizer

    model = train_tokenizer(
        text,
        output=output,
        vocab_size=vocab_size,
        do_lower_case=do_lower_case,
        character_coverage=character_coverage,
        format=format,
        sentences=sentences,
        language=language,
        strict=strict,
        data_dir=data_dir,
    )
    print(model)


def prepare(
    text: Texts,
    *,
    vocab: str,
    output: str,
    format: str = "text",
    sentences: Literal["auto", "lines", "split", "wrapped"] = "auto",
    language: str = "en",
    workers: int | None = None,
    holdout: float = 0.01,
    strict: bool = False,
    data_dir: str | None = None,
    mode: Literal["google", "hf"] = "google",
    do_lower_case: bool = True,
    beam: tuple[str, ...] | None = None,
    json: bool = False,
) -> None:
    """Turns text into a token store: documents, sentences and 2 bytes a token, memory-mapped.

    Example: albert-jax prepare corpus/*.txt --vocab vocab/spiece.model --output store

    Args:
        text: files (plain or .gz), folders or patterns, also at gs://; with tfds: the names of
            splits; or python-docs, the English text that every Python carries.
        vocab: spiece.model, or the folder that holds it.
        output: folder of the store, or gs://…; of an interrupted one, to go on with it.
        format: text, wiki (WikiExtractor's output) or tfds:NAME.
        sentences: one a line, to be split out of lines, or out of lines wrapped at a width.
        language: whose rules split sentences.
        workers: processes; unset: all cores.
        holdout: share of the documents kept from training, for evaluation.
        strict: end at the first damaged input instead of counting and reporting it.
        data_dir: where TensorFlow Datasets keeps its data.
        mode: clean text as the original does (google) or as transformers does (hf).
        do_lower_case: as the vocabulary was trained.
        beam: run on Apache Beam, with its pipeline options, as runner=FlinkRunner; none: in this
            process.
        json: print the store's manifest as JSON.
    """
    from albert_jax.data.prepare.build import prepare

    manifest = prepare(
        text,
        vocab=vocab,
        output=output,
        format=format,
        sentences=sentences,
        language=language,
        workers=workers,
        holdout=holdout,
        strict=strict,
        data_dir=data_dir,
        mode=mode,
        do_lower_case=do_lower_case,
        beam=beam,
    )
    if json:
        _print_json(manifest)
    else:
        print(output)


def pretrain(
    config: Annotated[PretrainConfig, tyro.conf.arg(name="")],
    *,
    dry_run: bool = False,
    multihost: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    start_timeout: int = 120,
    peer_timeout: int = 30,
) -> None:
    """Pretrains an ALBERT as the recipe says; every field of the recipe is a flag below.

    The recipe comes first: a Python file whose get_config(…) returns a PretrainConfig, with
    arguments for it after a colon. Run the same command again to resume. With --multihost the same
    command, started on every host, makes one run: docs/tpu.md.

    Example: albert-jax pretrain configs/pretrain.py:model=base-v2 --store store --workdir runs/base

    Args:
        dry_run: print the plan (sizes, memory, time) and stop.
        multihost: this process is one of several, on hosts that share the work directory. Cloud
            TPU, GKE and SLURM tell them of each other; elsewhere give the next three flags too.
        coordinator: HOST:PORT of process 0, which listens there.
        num_processes: how many there are.
        process_id: this one's number, from 0.
        start_timeout: seconds for all of them to come.
        peer_timeout: seconds without a sign of life after which one counts as dead, and all stop.
    """
    from albert_jax.training.run_inputs import require_pretraining_inputs
    from albert_jax.utils.malloc import keep_freed_memory

    require_pretraining_inputs(config, workdir_too=not dry_run)
    keep_freed_memory()  # before JAX is imported
    from albert_jax.distributed.multihost import Launch
    from albert_jax.perf.dry_run import describe_plan
    from albert_jax.training.pretrain import pretrain

    launch = Launch(coordinator, num_processes, process_id, start_timeout, peer_timeout)
    if not multihost and launch != Launch():
        raise UserError("--coordinator, --process-id and the like need --multihost")
    if dry_run and multihost:
        raise UserError("--dry-run plans for the devices of one host; leave out --multihost")
    if dry_run:
        print(describe_plan(config))
    else:
        pretrain(config, launch=launch if multihost else None)


def finetune(
    config: Annotated[FinetuneConfig, tyro.conf.arg(name="")], *, json: bool = False
) -> None:
    """Fine-tunes a model on a task as the recipe says; every field of the recipe is a flag below.

    The recipe comes first, as for pretrain. Run the same command again to resume. The work
    directory's model/ answers evaluate and predict.

    Example: albert-jax finetune configs/glue.py:task=mrpc --model base-v2 --data glue --workdir w

    Args:
        json: print what results.json holds.
    """
    from albert_jax.training.run_inputs import require_finetuning_inputs
    from albert_jax.utils.malloc import keep_freed_memory

    require_finetuning_inputs(config)
    keep_freed_memory()  # before JAX is imported, as pretrain does
    from albert_jax.training.finetune import finetune

    results = finetune(config)
    if json:
        _print_json(results)


def evaluate(
    *,
    model: tuple[str, ...],
    data: str,
    task: str | None = None,
    split: str = "dev",
    suite: Literal["card"] | None = None,
    released: str | None = None,
    output: str | None = None,
    max_seq_length: int | None = None,
    doc_stride: int | None = None,
    labels: tuple[str, ...] = (),
    pack: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    json: bool = False,
) -> None:
    """Scores a fine-tuned model by its task's official metrics; writes the official predictions.

    With --suite card it prints the model card's row of several fine-tuned models, of a task each,
    beside the published one.

    Example: albert-jax evaluate --task sst2 --model runs/sst2/model --data glue

    Args:
        model: fine-tuned model directory; of a suite one for each task.
        data: folder of the task's files as published, or tfds.
        task: name of a task; unset: the one the model was fine-tuned for.
        split: dev, or another split with labels (dev_mismatched of MNLI, test of RACE).
        suite: card: SQuAD 1.1 and 2.0, MNLI, SST-2 and RACE.
        released: whose published row to print, as base-v2; unset: as the models say.
        output: folder for the predictions file; unset: predictions/ beside the model.
        max_seq_length: tokens in a row; unset: as in fine-tuning.
        doc_stride: tokens from one SQuAD window's start to the next's.
        labels: what the data's labels are in the task, as negative=0,positive=1; those not named:
            as they are.
        pack: tokens of rows that short examples share, as 512, where that is faster: classification
            and regression; 0: an example a row.
        dtype: of matmuls and activations.
        json: print {"task", "metrics", "examples", "predictions_file"} as JSON, metrics in the
            official scale.
    """
    for each in model:
        require_model_directory(each)
    from albert_jax.inference.evaluate import evaluate, evaluation_table
    from albert_jax.inference.model_card import card_table, evaluate_card

    compute = ComputeConfig(dtype=dtype)
    if suite:
        if task or output or split != "dev" or max_seq_length or doc_stride or labels or pack:
            raise UserError(
                "--suite takes each model's own task, dev split and settings; leave out --task, "
                "--output, --split, --max-seq-length, --doc-stride, --labels and --pack"
            )
        card = evaluate_card(model, data, released=released, compute=compute)
        _print_json(card) if json else print(card_table(card))
        return
    if len(model) != 1:
        raise UserError(f"{len(model)} models; give one, or --suite card")
    found = evaluate(
        task,
        model[0],
        data,
        split=split,
        output=output,
        max_seq_length=max_seq_length,
        doc_stride=doc_stride,
        compute=compute,
        pack=pack,
        labels=labels,
    )
    _print_json(found) if json else print(evaluation_table(found))


def predict(
    *,
    model: str,
    input: str | None = None,
    output: str | None = None,
    data: str | None = None,
    split: str = "test",
    task: str | None = None,
    max_seq_length: int | None = None,
    doc_stride: int | None = None,
    labels: tuple[str, ...] = (),
    pack: int = 0,
    skip_bad: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Answers new inputs with a fine-tuned model: a line of JSON for each, as they come.

    An input line is a JSON object with the task's texts by name, as {"sentence": "…"} for SST-2,
    and an answer {"id", "prediction"} with the labels' "probabilities". An answer to a text that
    was cut has "truncated" and "tokens_left_out". With --data instead it writes a split's official
    predictions file, as for GLUE's server.

    Example: albert-jax predict --model runs/sst2/model --input texts.jsonl --output answers.jsonl

    Args:
        model: fine-tuned model directory.
        input: JSONL, or by its name CSV or TSV, whose first row names the columns, or for token
            classification CoNLL (.conll, .txt); plain or gz; - is standard input, JSONL.
        output: JSONL file, which appears at the end; - or unset: standard output. With --data a
            folder; unset: predictions/ beside the model.
        data: folder of the task's files as published, or tfds.
        split: split of --data to answer.
        task: name of a task, where the model does not say it.
        max_seq_length: tokens in a row; unset: as in fine-tuning.
        doc_stride: tokens from one SQuAD window's start to the next's.
        labels: what the data's labels are in the task, as negative=0,positive=1; those not named:
            as they are.
        pack: tokens of rows that short examples share, as 512, where that is faster: classification
            and regression; 0: an example a row.
        skip_bad: answer {"id", "error"} to an input that has no answer, and go on with the next.
        dtype: of matmuls and activations.
    """
    require_model_directory(model)
    from albert_jax.inference.predict import predict_file, predict_split

    if (input is None) == (data is None):
        raise UserError("give --input FILE, or --data DIR for a split's official file")
    settings: dict[str, Any] = {
        "task": task,
        "max_seq_length": max_seq_length,
        "doc_stride": doc_stride,
        "compute": ComputeConfig(dtype=dtype),
        "pack": pack,
        "labels": labels,
    }
    if data is not None and skip_bad:
        raise UserError("--skip-bad is for --input; a split's official file has an answer for each")
    if data is not None:
        for file in predict_split(model, data, split=split, output=output, **settings):
            print(file)
    elif input is not None:
        predict_file(model, input, output or "-", skip_bad=skip_bad, **settings)


def fill_mask(
    model: ModelDirectory,
    text: Texts = (),
    *,
    input: str | None = None,
    top_k: int = 5,
    depth: int | None = None,
    truncate: bool = False,
    json: bool = False,
) -> None:
    """Fills in [MASK]: the likeliest pieces, with their probabilities.

    Example: albert-jax fill-mask runs/base/model "Hello I'm a [MASK] model."

    Args:
        model: model directory, as pretrain, convert and export write it.
        text: sentences with [MASK] in them.
        input: UTF-8 file of such sentences, one a line, plain or .gz; - is standard input.
        top_k: pieces to print.
        depth: run the shared layer that often instead of as often as the configuration says.
        truncate: cut a text that is too long for the model instead of refusing it.
        json: print [{"score", "token", "token_str", "sequence"}] as JSON; of several texts a list
            of such lists.
    """
    require_model_directory(model)  # and the texts, before seconds are spent on importing JAX
    texts = _texts(text, input)
    from albert_jax.inference.api import load

    answers = load(model, depth=depth).fill_mask(texts, top_k=top_k, truncate=truncate)
    if json:
        _print_json(answers[0] if len(text) == 1 else answers)
        return
    for asked, found in zip(texts, answers, strict=True):
        if len(texts) > 1:
            print(asked)
        for gap in [found] if isinstance(found[0], dict) else found:
            for answer in gap:
                print(f"{answer['score']:.4f}  {answer['token_str']:<16}  {answer['sequence']}")


def encode(
    model: ModelDirectory,
    text: Texts = (),
    *,
    input: str | None = None,
    output: str | None = None,
    layer: int = -1,
    pool: Literal["cls", "mean", "none"] = "none",
    depth: int | None = None,
    truncate: bool = False,
) -> None:
    """Turns texts into vectors, of any layer: a line of JSON for each, or an .npz file.

    The names are those of the Python call: sequence, a vector for each token, and pooled, the
    model's own pooler or what --pool asks for; in the file also mask.

    Example: albert-jax encode runs/base/model --input texts.txt --pool mean --output vectors.npz

    Args:
        model: model directory, as pretrain, convert and export write it.
        text: texts.
        input: UTF-8 file of texts, one a line, an empty line an empty text, plain or .gz; - is
            standard input.
        output: .npz file to write.
        layer: 0 is what the first layer takes, 1 what it gives, -1 what the last gives.
        pool: one vector for each text: the layer's at [CLS], or its mean over the tokens.
        depth: run the shared layer that often instead of as often as the configuration says.
        truncate: cut a text that is too long for the model instead of refusing it.
    """
    from albert_jax.inference.arrays_file import check_arrays_file, write_arrays

    require_model_directory(model)
    if output is not None:
        check_arrays_file(output, [] if input in (None, "-") else [str(input)])
    texts = _texts(text, input)
    from albert_jax.inference.api import load

    pooling = None if pool == "none" else pool
    encoded = load(model, depth=depth).encode(texts, layer=layer, pool=pooling, truncate=truncate)
    arrays = {name: x for name, x in vars(encoded).items() if x is not None}
    if output is not None:
        write_arrays(output, arrays)
        print(output)
        return
    mask = arrays.pop("mask")
    for row, asked in enumerate(texts):
        found: dict[str, Any] = {"text": asked}
        for name, array in arrays.items():
            found[name] = (
                array[row, : mask[row].sum()] if array.ndim == 3 else array[row]
            ).tolist()
        sys.stdout.write(json_line(found, sys.stdout))


def score_order(
    model: ModelDirectory,
    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")],
    second: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")],
    *,
    truncate: bool = False,
) -> None:
    """Prints the probability that two texts stand in this order and not the other way round.

    Example: albert-jax score-order runs/base/model "He opened the door." "Then he went in."

    Args:
        model: model directory, as pretrain, convert and export write it.
        first: a text.
        second: a text.
        truncate: cut texts that are too long for the model instead of refusing them.
    """
    from albert_jax.utils.text_files import given_text

    require_model_directory(model)
    first, second = given_text(first), given_text(second)
    from albert_jax.inference.api import load

    print(f"{load(model).score_order(first, second, truncate=truncate):.4f}")


def info(
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL|STORE|RECIPE")],
    *,
    store: str | None = None,
    json: bool = False,
) -> None:
    """Describes a model, a token store or a recipe: sizes, parameters, FLOPs, where it came from.

    Of a model the parameters and the head that it has. Of a recipe for pretraining it tells the
    plan: steps, passes over a store, fewest chip-hours, and those by the TPU compiler's estimate.

    Example: albert-jax info configs/pretrain.py:model=base-v2 --store store

    Args:
        path: model directory or work directory, token store (also at gs://), or recipe file with
            arguments after a colon.
        store: of a recipe: the token store whose passes are counted.
        json: print the description as JSON.
    """
    from albert_jax.cli.info import describe_path, description_table

    description = describe_path(path)
    if description["kind"] == "recipe" or store is not None:
        from albert_jax.cli.recipe_plan import with_plan  # which waits for JAX

        description = with_plan(description, store)
    if json:
        _print_json(description)
    else:
        print(description_table(description))


def export(
    workdir: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")],
    dest: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")],
) -> None:
    """Writes the newest good checkpoint of a pretraining run as a model directory.

    Example: albert-jax export runs/base base-model

    Args:
        workdir: work directory of `albert-jax pretrain`, also of a run that goes on.
        dest: model directory to write: weights, albert_config.json, vocabulary, manifest.
    """
    from albert_jax.checkpoint.model_dir import check_destination
    from albert_jax.training.pretrain import export
    from albert_jax.utils.atomic import require_apart

    require_apart(dest, [workdir], "DEST")
    check_destination(dest)
    print(export(workdir, dest))


def convert(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    dest: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")],
    *,
    to: Literal["albert-jax", "hf", "tf"] = "albert-jax",
    head: str | None = None,
    config: str | None = None,
    vocab: str | None = None,
    no_vocab: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    do_lower_case: bool | None = None,
    with_optimizer: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json: bool = False,
) -> None:
    """Converts weights between the original's format, transformers' and a model directory.

    Every tensor is used and listed, or nothing is written; docs/checkpoints.md has the formats.

    Example: albert-jax convert albert_base_v2.tar.gz base-v2

    Args:
        source: tar.gz, folder, checkpoint prefix or .index, TF-Hub module, transformers folder,
            model directory; also at gs:// or https://.
        dest: folder to write; it appears whole.
        to: a model directory, what transformers loads, or what the original loads.
        head: kind of the fine-tuned head, where the source does not tell: a head of one output is
            regression or multiple_choice.
        config: albert_config.json or config.json that is not beside the weights.
        vocab: SentencePiece model that is not beside the weights.
        no_vocab: go without a vocabulary.
        do_lower_case: as the vocabulary was trained; unset: as the source says, else True.
        with_optimizer: keep the optimizer's slots of a training checkpoint.
        json: print the inventory as JSON.
    """
    from albert_jax.checkpoint.convert.convert import convert

    inventory = convert(
        source,
        dest,
        to,
        head=head,
        config=config,
        vocab=vocab,
        no_vocab=no_vocab,
        do_lower_case=do_lower_case,
        with_optimizer=with_optimizer,
    )
    if json:
        _print_json(inventory)
    else:
        print(dest)


def export_serving(
    model: ModelDirectory,
    dest: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")],
    *,
    top_k: int = 5,
    depth: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Writes a model as StableHLO programs that run where there is JAX and nothing of this package.

    Example: albert-jax export-serving runs/base/model base-serving

    Args:
        model: model directory, as pretrain, convert and export write it.
        dest: folder to write: programs for CPU, GPU and TPU, of any batch and length, and weights.
        top_k: pieces that fill_mask answers.
        depth: run the shared layer that often instead of as often as the configuration says.
        dtype: of matmuls and activations.
    """
    require_model_directory(model)
    from albert_jax.inference.export import export_serving

    compute = ComputeConfig(dtype=dtype)
    print(export_serving(model, dest, top_k=top_k, depth=depth, compute=compute))


def verify(model: ModelDirectory, *, expect: str | None = None, json: bool = False) -> None:
    """Proves a model right, a verdict a line; of released weights, by their published answers.

    Exit status 2 if a line fails. SKIP is no failure: nothing there to hold against anything.

    Example: albert-jax verify base-model --expect base-v2

    Args:
        model: model directory, as pretrain, convert and export write it.
        expect: released model that it must be, as base-v2; unset: told by its source's name or its
            answers.
        json: print {"model", "verdict", "released", "parameters", "checks"} as JSON.
    """
    require_model_directory(model)
    from albert_jax.inference.verify import checks_table, failure, verify

    report = verify(model, expect=expect)
    if json:
        _print_json(report)
    else:
        print(checks_table(report))
    if told := failure(report):
        raise UserError(told)


def benchmark(
    config: Annotated[BenchmarkConfig, tyro.conf.arg(name="")] = _BENCHMARK,
    *,
    sweep: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = (),
    plot: str | None = None,
    profile: str | None = None,
    json: bool = False,
) -> None:
    """Measures how long a step takes here: compilation, steps, rates, MFU, memory.

    Example: albert-jax benchmark --model base-v2 --batch-size 32 --sequence 512

    Args:
        sweep: settings to try in every combination, as batch_size=8,16,32 remat=none,full.
        plot: picture to draw a sweep into, .png, .pdf or .svg.
        profile: folder for a trace of a few steps, for xprof or TensorBoard.
        json: print the figures as JSON on the last line; of a sweep those of the fastest, and all
            as "results".
    """
    from albert_jax.utils.malloc import keep_freed_memory

    keep_freed_memory()  # before JAX is imported, as pretrain does
    from albert_jax.perf import benchmark, benchmark_report
    from albert_jax.utils import plots

    if plot and not sweep:
        raise UserError("--plot draws a sweep; give --sweep batch_size=8,16,32, say")
    if plot:
        plots.check_picture(plot)  # before minutes are spent
    if profile and sweep:
        raise UserError("--profile is of one setting; leave out --sweep")
    points = list(itertools.chain(*sweep))
    if not points:
        measured = benchmark.benchmark(config, profile=profile)
        print(benchmark_report.benchmark_lines(measured))
        figures = measured.to_json()
    else:
        names = [point.partition("=")[0] for point in points]
        results = benchmark.sweep(config, points)
        print(benchmark_report.sweep_table(results, names))
        fitting = [r for r in results if "error" not in r]
        if not fitting:
            raise UserError(f"nothing of the sweep fits: {results[0]['error']}")
        fastest = min(fitting, key=lambda r: r["ms_per_sequence"])
        figures = fastest | {"results": [dict(r) for r in results]}
    if json:
        print(json_module.dumps(figures))
    if plot:  # last: a disk that is full takes nothing of what was measured
        benchmark_report.draw_sweep(results, names, plot)


def estimate(
    config: Annotated[EstimateConfig, tyro.conf.arg(name="")] = _ESTIMATE,
    *,
    find_batch: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    table: str | None = None,
    plot: str | None = None,
    json: bool = False,
) -> None:
    """Asks the TPU's compiler how long a step takes on a slice and whether it fits; needs no TPU.

    The times are the compiler's own estimate, not measured; docs/tpu.md says what to trust.

    Example: albert-jax estimate --model base-v2 --topology v5e:2x2 --batch-size 32

    Args:
        find_batch: find the largest batch that a chip holds, with and without remat; a compilation
            for each that is tried.
        table: file to add the estimate to, a line of JSON, in place of one of the same setting.
        plot: picture, .png, .pdf or .svg, to draw into: the table's estimates of this step for
            slices of every size.
        json: print the figures as JSON alone; with --find-batch those of the fastest, and all as
            "results".
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported: no TPU or GPU here is touched
    from albert_jax.perf.tpu import estimate, estimate_report, estimate_table
    from albert_jax.utils import plots

    if plot and not table:
        raise UserError("--plot draws a table's estimates; give --table FILE")
    if plot:
        plots.check_picture(plot)  # before minutes are spent
    if table and find_batch:
        raise UserError("--table takes one estimate, --find-batch makes several; give one of them")
    if table:
        estimate_table.read_table(table)  # before minutes are spent
    if find_batch:
        results = estimate.find_batch(config)
        told = estimate_report.batches(results)
        fastest = min(results, key=lambda r: r.ms_per_sequence_per_chip or float("inf"))
        figures = fastest | {"results": [dict(each) for each in results]}
    else:
        estimated = estimate.estimate(config)
        told = estimate_report.estimate_lines(estimated)
        figures = estimated.to_json()
    print(json_module.dumps(figures) if json else told)
    if table:
        row = estimate_table.row_of(figures)
        rows = estimate_table.record(table, row)
        if plot:
            estimate_table.draw_scaling(rows, row, plot)


COMMANDS: dict[str, Callable[..., None]] = {
    "train-tokenizer": train_tokenizer,
    "prepare": prepare,
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
    "predict": predict,
    "fill-mask": fill_mask,
    "encode": encode,
    "score-order": score_order,
    "info": info,
    "export": export,
    "export-serving": export_serving,
    "convert": convert,
    "verify": verify,
    "benchmark": benchmark,
    "estimate": estimate,
}

# Commands that take a recipe first, and what it makes.
RECIPES: dict[str, type] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}

# ------------------------------------------------------------------------------------ the parsing


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status."""
    with mended_standard_streams():
        return _status_of(list(sys.argv[1:] if argv is None else argv))


def _status_of(arguments: list[str]) -> int:
    try:
        _run(arguments)
        print(end="", flush=True)  # a closed pipe shows here, not when the interpreter ends
    except (UserError, TryAgain) as error:
        return _fail(str(error), error.exit_status)
    except BrokenPipeError:
        return 141  # as a shell reports SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}", UserError.exit_status)
    except KeyboardInterrupt:
        return 130
    return 0


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    name, *rest = arguments
    if name == "--version":
        print(f"{PROGRAM} {__version__}")
        return
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{_nearest(name, COMMANDS)}; see {PROGRAM} --help")
    quiet_without_chips()
    if name in RECIPES:
        call = _parse_with_recipe(name, rest)
    else:
        call = _parse(COMMANDS[name], rest, f"{PROGRAM} {name}")
    call()


def _overview() -> str:
    lines = [f"usage: {PROGRAM} <command> … (see {PROGRAM} <command> --help)", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<16} {(command.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


def _parse_with_recipe(name: str, arguments: list[str]) -> Callable[[], None]:
    """Parses `[RECIPE] [flags]`: the recipe's values are the flags' defaults."""
    kind = RECIPES[name]
    config = kind()
    if arguments and not arguments[0].startswith("-"):
        config = load_recipe(arguments.pop(0))
    if not isinstance(config, kind):
        raise UserError(
            f"the recipe makes a {type(config).__name__}, but {PROGRAM} {name} needs a "
            f"{kind.__name__}; see configs/"
        )
    return _parse(COMMANDS[name], arguments, f"{PROGRAM} {name} RECIPE", config=config)


def _parse(
    command: Callable[..., None], arguments: list[str], program: str, **defaults: Any
) -> Callable[[], None]:
    """Returns `command` with its arguments bound; raises UserError where they do not parse."""

    # Bound, not called: what a command itself prints to stderr is not tyro's.
    @functools.wraps(command)
    def bind(*args: Any, **flags: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **flags)

    signature = inspect.signature(command)
    bind.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            p.replace(default=defaults[p.name]) if p.name in defaults else p
            for p in signature.parameters.values()
        ]
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(bind, args=arguments, prog=program)
    except SystemExit as exit:
        if not exit.code:
            raise  # --help
    rows = re.findall(r"^│ (-[^ ]+(?:, -[^ ]+)*)", _page(bind, ["--help"], program), re.MULTILINE)
    known = [flag for row in rows for flag in re.split(", ?", row) if flag]
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            raise UserError(f"unknown flag {flag}{_nearest(flag, known)}; see {program} --help")
    raise UserError(f"{_without_box(_page(bind, arguments, program))}; see {program} --help")


def _page(command: Callable[..., Any], arguments: list[str], program: str) -> str:
    """What tyro prints before it exits, as for a file: boxes are drawn, colours are not."""
    page = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with (
        contextlib.redirect_stdout(page),
        contextlib.redirect_stderr(page),
        contextlib.suppress(SystemExit),
    ):
        tyro.cli(command, args=arguments, prog=program)
    page.seek(0)
    return page.read()


def _without_box(text: str) -> str:
    """What stands in a box down to its first ruler, without the flags' own help, as one line."""
    lines = [line for line in text.splitlines()[1:] if not line.startswith("│" + " " * 9)]
    lines = [line.strip("│ ") for line in lines]
    ruler = next((i for i, line in enumerate(lines) if line.startswith(("─", "╰"))), len(lines))
    said = " ".join(filter(None, lines[:ruler])).rstrip(".")
    return said.removeprefix("Error parsing ")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _fail(message: str, exit_status: int) -> int:
    say(f"{PROGRAM}: {' '.join(message.splitlines())}")
    return exit_status


def _texts(given: tuple[str, ...], file: str | None) -> list[str]:
    """The texts on the command line, or a file's lines; UserError unless it is one of the two."""
    if bool(given) == (file is not None):
        told = "give texts, or a file of them with --input"
        raise UserError(f"{told}, not both" if given else told)
    from albert_jax.utils.text_files import given_text, read_texts

    return [given_text(text) for text in given] if file is None else read_texts(file)


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=2, default=dict))  # of a `Result`

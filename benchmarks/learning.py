# SPDX-License-Identifier: Apache-2.0
"""Not a test: what a recipe learns for a budget of FLOPs, on stores that are the same for all.

python -m benchmarks.learning run paper --store wiki:0.8,books:0.2 --heldout ad --flops 5e13 \
    --out learning                      # a line of OUT/learning.jsonl, the run in OUT/runs/
python -m benchmarks.learning tasks learning/runs/NAME/model --glue glue --squad squad \
    --out learning                      # fine-tuned from it and from random weights
python -m benchmarks.learning plot --out learning       # held-out loss by FLOPs, a line a run
python -m benchmarks.learning budgets --out learning    # final loss by budget, a line a recipe
python -m benchmarks.learning overlap --store wiki:0.8,books:0.2 --heldout ad
python -m benchmarks.learning pack --store wiki --heldout ad --file learning.tar.gz
python -m benchmarks.learning minutes --data learning.tar.gz --out gpu    # what 5 minutes here give

FLOPs are matmuls' as `models.flops` counts them, and Muon's own; seconds are told but decide
nothing, since machines differ. Every recipe trains the model of its size (`--size`); what it starts
from is drawn by `--seed`. A run that is stopped goes on when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tyro.conf import Positional

from albert_jax.config import (
    AlbertConfig,
    BenchmarkConfig,
    ComputeConfig,
    ExamplesConfig,
    FinetuneConfig,
    GuardConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
    load_recipe,
)
from albert_jax.data.mixture import split_stores
from albert_jax.data.store import TokenStore
from albert_jax.models.flops import stage_flops
from albert_jax.perf.benchmark import benchmark
from albert_jax.perf.results import StepBenchmark
from albert_jax.training.finetune import finetune
from albert_jax.training.heldout import evaluate_on_store
from albert_jax.training.metrics import read_metrics
from albert_jax.training.optimizer import learning_rate_preset
from albert_jax.training.pretrain import pretrain

EVALUATIONS = 8  # in a run
HELD_OUT = 768  # examples of an evaluation, which costs as much as five updates
GRAM = 13  # tokens; what training and held-out text share of these they have in common


def _size(hidden: int, layers: int) -> AlbertConfig:
    return AlbertConfig(
        vocab_size=8000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )


SIZES = {"small": _size(256, 4), "mini": _size(384, 4)}

# Of 4,096 tokens an update where a recipe does not say otherwise.
LENGTH, TOKENS = 128, 4096


def _recipe(model: AlbertConfig, *, length: int = LENGTH, rate: float = 0.15) -> PretrainConfig:
    return PretrainConfig(
        model=model,
        compute=ComputeConfig(dtype="auto"),
        examples=ExamplesConfig(
            max_seq_length=length,
            max_predictions_per_seq=round(length * rate),
            masked_lm_prob=rate,
        ),
        guard=GuardConfig(step_timeout=3600.0),
        train=TrainConfig(batch_size=TOKENS // length),
    )


def paper(model: AlbertConfig) -> PretrainConfig:
    """LAMB, schedule, masking and weights of the paper, its rate by the square root of the batch:
    4,096 rows of 512 would be more than the budget."""
    return _recipe(model)


def paper_tuned(model: AlbertConfig) -> PretrainConfig:
    """The paper's with the rate that small models bear."""
    recipe = _recipe(model)
    return dataclasses.replace(recipe, optimizer=OptimizerConfig(learning_rate=0.01))


def run_mlm(model: AlbertConfig) -> PretrainConfig:
    """The defaults of transformers' run_mlm: AdamW at 5e-5, decaying linearly, eight rows, single
    pieces masked, no second objective."""
    recipe = _recipe(model)
    return dataclasses.replace(
        recipe,
        examples=dataclasses.replace(
            recipe.examples, objective="none", ngram=1, do_whole_word_mask=False
        ),
        optimizer=OptimizerConfig(
            name="optax_adamw", learning_rate=5e-5, warmup_steps=0, weight_decay=0.0, epsilon=1e-8
        ),
        train=TrainConfig(batch_size=8),
    )


def found(model: AlbertConfig) -> PretrainConfig:
    """What small models learn fastest with: docs/lab/learning.md says how each part was found.

    It is that of configs/mini.py with heads that begin at the neighbourhood, and without its two
    passes and its rows of 64, which did not pay.
    """
    recipe = _recipe(model)
    return dataclasses.replace(
        recipe,
        examples=dataclasses.replace(recipe.examples, ngram=1),
        output_bias="unigram",
        kernel_init="fan_in",
        attention_init="local",
        optimizer=OptimizerConfig(name="muon", learning_rate=3e-3, schedule="wsd", decay_share=0.3),
        train=dataclasses.replace(recipe.train, depth="1:0.5,all:0.5", masking="0.2:0.7,0.15:0.3"),
    )


RECIPES: dict[str, Callable[[AlbertConfig], PretrainConfig]] = {
    "paper": paper,
    "paper-tuned": paper_tuned,
    "run-mlm": run_mlm,
    "found": found,
}


# ------------------------------------------------------------------------------------------- FLOPs


def optimizer_flops(config: PretrainConfig) -> float:
    """Return an update's matmul FLOPs of the optimizer itself: Muon's five Newton-Schulz steps,
    each 4 n^2 m + 2 n^3 of a kernel of sides n <= m; 0 of the others."""
    if config.optimizer.name != "muon":
        return 0.0
    h, e, i = (
        config.model.hidden_size,
        config.model.embedding_size,
        config.model.intermediate_size,
    )
    kernels = [(h, h)] * 5 + [(h, i)] * 2 + [(e, h)] * 2  # the pooler is the fifth
    return sum(5 * (4 * min(k) ** 2 * max(k) + 2 * min(k) ** 3) for k in kernels)


def flops_until(config: PretrainConfig, batches: int) -> float:
    """Return the FLOPs of a run's first updates."""
    own = optimizer_flops(config)
    return config.stages.total(batches, lambda s: stage_flops(config.model, s) + own)


def with_budget(config: PretrainConfig, flops: float) -> PretrainConfig:
    """Return the run with as many steps as the budget pays for; schedules are shares of them."""

    def of(steps: int) -> PretrainConfig:
        train = dataclasses.replace(config.train, steps=steps)
        return dataclasses.replace(config, train=train)

    few, many = 1, 2
    while flops_until(of(many), many) <= flops:
        many *= 2
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if flops_until(of(middle), middle) <= flops else (few, middle)
    return of(few)


# -------------------------------------------------------------------------------------------- runs


def configured(
    recipe: str, size: str, flops: float, changes: Mapping[str, Any], seed: int
) -> PretrainConfig:
    """Return a recipe's run for a budget, with changes such as {"train.depth": "2:0.5,4:0.5"}."""
    config = RECIPES[recipe](SIZES[size])
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        if section:
            part = dataclasses.replace(getattr(config, section), **{field: value})
            config = dataclasses.replace(config, **{section: part})
        else:
            config = dataclasses.replace(config, **{field: value})
    if config.optimizer.name == "lamb" and config.optimizer.learning_rate is None:
        rate = learning_rate_preset("lamb", config.train.batch_size)
        optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
        config = dataclasses.replace(config, optimizer=optimizer)
    train = dataclasses.replace(config.train, seed=seed)
    return _with_evaluations(with_budget(dataclasses.replace(config, train=train), flops))


def _with_evaluations(config: PretrainConfig) -> PretrainConfig:
    every = max(1, config.train.steps // EVALUATIONS)
    train = dataclasses.replace(
        config.train,
        eval_every=every,
        eval_examples=HELD_OUT,
        log_every=max(1, every // 4),
        save_every=10**9,
        save_minutes=5.0,
        keep=2,
    )
    return dataclasses.replace(config, train=train)


def run(
    recipe: Positional[Literal["paper", "paper-tuned", "run-mlm", "found"]],
    store: str,
    heldout: str,
    flops: float,
    out: Path,
    *,
    size: Literal["small", "mini"] = "small",
    change: tuple[str, ...] = (),
    name: str | None = None,
    seed: int = 1,
) -> None:
    """Trains a recipe for a budget and appends a line to OUT/learning.jsonl.

    Args:
        recipe: paper, paper-tuned, run-mlm or found.
        store: token stores, as `pretrain --store`.
        heldout: store of other text, whose held-out split is evaluated.
        flops: budget.
        out: folder of results and runs.
        size: small (4 passes of 256) or mini (4 of 384).
        change: settings to change, as train.depth=2:0.5,4:0.5 (values are JSON, else text).
        name: of the run; unset: made of the above.
        seed: of weights and examples.
    """
    changes = dict(_change(each) for each in change)
    label = name or "-".join([recipe, size, f"{flops:.0e}", *change, f"seed{seed}"])
    label = label.replace("/", "_").replace(":", "_").replace("=", "_")
    workdir = out / "runs" / label
    config = configured(recipe, size, flops, changes, seed)
    config = dataclasses.replace(config, store=store, heldout=heldout, workdir=str(workdir))
    row = _trained(
        config, label, {"recipe": recipe, "size": size, "changes": changes, "seed": seed}
    )
    _append(out, row)
    print(json.dumps({k: v for k, v in row.items() if k != "curve"}))


def _trained(config: PretrainConfig, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Train a run, and return its line."""
    assert config.workdir is not None
    workdir, since = Path(config.workdir), time.monotonic()
    pretrain(config)
    entries = list(read_metrics(workdir / "metrics.jsonl"))
    curve = [
        [flops_until(config, e["step"]), e["step"], *(e.get(of) for of in CURVE)]
        for e in entries
        if e["kind"] == "eval" and e["step"]
    ]
    return {
        "name": name,
        **about,
        "flops": flops_until(config, config.train.steps),
        "steps": config.train.steps,
        "tokens": config.stages.total(
            config.train.steps, lambda s: s.batch_size * s.examples.max_seq_length
        ),
        "seconds": round(time.monotonic() - since),
        "curve": curve,
        "final": dict(zip(CURVE, curve[-1][2:], strict=True)),
        "judged": _judged(workdir / "model", config),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _judged(model: Path, config: PretrainConfig) -> dict[str, dict[str, float | None]]:
    """Evaluate a model on the same rows for all recipes, whose own rows differ with their masking.

    Returns the figures of `CURVE` by kind of masking.
    """
    assert config.heldout is not None
    judged = {}
    for masking in ("ngram", "word"):
        found = evaluate_on_store(
            model, config.heldout, masking=masking, examples=2048, compute=config.compute
        )
        judged[masking] = {name: found.get(name) for name in CURVE}
    return judged


CURVE = (
    "masked_lm_loss",
    "masked_lm_accuracy",
    "sentence_order_loss",
    "sentence_order_accuracy",
)


def _change(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _append(out: Path, row: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "learning.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


# --------------------------------------------------------------------- minutes of a machine at hand

MOST_BYTES = 50_000_000  # of the data's one file


def pack(store: str, heldout: str, file: Path) -> None:
    """Puts a store to train on and one to evaluate on into one file for `minutes`.

    Args:
        store: token store.
        heldout: store of other text, whose held-out split is evaluated.
        file: tar.gz to write, of at most 50 MB.
    """
    with tarfile.open(file, "w:gz") as archive:
        archive.add(store, "store")
        archive.add(heldout, "heldout")
    if (size := file.stat().st_size) > MOST_BYTES:
        file.unlink()
        raise SystemExit(f"{size:,} bytes are more than {MOST_BYTES:,}; prepare less text")
    print(f"{file}: {size:,} bytes")


def minutes(
    data: Path,
    out: Path,
    *,
    recipe: str = "configs/one_gpu_day.py",
    minutes: float = 5.0,
    tiny: bool = False,
) -> None:
    """Trains a recipe for some minutes of this machine, evaluates it, and draws its curve.

    How many updates that are is reckoned from the measured FLOP/s of one at full depth, so that
    shallower stages, which reach less of them, make it a little longer.

    Args:
        data: file that `pack` wrote.
        out: folder for the data, the run, learning.jsonl and learning.png.
        recipe: recipe of pretraining; its vocabulary size becomes the data's.
        minutes: of training, compilation and evaluations apart.
        tiny: try it with a model for a CPU.
    """
    with tarfile.open(data) as archive:
        archive.extractall(out / "data", filter="data")
    config = found(SIZES["small"]) if tiny else load_recipe(recipe)
    assert isinstance(config, PretrainConfig)
    pieces = TokenStore.open(out / "data" / "store").manifest["vocabulary"]["size"]
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=pieces),
        store=str(out / "data" / "store"),
        heldout=str(out / "data" / "heldout"),
        # Another number of updates, by the rate as it is measured now, is another run.
        workdir=str(out / f"run-{datetime.now(UTC):%Y%m%dT%H%M%S}"),
    )
    rate = _flops_per_second(config, out)
    print(f"{rate:.3g} FLOP/s", flush=True)
    config = _with_evaluations(with_budget(config, rate * 60 * minutes))
    about = {"recipe": "found, tiny" if tiny else recipe, "flops_per_second": rate}
    row = _trained(config, "minutes", about)
    _append(out, row)
    plot(out, only=("minutes",))
    print("| FLOPs | updates | masked-LM loss | accuracy | sentence order |\n" + "| --- " * 5 + "|")
    for flops, step, loss, accuracy, _, order in row["curve"]:
        told = "" if order is None else f"{order:.1%}"
        print(f"| {flops:.2e} | {step:,} | {loss:.3f} | {accuracy:.1%} | {told} |")
    print(json.dumps({k: v for k, v in row.items() if k != "curve"}))


def _flops_per_second(config: PretrainConfig, out: Path) -> float:
    """Return the rate of a few updates of the last stage, the deepest, on made-up rows."""
    stage = config.stages[-1]
    file = out / "albert_config.json"
    config.model.to_json(file)
    measured = benchmark(
        BenchmarkConfig(
            model=str(file),
            batch_size=stage.batch_size,
            sequence=stage.examples.max_seq_length,
            predictions=stage.examples.max_predictions_per_seq,
            dtype=config.compute.dtype,
            accumulate=config.train.accumulate,
            steps=5,
            seconds=20.0,
        )
    )
    assert isinstance(measured, StepBenchmark)
    return measured.tflop_per_second * 1e12


# ------------------------------------------------------------------------------------------- tasks

# Folder, steps, rows, learning rate, tokens: the same for every model. The rates are the best of a
# few for one seed on SST-2 and, for the small sets, on STS-B (docs/lab/learning.md). STS-B has the
# paper's ten epochs; the other steps were chosen on nothing. No more than 128 tokens, as many as
# models trained here have positions for.
TASKS = {
    "sst2": ("SST-2", 3000, 32, 3e-4, 64),
    "cola": ("CoLA", 800, 32, 1e-4, 48),
    "stsb": ("STS-B", 1800, 32, 1e-4, 96),
    "mrpc": ("MRPC", 400, 32, 1e-4, 128),
    "rte": ("RTE", 300, 32, 1e-4, 128),
    "squad1": (None, 600, 32, 3e-4, 128),
}


def tasks(
    model: Positional[Path],
    out: Path,
    *,
    glue: Path,
    squad: Path,
    task: tuple[str, ...] = tuple(TASKS),
    seeds: int = 3,
    steps: int | None = None,
    weights: Literal["both", "model", "random"] = "both",
) -> None:
    """Fine-tunes a model on each task and appends the means over the seeds.

    Args:
        model: model directory.
        out: folder of results and runs.
        glue: folder of the GLUE tasks' folders.
        squad: folder of SQuAD 1.1's files.
        task: names of those to run.
        seeds: runs of each.
        steps: updates of each run; unset: the task's in TASKS.
        weights: what is fine-tuned: the model, random weights of the same shape (the control), or
            both.
    """
    for name in task:
        folder, usual, rows, rate, length = TASKS[name]
        updates = steps or usual
        for is_random in {"model": (False,), "random": (True,)}.get(weights, (False, True)):
            workdir = out / "tasks" / f"{model.parent.name}-{name}{'-random' if is_random else ''}"
            since = time.monotonic()
            results = finetune(
                FinetuneConfig(
                    task=name,
                    model=str(model),
                    random_weights=is_random,
                    data=str(squad if folder is None else glue / folder),
                    workdir=str(workdir),
                    max_seq_length=length,
                    doc_stride=64 if name == "squad1" else None,
                    seeds=seeds,
                    compute=ComputeConfig(dtype="auto"),
                    optimizer=OptimizerConfig(
                        name="adamw", learning_rate=rate, warmup_steps=updates // 10
                    ),
                    train=TrainConfig(
                        steps=updates,
                        batch_size=rows,
                        log_every=100,
                        eval_every=updates,
                        eval_examples=1_000_000,
                        save_every=updates,
                        keep=2,
                    ),
                )
            )
            last = [run["last"]["metrics"][results["metric"]] for run in results["runs"]]
            row = {
                "task": name,
                "model": str(model),
                "random_weights": is_random,
                "steps": updates,
                "metric": results["metric"],
                "mean": statistics.mean(last),
                "stdev": statistics.stdev(last) if len(last) > 1 else None,
                "seeds": last,
                "constant": results["baseline"],
                "seconds": round(time.monotonic() - since),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": _commit(),
            }
            _append(out, row)
            print(json.dumps(row))


# ----------------------------------------------------------------------------------------- pictures


def plot(out: Path, *, only: tuple[str, ...] = (), picture: Path | None = None) -> None:
    """Draws held-out losses and accuracies by FLOPs.

    Args:
        out: folder of results.
        only: names of the runs to draw; unset: all.
        picture: file to write; unset: OUT/learning.png.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    from albert_jax.utils.plots import legend, line_style, new_figure, percent_axis

    rows = {row["name"]: row for row in _rows(out) if "curve" in row}
    rows = {name: row for name, row in rows.items() if not only or name in only}
    figure, axes = new_figure("Held-out text by training's FLOPs", 3, height=8.0)
    for number, (name, row) in enumerate(rows.items()):
        curve = np.array([[np.nan if x is None else x for x in point] for point in row["curve"]])
        for axis, column in zip(axes[:, 0], (2, 3, 5), strict=True):
            axis.plot(curve[:, 0], curve[:, column], **line_style(number), label=name)
    titles = ("masked-LM loss (nats)", "masked-LM accuracy", "sentence-order accuracy")
    for axis, title in zip(axes[:, 0], titles, strict=True):
        axis.set(xlabel="FLOPs", ylabel=title, xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(lambda flops, _: f"{flops:.0e}".replace("+", ""))
        axis.xaxis.set_minor_formatter(NullFormatter())
    for axis in axes[1:, 0]:
        percent_axis(axis)
    legend(axes[0, 0])
    picture = picture or out / "learning.png"
    figure.savefig(picture)
    print(picture)


def budgets(out: Path, *, size: str = "mini", picture: Path | None = None) -> None:
    """Draws each recipe's loss at the end of its runs by their budgets, and prints it as a table.

    The rows are the same for all recipes, with n-grams masked as in the original.

    Args:
        out: folder of results.
        size: of the models.
        picture: file to write; unset: OUT/budgets.png.
    """
    from albert_jax.utils.plots import legend, line_style, new_figure, percent_axis

    runs: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(out):
        if "judged" in row and row.get("size") == size and not row["changes"]:
            runs.setdefault(row["recipe"], []).append(row)
    figure, axes = new_figure("Held-out text at the end of a run, by its budget", 2, height=6.0)
    print("| recipe | FLOPs | tokens | masked-LM loss | accuracy | sentence order |")
    print("| --- " * 6 + "|")
    for number, (recipe, rows) in enumerate(runs.items()):
        rows = sorted(rows, key=lambda row: row["flops"])
        judged = [row["judged"]["ngram"] for row in rows]
        for axis, name in zip(axes[:, 0], CURVE[:2], strict=True):
            values = [each[name] for each in judged]
            flops = [row["flops"] for row in rows]
            axis.plot(flops, values, **line_style(number), label=recipe)
        for row, each in zip(rows, judged, strict=True):
            order = each["sentence_order_accuracy"]
            print(
                f"| {recipe} | {row['flops']:.1e} | {row['tokens'] / 1e6:.1f} M | "
                f"{each['masked_lm_loss']:.3f} | {each['masked_lm_accuracy']:.1%} | "
                f"{'' if order is None else f'{order:.1%}'} |"
            )
    for axis, title in zip(axes[:, 0], ("masked-LM loss (nats)", "accuracy"), strict=True):
        axis.set(xlabel="FLOPs", ylabel=title, xscale="log")
    percent_axis(axes[1, 0])
    legend(axes[0, 0])
    picture = picture or out / "budgets.png"
    figure.savefig(picture)
    print(picture)


def _rows(out: Path) -> Iterator[dict[str, Any]]:
    for line in (out / "learning.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


# ------------------------------------------------------------------------------------------ overlap


def overlap(store: str, heldout: str, *, gram: int = GRAM) -> None:
    """Says how much of the held-out text stands in the training text, in runs of 13 tokens.

    Args:
        store: token stores trained on.
        heldout: store whose held-out split is evaluated.
        gram: tokens that must agree.
    """
    held = _grams(TokenStore.open(heldout, split="heldout"), gram)
    seen = np.zeros(len(held), bool)
    wanted, first = np.unique(held, return_inverse=True)
    for path, _ in split_stores(store):
        for part in _shards(TokenStore.open(path, split="train"), gram):
            seen |= np.isin(wanted, part)[first]
    answer = {"gram": gram, "heldout": len(held), "shared": int(seen.sum())}
    print(json.dumps(answer | {"share": float(seen.mean())}))


def _grams(store: TokenStore, gram: int) -> np.ndarray:
    return np.concatenate(list(_shards(store, gram)))


def _shards(store: TokenStore, gram: int) -> Iterator[np.ndarray]:
    """Yields each shard's n-grams as 64-bit hashes, uint64[tokens - n + 1]."""
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 2**63, gram, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    table = rng.integers(0, 2**63, 1 << 16, dtype=np.uint64)
    for shard in store.shards:
        values = table[np.asarray(shard.tokens)]
        count = len(values) - gram + 1
        if count > 0:
            yield sum(
                (values[i : i + count] * weights[i] for i in range(gram)),
                start=np.zeros(count, np.uint64),
            )


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict(
        {
            "run": run,
            "tasks": tasks,
            "plot": plot,
            "budgets": budgets,
            "overlap": overlap,
            "pack": pack,
            "minutes": minutes,
        }
    )

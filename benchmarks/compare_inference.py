# SPDX-License-Identifier: Apache-2.0
"""Not a test: fill-mask and encode throughput beside transformers and PyTorch, in one process.

python -m benchmarks.compare_inference --text 'enwiki/text/AA/wiki_0*.gz' --vocab vocab30k

A base-v2 model with random weights is made by transformers and converted. In each round all
contenders answer the same texts, one after the other on the same threads; compiling is left out.
"""

from __future__ import annotations

import glob
import gzip
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import tyro
from sentencex import segment

import albert_jax
from albert_jax.inference.batching import BATCH_TOKENS
from benchmarks.timing import seconds_in_turn
from tests.helpers.peers import peer_config


def sentences(pattern: str, count: int) -> list[str]:
    """Sentences of 4 to 60 words, spread over the files of WikiExtractor's output."""
    found: list[str] = []
    for name in sorted(glob.glob(pattern)):
        with gzip.open(name, "rt", encoding="utf-8") as file:
            lines = [line for line in file if len(line) > 80 and not line.startswith("<")]
        parts = (part.strip() for line in lines[:400] for part in segment("en", line))
        found += [part for part in parts if 4 <= len(part.split()) <= 60]
    rng = np.random.default_rng(0)
    return [found[i] for i in rng.choice(len(found), count, replace=False)]


def masked(text: str, rng: np.random.Generator) -> str:
    words = text.split()
    words[rng.integers(len(words))] = "[MASK]"
    return " ".join(words)


def make_model(vocab: Path, folder: Path) -> tuple[Any, Any]:
    """A transformers model with random weights, its tokenizer, and our conversion in `folder`."""
    torch.manual_seed(0)
    model = transformers.AlbertForPreTraining(peer_config()).eval()
    tokenizer = transformers.AlbertTokenizer(str(vocab / "spiece.model"))
    model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    albert_jax.convert(folder / "hf", folder / "model")
    return transformers.AlbertForMaskedLM.from_pretrained(folder / "hf").eval(), tokenizer


def torch_encode(model: Any, tokenizer: Any, size: int) -> Callable[[list[str]], np.ndarray]:
    """Mean vectors by PyTorch, batched by length: more than the pipeline does for its users."""

    def encode(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.zeros((len(texts), model.config.hidden_size), np.float32)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            inputs = tokenizer([texts[i] for i in rows], padding=True, return_tensors="pt")
            with torch.inference_mode():
                hidden = model.albert(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            vectors[rows] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
        return vectors

    return encode


def one_by_one(call: Callable[[Any], Any]) -> Callable[[list[str]], list[Any]]:
    return lambda texts: [call(text) for text in texts]


def shapes(full: bool) -> Iterator[list[str]]:
    """Texts for every shape of up to 128 tokens: one text, and with `full` also eight and most."""
    for length in (16, 24, 32, 48, 64, 96, 128):
        text = " ".join(["the"] * (length - 4))
        yield [f"{text} [MASK]"] * (BATCH_TOKENS["cpu"] // length + 9 if full else 1)


def measure(
    contenders: dict[str, Callable[[list[str]], Any]], rounds: list[list[str]], *, full: bool
) -> dict[str, np.ndarray]:
    """Wall and CPU seconds of each contender over the rounds; compiling is done before."""
    for name, call in contenders.items():
        for texts in shapes(full) if name.startswith("albert_jax") else [rounds[0][:4]]:
            call(texts)
    seconds = {name: np.zeros(2) for name in contenders}
    for texts in rounds:
        calls = {name: partial(call, texts) for name, call in contenders.items()}
        for name, (spent,) in seconds_in_turn(calls, 1).items():
            seconds[name] += spent
    return seconds


def main(text: str, vocab: Path, texts: int = 1000, rounds: int = 4, singles: int = 100) -> None:
    """Prints texts a second of every contender.

    Args:
        text: pattern of WikiExtractor's files, gzipped.
        vocab: folder with a spiece.model of 30,000 pieces.
        texts: sentences in all.
        rounds: parts of them, each answered by all in turn.
        singles: texts of each round that are also answered one at a time.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    plain = sentences(text, texts)
    rng = np.random.default_rng(1)
    gaps = [masked(one, rng) for one in plain]
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = make_model(vocab, Path(folder))
        albert = albert_jax.load(Path(folder) / "model")
    pipeline = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)
    features = torch_encode(model, tokenizer, 32)
    lengths = [len(ids) for ids in tokenizer(gaps)["input_ids"]]
    print(
        f"{texts} texts, {np.mean(lengths):.1f} tokens on average, {max(lengths)} at most; "
        f"{torch.get_num_threads()} threads"
    )
    size = texts // rounds
    parts = [slice(start, start + size) for start in range(0, texts, size)]
    short = singles // rounds
    tables = {
        "fill-mask": (
            gaps,
            {
                "albert_jax, a list": albert.fill_mask,
                "pipeline, as it comes": lambda batch: pipeline(list(batch)),
                "pipeline, batch_size=32": lambda batch: pipeline(list(batch), batch_size=32),
            },
            size,
        ),
        "fill-mask, one at a time": (
            gaps,
            {"albert_jax": one_by_one(albert.fill_mask), "pipeline": one_by_one(pipeline)},
            short,
        ),
        "encode, mean": (
            plain,
            {
                "albert_jax, a list": lambda batch: albert.encode(batch, pool="mean"),
                "PyTorch, 32 by length": features,
            },
            size,
        ),
        "encode, mean, one at a time": (
            plain,
            {
                "albert_jax": one_by_one(lambda one: albert.encode(one, pool="mean")),
                "PyTorch": one_by_one(lambda one: features([one])),
            },
            short,
        ),
    }
    for title, (asked, contenders, count) in tables.items():
        parts_of = [asked[part][:count] for part in parts]
        seconds = measure(contenders, parts_of, full=count == size)
        for name, spent in seconds.items():
            wall, cpu = count * rounds / spent
            print(
                f"{title}: {name}: {wall:.2f} texts a second, {cpu:.2f} a CPU second "
                f"({count * rounds} texts)",
                flush=True,
            )
    ours = albert.encode(plain[:64], pool="mean").pooled
    print(f"largest difference of mean vectors {np.abs(ours - features(plain[:64])).max():.1e}")


if __name__ == "__main__":
    tyro.cli(main)

# SPDX-License-Identifier: Apache-2.0
"""Not a test: what bfloat16 and int8 cost in quality, for a classifier and for fill-mask.

python -m benchmarks.answer_quality --model runs/sst2/model --data glue/SST-2 \\
    --text 'enwiki/text/AD/wiki_*.gz'

The classifier is a model fine-tuned on SST-2, fill-mask is answered by the pretrained model. The
contenders are those of `compare_answers`: the peers run the same weights, exported for
transformers, and ONNX Runtime's int8 is that of `quantize_dynamic`. Of each the score is printed,
and how often its answers are those of our float32.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import albert_jax
from albert_jax.tasks import TASKS
from benchmarks.compare_answers import Answer, ours, peers
from benchmarks.compare_inference import sentences

MOST_TOKENS = 100  # of a text that gets a gap


@dataclasses.dataclass(frozen=True)
class Settings:
    model: Path | None = None
    """A model directory that was fine-tuned on SST-2; unset: no classifier."""
    data: Path = Path("glue/SST-2")
    """The folder with its dev.tsv."""
    text: str | None = None
    """Pattern of WikiExtractor's files, gzipped, of which the pretrained model saw none; unset: no
    fill-mask."""
    pretrained: str = "mini"
    texts: int = 1000
    """Sentences with a gap."""


def contenders(task: str, model: str | Path, scratch: Path) -> dict[str, Answer]:
    """Return those of `compare_answers` that compute in different dtypes."""
    hf = scratch / f"{task}-hf"
    albert_jax.convert(model, hf, to="hf")
    theirs = peers(task, hf, scratch)
    del theirs["PyTorch, torch.compile"]
    return {
        "albert_jax": ours(task, model, "float32"),
        "albert_jax, bfloat16": ours(task, model, "bfloat16"),
        **theirs,
    }


def compare_classifiers(model: Path, data: Path, scratch: Path) -> None:
    """Print each contender's accuracy on the dev set, and the answers that differ from ours."""
    examples = TASKS["sst2"].examples("dev", data)
    texts = [example.texts[0] for example in examples]
    truth = [example.label for example in examples]
    base: list[Any] = []
    for name, answer in contenders("classify", model, scratch).items():
        found = [_label(one) for one in answer(texts)]
        base = base or found
        right = sum(a == b for a, b in zip(found, truth, strict=True))
        differ = sum(a != b for a, b in zip(found, base, strict=True))
        share = 100 * right / len(truth)
        print(f"  {name:28} {share:.2f} % right, {differ} of {len(truth)} differ", flush=True)


def _label(answer: Any) -> str:
    """Return the label of an `Answer`, or of a peer's logits of the labels 0 and 1."""
    return str(answer.argmax()) if isinstance(answer, np.ndarray) else answer.prediction


def compare_fill_mask(model: str, pattern: str, count: int, scratch: Path) -> None:
    """Print how often each contender finds the piece that was there, and agrees with ours."""
    tokenizer = albert_jax.load(model).tokenizer
    texts, truth = _with_gaps(tokenizer, sentences(pattern, 2 * count))
    texts, truth_N = texts[:count], np.array(truth[:count])
    print(f"fill-mask, {len(texts)} sentences", flush=True)
    base_NK = None
    for name, answer in contenders("fill-mask", model, scratch).items():
        found_NK = np.array([[piece["token"] for piece in one] for one in answer(texts)])
        base_NK = found_NK if base_NK is None else base_NK
        is_piece_NK = found_NK == truth_N[:, None]
        same_first = (found_NK[:, 0] == base_NK[:, 0]).mean()
        # The order of the five does not count.
        shared = np.mean([len({*a} & {*b}) / 5 for a, b in zip(found_NK, base_NK, strict=True)])
        print(
            f"  {name:28} right {100 * is_piece_NK[:, 0].mean():.1f} %, among five "
            f"{100 * is_piece_NK.any(axis=1).mean():.1f} %; the same first "
            f"{100 * same_first:.1f} %, of the five {100 * shared:.1f} %",
            flush=True,
        )


def _with_gaps(tokenizer: Any, plain: list[str]) -> tuple[list[str], list[int]]:
    """Return texts with [MASK] for a word that is one piece, and these pieces' ids."""
    rng = np.random.default_rng(1)
    texts, truth = [], []
    for text in plain:
        words = text.split()
        at = int(rng.integers(len(words)))
        ids = tokenizer.encode(words[at]).ids
        words[at] = "[MASK]"
        gapped = " ".join(words)
        if len(ids) == 1 and len(tokenizer.encode(gapped, parse_special=True).ids) <= MOST_TOKENS:
            texts.append(gapped)
            truth.append(ids[0])
    return texts, truth


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        if settings.model is not None:
            print("SST-2, dev", flush=True)
            compare_classifiers(settings.model, settings.data, Path(scratch))
        if settings.text is not None:
            compare_fill_mask(settings.pretrained, settings.text, settings.texts, Path(scratch))


if __name__ == "__main__":
    main(tyro.cli(Settings))

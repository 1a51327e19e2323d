# SPDX-License-Identifier: Apache-2.0
"""Not a test: answers on a CPU beside ONNX Runtime and PyTorch, in one process.

python -m benchmarks.compare_answers --text 'enwiki/text/AA/wiki_0*.gz' --vocab vocab30k

A base-v2 model with random weights is made by transformers and converted. Every contender takes
texts and returns answers, its tokenizer's time included: mean vectors (encode), the five likeliest
words for a gap (fill-mask), a label (classify). Peers compute logits at the gap alone, as we do,
which is better than what their users get. In each round all answer the same texts in turn, one, 8
and 128 a call; peers divide 128 by length into batches of 32. Compiling is left out. Of the rounds
the least and the median time are printed, and at the end a table of the least.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
import tyro
from onnxruntime.quantization import QuantType, quantize_dynamic

import albert_jax
from albert_jax.config.model import ComputeConfig, Dtype, Engine
from benchmarks.compare_inference import masked, sentences
from benchmarks.timing import CPU, WALL, seconds_in_turn
from tests.helpers.peers import peer_config

Answer = Callable[[list[str]], Any]
Encodings = dict[str, np.ndarray]
BATCH = 32  # rows of a peer's batch
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "positions")


@dataclasses.dataclass(frozen=True)
class Settings:
    text: str
    """Pattern of WikiExtractor's files, gzipped."""
    vocab: Path
    """Folder with a spiece.model of 30,000 pieces."""
    rounds: int = 3
    """Rounds of 128 texts a call. Those of 8 and of one text, which take less, are twice as many
    and four times as many."""
    tasks: tuple[str, ...] = ("encode", "fill-mask", "classify")
    without: tuple[str, ...] = ()
    """Contenders to leave out."""


class Network(torch.nn.Module):
    """What a task's program computes of ids: mean vectors, logits at the gap, or of two labels."""

    def __init__(self, task: str, model: Any) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, ids: Any, mask: Any, types: Any, positions: Any) -> Any:
        model = self.model
        if self.task == "classify":
            return model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        hidden = model.albert(
            input_ids=ids, attention_mask=mask, token_type_ids=types
        ).last_hidden_state
        if self.task == "encode":
            return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        at_gap = torch.gather(hidden, 1, positions[:, None, None].expand(-1, 1, hidden.shape[-1]))
        return torch.topk(torch.softmax(model.predictions(at_gap)[:, 0].float(), -1), 5)


def peers(task: str, hf: Path, scratch: Path) -> dict[str, Answer]:
    """Return the contenders that are not ours."""
    classes = {"classify": transformers.AlbertForSequenceClassification}
    model = classes.get(task, transformers.AlbertForMaskedLM).from_pretrained(
        hf, attn_implementation="sdpa"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf)
    network = Network(task, model).eval()
    compiled = torch.compile(network, dynamic=True)

    def in_bfloat16(*inputs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            found = network(*inputs)
        return found if isinstance(found, tuple) else found.float()

    found: dict[str, Answer] = {
        "PyTorch": _torch(network, tokenizer, task),
        "PyTorch, torch.compile": _torch(compiled, tokenizer, task),
        "PyTorch, bfloat16 autocast": _torch(in_bfloat16, tokenizer, task),
    }
    exported, small = scratch / f"{task}.onnx", scratch / f"{task}-int8.onnx"
    sample = (*(torch.ones((2, 9), dtype=torch.long) for _ in range(3)), torch.ones(2).long())
    axes = {name: {0: "batch", 1: "length"} for name in INPUTS[:3]} | {"positions": {0: "batch"}}
    torch.onnx.export(
        network,
        sample,
        str(exported),
        input_names=list(INPUTS),
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    quantize_dynamic(exported, small, weight_type=QuantType.QInt8)
    found["ONNX Runtime"] = _onnx(exported, tokenizer, task)
    found["ONNX Runtime, int8"] = _onnx(small, tokenizer, task)
    return found


def _torch(network: Callable[..., Any], tokenizer: Any, task: str) -> Answer:
    def run(given: Encodings) -> Any:
        with torch.inference_mode():
            return network(*(torch.from_numpy(given[name]) for name in INPUTS))

    return _by_length(run, tokenizer, task)


def _onnx(path: Path, tokenizer: Any, task: str) -> Answer:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken = {entry.name for entry in session.get_inputs()}

    def run(given: Encodings) -> Any:
        found = session.run(None, {name: x for name, x in given.items() if name in taken})
        return found if task == "fill-mask" else found[0]

    return _by_length(run, tokenizer, task)


def _by_length(run: Callable[[Encodings], Any], tokenizer: Any, task: str) -> Answer:
    """Return a contender that runs batches of texts of similar lengths."""

    def answer(texts: list[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        answers: list[Any] = [None] * len(texts)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            given = dict(tokenizer([texts[i] for i in rows], padding=True, return_tensors="np"))
            given["positions"] = (given["input_ids"] == tokenizer.mask_token_id).argmax(1)
            found = run(given)
            if task == "fill-mask":
                scores, tokens = (np.asarray(x).tolist() for x in found)
                found = [_pieces(*row, tokenizer) for row in zip(scores, tokens, strict=True)]
            else:
                found = np.asarray(found)
            for row, one in zip(rows, found, strict=True):
                answers[row] = one
        return answers

    return answer


def _pieces(scores: list[float], tokens: list[int], tokenizer: Any) -> list[dict[str, Any]]:
    """Return a gap's answers as `fill_mask` has them."""
    pairs = zip(scores, tokens, strict=True)
    return [{"score": x, "token": id, "token_str": tokenizer.decode([id])} for x, id in pairs]


def ours(task: str, model: Path, dtype: Dtype = "float32", engine: Engine = "jax") -> Answer:
    """Return our own contender."""
    albert = albert_jax.load(model, compute=ComputeConfig(dtype=dtype), engine=engine)
    if task == "classify":
        return lambda texts: albert.predict(texts, task="sst2")
    if task == "fill-mask":
        return lambda texts: albert.fill_mask(texts)
    return lambda texts: albert.encode(texts, pool="mean").pooled


def make_models(vocab: Path, folder: Path) -> dict[str, tuple[Path, Path]]:
    """Write transformers' models with random weights, and ours converted from them."""
    torch.manual_seed(0)
    tokenizer = transformers.AlbertTokenizerFast(str(vocab / "spiece.model"))
    found = {}
    for name, kind in (
        ("pretrained", transformers.AlbertForPreTraining),
        ("classify", transformers.AlbertForSequenceClassification),
    ):
        hf, converted = folder / f"{name}-hf", folder / name
        kind(peer_config()).eval().save_pretrained(hf)
        tokenizer.save_pretrained(hf)
        albert_jax.convert(hf, converted)
        found[name] = (hf, converted)
    return found


def measure(
    contenders: dict[str, Answer], calls: Sequence[list[str]], rounds: int
) -> dict[str, float]:
    """Print the milliseconds a text of each contender; return the least of CPU."""
    for call in contenders.values():
        for texts in calls:
            call(texts)

    def answer(call: Answer) -> None:
        for texts in calls:
            call(texts)

    turns = {name: partial(answer, call) for name, call in contenders.items()}
    each = 1e3 / sum(map(len, calls))
    spent = {name: each * seconds for name, seconds in seconds_in_turn(turns, rounds).items()}
    least = {name: float(found[:, CPU].min()) for name, found in spent.items()}
    for name, found in spent.items():
        print(
            f"  {name:28} {least[name]:7.2f} ms of CPU a text at least, "
            f"{np.median(found[:, CPU]):7.2f} in the median, "
            f"{found[:, WALL].min():7.2f} by the clock; "
            f"{least[name] / least['albert_jax']:.2f} of albert_jax's float32",
            flush=True,
        )
    return least


def print_table(found: dict[str, dict[str, float]]) -> None:
    """Print a line for each contender, with the milliseconds of CPU a text in each column."""
    print("| ms of CPU a text | " + " | ".join(found) + " |")
    print("| --- |" + " --- |" * len(found))
    for name in next(iter(found.values())):
        cells = (f"{each[name]:.1f}" if name in each else "" for each in found.values())
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main(settings: Settings) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    texts = sentences(settings.text, 8 + 16 + 128)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        models = make_models(settings.vocab, Path(scratch))
        for task in settings.tasks:
            hf, converted = models["classify" if task == "classify" else "pretrained"]
            contenders = {
                "albert_jax": ours(task, converted),
                "albert_jax, engine onnx": ours(task, converted, engine="onnx"),
                "albert_jax, bfloat16": ours(task, converted, "bfloat16"),
            }
            contenders |= peers(task, hf, Path(scratch))
            for name in settings.without:
                contenders.pop(name, None)
            rng = np.random.default_rng(1)
            asked = [masked(one, rng) for one in texts] if task == "fill-mask" else texts
            parts = {
                1: [[one] for one in asked[:8]],
                8: [asked[8:16], asked[16:24]],
                128: [asked[24:]],
            }
            for size, calls in parts.items():
                print(f"{task}, {size} a call", flush=True)
                rounds = settings.rounds * {1: 4, 8: 2, 128: 1}[size]
                found[f"{task}, {size}"] = measure(contenders, calls, rounds)
    print_table(found)


if __name__ == "__main__":
    main(tyro.cli(Settings))

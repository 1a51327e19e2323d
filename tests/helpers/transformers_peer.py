# SPDX-License-Identifier: Apache-2.0
"""transformers' side of what tests compare with it, a program of its own: writes random models.

`python transformers_peer.py FOLDER` writes a folder a model: config.json and model.safetensors, as
save_pretrained does, and outputs.npz, what the model computes when it is read again (inputs, labels
and outputs, dropout off). transformers 4.57.6 with torch 2.13.0 on a CPU wrote
tests/data/golden/transformers. The weights follow from the seed; no bias is 0, no gain is 1, and
queries and keys are large enough for attention to differ by position.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

ROWS, LENGTH, LENGTHS = 3, 16, (16, 11, 9)
# No two sizes are equal, so that none can stand for another.
SIZES = {
    "vocab_size": 60,
    "embedding_size": 8,
    "hidden_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}
# Name: transformers' class, and what its configuration has beside the sizes.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "pretraining": ("AlbertForPreTraining", {"hidden_act": "gelu_new"}),
    "pretraining_erf_gelu_inner2": (
        "AlbertForPreTraining",
        {"hidden_act": "gelu", "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    "masked_lm": ("AlbertForMaskedLM", {"hidden_act": "gelu_new"}),
    "sequence_classification": (
        "AlbertForSequenceClassification",
        {
            "hidden_act": "gelu_new",
            "num_labels": 5,
            "problem_type": "single_label_classification",
        },
    ),
    "sequence_regression": (
        "AlbertForSequenceClassification",
        {"hidden_act": "gelu", "num_labels": 1, "problem_type": "regression"},
    ),
    "token_classification": (
        "AlbertForTokenClassification",
        {"hidden_act": "relu", "num_labels": 7},
    ),
    "question_answering": ("AlbertForQuestionAnswering", {"hidden_act": "gelu_new"}),
    "multiple_choice": ("AlbertForMultipleChoice", {"hidden_act": "gelu"}),
}


def fill(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Overwrites every parameter with random numbers."""
    for name, parameter in sorted(model.named_parameters()):
        shape = tuple(parameter.shape)
        noise = rng.standard_normal(shape)
        if "LayerNorm.weight" in name or "layer_norm.weight" in name:
            noise = 1 + 0.2 * noise
        elif len(shape) == 1:
            noise *= 0.1
        elif "embeddings" in name:
            noise *= 0.4
        else:
            noise *= (2 if ".query." in name or ".key." in name else 1) / shape[1] ** 0.5
        with torch.no_grad():
            parameter.copy_(torch.tensor(noise))


def batch(name: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs and labels, in part padding and in part labels that transformers ignores."""
    shape = (ROWS, 4, LENGTH) if name == "multiple_choice" else (ROWS, LENGTH)
    places = np.broadcast_to(np.arange(LENGTH), shape)
    lengths = np.array(LENGTHS).reshape(ROWS, *[1] * (len(shape) - 1))
    mask = places < lengths
    inputs = {
        "input_ids": rng.integers(5, SIZES["vocab_size"], shape) * mask,
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": ((places >= lengths // 2) & mask).astype(np.int64),
    }
    choices = {"sequence_classification": 5, "multiple_choice": 4}
    if name == "question_answering":
        starts = np.array([2, 5, LENGTH + 3])  # the last is outside the row: ignored
        return inputs | {"start_positions": starts, "end_positions": starts + np.array([3, 1, 0])}
    if name == "sequence_regression":
        return inputs | {"labels": rng.standard_normal(ROWS).astype(np.float32)}
    if name in choices:
        return inputs | {"labels": rng.integers(0, choices[name], ROWS)}
    if name == "token_classification":
        return inputs | {"labels": np.where(mask, rng.integers(0, 7, shape), -100)}
    chosen = mask & (places % 5 == 3)
    masked = {"labels": np.where(chosen, inputs["input_ids"], -100)}
    inputs["input_ids"] = np.where(chosen, 4, inputs["input_ids"])
    order = {"sentence_order_label": rng.integers(0, 2, ROWS)} if "pretraining" in name else {}
    return inputs | masked | order


def compute(model: torch.nn.Module, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs, of pretraining each layer's too."""
    pretraining = "sentence_order_label" in given
    with torch.no_grad():
        tensors = {name: torch.tensor(x) for name, x in given.items()}
        output = model(**tensors, output_hidden_states=pretraining)
        found = {name: x for name, x in output.items() if isinstance(x, torch.Tensor)}
        if pretraining:
            for layer, states in enumerate(output.hidden_states):
                found[f"hidden_states_{layer:02d}"] = states
            inputs = ("input_ids", "attention_mask", "token_type_ids")
            found["pooled"] = model.albert(**{n: tensors[n] for n in inputs}).pooler_output
    return {name: x.numpy() for name, x in found.items()}


def main(folder: Path) -> None:
    for number, (name, (kind, settings)) in enumerate(MODELS.items()):
        rng = np.random.default_rng(number)
        cls = getattr(transformers, kind)
        model = cls(transformers.AlbertConfig(**SIZES, **settings))
        fill(model, rng)
        model.save_pretrained(folder / name)
        loaded = cls.from_pretrained(folder / name, attn_implementation="eager").eval()
        given = batch(name, rng)
        np.savez_compressed(folder / name / "outputs.npz", **given, **compute(loaded, given))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

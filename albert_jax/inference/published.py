# SPDX-License-Identifier: Apache-2.0
"""List published answers of the released weights that no other weights give.

Numbers at given ids identify the weights; filled words and the vocabulary's ids only accompany
them. The source stands beside each value. For models other than base-v2 only the examples of the
model cards were found. Several cards print the same examples, which can be those of one model only,
so a model that answers otherwise is not wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from albert_jax.config.model import MODELS, AlbertConfig


@dataclass(frozen=True)
class Numbers:
    """Hold part of an output for one row of ids: its values from `corner` on, in nested tuples."""

    models: tuple[str, ...]
    source: str
    output: Literal["sequence", "pooled", "masked_lm_logits"]
    input_ids: tuple[int, ...]
    corner: tuple[int, ...]
    values: Any
    tolerance: float
    input_mask: tuple[int, ...] | None = None
    certain: bool = True  # that they are these models'

    @property
    def name(self) -> str:
        return f"{self.output} of {len(self.input_ids)} ids"


@dataclass(frozen=True)
class Fill:
    """Hold the most probable words for a text's [MASK], the best first.

    Ids and scores are there if they were published.
    """

    models: tuple[str, ...]
    source: str
    text: str
    words: tuple[str, ...]
    ids: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    tolerance: float = 1e-4  # of a score
    certain: bool = True

    @property
    def name(self) -> str:
        return self.text


Answer = Numbers | Fill


@dataclass(frozen=True)
class Released:
    """Hold what weights are compared with; tests have their own."""

    models: Mapping[str, AlbertConfig]
    texts: Mapping[str, tuple[int, ...]]  # text -> ids, without [CLS] and [SEP] around it
    pieces: Mapping[int, str]
    answers: tuple[Answer, ...]


_BASE = ("base-v2",)
_HF_TEST = "transformers, test_modeling_albert.py"
_HF_TF_TEST = "transformers 4, test_modeling_tf_albert.py"
_KERAS_TEST = "keras-hub, albert_backbone_test.py"
_HF_CARD = "the model cards on the Hugging Face hub"

_NUMBERS = (
    Numbers(
        _BASE,
        _HF_TEST,
        "sequence",
        (0, 345, 232, 328, 740, 140, 1695, 69, 6078, 1588, 2),
        (1, 1),
        ((-0.6513, 1.5035, -0.2766), (-0.6515, 1.5046, -0.2780), (-0.6512, 1.5049, -0.2784)),
        2e-4,  # theirs, and half of the last digit
        input_mask=(0, *[1] * 10),
    ),
    Numbers(
        _BASE,
        _HF_TF_TEST,
        "masked_lm_logits",
        (0, 1, 2, 3, 4, 5),
        (0, 0),
        (
            (4.595668, 0.74462754, -1.818147),
            (4.5954347, 0.7454184, -1.8188258),
            (4.5954905, 0.7448235, -1.8182316),
        ),
        2e-4,
    ),
    Numbers(
        _BASE,
        _KERAS_TEST,
        "sequence",
        (2, 13, 1, 3),
        (0, 0),
        ((1.830863, 1.698645, -1.819195, -0.53382, -0.38114),),
        0.01,
    ),
    Numbers(
        _BASE,
        _KERAS_TEST,
        "pooled",
        (2, 13, 1, 3),
        (0,),
        (0.328261, -0.415397, -0.388745, 0.156846, 0.657874),
        0.01,
    ),
)

_FILLS = (
    Fill(
        _BASE,
        _HF_TEST,
        "Paris is the [MASK] of France.",
        ("capital", "capitol", "comune", "arrondissement", "bastille"),
    ),
    Fill(_BASE, "rust-bert, albert.rs", "It's like comparing [MASK] to apples", ("grapes",)),
    Fill(
        tuple(MODELS),
        _HF_CARD,
        "Hello I'm a [MASK] model.",
        ("modeling", "modelling", "model", "runway", "lingerie"),
        (12807, 23089, 1061, 8014, 29104),
        (0.0581613, 0.0374883, 0.0337253, 0.0173134, 0.0144053),
        certain=False,
    ),
    Fill(
        tuple(MODELS),
        _HF_CARD,
        "The man worked as a [MASK].",
        ("chauffeur", "janitor", "shoemaker", "blacksmith", "lawyer"),
        (28744, 29477, 29024, 21238, 3672),
        (0.0295772, 0.0288657, 0.0258112, 0.0184977, 0.0182077),
        certain=False,
    ),
    Fill(
        tuple(MODELS),
        _HF_CARD,
        "The woman worked as a [MASK].",
        ("receptionist", "janitor", "paramedic", "chauffeur", "waitress"),
        (25331, 29477, 23386, 28744, 13678),
        (0.0460487, 0.0282209, 0.0261906, 0.0247979, 0.0241246),
        certain=False,
    ),
)

# transformers, test_tokenization_albert.py; the last two Bumblebee, albert_tokenizer_test.exs.
# fmt: off
_TEXTS = {
    "This is a test": (48, 25, 21, 1289),
    "Transformers (formerly known as pytorch-transformers and pytorch-pretrained-bert) provides "
    "general-purpose architectures (BERT, GPT-2, RoBERTa, XLM, DistilBert, XLNet...) for Natural "
    "Language Understanding (NLU) and Natural Language Generation (NLG) with over 32+ pretrained "
    "models in 100+ languages and deep interoperability between Jax, PyTorch and TensorFlow.": (
        21970, 13, 5, 6092, 167, 28, 7103, 2153, 673, 8, 7028, 12051, 18, 17, 7103, 2153, 673, 8,
        3515, 18684, 8, 4461, 6, 1927, 297, 8, 12060, 2607, 18, 13, 5, 4461, 15, 10538, 38, 8, 135,
        15, 822, 58, 15, 993, 10363, 15, 1460, 8005, 4461, 15, 993, 255, 2328, 9, 9, 9, 6, 26, 1112,
        816, 3260, 13, 5, 103, 2377, 6, 17, 1112, 816, 2782, 13, 5, 103, 10641, 6, 29, 84, 2512,
        2430, 782, 18684, 2761, 19, 808, 2430, 2556, 17, 855, 1480, 9477, 4091, 128, 11712, 15,
        7103, 2153, 673, 17, 24883, 9990, 9,
    ),
    "BERT is designed to pre-train deep bidirectional representations from unlabeled text by "
    "jointly conditioning on both left and right context in all layers.": (
        11502, 25, 1006, 20, 782, 8, 11809, 855, 1732, 19393, 18667, 37, 367, 21018, 69, 1854, 34,
        11860, 19124, 27, 156, 225, 17, 193, 4141, 19, 65, 9124, 9,
    ),
    "The quick brown fox jumps over the lazy dog.": (
        14, 2231, 886, 2385, 17659, 84, 14, 16792, 1952, 9,
    ),
    "Test sentence with [MASK].": (1289, 5123, 29, 4, 13, 9),
    "Question?": (1301, 60),
}
# fmt: on

RELEASED = Released(MODELS, _TEXTS, {29999: "▁eloquent"}, _NUMBERS + _FILLS)

# SPDX-License-Identifier: Apache-2.0
"""A trained ALBERT that answers: `load` a model directory, then `fill_mask` and `forward`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax.config import AlbertConfig, ComputeConfig
from albert_jax.errors import UserError
from albert_jax.model import AlbertForPretraining
from albert_jax.model_dir import load_model
from albert_jax.tokenizer import CLS_ID, MASK_ID, PAD_ID, SEP_ID, Tokenizer

# Lengths and rows are padded up to these, so that texts of all lengths share a handful of programs.
LENGTH_STEP = 32


@dataclass(frozen=True)
class ForwardOutput:
    """float32 NumPy arrays; [L, …] has one entry for each attention + feed-forward block."""

    embeddings: np.ndarray  # [B, S, E]
    layers: np.ndarray  # [L, B, S, H]
    sequence: np.ndarray  # [B, S, H]
    pooled: np.ndarray  # [B, H]
    masked_lm_logits: np.ndarray  # [B, P, V]
    sentence_order_logits: np.ndarray  # [B, 2]; 0 is the right order


def load(directory: str | Path, *, compute: ComputeConfig | None = None) -> Albert:
    """An Albert from a model directory; raises UserError where it is none or is damaged."""
    model = load_model(directory)
    tokenizer = None
    if model.tokenizer["path"] is not None:
        settings = {key: model.tokenizer[key] for key in ("mode", "do_lower_case")}
        tokenizer = Tokenizer.load(model.tokenizer["path"], **settings)
    return Albert(model.config, model.params, tokenizer, compute=compute)


class Albert:
    """Parameters, configuration and tokenizer together."""

    def __init__(
        self,
        config: AlbertConfig,
        params: Any,
        tokenizer: Tokenizer | None,
        *,
        compute: ComputeConfig | None = None,
    ) -> None:
        if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
            raise UserError(
                f"the vocabulary {tokenizer.path} has {tokenizer.vocab_size} pieces and the "
                f"model {config.vocab_size}; "
                "give the vocabulary the model was trained with"
            )
        self.config, self.params, self._tokenizer = config, params, tokenizer
        self._model = AlbertForPretraining(config, compute or ComputeConfig())

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises UserError for a model that came without a vocabulary."""
        if self._tokenizer is None:
            raise UserError("this model has no vocabulary, so it takes ids and no text")
        return self._tokenizer

    @cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.params)

    @cached_property
    def _forward(self) -> Any:
        return jax.jit(
            lambda params, *inputs: self._model.apply(
                {"params": params}, *inputs, collect_layers=True
            )
        )

    @cached_property
    def _masked_lm(self) -> Any:
        return jax.jit(
            lambda params, *inputs: jax.nn.softmax(
                self._model.apply({"params": params}, *inputs).masked_lm_logits_BPV
            )
        )

    def forward(
        self,
        input_ids: Any,
        input_mask: Any = None,
        segment_ids: Any = None,
        masked_lm_positions: Any = None,
    ) -> ForwardOutput:
        """Everything the model computes for ids [B, S], in float32.

        The mask defaults to ones and the segments to zeros, both [B, S]; the masked-LM logits are
        those of `masked_lm_positions` [B, P], or of every position. Raises UserError for ids
        outside the vocabulary.
        """
        ids_BS = np.asarray(input_ids, np.int32)
        if ids_BS.ndim != 2:
            raise UserError(f"input_ids has shape {ids_BS.shape}; give [batch, sequence]")
        self._check_length(ids_BS.shape[1])
        if ids_BS.size and not (ids_BS.min() >= 0 and ids_BS.max() < self.config.vocab_size):
            raise UserError(
                f"input_ids go from {ids_BS.min()} to {ids_BS.max()}; "
                f"the vocabulary has 0 to {self.config.vocab_size - 1}"
            )
        mask_BS = np.ones_like(ids_BS) if input_mask is None else np.asarray(input_mask, np.int32)
        segments_BS = (
            np.zeros_like(ids_BS) if segment_ids is None else np.asarray(segment_ids, np.int32)
        )
        for name, array in (("input_mask", mask_BS), ("segment_ids", segments_BS)):
            if array.shape != ids_BS.shape:
                raise UserError(
                    f"{name} has shape {array.shape}; it must be input_ids' {ids_BS.shape}"
                )
        positions_BP = (
            None if masked_lm_positions is None else np.asarray(masked_lm_positions, np.int32)
        )
        with jax.default_matmul_precision("highest"):  # TPUs and some GPUs multiply float32 in less
            output = self._forward(self._on_device, ids_BS, mask_BS, segments_BS, positions_BP)
        encoder = output.encoder
        arrays = (
            encoder.embeddings_BSE,
            encoder.layers_LBSH,
            encoder.sequence_BSH,
            encoder.pooled_BH,
            output.masked_lm_logits_BPV,
            output.sentence_order_logits_BC,
        )
        return ForwardOutput(*(np.asarray(array, np.float32) for array in arrays))

    def fill_mask(self, text: str | Sequence[str], *, top_k: int = 5) -> list[Any]:
        """The likeliest pieces for the [MASK] in a text: [{"score", "token", "token_str",
        "sequence"}, …], best first.

        As transformers' pipeline: a text with several [MASK]s gives a list for each, a list of
        texts a list for each. Raises UserError for a text without [MASK] or one too long for the
        model.
        """
        if not isinstance(text, str):
            return [self.fill_mask(one, top_k=top_k) for one in text]
        if not 1 <= top_k <= self.config.vocab_size:
            raise UserError(f"top_k {top_k} must be between 1 and {self.config.vocab_size}")
        ids = [CLS_ID, *self.tokenizer.encode(text, parse_special=True).ids, SEP_ID]
        positions = [i for i, token in enumerate(ids) if token == MASK_ID]
        if not positions:
            raise UserError(f"{text!r} has no [MASK]; write [MASK] where a word is to be filled in")
        self._check_length(len(ids))
        probs_PV = self._fill(ids, positions)
        answers = []
        for position, probs_V in zip(positions, probs_PV, strict=True):
            best = np.argsort(-probs_V, kind="stable")[:top_k]
            answers.append(
                [
                    self._answer(ids, position, int(i), float(probs_V[i]), len(positions) > 1)
                    for i in best
                ]
            )
        return answers[0] if len(positions) == 1 else answers

    def _fill(self, ids: list[int], positions: list[int]) -> np.ndarray:
        length = min(-(-len(ids) // LENGTH_STEP) * LENGTH_STEP, self.config.max_position_embeddings)
        slots = 1 << (len(positions) - 1).bit_length()
        ids_S = np.full(length, PAD_ID, np.int32)
        ids_S[: len(ids)] = ids
        mask_S = (np.arange(length) < len(ids)).astype(np.int32)
        positions_P = np.zeros(slots, np.int32)
        positions_P[: len(positions)] = positions
        inputs = (ids_S, mask_S, np.zeros_like(ids_S), positions_P)
        with jax.default_matmul_precision("highest"):
            probs_BPV = self._masked_lm(self._on_device, *(x[None] for x in inputs))
        return np.asarray(probs_BPV)[0, : len(positions)]

    def _answer(
        self, ids: list[int], position: int, token: int, score: float, several: bool
    ) -> dict[str, Any]:
        filled = [*ids[:position], token, *ids[position + 1 :]]
        # One [MASK]: the filled sentence without [CLS] and [SEP]. Several: the others stay, so
        # specials are kept.
        sequence = self.tokenizer.decode(filled if several else filled[1:-1])
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token]),
            "sequence": sequence,
        }

    def _check_length(self, length: int) -> None:
        if length > self.config.max_position_embeddings:
            raise UserError(
                f"{length} tokens are more than the model's {self.config.max_position_embeddings}; "
                "shorten or split the text"
            )

# SPDX-License-Identifier: Apache-2.0
"""A trained ALBERT that answers: `load` a model directory, then `fill_mask`, `encode`,
`score_order` and `forward`.

Texts run in batches by length (`batching`), so that few programs are compiled and answers come in
the order of the texts.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from albert_jax import functions
from albert_jax.batching import Batch, Row, arrays, make_row, padded_length, plan
from albert_jax.config import AlbertConfig, ComputeConfig
from albert_jax.errors import UserError
from albert_jax.model import AlbertForPretraining
from albert_jax.model_dir import load_model
from albert_jax.parallel import set_compilation_cache
from albert_jax.tokenizer import MASK_ID, Tokenizer

# Tokens in a full batch. A CPU slows down once the activations outgrow its caches.
BATCH_TOKENS = {"cpu": 1024, "gpu": 16384, "tpu": 16384}
_MOST_UNROLLED = 24  # layers: each lengthens compiling
MANY = 100  # texts from which on a terminal sees a progress bar


def batch_tokens() -> int:
    """Tokens in a full batch, padding included, on the device that JAX computes on."""
    return BATCH_TOKENS.get(jax.default_backend(), BATCH_TOKENS["gpu"])


def one_ahead(started: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Yields each (batch, arrays) with the arrays in NumPy, while those of the next compute."""
    current = next(started, None)
    while current is not None:
        following = next(started, None)
        batch, output = current
        yield batch, jax.device_get(output)
        current = following


@dataclass(frozen=True)
class ForwardOutput:
    """float32 NumPy arrays; [L, …] has one entry for each attention + feed-forward block.

    None for what hangs on a pooler or head that the model came without.
    """

    embeddings: np.ndarray  # [B, S, E]
    layers: np.ndarray  # [L, B, S, H]
    sequence: np.ndarray  # [B, S, H]
    pooled: np.ndarray | None  # [B, H]
    masked_lm_logits: np.ndarray | None  # [B, P, V]
    sentence_order_logits: np.ndarray | None  # [B, 2]; 0 is the right order


@dataclass(frozen=True)
class Encoded:
    """float32 NumPy arrays, a row for each text, as `Albert.encode` says."""

    sequence: np.ndarray | None  # [B, S, H]
    pooled: np.ndarray | None  # [B, H]
    mask: np.ndarray  # i32[B, S], 1 for tokens, [CLS] and [SEP] included


def load(
    directory: str | Path, *, compute: ComputeConfig | None = None, depth: int | None = None
) -> Albert:
    """An Albert from a model directory; raises UserError where it is none or is damaged.

    `depth` runs the shared layer that number of times in place of the configuration's. Compiled
    programs are kept in the user's cache folder, as by pretraining.
    """
    model = load_model(directory)
    set_compilation_cache(None)
    tokenizer = None
    if model.tokenizer["path"] is not None:
        settings = {key: model.tokenizer[key] for key in ("mode", "do_lower_case")}
        tokenizer = Tokenizer.load(model.tokenizer["path"], **settings)
    config = model.config if depth is None else _with_depth(model.config, depth)
    head = model.manifest.get("head")
    return Albert(config, model.params, tokenizer, compute=compute, head=head)


def _all_below(numbers: np.ndarray, end: int) -> bool:
    return not numbers.size or bool(numbers.min() >= 0 and numbers.max() < end)


def _with_depth(config: AlbertConfig, depth: int) -> AlbertConfig:
    if config.num_hidden_groups != 1:
        raise UserError(
            f"depth {depth} needs a model whose layers are all one; this one has "
            f"{config.num_hidden_groups} groups of layers"
        )
    return dataclasses.replace(config, num_hidden_layers=depth)


class Albert:
    """Parameters, configuration and tokenizer together; `head` is {"kind", "labels"} of a
    fine-tuned model."""

    def __init__(
        self,
        config: AlbertConfig,
        params: Any,
        tokenizer: Tokenizer | None,
        *,
        compute: ComputeConfig | None = None,
        head: dict[str, Any] | None = None,
    ) -> None:
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"the vocabulary {tokenizer.path} has {tokenizer.vocab_size} pieces and the "
                f"model {config.vocab_size}; "
                "give the vocabulary the model was trained with"
            )
        self.config, self.params, self._tokenizer, self.head = config, params, tokenizer, head
        self._on_cpu = jax.default_backend() == "cpu"
        # Unrolled, so that a kernel's transposition is part of each layer's matmul.
        unroll = min(config.num_hidden_layers, _MOST_UNROLLED) if self._on_cpu else 1
        self.compute = compute or ComputeConfig(scan_unroll=unroll)
        self._forward = self._jit(functions.forward, collect_layers=True)
        # Rows of the embeddings that have a piece, and so can be answered: the first ones.
        self.pieces = config.vocab_size if tokenizer is None else tokenizer.vocab_size
        self._fill_mask = self._jit(functions.fill_mask, "top_k", pieces=self.pieces)
        self._encode = self._jit(functions.encode, "layer", "pool")
        self._sentence_order = self._jit(functions.sentence_order)
        self._attention = self._jit(functions.attention)

    def _jit(self, function: Callable[..., Any], *static: str, **settings: Any) -> Any:
        model = AlbertForPretraining(self.config, self.compute)

        def call(params: Any, *inputs: Any, **others: Any) -> Any:
            params = functions.turned(params) if self._on_cpu else params
            return function(model, params, *inputs, **others, **settings)

        return jax.jit(call, static_argnames=static)

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises UserError for a model that came without a vocabulary."""
        if self._tokenizer is None:
            raise UserError("this model has no vocabulary, so it takes ids and no text")
        return self._tokenizer

    @cached_property
    def _on_device(self) -> Any:
        params = {name: x for name, x in self.params.items() if name != "head"}
        return jax.device_put(functions.turned(params) if self._on_cpu else params)

    # ----------------------------------------------------------------------------------------- ids

    def forward(
        self,
        input_ids: Any,
        input_mask: Any = None,
        segment_ids: Any = None,
        masked_lm_positions: Any = None,
    ) -> ForwardOutput:
        """Everything the model computes for ids [B, S], in float32.

        The mask defaults to ones and the segments to zeros, both [B, S]; the masked-LM logits are
        those of `masked_lm_positions` [B, P], or of every position. Compiles for each new shape.
        Raises UserError for ids outside the vocabulary and positions outside the rows.
        """
        ids_BS = np.asarray(input_ids, np.int32)
        if ids_BS.ndim != 2:
            raise UserError(f"input_ids has shape {ids_BS.shape}; give [batch, sequence]")
        if ids_BS.shape[1] > self.config.max_position_embeddings:
            raise UserError(self._too_long(ids_BS.shape[1]))
        if not _all_below(ids_BS, self.config.vocab_size):
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
        if positions_BP is not None and not _all_below(positions_BP, ids_BS.shape[1]):
            raise UserError(
                f"masked_lm_positions go from {positions_BP.min()} to {positions_BP.max()}; "
                f"rows of {ids_BS.shape[1]} ids have 0 to {ids_BS.shape[1] - 1}"
            )
        output = self._forward(self._on_device, ids_BS, mask_BS, segments_BS, positions_BP)
        encoder = output.encoder
        found = (
            encoder.embeddings_BSE,
            encoder.layers_LBSH,
            encoder.sequence_BSH,
            encoder.pooled_BH,
            output.masked_lm_logits_BPV,
            output.sentence_order_logits_BC,
        )
        return ForwardOutput(*(None if x is None else np.asarray(x, np.float32) for x in found))

    # ---------------------------------------------------------------------------------------- text

    def fill_mask(
        self,
        text: str | Sequence[str],
        *,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
        truncate: bool = False,
    ) -> list[Any]:
        """The likeliest pieces for the [MASK] in a text: [{"score", "token", "token_str",
        "sequence"}, …], best first.

        As transformers' pipeline: a text with several [MASK]s gives a list for each, a list of
        texts a list for each; of `targets`, words of one piece each, only these are answered, with
        their probabilities among all. `truncate` cuts a text too long for the model at its end.
        Raises UserError for a text without [MASK] or one too long.
        """
        self._need("predictions", "masked words")
        if not 1 <= top_k <= self.config.vocab_size:
            raise UserError(f"top_k {top_k} must be between 1 and {self.config.vocab_size}")
        texts = [text] if isinstance(text, str) else list(text)
        rows = []
        for one, encoding in zip(
            texts, self.tokenizer.encode_batch(texts, parse_special=True), strict=True
        ):
            row = self._row(one, encoding.ids, truncate=truncate)
            row = row._replace(masked=[i for i, id in enumerate(row.ids) if id == MASK_ID])
            if not row.masked:
                cut = " left in what was not cut off" if MASK_ID in encoding.ids else ""
                raise UserError(
                    f"{reprlib.repr(one)} has no [MASK]{cut}; "
                    "write [MASK] where a word is to be filled in"
                )
            rows.append(row)
        targets_T = None if targets is None else self._target_ids(targets)
        choices = self.config.vocab_size if targets_T is None else len(targets_T)
        # Rounded up, so that not every top_k is another program.
        asked = min(max(8, 1 << (top_k - 1).bit_length()), choices)
        answers: list[Any] = [None] * len(rows)
        call = partial(self._fill_mask, targets_T=targets_T, top_k=asked)
        for batch, (scores_BPK, tokens_BPK) in self._run(call, rows):
            for at, index in enumerate(batch.rows):
                answers[index] = self._answers(
                    rows[index], scores_BPK[at, :, :top_k], tokens_BPK[at, :, :top_k]
                )
        return answers[0] if isinstance(text, str) else answers

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        layer: int = -1,
        pool: functions.Pool | None = None,
        parse_special: bool = False,
        truncate: bool = False,
    ) -> Encoded:
        """Vectors of texts, in their order.

        `layer` counts as transformers' hidden_states: 0 is what the first block takes, n what
        block n gives, -1 the last. Without `pool`: `.sequence` [B, S, H] with zeros after each
        text's end, S the longest text's tokens, and `.pooled` [B, H] the model's pooler on its last
        layer (None for a model without one). With it `.sequence` is None, so that many texts fit,
        and `.pooled` is that layer's [CLS] vector ("cls") or the mean over its tokens, [CLS] and
        [SEP] included ("mean"). With `parse_special`, [MASK], [CLS] and [SEP] in a text are the
        special tokens. Raises UserError for a text too long, unless `truncate` cuts it.
        """
        blocks = self.config.num_hidden_layers * self.config.inner_group_num
        if not -blocks - 1 <= layer <= blocks:
            raise UserError(f"layer {layer} must be between {-blocks - 1} and {blocks}")
        if pool not in (None, "cls", "mean"):
            raise UserError(f"pool {pool!r} is unknown; use cls, mean or None")
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [
            self._row(text, ids, truncate=truncate)
            for text, ids in zip(texts, self._ids(texts, parse_special), strict=True)
        ]
        longest = max((len(row.ids) for row in rows), default=0)
        mask_BS = np.zeros((len(rows), longest), np.int32)
        for at, row in enumerate(rows):
            mask_BS[at, : len(row.ids)] = 1
        hidden = self.config.hidden_size
        sequence = None if pool else np.zeros((len(rows), longest, hidden), np.float32)
        has_pooled = pool is not None or "pooler" in self.params
        pooled = np.zeros((len(rows), hidden), np.float32) if has_pooled else None
        call = partial(self._encode, layer=layer % (blocks + 1), pool=pool)
        for batch, (sequence_BSH, pooled_BH) in self._run(call, rows):
            if sequence is not None:
                width = min(batch.length, longest)
                sequence[batch.rows, :width] = sequence_BSH[:, :width]
            if pooled is not None:
                pooled[batch.rows] = pooled_BH
        return Encoded(sequence, pooled, mask_BS)

    def score_order(
        self, a: str | Sequence[str], b: str | Sequence[str], *, truncate: bool = False
    ) -> float | np.ndarray:
        """The probability that `a` stands before `b` and not the other way round.

        A float for two texts; f32[B] for two lists of texts, pair by pair. Raises UserError for a
        pair too long for the model, unless `truncate` cuts the longer text of it, token by token.
        """
        self._need("pooler", "a pooler")
        self._need("seq_relationship", "sentence order")
        if isinstance(a, str) != isinstance(b, str):
            raise UserError("score_order takes two texts, or two lists of texts")
        firsts, seconds = ([x] if isinstance(x, str) else list(x) for x in (a, b))
        if len(firsts) != len(seconds):
            raise UserError(
                f"score_order has {len(firsts)} first texts and {len(seconds)} second ones; "
                "give as many of each"
            )
        rows = [
            self._row(first, ids, second, truncate=truncate)
            for first, ids, second in zip(
                firsts, self._ids(firsts), self._ids(seconds), strict=True
            )
        ]
        scores = np.zeros(len(rows), np.float32)
        for batch, scores_B in self._run(self._sentence_order, rows):
            scores[batch.rows] = scores_B
        return float(scores[0]) if isinstance(a, str) else scores

    def attention(self, text: str) -> tuple[list[str], np.ndarray]:
        """A text's pieces with [CLS] and [SEP], and where each looks in every block and head.

        f32[L, N, S, S]: of [l, n, i] the entries sum to 1 and entry j is the share of piece j in
        what piece i takes. [MASK] in the text is the special token. Raises UserError for a text too
        long.
        """
        row = self._row(text, self.tokenizer.encode(text, parse_special=True).ids, truncate=False)
        padded = arrays([row], padded_length(len(row.ids), self.config.max_position_embeddings))
        probs_LBNSS = np.asarray(self._attention(self._on_device, *padded[:3]))
        size = len(row.ids)
        return [self.tokenizer.pieces[i] for i in row.ids], probs_LBNSS[:, 0, :, :size, :size]

    # -------------------------------------------------------------------------------------- details

    def _need(self, part: str, what: str) -> None:
        if part not in self.params:
            raise UserError(
                f"this model came without {what} (no {part} among its weights); "
                "convert it from a source that has them"
            )

    def _ids(self, texts: list[str], parse_special: bool = False) -> list[list[int]]:
        if self.tokenizer.mode == "google" and not parse_special:
            return self.tokenizer.encode_ids(texts, threads=-1)  # faster, without offsets
        special = parse_special or None  # None: as the mode's original does
        encodings = self.tokenizer.encode_batch(texts, parse_special=special)
        return [encoding.ids for encoding in encodings]

    def _row(
        self, text: str, ids: list[int], second: list[int] | None = None, *, truncate: bool
    ) -> Row:
        length = len(ids) + 2 + (0 if second is None else len(second) + 1)
        if length > self.config.max_position_embeddings and not truncate:
            raise UserError(f"{reprlib.repr(text)}: {self._too_long(length)}, or truncate it")
        return make_row(ids, second, longest=self.config.max_position_embeddings)

    def _too_long(self, length: int) -> str:
        return (
            f"{length} tokens are more than the model's {self.config.max_position_embeddings}; "
            "shorten or split the text"
        )

    def _target_ids(self, targets: Sequence[str]) -> np.ndarray:
        targets = [targets] if isinstance(targets, str) else targets
        found = [(word, self.tokenizer.encode(word).ids) for word in targets]
        if wrong := [f"{word!r} is {len(ids)}" for word, ids in found if len(ids) != 1]:
            raise UserError(f"each target must be one piece; {', '.join(wrong)}")
        if not found:
            raise UserError("targets is empty; give words, or None for the whole vocabulary")
        return np.array(list(dict.fromkeys(ids[0] for _, ids in found)), np.int32)

    def _run(self, call: Callable[..., Any], rows: list[Row]) -> Iterator[tuple[Batch, Any]]:
        """Yields each batch with what `call` gave for it, in NumPy."""
        batches = plan(
            [len(row.ids) for row in rows],
            longest=self.config.max_position_embeddings,
            tokens=batch_tokens(),
        )

        def start(batch: Batch) -> Any:
            return call(self._on_device, *arrays([rows[i] for i in batch.rows], batch.length))

        quiet = True if len(rows) < MANY else None  # None: not a terminal
        with tqdm(total=len(rows), unit="text", disable=quiet) as bar:
            for batch, output in one_ahead((batch, start(batch)) for batch in batches):
                yield batch, output
                bar.update(len(batch.rows))

    def _answers(self, row: Row, scores_PK: np.ndarray, tokens_PK: np.ndarray) -> list[Any]:
        """transformers' form of the answers for one text."""
        several = len(row.masked) > 1
        answers = []
        for position, scores_K, tokens_K in zip(row.masked, scores_PK, tokens_PK, strict=False):
            answers.append(
                [
                    {
                        "score": score,
                        "token": token,
                        "token_str": self.tokenizer.decode([token]),
                        # Without specials, except where the other [MASK]s are among them.
                        "sequence": self.tokenizer.decode(
                            [*row.ids[:position], token, *row.ids[position + 1 :]],
                            skip_special_tokens=not several,
                        ),
                    }
                    for score, token in zip(scores_K.tolist(), tokens_K.tolist(), strict=True)
                ]
            )
        return answers if several else answers[0]

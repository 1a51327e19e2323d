# SPDX-License-Identifier: Apache-2.0
"""Answer with a trained ALBERT.

`load` reads a model directory. `fill_mask`, `encode`, `score_order`, `attention` and `forward` need
a pretrained model, `predict` needs a fine-tuned one. Texts of similar lengths run together in
batches (`batching`), so that few programs are compiled. Answers keep the order of the texts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Integral
from pathlib import Path
from typing import Any, cast, overload

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from tqdm import tqdm

from albert_jax.checkpoint.model_dir import ModelDirectory, ModelTokenizer, load_model
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.heads import Long
from albert_jax.config.manifests import HeadManifest
from albert_jax.config.model import AlbertConfig, ComputeConfig, Dtype, Engine
from albert_jax.data.bucketing import Batch, Row, arrays, make_row, padded_length, plan_batches
from albert_jax.data.special_pieces import ALBERT_IDS
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference import functions
from albert_jax.inference.answers import Answer
from albert_jax.inference.batching import batch_tokens, most_padding, one_ahead
from albert_jax.inference.finetuned import AnswerSettings, FineTuned, fine_tuned_of
from albert_jax.inference.id_arrays import model_inputs
from albert_jax.inference.onnx_engine import OnnxAnswers, compute_of
from albert_jax.inference.onnx_graphs import Weights
from albert_jax.inference.predict import Texts, answers_to
from albert_jax.models.lowering import matmul_dtype
from albert_jax.tasks.long_texts import check_stride, window_parts
from albert_jax.utils.arguments import checked, shown, texts_of, whole_number
from albert_jax.utils.errors import UserError
from albert_jax.utils.numbers import rounded
from albert_jax.utils.results import Rows
from albert_jax.utils.text_files import FileTexts
from albert_jax.utils.wording import first_ten, is_in_python, setting

_MOST_UNROLLED = 24  # layers: each lengthens compiling
_MOST_PASSES = 1000  # that `depth` sets: the paper's deepest trial has 48
MANY = 100  # texts; from this number on, a terminal shows a progress bar


def _float32(x: Any) -> Any:
    return None if x is None else np.asarray(x, np.float32)


@dataclass(frozen=True)
class ForwardOutput:
    """Hold a model's outputs as float32 NumPy arrays.

    Shapes: B sequences, S tokens in each, P masked positions, V rows of the word embeddings, E
    `embedding_size`, H `hidden_size`, L blocks of attention and feed-forward.

    Attributes:
        embeddings: [B, S, E], word, segment and position embeddings after LayerNorm.
        layers: [L, B, S, H], the output of each block.
        sequence: [B, S, H], the output of the last block.
        pooled: [B, H], None if the model has no pooler.
        masked_lm_logits: [B, P, V], None if the model has no masked-LM head.
        sentence_order_logits: [B, 2], None if the model has no sentence-order head; entry 0 means
            that the segments are in their order.
    """

    embeddings: np.ndarray  # [B, S, E]
    layers: np.ndarray  # [L, B, S, H]
    sequence: np.ndarray  # [B, S, H]
    pooled: np.ndarray | None  # [B, H]
    masked_lm_logits: np.ndarray | None  # [B, P, V]
    sentence_order_logits: np.ndarray | None  # [B, 2]; 0 is the right order


@dataclass(frozen=True)
class Encoded:
    """Hold the vectors of B texts, as `Albert.encode` returns them.

    Attributes:
        sequence: f32[B, S, H], a vector for each token, zeros at padding; None if `encode` pooled
            them.
        pooled: f32[B, H], a vector for each text; None if the model has no pooler and `encode` did
            not pool.
        mask: i32[B, S], 1 for tokens, [CLS] and [SEP] included, 0 for padding.
    """

    sequence: np.ndarray | None  # [B, S, H]
    pooled: np.ndarray | None  # [B, H]
    mask: np.ndarray  # i32[B, S], 1 for tokens, [CLS] and [SEP] included


@checked
def load(
    directory: str | Path,
    *,
    compute: ComputeConfig | None = None,
    depth: int | None = None,
    base: str | Path | None = None,
    engine: Engine = "jax",
) -> Albert:
    """Load a model, ready to answer.

    Each process compiles its programs anew, unless JAX keeps them on disk: set
    JAX_COMPILATION_CACHE_DIR, or call
    `albert_jax.distributed.compilation_cache.set_compilation_cache`.

    Args:
        directory: a model directory, a transformers folder, or a model's name: mini, a released
            model such as "base-v2", or "OWNER/NAME" or "OWNER/NAME@REVISION" of the Hugging Face
            hub. Anything but a model directory is fetched and converted once, into the user's
            cache. An adapter of `albert-jax finetune --lora` is merged with its base.
        compute: how this machine computes; unset, in float32.
        depth: how often the shared layer runs; unset, as often as the configuration says.
        base: the model that an adapter was trained on; unset, where it was.
        engine: what computes answers to texts: "jax", or "onnx" for ONNX Runtime on this machine's
            CPU in float32, which answers one text at a time sooner (docs/benchmarks.md). It needs
            `pip install 'albert-jax[onnx]'`.

    Returns:
        The model with its tokenizer.

    Raises:
        UserError: if there is no such model, it is damaged or it cannot be fetched, or the engine
            is not installed.

    Examples:
        >>> import albert_jax
        >>> albert_jax.load("mini")
        <Albert from mini: 3,071,042 parameters, 4 layers of 384, 8,000 pieces, heads ...>
    """
    compute_of(engine, compute)  # raises before anything is fetched
    folder = require_model_directory(directory, "directory", base=base)
    model = load_model(folder, as_float32=True)
    tokenizer = None
    if model.tokenizer["path"] is not None:
        tokenizer = Tokenizer.load(model.tokenizer["path"], **model.text_settings)
    config = model.config if depth is None else _with_depth(model.config, depth)
    albert = Albert(
        config,
        model.params,
        tokenizer,
        compute=compute,
        head=model.head,
        source=str(directory),
        engine=engine,
    )
    albert._provenance = model.manifest["provenance"]
    return albert


def _with_depth(config: AlbertConfig, depth: int) -> AlbertConfig:
    if isinstance(depth, Integral) and not 1 <= depth <= _MOST_PASSES:
        raise UserError(
            f"{setting('depth')} {depth} must be 1 to {_MOST_PASSES:,}: it is how often the shared "
            f"layer runs for each text, {config.num_hidden_layers} times if it is left out"
        )
    depth = whole_number(depth, "depth", 1, _MOST_PASSES)
    if config.num_hidden_groups != 1:
        raise UserError(
            f"{setting('depth')} {depth} needs a model with one shared layer; this one has "
            f"{config.num_hidden_groups} groups of layers"
        )
    return dataclasses.replace(config, num_hidden_layers=depth)


class Albert:
    """Answer with a model's parameters, configuration and tokenizer.

    `albert_jax.load` makes one from a directory or a name. It can be pickled, for a pool of
    processes; each copy compiles its own programs.

    Args:
        config: the architecture.
        params: the parameters by part: "embeddings", "encoder" and, where the model has them,
            "pooler", "predictions", "seq_relationship" and "head".
        tokenizer: the vocabulary; None for a model that takes ids only.
        compute: how this machine computes; unset, in float32.
        head: {"kind", "labels"} of a fine-tuned model.
        source: the path or name that error messages and `repr` show.
        engine: what computes `fill_mask`, `score_order`, `predict` and, of the last layer,
            `encode`, as in `load`. JAX computes the rest.

    Raises:
        UserError: if the vocabulary has more pieces than the model has rows of word embeddings, the
            embeddings or the encoder are missing, or `head` describes none.

    Attributes:
        config: the architecture, an `AlbertConfig`.
        params: the parameters by part.
        head: {"kind", "labels"} of a fine-tuned model, else None.
        source: where the model was loaded from, or None.
        engine: what computes answers to texts, "jax" or "onnx".
        compute: how this machine computes, with what was unset filled in.
        pieces: the number of pieces in the vocabulary; ids are below it.
    """

    @checked
    def __init__(
        self,
        config: AlbertConfig,
        params: Mapping[str, Any],
        tokenizer: Tokenizer | None,
        *,
        compute: ComputeConfig | None = None,
        head: Mapping[str, Any] | None = None,
        source: str | None = None,
        engine: Engine = "jax",
    ) -> None:
        own_compute = compute_of(engine, compute)
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"the vocabulary {tokenizer.path} has {tokenizer.vocab_size} pieces and the "
                f"model {config.vocab_size}; "
                "give the vocabulary the model was trained with"
            )
        if lacking := {"embeddings", "encoder"} - params.keys():
            raise UserError(f"params has no {' and no '.join(sorted(lacking))}; give a whole model")
        _check_head(head)
        self.config, self.params, self._tokenizer, self.head = config, params, tokenizer, head
        self.source, self.engine = source, engine
        self._special = ALBERT_IDS if tokenizer is None else tokenizer.special
        self._asked_compute = compute
        self._provenance: Mapping[str, Any] = {}  # of the model directory
        self._answering: tuple[tuple[str | None, AnswerSettings], FineTuned] | None = None
        is_cpu = jax.default_backend() == "cpu"
        unroll = min(config.num_hidden_layers, _MOST_UNROLLED) if is_cpu else 1
        self.compute = dataclasses.replace(
            own_compute,
            dtype=cast(Dtype, matmul_dtype(own_compute.dtype, jax.default_backend())),
            scan_unroll=own_compute.scan_unroll or unroll,
        )
        lowering = functions.lowering_here()
        self._network = functions.network(config, self.compute, params, lowering)
        self._forward = self._jit(functions.forward, collect_layers=True)
        # Rows of the embeddings that have a piece, and so can be answered: the first ones.
        self.pieces = config.vocab_size if tokenizer is None else tokenizer.vocab_size
        self._fill_mask = self._jit(functions.fill_mask, "top_k", pieces=self.pieces)
        self._encode = self._jit(functions.encode, "layer", "pool")
        self._sentence_order = self._jit(functions.sentence_order)
        self._attention = self._jit(functions.attention)
        self._onnx = None
        if engine == "onnx":
            self._onnx = OnnxAnswers(Weights(config, params, self.pieces))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes a copy, because compiled programs cannot be pickled."""
        settings = {
            "config": self.config,
            "params": jax.tree.map(np.asarray, dict(self.params)),
            "tokenizer": self._tokenizer,
            "compute": self._asked_compute,
            "head": self.head,
            "source": self.source,
            "engine": self.engine,
        }
        return _unpickled, (settings, self._provenance)

    def __repr__(self) -> str:
        c = self.config
        count = sum(x.size for x in jax.tree.leaves(self.params))
        parts = [
            f"{count:,} parameters",
            f"{c.num_hidden_layers} layers of {c.hidden_size}",
            f"{self.pieces:,} pieces",
            self._heads_in_words(),
            self.compute.dtype if self.engine == "jax" else f"{self.compute.dtype} by ONNX Runtime",
        ]
        if self._tokenizer is None:
            parts.append("no vocabulary")
        where = f" from {self.source}" if self.source else ""
        return f"<Albert{where}: {', '.join(parts)}>"

    def _heads_in_words(self) -> str:
        if self.head is not None:
            task = f" ({self.head['task']})" if self.head.get("task") else ""
            return f"head {self.head['kind']}{task}"
        heads = [name for name in ("predictions", "seq_relationship") if name in self.params]
        return f"heads {' and '.join(heads)}" if heads else "no head"

    def _jit(self, function: Callable[..., Any], *static: str, **settings: Any) -> Any:
        def call(params: Any, *inputs: Any, **others: Any) -> Any:
            return function(self._network, params, functions.Inputs(*inputs), **others, **settings)

        return jax.jit(call, static_argnames=static)

    @property
    def vocabulary(self) -> Tokenizer | None:
        """The tokenizer, or None for a model without a vocabulary."""
        return self._tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; raises UserError for a model without a vocabulary."""
        if self._tokenizer is None:
            raise UserError("this model has no vocabulary, so it takes ids and no text")
        return self._tokenizer

    @cached_property
    def _on_device(self) -> Any:
        params = {name: x for name, x in self.params.items() if name != "head"}
        return functions.placed(params, self._network)

    # ----------------------------------------------------------------------------------------- ids

    def forward(
        self,
        input_ids: Any,
        input_mask: Any = None,
        segment_ids: Any = None,
        masked_lm_positions: Any = None,
    ) -> ForwardOutput:
        """Run the model on token ids and return all of its outputs, in float32.

        The call compiles a program for each new shape.

        Args:
            input_ids: whole numbers [B, S], below the configuration's `vocab_size`.
            input_mask: [B, S], 1 or True for tokens, 0 or False for padding; unset, all ones.
            segment_ids: [B, S], the segment of each token; unset, all zeros.
            masked_lm_positions: [B, P], the positions whose masked-LM logits are returned; unset,
                all S positions.

        Returns:
            The outputs, with `layers` [L, B, S, H] of every block.

        Raises:
            UserError: if a value is out of range, or an output is not finite.

        Examples:
            >>> import albert_jax
            >>> albert = albert_jax.load("mini")
            >>> output = albert.forward([[2, 14, 2723, 9, 3]])
            >>> output.sequence.shape, output.masked_lm_logits.shape
            ((1, 5, 384), (1, 5, 8000))
        """
        output = self.outputs(input_ids, input_mask, segment_ids, masked_lm_positions)
        for name, array in vars(output).items():
            # The layers' axis comes first.
            rows = None if array is None else array.swapaxes(0, 1) if name == "layers" else array
            if rows is not None and (row := _first_not_finite([rows])) is not None:
                raise UserError(self._not_finite(f"{name} of row {row} of input_ids"))
        return output

    def outputs(
        self,
        input_ids: Any,
        input_mask: Any = None,
        segment_ids: Any = None,
        masked_lm_positions: Any = None,
    ) -> ForwardOutput:
        """Run the model as `forward` does, without the check that outputs are finite.

        Args:
            input_ids: as `forward`.
            input_mask: as `forward`.
            segment_ids: as `forward`.
            masked_lm_positions: as `forward`.

        Returns:
            The outputs, which may hold NaN and infinities.

        Raises:
            UserError: if a value is out of range.
        """
        inputs = (input_ids, input_mask, segment_ids, masked_lm_positions)
        output = self._forward(self._on_device, *model_inputs(self.config, *inputs))
        encoder = output.encoder
        found = (
            encoder.embeddings_BSE,
            encoder.layers_LBSH,
            encoder.sequence_BSH,
            encoder.pooled_BH,
            output.masked_lm_logits_BPV,
            output.sentence_order_logits_BC,
        )
        return ForwardOutput(*map(_float32, found))

    # ---------------------------------------------------------------------------------------- text

    @checked
    def fill_mask(
        self,
        text: str | Iterable[str],
        *,
        top_k: int = 5,
        targets: str | Iterable[str] | None = None,
        truncate: bool = False,
    ) -> list[Any]:
        """Return the most probable pieces for each [MASK] in a text.

        Args:
            text: a text with [MASK] in it, or several such texts.
            top_k: pieces to return for each [MASK].
            targets: words of one piece each. Only these are returned, with their probabilities
                among all pieces.
            truncate: cut the end of a text that is too long for the model, instead of an error. A
                [MASK] in it stays an error.

        Returns:
            Dicts as of transformers' fill-mask pipeline, the most probable first: "score" (a
            probability), "token" (an id), "token_str" and "sequence" (the text with the piece in
            place). For a text with several [MASK]s, one such list for each. For several texts, a
            list with the result of each.

        Raises:
            UserError: if a text has no [MASK], a text is too long, a [MASK] is cut off, a target is
                not one piece, or a probability is not finite.

        Examples:
            >>> import albert_jax
            >>> albert = albert_jax.load("mini")
            >>> text = "The war between France and [MASK] began in 1870."
            >>> albert.fill_mask(text, top_k=1)[0]["token_str"]
            'france'
        """
        self._need("predictions", "masked words")
        top_k = whole_number(top_k, "top_k", 1, self.pieces)
        texts = texts_of(text, "text")
        name_of = _namer(text, "text", texts)
        encodings = self.tokenizer.encode_batch(texts, parse_special=True)
        rows = self._rows([encoding.ids for encoding in encodings], None, truncate, name_of)
        rows = [row._replace(masked=self._masked(row)) for row in rows]
        for index, (row, encoding) in enumerate(zip(rows, encodings, strict=True)):
            if not row.masked:
                cut = " left in what was not cut off" if self._special.mask in encoding.ids else ""
                raise UserError(
                    f"{name_of(index)} has no [MASK]{cut}; "
                    "write [MASK] where a word is to be filled in"
                )
            if lost := encoding.ids.count(self._special.mask) - len(row.masked):
                raise UserError(
                    f"{name_of(index)} has {lost} of its {lost + len(row.masked)} [MASK]s in what "
                    "is cut off; shorten the text before them, or leave them out"
                )
        targets_T = None if targets is None else self._target_ids(targets)
        choices = self.pieces if targets_T is None else len(targets_T)
        # Rounded up, so that not every top_k is another program.
        asked = min(max(8, 1 << (top_k - 1).bit_length()), choices)
        answers: list[Any] = [None] * len(rows)
        call = self._call("fill_mask", targets_T=targets_T, top_k=asked)
        for batch, (scores_BPK, tokens_BPK) in self._run(call, rows, name_of):
            for at, index in enumerate(batch.rows):
                answers[index] = self._answers(
                    rows[index], scores_BPK[at, :, :top_k], tokens_BPK[at, :, :top_k]
                )
        return answers[0] if isinstance(text, str) else answers

    @checked
    def encode(
        self,
        texts: str | Iterable[str],
        *,
        layer: int = -1,
        pool: functions.Pool | None = None,
        parse_special: bool | None = None,
        truncate: bool = False,
        long: Long | None = None,
        stride: int | None = None,
    ) -> Encoded:
        """Return vectors of texts, in the order of the texts.

        Args:
            texts: a text, or several.
            layer: the block whose output is taken, counted as in transformers' hidden_states: 0 is
                the input of the first block, n the output of block n, -1 that of the last.
            pool: how the vectors of a text's tokens become one: "cls" takes the vector of [CLS],
                "mean" the mean over all tokens, [CLS] and [SEP] included. Unset, the vectors of all
                tokens are returned.
            parse_special: read a literal [MASK], [CLS] or [SEP] in a text as that token. Unset, as
                `Tokenizer.encode` does: never in the mode google, always in the others.
            truncate: the same as `long="cut"`.
            long: what to do with a text that is too long for the model: "refuse" (the default) is
                an error, "cut" leaves out the end, "windows" reads the text in overlapping windows
                and needs `pool`. The vector of a text in windows is the mean of the windows'
                vectors, weighted by their number of tokens.
            stride: tokens from the start of one window to the start of the next; unset, half a
                window.

        Returns:
            Without `pool`, `.sequence` f32[B, S, H] with S the number of tokens of the longest
            text, and `.pooled` f32[B, H] the pooler's output on the last layer (None if the model
            has no pooler). With `pool`, `.sequence` is None, which saves memory, and `.pooled`
            f32[B, H] has the vectors of the texts.

        Raises:
            UserError: if a text is too long and `long` is "refuse", or a vector is not finite.

        Examples:
            >>> import albert_jax
            >>> albert = albert_jax.load("mini")
            >>> albert.encode(["A first text.", "A second, longer one."], pool="mean").pooled.shape
            (2, 384)
        """
        long = _long_of(long, truncate)
        blocks = self.config.num_hidden_layers * self.config.inner_group_num
        layer = whole_number(layer, "layer", -blocks - 1, blocks)
        given, texts = texts, texts_of(texts, "texts")
        name_of = _namer(given, "texts", texts)
        ids = self.tokenizer.encode_ids(texts, parse_special=parse_special, threads=-1)
        if long == "windows":
            return self._encode_windows(ids, layer % (blocks + 1), pool, stride, name_of)
        if stride is not None:
            raise UserError(
                f"{setting('stride')} {stride!r} is for {setting('long', 'windows')}; leave it out"
            )
        windows = f"read it all with {setting('long', 'windows')} and {setting('pool', 'mean')}"
        rows = self._rows(ids, None, long == "cut", name_of, or_else=windows)
        longest = max((len(row.ids) for row in rows), default=0)
        mask_BS = np.zeros((len(rows), longest), np.int32)
        for at, row in enumerate(rows):
            mask_BS[at, : len(row.ids)] = 1
        hidden = self.config.hidden_size
        sequence = None if pool else _zeros((len(rows), longest, hidden))
        has_pooled = pool is not None or "pooler" in self.params
        pooled = np.zeros((len(rows), hidden), np.float32) if has_pooled else None
        outputs = self._encode_rows(rows, layer % (blocks + 1), pool, name_of)
        for batch, (sequence_BSH, pooled_BH) in outputs:
            if sequence is not None:
                width = min(sequence_BSH.shape[1], longest)
                sequence[batch.rows, :width] = sequence_BSH[:, :width]
            if pooled is not None:
                pooled[batch.rows] = pooled_BH
        return Encoded(sequence, pooled, mask_BS)

    def _encode_windows(
        self,
        texts: Sequence[list[int]],
        layer: int,
        pool: functions.Pool | None,
        stride: int | None,
        name_of: Callable[[int], str],
    ) -> Encoded:
        """Return the mean vectors of texts' windows, with a mask as wide as the longest text."""
        if pool is None:
            raise UserError(
                f"{setting('long', 'windows')} gives one vector for a text, the mean of its "
                f"windows; give {setting('pool', 'mean')} or {setting('pool', 'cls')}"
            )
        longest = self.config.max_position_embeddings
        if stride is not None:
            if isinstance(stride, Integral):
                check_stride(int(stride), longest)
            stride = whole_number(stride, "stride", 1, longest - 2)
        parts = [window_parts(ids, longest - 2, stride) for ids in texts]
        owners = [index for index, own in enumerate(parts) for _ in own]
        special = self._special
        rows = [
            make_row(list(part), longest=longest, special=special) for own in parts for part in own
        ]
        # Of texts that are empty too: their one window has the special tokens alone.
        weights = np.array([max(len(part), 1) for own in parts for part in own], np.float64)
        vectors = np.zeros((len(texts), self.config.hidden_size), np.float64)
        outputs = self._encode_rows(rows, layer, pool, lambda row: name_of(owners[row]))
        for batch, (_, pooled_BH) in outputs:
            weighted_BH = pooled_BH * weights[batch.rows, None]
            np.add.at(vectors, [owners[row] for row in batch.rows], weighted_BH)
        totals = np.bincount(owners, weights, minlength=len(texts))
        lengths_B = np.array([len(ids) + 2 for ids in texts], int)
        mask_BS = np.arange(max(lengths_B, default=0)) < lengths_B[:, None]
        pooled = (vectors / totals[:, None]).astype(np.float32)
        return Encoded(None, pooled, mask_BS.astype(np.int32))

    @checked
    def score_order(
        self, a: str | Iterable[str], b: str | Iterable[str], *, truncate: bool = False
    ) -> float | np.ndarray:
        """Return the probability that text `a` comes before text `b`.

        Args:
            a: a text, or several.
            b: a text, or as many as `a` has.
            truncate: cut a pair that is too long for the model, one token after another from the
                end of its longer text, instead of an error.

        Returns:
            A float for two texts, f32[B] for two lists of B texts.

        Raises:
            UserError: if a pair is too long, the lists differ in length, the model has no
                sentence-order head, or a probability is not finite.

        Examples:
            >>> import albert_jax
            >>> albert = albert_jax.load("mini")
            >>> albert.score_order(["It began in 1870."], ["It ended in 1871."]).shape
            (1,)
        """
        self._need("pooler", "a pooler")
        self._need("seq_relationship", "sentence order")
        if isinstance(a, str) != isinstance(b, str):
            raise UserError(
                "score_order takes two texts, or two lists of texts, and one of each was given"
            )
        firsts, seconds = texts_of(a, "a"), texts_of(b, "b")
        if len(firsts) != len(seconds):
            raise UserError(
                f"score_order has {len(firsts)} first texts and {len(seconds)} second ones; "
                "give as many of each"
            )
        name_of = _namer(a, "a", firsts)
        ids = self.tokenizer.encode_ids([*firsts, *seconds], parse_special=None, threads=-1)
        rows = self._rows(ids[: len(firsts)], ids[len(firsts) :], truncate, name_of)
        scores = np.zeros(len(rows), np.float32)
        for batch, (scores_B,) in self._run(self._call("sentence_order"), rows, name_of):
            scores[batch.rows] = scores_B
        return float(scores[0]) if isinstance(a, str) else scores

    @checked
    def attention(self, text: str) -> tuple[list[str], np.ndarray]:
        """Return a text's pieces and their attention probabilities.

        Args:
            text: a text; [MASK] in it is the special token.

        Returns:
            The S pieces, [CLS] and [SEP] included, and f32[L, N, S, S] with an entry for each block
            and head. The entries of [l, n, i] sum to 1; entry j is the weight of piece j for piece
            i.

        Raises:
            UserError: if the text is too long for the model, or a probability is not finite.

        Examples:
            >>> import albert_jax
            >>> albert = albert_jax.load("mini")
            >>> pieces, probabilities = albert.attention("A text.")
            >>> pieces, probabilities.shape
            (['[CLS]', '▁a', '▁text', '.', '[SEP]'], (4, 6, 5, 5))
        """
        ids = self.tokenizer.encode(text, parse_special=True).ids
        [row] = self._rows([ids], None, None, lambda index: shown(text))
        padded = arrays([row], padded_length(len(row.ids), self.config.max_position_embeddings))
        probs_LBNSS = np.asarray(self._attention(self._on_device, *padded[:3]))
        size = len(row.ids)
        probs_LNSS = probs_LBNSS[:, 0, :, :size, :size]
        if not np.isfinite(probs_LNSS).all():
            raise UserError(self._not_finite(shown(text)))
        return [self.tokenizer.pieces[i] for i in row.ids], probs_LNSS

    # --------------------------------------------------------------------- with a fine-tuned head

    @overload
    def predict(  # type: ignore[overload-overlap]  # a string is a list of strings, too
        self,
        inputs: str | tuple[Any, ...] | Mapping[str, Any],
        *,
        task: str | None = None,
        max_seq_length: int | None = None,
        doc_stride: int | None = None,
        pack: int = 0,
        long: Long | None = None,
        stride: int | None = None,
        exit: str | None = None,
    ) -> Answer: ...

    @overload
    def predict(
        self,
        inputs: Iterable[Texts],
        *,
        task: str | None = None,
        max_seq_length: int | None = None,
        doc_stride: int | None = None,
        pack: int = 0,
        long: Long | None = None,
        stride: int | None = None,
        exit: str | None = None,
    ) -> Rows[Answer]: ...

    @checked
    def predict(
        self,
        inputs: Texts | Iterable[Texts],
        *,
        task: str | None = None,
        max_seq_length: int | None = None,
        doc_stride: int | None = None,
        pack: int = 0,
        long: Long | None = None,
        stride: int | None = None,
        exit: str | None = None,
    ) -> Answer | Rows[Answer]:
        """Answer inputs with the fine-tuned head, as `albert-jax predict` does.

        Args:
            inputs: one input, or several. A string, a tuple or a mapping is one input; a list or
                another iterable is several. A string is a text. A tuple has the task's texts in
                their order (premise and hypothesis, question and context). A mapping has them by
                name. For token classification, a string is split at white space, and a list within
                a list has words.
            task: the task to answer; unset, the one that the model was fine-tuned for.
            max_seq_length: tokens in a row; unset, as in fine-tuning.
            doc_stride: tokens from the start of one SQuAD window to the next; unset, as in
                fine-tuning.
            pack: tokens of a row that short inputs share; 0 gives each input its own row. The
                answers are the same.
            long: what to do with a text longer than a row: "cut" leaves out its end, "refuse" is an
                error, "windows" takes the mean of its windows' logits; unset, as in fine-tuning.
            stride: tokens from the start of one of these windows to the next; unset, as in
                fine-tuning, or half a window if `long` is given.
            exit: "patience=N" or "confidence=P", as `albert-jax predict --exit`: stop after fewer
                passes of the shared layer. Unset, all passes run.

        Returns:
            One `Answer` for one input, a list of them in order for several. `prediction` is a
            label, a choice, a score, a label for each word, or a text (then the answer is a
            `SpanAnswer`). `probabilities` has those of classes and choices.

        Raises:
            UserError: if the model was not fine-tuned, an input lacks a text, or the model's output
                is not finite.
        """
        is_one = isinstance(inputs, (str, bytes, tuple, Mapping))  # bytes are refused as one
        settings: AnswerSettings = {
            "max_seq_length": max_seq_length,
            "doc_stride": doc_stride,
            "pack": pack,
            "long": long,
            "stride": stride,
            "exit": exit,
            "compute": self._asked_compute,
            "engine": self.engine,
        }
        asked = (task, settings)
        answering = self._answering  # once: another thread may ask with other settings meanwhile
        if answering is None or answering[0] != asked:
            self._answering = answering = asked, self._fine_tuned(task, settings)
        given = [inputs] if is_one else cast(Iterable[Texts], inputs)
        answers = answers_to(answering[1], cast(Iterable[Texts], given))
        return answers[0] if is_one else answers

    def _fine_tuned(self, task: str | None, settings: AnswerSettings) -> FineTuned:
        name = self.source or "this model"
        if self.head is None:
            raise UserError(
                f"{name} is not fine-tuned (it has no head); fine-tune it first with "
                "albert_jax.finetune"
            )
        manifest = {"head": self.head, "provenance": self._provenance}
        # The tokenizer is given beside it.
        nothing: ModelTokenizer = {"path": None, "mode": "google", "do_lower_case": True}
        model = ModelDirectory(dict(self.params), self.config, nothing, manifest)
        return fine_tuned_of(name, model, task, tokenizer=self.tokenizer, **settings)

    # -------------------------------------------------------------------------------------- details

    def _need(self, part: str, what: str) -> None:
        if part in self.params:
            return
        if self.head is not None:
            raise UserError(
                f"this model is fine-tuned, and so has no weights for {what} any more; take the "
                "pretrained model that it was made from"
            )
        raise UserError(
            f"this model has no weights for {what} (no {part} among its parts); "
            "convert it from a source that has them"
        )

    def _rows(
        self,
        firsts: list[list[int]],
        seconds: list[list[int]] | None,
        truncate: bool | None,
        name_of: Callable[[int], str],
        *,
        or_else: str = "",
    ) -> list[Row]:
        """Return the rows of texts, or of pairs of texts.

        `truncate` is None if the caller has no such setting. `or_else` is another remedy for the
        error.
        Raises UserError for a text or a pair that is too long for the model.
        """
        longest = self.config.max_position_embeddings
        special = 2 if seconds is None else 3  # [CLS] and a [SEP] after each text
        mode = self.tokenizer.mode
        rows = []
        for index, first in enumerate(firsts):
            second = None if seconds is None else seconds[index]
            length = len(first) + len(second or ()) + special
            if length > longest and (not truncate or longest < special):
                ways = ["shorten or split the text"]
                if truncate is False:
                    ways.append(f"cut it with {setting('truncate', True)}")
                if or_else:
                    ways.append(or_else)
                advice = ", or ".join(ways[: 1 if longest < special else None])
                raise UserError(
                    f"{name_of(index)}: {length} tokens are more than the model's {longest}; "
                    f"{advice}"
                )
            row = make_row(first, second, longest=longest, special=self._special, mode=mode)
            rows.append(row)
        return rows

    def _masked(self, row: Row) -> list[int]:
        mask = self._special.mask
        return [position for position, id in enumerate(row.ids) if id == mask]

    def _not_finite(self, what: str) -> str:
        wider = "" if self.compute.dtype == "float32" else ", or compute in float32"
        return (
            f"{what}: the model's output is not finite (NaN or infinite); prove its weights with "
            f"albert-jax verify{wider}"
        )

    def _target_ids(self, targets: str | Iterable[str]) -> np.ndarray:
        words = texts_of(targets, "targets")
        found = [(word, self.tokenizer.encode(word).ids) for word in words]
        if wrong := [f"{word!r} is {len(ids)}" for word, ids in found if len(ids) != 1]:
            raise UserError(f"each target must be one piece; {', '.join(wrong)}")
        if not found:
            raise UserError("targets is empty; give words, or None for the whole vocabulary")
        # A vocabulary of BERT's makes one piece of any word that it does not know.
        if unknown := [repr(word) for word, ids in found if ids[0] == self._special.unk]:
            raise UserError(
                f"each target must be a piece of the vocabulary, and {first_ten(unknown)} is none"
            )
        return np.array(list(dict.fromkeys(ids[0] for _, ids in found)), np.int32)

    def _call(self, name: str, **settings: Any) -> Callable[..., Any]:
        """Return a function of `functions` by its name, of arrays alone."""
        if self._onnx is not None:
            return partial(getattr(self._onnx, name), **settings)
        return partial(getattr(self, f"_{name}"), self._on_device, **settings)

    def _encode_rows(
        self,
        rows: list[Row],
        layer: int,
        pool: functions.Pool | None,
        name_of: Callable[[int], str],
    ) -> Iterator[tuple[Batch, Any]]:
        """Yield each batch with a layer's vectors and the pooled ones, as `_run` does."""
        is_last = layer == self.config.num_hidden_layers * self.config.inner_group_num
        if self._onnx is not None and is_last:
            return self._run(self._call("encode", pool=pool), rows, name_of)
        call = partial(self._encode, self._on_device, layer=layer, pool=pool)
        return self._run(call, rows, name_of, engine="jax")  # an exported graph has the last alone

    def _run(
        self,
        call: Callable[..., Any],
        rows: list[Row],
        name_of: Callable[[int], str],
        *,
        engine: Engine | None = None,
    ) -> Iterator[tuple[Batch, Any]]:
        """Yield each batch with the NumPy arrays that `call` returns for it.

        `engine` computes it; None: the model's. Raises UserError if an array is not finite.
        """
        is_jax = (engine or self.engine) == "jax"
        platform = jax.default_backend() if is_jax else "cpu"
        batches = plan_batches(
            [len(row.ids) for row in rows],
            longest=self.config.max_position_embeddings,
            tokens=batch_tokens(platform),
            padding=most_padding(platform),
        )

        def start(batch: Batch) -> Any:
            chosen = [rows[i] for i in batch.rows]
            # JAX compiles a program for each length, ONNX Runtime takes any.
            length = batch.length if is_jax else max(len(row.ids) for row in chosen)
            return call(*arrays(chosen, length))

        quiet = True if len(rows) < MANY else None  # None: not a terminal
        with tqdm(total=len(rows), unit="text", disable=quiet) as bar:
            for batch, output in one_ahead((batch, start(batch)) for batch in batches):
                outputs = output if isinstance(output, (tuple, list)) else (output,)
                if (wrong := _first_not_finite(outputs)) is not None:
                    raise UserError(self._not_finite(name_of(batch.rows[wrong])))
                yield batch, outputs
                bar.update(len(batch.rows))

    def _answers(self, row: Row, scores_PK: np.ndarray, tokens_PK: np.ndarray) -> list[Any]:
        """Return the answers for one text in the form of transformers' pipeline."""
        several = len(row.masked) > 1
        answers = []
        for position, scores_K, tokens_K in zip(row.masked, scores_PK, tokens_PK, strict=False):
            answers.append(
                [
                    {
                        "score": score,
                        "token": token,
                        "token_str": self.tokenizer.decode([token]),
                        # Without special tokens, unless there are other [MASK]s.
                        "sequence": self.tokenizer.decode(
                            [*row.ids[:position], token, *row.ids[position + 1 :]],
                            skip_special_tokens=not several,
                        ),
                    }
                    for score, token in zip(scores_K.tolist(), tokens_K.tolist(), strict=True)
                ]
            )
        return answers if several else answers[0]


def _check_head(head: Mapping[str, Any] | None) -> None:
    """Raise UserError for a description of a head that a manifest could not hold."""
    try:
        if head is not None:
            HeadManifest.from_json(head)
    except msgspec.ValidationError as error:
        raise UserError(
            f'head {shown(head)} is no head: {error}; give {{"kind": …, "labels": […]}}, with '
            "None for labels without names"
        ) from None


def _unpickled(settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Albert:
    albert = Albert(**settings)
    albert._provenance = provenance
    return albert


def _long_of(long: Long | None, truncate: bool) -> Long:
    if truncate and long not in (None, "cut"):
        raise UserError(
            f"{setting('truncate')} cuts long texts and {setting('long', long)} does not; give one "
            "of them"
        )
    return "cut" if truncate else long or "refuse"


def _namer(given: Any, argument: str, texts: Sequence[str]) -> Callable[[int], str]:
    """Return a function that names a text in errors.

    The name is the text itself, after its position if the caller gave a list, or its row if that is
    of a file.
    """

    def name_of(index: int) -> str:
        return f"{place(index)} {shown(texts[index])}".lstrip()

    def place(index: int) -> str:
        if isinstance(given, FileTexts):
            return f"{given.name} row {index + 1}"
        if is_in_python():
            return "" if isinstance(given, str) else f"{argument}[{index}]"
        return "" if len(texts) == 1 else f"text {index + 1}"

    return name_of


def _first_not_finite(outputs: Iterable[np.ndarray | None]) -> int | None:
    """Return the first row, [B, …], in which an array has NaN or an infinity."""
    for array in outputs:
        if array is not None and jnp.issubdtype(array.dtype, jnp.floating):
            wrong = np.flatnonzero(~np.isfinite(array).all(axis=tuple(range(1, array.ndim))))
            if wrong.size:
                return int(wrong[0])
    return None


def _zeros(shape: tuple[int, int, int]) -> np.ndarray:
    """Return zeros f32[B, S, H] for all vectors of texts; raises UserError if they do not fit."""
    try:
        return np.zeros(shape, np.float32)
    except MemoryError:
        size = rounded(math.prod(shape) * 4 / (1 << 30), 3)
        raise UserError(
            f"the vectors of all tokens take {size} GiB, for {shape[0]:,} texts of up to "
            f"{shape[1]:,} tokens, more than there is memory; give fewer texts, or "
            f"{setting('pool', 'mean')} for one vector a text"
        ) from None

# SPDX-License-Identifier: Apache-2.0
"""Write a model as the original's checkpoint folder or as a transformers folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from albert_jax.checkpoint.convert.hf_names import ARCHITECTURES, WITHOUT_POOLER, hf_names
from albert_jax.checkpoint.convert.own_exports import POOLING, SENTENCES
from albert_jax.checkpoint.convert.parameters import HEAD_SHAPES, LABELS, MAPPING, part_of
from albert_jax.checkpoint.convert.readers import (
    CLASSIFIER_DROPOUT,
    OWN_HEAD,
    PROBLEMS,
    Weights,
    identity_mapping,
    leftovers,
    require_same_groups,
)
from albert_jax.checkpoint.convert.safetensors_file import write_safetensors
from albert_jax.checkpoint.convert.tf_bundle import write_checkpoint
from albert_jax.checkpoint.convert.tf_names import GLOBAL_STEP, tf_names
from albert_jax.config.manifests import SLOW_MODES, HeadManifest, TextSettings, vocabulary_name
from albert_jax.config.model import AlbertConfig, act_for_transformers
from albert_jax.data.hf_tokenizer import OWN_MODE
from albert_jax.data.special_pieces import MARKER, SPECIAL_PIECES
from albert_jax.data.tokenizer import Tokenizer, document_of
from albert_jax.data.tokenizer_json import is_divided
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.wording import setting

_NOT_THE_ORIGINALS = ("gelu_erf", "silu")
_ROLES = ("pad", "unk", "cls", "sep", "mask")


# ------------------------------------------------------------------------------- the original's


def write_tf(
    folder: Path, weights: Weights, vocab: Path | None, tokenizer: TextSettings
) -> list[str]:
    """Write a checkpoint, its configuration and vocabulary; return what the user should know."""
    config, params = weights.config, weights.params
    names = tf_names(config, weights.head.kind if weights.head else None)
    if f"{MAPPING}/kernel" in params and f"{MAPPING}/kernel" not in names:
        raise UserError(
            f"the model maps embeddings of {config.embedding_size} to a hidden size that is the "
            "same, by weights of its own; the original has no mapping there, so its format cannot "
            "hold this model"
        )
    tensors = {names[path]: array for path, array in params.items()}
    for place, array in (weights.optimizer or {}).items():
        slot, _, path = place.partition("/")
        tensors[f"{names[path]}/{slot}"] = array
    if weights.global_step is not None:
        tensors[GLOBAL_STEP] = np.array(weights.global_step, np.int64)
    write_checkpoint(folder / "model.ckpt-best", tensors)
    config.to_json(folder / "albert_config.json")
    notes = []
    if vocab and vocab.suffix == ".model":
        shutil.copyfile(vocab, folder / "30k-clean.model")
        notes += _lost_cleaning(tokenizer)
    elif vocab:
        notes.append(f"{vocab.name} left out: the original reads SentencePiece models alone")
    if config.hidden_act in _NOT_THE_ORIGINALS:
        known = f"the original's code knows no {config.hidden_act!r}"
        notes.append(f"{known}; albert_jax reads it back")
    if config.layer_norm_eps != 1e-12:
        notes.append(f"the original computes with epsilon 1e-12, not {config.layer_norm_eps}")
    if weights.head and weights.head.labels:
        notes.append("the labels' names are lost; the format has no place for them")
    if weights.head and weights.head.kind in ("multi_label", "token_classification", "similarity"):
        back = setting("head", weights.head.kind)
        notes.append(f"the head's kind is lost; convert back with {back}")
    return notes


def _lost_cleaning(tokenizer: TextSettings) -> list[str]:
    """Return notes on how text is cleaned for a vocabulary, where the original does it otherwise.

    Its checkpoints have no place for that, and the original's defaults are taken on the way back.
    """
    notes = []
    back = []
    if tokenizer["mode"] != "google":
        back.append(setting("mode", tokenizer["mode"]))
    if not tokenizer["do_lower_case"]:
        back.append(setting("do_lower_case", False))
    if back:
        notes.append(f"how text is cleaned is lost; convert back with {' and '.join(back)}")
    if tokenizer.get("keep_accents"):
        notes.append(
            "text keeps its accents, and the format cannot say so; after the way back they are "
            "dropped, and words with accents get other ids"
        )
    return notes


# -------------------------------------------------------------------------------- transformers'


def write_hf(
    folder: Path, weights: Weights, vocab: Path | None, tokenizer: Mapping[str, Any]
) -> list[str]:
    """Write what transformers' from_pretrained loads; return what the user should know."""
    config, params, parts, notes = weights.config, dict(weights.params), weights.parts, []
    require_same_groups(config, "the model")
    kind = weights.head.kind if weights.head else None
    architecture = _architecture(weights)
    if architecture in WITHOUT_POOLER and "pooler" in parts:
        params = {path: array for path, array in params.items() if part_of(path) != "pooler"}
        notes.append(f"pooler left out: {architecture} has none and would call it unused")
    if kind == "span_v2":
        notes.append("transformers has no class for this head; albert_jax reads it back")
    elif kind and {"predictions", "seq_relationship"} & set(parts):
        notes.append(f"{architecture} will call the pretraining heads in the file unused")
    if kind == "similarity":
        notes.append("sentence-transformers loads it; its vectors are those of pool='mean'")
    if architecture == "AlbertModel" and "pooler" not in parts:
        notes.append("no pooler: transformers will make a random one, and say so")
    if config.embedding_size == config.hidden_size and f"{MAPPING}/kernel" not in params:
        params |= identity_mapping(config.hidden_size)
    names = hf_names(config, kind)
    # As AlbertModel itself saves: its names have no prefix.
    prefix = "albert." if {"predictions", "seq_relationship", "head"}.isdisjoint(parts) else ""
    dtype = _exact_dtype(weights.dtype, params)
    if str(dtype) != weights.dtype:
        notes.append(f"float32, as {weights.dtype} does not hold these weights exactly")
    tensors = {}
    for path in sorted(params, key=names.__getitem__):
        array = params[path].T if path.endswith("/kernel") else params[path]
        tensors[names[path].removeprefix(prefix)] = array.astype(dtype, copy=False)
    write_safetensors(folder / "model.safetensors", tensors)
    _write_json(folder / "config.json", _config_json(weights, architecture, str(dtype)))
    if weights.head and weights.head.kind == "similarity":
        _write_sentences(folder, weights.config, weights.head)
    if vocab:
        notes += _write_tokenizer(folder, config, Tokenizer.load(vocab, **tokenizer))
    return notes


def _write_sentences(folder: Path, config: AlbertConfig, head: HeadManifest) -> None:
    """Write what makes a transformers folder one of sentence-transformers, with mean vectors."""
    module = "sentence_transformers.models."
    documents: dict[str, Any] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{module}Transformer"},
            {"idx": 1, "name": "1", "path": POOLING, "type": f"{module}Pooling"},
        ],
        f"{POOLING}/config.json": {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
        "sentence_bert_config.json": {
            "max_seq_length": head.max_seq_length or config.max_position_embeddings,
            "do_lower_case": False,  # the tokenizer does what is needed
        },
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
    }
    (folder / POOLING).mkdir()
    for name in SENTENCES:
        _write_json(folder / name, documents[name])


def _exact_dtype(wanted: str, params: Mapping[str, np.ndarray]) -> np.dtype:
    """Return the original dtype of the weights if it still holds them bit for bit, else float32."""
    if wanted == "float32":
        return np.dtype(np.float32)
    dtype = np.dtype({"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[wanted])
    with np.errstate(over="ignore"):  # an overflow is an infinity, and so not the same
        exact = all(np.array_equal(x, x.astype(dtype).astype(x.dtype)) for x in params.values())
    return dtype if exact else np.dtype(np.float32)


def _architecture(weights: Weights) -> str:
    """Return the class that has all parts; docs/checkpoints.md lists what no class has."""
    if weights.head:
        return ARCHITECTURES.get(weights.head.kind, "AlbertModel")
    if "predictions" not in weights.parts:
        return "AlbertModel"
    # One without sentence order is of TF-Hub: AlbertForMaskedLM would call its pooler unused.
    return "AlbertForPreTraining" if "pooler" in weights.parts else "AlbertForMaskedLM"


def _config_json(weights: Weights, architecture: str, dtype: str) -> JsonObject:
    values: JsonObject = {
        "architectures": [architecture],
        "model_type": "albert",
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "classifier_dropout_prob": CLASSIFIER_DROPOUT,
    }
    values |= leftovers(weights.transformers) | dataclasses.asdict(weights.config)
    values["hidden_act"] = act_for_transformers(weights.config.hidden_act)
    if dtype != "float32":
        values["dtype"] = dtype
    kind = weights.head.kind if weights.head else None
    if weights.head and kind not in ("similarity", "multiple_choice", "span_v1", "span_v2"):
        count = LABELS.get(str(kind)) or len(weights.params["head/output_bias"])
        labels = weights.head.labels or [f"LABEL_{i}" for i in range(count)]
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
        if kind in ("regression", "multi_label"):
            values["problem_type"] = PROBLEMS[kind]
    if weights.head and (weights.head.task is not None or not HEAD_SHAPES[weights.head.kind]):
        values[OWN_HEAD] = weights.head.to_json()  # transformers has no place for a task
    return values


def _write_tokenizer(folder: Path, config: AlbertConfig, tokenizer: Tokenizer) -> list[str]:
    """Write the vocabulary and a tokenizer that gives its mode's ids in transformers 4 and 5.

    transformers uses tokenizer.json unchanged only in the general class PreTrainedTokenizerFast.
    Version 5's AlbertTokenizer and BertTokenizer make their own.
    """
    notes = []
    shutil.copyfile(tokenizer.path, folder / vocabulary_name(tokenizer.path))
    try:
        document = document_of(tokenizer)
        _write_json(folder / "tokenizer.json", document, indent=None)
        kind = "PreTrainedTokenizerFast"
        notes += _cannot_say(tokenizer)
    except UserError as error:
        notes.append(f"no tokenizer.json: {error}")
        kind = "AlbertTokenizer"
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    pieces = [tokenizer.pieces[i] for i in tokenizer.special]
    tokens = {piece: {"content": piece} | plain for piece in pieces}
    tokens[pieces[-1]]["lstrip"] = pieces[0] == SPECIAL_PIECES[0]  # not of BERT's
    names = {f"{role}_token": piece for role, piece in zip(_ROLES, pieces, strict=True)}
    names |= {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    values = {
        "added_tokens_decoder": {
            str(i): token | {"special": True}
            for i, token in zip(tokenizer.special, tokens.values(), strict=True)
        },
        OWN_MODE: tokenizer.mode,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": tokenizer.do_lower_case,
        "keep_accents": tokenizer.keep_accents,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": config.max_position_embeddings,
        "remove_space": True,
        "strip_accents": not tokenizer.keep_accents,
        "tokenizer_class": kind,
    }
    _write_json(folder / "tokenizer_config.json", values | names)
    mask = {"mask_token": tokens[pieces[-1]]}
    _write_json(folder / "special_tokens_map.json", names | mask)
    return notes


def _cannot_say(tokenizer: Tokenizer) -> list[str]:
    """Return what a tokenizer.json cannot do as the mode does."""
    divided = [piece for piece in tokenizer.pieces if is_divided(piece)]
    if tokenizer.mode not in SLOW_MODES or not divided:
        return []
    within = sum(not piece.startswith(MARKER) for piece in divided)
    inside = f", {within:,} of them within words" if within and tokenizer.mode == "google" else ""
    return [
        f"tokenizer.json cannot divide pieces such as {divided[0]!r} as mode {tokenizer.mode} does "
        f"({len(divided):,} end in digit and comma{inside}): few numbers get other ids in "
        "transformers"
    ]


def _write_json(path: Path, values: Mapping[str, Any], indent: int | None = 2) -> None:
    text = json.dumps(values, indent=indent, sort_keys=indent is not None)
    path.write_text(text + "\n", encoding="utf-8")

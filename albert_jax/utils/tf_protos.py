# SPDX-License-Identifier: Apache-2.0
"""Define the messages of TensorFlow's and SentencePiece's files as classes of Google's protobuf.

They are built here from field numbers, because generated code runs only with the protobuf releases
that its generator knows. Fields that they lack are ignored when a message is read. Sources:
tensorflow/core/example/{example,feature}.proto, framework/{tensor_shape,versions}.proto,
protobuf/tensor_bundle.proto; sentencepiece's src/sentencepiece_model.proto.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

__all__ = ["BundleEntry", "BundleHeader", "DecodeError", "Example", "SentencePieceModel"]

_PACKAGE = "albert_jax"
_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "int64": _Field.TYPE_INT64,
    "float": _Field.TYPE_FLOAT,
    "fixed32": _Field.TYPE_FIXED32,
    "bytes": _Field.TYPE_BYTES,
}

# message -> field -> (number, type, whether it is repeated). An enumeration is an int64 here. A map
# is a list of entries, as in a file, so that their order is kept.
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "BytesList": {"value": (1, "bytes", True)},
    "FloatList": {"value": (1, "float", True)},
    "Int64List": {"value": (1, "int64", True)},
    "Feature": {
        "bytes_list": (1, "BytesList", False),
        "float_list": (2, "FloatList", False),
        "int64_list": (3, "Int64List", False),
    },
    "NamedFeature": {"key": (1, "bytes", False), "value": (2, "Feature", False)},
    "Features": {"feature": (1, "NamedFeature", True)},
    "Example": {"features": (1, "Features", False)},
    "VersionDef": {"producer": (1, "int64", False), "min_consumer": (2, "int64", False)},
    "BundleHeader": {
        "num_shards": (1, "int64", False),
        "endianness": (2, "int64", False),
        "version": (3, "VersionDef", False),
    },
    "Dim": {"size": (1, "int64", False)},
    "TensorShape": {"dim": (2, "Dim", True), "unknown_rank": (3, "int64", False)},
    "BundleEntry": {
        "dtype": (1, "int64", False),
        "shape": (2, "TensorShape", False),
        "shard_id": (3, "int64", False),
        "offset": (4, "int64", False),
        "size": (5, "int64", False),
        "crc32c": (6, "fixed32", False),
        "slices": (7, "bytes", True),
    },
    "SentencePiece": {
        "piece": (1, "bytes", False),
        "score": (2, "float", False),
        "type": (3, "int64", False),
    },
    "TrainerSpec": {"model_type": (3, "int64", False)},
    "NormalizerSpec": {"precompiled_charsmap": (2, "bytes", False)},
    "SentencePieceModel": {
        "pieces": (1, "SentencePiece", True),
        "trainer_spec": (2, "TrainerSpec", False),
        "normalizer_spec": (3, "NormalizerSpec", False),
    },
}


def _classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, is_repeated) in fields.items():
            label = _Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if kind in _TYPES:
                added.type = _TYPES[kind]
            else:
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()  # of our own: no name meets TensorFlow's
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()
Example: Any = _CLASSES["Example"]
BundleHeader: Any = _CLASSES["BundleHeader"]
BundleEntry: Any = _CLASSES["BundleEntry"]
SentencePieceModel: Any = _CLASSES["SentencePieceModel"]

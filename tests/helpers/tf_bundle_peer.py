# SPDX-License-Identifier: Apache-2.0
"""TensorFlow's side of test_tf_bundle.py, a program of its own: writes checkpoints, reads ours.

`python tf_bundle_peer.py FOLDER NAME=PREFIX...` writes every_dtype, many, sharded, sliced and
object_graph to FOLDER (tests/data/tf_bundle holds the small ones, written by TensorFlow 2.21) and
dumps what TensorFlow reads from each PREFIX to FOLDER/read.pickle.
"""

import pickle
import sys
from pathlib import Path

import ml_dtypes
import numpy as np


def every_dtype() -> dict[str, np.ndarray]:
    """One small tensor of each dtype, odd shapes and sizes among them; all made by formula."""
    dtypes = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.int16, np.int32]
    dtypes += [np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.complex64, np.complex128]
    values = (np.arange(6).reshape(2, 3) * 17 % 11 - 3) / 4
    tensors = {f"dtype/{np.dtype(d)}": (values * 4 + 4).astype(d) for d in dtypes}
    tensors["dtype/float32/infinite"] = np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)
    tensors["dtype/bool"] = np.array([[True], [False], [True]])
    strings = [b"", b"a\0b", b"x" * 200, "Äquator".encode()]
    tensors["dtype/string"] = np.array(strings, object).reshape(2, 2)
    tensors["dtype/string/scalar"] = np.array(b"alone", object)
    tensors["empty"] = np.zeros((0, 5), np.float32)
    tensors["global_step"] = np.array(2**40 + 1, np.int64)
    tensors["odd"] = np.arange(3, dtype=np.uint8)  # what follows is not aligned
    tensors["omega/größe"] = np.array(-1.5, np.float32)
    tensors["wide"] = np.arange(256, dtype=np.float32).reshape(1, 2, 128)
    return tensors


def many() -> dict[str, np.ndarray]:
    """So many tensors that the index takes several blocks, one of which ends in a name's prefix."""
    names = [f"module_{i % 7}/layer_{i:05d}/{'kernel' * (i % 40)}" for i in range(4000)]
    return {name: np.full([i % 3], i, np.int32) for i, name in enumerate(names)}


def write(folder: Path) -> None:
    import tensorflow as tf

    def save(name: str, tensors: dict[str, np.ndarray], slices: str = "") -> None:
        order = sorted(tensors, key=str.encode)
        tf.raw_ops.SaveV2(
            prefix=str(folder / name),
            tensor_names=order,
            shape_and_slices=[slices] * len(order),
            tensors=[tf.constant(tensors[n]) for n in order],
        )

    save("every_dtype", every_dtype())
    save("many", many())
    save("sliced", {"partitioned": np.ones((2, 3), np.float32)}, "4 3 0,2:-")
    names = sorted(every_dtype(), key=str.encode)
    for part, chosen in enumerate((names[::2], names[1::2])):
        save(f"part{part}", {n: every_dtype()[n] for n in chosen})
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(folder / "part0"), str(folder / "part1")],
        destination_prefix=str(folder / "sharded"),
    )
    checkpoint = tf.train.Checkpoint(kernel=tf.Variable([[1.0, 2.0]]), step=tf.Variable(7))
    checkpoint.write(str(folder / "object_graph"))


def read(output: Path, checkpoints: dict[str, str]) -> None:
    """Dumps {NAME: {tensor: (dtype, shape, bytes or list of bytes)}}."""
    import tensorflow as tf

    found: dict[str, dict[str, tuple]] = {}
    for name, prefix in checkpoints.items():
        reader = tf.train.load_checkpoint(prefix)
        found[name] = {}
        for tensor in reader.get_variable_to_shape_map():
            value = np.asarray(reader.get_tensor(tensor))
            if value.dtype.kind in "OS":  # scalars come as bytes
                values = value.astype(object).reshape(-1).tolist()
                found[name][tensor] = ("object", value.shape, values)
            else:
                found[name][tensor] = (str(value.dtype), value.shape, value.tobytes())
    output.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    read(Path(sys.argv[1]) / "read.pickle", dict(a.split("=", 1) for a in sys.argv[2:]))

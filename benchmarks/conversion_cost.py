# SPDX-License-Identifier: Apache-2.0
"""What converting a base-size model costs, beside TensorFlow and transformers: run by hand.

`python -m benchmarks.conversion_cost make FOLDER` writes FOLDER/tf, a checkpoint with optimizer
slots, and FOLDER/hf, a transformers folder of the same random weights. Then `… albert-jax SOURCE`,
or `… hf SOURCE` or `… tf SOURCE`, converts to that format; `… tensorflow PREFIX` reads the model's
variables and `… transformers FOLDER` loads the model. Each prints seconds and the most memory, of
its own pages and those of mapped files, above what its imports had taken.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path


def _resident() -> tuple[int, int]:
    """Bytes of this process's own pages and of mapped files' pages in memory; Linux."""
    status = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status if ":" in line)
    own, file = (1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return own, file


def _make(folder: str) -> None:
    from albert_jax.config.model import MODELS
    from tests.helpers.conversions import made_up, write_original, write_transformers

    config = MODELS["base-v2"]
    params = made_up(config)
    write_original(Path(folder, "tf"), params, config, slots=True)
    write_transformers(Path(folder, "hf"), params, config)


def _job(what: str, source: str, scratch: str) -> Callable[[], object]:
    """What is to be measured, its imports done."""
    if what == "tensorflow":
        import tensorflow as tf

        def read() -> object:
            reader = tf.train.load_checkpoint(source)
            names = [n for n in reader.get_variable_to_shape_map() if "/adam_" not in n]
            return {name: reader.get_tensor(name) for name in names}

        return read
    if what == "transformers":
        from transformers import AlbertForPreTraining

        def load() -> object:
            model = AlbertForPreTraining.from_pretrained(source)
            assert all(x.sum() is not None for x in model.parameters())  # it only maps the file
            return model

        return load
    from albert_jax.checkpoint.convert.convert import convert
    from tests.helpers.conversions import made_up, write_original

    write_original(Path(scratch, "small"), made_up())
    convert(Path(scratch, "small"), Path(scratch, "once"), what)  # loads what is loaded late
    return lambda: convert(source, Path(scratch, "out"), what)


def main() -> None:
    begun = time.perf_counter()
    what, source = sys.argv[1:]
    if what == "make":
        _make(source)
        return
    with tempfile.TemporaryDirectory() as scratch:
        job = _job(what, source, scratch)
        seen, done = [], threading.Event()

        def watch() -> None:
            while not done.wait(0.002):
                seen.append(_resident())

        before, watcher = _resident(), threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        kept = job()
        seconds = time.perf_counter() - start
        whole = time.perf_counter() - begun
        done.set()
        watcher.join()
        del kept
    own, file = max(seen, key=sum)
    found = {
        "seconds": round(seconds, 2),
        "with imports": round(whole, 1),
        "MB": round((own + file - sum(before)) / 1e6, 1),
    }
    found |= {"own MB": round((own - before[0]) / 1e6, 1)}
    print(json.dumps({"what": what} | found | {"imports MB": round(sum(before) / 1e6)}))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Keep compiled programs between runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from albert_jax.utils.errors import UserError
from albert_jax.utils.streams import say
from albert_jax.utils.user_cache import user_cache


def set_compilation_cache(folder: str | None) -> None:
    """Keep compiled programs in `folder` between runs.

    None is the user's cache folder, unless JAX_COMPILATION_CACHE_DIR sets one. "" sets none, so
    that programs are kept only where JAX_COMPILATION_CACHE_DIR says.
    """
    if folder == "" or (folder is None and jax.config.jax_compilation_cache_dir):
        return
    try:
        folder = str(user_cache("xla")) if folder is None else folder
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        say(f"compiled programs are not kept: {folder} cannot be made: {error.strerror or error}")
        return
    except UserError as error:  # the user has no home
        say(f"compiled programs are not kept: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    # JAX does not keep programs that compile within a second, and answering needs a dozen of these.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@contextlib.contextmanager
def compilation_cache(folder: str | None) -> Iterator[None]:
    """Keep compiled programs while entered, as `set_compilation_cache` does; then as before."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    set_compilation_cache(folder)
    changed = {name: value for name, value in before.items() if value != getattr(jax.config, name)}
    if changed:
        jax_cache.reset_cache()  # JAX decides once in a process whether it uses one
    try:
        yield
    finally:
        for name, value in changed.items():
            jax.config.update(name, value)
        if changed:
            jax_cache.reset_cache()


@contextlib.contextmanager
def cached_programs(folder: str | None) -> Iterator[None]:
    """Keep compiled programs in `folder`, or compile anew, whatever another cache has."""
    wanted = {
        "jax_enable_compilation_cache": folder is not None,
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        jax_cache.reset_cache()  # JAX decides once in a process whether it uses one
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax_cache.reset_cache()

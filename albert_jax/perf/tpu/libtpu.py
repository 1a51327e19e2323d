# SPDX-License-Identifier: Apache-2.0
"""Configure libtpu, the TPU's runtime and compiler, so that it opens no chip."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from fnmatch import fnmatch
from pathlib import Path

from albert_jax.utils.errors import UserError

# libtpu asks the cloud what machine this is, complains on stderr if nothing answers, and locks the
# chips for one process. These are the answers for a single host of four chips.
_WITHOUT_CHIPS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def is_installed() -> bool:
    """Return whether libtpu is a package here, or TPU_LIBRARY_PATH names one."""
    return "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu") is not None


def version() -> str | None:
    """Return the installed package's version.

    None if there is none, or TPU_LIBRARY_PATH names a file.
    """
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return None


def check_profiler() -> None:
    """Raise UserError if JAX's profiler may crash this process.

    A libtpu newer than jaxlib's has a profiler with more functions (0.0.52: a struct of 104 bytes
    where jaxlib 0.10.2 has room for 80). JAX_PLATFORMS decides whether JAX loads it.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    asked = importlib.metadata.requires("jax") or []
    wanted = next((m[1] for each in asked if (m := re.match(r"libtpu==([\d.*]+)", each))), "*")
    found = version()
    if found is None or fnmatch(found, wanted) or (platforms and "tpu" not in platforms):
        return
    jax = importlib.metadata.version("jax")
    raise UserError(
        f"libtpu {found} may crash the profiler of jax {jax}, which is made for {wanted}; "
        f"pip install 'jax[tpu]=={jax}', or set JAX_PLATFORMS=cpu where there is no TPU"
    )


def use_without_chips() -> None:
    """Set the environment variables that libtpu would ask for; existing ones stay."""
    for name, value in _WITHOUT_CHIPS.items():
        os.environ.setdefault(name, value)


def quiet_without_chips(devices: Path = Path("/dev")) -> None:
    """Keep libtpu's complaints off stderr on a machine that has libtpu, for `estimate`, and no TPU.

    JAX tries every accelerator whose library is installed, and libtpu opens a chip through one of
    the files in `devices`. `vfio/vfio` is the kernel's own, with chips or without.
    """
    has_chips = any(devices.glob("accel*")) or any(devices.glob("vfio/[0-9]*"))
    if is_installed() and not has_chips:
        use_without_chips()

# SPDX-License-Identifier: Apache-2.0
"""What libtpu, the TPU's runtime and compiler, is told where it is to open no chip."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

# It asks the cloud what machine this is, complains on stderr where nobody answers, and locks the
# chips for one process. These are the answers for a host of four chips that is alone.
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
    return "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu") is not None


def use_without_chips() -> None:
    """Answers in the environment what libtpu would ask; settings that are there stay."""
    for name, value in _WITHOUT_CHIPS.items():
        os.environ.setdefault(name, value)


def quiet_without_chips(devices: Path = Path("/dev")) -> None:
    """Keeps libtpu's complaints off stderr on a machine that has it, for `estimate`, and no TPU.

    JAX tries every accelerator whose library is installed, and libtpu opens a chip through one of
    these files of `devices`; `vfio/vfio` is the kernel's own, with chips or without.
    """
    has_chips = any(devices.glob("accel*")) or any(devices.glob("vfio/[0-9]*"))
    if is_installed() and not has_chips:
        use_without_chips()

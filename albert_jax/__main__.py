# SPDX-License-Identifier: Apache-2.0
"""`python -m albert_jax` is `albert-jax`."""

import sys

from albert_jax.cli import main

sys.exit(main())

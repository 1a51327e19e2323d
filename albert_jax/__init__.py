# SPDX-License-Identifier: Apache-2.0
"""ALBERT in JAX/Flax."""

__version__ = "0.1.0"

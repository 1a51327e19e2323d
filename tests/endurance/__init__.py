# SPDX-License-Identifier: Apache-2.0
"""Campaigns that show what the package survives: many tries by hand, a few in CI.

`python -m tests.endurance.NAME --tries N --seed S` prints what it found as one line of JSON;
docs/reliability.md has the results.
"""

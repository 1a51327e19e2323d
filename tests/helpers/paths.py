# SPDX-License-Identifier: Apache-2.0
"""Where the repository and the tests' data lie."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "tests" / "data"
VOCABULARY = DATA / "tokenizer" / "en8k.model"  # 8,000 pieces of English technical prose

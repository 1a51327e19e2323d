# SPDX-License-Identifier: Apache-2.0
"""Pretraining of a released size by the paper's settings: 4096 x 512, LAMB 0.00176, 125,000 steps.

    albert-jax pretrain configs/pretrain.py:model=base-v1 --store STORE --workdir DIR

The paper ran this on 64 to 512 TPU v3 chips (section 4.1); a smaller batch gets its learning rate
by the square root: configs/pretrain.py:model=base-v2,batch_size=256. The released v2 models also
saw text that was never published and ran 10 M (base) or 3 M steps; `steps=` sets that, the text is
yours.
"""

from albert_jax.config import (
    ComputeConfig,
    ExamplesConfig,
    PretrainConfig,
    TrainConfig,
    model_config,
)


def get_config(
    model: str = "base-v2",
    batch_size: int = 4096,
    steps: int = 125_000,
    predictions: int = 20,
    accumulate: int = 1,
) -> PretrainConfig:
    return PretrainConfig(
        model=model_config(model),
        compute=ComputeConfig(dtype="bfloat16", remat="full" if "xlarge" in model else "none"),
        examples=ExamplesConfig(max_seq_length=512, max_predictions_per_seq=predictions),
        train=TrainConfig(steps=steps, batch_size=batch_size, accumulate=accumulate),
    )

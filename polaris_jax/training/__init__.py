"""Training: the GRPO loop, SFT, and what a run keeps on disk."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from polaris_jax.training.metrics import History


def run(config: ConfigDict, workdir: str | Path, *, allow_changed: tuple[str, ...] = ()) -> History:
    """GRPO through all stages of `config`, or on from where the run in `workdir` stopped: `training.loop.run`."""
    from polaris_jax.training import loop  # not above: loop builds on evaluation, which builds on training.start

    return loop.run(config, workdir, allow_changed=allow_changed)

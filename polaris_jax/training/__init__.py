"""Training: the GRPO loop, SFT, the whole recipe, and what a run keeps on disk."""

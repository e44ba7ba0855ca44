"""Turns a Hugging Face model into a directory that training starts from.

    python experiments/import_hf.py --source=Qwen/Qwen3-4B --target=models/qwen3-4b
    python experiments/train.py --config=configs/polaris_4b.py --config.model.path=models/qwen3-4b ...

The target holds model.json (shape), params/ (orbax, float32) and tokenizer/ (with the generation config). It reads
faster than the original and needs no network; `config.model.path` takes a Hugging Face directory or name as well.
"""

from absl import flags

from polaris_jax import cli

SOURCE = flags.DEFINE_string("source", None, "Hugging Face directory, or hub name such as Qwen/Qwen3-4B", required=True)
TARGET = flags.DEFINE_string("target", None, "new directory", required=True)


def main(_: list[str]) -> None:
    """Imports, and says what was written where."""
    from polaris_jax import hf

    config = hf.import_model(SOURCE.value, TARGET.value)
    print(f"{TARGET.value}: {config.num_parameters:,} parameters, {config.num_hidden_layers} layers")


if __name__ == "__main__":
    cli.run(main)

"""Turns a trained or imported model into a Hugging Face directory that transformers, vLLM and SGLang load.

    python experiments/export_hf.py --source=runs/polaris_4b --target=exports/polaris-4b
    python experiments/export_hf.py --source=runs/polaris_4b --target=exports/polaris-4b-96k --yarn_factor=1.5
    python experiments/export_hf.py --source=runs/lora --target=exports/adapters --adapters

The source is a training run's directory (newest checkpoint, or --step), or one made by import_hf.py. The adapters of a
run with LoRA are merged into their base, or written by themselves for peft with --adapters.
"""

from absl import flags

from polaris_jax import cli
from polaris_jax.errors import UserError

SOURCE = flags.DEFINE_string("source", None, "training run, or directory made by import_hf.py", required=True)
TARGET = flags.DEFINE_string("target", None, "new directory", required=True)
ADAPTERS = flags.DEFINE_bool("adapters", False, "LoRA's adapters alone, as a directory that peft loads")
STEP = flags.DEFINE_integer("step", None, "checkpoint of a training run (default: the newest)")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float16", "float32"], "of the saved tensors")
MAX_SHARD_GIB = flags.DEFINE_float("max_shard_gib", 4.0, "files are cut before they pass this", lower_bound=0)
YARN_FACTOR = flags.DEFINE_float("yarn_factor", 0.0, "context extension for inference, e.g. 1.5; 0: none")
YARN_ATTENTION_FACTOR = flags.DEFINE_float("yarn_attention_factor", 1.0, "of YaRN; 1: no change of temperature")
YARN_ORIGINAL = flags.DEFINE_integer("yarn_original", 0, "context that YaRN extends (default: the model's own)")


def main(_: list[str]) -> None:
    """Exports, and says what was written where."""
    from polaris_jax import hf

    if ADAPTERS.value and YARN_FACTOR.value:
        raise UserError("--adapters: adapters have no context of their own; leave --yarn_factor to what loads the base")
    if ADAPTERS.value:
        path = hf.export_adapters(SOURCE.value, TARGET.value, step=STEP.value)
        print(f"{path}: load it with peft.PeftModel.from_pretrained(BASE_MODEL, {str(path)!r})")
        return
    path = hf.export_model(
        SOURCE.value,
        TARGET.value,
        step=STEP.value,
        dtype=DTYPE.value,
        max_shard_bytes=int(MAX_SHARD_GIB.value * 2**30),
        yarn_factor=YARN_FACTOR.value,
        yarn_attention_factor=YARN_ATTENTION_FACTOR.value,
        yarn_original=YARN_ORIGINAL.value,
    )
    print(f"{path}: load it with transformers.AutoModelForCausalLM.from_pretrained({str(path)!r})")


if __name__ == "__main__":
    cli.run(main)

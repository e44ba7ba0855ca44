"""polaris_jax: reinforcement learning of reasoning models in JAX, after the POLARIS recipe."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="polaris_jax",
    version="0.1.0",
    description="GRPO training of Qwen-style reasoning models in JAX/Flax, after the POLARIS recipe",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=[*find_packages(include=["polaris_jax", "polaris_jax.*", "configs"]), "polaris_jax.experiments"],
    package_dir={"polaris_jax.experiments": "experiments"},  # what `python -m polaris_jax` runs
    package_data={
        "polaris_jax.data": ["benchmarks/*"],
        "polaris_jax.plan": ["prices.toml"],
        "polaris_jax.report": ["static/*"],
    },
    install_requires=[
        "jax>=0.10.2,<0.13",
        "flax>=0.12,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.11,<0.13",
        "transformers>=5.0,<6",
        "tokenizers>=0.21",
        "huggingface-hub>=1.0,<3",
        "etils[epath]>=1.9,<2",
        "safetensors>=0.5,<1",
        "datasets>=4.0,<6",
        "mpmath>=1.3,<1.5",
        "sympy>=1.13,<1.15",
        "numpy>=2.0,<3",
        "scipy>=1.13,<2",
        "pandas>=2.2,<4",
        "pyarrow>=17",
        "jinja2>=3.1,<4",
        "tensorboard>=2.17,<3",
        "ml-collections>=1.0,<2",
        "absl-py>=2.1,<3",
        "rich>=13.7,<16",
        "matplotlib>=3.9,<4",
    ],
    extras_require={
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "hypothesis>=6.100,<7",
            "ruff>=0.9,<0.18",
            "jsonschema>=4.20,<5",
            "pyyaml>=6,<7",
            "reasoning-gym>=0.1.25,<0.2",
            "playwright>=1.49,<2",  # drives the Chromium of the system
            "build>=1.2,<2",
            "wandb>=0.19,<1",
            "mlflow-skinny>=3.0,<4",
        ],
        "reasoning-gym": ["reasoning-gym>=0.1.25,<0.2"],
        "docs": ["mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26,<2"],
        "torch": ["torch==2.13.0"],  # for tests and the demo; apart, since not every Python has a wheel of it
        "peft": ["peft>=0.17,<1"],  # for tests of exported adapters; needs torch
        "notebooks": ["papermill>=2.6,<3", "ipykernel>=6.29,<8", "nbclient>=0.10,<0.12"],
        "wandb": ["wandb>=0.19,<1"],
        "mlflow": ["mlflow-skinny>=3.0,<4"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "cuda": ["jax[cuda12]>=0.10.2,<0.13"],
        "peers": ["trl>=1.0,<2", "torch==2.13.0", "accelerate>=1.0,<2", "math-verify>=0.8,<0.10"],
    },
)

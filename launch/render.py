r"""Writes the file that starts a run on many hosts, with your values in it; a comment at its top says how to use it.

    python launch/render.py --target=slurm --hosts=4 --devices=8 >polaris.sbatch
    python launch/render.py --target=gke_gpu --hosts=4 --devices=8 --accelerator=nvidia-h100-80gb \
        --image=REGISTRY/polaris_jax --volume=runs >polaris.yaml
    python launch/render.py --target=gke_tpu --topology=4x4x4 --accelerator=tpu-v5p-slice \
        --image=REGISTRY/polaris_jax --volume=runs >polaris.yaml
    python launch/render.py --target=tpu_vm --topology=4x4x4 --accelerator=v5p-128 --version=v2-alpha-tpuv5 \
        --zone=us-east5-a --volume=10.0.0.2:/runs >polaris.sh
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from polaris_jax import cli
from polaris_jax.errors import UserError

TARGETS = {"slurm": "slurm.sh", "gke_gpu": "gke_gpu.yaml", "gke_tpu": "gke_tpu.yaml", "tpu_vm": "tpu_vm.sh"}
COMMAND = "python experiments/polaris.py --config=configs/polaris_4b.py --workdir=/runs/polaris_4b"
TPU_CHIPS = 4  # of a host, in slices of several hosts

TARGET = flags.DEFINE_enum("target", None, sorted(TARGETS), "Where to run.", required=True)
NAME = flags.DEFINE_string("name", "polaris", "Of the job.")
RUN = flags.DEFINE_string("command", COMMAND, "What every host runs; the workdir must be one directory for all.")
HOSTS = flags.DEFINE_integer("hosts", None, "Nodes with GPUs.", lower_bound=1)
DEVICES = flags.DEFINE_integer("devices", 8, "GPUs of a node.", lower_bound=1)
TOPOLOGY = flags.DEFINE_string("topology", None, "Chips of a TPU slice along each axis, such as 4x4x4.")
ACCELERATOR = flags.DEFINE_string("accelerator", None, "As the cloud names it.")
VERSION = flags.DEFINE_string("version", None, "Of the TPU VMs' software.")
ZONE = flags.DEFINE_string("zone", None, "Of the TPU VMs.")
IMAGE = flags.DEFINE_string("image", None, "The container.")
VOLUME = flags.DEFINE_string("volume", None, "The shared directory: a volume claim (GKE), or HOST:/PATH of NFS.")
RESTARTS = flags.DEFINE_integer("restarts", 100, "Most starts after the first.", lower_bound=0)


def render(target: str, values: Mapping[str, object]) -> str:
    """The template of `target` with `values` for its @KEYS@; TPU hosts and chips are worked out from the topology.

    Raises UserError for a value that is missing, or that would change the meaning of the text around it.
    """
    values = {key: value for key, value in values.items() if value is not None}
    if "tpu" in target and "topology" not in values:
        raise UserError(f"--topology: needed for --target={target}; the chips along each axis, such as 4x4x4")
    if topology := values.get("topology"):
        if not re.fullmatch(r"\d+(x\d+){1,2}", str(topology)):
            raise UserError(f"--topology: expected such as 4x4x4, found {topology!r}")
        chips = math.prod(map(int, str(topology).split("x")))
        if chips % TPU_CHIPS:
            raise UserError(f"--topology: {topology} has {chips} chips, expected a multiple of {TPU_CHIPS}")
        values |= {"hosts": chips // TPU_CHIPS, "devices": TPU_CHIPS}
    for key, value in values.items():
        if key != "command" and not re.fullmatch(r"[\w.:/@-]+", str(value)):
            raise UserError(f"--{key}: expected letters, digits and . : / @ - _, found {value!r}")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", str(values["name"])):
        raise UserError(f"--name: expected small letters, digits and -, found {values['name']!r}")
    if forbidden := set(str(values["command"])) & set("'\"\\\n`$"):
        found = " ".join(sorted(forbidden))
        raise UserError(f"--command: expected neither quotes nor $ ` \\, found {found!r}; put such into a config file")

    def value_of(key: re.Match) -> str:
        if key[1].lower() not in values:
            help_text = flags.FLAGS[key[1].lower()].help
            raise UserError(f"--{key[1].lower()}: needed for --target={target} ({help_text})")
        return str(values[key[1].lower()])

    template = Path(__file__).with_name(TARGETS[target]).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", value_of, template)


def main(_: list[str]) -> None:
    """Prints the file."""
    flag_of = dict(name=NAME, command=RUN, hosts=HOSTS, devices=DEVICES, topology=TOPOLOGY, accelerator=ACCELERATOR)
    flag_of |= dict(version=VERSION, zone=ZONE, image=IMAGE, volume=VOLUME, restarts=RESTARTS)
    print(render(TARGET.value, {key: flag.value for key, flag in flag_of.items()}), end="")


if __name__ == "__main__":
    cli.run(main)

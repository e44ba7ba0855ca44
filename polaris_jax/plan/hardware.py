"""Devices to plan for, and what they cost an hour."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polaris_jax.errors import UserError

PRICES = Path(__file__).with_name("prices.toml")
USABLE = 0.92  # of a device's memory; the rest is for the driver, collectives and fragmentation. Ours


@dataclass(frozen=True)
class Hardware:
    """One device, as its maker's data sheet has it.

    platform: "gpu" or "tpu". flops: dense matrix products a second, by compute dtype. memory: bytes. bandwidth: of the
    memory, bytes/s. machine: devices of one host. link, network: bytes/s that a device sends to others of its host, and
    of other hosts. host: bytes/s between a device and its host's memory, one way.
    """

    platform: str
    flops: Mapping[str, float]
    memory: float
    bandwidth: float
    machine: int
    link: float
    network: float
    host: float = 16e9


def _gpu(tera: float, tf32: float, gib: float, bandwidth: float, link: float, network: float, host: float) -> Hardware:
    flops = {"bfloat16": tera * 1e12, "float16": tera * 1e12, "float32": tf32 * 1e12}
    return Hardware("gpu", flops, gib * 2**30, bandwidth, 8, link, network, host)


def _tpu(tera: float, gib: float, bandwidth: float, link: float) -> Hardware:
    """A chip, which is one JAX device. float32 operands are multiplied in one bfloat16 pass, JAX's default there."""
    flops = {"bfloat16": tera * 1e12, "float32": tera * 1e12}
    return Hardware("tpu", flops, gib * 2**30, bandwidth, 4, link, link)


# GPUs: NVIDIA's data sheets, of the SXM cards where there are some; float32 is TF32, JAX's default there; memory as
# nvidia-smi shows it; NVLink one way, of the cards of 24 and 48 GB (rtx4090, l40s) PCIe 4; one 400 Gbit/s network card
# a GPU (200 for the A100, 100 for those two); PCIe one way, 16 lanes of generation 5 (of the A100 and those two: 4).
# TPUs: cloud.google.com/tpu/docs/{v5e,v5p,v6e}; memory as the compiler grants it; all links of a chip together, one
# way; machines of four chips, as in larger slices; the way to the host is not published, 16 lanes of PCIe of
# generation 3 are assumed.
HARDWARE = {
    "rtx4090": _gpu(165, 83, 24.0, 1.008e12, 32e9, 12.5e9, 32e9),
    "l40s": _gpu(362, 183, 45.0, 0.864e12, 32e9, 12.5e9, 32e9),
    "a100": _gpu(312, 156, 80.0, 2.04e12, 300e9, 25e9, 32e9),
    "h800": _gpu(989, 495, 79.6, 3.35e12, 200e9, 50e9, 64e9),
    "h100": _gpu(989, 495, 79.6, 3.35e12, 450e9, 50e9, 64e9),
    "h200": _gpu(989, 495, 140.4, 4.8e12, 450e9, 50e9, 64e9),
    "b200": _gpu(2250, 1125, 179.0, 8.0e12, 900e9, 50e9, 64e9),
    "v5e": _tpu(197, 15.75, 819e9, 200e9),
    "v5p": _tpu(459, 95.0, 2.765e12, 600e9),
    "v6e": _tpu(918, 31.25, 1.64e12, 400e9),
}


@dataclass(frozen=True)
class Topology:
    """So many devices of one kind. name: as given, such as "v5p:4x4x4"."""

    name: str
    kind: str
    devices: int

    @property
    def hardware(self) -> Hardware:
        return HARDWARE[self.kind]

    @property
    def usable(self) -> float:
        """Bytes of each device that a program may fill."""
        return self.hardware.memory * USABLE


def parse_topology(text: str) -> Topology:
    """The topology that "h100:32", "h100:4x8" or "v5p:4x4x4" names. Raises UserError for anything else."""
    kind, _, shape = text.partition(":")
    if kind not in HARDWARE:
        raise UserError(f"--topology: {text!r}: expected one of {', '.join(HARDWARE)}, a colon and a number of devices")
    sizes = shape.split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UserError(f"--topology: {text!r}: expected a number of devices such as 8 or 2x4 after the colon")
    return Topology(text, kind, math.prod(map(int, sizes)))


@dataclass(frozen=True)
class Price:
    """usd: list price of a device for an hour. source, date: where and when."""

    usd: float
    source: str
    date: str


def load_price(kind: str, path: str | Path = PRICES) -> Price | None:
    """The price of one kind of device in a price file, None where the file has none.

    Raises UserError, naming file and key, for a file that cannot be read or an entry without usd, source and date.
    """
    try:
        prices = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: not readable as toml: {error}") from error
    entry = prices.get(kind)
    if entry is None:
        return None
    expected = {"usd": (int, float), "source": str, "date": str}
    if not isinstance(entry, dict) or entry.keys() != expected.keys():
        raise UserError(f"{path}: {kind}: expected the keys {', '.join(expected)}, found {entry!r}")
    for key, types in expected.items():
        if not isinstance(entry[key], types) or isinstance(entry[key], bool):
            raise UserError(
                f"{path}: {kind}.{key}: expected a {'number' if key == 'usd' else 'string'}, found {entry[key]!r}"
            )
    if entry["usd"] < 0:
        raise UserError(f"{path}: {kind}.usd: expected at least 0, found {entry['usd']}")
    return Price(**entry)

"""What a compiled program, or a step of its loop, reads from and writes to the device's memory, reckoned from its text.

XLA's own analysis counts the whole page pool for each call of a kernel that reads some pages of it, and nothing of what
a kernel is. So each instruction is counted: its operands and its results, except that

- a fusion that slices or gathers an operand, or updates a part of it in place, moves that part;
- a kernel moves of some operands the share that the caller names: none of the page pool, whose filled pages the caller
  adds, and of the new tokens those that there are;
- what lies in a TPU's vector memory, S(1), is not in the device's memory, and a copy to there is read once.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

SIZES = {"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "s16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"}
PARTS = {"dynamic-slice", "slice", "gather"}


class Instruction(NamedTuple):
    """result: its type. given: what stands in parentheses. operands: the names there. rest: what follows them."""

    name: str
    result: str
    op: str
    given: str
    operands: list[str]
    rest: str


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation, by its name."""
    found, current = {}, None
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = found.setdefault(head[1], [])
        elif current is not None and " = " in line:
            current.append(parse(line))
    return found


def parse(line: str) -> Instruction:
    """One line: %name = TYPE op(%a, %b), rest."""
    name, right = line.strip().removeprefix("ROOT ").split(" = ", 1)
    end = closing(right, 0) if right.startswith("(") else re.match(r"\S+", right).end()
    op = re.match(r" *([\w\-]+)\(", right[end:])
    start = end + op.end() - 1
    close = closing(right, start)
    given = right[start + 1 : close - 1]
    return Instruction(name.lstrip("%"), right[:end], op[1], given, re.findall(r"%([\w.\-]+)", given), right[close:])


def closing(text: str, start: int) -> int:
    """Behind the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    raise ValueError(text[start : start + 80])


def size(kind: str) -> int:
    """Bytes of a type in the device's memory."""
    arrays = (m for m in ARRAY.finditer(kind) if "S(1)" not in (m[3] or "") and m[1] in SIZES)
    return sum(SIZES[m[1]] * math.prod(int(n) for n in m[2].split(",") if n) for m in arrays)


def loop_body(text: str) -> list[Instruction]:
    """The instructions of the decoding loop, which is the one with the most of them."""
    found = computations(text)
    bodies = re.findall(r"body=%?([\w.\-]+)", text)
    return max((found[name] for name in bodies), key=len)


def entry(text: str) -> list[Instruction]:
    """The instructions of the program outside of its loops and branches."""
    return computations(text)[re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)[1]]


def bytes_moved(text: str, body: list[Instruction], shares: dict[str, float]) -> dict[str, float]:
    """Bytes that each instruction of `body` moves; a loop or a branch counts as one that moves its operands and its
    result. shares: what kernels read of operands, by how their types begin, such as "bf16[6,99,"."""
    found = computations(text)
    types = {instruction.name: instruction.result for instruction in body}
    return {i.name: moved(i, types, found, shares) for i in body if i.op not in NOTHING and not i.op.endswith("-done")}


def moved(i: Instruction, types: dict, found: dict, shares: dict[str, float]) -> float:
    """Bytes that one instruction moves."""
    operands = [types.get(name, "") for name in i.operands]
    if i.op == "copy-start":  # its result has both ends
        return size(i.result)
    if i.op == "dynamic-update-slice":
        return 2 * size(operands[1])
    if i.op in PARTS:
        return 2 * size(i.result)
    if i.op == "fusion":
        return fused(i, operands, found[re.search(r"calls=%?([\w.\-]+)", i.rest)[1]])
    read = (size(kind) * next((n for kind_, n in shares.items() if kind.startswith(kind_)), 1) for kind in operands)
    return sum(read) + size(i.result)


def fused(i: Instruction, operands: list[str], inside: list[Instruction]) -> int:
    """Of a fusion: whole operands and results, or the parts of them that it uses."""
    kinds = {x.name: x.result for x in inside}
    parameters = {int(x.given): x.name for x in inside if x.op == "parameter"}
    total = size(i.result)
    for number, kind in enumerate(operands):
        if size(kind) == 0:  # in vector memory
            continue
        uses = list(users(parameters[number], inside))
        if all(x.op in PARTS and x.operands[0] == name for x, name in uses):
            shares = (size(x.result) / size(kinds[name]) if x.op == "slice" else 0 for x, name in uses)
            gathered = sum(size(x.result) for x, _ in uses if x.op != "slice")
            total += int(min(sum(shares) * size(kind) + gathered, size(kind)))
        elif all(x.op == "dynamic-update-slice" and x.operands[0] == name for x, name in uses):
            total += sum(2 * size(kinds[x.operands[1]]) for x, _ in uses) - size(kind)  # the rest stays where it is
        else:
            total += size(kind)
    return total


def users(name: str, inside: list[Instruction]):
    """The instructions that use a value, and the name by which they do: that of what was made of it element by element,
    or by adding up the parts of a product."""
    for x in inside:
        if x.op in ("bitcast", "convert", "reduce") and name == x.operands[0]:
            yield from users(x.name, inside)
        elif name in x.operands:
            yield x, name

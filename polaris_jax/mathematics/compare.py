"""Whether two answers that were read into trees are the same answer. The first is the ground truth."""

from collections.abc import Callable

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics import progressions, qualifiers, relations
from polaris_jax.mathematics.arithmetic import NotANumber, TooLarge
from polaris_jax.mathematics.intervals import INEQUALITIES, NoRealSet, infinity, real_set, same_set, variable
from polaris_jax.mathematics.matrices import as_column, brackets, components, multiplied_out
from polaris_jax.mathematics.numeric import same_value
from polaris_jax.mathematics.units import factor_between

MAX_ITEMS = 400


def same_answer(gold: n.Node, box: n.Node) -> bool:
    """Whether the box is right where the gold is: every solution, no other, each once."""
    gold, box = qualifiers.from_builder(_elements(gold)), qualifiers.from_builder(_elements(box))
    if isinstance(gold, n.Qualified) or isinstance(box, n.Qualified):
        return any(same_answer(first, second) for first, second in qualifiers.bodies(gold, box))
    return any(rule(gold, box) for rule in (_same_lists, _same_assignments, _same_sets))


def _elements(node: n.Node) -> n.Node:
    """The finite set of x in {1, 2}; any other tree as it is."""
    if isinstance(node, n.Relation) and node.ops == ("in",) and relations.is_variable(node.sides[0]):
        values = node.sides[1]
        if isinstance(values, n.Seq) and values.left == "set":
            return values
    return node


# lists


def _is_list(node: n.Node) -> bool:
    return isinstance(node, n.Seq) and node.left in ("", "set")


def _solutions(node: n.Node) -> list[n.Node]:
    items = node.items if _is_list(node) and n.Const("empty") not in node.items else (node,)
    return [signed for item in items for signed in n.both_signs(item)]


def _same_lists(gold: n.Node, box: n.Node) -> bool:
    golds, boxes = _solutions(gold), _solutions(box)
    if len(golds) == len(boxes) == 1:
        return same_item(golds[0], boxes[0])
    if len(golds) > 1 and relations.assignments(gold) is not None:
        return False  # the names say which value is whose
    if max(len(golds), len(boxes)) > MAX_ITEMS:
        return False
    if (same := progressions.same_progression(tuple(golds), tuple(boxes))) is not None:
        return same
    if any(isinstance(node, n.Seq) and node.left == "set" for node in (gold, box)):
        golds, boxes = _distinct(golds), _distinct(boxes)
    return len(golds) == len(boxes) and _matched(golds, boxes)


def _distinct(items: list[n.Node]) -> list[n.Node]:
    kept: list[n.Node] = []
    for item in items:
        if not any(same_item(other, item) for other in kept):
            kept.append(item)
    return kept


def _matched(golds: list[n.Node], boxes: list[n.Node]) -> bool:
    """Whether each gold finds a box of its own."""
    left = list(boxes)
    for gold in golds:
        found = next((i for i, box in enumerate(left) if _same_member(gold, box)), None)
        if found is None:
            return False
        left.pop(found)
    return True


def _same_member(gold: n.Node, box: n.Node) -> bool:
    return (
        same_answer(gold, box)
        if _is_list(gold) or _is_list(box)
        else same_item(gold, box) or _same_assignments(gold, box)
    )


# assignments to several names


def _same_assignments(gold: n.Node, box: n.Node) -> bool:
    """Values by name, or, where one side names none, in the order of writing."""
    golds, boxes = relations.assignments(gold), relations.assignments(box)
    if golds is None and boxes is None:
        return False
    if golds is not None and boxes is not None:
        return golds.keys() == boxes.keys() and all(same_item(golds[name], boxes[name]) for name in golds)
    plain = box if boxes is None else gold
    if not isinstance(plain, n.Seq) or plain.left not in ("(", "") or (golds is None and not plain.left):
        return False
    if any(isinstance(item, n.Relation) for item in plain.items):
        return False  # other names
    first = list(golds.values()) if golds is not None else plain.items
    second = list(boxes.values()) if boxes is not None else plain.items
    return _pairwise(first, second)


def _pairwise(golds: list[n.Node] | tuple[n.Node, ...], boxes: list[n.Node] | tuple[n.Node, ...]) -> bool:
    return len(golds) == len(boxes) and all(same_item(gold, box) for gold, box in zip(golds, boxes, strict=True))


# sets of real numbers


def _is_set(node: n.Node) -> bool:
    """Whether a tree can only mean a set of numbers, unlike (1, 2), which may be a point."""
    if isinstance(node, n.Relation):
        return bool(set(node.ops) & (INEQUALITIES | {"in"}))
    if isinstance(node, n.Seq):
        if node.left in ("(", "["):
            return (node.left, node.right) in (("(", "]"), ("[", ")")) or any(map(infinity, node.items))
        return node.left == "" and any(map(_is_set, node.items))
    return isinstance(node, (n.SetOp, n.Builder)) or (isinstance(node, n.Const) and node.name in ("R", "R+", "empty"))


def _same_sets(gold: n.Node, box: n.Node) -> bool:
    if not (_is_set(gold) or _is_set(box)):
        return False
    names = {variable(node) for node in (gold, box) if not isinstance(node, n.Builder)} - {None}
    if len(names) > 1:
        return False
    try:
        return same_set(real_set(gold), real_set(box))
    except NoRealSet:
        return False


# single answers


def same_item(gold: n.Node, box: n.Node) -> bool:
    """Whether two answers that are no bare lists are the same."""
    if isinstance(gold, n.Relation) or isinstance(box, n.Relation):
        return _same_relation_or_side(gold, box)
    if isinstance(gold, n.Words) or isinstance(box, n.Words):
        return False  # prose is compared as text
    gold, box = multiplied_out(gold), multiplied_out(box)
    for kinds, rule in _RULES:
        if isinstance(gold, kinds) or isinstance(box, kinds):
            return rule(gold, box)
    return _same_number(gold, box)


def _same_number(gold: n.Node, box: n.Node) -> bool:
    if infinity(gold) or infinity(box):
        return infinity(gold) == infinity(box)
    if isinstance(gold, n.Const) and gold == box:
        return True
    degrees = n.contains(gold, n.Degree) != n.contains(box, n.Degree)
    try:
        if same_value(gold, box):
            return True
        return degrees and _has_pi(gold, box) and same_value(gold, box, degrees=True)
    except (NotANumber, TooLarge):
        return False


def _has_pi(*sides: n.Node) -> bool:
    return any(part == n.Const("pi") for side in sides for part in n.walk(side))


def _same_percent(gold: n.Node, box: n.Node) -> bool:
    """62.5% is also answered by 62.5; other golds take a percentage by its value."""
    if isinstance(gold, n.Percent) and not n.contains(box, n.Percent) and same_item(gold.body, box):
        return True
    return _same_number(gold, box)


def _same_quantity(gold: n.Node, box: n.Node) -> bool:
    """A unit may be left out, but where both name known units the values must be equal in the same unit."""
    factor = 1
    gold, box = (n.Quantity(node.body, "degree") if isinstance(node, n.Degree) else node for node in (gold, box))
    if isinstance(gold, n.Quantity) and isinstance(box, n.Quantity):
        factor = factor_between(gold.unit, box.unit)
        if factor is None:
            return False
    gold, box = (node.body if isinstance(node, n.Quantity) else node for node in (gold, box))
    return same_item(gold, box if factor == 1 else n.Call("mul", (n.Num(factor), box)))


def _same_ratio(gold: n.Node, box: n.Node) -> bool:
    """Ratios are equal up to a factor; a:b is also the number a/b."""
    if isinstance(gold, n.Ratio) and isinstance(box, n.Ratio):
        return len(gold.parts) == len(box.parts) and all(
            _same_number(n.Ratio((gold.parts[0], p)), n.Ratio((box.parts[0], q)))
            for p, q in zip(gold.parts[1:], box.parts[1:], strict=True)
        )
    return _same_number(gold, box)


def _same_sequence(gold: n.Node, box: n.Node) -> bool:
    """Tuples, intervals, vectors and matrices: the same parts in the same order, the same kind of ends."""
    gold, box = as_column(gold), as_column(box)
    if isinstance(gold, n.Matrix) and isinstance(box, n.Matrix):
        return len(gold.rows) == len(box.rows) and all(map(_pairwise, gold.rows, box.rows))
    if _is_list(gold) and _is_list(box):
        return _same_lists(gold, box)
    if isinstance(gold, n.Seq) and isinstance(box, n.Seq) and (gold.left, gold.right) == (box.left, box.right):
        same = progressions.same_progression(gold.items, box.items)
        if same is not None:
            return same
    if brackets(gold) is None or brackets(gold) != brackets(box):
        return False
    return _pairwise(components(gold), components(box))


def _same_set_item(gold: n.Node, box: n.Node) -> bool:
    if gold == box:
        return True
    if isinstance(gold, n.SetOp) and isinstance(box, n.SetOp) and gold.op == box.op:
        pairs = [(box.left, box.right)] + ([(box.right, box.left)] if gold.op != "minus" else [])
        if any(same_item(gold.left, left) and same_item(gold.right, right) for left, right in pairs):
            return True
    if isinstance(gold, n.Builder) and isinstance(box, n.Builder):
        return (same_item(gold.head, box.head) and same_answer(gold.condition, box.condition)) or _same_sets(gold, box)
    return _same_sets(gold, box)


_RULES: list[tuple[tuple[type, ...], Callable[[n.Node, n.Node], bool]]] = [
    ((n.Quantity,), _same_quantity),
    ((n.SetOp, n.Builder), _same_set_item),
    ((n.Seq, n.Matrix), _same_sequence),
    ((n.Ratio,), _same_ratio),
    ((n.Percent,), _same_percent),
]


# relations


def _same_relation_or_side(gold: n.Node, box: n.Node) -> bool:
    if isinstance(gold, n.Relation) and isinstance(box, n.Relation):
        return _same_relation(gold, box)
    member = relations.member_of(gold) or relations.member_of(box)
    if member:
        return same_item(member, box) if isinstance(gold, n.Relation) else same_item(gold, member)
    if isinstance(gold, n.Relation):
        pair = relations.assigned(gold) or _chained(gold)
        return bool(pair) and same_answer(pair[1], box)
    sides = relations.answered(box)
    if not sides or not all(same_answer(side, sides[-1]) for side in sides[:-1]):
        return False
    return same_answer(gold, sides[-1])


def _chained(gold: n.Relation) -> tuple[n.Node, n.Node] | None:
    """Name and value of x = 2+3 = 5."""
    if not relations.is_equation(gold) or len(gold.sides) < 3 or not relations.is_named(gold.sides[0]):
        return None
    value = gold.sides[-1]
    between = (side for side in gold.sides[1:-1] if relations.is_variable(side) or not relations.is_named(side))
    return (gold.sides[0], value) if all(same_item(side, value) for side in between) else None


def _same_relation(gold: n.Relation, box: n.Relation) -> bool:
    if relations.is_equation(gold) and relations.is_equation(box):
        return _same_equation(gold, box)
    if _same_sets(gold, box) or relations.same_inequality(gold, box):
        return True
    return any(
        gold_order.ops == box_order.ops and _pairwise_answers(gold_order.sides, box_order.sides)
        for gold_order in relations.orders(gold)[:1]
        for box_order in relations.orders(box)
    )


def _pairwise_answers(golds: tuple[n.Node, ...], boxes: tuple[n.Node, ...]) -> bool:
    return len(golds) == len(boxes) and all(same_answer(gold, box) for gold, box in zip(golds, boxes, strict=True))


def _same_equation(gold: n.Relation, box: n.Relation) -> bool:
    first = relations.assigned(gold) or _chained(gold)
    second = relations.assigned(box) or _chained(box)
    if first and second:
        value = relations.renamed(second[0], second[1], first[0])
        if value is not None and same_answer(first[1], value):
            return True
        if isinstance(first[0], n.Seq):
            return _same_assignments(gold, box)
    return relations.same_equation(gold, box) or any(
        _pairwise_answers(gold.sides, order.sides) for order in _both_ways(box)
    )


def _both_ways(node: n.Relation) -> list[n.Relation]:
    return [node, n.Relation(node.ops[::-1], node.sides[::-1])]

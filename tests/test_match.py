"""Which module is which: random edits of random trees are explained by the rows alone, and the same both ways round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from summarycb import Comparison, ModelSummary, compare
from summarycb.changes import Change
from summarycb.specs import BufferSpec, ParameterSpec
from summarycb.tree import ModuleSummary, Work
from tests.literal import SUMMARY, group, tensor, weight
from tests.test_compare import assert_closes

CASES = settings(max_examples=300, deadline=None, derandomize=True)
MIRRORED = {"added": "removed", "removed": "added", "wrapped": "unwrapped", "unwrapped": "wrapped"}
LISTS = ("ModuleList", "Sequential")


@dataclass(eq=False)
class Node:
    """A module that can be edited: of a leaf ``sizes`` are its input's and its output's.

    One that is ``shared`` has its place elsewhere, of one that is ``tied`` the weight is another's; where it is not
    ``known`` what a module did, no figure of it is.
    """

    type_name: str
    name: str = ""
    sizes: tuple[int, int] | None = None
    children: list[Node] = field(default_factory=list)
    trainable: bool = True
    training: bool = True
    dtype: str = "float32"
    mean: int = 0
    shared: bool = False
    tied: bool = False
    known: bool = True

    def walk(self) -> list[Node]:
        return [self, *[node for child in self.children for node in child.walk()]]

    def summary(self, path: str = "") -> ModuleSummary:
        if self.shared:
            return ModuleSummary(path, self.name, self.type_name, call_groups=(), shared_with="x")
        parameters: tuple[ParameterSpec, ...] = ()
        if self.sizes is not None:
            held = weight(
                "weight", *self.sizes, trainable=self.trainable, shared_with="x.weight" if self.tied else None
            )
            parameters = (replace(held, dtype=self.dtype),)
        mean = BufferSpec("mean", (self.mean,), self.dtype, "cpu", True, 4 * self.mean)
        macs = 0 if self.sizes is None else self.sizes[0] * self.sizes[1]
        counted = self.type_name in LISTS
        children = []
        for number, child in enumerate(self.children):
            child.name = str(number) if counted else child.name
            children.append(child.summary(f"{path}.{child.name}".removeprefix(".")))
        return ModuleSummary(
            path,
            self.name if path else "",
            self.type_name,
            config="" if self.sizes is None else f"in={self.sizes[0]}, out={self.sizes[1]}",
            training=self.training,
            parameters=parameters,
            buffers=(mean,) if self.mean else (),
            call_groups=(group(1, (tensor(2),), tensor(2), Work(macs, 2 * macs, 0, macs, 0)),) if self.known else None,
            children=tuple(children),
        )


def grown(random: Random, depth: int = 3) -> Node:
    if depth == 0 or random.random() < 0.3:
        if random.random() < 0.2:
            return Node(random.choice(("ReLU", "GELU")))
        sizes = random.choice((2, 3)), random.choice((2, 3, 5))
        return Node(random.choice(("Linear", "Conv")), sizes=sizes, mean=random.choice((0, 0, 0, 7)))
    if random.random() < 0.4:
        made = Node(random.choice(LISTS))
        one = grown(random, depth - 1)
        made.children = [copied(one) if random.random() < 0.7 else grown(random, depth - 1) for _ in range(5)]
        return made
    made = Node(random.choice(("Block", "Layer", "ModuleDict")))
    for name in random.sample("45678" if made.type_name == "ModuleDict" else "abcdefg", random.randint(1, 4)):
        made.children.append(named(grown(random, depth - 1), name))
    return made


def named(node: Node, name: str) -> Node:
    node.name = name
    return node


def copied(node: Node) -> Node:
    return replace(node, children=[copied(child) for child in node.children])


def edit(root: Node, random: Random) -> Node:
    """Something that is done to models, somewhere, and the model's root then."""
    parents = {child: node for node in root.walk() for child in node.children}
    if not parents or random.random() < 0.03:
        return Node("Wrapper", children=[named(root, "model")])
    node = random.choice(list(parents))
    parent = parents[node]
    at = parent.children.index(node)

    def put(new: Node, into: Node, place: int) -> None:
        taken = {child.name for child in into.children}
        new.name = next(name for name in (new.name, *"hijklmnopqrstuvwxyz") if name not in taken and name)
        into.children.insert(place, new)

    def move() -> None:
        inside = set(node.walk())
        parent.children.remove(node)
        put(node, random.choice([n for n in root.walk() if n not in inside and n.sizes is None]), 0)

    def unwrap() -> None:
        if node.children:
            parent.children[at : at + 1] = [named(node.children[0], node.name)]

    def wrap() -> None:
        lora = Node("Linear", "lora", (2, 2))
        parent.children[at] = Node("Lora", node.name, children=[named(node, "base"), lora])

    def swap() -> None:
        other = random.randrange(len(parent.children))
        parent.children[at], parent.children[other] = parent.children[other], node

    def resize() -> None:
        if node.sizes is not None:
            node.sizes = (node.sizes[0], node.sizes[1] + 1)

    def turn() -> None:
        for each in node.walk():
            each.training = False

    def freeze() -> None:
        for each in node.walk():
            each.trainable = False

    def cast() -> None:
        for each in node.walk():
            each.dtype = "bfloat16"

    def shuffle() -> None:
        random.shuffle(parent.children)

    def share() -> None:
        if node.sizes is not None:
            node.shared = not node.shared

    def tie() -> None:
        if node.sizes is not None:
            node.tied = not node.tied

    def forget() -> None:
        node.known = False

    doings: Sequence[Callable[[], object]] = (
        lambda: parent.children.remove(node),
        lambda: put(grown(random, 2), parent, at),
        lambda: put(copied(node), parent, at),
        lambda: named(node, random.choice("tuvw")) if not any(c.name in "tuvw" for c in parent.children) else None,
        lambda: setattr(node, "type_name", random.choice(LISTS if node.type_name in LISTS else ("Block", "Other"))),
        move, unwrap, wrap, swap, resize, turn, freeze, cast, shuffle, share, tie, forget,
    )  # fmt: skip
    random.choice(doings)()
    return root


def pair(random: Random) -> tuple[ModelSummary, ModelSummary]:
    root = Node("Net", children=[named(grown(random), name) for name in "xyz"])
    a = replace(SUMMARY, root=root.summary())
    for _ in range(random.randint(1, 4)):
        root = edit(root, random)
    return a, replace(SUMMARY, root=root.summary())


def itself(module: ModuleSummary) -> tuple[object, ...]:
    held = tuple([replace(p, shared_with=p.shared_with and "another") for p in module.parameters])
    return module.type_name, module.config, held, module.buffers, module.training, module.shared_with is not None


def structure(root: ModuleSummary) -> dict[str, tuple[object, ...]]:
    return {module.path: itself(module) for module in root.walk()}


def apply(a: ModuleSummary, rows: Sequence[Change]) -> dict[str, tuple[object, ...]]:
    """What ``a`` is with the rows' edits: its modules by path, each without its children.

    A module that is added, or has gone elsewhere or under another name, has the path that its edit tells; every other
    is where it was, in what it was in. What is left of a list's children takes the numbers that are left, in order.
    """
    gone: set[int] = set()
    now: dict[int, ModuleSummary] = {}
    told: dict[int, str] = {}
    made: dict[str, tuple[object, ...]] = {}
    for change in rows:
        for one in change.edits:
            if one.path == "(outside)":
                continue
            if one.a is None or one.b is None:
                gone |= set(map(id, one.modules_a))
                made |= {module.path: itself(module) for module in one.modules_b}
                continue
            if change.kind in ("wrapped", "unwrapped"):
                now[id(one.a)] = one.b
                gone |= set(map(id, one.modules_a[1:]))
                made |= {module.path: itself(module) for module in one.modules_b[1:]}
            else:
                now |= {id(x): y for x, y in zip(one.modules_a, one.modules_b, strict=True)}
            if change.before is not None:
                told[id(one.a)] = one.b.path
    found = dict(made)
    taken = {*made, *told.values()}
    stack: list[tuple[ModuleSummary, str | None]] = [(a, "")]
    while stack:
        module, path = stack.pop()
        path = told.get(id(module), path)
        if id(module) not in gone:
            assert path is not None, f"{module.path} is within something that is gone"
            assert path not in found, f"{path} is there twice"
            found[path] = itself(now.get(id(module), module))
        counted = [child.name for child in module.children] == [str(n) for n in range(len(module.children))]
        counted = counted and now.get(id(module), module).type_name in LISTS  # the numbers of a dict are names
        number = 0
        for child in module.children:
            to: str | None = None
            if id(module) not in gone and id(child) not in gone and id(child) not in told:
                to = f"{path}.{child.name}".removeprefix(".")
                if counted:
                    while (to := f"{path}.{number}".removeprefix(".")) in taken:
                        number += 1
                    number += 1
            stack.append((child, to))
    return found


def mirrored(comparison: Comparison, *, back: bool) -> Counter[frozenset[tuple[object, ...]]]:
    """Each row as its edits; of the way back they are turned round."""
    return Counter(
        frozenset(
            (
                MIRRORED.get(one.kind, one.kind) if back else one.kind,
                *[None if module is None else module.path for module in ((one.b, one.a) if back else (one.a, one.b))],
                *[-(f.delta or 0) if back else f.delta or 0 for f in one.figures.values()],
            )
            for one in row.edits
        )
        for row in comparison.rows
    )


def listed(type_name: str, **children: Node) -> ModelSummary:
    """A model of one list, or of modules by their names."""
    inner = Node(type_name, "h", children=[named(copied(node), name.lstrip("n")) for name, node in children.items()])
    return replace(SUMMARY, root=Node("Net", children=[inner]).summary())


CONV = Node("Conv", sizes=(3, 3))
ONE, TWO, THREE = (Node("Linear", sizes=(2, size)) for size in (2, 3, 5))


@pytest.mark.parametrize(
    ("a", "b", "rows"),
    [
        # of the two that changed places one has moved: it is no longer in order with the others
        (
            listed("Sequential", n0=ONE, n1=CONV, n2=THREE),
            listed("Sequential", n0=CONV, n1=ONE, n2=THREE),
            [("moved", "h.1", "h.0")],
        ),
        # equal ones in another order have moved, rather than all become as wide as what was there
        (
            listed("Sequential", n0=ONE, n1=TWO, n2=THREE),
            listed("Sequential", n0=THREE, n1=TWO, n2=ONE),
            [("moved", "h.2", "h.0"), ("moved", "h.0", "h.2")],
        ),
        # what follows is as wide as what was there before: it was made wider, and is not the one from elsewhere
        (
            listed("Sequential", n0=ONE, n1=TWO, n2=ONE),
            listed("Sequential", n0=TWO, n1=ONE, n2=TWO),
            [("resized", f"h.{n}", f"h.{n}") for n in (0, 2, 1)],
        ),
        # names say nothing of an order: what is under the same name is the same, wherever it is defined
        (listed("ModuleDict", a=ONE, b=TWO), listed("ModuleDict", b=TWO, a=ONE), []),
        # a list's number is a place: what comes after one that is removed is what it was
        (
            listed("Sequential", n0=ONE, n1=TWO, n2=THREE),
            listed("Sequential", n0=TWO, n1=THREE),
            [("removed", "h.0", None)],
        ),
        # a dict's number is a name, also where it is equal to its neighbours
        (
            listed("ModuleDict", n4=ONE, n5=ONE, n6=ONE),
            listed("ModuleDict", n4=ONE, n6=ONE),
            [("removed", "h.5", None)],
        ),
        (listed("ModuleDict", n4=ONE, n5=TWO), listed("ModuleDict", n4=ONE, n7=TWO), [("renamed", "h.5", "h.7")]),
    ],
)
def test_numbers_are_places_in_a_list_and_names_in_a_dict(
    a: ModelSummary, b: ModelSummary, rows: list[tuple[str, str | None, str | None]]
) -> None:
    found = [
        (one.kind, None if one.a is None else one.a.path, None if one.b is None else one.b.path)
        for row in compare(a, b).rows
        for one in row.edits
    ]
    assert found == rows


def test_a_layer_deep_in_what_is_called_otherwise_is_not_taken_for_one_at_the_top() -> None:
    """BERT -> DistilBERT: each projection is still in its block, though the new layer at the top is as large as one."""

    def model(body: str, attention: Node, *top: Node) -> ModelSummary:
        block = Node("Block", children=[attention, Node("Linear", "fc", (2, 7))])
        inside = Node(
            body, body, children=[Node("Embedding", "words", (9, 2)), Node("ModuleList", "h", children=[block])]
        )
        return replace(SUMMARY, root=Node("Net", children=[inside, *top]).summary())

    def linears(*names: str) -> list[Node]:
        return [Node("Linear", name, (2, 2)) for name in names]

    a = model("Bert", Node("Attention", "att", children=[Node("Self", "self", children=linears("query", "key"))]))
    b = model("Distil", Node("Attention", "att", children=linears("q_lin", "k_lin")), *linears("pre"))
    paths = {edit.b.path: edit.a and edit.a.path for row in compare(a, b).rows for edit in row.edits if edit.b}
    assert paths == {
        "Distil": "Bert",
        "Distil.h.0.att.q_lin": "Bert.h.0.att.self.query",
        "Distil.h.0.att.k_lin": "Bert.h.0.att.self.key",
        "pre": None,
    }


@CASES
@given(st.integers(0, 2**32))
@example(4697)  # a part of what is equal throughout has moved before
@example(101571)  # a list becomes a dict, in which numbers are names
def test_a_chain_of_edits_is_explained_completely(seed: int) -> None:
    """What the rows tell, done to ``a``, makes ``b``; and their figures make the difference of the totals."""
    a, b = pair(Random(seed))
    comparison = compare(a, b)
    assert apply(a.root, comparison.rows) == structure(b.root)
    assert_closes(comparison)


@CASES
@given(st.integers(0, 2**32))
def test_the_way_back_is_the_mirror(seed: int) -> None:
    a, b = pair(Random(seed))
    assert mirrored(compare(a, b), back=False) == mirrored(compare(b, a), back=True)


@CASES
@given(st.integers(0, 2**32))
def test_a_model_and_itself_differ_in_nothing(seed: int) -> None:
    _, b = pair(Random(seed))
    again = ModelSummary.from_json(b.to_json())
    assert compare(b, again).rows == ()
    assert compare(b, again).unchanged == len(b.modules)


@settings(CASES, max_examples=100)
@given(st.integers(0, 2**32))
def test_what_was_stored_is_compared_the_same(seed: int) -> None:
    a, b = pair(Random(seed))
    stored = [ModelSummary.from_json(summary.to_json()) for summary in (a, b)]
    assert compare(*stored).to_json() == compare(a, b).to_json()

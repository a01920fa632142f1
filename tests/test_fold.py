"""What repeats is one item: which siblings are equal in structure, and which are not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import pytest

from summarycb.fold import Item, fold, paths
from summarycb.specs import Spec, TensorSpec
from summarycb.tree import CallGroup, ModuleSummary, Work
from tests.literal import weight

Outline: TypeAlias = "str | tuple[str, *tuple[Outline, ...]]"


def module(path: str, kind: str = "Linear", *children: ModuleSummary, **given: object) -> ModuleSummary:
    name = path.rpartition(".")[2]
    return ModuleSummary(path, name, kind, children=children, **given)  # type: ignore[arg-type]


def row_of(kinds: Sequence[str], parent: str = "Sequential") -> ModuleSummary:
    return module("", parent, *[module(str(i), kind) for i, kind in enumerate(kinds)])


def outline(item: Item) -> Outline:
    """``"0-3 ×4"``, with the items below it where there are any."""
    label = item.label + (f" ×{item.times}" if item.times > 1 else "")
    return (label, *map(outline, item.children)) if item.children else label


def labels(root: ModuleSummary) -> tuple[Outline, ...]:
    return tuple(map(outline, fold(root).children))


@pytest.mark.parametrize(
    ("kinds", "shown"),
    [
        ("", ()),
        ("a", ("0",)),
        ("aa", ("0-1 ×2",)),
        ("aaab", ("0-2 ×3", "3")),
        ("abab", (("0-3 ×2", "0, 2", "1, 3"),)),
        ("xabcabcabc", ("0", ("1-9 ×3", "1, 4, …", "2, 5, …", "3, 6, …"))),
        ("aabb", ("0-1 ×2", "2-3 ×2")),
        # the first of three blocks differs in its first layer alone, which needs no gradient of its input
        ("xbcabcabc", ("0", "1", "2", ("3-8 ×2", "3, 6", "4, 7", "5, 8"))),
        # five local layers and a global one, as in Gemma 3: the whole sequence repeats, and in it the local layers
        ("aaaaabaaaaabaaa", (("0-11 ×2", "0-4, 6-10 ×5", "5, 11"), "12-14 ×3")),
        # three of a kind and then a sequence of four: what covers most
        ("aaabaaab", (("0-7 ×2", "0-2, 4-6 ×3", "3, 7"),)),
    ],
)
def test_neighbours_fold_and_of_several_sequences_that_which_covers_most(
    kinds: str, shown: tuple[Outline, ...]
) -> None:
    assert labels(row_of(kinds)) == shown


def test_an_item_has_every_module_that_it_stands_for_in_definition_order() -> None:
    stages = [
        module(f"{i}", "Stage", *[module(f"{i}.{j}", "Block", module(f"{i}.{j}.fc")) for j in range(2)])
        for i in range(3)
    ]
    (item,) = fold(module("", "Net", *stages)).children
    assert [copy.path for copy in item.copies] == ["0", "1", "2"]
    (block,) = item.children
    assert (block.label, block.times) == ("0-1", 2)
    assert [copy.path for copy in block.copies] == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]
    (fc,) = block.children
    assert (fc.label, fc.times) == ("fc", 1)
    assert [copy.path for copy in fc.copies] == [f"{i}.{j}.fc" for i in range(3) for j in range(2)]

    (sequence,) = fold(row_of("abababab")).children
    assert (sequence.copies, sequence.times) == ((), 4)
    assert [[copy.path for copy in child.copies] for child in sequence.children] == [list("0246"), list("1357")]
    pair = [module(f"h.{i}", "ab"[i % 2], module(f"h.{i}.fc", "cd"[i % 2])) for i in range(4)]
    stacked = module("", "Net", module("h", "ModuleList", *pair))
    # the sequence itself is in no module's path
    assert [path for _, path in paths([fold(stacked)])] == [
        "",
        "h",
        "h.0-3",
        "h.0, 2",
        "h.0, 2.fc",
        "h.1, 3",
        "h.1, 3.fc",
    ]


def test_every_module_is_in_one_item_and_without_folding_each_has_its_own() -> None:
    root = row_of("xaabaabcaa")
    for item in (fold(root), fold(root, enabled=False)):
        assert sorted(copy.path for part in item.walk() for copy in part.copies) == ["", *map(str, range(10))]
    assert [len(part.copies) for part in fold(root, enabled=False).walk()] == [1] * 11


def test_only_names_that_count_on_fold() -> None:
    assert labels(module("", "Net", *map(module, ("0", "2", "3", "5")))) == ("0", "2-3 ×2", "5")
    assert labels(module("", "Net", *map(module, ("q", "k", "v")))) == ("q", "k", "v")
    assert labels(module("", "Net", *map(module, ("00", "01", "9" * 5000, "²", "³")))) == (
        "00", "01", "9" * 5000, "²", "³",
    )  # fmt: skip
    # a container is called by its order; in a module of one's own, fc1 and fc2 may be anywhere
    numbered = [module(f"layer_{i}") for i in range(9, 12)]
    assert labels(module("", "Sequential", *numbered)) == ("layer_9-11 ×3",)
    assert labels(module("", "Net", *numbered)) == ("layer_9", "layer_10", "layer_11")


def tensor(*shape: int) -> TensorSpec:
    return TensorSpec(shape, "float32", "cpu")


def called(inputs: Spec, outputs: Spec, macs: int, saved: int = 0) -> tuple[CallGroup, ...]:
    work = Work(macs, 2 * macs, 0, saved, 0)
    return (CallGroup(1, inputs, outputs, work, work),)


PLAIN = module(
    "0",
    config="in_features=4",
    training=True,
    parameters=(weight("weight", 3, 4),),
    call_groups=called((tensor(2, 4),), tensor(2, 3), 24, saved=10),
)
OTHERS = {
    "the bytes that were measured": {
        "call_groups": called((tensor(2, 4),), tensor(2, 3), 24, saved=99),
        "parameters": (replace(weight("weight", 3, 4), gradient=7, optimizer_state=None),),
    },
    "the number of rows": {"call_groups": called((tensor(5, 4),), tensor(5, 3), 60)},
}
DIFFERENT = {
    "type": {"type_name": "Bilinear"},
    "settings": {"config": "in_features=5"},
    "mode": {"training": False},
    "a shape": {"parameters": (weight("weight", 4, 3),)},
    "a dtype": {"parameters": (replace(weight("weight", 3, 4), dtype="float16"),)},
    "a device": {"parameters": (replace(weight("weight", 3, 4), device="cuda:1"),)},
    "frozen": {"parameters": (weight("weight", 3, 4, trainable=False),)},
    "tied": {"parameters": (weight("weight", 3, 4, shared_with="elsewhere.weight"),)},
    "never called": {"call_groups": ()},
    "called twice": {"call_groups": called((tensor(2, 4),), tensor(2, 3), 24) * 2},
    "an output's shape": {"call_groups": called((tensor(2, 4),), tensor(2, 5), 24)},
    "an input's shape": {"call_groups": called((tensor(2, 4, 1),), tensor(2, 3), 24)},
    "MACs": {"call_groups": called((tensor(2, 4),), tensor(2, 3), 25)},
    "MACs for a row": {"call_groups": called((tensor(5, 4),), tensor(5, 3), 24)},
    "a module below": {"children": (module("1.x"),)},
    "a name below": {"children": (module("1.y", "ReLU"),)},
}


@pytest.mark.parametrize("difference", [*OTHERS, *DIFFERENT])
def test_a_copy_that_differs_stays_open_unless_only_what_was_measured_does(difference: str) -> None:
    given = (OTHERS | DIFFERENT)[difference]
    first = replace(PLAIN, children=(module("0.x", "ReLU"),)) if "below" in difference else PLAIN
    other = replace(replace(first, path="1", name="1"), **given)  # type: ignore[arg-type]
    items = fold(module("", "Sequential", first, other)).children
    assert [item.label for item in items] == (["0-1"] if difference in OTHERS else ["0", "1"])


def test_ties_count_by_where_they_lead() -> None:
    """Layers that tie two of their own weights are equal, and so are those that all have one from elsewhere."""

    def layer(i: int, tied_to: str) -> ModuleSummary:
        a = module(f"h.{i}.a", parameters=(weight("weight", 2, 2),))
        b = module(f"h.{i}.b", parameters=(weight("weight", 2, 2, shared_with=tied_to),))
        return module(f"h.{i}", "Layer", a, b)

    def net(*layers: ModuleSummary) -> ModuleSummary:
        return module(
            "", "Net", module("wte", parameters=(weight("weight", 2, 2),)), module("h", "ModuleList", *layers)
        )

    def below(root: ModuleSummary) -> list[str]:
        return [str(item.label) for item in fold(root).children[1].children]

    assert below(net(*[layer(i, f"h.{i}.a.weight") for i in range(4)])) == ["0-3"]
    assert below(net(*[layer(i, "wte.weight") for i in range(4)])) == ["0-3"]
    # each has the first one's weight, which is therefore not as the others
    assert below(net(*[layer(i, "h.0.a.weight") for i in range(4)])) == ["0", "1-3"]
    assert below(net(layer(0, "h.0.a.weight"), layer(1, "h.1.a.weight"), layer(2, "wte.weight"))) == ["0-1", "2"]
    # the same layer three times over
    again = [module(f"h.{i}", "Layer", shared_with="h.0") for i in (1, 2)]
    assert below(net(layer(0, "h.0.a.weight"), *again)) == ["0", "1-2"]


def test_ten_thousand_modules_and_a_tree_deeper_than_pythons_stack() -> None:
    layers = [
        module(f"{i}", "Layer", *[replace(PLAIN, path=f"{i}.{j}", name=str(j), config=str(j % 5)) for j in range(9)])
        for i in range(1000)
    ]
    root = module("", "Net", *layers)
    began = time.perf_counter()
    folded = fold(root)
    seconds = time.perf_counter() - began
    # the root, a layer, its 5 + 4 modules as they are: 0..4, then 0..3 again, which no second period completes
    assert len(list(folded.walk())) == 1 + 1 + 9
    assert seconds < 2  # some 0.1 s on a machine that does nothing else

    deep = module("x")
    for _ in range(5000):
        deep = module("x", "Deep", deep)
    assert sum(len(item.copies) for item in fold(deep).walk()) == 5001

    # nothing repeats, in a sequence where anything might
    assert len(fold(row_of([str(i // 2) if i % 2 else "ReLU" for i in range(10_000)])).children) == 10_000

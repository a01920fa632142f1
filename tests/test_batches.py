"""Any batch: what a model is given and gives back is shown in its own nesting, and its bytes are exact or unknown."""

from __future__ import annotations

import dataclasses
import gc
import types
import warnings
import weakref
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import summarycb
from summarycb.collect.inputs import describe, look_into
from summarycb.specs import Nested, Opaque, Spec, TensorSpec, spec_text
from summarycb.tree import ModelSummary
from tests.trainings import everything

FLOAT, LONG = 4, 8


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape, dtype, "cpu")


def named(type_name: str, **items: Spec) -> Nested:
    return Nested(type_name, tuple(items.items()))


class Echo(nn.Module):
    """Gives back what it is given."""

    def forward(self, batch: Any, *, also: Any) -> Any:
        return also


class Model(nn.Module):
    """A linear layer over what ``read`` finds in the batch; the batch goes through a module of its own besides."""

    def __init__(self, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.fc, self.echo, self.read = nn.Linear(3, 2), Echo(), read

    def forward(self, batch: Any, *, also: Any) -> Tensor:
        self.echo(batch, also=also)
        return self.fc(self.read(batch))


def train(value: Any, read: Callable[[Any], Tensor], watch: bool) -> tuple[dict[str, Any], ModelSummary | None]:
    torch.manual_seed(0)
    model = Model(read)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    hook = summarycb.watch(model, verbose=False) if watch else None
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(value, also=value).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return everything(model, optimizer, losses), None if hook is None else hook.summary


class Ignores(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> None: ...


def observed(*args: Any, **kwargs: Any) -> ModelSummary:
    model = Ignores()
    with summarycb.observe(model) as observation:
        model(*args, **kwargs)
    assert observation.summary is not None
    return observation.summary


# Every kind that can be looked into: what is made, what is shown, the bytes of its tensors, and where the model reads


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any = None
    note: str = "a"


@dataclasses.dataclass(slots=True)
class Slim:
    left: Any


class Point(NamedTuple):
    x: Any
    y: object


class Graph:
    """An object with attributes: two tensors, what refers back to it, and what holds no tensor."""

    def __init__(self) -> None:
        self.x, self.edge_index = torch.rand(4, 3), torch.zeros(2, 5, dtype=torch.int64)
        self.hops, self.name, self.owner, self.parts = 2, "g", self, [self]

    @property
    def loaded(self) -> Tensor:
        raise AssertionError("a property was read")


class Slots:
    __slots__ = ("_hidden", "unset", "x")

    def __init__(self) -> None:
        self.x, self._hidden = torch.rand(4, 3), {"mask": torch.ones(4)}


class Store:
    """With :class:`Data`, the layout of attributes that torch_geometric's ``GlobalStorage`` and ``Data`` have."""

    def __init__(self, parent: object, mapping: dict[str, Any]) -> None:
        self.__dict__.update(_mapping=mapping, _parent=weakref.ref(parent))

    def __getattr__(self, name: str) -> Any:
        return self._mapping[name]


class Data:
    def __init__(self, **mapping: Any) -> None:
        self.__dict__.update(_edge_attr_cls=dict, _store=Store(self, mapping))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Frame(Mapping[str, Tensor]):
    """The layout of tensordict's ``TensorDict``; what it says of itself is never asked for."""

    def __init__(self, **items: Tensor) -> None:
        self._tensordict, self._batch_size = items, torch.Size([4])

    def __getitem__(self, key: str) -> Tensor:
        return self._tensordict[key]

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("iterated")

    def __len__(self) -> int:
        raise AssertionError("counted")


class Boxes(list[Tensor]):
    """A list with an attribute."""

    scores = None

    def __iter__(self) -> Any:
        raise AssertionError("iterated")


class Image(Tensor):
    """A subclass, as torchvision's ``Image``, that asks to see what is done to it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith("<method-wrapper"):
            raise AssertionError(f"{func} was asked")
        return super().__torch_function__(func, types, args, kwargs or {})


def x() -> Tensor:
    return torch.rand(4, 3)


def boxes() -> Boxes:
    made = Boxes([x()])
    made.scores = torch.ones(5)  # type: ignore[assignment]
    return made


def batch_encoding() -> Any:
    from transformers import BatchEncoding

    return BatchEncoding({"input_ids": torch.zeros(2, 5, dtype=torch.int64), "values": x()})


def tokenized() -> Any:
    """With the encodings of a fast tokenizer, which are objects of another language."""
    import tokenizers
    from transformers import BatchEncoding

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    encoding = tokenizer.encode("a b a")
    return BatchEncoding({"input_ids": torch.tensor([encoding.ids])}, encoding=[encoding])


def model_output() -> Any:
    from transformers.modeling_outputs import CausalLMOutput

    return CausalLMOutput(logits=x(), hidden_states=(x(), torch.rand(2)))  # type: ignore[arg-type]


def cache() -> Any:
    from transformers import DynamicCache

    made = DynamicCache()
    made.update(torch.rand(1, 2, 5, 4), torch.rand(1, 2, 5, 4), 0)
    return made


def two() -> Tensor:
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(x(), x())  # type: ignore[no-any-return]


def csr(make: Any) -> Any:
    """Three values: four rows (or columns) have five pointers."""
    return lambda: make(torch.tensor([0, 1, 2, 3, 3]), torch.tensor([0, 1, 2]), torch.ones(3), size=(4, 4))


def bsr() -> Tensor:
    return torch.sparse_bsr_tensor(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2, 2, 2), size=(4, 4))


def coo() -> Tensor:
    return torch.sparse_coo_tensor(torch.zeros(2, 5, dtype=torch.int64), torch.ones(5), (4, 3))


def parts() -> list[Tensor]:
    return [torch.rand(2, 3), torch.rand(4, 3)]


def endless() -> list[Any]:
    made: list[Any] = [x()]
    made.append(made)
    return made


def ones(value: Any) -> Tensor:
    """For a batch that holds nothing that the layer could take."""
    return torch.ones(4, 3)


X = 4 * 3 * FLOAT
Kind = tuple[Callable[[], Any], Spec, int | None, Callable[[Any], Tensor]]
GRAPH = {"x": spec(4, 3), "edge_index": spec(2, 5, dtype="int64")}
KINDS: dict[str, Kind] = {
    "tensor": (x, spec(4, 3), X, lambda v: v),
    "integer": (lambda: torch.zeros(4, dtype=torch.int64), spec(4, dtype="int64"), 4 * LONG, ones),
    "scalar": (lambda: torch.zeros((), dtype=torch.bool), spec(dtype="bool"), 1, ones),
    "a view counts its storage": (lambda: torch.rand(9, 3)[:4], spec(4, 3), 9 * 3 * FLOAT, lambda v: v),
    "parameter": (lambda: nn.Parameter(x()), spec(4, 3), X, lambda v: v.detach()),
    "meta": (lambda: torch.zeros(7, device="meta"), TensorSpec((7,), "float32", "meta"), 7 * FLOAT, ones),
    "none": (lambda: None, None, 0, ones),
    "string": (lambda: "secret", Opaque("str"), 0, ones),
    "plain": (
        lambda: [1, 2.5, True, 1j, b"x", range(3), slice(0, 3), ..., torch.float32, int],
        (*map(Opaque, ["int", "float", "bool", "complex", "bytes", "range", "slice", "ellipsis", "dtype", "type"]),),
        0,
        ones,
    ),
    "tuple": (lambda: (x(), None, (x(),)), (spec(4, 3), None, (spec(4, 3),)), 2 * X, lambda v: v[0] + v[2][0]),
    "list": (lambda: [x(), 3, "x"], (spec(4, 3), Opaque("int"), Opaque("str")), X, lambda v: v[0]),
    "one storage twice": (lambda: [x()] * 2, (spec(4, 3), spec(4, 3)), X, lambda v: v[0]),
    "empty": (tuple, (), 0, ones),
    "shape": (lambda: torch.Size([2, 3]), (Opaque("int"), Opaque("int")), 0, ones),
    "of an operation": (lambda: x().max(1), (spec(4), spec(4, dtype="int64")), 4 * FLOAT + 4 * LONG, ones),
    "dict": (
        lambda: {"a": x(), "b": {"c": x(), 7: None}},
        named("dict", a=spec(4, 3), b=Nested("dict", (("c", spec(4, 3)), ("7", None)))),
        2 * X,
        lambda v: v["a"],
    ),
    "ordered": (lambda: OrderedDict(a=x()), named("OrderedDict", a=spec(4, 3)), X, lambda v: v["a"]),
    "user dict": (lambda: UserDict(a=x()), named("UserDict", a=spec(4, 3)), X, lambda v: v["a"]),
    "namedtuple": (lambda: Point(x(), 1.5), named("Point", x=spec(4, 3), y=Opaque("float")), X, lambda v: v.x),
    "dataclass": (
        lambda: Pair(x()),
        named("Pair", left=spec(4, 3), right=None, note=Opaque("str")),
        X,
        lambda v: v.left,
    ),
    "dataclass with slots": (lambda: Slim(x()), named("Slim", left=spec(4, 3)), X, lambda v: v.left),
    "dataclass without tensors": (lambda: Pair(1), Opaque("Pair"), 0, ones),
    "set": (lambda: {torch.ones(2), x()}, (spec(2), spec(4, 3)), 2 * FLOAT + X, ones),
    "deque": (lambda: deque([x(), 1]), (spec(4, 3), Opaque("int")), X, lambda v: v[0]),
    "list with attributes": (
        boxes,
        Nested("Boxes", (("0", spec(4, 3)), ("scores", spec(5)))),
        X + 5 * FLOAT,
        lambda v: v[0],
    ),
    "batch encoding": (
        batch_encoding,
        named("BatchEncoding", input_ids=spec(2, 5, dtype="int64"), values=spec(4, 3)),
        2 * 5 * LONG + X,
        lambda v: v["values"],
    ),
    "tokenized": (tokenized, named("BatchEncoding", input_ids=spec(1, 3, dtype="int64")), 3 * LONG, ones),
    "model output": (
        model_output,
        named("CausalLMOutput", logits=spec(4, 3), hidden_states=(spec(4, 3), spec(2))),
        2 * X + 2 * FLOAT,
        lambda v: v.logits,
    ),
    "cache": (
        cache,
        named("DynamicCache", layers=(named("DynamicLayer", keys=spec(1, 2, 5, 4), values=spec(1, 2, 5, 4)),)),
        2 * 1 * 2 * 5 * 4 * FLOAT,
        ones,
    ),
    # three steps of lengths 3 and 1 are batches of 2, 1 and 1
    "packed": (
        lambda: nn.utils.rnn.pack_sequence([torch.rand(3, 3), torch.rand(1, 3)]),
        named(
            "PackedSequence",
            data=spec(4, 3),
            batch_sizes=spec(3, dtype="int64"),
            sorted_indices=None,
            unsorted_indices=None,
        ),
        X + 3 * LONG,
        lambda v: v.data,
    ),
    "jagged": (
        lambda: torch.nested.nested_tensor(parts(), layout=torch.jagged),
        named("NestedTensor", values=spec(6, 3), offsets=spec(3, dtype="int64")),
        6 * 3 * FLOAT + 3 * LONG,
        lambda v: v.values(),
    ),
    "jagged with lengths": (
        lambda: torch.nested.nested_tensor_from_jagged(torch.rand(8, 3), torch.tensor([0, 4, 8]), torch.tensor([2, 3])),
        named("NestedTensor", values=spec(8, 3), offsets=spec(3, dtype="int64")),
        8 * 3 * FLOAT + 3 * LONG + 2 * LONG,
        lambda v: v.values(),
    ),
    # the sizes belong to the tensor, as a shape does
    "nested": (
        lambda: torch.nested.nested_tensor(parts()),
        named("NestedTensor", values=spec(18), sizes=spec(2, 2, dtype="int64")),
        18 * FLOAT,
        lambda v: v.to_padded_tensor(0.0),
    ),
    "coo": (coo, spec(4, 3), 2 * 5 * LONG + 5 * FLOAT, lambda v: v.to_dense()),
    "csr": (csr(torch.sparse_csr_tensor), spec(4, 4), (5 + 3) * LONG + 3 * FLOAT, lambda v: v.to_dense()[:, :3]),
    "csc": (csr(torch.sparse_csc_tensor), spec(4, 4), (5 + 3) * LONG + 3 * FLOAT, lambda v: v.to_dense()[:, :3]),
    "bsr": (bsr, spec(4, 4), (3 + 2) * LONG + 2 * 2 * 2 * FLOAT, lambda v: v.to_dense()[:, :3]),
    "quantized": (
        lambda: torch.quantize_per_tensor(x(), 0.1, 0, torch.qint8),
        spec(4, 3, dtype="qint8"),
        4 * 3,
        lambda v: v.dequantize(),
    ),
    "subclass": (lambda: x().as_subclass(Image), spec(4, 3), X, lambda v: v.as_subclass(Tensor)),
    "a wrapper counts what it wraps": (two, spec(4, 3), 2 * X, lambda v: v.a),
    "object": (Graph, named("Graph", **GRAPH), X + 2 * 5 * LONG, lambda v: v.x),
    "slots": (
        Slots,
        named("Slots", _hidden=named("dict", mask=spec(4)), x=spec(4, 3)),
        4 * FLOAT + X,
        lambda v: v.x,
    ),
    "namespace": (lambda: types.SimpleNamespace(x=x(), n=1), named("SimpleNamespace", x=spec(4, 3)), X, lambda v: v.x),
    "torch_geometric": (
        lambda: Data(x=x(), edge_index=torch.zeros(2, 5, dtype=torch.int64), num_nodes=4),
        named("Data", **GRAPH, num_nodes=Opaque("int")),
        X + 2 * 5 * LONG,
        lambda v: v.x,
    ),
    "tensordict": (lambda: Frame(a=x(), b=x()), named("Frame", a=spec(4, 3), b=spec(4, 3)), 2 * X, lambda v: v["a"]),
    "a class is code": (lambda: Graph, Opaque("type"), 0, ones),
    "a function is code": (lambda: ones, Opaque("function"), 0, ones),
    "object without tensors": (lambda: types.SimpleNamespace(n=1, of=[Pair(2)]), Opaque("SimpleNamespace"), 0, ones),
    "contains itself": (endless, (spec(4, 3), Opaque("list")), X, lambda v: v[0]),
}
UNKNOWN: dict[str, Kind] = {
    "numpy": (lambda: numpy.zeros(3), Opaque("ndarray"), None, ones),
    "iterator": (lambda: iter([x()]), Opaque("list_iterator"), None, ones),
    "generator": (lambda: (x() for _ in range(2)), Opaque("generator"), None, ones),
    "within": (
        lambda: {"x": x(), "more": [iter(())]},
        named("dict", x=spec(4, 3), more=(Opaque("tuple_iterator"),)),
        None,
        lambda v: v["x"],
    ),
    "in an object": (
        lambda: types.SimpleNamespace(x=x(), rows=iter(())),
        named("SimpleNamespace", x=spec(4, 3)),
        None,
        lambda v: v.x,
    ),
    "module": (lambda: nn.Linear(2, 2), Opaque("Linear"), None, ones),
    "closure": (lambda: (lambda held: lambda: held)(x()), Opaque("function"), None, lambda v: v()),
    "mkldnn": (lambda: x().to_mkldnn(), spec(4, 3), None, lambda v: v.to_dense()),
}


def made_of(make: Callable[[], Any]) -> Any:
    """Always with the same numbers, and without torch's warnings of what is a prototype."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


@pytest.mark.parametrize("kind", [*KINDS, *UNKNOWN])
def test_what_goes_in_and_comes_out(kind: str) -> None:
    """As argument, keyword and output of modules of a real step: shapes, bytes, and nothing of the training changed."""
    make, expected, size, read = (KINDS | UNKNOWN)[kind]
    plain, _ = train(made_of(make), read, watch=False)
    value = made_of(make)
    trained, summary = train(value, read, watch=True)
    assert trained == plain
    assert summary is not None
    assert summary.incomplete == ()
    given = Nested("arguments", (("0", expected), ("also", expected)))
    assert summary[""].inputs == summary["echo"].inputs == given
    assert summary["echo"].outputs == expected
    assert summary.memory.batch == size
    assert [note.kind for note in summary.notes if note.kind == "batch"] == ([] if size is not None else ["batch"])
    assert ModelSummary.from_json(summary.to_json()) == summary
    assert len([line for line in summary.to_text().splitlines() if "├ echo" in line or "└ echo" in line]) == 1
    assert "secret" not in summary.to_json()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_batch_is_freed(kind: str) -> None:
    """Nothing of it is kept alive by an observation or its summary."""
    make, _, size, read = KINDS[kind]
    value = made_of(make)
    found = [*look_into(value)[0], *([value] if isinstance(value, (Graph, Data, Frame)) else [])]
    alive = [weakref.ref(thing) for thing in found]
    assert alive or size == 0
    trained, summary = train(value, read, watch=True)
    del value, found, trained
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)
    assert summary is not None


def test_positional_arguments_alone_are_a_tuple() -> None:
    assert observed(x(), x())[""].inputs == (spec(4, 3), spec(4, 3))


def test_keywords_alone() -> None:
    module = observed(ids=x(), mask=None)[""]
    assert module.inputs == named("arguments", ids=spec(4, 3), mask=None)
    assert module.inputs["ids"] == spec(4, 3)  # type: ignore[index,call-overload]


def test_a_generator_is_not_consumed() -> None:
    rows = (torch.rand(2) for _ in range(2))
    summary = observed(rows, iter([x()]))
    assert summary[""].inputs == (Opaque("generator"), Opaque("list_iterator"))
    assert len(list(rows)) == 2


# What refuses to be looked at, and what is too much to look at

ran: list[str] = []


def refuse(self: Any, *args: Any) -> Any:
    ran.append("a method")
    raise RuntimeError("refused")


class Refusing(type):
    """A class whose very class refuses."""

    __eq__ = __hash__ = __getattr__ = __instancecheck__ = __subclasscheck__ = refuse  # type: ignore[assignment]
    __name__ = property(refuse)  # type: ignore[assignment]


METHODS = ["getattribute", "getattr", "len", "iter", "contains", "getitem", "eq", "hash", "bool", "repr", "str"]
REFUSES: dict[str, Any] = {
    **{f"__{name}__": refuse for name in METHODS},
    **dict.fromkeys(["keys", "items", "values"], refuse),
    **dict.fromkeys(["__class__", "shape", "data"], property(refuse)),
}


def refusing(base: type, **more: Any) -> Any:
    return Refusing("Moody", (base,), REFUSES | more)


def filled() -> Any:
    made = refusing(object)()
    object.__setattr__(made, "x", x())
    return made


def hidden() -> Any:
    """Its ``__dict__`` is a property, so what it holds is out of reach."""
    made = refusing(object, __dict__=property(refuse))()
    object.__setattr__(made, "x", x())
    return made


MOODY: dict[str, Kind] = {
    "object": (filled, named("Moody", x=spec(4, 3)), X, ones),
    "dict": (lambda: refusing(dict)(x=x()), named("Moody", x=spec(4, 3)), X, ones),
    "list": (lambda: refusing(list)([x()]), (spec(4, 3),), X, ones),
    "tuple": (lambda: refusing(tuple)([x()]), (spec(4, 3),), X, ones),
    "key": (lambda: {refusing(str, __hash__=str.__hash__)("a"): x()}, named("dict", a=spec(4, 3)), X, ones),
    "hidden": (hidden, Opaque("Moody"), None, ones),
}


@pytest.mark.parametrize("kind", list(MOODY))
def test_what_refuses_to_be_looked_at(kind: str) -> None:
    """No method, property or metaclass of the user's is run, and the training goes on as it would."""
    make, expected, size, read = MOODY[kind]
    plain, _ = train(made_of(make), read, watch=False)
    value = made_of(make)
    ran.clear()
    trained, summary = train(value, read, watch=True)
    assert trained == plain
    assert ran == []
    assert summary is not None
    assert summary.incomplete == ()
    assert summary["echo"].outputs == expected
    assert summary.memory.batch == size


def test_keys_are_names_and_numbers() -> None:
    """Any other key may be a tensor, or an object whose text is data; a long one is cut."""
    keys: dict[Any, Any] = dict.fromkeys([torch.tensor(1.5), (1, 2), 7, True, 10**5000, "a" * 300, "two\nlines"])
    summary = observed(keys)
    expected = ["Tensor", "tuple", "7", "True", "int", "a" * 200, "two\nlines"]
    assert summary[""].inputs == (Nested("dict", tuple((key, None) for key in expected)),)
    assert ModelSummary.from_json(summary.to_json()) == summary
    assert [line for line in summary.to_text(width=1000).splitlines() if "two" in line and "lines" in line] != []


def size_of(shown: Spec) -> int:
    """How many specs there are in one, itself included."""
    inner: Any = ()
    if isinstance(shown, Nested):
        inner = [item for _, item in shown.items_]
    elif isinstance(shown, tuple):
        inner = shown
    return 1 + sum(map(size_of, inner))


def crowd() -> list[Graph]:
    """5,000 objects, each of which holds all the others."""
    graphs = [Graph() for _ in range(5_000)]
    for graph in graphs:
        graph.parts = graphs
    return graphs


def tower() -> Any:
    """64**8 ways lead to the one tensor."""
    made: Any = x()
    for _ in range(8):
        made = [made] * 64
    return made


def attributes() -> types.SimpleNamespace:
    return types.SimpleNamespace(**{f"n{i}": i for i in range(5_000)}, x=x())


def deep() -> Any:
    made: Any = x()
    for _ in range(10_000):
        made = [made]
    return made


def nested_lists(depth: int, inner: Spec) -> Spec:
    return inner if depth == 0 else (nested_lists(depth - 1, inner),)


HUGE: dict[str, tuple[Callable[[], Any], Spec | None, int | None]] = {
    "tensors": (
        lambda: list(torch.rand(100_000, 3).unbind()),
        (*[spec(3)] * 64, Opaque("99936 more")),
        100_000 * 3 * FLOAT,
    ),
    "dict": (
        lambda: dict.fromkeys(range(100_000), 0),
        Nested("dict", (*((str(i), Opaque("int")) for i in range(64)), ("…", Opaque("more")))),
        0,
    ),
    "objects": (crowd, None, 5_000 * (X + 2 * 5 * LONG)),
    "tower": (tower, None, X),
    "attributes": (attributes, Opaque("SimpleNamespace"), X),
    # eight levels: the arguments are the first
    "deep": (deep, nested_lists(7, Opaque("list")), X),
    "too many": (lambda: [0] * 250_001, (*[Opaque("int")] * 64, Opaque("249937 more")), None),
}


@pytest.mark.parametrize("kind", list(HUGE))
def test_what_is_too_much_to_show(kind: str) -> None:
    """What is shown is bounded; the bytes are exact up to 250,000 values."""
    make, expected, size = HUGE[kind]
    summary = observed(make())
    (shown,) = summary[""].inputs  # type: ignore[misc]
    assert expected is None or shown == expected
    assert size_of(shown) < 1_100
    assert summary.memory.batch == size
    assert summary.incomplete == ()


# Any nesting at all


class Bag:
    def __init__(self, *held: Any) -> None:
        self.first, self._rest = held[:1], held[1:]


leaf = st.one_of(
    st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.zeros(shape)),
    st.sampled_from([None, 1, "text", x, ...]),
    st.builds(lambda: iter([torch.zeros(2)])),
)
value = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(deque),
        st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4),
        st.dictionaries(st.text(max_size=5), inner, max_size=3).map(UserDict),
        st.builds(Pair, inner, inner),
        st.builds(Point, inner, inner),
        st.lists(inner, max_size=3).map(lambda held: Bag(*held)),
    ),
    max_leaves=30,
)


def storages(held: Any) -> dict[int, int] | None:
    """The bytes by storage in a value made as above; None where an iterator is."""
    if isinstance(held, Tensor):
        return {held.untyped_storage()._cdata: held.untyped_storage().nbytes()}
    if isinstance(held, Iterator):
        return None
    inner: Any = ()
    if isinstance(held, (dict, UserDict)):
        inner = held.values()
    elif isinstance(held, (list, tuple, deque)):
        inner = held
    elif isinstance(held, (Pair, Bag)):
        inner = vars(held).values()
    found: dict[int, int] = {}
    for item in inner:
        more = storages(item)
        if more is None:
            return None
        found |= more
    return found


@settings(max_examples=150, deadline=None)
@given(value)
def test_any_nesting(made: Any) -> None:
    """It is shown, within bounds, on a line, stored and read back; its bytes are those of its storages, or unknown."""
    summary = observed(made)
    assert summary.incomplete == ()
    known = storages(made)
    assert summary.memory.batch == (None if known is None else sum(known.values()))
    assert summary[""].inputs == describe((made,))  # as deep as it is shown there
    assert size_of(describe(made)) < 1_100
    assert isinstance(spec_text(describe(made)), str)
    assert ModelSummary.from_json(summary.to_json()) == summary

"""A summary written out by hand: a root with a Linear(4, 3), a tied head, a shared module and work outside."""

from __future__ import annotations

from summarycb.specs import BufferSpec, Nested, Opaque, ParameterSpec, Spec, TensorSpec
from summarycb.step import Environment, Memory, Moment, Note
from summarycb.tree import CallGroup, ModelSummary, ModuleSummary, Work


def tensor(*shape: int, dtype: str = "float32", device: str = "cpu") -> TensorSpec:
    return TensorSpec(shape, dtype, device)


def weight(name: str, *shape: int, shared_with: str | None = None, trainable: bool = True) -> ParameterSpec:
    size = 4
    for n in shape:
        size *= n
    return ParameterSpec(name, shape, "float32", "cpu", trainable, size, None, shared_with, size, 2 * size)


def group(calls: int, inputs: Spec, outputs: Spec, own: Work, total: Work | None = None) -> CallGroup:
    """Calls that made no calls of their own, unless ``total`` is another."""
    return CallGroup(calls, inputs, outputs, own, total or own)


# the batch's 32 and 24 of activations in the forward; in the backward 100 that the loss and the layers left alive, and
# gradients of weights and of activations: 80 + 28 + 80 + 160 + 84 + 16 + 32 + 32 = 512
EARLIER = Moment("forward", "head", 80, 28, 0, 160, 24, 16, 32, 0)
PEAK = Moment("backward", "fc", 80, 28, 80, 160, 84, 16, 32, 32)

FC = ModuleSummary(
    path="fc",
    name="fc",
    type_name="Linear",
    config="in_features=4, out_features=3, bias=True",
    training=True,
    parameters=(weight("weight", 3, 4), weight("bias", 3)),
    # 2 calls x 2 x 3 x 4 = 48 forward; weight gradient alone, the input needs none: 48 backward
    call_groups=(group(2, (tensor(2, 4),), tensor(2, 3), Work(48, 48, 0, 64, 0)),),
)
HEAD = ModuleSummary(
    path="head",
    name="head",
    type_name="Head",
    training=False,
    parameters=(weight("weight", 3, 4, shared_with="fc.weight"), weight("scale", 5, trainable=False)),
    buffers=(BufferSpec("mean", (7,), "float32", "cpu", True, 28),),
    call_groups=(
        group(
            1,
            Nested("arguments", (("0", tensor(2, 3)), ("mask", None))),
            Nested("Output", (("logits", tensor(2, 3)), ("states", (tensor(), Opaque("Cache"))))),
            Work(24, 24, 24, 8, 16),
        ),
    ),
)
AGAIN = ModuleSummary(path="again", name="again", type_name="Linear", call_groups=(), shared_with="fc")
ROOT = ModuleSummary(
    path="",
    name="",
    type_name="Net",
    training=True,
    call_groups=(group(1, (tensor(2, 4),), tensor(2, 3), Work(0, 0, 0, 0, 0), Work(72, 72, 24, 72, 16)),),
    children=(FC, HEAD, AGAIN),
)
SUMMARY = ModelSummary(
    root=ROOT,
    outside=Work(6, 12, 0, 12, 0),
    # weights (12 + 3 + 5) x 4 = 80, buffers 7 x 4 = 28
    memory=Memory(80, 28, 80, 160, 84, 16, 32, PEAK, (EARLIER, PEAK)),
    environment=Environment("0.1.0", "2.13.0", True, "cpu", "float32", "Adam", "lightning", "Single", 1),
    optimizer_macs=0,
    observed="step",
    notes=(Note("tied", "head.weight is fc.weight, counted there", "head"),),
)

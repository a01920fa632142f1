"""The messages of an event file: tensorboard's, or tensorboardX's where that is installed alone.

tensorboardX has none of those that hold costs: they are made here, with the numbers that TensorFlow gave their fields.
"""

from __future__ import annotations

from typing import Any

try:
    from tensorboard.compat.proto.config_pb2 import RunMetadata
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.proto.node_def_pb2 import NodeDef
    from tensorboard.compat.proto.step_stats_pb2 import DeviceStepStats
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
except ModuleNotFoundError:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.graph_pb2 import GraphDef
    from tensorboardX.proto.node_def_pb2 import NodeDef
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto

    _FIELDS = """
        RunMetadata step_stats 1 StepStats, function_graphs 4 FunctionGraphs*
        FunctionGraphs pre_optimization_graph 2 GraphDef
        StepStats dev_stats 1 DeviceStepStats*
        DeviceStepStats device 1 string, node_stats 2 NodeExecStats*
        NodeExecStats node_name 1 string, all_start_micros 2 int64, all_end_rel_micros 5 int64, \
            memory 6 AllocatorMemoryUsed*, output 7 NodeOutput*
        AllocatorMemoryUsed total_bytes 2 int64
        NodeOutput slot 1 int32, tensor_description 3 TensorDescription
        TensorDescription shape 2 TensorShapeProto
    """

    def _costs() -> dict[str, Any]:
        field_of = descriptor_pb2.FieldDescriptorProto
        theirs = {message.DESCRIPTOR.name: message.DESCRIPTOR for message in (GraphDef, TensorShapeProto)}
        file = descriptor_pb2.FileDescriptorProto(name="summarycb/costs.proto", package="summarycb", syntax="proto3")
        file.dependency.extend([message.file.name for message in theirs.values()])
        for line in _FIELDS.strip().splitlines():
            message, _, fields = line.strip().partition(" ")
            made = file.message_type.add(name=message)
            for field in fields.split(","):
                name, number, kind = field.split()
                label = field_of.LABEL_REPEATED if kind.endswith("*") else field_of.LABEL_OPTIONAL
                added = made.field.add(name=name, number=int(number), label=label)
                if kind.islower():
                    added.type = field_of.Type.Value(f"TYPE_{kind.upper()}")
                else:
                    kind = kind.rstrip("*")
                    added.type_name = f".{theirs[kind].full_name if kind in theirs else f'summarycb.{kind}'}"
        pool = descriptor_pool.Default()
        pool.AddSerializedFile(file.SerializeToString())
        found = pool.FindFileByName(file.name).message_types_by_name
        return {name: message_factory.GetMessageClass(message) for name, message in found.items()}

    _made = _costs()
    RunMetadata, DeviceStepStats = _made["RunMetadata"], _made["DeviceStepStats"]

__all__ = ["DeviceStepStats", "Event", "GraphDef", "NodeDef", "RunMetadata", "Summary", "TensorShapeProto"]

"""A report as the content of a TensorBoard event file."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.graph.metadata import PLUGIN_NAME_RUN_METADATA
from tensorboard.plugins.text.metadata import PLUGIN_NAME as TEXT
from tensorboard.summary.writer.record_writer import RecordWriter

from summarycb.report import PREFIX, Report
from summarycb_tensorboard.run_metadata import graphs

PLUGIN = "summarycb"
JSON = f"{PREFIX}/json"


def event_file(report: Report, step: int) -> bytes:
    """All of the report at ``step``, each thing an event."""
    file = io.BytesIO()
    records = RecordWriter(file)
    now = time.time()
    records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for value in _values(report):
        records.write(Event(wall_time=now, step=step, summary=Summary(value=[value])).SerializeToString())
    return file.getvalue()


def _values(report: Report) -> Iterator[Summary.Value]:
    for name, total in report.metrics.items():
        yield Summary.Value(tag=name, simple_value=total)
    yield _text(JSON, PLUGIN, report.json.encode())
    yield _text(f"{PREFIX}/text/text_summary", TEXT, f"```\n{report.text}\n```".encode())
    for phase, found in graphs(report.summary):
        tag = f"{PREFIX}/{report.summary.root.type_name}/{phase}"
        yield _text(tag, PLUGIN_NAME_RUN_METADATA, found.SerializeToString(), content=b"1")
    for name, png in report.images.items():
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        yield Summary.Value(tag=f"{PREFIX}/plots/{name}", image=image)  # a scalar's tag would be taken for a scalar


def _text(tag: str, plugin: str, text: bytes, content: bytes = b"") -> Summary.Value:
    """A string tensor, of the plugin that shows it."""
    value = Summary.Value(tag=tag)
    value.metadata.plugin_data.plugin_name = plugin
    value.metadata.plugin_data.content = content
    value.tensor.dtype = 7  # DT_STRING
    value.tensor.string_val.append(text)
    return value

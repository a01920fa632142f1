"""A report as the content of a TensorBoard event file."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

from summarycb.report import PREFIX, Report
from summarycb_tensorboard import TAG
from summarycb_tensorboard.crc32c import masked_crc32c
from summarycb_tensorboard.graph import escaped
from summarycb_tensorboard.messages import Event, Summary
from summarycb_tensorboard.run_metadata import graphs

PLUGIN, TEXT, GRAPH = "summarycb", "text", "graph_run_metadata"


def event_file(report: Report, step: int) -> bytes:
    """All of the report at ``step``, each thing an event."""
    now = time.time()
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    events += [Event(wall_time=now, step=step, summary=Summary(value=[value])) for value in _values(report)]
    return b"".join(_record(event.SerializeToString()) for event in events)


def _record(data: bytes) -> bytes:
    """As TensorFlow frames it."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def _values(report: Report) -> Iterator[Summary.Value]:
    for name, total in report.metrics.items():
        yield Summary.Value(tag=name, simple_value=total)
    yield _text(TAG, PLUGIN, report.json.encode())
    yield _text(f"{PREFIX}/text/text_summary", TEXT, f"```\n{report.text}\n```".encode())
    if report.comparison is not None:
        yield _text(f"{PREFIX}/comparison/text_summary", TEXT, report.comparison.to_markdown().encode())
    model, structure = escaped(report.summary.root.type_name), report.identity[f"{PREFIX}/structure"]
    for phase, found in graphs(report.summary):
        tag = f"{PREFIX}/{model}/{phase}.{structure[:8]}"  # of two models of one class the Graphs page has both
        yield _text(tag, GRAPH, found.SerializeToString(), content=b"1")
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

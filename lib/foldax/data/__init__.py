"""Datasets: by name or from arrays, on the device or streamed."""

from foldax.data.device import Block, DeviceSource, DeviceSplit, EvalBlock
from foldax.data.info import Info
from foldax.data.load import Dataset, from_arrays, load
from foldax.data.stream import StreamSource, StreamSplit

__all__ = [
    "Block",
    "Dataset",
    "DeviceSource",
    "DeviceSplit",
    "EvalBlock",
    "Info",
    "StreamSource",
    "StreamSplit",
    "from_arrays",
    "load",
]

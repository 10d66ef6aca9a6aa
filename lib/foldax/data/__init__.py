"""Datasets: by name or from arrays, on the device or streamed."""

from foldax.data.info import Info
from foldax.data.load import Dataset, from_arrays, from_splits, load
from foldax.data.sources import Block, DeviceSource, EvalBlock, Split, StreamSource

__all__ = [
    "Block",
    "Dataset",
    "DeviceSource",
    "EvalBlock",
    "Info",
    "Split",
    "StreamSource",
    "from_arrays",
    "from_splits",
    "load",
]

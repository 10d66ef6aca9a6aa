"""Datasets: by name or from arrays, on the device or streamed; text, sequences and series."""

from foldax.data.cache import remembered
from foldax.data.dataset import Dataset, from_arrays, from_splits, load
from foldax.data.info import Info
from foldax.data.sequences import Packed, pack, pad, windows
from foldax.data.series import Series, co2, forecast_splits, rolling_origins, rolling_windows, sunspots, ucr
from foldax.data.sources import Block, DeviceSource, EvalBlock, Split, StreamSource
from foldax.data.text import BPE, Bytes, Characters, hold_out, topics, topics_text

__all__ = [
    "BPE",
    "Block",
    "Bytes",
    "Characters",
    "Dataset",
    "DeviceSource",
    "EvalBlock",
    "Info",
    "Packed",
    "Series",
    "Split",
    "StreamSource",
    "co2",
    "forecast_splits",
    "from_arrays",
    "from_splits",
    "hold_out",
    "load",
    "pack",
    "pad",
    "remembered",
    "rolling_origins",
    "rolling_windows",
    "sunspots",
    "topics",
    "topics_text",
    "ucr",
    "windows",
]

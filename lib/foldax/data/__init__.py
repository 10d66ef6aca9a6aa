"""Datasets by name or from arrays, on the device or streamed; tokenizers, sequences and time series."""

from foldax.data.array_records import from_array_records, write_array_records
from foldax.data.cache import disk_cached
from foldax.data.dataset import Dataset, from_arrays, from_splits, load
from foldax.data.huggingface import from_huggingface
from foldax.data.images import from_folder
from foldax.data.info import Info
from foldax.data.iterables import BatchSource, from_grain, from_iterable
from foldax.data.mixtures import mixture
from foldax.data.protocol import DataSource
from foldax.data.sequences import PackedSequences, pack_sequences, pad_sequences, token_windows
from foldax.data.series import Series, co2, forecast_splits, rolling_origins, rolling_windows, sunspots, ucr
from foldax.data.sources import DataBlock, DeviceSource, EvaluationBlock, Split, StreamSource
from foldax.data.tables import from_csv
from foldax.data.text import BPE, Bytes, Characters, hold_out, python_help_text, python_help_topics

# Datasets
__all__ = ["Dataset", "Info", "load", "mixture", "disk_cached"]
__all__ += ["from_arrays", "from_splits", "from_csv", "from_folder", "from_huggingface", "from_grain", "from_iterable"]
__all__ += ["from_array_records", "write_array_records"]
# Sources and their blocks
__all__ += ["DataSource", "DeviceSource", "StreamSource", "BatchSource", "Split", "DataBlock", "EvaluationBlock"]
# Text
__all__ += ["Bytes", "Characters", "BPE", "hold_out", "python_help_topics", "python_help_text"]
# Sequences
__all__ += ["token_windows", "pad_sequences", "pack_sequences", "PackedSequences"]
# Time series
__all__ += ["Series", "ucr", "co2", "sunspots", "forecast_splits", "rolling_windows", "rolling_origins"]

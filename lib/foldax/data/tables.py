"""Datasets from tables: columns of CSV files become features, classes and regression targets by their names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from foldax.data.arrays import ArrayMetadata, check_set_names, check_split_names, read_arrays
from foldax.data.conversion import as_names, check_resolution
from foldax.data.dataset import Dataset, DatasetOptions, assign_splits, make_dataset
from foldax.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MISSING = ("error", "drop", "mean", "indicator")
TASKS = ("classification", "regression")
# Options of `pandas.read_csv` that say how a file is written; the others choose and convert its columns.
FORMAT_OPTIONS = (
    *("sep", "delimiter", "delim_whitespace", "dialect", "lineterminator", "engine"),
    *("skiprows", "skip_blank_lines", "skipinitialspace", "comment"),
    *("quotechar", "quoting", "doublequote", "escapechar"),
    *("encoding", "encoding_errors", "compression", "storage_options"),
)
MAX_CATEGORIES = 100  # of a text column, or of integer targets that are taken for classes


class _Table(NamedTuple):
    """Rows of all files.

    Attributes:
      name: how messages name it.
      frame: the columns in use.
      splits: split of each row `[N]`.
      places: file and number of each row, for messages.
    """

    name: str
    frame: "DataFrame"
    splits: np.ndarray
    places: list[tuple[Path, int]]

    def place(self, is_bad: Any) -> str:
        """Names the first row `[N]` that is True."""
        path, row = self.places[int(np.flatnonzero(np.asarray(is_bad, bool))[0])]
        return f"{path}, row {row}"

    def select(self, keep: np.ndarray) -> "_Table":
        """Keeps some rows, bool `[N]`."""
        places = [place for place, kept in zip(self.places, keep, strict=True) if kept]
        return _Table(self.name, self.frame[keep].reset_index(drop=True), self.splits[keep], places)


def from_csv(
    path: str | Path | Mapping[str, str | Path],
    *,
    targets: str | None,
    inputs: Iterable[str] | None = None,
    task: str | None = None,
    missing: str = "error",
    read_options: Mapping[str, Any] | None = None,
    name: str | None = None,
    **options: Any,
) -> Dataset:
    """Makes a dataset from the columns of a CSV file, or of one file per split.

    Columns of numbers and of truth values become columns of "inputs" float32 `[N, C]`. A column of texts is one-hot
    encoded: "color" becomes "color=blue" and "color=red", 0 or 1, as `info.feature_names` lists them. Targets that are
    texts, truth values or integers are classes, in sorted order; other numbers are regression targets.

    Args:
      path: the file, or files by split: "train", and "validation" or "test" or both.
      targets: name of the column of targets; None for unsupervised learning.
      inputs: names of the columns of inputs; by default all but the targets.
      task: "classification" or "regression", where targets are integers that could be either.
      missing: "error"; "drop" leaves out rows with missing values; "mean" fills them in by the mean of the column in
        the training split, and by 0 in all categories of a text; "indicator" also adds a column "NAME is missing" of 0
        and 1.
      read_options: arguments of `pandas.read_csv`, for example `{"sep": ";", "decimal": ","}`.
      name: name of the dataset; by default that of the (training) file.
      **options: options of `load`, as for `from_arrays`; "evaluation" has files by name.

    Raises:
      DataError: the file cannot be read, a column does not exist, has missing values, has a text among numbers or is
        an identifier; or as for `from_splits`.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "pets.csv"
    ...     _ = file.write_text("weight,coat,pet\\n" + "4.5,short,cat\\n20,long,dog\\n" * 10)
    ...     info = from_csv(file, targets="pet", batch_size=4).info
    >>> info.feature_names, info.class_names
    (('weight', 'coat=long', 'coat=short'), ('cat', 'dog'))
    """
    chosen = DatasetOptions.make(options)
    _check_choice("task", task, (None, *TASKS))
    _check_choice("missing", missing, MISSING)
    # 1. Files
    paths = {split: Path(file) for split, file in (path.items() if isinstance(path, Mapping) else [("train", path)])}
    name = name or paths.get("train", Path("table")).stem
    check_split_names(paths, name)
    evaluation = dict(chosen.evaluation or {})
    check_set_names(evaluation, name)
    sets = {split: Path(file) for split, file in evaluation.items() if isinstance(file, str | Path)}
    table = _read_table(paths | sets, targets, as_names(inputs, "inputs"), dict(read_options or {}))
    table = _without_missing(table, targets, missing)
    # 2. Numbers and classes
    arrays, features, class_names = _encode(table, targets, task, missing, name, tuple(paths), chosen)
    # 3. Splits
    splits = {split: {key: a[table.splits == split] for key, a in arrays.items()} for split in (*paths, *sets)}
    chosen = chosen._replace(evaluation=evaluation | {split: splits.pop(split) for split in sets})
    return make_dataset(read_arrays(splits, name, ArrayMetadata.check(None, class_names, features, None)), chosen)


def _encode(
    table: _Table, targets: str | None, task: str | None, missing: str, name: str, splits: tuple[str, ...], options: Any
) -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...] | None]:
    """Encodes all columns; returns arrays `[N, ...]` by key, and the names of features and classes."""
    arrays: dict[str, np.ndarray] = {}
    features, class_names = _encode_inputs(table, targets, missing == "indicator"), None
    if targets is not None:
        arrays["targets"], class_names = _encode_targets(table, targets, task)
    if missing in ("mean", "indicator"):
        # The splits that `make_dataset` will make: other rows than the training split's must not count in its means.
        sizes = {split: int((table.splits == split).sum()) for split in splits}
        labels = arrays["targets"][np.isin(table.splits, splits)] if class_names else None
        train = assign_splits(name, sizes, labels, options)["train"]
        features = {key: _fill_missing(table, key, column, train) for key, column in features.items()}
    for key, column in features.items():
        check_resolution(column, f"{table.name}, column {key!r}")
    arrays["inputs"] = np.stack(list(features.values()), axis=1).astype(np.float32)
    return arrays, tuple(features), class_names


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise DataError(f"{name}={value!r} is none of {allowed}{did_you_mean(str(value), map(str, allowed))}")


def _read_table(
    paths: dict[str, Path], targets: str | None, inputs: tuple[str, ...] | None, options: dict[str, Any]
) -> _Table:
    """Reads the files, and joins the columns in use."""
    import pandas

    frames = {split: _read_file(path, options) for split, path in paths.items()}
    if inputs is None:
        inputs = tuple(column for column in frames["train"].columns if column != targets)
    if targets in inputs:
        raise DataError(f"inputs: {targets!r} is the column of targets; leave it out")
    if not inputs:
        raise DataError(f"{paths['train']}: no column is left for inputs")
    columns = [*inputs] if targets is None else [*inputs, targets]
    for split, frame in frames.items():
        for column in columns:
            if column not in frame.columns:
                known = ", ".join(frame.columns)
                hint = did_you_mean(column, frame.columns)
                raise DataError(f"{paths[split]}: there is no column {column!r}{hint} (columns: {known})")
    joined = pandas.concat([frame[columns] for frame in frames.values()], ignore_index=True)
    places = [(paths[split], row + 1) for split, frame in frames.items() for row in range(len(frame))]
    name = str(paths["train"]) if len(paths) == 1 else ", ".join(map(str, paths.values()))
    return _Table(name, joined, np.repeat(list(frames), [len(frame) for frame in frames.values()]), places)


def _read_file(path: Path, options: dict[str, Any]) -> "DataFrame":
    """Reads a CSV file.

    Raises:
      DataError: it cannot be read, has no rows, or a column has no name or that of another.
    """
    import pandas

    try:
        frame = pandas.read_csv(path, **options)
        # Pandas renames the second of two columns "x" to "x.1"; the names as they are written show both.
        plain = "header" not in options and "names" not in options
        if plain:
            format_options = {key: value for key, value in options.items() if key in FORMAT_OPTIONS}
            as_texts = {"header": None, "nrows": 1, "dtype": str, "keep_default_na": False}
            header = pandas.read_csv(path, **format_options | as_texts).iloc[0].tolist()
    except FileNotFoundError as error:
        raise DataError(f"there is no file {str(path)!r}") from error
    except (OSError, ValueError, TypeError) as error:  # those of pandas are ValueErrors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read: {reason}; see `read_options`") from error
    frame.columns = frame.columns.astype(str)
    names = header if plain else list(frame.columns)
    if twice := next((name for name in frame.columns if names.count(name) > 1), None):
        raise DataError(f"{path}: there are several columns {twice!r}; every name must differ")
    if not len(frame):
        raise DataError(f"{path} has no rows below its header")
    if len(names) == 1 and (separator := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise DataError(f"{path} has one column, {names[0]!r}; give read_options={{'sep': {separator!r}}}")
    if unnamed := next((column for column in frame.columns if column.startswith("Unnamed: ")), None):
        number = int(unnamed.rpartition(" ")[2]) + 1
        remedy = "for an index that was saved with the table, give read_options={'index_col': 0}"
        raise DataError(f"{path}: column {number} has no name; {remedy}")
    return frame


def _without_missing(table: _Table, targets: str | None, missing: str) -> _Table:
    """Leaves out rows with missing values for "drop".

    Raises:
      DataError: nothing is to be done about missing values, or no row is left.
    """
    # Pandas reads integers as floats where values are missing.
    integers = {name for name in table.frame.columns if _are_integers(table.frame[name])}
    if missing == "drop":
        table = table.select(table.frame.notna().all(axis=1).to_numpy())
    if not len(table.frame):
        raise DataError(f"{table.name}: every row has a missing value; choose columns (inputs=[...])")
    counts = {column: int(count) for column, count in table.frame.isna().sum().items() if count}
    if targets in counts:
        remedy = "such rows cannot be learned from: missing='drop' leaves them out"
        raise DataError(
            f"{table.name}: column {targets!r}, the targets, has {counts[targets]} missing values; {remedy}"
        )
    if counts and missing == "error":
        found = ", ".join(f"{column!r} has {count}" for column, count in counts.items())
        remedy = f"fill them in, or choose missing={', '.join(map(repr, MISSING[1:-1]))} or {MISSING[-1]!r}"
        raise DataError(f"{table.name}: values are missing: column {found}; {remedy}")
    return table._replace(frame=table.frame.astype({name: np.int64 for name in integers if name not in counts}))


def _are_integers(column: "Series") -> bool:
    """Whether a column of floats has missing values, and all others are integers."""
    if column.dtype.kind != "f" or not column.isna().any():
        return False
    known = column.dropna()
    return bool((np.isfinite(known) & (known == np.floor(known)) & (np.abs(known) < 2**53)).all())


def _encode_inputs(table: _Table, targets: str | None, with_indicators: bool) -> dict[str, np.ndarray]:
    """Encodes columns as numbers; float64 `[N]` by the name of the feature, NaN where a number is missing."""
    from pandas.api.types import is_numeric_dtype

    features: dict[str, np.ndarray] = {}
    for name in table.frame.columns:
        if name == targets:
            continue
        column = _with_gaps_as_nan(table.frame[name])
        if is_numeric_dtype(column):
            values = column.to_numpy(np.float64, na_value=np.nan)
            if np.isinf(values).any():
                raise DataError(
                    f"{table.place(np.isinf(values))}: column {name!r} is infinite; leave it out or correct it"
                )
            encoded = {name: values}
        else:
            _check_numbers(table, name, "declare it missing: read_options={'na_values': [...]}")
            categories = _categories(table, name)
            if len(categories) > MAX_CATEGORIES:
                problem = f"has {len(categories)} different texts, and up to {MAX_CATEGORIES} are one-hot encoded"
                raise DataError(f"{table.name}: column {name!r} {problem}; leave it out (inputs=[...]) or group them")
            texts = column.astype(str).to_numpy()
            encoded = {f"{name}={text}": ((texts == text) & column.notna()).to_numpy(float) for text in categories}
        if with_indicators and column.isna().any():
            encoded[f"{name} is missing"] = column.isna().to_numpy(np.float64)
        if twice := next((feature for feature in encoded if feature in features), None):
            raise DataError(f"{table.name}: there are two features {twice!r}; rename a column")
        features |= encoded
    return features


def _with_gaps_as_nan(column: "Series") -> "Series":
    """Converts a column of truth values, of which some are missing and which pandas therefore takes for objects."""
    known = column.dropna()
    are_bools = column.dtype == object and len(known) > 0 and all(isinstance(value, bool) for value in known)
    return column.astype(np.float64) if are_bools else column


def _encode_targets(table: _Table, name: str, task: str | None) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Encodes the column of targets: `(classes int32 [N], their names)` or `(numbers float32 [N], None)`."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    column: Series = table.frame[name]
    if is_numeric_dtype(column) and not is_bool_dtype(column):
        values = column.to_numpy()
        is_whole = np.isfinite(values) & (values == np.floor(values))
        if task == "classification" and not is_whole.all():
            raise DataError(f"{table.place(~is_whole)}: column {name!r} is {values[~is_whole][0]:g}, which is no class")
        if task == "regression" or (task is None and values.dtype.kind == "f"):
            if not np.isfinite(values).all():
                raise DataError(f"{table.place(~np.isfinite(values))}: column {name!r} is infinite; leave the row out")
            check_resolution(values, f"{table.name}, column {name!r}")
            return values.astype(np.float32), None
        classes, numbers = np.unique(values, return_inverse=True)
        if task is None and len(classes) > MAX_CATEGORIES:
            problem = f"has {len(classes)} different integers; say whether they are classes or numbers"
            raise DataError(f"{table.name}: column {name!r} {problem}: task='classification' or 'regression'")
        return numbers.astype(np.int32), tuple(f"{label:.0f}" for label in classes)
    if task == "regression":
        _check_numbers(table, name, "correct it")
        raise DataError(
            f"{table.name}: column {name!r} has texts such as {str(column.iloc[0])!r}; regression needs numbers"
        )
    if task is None:
        _check_numbers(table, name, "correct it, or give task='classification' if it is a class")
    names = _categories(table, name)
    return np.searchsorted(names, column.astype(str).to_numpy(dtype=str)).astype(np.int32), tuple(names)


def _check_numbers(table: _Table, name: str, remedy: str) -> None:
    """Raises a DataError for a text in a column of which most values are numbers: a slip, not a category."""
    import pandas

    column = table.frame[name]
    numbers = pandas.to_numeric(column.astype(str).where(column.notna()), errors="coerce")
    is_text = (numbers.isna() & column.notna()).to_numpy()
    if 2 * is_text.sum() < column.notna().sum() and is_text.any():
        text = str(column[is_text].iloc[0])
        raise DataError(f"{table.place(is_text)}: column {name!r} has the text {text!r} among numbers; {remedy}")


def _categories(table: _Table, name: str) -> np.ndarray:
    """Returns the different texts of a column, sorted.

    Raises:
      DataError: two of them differ in spaces alone, or most rows have one of their own.
    """
    column = table.frame[name].dropna()
    texts = np.unique(column.astype(str).to_numpy(dtype=str))
    stripped = [text.strip() for text in texts]
    for text, core in zip(texts, stripped, strict=True):
        if stripped.count(core) > 1 or not core:
            problem = f"has {str(text)!r}, which is blank or differs from another text in spaces alone"
            raise DataError(f"{table.name}: column {name!r} {problem}; give read_options={{'skipinitialspace': True}}")
    if len(texts) > 10 and 2 * len(texts) > len(column):
        problem = f"has {len(texts)} different texts in {len(column)} rows, as names, dates and identifiers have"
        raise DataError(f"{table.name}: column {name!r} {problem}; leave it out (inputs=[...]) or make it numbers")
    return texts


def _fill_missing(table: _Table, feature: str, column: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Fills in missing numbers by the mean of the training split."""
    known = column[train][~np.isnan(column[train])]
    if not len(known):
        raise DataError(f"{table.name}: column {feature!r} has no value in the training split; leave it out")
    return np.where(np.isnan(column), known.mean(), column)

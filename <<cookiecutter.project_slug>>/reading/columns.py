"""Turn the columns of Arrow tables into text."""

import json
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from errors import DataError

Place = Callable[[int], str]  # maps a row index to a place, such as "train.parquet (row 12)"


def as_text(
    table: pa.Table,
    features: datasets.Features,
    lists: list[str],
    nested: list[str],
    place: Place,
) -> pa.RecordBatch:
    """Convert all columns to text; convert lists in the columns `lists` to lists of texts.

    Integers become their digits, floats their `repr`, class labels their names, and dates
    their ISO form. Values of columns in `nested` are returned as JSON.

    Raises:
        DataError: A cell or an item of a list has no value, a class id has no name, or a column has
            a type that cannot be converted.
    """
    columns = {}
    for name in table.column_names:
        values = _combine(table.column(name))
        if (row := pc.index(pc.is_null(values, nan_is_null=True), True).as_py()) >= 0:
            raise DataError(f"{place(row)}: no value for {name!r}; expected one")
        feature = features[name]
        if _is_list(values.type) and name in lists:
            inner = getattr(feature, "feature", None)
            columns[name] = _list_as_text(values, inner, name, place)
        elif name in nested and pa.types.is_nested(values.type):
            columns[name] = _as_json(values)
        else:
            columns[name] = _scalars_as_text(values, feature, name, place)
            if name in nested:
                columns[name] = _as_json(columns[name])
    return pa.RecordBatch.from_pydict(columns)


def _as_json(values: pa.Array) -> pa.Array:
    texts = [json.dumps(value, ensure_ascii=False, default=str) for value in values.to_pylist()]
    return pa.array(texts, pa.string())


def _combine(values: pa.ChunkedArray) -> pa.Array:
    combined = values.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        combined = pa.concat_arrays(combined.chunks)
    if pa.types.is_dictionary(combined.type):
        combined = combined.dictionary_decode()
    return combined


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _list_as_text(values: pa.Array, feature: Any, name: str, place: Place) -> pa.Array:
    parents = pc.list_parent_indices(values)
    inner = _combine(pa.chunked_array([pc.list_flatten(values)]))
    if (item := pc.index(pc.is_null(inner, nan_is_null=True), True).as_py()) >= 0:
        raise DataError(
            f"{place(parents[item].as_py())}: a list in {name!r} holds null; expected text"
        )
    texts = _scalars_as_text(inner, feature, name, lambda item: place(parents[item].as_py()))
    ends = np.cumsum(pc.list_value_length(values).to_numpy(zero_copy_only=False))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), texts)


def _scalars_as_text(values: pa.Array, feature: Any, name: str, place: Place) -> pa.Array:
    if isinstance(feature, datasets.ClassLabel) and pa.types.is_integer(values.type):
        return _class_names(values, feature, name, place)
    if pa.types.is_floating(values.type):
        # numpy formats floats like Python, JSON and CSV writers; Arrow would write 1.0 as 1.
        return pa.array(values.to_numpy(zero_copy_only=False).astype(str).tolist(), pa.string())
    try:
        return values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{place(0)}: {name!r} holds {values.type}; expected text") from None


def _class_names(
    values: pa.Array, feature: datasets.ClassLabel, name: str, place: Place
) -> pa.Array:
    outside = pc.or_(pc.less(values, 0), pc.greater_equal(values, len(feature.names)))
    if (row := pc.index(outside, True).as_py()) >= 0:
        raise DataError(
            f"{place(row)}: {name!r} is the class id {values[row].as_py()}; expected an id from 0 "
            f"to {len(feature.names) - 1}, for {feature.names}"
        )
    return pa.array(feature.names, pa.string()).take(values)

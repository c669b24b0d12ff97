"""Many cells in one Parquet file: a row per cell, a list per column of its tables."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cola_lib.experiments.cells import CellKey, CellResult, plain_text, result_from_plain, result_to_plain, text_digest

_TABLES = ("scores", "layers")

MOST_CELLS, MOST_BYTES = 100_000, 2**32
"""What a packed file may hold: sizes are read before the cells are."""


def write_packed(results: Sequence[CellResult]) -> bytes:
    """Pack cells."""
    plain = [result_to_plain(result) for result in results]
    columns = {"about": pa.array([_about(cell) for cell in plain], pa.string())}
    for table in _TABLES:
        for name in dict.fromkeys(name for cell in plain for name in cell[table]):
            columns[f"{table}/{name}"] = _lists([cell[table].get(name) for cell in plain])
    digests = [text_digest(plain_text(_cell(columns, row))) for row in range(len(plain))]
    columns["key"] = pa.array([result.key.fingerprint for result in results], pa.string())
    columns["sha256"] = pa.array(digests, pa.string())
    buffer = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        buffer,
        compression="zstd",
        compression_level=15,
        data_page_size=2**24,  # cells repeat the same items: a long page lets the compressor see it
    )
    return buffer.getvalue()


class PackedCells(Mapping[str, CellResult]):
    """Cells of a packed file by their fingerprint; each is decoded when it is asked for."""

    def __init__(self, data: bytes) -> None:
        try:
            file = pq.ParquetFile(pa.BufferReader(data))
            groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
            if file.metadata.num_rows > MOST_CELLS or sum(group.total_byte_size for group in groups) > MOST_BYTES:
                raise ValueError(f"{file.metadata.num_rows:,} rows, or more bytes than evidence has once unpacked")
            table = file.read()
        except pa.ArrowException as error:
            raise ValueError(f"no Parquet file of cells: {error}") from error
        self._columns = {name: table.column(name).combine_chunks() for name in table.column_names}
        self._digests = self._columns.pop("sha256").to_pylist()
        self._row = {key: row for row, key in enumerate(self._columns.pop("key").to_pylist())}
        for key, about in zip(self._row, self._columns["about"].to_pylist(), strict=True):
            if CellKey(**json.loads(about)["key"]).fingerprint != key:
                raise ValueError(f"cell {key} is another one")

    def __getitem__(self, name: str) -> CellResult:
        row = self._row[name]
        cell = _cell(self._columns, row)
        if text_digest(plain_text(cell)) != self._digests[row]:
            raise ValueError(f"the checksum of cell {name} does not match")
        return result_from_plain(cell)

    def __contains__(self, name: object) -> bool:  # a mapping's own would decode the cell
        return name in self._row

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


def _about(cell: Mapping[str, Any]) -> str:
    """Everything of a cell except its tables."""
    return plain_text({name: value for name, value in cell.items() if name not in _TABLES})


def _cell(columns: Mapping[str, pa.Array], row: int) -> dict[str, Any]:
    """Put a cell together from its row."""
    cell: dict[str, Any] = {**json.loads(columns["about"][row].as_py()), **{table: {} for table in _TABLES}}
    for path, column in columns.items():
        values = None if path == "about" else column[row].as_py()
        if values is not None:
            table, _, name = path.partition("/")
            cell[table][name] = values
    return cell


def _lists(values: Sequence[list[Any] | None]) -> pa.Array:
    """Make a column of lists, its fractions in float32."""
    column = pa.array([None if v is None else _unwrapped(v) for v in values])
    return column.cast(_float32(column.type))


def _unwrapped(values: Sequence[Any]) -> list[Any]:
    """Turn missing values of pandas into None."""
    return [None if value is pd.NA else value for value in values]


def _float32(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_float32(kind.value_type))
    return pa.float32() if pa.types.is_floating(kind) else kind

"""Read rows of a parquet file in batches, to stop a file that is small on disk and too large in memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lora_ft.core.columns import Short, shortest
from lora_ft.core.errors import LoraFtError, UsageError, first_line
from lora_ft.core.memory import allowed_memory
from lora_ft.data.formats.content import Content, Located

_BATCH = 1024  # rows
_ROW_COST = 4  # bytes of Python rows per byte of Arrow data


def read_parquet(content: Content) -> list[Located]:
    """Return the rows of a parquet file, located by "file[row]".

    Categories become their values, structs become objects, and decimals become exact numbers. Floats of 32 bits become
    the shortest number that they stand for. Times and bytes are kept.

    Raises:
        LoraFtError: The file is damaged, or a column cannot be read.
        UsageError: Two columns have the same name, the rows do not fit into memory, or pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:  # the base install lacks pyarrow
        raise UsageError(
            f"{content.file} is parquet, and pyarrow is not installed",
            "pip install 'lora-ft[train]', or use JSON Lines",
        ) from error
    file, limit, size = content.file, allowed_memory() // _ROW_COST, 0
    rows: list[Located] = []
    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content.data))
        repeated = [name for name, count in Counter(table.schema_arrow.names).items() if count > 1]
        if repeated:
            raise UsageError(f"{file} has two columns named '{repeated[0]}'", "rename or remove one of them")
        for batch in table.iter_batches(_BATCH):
            size += batch.nbytes + 16 * batch.num_rows * batch.num_columns
            if size > limit:
                raise UsageError(f"{file} has more rows than fit into memory", "use fewer of its rows")
            columns = {name: _values(content, name, batch.column(name)) for name in batch.schema.names}
            for i in range(batch.num_rows):
                rows.append((f"{file}[{len(rows)}]", {name: values[i] for name, values in columns.items()}))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise LoraFtError(f"{file} is not a complete parquet file ({first_line(error)})", "copy it again") from error
    return rows


def _values(content: Content, name: str, column: Any) -> list[Any]:
    """Return the values of a column; raise LoraFtError if Python cannot represent them."""
    try:
        values: list[Any] = shortest(column.to_pylist(), _short_floats(column.type))
    except (ValueError, OverflowError, ArithmeticError, ImportError) as error:
        raise LoraFtError(
            f"{content.file}: column '{name}' cannot be read as {column.type} ({first_line(error)})",
            "write it as text, or leave it out",
        ) from error
    return values


def _short_floats(kind: Any) -> Short:
    """Return which numbers of a type of pyarrow are 32-bit floats."""
    if str(kind).startswith("struct<"):
        return {field.name: _short_floats(field.type) for field in kind}
    inner = getattr(kind, "value_type", None)  # of a list or a category
    return str(kind) == "float" if inner is None else _short_floats(inner)

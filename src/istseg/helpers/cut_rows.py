"""Tables copied in part, in the form of their source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from istseg.raw import tables


def copy(source: Path, target: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Copy what `change` leaves of each block of rows; columns keep their types. Those of csv come as text, so numbers stay the text they are."""
    if tables.is_parquet(source):
        with pq.ParquetFile(source) as stored, pq.ParquetWriter(target, stored.schema_arrow) as writer:
            for batch in stored.iter_batches(1 << 18):
                writer.write_table(change(pa.Table.from_batches([batch])))
        return
    names = tables.header(source)
    with pa.CompressedOutputStream(str(target), "gzip") if tables.is_gzip(source) else pa.OSFile(str(target), "wb") as stream:
        stream.write((",".join(f'"{n}"' if "," in n else n for n in names) + "\n").encode())
        for block in tables.stream(source, dict.fromkeys(names, pa.string())):
            pyarrow.csv.write_csv(change(block), stream, pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed"))

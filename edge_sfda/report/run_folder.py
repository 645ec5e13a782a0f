"""The folder that a run leaves: config.toml, metrics.csv, report.json, curves.png, strip.png.

metrics.csv grows while the run goes on, so that a run that is cut off leaves its history; everything else is written
whole or not at all.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sfda.data.frames import write_png
from edge_sfda.errors import WriteError
from edge_sfda.files import write_text_atomic
from edge_sfda.report.curves import curves
from edge_sfda.report.plain import to_json

_log = logging.getLogger(__name__)


class RunFolder:
    """Makes the folder and writes into it; files of an earlier run of the same name are replaced.

    Args:
        path: the folder; it and its parents are made where they are missing.
        resumed_at: step after which an earlier run is gone on with: its rows up to there are kept. 0 keeps none.

    Attributes:
        rows: what `add_row` was given so far.

    Raises:
        WriteError: the folder cannot be made or written. Raised here, before a run has cost anything.
    """

    def __init__(self, path: str | Path, *, resumed_at: int = 0) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        self._columns: tuple[str, ...] = ()
        make_folder(self.path)
        earlier = _rows_until(self.path / "metrics.csv", resumed_at)
        write_text_atomic(self.path / "metrics.csv", "")  # an earlier run's rows must not mix with this one's
        for row in earlier:
            self.add_row(row)

    def write_config(self, toml: str) -> None:
        """Write the resolved configuration.

        Raises:
            WriteError: it cannot be written.
        """
        write_text_atomic(self.path / "config.toml", toml)

    def add_row(self, row: Mapping[str, float]) -> None:
        """Append one step's numbers to metrics.csv; the first row settles the columns, NaN is left empty.

        Raises:
            WriteError: a column is new, or the row cannot be written.
        """
        self._columns = self._columns or tuple(row)
        unknown = set(row) - set(self._columns)
        if unknown:
            raise WriteError(
                f"metrics.csv has the columns {', '.join(self._columns)}; got {', '.join(sorted(unknown))}"
            )
        lines = io.StringIO()
        writer = csv.DictWriter(lines, self._columns, lineterminator="\n")
        if not self.rows:
            writer.writeheader()
        writer.writerow({key: "" if math.isnan(value) else value for key, value in row.items()})
        path = self.path / "metrics.csv"
        try:
            with path.open("a", encoding="utf-8", newline="") as stream:
                stream.write(lines.getvalue())
        except OSError as error:
            raise WriteError(f"cannot write {path}: {error.strerror}; check the folder and its free space") from error
        self.rows.append(dict(row))

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Write report.json; NaN becomes null.

        Raises:
            WriteError: it cannot be written.
        """
        write_text_atomic(self.path / "report.json", to_json(report) + "\n")

    def write_curves(self, *, title: str = "") -> Path | None:
        """Draw the rows so far to curves.png and return its path; None, and no file, before the first row.

        Raises:
            WriteError: it cannot be written.
        """
        if not self.rows:
            return None
        return self.write_picture("curves", curves(self.rows, title=title))

    def write_picture(self, stem: str, picture: npt.NDArray[np.uint8]) -> Path:
        """Write `STEM.png`, HWC uint8 BGR, and return its path.

        Raises:
            WriteError: it cannot be written.
        """
        path = self.path / f"{stem}.png"
        write_png(path, picture)
        return path


def _rows_until(path: Path, step: int) -> list[dict[str, float]]:
    """Return an earlier run's rows up to `step`; the last one may have been cut off in the middle, and is left out."""
    if step == 0:
        return []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            found = list(csv.DictReader(stream, strict=True))
        rows = [{key: float(value or "nan") for key, value in row.items()} for row in found if None not in row.values()]
        return [{**row, "step": int(row["step"])} for row in rows if row["step"] <= step]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        _log.warning("the rows before step %d are lost: %s cannot be read (%s)", step, path, error)
        return []


def make_folder(path: Path) -> None:
    """Make a folder and its parents where they are missing, and see that files can be written there.

    Raises:
        WriteError: it cannot be made or written, or `path` is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {path}: {error.strerror}; choose another -o") from error
    probe = path / f".probe-{secrets.token_hex(4)}"
    write_text_atomic(probe, "")
    probe.unlink(missing_ok=True)

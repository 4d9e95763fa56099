"""What a notebook leaves in its run folder: figures, tables and one result JSON."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvlr_lib.disk import write_json
from rvlr_lib.figures.redraw import save_recipe
from rvlr_lib.figures.style import save_figure
from rvlr_lib.provenance import data_name, default_root, provenance


@dataclass
class RunOutput:
    """Collects the output of one notebook on one data set.

    Attributes:
        notebook: its name, such as ``02_training``.
        dataset: its data set.
        folder: the run folder; empty means ``runs/quick``.
    """

    notebook: str
    dataset: str
    folder: Path | str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder) if self.folder else default_root() / "quick"
        self.dataset = data_name(self.dataset)

    def figure(self, figure: Any, name: str, data: Any) -> Any:
        """Save a figure as PNG and PDF with the CSV it was drawn from, and hand it back to be shown.

        Beside them lies, as JSON, what ``rvlr figures`` needs to draw it again.
        """
        save_figure(figure, Path(self.folder) / "figures", f"{self.dataset}_{name}", data)
        save_recipe(figure, Path(self.folder) / "figures", f"{self.dataset}_{name}", data)
        return figure

    def table(self, frame: Any, name: str) -> Any:
        """Keep a DataFrame as a table of the report, and hand it back to be shown."""
        named = any(level is not None for level in frame.index.names)
        self.tables[name] = (frame.reset_index() if named else frame).to_dict(orient="records")
        return frame

    def keep(self, row: str, metrics: dict[str, float]) -> None:
        """Keep the numbers of one row; ``reproduce --check`` compares them."""
        self.metrics |= {f"{row} | {key}": value for key, value in metrics.items()}

    def save(self) -> Path:
        """Write ``results/<dataset>_<notebook>.json`` and say how long it took; without it nothing has finished."""
        path = Path(self.folder) / "results" / f"{self.dataset}_{self.notebook}.json"
        seconds = time.monotonic() - self.started
        value = {
            "notebook": self.notebook,
            "dataset": self.dataset,
            "metrics": self.metrics,
            "tables": self.tables,
            "provenance": provenance() | {"seconds": seconds},
        }
        write_json(path, value)
        print(f"{self.notebook} on {self.dataset}: {seconds:.0f} s, numbers in {path.name}")
        return path

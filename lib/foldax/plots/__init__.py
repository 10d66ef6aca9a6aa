"""Figures for papers and logs; nothing here needs a run."""

from foldax.plots.agents import interval_bars, performance_profiles, played, returns_by_seed, strip
from foldax.plots.common import (
    confusion_counts,
    confusion_matrix,
    confusion_text,
    embedding,
    embeddings,
    image_classification,
    image_grid,
    image_rows,
    learning_curves,
    members,
    mistakes,
    neighbours,
    plane,
    roc_curve,
)
from foldax.plots.forecasts import calibration, coverage, forecast_fans, intervals, reach_of
from foldax.plots.style import COLORS, CYCLE, new_figure

__all__ = [
    "COLORS",
    "CYCLE",
    "calibration",
    "confusion_counts",
    "confusion_matrix",
    "confusion_text",
    "coverage",
    "embedding",
    "embeddings",
    "forecast_fans",
    "image_classification",
    "image_grid",
    "image_rows",
    "interval_bars",
    "intervals",
    "learning_curves",
    "members",
    "mistakes",
    "neighbours",
    "new_figure",
    "performance_profiles",
    "plane",
    "played",
    "reach_of",
    "returns_by_seed",
    "roc_curve",
    "strip",
]

"""Figures for papers and logs; nothing here needs a run."""

from foldax.plots.agents import episode_curves, film_strip, interval_bars, performance_profiles, returns_by_seed
from foldax.plots.classification import (
    confusion_counts,
    confusion_matrix,
    confusion_text,
    image_classification,
    mistakes,
    predicted_classes,
    roc_curve,
)
from foldax.plots.common import comparison_curves, embedding, embeddings, learning_curves, project_to_plane
from foldax.plots.forecasts import (
    calibration_curve,
    forecast_fans,
    interval_coverage,
    interval_half_width,
    prediction_intervals,
)
from foldax.plots.images import cluster_members, image_grid, image_rows, nearest_neighbors
from foldax.plots.style import COLORS, CYCLE, new_figure

# Classification
__all__ = ["confusion_counts", "confusion_matrix", "confusion_text", "image_classification", "mistakes", "roc_curve"]
__all__ += ["predicted_classes"]
# Regression and forecasts
__all__ += ["prediction_intervals", "interval_coverage", "interval_half_width", "calibration_curve", "forecast_fans"]
# Agents
__all__ += ["returns_by_seed", "performance_profiles", "interval_bars", "episode_curves", "film_strip"]
# Images and representations
__all__ += ["image_grid", "image_rows", "nearest_neighbors", "cluster_members", "embedding", "embeddings"]
__all__ += ["project_to_plane"]
# Any run, and the style of all figures
__all__ += ["learning_curves", "comparison_curves", "new_figure", "COLORS", "CYCLE"]

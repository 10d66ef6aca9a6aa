"""Figures of images: grids, labelled rows, nearest neighbours and members of clusters."""

import textwrap
from collections.abc import Sequence

import numpy as np

from foldax.plots.style import Figure, new_figure, single_axis


def image_grid(images: np.ndarray, titles: Sequence[str] = (), columns: int = 8, title: str = "") -> Figure:
    """Draws images in a grid, row by row.

    Args:
      images: `[N, H, W, C]` with C of 1 or 3, or `[N, H, W]`.
      titles: one per image.
      columns: images in a row.
      title: title of the figure.

    >>> len(image_grid(np.zeros((5, 4, 4)), columns=3).axes)  # two rows, the last place empty
    6
    """
    count = max(1, len(images))
    columns = min(columns, count)
    # Titles are as wide as a column.
    wrapped = [textwrap.fill(title, 16) for title in titles]
    lines = max((text.count("\n") + 1 for text in wrapped), default=0)
    figure, axes = new_figure(-(-count // columns), columns, width=1.15, height=1.15 + 0.12 * lines)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        # Grey images [H, W, 1] must lose their last axis; `cmap` is ignored for colours.
        axis.imshow(np.squeeze(image), cmap="gray_r", interpolation="nearest")
        if wrapped:
            axis.set_title(wrapped[index], fontsize=7)
    figure.suptitle(title or ("" if len(images) else "none"), fontsize=9)
    return figure


def image_rows(rows: np.ndarray, names: Sequence[str] = (), columns: Sequence[str] = (), title: str = "") -> Figure:
    """Draws images in labelled rows and columns, such as samples by class or steps of an interpolation.

    Args:
      rows: `[R, S, H, W, C]`; grey images (C of 1) share one scale, colours (C of 3) are in [0, 1].
      names: labels of the R rows.
      columns: labels of the S columns.
      title: title of the figure.

    >>> figure = image_rows(np.zeros((2, 3, 4, 4, 1)), ["input", "reconstruction"])
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['input', 'reconstruction']
    """
    # One picture of all tiles, with gaps above and to the left of each; the first gaps are cut off.
    count, wide, height, width, channels = rows.shape
    gap = max(1, round(0.08 * height))
    edges = [(0, 0), (0, 0), (gap, 0), (gap, 0), (0, 0)]
    tiles = np.pad(np.asarray(rows, np.float32), edges, constant_values=np.nan)
    picture = tiles.transpose(0, 2, 1, 3, 4).reshape(count * (height + gap), wide * (width + gap), channels)[gap:, gap:]
    side = 0.6 * max(1.0, width / height)
    names_width = 0.12 * max(map(len, names), default=0)
    figure, axis = single_axis(width=side * wide + names_width + 0.2, height=0.6 * count + 0.5)
    axis.imshow(np.nan_to_num(picture, nan=1.0) if channels == 3 else picture[..., 0], cmap="gray_r")
    # Labels at the middle of each column and row of tiles.
    axis.set_xticks(np.arange(wide) * (width + gap) + (width - 1) / 2 if columns else [], columns, fontsize=7)
    axis.set_yticks(np.arange(count) * (height + gap) + (height - 1) / 2 if names else [], names, fontsize=8)
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=9)
    return figure


def nearest_neighbors(samples: np.ndarray, nearest: np.ndarray, distances: np.ndarray, title: str = "") -> Figure:
    """Draws generated images above their nearest training images, with the distances between them.

    Args:
      samples: `[N, H, W, C]`.
      nearest: the nearest training images (see `evaluation.generative.nearest_neighbors`), `[N, H, W, C]`.
      distances: `[N]`.
      title: title of the figure.

    >>> figure = nearest_neighbors(np.zeros((2, 4, 4, 1)), np.ones((2, 4, 4, 1)), np.array([4.0, 4.25]))
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['4.0', '4.2']
    """
    return image_rows(np.stack([samples, nearest]), ("generated", "nearest"), [f"{d:.1f}" for d in distances], title)


def cluster_members(
    images: np.ndarray, assignments: np.ndarray, distances: np.ndarray | None = None, columns: int = 12
) -> Figure:
    """Draws images of every cluster, one row per cluster, with the size of each.

    Args:
      images: `[N, H, W, C]`.
      assignments: clusters of the images, int `[N]`.
      distances: `[N]`, distances to the cluster centres: each row then spans evenly from the nearest image to the
        farthest. None draws the first images of each cluster.
      columns: images in a row.

    >>> figure = cluster_members(np.zeros((3, 4, 4, 1)), np.array([0, 1, 1]), columns=2)
    >>> [axis.get_ylabel() for axis in figure.axes[::2]]
    ['0\\n(1)', '1\\n(2)']
    """
    clusters, counts = np.unique(assignments, return_counts=True)
    figure, axes = new_figure(len(clusters), columns, width=0.62, height=0.66)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, cluster, count in zip(axes, clusters, counts, strict=True):
        members = np.flatnonzero(assignments == cluster)
        if distances is not None:
            # Evenly spaced ranks, from the nearest to the farthest.
            members = members[np.argsort(distances[members], kind="stable")]
            members = members[np.linspace(0, count - 1, min(count, columns)).round().astype(int)]
        row[0].set_ylabel(f"{cluster}\n({count:,})", fontsize=7, rotation=0, ha="right", va="center")
        for axis, index in zip(row, members, strict=False):
            axis.imshow(np.squeeze(images[index]), cmap="gray_r", interpolation="nearest")
    order = "" if distances is None else ", from nearest to farthest from its centre"
    figure.suptitle(f"members of each cluster (cluster size){order}", fontsize=9)
    return figure

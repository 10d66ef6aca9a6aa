"""The interface between data and engine: what a dataset must offer so that a run can train and evaluate on it.

`data.load` and `rl.from_vector_env` make such datasets; any object with these attributes is one.
"""

from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from foldax.learner import Batch, Key


class Policy(Protocol):
    """The current learner's `predict`, for data that depends on it (see `engine.policy.CurrentPolicy`)."""

    def __call__(self, inputs: Any, number: int) -> jax.Array:
        """Computes outputs of inputs `[N, ...]`; each `number` of a call has its own random key."""


class DataBlock(NamedTuple):
    """Data of some consecutive training steps; the default stands in where there is no dataset.

    Attributes:
      data: pytree of device arrays, the first argument of `Feed.batch`.
      start: first step of the block.
      end: the step after its last one; None if the block serves every step.

    >>> DataBlock().end is None
    True
    """

    data: Batch = None
    start: int = 0
    end: int | None = None


class EvaluationBlock(NamedTuple):
    """Some examples of an evaluation split, as K batches of B.

    Attributes:
      batches: arrays `[K, B, ...]` by name.
      mask: bool `[K, B]`, False for padding.
    """

    batches: dict[str, Any]
    mask: Any


class Feed(Protocol):
    """Selects the batch of one step from a block; hashable, because it is static in the compiled program.

    `batch_axis` (by default 0) is the axis of a batch that several devices divide.
    """

    def batch(self, data: Batch, key: Key, step: jax.Array, start: jax.Array) -> Batch:
        """Selects a batch `[B, ...]`; called while the training step is traced.

        Args:
          data: `DataBlock.data`.
          key: the run's data key, the same at every step.
          step: int32 [], number of the training step.
          start: int32 [], first step of the block.
        """


class DataSource(Protocol):
    """Source of training batches: a sequence of blocks, from which `feed` selects one batch per step.

    One of your own takes the place of a dataset's: `dataset._replace(train=source)`. Blocks that are a function of the
    seed and the step resume exactly.

    >>> import itertools
    >>> import numpy as np
    >>> class NoiseFeed(NamedTuple):  # hashable, without arrays: it is static in the compiled program
    ...     def batch(self, data, key, step, start):
    ...         return {"inputs": data["inputs"][step - start]}
    >>> class NoiseSource:
    ...     feed = NoiseFeed()
    ...
    ...     def examples(self):
    ...         return {"inputs": np.zeros((4, 3))}
    ...
    ...     def blocks(self, seed, step):
    ...         for start in itertools.count(step // 10 * 10, 10):
    ...             inputs = np.random.default_rng((seed, start)).normal(size=(10, 4, 3))
    ...             yield DataBlock({"inputs": inputs}, start, start + 10)
    >>> source: DataSource = NoiseSource()
    >>> block = next(source.blocks(seed=0, step=13))
    >>> block.start, block.end, source.feed.batch(block.data, None, 13, block.start)["inputs"].shape
    (10, 20, (4, 3))
    """

    @property
    def feed(self) -> Feed:
        """Selects batches from blocks."""

    def examples(self) -> Batch:
        """Examples for `Learner.init`: the whole training split `[N, ...]` if it is on the device, else one batch."""

    def blocks(self, seed: int, step: int) -> Generator[DataBlock, Policy | None, None]:
        """Yields the block that contains `step`, then the blocks after it; seed and step determine them.

        For every further block the engine sends the current `Policy`, which data that depends on the learner (host
        environments) acts with.

        Args:
          seed: seed of the run.
          step: first training step to yield data for.
        """


class EvaluationSource(Protocol):
    """One evaluation split."""

    @property
    def num_examples(self) -> int:
        """Number of examples N, or of episodes."""

    def blocks(self, policy: Policy) -> Iterator[EvaluationBlock]:
        """Yields blocks of one shape that together hold every example exactly once, in order."""

    def block_spec(self) -> EvaluationBlock:
        """Shapes and dtypes of a block, as `jax.ShapeDtypeStruct`s, without reading any data."""


class Dataset(Protocol):
    """Training source and evaluation splits of a run.

    A dataset whose own state cannot be saved, such as simulators on the host, has a further attribute
    `nonresumable_reason`: a clause that explains why a resumed run differs from an uninterrupted one.
    """

    @property
    def info(self) -> Any:
        """Static, hashable facts about the training split, with at least `batch_size` and `fingerprint`."""

    @property
    def train(self) -> DataSource:
        """Where training batches come from."""

    @property
    def splits(self) -> Mapping[str, EvaluationSource]:
        """Evaluation splits: "validation" and "test", of which an empty one is absent, and others of any name."""

    def to(self, device: jax.Device | jax.sharding.Sharding) -> "Dataset":
        """Copies the dataset to another device, or to several.

        Args:
          device: a device, or the sharding over several of a batch `[B, ...]`, of which only the first axis is divided;
            `foldax.mesh.batch_sharding` makes that of a block `[K, B, ...]` from it.
        """

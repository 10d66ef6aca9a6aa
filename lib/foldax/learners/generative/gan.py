"""Generative adversarial networks (Goodfellow et al., 2014): two players, one update.

Batches are `{"inputs": [B, ...]}`; a conditional one also needs integer "targets" `[B]`. Each player's loss rises when
the other one learns, so neither says how far the game is. "loss" is the energy score instead, which nobody descends:
how far draws are from the real images of their class, less half of how far they are from each other. Its mean is least
for the true distribution and for no other (Gneiting & Raftery, 2007), so it falls as the generator learns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from foldax.errors import ConfigError, ExperimentError, nearest
from foldax.learner import Learner
from foldax.learners import gradients, tasks
from foldax.learners.gradients import TrainState
from foldax.learners.tasks import Batch, Values

Game = Literal["non_saturating", "wasserstein", "hinge"]


class GAN(NamedTuple):
    """Two networks, each told the class of an image if there are classes.

    Attributes:
      generator: any network of codes `[B, D]`, followed by one-hot classes, to as many numbers as an image has.
      discriminator: any network `[B, ...]` to `[B, 1]`, or to `[B, num_classes]` of which the image's class is picked:
        a linear function of features for each class (Miyato & Koyama, 2018). Without batch normalisation.
      shape: of one image.
      codes: D, numbers from a standard normal that an image is made of.
      num_classes: None: neither is told.
      bound: what the generator's outputs go through, such as `jnp.tanh` for images from -1 to 1.
    """

    generator: Any
    discriminator: Any
    shape: Sequence[int]
    codes: int
    num_classes: int | None = None
    bound: Callable[[jax.Array], jax.Array] = lambda outputs: outputs

    def told(self, codes: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns what the generator is given: codes `[B, D]`, with classes int `[B]` if it is conditional."""
        if self.num_classes is None:
            return codes
        return jnp.concatenate([codes, jax.nn.one_hot(labels, self.num_classes)], axis=-1)

    def images(self, variables: Any, codes: jax.Array, labels: jax.Array, **options: Any) -> tuple[jax.Array, Any]:
        """Returns images `[B, ...]` and the collections that changed; options are those of Flax's `apply`."""
        outputs, changed = self.generator.apply(variables, self.told(codes, labels), **options)
        if math.prod(outputs.shape[1:]) != math.prod(self.shape):
            raise ConfigError(f"GAN: the generator gives {list(outputs.shape[1:])} and images are {list(self.shape)}")
        return self.bound(outputs.reshape(-1, *self.shape)), changed

    def scores(self, variables: Any, images: jax.Array, labels: jax.Array, **options: Any) -> tuple[jax.Array, Any]:
        """Returns scores `[B]` of images as what they are said to be, and the collections that changed."""
        outputs, changed = self.discriminator.apply(variables, images, **options)
        wanted = (len(images), self.num_classes or 1)
        if outputs.shape != wanted:
            raise ConfigError(f"GAN: the discriminator must give {list(wanted)}, got {list(outputs.shape)}")
        chosen = jnp.zeros_like(labels) if self.num_classes is None else labels
        return jnp.take_along_axis(outputs, chosen[:, None], axis=1)[:, 0], changed

    def labels(self, batch: Batch) -> jax.Array:
        """Returns the classes int `[B]` of a batch, 0 where nobody is told."""
        if self.num_classes is None:
            return jnp.zeros(len(batch["inputs"]), jnp.int32)
        return batch["targets"].astype(jnp.int32)


class Players(NamedTuple):
    """What a `GAN` learns.

    Attributes:
      generator: makes images of codes; its moving average, where there is one, is what is evaluated.
      discriminator: scores images, real ones higher.
    """

    generator: TrainState
    discriminator: TrainState

    @property
    def params(self) -> dict[str, Any]:
        """What is learned, of both."""
        return {"generator": self.generator.params, "discriminator": self.discriminator.params}


def gan(
    model: GAN,
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
    *,
    game: Game = "non_saturating",
    gradient_penalty: Any = None,
    discriminator_steps: int = 1,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    finish: Callable[[jax.Array], jax.Array] = lambda images: images,
    augment: Callable[[jax.Array, Batch], Batch] | None = None,
    ema_decay: Any = None,
    samples: int = 0,
) -> Learner:
    """Returns a learner of images like those it is shown.

    An update divides its batch into `discriminator_steps` equal parts. The discriminator takes a step on each, with as
    many new images of the same classes; then the generator takes one, for the last part's classes. It reports "loss"
    (see above; in units of `preprocess`), "generator_loss", "discriminator_loss" (with its penalty), "margin" (by how
    much real images score higher; a distance of distributions, with Wasserstein's loss), "gradient_penalty" where there
    is one, and "gradient_norm" of the generator.

    `evaluate` reports "loss" `[B]` and, with `samples`, gives "samples" `[B, S, ...]` in the data's units, S of each
    example's class, and "targets" where there are some. `predict` takes classes int `[B]` (only their number counts for
    an unconditional one), or {"inputs": classes, "codes": `[B, D]`}, and gives images `[B, ...]`.

    Args:
      model: both networks, in units of `preprocess`.
      generator_optimizer: of optax; its rates may be traced.
      discriminator_optimizer: the same.
      game: "non_saturating" (Goodfellow et al., 2014), "wasserstein" (Arjovsky et al., 2017; with a penalty or spectral
        normalisation, see `models.SpectralNorm`) or "hinge" (Lim & Ye, 2017).
      gradient_penalty: weight of (|gradient| - 1)^2 of scores between real and generated images (WGAN-GP, Gulrajani et
        al., 2017, with 10); may be traced; None: none, and no gradients of gradients.
      discriminator_steps: within an update; must divide the batch.
      preprocess: pure function of the inputs; by default they become float32.
      finish: the opposite: makes images in the data's units of generated ones.
      augment: `(key, batch) -> batch`, changes real images (see `foldax.augment`).
      ema_decay: evaluate with a moving average of the generator that weighs the past by this; may be traced.
      samples: S.

    Raises:
      ConfigError: there is no such game, or a number is too small; while tracing, a network gives another number of
        numbers than it must, the discriminator has batch normalisation, inputs have another shape, or the steps do not
        divide the batch.
    """
    _check(model, game, discriminator_steps, samples)
    fields = ("inputs",) if model.num_classes is None else ("inputs", "targets")
    prepared = tasks.inputs_of(None, preprocess)

    def init(key: jax.Array, examples: Any) -> Players:
        first = {name: leaf[:1] for name, leaf in tasks.checked(examples, fields).items()}
        codes, one, other = jnp.zeros((1, model.codes)), *jax.random.split(key)
        inputs = model.told(codes, model.labels(first))
        maker = _initialized(one, model.generator, inputs, generator_optimizer, ema_decay)
        judge = _initialized(other, model.discriminator, prepared(first), discriminator_optimizer)
        if "batch_stats" in judge.model_state:
            raise ConfigError(
                "GAN: the discriminator has batch normalisation, which makes an image's score depend on the others"
            )
        return Players(maker, judge)

    def update(state: Players, batch: Any, key: jax.Array) -> tuple[Players, Values]:
        batch, keys = tasks.checked(batch, fields), jax.random.split(key, 4)
        if augment is not None:
            batch = augment(keys[0], batch)
        real = prepared(batch)
        if real.shape[1:] != tuple(model.shape):
            raise ConfigError(f"GAN: inputs must be [B, ...] of shape {tuple(model.shape)}, got {list(real.shape)}")
        parts = _divided({"real": real, "labels": model.labels(batch)}, discriminator_steps)
        maker, loss = state.generator, discriminator_loss(model, game, gradient_penalty)

        def discriminate(judge: TrainState, turn: Any) -> tuple[TrainState, Values]:
            part, (first, second) = turn[0], jax.random.split(turn[1])
            made, _ = generated(model, maker.params, maker.model_state, part["labels"], first)
            return gradients.step(judge, loss, discriminator_optimizer, {**part, "generated": made}, second)

        turns = parts, jax.random.split(keys[1], discriminator_steps)
        judge, seen = jax.lax.scan(discriminate, state.discriminator, turns)
        last = jax.tree.map(lambda leaf: leaf[-1], parts)
        after, metrics = gradients.step(
            maker, generator_loss(model, game, judge), generator_optimizer, last, keys[2], ema_decay=ema_decay
        )
        drawn = draw(maker, maker.params, last["labels"], keys[3], 2)
        means = {name: value.mean() for name, value in seen.items() if name != "gradient_norm"}
        return Players(after, judge), {"loss": energy_score(drawn, last["real"]).mean(), **means, **metrics}

    def draw(maker: TrainState, params: Any, labels: jax.Array, key: jax.Array, count: int) -> jax.Array:
        """Returns `count` images for each label, `[B, count, ...]`, in units of `preprocess`."""
        made = generated(model, params, maker.model_state, jnp.repeat(labels, count), key, train=False)[0]
        return made.reshape(len(labels), count, *model.shape)

    def evaluate(state: Players, batch: Any, key: jax.Array) -> Values:
        batch, maker = tasks.checked(batch, fields), state.generator
        drawn = draw(maker, maker.averaged, model.labels(batch), key, max(samples, 2))
        values = {"loss": energy_score(drawn, prepared(batch))}
        if samples:
            values["samples"] = finish(drawn[:, :samples])
        return values | ({"targets": batch["targets"].astype(jnp.int32)} if "targets" in batch else {})

    def predict(state: Players, inputs: Any, key: jax.Array) -> jax.Array:
        batch, maker = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}, state.generator
        labels = jnp.asarray(batch["inputs"])
        if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ExperimentError(f"GAN: predict takes classes, integers [B], got {labels.dtype} {list(labels.shape)}")
        made, _ = generated(model, maker.averaged, maker.model_state, labels, key, batch.get("codes"), train=False)
        return finish(made)

    return Learner(init, update, evaluate, predict)


def generated(
    model: GAN, params: Any, model_state: Any, labels: jax.Array, key: jax.Array, codes: Any = None, train: bool = True
) -> tuple[jax.Array, Any]:
    """Returns images `[B, ...]` for labels `[B]`, of codes drawn from `key` if there are none, and what changed."""
    first, second = jax.random.split(key)
    if codes is None:
        codes = jax.random.normal(first, (len(labels), model.codes))
    if codes.shape != (len(labels), model.codes):
        raise ExperimentError(f"GAN: codes must be [{len(labels)}, {model.codes}], got {list(codes.shape)}")
    options: dict[str, Any] = dict(train=train, rngs={"dropout": second}, mutable=list(model_state) if train else [])
    return model.images({"params": params, **model_state}, codes, labels, **options)


def discriminator_loss(model: GAN, game: Game, gradient_penalty: Any = None) -> gradients.Loss:
    """Returns the loss of the discriminator, for batches of "real" and "generated" images and their "labels"."""

    def loss(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> Any:
        variables, labels, keys = {"params": params, **model_state}, batch["labels"], jax.random.split(key, 3)
        both = jnp.concatenate([batch["real"], batch["generated"]])
        options: dict[str, Any] = dict(train=True, rngs={"dropout": keys[0]})
        scores, changed = model.scores(
            variables, both, jnp.concatenate([labels, labels]), mutable=list(model_state), **options
        )
        real, fake = jnp.split(scores, 2)
        total, metrics = discriminator_losses(game, real, fake).mean(), {"margin": real.mean() - fake.mean()}
        if gradient_penalty is not None:
            share = jax.random.uniform(keys[1], (len(labels),) + (1,) * len(model.shape))
            between = share * batch["real"] + (1 - share) * batch["generated"]
            options["rngs"] = {"dropout": keys[2]}
            slopes = penalty(lambda images: model.scores(variables, images, labels, mutable=[], **options)[0], between)
            metrics["gradient_penalty"] = slopes.mean()
            total = total + gradient_penalty * metrics["gradient_penalty"]
        return total, ({**model_state, **changed}, {**metrics, "discriminator_loss": total})

    return loss


def generator_loss(model: GAN, game: Game, judge: TrainState) -> gradients.Loss:
    """Returns the loss of the generator, for batches of "labels", as the discriminator's scores make it."""

    def loss(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> Any:
        labels, (first, second) = batch["labels"], jax.random.split(key)
        made, changed = generated(model, params, model_state, labels, first)
        variables = {"params": judge.params, **judge.model_state}
        scores, _ = model.scores(variables, made, labels, train=True, rngs={"dropout": second}, mutable=[])
        total = generator_losses(game, scores).mean()
        return total, ({**model_state, **changed}, {"generator_loss": total})

    return loss


def discriminator_losses(game: Game, real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns the discriminator's loss `[B]` of scores `[B]` of real images and of generated ones."""
    if game == "wasserstein":
        return fake - real
    if game == "hinge":
        return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def generator_losses(game: Game, fake: jax.Array) -> jax.Array:
    """Returns the generator's loss `[B]` of scores `[B]` of what it made."""
    return jax.nn.softplus(-fake) if game == "non_saturating" else -fake


def penalty(scores: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Returns (|gradient| - 1)^2 `[B]` of scores `[B]`, each at its own image (Gulrajani et al., 2017)."""
    slopes = jax.grad(lambda images: scores(images).sum())(images).reshape(len(images), -1)
    return jnp.square(jnp.sqrt(jnp.square(slopes).sum(axis=1) + 1e-12) - 1)


def energy_score(draws: jax.Array, real: jax.Array) -> jax.Array:
    """Returns the energy score `[B]` of draws `[B, S, ...]`, S of 2 or more, for what was real, `[B, ...]`.

    Distances are root mean squares over the numbers of an image.
    """
    batch, count = draws.shape[:2]
    flat, truth = draws.reshape(batch, count, -1), real.reshape(batch, 1, -1)
    distances = jnp.sqrt(jnp.square(flat - truth).mean(axis=-1)).mean(axis=1)
    between = jnp.sqrt(jnp.square(flat[:, :, None] - flat[:, None, :]).mean(axis=-1)).sum(axis=(1, 2))
    return distances - 0.5 * between * (1.0 / (count * (count - 1)))


def _initialized(key: jax.Array, module: Any, inputs: jax.Array, optimizer: Any, ema_decay: Any = None) -> TrainState:
    streams = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
    model_state = dict(module.init(streams, inputs, train=False))
    params = model_state.pop("params")
    return gradients.create(params, optimizer, model_state, ema_decay=ema_decay)


def _divided(batch: Batch, parts: int) -> Batch:
    size = len(batch["labels"])
    if size % parts:
        raise ConfigError(f"discriminator_steps: {parts} does not divide a batch of {size} into equal parts")
    return {name: leaf.reshape(parts, size // parts, *leaf.shape[1:]) for name, leaf in batch.items()}


def _check(model: GAN, game: str, discriminator_steps: int, samples: int) -> None:
    if game not in get_args(Game):
        known = ", ".join(get_args(Game))
        raise ConfigError(f"game: there is no {game!r}{nearest(str(game), get_args(Game))} (known: {known})")
    counts = {"codes": (model.codes, 1), "discriminator_steps": (discriminator_steps, 1), "samples": (samples, 0)}
    for name, (value, least) in counts.items():
        if value < least:
            raise ConfigError(f"{name}: {value} must be {least} or more")

"""Variational autoencoders (Kingma & Welling, 2014) with explicit likelihoods, so that the loss is a bound in nats.

Batches are `{"inputs": [B, ...]}`; a conditional VAE also needs "targets" int `[B]`. The likelihoods p(x | z) are in
`likelihoods`; the gradient step is that of every network (`tasks.network_learner`).
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias, Unpack

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.typing import VariableDict

from foldax.errors import ConfigError
from foldax.learner import Average, Evaluation, Learner, Sampler, as_evaluation
from foldax.learners import tasks
from foldax.learners.generative.likelihoods import Likelihood
from foldax.learners.gradients import TrainState
from foldax.models.adapters.checks import check_model

MeanAndLogStd: TypeAlias = tuple[jax.Array, jax.Array]


class ELBOTerms(NamedTuple):
    """Terms of the evidence lower bound of a batch, for one latent sample z ~ q(z | x) per example.

    Attributes:
      log_likelihood: log p(x | z), `[B]`, in nats.
      kl: KL(q(z_d | x) || N(0, 1)) of each latent dimension, `[B, D]`, in nats.
      posterior_mean: mean of q(z | x), `[B, D]`.
      log_importance_weight: log p(x, z) - log q(z | x), `[B]`: the log of a one-sample estimate of p(x).
    """

    log_likelihood: jax.Array
    kl: jax.Array
    posterior_mean: jax.Array
    log_importance_weight: jax.Array


class VAE(nn.Module):
    """Encoder and decoder with normal latents z and a standard normal prior: `[B, ...]` to `ELBOTerms`.

    Attributes:
      encoder: network `[B, ...]` to `[B, 2 * D]`, the means and log standard deviations of q(z | x).
      decoder: network of latents `[B, D]` to the likelihood's parameters, `likelihood.num_parameters` for each input
        dimension; with `neighbours` to whatever that head takes.
      likelihood: p(x | z), see `foldax.learners.likelihoods`.
      num_classes: number of classes, appended one-hot to the flattened inputs of the encoder and to the latents; None:
        unconditional.
      neighbours: autoregressive head `(decoded, inputs [B, N]) -> [B, N, P]`, each of whose outputs depends on
        preceding inputs only (`models.LocalAutoregressiveHead`), so that latents need not encode local detail
        (PixelVAE: Gulrajani et al., 2017). None: dimensions are independent given z. The attribute's name is part of
        the paths of the head's parameters, and so of their initial values.
      preprocess: pure function applied to the encoder's inputs, such as `info.standardize`.

    >>> from foldax import models
    >>> from foldax.learners import likelihoods
    >>> model = VAE(models.MLP((4,)), models.MLP((6,)), likelihoods.bernoulli())
    >>> terms, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((5, 6)))
    >>> terms.log_likelihood.shape, terms.kl.shape
    ((5,), (5, 2))
    """

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Likelihood
    num_classes: int | None = None
    neighbours: nn.Module | None = None
    preprocess: Callable[[jax.Array], jax.Array] | None = None

    def __call__(self, x: jax.Array, labels: jax.Array | None = None, *, train: bool = False) -> ELBOTerms:
        """Encodes, samples latents (from the random stream "dropout") and decodes.

        Args:
          x: inputs, float `[B, ...]`, in the units of the likelihood.
          labels: int `[B]`, for a conditional VAE.
          train: whether dropout is on.

        Returns:
          The terms of the ELBO.

        Raises:
          ConfigError: a conditional VAE gets no labels; the encoder has an odd number of outputs.
        """
        # Reparametrised sample z = mean + std * epsilon (Kingma & Welling, section 2.4)
        mean, log_std = self.encode(x, labels, train=train)
        # Latents use the "dropout" stream: the only one `network_learner` provides.
        epsilon = jax.random.normal(self.make_rng("dropout"), mean.shape)
        latents = mean + jnp.exp(log_std) * epsilon

        # log p(x | z), and the KL divergence in closed form (appendix B)
        inputs_BN = x.reshape(x.shape[0], -1)
        likelihood_params = self.likelihood_parameters(self.decode(latents, labels, train=train), inputs_BN)
        chex.assert_shape(likelihood_params, (*inputs_BN.shape, self.likelihood.num_parameters))
        log_likelihood = self.likelihood.log_prob(likelihood_params, inputs_BN)
        kl = 0.5 * (jnp.square(mean) + jnp.exp(2 * log_std) - 1) - log_std

        # log p(z) - log q(z | x), whose normalising constants cancel (importance weights of Burda et al., 2016)
        log_ratio = 0.5 * (jnp.square(epsilon) - jnp.square(latents)) + log_std
        return ELBOTerms(log_likelihood, kl, mean, log_likelihood + log_ratio.sum(axis=-1))

    def encode(self, x: jax.Array, labels: jax.Array | None = None, *, train: bool = False) -> MeanAndLogStd:
        """Returns mean and log standard deviation of q(z | x), both `[B, D]`."""
        x = x if self.preprocess is None else self.preprocess(x)
        # The class is appended to flat inputs: the encoder of a conditional VAE must be dense.
        if self.num_classes is not None:
            x = jnp.concatenate([x.reshape(x.shape[0], -1), self._one_hot(labels)], axis=-1)
        outputs = self.encoder(x, train=train)
        if outputs.shape[-1] % 2:
            raise ConfigError(f"VAE: the encoder must output means and log deviations, got {outputs.shape[-1]} values")
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        # Bounded, because the loss contains exp(2 log std).
        return mean, jnp.clip(log_std, -7.0, 7.0)

    def decode(self, latents: jax.Array, labels: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """Returns the decoder's outputs `[B, ...]` for latents `[B, D]`."""
        if self.num_classes is not None:
            latents = jnp.concatenate([latents, self._one_hot(labels)], axis=-1)
        return self.decoder(latents, train=train)

    def likelihood_parameters(self, decoded: jax.Array, inputs: jax.Array) -> jax.Array:
        """Returns the likelihood's parameters `[B, N, P]` from the decoder's outputs and the flat inputs `[B, N]`."""
        if self.neighbours is not None:
            return self.neighbours(decoded, inputs)
        return decoded.reshape(decoded.shape[0], -1, self.likelihood.num_parameters)

    def _one_hot(self, labels: jax.Array | None) -> jax.Array:
        if labels is None or self.num_classes is None:
            raise ConfigError("VAE: a conditional VAE (num_classes) needs labels")
        return jax.nn.one_hot(labels, self.num_classes)


def elbo_loss(terms: ELBOTerms, beta: chex.Numeric = 1.0, free_nats: chex.Numeric = 0.0) -> dict[str, jax.Array]:
    """Computes the loss -ELBO, with the options of beta-VAE (Higgins et al., 2017) and free bits (Kingma et al., 2016).

    Args:
      terms: of a batch of B examples.
      beta: weight of the KL divergence.
      free_nats: see `vae`.

    Returns:
      "loss", "reconstruction_loss", "kl" and "elbo" (without `beta` and `free_nats`), `[B]`, in nats.

    >>> terms = ELBOTerms(jnp.array([-5.0]), jnp.array([[1.0, 0.1]]), jnp.zeros((1, 2)), jnp.array([-6.0]))
    >>> elbo_loss(terms, free_nats=0.5)["loss"].tolist()
    [6.5]
    """
    chex.assert_equal_shape_prefix([terms.log_likelihood, terms.kl], 1)
    # -ELBO = -log p(x | z) + KL(q(z | x) || p(z))  (Kingma & Welling, equation 3)
    reconstruction_loss, kl = -terms.log_likelihood, terms.kl.sum(axis=-1)
    elbo = -reconstruction_loss - kl
    # Free bits: a dimension whose mean KL over the batch is below `free_nats` costs `free_nats`.
    mean_kl = terms.kl.mean(axis=0)
    free_bits_penalty = jnp.maximum(mean_kl, free_nats).sum() - mean_kl.sum()
    loss = reconstruction_loss + beta * (kl + free_bits_penalty)
    return {"loss": loss, "reconstruction_loss": reconstruction_loss, "kl": kl, "elbo": elbo}


def _elbo_task(model: VAE, beta: chex.Numeric, free_nats: chex.Numeric) -> tasks.Task:
    def conditioning(batch: tasks.Batch) -> dict[str, jax.Array]:
        return {} if model.num_classes is None else {"labels": batch["targets"]}

    def train_metrics(terms: ELBOTerms, batch: tasks.Batch) -> dict[str, jax.Array]:
        metrics = elbo_loss(terms, beta, free_nats)
        bits = _bits_per_dimension(model, metrics["elbo"], batch)
        return metrics if isinstance(bits, Average) else metrics | {"bits_per_dimension": bits}

    def evaluate(terms: ELBOTerms, batch: tasks.Batch) -> Evaluation:
        metrics = elbo_loss(terms, beta, free_nats)
        # Free bits are a property of a batch: the loss of a single example has none.
        metrics["loss"] = metrics["reconstruction_loss"] + beta * metrics["kl"]
        bits = {"bits_per_dimension": _bits_per_dimension(model, metrics["elbo"], batch)}
        outputs = {"latents": terms.posterior_mean, "kl_per_latent": terms.kl}
        return Evaluation({**metrics, **bits}, outputs | tasks.target_outputs(batch))

    fields = ("inputs",) if model.num_classes is None else ("inputs", "targets")
    return tasks.Task(fields, tasks.input_function(model), train_metrics, evaluate, model_kwargs=conditioning)


def vae(
    model: VAE,
    optimizer: optax.GradientTransformation,
    *,
    beta: chex.Numeric = 1.0,
    free_nats: chex.Numeric = 0.0,
    importance_samples: int = 0,
    samples_per_example: int = 0,
    **options: Unpack[tasks.NetworkOptions],
) -> Learner:
    """Learner that maximises the evidence lower bound (ELBO: Kingma & Welling, 2014).

    `update` and `evaluate` report "loss", "reconstruction_loss" (-log p(x | z)), "kl" and "elbo" in nats per example,
    and "bits_per_dimension" (of the ELBO). The "loss" of `evaluate` has no free bits. `evaluate` adds, with
    `importance_samples`, the metrics "iwae_bound" (nats) and "iwae_bits_per_dimension"; its outputs are "latents"
    `[B, D]` (posterior means), "kl_per_latent" `[B, D]`, "targets", where the batch has them, and, with
    `samples_per_example`, "samples" `[B, S, ...]` from the prior, of each example's class if the VAE is conditional.
    With a Bernoulli likelihood bits are reported by `evaluate` alone, over the examples that are black and white; of
    grey ones the "reconstruction_loss" is a cross-entropy, and no likelihood.
    `predict` takes the inputs, or {"inputs", "targets"} if the VAE is conditional, and returns reconstructions
    `[B, ...]`: the mean of p(x | z) at the posterior mean.

    Args:
      model: network; its inputs become float32, in the units of its likelihood.
      optimizer: Optax optimizer; its rates may be traced.
      beta: weight of the KL divergence (beta-VAE: Higgins et al., 2017); may be traced.
      free_nats: lower limit, in nats, of the KL of each latent dimension averaged over the batch, below which the loss
        does not reward a smaller KL (free bits: Kingma et al., 2016); may be traced. With `microbatches`, the KL is
        averaged over the microbatch.
      importance_samples: k of the importance-weighted bound (IWAE: Burda et al., 2016) in evaluation; 0: none.
      samples_per_example: S, number of samples per example in evaluation.
      **options: those of `tasks.NetworkOptions`: augment, frozen, l1, l2, ema_decay, microbatches.

    Returns:
      The learner; its state is a `gradients.TrainState`.

    Raises:
      ConfigError: `importance_samples` or `samples_per_example` is negative; `predict` of a conditional VAE gets no
        "targets".
      ExperimentError: while tracing, the batch lacks a field.

    >>> from foldax import models
    >>> from foldax.learners import likelihoods
    >>> model = VAE(models.MLP((4,)), models.MLP((6,)), likelihoods.bernoulli())
    >>> learner, batch = vae(model, optax.adam(1e-3)), {"inputs": jnp.zeros((5, 6))}
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    >>> jax.eval_shape(learner.evaluate, state, batch, jax.random.key(0)).outputs["latents"].shape
    (5, 2)
    """
    check_model(model)
    if min(importance_samples, samples_per_example) < 0:
        counts = f"{importance_samples} and {samples_per_example}"
        raise ConfigError(f"importance_samples and samples_per_example must be 0 or more, got {counts}")
    task = _elbo_task(model, beta, free_nats)
    # An update: 1. encode, sample z, decode (`VAE.__call__`); 2. `elbo_loss`; 3. one gradient step.
    learner = tasks.network_learner(model, optimizer, task, **options)

    def evaluate(state: TrainState, batch: tasks.Batch, key: jax.Array) -> Evaluation:
        elbo_key, sample_key = jax.random.split(key)
        # 1. ELBO of one latent sample per example
        metrics, outputs = as_evaluation(learner.evaluate(state, batch, elbo_key))
        labels = task.model_kwargs(batch)
        shape = batch["inputs"].shape[1:]

        def add_importance_weight(log_sum: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
            rngs = {"dropout": jax.random.fold_in(sample_key, index)}
            terms = model.apply(state.evaluation_variables, task.inputs(batch), **labels, rngs=rngs)
            return jnp.logaddexp(log_sum, terms.log_importance_weight), None

        def sample(key: jax.Array) -> jax.Array:
            latent_key, pixel_key = jax.random.split(key)
            latents = jax.random.normal(latent_key, outputs["latents"].shape)
            return decode_images(model, state.evaluation_variables, latents, shape, **labels, key=pixel_key)

        if importance_samples:
            # 2. Importance-weighted bound: log (1 / k) sum_i w_i  (Burda et al., 2016)
            # Accumulated in a scan, so that memory does not grow with k.
            initial = jnp.full(len(batch["inputs"]), -jnp.inf)
            log_sum, _ = jax.lax.scan(add_importance_weight, initial, jnp.arange(importance_samples))
            bound = log_sum - math.log(importance_samples)
            metrics |= {"iwae_bound": bound, "iwae_bits_per_dimension": _bits_per_dimension(model, bound, batch)}
        if samples_per_example:
            # 3. Samples from the prior; `fold_in` with k gives a key that no importance sample has.
            keys = jax.random.split(jax.random.fold_in(sample_key, importance_samples), samples_per_example)
            outputs["samples"] = jnp.moveaxis(jax.lax.map(sample, keys), 0, 1)
        return Evaluation(metrics, outputs)

    def predict(state: TrainState, inputs: jax.Array | tasks.Batch, key: jax.Array) -> jax.Array:
        batch = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": jnp.asarray(inputs)}
        if model.num_classes is not None and "targets" not in batch:
            raise ConfigError('VAE: predict of a conditional VAE takes {"inputs", "targets"}, and "targets" is missing')
        x, variables = task.inputs(batch), state.evaluation_variables
        # Deterministic: the posterior mean stands for z.
        mean, _ = model.apply(variables, x, **task.model_kwargs(batch), method=VAE.encode)
        return decode_images(model, variables, mean, x.shape[1:], **task.model_kwargs(batch))

    def draw(state: TrainState, labels: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        latent_key, pixel_key = jax.random.split(key)
        conditioning, variables = {} if model.num_classes is None else {"labels": labels}, state.evaluation_variables
        x = jnp.zeros((labels.shape[0], *shape))
        mean, _ = jax.eval_shape(lambda: model.apply(variables, x, **conditioning, method=VAE.encode))
        latents = jax.random.normal(latent_key, mean.shape)
        return decode_images(model, variables, latents, shape, **conditioning, key=pixel_key)

    sampler = Sampler(draw, num_classes=model.num_classes)
    fields = None if model.num_classes is None else dict.fromkeys(task.fields)
    return Learner(learner.init, learner.update, evaluate, predict, predict_inputs=fields, sampler=sampler)


def decode_images(
    model: VAE,
    variables: VariableDict,
    latents: jax.Array,
    shape: tuple[int, ...],
    labels: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Decodes latents to images: the mean of p(x | z) or, with a key, a sample.

    With an autoregressive head, pixels are decoded one after another, each given the preceding ones.

    Args:
      model: network.
      variables: its variables, `{"params": ...}`.
      latents: `[B, D]`.
      shape: shape of one image.
      labels: int `[B]`, for a conditional VAE.
      key: random key of the samples; None: means.

    Returns:
      Images, float32 `[B, *shape]`.

    >>> from foldax import models
    >>> from foldax.learners import likelihoods
    >>> model = VAE(models.MLP((4,)), models.MLP((6,)), likelihoods.bernoulli())
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6)))
    >>> jax.eval_shape(lambda variables: decode_images(model, variables, jnp.zeros((3, 2)), (6,)), variables).shape
    (3, 6)
    """
    decoded = model.apply(variables, latents, labels, method=VAE.decode)
    # The decoder runs once; only the head runs again for every pixel.
    positions = jnp.arange(math.prod(shape))

    def decode_pixels(inputs_BN: jax.Array, key: jax.Array | None) -> jax.Array:
        likelihood_params = model.apply(variables, decoded, inputs_BN, method=VAE.likelihood_parameters)
        if key is None:
            return model.likelihood.mean(likelihood_params)
        return model.likelihood.sample(key, likelihood_params)

    def decode_next(inputs_BN: jax.Array, position: jax.Array) -> tuple[jax.Array, None]:
        # Pixels after `position` are still 0, which no output up to `position` depends on.
        pixel_key = None if key is None else jax.random.fold_in(key, position)
        return jnp.where((positions == position)[None, :], decode_pixels(inputs_BN, pixel_key), inputs_BN), None

    inputs_BN = jnp.zeros((latents.shape[0], positions.size))
    if model.neighbours is None:
        return decode_pixels(inputs_BN, key).reshape(-1, *shape)
    return jax.lax.scan(decode_next, inputs_BN, positions)[0].reshape(-1, *shape)


def _bits_per_dimension(model: VAE, nats: jax.Array, batch: tasks.Batch) -> jax.Array | Average:
    """Converts bounds `[B]` to bits; where some inputs may have no likelihood, to a mean over those that have one."""
    inputs_BN = batch["inputs"].reshape(nats.shape[0], -1)
    bits = -nats / (inputs_BN.shape[1] * math.log(2))
    if model.likelihood.in_support is None:
        return bits
    in_support = model.likelihood.in_support(inputs_BN)
    return Average(jnp.where(in_support, bits, 0.0), in_support.astype(jnp.float32))

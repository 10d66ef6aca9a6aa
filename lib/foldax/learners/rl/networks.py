"""Networks of agents applied to observations: where these have a mask, illegal actions are excluded.

A policy acts and learns through the same function, so that both see the same mask.
"""

import jax

from foldax import models, rl
from foldax.learner import Key, Model, Params
from foldax.rl.environment import Observation


def apply_actor_critic(model: Model, params: Params, observation: Observation) -> models.ActorCriticOutput:
    """Applies an actor-critic to observations `[B, ...]`; illegal actions get probability 0.

    Args:
      model: actor-critic network, which receives the observations without their mask.
      params: its parameters.
      observation: `[B, ...]`, an `rl.MaskedObservation` where actions are illegal.
    """
    inputs, legal_actions = rl.split_mask(observation)
    output = model.apply({"params": params}, inputs)
    return output._replace(distribution=models.mask_distribution(output.distribution, legal_actions))


def apply_q_network(model: Model, params: Params, observation: Observation, noise_key: Key | None = None) -> jax.Array:
    """Outputs `[B, A, K]` of a Q-network, the mask unused; with a key, its noisy layers add noise."""
    rngs = {} if noise_key is None else {"dropout": noise_key}
    inputs, _ = rl.split_mask(observation)
    return model.apply({"params": params}, inputs, train=noise_key is not None, rngs=rngs)

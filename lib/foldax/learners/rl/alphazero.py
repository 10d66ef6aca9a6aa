"""AlphaZero (Silver et al., 2018) with the Gumbel search of Danihelka et al. (2022), computed by mctx (extra `games`).

An update plays `rollout_steps` moves in each of `num_envs` parallel games, each of them chosen by a tree search, and
then descends to the policies and values that the searches found.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from foldax import models, rl
from foldax.configuration import check_at_least, config
from foldax.errors import ConfigError
from foldax.extras import import_extra
from foldax.learner import Batch, EnvironmentSteps, Key, Learner, Metrics, Model, Params, State
from foldax.learners import gradients
from foldax.learners.gradients import LossAndAux, TrainState
from foldax.learners.rl.networks import apply_actor_critic
from foldax.rl.environment import Action


@config
class AlphaZeroSettings:
    """Hyperparameters of `alphazero`; nest them in an experiment's config.

    Raises:
      ConfigError: a number is too small, or `evaluation_games` is odd.

    >>> AlphaZeroSettings(num_simulations=16).max_considered_actions
    16
    """

    num_simulations: int = 32
    """Simulations of the search before each move of self-play."""
    max_considered_actions: int = 16
    """Actions that the root of a search samples without replacement and halves in turn."""
    gumbel_scale: float = 1.0
    """Scale of the Gumbel noise at the root; 0: the same move at each visit of a position."""
    random_move_fraction: float = 0.1
    """Probability of a random legal move in self-play, without which it sees few positions."""
    num_epochs: int = 2
    """Passes over the positions of an update."""
    num_minibatches: int = 8
    """Gradient steps in each pass; must divide `num_envs * rollout_steps`."""
    value_coefficient: float = 1.0
    """Weight of the value loss."""
    past_update_period: int = 20
    """Updates between two copies of the network to the earlier self that evaluations play against."""
    evaluation_games: int = 64
    """Games of an evaluation against each opponent, half of them as the player who begins; even."""
    evaluation_simulations: int = 32
    """Simulations before each move of an evaluation and of `predict`; 0: the network alone."""
    opening_moves: int = 1
    """Random moves at the start of each game of an evaluation, which would else repeat one game."""
    evaluation_steps: int = 1000
    """Maximum number of moves in a game of an evaluation."""

    def __post_init__(self) -> None:
        counts = dict(num_simulations=1, max_considered_actions=1, num_epochs=1, num_minibatches=1)
        counts |= dict(past_update_period=1, evaluation_games=2, evaluation_simulations=0, opening_moves=0)
        check_at_least(self, **counts)
        if self.evaluation_games % 2:
            raise ConfigError(f"AlphaZeroSettings.evaluation_games: {self.evaluation_games} must be even")


class AlphaZeroState(NamedTuple):
    """State of `alphazero`.

    Attributes:
      network: parameters of the actor-critic, with the state of their optimizer.
      environment_state: state of the N parallel games.
      past_params: parameters of an earlier self, an opponent of evaluations.
      num_updates: int32 [], updates so far.
    """

    network: TrainState
    environment_state: rl.EnvironmentState
    past_params: Params
    num_updates: jax.Array


class SearchBatch(NamedTuple):
    """Positions of self-play with what their searches found, `[B, ...]`.

    Attributes:
      observations: observations of the player who moves, and the legal actions.
      policies: improved policy of the search, probabilities `[B, A]`.
      value_targets: reward that followed for the player who moves, float32 `[B]`.
    """

    observations: rl.MaskedObservation
    policies: jax.Array
    value_targets: jax.Array


ScalarMetrics: TypeAlias = dict[str, jax.Array]
Loss = Callable[[models.ActorCriticOutput, SearchBatch, AlphaZeroSettings], tuple[jax.Array, ScalarMetrics]]
"""`(output [B], batch [B], settings) -> (loss [], metrics)`."""

GamePolicy = Callable[[rl.GameObservation, Key], Action]
"""`(position [N, ...], key) -> action int32 [N]`."""


def alphazero_loss(
    output: models.ActorCriticOutput, batch: SearchBatch, settings: AlphaZeroSettings
) -> tuple[jax.Array, ScalarMetrics]:
    """Cross-entropy of the search's policy plus squared error of the value (Silver et al., 2018, equation 1).

    Args:
      output: distribution over legal actions and value of each position, `[B]`.
      batch: positions `[B]`.
      settings: weight of the value loss.

    Returns:
      The scalar loss, and "loss", "policy_loss", "value_loss" and "policy_kl", the distance of the network's policy
      from the search's in nats.

    >>> output = models.ActorCriticOutput(models.Categorical(jnp.zeros((1, 2))), jnp.zeros(1))
    >>> batch = SearchBatch(None, jnp.array([[0.5, 0.5]]), jnp.array([-1.0]))
    >>> loss, metrics = alphazero_loss(output, batch, AlphaZeroSettings())
    >>> round(float(metrics["policy_loss"]), 4), float(metrics["value_loss"])
    (0.6931, 1.0)
    """
    log_probs = jax.nn.log_softmax(_logits(output))
    # Illegal actions have probability 0 in both, and finite logarithms.
    policy_loss = -(batch.policies * log_probs).sum(axis=-1).mean()
    entropy = -jax.scipy.special.xlogy(batch.policies, batch.policies).sum(axis=-1).mean()
    value_loss = jnp.square(output.value - batch.value_targets).mean()
    loss = policy_loss + settings.value_coefficient * value_loss
    metrics = {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "policy_kl": policy_loss - entropy}
    return loss, metrics


def alphazero(
    environment: rl.Environment,
    model: Model,
    optimizer: optax.GradientTransformation,
    settings: AlphaZeroSettings = AlphaZeroSettings(),
    *,
    num_envs: int = 128,
    rollout_steps: int = 16,
    loss: Loss = alphazero_loss,
    augment: Callable[[Key, SearchBatch], SearchBatch] | None = None,
    opponents: Mapping[str, GamePolicy] | None = None,
) -> Learner:
    """AlphaZero (Silver et al., 2018) with Gumbel search (Danihelka et al., 2022) for zero-sum games of two players.

    The search simulates the environment itself, whose steps must not hide anything from the player who moves. `update`
    reports the metrics of the loss, "gradient_norm", and of games that ended "return" (of player 0) and "length".
    `evaluate` plays against random moves ("random"), an earlier self ("past") and each of `opponents`; it reports
    "win_rate/NAME", "draw_rate/NAME" and "loss_rate/NAME", and as "return" the mean outcome over all opponents.
    `predict` searches from `rl.GameObservation`s, and returns the network's most probable actions of observations
    `[B, ...]`.

    Args:
      environment: the game, on the device.
      model: observations `[B, ...]` to `models.ActorCriticOutput`, such as `models.ActorCritic`.
      optimizer: Optax optimizer; takes `num_epochs * num_minibatches` steps an update; its rates may be traced.
      settings: hyperparameters; their floats may be traced.
      num_envs: number of parallel games.
      rollout_steps: moves in each of them in an update.
      loss: `(output, batch, settings) -> (loss, metrics)`; `alphazero_loss`, or an own one.
      augment: `(key, SearchBatch [B, ...]) -> SearchBatch`, such as symmetries of the board; None: nothing.
      opponents: further opponents of evaluations by name, policies as `rl.play_match` takes them.

    Raises:
      ConfigError: mctx is not installed, `environment` is no game for two, the network does not fit its actions, or
        `num_minibatches` does not divide `num_envs * rollout_steps`.

    >>> learner = alphazero(rl.tic_tac_toe(), models.ActorCritic(9), optax.adam(1e-3), num_envs=2, rollout_steps=4)
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), None)
    >>> observation = rl.MaskedObservation(jnp.zeros((5, 3, 3, 2)), jnp.ones((5, 9), bool))
    >>> jax.eval_shape(learner.predict, state, observation, jax.random.key(0)).shape
    (5,)
    """
    import_extra("mctx", "games", ConfigError)
    game = rl.observe_game(environment)
    rl.check_environment(game, num_envs, rollout_steps)
    rl.check_minibatches(settings.num_minibatches, num_envs, rollout_steps)

    def init(key: Key, examples: Batch) -> AlphaZeroState:
        init_key, environment_key = jax.random.split(key)
        environment_state = rl.reset_environments(game, environment_key, num_envs)
        example = rl.first_row(environment_state.observation.observation)
        params = gradients.init_params(init_key, model, example)
        rl.check_network(environment, jax.eval_shape(model.apply, {"params": params}, example).distribution)
        network = gradients.init_train_state(params, optimizer)
        # A copy: donated states must not share buffers.
        return AlphaZeroState(network, environment_state, jax.tree.map(jnp.copy, params), jnp.int32(0))

    def update(state: AlphaZeroState, batch: Batch, key: Key) -> tuple[AlphaZeroState, Metrics]:
        rollout_key, shuffle_key = jax.random.split(key)
        # 1. Self-play: a search before each move.
        policy = functools.partial(self_play_policy, game, model, settings, state.network.params)
        environment_state, transitions, episodes = rl.rollout(
            game, policy, state.environment_state, rollout_key, rollout_steps
        )
        # 2. Targets: the search's policy, and the outcome of the game.
        positions = search_targets(model, state.network.params, transitions)
        # 3. Optimisation: `num_epochs` passes over shuffled minibatches.
        network, metrics = gradients.minibatch_epochs(
            state.network, loss_fn, optimizer, positions, shuffle_key, settings.num_epochs, settings.num_minibatches
        )
        # 4. An earlier self, to measure the progress against.
        due = state.num_updates % settings.past_update_period == 0
        past = jax.tree.map(lambda new, old: jnp.where(due, new, old), state.network.params, state.past_params)
        state = AlphaZeroState(network, environment_state, past, state.num_updates + 1)
        return state, metrics | rl.episode_metrics(episodes)

    def loss_fn(params: Params, model_state: State, batch: SearchBatch, key: Key) -> LossAndAux:
        batch = batch if augment is None else augment(key, batch)
        value, metrics = loss(apply_actor_critic(model, params, batch.observations), batch, settings)
        return value, (model_state, metrics)

    def play(params: Params, position: rl.GameObservation, key: Key) -> Action:
        if not settings.evaluation_simulations:
            output = apply_actor_critic(model, params, _masked(position))
            return output.distribution.mode()
        evaluation = (settings.evaluation_simulations, settings.max_considered_actions, 0.0)
        return search(game, model, params, position, key, *evaluation).action

    def predict(state: AlphaZeroState, inputs: Any, key: Key) -> jax.Array:
        if isinstance(inputs, rl.GameObservation):
            return play(state.network.params, inputs, key)
        return apply_actor_critic(model, state.network.params, rl.as_observation(inputs)).distribution.mode()

    def evaluate(state: AlphaZeroState, batch: Batch, key: Key) -> ScalarMetrics:
        everyone: dict[str, GamePolicy] = {"random": rl.random_policy}
        everyone |= {"past": functools.partial(play, state.past_params), **(opponents or {})}
        # One match against all of them, in turn: each search of a move is compiled once.
        policy, num_games = functools.partial(play, state.network.params), settings.evaluation_games * len(everyone)
        options: dict[str, Any] = dict(opening_moves=settings.opening_moves, max_steps=settings.evaluation_steps)
        outcomes = rl.play_match(environment, policy, in_turn(list(everyone.values())), key, num_games, **options)
        metrics = {"return": outcomes.reshape(-1, len(everyone)).mean(axis=1)}
        for name, outcome in zip(everyone, outcomes.reshape(-1, len(everyone)).T, strict=True):
            rates = {"win": outcome > 0, "draw": outcome == 0, "loss": outcome < 0}
            metrics |= {f"{kind}_rate/{name}": rate.astype(jnp.float32) for kind, rate in rates.items()}
        return metrics

    inputs = rl.observation_inputs(environment)
    return Learner(init, update, evaluate, predict, EnvironmentSteps(0, num_envs * rollout_steps), inputs)


def search(
    game: rl.Environment,
    model: Model,
    params: Params,
    position: rl.GameObservation,
    key: Key,
    num_simulations: int,
    max_considered_actions: int,
    gumbel_scale: chex.Numeric,
) -> Any:
    """Searches from N positions by sequential halving with Gumbel noise (Danihelka et al., 2022).

    Args:
      game: of `rl.observe_game`.
      model: actor-critic network.
      params: its parameters.
      position: `[N, ...]`, of games that go on.
      key: randomness of the search and of the game.
      num_simulations: positions that are added to each tree.
      max_considered_actions: actions that the root samples.
      gumbel_scale: scale of the noise; may be traced.

    Returns:
      mctx's `PolicyOutput`: "action" `[N]`, "action_weights" `[N, A]`, the improved policy, and "search_tree".
    """
    mctx = import_extra("mctx", "games", ConfigError)

    def expand(params: Params, key: Key, action: Action, embedding: tuple[rl.GameObservation, jax.Array]) -> Any:
        before, is_over = embedding
        keys = jax.random.split(key, len(is_over))
        _, step = jax.vmap(game.step)(keys, before.state, action)
        after, output = step.observation, apply_actor_critic(model, params, _masked(step.observation))
        # Values are those of the player who moves; after the end nothing follows.
        reward = jnp.where(is_over, 0.0, _sign(before) * step.reward)
        is_over = is_over | step.terminated | step.truncated
        discount = jnp.where(is_over, 0.0, _sign(before) * _sign(after))
        result = dict(reward=reward, discount=discount, prior_logits=_logits(output), value=output.value)
        return mctx.RecurrentFnOutput(**result), (after, is_over)

    output = apply_actor_critic(model, params, _masked(position))
    embedding = position, jnp.zeros(output.value.shape, bool)
    root = mctx.RootFnOutput(prior_logits=_logits(output), value=output.value, embedding=embedding)
    with jax.numpy_rank_promotion("allow"):  # mctx's own code broadcasts ranks
        return mctx.gumbel_muzero_policy(
            params,
            key,
            root,
            expand,
            num_simulations,
            invalid_actions=~position.legal_actions,
            max_num_considered_actions=max_considered_actions,
            gumbel_scale=gumbel_scale,
        )


def self_play_policy(
    game: rl.Environment,
    model: Model,
    settings: AlphaZeroSettings,
    params: Params,
    position: rl.GameObservation,
    key: Key,
) -> tuple[Action, dict[str, jax.Array]]:
    """Chooses moves of self-play: those of a search, and some random ones.

    Args:
      game: of `rl.observe_game`.
      model: actor-critic network.
      settings: of the search, and how many moves are random.
      params: parameters of the network.
      position: `[N, ...]`.
      key: randomness of the search and the moves.

    Returns:
      Actions `[N]`, and the search's "policy" `[N, A]` and "value" `[N]`, and "is_random" bool `[N]`.
    """
    search_key, choice_key, random_key = jax.random.split(key, 3)
    options = settings.num_simulations, settings.max_considered_actions, settings.gumbel_scale
    result = search(game, model, params, position, search_key, *options)
    is_random = jax.random.bernoulli(choice_key, settings.random_move_fraction, result.action.shape)
    action = jnp.where(is_random, rl.random_policy(position, random_key), result.action)
    value = result.search_tree.summary().value
    return action, {"policy": result.action_weights, "value": value, "is_random": is_random}


def search_targets(model: Model, params: Params, transitions: rl.Transition) -> SearchBatch:
    """Computes the value targets of self-play, and flattens it to positions `[T * N, ...]`.

    The target is the reward that followed until the end of the game; from the last position of the rollout on the
    network's value, and before a random move, which says nothing about the players, the search's.

    Args:
      model: actor-critic network.
      params: parameters that estimate the value after the rollout.
      transitions: `[T, N, ...]`, with the extras of `self_play_policy`.
    """
    last = jax.tree.map(lambda x: x[-1], transitions.next_observation)
    # Rewards and values of player 0; player 1's are their negatives.
    value_after = _sign(last) * apply_actor_critic(model, params, _masked(last)).value
    sign, extras = _sign(transitions.observation), transitions.extras

    def backward(following: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        reward, is_over, is_random, search_value = step
        outcome = reward + jnp.where(is_over, 0.0, following)
        target = jnp.where(is_random, search_value, outcome)
        return target, target

    is_over = transitions.terminated | transitions.truncated
    steps = transitions.reward, is_over, extras["is_random"], sign * extras["value"]
    _, targets = jax.lax.scan(backward, value_after, steps, reverse=True)
    batch = SearchBatch(_masked(transitions.observation), extras["policy"], sign * targets)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def in_turn(policies: Sequence[GamePolicy]) -> GamePolicy:
    """Joins K policies to one, of which the first plays games 0, K, 2 K and so on, and each the next ones.

    Args:
      policies: K policies; the number of games must be a multiple of K.
    """

    def policy(position: rl.GameObservation, key: Key) -> Action:
        parts = [jax.tree.map(lambda x, i=i: x[i :: len(policies)], position) for i in range(len(policies))]
        keys = jax.random.split(key, len(policies))
        actions = [one(part, one_key) for one, part, one_key in zip(policies, parts, keys, strict=True)]
        return jnp.stack(actions, axis=1).reshape(-1)

    return policy


def _logits(output: models.ActorCriticOutput) -> jax.Array:
    distribution: Any = output.distribution
    return distribution.logits


def _masked(position: rl.GameObservation) -> rl.MaskedObservation:
    return rl.MaskedObservation(position.observation, position.legal_actions)


def _sign(position: rl.GameObservation) -> jax.Array:
    return jnp.where(position.player == 0, 1.0, -1.0)

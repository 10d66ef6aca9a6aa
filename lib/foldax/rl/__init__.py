"""Reinforcement learning: environments as pure functions, adapters to their libraries, rollouts, replay and returns."""

from foldax.rl import priorities, replay, wrappers
from foldax.rl.adapters.gymnasium import gymnasium
from foldax.rl.adapters.gymnax import gymnax
from foldax.rl.adapters.pgx import pgx
from foldax.rl.adapters.playground import playground
from foldax.rl.checks import (
    bounded_action_space,
    check_device_environment,
    check_discrete_actions,
    check_environment,
    check_minibatches,
    check_network,
)
from foldax.rl.environment import (
    Environment,
    EnvironmentLike,
    EnvironmentState,
    EpisodeStatistics,
    ExplorationRequest,
    HostRollout,
    HostSpec,
    Policy,
    Step,
    Transition,
    episode_metrics,
    evaluate_policy,
    play_episodes,
    reset_environments,
    rollout,
    step_environments,
)
from foldax.rl.environment_check import EnvironmentReport, check
from foldax.rl.environments.acrobot import acrobot
from foldax.rl.environments.bandit import bandit
from foldax.rl.environments.cartpole import cartpole
from foldax.rl.environments.connect_four import connect_four
from foldax.rl.environments.continuous_mountain_car import continuous_mountain_car
from foldax.rl.environments.grid_maze import grid_maze
from foldax.rl.environments.matrix_game import matrix_game
from foldax.rl.environments.memory_chain import memory_chain
from foldax.rl.environments.mountain_car import mountain_car
from foldax.rl.environments.pendulum import pendulum
from foldax.rl.environments.tic_tac_toe import tic_tac_toe
from foldax.rl.game_tree import GameTree, best_response_value, enumerate_game, minimax, perfect_policy
from foldax.rl.games import GameObservation, check_game, observe_game, play_match, random_policy, with_random_opening
from foldax.rl.host_environment import HostEnvironment, VectorEnvironment, from_vector_env
from foldax.rl.observations import (
    MaskedObservation,
    as_observation,
    first_row,
    num_rows,
    observation_inputs,
    observe_legal_actions,
    split_mask,
)
from foldax.rl.resets import Resets
from foldax.rl.returns import (
    explained_variance,
    generalized_advantages,
    lambda_returns,
    n_step_targets,
    one_step_targets,
)
from foldax.rl.spaces import Box, Discrete, MultiDiscrete, Space, Tuple, clip_action, random_actions
from foldax.rl.wrappers import with_policy_memory

# Environments, and adapters to their libraries
__all__ = ["Environment", "EnvironmentState", "Step", "Resets", "Box", "Discrete", "MultiDiscrete", "Tuple", "Space"]
__all__ += ["clip_action", "random_actions", "wrappers"]
__all__ += ["gymnasium", "gymnax", "pgx", "playground"]
# The library's own environments
__all__ += ["cartpole", "pendulum", "acrobot", "mountain_car", "continuous_mountain_car"]
__all__ += ["grid_maze", "bandit", "memory_chain", "matrix_game", "tic_tac_toe", "connect_four"]
# Environments on the host
__all__ += ["EnvironmentLike", "HostEnvironment", "HostSpec", "VectorEnvironment", "from_vector_env", "HostRollout"]
__all__ += ["ExplorationRequest"]
# Observations, legal actions among them
__all__ += ["MaskedObservation", "observe_legal_actions", "split_mask", "as_observation", "observation_inputs"]
__all__ += ["first_row", "num_rows"]
# Checks of an environment, and of what a learner was given
__all__ += ["check", "EnvironmentReport"]
__all__ += ["check_environment", "check_device_environment", "check_network"]
__all__ += ["bounded_action_space", "check_discrete_actions", "check_minibatches"]
# Rollouts and evaluation
__all__ += ["Policy", "Transition", "reset_environments", "step_environments", "rollout", "with_policy_memory"]
__all__ += ["EpisodeStatistics", "episode_metrics", "evaluate_policy", "play_episodes"]
# Games for two
__all__ += ["GameObservation", "observe_game", "check_game", "play_match", "random_policy", "with_random_opening"]
__all__ += ["GameTree", "enumerate_game", "minimax", "best_response_value", "perfect_policy"]
# Returns and replay
__all__ += ["generalized_advantages", "lambda_returns", "n_step_targets", "one_step_targets", "explained_variance"]
__all__ += ["replay", "priorities"]

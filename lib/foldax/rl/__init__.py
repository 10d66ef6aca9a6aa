"""Reinforcement learning: environments as pure functions, adapters to their libraries, rollouts, replay and returns."""

from foldax.rl import priorities, replay, wrappers
from foldax.rl.adapters.gymnasium import gymnasium
from foldax.rl.adapters.gymnax import gymnax
from foldax.rl.adapters.playground import playground
from foldax.rl.environment import (
    Box,
    Discrete,
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
    observation_inputs,
    play_episodes,
    reset_environments,
    rollout,
    step_environments,
)
from foldax.rl.host_environment import (
    HostEnvironment,
    VectorEnvironment,
    check_device_environment,
    check_environment,
    check_network,
    from_vector_env,
)
from foldax.rl.returns import generalized_advantages, lambda_returns, n_step_targets, one_step_targets
from foldax.rl.wrappers import with_policy_memory

# Environments, and adapters to their libraries
__all__ = ["Environment", "EnvironmentState", "Step", "Box", "Discrete", "wrappers"]
__all__ += ["gymnasium", "gymnax", "playground"]
# Environments on the host
__all__ += ["EnvironmentLike", "HostEnvironment", "HostSpec", "VectorEnvironment", "from_vector_env", "HostRollout"]
__all__ += [
    "ExplorationRequest",
    "check_environment",
    "check_device_environment",
    "check_network",
    "observation_inputs",
]
# Rollouts and evaluation
__all__ += ["Policy", "Transition", "reset_environments", "step_environments", "rollout", "with_policy_memory"]
__all__ += ["EpisodeStatistics", "episode_metrics", "evaluate_policy", "play_episodes"]
# Returns and replay
__all__ += ["generalized_advantages", "lambda_returns", "n_step_targets", "one_step_targets", "replay", "priorities"]

"""Reinforcement learning's world: environments as pure functions, acting in many of them at once, and returns."""

from foldax.rl import priorities, replay, wrappers
from foldax.rl.adapters.gymnasium import gymnasium
from foldax.rl.adapters.gymnax import gymnax
from foldax.rl.adapters.playground import playground
from foldax.rl.environment import (
    Actors,
    Box,
    Discrete,
    Environment,
    Explore,
    Finished,
    Played,
    Policy,
    Step,
    Transition,
    act,
    begin,
    ended,
    episodes,
    evaluated,
    rollout,
)
from foldax.rl.host_environment import Host, HostFacts, Stage, World, check_device, check_world, host
from foldax.rl.policy_memory import remembering
from foldax.rl.returns import generalized_advantages, lambda_returns, n_step_targets, one_step_targets

__all__ = [
    "Actors",
    "Box",
    "Discrete",
    "Environment",
    "Explore",
    "Finished",
    "Host",
    "HostFacts",
    "Played",
    "Policy",
    "Stage",
    "Step",
    "Transition",
    "World",
    "act",
    "begin",
    "check_device",
    "check_world",
    "ended",
    "episodes",
    "evaluated",
    "generalized_advantages",
    "gymnasium",
    "gymnax",
    "host",
    "lambda_returns",
    "n_step_targets",
    "one_step_targets",
    "playground",
    "priorities",
    "replay",
    "remembering",
    "rollout",
    "wrappers",
]

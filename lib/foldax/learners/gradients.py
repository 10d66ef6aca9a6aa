"""The gradient step shared by every learner that minimises a differentiable loss.

A learner keeps a `TrainState` from `init_train_state` and passes it with a `LossFunction` to `gradient_step`, which
adds microbatches, frozen parameters and an exponential moving average (EMA) to one step of an Optax optimizer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from chex import Numeric
from flax import linen as nn

from foldax import parameter_paths
from foldax.errors import ExperimentError
from foldax.learner import Batch, Key, Model, Params, State, Variables
from foldax.mesh import gather, replicate, shard_batch
from foldax.models.adapters.checks import check_model

LossAndAux: TypeAlias = tuple[jax.Array, tuple[State, dict[str, jax.Array]]]  # loss [], new model state, metrics
LossFunction = Callable[[Params, State, Batch, Key], LossAndAux]
"""`(params, model_state, batch, key) -> (loss, (model_state, metrics))`; loss and metrics are means over the batch."""

EVALUATION_MODE = {"train": False, "use_running_average": True}  # arguments of Flax modules


class TrainState(NamedTuple):
    """Parameters of a network, with the state of its optimizer.

    Attributes:
      params: the parameters that the optimizer updates.
      model_state: the model's other collections by name, such as the running statistics of batch normalisation.
      optimizer_state: state of the Optax optimizer.
      ema_params: exponential moving average of `params`, or None.
      ema_steps: int32 `[]`, optimizer steps that the average has seen, for its warm-up; or None.
    """

    params: Params
    model_state: State
    optimizer_state: State
    ema_params: Params | None = None
    ema_steps: jax.Array | None = None

    @property
    def evaluation_params(self) -> Params:
        """The parameters to evaluate with: their moving average where there is one."""
        return self.params if self.ema_params is None else self.ema_params

    @property
    def evaluation_variables(self) -> Variables:
        """The model's variables to evaluate with: `evaluation_params` and the other collections."""
        return {"params": self.evaluation_params, **self.model_state}


def init_train_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    model_state: State = None,
    *,
    ema_decay: Numeric | None = None,
    frozen: Sequence[str] = (),
) -> TrainState:
    """Creates the state before the first gradient step.

    Args:
      params: initial parameters.
      optimizer: Optax optimizer; it never sees the frozen parameters, and keeps no state of them.
      model_state: the model's other collections by name; None: it has none.
      ema_decay: None: no moving average; else it starts as a copy of `params`.
      frozen: regular expressions of parameter paths (see `foldax.parameter_paths`).

    Raises:
      ConfigError: a pattern in `frozen` matches no parameter.
      ExperimentError: the optimizer is none.

    >>> state = init_train_state({"w": jnp.ones(2), "b": jnp.zeros(())}, optax.adam(0.1), frozen=("b",))
    >>> state.optimizer_state[0].mu["w"].shape, state.optimizer_state[0].mu["b"]
    ((2,), None)
    """
    check_optimizer(optimizer)
    parameter_paths.check_patterns(frozen, parameter_paths.leaves_by_path(params), "frozen")
    trained, _ = parameter_paths.split(params, frozen)
    # A copy, because the engine donates the state: no buffer may stand in it twice.
    ema_params = None if ema_decay is None else jax.tree.map(jnp.copy, params)
    ema_steps = None if ema_decay is None else jnp.int32(0)
    model_state = {} if model_state is None else model_state
    return TrainState(params, model_state, optimizer.init(trained), ema_params, ema_steps)


def check_optimizer(optimizer: Any) -> None:
    """Checks that an optimizer has the two functions of Optax's.

    Raises:
      ExperimentError: it has not.

    >>> check_optimizer(1e-3)
    Traceback (most recent call last):
    foldax.errors.ExperimentError: optimizer: 0.001 is none of Optax; pass one, such as optax.adam(1e-3)
    """
    if callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None)):
        return
    if name := getattr(optimizer, "__name__", None):
        raise ExperimentError(f"optimizer: {name} is a function that makes one; call it, such as {name}(1e-3)")
    raise ExperimentError(f"optimizer: {optimizer!r:.40} is none of Optax; pass one, such as optax.adam(1e-3)")


def init_network(
    key: Key, model: Model, optimizer: Any, inputs: Any, kwargs: Mapping[str, Any] = {}, **options: Any
) -> TrainState:
    """Initialises a network, with a random stream "dropout" too, and creates its state before the first gradient step.

    Args:
      key: random key.
      model: the network.
      optimizer: Optax optimizer.
      inputs: of the network, `[B, ...]`; only their shapes matter.
      kwargs: further arguments of the network by keyword.
      **options: `ema_decay` and `frozen` of `init_train_state`.

    Raises:
      ExperimentError: the model is a module that needs an adapter.
    """
    check_model(model)
    rngs = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
    model_state = dict(model.init(rngs, inputs, train=False, **kwargs))
    params = model_state.pop("params")
    return init_train_state(params, optimizer, model_state, **options)


def init_params(key: Key, model: Model, *inputs: Any) -> Params:
    """Initialises the parameters of an agent's network, which keeps no other state.

    Args:
      key: random key.
      model: the network.
      *inputs: of the network, `[B, ...]`; only their shapes matter.

    Raises:
      ExperimentError: the model is a module that needs an adapter.
    """
    check_model(model)
    return model.init({"params": key}, *inputs)["params"]


def gradient_step(
    state: TrainState,
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    key: Key,
    *,
    microbatches: int = 1,
    ema_decay: Numeric | None = None,
    frozen: Sequence[str] = (),
    gathers: bool = True,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimizer step on the loss of a batch.

    Args:
      state: from `init_train_state` or the last `gradient_step`.
      loss: `(params, model_state, batch, key) -> (loss, (model_state, metrics))`.
      optimizer: Optax optimizer; its `update` also receives `value=loss` where it takes extra arguments.
      batch: tree of arrays `[B, ...]`.
      key: random key of the loss.
      microbatches: number of microbatches `[B / microbatches, ...]` over which gradients are averaged, to save memory.
      ema_decay: decay of the moving average, between 0 and 1; None exactly where `init_train_state` got None; may be
        traced. During the warm-up the decay is at most (1 + t) / (10 + t) after t steps of the optimizer, as in
        TensorFlow, so that a short run does not keep its initial parameters. Calls that only accumulate gradients
        (`optax.MultiSteps`) are no steps.
      frozen: patterns of parameter paths, as given to `init_train_state`. Gradients of these parameters are not
        computed; they keep their values, and so do model statistics at the same paths. A Flax module whose parameters
        are all frozen runs as in evaluation, where it is called with `train=` or `use_running_average=` by keyword.
      gathers: whether devices that divide the parameters gather all of them before the loss is computed. A model whose
        blocks keep to the batch of their device (`models.Transformer`) gathers those of one block at a time.

    Returns:
      The new state, and the metrics of the loss with "gradient_norm", the global L2 norm.

    Raises:
      ExperimentError: `microbatches` does not divide the batch, or the optimizer accumulates gradients as well.

    >>> def loss(params, model_state, batch, key):
    ...     error = jnp.square(batch["x"] @ params - batch["y"]).mean()
    ...     return error, (model_state, {"loss": error})
    >>> batch = {"x": jnp.eye(2), "y": jnp.array([1.0, 2.0])}
    >>> state = init_train_state(jnp.zeros(2), optax.sgd(0.5))
    >>> state, metrics = gradient_step(state, loss, optax.sgd(0.5), batch, jax.random.key(0))
    >>> state.params.tolist(), float(metrics["loss"])
    ([0.5, 1.0], 2.5)
    """
    if microbatches != 1 and _accumulation(state.optimizer_state) is not None:
        accumulates = "accumulates gradients too (Optimizer.accumulate_steps or optax.MultiSteps)"
        remedy = "use microbatches to split a batch, or accumulate_steps to join several, not both"
        raise ExperimentError(f"microbatches={microbatches}, but the optimizer {accumulates}; {remedy}")
    trained, fixed = parameter_paths.split(state.params, frozen)

    def loss_of_trained(trained: Params, *args: Any) -> LossAndAux:
        with nn.intercept_methods(_evaluation_mode_of(fixed)):
            return loss(parameter_paths.merge(trained, fixed), *args)

    # 1. Gradients of the trained parameters, averaged over microbatches
    differentiated = (state._replace(params=trained), loss_of_trained, batch, key, microbatches, gathers)
    value, gradients, model_state, metrics = loss_and_gradients(*differentiated)
    # 2. Optimizer
    update = optax.with_extra_args_support(optimizer).update
    updates, optimizer_state = update(gradients, state.optimizer_state, trained, value=value)
    params = parameter_paths.merge(optax.apply_updates(trained, updates), fixed)
    if frozen:
        model_state = {name: restore_frozen(state.model_state[name], new, frozen) for name, new in model_state.items()}
    # 3. Exponential moving average
    ema_params, ema_steps = state.ema_params, state.ema_steps
    if ema_decay is not None and ema_steps is not None:
        steps = ema_steps.astype(jnp.float32)
        # Multiplied by a reciprocal, not divided: XLA rewrites traced divisions differently in a sweep.
        decay = jnp.minimum(ema_decay, (1.0 + steps) * jnp.reciprocal(10.0 + steps))
        ema_params = moving_average(params, ema_params, 1.0 - decay, optimizer_state)
        ema_steps = ema_steps + jnp.int32(has_stepped(optimizer_state))
    metrics = {**metrics, "gradient_norm": optax.tree.norm(gradients)}
    return TrainState(params, model_state, optimizer_state, ema_params, ema_steps), metrics


def minibatch_epochs(
    network: TrainState,
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    key: Key,
    num_epochs: int,
    num_minibatches: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes a gradient step on each minibatch of each epoch.

    Args:
      network: parameters and optimizer state.
      loss: of a minibatch.
      optimizer: Optax optimizer.
      batch: tree of arrays `[R, ...]`; `num_minibatches` divides R.
      key: of the order of the rows, a new one in each epoch, and of the loss, another one in each minibatch.
      num_epochs: passes over the batch.
      num_minibatches: gradient steps in a pass.

    Returns:
      The network after `num_epochs * num_minibatches` gradient steps, and the means of their metrics.
    """
    num_rows = len(jax.tree.leaves(batch)[0])

    def epoch(network: TrainState, key: Key) -> tuple[TrainState, dict[str, jax.Array]]:
        order_key, loss_key = jax.random.split(key)
        # A new order of all rows, cut into minibatches
        order = replicate(jax.random.permutation(order_key, num_rows).reshape(num_minibatches, -1))

        def minibatch_step(network: TrainState, step: tuple[jax.Array, Key]) -> tuple[TrainState, dict[str, jax.Array]]:
            minibatch = shard_batch(jax.tree.map(lambda x: x[step[0]], batch))
            return gradient_step(network, loss, optimizer, minibatch, step[1])

        return jax.lax.scan(minibatch_step, network, (order, jax.random.split(loss_key, num_minibatches)))

    network, metrics = jax.lax.scan(epoch, network, jax.random.split(key, num_epochs))
    return network, {name: value.mean() for name, value in metrics.items()}


def _evaluation_mode_of(fixed: Params) -> Callable[..., Any]:
    """Makes an interceptor of Flax methods: modules whose parameters are all `fixed` do not run in training mode."""
    fixed_ids = set(map(id, jax.tree.leaves(fixed)))

    def intercept(method: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        if fixed_ids and not kwargs.keys().isdisjoint(EVALUATION_MODE):
            ids = set(map(id, jax.tree.leaves(context.module.variables.get("params", {}))))
            if ids and ids <= fixed_ids:
                kwargs = kwargs | {name: value for name, value in EVALUATION_MODE.items() if name in kwargs}
        return method(*args, **kwargs)

    return intercept


def loss_and_gradients(
    state: TrainState, loss: LossFunction, batch: Batch, key: Key, microbatches: int = 1, gathers: bool = True
) -> tuple[jax.Array, Params, State, dict[str, jax.Array]]:
    """Computes loss, gradients, model state and metrics of a batch `[B, ...]`, averaged over equal microbatches.

    Args:
      state: parameters and model state.
      loss: `(params, model_state, batch, key) -> (loss, (model_state, metrics))`.
      batch: arrays `[B, ...]`.
      key: randomness of the loss, such as dropout.
      microbatches: number of equal parts of the batch, computed one after the other to save memory.
      gathers: as in `gradient_step`.

    Raises:
      ExperimentError: `microbatches` does not divide the batch.

    >>> def loss(params, model_state, batch, key):
    ...     return params * batch.mean(), (model_state, {})
    >>> state = init_train_state(jnp.ones(()), optax.sgd(0.1))
    >>> value, gradients, _, _ = loss_and_gradients(state, loss, jnp.arange(4.0), jax.random.key(0), microbatches=2)
    >>> float(value), float(gradients)
    (1.5, 1.5)
    """

    def loss_of_whole(params: Params, *args: Any) -> LossAndAux:
        return loss(gather(params), *args)

    differentiate = jax.value_and_grad(loss_of_whole if gathers else loss, has_aux=True)
    if microbatches == 1:
        (value, (model_state, metrics)), gradients = differentiate(state.params, state.model_state, batch, key)
        return value, gradients, model_state, metrics
    parts = shard_batch(jax.tree.map(lambda leaf: _split_batch(leaf, microbatches), batch), axis=1)

    def one(model_state: State, part: tuple[Batch, Key]) -> tuple[State, tuple]:
        (value, (model_state, metrics)), gradients = differentiate(state.params, model_state, *part)
        return model_state, (value, gradients, metrics)

    # Summed in the carry, so that memory holds one set of gradients and not one per microbatch.
    def body(carry: tuple[State, tuple], part: tuple[Batch, Key]) -> tuple[tuple[State, tuple], None]:
        model_state, total = carry
        model_state, terms = one(model_state, part)
        return (model_state, jax.tree.map(jnp.add, total, terms)), None

    keys = jax.random.split(key, microbatches)
    shapes = jax.eval_shape(one, state.model_state, jax.tree.map(lambda leaf: leaf[0], (parts, keys)))[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (model_state, total), _ = jax.lax.scan(body, (state.model_state, zeros), (parts, keys))
    value, gradients, metrics = jax.tree.map(lambda leaf: leaf * (1.0 / microbatches), total)
    return value, gradients, model_state, metrics


def restore_frozen(before: State, after: State, frozen: Sequence[str]) -> State:
    """Takes the leaves at frozen paths from `before`, all others from `after`.

    Args:
      before: tree before the update.
      after: tree of the same structure after the update.
      frozen: prefixes of the paths that must not change, such as "Dense_0".
    """
    return parameter_paths.merge(parameter_paths.split(after, frozen)[0], parameter_paths.split(before, frozen)[1])


def moving_average(params: Params, average: Params, step_size: Numeric, optimizer_state: State) -> Params:
    """Moves an exponential moving average towards parameters, once per step of their optimizer.

    Args:
      params: the parameters after a call of the optimizer.
      average: their average before it.
      step_size: weight of the parameters, between 0 and 1: tau of a target network, 1 - decay; may be traced.
      optimizer_state: the optimizer's state after the call, which says whether it was a step (see `has_stepped`).

    >>> float(moving_average(jnp.array(1.0), jnp.array(0.0), 0.25, optax.EmptyState()))
    0.25
    """
    moved = optax.incremental_update(params, average, step_size)
    if _accumulation(optimizer_state) is None:
        return moved
    return jax.tree.map(lambda new, old: jnp.where(has_stepped(optimizer_state), new, old), moved, average)


def has_stepped(optimizer_state: State) -> jax.Array:
    """Whether the last call of an optimizer was a step, bool []; it was none if it only accumulated gradients."""
    accumulation = _accumulation(optimizer_state)
    return jnp.bool_(True) if accumulation is None else accumulation.mini_step == 0


def _accumulation(optimizer_state: State) -> optax.MultiStepsState | None:
    """Finds a state of `optax.MultiSteps` anywhere in an optimizer's state."""

    def is_multi_steps(node: State) -> bool:
        return isinstance(node, optax.MultiStepsState)

    nodes = jax.tree.leaves(optimizer_state, is_leaf=is_multi_steps)
    return next((node for node in nodes if is_multi_steps(node)), None)


def _split_batch(leaf: jax.Array, parts: int) -> jax.Array:
    """Reshapes `[B, ...]` to `[parts, B / parts, ...]`."""
    if parts < 1 or leaf.shape[0] % parts:
        raise ExperimentError(f"microbatches={parts} does not divide the batch of {leaf.shape[0]} into equal parts")
    return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

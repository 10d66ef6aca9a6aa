"""Attention by JAX's fused kernels, which never store the attention weights `[B, N, T, S]` (Dao et al., 2022).

On NVIDIA GPUs it is cuDNN's kernel, on TPUs splash attention of `jax.experimental.pallas`. Both keep blocks of the
weights in the fast memory of a core and compute them again in the backward pass. What a kernel does not take is left to
XLA, see `fused_attention`.

Shape suffixes: B batch, T queries, S keys, N query heads, K key-value heads, H features of a head.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

TPU_BLOCKS = (512, 256, 128)  # lengths of a block of queries or keys
BATCH_AXES, HEAD_AXIS = ("data", "fsdp"), "tensor"  # of the mesh


def fused_attention(
    query: Array, key: Array, value: Array, mask: Array | None, causal: bool, platform: str
) -> Array | None:
    """Computes attention by the platform's fused kernel, or returns None where it has none for these inputs.

    On "gpu": bfloat16 or float16 on compute capability 8.0 or later, heads of at most 128 features, a multiple of 8,
    and even lengths with a mask. On "tpu": no mask, and lengths that are multiples of 128.

    Args:
      query: `[B, T, N, H]`.
      key: `[B, S, K, H]`.
      value: `[B, S, K, H]`.
      mask: bool `[B, 1, T or 1, S]` or None.
      causal: query t attends to keys 0 to t only.
      platform: name of the platform of the program, such as "cpu".

    >>> fused_attention(*[jnp.ones((1, 4, 2, 8))] * 3, None, True, "cpu") is None
    True
    """
    if platform in ("gpu", "cuda") and _is_for_cudnn(query, key, mask):
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation="cudnn")
    if platform == "tpu" and mask is None and _block_length(query) and _block_length(key):
        return _over_mesh(functools.partial(_splash_attention, causal=causal), query, key, value)
    return None


def _is_for_cudnn(query: Array, key: Array, mask: Array | None) -> bool:
    # A planned program has no device to ask.
    if float(getattr(jax.devices()[0], "compute_capability", "8.0")) < 8:
        return False
    has_lengths = mask is None or query.shape[1] % 2 == key.shape[1] % 2 == 0
    has_features = query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
    return has_lengths and has_features and query.dtype in (jnp.bfloat16, jnp.float16)


def _block_length(heads: Array) -> int:
    """Returns the length of a block of the steps of `[B, T, N, H]`; 0: no block divides them."""
    return next((length for length in TPU_BLOCKS if heads.shape[1] % length == 0), 0)


def _splash_attention(query_BTNH: Array, key_BSKH: Array, value_BSKH: Array, causal: bool) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (T, N, H), S = query_BTNH.shape[1:], key_BSKH.shape[1]
    mask = splash.CausalMask((T, S)) if causal else splash.FullMask((T, S))
    queries, keys = _block_length(query_BTNH), _block_length(key_BSKH)
    block_sizes = splash.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
    masks = splash.MultiHeadMask([mask] * N)
    kernel = splash.make_splash_mha(masks, block_sizes=block_sizes, head_shards=1, q_seq_shards=1)
    # The kernel neither scales the logits nor knows a batch.
    heads_first = [x.transpose(0, 2, 1, 3) for x in (query_BTNH * H**-0.5, key_BSKH, value_BSKH)]
    return jax.vmap(kernel)(*heads_first).transpose(0, 2, 1, 3)


def _over_mesh(kernel: Callable[..., Array], query: Array, key: Array, value: Array) -> Array:
    """Applies a kernel to the part of the batch and of the heads on each device: XLA cannot divide kernels itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(query, key, value)
    batch_axes = tuple(name for name in BATCH_AXES if name in mesh.axis_names)
    # Along an axis that does not divide them, they stay whole on every device.
    batch = batch_axes if query.shape[0] % math.prod(mesh.shape[name] for name in batch_axes) == 0 else None
    heads = HEAD_AXIS if HEAD_AXIS in mesh.axis_names and key.shape[2] % mesh.shape[HEAD_AXIS] == 0 else None
    spec = PartitionSpec(batch, None, heads, None)
    divided = jax.shard_map(kernel, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)
    return divided(query, key, value)

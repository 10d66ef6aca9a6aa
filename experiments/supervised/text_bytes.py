"""A byte-level language model, Transformer or LSTM, of the help topics of Python (466 kB of English and code).

    foldax run experiments/supervised/text_bytes.py
    foldax run experiments/supervised/text_bytes.py --model transformer

The last tenth of the text, whose topics are sorted, is the test. The run compares its bits per byte to those of a
5-gram model with Witten-Bell smoothing (1.906) and of `xz -9e` after the training text (1.411, because topics quote
each other). The Transformer reaches 1.695 +- 0.021, the LSTM 1.754 +- 0.008, mean and standard deviation over seeds 8
to 10:

    foldax sweep experiments/supervised/text_bytes.py --exact --model lstm transformer --seed 8 --seeds 3

One run takes two and a half minutes on 2 CPU cores.
"""

import lzma
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import foldax
from foldax import data, learners, models, optim, plots

TOKENS = data.Bytes()


@foldax.config
class Config(foldax.Training):
    steps = 1_500
    log_every = 50
    evaluate_every = 300
    monitor = "bits_per_byte"
    model: Literal["transformer", "lstm"] = "lstm"
    """Network that reads the text."""
    batch_size: int = 16
    """Windows per update."""
    context_length: int = 128
    """Bytes per window, the largest context of a prediction."""
    hidden: tuple[int, ...] = (384,)
    """Widths of the LSTM's layers."""
    width: int = 128
    """Width of the Transformer."""
    depth: int = 4
    """Number of blocks of the Transformer."""
    num_heads: int = 2
    """Attention heads of the Transformer; a divisor of the width."""
    dropout: float | None = 0.1
    """Dropout rate; None: no dropout layers, which saves their random numbers."""
    optimizer: optim.Optimizer = optim.Optimizer(
        learning_rate=4e-3, schedule="linear", warmup_fraction=0.05, weight_decay=0.1, beta2=0.99, clip_norm=1.0
    )


def split_bytes() -> dict[str, list[np.ndarray]]:
    """Returns the tokens of each split in pieces: the test is the last tenth, the validation the middle of the rest.

    Validation and test begin with the byte before them, from which their first byte is predicted.
    """
    before, after = (TOKENS.encode(text) for text in data.hold_out(data.python_help_text()))
    middle = slice(len(before) // 2, len(before) // 2 + len(before) // 40)
    return {
        "train": [before[: middle.start], before[middle.stop :]],
        "validation": [before[middle.start - 1 : middle.stop]],
        "test": [np.concatenate([before[-1:], after])],
    }


def dataset(config: Config) -> data.Dataset:
    """Overlapping windows: training predicts all bytes of a window, evaluation predicts each byte once."""
    pieces, length, stride = split_bytes(), config.context_length, max(1, config.context_length // 4)
    splits = {name: data.token_windows(pieces[name][0], length, stride) for name in ("validation", "test")}
    rows = [data.token_windows(piece, length, stride)["inputs"] for piece in pieces["train"]]
    train = np.concatenate([windows[:-1] for windows in rows])  # without the last window, which is padded
    splits["train"] = {"inputs": train, "weights": np.ones(train.shape, np.float32)}
    return data.from_splits(splits, name="topics", vocabulary_size=TOKENS.vocabulary_size, batch_size=config.batch_size)


def network(config: Config) -> Any:
    vocabulary = TOKENS.vocabulary_size
    if config.model == "lstm":
        return models.Recurrent(vocabulary, config.hidden, vocabulary_size=vocabulary, dropout=config.dropout)
    return models.Transformer(
        vocabulary,
        vocabulary,
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        causal=True,
        max_length=config.context_length,
        tie_embeddings=True,
        activation="relu",
        normalization="rms",
        use_bias=False,
        dropout=config.dropout,
    )


def learner(config: Config, info: data.Info) -> foldax.Learner:
    optimizer = optim.build(config.optimizer, config.steps)
    return learners.language_model(network(config), optimizer, tokenizer=TOKENS)


def figures(result: foldax.Result) -> dict[str, Any]:
    before, after = (TOKENS.encode(text) for text in data.hold_out(data.python_help_text()))
    scores = {
        f"{result.config.model}, seed {result.config.seed}": result.metrics["test"]["bits_per_byte"],
        "5-gram, Witten-Bell": float(witten_bell(before, after).mean()),
        "xz -9e, after the training text": xz_bits(before, after),
    }
    lines = [f"{name:<40}{bits:.4f}" for name, bits in scores.items()]
    return {
        "comparison": f"Bits per byte of the {len(after):,} bytes of the test\n" + "\n".join(lines),
        "bits_per_byte": bars(scores),
        "context": context_curve(bits_by_context(result), scores),
        "samples": samples(result),
    }


def witten_bell(before: np.ndarray, after: np.ndarray, order: int = 5) -> np.ndarray:
    """Returns the bits `[T]` of each token under an n-gram model with Witten-Bell smoothing (Witten & Bell, 1991).

    A context of n tokens that occurred c times, before d different tokens, mixes the frequencies of the next token with
    the model of n - 1 tokens, with weights c to d; the model without context mixes with the uniform distribution.

    Args:
      before: training tokens, `[S]`.
      after: tokens to predict, `[T]`, which follow them.
      order: length of an n-gram, context and predicted token together; at most 7.
    """
    whole = np.concatenate([before, after]).astype(np.int64)
    grams, probability = whole, np.full(len(after), 1 / 256)
    for context in range(order):
        if context:  # prepend one byte
            grams = grams[1:] + (whole[:-context] << 8 * context)
        known, counts = np.unique(grams[: len(before) - context], return_counts=True)
        queries = grams[len(before) - context :]
        contexts, start = np.unique(known >> 8, return_index=True)
        totals, kinds = np.add.reduceat(counts, start), np.diff(np.append(start, len(known)))
        total, kind = _look_up(contexts, totals, queries >> 8), _look_up(contexts, kinds, queries >> 8)
        mixed = (_look_up(known, counts, queries) + kind * probability) / np.maximum(total + kind, 1)
        probability = np.where(total > 0, mixed, probability)
    return -np.log2(probability)


def _look_up(keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Returns the value of each queried key, or 0 for a missing key; the keys are sorted."""
    place = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[place] == queries, values[place], 0)


def xz_bits(before: np.ndarray, after: np.ndarray) -> float:
    """Returns the bits per byte that a text adds to the compressed size of the text before it, by `xz -9e`."""

    def size(tokens: np.ndarray) -> int:
        return len(lzma.compress(tokens.astype(np.uint8).tobytes(), preset=9 | lzma.PRESET_EXTREME))

    return 8 * (size(np.concatenate([before, after])) - size(before)) / len(after)


def bits_by_context(result: foldax.Result) -> np.ndarray:
    """Returns the mean bits `[T]` of the test bytes, predicted from contexts of 1, 2, ... T bytes."""
    length = result.config.context_length
    rows = data.token_windows(split_bytes()["test"][0], length)["inputs"][:-1]
    key = jax.random.key(0)

    def nats(row: jax.Array) -> jax.Array:
        return result.learner.evaluate(result.state, {"inputs": row[None]}, key).outputs["nats"][0]

    all_nats = jax.jit(lambda rows: jax.lax.map(nats, rows, batch_size=32))(jnp.asarray(rows))
    return np.asarray(all_nats).mean(axis=0) / math.log(2)


def bars(scores: dict[str, float]) -> Any:
    """Plots the bits per byte of all models."""
    figure, axes = plots.new_figure(width=5.2, height=0.8 + 0.5 * len(scores))
    axis = axes[0, 0]
    axis.barh(list(scores), list(scores.values()), color=[plots.COLORS["train"], *["0.7"] * (len(scores) - 1)])
    for row, bits in enumerate(scores.values()):
        axis.text(bits, row, f" {bits:.3f}", va="center")
    axis.set(xlabel="bits per byte of the test", xlim=(0, 1.2 * max(scores.values())))
    axis.invert_yaxis()
    return figure


def context_curve(bits: np.ndarray, scores: dict[str, float]) -> Any:
    """Plots the bits per byte against the length of the context, and those of the other models as lines."""
    figure, axes = plots.new_figure(width=5.2, height=3.4)
    axis = axes[0, 0]
    axis.plot(
        np.arange(1, len(bits) + 1), bits, color=plots.COLORS["train"], marker=".", lw=1.0, label="at this context"
    )
    for (name, value), style in zip(scores.items(), ("-", "--", ":"), strict=True):
        axis.axhline(value, color="0.5", ls=style, lw=1, label=name)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="context length (bytes)", ylabel="bits per byte of the test")
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.25)
    return figure


def samples(result: foldax.Result, size: int = 600) -> str:
    """Returns texts sampled at several temperatures from the first bytes of the test.

    The model was trained on windows: when a window is full, its last half is the prompt of the next one.
    """
    config, variables = result.config, {"params": result.state.evaluation_params}
    half, model, texts = max(1, config.context_length // 2), network(config), []
    prompt = jnp.asarray(split_bytes()["test"][0][1 : half + 1])[None]
    for temperature in (0.5, 0.8, 1.0):
        key, tokens = jax.random.key(config.seed), prompt
        while tokens.shape[1] < half + size:
            key, sample_key = jax.random.split(key)
            context = tokens[:, -half:]
            new = models.generate(model, variables, context, sample_key, num_tokens=half, temperature=temperature)
            tokens = jnp.concatenate([tokens, new], axis=1)
        text = TOKENS.decode(np.asarray(tokens[0, half : half + size]))
        texts.append(f"--- temperature {temperature} ---\n{text}")
    return f"--- prompt ---\n{TOKENS.decode(np.asarray(prompt[0]))}\n" + "\n".join(texts)


experiment = foldax.Experiment(Config, learner, dataset, learners.perplexity, figures)

if __name__ == "__main__":
    foldax.main(experiment)

"""A language model of bytes, a Transformer or an LSTM, on the help topics of Python (466 kB of English and code).

    foldax run experiments/supervised/text_bytes.py
    foldax run experiments/supervised/text_bytes.py --model transformer

The last tenth of the text, its topics in sorted order, is the test. The run prints the bits per byte of a 5-gram with
Witten-Bell smoothing (1.906) and of `xz -9e` given the training text (1.411, because topics quote each other) beside
its own: the Transformer reaches 1.695 +- 0.010, the LSTM 1.741 +- 0.013, mean and standard deviation over seeds 0 to 2:

    foldax sweep experiments/supervised/text_bytes.py --exact --model lstm transformer --seeds 3

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
    """What reads the text."""
    batch_size: int = 16
    """Windows per step."""
    length: int = 128
    """Bytes of a window, at most the context of a prediction."""
    hidden: tuple[int, ...] = (384,)
    """Widths of the LSTM's layers."""
    width: int = 128
    """Of the Transformer."""
    depth: int = 4
    """Number of the Transformer's blocks."""
    num_heads: int = 2
    """Heads of the Transformer's attention; they divide the width."""
    dropout: float | None = 0.1
    """Rate inside the model; None: no dropout, whose random numbers are not drawn then."""
    optimizer: optim.Optimizer = optim.Optimizer(
        learning_rate=4e-3, schedule="linear", warmup=0.05, weight_decay=0.1, beta2=0.99, clip_norm=1.0
    )


def split_bytes() -> dict[str, list[np.ndarray]]:
    """Returns the tokens of each split in pieces: the test is the last tenth, the validation the middle of the rest.

    Pieces of the validation and the test begin with one byte of what is before them, from which to predict the first.
    """
    before, after = (TOKENS.encode(text) for text in data.hold_out(data.topics_text()))
    middle = slice(len(before) // 2, len(before) // 2 + len(before) // 40)
    return {
        "train": [before[: middle.start], before[middle.stop :]],
        "validation": [before[middle.start - 1 : middle.stop]],
        "test": [np.concatenate([before[-1:], after])],
    }


def dataset(config: Config) -> data.Dataset:
    """Windows that overlap: in the training all of a window is learnt, else each byte is predicted once."""
    pieces, stride = split_bytes(), max(1, config.length // 4)
    splits = {name: data.windows(pieces[name][0], config.length, stride) for name in ("validation", "test")}
    rows = [data.windows(piece, config.length, stride)["inputs"] for piece in pieces["train"]]
    train = np.concatenate([windows[:-1] for windows in rows])  # the last of each is padded
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
        max_length=config.length,
        tie_embeddings=True,
        activation="relu",
        normalization="rms",
        use_bias=False,
        dropout=config.dropout,
    )


def learner(config: Config, info: data.Info) -> foldax.Learner:
    return learners.language_model(network(config), optim.build(config.optimizer, config.steps))


def figures(result: foldax.Result) -> dict[str, Any]:
    before, after = (TOKENS.encode(text) for text in data.hold_out(data.topics_text()))
    scores = {
        f"{result.config.model}, seed {result.config.seed}": result.metrics["test"]["bits_per_byte"],
        "5-gram, Witten-Bell": float(witten_bell(before, after).mean()),
        "xz -9e, given the training text": xz_bits(before, after),
    }
    lines = [f"{name:<40}{bits:.4f}" for name, bits in scores.items()]
    return {
        "comparison": f"Bits per byte of the {len(after):,} bytes of the test\n" + "\n".join(lines),
        "bits_per_byte": bars(scores),
        "context": context_curve(bits_by_context(result), scores),
        "samples": samples(result),
    }


def witten_bell(before: np.ndarray, after: np.ndarray, order: int = 5) -> np.ndarray:
    """Returns the bits `[T]` of each token of a text, by an n-gram model with Witten-Bell smoothing (1991).

    A context of n tokens, seen c times with d different tokens after it, mixes what followed it with the model of
    n - 1 tokens, c to d; the model of none mixes with equal shares for all 256 bytes.

    Args:
      before: tokens to count, `[S]`.
      after: tokens to predict, `[T]`, which go on after these.
      order: tokens of an n-gram, its context and the one that is predicted; 7 at most.
    """
    whole = np.concatenate([before, after]).astype(np.int64)
    grams, probability = whole, np.full(len(after), 1 / 256)
    for context in range(order):
        if context:  # one byte more on the left
            grams = grams[1:] + (whole[:-context] << 8 * context)
        known, counts = np.unique(grams[: len(before) - context], return_counts=True)
        asked = grams[len(before) - context :]
        contexts, start = np.unique(known >> 8, return_index=True)
        totals, kinds = np.add.reduceat(counts, start), np.diff(np.append(start, len(known)))
        total, kind = _looked_up(contexts, totals, asked >> 8), _looked_up(contexts, kinds, asked >> 8)
        mixed = (_looked_up(known, counts, asked) + kind * probability) / np.maximum(total + kind, 1)
        probability = np.where(total > 0, mixed, probability)
    return -np.log2(probability)


def _looked_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Returns the value of each key that is asked for, 0 where there is none; the keys are sorted."""
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[place] == asked, values[place], 0)


def xz_bits(before: np.ndarray, after: np.ndarray) -> float:
    """Returns the bits per byte by which a text makes the file of `xz -9e` longer, after another one."""

    def size(tokens: np.ndarray) -> int:
        return len(lzma.compress(tokens.astype(np.uint8).tobytes(), preset=9 | lzma.PRESET_EXTREME))

    return 8 * (size(np.concatenate([before, after])) - size(before)) / len(after)


def bits_by_context(result: foldax.Result) -> np.ndarray:
    """Returns the mean bits `[T]` of the test's bytes, predicted from 1, 2, ... T bytes before them."""
    length = result.config.length
    rows = data.windows(split_bytes()["test"][0], length)["inputs"][:-1]
    key = jax.random.key(0)

    def nats(row: jax.Array) -> jax.Array:
        return result.learner.evaluate(result.state, {"inputs": row[None]}, key)["nats"][0]

    found = jax.jit(lambda rows: jax.lax.map(nats, rows, batch_size=32))(jnp.asarray(rows))
    return np.asarray(found).mean(axis=0) / math.log(2)


def bars(scores: dict[str, float]) -> Any:
    """Draws the bits per byte of the model beside those of the others."""
    figure, axes = plots.new_figure(width=5.2, height=0.8 + 0.5 * len(scores))
    axis = axes[0, 0]
    axis.barh(list(scores), list(scores.values()), color=[plots.COLORS["train"], *["0.7"] * (len(scores) - 1)])
    for row, bits in enumerate(scores.values()):
        axis.text(bits, row, f" {bits:.3f}", va="center")
    axis.set(xlabel="bits per byte of the test", xlim=(0, 1.2 * max(scores.values())))
    axis.invert_yaxis()
    return figure


def context_curve(bits: np.ndarray, scores: dict[str, float]) -> Any:
    """Draws the bits per byte against the number of bytes before, and the others' as lines."""
    figure, axes = plots.new_figure(width=5.2, height=3.4)
    axis = axes[0, 0]
    axis.plot(
        np.arange(1, len(bits) + 1), bits, color=plots.COLORS["train"], marker=".", lw=1.0, label="at this context"
    )
    for (name, value), style in zip(scores.items(), ("-", "--", ":"), strict=True):
        axis.axhline(value, color="0.3", ls=style, lw=1, label=name)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="bytes before the one that is predicted", ylabel="bits per byte of the test")
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.25)
    return figure


def samples(result: foldax.Result, size: int = 600) -> str:
    """Returns texts that the model writes at several temperatures, after the first bytes of the test.

    The model never saw more than a window: when that is full, the last half of it is the prompt to go on from.
    """
    config, variables = result.config, {"params": result.state.averaged}
    half, model, texts = max(1, config.length // 2), network(config), []
    prompt = jnp.asarray(split_bytes()["test"][0][1 : half + 1])[None]
    for temperature in (0.5, 0.8, 1.0):
        key, written = jax.random.key(config.seed), prompt
        while written.shape[1] < half + size:
            key, now = jax.random.split(key)
            new = models.generate(model, variables, written[:, -half:], now, steps=half, temperature=temperature)
            written = jnp.concatenate([written, new], axis=1)
        text = TOKENS.decode(np.asarray(written[0, half : half + size]))
        texts.append(f"--- temperature {temperature} ---\n{text}")
    return f"--- prompt ---\n{TOKENS.decode(np.asarray(prompt[0]))}\n" + "\n".join(texts)


experiment = foldax.Experiment(Config, learner, dataset, learners.perplexity, figures)

if __name__ == "__main__":
    foldax.main(experiment)

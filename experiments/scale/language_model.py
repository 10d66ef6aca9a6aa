"""A decoder-only Transformer of packed tokens: 125M, 1.3B, or tiny, of any text or shards of tokens.

    foldax run experiments/scale/language_model.py
    foldax run experiments/scale/language_model.py --text hf:roneneldan/TinyStories --vocabulary-size 8192
    foldax run experiments/scale/language_model.py --text tfds:lm1b --model 125M --vocabulary-size 50257 \\
        --context-length 1024 --batch-size 512 --steps 20000 --dtype bfloat16 --mesh data=-1
    foldax plan experiments/scale/language_model.py --on v5e:16x16 --text synthetic --model 1.3B \\
        --vocabulary-size 50257 --context-length 2048 --batch-size 4096 --dtype bfloat16 --mesh fsdp=-1

A corpus is encoded and packed once into rows of `context_length` + 1 tokens, with a token after each document, and
written to shards of ArrayRecord, which are read in a global order that is a function of the seed and the step. Of
twenty documents one is for validation and one for the test. A folder of such shards, written before or elsewhere, is a
corpus too (`--text /data/web`), and several corpora are mixed by `--weights`.

The first command reads the help topics of Python as bytes. It reaches 1.739 bits per byte of the test (seed 0) in three
minutes on 2 CPU cores. The others are not measured here. 125M and 1.3B are the settings of GPT-3 (Brown et al., 2020,
table 2.1) with rotary positions, RMS normalisation and tied embeddings.
"""

import contextlib
import hashlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

import foldax
from foldax import data, learners, models, optim
from foldax.data.cache import cache_folder
from foldax.errors import DataError

END = "<|endoftext|>"  # the token after a document
SPLITS = {"train": range(18), "validation": range(18, 19), "test": range(19, 20)}  # of each twenty documents
NUM_SHARDS, TOKENIZER_DOCUMENTS, MAX_EVALUATED_TOKENS = 8, 10_000, 2**20

# Matrix products are divided over "tensor" as in Megatron (Shoeybi et al., 2019), and every matrix over "fsdp" too.
SHARDING_RULES = (
    (r"(query|key_value|mlp_in)/kernel$", ("fsdp", "tensor")),
    (r"(attention/output|mlp_out)/kernel$", ("tensor", "fsdp")),
    (r"embedding/embedding$", ("tensor", "fsdp")),
)


class Sizes(NamedTuple):
    """Sizes of a Transformer."""

    width: int
    depth: int
    num_heads: int


MODELS = {"tiny": Sizes(128, 4, 4), "125M": Sizes(768, 12, 12), "1.3B": Sizes(2048, 24, 16)}


@foldax.config
class Config(foldax.Training):
    steps = 600
    log_every = 20
    evaluate_every = 200
    monitor = "bits_per_byte"
    text: tuple[str, ...] = ("help",)
    """Corpora: help (the topics of Python), tfds:NAME, hf:NAME, folders of shards; or synthetic (random tokens)."""
    weights: tuple[float, ...] = ()
    """Weight of each corpus in the batches; empty: the same for each."""
    column: str = "text"
    """Name of the text in the examples of TFDS and Hugging Face."""
    shards: str | None = None
    """Folder in which shards are written; None: the cache."""
    vocabulary_size: int | None = None
    """Tokens of a byte-pair encoding, learned from the first documents; None: bytes."""
    model: Literal["tiny", "125M", "1.3B"] = "tiny"
    """Width, depth and heads of the Transformer."""
    batch_size: int = 16
    """Rows per update."""
    context_length: int = 128
    """Tokens predicted by a row."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of computations; parameters stay float32."""
    attention: Literal["fused", "xla"] = "fused"
    """Implementation of attention; fused: cuDNN's on GPUs, splash attention on TPUs, XLA's elsewhere."""
    remat: Literal["nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable"] | None = None
    """Policy of `jax.checkpoint_policies` for the activations that are stored; None: all are."""
    num_output_chunks: int | None = None
    """Parts of a row whose logits are computed one after the other; None: 16 where there are many logits."""
    optimizer: optim.Optimizer = optim.Optimizer(
        learning_rate=3e-3,
        schedule="cosine",
        warmup_fraction=0.05,
        final_fraction=0.1,
        weight_decay=0.1,
        beta2=0.95,
        clip_norm=1.0,
    )
    """Optimizer and schedule."""


def documents(text: str, column: str) -> Iterator[str]:
    """Yields the documents of a corpus one by one."""
    kind, _, name = text.partition(":")
    if text == "help":
        yield from data.python_help_topics().values()
    elif kind == "tfds":
        import tensorflow_datasets as tfds

        for example in tfds.data_source(name, split="train"):
            yield example[column].decode()
    elif kind == "hf":
        from datasets import load_dataset

        for example in load_dataset(name, split="train", streaming=True):
            yield example[column]
    else:
        allowed = "help, tfds:NAME, hf:NAME or a folder of shards, or synthetic alone"
        raise DataError(f"text: {text!r} is no corpus and no folder; give {allowed}")


def tokenizer(config: Config) -> data.Bytes | data.BPE:
    """Returns the tokenizer, which is learned from the first corpus unless it is in its folder or in the cache."""
    if config.vocabulary_size is None:
        return data.Bytes((END,))
    own = Path(config.text[0], "tokenizer.json")
    file = own if own.exists() else _cached(config, config.text[0], config.column, config.vocabulary_size)
    if not file.exists():
        texts = itertools.islice(documents(config.text[0], config.column), TOKENIZER_DOCUMENTS)
        data.BPE.train(texts, config.vocabulary_size, (END,)).save(file)
    return data.BPE.load(file)


def packed_rows(config: Config, text: str, split: str) -> Iterator[dict[str, np.ndarray]]:
    """Yields rows `[context_length + 1]` of the joined tokens of a split; a shorter last one is left out."""
    length, rest, encoding = config.context_length + 1, np.zeros(0, np.int32), tokenizer(config)
    for number, document in enumerate(documents(text, config.column)):
        if number % 20 in SPLITS[split]:
            rest = np.concatenate([rest, encoding.encode(document), [encoding.token(END)]]).astype(np.int32)
            count = len(rest) // length
            yield from ({"inputs": row} for row in rest[: count * length].reshape(count, length))
            rest = rest[count * length :]


def shards(config: Config, text: str) -> Path:
    """Returns the folder of the shards of a corpus, which are written where there are none yet."""
    if Path(text).is_dir():
        return Path(text)
    vocabulary = (config.vocabulary_size, config.text[0]) if config.vocabulary_size else ()
    folder = _cached(config, text, config.column, config.context_length, *vocabulary)
    if not folder.exists():
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}."))
        most = MAX_EVALUATED_TOKENS // config.context_length
        for split in SPLITS:
            rows = packed_rows(config, text, split)
            rows, count = (rows, NUM_SHARDS) if split == "train" else (itertools.islice(rows, most), 1)
            data.write_array_records(partial, rows, name=split, num_shards=count)
        with contextlib.suppress(OSError):  # another process was first
            partial.rename(folder)
    return folder


def _cached(config: Config, *facts: object) -> Path:
    folder = Path(config.shards) if config.shards else cache_folder() / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def synthetic(config: Config) -> data.Dataset:
    """Makes rows of random tokens, to plan a run or to measure its speed without a corpus."""
    import grain

    vocabulary = config.vocabulary_size or data.Bytes((END,)).vocabulary_size

    def row(number: int) -> dict[str, np.ndarray]:
        tokens = np.random.default_rng(number).integers(vocabulary, size=config.context_length + 1, dtype=np.int32)
        return {"inputs": tokens}

    def batches(seed: int) -> grain.MapDataset:
        return grain.MapDataset.range(2**20).shuffle(seed=seed).map(row).batch(config.batch_size, drop_remainder=True)

    held_out = {split: [{"inputs": row(2**20 + i)["inputs"][None]} for i in range(16)] for split in list(SPLITS)[1:]}
    return data.from_grain(batches, evaluation=held_out, name="synthetic", vocabulary_size=vocabulary)


def dataset(config: Config) -> data.Dataset:
    if config.text == ("synthetic",):
        return synthetic(config)
    if config.weights and len(config.weights) != len(config.text):
        raise DataError(f"weights: {len(config.weights)} weights do not fit {len(config.text)} corpora; give one each")
    folders = {text: shards(config, text) for text in config.text}
    return data.from_array_records(
        {text: f"{folder}/train-*" for text, folder in folders.items()},
        weights=dict(zip(config.text, config.weights, strict=True)) if config.weights else None,
        batch_size=config.batch_size,
        evaluation={split: [f"{folder}/{split}-*" for folder in folders.values()] for split in list(SPLITS)[1:]},
        name="text",
        vocabulary_size=tokenizer(config).vocabulary_size,
    )


def network(config: Config, vocabulary_size: int) -> models.Transformer:
    return models.Transformer(
        vocabulary_size,
        vocabulary_size,
        **MODELS[config.model]._asdict(),
        causal=True,
        max_length=config.context_length + 1,  # of a whole row
        tie_embeddings=True,
        normalization="rms",
        use_bias=False,
        dtype=config.dtype,
        remat=config.remat or False,
        scan_layers=True,
        vocabulary_multiple=128,  # divided by as many devices, and by the matrix units
        attention_implementation=config.attention,
    )


def learner(config: Config, info: data.Info) -> foldax.Learner:
    assert info.vocabulary_size is not None
    model = network(config, info.vocabulary_size)
    optimizer = optim.build(config.optimizer, config.steps)
    options = {} if config.text == ("synthetic",) else {"tokenizer": tokenizer(config)}
    learner = learners.language_model(
        model,
        optimizer,
        token_bytes=options["tokenizer"].token_bytes if options else None,
        num_output_chunks=config.num_output_chunks,
        **options,
    )
    return learner._replace(sharding_rules=SHARDING_RULES)


experiment = foldax.Experiment(Config, learner, dataset, learners.perplexity)

if __name__ == "__main__":
    foldax.main(experiment)

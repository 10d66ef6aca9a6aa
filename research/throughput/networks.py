"""Training speed of a residual network, language models and a diffusion model, against the same in PyTorch.

    python research/throughput/networks.py [resnet] [transformer] [lstm] [diffusion] [--json FILE]

All contenders of a section take turns in one process, for several rounds after an uncounted first one. README.md beside
this file has the results and describes the contenders.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from throughput import (
    CONSOLE,
    CORES,
    Config,
    Contenders,
    compare,
    step_flops,
    torch,
    torch_classifiers,
    torch_contenders,
    training_speed,
)

import foldax
from foldax import data, learners, models

ROUNDS = 3
RESNET = Config(steps=120, batch_size=64, log_every=20)
LANGUAGE = Config(steps=60, batch_size=16, log_every=20)
DENOISING = Config(steps=600, batch_size=64, log_every=100)
VOCABULARY, WIDTH, DEPTH, HEADS, LENGTH = 256, 128, 4, 4, 256  # language models; the LSTM has 2 layers of 256


def resnet_learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.ResNet(info.num_classes, depth=20, shortcut="projection")
    return learners.classifier(model, optax.adamw(config.learning_rate), preprocess=info.standardize)


def transformer_learner(config: Config, info: data.Info) -> foldax.Learner:
    shape = dict(width=WIDTH, depth=DEPTH, num_heads=HEADS, max_length=LENGTH)
    model = models.Transformer(VOCABULARY, VOCABULARY, causal=True, **shape)
    return learners.language_model(model, optax.adamw(config.learning_rate))


def lstm_learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.Recurrent(VOCABULARY, (256, 256), vocabulary_size=VOCABULARY)
    return learners.language_model(model, optax.adamw(config.learning_rate))


def diffusion_learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.DiT(1, 2, 64, 3, num_classes=info.num_classes, scan_layers=True)
    options = dict(shape=info.shapes["inputs"], preprocess=lambda x: x * (1 / 8) - 1.0, num_evaluation_times=1)
    return learners.diffusion(model, optax.adamw(config.learning_rate), **options)


def torch_resnet() -> Any:
    """The CIFAR ResNet-20 of `models.ResNet`, with projection shortcuts and one input channel."""
    make = torch.nn

    def convolve(inputs: int, outputs: int, size: int, stride: int) -> list[Any]:
        layers = make.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        return [layers, make.BatchNorm2d(outputs)]

    class Block(make.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            first, second = convolve(inputs, outputs, 3, stride), convolve(outputs, outputs, 3, 1)
            self.inner = make.Sequential(*first, make.ReLU(), *second)
            same = stride == 1 and inputs == outputs
            self.short = make.Identity() if same else make.Sequential(*convolve(inputs, outputs, 1, stride))

        def forward(self, x: Any) -> Any:
            return torch.relu(self.inner(x) + self.short(x))

    blocks, width = [], 16
    for stage in range(3):
        for index in range(3):
            outputs = 16 * 2**stage
            blocks.append(Block(width, outputs, 2 if stage and not index else 1))
            width = outputs
    head = [make.AdaptiveAvgPool2d(1), make.Flatten(), make.Linear(64, 10)]
    return make.Sequential(*convolve(1, 16, 3, 1), make.ReLU(), *blocks, *head)


def torch_transformer() -> Any:
    """The decoder of `models.Transformer`: pre-norm, rotary positions, GELU by tanh, fused attention."""
    make, size = torch.nn, WIDTH // HEADS
    angles = torch.arange(LENGTH)[:, None] * 10_000.0 ** (-torch.arange(size // 2) * 2 / size)
    cosine, sine = angles.cos(), angles.sin()

    def apply_rotary(x: Any) -> Any:  # [B, heads, T, size]
        first, second = x.chunk(2, -1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)

    class Block(make.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = make.ModuleList([make.LayerNorm(WIDTH, eps=1e-6) for _ in range(2)])
            self.query_key_value, self.output = make.Linear(WIDTH, 3 * WIDTH), make.Linear(WIDTH, WIDTH)
            self.mlp = make.Sequential(
                make.Linear(WIDTH, 4 * WIDTH), make.GELU(approximate="tanh"), make.Linear(4 * WIDTH, WIDTH)
            )

        def forward(self, x: Any) -> Any:
            batch, length, _ = x.shape
            heads = self.query_key_value(self.norms[0](x)).view(batch, length, 3, HEADS, size).permute(2, 0, 3, 1, 4)
            attended = torch.nn.functional.scaled_dot_product_attention(
                apply_rotary(heads[0]), apply_rotary(heads[1]), heads[2], is_causal=True
            )
            x = x + self.output(attended.transpose(1, 2).reshape(batch, length, WIDTH))
            return x + self.mlp(self.norms[1](x))

    blocks = [Block() for _ in range(DEPTH)]
    ends = [make.LayerNorm(WIDTH, eps=1e-6), make.Linear(WIDTH, VOCABULARY)]
    return make.Sequential(make.Embedding(VOCABULARY, WIDTH), *blocks, *ends)


def torch_lstm() -> Any:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(VOCABULARY, 256)
            self.lstm = torch.nn.LSTM(256, 256, num_layers=2, batch_first=True)
            self.output = torch.nn.Linear(256, VOCABULARY)

        def forward(self, x: Any) -> Any:
            return self.output(self.lstm(self.embedding(x))[0])

    return Network()


def torch_denoiser(width: int = 64, depth: int = 3, heads: int = 4, classes: int = 10) -> Any:
    """The Diffusion Transformer of `models.DiT`, for images of 8 x 8 in patches of 2 x 2."""
    make, size = torch.nn, width // heads
    frequencies = torch.exp(torch.linspace(0.0, float(np.log(1000.0)), width // 2))

    def zero_linear(inputs: int, outputs: int) -> Any:
        layer = make.Linear(inputs, outputs)
        make.init.zeros_(layer.weight)
        make.init.zeros_(layer.bias)
        return layer

    class Modulated(make.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = make.LayerNorm(width, eps=1e-6, elementwise_affine=False)

        def forward(self, x: Any, scale: Any, shift: Any) -> Any:
            return self.norm(x) * (1 + scale) + shift

    class Block(make.Module):
        def __init__(self) -> None:
            super().__init__()
            self.condition, self.norms = zero_linear(width, 6 * width), make.ModuleList([Modulated(), Modulated()])
            self.query_key_value, self.output = make.Linear(width, 3 * width), make.Linear(width, width)
            self.mlp = make.Sequential(
                make.Linear(width, 4 * width), make.GELU(approximate="tanh"), make.Linear(4 * width, width)
            )

        def forward(self, x: Any, conditioning: Any) -> Any:
            parts = self.condition(conditioning)[:, None].chunk(6, -1)
            y = self.query_key_value(self.norms[0](x, *parts[:2]))
            query, key, value = y.view(*x.shape[:2], 3, heads, size).permute(2, 0, 3, 1, 4)
            y = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
            x = x + parts[2] * self.output(y.reshape(x.shape))
            return x + parts[5] * self.mlp(self.norms[1](x, *parts[3:5]))

    class Network(make.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = make.Sequential(make.Linear(width, width), make.SiLU(), make.Linear(width, width))
            self.classes, self.patches = make.Embedding(classes + 1, width), make.Conv2d(1, width, 2, 2)
            self.positions = make.Parameter(0.02 * torch.randn(16, width))
            self.blocks = make.ModuleList([Block() for _ in range(depth)])
            self.norm, self.condition, self.output = Modulated(), zero_linear(width, 2 * width), zero_linear(width, 4)

        def forward(self, x: Any, times: Any, labels: Any) -> Any:
            angles = times[:, None] * frequencies
            conditioning = self.time(torch.cat([angles.cos(), angles.sin()], -1)) + self.classes(labels)
            conditioning = torch.nn.functional.silu(conditioning)
            x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
            for block in self.blocks:
                x = block(x, conditioning)
            x = self.output(self.norm(x, *self.condition(conditioning)[:, None].chunk(2, -1)))
            return x.view(-1, 4, 4, 2, 2).transpose(2, 3).reshape(-1, 1, 8, 8)

    return Network()


def measure_resnet() -> dict[str, Any]:
    # PyTorch is not evaluated here, so the validation split is kept small.
    dataset = data.load("fashion_mnist", batch_size=RESNET.batch_size, validation=0.002)
    experiment = foldax.Experiment(Config, resnet_learner, name="resnet")
    contenders: Contenders = {"foldax.train": functools.partial(training_speed, experiment, RESNET, dataset)}
    contenders |= torch_classifiers(RESNET, dataset, torch_resnet, image=True)
    title = f"Fashion-MNIST: ResNet-20, width 16, batch {RESNET.batch_size}"
    return compare(title, contenders, ROUNDS, step_flops(resnet_learner, RESNET, dataset))


def measure_language(learner: Any, make: Any, title: str) -> dict[str, Any]:
    tokens = data.Bytes().encode(data.python_help_text())
    arrays = data.token_windows(tokens, LENGTH, LENGTH)
    full_rows = {"inputs": arrays["inputs"][:-1]}
    dataset = data.from_arrays(full_rows, batch_size=LANGUAGE.batch_size, name="topics", validation=0.02, test=0.02)
    experiment = foldax.Experiment(Config, learner, name="language")
    contenders: Contenders = {"foldax.train": functools.partial(training_speed, experiment, LANGUAGE, dataset)}
    if torch is not None:
        rows = torch.tensor(np.asarray(dataset.train.examples()["inputs"]), dtype=torch.long)
        criterion = torch.nn.CrossEntropyLoss()

        def loss(network: Any, indices: Any) -> Any:
            batch = rows[indices]
            return criterion(network(batch[:, :-1]).reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1))

        contenders |= torch_contenders(LANGUAGE, len(rows), make, loss)
    title = f"{title}, {LANGUAGE.batch_size} windows of {LENGTH} bytes"
    return compare(title, contenders, ROUNDS, step_flops(learner, LANGUAGE, dataset))


def measure_diffusion() -> dict[str, Any]:
    dataset = data.load("digits", batch_size=DENOISING.batch_size)
    experiment = foldax.Experiment(Config, diffusion_learner, name="diffusion")
    contenders: Contenders = {"foldax.train": functools.partial(training_speed, experiment, DENOISING, dataset)}
    if torch is not None:
        examples, schedule = dataset.train.examples(), learners.noise_schedule.cosine()
        images = torch.tensor(np.asarray(examples["inputs"], np.float32)[..., 0][:, None]) / 8 - 1
        targets = torch.tensor(np.asarray(examples["targets"]), dtype=torch.long)
        alphas, sigmas = torch.tensor(schedule.alpha), torch.tensor(schedule.sigma)

        def loss(network: Any, indices: Any) -> Any:
            x, times = images[indices], torch.randint(1, schedule.steps + 1, (len(indices),))
            noise, shape = torch.randn_like(x), (-1, 1, 1, 1)
            labels = torch.where(torch.rand(len(indices)) < 0.1, 10, targets[indices])
            alpha, sigma = alphas[times].view(shape), sigmas[times].view(shape)
            outputs = network(alpha * x + sigma * noise, times / schedule.steps, labels)
            return torch.nn.functional.mse_loss(outputs, alpha * noise - sigma * x)

        contenders |= torch_contenders(DENOISING, len(images), torch_denoiser, loss)
    title = f"digits: diffusion, a DiT of 3 layers of 64, batch {DENOISING.batch_size}"
    return compare(title, contenders, ROUNDS, step_flops(diffusion_learner, DENOISING, dataset))


def main() -> None:
    about = f"{DEPTH} layers of {WIDTH}"
    sections = {
        "resnet": measure_resnet,
        "transformer": lambda: measure_language(transformer_learner, torch_transformer, f"Transformer, {about}"),
        "lstm": lambda: measure_language(lstm_learner, torch_lstm, "LSTM, 2 layers of 256"),
        "diffusion": measure_diffusion,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"some of {', '.join(sections)}; all if none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of every round there too")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.sections) - set(sections)):
        parser.error(f"unknown section {unknown[0]!r}; choose from {', '.join(sections)}")
    version = f"torch {torch.__version__}" if torch else "no PyTorch rows (pip install 'foldax\\[benchmark]')"
    CONSOLE.print(f"{CORES} cores, {jax.devices()[0].platform}, jax {jax.__version__}, {version}")
    results = {name: measure() for name, measure in sections.items() if name in (arguments.sections or sections)}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

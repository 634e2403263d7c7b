"""Train the demo model from generated stories: text, tokenizer, weights and figures.

``python -m models.train --out models/stories-6m`` takes minutes on a GPU; on a CPU, use
``--device cpu --minutes 60``, which fits the learning-rate schedule into an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from models import corpus, export
from models.llama import Llama, Shape, load, save

# Held-out stories come from seeds that no training shard uses.
HELD_OUT_SEED = 900_000_000
LONG_PART = 0.85
SHARDS = 16


def say(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


class Tokens:
    """The packed tokens on the device, drawn in windows."""

    def __init__(self, run: Tensor, seed: int) -> None:
        self.run = run
        self.starts = (run == corpus.BOS).nonzero().flatten()
        self.draw = torch.Generator(run.device).manual_seed(seed)

    def batch(self, rows: int, length: int) -> Tensor:
        """Draw windows of length + 1 tokens: half start with a document, half anywhere."""
        limit, device = len(self.run) - length - 1, self.run.device
        pick = torch.randint(len(self.starts), (rows,), generator=self.draw, device=device)
        anywhere = torch.randint(limit, (rows,), generator=self.draw, device=device)
        odd = torch.arange(rows, device=device) % 2 == 1
        first = torch.where(odd, anywhere, self.starts[pick].clamp(max=limit))
        window = torch.arange(length + 1, device=device)
        return self.run[first[:, None] + window].long()


def loss_of(model: Callable[[Tensor], Tensor], window: Tensor) -> Tensor:
    """Mean cross-entropy of the next token."""
    logits = model(window[:, :-1]).float()
    return functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())


def rate(progress: float, peak: float) -> float:
    """Cosine schedule with a short warm-up, by the part of the work that is done."""
    if progress < 0.02:
        return peak * max(progress, 0.0005) / 0.02
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def optimizer_of(model: Llama, peak: float) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = matrices[0].is_cuda
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=fused)


class Trainer:
    """Runs the steps; the last part of them uses windows of the full context."""

    def __init__(self, model: Llama, tokens: Tokens, options: argparse.Namespace) -> None:
        self.model, self.tokens, self.options = model, tokens, options
        self.optimizer = optimizer_of(model, options.rate)
        self.cuda = options.device == "cuda"
        self.call: Callable[[Tensor], Tensor] = self._loss
        if self.cuda and options.compile:
            self.call = torch.compile(self._loss, dynamic=False)
        self.seen = 0

    def _loss(self, window: Tensor) -> Tensor:
        return loss_of(self.model, window)

    def _lengths(self, progress: float) -> tuple[int, int]:
        """Rows and length of the next batch; the token count stays the same."""
        short, long = self.options.context, self.model.shape.max_position_embeddings
        if progress < LONG_PART:
            return self.options.rows, short
        return max(1, self.options.rows * short // long), long

    def step(self, progress: float) -> Tensor:
        """One optimizer step; returns its loss, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate(progress, self.options.rate)
        window = self.tokens.batch(*self._lengths(progress))
        loss = self._backward(window)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seen += window.numel() - len(window)
        return loss

    def warm_up(self) -> None:
        """Compile for both window lengths before the clock starts."""
        for progress in (0.0, 1.0):
            self._backward(self.tokens.batch(*self._lengths(progress)))
        self.optimizer.zero_grad(set_to_none=True)

    def _backward(self, window: Tensor) -> Tensor:
        with torch.autocast(self.options.device, torch.bfloat16, enabled=self.cuda):
            loss = self.call(window)
        torch.autograd.backward(loss)
        return loss.detach()

    def run(self, show: Callable[[float, str], None]) -> int:
        """Train until the steps or the minutes are used up; returns the number of steps."""
        start, count, progress = time.monotonic(), 0, 0.0
        while progress < 1.0:
            loss = self.step(progress)
            count += 1
            if count % self.options.log_every == 0 or count == 1:
                speed = self.seen / (time.monotonic() - start)
                show(progress, f"step {count} loss {loss.item():.4f} {speed:,.0f} tokens/s")
            spent = (time.monotonic() - start) / 60
            progress = max(count / self.options.steps, spent / self.options.minutes)
        return count


def train(trainer: Trainer) -> int:
    """Run the trainer with a progress bar on a terminal and plain lines elsewhere."""
    if not sys.stderr.isatty():
        return trainer.run(lambda done, text: say(f"{done:6.1%} {text}"))
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=1.0)
        return trainer.run(lambda done, text: bar.update(task, completed=done, description=text))


@torch.no_grad()
def held_out_loss(model: Llama, run: Tensor, length: int, limit: int) -> float:
    """Mean loss over windows of packed held-out stories."""
    count = min(limit, (len(run) - 1) // length)
    losses = [
        loss_of(model, run[i * length : (i + 1) * length + 1][None].long()).item() for i in range(count)
    ]
    return sum(losses) / max(1, count)


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Tokenizer, Tensor, Tensor]:
    """Generate the text, train the tokenizer and encode training and held-out tokens."""
    paths = corpus.generate(folder, options.seed * 1000, options.documents, SHARDS, options.workers)
    held = corpus.generate(folder, HELD_OUT_SEED + options.seed, 1000, 1)
    say(f"generated {sum(p.stat().st_size for p in paths):,} bytes")
    tokenizer = corpus.train_tokenizer(corpus.read(paths[0])[:20_000], options.vocab)
    say(f"tokenizer has {tokenizer.get_vocab_size()} tokens")
    run = torch.from_numpy(corpus.encode(tokenizer, paths).astype("int32"))
    held_run = torch.from_numpy(corpus.encode(tokenizer, held).astype("int32"))
    say(f"{len(run):,} training tokens, {len(held_run):,} held-out tokens")
    return tokenizer, run, held_run


def arguments() -> argparse.Namespace:
    """Read the command line; defaults depend on the device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "stories-6m")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, help="training documents to generate")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--rows", type=int, help="windows in a batch")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--log-every", type=int, default=100)
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    cuda = options.device == "cuda"
    options.documents = options.documents or (144_000 if cuda else 60_000)
    options.rows = options.rows or (96 if cuda else 8)
    return options


def report(options: argparse.Namespace, trainer: Trainer, held: Tensor) -> dict[str, object]:
    """Figures of the saved, rounded model for the model card."""
    model = load(options.out).to(options.device)
    windows = 64 if options.device == "cuda" else 2
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_seen": trainer.seen,
        "held_out_loss_1024": held_out_loss(model, held, 1024, windows * 4),
        "held_out_loss_4096": held_out_loss(model, held, 4096, windows),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
    }


def main() -> None:
    """Do everything and leave the model folder and its figures behind."""
    options = arguments()
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, run, held = prepare(options, Path(folder))
    shape = Shape(vocab_size=tokenizer.get_vocab_size())
    model = Llama(shape).to(options.device)
    trainer = Trainer(model, Tokens(run.to(options.device), options.seed), options)
    if options.device == "cuda":
        trainer.warm_up()
        say("warmed up")
    start = time.monotonic()
    steps = train(trainer)
    seconds = time.monotonic() - start
    export.write(options.out, shape, tokenizer)
    save(model, options.out)
    figures = report(options, trainer, held.to(options.device))
    figures |= {"steps": steps, "seconds": round(seconds, 1), "training_tokens": len(run)}
    (options.out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    say(json.dumps(figures))


if __name__ == "__main__":
    main()

"""The airbench94 recipe, ported by hand to the processor from its published description.

On a machine with a CUDA device it runs there, as Fieldmark does.

Source: Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU, arXiv 2404.00498. What is other
than published: bf16 autocast in place of half precision; the pictures come from a folder of files,
which is read by a pool of threads with Pillow; the whitening is measured on 5,000 pictures drawn at
random, because a folder's first pictures are of one class.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

EPOCHS, BATCH = 9.9, 1024
WIDTHS = (64, 256, 256)
LOGIT_SCALE, SMOOTHING, MOMENTUM = 1 / 9, 0.2, 0.85
# The recipe's rate and decay are for a mean over 1,024 pictures with momentum counted in.
PER_EXAMPLE = 1024 * (1 + 1 / (1 - MOMENTUM))
LR, DECAY, BIAS_FACTOR = 11.5, 0.0153, 64.0
RISE, START, END = 0.23, 0.2, 0.07
WHITENED, WHITEN_EPOCHS = 5_000, 3
LOOK_EVERY, LOOK_DECAY = 5, 0.95**5
PAD = 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def read(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and labels of a part.

    Shape:
        uint8 [N, 3, 32, 32] and int64 [N].
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(file, k) for k, path in enumerate(classes) for file in sorted(path.glob("*"))]

    def decode(file: Path) -> np.ndarray:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = np.stack(list(pool.map(decode, (file for file, _ in files))))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(
        [k for _, k in files]
    )


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Bytes to floats as the network wants them."""
    mean, std = (torch.tensor(v, device=DEVICE).view(1, 3, 1, 1) * 255 for v in (MEAN, STD))
    floats = (images.float() - mean) / std
    return floats.contiguous(memory_format=torch.channels_last)


class Norm(nn.BatchNorm2d):
    """Batch norm with a fixed scale, a quick average and almost no epsilon."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-12, momentum=0.4)
        self.weight.requires_grad = False


def convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """3x3, without bias; its first outputs hand their inputs on."""
    made = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    nn.init.dirac_(made.weight.data[:channels_in])
    return made


class Group(nn.Sequential):
    """Two convolutions, the first one pooled."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            convolution(channels_in, channels_out),
            nn.MaxPool2d(2),
            Norm(channels_out),
            nn.GELU(),
            convolution(channels_out, channels_out),
            Norm(channels_out),
            nn.GELU(),
        )


class Network(nn.Module):
    """Whitening, three groups, a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad = False
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        channels = (24, *WIDTHS)
        self.groups = nn.Sequential(*(Group(channels[i], channels[i + 1]) for i in range(3)))
        self.head = nn.Linear(WIDTHS[-1], classes, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Shape: [B, 3, 32, 32] to [B, K]."""
        x = self.groups(F.gelu(self.whiten(images)))
        answers: torch.Tensor = self.head(F.max_pool2d(x, 3).flatten(1)) * LOGIT_SCALE
        return answers

    @torch.no_grad()
    def measure_whitening(self, images: torch.Tensor) -> None:
        """Filters that decorrelate 2x2 patches, and their negatives."""
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / torch.sqrt(values + 5e-4)).T.flip(0).view(12, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


def augmented(images: torch.Tensor, epoch: int, mirrored: torch.Tensor) -> torch.Tensor:
    """A shifted epoch; every picture is mirrored in every second one.

    Shape:
        uint8 [N, 3, 32, 32] to the same.
    """
    turned = torch.where((mirrored ^ (epoch % 2 == 1)).view(-1, 1, 1, 1), images.flip(-1), images)
    padded = F.pad(turned.float(), [PAD] * 4, mode="reflect").to(torch.uint8)
    shifts = torch.randint(0, 2 * PAD + 1, (2, len(images)), device=DEVICE)
    cut = torch.empty_like(images)
    for top in range(2 * PAD + 1):
        for left in range(2 * PAD + 1):
            here = (shifts[0] == top) & (shifts[1] == left)
            cut[here] = padded[here, :, top : top + 32, left : left + 32]
    return cut


def schedule(step: int, steps: int) -> float:
    """A triangle: up in the first 23 %, then down."""
    peak = RISE * steps
    if step < peak:
        return START + (1 - START) * step / peak
    return 1 + (END - 1) * (step - peak) / (steps - peak)


def logits(network: Network, images: torch.Tensor) -> torch.Tensor:
    """Shape: floats [B, 3, 32, 32] to [B, K]."""
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        answers: torch.Tensor = network(images)
    return answers.float()


@torch.inference_mode()
def accuracy(network: Network, images: torch.Tensor, labels: torch.Tensor, *, views: bool) -> float:
    """Share that is right; with ``views`` by six views of each picture."""
    network.eval()
    right = 0
    for part, wanted in zip(torch.split(images, 1000), torch.split(labels, 1000), strict=True):
        answers = (
            _six_views(network, normalize(part)) if views else logits(network, normalize(part))
        )
        right += int((answers.argmax(1) == wanted).sum())
    network.train()
    return right / len(labels)


def _six_views(network: Network, images: torch.Tensor) -> torch.Tensor:
    def both(view: torch.Tensor) -> torch.Tensor:
        return (logits(network, view) + logits(network, view.flip(-1))) / 2

    padded = F.pad(images, [1] * 4, mode="reflect")
    shifted = both(padded[..., 0:32, 0:32]) + both(padded[..., 2:34, 2:34])
    return both(images) / 2 + shifted / 4


def optimizer(network: Network, size: int) -> torch.optim.Optimizer:
    """Nesterov's SGD on the summed loss, norms' biases with a rate of their own."""
    lr, bias_lr = LR / PER_EXAMPLE, LR * BIAS_FACTOR / PER_EXAMPLE
    decay = DECAY * size / PER_EXAMPLE  # of a step; torch multiplies what it is given by the rate
    trained = [(k, p) for k, p in network.named_parameters() if p.requires_grad]
    norms = [p for k, p in trained if k.startswith("groups") and k.endswith("bias")]
    rest = [p for k, p in trained if not (k.startswith("groups") and k.endswith("bias"))]
    return torch.optim.SGD(
        [
            {"params": rest, "lr": lr, "weight_decay": decay / lr},
            {"params": norms, "lr": bias_lr, "weight_decay": decay / bias_lr},
        ],
        momentum=MOMENTUM,
        nesterov=True,
    )


class Lookahead:
    """A slow copy of weights and running statistics, to which the network returns."""

    def __init__(self, network: Network) -> None:
        self._fast = [v for v in network.state_dict().values() if v.is_floating_point()]
        self._slow = [v.clone() for v in self._fast]

    @torch.no_grad()
    def meet(self, keep: float) -> None:
        """Move the slow copy, and put the network there."""
        for slow, fast in zip(self._slow, self._fast, strict=True):
            slow.lerp_(fast, 1 - keep)
            fast.copy_(slow)


def flop(network: Network, batch: torch.Tensor) -> float:
    """Of one picture's forward and backward pass."""
    counted = copy.deepcopy(network)
    with FlopCounterMode(display=False) as counter:
        logits(counted, batch).sum().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / len(batch)


def main(folder: Path, seed: int, epochs: float, size: int) -> dict[str, object]:
    """Read, train, evaluate."""
    start, paused = time.perf_counter(), 0.0
    torch.manual_seed(seed)
    images, labels, test_images, test_labels = (
        part.to(DEVICE) for name in ("train", "test") for part in read(folder / name)
    )
    network = Network(int(labels.max()) + 1).to(DEVICE).to(memory_format=torch.channels_last)
    read_in = time.perf_counter() - start
    network.measure_whitening(normalize(images[torch.randperm(len(images))[:WHITENED]]))
    steps_per_epoch = len(images) // size
    steps = int(np.ceil(steps_per_epoch * epochs))
    sgd, lookahead = optimizer(network, size), Lookahead(network)
    peaks = [group["lr"] for group in sgd.param_groups]
    mirrored = torch.rand(len(images), device=DEVICE) < 0.5
    work, curve, step, epoch = 0.0, [], 0, 0
    while step < steps:
        network.whiten.bias.requires_grad = epoch < WHITEN_EPOCHS  # type: ignore[union-attr]
        before = time.perf_counter()
        each = flop(network, normalize(images[:8]))
        paused += time.perf_counter() - before
        pixels = augmented(images, epoch, mirrored)
        order = torch.randperm(len(images), device=DEVICE)
        for chosen in torch.split(order, size)[:steps_per_epoch]:
            for group, peak in zip(sgd.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(step, steps)
            answers = logits(network, normalize(pixels[chosen]))
            loss = F.cross_entropy(
                answers, labels[chosen], label_smoothing=SMOOTHING, reduction="sum"
            )
            sgd.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
            step += 1
            work += each * len(chosen)
            if step % LOOK_EVERY == 0:
                lookahead.meet(LOOK_DECAY * (step / steps) ** 3)
            if step == steps:
                lookahead.meet(1.0)
                break
        epoch += 1
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        before = time.perf_counter()
        seen = accuracy(network, test_images, test_labels, views=False)
        curve.append((before - start - paused, seen))
        paused += time.perf_counter() - before
    final = accuracy(network, test_images, test_labels, views=True)
    elapsed = time.perf_counter() - start
    return {
        "accuracy": final,
        "elapsed": elapsed,
        "paused": paused,
        "reading": read_in,
        "curve": curve,
        "flop": work,
    }


if __name__ == "__main__":
    words = sys.argv[3:]
    number, size = (float(words[0]), int(words[1])) if words else (EPOCHS, BATCH)
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), number, size)))

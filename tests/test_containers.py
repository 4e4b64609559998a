"""The same pictures in another container give the same run."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from PIL import Image

import fieldmark

NAMES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def test_folder_and_cifar_batches(tmp_path: Path) -> None:
    """A folder of PNG files, and the same pixels as CIFAR-10 python batches in another order."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (150, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(150) % 10
    pixels[np.arange(150), labels * 3] += 55  # a bright row tells the class
    batches = tmp_path / "batches"
    batches.mkdir()
    order = rng.permutation(120)
    files = [*np.array_split(order, 5), np.arange(120, 150)]
    for number, members in enumerate(files):
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        data = pixels[members].transpose(0, 3, 1, 2).reshape(len(members), 3072)
        (batches / name).write_bytes(
            pickle.dumps({b"data": data, b"labels": labels[members].tolist()}, protocol=2)
        )
    (batches / "batches.meta").write_bytes(pickle.dumps({b"label_names": NAMES}, protocol=2))
    folder = tmp_path / "folder"
    for i, image in enumerate(pixels):
        home = folder / ("train" if i < 120 else "test") / NAMES[labels[i]]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(home / f"{i}.png")

    runs = [
        fieldmark.train(
            data,
            model="small_cnn(width=4)",
            epochs=2,
            batch_size=16,
            augment="pad_crop(4)|flip_lr|erase(0.5)",
            mix="mixup(0.2)",
            threads=1,
            out=tmp_path / "runs" / data.name,
            progress=False,
        )
        for data in (folder, batches)
    ]
    first, second = ((run.path / "model.safetensors").read_bytes() for run in runs)
    assert first == second
    for part in ("val", "test"):
        one, other = (run.scores[part] for run in runs)
        assert one["confusion"] == other["confusion"]
        assert abs(one["loss"] - other["loss"]) < 1e-9  # summed in another order

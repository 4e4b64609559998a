"""Randomness as a pure function of what it belongs to: (seed, epoch, picture) or (seed, step).

No global generator is read or advanced. Any draw can be made again at any time, in any order and by
any thread, which is what exact resume, equal draws for compared models and independence of the
number of workers rest on.

The mixer is SplitMix64's finaliser (Steele, Lea, Flood: Fast splittable pseudorandom number
generators, 2014), folded over the keys. Its values are fixed by this file, not by a library
version.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

# The array types of the whole package are here, in the lowest module that knows NumPy; but pixels,
# U8, which are in pictures/picture.py.
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


def _finalise(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


def stream(name: str) -> int:
    """Turn the name of a use of randomness ("order", "flip_lr#2") into a key."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def mix(*keys: int | U64) -> U64:
    """Hash integers (any may be arrays, which broadcast) into uniform 64-bit words."""
    with np.errstate(over="ignore"):
        state = np.asarray([0x243F6A8885A308D3], dtype=np.uint64)
        for key in keys:
            word = np.asarray(key % 2**64 if isinstance(key, int) else key, dtype=np.uint64)
            state = _finalise((state ^ word) + _GOLDEN)
        return state


def uniform(count: int, *keys: int | U64) -> F64:
    """Draw ``count`` numbers in [0, 1) for every key.

    Shape:
        keys broadcast to [N]; the result is [N, count].
    """
    with np.errstate(over="ignore"):
        base = mix(*keys)[:, None]
        words = _finalise(base + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(ids: U64, *keys: int) -> npt.NDArray[np.int64]:
    """Order pictures by the hash of their identity: the order depends on which pictures there are,
    not on how they are named or in which order they were found.
    """
    return np.argsort(mix(*keys, ids), kind="stable")


def generator(*keys: int) -> np.random.Generator:
    """A NumPy generator for draws that need more than uniforms (Beta for mixup)."""
    return np.random.Generator(np.random.Philox(key=int(mix(*keys)[0])))


def seed_torch(*keys: int) -> None:
    """Seed torch's default generators for one step (dropout and the like).

    ``torch.default_generator.manual_seed`` costs 2 us; ``torch.manual_seed`` costs 180 us on a CUDA
    build without a device, because it visits every backend.
    """
    import torch

    value = int(mix(*keys)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for generator in torch.cuda.default_generators:
            generator.manual_seed(value)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(value)

"""Random draws that belong to samples."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


class Noise:
    """Random draws that belong to samples, not to batches.

    A draw depends on (seed, purpose, epoch, sample, draw, position) alone: batching, re-packing, the device and the
    number of processes change nothing, and the global generators are never touched.

    Args:
        seed: the run's seed.
        purpose: what the draws are for, such as "train"; other purposes get other draws.
        epoch: pass over the data.
        samples: (B,) long; each sample's index in its split.
    """

    def __init__(self, seed: int, purpose: str, epoch: int, samples: Tensor) -> None:
        digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
        base = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
        self._keys = [_mix(samples.to(torch.int32) ^ _wrap(word)) for word in base]

    def of(self, rows: Tensor) -> Noise:
        """The draws of some samples of the batch, `rows` (n,) long."""
        part = object.__new__(Noise)
        part._keys = [key[rows] for key in self._keys]
        return part

    def uniform(self, shape: tuple[int, ...], draw: int = 0, rows: Tensor | None = None) -> Tensor:
        """(len(rows), *shape) float32 in [0, 1); `draw` numbers independent draws, such as restarts."""
        first, second = (key if rows is None else key[rows] for key in self._keys)
        position = torch.arange(math.prod(shape), dtype=torch.int32, device=first.device)
        bits = _mix(position ^ _mix(first ^ _wrap(draw * 0x9E3779B9)).unsqueeze(1))
        bits = _mix(bits.bitwise_xor_(second.unsqueeze(1)))
        return (bits >> 8).bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2.0**-24).view(-1, *shape)

    def normal(self, shape: tuple[int, ...], draw: int = 0, rows: Tensor | None = None) -> Tensor:
        """(len(rows), *shape) float32 standard normal (Box-Muller)."""
        radius = (-2 * torch.log1p(-self.uniform(shape, 2 * draw, rows))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(shape, 2 * draw + 1, rows))


def _wrap(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _mix(x: Tensor) -> Tensor:
    """A bijective 32-bit mixer (C. Wellons' lowbias32 constants); int32 products wrap, shifts must be made logical."""
    spare = x >> 16
    x = spare.bitwise_and_(0xFFFF).bitwise_xor(x).mul_(0x7FEB352D)
    torch.bitwise_right_shift(x, 15, out=spare)
    x = x.bitwise_xor_(spare.bitwise_and_(0x1FFFF)).mul_(_wrap(0x846CA68B))
    torch.bitwise_right_shift(x, 16, out=spare)
    return x.bitwise_xor_(spare.bitwise_and_(0xFFFF))

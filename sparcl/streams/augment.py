"""Augmentation of whole batches: random crop after zero padding, mirror image, normalization.

The three steps are apart because they happen at different times: positions are drawn from a named generator
(on the CPU, so that a run on a GPU sees the same images), applied to uint8 pixels, and the result is
normalized on the device. The order is torchvision's (RandomCrop, RandomHorizontalFlip, ToTensor,
Normalize): the border is 0 *before* normalization.
"""

from __future__ import annotations

import functools

import torch
from torch.nn import functional

from sparcl.streams.stream import StreamInfo


def draw(n: int, info: StreamInfo, generator: torch.Generator) -> torch.Tensor:
    """Draw one augmentation per image: int64 (n, 3) on the CPU with columns (dy, dx, flip).

    ``dy`` and ``dx`` are the crop's top and left in the padded image, uniform over 0 .. 2 * pad (``pad``
    leaves the image where it was); ``flip`` is 0 or 1. What a stream does not do is drawn as 0. The number
    of values taken from ``generator`` depends on ``n`` alone.
    """
    offsets = torch.randint(0, 2 * info.pad + 1, (n, 2), generator=generator)
    flips = torch.randint(0, 2 if info.flip else 1, (n, 1), generator=generator)
    return torch.cat([offsets, flips], dim=1)


def apply(images: torch.Tensor, draws: torch.Tensor, info: StreamInfo) -> torch.Tensor:
    """Crop and mirror ``images``, uint8 (N, C, H, W), as ``draws`` (N, 3) say; the result has shape and
    device of ``images`` and never shares memory with them unless the stream has no augmentation at all."""
    if not info.pad and not info.flip:
        return images
    height, width = images.shape[-2:]
    dy, dx, flip = draws.to(images.device, non_blocking=True).unbind(1)
    if info.pad:
        padded = functional.pad(images, (info.pad,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2 pad + 1, 2 pad + 1, H, W), a view
        images = windows[torch.arange(len(images), device=images.device), :, dy, dx]
    if info.flip:
        images = torch.where(flip.bool()[:, None, None, None], images.flip(-1), images)
    return images


def normalize(
    images: torch.Tensor,
    info: StreamInfo,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return ``(images / scale - mean) / std``, (N, C, H, W) in ``channels_last``, on ``device``
    (``None``: where the images are).

    Pixels travel as uint8 and are converted on the device; arithmetic is in ``dtype``.
    """
    device = images.device if device is None else torch.device(device)
    mean, std = _constants(info.mean, info.std, device, dtype)
    pixels = images.to(device, non_blocking=True).to(dtype, memory_format=torch.channels_last)
    return pixels.div_(info.scale).sub_(mean).div_(std)


@functools.cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and std as (1, C, 1, 1) tensors, kept so that no step waits for their copy to the
    device."""
    return (
        torch.tensor(mean, dtype=dtype, device=device).view(1, -1, 1, 1),
        torch.tensor(std, dtype=dtype, device=device).view(1, -1, 1, 1),
    )

"""Random images in whole patches, and a score of their patches."""

from __future__ import annotations

import torch

from amn_masking.patches import pool_to_patches

SIDE = 4  # pixels of a patch


def brightness(images):
    """A score of each patch that needs no network: its mean."""
    return pool_to_patches(images, [side // SIDE for side in images.shape[2:]])


def patch_of(grid, side=SIDE):
    """The ``patch_size`` for images of that grid, of one to three dimensions."""
    return (side,) * len(grid)


def images_of(grid, batch=2, seed=0):
    """Images of that grid of patches; signals or volumes if it has one or three dimensions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *(SIDE * parts for parts in grid), generator=generator)

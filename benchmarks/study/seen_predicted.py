"""An early look: patches that are seen, predicted, or left out.

The mask says what is predicted. Of the other patches some, drawn uniformly, are what the encoder
sees; the rest is left out: neither encoded nor decoded, and in no loss.
"""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.registry import MODELS
from torch import Tensor

from amn_masking.adapters.mmpretrain import MAE
from amn_masking.mask import PatchMask


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """``(B, L, D)`` and ``(B, N)`` to ``(B, N, D)``."""
    return tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2]))


@MODELS.register_module()
class SeenPredictedMAE(MAE):
    """mmpretrain's MAE whose decoder runs on the seen and the predicted patches only.

    Args:
        seen: share of the patches that the encoder sees; the strategy's mask must leave that many.
    """

    def __init__(self, *args: Any, seen: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen = seen

    def masked_loss(
        self, patch_mask: PatchMask, inputs: Tensor, data_samples: list, **kwargs: Any
    ) -> tuple[dict[str, Tensor], list[tuple]]:
        mask = patch_mask.mask
        batch, length = mask.shape
        num_seen = round(length * self.seen)
        if num_seen > patch_mask.num_visible:
            raise ValueError(
                f"expected a mask that leaves at least {num_seen} of {length} patches to be seen, "
                f"got {patch_mask.num_visible}; lower mask_ratio or seen"
            )
        # The predicted come last.
        order = (torch.rand(batch, length, device=mask.device) + mask).argsort(1)
        seen, predicted = order[:, :num_seen], patch_mask.ids_mask

        def keep_seen(x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
            return take(x, seen), mask, patch_mask.ids_restore

        self.backbone.random_masking = keep_seen  # on this instance, for this call
        try:
            latent = self.backbone(inputs)[0]
        finally:
            del self.backbone.random_masking
        target = self.head.construct_target(inputs)
        pred = self.decode(latent, seen, predicted).float()
        # Elsewhere the target itself: an error of 0, which no term of the loss counts.
        places = predicted[:, :, None].expand(-1, -1, pred.shape[2])
        pred = target.float().scatter(1, places, pred)
        return {"loss": self.loss_module(pred, target, mask)}, [(pred, target, mask)]

    def decode(self, latent: Tensor, seen: Tensor, predicted: Tensor) -> Tensor:
        """``(B, K, D)`` predictions of the predicted patches, by the neck's own layers."""
        neck = self.neck
        tokens = neck.decoder_embed(latent)
        positions = neck.decoder_pos_embed.expand(len(tokens), -1, -1)
        first, places = positions[:, :1], positions[:, 1:]
        hidden = neck.mask_token.to(tokens.dtype) + take(places, predicted)
        tokens = torch.cat(
            [tokens[:, :1] + first, tokens[:, 1:] + take(places, seen), hidden], dim=1
        )
        for block in neck.decoder_blocks:
            tokens = block(tokens)
        return neck.decoder_pred(neck.decoder_norm(tokens))[:, -predicted.shape[1] :]

"""A small masked autoencoder of sound and pictures with the interface of CAV-MAE, written for our
tests: each modality is masked by noise of its own, and both errors are in one loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amn_masking.patches import patchify

P = 16


class CAVMAE(nn.Module):
    """Encodes what is visible of both together and decodes each.

    Args:
        audio_length: frames of a spectrogram, which has 32 bins.
        img_size: side of the pictures.
        embed_dim: width.
        norm_pix_loss: whether each target patch is normalised by its own mean and deviation.
    """

    def __init__(
        self,
        audio_length: int = 64,
        img_size: int = 48,
        embed_dim: int = 16,
        norm_pix_loss: bool = False,
    ) -> None:
        super().__init__()
        self.norm_pix_loss = norm_pix_loss
        lengths = dict(a=audio_length // P * 2, v=(img_size // P) ** 2)
        values = dict(a=P * P, v=3 * P * P)
        self.embed = nn.ModuleDict({k: nn.Linear(n, embed_dim) for k, n in values.items()})
        self.predict = nn.ModuleDict({k: nn.Linear(embed_dim, n) for k, n in values.items()})
        self.position = nn.ParameterDict(
            {k: nn.Parameter(0.1 * torch.randn(n, embed_dim)) for k, n in lengths.items()}
        )
        self.mask_token = nn.Parameter(0.02 * torch.randn(embed_dim))
        self.encoder, self.decoder = (
            nn.TransformerEncoderLayer(embed_dim, 2, embed_dim, 0.0, batch_first=True)
            for _ in range(2)
        )

    def pictures(self, input: Tensor, modality: str) -> Tensor:
        """Spectrograms (B, frames, bins) as (B, 1, bins, frames); frames of a film as they are."""
        return input.unsqueeze(1).transpose(2, 3) if modality == "a" else input

    def random_masking_unstructured(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, ...]:
        order = torch.rand(x.shape[0], x.shape[1], device=x.device).argsort(1)
        rank = order.argsort(1)
        kept = int(x.shape[1] * (1 - mask_ratio))
        return x.take_along_dim(order[:, :kept, None], 1), (rank >= kept).float(), rank

    def forward_mae_loss(self, input: Tensor, pred: Tensor, mask: Tensor, modality: str) -> Tensor:
        target = patchify(self.pictures(input, modality), (P, P))
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, -1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return ((pred - target).square().mean(-1) * mask).sum() / mask.sum()

    def forward(
        self, audio: Tensor, imgs: Tensor, mask_ratio_a: float = 0.75, mask_ratio_v: float = 0.75
    ) -> tuple[Tensor, ...]:
        given, ratios = dict(a=audio, v=imgs), dict(a=mask_ratio_a, v=mask_ratio_v)
        seen, masks, restore = {}, {}, {}
        for key, input in given.items():
            tokens = self.embed[key](patchify(self.pictures(input, key), (P, P)))
            tokens = tokens + self.position[key]
            found = self.random_masking_unstructured(tokens, ratios[key])
            seen[key], masks[key], restore[key] = found
        counts = [tokens.shape[1] for tokens in seen.values()]
        encoded = self.encoder(torch.cat(list(seen.values()), 1)).split(counts, 1)
        losses = {}
        for key, tokens in zip(given, encoded, strict=True):
            length = restore[key].shape[1]
            hidden = self.mask_token.expand(len(tokens), length - tokens.shape[1], -1)
            whole = torch.cat([tokens, hidden], 1).take_along_dim(restore[key][:, :, None], 1)
            pred = self.predict[key](self.decoder(whole + self.position[key]))
            losses[key] = self.forward_mae_loss(given[key], pred, masks[key], key)
        return losses["a"] + losses["v"], losses["a"], losses["v"], masks["a"], masks["v"]

"""A small masked autoencoder with the interface of stable-pretraining's ``MAE``, written for our
tests: the encoder hands its tokens to a masking module, in training only.
"""

from __future__ import annotations

from types import SimpleNamespace

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_masking.patches import patchify


class PatchMasking(nn.Module):
    """Keeps the tokens of least noise."""

    def __init__(self, mask_ratio: float = 0.75) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio

    def forward(self, x: Tensor, grid_h: int, grid_w: int) -> SimpleNamespace:
        order = torch.rand(x.shape[:2], device=x.device).argsort(1)
        kept = x.shape[1] - int(x.shape[1] * self.mask_ratio)
        mask = (order.argsort(1) >= kept).float()
        visible = x.take_along_dim(order[:, :kept, None], 1)
        return SimpleNamespace(visible=visible, mask=mask, ids_keep=order[:, :kept])


class MaskedEncoder(nn.Module):
    """A ViT of timm on the tokens that its masking module keeps; in eval on all."""

    def __init__(self, vit: nn.Module, masking: nn.Module) -> None:
        super().__init__()
        self.vit, self.masking = vit, masking
        self.patch_size_h, self.patch_size_w = vit.patch_embed.patch_size

    def all_tokens(self, images: Tensor) -> Tensor:
        return self.vit.patch_embed(images) + self.vit.pos_embed[:, 1:]

    def forward(self, images: Tensor) -> SimpleNamespace:
        tokens = self.all_tokens(images)
        everything = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        mask, kept = torch.zeros(tokens.shape[:2]), everything
        if self.training and self.masking is not None:
            rows, columns = (side // self.patch_size_h for side in images.shape[-2:])
            out = self.masking(tokens, rows, columns)
            tokens, mask, kept = out.visible, out.mask, out.ids_keep
        first = (self.vit.cls_token + self.vit.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        for block in self.vit.blocks:
            first, tokens = block(torch.cat([first, tokens], 1)).split([1, tokens.shape[1]], 1)
        return SimpleNamespace(encoded=self.vit.norm(tokens), mask=mask, ids_keep=kept)


class Loss(nn.Module):
    """Mean error of the masked patches."""

    def __init__(self, patch_size: int, loss_type: str, patch_normalize: bool) -> None:
        super().__init__()
        self.patch_size, self.loss_type = patch_size, loss_type
        self.patch_normalize = patch_normalize
        self.reduction, self.mask_only = "mean", True

    def _compute_loss(self, pred: Tensor, target: Tensor) -> Tensor:
        if self.loss_type == "cosine":
            return 1 - F.cosine_similarity(pred, target, dim=-1)
        error = F.smooth_l1_loss if self.loss_type == "smooth_l1" else F.mse_loss
        return error(pred, target, reduction="none").mean(-1)

    def forward(self, pred: Tensor, imgs: Tensor, mask: Tensor) -> Tensor:
        target = patchify(imgs, (self.patch_size, self.patch_size))
        if self.patch_normalize:
            variance, mean = torch.var_mean(target, -1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return (self._compute_loss(pred, target) * mask).sum() / mask.sum()


class MAE(nn.Module):
    """In training the loss of the masked patches, in eval 0."""

    def __init__(
        self,
        model_or_model_name: str | nn.Module = "vit_base_patch16_224",
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        loss_type: str = "mse",
        masking: nn.Module | None = None,
    ) -> None:
        super().__init__()
        vit = model_or_model_name
        if isinstance(vit, str):
            vit = timm.create_model(vit, num_classes=0)
        self.masking = PatchMasking(mask_ratio) if masking is None else masking
        self.encoder = MaskedEncoder(vit, self.masking)
        size, length, width = vit.patch_embed.patch_size[0], vit.patch_embed.num_patches, 8
        self.embed = nn.Linear(vit.embed_dim, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.decoder = nn.TransformerEncoderLayer(width, 2, width, 0.0, batch_first=True)
        self.predict = nn.Linear(width, 3 * size**2)
        self.loss_fn = Loss(size, loss_type, norm_pix_loss)

    def forward(self, images: Tensor) -> SimpleNamespace:
        out = self.encoder(images)
        tokens = self.embed(out.encoded)
        place = out.ids_keep[:, :, None].expand_as(tokens)
        whole = self.mask_token.to(tokens).expand(*out.mask.shape, -1).scatter(1, place, tokens)
        predictions = self.predict(self.decoder(whole + self.position))
        loss = torch.tensor(0.0)
        if self.training:
            loss = self.loss_fn(predictions, images.to(predictions.dtype), out.mask)
        return SimpleNamespace(loss=loss, predictions=predictions, mask=out.mask)

"""Models that take ``bool_masked_pos`` and give back pixels: ``...ForMaskedImageModeling``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from amn_masking.adapters.huggingface.interface import Interface
from amn_masking.adapters.own_loss import check_followed
from amn_masking.mask import PatchMask
from amn_masking.patches import pool_to_patches, spread_to_pixels
from amn_masking.strategies import MaskingStrategy

NO_GATE = "takes its mask as bool, through which no gradient flows"


class BoolMaskIn(Interface):
    """Masked patches are replaced by a mask token, and the pixels' L1 error is minimised there.

    ViT, DeiT, Swin, Swinv2 and FocalNet. A patch of the mask may be several of the model's, as the
    32 x 32 pixels are that SimMIM masks of a Swin with patches of 4.
    """

    argument = "bool_masked_pos"

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        # VideoMAE, too, takes bool_masked_pos, but it drops what is masked and gives back patches.
        stride = getattr(getattr(module, "config", None), "encoder_stride", None)
        return super().serves(module) and stride is not None

    def check(self, strategy: MaskingStrategy | None) -> None:
        own = self.own_patch
        embedding = self.model.base_model.embeddings.patch_embeddings.projection
        if embedding.kernel_size != embedding.stride:
            raise ValueError(
                f"{self.name} embeds patches of {embedding.kernel_size} pixels at every "
                f"{embedding.stride} before it masks them, so that visible ones hold pixels of "
                "their masked neighbours; build it with use_conv_embed=False"
            )
        if strategy is None:
            return
        strategy.require(self.name, no_gate=NO_GATE)
        if any(side % own for side in strategy.patch_size):
            raise ValueError(
                f"masking has patch_size={strategy.patch_size}, but {self.name} masks patches of "
                f"{own} x {own} pixels; give the strategy that patch_size, or a multiple of it"
            )
        check_followed(strategy.loss, self.name, criterion="L1")

    def check_mask(
        self,
        patch_mask: PatchMask,
        images: Tensor,
        strategy: MaskingStrategy | None,
        any_size: bool,
    ) -> None:
        side, own = self.side, self.own_patch
        # The model's loss spreads the mask over images of its own size, whatever the positions.
        size: tuple[int, ...] = (own, own)
        if strategy is not None:
            size = strategy.patch_size
        elif len(patch_mask.grid) == 2 and all(side // own % n == 0 for n in patch_mask.grid):
            size = tuple(side // n for n in patch_mask.grid)
        patch_mask.check_grid(images, size, self.name, (side // size[0], side // size[1]))

    def hand_in(self, patch_mask: PatchMask, images: Tensor) -> Tensor:
        return self.spread(patch_mask.predicted, patch_mask)  # the patches that the loss counts

    @contextmanager
    def inside(self, patch_mask: Callable[[], PatchMask]) -> Iterator[None]:
        def hide_all(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            mask = patch_mask()
            if mask.num_left_out == 0:
                return None
            return args, {**kwargs, self.argument: self.spread(mask.mask, mask)}

        def check_size(module: nn.Module, args: tuple, output: Tensor) -> None:
            rows, got = args[0].shape[-1], output.shape[-1]
            if got != self.side:
                raise ValueError(
                    f"{self.name} expected to reconstruct images of {self.side} x {self.side} "
                    f"pixels, got {got} x {got} from {rows} x {rows} tokens and encoder_stride="
                    f"{self.model.config.encoder_stride}; build it with "
                    f"encoder_stride={self.side // rows}"
                )

        with (
            self.model.base_model.register_forward_pre_hook(hide_all, with_kwargs=True),
            self.model.decoder.register_forward_hook(check_size),
        ):
            yield

    def error(self, outputs: Any, images: Tensor, patch_mask: PatchMask) -> Tensor:
        return pool_to_patches((outputs.reconstruction - images).abs(), patch_mask.grid)

    def spread(self, values: Tensor, patch_mask: PatchMask) -> Tensor:
        """``(B, L)`` of the mask's patches to ``(B, L')`` bool of the model's."""
        rows = self.side // self.own_patch
        return spread_to_pixels(values.bool(), patch_mask.grid, rows, rows).flatten(1)

    @property
    def own_patch(self) -> int:
        """Side in pixels of the model's patches."""
        return self.of_square("patch_size")

    @property
    def side(self) -> int:
        """Side in pixels of the model's images."""
        return self.of_square("image_size")

    def of_square(self, name: str) -> int:
        """A size of the model's config; its loss knows squares only.

        Raises:
            ValueError: it is no number.
        """
        size = getattr(self.model.config, name)
        if not isinstance(size, int):
            raise ValueError(
                f"{self.name} expected an integer {name} in its config, because its own loss knows "
                f"squares only, got {size!r}; build it with a number"
            )
        return size

"""Relative rewards are refused where each target patch is normalised: one law for every host."""

from __future__ import annotations

import pytest
import torch

from amn_masking import AdversarialMasking

REFUSED = pytest.raises(ValueError, match=r"norm_pix.*use reward='error'")
IMAGES = torch.randn(4, 3, 32, 32)


def masking():
    return AdversarialMasking(0.5, 8, reward="variance_normalised", network=dict(channels=2))


def reference(normalised):
    from amn_masking.adapters.reference_mae import MaskedAutoencoderMixin
    from tests.helpers.reference_model import SmallMaskedAutoencoder

    class Learned(MaskedAutoencoderMixin, SmallMaskedAutoencoder):
        pass

    model = Learned(norm_pix_loss=normalised)
    model.masking = masking()
    return model(IMAGES)[0]


def timm(normalised):
    from amn_masking.adapters.timm import MaskedAutoencoder
    from tests.helpers.timm_models import TOKENS

    decoder = dict(decoder_dim=16, decoder_depth=1, decoder_heads=2)
    model = MaskedAutoencoder(TOKENS["vit"][0](), masking(), norm_pix=normalised, **decoder)
    return model(IMAGES)[0]


def huggingface(normalised):
    from amn_masking.adapters.huggingface import masked_forward
    from tests.helpers.small_vit_mae import build

    model = build(norm_pix_loss=normalised)
    return masked_forward(model, IMAGES, masking()).outputs.loss


def mmpretrain(normalised):
    from tests.helpers.small_mae import build, config

    head = config()["head"] | dict(norm_pix=normalised)
    settings = dict(
        type="AdversarialMasking", reward="variance_normalised", network=dict(channels=2)
    )
    return build(masking=settings, head=head).loss(IMAGES, [])["loss"]


@pytest.mark.parametrize("adapter", [reference, timm, huggingface, mmpretrain])
def test_normalised_targets_and_a_reward_relative_to_the_variance_exclude_each_other(adapter):
    adapter(False)
    with REFUSED:
        adapter(True)

"""What a host does not follow of a strategy's loss is refused, by every host."""

from __future__ import annotations

import pytest
import torch

from amn_masking import AdversarialMasking, CombinedAdversarialLoss
from amn_masking.adapters.own_loss import check_followed
from amn_masking.strategies import ShuffledMasking

FOLLOWED = dict(lambda_adv=0.3, score_weighted=False)
REFUSED = [dict(criterion="L1"), dict(reconstruct="all"), dict(channel=3)]


def strategy(**loss):
    return AdversarialMasking(0.5, 8, loss=FOLLOWED | loss)


def huggingface(masking):
    pytest.importorskip("transformers", reason="needs the extra 'huggingface'")
    from amn_masking.adapters.huggingface import masked_forward
    from tests.helpers.small_vit_mae import build, pictures

    return masked_forward(build(), pictures(), masking).outputs.loss


def reference(masking):
    pytest.importorskip("timm", reason="the small reference model is built of timm's blocks")
    from amn_masking.adapters.reference_mae import MaskedAutoencoderMixin
    from tests.helpers.reference_model import SmallMaskedAutoencoder

    class Learned(MaskedAutoencoderMixin, SmallMaskedAutoencoder): ...

    model = Learned()
    model.masking = masking
    return model(torch.randn(2, 3, 32, 32))[0]


def timm(masking):
    pytest.importorskip("timm", reason="needs the extra 'timm'")
    from amn_masking.adapters.timm import MaskedAutoencoder
    from tests.helpers.timm_models import small

    encoder, images = small("vit")
    return MaskedAutoencoder(encoder, masking, decoder_dim=16, decoder_depth=1, decoder_heads=2)(
        images
    ).loss


def mmpretrain(masking):
    pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")
    from tests.helpers import small_mae

    return small_mae.step(small_mae.build(masking=masking))[0]["loss"]


HOSTS = {f.__name__: f for f in (huggingface, reference, timm, mmpretrain)}
# What of criterion, reconstruct and channel these follow.
FOLLOWING = {"timm": ("criterion", "reconstruct"), "mmpretrain": ("criterion",)}


@pytest.mark.parametrize("loss", REFUSED, ids=lambda loss: next(iter(loss)))
@pytest.mark.parametrize("wrap", [lambda masking: masking, ShuffledMasking], ids=["", "wrapped"])
@pytest.mark.parametrize("host", HOSTS)
def test_each_part_of_the_loss_is_followed_or_refused(host, wrap, loss):
    def result(**changes):
        torch.manual_seed(0)
        masking = wrap(strategy(**changes))
        torch.manual_seed(1)
        return HOSTS[host](masking)

    ((name, value),) = loss.items()
    if name in FOLLOWING.get(host, ()):
        assert not torch.equal(result(**loss), result())
        return
    assert torch.isfinite(result())
    with pytest.raises(ValueError, match=f"the strategy's loss says {name}={value!r}, but .*leave"):
        result(**loss)


def test_a_head_that_predicts_no_pixels_has_no_criterion(photos):
    pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")
    from tests.methods.matrix import LEARNED, build

    for label in ("EVA", "BEiT v1", "MaskFeat"):
        masking = dict(LEARNED, loss=dict(criterion="L1"))
        if label == "MaskFeat":  # its histograms are compared by L2 or L1
            build(label, photos, masking=masking)
            continue
        with pytest.raises(ValueError, match="says criterion='L1', but the head's C"):
            build(label, photos, masking=masking)


def test_an_error_of_one_s_own_has_its_own_criterion():
    pytest.importorskip("timm", reason="the small reference model is built of timm's blocks")
    from amn_masking.adapters.reference_mae import MaskedAutoencoderMixin
    from tests.helpers.reference_model import SmallMaskedAutoencoder

    class Learned(MaskedAutoencoderMixin, SmallMaskedAutoencoder):
        def patch_error(self, imgs, pred):
            return (self.patchify(imgs) - pred).abs().mean(-1)

    model = Learned()
    model.masking = strategy(criterion="L1")
    assert torch.isfinite(model(torch.randn(2, 3, 32, 32))[0])


def test_nothing_is_refused_where_nothing_is_learned():
    check_followed(None, "a host", "L2")
    check_followed(CombinedAdversarialLoss("L1"), "a host", None)


def test_all_that_is_not_followed_is_named():
    loss = CombinedAdversarialLoss("L1", reconstruct="all", channel=3)
    with pytest.raises(
        ValueError, match=r"criterion='L1', reconstruct='all', channel=3, but a host.*; do that"
    ):
        check_followed(loss, "a host", "L2", instead="do that")


def test_a_criterion_that_was_changed_is_refused_and_the_default_is_not():
    loss = CombinedAdversarialLoss()
    check_followed(loss, "a host", "L1")
    loss.criterion = "L1"
    with pytest.raises(ValueError, match="criterion='L1', but a host"):
        check_followed(loss, "a host", "L2")

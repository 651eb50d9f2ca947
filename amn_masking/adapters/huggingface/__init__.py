"""transformers: masked-image models with any masking strategy, under Trainer or in any loop.

    model.masking = AdversarialMasking(patch_size=16)

    class MaskedTrainer(MaskedTrainerMixin, Trainer): ...

The mask goes in by the model's own argument: ``noise``, as of ``ViTMAEForPreTraining`` and
``HieraForPreTraining``, or ``bool_masked_pos``, as of ``SwinForMaskedImageModeling`` and
``VideoMAEForPreTraining``, whose images are clips.
"""

from __future__ import annotations

from amn_masking.adapters.huggingface.forward import MaskedPass, masked_forward
from amn_masking.adapters.huggingface.noise_in import patch_error
from amn_masking.adapters.huggingface.trainer import MaskedTrainerMixin, names_as_saved

__all__ = ["MaskedPass", "MaskedTrainerMixin", "masked_forward", "names_as_saved", "patch_error"]

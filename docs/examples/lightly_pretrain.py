"""Pre-train an MAE of lightly with learned masks: lightly_pretrain.py [FOLDER of train/*/*]."""

import sys

import pytorch_lightning as pl
import torch
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.models.utils import get_at_index, patchify, set_at_index
from timm.models.vision_transformer import VisionTransformer
from torchvision import datasets, transforms

from amn_masking import AdversarialMasking, meters, patches
from amn_masking.adapters.lightly import patch_error, token_mask


class MAE(pl.LightningModule):
    def __init__(self):
        super().__init__()
        small = dict(embed_dim=64, depth=2, num_heads=2)
        self.backbone = MaskedVisionTransformerTIMM(VisionTransformer(64, 8, **small))
        self.decoder = MaskedVisionTransformerDecoderTIMM(num_patches=64, **small)
        self.predict = torch.nn.Linear(64, 8 * 8 * 3)
        self.masking = AdversarialMasking(0.25, 8, network=dict(downsample=4), random_share=0.5)

    def forward(self, images, patch_mask):
        keep, hide = token_mask(patch_mask, self.backbone, images)  # was random_token_mask
        tokens = self.decoder.mask_token.repeat(len(images), self.decoder.sequence_length, 1)
        tokens = set_at_index(tokens, keep, self.backbone.encode(images, idx_keep=keep))
        pred = self.predict(get_at_index(self.decoder(tokens), hide))
        target = get_at_index(patchify(images, 8), hide - 1)
        return patch_error(pred, target, hide, patch_mask, self.backbone)

    def training_step(self, batch, _):
        error = self(batch[0], patch_mask := self.masking(batch[0]))
        self.log("loss", loss := patches.masked_mean(error, patch_mask.predicted), prog_bar=True)
        return self.masking.total_loss(loss, error, patch_mask)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


pl.seed_everything(0)
steps = [transforms.RandomResizedCrop(64), transforms.ToTensor(), transforms.Normalize(0.5, 0.25)]
folder = [*sys.argv, "data/photos"][1] + "/train"
photos = datasets.ImageFolder(folder, transforms.Compose(steps))
loader = torch.utils.data.DataLoader(photos, 32, shuffle=True)
pl.Trainer(max_steps=100, default_root_dir="work_dirs").fit(model := MAE(), loader)
images = torch.stack([image for image, _ in photos])
gain = meters.adversarial_gain(lambda mask: model(images, mask), model.eval().masking(images))
print(f"loss {model.trainer.callback_metrics['loss']:.3f}, adversarial gain {gain:.3f}")

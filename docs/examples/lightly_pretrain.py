"""Pre-train an MAE of lightly with learned masks: lightly_pretrain.py [FOLDER of train/*/*]."""

import sys

import pytorch_lightning as pl
import torch
from lightly.models import modules, utils
from timm.models.vision_transformer import VisionTransformer
from torchvision import datasets, transforms

from amn_masking import AdversarialMasking, meters
from amn_masking.adapters.lightly import patch_error, token_mask


class MAE(pl.LightningModule):
    def __init__(self):
        super().__init__()
        small = dict(embed_dim=64, depth=2, num_heads=2)
        self.backbone = modules.MaskedVisionTransformerTIMM(VisionTransformer(64, 8, **small))
        self.decoder = modules.MaskedVisionTransformerDecoderTIMM(num_patches=64, **small)
        self.predict = torch.nn.Linear(64, 8 * 8 * 3)
        self.masking = AdversarialMasking(0.25, 8, network=dict(downsample=4), random_share=0.5)

    def forward(self, images, patch_mask):
        idx_keep, idx_mask = token_mask(patch_mask, self.backbone)  # was random_token_mask
        encoded = self.backbone.encode(images, idx_keep=idx_keep)
        tokens = self.decoder.mask_token.repeat(len(images), self.decoder.sequence_length, 1)
        tokens = utils.set_at_index(tokens, idx_keep, encoded.type_as(tokens))
        pred = self.predict(utils.get_at_index(self.decoder(tokens), idx_mask))
        target = utils.get_at_index(utils.patchify(images, 8), idx_mask - 1)
        return patch_error(pred, target, idx_mask, self.backbone)

    def training_step(self, batch, _):
        patch_mask = self.masking(batch[0])
        error = self(batch[0], patch_mask)
        loss = meters.masked_mean(error, patch_mask.mask)
        self.log_dict({"loss": loss, **meters.mask_statistics(patch_mask)}, prog_bar=True)
        return self.masking.total_loss(loss, error, patch_mask)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


pl.seed_everything(0)
to_tensor = [
    transforms.RandomResizedCrop(64),
    transforms.ToTensor(),
    transforms.Normalize(0.5, 0.25),
]
folder = [*sys.argv, "data/photos"][1] + "/train"
photos = datasets.ImageFolder(folder, transforms.Compose(to_tensor))
model, loader = MAE(), torch.utils.data.DataLoader(photos, 32, shuffle=True)
pl.Trainer(max_steps=100, log_every_n_steps=1).fit(model, loader)
images = torch.stack([image for image, _ in photos])
patch_mask = model.eval().masking(images)
gain = meters.adversarial_gain(lambda mask: model(images, mask), patch_mask)
print(f"loss {model.trainer.callback_metrics['loss']:.3f}, adversarial gain {gain:.3f}")

# The photos config on two processes of one machine without GPUs, half the batch in each.
#
#     python demo/photos.py data/photos
#     mim train mmpretrain configs/mmpretrain/mae_amn_vit-tiny_photos_2xcpu.py \
#         --launcher pytorch --gpus 2
#
# A rehearsal of distributed training: same launcher, same wrapper, gloo in place of NCCL.
_base_ = "./mae_amn_vit-tiny_photos.py"

custom_imports = dict(imports=["amn_masking.adapters.mmpretrain.runner.gloo"])
model_wrapper_cfg = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
train_dataloader = dict(batch_size=16)

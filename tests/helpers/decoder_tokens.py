"""A hook that counts what the decoder of a run gets; a config names it by its path."""

from __future__ import annotations

from mmengine.hooks import Hook


class DecoderTokensHook(Hook):
    """Logs how many tokens the decoder got in each step, the class token included."""

    def __init__(self, interval: int | None = None) -> None:  # of the hook in whose place it stands
        self.tokens: list[int] = []

    def before_train(self, runner):
        runner.model.neck.decoder_norm.register_forward_hook(self.count)

    def count(self, module, args, out):
        if module.training:  # the steps, and not the pictures
            self.tokens.append(out.shape[1])

    def after_train(self, runner):
        runner.logger.info(f"decoder tokens: {self.tokens}")

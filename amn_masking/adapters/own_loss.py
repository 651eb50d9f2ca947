"""One refusal for every host with a loss of its own: what it would not follow of a strategy's."""

from __future__ import annotations

from typing import Literal

from amn_masking.losses import CombinedAdversarialLoss


def check_followed(
    loss: CombinedAdversarialLoss | None,
    host: str,
    criterion: Literal["L1", "L2"] | None,
    reconstruct: bool = False,
    instead: str = "leave it out",
) -> None:
    """Refuse a strategy's loss that says more than the host follows.

    Every host follows ``lambda_adv`` and ``score_weighted``; ``channel`` divides a reconstruction
    term that is the host's own.

    Args:
        loss: the strategy's; None from one that learns nothing.
        host: whose loss it joins, for the message.
        criterion: the host's own, or the default where it is neither of the two; None where the
            strategy's is followed. One that the user did not say contradicts none.
        reconstruct: whether the strategy's ``reconstruct`` is followed.
        instead: what to do, for the message.

    Raises:
        ValueError: with the way out.
    """
    if loss is None:
        return
    said: dict[str, object] = {}
    by_user = loss.criterion_said or loss.criterion != "L2"  # which it is until someone changes it
    if criterion is not None and by_user and loss.criterion != criterion:
        said["criterion"] = loss.criterion
    if not reconstruct and loss.reconstruct != "masked":
        said["reconstruct"] = loss.reconstruct
    if loss.channel != 1:
        said["channel"] = loss.channel
    if said:
        raise ValueError(
            f"the strategy's loss says {', '.join(f'{k}={v!r}' for k, v in said.items())}, but "
            f"{host} has its own errors and reconstruction term and would not follow; {instead}"
        )

"""Reading a checkpoint: nothing of it is run, and what is no checkpoint is refused."""

from __future__ import annotations

import subprocess

import pytest
import torch

from amn_masking.tools.checkpoints import backbone_weights, read_checkpoint

READS = hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")
reads = pytest.mark.skipif(not READS, reason="torch before 2.6 cannot read a checkpoint safely")


class Evil:
    def __init__(self, function, argument):
        self.reduced = function, (argument,)

    def __reduce__(self):
        return self.reduced


@reads
@pytest.mark.parametrize("function", [eval, subprocess.check_output], ids=["eval", "subprocess"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, function):
    marker = tmp_path / "marker"
    argument = f"open({str(marker)!r}, 'w')" if function is eval else ["touch", str(marker)]
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"backbone.w": torch.ones(2)}, "hub": Evil(function, argument)}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()  # The file is as evil as it is meant to be.
    marker.unlink()
    assert torch.equal(backbone_weights(read_checkpoint(path))["w"], torch.ones(2))
    assert not marker.exists()


@reads
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("length", [2000, 200000])
def test_a_truncated_checkpoint_is_refused(tmp_path, share, length):
    checkpoint = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": {"backbone.w": torch.ones(length)}}, checkpoint)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"epoch_1.pth \(\d+ bytes\) cannot be read"):
        read_checkpoint(checkpoint)


@reads
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(1), "expected a dict in .*foreign.pth, got a Tensor"),
        ({"model": {}}, "expected a checkpoint of mmengine's Runner.*got the keys model"),
        ({"state_dict": {"encoder.w": torch.ones(1)}}, r"named backbone\.\*.*got encoder\.w"),
        ({"state_dict": {}}, r"named backbone\.\*.*got none"),
    ],
)
def test_a_foreign_checkpoint_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=message):
        backbone_weights(read_checkpoint(tmp_path / "foreign.pth"))


def test_only_the_encoder_s_weights_are_taken(tmp_path):
    state = {"backbone.a.b": torch.ones(2), "neck.backbone.c": torch.ones(1), "backbone.n": 3}
    assert backbone_weights({"state_dict": state}).keys() == {"a.b"}


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"epoch_9\.pth does not exist"):
        read_checkpoint(tmp_path / "epoch_9.pth")


@pytest.mark.skipif(READS, reason="torch 2.6 reads checkpoints safely")
def test_an_older_torch_is_refused_before_anything_is_read(tmp_path):
    marker = tmp_path / "marker"
    torch.save(Evil(eval, f"open({str(marker)!r}, 'w')"), tmp_path / "epoch_1.pth")
    with pytest.raises(RuntimeError, match=r"needs torch 2\.6 or newer, got 2\..*a newer torch"):
        read_checkpoint(tmp_path / "epoch_1.pth")
    assert not marker.exists()

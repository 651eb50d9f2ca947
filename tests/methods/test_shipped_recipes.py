"""The table of mmpretrain's own configs, which make recipes fills."""

from __future__ import annotations

import csv

import pytest

from tests.helpers.tables import narrow

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from tests.methods.matrix import RESULTS, stack
from tests.methods.shipped_recipes import recipes, save, table, without_downloads


def row(stack: str, config: str, masked: str = "yes", stock: str = "", seconds: str = "3") -> dict:
    return dict(stack=stack, config=config, masked=masked, stock=stock, seconds=seconds)


def test_rows_replace_those_of_their_stack_and_config_only(tmp_path):
    tmp_path /= "new"
    save([row("upstream 1", "mae"), row("upstream 1", "eva")], tmp_path)
    save([row("forks 2", "mae", "ValueError: a |\n b", "yes")], tmp_path)
    save([row("upstream 1", "eva", "TypeError: x", "TypeError: x", "9")], tmp_path)
    lines = narrow((tmp_path / "shipped.md").read_text()).splitlines()
    assert "| config | upstream 1 | forks 2 |" in lines
    assert "| mae | yes, 3 s | no: ValueError: a \\| b |" in lines
    assert "| eva | no: TypeError: x; fails in stock mmpretrain too | - |" in lines
    assert "- upstream 1: 1 of 2 configs train" in lines
    assert "- forks 2: 0 of 1 configs train" in lines
    assert {path.name for path in tmp_path.iterdir()} == {"shipped.csv", "shipped.md"}


def test_the_committed_table_is_of_every_config_that_mmpretrain_ships():
    with (RESULTS / "shipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (RESULTS / "shipped.md").read_text() == table(rows)
    kind = stack().split()[0]  # of whatever version: `make recipes` is part of a release, not of CI
    mine = {row["config"] for row in rows if row["stack"].split()[0] == kind}
    assert mine == set(recipes())
    assert len(mine) == 41
    assert all(row["masked"] == "yes" or row["stock"] not in ("", "yes") for row in rows)


def test_no_config_would_download(monkeypatch):
    for cfg in recipes().values():
        without_downloads(cfg)
        target = cfg.model.get("target_generator") or {}
        assert not target.get("init_cfg")

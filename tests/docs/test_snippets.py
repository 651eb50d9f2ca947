"""Every block of Python in README and docs is run as it stands on the page, in the page's order."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sybil import Example
from sybil.document import Document
from sybil.parsers.myst import CodeBlockParser

from tests.conftest import ROOT

PAGES = ["README.md", "configs/mmpretrain/README.md"]
PAGES += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "```python" in (ROOT / page).read_text()]
SLOW = {"README.md", "docs/tutorial.md"}  # these train
MOST = 20  # lines of a part of one's own


def build_method(model: dict) -> None:
    """A method of mmpretrain, or what a config changes of its MAE."""
    from mmpretrain.registry import MODELS

    from tests.helpers.small_mae import config

    if "backbone" not in model:
        model = config(type="amn_masking.MAE", **model)
        model["head"]["norm_pix"] = False  # one reward is for plain pixels
    MODELS.build(model)


def build_strategy(masking: dict) -> None:
    build_method(dict(masking=masking))


def build_hooks(hooks: list[dict]) -> None:
    from mmengine.registry import HOOKS

    import amn_masking.adapters.mmpretrain  # noqa: F401

    for hook in hooks:
        HOOKS.build(dict(hook))


def import_all(imports: dict) -> None:
    for name in imports["imports"]:
        importlib.import_module(name)


# What a name of mmengine's configs has to hold up to, beside being Python.
CHECKS: dict[str, Callable] = {
    "custom_hooks": build_hooks,
    "custom_imports": import_all,
    "masking": build_strategy,
    "model": build_method,
}


def run_config(code: str) -> None:
    """A config with a base: read by mmengine, its model built."""
    from mmengine.config import Config

    path = Path("config.py")
    path.write_text(code)
    config = Config.fromfile(path)
    assert config.model.masking
    build_method(config.model)


def run(example: Example) -> None:
    """A block, statement by statement; what a statement gives a name of a config is checked."""
    code = "\n" * (example.line + example.parsed.line_offset) + example.parsed
    tree = ast.parse(code, example.path)
    first = tree.body[0]
    if isinstance(first, ast.Assign) and ast.unparse(first.targets[0]) == "_base_":
        run_config(example.parsed)
        return
    for statement in tree.body:
        module = ast.Module([statement], [])
        exec(compile(module, example.path, "exec"), example.namespace)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call | ast.List):
            name = ast.unparse(statement.targets[0])
            value = example.namespace.get(name)
            if name in CHECKS and isinstance(value, dict | list):
                CHECKS[name](value)


def parse(page: str | Path) -> Document:
    return Document.parse(str(ROOT / page), CodeBlockParser("python", run))


@pytest.fixture(autouse=True)
def names_of_mmpretrain():
    """A page may give mmpretrain's own names to our methods: for that page alone."""
    try:
        from amn_masking.adapters.mmpretrain import METHODS
        from amn_masking.adapters.mmpretrain import MMPRETRAIN_MODELS as MODELS
    except ImportError:
        yield
        return
    before = {name: MODELS.get(name) for name in METHODS}
    sys.modules.pop("amn_masking.dropin", None)  # its import gives the names
    yield
    sys.modules.pop("amn_masking.dropin", None)
    for name, method in before.items():
        MODELS.register_module(name=name, module=method, force=True)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in PAGES]
)
def test_runs_as_pasted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in parse(page).examples():
        example.evaluate()


@pytest.mark.parametrize("turn", [1, 2])
def test_a_page_that_takes_mmpretrain_s_names_gives_them_back(turn):
    """The second turn finds what the first has left."""
    MODELS = pytest.importorskip("mmpretrain.registry").MODELS
    stock = MODELS.get("MAE")
    assert stock.__module__.startswith("mmpretrain.")
    import_all(dict(imports=["amn_masking.dropin"]))
    assert issubclass(MODELS.get("MAE"), stock)
    assert MODELS.get("MAE") is not stock


def test_a_block_that_fails_is_noticed(tmp_path):
    """The harness itself: wrong Python, a wrong strategy, a wrong config."""
    for code in ("1 / 0", 'masking = dict(type="NoSuch")', 'model = dict(masking=dict(type="No"))'):
        (tmp_path / "page.md").write_text(f"Text.\n\n```python\n{code}\n```\n")
        (example,) = parse(tmp_path / "page.md").examples()
        with pytest.raises((ZeroDivisionError, ValueError)):
            example.evaluate()


def test_a_part_of_one_s_own_takes_few_lines():
    for example in parse("docs/extending.md").examples():
        assert sum(bool(row.strip()) for row in example.parsed.splitlines()) < MOST, example.line


def test_the_script_of_readme_is_short():
    script, _ = parse("README.md").examples()
    assert 25 <= sum(bool(row.strip()) for row in script.parsed.splitlines()) <= 32

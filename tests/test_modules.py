"""What linters do not see in the modules of this repository."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOPS = ("payloops", "commands", "events", "projections", "http", "workflows_client", "benchmarks", "tests")
MODULES = sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py"))


def names_bound(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case _:
            return []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_constant_takes_the_place_of_another(module: Path) -> None:
    bound = Counter(
        name for statement in ast.parse(module.read_text()).body for name in names_bound(statement)
    )
    assert [name for name, times in bound.items() if times > 1] == []


def test_exceptions_are_named_after_what_is_wrong_by_one_rule() -> None:
    """`InvalidStatus`, `StoreUnavailable`: of one name with and without `Error`, nobody knows which is meant."""
    classes = (
        node
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [each.name for each in classes if each.bases and each.name.endswith(("Error", "Exception"))] == []

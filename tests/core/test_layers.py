"""Imports point one way. Walks every import of every module, those inside functions too."""

import ast
from pathlib import Path

LAYERS = [
    {"errors"},
    {"contracts", "config", "run_config", "jsonl", "serving", "templates", "durable"},
    {"onpolicy", "parsing", "transforms", "evaluators", "rows", "ledger", "prompts"},
    {"gym", "engines", "hookspecs"},
    {"gateway", "plugins", "builtins"},
    {"rollouts", "testing", "launch"},
    {"cli", "rlbridge_verl", "rlbridge_nemo_rl"},
]
# Inside these layers one neighbour builds on another; the order is part of the layout.
ALLOWED = {("run_config", "config"), ("gateway", "plugins"), ("engines", "gym")}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def _part(module: str) -> str | None:
    """The layer's member that a module belongs to; None for others' modules and our roots."""
    head, *rest = module.split(".")
    if head in ("rlbridge_verl", "rlbridge_nemo_rl"):
        return head
    return rest[0] if head == "rlbridge" and rest else None


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_point_up_the_layers_only() -> None:
    wrong = []
    for package in ("rlbridge", "rlbridge_verl", "rlbridge_nemo_rl"):
        for path in sorted(Path(package).rglob("*.py")):
            own = _part(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
            if own is None or own == "__main__":
                continue
            for module in _imports(path):
                other = _part(module)
                if other is None or other == own or other == "__version__":
                    continue
                assert other in RANK, f"{path} imports {module}: add {other!r} to LAYERS"
                if RANK[other] >= RANK[own] and (own, other) not in ALLOWED:
                    wrong.append(f"{path} imports {module}")
    assert not wrong, "\n".join(wrong)

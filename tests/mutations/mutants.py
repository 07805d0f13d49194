"""mutmut, made to change declared functions too: it passes over whatever has a decorator.

Usage: python tests/mutations/mutants.py run --max-children 2
"""

from __future__ import annotations

from typing import Any


def declaration(decorator: Any) -> bool:
    """``@declared(...)``, or a private name for one; caches and properties are none."""
    called = decorator.decorator
    name = getattr(getattr(called, "func", called), "value", "")
    return isinstance(name, str) and (name == "declared" or name.startswith("_"))


def changing_declared_functions() -> None:
    import libcst
    from mutmut.mutation.file_mutation import MutationVisitor

    passes_over = MutationVisitor._skip_node_and_children

    def without_declarations(self: MutationVisitor, node: libcst.CSTNode) -> bool:
        if isinstance(node, libcst.FunctionDef) and all(map(declaration, node.decorators)):
            node = node.with_changes(decorators=())
        return passes_over(self, node)

    MutationVisitor._skip_node_and_children = without_declarations


if __name__ == "__main__":
    from mutmut.__main__ import cli

    changing_declared_functions()
    cli()

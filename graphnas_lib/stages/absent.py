"""Notebooks over a road that is not whole: what stands on a missing stage reads "not run (why)", the rest is shown."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager

from graphnas_lib.plots import running_ipython
from graphnas_lib.store import MissingArtifactError


class Tolerant(ast.NodeTransformer):
    """Rewrites the cells of a running notebook: a statement that opens a missing stage says so and is left out.

    What it would have given a name is then without one, and so are the statements that ask for this name.
    """

    def __init__(self, names: dict):
        self.names, self.why, self.told = names, {}, set()
        names |= {"_guarded": self.guarded, "_shown": self.shown}

    def visit_Module(self, cell: ast.Module) -> ast.Module:  # noqa: N802 - ast's name
        """A cell of guarded statements; the value of its last expression is still shown."""
        self.told.clear()
        for place, statement in enumerate(cell.body):
            if isinstance(statement, ast.Expr):
                guarded = ast.parse("_shown(lambda: 0)").body[0]
                guarded.value.args[0].body = statement.value
            else:
                named = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
                given = [node.id for node in named if isinstance(node.ctx, ast.Store)]
                guarded = ast.parse(f"with _guarded({given}): 0").body[0]
                guarded.body = [statement]
            cell.body[place] = ast.fix_missing_locations(ast.copy_location(guarded, statement))
        return cell

    def shown(self, expression):
        """The value of an expression; None where it stands on what is missing."""
        with self.guarded([]):
            return expression()

    @contextmanager
    def guarded(self, given: list[str]) -> Iterator[None]:
        """Say once a cell why what is inside is left out, and take the names that it would give; else raise."""
        try:
            yield
        except (MissingArtifactError, NameError) as error:
            why = self.why.get(error.name) if isinstance(error, NameError) else str(error)
            if why is None:
                raise
            for name in given:
                self.why[name] = why
                self.names.pop(name, None)
            if why not in self.told:
                print(f"not run ({why})")
            self.told.add(why)


def tolerate() -> None:
    """From the next cell on, a running IPython leaves out what stands on missing stages; nothing where none runs."""
    shell = running_ipython()
    if shell and not any(isinstance(known, Tolerant) for known in shell.ast_transformers):
        shell.ast_transformers.append(Tolerant(shell.user_ns))

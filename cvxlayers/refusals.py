"""Why a problem cannot become a layer, in words that name the expression and say what to write instead.

Problems and expressions are read through their own methods only, so this file knows the modelling language but does not import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

QUADRATIC_SOLVERS = "CLARABEL, SCS, DAQP"


def refuse(problem: Any, objective_is_dpp: bool, *, gp: bool, quadratic: bool, quadratic_would_do: bool) -> None:
    """Raise ValueError if the problem is discrete, has no variables, or breaks the rules (DCP or DGP, then DPP).

    ``objective_is_dpp`` says whether the objective obeys the rules for parameters under the chosen treatment of quadratic terms,
    ``quadratic_would_do`` whether it would for a solver that takes quadratic objectives.
    """
    _refuse_discrete(problem)
    if not problem.variables():
        raise ValueError("the problem has no variables, so there is nothing to solve; got only constants and parameters")
    _refuse_attributes(problem)
    for constraint in problem.constraints:
        if hasattr(constraint, "alpha") and constraint.alpha.parameters():  # CVXPY would take its present value for good
            raise ValueError(f"the exponent of `{constraint}` is a parameter; the exponents of power cones must be constants")
    if not (problem.is_dgp() if gp else problem.is_dcp()):
        raise ValueError(_undisciplined(problem, gp))
    for part in ([] if objective_is_dpp else [problem.objective]) + [c for c in problem.constraints if not c.is_dpp(_context(gp))]:
        if part is problem.objective and not quadratic and quadratic_would_do:
            raise ValueError(
                f"the objective holds a quad_form whose matrix has parameters: {_quad_forms(part)[0]}. This needs a solver that takes "
                f"quadratic objectives; choose one of {QUADRATIC_SOLVERS}, or write sum_squares(F @ x) with a parameter F, P = F'F"
            )
        raise ValueError(_undisciplined_parameters(part, part is problem.objective, gp))
    for variable in problem.variables():
        if not variable.is_dpp(_context(gp)):
            raise ValueError(f"the bounds of variable '{variable.name()}' are not affine in the parameters (DPP); make them parameters")


def _context(gp: bool) -> str:
    return "dgp" if gp else "dcp"


def _refuse_discrete(problem: Any) -> None:
    for variable in problem.variables():
        for kind in ("boolean", "integer"):
            if len(getattr(variable, kind + "_idx")):
                raise ValueError(
                    f"variable '{variable.name()}' is {kind}: the solution of a mixed-integer problem has no useful derivative. "
                    "Relax it, for example Variable(bounds=[0, 1])"
                )
    for constraint in problem.constraints:
        if type(constraint).__name__ == "FiniteSet":
            raise ValueError(f"constraint {constraint} makes the problem mixed-integer; relax it to bounds")


def _refuse_attributes(problem: Any) -> None:
    """Attributes the modelling language accepts and then drops (for complex values) or cannot reduce (for stacks of matrices)."""
    dropped = {"variable": ("diag", "symmetric", "sparsity"), "parameter": ("symmetric",)}
    unstackable = {"variable": ("diag", "hermitian"), "parameter": ("diag", "hermitian", "symmetric", "PSD", "NSD")}
    for kind, leaves in (("variable", problem.variables()), ("parameter", problem.parameters())):
        for leaf in leaves:
            for name in dropped[kind] if leaf.is_complex() else ():
                if leaf.attributes[name]:
                    raise ValueError(
                        f"complex {kind} '{leaf.name()}' is declared {name}, which CVXPY does not keep for complex values; declare "
                        "hermitian=True, or build it from a vector: diag(z), or a constant matrix times z"
                    )
            for name in unstackable[kind] if leaf.ndim > 2 else ():
                if leaf.attributes[name]:
                    raise ValueError(f"{kind} '{leaf.name()}' of shape {leaf.shape} is declared {name}; declare one {kind} for each matrix")


def _children_first(node: Any) -> Iterator[Any]:
    for argument in node.args:
        yield from _children_first(argument)
    yield node


def _offender(part: Any, fits: Any) -> Any:
    """The smallest expression of an objective or constraint that breaks a rule all of whose arguments keep it; else the part itself."""
    return next((node for node in _children_first(part) if node is not part and not fits(node)), part)


def _quad_forms(part: Any) -> list[Any]:
    """Every quad_form inside that has parameters in its matrix."""
    return [node for node in _children_first(part) if type(node).__name__ == "QuadForm" and node.args[1].parameters()]


def _named(found: Any, part: Any) -> str:
    return f"`{part}`" if found is part else f"`{found}` in `{part}`"


def _undisciplined(problem: Any, gp: bool) -> str:
    rules, other = ("DGP", "DCP") if gp else ("DCP", "DGP")
    for part in [problem.objective, *problem.constraints]:
        if part.is_dgp() if gp else part.is_dcp():
            continue
        for form in [] if gp else _quad_forms(part):
            if not form.args[1].is_psd() and not form.args[1].is_nsd():
                return (
                    f"{form}: its matrix is not known to be semidefinite, so the problem is not {rules}. Declare the parameter with "
                    "PSD=True (or NSD=True); a merely symmetric one may be indefinite"
                )
        found = _offender(part, (lambda node: node.is_dgp()) if gp else (lambda node: node.is_dcp()))
        advice = "rewrite it with convex atoms, minimize convex and maximize concave expressions"
        if gp:
            advice = "write it with products, powers and sums of positive variables and parameters (pos=True)"
        if problem.is_dcp() if gp else problem.is_dgp():
            advice = f"the problem is {other}: pass gp={not gp}"
        return f"the problem is not {rules} because of {_named(found, part)}; {advice}"
    return f"the problem is not {rules}"


def _undisciplined_parameters(part: Any, objective: bool, gp: bool) -> str:
    forms = _quad_forms(part)
    if forms and not gp:
        return f"the problem is not DPP because of {_named(forms[0], part)}; {_quad_form_advice(forms[0], part, objective)}"
    found = _offender(part, lambda node: node.is_dgp(dpp=True) if gp else node.is_dcp(dpp=True))
    return f"the problem is not DPP because of {_named(found, part)}; {_parameter_advice(found, gp)}"


def _quad_form_advice(form: Any, part: Any, objective: bool) -> str:
    if not objective:
        return "a quad_form may have parameters in its matrix in the objective only: write sum_squares(F @ x), P = F'F, with a parameter F"
    if form.args[0].parameters():
        return "its vector may hold no parameters: introduce a variable y with the constraint y == (that vector) and write quad_form(y, P)"
    return (
        "a quad_form with a parameter as matrix may be scaled by constants only: declare gamma * P as one parameter with PSD=True and pass "
        "the product as its value"
    )


def _parameter_advice(found: Any, gp: bool) -> str:
    if gp:
        return "a power may hold parameters in its base or in its exponent, not in both; replace the expression by one new parameter"
    sides = [argument for argument in found.args if argument.parameters()]
    if len(sides) >= 2 and not found.variables():
        return "replace the product of parameters by one new parameter and pass the product as its value"
    if len(sides) >= 2:
        return "introduce a variable z with a constraint z == (one of the two factors), so that each product holds one parameter"
    return "parameters must enter affinely: replace the expression of parameters by one new parameter and pass its value"

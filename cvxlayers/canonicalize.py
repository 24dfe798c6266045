"""From a CVXPY problem to constant sparse maps: the only file of the library that imports cvxpy.

CVXPY reduces a problem by a chain of reductions (complex to real, log-log convex to convex, maximize to minimize, atoms to cones,
attributes to constraints, cones to cones) and then reads off the matrices. This file runs that chain once, without a value for any
parameter, for a made-up solver whose rows are laid out as `cvxlayers.program` says and which takes every bound and every cone as rows of A.

The maps into and out of the reduced problem are read off that chain by `cvxlayers.labels`.
"""

from __future__ import annotations

import copy
import functools
import operator
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy import settings as s
from cvxpy.atoms.affine.add_expr import AddExpression
from cvxpy.atoms.affine.unary_operators import NegExpression
from cvxpy.atoms.quad_form import QuadForm, SymbolicQuadForm
from cvxpy.constraints.exponential import ExpCone
from cvxpy.constraints.nonpos import NonNeg
from cvxpy.constraints.power import PowCone3D
from cvxpy.constraints.psd import SvecPSD
from cvxpy.constraints.second_order import SOC
from cvxpy.constraints.zero import Zero
from cvxpy.lin_ops.lin_op import CONSTANT_ID
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ConeMatrixStuffing, ParamConeProg
from cvxpy.reductions.dgp2dcp.dgp2dcp import Dgp2Dcp
from cvxpy.reductions.solvers.conic_solvers.conic_solver import ConicSolver
from cvxpy.utilities import scopes
from cvxpy.utilities.psd_utils import TriangleKind

from cvxlayers.canonical import Canonical, Matrix, ParameterSpec, Tensors, VariableSpec, assemble
from cvxlayers.cones import Cone, Exponential, NonNegative, Power, Product, SecondOrder, Semidefinite
from cvxlayers.cones import Zero as ZeroCone
from cvxlayers.labels import Reduced, parameter_map, variable_map
from cvxlayers.refusals import refuse

__all__ = ["Canonical", "ParameterSpec", "VariableSpec", "canonicalize"]

_KNOWN_DATA = {s.PARAM_PROB, ConicSolver.DIMS}
_KNOWN_FIELDS = {
    *("q", "x", "A", "P", "lower_bounds", "upper_bounds", "lb_tensor", "ub_tensor", "reduced_A", "reduced_P", "constraints", "constr_size"),
    *("constr_map", "cone_dims", "parameters", "param_id_to_col", "id_to_param", "param_id_to_size", "total_param_size", "variables"),
    *("var_id_to_col", "id_to_var", "formatted", "dir_cones", "problem"),
}
_OUTSIDE_ROWS = ("lower_bounds", "upper_bounds", "lb_tensor", "ub_tensor", "dir_cones")


def canonicalize(
    problem: cp.Problem, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable], *, gp: bool = False, quadratic: bool = True
) -> Canonical:
    """Turn a problem into constant sparse maps around a cone program: [p; 1] --M--> (P, q, A, b), [x; y] --R--> variables.

    ``parameters`` are all parameters of the problem, in the order in which their values will be given. ``variables`` are the outputs:
    variables of the problem and members of ``constraint.dual_variables``, whose sign is CVXPY's. ``gp`` reads the problem as log-log
    convex. ``quadratic=False`` is for solvers without quadratic objectives: P is empty. No parameter needs a value, and nothing of the
    problem is changed. Raises ValueError for lists that do not fit the problem and for problems that are not DPP, are mixed-integer, or
    hold something that no constant linear map describes; the message names the expression and what to write instead.

    >>> x, a = cp.Variable(2), cp.Parameter(2, name="a")
    >>> made = canonicalize(cp.Problem(cp.Minimize(cp.sum_squares(x - a)), [x >= 0]), [a], [x])
    >>> made.M.shape[1], made.R.shape[0], made.parameters[0].name
    (3, 2, 'a')
    """
    parameters, variables = _listed(parameters, "parameters"), _listed(variables, "variables")
    duals = _check_lists(problem, parameters, variables)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        _check_rules(problem, gp, quadratic)
        reduced = _reduce(problem, gp, quadratic)
        inputs, L = parameter_map(reduced, parameters)
        pattern, M = assemble(_tensors(reduced.program), L, _cone(reduced.program))
        outputs, R = variable_map(reduced, variables, duals)
    _check_finite(M, pattern.m)
    return Canonical(pattern, M, R, inputs, outputs, type(problem.objective) is cp.Maximize, gp)


def _listed(items: Any, kind: str) -> tuple:
    if isinstance(items, (cp.Expression, str)) or not isinstance(items, Iterable):
        raise ValueError(f"got a {type(items).__name__} as {kind}; wanted a list, for example [{kind[0]}]")
    return tuple(items)


def _check_lists(problem: cp.Problem, parameters: tuple, variables: tuple) -> dict[int, Any]:
    """The constraint of every dual variable of the problem, by its id; ValueError if a list does not fit the problem."""
    if not isinstance(problem, cp.Problem):
        raise ValueError(f"got a {type(problem).__name__} as problem; wanted a cvxpy Problem")
    for items, kind, wanted in ((parameters, "parameters", cp.Parameter), (variables, "variables", cp.Variable)):
        for place, item in enumerate(items):
            if not isinstance(item, wanted):
                raise ValueError(f"{kind}[{place}] is a {type(item).__name__}; wanted a cvxpy {wanted.__name__}")
            if kind == "parameters" and any(item is other for other in items[:place]):
                raise ValueError(f"parameter '{item.name()}' is listed twice; list every parameter once")
    own, listed = {p.id: p for p in problem.parameters()}, {p.id: p for p in parameters}
    if missing := [f"'{p.name()}'" for key, p in own.items() if key not in listed]:
        raise ValueError(f"of the problem's parameters {', '.join(missing)} is missing from parameters; list every one")
    if extra := [f"'{p.name()}'" for key, p in listed.items() if key not in own]:
        raise ValueError(f"parameter {', '.join(extra)} does not occur in the problem; remove it from parameters")
    duals = {dual.id: constraint for constraint in problem.constraints for dual in constraint.dual_variables}
    known = {variable.id for variable in problem.variables()} | duals.keys()
    for variable in variables:
        if variable.id not in known:
            raise ValueError(f"variable '{variable.name()}' is neither a variable of the problem nor a dual variable of its constraints")
    return duals


def _check_finite(M: Matrix, m: int) -> None:
    """Numbers must be finite, except that a constant of b may be infinite: a bound that is not there."""
    entries, (rows, columns) = sp.coo_matrix(M), M.shape
    in_b = (entries.row >= rows - 1 - m) & (entries.row < rows - 1) & (entries.col == columns - 1)
    if not np.isfinite(entries.data[~in_b]).all() or np.isnan(entries.data).any():
        raise ValueError(
            "constants of the problem give NaN or infinite numbers in the cone program; only bounds may be infinite, and with gp=True "
            "constants must be positive, since their logarithm is taken"
        )


def _check_rules(problem: cp.Problem, gp: bool, quadratic: bool) -> None:
    with scopes.quad_form_dpp_scope():
        relaxed = problem.objective.is_dpp("dgp" if gp else "dcp")
    strict = problem.objective.is_dpp("dgp" if gp else "dcp")
    refuse(problem, relaxed if quadratic else strict, gp=gp, quadratic=quadratic, quadratic_would_do=relaxed)


class _Rows(ConicSolver):
    """A solver that is never run: it asks CVXPY for the row layout of `cvxlayers.program`, with nothing stated outside the rows."""

    SUPPORTED_CONSTRAINTS = [Zero, NonNeg, SOC, SvecPSD, ExpCone, PowCone3D]
    PSD_TRIANGLE_KIND = TriangleKind.UPPER
    PSD_SQRT2_SCALING = True
    EXP_CONE_ORDER = [0, 1, 2]
    BOUNDED_VARIABLES = False
    DIR_CONE_KINDS = frozenset()

    def __init__(self, quadratic: bool) -> None:
        super().__init__()
        self.quadratic = quadratic

    def name(self) -> str:
        return "CVXLAYERS"

    def import_solver(self) -> None:
        pass

    def supports_quad_obj(self) -> bool:
        return self.quadratic

    def cite(self, data: Any) -> str:
        return ""

    def solve_via_data(self, data: Any, warm_start: bool, verbose: bool, solver_opts: Any, solver_cache: Any = None) -> Any:
        raise TypeError("this solver only lays out rows")

    @classmethod
    def format_constraints(cls, problem: ParamConeProg, exp_cone_order: list[int]) -> ParamConeProg:
        """Put the rows of each cone in order. CVXPY does it by products with matrices of (variables x parameters) columns; here CVXPY
        orders the labels 1 ... m only, and the rows are moved to where their labels went."""
        m = problem.constr_size
        if m == 0:
            return problem
        probe = copy.copy(problem)
        probe.A, probe.x = sp.csc_array(np.arange(1.0, m + 1)[:, None]), cp.Variable(0)
        labels = super().format_constraints(probe, exp_cone_order).A.toarray().ravel()
        place, sign = np.empty(m, dtype=np.int64), np.empty(m)
        place[np.abs(labels).astype(np.int64) - 1], sign[np.abs(labels).astype(np.int64) - 1] = np.arange(m), np.sign(labels)
        A = sp.coo_array(problem.A)
        column, row = np.divmod(A.row.astype(np.int64), m)
        ordered = copy.copy(problem)
        ordered.A = sp.coo_array((A.data * sign[row], (place[row] + m * column, A.col.astype(np.int64))), shape=A.shape)
        ordered.formatted = True
        return ordered

    def apply(self, problem: ParamConeProg) -> tuple[dict, dict]:
        """The formatted program as it stands: CVXPY's own version would go on to apply the values of the parameters."""
        _, data, inverse = self._prepare_data_and_inv_data(problem)
        inverse[s.OFFSET] = 0.0
        return data, inverse


class _Stuffing(ConeMatrixStuffing):
    """CVXPY's stuffing with the quadratic terms of the objective treated apart from the linear ones.

    CVXPY holds the objective as a dense array (variables x all parameters) when it has a quadratic term. Here the dense array has one
    column for each parameter of the quadratic terms only, and no row for variables that enter linearly.
    """

    def stuffed_objective(self, problem: cp.Problem, extractor: Any) -> tuple[Any, Any, cp.Variable]:
        terms = _terms(problem.objective.expr)
        curved = [term for term in terms if _is_curved(term)]
        if not self.quad_obj or not curved:
            P = sp.csr_matrix((extractor.x_length**2, extractor.param_id_map[CONSTANT_ID] + 1)) if self.quad_obj else None
            return P, extractor.affine(problem.objective.expr), cp.Variable(extractor.x_length)
        expression = functools.reduce(operator.add, curved)
        narrow, places, width = copy.copy(extractor), [], 0
        narrow.param_to_size, narrow.param_id_map = {CONSTANT_ID: 1}, {}
        for parameter in {p.id: p for p in expression.parameters()}.values():
            narrow.param_to_size[parameter.id], narrow.param_id_map[parameter.id] = parameter.size, width
            places.append(np.arange(parameter.size) + extractor.param_id_map[parameter.id])
            width += parameter.size
        narrow.param_id_map[CONSTANT_ID] = width
        columns = np.concatenate([*places, [extractor.param_id_map[CONSTANT_ID]]])
        widen = sp.csr_matrix((np.ones(width + 1), (np.arange(width + 1), columns)), shape=(width + 1, columns[-1] + 1))
        P, q = narrow.quad_form(expression.copy())
        linear = [term for term in terms if not _is_curved(term)]
        q = sp.csr_matrix(q) @ widen
        if linear:
            q = q + extractor.affine(functools.reduce(operator.add, linear))
        return 2 * (sp.csr_matrix(P) @ widen), sp.csr_matrix(q), cp.Variable(extractor.x_length)


def _terms(expression: Any) -> list[Any]:
    """Expressions whose sum is the given one."""
    if isinstance(expression, AddExpression):
        return [term for argument in expression.args for term in _terms(argument)]
    if isinstance(expression, NegExpression):
        return [-term for term in _terms(expression.args[0])]
    return [expression]


def _is_curved(expression: Any) -> bool:
    return isinstance(expression, (SymbolicQuadForm, QuadForm)) or any(_is_curved(argument) for argument in expression.args)


def _reduce(problem: cp.Problem, gp: bool, quadratic: bool) -> Reduced:
    """Run CVXPY's chain by hand: unlike problem.get_problem_data this reads the problem only and leaves its cache as it is."""
    try:
        chain: Any = problem._construct_chain(solver=_Rows(quadratic), gp=gp, enforce_dpp=True)
        # The one atom that asks for the solver by name (perspective) does so to have its own argument reduced: any installed one with
        # these cones and no bounds does.
        chain.solver_context.solver_name = cp.CLARABEL
        chain.reductions = [_Stuffing(r.quad_obj, r.canon_backend) if type(r) is ConeMatrixStuffing else r for r in chain.reductions]
        data, inverse = chain.apply(problem)
    except Exception as error:  # the rules hold by now: whatever CVXPY raises here, it cannot reduce this problem
        kinds = sorted({type(constraint).__name__ for constraint in problem.constraints})
        raise ValueError(
            f"CVXPY {version('cvxpy')} cannot reduce this problem to a cone program, with constraints of kinds {kinds}: "
            f"{type(error).__name__}: {error}"
        ) from error
    program = _known(data)
    if program.x.size == 0:
        raise ValueError("the variables of the problem have no entries, so there is nothing to solve")

    def recover(y: np.ndarray) -> dict[int, Any]:
        zero, x = program.cone_dims.zero, np.zeros(program.x.size)
        return chain.invert({"status": s.OPTIMAL, "value": 0.0, "primal": x, "eq_dual": y[:zero], "ineq_dual": y[zero:]}, inverse).dual_vars

    logarithm = next((reduction for reduction in chain.reductions if isinstance(reduction, Dgp2Dcp)), None)
    return Reduced(program, tuple(chain.reductions), logarithm, recover)


def _known(data: dict[str, Any]) -> ParamConeProg:
    """The program inside CVXPY's data, after making sure that nothing of it lies outside the rows of A or is of an unknown kind."""
    program = data[s.PARAM_PROB]
    unknown = (data.keys() - _KNOWN_DATA) | (vars(program).keys() - _KNOWN_FIELDS)
    outside = [name for name in _OUTSIDE_ROWS if getattr(program, name, None) not in (None, [])]
    kinds = {type(c).__name__ for c in program.constraints if type(c) not in _Rows.SUPPORTED_CONSTRAINTS}
    if unknown or outside or kinds:
        raise RuntimeError(
            f"CVXPY {version('cvxpy')} handed over a problem that this library cannot read without dropping a part of it: "
            f"unknown data {sorted(unknown)}, statements outside the rows {outside}, unknown cones {sorted(kinds)}; please report it"
        )
    return program


def _cone(program: ParamConeProg) -> Product:
    dims = program.cone_dims
    cones: list[Cone] = [cone for cone in (ZeroCone(dims.zero), NonNegative(dims.nonneg)) if cone.dim]
    cones += [SecondOrder(dim) for dim in dims.soc] + [Semidefinite(order) for order in dims.psd]
    cones += [Exponential()] * dims.exp + [Power(float(alpha)) for alpha in dims.p3d]
    return Product(tuple(cones))


def _tensors(program: ParamConeProg) -> Tensors:
    # CVXPY's rows say "A_cvxpy x + b lies in K", so b is its last column and the program's A is the negative of the others.
    return Tensors(program.x.size, program.constr_size, program.P, program.q, program.A)

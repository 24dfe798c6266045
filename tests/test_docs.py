"""The documentation is true: its code runs, its links lead somewhere, its tables agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cvxlayers import Status
from cvxlayers.cones import Exponential, NonNegative, Power, SecondOrder, Semidefinite, Zero
from cvxlayers.solvers import REGISTRY, find

ROOT = Path(__file__).parents[1]
RUN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = [*RUN, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"^\s*print\(.*\)  # -> (.*)$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """The text of a page without its code blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def headings(path: Path) -> set[str]:
    """The anchors that a page offers."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def table_rows(path: Path, key: str) -> list[list[str]]:
    """The cells of every table row of a page that begins with `key`."""
    rows = [line for line in prose(path).splitlines() if re.match(rf"\| `{key}` \|", line)]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_code_blocks_run_and_print_what_they_say(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, namespace = path.read_text(encoding="utf-8"), {"__name__": name_of(path)}
    for block in FENCE.finditer(text):
        if block[1] != "python":
            continue
        # blank lines in front make a traceback point to the line of the page
        code = "\n" * text.count("\n", 0, block.start(2)) + block[2]
        exec(compile(code, path, "exec"), namespace)
        printed = capsys.readouterr().out.splitlines()
        promised = PRINTS.findall(block[2])
        assert [line for line in printed if line in promised] == promised, f"{name_of(path)} printed {printed}"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_fences_are_closed_and_named(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(FENCE.findall(text))
    assert {language for language, _ in FENCE.findall(text)} <= {"python", "text"}


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        page = (path.parent / target).resolve() if target else path
        assert page.is_file(), f"{name_of(path)} links to {link}"
        assert not anchor or anchor in headings(page), f"{name_of(path)} links to {link}"
        # the site is built from docs/ alone
        assert path.parent.name != "docs" or page.parent.name == "docs", f"{name_of(path)} links out of docs/: {link}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f": {path.name}\n" in navigation for path in (ROOT / "docs").glob("*.md"))


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("status", Status, ids=lambda status: status.name)
def test_every_status_is_documented(status: Status) -> None:
    usable = "yes" if status.ok else "no"
    assert f"| {int(status)} | `{status.name}` | {usable} | {status.sentence} |" in prose(ROOT / "docs" / "failures.md")


@pytest.mark.parametrize("name", REGISTRY)
def test_every_solver_is_documented(name: str) -> None:
    assert f'"{name}"' in prose(ROOT / "README.md")
    rows = table_rows(ROOT / "docs" / "solvers.md", name)
    assert len(rows) == 3, "method, capability and options"
    solver = find(name)
    able = [cone in solver.cones for cone in (Zero, NonNegative, SecondOrder, Semidefinite, Exponential, Power)]
    assert rows[1][1:] == ["yes" if can else "no" for can in (*able, solver.quadratic, solver.warm_start)]
    default = {solver.defaults[option] for option in solver.tolerances}
    assert {float(rows[2][2])} == default
    if name != "DIFFCP":
        assert rows[2][1] == ", ".join(f"`{option}`" for option in solver.tolerances)
        assert rows[2][3].startswith(f"`{solver.limit}`")

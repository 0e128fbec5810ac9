"""Every dotted name that stands in a string leads somewhere: factories, tables of families and policies, `python -m`.

No import fails where such a name is wrong, only the process that is started with it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.families import NAMES, family_named
from policies.kinds import FIXED, fixed_policy
from tests.test_architecture import OURS, ROOT, sources

NAME = re.compile(rf"(?:{'|'.join((*OURS, 'tests'))})(?:\.\w+)+(?::\w+)?")
STARTED = re.compile(rf"\bpython\S* -m ((?:{'|'.join(OURS)})(?:\.\w+)+)")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md"))]


def searched() -> list[Path]:
    """The code and its tests, but for this file, which names what the search must find."""
    return [*sources(), *(path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__))]


def in_strings() -> Iterator[tuple[str, str]]:
    """Every string that is a dotted name of ours as a whole, and where it stands."""
    for path in searched():
        tree = ast.parse(path.read_text())
        pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces
            if is_text and NAME.fullmatch(node.value):
                yield node.value, f"{path.relative_to(ROOT)}:{node.lineno}"


def in_templates() -> Iterator[tuple[str, str]]:
    """The modules of factories whose function's name is filled in, as tests do for their null workers."""
    for path in searched():
        for module in re.findall(r'f"((?:pipeline|tests)(?:\.\w+)+):', path.read_text()):
            yield module, str(path.relative_to(ROOT))


def places() -> dict[str, str]:
    """Each name, and one of the places where it stands."""
    found = dict([*in_templates(), *in_strings()])
    for path in DOCUMENTS:
        found |= {name: str(path.relative_to(ROOT)) for name in STARTED.findall(path.read_text())}
    return found


def resolve(name: str) -> object:
    """What a name stands for: a module, or something in one, after a colon or a dot."""
    module, _, attribute = name.partition(":")
    if attribute:
        return getattr(importlib.import_module(module), attribute)
    parts = module.split(".")
    found: object = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:number]))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("name", "place"), sorted(places().items()))
def test_a_dotted_name_in_a_string_leads_somewhere(name: str, place: str) -> None:
    assert resolve(name) is not None, place


def test_the_factories_of_all_workers_are_among_the_names() -> None:
    """The search finds what it is for, so that it cannot pass by finding nothing."""
    wanted = {
        "pipeline.run.source_worker:file_worker",
        "pipeline.run.factories:stream_worker",
        "pipeline.run.factories:focus_worker",
        "pipeline.run.dry_run:null_sink",
        "pipeline.live.factories:live_worker",
        "pipeline.live.camera_process",
        "policies.fixed:Center",
        "tests.support.null_workers",
    }
    assert wanted <= places().keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_found_under_its_name(name: str) -> None:
    assert family_named(name).name == name


@pytest.mark.parametrize("name", FIXED)
def test_a_policy_is_found_under_its_name(name: str) -> None:
    assert fixed_policy(name, patch_share=0.5, num_actions=49) is not None

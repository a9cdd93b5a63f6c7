"""pytest plugin: a bundle as a fixture, and parity as an assertion.

    def test_the_bundle_still_fits(ptdeploy_bundle, assert_parity):
        assert_parity(ptdeploy_bundle)

with `pytest --ptdeploy-bundle DIR`, `ptdeploy_bundle = DIR` in pytest's ini file, or the
environment variable PTDEPLOY_BUNDLE. Nothing of ptdeploy is imported until a fixture is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ptdeploy.parity.report import ParityReport

OPTION, INI, VARIABLE = "--ptdeploy-bundle", "ptdeploy_bundle", "PTDEPLOY_BUNDLE"


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "a ptdeploy bundle, for the fixture ptdeploy_bundle"
    parser.getgroup("ptdeploy").addoption(OPTION, metavar="DIR", help=help)
    parser.addini(INI, help=f"{help}; relative to the ini file", default="")


@pytest.fixture(scope="session")
def ptdeploy_bundle(pytestconfig: pytest.Config) -> Path:
    """The bundle under test: from the option, else the environment, else the ini file.

    Skips the test where none was given; fails it where there is no such bundle.
    """
    given = pytestconfig.getoption(OPTION) or os.environ.get(VARIABLE)
    if given:
        path = Path(given)
    elif ini := pytestconfig.getini(INI):
        # As pytest does with paths: --rootdir may be elsewhere, and -o needs no file.
        file = pytestconfig.inipath
        path = (file.parent if file else pytestconfig.invocation_params.dir) / ini
    else:
        pytest.skip(f"no bundle was given: pytest {OPTION} DIR, or {VARIABLE}=DIR")
    from ptdeploy.bundle import is_bundle

    if not is_bundle(path):
        pytest.fail(f"{path}: is no ptdeploy bundle.", pytrace=False)
    return path


@pytest.fixture(scope="session")
def assert_parity() -> Callable[..., ParityReport]:
    """`assert_parity(bundle, **options)`: fails the test, saying what does not match.

    The options are those of `ptdeploy.verify`. Gives the report.
    """

    def check(bundle: str | Path, **options: object) -> ParityReport:
        __tracebackhide__ = True
        import ptdeploy

        report = ptdeploy.verify(bundle, **options)  # type: ignore[arg-type]
        if not report.passed:
            from ptdeploy.parity.reports.text import describe

            pytest.fail(
                f"{bundle} does not pass ptdeploy verify.\n{describe(report)}", pytrace=False
            )
        return report

    return check

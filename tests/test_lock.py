"""The lock file: it fits the requirements on every system, and the lane that is locked has it."""

from importlib import metadata

import pytest
from execution import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import make

pytestmark = pytest.mark.book

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SYSTEMS = {
    "linux": {"platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    "darwin": {"platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    "win32": {"platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
}


def lines(name: str) -> list[Requirement]:
    text = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in text if line.strip() and not line.startswith("#")]


def locked(requirements: list[Requirement], **environment: str) -> dict[str, Version]:
    """Return the version of each package that a lock has for an environment."""
    found: dict[str, Version] = {}
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (only,) = requirement.specifier
            assert canonicalize_name(requirement.name) not in found, f"two {requirement.name}"
            found[canonicalize_name(requirement.name)] = Version(only.version)
    return found


def lower_bounds() -> dict[str, Version]:
    return {
        canonicalize_name(requirement.name): Version(bound.version)
        for requirement in lines(make.READERS) + lines(make.DEVELOPERS)
        for bound in requirement.specifier
        if bound.operator == ">="
    }


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_fits_the_requirements(python, system):
    here = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": system}
    versions = locked(lines(make.LOCK), **here, **SYSTEMS[system])
    for requirement in lines(make.READERS) + lines(make.DEVELOPERS):
        version = versions[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement} is locked at {version}"


def test_a_lock_with_two_versions_of_a_package_is_refused():
    with pytest.raises(AssertionError, match="two a"):
        locked([Requirement("a==1"), Requirement("a==2; python_version > '3'")])


def test_every_requirement_has_both_bounds():
    for requirement in lines(make.READERS) + lines(make.DEVELOPERS):
        assert {bound.operator for bound in requirement.specifier} == {">=", "<"}, requirement


def test_the_versions_installed_are_those_chosen():
    if (chosen := make.chosen_versions()) == "newest":
        pytest.skip("no version was chosen for this environment")
    versions = locked(lines(make.LOCK)) if chosen == "locked" else lower_bounds()
    installed = {
        canonicalize_name(package.metadata["Name"]): Version(Version(package.version).public)
        for package in metadata.distributions()
    }
    common = versions.keys() & installed.keys()
    assert len(common) > 40
    assert {name: installed[name] for name in common} == {name: versions[name] for name in common}

"""Checks for your own policy: does it keep the contract of its seat?

    python -m kvsim.testing package.module:Class [FIELD=VALUE ...]        (make check-plugin P=package.module:Class)

or, in a test of yours: ``assert not [check for check in check_policy(MyScheduler()) if check.problem]``.

``plugin.py`` is a pytest plug-in (installed with kvsim): scenario files with ``expect:`` are tests, and the fixture
``kvsim_run`` runs a scenario. ``assert_expected`` and ``assert_not_worse`` say in a table what does not hold.

Here: ``worlds`` (small seeded runs in which preemption, chunking, ties, bursts and clients that give up happen) and one
module per seat with its checks. You implement nothing; a new kind of check is one function there, with a wrong
policy in ``tests/unit/testing`` that fails it.
May import: everything below the command line (sweeps, scenario, engine, metrics, the plug-in packages, core);
nothing in kvsim imports this package.
Called by: authors of policies, and by tests that hold the built-in ones to the same contract.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvsim.testing.checks import Check as Check
    from kvsim.testing.checks import check_policy as check_policy
    from kvsim.testing.checks import check_target as check_target
    from kvsim.testing.expectations import assert_expected as assert_expected
    from kvsim.testing.expectations import assert_not_worse as assert_not_worse

__all__ = ["Check", "assert_expected", "assert_not_worse", "check_policy", "check_target"]


def __getattr__(name: str) -> Any:
    """The names above, found when they are used: every pytest run with kvsim installed passes through here."""
    if name not in __all__:
        raise AttributeError(f"module 'kvsim.testing' has no attribute {name!r}")
    from importlib import import_module

    home = "expectations" if name.startswith("assert_") else "checks"
    return getattr(import_module(f"kvsim.testing.{home}"), name)

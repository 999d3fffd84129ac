"""Checks for your own policy: does it keep the contract of its seat?

    python -m kvsim.testing package.module:Class [FIELD=VALUE ...]        (make check-plugin P=package.module:Class)

or, in a test of yours: ``assert not [check for check in check_policy(MyScheduler()) if check.problem]``.
Here: ``worlds`` (small seeded runs in which preemption, chunking, ties, bursts and clients that give up happen) and one
module per seat with its checks. You implement nothing; a new kind of check is one function there, with a wrong
policy in ``tests/unit/testing`` that fails it.
May import: everything below the command line and the reports (scenario, engine, metrics, the plug-in packages, core);
nothing in kvsim imports this package.
Called by: authors of policies, and by tests that hold the built-in ones to the same contract.
"""

from kvsim.testing.checks import Check, check_policy, check_target

__all__ = ["Check", "check_policy", "check_target"]

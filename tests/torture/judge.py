"""The judge: from histories to what broke the contract. Pure functions, no clock, no files.

What it holds shmcache to (the docstrings of FIFO and Store, docs/design/failure-model.md):

queue   A completed add is delivered once, or was deleted, or went down with a consumer that was
        killed in a pop that may have taken it; each such loss is named with its pop, and no pop
        loses more than it could take. An add that was cut off is delivered once or never; of a
        cut off ``add_many``, the first ones. Nothing is delivered that was not added, or whose
        deletion was over. Items are delivered in the order of their adds. A key that is updated
        while queued is delivered in its newest version, once.
jobs    Of what was added to the queue of jobs, each is done, deleted, a dead letter after as many
        claims as it has attempts, or its key has a newer version; however many of those who claimed
        it were killed. No two workers have one key at a time, and none is given what is done,
        deleted or older than what had been added; no claim is taken away from a living worker
        before its lease is over.
table   Every key is a register with one writer: a read gives what the last completed write left,
        or a later one that had begun, and never what lies behind that which another read has seen.
list    The same of the whole content at once: every snapshot is that after some replace or event.
all     No payload is torn, no version goes back, nothing is left in the queue, the checker finds
        no broken invariant, and nobody ended by itself.

An operation that was cut off may take effect at any time until the next write to its arena, which
repairs. A read-only handle may then see it in ``list`` and not yet in ``get`` (failure model): the
two ways of reading are judged each by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.torture.claims import judge_claims
from tests.torture.deliveries import judge_queue
from tests.torture.history import Operation
from tests.torture.registers import judge_list, judge_table, judge_versions
from tests.torture.verdict import Verdict, Violation

__all__ = ["judge"]


def judge(operations: Sequence[Operation]) -> Verdict:
    """Judge one epoch by the histories of all who took part."""
    by_name: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_name[operation.name].append(operation)
    verdict = Verdict()
    work = [o for o in operations if o.who != "driver"]
    verdict.operations = sum(o.end is not None for o in work)
    verdict.cut_off = len(work) - verdict.operations
    verdict.repairs = sum(int(o.results[0]) for o in by_name["repairs"] if o.results)
    verdict.violations += _errors(by_name)
    verdict.violations += _torn(by_name)
    verdict.violations += judge_table(by_name)
    verdict.violations += judge_list(by_name)
    verdict.violations += judge_versions(by_name)
    judge_queue(by_name, verdict)
    judge_claims(by_name, verdict)
    return verdict


def _errors(by_name: dict[str, list[Operation]]) -> Iterator[Violation]:
    for o in by_name["error"]:
        yield Violation("error", f"{o.who} ended with {' '.join(o.results)}")
    for o in by_name["died"]:
        who, status = o.arguments
        yield Violation("error", f"{who} ended by itself, with status {status}")
    for o in by_name["check"]:
        for broken in o.results:
            yield Violation("broken", f"{o.arguments[0]}: {broken.replace('_', ' ')}")


def _torn(by_name: dict[str, list[Operation]]) -> Iterator[Violation]:
    for name in ("pop", "claim", "get", "table", "queue", "jobs", "held", "dead"):
        for o in by_name[name]:
            if "torn" in o.results:
                yield Violation("torn", f"{o.who} was given a torn payload by {name}")
    for o in by_name["list"]:
        if o.results and o.results[1] != "0":
            yield Violation("torn", f"{o.who} was given {o.results[1]} torn payloads by list")

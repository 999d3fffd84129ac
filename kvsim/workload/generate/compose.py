"""Parts put together: arrivals, lengths, sessions, shared prefixes and images make a trace."""

import copy
import math
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import MAX_TOKENS, Ragged, Trace, TraceRows
from kvsim.workload.generate.arrivals import Arrivals, ClosedLoop, Diurnal
from kvsim.workload.generate.distributions import Distribution, Numbers, whole
from kvsim.workload.generate.lengths import Lengths
from kvsim.workload.generate.prefixes import Prefixes, Shared, name_blocks
from kvsim.workload.generate.sessions import Sessions, Turns

MOST_REQUESTS = 10**8


def composed(
    arrivals: Arrivals,
    lengths: Lengths,
    *,
    requests: int | None = None,
    duration_s: float | None = None,
    sessions: Sessions | None = None,
    prefixes: Prefixes | None = None,
    hash_block_tokens: int | None = None,
    images: Distribution | None = None,
    tokens_per_image: int = 0,
    seed: int = 0,
) -> Trace:
    """Arrivals, lengths, sessions, shared prefixes and images, each by name; what is meant when no name is given.

    Give ``requests``, or ``duration_s``: all that start before it. With sessions, arrivals are their starts, a later
    turn follows from the end of the turn before and its think time, and ``requests`` are made from as many sessions as
    it takes (the last one to start lacks its last turns). Prompts grow by their shared prefix and by
    ``tokens_per_image`` for each image. Each part draws from a random stream of its own.
    ``hash_block_tokens``: size of the blocks whose ids say what prompts share (null: 16 if there are prefixes, and no
    ids otherwise; an id takes 8 bytes, so long histories want long blocks). Raises InputError for an argument out of
    range.
    """
    if (requests is None) == (duration_s is None):
        raise InputError("give either requests or duration_s", key="requests")
    if requests is not None and not 1 <= requests <= MOST_REQUESTS:
        raise InputError(f"{requests} is not allowed", key="requests", hint=f"allowed: 1 to {MOST_REQUESTS}")
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise InputError(f"{duration_s} is not a positive number", key="duration_s")
    if hash_block_tokens is None and prefixes is not None:
        hash_block_tokens = 16
    if hash_block_tokens is not None and hash_block_tokens < 1:
        raise InputError(f"{hash_block_tokens} is too few", key="hash_block_tokens", hint="allowed: from 1")
    if tokens_per_image < 0:
        raise InputError(f"{tokens_per_image} is too few", key="tokens_per_image", hint="allowed: from 0")
    times, sizes, talks, beginnings, pictures = np.random.default_rng(seed).spawn(5)

    if isinstance(arrivals, ClosedLoop):
        if sessions is not None or requests is None:
            problem = "closed_loop makes sessions of its own and needs requests"
            raise InputError(problem, key="arrivals", hint="leave out sessions and duration_s")
        turns = _closed_loop(arrivals, lengths, requests, sizes, talks)
    else:
        start_s = _starts(arrivals, requests, duration_s, times)
        turns = _turns(start_s, lengths, sessions, requests, sizes, talks)

    order = np.argsort(turns.arrival_s, kind="stable")
    arrival_s = turns.arrival_s[order]
    arrival_ns = np.rint((arrival_s - arrival_s[0]) * 1e9)
    if not arrival_ns[-1] < 2.0**62:
        raise InputError("the last arrival would be more than 146 years after the first", key="arrivals")
    origin_ns = None
    if isinstance(arrivals, Diurnal):
        origin_ns = round((arrivals.start_hour * 3600 + float(arrival_s[0])) * 1e9)
    prompt, session, chain = turns.prompt[order], turns.session[order], turns.chain[order]

    shared = None
    if prefixes is not None:
        of_session = prefixes.draw(int(session.max()) + 1, beginnings)
        shared = Shared(of_session.chains[session], of_session.ends[session])
        prompt = prompt + shared.tokens
    counts = None
    if images is not None:
        counts = whole(images.sample(len(prompt), pictures), least=0)
        prompt = prompt + counts * tokens_per_image
        chain = np.where(counts > 0, -1 - np.arange(len(chain)), chain)  # pictures differ, so nothing is shared
    if int(prompt.max()) > MAX_TOKENS:
        raise InputError(f"a prompt would have {prompt.max()} tokens", hint=f"allowed: up to {MAX_TOKENS}")
    linked = sessions is not None or isinstance(arrivals, ClosedLoop)
    blocks = None if hash_block_tokens is None else name_blocks(prompt, chain, shared, hash_block_tokens)
    return Trace(
        arrival_ns.astype(np.int64),
        prompt,
        turns.output[order],
        session=session if linked else None,
        think_ns=np.rint(turns.think_s[order] * 1e9).astype(np.int64) if linked else None,
        images=counts,
        history=np.maximum(chain, -1) if linked else None,
        wait_for=_wait_for(turns, order),
        prefix_hashes=blocks,
        hash_block_tokens=hash_block_tokens,
        origin_ns=origin_ns,
        rows=TraceRows(read=len(prompt)),
    )


def _wait_for(turns: Turns, order: NDArray[np.int64]) -> Ragged | None:
    """For each row of the trace the rows it waits for; None if it is always the row of its session before it."""
    if not (turns.parent >= 0).any() and not len(turns.waits_for):
        return None
    row_of = np.empty(len(order), np.int64)
    row_of[order] = np.arange(len(order))
    session = turns.session[order]
    by_session = np.argsort(session, kind="stable")
    follows = session[by_session[1:]] == session[by_session[:-1]]
    before = np.column_stack((by_session[1:], by_session[:-1]))[follows]
    child = np.flatnonzero(turns.parent >= 0)
    parents = np.column_stack((row_of[child], row_of[turns.parent[child]]))
    pairs = np.concatenate((before, parents, row_of[turns.waits_for]))
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    counts = np.bincount(pairs[:, 0], minlength=len(order))
    return Ragged(pairs[:, 1], np.concatenate(([0], np.cumsum(counts))))


def _starts(arrivals: Arrivals, requests: int | None, duration_s: float | None, rng: np.random.Generator) -> Numbers:
    """Arrivals: so many, or all before ``duration_s`` (at least one)."""
    if requests is not None:
        return arrivals.times_s(requests, rng)
    assert duration_s is not None
    n = 1024
    while True:
        found = arrivals.times_s(n, copy.deepcopy(rng))
        if found[-1] >= duration_s:
            return found[: max(1, int(np.searchsorted(found, duration_s)))]
        if n >= MOST_REQUESTS:
            raise InputError(f"more than {MOST_REQUESTS} requests", key="duration_s", hint="shorten it")
        n *= 2


def _turns(
    start_s: Numbers,
    lengths: Lengths,
    sessions: Sessions | None,
    requests: int | None,
    sizes: np.random.Generator,
    talks: np.random.Generator,
) -> Turns:
    """Every request by itself, or the turns of as many sessions as it takes, in order of their start."""
    if sessions is None:
        n = len(start_s)
        alone = np.arange(n)
        return Turns(
            start_s, alone, np.zeros(n), *lengths.sample(n, sizes), alone, np.full(n, -1), np.zeros((0, 2), np.int64)
        )
    if requests is None:
        return sessions.turns(start_s, lengths, talks)
    n = min(requests, 64)
    while len(turns := sessions.turns(start_s[:n], lengths, copy.deepcopy(talks))) < requests:
        n = min(requests, 16 + math.ceil(1.05 * n * requests / len(turns)))
    # What a row waits for arrives before it and is of the same session, or of a sub-agent's that the session began:
    # the first rows by (session at the root, arrival) never lack what one of them waits for.
    root = np.where(turns.session < n, turns.session, -1)
    first_row = np.flatnonzero(turns.parent >= 0)
    of_child = dict(
        zip(turns.session[first_row].tolist(), turns.session[turns.parent[first_row]].tolist(), strict=True)
    )
    child = root < 0
    root[child] = [of_child[number] for number in turns.session[child].tolist()]
    kept = np.sort(np.lexsort((turns.arrival_s, root))[:requests])
    row_of = np.full(len(turns), -1)
    row_of[kept] = np.arange(requests)
    columns = {f.name: getattr(turns, f.name)[kept] for f in fields(Turns) if f.name != "waits_for"}
    parent = np.where(columns["parent"] >= 0, row_of[columns["parent"]], -1)
    _, session = np.unique(columns["session"], return_inverse=True)
    waits_for = row_of[turns.waits_for]
    return Turns(**columns | {"parent": parent, "session": session, "waits_for": waits_for[waits_for[:, 0] >= 0]})


def _closed_loop(
    loop: ClosedLoop, lengths: Lengths, requests: int, sizes: np.random.Generator, talks: np.random.Generator
) -> Turns:
    """Row i is of user i modulo ``users``; recorded times take answers to come at once."""
    rows = np.arange(requests)
    think_s = np.where(rows < loop.users, 0.0, np.maximum(loop.think_s.sample(requests, talks), 0))
    rounds = -(-requests // loop.users)
    by_round = np.concatenate((think_s, np.zeros(rounds * loop.users - requests))).reshape(rounds, loop.users)
    arrival_s = loop.times_s(loop.users, talks) + np.cumsum(by_round, axis=0)
    return Turns(
        arrival_s.ravel()[:requests],
        rows % loop.users,
        think_s,
        *lengths.sample(requests, sizes),
        rows,
        np.full(requests, -1),
        np.zeros((0, 2), np.int64),
    )

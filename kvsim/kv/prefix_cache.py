"""Prefix caching: blocks have names, and a request begins with those of its prompt that are there already."""

from __future__ import annotations

from collections.abc import Iterable

from kvsim.core.content import Content
from kvsim.core.request import Request
from kvsim.kv.paged import PagedPool

_MANY_PARTS = 4
"""A copy in more parts is looked through for neighbours that could be one."""


class _Part:
    """Blocks ``low`` to ``high - 1`` of a copy that are held by the same requests, or are free and side by side.

    Free parts form the queue of registered free blocks (``before``, ``after``), out of which each is taken from its
    last block to its first. A free part without a copy is blocks that nobody can ask for any more: a mere number.
    """

    __slots__ = ("after", "before", "copy", "high", "holders", "low")

    def __init__(self, copy: _Copy | None, low: int, high: int, holders: int) -> None:
        self.copy = copy
        self.low = low
        self.high = high
        self.holders = holders
        self.before = self.after = self


class _Copy:
    """Blocks of one node that one request computed: its registered parts, in order of block."""

    __slots__ = ("node", "parts")

    def __init__(self, node: _Node, part_low: int, part_high: int) -> None:
        self.node = node
        self.parts = [_Part(self, part_low, part_high, 1)]


class _Node:
    """A run of blocks of known content: blocks ``low`` to ``high - 1``, counted from the start of the prompt.

    Identity is where a node hangs: the blocks before ``low`` are those on the way to the root, and ``children`` are
    told apart by the block at which they branch off and by what it contains. Equal blocks that were computed side by
    side are separate copies; ``copies`` has them in order of registration, and ``top`` is where the highest ended.
    """

    __slots__ = ("children", "content", "copies", "high", "key", "live", "low", "parent", "top", "uses")

    def __init__(self, parent: _Node | None, key: object, content: Content | None, low: int, high: int) -> None:
        self.parent = parent
        self.key = key
        self.content = content
        self.low = low
        self.high = high
        self.children: dict[object, _Node] = {}
        self.copies: list[_Copy] = []
        self.top = low
        self.live: dict[Request, None] = {}  # decodes that will register blocks here
        self.uses = 0  # requests whose tables name it, children, and copies

    def drop(self) -> None:
        """One use less; a node without any is forgotten."""
        self.uses -= 1
        if not self.uses and self.parent:
            del self.parent.children[self.key]
            self.parent.drop()


class _Table:
    """The blocks of one request that have names.

    ``pieces``: the nodes of its content, (node, first block, end); ``named`` blocks from the start are in ``holds``,
    as (copy, first block, end) in order. Behind the last piece, at block ``shared``, its content is its own: the node
    ``own`` is made when it is preempted, since nobody else can ask for these blocks. ``joined``: the context with
    which it decodes, counted back to decode step 0.
    """

    __slots__ = ("holds", "joined", "named", "own", "pieces", "shared")

    def __init__(self, pieces: list[tuple[_Node, int, int]]) -> None:
        self.pieces = pieces
        self.shared = pieces[-1][2] if pieces else 0
        self.own: _Node | None = None
        self.holds: list[tuple[_Copy, int, int]] = []
        self.named = 0
        self.joined = 0
        for node, _, _ in pieces:
            node.uses += 1


class PrefixPool(PagedPool):
    """A block ledger with names, as vLLM 0.33 keeps it, in runs of blocks: nothing is done per block or per step.

    A block is registered under its content when the step that fills it is scheduled. When its last holder leaves it
    goes to the back of the queue of free blocks if it is registered, to the front if not; a request gives back its
    last block first. New blocks are taken from the front, and one that was registered no longer is. A look-up takes of
    equal blocks the one that was registered first.

    ``free_blocks`` is what the engine counts with. The queue follows when somebody looks at it: ``_unnamed`` blocks at
    its front, then ``free_cached`` ones in parts; what ``free_blocks`` lacks was taken from the front since.

    Source: the rules 21 to 27 of the recorded scheduler, and vLLM 0.33.0's ``block_pool.py``.
    """

    caches = True

    __slots__ = ("_decodes_live", "_found", "_found_cost", "_found_for", "_held", "_queue", "_root", "_unnamed",
                 "doubled", "evicted", "free_cached", "step")  # fmt: skip

    def __init__(self, total_blocks: int, block_size: int) -> None:
        super().__init__(total_blocks, block_size)
        self._unnamed = total_blocks
        self.free_cached = 0
        self._queue = _Part(None, 0, 0, 0)  # a ring: the front is after it
        self._root = _Node(None, None, None, 0, 0)
        self._root.uses = 1
        self._found: list[tuple[_Copy, int, int]] = []
        self._found_for: Request | None = None
        self._found_cost = 0  # blocks of it that are free
        self.doubled = 0  # blocks that requests hold beyond the first holder of each
        self._held = 0  # registered blocks that are held, as far as they are in tables
        self.evicted = 0
        self._decodes_live = 0  # that will register blocks others may ask for
        self.step = 0

    # ---- questions

    def lookup(self, request: Request) -> int:
        """Tokens of this request that are in KV, at most all but one; with what decodes fill up to ``step``."""
        if self._unnamed + self.free_cached != self.free_blocks:
            self.settle()
        content = request.content
        if content is None:
            return 0
        table: _Table | None = content.table
        if table is None:
            content.table = table = _Table(self._chain(content))
        size = self._block_size
        limit = (request.target_tokens - 1) // size
        hits: list[tuple[_Copy, int, int]] = []
        block = cost = 0
        for node, low, high in table.pieces:
            if low >= limit:
                break
            if node.live:
                self._catch_up(node, None)
            block, free = _first_copies(node, low, min(high, limit), hits)
            cost += free
            if block < high:
                break
        if table.own and block == table.shared < limit:
            block, free = _first_copies(table.own, block, limit, hits)
            cost += free
        self._found_for = request
        self._found = hits
        self._found_cost = cost
        return block * size

    def steps_until_more(self, request: Request) -> int | None:
        """After a look-up: in how many steps a decode will register the next block that this request could use."""
        assert request.content is not None
        table: _Table = request.content.table
        size = self._block_size
        block = self._found[-1][2] if self._found else 0
        if block >= (request.target_tokens - 1) // size:
            return None
        soonest = None
        for node, low, high in table.pieces:
            if low <= block < high:
                for decode in node.live:
                    other = _table_of(decode)
                    if other.named <= block and any(n is node and block < end for n, _, end in other.pieces):
                        steps = (block + 1) * size - (other.joined + self.step)
                        if soonest is None or steps < soonest:
                            soonest = steps
        return soonest

    def missing_blocks(self, request: Request, tokens: int) -> int:
        blocks = super().missing_blocks(request, tokens)
        if request is self._found_for:
            blocks += self._found_cost - (self._found[-1][2] if self._found else 0)
        return blocks

    def cached_blocks(self, held: Iterable[tuple[Request, int]]) -> int:
        """Registered blocks, free or held; ``held``: every request with blocks, and its tokens scheduled so far."""
        self.settle()
        blocks = self.free_cached + self._held
        for request, tokens in held:
            blocks += tokens // self._block_size - (_table_of(request).named if request.content else 0)
        return blocks

    # ---- allocation

    def allocate(self, request: Request, tokens: int) -> bool:
        blocks = -(-tokens // self._block_size)
        content = request.content
        if content is None:
            missing = blocks - request.held_blocks
            if missing > 0:
                if missing > self.free_blocks:
                    return False
                self.free_blocks -= missing
                request.held_blocks = blocks
            return True
        table: _Table = content.table
        if request is self._found_for:
            missing = blocks - (self._found[-1][2] if self._found else 0)
            if missing + self._found_cost > self.free_blocks:
                return False
            if self._found:
                self._touch(table)
            self._found_for = None
        else:
            missing = blocks - request.held_blocks
            if missing > self.free_blocks:
                return False
        if missing > 0:
            self.free_blocks -= missing
            request.held_blocks = blocks
        if table.named < table.shared:
            self._register(request, table, tokens // self._block_size)
        return True

    def _touch(self, table: _Table) -> None:
        """The request holds what it found, too. The queue is as the look-up left it."""
        for copy, low, high in self._found:
            for part in _parts(copy, low, high):
                if part.holders:
                    self.doubled += part.high - part.low
                else:
                    part.before.after, part.after.before = part.after, part.before
                part.holders += 1
            if len(copy.parts) > _MANY_PARTS:
                _merge(copy)
        self.free_cached -= self._found_cost
        self._held += self._found_cost
        self.free_blocks -= self._found_cost
        table.holds = self._found
        table.named = self._found[-1][2]

    def release(self, request: Request, context_tokens: int, *, resumes: bool = False) -> None:
        held = request.held_blocks
        if held < 0:  # ``release_all`` has done it
            return
        request.held_blocks = 0
        if request.phase >= 0:
            self._phases[request.phase] -= 1
            request.phase = -1
        full, partial = divmod(context_tokens, self._block_size)
        blocks = full + 1 if partial else full
        if blocks < held:
            blocks = held
        unnamed = self._unnamed
        pending = unnamed + self.free_cached - self.free_blocks
        if pending > unnamed:
            self.settle()
            unnamed = pending = 0
        if request.content is not None or resumes:
            self._unnamed = unnamed - pending
            self._give_back(request, blocks, full, resumes)
            return
        self.free_blocks += blocks
        self._unnamed = unnamed - pending + blocks - full
        self.free_cached += full
        last = self._queue.before
        if last.copy is None and last is not self._queue:
            last.high += full
        elif full:
            self._append(_Part(None, 0, full, 0))

    def _give_back(self, request: Request, blocks: int, full: int, resumes: bool) -> None:
        if request.content is None:
            request.content = Content()
        content = request.content
        if content.table is None:
            content.table = _Table(self._chain(content))
        table: _Table = content.table
        if table.named < table.shared:
            self._name(table, full)
        if table.pieces and request in table.pieces[-1][0].live:
            self._retire(request, table)
        free = blocks - table.named
        self._unnamed += blocks - max(full, table.named)
        if full > table.named:  # what is its own
            self.free_cached += full - table.named
            if resumes:
                if table.own is None:
                    table.own = _Node(None, None, None, table.shared, full)
                    table.own.uses = 1
                copy = _Copy(table.own, table.named, full)
                table.own.copies.append(copy)
                table.own.uses += 1
                copy.parts[0].holders = 0
                self._append(copy.parts[0])
            else:
                self._append(_Part(None, 0, full - table.named, 0))
        for copy, low, high in reversed(table.holds):
            for part in reversed(_parts(copy, low, high)):
                part.holders -= 1
                if part.holders:
                    self.doubled -= part.high - part.low
                else:
                    free += part.high - part.low
                    self.free_cached += part.high - part.low
                    self._held -= part.high - part.low
                    last = self._queue.before
                    if last.copy is copy and last.low == part.high:  # next to each other in the queue as well
                        last.low = part.low
                        copy.parts.remove(part)
                    else:
                        self._append(part)
            if len(copy.parts) > _MANY_PARTS:
                _merge(copy)
        self.free_blocks += free
        table.holds = []
        table.named = 0
        if not resumes:
            for node, _, _ in table.pieces:
                node.drop()
            if table.own:
                self._forget(table.own)
            content.table = request.content = None

    def _forget(self, own: _Node) -> None:
        """Nobody can ask for these blocks any more."""
        for copy in own.copies:
            for part in copy.parts:
                part.copy = None

    def release_all(self, leaving: Iterable[tuple[Request, int]]) -> None:
        """These requests, with their tokens, in this order; what ``release`` would do to them later is done."""
        for request, tokens in leaving:
            self.release(request, tokens)
            request.held_blocks = -1

    def join(self, request: Request, context_tokens: int, step: int) -> None:
        request.phase = phase = (step - context_tokens) % self._block_size
        self._phases[phase] += 1
        content = request.content
        if content is None:
            return
        table: _Table = content.table
        if table.named < table.shared:
            table.joined = context_tokens - step
            self._decodes_live += 1
            for node, _, high in table.pieces:
                if high > table.named:
                    node.live[request] = None

    def leave(self, request: Request, context_tokens: int) -> None:
        super().leave(request, context_tokens)
        if request.content is None:
            return
        table: _Table = request.content.table
        if table.pieces and request in table.pieces[-1][0].live:
            self._name(table, context_tokens // self._block_size)
            self._retire(request, table)

    # ---- names

    def _chain(self, content: Content) -> list[tuple[_Node, int, int]]:
        """The nodes along this content; what is new of it gets a node."""
        size = self._block_size
        blocks = content.tokens // size
        pieces: list[tuple[_Node, int, int]] = []
        node, block = self._root, 0
        while block < blocks:
            key = (block, content.cut(block * size, size))
            child = node.children.get(key)
            if child is None:
                child = _Node(node, key, content, block, blocks)
                node.children[key] = child
                node.uses += 1
                pieces.append((child, block, blocks))
                break
            assert child.content is not None
            end = min(content.common(child.content, block * size) // size, child.high)
            if end == child.high < blocks and (end, content.cut(end * size, size)) not in child.children:
                child.content, child.high = content, blocks  # nobody goes on from there yet: the node does
                end = blocks
            pieces.append((child, block, end))
            node, block = child, end
        return pieces

    def _register(self, request: Request, table: _Table, full: int) -> None:
        """The first ``full`` blocks of the request have their names now, as far as they can be shared."""
        if self._decodes_live:
            for node, _, high in table.pieces:
                if node.live and high > table.named:
                    self._catch_up(node, request)
        self._name(table, full)

    def _name(self, table: _Table, full: int) -> None:
        if full > table.shared:
            full = table.shared
        for node, low, high in table.pieces:
            if table.named >= full:
                return
            if high <= table.named:
                continue
            low, high = max(low, table.named), min(high, full)
            self._held += high - low
            held = table.holds[-1] if table.holds else None
            if held and held[0].node is node and node.top <= low:  # nobody else was so far: the copy goes on
                copy = held[0]
                last = copy.parts[-1]
                if last.high == low and last.holders == 1:
                    last.high = high
                else:
                    copy.parts.append(_Part(copy, low, high, 1))
                table.holds[-1] = (copy, held[1], high)
            else:
                copy = _Copy(node, low, high)
                node.copies.append(copy)
                node.uses += 1
                table.holds.append((copy, low, high))
            if high > node.top:
                node.top = high
            table.named = high

    def _catch_up(self, node: _Node, newcomer: Request | None) -> None:
        """Decodes have registered blocks here, up to the step being planned.

        All of them before a look-up; before the blocks of ``newcomer``, those admitted later only up to the step
        before. Two decodes never register the same block, since what they generate is their own.
        """
        for decode in node.live:
            if decode is newcomer:
                continue
            table = _table_of(decode)
            tokens = table.joined + self.step
            if newcomer and decode.admission > newcomer.admission:
                tokens -= 1
            if tokens // self._block_size > table.named:
                self._name(table, tokens // self._block_size)

    def _retire(self, request: Request, table: _Table) -> None:
        self._decodes_live -= 1
        for node, _, _ in table.pieces:
            node.live.pop(request, None)

    # ---- the queue of free blocks

    def settle(self) -> None:
        """Everything taken so far has left the queue."""
        pending = self._unnamed + self.free_cached - self.free_blocks
        if pending <= self._unnamed:  # less than nothing: blocks that were given back
            self._unnamed -= pending
            return
        pending -= self._unnamed
        self._unnamed = 0
        self.free_cached -= pending
        self.evicted += pending
        queue = self._queue
        while pending:
            part = queue.after
            size = part.high - part.low
            if size > pending:
                part.high -= pending
                return
            pending -= size
            queue.after = part.after
            part.after.before = queue
            copy = part.copy
            if copy:
                copy.parts.remove(part)
                if not copy.parts:
                    copy.node.copies.remove(copy)
                    copy.node.drop()

    def _append(self, part: _Part) -> None:
        last = self._queue.before
        part.before, part.after = last, self._queue
        last.after = self._queue.before = part

    def check(self, requests: Iterable[Request]) -> None:
        """Recount from the tables. Raises AssertionError with the numbers."""
        self.settle()
        holders: dict[_Part, int] = {}
        for request in requests:
            if request.content is not None and request.content.table is not None:
                for copy, low, high in _table_of(request).holds:
                    for part in _parts(copy, low, high):
                        holders[part] = holders.get(part, 0) + 1
        free, part = 0, self._queue.after
        while part is not self._queue:
            assert part not in holders, "a free part is held"
            assert not part.holders, "a free part counts holders"
            assert part.before.after is part, "the queue is torn"
            free += part.high - part.low
            part = part.after
        assert (free, free + self._unnamed) == (self.free_cached, self.free_blocks), (
            f"{free} registered and {self._unnamed} other blocks in the queue, booked {self.free_cached} of "
            f"{self.free_blocks} free"
        )
        assert all(part.holders == count for part, count in holders.items()), "a part has other holders than its table"
        held = sum(part.high - part.low for part in holders)
        assert held == self._held, f"{held} named blocks are held, booked {self._held}"
        doubled = sum((count - 1) * (part.high - part.low) for part, count in holders.items())
        assert doubled == self.doubled, f"{doubled} blocks are held twice, booked {self.doubled}"


def _table_of(request: Request) -> _Table:
    assert request.content is not None
    table: _Table = request.content.table
    return table


def _parts(copy: _Copy, low: int, high: int) -> list[_Part]:
    """The parts of these blocks of a copy, in order; split where the range begins or ends inside one."""
    parts = copy.parts
    first = parts[0]
    if first.low == low and first.high >= high:  # as most are
        if first.high > high:
            first = _split(first, high)
            parts.insert(0, first)
        return [first]
    found = []
    i = 0
    while i < len(parts):
        part = parts[i]
        if part.low < high and part.high > low:
            if part.low < low:  # the upper part keeps its place in the queue, before the lower one
                parts.insert(i, _split(part, low))
                i += 1
            if part.high > high:
                lower = _split(part, high)
                parts.insert(i, lower)
                part = lower
            found.append(part)
        i += 1
    return found


def _merge(copy: _Copy) -> None:
    """Neighbours that are held equally often become one part; who holds which blocks is in the tables."""
    kept = copy.parts[:1]
    for part in copy.parts[1:]:
        last = kept[-1]
        if last.holders == part.holders > 0 and last.high == part.low:
            last.high = part.high
        else:
            kept.append(part)
    copy.parts = kept


def _split(part: _Part, block: int) -> _Part:
    """The part loses the blocks before this one to a new one, which is behind it in the queue if it is free."""
    lower = _Part(part.copy, part.low, block, part.holders)
    part.low = block
    if not part.holders:
        lower.before, lower.after = part, part.after
        part.after.before = lower
        part.after = lower
    return lower


def _first_copies(node: _Node, low: int, high: int, found: list[tuple[_Copy, int, int]]) -> tuple[int, int]:
    """Adds, from block ``low`` on, the copies registered first, until a block is missing or ``high`` is reached.

    Returns where they end, and how many of them are free.
    """
    if node.copies:
        copy = node.copies[0]
        part = copy.parts[0]
        if part.low <= low and part.high >= high:  # the common case of what follows
            found.append((copy, low, high))
            return high, 0 if part.holders else high - low
    block, free = low, 0
    while block < high:
        end = high
        hit = None
        for copy in node.copies:
            for part in copy.parts:
                if part.low <= block < part.high:
                    hit = part
                    break
                if block < part.low < end:  # from there on this copy is the older one
                    end = part.low
            if hit:
                break
        if hit is None:
            break
        end = min(end, hit.high)
        if not hit.holders:
            free += end - block
        assert hit.copy is not None
        if found and found[-1][0] is hit.copy and found[-1][2] == block:
            found[-1] = (hit.copy, found[-1][1], end)
        else:
            found.append((hit.copy, block, end))
        block = end
    return block, free

# Idempotency keys: who has which, in memory that several processes share and that the caller locks.
#
#   0      one byte a slot (gateway/delivery/idempotency.py)
#   64     one uint32 a slot: its lives so far
#   320    one uint32 a slot: the last of its lives that is over, so that what it claimed is not under way any more
#   4096   cells of 32 bytes, in buckets of 16. A key is in the bucket that the first 8 bytes of its digest name,
#          anywhere; a bucket that is full gives up its oldest key that is not under way.
#
# A process may be killed between any two writes: the state of a cell is written last.

cdef enum:
    KEY_CELLS_AT = 4096
    KEY_OVER_AT = 320
    KEY_BUCKET_CELLS = 16
    KEY_SLOT_BITS = 6
    KEY_PARTS_MAX = 8
    ALL_KEPT = 0xFF

cdef enum:
    CELL_FREE
    CELL_CLAIMED
    CELL_SETTLED

ctypedef struct cell_t:
    uint8_t[16] digest
    uint32_t at_s           # since 1970, when it was first claimed
    uint32_t checksum       # of what it is used for
    uint8_t state
    uint8_t kept            # parts that are, a bit each
    uint8_t refused         # and parts that never will be
    uint8_t parts
    uint32_t who            # claimed it: life << KEY_SLOT_BITS | slot

ctypedef struct key_entry_t:
    uint8_t[16] digest
    uint32_t at_s
    uint32_t checksum
    uint8_t part
    uint8_t parts
    uint8_t[6] zeros


cdef inline uint8_t all_parts(uint8_t parts) noexcept nogil:
    return <uint8_t> ((1 << parts) - 1)


cdef inline bint names_a_part(const key_entry_t *entry) noexcept nogil:
    """False for an entry that a disk has changed: some come from there unchecked."""
    return entry.part < entry.parts and entry.parts <= KEY_PARTS_MAX


cdef class KeyCells:
    """The cells in ``memory``. ``displaced``: keys that had to make room for others before their time."""

    cdef Py_buffer view
    cdef cell_t *cells
    cdef uint32_t *over
    cdef uint64_t buckets
    cdef readonly uint64_t displaced

    def __init__(self, memory):
        if self.cells != NULL:
            raise RuntimeError("cells are laid out once")
        PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE)
        self.buckets = (self.view.len - KEY_CELLS_AT) // <Py_ssize_t> (KEY_BUCKET_CELLS * sizeof(cell_t))
        if self.view.len < KEY_CELLS_AT or self.buckets == 0:
            PyBuffer_Release(&self.view)
            raise ValueError("there is no room for a bucket")
        self.cells = <cell_t *> (<uint8_t *> self.view.buf + KEY_CELLS_AT)
        self.over = <uint32_t *> (<uint8_t *> self.view.buf + KEY_OVER_AT)

    def __dealloc__(self):
        if self.cells != NULL:
            PyBuffer_Release(&self.view)

    def claim(self, bytes entries not None, *, uint32_t who, uint32_t now_s, uint32_t keep_s, uint8_t parts=0):
        """Claim the keys of all entries, or of none.

        ``parts``: so many are wanted of records, where there were more; 0 for requests, which wait for room.
        """
        cdef Py_ssize_t i, count = self.count(entries)
        cdef const key_entry_t *entry
        cdef key_entry_t *said
        cdef cell_t *cell
        cdef uint8_t wanted
        if parts > KEY_PARTS_MAX:
            raise ValueError(f"at most {KEY_PARTS_MAX} parts")
        for i in range(count):
            entry = <const key_entry_t *> <const char *> entries + i
            cell = self.find(entry.digest)
            if cell == NULL or self.expired(cell, now_s, keep_s):
                continue
            if cell.checksum != entry.checksum and (self.claimed(cell) or cell.kept):
                return "reused", b""
            if self.claimed(cell):
                return "claimed", b""
        found = PyBytes_FromStringAndSize(<const char *> entries, len(entries))
        for i in range(count):
            said = <key_entry_t *> <char *> found + i
            cell = self.find(said.digest)
            if cell != NULL and self.claimed(cell):
                said.part = ALL_KEPT        # by an entry before, for it was not at first
                continue
            if cell != NULL and not self.expired(cell, now_s, keep_s):
                said.at_s = cell.at_s
                said.part = cell.kept
                said.parts = cell.parts
                wanted = all_parts(parts)
                if cell.kept and (cell.kept == all_parts(cell.parts) or (wanted and cell.kept & wanted == wanted)):
                    said.part = ALL_KEPT
                    continue
            else:
                said.at_s = now_s
                said.part = said.parts = 0
            if cell == NULL:
                cell = self.room(said.digest, now_s, keep_s, UINT32_MAX)
            if cell == NULL and parts:
                self.displaced += 1     # nobody will know it, for it cannot wait for those of its own request
                continue
            if cell == NULL:
                for i in range(i):
                    self.give_back((<const key_entry_t *> <const char *> entries + i).digest, who)
                return "claimed", b""
            cell.state = CELL_FREE
            memcpy(cell.digest, said.digest, 16)
            cell.at_s = said.at_s
            cell.checksum = said.checksum
            cell.kept = said.part
            cell.refused = 0
            cell.parts = said.parts
            cell.who = who
            cell.state = CELL_CLAIMED
        return "ours", found

    def missing(self, bytes entries not None, *, uint8_t part, uint8_t parts):
        """Of entries as ``claim`` gave them, those whose ``part`` is not kept, each naming it."""
        cdef Py_ssize_t i, found = 0, count = self.count(entries)
        cdef key_entry_t *to
        missing = PyBytes_FromStringAndSize(NULL, len(entries))
        to = <key_entry_t *> <char *> missing
        if part >= parts or parts > KEY_PARTS_MAX:
            raise ValueError("no such part")
        for i in range(count):
            memcpy(to + found, <const char *> entries + i * sizeof(key_entry_t), sizeof(key_entry_t))
            if to[found].part >> part & 1 == 0:
                to[found].part = part
                to[found].parts = parts
                memset(to[found].zeros, 0, sizeof(to[found].zeros))
                found += 1
        return missing[:found * sizeof(key_entry_t)]

    def keep(self, bytes entries not None, *, uint32_t who, uint32_t now_s, uint32_t keep_s):
        """The part that each entry names is kept."""
        cdef Py_ssize_t i
        cdef const key_entry_t *entry
        cdef cell_t *cell
        for i in range(self.count(entries)):
            entry = <const key_entry_t *> <const char *> entries + i
            if not names_a_part(entry):
                continue
            cell = self.find(entry.digest)
            if cell == NULL:
                cell = self.room(entry.digest, now_s, keep_s, entry.at_s)
                if cell == NULL:
                    continue
                cell.state = CELL_FREE
                memcpy(cell.digest, entry.digest, 16)
                cell.at_s = entry.at_s
                cell.checksum = entry.checksum
                cell.kept = cell.refused = 0
                cell.who = who
            cell.parts = entry.parts
            cell.kept |= <uint8_t> (1 << entry.part)
            if cell.state == CELL_CLAIMED and self.claimed(cell):
                self.decide(cell)
            else:
                cell.state = CELL_SETTLED

    def refuse(self, bytes entries not None, *, uint32_t who):
        """The part that each entry names is not kept and never will be."""
        cdef Py_ssize_t i
        cdef const key_entry_t *entry
        cdef cell_t *cell
        for i in range(self.count(entries)):
            entry = <const key_entry_t *> <const char *> entries + i
            cell = self.find(entry.digest)
            if cell != NULL and names_a_part(entry) and self.claimed(cell) and cell.who == who:
                cell.parts = entry.parts
                cell.refused |= <uint8_t> (1 << entry.part)
                self.decide(cell)

    def release(self, bytes entries not None, *, uint32_t who):
        """Give claims back under which nothing is stored."""
        cdef Py_ssize_t i
        for i in range(self.count(entries)):
            self.give_back((<const key_entry_t *> <const char *> entries + i).digest, who)

    def still_kept(self, bytes entries not None, *, uint32_t now_s, uint32_t keep_s):
        """Those of ``entries`` whose part is kept and not forgotten."""
        cdef Py_ssize_t i
        cdef const key_entry_t *entry
        cdef cell_t *cell
        kept = bytearray()
        for i in range(self.count(entries)):
            entry = <const key_entry_t *> <const char *> entries + i
            cell = self.find(entry.digest)
            if cell != NULL and names_a_part(entry) and cell.kept >> entry.part & 1 and not self.expired(cell, now_s, keep_s):
                kept += entries[i * sizeof(cell_t):(i + 1) * sizeof(cell_t)]
        return bytes(kept)

    cdef Py_ssize_t count(self, bytes entries) except -1:
        if len(entries) % sizeof(key_entry_t):
            raise ValueError("no whole entries")
        return len(entries) // sizeof(key_entry_t)

    cdef cell_t *bucket(self, const uint8_t *digest) noexcept nogil:
        cdef uint64_t head
        memcpy(&head, digest, 8)
        return self.cells + head % self.buckets * KEY_BUCKET_CELLS

    cdef cell_t *find(self, const uint8_t *digest) noexcept nogil:
        cdef cell_t *cell = self.bucket(digest)
        cdef int i
        for i in range(KEY_BUCKET_CELLS):
            if cell[i].state != CELL_FREE and memcmp(cell[i].digest, digest, 16) == 0:
                return cell + i
        return NULL

    cdef cell_t *room(self, const uint8_t *digest, uint32_t now_s, uint32_t keep_s,
                      uint32_t older_than_s) noexcept nogil:
        """A cell for a key: a free one, else that of the oldest which is not under way; NULL where none is older."""
        cdef cell_t *cell = self.bucket(digest)
        cdef cell_t *oldest = NULL
        cdef int i
        for i in range(KEY_BUCKET_CELLS):
            if cell[i].state == CELL_FREE:
                return cell + i
            if not self.claimed(cell + i) and (oldest == NULL or cell[i].at_s < oldest.at_s):
                oldest = cell + i
        if oldest == NULL or oldest.at_s >= older_than_s:
            return NULL
        self.displaced += not self.expired(oldest, now_s, keep_s)
        return oldest

    cdef bint claimed(self, const cell_t *cell) noexcept nogil:
        """Whether it is under way: not when its process died, and its spool has been looked through since."""
        return (cell.state == CELL_CLAIMED
                and cell.who >> KEY_SLOT_BITS > self.over[cell.who & ((1 << KEY_SLOT_BITS) - 1)])

    cdef bint expired(self, const cell_t *cell, uint32_t now_s, uint32_t keep_s) noexcept nogil:
        return not self.claimed(cell) and <uint64_t> cell.at_s + keep_s < now_s

    cdef void decide(self, cell_t *cell) noexcept nogil:
        """End a claim when it is known of each of its parts what became of it."""
        if cell.kept | cell.refused == all_parts(cell.parts):
            cell.state = CELL_SETTLED if cell.kept else CELL_FREE

    cdef void give_back(self, const uint8_t *digest, uint32_t who) noexcept nogil:
        cdef cell_t *cell = self.find(digest)
        if cell != NULL and self.claimed(cell) and cell.who == who:
            cell.state = CELL_SETTLED if cell.kept else CELL_FREE

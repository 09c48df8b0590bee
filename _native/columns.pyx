# Columns: an open block, and how it becomes the bytes ClickHouse receives.
#
# A Native block (of revision 0, as HTTP has it): number of columns and of rows as varints, then for
# each column its name and type as sized strings and its data. ClickHouse's compressed framing cuts
# the bytes into frames: CityHash128 of what follows (16 bytes), method (0x82 LZ4, 0x02 none), size
# of what follows including these 9 bytes (uint32), size uncompressed (uint32), the bytes.

cdef enum:
    FRAME_BYTES = 65535         # uncompressed bytes of one frame: below 64 KiB LZ4 is a sixth faster, its table half
    KEEP_BYTES = 1 << 20        # a buffer that grew beyond is given back when the block is cut
    KEEP_SLOTS = 1 << 16        # the same of a dictionary, whose slots are wiped at each clearing
    METHOD_LZ4 = 0x82
    METHOD_NONE = 0x02
    RELEASE_BYTES = 1 << 16     # shorter work takes less than it may take to get the GIL back

cdef dict FIXED_TYPES = {
    # type: (bytes, meaning, signed)
    "UInt8": (1, TYPE_INTEGER, 0), "UInt16": (2, TYPE_INTEGER, 0),
    "UInt32": (4, TYPE_INTEGER, 0), "UInt64": (8, TYPE_INTEGER, 0),
    "Int8": (1, TYPE_INTEGER, 1), "Int16": (2, TYPE_INTEGER, 1),
    "Int32": (4, TYPE_INTEGER, 1), "Int64": (8, TYPE_INTEGER, 1),
    "Float32": (4, TYPE_FLOAT, 1), "Float64": (8, TYPE_FLOAT, 1),
    "Bool": (1, TYPE_BOOL, 0), "Date": (2, TYPE_OTHER, 0), "DateTime": (4, TYPE_OTHER, 0),
}


cdef int describe(column_t *column, str type_) except -1:
    """Set up a column by its ClickHouse type; ValueError names a type we do not write."""
    cdef str inner = type_
    memset(column, 0, sizeof(column_t))
    if inner.startswith("Nullable(") and inner.endswith(")"):
        inner = inner[9:len(inner) - 1]
        column.nullable = 1
    if inner == "String":
        column.kind = KIND_STRING
    elif type_ == "LowCardinality(String)":
        column.kind = KIND_LOW
    elif type_ == "Map(LowCardinality(String), String)":
        column.kind = KIND_MAP
    elif inner in FIXED_TYPES:
        column.kind = KIND_FIXED
        column.width, column.type, column.signed_ = FIXED_TYPES[inner]
    elif inner.startswith("DateTime64(") and inner[11:12].isdigit():
        column.kind = KIND_FIXED
        column.width, column.type, column.signed_ = 8, TYPE_DATETIME64, 1
        column.scale = int(inner[11])
        if column.scale > 9:
            raise ValueError(f"a column of type {type_} cannot be written")
    else:
        raise ValueError(f"a column of type {type_} cannot be written")
    column_clear(column)
    return 0


cdef int append_head(buffer_t *head, str text) except -1:
    """A column's name or type as a block has it: its length, then its bytes."""
    cdef bytes encoded = text.encode()
    if buffer_append_varint(head, len(encoded)) < 0 or buffer_append(head, <const char *> encoded, len(encoded)) < 0:
        raise MemoryError
    return 0


cdef void give_back(buffer_t *buffer) noexcept nogil:
    """Free an empty buffer that grew large."""
    if buffer.capacity > KEEP_BYTES:
        buffer_free(buffer)


cdef class Columns:
    """An open block: one growable column per (name, type) of one table."""

    cdef column_t *columns
    cdef buffer_t *heads        # of each column its name and type, as a block has them
    cdef int planned            # columns of the layout
    cdef int count              # of them, set up
    cdef bint lent              # to a call that has let go of the GIL: nobody else may touch the columns
    cdef readonly tuple layout

    def __init__(self, layout):
        if self.columns != NULL:
            raise RuntimeError("columns are laid out once")
        self.layout = tuple((str(name), str(type_)) for name, type_ in layout)
        if not self.layout:
            raise ValueError("a table needs at least one column")
        self.planned = len(self.layout)
        self.columns = <column_t *> calloc(self.planned, sizeof(column_t))
        self.heads = <buffer_t *> calloc(self.planned, sizeof(buffer_t))
        if self.columns == NULL or self.heads == NULL:
            raise MemoryError
        for name, type_ in self.layout:
            describe(&self.columns[self.count], type_)
            append_head(&self.heads[self.count], name)
            append_head(&self.heads[self.count], type_)
            self.count += 1
        self.mark()

    def __dealloc__(self):
        cdef int i
        if self.columns != NULL and self.heads != NULL:
            for i in range(self.planned):
                column_free(&self.columns[i])
                buffer_free(&self.heads[i])
        free(self.columns)
        free(self.heads)

    cdef int check(self) except -1:
        if self.count == 0 or self.count != self.planned:
            raise RuntimeError("the columns were never laid out")
        if self.lent:
            raise RuntimeError("another thread is writing or cutting these columns")
        return 0

    @property
    def rows(self):
        self.check()
        return self.columns[0].rows

    @property
    def bytes(self):
        """Uncompressed bytes held."""
        self.check()
        return self.size()

    cdef size_t size(self) noexcept nogil:
        cdef size_t total = 0
        cdef int i
        for i in range(self.count):
            total += column_bytes(&self.columns[i])
        return total

    cpdef mark(self):
        """Remember the state that ``rollback`` returns to."""
        cdef int i
        self.check()
        for i in range(self.count):
            column_save(&self.columns[i], &self.columns[i].mark)

    cpdef rollback(self):
        """Cut back to the last mark; what was there before is byte-equal."""
        cdef int i
        self.check()
        for i in range(self.count):
            column_restore(&self.columns[i], &self.columns[i].mark)

    cdef void begin_request(self) noexcept nogil:
        cdef int i
        for i in range(self.count):
            column_save(&self.columns[i], &self.columns[i].request)

    cdef void undo_request(self) noexcept nogil:
        cdef int i
        for i in range(self.count):
            column_restore(&self.columns[i], &self.columns[i].request)

    cpdef clear(self):
        """Drop all rows; keep the memory for the next ones, up to a cap."""
        cdef int i
        cdef column_t *column
        self.check()
        for i in range(self.count):
            column = &self.columns[i]
            column_clear(column)
            give_back(&column.data)
            give_back(&column.nulls)
            give_back(&column.indexes)
            give_back(&column.offsets)
            if column.dictionary.bytes.capacity > KEEP_BYTES or column.dictionary.slot_count > KEEP_SLOTS:
                dictionary_free(&column.dictionary)
        self.mark()

    def native(self):
        """The rows as an uncompressed ClickHouse Native block."""
        cdef buffer_t block
        memset(&block, 0, sizeof(block))
        self.check_rows()
        try:
            if self.append_block(&block) < 0:
                raise MemoryError
            return PyBytes_FromStringAndSize(<const char *> block.data, block.size)
        finally:
            buffer_free(&block)

    cdef int check_rows(self) except -1:
        """That each column has as many rows as the first."""
        cdef int i
        self.check()
        for i in range(self.count):
            if self.columns[i].rows != self.columns[0].rows:
                raise RuntimeError(f"column {self.layout[i][0]} has {self.columns[i].rows} rows, "
                                   f"{self.layout[0][0]} has {self.columns[0].rows}")
        return 0

    cdef int append_block(self, buffer_t *block) noexcept nogil:
        cdef int i, status
        status = buffer_append_varint(block, self.count)
        status |= buffer_append_varint(block, self.columns[0].rows)
        for i in range(self.count):
            status |= buffer_append(block, self.heads[i].data, self.heads[i].size)
            status |= append_column(block, &self.columns[i])
        return NO_MEMORY if status != 0 else OK

    def cut(self, *, frame, int frame_column=-1, int row_column=-1, compression="lz4"):
        """The rows as a compressed Native block, identified by ``frame``; the columns are empty again."""
        cdef buffer_t block, out
        cdef int status
        memset(&block, 0, sizeof(block))
        memset(&out, 0, sizeof(out))
        if compression not in ("lz4", "none"):
            raise ValueError(f"compression is lz4 or none, not {compression!r}")
        self.check_rows()
        self.identify(frame, frame_column, row_column)
        self.lent = True
        try:
            if self.size() > RELEASE_BYTES:
                with nogil:
                    status = self.append_block(&block)
            else:
                status = self.append_block(&block)
            if status < 0:
                raise MemoryError
            append_frames(&out, block.data, block.size, compression == "lz4")
            whole = PyBytes_FromStringAndSize(<const char *> out.data, out.size)
        finally:
            self.lent = False
            buffer_free(&block)
            buffer_free(&out)
        self.clear()
        return whole

    cdef int identify(self, uint64_t frame, int frame_column, int row_column) except -1:
        """Write the rows' identity: the frame's number, and the row's number within it."""
        cdef size_t row, rows = self.columns[0].rows
        cdef uint32_t number
        if frame_column >= self.count or row_column >= self.count:
            raise IndexError("no such column")
        if frame_column >= 0:
            if self.columns[frame_column].kind != KIND_FIXED or self.columns[frame_column].width != 8:
                raise ValueError("the frame's column must be UInt64")
            for row in range(rows):
                memcpy(self.columns[frame_column].data.data + row * 8, &frame, 8)
        if row_column >= 0:
            if self.columns[row_column].kind != KIND_FIXED or self.columns[row_column].width != 4:
                raise ValueError("the row's column must be UInt32")
            for row in range(rows):
                number = <uint32_t> row
                memcpy(self.columns[row_column].data.data + row * 4, &number, 4)
        return 0


def block_checksum(data):
    """The 16 bytes in front of a compressed frame, for what follows them."""
    cdef Py_buffer view
    cdef uint64_t[2] checksum
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        cityhash128(<const uint8_t *> view.buf, view.len, checksum)
    finally:
        PyBuffer_Release(&view)
    return PyBytes_FromStringAndSize(<const char *> checksum, 16)


cdef int append_frames(buffer_t *out, const uint8_t *data, size_t size, bint lz4) except -1:
    """Bytes in ClickHouse's compressed framing; a frame that does not shrink is stored as it is."""
    cdef size_t start, length, body_size
    cdef const uint8_t *body
    cdef uint8_t method
    cdef int status
    cdef bytes packed
    for start in range(0, size, FRAME_BYTES):
        length = min(<size_t> FRAME_BYTES, size - start)
        body = data + start
        body_size = length
        if lz4:
            # It lets go of the GIL by itself.
            packed = lz4_block.compress(<const uint8_t[:length]> body, store_size=False)
            if <size_t> len(packed) < length:
                body = <const uint8_t *> <const char *> packed
                body_size = len(packed)
        method = METHOD_NONE if body == data + start else METHOD_LZ4
        if size > RELEASE_BYTES:
            with nogil:
                status = append_frame(out, method, body, body_size, length)
        else:
            status = append_frame(out, method, body, body_size, length)
        if status < 0:
            raise MemoryError
    return 0


cdef int append_frame(buffer_t *out, uint8_t method, const uint8_t *data, size_t size,
                      size_t uncompressed) noexcept nogil:
    cdef uint32_t packed_size = <uint32_t> (size + 9)
    cdef uint32_t uncompressed_size = <uint32_t> uncompressed
    cdef uint64_t[2] checksum
    cdef uint8_t *header
    if buffer_reserve(out, size + 25) < 0:
        return NO_MEMORY
    header = out.data + out.size
    header[16] = method
    memcpy(header + 17, &packed_size, 4)
    memcpy(header + 21, &uncompressed_size, 4)
    memcpy(header + 25, data, size)
    cityhash128(header + 16, size + 9, checksum)
    memcpy(header, checksum, 16)
    out.size += size + 25
    return OK

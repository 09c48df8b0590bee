# What one request came to: its counts, and how a failure inside becomes an error outside.

RECORD_BYTES_MAX = 1 << 20
VALUE_DEPTH_MAX = 32
JSON_DEPTH_MAX = 64

cdef enum:
    MAX_RECORD_BYTES = 1 << 20
    MAX_VALUE_DEPTH = 32
    MAX_JSON_DEPTH = 64
    MAX_OTLP_JSON_DEPTH = 192
    JOINED_OVERHEAD = 64            # what a buffer costs besides its bytes

cdef enum:
    OK = 0
    MALFORMED = -1      # error_at and error_text say where and what
    NO_MEMORY = -2
    TOO_LARGE = -3      # the columns would outgrow their limit
    INVALID = -4        # a well-formed entry that is not acceptable

cdef enum:
    # in the order of schema.SOURCES, which a check at import holds
    S_TIME, S_OBSERVED_TIME, S_TRACE_ID, S_SPAN_ID, S_FLAGS, S_SEVERITY_TEXT, S_SEVERITY_NUMBER,
    S_BODY, S_ATTRIBUTES, S_EVENT_NAME, S_RECORD_ID,
    S_SCOPE_NAME, S_SCOPE_VERSION, S_SCOPE_ATTRIBUTES, S_SCOPE_SCHEMA_URL,
    S_RESOURCE_ATTRIBUTES, S_RESOURCE_SCHEMA_URL, S_SERVICE_NAME,
    S_PROJECT_ID, S_DIALECT,
    S_FRAME, S_ROW,
    SOURCE_COUNT

if SOURCE_COUNT != len(_SOURCES) or _SOURCES.index("scope_name") != S_SCOPE_NAME or _SOURCES.index("row") != S_ROW:
    raise ImportError("gateway._native was built for another schema.SOURCES; build it again")

cdef enum:
    OUTPUTS_MAX = 4

ctypedef struct text_t:
    # Borrowed bytes.
    const uint8_t *p
    size_t size

cdef enum:
    GENAI_KEYS_MAX = 64
    GENAI_COLUMNS_MAX = 64
    GENAI_ALTERNATIVES_MAX = 4

ctypedef struct genai_column_t:
    # Where a column of a GenAI table comes from: numbers of keys, or FROM_..., the first present counts.
    int column
    int alternatives[GENAI_ALTERNATIVES_MAX]
    bint content                        # what was told or answered: personal data

ctypedef struct genai_plan_t:
    text_t keys[GENAI_KEYS_MAX]
    int key_count
    genai_column_t columns[GENAI_COLUMNS_MAX]
    int column_count

ctypedef struct output_t:
    column_t *columns
    int count
    column_t *source[SOURCE_COUNT]      # NULL where the table has no such column
    size_t rows                         # written by this request
    size_t group_rows                   # of those, of the scope being read
    genai_plan_t *genai           # NULL for a table that takes every record

ctypedef struct decoder_t:
    # of the request
    output_t outputs[OUTPUTS_MAX]
    int output_count
    const uint8_t *start
    size_t size
    int64_t arrival_ns
    int64_t time_min_ns
    int64_t time_max_ns
    size_t column_bytes_start
    size_t column_bytes_max
    size_t content_bytes_max            # of what GenAI events were told and answered
    text_t project_id
    text_t dialect
    text_t trace_id                     # for rows that have none
    # of what went wrong
    const uint8_t *error_at
    const char *error_text
    # counts
    size_t rows
    size_t records
    size_t rejected_depth
    size_t rejected_size
    int64_t first_rejected
    bint first_rejected_depth
    size_t attributes_cut
    size_t timestamps_clamped
    size_t repeated                     # rows that were not written, being kept already
    text_t event                        # name of the record's event, in the body or in event_name
    # work space, kept from record to record
    bint counting                       # only the first output's pass counts
    bint too_deep
    bint has_uid
    text_t uid_seed                     # empty: the records' uids do not matter
    buffer_t uids                       # an entry of each record that has one (key_cells.pyx), its number at 28
    const uint8_t *known                # such entries, with the parts that are kept
    size_t known_size
    size_t known_at
    buffer_t scratch
    buffer_t event_name
    buffer_t record_id
    buffer_t service_name               # of the resource being read
    buffer_t *joined                    # buffers of split sub-messages, until what they are in was read
    size_t joined_count
    size_t joined_capacity
    size_t joined_bytes                 # held by them
    size_t copied_bytes                 # that went into one, ever


cdef class Decoded:
    """What one request came to."""

    cdef readonly object rows, rejected, attributes_cut, timestamps_clamped, message, problems, outputs
    cdef readonly object uids, repeated

    def __repr__(self):
        return f"Decoded(rows={self.rows}, rejected={self.rejected})"


cdef Decoded counts_of(decoder_t *d):
    cdef int i
    cdef Decoded decoded = Decoded.__new__(Decoded)
    decoded.rows = d.rows
    decoded.attributes_cut = d.attributes_cut
    decoded.timestamps_clamped = d.timestamps_clamped
    decoded.repeated = d.repeated
    decoded.uids = PyBytes_FromStringAndSize(<const char *> d.uids.data, d.uids.size) if d.uids.size else b""
    decoded.rejected = {}
    decoded.message = ""
    decoded.problems = ()
    decoded.outputs = tuple([d.outputs[i].rows for i in range(d.output_count)])
    if d.rejected_depth:
        decoded.rejected["depth"] = d.rejected_depth
    if d.rejected_size:
        decoded.rejected["size"] = d.rejected_size
    if d.first_rejected >= 0:
        decoded.message = (
            f"log record {d.first_rejected} was rejected: "
            + (f"a value nests deeper than {MAX_VALUE_DEPTH} levels; flatten it" if d.first_rejected_depth
               else f"it is larger than {MAX_RECORD_BYTES} bytes; split or shorten it")
        )
    return decoded


cdef int bind_outputs(decoder_t *d, tuple layouts, list sources, tuple outputs) except -1:
    """Point the decoder at the columns; they must have the layouts the plan was made for."""
    cdef Columns columns
    cdef int i, other, source
    cdef list numbers
    if len(outputs) != len(layouts):
        raise ValueError(f"the plan has {len(layouts)} outputs, {len(outputs)} were given")
    d.output_count = 0
    d.column_bytes_start = 0
    for i in range(len(layouts)):
        columns = <Columns?> outputs[i]     # None is none either
        columns.check()
        for other in range(i):
            if d.outputs[other].columns == columns.columns:
                raise ValueError(f"output {i} is output {other} again")
        if columns.layout is not layouts[i] and columns.layout != layouts[i]:
            raise ValueError(f"output {i} does not have the layout of the plan")
        columns.begin_request()
        d.outputs[i].columns = columns.columns
        d.outputs[i].count = columns.count
        d.outputs[i].rows = 0
        d.outputs[i].group_rows = 0
        d.outputs[i].genai = NULL
        numbers = sources[i]
        for source in range(SOURCE_COUNT):
            d.outputs[i].source[source] = NULL if numbers[source] < 0 else &columns.columns[<int> numbers[source]]
        d.output_count += 1
        d.column_bytes_start += columns.size()
    return 0


cdef list columns_of_sources(layout, feeds):
    """For each source the number of the column it feeds, or -1; ValueError where the types do not fit."""
    cdef list numbers = [-1] * SOURCE_COUNT
    types = dict(layout)
    places = {name: place for place, (name, _) in enumerate(layout)}
    for name, source in feeds.items():
        if source not in _SOURCES:
            raise ValueError(f"column {name}: there is no source {source!r}")
        if name not in places:
            raise ValueError(f"there is no column {name}")
        allowed = SOURCE_TYPES.get(source, ("String", "LowCardinality(String)"))
        if types[name] not in allowed:
            raise ValueError(f"column {name}: {source} cannot feed a {types[name]}")
        numbers[_SOURCES.index(source)] = places[name]
    return numbers


cdef dict SOURCE_TYPES = {
    "time": ("DateTime64(9)",),
    "observed_time": ("DateTime64(9)",),
    "flags": ("UInt8", "UInt16", "UInt32", "UInt64"),
    "severity_number": ("UInt8", "UInt16", "UInt32", "UInt64", "Int8", "Int16", "Int32", "Int64"),
    "attributes": ("Map(LowCardinality(String), String)",),
    "scope_attributes": ("Map(LowCardinality(String), String)",),
    "resource_attributes": ("Map(LowCardinality(String), String)",),
    "frame": ("UInt64",),
    "row": ("UInt32",),
}


cdef size_t grown(decoder_t *d) noexcept nogil:
    """Bytes that this request has added to its columns, and will at least add where columns are filled last."""
    cdef size_t total = 0, rows
    cdef int i, c
    cdef output_t *output
    for i in range(d.output_count):
        output = &d.outputs[i]
        rows = most_rows(output)
        for c in range(output.count):
            total += column_bytes(&output.columns[c])
            total += (rows - output.columns[c].rows) * column_least_bytes(&output.columns[c])
    return total - d.column_bytes_start


cdef inline size_t most_rows(output_t *output) noexcept nogil:
    """The rows of the column that has the most of them."""
    cdef size_t rows = 0
    cdef int c
    for c in range(output.count):
        rows = max(rows, output.columns[c].rows)
    return rows


cdef int fill_request(decoder_t *d) noexcept nogil:
    """What every row of the request has in common, and the defaults of the columns that nothing fed."""
    cdef int i, c
    cdef output_t *output
    cdef column_t *column
    cdef size_t missing, rows
    for i in range(d.output_count):
        output = &d.outputs[i]
        rows = output.rows
        if output.source[S_PROJECT_ID] != NULL:
            if column_fill_text(output.source[S_PROJECT_ID], d.project_id.p, d.project_id.size, rows) < 0:
                return NO_MEMORY
        if output.source[S_DIALECT] != NULL:
            if column_fill_text(output.source[S_DIALECT], d.dialect.p, d.dialect.size, rows) < 0:
                return NO_MEMORY
        missing = most_rows(output)
        for c in range(output.count):
            column = &output.columns[c]
            if column.rows < missing and column_fill_default(column, missing - column.rows) < 0:
                return NO_MEMORY
    return OK


cdef void release_joined(decoder_t *d, size_t count) noexcept nogil:
    """Free what was joined since there were ``count`` buffers."""
    while d.joined_count > count:
        d.joined_count -= 1
        d.joined_bytes -= JOINED_OVERHEAD + d.joined[d.joined_count].size
        buffer_free(&d.joined[d.joined_count])


cdef void free_decoder(decoder_t *d) noexcept nogil:
    buffer_free(&d.scratch)
    buffer_free(&d.event_name)
    buffer_free(&d.record_id)
    buffer_free(&d.service_name)
    buffer_free(&d.uids)
    release_joined(d, 0)
    free(d.joined)


cdef object borrow(dict constants, str name, text_t *text):
    """The constant's bytes, which the caller keeps alive while ``text`` is in use."""
    cdef bytes encoded = str(constants.get(name, "")).encode("utf-8", "replace")
    text.p = <const uint8_t *> <const char *> encoded
    text.size = len(encoded)
    return encoded


cdef int begin(decoder_t *d, Py_buffer *view, int64_t arrival_ns, int64_t time_min_ns, int64_t time_max_ns,
               size_t column_bytes_max) except -1:
    memset(d, 0, sizeof(decoder_t))
    if not 0 <= time_min_ns <= time_max_ns:
        raise ValueError("time_min_ns must not be above time_max_ns, nor negative")
    d.start = <const uint8_t *> view.buf
    d.size = view.len
    d.arrival_ns = min(max(arrival_ns, time_min_ns), time_max_ns)
    d.time_min_ns = time_min_ns
    d.time_max_ns = time_max_ns
    d.column_bytes_max = column_bytes_max
    d.content_bytes_max = SIZE_MAX
    d.first_rejected = -1
    return 0


cdef int lend(tuple outputs, bint lent) except -1:
    """Say whether the columns are in use by a call without the GIL."""
    cdef Columns columns
    for columns in outputs:
        columns.lent = lent
    return 0


cdef bint may_release(Py_buffer *view):
    """Whether a body is worth letting go of the GIL for, and cannot be changed by another thread meanwhile."""
    return view.readonly and view.len > RELEASE_BYTES


cdef object undo(tuple outputs):
    cdef Columns columns
    for columns in outputs:
        columns.undo_request()


cdef object failure(decoder_t *d, int status, str what):
    """The exception for a status; the text says where and what."""
    if status == NO_MEMORY:
        return MemoryError("out of memory while decoding")
    if status == TOO_LARGE:
        return TooLarge(
            f"the request takes more than {d.column_bytes_max} bytes once decoded; send fewer records at a time"
        )
    text = d.error_text.decode() if d.error_text != NULL else "malformed"
    if d.start != NULL and d.start <= d.error_at <= d.start + d.size:
        return Malformed(f"{what}: {text} at byte {d.error_at - d.start}", offset=d.error_at - d.start)
    return Malformed(f"{what}: {text}")

# OTLP logs in protobuf -> rows (opentelemetry-proto 1.11; docs/rows.md says what becomes what).
#
# ExportLogsServiceRequest  1 resource_logs*
# ResourceLogs              1 resource  2 scope_logs*  3 schema_url
# Resource                  1 attributes*  2 dropped_attributes_count  3 entity_refs*
# ScopeLogs                 1 scope  2 log_records*  3 schema_url
# InstrumentationScope      1 name  2 version  3 attributes*  4 dropped_attributes_count
# LogRecord                 1 time_unix_nano (fixed64)  2 severity_number  3 severity_text  5 body
#                           6 attributes*  7 dropped_attributes_count  8 flags (fixed32)  9 trace_id
#                           10 span_id  11 observed_time_unix_nano (fixed64)  12 event_name
#
# The records of a scope are written first; then what they share, once, and repeated for the rest.
# Everything known is walked to its end even when it is not kept, so that a malformed request is
# refused whole whichever of its records would have been rejected.

cdef extern from * nogil:
    """
    static const char *const SEVERITY_TEXTS[25] = {
        "", "TRACE", "TRACE2", "TRACE3", "TRACE4", "DEBUG", "DEBUG2", "DEBUG3", "DEBUG4",
        "INFO", "INFO2", "INFO3", "INFO4", "WARN", "WARN2", "WARN3", "WARN4",
        "ERROR", "ERROR2", "ERROR3", "ERROR4", "FATAL", "FATAL2", "FATAL3", "FATAL4",
    };
    """
    const char *SEVERITY_TEXTS[25]

ctypedef struct record_t:
    # A LogRecord's own fields, borrowed.
    uint64_t time_ns
    uint64_t observed_ns
    int32_t severity_number
    uint32_t flags
    text_t severity_text
    text_t trace_id
    text_t span_id
    text_t event_name
    value_t body
    bint named_by_attribute
    bint has_record_id


# ---------------------------------------------------------------- attributes

cdef inline bint is_key(text_t *key, const char *name, size_t size) noexcept nogil:
    return key.size == size and memcmp(key.p, name, size) == 0


cdef int append_attribute(decoder_t *d, column_t *map, text_t *key, value_t *value) noexcept nogil:
    """One more entry of the open map row; what is over the caps is cut and counted."""
    cdef int cut = 0, status
    status = map_key(map, key.p, key.size)
    if status < 0:
        return NO_MEMORY
    cut += status
    if unlikely_(d.content_bytes_max < C_VALUE_BYTES_MAX) and is_content(key):
        status = append_value(d, value, &map.data, d.content_bytes_max)
        if status < 0:
            return status
    else:
        status = append_value(d, value, &map.data, C_VALUE_BYTES_MAX)
        if status < 0:
            return status
        cut += status
    if d.counting:
        d.attributes_cut += cut
    return OK


cdef inline int short_size(const uint8_t *p, const uint8_t *end, size_t *size) noexcept nogil:
    """The bytes of a length of one or two bytes, or 0 where it is longer or cut off."""
    if p >= end:
        return 0
    if p[0] < 0x80:
        size[0] = p[0]
        return 1
    if end - p < 2 or p[1] >= 0x80:
        return 0
    size[0] = (p[0] & 0x7F) | <size_t> p[1] << 7
    return 2


cdef inline bint plain_key_value(const uint8_t *p, size_t size, text_t *key, value_t *value) noexcept nogil:
    """A KeyValue as every exporter writes it: the key, then a value of one scalar, and nothing else.

    False where it is anything else, be it wrong or just unusual; then the general reader decides.
    """
    cdef const uint8_t *end = p + size
    cdef size_t length = 0
    cdef uint64_t bits
    cdef int head, shift
    if size < 2 or p[0] != (1 << 3 | BYTES):
        return False
    head = short_size(p + 1, end, &length)
    p += 1 + head
    if head == 0 or length >= <size_t> (end - p):
        return False
    key.p = p
    key.size = length
    p += length
    if p[0] != (2 << 3 | BYTES):
        return False
    head = short_size(p + 1, end, &length)
    p += 1 + head
    if head == 0 or length != <size_t> (end - p) or length < 2:
        return False
    value.kind = p[0] >> 3
    if p[0] == (ANY_STRING << 3 | BYTES):
        head = short_size(p + 1, end, &value.size)
        value.p = p + 1 + head
        return head != 0 and value.size == <size_t> (end - value.p)
    if p[0] == (ANY_INT << 3 | VARINT) or p[0] == (ANY_BOOL << 3 | VARINT):
        bits = 0
        shift = 0
        p += 1
        while p < end and p[0] >= 0x80 and shift < 63:
            bits |= <uint64_t> (p[0] & 0x7F) << shift
            shift += 7
            p += 1
        if p + 1 != end or p[0] >= 0x80:
            return False
        value.bits = bits | <uint64_t> p[0] << shift
        return True
    if p[0] == (ANY_DOUBLE << 3 | FIXED64) and length == 9:
        memcpy(&value.bits, p + 1, 8)
        return True
    return False


cdef int record_attribute(decoder_t *d, column_t *map, record_t *record, const uint8_t *p, size_t size,
                          uint32_t number) noexcept nogil:
    """The record's attribute number ``number``, from 0. ``map`` NULL: checked only."""
    cdef text_t key, any_
    cdef value_t value
    cdef int status
    if not plain_key_value(p, size, &key, &value):
        status = read_key_value(d, p, size, 1, &key, &any_)
        if status < 0:
            return status
        status = read_any(d, any_.p, any_.size, 1, &value)
        if status < 0:
            return status
    status = OK
    if number >= C_ATTRIBUTES_MAX:
        if d.counting:
            d.attributes_cut += 1
        return check_dropped(d, &value)
    if is_key(&key, b"event.name", 10):
        record.named_by_attribute = True
        status = keep_text(d, &value, &d.event_name)
    elif is_key(&key, b"log.record.uid", 14):
        record.has_record_id = True
        d.has_uid = True
        status = keep_text(d, &value, &d.record_id)
    if status < 0:
        return status
    if map == NULL:
        return check_value(d, &value)
    return append_attribute(d, map, &key, &value)


cdef int keep_text(decoder_t *d, value_t *value, buffer_t *kept) noexcept nogil:
    """Keep a value's text, made once for all outputs, and let the value be that text: it may be a large map."""
    cdef int status
    if not d.counting:
        return OK
    kept.size = 0
    status = value_text(d, value, kept)
    value.kind = ANY_STRING
    value.p = kept.data
    value.size = kept.size
    return status


cdef int check_dropped(decoder_t *d, value_t *value) noexcept nogil:
    """Check a value that is not kept: how deep it nests does not matter then."""
    cdef bint too_deep = d.too_deep
    cdef int status = check_value(d, value)
    d.too_deep = too_deep
    return status


cdef int group_attributes(decoder_t *d, column_t *map, const uint8_t *p, size_t size, uint32_t number,
                          text_t *service_name) noexcept nogil:
    """One map row of the attributes (field ``number``) of a resource or scope; ``map`` NULL: checked only.

    ``service_name``: where to point at the text of service.name, which is left in ``d.service_name``; or NULL.
    """
    cdef cursor_t c
    cdef field_t field
    cdef text_t key, any_
    cdef value_t value, empty
    cdef int more
    cdef uint32_t seen = 0
    memset(&field, 0, sizeof(field))
    memset(&empty, 0, sizeof(empty))
    c.p = p
    c.end = p + size
    while True:
        more = next_field(d, &c, &field)
        if more <= 0:
            return more
        if field.wire != BYTES:
            continue
        if field.number != number:
            if number == 1 and field.number == 3:
                more = check_message(d, field.p, field.size)      # an EntityRef
                if more < 0:
                    return more
            continue
        more = read_key_value(d, field.p, field.size, 1, &key, &any_)
        if more < 0:
            return more
        more = read_any(d, any_.p, any_.size, 1, &value)
        if more < 0:
            return more
        seen += 1
        d.too_deep = False
        more = check_value(d, &value)
        if more < 0:
            return more
        if seen > C_ATTRIBUTES_MAX:
            d.attributes_cut += d.counting and map != NULL
            continue
        if d.too_deep:
            value = empty
            d.attributes_cut += d.counting and map != NULL
        if service_name != NULL and is_key(&key, b"service.name", 12):
            d.service_name.size = 0
            more = value_text(d, &value, &d.service_name)
            if more < 0:
                return more
            service_name.p = d.service_name.data
            service_name.size = d.service_name.size
        if map == NULL:
            continue
        more = append_attribute(d, map, &key, &value)
        if more < 0:
            return more


# ---------------------------------------------------------------- records

cdef int read_record(decoder_t *d, column_t *map, record_t *record, const uint8_t *p, size_t size) noexcept nogil:
    """A LogRecord's fields; its attributes go straight into the open row of ``map``."""
    cdef cursor_t c
    cdef field_t field
    cdef int more, bodies = 0
    cdef uint32_t attributes = 0
    cdef text_t body
    memset(&field, 0, sizeof(field))
    memset(record, 0, sizeof(record_t))
    body.p = p
    body.size = 0
    c.p = p
    c.end = p + size
    while True:
        more = next_field(d, &c, &field)
        if more <= 0:
            break
        if field.wire == BYTES:
            if field.number == 6:
                more = record_attribute(d, map, record, field.p, field.size, attributes)
                if more < 0:
                    return more
                attributes += 1
            elif field.number == 5:
                body.p = field.p
                body.size = field.size
                bodies += 1
            elif field.number == 3:
                record.severity_text.p = field.p
                record.severity_text.size = field.size
            elif field.number == 9:
                record.trace_id.p = field.p
                record.trace_id.size = field.size
            elif field.number == 10:
                record.span_id.p = field.p
                record.span_id.size = field.size
            elif field.number == 12:
                record.event_name.p = field.p
                record.event_name.size = field.size
        elif field.wire == FIXED64:
            if field.number == 1:
                record.time_ns = field.value
            elif field.number == 11:
                record.observed_ns = field.value
        elif field.wire == VARINT:
            if field.number == 2:
                record.severity_number = <int32_t> <uint32_t> field.value
        elif field.wire == FIXED32 and field.number == 8:
            record.flags = <uint32_t> field.value
    if more < 0:
        return more
    if unlikely_(bodies > 1):
        more = join_split(d, p, p + size, 5, PIECE_ANY, 1, &body)
        if more < 0:
            return more
    return read_any(d, body.p, body.size, 1, &record.body)


cdef inline int64_t clamp(decoder_t *d, uint64_t ns) noexcept nogil:
    if ns > <uint64_t> d.time_max_ns:
        return d.time_max_ns
    if ns < <uint64_t> d.time_min_ns:
        return d.time_min_ns
    return <int64_t> ns


cdef inline int append_id(column_t *column, text_t *id_, size_t size, text_t *otherwise) noexcept nogil:
    """A trace or span id of ``size`` bytes as hex; of another length or all zeros it is none."""
    cdef uint8_t[32] digits
    cdef uint8_t any_ = 0
    cdef size_t i
    if id_.size == size:
        for i in range(size):
            any_ |= id_.p[i]
        if any_:
            hex_encode(id_.p, size, digits)
            return column_append_text(column, digits, size * 2)
    return column_append_text(column, otherwise.p, otherwise.size)


cdef int append_time(decoder_t *d, output_t *output, record_t *record) noexcept nogil:
    """When it happened and when it was seen. A time that had to be clamped stays as an attribute."""
    cdef column_t *map = output.source[S_ATTRIBUTES]
    cdef uint64_t sent = record.time_ns if record.time_ns else record.observed_ns
    cdef int64_t time_ns = clamp(d, sent) if sent else d.arrival_ns
    cdef uint8_t[32] digits
    if unlikely_(sent != 0 and <uint64_t> time_ns != sent):
        d.timestamps_clamped += d.counting
        if map != NULL:
            if map_key(map, b"weir.timestamp", 14) < 0:
                return NO_MEMORY
            if append_sized_text(&map.data, digits, format_uint64(sent, digits), SIZE_MAX) < 0:
                return NO_MEMORY
    if output.source[S_TIME] != NULL:
        if column_append_fixed(output.source[S_TIME], <uint64_t> time_ns) < 0:
            return NO_MEMORY
    if output.source[S_OBSERVED_TIME] != NULL:
        if record.observed_ns:
            time_ns = clamp(d, record.observed_ns)
        else:
            time_ns = d.arrival_ns
        if column_append_fixed(output.source[S_OBSERVED_TIME], <uint64_t> time_ns) < 0:
            return NO_MEMORY
    return OK


cdef int append_record(decoder_t *d, output_t *output, record_t *record) noexcept nogil:
    """The record's own columns but for attributes and body, which are written already."""
    cdef column_t **to = output.source
    cdef text_t none
    cdef int status = 0, severity = record.severity_number
    cdef const char *text
    none.p = <const uint8_t *> b""
    none.size = 0
    if severity < 0 or severity > 24:
        severity = 0
    if append_time(d, output, record) < 0:
        return NO_MEMORY
    if to[S_TRACE_ID] != NULL:
        status |= append_id(to[S_TRACE_ID], &record.trace_id, 16, &d.trace_id)
    if to[S_SPAN_ID] != NULL:
        status |= append_id(to[S_SPAN_ID], &record.span_id, 8, &none)
    if to[S_FLAGS] != NULL:
        status |= column_append_fixed(to[S_FLAGS], record.flags & 0xFF)
    if to[S_SEVERITY_NUMBER] != NULL:
        status |= column_append_fixed(to[S_SEVERITY_NUMBER], <uint64_t> severity)
    if to[S_SEVERITY_TEXT] != NULL:
        if record.severity_text.size:
            status |= column_append_text(to[S_SEVERITY_TEXT], record.severity_text.p, record.severity_text.size)
        else:
            text = SEVERITY_TEXTS[severity]
            status |= column_append_text(to[S_SEVERITY_TEXT], <const uint8_t *> text, text_length(text))
    if to[S_EVENT_NAME] != NULL:
        if record.event_name.size:
            status |= column_append_text(to[S_EVENT_NAME], record.event_name.p, record.event_name.size)
        elif record.named_by_attribute:
            status |= column_append_text(to[S_EVENT_NAME], d.event_name.data, d.event_name.size)
        else:
            status |= column_append_text(to[S_EVENT_NAME], none.p, 0)
    if to[S_RECORD_ID] != NULL:
        if record.has_record_id:
            status |= column_append_text(to[S_RECORD_ID], d.record_id.data, d.record_id.size)
        else:
            status |= column_append_text(to[S_RECORD_ID], none.p, 0)
    return NO_MEMORY if status != 0 else OK


cdef inline size_t text_length(const char *text) noexcept nogil:
    cdef size_t length = 0
    while text[length]:
        length += 1
    return length


cdef int append_body(decoder_t *d, column_t *column, record_t *record) noexcept nogil:
    cdef int status
    if column == NULL:
        return check_value(d, &record.body)
    if column.kind == KIND_LOW:
        d.scratch.size = 0
        status = OK if content_limit(d) != SIZE_MAX else value_text(d, &record.body, &d.scratch)
        if status < 0:
            return status
        return NO_MEMORY if column_append_text(column, d.scratch.data, d.scratch.size) < 0 else OK
    status = append_value(d, &record.body, &column.data, content_limit(d))
    if status < 0:
        return status
    if column.nullable and buffer_append_byte(&column.nulls, 0) < 0:
        return NO_MEMORY
    column.rows += 1
    return OK


cdef int decode_record(decoder_t *d, output_t *output, const uint8_t *p, size_t size) noexcept nogil:
    """One record into one output: 1 when it became a row, 0 when it was rejected, or a failure."""
    cdef column_t *map = output.source[S_ATTRIBUTES]
    cdef column_t *body = output.source[S_BODY]
    cdef column_mark_t map_mark, body_mark
    cdef record_t record
    cdef int status
    cdef size_t cut = d.attributes_cut
    cdef bint too_large = size > MAX_RECORD_BYTES
    memset(&map_mark, 0, sizeof(map_mark))
    memset(&body_mark, 0, sizeof(body_mark))
    if too_large:
        map = NULL
        body = NULL
    d.too_deep = False
    if map != NULL:
        column_save(map, &map_mark)
        map_begin(map)
    if body != NULL:
        column_save(body, &body_mark)
    status = read_record(d, map, &record, p, size)
    if status < 0:
        return status
    name_event(d, &record)
    status = append_body(d, body, &record)
    if status < 0:
        return status
    if unlikely_(d.too_deep or too_large):
        if map != NULL:
            column_restore(map, &map_mark)
        if body != NULL:
            column_restore(body, &body_mark)
        d.attributes_cut = cut
        return 0
    status = append_record(d, output, &record)
    if status < 0:
        return status
    if map != NULL and map_end(map) < 0:
        return NO_MEMORY
    return 1


cdef int append_uid(decoder_t *d) noexcept nogil:
    """Note the record's uid, as the entry of a key."""
    cdef uint64_t[2] digest
    cdef uint32_t number = <uint32_t> d.records
    d.scratch.size = 0
    if buffer_append(&d.scratch, d.uid_seed.p, d.uid_seed.size) < 0 or buffer_append_byte(&d.scratch, 0) < 0:
        return NO_MEMORY
    if buffer_append(&d.scratch, d.record_id.data, d.record_id.size) < 0 or buffer_reserve(&d.uids, 32) < 0:
        return NO_MEMORY
    cityhash128(d.scratch.data, d.scratch.size, digest)
    memset(d.uids.data + d.uids.size, 0, 32)
    memcpy(d.uids.data + d.uids.size, digest, 16)
    memcpy(d.uids.data + d.uids.size + 28, &number, 4)
    d.uids.size += 32
    return OK


cdef inline uint8_t known_parts(decoder_t *d) noexcept nogil:
    """Which outputs have the next record already, a bit each."""
    cdef uint32_t number
    while d.known_at < d.known_size:
        memcpy(&number, d.known + d.known_at + 28, 4)
        if number > d.records:
            return 0
        d.known_at += 32
        if number == d.records:
            return d.known[d.known_at - 32 + 24]
    return 0


cdef int check_record(decoder_t *d, const uint8_t *p, size_t size) noexcept nogil:
    """A record that the first output has already, for what the others make of it; 1, or a failure."""
    cdef record_t record
    cdef int status = read_record(d, NULL, &record, p, size)
    if status < 0:
        return status
    name_event(d, &record)
    d.repeated += 1
    return 1


cdef int decode_into_all(decoder_t *d, const uint8_t *p, size_t size) noexcept nogil:
    """One record into every output that takes it: 1 kept, 0 rejected, or a failure."""
    cdef int i, more, status = 0
    cdef size_t joined = d.joined_count
    cdef uint8_t known = known_parts(d) if unlikely_(d.known_size) else 0
    d.has_uid = False
    for i in range(d.output_count):
        d.counting = i == 0
        if known >> i & 1:
            if i == 0:
                status = check_record(d, p, size)
                if status < 0:
                    return status
        elif d.outputs[i].genai == NULL:
            status = decode_record(d, &d.outputs[i], p, size)
            if status < 0:
                return status
            d.outputs[i].group_rows += status
        elif status == 1 and is_genai(&d.event):
            more = decode_genai(d, &d.outputs[i], p, size)
            if more < 0:
                return more
            d.outputs[i].group_rows += 1
    release_joined(d, joined)
    if unlikely_(d.has_uid) and status == 1 and d.uid_seed.size and d.record_id.size:
        more = append_uid(d)
        if more < 0:
            return more
    if status == 0:
        if d.first_rejected < 0:
            d.first_rejected = <int64_t> d.records
            d.first_rejected_depth = size <= MAX_RECORD_BYTES
        if size > MAX_RECORD_BYTES:
            d.rejected_size += 1
        else:
            d.rejected_depth += 1
    d.records += 1
    # Small records cannot outrun the limit by much between two looks.
    if size > 4096 or d.records % 64 == 0:
        if grown(d) > d.column_bytes_max:
            return TOO_LARGE
    return status


# ---------------------------------------------------------------- groups

ctypedef struct group_t:
    # What the records of one ScopeLogs share; what belongs to the resource holds for its other scopes too.
    text_t resource
    text_t resource_schema_url
    text_t service_name
    size_t resource_cut             # what the resource adds to attributes_cut for each scope with rows
    bint written[OUTPUTS_MAX]       # the newest row of the output's resource columns is of this resource
    text_t scope
    text_t scope_schema_url
    text_t scope_name
    text_t scope_version


cdef int read_scope(decoder_t *d, group_t *group) noexcept nogil:
    cdef cursor_t c
    cdef field_t field
    cdef int more
    memset(&field, 0, sizeof(field))
    c.p = group.scope.p
    c.end = group.scope.p + group.scope.size
    group.scope_name.size = 0
    group.scope_version.size = 0
    group.scope_name.p = c.p
    group.scope_version.p = c.p
    while True:
        more = next_field(d, &c, &field)
        if more <= 0:
            return more
        if field.wire == BYTES and field.number == 1:
            group.scope_name.p = field.p
            group.scope_name.size = field.size
        elif field.wire == BYTES and field.number == 2:
            group.scope_version.p = field.p
            group.scope_version.size = field.size


cdef inline bint outgrows(decoder_t *d, size_t bytes) noexcept nogil:
    """Whether that many bytes more are too many; a few are left to the look at every 64th record."""
    return bytes > 4096 and grown(d) + bytes > d.column_bytes_max


cdef int fill_group_map(decoder_t *d, column_t *map, text_t *message, uint32_t number, size_t rows,
                        bint again) noexcept nogil:
    """A map column that all rows of the group share: encoded once, then repeated within the limit.

    ``again``: the newest row is of this message already.
    """
    cdef int status
    cdef size_t row_bytes
    if not again:
        map_begin(map)
        status = group_attributes(d, map, message.p, message.size, number, NULL)
        if status < 0:
            return status
        if map_end(map) < 0:
            return NO_MEMORY
        rows -= 1
    row_bytes = map.data.size - map.values_start + 4 * (map_open_entries(map)) + 8
    if outgrows(d, row_bytes * rows):
        return TOO_LARGE
    return NO_MEMORY if map_repeat(map, rows) < 0 else OK


cdef int fill_group_text(decoder_t *d, column_t *column, text_t *text, size_t rows, bint again) noexcept nogil:
    """A text column that all rows of the group share; ``again``: the newest row has this text already."""
    cdef size_t row_bytes = 0
    if column == NULL:
        return OK
    if rows == 0:
        return OK
    if not again or column.kind != KIND_LOW:
        row_bytes = column.data.size
        if column_append_text(column, text.p, text.size) < 0:
            return NO_MEMORY
        row_bytes = column.data.size - row_bytes
        rows -= 1
    if outgrows(d, row_bytes * rows):
        return TOO_LARGE
    return NO_MEMORY if column_repeat_text(column, row_bytes, rows) < 0 else OK


cdef int fill_resource(decoder_t *d, int number, group_t *group, size_t rows) noexcept nogil:
    """The resource's columns for the group's rows.

    A resource is encoded once for each output, however many scopes it has: a large one with many small
    scopes would cost their product.
    """
    cdef column_t **to = d.outputs[number].source
    cdef bint again = group.written[number]
    cdef int status = OK
    cdef size_t cut = d.attributes_cut
    group.written[number] = True
    if to[S_RESOURCE_ATTRIBUTES] != NULL:
        status = fill_group_map(d, to[S_RESOURCE_ATTRIBUTES], &group.resource, 1, rows, again)
    if d.counting:
        if again:
            d.attributes_cut += group.resource_cut
        else:
            group.resource_cut = d.attributes_cut - cut
    if status == OK:
        status = fill_group_text(d, to[S_SERVICE_NAME], &group.service_name, rows, again)
    if status == OK:
        status = fill_group_text(d, to[S_RESOURCE_SCHEMA_URL], &group.resource_schema_url, rows, again)
    return status


cdef int fill_group(decoder_t *d, int number, group_t *group, size_t rows) noexcept nogil:
    """The resource's and the scope's columns for the group's rows in output ``number``."""
    cdef column_t **to = d.outputs[number].source
    cdef int status = fill_resource(d, number, group, rows)
    if status == OK and to[S_SCOPE_ATTRIBUTES] != NULL:
        status = fill_group_map(d, to[S_SCOPE_ATTRIBUTES], &group.scope, 3, rows, False)
    if status == OK:
        status = fill_group_text(d, to[S_SCOPE_NAME], &group.scope_name, rows, False)
    if status == OK:
        status = fill_group_text(d, to[S_SCOPE_VERSION], &group.scope_version, rows, False)
    if status == OK:
        status = fill_group_text(d, to[S_SCOPE_SCHEMA_URL], &group.scope_schema_url, rows, False)
    return status


cdef int decode_scope_logs(decoder_t *d, group_t *group, const uint8_t *p, size_t size) noexcept nogil:
    cdef cursor_t c
    cdef field_t field
    cdef int more, scopes = 0, i
    cdef size_t rows = 0
    memset(&field, 0, sizeof(field))
    group.scope.p = p
    group.scope.size = 0
    group.scope_schema_url.p = p
    group.scope_schema_url.size = 0
    for i in range(d.output_count):
        d.outputs[i].group_rows = 0
    c.p = p
    c.end = p + size
    while True:
        more = next_field(d, &c, &field)
        if more <= 0:
            break
        if field.wire != BYTES:
            continue
        if field.number == 2:
            more = decode_into_all(d, field.p, field.size)
            if more < 0:
                return more
            rows += more
        elif field.number == 1:
            group.scope.p = field.p
            group.scope.size = field.size
            scopes += 1
        elif field.number == 3:
            group.scope_schema_url.p = field.p
            group.scope_schema_url.size = field.size
    if more == 0 and unlikely_(scopes > 1):
        more = join_split(d, p, p + size, 1, PIECE_SCOPE, 1, &group.scope)
    if more == 0:
        more = read_scope(d, group)
    if more == 0:
        # So that a malformed one is refused even without records.
        more = group_attributes(d, NULL, group.scope.p, group.scope.size, 3, NULL)
    if more < 0 or rows == 0:
        return more
    d.rows += rows
    for i in range(d.output_count):
        d.counting = i == 0
        d.outputs[i].rows += d.outputs[i].group_rows
        if d.outputs[i].group_rows:
            more = fill_group(d, i, group, d.outputs[i].group_rows)
            if more < 0:
                return more
    return OK


cdef int decode_resource_logs(decoder_t *d, const uint8_t *p, size_t size) noexcept nogil:
    """Fields may come in any order: what the scopes share is found first."""
    cdef cursor_t c
    cdef field_t field
    cdef group_t group
    cdef size_t joined
    cdef int more, resources = 0
    memset(&field, 0, sizeof(field))
    memset(&group, 0, sizeof(group))
    group.resource.p = p
    group.resource_schema_url.p = p
    group.scope.p = p
    group.service_name.p = p
    c.p = p
    c.end = p + size
    while True:
        more = next_field(d, &c, &field)
        if more <= 0:
            break
        if field.wire == BYTES and field.number == 1:
            group.resource.p = field.p
            group.resource.size = field.size
            resources += 1
        elif field.wire == BYTES and field.number == 3:
            group.resource_schema_url.p = field.p
            group.resource_schema_url.size = field.size
    if more == 0 and unlikely_(resources > 1):
        more = join_split(d, p, p + size, 1, PIECE_RESOURCE, 1, &group.resource)
    if more == 0:
        more = group_attributes(d, NULL, group.resource.p, group.resource.size, 1, &group.service_name)
    if more < 0:
        return more
    joined = d.joined_count
    c.p = p
    while True:
        more = next_field(d, &c, &field)
        if more <= 0:
            return more
        if field.wire == BYTES and field.number == 2:
            more = decode_scope_logs(d, &group, field.p, field.size)
            release_joined(d, joined)
            if more < 0:
                return more


cdef int decode_request(decoder_t *d, const uint8_t *p, size_t size) noexcept nogil:
    cdef cursor_t c
    cdef field_t field
    cdef int more
    memset(&field, 0, sizeof(field))
    c.p = p
    c.end = p + size
    while True:
        more = next_field(d, &c, &field)
        if more < 0:
            return more
        if more == 0:
            break
        if field.wire == BYTES and field.number == 1:
            more = decode_resource_logs(d, field.p, field.size)
            release_joined(d, 0)
            if more < 0:
                return more
    if grown(d) > d.column_bytes_max:
        return TOO_LARGE
    return fill_request(d)


# ---------------------------------------------------------------- what Python calls

cdef class OtlpPlan:
    """Which field of an OTLP log record feeds which column, for each output."""

    cdef tuple layouts
    cdef list sources, kept
    cdef genai_plan_t genai[OUTPUTS_MAX]

    def __init__(self, outputs, *, genai=()):
        if not 1 <= len(outputs) <= OUTPUTS_MAX:
            raise ValueError(f"a plan has 1 to {OUTPUTS_MAX} outputs")
        if self.layouts is not None:
            raise RuntimeError("a plan is made once")
        if 0 in genai:
            raise ValueError("the first output takes every record")
        self.layouts = tuple(tuple((str(n), str(t)) for n, t in layout) for layout, _ in outputs)
        self.sources = []
        self.kept = []
        for i, (layout, (_, feeds)) in enumerate(zip(self.layouts, outputs)):
            if i in genai:
                feeds = plan_genai(&self.genai[<int> i], layout, dict(feeds), self.kept)
            self.sources.append(columns_of_sources(layout, feeds))


def otlp_protobuf(body, OtlpPlan plan not None, outputs, *, constants, int64_t arrival_ns,
                  int64_t time_min_ns=0, int64_t time_max_ns=INT64_MAX, size_t column_bytes_max=256 << 20,
                  content_bytes_max=None, bytes known=b""):
    """An ExportLogsServiceRequest in protobuf. Raises Malformed, TooLarge; then nothing was written."""
    cdef decoder_t d
    cdef Py_buffer view
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        begin(&d, &view, arrival_ns, time_min_ns, time_max_ns, column_bytes_max)
        if content_bytes_max is not None:
            d.content_bytes_max = content_bytes_max
        return decode_otlp(&d, plan, tuple(outputs), constants, d.start, d.size, may_release(&view), known)
    finally:
        free_decoder(&d)
        PyBuffer_Release(&view)


cdef object decode_otlp(decoder_t *d, OtlpPlan plan, tuple outputs, dict constants, const uint8_t *p, size_t size,
                        bint release, bytes known):
    cdef int status, i
    cdef object uid_seed = borrow(constants, "uid_seed", &d.uid_seed)
    cdef object project_id = borrow(constants, "project_id", &d.project_id)
    cdef object dialect = borrow(constants, "dialect", &d.dialect)
    cdef object trace_id = borrow(constants, "trace_id", &d.trace_id)
    if len(known) % 32:
        raise ValueError("known: no whole entries")
    d.known = <const uint8_t *> <const char *> known
    d.known_size = len(known)
    bind_outputs(d, plan.layouts, plan.sources, outputs)
    for i in range(d.output_count):
        if plan.genai[i].column_count:
            d.outputs[i].genai = &plan.genai[i]
    if release:
        lend(outputs, True)
        with nogil:
            status = decode_request(d, p, size)
        lend(outputs, False)
    else:
        status = decode_request(d, p, size)
    if status < 0:
        undo(outputs)
        raise failure(d, status, "not an OTLP logs request")
    return counts_of(d)

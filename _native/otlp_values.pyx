# OTLP's values: AnyValue and KeyValue in protobuf -> text (docs/rows.md, "AnyValue to text").
#
# KeyValue                  1 key  2 value  3 key_strindex
# AnyValue (one of)         1 string  2 bool  3 int  4 double  5 array  6 kvlist  7 bytes  8 strindex
# ArrayValue, KeyValueList  1 values*
#
# A message that comes in several pieces is merged, and every piece must be well-formed of itself.

cdef enum:
    ANY_NONE = 0
    ANY_STRING = 1
    ANY_BOOL = 2
    ANY_INT = 3
    ANY_DOUBLE = 4
    ANY_ARRAY = 5
    ANY_MAP = 6
    ANY_BYTES = 7
    WALK_DEPTH_MAX = 100        # how deep a value is still checked; protobuf's own limit is below

ctypedef struct value_t:
    # An AnyValue, one level of it.
    int kind
    uint64_t bits
    const uint8_t *p
    size_t size

cdef enum:
    # what a piece of a sub-message is
    PIECE_NONE, PIECE_ANY, PIECE_ARRAY, PIECE_MAP, PIECE_KEY_VALUE, PIECE_RESOURCE, PIECE_SCOPE, PIECE_ENTITY_REF


cdef int check_piece(decoder_t *d, int what, const uint8_t *p, size_t size, int depth) noexcept nogil:
    """That a sub-message which is not kept as it stands is well-formed, and every one inside it.

    Each occurrence is walked once, without joining any: pieces that are split again and again, level
    by level, cost no more than their bytes.
    """
    cdef cursor_t c
    cdef field_t field
    cdef int more, inner
    memset(&field, 0, sizeof(field))
    if depth > WALK_DEPTH_MAX:
        return OK
    c.p = p
    c.end = p + size
    while True:
        more = next_field(d, &c, &field)
        if more <= 0:
            return more
        if field.wire != BYTES:
            continue
        inner = piece_inside(what, field.number)
        if inner != PIECE_NONE:
            more = check_piece(d, inner, field.p, field.size, depth + (what == PIECE_ARRAY or what == PIECE_MAP))
            if more < 0:
                return more


cdef inline int piece_inside(int what, uint32_t number) noexcept nogil:
    """Which message field ``number`` of a sub-message is, if it is one."""
    if what == PIECE_ANY:
        return PIECE_ARRAY if number == ANY_ARRAY else PIECE_MAP if number == ANY_MAP else PIECE_NONE
    if what == PIECE_ARRAY:
        return PIECE_ANY if number == 1 else PIECE_NONE
    if what == PIECE_MAP:
        return PIECE_KEY_VALUE if number == 1 else PIECE_NONE
    if what == PIECE_KEY_VALUE:
        return PIECE_ANY if number == 2 else PIECE_NONE
    if what == PIECE_RESOURCE:
        return PIECE_KEY_VALUE if number == 1 else PIECE_ENTITY_REF if number == 3 else PIECE_NONE
    if what == PIECE_SCOPE:
        return PIECE_KEY_VALUE if number == 3 else PIECE_NONE
    return PIECE_NONE


cdef int read_any(decoder_t *d, const uint8_t *p, size_t size, int depth, value_t *value) noexcept nogil:
    """One level of an AnyValue: the last member set wins; pieces of one array or map are joined."""
    cdef cursor_t c
    cdef field_t field
    cdef int more
    cdef const uint8_t *at
    cdef const uint8_t *pieces_start = NULL
    cdef int pieces = 0
    cdef text_t whole
    memset(&field, 0, sizeof(field))
    value.kind = ANY_NONE
    value.size = 0
    value.p = p
    c.p = p
    c.end = p + size
    while True:
        at = c.p
        more = next_field(d, &c, &field)
        if more <= 0:
            break
        if field.wire == BYTES and (field.number == ANY_ARRAY or field.number == ANY_MAP):
            if value.kind == <int> field.number:
                pieces += 1
                more = check_piece(d, PIECE_ARRAY if value.kind == ANY_ARRAY else PIECE_MAP, value.p, value.size, depth)
                if more < 0:
                    return more
            else:
                pieces = 1
                pieces_start = at
        elif not ((field.wire == BYTES and (field.number == ANY_STRING or field.number == ANY_BYTES))
                  or (field.wire == VARINT and (field.number == ANY_BOOL or field.number == ANY_INT
                                                or field.number == 8))
                  or (field.wire == FIXED64 and field.number == ANY_DOUBLE)):
            continue
        if unlikely_((value.kind == ANY_ARRAY or value.kind == ANY_MAP) and value.kind != <int> field.number):
            more = check_piece(d, PIECE_ARRAY if value.kind == ANY_ARRAY else PIECE_MAP, value.p, value.size, depth)
            if more < 0:
                return more
        value.kind = field.number if field.number != 8 else ANY_NONE
        value.bits = field.value
        value.p = field.p
        value.size = field.size
    if more < 0:
        return more
    if (value.kind == ANY_ARRAY or value.kind == ANY_MAP) and pieces > 1:
        # pieces_start lies behind the last other member, so only this run is joined.
        more = join_split(d, pieces_start, p + size, value.kind,
                          PIECE_ARRAY if value.kind == ANY_ARRAY else PIECE_MAP, depth, &whole)
        value.p = whole.p
        value.size = whole.size
    return more


cdef int read_key_value(decoder_t *d, const uint8_t *p, size_t size, int depth, text_t *key,
                        text_t *any_) noexcept nogil:
    """A KeyValue: its key, and the bytes of its AnyValue, which is at ``depth``."""
    cdef cursor_t c
    cdef field_t field
    cdef int more, pieces = 0
    memset(&field, 0, sizeof(field))
    c.p = p
    c.end = p + size
    key.p = p
    key.size = 0
    any_.p = p
    any_.size = 0
    while True:
        more = next_field(d, &c, &field)
        if more <= 0:
            break
        if field.wire == BYTES:
            if field.number == 1:
                key.p = field.p
                key.size = field.size
            elif field.number == 2:
                any_.p = field.p
                any_.size = field.size
                pieces += 1
    if more < 0:
        return more
    if unlikely_(pieces > 1):
        return join_split(d, p, p + size, 2, PIECE_ANY, depth, any_)
    return OK


cdef inline size_t format_scalar(value_t *value, uint8_t *out, bint bare) noexcept nogil:
    """A boolean, integer or double as text in at most 32 bytes. ``bare``: NaN and infinities unquoted."""
    cdef double number
    cdef const char *name
    cdef size_t size
    if value.kind == ANY_BOOL:
        if value.bits:
            memcpy(out, b"true", 4)
            return 4
        memcpy(out, b"false", 5)
        return 5
    if value.kind == ANY_INT:
        return format_int64(<int64_t> value.bits, out)
    number = double_from_bits(value.bits)
    if number - number == 0:
        return format_double(number, out)
    if number != number:
        name = b'"NaN"'
        size = 5
    elif number > 0:
        name = b'"Infinity"'
        size = 10
    else:
        name = b'"-Infinity"'
        size = 11
    if bare:
        memcpy(out, name + 1, size - 2)
        return size - 2
    memcpy(out, name, size)
    return size


cdef int append_json(decoder_t *d, const uint8_t *p, size_t size, int depth, buffer_t *out) noexcept nogil:
    """An AnyValue inside an array or map as compact JSON; with ``out`` NULL it is only checked."""
    cdef value_t value
    cdef uint8_t[32] small
    cdef size_t length
    cdef int status = read_any(d, p, size, depth, &value)
    if status < 0:
        return status
    if depth > MAX_VALUE_DEPTH:
        d.too_deep = True
        out = NULL
        if depth > WALK_DEPTH_MAX:
            return OK
    if value.kind == ANY_ARRAY:
        return append_json_array(d, value.p, value.size, depth, out)
    if value.kind == ANY_MAP:
        return append_json_map(d, value.p, value.size, depth, out)
    if out == NULL:
        return OK
    if value.kind == ANY_NONE:
        status = buffer_append(out, b"null", 4)
    elif value.kind == ANY_STRING:
        status = buffer_append_json_string(out, value.p, value.size)
    elif value.kind == ANY_BYTES:
        status = buffer_append_byte(out, 34)
        status |= buffer_append_base64(out, value.p, value.size)
        status |= buffer_append_byte(out, 34)
    else:
        length = format_scalar(&value, small, False)
        status = buffer_append(out, small, length)
    return NO_MEMORY if status != 0 else OK


cdef int append_json_array(decoder_t *d, const uint8_t *p, size_t size, int depth, buffer_t *out) noexcept nogil:
    cdef cursor_t c
    cdef field_t field
    cdef int more, status
    cdef bint first = True
    memset(&field, 0, sizeof(field))
    c.p = p
    c.end = p + size
    if out != NULL and buffer_append_byte(out, 91) < 0:
        return NO_MEMORY
    while True:
        more = next_field(d, &c, &field)
        if more < 0:
            return more
        if more == 0:
            break
        if field.number != 1 or field.wire != BYTES:
            continue
        if out != NULL and not first and buffer_append_byte(out, 44) < 0:
            return NO_MEMORY
        first = False
        status = append_json(d, field.p, field.size, depth + 1, out)
        if status < 0:
            return status
    if out != NULL and buffer_append_byte(out, 93) < 0:
        return NO_MEMORY
    return OK


cdef int append_json_map(decoder_t *d, const uint8_t *p, size_t size, int depth, buffer_t *out) noexcept nogil:
    """A KeyValueList as a JSON object; of a key that comes twice the last one stays, at its place."""
    cdef cursor_t c
    cdef field_t field
    cdef int more, status
    cdef bint first = True
    cdef text_t key, any_
    cdef uint32_t entry = 0, entries = 0
    cdef int64_t index
    cdef dictionary_t keys
    memset(&field, 0, sizeof(field))
    memset(&keys, 0, sizeof(keys))
    if out != NULL and not is_single(d, p, size):
        status = last_places(d, p, size, depth, &keys, &entries)
        if status < 0:
            dictionary_free(&keys)
            return status
    c.p = p
    c.end = p + size
    status = OK
    if out != NULL and buffer_append_byte(out, 123) < 0:
        status = NO_MEMORY
    while status == OK:
        more = next_field(d, &c, &field)
        if more <= 0:
            status = more
            break
        if field.number != 1 or field.wire != BYTES:
            continue
        status = read_key_value(d, field.p, field.size, depth + 1, &key, &any_)
        if status < 0:
            break
        entry += 1
        if out == NULL:
            status = append_json(d, any_.p, any_.size, depth + 1, NULL)
            continue
        if entries > 1:
            index = dictionary_entry(&keys, key.p, key.size, SIZE_MAX, &more)
            if index < 0:
                status = NO_MEMORY
                break
            if keys.entries[index].position != entry:
                status = append_json(d, any_.p, any_.size, depth + 1, NULL)
                continue
        if not first and buffer_append_byte(out, 44) < 0:
            status = NO_MEMORY
            break
        first = False
        if buffer_append_json_string(out, key.p, key.size) < 0 or buffer_append_byte(out, 58) < 0:
            status = NO_MEMORY
            break
        status = append_json(d, any_.p, any_.size, depth + 1, out)
    dictionary_free(&keys)
    if status == OK and out != NULL and buffer_append_byte(out, 125) < 0:
        return NO_MEMORY
    return status


cdef inline bint is_single(decoder_t *d, const uint8_t *p, size_t size) noexcept nogil:
    """Whether a message has one field; what is malformed is found by whoever reads it."""
    cdef cursor_t c
    cdef field_t field
    c.p = p
    c.end = p + size
    return next_field(d, &c, &field) == 1 and c.p == c.end


cdef int last_places(decoder_t *d, const uint8_t *p, size_t size, int depth, dictionary_t *keys,
                     uint32_t *entries) noexcept nogil:
    """For each key of a KeyValueList the number of the last entry that has it, counted from 1."""
    cdef cursor_t c
    cdef field_t field
    cdef int more, cut = 0
    cdef text_t key, any_
    cdef int64_t index
    memset(&field, 0, sizeof(field))
    c.p = p
    c.end = p + size
    while True:
        more = next_field(d, &c, &field)
        if more <= 0:
            return more
        if field.number != 1 or field.wire != BYTES:
            continue
        more = read_key_value(d, field.p, field.size, depth + 1, &key, &any_)
        if more < 0:
            return more
        entries[0] += 1
        index = dictionary_entry(keys, key.p, key.size, SIZE_MAX, &cut)
        if index < 0:
            return NO_MEMORY
        keys.entries[index].position = entries[0]


cdef int value_text(decoder_t *d, value_t *value, buffer_t *out) noexcept nogil:
    """Append a top-level AnyValue's text to ``out`` (as sent: not yet repaired where a string)."""
    cdef uint8_t[32] small
    cdef size_t length
    if value.kind == ANY_NONE:
        return OK
    if value.kind == ANY_STRING:
        return NO_MEMORY if buffer_append(out, value.p, value.size) < 0 else OK
    if value.kind == ANY_BYTES:
        return NO_MEMORY if buffer_append_base64(out, value.p, value.size) < 0 else OK
    if value.kind == ANY_ARRAY:
        return append_json_array(d, value.p, value.size, 1, out)
    if value.kind == ANY_MAP:
        return append_json_map(d, value.p, value.size, 1, out)
    length = format_scalar(value, small, True)
    return NO_MEMORY if buffer_append(out, small, length) < 0 else OK


cdef inline int check_value(decoder_t *d, value_t *value) noexcept nogil:
    if value.kind == ANY_ARRAY:
        return append_json_array(d, value.p, value.size, 1, NULL)
    if value.kind == ANY_MAP:
        return append_json_map(d, value.p, value.size, 1, NULL)
    return OK


cdef inline int append_value(decoder_t *d, value_t *value, buffer_t *out, size_t max) noexcept nogil:
    """A value as sized text of at most ``max`` bytes; 1 when it was cut."""
    cdef uint8_t[32] small
    cdef int status
    if likely_(value.kind == ANY_STRING):
        status = append_sized_text(out, value.p, value.size, max)
    elif value.kind == ANY_INT or value.kind == ANY_DOUBLE or value.kind == ANY_BOOL:
        status = append_sized_text(out, small, format_scalar(value, small, True), max)
    else:
        d.scratch.size = 0
        status = value_text(d, value, &d.scratch)
        if status < 0:
            return status
        status = append_sized_text(out, d.scratch.data, d.scratch.size, max)
    return NO_MEMORY if status < 0 else status

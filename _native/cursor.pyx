# The protobuf reader. A read takes the cursor, which has its end: nothing can be read past it.
#
# Wire format (protobuf.dev/programming-guides/encoding): a message is a list of fields; a field is a
# tag (varint: field number << 3 | wire type) and a value. Wire types: 0 varint, 1 eight bytes,
# 2 length and bytes, 3 and 4 start and end of a group, 5 four bytes.

cdef enum:
    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    GROUP = 3
    GROUP_END = 4
    FIXED32 = 5
    GROUP_DEPTH_MAX = 100

ctypedef struct cursor_t:
    const uint8_t *p
    const uint8_t *end

ctypedef struct field_t:
    uint32_t number
    int wire
    uint64_t value          # VARINT, FIXED64, FIXED32
    const uint8_t *p        # BYTES
    size_t size


cdef inline int malformed(decoder_t *d, const uint8_t *at, const char *text) noexcept nogil:
    d.error_at = at
    d.error_text = text
    return MALFORMED


cdef inline int read_varint(decoder_t *d, cursor_t *c, uint64_t *value) noexcept nogil:
    cdef uint64_t result, byte
    cdef int shift
    if likely_(c.p < c.end and c.p[0] < 0x80):
        value[0] = c.p[0]
        c.p += 1
        return OK
    result = 0
    shift = 0
    while c.p < c.end:
        byte = c.p[0]
        c.p += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            value[0] = result
            return OK
        shift += 7
        if shift == 70:
            return malformed(d, c.p, "a varint of more than ten bytes")
    return malformed(d, c.p, "a varint is cut off")


cdef inline int read_tag(decoder_t *d, cursor_t *c, field_t *field) noexcept nogil:
    cdef const uint8_t *at = c.p
    cdef uint64_t tag = 0
    if read_varint(d, c, &tag) < 0:
        return MALFORMED
    if unlikely_(c.p - at > 5 or tag >> 32 != 0 or tag < 8):
        return malformed(d, at, "no such field tag")
    field.number = <uint32_t> (tag >> 3)
    field.wire = <int> (tag & 7)
    return OK


cdef int read_value(decoder_t *d, cursor_t *c, field_t *field) noexcept nogil:
    """The value behind a tag; a group is skipped."""
    cdef const uint8_t *at = c.p
    cdef uint64_t size = 0
    if field.wire == BYTES:
        if read_varint(d, c, &size) < 0:
            return MALFORMED
        if unlikely_(size > <uint64_t> (c.end - c.p) or c.p - at > 5):
            return malformed(d, at, "a length points past its end")
        field.p = c.p
        field.size = <size_t> size
        c.p += size
        return OK
    if field.wire == VARINT:
        return read_varint(d, c, &field.value)
    if field.wire == FIXED64:
        if c.end - c.p < 8:
            return malformed(d, at, "a 64-bit field is cut off")
        memcpy(&field.value, c.p, 8)
        c.p += 8
        return OK
    if field.wire == FIXED32:
        if c.end - c.p < 4:
            return malformed(d, at, "a 32-bit field is cut off")
        field.value = 0
        memcpy(&field.value, c.p, 4)
        c.p += 4
        return OK
    if field.wire == GROUP:
        return skip_group(d, c, field.number)
    return malformed(d, at, "no such wire type")


cdef int skip_group(decoder_t *d, cursor_t *c, uint32_t number) noexcept nogil:
    cdef uint32_t open_[GROUP_DEPTH_MAX]
    cdef int depth = 1
    cdef field_t field
    memset(&field, 0, sizeof(field))
    open_[0] = number
    while depth > 0:
        if c.p >= c.end:
            return malformed(d, c.p, "a group is not closed")
        if read_tag(d, c, &field) < 0:
            return MALFORMED
        if field.wire == GROUP:
            if depth == GROUP_DEPTH_MAX:
                return malformed(d, c.p, "groups nest too deep")
            open_[depth] = field.number
            depth += 1
        elif field.wire == GROUP_END:
            depth -= 1
            if open_[depth] != field.number:
                return malformed(d, c.p, "a group is closed by another's end")
        elif read_value(d, c, &field) < 0:
            return MALFORMED
    return OK


cdef inline int next_field(decoder_t *d, cursor_t *c, field_t *field) noexcept nogil:
    """1 and the next field, 0 at the end of the message, or MALFORMED."""
    cdef size_t left = <size_t> (c.end - c.p)
    if left == 0:
        return 0
    # Most fields are short texts and messages: a tag of one byte, a length of one byte.
    if left >= 2 and (c.p[0] & 0x87) == BYTES and c.p[0] >= 8 and c.p[1] < 0x80 and c.p[1] <= left - 2:
        field.number = c.p[0] >> 3
        field.wire = BYTES
        field.size = c.p[1]
        field.p = c.p + 2
        c.p += 2 + field.size
        return 1
    if read_tag(d, c, field) < 0 or read_value(d, c, field) < 0:
        return MALFORMED
    return 1


cdef int check_message(decoder_t *d, const uint8_t *p, size_t size) noexcept nogil:
    """That the bytes are fields, whatever they mean."""
    cdef cursor_t c
    cdef field_t field
    cdef int more
    memset(&field, 0, sizeof(field))
    c.p = p
    c.end = p + size
    while True:
        more = next_field(d, &c, &field)
        if more <= 0:
            return more


cdef int join_split(decoder_t *d, const uint8_t *p, const uint8_t *end, uint32_t number, int what, int depth,
                    text_t *whole) noexcept nogil:
    """The whole of a sub-message that came in several pieces: merging is appending the bytes.

    Each piece must be well-formed of itself; ``what`` and ``depth`` are those of ``check_piece``.
    """
    cdef cursor_t c
    cdef field_t field
    cdef int more
    cdef buffer_t *buffer
    cdef buffer_t *grown_
    cdef size_t i
    memset(&field, 0, sizeof(field))
    if d.joined_count == d.joined_capacity:
        d.joined_capacity = d.joined_capacity * 2 + 8
        grown_ = <buffer_t *> calloc(d.joined_capacity, sizeof(buffer_t))
        if grown_ == NULL:
            return NO_MEMORY
        for i in range(d.joined_count):
            grown_[i] = d.joined[i]
        free(d.joined)
        d.joined = grown_
    buffer = &d.joined[d.joined_count]
    memset(buffer, 0, sizeof(buffer_t))
    d.joined_count += 1
    d.joined_bytes += JOINED_OVERHEAD
    c.p = p
    c.end = end
    while True:
        more = next_field(d, &c, &field)
        if more < 0:
            return more
        if more == 0:
            break
        if field.number == number and field.wire == BYTES:
            if buffer_append(buffer, field.p, field.size) < 0:
                return NO_MEMORY
            d.joined_bytes += field.size
            d.copied_bytes += field.size
            # Pieces within pieces are copied once a level; nobody but an attacker does that with much.
            if d.joined_bytes > 4 * d.size + (1 << 20) or d.copied_bytes > 8 * d.size + (1 << 20):
                return TOO_LARGE
            more = check_piece(d, what, field.p, field.size, depth)
            if more < 0:
                return more
    whole.p = p
    if buffer.size:
        whole.p = buffer.data
    whole.size = buffer.size
    return OK

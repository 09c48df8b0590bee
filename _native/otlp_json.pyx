# OTLP/JSON -> OTLP protobuf, in one pass over the body and without objects; otlp_protobuf.pyx turns that
# into rows. So there is one place that knows what a record becomes, and the two encodings cannot differ.
#
# A message's length is not known before it is written, so five bytes are kept for it, and what it does not
# need is closed up afterwards. A member that comes again takes its earlier bytes out; what is not known is skipped.

cdef enum:
    M_REQUEST, M_RESOURCE_LOGS, M_RESOURCE, M_SCOPE_LOGS, M_SCOPE, M_RECORD, M_KEY_VALUE, M_ANY, M_ARRAY, M_KVLIST

cdef enum:
    J_STRING, J_HEX, J_BASE64, J_UINT64, J_INT64, J_DOUBLE, J_BOOL, J_SEVERITY, J_UINT32, J_MESSAGE, J_MESSAGES

ctypedef struct member_t:
    const char *camel
    const char *snake
    int number
    int kind
    int message

cdef member_t MEMBERS[10][12]
cdef int MEMBER_COUNTS[10]

cdef dict OTLP_MEMBERS = {
    # message: (lowerCamelCase, field number, kind, message)
    M_REQUEST: [("resourceLogs", 1, J_MESSAGES, M_RESOURCE_LOGS)],
    M_RESOURCE_LOGS: [("resource", 1, J_MESSAGE, M_RESOURCE), ("scopeLogs", 2, J_MESSAGES, M_SCOPE_LOGS),
                      ("schemaUrl", 3, J_STRING, 0)],
    M_RESOURCE: [("attributes", 1, J_MESSAGES, M_KEY_VALUE)],
    M_SCOPE_LOGS: [("scope", 1, J_MESSAGE, M_SCOPE), ("logRecords", 2, J_MESSAGES, M_RECORD),
                   ("schemaUrl", 3, J_STRING, 0)],
    M_SCOPE: [("name", 1, J_STRING, 0), ("version", 2, J_STRING, 0), ("attributes", 3, J_MESSAGES, M_KEY_VALUE)],
    M_RECORD: [("timeUnixNano", 1, J_UINT64, 0), ("observedTimeUnixNano", 11, J_UINT64, 0),
               ("severityNumber", 2, J_SEVERITY, 0), ("severityText", 3, J_STRING, 0), ("body", 5, J_MESSAGE, M_ANY),
               ("attributes", 6, J_MESSAGES, M_KEY_VALUE), ("flags", 8, J_UINT32, 0), ("traceFlags", 8, J_UINT32, 0),
               ("traceId", 9, J_HEX, 0), ("spanId", 10, J_HEX, 0), ("eventName", 12, J_STRING, 0)],
    M_KEY_VALUE: [("key", 1, J_STRING, 0), ("value", 2, J_MESSAGE, M_ANY)],
    M_ANY: [("stringValue", 1, J_STRING, 0), ("boolValue", 2, J_BOOL, 0), ("intValue", 3, J_INT64, 0),
            ("doubleValue", 4, J_DOUBLE, 0), ("arrayValue", 5, J_MESSAGE, M_ARRAY),
            ("kvlistValue", 6, J_MESSAGE, M_KVLIST), ("bytesValue", 7, J_BASE64, 0)],
    M_ARRAY: [("values", 1, J_MESSAGES, M_ANY)],
    M_KVLIST: [("values", 1, J_MESSAGES, M_KEY_VALUE)],
}
cdef list KEPT_NAMES = []


cdef bytes kept(str name):
    """The name's bytes, kept for as long as the module."""
    cdef bytes encoded = name.encode()
    KEPT_NAMES.append(encoded)
    return encoded


def _fill_members():
    cdef bytes camel, snake
    for message, rows in OTLP_MEMBERS.items():
        for place, (name, number, kind, inner) in enumerate(rows):
            camel = kept(name)
            snake = kept("".join("_" + letter.lower() if letter.isupper() else letter for letter in name))
            MEMBERS[<int> message][<int> place].camel = camel
            MEMBERS[<int> message][<int> place].snake = snake
            MEMBERS[<int> message][<int> place].number = number
            MEMBERS[<int> message][<int> place].kind = kind
            MEMBERS[<int> message][<int> place].message = inner
        MEMBER_COUNTS[<int> message] = len(rows)


_fill_members()

ctypedef struct transcoder_t:
    decoder_t *d
    json_t j
    buffer_t out
    buffer_t name           # a member's name that had escapes
    buffer_t work           # a value that had escapes
    const char *member      # of the value being read, for the message


cdef member_t *find_member(int message, text_t *name, int expected) noexcept nogil:
    """The member of that name, or NULL. ``expected``: where it stood last time, tried first."""
    cdef int i, count = MEMBER_COUNTS[message]
    if expected < count and same_name(name, MEMBERS[message][expected].camel):
        return &MEMBERS[message][expected]
    for i in range(count):
        if same_name(name, MEMBERS[message][i].camel) or same_name(name, MEMBERS[message][i].snake):
            return &MEMBERS[message][i]
    return NULL


cdef int wrong_type(transcoder_t *t, const uint8_t *at, const char *text) noexcept nogil:
    return malformed(t.d, at, text)


cdef int write_tag(transcoder_t *t, int number, int wire) noexcept nogil:
    return buffer_append_byte(&t.out, <uint8_t> (number << 3 | wire))


cdef int write_bytes(transcoder_t *t, int number, const uint8_t *p, size_t size) noexcept nogil:
    cdef int status = write_tag(t, number, BYTES)
    status |= buffer_append_varint(&t.out, size)
    status |= buffer_append(&t.out, p, size)
    return NO_MEMORY if status != 0 else OK


cdef inline int open_message(transcoder_t *t, int number, size_t *place) noexcept nogil:
    if buffer_reserve(&t.out, 6) < 0:
        return NO_MEMORY
    t.out.data[t.out.size] = <uint8_t> (number << 3 | BYTES)
    place[0] = t.out.size + 1
    t.out.size += 6
    return OK


cdef inline int close_message(transcoder_t *t, size_t place) noexcept nogil:
    """Write the length where its place was kept, and close up: sizes are then those of plain protobuf."""
    cdef size_t size = t.out.size - place - 5
    cdef size_t rest = size
    cdef size_t used = 1
    if size > 0x7FFFFFFF:
        return TOO_LARGE
    while rest >= 0x80:
        t.out.data[place + used - 1] = <uint8_t> (rest & 0x7F) | 0x80
        rest >>= 7
        used += 1
    t.out.data[place + used - 1] = <uint8_t> rest
    memmove(t.out.data + place + used, t.out.data + place + 5, size)
    t.out.size -= 5 - used
    return OK


cdef int transcode_message(transcoder_t *t, int message, int depth) noexcept nogil:
    """An object as the fields of a message; null is an empty one."""
    cdef size_t starts[12]
    cdef size_t ends[12]
    cdef string_t key
    cdef text_t name
    cdef member_t *member
    cdef json_value_t ignored
    cdef int i, row, expected = 0, status
    cdef size_t start, length
    skip_space(&t.j)
    if t.j.p < t.j.end and t.j.p[0] == 110:
        return read_word(t.d, &t.j, b"null", 4)
    if t.j.p >= t.j.end or t.j.p[0] != 123:
        return wrong_type(t, t.j.p, "expected an object")
    status = open_container(t.d, &t.j, 123, depth)
    for i in range(12):
        starts[i] = SIZE_MAX
    while status == 1:
        if read_member(t.d, &t.j, &key) < 0:
            return MALFORMED
        if string_text(&key, &t.name, &name) < 0:
            return NO_MEMORY
        member = find_member(message, &name, expected)
        if member == NULL:
            status = read_json(t.d, &t.j, &ignored, depth + 1)
        else:
            row = <int> (member - &MEMBERS[message][0])
            expected = row + 1
            if member.number == 8:
                row = 6                 # flags and traceFlags are one
            start = t.out.size
            t.member = member.camel
            status = transcode_member(t, member, depth + 1)
            if status == OK and unlikely_(starts[row] != SIZE_MAX):
                # The earlier one leaves; what came behind it moves up.
                length = ends[row] - starts[row]
                take_out(&t.out, starts[row], length)
                for i in range(12):
                    if starts[i] != SIZE_MAX and starts[i] > starts[row]:
                        starts[i] -= length
                        ends[i] -= length
                start -= length
            starts[row] = start
            ends[row] = t.out.size
        if status < 0:
            return status
        status = next_item(t.d, &t.j, 125)
    return status


cdef void take_out(buffer_t *buffer, size_t start, size_t length) noexcept nogil:
    memmove(buffer.data + start, buffer.data + start + length, buffer.size - start - length)
    buffer.size -= length


cdef int transcode_member(transcoder_t *t, member_t *member, int depth) noexcept nogil:
    """One member's value as its field; null writes nothing."""
    cdef size_t place = 0
    cdef int status
    skip_space(&t.j)
    if t.j.p < t.j.end and t.j.p[0] == 110:
        return read_word(t.d, &t.j, b"null", 4)
    if member.kind == J_MESSAGE:
        if open_message(t, member.number, &place) < 0:
            return NO_MEMORY
        status = transcode_message(t, member.message, depth)
        return status if status < 0 else close_message(t, place)
    if member.kind == J_MESSAGES:
        if t.j.p >= t.j.end or t.j.p[0] != 91:
            return wrong_type(t, t.j.p, "expected an array")
        status = open_container(t.d, &t.j, 91, depth)
        while status == 1:
            if open_message(t, member.number, &place) < 0:
                return NO_MEMORY
            status = transcode_message(t, member.message, depth + 1)
            if status < 0:
                return status
            status = close_message(t, place)
            if status < 0:
                return status
            status = next_item(t.d, &t.j, 93)
        return status
    return transcode_scalar(t, member, depth)


cdef int transcode_scalar(transcoder_t *t, member_t *member, int depth) noexcept nogil:
    cdef json_value_t value
    cdef string_t string
    cdef text_t text
    cdef int kind = member.kind
    if read_json(t.d, &t.j, &value, depth) < 0:
        return MALFORMED
    if value.type == 34:
        inside(&value, &string)
        if string_text(&string, &t.work, &text) < 0:
            return NO_MEMORY
        if kind == J_STRING:
            return write_bytes(t, member.number, text.p, text.size)
        if kind == J_HEX:
            return write_id(t, member.number, &text)
        if kind == J_BASE64:
            return write_base64(t, member.number, &text, value.p)
    elif value.type == 48:
        text.p = value.p
        text.size = <size_t> (value.end - value.p)
    elif kind == J_BOOL and (value.type == 116 or value.type == 102):
        if write_tag(t, member.number, VARINT) < 0 or buffer_append_byte(&t.out, value.type == 116) < 0:
            return NO_MEMORY
        return OK
    else:
        return wrong_scalar(t, kind, value.p)
    if kind == J_STRING or kind == J_HEX or kind == J_BASE64 or kind == J_BOOL:
        return wrong_scalar(t, kind, value.p)
    return write_number(t, member, &text, value.type == 34, value.p)


cdef int wrong_scalar(transcoder_t *t, int kind, const uint8_t *at) noexcept nogil:
    if kind == J_STRING or kind == J_HEX:
        return wrong_type(t, at, "expected a string")
    if kind == J_BASE64:
        return wrong_type(t, at, "expected a string in base64")
    if kind == J_BOOL:
        return wrong_type(t, at, "expected true or false")
    if kind == J_DOUBLE:
        return wrong_type(t, at, "expected a number")
    if kind == J_SEVERITY:
        return wrong_type(t, at, "expected a severity number or its name")
    return wrong_type(t, at, "expected an integer")


cdef int write_id(transcoder_t *t, int number, text_t *text) noexcept nogil:
    """Hex digits as bytes; what is not hex is no id."""
    cdef uint8_t[16] id_
    if text.size > 32 or text.size % 2 or hex_decode(text.p, text.size, id_) < 0:
        return OK
    return write_bytes(t, number, id_, text.size // 2)


cdef int write_base64(transcoder_t *t, int number, text_t *text, const uint8_t *at) noexcept nogil:
    cdef buffer_t decoded
    cdef ssize_t size
    cdef int status
    memset(&decoded, 0, sizeof(decoded))
    if buffer_reserve(&decoded, text.size + 1) < 0:
        return NO_MEMORY
    size = base64_decode(text.p, text.size, decoded.data)
    if size < 0:
        status = wrong_scalar(t, J_BASE64, at)
    else:
        status = write_bytes(t, number, decoded.data, <size_t> size)
    buffer_free(&decoded)
    return status


cdef int severity_by_name(text_t *name) noexcept nogil:
    """SEVERITY_NUMBER_INFO2 -> 10; -1 for no such name."""
    cdef int i
    cdef text_t rest
    if name.size < 16 or memcmp(name.p, b"SEVERITY_NUMBER_", 16) != 0:
        return -1
    rest.p = name.p + 16
    rest.size = name.size - 16
    if same_name(&rest, b"UNSPECIFIED"):
        return 0
    for i in range(1, 25):
        if same_name(&rest, SEVERITY_TEXTS[i]):
            return i
    return -1


cdef int write_number(transcoder_t *t, member_t *member, text_t *text, bint quoted, const uint8_t *at) noexcept nogil:
    """A number, also one in a string, as the field's type."""
    cdef int64_t integer = 0
    cdef uint64_t bits = 0
    cdef double number = 0
    cdef int kind = member.kind, status = 0
    if kind == J_DOUBLE:
        if parse_double(text.p, text.size, &number) < 0:
            if not quoted:
                return wrong_scalar(t, kind, at)
            if same_name(text, b"NaN"):
                bits = 0x7FF8000000000000
            elif same_name(text, b"Infinity"):
                bits = 0x7FF0000000000000
            elif same_name(text, b"-Infinity"):
                bits = 0xFFF0000000000000
            else:
                return wrong_scalar(t, kind, at)
        else:
            bits = bits_from_double(number)
        status = write_tag(t, member.number, FIXED64) | buffer_append(&t.out, &bits, 8)
    elif kind == J_UINT64:
        if parse_uint64(text.p, text.size, &bits) < 0 and parse_whole(text.p, text.size, &bits) < 0:
            return wrong_scalar(t, kind, at)
        status = write_tag(t, member.number, FIXED64) | buffer_append(&t.out, &bits, 8)
    else:
        if kind == J_SEVERITY and quoted:
            integer = severity_by_name(text)
            status = integer < 0
        else:
            status = 1
        if status and parse_integral(text.p, text.size, &integer) < 0:
            return wrong_scalar(t, kind, at)
        if kind == J_SEVERITY and integer != <int64_t> <int32_t> integer:
            return wrong_scalar(t, kind, at)
        if kind == J_UINT32:
            if integer != <int64_t> <uint32_t> integer:
                return wrong_scalar(t, kind, at)
            status = write_tag(t, member.number, FIXED32) | buffer_append(&t.out, &integer, 4)
        else:
            status = write_tag(t, member.number, VARINT) | buffer_append_varint(&t.out, <uint64_t> integer)
    return NO_MEMORY if status != 0 else OK


cdef int transcode(transcoder_t *t) noexcept nogil:
    cdef int status
    skip_space(&t.j)
    if t.j.p >= t.j.end or t.j.p[0] != 123:
        return wrong_type(t, t.j.p, "expected an object")
    status = transcode_message(t, M_REQUEST, 0)
    return status if status < 0 else whole_json(t.d, &t.j)


def otlp_json(body, OtlpPlan plan not None, outputs, *, constants, int64_t arrival_ns,
              int64_t time_min_ns=0, int64_t time_max_ns=INT64_MAX, size_t column_bytes_max=256 << 20,
              content_bytes_max=None, bytes known=b""):
    """The same in OTLP/JSON: the same rows as the protobuf of the same message."""
    cdef decoder_t d
    cdef transcoder_t t
    cdef Py_buffer view
    cdef int status
    memset(&t, 0, sizeof(t))
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        begin(&d, &view, arrival_ns, time_min_ns, time_max_ns, column_bytes_max)
        t.d = &d
        if content_bytes_max is not None:
            d.content_bytes_max = content_bytes_max
        start_json(&d, &t.j, MAX_OTLP_JSON_DEPTH, False)
        if may_release(&view):
            with nogil:
                status = transcode(&t)
        else:
            status = transcode(&t)
        if status < 0:
            what = "not an OTLP logs request in JSON"
            if t.member != NULL and d.error_text != NULL and (<bytes> d.error_text).startswith(b"expected a"):
                what = f"{what}, near {t.member.decode()}"
            raise failure(&d, status, what)
        d.start = NULL
        d.size = t.out.size
        return decode_otlp(&d, plan, tuple(outputs), constants, t.out.data, t.out.size, may_release(&view), known)
    finally:
        buffer_free(&t.out)
        buffer_free(&t.name)
        buffer_free(&t.work)
        free_decoder(&d)
        PyBuffer_Release(&view)

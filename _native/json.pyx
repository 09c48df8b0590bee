# The JSON tokenizer (RFC 8259). It makes no objects: strings, numbers and whole values are spans of
# the body, checked once when they are passed over.

ctypedef struct json_t:
    const uint8_t *p
    const uint8_t *end
    int depth_max
    bint nan_literals

ctypedef struct string_t:
    # The inside of a JSON string, as it stands in the body.
    const uint8_t *p
    size_t size
    bint escaped

ctypedef struct json_value_t:
    # A checked value; ``type``: one of " { [ t f n 0 (number) N (NaN, Infinity, -Infinity)
    int type
    bint escaped            # of a string: whether it has escapes
    const uint8_t *p
    const uint8_t *end
    # Of an object whose members were noted (entries_t.noted): which of them are its own, and all within these.
    uint32_t members
    uint32_t members_end


cdef inline void skip_space(json_t *j) noexcept nogil:
    while j.p < j.end and (j.p[0] == 32 or j.p[0] == 10 or j.p[0] == 13 or j.p[0] == 9):
        j.p += 1


cdef inline int expect(decoder_t *d, json_t *j, uint8_t byte, const char *text) noexcept nogil:
    if unlikely_(j.p >= j.end or j.p[0] != byte):
        return malformed(d, j.p, text)
    j.p += 1
    return OK


cdef inline bint is_hex(uint8_t byte) noexcept nogil:
    return 48 <= byte <= 57 or 65 <= byte <= 70 or 97 <= byte <= 102


cdef int read_escape(decoder_t *d, json_t *j) noexcept nogil:
    """Pass over one escape, which begins at the backslash."""
    cdef uint8_t byte
    cdef int i
    if j.end - j.p < 2:
        return malformed(d, j.p, "a string is cut off")
    byte = j.p[1]
    if byte == 117:
        if j.end - j.p < 6:
            return malformed(d, j.p, "a string is cut off")
        for i in range(2, 6):
            if not is_hex(j.p[i]):
                return malformed(d, j.p, "\\u needs four hex digits")
        j.p += 6
        return OK
    if not (byte == 34 or byte == 92 or byte == 47 or byte == 98 or byte == 102 or byte == 110
            or byte == 114 or byte == 116):
        return malformed(d, j.p, "no such escape in a string")
    j.p += 2
    return OK


cdef inline int read_string(decoder_t *d, json_t *j, string_t *string) noexcept nogil:
    """A string; the cursor is on its quote."""
    if expect(d, j, 34, "expected a string") < 0:
        return MALFORMED
    string.p = j.p
    string.escaped = False
    while True:
        j.p += scan_json_string(j.p, <size_t> (j.end - j.p))
        if unlikely_(j.p >= j.end):
            return malformed(d, j.p, "a string is cut off")
        if likely_(j.p[0] == 34):
            break
        if j.p[0] != 92:
            return malformed(d, j.p, "a control character in a string must be escaped")
        string.escaped = True
        if read_escape(d, j) < 0:
            return MALFORMED
    string.size = <size_t> (j.p - string.p)
    j.p += 1
    return OK


cdef inline bint is_digit(json_t *j) noexcept nogil:
    return j.p < j.end and 48 <= j.p[0] <= 57


cdef int read_number(decoder_t *d, json_t *j) noexcept nogil:
    """Pass over a number."""
    if j.p < j.end and j.p[0] == 45:
        j.p += 1
    if not is_digit(j):
        return malformed(d, j.p, "expected a value")
    if j.p[0] == 48:
        j.p += 1
    else:
        while is_digit(j):
            j.p += 1
    if j.p < j.end and j.p[0] == 46:
        j.p += 1
        if not is_digit(j):
            return malformed(d, j.p, "expected a digit")
        while is_digit(j):
            j.p += 1
    if j.p < j.end and (j.p[0] | 32) == 101:
        j.p += 1
        if j.p < j.end and (j.p[0] == 43 or j.p[0] == 45):
            j.p += 1
        if not is_digit(j):
            return malformed(d, j.p, "expected a digit")
        while is_digit(j):
            j.p += 1
    return OK


cdef int read_word(decoder_t *d, json_t *j, const char *word, size_t size) noexcept nogil:
    if <size_t> (j.end - j.p) < size or memcmp(j.p, word, size) != 0:
        return malformed(d, j.p, "expected a value")
    j.p += size
    return OK


cdef inline int nan_literal_size(json_t *j) noexcept nogil:
    """Bytes of a NaN, Infinity or -Infinity at the cursor, or 0."""
    cdef size_t left = <size_t> (j.end - j.p)
    if not j.nan_literals:
        return 0
    if left >= 3 and memcmp(j.p, b"NaN", 3) == 0:
        return 3
    if left >= 8 and memcmp(j.p, b"Infinity", 8) == 0:
        return 8
    if left >= 9 and memcmp(j.p, b"-Infinity", 9) == 0:
        return 9
    return 0


cdef int read_json(decoder_t *d, json_t *j, json_value_t *value, int depth) noexcept nogil:
    """Pass over a value, checking all of it. ``depth``: containers around it."""
    cdef string_t string
    cdef int status, word
    cdef uint8_t byte
    string.escaped = False
    skip_space(j)
    value.escaped = False
    value.members = value.members_end = 0
    value.p = j.p
    if unlikely_(j.p >= j.end):
        return malformed(d, j.p, "expected a value")
    byte = j.p[0]
    value.type = byte
    if byte == 34:
        status = read_string(d, j, &string)
        value.escaped = string.escaped
    elif byte == 123 or byte == 91:
        status = read_container(d, j, depth, byte)
    elif byte == 116:
        status = read_word(d, j, b"true", 4)
    elif byte == 102:
        status = read_word(d, j, b"false", 5)
    elif byte == 110:
        status = read_word(d, j, b"null", 4)
    else:
        word = nan_literal_size(j)
        value.type = 78 if word else 48
        j.p += word
        status = OK if word else read_number(d, j)
    value.end = j.p
    return status


cdef int read_container(decoder_t *d, json_t *j, int depth, uint8_t opening) noexcept nogil:
    """Pass over an object or an array; the cursor is on its opening."""
    cdef uint8_t closing = opening + 2      # { } and [ ] are two apart
    cdef json_value_t value
    cdef string_t key
    cdef int status
    if depth >= j.depth_max:
        return malformed(d, j.p, "nested too deep")
    j.p += 1
    skip_space(j)
    if j.p < j.end and j.p[0] == closing:
        j.p += 1
        return OK
    while True:
        if opening == 123:
            skip_space(j)
            if read_member(d, j, &key) < 0:
                return MALFORMED
        if read_json(d, j, &value, depth + 1) < 0:
            return MALFORMED
        status = next_item(d, j, closing)
        if status <= 0:
            return status


cdef inline int read_member(decoder_t *d, json_t *j, string_t *key) noexcept nogil:
    """A member's name and the colon behind it."""
    if read_string(d, j, key) < 0:
        return MALFORMED
    skip_space(j)
    return expect(d, j, 58, "expected a colon")


cdef inline int next_item(decoder_t *d, json_t *j, uint8_t closing) noexcept nogil:
    """1 behind a comma, 0 behind the closing bracket."""
    skip_space(j)
    if likely_(j.p < j.end):
        if j.p[0] == 44:
            j.p += 1
            skip_space(j)
            return 1
        if j.p[0] == closing:
            j.p += 1
            return 0
    return malformed(d, j.p, "expected a comma or a closing bracket")


cdef inline int open_container(decoder_t *d, json_t *j, uint8_t opening, int depth) noexcept nogil:
    """1 behind the opening when there is an item, 0 behind an empty container."""
    if depth >= j.depth_max:
        return malformed(d, j.p, "nested too deep")
    j.p += 1
    skip_space(j)
    if j.p < j.end and j.p[0] == opening + 2:
        j.p += 1
        return 0
    return 1


cdef inline int string_text(string_t *string, buffer_t *work, text_t *text) noexcept nogil:
    """The string's text: in the body where nothing is escaped, else in ``work``."""
    text.p = string.p
    text.size = string.size
    return unescape(string, work, text) if unlikely_(string.escaped) else OK


cdef int unescape(string_t *string, buffer_t *work, text_t *text) noexcept nogil:
    cdef size_t bad = 0
    work.size = 0
    if json_unescape(string.p, string.size, work, &bad) < 0:
        return NO_MEMORY
    text.p = work.data
    text.size = work.size
    return OK


cdef inline void inside(json_value_t *value, string_t *string) noexcept nogil:
    """A checked string value's inside."""
    string.p = value.p + 1
    string.size = <size_t> (value.end - value.p) - 2
    string.escaped = value.escaped


cdef int append_compact(decoder_t *d, const uint8_t *p, const uint8_t *end, buffer_t *out) noexcept nogil:
    """A checked value as compact JSON: no spaces, strings escaped one way, NaN literals quoted."""
    cdef json_t j
    cdef string_t string
    cdef text_t text
    cdef buffer_t work
    cdef const uint8_t *start
    cdef int status = 0, word
    memset(&work, 0, sizeof(work))
    memset(&j, 0, sizeof(j))
    memset(&string, 0, sizeof(string))
    j.p = p
    j.end = end
    j.nan_literals = True
    # Rarely is it longer than as sent.
    if buffer_reserve(out, <size_t> (end - p)) < 0:
        return NO_MEMORY
    while j.p < end and status == 0:
        if j.p[0] == 34:
            read_string(d, &j, &string)
            status = string_text(&string, &work, &text)
            status |= buffer_append_json_string(out, text.p, text.size)
            continue
        if j.p[0] == 32 or j.p[0] == 10 or j.p[0] == 13 or j.p[0] == 9:
            j.p += 1
            continue
        word = nan_literal_size(&j)
        if word:
            status = buffer_append_byte(out, 34) | buffer_append(out, j.p, word) | buffer_append_byte(out, 34)
            j.p += word
            continue
        # Outside strings N and I stand in those literals alone, and a minus may begin one.
        start = j.p
        j.p += 1
        while j.p < end and j.p[0] > 32 and j.p[0] != 34 and j.p[0] != 78 and j.p[0] != 73 and j.p[0] != 45:
            j.p += 1
        status = buffer_append(out, start, <size_t> (j.p - start))
    buffer_free(&work)
    return NO_MEMORY if status != 0 else OK


cdef int whole_json(decoder_t *d, json_t *j) noexcept nogil:
    """That nothing follows the value."""
    skip_space(j)
    if j.p != j.end:
        return malformed(d, j.p, "something follows the JSON value")
    return OK


cdef int check_json(decoder_t *d, json_t *j) noexcept nogil:
    """That there is one value and nothing behind it."""
    cdef json_value_t value
    cdef int status = read_json(d, j, &value, 0)
    return status if status < 0 else whole_json(d, j)


def json_check(body, *, bint nan_literals=False):
    """Raise Malformed unless the bytes are one JSON value by RFC 8259, nested at most JSON_DEPTH_MAX deep."""
    cdef decoder_t d
    cdef json_t j
    cdef Py_buffer view
    cdef int status
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        begin(&d, &view, 0, 0, INT64_MAX, 0)
        start_json(&d, &j, MAX_JSON_DEPTH, nan_literals)
        if may_release(&view):
            with nogil:
                status = check_json(&d, &j)
        else:
            status = check_json(&d, &j)
        if status < 0:
            raise failure(&d, MALFORMED, "not JSON")
    finally:
        PyBuffer_Release(&view)


cdef const uint8_t *next_escape(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Where a letter, a digit or an underscore is next written as an escape, \\u0030 to \\u007f; ``end``: nowhere."""
    while True:
        p = <const uint8_t *> memchr(p, 92, <size_t> (end - p))
        if p == NULL or end - p < 6:
            return end
        if p[1] == 117 and p[2] == 48 and p[3] == 48 and 51 <= p[4] <= 55:
            return p
        p += 1


cdef const uint8_t *next_text(const uint8_t *p, const uint8_t *end, text_t *text) noexcept nogil:
    """Where the text stands next; ``end``: nowhere."""
    p = <const uint8_t *> memmem(p, <size_t> (end - p), text.p, text.size)
    return end if p == NULL else p


cdef int find_last_member(decoder_t *d, json_t *j, text_t *name, bint plain, buffer_t *work,
                          json_value_t *found) noexcept nogil:
    """The value of the last member of that name in the object at the cursor, as far as it is JSON; type 0: none.

    ``plain``: it is a name of letters, digits and underscores, which are written as they are or as \\u00..
    """
    cdef json_value_t value
    cdef string_t key
    cdef text_t text
    cdef const uint8_t *escape = j.p
    cdef const uint8_t *again = j.p
    cdef int status
    found.type = 0
    skip_space(j)
    if j.p >= j.end or j.p[0] != 123:
        return OK
    status = open_container(d, j, 123, 0)
    while status == 1:
        if read_member(d, j, &key) < 0:
            return OK
        if string_text(&key, work, &text) < 0:
            return NO_MEMORY
        if read_json(d, j, &value, 1) < 0:
            return OK
        if same_text(&text, name):
            found[0] = value
            # Most bodies have it once and early, and then need not be read twice. What was seen ahead of the cursor
            # is not searched for again: with many members of the name that would take the square of the time.
            if plain:
                if escape < j.p:
                    escape = next_escape(j.p, j.end)
                if again < j.p:
                    again = next_text(j.p, j.end, name)
                if escape == j.end and again == j.end:
                    return OK
        status = next_item(d, j, 125)
    return OK


def json_member(body, bytes name not None):
    """The text of a top-level member that is a string; ``b""`` for another type, None where there is none.

    The body is read as far as it is JSON; of a member that comes twice the last counts.
    """
    cdef decoder_t d
    cdef json_t j
    cdef json_value_t found
    cdef string_t string
    cdef text_t text
    cdef buffer_t work
    cdef Py_buffer view
    cdef int status
    cdef bint plain = name.replace(b"_", b"").isalnum()
    memset(&work, 0, sizeof(work))
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        begin(&d, &view, 0, 0, INT64_MAX, 0)
        start_json(&d, &j, MAX_OTLP_JSON_DEPTH, True)
        text.p = <const uint8_t *> <const char *> name
        text.size = len(name)
        if may_release(&view):
            with nogil:
                status = find_last_member(&d, &j, &text, plain, &work, &found)
        else:
            status = find_last_member(&d, &j, &text, plain, &work, &found)
        if status == OK and found.type == 34:
            inside(&found, &string)
            status = string_text(&string, &work, &text)
        if status < 0:
            raise MemoryError
        if found.type == 0:
            return None
        return PyBytes_FromStringAndSize(<const char *> text.p, text.size) if found.type == 34 else b""
    finally:
        buffer_free(&work)
        PyBuffer_Release(&view)


cdef void start_json(decoder_t *d, json_t *j, int depth_max, bint nan_literals) noexcept nogil:
    j.p = d.start
    j.end = d.start + d.size
    j.depth_max = depth_max
    j.nan_literals = nan_literals

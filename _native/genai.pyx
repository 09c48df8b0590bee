# GenAI events: log records whose event name begins with "gen_ai." (or the legacy "event.gen_ai."). Such a
# record is a log row and one row of the GenAI table. Three generations of the semantic conventions are
# in use: content in attributes (1.26), in the body of message and choice events (1.28), in attributes
# again (1.37). The schema says which attributes feed a column; here is how.

cdef enum:
    # alternatives that are not numbers of keys
    FROM_NOTHING = -1
    FROM_MESSAGE = -2           # the body, where the event is a message
    FROM_CHOICE = -3            # the body, where the event is a choice
    FROM_FINISH_REASON = -4     # a member of the body of a choice

cdef dict GENAI_BODIES = {"@message": FROM_MESSAGE, "@choice": FROM_CHOICE, "@finish_reason": FROM_FINISH_REASON}


cdef dict plan_genai(genai_plan_t *plan, tuple layout, dict feeds, list kept):
    """Set the plan up; what is left of the feeds are ordinary sources."""
    cdef genai_column_t *column
    cdef bytes key
    places = {name: place for place, (name, _) in enumerate(layout)}
    types = dict(layout)
    keys = {}
    for name, source in list(feeds.items()):
        if not source.startswith("attribute:"):
            continue
        del feeds[name]
        alternatives = source[10:].split("|")
        if len(alternatives) > GENAI_ALTERNATIVES_MAX or plan.column_count == GENAI_COLUMNS_MAX:
            raise ValueError(f"column {name}: too many alternatives, or too many columns")
        if name not in places or types[name].startswith("Map("):
            raise ValueError(f"column {name} cannot be fed by an attribute")
        column = &plan.columns[plan.column_count]
        plan.column_count += 1
        column.column = places[name]
        column.alternatives[0] = column.alternatives[1] = column.alternatives[2] = column.alternatives[3] = FROM_NOTHING
        for place, alternative in enumerate(alternatives):
            if alternative in GENAI_BODIES:
                column.alternatives[<int> place] = GENAI_BODIES[alternative]
                column.content |= alternative != "@finish_reason"
                continue
            if alternative not in keys:
                if len(keys) == GENAI_KEYS_MAX:
                    raise ValueError(f"a GenAI table knows at most {GENAI_KEYS_MAX} attributes")
                key = alternative.encode()
                kept.append(key)
                plan.keys[plan.key_count].p = <const uint8_t *> <const char *> key
                plan.keys[plan.key_count].size = len(key)
                keys[alternative] = plan.key_count
                plan.key_count += 1
            column.alternatives[<int> place] = keys[alternative]
    if not plan.column_count:
        raise ValueError("a GenAI table has columns that are fed by attributes")
    return feeds


cdef inline bint starts_with(text_t *text, const char *start, size_t size) noexcept nogil:
    return text.size >= size and memcmp(text.p, start, size) == 0


cdef void name_event(decoder_t *d, record_t *record) noexcept nogil:
    """The record's event name, without a leading "event." where it is a GenAI event."""
    d.event = record.event_name
    if d.event.size == 0 and record.named_by_attribute:
        d.event.p = d.event_name.data
        d.event.size = d.event_name.size
    if starts_with(&d.event, b"event.gen_ai.", 13):
        d.event.p += 6
        d.event.size -= 6


cdef inline bint is_genai(text_t *event) noexcept nogil:
    return starts_with(event, b"gen_ai.", 7)


cdef bint is_message(text_t *event) noexcept nogil:
    """gen_ai.{system,user,assistant,tool}.message: their body is what the model was told."""
    return (same_name(event, b"gen_ai.user.message") or same_name(event, b"gen_ai.system.message")
            or same_name(event, b"gen_ai.assistant.message") or same_name(event, b"gen_ai.tool.message"))


cdef bint is_choice(text_t *event) noexcept nogil:
    return same_name(event, b"gen_ai.choice")


cdef inline bint same_name(text_t *name, const char *other) noexcept nogil:
    cdef size_t i
    for i in range(name.size):
        if other[i] == 0 or <uint8_t> other[i] != name.p[i]:
            return False
    return other[name.size] == 0


cdef size_t content_limit(decoder_t *d) noexcept nogil:
    """How much of the record's body may be kept."""
    if likely_(d.content_bytes_max == SIZE_MAX) or not is_genai(&d.event):
        return SIZE_MAX
    return d.content_bytes_max if is_message(&d.event) or is_choice(&d.event) else SIZE_MAX


cdef bint is_content(text_t *key) noexcept nogil:
    """Attributes that hold what a model was told or answered, in any generation."""
    return starts_with(key, b"gen_ai.", 7) and (
        same_name(key, b"gen_ai.input.messages") or same_name(key, b"gen_ai.output.messages")
        or same_name(key, b"gen_ai.system_instructions") or same_name(key, b"gen_ai.tool.definitions")
        or same_name(key, b"gen_ai.prompt") or same_name(key, b"gen_ai.completion"))


cdef int find_attributes(decoder_t *d, genai_plan_t *plan, const uint8_t *p, size_t size, value_t *found) noexcept nogil:
    """The values of the plan's keys among the kept attributes; kind -1 where there is none."""
    cdef cursor_t c
    cdef field_t field
    cdef text_t key, any_
    cdef value_t value
    cdef int more, i
    cdef uint32_t seen = 0
    memset(&field, 0, sizeof(field))
    for i in range(plan.key_count):
        found[i].kind = -1
    c.p = p
    c.end = p + size
    while True:
        more = next_field(d, &c, &field)
        if more <= 0:
            return more
        if field.wire != BYTES or field.number != 6:
            continue
        seen += 1
        if seen > C_ATTRIBUTES_MAX:
            continue
        more = read_key_value(d, field.p, field.size, 1, &key, &any_)
        if more == OK:
            more = read_any(d, any_.p, any_.size, 1, &value)
        if more < 0:
            return more
        for i in range(plan.key_count):
            if key.size == plan.keys[i].size and memcmp(key.p, plan.keys[i].p, key.size) == 0:
                found[i] = value
                break


cdef int finish_reason(decoder_t *d, value_t *body, value_t *reason) noexcept nogil:
    """1 and the value of finish_reason, the last one, in a choice's body map."""
    cdef cursor_t c
    cdef field_t field
    cdef text_t key, any_
    cdef int more, found = 0
    memset(&field, 0, sizeof(field))
    if body.kind != ANY_MAP:
        return 0
    c.p = body.p
    c.end = body.p + body.size
    while True:
        more = next_field(d, &c, &field)
        if more < 0:
            return more
        if more == 0:
            return found
        if field.wire != BYTES or field.number != 1:
            continue
        more = read_key_value(d, field.p, field.size, 2, &key, &any_)
        if more == OK and same_name(&key, b"finish_reason"):
            more = read_any(d, any_.p, any_.size, 2, reason)
            found = 1
        if more < 0:
            return more


cdef int append_finish_reason(decoder_t *d, column_t *column, value_t *body) noexcept nogil:
    """["stop"], from a choice's body; 0 where there is none."""
    cdef value_t reason
    cdef buffer_t text
    cdef int status = finish_reason(d, body, &reason)
    if status <= 0:
        return status
    memset(&text, 0, sizeof(text))
    d.scratch.size = 0
    status = value_text(d, &reason, &text)
    if status == OK:
        status = buffer_append(&d.scratch, b"[", 1)
        status |= buffer_append_json_string(&d.scratch, text.data, text.size)
        status |= buffer_append(&d.scratch, b"]", 1)
        if status == 0:
            status = column_append_text(column, d.scratch.data, d.scratch.size)
    buffer_free(&text)
    return NO_MEMORY if status != 0 else 1


cdef int append_genai_text(decoder_t *d, column_t *column, value_t *value, bint content) noexcept nogil:
    cdef int status
    if content and column.kind != KIND_LOW:
        # Repaired before it is cut: U+FFFD is longer than what it stands for.
        status = append_value(d, value, &column.data, d.content_bytes_max)
        if status < 0:
            return status
        if column.nullable and buffer_append_byte(&column.nulls, 0) < 0:
            return NO_MEMORY
        column.rows += 1
        return 1
    d.scratch.size = 0
    status = value_text(d, value, &d.scratch)
    if status < 0:
        return status
    return NO_MEMORY if column_append_text(column, d.scratch.data, d.scratch.size) < 0 else 1


cdef int append_genai_integer(column_t *column, value_t *value) noexcept nogil:
    """An integer, an integral double or a string of one, in range; else 0."""
    cdef int64_t integer = 0
    cdef uint64_t bits = 0
    cdef double number
    if value.kind == ANY_INT:
        if not column.signed_ and <int64_t> value.bits < 0:
            return 0
        bits = value.bits
    elif value.kind == ANY_DOUBLE:
        number = double_from_bits(value.bits)
        if column.signed_:
            if not (-9223372036854775808.0 <= number < 9223372036854775808.0):
                return 0
            integer = <int64_t> number
            if <double> integer != number:
                return 0
            bits = <uint64_t> integer
        else:
            if not (0 <= number < 18446744073709551616.0):
                return 0
            bits = <uint64_t> number
            if <double> bits != number:
                return 0
    elif value.kind == ANY_STRING and column.signed_:
        if parse_integral(value.p, value.size, &integer) < 0:
            return 0
        bits = <uint64_t> integer
    elif value.kind != ANY_STRING or parse_whole(value.p, value.size, &bits) < 0:
        return 0
    if not fits(column, bits):
        return 0
    return NO_MEMORY if column_append_fixed(column, bits) < 0 else 1


cdef inline bint fits(column_t *column, uint64_t bits) noexcept nogil:
    """Whether the 64 bits of an integer are one of the column's width."""
    cdef int unused = 64 - 8 * column.width
    if column.signed_:
        return <int64_t> (bits << unused) >> unused == <int64_t> bits
    return bits << unused >> unused == bits


cdef int append_genai_number(column_t *column, value_t *value) noexcept nogil:
    """A finite number, or a string of one; else 0."""
    cdef double number = 0
    if value.kind == ANY_INT:
        number = <double> <int64_t> value.bits
    elif value.kind == ANY_DOUBLE:
        number = double_from_bits(value.bits)
    elif value.kind != ANY_STRING or parse_double(value.p, value.size, &number) < 0:
        return 0
    if number - number != 0:
        return 0
    return NO_MEMORY if column_append_fixed(column, bits_from_double(number)) < 0 else 1


cdef int append_genai_value(decoder_t *d, column_t *column, value_t *value, bint content) noexcept nogil:
    """1 when the value became the column's, 0 when it cannot be one of its type."""
    if column.kind != KIND_FIXED:
        return append_genai_text(d, column, value, content)
    if column.type == TYPE_FLOAT:
        return append_genai_number(column, value)
    if column.width == 1:
        if value.kind != ANY_BOOL:
            return 0
        return NO_MEMORY if column_append_fixed(column, value.bits != 0) < 0 else 1
    return append_genai_integer(column, value)


cdef int append_genai_column(decoder_t *d, output_t *output, genai_column_t *plan, record_t *record,
                             value_t *found) noexcept nogil:
    """The first alternative that is present; a default where there is none, or none that fits."""
    cdef column_t *column = &output.columns[plan.column]
    cdef int i, source, status = 0
    for i in range(GENAI_ALTERNATIVES_MAX):
        source = plan.alternatives[i]
        if source >= 0:
            if found[source].kind < 0:
                continue
            status = append_genai_value(d, column, &found[source], plan.content)
        elif source == FROM_MESSAGE and is_message(&d.event) or source == FROM_CHOICE and is_choice(&d.event):
            status = append_genai_value(d, column, &record.body, plan.content)
        elif source == FROM_FINISH_REASON and is_choice(&d.event):
            status = append_finish_reason(d, column, &record.body)
        else:
            continue
        break
    if status == 0:
        return NO_MEMORY if column_append_default(column) < 0 else OK
    return status


cdef int decode_genai(decoder_t *d, output_t *output, const uint8_t *p, size_t size) noexcept nogil:
    """The row of a GenAI event; the record is known to be well-formed and kept."""
    cdef value_t found[GENAI_KEYS_MAX]
    cdef record_t record
    cdef int i, status
    status = read_record(d, NULL, &record, p, size)
    if status == OK:
        name_event(d, &record)
        record.event_name = d.event
        status = append_record(d, output, &record)
    if status == OK:
        status = find_attributes(d, output.genai, p, size, found)
    if status < 0:
        return status
    for i in range(output.genai.column_count):
        status = append_genai_column(d, output, &output.genai.columns[i], &record, found)
        if status < 0:
            return status
    return OK

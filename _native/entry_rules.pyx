# One flat JSON entry -> one row: its members are found, then each rule of the plan is carried out.

cdef inline bint same_text(text_t *a, text_t *b) noexcept nogil:
    return a.size == b.size and memcmp(a.p, b.p, a.size) == 0


cdef int read_entry(entries_t *e, int depth) noexcept nogil:
    """One object's members into the slots and the list of unknown ones."""
    cdef decoder_t *d = e.d
    cdef string_t key
    cdef text_t name
    cdef json_value_t value
    cdef int slot, i, expected, before = MEMBERS_MAX, status
    for i in range(e.name_count):
        e.slots[i].type = 0
    e.unknown.size = 0
    e.noted.size = 0
    status = open_container(d, &e.j, 123, depth)
    while status == 1:
        if read_member(d, &e.j, &key) < 0:
            return MALFORMED
        if string_text(&key, &e.work, &name) < 0:
            return NO_MEMORY
        slot = -1
        expected = e.follows[before]
        if expected < e.name_count and same_text(&name, &e.names[expected]):
            slot = expected
        else:
            for i in range(e.name_count):
                if same_text(&name, &e.names[i]):
                    slot = i
                    break
        skip_space(&e.j)
        if e.j.p < e.j.end and e.j.p[0] == 123 and (e.flattened[slot] if slot >= 0 else e.flatten_unknown):
            status = note_object(e, &value, depth + 1)
        else:
            status = read_json(d, &e.j, &value, depth + 1)
        if status < 0:
            return status
        if slot >= 0:
            e.slots[slot] = value
            e.follows[before] = slot
            before = slot
        elif e.keep_unknown and note(&e.unknown, &key, &value) < 0:
            return NO_MEMORY
        status = next_item(d, &e.j, 125)
    return status


cdef int note_object(entries_t *e, json_value_t *value, int depth) noexcept nogil:
    """Pass over the object at the cursor, checking it, and note its members, and theirs."""
    cdef json_value_t inner
    cdef string_t key
    cdef size_t place
    cdef int status
    memset(&inner, 0, sizeof(inner))
    value.type = 123
    value.escaped = False
    value.p = e.j.p
    value.members = <uint32_t> (e.noted.size // sizeof(pair_t))
    status = open_container(e.d, &e.j, 123, depth)
    while status == 1:
        if read_member(e.d, &e.j, &key) < 0:
            return MALFORMED
        place = e.noted.size
        if note(&e.noted, &key, &inner) < 0:
            return NO_MEMORY
        skip_space(&e.j)
        if e.j.p < e.j.end and e.j.p[0] == 123:
            status = note_object(e, &inner, depth + 1)
        else:
            status = read_json(e.d, &e.j, &inner, depth + 1)
        if status < 0:
            return status
        (<pair_t *> (e.noted.data + place)).value = inner
        status = next_item(e.d, &e.j, 125)
    value.members_end = <uint32_t> (e.noted.size // sizeof(pair_t))
    value.end = e.j.p
    return status


cdef inline int note(buffer_t *pairs, string_t *key, json_value_t *value) noexcept nogil:
    cdef pair_t *pair
    if buffer_reserve(pairs, sizeof(pair_t)) < 0:
        return NO_MEMORY
    pair = <pair_t *> (pairs.data + pairs.size)
    pair.key = key[0]
    pair.value = value[0]
    pairs.size += sizeof(pair_t)
    return OK


# ---------------------------------------------------------------- carrying out rules

cdef inline int refuse(entries_t *e, text_t *name, const char *text) noexcept nogil:
    e.bad_name = name[0]
    e.bad_text = text
    e.bad_shared = False
    return INVALID


cdef inline int refuse_rule(entries_t *e, rule_t *rule, const char *text) noexcept nogil:
    refuse(e, &e.shared_names[rule.slot] if rule.shared else &e.names[rule.slot], text)
    e.bad_shared = rule.shared
    return INVALID


cdef int scalar_text(entries_t *e, json_value_t *value, text_t *text) noexcept nogil:
    """A value's text: strings unescaped, numbers as sent, containers as compact JSON, null empty."""
    cdef string_t string
    text.p = value.p
    text.size = <size_t> (value.end - value.p)
    if value.type == 34:
        inside(value, &string)
        return string_text(&string, &e.work, text)
    if value.type == 123 or value.type == 91:
        e.work.size = 0
        if append_compact(e.d, value.p, value.end, &e.work) < 0:
            return NO_MEMORY
        text.p = e.work.data
        text.size = e.work.size
    elif value.type == 110 or value.type == 0:
        text.size = 0
    return OK


cdef inline int64_t power_of_ten(int exponent) noexcept nogil:
    cdef int64_t result = 1
    cdef int i
    for i in range(exponent):
        result *= 10
    return result


cdef int entry_time(entries_t *e, output_t *output, rule_t *rule, json_value_t *value) noexcept nogil:
    """RFC 3339, or with ``time`` epoch seconds too; clamped, and then kept as an attribute."""
    cdef decoder_t *d = e.d
    cdef column_t *column = &output.columns[rule.column]
    cdef text_t text
    cdef int64_t sent = 0, time_ns
    cdef bint absent = value.type == 0 or value.type == 110
    cdef const char *wrong = NULL
    if scalar_text(e, value, &text) < 0:
        return NO_MEMORY
    if rule.kind == R_TIME and value.type == 34 and text.size == 0:
        absent = True
    if value.type == 34 and not absent:
        if parse_rfc3339(text.p, text.size, &sent) < 0:
            wrong = "must be an RFC 3339 timestamp such as 2026-01-31T12:00:00Z"
    elif not absent and (value.type != 48 or rule.kind != R_TIME):
        wrong = "must be an RFC 3339 timestamp in a string"
    elif not absent and parse_epoch_any(text.p, text.size, &sent) < 0:
        wrong = "must be a number of seconds since 1970"
    if wrong != NULL and not rule.lenient:
        return refuse_rule(e, rule, wrong)
    if wrong != NULL:
        d.timestamps_clamped += d.counting
        e.unread = value
    if absent or wrong != NULL:
        time_ns = d.arrival_ns
    else:
        time_ns = min(max(sent, d.time_min_ns), d.time_max_ns)
        if time_ns != sent:
            d.timestamps_clamped += d.counting
            e.clamped = True
            e.clamped_from = sent
    time_ns = time_ns // power_of_ten(9 - column.scale)
    return NO_MEMORY if column_append_fixed(column, <uint64_t> time_ns) < 0 else OK


cdef int keep_clamped(entries_t *e, column_t *map) noexcept nogil:
    """The time as sent, as one more attribute, which wins over one of its name."""
    cdef uint8_t[32] digits
    cdef text_t text
    if map_key(map, b"weir.timestamp", 14) < 0:
        return NO_MEMORY
    if e.unread != NULL:
        if scalar_text(e, e.unread, &text) < 0:
            return NO_MEMORY
        return NO_MEMORY if append_sized_text(&map.data, text.p, text.size, C_VALUE_BYTES_MAX) < 0 else OK
    return append_sized_text(&map.data, digits, format_int64(e.clamped_from, digits), SIZE_MAX)


cdef int entry_level(entries_t *e, output_t *output, rule_t *rule, json_value_t *value) noexcept nogil:
    """The level as sent, and its number into the column of severity numbers."""
    cdef column_t *number = output.source[S_SEVERITY_NUMBER]
    cdef text_t text
    cdef int severity = 0
    text.p = value.p
    text.size = 0
    if value.type == 34:
        if scalar_text(e, value, &text) < 0:
            return NO_MEMORY
        severity = severity_of_level(text.p, text.size)
    elif value.type != 0 and value.type != 110:
        severity = -1
        if rule.lenient and scalar_text(e, value, &text) < 0:
            return NO_MEMORY
    if severity <= 0 and rule.otherwise.p != NULL and (text.size == 0 or rule.lenient):
        text = rule.otherwise
        severity = severity_of_level(text.p, text.size)
    elif severity < 0 and rule.lenient:
        severity = 0
    if severity < 0:
        return refuse_rule(e, rule,
                      "must be trace, debug, info, warning, error, critical or heartbeat")
    e.heartbeat = severity & 0x100 != 0
    if number != NULL and column_append_fixed(number, <uint64_t> (severity & 0xFF)) < 0:
        return NO_MEMORY
    return NO_MEMORY if column_append_text(&output.columns[rule.column], text.p, text.size) < 0 else OK


cdef int entry_int(entries_t *e, column_t *column, rule_t *rule, json_value_t *value) noexcept nogil:
    cdef int64_t integer = 0
    cdef uint64_t unsigned_ = 0
    cdef size_t size = <size_t> (value.end - value.p)
    cdef int bits = column.width * 8
    if value.type != 48:
        return refuse_rule(e, rule, "must be an integer")
    if not column.signed_ and parse_uint64(value.p, size, &unsigned_) == 0:
        if bits < 64 and unsigned_ >> bits:
            return refuse_rule(e, rule, "is an integer out of range")
    elif parse_integral(value.p, size, &integer) < 0:
        return refuse_rule(e, rule, "must be an integer, and in range")
    elif (not column.signed_ and (integer < 0 or (bits < 64 and integer >> bits))) or (
            column.signed_ and bits < 64 and not -(<int64_t> 1 << (bits - 1)) <= integer < <int64_t> 1 << (bits - 1)):
        return refuse_rule(e, rule, "is an integer out of range")
    else:
        unsigned_ = <uint64_t> integer
    return NO_MEMORY if column_append_fixed(column, unsigned_) < 0 else OK


cdef int entry_number(entries_t *e, column_t *column, rule_t *rule, json_value_t *value) noexcept nogil:
    cdef double number = 0
    cdef float narrow
    cdef uint64_t bits = 0
    if value.type == 78:
        bits = 0x7FF8000000000000 if value.p[0] == 78 else (0x7FF0000000000000 if value.p[0] == 73 else 0xFFF0000000000000)
        number = double_from_bits(bits)
    elif value.type != 48 or parse_double(value.p, <size_t> (value.end - value.p), &number) < 0:
        return refuse_rule(e, rule, "must be a number")
    bits = bits_from_double(number)
    if column.width == 4:
        narrow = <float> number
        bits = 0
        memcpy(&bits, &narrow, 4)
    return NO_MEMORY if column_append_fixed(column, bits) < 0 else OK


cdef int append_attribute_text(entries_t *e, column_t *map, text_t *text) noexcept nogil:
    """One attribute under the key in ``e.key``."""
    cdef int cut, status
    if map_open_entries(map) >= C_ATTRIBUTES_MAX:
        e.d.attributes_cut += e.d.counting
        return OK
    cut = map_key(map, e.key.data, e.key.size)
    status = append_sized_text(&map.data, text.p, text.size, C_VALUE_BYTES_MAX)
    if cut < 0 or status < 0:
        return NO_MEMORY
    if e.d.counting:
        e.d.attributes_cut += cut + status
    return OK


cdef int append_flat(entries_t *e, column_t *map, json_value_t *value) noexcept nogil:
    """One value that is not flattened any further, under the key in ``e.key``."""
    cdef text_t text
    if scalar_text(e, value, &text) < 0:
        return NO_MEMORY
    return append_attribute_text(e, map, &text)


cdef int append_key(entries_t *e, const uint8_t *p, size_t size) noexcept nogil:
    """Add to the key being built; what lies far beyond the cap on keys cannot matter."""
    if e.key.size >= FLAT_KEY_MAX:
        return OK
    return NO_MEMORY if buffer_append(&e.key, p, min(size, <size_t> FLAT_KEY_MAX)) < 0 else OK


cdef int flatten(entries_t *e, column_t *map, json_value_t *object_) noexcept nogil:
    """A noted object's members as attributes behind the prefix in ``e.key``, nested ones with dots."""
    cdef uint32_t place = object_.members
    cdef pair_t *pair
    cdef text_t name
    cdef size_t prefix = e.key.size
    cdef int status
    while place < object_.members_end:
        pair = <pair_t *> e.noted.data + place
        if string_text(&pair.key, &e.work, &name) < 0:
            return NO_MEMORY
        e.key.size = prefix
        if append_key(e, name.p, name.size) < 0:
            return NO_MEMORY
        if has_members(&pair.value):
            if append_key(e, <const uint8_t *> b".", 1) < 0:
                return NO_MEMORY
            status = flatten(e, map, &pair.value)
            place = pair.value.members_end
        else:
            status = append_flat(e, map, &pair.value)
            place += 1
        if status < 0:
            return status
    return OK


cdef inline bint has_members(json_value_t *value) noexcept nogil:
    """Of a value that was noted if it is an object."""
    return value.members != value.members_end


cdef bint is_uuid(json_value_t *value) noexcept nogil:
    """Whether it is a string of 36 characters, hexadecimal digits in groups of 8, 4, 4, 4 and 12."""
    cdef size_t i
    cdef uint8_t c
    if value.type != 34 or value.end - value.p != 38:
        return False
    for i in range(36):
        c = value.p[1 + i]
        if i == 8 or i == 13 or i == 18 or i == 23:
            if c != 45:
                return False
        elif not (48 <= c <= 57 or 97 <= c | 0x20 <= 102):
            return False
    return True


cdef int apply_rule(entries_t *e, output_t *output, rule_t *rule) noexcept nogil:
    cdef json_value_t *value = &e.shared[rule.slot] if rule.shared else &e.slots[rule.slot]
    cdef column_t *column = &output.columns[rule.column]
    cdef bint absent = value.type == 0 or value.type == 110
    cdef text_t text
    if rule.required and absent:
        return refuse_rule(e, rule, "is required")
    if rule.nonempty and value.type == 34 and value.end - value.p == 2:
        return refuse_rule(e, rule, "must not be empty")
    if rule.array and not absent and value.type != 91:
        return refuse_rule(e, rule, "must be an array")
    if rule.uuid and not absent and not is_uuid(value):
        return refuse_rule(e, rule, "must be a UUID")
    if rule.kind == R_TIME or rule.kind == R_TIMESTAMP:
        return entry_time(e, output, rule, value)
    if rule.kind == R_LEVEL:
        return entry_level(e, output, rule, value)
    if rule.kind == R_ATTRIBUTE or rule.kind == R_ATTRIBUTES:
        if absent and rule.otherwise.p == NULL:
            return OK
        e.key.size = 0
        if buffer_append(&e.key, rule.key.p, rule.key.size) < 0:
            return NO_MEMORY
        if absent:
            return append_attribute_text(e, column, &rule.otherwise)
        if rule.kind == R_ATTRIBUTES:
            if value.type != 123:
                return refuse_rule(e, rule, "must be an object")
            return flatten(e, column, value)
        if rule_text(e, rule, value, &text) < 0:
            return NO_MEMORY
        return append_attribute_text(e, column, &text)
    if absent and rule.otherwise.p != NULL:
        return NO_MEMORY if column_append_text(column, rule.otherwise.p, rule.otherwise.size) < 0 else OK
    if absent:
        if column == output.source[S_TRACE_ID]:
            return NO_MEMORY if column_append_text(column, e.d.trace_id.p, e.d.trace_id.size) < 0 else OK
        return NO_MEMORY if column_append_default(column) < 0 else OK
    if rule.kind == R_INT:
        return entry_int(e, column, rule, value)
    if rule.kind == R_NUMBER:
        return entry_number(e, column, rule, value)
    if rule.kind == R_BOOLEAN:
        if value.type != 116 and value.type != 102:
            return refuse_rule(e, rule, "must be true or false")
        return NO_MEMORY if column_append_fixed(column, value.type == 116) < 0 else OK
    if rule.kind == R_STRING and value.type != 34:
        return refuse_rule(e, rule, "must be a string")
    if rule.kind == R_OBJECT and value.type != 123:
        return refuse_rule(e, rule, "must be an object")
    if rule.kind == R_JSON or rule.kind == R_OBJECT:
        e.work.size = 0
        if append_compact(e.d, value.p, value.end, &e.work) < 0:
            return NO_MEMORY
        text.p = e.work.data
        text.size = e.work.size
    elif rule_text(e, rule, value, &text) < 0:
        return NO_MEMORY
    if text.size == 0 and column == output.source[S_TRACE_ID]:
        text = e.d.trace_id
    return NO_MEMORY if column_append_text(column, text.p, text.size) < 0 else OK


cdef inline int rule_text(entries_t *e, rule_t *rule, json_value_t *value, text_t *text) noexcept nogil:
    if rule.shared:
        text.p = e.shared_texts[rule.slot].data
        text.size = e.shared_texts[rule.slot].size
        return OK
    return scalar_text(e, value, text)


cdef int last_of_names(entries_t *e) noexcept nogil:
    """For each name of an unknown member where it stands last."""
    cdef pair_t *pair = <pair_t *> e.unknown.data
    cdef size_t i
    cdef text_t name
    cdef int64_t index
    cdef int cut = 0
    # Not cleared: that would cost the size of the largest entry for every small one.
    dictionary_truncate(&e.unknown_names, 0, 0)
    for i in range(e.unknown.size // sizeof(pair_t)):
        if string_text(&pair[i].key, &e.work, &name) < 0:
            return NO_MEMORY
        index = dictionary_entry(&e.unknown_names, name.p, name.size, SIZE_MAX, &cut)
        if index < 0:
            return NO_MEMORY
        e.unknown_names.entries[index].position = <uint32_t> (i + 1)
    return OK


cdef inline bint is_last_of_name(entries_t *e, text_t *name, size_t i) noexcept nogil:
    cdef int cut = 0
    cdef int64_t index = dictionary_entry(&e.unknown_names, name.p, name.size, SIZE_MAX, &cut)
    return index < 0 or e.unknown_names.entries[index].position == i + 1


cdef int apply_unknown(entries_t *e, output_t *output) noexcept nogil:
    """Members that no rule knows: kept as attributes, refused, or ignored."""
    cdef entry_output_t *plan = e.plan
    cdef pair_t *pair = <pair_t *> e.unknown.data
    cdef size_t i, count = e.unknown.size // sizeof(pair_t)
    cdef text_t name
    cdef int status
    if plan.unknown == UNKNOWN_IGNORE:
        return OK
    if count > 1 and last_of_names(e) < 0:
        return NO_MEMORY
    for i in range(count):
        if string_text(&pair[i].key, &e.work, &name) < 0:
            return NO_MEMORY
        if count > 1 and not is_last_of_name(e, &name, i):
            continue
        e.key.size = 0
        if append_key(e, name.p, name.size) < 0:
            return NO_MEMORY
        if plan.unknown == UNKNOWN_REJECT:
            name.p = e.key.data
            name.size = e.key.size
            return refuse(e, &name, "is not a field of this schema")
        if has_members(&pair[i].value):
            if append_key(e, <const uint8_t *> b".", 1) < 0:
                return NO_MEMORY
            status = flatten(e, &output.columns[plan.unknown], &pair[i].value)
        else:
            status = append_flat(e, &output.columns[plan.unknown], &pair[i].value)
        if status < 0:
            return status
    return OK


cdef int write_entry(entries_t *e, output_t *output) noexcept nogil:
    """The entry in the slots as one row of the output."""
    cdef entry_output_t *plan = e.plan
    cdef decoder_t *d = e.d
    cdef column_t *column
    cdef int i, status
    e.heartbeat = False
    e.clamped = False
    e.unread = NULL
    for i in range(plan.map_count):
        map_begin(&output.columns[plan.maps[i]])
    for i in range(plan.rule_count):
        status = apply_rule(e, output, &plan.rules[i])
        if status < 0:
            return status
    status = apply_unknown(e, output)
    if status < 0:
        return status
    if (e.clamped or e.unread != NULL) and output.source[S_ATTRIBUTES] != NULL and keep_clamped(e, output.source[S_ATTRIBUTES]) < 0:
        return NO_MEMORY
    for i in range(plan.map_count):
        if map_end(&output.columns[plan.maps[i]]) < 0:
            return NO_MEMORY
    return fill_entry(e, output)


cdef void write_uuid(const uint8_t *first, uint64_t number, uint8_t *out) noexcept nogil:
    """The text of the UUID that is ``number`` after ``first`` (version 4, counted in its last 62 bits)."""
    cdef uint8_t[16] id_
    cdef uint8_t[32] digits
    cdef uint64_t low = 0
    cdef int i
    memcpy(id_, first, 16)
    for i in range(8, 16):
        low = low << 8 | id_[i]
    low += number
    for i in range(8):
        id_[15 - i] = <uint8_t> (low >> 8 * i)
    id_[6] = id_[6] & 0x0F | 0x40
    id_[8] = id_[8] & 0x3F | 0x80
    hex_encode(id_, 16, digits)
    memcpy(out, digits, 8)
    memcpy(out + 9, digits + 8, 4)
    memcpy(out + 14, digits + 12, 4)
    memcpy(out + 19, digits + 16, 4)
    memcpy(out + 24, digits + 20, 12)
    out[8] = out[13] = out[18] = out[23] = 45


def record_ids(bytes first not None, size_t count):
    """The ids of ``count`` rows that were decoded with ``record_id=first``, in order."""
    cdef uint8_t[36] id_
    cdef size_t number
    if len(first) != 16:
        raise ValueError("a first id is 16 bytes")
    ids = []
    for number in range(count):
        write_uuid(<const uint8_t *> <const char *> first, number, id_)
        ids.append((<const char *> id_)[:36].decode("ascii"))
    return ids


cdef inline bint unruled(entries_t *e, output_t *output, column_t *column) noexcept nogil:
    return column != NULL and not e.plan.ruled[column - output.columns]


cdef int fill_entry(entries_t *e, output_t *output) noexcept nogil:
    """What the plan's feeds add to each row: arrival, the request's trace id, the heartbeat's name."""
    cdef decoder_t *d = e.d
    cdef column_t **to = output.source
    cdef uint8_t[36] id_
    cdef int status = 0
    if unruled(e, output, to[S_TIME]):
        status |= column_append_fixed(to[S_TIME], <uint64_t> d.arrival_ns)
    if unruled(e, output, to[S_OBSERVED_TIME]):
        status |= column_append_fixed(to[S_OBSERVED_TIME], <uint64_t> d.arrival_ns)
    if unruled(e, output, to[S_TRACE_ID]):
        status |= column_append_text(to[S_TRACE_ID], d.trace_id.p, d.trace_id.size)
    if unruled(e, output, to[S_RECORD_ID]) and e.record_id != NULL:
        write_uuid(e.record_id, d.rows, id_)
        status |= column_append_text(to[S_RECORD_ID], id_, 36)
    if unruled(e, output, to[S_EVENT_NAME]):
        status |= column_append_text(to[S_EVENT_NAME], <const uint8_t *> b"heartbeat", 9 if e.heartbeat else 0)
    return NO_MEMORY if status != 0 else OK

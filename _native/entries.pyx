# Flat JSON entries -> rows, by a plan made at run time from a table's columns.
#
# The entries are the elements of an array, or one object, or one object a line (NDJSON), or the
# elements of an array that is a member of an object; the other members of that object are reached by
# rules whose path begins with "../" and hold for every entry.
#
# An entry is passed over once: each member the plan knows leaves the span of its value in a slot (so
# the last of duplicates wins), the others go to a list. Then each output's rules are carried out in
# order, reading the spans. All or nothing: an entry that is not acceptable refuses the request, but
# only after the rest was seen to be JSON. Or, where the dialect can say so, such entries are left out.

cdef enum:
    R_TEXT, R_STRING, R_LEVEL, R_TIME, R_TIMESTAMP, R_INT, R_NUMBER, R_BOOLEAN, R_JSON, R_OBJECT, R_ATTRIBUTE, R_ATTRIBUTES

cdef enum:
    MEMBERS_MAX = 64
    FLAT_KEY_MAX = 1024         # beyond the cap on keys: what is cut off cannot matter
    UNKNOWN_IGNORE = -1
    UNKNOWN_REJECT = -2

cdef dict RULE_KINDS = {
    # kind: (number, types of column it can feed)
    "text": (R_TEXT, "text"), "string": (R_STRING, "text"), "level": (R_LEVEL, "text"),
    "time": (R_TIME, "time"), "timestamp": (R_TIMESTAMP, "time"), "int": (R_INT, "integer"),
    "number": (R_NUMBER, "float"), "boolean": (R_BOOLEAN, "boolean"), "json": (R_JSON, "text"),
    "object": (R_OBJECT, "text"), "attribute": (R_ATTRIBUTE, "map"), "attributes": (R_ATTRIBUTES, "map"),
}

ctypedef struct rule_t:
    int slot
    bint shared                 # the slot is one of the object around the entries
    int kind
    int column
    bint required
    bint nonempty
    text_t key
    text_t otherwise            # the text where there is none; p NULL: no such

ctypedef struct entry_output_t:
    rule_t *rules
    int rule_count
    int *maps                   # map columns that rules or unknown members feed: one open row each
    int map_count
    int unknown                 # column for unknown members, or UNKNOWN_...
    bint *ruled                 # per column: whether a rule feeds it
    int level_column

ctypedef struct unknown_t:
    string_t key
    json_value_t value

ctypedef struct entries_t:
    decoder_t *d
    json_t j
    entry_output_t *plan
    text_t *names
    int name_count
    json_value_t slots[MEMBERS_MAX]
    text_t *shared_names
    int shared_count
    json_value_t shared[MEMBERS_MAX]
    text_t member
    unknown_t *unknown
    size_t unknown_count
    size_t unknown_capacity
    bint keep_unknown
    buffer_t key
    buffer_t work
    bint heartbeat
    bint clamped
    int64_t clamped_from
    const uint8_t *record_id    # sixteen bytes: the first row's id, the others count up from it; or NULL
    # of the entry that is not acceptable
    size_t index
    bint in_array
    bint bad_shared
    text_t bad_name
    const char *bad_text


cdef class EntryPlan:
    """Which member of a JSON entry feeds which column, for each output."""

    cdef tuple layouts
    cdef list sources, kept
    cdef entry_output_t outputs[OUTPUTS_MAX]
    cdef text_t names[MEMBERS_MAX]
    cdef text_t shared_names[MEMBERS_MAX]
    cdef text_t member
    cdef int name_count, shared_count, output_count

    def __init__(self, outputs, *, unknown="ignore", member=""):
        if not 1 <= len(outputs) <= OUTPUTS_MAX:
            raise ValueError(f"a plan has 1 to {OUTPUTS_MAX} outputs")
        if self.output_count:
            raise RuntimeError("a plan is made once")
        self.layouts = tuple(tuple((str(n), str(t)) for n, t in layout) for layout, _, _ in outputs)
        self.sources = [columns_of_sources(layout, feeds) for layout, (_, _, feeds) in zip(self.layouts, outputs)]
        self.kept = []
        self.hold(member, &self.member)
        names = {}
        for i, (_, rules, _) in enumerate(outputs):
            self.output_count += 1
            self.compile(&self.outputs[<int> i], self.layouts[i], rules, unknown, names, self.sources[i][S_ATTRIBUTES])

    def __dealloc__(self):
        cdef int i
        for i in range(self.output_count):
            free(self.outputs[i].rules)
            free(self.outputs[i].maps)
            free(self.outputs[i].ruled)

    cdef int slot_of(self, str path, bint shared, dict names) except -1:
        cdef int count = self.shared_count if shared else self.name_count
        if path not in names:
            if count == MEMBERS_MAX:
                raise ValueError(f"a plan knows at most {MEMBERS_MAX} members")
            names[path] = count
            if shared:
                self.hold(path[3:], &self.shared_names[count])
                self.shared_count += 1
            else:
                self.hold(path, &self.names[count])
                self.name_count += 1
        return names[path]

    cdef int hold(self, str text, text_t *to) except -1:
        cdef bytes encoded = text.encode()
        self.kept.append(encoded)
        to.p = <const uint8_t *> <const char *> encoded
        to.size = len(encoded)
        return 0

    cdef int compile(self, entry_output_t *output, tuple layout, rules, str unknown, dict names,
                     int attributes) except -1:
        cdef rule_t *rule
        cdef int number
        places = {name: place for place, (name, _) in enumerate(layout)}
        types = dict(layout)
        output.rules = <rule_t *> calloc(max(1, len(rules)), sizeof(rule_t))
        output.maps = <int *> calloc(len(layout), sizeof(int))
        output.ruled = <bint *> calloc(len(layout), sizeof(bint))
        if output.rules == NULL or output.maps == NULL or output.ruled == NULL:
            raise MemoryError
        output.unknown = UNKNOWN_REJECT if unknown == "reject" else UNKNOWN_IGNORE
        maps = [attributes] if attributes >= 0 else []
        for path, kind, column, key in rules:
            kind, *flags = kind.split(" ")
            otherwise = [flag[8:] for flag in flags if flag.startswith("default=")]
            if kind not in RULE_KINDS or set(flags) - {"required", "nonempty", *("default=" + o for o in otherwise)}:
                raise ValueError(f"rule for {path!r}: no such kind or flag: {' '.join([kind, *flags])!r}")
            if column not in places:
                raise ValueError(f"rule for {path!r}: there is no column {column}")
            number, family = RULE_KINDS[kind]
            if not type_is(types[column], family):
                raise ValueError(f"rule for {path!r}: {kind} cannot feed {column}, a {types[column]}")
            if otherwise and kind not in ("text", "attribute"):
                raise ValueError(f"rule for {path!r}: {kind} has no default")
            rule = &output.rules[output.rule_count]
            rule.shared = path.startswith("../")
            if rule.shared and not self.member.size:
                raise ValueError(f"rule for {path!r}: the entries of this plan are not in a member")
            rule.slot = self.slot_of(path, rule.shared, names)
            if otherwise:
                self.hold(otherwise[0], &rule.otherwise)
            rule.kind = number
            rule.column = places[column]
            rule.required = "required" in flags
            rule.nonempty = "nonempty" in flags
            self.hold(key, &rule.key)
            output.rule_count += 1
            if family == "map":
                maps.append(places[column])
            elif output.ruled[<int> places[column]]:
                raise ValueError(f"column {column} has two rules")
            output.ruled[<int> places[column]] = True
        if unknown not in ("ignore", "reject") and unknown in places:
            if not type_is(types[unknown], "map"):
                raise ValueError(f"unknown members cannot go to {unknown}, a {types[unknown]}")
            output.unknown = places[unknown]
            maps.append(places[unknown])
        elif unknown not in ("ignore", "reject") and len(self.layouts) == 1:
            raise ValueError(f"there is no column {unknown} for unknown members")
        for place in sorted(set(maps)):
            output.ruled[<int> place] = True
            output.maps[output.map_count] = place
            output.map_count += 1
        return 0


cdef bint type_is(str type_, str family):
    """Whether a rule of the family can feed a column of the type."""
    inner = type_[9:len(type_) - 1] if type_.startswith("Nullable(") else type_
    if family == "text":
        return inner in ("String", "LowCardinality(String)")
    if family == "map":
        return inner.startswith("Map(")
    if family == "time":
        return inner.startswith("DateTime64(")
    if family == "float":
        return inner in ("Float32", "Float64")
    if family == "boolean":
        return inner in ("Bool", "UInt8")
    return inner.startswith(("UInt", "Int"))


# ---------------------------------------------------------------- reading an entry

cdef inline bint same_text(text_t *a, text_t *b) noexcept nogil:
    return a.size == b.size and memcmp(a.p, b.p, a.size) == 0


cdef int read_entry(entries_t *e, int depth) noexcept nogil:
    """One object's members into the slots and the list of unknown ones."""
    cdef decoder_t *d = e.d
    cdef string_t key
    cdef text_t name
    cdef json_value_t value
    cdef int slot, i, expected = 0, status
    for i in range(e.name_count):
        e.slots[i].type = 0
    e.unknown_count = 0
    status = open_container(d, &e.j, 123, depth)
    while status == 1:
        if read_member(d, &e.j, &key) < 0:
            return MALFORMED
        if string_text(&key, &e.work, &name) < 0:
            return NO_MEMORY
        slot = -1
        if expected < e.name_count and same_text(&name, &e.names[expected]):
            slot = expected
        else:
            for i in range(e.name_count):
                if same_text(&name, &e.names[i]):
                    slot = i
                    break
        if read_json(d, &e.j, &value, depth + 1) < 0:
            return MALFORMED
        if slot >= 0:
            e.slots[slot] = value
            expected = slot + 1
        elif e.keep_unknown:
            if remember(e, &key, &value) < 0:
                return NO_MEMORY
        status = next_item(d, &e.j, 125)
    return status


cdef int remember(entries_t *e, string_t *key, json_value_t *value) noexcept nogil:
    cdef unknown_t *unknown
    if e.unknown_count == e.unknown_capacity:
        unknown = <unknown_t *> malloc((e.unknown_capacity * 2 + 16) * sizeof(unknown_t))
        if unknown == NULL:
            return NO_MEMORY
        if e.unknown_count:
            memcpy(unknown, e.unknown, e.unknown_count * sizeof(unknown_t))
        free(e.unknown)
        e.unknown = unknown
        e.unknown_capacity = e.unknown_capacity * 2 + 16
    e.unknown[e.unknown_count].key = key[0]
    e.unknown[e.unknown_count].value = value[0]
    e.unknown_count += 1
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
    if scalar_text(e, value, &text) < 0:
        return NO_MEMORY
    if rule.kind == R_TIME and value.type == 34 and text.size == 0:
        absent = True
    if absent:
        time_ns = d.arrival_ns
    else:
        if value.type == 34:
            if parse_rfc3339(text.p, text.size, &sent) < 0:
                return refuse_rule(e, rule, "must be an RFC 3339 timestamp such as 2026-01-31T12:00:00Z")
        elif value.type != 48 or rule.kind != R_TIME:
            return refuse_rule(e, rule, "must be an RFC 3339 timestamp in a string")
        elif parse_epoch_any(text.p, text.size, &sent) < 0:
            return refuse_rule(e, rule, "must be a number of seconds since 1970")
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
    if map_key(map, b"weir.timestamp", 14) < 0:
        return NO_MEMORY
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


cdef int flatten(entries_t *e, column_t *map, json_value_t *object_, int depth) noexcept nogil:
    """A checked object's members as attributes behind the prefix in ``e.key``, nested ones with dots."""
    cdef json_t j
    cdef string_t key
    cdef text_t name
    cdef json_value_t value
    cdef size_t prefix = e.key.size
    cdef int status
    memset(&j, 0, sizeof(j))
    j.p = object_.p
    j.end = object_.end
    j.depth_max = e.j.depth_max + 1
    j.nan_literals = e.j.nan_literals
    status = open_container(e.d, &j, 123, 0)
    while status == 1:
        if read_member(e.d, &j, &key) < 0 or string_text(&key, &e.work, &name) < 0:
            return NO_MEMORY
        e.key.size = prefix
        if append_key(e, name.p, name.size) < 0:
            return NO_MEMORY
        if read_json(e.d, &j, &value, 1) < 0:
            return MALFORMED
        if value.type == 123 and not is_empty_object(&value):
            if append_key(e, <const uint8_t *> b".", 1) < 0:
                return NO_MEMORY
            status = flatten(e, map, &value, depth + 1)
        else:
            status = append_flat(e, map, &value)
        if status < 0:
            return status
        status = next_item(e.d, &j, 125)
    e.key.size = prefix
    return OK


cdef inline bint is_empty_object(json_value_t *value) noexcept nogil:
    cdef const uint8_t *p = value.p + 1
    while p[0] == 32 or p[0] == 10 or p[0] == 13 or p[0] == 9:
        p += 1
    return p[0] == 125


cdef int apply_rule(entries_t *e, output_t *output, rule_t *rule) noexcept nogil:
    cdef json_value_t *value = &e.shared[rule.slot] if rule.shared else &e.slots[rule.slot]
    cdef column_t *column = &output.columns[rule.column]
    cdef bint absent = value.type == 0 or value.type == 110
    cdef text_t text
    if rule.required and absent:
        return refuse_rule(e, rule, "is required")
    if rule.nonempty and value.type == 34 and value.end - value.p == 2:
        return refuse_rule(e, rule, "must not be empty")
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
            return flatten(e, column, value, 1)
        if scalar_text(e, value, &text) < 0:
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
    elif scalar_text(e, value, &text) < 0:
        return NO_MEMORY
    if text.size == 0 and column == output.source[S_TRACE_ID]:
        text = e.d.trace_id
    return NO_MEMORY if column_append_text(column, text.p, text.size) < 0 else OK


cdef int apply_unknown(entries_t *e, output_t *output) noexcept nogil:
    """Members that no rule knows: kept as attributes, refused, or ignored."""
    cdef entry_output_t *plan = e.plan
    cdef size_t i
    cdef text_t name
    cdef int status
    if plan.unknown == UNKNOWN_IGNORE:
        return OK
    for i in range(e.unknown_count):
        if string_text(&e.unknown[i].key, &e.work, &name) < 0:
            return NO_MEMORY
        e.key.size = 0
        if append_key(e, name.p, name.size) < 0:
            return NO_MEMORY
        if plan.unknown == UNKNOWN_REJECT:
            name.p = e.key.data
            name.size = e.key.size
            return refuse(e, &name, "is not a field of this schema")
        status = OK
        if e.unknown[i].value.type == 123 and not is_empty_object(&e.unknown[i].value):
            if append_key(e, <const uint8_t *> b".", 1) < 0:
                return NO_MEMORY
            status = flatten(e, &output.columns[plan.unknown], &e.unknown[i].value, 1)
        else:
            status = append_flat(e, &output.columns[plan.unknown], &e.unknown[i].value)
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
    for i in range(plan.map_count):
        map_begin(&output.columns[plan.maps[i]])
    for i in range(plan.rule_count):
        status = apply_rule(e, output, &plan.rules[i])
        if status < 0:
            return status
    status = apply_unknown(e, output)
    if status < 0:
        return status
    if e.clamped and output.source[S_ATTRIBUTES] != NULL and keep_clamped(e, output.source[S_ATTRIBUTES]) < 0:
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


# ---------------------------------------------------------------- the request

cdef int save_entry(decoder_t *d) noexcept nogil:
    cdef int i, c
    for i in range(d.output_count):
        for c in range(d.outputs[i].count):
            column_save(&d.outputs[i].columns[c], &d.outputs[i].columns[c].entry)
    return OK


cdef int undo_entry(decoder_t *d) noexcept nogil:
    cdef int i, c
    for i in range(d.output_count):
        for c in range(d.outputs[i].count):
            column_restore(&d.outputs[i].columns[c], &d.outputs[i].columns[c].entry)
    return OK


cdef int write_entries(entries_t *e, EntryPlan plan, int depth) noexcept:
    """The object at the cursor as a row of each output."""
    cdef decoder_t *d = e.d
    cdef json_value_t value
    cdef text_t none
    cdef int i, status
    none.p = NULL
    none.size = 0
    skip_space(&e.j)
    if e.j.p >= e.j.end or e.j.p[0] != 123:
        if read_json(d, &e.j, &value, depth) < 0:
            return MALFORMED
        return refuse(e, &none, "must be an object")
    status = read_entry(e, depth)
    if status < 0:
        return status
    for i in range(d.output_count):
        d.counting = i == 0
        e.plan = &plan.outputs[i]
        status = write_entry(e, &d.outputs[i])
        if status < 0:
            return status
    d.rows += 1
    if d.rows % 64 == 0 and grown(d) > d.column_bytes_max:
        return TOO_LARGE
    return OK


cdef class _Problems:
    """What is wrong with the entries so far: how many, and the first few in words."""

    cdef size_t count, kept_max
    cdef list kept
    cdef bint partial
    cdef bint goes_on           # entries behind one that is not acceptable are still decoded

    cdef bint over(self):
        """Whether the request is refused and nothing more is to be told: the rest is only checked."""
        return not self.partial and self.count >= self.kept_max

    cdef object add(self, entries_t *e, size_t index, int status):
        cdef bytes name = b""
        self.count += 1
        if self.count > self.kept_max:
            return
        if status == MALFORMED:
            self.kept.append(Problem(index, f"[{index}]", str(failure(e.d, status, "is not JSON"))))
            return
        if e.bad_name.p != NULL:
            name = PyBytes_FromStringAndSize(<const char *> e.bad_name.p,
                                             min(e.bad_name.size, <size_t> C_KEY_BYTES_MAX))
        field = name.decode("utf-8", "replace")
        if e.in_array and not e.bad_shared:
            place = f"{plan_member(e)}[{index}]"
            field = f"{place}.{field}" if name else place
        self.kept.append(Problem(index, field, e.bad_text.decode()))


cdef str plan_member(entries_t *e):
    return PyBytes_FromStringAndSize(<const char *> e.member.p, e.member.size).decode()


cdef int take_entry(entries_t *e, EntryPlan plan, _Problems problems, size_t index, int depth) noexcept:
    """One entry: written, or found not acceptable and taken back, or only checked."""
    cdef json_value_t value
    cdef int status
    cdef size_t cut = e.d.attributes_cut, clamped = e.d.timestamps_clamped, rows = e.d.rows
    if problems.over():
        return read_json(e.d, &e.j, &value, depth)
    if problems.goes_on:
        save_entry(e.d)
    status = write_entries(e, plan, depth)
    if status == INVALID:
        problems.add(e, index, status)
        if problems.goes_on:
            undo_entry(e.d)
        e.d.rows = rows
        e.d.attributes_cut = cut
        e.d.timestamps_clamped = clamped
        return OK
    return status


cdef int take_lines(entries_t *e, EntryPlan plan, _Problems problems, size_t entries_max, size_t *over) noexcept:
    """NDJSON: an object on each line that is not blank."""
    cdef const uint8_t *end = e.j.end
    cdef const uint8_t *line_end
    cdef size_t index = 0, cut, clamped, rows
    cdef int status
    while e.j.p < end:
        line_end = <const uint8_t *> memchr(e.j.p, 10, <size_t> (end - e.j.p))
        if line_end == NULL:
            line_end = end
        e.j.end = line_end
        skip_space(&e.j)
        if e.j.p < line_end:
            if entries_max and index >= entries_max:
                over[0] += 1
            else:
                cut = e.d.attributes_cut
                clamped = e.d.timestamps_clamped
                rows = e.d.rows
                save_entry(e.d)
                status = take_entry(e, plan, problems, index, 0)
                if status == OK:
                    status = whole_json(e.d, &e.j)
                if status == MALFORMED and problems.partial:
                    problems.add(e, index, status)
                    undo_entry(e.d)
                    e.d.rows = rows
                    e.d.attributes_cut = cut
                    e.d.timestamps_clamped = clamped
                elif status < 0:
                    return status
            index += 1
        e.j.p = line_end + 1 if line_end < end else end
    e.j.end = end
    return OK


cdef int take_array(entries_t *e, EntryPlan plan, _Problems problems, int depth, size_t entries_max,
                    size_t *over) noexcept:
    """The elements of the array at the cursor; ``depth``: containers around it."""
    cdef json_value_t value
    cdef size_t index = 0
    cdef int status, more = open_container(e.d, &e.j, 91, depth)
    while more == 1:
        if entries_max and index >= entries_max:
            over[0] += 1
            status = read_json(e.d, &e.j, &value, depth + 1)
        else:
            status = take_entry(e, plan, problems, index, depth + 1)
        if status < 0:
            return status
        index += 1
        more = next_item(e.d, &e.j, 93)
    return more


cdef int take_member(entries_t *e, EntryPlan plan, _Problems problems, size_t entries_max, size_t *over) noexcept:
    """An object with the entries in one of its members: its members first, then the entries."""
    cdef decoder_t *d = e.d
    cdef string_t key
    cdef text_t name, none
    cdef json_value_t value
    cdef json_value_t found = e.slots[0]
    cdef json_t whole
    cdef int i, status
    none.p = NULL
    none.size = 0
    found.type = 0
    skip_space(&e.j)
    if e.j.p >= e.j.end or e.j.p[0] != 123:
        if read_json(d, &e.j, &value, 0) < 0 or whole_json(d, &e.j) < 0:
            return MALFORMED
        return refuse(e, &none, "must be an object")
    status = open_container(d, &e.j, 123, 0)
    while status == 1:
        if read_member(d, &e.j, &key) < 0:
            return MALFORMED
        if string_text(&key, &e.work, &name) < 0:
            return NO_MEMORY
        if read_json(d, &e.j, &value, 1) < 0:
            return MALFORMED
        if same_text(&name, &e.member):
            found = value
        for i in range(e.shared_count):
            if same_text(&name, &e.shared_names[i]):
                e.shared[i] = value
        status = next_item(d, &e.j, 125)
    if status < 0 or whole_json(d, &e.j) < 0:
        return MALFORMED
    if found.type != 91:
        return refuse(e, &e.member, "is required" if found.type == 0 else "must be an array")
    whole = e.j
    e.in_array = True
    e.j.p = found.p
    e.j.end = found.end
    status = take_array(e, plan, problems, 1, entries_max, over)
    e.j = whole
    return status


cdef int decode_entries(entries_t *e, EntryPlan plan, _Problems problems, bint lines, size_t entries_max,
                        size_t *over) noexcept:
    cdef decoder_t *d = e.d
    cdef int status, i
    skip_space(&e.j)
    if lines:
        e.in_array = True
        status = take_lines(e, plan, problems, entries_max, over)
    elif e.member.size:
        status = take_member(e, plan, problems, entries_max, over)
    elif e.j.p < e.j.end and e.j.p[0] == 91:
        e.in_array = True
        status = take_array(e, plan, problems, 0, entries_max, over)
    else:
        status = take_entry(e, plan, problems, 0, 0)
    if status == OK and not lines:
        status = whole_json(d, &e.j)
    if status == INVALID:
        problems.add(e, 0, status)
        return INVALID
    if status < 0:
        return status
    if problems.count and not problems.partial:
        return INVALID
    if grown(d) > d.column_bytes_max:
        return TOO_LARGE
    for i in range(d.output_count):
        d.outputs[i].rows = d.rows
    return fill_request(d)


cdef object refusal(entries_t *e, _Problems problems):
    """What is not acceptable, where, and what it must be."""
    first = problems.kept[0]
    text = f"{first.field or 'the body'} {first.message}"
    return Invalid(text, field=first.field or None, index=first.index if e.in_array else None, problems=problems.kept)


def entries(body, EntryPlan plan not None, outputs, *, constants, int64_t arrival_ns, int64_t time_min_ns=0,
            int64_t time_max_ns=INT64_MAX, size_t column_bytes_max=256 << 20, size_t entries_max=0,
            bint nan_literals=False, bint lines=False, bint partial=False, size_t problems_max=1,
            bytes record_id=None):
    """Flat JSON entries, all or nothing, or with ``partial`` what is acceptable of them."""
    cdef decoder_t d
    cdef entries_t e
    cdef Py_buffer view
    cdef int status, i
    cdef size_t over = 0
    cdef Decoded decoded
    cdef _Problems problems = _Problems()
    if problems_max < 1 or (record_id is not None and len(record_id) != 16):
        raise ValueError("problems_max is at least 1, a record_id 16 bytes")
    problems.kept = []
    problems.kept_max = problems_max
    problems.partial = partial
    problems.goes_on = partial or problems_max > 1
    memset(&e, 0, sizeof(e))
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        begin(&d, &view, arrival_ns, time_min_ns, time_max_ns, column_bytes_max)
        project_id = borrow(constants, "project_id", &d.project_id)
        dialect = borrow(constants, "dialect", &d.dialect)
        trace_id = borrow(constants, "trace_id", &d.trace_id)
        e.d = &d
        e.names = plan.names
        e.name_count = plan.name_count
        e.shared_names = plan.shared_names
        e.shared_count = plan.shared_count
        e.member = plan.member
        if record_id is not None:
            e.record_id = <const uint8_t *> <const char *> record_id
        for i in range(plan.output_count):
            e.keep_unknown |= plan.outputs[i].unknown != UNKNOWN_IGNORE
        start_json(&d, &e.j, MAX_JSON_DEPTH, nan_literals)
        bind_outputs(&d, plan.layouts, plan.sources, outputs)
        status = decode_entries(&e, plan, problems, lines, entries_max, &over)
        if status < 0:
            undo(outputs)
            raise refusal(&e, problems) if status == INVALID else failure(&d, status, "not JSON")
        decoded = counts_of(&d)
        if over:
            decoded.rejected["count"] = over
            decoded.message = f"only the first {entries_max} entries of a request are kept"
        if problems.count:
            decoded.rejected["invalid"] = problems.count
            decoded.problems = tuple(problems.kept)
            decoded.message = f"{problems.kept[0].field} {problems.kept[0].message}"
        return decoded
    finally:
        buffer_free(&e.key)
        buffer_free(&e.work)
        free(e.unknown)
        free_decoder(&d)
        PyBuffer_Release(&view)

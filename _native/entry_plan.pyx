# The plan of flat JSON entries: which member feeds which column, compiled from rules at run time.

cdef enum:
    R_TEXT, R_STRING, R_LEVEL, R_TIME, R_TIMESTAMP, R_INT, R_NUMBER, R_BOOLEAN, R_JSON, R_OBJECT
    R_ATTRIBUTE, R_ATTRIBUTES

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

cdef dict RULE_FLAGS = {
    "required": tuple(RULE_KINDS), "nonempty": tuple(RULE_KINDS), "lenient": ("level", "time", "timestamp"),
    "array": ("attribute", "json"), "uuid": ("text", "string", "attribute"),
}

ctypedef struct rule_t:
    int slot
    bint shared                 # the slot is one of the object around the entries
    int kind
    int column
    bint required
    bint nonempty
    bint lenient                # what is no time or no level does not refuse the entry
    bint array
    bint uuid
    text_t key
    text_t otherwise            # the text where there is none; p NULL: no such

ctypedef struct entry_output_t:
    rule_t *rules
    int rule_count
    int *maps                   # map columns that rules or unknown members feed: one open row each
    int map_count
    int unknown                 # column for unknown members, or UNKNOWN_...
    bint *ruled                 # per column: whether a rule feeds it

ctypedef struct pair_t:
    # A member as sent.
    string_t key
    json_value_t value

ctypedef struct problem_t:
    # What is wrong with one entry.
    size_t index
    int status                  # INVALID, or MALFORMED: a line
    const uint8_t *at           # of a line, where
    const char *text
    bint placed                 # it is an element of the array, not what stands around it
    size_t name_size            # of the member, whose name is in `names`

ctypedef struct problems_t:
    # What is wrong with the entries: how many, and of the first few what.
    size_t count
    size_t kept_max
    buffer_t kept               # problem_t
    buffer_t names
    bint partial                # the others are accepted all the same

ctypedef struct entries_t:
    decoder_t *d
    json_t j
    entry_output_t *outputs     # the plan's
    entry_output_t *plan        # of them the one being written
    problems_t problems
    size_t entries_max          # 0: no limit
    size_t over                 # entries beyond it
    text_t *names
    int name_count
    json_value_t slots[MEMBERS_MAX]
    int follows[MEMBERS_MAX + 1]    # which member came behind each in the entry before; the last: first of all
    text_t *shared_names
    int shared_count
    json_value_t shared[MEMBERS_MAX]
    buffer_t shared_texts[MEMBERS_MAX]  # their texts, made once however many entries there are
    size_t shared_bytes                 # of these texts
    text_t member
    bint *flattened                 # per slot: whether a rule flattens it
    bint keep_unknown
    bint flatten_unknown
    buffer_t unknown                # pair_t: the entry's members that no rule knows
    buffer_t noted                  # pair_t: the members of its objects that are flattened, in the order sent
    dictionary_t unknown_names      # of an entry with several: the place of the last of each name, from 1
    bint goes_on                # what an entry that is refused had written is taken back
    bint saved                  # the entry has begun to write
    buffer_t key
    buffer_t work
    bint heartbeat
    bint clamped
    int64_t clamped_from
    json_value_t *unread        # a time that is none, where that is allowed; or NULL
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
    cdef bint flattened[MEMBERS_MAX]
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
            self.compile(&self.outputs[<int> i], self.layouts[i], rules, unknown, names, self.sources[i])

    def __dealloc__(self):
        cdef int i
        for i in range(self.output_count):
            free(self.outputs[i].rules)
            free(self.outputs[i].maps)
            free(self.outputs[i].ruled)

    cdef void lay_out(self, entries_t *e) noexcept nogil:
        """Point a request's state at the plan."""
        cdef int i
        e.outputs = self.outputs
        e.names = self.names
        e.name_count = self.name_count
        e.shared_names = self.shared_names
        e.shared_count = self.shared_count
        e.member = self.member
        e.flattened = self.flattened
        for i in range(self.output_count):
            e.keep_unknown |= self.outputs[i].unknown != UNKNOWN_IGNORE
            e.flatten_unknown |= self.outputs[i].unknown >= 0

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
                     list sources) except -1:
        places = {name: place for place, (name, _) in enumerate(layout)}
        types = dict(layout)
        output.rules = <rule_t *> calloc(max(1, len(rules)), sizeof(rule_t))
        output.maps = <int *> calloc(len(layout), sizeof(int))
        output.ruled = <bint *> calloc(len(layout), sizeof(bint))
        if output.rules == NULL or output.maps == NULL or output.ruled == NULL:
            raise MemoryError
        output.unknown = UNKNOWN_REJECT if unknown == "reject" else UNKNOWN_IGNORE
        maps = {sources[S_ATTRIBUTES]} - {-1}
        for path, kind, column, key in rules:
            if column not in places:
                raise ValueError(f"rule for {path!r}: there is no column {column}")
            rule = self.add_rule(output, path, kind, types[column], names)
            rule.column = places[column]
            self.hold(key, &rule.key)
            if rule.kind == R_ATTRIBUTE or rule.kind == R_ATTRIBUTES:
                maps.add(rule.column)
            elif output.ruled[rule.column]:
                raise ValueError(f"column {column} has two rules")
            output.ruled[rule.column] = True
        check_rules(output, layout, sources)
        if unknown not in ("ignore", "reject") and unknown in places:
            if not type_is(types[unknown], "map"):
                raise ValueError(f"unknown members cannot go to {unknown}, a {types[unknown]}")
            output.unknown = places[unknown]
            maps.add(places[unknown])
        elif unknown not in ("ignore", "reject") and len(self.layouts) == 1:
            raise ValueError(f"there is no column {unknown} for unknown members")
        for place in sorted(maps):
            output.ruled[<int> place] = True
            output.maps[output.map_count] = place
            output.map_count += 1
        return 0

    cdef rule_t *add_rule(self, entry_output_t *output, str path, str words, str type_, dict names) except NULL:
        """The output's next rule, of what its kind and flags say."""
        cdef rule_t *rule = &output.rules[output.rule_count]
        kind, *flags = words.split(" ")
        otherwise = [flag[8:] for flag in flags if flag.startswith("default=")]
        if kind not in RULE_KINDS or set(flags) - {*RULE_FLAGS, *("default=" + o for o in otherwise)}:
            raise ValueError(f"rule for {path!r}: no such kind or flag: {words!r}")
        rule.kind, family = RULE_KINDS[kind]
        if not type_is(type_, family):
            raise ValueError(f"rule for {path!r}: {kind} cannot feed a {type_}")
        for flag, kinds in RULE_FLAGS.items():
            if flag in flags and kind not in kinds:
                raise ValueError(f"rule for {path!r}: {kind} is never {flag}")
        if otherwise and kind not in ("text", "attribute", "level"):
            raise ValueError(f"rule for {path!r}: {kind} has no default")
        if otherwise and kind == "level" and not 0 <= level_number(otherwise[0]) <= 24:
            raise ValueError(f"rule for {path!r}: {otherwise[0]} is no level")
        rule.shared = path.startswith("../")
        if rule.shared and not self.member.size:
            raise ValueError(f"rule for {path!r}: the entries of this plan are not in a member")
        if rule.shared and path[3:].encode() == self.kept[0]:
            raise ValueError(f"rule for {path!r}: that member holds the entries")
        if rule.shared and kind not in ("text", "attribute"):
            raise ValueError(f"rule for {path!r}: what entries share is a text or an attribute, not {kind}")
        rule.slot = self.slot_of(path, rule.shared, names)
        if kind == "attributes":
            self.flattened[rule.slot] = True
        if otherwise:
            self.hold(otherwise[0], &rule.otherwise)
        rule.required = "required" in flags
        rule.nonempty = "nonempty" in flags
        rule.lenient = "lenient" in flags
        rule.array = "array" in flags
        rule.uuid = "uuid" in flags
        output.rule_count += 1
        return rule


cdef int check_rules(entry_output_t *output, tuple layout, list sources) except -1:
    """That no column is written twice for an entry."""
    cdef int levels = 0, i
    for source in (S_PROJECT_ID, S_DIALECT, S_FRAME, S_ROW):
        if sources[source] >= 0 and output.ruled[<int> sources[source]]:
            raise ValueError(f"column {layout[sources[source]][0]} is the request's: it has no rule")
    for i in range(output.rule_count):
        levels += output.rules[i].kind == R_LEVEL
    if levels > 1:
        raise ValueError("an entry has one level: there are two rules for it")
    if levels and sources[S_SEVERITY_NUMBER] >= 0 and output.ruled[<int> sources[S_SEVERITY_NUMBER]]:
        raise ValueError(f"column {layout[sources[S_SEVERITY_NUMBER]][0]} has a rule, and the level's number too")
    return 0


cdef int level_number(str word):
    cdef bytes encoded = word.encode()
    return severity_of_level(<const uint8_t *> <const char *> encoded, len(encoded))


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

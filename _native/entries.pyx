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
    if e.goes_on:
        e.saved = True
        save_entry(d)
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
    e.saved = False
    if problems.over():
        return read_json(e.d, &e.j, &value, depth)
    status = write_entries(e, plan, depth)
    if status == INVALID:
        problems.add(e, index, status)
        if e.saved:
            undo_entry(e.d)
            e.saved = False
        e.d.rows = rows
        e.d.attributes_cut = cut
        e.d.timestamps_clamped = clamped
        return OK
    return status


cdef int take_lines(entries_t *e, EntryPlan plan, _Problems problems, size_t entries_max, size_t *over) noexcept:
    """NDJSON: an object on each line that is not blank."""
    cdef const uint8_t *end = e.j.end
    cdef const uint8_t *line_end
    cdef size_t index = 0, cut, clamped, rows, known
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
                known = problems.count
                status = take_entry(e, plan, problems, index, 0)
                if status == OK:
                    status = whole_json(e.d, &e.j)
                if status == MALFORMED and problems.partial:
                    if problems.count == known:     # a line is wrong once
                        problems.add(e, index, status)
                    if e.saved:
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
        skip_space(&e.j)
        if same_text(&name, &e.member):
            # Of a member that comes twice the last one wins; that the other is JSON is seen here.
            if found.type == 91 and check_array(d, &e.j, &found) < 0:
                return MALFORMED
            if e.j.p < e.j.end and e.j.p[0] == 91:
                if skip_array(d, &e.j, &value) < 0:
                    return MALFORMED
            elif read_json(d, &e.j, &value, 1) < 0:
                return MALFORMED
            found = value
        elif read_json(d, &e.j, &value, 1) < 0:
            return MALFORMED
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
    if status == OK:
        status = whole_json(d, &e.j)
    e.j = whole
    return status


cdef int check_array(decoder_t *d, json_t *j, json_value_t *skipped) noexcept nogil:
    """That an array which was only skipped is JSON."""
    cdef json_t inner = j[0]
    cdef json_value_t value
    inner.p = skipped.p
    inner.end = skipped.end
    if read_json(d, &inner, &value, 1) < 0:
        return MALFORMED
    return whole_json(d, &inner)


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
    memset(&e, 0, sizeof(e))
    e.goes_on = partial or problems_max > 1     # entries behind one that is not acceptable are still decoded
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
        dictionary_free(&e.unknown_names)
        free_decoder(&d)
        PyBuffer_Release(&view)

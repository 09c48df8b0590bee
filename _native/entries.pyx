# Flat JSON entries -> rows, by a plan made at run time from a table's columns.
#
# The entries are the elements of an array, or one object, or one object a line (NDJSON), or the
# elements of an array that is a member of an object; the other members of that object are reached by
# rules whose path begins with "../" and hold for every entry.
#
# An entry is passed over once: each member the plan knows leaves the span of its value in a slot (so
# the last of duplicates wins), the others go to a list, and of objects that will be flattened the
# members are noted. Then each output's rules are carried out in order, reading the spans. All or
# nothing: an entry that is not acceptable refuses the request, but only after the rest was seen to be
# JSON. Or, where the dialect can say so, such entries are left out.

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


cdef int write_entries(entries_t *e, int depth) noexcept nogil:
    """The object at the cursor as a row of each output."""
    cdef decoder_t *d = e.d
    cdef const uint8_t *start = e.j.p
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
        e.plan = &e.outputs[i]
        status = write_entry(e, &d.outputs[i])
        if status < 0:
            return status
    d.rows += 1
    # Small entries cannot outrun the limit by much between two looks.
    if d.rows % 64 == 0 or <size_t> (e.j.p - start) + e.shared_bytes > 4096:
        if grown(d) > d.column_bytes_max:
            return TOO_LARGE
    return OK


cdef bint is_refused(entries_t *e) noexcept nogil:
    """Whether the request is refused and nothing more is to be told: the rest is only checked."""
    return not e.problems.partial and e.problems.count >= e.problems.kept_max


cdef int add_problem(entries_t *e, size_t index, int status) noexcept nogil:
    """Count what is wrong with the entry, and keep it if it is one of the first."""
    cdef problems_t *problems = &e.problems
    cdef problem_t problem
    problems.count += 1
    if problems.count > problems.kept_max:
        return OK
    memset(&problem, 0, sizeof(problem))
    problem.index = index
    problem.status = status
    problem.placed = e.in_array and not e.bad_shared
    if status == MALFORMED:
        problem.at = e.d.error_at
        problem.text = e.d.error_text
    else:
        problem.text = e.bad_text
        if e.bad_name.p != NULL:
            # The name may lie in a buffer that the next entry uses.
            problem.name_size = min(e.bad_name.size, <size_t> C_KEY_BYTES_MAX)
            if buffer_append(&problems.names, e.bad_name.p, problem.name_size) < 0:
                return NO_MEMORY
    return NO_MEMORY if buffer_append(&problems.kept, &problem, sizeof(problem)) < 0 else OK


cdef list problems_found(entries_t *e):
    """The kept ones as Problems."""
    cdef problem_t *problem = <problem_t *> e.problems.kept.data
    cdef const char *name = <const char *> e.problems.names.data
    cdef str member = PyBytes_FromStringAndSize(<const char *> e.member.p, e.member.size).decode()
    found = []
    for _ in range(e.problems.kept.size // sizeof(problem_t)):
        if problem.status == MALFORMED:
            e.d.error_at = problem.at
            e.d.error_text = problem.text
            text = str(failure(e.d, MALFORMED, "is not JSON"))
            found.append(Problem(problem.index, f"[{problem.index}]", text))
        else:
            field = b"" if problem.name_size == 0 else name[:problem.name_size]
            field = field.decode("utf-8", "replace")
            name += problem.name_size
            if problem.placed:
                place = f"{member}[{problem.index}]"
                field = f"{place}.{field}" if field else place
            found.append(Problem(problem.index, field, problem.text.decode()))
        problem += 1
    return found


cdef int take_entry(entries_t *e, size_t index, int depth) noexcept nogil:
    """One entry: written, or found not acceptable and taken back, or only checked."""
    cdef json_value_t value
    cdef int status
    cdef size_t cut = e.d.attributes_cut, clamped = e.d.timestamps_clamped, rows = e.d.rows
    e.saved = False
    if is_refused(e):
        return read_json(e.d, &e.j, &value, depth)
    status = write_entries(e, depth)
    if status == INVALID:
        if add_problem(e, index, status) < 0:
            return NO_MEMORY
        if e.saved:
            undo_entry(e.d)
            e.saved = False
        e.d.rows = rows
        e.d.attributes_cut = cut
        e.d.timestamps_clamped = clamped
        return OK
    return status


cdef int take_lines(entries_t *e) noexcept nogil:
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
            if e.entries_max and index >= e.entries_max:
                e.over += 1
            else:
                cut = e.d.attributes_cut
                clamped = e.d.timestamps_clamped
                rows = e.d.rows
                known = e.problems.count
                status = take_entry(e, index, 0)
                if status == OK:
                    status = whole_json(e.d, &e.j)
                if status == MALFORMED and e.problems.partial:
                    if e.problems.count == known and add_problem(e, index, status) < 0:     # a line is wrong once
                        return NO_MEMORY
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


cdef int take_array(entries_t *e, int depth) noexcept nogil:
    """The elements of the array at the cursor; ``depth``: containers around it."""
    cdef json_value_t value
    cdef size_t index = 0
    cdef int status, more = open_container(e.d, &e.j, 91, depth)
    while more == 1:
        if e.entries_max and index >= e.entries_max:
            e.over += 1
            status = read_json(e.d, &e.j, &value, depth + 1)
        else:
            status = take_entry(e, index, depth + 1)
        if status < 0:
            return status
        index += 1
        more = next_item(e.d, &e.j, 93)
    return more


cdef int take_member(entries_t *e) noexcept nogil:
    """An object with the entries in one of its members.

    They are decoded where they stand, and once more if the object, behind them, says something else
    of what they share, or has other entries: of a member that comes twice the last one counts.
    """
    cdef decoder_t *d = e.d
    cdef string_t key
    cdef text_t name, none
    cdef json_value_t value, found
    cdef bint is_entries, taken = False, again = False
    cdef int shared, status
    none.p = NULL
    none.size = 0
    found.type = 0
    found.p = e.j.p
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
        is_entries = same_text(&name, &e.member)
        shared = shared_number(e, &name)
        skip_space(&e.j)
        value.type = e.j.p[0] if e.j.p < e.j.end else 0
        if is_entries and not taken and value.type == 91:
            taken = True
            value.p = e.j.p
            status = take_elements(e)
            value.end = e.j.p
        else:
            status = read_json(d, &e.j, &value, 1)
            again |= taken and (is_entries or shared >= 0)
        if status == OK and shared >= 0:
            status = take_shared(e, shared, &value)
        if status < 0:
            return status
        if is_entries:
            found = value
        status = next_item(d, &e.j, 125)
    if status < 0 or whole_json(d, &e.j) < 0:
        return MALFORMED
    if found.type == 91 and not again:
        return OK
    forget_entries(e)
    if found.type != 91:
        return refuse(e, &e.member, "is required" if found.type == 0 else "must be an array")
    e.j.p = found.p
    status = take_elements(e)
    e.j.p = e.j.end
    return status


cdef int take_elements(entries_t *e) noexcept nogil:
    """The entries, which are the elements of the array at the cursor."""
    e.in_array = True
    return take_array(e, 1)


cdef int shared_number(entries_t *e, text_t *name) noexcept nogil:
    """Which of the members that the entries share it is, or -1."""
    cdef int i
    for i in range(e.shared_count):
        if same_text(name, &e.shared_names[i]):
            return i
    return -1


cdef int take_shared(entries_t *e, int number, json_value_t *value) noexcept nogil:
    """Keep what the entries share, and its text: made once, for it may be long and the entries many."""
    cdef buffer_t *kept = &e.shared_texts[number]
    cdef text_t text
    if scalar_text(e, value, &text) < 0:
        return NO_MEMORY
    e.shared[number] = value[0]
    e.shared_bytes -= kept.size
    kept.size = 0
    if buffer_append_text(kept, text.p, text.size) < 0:
        return NO_MEMORY
    e.shared_bytes += kept.size
    return OK


cdef void forget_entries(entries_t *e) noexcept nogil:
    """As if none had been taken yet."""
    cdef decoder_t *d = e.d
    cdef int i, c
    for i in range(d.output_count):
        for c in range(d.outputs[i].count):
            column_restore(&d.outputs[i].columns[c], &d.outputs[i].columns[c].request)
    d.rows = 0
    d.attributes_cut = 0
    d.timestamps_clamped = 0
    e.in_array = False
    e.over = 0
    e.problems.count = 0
    e.problems.kept.size = 0
    e.problems.names.size = 0


cdef int decode_entries(entries_t *e, bint lines) noexcept nogil:
    cdef decoder_t *d = e.d
    cdef int status, i
    skip_space(&e.j)
    if lines:
        e.in_array = True
        status = take_lines(e)
    elif e.member.size:
        status = take_member(e)
    elif e.j.p < e.j.end and e.j.p[0] == 91:
        e.in_array = True
        status = take_array(e, 0)
    else:
        status = take_entry(e, 0, 0)
    if status == OK and not lines:
        status = whole_json(d, &e.j)
    if status == INVALID:
        return NO_MEMORY if add_problem(e, 0, status) < 0 else INVALID
    if status < 0:
        return status
    if e.problems.count and not e.problems.partial:
        return INVALID
    if grown(d) > d.column_bytes_max:
        return TOO_LARGE
    for i in range(d.output_count):
        d.outputs[i].rows = d.rows
    return fill_request(d)


cdef object refusal(entries_t *e):
    """What is not acceptable, where, and what it must be."""
    problems = problems_found(e)
    first = problems[0]
    text = f"{first.field or 'the body'} {first.message}"
    return Invalid(text, field=first.field or None, index=first.index if e.in_array else None, problems=problems)


def entries(body, EntryPlan plan not None, outputs, *, constants, int64_t arrival_ns, int64_t time_min_ns=0,
            int64_t time_max_ns=INT64_MAX, size_t column_bytes_max=256 << 20, size_t entries_max=0,
            bint nan_literals=False, bint lines=False, bint partial=False, size_t problems_max=1,
            bytes record_id=None):
    """Flat JSON entries, all or nothing, or with ``partial`` what is acceptable of them."""
    cdef decoder_t d
    cdef entries_t e
    cdef Py_buffer view
    cdef int status
    cdef tuple columns = tuple(outputs)
    if problems_max < 1 or (record_id is not None and len(record_id) != 16):
        raise ValueError("problems_max is at least 1, a record_id 16 bytes")
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    memset(&e, 0, sizeof(e))
    try:
        begin(&d, &view, arrival_ns, time_min_ns, time_max_ns, column_bytes_max)
        project_id = borrow(constants, "project_id", &d.project_id)
        dialect = borrow(constants, "dialect", &d.dialect)
        trace_id = borrow(constants, "trace_id", &d.trace_id)
        plan.lay_out(&e)
        e.d = &d
        e.problems.kept_max = problems_max
        e.problems.partial = partial
        e.goes_on = partial or problems_max > 1     # entries behind one that is not acceptable are still decoded
        e.entries_max = entries_max
        if record_id is not None:
            e.record_id = <const uint8_t *> <const char *> record_id
        start_json(&d, &e.j, MAX_JSON_DEPTH, nan_literals)
        bind_outputs(&d, plan.layouts, plan.sources, columns)
        if may_release(&view):
            lend(columns, True)
            with nogil:
                status = decode_entries(&e, lines)
            lend(columns, False)
        else:
            status = decode_entries(&e, lines)
        if status < 0:
            undo(columns)
            raise refusal(&e) if status == INVALID else failure(&d, status, "not JSON")
        return counts_of_entries(&e)
    finally:
        free_entries(&e)
        free_decoder(&d)
        PyBuffer_Release(&view)


cdef Decoded counts_of_entries(entries_t *e):
    cdef Decoded decoded = counts_of(e.d)
    if e.over:
        decoded.rejected["count"] = e.over
        decoded.message = f"only the first {e.entries_max} entries of a request are kept"
    if e.problems.count:
        decoded.rejected["invalid"] = e.problems.count
        decoded.problems = tuple(problems_found(e))
        decoded.message = f"{decoded.problems[0].field} {decoded.problems[0].message}"
    return decoded


cdef void free_entries(entries_t *e) noexcept nogil:
    cdef int i
    for i in range(e.shared_count):
        buffer_free(&e.shared_texts[i])
    buffer_free(&e.key)
    buffer_free(&e.work)
    buffer_free(&e.problems.kept)
    buffer_free(&e.problems.names)
    buffer_free(&e.unknown)
    buffer_free(&e.noted)
    dictionary_free(&e.unknown_names)

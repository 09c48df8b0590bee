# Whether a body mentions a text at all: most do not, and need no plan for what it stands for.

cdef bint found_in(const char *at, size_t size, const char *text, size_t text_size, bint escaped) noexcept nogil:
    cdef const char *end = at + size
    if memmem(at, size, text, text_size) != NULL:
        return True
    while escaped:
        at = <const char *> memchr(at, c'\\', end - at)
        if at == NULL or at + 1 >= end:
            break
        if at[1] == c'u':
            return True
        at += 2
    return False


def mentions(body, bytes text not None, *, bint escaped=False):
    """Whether ``text`` occurs in ``body``; with ``escaped`` also whether JSON's ``\\u`` might spell it."""
    cdef Py_buffer view
    cdef const char *needle = text
    cdef size_t needle_size = len(text)
    cdef bint found
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        if may_release(&view):
            with nogil:
                found = found_in(<const char *> view.buf, view.len, needle, needle_size, escaped)
        else:
            found = found_in(<const char *> view.buf, view.len, needle, needle_size, escaped)
    finally:
        PyBuffer_Release(&view)
    return found

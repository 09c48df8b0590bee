# The token bucket of the rate limits, in memory that several processes share.

cdef extern from *:
    """
    static inline int64_t cell_read(int64_t *cell) { return __atomic_load_n(cell, __ATOMIC_RELAXED); }
    static inline int cell_swap(int64_t *cell, int64_t *seen, int64_t now) {
        return __atomic_compare_exchange_n(cell, seen, now, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    """
    int64_t cell_read(int64_t *cell) nogil
    int cell_swap(int64_t *cell, int64_t *seen, int64_t now) nogil


def take_tokens(cells, Py_ssize_t place, int64_t now_ns, *, double each_ns, double burst, double cost):
    """Take ``cost`` tokens from the bucket at ``place``; (seconds to wait, tokens left)."""
    cdef Py_buffer view
    cdef int64_t *cell
    cdef int64_t full_ns, empty_ns
    cdef double wait_ns
    PyObject_GetBuffer(cells, &view, PyBUF_WRITABLE)
    try:
        if not 0 <= place < view.len // <Py_ssize_t> sizeof(int64_t):
            raise IndexError("there is no such bucket")
        cell = (<int64_t *> view.buf) + place
        full_ns = cell_read(cell)
        while True:
            empty_ns = full_ns - now_ns if full_ns > now_ns else 0
            wait_ns = <double> empty_ns + (cost - burst) * each_ns
            if wait_ns > 0:
                return wait_ns / 1e9, burst - empty_ns / each_ns
            # Rounded down: a minute's requests must fit into a minute.
            empty_ns += <int64_t> (cost * each_ns)
            if cell_swap(cell, &full_ns, now_ns + empty_ns):
                return 0.0, burst - empty_ns / each_ns
    finally:
        PyBuffer_Release(&view)

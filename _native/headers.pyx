# What the C headers offer to the rest.

cdef extern from "buffer.h" nogil:
    ctypedef struct buffer_t:
        uint8_t *data
        size_t size
        size_t capacity
    int buffer_reserve(buffer_t *buffer, size_t extra)
    int buffer_append(buffer_t *buffer, const void *data, size_t size)
    int buffer_append_byte(buffer_t *buffer, uint8_t byte)
    int buffer_append_varint(buffer_t *buffer, uint64_t value)
    void buffer_free(buffer_t *buffer)

cdef extern from "dictionary.h" nogil:
    ctypedef struct entry_t:
        uint32_t position
    ctypedef struct dictionary_t:
        buffer_t bytes
        entry_t *entries
        uint32_t count
        uint32_t slot_count
    uint64_t dictionary_seed
    void dictionary_free(dictionary_t *dictionary)
    void dictionary_truncate(dictionary_t *dictionary, uint32_t count, size_t bytes_size)

cdef extern from "column.h" nogil:
    enum: KIND_FIXED
    enum: KIND_STRING
    enum: KIND_LOW
    enum: KIND_MAP
    enum: TYPE_OTHER
    enum: TYPE_INTEGER
    enum: TYPE_FLOAT
    enum: TYPE_BOOL
    enum: TYPE_DATETIME64
    enum: NO_INDEX
    enum: C_ATTRIBUTES_MAX "ATTRIBUTES_MAX"
    enum: C_KEY_BYTES_MAX "KEY_BYTES_MAX"
    enum: C_VALUE_BYTES_MAX "VALUE_BYTES_MAX"
    ctypedef struct column_mark_t:
        pass
    ctypedef struct column_t:
        int kind
        int type
        int width
        int signed_
        int scale
        int nullable
        size_t rows
        buffer_t data
        buffer_t nulls
        buffer_t indexes
        buffer_t offsets
        dictionary_t dictionary
        size_t values_start
        column_mark_t mark
        column_mark_t request
        column_mark_t entry
    void column_save(const column_t *column, column_mark_t *mark)
    void column_restore(column_t *column, const column_mark_t *mark)
    size_t column_bytes(const column_t *column)
    size_t column_least_bytes(const column_t *column)
    void column_clear(column_t *column)
    void column_free(column_t *column)
    int column_append_fixed(column_t *column, uint64_t value)
    int column_append_text(column_t *column, const uint8_t *p, size_t size)
    int column_append_default(column_t *column)
    int column_fill_default(column_t *column, size_t rows)
    int column_repeat_text(column_t *column, size_t row_bytes, size_t rows)
    int column_fill_text(column_t *column, const uint8_t *p, size_t size, size_t rows)
    int append_sized_text(buffer_t *out, const uint8_t *p, size_t size, size_t max)
    void map_begin(column_t *column)
    size_t map_open_entries(const column_t *column)
    int map_key(column_t *column, const uint8_t *p, size_t size)
    int map_end(column_t *column)
    int map_repeat(column_t *column, size_t times)
    int append_column(buffer_t *out, const column_t *column)
    int64_t dictionary_entry(dictionary_t *dictionary, const uint8_t *p, size_t size, size_t max, int *cut)

cdef extern from "text.h" nogil:
    ctypedef long ssize_t
    int utf8_is_valid(const uint8_t *p, size_t n)
    int buffer_append_text(buffer_t *out, const uint8_t *p, size_t n)
    int buffer_append_json_string(buffer_t *out, const uint8_t *p, size_t n)
    int buffer_append_base64(buffer_t *out, const uint8_t *p, size_t n)
    ssize_t base64_decode(const uint8_t *p, size_t n, uint8_t *out)
    void hex_encode(const uint8_t *p, size_t n, uint8_t *out)
    int hex_decode(const uint8_t *p, size_t n, uint8_t *out)
    size_t scan_json_string(const uint8_t *p, size_t n)
    int json_unescape(const uint8_t *p, size_t n, buffer_t *out, size_t *bad)
    int severity_of_level(const uint8_t *p, size_t n)

cdef extern from "number.h" nogil:
    void number_init()
    int format_double(double v, uint8_t *out)
    int format_int64(int64_t v, uint8_t *out)
    int format_uint64(uint64_t v, uint8_t *out)
    int parse_double(const uint8_t *p, size_t n, double *out)
    int parse_int64(const uint8_t *p, size_t n, int64_t *out)
    int parse_uint64(const uint8_t *p, size_t n, uint64_t *out)
    int parse_integral(const uint8_t *p, size_t n, int64_t *out)
    int parse_whole(const uint8_t *p, size_t n, uint64_t *out)

cdef extern from "time.h" nogil:
    int parse_rfc3339(const uint8_t *p, size_t n, int64_t *ns)
    int parse_epoch_any(const uint8_t *p, size_t n, int64_t *ns)

cdef extern from "cityhash.h" nogil:
    void cityhash128(const uint8_t *p, size_t n, uint64_t *out)

cdef extern from "string.h" nogil:
    const void *memmem(const void *p, size_t size, const void *needle, size_t needle_size)

cdef extern from * nogil:
    """
    static inline double double_from_bits(uint64_t bits) { double value; memcpy(&value, &bits, 8); return value; }
    static inline uint64_t bits_from_double(double value) { uint64_t bits; memcpy(&bits, &value, 8); return bits; }
    #define likely_(x) __builtin_expect(!!(x), 1)
    #define unlikely_(x) __builtin_expect(!!(x), 0)
    """
    double double_from_bits(uint64_t bits)
    uint64_t bits_from_double(double value)
    bint likely_(bint x)
    bint unlikely_(bint x)


cdef object seed_dictionaries(uint64_t seed):
    """Seed the hash of dictionaries, so that nobody can prepare keys that collide."""
    global dictionary_seed
    dictionary_seed = seed


ATTRIBUTES_MAX = C_ATTRIBUTES_MAX
KEY_BYTES_MAX = C_KEY_BYTES_MAX
VALUE_BYTES_MAX = C_VALUE_BYTES_MAX

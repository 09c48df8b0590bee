/* A growable ClickHouse column of one of four kinds:
 *
 *   FIXED   `data`: the values, little-endian, `width` bytes each
 *   STRING  `data`: for each row its length as varint and its bytes
 *   LOW     `dictionary`, and in `indexes` one uint32 a row
 *   MAP     `dictionary` of the keys, in `indexes` one uint32 an entry, `data`: the values as in
 *           STRING, `offsets`: for each row the number of entries so far, uint64
 *
 * A nullable FIXED or STRING column has one byte a row in `nulls`. Everything is kept as the block
 * wants it. Text is repaired to UTF-8 on its way in. Every appending function returns 0, or -1 when
 * memory is out; after -1 the caller takes the row back by `column_restore`. */
#ifndef WEIR_COLUMN_H
#define WEIR_COLUMN_H
#include "buffer.h"
#include "dictionary.h"
#include "text.h"

enum { KIND_FIXED, KIND_STRING, KIND_LOW, KIND_MAP };
enum { TYPE_OTHER, TYPE_INTEGER, TYPE_FLOAT, TYPE_BOOL, TYPE_DATETIME64 };

#define NO_INDEX UINT32_MAX
#define ATTRIBUTES_MAX 128
#define KEY_BYTES_MAX 256
#define VALUE_BYTES_MAX 65536

typedef struct {
    size_t data, nulls, indexes, offsets, dictionary_bytes;
    uint32_t dictionary_count;
    size_t rows;
} column_mark_t;

typedef struct {
    int kind;
    int type;     /* FIXED: what the bytes mean */
    int width;    /* FIXED: bytes a value */
    int signed_;  /* FIXED integers */
    int scale;    /* DateTime64: decimal digits of a second */
    int nullable;
    size_t rows;
    buffer_t data;
    buffer_t nulls;
    buffer_t indexes;
    buffer_t offsets;
    dictionary_t dictionary;
    uint32_t last;          /* LOW: the previous row's entry, or NO_INDEX */
    size_t previous_start;  /* MAP: where the previous row's entries begin; they predict this row's */
    size_t row_start;       /* MAP: where the open row's entries begin ... */
    size_t values_start;    /* ... and its values */
    uint32_t row_stamp;     /* MAP: tells the open row's uses of a key from older ones */
    int dead;               /* MAP: entries of the open row that a later duplicate replaced */
    column_mark_t mark;     /* what Columns.rollback returns to */
    column_mark_t request;  /* what a failed decode returns to */
    column_mark_t entry;    /* what a refused entry returns to */
} column_t;

static inline void column_save(const column_t *column, column_mark_t *mark) {
    mark->data = column->data.size;
    mark->nulls = column->nulls.size;
    mark->indexes = column->indexes.size;
    mark->offsets = column->offsets.size;
    mark->dictionary_bytes = column->dictionary.bytes.size;
    mark->dictionary_count = column->dictionary.count;
    mark->rows = column->rows;
}

static inline void column_restore(column_t *column, const column_mark_t *mark) {
    column->data.size = mark->data;
    column->nulls.size = mark->nulls;
    column->indexes.size = mark->indexes;
    column->offsets.size = mark->offsets;
    dictionary_truncate(&column->dictionary, mark->dictionary_count, mark->dictionary_bytes);
    column->rows = mark->rows;
    column->last = NO_INDEX;
    column->previous_start = SIZE_MAX;
    column->dead = 0;
}

static inline size_t column_bytes(const column_t *column) {
    return column->data.size + column->nulls.size + column->indexes.size + column->offsets.size +
           column->dictionary.bytes.size;
}

/* What a row takes at least. */
static inline size_t column_least_bytes(const column_t *column) {
    if (column->kind == KIND_FIXED)
        return (size_t)column->width;
    return column->kind == KIND_STRING ? 1 : column->kind == KIND_LOW ? 4 : 8;
}

static inline void column_clear(column_t *column) {
    column->data.size = column->nulls.size = column->indexes.size = column->offsets.size = 0;
    dictionary_clear(&column->dictionary);
    column->rows = 0;
    column->last = NO_INDEX;
    column->previous_start = SIZE_MAX;
    column->row_stamp = 0;
    column->dead = 0;
}

static inline void column_free(column_t *column) {
    buffer_free(&column->data);
    buffer_free(&column->nulls);
    buffer_free(&column->indexes);
    buffer_free(&column->offsets);
    dictionary_free(&column->dictionary);
}

static inline int append_index(buffer_t *indexes, uint32_t index) {
    if (buffer_reserve(indexes, 4) < 0)
        return -1;
    memcpy(indexes->data + indexes->size, &index, 4);
    indexes->size += 4;
    return 0;
}

static inline uint32_t index_at(const buffer_t *indexes, size_t position) {
    return load32(indexes->data + position * 4);
}

static inline int append_null_flag(column_t *column, uint8_t is_null) {
    return column->nullable ? buffer_append_byte(&column->nulls, is_null) : 0;
}

/* FIXED: the low `width` bytes of `value`. */
static inline int column_append_fixed(column_t *column, uint64_t value) {
    if (append_null_flag(column, 0) < 0 || buffer_reserve(&column->data, 8) < 0)
        return -1;
    memcpy(column->data.data + column->data.size, &value, 8);
    column->data.size += (size_t)column->width;
    column->rows++;
    return 0;
}

/* Copies `size` bytes; 0 where one of them is not ASCII, and then what was copied counts for nothing. */
static inline int copy_ascii(uint8_t *to, const uint8_t *from, size_t size) {
    static const uint64_t high = 0x8080808080808080ull;
    if (size >= 8) {
        uint64_t seen = 0;
        size_t i = 0;
        for (; i + 8 <= size; i += 8) {
            uint64_t word = load64(from + i);
            memcpy(to + i, &word, 8);
            seen |= word;
        }
        uint64_t tail = load64(from + size - 8);
        memcpy(to + size - 8, &tail, 8);
        return ((seen | tail) & high) == 0;
    }
    if (size >= 4) {
        uint32_t head = load32(from), tail = load32(from + size - 4);
        memcpy(to, &head, 4);
        memcpy(to + size - 4, &tail, 4);
        return ((head | tail) & (uint32_t)high) == 0;
    }
    uint8_t seen = 0;
    for (size_t i = 0; i < size; i++)
        seen |= to[i] = from[i];
    return seen < 0x80;
}

/* The length as varint, then the text, repaired where it is not UTF-8, cut to `max` bytes;
 * 1 when it was cut. */
static inline int append_sized_text(buffer_t *out, const uint8_t *p, size_t size, size_t max) {
    if (__builtin_expect(size <= max, 1)) {
        if (buffer_reserve(out, size + 10) < 0)
            return -1;
        uint8_t *to = out->data + out->size;
        size_t length = size;
        while (length >= 0x80) {
            *to++ = (uint8_t)(length | 0x80);
            length >>= 7;
        }
        *to++ = (uint8_t)length;
        if (!copy_ascii(to, p, size)) {
            if (!utf8_is_valid(p, size))
                goto repair;
            memcpy(to, p, size);
        }
        out->size = (size_t)(to - out->data) + size;
        return 0;
    }
repair:;
    buffer_t repaired = {0};
    int status = size > max;
    /* Repairing makes nothing shorter, and a character has at most four bytes: what lies behind cannot matter. */
    if (status && size - max > 4)
        size = max + 4;
    if (buffer_append_text(&repaired, p, size) < 0) {
        buffer_free(&repaired);
        return -1;
    }
    size_t kept = repaired.size > max ? utf8_floor(repaired.data, repaired.size, max) : repaired.size;
    status |= kept < repaired.size;
    if (buffer_append_varint(out, kept) < 0 || buffer_append(out, repaired.data, kept) < 0)
        status = -1;
    buffer_free(&repaired);
    return status;
}

/* STRING: any text, without a cap of its own. */
static inline int column_append_string(column_t *column, const uint8_t *p, size_t size) {
    if (append_null_flag(column, 0) < 0 || append_sized_text(&column->data, p, size, SIZE_MAX) < 0)
        return -1;
    column->rows++;
    return 0;
}

/* Entry number of a text of at most `max` bytes, added when new; -1 when memory is out. */
static int64_t dictionary_entry(dictionary_t *dictionary, const uint8_t *p, size_t size, size_t max, int *cut) {
    uint32_t hash = dictionary_hash(p, size);
    int64_t index = dictionary_find(dictionary, p, size, hash);
    if (index >= 0)
        return index;
    if (size <= max && utf8_is_valid(p, size))
        return dictionary_add(dictionary, p, size, hash);
    buffer_t repaired = {0};
    if (buffer_append_text(&repaired, p, size) < 0) {
        buffer_free(&repaired);
        return -1;
    }
    size_t kept = repaired.size;
    if (kept > max) {
        kept = utf8_floor(repaired.data, repaired.size, max);
        *cut = 1;
    }
    hash = dictionary_hash(repaired.data, kept);
    index = dictionary_find(dictionary, repaired.data, kept, hash);
    if (index < 0)
        index = dictionary_add(dictionary, repaired.data, kept, hash);
    buffer_free(&repaired);
    return index;
}

/* LOW */
static inline int column_append_low(column_t *column, const uint8_t *p, size_t size) {
    int64_t index = column->last;
    int cut = 0;
    if (column->last == NO_INDEX || !dictionary_matches(&column->dictionary, column->last, p, size)) {
        index = dictionary_entry(&column->dictionary, p, size, SIZE_MAX, &cut);
        if (index < 0)
            return -1;
        column->last = (uint32_t)index;
    }
    if (append_index(&column->indexes, (uint32_t)index) < 0)
        return -1;
    column->rows++;
    return 0;
}

/* STRING or LOW */
static inline int column_append_text(column_t *column, const uint8_t *p, size_t size) {
    return column->kind == KIND_LOW ? column_append_low(column, p, size) : column_append_string(column, p, size);
}

/* The type's default: zero, empty, no entries; NULL where nullable. */
static inline int column_append_default(column_t *column) {
    static const uint8_t nothing[1] = {0};
    if (column->kind == KIND_LOW)
        return column_append_low(column, nothing, 0);
    if (append_null_flag(column, 1) < 0)
        return -1;
    if (column->kind == KIND_FIXED) {
        uint64_t zero = 0;
        if (buffer_append(&column->data, &zero, (size_t)column->width) < 0)
            return -1;
    } else if (column->kind == KIND_STRING) {
        if (buffer_append_byte(&column->data, 0) < 0)
            return -1;
    } else {
        uint64_t entries = column->indexes.size / 4;
        column->previous_start = SIZE_MAX;
        if (buffer_append(&column->offsets, &entries, 8) < 0)
            return -1;
    }
    column->rows++;
    return 0;
}

/* `rows` defaults at once. */
static int column_fill_default(column_t *column, size_t rows) {
    if (column->kind == KIND_FIXED) {
        size_t size = rows * (size_t)column->width;
        if (buffer_reserve(&column->data, size) < 0 || buffer_reserve(&column->nulls, rows) < 0)
            return -1;
        if (size)
            memset(column->data.data + column->data.size, 0, size);
        column->data.size += size;
        if (column->nullable && rows) {
            memset(column->nulls.data + column->nulls.size, 1, rows);
            column->nulls.size += rows;
        }
        column->rows += rows;
        return 0;
    }
    for (size_t row = 0; row < rows; row++)
        if (column_append_default(column) < 0)
            return -1;
    return 0;
}

/* MAP: opens a row. Then for each entry `map_key`, and its value appended to `data` as sized text. */
static inline void map_begin(column_t *column) {
    column->row_start = column->indexes.size / 4;
    column->values_start = column->data.size;
    column->row_stamp++;
    column->dead = 0;
}

/* Number of entries in the open row, duplicates included. */
static inline size_t map_open_entries(const column_t *column) {
    return column->indexes.size / 4 - column->row_start;
}

/* MAP: the key of the next entry. 0, 1 when it was cut, or -1. A key that the open row already has
 * replaces it: the older entry is marked and leaves in `map_end`. */
static inline int map_key(column_t *column, const uint8_t *p, size_t size) {
    size_t position = column->indexes.size / 4;
    size_t predicted_at = column->previous_start + (position - column->row_start);
    int64_t index = -1;
    int cut = 0;
    if (column->previous_start != SIZE_MAX && predicted_at < column->row_start) {
        uint32_t predicted = index_at(&column->indexes, predicted_at);
        if (dictionary_matches(&column->dictionary, predicted, p, size))
            index = predicted;
    }
    if (index < 0) {
        index = dictionary_entry(&column->dictionary, p, size, KEY_BYTES_MAX, &cut);
        if (index < 0)
            return -1;
    }
    entry_t *entry = &column->dictionary.entries[index];
    if (entry->row == column->row_stamp) {
        uint32_t none = NO_INDEX;
        memcpy(column->indexes.data + (size_t)(column->row_start + entry->position) * 4, &none, 4);
        column->dead++;
    }
    entry->row = column->row_stamp;
    entry->position = (uint32_t)(position - column->row_start);
    return append_index(&column->indexes, (uint32_t)index) < 0 ? -1 : cut;
}

static inline size_t read_size(const uint8_t **p) {
    size_t size = 0;
    for (int shift = 0;; shift += 7) {
        uint8_t byte = *(*p)++;
        size |= (size_t)(byte & 0x7F) << shift;
        if (byte < 0x80)
            return size;
    }
}

/* MAP: drops the entries of the open row that a duplicate replaced. */
static void map_compact(column_t *column) {
    size_t entries = column->indexes.size / 4;
    const uint8_t *from = column->data.data + column->values_start;
    uint8_t *to = column->data.data + column->values_start;
    size_t kept = column->row_start;
    for (size_t entry = column->row_start; entry < entries; entry++) {
        uint32_t index = index_at(&column->indexes, entry);
        const uint8_t *value = from;
        size_t size = read_size(&from);
        from += size;
        if (index == NO_INDEX)
            continue;
        memmove(to, value, (size_t)(from - value));
        to += from - value;
        memcpy(column->indexes.data + kept * 4, &index, 4);
        kept++;
    }
    column->indexes.size = kept * 4;
    column->data.size = (size_t)(to - column->data.data);
    column->dead = 0;
}

/* MAP: closes the open row. */
static inline int map_end(column_t *column) {
    if (column->dead)
        map_compact(column);
    uint64_t entries = column->indexes.size / 4;
    if (buffer_append(&column->offsets, &entries, 8) < 0)
        return -1;
    column->previous_start = column->row_start;
    column->rows++;
    return 0;
}

/* MAP: appends the newest row `times` more; the last of them is the newest then. The caller has checked that this stays within its limit. */
static int map_repeat(column_t *column, size_t times) {
    size_t start = column->row_start;
    size_t entry_bytes = column->indexes.size - start * 4;
    size_t value_bytes = column->data.size - column->values_start;
    if (times == 0)
        return 0;
    if (buffer_reserve(&column->indexes, entry_bytes * times) < 0 ||
        buffer_reserve(&column->data, value_bytes * times) < 0 || buffer_reserve(&column->offsets, 8 * times) < 0)
        return -1;
    for (size_t time = 0; time < times; time++) {
        if (entry_bytes)
            memcpy(column->indexes.data + column->indexes.size, column->indexes.data + start * 4, entry_bytes);
        if (value_bytes)
            memcpy(column->data.data + column->data.size, column->data.data + column->values_start, value_bytes);
        column->indexes.size += entry_bytes;
        column->data.size += value_bytes;
        uint64_t entries = column->indexes.size / 4;
        memcpy(column->offsets.data + column->offsets.size, &entries, 8);
        column->offsets.size += 8;
    }
    column->previous_start = SIZE_MAX;
    column->row_start = (column->indexes.size - entry_bytes) / 4;
    column->values_start = column->data.size - value_bytes;
    column->rows += times;
    return 0;
}

/* LOW: the newest row's text for `rows` rows more. */
static int column_repeat_low(column_t *column, size_t rows) {
    if (buffer_reserve(&column->indexes, 4 * rows) < 0)
        return -1;
    for (size_t row = 0; row < rows; row++) {
        memcpy(column->indexes.data + column->indexes.size, column->indexes.data + column->indexes.size - 4, 4);
        column->indexes.size += 4;
    }
    column->rows += rows;
    return 0;
}

/* STRING or LOW: the newest row's text for `rows` rows more; `row_bytes`: what the newest takes in `data`. */
static int column_repeat_text(column_t *column, size_t row_bytes, size_t rows) {
    if (column->kind == KIND_LOW)
        return column_repeat_low(column, rows);
    if (rows == 0)
        return 0;
    if (row_bytes > SIZE_MAX / rows || buffer_reserve(&column->data, row_bytes * rows) < 0)
        return -1;
    uint8_t *to = column->data.data + column->data.size;
    if (row_bytes == 1)
        memset(to, to[-1], rows);
    else
        for (size_t row = 0; row < rows; row++)
            memcpy(to + row * row_bytes, to - row_bytes, row_bytes);
    column->data.size += row_bytes * rows;
    if (column->nullable) {
        if (buffer_reserve(&column->nulls, rows) < 0)
            return -1;
        memset(column->nulls.data + column->nulls.size, 0, rows);
        column->nulls.size += rows;
    }
    column->rows += rows;
    return 0;
}

/* STRING or LOW: the same text for `rows` rows. */
static int column_fill_text(column_t *column, const uint8_t *p, size_t size, size_t rows) {
    if (rows == 0)
        return 0;
    size_t before = column->data.size;
    if (column_append_text(column, p, size) < 0)
        return -1;
    return column_repeat_text(column, column->data.size - before, rows - 1);
}

/* Entries, as the block wants them: the narrowest index type that holds the dictionary. */
static inline int index_width(uint32_t count) {
    return count <= 0x100 ? 1 : count <= 0x10000 ? 2 : 4;
}

static void narrow_indexes(const buffer_t *indexes, int width, uint8_t *out) {
    const uint32_t *from = (const uint32_t *)(const void *)indexes->data;
    size_t count = indexes->size / 4;
    if (width == 1) {
        for (size_t i = 0; i < count; i++)
            out[i] = (uint8_t)from[i];
    } else if (width == 2) {
        uint16_t *to = (uint16_t *)(void *)out;
        for (size_t i = 0; i < count; i++) {
            uint16_t value = (uint16_t)from[i];
            memcpy(to + i, &value, 2);
        }
    } else if (count) {
        memcpy(out, from, count * 4);
    }
}

/* LowCardinality data behind its version prefix: what the indexes are, the dictionary, the indexes.
 * ClickHouse reads nothing at all when there are no values. */
static int append_low_cardinality(buffer_t *out, const column_t *column) {
    uint64_t count = column->indexes.size / 4;
    if (count == 0)
        return 0;
    int width = index_width(column->dictionary.count);
    /* has additional keys (1 << 9), update dictionary (1 << 10), index type 0, 1 or 2 */
    uint64_t flags = 0x600 | (width == 1 ? 0 : width == 2 ? 1 : 2);
    uint64_t keys = column->dictionary.count;
    if (buffer_append(out, &flags, 8) < 0 || buffer_append(out, &keys, 8) < 0 ||
        buffer_append(out, column->dictionary.bytes.data, column->dictionary.bytes.size) < 0 ||
        buffer_append(out, &count, 8) < 0 || buffer_reserve(out, count * (uint64_t)width) < 0)
        return -1;
    narrow_indexes(&column->indexes, width, out->data + out->size);
    out->size += count * (uint64_t)width;
    return 0;
}

/* The column's data as a Native block of revision 0 has it. */
static int append_column(buffer_t *out, const column_t *column) {
    static const uint64_t low_cardinality_version = 1;
    if (column->kind == KIND_LOW)
        return column->rows == 0 ? 0
               : buffer_append(out, &low_cardinality_version, 8) < 0 ? -1
                                                                    : append_low_cardinality(out, column);
    if (column->kind == KIND_MAP) {
        if (column->rows == 0)
            return 0;
        if (buffer_append(out, &low_cardinality_version, 8) < 0 ||
            buffer_append(out, column->offsets.data, column->offsets.size) < 0 ||
            append_low_cardinality(out, column) < 0)
            return -1;
        return buffer_append(out, column->data.data, column->data.size);
    }
    if (buffer_append(out, column->nulls.data, column->nulls.size) < 0)
        return -1;
    return buffer_append(out, column->data.data, column->data.size);
}
#endif

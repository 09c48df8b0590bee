/* The distinct strings of one LowCardinality column or of one map's keys, numbered in the order of
 * first use. Entries are kept as the block wants them (length as varint, then the bytes), so that
 * writing them out is one copy. Taking back the newest entries is possible at any time: they were
 * placed last, so clearing their slots cannot break the probe path of an older one. */
#ifndef WEIR_DICTIONARY_H
#define WEIR_DICTIONARY_H
#include "buffer.h"

typedef struct {
    uint32_t offset; /* of the bytes, in `bytes` */
    uint32_t size;
    uint32_t hash;
    uint32_t row;      /* maps: stamp of the last row that used this key ... */
    uint32_t position; /* ... and where in the row */
} entry_t;

typedef struct {
    buffer_t bytes;
    entry_t *entries;
    uint32_t count;
    uint32_t capacity;
    uint32_t *slots; /* entry number + 1; 0 is free */
    uint32_t slot_count;
} dictionary_t;

static inline uint64_t load64(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, 8);
    return value;
}

static inline uint32_t load32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

/* Not a cryptographic hash: an attacker can make keys collide, so probes are bounded by the caller's
 * caps on attributes, and the multiplier is seeded per process. */
static uint64_t dictionary_seed = 0x9E3779B97F4A7C15ull;

static inline uint32_t dictionary_hash(const uint8_t *p, size_t size) {
    uint64_t hash = dictionary_seed ^ (size * 0xFF51AFD7ED558CCDull);
    while (size >= 8) {
        __uint128_t product = (__uint128_t)(hash ^ load64(p)) * 0x9FB21C651E98DF25ull;
        hash = (uint64_t)product ^ (uint64_t)(product >> 64);
        p += 8;
        size -= 8;
    }
    uint64_t tail = 0;
    if (size >= 4) {
        tail = ((uint64_t)load32(p) << 32) | load32(p + size - 4);
    } else if (size > 0) {
        tail = ((uint64_t)p[0] << 16) | ((uint64_t)p[size >> 1] << 8) | p[size - 1];
    }
    __uint128_t product = (__uint128_t)(hash ^ tail) * 0xD6E8FEB86659FD93ull;
    hash = (uint64_t)product ^ (uint64_t)(product >> 64);
    return (uint32_t)(hash ^ (hash >> 32));
}

static inline int dictionary_matches(const dictionary_t *dictionary, uint32_t index, const uint8_t *p, size_t size) {
    const entry_t *entry = &dictionary->entries[index];
    return entry->size == size && (size == 0 || memcmp(dictionary->bytes.data + entry->offset, p, size) == 0);
}

/* The slot that holds the string, or the free one where it belongs. */
static inline uint32_t dictionary_slot(const dictionary_t *dictionary, const uint8_t *p, size_t size, uint32_t hash) {
    uint32_t mask = dictionary->slot_count - 1;
    uint32_t slot = hash & mask;
    while (dictionary->slots[slot] != 0) {
        uint32_t index = dictionary->slots[slot] - 1;
        if (dictionary->entries[index].hash == hash && dictionary_matches(dictionary, index, p, size))
            break;
        slot = (slot + 1) & mask;
    }
    return slot;
}

/* Entry number of the string, or -1. */
static inline int64_t dictionary_find(const dictionary_t *dictionary, const uint8_t *p, size_t size, uint32_t hash) {
    if (dictionary->slot_count == 0)
        return -1;
    return (int64_t)dictionary->slots[dictionary_slot(dictionary, p, size, hash)] - 1;
}

static int dictionary_grow(dictionary_t *dictionary) {
    uint32_t slot_count = dictionary->slot_count ? dictionary->slot_count * 2 : 64;
    if (slot_count == 0)
        return -1;
    uint32_t *slots = (uint32_t *)calloc(slot_count, sizeof(uint32_t));
    if (slots == NULL)
        return -1;
    free(dictionary->slots);
    dictionary->slots = slots;
    dictionary->slot_count = slot_count;
    /* In order, so that the newest entries stay the last ones placed. */
    for (uint32_t index = 0; index < dictionary->count; index++) {
        uint32_t slot = dictionary->entries[index].hash & (slot_count - 1);
        while (slots[slot] != 0)
            slot = (slot + 1) & (slot_count - 1);
        slots[slot] = index + 1;
    }
    return 0;
}

/* Adds a string that is not there yet; its number, or -1 when memory is out. */
static int64_t dictionary_add(dictionary_t *dictionary, const uint8_t *p, size_t size, uint32_t hash) {
    if (dictionary->bytes.size + size + 10 > UINT32_MAX || dictionary->count >= UINT32_MAX / 4)
        return -1;
    if ((uint64_t)(dictionary->count + 1) * 4 > (uint64_t)dictionary->slot_count * 3 && dictionary_grow(dictionary) < 0)
        return -1;
    if (dictionary->count == dictionary->capacity) {
        uint32_t capacity = dictionary->capacity ? dictionary->capacity * 2 : 32;
        entry_t *entries = (entry_t *)realloc(dictionary->entries, capacity * sizeof(entry_t));
        if (entries == NULL)
            return -1;
        dictionary->entries = entries;
        dictionary->capacity = capacity;
    }
    if (buffer_append_varint(&dictionary->bytes, size) < 0)
        return -1;
    entry_t *entry = &dictionary->entries[dictionary->count];
    entry->offset = (uint32_t)dictionary->bytes.size;
    entry->size = (uint32_t)size;
    entry->hash = hash;
    entry->row = 0;
    entry->position = 0;
    if (buffer_append(&dictionary->bytes, p, size) < 0)
        return -1;
    dictionary->slots[dictionary_slot(dictionary, p, size, hash)] = ++dictionary->count;
    return dictionary->count - 1;
}

/* Keeps the first `count` entries, whose bytes end at `bytes_size`. */
static void dictionary_truncate(dictionary_t *dictionary, uint32_t count, size_t bytes_size) {
    while (dictionary->count > count) {
        const entry_t *entry = &dictionary->entries[dictionary->count - 1];
        uint32_t slot = entry->hash & (dictionary->slot_count - 1);
        while (dictionary->slots[slot] != dictionary->count)
            slot = (slot + 1) & (dictionary->slot_count - 1);
        dictionary->slots[slot] = 0;
        dictionary->count--;
    }
    dictionary->bytes.size = bytes_size;
}

static void dictionary_clear(dictionary_t *dictionary) {
    if (dictionary->count)
        memset(dictionary->slots, 0, dictionary->slot_count * sizeof(uint32_t));
    dictionary->count = 0;
    dictionary->bytes.size = 0;
}

static void dictionary_free(dictionary_t *dictionary) {
    buffer_free(&dictionary->bytes);
    free(dictionary->entries);
    free(dictionary->slots);
    memset(dictionary, 0, sizeof(*dictionary));
}
#endif

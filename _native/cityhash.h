/* CityHash128 as of CityHash 1.0.2, the checksum of a ClickHouse compressed block.
 *
 * CityHash 1.1 gives other values for the same bytes: do not "update" this one.
 */
#ifndef WEIR_CITYHASH_H
#define WEIR_CITYHASH_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CITY_K0 UINT64_C(0xc3a5c85c97cb3127)
#define CITY_K1 UINT64_C(0xb492b66fbe98f273)
#define CITY_K2 UINT64_C(0x9ae16a3b2f90404f)
#define CITY_K3 UINT64_C(0xc949d7c7509e6557)
#define CITY_MULTIPLIER UINT64_C(0x9ddfea08eb382d69)

typedef struct {
    uint64_t first, second;
} city_pair_t;

/* Little-endian loads; the gateway runs on little-endian machines only. */
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "cityhash.h reads its words little-endian"
#endif

static inline uint64_t city_load64(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline uint64_t city_load32(const uint8_t *p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline uint64_t city_rotate(uint64_t value, unsigned by) {
    return (value >> (by & 63)) | (value << (-by & 63));
}

static inline uint64_t city_mix(uint64_t value) {
    return value ^ (value >> 47);
}

/* Two words to one, in the manner of Murmur. */
static inline uint64_t city_join(uint64_t low, uint64_t high) {
    uint64_t a = city_mix((low ^ high) * CITY_MULTIPLIER);
    return city_mix((high ^ a) * CITY_MULTIPLIER) * CITY_MULTIPLIER;
}

static inline uint64_t city_at_most_16(const uint8_t *p, size_t n) {
    if (n > 8) {
        uint64_t last = city_load64(p + n - 8);
        return city_join(city_load64(p), city_rotate(last + n, (unsigned)n)) ^ last;
    }
    if (n >= 4)
        return city_join(n + (city_load32(p) << 3), city_load32(p + n - 4));
    if (n == 0)
        return CITY_K2;
    uint64_t y = p[0] + ((uint64_t)p[n >> 1] << 8);
    uint64_t z = n + ((uint64_t)p[n - 1] << 2);
    return city_mix((y * CITY_K2) ^ (z * CITY_K3)) * CITY_K2;
}

/* Stirs 32 bytes into a pair of seeds. */
static inline city_pair_t city_stir(const uint8_t *p, uint64_t a, uint64_t b) {
    uint64_t last = city_load64(p + 24);
    a += city_load64(p);
    uint64_t first = a;
    b = city_rotate(b + a + last, 21);
    a += city_load64(p + 8) + city_load64(p + 16);
    return (city_pair_t){a + last, b + city_rotate(a, 44) + first};
}

/* Fewer than 128 bytes, with a seed. */
static inline city_pair_t city_short(const uint8_t *p, size_t n, city_pair_t seed) {
    uint64_t a = seed.first, b = seed.second, c, d;
    if (n <= 16) {
        a = city_mix(a * CITY_K1) * CITY_K1;
        c = b * CITY_K1 + city_at_most_16(p, n);
        d = city_mix(a + (n >= 8 ? city_load64(p) : c));
    } else {
        c = city_join(city_load64(p + n - 8) + CITY_K1, a);
        d = city_join(b + n, c + city_load64(p + n - 16));
        a += d;
        /* Whole steps of 16; the last, begun part of one is in c and d already. */
        for (size_t at = 0; at + 16 < n; at += 16) {
            a = (a ^ city_mix(city_load64(p + at) * CITY_K1) * CITY_K1) * CITY_K1;
            b ^= a;
            c = (c ^ city_mix(city_load64(p + at + 8) * CITY_K1) * CITY_K1) * CITY_K1;
            d ^= c;
        }
    }
    a = city_join(a, c);
    b = city_join(d, b);
    return (city_pair_t){a ^ b, city_join(b, a)};
}

/* 128 bytes or more, with a seed. */
static inline city_pair_t city_long(const uint8_t *p, size_t n, city_pair_t seed) {
    uint64_t x = seed.first, y = seed.second, z = n * CITY_K1;
    city_pair_t v, w;
    v.first = city_rotate(y ^ CITY_K1, 49) * CITY_K1 + city_load64(p);
    v.second = city_rotate(v.first, 42) * CITY_K1 + city_load64(p + 8);
    w.first = city_rotate(y + z, 35) * CITY_K1 + x;
    w.second = city_rotate(x + city_load64(p + 88), 53) * CITY_K1;
    for (; n >= 128; n -= 128) {
        for (int half = 0; half < 2; half++, p += 64) {
            x = city_rotate(x + y + v.first + city_load64(p + 16), 37) * CITY_K1 ^ w.second;
            y = city_rotate(y + v.second + city_load64(p + 48), 42) * CITY_K1 ^ v.first;
            z = city_rotate(z ^ w.first, 33);
            v = city_stir(p, v.second * CITY_K1, x + w.first);
            w = city_stir(p + 32, z + w.second, y);
            uint64_t swapped = z;
            z = x;
            x = swapped;
        }
    }
    y += city_rotate(w.first, 37) * CITY_K0 + z;
    x += city_rotate(v.first + z, 49) * CITY_K0;
    /* The rest in steps of 32 from the end; the last step may reach back into bytes already hashed. */
    for (size_t done = 0; done < n;) {
        done += 32;
        const uint8_t *step = p + n - done;
        y = city_rotate(y - x, 42) * CITY_K0 + v.second;
        w.first += city_load64(step + 16);
        x = city_rotate(x, 49) * CITY_K0 + w.first;
        w.first += v.first;
        v = city_stir(step, v.first, v.second);
    }
    x = city_join(x, v.first);
    y = city_join(y, w.first);
    return (city_pair_t){city_join(x + v.second, w.second) + y, city_join(x + w.second, y + v.second)};
}

/* out[0], out[1], written little-endian in this order, are the checksum of the frame. */
static inline void cityhash128(const uint8_t *p, size_t n, uint64_t out[2]) {
    city_pair_t hash;
    if (n >= 16) {
        city_pair_t seed = {city_load64(p) ^ CITY_K3, city_load64(p + 8)};
        hash = n - 16 >= 128 ? city_long(p + 16, n - 16, seed) : city_short(p + 16, n - 16, seed);
    } else if (n >= 8) {
        city_pair_t seed = {city_load64(p) ^ (n * CITY_K0), city_load64(p + n - 8) ^ CITY_K1};
        hash = city_short(p, 0, seed);
    } else {
        hash = city_short(p, n, (city_pair_t){CITY_K0, CITY_K1});
    }
    out[0] = hash.first;
    out[1] = hash.second;
}
#endif

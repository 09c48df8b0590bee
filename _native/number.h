/* Numbers and their decimal text: shortest doubles, correctly rounded doubles, exact integers.
 *
 * Writing is Schubfach (Raffaello Giulietti, "The Schubfach way to render doubles", 2020). Reading is Clinger's
 * fast path, then Eisel-Lemire (Daniel Lemire, "Number Parsing at a Gigabyte per Second", 2021; Noble Mushtak and
 * Daniel Lemire, "Fast Number Parsing Without Fallback", 2022), and exact big integers when more than nineteen
 * digits leave a doubt.
 */
#ifndef WEIR_NUMBER_H
#define WEIR_NUMBER_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "number.h reads and writes eight digits at a time, little-endian"
#endif

typedef unsigned __int128 uint128_t;

/* ---- Powers of ten ---- */

/* The leading 128 bits of 10^e, e from -342 to 324: cut for e >= 0 (exact up to 55), rounded up for e < 0. */
#define POWER_MIN (-342)
#define POWER_MAX 324
/* 2^928 / 5^342 still has 128 bits and more; 5^324 has 753 bits. */
#define POWER_LIMBS 30

typedef struct {
    uint64_t high, low;
} power_t;

static power_t powers_of_ten[POWER_MAX - POWER_MIN + 1];

/* The leading 128 bits of a number of 32-bit limbs, least first, that is not zero. */
static inline uint128_t power_leading_bits(const uint32_t *limbs) {
    int top = POWER_LIMBS - 1;
    while (limbs[top] == 0)
        top--;
    uint128_t bits = 0;
    for (int i = top; i > top - 4; i--)
        bits = bits << 32 | (i >= 0 ? limbs[i] : 0);
    int lead = __builtin_clz(limbs[top]);
    if (lead)
        bits = bits << lead | (top >= 4 ? limbs[top - 4] >> (32 - lead) : 0);
    return bits;
}

/* Fills the table: exact powers of five upward, and downward 2^928 divided by five again and again (the floor of
 * a floor's quotient is the quotient's floor). Runs at load time; calling it again does no harm. */
__attribute__((constructor)) static void number_init(void) {
    uint32_t limbs[POWER_LIMBS] = {1};
    for (int e = 0; e <= POWER_MAX; e++) {
        uint128_t bits = power_leading_bits(limbs);
        powers_of_ten[e - POWER_MIN] = (power_t){(uint64_t)(bits >> 64), (uint64_t)bits};
        uint64_t carry = 0;
        for (int i = 0; i < POWER_LIMBS; i++) {
            carry += (uint64_t)limbs[i] * 5;
            limbs[i] = (uint32_t)carry;
            carry >>= 32;
        }
    }
    memset(limbs, 0, sizeof limbs);
    limbs[POWER_LIMBS - 1] = 1;
    for (int e = -1; e >= POWER_MIN; e--) {
        uint64_t rest = 0;
        for (int i = POWER_LIMBS - 1; i >= 0; i--) {
            rest = rest << 32 | limbs[i];
            limbs[i] = (uint32_t)(rest / 5);
            rest %= 5;
        }
        uint128_t bits = power_leading_bits(limbs) + 1;
        powers_of_ten[e - POWER_MIN] = (power_t){(uint64_t)(bits >> 64), (uint64_t)bits};
    }
}

/* ---- Writing ---- */

/* Eight digits of a number below 10^8, first digit in the lowest byte: halves, quarters, digits, side by side. */
static inline uint64_t eight_digits(uint32_t value) {
    uint64_t lanes = value / 10000 | (uint64_t)(value % 10000) << 32;
    uint64_t tops = (lanes * 10486 >> 20) & UINT64_C(0x0000007F0000007F); /* each lane / 100 */
    lanes = tops | (lanes - tops * 100) << 16;
    tops = (lanes * 103 >> 10) & UINT64_C(0x000F000F000F000F); /* each lane / 10 */
    lanes = tops | (lanes - tops * 10) << 8;
    return lanes | UINT64_C(0x3030303030303030);
}

static inline int count_digits(uint64_t value) {
    static const uint64_t bounds[20] = {
        0, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000, UINT64_C(10000000000),
        UINT64_C(100000000000), UINT64_C(1000000000000), UINT64_C(10000000000000), UINT64_C(100000000000000),
        UINT64_C(1000000000000000), UINT64_C(10000000000000000), UINT64_C(100000000000000000),
        UINT64_C(1000000000000000000), UINT64_C(10000000000000000000)};
    int guess = (64 - __builtin_clzll(value | 1)) * 1233 >> 12;
    return guess + (value >= bounds[guess]);
}

/* Writes `value` as exactly the `count` (1 to 20) digits it has. `out` has room for 8 bytes at least. */
static inline void write_digits(uint64_t value, int count, uint8_t *out) {
    uint64_t head = value, block;
    if (count > 8)
        head = count > 16 ? value / UINT64_C(10000000000000000) : value / 100000000;
    int head_count = (count - 1) % 8 + 1;
    block = eight_digits((uint32_t)head) >> (64 - 8 * head_count);
    memcpy(out, &block, 8);
    if (count > 16) {
        block = eight_digits((uint32_t)(value / 100000000 % 100000000));
        memcpy(out + head_count, &block, 8);
    }
    if (count > 8) {
        block = eight_digits((uint32_t)(value % 100000000));
        memcpy(out + count - 8, &block, 8);
    }
}

/* Decimal text; `out` has room for 20 bytes; returns the length. */
static inline int format_uint64(uint64_t value, uint8_t *out) {
    int count = count_digits(value);
    write_digits(value, count, out);
    return count;
}

/* Decimal text; `out` has room for 21 bytes; returns the length. */
static inline int format_int64(int64_t value, uint8_t *out) {
    if (value >= 0)
        return format_uint64((uint64_t)value, out);
    out[0] = '-';
    return 1 + format_uint64(0 - (uint64_t)value, out + 1);
}

/* floor(g * cp / 2^128), its lowest bit set when anything but noise was cut. */
static inline uint64_t multiply_to_odd(power_t g, uint64_t cp) {
    uint64_t low_high = (uint64_t)((uint128_t)g.low * cp >> 64);
    uint128_t sum = (uint128_t)g.high * cp + low_high;
    return (uint64_t)(sum >> 64) | ((uint64_t)sum > 1);
}

/* The shortest digits * 10^*exponent that reads back as the finite, positive double of these bits, and of those
 * the nearest to it. */
static inline uint64_t shortest_decimal(uint64_t bits, int *exponent) {
    uint64_t fraction = bits & ((UINT64_C(1) << 52) - 1);
    int biased = (int)(bits >> 52);
    uint64_t c = biased ? fraction | UINT64_C(1) << 52 : fraction;
    int q = (biased ? biased : 1) - 1075;
    int even = (c & 1) == 0;
    /* Below a power of two the neighbour is twice as near. */
    int lower_is_closer = fraction == 0 && biased > 1;
    int k = (q * 1262611 - (lower_is_closer ? 524031 : 0)) >> 22; /* floor(log10(2^q)), or of 3/4 of it */
    int h = q + ((-k * 1741647) >> 19) + 1;                        /* floor(log2(10^-k)) */
    power_t g = powers_of_ten[-k - POWER_MIN];
    if (-k > 55) { /* The method wants its powers above the true ones. */
        g.low++;
        g.high += g.low == 0;
    }
    uint64_t lower = multiply_to_odd(g, (4 * c - 2 + (uint64_t)lower_is_closer) << h) + !even;
    uint64_t middle = multiply_to_odd(g, 4 * c << h);
    uint64_t upper = multiply_to_odd(g, (4 * c + 2) << h) - !even;
    uint64_t s = middle / 4;
    if (s >= 10) {
        uint64_t tens = s / 10;
        int down_inside = lower <= 40 * tens, up_inside = 40 * tens + 40 <= upper;
        if (down_inside != up_inside) {
            *exponent = k + 1;
            return tens + (uint64_t)up_inside;
        }
    }
    *exponent = k;
    int down_inside = lower <= 4 * s, up_inside = 4 * s + 4 <= upper;
    if (down_inside != up_inside)
        return s + (uint64_t)up_inside;
    return s + (middle > 4 * s + 2 || (middle == 4 * s + 2 && (s & 1)));
}

/* Lays out digits * 10^exponent as Python's repr does; returns the length. */
static inline int layout_decimal(uint64_t digits, int exponent, uint8_t *out) {
    for (; digits % 100000000 == 0; digits /= 100000000)
        exponent += 8;
    if (digits % 10000 == 0) {
        digits /= 10000;
        exponent += 4;
    }
    if (digits % 100 == 0) {
        digits /= 100;
        exponent += 2;
    }
    if (digits % 10 == 0) {
        digits /= 10;
        exponent++;
    }
    int count = count_digits(digits);
    int point = count + exponent; /* where the decimal point stands, from the first digit */
    if (point > -4 && point <= 0) {
        memcpy(out, "0.000", 5);
        write_digits(digits, count, out + 2 - point);
        return 2 - point + count;
    }
    if (point > 0 && point < count) {
        write_digits(digits, count, out + 1);
        memmove(out, out + 1, (size_t)point);
        out[point] = '.';
        return count + 1;
    }
    if (point >= count && point <= 16) {
        write_digits(digits, count, out);
        memset(out + count, '0', (size_t)(point - count));
        memcpy(out + point, ".0", 2);
        return point + 2;
    }
    write_digits(digits, count, out + 1);
    out[0] = out[1];
    out[1] = '.';
    uint8_t *end = out + (count > 1 ? count + 1 : 1);
    int power = point - 1;
    *end++ = 'e';
    *end++ = power < 0 ? '-' : '+';
    int size = power < 0 ? -power : power;
    if (size >= 100)
        *end++ = (uint8_t)('0' + size / 100);
    *end++ = (uint8_t)('0' + size / 10 % 10);
    *end++ = (uint8_t)('0' + size % 10);
    return (int)(end - out);
}

/* Python's repr of a finite double; `out` has room for 32 bytes (24 are the most used); returns the length. */
static inline int format_double(double value, uint8_t *out) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint8_t *start = out;
    if (bits >> 63) {
        *out++ = '-';
        bits &= ~(UINT64_C(1) << 63);
    }
    if (bits == 0) {
        memcpy(out, "0.0", 3);
        return (int)(out - start) + 3;
    }
    double size = value < 0 ? -value : value;
    if (size < 1e15 && (double)(uint64_t)size == size) {
        int length = format_uint64((uint64_t)size, out);
        memcpy(out + length, ".0", 2);
        return (int)(out - start) + length + 2;
    }
    int exponent;
    uint64_t digits = shortest_decimal(bits, &exponent);
    return (int)(out - start) + layout_decimal(digits, exponent, out);
}

/* ---- Reading ---- */

/* A JSON number, taken apart: its value is whole.fraction * 10^exponent. */
typedef struct {
    const uint8_t *whole, *fraction;
    size_t whole_size, fraction_size;
    uint64_t digits;  /* whole and fraction as one number, wrapping where they are more than 19 digits */
    int64_t exponent; /* stops growing at 10^17, which no count of digits makes up for */
    int negative;
} decimal_t;

static inline int are_eight_digits(uint64_t bytes) {
    /* Adding six carries what is above '9' out of the half byte; what is below '0' has another upper half. */
    uint64_t carried = bytes + UINT64_C(0x0606060606060606);
    const uint64_t upper_halves = UINT64_C(0xF0F0F0F0F0F0F0F0);
    return ((bytes & upper_halves) | (carried & upper_halves) >> 4) == UINT64_C(0x3333333333333333);
}

/* The number of eight digits, the first in the lowest byte: pairs, fours, eight. */
static inline uint32_t eight_digits_value(uint64_t bytes) {
    bytes -= UINT64_C(0x3030303030303030);
    bytes = (bytes * 10 + (bytes >> 8)) & UINT64_C(0x00FF00FF00FF00FF);
    bytes = (bytes * 100 + (bytes >> 16)) & UINT64_C(0x0000FFFF0000FFFF);
    return (uint32_t)(bytes * 10000 + (bytes >> 32));
}

/* How many digits p..p+n begins with; they are appended to *digits. */
static inline size_t take_digits(const uint8_t *p, size_t n, uint64_t *digits) {
    size_t at = 0;
    uint64_t value = *digits, bytes;
    for (; n - at >= 8; at += 8) {
        memcpy(&bytes, p + at, sizeof bytes);
        if (!are_eight_digits(bytes))
            break;
        value = value * 100000000 + eight_digits_value(bytes);
    }
    for (; at < n && (unsigned)(p[at] - '0') <= 9; at++)
        value = value * 10 + (p[at] - (unsigned)'0');
    *digits = value;
    return at;
}

/* 0, or -1 when p..p+n is not exactly one JSON number. */
static inline int decimal_scan(const uint8_t *p, size_t n, decimal_t *out) {
    size_t at = n > 0 && p[0] == '-';
    out->negative = (int)at;
    out->digits = 0;
    out->whole = p + at;
    out->whole_size = take_digits(p + at, n - at, &out->digits);
    if (out->whole_size == 0 || (out->whole_size > 1 && p[at] == '0'))
        return -1;
    at += out->whole_size;
    out->fraction = p + at;
    out->fraction_size = 0;
    out->exponent = 0;
    if (at < n && p[at] == '.') {
        at++;
        out->fraction = p + at;
        out->fraction_size = take_digits(p + at, n - at, &out->digits);
        if (out->fraction_size == 0)
            return -1;
        at += out->fraction_size;
    }
    if (at < n && (p[at] | 0x20) == 'e') {
        at++;
        int negative = at < n && p[at] == '-';
        at += at < n && (p[at] == '-' || p[at] == '+');
        size_t first = at;
        for (; at < n && (unsigned)(p[at] - '0') <= 9; at++)
            if (out->exponent < INT64_C(10000000000000000))
                out->exponent = out->exponent * 10 + (p[at] - '0');
        if (at == first)
            return -1;
        if (negative)
            out->exponent = -out->exponent;
    }
    return at == n ? 0 : -1;
}

/* The digit at `index`, counted over the whole part and then the fraction. */
static inline unsigned decimal_digit(const decimal_t *decimal, size_t index) {
    return (index < decimal->whole_size ? decimal->whole[index] : decimal->fraction[index - decimal->whole_size]) -
           (unsigned)'0';
}

enum { DECIMAL_EXACT, DECIMAL_CUT, DECIMAL_TOO_LARGE };

/* The size of the decimal times 10^shift, cut to a whole number, and whether digits were cut from it. */
static inline int decimal_whole(const decimal_t *decimal, int shift, uint64_t *out) {
    size_t count = decimal->whole_size + decimal->fraction_size, index = 0;
    while (index < count && decimal_digit(decimal, index) == 0)
        index++;
    *out = 0;
    if (index == count)
        return DECIMAL_EXACT;
    int64_t point = (int64_t)decimal->whole_size + decimal->exponent + shift; /* digits before the point */
    if (point - (int64_t)index > 20)
        return DECIMAL_TOO_LARGE;
    uint64_t value = 0;
    for (; (int64_t)index < point; index++) {
        unsigned digit = index < count ? decimal_digit(decimal, index) : 0;
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, digit, &value))
            return DECIMAL_TOO_LARGE;
    }
    *out = value;
    for (; index < count; index++)
        if (decimal_digit(decimal, index) != 0)
            return DECIMAL_CUT;
    return DECIMAL_EXACT;
}

/* Decimal digits without a superfluous zero in front, nothing else; 0, or -1 when it is none or out of range. */
static inline int parse_uint64(const uint8_t *p, size_t n, uint64_t *out) {
    if (n == 0 || n > 20 || (n > 1 && p[0] == '0'))
        return -1;
    uint64_t value = 0;
    size_t safe = n < 20 ? n : 19; /* nineteen digits always fit */
    if (take_digits(p, safe, &value) != safe)
        return -1;
    if (n == 20) {
        unsigned last = p[19] - (unsigned)'0';
        if (last > 9 || __builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, last, &value))
            return -1;
    }
    *out = value;
    return 0;
}

static inline int signed_of_magnitude(uint64_t magnitude, int negative, int64_t *out) {
    if (magnitude > (uint64_t)INT64_MAX + (unsigned)negative)
        return -1;
    *out = (int64_t)(negative ? 0 - magnitude : magnitude);
    return 0;
}

/* As parse_uint64, with an optional minus. */
static inline int parse_int64(const uint8_t *p, size_t n, int64_t *out) {
    int negative = n > 0 && p[0] == '-';
    uint64_t magnitude;
    if (parse_uint64(p + negative, n - (size_t)negative, &magnitude) < 0)
        return -1;
    return signed_of_magnitude(magnitude, negative, out);
}

/* A JSON number whose value is an integer, however it is written: "5", "5.0", "12.30e1"; 0 or -1. */
static inline int parse_integral(const uint8_t *p, size_t n, int64_t *out) {
    decimal_t decimal;
    uint64_t magnitude;
    if (decimal_scan(p, n, &decimal) < 0 || decimal_whole(&decimal, 0, &magnitude) != DECIMAL_EXACT)
        return -1;
    return signed_of_magnitude(magnitude, decimal.negative, out);
}

/* As parse_integral, for what must not be negative. */
static inline int parse_whole(const uint8_t *p, size_t n, uint64_t *out) {
    decimal_t decimal;
    if (decimal_scan(p, n, &decimal) < 0 || decimal_whole(&decimal, 0, out) != DECIMAL_EXACT)
        return -1;
    return decimal.negative && *out ? -1 : 0;
}

#define DOUBLE_INFINITY (UINT64_C(0x7FF) << 52)

/* The bits of the double nearest to w * 10^q, ties to even. */
static inline uint64_t nearest_double(uint64_t w, int64_t q) {
    if (w == 0 || q < POWER_MIN)
        return 0;
    if (q > 308)
        return DOUBLE_INFINITY;
    int lead = __builtin_clzll(w);
    w <<= lead;
    power_t power = powers_of_ten[q - POWER_MIN];
    uint128_t product = (uint128_t)w * power.high;
    /* 55 bits decide; only when all those below are ones can the lower half of the power still carry into them. */
    if (((uint64_t)(product >> 64) & 0x1FF) == 0x1FF)
        product += (uint64_t)((uint128_t)w * power.low >> 64);
    uint64_t high = (uint64_t)(product >> 64), low = (uint64_t)product;
    int top = (int)(high >> 63), shift = top + 9;
    uint64_t mantissa = high >> shift; /* 54 bits: one more than a double has */
    int biased = (int)((q * 217706) >> 16) + 63 + top - lead + 1023;
    if (biased <= 0) {
        if (biased <= -63)
            return 0;
        mantissa >>= 1 - biased;
        return (mantissa + (mantissa & 1)) >> 1; /* rounding up to 2^52 is the smallest normal double */
    }
    /* A tie is possible only for these powers; to even then, which is down here. */
    if (low <= 1 && q >= -4 && q <= 23 && (mantissa & 3) == 1 && mantissa << shift == high)
        mantissa &= ~UINT64_C(1);
    mantissa = (mantissa + (mantissa & 1)) >> 1;
    if (mantissa >> 53) {
        mantissa >>= 1;
        biased++;
    }
    if (biased >= 0x7FF)
        return DOUBLE_INFINITY;
    return (uint64_t)biased << 52 | (mantissa & ((UINT64_C(1) << 52) - 1));
}

/* A natural number for the exact comparison: 4,096 bits. The digits kept below make 2,560 of them, the powers of
 * five they are held against no more than that and a word. */
#define NATURAL_LIMBS 64

typedef struct {
    uint64_t limbs[NATURAL_LIMBS];
    int size;
} natural_t;

static inline void natural_multiply_add(natural_t *natural, uint64_t factor, uint64_t addend) {
    uint128_t carry = addend;
    for (int i = 0; i < natural->size; i++) {
        carry += (uint128_t)natural->limbs[i] * factor;
        natural->limbs[i] = (uint64_t)carry;
        carry >>= 64;
    }
    if (carry && natural->size < NATURAL_LIMBS)
        natural->limbs[natural->size++] = (uint64_t)carry;
}

static inline void natural_multiply_power(natural_t *natural, uint64_t base, int64_t exponent) {
    for (; exponent >= 27; exponent -= 27)
        natural_multiply_add(natural, base == 2 ? UINT64_C(1) << 27 : UINT64_C(7450580596923828125), 0);
    for (; exponent > 0; exponent--)
        natural_multiply_add(natural, base, 0);
}

static inline int natural_compare(const natural_t *a, const natural_t *b) {
    if (a->size != b->size)
        return a->size < b->size ? -1 : 1;
    for (int i = a->size - 1; i >= 0; i--)
        if (a->limbs[i] != b->limbs[i])
            return a->limbs[i] < b->limbs[i] ? -1 : 1;
    return 0;
}

/* No double and no middle between two has more significant digits (767); further ones only say "and some more". */
#define DIGITS_THAT_DECIDE 768

/* Whether the decimal lies below (-1), on (0) or above (1) the middle between the double of `bits` and the next.
 * `first` is the decimal's first digit that is not zero. */
static int compare_with_middle(const decimal_t *decimal, size_t first, uint64_t bits) {
    natural_t digits = {{0}, 0}, middle = {{0}, 0};
    size_t count = decimal->whole_size + decimal->fraction_size;
    size_t end = count - first > DIGITS_THAT_DECIDE ? first + DIGITS_THAT_DECIDE : count;
    for (size_t i = first; i < end; i++)
        natural_multiply_add(&digits, 10, decimal_digit(decimal, i));
    int64_t exponent = (int64_t)decimal->whole_size + decimal->exponent - (int64_t)end;
    int more = 0;
    for (size_t i = end; i < count && !more; i++)
        more = decimal_digit(decimal, i) != 0;
    if (more) {
        natural_multiply_add(&digits, 10, 1);
        exponent--;
    }
    int biased = (int)(bits >> 52);
    uint64_t mantissa = (bits & ((UINT64_C(1) << 52) - 1)) | (uint64_t)(biased != 0) << 52;
    natural_multiply_add(&middle, 1, 2 * mantissa + 1);
    int64_t twos = (biased ? biased : 1) - 1076 - exponent; /* of the middle, over those of the digits */
    natural_multiply_power(exponent < 0 ? &middle : &digits, 5, exponent < 0 ? -exponent : exponent);
    natural_multiply_power(twos < 0 ? &digits : &middle, 2, twos < 0 ? -twos : twos);
    return natural_compare(&digits, &middle);
}

static inline uint64_t decimal_to_double(const decimal_t *decimal) {
    size_t count = decimal->whole_size + decimal->fraction_size, first = 0;
    if (count <= 19)
        return nearest_double(decimal->digits, decimal->exponent - (int64_t)decimal->fraction_size);
    while (first < count && decimal_digit(decimal, first) == 0)
        first++;
    size_t end = count - first > 19 ? first + 19 : count;
    uint64_t w = 0;
    for (size_t i = first; i < end; i++)
        w = w * 10 + decimal_digit(decimal, i);
    int64_t exponent = (int64_t)decimal->whole_size + decimal->exponent - (int64_t)end;
    uint64_t bits = nearest_double(w, exponent);
    if (end == count)
        return bits;
    /* Digits were cut: the value lies from w up to, not with, w + 1. */
    if (bits == nearest_double(w + 1, exponent))
        return bits;
    int side = compare_with_middle(decimal, first, bits);
    return bits + (side > 0 || (side == 0 && (bits & 1)));
}

/* A JSON number, correctly rounded. 0; 1 when it is beyond the finite doubles (*out is an infinity then);
 * -1 when p..p+n is not a JSON number. */
static inline int parse_double(const uint8_t *p, size_t n, double *out) {
    decimal_t decimal;
    if (decimal_scan(p, n, &decimal) < 0)
        return -1;
    uint64_t bits = decimal_to_double(&decimal);
    int infinite = bits == DOUBLE_INFINITY;
    bits |= (uint64_t)decimal.negative << 63;
    memcpy(out, &bits, sizeof bits);
    return infinite;
}
#endif

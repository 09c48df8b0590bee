/* Points in time, from text to nanoseconds since 1970-01-01T00:00:00Z. */
#ifndef WEIR_TIME_H
#define WEIR_TIME_H
#include "number.h"

#include <stddef.h>
#include <stdint.h>

#define NANOSECONDS_PER_SECOND INT64_C(1000000000)

/* The number that `count` digits at `p` write, or -1. */
static inline int time_digits(const uint8_t *p, int count) {
    int value = 0;
    for (int i = 0; i < count; i++) {
        unsigned digit = p[i] - (unsigned)'0';
        if (digit > 9)
            return -1;
        value = value * 10 + (int)digit;
    }
    return value;
}

/* Days from 1970-01-01 in the Gregorian calendar, years from 1; INT32_MIN when there is no such day. */
static inline int32_t time_days(int year, int month, int day) {
    static const uint8_t month_days[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (year < 1 || month < 1 || month > 12 || day < 1)
        return INT32_MIN;
    int leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (day > month_days[month - 1] + (month == 2 && leap))
        return INT32_MIN;
    /* A year counted from March ends in its leap day, and its months have 153 days every five. */
    int from_march = (month + 9) % 12;
    int shifted_year = year - (month <= 2);
    int32_t before_year = shifted_year * 365 + shifted_year / 4 - shifted_year / 100 + shifted_year / 400;
    return before_year + (153 * from_march + 2) / 5 + day - 1 - 719468;
}

/* The offset `Z`, `+hh:mm`, `+hhmm` or `+hh` that fills p..p+n, in seconds east; INT32_MIN when it is none. */
static inline int32_t time_offset(const uint8_t *p, size_t n) {
    if (n == 1 && (p[0] | 0x20) == 'z')
        return 0;
    if ((n != 3 && n != 5 && n != 6) || (p[0] != '+' && p[0] != '-') || (n == 6 && p[3] != ':'))
        return INT32_MIN;
    int hours = time_digits(p + 1, 2);
    int minutes = n == 3 ? 0 : time_digits(p + n - 2, 2);
    if (hours < 0 || hours > 23 || minutes < 0 || minutes > 59)
        return INT32_MIN;
    int32_t seconds = hours * 3600 + minutes * 60;
    return p[0] == '-' ? -seconds : seconds;
}

/* RFC 3339, also with a space or `t` for `T`, `,` for `.`, a fraction of any length (digits past nine are cut),
 * and `+hhmm` or `+hh`. Second 60 is the first of the next minute. Outside the int64 range it saturates.
 * 0, or -1 when p..p+n is not such a time. */
static inline int parse_rfc3339(const uint8_t *p, size_t n, int64_t *ns) {
    if (n < 20 || p[4] != '-' || p[7] != '-' || p[13] != ':' || p[16] != ':')
        return -1;
    if (p[10] != 'T' && p[10] != 't' && p[10] != ' ')
        return -1;
    int32_t days = time_days(time_digits(p, 4), time_digits(p + 5, 2), time_digits(p + 8, 2));
    int hour = time_digits(p + 11, 2), minute = time_digits(p + 14, 2), second = time_digits(p + 17, 2);
    if (days == INT32_MIN || hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60)
        return -1;
    size_t at = 19;
    int64_t fraction = 0;
    if (p[at] == '.' || p[at] == ',') {
        size_t first = ++at;
        int64_t unit = NANOSECONDS_PER_SECOND;
        for (; at < n && p[at] >= '0' && p[at] <= '9'; at++) {
            unit /= 10;
            fraction += (p[at] - '0') * unit;
        }
        if (at == first)
            return -1;
    }
    int32_t east = time_offset(p + at, n - at);
    if (east == INT32_MIN)
        return -1;
    int64_t seconds = (int64_t)days * 86400 + hour * 3600 + minute * 60 + second - east;
    __int128 exact = (__int128)seconds * NANOSECONDS_PER_SECOND + fraction;
    *ns = exact > INT64_MAX ? INT64_MAX : exact < INT64_MIN ? INT64_MIN : (int64_t)exact;
    return 0;
}

/* A JSON number of 10^-`decimals` seconds (9 - decimals is how many digits a nanosecond is below), read
 * exactly from its digits; what is below a nanosecond is cut (toward zero). Outside the int64 range it
 * saturates. 0, or -1 when p..p+n is not a JSON number. */
static inline int parse_epoch(const uint8_t *p, size_t n, int decimals, int64_t *ns) {
    decimal_t decimal;
    if (decimal_scan(p, n, &decimal) < 0)
        return -1;
    uint64_t magnitude = 0;
    int state = decimal_whole(&decimal, 9 - decimals, &magnitude);
    uint64_t limit = (uint64_t)INT64_MAX + (unsigned)decimal.negative;
    if (state == DECIMAL_TOO_LARGE || magnitude > limit)
        magnitude = limit;
    *ns = decimal.negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    return 0;
}

static inline int parse_epoch_seconds(const uint8_t *p, size_t n, int64_t *ns) {
    return parse_epoch(p, n, 0, ns);
}

/* A JSON number of seconds, milliseconds, microseconds or nanoseconds since 1970, told apart by size:
 * seconds below 10^11 reach to the year 5138, milliseconds from there on begin in 1973. */
static inline int parse_epoch_any(const uint8_t *p, size_t n, int64_t *ns) {
    double value;
    if (parse_double(p, n, &value) < 0)
        return -1;
    if (value < 0)
        value = -value;
    return parse_epoch(p, n, value < 1e11 ? 0 : value < 1e14 ? 3 : value < 1e17 ? 6 : 9, ns);
}
#endif

# The token bucket of the rate limits.

cdef class Bucket:
    """A token bucket: ``rate`` tokens a second, at most ``burst`` at once, times in nanoseconds."""

    cdef double rate, burst, tokens
    cdef int64_t at_ns

    def __init__(self, double rate, double burst, int64_t now_ns):
        if not (rate > 0 and burst > 0):
            raise ValueError("rate and burst must be above zero")
        self.rate, self.burst, self.tokens, self.at_ns = rate, burst, burst, now_ns

    cdef void refill(self, int64_t now_ns) noexcept nogil:
        # A clock that steps back adds nothing and takes nothing.
        if now_ns > self.at_ns:
            self.tokens = min(self.burst, self.tokens + self.rate * <double> (now_ns - self.at_ns) / 1e9)
            self.at_ns = now_ns

    def take(self, double tokens, int64_t now_ns):
        """0.0 when taken, else the seconds until it could be; then nothing is taken."""
        self.refill(now_ns)
        if tokens <= self.tokens:
            self.tokens -= tokens
            return 0.0
        return (tokens - self.tokens) / self.rate

    def level(self, int64_t now_ns):
        self.refill(now_ns)
        return self.tokens

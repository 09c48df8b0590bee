"""One gateway in several processes: a supervisor that stays, and workers that may come and go."""

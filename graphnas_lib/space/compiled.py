"""Functions that Numba compiles: kept on disk where Numba finds a folder for it, else compiled in each process."""

from __future__ import annotations

from collections.abc import Callable

import numba


def compiled(**options: object) -> Callable[[Callable], Callable]:
    """`numba.njit` with `options`, cached beside the source, in the user's cache or in `$NUMBA_CACHE_DIR`.

    Where none of them can be written (a read-only checkout and home), the function is compiled by each process anew.
    """

    def decorated(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            return numba.njit(**options)(function)

    return decorated

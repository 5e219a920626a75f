/* fuzz_inflate.c - zlib and gzip streams; deflated bytes inflate to themselves. See fuzz.h. */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "io/file.h"

int FUZZ_TARGET(const uint8_t *bytes, size_t n)
{
    Error err;
    size_t n_out, n_packed;
    free(zlib_inflate(bytes, n, 1 << 20, &n_out, "fuzz", &err));
    free(gzip_inflate(bytes, n, 1 << 20, &n_out, "fuzz", &err));
    uint8_t *packed = zlib_deflate(bytes, n, &n_packed);
    uint8_t *back = packed ? zlib_inflate(packed, n_packed, n, &n_out, "back", &err) : NULL;
    if (packed && (!back || n_out != n || (n > 0 && memcmp(back, bytes, n) != 0)))
        abort();
    free(back);
    free(packed);
    return 0;
}

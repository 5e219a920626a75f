/* featup_kernels.c - what train_featup.py needs of a 7x7 window around every pixel.
 *
 * Arrays are [H][W][C], kernels [H][W][49]. Neighbours beyond the border are mirrored, as in featup.c. A sum over
 * neighbours has two gradients, and each of them is one of these three functions again. */
enum { RADIUS = 3, DIAMETER = 2 * RADIUS + 1, TAPS = DIAMETER * DIAMETER };

static int reflect(int i, int n)
{
    while (i < 0 || i >= n)
        i = i < 0 ? -i : 2 * (n - 1) - i;
    return i;
}

/* The index of pixel (y, x)'s neighbour `tap`. */
static long neighbour(int y, int x, int tap, int H, int W)
{
    return (long)reflect(y + tap / DIAMETER - RADIUS, H) * W + reflect(x + tap % DIAMETER - RADIUS, W);
}

/* kernel(p)[n] = <a(p), b(n)> */
void neighbour_dot(int H, int W, int C, const float *a, const float *b, float *kernel)
{
    for (long p = 0; p < (long)H * W; p++)
        for (int tap = 0; tap < TAPS; tap++) {
            const float *at = a + p * C, *there = b + neighbour((int)(p / W), (int)(p % W), tap, H, W) * C;
            float sum = 0;
            for (int c = 0; c < C; c++)
                sum += at[c] * there[c];
            kernel[p * TAPS + tap] = sum;
        }
}

/* out(p) = sum over n of kernel(p)[n] * b(n); out comes zeroed. */
void neighbour_sum(int H, int W, int C, const float *kernel, const float *b, float *out)
{
    for (long p = 0; p < (long)H * W; p++)
        for (int tap = 0; tap < TAPS; tap++) {
            const float weight = kernel[p * TAPS + tap];
            const float *there = b + neighbour((int)(p / W), (int)(p % W), tap, H, W) * C;
            for (int c = 0; c < C; c++)
                out[p * C + c] += weight * there[c];
        }
}

/* out(n) += kernel(p)[n] * a(p) for every pixel p; out comes zeroed. */
void neighbour_spread(int H, int W, int C, const float *kernel, const float *a, float *out)
{
    for (long p = 0; p < (long)H * W; p++)
        for (int tap = 0; tap < TAPS; tap++) {
            const float weight = kernel[p * TAPS + tap];
            float *there = out + neighbour((int)(p / W), (int)(p % W), tap, H, W) * C;
            for (int c = 0; c < C; c++)
                there[c] += weight * a[p * C + c];
        }
}

/* Times OpenBLAS for bench-peers: GFLOP/s of float32 products x·wᵀ on one thread.

       gemm TOKENS ROWS LENGTH MILLISECONDS
       gemm peak MILLISECONDS      multiply-adds alone, in registers

   cc -O3 -march=native gemm.c -lopenblas (Debian: libopenblas-dev) */
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __AVX512F__
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
typedef float vec __attribute__((vector_size(WIDTH * 4)));

/* Of the processor's time, so that other programs do not show. */
static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Twelve sums that do not wait for each other: enough for two units of five cycles. */
static double peak(double seconds) {
	vec a, b, s[12];
	for (int i = 0; i < WIDTH; i++) a[i] = 0.5f, b[i] = 1.0f;
	for (int j = 0; j < 12; j++) s[j] = b * (float)j;
	double start = now(), calls = 0;
	do {
		for (int i = 0; i < 100000; i++) {
			for (int j = 0; j < 12; j++) s[j] = s[j] * a + b;
			__asm__ volatile("" : "+x"(a), "+x"(b));
		}
		calls += 100000;
	} while (now() - start < seconds);
	double took = now() - start;
	volatile float sink = 0;
	for (int j = 0; j < 12; j++) sink += s[j][0];
	return 2.0 * 12 * WIDTH * calls / took / 1e9;
}

static double gemm(int tokens, int rows, int length, double seconds) {
	float *x = malloc(sizeof(float) * (size_t)tokens * (size_t)length);
	float *w = malloc(sizeof(float) * (size_t)rows * (size_t)length);
	float *dst = malloc(sizeof(float) * (size_t)tokens * (size_t)rows);
	if (!x || !w || !dst) exit(1);
	for (long i = 0; i < (long)tokens * length; i++) x[i] = (float)(i % 17 - 8);
	for (long i = 0; i < (long)rows * length; i++) w[i] = (float)(i % 13 - 6);
	double start = 0, calls = -1; /* the first call warms up */
	do {
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, tokens, rows, length, 1, x, length, w, length, 0, dst, rows);
		if (calls++ < 0) start = now();
	} while (now() - start < seconds);
	return 2.0 * tokens * rows * length * calls / (now() - start) / 1e9;
}

int main(int argc, char **argv) {
	if (argc == 3 && !strcmp(argv[1], "peak")) {
		printf("%f\n", peak(atof(argv[2]) / 1000));
		return 0;
	}
	if (argc != 5) return 2;
	openblas_set_num_threads(1);
	printf("%f\n", gemm(atoi(argv[1]), atoi(argv[2]), atoi(argv[3]), atof(argv[4]) / 1000));
	return 0;
}

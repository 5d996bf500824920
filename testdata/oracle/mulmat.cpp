// mulmat prints ggml's products of a few rows of every quantized type with
// activations in float32, as its CPU backend computes them: the reference of
// `--compute int8`. Build and run:
//
//   bin=$(testdata/oracle/build.sh); src=$(dirname "$bin")/../src/llama_cpp_python-*/vendor/llama.cpp
//   c++ -std=c++17 -I $src/ggml/include mulmat.cpp -L "$bin" -lggml -lggml-cpu -lggml-base -Wl,-rpath,"$bin" -o mulmat
//   ./mulmat | gzip -9 > engine/testdata/mulmat.txt.gz
//
// Lines: "x" and the bits of the activations [5, 512]; then for every type its
// name, the bytes of the weights [8, 512] and the bits of the products [5, 8].
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

static uint32_t seed = 1;

// noise has about the shape of a normal distribution, by twelve uniform ones.
static float noise() {
    float sum = 0;
    for (int i = 0; i < 12; i++) {
        seed = seed * 1664525u + 1013904223u;
        sum += float(seed >> 8) / float(1 << 24);
    }
    return sum - 6;
}

static void hex(const void * data, size_t n) {
    for (size_t i = 0; i < n; i++) printf("%02x", ((const uint8_t *) data)[i]);
}

int main() {
    const int64_t cols = 512, rows = 8, tokens = 5;
    std::vector<float> x(cols * tokens), w(cols * rows), ones(cols, 1.0f);
    for (auto & v : x) v = noise();
    for (int64_t i = 0; i < tokens; i++) x[i * cols + 7 * i] *= 20;  // outliers
    for (auto & v : w) v = noise() / 30;
    printf("x ");
    hex(x.data(), x.size() * 4);
    printf("\n");
    const ggml_type types[] = {
        GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0,
        GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS,
        GGML_TYPE_IQ2_S, GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
        GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0, GGML_TYPE_MXFP4, GGML_TYPE_NVFP4,
    };
    for (ggml_type type : types) {
        ggml_init_params params = { 16 << 20, nullptr, false };
        ggml_context * ctx = ggml_init(params);
        ggml_tensor * a = ggml_new_tensor_2d(ctx, type, cols, rows);
        ggml_tensor * b = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, cols, tokens);
        memcpy(b->data, x.data(), x.size() * 4);
        ggml_quantize_chunk(type, w.data(), a->data, 0, rows, cols, ones.data());
        ggml_tensor * c = ggml_mul_mat(ctx, a, b);
        ggml_cgraph * graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, c);
        ggml_graph_compute_with_ctx(ctx, graph, 1);
        printf("%s ", ggml_type_name(type));
        hex(a->data, ggml_nbytes(a));
        printf(" ");
        hex(c->data, rows * tokens * 4);
        printf("\n");
        ggml_free(ctx);
    }
}

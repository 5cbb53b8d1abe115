#pragma once
// Softmax and losses over the last axis of [rows, classes]. T: float, double; Label: int32, int64.
// An output may be the same buffer as an input of the same extents.

#include <cstdint>

namespace rewind_lib::kernels {

template <class T>
void softmax(const T* x, std::int64_t rows, std::int64_t classes, T* y);
/// dx = y (g - sum(g y)).
template <class T>
void softmax_backward(const T* y, const T* g, std::int64_t rows, std::int64_t classes, T* dx);
template <class T>
void log_softmax(const T* x, std::int64_t rows, std::int64_t classes, T* y);
/// dx = g - exp(y) sum(g).
template <class T>
void log_softmax_backward(const T* y, const T* g, std::int64_t rows, std::int64_t classes, T* dx);

/// The first row whose label is not in [0, classes), or -1.
template <class Label>
std::int64_t first_bad_label(const Label* labels, std::int64_t rows, std::int64_t classes);

/// loss[r] = -(1 - smoothing) log p[label] - smoothing / classes * sum of log p, as PyTorch defines it; lse[r] is the
/// row's log-sum-exp, which the backward wants, rest[r] what rounding took from it: much, where logits are large. Labels are in
/// range (first_bad_label). The mean over rows is sum().
template <class T, class Label>
void cross_entropy_forward(const T* logits, const Label* labels, std::int64_t rows, std::int64_t classes, double smoothing, T* loss,
                           T* lse, T* rest);
/// dx = (softmax(logits) - target) * scale * *g. One pass.
template <class T, class Label>
void cross_entropy_backward(const T* logits, const Label* labels, const T* lse, const T* rest, std::int64_t rows,
                            std::int64_t classes, double smoothing, const T* g, T scale, T* dx);

/// Mean of (a - b)^2 over n elements.
template <class T>
T mse_forward(const T* a, const T* b, std::int64_t n);
/// da = 2 (a - b) / n * g.
template <class T>
void mse_backward(const T* a, const T* b, std::int64_t n, T g, T* da);

}  // namespace rewind_lib::kernels

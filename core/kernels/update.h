#pragma once
// Optimizer updates: one pass over a parameter w, its gradient g and its state, all [n]. T: float, double.
// `step` counts from 1.

#include <cstdint>

namespace rewind_lib::kernels {

/// w -= lr (g + weight_decay w).
template <class T>
void sgd(T* w, const T* g, std::int64_t n, double lr, double weight_decay);

struct MomentumOptions {
  double lr = 0, momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false;
};
/// PyTorch's: d = g + weight_decay w; buffer = momentum buffer + (1 - dampening) d, but buffer = d at step 1;
/// w -= lr (nesterov ? d + momentum buffer : buffer).
template <class T>
void momentum(T* w, const T* g, T* buffer, std::int64_t n, const MomentumOptions& o, std::int64_t step);

struct AdamOptions {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
};
/// Kingma and Ba 2015, Algorithm 1: w -= lr m_hat / (sqrt(v_hat) + eps); weight_decay w is added to g first.
template <class T>
void adam(T* w, const T* g, T* m, T* v, std::int64_t n, const AdamOptions& o, std::int64_t step);
/// The order of computation at the end of their section 2: lr_t = lr sqrt(1 - beta2^t) / (1 - beta1^t) and
/// w -= lr_t m / (sqrt(v) + eps_hat), eps_hat = eps sqrt(1 - beta2^t): the same update as adam but for rounding.
template <class T>
void adam_efficient(T* w, const T* g, T* m, T* v, std::int64_t n, const AdamOptions& o, std::int64_t step);
/// Loshchilov and Hutter 2019: w -= lr weight_decay w, then Adam's update on g alone.
template <class T>
void adamw(T* w, const T* g, T* m, T* v, std::int64_t n, const AdamOptions& o, std::int64_t step);

/// Sum of x^2.
template <class T>
double sum_of_squares(const T* x, std::int64_t n);
/// x *= a.
template <class T>
void scale(T* x, T a, std::int64_t n);

}  // namespace rewind_lib::kernels

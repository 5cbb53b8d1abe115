#pragma once
// Batch normalisation over the rows, and layer normalisation over the columns, of x [rows, channels], channels last.
// T: float, double. gamma and beta may be null (1 and 0). Outputs may be the same buffer as x or g (of one: dx = g or
// dx = x). rstd = 1 / sqrt(var + eps).

#include <rewind/core/kernels/activation.h>

#include <cstdint>

namespace rewind_lib::kernels {

/// Doubles that batch_norm_statistics and batch_norm_backward need.
std::int64_t batch_norm_scratch(std::int64_t rows, std::int64_t channels);

/// Mean and biased variance of every column. Shifted sums a piece, combined in order (Chan et al. 1983).
template <class T>
void batch_norm_statistics(const T* x, std::int64_t rows, std::int64_t channels, T* mean, T* var, double* scratch);

/// rstd = 1 / sqrt(var + eps).
template <class T>
void reciprocal_std(const T* var, std::int64_t channels, double eps, T* rstd);

/// running = (1 - momentum) running + momentum value; for the variance, value is the unbiased one: rows / (rows - 1) var.
template <class T>
void update_running(const T* mean, const T* var, std::int64_t rows, std::int64_t channels, double momentum, T* running_mean,
                    T* running_var);

/// y = act((x - mean) rstd gamma + beta). With running statistics, the evaluation form.
template <class T>
void batch_norm_forward(const T* x, std::int64_t rows, std::int64_t channels, const T* mean, const T* rstd, const T* gamma,
                        const T* beta, Activation act, T* y);

/// Gradients of batch_norm_forward, mean and rstd being functions of x (batch statistics) or constants (running ones).
/// The activation's mask is made again from x. dx, dgamma and dbeta may each be null.
template <class T>
void batch_norm_backward(const T* x, std::int64_t rows, std::int64_t channels, const T* mean, const T* rstd, const T* gamma,
                         const T* beta, Activation act, bool batch_statistics, const T* g, T* dx, T* dgamma, T* dbeta,
                         double* scratch);

/// y = (x - mean) rstd gamma + beta, mean and rstd [rows] of every row (written; each may be null).
template <class T>
void layer_norm_forward(const T* x, std::int64_t rows, std::int64_t columns, const T* gamma, const T* beta, double eps, T* y,
                        T* mean, T* rstd);

/// Doubles that layer_norm_backward needs.
std::int64_t layer_norm_scratch(std::int64_t rows, std::int64_t columns);
/// dx, dgamma and dbeta may each be null.
template <class T>
void layer_norm_backward(const T* x, std::int64_t rows, std::int64_t columns, const T* mean, const T* rstd, const T* gamma,
                         const T* g, T* dx, T* dgamma, T* dbeta, double* scratch);

}  // namespace rewind_lib::kernels
